// The record is appended to and read; nothing else.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Audit } from './audit.ts';

async function setUp() {
  const store = await openTestStore();
  const clock = new ManualClock();
  return { store, clock, audit: new Audit(store, clock) };
}

test('a row cannot be changed or removed, by whatever query', async () => {
  const { store, audit } = await setUp();
  await audit.append({ event: 'login.refused', user: 'ada', reason: 'why' });
  const refused = { code: 'ERR_STORE', message: /append-only/ };
  await assert.rejects(store.db.updateTable('audit').set({ user: 'eve' }).execute(), refused);
  await assert.rejects(store.db.deleteFrom('audit').execute(), refused);
  assert.deepEqual(
    (await audit.list()).map(({ user, reason }) => [user, reason]),
    [['ada', 'why']],
  );
  await store.close();
});

test('records are found by user, time, event, kind of event, and what came before them', async () => {
  const { store, clock, audit } = await setUp();
  for (const [event, user] of [
    ['login.refused', 'ada'],
    ['login.accepted', 'ada'],
    ['user.added', 'bob'],
    ['login.refused', 'bob'],
  ] as const) {
    clock.advance(1000);
    await audit.append({ event, user });
  }
  const found = async (query: Parameters<Audit['list']>[0]) =>
    (await audit.list(query)).map(({ event, user }) => `${event} ${user}`);
  assert.deepEqual(await found({ user: 'ada' }), ['login.refused ada', 'login.accepted ada']);
  assert.deepEqual(await found({ event: 'login.refused' }), ['login.refused ada', 'login.refused bob']);
  assert.deepEqual(await found({ event: 'login' }), ['login.refused ada', 'login.accepted ada', 'login.refused bob']);
  assert.deepEqual(await found({ event: 'log' }), []);
  assert.deepEqual(await found({ since: clock.wallNow() - 1000 }), ['user.added bob', 'login.refused bob']);
  assert.deepEqual(await found({ limit: 1 }), ['login.refused bob']);
  const [, second] = await audit.list();
  assert.deepEqual(await found({ after: second?.id ?? '' }), ['user.added bob', 'login.refused bob']);
  await store.close();
});

test('what a peer chooses is cut to a bound', async () => {
  const { store, audit } = await setUp();
  await audit.append({ event: 'login.refused', user: 'x'.repeat(10_000), reason: 'y'.repeat(10_000) });
  const [record] = await audit.list();
  assert.deepEqual([record?.user?.length, record?.reason?.length], [256, 256]);
  await store.close();
});

test('a record is behind those before it though the clock is set back, also after a restart', async () => {
  const { store, clock, audit } = await setUp();
  clock.advance(3_600_000);
  await audit.append({ event: 'user.added', user: 'first' });
  clock.setWall(clock.wallNow() - 3_000_000);
  await audit.append({ event: 'user.added', user: 'second' });
  const again = await Audit.open(store, clock);
  clock.setWall(clock.wallNow() - 1000);
  await again.append({ event: 'user.added', user: 'third' });
  await again.append({ event: 'user.added', user: 'fourth' });
  clock.advance(4_000_000);
  await again.append({ event: 'user.added', user: 'fifth' });
  const records = await again.list();
  assert.deepEqual(
    records.map(({ user }) => user),
    ['first', 'second', 'third', 'fourth', 'fifth'],
  );
  assert.equal(new Set(records.map(({ id }) => id)).size, 5);
  // What the clock said is on record all the same.
  assert.ok((records[1]?.at ?? 0) < (records[0]?.at ?? 0));
  await store.close();
});

test('who reads on behind a record misses none for a clock that is set back, nor one that is still written', async () => {
  const { store, clock, audit } = await setUp();
  clock.advance(3_600_000);
  await audit.append({ event: 'user.added', user: 'before' });
  clock.setWall(clock.wallNow() - 1_800_000);
  await audit.append({ event: 'user.added', user: 'behind' });
  clock.advance(5000);
  await audit.append({ event: 'user.added', user: 'just now' });
  const users = async (settleMs: number) => (await audit.next('', settleMs, 10)).map(({ user }) => user);
  assert.deepEqual(await users(2000), ['before', 'behind']);
  clock.advance(2001);
  assert.deepEqual(await users(2000), ['before', 'behind', 'just now']);
  assert.deepEqual((await audit.next('', 0, 2)).length, 2);
  await store.close();
});
