// Compressed frames: the same comes out, what does not shrink is left alone, and no frame costs more than it may.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import { concat, tcpPacket, udpPacket } from '../../test/support/packets.ts';
import { encodeFrame, FrameType, MAX_PACKET_PAYLOAD_BYTES } from '../protocol/frame.ts';
import { expandFrame, FrameCompressor } from './compression.ts';
import { frameLength } from './data-frame.ts';

const TEXT = Buffer.from('GET /index.html HTTP/1.1\r\nhost: example.org\r\naccept: text/html\r\n'.repeat(1100));
const random = (length: number) => Buffer.from(crypto.getRandomValues(new Uint8Array(length)));

function packetFrame(payload: Uint8Array, sourcePort = 4000): Buffer {
  return Buffer.from(encodeFrame(FrameType.packet, udpPacket({ payload, sourcePort })));
}

function superFrame(payload: Uint8Array): Buffer {
  const packet = tcpPacket({ payload, partial: true });
  return Buffer.from(encodeFrame(FrameType.super, concat(Uint8Array.of(1, 1, 5, 168), packet)));
}

function framesOf(batch: Buffer): Buffer[] {
  const frames: Buffer[] = [];
  for (let at = 0; at < batch.length; at += frameLength(batch, at)) {
    frames.push(Buffer.from(batch.subarray(at, at + frameLength(batch, at))));
  }
  return frames;
}

function expanded(frame: Buffer): Buffer {
  if (frame[0] !== FrameType.compressed) return frame;
  const found = expandFrame(frame.subarray(4));
  assert.ok(found !== undefined);
  return Buffer.from(encodeFrame(found.type as FrameType, found.payload));
}

/** A COMPRESSED payload that says these things. */
function claim(type: number, length: number, body: Uint8Array): Uint8Array {
  return concat(Uint8Array.of(type, length >>> 16, length >>> 8, length), body);
}

test('REQ-ZSTD-002: every frame comes out as it went in, whatever stands beside it', () => {
  const anyFrame = fc.oneof(
    fc.nat(60_000).map((length) => superFrame(TEXT.subarray(0, length + 1))),
    fc.nat(1400).map((length) => packetFrame(TEXT.subarray(0, length))),
    fc.nat(1400).map((length) => packetFrame(random(length))),
    fc.nat(300).map((length) => Buffer.from(encodeFrame(FrameType.echo, TEXT.subarray(0, length)))),
  );
  const compressor = new FrameCompressor();
  fc.assert(
    fc.property(fc.array(anyFrame, { minLength: 1, maxLength: 6 }), (frames) => {
      const packed = framesOf(compressor.pack(Buffer.concat(frames)));
      assert.deepEqual(packed.map(expanded), frames);
      for (const [at, frame] of packed.entries()) {
        assert.ok(frame.length <= (frames[at]?.length ?? 0), 'nothing grows');
        if (frames[at]?.[0] === FrameType.echo) assert.equal(frame[0], FrameType.echo);
      }
    }),
    { numRuns: 100 },
  );
});

test('REQ-ZSTD-002: a frame is compressed by itself: the same bytes again are no shorter for it', () => {
  const compressor = new FrameCompressor();
  const frame = packetFrame(Buffer.from(random(600).toString('hex')));
  const first = compressor.pack(frame).length;
  assert.ok(first < frame.length);
  assert.equal(compressor.pack(frame).length, first);
  const twice = framesOf(compressor.pack(Buffer.concat([frame, frame])));
  assert.deepEqual(
    twice.map(({ length }) => length),
    [first, first],
  );
});

test('REQ-ZSTD-003: what does not shrink goes as it is, and its flow is left alone for longer each time; others are not', () => {
  const compressor = new FrameCompressor([1, 2]);
  const noise = packetFrame(random(1200), 4000);
  const text = packetFrame(TEXT.subarray(0, 1200), 4001);
  for (let count = 0; count < 500; count++) {
    assert.deepEqual(compressor.pack(noise), noise);
    assert.equal(compressor.pack(text)[0], FrameType.compressed);
  }
  // The flow becomes text: it is noticed within so many frames.
  let tries = 0;
  while (compressor.pack(packetFrame(TEXT.subarray(0, 1200), 4000))[0] !== FrameType.compressed) tries += 1;
  assert.ok(tries > 1 && tries <= 64, `after ${tries} frames`);
  const small = packetFrame(TEXT.subarray(0, 200));
  assert.deepEqual(compressor.pack(small), small, 'a short one is not worth it');
});

test('REQ-ZSTD-004: what is longer than it says, or than a frame may be, is refused without being expanded', () => {
  const packet = udpPacket({ payload: TEXT.subarray(0, 1000) });
  const body = zstdCompressSync(packet);
  assert.deepEqual(expandFrame(claim(FrameType.packet, packet.length, body))?.payload, Buffer.from(packet));
  assert.equal(expandFrame(claim(FrameType.packet, packet.length - 1, body)), undefined);
  assert.equal(expandFrame(claim(FrameType.packet, packet.length + 1, body)), undefined);
  const bomb = zstdCompressSync(Buffer.alloc(100 * 1024 * 1024));
  assert.ok(bomb.length < 10_000);
  const before = process.memoryUsage().rss;
  for (const length of [1, MAX_PACKET_PAYLOAD_BYTES, 0xff_ffff]) {
    for (let count = 0; count < 50; count++) {
      assert.equal(expandFrame(claim(FrameType.packet, length, bomb)), undefined);
    }
  }
  assert.ok(process.memoryUsage().rss - before < 64 * 1024 * 1024);
});

test('REQ-ZSTD-004: a window larger than 128 KiB is refused: it would have to be held', () => {
  const body = TEXT.subarray(0, 1000);
  // Magic number, a header with a window, one raw block that is the last (RFC 8878 §3.1.1).
  const block = (1000 << 3) | 1;
  const withWindow = (log: number) =>
    concat(Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, block & 0xff, block >>> 8, block >>> 16), body);
  assert.deepEqual(expandFrame(claim(FrameType.packet, 1000, withWindow(17)))?.payload, body);
  for (const log of [18, 24, 27, 31]) {
    assert.equal(expandFrame(claim(FrameType.packet, 1000, withWindow(log))), undefined, `2^${log}`);
  }
});

test('REQ-ZSTD-005: only packets and super-packets are in it, never a compressed frame or another type', () => {
  const body = zstdCompressSync(TEXT.subarray(0, 100));
  for (let type = 0; type < 256; type++) {
    const isData = type === FrameType.packet || type === FrameType.super;
    assert.equal(expandFrame(claim(type, 100, body)) !== undefined, isData, `type ${type}`);
  }
});

test('whatever bytes come, nothing is thrown, and no more comes out than was said', () => {
  const runs = Number(process.env.FUZZ_RUNS ?? 300);
  const valid = claim(FrameType.packet, 1000, zstdCompressSync(TEXT.subarray(0, 1000)));
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 2000 }), (bytes) => {
      assert.ok((expandFrame(bytes)?.payload.length ?? 0) <= MAX_PACKET_PAYLOAD_BYTES + 4);
    }),
    { numRuns: runs },
  );
  fc.assert(
    fc.property(fc.nat(valid.length - 1), fc.nat(255), fc.nat(valid.length), (at, value, end) => {
      const bytes = valid.slice();
      bytes[at] = value;
      const found = expandFrame(bytes.subarray(0, end));
      assert.ok(found === undefined || found.payload.length <= MAX_PACKET_PAYLOAD_BYTES + 4);
    }),
    { numRuns: runs },
  );
});

test('REQ-ZSTD-001: the vector of docs/vectors.json', () => {
  const text = readFileSync(new URL('../../docs/vectors.json', import.meta.url), 'utf8');
  const { compressed } = JSON.parse(text) as { compressed: { frame: string; expanded: string } };
  const frame = Buffer.from(compressed.frame, 'hex');
  assert.equal(frame[0], FrameType.compressed);
  assert.equal(expanded(frame).toString('hex'), compressed.expanded);
});
