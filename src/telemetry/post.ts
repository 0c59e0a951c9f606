/**
 * Posts a body to a collector or a webhook: one request, bounded in time and in what is read of the answer.
 *
 * Hides connections, certificates and what a server can do to whoever asks it: one that never answers costs a socket until the
 * time is up, one that answers for ever is cut off, and one that sends elsewhere is not followed.
 */

import http from 'node:http';
import https from 'node:https';
import { toVpnError, VpnError } from '../base/errors.ts';

/** Of an answer nobody needs more than the beginning. */
const MAX_ANSWER_BYTES = 1024;

export interface PostTarget {
  readonly url: string;
  /** PEM, in place of the authorities of this machine. */
  readonly ca?: string | undefined;
  readonly timeoutMs: number;
}

export interface PostAnswer {
  readonly status: number;
  /** The server asks to be left alone for so long. */
  readonly retryAfterMs: number | undefined;
  /** The beginning, for people. */
  readonly text: string;
}

/** Keeps a connection between requests. Dispose of it after use. */
export class Poster implements Disposable {
  readonly #url: URL;
  readonly #timeoutMs: number;
  readonly #agent: http.Agent;

  constructor({ url, ca, timeoutMs }: PostTarget) {
    this.#url = new URL(url);
    this.#timeoutMs = timeoutMs;
    const settings = { keepAlive: true, maxSockets: 2, maxFreeSockets: 1 };
    this.#agent =
      this.#url.protocol === 'https:'
        ? new https.Agent({ ...settings, ...(ca === undefined ? {} : { ca }) })
        : new http.Agent(settings);
  }

  /**
   * Resolves with the answer, whatever its status.
   *
   * @throws {VpnError} ERR_BACKEND when there is none in time, or `signal` is aborted
   */
  async post(
    body: string,
    headers: Readonly<Record<string, string>>,
    { path = '', signal }: { path?: string; signal?: AbortSignal } = {},
  ): Promise<PostAnswer> {
    const url = path === '' ? this.#url : new URL(`${this.#url.href.replace(/\/+$/, '')}${path}`);
    const late = AbortSignal.timeout(this.#timeoutMs);
    try {
      return await this.#send(url, body, headers, signal === undefined ? late : AbortSignal.any([late, signal]));
    } catch (cause) {
      const why = late.aborted ? `no answer within ${this.#timeoutMs / 1000} s` : toVpnError(cause).message;
      throw new VpnError('ERR_BACKEND', `posting to ${url.host} failed: ${why}`, { cause });
    }
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }

  #send(url: URL, body: string, headers: Readonly<Record<string, string>>, signal: AbortSignal): Promise<PostAnswer> {
    const { request } = url.protocol === 'https:' ? https : http;
    const bytes = Buffer.from(body);
    const { promise, resolve, reject } = Promise.withResolvers<PostAnswer>();
    const sent = request(url, {
      method: 'POST',
      agent: this.#agent,
      signal,
      headers: { 'content-type': 'application/json', 'content-length': bytes.length, ...headers },
    });
    sent.once('error', reject);
    sent.once('response', (response) => {
      const chunks: Buffer[] = [];
      let length = 0;
      const answer = (): void =>
        resolve({
          status: response.statusCode ?? 0,
          retryAfterMs: retryAfterOf(response.headers['retry-after']),
          text: Buffer.concat(chunks).toString('utf8', 0, MAX_ANSWER_BYTES),
        });
      response.once('error', reject);
      response.once('end', answer);
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk);
        length += chunk.length;
        if (length <= MAX_ANSWER_BYTES) return;
        answer();
        response.destroy();
      });
    });
    sent.end(bytes);
    return promise;
  }
}

/** Seconds; a date, which would need the other's clock, is not heard. */
function retryAfterOf(value: string | undefined): number | undefined {
  return value !== undefined && /^\d{1,6}$/.test(value) ? Number(value) * 1000 : undefined;
}
