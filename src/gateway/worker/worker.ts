/**
 * The data plane of a gateway: connections, sessions and the packets between them and the TUN devices.
 *
 * Hides who is connected and where a packet goes. It has no privilege and decides nothing about access: it asks auth
 * through `AuthPort` and gets its devices and connections handed in. One coarse tick serves all sessions; per packet there
 * is a look-up, a header and a write.
 */

import { Chores } from '../../base/chores.ts';
import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import { LoopDelay } from '../../base/histogram.ts';
import type { Logger } from '../../base/log.ts';
import { SleepWatch } from '../../base/sleep-watch.ts';
import { type Prefix, parsePrefix } from '../../ip/address.ts';
import { DROP_REASON_NAMES, DropReason } from '../../ip/drop-reason.ts';
import { RouteTable } from '../../ip/route-table.ts';
import type { ClassRule } from '../../ip/traffic-class.ts';
import { PACKET_OFFSET, type TunDevice, type TunReader } from '../../os/tun.ts';
import { Feature } from '../../protocol/features.ts';
import type { Primitives } from '../../protocol/keys.ts';
import type { CloseReason, ConfigMessage } from '../../protocol/messages.ts';
import { LOOP_DELAY_BOUNDS } from '../../telemetry/gateway-metrics.ts';
import type { Channel } from '../../transport/channel.ts';
import { formatEndpoint } from '../../transport/endpoint.ts';
import { EthernetLink } from '../../transport/ethernet-link.ts';
import type { CertificateRefusal } from '../../transport/listener.ts';
import { LogLimit } from '../../transport/log-limit.ts';
import { PacketBufferPool, PacketLink, SendBatch, type TunnelLink } from '../../transport/packet-link.ts';
import { QueueBudget } from '../../transport/queue-budget.ts';
import type { RekeyCounters } from '../../transport/slot.ts';
import type { GatewayConfig } from '../config.ts';
import {
  type AuthPort,
  type DetachedSession,
  type ResumedSession,
  type SessionGrant,
  type SessionKey,
  type SessionTraffic,
  SHAPES_PER_MESSAGE,
  type Shapes,
} from '../ipc/ports.ts';
import { openPool } from '../pool.ts';
import { isBridging, switchOptions } from '../tap-config.ts';
import { Connection, type ConnectionHost, type StageLimits } from './connection.ts';
import { EthernetPlane } from './ethernet-plane.ts';
import { type Former, Session } from './session.ts';
import { Shaping } from './shaping.ts';
import type { StreamRates } from './streams.ts';

const TICK_MS = 1000;
const MAX_REASON = 256;
/** Auth hears so often of what sessions carry. */
const REPORT_TICKS = 5;
/** So many sessions are looked at in one piece: all may have to be asked at once whether they live. */
const SESSIONS_PER_STEP = 16;

/** The devices a worker reads and writes. */
export interface WorkerDevices {
  readonly primary: TunDevice;
  /** For peers that cannot take the super-packets of the primary device: the kernel cuts and checksums for them. */
  readonly plain?: TunDevice | undefined;
}

export interface WorkerOptions {
  config: GatewayConfig;
  auth: AuthPort;
  devices: WorkerDevices;
  primitives: Primitives;
  clock: Clock;
  log: Logger;
}

/** Plain integers, read at scrape. */
export interface WorkerCounters extends RekeyCounters {
  connections: number;
  logins: number;
  resumes: number;
  loginFailures: number;
  attached: number;
}

/** Connections that came to nothing, by error or reject code. */
export type Refusals = Readonly<Record<string, number>>;

export class Worker implements ConnectionHost {
  readonly auth: AuthPort;
  readonly primitives: Primitives;
  readonly features: string[];
  readonly drops: Float64Array = new Float64Array(DROP_REASON_NAMES.length);
  /** For the data queues of every connection that is handed in. */
  readonly queues: QueueBudget;
  readonly counters: WorkerCounters = {
    connections: 0,
    logins: 0,
    resumes: 0,
    loginFailures: 0,
    attached: 0,
    rekeys: 0,
    rekeyGaps: 0,
  };
  readonly #refusals: Record<string, number> = {};
  /** How late the tick comes. */
  readonly loop = new LoopDelay(TICK_MS, LOOP_DELAY_BOUNDS);
  readonly strangers: LogLimit;
  /** How long the stages of a login may take. May be replaced at any time. */
  limits: StageLimits;
  readonly #options: WorkerOptions;
  readonly #sleep: SleepWatch;
  readonly #chores = new Chores();
  readonly #log: Logger;
  /** Whose packets go to which session: its addresses, and the networks behind its client. */
  readonly #routes = new RouteTable<Session>();
  readonly #networks = new Map<Session, readonly Prefix[]>();
  readonly #sessions = new Map<SessionKey, Session>();
  readonly #connections = new Set<Connection>();
  readonly #pools = new Map<TunDevice, PacketBufferPool>();
  /** Where Ethernet is bridged. */
  readonly #plane: EthernetPlane | undefined;
  readonly #batch = new SendBatch();
  readonly #shaping: Shaping;
  #hasReported = false;
  /** What is still to be said to auth of sessions that have ended or wait. */
  readonly #endings = new Set<Promise<void>>();
  /** Packets of each session that auth has heard of. */
  readonly #told = new Map<Session, number>();
  /** What the sessions that have ended had carried. */
  readonly #ended: SessionTraffic = { receivedBytes: 0, receivedPackets: 0, sentBytes: 0, sentPackets: 0 };
  #ticks = 0;
  /** Sessions are being looked at; what the machine slept since they began to be. */
  #isLooking = false;
  #sleptMs = 0;
  #nextConnection = 0;
  #tick: NodeJS.Timeout | undefined;
  #isStopping = false;
  /** When the gateway stops serving, monotonic; undefined: not soon. */
  #drainsAt: number | undefined;

  constructor(options: WorkerOptions) {
    this.#options = options;
    this.limits = options.config.limits;
    this.auth = options.auth;
    this.primitives = options.primitives;
    this.#log = options.log.child({ component: 'worker' });
    this.queues = new QueueBudget(options.config.data.totalQueueBytes, this.drops);
    const { mtu, data } = options.config;
    this.#shaping = new Shaping({ mtu, queueBytes: data.queueBytes, queues: this.queues });
    this.strangers = new LogLimit(this.#log, options.clock);
    this.#sleep = new SleepWatch(
      () => options.clock.now(),
      () => options.clock.bootNow(),
    );
    const { devices, config } = options;
    this.#plane = isBridging(config) ? this.#createPlane(options) : undefined;
    this.features = [Feature.attach, Feature.resume, Feature.rekey, Feature.drain];
    if (this.#plane !== undefined) {
      this.features.push(Feature.ethernet);
      return;
    }
    this.features.push(
      Feature.compression,
      Feature.networks,
      ...(devices.primary.superPackets && config.data.superPackets ? [Feature.superPackets] : []),
      ...(devices.primary.uso && config.data.superPackets ? [Feature.udpSuperPackets] : []),
    );
    for (const device of [devices.primary, devices.plain]) {
      if (device !== undefined) this.#pools.set(device, new PacketBufferPool(device));
    }
  }

  /** Starts reading the devices and keeping time. */
  start(): void {
    this.#plane?.start();
    for (const device of this.#pools.keys()) device.start(new SessionReader(this.#routes, this.#batch, this.drops));
    this.#tick = setInterval(() => this.#handleTick(), TICK_MS);
    this.#tick.unref();
  }

  /** Takes over a connection whose TLS handshake is complete. */
  accept(channel: Channel): void {
    if (this.#isStopping) {
      channel.destroy();
      return;
    }
    this.counters.connections += 1;
    this.#nextConnection += 1;
    const now = this.#options.clock.now();
    const connection = new Connection(channel, String(this.#nextConnection), now, this, this.#log);
    this.#connections.add(connection);
    connection.start();
  }

  /** TLS has refused a client for its certificate. */
  certificateRefused({ remote, code, reason, certificate }: CertificateRefusal): void {
    if (this.#isStopping) return;
    const refused = { remote: formatEndpoint(remote), code, reason: reason.slice(0, MAX_REASON) };
    this.auth.certificateRefused(certificate === undefined ? refused : { ...refused, certificate });
  }

  /** The live sessions, oldest first. */
  get sessions(): readonly Session[] {
    return [...this.#sessions.values()];
  }

  /** What all sessions have carried, those that have ended included. */
  get traffic(): SessionTraffic {
    const sum = { ...this.#ended };
    for (const session of this.#sessions.values()) addTraffic(sum, session);
    return sum;
  }

  now(): number {
    return this.#options.clock.now();
  }

  findSession(key: SessionKey): Session | undefined {
    return this.#sessions.get(key);
  }

  close(key: SessionKey, reason: CloseReason): void {
    this.#sessions.get(key)?.close(reason);
  }

  configure(key: SessionKey, config: ConfigMessage): void {
    const session = this.#sessions.get(key);
    if (session === undefined) return;
    this.#routeNetworks(session, config);
    session.sendConfig(config);
  }

  /** The networks behind a client are those of its configuration; of two that have one, the later has it. */
  #routeNetworks(session: Session, { networks = [] }: Pick<ConfigMessage, 'networks'>): void {
    const { link } = session;
    if (!(link instanceof PacketLink)) return;
    const former = this.#networks.get(session) ?? [];
    if (former.length === 0 && networks.length === 0) return;
    for (const network of former) this.#forgetRoute(network, session);
    const own = networks.map(({ network, as }) => parsePrefix(as ?? network));
    for (const network of own) this.#routes.set(network, session);
    this.#networks.set(session, own);
    link.setNetworks(own);
  }

  #forgetRoute(prefix: Prefix, session: Session): void {
    // A device that logs in twice at once has the same addresses twice for a moment.
    if (this.#routes.get(prefix) === session) this.#routes.delete(prefix);
  }

  /** What users and groups may carry from now on. */
  shape(shapes: Shapes): void {
    this.#shaping.shape(shapes);
  }

  classify(rules: readonly ClassRule[]): void {
    this.#shaping.classify(rules);
  }

  /** What users may carry, for the streams that are here, too. */
  get rates(): StreamRates {
    return {
      streamOpened: (stream) => this.#shaping.streamOpened(stream),
      streamClosed: (stream) => {
        const reports = this.#shaping.streamClosed(stream);
        if (reports.length > 0) this.auth.usage(reports, false);
      },
    };
  }

  /** Of the switch, where Ethernet is bridged. */
  get ethernetCounters(): Readonly<Record<string, number>> {
    return this.#plane?.counters ?? {};
  }

  /** Asks all clients to move to another server, and whoever comes back from now on. */
  drain(seconds: number): void {
    this.#drainsAt = this.#options.clock.now() + seconds * 1000;
    for (const session of this.#sessions.values()) session.sendDrain(seconds);
  }

  get refusals(): Refusals {
    return this.#refusals;
  }

  /** Lets go of a session that another worker has taken over; its client knows. */
  release(key: SessionKey): void {
    const session = this.#sessions.get(key);
    if (session === undefined) return;
    this.#forget(session);
    session.close('replaced');
  }

  /** Tells every client and ends every connection; resolves when auth knows of every session's end. */
  async stop(reason: CloseReason): Promise<void> {
    this.#isStopping = true;
    clearInterval(this.#tick);
    for (const session of this.#sessions.values()) session.suspend(reason);
    for (const connection of this.#connections) connection.close(reason);
    this.#reportUsage();
    await Promise.all(this.#endings);
  }

  openSession(granted: SessionGrant, features: readonly string[], connection: Connection): Session {
    return this.#createSession(granted, features, connection, undefined);
  }

  /** Takes over sessions that wait for their clients since an earlier life of the worker. */
  restore(waiting: readonly DetachedSession[]): void {
    for (const { granted, features, ...former } of waiting) {
      const session = this.#createSession(granted, features, undefined, former);
      // Packets would come in a form that the client has not agreed to.
      if (!features.every((name) => this.features.includes(name))) session.close('shutdown');
    }
  }

  adoptSession({ granted, features, openedAt }: ResumedSession, remote: string): Session {
    return this.#createSession(granted, features, undefined, { remote, openedAt, detachedMs: 0 });
  }

  #createSession(
    granted: SessionGrant,
    features: readonly string[],
    connection: Connection | undefined,
    former: Former | undefined,
  ): Session {
    const { clock, config } = this.#options;
    const isSuper = features.includes(Feature.superPackets);
    const link = this.#plane?.open(granted.lease) ?? this.#createLink(granted, features);
    const session = new Session({
      granted,
      superPackets: isSuper,
      features,
      former,
      inline: config.data.mode === 'inline' || !features.includes(Feature.attach),
      link,
      control: connection,
      drops: this.drops,
      counters: this.counters,
      drainSeconds: () => this.#drainSeconds,
      clock,
      log: this.#log,
      detached: ({ granted: { key }, shortId }) => this.#tellAuth(shortId, () => this.auth.detach(key)),
      ended: (ended, reason, isKept) => this.#sessionEnded(ended, reason, isKept),
    });
    this.#sessions.set(granted.key, session);
    this.#shaping.opened(session);
    for (const prefix of addressesOf(granted)) this.#routes.set(prefix, session);
    this.#routeNetworks(session, granted.config);
    return session;
  }

  #createLink(granted: SessionGrant, features: readonly string[]): TunnelLink {
    const { devices } = this.#options;
    const superPackets = features.includes(Feature.superPackets);
    const device = superPackets ? devices.primary : (devices.plain ?? devices.primary);
    return new PacketLink({
      device,
      buffers: this.#buffersOf(device),
      batch: this.#batch,
      lease: granted.lease,
      ownAddress: 'source',
      superPackets,
      compression: features.includes(Feature.compression),
      limits: { mtu: device.mtu, uso: device.uso && features.includes(Feature.udpSuperPackets) },
      drops: this.drops,
    });
  }

  #createPlane({ devices, config }: WorkerOptions): EthernetPlane {
    const [seed = 0] = crypto.getRandomValues(new Int32Array(1));
    return new EthernetPlane({
      device: devices.primary,
      switching: switchOptions(config, openPool(config), seed),
      isLeased: config.tap.addressing === 'pool',
      batch: this.#batch,
      drops: this.drops,
    });
  }

  get #drainSeconds(): number | undefined {
    if (this.#drainsAt === undefined) return undefined;
    return Math.max(0, Math.round((this.#drainsAt - this.#options.clock.now()) / 1000));
  }

  sessionStarted(session: Session): void {
    this.counters.logins += 1;
    this.#announce(session);
    this.auth.started(session.granted.key, session.remote);
  }

  sessionResumed(session: Session, isChange: boolean): void {
    if (!isChange) this.counters.resumes += 1;
    this.#announce(session);
    this.auth.started(session.granted.key, session.remote);
  }

  #announce({ link }: Session): void {
    if (link instanceof EthernetLink) this.#plane?.announce(link);
  }

  dataAttached(): void {
    this.counters.attached += 1;
  }

  refused(connection: Connection, code: string): void {
    if (connection.session === undefined) this.counters.loginFailures += 1;
    this.#refusals[code] = (this.#refusals[code] ?? 0) + 1;
  }

  later(work: () => void): void {
    this.#chores.add(work);
  }

  connectionClosed(connection: Connection): void {
    this.#connections.delete(connection);
  }

  #sessionEnded(session: Session, reason: CloseReason, isKept: boolean): void {
    const { key } = session.granted;
    // Of one that has been released there is nothing more to say.
    if (!this.#forget(session)) return;
    this.#tellTraffic(session);
    this.#tellAuth(session.shortId, () => (isKept ? this.auth.detach(key, reason) : this.auth.end(key, reason)));
  }

  /** Takes a session out of the tables. @returns whether it was in them */
  #forget(session: Session): boolean {
    const { granted } = session;
    if (this.#sessions.get(granted.key) !== session) return false;
    this.#sessions.delete(granted.key);
    addTraffic(this.#ended, session);
    this.#told.delete(session);
    if (session.link instanceof EthernetLink) this.#plane?.close(session.link);
    for (const prefix of addressesOf(granted)) this.#forgetRoute(prefix, session);
    for (const network of this.#networks.get(session) ?? []) this.#forgetRoute(network, session);
    this.#networks.delete(session);
    return true;
  }

  /** Says what a session has carried, if that is news. */
  #tellTraffic(session: Session): void {
    const { receivedBytes, receivedPackets, sentBytes, sentPackets } = session.link.counters;
    const packets = receivedPackets + sentPackets;
    if ((this.#told.get(session) ?? 0) === packets) return;
    this.#told.set(session, packets);
    const traffic: SessionTraffic = { receivedBytes, receivedPackets, sentBytes, sentPackets };
    this.auth.traffic(session.granted.key, traffic);
  }

  #tellAuth(session: string, tell: () => Promise<void>): void {
    const telling = tell()
      .catch((error: unknown) => this.#log.error('what became of a session could not be recorded', { session, error }))
      .finally(() => this.#endings.delete(telling));
    this.#endings.add(telling);
  }

  #buffersOf(device: TunDevice): PacketBufferPool {
    const pool = this.#pools.get(device);
    if (pool === undefined) throw new VpnError('ERR_INVARIANT', `the worker does not own the device ${device.name}`);
    return pool;
  }

  #handleTick(): void {
    const now = this.#options.clock.now();
    this.loop.tick(performance.now());
    const { sleptMs } = this.#sleep.look();
    if (sleptMs > 0) this.#log.warn('this machine slept', { seconds: Math.round(sleptMs / 1000) });
    this.#ticks += 1;
    this.#plane?.handleTick();
    this.#sleptMs += sleptMs;
    if (!this.#isLooking) this.#lookAtSessions();
    for (const connection of this.#connections) connection.handleTick(now, this.limits);
    this.#reportUsage();
  }

  /** A few at a time, or packets would wait behind thousands. */
  #lookAtSessions(): void {
    this.#isLooking = true;
    const isReport = this.#ticks % REPORT_TICKS === 0;
    const sleptMs = this.#sleptMs;
    this.#sleptMs = 0;
    // Those that come meanwhile have not slept.
    const sessions = sleptMs > 0 ? [...this.#sessions.values()].values() : this.#sessions.values();
    const step = (): void => {
      const now = this.#options.clock.now();
      for (let count = 0; count < SESSIONS_PER_STEP; count += 1) {
        const { value: session } = sessions.next();
        if (session === undefined) {
          this.#isLooking = false;
          return;
        }
        session.handleTick(now, sleptMs);
        if (isReport) this.#tellTraffic(session);
      }
      this.later(step);
    };
    step();
  }

  #reportUsage(): void {
    const reports = this.#shaping.report();
    // Those that have stopped are told of once.
    if (reports.length === 0 && !this.#hasReported) return;
    this.#hasReported = reports.length > 0;
    for (let at = 0; at === 0 || at < reports.length; at += SHAPES_PER_MESSAGE) {
      this.auth.usage(reports.slice(at, at + SHAPES_PER_MESSAGE), at === 0);
    }
  }
}

/** Hands what a device reads to the session that has the destination address. */
class SessionReader implements TunReader {
  readonly #routes: RouteTable<Session>;
  readonly #batch: SendBatch;
  readonly #drops: Float64Array;

  constructor(routes: RouteTable<Session>, batch: SendBatch, drops: Float64Array) {
    this.#routes = routes;
    this.#batch = batch;
    this.#drops = drops;
  }

  packet(bytes: Uint8Array, length: number, gsoType: number, flags: number, gsoSize: number): void {
    const version = (bytes[PACKET_OFFSET] ?? 0) >>> 4;
    const session =
      version === 4
        ? this.#routes.lookup(bytes, PACKET_OFFSET + 16, 4)
        : version === 6
          ? this.#routes.lookup(bytes, PACKET_OFFSET + 24, 6)
          : undefined;
    if (session === undefined) this.#drops[DropReason.noSession] = (this.#drops[DropReason.noSession] ?? 0) + 1;
    else session.link.send(bytes, length, gsoType, flags, gsoSize);
  }

  idle(): void {
    this.#batch.flush();
  }
}

function addTraffic(sum: SessionTraffic, { link }: Session): void {
  const { receivedBytes, receivedPackets, sentBytes, sentPackets } = link.counters;
  sum.receivedBytes += receivedBytes;
  sum.receivedPackets += receivedPackets;
  sum.sentBytes += sentBytes;
  sum.sentPackets += sentPackets;
}

function addressesOf({ lease }: SessionGrant): Prefix[] {
  return [lease.v4, lease.v6].flatMap((address) =>
    address === undefined ? [] : [{ address, length: address.bytes.length * 8 }],
  );
}
