/**
 * One connection for streams to a gateway, bound to the client's session, and the streams on it.
 *
 * Hides the proof and the signs of life. A stream is a connection that the gateway has made to somewhere: TCP as bytes, UDP as
 * datagrams in capsules. It must not know how many connections there are, nor who asks for streams.
 *
 * @see docs/protocol.md §15, §18
 */

import type { TLSSocket } from 'node:tls';
import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import { nodePrimitives } from '../base/primitives.ts';
import { checkProxyAnswer, type ProxyBinding, proxyCredential } from '../protocol/proxy-binding.ts';
import type { MuxStream } from '../protocol/stream-mux.ts';
import { StreamConnection } from '../transport/stream-connection.ts';
import { StreamEnd } from '../transport/stream-end.ts';
import type { ProxyStream, StreamRefusal, StreamTarget } from '../transport/stream-request.ts';
import { withTimeout } from './connection.ts';

/** What programs on this machine may leave unread. */
const MAX_WINDOW_BYTES = 4 << 20;
const WINDOW_BUDGET_BYTES = 256 << 20;
const BIND_TIMEOUT_MS = 10_000;
const PING_MS = 15_000;
const PING_TIMEOUT_MS = 10_000;
/** How long a connection that has been ended waits for the gateway to end it, too. */
const END_MS = 10_000;

/** The gateway's no to one stream. */
export class StreamRefused extends Error {
  readonly why: StreamRefusal;

  constructor(why: StreamRefusal) {
    super(`the gateway refuses the connection: ${why}`);
    this.why = why;
  }
}

export class ProxyConnection {
  readonly #connection: StreamConnection;
  readonly #bound = Promise.withResolvers<string>();
  readonly #closed: (() => void)[] = [];
  /** Told of the next sign of life. */
  readonly #pongs: (() => void)[] = [];
  #ping: NodeJS.Timeout | undefined;
  #isRetired = false;

  /**
   * Takes a connection over and binds it.
   *
   * @throws {VpnError} ERR_ATTACH_PROOF, ERR_STAGE_TIMEOUT, ERR_PEER_GONE
   */
  static async open(socket: TLSSocket, binding: ProxyBinding): Promise<ProxyConnection> {
    const connection = new ProxyConnection(socket);
    try {
      const exporter = (label: string, context: Uint8Array) =>
        socket.exportKeyingMaterial(32, label, Buffer.from(context));
      connection.#connection.mux.bind(proxyCredential(nodePrimitives, binding, exporter));
      const answer = await withTimeout(
        connection.#bound.promise,
        BIND_TIMEOUT_MS,
        'the server did not take the proof of the session',
      );
      checkProxyAnswer(nodePrimitives, binding, answer, exporter);
      connection.#start();
      return connection;
    } catch (error) {
      connection.destroy();
      throw toVpnError(error);
    }
  }

  private constructor(socket: TLSSocket) {
    this.#bound.promise.catch(ignore);
    this.#connection = new StreamConnection(socket, {
      role: 'client',
      maxWindowBytes: MAX_WINDOW_BYTES,
      windowBudgetBytes: WINDOW_BUDGET_BYTES,
      onBound: (answer) => this.#bound.resolve(answer),
      onPong: () => {
        for (const told of this.#pongs.splice(0)) told();
      },
      // A turn later: what is said of the last stream is still to be said.
      onUnused: () => setImmediate(() => this.#endRetired()),
      closed: (error) => {
        clearInterval(this.#ping);
        this.#bound.reject(error ?? gone());
        for (const told of this.#closed.splice(0)) told();
      },
    });
  }

  /** Whether no stream can be opened on it any more. */
  get isClosed(): boolean {
    return this.#isRetired || this.#connection.isClosed;
  }

  /** Streams that are open. */
  get streams(): number {
    return this.#connection.mux.streams;
  }

  /** Called once, when it is gone. */
  onClosed(told: () => void): void {
    this.#closed.push(told);
  }

  /** @throws {StreamRefused}; {VpnError} ERR_PEER_GONE when the connection was lost before there was an answer */
  open(kind: 'tcp' | 'udp', { host, port }: StreamTarget): Promise<ProxyStream> {
    if (this.isClosed) return Promise.reject(gone());
    const { promise, resolve, reject } = Promise.withResolvers<ProxyStream>();
    let stream: MuxStream | undefined;
    try {
      stream = this.#connection.mux.open(
        { kind, host, port },
        {
          opened: () => stream !== undefined && resolve(new StreamEnd(stream)),
          refused: (why) => reject(new StreamRefused(why)),
          broken: () => reject(gone()),
          bytes: ignore,
          ended: ignore,
          room: ignore,
        },
      );
    } catch (error) {
      reject(isVpnError(error, 'ERR_MESSAGE_FIELD') ? new StreamRefused('http_request_denied') : error);
    }
    return promise;
  }

  /** Asks the gateway for a sign of life at once, and gives the connection up without one. */
  check(timeoutMs: number): void {
    if (this.#connection.isClosed) return;
    const timer = setTimeout(() => this.destroy(), timeoutMs);
    timer.unref();
    this.#pongs.push(() => clearTimeout(timer));
    this.#connection.mux.ping();
  }

  /** No new streams; ends when those that are open have. */
  retire(): void {
    this.#isRetired = true;
    this.#endRetired();
  }

  destroy(): void {
    clearInterval(this.#ping);
    this.#connection.destroy();
  }

  #start(): void {
    this.#ping = setInterval(() => this.check(PING_TIMEOUT_MS), PING_MS);
    this.#ping.unref();
  }

  #endRetired(): void {
    if (!this.#isRetired || this.streams > 0 || this.#connection.isClosed) return;
    clearInterval(this.#ping);
    // What streams have said last is still to go.
    this.#connection.end();
    setTimeout(() => this.destroy(), END_MS).unref();
  }
}

function gone(): VpnError {
  return new VpnError('ERR_PEER_GONE', 'the connection to the gateway was lost');
}

function ignore(): void {}
