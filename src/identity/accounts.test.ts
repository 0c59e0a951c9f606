// Accounts, devices and tokens as an operator handles them.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Audit } from '../store/audit.ts';
import { Accounts } from './accounts.ts';
import { Devices } from './devices.ts';
import { EnrolmentTokens } from './enrolment.ts';

async function setUp() {
  const store = await openTestStore();
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  const parts = { store, audit, clock };
  return { ...parts, accounts: new Accounts(parts), devices: new Devices(parts), tokens: new EnrolmentTokens(parts) };
}

async function addDevice(world: Awaited<ReturnType<typeof setUp>>, user: string): Promise<string> {
  const token = await world.tokens.find((await world.tokens.issue(user)).token.reveal());
  assert.ok(token);
  const device = randomBytes(16).toString('hex');
  const enrolment = { device, algorithm: 'p256', publicKey: new Uint8Array(91), name: 'x', source: 's' } as const;
  assert.equal(await world.store.transaction((db) => world.tokens.bind(db, token, enrolment)), 'bound');
  return device;
}

test('a user is added, listed and shown with groups and devices', async () => {
  const world = await setUp();
  const { accounts, clock } = world;
  const ada = await accounts.add('ada', { groups: ['staff', 'admin', 'staff'] });
  await accounts.add('Bob', { expiresAt: 5 });
  const revoked = await addDevice(world, 'ada');
  await addDevice(world, 'ada');
  await world.devices.revoke(revoked);
  const shown = {
    id: ada.id,
    name: 'ada',
    groups: ['admin', 'staff'],
    createdAt: clock.wallNow(),
    disabledAt: undefined,
    expiresAt: undefined,
    source: undefined,
    devices: 1,
  };
  assert.deepEqual(await accounts.show('ada'), shown);
  assert.deepEqual(
    (await accounts.list()).map(({ name, expiresAt }) => [name, expiresAt]),
    [
      ['Bob', 5],
      ['ada', undefined],
    ],
  );
  await world.store.close();
});

test('page by page, with a group and a state, comes what the whole list has', async () => {
  const { accounts, store } = await setUp();
  for (let index = 0; index < 25; index++) {
    await accounts.add(`user${index}`, { groups: index % 2 === 0 ? ['even', 'all'] : ['all'] });
    if (index % 5 === 0) await accounts.disable(`user${index}`);
  }
  const all = await accounts.list();
  const filters = [
    [{}, () => true],
    [{ group: 'even' }, ({ groups }: (typeof all)[number]) => groups.includes('even')],
    [{ state: 'disabled' }, ({ disabledAt }: (typeof all)[number]) => disabledAt !== undefined],
    [{ group: 'all', state: 'enabled' }, ({ disabledAt }: (typeof all)[number]) => disabledAt === undefined],
    [{ group: 'nobody' }, () => false],
  ] as const;
  for (const [filter, isWanted] of filters) {
    const found: typeof all = [];
    for (;;) {
      const page = await accounts.page({ ...filter, limit: 4, after: found.at(-1)?.name });
      found.push(...page);
      if (page.length < 4) break;
    }
    assert.deepEqual(found, all.filter(isWanted), JSON.stringify(filter));
  }
  assert.deepEqual(await accounts.page({ limit: 4, after: 'gone' }), []);
  await store.close();
});

test('two spellings of a name are one name', async () => {
  const { accounts, store } = await setUp();
  await accounts.add('Zoe\u0308');
  await assert.rejects(accounts.add('Zo\u00eb'), { code: 'ERR_CONFLICT' });
  assert.equal((await accounts.show('Zoe\u0308')).name, 'Zo\u00eb');
  await store.close();
});

test('texts that are no names are refused, for users and groups', async () => {
  const { accounts, store } = await setUp();
  const bad = [
    '',
    ' ',
    'a b',
    '-x',
    '.x',
    'a/b',
    'a\0',
    'a\nb',
    'a\u202eb',
    'a\u200bb',
    'x'.repeat(65),
    'e\u0301'.repeat(200),
  ];
  for (const name of bad) {
    await assert.rejects(accounts.add(name), { code: 'ERR_BAD_REQUEST' }, JSON.stringify(name));
    await assert.rejects(accounts.add('ok', { groups: [name] }), { code: 'ERR_BAD_REQUEST' }, JSON.stringify(name));
  }
  await assert.rejects(accounts.add('ok', { groups: Array.from({ length: 65 }, (_, i) => `g${i}`) }), {
    code: 'ERR_BAD_REQUEST',
  });
  assert.deepEqual(await accounts.list(), []);
  for (const name of ['a', '7', 'ada.lovelace@example.org', 'x'.repeat(64), '李雷', 'e\u0301'.repeat(64)]) {
    await accounts.add(name);
  }
  await store.close();
});

test('disable and enable may be repeated, and keep the first time', async () => {
  const { accounts, clock, store } = await setUp();
  await accounts.add('ada');
  await accounts.disable('ada');
  const at = clock.wallNow();
  clock.advance(1000);
  await accounts.disable('ada');
  assert.equal((await accounts.show('ada')).disabledAt, at);
  await accounts.enable('ada');
  await accounts.enable('ada');
  assert.equal((await accounts.show('ada')).disabledAt, undefined);
  await store.close();
});

test('a deleted user is gone with devices and tokens, and the name is free', async () => {
  const world = await setUp();
  const { accounts, devices, tokens, store } = world;
  const first = await accounts.add('ada');
  await addDevice(world, 'ada');
  const { token } = await tokens.issue('ada');
  await accounts.delete('ada');
  assert.deepEqual(await devices.list(), []);
  assert.equal(await tokens.find(token.reveal()), undefined);
  assert.notEqual((await accounts.add('ada')).id, first.id);
  assert.deepEqual(await devices.list('ada'), []);
  await store.close();
});

test('what is not there is ERR_NOT_FOUND', async () => {
  const { accounts, devices, tokens, store } = await setUp();
  const missing = { code: 'ERR_NOT_FOUND' };
  for (const name of ['ada', '', 'a b']) {
    await assert.rejects(accounts.show(name), missing);
    await assert.rejects(accounts.disable(name), missing);
    await assert.rejects(accounts.enable(name), missing);
    await assert.rejects(accounts.delete(name), missing);
    await assert.rejects(tokens.issue(name), missing);
    await assert.rejects(devices.show(name), missing);
    await assert.rejects(devices.revoke(name), missing);
    await assert.rejects(devices.approve(name), missing);
  }
  await store.close();
});

test('REQ-ENROL-001: a token lives 72 hours unless told otherwise, within bounds', async () => {
  const { accounts, tokens, clock, store } = await setUp();
  await accounts.add('ada');
  assert.equal((await tokens.issue('ada')).expiresAt, clock.wallNow() + 72 * 3_600_000);
  assert.equal((await tokens.issue('ada', { lifeMs: 1000 })).expiresAt, clock.wallNow() + 1000);
  for (const lifeMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY, 367 * 24 * 3_600_000]) {
    await assert.rejects(tokens.issue('ada', { lifeMs }), { code: 'ERR_BAD_REQUEST' });
  }
  await store.close();
});

test('REQ-ENROL-001: a token is found by its whole secret only, and its row holds only the hash', async () => {
  const { accounts, tokens, store } = await setUp();
  await accounts.add('ada');
  const issued = await tokens.issue('ada', { approve: true });
  const token = issued.token.reveal();
  assert.equal(token.length, 40);
  const found = await tokens.find(token);
  assert.deepEqual(found, {
    id: issued.id,
    user: found?.user,
    expiresAt: issued.expiresAt,
    needsApproval: true,
    spent: false,
    bound: undefined,
  });
  for (let bit = 0; bit < 320; bit++) {
    const wrong = Uint8Array.from(token);
    wrong[bit >> 3] = (wrong[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    assert.equal(await tokens.find(wrong), undefined);
  }
  const row = await store.db.selectFrom('enrolment_tokens').selectAll().executeTakeFirstOrThrow();
  assert.equal(row.hash.length, 32);
  assert.equal(Buffer.from(JSON.stringify(row)).includes(Buffer.from(token.subarray(8)).toString('hex')), false);
  await store.close();
});

test('a token is bound once; a snapshot taken before it was bound or spent does not help', async () => {
  const { accounts, tokens, store } = await setUp();
  await accounts.add('ada');
  const token = await tokens.find((await tokens.issue('ada')).token.reveal());
  assert.ok(token);
  const bind = (device: string) =>
    store.transaction((db) =>
      tokens.bind(db, token, { device, algorithm: 'p256', publicKey: new Uint8Array(91), name: 'x', source: 's' }),
    );
  assert.equal(await bind('aa'), 'bound');
  assert.equal(await bind('bb'), 'taken');
  assert.equal(await bind('aa'), 'repeated');
  await store.transaction((db) => tokens.spend(db, 'aa'));
  assert.equal(await bind('aa'), 'taken');
  await store.close();
});

test('tokens that ended long ago are forgotten', async () => {
  const { accounts, tokens, clock, store } = await setUp();
  await accounts.add('ada');
  const old = (await tokens.issue('ada')).token.reveal();
  clock.advance(40 * 24 * 3_600_000);
  assert.ok(await tokens.find(old));
  await tokens.issue('ada');
  assert.equal(await tokens.find(old), undefined);
  await store.close();
});

test('every change is on record', async () => {
  const world = await setUp();
  const { accounts, devices, audit, store } = world;
  await accounts.add('ada', { groups: ['staff'] });
  const device = await addDevice(world, 'ada');
  await devices.approve(device);
  await devices.revoke(device);
  await devices.revoke(device);
  await accounts.disable('ada');
  await accounts.enable('ada');
  await accounts.delete('ada');
  assert.deepEqual(
    (await audit.list()).map(({ event, user }) => [event, user]),
    [
      'user.added',
      'token.issued',
      'device.enrolled',
      'device.revoked',
      'user.disabled',
      'user.enabled',
      'user.deleted',
    ].map((event) => [event, 'ada']),
  );
  await store.close();
});

test('an account follows the groups that its own source says, on record, and is made by no source that only rechecks', async () => {
  const { store, audit, accounts } = await setUp();
  await accounts.provision('ada', 'office', ['staff', 'board']);
  await accounts.add('bob', { groups: ['staff'] });
  assert.equal(await accounts.follow('ada', 'office', ['board', 'staff']), false, 'no news');
  assert.equal(await accounts.follow('ada', 'office', ['night']), true);
  assert.equal(await accounts.follow('ada', 'elsewhere', ['board']), false, 'of another source');
  assert.equal(await accounts.follow('bob', 'office', ['board']), false, 'an account of ours');
  assert.equal(await accounts.follow('eve', 'office', ['board']), false, 'deleted meanwhile');
  assert.deepEqual(
    (await accounts.list()).map(({ name, groups }) => [name, groups.join()]),
    [
      ['ada', 'night'],
      ['bob', 'staff'],
    ],
  );
  const [, ...changes] = await audit.list({ event: 'user.changed' });
  assert.deepEqual(
    changes.map(({ user, detail }) => [user, detail]),
    [['ada', { groups: 'night', from: 'office' }]],
  );
  assert.equal(await accounts.follow('ada', 'office', []), true);
  assert.deepEqual((await accounts.show('ada')).groups, []);
  await store.close();
});

test('a device is renamed, on record, by a name that people can read and no other', async () => {
  const world = await setUp();
  await world.accounts.add('ada');
  const id = await addDevice(world, 'ada');
  assert.equal((await world.devices.rename(id, 'the old laptop')).name, 'the old laptop');
  assert.deepEqual(
    (await world.devices.list('ada')).map(({ name }) => name),
    ['the old laptop'],
  );
  for (const text of ['', 'a\0b', 'two\nlines', 'x'.repeat(65)]) {
    await assert.rejects(world.devices.rename(id, text), { code: 'ERR_BAD_REQUEST' }, JSON.stringify(text));
  }
  await assert.rejects(world.devices.rename('0'.repeat(32), 'nobody'), { code: 'ERR_NOT_FOUND' });
  assert.deepEqual(
    (await world.audit.list({ event: 'device.renamed' })).map(({ user, device, detail }) => [user, device, detail]),
    [['ada', id, { from: 'x', to: 'the old laptop' }]],
  );
  await world.store.close();
});
