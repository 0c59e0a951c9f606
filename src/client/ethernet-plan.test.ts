// What the plan of a station on an Ethernet segment says. That the kernel does it: test/lab/tap.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { parseIp, parsePrefix } from '../ip/address.ts';
import type { HostFacts } from '../os/host-facts.ts';
import type { AcceptedConfig, AcceptedEthernet } from '../protocol/config-check.ts';
import { planEthernet } from './ethernet-plan.ts';

const ELSEWHERE: HostFacts = {
  attached: [{ prefix: parsePrefix('192.168.1.0/24'), device: 'wlan0' }],
  routed: [],
  tunnels: [],
  hasIpv6: true,
  forwards4: [],
  forwards6: false,
  isStrict: false,
};
const SEGMENT: AcceptedEthernet = {
  mac: '02:c5:c0:00:02:82',
  v4: parsePrefix('192.0.2.0/24'),
  v6: parsePrefix('2001:db8:2::/64'),
  routers: [parseIp('192.0.2.1')],
  dhcp: false,
};

function plan(
  ethernet: AcceptedEthernet | undefined,
  change: Partial<AcceptedConfig> = {},
  facts: HostFacts = ELSEWHERE,
) {
  return planEthernet({
    device: 'cvpn0',
    facts,
    wishes: { mode: 'auto', include: [], exclude: [], lan: false, dns: [] },
    config: {
      revision: 1,
      addresses: {
        v4: { address: parseIp('192.0.2.130'), gateway: parseIp('192.0.2.129') },
        v6: { address: parseIp('2001:db8:2::82'), gateway: parseIp('2001:db8:2::81') },
      },
      routes: [],
      dns: { servers: [], domains: [] },
      mtu: 1500,
      ping: { intervalMs: 20_000, deadMs: 60_000 },
      rekeyMs: 3_600_000,
      networks: [],
      data: { mode: 'attached', channels: 1 },
      notices: [],
      pins: [],
      ...(ethernet === undefined ? {} : { ethernet }),
      ...change,
    },
  });
}

test('a station has its MAC address, its addresses with the length of the segment, and routes by the router', () => {
  const { changes, mode, refused } = plan(SEGMENT, {
    routes: ['192.0.2.0/25', '10.0.0.0/8', '0.0.0.0/0', '2001:db8:9::/48'].map(parsePrefix),
  });
  assert.equal(mode, 'split');
  assert.deepEqual(
    changes.filter(({ kind }) => kind !== 'sysctl'),
    [
      { kind: 'link', device: 'cvpn0', hardwareAddress: SEGMENT.mac, mtu: 1500, queueLength: 1000 },
      { kind: 'link', device: 'cvpn0', up: true },
      { kind: 'address', device: 'cvpn0', address: '192.0.2.130/24' },
      { kind: 'address', device: 'cvpn0', address: '2001:db8:2::82/64' },
      { kind: 'route', device: 'cvpn0', prefix: '10.0.0.0/8', via: '192.0.2.1' },
    ],
  );
  assert.deepEqual(
    refused.map(({ item }) => item),
    ['routes 0.0.0.0/0', 'routes 2001:db8:9::/48'],
  );
  const sysctls = changes.flatMap((change) =>
    change.kind === 'sysctl' ? [`${change.key.split('/').at(-1)}=${change.value}`] : [],
  );
  assert.deepEqual(
    sysctls,
    ['disable_ipv6=0', 'accept_ra_defrtr=0', 'accept_ra=0'],
    'no router of the segment decides',
  );
});

test('where addresses come by DHCP the device is up without one, and the user is told what to do', () => {
  const { changes, notes } = plan({ mac: SEGMENT.mac, routers: [], dhcp: true }, { addresses: {} });
  assert.deepEqual(
    changes.filter(({ kind }) => kind === 'address' || kind === 'route'),
    [],
  );
  assert.ok(changes.some((change) => change.kind === 'link' && change.up === true));
  assert.ok(!changes.some((change) => change.kind === 'sysctl' && change.key.endsWith('/accept_ra')));
  assert.match(notes.join(), /udhcpc -i cvpn0/);
});

test('a machine that is in the network of the segment already is left alone', () => {
  const facts = { ...ELSEWHERE, attached: [{ prefix: parsePrefix('192.0.2.0/25'), device: 'eth0' }] };
  assert.throws(
    () => plan(SEGMENT, {}, facts),
    (error) => isVpnError(error, 'ERR_CONFLICT'),
  );
});

test('REQ-ETHERNET-002 a configuration without Ethernet is none for a TAP device', () => {
  assert.throws(
    () => plan(undefined),
    (error) => isVpnError(error, 'ERR_DEVICE_KIND'),
  );
});

test('a kernel without IPv6 is asked for none of it', () => {
  const { changes } = plan(SEGMENT, {}, { ...ELSEWHERE, hasIpv6: false });
  assert.ok(!JSON.stringify(changes).includes('2001:'));
  assert.ok(!changes.some(({ kind }) => kind === 'sysctl'));
});
