// What the plan of a client's machine says, for configurations, wishes and machines. That the kernel does it: test/lab.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatPrefix, parseIp, parsePrefix } from '../ip/address.ts';
import type { HostChange } from '../os/host.ts';
import { attachedIn, type HostFacts, routedIn, routesOn } from '../os/host-facts.ts';
import type { AcceptedConfig } from '../protocol/config-check.ts';
import { findOverlaps, type HostPlan, OWN_MARK, type PlanInput, planHost, type TunnelWishes } from './host-plan.ts';

const TABLE = 17_238_003;
const WISHES: TunnelWishes = { mode: 'auto', include: [], exclude: [], lan: false, dns: [] };
const AT_HOME: HostFacts = {
  attached: [
    { prefix: parsePrefix('192.168.1.0/24'), device: 'wlan0' },
    { prefix: parsePrefix('2001:db8:7::/64'), device: 'wlan0' },
  ],
  routed: [],
  tunnels: [],
  hasIpv6: true,
  isStrict: false,
  forwards4: [],
  forwards6: false,
};

function config(routes: readonly string[], change: Partial<AcceptedConfig> = {}): AcceptedConfig {
  return {
    revision: 1,
    addresses: {
      v4: { address: parseIp('10.88.0.2'), gateway: parseIp('10.88.0.1') },
      v6: { address: parseIp('fd88::2'), gateway: parseIp('fd88::1') },
    },
    routes: routes.map(parsePrefix),
    dns: { servers: [], domains: [] },
    mtu: 1500,
    ping: { intervalMs: 20_000, deadMs: 60_000 },
    rekeyMs: 3_600_000,
    networks: [],
    data: { mode: 'attached', channels: 1 },
    pins: [],
    notices: [],
    ...change,
  };
}

function plan(accepted: AcceptedConfig, change: Partial<TunnelWishes> = {}, input: Partial<PlanInput> = {}): HostPlan {
  return planHost({
    device: 'cvpn3',
    config: accepted,
    wishes: { ...WISHES, ...change },
    facts: AT_HOME,
    choose: () => 'local',
    ...input,
  });
}

function routesOf({ changes }: HostPlan): string[] {
  return changes.flatMap((change) => {
    if (change.kind !== 'route') return [];
    assert.equal(change.table, TABLE, 'the main table is not ours');
    return [`${change.type ?? change.device} ${change.prefix}`];
  });
}

function rulesOf({ changes }: HostPlan): Extract<HostChange, { kind: 'rule' }>[] {
  return changes.filter((change) => change.kind === 'rule');
}

function guardOf({ changes }: HostPlan): string {
  const guard = changes.find((change) => change.kind === 'nft');
  assert.ok(guard?.kind === 'nft');
  assert.equal(guard.table.name, 'customvpn_cvpn3');
  return guard.body;
}

test('a split tunnel has its networks in its own table, before the main one, for all but our sockets', () => {
  const made = plan(config(['192.0.2.0/24', '2001:db8:2::/64']));
  assert.equal(made.mode, 'split');
  assert.deepEqual(routesOf(made), [
    'cvpn3 10.88.0.1/32',
    'cvpn3 fd88::1/128',
    'cvpn3 192.0.2.0/24',
    'cvpn3 2001:db8:2::/64',
  ]);
  assert.deepEqual(rulesOf(made), [
    { kind: 'rule', family: 4, priority: 4403, notMark: OWN_MARK, table: TABLE },
    { kind: 'rule', family: 6, priority: 4403, notMark: OWN_MARK, table: TABLE },
  ]);
  assert.equal(made.changes.at(-1)?.kind, 'rule', 'the rules come last: nothing is in force half done');
});

test('a pushed default route makes a full tunnel for both families, and local networks go into it', () => {
  const made = plan(config(['0.0.0.0/0', '::/0']));
  assert.equal(made.mode, 'full');
  assert.deepEqual(routesOf(made), ['cvpn3 10.88.0.1/32', 'cvpn3 fd88::1/128', 'cvpn3 0.0.0.0/0', 'cvpn3 ::/0']);
  const [dhcp, all4, all6, ...more] = rulesOf(made);
  assert.deepEqual(dhcp?.ports, { protocol: 'udp', source: 68, destination: 67 });
  assert.deepEqual([all4?.notMark, all6?.notMark, more], [OWN_MARK, OWN_MARK, []]);
  assert.deepEqual(
    made.notes.filter((note) => note.includes('blocked')),
    [],
  );
  assert.doesNotMatch(guardOf(made), /nfproto ipv6 goto|daddr !=/);
});

test('IPv6 is blocked when the tunnel has none, and when the gateway carries only some of it', () => {
  const { addresses } = config([]);
  const none = plan(config(['0.0.0.0/0'], { addresses: { ...(addresses.v4 && { v4: addresses.v4 }) } }));
  assert.ok(routesOf(none).includes('cvpn3 ::/0'), 'IPv6 must not go elsewhere');
  assert.match(guardOf(none), /chain refused \{\n {2}meta nfproto ipv6 goto cut\n\}/);
  assert.ok(none.notes.some((note) => /^IPv6 is blocked.*none$/.test(note)));

  const some = plan(config(['0.0.0.0/0', '2001:db8:2::/64', '2001:db8:2::/80']));
  assert.ok(routesOf(some).includes('cvpn3 ::/0'));
  assert.match(guardOf(some), /ip6 daddr != \{ fd88::1\/128, 2001:db8:2::\/64 \} goto cut/);
});

test('a kernel without IPv6 is asked for none', () => {
  const made = plan(
    config(['0.0.0.0/0', '::/0']),
    { exclude: [parsePrefix('2001:db8::/32')] },
    { facts: { ...AT_HOME, hasIpv6: false } },
  );
  assert.ok(rulesOf(made).every(({ family }) => family === 4));
  assert.ok(routesOf(made).every((route) => !route.includes(':')));
});

test('--full and --split win over what is pushed', () => {
  const forced = plan(config(['192.0.2.0/24']), { mode: 'full' });
  assert.ok(routesOf(forced).includes('cvpn3 0.0.0.0/0'));
  assert.ok(forced.notes.some((note) => note.includes('offers no default route')));
  const split = plan(config(['0.0.0.0/0', '192.0.2.0/24']), { mode: 'split' });
  assert.deepEqual(routesOf(split), ['cvpn3 10.88.0.1/32', 'cvpn3 fd88::1/128', 'cvpn3 192.0.2.0/24']);
});

test('what the profile includes is in the tunnel, what it excludes is not, nor is a family without an address', () => {
  const { addresses } = config([]);
  const only4 = config(['10.0.0.0/8'], { addresses: { ...(addresses.v4 && { v4: addresses.v4 }) } });
  const made = plan(only4, {
    include: ['198.51.100.0/24', '2001:db8:5::/48'].map(parsePrefix),
    exclude: [parsePrefix('10.1.0.0/16')],
  });
  assert.deepEqual(routesOf(made), [
    'cvpn3 10.88.0.1/32',
    'cvpn3 10.0.0.0/8',
    'cvpn3 198.51.100.0/24',
    'throw 10.1.0.0/16',
  ]);
});

test('a network that both have is an overlap, with the choice of both ways', () => {
  const accepted = config(['192.168.0.0/16', '2001:db8:7::/64', '192.0.2.0/24']);
  const overlaps = findOverlaps({ config: accepted, wishes: WISHES, facts: AT_HOME });
  assert.deepEqual(
    overlaps.map(({ prefix, route, isPrivate }) => [formatPrefix(prefix), formatPrefix(route), isPrivate]),
    [
      ['192.168.1.0/24', '192.168.0.0/16', true],
      // Anybody can hand out addresses of anybody: this one may be a trap.
      ['2001:db8:7::/64', '2001:db8:7::/64', false],
    ],
  );

  const local = plan(accepted);
  assert.deepEqual(
    rulesOf(local).filter(({ to }) => to !== undefined),
    [
      { kind: 'rule', family: 4, priority: 4203, to: '192.168.1.0/24', table: 'main', suppressLength: 23 },
      { kind: 'rule', family: 6, priority: 4203, to: '2001:db8:7::/64', table: 'main', suppressLength: 63 },
    ],
  );
  assert.deepEqual(
    local.refused.map(({ item }) => item),
    ['routes 192.168.1.0/24', 'routes 2001:db8:7::/64'],
  );

  const taken = plan(accepted, {}, { choose: () => 'tunnel' });
  assert.deepEqual(
    rulesOf(taken).filter(({ to }) => to !== undefined),
    [],
  );
  assert.deepEqual(taken.refused, []);
  assert.equal(taken.notes.filter((note) => note.includes('goes into the tunnel')).length, 2);
});

test('what is excluded, and a full tunnel, have no overlaps', () => {
  const accepted = config(['192.168.0.0/16']);
  const exclude = [parsePrefix('192.168.1.0/24')];
  assert.deepEqual(findOverlaps({ config: accepted, wishes: { ...WISHES, exclude }, facts: AT_HOME }), []);
  assert.deepEqual(findOverlaps({ config: accepted, wishes: { ...WISHES, mode: 'full' }, facts: AT_HOME }), []);
});

test('in a full tunnel only private local networks stay, only when asked for, and only by routes as narrow as they are', () => {
  const rules = rulesOf(plan(config(['0.0.0.0/0', '::/0']), { lan: true })).filter(({ to }) => to !== undefined);
  assert.deepEqual(rules, [
    { kind: 'rule', family: 4, priority: 4203, to: '192.168.1.0/24', table: 'main', suppressLength: 23 },
  ]);
});

test('routes of the machine that the tunnel overrules are told', () => {
  const facts = { ...AT_HOME, routed: [{ prefix: parsePrefix('8.8.8.0/24'), device: 'wlan0' }] };
  const full = plan(config(['0.0.0.0/0', '::/0']), {}, { facts });
  assert.ok(full.notes.some((note) => note.includes('8.8.8.0/24 on wlan0 is overruled')));
  const split = plan(config(['192.0.2.0/24']), {}, { facts });
  assert.deepEqual(split.notes, []);
});

test('name servers are asked through the tunnel, for all names or for the pushed domains only', () => {
  const dns = { servers: [parseIp('1.1.1.1')], domains: ['corp.example'] };
  const split = plan(config(['192.0.2.0/24'], { dns }));
  assert.deepEqual(split.dns, { ...dns, all: false });
  assert.ok(routesOf(split).includes('cvpn3 1.1.1.1/32'));
  assert.equal(plan(config(['192.0.2.0/24'], { dns: { ...dns, domains: [] } })).dns?.all, true);
  assert.equal(plan(config(['0.0.0.0/0', '::/0'], { dns })).dns?.all, true);
  const own = plan(config(['0.0.0.0/0', '::/0'], { dns }), { dns: [parseIp('9.9.9.9')] });
  assert.deepEqual(own.dns?.servers, [parseIp('9.9.9.9')]);
  const none = plan(config(['0.0.0.0/0', '::/0']));
  assert.equal(none.dns, undefined);
  assert.ok(none.notes.some((note) => note.includes('tunnel.dns')));
});

test('a strict check of the reverse path is made loose, and only that', () => {
  const settingsFor = (isStrict: boolean) =>
    plan(config(['0.0.0.0/0']), {}, { facts: { ...AT_HOME, isStrict } }).changes.filter(
      (change) => change.kind === 'sysctl' && change.key.endsWith('rp_filter'),
    );
  assert.deepEqual(settingsFor(true), [{ kind: 'sysctl', key: 'net/ipv4/conf/all/rp_filter', value: '2' }]);
  assert.deepEqual(settingsFor(false), []);
});

test('the same input makes the same plan, so that a reconnect changes nothing', () => {
  const accepted = config(['0.0.0.0/0', '::/0', '192.0.2.0/24']);
  assert.deepEqual(plan(accepted), plan(structuredClone(accepted)));
});

test('networks are read from the lists of ip, without loopback, link-local and single addresses', () => {
  const address = (family: string, local: string, prefixlen: number, scope = 'global') => ({
    family,
    local,
    prefixlen,
    scope,
  });
  const links = [
    { ifname: 'lo', addr_info: [address('inet', '127.0.0.1', 8, 'host'), address('inet', '10.7.7.7', 24)] },
    {
      ifname: 'eth0',
      addr_info: [
        address('inet', '192.168.1.7', 24),
        address('inet', '192.168.1.8', 24),
        address('inet6', 'fe80::1', 64, 'link'),
        address('inet6', 'fd00::7', 64),
        address('inet6', 'fd01::7', 128),
      ],
    },
    { ifname: 'cvpn0', addr_info: [address('inet', '10.88.0.2', 32)] },
    {},
  ];
  assert.deepEqual(
    attachedIn(links).map(({ prefix, device }) => `${formatPrefix(prefix)} ${device}`),
    ['192.168.1.0/24 eth0', 'fd00::/64 eth0'],
  );
  const routes = [
    { dst: 'default', gateway: '192.168.1.1', dev: 'eth0' },
    { dst: '192.168.1.0/24', dev: 'eth0' },
    { dst: '8.8.8.8', gateway: '192.168.1.1', dev: 'eth0' },
    { dst: '10.9.0.0/16', via: { family: 'inet6', host: 'fe80::1' }, dev: 'eth0' },
    { dst: '::ffff:0:0/96', gateway: 'fe80::1', dev: 'eth0' },
  ];
  assert.deepEqual(
    routedIn(routes).map(({ prefix }) => formatPrefix(prefix)),
    ['8.8.8.8/32', '10.9.0.0/16'],
  );
  const tunnels = [
    { dst: '10.9.0.0/16', dev: 'cvpn0', table: 17_238_000 },
    { dst: '10.88.0.1', dev: 'cvpn0', table: 17_238_000 },
    { dst: 'default', dev: 'cvpn1', table: 17_238_001 },
    { dst: 'fe80::/64', dev: 'cvpn1' },
    { dst: '10.10.0.0/16', dev: 'eth0' },
  ];
  assert.deepEqual(
    routesOn(tunnels, (device) => device.startsWith('cvpn')).map(
      ({ prefix, device }) => `${formatPrefix(prefix)} ${device}`,
    ),
    ['10.9.0.0/16 cvpn0'],
  );
});

const BEHIND = {
  networks: [
    { network: parsePrefix('192.168.1.0/24'), seenAs: parsePrefix('10.201.1.0/24') },
    { network: parsePrefix('2001:db8:7::/64'), seenAs: parsePrefix('2001:db8:7::/64') },
  ],
};

test('REQ-SITE-005: what is behind the machine stays outside the tunnel, may speak into it, and is translated one to one', () => {
  const made = plan(config(['10.0.0.0/8', '192.168.0.0/16'], BEHIND));
  assert.deepEqual(made.refused, [], 'the machine is in that network, and nobody asks who gets it');
  const rules = rulesOf(made).map(({ to, table, suppressLength }) => [to, table, suppressLength]);
  assert.deepEqual(rules.slice(0, 1), [['192.168.1.0/24', 'main', 0]]);
  assert.ok(rules.some(([to, table]) => to === '2001:db8:7::/64' && table === 'main'));
  const sysctls = made.changes.flatMap((change) => (change.kind === 'sysctl' ? [`${change.key}=${change.value}`] : []));
  for (const device of ['cvpn3', 'wlan0']) assert.ok(sysctls.includes(`net/ipv4/conf/${device}/forwarding=1`), device);
  assert.ok(made.changes.some(({ kind }) => kind === 'forwarding6'));
  const guard = guardOf(made);
  assert.match(guard, /ip saddr != \{ 10\.88\.0\.2, 192\.168\.1\.0\/24 \} goto cut/);
  assert.match(guard, /iifname "cvpn3" dnat ip prefix to ip daddr map \{ 10\.201\.1\.0\/24 : 192\.168\.1\.0\/24 \}/);
  assert.match(guard, /oifname "cvpn3" snat ip prefix to ip saddr map \{ 192\.168\.1\.0\/24 : 10\.201\.1\.0\/24 \}/);
  assert.doesNotMatch(guard, /nat ip6/, 'a network that is seen as it is is not translated');
  assert.deepEqual(made.notes, []);
  const inside = '192\\.168\\.1\\.0/24';
  assert.match(guard, new RegExp(`iifname "cvpn3" ip daddr \\{ ${inside} \\} accept\n`));
  assert.match(guard, /iifname "cvpn3" ip6 daddr \{ 2001:db8:7::\/64 \} accept\n {2}iifname "cvpn3" drop/);
  assert.match(guard, /meta nfproto ipv4 iifname \{ "wlan0" \} oifname != "cvpn\*" drop/);
  assert.match(guard, /meta nfproto ipv6 iifname != "cvpn\*" oifname != "cvpn\*" drop/);
  const router = guardOf(
    plan(config(['10.0.0.0/8'], BEHIND), {}, { facts: { ...AT_HOME, forwards4: ['wlan0'], forwards6: true } }),
  );
  assert.match(router, /iifname "cvpn3" drop/);
  assert.doesNotMatch(router, /oifname != "cvpn\*"/, 'what forwards already goes on forwarding');
  const nothing = plan(config(['10.0.0.0/8']));
  assert.ok(!nothing.changes.some((change) => change.kind === 'sysctl' && change.key.endsWith('/forwarding')));
  assert.doesNotMatch(guardOf(nothing), /nat|iifname "cvpn3"|cvpn\*/);
});

test('a network that this machine has no way to is told', () => {
  const network = parsePrefix('10.77.0.0/16');
  const { notes } = plan(config(['10.0.0.0/8'], { networks: [{ network, seenAs: network }] }));
  assert.match(notes.join(), /no way to 10\.77\.0\.0\/16/);
});

test('a network that another tunnel has, too, is told, with who gets it', () => {
  const tunnels = [
    { prefix: parsePrefix('10.0.0.0/8'), device: 'cvpn1' },
    { prefix: parsePrefix('10.9.0.0/16'), device: 'cvpn3' },
    { prefix: parsePrefix('172.16.0.0/12'), device: 'cvpn7' },
  ];
  const facts = { ...AT_HOME, tunnels };
  const { notes } = plan(config(['10.9.0.0/16', '172.16.5.0/24', '192.0.2.0/24']), {}, { facts });
  assert.deepEqual(notes, [
    '10.9.0.0/16 is in another tunnel, too: cvpn1 has 10.0.0.0/8; cvpn1 gets it, unless its profile names it in tunnel.exclude',
    '172.16.5.0/24 is in another tunnel, too: cvpn7 has 172.16.0.0/12; cvpn3 gets it, unless its profile names it in tunnel.exclude',
  ]);
  assert.deepEqual(
    plan(config(['0.0.0.0/0', '::/0']), {}, { facts }).notes.filter((note) => note.includes('cvpn1')),
    [],
  );
});
