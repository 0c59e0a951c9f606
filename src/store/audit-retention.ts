/**
 * How far back the audit record goes: so many days, and so many records.
 *
 * Hides the counting and the removing, which go by windows of the record with a pause after each, so that nobody waits for long.
 * Refusals have half of the room at most: strangers cause them, and must not push out of the record what they cannot cause.
 * What goes is said in the record itself, before it goes; the database lets go of nothing else (`schema`).
 */

import { setTimeout } from 'node:timers/promises';
import { sql } from 'kysely';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import { Repeat } from '../base/repeat.ts';
import { type Audit, AuditEvent, firstIdOf, timeOfId } from './audit.ts';
import type { Store } from './store.ts';

const DAY_MS = 86_400_000;
const LOOK_MS = 3_600_000;
/** Some milliseconds of the store's time. */
const WINDOW_RECORDS = 1000;
const PAUSE_MS = 10;

/** What somebody can cause who has proven nothing. */
const REFUSALS: readonly AuditEvent[] = [
  AuditEvent.loginRefused,
  AuditEvent.resumeRefused,
  AuditEvent.certificateRefused,
  AuditEvent.operatorRefused,
  AuditEvent.banBegun,
];
/** In the table of what may go: whatever the event. */
const ALL = '*';

export interface AuditRetentionOptions {
  readonly store: Store;
  readonly audit: Audit;
  /** 0: for ever. */
  readonly keepDays: number;
  readonly keepRecords: number;
  readonly clock: Clock;
  readonly log: Logger;
  /** How many records are counted or removed at once; the limits are kept to so many. */
  readonly windowRecords?: number;
}

/** Records that follow each other, by their first and last id. */
interface Window {
  readonly first: string;
  readonly last: string;
  readonly records: number;
  readonly refusals: number;
}

/** What goes: everything, and refusals, whose id is below. */
interface Cut {
  readonly all: string;
  readonly refusals: string;
}

export class AuditRetention {
  readonly #options: AuditRetentionOptions;
  readonly #log: Logger;
  readonly #looks: Repeat;
  readonly #stopping = new AbortController();

  constructor(options: AuditRetentionOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'audit' });
    this.#looks = new Repeat(
      LOOK_MS,
      () => this.#look(),
      (error) => {
        if (!this.#stopping.signal.aborted) this.#log.error('old audit records could not be removed', { error });
      },
    );
  }

  /** Looks at once, too: many a gateway starts again before the first interval is over. */
  start(): void {
    this.#looks.start();
    void this.#looks.run();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#looks.stop();
  }

  /** Removes now what is too old or too much. Never rejects. */
  look(): Promise<void> {
    return this.#looks.run();
  }

  async #look(): Promise<void> {
    const windows = await this.#count();
    const cut = this.#cutOf(windows);
    const going = windows.filter(({ first, refusals }) => first < cut.all || (refusals > 0 && first < cut.refusals));
    if (going.length === 0) return;
    await this.#announce(cut);
    let records = 0;
    for (const window of going) {
      records += await this.#remove(window, cut);
      await this.#pause();
    }
    this.#log.info('old audit records were removed', { records });
  }

  async #count(): Promise<Window[]> {
    const windows: Window[] = [];
    for (;;) {
      const window = await this.#windowAfter(windows.at(-1)?.last ?? '');
      if (window === undefined) return windows;
      windows.push(window);
      await this.#pause();
    }
  }

  async #windowAfter(id: string): Promise<Window | undefined> {
    const { store, windowRecords = WINDOW_RECORDS } = this.#options;
    const part = store.db
      .selectFrom('audit')
      .select(['id', 'event'])
      .where('id', '>', id)
      .orderBy('id')
      .limit(windowRecords)
      .as('part');
    const { first, last, records, refusals } = await store.db
      .selectFrom(part)
      .select(({ fn }) => [
        fn.min('id').as('first'),
        fn.max('id').as('last'),
        fn.countAll().as('records'),
        sql<number>`count(case when event in (${sql.join(REFUSALS)}) then 1 end)`.as('refusals'),
      ])
      .executeTakeFirstOrThrow();
    if (Number(records) === 0) return undefined;
    return { first, last, records: Number(records), refusals: Number(refusals) };
  }

  #cutOf(windows: readonly Window[]): Cut {
    const { keepDays, keepRecords, clock } = this.#options;
    let records = sum(windows.map((window) => window.records));
    let refusals = sum(windows.map((window) => window.refusals));
    let ofRefusals = '';
    for (const window of windows) {
      if (refusals <= keepRecords / 2) break;
      refusals -= window.refusals;
      records -= window.refusals;
      ofRefusals = idAfter(window.last);
    }
    let ofAll = keepDays === 0 ? '' : firstIdOf(clock.wallNow() - keepDays * DAY_MS);
    for (const window of windows) {
      if (records <= keepRecords) break;
      records -= window.last < ofRefusals ? window.records - window.refusals : window.records;
      if (ofAll < window.last) ofAll = idAfter(window.last);
    }
    return { all: ofAll, refusals: ofRefusals };
  }

  /** From here on the database lets it go. */
  async #announce({ all, refusals }: Cut): Promise<void> {
    const { store, audit } = this.#options;
    const ends = [[ALL, all] as const, ...REFUSALS.map((event) => [event, refusals] as const)];
    await store.transaction(async (db) => {
      for (const [event, before_id] of ends) {
        if (before_id === '') continue;
        await db
          .insertInto('audit_retention')
          .values({ event, before_id })
          .onConflict((conflict) =>
            conflict.column('event').doUpdateSet({ before_id }).where('audit_retention.before_id', '<', before_id),
          )
          .execute();
      }
      await audit.append(
        {
          event: AuditEvent.auditPruned,
          detail: {
            ...(all === '' ? {} : { before: instantOf(all) }),
            ...(refusals === '' ? {} : { refusalsBefore: instantOf(refusals) }),
          },
        },
        db,
      );
    });
  }

  async #remove({ first, last }: Window, { all, refusals }: Cut): Promise<number> {
    return await this.#options.store.transaction(async (db) => {
      const { numDeletedRows } = await db
        .deleteFrom('audit')
        .where('id', '>=', first)
        .where('id', '<=', last)
        .where((build) =>
          build.or([build('id', '<', all), build.and([build('id', '<', refusals), build('event', 'in', REFUSALS)])]),
        )
        .executeTakeFirst();
      return Number(numDeletedRows);
    });
  }

  /** @throws {Error} when it is to stop */
  async #pause(): Promise<void> {
    await setTimeout(PAUSE_MS, undefined, { signal: this.#stopping.signal, ref: false });
  }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}

/** Above that id, and below any other that is. */
function idAfter(id: string): string {
  return `${id}0`;
}

function instantOf(id: string): string {
  return new Date(timeOfId(id)).toISOString();
}
