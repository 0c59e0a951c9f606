/**
 * The verdict on somebody who wants to steer the gateway over the network: name, password and second factor, a token, or the
 * word of somebody else who has seen who they are.
 *
 * Hides the order of the checks, and that all of it is done whatever the first one was worth. Failures count against source
 * and name as those of other logins do, and are held back like them. A password opens only accounts of this gateway, and only
 * with a second factor. It must not know roles, cookies or HTTP, nor how passkeys, certificates and providers are proven.
 */

import type { Clock } from '../base/clock.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Store } from '../store/store.ts';
import type { AccessTokens } from './access-tokens.ts';
import type { Bans } from './bans.ts';
import { normaliseName } from './names.ts';
import type { Passwords } from './passwords.ts';
import { RecordBudget } from './record-budget.ts';
import type { SecondFactors } from './second-factor.ts';

export interface OperatorCredentials {
  /** As it was typed. */
  readonly user: string;
  readonly password: string;
  /** Six digits, or a recovery code. */
  readonly code: string;
}

/** Somebody whose account is good. */
export interface Operator {
  readonly id: string;
  readonly name: string;
  /** Sorted. */
  readonly groups: readonly string[];
}

/** What somebody has shown in place of a password. */
export interface Vouched {
  /** For the record. */
  readonly by: 'passkey' | 'certificate' | 'provider';
  /** Whose account it stands for; undefined: nobody's that we know. */
  readonly name: string | undefined;
  /** Why it was not right; undefined: it was. */
  readonly failure: string | undefined;
  /** The outside source whose accounts it stands for; undefined: it stands for any. */
  readonly source?: string;
  /** False: nobody has tried anything, and nothing counts against anybody; default: it is a trial. */
  readonly isTrial?: boolean;
}

export interface OperatorParts {
  readonly store: Store;
  readonly audit: Audit;
  readonly clock: Clock;
  readonly passwords: Passwords;
  readonly secondFactors: SecondFactors;
  readonly accessTokens: AccessTokens;
  readonly bans: Bans;
}

export class Operators {
  readonly #parts: OperatorParts;
  readonly #records: RecordBudget;

  constructor(parts: OperatorParts) {
    this.#parts = parts;
    this.#records = new RecordBudget(parts.clock);
  }

  /**
   * Judges a login from this address and port; undefined: no.
   *
   * @param mayEnter whether the groups of an account give it any business here; asked last
   * @throws {VpnError} ERR_BUSY, ERR_STORE: no verdict
   */
  async login(
    { user: typed, password, code }: OperatorCredentials,
    remote: string,
    mayEnter: (operator: Operator) => boolean,
  ): Promise<Operator | undefined> {
    const { store, audit, clock, passwords, secondFactors, bans } = this.#parts;
    const trial = bans.begin({ remote, name: typed, device: undefined });
    const verdict = { outcome: 'none' as 'none' | 'failed' | 'accepted' };
    try {
      const name = normaliseName(typed);
      const row = await this.#find(name ?? '');
      const account = row?.source === null ? row : undefined;
      const [right, factor] = [
        await passwords.check(account?.id, password),
        await secondFactors.check(account?.id, code.replaceAll(/[\s-]/g, '').toLowerCase(), clock.wallNow()),
      ];
      const operator = account === undefined ? undefined : await this.#operatorOf(account);
      const why =
        trial.refused ??
        (account === undefined || operator === undefined
          ? 'nobody of this gateway has this name'
          : (whyNotGood(account, clock.wallNow()) ??
            (right.right ? undefined : 'the password is wrong') ??
            (factor.right ? undefined : factor.reason) ??
            (mayEnter(operator) ? undefined : 'no group of the user gives a role')));
      const isSpent =
        why === undefined &&
        right.right &&
        factor.right &&
        (await store.transaction(async (db) => {
          if (!(await right.confirm(db)) || !(await factor.spend(db))) return false;
          await audit.append({ event: AuditEvent.operatorLogin, user: operator?.name, source: remote }, db);
          return true;
        }));
      verdict.outcome = isSpent ? 'accepted' : 'failed';
      if (isSpent) return operator;
      await this.#refuse(typed, remote, why ?? 'password or code were used up meanwhile');
      return undefined;
    } finally {
      await trial.end(verdict.outcome);
    }
  }

  /**
   * Judges a login from this address and port for which something else than a password vouches; undefined: no.
   *
   * @throws {VpnError} ERR_STORE: no verdict
   */
  async vouched(
    { by, name, failure, source, isTrial = true }: Vouched,
    remote: string,
    mayEnter: (operator: Operator) => boolean,
  ): Promise<Operator | undefined> {
    const { audit, clock, bans } = this.#parts;
    const trial = bans.begin({ remote, name, device: undefined });
    let outcome: 'none' | 'failed' | 'accepted' = 'none';
    try {
      const row = await this.#find(normaliseName(name ?? '') ?? '');
      const operator = row === undefined ? undefined : await this.#operatorOf(row);
      const why =
        trial.refused ??
        failure ??
        (row === undefined || operator === undefined
          ? 'it stands for nobody that we know'
          : source !== undefined && row.source !== source
            ? 'the name is of an account from elsewhere'
            : (whyNotGood(row, clock.wallNow()) ??
              (mayEnter(operator) ? undefined : 'no group of the user gives a role')));
      outcome = why === undefined ? 'accepted' : isTrial ? 'failed' : 'none';
      if (why === undefined && operator !== undefined) {
        await audit.append({
          event: AuditEvent.operatorLogin,
          user: operator.name,
          source: remote,
          detail: { with: by },
        });
        return operator;
      }
      await this.#refuse(name ?? '', remote, `${by}: ${why ?? ''}`);
      return undefined;
    } finally {
      await trial.end(outcome);
    }
  }

  /**
   * Judges an access token of the scope `api`; undefined: no.
   *
   * @throws {VpnError} ERR_STORE
   */
  async token(token: Uint8Array, remote: string): Promise<Operator | undefined> {
    const { accessTokens, bans, clock, store } = this.#parts;
    const verdict = await accessTokens.check(token, 'api', Math.trunc(clock.wallNow()));
    if (verdict.right) {
      const operator = await this.present(verdict.user.name);
      if (operator !== undefined && (await store.transaction((db) => accessTokens.spend(db, verdict.id))))
        return operator;
    }
    const trial = bans.begin({ remote, name: undefined, device: undefined });
    await this.#refuse('', remote, verdict.right ? 'the account is not good' : verdict.reason);
    await trial.end('failed');
    return undefined;
  }

  /** Somebody who has been let in before, as the account is now; undefined: not good any more. @throws {VpnError} ERR_STORE */
  async present(name: string): Promise<Operator | undefined> {
    const row = await this.#find(name);
    if (row === undefined || whyNotGood(row, this.#parts.clock.wallNow()) !== undefined) return undefined;
    return await this.#operatorOf(row);
  }

  /** The groups of an account, good or not; none for a name that nobody has. @throws {VpnError} ERR_STORE */
  async groupsOf(name: string): Promise<readonly string[]> {
    const row = await this.#find(normaliseName(name) ?? '');
    return row === undefined ? [] : (await this.#operatorOf(row)).groups;
  }

  /** Whether a code is one of this user's second factor; it is used up. @throws {VpnError} ERR_STORE */
  async provesFactor(name: string, code: string): Promise<boolean> {
    const { store, secondFactors, clock } = this.#parts;
    const row = await this.#find(name);
    const verdict = await secondFactors.check(row?.id, code.replaceAll(/\s/g, ''), clock.wallNow());
    return verdict.right && (await store.transaction((db) => verdict.spend(db)));
  }

  async #find(name: string) {
    return await this.#parts.store.db
      .selectFrom('users')
      .select(['id', 'name', 'disabled_at', 'expires_at', 'source'])
      .where('name', '=', name)
      .executeTakeFirst();
  }

  async #operatorOf({ id, name }: { id: string; name: string }): Promise<Operator> {
    const rows = await this.#parts.store.db
      .selectFrom('user_groups')
      .select('name')
      .where('user_id', '=', id)
      .orderBy('name')
      .execute();
    return { id, name, groups: rows.map((row) => row.name) };
  }

  async #refuse(typed: string, remote: string, reason: string): Promise<void> {
    const unrecorded = this.#records.take();
    if (unrecorded === undefined) return;
    const detail = unrecorded > 0 ? { unrecorded } : {};
    await this.#parts.audit.append({ event: AuditEvent.operatorRefused, user: typed, source: remote, reason, detail });
  }
}

function whyNotGood(row: { disabled_at: number | null; expires_at: number | null }, now: number): string | undefined {
  if (row.disabled_at !== null) return 'the user is disabled';
  return row.expires_at !== null && Number(row.expires_at) <= now ? 'the account has expired' : undefined;
}
