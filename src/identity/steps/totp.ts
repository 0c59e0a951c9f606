/**
 * The `totp` step: the client's user has their second factor at hand, or a recovery code.
 *
 * A code is used up only when everything else of the login was right: a stolen code alone cannot be burnt to annoy, nor
 * tried again once it was used.
 *
 * @see docs/protocol.md §6
 */

import type { Store } from '../../store/store.ts';
import type { SecondFactors } from '../second-factor.ts';
import { claimedUser } from './claimed-user.ts';
import type { Attempt, Finding, LoginStep } from './step.ts';

export class TotpStep implements LoginStep {
  readonly kind = 'totp';
  readonly #store: Store;
  readonly #factors: SecondFactors;

  constructor(store: Store, factors: SecondFactors) {
    this.#store = store;
    this.#factors = factors;
  }

  async examine(attempt: Attempt): Promise<Finding> {
    const user = await claimedUser(this.#store, attempt);
    const verdict = await this.#factors.check(user?.id, attempt.evidence.totp ?? '', attempt.now);
    if (user === undefined) return { refusal: { code: 'rejected', reason: 'a code for nobody we know' } };
    if (!verdict.right) return { refusal: { code: 'rejected', reason: verdict.reason } };
    return {
      subject: user,
      spend: async (db) =>
        (await verdict.spend(db)) ? undefined : { code: 'rejected', reason: 'the code was used by another login' },
    };
  }
}
