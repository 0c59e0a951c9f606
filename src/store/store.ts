/**
 * The one store of a gateway: accounts, devices, tokens, sessions, audit.
 *
 * Hides which database holds them and how it is brought to the present schema. Queries are kysely's, over `Schema`; a
 * failure is a `VpnError` (`ERR_CONFLICT` for a name or id that is taken, `ERR_STORE` for the rest) and carries no value
 * of a query. It must not know what the rows mean.
 */

import { setTimeout } from 'node:timers/promises';
import { type Dialect, Kysely, type Transaction } from 'kysely';
import { Migrator } from 'kysely/migration';
import { toVpnError, VpnError } from '../base/errors.ts';
import type { PostgresOptions } from './postgres.ts';
import { MIGRATIONS, type Schema } from './schema.ts';
import { openSqlite, type StoreOptions } from './sqlite.ts';
import { TransactionGroup } from './transaction-group.ts';

/** What a query runs on: the store itself, or a transaction of it. */
export type Queries = Kysely<Schema>;

/** A database, as its own file makes it: what the store needs and kysely has no word for. */
export interface OpenedDatabase {
  /** What messages call it. */
  readonly name: string;
  readonly dialect: Dialect;
  /** Where migrations need another one. */
  readonly migrationDialect?: Dialect;
  /** It has one connection: transactions that wait for each other share a commit. */
  readonly hasOneConnection?: boolean;
  /** The first statement of every transaction. */
  begin?(db: Queries): Promise<void>;
  /** How long to wait before a failed transaction is run again after so many tries; undefined: not at all. */
  retryMs?(error: unknown, tries: number): number | undefined;
  /** Makes everything committed so far survive a loss of power. */
  sync(): void;
}

export class Store {
  readonly #db: Queries;
  readonly #database: OpenedDatabase;
  readonly #group: TransactionGroup | undefined;

  constructor(db: Queries, database: OpenedDatabase) {
    this.#db = db;
    this.#database = database;
    this.#group =
      database.hasOneConnection === true ? new TransactionGroup((work) => this.#transaction(work)) : undefined;
  }

  /** Runs single statements, each of which is a transaction. */
  get db(): Queries {
    return this.#db;
  }

  /**
   * Runs `work` in one transaction that holds the write lock from its start; an error undoes all of it. Nothing but
   * queries on the transaction may be awaited inside: other queries wait for its end. Transactions that wait at the same time
   * are committed together where the database has one connection; each stays all or nothing by itself. With a database of several gateways
   * it is run again when another gateway's change got in between, so it must change nothing but the store.
   */
  async transaction<T>(work: (db: Transaction<Schema>) => Promise<T>): Promise<T> {
    return await (this.#group === undefined ? this.#transaction(work) : this.#group.run(work));
  }

  async #transaction<T>(work: (db: Transaction<Schema>) => Promise<T>): Promise<T> {
    for (let tries = 0; ; tries++) {
      try {
        return await this.#db.transaction().execute(async (db) => {
          await this.#database.begin?.(db);
          return await work(db);
        });
      } catch (error) {
        const waitMs = this.#database.retryMs?.(error, tries);
        if (waitMs === undefined) throw error;
        await setTimeout(waitMs);
      }
    }
  }

  /** Makes what is committed survive a loss of power: for what must not come undone, such as a revocation. */
  sync(): void {
    this.#database.sync();
  }

  /** Ends after running transactions. */
  async close(): Promise<void> {
    await this.#group?.settled();
    await this.#db.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Opens the store in a file, in memory for `:memory:`, or at a PostgreSQL server, and brings it to the present schema: all
 * of it or nothing.
 *
 * @throws {VpnError} ERR_STORE when it is locked, damaged, another program's, of a newer version, or cannot be reached;
 *   ERR_CONFIG_VALUE for the address of a server
 */
export async function openStore(where: string | PostgresOptions, options: StoreOptions = {}): Promise<Store> {
  const database =
    typeof where === 'string'
      ? await openSqlite(where, options)
      : await (await import('./postgres.ts')).openPostgres(where);
  const db = new Kysely<Schema>({ dialect: database.dialect });
  try {
    if (database.migrationDialect === undefined) await migrate(db, database.name);
    else {
      await using migrated = new Kysely<Schema>({ dialect: database.migrationDialect });
      await migrate(migrated, database.name);
    }
  } catch (error) {
    await db.destroy();
    throw error;
  }
  return new Store(db, database);
}

async function migrate(db: Queries, name: string): Promise<void> {
  const migrator = new Migrator({ db, provider: { getMigrations: async () => ({ ...MIGRATIONS }) } });
  const { error } = await migrator.migrateToLatest();
  if (error === undefined) return;
  if (error instanceof Error && error.message.startsWith('corrupted migrations')) {
    throw new VpnError('ERR_STORE', `the store ${name} was written by a newer version; run that version`, {
      cause: error,
      details: { path: name },
    });
  }
  throw toVpnError(error, 'ERR_STORE');
}
