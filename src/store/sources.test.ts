/** What the store keeps of outside sources. */

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Sources } from './sources.ts';
import type { Store } from './store.ts';
import { Vault } from './vault.ts';

const HOUR_MS = 3_600_000;

async function open(): Promise<AsyncDisposable & { store: Store; sources: Sources; clock: ManualClock }> {
  const store = await openTestStore();
  const clock = new ManualClock();
  const sources = new Sources({ store, vault: new Vault(randomBytes(32)), clock });
  return { store, sources, clock, [Symbol.asyncDispose]: () => store.close() };
}

async function addUser(store: Store, name: string, source?: string): Promise<void> {
  await store.db
    .insertInto('users')
    .values({ id: name, name, created_at: 1, disabled_at: null, expires_at: null, source: source ?? null })
    .execute();
}

async function addSession(store: Store, user: string): Promise<void> {
  const id = `${user}-device`;
  const times = { approved_at: 1, first_login_at: 1, last_seen_at: 1, revoked_at: null };
  await store.db
    .insertInto('devices')
    .values({ id, user_id: user, name: '', algorithm: 'p256', public_key: Buffer.of(1), created_at: 1, ...times })
    .execute();
  await store.db
    .insertInto('sessions')
    .values({
      id: `${user}-session`,
      user_id: user,
      device_id: id,
      worker: 0,
      epoch: 0,
      resume_key: Buffer.of(1),
      lease4: null,
      lease6: null,
      policy_generation: 1,
      source: '192.0.2.1:1',
      opened_at: 1,
      expires_at: null,
    })
    .execute();
}

test('the accounts of outside sources that have sessions are listed, each once', async () => {
  await using opened = await open();
  const { store, sources } = opened;
  for (const [name, source] of [['carol', 'sso'], ['alice', 'office'], ['local'], ['idle', 'office']] as const) {
    await addUser(store, name, source);
    if (name !== 'idle') await addSession(store, name);
  }
  assert.deepEqual(await sources.withSessions(), [
    { user: 'alice', source: 'office' },
    { user: 'carol', source: 'sso' },
  ]);
  assert.equal(await sources.sourceOf('carol'), 'sso');
  assert.equal(await sources.sourceOf('local'), undefined);
  assert.equal(await sources.sourceOf('nobody'), undefined);
});

test('what a source keeps is sealed, and opens for that source and account only', async () => {
  await using opened = await open();
  const { store, sources } = opened;
  const sso = sources.grantsOf('sso');
  assert.equal(await sso.load('alice'), undefined);
  await sso.save('alice', 'a refresh token');
  await sso.save('alice', 'the next one');
  assert.equal(await sso.load('alice'), 'the next one');
  assert.equal(await sources.grantsOf('other').load('alice'), undefined);
  const [row] = await store.db.selectFrom('source_grants').selectAll().execute();
  assert.ok(row !== undefined && !Buffer.from(row.sealed).includes('next'));
  await store.db.updateTable('source_grants').set({ account: 'mallory' }).execute();
  await assert.rejects(sso.load('mallory'), { code: 'ERR_STORE' });
});

test('what was kept of accounts without a user is forgotten, but not while a login may be under way', async () => {
  await using opened = await open();
  const { store, sources, clock } = opened;
  await addUser(store, 'alice', 'sso');
  await addUser(store, 'bob');
  const sso = sources.grantsOf('sso');
  for (const account of ['alice', 'bob', 'carol']) await sso.save(account, account);
  await sources.forgetOrphans();
  assert.equal(await sso.load('carol'), 'carol');
  clock.advance(HOUR_MS + 1);
  await sources.forgetOrphans();
  assert.equal(await sso.load('alice'), 'alice');
  assert.equal(await sso.load('bob'), undefined);
  assert.equal(await sso.load('carol'), undefined);
});

test('of any users, those are found that are accounts of outside sources', async () => {
  await using world = await open();
  await addUser(world.store, 'local');
  await addUser(world.store, 'ada', 'office');
  await addUser(world.store, 'bob', 'sso');
  await addUser(world.store, 'eve', 'sso');
  const found = await world.sources.among(['local', 'ada', 'bob', 'nobody']);
  assert.deepEqual(
    found.toSorted((a, b) => a.user.localeCompare(b.user)),
    [
      { user: 'ada', source: 'office' },
      { user: 'bob', source: 'sso' },
    ],
  );
  assert.deepEqual(await world.sources.among([]), []);
});
