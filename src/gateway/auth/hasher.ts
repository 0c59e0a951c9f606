/**
 * Hashes passwords in a process of its own, in idle time.
 *
 * Hides that process: it is started with the first password, ends with this one, and is started again when it dies. argon2
 * takes a tenth of a second of a core by design; in the gateway's own process it would delay packets twenty-fold. Where there is
 * no idle time for long, another process takes its place for a while, which has its small part of a busy core. A bounded
 * number of passwords wait; one more is ERR_BUSY, so that a storm of logins costs no more than one core's idle time.
 * Passwords go over an inherited socket, never through arguments, the environment or a file.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { ARGON2_PARAMETERS, type Argon2Parameters, type PasswordHasher } from '../../identity/passwords.ts';
import { cageOfThisProcess } from '../../os/cage.ts';
import { partCommand } from '../../os/own-program.ts';
import { CAGED, type HasherRequest, IDLE, isHasherReply } from './hasher-messages.ts';

/** From TypeScript in a checkout, from JavaScript in a built package. */
const PROGRAM = fileURLToPath(new URL(`hasher-child${extname(import.meta.url)}`, import.meta.url));
const MAX_WAITING = 64;
/** Longer than the queue can take: a process that hangs must not hang logins. */
const DEADLINE_MS = 30_000;
/** A password that takes longer than this has found no idle time. */
const STARVED_MS = 1000;
/** For so long there is supposed to be none. */
const BUSY_MS = 60_000;

interface Waiting {
  readonly request: HasherRequest;
  resolve(value: string | boolean): void;
  reject(error: VpnError): void;
}

export interface HasherOptions {
  log: Logger;
  parameters?: Argon2Parameters;
  maxWaiting?: number;
  deadlineMs?: number;
  starvedMs?: number;
  busyMs?: number;
  /** Monotonic milliseconds. */
  now?: () => number;
  /** Runs this in place of the real program. */
  program?: string;
}

export class HasherProcess implements PasswordHasher, Disposable {
  readonly #log: Logger;
  /** May be replaced at any time. */
  parameters: Argon2Parameters;
  readonly #maxWaiting: number;
  readonly #deadlineMs: number;
  readonly #starvedMs: number;
  readonly #busyMs: number;
  readonly #now: () => number;
  readonly #program: string;
  readonly #queue: Waiting[] = [];
  #child: ChildProcess | undefined;
  /** One at a time: two would only share the same idle time. */
  #current: Waiting | undefined;
  #deadline: NodeJS.Timeout | undefined;
  #starved: NodeJS.Timeout | undefined;
  /** Until then the hasher does not wait for idle time; monotonic milliseconds. */
  #busyUntil = 0;
  /** Whether the process at hand waits for idle time. */
  #isIdle = false;
  #nextId = 1;
  #isClosed = false;

  constructor(options: HasherOptions) {
    this.#log = options.log.child({ component: 'hasher' });
    this.parameters = options.parameters ?? ARGON2_PARAMETERS;
    this.#maxWaiting = options.maxWaiting ?? MAX_WAITING;
    this.#deadlineMs = options.deadlineMs ?? DEADLINE_MS;
    this.#starvedMs = options.starvedMs ?? STARVED_MS;
    this.#busyMs = options.busyMs ?? BUSY_MS;
    this.#now = options.now ?? (() => performance.now());
    this.#program = options.program ?? PROGRAM;
  }

  async hash(password: string): Promise<string> {
    const { memory, passes, parallelism } = this.parameters;
    const answer = await this.#ask({ kind: 'hash', id: this.#nextId++, password, memory, passes, parallelism });
    if (typeof answer !== 'string') throw new VpnError('ERR_INVARIANT', 'the hasher answered something else');
    return answer;
  }

  async verify(phc: string, password: string): Promise<boolean> {
    const answer = await this.#ask({ kind: 'verify', id: this.#nextId++, password, phc });
    if (typeof answer !== 'boolean') throw new VpnError('ERR_INVARIANT', 'the hasher answered something else');
    return answer;
  }

  /** Process id while there is a process. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Passwords that wait or are being hashed. */
  get waiting(): number {
    return this.#queue.length + (this.#current === undefined ? 0 : 1);
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    const child = this.#child;
    this.#child = undefined;
    child?.kill('SIGKILL');
    this.#failAll(new VpnError('ERR_BUSY', 'the gateway is stopping'));
  }

  #ask(request: HasherRequest): Promise<string | boolean> {
    if (this.#isClosed) throw new VpnError('ERR_BUSY', 'the gateway is stopping');
    if (this.#queue.length >= this.#maxWaiting) {
      throw new VpnError('ERR_BUSY', `${this.#queue.length} passwords wait to be checked; try again in a moment`);
    }
    return new Promise((resolve, reject) => {
      this.#queue.push({ request, resolve, reject });
      this.#next();
    });
  }

  #next(): void {
    if (this.#current !== undefined) return;
    const next = this.#queue.shift();
    if (next === undefined) return;
    this.#current = next;
    const wantsIdle = this.#now() >= this.#busyUntil;
    // It is between two passwords.
    if (this.#child !== undefined && wantsIdle && !this.#isIdle) this.#drop(this.#child);
    const child = this.#child ?? this.#start(wantsIdle);
    if (this.#isIdle) this.#starved = setTimeout(() => this.#starve(next, child), this.#starvedMs).unref();
    this.#deadline = setTimeout(() => {
      this.#log.error('the hasher does not answer; it is started again');
      child.kill('SIGKILL');
    }, this.#deadlineMs).unref();
    child.send(next.request, (error) => {
      // What the process did not get it will not answer; its end is told by `exit`.
      if (error !== null) child.kill('SIGKILL');
    });
  }

  #drop(child: ChildProcess): void {
    this.#child = undefined;
    child.kill('SIGKILL');
  }

  /** The same password again, to a process that has its part of the processors' time however busy they are. */
  #starve(request: Waiting, child: ChildProcess): void {
    this.#log.debug('the hasher finds no idle time');
    this.#busyUntil = this.#now() + this.#busyMs;
    this.#drop(child);
    this.#settle();
    this.#queue.unshift(request);
    this.#next();
  }

  /** @param isIdle it waits for idle time */
  #start(isIdle: boolean): ChildProcess {
    this.#isIdle = isIdle;
    const manner = [...(cageOfThisProcess() === undefined ? [] : [CAGED]), ...(isIdle ? [IDLE] : [])];
    const [file, ...words] = partCommand('hasher', this.#program);
    const child = spawn(file, [...words, ...manner], {
      env: {},
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.#child = child;
    child.on('message', (message) => {
      if (child !== this.#child) return;
      const current = this.#current;
      if (!isHasherReply(message) || message.id !== current?.request.id) {
        this.#log.error('the hasher said something else than an answer; it is started again');
        child.kill('SIGKILL');
        return;
      }
      this.#settle();
      if ('error' in message) current.reject(new VpnError('ERR_STORE', message.error));
      else current.resolve(message.result);
      this.#next();
    });
    child.on('error', (error) => this.#log.error('the hasher could not be started', { error }));
    child.once('exit', (status, signal) => {
      if (child !== this.#child) return;
      this.#child = undefined;
      const current = this.#current;
      this.#settle();
      this.#log.warn('the hasher ended', { status: status ?? undefined, signal: signal ?? undefined });
      // Not asked again: if it is this password that ends the process, it would end the next one, too.
      current?.reject(new VpnError('ERR_BUSY', 'the password could not be checked; try again'));
      this.#next();
    });
    // It must not keep this process alive.
    child.unref();
    child.channel?.unref();
    return child;
  }

  #settle(): void {
    clearTimeout(this.#deadline);
    clearTimeout(this.#starved);
    this.#current = undefined;
  }

  #failAll(error: VpnError): void {
    const current = this.#current;
    this.#settle();
    current?.reject(error);
    for (const { reject } of this.#queue.splice(0)) reject(error);
  }
}
