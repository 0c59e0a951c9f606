// Where frames go, whose addresses are whose, and what is held against whom, on a switch of two clients and a bridge.

import assert from 'node:assert/strict';
import { beforeEach, describe, test } from 'node:test';
import { arpFrame, BROADCAST, dhcpFrame, frame, ipFrame, neighbourFrame } from '../../test/support/ethernet.ts';
import { tcpPacket } from '../../test/support/packets.ts';
import { parseIp } from './address.ts';
import { DROP_REASON_NAMES } from './drop-reason.ts';
import { formatMac, stationMac } from './ethernet-station.ts';
import { EthernetSwitch, type SwitchLimits, type SwitchOptions, Verdict } from './ethernet-switch.ts';
import type { Lease } from './lease-pool.ts';

const LIMITS: SwitchLimits = {
  macsPerClient: 2,
  addressesPerClient: 3,
  tableSize: 64,
  ageTicks: 100,
  broadcasts: 5,
  floods: 7,
};
const ANN: Lease = { v4: parseIp('192.0.2.101'), v6: parseIp('fd00::101') };
const BOB: Lease = { v4: parseIp('192.0.2.102'), v6: parseIp('fd00::102') };
const ANN_MAC = formatMac(stationMac(ANN));
const BOB_MAC = formatMac(stationMac(BOB));
const HOST_MAC = '02:00:00:00:00:aa';
const ROUTER = '192.0.2.1';

function open(options: Partial<SwitchOptions> = {}, isLeased = true, limits: Partial<SwitchLimits> = {}) {
  const bridge = new EthernetSwitch({
    mtu: 1500,
    clientToClient: false,
    protocols: [],
    reserved: [parseIp(ROUTER)],
    seed: 7,
    ...options,
    limits: { ...LIMITS, ...limits },
  });
  const portOf = (lease: Lease): number =>
    bridge.openPort({ mac: stationMac(lease), lease: isLeased ? lease : undefined });
  return { bridge, ann: portOf(ANN), bob: portOf(BOB), portOf };
}

/** A drop by its name, a way by what it is. */
function told(verdict: number): string | number {
  if (verdict < 0) return DROP_REASON_NAMES[-verdict] ?? '';
  return verdict === Verdict.bridge ? 'bridge' : verdict === Verdict.everybody ? 'everybody' : verdict;
}

const from = (bridge: EthernetSwitch, port: number, bytes: Uint8Array) =>
  told(bridge.fromClient(port, bytes, 0, bytes.length));
const fromBridge = (bridge: EthernetSwitch, bytes: Uint8Array) => told(bridge.fromBridge(bytes, 0, bytes.length));
const ofAnn = (destination: string, source = '192.0.2.101') =>
  ipFrame(tcpPacket({ source, destination: '192.0.2.9' }), { source: ANN_MAC, destination });
const ofHost = (destination: string, source = HOST_MAC) =>
  ipFrame(tcpPacket({ source: '192.0.2.9', destination: '192.0.2.101' }), { source, destination });
function tick(bridge: EthernetSwitch, times: number): void {
  for (let i = 0; i < times; i++) bridge.handleTick();
}

test('REQ-ETHERNET-007 clients reach the bridge and are kept apart; where they are not, frames go from one to the other', () => {
  const apart = open();
  assert.equal(from(apart.bridge, apart.ann, ofAnn(HOST_MAC)), 'bridge', 'who is not known is at the bridge');
  assert.equal(from(apart.bridge, apart.ann, ofAnn(BOB_MAC)), 'client_isolated');
  assert.equal(from(apart.bridge, apart.ann, ofAnn(BROADCAST)), 'bridge', 'a broadcast goes past the others');
  assert.equal(from(apart.bridge, apart.ann, ofAnn(ANN_MAC)), 'same_side');
  const joined = open({ clientToClient: true });
  assert.equal(from(joined.bridge, joined.ann, ofAnn(BOB_MAC)), joined.bob);
  assert.equal(from(joined.bridge, joined.ann, ofAnn(BROADCAST)), 'everybody');
  assert.equal(from(joined.bridge, joined.ann, ofAnn(HOST_MAC)), 'bridge');
});

test('frames from the bridge go to the client that they are for; those for nobody here are not spread', () => {
  const { bridge, ann, bob } = open();
  assert.equal(fromBridge(bridge, ofHost(ANN_MAC)), ann);
  assert.equal(fromBridge(bridge, ofHost(BOB_MAC)), bob);
  assert.equal(fromBridge(bridge, ofHost(BROADCAST)), 'everybody');
  assert.equal(fromBridge(bridge, ofHost('02:00:00:00:00:bb')), 'no_session');
  assert.equal(fromBridge(bridge, ofHost(HOST_MAC, '02:00:00:00:00:bb')), 'same_side');
  assert.equal(
    fromBridge(bridge, frame(0x88cc, new Uint8Array(46), { source: HOST_MAC, destination: BROADCAST })),
    'frame_protocol',
  );
  bridge.closePort(ann);
  assert.equal(fromBridge(bridge, ofHost(ANN_MAC)), 'no_session');
  assert.equal(from(bridge, ann, ofAnn(HOST_MAC)), 'no_session');
  assert.equal(fromBridge(bridge, ofHost(BOB_MAC)), bob);
});

test("REQ-ETHERNET-004 nobody speaks with another's MAC address: neither a client with a client's or a host's, nor the bridge with a client's", () => {
  const { bridge, ann, bob } = open({ clientToClient: true });
  const asBob = ipFrame(tcpPacket({ source: '192.0.2.101' }), { source: BOB_MAC });
  assert.equal(from(bridge, ann, asBob), 'mac_spoofed');
  assert.equal(fromBridge(bridge, ofHost(ANN_MAC, BOB_MAC)), 'mac_spoofed');
  fromBridge(bridge, ofHost(ANN_MAC));
  const asHost = ipFrame(tcpPacket({ source: '192.0.2.102' }), { source: HOST_MAC });
  assert.equal(from(bridge, bob, asHost), 'mac_spoofed');
  // Nothing was learnt of it.
  assert.equal(
    from(bridge, bob, ipFrame(tcpPacket({ source: '192.0.2.102' }), { source: BOB_MAC, destination: HOST_MAC })),
    'bridge',
  );
  tick(bridge, 31);
  assert.equal(from(bridge, bob, asHost), 'bridge', 'who has not been heard for long may have moved behind a client');
  assert.equal(fromBridge(bridge, ofHost(ANN_MAC)), 'mac_spoofed', 'and is there from then on');
});

test('REQ-ETHERNET-004 a client has so many MAC addresses, and gets others when these have aged', () => {
  const { bridge, ann } = open();
  const behind = (last: string) => ipFrame(tcpPacket({ source: '192.0.2.101' }), { source: `02:00:00:00:01:${last}` });
  assert.equal(from(bridge, ann, behind('01')), 'bridge');
  assert.equal(from(bridge, ann, behind('02')), 'mac_limit');
  assert.equal(from(bridge, ann, behind('01')), 'bridge');
  assert.equal(from(bridge, ann, ofAnn(HOST_MAC)), 'bridge', 'its own is never one too many');
  tick(bridge, LIMITS.ageTicks + 1);
  assert.equal(from(bridge, ann, behind('02')), 'bridge');
  assert.equal(from(bridge, ann, behind('01')), 'mac_limit');
});

describe('REQ-ETHERNET-005 with leases', () => {
  let rig: ReturnType<typeof open>;
  beforeEach(() => {
    rig = open();
  });

  test('a client sends from its lease, link-local addresses that are its own, and the unspecified ones', () => {
    const { bridge, ann, bob } = rig;
    assert.equal(from(bridge, ann, ofAnn(HOST_MAC)), 'bridge');
    assert.equal(from(bridge, ann, ofAnn(HOST_MAC, '192.0.2.102')), 'address_spoofed');
    assert.equal(from(bridge, ann, ofAnn(HOST_MAC, '198.51.100.7')), 'address_spoofed');
    const v6 = (source: string, mac = ANN_MAC) =>
      ipFrame(tcpPacket({ source, destination: 'fd00::9' }), { source: mac });
    assert.equal(from(bridge, ann, v6('fd00::101')), 'bridge');
    assert.equal(from(bridge, ann, v6('fd00::102')), 'address_spoofed');
    assert.equal(from(bridge, ann, v6('fe80::77')), 'bridge');
    assert.equal(from(bridge, bob, v6('fe80::77', BOB_MAC)), 'address_spoofed', 'the other was first');
    assert.equal(from(bridge, ann, dhcpFrame({ from: 'client', message: 1, source: ANN_MAC })), 'bridge');
  });

  test('so it does in ARP and in neighbour advertisements', () => {
    const { bridge, ann } = rig;
    const arp = (sender: string) => arpFrame({ source: ANN_MAC, sender });
    assert.equal(from(bridge, ann, arp('192.0.2.101')), 'bridge');
    assert.equal(from(bridge, ann, arp('0.0.0.0')), 'bridge', 'a probe');
    assert.equal(from(bridge, ann, arp('192.0.2.102')), 'address_spoofed');
    assert.equal(from(bridge, ann, arp(ROUTER)), 'address_spoofed');
    const advertise = (target: string) => neighbourFrame({ type: 136, source: ANN_MAC, sender: 'fd00::101', target });
    assert.equal(from(bridge, ann, advertise('fd00::101')), 'bridge');
    assert.equal(from(bridge, ann, advertise('fd00::1')), 'address_spoofed');
  });
});

describe('REQ-ETHERNET-005 without leases', () => {
  let rig: ReturnType<typeof open>;
  beforeEach(() => {
    rig = open({}, false);
  });
  const arp = (sender: string, source = ANN_MAC) => arpFrame({ source, sender });

  test('who uses an address first has it, until it is not heard of', () => {
    const { bridge, ann, bob } = rig;
    assert.equal(from(bridge, ann, arp('192.0.2.50')), 'bridge');
    assert.equal(from(bridge, bob, arp('192.0.2.50', BOB_MAC)), 'address_spoofed');
    assert.equal(from(bridge, ann, ofAnn(HOST_MAC, '192.0.2.50')), 'bridge');
    tick(bridge, 30);
    assert.equal(from(bridge, bob, arp('192.0.2.50', BOB_MAC)), 'address_spoofed');
    tick(bridge, 1);
    assert.equal(from(bridge, bob, arp('192.0.2.50', BOB_MAC)), 'bridge');
    assert.equal(from(bridge, ann, ofAnn(HOST_MAC, '192.0.2.50')), 'address_spoofed');
  });

  test('a reserved address is nobody’s for ever; one of a host on the bridge is not a client’s', () => {
    const { bridge, ann } = rig;
    tick(bridge, 1000);
    assert.equal(from(bridge, ann, arp(ROUTER)), 'address_spoofed');
    fromBridge(bridge, arpFrame({ source: HOST_MAC, sender: '192.0.2.9' }));
    assert.equal(from(bridge, ann, arp('192.0.2.9')), 'address_spoofed');
    fromBridge(bridge, neighbourFrame({ type: 136, source: HOST_MAC, sender: 'fd00::9', target: 'fd00::9' }));
    const advertise = neighbourFrame({ type: 136, source: ANN_MAC, sender: 'fe80::a', target: 'fd00::9' });
    assert.equal(from(bridge, ann, advertise), 'address_spoofed');
    for (const sender of ['127.0.0.1', '224.0.0.1', '255.255.255.255']) {
      assert.equal(from(bridge, ann, arp(sender)), 'address_spoofed', sender);
    }
  });

  test('a DHCP server gives an address to whom it will', () => {
    const { bridge, ann, bob } = rig;
    assert.equal(from(bridge, ann, arp('192.0.2.50')), 'bridge');
    const ack = dhcpFrame({ from: 'server', message: 5, source: HOST_MAC, yiaddr: '192.0.2.50', chaddr: BOB_MAC });
    assert.equal(fromBridge(bridge, ack), 'everybody');
    assert.equal(from(bridge, ann, arp('192.0.2.50')), 'address_spoofed');
    assert.equal(from(bridge, bob, arp('192.0.2.50', BOB_MAC)), 'bridge');
    assert.deepEqual(
      bridge.addressesOf(bob).map((bytes) => bytes.toHex()),
      ['c0000232'],
    );
  });

  test('a client has so many addresses', () => {
    const { bridge, ann } = rig;
    for (const last of [1, 2, 3]) assert.equal(from(bridge, ann, arp(`192.0.2.${60 + last}`)), 'bridge');
    assert.equal(from(bridge, ann, arp('192.0.2.64')), 'address_limit');
    assert.equal(from(bridge, ann, arp('192.0.2.61')), 'bridge');
    tick(bridge, LIMITS.ageTicks + 1);
    assert.equal(from(bridge, ann, arp('192.0.2.64')), 'bridge');
  });

  test('REQ-ETHERNET-009 a client that comes from another worker has its addresses at once, by its MAC address', () => {
    const { bridge, ann } = rig;
    bridge.closePort(ann);
    // As the other worker lets its frames out.
    assert.equal(fromBridge(bridge, arpFrame({ source: ANN_MAC, sender: '192.0.2.50' })), 'everybody');
    const { macs } = bridge.sizes;
    const again = rig.portOf(ANN);
    assert.equal(bridge.sizes.macs, macs, 'it is at one place, not at two');
    assert.deepEqual(
      bridge.addressesOf(again).map((bytes) => bytes.toHex()),
      ['c0000232'],
    );
    assert.equal(from(bridge, again, ofAnn(HOST_MAC, '192.0.2.50')), 'bridge');
    assert.equal(fromBridge(bridge, ofHost(ANN_MAC)), again);
  });
});

test('REQ-ETHERNET-008 broadcasts and multicasts are bounded, for each client and from the bridge, every second anew', () => {
  const { bridge, ann, bob } = open();
  for (let i = 0; i < LIMITS.broadcasts; i++) assert.equal(from(bridge, ann, ofAnn(BROADCAST)), 'bridge');
  assert.equal(from(bridge, ann, ofAnn(BROADCAST)), 'broadcast_rate');
  assert.equal(from(bridge, ann, ofAnn('33:33:00:00:00:fb')), 'broadcast_rate');
  assert.equal(from(bridge, ann, ofAnn(HOST_MAC)), 'bridge', 'to one station');
  const ofBob = ipFrame(tcpPacket({ source: '192.0.2.102' }), { source: BOB_MAC, destination: BROADCAST });
  assert.equal(from(bridge, bob, ofBob), 'bridge', 'the other has its own');
  for (let i = 0; i < LIMITS.floods; i++) assert.equal(fromBridge(bridge, ofHost(BROADCAST)), 'everybody');
  assert.equal(fromBridge(bridge, ofHost(BROADCAST)), 'flood_rate');
  assert.equal(fromBridge(bridge, ofHost(ANN_MAC)), ann);
  tick(bridge, 1);
  assert.equal(from(bridge, ann, ofAnn(BROADCAST)), 'bridge');
  assert.equal(fromBridge(bridge, ofHost(BROADCAST)), 'everybody');
});

test('REQ-ETHERNET-008 the tables are bounded: strangers fill them and cut off no client; age makes room', () => {
  const { bridge, ann, bob } = open({}, false, { tableSize: 16, macsPerClient: 16, addressesPerClient: 64 });
  const stranger = (number: number) => `02:00:00:01:00:${number.toString(16).padStart(2, '0')}`;
  for (let i = 0; i < 100; i++) fromBridge(bridge, ofHost(ANN_MAC, stranger(i)));
  assert.equal(bridge.sizes.macs, 16);
  assert.equal(fromBridge(bridge, ofHost(ANN_MAC, stranger(101))), ann, 'who is not known is heard all the same');
  assert.equal(from(bridge, bob, ipFrame(tcpPacket({ source: '192.0.2.7' }), { source: BOB_MAC })), 'bridge');
  const behind = ipFrame(tcpPacket({ source: '192.0.2.8' }), { source: '02:00:00:02:00:01' });
  assert.equal(from(bridge, ann, behind), 'mac_table_full');
  tick(bridge, LIMITS.ageTicks + 1);
  assert.equal(bridge.sizes.macs, 2, 'the clients’ own');
  assert.equal(from(bridge, ann, behind), 'bridge');
});

test('ports are used again, and nothing of the former client is left at one', () => {
  const { bridge, ann, portOf } = open({}, false);
  from(bridge, ann, arpFrame({ source: ANN_MAC, sender: '192.0.2.50' }));
  from(bridge, ann, ipFrame(tcpPacket({ source: '192.0.2.51' }), { source: '02:00:00:00:01:01' }));
  bridge.closePort(ann);
  const { macs, addresses } = bridge.sizes;
  assert.deepEqual({ macs, addresses }, { macs: 1, addresses: 1 }, 'the other client, the reserved address');
  assert.equal(portOf({ v4: parseIp('192.0.2.103') }), ann);
});
