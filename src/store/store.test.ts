// The store: its file, its transactions, and what it says when the file is not what it should be.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, test } from 'node:test';
import { Kysely, sql } from 'kysely';
import { Migrator } from 'kysely/migration';
import { isVpnError } from '../base/errors.ts';
import type { Schema } from './schema.ts';
import { openSqlite } from './sqlite.ts';
import { openStore, type Store } from './store.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'store-'));
});
after(() => rm(folder, { recursive: true }));

const fresh = (() => {
  let count = 0;
  return () => join(folder, `state-${count++}`, 'store.db');
})();

function addUser(store: Store, name: string): Promise<unknown> {
  return store.db
    .insertInto('users')
    .values({ id: `id-${name}`, name, created_at: 1, disabled_at: null, expires_at: null })
    .execute();
}

const count = async (store: Store) => (await store.db.selectFrom('users').select('id').execute()).length;

test('makes the file with mode 0600 in a folder with mode 0700, its journal too', async () => {
  const path = fresh();
  await using store = await openStore(path);
  await addUser(store, 'a');
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  assert.equal((await stat(join(path, '..'))).mode & 0o777, 0o700);
  assert.equal((await stat(`${path}-wal`)).mode & 0o777, 0o600);
});

test('keeps what was written, also when nothing was closed', async () => {
  const path = fresh();
  const first = await openStore(path);
  await addUser(first, 'kept');
  first.sync();
  await using second = await openStore(path);
  assert.equal(await count(second), 1);
  await first.close();
});

test('a transaction that fails leaves nothing', async () => {
  await using store = await openStore(':memory:');
  await assert.rejects(
    store.transaction(async (db) => {
      await db
        .insertInto('users')
        .values({ id: '1', name: 'x', created_at: 1, disabled_at: null, expires_at: null })
        .execute();
      throw new Error('stop');
    }),
    /stop/,
  );
  assert.equal(await count(store), 0);
});

test('transactions of one process wait for each other', async () => {
  await using store = await openStore(':memory:');
  const order: string[] = [];
  const work = (name: string) =>
    store.transaction(async (db) => {
      order.push(`${name} begins`);
      await db.selectFrom('users').selectAll().execute();
      order.push(`${name} ends`);
    });
  await Promise.all([work('a'), work('b')]);
  assert.deepEqual(order, ['a begins', 'a ends', 'b begins', 'b ends']);
});

test('a taken name is a conflict that does not repeat the value', async () => {
  await using store = await openStore(':memory:');
  await addUser(store, 'taken-value');
  await assert.rejects(
    store.db
      .insertInto('users')
      .values({ id: '2', name: 'taken-value', created_at: 1, disabled_at: null, expires_at: null })
      .execute(),
    (error) => isVpnError(error, 'ERR_CONFLICT') && !JSON.stringify([error, error.message]).includes('taken-value'),
  );
});

test('what belongs to a user goes with the user', async () => {
  await using store = await openStore(':memory:');
  await addUser(store, 'u');
  await store.db.insertInto('user_groups').values({ user_id: 'id-u', name: 'staff' }).execute();
  await store.db.deleteFrom('users').execute();
  assert.deepEqual(await store.db.selectFrom('user_groups').selectAll().execute(), []);
});

test('a row of an unknown user is refused', async () => {
  await using store = await openStore(':memory:');
  await assert.rejects(store.db.insertInto('user_groups').values({ user_id: 'nobody', name: 'x' }).execute(), {
    code: 'ERR_STORE',
  });
});

test('a file that is no database is an error and stays as it was', async () => {
  const path = join(folder, 'text.db');
  const content = 'this is not a database, and it is longer than the header of one. '.repeat(20);
  await writeFile(path, content);
  await assert.rejects(openStore(path), { code: 'ERR_STORE' });
  assert.equal(await readFile(path, 'utf8'), content);
});

test('a damaged database is an error, never made anew', async () => {
  const path = fresh();
  const store = await openStore(path);
  for (let i = 0; i < 200; i++) await addUser(store, `user-${i}`);
  await store.close();
  const bytes = await readFile(path);
  bytes.fill(0x5a, 100, 4096);
  await writeFile(path, bytes);
  await assert.rejects(openStore(path), { code: 'ERR_STORE' });
  assert.deepEqual(await readFile(path), bytes);
});

test('damage behind the first page is an error where it is met, and nothing is written over it', async () => {
  const path = fresh();
  const store = await openStore(path);
  for (let i = 0; i < 200; i++) await addUser(store, `user-${i}`);
  await store.close();
  const bytes = await readFile(path);
  // Every page but the one that says what there is.
  bytes.fill(0x5a, 4096);
  await writeFile(path, bytes);
  const use = async () => {
    await using damaged = await openStore(path);
    await addUser(damaged, 'one more');
  };
  await assert.rejects(use(), { code: 'ERR_STORE' });
  assert.deepEqual(await readFile(path), bytes);
});

test('a store that has to be there and is gone or empty is an error, never made anew', async () => {
  const path = join(folder, 'gone.db');
  const gone = { code: 'ERR_STORE', message: /is gone: no account is known; .*customvpn server restore/ };
  await assert.rejects(openStore(path, { mustExist: true }), gone);
  await assert.rejects(stat(path), { code: 'ENOENT' });
  await writeFile(path, '');
  await assert.rejects(openStore(path, { mustExist: true }), { code: 'ERR_STORE', message: /is empty/ });
  assert.equal((await stat(path)).size, 0);
  await rm(path);
  await (await openStore(path)).close();
  await (await openStore(path, { mustExist: true })).close();
});

test('a database of another program is left alone', async () => {
  const path = join(folder, 'foreign.db');
  const foreign = new DatabaseSync(path);
  foreign.exec('create table theirs (x)');
  foreign.close();
  const before = await readFile(path);
  await assert.rejects(openStore(path), { code: 'ERR_STORE' });
  assert.deepEqual(await readFile(path), before);
});

test('a store of a newer version is refused', async () => {
  const path = fresh();
  await (await openStore(path)).close();
  const raw = new DatabaseSync(path);
  raw.exec("insert into kysely_migration (name, timestamp) values ('9999_later', '2030')");
  raw.close();
  await assert.rejects(
    openStore(path),
    (error) => isVpnError(error, 'ERR_STORE') && /newer version/.test(error.message),
  );
});

test('a store that another process holds for writing is an error, not a hang', async () => {
  const path = fresh();
  await using store = await openStore(path, { busyTimeoutMs: 50 });
  const other = new DatabaseSync(path);
  other.exec('begin immediate');
  try {
    await assert.rejects(addUser(store, 'waits'), { code: 'ERR_STORE' });
  } finally {
    other.exec('rollback');
    other.close();
  }
  await addUser(store, 'goes on');
  assert.equal(await count(store), 1);
});

test('a statement and a transaction wait for the write of another process, and others run meanwhile', async () => {
  const path = fresh();
  await using store = await openStore(path, { busyTimeoutMs: 20_000 });
  const other = new DatabaseSync(path);
  other.exec('begin immediate');
  const start = performance.now();
  const waiting = [addUser(store, 'waits'), store.transaction((db) => db.selectFrom('users').selectAll().execute())];
  setImmediate(() => {
    other.exec('commit');
    other.close();
  });
  await Promise.all(waiting);
  assert.ok(performance.now() - start < 10_000, 'the event loop stood still while they waited');
  assert.equal(await count(store), 1);
});

test('transactions of two processes that read before they write do not fail each other', async () => {
  const path = fresh();
  const stores = await Promise.all([openStore(path), openStore(path)]);
  const work = (store: Store, name: string) =>
    store.transaction(async (db) => {
      const known = await db.selectFrom('users').selectAll().execute();
      await db
        .insertInto('users')
        .values({ id: name, name: `${name}-${known.length}`, created_at: 1, disabled_at: null, expires_at: null })
        .execute();
    });
  await Promise.all(stores.map((store, i) => work(store, `user${i}`)));
  const rows = await stores[0].db.selectFrom('users').select('name').execute();
  assert.deepEqual(rows.map(({ name }) => name.split('-')[1]).sort(), ['0', '1']);
  for (const store of stores) await store.close();
});

test('a migration that fails half way leaves nothing', async () => {
  const { dialect } = await openSqlite(':memory:');
  const db = new Kysely<unknown>({ dialect });
  const migrations = {
    '1': {
      up: async (inner: Kysely<unknown>) => {
        await inner.schema.createTable('half').addColumn('x', 'text').execute();
        throw new Error('stop');
      },
    },
  };
  const { error } = await new Migrator({ db, provider: { getMigrations: async () => migrations } }).migrateToLatest();
  assert.ok(error instanceof Error);
  assert.deepEqual(
    (await db.introspection.getTables()).map(({ name }) => name),
    [],
  );
  await db.destroy();
});

test('two stores opened at once on a new file agree on its schema', async () => {
  const path = fresh();
  const [a, b] = await Promise.all([openStore(path), openStore(path)]);
  await addUser(a, 'from a');
  await addUser(b, 'from b');
  assert.equal(await count(a), 2);
  await a.close();
  await b.close();
});

test('a full disk is an error that undoes the whole transaction; with room again the store goes on', async () => {
  const path = fresh();
  await (await openStore(path)).close();
  const { dialect } = await openSqlite(path);
  await using db = new Kysely<Schema>({ dialect });
  const setLimit = (pages: number) => sql.raw(`pragma max_page_count = ${pages}`).execute(db);
  await setLimit(1);
  const big = (id: string) =>
    db.transaction().execute(async (inner) => {
      await inner
        .insertInto('users')
        .values({ id, name: id, created_at: 1, disabled_at: null, expires_at: null })
        .execute();
      await inner
        .insertInto('user_groups')
        .values({ user_id: id, name: 'x'.repeat(1 << 20) })
        .execute();
    });
  await assert.rejects(big('refused'), { code: 'ERR_STORE', message: /the disk is full/ });
  assert.deepEqual(await db.selectFrom('users').select('id').execute(), []);
  await setLimit(100_000);
  await big('taken');
  assert.deepEqual(
    (await db.selectFrom('users').select('id').execute()).map(({ id }) => id),
    ['taken'],
  );
});

test('killed in the middle of its writes, a store is whole and has all that was committed', {
  timeout: 60_000,
}, async () => {
  const path = fresh();
  const child = join(import.meta.dirname, '..', '..', 'test', 'support', 'store-writer.ts');
  for (let round = 1; round <= 4; round++) {
    const writer = spawn(process.execPath, ['--conditions=customvpn-source', child, path]);
    let said = '';
    writer.stdout.setEncoding('utf8').on('data', (text: string) => {
      said += text;
      if (said.split('\n').length > 5 * round) writer.kill('SIGKILL');
    });
    await once(writer, 'close');
    const committed = said.split('\n').slice(0, -1);
    assert.ok(committed.length >= 5 * round);
    await using store = await openStore(path);
    const users = (await store.db.selectFrom('users').select('id').execute()).map(({ id }) => id);
    const grouped = (await store.db.selectFrom('user_groups').select('user_id').execute()).map((row) => row.user_id);
    assert.deepEqual(users.sort(), grouped.sort(), 'no transaction is there in part');
    assert.deepEqual(
      committed.filter((id) => !users.includes(id)),
      [],
    );
    const { rows } = await sql.raw('pragma integrity_check').execute(store.db);
    assert.deepEqual({ ...Object(rows[0]) }, { integrity_check: 'ok' });
  }
});
