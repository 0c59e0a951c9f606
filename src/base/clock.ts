/**
 * Time as a value that is passed in.
 *
 * Hides where time comes from, so that the pure rooms can be driven by a number and the whole stack by a test. One unit
 * inside the program: milliseconds. Seconds appear only on the wire and in configuration files.
 */

import { uptime } from 'node:os';

/** A source of time. */
export interface Clock {
  /** Monotonic milliseconds; only differences mean something. */
  now(): number;
  /** Milliseconds since the Unix epoch; may jump. */
  wallNow(): number;
  /** Milliseconds since the machine started, and unlike `now` those that it slept. */
  bootNow(): number;
}

/** The machine's clock. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wallNow: () => Date.now(),
  bootNow: () => uptime() * 1000,
};

/** A clock that moves only when told to. */
export class ManualClock implements Clock {
  #now = 0;
  #sleptMs = 0;
  #wallStart: number;

  constructor(wallStart = Date.UTC(2026, 0, 1)) {
    this.#wallStart = wallStart;
  }

  now(): number {
    return this.#now;
  }

  wallNow(): number {
    return this.#wallStart + this.#now + this.#sleptMs;
  }

  bootNow(): number {
    return this.#now + this.#sleptMs;
  }

  advance(ms: number): void {
    this.#now += ms;
  }

  /** Somebody sets the clock on the wall, forward or back; nothing else changes. */
  setWall(at: number): void {
    this.#wallStart += at - this.wallNow();
  }

  /** The machine sleeps: everything goes on but the monotonic clock. */
  sleep(ms: number): void {
    this.#sleptMs += ms;
  }
}
