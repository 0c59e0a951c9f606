/**
 * The rates that one stream keeps, in either direction.
 *
 * Hides the waiting: bytes that are not covered yet are kept and handed on in batches as the buckets fill (`pacer`), so that
 * streams and packets of a user share one rate in turns. Whoever reads for a flow stops reading while it holds something; so a
 * flow keeps what one read has brought, and back pressure does the rest. Without a rate nothing is kept or copied.
 * Must not know what the bytes are.
 */

import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { PaceGate, type Pacer } from './pacer.ts';

/** Of datagrams, as of packets, no more waits than takes this long at the rate. */
const MAX_DELAY_MS = 100;
/** And always room for some. */
const LEAST_ROOM_BYTES = 16 * 1024;

/** Where a flow goes. */
export interface FlowTarget {
  /** Takes what may go, a part of what was pushed or a copy of it. */
  forward(bytes: Uint8Array): void;
  /** Nothing is held any more. */
  drained(): void;
}

const NO_TARGET: FlowTarget = { forward: () => {}, drained: () => {} };

/** One direction of a stream. */
export class PacedFlow {
  readonly #gate = new PaceGate(() => this.#pump());
  readonly #held: Uint8Array[] = [];
  #isPumping = false;
  /** Whether what is pushed goes as it is: datagrams. */
  isWhole = false;
  target = NO_TARGET;
  heldBytes = 0;

  /** Undefined: everything may go. What waits goes by the new one, too. */
  set pacer(pacer: Pacer | undefined) {
    this.#gate.pacer = pacer;
  }

  /** Whether bytes have to go by `push`; else they need not wait for anything. */
  get isPaced(): boolean {
    return this.#gate.pacer !== undefined || this.isHolding;
  }

  get isHolding(): boolean {
    return this.#held.length > 0;
  }

  /** For datagrams: whether another may wait with those that do. */
  hasRoom(bytes: number): boolean {
    let room = Number.POSITIVE_INFINITY;
    for (const { rate } of this.#gate.pacer?.buckets ?? []) room = Math.min(room, rate * MAX_DELAY_MS);
    return this.heldBytes + bytes <= Math.max(LEAST_ROOM_BYTES, room);
  }

  /** Hands bytes on as far as they are covered, and the rest later. They stay as they are. */
  push(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#held.push(bytes);
    this.heldBytes += bytes.length;
    this.#pump();
  }

  /** The same of bytes that may be used again when this returns: what has to wait is copied. */
  pushBorrowed(bytes: Uint8Array): void {
    this.push(bytes);
    const last = this.#held.length - 1;
    const rest = this.#held[last];
    if (rest !== undefined) this.#held[last] = Buffer.from(rest);
  }

  /** Forgets what waits, and waits no more. */
  close(): void {
    this.#held.length = 0;
    this.heldBytes = 0;
    this.target = NO_TARGET;
    this.#gate.close();
  }

  #pump(): void {
    if (this.#isPumping || !this.isHolding) return;
    this.#isPumping = true;
    for (let bytes = this.#held[0]; bytes !== undefined && this.#gate.isOpen(); bytes = this.#held[0]) {
      const most = this.isWhole ? bytes.length : Math.floor(this.#gate.pacer?.quantum ?? bytes.length);
      const length = Math.min(bytes.length, Math.max(1, most));
      if (length === bytes.length) this.#held.shift();
      else this.#held[0] = bytes.subarray(length);
      this.heldBytes -= length;
      this.#gate.spent(length);
      this.target.forward(bytes.subarray(0, length));
    }
    this.#isPumping = false;
    if (!this.isHolding) this.target.drained();
  }
}

/** Both directions of a stream. */
export class StreamPace {
  /** To the client. */
  readonly down = new PacedFlow();
  /** From the client. */
  readonly up = new PacedFlow();

  close(): void {
    this.down.close();
    this.up.close();
  }
}

/** A connection to a server whose bytes keep the rates of a stream. It owns the socket. */
export class PacedSocket extends Duplex {
  readonly #socket: Socket;
  readonly #pace: StreamPace;
  #hasEnded = false;
  #isGone = false;
  #written: (() => void) | undefined;

  constructor(socket: Socket, pace: StreamPace) {
    super({ allowHalfOpen: true });
    this.#socket = socket;
    this.#pace = pace;
    const { down, up } = pace;
    down.target = { forward: (bytes) => void this.push(bytes), drained: () => this.#drained() };
    up.target = { forward: (bytes) => void socket.write(bytes), drained: () => this.#settle() };
    socket.on('data', (chunk: Uint8Array) => {
      if (down.isPaced) down.push(chunk);
      else if (this.push(chunk)) return;
      if (down.isHolding || this.readableLength >= this.readableHighWaterMark) socket.pause();
    });
    socket.once('end', () => {
      this.#hasEnded = true;
      this.#drained();
    });
    socket.on('drain', () => this.#settle());
    socket.on('error', (error) => this.destroy(error));
    socket.once('close', () => {
      this.#isGone = true;
      this.#drained();
    });
  }

  override _read(): void {
    if (!this.#pace.down.isHolding) this.#socket.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: () => void): void {
    this.#written = callback;
    const { up } = this.#pace;
    if (up.isPaced) up.push(chunk);
    else this.#socket.write(chunk);
    this.#settle();
  }

  override _final(callback: () => void): void {
    this.#socket.end(callback);
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#pace.close();
    this.#socket.destroy();
    callback(error);
  }

  /** Nothing from the server is held. */
  #drained(): void {
    if (this.#pace.down.isHolding) return;
    if (this.#hasEnded) this.push(null);
    else if (this.#isGone) this.destroy();
    else if (this.readableLength < this.readableHighWaterMark) this.#socket.resume();
    // Nobody reads what is left to be written.
    if (this.#isGone && !this.writableFinished) this.destroy();
  }

  /** Whether the next write may come. */
  #settle(): void {
    if (this.#pace.up.isHolding || this.#socket.writableNeedDrain) return;
    const written = this.#written;
    this.#written = undefined;
    written?.();
  }
}
