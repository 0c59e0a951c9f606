/**
 * The proxy that programs on this machine use: SOCKS5 and HTTP on local ports, each connection a stream to the gateway.
 *
 * Hides both protocols. Names go to the gateway as they are: nothing is looked up here. A client is told of success only when
 * the gateway has the connection, and of failure by what the gateway said. It must not know how streams get there.
 */

import {
  createServer as createHttpServer,
  type Server as HttpServer,
  type IncomingMessage,
  type ServerResponse,
} from 'node:http';
import { createServer, isIP, type Server, type Socket } from 'node:net';
import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { forwardHttp } from '../transport/http-forward.ts';
import { resetSocket, splice } from '../transport/splice.ts';
import { parseTarget, STREAM_REFUSALS, type StreamSource, type StreamTarget } from '../transport/stream-request.ts';
import { StreamRefused } from './proxy-connection.ts';
import {
  encodeMethod,
  encodeReply,
  parseGreeting,
  parseRequest,
  replyOf,
  SocksReply,
  type SocksRequest,
} from './socks5.ts';
import { UdpAssociation } from './udp-association.ts';

/** For a program to say what it wants. */
const HANDSHAKE_MS = 10_000;
const LAST_MS = 2000;
const HIGH_WATER_MARK = 256 * 1024;
const MAX_HEADER_BYTES = 65_536;
const SOCKS_ONLY =
  'HTTP/1.0 501 Not an HTTP proxy\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\nThis port speaks SOCKS5.\n';
const PROXY_ONLY = 'This is a proxy: give its address to a program as an HTTP proxy. It has no pages of its own.\n';

export interface LocalEndpoint {
  readonly host: string;
  readonly port: number;
}

export interface LocalProxyOptions {
  readonly streams: StreamSource;
  readonly socks?: LocalEndpoint | undefined;
  readonly http?: LocalEndpoint | undefined;
  /** Also where other machines can reach it. */
  readonly expose: boolean;
  readonly log: Logger;
}

export class LocalProxy implements AsyncDisposable {
  readonly #options: LocalProxyOptions;
  readonly #log: Logger;
  readonly #sockets = new Set<Socket>();
  readonly #http: HttpServer;
  readonly #servers: Server[] = [];
  /** Where it listens. */
  socks: LocalEndpoint | undefined;
  http: LocalEndpoint | undefined;

  /**
   * Opens the ports.
   *
   * @throws {VpnError} ERR_USAGE for an address that others can reach, unless exposed; ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_SYSCALL
   */
  static async open(options: LocalProxyOptions): Promise<LocalProxy> {
    for (const endpoint of [options.socks, options.http]) checkLocal(endpoint, options.expose);
    const proxy = new LocalProxy(options);
    try {
      if (options.socks !== undefined)
        proxy.socks = await proxy.#listen(options.socks, (socket) => proxy.#socks(socket));
      if (options.http !== undefined) {
        proxy.http = await proxy.#listen(options.http, (socket) => void proxy.#http.emit('connection', socket));
      }
    } catch (error) {
      await proxy.close();
      throw error;
    }
    return proxy;
  }

  private constructor(options: LocalProxyOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'proxy' });
    this.#http = createHttpServer({ maxHeaderSize: MAX_HEADER_BYTES }, (request, response) =>
      this.#plain(request, response),
    );
    this.#http.on('connect', (request, _socket, head) => this.#connect(request, head));
    this.#http.on('clientError', (_error, socket) => {
      if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n');
    });
  }

  /** Programs that are connected. */
  get connections(): number {
    return this.#sockets.size;
  }

  async close(): Promise<void> {
    for (const server of this.#servers) server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #listen({ host, port }: LocalEndpoint, take: (socket: Socket) => void): Promise<LocalEndpoint> {
    const server = createServer({ allowHalfOpen: true, noDelay: true, highWaterMark: HIGH_WATER_MARK }, (socket) => {
      this.#sockets.add(socket);
      socket.on('error', ignore);
      socket.once('close', () => this.#sockets.delete(socket));
      take(socket);
    });
    const opened = Promise.withResolvers<void>();
    server.once('error', opened.reject);
    server.listen(port, host, opened.resolve);
    try {
      await opened.promise;
    } catch (cause) {
      throw listenError(cause, host, port);
    }
    server.off('error', opened.reject);
    server.on('error', (error) => this.#log.warn('a local connection could not be accepted', { error }));
    this.#servers.push(server);
    const address = server.address();
    return { host, port: typeof address === 'object' && address !== null ? address.port : port };
  }

  #socks(socket: Socket): void {
    const deadline = setTimeout(() => socket.destroy(), HANDSHAKE_MS);
    deadline.unref();
    socket.once('close', () => clearTimeout(deadline));
    let bytes: Uint8Array = new Uint8Array(0);
    let isGreeted = false;
    const take = (chunk: Uint8Array): void => {
      bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk]);
      try {
        if (!isGreeted) {
          const greeting = parseGreeting(bytes);
          if (greeting === undefined) return;
          bytes = bytes.subarray(greeting.length);
          isGreeted = true;
          socket.write(encodeMethod(greeting.value));
          if (!greeting.value) {
            socket.off('data', take);
            endWith(socket, '');
            return;
          }
        }
        const request = bytes.length === 0 ? undefined : parseRequest(bytes);
        if (request === undefined) return;
        clearTimeout(deadline);
        socket.off('data', take).off('end', giveUp);
        socket.pause();
        const rest = bytes.subarray(request.length);
        if (rest.length > 0) socket.unshift(rest);
        this.#serve(socket, request.value);
      } catch {
        socket.off('data', take);
        // Somebody has given this port for the other.
        if (/^[A-Z]/.test(String.fromCharCode(bytes[0] ?? 0))) endWith(socket, SOCKS_ONLY);
        else socket.destroy();
      }
    };
    const giveUp = (): void => void socket.end();
    socket.on('data', take);
    socket.once('end', giveUp);
  }

  #serve(socket: Socket, { command, target }: SocksRequest): void {
    if (command === 'associate') {
      UdpAssociation.open(socket, this.#options.streams, target, this.#log);
    } else if (command !== 'connect') {
      endWith(socket, encodeReply(SocksReply.noCommand));
      if (command === 'bind') this.#log.info('a program asked for SOCKS5 BIND, which there is none of');
    } else if (target === undefined || target.port === 0) {
      endWith(socket, encodeReply(SocksReply.noAddressType));
    } else {
      this.#join(socket, target, encodeReply(SocksReply.succeeded), (error) =>
        endWith(socket, encodeReply(socksReplyOf(error))),
      );
    }
  }

  #connect({ url, socket }: IncomingMessage, head: Buffer): void {
    const target = parseTarget(url ?? '');
    if (target === undefined) {
      endWith(socket, 'HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n');
      return;
    }
    if (head.length > 0) socket.unshift(head);
    this.#join(socket, target, 'HTTP/1.1 200 Connection established\r\n\r\n', (error) => {
      const { status, text } = httpAnswerOf(error);
      const length = Buffer.byteLength(text);
      endWith(
        socket,
        `HTTP/1.1 ${status} Failed\r\ncontent-type: text/plain\r\ncontent-length: ${length}\r\nconnection: close\r\n\r\n${text}`,
      );
    });
  }

  /** Joins a program to a stream. */
  #join(socket: Socket, target: StreamTarget, success: string | Uint8Array, fail: (error: unknown) => void): void {
    this.#options.streams.open('tcp', target).then(
      (stream) => {
        if (socket.destroyed) {
          stream.reset();
          return;
        }
        socket.write(success);
        splice({ duplex: socket, reset: () => resetSocket(socket) }, stream, ignore);
      },
      (error: unknown) => {
        this.#log.debug('a connection was not made', { host: target.host, port: target.port, error });
        if (!socket.destroyed) fail(error);
      },
    );
  }

  #plain(request: IncomingMessage, response: ServerResponse): void {
    const match = /^http:\/\/([^/?#]*)([/?][^#]*)?/i.exec(request.url ?? '');
    const [, authority = '', path = '/'] = match ?? [];
    const target = match === null ? undefined : parseTarget(authority, 80);
    const answer = (status: number, text: string): void => {
      response.writeHead(status, { 'content-type': 'text/plain', connection: 'close' });
      response.end(text);
      request.resume();
    };
    if (target === undefined) {
      answer(400, PROXY_ONLY);
      return;
    }
    const { method = 'GET', headers } = request;
    const plain = { method, path: path.startsWith('/') ? path : `/${path}`, authority, headers };
    this.#options.streams.open('tcp', target).then(
      (stream) => {
        if (response.destroyed) {
          stream.reset();
          return;
        }
        response.once('close', () => stream.duplex.destroy());
        forwardHttp(plain, request, stream.duplex, {
          respond: ({ status, message, headers: fields }) => response.writeHead(status, message, fields),
          fail: () => {
            if (response.headersSent) resetSocket(request.socket);
            else answer(502, 'the server did not answer as HTTP does\n');
          },
        });
      },
      (error: unknown) => {
        const { status, text } = httpAnswerOf(error);
        answer(status, text);
      },
    );
  }
}

/** Says the last there is to say. What the program still sends is not wanted, nor waited for long. */
function endWith(socket: Socket, last: string | Uint8Array): void {
  socket.end(last);
  socket.resume();
  setTimeout(() => socket.destroy(), LAST_MS).unref();
}

function socksReplyOf(error: unknown): (typeof SocksReply)[keyof typeof SocksReply] {
  return error instanceof StreamRefused ? replyOf(error.why) : SocksReply.failure;
}

function httpAnswerOf(error: unknown): { status: number; text: string } {
  if (error instanceof StreamRefused) return { status: STREAM_REFUSALS[error.why], text: `${error.message}\n` };
  return {
    status: 503,
    text: `there is no way to the gateway: ${error instanceof Error ? error.message : String(error)}\n`,
  };
}

function checkLocal(endpoint: LocalEndpoint | undefined, expose: boolean): void {
  if (endpoint === undefined || expose || isLoopback(endpoint.host)) return;
  throw new VpnError(
    'ERR_USAGE',
    `${endpoint.host} can be reached from other machines, whose traffic would go out in your name: expected 127.0.0.1 or [::1]; add --expose if that is wanted`,
  );
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

function listenError(cause: unknown, host: string, port: number): VpnError {
  const errno = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause);
  const where = `listening on ${host} port ${port}`;
  if (errno === 'EADDRINUSE') {
    return new VpnError('ERR_PORT_TAKEN', `${where}: another program has this port; choose another`, { cause });
  }
  if (errno === 'EACCES')
    return new VpnError('ERR_PRIVILEGE', `${where}: permission denied; choose a port from 1024 on`, { cause });
  return new VpnError('ERR_SYSCALL', `${where}: ${errno}`, { cause });
}

function ignore(): void {}
