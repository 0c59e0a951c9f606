/**
 * Tells outside sources of the sessions that their accounts have: start, course and end.
 *
 * Hides which source is told and when. What one session has to tell is told in order; a source that does not listen delays
 * nobody and loses what it was told. It must not know packets or workers.
 */

import type { Clock } from '../../base/clock.ts';
import { toVpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { SessionAccountant, SessionReport } from '../../identity/backends/backend.ts';
import type { CloseReason } from '../../protocol/messages.ts';
import { LogLimit } from '../../transport/log-limit.ts';

const TICK_MS = 5000;
/** How long the last reports of a gateway that stops are waited for. */
const SETTLE_MS = 5000;

/** A session whose facts are read when they are told. */
export interface AccountedSession {
  /** Tells sessions apart; not enough to take one over. */
  readonly id: string;
  readonly user: string;
  readonly addresses: readonly string[];
  /** Address and port of the client. */
  readonly remote: string;
  readonly counters: SessionReport['counters'];
}

interface Account {
  readonly session: AccountedSession;
  readonly openedAt: number;
  readonly accountant: Promise<SessionAccountant | undefined>;
  /** Everything that was to be told so far. */
  told: Promise<void>;
  isTelling: boolean;
  nextAt: number;
}

export interface AccountingOptions {
  /** By name of the source. */
  accountants: ReadonlyMap<string, SessionAccountant>;
  sourceOf(user: string): Promise<string | undefined>;
  clock: Clock;
  log: Logger;
}

export class Accounting {
  readonly #options: AccountingOptions;
  readonly #lines: LogLimit;
  readonly #accounts = new Map<string, Account>();
  readonly #last = new Set<Promise<void>>();
  readonly #stopping = new AbortController();
  #timer: NodeJS.Timeout | undefined;

  constructor(options: AccountingOptions) {
    this.#options = options;
    this.#lines = new LogLimit(options.log.child({ component: 'accounting' }), options.clock);
  }

  start(): void {
    if (this.#options.accountants.size === 0) return;
    this.#timer = setInterval(() => this.tick(), TICK_MS);
    this.#timer.unref();
  }

  opened(session: AccountedSession): void {
    const { accountants, sourceOf, clock } = this.#options;
    if (accountants.size === 0) return;
    const openedAt = clock.now();
    const accountant = sourceOf(session.user).then(
      (source) => (source === undefined ? undefined : accountants.get(source)),
      () => undefined,
    );
    const account: Account = {
      session,
      openedAt,
      accountant,
      told: Promise.resolve(),
      isTelling: false,
      nextAt: Number.POSITIVE_INFINITY,
    };
    this.#accounts.set(session.id, account);
    accountant.then((found) => {
      if (found?.interimSeconds === undefined) this.#accounts.delete(session.id);
      else account.nextAt = openedAt + found.interimSeconds * 1000;
    });
    this.#tell(account, 'start');
  }

  ended(session: AccountedSession, reason: CloseReason): void {
    const account = this.#accounts.get(session.id);
    if (account === undefined) return;
    this.#accounts.delete(session.id);
    const last = this.#tell(account, 'stop', reason).finally(() => this.#last.delete(last));
    this.#last.add(last);
  }

  /** Tells of the running sessions whose time has come. */
  tick(): void {
    const now = this.#options.clock.now();
    for (const account of this.#accounts.values()) {
      // A source that is slower than its interval is not told of more than it hears.
      if (account.nextAt <= now && !account.isTelling) this.#tell(account, 'interim');
    }
  }

  /** Resolves when the last reports are through, or five seconds are over. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    const late = setTimeout(() => this.#stopping.abort(), SETTLE_MS);
    await Promise.all(this.#last);
    clearTimeout(late);
    this.#stopping.abort();
  }

  #tell(account: Account, status: SessionReport['status'], reason?: CloseReason): Promise<void> {
    const { session, openedAt } = account;
    const { id, user, remote, addresses } = session;
    const now = this.#options.clock.now();
    const counters = { ...session.counters };
    const report = { status, id, user, remote, addresses, seconds: (now - openedAt) / 1000, counters, reason };
    account.isTelling = true;
    account.told = account.told.then(async () => {
      const accountant = await account.accountant;
      if (accountant?.interimSeconds === undefined) return;
      account.nextAt = now + accountant.interimSeconds * 1000;
      try {
        await accountant.report(report, this.#stopping.signal);
      } catch (error) {
        const { message } = toVpnError(error, 'ERR_BACKEND');
        this.#lines.write('warn', 'lost', 'a report of a session was lost', {
          session: id,
          user,
          status,
          reason: message,
        });
      } finally {
        account.isTelling = false;
      }
    });
    return account.told;
  }
}
