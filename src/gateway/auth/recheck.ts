/**
 * Asks outside sources again and again whether the accounts that have sessions are still good, and in which groups; ends the
 * sessions of those that are gone, and passes on the groups of the others.
 *
 * Hides when each account is asked: once in every interval, spread over it, a few at a time. Only a clear no ends a
 * session; a source that is down changes nothing. It must not know what kinds of sources there are.
 */

import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import { Repeat } from '../../base/repeat.ts';
import type { Rechecked } from '../../identity/backends/backend.ts';
import { type Audit, AuditEvent } from '../../store/audit.ts';
import type { SourcedAccount } from '../../store/sources.ts';

/** Questions to all sources at once. */
const CONCURRENCY = 8;
/** One question, whatever the source's own deadline. */
const QUESTION_MS = 60_000;
/** How often in an interval it is looked who is due. */
const LOOKS = 10;
const MAX_LOOK_MS = 30_000;

export interface RecheckOptions {
  sources: {
    withSessions(): Promise<readonly SourcedAccount[]>;
    forgetOrphans(): Promise<void>;
  };
  /** By name; a source that is configured no more can say nothing. */
  backends: ReadonlyMap<string, { recheck(user: string, signal: AbortSignal): Promise<Rechecked> }>;
  intervalSeconds: number;
  /** Ends the sessions of a user; returns how many there were. */
  end(user: string): number;
  /** The source says that an account of its own is in these groups of ours; they may be the ones we know. @throws {VpnError} */
  regroup(user: string, source: string, groups: readonly string[]): Promise<void>;
  audit: Audit;
  clock: Clock;
  log: Logger;
  /** In [0, 1). */
  random?: () => number;
}

const UNKNOWN: Rechecked = { standing: 'unknown' };

export class Recheck {
  readonly #options: RecheckOptions;
  readonly #log: Logger;
  #intervalMs: number;
  #lookMs: number;
  /** When each account with a session is to be asked. */
  readonly #due = new Map<string, number>();
  /** Sources that could not say the last time. */
  readonly #silent = new Set<string>();
  readonly #stopping = new AbortController();
  readonly #looks: Repeat;

  constructor(options: RecheckOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'recheck' });
    this.#intervalMs = options.intervalSeconds * 1000;
    this.#lookMs = lookMsOf(this.#intervalMs);
    this.#looks = new Repeat(
      this.#lookMs,
      () => this.#ask(),
      (error) => this.#log.error('accounts could not be rechecked', { error }),
    );
  }

  /** Asks in another interval from now on; who is due is drawn again. */
  reconfigure(intervalSeconds: number): void {
    if (intervalSeconds * 1000 === this.#intervalMs) return;
    this.#intervalMs = intervalSeconds * 1000;
    this.#lookMs = lookMsOf(this.#intervalMs);
    this.#due.clear();
    this.#looks.everyMs = this.#lookMs;
  }

  start(): void {
    if (this.#options.backends.size > 0) this.#looks.start();
  }

  /** Resolves when nobody is asked any more. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#looks.stop();
  }

  /** Asks about every account that is due. Never rejects; while one look runs, another is the same one. */
  look(): Promise<void> {
    return this.#looks.run();
  }

  /**
   * Asks about one account at once and ends its sessions if it is gone: for a session that is resumed.
   *
   * @returns `good` also for an account of no outside source
   * @throws {VpnError} ERR_STORE
   */
  async check({ user, source }: { user: string; source: string | undefined }): Promise<Rechecked> {
    if (source === undefined) return { standing: 'good' };
    const backend = this.#options.backends.get(source);
    const limit = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(QUESTION_MS)]);
    const rechecked = (await backend?.recheck(user, limit).catch(() => UNKNOWN)) ?? UNKNOWN;
    const { standing, groups } = rechecked;
    if (this.#stopping.signal.aborted) return UNKNOWN;
    if (standing !== 'unknown') {
      if (this.#silent.delete(source)) this.#log.info('the source of accounts answers again', { source });
    } else if (!this.#silent.has(source)) {
      this.#silent.add(source);
      this.#log.warn('a source of accounts cannot say who is still good; sessions stay', { source, user });
    }
    if (standing === 'gone') await this.#end(user, source);
    if (standing === 'good' && groups !== undefined) await this.#options.regroup(user, source, groups);
    return rechecked;
  }

  async #ask(): Promise<void> {
    const { sources, clock, random = Math.random } = this.#options;
    const accounts = await sources.withSessions();
    const now = clock.now();
    const present = new Set(accounts.map(({ user }) => user));
    for (const user of this.#due.keys()) if (!present.has(user)) this.#due.delete(user);
    const due: SourcedAccount[] = [];
    for (const account of accounts) {
      const at = this.#due.get(account.user);
      if (at !== undefined && at <= now) due.push(account);
      // Spread, so that sessions that came together are not asked about together; never later than the interval.
      if (at === undefined || at <= now) {
        this.#due.set(account.user, now + this.#intervalMs * (0.5 + 0.5 * random()) - this.#lookMs);
      }
    }
    const asking = due.values();
    const work = async () => {
      for (const account of asking) if (!this.#stopping.signal.aborted) await this.check(account);
    };
    await Promise.all(Array.from({ length: CONCURRENCY }, work));
    await sources.forgetOrphans();
  }

  async #end(user: string, source: string): Promise<void> {
    const { audit, end } = this.#options;
    const sessions = end(user);
    this.#log.warn('an account is gone at its source; its sessions have ended', { user, source, sessions });
    await audit.append({
      event: AuditEvent.sourceGone,
      user,
      reason: 'the source says that the account is gone or disabled',
      detail: { source, sessions },
    });
  }
}

function lookMsOf(intervalMs: number): number {
  return Math.min(MAX_LOOK_MS, intervalMs / LOOKS);
}
