/**
 * A program that uses the admin page's API as a browser does: one cookie, the headers that browsers add, a second factor.
 *
 * Hides TLS and HTTP. `raw` sends whatever a test wants.
 */

import type { IncomingHttpHeaders, IncomingMessage } from 'node:http';
import { request } from 'node:https';
import { type Secret, TOTP, URI } from 'otpauth';

export interface Reply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests say what they expect of it
  readonly body: any;
}

export interface RawRequest {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

/** The code of a second factor at a time, milliseconds since the Unix epoch. */
export function codeOf(uri: string, at: number): string {
  const totp = URI.parse(uri) as TOTP;
  return new TOTP({ secret: totp.secret as Secret, digits: 6, period: 30 }).generate({ timestamp: at });
}

export class AdminBrowser {
  readonly #port: number;
  readonly #ca: string;
  readonly #pair: { readonly cert: string; readonly key: string } | undefined;
  cookie: string | undefined;
  csrf = '';

  /** @param pair a client certificate that it shows, PEM */
  constructor(port: number, ca: string, pair?: { readonly cert: string; readonly key: string }) {
    this.#port = port;
    this.#ca = ca;
    this.#pair = pair;
  }

  /** What a page of ours sends. */
  get ownHeaders(): Record<string, string> {
    return {
      'content-type': 'application/json',
      'sec-fetch-site': 'same-origin',
      origin: `https://localhost:${this.#port}`,
      'x-csrf-token': this.csrf,
    };
  }

  open({ method = 'GET', path, headers = {}, body }: RawRequest): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const call = request({
        host: '127.0.0.1',
        servername: 'localhost',
        port: this.#port,
        ca: this.#ca,
        ...this.#pair,
        agent: false,
        method,
        path,
        headers: {
          host: `localhost:${this.#port}`,
          ...(this.cookie === undefined ? {} : { cookie: this.cookie }),
          ...headers,
        },
      });
      call.once('response', resolve);
      call.once('error', reject);
      call.end(body);
    });
  }

  async raw(call: RawRequest): Promise<Reply> {
    const response = await this.open(call);
    const chunks: Buffer[] = [];
    for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString('utf8');
    const isJson = response.headers['content-type'] === 'application/json' && text !== '';
    return {
      status: response.statusCode ?? 0,
      headers: response.headers,
      text,
      body: isJson ? JSON.parse(text) : undefined,
    };
  }

  /** As the page posts; keeps the cookie and the token of a login. */
  async post(path: string, value: unknown, headers: Record<string, string> = {}): Promise<Reply> {
    const reply = await this.raw({
      method: 'POST',
      path,
      headers: { ...this.ownHeaders, ...headers },
      body: JSON.stringify(value),
    });
    const [cookie] = reply.headers['set-cookie'] ?? [];
    if (cookie !== undefined) this.cookie = cookie.split(';')[0];
    if (reply.body?.csrf !== undefined) this.csrf = reply.body.csrf;
    return reply;
  }

  async call(operation: string, input: unknown = {}, headers: Record<string, string> = {}): Promise<Reply> {
    return await this.post(`/api/v1/${operation}`, input, headers);
  }
}
