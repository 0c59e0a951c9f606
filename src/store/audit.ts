/**
 * The audit record: who did what, from where, and with what result.
 *
 * Hides the table; rows are appended and read, never changed; when they are too old, `audit-retention` removes them. The true reason of a refusal stands here and nowhere that
 * the peer can see. Secrets never come here. It must not know how a decision was made.
 */

import { AsyncLocalStorage } from 'node:async_hooks';
import { randomBytes } from 'node:crypto';
import { type Insertable, type Selectable, sql } from 'kysely';
import type { Clock } from '../base/clock.ts';
import { prepare } from './prepared.ts';
import type { Schema } from './schema.ts';
import type { Queries, Store } from './store.ts';

/** What is recorded. */
export const AuditEvent = {
  loginAccepted: 'login.accepted',
  loginRefused: 'login.refused',
  deviceEnrolled: 'device.enrolled',
  deviceApproved: 'device.approved',
  deviceRevoked: 'device.revoked',
  tokenIssued: 'token.issued',
  tokenReused: 'token.reused',
  userAdded: 'user.added',
  userDisabled: 'user.disabled',
  userEnabled: 'user.enabled',
  userDeleted: 'user.deleted',
  sourceGone: 'source.gone',
  userChanged: 'user.changed',
  passwordSet: 'password.set',
  passwordRemoved: 'password.removed',
  totpSet: 'totp.set',
  totpRemoved: 'totp.removed',
  recoveryCodesMade: 'recovery.made',
  recoveryCodeUsed: 'recovery.used',
  accessTokenIssued: 'access.issued',
  accessTokenRevoked: 'access.revoked',
  passkeyAdded: 'passkey.added',
  passkeyRemoved: 'passkey.removed',
  deviceRenamed: 'device.renamed',
  certificateIssued: 'certificate.issued',
  certificateRenewed: 'certificate.renewed',
  certificateRevoked: 'certificate.revoked',
  certificateRefused: 'certificate.refused',
  policyChanged: 'policy.changed',
  banBegun: 'ban.begun',
  banLifted: 'ban.lifted',
  sessionOpened: 'session.opened',
  sessionResumed: 'session.resumed',
  resumeRefused: 'session.resume_refused',
  sessionEnded: 'session.ended',
  auditPruned: 'audit.pruned',
  storeRestored: 'store.restored',
  operatorLogin: 'operator.login',
  operatorRefused: 'operator.refused',
  operatorLogout: 'operator.logout',
  operatorActed: 'operator.acted',
  adminLinkMade: 'admin.link',
  adminLinkUsed: 'admin.link_used',
} as const;
export type AuditEvent = (typeof AuditEvent)[keyof typeof AuditEvent];

export interface AuditEntry {
  readonly event: AuditEvent;
  readonly user?: string | undefined;
  /** Device id, hexadecimal. */
  readonly device?: string | undefined;
  /** Address and port of the peer, or the operator's way in. */
  readonly source?: string | undefined;
  readonly reason?: string | undefined;
  readonly detail?: Readonly<Record<string, string | number>> | undefined;
}

export interface AuditRecord extends AuditEntry {
  /** Sorts by order of writing: a clock that is set back makes none that is smaller than those before. */
  readonly id: string;
  /** Milliseconds since the Unix epoch. */
  readonly at: number;
}

export interface AuditQuery {
  /** Milliseconds since the Unix epoch. */
  readonly since?: number;
  readonly user?: string;
  /** Or the first part of it: `user` is every event of a user. */
  readonly event?: string;
  /** The id of a record: only those after it. */
  readonly after?: string;
  /** The id of a record: only those before it. */
  readonly before?: string;
  /** Only records that have this text in a field, whatever its case. */
  readonly search?: string;
  /** At most this many, the newest; default 1,000. */
  readonly limit?: number;
}

const append = prepare((db, { id, at, event, user, device, source, reason, detail }: Insertable<Schema['audit']>) =>
  db.insertInto('audit').values({ id, at, event, user, device, source, reason, detail }),
);

/** A user or peer chooses some of the values; none may fill the disk. */
const MAX_TEXT = 256;
/** Of an id: its time and its counter, hexadecimal. */
const TIME_DIGITS = 12;
const ORDER_DIGITS = 8;
const MAX_ORDER = 0xffff_ffff;

const actors = new AsyncLocalStorage<string>();

/** Does some work in the name of an operator, whom every record that comes of it names as `by`. */
export function actingFor<T>(operator: string, work: () => Promise<T>): Promise<T> {
  return actors.run(operator, work);
}

/** In whose name it is worked; undefined: nobody has said. */
export function actor(): string | undefined {
  return actors.getStore();
}

export class Audit {
  readonly #store: Store;
  readonly #clock: Clock;
  readonly #writer = randomBytes(6).toString('hex');
  readonly #counts = new Map<AuditEvent, number>();
  /** Time and counter of the last id. */
  #last: { at: number; order: number };

  /** Goes on behind what is on record. @throws {VpnError} ERR_STORE */
  static async open(store: Store, clock: Clock): Promise<Audit> {
    const [newest] = await new Audit(store, clock).list({ limit: 1 });
    return new Audit(store, clock, newest?.id);
  }

  /** @param newest id of the last record there is */
  constructor(store: Store, clock: Clock, newest?: string) {
    this.#store = store;
    this.#clock = clock;
    const at = timeOfId(newest ?? '');
    const order = Number.parseInt(newest?.slice(TIME_DIGITS, TIME_DIGITS + ORDER_DIGITS) ?? '', 16);
    this.#last = { at: at || 0, order: order || 0 };
  }

  /** How many rows of an event this process has appended. */
  count(event: AuditEvent): number {
    return this.#counts.get(event) ?? 0;
  }

  /** Appends a row, on `db` when it is part of a transaction. */
  async append(entry: AuditEntry, db: Queries = this.#store.db): Promise<void> {
    const at = Math.trunc(this.#clock.wallNow());
    const actor = actors.getStore();
    this.#counts.set(entry.event, (this.#counts.get(entry.event) ?? 0) + 1);
    await append(db, {
      id: this.#nextId(at),
      at,
      event: entry.event,
      user: cut(entry.user),
      device: cut(entry.device),
      source: cut(entry.source),
      reason: cut(entry.reason),
      detail: JSON.stringify(actor === undefined ? (entry.detail ?? {}) : { ...entry.detail, by: actor }),
    });
  }

  /** Reads rows, oldest first. */
  async list(query: AuditQuery = {}): Promise<AuditRecord[]> {
    let select = this.#store.db
      .selectFrom('audit')
      .selectAll()
      .orderBy('id', 'desc')
      .limit(query.limit ?? 1000);
    if (query.since !== undefined) select = select.where('at', '>=', query.since);
    if (query.user !== undefined) select = select.where('user', '=', query.user);
    if (query.after !== undefined) select = select.where('id', '>', query.after);
    if (query.before !== undefined) select = select.where('id', '<', query.before);
    if (query.search !== undefined) {
      const wanted = `%${query.search.toLowerCase().replace(/[\\%_]/g, '\\$&')}%`;
      const columns = ['event', 'user', 'device', 'source', 'reason', 'detail'] as const;
      select = select.where((build) =>
        build.or(columns.map((column) => sql<boolean>`lower(${build.ref(column)}) like ${wanted} escape '\\'`)),
      );
    }
    if (query.event !== undefined) {
      const { event } = query;
      // How texts sort, and what `like` makes of their case, is different in each database.
      const start = sql<string>`substr(event, 1, ${sql.lit(event.length + 1)})`;
      select = select.where((build) => build.or([build('event', '=', event), build(start, '=', `${event}.`)]));
    }
    const rows = await select.execute();
    return rows.reverse().map(recordOf);
  }

  /**
   * The first rows after one, oldest first.
   *
   * @param after its id
   * @param settleMs so long before a row is read, and those behind it: somebody may still be writing one before it
   */
  async next(after: string, settleMs: number, limit: number): Promise<AuditRecord[]> {
    const rows = await this.#store.db
      .selectFrom('audit')
      .selectAll()
      .where('id', '>', after)
      .orderBy('id')
      .limit(limit)
      .execute();
    const now = this.#clock.wallNow();
    // One of a time to come is from before the clock was set back.
    const end = rows.findIndex(({ at }) => Number(at) > now - settleMs && Number(at) <= now);
    return (end < 0 ? rows : rows.slice(0, end)).map(recordOf);
  }

  /** The rows with these ids, as far as there are any. */
  async find(ids: readonly string[]): Promise<AuditRecord[]> {
    if (ids.length === 0) return [];
    const rows = await this.#store.db
      .selectFrom('audit')
      .selectAll()
      .where('id', 'in', [...ids])
      .execute();
    return rows.map(recordOf);
  }

  /** How many rows there are after one, by event. @param after its id */
  async countAfter(after: string): Promise<Map<string, number>> {
    const rows = await this.#store.db
      .selectFrom('audit')
      .select(['event', sql<number>`count(*)`.as('count')])
      .where('id', '>', after)
      .groupBy('event')
      .execute();
    return new Map(rows.map(({ event, count }) => [event, Number(count)]));
  }

  /** Milliseconds and a counter keep the order of one writer; the random end, its own, keeps two writers apart. */
  #nextId(now: number): string {
    const isFull = this.#last.order >= MAX_ORDER;
    const at = Math.max(now, isFull ? this.#last.at + 1 : this.#last.at);
    this.#last = { at, order: isFull ? 0 : this.#last.order + 1 };
    return hex(at, TIME_DIGITS) + hex(this.#last.order, ORDER_DIGITS) + this.#writer;
  }
}

/** Below the ids of all records of this time and later. @param at milliseconds since the Unix epoch */
export function firstIdOf(at: number): string {
  return hex(Math.max(0, Math.trunc(at)), TIME_DIGITS);
}

/** What the clock said when a record was made, or before it was set back. @returns milliseconds since the Unix epoch */
export function timeOfId(id: string): number {
  return Number.parseInt(id.slice(0, TIME_DIGITS), 16);
}

function recordOf(row: Selectable<Schema['audit']>): AuditRecord {
  return {
    id: row.id,
    at: Number(row.at),
    event: row.event as AuditEvent,
    user: row.user ?? undefined,
    device: row.device ?? undefined,
    source: row.source ?? undefined,
    reason: row.reason ?? undefined,
    detail: JSON.parse(row.detail) as Record<string, string | number>,
  };
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, '0');
}

function cut(text: string | undefined): string | null {
  // PostgreSQL stores no NUL.
  return text === undefined ? null : text.slice(0, MAX_TEXT).replaceAll('\0', '\uFFFD');
}
