/**
 * How long a client waits before it connects again.
 *
 * Hides the growth and the jitter. It must not know why a connection ended (see `reasons.ts`), nor wait itself.
 *
 * @see docs/protocol.md §11
 */

export const FIRST_DELAY_MS = 250;
export const MAX_DELAY_MS = 30_000;
/** The longest wait while nobody is reached, so that a server that comes back is found soon, */
export const MAX_UNREACHED_DELAY_MS = 2000;
/** but only for so many tries. */
const EAGER_TRIES = 300;
/** The wait where only a person elsewhere can mend things, such as an approval. */
export const SLOW_DELAY_MS = 60_000;
/** A connection that lived this long starts the growth anew. */
export const STABLE_AFTER_MS = 10_000;

/** Delays that double, each spread over its upper half, so that a thousand clients do not come back together. */
export class Backoff {
  #failures = 0;

  /**
   * The next wait in milliseconds.
   *
   * @param random uniform in [0, 1)
   * @param isUnreached the failure was that no connection came about, so that asking again costs the server nothing
   */
  next(random: number, isUnreached = false): number {
    const limit = isUnreached && this.#failures < EAGER_TRIES ? MAX_UNREACHED_DELAY_MS : MAX_DELAY_MS;
    const ceiling = Math.min(limit, FIRST_DELAY_MS * 2 ** Math.min(this.#failures, 16));
    this.#failures += 1;
    return spread(ceiling, random);
  }

  /** Something has changed that makes the failures so far say nothing. */
  reset(): void {
    this.#failures = 0;
  }

  /** The wait after a failure of recovery `slow`. @param random uniform in [0, 1) */
  slow(random: number): number {
    return spread(SLOW_DELAY_MS, random);
  }

  /** A session that was open for `livedMs` has ended; a short one keeps the growth. */
  ended(livedMs: number): void {
    if (livedMs >= STABLE_AFTER_MS) this.#failures = 0;
  }
}

function spread(ceiling: number, random: number): number {
  return ceiling / 2 + (ceiling / 2) * random;
}
