import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type ErrorCode, isVpnError } from '../base/errors.ts';
import { formatIp, formatPrefix, parseIp, parsePrefix } from './address.ts';
import { type Lease, LeasePool } from './lease-pool.ts';

function pool(v4: string | undefined, v6?: string, rememberedOwners?: number): LeasePool {
  return new LeasePool({
    ...(v4 !== undefined && { v4: parsePrefix(v4) }),
    ...(v6 !== undefined && { v6: parsePrefix(v6) }),
    ...(rememberedOwners !== undefined && { rememberedOwners }),
  });
}

function texts(lease: Lease): string[] {
  return [lease.v4, lease.v6].flatMap((address) => (address === undefined ? [] : [formatIp(address)]));
}

function fails(code: ErrorCode, run: () => unknown): void {
  assert.throws(run, (error) => isVpnError(error, code));
}

test('the gateway has the first usable address of each family, clients the next ones, the host parts alike', () => {
  const both = pool('10.8.0.0/24', 'fd00:8::/64');
  assert.equal(both.gateway4 && formatIp(both.gateway4), '10.8.0.1');
  assert.equal(both.gateway6 && formatIp(both.gateway6), 'fd00:8::1');
  assert.equal(both.size, 253);
  assert.deepEqual(texts(both.lease('a')), ['10.8.0.2', 'fd00:8::2']);
  assert.deepEqual(texts(both.lease('b')), ['10.8.0.3', 'fd00:8::3']);
  assert.equal(both.leased, 2);
});

test('a pool of one family leases that family only', () => {
  assert.deepEqual(Object.keys(pool('10.8.0.0/24').lease('a')), ['v4']);
  const six = pool(undefined, 'fd00:8::/64');
  assert.equal(six.gateway4, undefined);
  assert.deepEqual(texts(six.lease('a')), ['fd00:8::2']);
});

test('every address but network, gateway and broadcast is leased once, then ERR_POOL_EXHAUSTED', () => {
  const small = pool('192.0.2.8/29');
  const leased = Array.from({ length: small.size }, (_, at) => texts(small.lease(`owner ${at}`))[0]);
  assert.deepEqual(leased, ['192.0.2.10', '192.0.2.11', '192.0.2.12', '192.0.2.13', '192.0.2.14']);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('late'));
  fails('ERR_POOL_EXHAUSTED', () => small.lease('owner 0'));
  assert.equal(small.leased, 5);
});

test('the smaller family bounds the pool', () => {
  const narrow6 = pool('10.8.0.0/16', 'fd00:8::/125');
  assert.equal(narrow6.size, 6);
  for (let at = 0; at < 6; at++) narrow6.lease(`${at}`);
  fails('ERR_POOL_EXHAUSTED', () => narrow6.lease('late'));
  assert.equal(pool('10.8.0.0/30', 'fd00:8::/64').size, 1);
});

test('an owner gets its address back as long as nobody else needed it', () => {
  const small = pool('10.8.0.0/29');
  const a = small.lease('a');
  const b = small.lease('b');
  small.release(a);
  small.release(b);
  assert.deepEqual(texts(small.lease('new')), ['10.8.0.4'], 'an address that nobody is remembered for');
  assert.deepEqual(texts(small.lease('b')), texts(b));
  assert.deepEqual(texts(small.lease('a')), texts(a));
});

test('under need the owner that has been away longest loses its address', () => {
  const small = pool('10.8.0.0/29');
  const leases = ['a', 'b', 'c', 'd', 'e'].map((owner) => small.lease(owner));
  for (const at of [1, 0]) {
    const lease = leases[at];
    assert.ok(lease);
    small.release(lease);
  }
  assert.deepEqual(texts(small.lease('new')), ['10.8.0.3'], 'that of b, released first');
  assert.deepEqual(texts(small.lease('a')), ['10.8.0.2']);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('b'));
});

test('an owner may hold several leases', () => {
  const small = pool('10.8.0.0/29');
  const first = small.lease('a');
  const second = small.lease('a');
  assert.notDeepEqual(texts(first), texts(second));
  small.release(first);
  small.release(second);
  assert.deepEqual(texts(small.lease('a')), texts(second), 'the one it had last');
  assert.equal(small.leased, 1);
});

test('owners of an earlier life get their addresses back, whoever comes first, and nobody else does', () => {
  const before = pool('10.8.0.0/28', 'fd00:8::/64');
  const leases = new Map(['a', 'b', 'c', 'd'].map((owner) => [owner, before.lease(owner)]));
  leases.delete('b');
  const after = pool('10.8.0.0/28', 'fd00:8::/64');
  after.restore(leases);
  assert.deepEqual(texts(after.lease('d')), texts(leases.get('d') ?? {}));
  assert.deepEqual(texts(after.lease('new')), ['10.8.0.3', 'fd00:8::3'], 'the one in between that nobody had');
  assert.deepEqual(texts(after.lease('newer')), ['10.8.0.6', 'fd00:8::6']);
  assert.deepEqual(texts(after.lease('a')), texts(leases.get('a') ?? {}));
  assert.deepEqual(texts(after.lease('c')), texts(leases.get('c') ?? {}));
  assert.equal(after.leased, 5);
});

test('addresses that are not of this pool are not restored, and of two owners the later one is', () => {
  const small = pool('10.8.0.0/29');
  const at = (text: string) => ({ v4: parseIp(text) });
  small.restore([
    ['elsewhere', at('10.9.0.2')],
    ['gateway', at('10.8.0.1')],
    ['broadcast', at('10.8.0.7')],
    ['none', {}],
    ['other family', { v6: parseIp('fd00::2') }],
    ['earlier', at('10.8.0.4')],
    ['later', at('10.8.0.4')],
  ]);
  for (const owner of ['elsewhere', 'gateway', 'earlier']) assert.notEqual(texts(small.lease(owner))[0], '10.8.0.4');
  assert.deepEqual(texts(small.lease('later')), ['10.8.0.4']);
  assert.equal(new Set(['broadcast'].map((owner) => texts(small.lease(owner))[0])).size, 1);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('one more'));
});

test('no more owners are restored than are remembered', () => {
  const small = pool('10.8.0.0/24', undefined, 2);
  small.restore(['a', 'b', 'c'].map((owner, at) => [owner, { v4: parseIp(`10.8.0.${at + 2}`) }] as const));
  assert.deepEqual(texts(small.lease('x')), ['10.8.0.2'], 'that of a, who is forgotten');
  assert.deepEqual(texts(small.lease('c')), ['10.8.0.4']);
  assert.deepEqual(texts(small.lease('b')), ['10.8.0.3']);
});

test('releasing twice, or what is not ours, changes nothing', () => {
  const small = pool('10.8.0.0/30');
  const a = small.lease('a');
  small.release(a);
  small.release(a);
  const b = small.lease('b');
  small.release(a);
  small.release({ ...b });
  assert.equal(small.leased, 1);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('c'));
});

test('only so many owners are remembered', () => {
  const small = pool(undefined, 'fd00::/64', 2);
  const leases = ['a', 'b', 'c'].map((owner) => small.lease(owner));
  for (const lease of leases) small.release(lease);
  assert.deepEqual(texts(small.lease('c')), ['fd00::4']);
  assert.deepEqual(texts(small.lease('x')), ['fd00::2'], 'a is forgotten, its address is nobody’s');
  assert.deepEqual(texts(small.lease('b')), ['fd00::3']);
});

test('a pool with many coming and going owners reuses few addresses', () => {
  const wide = pool(undefined, 'fd00::/64', 10);
  let highest = 0n;
  for (let at = 0; at < 10_000; at++) {
    const lease = wide.lease(`owner ${at}`);
    const bytes = lease.v6?.bytes ?? new Uint8Array(16);
    const host = new DataView(bytes.buffer).getBigUint64(8);
    if (host > highest) highest = host;
    wide.release(lease);
  }
  assert.ok(highest <= 2n + 11n, `leased ${highest}`);
});

for (const [v4, v6] of [
  [undefined, undefined],
  ['10.8.0.0/31', undefined],
  ['10.8.0.1/32', undefined],
  [undefined, 'fd00::/127'],
  [undefined, 'fd00::1/128'],
  ['10.8.0.0/24', '10.9.0.0/24'],
  ['fd00::/64', undefined],
] as const) {
  test(`no pool: ${v4 ?? 'none'} and ${v6 ?? 'none'}`, () => fails('ERR_CONFIG_VALUE', () => pool(v4, v6)));
}

test('no address is ever leased twice at once, none reserved, and all can be leased', () => {
  const step = fc.record({ owner: fc.nat(12), release: fc.option(fc.nat(20), { nil: undefined }) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), fc.nat(8), (steps, remembered) => {
      const small = pool('10.8.0.0/28', 'fd00:8::/64', remembered);
      const held: Lease[] = [];
      for (const { owner, release } of steps) {
        if (release !== undefined) {
          const [lease] = held.splice(release % (held.length || 1), 1);
          if (lease !== undefined) small.release(lease);
          continue;
        }
        if (held.length === small.size) {
          fails('ERR_POOL_EXHAUSTED', () => small.lease(`${owner}`));
          continue;
        }
        const lease = small.lease(`${owner}`);
        const host = lease.v4?.bytes[3] ?? 0;
        assert.ok(host >= 2 && host <= 14, `host part ${host}`);
        assert.equal(lease.v6?.bytes[15], host);
        assert.ok(!held.some((other) => other.v4?.bytes[3] === host), `${host} is leased twice`);
        held.push(lease);
      }
      assert.equal(small.leased, held.length);
    }),
    { numRuns: 300 },
  );
});

const text = (lease: Lease): string => texts(lease).join(' ');

test('shares are apart, cover the pool, and borrow when they are full', () => {
  const shared = new LeasePool({ v4: parsePrefix('10.0.0.0/28'), v6: parsePrefix('fd00::/64'), shares: 2 });
  assert.deepEqual(shared.prefixesOf(0).map(formatPrefix), ['10.0.0.0/29', 'fd00::/125']);
  assert.deepEqual(shared.prefixesOf(1).map(formatPrefix), ['10.0.0.8/29', 'fd00::8/125']);
  const first = shared.lease('a', 0);
  const second = shared.lease('b', 1);
  assert.deepEqual([text(first), text(second)], ['10.0.0.2 fd00::2', '10.0.0.8 fd00::8']);
  assert.deepEqual([shared.shareOf(first), shared.shareOf(second)], [0, 1]);
  for (let owner = 0; owner < 6; owner++) assert.equal(shared.shareOf(shared.lease(`c${owner}`, 1)), 1);
  assert.equal(shared.shareOf(shared.lease('d', 1)), 0, 'borrowed');
  shared.release(second);
  assert.equal(text(shared.lease('b', 0)), '10.0.0.8 fd00::8', 'the address it had, whoever it belongs to');
});

test('three shares have the four blocks between them, and a small pool leaves shares empty', () => {
  const three = new LeasePool({ v4: parsePrefix('10.0.0.0/24'), shares: 3 });
  assert.deepEqual(
    [0, 1, 2].map((share) => three.prefixesOf(share).map(formatPrefix)),
    [['10.0.0.0/26', '10.0.0.192/26'], ['10.0.0.64/26'], ['10.0.0.128/26']],
  );
  const small = new LeasePool({ v4: parsePrefix('10.0.0.0/29'), shares: 4 });
  assert.deepEqual(
    [0, 1].map((share) => small.prefixesOf(share).map(formatPrefix)),
    [['10.0.0.0/29'], []],
  );
  assert.equal(small.shareOf(small.lease('a', 3)), 0);
});

const grown = (from: readonly string[], to: readonly string[], shares: number): LeasePool => {
  const [before, after] = [from, to].map((texts) => {
    const prefixes = texts.map(parsePrefix);
    const v4 = prefixes.find(({ address }) => address.version === 4);
    const v6 = prefixes.find(({ address }) => address.version === 6);
    return { ...(v4 && { v4 }), ...(v6 && { v6 }) };
  });
  const made = new LeasePool({ ...before, shares });
  if (after !== undefined) made.grow(after);
  return made;
};

test('a pool that grows keeps its leases, its gateway and its shares, and leases what is new', () => {
  const small = new LeasePool({ v4: parsePrefix('10.0.0.0/28'), v6: parsePrefix('fd00::/64'), shares: 2 });
  const blocks = [small.prefixesOf(0), small.prefixesOf(1)].map((prefixes) => prefixes.map(formatPrefix));
  const leases = Array.from({ length: small.size }, (_, at) => small.lease(`${at}`, at % 2));
  const before = leases.map((lease) => [text(lease), small.shareOf(lease)]);
  small.grow({ v4: parsePrefix('10.0.0.0/26'), v6: parsePrefix('fd00::/64') });
  assert.equal(small.size, 61);
  assert.deepEqual(
    leases.map((lease) => [text(lease), small.shareOf(lease)]),
    before,
  );
  for (const share of [0, 1]) {
    assert.deepEqual(small.prefixesOf(share).map(formatPrefix).slice(0, 2), blocks[share]);
  }
  assert.deepEqual(small.prefixesOf(1).map(formatPrefix).slice(2), [
    '10.0.0.24/29',
    'fd00::18/125',
    '10.0.0.48/28',
    'fd00::30/124',
  ]);
  const more = Array.from({ length: 61 - before.length }, (_, at) => small.lease(`more ${at}`, at % 2));
  const all = [...leases, ...more].map(text);
  assert.equal(new Set(all).size, 61);
  assert.ok(
    all.includes('10.0.0.15 fd00::f') && all.includes('10.0.0.62 fd00::3e'),
    'the last one of before, and of now',
  );
  fails('ERR_POOL_EXHAUSTED', () => small.lease('late'));
  assert.equal(small.gateway4 && formatIp(small.gateway4), '10.0.0.1');
});

test('however often it has grown on the way, a pool is the same', () => {
  const atOnce = grown(['10.0.0.0/24'], ['10.0.0.0/20'], 3);
  const steps = grown(['10.0.0.0/24'], ['10.0.0.0/23'], 3);
  for (const length of [22, 20, 20]) steps.grow({ v4: parsePrefix(`10.0.0.0/${length}`) });
  for (const share of [0, 1, 2]) {
    assert.deepEqual(steps.prefixesOf(share).map(formatPrefix), atOnce.prefixesOf(share).map(formatPrefix));
  }
  assert.equal(steps.size, atOnce.size);
});

test('a pool of which one family alone grows is as large as the smaller one', () => {
  const bound = grown(['10.0.0.0/28', 'fd00::/124'], ['10.0.0.0/24', 'fd00::/124'], 2);
  assert.equal(bound.size, 14);
  for (let at = 0; at < 14; at++) bound.lease(`${at}`, 1);
  fails('ERR_POOL_EXHAUSTED', () => bound.lease('late'));
});

for (const [to, why] of [
  [['10.0.1.0/24', 'fd00::/64'], /expected 10\.0\.0\.0\/24 or a larger network that begins alike, got 10\.0\.1\.0\/24/],
  [['10.0.0.0/25', 'fd00::/64'], /got 10\.0\.0\.0\/25/],
  [['10.0.0.0/24'], /expected fd00::\/64 or a larger network that begins alike, got none/],
] as const) {
  test(`a pool in use does not become ${to}`, () => {
    assert.throws(
      () => grown(['10.0.0.0/24', 'fd00::/64'], to, 1),
      (error) => isVpnError(error, 'ERR_CONFIG_VALUE') && why.test(error.message),
    );
  });
}

const kept = (...list: string[]) => list.map(parsePrefix);
const KEPT = kept('10.8.0.3/32');

test('a kept address is leased to whoever wants it and to nobody else, also when the pool is full', () => {
  const small = pool('10.8.0.0/29');
  small.keep(KEPT);
  const others = Array.from({ length: 4 }, (_, at) => texts(small.lease(`owner ${at}`))[0]);
  assert.deepEqual(others, ['10.8.0.2', '10.8.0.4', '10.8.0.5', '10.8.0.6']);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('late'));
  const lease = small.lease('static', 0, KEPT);
  assert.deepEqual(texts(lease), ['10.8.0.3']);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('second device', 0, KEPT));
  small.release(lease);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('late'));
  assert.deepEqual(texts(small.lease('second device', 0, KEPT)), ['10.8.0.3']);
});

test('of several kept addresses each device gets the one it had last, as long as another has not', () => {
  const two = pool('10.8.0.0/24', 'fd00:8::/64');
  const range = kept('10.8.0.32/30');
  two.keep(range);
  const a = two.lease('a', 0, range);
  const b = two.lease('b', 0, range);
  assert.deepEqual(
    [texts(a), texts(b)],
    [
      ['10.8.0.32', 'fd00:8::20'],
      ['10.8.0.33', 'fd00:8::21'],
    ],
  );
  two.release(a);
  two.release(b);
  assert.deepEqual(texts(two.lease('b', 0, range)), ['10.8.0.33', 'fd00:8::21']);
  assert.deepEqual(texts(two.lease('c', 0, range))[0], '10.8.0.34', 'that of a is left for a');
  assert.deepEqual(texts(two.lease('a', 0, range))[0], '10.8.0.32');
});

test('who has an address when it is kept has it until the release; what is kept no more is free', () => {
  const small = pool('10.8.0.0/29');
  const [, second] = [small.lease('a'), small.lease('b')];
  assert.deepEqual(texts(second), ['10.8.0.3']);
  small.keep(KEPT);
  assert.deepEqual(texts(small.lease('static', 0, KEPT)), ['10.8.0.4'], 'it is taken');
  small.release(second);
  assert.deepEqual(texts(small.lease('b')), ['10.8.0.5']);
  assert.deepEqual(texts(small.lease('static too', 0, KEPT)), ['10.8.0.3']);
  small.keep([]);
  assert.deepEqual(texts(small.lease('c')), ['10.8.0.6']);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('d'));
});

test('wanted addresses that are not kept are given out of turn, and no other lease collides', () => {
  const small = pool('10.8.0.0/28');
  const all = new Set([texts(small.lease('w', 0, kept('10.8.0.9/32')))[0]]);
  for (let at = 0; at < small.size - 1; at++) all.add(texts(small.lease(`${at}`))[0]);
  assert.equal(all.size, small.size);
  fails('ERR_POOL_EXHAUSTED', () => small.lease('late'));
});

test('whatever is leased, released, wanted and kept, no address is leased twice, and a kept one only to who wants it', () => {
  const operation = fc.record({
    kind: fc.constantFrom('lease', 'want', 'release', 'keep', 'keepNone'),
    owner: fc.nat(8),
    at: fc.nat(13),
  });
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
      const small = pool('10.8.0.0/28');
      const held: Lease[] = [];
      let reserved: string | undefined;
      for (const { kind, owner, at } of operations) {
        const address = `10.8.0.${at + 2}`;
        if (kind === 'release') {
          const [lease] = held.splice(at % (held.length || 1), 1);
          if (lease !== undefined) small.release(lease);
        } else if (kind === 'keep' || kind === 'keepNone') {
          reserved = kind === 'keep' ? address : undefined;
          small.keep(reserved === undefined ? [] : kept(`${reserved}/32`));
        } else {
          const wanted = kind === 'want' ? kept(`${address}/32`) : [];
          const free = small.size - held.length;
          try {
            const lease = small.lease(`${owner}`, 0, wanted);
            const text = texts(lease)[0];
            assert.ok(!held.some((other) => texts(other)[0] === text), `${text} twice`);
            assert.ok(text !== reserved || address === reserved, `${text} is kept`);
            held.push(lease);
          } catch (error) {
            if (!isVpnError(error, 'ERR_POOL_EXHAUSTED')) throw error;
            const isKeptFree = reserved !== undefined && !held.some((lease) => texts(lease)[0] === reserved);
            assert.equal(free, isKeptFree ? 1 : 0, 'there was a free one');
          }
        }
      }
    }),
    { numRuns: 300 },
  );
});

test('in a pool that is larger than anything that is remembered of it, each share has its addresses, before and after a restart', () => {
  const open = (): LeasePool => new LeasePool({ v6: parsePrefix('fd00:8::/64'), shares: 2 });
  const leases = open();
  const second = leases.lease('a', 1);
  assert.deepEqual(texts(second), ['fd00:8::8000:0']);
  // Whoever has the same pool and not the leases, such as the supervisor, comes to the same.
  assert.deepEqual([open().shareOf(second), open().shareOf(leases.lease('b', 0))], [1, 0]);
  const restored = open();
  restored.restore([['a', second]]);
  assert.deepEqual(texts(restored.lease('c', 1)), ['fd00:8::8000:1']);
  assert.deepEqual(texts(restored.lease('a', 0)), ['fd00:8::8000:0']);
  const far = open();
  far.restore([['a', { v6: parseIp('fd00:8::7fff:ffff') }]]);
  assert.deepEqual(texts(far.lease('a', 0)), ['fd00:8::2'], 'too far behind the beginning of its block');
});

test('addresses can be kept where clients can have them; of those that cannot, no two are the same', () => {
  const large = pool(undefined, 'fd00:8::/64');
  const can = (of: LeasePool, text: string): boolean => of.canKeep(parsePrefix(text));
  assert.ok(can(large, 'fd00:8::2/128') && can(large, 'fd00:8::/120') && can(large, 'fd00:8::10:0/128'));
  for (const text of ['fd00:8::/128', 'fd00:8::1/128', 'fd00:8::10:1/128', 'fd00:8::dead:beef/128', 'fd00:9::2/128']) {
    assert.ok(!can(large, text), text);
  }
  const small = pool('10.8.0.0/24', 'fd00:8::/64');
  assert.ok(can(small, '10.8.0.254/32') && !can(small, '10.8.0.255/32') && !can(small, '10.8.0.1/32'));
  assert.ok(can(small, 'fd00:8::fe/128') && !can(small, 'fd00:8::ff/128'), 'the other family has no such host part');
  const far = ['fd00:8::dead:1', 'fd00:8::dead:2'].map((text) => parsePrefix(`${text}/128`));
  large.keep(far);
  const leases = far.map((wanted, at) => large.lease(`device ${at}`, 0, [wanted]));
  assert.deepEqual(leases.map(texts), [['fd00:8::2'], ['fd00:8::3']]);
});
