// What is too old or too much goes, oldest first, and is said to have gone; nothing else can go.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { silentLogger } from '../base/log.ts';
import { Audit, type AuditEvent } from './audit.ts';
import { AuditRetention } from './audit-retention.ts';

const DAY_MS = 86_400_000;

async function setUp(limits: { keepDays?: number; keepRecords?: number }) {
  const store = await openTestStore();
  const clock = new ManualClock();
  clock.advance(1000 * DAY_MS);
  const audit = new Audit(store, clock);
  const retention = new AuditRetention({
    store,
    audit,
    clock,
    log: silentLogger,
    keepDays: 0,
    keepRecords: 1_000_000,
    windowRecords: 10,
    ...limits,
  });
  const append = async (event: AuditEvent, count: number, user = 'ada'): Promise<void> => {
    for (let at = 0; at < count; at++) await audit.append({ event, user });
  };
  /** How many records there are of each kind. */
  const counts = async (): Promise<Record<string, number>> => {
    const all = await audit.list({ limit: 100_000 });
    return Object.fromEntries(
      [...Map.groupBy(all, ({ event }) => event)].map(([event, { length }]) => [event, length]),
    );
  };
  return { store, clock, audit, retention, append, counts };
}

test('records older than so many days go, to the day, and the record says so', async () => {
  const { store, clock, audit, retention, append, counts } = await setUp({ keepDays: 30 });
  await append('login.accepted', 25);
  clock.advance(10 * DAY_MS);
  await append('login.accepted', 7, 'bob');
  clock.advance(20 * DAY_MS);
  await retention.look();
  assert.deepEqual(await counts(), { 'login.accepted': 32 });
  clock.advance(1);
  await retention.look();
  assert.deepEqual(await counts(), { 'login.accepted': 7, 'audit.pruned': 1 });
  assert.deepEqual(
    (await audit.list({ event: 'audit.pruned' })).map(({ detail }) => detail),
    [{ before: new Date(clock.wallNow() - 30 * DAY_MS).toISOString() }],
  );
  await retention.look();
  assert.deepEqual(await counts(), { 'login.accepted': 7, 'audit.pruned': 1 }, 'nothing more goes, nor is said to');
  await retention.stop();
  await store.close();
});

test('with 0 days nothing is too old', async () => {
  const { store, clock, retention, append, counts } = await setUp({ keepDays: 0 });
  await append('login.accepted', 3);
  clock.advance(36_500 * DAY_MS);
  await retention.look();
  assert.deepEqual(await counts(), { 'login.accepted': 3 });
  await store.close();
});

test('of too many records the oldest go', async () => {
  const { store, audit, retention, append } = await setUp({ keepRecords: 50 });
  await append('user.added', 60, 'old');
  await append('user.added', 50, 'new');
  await retention.look();
  const left = (await audit.list({ event: 'user.added' })).map(({ user }) => user);
  assert.deepEqual([...new Set(left)], ['new']);
  assert.equal(left.length, 50);
  await store.close();
});

test('refusals have half of the room at most: strangers push out nothing but refusals', async () => {
  const { store, retention, append, counts } = await setUp({ keepRecords: 100 });
  await append('user.disabled', 45);
  await append('login.refused', 400);
  await append('session.resume_refused', 20);
  await append('certificate.refused', 20);
  await append('operator.refused', 20);
  await append('ban.begun', 20);
  await retention.look();
  const { 'user.disabled': disabled, 'audit.pruned': pruned, ...refusals } = await counts();
  assert.equal(disabled, 45);
  assert.equal(pruned, 1);
  const left = Object.values(refusals).reduce((sum, count) => sum + count, 0);
  assert.ok(left > 40 && left <= 50, `${left} refusals`);
  assert.equal(refusals['login.refused'], undefined, 'the oldest go first');
  await store.close();
});

test('what may not go stays, whoever asks: the database lets go of nothing else', async () => {
  const { store, clock, audit, retention, append, counts } = await setUp({ keepDays: 30 });
  await append('user.added', 5);
  clock.advance(31 * DAY_MS);
  await append('user.added', 5);
  await retention.look();
  const refused = { code: 'ERR_STORE', message: /append-only/ };
  await assert.rejects(store.db.deleteFrom('audit').execute(), refused);
  const [first] = await audit.list({ event: 'user.added' });
  await assert.rejects(
    store.db
      .deleteFrom('audit')
      .where('id', '=', first?.id ?? '')
      .execute(),
    refused,
  );
  assert.deepEqual(await counts(), { 'user.added': 5, 'audit.pruned': 1 });
  await store.close();
});
