/**
 * The `token` step: the client holds the one-time token of a profile, which vouches for its device key.
 *
 * Only a holder of the right secret hears more than `rejected`: that the profile is used, or too old.
 *
 * @see docs/protocol.md §6
 */

import { AuditEvent } from '../../store/audit.ts';
import type { Enrolment, EnrolmentTokens, KnownToken } from '../enrolment.ts';
import type { Attempt, Finding, LoginStep, Refusal } from './step.ts';

const NO_TOKEN = new Uint8Array(0);

export class TokenStep implements LoginStep {
  readonly kind = 'token';
  readonly #tokens: EnrolmentTokens;

  constructor(tokens: EnrolmentTokens) {
    this.#tokens = tokens;
  }

  async examine({ evidence, device, peer, now }: Attempt): Promise<Finding> {
    const token = await this.#tokens.find(evidence.token ?? NO_TOKEN);
    if (token === undefined) return { refusal: { code: 'rejected', reason: 'the token is unknown or wrong' } };
    const subject = token.user;
    const isRepeated = token.bound?.device === device && !token.spent;
    if (token.bound !== undefined && !isRepeated) {
      return { subject, refusal: used(token.id, token.bound, device, peer.remote) };
    }
    if (!isRepeated && token.expiresAt <= now) {
      return { subject, refusal: { code: 'token_expired', reason: 'the token has expired' } };
    }
    const { algorithm, publicKey, client } = evidence;
    if (publicKey === undefined) {
      return { subject, refusal: { code: 'rejected', reason: 'an enrolment without a public key' } };
    }
    const enrolment: Enrolment = { device, algorithm, publicKey, name: client.name, source: peer.remote };
    return { subject, spend: (db) => this.#spend(db, token, enrolment) };
  }

  async #spend(
    db: Parameters<EnrolmentTokens['bind']>[0],
    token: KnownToken,
    enrolment: Enrolment,
  ): Promise<Refusal | undefined> {
    switch (await this.#tokens.bind(db, token, enrolment)) {
      case 'bound':
      case 'repeated':
        return undefined;
      case 'full':
        return { code: 'too_many_devices', reason: 'the user has as many devices as they may' };
      case 'foreign':
        return { code: 'rejected', reason: "the device is another user's" };
      case 'taken': {
        const holder = await this.#tokens.holder(db, token.id);
        if (holder === undefined) return { code: 'token_expired', reason: 'the token expired or went away meanwhile' };
        return used(token.id, holder, enrolment.device, enrolment.source);
      }
    }
  }
}

function used(token: string, holder: { device: string; source: string }, device: string, source: string): Refusal {
  return {
    code: 'profile_used',
    event: AuditEvent.tokenReused,
    reason: holder.device === device ? 'the device has logged in since' : 'another device has the token',
    detail: {
      token,
      firstDevice: holder.device,
      firstSource: holder.source,
      secondDevice: device,
      secondSource: source,
    },
  };
}
