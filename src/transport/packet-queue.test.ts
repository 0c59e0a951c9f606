/** The queue against a list of frames, its bounds, and its memory. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../base/errors.ts';
import { FrameType, writeFrameHeader } from '../protocol/frame.ts';
import { PacketQueue } from './packet-queue.ts';

/** A whole frame whose payload repeats `fill`. */
function frame(length: number, fill = 0): Uint8Array {
  const bytes = new Uint8Array(4 + length).fill(fill);
  writeFrameHeader(bytes, 0, FrameType.packet, length);
  return bytes;
}

test('frames come out as they went in, in batches of whole frames, whatever the order of calls', () => {
  const step = fc.oneof(
    {
      weight: 20,
      arbitrary: fc.record({
        kind: fc.constant('push' as const),
        lengths: fc.array(fc.nat(900), { minLength: 1, maxLength: 3 }),
      }),
    },
    {
      weight: 20,
      arbitrary: fc.record({ kind: fc.constant('take' as const), max: fc.integer({ min: 1, max: 3000 }) }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('clear' as const) }) },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant('release' as const) }) },
  );
  fc.assert(
    fc.property(fc.constantFrom(1, 1, 100), fc.array(step, { maxLength: 120, size: 'max' }), (scale, steps) => {
      const limit = 4096 * scale;
      const queue = new PacketQueue(limit);
      const model: Uint8Array[] = [];
      let fill = 0;
      for (const action of steps) {
        const queued = model.reduce((sum, bytes) => sum + bytes.length, 0);
        assert.equal(queue.queuedBytes, queued);
        assert.ok(queue.heldBytes <= limit);
        if (action.kind === 'push') {
          fill = (fill + 1) & 0xff;
          const frames = action.lengths.map((length) => frame(length * scale, fill));
          const bytes = Buffer.concat([Buffer.alloc(3), ...frames, Buffer.alloc(5)]);
          const taken = queue.push(bytes, 3, bytes.length - 5);
          if (taken) model.push(...frames);
          // Half of the queue can always be used: what stands in the way of the rest is that frames do not wrap.
          const length = bytes.length - 8;
          if (queued + length <= limit / 2) assert.equal(taken, true);
          if (queued + length > limit) assert.equal(taken, false);
        } else if (action.kind === 'take') {
          const batch = queue.take(action.max * scale);
          const expected: Uint8Array[] = [];
          let length = 0;
          for (const bytes of model) {
            if (expected.length > 0 && length + bytes.length > action.max * scale) break;
            length += bytes.length;
            expected.push(bytes);
          }
          if (model.length === 0) {
            assert.equal(batch, undefined);
            continue;
          }
          assert.ok(batch !== undefined && batch.length > 0);
          // A batch may end early, where the ring wraps, but never within a frame.
          const whole: Uint8Array[] = [];
          let got = 0;
          while (got < batch.length) {
            const next = model.shift();
            assert.ok(next !== undefined);
            whole.push(next);
            got += next.length;
          }
          assert.deepEqual(Buffer.concat(whole), Buffer.from(batch));
          assert.ok(batch.length <= length);
        } else if (action.kind === 'clear') {
          queue.clear();
          model.length = 0;
        } else {
          queue.releaseIfIdle();
        }
      }
    }),
    { numRuns: 150 },
  );
});

test('a full queue refuses and keeps what it has', () => {
  const queue = new PacketQueue(1000);
  assert.equal(queue.push(frame(596, 1), 0, 600), true);
  assert.equal(queue.push(frame(596, 2), 0, 600), false);
  assert.equal(queue.push(frame(396, 3), 0, 400), true);
  assert.equal(queue.push(frame(0, 4), 0, 4), false);
  assert.equal(queue.take(1)?.[4], 1);
  assert.equal(queue.take(1)?.[4], 3);
  assert.equal(queue.take(1), undefined);
});

test('a frame longer than the batch is still taken, alone', () => {
  const queue = new PacketQueue(200_000);
  queue.push(frame(65_579, 1), 0, 65_583);
  queue.push(frame(10, 2), 0, 14);
  assert.equal(queue.take(16_384)?.length, 65_583);
  assert.equal(queue.take(16_384)?.length, 14);
});

test('memory comes with the first frame and goes when the queue is unused', () => {
  const queue = new PacketQueue(1024 * 1024);
  assert.equal(queue.heldBytes, 0);
  queue.push(frame(100), 0, 104);
  const first = queue.heldBytes;
  assert.ok(first > 0 && first <= 128 * 1024);
  for (let i = 0; i < 4; i++) queue.push(frame(60_000), 0, 60_004);
  assert.ok(queue.heldBytes > first);
  assert.equal(queue.releaseIfIdle(), false, 'not while frames wait');
  assert.equal(queue.releaseIfIdle(), false);
  queue.clear();
  queue.push(frame(100), 0, 104);
  queue.take(1);
  assert.equal(queue.releaseIfIdle(), false, 'not when it was used since the last call');
  assert.equal(queue.releaseIfIdle(), true);
  assert.equal(queue.heldBytes, 0);
  assert.equal(queue.push(frame(100), 0, 104), true);
});

test('bytes that are not whole frames are refused', () => {
  const queue = new PacketQueue(1000);
  for (const [start, end] of [
    [0, 103],
    [0, 3],
    [0, 0],
    [1, 104],
  ] as const) {
    assert.throws(
      () => queue.push(frame(100), start, end),
      (error) => isVpnError(error, 'ERR_INVARIANT'),
    );
  }
  assert.equal(queue.queuedBytes, 0);
});
