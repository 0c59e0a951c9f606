import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatIp, formatPrefix, parseIp, parsePrefix } from '../ip/address.ts';
import { type AcceptedConfig, type ClientLimits, checkConfig } from './config-check.ts';
import type { ConfigMessage } from './messages.ts';

const CONFIG: ConfigMessage = {
  revision: 3,
  addresses: {
    v4: { address: '10.9.0.2', gateway: '10.9.0.1' },
    v6: { address: 'fd00:9::2', gateway: 'fd00:9::1' },
  },
  routes: ['10.0.0.0/8'],
  dns: { servers: ['10.9.0.1'], domains: ['corp.example'] },
  mtu: 1_400,
  ping: { intervalSeconds: 20, deadSeconds: 60 },
  data: { mode: 'attached', channels: 2 },
  transports: ['datagram'],
  pins: [],
};
const LIMITS: ClientLimits = { serverVerified: true, defaultRoute: true, dns: true, outside: [parseIp('203.0.113.5')] };

function check(
  config: Partial<ConfigMessage>,
  limits: Partial<ClientLimits> = {},
): { accepted: AcceptedConfig; refused: string[] } {
  const { accepted, refused } = checkConfig({ ...CONFIG, ...config }, { ...LIMITS, ...limits });
  assert.ok(refused.every(({ why }) => why.length > 0));
  return { accepted, refused: refused.map(({ item }) => item) };
}

const routesOf = (routes: string[], limits: Partial<ClientLimits> = {}) => {
  const { accepted, refused } = check({ routes }, limits);
  const routesRefused = refused
    .filter((item) => item.startsWith('routes '))
    .map((item) => item.slice('routes '.length));
  return { taken: accepted.routes.map(formatPrefix), refused: routesRefused };
};

test('REQ-CONFIG-001: what the profile allows is taken as it is', () => {
  const { accepted, refused } = check({});
  assert.deepEqual(refused, []);
  assert.equal(accepted.revision, 3);
  assert.equal(accepted.addresses.v4 && formatIp(accepted.addresses.v4.address), '10.9.0.2');
  assert.equal(accepted.addresses.v6 && formatIp(accepted.addresses.v6.gateway), 'fd00:9::1');
  assert.deepEqual(accepted.routes.map(formatPrefix), ['10.0.0.0/8']);
  assert.deepEqual(accepted.dns.servers.map(formatIp), ['10.9.0.1']);
  assert.deepEqual(accepted.dns.domains, ['corp.example']);
  assert.equal(accepted.mtu, 1_400);
  assert.deepEqual(accepted.ping, { intervalMs: 20_000, deadMs: 60_000 });
  assert.deepEqual(accepted.data, { mode: 'attached', channels: 2 });
});

test('REQ-CONFIG-002: one refused item leaves the others in use', () => {
  const { taken, refused } = routesOf(['10.0.0.0/8', 'nonsense', '127.0.0.0/8', '192.168.7.0/24', '10.0.0.0/8']);
  assert.deepEqual(taken, ['10.0.0.0/8', '192.168.7.0/24']);
  assert.deepEqual(refused, ['nonsense', '127.0.0.0/8']);
});

test('REQ-CONFIG-003: never loopback, link-local, multicast, this network, ::1 or v4-mapped', () => {
  const never = [
    '127.0.0.0/8',
    '127.1.2.3/32',
    '169.254.0.0/16',
    '169.254.169.254/32',
    '224.0.0.0/8',
    '239.1.1.1/32',
    '0.0.0.0/8',
    'fe80::/10',
    'fe80:1::/64',
    'ff02::/16',
    '::1/128',
    '::ffff:0:0/96',
  ];
  const { taken, refused } = routesOf(never);
  assert.deepEqual(taken, []);
  assert.equal(refused.length, never.length);
});

test('REQ-CONFIG-003: never a network that holds the gateway’s own outer address', () => {
  assert.deepEqual(routesOf(['203.0.113.0/24', '203.0.113.5/32', '203.0.112.0/24']), {
    taken: ['203.0.112.0/24'],
    refused: ['203.0.113.0/24', '203.0.113.5/32'],
  });
});

test('REQ-CONFIG-003: a client whose own connections stay outside takes a network with the gateway’s address', () => {
  const both = ['203.0.113.0/24', '203.0.113.5/32', '127.0.0.0/8'];
  assert.deepEqual(routesOf(both, { socketsExempt: true }), {
    taken: ['203.0.113.0/24', '203.0.113.5/32'],
    refused: ['127.0.0.0/8'],
  });
});

test('REQ-CONFIG-004: a default route, or a half of one, only where the profile allows it and the server is verified', () => {
  const all = ['0.0.0.0/0', '0.0.0.0/1', '128.0.0.0/1', '::/0', '::/1', '8000::/1'];
  assert.deepEqual(routesOf(all).taken, all);
  assert.deepEqual(routesOf(all, { defaultRoute: false }).refused, all);
  assert.deepEqual(routesOf(all, { serverVerified: false }).refused, all);
});

test('REQ-CONFIG-005: routes lie within what the profile lists', () => {
  const limits = { routes: [parsePrefix('10.0.0.0/8'), parsePrefix('fd00::/8')], defaultRoute: false };
  assert.deepEqual(
    routesOf(['10.1.0.0/16', '10.0.0.0/8', 'fd00:1::/48', '11.0.0.0/8', '10.0.0.0/7', '192.0.2.0/24'], limits),
    {
      taken: ['10.1.0.0/16', '10.0.0.0/8', 'fd00:1::/48'],
      refused: ['11.0.0.0/8', '10.0.0.0/7', '192.0.2.0/24'],
    },
  );
});

test('REQ-CONFIG-005: a network around an allowed one is not within it', () => {
  assert.deepEqual(routesOf(['10.0.0.0/8', '10.0.0.0/16'], { routes: [parsePrefix('10.0.0.0/16')] }), {
    taken: ['10.0.0.0/16'],
    refused: ['10.0.0.0/8'],
  });
});

test('REQ-CONFIG-006: at most 1,000 routes', () => {
  const routes = Array.from({ length: 1_001 }, (_, i) => `10.${i >> 8}.${i & 255}.0/24`);
  const { taken, refused } = routesOf(routes);
  assert.equal(taken.length, 1_000);
  assert.deepEqual(refused, [routes[1_000]]);
});

test('REQ-CONFIG-007: addresses are of their family and of a host; without one, no routes of that family', () => {
  for (const v4 of [
    { address: 'fd00::2', gateway: 'fd00::1' },
    { address: '127.0.0.2', gateway: '127.0.0.1' },
    { address: '10.9.0.2', gateway: '169.254.1.1' },
    { address: '10.9.0.2/24', gateway: '10.9.0.1' },
  ]) {
    const { accepted, refused } = check({ addresses: { v4 } });
    assert.deepEqual(accepted.addresses, {});
    assert.deepEqual(accepted.routes, []);
    assert.deepEqual(refused, [`addresses.v4 ${v4.address}`, 'routes 10.0.0.0/8']);
  }
  const v6 = { address: 'fe80::2', gateway: 'fe80::1' };
  assert.deepEqual(check({ addresses: { v6 }, routes: [] }).refused, ['addresses.v6 fe80::2']);
});

test('REQ-CONFIG-008: name servers only from a verified server and where the profile allows them', () => {
  for (const limits of [{ serverVerified: false }, { dns: false }]) {
    const { accepted, refused } = check({}, limits);
    assert.deepEqual(accepted.dns, { servers: [], domains: [] });
    assert.deepEqual(refused, ['dns.servers 10.9.0.1', 'dns.domains corp.example']);
  }
  const dns = { servers: ['127.0.0.53', 'x', ...Array.from({ length: 9 }, (_, i) => `10.9.1.${i + 1}`)], domains: [] };
  const { accepted, refused } = check({ dns });
  assert.equal(accepted.dns.servers.length, 8);
  assert.deepEqual(refused, ['dns.servers 127.0.0.53', 'dns.servers x', 'dns.servers 10.9.1.9']);
});

test('REQ-CONFIG-009: domains are the profile’s or below them', () => {
  const dns = { servers: [], domains: ['corp.example', 'a.corp.example', 'xcorp.example', 'example'] };
  const { accepted, refused } = check({ dns }, { domains: ['corp.example'] });
  assert.deepEqual(accepted.dns.domains, ['corp.example', 'a.corp.example']);
  assert.deepEqual(refused, ['dns.domains xcorp.example', 'dns.domains example']);
});

test('REQ-CONFIG-010: an MTU outside 1280 to 9000 is refused, and 1280 used', () => {
  for (const mtu of [1_280, 9_000]) assert.equal(check({ mtu }).accepted.mtu, mtu);
  for (const mtu of [0, 1_279, 9_001, 65_535]) {
    assert.equal(check({ mtu }).accepted.mtu, 1_280);
    assert.deepEqual(check({ mtu }).refused, [`mtu ${mtu}`]);
  }
});

test('REQ-CONFIG-011: timers out of bounds are refused, and 20 s and 60 s used', () => {
  for (const [intervalSeconds, deadSeconds] of [
    [1, 3],
    [600, 3_600],
    [20, 40],
  ] as const) {
    assert.deepEqual(check({ ping: { intervalSeconds, deadSeconds } }).refused, []);
  }
  for (const [intervalSeconds, deadSeconds] of [
    [0, 60],
    [601, 3_600],
    [1, 2],
    [600, 3_601],
    [20, 39],
  ] as const) {
    const { accepted, refused } = check({ ping: { intervalSeconds, deadSeconds } });
    assert.deepEqual(accepted.ping, { intervalMs: 20_000, deadMs: 60_000 });
    assert.deepEqual(refused, [`ping ${intervalSeconds}/${deadSeconds}`]);
  }
});

test('REQ-CONFIG-012: 1 to 16 data channels, or inline', () => {
  assert.deepEqual(check({ data: { mode: 'inline', channels: 9 } }).accepted.data, { mode: 'inline', channels: 0 });
  assert.deepEqual(check({ data: { mode: 'attached', channels: 16 } }).accepted.data.channels, 16);
  for (const channels of [0, 17]) {
    const { accepted, refused } = check({ data: { mode: 'attached', channels } });
    assert.deepEqual(accepted.data, { mode: 'attached', channels: 1 });
    assert.deepEqual(refused, [`data.channels ${channels}`]);
  }
});

test('REQ-CONFIG-013: pins are base64 of SHA-256', () => {
  const pin = `${'A'.repeat(43)}=`;
  assert.deepEqual(check({ pins: [pin, 'AAAA'] }).accepted.pins, [pin]);
  assert.deepEqual(check({ pins: [pin, 'AAAA'] }).refused, ['pins AAAA']);
});

test('REQ-CONFIG-014: a connection serves 2 to 86,400 s, an hour where nothing is said', () => {
  assert.equal(check({}).accepted.rekeyMs, 3_600_000);
  for (const rekeySeconds of [2, 86_400]) {
    assert.equal(check({ rekeySeconds }).accepted.rekeyMs, rekeySeconds * 1000);
    assert.deepEqual(check({ rekeySeconds }).refused, []);
  }
  for (const rekeySeconds of [0, 1, 86_401]) {
    assert.equal(check({ rekeySeconds }).accepted.rekeyMs, 3_600_000);
    assert.deepEqual(check({ rekeySeconds }).refused, [`rekeySeconds ${rekeySeconds}`]);
  }
});

test('REQ-CONFIG-015: notices are handed on as they are, and are gone when none is sent', () => {
  assert.deepEqual(check({ notices: ['the quota is used up'] }).accepted.notices, ['the quota is used up']);
  assert.deepEqual(check({}).accepted.notices, []);
});

test('REQ-CONFIG-016: an Ethernet segment is used with a MAC address of one station, and networks that hold what was pushed', () => {
  const segment = {
    mac: '02:c5:0a:58:00:02',
    networks: ['10.88.0.0/16', '10.99.0.0/16', '0.0.0.0/0', 'nonsense'],
    routers: ['10.88.0.1', '10.99.0.1', 'fd00::1'],
    dhcp: false,
  };
  const addresses = { v4: { address: '10.88.0.2', gateway: '10.88.0.1' } };
  const { accepted, refused } = check({ addresses, ethernet: segment });
  const { mac, v4, v6, routers, dhcp } = accepted.ethernet ?? {};
  assert.deepEqual([mac, v4 && formatPrefix(v4), v6, dhcp], ['02:c5:0a:58:00:02', '10.88.0.0/16', undefined, false]);
  assert.deepEqual(routers?.map(formatIp), ['10.88.0.1']);
  assert.deepEqual(
    refused.filter((item) => item.startsWith('ethernet.')),
    [
      'ethernet.networks 10.99.0.0/16',
      'ethernet.networks 0.0.0.0/0',
      'ethernet.networks nonsense',
      'ethernet.routers 10.99.0.1',
      'ethernet.routers fd00::1',
    ],
  );
  for (const bad of ['03:00:00:00:00:01', 'ff:ff:ff:ff:ff:ff', '02:c5:0a:58:00']) {
    const judged = check({ addresses, ethernet: { ...segment, mac: bad } });
    assert.equal(judged.accepted.ethernet, undefined);
    assert.ok(judged.refused.includes(`ethernet.mac ${bad}`));
  }
});

test('REQ-SITE-003: networks behind the client are those that it offers, each with another of its length', () => {
  const limits = { networks: ['10.20.0.0/16', 'fd00:20::/48'].map(parsePrefix) };
  const check = (networks: ConfigMessage['networks'], offered: Partial<ClientLimits> = limits) => {
    const { accepted, refused } = checkConfig(
      { ...CONFIG, ...(networks === undefined ? {} : { networks }) },
      { ...LIMITS, ...offered },
    );
    const taken = accepted.networks.map(({ network, seenAs }) => `${formatPrefix(network)} ${formatPrefix(seenAs)}`);
    return { taken, refused: refused.map(({ item }) => item) };
  };
  assert.deepEqual(check(undefined), { taken: [], refused: [] });
  assert.deepEqual(check([{ network: '10.20.0.0/16' }, { network: 'fd00:20::/48', as: 'fd00:99::/48' }]), {
    taken: ['10.20.0.0/16 10.20.0.0/16', 'fd00:20::/48 fd00:99::/48'],
    refused: [],
  });
  for (const [network, as] of [
    ['10.21.0.0/16'],
    ['0.0.0.0/0'],
    ['10.20.0.0/15'],
    ['nonsense'],
    ['10.20.0.0/16', '10.99.0.0/17'],
    ['10.20.0.0/16', 'fd00:99::/16'],
    ['10.20.0.0/16', '127.0.0.0/16'],
    ['10.20.0.0/16', 'nonsense'],
  ] as const) {
    const { taken, refused } = check([as === undefined ? { network } : { network, as }]);
    assert.deepEqual([taken, refused], [[], [`networks ${network}`]], `${network} as ${as}`);
  }
  assert.deepEqual(check([{ network: '10.20.0.0/16' }], {}).taken, [], 'it offers none');
  assert.deepEqual(check([{ network: '10.20.0.0/16' }, { network: '10.20.3.0/24' }]).refused, [
    'networks 10.20.3.0/24',
  ]);
});
