/**
 * Users: who may have devices and sessions.
 *
 * Hides the tables. What changes an account is recorded, and is on disk before the call returns when it takes something
 * away. It must not know how a user proves anything, nor end sessions: the caller does, when an account is taken away.
 */

import { randomBytes } from 'node:crypto';
import type { Selectable } from 'kysely';
import type { Clock } from '../base/clock.ts';
import { isVpnError, VpnError } from '../base/errors.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Schema } from '../store/schema.ts';
import type { Queries, Store } from '../store/store.ts';
import { normaliseName, parseName } from './names.ts';

const MAX_GROUPS = 64;

/** Times are milliseconds since the Unix epoch. */
export interface Account {
  readonly id: string;
  readonly name: string;
  /** Sorted. */
  readonly groups: readonly string[];
  readonly createdAt: number;
  readonly disabledAt: number | undefined;
  /** From this moment on no login is accepted. */
  readonly expiresAt: number | undefined;
  /** Devices that are not revoked. */
  readonly devices: number;
  /** The outside source that the account comes from, as the configuration names it; undefined for one of ours. */
  readonly source: string | undefined;
}

/** Which users are wanted. */
export interface AccountPage {
  /** The last of the page before. */
  readonly after?: string | undefined;
  readonly limit: number;
  readonly group?: string | undefined;
  readonly state?: 'enabled' | 'disabled' | undefined;
}

type UserRow = Selectable<Schema['users']>;

export class Accounts {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;

  constructor(parts: { store: Store; audit: Audit; clock: Clock }) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
  }

  /**
   * Adds a user.
   *
   * @throws {VpnError} ERR_BAD_REQUEST for a name that is none; ERR_CONFLICT when it is taken
   */
  async add(
    name: string,
    options: { groups?: readonly string[]; expiresAt?: number; source?: string } = {},
  ): Promise<Account> {
    const user = parseName('user', name);
    const groups = [...new Set((options.groups ?? []).map((group) => parseName('group', group)))].sort();
    if (groups.length > MAX_GROUPS) throw tooManyGroups(groups.length);
    const account = {
      id: randomBytes(16).toString('hex'),
      name: user,
      groups,
      createdAt: this.#now(),
      disabledAt: undefined,
      expiresAt: options.expiresAt,
      devices: 0,
      source: options.source,
    };
    try {
      await this.#store.transaction(async (db) => {
        await db
          .insertInto('users')
          .values({
            id: account.id,
            name: user,
            created_at: account.createdAt,
            disabled_at: null,
            expires_at: account.expiresAt ?? null,
            source: account.source ?? null,
          })
          .execute();
        if (groups.length > 0) {
          await db
            .insertInto('user_groups')
            .values(groups.map((group) => ({ user_id: account.id, name: group })))
            .execute();
        }
        await this.#audit.append({ event: AuditEvent.userAdded, user, detail: { groups: groups.join(',') } }, db);
      });
    } catch (error) {
      if (!isVpnError(error, 'ERR_CONFLICT')) throw error;
      throw new VpnError('ERR_CONFLICT', `there is a user ${user} already`, { cause: error, details: { user } });
    }
    return account;
  }

  /**
   * Makes the account of somebody whom an outside source has accepted, or brings its groups up to date.
   *
   * @param groups undefined: the source has no say in them
   * @returns undefined when the name is an account of ours or of another source
   */
  async provision(name: string, source: string, groups: readonly string[] | undefined): Promise<UserKey | undefined> {
    const user = parseName('user', name);
    return await this.#store.transaction(async (db) => {
      const row = await db.selectFrom('users').select(['id', 'source']).where('name', '=', user).executeTakeFirst();
      if (row !== undefined && row.source !== source) return undefined;
      const id = row?.id ?? randomBytes(16).toString('hex');
      if (row === undefined) {
        const values = { id, name: user, created_at: this.#now(), disabled_at: null, expires_at: null, source };
        await db.insertInto('users').values(values).execute();
        await this.#audit.append({ event: AuditEvent.userAdded, user, detail: { from: source } }, db);
      }
      if (groups !== undefined && (await this.#replaceGroups(db, id, groups))) {
        const detail = { groups: groups.join(','), from: source };
        await this.#audit.append({ event: AuditEvent.userChanged, user, detail }, db);
      }
      return { id, name: user };
    });
  }

  /**
   * Puts an account of an outside source into the groups that the source says, and into no others.
   *
   * @returns whether that is news; false for an account that is gone, or not of that source
   */
  async follow(user: string, source: string, groups: readonly string[]): Promise<boolean> {
    const findOwn = (db: Queries) =>
      db.selectFrom('users').select('id').where('name', '=', user).where('source', '=', source).executeTakeFirst();
    const known = await findOwn(this.#store.db);
    if (known === undefined || isSame(await groupsOf(this.#store.db, known.id), groups)) return false;
    return await this.#store.transaction(async (db) => {
      const own = await findOwn(db);
      if (own === undefined || !(await this.#replaceGroups(db, own.id, groups))) return false;
      const detail = { groups: groups.join(','), from: source };
      await this.#audit.append({ event: AuditEvent.userChanged, user, detail }, db);
      return true;
    });
  }

  /** Returns whether anything changed. */
  async #replaceGroups(db: Queries, id: string, groups: readonly string[]): Promise<boolean> {
    if (isSame(await groupsOf(db, id), groups)) return false;
    await db.deleteFrom('user_groups').where('user_id', '=', id).execute();
    if (groups.length > 0) {
      await db
        .insertInto('user_groups')
        .values(groups.map((group) => ({ user_id: id, name: group })))
        .execute();
    }
    return true;
  }

  /** Every user, by name. */
  async list(): Promise<Account[]> {
    const users = await this.#store.db.selectFrom('users').selectAll().orderBy('name').execute();
    const groups = await this.#store.db.selectFrom('user_groups').selectAll().orderBy('name').execute();
    const counts = await this.#store.db
      .selectFrom('devices')
      .select(['user_id', (build) => build.fn.countAll<number | string>().as('count')])
      .where('revoked_at', 'is', null)
      .groupBy('user_id')
      .execute();
    return accountsOf(users, groups, counts);
  }

  /** So many users by name, of those after a name that somebody has; it costs what they cost, however many there are. */
  async page({ after, limit, group, state }: AccountPage): Promise<Account[]> {
    const { db } = this.#store;
    let select = db.selectFrom('users').selectAll().orderBy('name').limit(limit);
    if (after !== undefined) {
      const known = await db.selectFrom('users').select('id').where('name', '=', after).executeTakeFirst();
      if (known === undefined) return [];
      select = select.where('name', '>', after);
    }
    if (state !== undefined) select = select.where('disabled_at', state === 'disabled' ? 'is not' : 'is', null);
    if (group !== undefined) {
      const members = db.selectFrom('user_groups').select('user_id').where('name', '=', group);
      select = select.where('id', 'in', members);
    }
    return await this.#withDetails(await select.execute());
  }

  /** @throws {VpnError} ERR_NOT_FOUND */
  async show(name: string): Promise<Account> {
    const found = this.#store.db.selectFrom('users').selectAll();
    const rows = await found.where('name', '=', normaliseName(name) ?? '').execute();
    const [account] = await this.#withDetails(rows);
    if (account === undefined) throw noUser(name);
    return account;
  }

  /** A few users with their groups and devices. */
  async #withDetails(users: readonly UserRow[]): Promise<Account[]> {
    if (users.length === 0) return [];
    const { db } = this.#store;
    const ids = users.map(({ id }) => id);
    const groups = await db.selectFrom('user_groups').selectAll().where('user_id', 'in', ids).orderBy('name').execute();
    const counts = await db
      .selectFrom('devices')
      .select(['user_id', (build) => build.fn.countAll<number | string>().as('count')])
      .where('revoked_at', 'is', null)
      .where('user_id', 'in', ids)
      .groupBy('user_id')
      .execute();
    return accountsOf(users, groups, counts);
  }

  /** No login is accepted from now on; again is no error. @throws {VpnError} ERR_NOT_FOUND */
  async disable(name: string): Promise<void> {
    await this.#change(name, AuditEvent.userDisabled, async (db, id) => {
      await db
        .updateTable('users')
        .set({ disabled_at: this.#now() })
        .where('id', '=', id)
        .where('disabled_at', 'is', null)
        .execute();
    });
  }

  /** Takes `disable` back. @throws {VpnError} ERR_NOT_FOUND */
  async enable(name: string): Promise<void> {
    await this.#change(name, AuditEvent.userEnabled, async (db, id) => {
      await db.updateTable('users').set({ disabled_at: null }).where('id', '=', id).execute();
    });
  }

  /** Removes a user with all devices, tokens and session records. @throws {VpnError} ERR_NOT_FOUND */
  async delete(name: string): Promise<void> {
    await this.#change(name, AuditEvent.userDeleted, async (db, id) => {
      const named = db.selectFrom('users').select('name').where('id', '=', id);
      await db.deleteFrom('source_grants').where('account', 'in', named).execute();
      await db.deleteFrom('users').where('id', '=', id).execute();
    });
  }

  /**
   * Puts a user into groups and takes them out of others. What is so already is no error.
   *
   * @returns the groups after it
   * @throws {VpnError} ERR_NOT_FOUND, ERR_BAD_REQUEST
   */
  async regroup(name: string, change: { add: readonly string[]; remove: readonly string[] }): Promise<string[]> {
    const added = change.add.map((group) => parseName('group', group));
    const removed = new Set(change.remove.map((group) => parseName('group', group)));
    let groups: string[] = [];
    await this.#change(name, AuditEvent.userChanged, async (db, id) => {
      const rows = await db.selectFrom('user_groups').select('name').where('user_id', '=', id).execute();
      groups = [...new Set([...rows.map((row) => row.name), ...added])].filter((group) => !removed.has(group)).sort();
      if (groups.length > MAX_GROUPS) throw tooManyGroups(groups.length);
      await this.#replaceGroups(db, id, groups);
      return { groups: groups.join(',') };
    });
    return groups;
  }

  /** Sets when no login is accepted any more; undefined for never. @throws {VpnError} ERR_NOT_FOUND */
  async setExpiry(name: string, expiresAt: number | undefined): Promise<void> {
    await this.#change(name, AuditEvent.userChanged, async (db, id) => {
      await db
        .updateTable('users')
        .set({ expires_at: expiresAt ?? null })
        .where('id', '=', id)
        .execute();
      return { expires: expiresAt === undefined ? 'never' : new Date(expiresAt).toISOString() };
    });
  }

  async #change(
    name: string,
    event: AuditEvent,
    work: (db: Queries, id: string) => Promise<Record<string, string> | undefined>,
  ): Promise<void> {
    await this.#store.transaction(async (db) => {
      const user = await findUser(db, name);
      const detail = await work(db, user.id);
      await this.#audit.append({ event, user: user.name, detail: detail ?? {} }, db);
    });
    this.#store.sync();
  }

  #now(): number {
    return Math.trunc(this.#clock.wallNow());
  }
}

function optional(time: number | null): number | undefined {
  return time === null ? undefined : Number(time);
}

function tooManyGroups(count: number): VpnError {
  return new VpnError('ERR_BAD_REQUEST', `${count} groups for one user, expected at most ${MAX_GROUPS}`);
}

/** What names a user in other tables, and to people. */
export interface UserKey {
  readonly id: string;
  readonly name: string;
}

function accountsOf(
  users: readonly UserRow[],
  groups: readonly { user_id: string; name: string }[],
  counts: readonly { user_id: string; count: number | string }[],
): Account[] {
  const groupsOf = Map.groupBy(groups, (row) => row.user_id);
  const countOf = new Map(counts.map((row) => [row.user_id, Number(row.count)]));
  return users.map((row) => ({
    id: row.id,
    name: row.name,
    groups: (groupsOf.get(row.id) ?? []).map((group) => group.name),
    createdAt: Number(row.created_at),
    disabledAt: optional(row.disabled_at),
    expiresAt: optional(row.expires_at),
    devices: countOf.get(row.id) ?? 0,
    source: row.source ?? undefined,
  }));
}

/** @throws {VpnError} ERR_NOT_FOUND */
export async function findUser(db: Queries, name: string): Promise<UserKey> {
  const row = await db
    .selectFrom('users')
    .select(['id', 'name'])
    .where('name', '=', normaliseName(name) ?? '')
    .executeTakeFirst();
  if (row === undefined) throw noUser(name);
  return row;
}

function noUser(name: string): VpnError {
  return new VpnError('ERR_NOT_FOUND', `there is no user ${JSON.stringify(name.slice(0, 80))}`);
}

async function groupsOf(db: Queries, id: string): Promise<string[]> {
  const rows = await db.selectFrom('user_groups').select('name').where('user_id', '=', id).execute();
  return rows.map(({ name }) => name);
}

function isSame(some: readonly string[], others: readonly string[]): boolean {
  return [...some].sort().join() === [...others].sort().join();
}
