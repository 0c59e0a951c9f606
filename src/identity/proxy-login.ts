/**
 * The verdict on a stock program that shows a user's name and access token to use the gateway as its proxy.
 *
 * Hides the order of the checks. A token is a secret that cannot be guessed: whoever shows the right one answers for itself,
 * as a device with its key does, and strangers who type its owner's name do not lock it out; wrong ones count against
 * source and name as other failed logins do. It must not know HTTP, nor what a proxy may reach.
 */

import type { Clock } from '../base/clock.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Store } from '../store/store.ts';
import type { AccessTokens } from './access-tokens.ts';
import type { Bans } from './bans.ts';
import { normaliseName } from './names.ts';
import { RecordBudget } from './record-budget.ts';

export interface ProxyCredentials {
  /** As it was typed. */
  readonly user: string;
  /** Whatever was shown as the token. */
  readonly token: Uint8Array;
}

export interface ProxyLogin {
  readonly user: string;
  /** Sorted. */
  readonly groups: readonly string[];
  /** Id of the token, 16 hexadecimal digits. */
  readonly token: string;
  /** When it is good no more, milliseconds since the Unix epoch; undefined: it does not end by itself. */
  readonly endsAt: number | undefined;
}

export class ProxyLogins {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;
  readonly #tokens: AccessTokens;
  readonly #bans: Bans;
  readonly #records: RecordBudget;

  constructor(parts: { store: Store; audit: Audit; clock: Clock; tokens: AccessTokens; bans: Bans }) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
    this.#tokens = parts.tokens;
    this.#bans = parts.bans;
    this.#records = new RecordBudget(parts.clock);
  }

  /**
   * Judges name and token from this address and port; undefined: no.
   *
   * @throws {VpnError} ERR_STORE: no verdict
   */
  async check({ user: typed, token }: ProxyCredentials, remote: string): Promise<ProxyLogin | undefined> {
    const now = Math.trunc(this.#clock.wallNow());
    const verdict = await this.#tokens.check(token, 'proxy', now);
    if (!verdict.right) return await this.#refuse(typed, remote, verdict.reason);
    const { user, id, endsAt: tokenEndsAt } = verdict;
    if (normaliseName(typed) !== user.name) return await this.#refuse(typed, remote, "the token is another user's");
    const account = await this.#store.db
      .selectFrom('users')
      .select(['disabled_at', 'expires_at'])
      .where('id', '=', user.id)
      .executeTakeFirst();
    const expiresAt = account?.expires_at == null ? Number.POSITIVE_INFINITY : Number(account.expires_at);
    if (account === undefined) return await this.#refuse(typed, remote, 'the user is gone');
    if (account.disabled_at !== null) return await this.#refuse(typed, remote, 'the user is disabled');
    if (expiresAt <= now) return await this.#refuse(typed, remote, 'the account has expired');
    const groups = await this.#store.db
      .selectFrom('user_groups')
      .select('name')
      .where('user_id', '=', user.id)
      .orderBy('name')
      .execute();
    const endsAt = Math.min(expiresAt, tokenEndsAt ?? Number.POSITIVE_INFINITY);
    return {
      user: user.name,
      groups: groups.map(({ name }) => name),
      token: id,
      endsAt: Number.isFinite(endsAt) ? endsAt : undefined,
    };
  }

  /**
   * Notes that a login has been accepted, and that its token was used; false: the token was revoked meanwhile.
   *
   * @throws {VpnError} ERR_STORE
   */
  async record({ user, token }: ProxyLogin, remote: string): Promise<boolean> {
    return await this.#store.transaction(async (db) => {
      if (!(await this.#tokens.spend(db, token))) return false;
      const detail = { purpose: 'proxy', token };
      await this.#audit.append({ event: AuditEvent.loginAccepted, user, source: remote, detail }, db);
      return true;
    });
  }

  /** Those of these users whose account has expired. @throws {VpnError} ERR_STORE */
  async expired(users: readonly string[]): Promise<string[]> {
    if (users.length === 0) return [];
    const rows = await this.#store.db
      .selectFrom('users')
      .select('name')
      .where('name', 'in', [...users])
      .where('expires_at', '<=', Math.trunc(this.#clock.wallNow()))
      .execute();
    return rows.map(({ name }) => name);
  }

  /** Puts a refusal on record and counts it against source and name. */
  async #refuse(typed: string, remote: string, reason: string): Promise<undefined> {
    const trial = this.#bans.begin({ remote, name: typed, device: undefined });
    const unrecorded = this.#records.take();
    if (unrecorded !== undefined) {
      const detail = { purpose: 'proxy', ...(unrecorded > 0 ? { unrecorded } : {}) };
      await this.#audit.append({ event: AuditEvent.loginRefused, user: typed, source: remote, reason, detail });
    }
    await trial.end('failed');
    return undefined;
  }
}
