/**
 * Sends metrics and spans to an OpenTelemetry collector: OTLP 1 over HTTP, as JSON.
 *
 * Hides the encoding and what happens when nobody is there: metrics are sent anew at the next interval, since their sums are those of
 * the whole life of the gateway; spans wait in their bounded queue. That a collector does not answer is said once, and once that
 * it does again.
 */

import { toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { Repeat } from '../base/repeat.ts';
import type { Family, Labels } from './exposition.ts';
import { Poster } from './post.ts';
import type { EndedSpan, SpanQueue } from './tracing.ts';

const TIMEOUT_MS = 10_000;
const SPAN_INTERVAL_MS = 5000;
const SPANS_PER_REQUEST = 512;
/** What is left at the end is sent if that is fast. */
const LAST_MS = 2000;
/** Sums are of the whole life. */
const CUMULATIVE = 2;
const KIND_INTERNAL = 1;
const STATUS_ERROR = 2;

export interface OtlpOptions {
  /** Without `/v1/…`. */
  readonly endpoint: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly ca?: string | undefined;
  /** Who speaks. */
  readonly resource: Readonly<Record<string, string>>;
  /** When the gateway was started, milliseconds since the Unix epoch. */
  readonly since: number;
  /** Undefined: none are sent. */
  readonly metrics: { readonly everyMs: number; gather(): Promise<Family[]> } | undefined;
  readonly spans: SpanQueue | undefined;
  readonly spanIntervalMs?: number;
  readonly log: Logger;
}

export type Signal = 'metrics' | 'traces';

export class OtlpExporter implements AsyncDisposable {
  readonly #options: OtlpOptions;
  readonly #log: Logger;
  readonly #poster: Poster;
  readonly #works: readonly Repeat[];
  readonly #stopping = new AbortController();
  readonly #counts = { metrics: { sent: 0, failed: 0 }, traces: { sent: 0, failed: 0 } };
  #isFailing = false;

  constructor(options: OtlpOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'otlp' });
    this.#poster = new Poster({ url: options.endpoint, ca: options.ca, timeoutMs: TIMEOUT_MS });
    const { metrics, spans, spanIntervalMs = SPAN_INTERVAL_MS } = options;
    const failed = (error: unknown): void => this.#log.error('nothing could be sent', { error });
    this.#works = [
      ...(metrics === undefined ? [] : [new Repeat(metrics.everyMs, () => this.#sendMetrics(), failed)]),
      ...(spans === undefined ? [] : [new Repeat(spanIntervalMs, () => this.#sendSpans(), failed)]),
    ];
    for (const work of this.#works) work.start();
  }

  /** Requests by what is in them and what became of them; plain numbers. */
  get counts(): Readonly<Record<Signal, { readonly sent: number; readonly failed: number }>> {
    return this.#counts;
  }

  /** Sends what there is. Never rejects. */
  async send(): Promise<void> {
    await Promise.all(this.#works.map((work) => work.run()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const late = setTimeout(() => this.#stopping.abort(), LAST_MS);
    await Promise.all(this.#works.map((work) => work.stop()));
    await this.send();
    clearTimeout(late);
    this.#poster[Symbol.dispose]();
  }

  async #sendMetrics(): Promise<void> {
    const { metrics, since } = this.#options;
    if (metrics === undefined) return;
    const families = await metrics.gather();
    const encoded = families.map((family) => encodeFamily(family, nanos(since), nanos(Date.now())));
    const scope = { scopeMetrics: [{ scope: this.#scope, metrics: encoded }] };
    await this.#post('metrics', { resourceMetrics: [{ resource: this.#resource, ...scope }] });
  }

  async #sendSpans(): Promise<void> {
    const { spans } = this.#options;
    for (;;) {
      const taken = spans?.take(SPANS_PER_REQUEST) ?? [];
      if (taken.length === 0) return;
      const scope = { scopeSpans: [{ scope: this.#scope, spans: taken.map(encodeSpan) }] };
      if (!(await this.#post('traces', { resourceSpans: [{ resource: this.#resource, ...scope }] }))) {
        spans?.putBack(taken);
        return;
      }
    }
  }

  get #scope() {
    return { name: 'customvpn', version: this.#options.resource['service.version'] ?? '' };
  }

  get #resource() {
    return { attributes: encodeAttributes(Object.entries(this.#options.resource)) };
  }

  /** Whether it was taken, or never will be. */
  async #post(signal: Signal, message: object): Promise<boolean> {
    const { headers } = this.#options;
    try {
      const more = { path: `/v1/${signal}`, signal: this.#stopping.signal };
      const { status } = await this.#poster.post(JSON.stringify(message), headers, more);
      // Those who are told that it is wrong must not say it again.
      if (status >= 400 && status < 500 && status !== 429 && status !== 408) {
        this.#failed(signal, `the collector answered ${status}`);
        return true;
      }
      if (status < 200 || status >= 300) throw new VpnError('ERR_BACKEND', `the collector answered ${status}`);
    } catch (error) {
      this.#failed(signal, toVpnError(error).message);
      return false;
    }
    this.#counts[signal].sent += 1;
    if (this.#isFailing) this.#log.info('the collector takes telemetry again');
    this.#isFailing = false;
    return true;
  }

  #failed(signal: Signal, reason: string): void {
    this.#counts[signal].failed += 1;
    if (!this.#isFailing) this.#log.warn('the collector does not take telemetry', { signal, reason });
    this.#isFailing = true;
  }
}

function encodeFamily({ name, type, help, samples, histograms }: Family, start: string, now: string): object {
  const times = { startTimeUnixNano: start, timeUnixNano: now };
  const described = { name, description: help };
  if (type === 'histogram') {
    const dataPoints = histograms.map(({ labels, bounds, counts, sum }) => {
      const all = [...bounds, Number.POSITIVE_INFINITY].map((_, at) => counts[at] ?? 0);
      const count = all.reduce((total, one) => total + one, 0);
      return {
        ...{ ...times, attributes: encodeLabels(labels), count: String(count), sum },
        ...{ bucketCounts: all.map(String), explicitBounds: [...bounds] },
      };
    });
    return { ...described, histogram: { dataPoints, aggregationTemporality: CUMULATIVE } };
  }
  const dataPoints = samples
    .filter(({ value }) => Number.isFinite(value))
    .map(({ labels, value }) => ({ ...times, attributes: encodeLabels(labels), asDouble: value }));
  return type === 'counter'
    ? { ...described, sum: { dataPoints, aggregationTemporality: CUMULATIVE, isMonotonic: true } }
    : { ...described, gauge: { dataPoints } };
}

function encodeSpan({ traceId, spanId, parentId, name, startedAt, endedAt, attributes, failure }: EndedSpan): object {
  return {
    ...{ traceId, spanId, ...(parentId === undefined ? {} : { parentSpanId: parentId }), name, kind: KIND_INTERNAL },
    ...{ startTimeUnixNano: nanos(startedAt), endTimeUnixNano: nanos(endedAt) },
    attributes: encodeAttributes(attributes),
    status: failure === undefined ? {} : { code: STATUS_ERROR, message: failure },
  };
}

function encodeLabels(labels: Labels): object[] {
  return encodeAttributes(Object.entries(labels));
}

function encodeAttributes(pairs: Iterable<readonly [string, string | number | boolean]>): object[] {
  return [...pairs].map(([key, value]) => {
    if (typeof value === 'string') return { key, value: { stringValue: value } };
    if (typeof value === 'boolean') return { key, value: { boolValue: value } };
    return { key, value: Number.isInteger(value) ? { intValue: String(value) } : { doubleValue: value } };
  });
}

/** @param ms milliseconds since the Unix epoch */
function nanos(ms: number): string {
  return String(BigInt(Math.round(ms * 1000)) * 1000n);
}
