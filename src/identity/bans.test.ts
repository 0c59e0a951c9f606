// Who has to wait after failed logins, who is banned, and who is left alone.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Audit } from '../store/audit.ts';
import { type Applicant, type Ban, Bans, DEFAULT_BAN_POLICY } from './bans.ts';

async function setUp(path = ':memory:', clock = new ManualClock()) {
  const store = await openTestStore(path);
  const audit = new Audit(store, clock);
  const bans = await Bans.open({ store, audit, clock, sourceOf: (address) => address });
  return { store, audit, clock, bans };
}

let hosts = 0;
/** An address that nobody has come from. */
const anywhere = () => {
  hosts += 1;
  return `10.${hosts >> 16}.${(hosts >> 8) & 255}.${hosts & 255}:4000`;
};

const stranger = (name: string | undefined, remote = anywhere()): Applicant => ({ remote, name, device: undefined });
const ownDevice = (device: string, remote = anywhere()): Applicant => ({ remote, name: undefined, device });

/** One failed login: whether it was looked at. */
async function fail(bans: Bans, who: Applicant): Promise<boolean> {
  const trial = bans.begin(who);
  await trial.end('failed');
  return trial.refused === undefined;
}

/** Whether a login would be looked at. */
async function isLookedAt(bans: Bans, who: Applicant): Promise<boolean> {
  const trial = bans.begin(who);
  await trial.end('none');
  return trial.refused === undefined;
}

/** Fails as often as it is let, until there is a ban. */
async function failUntilBanned(
  { bans, clock }: { bans: Bans; clock: ManualClock },
  who: () => Applicant,
): Promise<Ban> {
  for (let i = 0; i < 100; i++) {
    await fail(bans, who());
    const ban = bans.list().find(({ banned }) => banned);
    if (ban !== undefined) return ban;
    clock.advance(60_000);
  }
  throw new Error('there was no ban');
}

test('failures with a name make the next login wait, twice as long each time', async () => {
  const { bans, clock } = await setUp();
  for (let i = 0; i < 3; i++) assert.ok(await fail(bans, stranger('alice')));
  for (const seconds of [1, 2, 4, 8, 16]) {
    clock.advance(seconds * 1000 - 1);
    assert.ok(!(await isLookedAt(bans, stranger('alice'))), `after less than ${seconds} s`);
    clock.advance(1);
    assert.ok(await fail(bans, stranger('alice')), `after ${seconds} s`);
  }
});

test('what is refused unseen does not prolong the wait of a name', async () => {
  const { bans, clock } = await setUp();
  for (let i = 0; i < 3; i++) await fail(bans, stranger('alice'));
  for (let i = 0; i < 50; i++) assert.ok(!(await fail(bans, stranger('alice'))));
  clock.advance(1000);
  assert.ok(await isLookedAt(bans, stranger('alice')));
});

test('a ban of a name names its end, is told and recorded once, and ends', async () => {
  const world = await setUp();
  const { bans, clock, audit } = world;
  const told: Ban[] = [];
  bans.onBan = (ban) => told.push(ban);
  const ban = await failUntilBanned(world, () => stranger('alice'));
  assert.deepEqual(ban, { kind: 'name', key: 'alice', failures: 10, until: clock.wallNow() + 900_000, banned: true });
  assert.deepEqual(told, [ban]);
  const [record, ...others] = await audit.list({ event: 'ban.begun' });
  assert.deepEqual(others, []);
  assert.equal(record?.user, 'alice');
  assert.equal(record?.detail?.until, new Date(ban.until).toISOString());
  const { refused } = bans.begin(stranger('alice'));
  assert.match(refused ?? '', new RegExp(new Date(ban.until).toISOString()));
  clock.advance(899_999);
  assert.ok(!(await isLookedAt(bans, stranger('alice'))));
  clock.advance(1);
  assert.ok(await isLookedAt(bans, stranger('alice')));
  // Right after a ban one more failure makes the next; much later it does not.
  await fail(bans, stranger('alice'));
  assert.equal(told.length, 2);
  clock.advance(1_800_000);
  for (let i = 0; i < 2; i++) assert.ok(await fail(bans, stranger('alice')));
  assert.ok(await isLookedAt(bans, stranger('alice')));
});

test('one source that guesses at many names is banned, and its connections are refused; another is not', async () => {
  const world = await setUp();
  const { bans, clock } = world;
  let names = 0;
  const ban = await failUntilBanned(world, () => stranger(`user${names++}`, '192.0.2.9:4000'));
  assert.equal(`${ban.kind} ${ban.key} ${ban.failures}`, 'source 192.0.2.9 30');
  assert.ok(bans.isRefused('192.0.2.9'));
  assert.ok(!bans.isRefused('192.0.2.10'));
  assert.ok(!(await isLookedAt(bans, stranger('carol', '192.0.2.9:4001'))));
  clock.advance(900_000);
  assert.ok(!bans.isRefused('192.0.2.9'));
});

test('many sources that guess at one name are held together', async () => {
  const world = await setUp();
  const ban = await failUntilBanned(world, () => stranger('alice'));
  assert.equal(ban.kind, 'name');
  assert.ok(!(await isLookedAt(world.bans, stranger('ALICE'.toLowerCase()))));
  assert.ok(await isLookedAt(world.bans, stranger('bob')));
});

test('a device that has proven its key is not kept out by strangers, and answers for itself alone', async () => {
  const world = await setUp();
  const { bans } = world;
  await failUntilBanned(world, () => stranger('alice', '192.0.2.9:4000'));
  assert.ok(await isLookedAt(bans, { remote: '192.0.2.9:4001', name: 'alice', device: 'd1' }));
  const ban = await failUntilBanned({ ...(await setUp()), ...world, bans }, () => ownDevice('d2', '192.0.2.50:1'));
  assert.ok(ban.banned);
  while (await fail(bans, ownDevice('d2', '192.0.2.50:1'))) world.clock.advance(60_000);
  assert.ok(!(await isLookedAt(bans, ownDevice('d2'))));
  assert.ok(await isLookedAt(bans, ownDevice('d3', '192.0.2.50:1')));
  assert.ok(await isLookedAt(bans, stranger('bob', '192.0.2.50:1')), 'its source is not to blame');
});

test('a login clears its device, not what strangers did with the name, nor the source', async () => {
  const { bans } = await setUp();
  const accept = async (who: Applicant) => await bans.begin(who).end('accepted');
  for (let i = 0; i < 2; i++) await fail(bans, ownDevice('d1'));
  await accept(ownDevice('d1'));
  for (let i = 0; i < 2; i++) assert.ok(await fail(bans, ownDevice('d1')));
  assert.ok(await isLookedAt(bans, ownDevice('d1')));
  for (let i = 0; i < 3; i++) await fail(bans, stranger('alice'));
  await accept({ remote: anywhere(), name: 'alice', device: 'd1' });
  assert.ok(!(await isLookedAt(bans, stranger('alice'))));
  // Nine failures make a source wait; an accepted login between them changes nothing.
  for (let i = 0; i < 9; i++) {
    await fail(bans, stranger(`user${i}`, '192.0.2.9:1'));
    if (i === 7) await accept(stranger('mallory', '192.0.2.9:1'));
  }
  assert.ok(!(await isLookedAt(bans, stranger('bob', '192.0.2.9:1'))));
});

test('guesses made at the same time count before they are judged', async () => {
  const { bans } = await setUp();
  const trials = Array.from({ length: 20 }, () => bans.begin(stranger('alice')));
  assert.equal(trials.filter(({ refused }) => refused === undefined).length, 3);
  for (const trial of trials) await trial.end('none');
  assert.ok(await isLookedAt(bans, stranger('alice')));
});

test('bans survive a restart, and so does their end', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'bans-'));
  t.after(() => rm(folder, { recursive: true }));
  const path = join(folder, 'store.sqlite');
  const first = await setUp(path);
  await failUntilBanned(first, () => stranger('alice', '192.0.2.9:4000'));
  const held = first.bans.list();
  await first.store.close();
  const second = await setUp(path, first.clock);
  assert.deepEqual(second.bans.list(), held);
  assert.ok(!(await isLookedAt(second.bans, stranger('alice'))));
  await second.bans.unlock('alice', []);
  await second.store.close();
  const third = await setUp(path, first.clock);
  assert.ok(await isLookedAt(third.bans, stranger('alice')), 'what was lifted stays lifted');
  await third.store.close();
});

test('unlock and unban let in again, are recorded, and say when there was nothing', async () => {
  const world = await setUp();
  const { bans, audit } = world;
  await failUntilBanned(world, () => stranger('alice'));
  for (let i = 0; i < 3; i++) await fail(bans, ownDevice('d1'));
  assert.ok(await bans.unlock('alice', ['d1']));
  assert.ok(await isLookedAt(bans, stranger('alice')));
  assert.ok(await isLookedAt(bans, ownDevice('d1')));
  assert.ok(!(await bans.unlock('alice', ['d1'])));
  for (let i = 0; i < 40; i++) await fail(bans, stranger(undefined, '192.0.2.9:1'));
  assert.ok(bans.isRefused('192.0.2.9'));
  assert.ok(await bans.unban('192.0.2.9'));
  assert.ok(!bans.isRefused('192.0.2.9'));
  assert.ok(!(await bans.unban('192.0.2.9')));
  const lifted = await audit.list({ event: 'ban.lifted' });
  assert.deepEqual(
    lifted.map(({ user, source }) => user ?? source),
    ['alice', '192.0.2.9'],
  );
});

test('what is exempt is neither counted nor refused', async () => {
  const world = await setUp();
  const { bans } = world;
  await failUntilBanned(world, () => stranger(undefined, '192.0.2.9:4000'));
  bans.policy = { ...DEFAULT_BAN_POLICY, isExempt: (address) => address.startsWith('192.0.2.') };
  assert.ok(!bans.isRefused('192.0.2.9'));
  for (let i = 0; i < 50; i++) assert.ok(await fail(bans, stranger('alice', '192.0.2.9:4000')));
  assert.ok(await isLookedAt(bans, stranger('alice')));
});

test('a name is held whether anybody has it or not, and a text that is no name counts for its source alone', async () => {
  const { bans } = await setUp();
  for (let i = 0; i < 50; i++) await fail(bans, stranger('no\u0000name'));
  assert.deepEqual(bans.list(), []);
});

test('memory is bounded, and names that are tried once do not displace those that are held', async () => {
  const { bans } = await setUp();
  for (let i = 0; i < 9; i++) await fail(bans, stranger('alice'));
  const before = bans.list();
  assert.equal(before.length, 1);
  for (let i = 0; i < 12_000; i++) await fail(bans, stranger(`user${i}`));
  assert.ok(bans.size <= 20_000, String(bans.size));
  assert.deepEqual(bans.list(), before);
});
