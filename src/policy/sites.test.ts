import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatPrefix, parseIp, parsePrefix } from '../ip/address.ts';
import { rulesFor } from './access.ts';
import { type Policy, readPolicy } from './policy.ts';
import { reviewPolicy } from './review.ts';
import { checkNetworks, grantNetworks, type Offering, reachableNetworks, siteOf, staticAddressesOf } from './sites.ts';

const SITES = `version = 1
[groups]
routers = ["erika"]

[[sites]]
name = "berlin"
for = ["user:erika", "user:stand-in"]
networks = ["10.20.0.0/16", { network = "192.168.1.0/24", as = "10.201.1.0/24" }]
openTo = ["10.1.0.0/16"]

[[sites]]
name = "oslo"
for = ["group:routers", "device:c0ffee00"]
networks = [{ network = "192.168.1.0/24", as = "10.202.1.0/24" }, "fd00:20::/48"]

[[addresses]]
for = ["device:c0ffee00"]
addresses = ["10.88.0.10"]

[[addresses]]
for = ["user:erika"]
addresses = ["10.88.0.11", "10.88.0.16/28"]

[[rules]]
action = "allow"
from = ["group:staff"]
to = ["site:berlin"]

[[rules]]
action = "allow"
from = ["group:guests"]
to = ["10.202.1.7"]
services = ["tcp/443"]
`;

function policyOf(text: string): Policy {
  const { policy, problems } = readPolicy(text);
  assert.ok(policy !== undefined, JSON.stringify(problems));
  return policy;
}

/** Each error as `line: message`. */
const errorsOf = (text: string): string[] =>
  readPolicy(text).problems.map(({ line, message }) => `${line}: ${message}`);

const offering = (key: string, user: string, offered: readonly string[], device = 'aa'): Offering => ({
  key,
  user,
  groups: [],
  device,
  offered: offered.map(parsePrefix),
});

/** What everybody else sees of the networks that each session has. */
function granted(policy: Policy, ...sessions: Offering[]): Record<string, string[]> {
  const all = [...grantNetworks(policy, sessions)];
  return Object.fromEntries(all.map(([key, networks]) => [key, networks.map(({ seenAs }) => formatPrefix(seenAs))]));
}

test('REQ-SITE-002: a client gets of what it offers what the policy gives to its user, group or device', () => {
  const policy = policyOf(SITES);
  const own = ['10.20.0.0/16', '192.168.0.0/16', 'fd00::/16'];
  assert.deepEqual(granted(policy, offering('a', 'erika', own)), {
    a: ['10.20.0.0/16', '10.201.1.0/24', '10.202.1.0/24', 'fd00:20::/48'],
  });
  assert.deepEqual(granted(policy, offering('a', 'erika', ['10.20.0.0/16'])), { a: ['10.20.0.0/16'] });
  assert.deepEqual(granted(policy, offering('a', 'erika', ['10.20.7.0/24'])), {}, 'a part is not the whole');
  assert.deepEqual(granted(policy, offering('a', 'mallory', own)), {});
  assert.deepEqual(granted(policy, offering('a', 'mallory', own, 'c0ffee00aa')), {
    a: ['10.202.1.0/24', 'fd00:20::/48'],
  });
});

test('REQ-SITE-006: a network is that of the session that came first, and of the next when that is over', () => {
  const policy = policyOf(SITES);
  const first = offering('a', 'erika', ['10.20.0.0/16']);
  const next = offering('b', 'stand-in', ['10.20.0.0/16', '192.168.1.0/24']);
  assert.deepEqual(granted(policy, first, next), { a: ['10.20.0.0/16'], b: ['10.201.1.0/24'] });
  assert.deepEqual(granted(policy, next), { b: ['10.20.0.0/16', '10.201.1.0/24'] });
});

test('networks are pushed to whoever may reach a part of them', () => {
  const policy = policyOf(SITES);
  const reached = (group: string): string[] => {
    const holder = { user: 'x', groups: [group], hasCertificate: false };
    return reachableNetworks(policy, rulesFor(policy, holder, 0)).map(formatPrefix);
  };
  assert.deepEqual(reached('staff'), ['10.20.0.0/16', '10.201.1.0/24']);
  assert.deepEqual(reached('guests'), ['10.202.1.0/24']);
  assert.deepEqual(reached('others'), []);
  assert.equal(siteOf(policy, parseIp('10.202.1.9'))?.name, 'oslo');
  assert.equal(siteOf(policy, parseIp('192.168.1.9')), undefined, 'nobody sees it as that');
});

test('the first entry that speaks of a device, its user or a group says its addresses', () => {
  const policy = policyOf(SITES);
  const kept = (user: string, device: string) =>
    staticAddressesOf(policy, { user, groups: [], device })?.map(formatPrefix);
  assert.deepEqual(kept('erika', 'aa'), ['10.88.0.11/32', '10.88.0.16/28']);
  assert.deepEqual(kept('erika', 'c0ffee0011'), ['10.88.0.10/32']);
  assert.equal(kept('mallory', 'aa'), undefined);
});

for (const [what, change, expected] of [
  [
    'two sites with one network',
    ['"fd00:20::/48"', '"10.20.3.0/24"'],
    /^14: 10\.20\.3\.0\/24 is that of the site berlin, too; give one/,
  ],
  [
    'a network that two have, without a translation',
    ['as = "10.202.1.0/24"', 'as = "10.201.1.0/24"'],
    /^14: 10\.201\.1\.0\/24 is that of the site berlin/,
  ],
  ['a name twice', ['"oslo"', '"berlin"'], /^12: there is a site berlin in line 5/],
  [
    'a translation of another length',
    ['10.202.1.0/24"', '10.202.0.0/16"'],
    /^14: 10\.202\.0\.0\/16 is not of the length/,
  ],
  ['a translation to another family', ['"10.202.1.0/24"', '"fd00:21::/24"'], /^14: fd00:\S+ is not of the length/],
  ['everything', ['"10.20.0.0/16"', '"0.0.0.0/0"'], /^8: 0\.0\.0\.0\/0 is too broad/],
  ['loopback', ['"10.20.0.0/16"', '"127.0.0.0/8"'], /^8: 127\.0\.0\.0\/8 is never routed/],
  ['no network', ['"10.20.0.0/16"', '"berlin"'], /^8: networks: expected a network/],
  ['a claim of nobody', ['"user:stand-in"', '"any"'], /^7: expected user:NAME, group:NAME or device:ID/],
  ['a short device', ['device:c0ffee00', 'device:c0ffee'], /^13: expected user:NAME/],
  ['a rule for no site', ['site:berlin', 'site:rome'], /^27: there is no site rome in \[\[sites\]\]/],
  [
    'an address for two',
    ['"10.88.0.11"', '"10.88.0.10"'],
    /^22: 10\.88\.0\.10 is kept for somebody already, by 10\.88\.0\.10\/32 in line 16/,
  ],
  [
    'an address within a range for others',
    ['"10.88.0.10"', '"10.88.0.20"'],
    /^22: 10\.88\.0\.16\/28 is kept for somebody/,
  ],
  ['an address at a site', ['"10.88.0.10"', '"10.20.0.10"'], /^18: 10\.20\.0\.10 is in the network of the site berlin/],
  ['no address', ['"10.88.0.11"', '"ten"'], /^22: expected an address or a prefix, found "ten"/],
] as const) {
  test(`${what} is an error, with its line`, () => {
    const errors = errorsOf(SITES.replace(change[0], change[1]));
    assert.match(errors[0] ?? 'none', expected);
  });
}

test('sites and addresses must fit the networks of the gateway', () => {
  const check = (pool: string[], routes: string[] = []): string[] =>
    checkNetworks(policyOf(SITES), { pool, routes }).map(
      ({ severity, line, message }) => `${severity} ${line}: ${message}`,
    );
  assert.deepEqual(check(['10.88.0.0/24', 'fd88::/64'], ['0.0.0.0/0', '10.0.0.0/8']), []);
  assert.match(
    check(['10.20.0.0/24', 'fd88::/64'])[0] ?? '',
    /^error 5: 10\.20\.0\.0\/16 of the site berlin overlaps the pool/,
  );
  assert.ok(
    check(['192.168.1.0/24', 'fd88::/64']).some((text) =>
      /^warning 5: at the site berlin, 192\.168\.1\.0\/24/.test(text),
    ),
  );
  assert.match(check(['10.88.0.0/29', 'fd88::/64'])[0] ?? '', /^error 16: 10\.88\.0\.10\/32 is not in the pool/);
  assert.match(check(['10.88.0.0/24'])[0] ?? '', /^error 11: the pool has no addresses of the family of fd00:20::\/48/);
  assert.match(
    check(['10.88.0.0/24', 'fd88::/64'], ['10.20.5.0/24'])[0] ?? '',
    /^warning 5: 10\.20\.5\.0\/24 of the gateway's routes/,
  );
});

test('an address that no client can have is an error', () => {
  const check = (address: string, pool: string[]): string =>
    checkNetworks(policyOf(`version = 1\n[[addresses]]\nfor = ["user:erika"]\naddresses = ["${address}"]\n`), {
      pool,
      routes: [],
    })
      .map(({ severity, line, message }) => `${severity} ${line}: ${message}`)
      .join();
  assert.match(
    check('10.88.0.1', ['10.88.0.0/24']),
    /^error 2: no client can have 10\.88\.0\.1\/32: .*own \(10\.88\.0\.1\)/,
  );
  assert.match(check('10.88.0.255', ['10.88.0.0/24']), /^error 2: no client can have 10\.88\.0\.255\/32/);
  assert.match(check('fd88::dead:beef', ['fd88::/64']), /^error 2: no client can have .*among the first 1048576/);
  assert.match(check('fd88::1:2', ['10.88.0.0/24', 'fd88::/64']), /^error 2: no client can have/);
  for (const address of ['10.88.0.2', '10.88.0.0/30', 'fd88::fe']) {
    assert.equal(check(address, ['10.88.0.0/24', 'fd88::/64']), '', address);
  }
});

test('a client is granted so many networks, however much it offers and the policy has for it', () => {
  const site = (number: number): string =>
    `[[sites]]\nname = "s${number}"\nfor = ["user:erika"]\nnetworks = [${Array.from({ length: 40 }, (_, at) => `"10.${number}.${at}.0/24"`).join(', ')}]\n`;
  const policy = policyOf(`version = 1\n${site(1)}${site(2)}`);
  const all = granted(policy, offering('a', 'erika', ['10.0.0.0/8']), offering('b', 'erika', ['10.0.0.0/8'], 'bb'));
  assert.deepEqual([all.a?.length, all.b?.length], [64, 16]);
  assert.equal(new Set([...(all.a ?? []), ...(all.b ?? [])]).size, 80);
});

test('large tables are read without comparing each entry with each', () => {
  const sites = Array.from({ length: 64 }, (_, number) => {
    const networks = Array.from({ length: 64 }, (_, at) => `"fd00:${number + 1}:${at + 1}::/48"`);
    return `[[sites]]\nname = "s${number}"\nfor = ["user:a"]\nnetworks = [${networks.join(', ')}]\n`;
  });
  const addresses = Array.from({ length: 1000 }, (_, number) => {
    const own = Array.from({ length: 64 }, (_, at) => `"fd88::${(number + 1).toString(16)}:${at}"`);
    return `[[addresses]]\nfor = ["user:a"]\naddresses = [${own.join(', ')}]\n`;
  });
  const text = `version = 1\n${sites.join('')}${addresses.join('')}`;
  const before = performance.now();
  assert.deepEqual(errorsOf(text), []);
  const took = performance.now() - before;
  assert.ok(took < 10_000, `${took} ms`);
  const more = `[[sites]]\nname = "one-more"\nfor = ["user:a"]\nnetworks = ["fd01::/48"]\n`;
  assert.match(errorsOf(`version = 1\n${sites.join('')}${more}`)[0] ?? '', /sites have 4097 networks, at most 4096/);
});

test('a site that nobody reaches, and a route that is pushed twice, are warned of', () => {
  const warnings = (text: string): string[] =>
    reviewPolicy(policyOf(text)).map(({ line, message }) => `${line}: ${message}`);
  assert.deepEqual(warnings(SITES), []);
  const unreached = SITES.replace('to = ["10.202.1.7"]', 'to = ["10.203.1.7"]');
  assert.match(warnings(unreached).join(), /^11: no rule allows anything to the site oslo/);
  const settings = '[[settings]]\nfor = ["any"]\nroutes = ["10.20.4.0/24"]\n';
  assert.match(
    warnings(`${SITES}${settings}`).join(),
    /^34: the route 10\.20\.4\.0\/24 is that of the site berlin in line 5/,
  );
});
