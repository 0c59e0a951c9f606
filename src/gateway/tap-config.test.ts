// What the table `tap` means for the segment, for a client's CONFIG and for the switch.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { formatIp, formatPrefix, parseIp } from '../ip/address.ts';
import { type GatewayConfig, type GatewayOptions, gatewayConfigSchema } from './config.ts';
import { openPool } from './pool.ts';
import { bridgeAddresses, checkTap, ethernetConfig, isBridging, segmentOf, switchOptions } from './tap-config.ts';

const LEASE = { v4: parseIp('192.0.2.130'), v6: parseIp('fd88::2') };

function config(tap: GatewayOptions['tap'], change: Partial<GatewayOptions> = {}): GatewayConfig {
  return gatewayConfigSchema.parse({ device: 'tap', pool: ['192.0.2.128/25', 'fd88::/64'], tap, ...change });
}

test('a gateway bridges when its device is "tap", and not when it has that in its name', () => {
  assert.ok(isBridging(config({})));
  assert.ok(!isBridging(config({}, { device: 'tap0' })));
  assert.ok(!isBridging(gatewayConfigSchema.parse({})));
});

test('the segment is what the networks say, else the pool; it has to hold the pool and the routers', () => {
  assert.deepEqual(segmentOf(config({})).map(formatPrefix), ['192.0.2.128/25', 'fd88::/64']);
  const networks = ['192.0.2.0/24'];
  assert.deepEqual(segmentOf(config({ networks, routers: ['192.0.2.1'] })).map(formatPrefix), [
    '192.0.2.0/24',
    'fd88::/64',
  ]);
  for (const tap of [
    { networks: ['198.51.100.0/24'] },
    { networks: ['192.0.2.128/26'] },
    { routers: ['198.51.100.1'] },
  ]) {
    assert.throws(
      () => segmentOf(config(tap)),
      (error) => isVpnError(error, 'ERR_CONFIG_VALUE'),
    );
  }
});

test('a client is told its MAC address, the networks and the routers; on a bridge of the gateway, that is the router', () => {
  const own = config({});
  const pool = openPool(own);
  assert.deepEqual(bridgeAddresses(own, pool), ['192.0.2.129/25', 'fd88::1/64']);
  assert.deepEqual(ethernetConfig(own, pool, LEASE), {
    ethernet: {
      mac: '02:c5:c0:00:02:82',
      networks: ['192.0.2.128/25', 'fd88::/64'],
      routers: ['192.0.2.129', 'fd88::1'],
      dhcp: false,
    },
  });
  const joined = config({ bridge: 'br0', networks: ['192.0.2.0/24'], routers: ['192.0.2.1'] });
  assert.deepEqual(ethernetConfig(joined, pool, LEASE).ethernet?.routers, ['192.0.2.1']);
  assert.deepEqual(ethernetConfig(config({ bridge: 'br0' }), pool, LEASE).ethernet?.routers, []);
});

test('with DHCP nothing of the lease is pushed but the MAC address', () => {
  const dhcp = config({ addressing: 'dhcp', bridge: 'br0' }, { routes: ['10.0.0.0/8'] });
  assert.deepEqual(ethernetConfig(dhcp, openPool(dhcp), LEASE), {
    addresses: {},
    routes: [],
    ethernet: { mac: '02:c5:c0:00:02:82', networks: [], routers: [], dhcp: true },
  });
});

test('no client may have the address of the gateway, of a router, or of what is reserved', () => {
  const made = config({ bridge: 'br0', networks: ['192.0.2.0/24'], routers: ['192.0.2.1'], reserved: ['192.0.2.2'] });
  const { reserved, limits } = switchOptions(made, openPool(made), 1);
  assert.deepEqual(reserved.map(formatIp), ['192.0.2.2', '192.0.2.1', '192.0.2.129', 'fd88::1']);
  assert.equal(limits.macsPerClient, 1);
});

test('a policy, which frames would go past, is refused', () => {
  assert.throws(
    () => checkTap(config({}, { policyFile: 'policy.toml' })),
    (error) => isVpnError(error, 'ERR_CONFIG_VALUE'),
  );
  checkTap(config({}));
  checkTap(gatewayConfigSchema.parse({ policyFile: 'policy.toml' }));
});
