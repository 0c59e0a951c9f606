/** The report: what a program and a person read of the same figures. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatReport, formatTable, type Report, rounded, summarise } from './report.ts';
import { formatGoal, judge } from './statistics.ts';

const goal = { peer: 'peer', relation: '≥', factor: 1.3 } as const;

const report: Report = {
  machine: { cpu: 'a processor', cores: 2, kernel: '6.1' },
  versions: { peer: '1.0', absent: 'missing: it is not installed' },
  rounds: 3,
  results: [
    {
      area: 'tunnel',
      name: 'tcp down',
      unit: 'Mbit/s',
      ours: 2345.6,
      spread: { low: 2000, high: 2500, ratios: [summarise(judge([2, 2.01, 1.99], goal), formatGoal(goal))] },
      peers: { peer: 1200, absent: null },
      goal: formatGoal(goal),
      met: true,
    },
  ],
};

test('the table names the figure, the evidence for its goal, and the peer that is missing', () => {
  const text = formatReport(report);
  assert.match(text, /tcp down\s+Mbit\/s\s+2350\s+2000–2500\s+1200\s+–/);
  assert.match(text, /tcp down ≥ 1\.3 × peer: 2 \[1\.99–2\.01\], 3 pairs: met/);
  assert.match(text, /absent: missing: it is not installed/);
});

test('a goal whose peer is missing is said to be, with no numbers', () => {
  assert.deepEqual(summarise(judge([], goal), formatGoal(goal)), {
    goal: '≥ 1.3 × peer',
    verdict: 'missing',
    pairs: 0,
    median: null,
    low: null,
    high: null,
  });
});

test('figures are rounded to three digits', () => {
  assert.deepEqual([0, 0.012345, 1.2345, 123_456].map(rounded), [0, 0.0123, 1.23, 123_000]);
});

test('columns are as wide as their widest cell', () => {
  assert.deepEqual(
    formatTable([
      ['a', 'b', 'c'],
      ['long', '', '12'],
    ]),
    ['a     b   c', 'long     12'],
  );
});
