// Frames that are trimmed, split and marked are what their sender might have sent: the receiver takes every one.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  concat,
  naiveChecksum,
  optionsHeader,
  routingHeader,
  TcpFlag,
  tcpPacket,
  transportChecksumOk,
  udpPacket,
} from '../../test/support/packets.ts';
import { DropReason } from '../ip/drop-reason.ts';
import { writeSegment } from '../ip/segment.ts';
import { GsoType, NO_OFFLOAD, rebuildOffload, segmentCount } from '../ip/super-packet.ts';
import { encodeFrame, FrameType } from '../protocol/frame.ts';
import { frameCost, frameLength, frameSegments, markFrame, splitFrame, trimFrame } from './data-frame.ts';

const LIMITS = { mtu: 1500, uso: true };

function superFrame(packet: Uint8Array, gsoType: number, gsoSize: number): Buffer {
  return Buffer.from(
    encodeFrame(FrameType.super, concat(Uint8Array.of(gsoType, 1, gsoSize >>> 8, gsoSize & 0xff), packet)),
  );
}

/** The packets that the receiver's kernel makes of a frame; fails when the receiver would refuse it. */
function segmentsOf(frame: Uint8Array): Uint8Array[] {
  assert.equal(frameLength(frame, 0), frame.length);
  const packet = frame.slice(8);
  const gsoSize = ((frame[6] ?? 0) << 8) | (frame[7] ?? 0);
  const offload = { ...NO_OFFLOAD };
  const verdict = rebuildOffload(packet, 0, packet.length, frame[4] ?? 0, frame[5] ?? 0, gsoSize, LIMITS, offload);
  assert.equal(verdict, DropReason.none);
  // One segment that is left alone is cut like the last of many.
  const size = gsoSize === 0 ? packet.length - headerOf(packet, offload.checksumStart) : gsoSize;
  const whole = { ...offload, headerLength: headerOf(packet, offload.checksumStart), gsoSize: size };
  if (gsoSize === 0) whole.gsoType = offload.checksumOffset === 6 ? 5 : 1;
  return Array.from({ length: segmentCount(packet.length, whole.headerLength, size) }, (_, index) => {
    const target = new Uint8Array(3000);
    return target.slice(0, writeSegment(packet, 0, packet.length, whole, index, target, 0));
  });
}

function headerOf(packet: Uint8Array, start: number): number {
  const isTcp = packet[(packet[0] ?? 0) >> 4 === 4 ? 9 : packet.length] === 6 || (packet[start + 12] ?? 0) >= 0x50;
  return start + (isTcp && !isUdp(packet, start) ? ((packet[start + 12] ?? 0) >> 4) * 4 : 8);
}

function isUdp(packet: Uint8Array, start: number): boolean {
  return new DataView(packet.buffer, packet.byteOffset).getUint16(start + 4) === packet.length - start;
}

const anySuper = fc
  .record({
    udp: fc.boolean(),
    version: fc.constantFrom(4 as const, 6 as const),
    gsoSize: fc.integer({ min: 256, max: 1300 }),
    segments: fc.integer({ min: 2, max: 46 }),
    lastBytes: fc.integer({ min: 1, max: 256 }),
    tcpOptions: fc.nat(10).map((words) => new Uint8Array(words * 4).fill(1)),
    ipOptions: fc.constantFrom(undefined, new Uint8Array(8)),
    extensions: fc.constantFrom([], [optionsHeader(60, 1)], [optionsHeader(0), routingHeader(0, 2), optionsHeader(60)]),
    sequence: fc.constantFrom(0, 0xffff_fc00, 77),
    flags: fc.constantFrom(TcpFlag.ack, TcpFlag.ack | TcpFlag.psh | TcpFlag.fin | TcpFlag.cwr | TcpFlag.ece),
    trafficClass: fc.constantFrom(0, 1, 2, 3, 0xfe),
    seed: fc.nat(255),
  })
  .map(({ udp, version, gsoSize, segments, lastBytes, ipOptions, seed, ...rest }) => {
    const payload = Uint8Array.from(
      { length: (segments - 1) * gsoSize + Math.min(lastBytes, gsoSize) },
      (_, at) => at * 31 + (at >> 8) + seed,
    );
    const fields = { ...rest, version, payload, partial: true, ...(ipOptions === undefined ? {} : { ipOptions }) };
    const gsoType = udp ? GsoType.udpL4 : version === 4 ? GsoType.tcp4 : GsoType.tcp6;
    return { frame: superFrame(udp ? udpPacket(fields) : tcpPacket(fields), gsoType, gsoSize), segments };
  });

test('REQ-SUPER-009: a super-packet that leaves in parts becomes the same packets as one that leaves whole', () => {
  fc.assert(
    fc.property(
      anySuper,
      fc.array(fc.integer({ min: 300, max: 20_000 }), { minLength: 1, maxLength: 8 }),
      (big, sizes) => {
        const expected = segmentsOf(big.frame);
        const memory = Buffer.concat([Buffer.alloc(7, 0xaa), big.frame, Buffer.alloc(9, 0xbb)]);
        const target = Buffer.alloc(80_000, 0xcc);
        const found: Uint8Array[] = [];
        let [at, length] = [7, big.frame.length];
        for (let turn = 0; ; turn++) {
          const most = sizes[turn % sizes.length] ?? 0;
          const cut = splitFrame(memory, at, length, most, target, 5);
          if (cut === 0) break;
          const part = target.subarray(5, 5 + frameLength(target, 5));
          const packets = segmentsOf(part);
          assert.ok(packets.length >= 2, 'no part is smaller than two segments');
          assert.ok(part.length <= most || packets.length === 2);
          assert.equal(frameSegments(target, 5, part.length), packets.length);
          found.push(...packets);
          at += cut;
          length -= cut;
        }
        const rest = memory.subarray(at, at + length);
        assert.equal(frameSegments(memory, at, length), expected.length - found.length);
        found.push(...segmentsOf(rest));
        assert.deepEqual(found, expected);
        assert.ok(memory.subarray(0, 7).every((byte) => byte === 0xaa));
        assert.ok(memory.subarray(-9).every((byte) => byte === 0xbb));
      },
    ),
    { numRuns: 300 },
  );
});

test('REQ-SUPER-009: trimming takes the last segment, and FIN and PSH with it, until one is left', () => {
  fc.assert(
    fc.property(anySuper, ({ frame, segments }) => {
      const expected = segmentsOf(frame);
      let length = frame.length;
      for (let left = segments - 1; left >= 1; left--) {
        const before = length;
        length = trimFrame(frame, 0, length);
        assert.ok(length < before);
        const packets = segmentsOf(frame.subarray(0, length));
        assert.equal(packets.length, left);
        assert.deepEqual(packets, expected.slice(0, left));
      }
      assert.equal(trimFrame(frame, 0, length), length, 'one segment cannot be trimmed');
      assert.equal(frameSegments(frame, 0, length), 1);
    }),
    { numRuns: 200 },
  );
});

test('a mark changes two bits of a sender that understands it, and nothing of another', () => {
  for (const version of [4, 6] as const) {
    for (const trafficClass of [0, 1, 2, 3, 0xb8, 0xb9]) {
      const packet = tcpPacket({ version, trafficClass, payload: 100 });
      const marked = tcpPacket({ version, trafficClass: trafficClass | 3, payload: 100 });
      const frame = encodeFrame(FrameType.packet, packet);
      const isCapable = (trafficClass & 3) !== 0;
      assert.equal(markFrame(frame, 0, frame.length), isCapable);
      assert.deepEqual(frame, encodeFrame(FrameType.packet, isCapable ? marked : packet));
      if (version === 4) assert.equal(naiveChecksum(frame.subarray(4, 24)), 0);
      assert.ok(transportChecksumOk(frame.subarray(4)));
    }
  }
});

test('what is no packet, or no super-packet of ours, is left as it is', () => {
  const packet = tcpPacket({ payload: 4000, partial: true });
  const unchecked = superFrame(packet, GsoType.tcp4, 1000);
  unchecked[5] = 0;
  const cases = [
    encodeFrame(FrameType.packet, packet),
    encodeFrame(FrameType.echo, packet),
    encodeFrame(FrameType.packet, Uint8Array.of(0x45, 2, 0)),
    encodeFrame(FrameType.super, Uint8Array.of(1, 1, 4)),
    superFrame(Uint8Array.of(0x45, 3), GsoType.tcp4, 1000),
    superFrame(packet.slice(0, 39), GsoType.tcp4, 1000),
    superFrame(packet, GsoType.none, 0),
    unchecked,
  ];
  for (const original of cases) {
    const frame = Buffer.from(original);
    assert.equal(trimFrame(frame, 0, frame.length), frame.length);
    assert.equal(splitFrame(frame, 0, frame.length, 2000, Buffer.alloc(9000), 0), 0);
    assert.equal(markFrame(frame, 0, frame.length), false);
    assert.deepEqual(frame, Buffer.from(original));
  }
});

test('a super-packet costs what its segments are on a network, each with its headers', () => {
  fc.assert(
    fc.property(anySuper, ({ frame }) => {
      const cost = segmentsOf(frame).reduce((sum, segment) => sum + segment.length, 0);
      assert.equal(frameCost(frame, 0, frame.length), cost);
    }),
  );
  const plain = encodeFrame(FrameType.packet, udpPacket({ payload: 100 }));
  assert.equal(frameCost(plain, 0, plain.length), 128);
});
