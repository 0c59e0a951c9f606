// Prepared queries: the same rows as the query itself, whatever the values, on every database.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { prepare } from './prepared.ts';

const addUser = prepare((db, { id, name, expires }: { id: string; name: string; expires: number | null }) =>
  db.insertInto('users').values({ id, name, created_at: 1, disabled_at: null, expires_at: expires }),
);
const findUser = prepare((db, { name }: { name: string }) =>
  db.selectFrom('users').select(['id', 'expires_at']).where('name', '=', name),
);
const expire = prepare((db, { name, at }: { name: string; at: number }) =>
  db.updateTable('users').set({ expires_at: at }).where('name', '=', name).where('expires_at', 'is', null),
);

test('a prepared query takes other values every time, on the store and in a transaction', async () => {
  await using store = await openTestStore();
  await addUser(store.db, { id: '1', name: 'a', expires: null });
  await store.transaction(async (db) => {
    await addUser(db, { id: '2', name: "b'; drop table users; --", expires: 7 });
  });
  assert.equal((await expire(store.db, { name: 'a', at: 5 })).numAffectedRows, 1n);
  assert.equal((await expire(store.db, { name: 'a', at: 6 })).numAffectedRows, 0n);
  const rows = await Promise.all(
    ['a', "b'; drop table users; --", 'c'].map(async (name) => (await findUser(store.db, { name })).rows),
  );
  assert.deepEqual(
    rows.map(([row]) => row && [row.id, Number(row.expires_at)]),
    [['1', 5], ['2', 7], undefined],
  );
});

test('a prepared query is undone with its transaction, and fails like any other', async () => {
  await using store = await openTestStore();
  await assert.rejects(
    store.transaction(async (db) => {
      await addUser(db, { id: '1', name: 'a', expires: null });
      throw new Error('stop');
    }),
    /stop/,
  );
  assert.deepEqual((await findUser(store.db, { name: 'a' })).rows, []);
  await addUser(store.db, { id: '1', name: 'a', expires: null });
  await assert.rejects(addUser(store.db, { id: '1', name: 'b', expires: null }), { code: 'ERR_CONFLICT' });
});

test('what belongs to no transaction sees nothing of one that is under way', async () => {
  await using store = await openTestStore();
  let outside: ReturnType<typeof findUser> | undefined;
  const undone = store.transaction(async (db) => {
    await addUser(db, { id: '1', name: 'a', expires: null });
    outside = findUser(store.db, { name: 'a' });
    assert.equal((await findUser(db, { name: 'a' })).rows.length, 1);
    throw new Error('undo');
  });
  await assert.rejects(undone, /undo/);
  assert.deepEqual((await outside)?.rows, []);
});

test('two stores of one process do not share what was prepared', async () => {
  await using one = await openTestStore();
  await using other = await openTestStore();
  await addUser(one.db, { id: '1', name: 'a', expires: null });
  assert.deepEqual((await findUser(other.db, { name: 'a' })).rows, []);
});
