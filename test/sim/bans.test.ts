// What failed logins bring upon those who make them, and upon nobody else: the whole stack, over real TLS.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import type { AnswerSteps } from '../../src/client/login-answers.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { exchange, until, World } from '../support/world.ts';

const PASSWORD = 'correct horse battery staple';
const CONFIG = {
  login: { steps: ['device' as const, 'password' as const] },
  accounts: { argon2: { memoryKiB: 8192, passes: 1 } },
};
const LIMITS = { delayAfter: 3, failuresPerUser: 5, failuresPerSource: 12, banSeconds: 600 };

const answering =
  (password: string): AnswerSteps =>
  async () => ({ password });

async function open(limits: object = LIMITS) {
  const clock = new ManualClock();
  const world = await World.open({ clock, config: { ...CONFIG, limits } });
  for (const name of ['ada', 'bob']) await world.server.administration['user.add']({ name, password: PASSWORD });
  world.secrets.add(PASSWORD);
  return { world, clock, administration: world.server.administration };
}

/** Guesses once; returns the code of the refusal, and lets the wait that follows pass. */
async function guess(world: World, clock: ManualClock, name: string, password = 'wrong horse'): Promise<string> {
  const sim = await world.client(name, { answer: answering(password) });
  const code = await sim.client.connect({ once: true }).then(
    () => 'in',
    (error: { code: string }) => error.code,
  );
  clock.advance(60_000);
  return code;
}

function refusals(world: World): string[] {
  return world
    .rows("select reason from audit where event = 'login.refused' order by id")
    .map(({ reason }) => String(reason));
}

test('guesses at a password end in a ban of the name, which refuses the right password with the same code, and names its end', async () => {
  const { world, clock, administration } = await open();
  await using _world = world;
  for (let i = 0; i < LIMITS.failuresPerUser; i++) {
    assert.equal(await guess(world, clock, 'ada'), 'ERR_AUTH_REJECTED');
  }
  assert.equal(await guess(world, clock, 'ada', PASSWORD), 'ERR_AUTH_REJECTED');
  assert.match(refusals(world).at(-1) ?? '', /the name ada is banned until \d{4}-.* after 5 failed logins/);
  const [ban] = await administration['server.bans']({});
  assert.deepEqual([ban?.kind, ban?.key, ban?.failures, ban?.banned], ['name', 'ada', 5, true]);
  assert.equal(world.rows("select id from audit where event = 'ban.begun'").length, 1);
  assert.ok(world.lines.some(({ msg, key }) => msg === 'banned for failed logins' && key === 'ada'));
  assert.equal(await guess(world, clock, 'bob', PASSWORD), 'in', 'nobody else is banned');

  assert.deepEqual(await administration['user.unlock']({ name: 'ada' }), { unlocked: true });
  assert.equal(await guess(world, clock, 'ada', PASSWORD), 'in');
  assert.deepEqual(await administration['user.unlock']({ name: 'ada' }), { unlocked: false });
});

test('a ban of a name ends by itself', async () => {
  const { world, clock } = await open();
  await using _world = world;
  for (let i = 0; i < LIMITS.failuresPerUser; i++) await guess(world, clock, 'ada');
  assert.equal(await guess(world, clock, 'ada', PASSWORD), 'ERR_AUTH_REJECTED');
  clock.advance(LIMITS.banSeconds * 1000);
  assert.equal(await guess(world, clock, 'ada', PASSWORD), 'in');
});

test('what strangers do with a name keeps neither the live session of its user nor the next login of its device', async () => {
  const { world, clock } = await open();
  await using _world = world;
  const profile = await world.profile('ada');
  const own = await world.connected('ada', { profile, answer: answering(PASSWORD) });
  for (let i = 0; i < LIMITS.failuresPerUser + 1; i++) await guess(world, clock, 'ada');
  await exchange(world, own, 4);
  await own.client.disconnect();
  const again = await world.connected('ada', {
    profile: withoutToken(profile),
    deviceKey: own.key,
    answer: answering(PASSWORD),
  });
  await exchange(world, again, 4);
});

test('a source that guesses at many names is refused before TLS, and let in again by unban', async () => {
  const { world, clock, administration } = await open();
  await using _world = world;
  const live = await world.connected('bob', { answer: answering(PASSWORD) });
  for (let i = 0; i < LIMITS.failuresPerSource; i++) {
    const name = `ghost${i}`;
    await world.server.administration['user.add']({ name, password: PASSWORD });
    assert.equal(await guess(world, clock, name), 'ERR_AUTH_REJECTED');
  }
  assert.match(await guess(world, clock, 'ada', PASSWORD), /^ERR_(CONNECT|TLS|CONNECTION)/);
  const { refusedBanned } = (await world.status()).counters;
  assert.ok((refusedBanned ?? 0) >= 1);
  await exchange(world, live, 4);
  await assert.rejects(async () => await administration['server.unban']({ source: '192.0.2.1' }), {
    code: 'ERR_NOT_FOUND',
  });
  await administration['server.unban']({ source: '127.0.0.1' });
  assert.equal(await guess(world, clock, 'ada', PASSWORD), 'in');
});

test('failed logins from an allowed network have no consequence', async () => {
  const { world, clock, administration } = await open({ ...LIMITS, allow: ['127.0.0.0/8', '::1/128'] });
  await using _world = world;
  for (let i = 0; i < LIMITS.failuresPerUser + 2; i++) await guess(world, clock, 'ada');
  assert.deepEqual(await administration['server.bans']({}), []);
  assert.equal(await guess(world, clock, 'ada', PASSWORD), 'in');
});

test('a ban outlives a restart of the gateway', async () => {
  const { world, clock } = await open();
  await using _world = world;
  for (let i = 0; i < LIMITS.failuresPerUser; i++) await guess(world, clock, 'ada');
  await world.server.stop();
  await world.restart();
  assert.equal(await guess(world, clock, 'ada', PASSWORD), 'ERR_AUTH_REJECTED');
  await until(() => refusals(world).at(-1)?.includes('is banned until') === true, 'the record of it');
});
