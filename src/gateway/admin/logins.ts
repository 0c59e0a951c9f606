/**
 * Who is logged in at the admin page, and how one gets in: by a login, or once by a link that makes the first administrator.
 *
 * Hides cookies' secrets, of which only hashes are kept, and their ends. A session is never taken over from what a browser
 * brings: each login makes a new one. What somebody may do is asked of the store at every call, so that a change holds at once.
 * It lives in memory: after a restart everybody logs in again.
 */

import { createHash, randomBytes } from 'node:crypto';
import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import type { Role } from '../../control/operations.ts';

const SECRET_BYTES = 32;
const MAX_SESSIONS = 1000;
const MAX_PER_USER = 10;
const LINK_MS = 3_600_000;
const MAX_LINKS = 5;

/** A client certificate, by its issuer in short and its serial number, lower-case hexadecimal. */
export interface CertificateKey {
  readonly authority: string;
  readonly serial: string;
}

/** A login that lasts. */
export interface AdminSession {
  /** Public: tells sessions apart. */
  readonly id: string;
  readonly user: string;
  role: Role;
  /** Address and port it came from. */
  readonly source: string;
  /** By which it was opened; undefined: by something else. */
  readonly certificate: CertificateKey | undefined;
  /** Shown in a header with every change; a page of another site cannot know it. */
  readonly csrf: string;
  /** Milliseconds since the Unix epoch. */
  readonly since: number;
  /** By the monotonic clock. */
  readonly openedAt: number;
  usedAt: number;
  /** Told when it is over. */
  readonly ended: AbortController;
}

/** A link that has been made, and how far its bearer has got. */
interface Link {
  readonly endsAt: number;
  /** The account that was made by it, which has no right yet. */
  account: string | undefined;
}

export interface AdminLoginsOptions {
  readonly clock: Clock;
  readonly idleSeconds: number;
  readonly absoluteSeconds: number;
}

export class AdminLogins {
  readonly #options: AdminLoginsOptions;
  /** By the hash of their secret. */
  readonly #sessions = new Map<string, AdminSession>();
  readonly #links = new Map<string, Link>();

  constructor(options: AdminLoginsOptions) {
    this.#options = options;
  }

  /** Begins a session; `secret` is for the cookie, and seen this once. */
  open(
    user: string,
    role: Role,
    source: string,
    certificate?: CertificateKey,
  ): { secret: string; session: AdminSession } {
    this.#sweep();
    const own = [...this.#sessions].filter(([, session]) => session.user === user);
    const excess =
      own.length >= MAX_PER_USER ? own[0] : this.#sessions.size >= MAX_SESSIONS ? [...this.#sessions][0] : undefined;
    if (excess !== undefined) this.#end(excess[0]);
    const secret = newSecret();
    const now = this.#options.clock.now();
    const session: AdminSession = {
      id: randomBytes(8).toString('hex'),
      user,
      role,
      source,
      certificate,
      csrf: newSecret(),
      since: this.#options.clock.wallNow(),
      openedAt: now,
      usedAt: now,
      ended: new AbortController(),
    };
    this.#sessions.set(hashOf(secret), session);
    return { secret, session };
  }

  /** The session of a cookie, if it lasts; `isUse`: it lasts longer for it. */
  find(secret: string | undefined, { isUse }: { isUse: boolean }): AdminSession | undefined {
    const key = hashOf(secret ?? '');
    const session = this.#sessions.get(key);
    if (session === undefined) return undefined;
    if (!this.#isLive(session)) {
      this.#end(key);
      return undefined;
    }
    if (isUse) session.usedAt = this.#options.clock.now();
    return session;
  }

  /** Ends the session of a cookie, if there is one; returns whose it was. */
  close(secret: string | undefined): AdminSession | undefined {
    const key = hashOf(secret ?? '');
    const session = this.#sessions.get(key);
    this.#end(key);
    return session;
  }

  /** Ends all of a user's sessions, such as after a change of password. */
  endUser(user: string): void {
    for (const [key, session] of [...this.#sessions]) if (session.user === user) this.#end(key);
  }

  /** Ends the sessions that were opened by such a client certificate. */
  endCertificates(isConcerned: (certificate: CertificateKey) => boolean): void {
    for (const [key, { certificate }] of [...this.#sessions]) {
      if (certificate !== undefined && isConcerned(certificate)) this.#end(key);
    }
  }

  /** Ends everything. */
  endAll(): void {
    for (const key of [...this.#sessions.keys()]) this.#end(key);
  }

  /** Those that last, the newest first. */
  list(): AdminSession[] {
    this.#sweep();
    return [...this.#sessions.values()].reverse();
  }

  /** Makes a link's secret, good once within an hour. */
  makeLink(): { secret: string; expiresAt: number } {
    const now = this.#options.clock.now();
    for (const [key, link] of this.#links) if (link.endsAt <= now) this.#links.delete(key);
    const [oldest] = this.#links.keys();
    if (this.#links.size >= MAX_LINKS && oldest !== undefined) this.#links.delete(oldest);
    const secret = newSecret();
    this.#links.set(hashOf(secret), { endsAt: now + LINK_MS, account: undefined });
    return { secret, expiresAt: this.#options.clock.wallNow() + LINK_MS };
  }

  /** A link that is good. @throws {VpnError} ERR_AUTH_REJECTED */
  link(secret: string): { account: string | undefined } {
    const link = this.#links.get(hashOf(secret));
    if (link !== undefined && link.endsAt > this.#options.clock.now()) return link;
    throw new VpnError(
      'ERR_AUTH_REJECTED',
      'this link has been used, or is too old; make another on the gateway with: customvpn server admin-link',
    );
  }

  /** Takes a link away; false: somebody was faster. */
  useLink(secret: string): boolean {
    return this.#links.delete(hashOf(secret));
  }

  #isLive({ openedAt, usedAt }: AdminSession): boolean {
    const { clock, idleSeconds, absoluteSeconds } = this.#options;
    const now = clock.now();
    return now < openedAt + absoluteSeconds * 1000 && now < usedAt + idleSeconds * 1000;
  }

  #sweep(): void {
    for (const [key, session] of [...this.#sessions]) if (!this.#isLive(session)) this.#end(key);
  }

  #end(key: string): void {
    const session = this.#sessions.get(key);
    this.#sessions.delete(key);
    session?.ended.abort();
  }
}

function newSecret(): string {
  return randomBytes(SECRET_BYTES).toString('base64url');
}

/** A look-up by a hash tells nothing of a secret by the time it takes. */
function hashOf(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}
