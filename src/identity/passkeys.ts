/**
 * The passkeys of people who work with the admin page.
 *
 * Hides the table. A passkey is for the host of the page at which it was made. It must not know how one is proven.
 */

import { createHash } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Store } from '../store/store.ts';
import { findUser } from './accounts.ts';
import { parseLabel } from './names.ts';

const MAX_PER_USER = 20;

/** A passkey, as people see it. */
export interface Passkey {
  /** The beginning of a hash of the authenticator’s id, 32 hexadecimal digits. */
  readonly id: string;
  readonly user: string;
  readonly name: string;
  /** Of the page. */
  readonly host: string;
  /** Milliseconds since the Unix epoch. */
  readonly createdAt: number;
  readonly lastUsedAt: number | undefined;
}

/** One that somebody shows. */
export interface KnownPasskey extends Passkey {
  /** SubjectPublicKeyInfo, DER. */
  readonly publicKey: Uint8Array;
  /** The authenticator's count at the last use; 0: it keeps none. */
  readonly count: number;
}

export class Passkeys {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;

  constructor(parts: { store: Store; audit: Audit; clock: Clock }) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
  }

  /** @throws {VpnError} ERR_NOT_FOUND, ERR_BAD_REQUEST, ERR_CONFLICT, ERR_STORE */
  async add(
    name: string,
    made: { id: Uint8Array; publicKey: Uint8Array; count: number; host: string; label: string },
  ): Promise<Passkey> {
    const user = await findUser(this.#store.db, name);
    const label = parseLabel('passkey', made.label);
    const id = idOf(made.id);
    const now = Math.trunc(this.#clock.wallNow());
    await this.#store.transaction(async (db) => {
      const present = await db.selectFrom('passkeys').select('id').where('user_id', '=', user.id).execute();
      if (present.length >= MAX_PER_USER) {
        throw new VpnError('ERR_CONFLICT', `${user.name} has ${present.length} passkeys; remove one first`);
      }
      await db
        .insertInto('passkeys')
        .values({
          id,
          user_id: user.id,
          name: label,
          host: made.host,
          public_key: made.publicKey,
          use_count: made.count,
          created_at: now,
          last_used_at: null,
        })
        .execute();
      const detail = { passkey: id, name: label, host: made.host };
      await this.#audit.append({ event: AuditEvent.passkeyAdded, user: user.name, detail }, db);
    });
    return { id, user: user.name, name: label, host: made.host, createdAt: now, lastUsedAt: undefined };
  }

  /** Those of a user, or all, the newest first. @throws {VpnError} ERR_NOT_FOUND, ERR_STORE */
  async list(user?: string): Promise<Passkey[]> {
    let select = this.#select().orderBy('passkeys.created_at', 'desc').orderBy('passkeys.id');
    if (user !== undefined) select = select.where('users.name', '=', (await findUser(this.#store.db, user)).name);
    return (await select.execute()).map((row) => passkeyOf(row));
  }

  /** The one that an authenticator names; undefined: nobody's. @throws {VpnError} ERR_STORE */
  async find(id: Uint8Array): Promise<KnownPasskey | undefined> {
    const row = await this.#select().where('passkeys.id', '=', idOf(id)).executeTakeFirst();
    return row === undefined
      ? undefined
      : { ...passkeyOf(row), publicKey: row.public_key, count: Number(row.use_count) };
  }

  /**
   * Notes a use, in which the authenticator counted so far.
   *
   * @returns false when it is gone, or the count has not risen: then there is a copy of the passkey
   * @throws {VpnError} ERR_STORE
   */
  async spend({ id }: Passkey, count: number): Promise<boolean> {
    const { numUpdatedRows } = await this.#store.db
      .updateTable('passkeys')
      .set({ use_count: count, last_used_at: Math.trunc(this.#clock.wallNow()) })
      .where('id', '=', id)
      .where('use_count', count === 0 ? '=' : '<', count)
      .executeTakeFirst();
    return numUpdatedRows === 1n;
  }

  /**
   * Takes a passkey away.
   *
   * @param owner only if it is this user's
   * @returns whose it was
   * @throws {VpnError} ERR_NOT_FOUND, ERR_STORE
   */
  async remove(id: string, owner?: string): Promise<string> {
    const found = (await this.list(owner)).find((passkey) => passkey.id === id.toLowerCase());
    if (found === undefined) {
      throw new VpnError('ERR_NOT_FOUND', `there is no passkey ${JSON.stringify(id.slice(0, 40))}`);
    }
    const { user, name } = found;
    await this.#store.transaction(async (db) => {
      await db.deleteFrom('passkeys').where('id', '=', found.id).execute();
      const detail = { passkey: found.id, name };
      await this.#audit.append({ event: AuditEvent.passkeyRemoved, user, detail }, db);
    });
    this.#store.sync();
    return user;
  }

  #select() {
    return this.#store.db
      .selectFrom('passkeys')
      .innerJoin('users', 'users.id', 'passkeys.user_id')
      .selectAll('passkeys')
      .select('users.name as user');
  }
}

function passkeyOf(row: {
  id: string;
  user: string;
  name: string;
  host: string;
  created_at: number;
  last_used_at: number | null;
}): Passkey {
  const { id, user, name, host } = row;
  const lastUsedAt = row.last_used_at === null ? undefined : Number(row.last_used_at);
  return { id, user, name, host, createdAt: Number(row.created_at), lastUsedAt };
}

/** Authenticators choose ids of up to a kilobyte. */
function idOf(id: Uint8Array): string {
  return createHash('sha256').update(id).digest('hex').slice(0, 32);
}
