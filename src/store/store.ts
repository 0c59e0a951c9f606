/**
 * The one store of a gateway: accounts, devices, tokens, sessions, audit.
 *
 * Hides which database holds them and how it is brought to the present schema. Queries are kysely's, over `Schema`; a
 * failure is a `VpnError` (`ERR_CONFLICT` for a name or id that is taken, `ERR_STORE` for the rest) and carries no value
 * of a query. It must not know what the rows mean.
 */

import { Kysely, type Transaction } from 'kysely';
import { Migrator } from 'kysely/migration';
import { toVpnError, VpnError } from '../base/errors.ts';
import { MIGRATIONS, type Schema } from './schema.ts';
import { openSqlite, type StoreOptions } from './sqlite.ts';

/** What a query runs on: the store itself, or a transaction of it. */
export type Queries = Kysely<Schema>;

export class Store {
  readonly #db: Queries;
  readonly #sync: () => void;

  constructor(db: Queries, sync: () => void) {
    this.#db = db;
    this.#sync = sync;
  }

  /** Runs single statements, each of which is a transaction. */
  get db(): Queries {
    return this.#db;
  }

  /**
   * Runs `work` in one transaction that holds the write lock from its start; an error undoes all of it. Nothing but
   * queries on the transaction may be awaited inside: other queries wait for its end.
   */
  transaction<T>(work: (db: Transaction<Schema>) => Promise<T>): Promise<T> {
    return this.#db.transaction().execute(work);
  }

  /** Makes what is committed survive a loss of power: for what must not come undone, such as a revocation. */
  sync(): void {
    this.#sync();
  }

  /** Ends after running transactions. */
  close(): Promise<void> {
    return this.#db.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Opens the store in a file, or in memory for `:memory:`, and brings it to the present schema: all of it or nothing.
 *
 * @throws {VpnError} ERR_STORE when the file is locked, damaged, another program's, or of a newer version
 */
export async function openStore(path: string, options: StoreOptions = {}): Promise<Store> {
  const { dialect, sync } = await openSqlite(path, options);
  const db = new Kysely<Schema>({ dialect });
  const migrator = new Migrator({ db, provider: { getMigrations: async () => ({ ...MIGRATIONS }) } });
  const { error } = await migrator.migrateToLatest();
  if (error !== undefined) {
    await db.destroy();
    throw migrationError(error, path);
  }
  return new Store(db, sync);
}

function migrationError(error: unknown, path: string): VpnError {
  if (error instanceof Error && error.message.startsWith('corrupted migrations')) {
    return new VpnError('ERR_STORE', `the store ${path} was written by a newer version; run that version`, {
      cause: error,
      details: { path },
    });
  }
  return toVpnError(error, 'ERR_STORE');
}
