/**
 * A process and all that come from it, as far as they still run.
 *
 * Hides `/proc`. A process is known by its number and the time of its start, so that another one that gets the number later is
 * not taken for it. Those that have ended and wait only to be collected do nothing any more, and do not count.
 */

import { readdirSync, readFileSync } from 'node:fs';

export interface TreeProcess {
  readonly pid: number;
  /** As its command line has it. */
  readonly command: string;
}

interface Seen {
  readonly pid: number;
  readonly parent: number;
  readonly key: string;
}

export class ProcessTree {
  readonly #root: number;
  /** By number and start, all that ever belonged to it. */
  readonly #members = new Set<string>();

  /** Of a process that is not there it is empty for ever. */
  constructor(pid: number) {
    this.#root = pid;
    const root = statOf(pid);
    if (root !== undefined) this.#members.add(root.key);
  }

  /** Those that run; one whose parent has ended belongs to it if it was seen before. */
  left(): TreeProcess[] {
    const running = runningProcesses();
    const pids = new Set<number>();
    for (let before = -1; before !== pids.size; ) {
      before = pids.size;
      for (const { pid, parent, key } of running) {
        if (!this.#members.has(key) && !pids.has(parent)) continue;
        this.#members.add(key);
        pids.add(pid);
      }
    }
    return [...pids].map((pid) => ({ pid, command: commandOf(pid) }));
  }

  /** The command line of the first of them; empty when it is gone. */
  get command(): string {
    return commandOf(this.#root);
  }
}

function runningProcesses(): Seen[] {
  return readdirSync('/proc').flatMap((name) => (/^\d+$/.test(name) ? (statOf(Number(name)) ?? []) : []));
}

function statOf(pid: number): Seen | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  } catch {
    return undefined;
  }
  // The name before the last parenthesis can have anything in it; state, parent and, as the twentieth, the start follow.
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined;
  return { pid, parent: Number(fields[1]), key: `${pid} ${fields[19]}` };
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ').trim();
  } catch {
    return '';
  }
}
