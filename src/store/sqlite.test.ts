/** What the store in a file asks of the machine. */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { sql } from 'kysely';
import { prepare } from './prepared.ts';
import { openStore } from './store.ts';

const addUser = prepare((db, { id }: { id: string }) =>
  db.insertInto('users').values({ id, name: id, created_at: 1, disabled_at: null, expires_at: null }),
);

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

test('a prepared query waits while another process writes, and the process goes on', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-sqlite-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'store.db');
  await using store = await openStore(path);
  const other = new DatabaseSync(path);
  other.exec('begin immediate');
  let isAdded = false;
  const adding = addUser(store.db, { id: 'a' }).then(() => {
    isAdded = true;
  });
  await new Promise(setImmediate);
  assert.equal(isAdded, false);
  other.exec('commit');
  other.close();
  await adding;
  const rows = await store.db.selectFrom('users').select('id').execute();
  assert.deepEqual(
    rows.map(({ id }) => id),
    ['a'],
  );
});
