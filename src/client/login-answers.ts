/**
 * What a login asks of a person or machine, and the answers.
 *
 * The device's key and an enrolment token answer for themselves; what else is asked goes to a function that the owner of the
 * client hands in.
 */

import { VpnError } from '../base/errors.ts';
import { type LoginAnswers, type LoginClientOutput, TOKEN_BYTES } from '../protocol/login.ts';
import { fromBase64Url } from '../protocol/messages.ts';
import type { DeviceKey } from './device-key.ts';

/** A step of a login that the client's keys do not answer. */
export interface AskedStep {
  /** `oidc` is only shown: the person logs in elsewhere, and the answer to the server need not wait for that. */
  readonly kind: 'password' | 'totp' | 'token' | 'oidc' | 'ask';
  /** What the server would have the person read. */
  readonly prompt?: string;
  /** Whether the answer may be seen while it is typed. */
  readonly echo?: boolean;
  /** Of `oidc`: where the person logs in, */
  readonly url?: string;
  /** what is to be compared or typed there, */
  readonly code?: string;
  /** and how long that may take. */
  readonly seconds?: number;
}

/** What was answered; `token` is an access token as it was shown when it was made. */
export interface StepAnswers {
  readonly password?: string;
  readonly totp?: string;
  readonly token?: string;
  readonly ask?: string;
}

/** Called once a round of a login, outside of any packet. What it throws ends the login with that error. */
export type AnswerSteps = (steps: readonly AskedStep[], signal: AbortSignal) => Promise<StepAnswers>;

/** What a login can be answered with. */
export interface Answerer {
  device: DeviceKey;
  /** The one-time token of a profile: enrols the device. */
  token?: Uint8Array | undefined;
  /** The server does not know the device yet: it is brought in by the token, or by what is answered. */
  enrol: boolean;
  /** Answers the steps that a person or machine has to; without it they fail. */
  answer?: AnswerSteps | undefined;
  /** Calls the login off. */
  signal: AbortSignal;
}

const STEP_WORDS: Readonly<Record<AskedStep['kind'], string>> = {
  password: 'a password',
  totp: 'a one-time code',
  token: 'an access token',
  oidc: 'a login at an identity provider',
  ask: 'an answer',
};

/** Signs for the device and has the rest answered. @throws {VpnError} ERR_AUTH_NEEDED when nobody can answer */
export async function answersOf(
  { steps, signedBytes }: Extract<LoginClientOutput, { kind: 'answer' }>,
  { device, token, enrol, answer, signal }: Answerer,
): Promise<LoginAnswers> {
  const asked = steps.flatMap((step): AskedStep[] => {
    const { kind } = step;
    const isAsked =
      kind === 'password' ||
      kind === 'totp' ||
      kind === 'oidc' ||
      kind === 'ask' ||
      (kind === 'token' && token === undefined);
    return isAsked ? [{ ...step, kind }] : [];
  });
  const signature = device.sign(signedBytes);
  if (enrol && asked.some(({ kind }) => kind === 'token')) {
    throw new VpnError(
      'ERR_AUTH_REJECTED',
      'this machine is not enrolled, and the profile has no enrolment token any more; ask for a new profile',
    );
  }
  if (asked.length === 0) return { signature, ...(token === undefined ? {} : { token }) };
  if (answer === undefined) {
    const kinds = asked.map(({ kind }) => STEP_WORDS[kind]).join(' and ');
    throw new VpnError(
      'ERR_AUTH_NEEDED',
      `the login asks for ${kinds}; run in a terminal: customvpn client up PROFILE`,
    );
  }
  const { password, totp, token: text, ask } = await answer(asked, signal);
  const accessToken = text === undefined ? token : fromBase64Url(text.trim());
  if (text !== undefined && accessToken?.length !== TOKEN_BYTES) {
    throw new VpnError(
      'ERR_USAGE',
      'this is no access token: expected the 54 characters that were shown when it was made',
    );
  }
  return {
    signature,
    ...(accessToken === undefined ? {} : { token: accessToken }),
    ...(password === undefined ? {} : { password }),
    ...(totp === undefined ? {} : { totp }),
    ...(ask === undefined ? {} : { ask }),
  };
}
