/**
 * What users have carried, by day and by month.
 *
 * Hides the table and how periods are named. Days and months are those of UTC. It must not know quotas.
 */

import { sql } from 'kysely';
import type { Store } from './store.ts';

/** Rows of one statement. */
const ROWS = 200;
/** Months that are kept beside the present one. */
const KEPT_MONTHS = 12;

/** What one user has carried in the present day and month, bytes. */
export interface Usage {
  readonly day: number;
  readonly month: number;
}

/** The names of the day and the month of a moment. @param at milliseconds since the Unix epoch */
export function periodsOf(at: number): { readonly day: string; readonly month: string } {
  const text = new Date(at).toISOString();
  return { day: text.slice(0, 10), month: text.slice(0, 7) };
}

/** When the day and the month of a moment end, milliseconds since the Unix epoch. */
export function endsOfPeriods(at: number): { readonly day: number; readonly month: number } {
  const date = new Date(at);
  return {
    day: Date.UTC(date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate() + 1),
    month: Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1),
  };
}

export class UsageRecord {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** Of everybody who has carried something in these periods. @throws {VpnError} ERR_STORE */
  async read(at: number): Promise<Map<string, Usage>> {
    const { day, month } = periodsOf(at);
    const rows = await this.#store.db.selectFrom('usage').selectAll().where('period', 'in', [day, month]).execute();
    const found = new Map<string, { day: number; month: number }>();
    for (const { account, period, bytes } of rows) {
      const usage = found.get(account) ?? { day: 0, month: 0 };
      usage[period === day ? 'day' : 'month'] = Number(bytes);
      found.set(account, usage);
    }
    return found;
  }

  /** Adds bytes to the day and the month of a moment, all or none. @throws {VpnError} ERR_STORE */
  async add(carried: ReadonlyMap<string, number>, at: number): Promise<void> {
    const rows = [...carried].flatMap(([account, bytes]) =>
      Object.values(periodsOf(at)).map((period) => ({ account, period, bytes })),
    );
    if (rows.length === 0) return;
    await this.#store.transaction(async (db) => {
      for (let first = 0; first < rows.length; first += ROWS) {
        await db
          .insertInto('usage')
          .values(rows.slice(first, first + ROWS))
          .onConflict((conflict) =>
            conflict
              .columns(['account', 'period'])
              .doUpdateSet({ bytes: sql`${sql.ref('usage.bytes')} + ${sql.ref('excluded.bytes')}` }),
          )
          .execute();
      }
    });
  }

  /** Forgets what is older than a day for days, and than a year for months. @throws {VpnError} ERR_STORE */
  async forget(at: number): Promise<void> {
    const { day } = periodsOf(at);
    const date = new Date(at);
    const oldest = periodsOf(Date.UTC(date.getUTCFullYear(), date.getUTCMonth() - KEPT_MONTHS)).month;
    await this.#store.db
      .deleteFrom('usage')
      .where((where) =>
        where.or([
          where.and([where(sql<number>`length(period)`, '=', 10), where('period', '<', day)]),
          where.and([where(sql<number>`length(period)`, '=', 7), where('period', '<', oldest)]),
        ]),
      )
      .execute();
  }
}
