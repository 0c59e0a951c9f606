/** What the store in a file asks of the machine. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sql } from 'kysely';
import { openStore } from './store.ts';

test('temporary files are kept in memory: who opens it may write nowhere else', async () => {
  const store = await openStore(':memory:');
  try {
    const { rows } = await sql<{ temp_store: number }>`pragma temp_store`.execute(store.db);
    // 2: memory.
    assert.deepEqual(
      rows.map(({ temp_store }) => temp_store),
      [2],
    );
  } finally {
    await store.close();
  }
});
