/**
 * What the port answers to everybody who does not speak `customvpn/1`: HTTP/1.1, and HTTP/2 where it is a proxy.
 *
 * Hides both versions of HTTP; clients of ours that come for streams it hands to `stream-door`. Whoever comes for a page gets the 404 that every path of a plain web server gives; whoever
 * wants a proxy becomes a `ProxyRequest`, which is somebody else's to answer. Until a client has proven who it is, its
 * connection has a deadline, small windows and few streams. It must not know who may use a proxy, nor what for.
 *
 * @see docs/protocol.md §15; RFC 9113 §8.5, RFC 9112 §3.2, RFC 8441, RFC 9298
 */

import {
  createServer as createHttpServer,
  type Server as HttpServer,
  type IncomingMessage,
  type ServerResponse,
} from 'node:http';
import {
  constants as http2,
  type IncomingHttpHeaders,
  performServerHandshake,
  type ServerHttp2Session,
  type ServerHttp2Stream,
  type ServerOptions,
} from 'node:http2';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import type { Endpoint } from './endpoint.ts';
import { forwardHttp } from './http-forward.ts';
import type { QueueBudget } from './queue-budget.ts';
import { StreamDoor } from './stream-door.ts';
import {
  type PlainRequest,
  type ProxyConnection,
  type ProxyRequest,
  type ProxyStream,
  parseTarget,
  STREAM_REFUSALS,
  type StreamRefusal,
  type StreamTarget,
} from './stream-request.ts';
import { HTTP2_ALPN, STREAMS_ALPN, TUNNEL_ALPN } from './tls.ts';
import { acceptUpgrade, upgradeOf } from './upgrade.ts';

/** Of a client that has proven who it is; docs/decisions/0020 says why. */
const STREAM_WINDOW_BYTES = 1 << 20;
const CONNECTION_WINDOW_BYTES = 16 << 20;
const FRAME_BYTES = 65_536;
/** Of everybody else. */
const STRANGER_STREAMS = 100;
const MAX_HEADER_BYTES = 8192;
const MAX_HEADER_FIELDS = 64;
/** What one connection may hold in memory, in MB, before streams are refused. */
const SESSION_MEMORY_MB = 64;
/** Streams a client may open and reset at once, and per second after that (CVE-2023-44487). */
const RESET_BURST = 1000;
const RESETS_PER_SECOND = 200;
const PAGE = 'Not Found\n';
const PAGE_HEADERS = { 'content-type': 'text/plain; charset=utf-8' };
const CHALLENGE = { 'proxy-authenticate': 'Basic realm="proxy", charset="UTF-8"' };
const BIND_PATH = '*';

export interface FrontDoorOptions {
  /** How long a connection may last whose client has not proven who it is. */
  timeoutMs: number;
  /** Takes requests for a proxy; without it there is none. */
  onProxyRequest?: ((request: ProxyRequest) => void) | undefined;
  /** Whose memory the streams of `customvpn-streams/1` hold; default: nobody counts it. */
  queues?: QueueBudget | undefined;
  /** Whether whoever is not known meets a web server even when asking for a proxy. */
  isHidden?: boolean;
  /** The secret path at which a tunnel is opened, and who takes it. */
  tunnelPath?: string;
  onTunnel?: (socket: TLSSocket) => void;
}

export class FrontDoor {
  readonly #options: FrontDoorOptions;
  readonly #http: HttpServer;
  readonly #connections = new Map<object, Visitor>();

  constructor(options: FrontDoorOptions) {
    this.#options = options;
    this.#http = createHttpServer(
      {
        maxHeaderSize: MAX_HEADER_BYTES,
        keepAliveTimeout: options.timeoutMs,
        shouldUpgradeCallback: (request) =>
          this.#upgradeOf(request) !== undefined || request.headers.upgrade === 'connect-udp',
      },
      (request, response) => this.#handleRequest(request, response),
    );
    this.#http.on('connect', (request, socket, head) => this.#handleConnect(request, socket, head));
    this.#http.on('upgrade', (request, socket, head) => this.#handleUpgrade(request, socket, head));
    this.#http.on('clientError', (_error, socket) => socket.destroy());
  }

  /** Whether it has HTTP/2. */
  get isProxy(): boolean {
    return this.#options.onProxyRequest !== undefined;
  }

  /** Takes over a connection whose handshake is complete; `raw` is the one that TLS runs on. */
  open(socket: TLSSocket, raw: Socket, remote: Endpoint): void {
    const visitor = new Visitor(socket, raw, remote, this.#options);
    this.#connections.set(socket, visitor);
    socket.once('close', () => this.#connections.delete(socket));
    if (socket.alpnProtocol === STREAMS_ALPN) this.#openStreams(visitor);
    else if (socket.alpnProtocol === HTTP2_ALPN) this.#openHttp2(visitor);
    else this.#http.emit('connection', socket);
  }

  /** Ends every connection. */
  close(): void {
    for (const visitor of this.#connections.values()) visitor.destroy();
    this.#http.close();
  }

  #openStreams(visitor: Visitor): void {
    const { onProxyRequest, queues } = this.#options;
    if (onProxyRequest === undefined) visitor.destroy();
    else visitor.streams = new StreamDoor(visitor, onProxyRequest, queues);
  }

  #openHttp2(visitor: Visitor): void {
    const session = performServerHandshake(visitor.socket, HTTP2_OPTIONS);
    visitor.http2 = session;
    session.on('error', () => visitor.destroy());
    session.on('close', () => visitor.destroy());
    session.on('stream', (stream, headers) => {
      stream.on('error', ignore);
      this.#handleStream(visitor, stream, headers);
    });
  }

  #handleStream(visitor: Visitor, stream: ServerHttp2Stream, headers: IncomingHttpHeaders): void {
    const { onProxyRequest } = this.#options;
    const request = onProxyRequest === undefined ? undefined : http2Request(visitor, stream, headers);
    if (request === undefined) answer(stream, 404, PAGE_HEADERS, PAGE);
    else if (request === 'malformed') answer(stream, 400, {});
    else onProxyRequest?.(request);
  }

  #handleRequest(request: IncomingMessage, response: ServerResponse): void {
    const { onProxyRequest } = this.#options;
    const visitor = this.#connections.get(request.socket);
    const proxied =
      onProxyRequest === undefined || visitor === undefined ? undefined : plainRequest(visitor, request, response);
    if (proxied === undefined) {
      response.writeHead(404, { ...PAGE_HEADERS, connection: 'close' }).end(PAGE);
    } else if (proxied === 'malformed') response.writeHead(400, { connection: 'close' }).end();
    else onProxyRequest?.(proxied);
  }

  #handleConnect(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    this.#takeSocket(request, socket, head, 'tcp', parseTarget(request.url ?? ''));
  }

  #upgradeOf(request: IncomingMessage): string | undefined {
    const { tunnelPath } = this.#options;
    const protocols = this.isProxy ? [TUNNEL_ALPN, STREAMS_ALPN] : [TUNNEL_ALPN];
    return tunnelPath === undefined ? undefined : upgradeOf(request, tunnelPath, protocols);
  }

  #handleUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const visitor = this.#connections.get(socket);
    const protocol = this.#upgradeOf(request);
    if (visitor !== undefined && protocol !== undefined) {
      if (head.length > 0) socket.unshift(head);
      acceptUpgrade(visitor.socket, protocol);
      if (protocol === STREAMS_ALPN) {
        this.#openStreams(visitor);
        return;
      }
      visitor.leave();
      this.#connections.delete(socket);
      this.#options.onTunnel?.(visitor.socket);
      return;
    }
    this.#takeSocket(request, socket, head, 'udp', parseUdpPath(request.url ?? ''));
  }

  #takeSocket(
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    kind: 'tcp' | 'udp',
    target: StreamTarget | undefined,
  ): void {
    const { onProxyRequest } = this.#options;
    const visitor = this.#connections.get(socket);
    if (visitor === undefined) {
      socket.destroy();
      return;
    }
    socket.on('error', ignore);
    if (onProxyRequest === undefined) endWith(socket, 404, PAGE_HEADERS, PAGE);
    else if (target === undefined) endWith(socket, 400, {});
    else onProxyRequest(new SocketRequest(visitor, request, head, kind, target));
  }
}

const HTTP2_OPTIONS: ServerOptions = {
  settings: {
    enableConnectProtocol: true,
    enablePush: false,
    maxConcurrentStreams: STRANGER_STREAMS,
    maxFrameSize: FRAME_BYTES,
    maxHeaderListSize: MAX_HEADER_BYTES,
  },
  maxHeaderListPairs: MAX_HEADER_FIELDS,
  maxSessionMemory: SESSION_MEMORY_MB,
  streamResetBurst: RESET_BURST,
  streamResetRate: RESETS_PER_SECOND,
};

/** One connection at the front door. */
class Visitor implements ProxyConnection {
  readonly socket: TLSSocket;
  readonly remote: Endpoint;
  readonly isHidden: boolean;
  http2: ServerHttp2Session | undefined;
  streams: StreamDoor | undefined;
  readonly #raw: Socket;
  readonly #deadline: NodeJS.Timeout;

  constructor(socket: TLSSocket, raw: Socket, remote: Endpoint, { timeoutMs, isHidden = false }: FrontDoorOptions) {
    this.socket = socket;
    this.isHidden = isHidden;
    this.#raw = raw;
    this.remote = remote;
    this.#deadline = setTimeout(() => this.destroy(), timeoutMs);
    this.#deadline.unref();
    socket.once('close', () => clearTimeout(this.#deadline));
  }

  exporter(label: string, context: Uint8Array): Uint8Array {
    return this.socket.exportKeyingMaterial(32, label, Buffer.from(context));
  }

  /** Somebody else's from now on. */
  leave(): void {
    clearTimeout(this.#deadline);
  }

  admit(streams: number): void {
    clearTimeout(this.#deadline);
    const session = this.http2;
    if (session === undefined || session.destroyed) return;
    session.settings({ maxConcurrentStreams: streams, initialWindowSize: STREAM_WINDOW_BYTES });
    session.setLocalWindowSize(CONNECTION_WINDOW_BYTES);
  }

  onClosed(told: () => void): void {
    if (this.socket.closed) told();
    else this.socket.once('close', told);
  }

  end(): void {
    if (this.streams !== undefined) this.streams.end();
    else if (this.http2 === undefined) this.socket.end();
    else this.http2.close();
  }

  destroy(): void {
    this.http2?.destroy();
    this.streams?.destroy();
    this.socket.destroy();
  }

  /** As a connection that broke. */
  reset(): void {
    const isEnding = this.socket.writableEnded && !this.socket.writableFinished;
    if (!isEnding) this.#raw.resetAndDestroy();
    this.socket.destroy();
  }
}

function http2Request(
  visitor: Visitor,
  stream: ServerHttp2Stream,
  headers: IncomingHttpHeaders,
): ProxyRequest | 'malformed' | undefined {
  const method = headers[':method'];
  const authorization = single(headers['proxy-authorization']);
  if (method === 'CONNECT') {
    const protocol = headers[':protocol'];
    if (protocol !== undefined && protocol !== 'connect-udp') return undefined;
    const target =
      protocol === undefined ? parseTarget(headers[':authority'] ?? '') : parseUdpPath(headers[':path'] ?? '');
    if (target === undefined) return 'malformed';
    return new Http2Request(visitor, stream, authorization, protocol === undefined ? 'tcp' : 'udp', target);
  }
  if (method === 'OPTIONS' && headers[':path'] === BIND_PATH && authorization !== undefined) {
    return new Http2Binding(visitor, stream, authorization);
  }
  // What a web server is asked for has the scheme of this connection.
  if (headers[':scheme'] !== 'http') return undefined;
  const authority = headers[':authority'] ?? '';
  const target = parseTarget(authority, 80);
  if (target === undefined || method === undefined) return 'malformed';
  const fields = withoutPseudo(headers);
  if (!stream.endAfterHeaders && !('content-length' in fields)) fields['transfer-encoding'] = 'chunked';
  const plain = { method, path: headers[':path'] ?? '/', authority, headers: fields };
  return new Http2Forward(visitor, stream, authorization, target, plain);
}

function plainRequest(
  visitor: Visitor,
  request: IncomingMessage,
  response: ServerResponse,
): ProxyRequest | 'malformed' | undefined {
  const { url = '', method = 'GET' } = request;
  const match = /^http:\/\/([^/?#]*)([/?][^#]*)?/i.exec(url);
  if (match === null) return undefined;
  const [, authority = '', path = '/'] = match;
  const target = parseTarget(authority, 80);
  if (target === undefined) return 'malformed';
  const { headers } = request;
  const plain = { method, path: path.startsWith('/') ? path : `/${path}`, authority, headers };
  return new PlainForward(visitor, request, response, target, plain);
}

/** `/.well-known/masque/udp/HOST/PORT/` (RFC 9298 §2). */
function parseUdpPath(path: string): StreamTarget | undefined {
  const match = /^\/\.well-known\/masque\/udp\/([^/?#]{1,300})\/(\d{1,5})\/?$/.exec(path);
  if (match === null) return undefined;
  let host: string;
  try {
    host = decodeURIComponent(match[1] ?? '');
  } catch {
    return undefined;
  }
  return parseTarget(`${host.includes(':') ? `[${host}]` : host}:${match[2]}`);
}

/** A request on a stream of HTTP/2. */
abstract class Http2Base {
  readonly connection: Visitor;
  readonly authorization: string | undefined;
  onGone: () => void = ignore;
  protected readonly stream: ServerHttp2Stream;

  constructor(visitor: Visitor, stream: ServerHttp2Stream, authorization: string | undefined) {
    this.connection = visitor;
    this.stream = stream;
    this.authorization = authorization;
    stream.once('close', () => this.onGone());
  }

  challenge(): void {
    if (this.connection.isHidden) answer(this.stream, 404, PAGE_HEADERS, PAGE);
    else answer(this.stream, 407, CHALLENGE);
  }

  protected refuseWith(why: StreamRefusal): void {
    answer(this.stream, STREAM_REFUSALS[why], proxyStatus(why));
  }
}

class Http2Request extends Http2Base {
  readonly kind: 'tcp' | 'udp';
  readonly target: StreamTarget;

  constructor(
    visitor: Visitor,
    stream: ServerHttp2Stream,
    authorization: string | undefined,
    kind: 'tcp' | 'udp',
    target: StreamTarget,
  ) {
    super(visitor, stream, authorization);
    this.kind = kind;
    this.target = target;
  }

  accept(): ProxyStream {
    const { stream, connection } = this;
    if (!stream.destroyed) stream.respond({ ':status': 200, ...(this.kind === 'udp' ? CAPSULES : {}) });
    return {
      duplex: stream,
      reset: () => stream.close(http2.NGHTTP2_CONNECT_ERROR),
      get isBroken() {
        return stream.aborted || (stream.rstCode ?? 0) !== http2.NGHTTP2_NO_ERROR || connection.socket.destroyed;
      },
    };
  }

  refuse(why: StreamRefusal): void {
    this.refuseWith(why);
  }
}

class Http2Binding extends Http2Base {
  readonly kind = 'bind';

  accept(info: string): void {
    if (this.stream.destroyed) return;
    this.stream.respond({ ':status': 204, 'proxy-authentication-info': info }, { endStream: true });
  }

  refuse(): void {
    answer(this.stream, 404, PAGE_HEADERS, PAGE);
  }
}

class Http2Forward extends Http2Base {
  readonly kind = 'http';
  readonly target: StreamTarget;
  readonly plain: PlainRequest;

  constructor(
    visitor: Visitor,
    stream: ServerHttp2Stream,
    authorization: string | undefined,
    target: StreamTarget,
    plain: PlainRequest,
  ) {
    super(visitor, stream, authorization);
    this.target = target;
    this.plain = plain;
  }

  forward(upstream: Duplex): void {
    const { stream } = this;
    forwardHttp(this.plain, stream, upstream, {
      respond: ({ status, headers }) => {
        stream.respond({ ':status': status, ...headers });
        return stream;
      },
      fail: () => {
        if (stream.headersSent) stream.close(http2.NGHTTP2_CONNECT_ERROR);
        else this.refuseWith('connection_refused');
      },
    });
  }

  refuse(why: StreamRefusal): void {
    this.refuseWith(why);
  }
}

/** A request that has taken a connection of HTTP/1.1 for itself. */
class SocketRequest {
  readonly connection: Visitor;
  readonly authorization: string | undefined;
  readonly kind: 'tcp' | 'udp';
  readonly target: StreamTarget;
  onGone: () => void = ignore;
  readonly #head: Buffer;

  constructor(visitor: Visitor, request: IncomingMessage, head: Buffer, kind: 'tcp' | 'udp', target: StreamTarget) {
    this.connection = visitor;
    this.authorization = request.headers['proxy-authorization'];
    this.kind = kind;
    this.target = target;
    this.#head = head;
    visitor.socket.once('close', () => this.onGone());
  }

  challenge(): void {
    const { socket, isHidden } = this.connection;
    if (isHidden) endWith(socket, 404, PAGE_HEADERS, PAGE);
    else endWith(socket, 407, CHALLENGE);
  }

  accept(): ProxyStream {
    const { connection } = this;
    const { socket } = connection;
    // Half of it may end before the other.
    socket.allowHalfOpen = true;
    socket.write(
      this.kind === 'tcp'
        ? 'HTTP/1.1 200 Connection established\r\n\r\n'
        : 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n',
    );
    if (this.#head.length > 0) socket.unshift(this.#head);
    return { duplex: socket, reset: () => connection.reset() };
  }

  refuse(why: StreamRefusal): void {
    endWith(this.connection.socket, STREAM_REFUSALS[why], proxyStatus(why));
  }
}

class PlainForward {
  readonly connection: Visitor;
  readonly authorization: string | undefined;
  readonly kind = 'http';
  readonly target: StreamTarget;
  readonly plain: PlainRequest;
  onGone: () => void = ignore;
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;

  constructor(
    visitor: Visitor,
    request: IncomingMessage,
    response: ServerResponse,
    target: StreamTarget,
    plain: PlainRequest,
  ) {
    this.connection = visitor;
    this.authorization = request.headers['proxy-authorization'];
    this.target = target;
    this.plain = plain;
    this.#request = request;
    this.#response = response;
    response.once('close', () => this.onGone());
  }

  challenge(): void {
    if (this.connection.isHidden) this.#response.writeHead(404, { ...PAGE_HEADERS, connection: 'close' }).end(PAGE);
    else this.#answer(407, CHALLENGE);
  }

  forward(upstream: Duplex): void {
    const response = this.#response;
    forwardHttp(this.plain, this.#request, upstream, {
      respond: ({ status, message, headers }) => response.writeHead(status, message, headers),
      fail: () => {
        if (response.headersSent) this.connection.reset();
        else this.refuse('connection_refused');
      },
    });
  }

  refuse(why: StreamRefusal): void {
    this.#answer(STREAM_REFUSALS[why], proxyStatus(why));
  }

  #answer(status: number, headers: Record<string, string>): void {
    // A body that nobody reads must not be taken for the next request.
    const isWhole = this.#request.complete;
    this.#response.writeHead(status, { ...headers, 'content-length': 0, ...(isWhole ? {} : { connection: 'close' }) });
    this.#response.end();
  }
}

const CAPSULES = { 'capsule-protocol': '?1' };

function proxyStatus(why: StreamRefusal): Record<string, string> {
  return { 'proxy-status': `customvpn; error=${why}` };
}

function answer(stream: ServerHttp2Stream, status: number, headers: Record<string, string>, body = ''): void {
  if (stream.destroyed || stream.headersSent) return;
  // What the client still sends is not wanted (RFC 9113 §8.1).
  stream.once('finish', () => stream.close(http2.NGHTTP2_NO_ERROR));
  stream.respond({ ':status': status, ...headers });
  stream.end(body);
  stream.resume();
}

function endWith(socket: Duplex, status: number, headers: Record<string, string>, body = ''): void {
  const lines = Object.entries({ ...headers, 'content-length': String(body.length), connection: 'close' });
  const head = lines.map(([name, value]) => `${name}: ${value}\r\n`).join('');
  socket.end(`HTTP/1.1 ${status} ${REASONS[status] ?? 'Error'}\r\n${head}\r\n${body}`);
  socket.resume();
}

const REASONS: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  403: 'Forbidden',
  404: 'Not Found',
  407: 'Proxy Authentication Required',
  500: 'Internal Server Error',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
};

function withoutPseudo(headers: IncomingHttpHeaders): IncomingHttpHeaders {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith(':')));
}

function single(value: string | string[] | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

function ignore(): void {}
