/**
 * Ends sessions when the time of what they rest on is over: of the account, of the access token that was shown at the
 * login, of the client certificate.
 *
 * Hides how often it is looked. Everything else that takes a right away ends sessions when it happens; time alone tells
 * nobody. It must not know how a session ends.
 */

import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import { Repeat } from '../../base/repeat.ts';
import type { CloseReason } from '../../protocol/messages.ts';
import type { RightsHolder } from './rights.ts';

const LOOK_MS = 1_000;

export interface ExpiryOptions {
  /** The users whose account has expired and who have a session on record. */
  expiredUsers(): Promise<readonly string[]>;
  /** Ends the sessions that are concerned; returns how many there were. */
  closeSessions(concerned: (holder: RightsHolder) => boolean, reason: CloseReason): number;
  clock: Clock;
  log: Logger;
}

export class Expiry {
  readonly #options: ExpiryOptions;
  readonly #log: Logger;
  readonly #looks: Repeat;
  /** The last look has failed, and that has been said. */
  #isFailing = false;

  constructor(options: ExpiryOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'expiry' });
    this.#looks = new Repeat(
      LOOK_MS,
      () => this.#end(),
      (error) => {
        if (!this.#isFailing) this.#log.error('it cannot be looked which accounts have expired', { error });
        this.#isFailing = true;
      },
    );
  }

  start(): void {
    this.#looks.start();
  }

  /** Resolves when no session is ended any more. */
  async stop(): Promise<void> {
    await this.#looks.stop();
  }

  async #end(): Promise<void> {
    const { clock, closeSessions, expiredUsers } = this.#options;
    const now = clock.wallNow();
    // A client may have another certificate or token by now: it is asked to log in again.
    const outdated = closeSessions(({ endsAt }) => endsAt !== undefined && endsAt <= now, 'session_timeout');
    if (outdated > 0) this.#log.info('sessions have outlived the token or certificate of their login', { outdated });
    const users = new Set(await expiredUsers());
    if (this.#isFailing) this.#log.info('it is looked again which accounts have expired');
    this.#isFailing = false;
    if (users.size === 0) return;
    const ended = closeSessions(({ user }) => user !== undefined && users.has(user), 'revoked');
    if (ended > 0) this.#log.info('accounts have expired; their sessions have ended', { users: [...users], ended });
  }
}
