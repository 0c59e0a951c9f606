/**
 * Queries that are built once and run often, such as those of every login.
 *
 * Hides how kysely builds a query: the text is compiled at the first run, for each kind of database, with placeholders where
 * values go. A database in this process runs it at once, without kysely's waiting in between, where nobody else has the
 * connection. It must not know the tables.
 */

import type { Compilable, CompiledQuery, QueryResult } from 'kysely';
import type { Queries } from './store.ts';

/** What the adapter of a database can do besides that is in this process. */
export interface ImmediateAdapter {
  /**
   * Runs a statement before it returns; undefined when that cannot be now, and nothing has been done.
   *
   * @param isInTransaction it belongs to the transaction that is under way
   */
  runNow<Row>(sql: string, parameters: readonly unknown[], isInTransaction: boolean): QueryResult<Row> | undefined;
}

/** Stands for a value while the query is built. */
class Slot {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
  }
}

/** Runs a prepared query on the store or in a transaction. @throws {VpnError} as any query */
export type Prepared<V extends object, Row> = (db: Queries, values: V) => Promise<QueryResult<Row>>;

/**
 * Prepares a query.
 *
 * @param build builds it with kysely. Values are only placed, never looked at: the query is the same for all of them, and
 *   a value that may be null must not be compared with `=`.
 */
export function prepare<V extends object, Row>(build: (db: Queries, values: V) => Compilable<Row>): Prepared<V, Row> {
  const slots = new Proxy({}, { get: (_target, name) => new Slot(String(name)) }) as V;
  // One process may have databases of both kinds, and several of one.
  const compiled = new WeakMap<object, CompiledQuery<Row>>();
  return async (db, values) => {
    const { adapter } = db.getExecutor();
    let query = compiled.get(adapter);
    if (query === undefined) {
      query = build(db, slots).compile();
      compiled.set(adapter, query);
    }
    const parameters: unknown[] = [];
    for (const given of query.parameters) {
      parameters.push(given instanceof Slot ? Reflect.get(values, given.name) : given);
    }
    const done = isImmediate(adapter) ? adapter.runNow<Row>(query.sql, parameters, db.isTransaction) : undefined;
    return done ?? (await db.executeQuery({ ...query, parameters }));
  };
}

function isImmediate(adapter: object): adapter is ImmediateAdapter {
  return 'runNow' in adapter;
}
