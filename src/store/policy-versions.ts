/**
 * The policies that a gateway has had: text, when, by whom, and why.
 *
 * Hides the table and that only the newest are kept. It must not know what a policy means.
 */

import { sql } from 'kysely';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import type { Store } from './store.ts';

const MAX_KEPT = 200;
/** Characters of a text that is kept; a longer one is known by its digest only. */
export const MAX_KEPT_POLICY = 1_000_000;

/** One policy that was in force. */
export interface PolicyVersion {
  /** Rises by one with each. */
  readonly version: number;
  /** Milliseconds since the Unix epoch. */
  readonly at: number;
  /** Who put it in force; undefined: it was read from the file. */
  readonly by: string | undefined;
  /** SHA-256 of its text, hexadecimal. */
  readonly digest: string;
  readonly note: string;
}

export class PolicyVersions {
  readonly #store: Store;
  readonly #clock: Clock;

  constructor(store: Store, clock: Clock) {
    this.#store = store;
    this.#clock = clock;
  }

  /**
   * Keeps what is in force from now on, unless the newest version is just that.
   *
   * @returns its version
   * @throws {VpnError} ERR_STORE
   */
  async keep(
    { digest, text }: { digest: string; text: string },
    { by, note = '' }: { by: string | undefined; note?: string | undefined },
  ): Promise<number> {
    return await this.#store.transaction(async (db) => {
      const newest = await db
        .selectFrom('policy_versions')
        .select(['version', 'digest'])
        .orderBy('version', 'desc')
        .limit(1)
        .executeTakeFirst();
      if (newest?.digest === digest) return Number(newest.version);
      const version = Number(newest?.version ?? 0) + 1;
      await db
        .insertInto('policy_versions')
        .values({
          version,
          at: Math.trunc(this.#clock.wallNow()),
          by: by ?? null,
          digest,
          note,
          // PostgreSQL stores no NUL, which no policy that can be read has.
          text: text.length > MAX_KEPT_POLICY ? null : text,
        })
        .execute();
      await db
        .deleteFrom('policy_versions')
        .where('version', '<=', version - MAX_KEPT)
        .execute();
      return version;
    });
  }

  /** The newest so many, the newest first; `hasText`: it can be put in force again. @throws {VpnError} ERR_STORE */
  async list(limit: number): Promise<(PolicyVersion & { readonly hasText: boolean })[]> {
    const rows = await this.#store.db
      .selectFrom('policy_versions')
      .select(['version', 'at', 'by', 'digest', 'note'])
      .select(sql<number>`case when text is null then 0 else 1 end`.as('has_text'))
      .orderBy('version', 'desc')
      .limit(limit)
      .execute();
    return rows.map(({ has_text, ...row }) => ({ ...versionOf(row), hasText: Number(has_text) === 1 }));
  }

  /** @throws {VpnError} ERR_NOT_FOUND, ERR_STORE */
  async show(version: number): Promise<PolicyVersion & { readonly text: string }> {
    const row = await this.#store.db
      .selectFrom('policy_versions')
      .selectAll()
      .where('version', '=', version)
      .executeTakeFirst();
    if (row === undefined || row.text === null) {
      const why = row === undefined ? 'is not kept' : 'was too long to be kept';
      throw new VpnError('ERR_NOT_FOUND', `version ${version} of the policy ${why}; see: customvpn policy history`);
    }
    return { ...versionOf(row), text: row.text };
  }
}

function versionOf(row: { version: number; at: number; by: string | null; digest: string; note: string }) {
  const { version, at, by, digest, note } = row;
  return { version: Number(version), at: Number(at), by: by ?? undefined, digest, note };
}
