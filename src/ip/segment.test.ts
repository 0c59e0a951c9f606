import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { concat, guard, optionsHeader, placed, TcpFlag, tcpPacket, udpPacket } from '../../test/support/packets.ts';
import { DropReason } from './drop-reason.ts';
import { writeSegment } from './segment.ts';
import { GsoType, NO_OFFLOAD, rebuildOffload, segmentCount } from './super-packet.ts';

/** All segments of a super-packet, each cut out of guarded memory. */
function segments(packet: Uint8Array, gsoType: number, gsoSize: number): Uint8Array[] {
  const offload = { ...NO_OFFLOAD };
  const limits = { mtu: 1500, uso: true };
  assert.equal(rebuildOffload(packet, 0, packet.length, gsoType, 1, gsoSize, limits, offload), DropReason.none);
  const source = guard(placed(packet), 16, packet.length);
  return Array.from({ length: segmentCount(packet.length, offload.headerLength, gsoSize) }, (_, index) => {
    const target = new Uint8Array(2000).fill(0xee);
    const room = offload.headerLength + gsoSize;
    const length = writeSegment(source, 16, packet.length, offload, index, guard(target, 9, room), 9);
    return target.slice(9, 9 + length);
  });
}

/** A segment with the IPv4 identification that the builder gives to every packet. */
function withoutIdentification(segment: Uint8Array, index: number): Uint8Array {
  const copy = segment.slice();
  const view = new DataView(copy.buffer);
  if (copy[0] === undefined || copy[0] >> 4 === 6) return copy;
  assert.equal(view.getUint16(4), 0x4242 + index);
  view.setUint16(4, 0x4242);
  // The header checksum is that of the other identification.
  let sum = (~view.getUint16(10) & 0xffff) + 0xffff - index;
  sum = (sum & 0xffff) + (sum >> 16);
  view.setUint16(10, ~sum & 0xffff);
  return copy;
}

test('the segments of TCP are the packets that a sender without segmentation would have made', () => {
  const options = fc.record({
    version: fc.constantFrom(4 as const, 6 as const),
    payload: fc.uint8Array({ minLength: 1500, maxLength: 4000 }),
    tcpOptions: fc.nat(10).map((words) => new Uint8Array(words * 4).fill(1)),
    extensions: fc.constantFrom([], [optionsHeader(60, 1)]),
    sequence: fc.constantFrom(0, 0xffff_fc00, 77),
  });
  fc.assert(
    fc.property(options, fc.integer({ min: 256, max: 1300 }), (fields, gsoSize) => {
      const flags = TcpFlag.ack | TcpFlag.psh | TcpFlag.fin | TcpFlag.cwr | TcpFlag.ece;
      const gsoType = fields.version === 4 ? GsoType.tcp4 : GsoType.tcp6;
      const found = segments(tcpPacket({ ...fields, flags, partial: true }), gsoType, gsoSize);
      assert.equal(found.length, Math.ceil(fields.payload.length / gsoSize));
      for (const [index, segment] of found.entries()) {
        const first = index === 0 ? TcpFlag.cwr : 0;
        const last = index === found.length - 1 ? TcpFlag.psh | TcpFlag.fin : 0;
        const expected = tcpPacket({
          ...fields,
          flags: TcpFlag.ack | TcpFlag.ece | first | last,
          sequence: (fields.sequence + index * gsoSize) % 2 ** 32,
          payload: fields.payload.slice(index * gsoSize, (index + 1) * gsoSize),
        });
        assert.deepEqual(withoutIdentification(segment, index), expected);
      }
    }),
  );
});

test('the segments of UDP are datagrams of their own', () => {
  const payload = Uint8Array.from({ length: 3001 }, (_, at) => at * 3);
  for (const version of [4, 6] as const) {
    const found = segments(udpPacket({ version, payload, partial: true }), GsoType.udpL4, 1000);
    assert.equal(found.length, 4);
    for (const [index, segment] of found.entries()) {
      const expected = udpPacket({ version, payload: payload.slice(index * 1000, (index + 1) * 1000) });
      assert.deepEqual(withoutIdentification(segment, index), expected);
    }
  }
});

test('a datagram whose checksum would be 0 says 0xffff', () => {
  // The first two bytes of the first segment's payload make up for its checksum.
  const plain = new Uint8Array(1200);
  const packet = udpPacket({ payload: plain.slice(0, 600) });
  plain.set(packet.slice(26, 28));
  const [first] = segments(udpPacket({ payload: plain, partial: true }), GsoType.udpL4, 600);
  assert.deepEqual(first?.slice(26, 28), Uint8Array.of(0xff, 0xff));
});

test('the payloads of all segments are the payload', () => {
  const payload = Uint8Array.from({ length: 20_000 }, (_, at) => at * 11);
  const found = segments(tcpPacket({ payload, partial: true }), GsoType.tcp4, 1448);
  assert.deepEqual(concat(...found.map((segment) => segment.slice(40))), payload);
});
