/**
 * The `password` step: the client's user knows their password.
 *
 * Whose password it is says the name that was typed or, without one, the device. It must not know where passwords are.
 *
 * @see docs/protocol.md §6
 */

import type { Store } from '../../store/store.ts';
import type { Passwords } from '../passwords.ts';
import { claimedUser } from './claimed-user.ts';
import type { Attempt, Finding, LoginStep } from './step.ts';

export class PasswordStep implements LoginStep {
  readonly kind = 'password';
  readonly #store: Store;
  readonly #passwords: Passwords;

  constructor(store: Store, passwords: Passwords) {
    this.#store = store;
    this.#passwords = passwords;
  }

  /** @throws {VpnError} ERR_BUSY when too many passwords wait to be judged: no verdict */
  async examine(attempt: Attempt): Promise<Finding> {
    const user = await claimedUser(this.#store, attempt);
    const { right, renew } = await this.#passwords.check(user?.id, attempt.evidence.password ?? '');
    if (!right || user === undefined) {
      const reason = user === undefined ? 'a password for nobody we know' : 'the password is wrong';
      return { refusal: { code: 'rejected', reason } };
    }
    if (renew === undefined) return { subject: user };
    return {
      subject: user,
      spend: async (db) => {
        await renew(db);
        return undefined;
      },
    };
  }
}
