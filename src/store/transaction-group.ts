/**
 * One commit for the transactions that wait at the same time.
 *
 * Hides the waiting and the savepoints. To a database in a file a commit costs more than what is committed, and one
 * connection commits one transaction at a time: so those that came in one turn of the event loop go together. Where commits
 * follow each other closely, the next one waits some milliseconds for company, as long as it finds some. Each is still
 * all or nothing by itself, sees what those before it did, and is answered only when all of it is committed.
 */

import { setTimeout } from 'node:timers/promises';
import { CompiledQuery, type Transaction } from 'kysely';
import { prepare } from './prepared.ts';
import type { Schema } from './schema.ts';

type Work<T> = (db: Transaction<Schema>) => Promise<T>;

interface Waiting {
  readonly work: Work<unknown>;
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

/** In one commit: more would keep the event loop from packets for too long. */
const MAX_TOGETHER = 16;
/** Commits with less than this between them follow each other closely. */
const NEAR_MS = 8;
/** So many in a row, and the next one waits. What one login writes is less. */
const MANY_IN_A_ROW = 6;
const WAIT_MS = 3;
/** One that has waited for nobody spares so many after it the same. */
const LONELY_COMMITS = 64;

/** How time goes. */
export interface GroupTime {
  /** Monotonic milliseconds. */
  now(): number;
  wait(milliseconds: number): Promise<unknown>;
}

const SYSTEM_TIME: GroupTime = { now: () => performance.now(), wait: (milliseconds) => setTimeout(milliseconds) };

const savepoint = command('savepoint one');
const release = command('release one');
const rollBack = command('rollback to one');
const NOTHING = {};

export class TransactionGroup {
  readonly #transaction: (work: Work<void>) => Promise<void>;
  readonly #waiting: Waiting[] = [];
  readonly #time: GroupTime;
  /** Of the commits that are under way or about to be. */
  #committing: Promise<void> | undefined;
  #endedAt = Number.NEGATIVE_INFINITY;
  #inARow = 0;
  /** Commits that do not wait whatever happens. */
  #spared = 0;

  /** @param transaction runs one transaction of the database */
  constructor(transaction: (work: Work<void>) => Promise<void>, time: GroupTime = SYSTEM_TIME) {
    this.#transaction = transaction;
    this.#time = time;
  }

  /** Runs `work` in a transaction; an error undoes all of it, and nothing else. */
  run<T>(work: Work<T>): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    this.#waiting.push({ work, resolve: resolve as (value: unknown) => void, reject });
    this.#committing ??= this.#commitAll();
    return promise;
  }

  /** Resolves when nothing waits and nothing is under way. */
  async settled(): Promise<void> {
    await this.#committing;
  }

  async #commitAll(): Promise<void> {
    while (this.#waiting.length > 0) {
      // What else arrives in this turn comes along; and between two commits others have theirs.
      await new Promise(setImmediate);
      await this.#waitForCompany();
      await this.#commit(this.#waiting.splice(0, MAX_TOGETHER));
      this.#endedAt = this.#time.now();
    }
    this.#committing = undefined;
  }

  async #waitForCompany(): Promise<void> {
    this.#inARow = this.#time.now() - this.#endedAt < NEAR_MS ? this.#inARow + 1 : 0;
    if (this.#spared > 0) {
      this.#spared -= 1;
      return;
    }
    if (this.#inARow < MANY_IN_A_ROW || this.#waiting.length >= MAX_TOGETHER) return;
    await this.#time.wait(WAIT_MS);
    // Whoever makes one transaction after the other would only wait for itself.
    if (this.#waiting.length === 1) this.#spared = LONELY_COMMITS;
  }

  /** Never rejects: whatever happens is told to those who wait. */
  async #commit(group: readonly Waiting[]): Promise<void> {
    const failed = new Map<Waiting, unknown>();
    const values: unknown[] = [];
    try {
      await this.#transaction(async (db) => {
        // Outcomes of an attempt that is run again are not outcomes.
        failed.clear();
        values.length = 0;
        for (const waiting of group) {
          values.push(
            group.length === 1
              ? await waiting.work(db)
              : await runAlone(db, waiting, (error) => failed.set(waiting, error)),
          );
        }
      });
    } catch (error) {
      for (const waiting of group) waiting.reject(failed.has(waiting) ? failed.get(waiting) : error);
      return;
    }
    for (const [index, waiting] of group.entries()) {
      if (failed.has(waiting)) waiting.reject(failed.get(waiting));
      else waiting.resolve(values[index]);
    }
  }
}

/** @throws what the work threw, when the database has undone the whole group with it */
async function runAlone(db: Transaction<Schema>, { work }: Waiting, fail: (error: unknown) => void): Promise<unknown> {
  await savepoint(db, NOTHING);
  try {
    const value = await work(db);
    await release(db, NOTHING);
    return value;
  } catch (error) {
    try {
      await rollBack(db, NOTHING);
      await release(db, NOTHING);
    } catch {
      // A full disk, for one, makes SQLite undo everything at once.
      throw error;
    }
    fail(error);
    return undefined;
  }
}

function command(text: string) {
  return prepare(() => ({ compile: () => CompiledQuery.raw(text) }));
}
