/**
 * Accepts TLS connections on one port and sorts them: tunnels become channels, everything else meets the front door.
 *
 * Hides Node's TLS server, and proxies in front of the port: who counts is the client they connect for. What a stranger can cost is bounded before any credential is looked at: connections per
 * source, handshakes in flight, a deadline for the handshake, log lines per minute. The front door answers HTTP, so that the
 * port looks like any web server's. It must not know what a channel carries, nor who may log in.
 *
 * @see docs/protocol.md §1
 */

import { createServer as createTcpServer, type Socket, type Server as TcpServer } from 'node:net';
import { createServer as createTlsServer, type TLSSocket, type Server as TlsServer } from 'node:tls';
import { type Clock, systemClock } from '../base/clock.ts';
import { type ErrorCode, toVpnError, VpnError } from '../base/errors.ts';
import { Histogram } from '../base/histogram.ts';
import type { Logger } from '../base/log.ts';
import { encodeGreeting } from '../protocol/frame.ts';
import { encodeMessage } from '../protocol/messages.ts';
import { rejectCodeOf } from '../protocol/reasons.ts';
import { AcceptPause } from './accept-pause.ts';
import { readHolder } from './certificate-facts.ts';
import { Channel, type ChannelFacts } from './channel.ts';
import { type Endpoint, localEnd, remoteEnd, sourceOf } from './endpoint.ts';
import { whenFirstRecord } from './first-record.ts';
import { FrontDoor } from './front-door.ts';
import { Handshakes } from './handshakes.ts';
import { LogLimit } from './log-limit.ts';
import { readProxyHeader } from './proxy-header.ts';
import type { QueueBudget } from './queue-budget.ts';
import type { ProxyRequest } from './stream-request.ts';
import {
  type ClientAuth,
  certificateError,
  checkHandshake,
  chooseProtocol,
  isTunnelProtocol,
  type MinTlsVersion,
  readFacts,
  type ServerCredentials,
  serverIdOf,
  serverTlsOptions,
  translateTlsError,
} from './tls.ts';

const HANDSHAKE_TIMEOUT_MS = 10_000;
const PROXY_HEADER_TIMEOUT_MS = 3_000;
const FRONT_DOOR_TIMEOUT_MS = 15_000;
/** Connections that wait in the kernel: one too many is tried again by its client only after a second. */
const BACKLOG = 4096;
const NOTHING_SAID = 'the peer has closed the connection before it has said what it wants';
const MAX_HANDSHAKES = 4096;
/** Far below that: one source alone cannot fill it. */
const MAX_HANDSHAKES_PER_SOURCE = 64;
/** Of what a refused certificate says; a stranger writes it. */
const MAX_NAME = 256;
const MAX_SERIAL = 64;
/** An office behind one address has many clients, and each has a few connections. */
const MAX_CONNECTIONS_PER_SOURCE = 256;

export interface ListenerOptions {
  /** A listening socket that the listener takes over; else `address` and `port`. */
  fd?: number;
  /** Default: all addresses of both families. */
  address?: string;
  /** 0: the system chooses. */
  port?: number;
  credentials: ServerCredentials;
  /** Default false. */
  requireClientAuth?: ClientAuth;
  /** Default 1.3. */
  minVersion?: MinTlsVersion;
  /** From the accepted connection to the end of its handshake, without what it waits for its turn. */
  handshakeTimeoutMs?: number;
  /** The front door's: how long one connection may last. */
  frontDoorTimeoutMs?: number;
  /** How many connections may be there without a whole hello, and how many of proxies' without a header. */
  maxHandshakes?: number;
  /** How many of those one IPv4 address or IPv6 /64 may have, and of those that TLS works on. */
  maxHandshakesPerSource?: number;
  /** How many connections one IPv4 address or IPv6 /64 may have. */
  maxConnectionsPerSource?: number;
  /** Whether nothing from this address is to be read; asked for every connection. */
  isRefused?: (address: string) => boolean;
  /**
   * Whether this address is a proxy, which has to say with a PROXY header for whom it connects. Limits then count its client
   * and never the proxy. From all others such a header is no TLS.
   */
  isProxy?: (address: string) => boolean;
  /** From the accepted connection of a proxy to the end of its header. */
  proxyHeaderTimeoutMs?: number;
  /** Whether a client without ALPN gets a tunnel and not the front door. */
  greetWithoutAlpn?: boolean;
  /**
   * A secret path at which the front door opens a tunnel; `only`: clients get one in no other way, and to whoever probes the port
   * it is that of a web server.
   */
  camouflage?: { readonly path: string; readonly only: boolean } | undefined;
  /** Takes what the front door is asked for as a proxy; without it the front door is none. */
  onProxyRequest?: (request: ProxyRequest) => void;
  dataQueueBytes?: number;
  /** Shared by the data queues and streams of all connections. */
  queues?: QueueBudget;
  /**
   * Gives a connection to another listener, whose `takeOver` goes on with it, if its client asks for that by what it has sent.
   *
   * @returns whether it did; then the connection is gone here
   */
  handOver?: (raw: Socket, start: Buffer, remote: Endpoint, isCounted: boolean) => boolean;
  /** Takes over a connection whose handshake is complete. */
  onChannel(channel: Channel): void;
  /** Told of a certificate that was refused, and of a client that showed none where it needs one. */
  onCertificateRefused?: (refusal: CertificateRefusal) => void;
  log: Logger;
  clock?: Clock;
}

/** A certificate that was refused. What it says is its own word, unless the code tells that only time or a list speaks against it. */
export interface CertificateRefusal {
  readonly remote: Endpoint;
  readonly code: ErrorCode;
  readonly reason: string;
  /** Undefined: none was shown. Cut to a bound. */
  readonly certificate: { readonly name: string; readonly issuer: string; readonly serial: string } | undefined;
}

/** What a stranger may cost. */
export type ListenerLimits = Pick<
  ListenerOptions,
  'maxHandshakes' | 'maxConnectionsPerSource' | 'handshakeTimeoutMs' | 'proxyHeaderTimeoutMs'
>;

/** Plain integers, read at scrape. */
export interface ListenerCounters {
  accepted: number;
  channels: number;
  frontDoor: number;
  /** Refused unread: the source had too many connections. */
  refusedSource: number;
  /** Given to another listener unread. */
  handedOver: number;
  /** Refused unread: the source is banned. */
  refusedBanned: number;
  /** Ended before their handshake was complete: others needed their room. */
  refusedHandshakes: number;
  /** Handshakes, and headers of proxies, that failed, by code. */
  failed: Partial<Record<ErrorCode, number>>;
}

/** Upper bounds of `handshakeSeconds`. */
export const HANDSHAKE_BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** One accepted connection, until its socket closes. */
interface Connection {
  readonly raw: Socket;
  /** When it was given to TLS, monotonic milliseconds; 0: not yet. */
  begunAt: number;
  /** How long the client may take from then on. */
  leftMs: number;
  /** Undefined: a proxy's own connection, which is not counted. */
  readonly source: string | undefined;
  readonly remote: Endpoint;
  /** Of the certificate in force when the handshake began; before that, when the connection came. */
  serverId: Uint8Array;
  /** Of what the client has still to say. */
  deadline: NodeJS.Timeout | undefined;
  /** Told when it is in its handshake no more. */
  readonly over: (() => void) | undefined;
  isOver: boolean;
  /** What becomes of it is known and counted: its handshake is complete, or we have ended it. */
  isSettled: boolean;
}

/** A port that clients connect to. */
export class Listener {
  readonly counters: ListenerCounters = {
    accepted: 0,
    channels: 0,
    frontDoor: 0,
    refusedSource: 0,
    handedOver: 0,
    refusedBanned: 0,
    refusedHandshakes: 0,
    failed: {},
  };
  /** From the first TLS record to the end of each handshake that came to one. */
  readonly handshakeSeconds = new Histogram(HANDSHAKE_BOUNDS);
  #options: ListenerOptions;
  readonly #log: Logger;
  readonly #lines: LogLimit;
  readonly #tcp: TcpServer;
  readonly #tls: TlsServer;
  readonly #frontDoor: FrontDoor;
  #pause: AcceptPause | undefined;
  readonly #connections = new Set<Connection>();
  /** Also those whose socket has just closed: Node reports some failures after that. */
  readonly #known = new WeakMap<object, Connection>();
  readonly #bySource = new Map<string, number>();
  /** Connections of proxies that have not said for whom. */
  readonly #unnamed = new Set<Socket>();
  readonly #handshakes: Handshakes<Connection>;
  #serverId: Uint8Array;

  /**
   * Opens the port.
   *
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE, ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_SYSCALL
   */
  static async open(options: ListenerOptions): Promise<Listener> {
    const listener = new Listener(options);
    await listener.#listen();
    return listener;
  }

  private constructor(options: ListenerOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'listener' });
    this.#lines = new LogLimit(this.#log, options.clock ?? systemClock);
    const tlsOptions = this.#tlsOptions(options.credentials);
    this.#serverId = serverIdOf(options.credentials.cert);
    this.#handshakes = new Handshakes({
      limits: () => {
        const { maxHandshakes = MAX_HANDSHAKES, maxHandshakesPerSource = MAX_HANDSHAKES_PER_SOURCE } = this.#options;
        return { most: maxHandshakes, mostPerSource: maxHandshakesPerSource };
      },
      begin: (connection) => this.#begin(connection),
      displaced: (connection) => this.#displace(connection),
    });
    this.#tcp = createTcpServer({ noDelay: true }, (raw) => this.#accept(raw));
    // It never listens: it gets only the connections that have passed the limits.
    this.#tls = createTlsServer({
      ...tlsOptions,
      ALPNCallback: ({ protocols }) =>
        chooseProtocol(protocols, {
          hasTunnels: options.camouflage?.only !== true,
          isProxy: this.#frontDoor.isProxy,
        }),
    });
    this.#tls.on('secureConnection', (socket) => this.#secure(socket));
    this.#tls.on('tlsClientError', (error, socket) => this.#fail(socket, error));
    const { camouflage } = options;
    this.#frontDoor = new FrontDoor({
      timeoutMs: options.frontDoorTimeoutMs ?? FRONT_DOOR_TIMEOUT_MS,
      onProxyRequest: options.onProxyRequest,
      queues: options.queues,
      isHidden: camouflage?.only === true,
      ...(camouflage === undefined
        ? {}
        : { tunnelPath: camouflage.path, onTunnel: (socket) => this.#openTunnel(socket) }),
    });
  }

  /** Where it listens. */
  get address(): Endpoint {
    const address = this.#tcp.address();
    if (address === null || typeof address === 'string') throw new VpnError('ERR_INVARIANT', 'the listener is closed');
    return { address: address.address, port: address.port };
  }

  /** Connections open now, of whatever kind. */
  get connectionCount(): number {
    return this.#connections.size + this.#unnamed.size;
  }

  /** Handshakes in flight now. */
  get handshakeCount(): number {
    return this.#handshakes.size;
  }

  /**
   * Uses these credentials for every handshake from now on. Connections that are open stay as they are. On an error the
   * old credentials stay in force.
   *
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE
   */
  reload(credentials: ServerCredentials): void {
    this.#tls.setSecureContext(this.#tlsOptions(credentials));
    this.#serverId = serverIdOf(credentials.cert);
    this.#log.info('certificates reloaded');
  }

  /** Uses other limits from now on. What is open or in its handshake stays. */
  limit(limits: ListenerLimits): void {
    this.#options = { ...this.#options, ...limits };
  }

  /** Closes the port, handshakes and the front door. Channels belong to whoever took them, and stay. Idempotent. */
  async close(): Promise<void> {
    if (this.#tcp.listening) this.#tcp.close();
    for (const { raw } of this.#handshakes.close()) raw.destroy();
    this.#frontDoor.close();
    for (const raw of this.#unnamed) raw.destroy();
    this.#pause?.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #tlsOptions(credentials: ServerCredentials): ReturnType<typeof serverTlsOptions> {
    const { requireClientAuth = false, minVersion = '1.3' } = this.#options;
    return serverTlsOptions(credentials, requireClientAuth, minVersion);
  }

  async #listen(): Promise<void> {
    const { fd, address, port = 0 } = this.#options;
    const opened = Promise.withResolvers<void>();
    this.#tcp.once('listening', opened.resolve);
    this.#tcp.once('error', opened.reject);
    if (fd === undefined)
      this.#tcp.listen({
        port,
        exclusive: true,
        backlog: BACKLOG,
        ...(address === undefined ? {} : { host: address }),
      });
    // Node listens on the descriptor again, with 511 for whoever does not say it, and reads it nowhere else.
    else this.#tcp.listen({ fd }, BACKLOG);
    try {
      await opened.promise;
    } catch (cause) {
      throw listenError(cause, address ?? '::', port);
    }
    this.#tcp.off('error', opened.reject);
    this.#tcp.on('error', (error) => {
      this.#lines.write('warn', 'accept', 'a connection could not be accepted', { error });
    });
    if (fd === undefined) return;
    this.#pause = new AcceptPause({
      server: this.#tcp,
      fd,
      backlog: BACKLOG,
      paused: () => {
        const fields = { code: 'ERR_TOO_MANY_CONNECTIONS' satisfies ErrorCode };
        this.#lines.write('warn', 'accept', 'this process has no descriptor left: connections wait', fields);
      },
    });
  }

  #accept(raw: Socket): void {
    // TLS reports errors at its own socket; one that comes before it has taken over must not end the process.
    raw.on('error', ignore);
    const peer = remoteEnd(raw);
    if (this.#options.isProxy?.(peer.address) === true) this.#acceptProxied(raw, peer);
    else this.#admit(raw, peer, sourceOf(peer.address));
  }

  /**
   * Goes on with a connection that another listener has accepted.
   *
   * @param start what that one has read of it
   * @param isCounted false for a proxy's own connection
   * @param over told when its handshake is over, whatever came of it; once or more
   */
  takeOver(raw: Socket, start: Uint8Array, remote: Endpoint, isCounted: boolean, over: () => void): void {
    raw.on('error', ignore);
    raw.once('close', over);
    raw.unshift(start);
    this.#admit(raw, remote, isCounted ? sourceOf(remote.address) : undefined, over);
  }

  #acceptProxied(raw: Socket, proxy: Endpoint): void {
    const { maxHandshakes = MAX_HANDSHAKES, proxyHeaderTimeoutMs = PROXY_HEADER_TIMEOUT_MS } = this.#options;
    const [oldest] = this.#unnamed;
    if (oldest !== undefined && this.#unnamed.size >= maxHandshakes) {
      this.#unnamed.delete(oldest);
      this.counters.refusedHandshakes += 1;
      this.#refuse(oldest, proxy, 'headers', 'too many connections of proxies without a header, this was the oldest');
    }
    this.#unnamed.add(raw);
    readProxyHeader(raw, proxyHeaderTimeoutMs).then(
      (client) => {
        if (!this.#unnamed.delete(raw)) return;
        this.#admit(raw, client ?? proxy, client && sourceOf(client.address));
      },
      (error: unknown) => {
        if (!this.#unnamed.delete(raw)) return;
        this.#count(proxy, toVpnError(error));
        raw.resetAndDestroy();
      },
    );
  }

  /** Gives a connection to TLS if the limits allow it. @param over told of one that another listener has accepted */
  #admit(raw: Socket, remote: Endpoint, source: string | undefined, over?: () => void): void {
    if (this.#options.isRefused?.(remote.address) === true) {
      this.counters.refusedBanned += 1;
      this.#refuse(raw, remote, 'banned', 'the source is banned for failed logins');
      return;
    }
    const fromSource = countOf(this.#bySource, source);
    if (fromSource >= (this.#options.maxConnectionsPerSource ?? MAX_CONNECTIONS_PER_SOURCE)) {
      this.counters.refusedSource += 1;
      this.#refuse(raw, remote, 'source', 'too many connections from one source');
      return;
    }
    if (!this.#handshakes.admits(source)) {
      this.counters.refusedSource += 1;
      this.#refuse(raw, remote, 'source', 'too many connections from one source that say nothing');
      return;
    }
    this.counters.accepted += 1;
    setCount(this.#bySource, source, fromSource + 1);
    const timeoutMs = this.#options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS;
    const since = performance.now();
    const connection: Connection = {
      raw,
      source,
      remote,
      begunAt: 0,
      serverId: this.#serverId,
      deadline: undefined,
      over,
      leftMs: timeoutMs,
      isOver: false,
      isSettled: false,
    };
    this.#setDeadline(connection, timeoutMs);
    this.#connections.add(connection);
    this.#handshakes.add(connection);
    raw.once('close', () => {
      // Once TLS has begun it is TLS that reports it, and perhaps later.
      if (connection.begunAt === 0 && !connection.isSettled) {
        this.#count(remote, new VpnError('ERR_PEER_GONE', NOTHING_SAID));
      }
      this.#forget(connection);
    });
    whenFirstRecord(raw, (start) => {
      if (over === undefined && this.#options.handOver?.(raw, start, remote, source !== undefined) === true) {
        this.counters.handedOver += 1;
        this.#settle(connection);
        raw.destroy();
        return;
      }
      clearTimeout(connection.deadline);
      connection.leftMs = Math.max(1, timeoutMs - (performance.now() - since));
      this.#handshakes.wait(connection);
    });
  }

  #setDeadline(connection: Connection, timeoutMs: number): void {
    connection.deadline = setTimeout(() => {
      this.#settle(connection);
      this.#count(connection.remote, new VpnError('ERR_STAGE_TIMEOUT', 'the TLS handshake took too long'));
      connection.raw.destroy();
    }, timeoutMs).unref();
  }

  #begin(connection: Connection): void {
    const { raw } = connection;
    this.#setDeadline(connection, connection.leftMs);
    connection.begunAt = performance.now();
    connection.serverId = this.#serverId;
    this.#known.set(raw, connection);
    this.#tls.emit('connection', raw);
  }

  #displace(connection: Connection): void {
    this.counters.refusedHandshakes += 1;
    this.#settle(connection);
    this.#refuse(connection.raw, connection.remote, 'handshakes', 'it does not go on, and others need its room');
  }

  #refuse(raw: Socket, remote: Endpoint, kind: string, why: string): void {
    // A reset leaves nothing behind at our end, not even TIME_WAIT.
    raw.resetAndDestroy();
    const fields = { peer: remote.address, code: 'ERR_TOO_MANY_CONNECTIONS' satisfies ErrorCode };
    this.#lines.write('warn', kind, `connection refused: ${why}`, fields);
  }

  #forget(connection: Connection): void {
    this.#endHandshake(connection);
    this.#connections.delete(connection);
    setCount(this.#bySource, connection.source, countOf(this.#bySource, connection.source) - 1);
  }

  #settle(connection: Connection): void {
    connection.isSettled = true;
    this.#endHandshake(connection);
  }

  #endHandshake(connection: Connection): void {
    this.#handshakes.delete(connection);
    if (connection.isOver) return;
    connection.isOver = true;
    clearTimeout(connection.deadline);
    connection.over?.();
  }

  #connectionOf(socket: TLSSocket): Connection | undefined {
    // Node keeps the socket it was given in a private field, and offers no other way from the one to the other.
    const raw: unknown = Reflect.get(socket, '_parent');
    return typeof raw === 'object' && raw !== null ? this.#known.get(raw) : undefined;
  }

  #secure(socket: TLSSocket): void {
    const connection = this.#connectionOf(socket);
    if (connection === undefined || !this.#connections.has(connection)) {
      socket.destroy();
      return;
    }
    this.#settle(connection);
    this.handshakeSeconds.observe((performance.now() - connection.begunAt) / 1000);
    // Until somebody takes the socket over, an error must find a listener.
    socket.on('error', ignore);
    const broken = checkHandshake(socket);
    if (broken !== undefined) {
      this.#count(connection.remote, broken);
      socket.destroy();
      return;
    }
    const { alpnProtocol } = socket;
    const hasProtocol = typeof alpnProtocol === 'string' && alpnProtocol !== '';
    const isTunnel = hasProtocol ? isTunnelProtocol(alpnProtocol) : this.#options.greetWithoutAlpn === true;
    const unproven = this.#checkClient(socket);
    if (unproven !== undefined) {
      this.#count(connection.remote, unproven);
      this.#tellRefused(socket, connection, unproven, isTunnel);
      if (isTunnel) this.#reject(socket, connection, unproven);
      else socket.destroy();
    } else if (isTunnel) {
      this.#openChannel(socket, connection);
    } else {
      this.counters.frontDoor += 1;
      this.#frontDoor.open(socket, connection.raw, connection.remote);
    }
  }

  /** A client without the certificate that it needs hears why, and nothing that it sends is looked at. */
  #reject(socket: TLSSocket, connection: Connection, error: VpnError): void {
    const channel = new Channel(socket, { facts: this.#factsOf(socket, connection) });
    channel.sendControl(encodeGreeting());
    channel.close(encodeMessage('reject', { code: rejectCodeOf(error), message: '' }));
  }

  /** Whoever looks at the port with a browser has no certificate, and is no client that was refused. */
  #tellRefused(socket: TLSSocket, connection: Connection, { code, message }: VpnError, isTunnel: boolean): void {
    const { peerCertificate } = this.#factsOf(socket, connection);
    if (peerCertificate === undefined && !isTunnel) return;
    const certificate =
      peerCertificate === undefined
        ? undefined
        : {
            name: peerCertificate.name.slice(0, MAX_NAME),
            issuer: peerCertificate.issuer.replaceAll('\n', ', ').slice(0, MAX_NAME),
            serial: peerCertificate.serial.slice(0, MAX_SERIAL),
          };
    this.#options.onCertificateRefused?.({ remote: connection.remote, code, reason: message, certificate });
  }

  /** OpenSSL has verified the certificate and let the handshake go on: the verdict is ours. */
  #checkClient(socket: TLSSocket): VpnError | undefined {
    if ((this.#options.requireClientAuth ?? false) === false || socket.authorized) return undefined;
    if (socket.getPeerX509Certificate() !== undefined) return certificateError(String(socket.authorizationError));
    if (this.#options.requireClientAuth === 'optional') return undefined;
    return new VpnError('ERR_CERT_REQUIRED', 'this server requires a client certificate, and none was given');
  }

  #openChannel(socket: TLSSocket, connection: Connection): void {
    const { dataQueueBytes, queues } = this.#options;
    const channel = new Channel(socket, { facts: this.#factsOf(socket, connection), dataQueueBytes, queues });
    this.counters.channels += 1;
    try {
      this.#options.onChannel(channel);
    } catch (error) {
      this.#log.error('a new channel could not be taken', { peer: connection.remote.address, error });
      channel.destroy(toVpnError(error));
    }
  }

  #factsOf(socket: TLSSocket, { raw, remote, serverId }: Connection): ChannelFacts {
    const isAnonymous = (this.#options.requireClientAuth ?? false) === false;
    const ends = { local: localEnd(raw), remote, serverId, authorized: socket.authorized, isAnonymous };
    const facts = readFacts(socket, ends);
    const { peerCertificate } = facts;
    const leaf = facts.authorized ? socket.getPeerX509Certificate() : undefined;
    if (leaf === undefined || peerCertificate === undefined) return facts;
    return { ...facts, peerCertificate: { ...peerCertificate, holder: readHolder(leaf.raw) } };
  }

  /** A client knows the secret path: from here on its connection is like any other's. */
  #openTunnel(socket: TLSSocket): void {
    const connection = this.#connectionOf(socket);
    if (connection === undefined) socket.destroy();
    else this.#openChannel(socket, connection);
  }

  #fail(socket: TLSSocket, error: Error): void {
    const connection = this.#connectionOf(socket);
    if (connection?.isSettled !== true) {
      if (connection !== undefined) this.#settle(connection);
      this.#count(connection?.remote, translateTlsError(error, 'ERR_TLS_HANDSHAKE'));
    }
    socket.destroy();
  }

  #count(remote: Endpoint | undefined, error: VpnError): void {
    const { code } = error;
    this.counters.failed[code] = (this.counters.failed[code] ?? 0) + 1;
    this.#lines.write('info', code, `connection failed: ${error.message}`, { peer: remote?.address, code });
  }
}

function countOf(counts: ReadonlyMap<string, number>, source: string | undefined): number {
  return source === undefined ? 0 : (counts.get(source) ?? 0);
}

function setCount(counts: Map<string, number>, source: string | undefined, count: number): void {
  if (source === undefined) return;
  if (count === 0) counts.delete(source);
  else counts.set(source, count);
}

function listenError(cause: unknown, address: string, port: number): VpnError {
  const errno = cause instanceof Error && 'code' in cause ? String(cause.code) : undefined;
  const details = { errno, address, port };
  const where = `listening on ${address} port ${port}`;
  switch (errno) {
    case 'EADDRINUSE':
      return new VpnError(
        'ERR_PORT_TAKEN',
        `${where}: another program has this port; find it with: ss -ltnp 'sport = :${port}'`,
        { cause, details },
      );
    case 'EACCES':
    case 'EPERM':
      return new VpnError(
        'ERR_PRIVILEGE',
        `${where}: permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE`,
        { cause, details },
      );
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
      return new VpnError(
        'ERR_CONFIG_VALUE',
        `${where}: no interface of this machine has this address; see them with: ip address`,
        { cause, details },
      );
    default:
      return new VpnError('ERR_SYSCALL', `${where}: ${errno ?? String(cause)}`, { cause, details });
  }
}

function ignore(): void {}
