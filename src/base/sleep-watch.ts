/**
 * Notices that the machine slept, or that this process stood still.
 *
 * A monotonic clock stands still while the machine sleeps, the time since boot does not: the difference is the sleep.
 */

/** Less is what two clocks that are read one after the other differ by. */
const LEAST_SLEEP_MS = 2000;

export interface Look {
  /** Since the last look, by the monotonic clock. */
  readonly passedMs: number;
  /** What the machine slept since then; 0: it did not. */
  readonly sleptMs: number;
}

export class SleepWatch {
  readonly #now: () => number;
  readonly #bootNow: () => number;
  #last: { readonly now: number; readonly boot: number };

  constructor(now: () => number, bootNow: () => number) {
    this.#now = now;
    this.#bootNow = bootNow;
    this.#last = { now: now(), boot: bootNow() };
  }

  look(): Look {
    const now = this.#now();
    const boot = this.#bootNow();
    const passedMs = now - this.#last.now;
    const sleptMs = boot - this.#last.boot - passedMs;
    this.#last = { now, boot };
    return { passedMs, sleptMs: sleptMs > LEAST_SLEEP_MS ? sleptMs : 0 };
  }
}
