/**
 * Runs the commands of a lab: one that ends, or one that stays in the background until it is stopped.
 *
 * Hides child processes, their output and `/proc`. Commands are argument vectors, never shell strings. Nothing waits
 * for a fixed time: a background process is started when its readiness condition holds, and a wait is a condition with
 * a deadline. It knows nothing of networks.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** Carried in the environment of every process of a lab, so that what is left behind can be told from the host's own. */
export const RUN_VARIABLE = 'CUSTOMVPN_LAB_RUN';

/** How much of a background process's output is kept, from its end. */
const KEPT_OUTPUT_CHARACTERS = 256 * 1024;
/** How long the output of an ended process is waited for when something else still holds its end of the pipe. */
const DESCENDANT_MS = 300;
/** The unit of the times in `/proc/PID/stat`: `USER_HZ`, 100 on every Linux architecture that Node runs on. */
const TICKS_PER_SECOND = 100;

/** A command of the lab failed, or a condition did not come true in time. The message holds what the command said. */
export class LabError extends Error {
  override readonly name = 'LabError';
}

export interface RunOptions {
  /** Written to standard input. */
  input?: string;
  timeoutMs?: number;
  env?: Readonly<Record<string, string>>;
  /** Do not throw on a status other than 0. */
  anyStatus?: boolean;
}

export interface RunResult {
  /** The exit status; 128 + signal number is not used: a signal is -1. */
  status: number;
  stdout: string;
  stderr: string;
}

/**
 * Runs a command to its end.
 *
 * @throws {LabError} when it cannot be started, takes longer than `timeoutMs` (default 60 s), or ends with a status
 *   other than 0 and `anyStatus` is not set
 */
export async function run(argv: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const child = spawnChild(argv, options.env, options.input === undefined ? 'ignore' : 'pipe');
  const output = { stdout: '', stderr: '' };
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    output.stdout += text;
  });
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    output.stderr += text;
  });
  // A command that ends without reading its input is judged by its status.
  child.stdin?.on('error', () => {});
  child.stdin?.end(options.input);
  const timeoutMs = options.timeoutMs ?? 60_000;
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  const status = await ended(child, argv).finally(() => clearTimeout(timer));
  if (late) throw new LabError(`${quote(argv)}: not done after ${timeoutMs} ms\n${output.stderr}`);
  if (status !== 0 && options.anyStatus !== true) {
    throw new LabError(`${quote(argv)}: status ${status}\n${(output.stderr || output.stdout).trim()}`);
  }
  return { status, ...output };
}

/** When a background process counts as started: a line of its output, or a condition. */
export type Ready = RegExp | (() => boolean | Promise<boolean>);

export interface BackgroundOptions {
  env?: Readonly<Record<string, string>>;
  ready?: Ready;
  readyTimeoutMs?: number;
  input?: string;
  /** Keeps standard input open for `write`. */
  isTyped?: boolean;
  /** What `stop` sends first; default SIGTERM. */
  stopSignal?: NodeJS.Signals;
}

/** A process that runs until it is stopped. */
export class BackgroundProcess implements AsyncDisposable {
  readonly argv: readonly string[];
  readonly pid: number;
  /** Resolves with the exit status, -1 after a signal. */
  readonly exited: Promise<number>;
  readonly #child: ChildProcess;
  readonly #stopSignal: NodeJS.Signals;
  #output = '';
  #running = true;

  private constructor(argv: readonly string[], options: BackgroundOptions) {
    this.argv = argv;
    this.#stopSignal = options.stopSignal ?? 'SIGTERM';
    const isTyped = options.isTyped === true;
    this.#child = spawnChild(argv, options.env, options.input === undefined && !isTyped ? 'ignore' : 'pipe');
    this.#child.stdin?.on('error', () => {});
    if (!isTyped) this.#child.stdin?.end(options.input);
    this.pid = this.#child.pid ?? -1;
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.#output = (this.#output + text).slice(-KEPT_OUTPUT_CHARACTERS);
      });
    }
    this.exited = ended(this.#child, argv).finally(() => {
      this.#running = false;
    });
    this.exited.catch(() => {});
  }

  /**
   * Starts a process and waits until it is ready.
   *
   * @throws {LabError} when it ends before it is ready, or is not ready in time (default 20 s); it is stopped then
   */
  static async start(argv: readonly string[], options: BackgroundOptions = {}): Promise<BackgroundProcess> {
    const process = new BackgroundProcess(argv, options);
    const ready = options.ready;
    if (ready === undefined) return process;
    try {
      await until(
        `${quote(argv)} to be ready`,
        () => {
          if (ready instanceof RegExp && ready.test(process.output)) return true;
          if (!process.running) throw new LabError(`${quote(argv)}: ended before it was ready`);
          return ready instanceof RegExp ? false : ready();
        },
        { timeoutMs: options.readyTimeoutMs ?? 20_000 },
      );
      return process;
    } catch (cause) {
      await process.stop();
      const why = cause instanceof Error ? cause.message : String(cause);
      throw new LabError(`${why}\n${process.output.slice(-4000).trim()}`, { cause });
    }
  }

  /** What it has written to both streams, the end of it. */
  get output(): string {
    return this.#output;
  }

  get running(): boolean {
    return this.#running;
  }

  /** Writes to standard input, of a process that was started with `isTyped`. */
  write(text: string): void {
    this.#child.stdin?.write(text);
  }

  signal(signal: NodeJS.Signals): void {
    if (this.#running) this.#child.kill(signal);
  }

  /** Asks the process to end, and kills it after `timeoutMs`. Returns the status; -1 after a signal. Idempotent. */
  async stop(timeoutMs = 8000): Promise<number> {
    this.signal(this.#stopSignal);
    const timer = setTimeout(() => this.signal('SIGKILL'), timeoutMs);
    try {
      return await this.exited;
    } catch {
      return -1;
    } finally {
      clearTimeout(timer);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

/**
 * Waits until a condition holds.
 *
 * @throws {LabError} naming `what`, when it does not within `timeoutMs` (default 10 s)
 */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  options: { timeoutMs?: number; intervalMs?: number } = {},
): Promise<void> {
  const timeoutMs = options.timeoutMs ?? 10_000;
  const deadline = performance.now() + timeoutMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new LabError(`waited ${timeoutMs} ms for ${what}`);
    await delay(options.intervalMs ?? 20);
  }
}

/**
 * Seconds of processor time, user and system, that the trees under `pids` have used so far: all threads, living
 * descendants, and children that were waited for.
 */
export function cpuSeconds(pids: Iterable<number>): number {
  let ticks = 0;
  for (const fields of treesUnder(pids).values()) {
    ticks += fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
  }
  return ticks / TICKS_PER_SECOND;
}

/** Bytes of memory that the trees under `pids` hold; what several processes share counts once, in parts. */
export function residentBytes(pids: Iterable<number>): number {
  let kib = 0;
  for (const pid of treesUnder(pids).keys()) {
    kib += Number(/^Pss:\s+(\d+) kB$/m.exec(readProc(`/proc/${pid}/smaps_rollup`))?.[1] ?? 0);
  }
  return kib * 1024;
}

/** The fields of `/proc/PID/stat` from the state on, of every living process under `pids`, those included. */
function treesUnder(pids: Iterable<number>): Map<number, string[]> {
  const processes = new Map<number, string[]>();
  for (const pid of processIds()) {
    const fields = statFields(pid);
    if (fields !== undefined) processes.set(pid, fields);
  }
  const roots = new Set(pids);
  return new Map(
    [...processes].filter(([pid]) => {
      let ancestor = pid;
      while (!roots.has(ancestor) && ancestor > 1) ancestor = Number(processes.get(ancestor)?.[1] ?? 0);
      return ancestor > 1;
    }),
  );
}

/** The processes, but this one, whose environment says that they belong to this run: pid → command line. */
export function processesOfRun(run: string): Map<number, string> {
  const found = new Map<number, string>();
  for (const pid of processIds()) {
    if (pid === process.pid) continue;
    const environment = readProc(`/proc/${pid}/environ`);
    if (!environment.split('\0').includes(`${RUN_VARIABLE}=${run}`)) continue;
    // A zombie has nothing left but its entry, which its parent is about to read.
    if (statFields(pid)?.[0] === 'Z') continue;
    found.set(pid, readProc(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim());
  }
  return found;
}

/** An argument vector as people read it. */
export function quote(argv: readonly string[]): string {
  return argv.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : JSON.stringify(word))).join(' ');
}

function spawnChild(argv: readonly string[], env: RunOptions['env'], stdin: 'ignore' | 'pipe'): ChildProcess {
  const [command, ...rest] = argv;
  if (command === undefined) throw new LabError('an empty command');
  return spawn(command, rest, { stdio: [stdin, 'pipe', 'pipe'], env: { ...process.env, ...env } });
}

async function ended(child: ChildProcess, argv: readonly string[]): Promise<number> {
  try {
    const closed = once(child, 'close').catch(() => {});
    const [status] = (await once(child, 'exit')) as [number | null];
    // A descendant that lives on may hold the pipes open: what the command itself wrote has come by then.
    await Promise.race([closed, delay(DESCENDANT_MS)]);
    for (const stream of [child.stdout, child.stderr]) if (stream instanceof Socket) stream.unref();
    return status ?? -1;
  } catch (cause) {
    throw new LabError(`cannot start ${quote(argv)}: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
}

function processIds(): number[] {
  return readdirSync('/proc').map(Number).filter(Number.isInteger);
}

/** The fields of `/proc/PID/stat` behind the command's name, which may itself hold blanks: [0] is the state. */
function statFields(pid: number): string[] | undefined {
  const text = readProc(`/proc/${pid}/stat`);
  const end = text.lastIndexOf(')');
  return end < 0 ? undefined : text.slice(end + 2).split(' ');
}

/** Processes come and go while the list is read: one that is gone reads as empty. */
function readProc(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
