/**
 * Small changes of packet rules, many and often.
 *
 * Hides a long-lived `nft -i`, which carries out each line as one transaction, where a process for each would take several
 * times as long. It says nothing of a line that succeeds, so each is followed by one that it must refuse: its complaint
 * confirms the line before it, or follows what is wrong with that. One that does not answer is ended, and the next change
 * starts another.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { VpnError } from '../base/errors.ts';
import { adminPath } from './command.ts';

interface Waiting {
  readonly sentinel: string;
  readonly said: string[];
  resolve(): void;
  reject(error: VpnError): void;
}

/** `nft` reads a line as a whole. What is longer goes by a process of its own. */
export const MAX_SHELL_BYTES = 16 * 1024;
const MAX_WAITING = 20_000;
const TIMEOUT_MS = 20_000;

export class NftShell {
  #child: ChildProcess | undefined;
  readonly #waiting: Waiting[] = [];
  #number = 0;
  #timer: NodeJS.Timeout | undefined;
  #isClosed = false;

  /**
   * Runs commands, one on each line, as one transaction.
   *
   * @throws {VpnError} ERR_HOST_APPLY, ERR_UNSUPPORTED; then nothing has changed, or, after a time-out, it is not known
   */
  run(commands: string): Promise<void> {
    const line = commands.trim().replaceAll('\n', '; ');
    if (line === '') return Promise.resolve();
    return new Promise((resolve, reject) => {
      if (this.#isClosed) return reject(new VpnError('ERR_INVARIANT', 'packet rules were changed after the end'));
      if (this.#waiting.length >= MAX_WAITING || line.length > MAX_SHELL_BYTES) {
        return reject(new VpnError('ERR_HOST_APPLY', 'too many changes of packet rules at once'));
      }
      this.#number += 1;
      const sentinel = `confirm${this.#number}`;
      this.#child ??= this.#start();
      this.#waiting.push({ sentinel, said: [], resolve, reject });
      this.#timer ??= setTimeout(() => this.#child?.kill('SIGKILL'), TIMEOUT_MS);
      this.#child.stdin?.write(`${line}\n${sentinel}\n`);
    });
  }

  /** Confirms what has been asked for, then ends. Idempotent. */
  async close(): Promise<void> {
    this.#isClosed = true;
    const child = this.#child;
    if (child === undefined) return;
    const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
    child.stdin?.end();
    await ended;
  }

  #start(): ChildProcess {
    const child = spawn('nft', ['-i'], {
      env: { ...process.env, PATH: adminPath(), LC_ALL: 'C' },
      stdio: ['pipe', 'ignore', 'pipe'],
    });
    child.stdin.on('error', () => {});
    createInterface({ input: child.stderr }).on('line', (line) => this.#heard(line));
    let why = 'it has ended';
    child.once('error', (error: NodeJS.ErrnoException) => {
      why = error.code === 'ENOENT' ? 'the program nft is missing; try: apt-get install nftables' : error.message;
    });
    child.once('close', () => this.#ended(child, why));
    return child;
  }

  #heard(line: string): void {
    const [first] = this.#waiting;
    if (first === undefined) return;
    if (line !== first.sentinel) {
      // The complaint about the confirmation itself begins before it.
      if (first.said.length < 20) first.said.push(line);
      return;
    }
    this.#waiting.shift();
    clearTimeout(this.#timer);
    this.#timer = this.#waiting.length === 0 ? undefined : setTimeout(() => this.#child?.kill('SIGKILL'), TIMEOUT_MS);
    const errors = first.said.filter((said) => said.startsWith('Error: '));
    if (errors.length < 2) first.resolve();
    else first.reject(new VpnError('ERR_HOST_APPLY', `nft: ${errors[0]?.slice('Error: '.length)}`));
  }

  #ended(child: ChildProcess, why: string): void {
    if (this.#child !== child) return;
    this.#child = undefined;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const { reject } of this.#waiting.splice(0)) reject(new VpnError('ERR_HOST_APPLY', `nft -i: ${why}`));
  }
}
