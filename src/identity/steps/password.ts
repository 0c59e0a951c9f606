/**
 * The `password` step: the client's user knows their password.
 *
 * Whose password it is says the name that was typed or, without one, the device. An account of ours has its password in the
 * store; one of an outside source is judged there, and so is a name that nobody has here, where a source is configured for
 * such: who is accepted there has an account here from then on. A source that does not answer refuses nobody for good. One
 * that has a question of its own (a RADIUS challenge) has it answered by the person before it judges.
 *
 * @see docs/protocol.md §6
 */

import type { Store } from '../../store/store.ts';
import type { PasswordBackend } from '../backends/backend.ts';
import { normaliseName } from '../names.ts';
import { normalisePassword, type Passwords } from '../passwords.ts';
import { claimedUser } from './claimed-user.ts';
import type { Attempt, Finding, LoginStep, Refusal, Subject } from './step.ts';

/** A source has its own limits for each question; this is for whatever they leave out. */
const SOURCE_MS = 30_000;
/** Code points of a source's question; two UTF-16 units each at most. */
const MAX_PROMPT = 120;
/** An answer is a password for the source. */
const MAX_ANSWER = 128;

/** The outside sources that judge passwords, and what becomes of their accounts here. */
export interface PasswordSources {
  /** Undefined when none of that name is configured, or it judges no passwords. */
  find(name: string): PasswordBackend | undefined;
  /** Judges the names that nobody has here; undefined: nobody does. */
  readonly forStrangers: string | undefined;
  /** Makes or updates the account of somebody whom a source has accepted; undefined when the name is not the source's. */
  provision(user: string, source: string, groups: readonly string[] | undefined): Promise<Subject | undefined>;
}

/** Who is asked about whom. */
interface Asked {
  readonly sources: PasswordSources;
  readonly source: string;
  readonly backend: PasswordBackend;
  readonly user: string;
}

export class PasswordStep implements LoginStep {
  readonly kind = 'password';
  readonly #store: Store;
  readonly #passwords: Passwords;
  readonly #sources: () => PasswordSources | undefined;

  /** @param sources asked at each login */
  constructor(store: Store, passwords: Passwords, sources: () => PasswordSources | undefined = () => undefined) {
    this.#store = store;
    this.#passwords = passwords;
    this.#sources = sources;
  }

  /** @throws {VpnError} ERR_BUSY when too many passwords wait to be judged: no verdict */
  async examine(attempt: Attempt): Promise<Finding> {
    const user = await claimedUser(this.#store, attempt);
    const sources = this.#sources();
    const source = user === undefined ? sources?.forStrangers : (user.source ?? undefined);
    const name = user?.name ?? normaliseName(attempt.evidence.user ?? '');
    if (sources !== undefined && source !== undefined && name !== undefined) {
      return await this.#askSource(sources, source, name, attempt);
    }
    const verdict = await this.#passwords.check(user?.id, attempt.evidence.password ?? '');
    if (!verdict.right || user === undefined) {
      const reason = user === undefined ? 'a password for nobody we know' : 'the password is wrong';
      return { refusal: { code: 'rejected', reason } };
    }
    return {
      subject: user,
      spend: async (db) =>
        (await verdict.confirm(db)) ? undefined : { code: 'rejected', reason: 'the password was changed meanwhile' },
    };
  }

  /** A refusal comes no sooner than one of an account of ours: else its time would tell which names those are. */
  async #askSource(sources: PasswordSources, source: string, user: string, attempt: Attempt): Promise<Finding> {
    const text = attempt.evidence.password ?? '';
    const likeOurs = this.#passwords.check(undefined, text);
    likeOurs.catch(() => {});
    const finding = await this.#judgeAtSource(sources, source, user, text, attempt);
    if (finding.refusal?.code === 'rejected') await likeOurs;
    return finding;
  }

  async #judgeAtSource(
    sources: PasswordSources,
    source: string,
    user: string,
    text: string,
    attempt: Attempt,
  ): Promise<Finding> {
    const password = normalisePassword(text);
    const backend = sources.find(source);
    if (password === undefined) return refuse('a password that nobody can have');
    if (backend === undefined) return refuse(`the source ${source} is not configured, or judges no passwords`);
    return await this.#authenticate({ sources, source, backend, user }, password, undefined, attempt);
  }

  async #authenticate(asked: Asked, password: string, state: string | undefined, { peer }: Attempt): Promise<Finding> {
    const { sources, source, backend, user } = asked;
    const question = { user, password, source: peer.remote, ...(state === undefined ? {} : { state }) };
    const verdict = await backend.authenticate(question, AbortSignal.timeout(SOURCE_MS));
    switch (verdict.kind) {
      case 'accepted': {
        const subject = await sources.provision(verdict.user, source, verdict.groups);
        return subject === undefined ? refuse(`${source} accepts a name that is not its own here`) : { subject };
      }
      case 'refused':
        return refuse(`${source}: ${verdict.reason}`);
      case 'unavailable':
        return refuse(`${source} cannot say: ${verdict.reason}`, 'unavailable');
      case 'ask':
        return {
          question: {
            prompt: shownPrompt(verdict.prompt),
            echo: verdict.echo,
            answer: async (text, attempt) => {
              if (text === '' || text.length > MAX_ANSWER) return refuse('an answer that is empty or too long');
              return await this.#authenticate(asked, text, verdict.state, attempt);
            },
          },
        };
    }
  }
}

/** A source's own words, fit for a message and a terminal. */
function shownPrompt(text: string): string {
  const printable = text.normalize('NFC').replaceAll(/[\p{C}\p{Zl}\p{Zp}]+/gu, ' ');
  return [...printable.trim()].slice(0, MAX_PROMPT).join('') || 'Response';
}

function refuse(reason: string, code: Refusal['code'] = 'rejected'): Finding {
  return { refusal: { code, reason } };
}
