/**
 * A connection to the gateway whose handlers change as it advances: greeting, dialogue, session or data.
 *
 * Hides the frame decoder and where packets go while nobody takes them. What a peer does wrong ends this connection and is
 * told to `onClosed`, once.
 */

import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import { FrameDecoder, type FrameSink, MAX_PACKET_PAYLOAD_BYTES } from '../protocol/frame.ts';
import type { Exporter } from '../protocol/keys.ts';
import { type CloseReason, encodeMessage } from '../protocol/messages.ts';
import { closeReasonOf } from '../protocol/reasons.ts';
import type { Channel, ChannelHandler } from '../transport/channel.ts';
import type { PacketReceiver } from '../transport/packet-link.ts';

const EMPTY = new Uint8Array(0);

export class ServerConnection implements FrameSink, ChannelHandler {
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
      this.fail(toVpnError(error));
      this.onClosed(toVpnError(error));
    }
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
