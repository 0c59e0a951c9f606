/**
 * One session with a gateway, from the greeting to its end.
 *
 * Hides the connections: a control connection that logs in and stays, and a data connection bound to the session by mutual
 * proof, or data inline. Its owner gives it a way to dial, answers for the device, and learns one thing: how it ended.
 * Reconnecting is the owner's business, who keeps what it takes to resume the session in the meantime.
 */

import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type IpAddress, parseIp } from '../ip/address.ts';
import { AttachClient, MAX_MOVES } from '../protocol/attach.ts';
import { type AcceptedConfig, type ClientLimits, checkConfig, type RefusedItem } from '../protocol/config-check.ts';
import { Feature } from '../protocol/features.ts';
import { encodeFrame, FrameType, MAX_PACKET_PAYLOAD_BYTES } from '../protocol/frame.ts';
import { attachKey } from '../protocol/keys.ts';
import { Liveness } from '../protocol/liveness.ts';
import { type AcceptMessage, type CloseReason, decodeMessage } from '../protocol/messages.ts';
import type { Channel } from '../transport/channel.ts';
import type { PacketLink } from '../transport/packet-link.ts';
import { ServerConnection, withTimeout } from './connection.ts';
import { closedError, type DialogueOptions, type OpenedSession, openDialogue } from './dialogue.ts';

const TICK_MS = 1000;
const ATTACH_TIMEOUT_MS = 10_000;
/** A data connection that lives shorter is not worth another. */
const REATTACH_AFTER_MS = 10_000;
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
  /** Monotonic milliseconds. */
  now: () => number;
  log: Logger;
  /** Makes the tunnel ready for this configuration: device, addresses, routes. Without a link no packets are carried. */
  openLink: (config: AcceptedConfig, accepted: AcceptMessage) => Promise<PacketLink | undefined>;
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
  readonly channel: Channel;
  readonly #options: ClientSessionOptions;
  readonly #control: ServerConnection;
  readonly #attachKey: Uint8Array;
  readonly #limits: ClientLimits;
  readonly #liveness: Liveness;
  readonly #tick: NodeJS.Timeout;
  readonly #ended = Promise.withResolvers<SessionEnd>();
  readonly #echoes: PendingEcho[] = [];
  #echoBytes = 0;
  #config: AcceptedConfig;
  #refused: readonly RefusedItem[];
  #link: PacketLink | undefined;
  #data: ServerConnection | undefined;
  #generation = 0;
  #reattachedAt = Number.NEGATIVE_INFINITY;
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
    this.#options = options;
    this.#control = control;
    this.channel = control.channel;
    this.accepted = opened.accept;
    this.#attachKey = attachKey(options.primitives, opened.secret);
    this.#limits = { ...options.limits, outside: [...options.limits.outside, ...outerAddresses(this.channel)] };
    const { accepted, refused } = checkConfig(opened.config, this.#limits);
    this.#config = accepted;
    this.#refused = refused;
    this.#liveness = new Liveness(accepted.ping, options.now());
    this.#tick = setInterval(() => this.#handleTick(), TICK_MS);
    this.#tick.unref();
    control.onControl = (type, payload) => this.#receive(control, type, payload);
    control.onClosed = (error) => this.#end(error === undefined ? {} : { error });
    for (const frame of opened.early) this.#receive(control, frame.type, frame.payload);
  }

  /** Resolves when the session is over; never rejects. */
  get ended(): Promise<SessionEnd> {
    return this.#ended.promise;
  }

  get config(): AcceptedConfig {
    return this.#config;
  }

  /** What the server pushed and this client does not use. */
  get refused(): readonly RefusedItem[] {
    return this.#refused;
  }

  get link(): PacketLink | undefined {
    return this.#link;
  }

  /** Data connections; 0 when data flows inline. */
  get dataChannels(): number {
    return this.#data === undefined ? 0 : 1;
  }

  get roundTripMs(): number | undefined {
    return this.#liveness.roundTripMs;
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
    this.channel.sendControl(encodeFrame(FrameType.echo, payload));
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
    this.#control.fail(error);
    this.#end({ error });
  }

  /** Asks the server for a sign of life, and abandons the session without one. */
  check(): void {
    if (this.#isOver || this.#checking !== undefined) return;
    const { counters } = this.channel;
    const before = counters.receivedBytes;
    const withinMs = Math.min(MAX_CHECK_MS, Math.max(CHECK_MS, CHECK_ROUND_TRIPS * (this.roundTripMs ?? 0)));
    this.#checking = setTimeout(() => {
      this.#checking = undefined;
      if (counters.receivedBytes !== before) return;
      this.abandon(new VpnError('ERR_PEER_GONE', 'the network has changed, and the server does not answer over it'));
    }, withinMs);
    this.channel.sendControl(encodeFrame(FrameType.ping, this.#liveness.pingPayload(this.#options.now())));
  }

  async #start(): Promise<void> {
    // The second handshake runs while the machine is being set up.
    const isAttached = this.#config.data.mode === 'attached' && this.accepted.features.includes(Feature.attach);
    const attached = isAttached ? this.#attach() : Promise.resolve(undefined);
    attached.catch(() => {});
    this.#link = await this.#options.openLink(this.#config, this.accepted);
    try {
      await attached;
    } catch (error) {
      // A session that is gone says why on its control connection.
      if (!this.#isOver && !isVpnError(error, 'ERR_SESSION_UNKNOWN')) throw error;
      throw await withTimeout(this.ended, END_DELAY_MS, 'the server did not say why').then(endError, () => error);
    }
    if (this.#isOver) throw endError(await this.ended);
    if (this.#link !== undefined) {
      this.#control.receiver = this.#link.createReceiver();
      if (this.#data !== undefined) this.#data.receiver = this.#link.createReceiver();
      this.#link.channel = (this.#data ?? this.#control).channel;
    }
  }

  /** Dials the data connection and proves that it belongs here; after two MOVEDs data goes inline. */
  async #attach(): Promise<void> {
    let hint = this.accepted.worker;
    for (let move = 0; move < MAX_MOVES; move++) {
      const connection = new ServerConnection(await this.#options.dial(hint));
      try {
        const moved = await withTimeout(
          this.#prove(connection),
          ATTACH_TIMEOUT_MS,
          'the server did not answer an ATTACH',
        );
        if (moved === undefined) {
          if (this.#isOver) connection.close('peer_disconnect');
          else this.#adopt(connection);
          return;
        }
        hint = moved;
        connection.close('peer_disconnect');
      } catch (error) {
        connection.fail(toVpnError(error));
        throw error;
      }
    }
    this.#options.log.warn('the data connection was moved too often; data goes over the control connection');
    if (this.#link !== undefined) this.#link.channel = this.#control.channel;
  }

  /** Resolves with undefined when attached, or with the worker that owns the session. */
  async #prove(connection: ServerConnection): Promise<number | undefined> {
    const { primitives } = this.#options;
    const attach = new AttachClient({
      primitives,
      exporter: connection.exporter,
      session: this.accepted.session,
      epoch: this.accepted.epoch,
      key: this.#attachKey,
      slot: 0,
      generation: this.#generation++,
    });
    const done = Promise.withResolvers<number | undefined>();
    connection.onGreeting = () => connection.channel.sendControl(attach.start());
    connection.onControl = (type, payload) => {
      const output = attach.receive(type, payload);
      switch (output.kind) {
        case 'attached':
          connection.setPhase('data');
          done.resolve(undefined);
          break;
        case 'moved':
          done.resolve(output.worker);
          break;
        case 'failed':
          done.reject(output.error);
          break;
        case 'closed':
          done.reject(new VpnError('ERR_PEER_GONE', `the server closed the data connection: ${output.reason}`));
          break;
      }
    };
    connection.onClosed = (error) =>
      done.reject(error ?? new VpnError('ERR_PEER_GONE', 'the data connection was closed'));
    connection.start();
    return await done.promise;
  }

  #adopt(connection: ServerConnection): void {
    this.#data = connection;
    connection.onControl = (type, payload) => this.#receive(connection, type, payload);
    connection.onClosed = (error) => {
      if (this.#data !== connection) return;
      this.#data = undefined;
      if (this.#link !== undefined) this.#link.channel = undefined;
      if (!this.#isOver) this.#reattach(error);
    };
    if (this.#link !== undefined) {
      connection.receiver = this.#link.createReceiver();
      this.#link.channel = connection.channel;
    }
  }

  /** A lost data connection does not end the session; one that is lost again at once does, so that the backoff applies. */
  #reattach(error: VpnError | undefined): void {
    const now = this.#options.now();
    if (now - this.#reattachedAt < REATTACH_AFTER_MS) {
      const failure = error ?? new VpnError('ERR_PEER_GONE', 'the data connection was lost again at once');
      this.#control.fail(failure);
      this.#end({ error: failure });
      return;
    }
    this.#reattachedAt = now;
    this.#options.log.info('the data connection was lost; dialling another', { code: error?.code });
    this.#attach().catch((cause: unknown) => {
      const failure = toVpnError(cause);
      this.#control.fail(failure);
      this.#end({ error: failure });
    });
  }

  #receive(connection: ServerConnection, type: number, payload: Uint8Array): void {
    switch (type) {
      case FrameType.ping:
        connection.channel.sendControl(encodeFrame(FrameType.pong, payload));
        break;
      case FrameType.pong:
        this.#liveness.pong(payload, this.#options.now());
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
        this.#reconfigure(payload);
        break;
      case FrameType.close: {
        const { reason } = decodeMessage('close', payload);
        connection.channel.close();
        if (connection === this.#control) this.#end({ reason });
        break;
      }
    }
  }

  #reconfigure(payload: Uint8Array): void {
    const { accepted, refused } = checkConfig(decodeMessage('config', payload), this.#limits);
    this.#options.openLink(accepted, this.accepted).then(
      () => {
        this.#config = accepted;
        this.#refused = refused;
      },
      (cause: unknown) => {
        // Addresses or routes may be missing now: a tunnel in that state must not look like one that works.
        const error = toVpnError(cause);
        this.#options.log.error('the pushed configuration could not be applied; connecting anew', { error });
        this.#control.fail(error);
        this.#end({
          error: new VpnError('ERR_PEER_GONE', `a pushed configuration failed: ${error.message}`, { cause }),
        });
      },
    );
  }

  #handleTick(): void {
    const now = this.#options.now();
    if (this.#control.heard || this.#data?.heard === true) {
      this.#control.heard = false;
      if (this.#data !== undefined) this.#data.heard = false;
      this.#liveness.received(now);
    }
    const due = this.#liveness.handleTimeout(now);
    if (due === 'ping') {
      this.channel.sendControl(encodeFrame(FrameType.ping, this.#liveness.pingPayload(now)));
    } else if (due === 'dead') {
      const error = new VpnError('ERR_PEER_GONE', 'the server has not answered for too long');
      this.#control.fail(error);
      this.#end({ error });
    }
  }

  #end(end: SessionEnd): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearInterval(this.#tick);
    clearTimeout(this.#checking);
    if (this.#link !== undefined) this.#link.channel = undefined;
    this.#data?.close('peer_disconnect');
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
