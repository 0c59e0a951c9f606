/**
 * What a client asks of a gateway that is its proxy, whichever HTTP it came by.
 *
 * Hides nothing but names: the front door makes these values out of HTTP/1.1 and HTTP/2, and who answers them sees no HTTP.
 *
 * @see docs/protocol.md §15
 */

import type { IncomingHttpHeaders } from 'node:http';
import type { Duplex } from 'node:stream';
import type { StreamRefusalName } from '../protocol/stream-frame.ts';
import type { Endpoint } from './endpoint.ts';
import type { SpliceEnd } from './splice.ts';

/** The connection that requests come by. */
export interface ProxyConnection {
  /** Of the client. */
  readonly remote: Endpoint;
  /** Keying material of the connection, 32 bytes; see `Channel.exporter`. */
  exporter(label: string, context: Uint8Array): Uint8Array;
  /** Its client has proven who it is: it may stay, and use it to the full. */
  admit(streams: number): void;
  /** Called once, when it is gone; also when it is gone already. */
  onClosed(told: () => void): void;
  /** Ends it when the answers that were given are out; nothing more is asked on it. */
  end(): void;
  /** Ends it, and every stream on it. Idempotent. */
  destroy(): void;
}

/** Where a stream is to go; a name or an address, as the client gave it. */
export interface StreamTarget {
  readonly host: string;
  readonly port: number;
}

/** Why there is no stream: names of RFC 9209 §2.3, and the HTTP status that goes with each. */
export const STREAM_REFUSALS = {
  http_request_denied: 403,
  destination_ip_prohibited: 403,
  connection_limit_reached: 503,
  dns_error: 502,
  dns_timeout: 504,
  connection_refused: 502,
  destination_ip_unroutable: 502,
  connection_timeout: 504,
  proxy_internal_error: 500,
} as const satisfies Record<StreamRefusalName, number>;
export type StreamRefusal = keyof typeof STREAM_REFUSALS;

/** A plain HTTP request for another server. */
export interface PlainRequest {
  readonly method: string;
  /** Path and query. */
  readonly path: string;
  /** Host and port as the client gave them. */
  readonly authority: string;
  readonly headers: IncomingHttpHeaders;
}

interface Request {
  readonly connection: ProxyConnection;
  /** The field `Proxy-Authorization`. */
  readonly authorization: string | undefined;
  /** Called once when the client gives the request up before it is answered. */
  onGone: () => void;
  /** 407: who are you? */
  challenge(): void;
}

/** A stream to a server: bytes of TCP, or capsules with UDP datagrams. */
export interface StreamRequest extends Request {
  readonly kind: 'tcp' | 'udp';
  readonly target: StreamTarget;
  /** There is a connection: its end of the stream, whose errors and ends are the taker's business from now on. */
  accept(): ProxyStream;
  refuse(why: StreamRefusal): void;
}

/** An HTTP request that is to be sent on. */
export interface ForwardRequest extends Request {
  readonly kind: 'http';
  readonly target: StreamTarget;
  readonly plain: PlainRequest;
  /** Sends it over this connection, which it takes over, and the answer back. */
  forward(upstream: Duplex): void;
  refuse(why: StreamRefusal): void;
}

/** A connection that is to be bound to a session. */
export interface BindRequest extends Request {
  readonly kind: 'bind';
  /** @param info the field `Proxy-Authentication-Info` */
  accept(info: string): void;
  /** The answer that everybody gets who is not known here. */
  refuse(): void;
}

export type ProxyRequest = StreamRequest | ForwardRequest | BindRequest;

/** One stream's end at the client's side; its reset is RST_STREAM CONNECT_ERROR, or a TCP reset. */
export type ProxyStream = SpliceEnd;

/** Opens streams for whoever wants one. */
export interface StreamSource {
  open(kind: 'tcp' | 'udp', target: StreamTarget): Promise<ProxyStream>;
}

/**
 * Host and port of an authority: a name, an IPv4 address, or an IPv6 address in brackets. Without a port `defaultPort` is
 * taken; without that either the authority is none.
 */
export function parseTarget(text: string, defaultPort?: number): StreamTarget | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]{2,45})\]|([A-Za-z0-9._-]{1,255}))(?::(\d{1,5}))?$/.exec(text);
  const host = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? defaultPort : Number(match[3]);
  if (host === undefined || port === undefined || port < 1 || port > 65_535) return undefined;
  return { host, port };
}
