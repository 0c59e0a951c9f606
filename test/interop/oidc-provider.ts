/**
 * A real OpenID Connect provider (`oidc-provider`) on loopback over HTTPS, and the browser of a person who uses it.
 *
 * Hides the provider's pages. A test may bend what the provider answers, to see what the gateway makes of it.
 */

import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, request, type Server } from 'node:https';
import type { Socket } from 'node:net';
import Provider from 'oidc-provider';
import type { TestAuthority } from '../support/certificates.ts';

export const CLIENT = { id: 'customvpn', secret: 'a-secret-of-the-client' };
const KEY_ID = 'signing';

export interface Person {
  /** Subject. */
  readonly id: string;
  readonly claims: Readonly<Record<string, unknown>>;
}

/** Changes what the provider answers to a path, the parsed body of it. */
export type Bend = (body: Record<string, unknown>, provider: TestProvider) => unknown;

export class TestProvider implements AsyncDisposable {
  readonly issuer: string;
  readonly people = new Map<string, Person>();
  /** By path, such as `/token`. */
  readonly bends = new Map<string, Bend>();
  /** How often each path was asked. */
  readonly asked = new Map<string, number>();
  /** Takes the place of the provider: for one that stalls or talks nonsense. */
  replacement: ((request: IncomingMessage, response: ServerResponse) => void) | undefined;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #authority: TestAuthority;
  readonly #key = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;

  static async start(authority: TestAuthority, options: { clientSecret?: boolean; codeSeconds?: number } = {}) {
    const leaf = await authority.server();
    const server = createServer({ cert: leaf.cert, key: leaf.key });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new TestProvider(server, authority, options);
  }

  private constructor(
    server: Server,
    authority: TestAuthority,
    options: { clientSecret?: boolean; codeSeconds?: number },
  ) {
    this.#server = server;
    this.#authority = authority;
    const address = server.address();
    this.issuer = `https://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`;
    const provider = new Provider(this.issuer, {
      clients: [
        {
          client_id: CLIENT.id,
          grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token', 'authorization_code'],
          response_types: ['code'],
          redirect_uris: ['https://localhost/api/login/back'],
          ...(options.clientSecret === false
            ? { token_endpoint_auth_method: 'none' }
            : { client_secret: CLIENT.secret, token_endpoint_auth_method: 'client_secret_basic' }),
        },
      ],
      jwks: { keys: [{ ...this.#key.export({ format: 'jwk' }), kid: KEY_ID, alg: 'RS256', use: 'sig' }] },
      cookies: { keys: ['only for tests'] },
      claims: {
        openid: ['sub'],
        profile: ['preferred_username', 'groups'],
        email: ['email', 'email_verified'],
      },
      features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
      // As most providers do for a page: without asking the person once more.
      issueRefreshToken: async (
        _: unknown,
        client: { grantTypeAllowed(type: string): boolean },
        code: { readonly kind: string; readonly scopes: ReadonlySet<string> },
      ) =>
        client.grantTypeAllowed('refresh_token') &&
        (code.kind === 'AuthorizationCode' || code.scopes.has('offline_access')),
      ttl: {
        DeviceCode: options.codeSeconds ?? 600,
        AccessToken: 600,
        IdToken: 600,
        RefreshToken: 86_400,
        Session: 600,
        Grant: 86_400,
        Interaction: 600,
      },
      findAccount: async (_context: unknown, id: string) => {
        const person = this.people.get(id);
        return person && { accountId: person.id, claims: async () => ({ sub: person.id, ...person.claims }) };
      },
    });
    // A page under test has a port of its own.
    provider.Client.prototype.redirectUriAllowed = (uri: string) =>
      /^https:\/\/(?:localhost|127\.0\.0\.1):\d+\/api\/login\/back$/.test(uri);
    provider.use(async (context, next) => {
      this.asked.set(context.path, (this.asked.get(context.path) ?? 0) + 1);
      await next();
      // The provider leaves the interval at five seconds; a test need not wait for them.
      if (context.path === '/device/auth' && isObject(context.body)) context.body.interval ??= 0.05;
      const bend = this.bends.get(context.path);
      if (bend !== undefined && isObject(context.body)) context.body = bend(context.body, this);
    });
    const callback = provider.callback();
    server.on('request', (incoming, response) => (this.replacement ?? callback)(incoming, response));
    server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
  }

  /** The claims of an ID token with some changed, signed again; `key` is the provider's own unless given. */
  resigned(token: unknown, changes: Record<string, unknown>, key = this.#key): string {
    const [, payload = ''] = String(token).split('.');
    const claims = { ...JSON.parse(Buffer.from(payload, 'base64url').toString()), ...changes };
    const text = [{ alg: 'RS256', kid: KEY_ID }, claims]
      .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
      .join('.');
    return `${text}.${sign('sha256', Buffer.from(text), key).toString('base64url')}`;
  }

  /** Another key under the same name. */
  strangeKey(): KeyObject {
    return generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
  }

  browser(): Browser {
    return new Browser(this.#authority.cert);
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }
}

interface Page {
  readonly url: string;
  readonly status: number;
  readonly text: string;
}

/** Follows redirects, keeps cookies and sends forms. */
export class Browser {
  readonly #ca: string;
  readonly #cookies = new Map<string, string>();
  /** Where it does not follow to. */
  #stopAt: string | undefined;

  constructor(ca: string) {
    this.#ca = ca;
  }

  /** Logs in as a person on the page that a device shows, and says yes, or no at the first question. */
  async approve(url: string, person: string, says: 'yes' | 'no' = 'yes'): Promise<Page> {
    const entered = await this.#submit(await this.#load(url));
    const confirmed = await this.#submit(entered, says === 'yes' ? {} : { abort: 'yes' });
    if (says === 'no') return confirmed;
    const consent = await this.#submit(confirmed, { login: person, password: 'x' });
    return await this.#submit(consent);
  }

  /** Logs in as a person on the page that a page of ours has sent us to; where that would send us back to. */
  async comeBack(url: string, person: string, back: string, says: 'yes' | 'no' = 'yes'): Promise<URL> {
    this.#stopAt = back;
    const entered = await this.#load(url);
    if (says === 'no') {
      const abort = /href="([^"]+\/abort)"/.exec(entered.text)?.[1] ?? '';
      return new URL((await this.#load(new URL(abort, entered.url).href)).url);
    }
    const consent = await this.#submit(entered, { login: person, password: 'x' });
    return new URL((await this.#submit(consent)).url);
  }

  #submit(page: Page, values: Record<string, string> = {}): Promise<Page> {
    const action = /<form[^>]* action="([^"]+)"/.exec(page.text)?.[1];
    if (action === undefined) throw new Error(`no form on ${page.url}: ${page.status} ${page.text.slice(0, 400)}`);
    const inputs = [...page.text.matchAll(/<input[^>]*>/g)].map(([input]) => [
      /name="([^"]+)"/.exec(input)?.[1] ?? '',
      /value="([^"]*)"/.exec(input)?.[1] ?? '',
    ]);
    const form = new URLSearchParams({ ...Object.fromEntries(inputs), ...values });
    return this.#load(new URL(action, page.url).href, form.toString());
  }

  async #load(url: string, form?: string): Promise<Page> {
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const headers = {
      cookie: [...this.#cookies].map((pair) => pair.join('=')).join('; '),
      ...(form === undefined ? {} : { 'content-type': 'application/x-www-form-urlencoded' }),
    };
    request(url, { method: form === undefined ? 'GET' : 'POST', headers, ca: this.#ca, agent: false })
      .on('response', resolve)
      .on('error', reject)
      .end(form);
    const response = await promise;
    for (const cookie of response.headers['set-cookie'] ?? []) {
      const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(cookie) ?? [];
      if (value === '') this.#cookies.delete(name);
      else this.#cookies.set(name, value);
    }
    const text = (await response.toArray()).join('');
    const { location } = response.headers;
    if (location !== undefined && this.#stopAt !== undefined && location.startsWith(this.#stopAt)) {
      return { url: location, status: response.statusCode ?? 0, text };
    }
    if (location !== undefined) return await this.#load(new URL(location, url).href);
    return { url, status: response.statusCode ?? 0, text };
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Buffer.isBuffer(value);
}
