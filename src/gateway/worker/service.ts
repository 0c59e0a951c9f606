/**
 * A worker as a whole: the port that clients connect to, and the data plane behind it.
 *
 * Hides listener and data plane from whoever runs a worker, in this process or in one of its own. Everything it works with
 * is handed in: the listening socket, the devices, the certificates, auth. It opens nothing.
 */

import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { nodePrimitives } from '../../base/primitives.ts';
import type { SessionInfo } from '../../control/operations.ts';
import { formatIp } from '../../ip/address.ts';
import { DROP_REASON_NAMES } from '../../ip/drop-reason.ts';
import type { ClassRule } from '../../ip/traffic-class.ts';
import { processUsage } from '../../os/process-usage.ts';
import type { CloseReason, ConfigMessage } from '../../protocol/messages.ts';
import { type Endpoint, sourceOf } from '../../transport/endpoint.ts';
import { Listener, type ListenerLimits } from '../../transport/listener.ts';
import type { QueueBudget } from '../../transport/queue-budget.ts';
import type { ServerCredentials } from '../../transport/tls.ts';
import type { GatewayConfig } from '../config.ts';
import {
  type AuthPort,
  type DetachedSession,
  type DialPort,
  type ProxyKey,
  type ProxyPort,
  type RefusedSource,
  SESSIONS_PER_PAGE,
  type SessionKey,
  type Shapes,
  type WorkerPort,
  type WorkerReport,
} from '../ipc/ports.ts';
import { isWithinAny } from '../networks.ts';
import type { Handover } from './handover.ts';
import type { Session } from './session.ts';
import { Streams } from './streams.ts';
import { Worker, type WorkerDevices } from './worker.ts';

export interface WorkerServiceOptions {
  config: GatewayConfig;
  auth: AuthPort;
  devices: WorkerDevices;
  /** The ways to the other workers and from them. */
  handover?: Handover | undefined;
  /** For those who use the gateway as a proxy; undefined: it is none. */
  proxy?: { readonly auth: ProxyPort; readonly dialler: DialPort } | undefined;
  clock: Clock;
  log: Logger;
}

export class WorkerService implements WorkerPort {
  readonly #options: WorkerServiceOptions;
  readonly #worker: Worker;
  readonly #streams: Streams | undefined;
  #isExempt: (address: string) => boolean;
  #limits: GatewayConfig['limits'];
  #refused: ReadonlyMap<string, number> = new Map();
  #listener: Listener | undefined;

  constructor(options: WorkerServiceOptions) {
    const { config, auth, devices, proxy, clock, log } = options;
    this.#options = options;
    this.#limits = config.limits;
    this.#isExempt = isWithinAny(config.limits.allow);
    this.#worker = new Worker({ config, auth, devices, primitives: nodePrimitives, clock, log });
    const { rates } = this.#worker;
    this.#streams = proxy === undefined ? undefined : new Streams({ ...proxy, rates, config, clock, log });
  }

  /** Takes over sessions that wait for their clients. Before `start`. */
  restore(waiting: readonly DetachedSession[]): void {
    this.#worker.restore(waiting);
  }

  /**
   * Lets clients connect.
   *
   * @param fd a listening socket, which it takes over
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE, ERR_SYSCALL
   */
  async start(fd: number, credentials: ServerCredentials): Promise<void> {
    const { config, log, clock, handover } = this.#options;
    const streams = this.#streams;
    this.#listener = await Listener.open({
      fd,
      credentials,
      requireClientAuth: config.requireClientAuth,
      minVersion: config.minVersion,
      isProxy: isWithinAny(config.proxyFrom),
      ...listenerLimits(this.#limits),
      isRefused: (address) => this.#isRefused(address),
      greetWithoutAlpn: config.greetWithoutAlpn,
      ...(config.camouflage === undefined
        ? {}
        : { camouflage: { path: config.camouflage, only: config.camouflageOnly } }),
      dataQueueBytes: config.data.queueBytes,
      queues: this.#worker.queues,
      ...(handover === undefined ? {} : { handOver: (...connection) => handover.give(...connection) }),
      onChannel: (channel) => this.#worker.accept(channel),
      onCertificateRefused: (refusal) => this.#worker.certificateRefused(refusal),
      ...(streams === undefined ? {} : { onProxyRequest: (request) => streams.handle(request) }),
      log,
      clock,
    });
    handover?.start(this.#listener);
    this.#worker.start();
  }

  /** Where it listens. @throws {VpnError} ERR_NOT_RUNNING */
  get address(): Endpoint {
    if (this.#listener === undefined) throw new VpnError('ERR_NOT_RUNNING', 'the worker does not listen');
    return this.#listener.address;
  }

  /** The live sessions, oldest first. */
  get sessions(): SessionInfo[] {
    return this.#worker.sessions.map(sessionInfo);
  }

  /** Uses other certificates for handshakes from now on. @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH */
  useCredentials(credentials: ServerCredentials): void {
    this.#listener?.reload(credentials);
  }

  close(session: SessionKey, reason: CloseReason): void {
    this.#worker.close(session, reason);
  }

  configure(session: SessionKey, config: ConfigMessage): void {
    this.#worker.configure(session, config);
  }

  async release(session: SessionKey): Promise<void> {
    this.#worker.release(session);
  }

  drain(seconds: number): void {
    this.#worker.drain(seconds);
  }

  closeProxy(key: ProxyKey): void {
    this.#streams?.closeProxy(key);
  }

  recheckStreams(): void {
    this.#streams?.recheckStreams();
  }

  limit(limits: GatewayConfig['limits']): void {
    this.#limits = limits;
    this.#isExempt = isWithinAny(limits.allow);
    this.#worker.limits = limits;
    this.#listener?.limit(listenerLimits(limits));
  }

  refuse(sources: readonly RefusedSource[]): void {
    this.#refused = new Map(sources.map(({ source, until }) => [source, until]));
  }

  shape(shapes: Shapes): void {
    this.#worker.shape(shapes);
  }

  classify(rules: readonly ClassRule[]): void {
    this.#worker.classify(rules);
  }

  async report(): Promise<WorkerReport> {
    const { sessions, counters, queues, refusals, drops } = this.#worker;
    const { failed = {}, ...connections } = this.#listener?.counters ?? {};
    return {
      sessions: sessions.length,
      waiting: sessions.filter(({ isDetached }) => isDetached).length,
      counters: {
        ...connections,
        ...prefixed('handshake_', failed),
        handshakes: this.#listener?.handshakeCount ?? 0,
        ...counters,
        ...streamCounters(this.#streams),
        ...queueCounters(queues),
        ...this.#worker.ethernetCounters,
        ...prefixed('refused_', refusals),
      },
      drops: Object.fromEntries(DROP_REASON_NAMES.map((name, reason) => [name, drops[reason] ?? 0])),
      traffic: this.#worker.traffic,
      gauges: { ...processUsage(), ...queueGauges(queues), ...roundTrips(sessions) },
      histograms: {
        loop_delay: this.#worker.loop.histogram.read(),
        ...(this.#listener === undefined ? {} : { handshake: this.#listener.handshakeSeconds.read() }),
      },
    };
  }

  async listSessions(after: number): Promise<SessionInfo[]> {
    return this.#worker.sessions.slice(after, after + SESSIONS_PER_PAGE).map(sessionInfo);
  }

  /** How many handshakes may be in flight; those of other workers' connections among them. */
  get maxHandshakes(): number {
    return this.#limits.handshakesInFlight;
  }

  /** Nobody connects any more. Idempotent. */
  async closePort(): Promise<void> {
    await this.#listener?.close();
  }

  /** Tells every client and ends every connection; resolves when auth knows of every session's end. */
  async stop(reason: CloseReason): Promise<void> {
    // Clients that are told now come back at once, by other workers: they must not wait for this one.
    this.#options.handover?.close();
    await this.closePort();
    this.#streams?.stop();
    await this.#worker.stop(reason);
  }

  #isRefused(address: string): boolean {
    if (this.#refused.size === 0) return false;
    const until = this.#refused.get(sourceOf(address));
    return until !== undefined && until > this.#options.clock.wallNow() && !this.#isExempt(address);
  }
}

function listenerLimits(limits: GatewayConfig['limits']): ListenerLimits {
  return {
    proxyHeaderTimeoutMs: limits.proxyHeaderSeconds * 1000,
    handshakeTimeoutMs: limits.handshakeSeconds * 1000,
    maxHandshakes: limits.handshakesInFlight,
    maxConnectionsPerSource: limits.connectionsPerSource,
  };
}

function prefixed(prefix: string, counts: Readonly<Partial<Record<string, number>>>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(counts).map(([code, count]) => [`${prefix}${code.toLowerCase()}`, count ?? 0]),
  );
}

function queueCounters({ counters, heldBytes }: QueueBudget): Record<string, number> {
  return {
    queue_memory_bytes: heldBytes,
    queue_marked_packets: counters.marked,
    queue_split_parts: counters.parts,
    queue_signals_by_length: counters.signalsByLength,
    queue_signals_by_time: counters.signalsByTime,
  };
}

function queueGauges({ waiting: { bytes, ms } }: QueueBudget): Record<string, number> {
  return { queue_bytes: bytes, queue_delay_seconds: ms / 1000 };
}

/** In seconds, by quantile; none where no session has been asked yet. */
function roundTrips(sessions: readonly Session[]): Record<string, number> {
  const sorted = sessions.flatMap(({ roundTripMs }) => roundTripMs ?? []).sort((a, b) => a - b);
  if (sorted.length === 0) return {};
  const at = (quantile: number): number => (sorted[Math.ceil(quantile * sorted.length) - 1] ?? 0) / 1000;
  return { 'round_trip_0.5': at(0.5), 'round_trip_0.9': at(0.9), round_trip_1: at(1) };
}

function sessionInfo(session: Session): SessionInfo {
  const { receivedBytes, sentBytes } = session.link.counters;
  const { lease, device } = session.granted;
  return {
    id: session.shortId,
    user: session.user,
    device,
    addresses: [lease.v4, lease.v6].flatMap((address) => (address === undefined ? [] : [formatIp(address)])),
    peer: session.remote,
    waiting: session.isDetached,
    superPackets: session.superPackets,
    channels: session.dataChannels,
    // Auth knows them, whichever worker has them.
    streams: 0,
    since: new Date(session.since).toISOString(),
    receivedBytes,
    sentBytes,
    roundTripMs: session.roundTripMs ?? null,
  };
}

function streamCounters(streams: Streams | undefined): Record<string, number> {
  if (streams === undefined) return {};
  const { opened, open, refused, challenged, droppedDatagrams } = streams.counters;
  return {
    proxy_streams: opened,
    proxy_open: open,
    proxy_refused: refused,
    proxy_challenged: challenged,
    proxy_dropped_datagrams: droppedDatagrams,
    ...prefixed('proxy_refused_', streams.refusals),
  };
}
