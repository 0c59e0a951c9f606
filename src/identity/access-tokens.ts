/**
 * Access tokens: what a machine shows in place of a person's password and code.
 *
 * Hides the table. The secret is handed out once and stored as SHA-256; a token belongs to a user, opens only what its scopes
 * name, and can end by time or by an operator's word. It must not know how a login goes.
 *
 *     token = id (8) ‖ secret (32)
 */

import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { Secret } from '../base/log.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import { prepare } from '../store/prepared.ts';
import type { Queries, Store } from '../store/store.ts';
import { findUser, type UserKey } from './accounts.ts';
import { parseLabel } from './names.ts';

const ID_BYTES = 8;
const SECRET_BYTES = 32;
const MAX_TOKENS_PER_USER = 100;

/** What a token may open: packets, proxy streams, the control API. */
export const ACCESS_SCOPES = ['tunnel', 'proxy', 'api'] as const;
export type AccessScope = (typeof ACCESS_SCOPES)[number];

/** Times are milliseconds since the Unix epoch. */
export interface AccessToken {
  /** 16 hexadecimal digits; not secret. */
  readonly id: string;
  readonly user: string;
  readonly name: string;
  readonly scopes: readonly AccessScope[];
  readonly createdAt: number;
  readonly expiresAt: number | undefined;
  readonly lastUsedAt: number | undefined;
  readonly revokedAt: number | undefined;
}

/** A token whose secret was right. */
export type TokenVerdict =
  | { readonly right: true; readonly id: string; readonly user: UserKey; readonly endsAt: number | undefined }
  | { readonly right: false; readonly user: UserKey | undefined; readonly reason: string };

const findToken = prepare((db, { id }: { id: string }) =>
  db
    .selectFrom('access_tokens')
    .innerJoin('users', 'users.id', 'access_tokens.user_id')
    .selectAll('access_tokens')
    .select('users.name as user')
    .where('access_tokens.id', '=', id),
);

const noteUse = prepare((db, { id, now }: { id: string; now: number }) =>
  db.updateTable('access_tokens').set({ last_used_at: now }).where('id', '=', id).where('revoked_at', 'is', null),
);

export class AccessTokens {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;

  constructor(parts: { store: Store; audit: Audit; clock: Clock }) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
  }

  /**
   * Makes a token.
   *
   * @returns the token, 40 bytes; this is the only time it is seen
   * @throws {VpnError} ERR_NOT_FOUND, ERR_BAD_REQUEST, ERR_CONFLICT when the user has too many
   */
  async issue(
    name: string,
    options: { name: string; scopes: readonly AccessScope[]; expiresAt?: number },
  ): Promise<{ token: Secret<Uint8Array>; facts: AccessToken }> {
    const user = await findUser(this.#store.db, name);
    const label = parseLabel('token', options.name);
    const scopes = ACCESS_SCOPES.filter((scope) => options.scopes.includes(scope));
    const now = this.#now();
    if (scopes.length === 0) throw new VpnError('ERR_BAD_REQUEST', 'a token without a scope opens nothing');
    if (options.expiresAt !== undefined && options.expiresAt <= now) {
      throw new VpnError('ERR_BAD_REQUEST', 'the token would have expired already');
    }
    const token = randomBytes(ID_BYTES + SECRET_BYTES);
    const id = token.toString('hex', 0, ID_BYTES);
    await this.#store.transaction(async (db) => {
      const present = await db
        .selectFrom('access_tokens')
        .select('id')
        .where('user_id', '=', user.id)
        .where('revoked_at', 'is', null)
        .execute();
      if (present.length >= MAX_TOKENS_PER_USER) {
        throw new VpnError('ERR_CONFLICT', `${user.name} has ${present.length} tokens; revoke one first`);
      }
      await db
        .insertInto('access_tokens')
        .values({
          id,
          hash: hashOf(token),
          user_id: user.id,
          name: label,
          scopes: scopes.join(' '),
          created_at: now,
          expires_at: options.expiresAt ?? null,
          last_used_at: null,
          revoked_at: null,
        })
        .execute();
      const detail = { token: id, name: label, scopes: scopes.join(' ') };
      await this.#audit.append({ event: AuditEvent.accessTokenIssued, user: user.name, detail }, db);
    });
    const facts = {
      id,
      user: user.name,
      name: label,
      scopes,
      createdAt: now,
      expiresAt: options.expiresAt,
      lastUsedAt: undefined,
      revokedAt: undefined,
    };
    return { token: new Secret<Uint8Array>(token), facts };
  }

  /** The tokens of a user, or all, the newest first; revoked ones too. */
  async list(user?: string): Promise<AccessToken[]> {
    let select = this.#store.db
      .selectFrom('access_tokens')
      .innerJoin('users', 'users.id', 'access_tokens.user_id')
      .selectAll('access_tokens')
      .select('users.name as user')
      .orderBy('access_tokens.created_at', 'desc')
      .orderBy('access_tokens.id');
    if (user !== undefined) select = select.where('users.name', '=', (await findUser(this.#store.db, user)).name);
    const rows = await select.execute();
    return rows.map((row) => ({
      id: row.id,
      user: row.user,
      name: row.name,
      scopes: scopesOf(row.scopes),
      createdAt: Number(row.created_at),
      expiresAt: optional(row.expires_at),
      lastUsedAt: optional(row.last_used_at),
      revokedAt: optional(row.revoked_at),
    }));
  }

  /** Refuses a token from now on; again is no error. @returns whose it is. @throws {VpnError} ERR_NOT_FOUND */
  async revoke(id: string): Promise<AccessToken> {
    const token = (await this.list()).find((candidate) => candidate.id === id.toLowerCase());
    if (token === undefined)
      throw new VpnError('ERR_NOT_FOUND', `there is no token ${JSON.stringify(id.slice(0, 40))}`);
    await this.#store.transaction(async (db) => {
      const { numUpdatedRows } = await db
        .updateTable('access_tokens')
        .set({ revoked_at: this.#now() })
        .where('id', '=', token.id)
        .where('revoked_at', 'is', null)
        .executeTakeFirst();
      if (numUpdatedRows === 0n) return;
      const detail = { token: token.id, name: token.name };
      await this.#audit.append({ event: AuditEvent.accessTokenRevoked, user: token.user, detail }, db);
    });
    this.#store.sync();
    return token;
  }

  /** The id that a token of this form has, whether or not there is one. */
  static idOf(token: Uint8Array): string | undefined {
    return token.length === ID_BYTES + SECRET_BYTES ? token.toHex().slice(0, 2 * ID_BYTES) : undefined;
  }

  /** Judges a token that was presented. Does the same work for one that does not exist. */
  async check(token: Uint8Array, scope: AccessScope, now: number): Promise<TokenVerdict> {
    const id = AccessTokens.idOf(token) ?? '';
    const { rows } = await findToken(this.#store.db, { id });
    const [row] = rows;
    const isRight = timingSafeEqual(hashOf(token), row?.hash ?? NO_HASH);
    if (!isRight || row === undefined)
      return { right: false, user: undefined, reason: 'the token is unknown or wrong' };
    const user = { id: row.user_id, name: row.user };
    if (row.revoked_at !== null) return { right: false, user, reason: 'the token is revoked' };
    if (row.expires_at !== null && Number(row.expires_at) <= now) {
      return { right: false, user, reason: 'the token has expired' };
    }
    if (!scopesOf(row.scopes).includes(scope)) return { right: false, user, reason: `the token is not for ${scope}` };
    return { right: true, id: row.id, user, endsAt: optional(row.expires_at) };
  }

  /** Notes the use of a token; part of the transaction `db`. @returns false when it was revoked meanwhile */
  async spend(db: Queries, id: string): Promise<boolean> {
    const { numAffectedRows } = await noteUse(db, { id, now: this.#now() });
    return numAffectedRows === 1n;
  }

  #now(): number {
    return Math.trunc(this.#clock.wallNow());
  }
}

const NO_HASH = randomBytes(32);

function hashOf(token: Uint8Array): Uint8Array {
  return createHash('sha256').update(token).digest();
}

function scopesOf(text: string): AccessScope[] {
  const words = text.split(' ');
  return ACCESS_SCOPES.filter((scope) => words.includes(scope));
}

function optional(time: number | null): number | undefined {
  return time === null ? undefined : Number(time);
}
