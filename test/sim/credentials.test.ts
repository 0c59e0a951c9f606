/** Passwords, one-time codes and access tokens, from the client's answer to the gateway's verdict, over real TLS. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { URI } from 'otpauth';
import { ManualClock } from '../../src/base/clock.ts';
import type { AnswerSteps, AskedStep, StepAnswers } from '../../src/client/login-answers.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { exchange, stopsFinally, until, World } from '../support/world.ts';

const PASSWORD = 'correct horse battery staple';
const CHEAP = { argon2: { memoryKiB: 8192, passes: 1 } };
const STRICT = { login: { steps: ['device', 'password', 'totp'] as const }, accounts: CHEAP };

/** Answers, and remembers what was asked. */
function answering(answers: StepAnswers | (() => StepAnswers)): { answer: AnswerSteps; asked: string[][] } {
  const asked: string[][] = [];
  const answer = async (steps: readonly AskedStep[]): Promise<StepAnswers> => {
    asked.push(steps.map(({ kind }) => kind));
    return typeof answers === 'function' ? answers() : answers;
  };
  return { answer, asked };
}

async function openStrict() {
  const world = await World.open({ config: { ...STRICT, login: { steps: [...STRICT.login.steps] } } });
  const { administration } = world.server;
  await administration['user.add']({ name: 'ada', password: PASSWORD });
  world.secrets.add(PASSWORD);
  const { uri, recoveryCodes } = await administration['user.totp']({ name: 'ada' });
  for (const code of recoveryCodes) world.secrets.add(code);
  const app = URI.parse(uri);
  world.secrets.add(app.secret.base32);
  let step = 0;
  /** A code that has not been used: each is of a later step, within what is taken. */
  const code = (): string => app.generate({ timestamp: Date.now() + 30_000 * step++ } as never);
  return { world, administration, recoveryCodes, code };
}

test('a login with password and one-time code: enrolment asks for both, packets flow, one wrong answer opens nothing', async () => {
  const { world, code } = await openStrict();
  await using _world = world;
  const good = answering(() => ({ password: PASSWORD, totp: code() }));
  const sim = await world.connected('ada', { answer: good.answer });
  assert.deepEqual(good.asked, [['password', 'totp']]);
  await exchange(world, sim, 4);
  for (const wrong of [
    { password: 'wrong horse', totp: code() },
    { password: PASSWORD, totp: '000000' },
    { password: '', totp: '000000' },
    { password: 'x'.repeat(4000), totp: '000000' },
  ]) {
    const refused = await world.client('ada', { answer: answering(wrong).answer });
    await assert.rejects(refused.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  }
  assert.equal(world.rows('select id from devices').length, 1, 'a refused enrolment leaves no device');
  await exchange(world, sim, 4);
});

test('a person may take as long to type as the configuration says', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ clock, config: { accounts: CHEAP, login: { steps: ['password'] } } });
  await world.server.administration['user.add']({ name: 'ada', password: PASSWORD });
  world.secrets.add(PASSWORD);
  const slow = answering(() => {
    clock.advance(110_000);
    return { password: PASSWORD };
  });
  await exchange(world, await world.connected('ada', { answer: slow.answer }), 4);
});

test('a code is used up by the login that it opened, not by one that failed', async () => {
  const { world, code } = await openStrict();
  await using _world = world;
  const totp = code();
  const profile = await world.profile('ada');
  const wrong = await world.client('ada', { profile, answer: answering({ password: 'wrong', totp }).answer });
  await assert.rejects(wrong.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  await world.connected('ada', { profile, answer: answering({ password: PASSWORD, totp }).answer });
  const replayed = await world.client('ada', { answer: answering({ password: PASSWORD, totp }).answer });
  await assert.rejects(replayed.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  assert.match(JSON.stringify(world.rows('select reason from audit')), /the code has been used before/);
});

test('a recovery code opens one login', async () => {
  const { world, recoveryCodes } = await openStrict();
  await using _world = world;
  const [totp = ''] = recoveryCodes;
  await world.connected('ada', { answer: answering({ password: PASSWORD, totp }).answer });
  const again = await world.client('ada', { answer: answering({ password: PASSWORD, totp }).answer });
  await assert.rejects(again.client.connect(), { code: 'ERR_AUTH_REJECTED' });
});

test('a client that nobody answers for says so and stops; so does one whose answer fails', async () => {
  const { world } = await openStrict();
  await using _world = world;
  const silent = await world.client('ada');
  await assert.rejects(silent.client.connect(), { code: 'ERR_AUTH_NEEDED' });
  const fails = await world.client('ada', { answer: () => Promise.reject(new Error('the terminal is gone')) });
  await assert.rejects(fails.client.connect(), /the terminal is gone/);
  const nothing = await world.client('ada', { answer: async () => ({}) });
  await assert.rejects(nothing.client.connect());
});

test('a client that does not verify the server sends neither password nor code', async () => {
  const { world, code } = await openStrict();
  await using _world = world;
  const { answer, asked } = answering(() => ({ password: PASSWORD, totp: code() }));
  const sim = await world.client('ada', { verifyServer: false, answer });
  await assert.rejects(sim.client.connect(), { code: 'ERR_CERT_UNTRUSTED' });
  assert.deepEqual(asked, []);
});

test('steps by group: a machine logs in with its token, which ends with its sessions when it is revoked', async () => {
  await using world = await World.open({
    config: {
      accounts: CHEAP,
      login: { steps: ['device', 'password'], groups: { robots: { steps: ['device', 'token'] } } },
    },
  });
  const { administration } = world.server;
  await administration['user.add']({ name: 'robot', groups: ['robots'] });
  const { token, id } = await administration['token.issue']({ user: 'robot', name: 'lab', scopes: ['tunnel'] });
  const other = await administration['token.issue']({ user: 'robot', name: 'api only', scopes: ['api'] });
  for (const secret of [token, other.token]) world.keepSecret(Buffer.from(secret, 'base64url'));
  // The profile's token brings the device in; from then on its own token is asked for.
  const first = await world.connected('robot');
  await first.client.disconnect();
  const { key: deviceKey } = first;
  const options = { deviceKey, profile: withoutToken(await world.profile('robot')) };
  for (const wrong of [other.token, Buffer.alloc(40).toString('base64url')]) {
    const refused = await world.client('robot', { ...options, answer: answering({ token: wrong }).answer });
    await assert.rejects(refused.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  }
  const malformed = await world.client('robot', { ...options, answer: answering({ token: 'abc' }).answer });
  await assert.rejects(malformed.client.connect(), { code: 'ERR_USAGE' });
  const sim = await world.connected('robot', { ...options, answer: answering({ token }).answer });
  await exchange(world, sim, 4);
  assert.deepEqual(await administration['token.revoke']({ id }), { kicked: 1 });
  await stopsFinally(sim, 'revoked');
  const late = await world.client('robot', { ...options, answer: answering({ token }).answer });
  await assert.rejects(late.client.connect(), { code: 'ERR_AUTH_REJECTED' });
});

test('a token that is revoked ends the sessions that it has opened, also after a restart, and those of no other token', async () => {
  const login = { steps: ['device' as const], groups: { robots: { steps: ['device' as const, 'token' as const] } } };
  await using world = await World.open({ config: { login } });
  const { administration } = world.server;
  await administration['user.add']({ name: 'robot', groups: ['robots'] });
  const connected = async (token: string) => {
    const first = await world.connected('robot');
    await first.client.disconnect();
    const profile = withoutToken(await world.profile('robot'));
    return await world.connected('robot', { deviceKey: first.key, profile, answer: answering({ token }).answer });
  };
  const one = await world.accessToken('robot', ['tunnel']);
  const other = await world.accessToken('robot', ['tunnel']);
  const third = await world.accessToken('robot', ['tunnel']);
  const unused = await world.accessToken('robot', ['tunnel']);
  const [ofOne, ofOneToo, ofOther, ofThird] = [
    await connected(one.token),
    await connected(one.token),
    await connected(other.token),
    await connected(third.token),
  ];
  // A profile's token, which is none of these, has just opened this one.
  const enrolled = await world.connected('robot');
  assert.deepEqual(await administration['token.revoke']({ id: unused.id }), { kicked: 0 });
  assert.deepEqual(await administration['token.revoke']({ id: one.id.toUpperCase() }), { kicked: 2 });
  await stopsFinally(ofOne, 'revoked');
  await stopsFinally(ofOneToo, 'revoked');
  for (const stays of [ofOther, ofThird, enrolled]) await exchange(world, stays, 4);

  await world.server.stop();
  // As it is in the store of a version that did not note tokens.
  const store = new DatabaseSync(join(world.dir, 'store.sqlite'));
  store.prepare("update sessions set token = '' where token = ?").run(third.id);
  store.close();
  await world.restart();
  const again = [ofOther, ofThird, enrolled];
  await until(() => again.every(({ client }) => client.snapshot.resumes > 0), 'all to resume');
  for (const stays of again) await exchange(world, stays, 4);
  const revoked = await world.server.administration['token.revoke']({ id: other.id });
  assert.deepEqual(revoked, { kicked: 2 }, 'of which token a session is must be known for it to stay');
  await stopsFinally(ofOther, 'revoked');
  await stopsFinally(ofThird, 'revoked');
  await exchange(world, enrolled, 4);
});

test('a token that is revoked while a login with it is judged opens nothing', async () => {
  let revoke: () => Promise<unknown> = async () => undefined;
  const login = { steps: ['device' as const, 'token' as const] };
  await using world = await World.open({
    config: { login },
    hooks: {
      authorizeLogin: async () => {
        await revoke();
        return true;
      },
    },
  });
  const first = await world.connected('robot');
  await first.client.disconnect();
  const { id, token } = await world.accessToken('robot', ['tunnel']);
  const unused = await world.accessToken('robot', ['tunnel']);
  const profile = withoutToken(await world.profile('robot'));
  const attempt = () => world.client('robot', { deviceKey: first.key, profile, answer: answering({ token }).answer });
  revoke = () => world.server.administration['token.revoke']({ id: unused.id });
  const good = await attempt();
  await good.client.connect({ once: true });
  await good.client.disconnect();
  revoke = () => world.server.administration['token.revoke']({ id });
  await assert.rejects((await attempt()).client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  assert.deepEqual(world.server.sessions, []);
});

test('a reload that asks for more ends the sessions that proved less, and leaves the others', async () => {
  await using world = await World.open({ config: { accounts: CHEAP } });
  const { administration } = world.server;
  await administration['user.add']({ name: 'ada', groups: ['staff'], password: PASSWORD });
  const [ada, bob] = [await world.connected('ada'), await world.connected('bob')];
  const login = { groups: { staff: { steps: ['device' as const, 'password' as const] } } };
  const { applied, needsRestart } = await world.server.reload(world.config({ login, accounts: CHEAP }));
  assert.deepEqual([applied, needsRestart], [['login'], []]);
  await stopsFinally(ada, 'revoked');
  await exchange(world, bob, 4);
  // Joining the group has the same effect; a new login then passes its steps, too.
  assert.equal((await administration['user.regroup']({ name: 'bob', add: ['staff'] })).kicked, 1);
  await stopsFinally(bob, 'revoked');
  const again = await world.client('ada', {
    deviceKey: ada.key,
    profile: withoutToken(await world.profile('ada')),
    answer: answering({ password: PASSWORD }).answer,
  });
  await again.client.connect();
  await exchange(world, again, 4);
});

/** The frame of a message with one text of it replaced by another. */
function withText(frame: Uint8Array, from: string, to: string): Uint8Array {
  const text = Buffer.from(frame.subarray(4)).toString();
  if (!text.includes(JSON.stringify(from))) return frame;
  const changed = Buffer.from(text.replace(JSON.stringify(from), JSON.stringify(to)));
  return encodeFrame(frame[0] === FrameType.login ? FrameType.login : FrameType.answer, changed);
}

const REJECTED = 'ERR_AUTH_REJECTED';
const badWords: readonly [what: string, user: string, password: string, code: string | undefined][] = [
  ['the right ones', 'ada', PASSWORD, undefined],
  ['a wrong password', 'ada', `${PASSWORD}!`, REJECTED],
  ['an empty password', 'ada', '', REJECTED],
  ['a password with a NUL before its end', 'ada', `${PASSWORD}\0`, 'ERR_MESSAGE_SYNTAX'],
  ['a password with a NUL after its beginning', 'ada', `\0${PASSWORD}`, 'ERR_MESSAGE_SYNTAX'],
  ['a password of one byte more than can be set', 'ada', 'x'.repeat(1025), REJECTED],
  ['a password of the longest that an answer holds', 'ada', 'x'.repeat(4096), REJECTED],
  ['a password that no answer holds', 'ada', 'x'.repeat(4097), 'ERR_MESSAGE_FIELD'],
  ['another name', 'bob', PASSWORD, REJECTED],
  ['an unknown name', 'eve', PASSWORD, REJECTED],
  ['an empty name', '', PASSWORD, 'ERR_MESSAGE_FIELD'],
  ['a name with a space at its end', 'ada ', PASSWORD, REJECTED],
  ['the longest name that a message holds', 'x'.repeat(128), PASSWORD, REJECTED],
  ['a name that no message holds', 'x'.repeat(129), PASSWORD, 'ERR_MESSAGE_FIELD'],
  ['a name with a NUL before its end', 'ada\0', PASSWORD, 'ERR_MESSAGE_SYNTAX'],
];

test('names and passwords that are wrong, empty, too long or have a NUL let nobody in, and end nothing but their own login', async () => {
  await using world = await World.open({
    config: { accounts: CHEAP, login: { steps: ['device', 'password'] }, limits: { allow: ['127.0.0.0/8'] } },
  });
  const { administration } = world.server;
  await administration['user.add']({ name: 'ada', password: PASSWORD });
  await administration['user.add']({ name: 'bob', password: 'the password of somebody else' });
  const { answer } = answering({ password: 'the password of somebody else' });
  const bystander = await world.connected('bob', { answer });
  const sim = await world.connected('ada', { answer: answering({ password: PASSWORD }).answer });
  const device = sim.key;
  await sim.client.disconnect();
  for (const [what, user, password, code] of badWords) {
    const raw = await world.raw();
    const known = world.lines.length;
    const came = await raw
      .login({
        device,
        user: code?.startsWith('ERR_MESSAGE') === true ? 'instead' : user,
        password: 'in its place',
        tamper: (frame) => withText(withText(frame, 'instead', user), 'in its place', password),
      })
      .then(
        () => undefined,
        (error: unknown) => Reflect.get(error as Error, 'code') ?? 'closed',
      );
    if (code?.startsWith('ERR_MESSAGE') === true) {
      await until(() => world.lines.slice(known).some((line) => line.code === code), `${code} for ${what}`);
    } else {
      assert.equal(came, code, what);
    }
    await exchange(world, bystander);
    raw.socket.destroy();
    await until(() => world.server.sessions.length === 1, `the end of ${what}`);
  }
});

test('a new password ends the sessions that the old one opened, and the old one opens nothing', async () => {
  await using world = await World.open({ config: { accounts: CHEAP, login: { steps: ['device', 'password'] } } });
  const { administration } = world.server;
  await administration['user.add']({ name: 'ada', password: PASSWORD });
  const sim = await world.connected('ada', { answer: answering({ password: PASSWORD }).answer });
  assert.deepEqual(await administration['user.password']({ name: 'ada', password: 'another long password' }), {
    kicked: 1,
  });
  await stopsFinally(sim, 'revoked');
  const options = { deviceKey: sim.key, profile: withoutToken(await world.profile('ada')) };
  const old = await world.client('ada', { ...options, answer: answering({ password: PASSWORD }).answer });
  await assert.rejects(old.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  await world.connected('ada', { ...options, answer: answering({ password: 'another long password' }).answer });
});
