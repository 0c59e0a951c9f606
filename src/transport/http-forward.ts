/**
 * Sends a plain HTTP request on, as a proxy does (RFC 9110 §7.6), and the answer back.
 *
 * Hides which fields concern one connection only. What goes on is written anew from what was parsed: what two parsers could
 * read differently does not reach the server. One request, one connection. It must not know where either end is.
 */

import { type IncomingHttpHeaders, type OutgoingHttpHeaders, request as sendRequest } from 'node:http';
import type { Duplex, Readable, Writable } from 'node:stream';
import type { PlainRequest } from './stream-request.ts';

/** RFC 9110 §7.6.1, and what is between client and proxy only. */
const OF_CONNECTION = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'http2-settings',
  'expect',
  'host',
]);
const MAX_HEADER_BYTES = 65_536;

/** The head of an answer. */
export interface PlainAnswer {
  readonly status: number;
  readonly message: string;
  readonly headers: OutgoingHttpHeaders;
}

/** Where the answer goes. */
export interface Asker {
  /** Sends the head; the body goes where it says. */
  respond(answer: PlainAnswer): Writable;
  /** There is no answer, or no more of it. */
  fail(): void;
}

/** Sends a request with this body over `upstream`, which it takes over and closes. */
export function forwardHttp(plain: PlainRequest, body: Readable, upstream: Duplex, asker: Asker): void {
  let isOver = false;
  const fail = (): void => {
    if (isOver) return;
    isOver = true;
    upstream.destroy();
    asker.fail();
  };
  const headers = endToEnd(plain.headers);
  const hasBody = 'content-length' in plain.headers || 'transfer-encoding' in plain.headers;
  const request = sendRequest({
    createConnection: () => upstream,
    method: plain.method,
    path: plain.path,
    headers: {
      ...headers,
      host: plain.authority,
      via: '1.1 proxy',
      connection: 'close',
      ...(hasBody && !('content-length' in headers) ? { 'transfer-encoding': 'chunked' } : {}),
    },
    maxHeaderSize: MAX_HEADER_BYTES,
    setHost: false,
  });
  request.on('error', fail);
  upstream.on('error', fail);
  request.on('response', (response) => {
    const { statusCode: status = 502, statusMessage: message = '' } = response;
    const sink = asker.respond({ status, message, headers: endToEnd(response.headers) });
    response.on('error', fail);
    response.on('aborted', fail);
    sink.on('error', fail);
    sink.once('close', () => {
      if (response.complete) isOver = true;
      else fail();
      upstream.destroy();
    });
    response.pipe(sink);
  });
  body.on('error', fail);
  body.on('aborted', fail);
  if (hasBody) {
    body.pipe(request);
  } else {
    request.end();
    body.resume();
  }
}

/** Without the fields of one connection: those that always are, and those that `Connection` names. */
function endToEnd(headers: IncomingHttpHeaders): OutgoingHttpHeaders {
  const named = new Set((headers.connection ?? '').split(',').map((name) => name.trim().toLowerCase()));
  return Object.fromEntries(
    Object.entries(headers).filter(
      ([name, value]) => value !== undefined && !OF_CONNECTION.has(name) && !named.has(name),
    ),
  );
}
