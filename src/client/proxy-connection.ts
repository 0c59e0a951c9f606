/**
 * One HTTP/2 connection to a gateway, bound to the client's session, and the streams on it.
 *
 * Hides HTTP/2. A stream is a connection that the gateway has made to somewhere: TCP as bytes, UDP as datagrams in capsules.
 * It must not know how many connections there are, nor who asks for streams.
 *
 * @see docs/protocol.md §15
 */

import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants as http2 } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { toVpnError, VpnError } from '../base/errors.ts';
import { nodePrimitives } from '../base/primitives.ts';
import { checkProxyAnswer, type ProxyBinding, proxyCredential } from '../protocol/proxy-binding.ts';
import type { ProxyStream, StreamRefusal, StreamTarget } from '../transport/stream-request.ts';
import { STREAM_REFUSALS } from '../transport/stream-request.ts';
import { withTimeout } from './connection.ts';

const STREAM_WINDOW_BYTES = 4 << 20;
const CONNECTION_WINDOW_BYTES = 16 << 20;
const FRAME_BYTES = 65_536;
/** In MB. With thousands of streams Node's default of 10 refuses some. */
const SESSION_MEMORY_MB = 512;
const BIND_TIMEOUT_MS = 10_000;
const PING_MS = 15_000;
const PING_TIMEOUT_MS = 10_000;

/** The gateway's no to one stream. */
export class StreamRefused extends Error {
  readonly why: StreamRefusal;

  constructor(why: StreamRefusal) {
    super(`the gateway refuses the connection: ${why}`);
    this.why = why;
  }
}

export class ProxyConnection {
  readonly #session: ClientHttp2Session;
  readonly #authority: string;
  #streams = 0;
  #ping: NodeJS.Timeout | undefined;

  /**
   * Takes a connection over and binds it.
   *
   * @throws {VpnError} ERR_ATTACH_PROOF, ERR_STAGE_TIMEOUT, ERR_PEER_GONE
   */
  static async open(socket: TLSSocket, binding: ProxyBinding, authority: string): Promise<ProxyConnection> {
    const connection = new ProxyConnection(socket, authority);
    try {
      await withTimeout(
        connection.#bind(socket, binding),
        BIND_TIMEOUT_MS,
        'the server did not take the proof of the session',
      );
      connection.#start();
      return connection;
    } catch (error) {
      connection.destroy();
      throw toVpnError(error);
    }
  }

  private constructor(socket: TLSSocket, authority: string) {
    this.#authority = authority;
    this.#session = connect(`https://${authority}`, {
      createConnection: () => socket,
      settings: { enablePush: false, initialWindowSize: STREAM_WINDOW_BYTES, maxFrameSize: FRAME_BYTES },
      maxSessionMemory: SESSION_MEMORY_MB,
    });
    this.#session.on('error', ignore);
  }

  /** Whether no stream can be opened on it any more. */
  get isClosed(): boolean {
    return this.#session.closed || this.#session.destroyed;
  }

  /** Streams that are open. */
  get streams(): number {
    return this.#streams;
  }

  /** Called once, when it is gone. */
  onClosed(told: () => void): void {
    this.#session.once('close', told);
  }

  /** @throws {StreamRefused}; {VpnError} ERR_PEER_GONE when the connection was lost before there was an answer */
  async open(kind: 'tcp' | 'udp', { host, port }: StreamTarget): Promise<ProxyStream> {
    const name = host.includes(':') ? `[${host}]` : host;
    const stream = this.#request(
      kind === 'tcp'
        ? { ':method': 'CONNECT', ':authority': `${name}:${port}` }
        : {
            ':method': 'CONNECT',
            ':protocol': 'connect-udp',
            ':scheme': 'https',
            ':authority': this.#authority,
            ':path': `/.well-known/masque/udp/${encodeURIComponent(host)}/${port}/`,
            'capsule-protocol': '?1',
          },
    );
    this.#streams += 1;
    stream.once('close', () => {
      this.#streams -= 1;
    });
    const headers = await this.#answer(stream);
    if (headers[':status'] === 200) {
      const session = this.#session;
      return {
        duplex: stream,
        reset: () => stream.close(http2.NGHTTP2_CONNECT_ERROR),
        get isBroken() {
          return stream.aborted || (stream.rstCode ?? 0) !== http2.NGHTTP2_NO_ERROR || session.destroyed;
        },
      };
    }
    stream.close();
    stream.resume();
    throw new StreamRefused(refusalOf(headers[':status'], headers['proxy-status']));
  }

  /** Asks the gateway for a sign of life at once, and gives the connection up without one. */
  check(timeoutMs: number): void {
    if (this.isClosed) return;
    const timer = setTimeout(() => this.destroy(), timeoutMs);
    timer.unref();
    this.#session.ping(() => clearTimeout(timer));
  }

  /** No new streams; ends when those that are open have. */
  retire(): void {
    this.#session.close();
  }

  destroy(): void {
    clearInterval(this.#ping);
    this.#session.destroy();
  }

  async #bind(socket: TLSSocket, binding: ProxyBinding): Promise<void> {
    const exporter = (label: string, context: Uint8Array) =>
      socket.exportKeyingMaterial(32, label, Buffer.from(context));
    const stream = this.#request({
      ':method': 'OPTIONS',
      ':scheme': 'https',
      ':authority': this.#authority,
      ':path': '*',
      'proxy-authorization': proxyCredential(nodePrimitives, binding, exporter),
    });
    stream.end();
    const headers = await this.#answer(stream);
    stream.resume();
    const info = headers['proxy-authentication-info'];
    checkProxyAnswer(nodePrimitives, binding, typeof info === 'string' ? info : undefined, exporter);
  }

  #start(): void {
    const session = this.#session;
    session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
    this.#ping = setInterval(() => this.check(PING_TIMEOUT_MS), PING_MS);
    this.#ping.unref();
    session.once('close', () => clearInterval(this.#ping));
  }

  #request(headers: Record<string, string>): ClientHttp2Stream {
    if (this.isClosed) throw gone();
    const stream = this.#session.request(headers, { endStream: false });
    stream.on('error', ignore);
    return stream;
  }

  async #answer(stream: ClientHttp2Stream): Promise<Record<string, unknown>> {
    const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>();
    stream.once('response', (headers) => resolve({ ...headers }));
    stream.once('close', () => reject(gone()));
    return await promise;
  }
}

/** What the gateway means by an answer that is not 200. */
function refusalOf(status: unknown, proxyStatus: unknown): StreamRefusal {
  const named = typeof proxyStatus === 'string' ? /;\s*error=([a-z_]+)/.exec(proxyStatus)?.[1] : undefined;
  if (named !== undefined && Object.hasOwn(STREAM_REFUSALS, named)) return named as StreamRefusal;
  return status === 403 || status === 407 ? 'http_request_denied' : 'proxy_internal_error';
}

function gone(): VpnError {
  return new VpnError('ERR_PEER_GONE', 'the connection to the gateway was lost');
}

function ignore(): void {}
