// Which class a packet belongs to: by its DSCP, or by a rule for a port.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fragmentHeader, icmpPacket, tcpPacket, udpPacket } from '../../test/support/packets.ts';
import { classOfDscp, dscpOf, TrafficClass, TrafficClasses } from './traffic-class.ts';

const { interactive, normal, bulk } = TrafficClass;
/** With the ECN bits of a sender that understands them. */
const field = (dscp: number): number => (dscp << 2) | 2;

for (const version of [4, 6] as const) {
  test(`IPv${version}: every DSCP is read whole, and ECN is no part of it`, () => {
    for (let dscp = 0; dscp < 64; dscp++) {
      assert.equal(dscpOf(udpPacket({ version, trafficClass: field(dscp) }), 0), dscp);
    }
  });

  test(`IPv${version}: DSCP says the class; what nobody has defined is normal`, () => {
    const expected = new Map<number, number>([
      [46, interactive],
      [44, interactive],
      [34, interactive],
      [18, interactive],
      [48, interactive],
      [1, bulk],
      [8, bulk],
      [10, bulk],
      [0, normal],
      [16, normal],
      [63, normal],
    ]);
    for (const [dscp, wanted] of expected) {
      assert.equal(classOfDscp(udpPacket({ version, trafficClass: field(dscp) }), 0), wanted, `DSCP ${dscp}`);
    }
  });

  test(`IPv${version}: a rule for a port goes before the DSCP, whichever end has the port; the first rule counts`, () => {
    const classes = new TrafficClasses([
      { class: bulk, protocol: 'tcp', from: 873, to: 873 },
      { class: interactive, protocol: 'tcp', from: 800, to: 900 },
    ]);
    const classOf = (packet: Uint8Array) => classes.classOf(packet, 0, packet.length);
    assert.equal(classOf(tcpPacket({ version, destinationPort: 873, trafficClass: field(46) })), bulk);
    assert.equal(classOf(tcpPacket({ version, sourcePort: 873, destinationPort: 40_000 })), bulk);
    assert.equal(classOf(tcpPacket({ version, destinationPort: 900 })), interactive);
    assert.equal(classOf(tcpPacket({ version, destinationPort: 901 })), normal);
    assert.equal(classOf(udpPacket({ version, destinationPort: 873 })), normal);
    assert.equal(classOf(icmpPacket({ version, trafficClass: field(46) })), interactive);
  });
}

test('what has no ports is judged by its DSCP, and nothing is read beyond the packet', () => {
  const classes = new TrafficClasses([{ class: bulk, protocol: 'tcp', from: 0, to: 65_535 }]);
  const fragment = tcpPacket({ fragment: { offset: 100 } });
  assert.equal(classes.classOf(fragment, 0, fragment.length), normal);
  const fragment6 = tcpPacket({ version: 6, extensions: [fragmentHeader(100)] });
  assert.equal(classes.classOf(fragment6, 0, fragment6.length), normal);
  const packet = tcpPacket({ version: 6, trafficClass: field(46) });
  assert.equal(classes.classOf(packet, 0, packet.length), bulk);
  for (let length = 0; length < 44; length++) {
    const cut = classes.classOf(packet.subarray(0, length), 0, length);
    assert.ok(cut === interactive || cut === normal, `${length} bytes`);
  }
});
