/**
 * The `oidc` step: the client's user logs in at an identity provider, with a browser of their own (RFC 8628).
 *
 * Two moments: `begin` asks the provider for an address and a code, which the client shows; `examine` waits for what the
 * provider says of the person. What waits belongs to one connection and one device, and ends with the connection. Whom the
 * provider names has an account here from then on. A device that nobody knows is a stranger until then: strangers share a
 * bounded number of logins and a rate of them, so that they keep nobody else from the provider.
 *
 * @see docs/protocol.md §6
 */

import type { Clock } from '../../base/clock.ts';
import { toVpnError } from '../../base/errors.ts';
import type { BackendVerdict, BrowserBackend, BrowserLogin } from '../backends/backend.ts';
import type { Attempt, Finding, LoginStep, Refusal, StepDetails, Subject } from './step.ts';

/** The provider has its own limit for each request; this is for all that it takes to begin. */
const BEGIN_MS = 30_000;
const MAX_LOGINS = 256;
const MAX_STRANGERS = MAX_LOGINS / 2;
/** Logins that strangers begin at once, and per second in the long run. */
const STRANGERS_AT_ONCE = 60;
const STRANGERS_PER_SECOND = 1;

/** The provider that people are sent to, and what becomes of their accounts here. */
export interface LoginProvider {
  readonly backend: BrowserBackend;
  /** The longest that a person may take. */
  readonly seconds: number;
  /** Makes or updates the account of somebody whom a source has accepted; undefined when the name is not the source's. */
  provision(user: string, source: string, groups: readonly string[] | undefined): Promise<Subject | undefined>;
}

/** A person who is at the provider, or about to be. */
interface Waiting {
  readonly device: string;
  readonly isStranger: boolean;
  readonly calledOff: AbortController;
  begun?: { readonly login: BrowserLogin; readonly provider: LoginProvider; readonly seconds: number };
}

export class OidcStep implements LoginStep {
  readonly kind = 'oidc';
  readonly #provider: () => LoginProvider | undefined;
  readonly #clock: Clock;
  /** By connection. */
  readonly #waiting = new Map<string, Waiting>();
  #allowance = STRANGERS_AT_ONCE;
  #allowedAt: number;

  /** @param provider asked at each login; undefined: nobody can pass */
  constructor(provider: () => LoginProvider | undefined, clock: Clock) {
    this.#provider = provider;
    this.#clock = clock;
    this.#allowedAt = clock.now();
  }

  /** How many people are waited for. */
  get waiting(): number {
    return this.#waiting.size;
  }

  async begin({ peer, device }: Attempt, isKnown: boolean): Promise<StepDetails | Refusal> {
    const provider = this.#provider();
    if (provider === undefined) return { code: 'rejected', reason: 'no provider is configured' };
    this.forget(peer.binding);
    const full = this.#whyFull(!isKnown);
    if (full !== undefined) return { code: 'busy', reason: full };
    const waiting: Waiting = { device, isStranger: !isKnown, calledOff: new AbortController() };
    this.#waiting.set(peer.binding, waiting);
    try {
      const limit = AbortSignal.any([waiting.calledOff.signal, AbortSignal.timeout(BEGIN_MS)]);
      const login = await provider.backend.begin(limit);
      const left = Math.floor((login.expiresAt - this.#clock.wallNow()) / 1000);
      const seconds = Math.max(1, Math.min(provider.seconds, left));
      waiting.begun = { login, provider, seconds };
      return { url: login.url, code: login.code, seconds };
    } catch (error) {
      this.#done(peer.binding, waiting);
      return { code: 'unavailable', reason: `${provider.backend.name} cannot say: ${toVpnError(error).message}` };
    }
  }

  async examine({ peer, device }: Attempt): Promise<Finding> {
    const waiting = this.#waiting.get(peer.binding);
    if (waiting?.begun === undefined || waiting.device !== device)
      return refuse('a login at a provider that nobody began');
    const { login, provider, seconds } = waiting.begun;
    const late = AbortSignal.timeout(seconds * 1000);
    let verdict: BackendVerdict;
    try {
      verdict = await login.finish(AbortSignal.any([waiting.calledOff.signal, late]));
    } finally {
      this.#done(peer.binding, waiting);
    }
    const { name } = provider.backend;
    switch (verdict.kind) {
      case 'accepted': {
        if (waiting.calledOff.signal.aborted) return refuse('the client went away before the person was done');
        const subject = await provider.provision(verdict.user, name, verdict.groups);
        return subject === undefined ? refuse(`${name} accepts a name that is not its own here`) : { subject };
      }
      case 'refused':
        return refuse(`${name}: ${verdict.reason}`);
      case 'unavailable':
        if (waiting.calledOff.signal.aborted) return refuse('the client went away before the person was done');
        if (late.aborted) return refuse(`the person was not done at ${name} within ${seconds} s`);
        return { refusal: { code: 'unavailable', reason: `${name} cannot say: ${verdict.reason}` } };
      case 'ask':
        return refuse(`${name} asks what a login at a provider has no answer for`);
    }
  }

  /** Calls off what waits for the user of a connection. */
  forget(binding: string): void {
    this.#waiting.get(binding)?.calledOff.abort();
    this.#waiting.delete(binding);
  }

  #done(binding: string, waiting: Waiting): void {
    if (this.#waiting.get(binding) === waiting) this.#waiting.delete(binding);
  }

  #whyFull(isStranger: boolean): string | undefined {
    if (this.#waiting.size >= MAX_LOGINS) return `${MAX_LOGINS} people are at the provider already`;
    if (!isStranger) return undefined;
    const strangers = [...this.#waiting.values()].filter((waiting) => waiting.isStranger).length;
    if (strangers >= MAX_STRANGERS) return `${MAX_STRANGERS} people with unknown devices are at the provider already`;
    const now = this.#clock.now();
    const earned = ((now - this.#allowedAt) / 1000) * STRANGERS_PER_SECOND;
    this.#allowance = Math.min(STRANGERS_AT_ONCE, this.#allowance + earned);
    this.#allowedAt = now;
    if (this.#allowance < 1) return 'unknown devices have begun too many logins at the provider';
    this.#allowance -= 1;
    return undefined;
  }
}

function refuse(reason: string): Finding {
  return { refusal: { code: 'rejected', reason } };
}
