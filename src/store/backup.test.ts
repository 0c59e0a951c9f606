// Copies of the store: consistent, checked, private, and never in the place of something that was not to go.

import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, test } from 'node:test';
import { ManualClock } from '../base/clock.ts';
import { Audit } from './audit.ts';
import { backUp, restore } from './backup.ts';
import { openStore, type Store } from './store.ts';

const root = await mkdtemp(join(tmpdir(), 'backup-'));
after(() => rm(root, { recursive: true }));
const clock = new ManualClock();

async function setUp() {
  const folder = await mkdtemp(join(root, 'x-'));
  return { folder, path: join(folder, 'state', 'store.sqlite'), copy: join(folder, 'copy.sqlite') };
}

async function add(store: Store, name: string): Promise<void> {
  await store.db
    .insertInto('users')
    .values({ id: `id-${name}`, name, created_at: 1, disabled_at: null, expires_at: null })
    .execute();
}

async function names(path: string): Promise<string[]> {
  await using store = await openStore(path);
  return (await store.db.selectFrom('users').select('name').orderBy('name').execute()).map(({ name }) => name);
}

test('a backup of a store in use has all that is committed and nothing of a transaction; a restore brings it back', async () => {
  const { path, copy } = await setUp();
  const store = await openStore(path);
  await add(store, 'before');
  const isWritten = Promise.withResolvers<void>();
  const isCopied = Promise.withResolvers<void>();
  const half = store.transaction(async (db) => {
    await db
      .insertInto('users')
      .values({ id: 'h', name: 'half', created_at: 1, disabled_at: null, expires_at: null })
      .execute();
    isWritten.resolve();
    await isCopied.promise;
  });
  await isWritten.promise;
  const made = await backUp(path, copy);
  isCopied.resolve();
  await half;
  assert.equal(made.users, 1);
  assert.equal((await stat(copy)).mode & 0o777, 0o600);
  await store.close();
  const { replaced = '' } = await restore(copy, path, { force: true, clock });
  assert.deepEqual(await names(path), ['before']);
  assert.deepEqual(await names(replaced), ['before', 'half']);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  await using restored = await openStore(path);
  assert.equal((await new Audit(restored, clock).list({ event: 'store.restored' })).length, 1);
  await assert.rejects(restored.db.deleteFrom('audit').execute(), { code: 'ERR_STORE', message: /append-only/ });
});

test('neither replaces what exists unless it is told to, and neither leaves anything else', async () => {
  const { folder, path, copy } = await setUp();
  await (await openStore(path)).close();
  await writeFile(copy, 'precious');
  await assert.rejects(backUp(path, copy), { code: 'ERR_CONFLICT' });
  assert.equal(await readFile(copy, 'utf8'), 'precious');
  await backUp(path, copy, { force: true });
  await assert.rejects(restore(copy, path, { clock }), { code: 'ERR_CONFLICT' });
  await assert.rejects(backUp(path, path, { force: true }), { code: 'ERR_CONFLICT' });
  await assert.rejects(restore(path, path, { force: true, clock }), { code: 'ERR_CONFLICT' });
  assert.deepEqual((await readdir(folder)).sort(), ['copy.sqlite', 'state']);
  assert.deepEqual(await readdir(join(folder, 'state')), ['store.sqlite']);
});

test('a backup that is damaged, foreign, newer or missing replaces nothing', async () => {
  const { folder, path, copy } = await setUp();
  const store = await openStore(path);
  for (let i = 0; i < 300; i++) await add(store, `user-${i}`);
  await store.close();
  await backUp(path, copy);
  const good = await readFile(copy);
  const before = await readFile(path);
  const damaged = Buffer.from(good).fill(0x5a, good.length - 8192, good.length - 4096);
  const cut = good.subarray(0, good.length - 4096);
  const foreign = join(folder, 'foreign.sqlite');
  using other = new DatabaseSync(foreign);
  other.exec('create table users (x)');
  const newer = join(folder, 'newer.sqlite');
  await writeFile(newer, good);
  using later = new DatabaseSync(newer);
  later.exec("insert into kysely_migration (name, timestamp) values ('9999_later', '2030')");
  const files = [foreign, newer, join(folder, 'missing.sqlite')];
  for (const [name, bytes] of Object.entries({ damaged, cut, text: Buffer.from('no database'.repeat(500)) })) {
    files.push(join(folder, name));
    await writeFile(join(folder, name), bytes);
  }
  for (const file of files) {
    await assert.rejects(restore(file, path, { force: true, clock }), { code: 'ERR_STORE' }, file);
    assert.deepEqual(await readFile(path), before, file);
  }
  assert.deepEqual(await readdir(join(folder, 'state')), ['store.sqlite']);
});

test('a store that is missing or damaged has no backup, and none is made up', async () => {
  const { folder, path, copy } = await setUp();
  await assert.rejects(backUp(path, copy), { code: 'ERR_STORE' });
  await writeFile(join(folder, 'bad'), 'no database'.repeat(500));
  await assert.rejects(backUp(join(folder, 'bad'), copy), { code: 'ERR_STORE' });
  await assert.rejects(backUp(path, join(folder, 'nowhere', 'copy')), { code: 'ERR_STORE' });
  assert.deepEqual(await readdir(folder), ['bad']);
});

test('a store that somebody has open is not replaced; one that is damaged is', async () => {
  const { path, copy } = await setUp();
  const store = await openStore(path);
  await add(store, 'here');
  await backUp(path, copy);
  await assert.rejects(restore(copy, path, { force: true, clock }), { code: 'ERR_STORE' });
  await add(store, 'still here');
  await store.close();
  const damaged = 'no database'.repeat(500);
  await writeFile(path, damaged);
  const { replaced = '' } = await restore(copy, path, { force: true, clock });
  assert.deepEqual(await names(path), ['here']);
  assert.equal(await readFile(replaced, 'utf8'), damaged);
});
