/**
 * Where a client in the background asks the people who started it, and tells them how it goes.
 *
 * Hides who is there: callers look in by long polls, and whoever has not for a while is gone. A question waits for somebody only
 * for a moment, because a login's deadline runs at the server. It must not know what is asked.
 */

import { toVpnError, VpnError } from '../base/errors.ts';
import type { AskedStep, StepAnswers } from './login-answers.ts';

/** How long somebody who looked in counts as present. */
const PRESENT_MS = 4000;
/** How long a question waits for the first caller. */
const NOBODY_MS = 2000;

/** What a caller is told. `nothing`: it waited, and there is no news. */
export type DeskNews =
  | { readonly kind: 'nothing' }
  | { readonly kind: 'up' }
  | { readonly kind: 'down' }
  | { readonly kind: 'failed'; readonly code: string; readonly message: string }
  | { readonly kind: 'ask'; readonly id: number; readonly steps: AskedStep[] };

interface Question {
  readonly id: number;
  readonly steps: readonly AskedStep[];
  readonly done: PromiseWithResolvers<StepAnswers>;
  isTaken: boolean;
}

export class Desk {
  /** How the last attempt came out; cleared when another begins. */
  #outcome: DeskNews | undefined;
  #question: Question | undefined;
  #nextId = 1;
  #callers = 0;
  #lastSeen = Number.NEGATIVE_INFINITY;
  #news = Promise.withResolvers<void>();
  readonly #now: () => number;

  /** @param now monotonic milliseconds */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Whether somebody looks in. */
  get isAttended(): boolean {
    return this.#callers > 0 || this.#now() - this.#lastSeen < PRESENT_MS;
  }

  /** What is known, or happens within `waitMs`. */
  async next(waitMs: number): Promise<DeskNews> {
    this.#callers += 1;
    try {
      let news = this.#current();
      if (news === undefined) {
        const { promise, resolve } = Promise.withResolvers<void>();
        const timer = setTimeout(resolve, waitMs);
        await Promise.race([promise, this.#news.promise]);
        clearTimeout(timer);
        news = this.#current();
      }
      return news ?? { kind: 'nothing' };
    } finally {
      this.#callers -= 1;
      this.#lastSeen = this.#now();
    }
  }

  /** Answers a question. An answer to one that is settled is dropped. */
  answer(id: number, answers: StepAnswers): void {
    if (this.#question?.id === id) this.#question.done.resolve(answers);
  }

  /** Somebody will not answer a question. */
  decline(id: number, error: VpnError): void {
    if (this.#question?.id === id) this.#question.done.reject(error);
  }

  /** An attempt begins: what came before is no news. */
  begin(): void {
    this.#outcome = undefined;
  }

  up(): void {
    this.#tell({ kind: 'up' });
  }

  down(): void {
    this.#tell({ kind: 'down' });
  }

  failed(cause: unknown): void {
    const { code, message } = toVpnError(cause);
    this.#tell({ kind: 'failed', code, message });
  }

  /** Asks whoever is there. @throws {VpnError} ERR_AUTH_NEEDED when nobody is, and what declines */
  async ask(steps: readonly AskedStep[], signal: AbortSignal): Promise<StepAnswers> {
    const question: Question = { id: this.#nextId++, steps, done: Promise.withResolvers(), isTaken: false };
    const nobody = (): VpnError =>
      new VpnError(
        'ERR_AUTH_NEEDED',
        `the login asks for ${steps.map(({ kind }) => WORDS[kind]).join(' and ')}, and nobody is there to answer; run in a terminal: customvpn client up PROFILE`,
      );
    const askedAt = this.#now();
    const watch = setInterval(() => {
      if (!this.isAttended && this.#now() - askedAt > NOBODY_MS) question.done.reject(nobody());
    }, 500);
    const callOff = (): void => question.done.reject(new VpnError('ERR_CONNECT', 'the login was called off'));
    signal.addEventListener('abort', callOff, { once: true });
    this.#question = question;
    this.#wake();
    try {
      return await question.done.promise;
    } finally {
      clearInterval(watch);
      signal.removeEventListener('abort', callOff);
      if (this.#question === question) this.#question = undefined;
    }
  }

  #current(): DeskNews | undefined {
    const question = this.#question;
    if (question !== undefined && !question.isTaken) {
      question.isTaken = true;
      return { kind: 'ask', id: question.id, steps: [...question.steps] };
    }
    return this.#outcome;
  }

  #tell(outcome: DeskNews): void {
    this.#outcome = outcome;
    this.#wake();
  }

  #wake(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }
}

const WORDS: Readonly<Record<AskedStep['kind'], string>> = {
  password: 'a password',
  totp: 'a one-time code',
  token: 'an access token',
  oidc: 'a login at an identity provider',
  ask: 'an answer',
};
