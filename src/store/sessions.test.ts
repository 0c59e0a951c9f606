// Session records and the audit rows they leave.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isServer, openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Audit } from './audit.ts';
import { type NewSession, Sessions } from './sessions.ts';
import { Vault } from './vault.ts';

const ID = 'ab'.repeat(16);
const DEVICE = '0d'.repeat(16);
const EMPTY: Uint8Array = new Uint8Array(0);
const KEY = new Uint8Array(32).fill(0x4b);

async function setUp() {
  const store = await openTestStore();
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
  steps: ['device', 'token'],
  token: '0123456789abcdef',
  features: ['attach', 'resume'],
  networks: ['10.20.0.0/16', 'fd00:20::/48'],
};

test('what a device leased last is kept when its session has ended, the longest ago first', async () => {
  const { clock, sessions } = await setUp();
  assert.deepEqual(await sessions.lastLeases(), []);
  await sessions.open(session);
  await sessions.end(ID, 'shutdown');
  clock.advance(1000);
  await sessions.open({ ...session, lease4: '10.0.0.9', lease6: 'fd00::9' });
  assert.deepEqual(await sessions.lastLeases(), [{ device: DEVICE, lease4: '10.0.0.9', lease6: 'fd00::9' }]);
  await sessions.end(ID, 'shutdown');
  assert.equal((await sessions.lastLeases()).length, 1);
});

test('the users whose account has expired are found while they have a session', async () => {
  const { store, clock, sessions } = await setUp();
  await sessions.open(session);
  assert.deepEqual(await sessions.expiredUsers(), [], 'an account without an end');
  await store.db
    .updateTable('users')
    .set({ expires_at: clock.wallNow() + 1000 })
    .execute();
  assert.deepEqual(await sessions.expiredUsers(), []);
  clock.advance(1000);
  assert.deepEqual(await sessions.expiredUsers(), ['ada']);
  await sessions.end(ID, 'revoked');
  assert.deepEqual(await sessions.expiredUsers(), []);
});

test('a session that is opened is listed without its secret', async () => {
  const { store, clock, sessions } = await setUp();
  await sessions.open(session);
  const [listed] = await sessions.list();
  const { resumeKey: _, ...shown } = session;
  assert.deepEqual(listed, {
    ...shown,
    lease6: undefined,
    openedAt: clock.wallNow(),
    certificate: undefined,
    detachedAt: undefined,
  });
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
  const { key } = await sessions.resumeKey(ID, 0);
  assert.deepEqual(Uint8Array.from(key), KEY);
  await store.db.updateTable('sessions').set({ epoch: 1 }).execute();
  await assert.rejects(sessions.resumeKey(ID, 1), { code: 'ERR_STORE' });
  await store.close();
});

test('a session that has ended leaves no row and cannot be resumed', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  assert.equal(await sessions.end(ID, 'admin'), true);
  assert.equal(await sessions.end(ID, 'admin'), false);
  assert.deepEqual(await sessions.list(), []);
  await assert.rejects(sessions.resumeKey(ID, 0), { code: 'ERR_SESSION_UNKNOWN' });
  await store.close();
});

test('REQ-RESUME-004: a key resumes until the next one is confirmed, then it is superseded', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  const next = new Uint8Array(32).fill(1);
  await assert.rejects(sessions.resumeKey(ID, 1), { code: 'ERR_SESSION_UNKNOWN' });
  const lost = await sessions.propose(ID, 0, (await sessions.resumeKey(ID, 0)).version, new Uint8Array(32).fill(9));
  assert.deepEqual(Uint8Array.from((await sessions.resumeKey(ID, 0)).key), KEY, 'a lost RESUMED locks nobody out');
  const version = await sessions.propose(ID, 0, (await sessions.resumeKey(ID, 0)).version, next);
  await assert.rejects(sessions.confirm(ID, 1, lost, ''), { code: 'ERR_SESSION_REPLACED' });
  await sessions.confirm(ID, 1, version, '192.0.2.9:1');
  assert.deepEqual(Uint8Array.from((await sessions.resumeKey(ID, 1)).key), next);
  await assert.rejects(sessions.resumeKey(ID, 0), { code: 'ERR_SESSION_REPLACED' });
  await assert.rejects(sessions.propose(ID, 0, version, next), { code: 'ERR_SESSION_REPLACED' });
  await assert.rejects(sessions.confirm(ID, 1, version, ''), { code: 'ERR_SESSION_REPLACED' });
  await assert.rejects(sessions.resumeKey(ID, 2), { code: 'ERR_SESSION_UNKNOWN' });
  assert.equal((await sessions.list())[0]?.source, '192.0.2.9:1');
  await store.close();
});

test('a change of the connection is on the audit record only where it comes from another address', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  const records = async () =>
    (await store.db.selectFrom('audit').select('source').where('event', '=', 'session.resumed').execute()).map(
      ({ source }) => source,
    );
  let epoch = 0;
  const confirm = async (source: string, isRekey: boolean): Promise<void> => {
    const { version } = await sessions.resumeKey(ID, epoch);
    const next = await sessions.propose(ID, epoch, version, new Uint8Array(32).fill(epoch + 1));
    epoch += 1;
    await sessions.confirm(ID, epoch, next, source, isRekey);
  };
  await confirm('192.0.2.9:1', false);
  await confirm('192.0.2.9:2', true);
  await confirm('[2001:db8::1]:2', true);
  await confirm('[2001:db8::1]:3', true);
  await confirm('[2001:db8::1]:4', false);
  assert.deepEqual(await records(), ['192.0.2.9:1', '[2001:db8::1]:2', '[2001:db8::1]:4']);
  await store.close();
});

test('REQ-RESUME-004: a resume with the next key confirms it; one with a next key that was forgotten is too late', async () => {
  const { store, sessions } = await setUp();
  await sessions.open(session);
  const { version } = await sessions.resumeKey(ID, 0);
  await sessions.propose(ID, 0, version, new Uint8Array(32).fill(1));
  const forgotten = await sessions.resumeKey(ID, 1);
  await sessions.propose(ID, 0, version, new Uint8Array(32).fill(2));
  const next = new Uint8Array(32).fill(3);
  await assert.rejects(sessions.propose(ID, 1, forgotten.version, next), { code: 'ERR_SESSION_REPLACED' });
  await sessions.propose(ID, 1, (await sessions.resumeKey(ID, 1)).version, next);
  await assert.rejects(sessions.resumeKey(ID, 0), { code: 'ERR_SESSION_REPLACED' });
  assert.deepEqual(Uint8Array.from((await sessions.resumeKey(ID, 2)).key), next);
  await store.close();
});

test('REQ-RESUME-010: whatever races with what, one resume of an epoch is confirmed, and its key is the one on record', async () => {
  const steps = fc.array(
    fc.record({ copy: fc.integer({ min: 0, max: 3 }), act: fc.constantFrom('read', 'propose', 'confirm') }),
    { minLength: 1, maxLength: 40 },
  );
  await fc.assert(
    fc.asyncProperty(steps, async (actions) => {
      const { store, sessions } = await setUp();
      await sessions.open(session);
      const confirmed = new Map<number, string>();
      const copies = Array.from({ length: 4 }, () => ({ epoch: 0, read: EMPTY, proposed: EMPTY, key: EMPTY }));
      let keys = 0;
      const acts = actions.map(async ({ copy: index, act }) => {
        const copy = copies[index];
        assert.ok(copy);
        if (act === 'read') copy.read = (await sessions.resumeKey(ID, copy.epoch)).version;
        else if (act === 'propose') {
          keys += 1;
          const key = new Uint8Array(32).fill(keys);
          copy.proposed = await sessions.propose(ID, copy.epoch, copy.read, key);
          copy.key = key;
        } else {
          const { epoch, proposed, key } = copy;
          await sessions.confirm(ID, epoch + 1, proposed, '');
          assert.equal(confirmed.has(epoch + 1), false, 'a second confirmation of one epoch');
          confirmed.set(epoch + 1, key.toHex());
          copy.epoch = epoch + 1;
        }
      });
      for (const outcome of await Promise.allSettled(acts)) {
        if (outcome.status === 'rejected') assert.match(outcome.reason.code ?? '', /^ERR_SESSION_/, outcome.reason);
      }
      const [record] = await sessions.list();
      assert.ok(record);
      const expected = confirmed.get(record.epoch);
      if (expected !== undefined) {
        assert.equal(Buffer.from((await sessions.resumeKey(ID, record.epoch)).key).toString('hex'), expected);
      }
      assert.ok(confirmed.size <= record.epoch);
      await store.close();
    }),
    { numRuns: isServer ? 8 : 60 },
  );
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
