/** Whether the time of a refusal tells which names there are; `npm run bench -- timing` prints the figures. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { measureTiming } from '../bench/timing.ts';

// It hashes a thousand passwords, on a busy machine slowly.
const timeout = 240_000;

test('a wrong password takes as long for nobody as for somebody; without the hash for nobody this test would fail', {
  timeout,
}, async (t) => {
  const { report } = await measureTiming(true, (line) => t.diagnostic(line));
  assert.equal(report.results.length, 2);
  for (const result of report.results) assert.ok(result.met, JSON.stringify(result));
});
