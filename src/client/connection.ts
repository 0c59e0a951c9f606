/**
 * A connection to the gateway whose handlers change as it advances: greeting, dialogue, session or data.
 *
 * Hides the frame decoder and where packets go while nobody takes them. What a peer does wrong ends this connection and is
 * told to `onClosed`, once.
 */

import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import { encodeFrame, FrameDecoder, type FrameSink, FrameType, MAX_PACKET_PAYLOAD_BYTES } from '../protocol/frame.ts';
import type { Exporter } from '../protocol/keys.ts';
import { Liveness, type LivenessOptions } from '../protocol/liveness.ts';
import { type CloseReason, encodeMessage } from '../protocol/messages.ts';
import { closeReasonOf } from '../protocol/reasons.ts';
import { RekeySchedule } from '../protocol/rekey.ts';
import type { Channel, ChannelHandler } from '../transport/channel.ts';
import type { PacketReceiver } from '../transport/packet-link.ts';
import type { SlotConnection } from '../transport/slot.ts';

const EMPTY = new Uint8Array(0);

/** How long a connection is believed in, and how long it serves. */
export interface ServiceOptions {
  ping: LivenessOptions;
  rekeyMs: number;
}

export class ServerConnection implements FrameSink, ChannelHandler, SlotConnection {
  target: Uint8Array = EMPTY;
  targetOffset = 0;
  /** Whether any byte has come since the last tick. */
  heard = false;
  receiver: PacketReceiver | undefined;
  onGreeting: (line: Uint8Array) => void = () => {};
  onControl: (type: number, payload: Uint8Array) => void = () => {};
  onClosed: (error?: VpnError) => void = () => {};
  readonly channel: Channel;
  readonly exporter: Exporter;
  readonly #decoder = new FrameDecoder(this, 'server');
  #failure: VpnError | undefined;
  #liveness: Liveness | undefined;
  #schedule: RekeySchedule | undefined;
  #isRetired = false;
  /** Where packets go that come before the tunnel is ready. */
  #discarded: Uint8Array | undefined;

  constructor(channel: Channel) {
    this.channel = channel;
    this.exporter = (label, context) => channel.exporter(label, context);
  }

  start(): void {
    this.channel.start(this);
  }

  setPhase(phase: 'session' | 'data'): void {
    this.#decoder.setPhase(phase);
  }

  /** It has become part of a session. */
  serve({ ping, rekeyMs }: ServiceOptions, now: number): void {
    this.#liveness = new Liveness(ping, now);
    this.#schedule = new RekeySchedule(now, Math.random(), rekeyMs);
  }

  /** Asks the server for a sign of life when it is silent. @returns whether it has been silent for too long */
  examine(now: number): boolean {
    const liveness = this.#liveness;
    if (liveness === undefined) return false;
    if (this.heard) liveness.received(now);
    this.heard = false;
    const due = liveness.handleTimeout(now);
    if (due === 'ping') this.ask(now);
    return due === 'dead';
  }

  /** Asks the server for a sign of life at once. */
  ask(now: number): void {
    if (this.#liveness === undefined) return;
    this.channel.sendControl(encodeFrame(FrameType.ping, this.#liveness.pingPayload(now)));
  }

  pong(payload: Uint8Array, now: number): void {
    this.#liveness?.pong(payload, now);
  }

  get roundTripMs(): number | undefined {
    return this.#liveness?.roundTripMs;
  }

  /** Whether its keys have served long enough. */
  isWorn(now: number): boolean {
    const { sentBytes, receivedBytes } = this.channel.counters;
    return this.#schedule?.isDue(now, sentBytes + receivedBytes) === true;
  }

  hold(): void {
    this.channel.pause();
    this.#decoder.hold();
  }

  release(): void {
    this.channel.resume();
    try {
      this.#decoder.release();
    } catch (error) {
      this.#refuse(error);
    }
  }

  retire(): void {
    this.#isRetired = true;
    this.receiver?.release();
    this.receiver = undefined;
  }

  close(reason: CloseReason): void {
    this.channel.close(encodeMessage('close', { reason }));
  }

  /** Ends the connection because of an error, which `onClosed` then gets. */
  fail(error: VpnError): void {
    this.#failure ??= error;
    this.#decoder.stop();
    this.close(closeReasonOf(error));
  }

  bytes(chunk: Uint8Array): void {
    this.heard = true;
    try {
      this.#decoder.push(chunk);
    } catch (error) {
      this.#refuse(error);
    }
  }

  #refuse(error: unknown): void {
    this.fail(toVpnError(error));
    this.onClosed(toVpnError(error));
  }

  closed(error?: VpnError): void {
    this.receiver?.release();
    let failure = this.#failure ?? error;
    try {
      this.#decoder.end();
    } catch (truncated) {
      if (isVpnError(truncated)) failure ??= truncated;
    }
    this.onClosed(failure);
  }

  greeting(line: Uint8Array): void {
    this.#decoder.setPhase('login');
    this.onGreeting(line);
  }

  reserve(type: number, length: number, whole: boolean): void {
    if (this.#isRetired) throw new VpnError('ERR_FRAME_STATE', 'a data frame came after SWITCH');
    if (this.receiver === undefined) {
      this.#discarded ??= new Uint8Array(MAX_PACKET_PAYLOAD_BYTES + 16);
      this.target = this.#discarded;
      this.targetOffset = 0;
      return;
    }
    this.receiver.reserve(type, length, whole);
    this.target = this.receiver.target;
    this.targetOffset = this.receiver.targetOffset;
  }

  data(type: number, length: number): void {
    if (this.target === this.#discarded) return;
    this.receiver?.data(type, length);
  }

  control(type: number, payload: Uint8Array): void {
    this.onControl(type, payload);
  }

  unknown(): void {}

  idle(): void {
    this.receiver?.idle();
  }
}

/** @throws {VpnError} ERR_STAGE_TIMEOUT */
export async function withTimeout<T>(promise: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => reject(new VpnError('ERR_STAGE_TIMEOUT', `${what} within ${timeoutMs / 1000} s`)),
    timeoutMs,
  );
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
