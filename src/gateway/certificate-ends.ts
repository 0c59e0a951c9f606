/**
 * Says, a month ahead and every day, which certificates and revocation lists are about to end.
 *
 * Hides what counts as soon and when it was said last. It must not know where certificates come from.
 */

import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import { Repeat } from '../base/repeat.ts';
import type { CertificateFacts } from '../identity/pki.ts';
import type { SessionCertificate } from '../store/sessions.ts';

const DAY_MS = 86_400_000;
const WARNING_DAYS = 30;
const LOOK_MS = 600_000;

/** Something that ends. */
export interface End {
  /** The same for the same thing, wherever it was found. */
  readonly key: string;
  /** As in "the server certificate of vpn.example.org". */
  readonly what: string;
  /** Milliseconds since the Unix epoch. */
  readonly at: number;
  /** What to do about it. */
  readonly remedy?: string;
  /** What part it has in the gateway's own TLS. */
  readonly kind?: 'server' | 'intermediate' | 'authority' | 'revocation_list';
}

export interface CertificateEndsOptions {
  find(): Promise<readonly End[]>;
  clock: Clock;
  log: Logger;
}

export class CertificateEnds {
  readonly #options: CertificateEndsOptions;
  readonly #log: Logger;
  /** When each was said, milliseconds since the Unix epoch. */
  #said = new Map<string, number>();
  readonly #looks: Repeat;

  constructor(options: CertificateEndsOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'certificates' });
    this.#looks = new Repeat(
      LOOK_MS,
      () => this.#say(),
      (error) => this.#log.error('the ends of certificates could not be looked at', { error }),
    );
  }

  start(): void {
    this.#looks.start();
  }

  /** Resolves when nothing is looked at any more. */
  async stop(): Promise<void> {
    await this.#looks.stop();
  }

  /** Logs what ends soon and has not been logged for a day. Never rejects; while one look runs, another is the same one. */
  look(): Promise<void> {
    return this.#looks.run();
  }

  /** What ends soon or has ended, each once, the soonest first. */
  async soon(): Promise<{ key: string; text: string }[]> {
    const now = this.#options.clock.wallNow();
    const found = new Map<string, End>();
    for (const end of await this.#options.find()) {
      if (end.at - now < WARNING_DAYS * DAY_MS && !found.has(end.key)) found.set(end.key, end);
    }
    return [...found.values()].sort((a, b) => a.at - b.at).map((end) => ({ key: end.key, text: textOf(end, now) }));
  }

  async #say(): Promise<void> {
    const now = this.#options.clock.wallNow();
    const said = new Map<string, number>();
    for (const { key, text } of await this.soon()) {
      const last = this.#said.get(key);
      // A clock that was set back must not silence it.
      const isDue = last === undefined || now - last >= DAY_MS || now < last;
      if (isDue) this.#log.warn(text);
      said.set(key, isDue ? now : last);
    }
    this.#said = said;
  }
}

function textOf({ what, at, remedy }: End, now: number): string {
  const day = new Date(at).toISOString().slice(0, 10);
  const days = Math.floor((at - now) / DAY_MS);
  const when = at <= now ? `has ended on ${day}` : `ends in ${days} days, on ${day}`;
  return `${what} ${when}${remedy === undefined ? '' : `; ${remedy}`}`;
}

/** What the built-in authority has made and is of use: not what was revoked, superseded or has ended unused. */
export function endsOf(certificates: readonly CertificateFacts[]): End[] {
  return certificates.flatMap(({ role, name, serial, notAfter, revoked, isNewest }) => {
    if (revoked || !isNewest) return [];
    const remedy =
      role === 'ca'
        ? 'make another gateway and new profiles'
        : `renew it with: customvpn pki renew${role === 'client' ? ` ${name}` : ''}`;
    return [{ key: serial, what: `the ${role} certificate of ${name}`, at: notAfter.getTime(), remedy }];
  });
}

/** Of the client certificate that a session rests on. */
export function endOfSession({ name, serial, notAfter }: SessionCertificate): End {
  return { key: serial, what: `the client certificate ${serial} of ${name}, in use by a session,`, at: notAfter };
}
