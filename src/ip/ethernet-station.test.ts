// MAC addresses of clients, and the frames by which the segment learns where they are.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { transportChecksumOk } from '../../test/support/packets.ts';
import { parseIp } from './address.ts';
import { ANNOUNCEMENT_BYTES, formatMac, parseMac, stationMac, writeAnnouncement } from './ethernet-station.ts';

test('a MAC address says whose lease it is, and is of one station, locally administered', () => {
  assert.equal(formatMac(stationMac({ v4: parseIp('10.88.0.2') })), '02:c5:0a:58:00:02');
  assert.equal(formatMac(stationMac({ v4: parseIp('10.88.0.2'), v6: parseIp('fd88::2') })), '02:c5:0a:58:00:02');
  assert.equal(formatMac(stationMac({ v6: parseIp('fd88::1:2') })), '02:c6:00:01:00:02');
});

test('a MAC address as text is read back; that of a group, or of nobody, is none', () => {
  assert.equal(parseMac('02:c5:0a:58:00:02')?.toHex(), '02c50a580002');
  for (const text of [
    '03:c5:0a:58:00:02',
    'ff:ff:ff:ff:ff:ff',
    '00:00:00:00:00:00',
    '02:c5:0a:58:00',
    '02c50a580002',
    '',
  ]) {
    assert.equal(parseMac(text), undefined, text);
  }
});

test('REQ-ETHERNET-009 a client is announced by gratuitous ARP, an unsolicited neighbour advertisement, and RARP', () => {
  const mac = stationMac({ v4: parseIp('192.0.2.9') });
  const announce = (address: Uint8Array): Uint8Array => {
    const bytes = new Uint8Array(16 + ANNOUNCEMENT_BYTES).fill(0xa5);
    return bytes.subarray(16, 16 + writeAnnouncement(bytes, 16, mac, address));
  };
  assert.equal(
    announce(parseIp('192.0.2.9').bytes).toHex(),
    `ffffffffffff02c5c000020908060001080006040001${'02c5c0000209'}c0000209000000000000c0000209`,
  );
  assert.equal(
    announce(new Uint8Array(0)).toHex(),
    `ffffffffffff02c5c000020980350001080006040003${'02c5c0000209'}0000000002c5c000020900000000`,
  );
  const advertisement = announce(parseIp('fd88::9').bytes);
  assert.equal(advertisement.length, ANNOUNCEMENT_BYTES);
  assert.equal(advertisement.subarray(0, 14).toHex(), '33330000000102c5c000020986dd');
  const packet = advertisement.subarray(14);
  assert.equal(packet[7], 255, 'hop limit');
  assert.equal(packet.subarray(40, 42).toHex(), '8800');
  assert.equal(packet.subarray(44, 48).toHex(), '20000000', 'override, not solicited');
  assert.equal(packet.subarray(48, 64).toHex(), `fd88${'00'.repeat(13)}09`);
  assert.equal(packet.subarray(64).toHex(), '020102c5c0000209');
  assert.ok(transportChecksumOk(packet));
});
