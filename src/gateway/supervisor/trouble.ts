/**
 * How often the parts of a gateway have ended lately, and when they are started again.
 *
 * Each part counts for itself: one that ends over and over delays no other.
 */

import type { Logger } from '../../base/log.ts';

/** Ends within this time count as one trouble. */
const TROUBLE_MS = 60_000;
const FIRST_DELAY_MS = 250;
const MAX_DELAY_MS = 30_000;

export class Trouble {
  readonly #log: Logger;
  readonly #isStopping: () => boolean;
  /** When a part has ended by itself lately, monotonic. */
  readonly #ends = new Map<string, number[]>();

  constructor(log: Logger, isStopping: () => boolean) {
    this.#log = log;
    this.#isStopping = isStopping;
  }

  /** How often a part has ended in the last minute, with this time. */
  count(part: string): number {
    const now = performance.now();
    const ends = [...(this.#ends.get(part) ?? []), now].filter((at) => at > now - TROUBLE_MS);
    this.#ends.set(part, ends);
    return ends.length;
  }

  /** Starts it again: at once after the first end, later and later when it goes on. */
  after(ends: number, start: () => Promise<void>): void {
    const repeated = ends - 2;
    const delay = repeated < 0 ? 0 : Math.min(FIRST_DELAY_MS * 2 ** repeated, MAX_DELAY_MS);
    setTimeout(() => {
      if (this.#isStopping()) return;
      start().catch((error: unknown) => {
        // Whoever is started in vain ends, and is tried again.
        if (!this.#isStopping()) this.#log.error('a process could not be started', { error });
      });
    }, delay);
  }
}
