/**
 * The sessions of all workers, as often as somebody wants to see them.
 *
 * Hides that workers tell them in pages, and that telling them is bounded: a worker that says more than its channel allows is cut
 * off, and whoever looks at a gateway must not bring that about. So one list is asked for at a time, whoever comes meanwhile shares
 * the next one, and after many long lists there is a pause.
 */

import { setTimeout as delay } from 'node:timers/promises';
import type { SessionInfo } from '../../control/operations.ts';
import { SESSIONS_PER_PAGE, type WorkerPort } from '../ipc/ports.ts';

/** More than a worker can have (`limits.sessions`); one that has been taken over would never come to an end. */
const MAX_SESSIONS = 100_000;
const PAGES_AT_ONCE = 16;
/** A third of what a worker may say, with some 300 bytes for each (`LIMITS_OF_WORKER`). */
const SESSIONS_PER_SECOND = 8000;
/** So much of it may be told at once. */
const CREDIT_MS = 2000;

export class SessionList {
  readonly #workers: () => Iterable<WorkerPort>;
  readonly #known: () => number;
  #running: Promise<unknown> = Promise.resolve();
  #next: Promise<SessionInfo[]> | undefined;
  /** When all that was told is within the rate, monotonic. */
  #paidAt = 0;

  /** @param known about how many sessions there are */
  constructor(workers: () => Iterable<WorkerPort>, known: () => number) {
    this.#workers = workers;
    this.#known = known;
  }

  /** As they are after this call; those of a worker that does not answer are missing. */
  read(): Promise<SessionInfo[]> {
    this.#next ??= this.#readAfter(this.#running);
    return this.#next;
  }

  async #readAfter(running: Promise<unknown>): Promise<SessionInfo[]> {
    await running;
    this.#next = undefined;
    const lists = Promise.all([...this.#workers()].map((worker) => this.#readFrom(worker).catch(() => [])));
    this.#running = lists.then(async (all) => {
      const longest = Math.max(0, ...all.map(({ length }) => length));
      const now = performance.now();
      this.#paidAt = Math.max(now, this.#paidAt) + (longest * 1000) / SESSIONS_PER_SECOND;
      const pause = this.#paidAt - now - CREDIT_MS;
      if (pause > 0) await delay(pause, undefined, { ref: false });
    });
    return (await lists).flat();
  }

  async #readFrom(worker: WorkerPort): Promise<SessionInfo[]> {
    const all: SessionInfo[] = [];
    const atOnce = Math.max(1, Math.min(PAGES_AT_ONCE, Math.ceil(this.#known() / SESSIONS_PER_PAGE)));
    for (;;) {
      const begin = all.length;
      const pages = await Promise.all(
        Array.from({ length: atOnce }, (_, index) => worker.listSessions(begin + index * SESSIONS_PER_PAGE)),
      );
      for (const page of pages) all.push(...page);
      if (pages.some(({ length }) => length < SESSIONS_PER_PAGE) || all.length >= MAX_SESSIONS) return all;
    }
  }
}
