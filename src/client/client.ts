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
import type { TunDevice } from '../os/tun.ts';
import { Backoff } from '../protocol/backoff.ts';
import type { AcceptedConfig, ClientLimits, RefusedItem } from '../protocol/config-check.ts';
import { Feature } from '../protocol/features.ts';
import type { CloseReason } from '../protocol/messages.ts';
import type { ProxyBinding } from '../protocol/proxy-binding.ts';
import { type Recovery, recoveryAfterClose, recoveryAfterError } from '../protocol/reasons.ts';
import type { ChannelFacts } from '../transport/channel.ts';
import { loadClientCredentials } from '../transport/credentials.ts';
import { type DialledChannel, type DialOptions, dialHttp2, dialSomewhere } from '../transport/dial.ts';
import type { ChooseProxy } from '../transport/outbound-proxy.ts';
import { QueueBudget } from '../transport/queue-budget.ts';
import type { RekeyCounters } from '../transport/slot.ts';
import { DeviceKey } from './device-key.ts';
import type { ResumeTicket } from './dialogue.ts';
import type { AnswerSteps } from './login-answers.ts';
import { type ClientHost, Machine } from './machine.ts';
import { Relocation } from './relocation.ts';
import { type NetworkView, Roaming } from './roaming.ts';
import { ClientSession, type SessionEnd } from './session.ts';

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

/** A session to be, until it is the one. */
interface Opening {
  /** The servers that are not asked, by their ways. */
  readonly avoided: Set<string>;
  /** The way to the server that it is at. */
  way?: string;
  /** What it can be resumed with, as long as it is not the client's. */
  ticket?: ResumeTicket | undefined;
}

interface OpenedAt {
  readonly session: ClientSession;
  readonly opening: Opening;
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
  readonly #machine: Machine;
  readonly #counters: RekeyCounters = { rekeys: 0, rekeyGaps: 0 };
  readonly #queues: QueueBudget;
  readonly #stopped = Promise.withResolvers<void>();
  readonly #abort = new AbortController();
  #token: Uint8Array | undefined;
  #isEnrolled: boolean;
  #state: ClientState = 'idle';
  #since: number;
  #session: ClientSession | undefined;
  /** How the present session, or the one that is being opened in place of none, came about. */
  #opening: Opening | undefined;
  #relocation: Relocation<OpenedAt> | undefined;
  /** Servers that are shutting down, by their ways; until a session has been opened elsewhere. */
  readonly #drained = new Set<string>();
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

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#log = (options.log ?? silentLogger).child({ component: 'client' });
    this.#clock = options.clock ?? systemClock;
    this.#machine = new Machine(options.host, this.#log);
    this.#queues = new QueueBudget(undefined, this.#machine.drops);
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
    const machine = this.#machine;
    return {
      state: this.#state,
      since: this.#since,
      user: session?.accepted.user,
      device: machine.device,
      config: session?.config,
      refused: [...(session?.refused ?? []), ...(session === undefined ? [] : machine.refused)],
      tls: session?.channel.facts,
      superPackets: session?.accepted.features.includes(Feature.superPackets) ?? false,
      channels: session?.dataChannels ?? 0,
      ...machine.carried,
      roundTripMs: session?.roundTripMs,
      reconnects: this.#reconnects,
      resumes: this.#resumes,
      ...this.#counters,
      lastError: this.#lastError,
      drops: Object.fromEntries(
        DROP_REASON_NAMES.map((name, reason) => [name, machine.drops[reason] ?? 0] as const).filter(
          ([, count]) => count > 0,
        ),
      ),
    };
  }

  /** Session after session, resumed where that is possible, until told to stop, or until trying again is useless. */
  async #run(once: boolean): Promise<void> {
    const backoff = new Backoff();
    await this.#machine.open();
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
        end = await this.#live(session);
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
        this.#machine.judgeNetworks();
      },
      retry: () => {
        this.#isElsewhere = true;
        this.#retryNow();
      },
    });
    const { device } = this.#machine;
    if (device !== undefined) roaming.ignore(device.name);
    this.#roaming = roaming;
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

  async #dial(options: Omit<DialOptions, 'signal'>, attempt: AbortController): Promise<DialledChannel> {
    try {
      return await dialSomewhere({ ...options, signal: AbortSignal.any([this.#abort.signal, attempt.signal]) });
    } catch (error) {
      const told = attempt.signal.aborted ? toVpnError(error) : await this.#explain(toVpnError(error));
      this.#dialError = told;
      throw told;
    } finally {
      // Nobody is asked twice for a password because a cable was plugged in.
      if (this.#ticket === undefined && this.#attempt === attempt) this.#attempt = undefined;
    }
  }

  /** Resumes the session there is, or logs in at the first server that takes it. */
  async #open(): Promise<ClientSession> {
    const ticket = this.#ticket;
    const attempt = new AbortController();
    this.#attempt = attempt;
    // The server that has the session takes it back, drained or not.
    const opening: Opening = { avoided: ticket === undefined ? this.#drained : new Set() };
    this.#opening = opening;
    const session = await this.#openAt(opening, attempt, ticket).finally(() => {
      this.#attempt = undefined;
    });
    await this.#use(session, opening, ticket === undefined ? 'connected' : 'session resumed');
    if (ticket !== undefined) this.#resumes += 1;
    else this.#drained.clear();
    return session;
  }

  /** A session is the client's from now on. */
  async #use(session: ClientSession, opening: Opening, what: string): Promise<void> {
    this.#opening = opening;
    this.#session = session;
    this.#pushedPins = session.config.pins;
    const { facts } = session.channel;
    this.#log.info(what, {
      server: this.#serverName,
      user: session.accepted.user,
      tls: facts.protocol,
      group: facts.group,
    });
    if (this.#isEnrolled) return;
    this.#isEnrolled = true;
    this.#token = undefined;
    await this.#options.onEnrolled?.();
  }

  /** Opens a session, passing over servers that are shutting down; `opening.avoided` has them afterwards. */
  async #openAt(opening: Opening, attempt: AbortController, ticket?: ResumeTicket): Promise<ClientSession> {
    let refusal: VpnError | undefined;
    for (;;) {
      try {
        return await this.#openOnce(opening, attempt, ticket);
      } catch (cause) {
        const error = toVpnError(cause);
        if (typeof error.details.passedOver === 'number') {
          // They may be back by the next time.
          if (opening.avoided === this.#drained) this.#drained.clear();
          throw refusal ?? error;
        }
        const isLeaving = error.details.reject === 'shutting_down';
        if (!isLeaving || opening.way === undefined || opening.avoided.has(opening.way)) throw error;
        opening.avoided.add(opening.way);
        refusal = error;
      }
    }
  }

  async #openOnce(opening: Opening, attempt: AbortController, ticket?: ResumeTicket): Promise<ClientSession> {
    const options = this.#options;
    const serverName = this.#serverName;
    const serverVerified = options.verifyServer !== false;
    const token = serverVerified ? this.#token : undefined;
    const dialOptions = await this.#dialOptions();
    let home: string | undefined;
    return await ClientSession.open({
      dial: async (worker) => {
        const { channel, way } = await this.#dial(
          {
            ...dialOptions,
            // The server may have announced other keys by then.
            pins: this.#pins,
            // Where there are several servers, only one has the session.
            accepts: (to) => (home === undefined ? !opening.avoided.has(to) : to === home),
            ...(worker === undefined ? {} : { worker }),
          },
          attempt,
        );
        home ??= way;
        opening.way = home;
        return channel;
      },
      device: this.#device,
      token,
      user: options.user,
      enrol: !this.#isEnrolled,
      resume: ticket,
      keep: (kept) => {
        if (this.#opening === opening) this.#ticket = kept;
        else opening.ticket = kept;
      },
      onDrain: (seconds) => {
        if (this.#opening === opening) this.#relocate(seconds);
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
      openLink: (config, accepted) => this.#machine.fit(config, accepted),
    });
  }

  /** Lives with a session, and with those that it is left for at other servers; resolves with the end of the last. */
  async #live(session: ClientSession): Promise<SessionEnd> {
    for (let current = session; ; ) {
      const end = await current.ended;
      this.#relocation?.stop();
      this.#relocation = undefined;
      const next = this.#session;
      if (next === undefined || next === current) return end;
      current = next;
    }
  }

  /** The server is drained: a session at another one takes the place of this one, as soon as it stands. */
  #relocate(seconds: number): void {
    const { serverHost } = this.#options;
    const isOnly = typeof serverHost === 'string' || serverHost.length === 1;
    if (isOnly && isIP(String(serverHost)) !== 0) {
      this.#log.warn('the server is drained, and the profile has no other', { seconds });
      return;
    }
    this.#relocation?.stop();
    this.#relocation = new Relocation<OpenedAt>({
      seconds,
      open: async (signal) => {
        const attempt = new AbortController();
        signal.addEventListener('abort', () => attempt.abort(), { once: true });
        const opening: Opening = { avoided: new Set([...this.#drained, this.#opening?.way ?? '']) };
        const former = this.#machine.linked;
        try {
          return { session: await this.#openAt(opening, attempt), opening };
        } catch (error) {
          // The machine is fitted to the one that came to nothing.
          if (this.#machine.linked !== former) this.#session?.abandon(toVpnError(error));
          throw error;
        } finally {
          for (const way of opening.avoided) this.#drained.add(way);
        }
      },
      moved: ({ session, opening }) => {
        const former = this.#session;
        this.#ticket = opening.ticket;
        void this.#use(session, opening, 'moved to another server');
        this.#drained.clear();
        former?.close('peer_disconnect');
        this.#machine.left();
      },
      discard: ({ session }) => session.close(),
      log: this.#log,
    });
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

  #features(): string[] {
    const { device } = this.#machine;
    const features: string[] = [Feature.attach, Feature.resume, Feature.rekey, Feature.drain];
    if (device?.kind === 'tap') return [...features, Feature.ethernet];
    if (this.#options.compression === true) features.push(Feature.compression);
    if (this.#options.superPackets === false || device?.superPackets !== true) return features;
    features.push(Feature.superPackets);
    if (device.uso) features.push(Feature.udpSuperPackets);
    return features;
  }

  #forgetSession(): void {
    this.#machine.forget();
    this.#session = undefined;
  }

  async #finish(): Promise<void> {
    this.#session?.close();
    this.#forgetSession();
    await this.#roaming?.[Symbol.asyncDispose]();
    try {
      await this.#machine.close();
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
