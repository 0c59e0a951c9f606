/**
 * Whether the peer is alive, and whether a session may go on.
 *
 * Hides when to ask, when to give up and what counts as life or as use. It must not read a clock or keep a timer: every
 * method takes `now` in monotonic milliseconds, and `nextTimeout` says when to call `handleTimeout`.
 *
 * @see docs/protocol.md §11
 */

import { FrameType } from './frame.ts';
import type { CloseReason } from './messages.ts';

export interface LivenessOptions {
  /** Silence after which a PING is sent, and the time between PINGs while silence goes on. */
  intervalMs: number;
  /** Silence after which the peer is dead. Longer than `intervalMs`. */
  deadMs: number;
}

/** Dead-peer detection for one connection: any byte received is life. */
export class Liveness {
  readonly #intervalMs: number;
  readonly #deadMs: number;
  #lastReceived: number;
  #lastPing: number;
  /** When the first PING of this silence was sent; not later than `#lastReceived`: none was. */
  #askedAt: number;
  #sequence = 0;
  #pingSentAt: number | undefined;
  #roundTripMs: number | undefined;

  constructor(options: LivenessOptions, now: number) {
    this.#intervalMs = options.intervalMs;
    this.#deadMs = options.deadMs;
    this.#lastReceived = now;
    this.#lastPing = now;
    this.#askedAt = now;
  }

  /** Bytes came. On the path of every chunk. */
  received(now: number): void {
    this.#lastReceived = now;
  }

  /** Milliseconds between the last answered PING and its PONG. */
  get roundTripMs(): number | undefined {
    return this.#roundTripMs;
  }

  /**
   * What is due: `ping`, send a PING with `pingPayload(now)`; `dead`, end the connection with `dead_peer`.
   *
   * Nobody is dead who has not been asked: after a sleep of this machine there is much silence but no PING in it.
   */
  handleTimeout(now: number): 'ping' | 'dead' | undefined {
    if (this.#askedAt > this.#lastReceived && now >= this.#deadAt()) return 'dead';
    return now >= this.#pingAt() ? 'ping' : undefined;
  }

  /** The payload for the next PING; it counts as sent now. */
  pingPayload(now: number): Uint8Array {
    this.#sequence = (this.#sequence + 1) >>> 0;
    if (this.#askedAt <= this.#lastReceived) this.#askedAt = now;
    this.#lastPing = now;
    this.#pingSentAt = now;
    const payload = new Uint8Array(4);
    new DataView(payload.buffer).setUint32(0, this.#sequence);
    return payload;
  }

  /** A PONG came: the round trip in milliseconds if it answers the last PING, else undefined. */
  pong(payload: Uint8Array, now: number): number | undefined {
    if (this.#pingSentAt === undefined || payload.length !== 4) return undefined;
    const sequence = new DataView(payload.buffer, payload.byteOffset, 4).getUint32(0);
    if (sequence !== this.#sequence) return undefined;
    this.#roundTripMs = now - this.#pingSentAt;
    this.#pingSentAt = undefined;
    return this.#roundTripMs;
  }

  /** When `handleTimeout` may next have something to say. */
  nextTimeout(): number {
    return this.#askedAt > this.#lastReceived ? Math.min(this.#pingAt(), this.#deadAt()) : this.#pingAt();
  }

  #pingAt(): number {
    return Math.max(this.#lastReceived, this.#lastPing) + this.#intervalMs;
  }

  #deadAt(): number {
    return Math.max(this.#lastReceived + this.#deadMs, this.#askedAt + this.#deadMs - this.#intervalMs);
  }
}

export interface SessionLimitsOptions {
  /** Milliseconds without a data frame; 0: no limit. */
  idleMs: number;
  /** Milliseconds from the start; 0: no limit. */
  absoluteMs: number;
}

/** The server's limits on a session. Neither a peer's PING nor its CLOSE prolongs them. */
export class SessionLimits {
  readonly #idleMs: number;
  readonly #endsAt: number;
  #lastUse: number;

  constructor(options: SessionLimitsOptions, now: number) {
    this.#idleMs = options.idleMs > 0 ? options.idleMs : Number.POSITIVE_INFINITY;
    this.#endsAt = options.absoluteMs > 0 ? now + options.absoluteMs : Number.POSITIVE_INFINITY;
    this.#lastUse = now;
  }

  /** A frame came or went. Only PACKET, SUPER and ECHO are use. */
  frame(type: number, now: number): void {
    const isUse =
      type === FrameType.packet || type === FrameType.super || type === FrameType.ethernet || type === FrameType.echo;
    if (isUse) this.#lastUse = now;
  }

  /** The reason to close the session, if it is time. */
  handleTimeout(now: number): Extract<CloseReason, 'idle_timeout' | 'session_timeout'> | undefined {
    if (now >= this.#endsAt) return 'session_timeout';
    if (now >= this.#lastUse + this.#idleMs) return 'idle_timeout';
    return undefined;
  }

  /** When `handleTimeout` may next have something to say; infinity without limits. */
  nextTimeout(): number {
    return Math.min(this.#endsAt, this.#lastUse + this.#idleMs);
  }
}
