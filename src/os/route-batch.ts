/**
 * Routes for single peers, many and often.
 *
 * Hides a long-lived `ip -force -batch -`: it takes commands in order, some 40,000 a second, where a process for each would
 * take milliseconds. It says nothing of a command that succeeds, so each group of commands ends with one that it must
 * refuse: its complaint, which names the line, confirms all before it. The routes are in no journal: they go with their
 * device.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { adminPath, IP_WORD } from './command.ts';

/** A route to one of our devices. */
export interface HostRoute {
  prefix: string;
  device: string;
  /** The address that the host speaks from on this way. Default: one of the device's. */
  source?: string | undefined;
  /** Of several routes to the same prefix the one with the lowest counts. Default: the kernel's. */
  metric?: number | undefined;
}

interface Command {
  words: readonly string[];
  line: number;
  isRemoval: boolean;
  resolve(): void;
  reject(error: VpnError): void;
}

/** What `ip` says of a route or a device that is gone already, on older kernels and on newer ones. */
const ALREADY_GONE = /No such process|No such device|Cannot find device|not found/i;

const MAX_WAITING = 20_000;
const SENTINEL = 'confirm';

export class RouteBatch {
  readonly #log: Logger;
  #child: ChildProcess | undefined;
  /** Not yet written, and written but not yet confirmed; each in order. */
  #pending: Command[] = [];
  #waiting: Command[] = [];
  /** What `ip` said of lines that failed, until their group is confirmed. */
  readonly #failures = new Map<number, string>();
  #words: string[] = [];
  #lastLine = 0;
  #isClosed = false;

  private constructor(log: Logger) {
    this.#log = log.child({ component: 'routes' });
  }

  static open(options: { log: Logger }): Promise<RouteBatch> {
    return Promise.resolve(new RouteBatch(options.log));
  }

  /** Adds a route, or moves it to the device. Resolves when the kernel has it. @throws {VpnError} ERR_HOST_APPLY */
  add(route: HostRoute): Promise<void> {
    const source = route.source === undefined ? [] : ['src', route.source];
    const metric = route.metric === undefined ? [] : ['metric', String(route.metric)];
    return this.#submit(['route', 'replace', route.prefix, 'dev', route.device, ...source, ...metric], false);
  }

  /** Removes a route; one that is gone is fine. @throws {VpnError} ERR_HOST_APPLY */
  remove(route: HostRoute): Promise<void> {
    return this.#submit(['route', 'delete', route.prefix, 'dev', route.device], true);
  }

  /** Confirms what has been asked for, then ends. Idempotent. */
  async close(): Promise<void> {
    this.#flush();
    this.#isClosed = true;
    const child = this.#child;
    if (child === undefined) return;
    const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
    child.stdin?.end();
    await ended;
  }

  #submit(words: readonly string[], isRemoval: boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const why = this.#refusal(words);
      if (why !== undefined) {
        reject(why);
        return;
      }
      this.#pending.push({ words, line: 0, isRemoval, resolve, reject });
      if (this.#pending.length === 1) queueMicrotask(() => this.#flush());
    });
  }

  #refusal(words: readonly string[]): VpnError | undefined {
    if (this.#isClosed) return new VpnError('ERR_INVARIANT', 'a route was changed after the end');
    if (!words.every((word) => IP_WORD.test(word))) {
      return new VpnError('ERR_INVARIANT', `${JSON.stringify(words)} are no words of an ip command`);
    }
    if (this.#pending.length + this.#waiting.length >= MAX_WAITING) {
      return new VpnError('ERR_HOST_APPLY', `${MAX_WAITING} route changes are waiting; the kernel does not keep up`);
    }
    return undefined;
  }

  #flush(): void {
    if (this.#pending.length === 0) return;
    this.#child ??= this.#start();
    const lines: string[] = [];
    for (const command of this.#pending) {
      command.line = ++this.#lastLine;
      lines.push(command.words.join(' '));
      this.#waiting.push(command);
    }
    this.#pending = [];
    this.#lastLine += 1;
    this.#child.stdin?.write(`${lines.join('\n')}\n${SENTINEL}\n`);
  }

  #start(): ChildProcess {
    const child = spawn('ip', ['-force', '-batch', '-'], {
      env: { ...process.env, PATH: adminPath(), LC_ALL: 'C' },
      stdio: ['pipe', 'ignore', 'pipe'],
    });
    let cause: Error | undefined;
    child.once('error', (error) => {
      cause = error;
    });
    child.stdin?.on('error', () => {});
    if (child.stderr !== null) createInterface({ input: child.stderr }).on('line', (line) => this.#hear(line));
    child.once('close', (status) => this.#ended(child, status, cause));
    this.#lastLine = 0;
    return child;
  }

  #hear(text: string): void {
    const line = Number(/^Command failed -:(\d+)$/.exec(text)?.[1] ?? 0);
    if (line === 0) {
      this.#words.push(text);
      return;
    }
    const words = this.#words.join(' | ');
    this.#words = [];
    if (words.startsWith(`Object "${SENTINEL}"`)) this.#confirm(line);
    else this.#failures.set(line, words);
  }

  /** Everything before this line has been done, or has failed. */
  #confirm(line: number): void {
    const count = this.#waiting.findIndex((command) => command.line > line);
    for (const command of this.#waiting.splice(0, count < 0 ? this.#waiting.length : count)) {
      const why = this.#failures.get(command.line);
      this.#failures.delete(command.line);
      if (why === undefined || (command.isRemoval && ALREADY_GONE.test(why))) command.resolve();
      else command.reject(routeError(command, why));
    }
  }

  #ended(child: ChildProcess, status: number | null, cause: Error | undefined): void {
    if (this.#child === child) this.#child = undefined;
    const lost = this.#waiting.splice(0);
    this.#failures.clear();
    this.#words = [];
    if (!this.#isClosed) this.#log.warn('the process that sets routes has ended', { status, error: cause });
    for (const command of lost) command.reject(routeError(command, `ip ended with status ${status}`, cause));
  }
}

function routeError(command: Command, why: string, cause?: Error): VpnError {
  const text = `ip ${command.words.join(' ')}`;
  return new VpnError('ERR_HOST_APPLY', `${text}: ${why}`, { details: { command: text }, cause });
}
