/** The bench's arithmetic: medians, paired ratios, and when a verdict may be given at all. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  bootstrapMedian,
  formatGoal,
  judge,
  median,
  pairedRatios,
  pairsNeeded,
  quantile,
  welch,
} from './statistics.ts';

const atLeast = { peer: 'peer', relation: '≥', factor: 1.3 } as const;
const atMost = { peer: 'peer', relation: '≤', factor: 0.6 } as const;
const moreThan = { peer: 'peer', relation: '>', factor: 1 } as const;

/** `count` values that scatter evenly by `spread` around `middle`. */
function scattered(middle: number, spread: number, count = 12): number[] {
  return Array.from({ length: count }, (_, index) => middle + spread * ((2 * index) / (count - 1) - 1));
}

test('quantiles of known values, in any order', () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
  assert.equal(quantile([5, 1, 2, 3, 4], 0), 1);
  assert.equal(quantile([5, 1, 2, 3, 4], 1), 5);
  assert.equal(quantile([0, 10], 0.99), 9.9);
  assert.equal(median([]), undefined);
});

test('Welch’s t of known samples, of equal ones, and of too few', () => {
  // Means 3 and 6, variances 2.5 and 2.5, of 5 each: -3 / √(0.5 + 0.5).
  assert.equal(welch([1, 2, 3, 4, 5], [4, 5, 6, 7, 8]), -3);
  assert.equal(welch([4, 5, 6, 7, 8], [1, 2, 3, 4, 5]), 3);
  assert.equal(welch([1, 1], [1, 1, 1]), 0);
  assert.equal(welch([1, 1], [2, 2]), -Infinity);
  assert.equal(welch([1], [1, 2]), undefined);
});

test('ratios are taken pair by pair, and a pair without a side is left out', () => {
  assert.deepEqual(pairedRatios([2, 9, 6, 4], [1, 3, 2, 0]), [2, 3, 3]);
  assert.deepEqual(pairedRatios([2, undefined, 6], [1, 3]), [2]);
});

test('noise that both sides of a pair share does not widen the interval', () => {
  const noise = [1, 0.5, 2, 0.7, 1.4];
  const interval = bootstrapMedian(
    pairedRatios(
      noise.map((factor) => 300 * factor),
      noise.map((factor) => 200 * factor),
    ),
  );
  assert.ok(interval !== undefined && interval.high - interval.low < 1e-9);
});

test('the interval lies within the values, holds their median, and is the same each time', () => {
  fc.assert(
    fc.property(fc.array(fc.double({ min: 0.1, max: 10, noNaN: true }), { minLength: 1, maxLength: 20 }), (values) => {
      const interval = bootstrapMedian(values);
      assert.ok(interval !== undefined);
      assert.ok(interval.low >= Math.min(...values) && interval.high <= Math.max(...values));
      assert.ok(interval.low <= (median(values) ?? 0) + 1e-9 && interval.high >= (median(values) ?? 0) - 1e-9);
      assert.deepEqual(bootstrapMedian(values), interval);
    }),
    { numRuns: 20 },
  );
});

test('a goal near 1 asks for more pairs than a factor', () => {
  assert.equal(pairsNeeded(1), 12);
  assert.equal(pairsNeeded(1.2), 12);
  assert.equal(pairsNeeded(1.3), 3);
  assert.equal(pairsNeeded(0.6), 3);
  assert.equal(pairsNeeded(0.9), 12);
});

test('a narrow interval decides by the median, each way', () => {
  assert.equal(judge(scattered(1.34, 0.02), atLeast).verdict, 'met');
  assert.equal(judge(scattered(1.26, 0.02), atLeast).verdict, 'not met');
  assert.equal(judge(scattered(0.58, 0.01), atMost).verdict, 'met');
  assert.equal(judge(scattered(0.62, 0.01), atMost).verdict, 'not met');
  assert.equal(judge(scattered(1.03, 0.01), moreThan).verdict, 'met');
  assert.equal(judge(Array(12).fill(1), moreThan).verdict, 'not met');
});

test('a wide interval near the goal is inconclusive, on either side', () => {
  assert.equal(judge(scattered(1.45, 0.6), atLeast).verdict, 'inconclusive');
  assert.equal(judge(scattered(1.2, 0.6), atLeast).verdict, 'inconclusive');
  assert.equal(judge([1.35, 1.4, 1.6], atLeast).verdict, 'inconclusive');
});

test('a wide interval decides only where all of it is a tenth away from the goal', () => {
  assert.equal(judge([1.5, 1.8, 2.2], atLeast).verdict, 'met');
  assert.equal(judge([0.6, 0.8, 1.1], atLeast).verdict, 'not met');
  assert.equal(judge([0.3, 0.4, 0.5], atMost).verdict, 'met');
});

test('too few pairs are inconclusive however clear they look; none at all are missing', () => {
  assert.equal(judge([9, 9], atLeast).verdict, 'inconclusive');
  assert.equal(judge(Array(11).fill(3), moreThan).verdict, 'inconclusive');
  assert.equal(judge([], atLeast).verdict, 'missing');
});

test('a goal reads as people write it', () => {
  assert.equal(formatGoal(atLeast), '≥ 1.3 × peer');
});
