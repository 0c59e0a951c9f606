/**
 * A TLS connection that carries the streams of `customvpn-streams/1`.
 *
 * Hides the socket: when it takes more, how it is read, and how it ends. One write is under way at a time, so that what waits is
 * ordered by the mux and not by the socket.
 *
 * @see docs/protocol.md §18
 */

import type { TLSSocket } from 'node:tls';
import { toVpnError, type VpnError } from '../base/errors.ts';
import type { MemoryLimit } from '../protocol/stream-memory.ts';
import { type MuxOptions, type MuxOutput, StreamMux } from '../protocol/stream-mux.ts';
import { readDirectly } from './direct-read.ts';
import type { BudgetedQueue, QueueBudget } from './queue-budget.ts';

export type StreamConnectionOptions = Omit<MuxOptions, 'output' | 'memory'> & {
  /** Whose memory its streams hold; default: nobody counts it. */
  queues?: QueueBudget | undefined;
  /** Called once, when it is gone; with what the other end did wrong, if that is why. */
  closed(error: VpnError | undefined): void;
};

export class StreamConnection implements MuxOutput {
  readonly mux: StreamMux;
  readonly #socket: TLSSocket;
  readonly #closed: (error: VpnError | undefined) => void;
  readonly #written: () => void;
  #isBusy = false;
  #isClosed = false;
  #error: VpnError | undefined;
  #isEnding = false;

  /** Takes over a socket whose handshake is complete. */
  constructor(socket: TLSSocket, options: StreamConnectionOptions) {
    const { closed, queues, ...rest } = options;
    this.#socket = socket;
    this.#closed = closed;
    this.mux = new StreamMux({
      ...rest,
      output: this,
      ...(queues === undefined ? {} : { memory: new Share(queues, this) }),
    });
    this.#written = () => {
      this.#isBusy = false;
      this.wake();
    };
    const take = (bytes: Uint8Array): void => {
      if (this.#isClosed) return;
      try {
        this.mux.receive(bytes);
      } catch (error) {
        this.destroy(toVpnError(error));
      }
    };
    socket.setTimeout(0);
    socket.on('error', () => {});
    socket.once('end', () => this.destroy());
    socket.once('close', () => this.destroy());
    readDirectly(socket, take);
    socket.on('data', take);
  }

  get isIdle(): boolean {
    return !this.#isBusy;
  }

  /** No stream can be opened on it any more. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  write(bytes: Uint8Array): void {
    this.#isBusy = true;
    this.#socket.write(viewOf(bytes), this.#written);
  }

  wake(): void {
    if (this.#isBusy || this.#isClosed) return;
    this.#isBusy = true;
    const bytes = this.mux.take();
    if (bytes !== undefined) {
      this.#socket.write(viewOf(bytes), this.#written);
      return;
    }
    this.#isBusy = false;
    if (this.#isEnding) this.#socket.end();
  }

  /** Ends it when what was said on it has gone. */
  end(): void {
    this.#isEnding = true;
    this.wake();
  }

  /** Cuts it, and every stream. Idempotent. */
  destroy(error?: VpnError): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#error = error;
    this.#socket.destroy();
    this.mux.close();
    this.#closed(this.#error);
  }
}

/** What one connection's streams hold is granted in such steps, and what is not used is given back so much later. */
const STEP_BYTES = 65_536;
const UNUSED_MS = 1000;

/** One connection's part of the memory that all queues of the process share. */
class Share implements MemoryLimit, BudgetedQueue {
  /** Granted. */
  heldBytes = 0;
  /** Used. */
  queuedBytes = 0;
  readonly #queues: QueueBudget;
  readonly #connection: StreamConnection;
  #giveBack: NodeJS.Timeout | undefined;

  constructor(queues: QueueBudget, connection: StreamConnection) {
    this.#queues = queues;
    this.#connection = connection;
  }

  get isTight(): boolean {
    return this.#queues.isTight;
  }

  hold(bytes: number): boolean {
    if (bytes > this.heldBytes) {
      const granted = inSteps(bytes);
      if (!this.#queues.grant(this, granted)) return false;
      this.heldBytes = granted;
    }
    this.queuedBytes = bytes;
    this.#giveBack ??= setTimeout(() => {
      this.#giveBack = undefined;
      const used = inSteps(this.queuedBytes);
      if (used < this.heldBytes) this.#queues.grant(this, used);
      this.heldBytes = used;
      if (used > 0) this.hold(this.queuedBytes);
    }, UNUSED_MS).unref();
    return true;
  }

  give(): void {
    const { memory } = this.#connection.mux;
    if (this.queuedBytes * 2 > this.heldBytes) memory.shed();
    this.queuedBytes = memory.heldBytes;
    this.heldBytes = inSteps(this.queuedBytes);
  }
}

function inSteps(bytes: number): number {
  return Math.ceil(bytes / STEP_BYTES) * STEP_BYTES;
}

function viewOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}
