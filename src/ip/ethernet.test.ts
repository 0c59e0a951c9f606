// What a frame may be, and what a client may say in one, by a frame for each rule.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { arpFrame, dhcpFrame, frame, ipFrame, neighbourFrame, udpFrame } from '../../test/support/ethernet.ts';
import {
  changed,
  concat,
  fragmentHeader,
  guard,
  icmpPacket,
  ipPacket,
  optionsHeader,
  placed,
  tcpPacket,
  udpPacket,
} from '../../test/support/packets.ts';
import { DROP_REASON_NAMES, DropReason } from './drop-reason.ts';
import { checkFrame, type FrameFacts, findDhcpAck, inspectFrame } from './ethernet.ts';

const AT = 16;
const MTU = 1500;
const NO_PROTOCOLS: ReadonlySet<number> = new Set();

function check(bytes: Uint8Array, protocols = NO_PROTOCOLS): string {
  const reason = checkFrame(guard(placed(bytes, AT), AT, bytes.length), AT, bytes.length, MTU, protocols);
  return DROP_REASON_NAMES[reason] ?? '';
}

function inspect(bytes: Uint8Array): { reason: string; facts: FrameFacts } {
  const facts: FrameFacts = { type: 0, version: 0, claim: 0, target: 0 };
  const reason = inspectFrame(guard(placed(bytes, AT), AT, bytes.length), AT, bytes.length, facts);
  return { reason: DROP_REASON_NAMES[reason] ?? '', facts };
}

const reasonOf = (bytes: Uint8Array): string => inspect(bytes).reason;

test('REQ-ETHERNET-003 frames that are short, long, tagged, control, of no single station or of an unlisted protocol are dropped', () => {
  const good = ipFrame(tcpPacket());
  assert.equal(check(good), 'none');
  assert.equal(check(arpFrame()), 'none');
  assert.equal(check(neighbourFrame({ type: 135 })), 'none');
  for (const length of [0, 1, 13]) assert.equal(check(good.subarray(0, length)), 'frame_too_short');
  assert.equal(check(ipFrame(new Uint8Array(MTU).fill(0x45))), 'none');
  assert.equal(check(ipFrame(new Uint8Array(MTU + 1).fill(0x45))), 'too_big');
  for (const type of [0x8100, 0x88a8, 0x9100, 0x9200]) {
    const tagged = concat(good.subarray(0, 12), Uint8Array.of(type >> 8, type & 0xff, 0, 5), good.subarray(12));
    assert.equal(check(tagged), 'frame_tagged');
    assert.equal(check(tagged, new Set([type])), 'frame_tagged', 'also when it is listed');
  }
  for (const last of ['00', '02', '0e', '0f']) {
    assert.equal(check(frame(0x88cc, new Uint8Array(50), { destination: `01:80:c2:00:00:${last}` })), 'frame_control');
  }
  assert.equal(check(ipFrame(tcpPacket(), { destination: '01:80:c2:00:00:10' })), 'none', 'not one of the reserved');
  assert.equal(check(ipFrame(tcpPacket(), { destination: '01:00:0c:cc:cc:cd' })), 'frame_control');
  // A spanning tree's BPDU is LLC: where the type is, there is a length.
  for (const type of [0, 38, 0x5ff]) assert.equal(check(frame(type, new Uint8Array(46))), 'frame_control');
  for (const source of ['01:00:00:00:00:01', 'ff:ff:ff:ff:ff:ff', '00:00:00:00:00:00']) {
    assert.equal(check(ipFrame(tcpPacket(), { source })), 'frame_source');
  }
  assert.equal(check(frame(0x8892, new Uint8Array(46))), 'frame_protocol');
  assert.equal(check(frame(0x8892, new Uint8Array(46)), new Set([0x8892])), 'none');
});

test('REQ-ETHERNET-004 an ARP or DHCP message in the name of another MAC address is dropped', () => {
  assert.equal(reasonOf(arpFrame()), 'none');
  assert.equal(reasonOf(arpFrame({ senderMac: '02:00:00:00:00:09' })), 'mac_spoofed');
  assert.equal(reasonOf(dhcpFrame({ from: 'client', message: 1 })), 'none');
  assert.equal(reasonOf(dhcpFrame({ from: 'client', message: 1, chaddr: '02:00:00:00:00:09' })), 'mac_spoofed');
  assert.equal(reasonOf(changed(arpFrame(), { 15: 6 })), 'frame_protocol', 'of other hardware');
  assert.equal(reasonOf(changed(arpFrame(), { 21: 3 })), 'frame_protocol', 'RARP in ARP');
  assert.equal(reasonOf(arpFrame().subarray(0, 41)), 'frame_too_short');
});

test('REQ-ETHERNET-005 a frame says which addresses its sender claims', () => {
  const bytesAt = (bytes: Uint8Array, at: number, length: number): string =>
    placed(bytes, AT)
      .subarray(at, at + length)
      .toHex();
  const arp = arpFrame({ sender: '192.0.2.7' });
  const ofArp = inspect(arp).facts;
  assert.deepEqual([ofArp.version, bytesAt(arp, ofArp.claim, 4), ofArp.target], [4, 'c0000207', 0]);
  const v4 = ipFrame(tcpPacket({ source: '192.0.2.8' }));
  const ofV4 = inspect(v4).facts;
  assert.deepEqual([ofV4.version, bytesAt(v4, ofV4.claim, 4), ofV4.target], [4, 'c0000208', 0]);
  const advertisement = neighbourFrame({ type: 136, sender: 'fe80::1', target: 'fd00::9' });
  const of6 = inspect(advertisement).facts;
  assert.equal(of6.version, 6);
  assert.equal(bytesAt(advertisement, of6.claim, 16), `fe80${'00'.repeat(13)}01`);
  assert.equal(bytesAt(advertisement, of6.target, 16), `fd00${'00'.repeat(13)}09`);
});

test('REQ-ETHERNET-006 what only routers and DHCP servers say is dropped, behind whatever headers it stands', () => {
  const advertisement = { type: 134 };
  assert.equal(reasonOf(neighbourFrame(advertisement)), 'router_advertisement');
  assert.equal(reasonOf(neighbourFrame({ type: 137 })), 'router_advertisement');
  for (const type of [133, 135, 136]) assert.equal(reasonOf(neighbourFrame({ type })), 'none');
  assert.equal(
    reasonOf(neighbourFrame({ ...advertisement, extensions: [optionsHeader(0), optionsHeader(60, 2)] })),
    'router_advertisement',
  );
  assert.equal(reasonOf(neighbourFrame({ ...advertisement, extensions: [fragmentHeader(0)] })), 'router_advertisement');
  const nine = Array.from({ length: 9 }, () => optionsHeader(60));
  assert.equal(reasonOf(neighbourFrame({ ...advertisement, extensions: nine })), 'frame_fragment');
  // RFC 7113: the type may be in the second fragment.
  const hidden = ipPacket(60, Uint8Array.of(58, 3, 0, 0, 0, 0, 0, 0), { version: 6, extensions: [fragmentHeader(0)] });
  assert.equal(reasonOf(ipFrame(hidden)), 'frame_fragment');
  const empty = ipPacket(58, new Uint8Array(0), { version: 6, extensions: [fragmentHeader(0)] });
  assert.equal(reasonOf(ipFrame(empty)), 'frame_fragment');
  assert.equal(reasonOf(neighbourFrame({ type: 136, extensions: [fragmentHeader(0)] })), 'frame_fragment');
  assert.equal(reasonOf(ipFrame(icmpPacket({ version: 6, extensions: [fragmentHeader(0)] }))), 'none', 'a long ping');
  assert.equal(reasonOf(ipFrame(icmpPacket({ version: 6, extensions: [fragmentHeader(10)] }))), 'none');

  assert.equal(reasonOf(dhcpFrame({ from: 'server', message: 5 })), 'dhcp_server');
  assert.equal(reasonOf(udpFrame({ version: 6, sourcePort: 547, destinationPort: 546 })), 'dhcp_server');
  assert.equal(reasonOf(udpFrame({ version: 6, sourcePort: 546, destinationPort: 547 })), 'none');
  assert.equal(reasonOf(udpFrame({ version: 6, sourcePort: 547, extensions: [fragmentHeader(0)] })), 'dhcp_server');
  const first = udpPacket({ sourcePort: 67, fragment: { more: true } });
  assert.equal(reasonOf(ipFrame(first)), 'dhcp_server');
  const tiny = ipPacket(17, new Uint8Array(4), { fragment: { more: true } });
  assert.equal(reasonOf(ipFrame(tiny)), 'frame_fragment', 'no ports in the first');
  assert.equal(
    reasonOf(ipFrame(ipPacket(17, new Uint8Array(16), { fragment: { offset: 1 } }))),
    'frame_fragment',
    'over the ports',
  );
  assert.equal(reasonOf(ipFrame(ipPacket(17, new Uint8Array(16), { fragment: { offset: 100 } }))), 'none');
});

test('a packet that does not fit its frame is dropped; padding behind it is not', () => {
  const v4 = udpPacket({ payload: 20 });
  assert.equal(reasonOf(ipFrame(concat(v4, new Uint8Array(18)))), 'none');
  assert.equal(reasonOf(ipFrame(v4.subarray(0, v4.length - 1))), 'ip_length');
  assert.equal(reasonOf(ipFrame(v4.subarray(0, 19))), 'too_short');
  assert.equal(reasonOf(ipFrame(changed(v4, { 0: 0x44 }))), 'ip_header_length');
  assert.equal(reasonOf(frame(0x86dd, v4)), 'version');
  assert.equal(reasonOf(frame(0x0800, udpPacket({ version: 6 }))), 'version');
  const v6 = udpPacket({ version: 6, payload: 20 });
  assert.equal(reasonOf(ipFrame(v6.subarray(0, v6.length - 1))), 'ip_length');
});

test("a DHCP server's ACK is told from everything else", () => {
  const find = (bytes: Uint8Array): number => findDhcpAck(guard(placed(bytes, AT), AT, bytes.length), AT, bytes.length);
  const ack = dhcpFrame({ from: 'server', message: 5, yiaddr: '192.0.2.50', chaddr: '02:00:00:00:00:07' });
  const at = find(ack);
  assert.equal(
    placed(ack, AT)
      .subarray(at + 16, at + 20)
      .toHex(),
    'c0000232',
  );
  assert.equal(
    placed(ack, AT)
      .subarray(at + 28, at + 34)
      .toHex(),
    '020000000007',
  );
  assert.equal(find(dhcpFrame({ from: 'server', message: 2, yiaddr: '192.0.2.50' })), 0, 'an offer');
  assert.equal(find(dhcpFrame({ from: 'server', message: 5 })), 0, 'without an address');
  assert.equal(find(dhcpFrame({ from: 'client', message: 3, yiaddr: '192.0.2.50' })), 0);
  assert.equal(find(ack.subarray(0, 200)), 0);
  assert.equal(find(ipFrame(tcpPacket())), 0);
  assert.equal(find(arpFrame()), 0);
});

test('every reason of Ethernet has a name', () => {
  for (let reason = DropReason.frameTooShort; reason <= DropReason.sameSide; reason++) {
    assert.match(DROP_REASON_NAMES[reason] ?? '', /^[a-z_]+$/);
  }
});
