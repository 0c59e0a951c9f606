/**
 * A session as its owner worker holds it: who it is, its connections, its packets, whether its client still lives.
 *
 * Hides which connection carries what. Packets go over the attached data connections, or over the control connection when
 * the client sends its own there. A session that loses its control connection is kept for a while, for a client that can
 * resume it: what comes for it is dropped. The loss of a data connection ends nothing, and each connection can be changed
 * for another under the traffic (`transport/slot`). Time comes from the worker's tick, never from a timer of its own.
 */

import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { DropReason } from '../../ip/drop-reason.ts';
import { Feature } from '../../protocol/features.ts';
import { encodeFrame, FrameType } from '../../protocol/frame.ts';
import { Liveness, type LivenessOptions, SessionLimits } from '../../protocol/liveness.ts';
import { type CloseReason, type ConfigMessage, decodeMessage, encodeMessage } from '../../protocol/messages.ts';
import { CONTROL_SLOT } from '../../protocol/rekey.ts';
import type { TunnelLink } from '../../transport/packet-link.ts';
import { type RekeyCounters, Slot } from '../../transport/slot.ts';
import type { SessionGrant } from '../ipc/ports.ts';
import type { Connection } from './connection.ts';

export interface SessionOptions {
  granted: SessionGrant;
  superPackets: boolean;
  /** What both ends have agreed on. */
  features: readonly string[];
  /** Packets go over the control connection, as the configuration says or because the client cannot attach. */
  inline: boolean;
  link: TunnelLink;
  /** Undefined for a session that waits for its client from the start. */
  control: Connection | undefined;
  /** How it was in an earlier life of the gateway. */
  former?: Former | undefined;
  /** Drops by reason, shared by the worker. */
  drops: Float64Array;
  /** Shared by the worker, too. */
  counters: RekeyCounters;
  /** In how many seconds the gateway stops serving; undefined: not soon. */
  drainSeconds: () => number | undefined;
  clock: Clock;
  log: Logger;
  /** The session has lost its control connection and waits for its client. */
  detached(session: Session): void;
  /** Takes the session out of the worker's tables and tells auth; `isKept`: it stays on record. Called once. */
  ended(session: Session, reason: CloseReason, isKept: boolean): void;
}

const NOTHING = new Uint8Array(0);

/** What is known of a session that was opened by an earlier life of the gateway. */
export interface Former {
  readonly remote: string;
  /** Milliseconds since the Unix epoch. */
  readonly openedAt: number;
  /** Milliseconds since it lost its control connection. */
  readonly detachedMs: number;
}

export class Session {
  readonly granted: SessionGrant;
  readonly superPackets: boolean;
  readonly link: TunnelLink;
  readonly since: number;
  readonly features: readonly string[];
  readonly #control: Slot<Connection>;
  /** By number. */
  readonly #data = new Map<number, Slot<Connection>>();
  readonly #counters: RekeyCounters;
  /** Whether both ends know how to change a connection under the traffic. */
  readonly #canChange: boolean;
  readonly #drainSeconds: () => number | undefined;
  readonly #livenessOptions: LivenessOptions;
  #remote: string;
  readonly #drops: Float64Array;
  readonly #log: Logger;
  readonly #detached: (session: Session) => void;
  readonly #ended: (session: Session, reason: CloseReason, isKept: boolean) => void;
  readonly #limits: SessionLimits;
  readonly #clock: Clock;
  /** Packets go over the control connection. */
  #isInline: boolean;
  readonly #graceMs: number;
  /** When it lost its control connection, by the monotonic clock. */
  #detachedAt: number | undefined;
  #config: ConfigMessage;
  /** What the machine slept since the session began: its limits go on meanwhile. */
  #sleptMs = 0;
  #carriedPackets = 0;
  #echoes = 0;
  #unknownFrames = 0;
  #isStarted = false;
  #isClosed = false;

  constructor(options: SessionOptions) {
    const { granted, clock } = options;
    const now = clock.now();
    this.#clock = clock;
    this.#isInline = options.inline;
    this.granted = granted;
    this.superPackets = options.superPackets;
    this.link = options.link;
    const { former, features } = options;
    this.since = former?.openedAt ?? clock.wallNow();
    this.features = features;
    this.#counters = options.counters;
    this.#canChange = features.includes(Feature.rekey);
    this.#drainSeconds = options.drainSeconds;
    this.#control = new Slot<Connection>({
      number: CONTROL_SLOT,
      counters: options.counters,
      onSending: (connection) => {
        if (this.#isInline && this.#isStarted) this.link.spread.set(0, connection?.channel);
      },
    });
    const { ping } = granted.config;
    this.#livenessOptions = { intervalMs: ping.intervalSeconds * 1000, deadMs: ping.deadSeconds * 1000 };
    if (options.control !== undefined) this.#join(options.control, this.#control, 0);
    this.#remote = options.control?.remote ?? former?.remote ?? '';
    this.#detachedAt = former === undefined ? undefined : now - former.detachedMs;
    this.#graceMs = features.includes(Feature.resume) ? granted.grant.graceSeconds * 1000 : 0;
    this.#detached = options.detached;
    this.#drops = options.drops;
    this.#config = granted.config;
    this.#ended = options.ended;
    this.#log = options.log.child({ session: this.shortId, user: granted.user });
    const { absoluteSeconds, idleSeconds } = granted.grant;
    const elapsed = former === undefined ? 0 : clock.wallNow() - former.openedAt;
    const absoluteMs = absoluteSeconds === 0 ? 0 : Math.max(1, absoluteSeconds * 1000 - elapsed);
    this.#limits = new SessionLimits({ absoluteMs, idleMs: idleSeconds * 1000 }, now);
  }

  /** Enough of the id to name the session in logs and to an operator. */
  get shortId(): string {
    return this.granted.key.slice(0, 8);
  }

  get user(): string {
    return this.granted.user;
  }

  get remote(): string {
    return this.#remote;
  }

  /** Whether it has no control connection and waits for its client. */
  get isDetached(): boolean {
    return this.#detachedAt !== undefined;
  }

  get dataChannels(): number {
    return [...this.#data.values()].filter((slot) => slot.reading !== undefined).length;
  }

  get roundTripMs(): number | undefined {
    return this.#control.reading?.liveness?.roundTripMs;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Whether the client has been told of it. */
  get isStarted(): boolean {
    return this.#isStarted;
  }

  /** Sends ACCEPT, unless the client has been answered already, and CONFIG after it; packets may follow. */
  start(accept: Uint8Array = NOTHING): void {
    this.#isStarted = true;
    // In one write: one TLS record, one segment.
    this.#control.sending?.channel.sendControl(Buffer.concat([accept, encodeMessage('config', this.#config)]));
    const drainSeconds = this.#drainSeconds();
    if (drainSeconds !== undefined) this.sendDrain(drainSeconds);
    if (this.#isInline) this.link.spread.set(0, this.#control.sending?.channel);
  }

  /**
   * Its client has resumed it on another connection. A client that changes its control connection keeps the others; else all
   * that it had are superseded.
   *
   * @returns whether it was such a change
   */
  resume(connection: Connection, epoch: number, isRekey: boolean): boolean {
    const isChange = isRekey && this.#canChange && this.#control.sending !== undefined;
    if (!isChange) {
      this.#closeData('replaced');
      this.#control.close('replaced');
    }
    this.#join(connection, this.#control, epoch);
    this.#remote = connection.remote;
    this.#detachedAt = undefined;
    this.start();
    return isChange;
  }

  /** Pushes the present configuration, or a new one. */
  sendConfig(config: ConfigMessage = this.#config): void {
    this.#config = config;
    if (!this.#isStarted) return;
    this.#control.sending?.channel.sendControl(encodeMessage('config', config));
  }

  /** Asks the client to move to another server, if it knows how: this one stops serving in so many seconds. */
  sendDrain(seconds: number): void {
    if (!this.#isStarted || !this.features.includes(Feature.drain)) return;
    this.#control.sending?.channel.sendControl(encodeMessage('drain', { seconds }));
  }

  /** A data connection has proven that it belongs here. */
  attach(connection: Connection, number: number, generation: number): void {
    let slot = this.#data.get(number);
    if (slot === undefined) {
      const { spread } = this.link;
      const onSending = (sending: Connection | undefined): void => spread.set(number, sending?.channel);
      slot = new Slot<Connection>({ number, counters: this.#counters, onSending });
      this.#data.set(number, slot);
    }
    // The client sends on data connections from now on.
    if (this.#isInline && number !== 0) this.link.spread.set(0, undefined);
    this.#isInline = false;
    this.#join(connection, slot, generation);
  }

  /** A data frame has come; a client that sends on the control connection gets its packets there, too. */
  dataArrived(connection: Connection): void {
    if (this.link.spread.count > 0 || connection !== this.#control.reading) return;
    this.#isInline = true;
    this.link.spread.set(0, this.#control.sending?.channel);
  }

  countUnknown(): void {
    this.#unknownFrames += 1;
  }

  /** @throws {VpnError} ERR_FRAME_STATE, ERR_MESSAGE_SYNTAX, ERR_MESSAGE_FIELD */
  control(connection: Connection, type: number, payload: Uint8Array): void {
    // Before ACCEPT a client waits.
    const expected = this.#isStarted || type === FrameType.close ? type : undefined;
    const slot = this.#slotOf(connection);
    const sending = slot?.sending ?? connection;
    switch (expected) {
      case FrameType.ping:
        // Where SWITCH was our last word, the other connection shows that we live.
        if (sending === connection) connection.channel.sendControl(encodeFrame(FrameType.pong, payload));
        break;
      case FrameType.pong:
        connection.liveness?.pong(payload, this.#clock.now());
        break;
      case FrameType.echo: {
        this.#echoes += 1;
        const frame = encodeFrame(FrameType.echo, payload);
        if (!sending.channel.sendData(frame, 0, frame.length)) {
          this.#drops[DropReason.queueFull] = (this.#drops[DropReason.queueFull] ?? 0) + 1;
        }
        break;
      }
      case FrameType.close: {
        const { reason } = decodeMessage('close', payload);
        connection.channel.close();
        // One that has been changed is closed when nothing more can come.
        if (connection === this.#control.reading && !(this.#control.isChanging && reason === 'replaced')) {
          this.#log.info('client closed the session', { reason });
          // A client that gives up its connection for want of an answer comes back.
          if (reason === 'dead_peer' || reason === 'shutdown') this.#lose('peer_disconnect');
          else this.#end('peer_disconnect');
        }
        break;
      }
      case FrameType.switch:
        if (slot !== undefined && this.#canChange) {
          slot.switched(connection, decodeMessage('switch', payload));
          break;
        }
        throw misplaced(type);
      default:
        throw misplaced(type);
    }
  }

  /** Called by the worker about once a second. @param sleptMs what the machine slept since the last time */
  handleTick(now: number, sleptMs: number): void {
    this.#sleptMs += sleptMs;
    if (!this.#isStarted && !this.isDetached) return;
    this.link.handleTick();
    const { sentPackets, receivedPackets } = this.link.counters;
    const carried = sentPackets + receivedPackets + this.#echoes;
    if (carried !== this.#carriedPackets) {
      this.#carriedPackets = carried;
      this.#limits.frame(FrameType.packet, now + this.#sleptMs);
    }
    const limit = this.#limits.handleTimeout(now + this.#sleptMs);
    if (limit !== undefined) {
      this.close(limit);
      return;
    }
    if (this.#detachedAt !== undefined) {
      if (now + this.#sleptMs >= this.#detachedAt + this.#graceMs) this.close('dead_peer');
      return;
    }
    this.#handleSlotTick(this.#control, now);
    for (const slot of this.#data.values()) this.#handleSlotTick(slot, now);
  }

  #handleSlotTick(slot: Slot<Connection>, now: number): void {
    slot.handleTimeout(now);
    const { reading } = slot;
    if (reading?.liveness !== undefined) this.#examine(reading, reading.liveness, now);
  }

  /** Asks a silent connection, and gives up one that does not answer. */
  #examine(connection: Connection, liveness: Liveness, now: number): void {
    if (connection.heard) liveness.received(now);
    connection.heard = false;
    const due = liveness.handleTimeout(now);
    if (due === 'ping') connection.channel.sendControl(encodeFrame(FrameType.ping, liveness.pingPayload(now)));
    if (due !== 'dead') return;
    connection.close('dead_peer');
    if (connection === this.#control.reading) this.#lose('dead_peer');
  }

  /** Ends the session and its connections. Idempotent. */
  close(reason: CloseReason): void {
    if (this.#isClosed) return;
    this.#log.info('session closed', { reason });
    this.#control.close(reason);
    this.#end(reason);
  }

  /** Ends its connections; the session itself stays on record when its client can resume it. */
  suspend(reason: CloseReason): void {
    if (this.#isClosed) return;
    this.#log.info('session suspended', { reason });
    const isKept = this.isDetached || (this.#isStarted && this.#graceMs > 0);
    this.#control.close(reason);
    this.#end(reason, isKept);
  }

  /** For the connections; `isOurs`: this end wanted it. */
  connectionClosed(connection: Connection, error: VpnError | undefined, isOurs: boolean): void {
    const slot = this.#slotOf(connection);
    if (slot === undefined || !slot.closed(connection)) return;
    if (slot !== this.#control) {
      if (slot.reading === undefined && slot.sending === undefined) this.#log.debug('session lost a data connection');
      return;
    }
    // One that can only be read is of no use: its client resumes.
    if (this.#isClosed || this.#control.sending !== undefined) return;
    this.#log.info('session lost its connection', { code: error?.code });
    if (isOurs) this.#end('peer_disconnect');
    else this.#lose('peer_disconnect');
  }

  #slotOf(connection: Connection): Slot<Connection> | undefined {
    if (this.#control.has(connection)) return this.#control;
    for (const slot of this.#data.values()) if (slot.has(connection)) return slot;
    return undefined;
  }

  #join(connection: Connection, slot: Slot<Connection>, generation: number): void {
    const now = this.#clock.now();
    connection.liveness = new Liveness(this.#livenessOptions, now);
    slot.attach(connection, generation, this.#canChange, now);
  }

  #closeData(reason: CloseReason): void {
    for (const slot of this.#data.values()) slot.close(reason);
    this.#data.clear();
  }

  /** The control connection is gone. Without a client that can resume, so is the session. */
  #lose(reason: CloseReason): void {
    if (!this.#isStarted || this.#graceMs === 0) {
      this.#end(reason);
      return;
    }
    this.#detachedAt = this.#clock.now() + this.#sleptMs;
    this.#control.close(reason);
    this.#closeData(reason);
    this.#log.info('session waits for its client', { graceSeconds: this.#graceMs / 1000 });
    this.#detached(this);
  }

  #end(reason: CloseReason, isKept = false): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#control.close(reason);
    this.#closeData(reason);
    this.#ended(this, reason, isKept);
  }
}

function misplaced(type: number): VpnError {
  return new VpnError('ERR_FRAME_STATE', `frame type ${type} has no place in a session`, { details: { type } });
}
