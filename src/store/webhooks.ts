/**
 * How far each webhook has got in the audit record, and what it was not told of.
 *
 * Hides the tables. The record itself is the queue: nothing of an event is kept here but its id. Of dead letters the newest are
 * kept, so that a target that is gone for good fills no disk.
 */

import { sql } from 'kysely';
import type { Store } from './store.ts';

/** For each webhook. */
const KEPT_DEAD = 1000;
/** Ids in one statement. */
const BATCH = 200;

/** A record that a webhook was not told of. */
export interface DeadLetter {
  readonly webhook: string;
  /** Id of the audit record. */
  readonly record: string;
  /** Milliseconds since the Unix epoch. */
  readonly at: number;
  readonly tries: number;
  readonly why: string;
}

export class WebhookRecord {
  readonly #store: Store;

  constructor(store: Store) {
    this.#store = store;
  }

  /** The id of the last record that is done; undefined: nothing is known of this webhook. @throws {VpnError} ERR_STORE */
  async progress(webhook: string): Promise<string | undefined> {
    const row = await this.#store.db
      .selectFrom('webhook_progress')
      .select('after_id')
      .where('webhook', '=', webhook)
      .executeTakeFirst();
    return row?.after_id;
  }

  /** @throws {VpnError} ERR_STORE */
  async advance(webhook: string, after: string): Promise<void> {
    await this.#store.db
      .insertInto('webhook_progress')
      .values({ webhook, after_id: after })
      .onConflict((conflict) => conflict.column('webhook').doUpdateSet({ after_id: after }))
      .execute();
  }

  /** Puts records aside, in place of what was said of them before. @throws {VpnError} ERR_STORE */
  async bury(letters: readonly DeadLetter[]): Promise<void> {
    if (letters.length === 0) return;
    await this.#store.transaction(async (db) => {
      for (let first = 0; first < letters.length; first += BATCH) {
        await db
          .insertInto('webhook_dead')
          .values(
            letters
              .slice(first, first + BATCH)
              .map(({ webhook, record, at, tries, why }) => ({ webhook, record_id: record, died_at: at, tries, why })),
          )
          .onConflict((conflict) =>
            conflict.columns(['webhook', 'record_id']).doUpdateSet({
              died_at: sql`excluded.died_at`,
              tries: sql`excluded.tries`,
              why: sql`excluded.why`,
            }),
          )
          .execute();
      }
      for (const webhook of new Set(letters.map((letter) => letter.webhook))) {
        const oldest = db
          .selectFrom('webhook_dead')
          .select('record_id')
          .where('webhook', '=', webhook)
          .orderBy('record_id', 'desc')
          .limit(1)
          .offset(KEPT_DEAD - 1);
        await db.deleteFrom('webhook_dead').where('webhook', '=', webhook).where('record_id', '<', oldest).execute();
      }
    });
  }

  /** The newest so many, newest first. @throws {VpnError} ERR_STORE */
  async dead(webhook: string | undefined, limit: number): Promise<DeadLetter[]> {
    let select = this.#store.db.selectFrom('webhook_dead').selectAll().orderBy('record_id', 'desc').limit(limit);
    if (webhook !== undefined) select = select.where('webhook', '=', webhook);
    return (await select.execute()).map((row) => ({
      webhook: row.webhook,
      record: row.record_id,
      at: Number(row.died_at),
      tries: row.tries,
      why: row.why,
    }));
  }

  /** How many there are, by webhook. @throws {VpnError} ERR_STORE */
  async countDead(): Promise<Map<string, number>> {
    const rows = await this.#store.db
      .selectFrom('webhook_dead')
      .select(['webhook', sql<number>`count(*)`.as('count')])
      .groupBy('webhook')
      .execute();
    return new Map(rows.map(({ webhook, count }) => [webhook, Number(count)]));
  }

  /** Its letter is delivered. @throws {VpnError} ERR_STORE */
  async forget(webhook: string, record: string): Promise<void> {
    await this.#store.db
      .deleteFrom('webhook_dead')
      .where('webhook', '=', webhook)
      .where('record_id', '=', record)
      .execute();
  }
}
