// What the audit record says of what no step of a login sees: certificates, rules, and refusals after the steps have passed.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { withoutToken } from '../../src/control/profile.ts';
import { formatPrefix } from '../../src/ip/address.ts';
import { exchange, NAMES, until, World } from '../support/world.ts';

/** Events, users, devices, reasons and details of a kind, oldest first. */
async function recorded(world: World, event: string) {
  return (await world.server.administration['audit.list']({ event })).map(({ at: _, id: __, ...record }) => record);
}

test('certificates that are issued, renewed and revoked are on record by name and serial number', async () => {
  await using world = await World.open();
  const { administration } = world.server;
  const { certificate: issued } = await administration['pki.issue']({ name: 'ada' });
  const renewed = await administration['pki.renew']({ name: 'ada' });
  const server = await administration['pki.renew']({});
  await administration['pki.revoke']({ serial: issued.serial });
  assert.deepEqual(
    (await recorded(world, 'certificate')).map(({ event, detail: { role, name, serial } }) => [
      event,
      role,
      name,
      serial,
    ]),
    [
      ['certificate.issued', 'client', 'ada', issued.serial],
      ['certificate.renewed', 'client', 'ada', renewed.serial],
      ['certificate.renewed', 'server', NAMES.join(), server.serial],
      ['certificate.revoked', 'client', 'ada', issued.serial],
    ],
  );
});

test('a login and its refusal say who came, from where, with which device, by which steps, and what came of it', async () => {
  const login = { steps: ['device' as const, 'password' as const] };
  await using world = await World.open({ config: { login, accounts: { argon2: { memoryKiB: 8192, passes: 1 } } } });
  const { administration } = world.server;
  const password = 'correct horse battery staple';
  for (const name of ['ada', 'bob']) await administration['user.add']({ name, password });
  const ada = await world.connected('ada', { answer: async () => ({ password }) });
  const device = ada.key.id.toHex();
  const bob = await world.client('bob', { answer: async () => ({ password: 'wrong horse' }) });
  await assert.rejects(bob.client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  const [{ source: from = '', ...accepted } = {}, ...more] = await recorded(world, 'login.accepted');
  const detail = { purpose: 'enrol', steps: 'device,token,password' };
  assert.deepEqual(more, []);
  assert.deepEqual(accepted, { event: 'login.accepted', user: 'ada', device, reason: null, detail });
  const [{ source: at = '', device: his, ...refused } = {}, ...others] = await recorded(world, 'login.refused');
  assert.deepEqual(others, []);
  const reason = 'the password is wrong';
  assert.deepEqual(refused, { event: 'login.refused', user: 'bob', reason, detail });
  assert.match(String(his), /^[0-9a-f]{32}$/);
  for (const source of [from, at]) assert.match(String(source), /^127\.0\.0\.1:\d+$/);
});

test('rules that a reload or a restart changes are on record, and others are not again', async () => {
  await using world = await World.open();
  const changes = async () => (await recorded(world, 'policy.changed')).map(({ detail }) => detail);
  const [first, ...none] = await changes();
  assert.deepEqual(none, []);
  assert.equal(JSON.parse(String(first?.login)).steps.join(), 'device');
  const login = { groups: { staff: { steps: ['device' as const, 'totp' as const] } } };
  await world.server.reload(world.config({ login }));
  await world.server.stop();
  await world.restart({ login, clientToClient: true });
  const [, reloaded, restarted, ...more] = await changes();
  assert.deepEqual(Object.keys(reloaded ?? {}), ['login']);
  assert.deepEqual(JSON.parse(String(reloaded?.login)).groups, login.groups);
  assert.deepEqual(restarted, { clientToClient: 'true' });
  assert.deepEqual(more, []);
});

test('a reload that cannot be put on record is in force, and its answer says both', async () => {
  await using world = await World.open();
  const other = new DatabaseSync(join(world.dir, 'store.sqlite'));
  const next = world.config({ routes: ['192.0.2.0/24'] });
  try {
    other.exec('begin immediate');
    const { applied, warnings } = await world.server.reload(next);
    assert.deepEqual(applied, ['routes']);
    assert.match(warnings.join(), /is in force, and could not be put on record: .*another process is writing/);
  } finally {
    other.exec('rollback');
    other.close();
  }
  const sim = await world.connected('ada');
  assert.deepEqual(sim.client.snapshot.config?.routes.map(formatPrefix), ['192.0.2.0/24']);
  // The next look at the rules makes up for it.
  await world.server.reload(next);
  const changes = (await recorded(world, 'policy.changed')).map(({ detail }) => detail);
  assert.equal(changes.at(-1)?.routes, '["192.0.2.0/24"]');
});

const overruled: readonly [what: string, reason: RegExp, config: object][] = [
  ['too many sessions of the user', /the user has 1 sessions, as many as one may/, { session: { perUser: 1 } }],
  ['too many sessions', /the gateway has 1 sessions, as many as it may/, { limits: { sessions: 1 } }],
  ['no free address', /there is no free address/, { pool: ['10.20.0.0/30'] }],
];
for (const [what, reason, config] of overruled) {
  test(`a login that is refused after its steps have passed is on record as refused: ${what}`, async () => {
    await using world = await World.open({ config });
    const first = await world.connected('ada');
    const second = await world.client('ada');
    await assert.rejects(second.client.connect({ once: true }));
    const [refusal, ...more] = await recorded(world, 'login.refused');
    assert.deepEqual(more, []);
    assert.match(String(refusal?.reason), reason);
    assert.deepEqual([refusal?.user, refusal?.device], ['ada', second.key.id.toHex()]);
    assert.match(String(refusal?.source), /^127\.0\.0\.1:\d+$/);
    await exchange(world, first);
  });
}

test('a login that the application, or a right that was taken away meanwhile, refuses is on record as refused', async () => {
  const world = await World.open({
    hooks: {
      authorizeLogin: async ({ user }) => {
        if (user === 'bob') await world.server.administration['user.disable']({ name: 'bob' });
        return user !== 'ada';
      },
    },
  });
  await using _ = world;
  for (const user of ['ada', 'bob']) {
    await assert.rejects((await world.client(user)).client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  }
  assert.deepEqual(
    (await recorded(world, 'login.refused')).map(({ user, reason }) => [user, reason]),
    [
      ['ada', 'the application does not authorize it'],
      ['bob', 'a right that it rests on was taken away meanwhile'],
    ],
  );
});

test('a user of whom more is asked, or who is deleted, while a login is judged gets no session', async () => {
  let change: (world: World, user: string) => Promise<unknown> = async () => {};
  const world = await World.open({
    config: { login: { groups: { staff: { steps: ['device', 'totp'] } } } },
    hooks: {
      authorizeLogin: async ({ user }) => {
        await change(world, user);
        return true;
      },
    },
  });
  await using _ = world;
  const sim = await world.connected('ada');
  await sim.client.disconnect();
  const again = async () =>
    await world.client('ada', { deviceKey: sim.key, profile: withoutToken(await world.profile('ada')) });
  change = (at, name) => at.server.administration['user.regroup']({ name, add: ['others'] });
  const allowed = await again();
  await allowed.client.connect({ once: true });
  await exchange(world, allowed);
  await allowed.client.disconnect();
  change = (at, name) => at.server.administration['user.regroup']({ name, add: ['staff'] });
  await assert.rejects((await again()).client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  await world.server.administration['user.regroup']({ name: 'ada', remove: ['staff'] });
  change = (at, name) => at.server.administration['user.delete']({ name });
  await assert.rejects((await again()).client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  assert.deepEqual(world.server.sessions, []);
  assert.equal((await world.status()).pool[0]?.used, 0, 'the leases are free again');
});

test('a gateway removes records that are older than it is to keep them, and none with keepDays = 0', async () => {
  await using world = await World.open({ config: { audit: { keepDays: 0 } } });
  const old = new DatabaseSync(join(world.dir, 'store.sqlite'));
  old
    .prepare("insert into audit (id, at, event, user, detail) values (?, ?, 'user.added', 'bygone', '{}')")
    .run('00000000000000000000000000000001', 1);
  old.close();
  const bygone = async () => (await recorded(world, 'user.added')).filter(({ user }) => user === 'bygone').length;
  await world.server.stop();
  await world.restart({ audit: { keepDays: 0 } });
  assert.equal(await bygone(), 1);
  await world.server.stop();
  await world.restart({ audit: { keepDays: 1 } });
  await until(async () => (await bygone()) === 0, 'the removal');
  assert.equal((await recorded(world, 'audit.pruned')).length, 1);
});

test('a database that another program holds: live sessions go on, a login is refused as no fault of its user, and then all is well', async () => {
  await using world = await World.open();
  const ada = await world.connected('ada');
  const eve = await world.client('eve');
  const other = new DatabaseSync(join(world.dir, 'store.sqlite'));
  try {
    other.exec('begin immediate');
    await assert.rejects(eve.client.connect({ once: true }), { code: 'ERR_PEER_GONE' });
    const told = world.lines.find(({ msg }) => msg === 'a login could not be judged');
    assert.match(JSON.stringify(told), /ERR_STORE/);
    await exchange(world, ada);
    assert.equal(world.server.sessions.length, 1);
  } finally {
    other.exec('rollback');
    other.close();
  }
  await exchange(world, await world.connected('eve'));
  await exchange(world, ada);
});
