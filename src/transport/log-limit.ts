/**
 * Log lines that a stranger can cause, at a bounded rate.
 *
 * Hides the counting. Each kind of line may come a few times per interval; what was left out is said by the next line
 * that passes, in the field `suppressed`. Kinds must be few and chosen by us, never by a peer.
 */

import type { Clock } from '../base/clock.ts';
import type { LogFields, Logger } from '../base/log.ts';

const LINES = 10;
const INTERVAL_MS = 60_000;

export class LogLimit {
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #kinds = new Map<string, { since: number; lines: number; suppressed: number }>();

  constructor(log: Logger, clock: Clock) {
    this.#log = log;
    this.#clock = clock;
  }

  /** Logs at this level unless `kind` has had its share of the minute. */
  write(level: 'info' | 'warn', kind: string, message: string, fields: LogFields): void {
    const now = this.#clock.now();
    let state = this.#kinds.get(kind);
    if (state === undefined) {
      state = { since: now, lines: 0, suppressed: 0 };
      this.#kinds.set(kind, state);
    }
    if (now - state.since >= INTERVAL_MS) {
      state.since = now;
      state.lines = 0;
    }
    if (state.lines >= LINES) {
      state.suppressed += 1;
      return;
    }
    state.lines += 1;
    const { suppressed } = state;
    state.suppressed = 0;
    this.#log[level](message, suppressed === 0 ? fields : { ...fields, suppressed });
  }
}
