/**
 * The sessions that are alive: what is known of each, who owns it, where its packets go, and how it ends.
 *
 * Hides leases, the host's routes, the record in the store and the secrets that bind connections, from whoever judges logins
 * (`auth`) and resumes (`resumption`). It judges nothing itself.
 */

import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { formatIp, formatPrefix, hostPrefix, type Prefix, parseIp, parsePrefix } from '../../ip/address.ts';
import type { LeasePool } from '../../ip/lease-pool.ts';
import type { Settings } from '../../policy/settings.ts';
import type { DeviceHolder, SiteNetwork } from '../../policy/sites.ts';
import { AttachServer } from '../../protocol/attach.ts';
import { Feature } from '../../protocol/features.ts';
import { attachKey, type Primitives, proxyKey, resumeKey, SESSION_ID_BYTES } from '../../protocol/keys.ts';
import { type CloseReason, type ConfigMessage, STEP_KINDS, type StepKind } from '../../protocol/messages.ts';
import type { SessionCertificate, SessionRecord, Sessions } from '../../store/sessions.ts';
import type { GatewayConfig } from '../config.ts';
import type {
  DetachedSession,
  LoginPeer,
  SessionGrant,
  SessionKey,
  SessionTraffic,
  SupervisorPort,
  WorkerPort,
} from '../ipc/ports.ts';
import { ethernetConfig, isBridging } from '../tap-config.ts';
import { endOf, freshState, type LiveSession, type StartedSession } from './live-session.ts';

/** How long the worker that a session leaves may take to let go of it. */
const FENCE_MS = 1000;

const EVERYWHERE = ['0.0.0.0/0', '::/0'];
const TRAFFIC = ['receivedBytes', 'receivedPackets', 'sentBytes', 'sentPackets'] as const;

/** What the book is told of sessions, and tells. */
export interface SessionEvents {
  started(session: StartedSession): void;
  ended(session: StartedSession, reason: CloseReason): void;
}

/** What a policy has to do with sessions. */
export interface SessionAccess {
  /** What a session gets in place of what the configuration says. */
  settingsOf(session: LiveSession): Settings;
  /** The networks behind its client that it has. */
  networksOf(session: LiveSession): readonly SiteNetwork[];
  /** Networks behind other clients that it may reach. */
  sitesFor(session: LiveSession): readonly Prefix[];
  /** Networks from where connections to its own may be begun. */
  opennessOf(session: LiveSession): readonly Prefix[];
  /** Addresses that a device of a user should have one of; undefined: any. */
  staticAddressesOf(holder: DeviceHolder): readonly Prefix[] | undefined;
  /** Its packets may come. @throws {VpnError} ERR_HOST_APPLY */
  admit(session: LiveSession): Promise<void>;
  /** Its addresses are free again. @throws {VpnError} ERR_HOST_APPLY */
  dismiss(session: LiveSession): Promise<void>;
}

export interface SessionBookOptions {
  config: GatewayConfig;
  sessions: Sessions;
  pool: LeasePool;
  primitives: Primitives;
  clock: Clock;
  log: Logger;
  access: SessionAccess;
  /** Told after a session has begun in the life of this gateway, and after it has ended. */
  events?: SessionEvents | undefined;
  /** A session is over, whether its client was told of it or not. */
  over(key: SessionKey): void;
  traffic: SessionLimits;
}

/** What limits the traffic of sessions. */
export interface SessionLimits {
  /** The session's owner is to hear of it. */
  prepare(session: LiveSession): void;
  /** What the clients of a user are to know. */
  noticesOf(user: string): readonly string[];
}

/** A login that has been accepted. */
export interface AcceptedLogin {
  readonly user: string;
  readonly groups: readonly string[];
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly peer: LoginPeer;
  readonly worker: number;
  readonly steps: readonly StepKind[];
  /** Id of the access token among it. */
  readonly token: string | undefined;
  /** When something of that is good no more, milliseconds since the Unix epoch; undefined: never. */
  readonly proofEndsAt: number | undefined;
  /** Networks that its client offers to carry packets for. */
  readonly networks: readonly string[];
}

export class SessionBook {
  readonly #options: SessionBookOptions;
  readonly #log: Logger;
  /** Oldest first. */
  readonly #live = new Map<SessionKey, LiveSession>();
  readonly #byDevice = new Map<string, SessionKey>();
  readonly #workers = new Map<number, WorkerPort>();
  #supervisor: SupervisorPort | undefined;
  #config: GatewayConfig;
  #revision = 1;

  constructor(options: SessionBookOptions) {
    this.#options = options;
    this.#config = options.config;
    this.#log = options.log;
  }

  /** Who routes the addresses of sessions. Set once, before `restore`. */
  set supervisor(supervisor: SupervisorPort) {
    this.#supervisor = supervisor;
  }

  get(key: SessionKey): LiveSession | undefined {
    return this.#live.get(key);
  }

  /** Oldest first. */
  get all(): LiveSession[] {
    return [...this.#live.values()];
  }

  get size(): number {
    return this.#live.size;
  }

  /** How many sessions there are, and how many of them have agreed on a feature. */
  count(feature: Feature): { sessions: number; asked: number } {
    let asked = 0;
    for (const { features } of this.#live.values()) if (features.includes(feature)) asked += 1;
    return { sessions: this.#live.size, asked };
  }

  /** The session of a device. */
  ofDevice(device: string): LiveSession | undefined {
    const key = this.#byDevice.get(device);
    return key === undefined ? undefined : this.#live.get(key);
  }

  /** A worker is there; `sessionsOf` says what is its own. */
  connect(worker: number, port: WorkerPort): void {
    this.#workers.set(worker, port);
  }

  /**
   * A worker is gone: its sessions wait for their clients, those that are not on record are over.
   *
   * @throws {VpnError} ERR_STORE
   */
  async disconnect(worker: number): Promise<void> {
    this.#workers.delete(worker);
    const now = this.#options.clock.wallNow();
    const own = [...this.#live.values()].filter((session) => session.worker === worker);
    for (const session of own) {
      session.attach = undefined;
      session.binding = undefined;
      session.detachedAt ??= now;
      session.formerTraffic = { ...session.traffic };
    }
    for (const session of own) {
      // It may have been resumed at another worker meanwhile.
      if (session.worker !== worker || session.detachedAt === undefined) continue;
      if (session.isRecorded) await this.#options.sessions.detach(session.key);
      else await this.end(session.key, 'shutdown');
    }
  }

  /**
   * Opens a session: it and its lease exist, and end when the worker says so. Its client is told of it after `establish`.
   *
   * @throws {VpnError} ERR_POOL_EXHAUSTED
   */
  open(login: AcceptedLogin): LiveSession {
    const { user, groups, device, peer, worker, steps, token, proofEndsAt, networks } = login;
    const { pool, primitives, clock, access } = this.#options;
    const lease = pool.lease(device, worker, access.staticAddressesOf({ user, groups, device }));
    const id = primitives.randomBytes(SESSION_ID_BYTES);
    const key = id.toHex();
    const { remote, certificate } = peer;
    const endsAt = endOf(proofEndsAt, certificate);
    const openedAt = clock.wallNow();
    const state = {
      ...freshState(),
      judgedAt: clock.now(),
      isRecorded: false,
      detachedAt: undefined,
      features: [],
      endsAt,
    };
    const session: LiveSession = {
      ...{ key, id, user, groups, device, remote, certificate, lease, worker, openedAt, steps, token, proofEndsAt },
      offered: readOffer(networks),
      ...state,
    };
    this.#live.set(key, session);
    this.#byDevice.set(device, key);
    return session;
  }

  /** What the worker that owns a session is to know of it. */
  grantOf(session: LiveSession): SessionGrant {
    this.#options.traffic.prepare(session);
    const { key, id, user, device, lease, worker } = session;
    const grant = { session: id, worker, user, ...this.times(session) };
    const compression = this.#options.access.settingsOf(session).compression === true;
    return { key, grant, user, device, lease, config: this.#configOf(session), compression };
  }

  /** The limits of a session, for its client. */
  times(session: LiveSession) {
    const { absoluteSeconds, idleSeconds, graceSeconds } = this.#config.session;
    const settings = this.#options.access.settingsOf(session);
    return {
      absoluteSeconds: settings.absoluteSeconds ?? absoluteSeconds,
      idleSeconds: settings.idleSeconds ?? idleSeconds,
      graceSeconds,
    };
  }

  /**
   * Records a session and has its packets routed to its worker.
   *
   * @throws {VpnError} ERR_SESSION_REPLACED, ERR_AUTH_REJECTED when it has been ended since; ERR_STORE, ERR_HOST_APPLY
   */
  async establish(key: SessionKey, secret: Uint8Array, features: readonly string[]): Promise<void> {
    const session = this.#live.get(key);
    // Between a verdict and now another connection of the device may have taken its place, or an operator its right.
    if (session === undefined) throw endedMeanwhile('replaced');
    const { primitives, sessions, clock } = this.#options;
    const epoch = 0;
    session.features = features;
    await Promise.all([this.#place(session), this.#options.access.admit(session)]);
    this.bindTo(session, epoch, secret);
    await sessions.open({
      id: key,
      user: session.user,
      device: session.device,
      worker: session.worker,
      epoch,
      lease4: session.lease.v4 === undefined ? undefined : formatIp(session.lease.v4),
      lease6: session.lease.v6 === undefined ? undefined : formatIp(session.lease.v6),
      policyGeneration: 1,
      source: session.remote,
      expiresAt: Math.min(
        clock.wallNow() + this.times(session).absoluteSeconds * 1000,
        session.proofEndsAt ?? Number.POSITIVE_INFINITY,
      ),
      resumeKey: resumeKey(primitives, secret),
      steps: session.steps,
      token: session.token,
      features,
      networks: session.offered.map(formatPrefix),
      certificate: session.certificate,
    });
    session.isRecorded = true;
    if (session.ended === undefined) return;
    await sessions.end(key, session.ended);
    throw endedMeanwhile(session.ended);
  }

  /** Has the host route the session's packets to where its owner reads them. @throws {VpnError} ERR_HOST_APPLY */
  async #place(session: LiveSession): Promise<void> {
    const { lease, worker, features } = session;
    const isPlain = !features.includes(Feature.superPackets);
    if (isPlain || this.#options.pool.shareOf(lease) !== worker) {
      session.isPlaced = true;
      await this.#supervisor?.place(lease, worker, isPlain ? 'plain' : 'primary');
    } else await this.#unplace(session);
  }

  async #unplace(session: LiveSession): Promise<void> {
    if (!session.isPlaced) return;
    session.isPlaced = false;
    await this.#supervisor?.unplace(session.lease);
  }

  /** From now on connections prove that they belong to the session with what follows from this secret. */
  bindTo(session: LiveSession, epoch: number, secret: Uint8Array, former?: AttachServer): void {
    const { primitives } = this.#options;
    const { id } = session;
    const key = attachKey(primitives, secret);
    session.attach = new AttachServer({
      primitives,
      session: id,
      epoch,
      key,
      slots: this.#config.data.channels,
      former,
    });
    session.binding = { session: id, epoch, key: proxyKey(primitives, secret) };
  }

  /**
   * Takes up the sessions on record that may still be resumed, with their leases, and ends the others. Called once, before
   * any login and any worker.
   *
   * @throws {VpnError} ERR_STORE, ERR_HOST_APPLY
   */
  async restore(): Promise<void> {
    const { sessions, pool, clock } = this.#options;
    const now = clock.wallNow();
    for (const record of await sessions.list()) {
      const { id: key, user, device, features, certificate, source: remote, openedAt, token } = record;
      // Of a gateway that died nobody knows when its clients lost it.
      const detachedMs = Math.max(0, now - (record.detachedAt ?? now));
      const isLate = detachedMs >= this.#config.session.graceSeconds * 1000 || now >= (record.expiresAt ?? now + 1);
      const lease =
        isLate || !features.includes(Feature.resume) ? undefined : pool.lease(device, 0, leasedBefore(record));
      if (
        lease === undefined ||
        this.#byDevice.has(device) ||
        (lease.v4 && formatIp(lease.v4)) !== record.lease4 ||
        (lease.v6 && formatIp(lease.v6)) !== record.lease6
      ) {
        if (lease !== undefined) pool.release(lease);
        await sessions.end(key, isLate ? 'session_timeout' : 'shutdown');
        continue;
      }
      await sessions.detach(key);
      const id = Uint8Array.fromHex(key);
      const steps = record.steps.filter(isStepKind);
      // The one of its limits that counts the soonest.
      const proofEndsAt = record.expiresAt;
      const endsAt = endOf(proofEndsAt, certificate);
      // Its client will come to whom it lives with; where its addresses are at home, they need no route of their own.
      const worker = pool.shareOf(lease);
      const state = { ...freshState(), isRecorded: true, detachedAt: now - detachedMs, features, endsAt };
      const facts = { key, id, user, device, remote, certificate, lease, worker, openedAt, steps, token, proofEndsAt };
      // The groups of its account are looked at when a policy is put in force.
      const session: LiveSession = { ...facts, ...state, groups: [], offered: readOffer(record.networks) };
      this.#live.set(key, session);
      this.#byDevice.set(device, key);
      await this.#place(session);
    }
  }

  /** The sessions that a worker owns and that wait for their clients, for a worker that begins. */
  sessionsOf(worker: number): DetachedSession[] {
    const now = this.#options.clock.wallNow();
    return [...this.#live.values()].flatMap((session) => {
      if (session.worker !== worker || !session.isRecorded) return [];
      const { features, remote, openedAt, detachedAt = now } = session;
      return [{ granted: this.grantOf(session), features, remote, openedAt, detachedMs: now - detachedAt }];
    });
  }

  /** Gives the session to a worker: packets go there as soon as the one that had it has let go of it, or is fenced off. */
  async move(session: LiveSession, worker: number): Promise<void> {
    const former = session.worker;
    if (former === worker) return;
    session.worker = worker;
    session.formerTraffic = { ...session.traffic };
    const { promise: fenced, resolve: fence } = Promise.withResolvers<void>();
    const late = setTimeout(fence, FENCE_MS).unref();
    const released = this.#workers.get(former)?.release(session.key);
    await Promise.race([released?.catch(() => {}), fenced]);
    clearTimeout(late);
    await this.#place(session);
    this.#log.info('session moved to another worker', { session: session.key.slice(0, 8), from: former, to: worker });
  }

  /** It has lost its control connection; with a reason: for longer than this worker or gateway lives. @throws {VpnError} ERR_STORE */
  async detach(key: SessionKey, reason?: CloseReason): Promise<void> {
    const session = this.#live.get(key);
    if (session?.isRecorded !== true) return;
    session.detachedAt ??= this.#options.clock.wallNow();
    if (reason !== undefined) this.#tellEnd(session, reason);
    await this.#options.sessions.detach(key);
  }

  /** The client has been told of the session, or has it back at this address. */
  started(key: SessionKey, remote: string): void {
    const session = this.#live.get(key);
    if (session === undefined) return;
    session.remote = remote;
    if (session.isStarted) return;
    session.isStarted = true;
    this.#options.events?.started(session);
  }

  /** What a session has carried so far. */
  traffic(key: SessionKey, traffic: SessionTraffic): void {
    const session = this.#live.get(key);
    if (session === undefined) return;
    const { formerTraffic: former } = session;
    for (const name of TRAFFIC) session.traffic[name] = former[name] + traffic[name];
  }

  #tellEnd(session: LiveSession, reason: CloseReason): void {
    if (!session.isStarted) return;
    session.isStarted = false;
    this.#options.events?.ended(session, reason);
  }

  /** It is over: its lease is free, its record closed. @throws {VpnError} ERR_STORE, ERR_HOST_APPLY */
  async end(key: SessionKey, reason: CloseReason): Promise<void> {
    const session = this.#live.get(key);
    if (session === undefined) return;
    session.ended = reason;
    this.#live.delete(key);
    if (this.#byDevice.get(session.device) === key) this.#byDevice.delete(session.device);
    this.#tellEnd(session, reason);
    // In turn with what is routed: whoever has the addresses next comes after this.
    const unplaced = Promise.all([this.#unplace(session), this.#options.access.dismiss(session)]);
    this.#options.pool.release(session.lease);
    this.#options.over(key);
    await Promise.all([unplaced, session.isRecorded ? this.#options.sessions.end(key, reason) : undefined]);
  }

  /** Has the owner end a session; one whose owner is not there is ended here. */
  close(key: SessionKey, reason: CloseReason): void {
    const session = this.#live.get(key);
    if (session === undefined) return;
    const owner = this.#workers.get(session.worker);
    if (owner !== undefined) owner.close(key, reason);
    else this.end(key, reason).catch((error: unknown) => this.#log.error('a session could not be ended', { error }));
  }

  /** Ends the session whose key begins like this; returns how many there are that do, and ends none if several do. */
  kick(beginning: string): number {
    const matching = [...this.#live.keys()].filter((key) => key.startsWith(beginning));
    const [key, another] = matching;
    if (key !== undefined && another === undefined) this.close(key, 'admin');
    return matching.length;
  }

  /** The client certificates that live sessions rest on. */
  get certificates(): SessionCertificate[] {
    return [...this.#live.values()].flatMap(({ certificate }) => certificate ?? []);
  }

  /** Uses a new configuration for sessions from now on, and tells the live ones. */
  reconfigure(config: GatewayConfig): void {
    this.#config = config;
    this.#revision += 1;
    this.#push(this.#live.values());
  }

  /** Tells the clients of sessions what they get by their settings. */
  resettle(sessions: readonly LiveSession[]): void {
    if (sessions.length === 0) return;
    this.#revision += 1;
    this.#push(sessions);
  }

  #push(sessions: Iterable<LiveSession>): void {
    for (const session of sessions) {
      this.#workers.get(session.worker)?.configure(session.key, this.#configOf(session));
    }
  }

  /** What is pushed: to whoever has a network behind it also where those come from that speak to it. */
  #routesOf(session: LiveSession, networks: readonly SiteNetwork[], given: readonly Prefix[] | undefined): string[] {
    const { access } = this.#options;
    const { routes, pool } = this.#config;
    const base = given?.map(formatPrefix) ?? routes;
    const own = new Set(networks.flatMap(({ network, seenAs }) => [formatPrefix(network), formatPrefix(seenAs)]));
    const behind = networks.length === 0 ? [] : [...pool, ...access.opennessOf(session).map(formatPrefix)];
    const all = new Set([...base, ...access.sitesFor(session).map(formatPrefix), ...behind]);
    return [...all].filter((route) => !own.has(route));
  }

  #configOf(session: LiveSession): ConfigMessage {
    const { lease } = session;
    const config = this.#config;
    const { access } = this.#options;
    const { mode, routes, dns, dnsDomains } = access.settingsOf(session);
    const networks = access.networksOf(session);
    const notices = this.#options.traffic.noticesOf(session.user);
    const { gateway4, gateway6 } = this.#options.pool;
    const addresses: ConfigMessage['addresses'] = {};
    if (lease.v4 !== undefined && gateway4 !== undefined) {
      addresses.v4 = { address: formatIp(lease.v4), gateway: formatIp(gateway4) };
    }
    if (lease.v6 !== undefined && gateway6 !== undefined) {
      addresses.v6 = { address: formatIp(lease.v6), gateway: formatIp(gateway6) };
    }
    return {
      revision: this.#revision,
      addresses,
      routes: mode === 'full' ? EVERYWHERE : this.#routesOf(session, networks, routes),
      dns: { servers: [...(dns ?? config.dns)], domains: [...(dnsDomains ?? config.dnsDomains)] },
      mtu: config.mtu,
      ping: { intervalSeconds: config.session.pingSeconds, deadSeconds: config.session.deadSeconds },
      data: { mode: config.data.mode, channels: config.data.mode === 'attached' ? config.data.channels : 0 },
      rekeySeconds: config.session.rekeySeconds,
      ...(notices.length === 0 ? {} : { notices: [...notices] }),
      ...(networks.length === 0 ? {} : { networks: networks.map(networkInfo) }),
      transports: [],
      pins: [],
      ...(isBridging(config) ? ethernetConfig(config, this.#options.pool, lease) : {}),
    };
  }
}

/** What a client offers, as far as it can be read: there is no harm in a network that nobody grants. */
function readOffer(networks: readonly string[]): Prefix[] {
  return networks.flatMap((text) => {
    try {
      return [parsePrefix(text)];
    } catch {
      return [];
    }
  });
}

function leasedBefore({ lease4, lease6 }: Pick<SessionRecord, 'lease4' | 'lease6'>): Prefix[] {
  return [lease4, lease6].flatMap((text) => (text === undefined ? [] : [hostPrefix(parseIp(text))]));
}

function networkInfo({ network, seenAs }: SiteNetwork): NonNullable<ConfigMessage['networks']>[number] {
  const [text, as] = [formatPrefix(network), formatPrefix(seenAs)];
  return text === as ? { network: text } : { network: text, as };
}

function isStepKind(step: string): step is StepKind {
  return (STEP_KINDS as readonly string[]).includes(step);
}

/** Why a session that was to be opened is not there. */
export function endedMeanwhile(reason: CloseReason): VpnError {
  return reason === 'replaced'
    ? new VpnError('ERR_SESSION_REPLACED', 'the device has logged in again meanwhile')
    : new VpnError('ERR_AUTH_REJECTED', 'the session was ended before it was open');
}
