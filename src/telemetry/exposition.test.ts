import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { Histogram } from '../base/histogram.ts';
import { Exposition } from './exposition.ts';

const CATALOGUE = {
  a_total: { type: 'counter', labels: ['why'], help: 'With a \\ and\na line.' },
  b_seconds: { type: 'histogram', labels: [], help: 'Times.' },
  c: { type: 'gauge', labels: [], help: 'Nothing is said of it.' },
} as const;

test('writes what Prometheus reads, escaped, in the order of the catalogue, without metrics that have no value', () => {
  const out = new Exposition(CATALOGUE);
  const times = new Histogram([0.1, 1]);
  for (const seconds of [0.05, 0.1, 0.5, 7]) times.observe(seconds);
  out.histogram('b_seconds', {}, times.bounds, times.read());
  out.add('a_total', { why: 'a "quote"\n\\' }, 3);
  out.add('a_total', { why: 'x' }, Number.POSITIVE_INFINITY);
  assert.equal(
    out.toString(),
    [
      '# HELP a_total With a \\\\ and\\na line.',
      '# TYPE a_total counter',
      'a_total{why="a \\"quote\\"\\n\\\\"} 3',
      'a_total{why="x"} +Inf',
      '# HELP b_seconds Times.',
      '# TYPE b_seconds histogram',
      'b_seconds_bucket{le="0.1"} 2',
      'b_seconds_bucket{le="1"} 3',
      'b_seconds_bucket{le="+Inf"} 4',
      'b_seconds_sum 7.65',
      'b_seconds_count 4',
      '',
    ].join('\n'),
  );
});

test('refuses labels that the catalogue does not have, and a name that it does not have', () => {
  const out = new Exposition(CATALOGUE);
  for (const labels of [{}, { why: 'x', who: 'y' }, { who: 'y' }]) {
    assert.throws(() => out.add('a_total', labels, 1), { code: 'ERR_INVARIANT' });
  }
  assert.throws(() => out.add('d' as 'c', {}, 1), { code: 'ERR_INVARIANT' });
});

const hasPromtool = spawnSync('promtool', ['--version']).status === 0;

test('promtool reads it', {
  skip: hasPromtool ? false : 'promtool (Debian package prometheus) is not installed',
}, () => {
  const out = new Exposition(CATALOGUE);
  out.add('a_total', { why: 'a "quote"\n\\' }, 3);
  out.histogram('b_seconds', {}, [1], { counts: [1, 2], sum: 3 });
  const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
    input: out.toString(),
    encoding: 'utf8',
  });
  assert.equal(status, 0, stdout + stderr);
});
