/**
 * Accounts at an OpenID Connect provider. A client's user logs in by the device authorisation grant (RFC 8628): with a browser of
 * their own, wherever that runs, and the gateway waits for the provider's word. A page of ours sends its browser there and gets
 * it back with a code (RFC 6749 §4.1), which is worth nothing without what only we know (PKCE, RFC 7636).
 *
 * Hides the provider: discovery, polling, tokens. An ID token counts only when its signature, issuer, audience and times
 * are right. Of what a provider gives us, two things are kept, sealed: the subject, so that a name that passes to somebody
 * else does not carry the account along, and the refresh token, by which a recheck asks. It must not know the store.
 */

import { request as requestHttp } from 'node:http';
import { request as requestHttps } from 'node:https';
import {
  AuthorizationResponseError,
  allowInsecureRequests,
  authorizationCodeGrant,
  buildAuthorizationUrl,
  type ClientAuth,
  ClientSecretBasic,
  ClientSecretPost,
  type Configuration,
  type CustomFetch,
  calculatePKCECodeChallenge,
  customFetch,
  discovery,
  enableNonRepudiationChecks,
  fetchUserInfo,
  initiateDeviceAuthorization,
  None,
  pollDeviceAuthorizationGrant,
  ResponseBodyError,
  randomNonce,
  randomPKCECodeVerifier,
  randomState,
  refreshTokenGrant,
  WWWAuthenticateChallengeError,
} from 'openid-client';
import type { Clock } from '../../base/clock.ts';
import { isVpnError, VpnError } from '../../base/errors.ts';
import type { Secret } from '../../base/log.ts';
import { normaliseName } from '../names.ts';
import {
  type BackendVerdict,
  type BrowserBackend,
  type BrowserLogin,
  type GrantStore,
  type GroupTable,
  mapGroups,
  type Rechecked,
  type Visit,
  type VisitedBackend,
} from './backend.ts';

/** How much a provider may answer to one request. */
const MAX_ANSWER_BYTES = 1_048_576;
/** A provider's metadata is read again after this time. */
const METADATA_MS = 3_600_000;
/** A person has at most this time, whatever the provider allows. */
const MAX_CODE_SECONDS = 1800;
const MAX_GROUPS = 1000;
const MAX_URL_CHARACTERS = 1024;
/** Logins that wait for their person at once. */
const MAX_LOGINS = 256;
const NO_BODY = [204, 205, 304];

/** As in the configuration; see docs/configuration.md. */
export interface OidcOptions {
  readonly issuer: string;
  readonly clientId: string;
  readonly scopes: readonly string[];
  readonly nameClaim: string;
  readonly groupsClaim: string;
  readonly groups?: GroupTable;
  readonly insecure: boolean;
  readonly timeoutSeconds: number;
}

interface Parts {
  readonly name: string;
  readonly options: OidcOptions;
  readonly clientSecret: Secret<string> | undefined;
  /** PEM of the CAs, in place of the machine's. */
  readonly ca: string | undefined;
  readonly grants: GrantStore;
  readonly clock: Clock;
}

/** What is kept of an account. */
interface Grant {
  readonly subject: string;
  readonly refreshToken?: string | undefined;
}

/** What a provider gives us in the end, as far as it is looked at. */
type Tokens = Pick<
  Awaited<ReturnType<typeof pollDeviceAuthorizationGrant>>,
  'claims' | 'access_token' | 'refresh_token'
>;

type Claims = Readonly<Record<string, unknown>>;

export class OidcBackend implements BrowserBackend, VisitedBackend {
  readonly name: string;
  readonly #parts: Parts;
  readonly #closing = new AbortController();
  readonly #rechecks = new Map<string, Promise<Rechecked>>();
  #logins = 0;
  #metadata: { readonly configuration: Configuration; readonly readAt: number } | undefined;

  constructor(parts: Parts) {
    this.name = parts.name;
    this.#parts = parts;
  }

  async begin(signal: AbortSignal): Promise<BrowserLogin> {
    const { options, clock } = this.#parts;
    const limit = AbortSignal.any([signal, this.#closing.signal]);
    try {
      if (this.#logins >= MAX_LOGINS) throw new VpnError('ERR_BACKEND', 'too many logins at once');
      const configuration = await this.#configuration(limit);
      if (configuration.serverMetadata().device_authorization_endpoint === undefined) {
        throw new VpnError('ERR_BACKEND', 'it does not offer the device authorisation grant');
      }
      const started = initiateDeviceAuthorization(configuration, { scope: options.scopes.join(' ') });
      const answer = await unlessAborted(started, limit);
      const seconds = Math.min(answer.expires_in, MAX_CODE_SECONDS);
      const expired = AbortSignal.timeout(seconds * 1000);
      return {
        url: this.#checkedUrl(answer.verification_uri_complete ?? answer.verification_uri),
        code: checkedCode(answer.user_code),
        expiresAt: clock.wallNow() + seconds * 1000,
        finish: async (finishing) => {
          this.#logins += 1;
          try {
            return await this.#finish(configuration, answer, expired, finishing);
          } finally {
            this.#logins -= 1;
          }
        },
      };
    } catch (error) {
      throw this.#unavailable(error);
    }
  }

  async visit(returnTo: string, signal: AbortSignal): Promise<Visit> {
    const { options } = this.#parts;
    const limit = AbortSignal.any([signal, this.#closing.signal]);
    try {
      const configuration = await this.#configuration(limit);
      if (configuration.serverMetadata().authorization_endpoint === undefined) {
        throw new VpnError('ERR_BACKEND', 'it does not offer the authorisation code grant');
      }
      const [state, nonce, pkceCodeVerifier] = [randomState(), randomNonce(), randomPKCECodeVerifier()];
      const url = buildAuthorizationUrl(configuration, {
        redirect_uri: returnTo,
        scope: options.scopes.join(' '),
        code_challenge: await calculatePKCECodeChallenge(pkceCodeVerifier),
        code_challenge_method: 'S256',
        state,
        nonce,
      });
      return {
        url: this.#checkedUrl(url.href),
        state,
        finish: async (query, finishing) => {
          const end = AbortSignal.any([finishing, this.#closing.signal]);
          try {
            const checks = { pkceCodeVerifier, expectedState: state, expectedNonce: nonce, idTokenExpected: true };
            const granted = authorizationCodeGrant(configuration, new URL(`${returnTo}?${query}`), checks);
            return await this.#judge(configuration, await unlessAborted(granted, end), end);
          } catch (error) {
            if (error instanceof AuthorizationResponseError) return refused('the person, or the provider, said no');
            return refusalOf(error) ?? { kind: 'unavailable', reason: this.#unavailable(error).message };
          }
        },
      };
    } catch (error) {
      throw this.#unavailable(error);
    }
  }

  recheck(user: string, signal: AbortSignal): Promise<Rechecked> {
    // A refresh token may be good for one use: two questions at once would use the same.
    const running = this.#rechecks.get(user);
    if (running !== undefined) return running;
    const asked = this.#recheck(user, signal)
      .catch((): Rechecked => ({ standing: 'unknown' }))
      .finally(() => this.#rechecks.delete(user));
    this.#rechecks.set(user, asked);
    return asked;
  }

  async close(): Promise<void> {
    this.#closing.abort();
  }

  async #recheck(user: string, signal: AbortSignal): Promise<Rechecked> {
    const grant = await this.#load(user);
    if (grant?.refreshToken === undefined) return { standing: 'unknown' };
    const limit = AbortSignal.any([signal, this.#closing.signal]);
    const configuration = await this.#configuration(limit);
    // Not called off once it is sent: the answer may hold the only token that is still good.
    const answer = await refreshTokenGrant(configuration, grant.refreshToken).catch((error: unknown) => {
      if (error instanceof ResponseBodyError && error.error === 'invalid_grant') return undefined;
      throw error;
    });
    if (answer === undefined) {
      await this.#save(user, { subject: grant.subject });
      return { standing: 'gone' };
    }
    if (answer.refresh_token !== undefined && answer.refresh_token !== grant.refreshToken) {
      await this.#save(user, { subject: grant.subject, refreshToken: answer.refresh_token });
    }
    const claims: Claims | undefined = answer.claims();
    if (claims !== undefined && claims.sub !== grant.subject) return { standing: 'gone' };
    return { standing: 'good', groups: await this.#groupsOf(configuration, answer.access_token, grant, claims, limit) };
  }

  /** The groups that the account has now; undefined when they are not ours to know, or the provider does not say. */
  async #groupsOf(
    configuration: Configuration,
    accessToken: string,
    { subject }: Grant,
    claims: Claims | undefined,
    signal: AbortSignal,
  ): Promise<readonly string[] | undefined> {
    const { groupsClaim, groups } = this.#parts.options;
    if (groups === undefined) return undefined;
    if (claims?.[groupsClaim] !== undefined) return mapGroups(groups, textsOf(claims[groupsClaim]));
    const more: Claims | undefined = await unlessAborted(
      fetchUserInfo(configuration, accessToken, subject),
      signal,
    ).catch(() => undefined);
    return more === undefined ? undefined : mapGroups(groups, textsOf(more[groupsClaim]));
  }

  async #finish(
    configuration: Configuration,
    answer: Parameters<typeof pollDeviceAuthorizationGrant>[1],
    expired: AbortSignal,
    signal: AbortSignal,
  ): Promise<BackendVerdict> {
    const limit = AbortSignal.any([signal, expired, this.#closing.signal]);
    for (;;) {
      try {
        const polled = pollDeviceAuthorizationGrant(configuration, answer, undefined, { signal: limit });
        // The library looks at its signal only every few seconds.
        const tokens = await unlessAborted(polled, limit);
        return await this.#judge(configuration, tokens, limit);
      } catch (error) {
        if (expired.aborted) return refused('the code expired before the person was done');
        if (limit.aborted) return { kind: 'unavailable', reason: 'the login was called off' };
        const refusal = refusalOf(error);
        if (refusal !== undefined) return refusal;
        // A request that came to nothing says nothing of the login: it is asked again until the code expires.
        if (!isLost(error)) return { kind: 'unavailable', reason: this.#unavailable(error).message };
      }
    }
  }

  async #judge(configuration: Configuration, tokens: Tokens, signal: AbortSignal): Promise<BackendVerdict> {
    const { nameClaim, groupsClaim, groups } = this.#parts.options;
    const token = tokens.claims();
    if (token === undefined) throw new VpnError('ERR_BACKEND', 'the provider gave no ID token');
    let claims: Claims = token;
    if (claims[nameClaim] === undefined || (groups !== undefined && claims[groupsClaim] === undefined)) {
      const more = await unlessAborted(fetchUserInfo(configuration, tokens.access_token, token.sub), signal);
      claims = { ...more, ...token };
    }
    const text = claims[nameClaim];
    if (typeof text !== 'string') return refused(`the provider tells no ${nameClaim} of the account`);
    // Anybody may claim an address that nobody has checked.
    if (nameClaim === 'email' && claims.email_verified !== true) return refused('the address is not verified');
    const user = normaliseName(text);
    if (user === undefined) return refused(`${nameClaim} of the account is no name of ours`);
    const known = await this.#load(user);
    if (known !== undefined && known.subject !== token.sub) {
      return refused('the name belonged to another account of the provider; delete the user to let this one in');
    }
    // A login that brought none leaves the one by which sessions are asked about.
    await this.#save(user, { subject: token.sub, refreshToken: tokens.refresh_token ?? known?.refreshToken });
    return { kind: 'accepted', user, groups: mapGroups(groups, textsOf(claims[groupsClaim])) };
  }

  async #load(user: string): Promise<Grant | undefined> {
    const text = await this.#parts.grants.load(user);
    if (text === undefined) return undefined;
    const { subject, refreshToken } = JSON.parse(text) as Grant;
    return { subject, refreshToken };
  }

  #save(user: string, grant: Grant): Promise<void> {
    return this.#parts.grants.save(user, JSON.stringify(grant));
  }

  /** The provider as it describes itself, and we to it. */
  async #configuration(signal: AbortSignal): Promise<Configuration> {
    const { options, clock, clientSecret } = this.#parts;
    const present = this.#metadata;
    const now = clock.now();
    if (present !== undefined && now - present.readAt < METADATA_MS) return present.configuration;
    const secret = clientSecret?.reveal();
    // Which way of saying who we are is known once the provider has been read.
    const authentication: ClientAuth = (server, ...rest) => {
      if (secret === undefined) return None()(server, ...rest);
      const ways = server.token_endpoint_auth_methods_supported;
      const isBasic = ways === undefined || ways.includes('client_secret_basic');
      return (isBasic ? ClientSecretBasic(secret) : ClientSecretPost(secret))(server, ...rest);
    };
    const asked = discovery(new URL(options.issuer), options.clientId, undefined, authentication, {
      timeout: options.timeoutSeconds,
      [customFetch]: this.#fetch,
      // The signature of an ID token is checked though it comes over TLS.
      execute: [enableNonRepudiationChecks, ...(options.insecure ? [allowInsecureRequests] : [])],
    });
    const configuration = await unlessAborted(asked, signal);
    this.#metadata = { configuration, readAt: now };
    return configuration;
  }

  #checkedUrl(text: string): string {
    const url = URL.parse(text);
    const allowed = url?.protocol === 'https:' || (this.#parts.options.insecure && url?.protocol === 'http:');
    if (url !== null && allowed && url.href.length <= MAX_URL_CHARACTERS) return url.href;
    throw new VpnError('ERR_BACKEND', 'the provider names a page for the login that is no https address');
  }

  #unavailable(error: unknown): VpnError {
    const said =
      error instanceof ResponseBodyError
        ? `it answered ${error.error}`
        : error instanceof WWWAuthenticateChallengeError
          ? 'it does not accept clientId with its secret'
          : messageOf(error);
    return new VpnError('ERR_BACKEND', `the provider ${this.name} cannot be used: ${said}`, { cause: error });
  }

  /** One request: no redirects, a bounded answer, and TLS unless the provider is this machine. */
  readonly #fetch: CustomFetch = async (address, { method, headers, body, signal }) => {
    const url = new URL(address);
    const isSecure = url.protocol === 'https:';
    if (!isSecure && !isLoopback(url.hostname)) {
      throw new VpnError('ERR_BACKEND', `${url.origin} is neither https nor this machine`);
    }
    const limit = signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
    const { ca } = this.#parts;
    const options = { method, headers, signal: limit, agent: false as const };
    const { promise, resolve, reject } = Promise.withResolvers<Response>();
    const request = isSecure
      ? requestHttps(url, { ...options, ...(ca === undefined ? {} : { ca }), minVersion: 'TLSv1.2' })
      : requestHttp(url, options);
    request.on('error', reject);
    request.on('response', (message) => {
      const chunks: Buffer[] = [];
      let length = 0;
      message.on('error', reject);
      message.on('data', (chunk: Buffer) => {
        chunks.push(chunk);
        length += chunk.length;
        if (length > MAX_ANSWER_BYTES) request.destroy(new VpnError('ERR_BACKEND', 'the answer is too long'));
      });
      message.on('end', () => {
        const status = message.statusCode ?? 0;
        const named = Object.entries(message.headers).flatMap(([name, value]) =>
          [value].flat().flatMap((text): [string, string][] => (text === undefined ? [] : [[name, text]])),
        );
        try {
          resolve(new Response(NO_BODY.includes(status) ? null : Buffer.concat(chunks), { status, headers: named }));
        } catch (error) {
          reject(error);
        }
      });
    });
    request.end(body === undefined || body === null ? undefined : String(body));
    return await promise;
  };
}

function refused(reason: string): BackendVerdict {
  return { kind: 'refused', reason };
}

/** What the provider's errors of RFC 8628 §3.5 mean for the login. */
function refusalOf(error: unknown): BackendVerdict | undefined {
  if (!(error instanceof ResponseBodyError)) return undefined;
  switch (error.error) {
    case 'access_denied':
      return refused('the person, or the provider, said no');
    case 'expired_token':
      return refused('the code expired before the person was done');
    case 'invalid_grant':
      return refused('the provider does not know the code any more');
    default:
      return undefined;
  }
}

/** Whether a request got no answer, as opposed to a wrong one. */
function isLost(error: unknown): boolean {
  for (let at = error; at instanceof Error; at = at.cause) {
    if ('syscall' in at || at.name === 'TimeoutError' || ('code' in at && at.code === 'ECONNRESET')) return true;
  }
  return false;
}

function messageOf(error: unknown): string {
  const texts: string[] = [];
  for (let at = error; at instanceof Error && texts.length < 3; at = at.cause) {
    if (at instanceof Error && at.message !== '' && !texts.includes(at.message)) texts.push(at.message);
    if (isVpnError(at)) break;
  }
  return texts.join(': ').slice(0, 200) || 'no answer in time';
}

async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>();
  const abort = () => reject(new VpnError('ERR_BACKEND', 'the login was called off'));
  if (signal.aborted) abort();
  signal.addEventListener('abort', abort, { once: true });
  try {
    return await Promise.race([work, promise]);
  } finally {
    signal.removeEventListener('abort', abort);
    // It may still fail when nobody waits any more.
    work.catch(() => {});
  }
}

/** It is shown in a terminal. */
function checkedCode(code: string): string {
  if (/^[\x20-\x7e]{1,64}$/.test(code)) return code;
  throw new VpnError('ERR_BACKEND', 'the code for the person is not 1 to 64 printable characters');
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '[::1]' || /^127(?:\.\d{1,3}){3}$/.test(host);
}

function textsOf(value: unknown): string[] {
  return [value]
    .flat()
    .slice(0, MAX_GROUPS)
    .filter((text) => typeof text === 'string');
}
