// The store against a list of frames for each flow.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../base/errors.ts';
import { FLOWS, FrameStore, LEAST_STORE_BYTES } from './frame-store.ts';

const step = fc.oneof(
  {
    weight: 30,
    arbitrary: fc.record({
      kind: fc.constant('put' as const),
      flow: fc.nat(5),
      length: fc.integer({ min: 4, max: 900 }),
    }),
  },
  { weight: 15, arbitrary: fc.record({ kind: fc.constant('put' as const), flow: fc.nat(5), length: fc.constant(8) }) },
  { weight: 25, arbitrary: fc.record({ kind: fc.constant('remove' as const), flow: fc.nat(5) }) },
  { weight: 5, arbitrary: fc.record({ kind: fc.constant('front' as const), flow: fc.nat(5), bytes: fc.nat(50) }) },
  { weight: 5, arbitrary: fc.record({ kind: fc.constant('back' as const), flow: fc.nat(5), bytes: fc.nat(50) }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('compact' as const) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('resize' as const), times: fc.constantFrom(0.5, 1, 2) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('clear' as const) }) },
);

test('every flow has its frames back in order, wherever they were moved', () => {
  let compacted = 0;
  fc.assert(
    fc.property(fc.array(step, { minLength: 50, maxLength: 600, size: 'max' }), (steps) => {
      const store = new FrameStore(4096);
      const model: { bytes: Buffer; time: number }[][] = Array.from({ length: 6 }, () => []);
      let fill = 0;
      const used = () => model.flat().reduce((sum, { bytes }) => sum + bytes.length, 0);
      for (const action of steps) {
        if (action.kind === 'put') {
          const { flow, length } = action;
          if (!store.hasRoom(length) && store.isWorthCompacting(length)) {
            store.compact();
            compacted += 1;
            assert.ok(store.hasRoom(length), 'moving frames together makes the room that it promised');
          }
          if (!store.hasRoom(length)) continue;
          fill = (fill + 1) & 0xff;
          const bytes = Buffer.alloc(length, fill);
          store.put(Buffer.concat([Buffer.alloc(3), bytes, Buffer.alloc(2)]), 3, 3 + length, flow, fill);
          model[flow]?.push({ bytes, time: fill });
        } else if (action.kind === 'remove') {
          if (store.isEmpty(action.flow)) continue;
          store.remove(action.flow);
          model[action.flow]?.shift();
        } else if (action.kind === 'front' || action.kind === 'back') {
          const head = model[action.flow]?.[0];
          if (head === undefined || head.bytes.length <= action.bytes + 4) continue;
          if (action.kind === 'front') store.cutFront(action.flow, action.bytes);
          else store.cutBack(action.flow, action.bytes);
          head.bytes = head.bytes.subarray(action.bytes);
        } else if (action.kind === 'resize') {
          const size = store.sizeBytes * action.times;
          if (size < used() || size > 65_536) continue;
          store.resize(size);
          assert.equal(store.sizeBytes, size);
        } else if (action.kind === 'compact') store.compact();
        else {
          store.clear();
          for (const frames of model) frames.length = 0;
        }
        assert.equal(store.usedBytes, used());
        for (const [flow, frames] of model.entries()) {
          const [head] = frames;
          assert.equal(store.isEmpty(flow), head === undefined);
          if (head === undefined) continue;
          assert.equal(store.length(flow), head.bytes.length);
          assert.equal(store.time(flow), head.time);
          const at = store.offset(flow);
          assert.ok(store.ring.subarray(at, at + head.bytes.length).equals(head.bytes));
        }
      }
    }),
    { numRuns: 200 },
  );
  assert.ok(compacted > 50, `compacted only ${compacted} times`);
});

test('one flow alone never needs its frames moved while half of the memory is free', () => {
  const store = new FrameStore(LEAST_STORE_BYTES);
  const bytes = Buffer.alloc(1500, 1);
  for (let turn = 0; turn < 10_000; turn++) {
    const length = 40 + ((turn * 617) % 1460);
    while (!store.hasRoom(length)) {
      assert.ok(store.usedBytes > LEAST_STORE_BYTES / 2 - length);
      store.remove(0);
    }
    store.put(bytes, 0, length, 0, 0);
  }
});

test('a frame that stays does not make the table of frames grow without end', () => {
  const store = new FrameStore(LEAST_STORE_BYTES);
  store.put(Buffer.alloc(100, 7), 0, 100, 3, 42);
  for (let turn = 0; turn < 100_000; turn++) {
    if (!store.hasRoom(8)) {
      assert.ok(store.isWorthCompacting(8));
      store.compact();
    }
    store.put(Buffer.alloc(8), 0, 8, turn % 3, 0);
    store.remove(turn % 3);
  }
  assert.equal(store.time(3), 42);
  assert.ok(store.ring.subarray(store.offset(3), store.offset(3) + 100).every((byte) => byte === 7));
});

test('many small frames are bounded by the table before the memory is full', () => {
  const store = new FrameStore(LEAST_STORE_BYTES);
  let frames = 0;
  while (store.hasRoom(4)) {
    store.put(Buffer.alloc(4), 0, 4, frames % FLOWS, 0);
    frames += 1;
  }
  assert.ok(frames >= 128 && frames <= 256, `${frames} frames`);
  assert.equal(store.isWorthCompacting(4), false);
});

test('memory is not made smaller than its frames', () => {
  const store = new FrameStore(LEAST_STORE_BYTES);
  store.put(Buffer.alloc(1000), 0, 1000, 0, 0);
  assert.throws(
    () => store.resize(999),
    (error) => isVpnError(error, 'ERR_INVARIANT'),
  );
});
