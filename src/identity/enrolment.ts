/**
 * Enrolment tokens: one-time secrets that bring a device's key into the store.
 *
 * Hides the table and the rule of docs/protocol.md §6: a token goes in one step from unused to bound to the first key that
 * presents it; that key may present it again until its first login of its own (so that a lost ACCEPT locks nobody out);
 * any other key never. The secret is handed out once and stored as SHA-256. It must not know how a login goes.
 *
 *     token = id (8) ‖ secret (32)
 */

import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { Secret } from '../base/log.ts';
import type { DeviceAlgorithm } from '../protocol/messages.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import { prepare } from '../store/prepared.ts';
import type { Queries, Store } from '../store/store.ts';
import { normaliseName } from './names.ts';

const ID_BYTES = 8;
const SECRET_BYTES = 32;
const DEFAULT_LIFE_MS = 72 * 3_600_000;
const MAX_LIFE_MS = 366 * 24 * 3_600_000;
export const DEFAULT_DEVICES_PER_USER = 10;
/** How long a token that has ended is remembered, to tell its holder why it is refused. */
const MEMORY_MS = 30 * 24 * 3_600_000;

export interface IssuedToken {
  /** 16 hexadecimal digits; not secret. */
  readonly id: string;
  /** The whole token, 40 bytes. This is the only time it is seen. */
  readonly token: Secret<Uint8Array>;
  /** Milliseconds since the Unix epoch. */
  readonly expiresAt: number;
}

/** A token whose secret was right; a snapshot, to be confirmed by `bind`. */
export interface KnownToken {
  readonly id: string;
  readonly user: { readonly id: string; readonly name: string };
  readonly expiresAt: number;
  readonly needsApproval: boolean;
  readonly spent: boolean;
  /** Who has it already. */
  readonly bound: { readonly device: string; readonly source: string } | undefined;
}

/** The device that a token brings in. */
export interface Enrolment {
  /** Hexadecimal. */
  readonly device: string;
  readonly algorithm: DeviceAlgorithm;
  /** SubjectPublicKeyInfo, DER; already checked. */
  readonly publicKey: Uint8Array;
  readonly name: string;
  readonly source: string;
}

/** What became of an attempt to put a device in the store: its row is there, is another user's, or there is no room. */
export type EnrolOutcome = 'enrolled' | 'foreign' | 'full';

/** What became of an attempt to bind. `foreign`: the device is another user's; `full`: the user has as many as they may. */
export type BindOutcome = 'bound' | 'repeated' | 'taken' | 'foreign' | 'full';

const spendTokens = prepare((db, { device, now }: { device: string; now: number }) =>
  db
    .updateTable('enrolment_tokens')
    .set({ spent_at: now })
    .where('bound_device', '=', device)
    .where('spent_at', 'is', null),
);

export class EnrolmentTokens {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;
  readonly #devicesPerUser: () => number;

  constructor(parts: {
    store: Store;
    audit: Audit;
    clock: Clock;
    /** How many devices that are not revoked a user may have; asked each time. */
    devicesPerUser?: () => number;
  }) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
    this.#devicesPerUser = parts.devicesPerUser ?? (() => DEFAULT_DEVICES_PER_USER);
  }

  /**
   * Makes a token for a user.
   *
   * @param options.lifeMs until it expires; default 72 hours
   * @param options.approve the device it enrols waits for an operator
   * @throws {VpnError} ERR_NOT_FOUND, ERR_BAD_REQUEST
   */
  async issue(user: string, options: { lifeMs?: number; approve?: boolean } = {}): Promise<IssuedToken> {
    const life = options.lifeMs ?? DEFAULT_LIFE_MS;
    if (!(life > 0 && life <= MAX_LIFE_MS)) {
      throw new VpnError('ERR_BAD_REQUEST', 'a token lives for more than nothing and at most 366 days');
    }
    const token = randomBytes(ID_BYTES + SECRET_BYTES);
    const id = token.toString('hex', 0, ID_BYTES);
    const now = this.#now();
    const expiresAt = Math.trunc(now + life);
    await this.#store.transaction(async (db) => {
      const owner = await db
        .selectFrom('users')
        .select(['id', 'name'])
        .where('name', '=', normaliseName(user) ?? '')
        .executeTakeFirst();
      if (owner === undefined) {
        throw new VpnError('ERR_NOT_FOUND', `there is no user ${JSON.stringify(user.slice(0, 80))}`);
      }
      await db
        .deleteFrom('enrolment_tokens')
        .where('expires_at', '<', now - MEMORY_MS)
        .execute();
      await db
        .insertInto('enrolment_tokens')
        .values({
          id,
          hash: hashOf(token),
          user_id: owner.id,
          created_at: now,
          expires_at: expiresAt,
          needs_approval: options.approve === true ? 1 : 0,
          bound_device: null,
          bound_at: null,
          bound_source: null,
          spent_at: null,
        })
        .execute();
      await this.#audit.append({ event: AuditEvent.tokenIssued, user: owner.name, detail: { token: id } }, db);
    });
    return { id, token: new Secret<Uint8Array>(token), expiresAt };
  }

  /**
   * Looks a presented token up. The same work is done for a token that does not exist as for a wrong secret.
   *
   * @returns undefined when there is no such token or its secret is wrong
   */
  async find(token: Uint8Array): Promise<KnownToken | undefined> {
    const wellFormed = token.length === ID_BYTES + SECRET_BYTES;
    const row = await this.#store.db
      .selectFrom('enrolment_tokens')
      .innerJoin('users', 'users.id', 'enrolment_tokens.user_id')
      .selectAll('enrolment_tokens')
      .select('users.name as user')
      .where('enrolment_tokens.id', '=', wellFormed ? Buffer.from(token).toString('hex', 0, ID_BYTES) : '')
      .executeTakeFirst();
    const right = timingSafeEqual(hashOf(token), row?.hash ?? NO_HASH);
    if (!right || row === undefined || !wellFormed) return undefined;
    return {
      id: row.id,
      user: { id: row.user_id, name: row.user },
      expiresAt: Number(row.expires_at),
      needsApproval: row.needs_approval !== 0,
      spent: row.spent_at !== null,
      bound:
        row.bound_device === null ? undefined : { device: row.bound_device, source: row.bound_source ?? 'unknown' },
    };
  }

  /**
   * Binds a token to a device and puts the device in the store, by one compare-and-swap: of two that try at once, one
   * finds it taken. Part of the transaction `db`.
   */
  async bind(db: Queries, token: KnownToken, enrolment: Enrolment): Promise<BindOutcome> {
    const now = this.#now();
    const { numUpdatedRows } = await db
      .updateTable('enrolment_tokens')
      .set({ bound_device: enrolment.device, bound_at: now, bound_source: enrolment.source })
      .where('id', '=', token.id)
      .where('bound_device', 'is', null)
      .where('expires_at', '>', now)
      .executeTakeFirst();
    if (numUpdatedRows !== 1n) {
      const row = await db
        .selectFrom('enrolment_tokens')
        .select('id')
        .where('id', '=', token.id)
        .where('bound_device', '=', enrolment.device)
        .where('spent_at', 'is', null)
        .executeTakeFirst();
      return row === undefined ? 'taken' : 'repeated';
    }
    const approvedAt = token.needsApproval ? undefined : now;
    const outcome = await this.enrol(db, token.user, enrolment, { approvedAt, detail: { token: token.id } });
    return outcome === 'enrolled' ? 'bound' : outcome;
  }

  /** Puts a device in the store that a step has vouched for; one that is there is left alone. Part of the transaction `db`. */
  async enrol(
    db: Queries,
    user: { readonly id: string; readonly name: string },
    enrolment: Enrolment,
    { approvedAt = undefined, detail = {} }: { approvedAt?: number | undefined; detail?: Record<string, string> } = {},
  ): Promise<EnrolOutcome> {
    const known = await db
      .selectFrom('devices')
      .select('user_id')
      .where('id', '=', enrolment.device)
      .executeTakeFirst();
    if (known !== undefined) return known.user_id === user.id ? 'enrolled' : 'foreign';
    const present = await db
      .selectFrom('devices')
      .select('id')
      .where('user_id', '=', user.id)
      .where('revoked_at', 'is', null)
      .execute();
    if (present.length >= this.#devicesPerUser()) return 'full';
    await db
      .insertInto('devices')
      .values({
        id: enrolment.device,
        user_id: user.id,
        name: enrolment.name,
        algorithm: enrolment.algorithm,
        public_key: enrolment.publicKey,
        created_at: this.#now(),
        approved_at: approvedAt ?? null,
        first_login_at: null,
        last_seen_at: null,
        revoked_at: null,
      })
      .execute();
    await this.#audit.append(
      {
        event: AuditEvent.deviceEnrolled,
        user: user.name,
        device: enrolment.device,
        source: enrolment.source,
        detail,
      },
      db,
    );
    return 'enrolled';
  }

  /** Who has a token now, for the record; part of the transaction `db`. */
  async holder(db: Queries, id: string): Promise<{ device: string; source: string } | undefined> {
    const row = await db
      .selectFrom('enrolment_tokens')
      .select(['bound_device', 'bound_source'])
      .where('id', '=', id)
      .executeTakeFirst();
    const device = row?.bound_device;
    return device === null || device === undefined ? undefined : { device, source: row?.bound_source ?? 'unknown' };
  }

  /** The device has logged in with its own key: its tokens are worth nothing any more. Part of the transaction `db`. */
  async spend(db: Queries, device: string): Promise<void> {
    await spendTokens(db, { device, now: this.#now() });
  }

  #now(): number {
    return Math.trunc(this.#clock.wallNow());
  }
}

/** What a token that does not exist is compared with; no token has it. */
const NO_HASH = randomBytes(32);

function hashOf(token: Uint8Array): Uint8Array {
  return createHash('sha256').update(token).digest();
}
