/**
 * The embedded database: `node:sqlite` behind kysely's SQLite dialect.
 *
 * Hides the driver, its pragmas, its error shapes and the file's mode. Whatever fails in here comes out as a `VpnError`
 * without the values of a query. It must not know the tables.
 */

import { chmodSync, closeSync, existsSync, fsyncSync, openSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import { setTimeout } from 'node:timers/promises';
import {
  type DatabaseConnection,
  type Driver,
  type QueryResult,
  SqliteAdapter,
  SqliteDialect,
  SqliteDriver,
} from 'kysely';
import { isVpnError, VpnError } from '../base/errors.ts';
import { makePrivateFolder } from '../base/private-file.ts';
import type { ImmediateAdapter } from './prepared.ts';
import type { OpenedDatabase } from './store.ts';

/** Marks the file as ours ("CVPN"), so that another program's database is never migrated. */
const APPLICATION_ID = 0x4356504e;
/** How long a statement waits for another process's write by default. */
const BUSY_TIMEOUT_MS = 2000;
const BUSY_RETRY_MS = 5;
const CHECKPOINT_PAGES = 4000;
const MAX_CACHED_STATEMENTS = 256;

const SQLITE_BUSY = 5;
const SQLITE_LOCKED = 6;
const SQLITE_CORRUPT = 11;
const SQLITE_FULL = 13;
const SQLITE_NOTADB = 26;
const SQLITE_CONSTRAINT_PRIMARYKEY = 1555;
const SQLITE_CONSTRAINT_UNIQUE = 2067;

export interface StoreOptions {
  /** How long a statement waits for another process's write; default 2 s. */
  readonly busyTimeoutMs?: number;
  /** The file has to be a store already: one that is gone or empty is an error. Default false. */
  readonly mustExist?: boolean;
}

/**
 * Opens the database file, making it (mode 0600) and its folder (0700) when there is none and there need not be one; or a
 * private one in memory for `:memory:`.
 *
 * @throws {VpnError} ERR_STORE when it is locked, damaged or not ours. It is never replaced.
 */
export async function openSqlite(
  path: string,
  { busyTimeoutMs = BUSY_TIMEOUT_MS, mustExist = false }: StoreOptions = {},
): Promise<OpenedDatabase> {
  const inMemory = path === ':memory:';
  try {
    if (mustExist) refuseMissing(path);
    if (!inMemory) {
      await makePrivateFolder(dirname(path));
      // SQLite gives its journal files the mode of the database, so the mode comes first.
      if (!existsSync(path)) closeSync(openSync(path, 'a', 0o600));
      chmodSync(path, 0o600);
    }
    const database = new DatabaseSync(path, { timeout: busyTimeoutMs, defensive: true, allowExtension: false });
    try {
      prepare(database, path);
      // Another process's first read or write shows a damaged header or a foreign file here, not at the first login.
      if (!inMemory) {
        database.exec('pragma journal_mode = wal; pragma synchronous = normal');
        // A checkpoint syncs two files while everybody waits: four times as seldom as by default, of at most 16 MiB.
        database.exec(`pragma wal_autocheckpoint = ${CHECKPOINT_PAGES}`);
      }
      // SQLite would wait by stopping the thread, and with it whoever in this process holds the lock.
      database.exec('pragma busy_timeout = 0');
    } catch (cause) {
      database.close();
      throw cause;
    }
    const journal = inMemory ? undefined : new JournalFile(path);
    return {
      name: path,
      hasOneConnection: true,
      dialect: new Sqlite(new Adapter(database, path, journal), busyTimeoutMs),
      sync: () => journal?.sync(),
    };
  } catch (cause) {
    throw storeError(cause, path);
  }
}

/** A store that was lost must not look like one without accounts. */
function refuseMissing(path: string): void {
  const bytes = statSync(path, { throwIfNoEntry: false })?.size;
  if (bytes !== undefined && bytes > 0) return;
  throw new VpnError(
    'ERR_STORE',
    `the store ${path} is ${bytes === undefined ? 'gone' : 'empty'}: no account is known; put a backup in its place with: customvpn server restore`,
    { details: { path } },
  );
}

function prepare(database: DatabaseSync, path: string): void {
  // Who may write in the folder of the store only has nowhere else for temporary files, such as those of long savepoints.
  database.exec('pragma temp_store = memory');
  database.exec('pragma foreign_keys = on; pragma trusted_schema = off; pragma secure_delete = on');
  const id = numberOf(database, 'pragma application_id');
  if (id === APPLICATION_ID) return;
  if (id !== 0 || numberOf(database, 'select count(*) from sqlite_schema') !== 0) {
    throw new VpnError('ERR_STORE', `${path} is a database of another program; name another file`, {
      details: { path },
    });
  }
  database.exec(`pragma application_id = ${APPLICATION_ID}`);
}

/**
 * With `synchronous = normal` a commit survives the end of the process at once, but a loss of power only after the next
 * checkpoint. Until then it is in the journal, which is synced here; SQLite holds no lock on that file that closing it
 * could drop. It is opened once and early: later the process may not be allowed to, and the journal stays the same file for as
 * long as the database is open.
 */
class JournalFile {
  readonly #path: string;
  #fd: number | undefined;

  constructor(path: string) {
    this.#path = path;
    this.#open();
  }

  sync(): void {
    this.#open();
    if (this.#fd === undefined) return;
    try {
      fsyncSync(this.#fd);
    } catch (cause) {
      throw storeError(cause, this.#path);
    }
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }

  #open(): void {
    if (this.#fd !== undefined) return;
    try {
      this.#fd = openSync(`${this.#path}-wal`, 'r');
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw storeError(cause, this.#path);
    }
  }
}

/**
 * Copies a database that others may have open, as it is at one moment, into the empty file `to`.
 *
 * @throws {VpnError} ERR_STORE when it is not there, damaged, not ours, or `to` cannot be written
 */
export function copySqlite(path: string, to: string): void {
  if (!existsSync(path)) throw new VpnError('ERR_STORE', `there is no store ${path}`, { details: { path } });
  withDatabase(path, (database) => {
    refuseForeign(database, path);
    database.prepare('vacuum into ?').run(to);
  });
}

/**
 * Checks every page, index and reference of a database that nobody writes.
 *
 * @returns the number of its users
 * @throws {VpnError} ERR_STORE
 */
export function checkCopy(path: string): number {
  return withDatabase(path, (database) => {
    refuseForeign(database, path);
    const [result] = Object.values(database.prepare('pragma integrity_check(1)').get() ?? {});
    if (result !== 'ok' || database.prepare('pragma foreign_key_check').get() !== undefined) {
      throw new VpnError('ERR_STORE', `${path}: the file is damaged`, { details: { path } });
    }
    return numberOf(database, 'select count(*) from users');
  });
}

/**
 * Writes the journal of a database that is to be replaced into its file; does without where the file is damaged.
 *
 * @throws {VpnError} ERR_STORE when somebody has it open
 */
export function settleSqlite(path: string): void {
  try {
    withDatabase(path, (database) => {
      // Leaving WAL needs the database for itself, and takes the journal away.
      const [mode] = Object.values(database.prepare('pragma journal_mode = delete').get() ?? {});
      if (mode === 'wal') throw inUse(path);
      database.exec('begin exclusive; rollback');
    });
  } catch (error) {
    if (![SQLITE_CORRUPT, SQLITE_NOTADB].includes(baseCode(error))) throw error;
  }
}

function inUse(path: string): VpnError {
  return new VpnError('ERR_STORE', `the store ${path} is in use by another process; end that first`, {
    details: { path },
  });
}

function baseCode(error: unknown): number {
  const errcode = isVpnError(error, 'ERR_STORE') ? error.details.errcode : undefined;
  return typeof errcode === 'number' ? errcode & 0xff : 0;
}

function withDatabase<T>(path: string, work: (database: DatabaseSync) => T): T {
  try {
    const database = new DatabaseSync(path, { timeout: BUSY_TIMEOUT_MS, defensive: true, allowExtension: false });
    try {
      database.exec('pragma trusted_schema = off');
      return work(database);
    } finally {
      database.close();
    }
  } catch (cause) {
    throw storeError(cause, path);
  }
}

function refuseForeign(database: DatabaseSync, path: string): void {
  if (numberOf(database, 'pragma application_id') === APPLICATION_ID) return;
  throw new VpnError('ERR_STORE', `${path} is not a store of CustomVPN; name another file`, { details: { path } });
}

function numberOf(database: DatabaseSync, query: string): number {
  return Number(Object.values(database.prepare(query).get() ?? {})[0]);
}

class Sqlite extends SqliteDialect {
  readonly #database: Adapter;
  readonly #busyTimeoutMs: number;

  constructor(database: Adapter, busyTimeoutMs: number) {
    super({ database });
    this.#database = database;
    this.#busyTimeoutMs = busyTimeoutMs;
  }

  override createDriver(): Driver {
    return new PatientDriver(this.#database, this.#busyTimeoutMs);
  }

  override createAdapter(): SqliteAdapter {
    return new Immediate(this.#database);
  }
}

class Immediate extends SqliteAdapter implements ImmediateAdapter {
  readonly #database: Adapter;

  constructor(database: Adapter) {
    super();
    this.#database = database;
  }

  /** SQLite rolls back a changed schema like any other change, which kysely's adapter denies. */
  override get supportsTransactionalDdl(): boolean {
    return true;
  }

  runNow<Row>(sql: string, parameters: readonly unknown[], isInTransaction: boolean): QueryResult<Row> | undefined {
    const database = this.#database;
    // What belongs to no transaction waits for the end of one; what belongs to one that has ended is kysely's to refuse.
    if (isInTransaction ? !database.isInTransaction : database.isHeld) return undefined;
    try {
      const statement = database.prepare(sql);
      if (statement.reader) return { rows: statement.all(parameters) as Row[] };
      return { rows: [], numAffectedRows: BigInt(statement.run(parameters).changes) };
    } catch (error) {
      if (isBusy(error)) return undefined;
      throw error;
    }
  }
}

/** Tries again while another process writes. A statement that found the database busy has done nothing. */
class PatientDriver extends SqliteDriver {
  readonly #database: Adapter;
  readonly #busyTimeoutMs: number;

  constructor(database: Adapter, busyTimeoutMs: number) {
    super({ database });
    this.#database = database;
    this.#busyTimeoutMs = busyTimeoutMs;
  }

  override async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    // A full disk or a failing one has made SQLite undo it already; a second time would hide why.
    if (this.#database.isInTransaction) await super.rollbackTransaction(connection);
  }

  override async releaseConnection(): Promise<void> {
    this.#database.isHeld = false;
  }

  override async acquireConnection(): Promise<DatabaseConnection> {
    const inner = await super.acquireConnection();
    this.#database.isHeld = true;
    return {
      streamQuery: (query, chunkSize) => inner.streamQuery(query, chunkSize),
      executeQuery: async (query) => {
        for (let waitedMs = 0; ; waitedMs += BUSY_RETRY_MS) {
          try {
            return await inner.executeQuery(query);
          } catch (error) {
            if (!isBusy(error) || waitedMs >= this.#busyTimeoutMs) throw error;
            await setTimeout(BUSY_RETRY_MS);
          }
        }
      },
    };
  }
}

function isBusy(error: unknown): boolean {
  const errcode = isVpnError(error, 'ERR_STORE') ? error.details.errcode : undefined;
  return typeof errcode === 'number' && (errcode & 0xff) === SQLITE_BUSY;
}

/** The shape that kysely's driver expects. */
class Adapter {
  readonly #database: DatabaseSync;
  readonly #path: string;
  readonly #journal: JournalFile | undefined;
  readonly #statements = new Map<string, Statement>();
  /** Somebody has kysely's one connection. */
  isHeld = false;

  constructor(database: DatabaseSync, path: string, journal: JournalFile | undefined) {
    this.#database = database;
    this.#path = path;
    this.#journal = journal;
  }

  get isInTransaction(): boolean {
    return this.#database.isTransaction;
  }

  prepare(query: string): Statement {
    const known = this.#statements.get(query);
    if (known !== undefined) return known;
    try {
      // A transaction that reads first and writes later could find that another process wrote in between, and fail
      // without waiting; one that takes the write lock at once waits.
      const statement = new Statement(
        this.#database.prepare(query === 'begin' ? 'begin immediate' : query),
        this.#path,
      );
      if (this.#statements.size >= MAX_CACHED_STATEMENTS) this.#statements.clear();
      this.#statements.set(query, statement);
      return statement;
    } catch (cause) {
      throw storeError(cause, this.#path);
    }
  }

  close(): void {
    this.#statements.clear();
    this.#journal?.close();
    // SQLite does it, too, unless it cannot find the file by its name any more.
    if (this.#journal !== undefined) this.#database.exec('pragma wal_checkpoint(truncate)');
    this.#database.close();
  }
}

class Statement {
  readonly reader: boolean;
  readonly #inner: StatementSync;
  readonly #path: string;

  constructor(inner: StatementSync, path: string) {
    this.#inner = inner;
    this.#path = path;
    this.reader = inner.columns().length > 0;
  }

  all(parameters: readonly unknown[]): unknown[] {
    try {
      return this.#inner.all(...(parameters as SQLInputValue[]));
    } catch (cause) {
      throw storeError(cause, this.#path);
    }
  }

  run(parameters: readonly unknown[]): { changes: number | bigint; lastInsertRowid: number | bigint } {
    try {
      return this.#inner.run(...(parameters as SQLInputValue[]));
    } catch (cause) {
      throw storeError(cause, this.#path);
    }
  }

  iterate(parameters: readonly unknown[]): IterableIterator<unknown> {
    return this.#inner.iterate(...(parameters as SQLInputValue[]));
  }
}

function storeError(cause: unknown, path: string): VpnError {
  if (cause instanceof VpnError) return cause;
  const { errcode, code: errno } = cause as { errcode?: number; code?: string };
  const details = { path, errcode, errno };
  switch (errcode) {
    case SQLITE_CONSTRAINT_UNIQUE:
    case SQLITE_CONSTRAINT_PRIMARYKEY:
      return new VpnError('ERR_CONFLICT', 'a row of that name or id exists already', { cause, details });
  }
  const why = {
    [SQLITE_BUSY]: 'another process is writing to it and did not finish in time',
    [SQLITE_LOCKED]: 'another process is writing to it and did not finish in time',
    [SQLITE_CORRUPT]: 'the file is damaged; restore it from a backup',
    [SQLITE_FULL]: 'the disk is full',
    [SQLITE_NOTADB]: 'the file is not a database; restore it from a backup or name another file',
  }[(errcode ?? 0) & 0xff];
  const message = why ?? (cause instanceof Error ? cause.message : String(cause));
  return new VpnError('ERR_STORE', `the store ${path}: ${message}`, { cause, details });
}
