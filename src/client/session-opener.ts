/**
 * Opens sessions at the servers of a profile: at the one that has the session, or at the first that takes a new one.
 *
 * Hides what is offered and demanded of a server (keys, pins, features, limits), which servers are passed over because they are
 * shutting down, the token that is spent by the first login, and what stands in the way when a dial has failed. It must not
 * know why a session is wanted, nor when to try again.
 */

import { isIP } from 'node:net';
import type { TLSSocket } from 'node:tls';
import type { Clock } from '../base/clock.ts';
import { toVpnError, type VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { nodePrimitives } from '../base/primitives.ts';
import { formatPrefix, type IpAddress, parseIp } from '../ip/address.ts';
import { Feature } from '../protocol/features.ts';
import { recoveryAfterError } from '../protocol/reasons.ts';
import { loadClientCredentials } from '../transport/credentials.ts';
import { type DialledChannel, type DialOptions, dialSomewhere, dialStreams } from '../transport/dial.ts';
import { QueueBudget } from '../transport/queue-budget.ts';
import type { RekeyCounters } from '../transport/slot.ts';
import type { ClientOptions } from './client-options.ts';
import { DeviceKey } from './device-key.ts';
import type { ResumeTicket } from './dialogue.ts';
import type { Machine } from './machine.ts';
import { ClientSession } from './session.ts';

/** How often it is looked for what stands in the way. */
const EXPLAIN_EVERY_MS = 10_000;

/** A session to be, and where it is then. */
export interface Opening {
  /** The servers that are not asked, by their ways. */
  readonly avoided: Set<string>;
  /** What the session can be resumed with; undefined before there is one, and when it cannot be resumed any more. */
  ticket: ResumeTicket | undefined;
  /** The way to the server that it is at. */
  way: string | undefined;
  /** Calls the attempt off; the session is not concerned. */
  readonly attempt: AbortController;
}

export interface SessionOpenerOptions {
  readonly client: ClientOptions;
  readonly machine: Machine;
  readonly clock: Clock;
  readonly log: Logger;
  /** The client is told to stop. */
  readonly signal: AbortSignal;
  readonly counters: RekeyCounters;
  /** The server of this opening is drained: it stops serving in so many seconds. */
  onDrain(opening: Opening, seconds: number): void;
  /** A server has been reached, by whatever attempt; a login goes on with people, maybe. */
  onDialled(opening: Opening): void;
  /** There is a better name for why the last dial failed. */
  onExplained(error: VpnError): void;
}

export class SessionOpener {
  readonly #options: SessionOpenerOptions;
  readonly #client: ClientOptions;
  readonly #device: DeviceKey;
  readonly #queues: QueueBudget;
  /** Servers that are shutting down, by their ways; until a session has been opened elsewhere. */
  readonly #drained = new Set<string>();
  #token: Uint8Array | undefined;
  #isEnrolled: boolean;
  /** Keys that the server has announced beside the profile's, so that they can be changed without new profiles. */
  #pushedPins: readonly string[] = [];
  /** Why the last dial failed. */
  #dialError: unknown;
  /** No session has been opened from the network that this machine is in. */
  #isElsewhere = true;
  #explainedAt = Number.NEGATIVE_INFINITY;

  constructor(options: SessionOpenerOptions) {
    const { client, machine } = options;
    this.#options = options;
    this.#client = client;
    this.#queues = new QueueBudget(undefined, machine.drops);
    this.#device = client.deviceKey ?? DeviceKey.generate();
    this.#token = client.token;
    this.#isEnrolled = !(client.enrol ?? client.token !== undefined);
  }

  /** The name that the server's certificate carries. */
  get serverName(): string {
    const { serverHost, serverName } = this.#client;
    return serverName ?? (typeof serverHost === 'string' ? serverHost : (serverHost[0] ?? ''));
  }

  /** Whether there is no other server to go to. */
  get hasOneServer(): boolean {
    const { serverHost } = this.#client;
    const isOnly = typeof serverHost === 'string' || serverHost.length === 1;
    return isOnly && isIP(String(serverHost)) !== 0;
  }

  /** Whether an error is what the last dial met, and not what a server said. */
  isOfDial(error: VpnError): boolean {
    return error === this.#dialError;
  }

  /** This machine may be in another network than before. */
  moved(): void {
    this.#isElsewhere = true;
  }

  /** What is opened next: the session of this ticket again, or a new one. */
  begin(ticket: ResumeTicket | undefined): Opening {
    // The server that has the session takes it back, drained or not.
    const avoided = ticket === undefined ? this.#drained : new Set<string>();
    return { avoided, ticket, way: undefined, attempt: new AbortController() };
  }

  /** A new session, at another server than this one. */
  beginElsewhere(present: Opening | undefined): Opening {
    const avoided = new Set([...this.#drained, present?.way ?? '']);
    return { avoided, ticket: undefined, way: undefined, attempt: new AbortController() };
  }

  /**
   * Opens a session, passing over servers that are shutting down; `opening.avoided` has them afterwards.
   *
   * @throws {VpnError} whatever stopped it; with `details.passedOver` when no server was left
   */
  async open(opening: Opening): Promise<ClientSession> {
    const { ticket } = opening;
    let refusal: VpnError | undefined;
    for (;;) {
      try {
        return await this.#openOnce(opening, ticket);
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

  /** As `open`, while another session goes on: what was found out about servers is kept. */
  async openElsewhere(opening: Opening): Promise<ClientSession> {
    try {
      return await this.open(opening);
    } finally {
      for (const way of opening.avoided) this.#drained.add(way);
    }
  }

  /** A session is in use from now on. @param isNew it was not resumed: what is known of drained servers is old */
  async used(session: ClientSession, isNew: boolean): Promise<void> {
    this.#pushedPins = session.config.pins;
    this.#isElsewhere = false;
    if (isNew) this.#drained.clear();
    if (this.#isEnrolled) return;
    this.#isEnrolled = true;
    this.#token = undefined;
    await this.#client.onEnrolled?.();
  }

  /** Opens a connection for streams. @throws {VpnError} as `dial` */
  async dialStreams(): Promise<TLSSocket> {
    return await dialStreams({ ...(await this.#dialOptions()), signal: this.#options.signal });
  }

  async #openOnce(opening: Opening, ticket: ResumeTicket | undefined): Promise<ClientSession> {
    const { client, clock, counters, log, machine, signal } = this.#options;
    const serverVerified = client.verifyServer !== false;
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
          opening,
        );
        home ??= way;
        opening.way = home;
        return channel;
      },
      device: this.#device,
      token: serverVerified ? this.#token : undefined,
      user: client.user,
      enrol: !this.#isEnrolled,
      resume: ticket,
      keep: (kept) => {
        opening.ticket = kept;
      },
      onDrain: (seconds) => this.#options.onDrain(opening, seconds),
      answer: client.answer,
      serverName: this.serverName,
      serverVerified,
      features: this.#features(),
      networks: this.#networks,
      limits: {
        defaultRoute: false,
        dns: false,
        outside: addressesIn(client.serverHost),
        socketsExempt: client.mark !== undefined,
        ...client.limits,
        serverVerified,
      },
      dataChannels: client.dataChannels,
      counters,
      version: client.version ?? 'library',
      primitives: nodePrimitives,
      now: () => clock.now(),
      signal: AbortSignal.any([signal, opening.attempt.signal]),
      log,
      openLink: (config, accepted) => machine.fit(config, accepted),
    });
  }

  async #dial(options: Omit<DialOptions, 'signal'>, opening: Opening): Promise<DialledChannel> {
    const { signal } = opening.attempt;
    try {
      return await dialSomewhere({ ...options, signal: AbortSignal.any([this.#options.signal, signal]) });
    } catch (error) {
      const told = signal.aborted ? toVpnError(error) : await this.#explain(toVpnError(error));
      this.#dialError = told;
      throw told;
    } finally {
      this.#options.onDialled(opening);
    }
  }

  /** A better name for why a dial failed; waited for only where it decides whether, or when, to go on. */
  async #explain(error: VpnError): Promise<VpnError> {
    const { explain } = this.#client;
    const { clock, signal, onExplained } = this.#options;
    if (explain === undefined || error.kind !== 'transport' || signal.aborted) return error;
    if (recoveryAfterError(error) !== 'retry') return await explain(error);
    // A server that was reached from this network and is silent now is gone, and nobody is in between.
    if (!this.#isElsewhere) return error;
    const now = clock.now();
    if (now - this.#explainedAt < EXPLAIN_EVERY_MS) return error;
    this.#explainedAt = now;
    void explain(error).then((named) => {
      if (named !== error) onExplained(named);
    });
    return error;
  }

  get #pins(): readonly string[] {
    const { pins = [] } = this.#client;
    return pins.length === 0 ? [] : [...pins, ...this.#pushedPins];
  }

  async #dialOptions(): Promise<Omit<DialOptions, 'signal'>> {
    const { client, log } = this.#options;
    const files = await loadClientCredentials(client);
    return {
      queues: this.#queues,
      ...files,
      ca: client.ca ?? files.ca,
      host: client.serverHost,
      port: client.serverPort ?? 443,
      serverName: this.serverName,
      pins: this.#pins,
      verifyServer: client.verifyServer !== false,
      ...(client.lookup === undefined ? {} : { lookup: client.lookup }),
      ...(client.proxy === undefined ? {} : { proxy: client.proxy }),
      ...(client.camouflage === undefined ? {} : { camouflage: client.camouflage }),
      ...(client.mark === undefined ? {} : { mark: client.mark }),
      log,
    };
  }

  /** What is offered, where packets can be carried. */
  get #networks(): string[] {
    const { device } = this.#options.machine;
    const isIp = device !== undefined && device.kind !== 'tap';
    return isIp ? (this.#client.limits?.networks ?? []).map(formatPrefix) : [];
  }

  #features(): string[] {
    const { device } = this.#options.machine;
    const features: string[] = [Feature.attach, Feature.resume, Feature.rekey, Feature.drain];
    if (device?.kind === 'tap') return [...features, Feature.ethernet];
    if (this.#networks.length > 0) features.push(Feature.networks);
    if (this.#client.compression === true) features.push(Feature.compression);
    if (this.#client.superPackets === false || device?.superPackets !== true) return features;
    features.push(Feature.superPackets);
    if (device.uso) features.push(Feature.udpSuperPackets);
    return features;
  }
}

/** The hosts that are addresses: those not dialled this time may be dialled next. */
function addressesIn(hosts: string | readonly string[]): IpAddress[] {
  return (typeof hosts === 'string' ? [hosts] : hosts).flatMap((host) => (isIP(host) === 0 ? [] : [parseIp(host)]));
}
