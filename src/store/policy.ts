/**
 * Puts on record when the rules of a gateway have changed: by a reload, or between two runs.
 *
 * Hides the table that remembers what they were. It must not know what the rules mean.
 */

import { type Audit, AuditEvent } from './audit.ts';
import type { Store } from './store.ts';

/** Of one rule in the audit record. */
const MAX_TEXT = 2048;

/**
 * Compares rules with those of the last call, and records the keys that differ with what they are now.
 *
 * @param rules by key; what JSON can say
 * @returns the keys that differ, sorted
 * @throws {VpnError} ERR_STORE
 */
export async function recordPolicy(
  store: Store,
  audit: Audit,
  rules: Readonly<Record<string, unknown>>,
): Promise<string[]> {
  return await store.transaction(async (db) => {
    const known = new Map((await db.selectFrom('policy').selectAll().execute()).map(({ key, value }) => [key, value]));
    const changed = Object.entries(rules)
      .map(([key, rule]) => ({ key, value: JSON.stringify(rule) ?? 'null' }))
      .filter(({ key, value }) => known.get(key) !== value)
      .sort((a, b) => (a.key < b.key ? -1 : 1));
    if (changed.length === 0) return [];
    for (const { key, value } of changed) {
      await db
        .insertInto('policy')
        .values({ key, value })
        .onConflict((conflict) => conflict.column('key').doUpdateSet({ value }))
        .execute();
    }
    const detail = Object.fromEntries(changed.map(({ key, value }) => [key, value.slice(0, MAX_TEXT)]));
    await audit.append({ event: AuditEvent.policyChanged, detail }, db);
    return changed.map(({ key }) => key);
  });
}
