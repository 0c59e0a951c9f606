/**
 * The arithmetic of a comparison on a noisy machine.
 *
 * Hides how a verdict is reached from paired measurements. Pure and repeatable: the bootstrap's random numbers come from
 * a fixed seed. The rules: values are compared in pairs that were measured next to each other, the answer is the median
 * of the paired ratios with a bootstrap interval, and too few pairs, or an interval too wide for how near it is to the
 * goal, are `inconclusive`, which is not met.
 */

/** How much of the bootstrap distribution the interval holds. */
const CONFIDENCE = 0.9;
const RESAMPLES = 4000;
const SEED = 0x5eed;

/** A goal within a tenth of 1 asks for this many pairs; so does one that is not clearly a factor. */
const PAIRS_NEAR_ONE = 12;
/** A goal that is a factor of at least `CLEAR_FACTOR` either way asks for this many rounds. */
const PAIRS_FOR_FACTOR = 3;
const CLEAR_FACTOR = 1.3;
/** An interval wider than this part of the goal's ratio decides only what lies as far from the goal. */
const RESOLUTION = 0.1;

/** The smallest and largest of something. */
export interface Interval {
  low: number;
  high: number;
}

/** What is asked of the ratio ours / theirs. */
export interface Goal {
  peer: string;
  relation: '≥' | '>' | '≤';
  factor: number;
}

export type Verdict = 'met' | 'not met' | 'inconclusive' | 'missing';

/** A goal, what was found, and what follows. */
export interface Judgement {
  goal: Goal;
  verdict: Verdict;
  pairs: number;
  /** The median of the paired ratios; undefined when there is no pair. */
  ratio?: number;
  interval?: Interval;
}

/**
 * The q-quantile, interpolated linearly between the two nearest values.
 *
 * @returns undefined for no values
 */
export function quantile(values: readonly number[], q: number): number | undefined {
  const sorted = [...values].sort((a, b) => a - b);
  const position = (sorted.length - 1) * q;
  const low = sorted[Math.floor(position)];
  const high = sorted[Math.ceil(position)];
  return low === undefined || high === undefined ? undefined : low + (high - low) * (position % 1);
}

/** @returns undefined for no values */
export function median(values: readonly number[]): number | undefined {
  return quantile(values, 0.5);
}

/** Welch's t of two samples: how far apart their means are, in standard errors. Undefined for fewer than two values. */
export function welch(one: readonly number[], other: readonly number[]): number | undefined {
  if (one.length < 2 || other.length < 2) return undefined;
  const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [first, second] = [mean(one), mean(other)];
  const error = (values: readonly number[], middle: number) =>
    values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1) / values.length;
  const squared = error(one, first) + error(other, second);
  const difference = first - second;
  if (squared === 0) return difference === 0 ? 0 : Math.sign(difference) * Infinity;
  return difference / Math.sqrt(squared);
}

/** Ours over theirs, pair by pair; a pair that lacks a side or has a zero below is left out. */
export function pairedRatios(ours: readonly (number | undefined)[], theirs: readonly (number | undefined)[]): number[] {
  const ratios: number[] = [];
  for (const [index, own] of ours.entries()) {
    const other = theirs[index];
    if (own !== undefined && other !== undefined && other > 0) ratios.push(own / other);
  }
  return ratios;
}

/** The interval that holds `CONFIDENCE` of the medians of resamples; undefined for no values. */
export function bootstrapMedian(values: readonly number[]): Interval | undefined {
  if (values.length === 0) return undefined;
  const random = generator(SEED);
  const medians: number[] = [];
  for (let resample = 0; resample < RESAMPLES; resample += 1) {
    const drawn = values.map(() => values[Math.floor(random() * values.length)] ?? 0);
    medians.push(median(drawn) ?? 0);
  }
  const low = quantile(medians, (1 - CONFIDENCE) / 2);
  const high = quantile(medians, (1 + CONFIDENCE) / 2);
  return low === undefined || high === undefined ? undefined : { low, high };
}

/** How many pairs a goal asks for. */
export function pairsNeeded(factor: number): number {
  return factor >= CLEAR_FACTOR || factor <= 1 / CLEAR_FACTOR ? PAIRS_FOR_FACTOR : PAIRS_NEAR_ONE;
}

/** Holds the paired ratios against a goal. */
export function judge(ratios: readonly number[], goal: Goal): Judgement {
  const ratio = median(ratios);
  const interval = bootstrapMedian(ratios);
  if (ratio === undefined || interval === undefined) return { goal, verdict: 'missing', pairs: 0 };
  const judgement = { goal, pairs: ratios.length, ratio, interval };
  if (ratios.length < pairsNeeded(goal.factor)) return { ...judgement, verdict: 'inconclusive' };
  const margin = goal.factor * RESOLUTION;
  const wide = interval.high - interval.low > margin;
  const clear = interval.low > goal.factor + margin || interval.high < goal.factor - margin;
  if (wide && !clear) return { ...judgement, verdict: 'inconclusive' };
  return { ...judgement, verdict: satisfies(ratio, goal) ? 'met' : 'not met' };
}

/** As people write it: `≥ 1.3 × wireguard-go`. */
export function formatGoal(goal: Goal): string {
  return `${goal.relation} ${goal.factor} × ${goal.peer}`;
}

function satisfies(ratio: number, goal: Goal): boolean {
  switch (goal.relation) {
    case '≥':
      return ratio >= goal.factor;
    case '>':
      return ratio > goal.factor;
    case '≤':
      return ratio <= goal.factor;
  }
}

/** Mulberry32: small, and good enough to draw indices with. */
function generator(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) / 2 ** 32;
  };
}
