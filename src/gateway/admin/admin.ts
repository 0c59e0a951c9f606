/**
 * The admin page and its API on an HTTPS port of its own.
 *
 * Hides the way from a request to an operation: bounds before anybody is known, the logins, cookies and tokens, requests that
 * another site has a browser send, and the set-up of the first administrator. There are a handful of fixed paths and no file
 * system behind them.
 */

import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { z } from 'zod';
import type { Clock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { API_PREFIX, openApiDocument } from '../../control/openapi.ts';
import type { GatewayApi, Role } from '../../control/operations.ts';
import type { Operator, Operators } from '../../identity/operators.ts';
import { AuditEvent, actingFor } from '../../store/audit.ts';
import { remoteEnd, sourceOf } from '../../transport/endpoint.ts';
import { passkeyInfo } from '../administration.ts';
import type { AdminDesk } from '../auth/operations.ts';
import { type GatewayConfig, parseEndpoint, roleOf } from '../config.ts';
import type { GatewayState } from '../state.ts';
import { type Caller, Calls } from './calls.ts';
import { Entrances, keyOf, type PageCertificates, type PageProvider, type ShownCertificate } from './entrances.ts';
import { EventFeed, TOPICS } from './events.ts';
import {
  bearerOf,
  checkOrigin,
  checkVisitor,
  cookieOf,
  queryInput,
  readJson,
  redirect,
  send,
  sendJson,
  setCookie,
  setVisit,
  statusOf,
  visitOf,
} from './exchange.ts';
import type { PageFiles } from './files.ts';
import { AdminLogins, type AdminSession, type CertificateKey } from './logins.ts';
import { Rate } from './rate.ts';

const MAX_CONNECTIONS = 512;
const CONNECTIONS_PER_SOURCE = 64;
const STRANGER_BODY_BYTES = 8 * 1024;
const BODY_BYTES = 1 << 20;
const STOP_MS = 1000;

const loginBody = z.strictObject({
  user: z.string().max(256),
  password: z.string().max(4096),
  code: z.string().max(64),
});
const secret = z.string().min(1).max(128);
const linkBody = z.strictObject({ token: secret });
const accountBody = z.strictObject({
  token: secret,
  name: z.string().min(1).max(128),
  password: z.string().max(4096),
});
const finishBody = z.strictObject({ token: secret, code: z.string().max(64) });
const nothing = z.strictObject({});
const bytes = z
  .string()
  .max(4096)
  .regex(/^[A-Za-z0-9_-]+$/, 'expected base64url')
  .transform((text): Uint8Array => Buffer.from(text, 'base64url'));
const madePasskey = z.strictObject({
  name: z.string().min(1).max(128),
  clientData: bytes,
  authenticatorData: bytes,
  publicKey: bytes,
});
const usedPasskey = z.strictObject({ id: bytes, clientData: bytes, authenticatorData: bytes, signature: bytes });
const whichPasskey = z.strictObject({ id: z.string().max(64) });
/** Where a provider sends browsers back to. */
const BACK_PATH = '/api/login/back';

export interface AdminPageParts {
  readonly state: GatewayState;
  readonly api: GatewayApi;
  readonly config: () => GatewayConfig;
  readonly version: string;
  readonly files: PageFiles;
  /** PEM. */
  readonly credentials: { readonly cert: string; readonly key: string };
  /** Where people log in elsewhere. */
  readonly provider: () => PageProvider | undefined;
  /** Undefined: browsers are not asked for a certificate. */
  readonly certificates: PageCertificates | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Somebody who has shown who they are. */
interface Known extends Caller {
  /** Undefined for a program with a token. */
  readonly session: AdminSession | undefined;
}

export class AdminPage implements AdminDesk {
  readonly #parts: AdminPageParts;
  readonly #log: Logger;
  readonly #operators: Operators;
  readonly #logins: AdminLogins;
  readonly #entrances: Entrances;
  readonly #calls: Calls;
  readonly #feed: EventFeed;
  readonly #server: Server;
  readonly #strangers: Rate;
  readonly #known: Rate;
  readonly #connections = new Map<string, number>();

  constructor(parts: AdminPageParts) {
    const { state, api, config, clock, credentials, certificates } = parts;
    this.#parts = parts;
    this.#log = parts.log.child({ component: 'admin' });
    this.#operators = state.operators;
    const { idleSeconds, absoluteSeconds } = config().admin;
    this.#logins = new AdminLogins({ clock, idleSeconds, absoluteSeconds });
    this.#entrances = new Entrances({
      operators: state.operators,
      passkeys: state.passkeys,
      provider: parts.provider,
      certificates,
      hasPasskeys: config().admin.passkeys,
      names: () => namesOfPage(config()),
      mayEnter: (groups) => roleOf(groups, config().admin) !== undefined,
      clock,
    });
    this.#calls = new Calls({
      api,
      audit: state.audit,
      roleOfUser: async (name) => roleOf(await this.#operators.groupsOf(name), config().admin),
      roleOfGroups: (groups) => roleOf(groups, config().admin),
    });
    this.#feed = new EventFeed({
      source: {
        sessions: () => api['session.list']({}),
        records: (after, limit) => api['audit.list']({ ...(after === undefined ? {} : { after }), limit }),
        status: () => api['server.status']({}),
      },
      clock,
      failed: (error) => this.#log.warn('what happens could not be looked at', { error }),
    });
    this.#strangers = new Rate(clock, { burst: 20, perSecond: 1 });
    this.#known = new Rate(clock, { burst: 300, perSecond: 50 });
    this.#server = createServer(
      {
        cert: credentials.cert,
        key: credentials.key,
        // What is shown is looked at when somebody logs in by it; nobody is turned away before.
        ...(certificates === undefined ? {} : { requestCert: true, rejectUnauthorized: false, ca: certificates.ca }),
        minVersion: 'TLSv1.2',
        handshakeTimeout: 10_000,
        headersTimeout: 10_000,
        requestTimeout: 20_000,
        keepAliveTimeout: 30_000,
        maxHeaderSize: 16 * 1024,
      },
      (request, response) => void this.#serve(request, response),
    );
    this.#server.maxConnections = MAX_CONNECTIONS;
    this.#server.on('connection', (socket: Socket) => this.#count(socket));
    this.#server.on('tlsClientError', (_, socket) => socket.destroy());
    this.#server.on('clientError', (_, socket) => socket.destroy());
  }

  /** Serves at a listening socket that it takes over, or at an address. */
  async listen(at: { readonly fd: number } | { readonly address: string; readonly port: number }): Promise<void> {
    this.#server.listen('fd' in at ? { fd: at.fd } : { host: at.address, port: at.port });
    await once(this.#server, 'listening');
    this.#log.info('the admin page is served', { port: this.port });
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Ends everybody's sessions; the port is closed. Idempotent. */
  async close(): Promise<void> {
    this.#logins.endAll();
    await this.#feed.stop();
    if (!this.#server.listening) return;
    const cut = setTimeout(() => this.#server.closeAllConnections(), STOP_MS);
    this.#server.closeIdleConnections();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
    clearTimeout(cut);
  }

  /** Somebody's account, password or second factor is not what it was: whoever came in by it logs in again. */
  endUser(user: string): void {
    this.#logins.endUser(user);
  }

  /** Client certificates are good no more: whoever came in by one is out. */
  endCertificates(isConcerned: (certificate: CertificateKey) => boolean): void {
    this.#logins.endCertificates(isConcerned);
  }

  /** Who is logged in. */
  get users(): string[] {
    return this.#logins.list().map(({ user }) => user);
  }

  async link(): Promise<{ url: string; expiresAt: string }> {
    const { state, config } = this.#parts;
    const { secret: token, expiresAt } = this.#logins.makeLink();
    await state.audit.append({ event: AuditEvent.adminLinkMade });
    const url = `https://${hostOfPage(config())}:${this.port}/#setup=${token}`;
    return { url, expiresAt: new Date(expiresAt).toISOString() };
  }

  sessions() {
    return this.#logins
      .list()
      .map(({ id, user, role, source, since }) => ({ id, user, role, source, since: new Date(since).toISOString() }));
  }

  /** Nobody may hold all connections. */
  #count(socket: Socket): void {
    const source = sourceOf(remoteEnd(socket).address);
    const count = (this.#connections.get(source) ?? 0) + 1;
    if (count > CONNECTIONS_PER_SOURCE || this.#parts.state.bans.isRefused(remoteEnd(socket).address)) {
      socket.destroy();
      return;
    }
    this.#connections.set(source, count);
    socket.once('close', () => {
      const left = (this.#connections.get(source) ?? 1) - 1;
      if (left === 0) this.#connections.delete(source);
      else this.#connections.set(source, left);
    });
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      await this.#route(request, response);
    } catch (cause) {
      const error = toVpnError(cause);
      if (response.headersSent || response.destroyed) {
        response.destroy();
        return;
      }
      if (error.kind === 'internal') this.#log.error('a request to the admin page failed', { error });
      const message = error.kind === 'internal' ? 'the gateway could not do this; its log says why' : error.message;
      // What was not read of a body is not read any more.
      const headers = request.readableEnded ? {} : { connection: 'close' };
      sendJson(response, statusOf(error), { code: error.code, message }, headers);
    }
  }

  async #route(request: IncomingMessage, response: ServerResponse): Promise<void> {
    // The path as it came: nothing is decoded or resolved, so that nothing can mean anything else than it says.
    const [path = '', query = ''] = (request.url ?? '').split('?', 2);
    const file = this.#parts.files.get(path);
    if (file !== undefined) {
      if (request.method !== 'GET' && request.method !== 'HEAD') throw wrongMethod('GET');
      const isZipped = /\bgzip\b/.test(request.headers['accept-encoding'] ?? '');
      send(response, 200, isZipped ? file.gzipped : file.body, {
        'content-type': file.type,
        'cache-control': file.isFixed ? 'public, max-age=31536000, immutable' : 'no-cache',
        vary: 'accept-encoding',
        ...(isZipped ? { 'content-encoding': 'gzip' } : {}),
      });
      return;
    }
    if (path.startsWith(API_PREFIX))
      return await this.#operation(path.slice(API_PREFIX.length), query, request, response);
    switch (path) {
      case '/api/login':
        if (request.method === 'GET')
          return sendJson(response, 200, this.#entrances.offers(hostOf(request), certificateOf(request)));
        return await this.#login(await this.#stranger(request, loginBody), request, response);
      case '/api/login/passkey/challenge':
        await this.#stranger(request, nothing);
        return sendJson(response, 200, this.#entrances.challenge(hostOf(request), undefined));
      case '/api/login/passkey': {
        const used = await this.#stranger(request, usedPasskey);
        const operator = await this.#entrances.passkey(used, hostOf(request), sourceText(request));
        return this.#admit(operator, request, response);
      }
      case '/api/login/certificate': {
        await this.#stranger(request, nothing);
        const shown = certificateOf(request);
        const operator = await this.#entrances.certificate(shown, sourceText(request));
        return this.#admit(operator, request, response, shown === undefined ? undefined : keyOf(shown));
      }
      case '/api/login/provider':
        return await this.#leave(request, response);
      case BACK_PATH:
        return await this.#comeBack(query, request, response);
      case '/api/passkeys':
      case '/api/passkeys/challenge':
      case '/api/passkeys/remove':
        return await this.#passkeys(path, request, response);
      case '/api/setup':
        this.#logins.link((await this.#stranger(request, linkBody)).token);
        return sendJson(response, 200, {});
      case '/api/setup/account':
        return sendJson(response, 200, await this.#setUp(await this.#stranger(request, accountBody)));
      case '/api/setup/finish':
        return await this.#finish(await this.#stranger(request, finishBody), request, response);
      case '/api/logout':
        return await this.#logout(request, response);
      case '/api/me':
        if (request.method !== 'GET') throw wrongMethod('GET');
        return sendJson(response, 200, this.#facts(await this.#knownBy(request)));
      case '/api/events':
        return await this.#events(query, request, response);
      case '/api/openapi.json':
        if (request.method !== 'GET') throw wrongMethod('GET');
        await this.#knownBy(request);
        return sendJson(response, 200, openApiDocument(this.#parts.version));
      default:
        throw new VpnError('ERR_NOT_FOUND', 'there is nothing here');
    }
  }

  /** What somebody unknown sends, if it comes from our own page and not too often. */
  async #stranger<T>(request: IncomingMessage, body: z.ZodType<T>): Promise<T> {
    if (request.method !== 'POST') throw wrongMethod('POST');
    checkOrigin(request);
    if (!this.#strangers.take(sourceOf(remoteEnd(request.socket).address))) throw tooOften();
    return parse(body, await readJson(request, STRANGER_BODY_BYTES));
  }

  async #operation(name: string, query: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const known = await this.#knownBy(request);
    const reads = this.#calls.reads(name);
    if (reads === undefined) throw new VpnError('ERR_NOT_FOUND', 'there is no such operation');
    if (request.method !== 'POST' && !(reads && request.method === 'GET')) throw wrongMethod(reads ? 'GET' : 'POST');
    if (request.method === 'POST') checkCaller(request, known);
    const raw = request.method === 'GET' ? queryInput(query) : await readJson(request, BODY_BYTES);
    const { value, tag } = await this.#calls.call(name, raw, known, request.headers['if-match']);
    if (tag !== undefined && request.method === 'GET' && request.headers['if-none-match'] === tag) {
      response.writeHead(304, { etag: tag }).end();
      return;
    }
    sendJson(response, 200, value, tag === undefined ? {} : { etag: tag });
  }

  async #events(query: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method !== 'GET') throw wrongMethod('GET');
    const { session, user } = await this.#knownBy(request);
    const asked = (new URLSearchParams(query).get('topics') ?? TOPICS.join()).split(',');
    const topics = TOPICS.filter((topic) => asked.includes(topic));
    if (topics.length === 0) throw new VpnError('ERR_BAD_REQUEST', `topics: expected some of ${TOPICS.join()}`);
    const cookie = cookieOf(request);
    this.#feed.add(response, topics, {
      ended: session?.ended.signal ?? new AbortController().signal,
      mayListen: async () =>
        (session === undefined || this.#logins.find(cookie, { isUse: false }) === session) &&
        (await this.#roleOf(user)) !== undefined,
    });
  }

  async #login(body: z.output<typeof loginBody>, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { config } = this.#parts;
    const source = sourceText(request);
    const operator = await this.#operators.login(
      body,
      source,
      ({ groups }) => roleOf(groups, config().admin) !== undefined,
    );
    if (operator === undefined) {
      throw new VpnError('ERR_AUTH_REJECTED', 'name, password or code is wrong, or you have to wait; try again later');
    }
    this.#admit(operator, request, response);
  }

  /** Lets somebody in, whoever vouched for them. @throws {VpnError} ERR_AUTH_REJECTED */
  #admit(
    operator: Operator | undefined,
    request: IncomingMessage,
    response: ServerResponse,
    certificate?: CertificateKey,
  ): void {
    const role = operator === undefined ? undefined : roleOf(operator.groups, this.#parts.config().admin);
    if (operator === undefined || role === undefined) {
      throw new VpnError('ERR_AUTH_REJECTED', 'this does not let you in, or you have to wait; see the audit record');
    }
    this.#enter(operator.name, role, request, response, certificate);
  }

  #enter(
    user: string,
    role: Role,
    request: IncomingMessage,
    response: ServerResponse,
    certificate?: CertificateKey,
  ): void {
    const { secret: cookie, session } = this.#open(user, role, request, certificate);
    const known = { user, role, source: session.source, session };
    sendJson(response, 200, this.#facts(known), { 'set-cookie': setCookie(cookie) });
  }

  /** A session of its own, whatever cookie the browser brought. */
  #open(
    user: string,
    role: Role,
    request: IncomingMessage,
    certificate?: CertificateKey,
  ): { secret: string; session: AdminSession } {
    this.#logins.close(cookieOf(request));
    const opened = this.#logins.open(user, role, sourceText(request), certificate);
    this.#log.info('an operator has logged in', { user, role, peer: opened.session.source });
    return opened;
  }

  /** Sends a browser to the provider. */
  async #leave(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method !== 'GET') throw wrongMethod('GET');
    checkVisitor(request);
    if (!this.#strangers.take(sourceOf(remoteEnd(request.socket).address))) throw tooOften();
    const { url, secret: visit } = await this.#entrances.visit(`https://${hostOf(request)}${BACK_PATH}`);
    redirect(response, url, [setVisit(visit)]);
  }

  /** A browser comes from the provider, with what the provider says. */
  async #comeBack(query: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method !== 'GET') throw wrongMethod('GET');
    // Any site can send a browser here: that must not use up what its person has for a login.
    if (!this.#strangers.take(`back ${sourceOf(remoteEnd(request.socket).address)}`)) throw tooOften();
    const operator = await this.#entrances.back(visitOf(request), query, sourceText(request));
    const role = operator === undefined ? undefined : roleOf(operator.groups, this.#parts.config().admin);
    if (operator === undefined || role === undefined) {
      redirect(response, '/#refused', [setVisit(undefined)]);
      return;
    }
    const { secret: cookie } = this.#open(operator.name, role, request);
    redirect(response, '/', [setVisit(undefined), setCookie(cookie)]);
  }

  /** Somebody's own passkeys. */
  async #passkeys(path: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const known = await this.#knownBy(request);
    const { user, role, source, session } = known;
    const { passkeys, audit } = this.#parts.state;
    if (session === undefined) throw new VpnError('ERR_PRIVILEGE', 'passkeys are for people, not for programs');
    if (request.method === 'GET' && path === '/api/passkeys') {
      return sendJson(response, 200, (await passkeys.list(user)).map(passkeyInfo));
    }
    if (request.method !== 'POST') throw wrongMethod('POST');
    checkCaller(request, known);
    const body = await readJson(request, STRANGER_BODY_BYTES);
    const host = hostOf(request);
    if (path === '/api/passkeys/challenge') return sendJson(response, 200, this.#entrances.challenge(host, user));
    const added = path === '/api/passkeys';
    const { id } = await actingFor(user, async () => {
      if (!added) {
        const { id: gone } = parse(whichPasskey, body);
        await passkeys.remove(gone, user);
        return { id: gone };
      }
      const { name, ...made } = parse(madePasskey, body);
      return await this.#entrances.addPasskey(user, name, made, host);
    });
    const detail = { operation: added ? 'passkey.add' : 'passkey.remove', by: user, role, about: id };
    await audit.append({ event: AuditEvent.operatorActed, source, detail });
    sendJson(response, 200, { id });
  }

  async #logout(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method !== 'POST') throw wrongMethod('POST');
    const known = await this.#knownBy(request);
    checkCaller(request, known);
    this.#logins.close(cookieOf(request));
    const { user, source } = known;
    await this.#parts.state.audit.append({ event: AuditEvent.operatorLogout, user, source });
    sendJson(response, 200, {}, { 'set-cookie': setCookie(undefined) });
  }

  /** Makes the account of a link's bearer, which has no right before its second factor has been seen to work. */
  async #setUp({ token, name, password }: z.output<typeof accountBody>) {
    const { api } = this.#parts;
    const link = this.#logins.link(token);
    return await actingFor('set-up link', async () => {
      const former = link.account;
      if (former === name.normalize('NFC')) {
        await api['user.password']({ name, password });
      } else {
        const { name: made } = await api['user.add']({ name, password });
        link.account = made;
        if (former !== undefined) await api['user.delete']({ name: former });
      }
      const { uri, recoveryCodes } = await api['user.totp']({ name });
      return { uri, recoveryCodes };
    });
  }

  async #finish(body: z.output<typeof finishBody>, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { api, config, state } = this.#parts;
    const { account } = this.#logins.link(body.token);
    const [group] = config().admin.administrators;
    if (account === undefined) throw new VpnError('ERR_BAD_REQUEST', 'choose a name and a password first');
    if (group === undefined) {
      throw new VpnError('ERR_CONFIG_VALUE', 'admin.administrators: expected a group; nobody can be an administrator');
    }
    if (!(await this.#operators.provesFactor(account, body.code))) {
      throw new VpnError(
        'ERR_AUTH_REJECTED',
        'the code is wrong; wait for the next one, and check the clock of your phone',
      );
    }
    if (!this.#logins.useLink(body.token)) throw new VpnError('ERR_AUTH_REJECTED', 'this link has been used meanwhile');
    await actingFor('set-up link', () => api['user.regroup']({ name: account, add: [group] }));
    const source = sourceText(request);
    await state.audit.append({ event: AuditEvent.adminLinkUsed, user: account, source });
    await state.audit.append({ event: AuditEvent.operatorLogin, user: account, source });
    this.#enter(account, 'administrator', request, response);
  }

  /** Who asks. @throws {VpnError} ERR_AUTH_NEEDED, ERR_AUTH_REJECTED, ERR_BUSY */
  async #knownBy(request: IncomingMessage): Promise<Known> {
    const source = sourceText(request);
    const token = bearerOf(request);
    if (token !== undefined) {
      if (!this.#known.take(`token ${sourceOf(remoteEnd(request.socket).address)}`)) throw tooOften();
      const operator = await this.#operators.token(token, source);
      const role = operator === undefined ? undefined : roleOf(operator.groups, this.#parts.config().admin);
      if (operator === undefined || role === undefined)
        throw new VpnError('ERR_AUTH_REJECTED', 'the token opens nothing');
      return { user: operator.name, role, source, session: undefined };
    }
    const isUse = request.headers['x-background'] === undefined;
    const session = this.#logins.find(cookieOf(request), { isUse });
    const role = session === undefined ? undefined : await this.#roleOf(session.user);
    if (session === undefined || role === undefined) throw new VpnError('ERR_AUTH_NEEDED', 'log in first');
    if (!this.#known.take(session.id)) throw tooOften();
    session.role = role;
    return { user: session.user, role, source, session };
  }

  async #roleOf(user: string): Promise<Role | undefined> {
    const operator = await this.#operators.present(user);
    return operator === undefined ? undefined : roleOf(operator.groups, this.#parts.config().admin);
  }

  #facts({ user, role, session }: Known) {
    const { config, version } = this.#parts;
    return { user, role, csrf: session?.csrf ?? '', gateway: config().names[0] ?? '', version };
  }
}

/** The name by which a browser reaches the page. */
export function hostOfPage({ admin, names }: GatewayConfig): string {
  const { address } = parseEndpoint(admin.listen ?? '') ?? { address: '::' };
  const isAny = address === '::' || address === '0.0.0.0';
  const host = isAny ? (names[0] ?? 'localhost') : address;
  return host.includes(':') && !host.startsWith('[') ? `[${host}]` : host;
}

/** Names for the page's certificate. */
export function namesOfPage(config: GatewayConfig): string[] {
  const { address } = parseEndpoint(config.admin.listen ?? '') ?? { address: '::' };
  const isAny = address === '::' || address === '0.0.0.0';
  return [...new Set([...config.names, ...(isAny ? [] : [address]), 'localhost'])];
}

/** A page of another site can neither read our token nor set a header. */
function checkCaller(request: IncomingMessage, { session }: Known): void {
  if (session === undefined) return;
  checkOrigin(request);
  if (request.headers['x-csrf-token'] !== session.csrf) {
    throw new VpnError('ERR_PRIVILEGE', 'the page is of another login; load it again');
  }
}

/** By which the browser reached us; only ever compared with what the gateway is called. */
function hostOf({ headers }: IncomingMessage): string {
  return headers.host ?? '';
}

/** What TLS has verified. */
function certificateOf({ socket }: IncomingMessage): ShownCertificate | undefined {
  const { authorized, encrypted } = socket as TLSSocket;
  const shown = encrypted && authorized ? (socket as TLSSocket).getPeerX509Certificate() : undefined;
  return shown === undefined ? undefined : { der: shown.raw, serial: shown.serialNumber.toLowerCase() };
}

function sourceText(request: IncomingMessage): string {
  const { address, port } = remoteEnd(request.socket);
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

function parse<T>(type: z.ZodType<T>, value: unknown): T {
  const parsed = type.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new VpnError('ERR_BAD_REQUEST', `${issue?.path.join('.') || 'input'}: ${issue?.message ?? 'not valid'}`);
}

function wrongMethod(expected: string): VpnError {
  return new VpnError('ERR_BAD_REQUEST', `${expected} was expected`, { details: { httpStatus: 405 } });
}

function tooOften(): VpnError {
  return new VpnError('ERR_BUSY', 'too many requests; wait a moment');
}
