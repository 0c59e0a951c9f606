/**
 * A VPN client that stays connected: dial, log in, carry packets, come back when the gateway went away.
 *
 * Hides sessions, backoff and the order of things. It knows neither files nor the command line: keys, certificates and the
 * machine's network are handed in, so that it also runs inside another program, and without root.
 */

import { isIP } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { type Clock, systemClock } from '../base/clock.ts';
import { toVpnError, VpnError } from '../base/errors.ts';
import { type Logger, type Secret, silentLogger } from '../base/log.ts';
import { nodePrimitives } from '../base/primitives.ts';
import { formatIp, type IpAddress, parseIp } from '../ip/address.ts';
import { DROP_REASON_NAMES } from '../ip/drop-reason.ts';
import { NO_OFFLOAD } from '../ip/super-packet.ts';
import type { PacketBuffer, TunDevice, TunReader } from '../os/tun.ts';
import { Backoff } from '../protocol/backoff.ts';
import type { AcceptedConfig, ClientLimits, RefusedItem } from '../protocol/config-check.ts';
import { Feature } from '../protocol/features.ts';
import type { AcceptMessage, CloseReason } from '../protocol/messages.ts';
import type { ProxyBinding } from '../protocol/proxy-binding.ts';
import { type Recovery, recoveryAfterClose, recoveryAfterError } from '../protocol/reasons.ts';
import type { Channel, ChannelFacts } from '../transport/channel.ts';
import { loadClientCredentials } from '../transport/credentials.ts';
import { type DialOptions, dial, dialHttp2 } from '../transport/dial.ts';
import { EthernetLink } from '../transport/ethernet-link.ts';
import type { ChooseProxy } from '../transport/outbound-proxy.ts';
import { PacketBufferPool, PacketLink, SendBatch, type TunnelLink } from '../transport/packet-link.ts';
import { QueueBudget } from '../transport/queue-budget.ts';
import type { RekeyCounters } from '../transport/slot.ts';
import { DeviceKey } from './device-key.ts';
import type { ResumeTicket } from './dialogue.ts';
import type { AnswerSteps } from './login-answers.ts';
import { type NetworkView, Roaming } from './roaming.ts';
import { ClientSession, type SessionEnd } from './session.ts';

/** What a client has of its own machine: a TUN device with addresses and routes. */
export interface ClientHost {
  /** Opens the device. Called once, before anything is dialled. */
  open(): Promise<TunDevice>;
  /** Makes MTU, addresses and routes match a configuration; called again for each new one. Returns what it left out. */
  apply(config: AcceptedConfig): Promise<readonly RefusedItem[]>;
  /** The machine may be in other networks than before. Returns as `apply`; undefined while there is no configuration. */
  networkChanged?(): Promise<readonly RefusedItem[] | undefined>;
  /** Puts the machine back as it was and closes the device. Idempotent. */
  close(): Promise<void>;
}

export interface ClientOptions {
  /** Names or addresses to dial, tried in order. */
  serverHost: string | readonly string[];
  /** Default 443. */
  serverPort?: number;
  /** The name that the certificate must carry; default the (first) host. */
  serverName?: string;
  /** A client certificate and key, PEM files. */
  certFile?: string;
  keyFile?: string;
  /** CAs that may have signed the server's certificate, PEM file; or `ca` as text. Default: the system's. */
  caFile?: string;
  ca?: string;
  /** Base64 SHA-256 of public keys, one of which must be in the verified chain. */
  pins?: readonly string[];
  /** False is loud: no secret is sent and no default route or DNS accepted. Default true. */
  verifyServer?: boolean;
  /** Default: a key that lives as long as this object, good for one enrolment. */
  deviceKey?: DeviceKey;
  /** The one-time token that enrols the device. */
  token?: Uint8Array;
  /** The server does not know the device yet; default: whether there is a token. */
  enrol?: boolean;
  user?: string;
  /** Answers the steps of a login that the device's key does not: password, one-time code, access token. */
  answer?: AnswerSteps;
  /** What a server may push; default: no default route, no DNS. */
  limits?: Partial<Omit<ClientLimits, 'serverVerified'>>;
  /** The firewall mark of the client's own connections, by which its host keeps them outside the tunnel. */
  mark?: number;
  /** Offer super-packets when the device has them; default true. */
  superPackets?: boolean;
  /** Asks the gateway for compressed packets; default no. See docs/security.md. */
  compression?: boolean;
  /** How many data connections are wanted, 1 to 16; default: as many as the server allows. */
  dataChannels?: number;
  /** Without one the client carries no packets: echoes and control only. */
  host?: ClientHost;
  /** A session that another client of this device has kept: it is resumed in place of a login. */
  resume?: ResumeTicket;
  /** This machine's network, so that its changes are noticed at once; without it they are by silence. */
  network?: NetworkView;
  /** The proxy on the way to each host; default none. */
  proxy?: ChooseProxy;
  /** The secret path at which the server's front door opens a tunnel, so that the connection looks like one to a web server. */
  camouflage?: Secret<string>;
  /** Finds out what stands between this machine and the server when a dial has failed. Must not throw. */
  explain?: (error: VpnError) => Promise<VpnError>;
  /** Resolves a server's name to addresses, in the order of preference; default the system's resolver. */
  lookup?: (host: string) => Promise<readonly string[]>;
  /** The device has been enrolled: the token is spent and should be forgotten. */
  onEnrolled?: () => void | Promise<void>;
  onState?: (state: ClientState) => void;
  log?: Logger;
  clock?: Clock;
  /** Told to the server. */
  version?: string;
}

export type ClientState = 'idle' | 'connecting' | 'connected' | 'waiting' | 'stopping' | 'stopped';

/** What an operator wants to see. */
export interface ClientSnapshot {
  readonly state: ClientState;
  /** Milliseconds since the Unix epoch. */
  readonly since: number;
  readonly user: string | undefined;
  readonly device: TunDevice | undefined;
  readonly config: AcceptedConfig | undefined;
  readonly refused: readonly RefusedItem[];
  readonly tls: ChannelFacts | undefined;
  readonly superPackets: boolean;
  readonly channels: number;
  readonly sentBytes: number;
  readonly receivedBytes: number;
  readonly roundTripMs: number | undefined;
  readonly reconnects: number;
  /** How often a session was taken up again without a login. */
  readonly resumes: number;
  /** How often a connection was changed for one with new keys. */
  readonly rekeys: number;
  /** Of these, how many may have lost or reordered packets. */
  readonly rekeyGaps: number;
  readonly lastError: VpnError | undefined;
  /** Packets dropped, by reason. */
  readonly drops: Readonly<Record<string, number>>;
}

/** How often it is looked for what stands in the way. */
const EXPLAIN_EVERY_MS = 10_000;

/** After these the server still has the session. */
const RESUMABLE: ReadonlySet<CloseReason> = new Set<CloseReason>(['shutdown', 'dead_peer']);

export class VpnClient {
  readonly #options: ClientOptions;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #device: DeviceKey;
  readonly #drops = new Float64Array(DROP_REASON_NAMES.length);
  readonly #counters: RekeyCounters = { rekeys: 0, rekeyGaps: 0 };
  readonly #queues = new QueueBudget(undefined, this.#drops);
  readonly #stopped = Promise.withResolvers<void>();
  readonly #abort = new AbortController();
  #token: Uint8Array | undefined;
  #isEnrolled: boolean;
  #state: ClientState = 'idle';
  #since: number;
  #session: ClientSession | undefined;
  #tun: TunDevice | undefined;
  #buffers: PacketBufferPool | undefined;
  readonly #batch = new SendBatch();
  #link: TunnelLink | undefined;
  /** The session that `#link` is for. */
  #linked: AcceptMessage | undefined;
  /** Configurations are applied one after the other. */
  #applied: Promise<void> = Promise.resolve();
  #carried = { sentBytes: 0, receivedBytes: 0 };
  #reconnects = 0;
  #resumes = 0;
  /** What the last session can be resumed with. */
  #ticket: ResumeTicket | undefined;
  #lastError: VpnError | undefined;
  #first: PromiseWithResolvers<void> | undefined;
  #hasConnected = false;
  #roaming: Roaming | undefined;
  /** Ends the wait before the next try. */
  #wait = new AbortController();
  /** Calls off what is being dialled or resumed. */
  #attempt: AbortController | undefined;
  /** The next try is due now, whatever came before. */
  #isDue = false;
  /** Keys that the server has announced beside the profile's, so that they can be changed without new profiles. */
  #pushedPins: readonly string[] = [];
  /** Why the last dial failed. */
  #dialError: unknown;
  /** No session has been opened from the network that this machine is in. */
  #isElsewhere = true;
  #explainedAt = Number.NEGATIVE_INFINITY;
  /** What the host left out of the present configuration. */
  #hostRefused: readonly RefusedItem[] = [];

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#log = (options.log ?? silentLogger).child({ component: 'client' });
    this.#clock = options.clock ?? systemClock;
    this.#device = options.deviceKey ?? DeviceKey.generate();
    this.#token = options.token;
    this.#ticket = options.resume;
    this.#isEnrolled = !(options.enrol ?? options.token !== undefined);
    this.#since = this.#clock.wallNow();
    if (options.verifyServer === false) {
      this.#log.warn('the server certificate is NOT verified: anyone on the way can read and change the traffic');
    } else if (options.token !== undefined && (options.pins ?? []).length === 0) {
      throw new VpnError(
        'ERR_CONFIG_VALUE',
        'an enrolment token needs a pin, so that it reaches the right server only',
      );
    }
  }

  /**
   * Connects, and stays connected until `disconnect`. Resolves when packets (or echoes) can flow.
   *
   * @throws {VpnError} what makes trying again useless: a refused login, a wrong certificate. Other failures of the first
   *   attempt are retried too, unless `once` is set.
   */
  async connect(options: { once?: boolean } = {}): Promise<void> {
    if (this.#first !== undefined) throw new VpnError('ERR_CONFLICT', 'this client has been connected before');
    this.#first = Promise.withResolvers<void>();
    this.#run(options.once === true)
      .catch((error: unknown) => {
        if (!this.#abort.signal.aborted) this.#lastError = toVpnError(error);
        return error;
      })
      .then(async (error: unknown) => {
        await this.#finish();
        // Only now: whoever hears of the failure finds the machine as it was.
        this.#first?.reject(error);
      });
    await this.#first.promise;
  }

  /**
   * Ends the session, puts the machine back as it was; resolves when that is done. Idempotent.
   *
   * @param options.keep the server keeps the session for a while, to be resumed with `ticket`
   */
  async disconnect(options: { keep?: boolean } = {}): Promise<void> {
    if (this.#state === 'idle') return;
    if (this.#state !== 'stopped') this.#setState('stopping');
    this.#abort.abort();
    this.#session?.close(options.keep === true ? 'shutdown' : 'peer_disconnect');
    await this.#stopped.promise;
  }

  /** What the session can be resumed with by another client of this device, once this one has stopped. Secret. */
  get ticket(): ResumeTicket | undefined {
    return this.#ticket;
  }

  /** Whether `disconnect` is why it stopped, or will. */
  get wasAskedToStop(): boolean {
    return this.#abort.signal.aborted;
  }

  /** Resolves when the client has stopped for good; see `snapshot.lastError` for why. */
  get stopped(): Promise<void> {
    return this.#stopped.promise;
  }

  /**
   * Sends a payload of at most 65,575 bytes, which the server returns.
   *
   * @throws {VpnError} ERR_PEER_GONE, ERR_FRAME_TOO_LONG, ERR_BUSY
   */
  async echo(payload: Uint8Array): Promise<Uint8Array> {
    if (this.#session === undefined) throw new VpnError('ERR_PEER_GONE', 'the client is not connected');
    return await this.#session.echo(payload);
  }

  /**
   * Opens a connection for HTTP/2, and says what binds it to the present session.
   *
   * @throws {VpnError} ERR_PEER_GONE while there is no session; as `dial`
   */
  async dialProxy(): Promise<{ socket: TLSSocket; binding: ProxyBinding }> {
    const session = this.#session;
    if (session === undefined) throw new VpnError('ERR_PEER_GONE', 'the client is not connected');
    const options = { ...(await this.#dialOptions()), signal: this.#abort.signal };
    return { socket: await dialHttp2(options), binding: session.binding };
  }

  get snapshot(): ClientSnapshot {
    const session = this.#session;
    const counters = this.#link?.counters;
    return {
      state: this.#state,
      since: this.#since,
      user: session?.accepted.user,
      device: this.#tun,
      config: session?.config,
      refused: [...(session?.refused ?? []), ...(session === undefined ? [] : this.#hostRefused)],
      tls: session?.channel.facts,
      superPackets: session?.accepted.features.includes(Feature.superPackets) ?? false,
      channels: session?.dataChannels ?? 0,
      sentBytes: this.#carried.sentBytes + (counters?.sentBytes ?? 0),
      receivedBytes: this.#carried.receivedBytes + (counters?.receivedBytes ?? 0),
      roundTripMs: session?.roundTripMs,
      reconnects: this.#reconnects,
      resumes: this.#resumes,
      ...this.#counters,
      lastError: this.#lastError,
      drops: Object.fromEntries(
        DROP_REASON_NAMES.map((name, reason) => [name, this.#drops[reason] ?? 0] as const).filter(
          ([, count]) => count > 0,
        ),
      ),
    };
  }

  /** Session after session, resumed where that is possible, until told to stop, or until trying again is useless. */
  async #run(once: boolean): Promise<void> {
    const backoff = new Backoff();
    await this.#openDevice();
    this.#watchNetwork();
    while (!this.#abort.signal.aborted) {
      const resumed = this.#ticket;
      this.#setState('connecting');
      let end: SessionEnd;
      try {
        const session = await this.#open();
        if (this.#abort.signal.aborted) session.close();
        const openedAt = this.#clock.now();
        this.#setState('connected');
        this.#lastError = undefined;
        this.#hasConnected = true;
        this.#isElsewhere = false;
        if (!this.#abort.signal.aborted) this.#first?.resolve();
        end = await session.ended;
        backoff.ended(this.#clock.now() - openedAt);
      } catch (error) {
        end = { error: toVpnError(error) };
        if (once && !this.#hasConnected && !this.#isDue) throw error;
      }
      this.#forgetSession();
      if (this.#abort.signal.aborted) break;
      if (end.reason !== undefined && !RESUMABLE.has(end.reason)) this.#ticket = undefined;
      if (resumed !== undefined && this.#ticket === undefined && isSessionUnknown(end.error)) {
        this.#log.info('the session cannot be resumed; logging in');
        continue;
      }
      const recovery = this.#recoveryAfter(end);
      this.#lastError =
        end.error ?? new VpnError('ERR_PEER_GONE', `the server closed the session: ${end.reason ?? 'no reason'}`);
      if (recovery === 'final') throw this.#lastError;
      if (this.#isDue) backoff.reset();
      const delayMs = this.#isDue
        ? 0
        : recovery === 'slow'
          ? backoff.slow(Math.random())
          : backoff.next(Math.random(), isUnreachable(this.#lastError));
      this.#log.warn('not connected; trying again', {
        code: this.#lastError.code,
        reason: this.#lastError.message,
        delayMs: Math.round(delayMs),
      });
      this.#setState('waiting');
      this.#reconnects += 1;
      this.#isDue = false;
      this.#wait = new AbortController();
      await sleep(delayMs, undefined, { signal: AbortSignal.any([this.#abort.signal, this.#wait.signal]) }).catch(
        () => {},
      );
      if (this.#wait.signal.aborted) backoff.reset();
    }
    throw new VpnError('ERR_PEER_GONE', 'the client was stopped');
  }

  /** What to do after the end of a session, or of the attempt at one. */
  #recoveryAfter({ error, reason = 'peer_disconnect' }: SessionEnd): Recovery {
    if (error === undefined) return recoveryAfterClose(reason);
    const recovery = recoveryAfterError(error);
    // Whoever has been connected and meets another server now is behind a portal, or somebody is in between: both pass.
    const isForeign = error.kind === 'transport' && error === this.#dialError;
    return recovery === 'final' && this.#hasConnected && isForeign ? 'slow' : recovery;
  }

  #watchNetwork(): void {
    const { network } = this.#options;
    if (network === undefined) return;
    const roaming = new Roaming(network, this.#clock, {
      path: () => {
        const session = this.#session;
        if (session === undefined) return undefined;
        const { local, remote } = session.channel.facts;
        const { v4, v6 } = session.config.addresses;
        const inner = [v4, v6].flatMap((own) => (own === undefined ? [] : formatIp(own.address)));
        return { local: local.address, remote: remote.address, inner };
      },
      moved: (from, to) => {
        this.#isElsewhere = true;
        this.#isDue = true;
        this.#session?.abandon(
          new VpnError('ERR_PEER_GONE', `this machine's address is ${to} now, and was ${from}; connecting from there`),
        );
      },
      check: () => {
        this.#session?.check();
        this.#judgeNetworks();
      },
      retry: () => {
        this.#isElsewhere = true;
        this.#retryNow();
      },
    });
    if (this.#tun !== undefined) roaming.ignore(this.#tun.name);
    this.#roaming = roaming;
  }

  /** What stays local is judged again where the machine has come to. */
  #judgeNetworks(): void {
    const { host } = this.#options;
    if (host?.networkChanged === undefined) return;
    const judged = this.#applied.then(async () => {
      this.#hostRefused = (await host.networkChanged?.()) ?? this.#hostRefused;
    });
    this.#applied = judged.catch((error: unknown) => {
      this.#log.warn('the tunnel could not be fitted to the changed network', { error });
    });
  }

  /** Ends a wait, or calls off a dial or resume that may hang on a way that is no more. */
  #retryNow(): void {
    this.#wait.abort();
    if (this.#attempt === undefined) return;
    this.#isDue = true;
    this.#attempt.abort();
  }

  /** A better name for why a dial failed; waited for only where it decides whether, or when, to go on. */
  async #explain(error: VpnError): Promise<VpnError> {
    const { explain } = this.#options;
    if (explain === undefined || error.kind !== 'transport' || this.#abort.signal.aborted) return error;
    if (recoveryAfterError(error) !== 'retry') return await explain(error);
    // A server that was reached from this network and is silent now is gone, and nobody is in between.
    if (!this.#isElsewhere) return error;
    const now = this.#clock.now();
    if (now - this.#explainedAt < EXPLAIN_EVERY_MS) return error;
    this.#explainedAt = now;
    void explain(error).then((named) => {
      if (named !== error && this.#session === undefined) this.#lastError = named;
    });
    return error;
  }

  async #dial(options: Omit<DialOptions, 'signal'>, attempt: AbortController): Promise<Channel> {
    try {
      return await dial({ ...options, signal: AbortSignal.any([this.#abort.signal, attempt.signal]) });
    } catch (error) {
      const told = attempt.signal.aborted ? toVpnError(error) : await this.#explain(toVpnError(error));
      this.#dialError = told;
      throw told;
    } finally {
      // Nobody is asked twice for a password because a cable was plugged in.
      if (this.#ticket === undefined && this.#attempt === attempt) this.#attempt = undefined;
    }
  }

  async #open(): Promise<ClientSession> {
    const options = this.#options;
    const ticket = this.#ticket;
    const serverName = this.#serverName;
    const serverVerified = options.verifyServer !== false;
    const token = serverVerified ? this.#token : undefined;
    const dialOptions = await this.#dialOptions();
    const attempt = new AbortController();
    this.#attempt = attempt;
    const session = await ClientSession.open({
      dial: (worker) =>
        // The server may have announced other keys by then.
        this.#dial({ ...dialOptions, pins: this.#pins, ...(worker === undefined ? {} : { worker }) }, attempt),
      device: this.#device,
      token,
      user: options.user,
      enrol: !this.#isEnrolled,
      resume: ticket,
      keep: (kept) => {
        this.#ticket = kept;
      },
      answer: options.answer,
      serverName,
      serverVerified,
      features: this.#features(),
      limits: {
        defaultRoute: false,
        dns: false,
        outside: addressesIn(options.serverHost),
        socketsExempt: options.mark !== undefined,
        ...options.limits,
        serverVerified,
      },
      dataChannels: options.dataChannels,
      counters: this.#counters,
      version: options.version ?? 'library',
      primitives: nodePrimitives,
      now: () => this.#clock.now(),
      signal: AbortSignal.any([this.#abort.signal, attempt.signal]),
      log: this.#log,
      openLink: (config, accepted) => this.#openLink(config, accepted),
    }).finally(() => {
      this.#attempt = undefined;
    });
    this.#session = session;
    this.#pushedPins = session.config.pins;
    const { facts } = session.channel;
    if (ticket !== undefined) this.#resumes += 1;
    this.#log.info(ticket === undefined ? 'connected' : 'session resumed', {
      server: serverName,
      user: session.accepted.user,
      tls: facts.protocol,
      group: facts.group,
    });
    if (!this.#isEnrolled) {
      this.#isEnrolled = true;
      this.#token = undefined;
      await options.onEnrolled?.();
    }
    return session;
  }

  get #serverName(): string {
    const { serverHost, serverName } = this.#options;
    return serverName ?? (typeof serverHost === 'string' ? serverHost : (serverHost[0] ?? ''));
  }

  get #pins(): readonly string[] {
    const { pins = [] } = this.#options;
    return pins.length === 0 ? [] : [...pins, ...this.#pushedPins];
  }

  async #dialOptions(): Promise<Omit<DialOptions, 'signal'>> {
    const options = this.#options;
    const files = await loadClientCredentials(options);
    return {
      queues: this.#queues,
      ...files,
      ca: options.ca ?? files.ca,
      host: options.serverHost,
      port: options.serverPort ?? 443,
      serverName: this.#serverName,
      pins: this.#pins,
      verifyServer: options.verifyServer !== false,
      ...(options.lookup === undefined ? {} : { lookup: options.lookup }),
      ...(options.proxy === undefined ? {} : { proxy: options.proxy }),
      ...(options.camouflage === undefined ? {} : { camouflage: options.camouflage }),
      ...(options.mark === undefined ? {} : { mark: options.mark }),
      log: this.#log,
    };
  }

  async #openDevice(): Promise<void> {
    const tun = await this.#options.host?.open();
    if (tun === undefined) return;
    this.#tun = tun;
    this.#buffers = new PacketBufferPool(tun);
    tun.start(this.#reader);
  }

  #features(): string[] {
    const features: string[] = [Feature.attach, Feature.resume, Feature.rekey];
    if (this.#tun?.kind === 'tap') return [...features, Feature.ethernet];
    if (this.#options.compression === true) features.push(Feature.compression);
    if (this.#options.superPackets === false || this.#tun?.superPackets !== true) return features;
    features.push(Feature.superPackets);
    if (this.#tun.uso) features.push(Feature.udpSuperPackets);
    return features;
  }

  /** Called for the first CONFIG of a session and for every later one, which keeps the link. */
  async #openLink(config: AcceptedConfig, accepted: AcceptMessage): Promise<TunnelLink | undefined> {
    const { host } = this.#options;
    const tun = this.#tun;
    const buffers = this.#buffers;
    if (host === undefined || tun === undefined || buffers === undefined) return undefined;
    const applied = this.#applied.then(async () => {
      this.#hostRefused = await host.apply(config);
    });
    this.#applied = applied.catch(() => {});
    await applied;
    if (this.#linked === accepted) return this.#link;
    this.#linked = accepted;
    const { features } = accepted;
    if (features.includes(Feature.ethernet)) {
      const receive = (buffer: PacketBuffer, length: number): boolean => tun.write(buffer, length, NO_OFFLOAD);
      this.#link = new EthernetLink({ buffers, batch: this.#batch, drops: this.#drops, receive });
      return this.#link;
    }
    const { v4, v6 } = config.addresses;
    this.#link = new PacketLink({
      device: tun,
      buffers,
      batch: this.#batch,
      lease: { ...(v4 === undefined ? {} : { v4: v4.address }), ...(v6 === undefined ? {} : { v6: v6.address }) },
      ownAddress: 'destination',
      superPackets: features.includes(Feature.superPackets),
      compression: features.includes(Feature.compression),
      limits: { mtu: config.mtu, uso: tun.uso && features.includes(Feature.udpSuperPackets) },
      drops: this.#drops,
    });
    return this.#link;
  }

  /** One reader for the life of the device: sessions come and go behind it. */
  readonly #reader: TunReader = {
    packet: (bytes, length, gsoType, flags, gsoSize) => this.#link?.send(bytes, length, gsoType, flags, gsoSize),
    idle: () => this.#batch.flush(),
  };

  #forgetSession(): void {
    const counters = this.#link?.counters;
    if (counters !== undefined) {
      this.#carried.sentBytes += counters.sentBytes;
      this.#carried.receivedBytes += counters.receivedBytes;
    }
    this.#link = undefined;
    this.#session = undefined;
  }

  async #finish(): Promise<void> {
    this.#session?.close();
    this.#forgetSession();
    await this.#roaming?.[Symbol.asyncDispose]();
    try {
      // What is being applied must not come after what takes it back.
      await this.#applied;
      await this.#options.host?.close();
    } catch (error) {
      this.#log.error('the machine could not be put back', { error });
    }
    this.#setState('stopped');
    this.#stopped.resolve();
  }

  #setState(state: ClientState): void {
    if (this.#state === state || (this.#state === 'stopping' && state !== 'stopped')) return;
    this.#state = state;
    this.#since = this.#clock.wallNow();
    this.#options.onState?.(state);
  }
}

function isSessionUnknown(error: VpnError | undefined): boolean {
  return error?.code === 'ERR_SESSION_UNKNOWN';
}

/** Nobody was reached: asking again costs next to nothing. */
function isUnreachable({ code }: VpnError): boolean {
  return code === 'ERR_CONNECT' || code === 'ERR_NAME_LOOKUP';
}

/** The hosts that are addresses: those not dialled this time may be dialled next. */
function addressesIn(hosts: string | readonly string[]): IpAddress[] {
  return (typeof hosts === 'string' ? [hosts] : hosts).flatMap((host) => (isIP(host) === 0 ? [] : [parseIp(host)]));
}
