/**
 * What the store knows of outside sources of accounts: whose accounts they are, and what a source keeps to ask about them.
 *
 * Hides the tables and the sealing. It must not know what kinds of sources there are, nor what they keep.
 */

import type { Clock } from '../base/clock.ts';
import { prepare } from './prepared.ts';
import type { Store } from './store.ts';
import type { Vault } from './vault.ts';

const PURPOSE = 'source grant';
/** A login that has just been accepted by its source may not have made its user yet. */
const ORPHAN_MS = 3_600_000;

export interface SourcedAccount {
  readonly user: string;
  /** As the configuration names it. */
  readonly source: string;
}

const findSource = prepare((db, { user }: { user: string }) =>
  db.selectFrom('users').select('source').where('name', '=', user),
);

export class Sources {
  readonly #store: Store;
  readonly #vault: Vault;
  readonly #clock: Clock;

  constructor(parts: { store: Store; vault: Vault; clock: Clock }) {
    this.#store = parts.store;
    this.#vault = parts.vault;
    this.#clock = parts.clock;
  }

  /** The accounts of outside sources that have a session on record, by name. */
  async withSessions(): Promise<SourcedAccount[]> {
    const rows = await this.#store.db
      .selectFrom('users')
      .select(['name', 'source'])
      .where('source', 'is not', null)
      .where(({ exists, selectFrom }) =>
        exists(selectFrom('sessions').select('sessions.id').whereRef('sessions.user_id', '=', 'users.id')),
      )
      .orderBy('name')
      .execute();
    return rows.flatMap(({ name, source }) => (source === null ? [] : [{ user: name, source }]));
  }

  /** Those of these users that are accounts of outside sources. */
  async among(users: readonly string[]): Promise<SourcedAccount[]> {
    if (users.length === 0) return [];
    const rows = await this.#store.db
      .selectFrom('users')
      .select(['name', 'source'])
      .where('name', 'in', [...users])
      .where('source', 'is not', null)
      .execute();
    return rows.flatMap(({ name, source }) => (source === null ? [] : [{ user: name, source }]));
  }

  /** The source of a user; undefined for one of ours, or none. */
  async sourceOf(user: string): Promise<string | undefined> {
    const { rows } = await findSource(this.#store.db, { user });
    return rows[0]?.source ?? undefined;
  }

  /** Where one source keeps things, each for one account. */
  grantsOf(source: string): {
    /** @throws {VpnError} ERR_STORE when it does not unseal */
    load(account: string): Promise<string | undefined>;
    save(account: string, text: string): Promise<void>;
  } {
    return {
      load: async (account) => {
        const row = await this.#store.db
          .selectFrom('source_grants')
          .select('sealed')
          .where('source', '=', source)
          .where('account', '=', account)
          .executeTakeFirst();
        if (row === undefined) return undefined;
        return Buffer.from(this.#vault.unseal(PURPOSE, contextOf(source, account), row.sealed)).toString('utf8');
      },
      save: async (account, text) => {
        const sealed = this.#vault.seal(PURPOSE, contextOf(source, account), Buffer.from(text, 'utf8'));
        const saved_at = Math.trunc(this.#clock.wallNow());
        await this.#store.db
          .insertInto('source_grants')
          .values({ source, account, sealed, saved_at })
          .onConflict((conflict) => conflict.columns(['source', 'account']).doUpdateSet({ sealed, saved_at }))
          .execute();
      },
    };
  }

  /** Forgets what was kept of accounts that no user has any more. */
  async forgetOrphans(): Promise<void> {
    await this.#store.db
      .deleteFrom('source_grants')
      .where('saved_at', '<', Math.trunc(this.#clock.wallNow()) - ORPHAN_MS)
      .where(({ not, exists, selectFrom }) =>
        not(
          exists(
            selectFrom('users')
              .select('users.id')
              .whereRef('users.name', '=', 'source_grants.account')
              .whereRef('users.source', '=', 'source_grants.source'),
          ),
        ),
      )
      .execute();
  }
}

/** What was kept for one source or account must not open as that of another. */
function contextOf(source: string, account: string): string {
  return `${source} ${account}`;
}
