/**
 * One request to the admin page and its answer: bodies with bounds, cookies, where a request comes from, headers of answers.
 *
 * Hides what a browser needs to be told so that no other page can use, frame or script this one. It must not know who is
 * logged in, nor what is asked for.
 */

import type { IncomingMessage, ServerResponse } from 'node:http';
import { type ErrorCode, VpnError } from '../../base/errors.ts';

/** `__Host-`: only over TLS, only for this host, for all of it. */
export const COOKIE = '__Host-customvpn';

/** Goes to a provider and back: the only one that a link from elsewhere brings along. */
const VISIT_COOKIE = '__Host-customvpn-visit';
const VISIT_SECONDS = 600;

/** What nobody may do but our own files: no inline script or style, no frame, no other host. */
export const CONTENT_SECURITY_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "form-action 'self'",
  "base-uri 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
].join('; ');

const HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy': CONTENT_SECURITY_POLICY,
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'permissions-policy':
    'camera=(), geolocation=(), microphone=(), payment=(), usb=(), publickey-credentials-create=(self), publickey-credentials-get=(self)',
};

const STATUS: Partial<Readonly<Record<ErrorCode, number>>> = {
  ERR_AUTH_NEEDED: 401,
  ERR_AUTH_REJECTED: 401,
  ERR_PRIVILEGE: 403,
  ERR_NOT_FOUND: 404,
  ERR_CONFLICT: 409,
  ERR_BUSY: 429,
};

/** The HTTP status that an error is answered with. */
export function statusOf({ code, kind, details }: VpnError): number {
  if (typeof details.httpStatus === 'number') return details.httpStatus;
  return STATUS[code] ?? (kind === 'internal' ? 500 : 400);
}

/** Sends an answer as a whole. */
export function send(
  response: ServerResponse,
  status: number,
  body: string | Uint8Array,
  headers: Readonly<Record<string, string | readonly string[]>> = {},
): void {
  response.writeHead(status, {
    ...HEADERS,
    'cache-control': 'no-store',
    'content-length': String(Buffer.byteLength(body)),
    ...(headers as Record<string, string | string[]>),
  });
  response.end(response.req.method === 'HEAD' ? undefined : body);
}

export function sendJson(
  response: ServerResponse,
  status: number,
  value: unknown,
  headers: Readonly<Record<string, string | readonly string[]>> = {},
): void {
  send(response, status, JSON.stringify(value ?? {}), { 'content-type': 'application/json', ...headers });
}

/** Sends a browser elsewhere. */
export function redirect(response: ServerResponse, url: string, cookies: readonly string[]): void {
  send(response, 303, '', { location: url, 'set-cookie': cookies });
}

/** Begins an answer that goes on (text/event-stream). */
export function beginStream(response: ServerResponse): void {
  response.writeHead(200, { ...HEADERS, 'cache-control': 'no-store', 'content-type': 'text/event-stream' });
  response.flushHeaders();
}

/** The secret of our cookie; undefined when there is none. */
export function cookieOf(request: IncomingMessage): string | undefined {
  return cookieValue(request, COOKIE);
}

/** The secret of somebody who has been to a provider; undefined when there is none. */
export function visitOf(request: IncomingMessage): string | undefined {
  return cookieValue(request, VISIT_COOKIE);
}

/** What sets it; without a secret: what removes it. */
export function setVisit(secret: string | undefined): string {
  const attributes = 'Path=/; Secure; HttpOnly; SameSite=Lax';
  return `${VISIT_COOKIE}=${secret ?? ''}; Max-Age=${secret === undefined ? 0 : VISIT_SECONDS}; ${attributes}`;
}

function cookieValue({ headers }: IncomingMessage, wanted: string): string | undefined {
  for (const part of (headers.cookie ?? '').split(';')) {
    const [name, value] = part.trim().split('=', 2);
    if (name === wanted) return value;
  }
  return undefined;
}

/** What sets our cookie; without a secret: what removes it. No end: it goes with the browser. */
export function setCookie(secret: string | undefined): string {
  const attributes = 'Path=/; Secure; HttpOnly; SameSite=Strict';
  return secret === undefined ? `${COOKIE}=; Max-Age=0; ${attributes}` : `${COOKIE}=${secret}; ${attributes}`;
}

/** The access token of a program; undefined when there is none. */
export function bearerOf({ headers }: IncomingMessage): Uint8Array | undefined {
  const [, token] = /^Bearer ([A-Za-z0-9_-]{1,128})$/.exec(headers.authorization ?? '') ?? [];
  return token === undefined ? undefined : Buffer.from(token, 'base64url');
}

/**
 * Refuses what another site has a browser send: browsers say where a request comes from, and a page cannot change that.
 *
 * @throws {VpnError} ERR_PRIVILEGE
 */
export function checkOrigin({ headers }: IncomingMessage): void {
  const site = headers['sec-fetch-site'];
  const isOurs = site === undefined || site === 'same-origin';
  const { origin, host } = headers;
  const isSame = origin === undefined ? site === 'same-origin' : origin === `https://${host ?? ''}`;
  if (isOurs && isSame) return;
  throw new VpnError('ERR_PRIVILEGE', 'a change was expected from the page itself, and came from elsewhere');
}

/**
 * What a person's browser is to be led to comes from our own page, or from the person; a browser that says nothing is believed.
 *
 * @throws {VpnError} ERR_PRIVILEGE
 */
export function checkVisitor({ headers }: IncomingMessage): void {
  const site = headers['sec-fetch-site'];
  if (site === undefined || site === 'same-origin' || site === 'none') return;
  throw new VpnError('ERR_PRIVILEGE', 'a login begins at the page itself, and another site led here; open the page');
}

/**
 * The body as JSON.
 *
 * @throws {VpnError} ERR_BAD_REQUEST when it is none, of another type, or longer
 */
export async function readJson(request: IncomingMessage, maxBytes: number): Promise<unknown> {
  // A form of another site can send text, but not this type.
  if (!/^application\/json(?:\s*;|$)/i.test(request.headers['content-type'] ?? '')) {
    throw new VpnError('ERR_BAD_REQUEST', 'a body of type application/json was expected', {
      details: { httpStatus: 415 },
    });
  }
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > maxBytes) {
      throw new VpnError('ERR_BAD_REQUEST', `a body of at most ${maxBytes} bytes was expected`, {
        details: { httpStatus: 413 },
      });
    }
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch {
    throw new VpnError('ERR_BAD_REQUEST', 'a JSON body was expected');
  }
}

/** The fields after the question mark, as the input of an operation: numbers and booleans where they look like it. */
export function queryInput(query: string): Record<string, unknown> {
  const input: Record<string, unknown> = {};
  for (const [name, value] of new URLSearchParams(query)) {
    Object.defineProperty(input, name, { value, enumerable: true, configurable: true, writable: true });
  }
  const { limit } = input;
  if (typeof limit === 'string' && /^\d{1,6}$/.test(limit)) input.limit = Number(limit);
  return input;
}
