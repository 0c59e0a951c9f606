import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../base/errors.ts';
import { CapsuleDecoder, encodeUdp, MAX_UDP_PAYLOAD_BYTES } from './capsule.ts';

function decode(chunks: readonly Uint8Array[]): Uint8Array[] {
  const payloads: Uint8Array[] = [];
  const decoder = new CapsuleDecoder((payload) => void payloads.push(new Uint8Array(payload)));
  for (const chunk of chunks) decoder.push(chunk);
  return payloads;
}

function cut(bytes: Uint8Array, size: number): Uint8Array[] {
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
}

const tooLong = (error: unknown): boolean => isVpnError(error, 'ERR_FRAME_TOO_LONG');

test('REQ-STREAM-009: a datagram capsule is type, length, context 0 and payload', () => {
  assert.deepEqual(encodeUdp(Uint8Array.of(7, 8)), Uint8Array.of(0, 3, 0, 7, 8));
  assert.deepEqual(encodeUdp(new Uint8Array(63)).subarray(0, 4), Uint8Array.of(0, 0x40, 64, 0));
  assert.deepEqual(encodeUdp(new Uint8Array(16_383)).subarray(0, 6), Uint8Array.of(0, 0x80, 0, 0x40, 0, 0));
  assert.throws(() => encodeUdp(new Uint8Array(MAX_UDP_PAYLOAD_BYTES + 1)), tooLong);
});

test('REQ-STREAM-009: payloads come back whole and in order, wherever the stream is cut', () => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 8 }),
      fc.integer({ min: 1, max: 400 }),
      (sent, size) => {
        const stream = Buffer.concat(sent.map(encodeUdp));
        assert.deepEqual(
          decode(cut(stream, size)).map((payload) => Buffer.from(payload).toString('hex')),
          sent.map((payload) => Buffer.from(payload).toString('hex')),
        );
      },
    ),
  );
  assert.equal(decode([encodeUdp(new Uint8Array(MAX_UDP_PAYLOAD_BYTES))])[0]?.length, MAX_UDP_PAYLOAD_BYTES);
});

test('REQ-STREAM-009: capsules of other types and datagrams of other contexts are skipped', () => {
  const other = Uint8Array.of(0x37, 0x40, 70, ...new Uint8Array(70));
  const context = Uint8Array.of(0, 2, 2, 9);
  const empty = Uint8Array.of(0, 0);
  const stream = Buffer.concat([other, context, empty, encodeUdp(Uint8Array.of(1))]);
  for (const size of [1, 2, 3, 200]) assert.deepEqual(decode(cut(stream, size)), [Uint8Array.of(1)]);
});

test('REQ-STREAM-009: a length beyond the longest datagram is refused before anything is kept for it', () => {
  assert.throws(() => decode([Uint8Array.of(0, 0x80, 1, 0, 8)]), tooLong);
  assert.throws(() => decode([Uint8Array.of(0, 0xff, 255, 255, 255, 255, 255, 255, 255)]), tooLong);
});

test('random bytes end in payloads or in ERR_FRAME_TOO_LONG', () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 20 }), (chunks) => {
      try {
        decode(chunks);
      } catch (error) {
        assert.ok(tooLong(error));
      }
    }),
  );
});
