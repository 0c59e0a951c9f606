/**
 * `npm test`: every check and every suite, one after the other, and one line with the result.
 *
 *   npm test [-- SUITE…]      the names of suites.ts; without one, everything
 *
 * Each tool counts as one test. A suite that fails does not keep the others from running. The last line is
 * `N passed, N failed, N skipped`; the status is 0 only when nothing failed.
 */

import { countsText, row, runSuite, runTool, SUITES, type SuiteResult, strayTests, TOOLS } from './suites.ts';

/** The whole run ends before this, whatever hangs. */
const LIMIT_MS = 39 * 60_000;

const started = performance.now();
const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => !SUITES.some((suite) => suite.name === name));
if (unknown.length > 0) {
  console.error(`unknown suite ${unknown.join(', ')}; there are: ${SUITES.map((suite) => suite.name).join(', ')}`);
  process.exit(64);
}

const stop = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => stop.abort());

let passed = 0;
let failed = 0;
let skipped = 0;
const table: string[] = [];

if (wanted.length === 0) {
  heading('tools');
  for (const result of await Promise.all(TOOLS.map(runTool))) {
    if (result.ok) passed += 1;
    else failed += 1;
    if (!result.ok) console.log(`${result.output.trimEnd()}\n`);
    const line = row(result.ok, result.name, result.ms, '');
    console.log(line);
    table.push(line);
  }
  const stray = strayTests();
  if (stray.length > 0) {
    failed += 1;
    table.push(`✖ in no suite, so never run: ${stray.join(', ')}`);
  }
}

const results: SuiteResult[] = [];
for (const suite of SUITES) {
  if (wanted.length > 0 && !wanted.includes(suite.name)) continue;
  if (stop.signal.aborted) break;
  heading(`${suite.name} tests`);
  const limitMs = LIMIT_MS - (performance.now() - started);
  const result = await runSuite(suite, (text) => process.stdout.write(text), { limitMs, stop: stop.signal });
  results.push(result);
  passed += result.passed;
  failed += result.failed;
  skipped += result.skipped;
  table.push(row(result.failed === 0, `${suite.name} tests`, result.ms, countsText(result)));
}
if (stop.signal.aborted) {
  failed += 1;
  table.push('✖ ended by a signal before all suites had run');
}

heading('result');
for (const line of table) console.log(line);
const reasons = new Map<string, number>();
for (const result of results) {
  for (const [reason, count] of result.reasons) reasons.set(reason, (reasons.get(reason) ?? 0) + count);
}
if (reasons.size > 0) console.log('\nskipped, and why:');
for (const [reason, count] of reasons) console.log(`  ${count} × ${reason}`);
console.log(`\n${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exitCode = failed === 0 ? 0 : 1;

function heading(text: string): void {
  console.log(`\n── ${text} ${'─'.repeat(Math.max(0, 76 - text.length))}`);
}
