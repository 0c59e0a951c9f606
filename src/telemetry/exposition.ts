/**
 * Metrics as the text that Prometheus reads (exposition format 0.0.4).
 *
 * Hides escaping and the shape of histograms. Knows no metric: a catalogue says which there are and which labels each has,
 * and what is not in it cannot be said.
 */

import { VpnError } from '../base/errors.ts';
import type { HistogramCounts } from '../base/histogram.ts';

export interface Metric {
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly help: string;
  readonly labels: readonly string[];
}

export type Catalogue = Readonly<Record<string, Metric>>;
export type Labels = Readonly<Record<string, string>>;

/** Media type of the text. */
export const EXPOSITION_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

/** One value, for whoever does not read text. */
export interface Sample {
  readonly name: string;
  readonly labels: Labels;
  readonly value: number;
}

/** A histogram, for whoever does not read text. */
export interface HistogramSample extends HistogramCounts {
  readonly labels: Labels;
  readonly bounds: readonly number[];
}

/** Everything that was said of one metric. */
export interface Family {
  readonly name: string;
  readonly type: Metric['type'];
  readonly help: string;
  /** Of one that is no histogram. */
  readonly samples: readonly Sample[];
  readonly histograms: readonly HistogramSample[];
}

export class Exposition<C extends Catalogue> {
  readonly #catalogue: C;
  readonly #samples = new Map<string, Sample[]>();
  readonly #histograms = new Map<string, HistogramSample[]>();

  constructor(catalogue: C) {
    this.#catalogue = catalogue;
  }

  /** @throws {VpnError} ERR_INVARIANT when the labels are not those of the catalogue */
  add(name: keyof C & string, labels: Labels, value: number): void {
    this.#check(name, labels);
    this.#put(name, { name, labels, value });
  }

  /** @param bounds those with which it was counted; the last count is of what was more */
  histogram(name: keyof C & string, labels: Labels, bounds: readonly number[], { counts, sum }: HistogramCounts): void {
    this.#check(name, labels);
    this.#histograms.set(name, [...(this.#histograms.get(name) ?? []), { labels, bounds, counts, sum }]);
    let total = 0;
    for (const [at, bound] of [...bounds, Number.POSITIVE_INFINITY].entries()) {
      total += counts[at] ?? 0;
      this.#put(name, { name: `${name}_bucket`, labels: { ...labels, le: formatValue(bound) }, value: total });
    }
    this.#put(name, { name: `${name}_sum`, labels, value: sum });
    this.#put(name, { name: `${name}_count`, labels, value: total });
  }

  /** In the order of the catalogue; metrics without a value are left out. */
  get families(): Family[] {
    return Object.entries(this.#catalogue).flatMap(([name, { type, help }]) => {
      const samples = this.#samples.get(name);
      return samples === undefined ? [] : [{ name, type, help, samples, histograms: this.#histograms.get(name) ?? [] }];
    });
  }

  /** In the order of the catalogue; metrics without a value are left out. */
  toString(): string {
    return Object.entries(this.#catalogue)
      .flatMap(([name, { type, help }]) => {
        const samples = this.#samples.get(name);
        if (samples === undefined) return [];
        return [
          `# HELP ${name} ${help.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')}\n# TYPE ${name} ${type}\n`,
          ...samples.map((sample) => `${sample.name}${formatLabels(sample.labels)} ${formatValue(sample.value)}\n`),
        ];
      })
      .join('');
  }

  #put(name: string, sample: Sample): void {
    const samples = this.#samples.get(name);
    if (samples === undefined) this.#samples.set(name, [sample]);
    else samples.push(sample);
  }

  #check(name: string, labels: Labels): void {
    const known = this.#catalogue[name]?.labels;
    const given = Object.keys(labels);
    if (known !== undefined && known.length === given.length && given.every((label) => known.includes(label))) return;
    throw new VpnError(
      'ERR_INVARIANT',
      `${name} has the labels ${known?.join(', ') ?? '(unknown)'}, got ${given.join(', ')}`,
    );
  }
}

function formatLabels(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(value)}"`);
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
}

function escapeLabel(value: string): string {
  return value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}

function formatValue(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return '+Inf';
  if (value === Number.NEGATIVE_INFINITY) return '-Inf';
  return Number.isNaN(value) ? 'NaN' : String(value);
}
