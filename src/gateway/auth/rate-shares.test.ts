// A rate that several workers keep is never exceeded by their parts, and goes to those who want it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { shareRate } from './rate-shares.ts';

const RATE = { bytesPerSecond: 1_000_000, burstBytes: 100_000 };

test('the parts are never more than the rate, and never nothing', () => {
  const demand = fc.record({
    sessions: fc.integer({ min: 1, max: 100 }),
    bytesPerSecond: fc.integer({ min: 0, max: 3_000_000 }),
    isWaiting: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(demand, { minLength: 1, maxLength: 16 }), (demands) => {
      const parts = shareRate(RATE, demands).map(({ bytesPerSecond }) => bytesPerSecond);
      const total = parts.reduce((sum, part) => sum + part, 0);
      assert.ok(total <= 1_000_000 * 1.000001, `${total}`);
      assert.ok(total >= 1_000_000 * 0.999, `nothing is held back: ${total}`);
      for (const part of parts) assert.ok(part > 0);
    }),
  );
});

test('those that wait share what the others do not use, by their sessions', () => {
  const parts = shareRate(RATE, [
    { sessions: 1, bytesPerSecond: 300_000, isWaiting: true },
    { sessions: 3, bytesPerSecond: 300_000, isWaiting: true },
    { sessions: 5, bytesPerSecond: 80_000, isWaiting: false },
  ]).map(({ bytesPerSecond }) => bytesPerSecond);
  assert.equal(parts[2], 100_000);
  const [one = 0, three = 0] = parts;
  assert.ok(three / one > 2.5 && three / one <= 3, `${one}, ${three}`);
});

test('it settles where each session has the same, whatever it was before', () => {
  let parts = [900_000, 100_000];
  for (let turn = 0; turn < 10; turn++) {
    const demands = parts.map((part, at) => ({ sessions: at + 1, bytesPerSecond: part, isWaiting: true }));
    parts = shareRate(RATE, demands).map(({ bytesPerSecond }) => bytesPerSecond);
  }
  assert.ok(Math.abs((parts[1] ?? 0) / (parts[0] ?? 1) - 2) < 0.15, parts.join());
});
