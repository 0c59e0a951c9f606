import assert from 'node:assert/strict';
import { isIPv6 } from 'node:net';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../base/errors.ts';
import {
  addressAt,
  createPrefix,
  findOverlaps,
  formatIp,
  formatPrefix,
  type IpAddress,
  ipEquals,
  isBroadRoute,
  isUnusableAddress,
  isUnusableRoute,
  parseIp,
  parsePrefix,
  prefixContains,
  prefixCovers,
  prefixesOverlap,
  prefixSize,
} from './address.ts';

const anyAddress: fc.Arbitrary<IpAddress> = fc.oneof(
  fc.uint8Array({ minLength: 4, maxLength: 4 }).map((bytes) => ({ version: 4 as const, bytes })),
  fc
    .array(fc.oneof(fc.constant(0), fc.nat(255)), { minLength: 16, maxLength: 16 })
    .map((octets) => ({ version: 6 as const, bytes: Uint8Array.from(octets) })),
);

function isMapped({ version, bytes }: IpAddress): boolean {
  return version === 6 && bytes.slice(0, 10).every((byte) => byte === 0) && bytes[10] === 255 && bytes[11] === 255;
}

/** The address as one number, and how many bits it has. */
function toNumber({ bytes }: IpAddress): bigint {
  return bytes.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
}

function fails(code: Parameters<typeof isVpnError>[1], run: () => unknown): void {
  assert.throws(run, (error) => isVpnError(error, ...(code === undefined ? [] : [code])));
}

const WRITTEN: readonly [string, string][] = [
  ['0.0.0.0', '0.0.0.0'],
  ['192.0.2.1', '192.0.2.1'],
  ['255.255.255.255', '255.255.255.255'],
  ['::', '::'],
  ['::1', '::1'],
  ['2001:DB8::00ab', '2001:db8::ab'],
  ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
  ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
  ['1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0'],
  ['64:ff9b::192.0.2.33', '64:ff9b::c000:221'],
  ['fe80::1', 'fe80::1'],
];

for (const [text, canonical] of WRITTEN) {
  test(`${text} is read, and written as RFC 5952 says`, () => assert.equal(formatIp(parseIp(text)), canonical));
}

const NO_ADDRESSES = [
  ...['', ' ', '1', '1.2', '10.1', '1.2.3', '1.2.3.4.5', '01.2.3.4', '1.2.3.04', '0x1.2.3.4', '256.1.1.1', '1.2.3.-4'],
  ...['1.2.3.4 ', ' 1.2.3.4', '1.2.3.4/32', '1.2.3.4\n', '١.2.3.4', '2130706433', 'localhost', '1..2.3', '1.2.3.4:80'],
  ...[
    ':',
    ':::',
    '1',
    '1::2::3',
    '1:2:3:4:5:6:7',
    '1:2:3:4:5:6:7:8:9',
    '12345::',
    'g::',
    '[::1]',
    '::1%1',
    'fe80::1%eth0',
  ],
  ...['::1.2.3', '::01.2.3.4', '::1.2.3.4:5', '::1.2.3.256', '1:2:3:4:5:6:7:1.2.3.4', '::ffff:192.0.2.1'],
  ...['::ffff:c000:201', '0:0:0:0:0:ffff::', '1:2:3:4:5:6:7:', ':1:2:3:4:5:6:7'],
];

for (const text of NO_ADDRESSES) {
  test(`no address: ${JSON.stringify(text)}`, () => fails('ERR_CONFIG_VALUE', () => parseIp(text)));
}

test('what is written is read back', () => {
  fc.assert(
    fc.property(anyAddress, (address) => {
      if (isMapped(address)) return;
      assert.deepEqual(parseIp(formatIp(address)), address);
    }),
  );
});

test('text is either an address of the version that another parser says, or ERR_CONFIG_VALUE', () => {
  const text = fc.oneof(
    fc.string({ maxLength: 20 }),
    fc
      .array(fc.constantFrom('0', '1', 'f', '25', ':', '::', '.', '%', 'ffff', '/'), { maxLength: 14 })
      .map((parts) => parts.join('')),
    fc.ipV6(),
  );
  fc.assert(
    fc.property(text, (candidate) => {
      let parsed: IpAddress;
      try {
        parsed = parseIp(candidate);
      } catch (error) {
        assert.ok(isVpnError(error, 'ERR_CONFIG_VALUE'));
        return;
      }
      if (parsed.version === 6) assert.ok(isIPv6(candidate), candidate);
      else assert.match(candidate, /^\d+\.\d+\.\d+\.\d+$/);
    }),
    { numRuns: 1_000 },
  );
});

test('addresses are equal by version and bytes', () => {
  assert.ok(ipEquals(parseIp('2001:db8::1'), parseIp('2001:DB8:0::1')));
  assert.ok(!ipEquals(parseIp('10.0.0.1'), parseIp('10.0.0.2')));
  assert.ok(!ipEquals(parseIp('0.0.0.0'), parseIp('::')));
});

test('prefixes are read and their host bits cleared', () => {
  assert.equal(formatPrefix(parsePrefix('10.8.3.7/16')), '10.8.0.0/16');
  assert.equal(formatPrefix(parsePrefix('10.8.3.7/13')), '10.8.0.0/13');
  assert.equal(formatPrefix(parsePrefix('255.255.255.255/0')), '0.0.0.0/0');
  assert.equal(formatPrefix(parsePrefix('192.0.2.1/32')), '192.0.2.1/32');
  assert.equal(formatPrefix(parsePrefix('2001:db8:ffff::1/33')), '2001:db8:8000::/33');
  assert.equal(formatPrefix(parsePrefix('::1/128')), '::1/128');
});

const NO_PREFIXES = [
  ...[
    '',
    '/',
    '10.0.0.0',
    '10.0.0.0/',
    '/8',
    '10.0.0.0/33',
    '10.0.0.0/-1',
    '10.0.0.0/+8',
    '10.0.0.0/08',
    '10.0.0.0/8/8',
  ],
  ...['10.0.0.0/255.0.0.0', '10/8', '10.0.0.0 /8', '10.0.0.0/8 ', '::/129', '::/1e1', '::ffff:0:0/96', 'fe80::%1/64'],
  '10.0.0.0/8.0',
];

for (const text of NO_PREFIXES) {
  test(`no prefix: ${JSON.stringify(text)}`, () => fails('ERR_CONFIG_VALUE', () => parsePrefix(text)));
}

test('a prefix length is an integer within the address', () => {
  for (const length of [-1, 33, 1.5, Number.NaN]) {
    fails('ERR_CONFIG_VALUE', () => createPrefix(parseIp('10.0.0.0'), length));
  }
});

test('containment and overlap are those of intervals of numbers', () => {
  const prefix = fc
    .tuple(anyAddress, fc.nat(128))
    .map(([address, length]) => createPrefix(address, length % (address.bytes.length * 8 + 1)));
  const interval = (of: ReturnType<typeof createPrefix>): [bigint, bigint] => {
    const first = toNumber(of.address);
    return [first, first + prefixSize(of) - 1n];
  };
  fc.assert(
    fc.property(prefix, prefix, anyAddress, fc.boolean(), (a, other, address, related) => {
      const b = related ? createPrefix(a.address, Math.min(other.length, a.address.bytes.length * 8)) : other;
      const sameVersion = a.address.version === b.address.version;
      const [first, last] = interval(a);
      const [first2, last2] = interval(b);
      assert.equal(prefixesOverlap(a, b), sameVersion && first <= last2 && first2 <= last);
      assert.equal(prefixesOverlap(a, b), prefixesOverlap(b, a));
      const number = toNumber(address);
      assert.equal(
        prefixContains(a, address),
        a.address.version === address.version && number >= first && number <= last,
      );
      assert.ok(prefixContains(a, a.address));
    }),
    { numRuns: 500 },
  );
});

test('the addresses of a prefix are counted from 0', () => {
  assert.equal(prefixSize(parsePrefix('10.0.0.0/24')), 256n);
  assert.equal(prefixSize(parsePrefix('::/0')), 1n << 128n);
  assert.equal(formatIp(addressAt(parsePrefix('10.8.0.0/16'), 0n)), '10.8.0.0');
  assert.equal(formatIp(addressAt(parsePrefix('10.8.0.0/16'), 257n)), '10.8.1.1');
  assert.equal(formatIp(addressAt(parsePrefix('10.8.0.0/16'), 65_535n)), '10.8.255.255');
  assert.equal(formatIp(addressAt(parsePrefix('fd00::/64'), 1n << 63n)), 'fd00::8000:0:0:0');
  assert.equal(formatIp(addressAt(parsePrefix('10.0.0.1/32'), 0n)), '10.0.0.1');
  fails('ERR_INVARIANT', () => addressAt(parsePrefix('10.8.0.0/16'), 65_536n));
  fails('ERR_INVARIANT', () => addressAt(parsePrefix('10.8.0.0/16'), -1n));
  const prefix = parsePrefix('10.8.0.0/16');
  addressAt(prefix, 5n);
  assert.equal(formatPrefix(prefix), '10.8.0.0/16', 'the prefix is not changed');
});

test('routes that are never taken from a peer', () => {
  const unusable = [
    ...['127.0.0.0/8', '127.0.0.1/32', '169.254.0.0/16', '169.254.169.254/32', '169.0.0.0/8', '169.254.0.0/15'],
    ...['224.0.0.0/8', '239.1.2.0/24', '0.0.0.0/8', '0.1.0.0/16', '240.0.0.0/8', '255.255.255.255/32'],
    ...['::1/128', '::/128', '::/8', '::/127', 'fe80::/10', 'fe80::1/128', 'fe80::/9', 'ff02::/16', 'ff00::/8'],
  ];
  for (const text of unusable) assert.ok(isUnusableRoute(parsePrefix(text)), text);
  const mapped = { version: 6, bytes: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 0) } as const;
  assert.ok(isUnusableRoute(createPrefix(mapped, 104)), 'v4-mapped');
  assert.ok(isUnusableAddress(mapped));

  const usable = [
    ...['10.0.0.0/8', '192.168.1.0/24', '1.1.1.1/32', '168.0.0.0/8', '169.253.0.0/16', '172.16.0.0/12', '223.0.0.0/8'],
    ...['2001:db8::/32', 'fd00::/8', 'fec0::/10', '64:ff9b::/96', '2000::/8'],
  ];
  for (const text of usable) assert.ok(!isUnusableRoute(parsePrefix(text)), text);
});

test('a broad route is judged as a default route, not by what it covers', () => {
  for (const text of ['0.0.0.0/0', '0.0.0.0/1', '128.0.0.0/1', '168.0.0.0/7', '::/0', '::/1', '8000::/1', 'fe00::/7']) {
    assert.ok(isBroadRoute(parsePrefix(text)), text);
    assert.ok(!isUnusableRoute(parsePrefix(text)), text);
  }
  for (const text of ['10.0.0.0/8', 'fd00::/8', '10.0.0.1/32']) assert.ok(!isBroadRoute(parsePrefix(text)), text);
});

test('an address is unusable when its own route is', () => {
  for (const text of ['127.0.0.1', '169.254.1.1', '255.255.255.255', '::1', 'ff02::1']) {
    assert.ok(isUnusableAddress(parseIp(text)), text);
  }
  for (const text of ['10.8.0.1', '192.0.2.1', 'fd00::1']) assert.ok(!isUnusableAddress(parseIp(text)), text);
});

test('overlaps in a list are those that a comparison of each with each finds, with the first before it', () => {
  const anyPrefix = fc
    .tuple(
      fc.constantFrom('10.0.0.0', '10.0.0.128', '10.0.1.0', '10.9.0.0', 'fd00::', 'fd00::1', 'fd00:1::'),
      fc.nat(128),
    )
    .map(([text, length]) => createPrefix(parseIp(text), text.includes(':') ? length : length % 33));
  fc.assert(
    fc.property(fc.array(anyPrefix, { maxLength: 12 }), (prefixes) => {
      const expected = prefixes.flatMap((prefix, at) => {
        const first = prefixes.findIndex((other) => prefixesOverlap(other, prefix));
        return first < at ? [[at, first] as const] : [];
      });
      assert.deepEqual(
        [...findOverlaps(prefixes)].toSorted(([a], [b]) => a - b),
        expected,
      );
    }),
  );
});

test('a prefix covers itself and what is within it', () => {
  const covers = (outer: string, inner: string): boolean => prefixCovers(parsePrefix(outer), parsePrefix(inner));
  assert.ok(covers('10.1.0.0/16', '10.1.0.0/16') && covers('10.1.0.0/16', '10.1.7.0/24') && covers('::/0', 'fd00::/8'));
  assert.ok(
    !covers('10.1.7.0/24', '10.1.0.0/16') && !covers('10.1.0.0/16', '10.2.7.0/24') && !covers('::/0', '10.0.0.0/8'),
  );
});
