/**
 * The metrics and the readiness of a gateway, gathered when somebody asks.
 *
 * Hides that there are several processes. What a worker reports is a number under a name that we know, or it is left out:
 * one that has been taken over can lie about its own numbers, and neither make up a name nor a label.
 */

import { ERROR_CODES } from '../../base/errors.ts';
import { LoopDelay } from '../../base/histogram.ts';
import { DROP_REASON_NAMES } from '../../ip/drop-reason.ts';
import { type ProcessUsage, processUsage } from '../../os/process-usage.ts';
import { REJECT_CODES } from '../../protocol/messages.ts';
import { Exposition } from '../../telemetry/exposition.ts';
import { GATEWAY_METRICS, LOOP_DELAY_BOUNDS } from '../../telemetry/gateway-metrics.ts';
import type { OtlpExporter } from '../../telemetry/otlp.ts';
import { HANDSHAKE_BOUNDS } from '../../transport/listener.ts';
import type { HostReport, WorkerReport } from '../ipc/ports.ts';
import { type GatewayFacts, reportsOf } from './operations.ts';
import type { AuthService } from './service.ts';

const TICK_MS = 1000;

export type GatewayExposition = Exposition<typeof GATEWAY_METRICS>;

/** Whether clients can be served. */
export interface Readiness {
  readonly ready: boolean;
  readonly problems: readonly string[];
}

export interface MetricsSources {
  readonly service: AuthService;
  readonly facts: GatewayFacts;
  /** How the host is. */
  report(): Promise<HostReport>;
  /** Requests to a collector; undefined: there is none. */
  exports?: () => OtlpExporter['counts'] | undefined;
  /** Monotonic milliseconds. */
  now?: () => number;
}

export class GatewayMetrics implements Disposable {
  readonly #sources: MetricsSources;
  readonly #loop = new LoopDelay(TICK_MS, LOOP_DELAY_BOUNDS);
  readonly #timer: NodeJS.Timeout;
  readonly #now: () => number;

  constructor(sources: MetricsSources) {
    this.#sources = sources;
    this.#now = sources.now ?? (() => performance.now());
    this.#timer = setInterval(() => this.#loop.tick(this.#now()), TICK_MS);
    this.#timer.unref();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }

  /** In the text that Prometheus reads. */
  async read(): Promise<string> {
    return (await this.gather()).toString();
  }

  async gather(): Promise<GatewayExposition> {
    const { service, facts } = this.#sources;
    const [host, reports, store, warnings, webhooks] = await Promise.all([
      this.#sources.report().catch(() => undefined),
      reportsOf(service),
      this.#lookAtStore(),
      service.warnings({ ends: true }).catch(() => []),
      service.webhooks.list().catch(() => []),
    ]);
    const out: GatewayExposition = new Exposition(GATEWAY_METRICS);
    out.add('customvpn_info', { version: facts.version }, 1);
    out.add('customvpn_start_time_seconds', {}, facts.since / 1000);
    out.add('customvpn_pool_leases', {}, service.pool.leased);
    out.add('customvpn_pool_size', {}, service.pool.size);
    for (const [kind, count] of Object.entries(service.banCounts)) out.add('customvpn_bans', { kind }, count);
    for (const { worker, report } of reports) addWorker(out, String(worker), report);
    for (const [worker, count] of service.workerStarts) {
      out.add('customvpn_worker_starts_total', { worker: String(worker) }, count);
    }
    for (const [rule, count] of Object.entries(host?.counters ?? {})) {
      out.add('customvpn_kernel_packets_total', { rule }, count);
    }
    addUsage(out, 'auth', processUsage());
    out.histogram(
      'customvpn_event_loop_delay_seconds',
      { process: 'auth' },
      LOOP_DELAY_BOUNDS,
      this.#loop.histogram.read(),
    );
    for (const [certificate, at] of service.certificateEnds()) {
      out.add('customvpn_certificate_expiry_seconds', { certificate }, at / 1000);
    }
    out.add('customvpn_store_latency_seconds', {}, store.ms / 1000);
    out.add('customvpn_store_up', {}, store.isUp ? 1 : 0);
    out.add('customvpn_draining', {}, service.isDraining ? 1 : 0);
    out.add('customvpn_warnings', {}, warnings.length + (host?.warnings.length ?? 1));
    for (const { name: webhook, delivered, failed, died, waiting } of webhooks) {
      out.add('customvpn_webhook_events_total', { webhook, result: 'delivered' }, delivered);
      out.add('customvpn_webhook_events_total', { webhook, result: 'put_aside' }, died);
      out.add('customvpn_webhook_failures_total', { webhook }, failed);
      out.add('customvpn_webhook_waiting', { webhook }, waiting);
    }
    for (const [hook, counts] of service.hookCounts) {
      for (const [result, count] of Object.entries(counts))
        out.add('customvpn_hook_calls_total', { hook, result }, count);
    }
    for (const [signal, counts] of Object.entries(this.#sources.exports?.() ?? {})) {
      for (const [result, count] of Object.entries(counts))
        out.add('customvpn_otlp_requests_total', { signal, result }, count);
    }
    if (service.spans !== undefined) out.add('customvpn_spans_dropped_total', {}, service.spans.dropped);
    return out;
  }

  async readiness(): Promise<Readiness> {
    const { service } = this.#sources;
    const [reports, store] = await Promise.all([reportsOf(service), this.#lookAtStore()]);
    const server = service.certificateEnds().get('server');
    const problems = [
      ...(store.isUp ? [] : ['the store cannot be read']),
      ...(reports.some(({ report }) => report !== undefined) ? [] : ['no worker answers']),
      ...(service.isDraining ? ['the gateway is drained: it lets nobody new in'] : []),
      ...(server !== undefined && server <= service.wallNow() ? ['the server certificate has ended'] : []),
    ];
    return { ready: problems.length === 0, problems };
  }

  async #lookAtStore(): Promise<{ isUp: boolean; ms: number }> {
    const started = this.#now();
    const isUp = await this.#sources.service.lookAtStore().then(
      () => true,
      () => false,
    );
    return { isUp, ms: this.#now() - started };
  }
}

const CODES: ReadonlySet<string> = new Set([...ERROR_CODES, ...REJECT_CODES].map((code) => code.toLowerCase()));

const OUTCOMES: Readonly<Record<string, string>> = {
  accepted: 'accepted',
  channels: 'tunnel',
  frontDoor: 'front_door',
  refusedSource: 'refused_source',
  refusedBanned: 'refused_banned',
  refusedHandshakes: 'refused_handshakes',
  handedOver: 'handed_over',
};

const COUNTERS = {
  resumes: 'customvpn_resumes_total',
  rekeys: 'customvpn_rekeys_total',
  rekeyGaps: 'customvpn_rekey_gaps_total',
  attached: 'customvpn_data_connections_total',
  queue_marked_packets: 'customvpn_queue_marked_packets_total',
  proxy_streams: 'customvpn_proxy_streams_total',
  proxy_open: 'customvpn_proxy_streams',
  proxy_refused: 'customvpn_proxy_refusals_total',
  handshakes: 'customvpn_handshakes_in_flight',
  queue_memory_bytes: 'customvpn_queue_memory_bytes',
} as const satisfies Readonly<Record<string, keyof typeof GATEWAY_METRICS>>;

const GAUGES = {
  queue_bytes: 'customvpn_queue_bytes',
  queue_delay_seconds: 'customvpn_queue_delay_seconds',
} as const satisfies Readonly<Record<string, keyof typeof GATEWAY_METRICS>>;

/** Everything of one worker; `report` undefined: it does not answer. */
export function addWorker(out: GatewayExposition, worker: string, report: WorkerReport | undefined): void {
  out.add('customvpn_worker_up', { worker }, report === undefined ? 0 : 1);
  if (report === undefined) return;
  const { sessions, waiting, counters, drops, traffic, gauges, histograms } = report;
  out.add('customvpn_sessions', { worker, state: 'connected' }, sessions - waiting);
  out.add('customvpn_sessions', { worker, state: 'waiting' }, waiting);
  out.add('customvpn_logins_total', { worker, result: 'accepted' }, counters.logins ?? 0);
  out.add('customvpn_logins_total', { worker, result: 'refused' }, counters.loginFailures ?? 0);
  for (const [key, name] of Object.entries(COUNTERS)) {
    // Where it is no proxy it has no counters of one.
    if (counters[key] !== undefined) out.add(name, { worker }, counters[key]);
  }
  for (const [key, outcome] of Object.entries(OUTCOMES)) {
    out.add('customvpn_connections_total', { worker, outcome }, counters[key] ?? 0);
  }
  for (const [code, count] of byCode(counters, 'refused_'))
    out.add('customvpn_refusals_total', { worker, code }, count);
  for (const [code, count] of byCode(counters, 'handshake_')) {
    out.add('customvpn_handshake_failures_total', { worker, code }, count);
  }
  out.add('customvpn_bytes_total', { worker, direction: 'received' }, traffic.receivedBytes);
  out.add('customvpn_bytes_total', { worker, direction: 'sent' }, traffic.sentBytes);
  out.add('customvpn_packets_total', { worker, direction: 'received' }, traffic.receivedPackets);
  out.add('customvpn_packets_total', { worker, direction: 'sent' }, traffic.sentPackets);
  for (const reason of DROP_REASON_NAMES) {
    if (reason !== 'none') out.add('customvpn_drops_total', { worker, reason }, drops[reason] ?? 0);
  }
  for (const cause of ['length', 'time'] as const) {
    out.add('customvpn_queue_signals_total', { worker, cause }, counters[`queue_signals_by_${cause}`] ?? 0);
  }
  for (const [key, name] of Object.entries(GAUGES)) out.add(name, { worker }, gauges[key] ?? 0);
  for (const quantile of ['0.5', '0.9', '1'] as const) {
    const value = gauges[`round_trip_${quantile}`];
    if (value !== undefined) out.add('customvpn_round_trip_seconds', { worker, quantile }, value);
  }
  const none = { counts: [], sum: 0 };
  out.histogram('customvpn_handshake_seconds', { worker }, HANDSHAKE_BOUNDS, histograms.handshake ?? none);
  const process = `worker ${worker}`;
  out.histogram('customvpn_event_loop_delay_seconds', { process }, LOOP_DELAY_BOUNDS, histograms.loop_delay ?? none);
  const { peak_bytes = 0, heap_bytes = 0, external_bytes = 0, cpu_seconds = 0 } = gauges;
  addUsage(out, process, { peak_bytes, heap_bytes, external_bytes, cpu_seconds });
}

function addUsage(out: GatewayExposition, process: string, usage: ProcessUsage): void {
  out.add('customvpn_peak_bytes', { process }, usage.peak_bytes);
  out.add('customvpn_heap_bytes', { process }, usage.heap_bytes);
  out.add('customvpn_external_bytes', { process }, usage.external_bytes);
  out.add('customvpn_cpu_seconds_total', { process }, usage.cpu_seconds);
}

/** The counters that begin like this, by a code that we know; all others are one. */
function byCode(counters: Readonly<Record<string, number>>, prefix: string): Map<string, number> {
  const sums = new Map<string, number>();
  for (const [key, count] of Object.entries(counters)) {
    if (!key.startsWith(prefix)) continue;
    const code = key.slice(prefix.length);
    const known = CODES.has(code) ? code : 'other';
    sums.set(known, (sums.get(known) ?? 0) + count);
  }
  return sums;
}
