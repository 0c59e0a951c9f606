/**
 * Asks the operator's own functions, which run in a process of their own.
 *
 * Hides that process, and everything that can be wrong with somebody else's code: a function that throws, answers nonsense, is too
 * slow, blocks its thread, fills its memory or ends its process gives a *failure*, whose result the configuration defines, and delays
 * nobody but whoever waits for its verdict. The process reaches the files of this program and the folder of its own file, and none of
 * the gateway's; it is started again when it ends, more slowly each time.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { dirname, extname } from 'node:path';
import type { Duplex, Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import { readLines } from '../../base/lines.ts';
import type { Logger } from '../../base/log.ts';
import { confinedProgram } from '../../os/launcher.ts';
import { partCommand } from '../../os/own-program.ts';
import { LogLimit } from '../../transport/log-limit.ts';
import type { EndedHookSession, HookName, HookPolicy, HookSession } from '../hooks.ts';
import { verdictOf } from '../hooks.ts';
import type { LoginFacts } from './rights.ts';

/** From TypeScript in a checkout, from JavaScript in a built package. */
const PROGRAM = fileURLToPath(new URL(`hooks-child${extname(import.meta.url)}`, import.meta.url));
const CHANNEL_FD = 3;
const LOAD_MS = 20_000;
/** One that answers nothing at all in this time is blocked. */
const PING_MS = 3000;
/** For what is under way when the gateway stops. */
const STOP_MS = 1000;
/** Calls that wait for a verdict, and apart from them those that only tell of sessions: these must not keep anybody out. */
const MAX_ASKED = 1000;
const MAX_TOLD = 1000;
const MAX_LINE_CHARACTERS = 64 * 1024;
/** Longer lines of its output are cut. */
const MAX_SAID = 500;
/** Of its output in a second, each line as so many more; whoever prints more waits for the next one. */
const OUTPUT_CHARACTERS = 8 << 20;
const LINE_CHARACTERS = 200;
const OUTPUT_MS = 1000;
const HEAP_MIB = 256;
/** Before it is started again, after the first end, the second, …; a quiet minute begins anew. */
const RESTART_MS = [0, 500, 2000, 10_000, 30_000];
const QUIET_MS = 60_000;

const ENVIRONMENT = ['TZ', 'LANG', 'NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'SSL_CERT_DIR'];

export interface HooksOptions {
  /** Of the functions. */
  readonly file: string;
  readonly timeoutMs: number;
  /** What a failed `onLogin` or `onPolicy` comes to. */
  readonly onFailure: 'deny' | 'allow';
  /** Where calls are counted, on top of what is there; default: anew. */
  readonly counts?: Map<HookName, HookCounts>;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A verdict; `failure`: it is not the function's own. */
export interface HookAnswer {
  readonly allow: boolean;
  readonly reason: string;
}

/** How often calls came to what. */
export type HookCounts = Readonly<Record<'allowed' | 'refused' | 'failed', number>>;

interface Waiting {
  readonly answer: Promise<Outcome>;
  resolve(outcome: Outcome): void;
}

type Outcome = { readonly value: unknown } | { readonly failure: string };

export class Hooks {
  readonly #options: HooksOptions;
  readonly #log: Logger;
  readonly #lines: LogLimit;
  readonly #waiting = new Map<number, Waiting>();
  /** How many of them wait for a verdict, and how many do not. */
  readonly #under = { asked: 0, told: 0 };
  readonly #counts: Map<HookName, HookCounts>;
  #child: ChildProcess | undefined;
  #channel: Duplex | undefined;
  /** What the file has. */
  #loaded: ReadonlySet<HookName> = new Set();
  /** Resolves when it can be asked. */
  #ready = Promise.withResolvers<void>();
  #isReady = false;
  #nextId = 1;
  #ends = 0;
  #lastEnd = Number.NEGATIVE_INFINITY;
  #restart: NodeJS.Timeout | undefined;
  #isStopped = false;
  /** When it said something last, monotonic. */
  #heard = 0;

  /** Starts the process and has it load the file. @throws {VpnError} ERR_CONFIG_FILE when that fails */
  static async start(options: HooksOptions): Promise<Hooks> {
    const hooks = new Hooks(options);
    try {
      await hooks.#start();
    } catch (error) {
      await hooks.stop();
      throw error;
    }
    return hooks;
  }

  private constructor(options: HooksOptions) {
    this.#options = options;
    this.#counts = options.counts ?? new Map();
    this.#log = options.log.child({ component: 'hooks' });
    this.#lines = new LogLimit(this.#log, options.clock);
  }

  /** Process id while there is a process. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get counts(): ReadonlyMap<HookName, HookCounts> {
    return this.#counts;
  }

  async login(login: LoginFacts): Promise<HookAnswer> {
    return await this.#judge('onLogin', login);
  }

  async policy(policy: HookPolicy): Promise<HookAnswer> {
    return await this.#judge('onPolicy', policy);
  }

  /** Nobody waits for it. */
  sessionStarted(session: HookSession): void {
    void this.#tell('onSessionStart', session);
  }

  /** Nobody waits for it. */
  sessionEnded(session: EndedHookSession): void {
    void this.#tell('onSessionEnd', session);
  }

  /** Ends the process; what waits for an answer has a moment to get it, and fails. */
  async stop(): Promise<void> {
    const answers = [...this.#waiting.values()].map(({ answer }) => answer);
    await Promise.race([Promise.all(answers), sleep(STOP_MS)]);
    this.#isStopped = true;
    clearTimeout(this.#restart);
    const child = this.#child;
    if (child === undefined) return;
    child.ref();
    const ended = new Promise((resolve) => child.once('close', resolve));
    child.kill('SIGKILL');
    await ended;
  }

  async #judge(hook: HookName, input: object): Promise<HookAnswer> {
    if (!this.#loaded.has(hook)) return { allow: true, reason: '' };
    const outcome = await this.#call(hook, input, 'asked');
    const verdict = 'value' in outcome ? verdictOf(outcome.value) : undefined;
    if (verdict !== undefined) {
      this.#count(hook, verdict.allow ? 'allowed' : 'refused');
      const because = verdict.reason === '' ? '' : `: ${verdict.reason}`;
      return { allow: verdict.allow, reason: verdict.allow ? '' : `the hook ${hook} refuses it${because}` };
    }
    const why = 'failure' in outcome ? outcome.failure : 'it answered neither true nor false';
    const allow = this.#options.onFailure === 'allow';
    this.#failed(hook, why, allow ? 'allowed' : 'refused');
    return { allow, reason: `the hook ${hook} failed: ${why}` };
  }

  async #tell(hook: HookName, input: object): Promise<void> {
    if (!this.#loaded.has(hook)) return;
    const outcome = await this.#call(hook, input, 'told');
    if ('failure' in outcome) this.#failed(hook, outcome.failure);
    else this.#count(hook, 'allowed');
  }

  #failed(hook: HookName, reason: string, result?: string): void {
    this.#count(hook, 'failed');
    this.#lines.write('warn', `failed ${hook}`, 'a hook failed', {
      hook,
      reason,
      ...(result === undefined ? {} : { result }),
    });
  }

  #count(hook: HookName, result: 'allowed' | 'refused' | 'failed'): void {
    const counts = this.#counts.get(hook) ?? { allowed: 0, refused: 0, failed: 0 };
    this.#counts.set(hook, { ...counts, [result]: counts[result] + 1 });
  }

  /** Never rejects. */
  async #call(hook: HookName, input: object, kind: 'asked' | 'told'): Promise<Outcome> {
    if (this.#isStopped) return { failure: 'the gateway is stopping' };
    const most = kind === 'asked' ? MAX_ASKED : MAX_TOLD;
    if (this.#under[kind] >= most) return { failure: `${most} calls wait for an answer` };
    this.#under[kind] += 1;
    const id = this.#nextId++;
    const { promise, resolve } = Promise.withResolvers<Outcome>();
    this.#waiting.set(id, { answer: promise, resolve });
    const { timeoutMs } = this.#options;
    const late = setTimeout(() => {
      resolve({ failure: `no answer within ${timeoutMs / 1000} s` });
      this.#probe();
    }, timeoutMs);
    // One that is being started is waited for, within the time that there is.
    void this.#ready.promise.then(() => {
      if (this.#waiting.has(id)) this.#channel?.write(`${JSON.stringify({ id, hook, input })}\n`);
    });
    try {
      return await promise;
    } finally {
      clearTimeout(late);
      this.#waiting.delete(id);
      this.#under[kind] -= 1;
    }
  }

  /** Whether only a function is slow, or its thread is blocked; then it is ended. */
  #probe(): void {
    const child = this.#child;
    const before = this.#heard;
    // One that is being started has a time of its own.
    if (child === undefined || !this.#isReady) return;
    this.#channel?.write(`${JSON.stringify({ ping: this.#nextId++ })}\n`);
    setTimeout(() => {
      if (this.#child !== child || this.#heard !== before) return;
      this.#log.error('a hook blocks its process, which is started again');
      child.kill('SIGKILL');
    }, PING_MS).unref();
  }

  async #start(): Promise<void> {
    const { file } = this.#options;
    const [program, ...args] = confinedProgram([...partCommand('hooks', PROGRAM), file], {
      read: [dirname(file)],
      write: [],
      descriptors: [CHANNEL_FD],
    });
    const environment = ENVIRONMENT.flatMap((key) => (process.env[key] === undefined ? [] : [[key, process.env[key]]]));
    const child = spawn(program, args, {
      cwd: '/',
      env: { ...Object.fromEntries(environment), NODE_OPTIONS: `--max-old-space-size=${HEAP_MIB}` },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    });
    const channel = child.stdio[CHANNEL_FD] as Duplex;
    this.#child = child;
    this.#channel = channel;
    const loaded = Promise.withResolvers<void>();
    loaded.promise.catch(() => {});
    const late = setTimeout(() => {
      loaded.reject(this.#loadError(`it is not loaded within ${LOAD_MS / 1000} s`));
      child.kill('SIGKILL');
    }, LOAD_MS);
    channel.on('error', () => child.kill('SIGKILL'));
    readLines(channel, MAX_LINE_CHARACTERS, (line, isCut) => {
      if (child !== this.#child) return;
      if (isCut || !this.#heed(line, loaded)) {
        this.#log.error('the hooks said something else than an answer; they are started again');
        child.kill('SIGKILL');
      }
    });
    for (const output of [child.stdout, child.stderr]) if (output !== null) this.#listen(output);
    let said = 'it ended';
    child.once('error', (error) => {
      said = error.message;
    });
    child.once('close', (status, signal) => {
      clearTimeout(late);
      loaded.reject(this.#loadError(`${said}${signal === null ? ` with status ${status}` : ` by ${signal}`}`));
      if (child === this.#child) this.#ended(status, signal);
    });
    // Neither keeps this process alive.
    child.unref();
    (channel as Duplex & { unref(): void }).unref();
    try {
      await loaded.promise;
    } finally {
      clearTimeout(late);
    }
    this.#isReady = true;
    this.#ready.resolve();
    this.#log.info('the hooks are loaded', { hooks: [...this.#loaded].join(' ') });
  }

  /** False: that is no message. */
  #heed(line: string, loaded: PromiseWithResolvers<void>): boolean {
    this.#heard += 1;
    let message: { loaded?: HookName[]; error?: string; id?: number; result?: unknown; pong?: number };
    try {
      message = JSON.parse(line) as typeof message;
    } catch {
      return false;
    }
    if (typeof message !== 'object' || message === null) return false;
    const { id, error, result } = message;
    if (Array.isArray(message.loaded)) {
      this.#loaded = new Set(message.loaded);
      loaded.resolve();
    } else if (id === undefined) {
      if (error !== undefined) loaded.reject(this.#loadError(String(error)));
      return error !== undefined || message.pong !== undefined;
    } else {
      // One that comes too late is nobody's.
      this.#waiting
        .get(id)
        ?.resolve(
          error === undefined ? { value: result } : { failure: `it threw: ${String(error).slice(0, MAX_SAID)}` },
        );
    }
    return true;
  }

  #loadError(why: string): VpnError {
    const { file } = this.#options;
    return new VpnError('ERR_CONFIG_FILE', `hook.file: ${file} cannot be loaded: ${why}`, { details: { path: file } });
  }

  /** What its functions print is for the operator. */
  #listen(output: Readable): void {
    let left = OUTPUT_CHARACTERS;
    readLines(output, MAX_SAID, (said) => {
      left -= LINE_CHARACTERS;
      this.#lines.write('info', 'output', 'said by a hook', { said });
    });
    let isCounting = false;
    output.on('data', (text: string) => {
      left -= text.length;
      if (left <= 0) output.pause();
      if (isCounting) return;
      isCounting = true;
      setTimeout(() => {
        [left, isCounting] = [OUTPUT_CHARACTERS, false];
        output.resume();
      }, OUTPUT_MS).unref();
    });
  }

  #ended(status: number | null, signal: NodeJS.Signals | null): void {
    this.#child = undefined;
    this.#channel = undefined;
    this.#ready = Promise.withResolvers();
    this.#isReady = false;
    for (const { resolve } of this.#waiting.values()) resolve({ failure: 'its process ended' });
    if (this.#isStopped) return;
    const now = this.#options.clock.now();
    this.#ends = now - this.#lastEnd > QUIET_MS ? 0 : this.#ends + 1;
    this.#lastEnd = now;
    const wait = RESTART_MS[Math.min(this.#ends, RESTART_MS.length - 1)] ?? 0;
    this.#lines.write('warn', 'ended', 'the process of the hooks ended; it is started again', {
      ...(signal === null ? { status: status ?? undefined } : { signal }),
      afterMs: wait,
    });
    this.#restart = setTimeout(() => {
      this.#start().catch((error: unknown) => {
        this.#lines.write('warn', 'load', 'the hooks cannot be loaded', { error });
        this.#child?.kill('SIGKILL');
      });
    }, wait).unref();
  }
}
