/**
 * The `token` step of a login: the client holds an access token, as machines do.
 *
 * At an enrolment the step of that name takes a profile's one-time token instead; see `token.ts`.
 */

import type { AccessTokens } from '../access-tokens.ts';
import type { Attempt, Finding, LoginStep } from './step.ts';

const NO_TOKEN = new Uint8Array(0);

export class AccessTokenStep implements LoginStep {
  readonly kind = 'token';
  readonly #tokens: AccessTokens;

  constructor(tokens: AccessTokens) {
    this.#tokens = tokens;
  }

  async examine({ evidence, now }: Attempt): Promise<Finding> {
    const verdict = await this.#tokens.check(evidence.token ?? NO_TOKEN, 'tunnel', now);
    if (!verdict.right) return { subject: verdict.user, refusal: { code: 'rejected', reason: verdict.reason } };
    return {
      subject: verdict.user,
      endsAt: verdict.endsAt,
      token: verdict.id,
      spend: async (db) =>
        (await this.#tokens.spend(db, verdict.id))
          ? undefined
          : { code: 'rejected', reason: 'the token was revoked meanwhile' },
    };
  }
}
