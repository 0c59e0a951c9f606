/**
 * Time as a value that is passed in.
 *
 * Hides where time comes from, so that the pure rooms can be driven by a number and the whole stack by a test. One unit
 * inside the program: milliseconds. Seconds appear only on the wire and in configuration files.
 */

/** A source of time. */
export interface Clock {
  /** Monotonic milliseconds; only differences mean something. */
  now(): number;
  /** Milliseconds since the Unix epoch; may jump. */
  wallNow(): number;
}

/** The machine's clock. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wallNow: () => Date.now(),
};

/** A clock that moves only when told to. */
export class ManualClock implements Clock {
  #now = 0;
  readonly #wallStart: number;

  constructor(wallStart = Date.UTC(2026, 0, 1)) {
    this.#wallStart = wallStart;
  }

  now(): number {
    return this.#now;
  }

  wallNow(): number {
    return this.#wallStart + this.#now;
  }

  advance(ms: number): void {
    this.#now += ms;
  }
}
