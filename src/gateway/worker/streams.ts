/**
 * The streams of those who use the gateway as their proxy.
 *
 * Hides who has proven what on which connection, and what may be open at once. It decides nothing about access: auth says
 * who somebody is, and the port that dials says where they may go. Bytes are joined by `transport/splice`, so that what a
 * slow end does not take is not read from the other, and keep the rates of their user (`shaping`). One coarse tick serves
 * all streams.
 */

import type { Socket as DatagramSocket } from 'node:dgram';
import type { Socket } from 'node:net';
import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import { CapsuleDecoder, encodeUdp } from '../../protocol/capsule.ts';
import { EXPORTER_LABEL_PREFIX } from '../../protocol/keys.ts';
import { parseProxyCredential } from '../../protocol/proxy-binding.ts';
import { LogLimit } from '../../transport/log-limit.ts';
import { resetSocket, splice } from '../../transport/splice.ts';
import { type PacedFlow, PacedSocket, StreamPace } from '../../transport/stream-pace.ts';
import type {
  BindRequest,
  ForwardRequest,
  ProxyConnection,
  ProxyRequest,
  StreamRefusal,
  StreamRequest,
} from '../../transport/stream-request.ts';
import type { GatewayConfig } from '../config.ts';
import type {
  Dialled,
  DialPort,
  DialVerdict,
  ProxyGrant,
  ProxyKey,
  ProxyPort,
  ProxyProof,
  ProxyWorkerPort,
} from '../ipc/ports.ts';
import type { RatedStream } from './shaping.ts';

const TICK_MS = 1000;
/** Wrong credentials on one connection. */
const MAX_FAILURES = 3;
/** Datagrams for a client that does not read are dropped beyond this. */
const MAX_UDP_QUEUE_BYTES = 256 * 1024;
/** The same of all clients together. */
const MAX_UDP_QUEUES_BYTES = 64 * 1024 * 1024;
const NO_TOKEN = new Uint8Array(0);

export interface StreamsOptions {
  readonly config: GatewayConfig;
  readonly auth: ProxyPort;
  readonly dialler: DialPort;
  readonly rates: StreamRates;
  readonly clock: Clock;
  readonly log: Logger;
}

/** What is told of each stream, so that it keeps its user's rates and is counted. */
export interface StreamRates {
  streamOpened(stream: RatedStream): void;
  /** Idempotent. */
  streamClosed(stream: RatedStream): void;
}

/** Plain integers, read at scrape. */
export interface StreamCounters {
  opened: number;
  open: number;
  refused: number;
  challenged: number;
  droppedDatagrams: number;
}

/** One connection and what is known of its client. */
interface Admission {
  readonly connection: ProxyConnection;
  /** The field that has been accepted, or is being looked at; undefined: the connection is bound to a session. */
  authorization: string | undefined;
  grant: ProxyGrant | undefined;
  judged: Promise<ProxyGrant | undefined> | undefined;
  failures: number;
  readonly streams: Set<Stream>;
  /** Of streams that are over. */
  readonly past: { sentBytes: number; receivedBytes: number };
  isClosed: boolean;
}

/** One connection to a server. */
interface Stream extends RatedStream {
  readonly kind: 'tcp' | 'udp';
  readonly address: string;
  readonly port: number;
  /** Breaks both ends. */
  cut(): void;
  carried: number;
  carriedAt: number;
}

type Wanted = StreamRequest | ForwardRequest;

export class Streams implements ProxyWorkerPort {
  readonly counters: StreamCounters = {
    opened: 0,
    open: 0,
    refused: 0,
    challenged: 0,
    droppedDatagrams: 0,
  };
  /** Streams that came to nothing, by reason. */
  readonly refusals: Partial<Record<StreamRefusal, number>> = {};
  readonly #options: StreamsOptions;
  readonly #lines: LogLimit;
  readonly #admissions = new Map<ProxyConnection, Admission>();
  readonly #byKey = new Map<ProxyKey, Admission>();
  /** Streams, and those that are being made. */
  readonly #byUser = new Map<string, number>();
  /** Datagrams that wait for clients, as far as their streams have been looked at. */
  #udpQueuedBytes = 0;
  readonly #tick: NodeJS.Timeout;

  constructor(options: StreamsOptions) {
    this.#options = options;
    this.#lines = new LogLimit(options.log.child({ component: 'proxy' }), options.clock);
    this.#tick = setInterval(() => this.#handleTick(), TICK_MS);
    this.#tick.unref();
  }

  /** Answers what a client wants. */
  handle(request: ProxyRequest): void {
    const admission = this.#admissionOf(request.connection);
    if (request.kind === 'bind') this.#bind(request, admission);
    else this.#open(request, admission).catch((error: unknown) => this.#fail(request, error));
  }

  closeProxy(key: ProxyKey): void {
    this.#byKey.get(key)?.connection.destroy();
  }

  recheckStreams(): void {
    for (const [key, { streams }] of this.#byKey) for (const stream of streams) void this.#recheck(key, stream);
  }

  async #recheck(key: ProxyKey, stream: Stream): Promise<void> {
    const { kind, address, port } = stream;
    const isAllowed = await this.#options.dialler.isAllowed(key, kind, address, port).catch(() => false);
    if (!isAllowed) stream.cut();
  }

  /** Ends every connection. */
  stop(): void {
    clearInterval(this.#tick);
    for (const { connection } of [...this.#admissions.values()]) connection.destroy();
  }

  #admissionOf(connection: ProxyConnection): Admission {
    const known = this.#admissions.get(connection);
    if (known !== undefined) return known;
    const admission: Admission = {
      connection,
      authorization: undefined,
      grant: undefined,
      judged: undefined,
      failures: 0,
      streams: new Set(),
      past: { sentBytes: 0, receivedBytes: 0 },
      isClosed: false,
    };
    this.#admissions.set(connection, admission);
    connection.onClosed(() => this.#closed(admission));
    return admission;
  }

  #closed(admission: Admission): void {
    admission.isClosed = true;
    this.#admissions.delete(admission.connection);
    // On HTTP/1.1 the connection is the stream: its end is the splice's to tell.
    const { grant } = admission;
    if (grant === undefined) return;
    // Once it is released nobody counts for its user.
    for (const stream of admission.streams) this.#options.rates.streamClosed(stream);
    this.#report(admission, grant);
    this.#byKey.delete(grant.key);
    this.#options.auth.release(grant.key);
  }

  #bind(request: BindRequest, admission: Admission): void {
    const { connection } = request;
    const claim = parseProxyCredential(request.authorization ?? '');
    if (claim === undefined || admission.grant !== undefined || admission.judged !== undefined) {
      request.refuse();
      return;
    }
    const proof: ProxyProof = { claim, exported: connection.exporter(`${EXPORTER_LABEL_PREFIX}proxy`, claim.session) };
    const binding = this.#options.auth.bind(proof, { remote: textOf(connection) });
    admission.judged = binding;
    binding.then(
      (grant) => {
        if (grant === undefined) {
          admission.judged = undefined;
          this.#failed(admission, 'the proof of a session is wrong');
          request.refuse();
          return;
        }
        this.#admit(admission, grant, undefined);
        if (!admission.isClosed) request.accept(grant.info);
      },
      (error: unknown) => {
        this.#options.log.error('a proxy connection could not be judged', { error });
        connection.destroy();
      },
    );
  }

  async #open(request: Wanted, admission: Admission): Promise<void> {
    const grant = await this.#grantFor(request, admission);
    if (grant === undefined) {
      this.counters.challenged += 1;
      request.challenge();
      return;
    }
    if (admission.isClosed) return;
    const { user } = grant;
    const open = this.#byUser.get(user) ?? 0;
    if (open >= this.#options.config.proxy.streamsPerUser) {
      this.#refuse(request, 'connection_limit_reached');
      return;
    }
    this.#byUser.set(user, open + 1);
    const release = once(() => {
      const left = (this.#byUser.get(user) ?? 1) - 1;
      if (left === 0) this.#byUser.delete(user);
      else this.#byUser.set(user, left);
    });
    let isGone = false;
    request.onGone = () => {
      isGone = true;
    };
    const { key } = grant;
    const { dialler } = this.#options;
    const { target } = request;
    /** Whether somebody still wants it. */
    const isWanted = <S>(verdict: DialVerdict<S>, close: (socket: S) => void): verdict is Dialled<S> => {
      if ('refused' in verdict) this.#refuse(request, verdict.refused);
      else if (isGone || !this.#byKey.has(key)) close(verdict.socket);
      else return true;
      release();
      return false;
    };
    try {
      if (request.kind === 'udp') {
        const verdict = await dialler.dialUdp({ key, kind: 'udp', target });
        if (isWanted(verdict, (socket) => void socket.close()))
          this.#carryUdp(request, admission, grant, verdict, release);
      } else {
        const verdict = await dialler.dialTcp({ key, kind: 'tcp', target });
        if (isWanted(verdict, (socket) => void socket.destroy()))
          this.#carryTcp(request, admission, grant, verdict, release);
      }
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Who asks: known by the connection, or by what the request shows. */
  async #grantFor({ authorization }: Wanted, admission: Admission): Promise<ProxyGrant | undefined> {
    if (admission.grant !== undefined) {
      const isBound = admission.authorization === undefined;
      return isBound || admission.authorization === authorization ? admission.grant : undefined;
    }
    if (authorization === undefined) return undefined;
    if (admission.judged !== undefined) {
      // Others on this connection wait for the one verdict.
      if (admission.authorization !== authorization) return undefined;
      return await admission.judged;
    }
    const { connection } = admission;
    admission.authorization = authorization;
    const judged = this.#options.auth.login(basicCredentials(authorization), { remote: textOf(connection) });
    admission.judged = judged;
    const grant = await judged.finally(() => {
      admission.judged = undefined;
    });
    if (grant === undefined) {
      admission.authorization = undefined;
      this.#failed(admission, 'name or access token is wrong');
      return undefined;
    }
    this.#admit(admission, grant, authorization);
    return grant;
  }

  #admit(admission: Admission, grant: ProxyGrant, authorization: string | undefined): void {
    if (admission.isClosed) {
      this.#options.auth.release(grant.key);
      return;
    }
    admission.grant = grant;
    admission.authorization = authorization;
    this.#byKey.set(grant.key, admission);
    admission.connection.admit(this.#options.config.proxy.streamsPerUser);
  }

  #failed(admission: Admission, reason: string): void {
    admission.failures += 1;
    const peer = textOf(admission.connection);
    this.#lines.write('info', 'proxy', 'proxy login refused', { peer, code: 'ERR_AUTH_REJECTED', reason });
    // A turn later, when it has been answered.
    if (admission.failures >= MAX_FAILURES) setImmediate(() => admission.connection.end());
  }

  #refuse(request: Wanted, why: StreamRefusal): void {
    this.counters.refused += 1;
    this.refusals[why] = (this.refusals[why] ?? 0) + 1;
    request.refuse(why);
  }

  #fail(request: Wanted, error: unknown): void {
    this.#options.log.error('a stream could not be opened', { component: 'proxy', error });
    this.#refuse(request, 'proxy_internal_error');
  }

  #carryTcp(
    request: Wanted,
    admission: Admission,
    grant: ProxyGrant,
    { socket, address }: Dialled<Socket>,
    release: () => void,
  ): void {
    const { port } = request.target;
    const reset = (): void => resetSocket(socket);
    const pace = new StreamPace();
    const stream = this.#begin(admission, grant, {
      kind: 'tcp',
      address,
      port,
      pace,
      bytes: () => ({ receivedBytes: socket.bytesWritten, sentBytes: socket.bytesRead }),
      cut: reset,
    });
    const done = once(() => {
      this.#end(admission, stream);
      release();
    });
    if (request.kind === 'http') {
      socket.once('close', done);
      request.onGone = () => socket.destroy();
      request.forward(new PacedSocket(socket, pace));
      return;
    }
    request.onGone = ignore;
    const end = request.accept();
    if (end.join !== undefined) end.join(socket, done, pace);
    else splice(end, { duplex: new PacedSocket(socket, pace), reset }, done);
  }

  #carryUdp(
    request: StreamRequest,
    admission: Admission,
    grant: ProxyGrant,
    { socket, address }: Dialled<DatagramSocket>,
    release: () => void,
  ): void {
    let sentBytes = 0;
    let receivedBytes = 0;
    request.onGone = ignore;
    const { duplex, reset } = request.accept();
    let queuedBytes = 0;
    /** How much waits for the client is known only by looking. */
    const look = (waiting = duplex.writableLength): void => {
      this.#udpQueuedBytes += waiting - queuedBytes;
      queuedBytes = waiting;
    };
    const pace = new StreamPace();
    const stream = this.#begin(admission, grant, {
      kind: 'udp',
      address,
      port: request.target.port,
      pace,
      bytes: () => {
        look();
        return { receivedBytes, sentBytes };
      },
      cut: reset,
    });
    const done = once(() => {
      socket.close();
      this.#end(admission, stream);
      look(0);
      release();
    });
    // RFC 9298 §3.1: what ICMP says of the server ends the stream.
    socket.on('error', reset);
    const toClient = this.#datagramFlow(pace.down, (payload) => {
      sentBytes += payload.length;
      look();
      const isShort = queuedBytes > 0 && this.#udpQueuedBytes > MAX_UDP_QUEUES_BYTES;
      if (isShort || queuedBytes > MAX_UDP_QUEUE_BYTES) this.counters.droppedDatagrams += 1;
      else if (duplex.writable) duplex.write(encodeUdp(payload));
      look();
    });
    const toServer = this.#datagramFlow(pace.up, (payload) => {
      receivedBytes += payload.length;
      if (socket.getSendQueueSize() > MAX_UDP_QUEUE_BYTES) this.counters.droppedDatagrams += 1;
      else socket.send(payload);
    });
    socket.on('message', toClient);
    const decoder = new CapsuleDecoder(toServer);
    duplex.on('data', (chunk: Uint8Array) => {
      try {
        decoder.push(chunk);
      } catch {
        reset();
      }
    });
    duplex.once('end', () => duplex.end());
    duplex.on('error', ignore);
    duplex.once('close', done);
    if (duplex.closed) done();
  }

  /** @returns takes a datagram, which goes on whole and in time, or is dropped where too many wait already */
  #datagramFlow(flow: PacedFlow, forward: (payload: Uint8Array) => void): (payload: Uint8Array) => void {
    flow.isWhole = true;
    flow.target = { forward, drained: ignore };
    return (payload) => {
      if (!flow.isPaced) forward(payload);
      else if (flow.hasRoom(payload.length)) flow.push(payload);
      else this.counters.droppedDatagrams += 1;
    };
  }

  #begin(admission: Admission, { user }: ProxyGrant, stream: Omit<Stream, 'user' | 'carried' | 'carriedAt'>): Stream {
    const begun: Stream = { ...stream, user, carried: 0, carriedAt: this.#options.clock.now() };
    admission.streams.add(begun);
    this.#options.rates.streamOpened(begun);
    this.counters.opened += 1;
    this.counters.open += 1;
    return begun;
  }

  #end(admission: Admission, stream: Stream): void {
    if (!admission.streams.delete(stream)) return;
    this.#options.rates.streamClosed(stream);
    this.counters.open -= 1;
    const { sentBytes, receivedBytes } = stream.bytes();
    admission.past.sentBytes += sentBytes;
    admission.past.receivedBytes += receivedBytes;
  }

  #handleTick(): void {
    const { clock, config } = this.#options;
    const now = clock.now();
    const { idleSeconds, udpIdleSeconds } = config.proxy;
    for (const admission of this.#admissions.values()) {
      const { grant, streams } = admission;
      if (grant === undefined) continue;
      for (const stream of streams) {
        const { sentBytes, receivedBytes } = stream.bytes();
        const carried = sentBytes + receivedBytes;
        if (carried !== stream.carried) {
          stream.carried = carried;
          stream.carriedAt = now;
        } else if (now - stream.carriedAt > (stream.kind === 'udp' ? udpIdleSeconds : idleSeconds) * 1000) stream.cut();
      }
      this.#report(admission, grant);
    }
  }

  #report({ streams, past }: Admission, { key }: ProxyGrant): void {
    let { sentBytes, receivedBytes } = past;
    for (const stream of streams) {
      const bytes = stream.bytes();
      sentBytes += bytes.sentBytes;
      receivedBytes += bytes.receivedBytes;
    }
    this.#options.auth.traffic(key, { streams: streams.size, sentBytes, receivedBytes });
  }
}

/** RFC 7617. What is none is judged as a wrong one. */
function basicCredentials(field: string): { user: string; token: Uint8Array } {
  const encoded = /^basic +([A-Za-z0-9+/=_-]{1,1024})$/i.exec(field)?.[1] ?? '';
  const text = Buffer.from(encoded, 'base64').toString('utf8');
  const colon = text.indexOf(':');
  if (colon < 0) return { user: '', token: NO_TOKEN };
  return { user: text.slice(0, colon), token: Buffer.from(text.slice(colon + 1), 'base64url') };
}

function textOf({ remote: { address, port } }: ProxyConnection): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

function once(call: () => void): () => void {
  let isDone = false;
  return () => {
    if (isDone) return;
    isDone = true;
    call();
  };
}

function ignore(): void {}
