// Session records and the audit rows they leave.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../base/clock.ts';
import { Audit } from './audit.ts';
import { type NewSession, Sessions } from './sessions.ts';
import { openStore } from './store.ts';
import { Vault } from './vault.ts';

const ID = 'ab'.repeat(16);
const DEVICE = '0d'.repeat(16);
const KEY = new Uint8Array(32).fill(0x4b);

async function setUp() {
  const store = await openStore(':memory:');
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  const sessions = new Sessions({ store, vault: new Vault(new Uint8Array(32)), audit, clock });
  await store.db
    .insertInto('users')
    .values({ id: 'u1', name: 'ada', created_at: 1, disabled_at: null, expires_at: null })
    .execute();
  await store.db
    .insertInto('devices')
    .values({
      id: DEVICE,
      user_id: 'u1',
      name: '',
      algorithm: 'p256',
      public_key: new Uint8Array(91),
      created_at: 1,
      approved_at: 1,
      first_login_at: null,
      last_seen_at: null,
      revoked_at: null,
    })
    .execute();
  return { store, clock, audit, sessions };
}

const session: NewSession = {
  id: ID,
  user: 'ada',
  device: DEVICE,
  worker: 0,
  epoch: 0,
  resumeKey: KEY,
  lease4: '10.0.0.2',
  policyGeneration: 3,
  source: '192.0.2.1:4000',
  expiresAt: 99,
};

test('what a device leased last is kept when its session has ended, the longest ago first', async () => {
  const { clock, sessions } = await setUp();
  assert.deepEqual(await sessions.lastLeases(), []);
  await sessions.open(session);
  await sessions.end(ID, 'shutdown');
  clock.advance(1000);
  await sessions.open({ ...session, lease4: '10.0.0.9', lease6: 'fd00::9' });
  assert.deepEqual(await sessions.lastLeases(), [{ device: DEVICE, lease4: '10.0.0.9', lease6: 'fd00::9' }]);
  await sessions.endAll('shutdown');
  assert.equal((await sessions.lastLeases()).length, 1);
});

test('a session that is opened is listed without its secret', async () => {
  const { store, clock, sessions } = await setUp();
  await sessions.open(session);
  const [listed] = await sessions.list();
  const { resumeKey: _, ...shown } = session;
  assert.deepEqual(listed, { ...shown, lease6: undefined, openedAt: clock.wallNow() });
  assert.equal((await sessions.list({ user: 'ada' })).length, 1);
  assert.equal((await sessions.list({ user: 'bob' })).length, 0);
  assert.equal((await sessions.list({ device: DEVICE })).length, 1);
  await store.close();
});

test('K_resume is stored sealed, and opens for its own session and epoch only', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  const { resume_key: sealed } = await store.db.selectFrom('sessions').select('resume_key').executeTakeFirstOrThrow();
  assert.equal(Buffer.from(sealed).includes(KEY), false);
  const { epoch, key } = await sessions.resumeKey(ID);
  assert.deepEqual([epoch, Uint8Array.from(key)], [0, KEY]);
  await store.db.updateTable('sessions').set({ epoch: 1 }).execute();
  await assert.rejects(sessions.resumeKey(ID), { code: 'ERR_STORE' });
  await store.close();
});

test('a session that has ended leaves no row and cannot be resumed', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  assert.equal(await sessions.end(ID, 'admin'), true);
  assert.equal(await sessions.end(ID, 'admin'), false);
  assert.deepEqual(await sessions.list(), []);
  await assert.rejects(sessions.resumeKey(ID), { code: 'ERR_SESSION_UNKNOWN' });
  await store.close();
});

test('endAll clears the record', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  await sessions.open({ ...session, id: 'cd'.repeat(16) });
  assert.equal(await sessions.endAll('shutdown'), 2);
  assert.deepEqual(await sessions.list(), []);
  await store.close();
});

test('the same id twice is a conflict', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  await assert.rejects(sessions.open(session), { code: 'ERR_CONFLICT' });
  await store.close();
});

test('no session opens for a device or user that was revoked, disabled or is unknown', async () => {
  const { store, sessions } = await setUp();
  const refused = { code: 'ERR_AUTH_REJECTED' };
  await assert.rejects(sessions.open({ ...session, user: 'eve' }), refused);
  await assert.rejects(sessions.open({ ...session, device: 'ff'.repeat(16) }), refused);
  await store.db.updateTable('devices').set({ revoked_at: 5 }).execute();
  await assert.rejects(sessions.open(session), refused);
  await store.db.updateTable('devices').set({ revoked_at: null }).execute();
  await store.db.updateTable('users').set({ disabled_at: 5 }).execute();
  await assert.rejects(sessions.open(session), refused);
  await store.close();
});

test('the audit record tells opening and end, with eight digits of the id', async () => {
  const { store, clock, sessions, audit } = await setUp();
  await sessions.open(session);
  clock.advance(1000);
  await sessions.end(ID, 'admin');
  const rows = (await audit.list()).map(({ id: _id, ...row }) => row);
  const common = { user: 'ada', device: DEVICE, source: '192.0.2.1:4000', detail: { session: 'abababab' } };
  assert.deepEqual(rows, [
    { ...common, at: clock.wallNow() - 1000, event: 'session.opened', reason: undefined },
    { ...common, at: clock.wallNow(), event: 'session.ended', reason: 'admin' },
  ]);
  assert.deepEqual(
    (await audit.list({ since: clock.wallNow() })).map((row) => row.event),
    ['session.ended'],
  );
  assert.deepEqual(await audit.list({ user: 'bob' }), []);
  assert.deepEqual(
    (await audit.list({ limit: 1 })).map((row) => row.event),
    ['session.ended'],
  );
  await store.close();
});

test('audit rows of one millisecond keep their order, and long texts are cut', async () => {
  const { store, audit } = await setUp();
  for (let i = 0; i < 50; i++) await audit.append({ event: 'login.refused', reason: `${i}` });
  await audit.append({ event: 'login.refused', user: 'x'.repeat(10_000) });
  const rows = (await audit.list()).map(({ id: _id, ...row }) => row);
  assert.deepEqual(
    rows.slice(0, 50).map((row) => row.reason),
    Array.from({ length: 50 }, (_, i) => `${i}`),
  );
  assert.equal(rows[50]?.user?.length, 256);
  await store.close();
});
