/** When outside sources are asked about accounts with sessions, and what their answers do. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../../test/support/store.ts';
import { ManualClock } from '../../base/clock.ts';
import { silentLogger } from '../../base/log.ts';
import type { Rechecked, Standing } from '../../identity/backends/backend.ts';
import { Audit } from '../../store/audit.ts';
import type { SourcedAccount } from '../../store/sources.ts';
import { Recheck } from './recheck.ts';

const INTERVAL_MS = 900_000;

async function open(accounts: SourcedAccount[], random?: () => number) {
  const clock = new ManualClock();
  const store = await openTestStore();
  const audit = new Audit(store, clock);
  const standings = new Map<string, Standing | Error>();
  const groups = new Map<string, readonly string[]>();
  const asked: string[] = [];
  const ended: string[] = [];
  const regrouped: [user: string, source: string, groups: string][] = [];
  let asking = 0;
  let most = 0;
  let orphans = 0;
  let gate: Promise<void> | undefined;
  const backend = {
    recheck: async (user: string): Promise<Rechecked> => {
      asked.push(user);
      asking += 1;
      most = Math.max(most, asking);
      await (gate ?? new Promise((resolve) => setImmediate(resolve)));
      asking -= 1;
      const standing = standings.get(user) ?? 'good';
      if (standing instanceof Error) throw standing;
      return { standing, groups: groups.get(user) };
    },
  };
  const forgetOrphans = async () => {
    orphans += 1;
  };
  const recheck = new Recheck({
    sources: { withSessions: async () => accounts, forgetOrphans },
    backends: new Map([['office', backend]]),
    intervalSeconds: INTERVAL_MS / 1000,
    end: (user) => ended.push(user),
    regroup: async (user, source, known) => void regrouped.push([user, source, known.join()]),
    audit,
    clock,
    log: silentLogger,
    ...(random === undefined ? {} : { random }),
  });
  return {
    clock,
    recheck,
    audit,
    standings,
    groups,
    asked,
    ended,
    regrouped,
    hold: (until: Promise<void>) => {
      gate = until;
    },
    most: () => most,
    orphans: () => orphans,
    /** Looks every 30 seconds, as the timer does. */
    async pass(ms: number): Promise<void> {
      for (let passed = 0; passed < ms; passed += 30_000) {
        clock.advance(30_000);
        await recheck.look();
      }
    },
    [Symbol.asyncDispose]: async () => {
      await recheck.stop();
      await store.close();
    },
  };
}

const office = (...users: string[]): SourcedAccount[] => users.map((user) => ({ user, source: 'office' }));

test('every account is asked about once in an interval, and not all at one moment', async () => {
  const users = Array.from({ length: 40 }, (_, at) => `user${at}`);
  await using world = await open(office(...users));
  await world.recheck.look();
  assert.equal(world.asked.length, 0);
  const moments = new Set<number>();
  for (let passed = 0; passed < INTERVAL_MS; passed += 30_000) {
    const before = world.asked.length;
    await world.pass(30_000);
    if (world.asked.length > before) moments.add(passed);
  }
  assert.deepEqual([...new Set(world.asked)].sort(), [...users].sort());
  assert.ok(moments.size > 3, `asked at ${moments.size} moments`);
  assert.ok(world.orphans() > 0);
  assert.deepEqual(world.ended, []);
});

for (const random of [0, 0.999_999]) {
  test(`an account is asked about within the interval whatever chance says: ${random}`, async () => {
    await using world = await open(office('alice'), () => random);
    await world.recheck.look();
    await world.pass(INTERVAL_MS);
    assert.ok(world.asked.length >= 1 && world.asked.length <= 2, `${world.asked.length} times`);
  });
}

test('an account that is gone loses its sessions, on record; the others keep theirs', async () => {
  await using world = await open(office('alice', 'bob', 'carol'));
  world.standings.set('bob', 'gone').set('carol', 'unknown');
  await world.recheck.look();
  await world.pass(INTERVAL_MS);
  assert.deepEqual([...new Set(world.ended)], ['bob']);
  const [record] = await world.audit.list({ event: 'source.gone' });
  assert.equal(record?.user, 'bob');
  assert.deepEqual(record?.detail, { source: 'office', sessions: 1 });
});

test('a source that fails, or is configured no more, ends no session', async () => {
  await using world = await open([...office('alice'), { user: 'dora', source: 'removed' }]);
  world.standings.set('alice', new Error('a fault'));
  await world.recheck.look();
  await world.pass(2 * INTERVAL_MS);
  assert.ok(world.asked.length >= 2);
  assert.deepEqual(world.ended, []);
});

test('no more than eight are asked about at once, and looks do not overlap', async () => {
  const users = Array.from({ length: 30 }, (_, at) => `user${at}`);
  await using world = await open(office(...users), () => 0);
  const { promise, resolve } = Promise.withResolvers<void>();
  world.hold(promise);
  await world.recheck.look();
  world.clock.advance(INTERVAL_MS);
  const look = world.recheck.look();
  assert.equal(world.recheck.look(), look);
  while (world.asked.length < 8) await new Promise((next) => setImmediate(next));
  resolve();
  await look;
  assert.equal(world.most(), 8);
  assert.equal(world.asked.length, 30);
});

test('an account is forgotten with its last session', async () => {
  const accounts = office('alice');
  await using world = await open(accounts, () => 0);
  await world.recheck.look();
  accounts.length = 0;
  await world.pass(2 * INTERVAL_MS);
  assert.deepEqual(world.asked, []);
});

test('one account can be asked about at once', async () => {
  await using world = await open([]);
  assert.equal((await world.recheck.check({ user: 'alice', source: 'office' })).standing, 'good');
  assert.equal((await world.recheck.check({ user: 'local', source: undefined })).standing, 'good');
  assert.equal((await world.recheck.check({ user: 'dora', source: 'removed' })).standing, 'unknown');
  world.standings.set('alice', 'gone');
  assert.equal((await world.recheck.check({ user: 'alice', source: 'office' })).standing, 'gone');
  assert.deepEqual(world.ended, ['alice']);
});

test('what a source says of groups is passed on, of accounts that are good and where it has a say', async () => {
  await using world = await open(office('alice', 'bob', 'carol', 'dora'));
  world.standings.set('carol', 'gone').set('dora', 'unknown');
  for (const user of ['alice', 'carol', 'dora']) world.groups.set(user, ['board', 'staff']);
  await world.recheck.look();
  await world.pass(INTERVAL_MS);
  assert.deepEqual([...new Set(world.regrouped.map(String))], ['alice,office,board,staff']);
  assert.deepEqual((await world.recheck.check({ user: 'alice', source: 'office' })).groups, ['board', 'staff']);
});
