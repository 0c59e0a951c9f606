/**
 * One session with a gateway, from the greeting to its end.
 *
 * Hides the connections: a control connection that logs in and is changed now and then, and data connections bound to the
 * session by mutual proof, or data inline. Its owner gives it a way to dial, answers for the device, and learns one thing: how it ended.
 * Reconnecting is the owner's business, who keeps what it takes to resume the session in the meantime.
 */

import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type IpAddress, parseIp } from '../ip/address.ts';
import { Backoff } from '../protocol/backoff.ts';
import { type AcceptedConfig, type ClientLimits, checkConfig, type RefusedItem } from '../protocol/config-check.ts';
import { Feature } from '../protocol/features.ts';
import { encodeFrame, FrameType, MAX_PACKET_PAYLOAD_BYTES } from '../protocol/frame.ts';
import { attachKey, proxyKey } from '../protocol/keys.ts';
import { type AcceptMessage, type CloseReason, type ConfigMessage, decodeMessage } from '../protocol/messages.ts';
import type { ProxyBinding } from '../protocol/proxy-binding.ts';
import { recoveryAfterError } from '../protocol/reasons.ts';
import { CONTROL_SLOT } from '../protocol/rekey.ts';
import type { Channel } from '../transport/channel.ts';
import type { TunnelLink } from '../transport/packet-link.ts';
import { type RekeyCounters, Slot } from '../transport/slot.ts';
import { ServerConnection, withTimeout } from './connection.ts';
import { DataLink, type DataOpening } from './data-link.ts';
import { closedError, type DialogueOptions, type OpenedSession, openDialogue, type ResumeTicket } from './dialogue.ts';

const TICK_MS = 1000;
/** How much later than on the data connection the end of a session may be told on the control connection. */
const END_DELAY_MS = 1000;
/** How long the server has for a sign of life when its way may have broken: this, or so many round trips. */
const CHECK_MS = 1500;
const CHECK_ROUND_TRIPS = 4;
const MAX_CHECK_MS = 6000;
/** The server returns echoes through a bounded queue; more in flight could overflow it. */
const MAX_ECHO_BYTES_IN_FLIGHT = 256 * 1024;

export interface ClientSessionOptions extends DialogueOptions {
  /** Opens a connection to the gateway; a data connection names the worker that its session belongs to. */
  dial: (worker?: number) => Promise<Channel>;
  limits: ClientLimits;
  /** How many data connections are wanted; default: as many as the server allows. */
  dataChannels?: number | undefined;
  counters: RekeyCounters;
  /** Monotonic milliseconds. */
  now: () => number;
  log: Logger;
  /** The server asks its clients to move to another one: it stops serving in so many seconds. */
  onDrain?: (seconds: number) => void;
  /** Makes the tunnel ready for this configuration: device, addresses, routes. Without a link no packets are carried. */
  openLink: (config: AcceptedConfig, accepted: AcceptMessage) => Promise<TunnelLink | undefined>;
}

/** How a session ended: with an error, or with the reason the server gave. */
export interface SessionEnd {
  readonly error?: VpnError;
  readonly reason?: CloseReason;
}

interface PendingEcho {
  readonly bytes: number;
  resolve(payload: Uint8Array): void;
  reject(error: VpnError): void;
}

export class ClientSession {
  readonly accepted: AcceptMessage;
  readonly #options: ClientSessionOptions;
  readonly #control: Slot<ServerConnection>;
  readonly #limits: ClientLimits;
  readonly #tick: NodeJS.Timeout;
  readonly #ended = Promise.withResolvers<SessionEnd>();
  readonly #echoes: PendingEcho[] = [];
  readonly #canChange: boolean;
  /** Undefined where data flows inline. */
  #data: DataLink | undefined;
  #ticket: ResumeTicket;
  #channel: Channel;
  #echoBytes = 0;
  #config: AcceptedConfig;
  #refused: readonly RefusedItem[];
  #link: TunnelLink | undefined;
  /** When the control connection may be changed again. */
  #renewAt = Number.NEGATIVE_INFINITY;
  readonly #renewals = new Backoff();
  #isRenewing = false;
  /** The connection to change to, while it is not there yet. */
  #renewal: ServerConnection | undefined;
  /** The server has proven itself on the connection to change to: it decides what becomes of the session. */
  #isRenewalProven = false;
  #isStarted = false;
  #isOver = false;
  #checking: NodeJS.Timeout | undefined;

  /** Logs in and makes the tunnel ready; resolves when packets can flow. @throws {VpnError} whatever stopped it */
  static async open(options: ClientSessionOptions): Promise<ClientSession> {
    const channel = await options.dial();
    const control = new ServerConnection(channel);
    const callOff = (): void => control.fail(new VpnError('ERR_CONNECT', 'connecting was called off'));
    options.signal.addEventListener('abort', callOff, { once: true });
    try {
      if (options.signal.aborted) callOff();
      const opened = await openDialogue(control, options);
      const { accept, secret } = opened;
      options.keep(accept.features.includes(Feature.resume) ? { accept, secret } : undefined);
      const session = new ClientSession(options, control, opened);
      control.release();
      await session.#start();
      return session;
    } catch (error) {
      control.fail(toVpnError(error));
      throw error;
    } finally {
      options.signal.removeEventListener('abort', callOff);
    }
  }

  private constructor(options: ClientSessionOptions, control: ServerConnection, opened: OpenedSession) {
    const { accept, secret } = opened;
    this.#options = options;
    this.#channel = control.channel;
    this.accepted = accept;
    this.#ticket = { accept, secret };
    this.#canChange = accept.features.includes(Feature.rekey) && accept.features.includes(Feature.resume);
    this.#limits = { ...options.limits, outside: [...options.limits.outside, ...outerAddresses(control.channel)] };
    const { accepted, refused } = checkConfig(opened.config, this.#limits);
    this.#config = accepted;
    this.#refused = refused;
    this.#control = new Slot<ServerConnection>({
      number: CONTROL_SLOT,
      counters: options.counters,
      onSending: (connection) => {
        if (this.dataChannels === 0) this.#link?.spread.set(0, connection?.channel);
      },
    });
    this.#tick = setInterval(() => this.#handleTick(), TICK_MS);
    this.#tick.unref();
    this.#adopt(control, accept.epoch);
  }

  get channel(): Channel {
    return this.#channel;
  }

  /** Resolves when the session is over; never rejects. */
  get ended(): Promise<SessionEnd> {
    return this.#ended.promise;
  }

  /** What binds connections for streams to it. */
  get binding(): ProxyBinding {
    const { accept, secret } = this.#ticket;
    const { session, epoch } = accept;
    return { session, epoch, key: proxyKey(this.#options.primitives, secret) };
  }

  get config(): AcceptedConfig {
    return this.#config;
  }

  /** What the server pushed and this client does not use. */
  get refused(): readonly RefusedItem[] {
    return this.#refused;
  }

  get link(): TunnelLink | undefined {
    return this.#link;
  }

  /** Data connections; 0 when data flows inline. */
  get dataChannels(): number {
    return this.#data?.count ?? 0;
  }

  get roundTripMs(): number | undefined {
    return this.#control.reading?.roundTripMs;
  }

  /**
   * Sends a payload that the server returns.
   *
   * @throws {VpnError} ERR_FRAME_TOO_LONG, ERR_BUSY (too much in flight), ERR_PEER_GONE
   */
  echo(payload: Uint8Array): Promise<Uint8Array> {
    if (payload.length > MAX_PACKET_PAYLOAD_BYTES) {
      throw new VpnError(
        'ERR_FRAME_TOO_LONG',
        `an echo has at most ${MAX_PACKET_PAYLOAD_BYTES} bytes, got ${payload.length}`,
      );
    }
    if (this.#isOver) throw new VpnError('ERR_PEER_GONE', 'the session is over');
    if (this.#echoBytes + payload.length > MAX_ECHO_BYTES_IN_FLIGHT) {
      throw new VpnError('ERR_BUSY', 'more than 256 KiB of echoes are in flight; wait for one to return');
    }
    this.#echoBytes += payload.length;
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    this.#echoes.push({ bytes: payload.length, resolve, reject });
    this.#control.sending?.channel.sendControl(encodeFrame(FrameType.echo, payload));
    return promise;
  }

  /** Tells the server and ends the session. */
  close(reason: CloseReason = 'peer_disconnect'): void {
    if (this.#isOver) return;
    this.#control.close(reason);
    this.#end({});
  }

  /** Ends the session at this end only, because of an error: it is to be resumed over another connection. */
  abandon(error: VpnError): void {
    if (this.#isOver) return;
    this.#fail(error);
  }

  /** Asks the server for a sign of life on every connection, and abandons the session, or a data connection, without one. */
  check(): void {
    if (this.#isOver || this.#checking !== undefined) return;
    const { counters } = this.channel;
    const before = counters.receivedBytes;
    const now = this.#options.now();
    this.#control.reading?.ask(now);
    const dropSilent = this.#data?.ask(now);
    const withinMs = Math.min(MAX_CHECK_MS, Math.max(CHECK_MS, CHECK_ROUND_TRIPS * (this.roundTripMs ?? 0)));
    this.#checking = setTimeout(() => {
      this.#checking = undefined;
      if (counters.receivedBytes !== before) {
        dropSilent?.();
        return;
      }
      this.abandon(new VpnError('ERR_PEER_GONE', 'the network has changed, and the server does not answer over it'));
    }, withinMs);
  }

  async #start(): Promise<void> {
    const { data, notices } = this.#config;
    this.#tellNotices(notices);
    const isAttached = data.mode === 'attached' && this.accepted.features.includes(Feature.attach);
    if (isAttached) this.#data = this.#createDataLink(data.channels);
    // The second handshake runs while the machine is being set up.
    const opening = this.#data?.open() ?? Promise.resolve('never' as const);
    opening.catch(() => {});
    const link = await this.#options.openLink(this.#config, this.accepted);
    let isThere: DataOpening;
    try {
      isThere = await opening;
    } catch (error) {
      // A session that is gone says why on its control connection.
      if (!this.#isOver && !isVpnError(error, 'ERR_SESSION_UNKNOWN')) throw error;
      throw await withTimeout(this.ended, END_DELAY_MS, 'the server did not say why').then(endError, () => error);
    }
    if (this.#isOver) throw endError(await this.ended);
    if (isAttached && isThere === 'never') {
      this.#options.log.warn('the data connection was moved too often; data goes over the control connection');
      this.#data?.close('peer_disconnect');
      this.#data = undefined;
    }
    this.#isStarted = true;
    if (link === undefined) return;
    this.#link = link;
    for (const control of this.#control.connections) control.receiver = link.createReceiver();
    if (this.#data !== undefined) this.#data.link = link;
    // Also as long as there is no data connection yet.
    if (this.dataChannels === 0) link.spread.set(0, this.#control.sending?.channel);
  }

  #createDataLink(channels: number): DataLink {
    const { dial, counters, primitives, now, log, dataChannels = channels } = this.#options;
    const { accept, secret } = this.#ticket;
    return new DataLink({
      count: Math.min(channels, dataChannels),
      dial,
      worker: accept.worker,
      session: accept.session,
      keys: { epoch: accept.epoch, key: attachKey(primitives, secret) },
      canChange: this.#canChange,
      ping: this.#config.ping,
      rekeyMs: this.#config.rekeyMs,
      counters,
      primitives,
      now,
      log,
      onFailed: (error) => this.#fail(error),
    });
  }

  /** A connection is the control connection from now on. */
  #adopt(connection: ServerConnection, epoch: number): void {
    const now = this.#options.now();
    const { ping, rekeyMs } = this.#config;
    this.#channel = connection.channel;
    connection.serve({ ping, rekeyMs }, now);
    if (this.#link !== undefined) connection.receiver = this.#link.createReceiver();
    connection.onControl = (type, payload) => this.#receive(connection, type, payload);
    connection.onClosed = (error) => {
      if (!this.#control.closed(connection) || this.#control.sending !== undefined || this.#isOver) return;
      if (this.#isRenewalProven) return;
      this.#control.close('peer_disconnect');
      this.#end(error === undefined ? {} : { error });
    };
    this.#control.attach(connection, epoch, this.#canChange, now);
  }

  /** Changes the control connection by a resume, while the old one lives. */
  async #renew(): Promise<void> {
    const { dial, keep, primitives, log, now } = this.#options;
    this.#isRenewing = true;
    this.#isRenewalProven = false;
    let connection: ServerConnection | undefined;
    try {
      await this.#data?.pause();
      connection = new ServerConnection(await dial(this.#ticket.accept.worker));
      this.#renewal = connection;
      if (this.#isOver) connection.fail(new VpnError('ERR_PEER_GONE', 'the session is over'));
      const { accept, secret, config } = await openDialogue(connection, {
        ...this.#options,
        resume: this.#ticket,
        rekey: true,
        keep: (ticket) => {
          this.#isRenewalProven = ticket !== undefined;
          keep(ticket);
        },
      });
      if (this.#isOver) {
        connection.close('peer_disconnect');
        return;
      }
      this.#ticket = { accept, secret };
      this.#data?.goOn({ epoch: accept.epoch, key: attachKey(primitives, secret) }, accept.worker);
      this.#adopt(connection, accept.epoch);
      if (!this.#control.isChanging) connection.release();
      if (config.revision !== this.#config.revision) this.#reconfigure(config);
    } catch (cause) {
      const error = toVpnError(cause);
      connection?.fail(error);
      if (this.#isOver) return;
      const { code, message } = error;
      log.warn('the control connection could not be changed', { code, reason: message });
      const isLost = recoveryAfterError(error) === 'final' || code === 'ERR_SESSION_UNKNOWN';
      // After the server's proof nobody knows which of the two it holds: the session is resumed.
      if (isLost || this.#isRenewalProven || this.#control.isSwitched) this.#fail(error);
      this.#data?.goOn();
      this.#renewAt = now() + this.#renewals.next(Math.random());
    } finally {
      this.#renewal = undefined;
      this.#isRenewing = false;
      this.#isRenewalProven = false;
    }
  }

  #receive(connection: ServerConnection, type: number, payload: Uint8Array): void {
    switch (type) {
      case FrameType.ping:
        // Where SWITCH was our last word, the other connection shows that we live.
        if (connection !== this.#control.sending) break;
        connection.channel.sendControl(encodeFrame(FrameType.pong, payload));
        break;
      case FrameType.pong:
        connection.pong(payload, this.#options.now());
        break;
      case FrameType.switch:
        this.#control.switched(connection, decodeMessage('switch', payload));
        break;
      case FrameType.echo: {
        const echo = this.#echoes.shift();
        if (echo === undefined) break;
        this.#echoBytes -= echo.bytes;
        // Not `slice()`: a Node Buffer's is a view of memory that is used again.
        echo.resolve(new Uint8Array(payload));
        break;
      }
      case FrameType.config:
        this.#reconfigure(decodeMessage('config', payload));
        break;
      case FrameType.drain: {
        const { seconds } = decodeMessage('drain', payload);
        if (!this.accepted.features.includes(Feature.drain)) {
          throw new VpnError('ERR_FRAME_STATE', 'the server sent DRAIN, which was not agreed on');
        }
        this.#options.onDrain?.(seconds);
        break;
      }
      case FrameType.close: {
        const { reason } = decodeMessage('close', payload);
        connection.channel.close();
        // One that is being changed is closed when nothing more can come, or when the session goes to another worker.
        const isChanged = reason === 'replaced' && (this.#control.isChanging || this.#isRenewalProven);
        if (connection === this.#control.reading && !isChanged) this.#end({ reason });
        break;
      }
    }
  }

  #reconfigure(config: ConfigMessage): void {
    const { accepted, refused } = checkConfig(config, this.#limits);
    this.#options.openLink(accepted, this.accepted).then(
      () => {
        this.#tellNotices(accepted.notices, this.#config.notices);
        this.#config = accepted;
        this.#refused = refused;
      },
      (cause: unknown) => {
        // Addresses or routes may be missing now: a tunnel in that state must not look like one that works.
        const error = toVpnError(cause);
        this.#options.log.error('the pushed configuration could not be applied; connecting anew', { error });
        this.#fail(new VpnError('ERR_PEER_GONE', `a pushed configuration failed: ${error.message}`, { cause }));
      },
    );
  }

  #tellNotices(notices: readonly string[], former: readonly string[] = []): void {
    for (const notice of notices) if (!former.includes(notice)) this.#options.log.warn(`the server says: ${notice}`);
  }

  #handleTick(): void {
    const now = this.#options.now();
    this.#data?.handleTick(now);
    const control = this.#control;
    control.handleTimeout(now);
    if (control.reading?.examine(now) === true) {
      this.#fail(new VpnError('ERR_PEER_GONE', 'the server has not answered for too long'));
      return;
    }
    const isWorn = this.#canChange && !control.isChanging && control.sending?.isWorn(now) === true;
    if (isWorn && !this.#isRenewing && now >= this.#renewAt && this.#isStarted) void this.#renew();
  }

  #fail(error: VpnError): void {
    for (const connection of this.#control.connections) connection.fail(error);
    this.#end({ error });
  }

  #end(end: SessionEnd): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearInterval(this.#tick);
    clearTimeout(this.#checking);
    this.#control.close('peer_disconnect');
    this.#renewal?.fail(new VpnError('ERR_PEER_GONE', 'the session is over'));
    this.#data?.close('peer_disconnect');
    this.#link?.spread.set(0, undefined);
    const gone = new VpnError('ERR_PEER_GONE', 'the session ended before the echo returned');
    for (const echo of this.#echoes.splice(0)) echo.reject(gone);
    this.#ended.resolve(end);
  }
}

/** The end of a session that never was: the code says whether to try again. */
function endError({ error, reason }: SessionEnd): VpnError {
  return error ?? closedError(reason ?? 'peer_disconnect');
}

/** What carries the tunnel and so must not go through it: the gateway's address, as it was dialled. */
function outerAddresses({ facts }: Channel): IpAddress[] {
  try {
    return [parseIp(facts.remote.address)];
  } catch {
    // An address with a zone is link-local: no pushed route holds it.
    return [];
  }
}
