/**
 * A PostgreSQL server as the store: `pg` behind kysely's PostgreSQL dialect.
 *
 * Hides the driver, its pool, deadlines, error shapes and how its types differ from SQLite's. Every statement and
 * transaction is serialisable. Whatever fails in here comes out as a `VpnError` without the values of a query: the
 * server's own messages quote them, so only its code and the names of tables are kept. It must not know the tables.
 */

import { isIP } from 'node:net';
import { setTimeout } from 'node:timers/promises';
import type { ConnectionOptions } from 'node:tls';
import {
  type PostgresCursor,
  PostgresDialect,
  type PostgresPool,
  type PostgresPoolClient,
  type PostgresQueryResult,
  sql,
} from 'kysely';
import pg from 'pg';
import { isVpnError, VpnError } from '../base/errors.ts';
import type { OpenedDatabase } from './store.ts';

export interface PostgresOptions {
  /** `postgres://USER@HOST[:PORT]/DATABASE`, without a password; `?host=/FOLDER` for a socket, `?sslmode=…`. */
  readonly url: string;
  readonly password?: string | undefined;
  /** PEM of the authorities that the server's certificate must come from; default those of Node. */
  readonly ca?: string | undefined;
  /** How many connections at most; default 8. */
  readonly connections?: number;
  /** After this a connection or a statement has failed; default 5 s. */
  readonly timeoutMs?: number;
}

const CONNECTIONS = 8;
const TIMEOUT_MS = 5000;
const IDLE_MS = 30_000;
/** How often what lost against another gateway's transaction is tried again, and how long it waits at most in between. */
const RETRIES = 20;
const RETRY_MS = 50;

const BIGINT_OID = 20;
const SERIALIZATION_FAILURE = '40001';
const DEADLOCK = '40P01';
const UNIQUE = '23505';
const RAISED = 'P0001';

const UNTRUSTED = 'its certificate comes from no authority that is trusted here; name its CA as store.caFile';

const WHY: Readonly<Record<string, string>> = {
  '28P01': 'it refused the password; see store.passwordFile',
  '28000': 'it refused the user; see pg_hba.conf of the server',
  '3D000': 'it has no such database; make it with: createdb -O USER DATABASE',
  '42501': 'the user lacks rights; it has to own the database',
  '53300': 'it has too many connections',
  '53100': 'its disk is full',
  '57014': 'a statement took too long',
  '55P03': 'another process is writing and did not finish in time',
  '25006': 'it takes no changes: it is a standby, or set to read only',
  ECONNREFUSED: 'nothing listens there; is it running?',
  ENOENT: 'there is no socket of a server there; is it running?',
  ENOTFOUND: 'the name of the host is unknown',
  ERR_TLS_CERT_ALTNAME_INVALID: 'its certificate is for another name than the host in store.url',
  CERT_HAS_EXPIRED: 'its certificate has expired',
  CERT_SIGNATURE_FAILURE: UNTRUSTED,
  DEPTH_ZERO_SELF_SIGNED_CERT: UNTRUSTED,
  SELF_SIGNED_CERT_IN_CHAIN: UNTRUSTED,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UNTRUSTED,
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: UNTRUSTED,
};

/**
 * Checks what an operator wrote as the address of a server.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE
 */
export function parsePostgresUrl(text: string): {
  host: string;
  port: number;
  user: string;
  database: string;
  tls: boolean;
} {
  const refuse = (why: string) =>
    new VpnError('ERR_CONFIG_VALUE', `store.url: ${why}`, { details: { key: 'store.url' } });
  const url = URL.parse(text);
  if (url === null || !/^postgres(ql)?:$/.test(url.protocol)) {
    throw refuse('expected postgres://USER@HOST[:PORT]/DATABASE');
  }
  if (url.password !== '') {
    throw refuse('expected no password in it; put it into a file of mode 0600 and name that as store.passwordFile');
  }
  for (const key of url.searchParams.keys()) {
    if (key !== 'sslmode' && key !== 'host') throw refuse(`expected no parameter but sslmode and host, got "${key}"`);
  }
  const host = url.searchParams.get('host') ?? decodeURIComponent(url.hostname).replace(/^\[(.*)\]$/, '$1');
  const user = decodeURIComponent(url.username);
  const database = decodeURIComponent(url.pathname.slice(1));
  if (host === '' || user === '' || database === '') throw refuse('expected a user, a host and a database in it');
  const isLocal =
    host.startsWith('/') || host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
  const mode = url.searchParams.get('sslmode') ?? (isLocal ? 'disable' : 'verify-full');
  if (mode !== 'disable' && mode !== 'verify-full') {
    throw refuse(`expected sslmode "verify-full" or "disable", got "${mode}"`);
  }
  return { host, port: url.port === '' ? 5432 : Number(url.port), user, database, tls: mode === 'verify-full' };
}

/**
 * Reaches the server once.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE for the address; ERR_STORE when it does not answer or refuses
 */
export async function openPostgres(options: PostgresOptions): Promise<OpenedDatabase> {
  const { host, port, user, database, tls } = parsePostgresUrl(options.url);
  const timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
  const name = `postgres://${host.startsWith('/') ? '' : host}/${database}`;
  const ssl: ConnectionOptions | false = tls
    ? { rejectUnauthorized: true, ...(options.ca === undefined ? {} : { ca: options.ca }) }
    : false;
  const settings = (isolation: string): pg.PoolConfig => ({
    host,
    port,
    user,
    database,
    // Not from PGPASSWORD or ~/.pgpass of whoever starts the gateway.
    password: options.password ?? '',
    ssl,
    max: options.connections ?? CONNECTIONS,
    connectionTimeoutMillis: timeoutMs,
    idleTimeoutMillis: IDLE_MS,
    query_timeout: timeoutMs + 500,
    keepAlive: true,
    allowExitOnIdle: true,
    application_name: 'customvpn',
    options: [
      `default_transaction_isolation=${isolation.replaceAll(' ', '\\ ')}`,
      `statement_timeout=${timeoutMs}`,
      `idle_in_transaction_session_timeout=${timeoutMs}`,
      'synchronous_commit=on',
      'client_min_messages=warning',
    ]
      .map((setting) => `-c ${setting}`)
      .join(' '),
    types: {
      // Times and counters are far below 2^53; kysely's SQLite has numbers, too.
      getTypeParser: (oid: number, format?: 'text' | 'binary') =>
        oid === BIGINT_OID && format !== 'binary' ? Number : pg.types.getTypeParser(oid, format),
    } as pg.CustomTypesConfig,
  });
  const pool = new Pool(settings('serializable'), name);
  try {
    (await pool.connect()).release();
  } catch (error) {
    await pool.end();
    throw error;
  }
  return {
    name,
    dialect: new PostgresDialect({ pool }),
    // Another gateway that brings the schema up to date at the same time must be seen by the one that waited for it.
    migrationDialect: new PostgresDialect({ pool: new Pool({ ...settings('read committed'), max: 1 }, name) }),
    // One transaction at a time, like SQLite: those that would only undo each other wait instead. Taking this lock makes
    // no snapshot; the transaction sees what the one before it did. Nothing but migrations uses the table.
    begin: (db) => sql`lock table kysely_migration_lock in exclusive mode`.execute(db).then(() => {}),
    retryMs: (error, tries) => (isLost(error) && tries < RETRIES ? Math.random() * RETRY_MS : undefined),
    // A commit is on disk before it is answered.
    sync: () => {},
  };
}

/** Lost against another transaction, and undone: the same may be tried again. */
function isLost(error: unknown): boolean {
  const sqlState = isVpnError(error, 'ERR_STORE') ? error.details.sqlState : undefined;
  return sqlState === SERIALIZATION_FAILURE || sqlState === DEADLOCK;
}

/** What kysely expects of a pool. */
class Pool implements PostgresPool {
  readonly options = {};
  readonly #pool: pg.Pool;
  readonly #name: string;
  readonly #clients = new WeakMap<pg.PoolClient, Client>();

  constructor(settings: pg.PoolConfig, name: string) {
    this.#pool = new pg.Pool(settings);
    this.#name = name;
    // An idle connection that ends is replaced at the next query.
    this.#pool.on('error', () => {});
  }

  async connect(): Promise<PostgresPoolClient> {
    try {
      const inner = await this.#pool.connect();
      const known = this.#clients.get(inner);
      if (known !== undefined) return known;
      const client = new Client(inner, this.#name);
      this.#clients.set(inner, client);
      return client;
    } catch (error) {
      throw storeError(error, this.#name);
    }
  }

  end(): Promise<void> {
    return this.#pool.end();
  }
}

class Client implements PostgresPoolClient {
  readonly #inner: pg.PoolClient;
  readonly #name: string;
  #isInTransaction = false;
  #isBroken = false;

  constructor(inner: pg.PoolClient, name: string) {
    this.#inner = inner;
    this.#name = name;
    // A connection that ends while it is in use fails its query, too.
    inner.on('error', () => {
      this.#isBroken = true;
    });
  }

  query<R>(text: string, parameters: readonly unknown[]): Promise<PostgresQueryResult<R>>;
  query<R>(cursor: PostgresCursor<R>): PostgresCursor<R>;
  query(query: unknown, parameters: readonly unknown[] = []): unknown {
    if (typeof query !== 'string') throw new VpnError('ERR_INVARIANT', 'no query is streamed from the store');
    return this.#run(query, parameters);
  }

  async #run(text: string, parameters: readonly unknown[]): Promise<unknown> {
    if (/^(begin|start transaction)/.test(text)) this.#isInTransaction = true;
    for (let tries = 0; ; tries++) {
      if (this.#isBroken) throw storeError(new Error('the connection was lost'), this.#name);
      try {
        const result = await this.#inner.query(text, [...parameters]);
        if (text === 'commit' || text === 'rollback') this.#isInTransaction = false;
        return result;
      } catch (cause) {
        // Without an answer of the server nobody knows what the connection is in the middle of.
        if (!(cause instanceof pg.DatabaseError)) this.#isBroken = true;
        const error = storeError(cause, this.#name);
        if (this.#isInTransaction || !isLost(error) || tries >= RETRIES) throw error;
        await setTimeout(Math.random() * RETRY_MS);
      }
    }
  }

  release(destroy = false): void {
    this.#isInTransaction = false;
    this.#inner.release(destroy || this.#isBroken);
  }
}

function storeError(cause: unknown, name: string): VpnError {
  if (cause instanceof VpnError) return cause;
  const { code, table, constraint } = cause as { code?: string; table?: string; constraint?: string };
  if (!(cause instanceof pg.DatabaseError)) {
    // The driver's own errors have no value of a query in them.
    const why = (code === undefined ? undefined : WHY[code]) ?? code ?? String(cause).replace(/^Error: /, '');
    return new VpnError('ERR_STORE', `the store ${name} does not answer: ${why}`, { details: { errno: code } });
  }
  const details = { sqlState: code, table, constraint };
  if (code === UNIQUE) return new VpnError('ERR_CONFLICT', 'a row of that name or id exists already', { details });
  const own = code === RAISED ? cause.message : undefined;
  return new VpnError('ERR_STORE', `the store ${name}: ${own ?? WHY[code ?? ''] ?? `it answered error ${code}`}`, {
    details,
  });
}
