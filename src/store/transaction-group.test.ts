// Transactions that share a commit: each all or nothing by itself, and answered only when it is committed.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { sql, type Transaction } from 'kysely';
import type { Schema } from './schema.ts';
import { openSqlite } from './sqlite.ts';
import { openStore, type Store } from './store.ts';
import { TransactionGroup } from './transaction-group.ts';

type Database = Transaction<Schema>;

const user = (id: string) => ({ id, name: id, created_at: 1, disabled_at: null, expires_at: null });
const add = (db: Database, id: string) => db.insertInto('users').values(user(id)).execute();
const users = async (store: Store): Promise<string[]> =>
  (await store.db.selectFrom('users').select('id').orderBy('id').execute()).map(({ id }) => id);

/** Counts the commits of a store in memory. */
async function counted(): Promise<{ store: Store; group: TransactionGroup; commits: () => number }> {
  const store = await openStore(':memory:');
  let commits = 0;
  const group = new TransactionGroup(async (work) => {
    await store.db.transaction().execute(work);
    commits += 1;
  });
  return { store, group, commits: () => commits };
}

test('transactions that come in one turn share a commit, and see each other in order', async () => {
  const { store, group, commits } = await counted();
  const seen = await Promise.all(
    ['a', 'b', 'c'].map((id) =>
      group.run(async (db) => {
        const before = await db.selectFrom('users').select('id').execute();
        await add(db, id);
        return before.length;
      }),
    ),
  );
  assert.deepEqual(seen, [0, 1, 2]);
  assert.equal(commits(), 1);
  await group.run((db) => add(db, 'd'));
  assert.equal(commits(), 2);
  assert.deepEqual(await users(store), ['a', 'b', 'c', 'd']);
});

test('where commits follow each other closely the next one waits for company, and no more when it finds none', async () => {
  const store = await openStore(':memory:');
  let commits = 0;
  let waits = 0;
  let time = 0;
  const others: Promise<unknown>[] = [];
  let hasCompany = true;
  const group = new TransactionGroup(
    async (work) => {
      await store.db.transaction().execute(work);
      commits += 1;
    },
    {
      now: () => time,
      wait: async () => {
        waits += 1;
        if (hasCompany) others.push(group.run((db) => add(db, `other${waits}`)));
      },
    },
  );
  const several = async (label: string, count: number): Promise<void> => {
    for (let index = 0; index < count; index += 1) await group.run((db) => add(db, `${label}${index}`));
  };
  await several('first', 6);
  assert.equal(waits, 0, 'what one login writes waits for nobody');
  time += 1000;
  await several('second', 6);
  assert.equal(waits, 0, 'nor does the next one a while later');
  await several('third', 20);
  await Promise.all(others);
  assert.equal(waits, 20);
  assert.equal(commits, 32, 'those that came meanwhile have shared');
  hasCompany = false;
  await several('fourth', 65);
  assert.equal(waits, 21);
  await several('fifth', 1);
  assert.equal(waits, 22, 'it is tried again after a while');
  assert.equal((await users(store)).length, 6 + 6 + 20 + 20 + 65 + 1);
});

test('a bounded number of transactions share a commit', async () => {
  const { store, group, commits } = await counted();
  const ids = Array.from({ length: 40 }, (_, index) => String(index).padStart(2, '0'));
  await Promise.all(ids.map((id) => group.run((db) => add(db, id))));
  assert.equal(commits(), 3);
  assert.deepEqual(await users(store), ids);
});

test('one that fails in the middle is undone, alone, and told its own error', async () => {
  const { store, group, commits } = await counted();
  const fails = group.run(async (db) => {
    await add(db, 'gone');
    throw new Error('stop');
  });
  const results = await Promise.allSettled([
    group.run((db) => add(db, 'a')),
    fails,
    group.run((db) => add(db, 'a')),
    group.run((db) => add(db, 'b')),
  ]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'rejected', 'rejected', 'fulfilled'],
  );
  assert.match(String((results[1] as PromiseRejectedResult).reason), /stop/);
  assert.equal(((results[2] as PromiseRejectedResult).reason as { code: string }).code, 'ERR_CONFLICT');
  assert.equal(commits(), 1);
  assert.deepEqual(await users(store), ['a', 'b']);
});

test('nobody is told of success before the commit, and all of its failure', async () => {
  const store = await openStore(':memory:');
  let answered = 0;
  const group = new TransactionGroup(async (work) => {
    await store.db.transaction().execute(async (db) => {
      await work(db);
      assert.equal(answered, 0);
      throw new Error('no commit');
    });
  });
  const own = new Error('own');
  const results = await Promise.allSettled([
    ...['a', 'b'].map((id) => group.run((db) => add(db, id)).finally(() => answered++)),
    group.run(() => Promise.reject(own)),
  ]);
  const reasons = results.map((result) => String((result as PromiseRejectedResult).reason));
  assert.deepEqual(reasons, ['Error: no commit', 'Error: no commit', 'Error: own']);
  assert.deepEqual(await users(store), []);
});

test('when the database undoes all of it in the middle, nobody is told of success', async () => {
  const store = await openStore(':memory:');
  const group = new TransactionGroup((work) => store.db.transaction().execute(work));
  const results = await Promise.allSettled([
    group.run((db) => add(db, 'a')),
    group.run(async (db) => {
      // As SQLite does when the disk is full.
      await sql`rollback`.execute(db);
      throw new Error('full');
    }),
    group.run((db) => add(db, 'b')),
  ]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['rejected', 'rejected', 'rejected'],
  );
  assert.deepEqual(await users(store), []);
  await group.run((db) => add(db, 'c'));
  assert.deepEqual(await users(store), ['c']);
});

test('a store closes after what waits', async () => {
  const store = await openStore(':memory:');
  const done = store.transaction((db) => add(db, 'a'));
  await Promise.all([store.close(), done]);
});

test('a file is a database with one connection', async () => {
  assert.equal((await openSqlite(':memory:')).hasOneConnection, true);
});
