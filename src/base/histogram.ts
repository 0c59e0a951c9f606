/**
 * How often something took how long: plain numbers, added to where it happens and read when somebody asks.
 *
 * Nothing is allocated by `observe`.
 */

/** What was counted: `counts[i]` of at most `bounds[i]`, the last one of all that was more. Not cumulative. */
export interface HistogramCounts {
  readonly counts: readonly number[];
  readonly sum: number;
}

export class Histogram {
  readonly bounds: readonly number[];
  readonly #counts: Float64Array;
  #sum = 0;

  /** @param bounds rising, in the unit of what is observed */
  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.#counts = new Float64Array(bounds.length + 1);
  }

  observe(value: number): void {
    let bucket = 0;
    while (bucket < this.bounds.length && value > (this.bounds[bucket] ?? 0)) bucket += 1;
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1;
    this.#sum += value;
  }

  read(): HistogramCounts {
    return { counts: [...this.#counts], sum: this.#sum };
  }
}

/**
 * How late a timer comes that is due again and again: what else of the process waits as long.
 */
export class LoopDelay {
  readonly histogram: Histogram;
  readonly #intervalMs: number;
  #last: number | undefined;

  constructor(intervalMs: number, bounds: readonly number[]) {
    this.#intervalMs = intervalMs;
    this.histogram = new Histogram(bounds);
  }

  /** The timer has come. @param now monotonic milliseconds */
  tick(now: number): void {
    if (this.#last !== undefined) this.histogram.observe(Math.max(0, now - this.#last - this.#intervalMs) / 1000);
    this.#last = now;
  }
}
