/**
 * The ways into the admin page beside a password: a passkey, a client certificate, an identity provider.
 *
 * Hides what each has to remember between its two halves, of which there is a bounded number for a short time, and each is good
 * once. Whoever shows something is judged as a login is (`identity/operators`); what a person is told never says what was wrong.
 * It must not know sessions or cookies' names.
 */

import { createHash, randomBytes } from 'node:crypto';
import { isIP } from 'node:net';
import type { Clock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { VisitedBackend } from '../../identity/backends/backend.ts';
import type { Operator, Operators } from '../../identity/operators.ts';
import type { Passkey, Passkeys } from '../../identity/passkeys.ts';
import { type CertificateMapping, usersNamed } from '../../identity/steps/certificate.ts';
import { checkNewPasskey, checkPasskeyUse, PASSKEY_ALGORITHMS } from '../../identity/webauthn.ts';
import { readHolder } from '../../transport/certificate-facts.ts';
import type { CertificateKey } from './logins.ts';

const CHALLENGE_BYTES = 32;
const CHALLENGE_MS = 300_000;
const VISIT_MS = 600_000;
const PROVIDER_MS = 20_000;
/** Of each kind. */
const MAX_OPEN = 1000;

/** The provider that the page sends people to, and what becomes of their accounts here. */
export interface PageProvider {
  readonly backend: VisitedBackend;
  /** Puts an account that came from this source into the groups that it says; ends what they are too few for. */
  readonly follow: (user: string, source: string, groups: readonly string[]) => Promise<void>;
  /** The same, and makes the account where there is none; undefined when the name is not the source's. */
  readonly provision: (
    user: string,
    source: string,
    groups: readonly string[] | undefined,
  ) => Promise<{ name: string } | undefined>;
}

/** Who may show a client certificate, and what it says of its holder. */
export interface PageCertificates {
  /** PEM of the authorities. */
  readonly ca: string;
  readonly mapping: () => CertificateMapping;
  isRevoked(certificate: CertificateKey): boolean;
}

export interface EntrancesParts {
  readonly operators: Operators;
  readonly passkeys: Passkeys;
  readonly provider: () => PageProvider | undefined;
  readonly certificates: PageCertificates | undefined;
  readonly hasPasskeys: boolean;
  /** By which browsers reach the page. */
  readonly names: () => readonly string[];
  readonly mayEnter: (groups: readonly string[]) => boolean;
  readonly clock: Clock;
}

/** What a browser sends of a new passkey, or of the use of one. */
export interface MadePasskey {
  readonly clientData: Uint8Array;
  readonly authenticatorData: Uint8Array;
  readonly publicKey: Uint8Array;
}
export interface UsedPasskey {
  readonly id: Uint8Array;
  readonly clientData: Uint8Array;
  readonly authenticatorData: Uint8Array;
  readonly signature: Uint8Array;
}

/** What was shown on the TLS connection. */
export interface ShownCertificate {
  readonly der: Uint8Array;
  /** Lower-case hexadecimal. */
  readonly serial: string;
}

export class Entrances {
  readonly #parts: EntrancesParts;
  /** What was asked, by what it was asked for and the hash of the challenge. */
  readonly #challenges: Open<true>;
  /** People who are at the provider, by the secret that their browser keeps. */
  readonly #visits: Open<{ readonly backend: string; finish: Awaited<ReturnType<VisitedBackend['visit']>>['finish'] }>;

  constructor(parts: EntrancesParts) {
    this.#parts = parts;
    this.#challenges = new Open(parts.clock, CHALLENGE_MS);
    this.#visits = new Open(parts.clock, VISIT_MS);
  }

  /** Which ways there are, for a page that was reached by this host and with this certificate. */
  offers(host: string, certificate: ShownCertificate | undefined) {
    const named = certificate === undefined ? undefined : this.#readCertificate(certificate).name;
    return {
      passkey: this.#passkeyHost(host) !== undefined,
      certificate: named ?? null,
      provider: this.#parts.provider()?.backend.name ?? null,
    };
  }

  /**
   * What the page asks an authenticator.
   *
   * @param purpose whose new passkey it is for; undefined: a login, whoever it is
   * @throws {VpnError} ERR_UNSUPPORTED where passkeys cannot be used
   */
  challenge(host: string, purpose: string | undefined) {
    const challenge = randomBytes(CHALLENGE_BYTES);
    const name = this.#requireHost(host);
    this.#challenges.add(challengeKey(purpose, challenge), true);
    return {
      challenge: challenge.toString('base64url'),
      host: name,
      algorithms: [...PASSKEY_ALGORITHMS],
      timeoutMs: CHALLENGE_MS,
    };
  }

  /** Keeps a passkey that somebody who is logged in has made. @throws {VpnError} ERR_BAD_REQUEST, ERR_CONFLICT, ERR_STORE */
  async addPasskey(user: string, label: string, made: MadePasskey, host: string): Promise<Passkey> {
    const asked = this.#asked(made.clientData, host, user);
    const { id, count } = checkNewPasskey(made, asked);
    return await this.#parts.passkeys.add(user, { id, count, publicKey: made.publicKey, host: asked.host, label });
  }

  /** Judges the use of a passkey; undefined: no. @throws {VpnError} ERR_STORE, ERR_UNSUPPORTED */
  async passkey(used: UsedPasskey, host: string, remote: string): Promise<Operator | undefined> {
    this.#requireHost(host);
    const { passkeys } = this.#parts;
    const passkey = await passkeys.find(used.id);
    let failure: string | undefined = passkey === undefined ? 'nobody has such a passkey' : undefined;
    if (passkey !== undefined) {
      try {
        const asked = this.#asked(used.clientData, host, undefined);
        const count = checkPasskeyUse(used, passkey.publicKey, asked);
        if (asked.host !== passkey.host) failure = 'it is for another host';
        else if (!(await passkeys.spend(passkey, count))) failure = 'there is a copy of it: its count has not risen';
      } catch (error) {
        const { code, message } = toVpnError(error);
        if (code !== 'ERR_BAD_REQUEST') throw error;
        failure = message;
      }
    }
    return await this.#judge({ by: 'passkey', name: passkey?.user, failure }, remote);
  }

  /** Judges a client certificate that TLS has verified; undefined: no. @throws {VpnError} ERR_STORE */
  async certificate(shown: ShownCertificate | undefined, remote: string): Promise<Operator | undefined> {
    const { name, failure } =
      shown === undefined ? { name: undefined, failure: 'none was shown that is good' } : this.#readCertificate(shown);
    return await this.#judge({ by: 'certificate', name, failure }, remote);
  }

  /**
   * Begins a login at the provider.
   *
   * @param returnTo where it sends the browser back
   * @returns where the browser goes, and a secret that it keeps
   * @throws {VpnError} ERR_NOT_FOUND, ERR_BACKEND
   */
  async visit(returnTo: string): Promise<{ url: string; secret: string }> {
    const provider = this.#parts.provider();
    if (provider === undefined) throw new VpnError('ERR_NOT_FOUND', 'there is nothing here');
    const { url, finish } = await provider.backend.visit(returnTo, AbortSignal.timeout(PROVIDER_MS));
    const secret = randomBytes(CHALLENGE_BYTES).toString('base64url');
    this.#visits.add(hashOf(secret), { backend: provider.backend.name, finish });
    return { url, secret };
  }

  /** Judges what a browser brings back; undefined: no. @throws {VpnError} ERR_STORE */
  async back(secret: string | undefined, query: string, remote: string): Promise<Operator | undefined> {
    const visit = this.#visits.take(hashOf(secret ?? ''));
    const provider = this.#parts.provider();
    if (visit === undefined || provider?.backend.name !== visit.backend) {
      return await this.#strayed('nobody was sent there', remote);
    }
    const verdict = await visit.finish(query, AbortSignal.timeout(PROVIDER_MS));
    if (verdict.kind !== 'accepted') {
      return await this.#strayed(verdict.kind === 'ask' ? 'it asks what nobody can answer' : verdict.reason, remote);
    }
    const { user, groups } = verdict;
    // Nobody gets an account here by having a look.
    const enter = groups !== undefined && this.#parts.mayEnter(groups) ? provider.provision : provider.follow;
    if (groups !== undefined) await enter(user, visit.backend, groups);
    return await this.#judge({ by: 'provider', name: user, failure: undefined, source: visit.backend }, remote);
  }

  /** Another site can have anybody's browser come here with nonsense, and nothing of a visit can be guessed: it is no trial. */
  #strayed(failure: string, remote: string): Promise<Operator | undefined> {
    return this.#judge({ by: 'provider', name: undefined, failure, isTrial: false }, remote);
  }

  #judge(vouched: Parameters<Operators['vouched']>[0], remote: string): Promise<Operator | undefined> {
    return this.#parts.operators.vouched(vouched, remote, ({ groups }) => this.#parts.mayEnter(groups));
  }

  #readCertificate({ der, serial }: ShownCertificate): { name: string | undefined; failure: string | undefined } {
    const { certificates } = this.#parts;
    const holder = readHolder(der);
    if (certificates === undefined || holder === undefined) return { name: undefined, failure: 'it cannot be read' };
    if (certificates.isRevoked({ authority: holder.authority, serial })) {
      return { name: undefined, failure: 'it has been revoked' };
    }
    const [name, another] = usersNamed(holder, certificates.mapping());
    if (another !== undefined) return { name: undefined, failure: 'it names several users' };
    return { name, failure: name === undefined ? 'it has no name of a user in the configured form' : undefined };
  }

  /** The question that is answered, which is used up. @throws {VpnError} ERR_BAD_REQUEST */
  #asked(clientData: Uint8Array, host: string, purpose: string | undefined) {
    const challenge = challengeIn(clientData);
    if (this.#challenges.take(challengeKey(purpose, challenge)) === undefined) {
      throw new VpnError('ERR_BAD_REQUEST', 'this took too long, or was answered already; try again');
    }
    return { challenge, origin: `https://${host}`, host: this.#requireHost(host) };
  }

  #requireHost(host: string): string {
    const name = this.#passkeyHost(host);
    if (name !== undefined) return name;
    throw new VpnError(
      'ERR_UNSUPPORTED',
      'passkeys need the page to be reached by one of its names, such as localhost or one of `names`, and not by an address',
    );
  }

  /** The name that passkeys are for; browsers know none for an address. */
  #passkeyHost(host: string): string | undefined {
    const name = host.replace(/:\d+$/, '').toLowerCase();
    if (!this.#parts.hasPasskeys || isIP(name) !== 0 || name.startsWith('[')) return undefined;
    return this.#parts.names().some((known) => known.toLowerCase() === name) ? name : undefined;
  }
}

/** By what a certificate is told from others; undefined: it cannot be read. */
export function keyOf({ der, serial }: ShownCertificate): CertificateKey | undefined {
  const holder = readHolder(der);
  return holder === undefined ? undefined : { authority: holder.authority, serial };
}

/** What has been begun and waits for its other half, for a while. */
class Open<T> {
  readonly #clock: Clock;
  readonly #lifeMs: number;
  readonly #entries = new Map<string, { readonly value: T; readonly endsAt: number }>();

  constructor(clock: Clock, lifeMs: number) {
    this.#clock = clock;
    this.#lifeMs = lifeMs;
  }

  add(key: string, value: T): void {
    const [oldest] = this.#entries.keys();
    if (this.#entries.size >= MAX_OPEN && oldest !== undefined) this.#entries.delete(oldest);
    this.#entries.set(key, { value, endsAt: this.#clock.now() + this.#lifeMs });
  }

  take(key: string): T | undefined {
    const entry = this.#entries.get(key);
    this.#entries.delete(key);
    return entry !== undefined && entry.endsAt > this.#clock.now() ? entry.value : undefined;
  }
}

function challengeIn(clientData: Uint8Array): Uint8Array {
  try {
    const { challenge } = JSON.parse(Buffer.from(clientData).toString('utf8')) as { challenge?: unknown };
    return Buffer.from(typeof challenge === 'string' ? challenge : '', 'base64url');
  } catch {
    return new Uint8Array();
  }
}

function challengeKey(purpose: string | undefined, challenge: Uint8Array): string {
  return `${purpose === undefined ? 'login' : `add ${purpose}`} ${Buffer.from(challenge).toString('hex')}`;
}

function hashOf(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}
