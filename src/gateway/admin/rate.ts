/**
 * How often somebody may ask: so many requests at once, and so many a second in the long run, for each key.
 *
 * Hides the buckets, of which there is a bounded number.
 */

import type { Clock } from '../../base/clock.ts';

const MAX_KEYS = 10_000;

export class Rate {
  readonly #clock: Clock;
  readonly #burst: number;
  readonly #perSecond: number;
  readonly #buckets = new Map<string, { left: number; at: number }>();

  constructor(clock: Clock, options: { burst: number; perSecond: number }) {
    this.#clock = clock;
    this.#burst = options.burst;
    this.#perSecond = options.perSecond;
  }

  /** Takes one; false: none is left. */
  take(key: string): boolean {
    const now = this.#clock.now();
    const bucket = this.#buckets.get(key) ?? { left: this.#burst, at: now };
    bucket.left = Math.min(this.#burst, bucket.left + ((now - bucket.at) / 1000) * this.#perSecond);
    bucket.at = now;
    const isGiven = bucket.left >= 1;
    if (isGiven) bucket.left -= 1;
    this.#buckets.delete(key);
    this.#buckets.set(key, bucket);
    const [oldest] = this.#buckets.keys();
    if (this.#buckets.size > MAX_KEYS && oldest !== undefined) this.#buckets.delete(oldest);
    return isGiven;
  }
}
