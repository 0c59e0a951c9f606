/**
 * How many refusals go on record: strangers must not fill the disk, and nothing must be lost sight of.
 */

import type { Clock } from '../base/clock.ts';

/** Refusals put on record per second in the long run, and at once. Beyond that they are counted. */
const RECORDS_PER_SECOND = 10;
const MAX_RECORDS = 200;

/** Keeps strangers from filling the disk with refusals. */
export class RecordBudget {
  readonly #clock: Clock;
  #left = MAX_RECORDS;
  #at: number;
  #unrecorded = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#at = clock.now();
  }

  /** Takes one record: the number that went unrecorded before it, or undefined when there is none left. */
  take(): number | undefined {
    const now = this.#clock.now();
    this.#left = Math.min(MAX_RECORDS, this.#left + ((now - this.#at) / 1000) * RECORDS_PER_SECOND);
    this.#at = now;
    if (this.#left < 1) {
      this.#unrecorded += 1;
      return undefined;
    }
    this.#left -= 1;
    const unrecorded = this.#unrecorded;
    this.#unrecorded = 0;
    return unrecorded;
  }
}
