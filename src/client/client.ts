/**
 * A VPN client that stays connected: dial, log in, carry packets, come back when the gateway went away.
 *
 * Hides the order of things: session after session, what follows on the end of each, and how long is waited. How a session is
 * opened is `session-opener.ts`. It knows neither files nor the command line: keys, certificates and the machine's network are
 * handed in, so that it also runs inside another program, and without root.
 */

import { setTimeout as sleep } from 'node:timers/promises';
import type { TLSSocket } from 'node:tls';
import { type Clock, systemClock } from '../base/clock.ts';
import { toVpnError, VpnError } from '../base/errors.ts';
import { type Logger, silentLogger } from '../base/log.ts';
import { formatIp, formatPrefix, prefixesOverlap } from '../ip/address.ts';
import { DROP_REASON_NAMES } from '../ip/drop-reason.ts';
import { Backoff } from '../protocol/backoff.ts';
import type { AcceptedConfig, RefusedItem } from '../protocol/config-check.ts';
import { Feature } from '../protocol/features.ts';
import type { CloseReason } from '../protocol/messages.ts';
import type { ProxyBinding } from '../protocol/proxy-binding.ts';
import { type Recovery, recoveryAfterClose, recoveryAfterError } from '../protocol/reasons.ts';
import type { RekeyCounters } from '../transport/slot.ts';
import type { ClientOptions, ClientSnapshot, ClientState } from './client-options.ts';
import type { ResumeTicket } from './dialogue.ts';
import { Machine } from './machine.ts';
import { Relocation } from './relocation.ts';
import { Roaming } from './roaming.ts';
import type { ClientSession, SessionEnd } from './session.ts';
import { type Opening, SessionOpener } from './session-opener.ts';

export type { ClientOptions, ClientSnapshot, ClientState } from './client-options.ts';

interface OpenedAt {
  readonly session: ClientSession;
  readonly opening: Opening;
}

/** After these the server still has the session. */
const RESUMABLE: ReadonlySet<CloseReason> = new Set<CloseReason>(['shutdown', 'dead_peer']);

export class VpnClient {
  readonly #options: ClientOptions;
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #machine: Machine;
  readonly #counters: RekeyCounters = { rekeys: 0, rekeyGaps: 0 };
  readonly #opener: SessionOpener;
  readonly #stopped = Promise.withResolvers<void>();
  readonly #abort = new AbortController();
  #state: ClientState = 'idle';
  #since: number;
  #session: ClientSession | undefined;
  /** How the present session, or the one that is being opened in place of none, came about. */
  #opening: Opening | undefined;
  #relocation: Relocation<OpenedAt> | undefined;
  #reconnects = 0;
  #resumes = 0;
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
  constructor(options: ClientOptions) {
    this.#options = options;
    this.#log = (options.log ?? silentLogger).child({ component: 'client' });
    this.#clock = options.clock ?? systemClock;
    this.#machine = new Machine(options.host, this.#log);
    this.#opener = new SessionOpener({
      client: options,
      machine: this.#machine,
      clock: this.#clock,
      log: this.#log,
      signal: this.#abort.signal,
      counters: this.#counters,
      onDrain: (opening, seconds) => {
        if (this.#opening === opening) this.#relocate(seconds);
      },
      onDialled: ({ ticket, attempt }) => {
        // Nobody is asked twice for a password because a cable was plugged in.
        if (ticket === undefined && this.#attempt === attempt) this.#attempt = undefined;
      },
      onExplained: (error) => {
        if (this.#session === undefined) this.#lastError = error;
      },
    });
    this.#opening = options.resume === undefined ? undefined : this.#opener.begin(options.resume);
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
    return this.#opening?.ticket;
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
   * Opens a connection for streams, and says what binds it to the present session.
   *
   * @throws {VpnError} ERR_PEER_GONE while there is no session; as `dial`
   */
  async dialProxy(): Promise<{ socket: TLSSocket; binding: ProxyBinding }> {
    const session = this.#session;
    if (session === undefined) throw new VpnError('ERR_PEER_GONE', 'the client is not connected');
    return { socket: await this.#opener.dialStreams(), binding: session.binding };
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
      refused: [
        ...(session?.refused ?? []),
        ...(session === undefined ? [] : machine.refused),
        ...this.#ungranted(session?.config),
      ],
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

  /** What it offers, and has not been given. */
  #ungranted(config: AcceptedConfig | undefined): RefusedItem[] {
    if (config === undefined) return [];
    const offered = this.#options.limits?.networks ?? [];
    return offered
      .filter((offer) => !config.networks.some(({ network }) => prefixesOverlap(offer, network)))
      .map((offer) => {
        const why =
          'the gateway does not let this machine carry it: its policy does not say so, or another client has it';
        return { item: `networks ${formatPrefix(offer)}`, why };
      });
  }

  /** Session after session, resumed where that is possible, until told to stop, or until trying again is useless. */
  async #run(once: boolean): Promise<void> {
    const backoff = new Backoff();
    await this.#machine.open();
    this.#watchNetwork();
    while (!this.#abort.signal.aborted) {
      const resumed = this.ticket;
      this.#setState('connecting');
      let end: SessionEnd;
      try {
        const session = await this.#open();
        if (this.#abort.signal.aborted) session.close();
        const openedAt = this.#clock.now();
        this.#setState('connected');
        this.#lastError = undefined;
        this.#hasConnected = true;
        if (!this.#abort.signal.aborted) this.#first?.resolve();
        end = await this.#live(session);
        backoff.ended(this.#clock.now() - openedAt);
      } catch (error) {
        end = { error: toVpnError(error) };
        if (once && !this.#hasConnected && !this.#isDue) throw error;
      }
      this.#forgetSession();
      if (this.#abort.signal.aborted) break;
      if (end.reason !== undefined && !RESUMABLE.has(end.reason)) this.#forgetTicket();
      if (resumed !== undefined && this.ticket === undefined && isSessionUnknown(end.error)) {
        this.#log.info('the session cannot be resumed; logging in');
        continue;
      }
      const recovery = this.#recoveryAfter(end);
      this.#lastError =
        end.error ?? new VpnError('ERR_PEER_GONE', `the server closed the session: ${end.reason ?? 'no reason'}`);
      if (recovery === 'final') throw this.#lastError;
      // A server that goes in order and keeps the session wants its clients back, however often it has gone lately.
      const isExpected = end.reason === 'shutdown' && this.ticket !== undefined;
      if (this.#isDue || isExpected) backoff.reset();
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
    const isForeign = error.kind === 'transport' && this.#opener.isOfDial(error);
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
        this.#opener.moved();
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
        this.#opener.moved();
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

  /** Resumes the session there is, or logs in at the first server that takes it. */
  async #open(): Promise<ClientSession> {
    const { ticket } = this;
    const opening = this.#opener.begin(ticket);
    this.#opening = opening;
    this.#attempt = opening.attempt;
    const session = await this.#opener.open(opening).finally(() => {
      this.#attempt = undefined;
    });
    await this.#use({ session, opening }, ticket === undefined ? 'connected' : 'session resumed');
    if (ticket !== undefined) this.#resumes += 1;
    return session;
  }

  /** A session is the client's from now on. */
  async #use({ session, opening }: OpenedAt, what: 'connected' | 'session resumed' | 'moved to another server') {
    this.#opening = opening;
    this.#session = session;
    const { facts } = session.channel;
    this.#log.info(what, {
      server: this.#opener.serverName,
      user: session.accepted.user,
      tls: facts.protocol,
      group: facts.group,
    });
    await this.#opener.used(session, what !== 'session resumed');
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
    if (this.#opener.hasOneServer) {
      this.#log.warn('the server is drained, and the profile has no other', { seconds });
      return;
    }
    this.#relocation?.stop();
    this.#relocation = new Relocation<OpenedAt>({
      seconds,
      open: async (signal) => {
        const opening = this.#opener.beginElsewhere(this.#opening);
        signal.addEventListener('abort', () => opening.attempt.abort(), { once: true });
        const former = this.#machine.linked;
        try {
          return { session: await this.#opener.openElsewhere(opening), opening };
        } catch (error) {
          // The machine is fitted to the one that came to nothing.
          if (this.#machine.linked !== former) this.#session?.abandon(toVpnError(error));
          throw error;
        }
      },
      moved: (opened) => {
        const former = this.#session;
        void this.#use(opened, 'moved to another server');
        former?.close('peer_disconnect');
        this.#machine.left();
      },
      discard: ({ session }) => session.close(),
      log: this.#log,
    });
  }

  /** The session is over for good. */
  #forgetTicket(): void {
    if (this.#opening !== undefined) this.#opening.ticket = undefined;
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
