/**
 * The parts of `npm run check` and `npm test`: the tools that look at the code, and the suites of tests.
 *
 * Hides how a tool is started and how node:test reports. A suite is a folder; every `*.test.ts` of the checkout belongs
 * to exactly one, so that no test is left out unseen. Nothing here decides what is run or printed: see check.ts, test.ts.
 */

import { spawn } from 'node:child_process';
import { globSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { layOutBuilt } from './packaging/programs.ts';

/** The checkout. */
export const ROOT = dirname(import.meta.dirname);

/** A program that looks at the code. */
export interface Tool {
  readonly name: string;
  /** A script of node_modules, with its arguments. */
  readonly script: readonly string[];
}

export const TOOLS: readonly Tool[] = [
  { name: 'types', script: ['typescript/bin/tsc', '-p', '.'] },
  { name: 'types of the page', script: ['typescript/bin/tsc', '-p', 'src/web/tsconfig.json'] },
  { name: 'lint and format', script: ['@biomejs/biome/bin/biome', 'check', '--error-on-warnings'] },
  { name: 'dead code', script: ['knip/bin/knip.js', '--no-progress'] },
];

/** What writes the formatting and the safe fixes. */
export const FORMATTER: Tool = { name: 'format', script: ['@biomejs/biome/bin/biome', 'check', '--write'] };

/** A folder of tests and the rules for running it. Times in milliseconds. */
export interface Suite {
  readonly name: string;
  readonly patterns: readonly string[];
  /** Of these, what another suite has. */
  readonly except?: readonly string[];
  /** Files at a time. */
  readonly concurrency: number;
  readonly testTimeoutMs: number;
  readonly fileTimeoutMs: number;
  readonly suiteTimeoutMs: number;
  /** Our command runs as it is where it is installed, and starts several times as fast. */
  readonly isBuilt?: boolean;
}

const minutes = (count: number): number => count * 60_000;
const parallel = availableParallelism();

/** Tests of the lab that look at how long something takes, or need the processors for themselves. */
const MEASURING = [
  'test/lab/{demo,flood,gateway-faults,hostile,impairment,login-burst,processes,workers}.test.ts',
  'test/lab/tunnel-{faults,lifecycle,queue,rekey,traffic}.test.ts',
];

/** In the order in which they are run: what fails fast comes first. */
export const SUITES: readonly Suite[] = [
  {
    name: 'repository',
    patterns: ['test/*.test.ts'],
    concurrency: parallel,
    testTimeoutMs: 60_000,
    fileTimeoutMs: minutes(2),
    suiteTimeoutMs: minutes(3),
  },
  {
    name: 'unit',
    patterns: ['{src,bin,scripts,test/bench,test/support}/**/*.test.ts'],
    concurrency: parallel,
    testTimeoutMs: 30_000,
    fileTimeoutMs: 60_000,
    suiteTimeoutMs: minutes(6),
  },
  {
    name: 'sim',
    patterns: ['test/sim/**/*.test.ts'],
    concurrency: parallel,
    testTimeoutMs: 60_000,
    fileTimeoutMs: minutes(5),
    suiteTimeoutMs: minutes(8),
  },
  {
    name: 'fuzz',
    patterns: ['test/fuzz/**/*.test.ts'],
    concurrency: parallel,
    testTimeoutMs: 120_000,
    fileTimeoutMs: minutes(3),
    suiteTimeoutMs: minutes(4),
  },
  {
    name: 'examples',
    patterns: ['examples/**/*.test.ts', 'test/examples/**/*.test.ts'],
    concurrency: 1,
    testTimeoutMs: 60_000,
    fileTimeoutMs: minutes(2),
    suiteTimeoutMs: minutes(2),
  },
  {
    // Each has namespaces of its own, and waits most of the time.
    name: 'lab',
    patterns: ['test/lab/**/*.test.ts'],
    except: MEASURING,
    concurrency: parallel,
    testTimeoutMs: 180_000,
    fileTimeoutMs: minutes(10),
    suiteTimeoutMs: minutes(20),
    isBuilt: true,
  },
  {
    name: 'lab-alone',
    patterns: MEASURING,
    concurrency: 1,
    testTimeoutMs: 180_000,
    fileTimeoutMs: minutes(10),
    suiteTimeoutMs: minutes(20),
    isBuilt: true,
  },
  {
    name: 'browser',
    patterns: ['test/browser/**/*.test.ts'],
    concurrency: 1,
    testTimeoutMs: 120_000,
    fileTimeoutMs: minutes(5),
    suiteTimeoutMs: minutes(6),
  },
  {
    name: 'interop',
    patterns: ['test/interop/**/*.test.ts'],
    concurrency: 1,
    testTimeoutMs: 120_000,
    fileTimeoutMs: minutes(4),
    suiteTimeoutMs: minutes(6),
    isBuilt: true,
  },
];

const NOT_OURS = ['**/node_modules/**', 'dist/**', '.cache/**'];

/** The test files of a suite, sorted; paths from the checkout. */
export function suiteFiles(suite: Suite): string[] {
  return globSync(suite.patterns, { cwd: ROOT, exclude: [...NOT_OURS, ...(suite.except ?? [])] }).sort();
}

/** Test files that no suite would run. */
export function strayTests(): string[] {
  const known = new Set(SUITES.flatMap(suiteFiles));
  return globSync('**/*.test.{ts,mts,js,mjs}', { cwd: ROOT, exclude: NOT_OURS }).filter((file) => !known.has(file));
}

export interface ToolResult {
  readonly name: string;
  readonly ok: boolean;
  readonly ms: number;
  readonly output: string;
}

/** Runs a tool to its end; its output is kept, not printed. */
export function runTool(tool: Tool): Promise<ToolResult> {
  const [script = '', ...args] = tool.script;
  const started = performance.now();
  return new Promise((resolve) => {
    const colour = process.stdout.isTTY ? { FORCE_COLOR: '1' } : {};
    const child = spawn(process.execPath, [join(ROOT, 'node_modules', script), ...args], {
      cwd: ROOT,
      env: { ...process.env, ...colour },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let output = '';
    const end = (ok: boolean): void => resolve({ name: tool.name, ok, ms: performance.now() - started, output });
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text: string) => {
        output += text;
      });
    }
    child.once('error', (error) => {
      output += error.message;
      end(false);
    });
    child.once('close', (status) => end(status === 0));
  });
}

export interface SuiteResult {
  readonly name: string;
  readonly files: number;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  readonly ms: number;
  /** What was skipped: reason → number of tests. */
  readonly reasons: ReadonlyMap<string, number>;
}

/** node:test's own closing lines: printed per suite they would look like the result of the whole run. */
const CLOSING_LINE = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/;

/**
 * Runs a suite; `write` gets the text of the spec reporter as it comes. A suite that outlives `limitMs` or `stop` is
 * ended and counts as failed. With `failuresOnly` the tests that passed are not listed.
 */
export async function runSuite(
  suite: Suite,
  write: (text: string) => void,
  options: { limitMs?: number; stop?: AbortSignal; failuresOnly?: boolean } = {},
): Promise<SuiteResult> {
  const started = performance.now();
  const files = suiteFiles(suite);
  const reasons = new Map<string, number>();
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  let complete = files.length === 0;
  const limitMs = Math.max(1, Math.ceil(Math.min(suite.suiteTimeoutMs, options.limitMs ?? Number.POSITIVE_INFINITY)));

  if (files.length > 0) {
    const limit = AbortSignal.timeout(limitMs);
    const events = run({
      cwd: ROOT,
      files: files.map((file) => join(ROOT, file)),
      concurrency: suite.concurrency,
      timeout: suite.testTimeoutMs,
      signal: options.stop === undefined ? limit : AbortSignal.any([limit, options.stop]),
      execArgv: [
        '--disable-warning=ExperimentalWarning',
        '--conditions=customvpn-source',
        `--import=${join(ROOT, 'test/support/watchdog.ts')}`,
      ],
      env: {
        // A quarter less processor time: every file is a process that loads the same modules.
        NODE_COMPILE_CACHE: join(ROOT, '.cache/compile'),
        ...process.env,
        CUSTOMVPN_TEST_FILE_LIMIT_MS: String(suite.fileTimeoutMs),
        ...(suite.isBuilt === true ? { CUSTOMVPN_BUILT_COMMAND: await layOutBuilt(join(ROOT, '.cache/built')) } : {}),
      },
    });
    const report = spec();
    report.setEncoding('utf8').on('data', write);
    for await (const event of events) {
      if (event.type === 'test:summary' && event.data.file === undefined) {
        const counts = event.data.counts;
        passed = counts.passed;
        failed = counts.failed + counts.cancelled;
        skipped = counts.skipped + counts.todo;
        complete = true;
      }
      if (event.type === 'test:pass' && event.data.skip !== undefined) {
        const reason =
          typeof event.data.skip === 'string' && event.data.skip !== '' ? event.data.skip : 'no reason given';
        reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
      }
      if (event.type === 'test:diagnostic' && event.data.nesting === 0 && CLOSING_LINE.test(event.data.message))
        continue;
      if (options.failuresOnly === true && (event.type === 'test:pass' || event.type === 'test:start')) continue;
      if (!report.write(event)) await new Promise((resolve) => report.once('drain', resolve));
    }
    await new Promise<void>((resolve) => {
      report.once('end', resolve);
      report.end();
    });
    if (limit.aborted) write(`✖ the suite ${suite.name} was ended: it had not finished after ${limitMs / 1000} s\n`);
    if (limit.aborted || options.stop?.aborted === true || !complete) failed += failed === 0 ? 1 : 0;
  }
  return { name: suite.name, files: files.length, passed, failed, skipped, ms: performance.now() - started, reasons };
}

/** `12.3 s` */
export function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

/** One line of a table of results. */
export function row(ok: boolean, name: string, ms: number, remark: string): string {
  return `${ok ? '✔' : '✖'} ${name.padEnd(16)}${seconds(ms).padStart(9)}  ${remark}`.trimEnd();
}

/** A suite's counts in words. */
export function countsText(result: SuiteResult): string {
  if (result.files === 0) return 'no tests';
  return `${result.passed} passed, ${result.failed} failed, ${result.skipped} skipped`;
}
