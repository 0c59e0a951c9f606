// Sessions that outlive their connections: resumed by their client, by nobody else, and not for ever.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { FIRST_DELAY_MS } from '../../src/protocol/backoff.ts';
import { FrameType } from '../../src/protocol/frame.ts';
import { addressOf, exchange, type RawSession, Relay, type SimClient, until, World } from '../support/world.ts';

const SECOND = 1000;

/** Why sessions ended, by the record. */
function ends(world: World): unknown[] {
  return world.rows("select reason from audit where event = 'session.ended' order by id").map(({ reason }) => reason);
}

async function relayed(world: World, user = 'alice'): Promise<{ sim: SimClient; relay: Relay }> {
  const relay = await Relay.open(world.port);
  const sim = await world.connected(user, { serverPort: relay.port });
  return { sim, relay };
}

function cut(relay: Relay): void {
  for (const connection of relay.connections) connection.cut();
}

async function resumed({ client }: SimClient, times = 1): Promise<void> {
  await until(() => client.snapshot.resumes === times && client.snapshot.state === 'connected', `resume ${times}`);
}

test('REQ-RESUME-001: a client that loses its connections resumes its session, with its addresses, again and again', async () => {
  await using world = await World.open();
  const { sim, relay } = await relayed(world);
  await using _ = relay;
  const [before] = world.server.sessions;
  const addresses = [addressOf(sim, 4), addressOf(sim, 6)];
  for (const times of [1, 2, 3]) {
    cut(relay);
    await resumed(sim, times);
    assert.deepEqual([addressOf(sim, 4), addressOf(sim, 6)], addresses);
    await exchange(world, sim, 4);
    await exchange(world, sim, 6);
  }
  const [after] = world.server.sessions;
  assert.equal(after?.id, before?.id);
  assert.equal(after?.since, before?.since);
  assert.equal((await world.status()).counters.logins, 1);
  assert.equal((await world.status()).counters.resumes, 3);
  assert.deepEqual(
    world.rows('select epoch, next_key, detached_at from sessions').map((row) => ({ ...row })),
    [{ epoch: 3, next_key: null, detached_at: null }],
  );
  assert.equal(world.rows("select id from audit where event = 'session.resumed'").length, 3);
  assert.deepEqual(ends(world), []);
});

test('REQ-RESUME-008: a gateway that starts again takes its sessions up, and nobody else gets their addresses', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  const addresses = [addressOf(sim, 4), addressOf(sim, 6)];
  const [before] = world.server.sessions;
  await world.server.stop();
  await world.restart();
  const other = await world.connected('bob');
  assert.notEqual(addressOf(other, 4), addresses[0]);
  await resumed(sim);
  assert.deepEqual([addressOf(sim, 4), addressOf(sim, 6)], addresses);
  assert.equal(world.server.sessions.find(({ user }) => user === 'alice')?.id, before?.id);
  await exchange(world, sim, 4);
  await exchange(world, other, 4);
});

test('REQ-RETRY-004: however often a gateway has gone in order lately, its clients are back as soon as after the first time', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  for (const times of [1, 2, 3, 4]) {
    await world.server.stop();
    await world.restart();
    await resumed(sim, times);
  }
  const waits = world.lines.flatMap(({ reason, delayMs }) => {
    return reason === 'the server closed the session: shutdown' ? Number(delayMs) : [];
  });
  assert.equal(waits.length, 4);
  for (const wait of waits) assert.ok(wait <= FIRST_DELAY_MS, `${waits}`);
});

test('REQ-RESUME-009: after the grace period the session is over, and the client logs in anew', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ clock, config: { session: { graceSeconds: 60 } } });
  const { sim, relay } = await relayed(world);
  await using _ = relay;
  const [before] = world.server.sessions;
  await relay[Symbol.asyncDispose]();
  await until(() => world.server.sessions[0]?.channels === 0, 'the loss');
  assert.equal(world.server.sessions.length, 1, 'it waits for its client');
  clock.advance(61 * SECOND);
  await until(() => world.server.sessions.length === 0, 'the end of the grace period');
  await until(() => ends(world).length === 1, 'the record');
  assert.deepEqual(ends(world), ['dead_peer']);
  await sim.client.disconnect();
  const profile = withoutToken(await world.profile('alice'));
  const again = await world.connected('alice', { profile, deviceKey: sim.key });
  assert.notEqual(world.server.sessions[0]?.id, before?.id);
  await exchange(world, again);
});

test('REQ-SESSION-003: a session that waits for its client can be kicked, and its client then logs in again', async () => {
  await using world = await World.open();
  const { sim, relay } = await relayed(world);
  await using _ = relay;
  const id = world.server.sessions[0]?.id ?? '';
  await relay[Symbol.asyncDispose]();
  await until(() => world.server.sessions[0]?.channels === 0, 'the loss');
  assert.equal(world.server.kick(id), 1);
  assert.deepEqual(world.server.sessions, []);
  await until(() => world.rows('select id from sessions').length === 0, 'the record to go');
  await sim.client.disconnect();
});

/** A session of a raw client on a fresh device, with data inline, whose connection is then lost. */
async function lost(world: World, user = 'mallory'): Promise<RawSession> {
  const { token } = await world.profile(user);
  const raw = await world.raw();
  const session = await raw.login({ token: token?.reveal(), features: ['resume'] });
  world.keepSessions();
  const isWaiting = () => world.server.sessions.some((info) => info.user === user && info.waiting);
  raw.socket.destroy();
  await until(isWaiting, 'the loss');
  return session;
}

/** What the record says of refused resumes, the last one first. */
function refusals(world: World): string[] {
  return world
    .rows("select reason from audit where event = 'session.resume_refused' order by id desc")
    .map(({ reason }) => String(reason));
}

test('REQ-RESUME-002: the session secret with the key of another device resumes nothing: rejected, and on record', async () => {
  await using world = await World.open();
  const session = await lost(world);
  const stranger = await world.raw();
  await assert.rejects(stranger.resume(session, { device: DeviceKey.generate() }), { code: 'ERR_AUTH_REJECTED' });
  const { token } = await world.profile('eve');
  const raw = await world.raw();
  const other = await raw.login({ token: token?.reveal(), features: ['resume'] });
  const enrolled = await world.raw();
  await assert.rejects(enrolled.resume(session, { device: other.device }), { code: 'ERR_AUTH_REJECTED' });
  assert.equal(refusals(world).length, 2, 'both are on record');
  const { done } = await (await world.raw()).resume(session);
  await done();
});

test('REQ-RESUME-007: the device without the session secret resumes nothing: session_unknown', async () => {
  await using world = await World.open();
  const session = await lost(world);
  await assert.rejects((await world.raw()).resume(session, { secret: Buffer.alloc(32, 7) }), {
    code: 'ERR_SESSION_UNKNOWN',
  });
  const unknown = { ...session, accept: { ...session.accept, session: Buffer.alloc(16, 7) } };
  await assert.rejects((await world.raw()).resume(unknown), { code: 'ERR_SESSION_UNKNOWN' });
  const future = { ...session, accept: { ...session.accept, epoch: 5 } };
  await assert.rejects((await world.raw()).resume(future), { code: 'ERR_SESSION_UNKNOWN' });
  await (await (await world.raw()).resume(session)).done();
});

test('REQ-RESUME-002: the frames of a resume, sent again on another connection, prove nothing', async () => {
  await using world = await World.open();
  const session = await lost(world);
  const sent: Uint8Array[] = [];
  const keep = (frame: Uint8Array) => {
    sent.push(Uint8Array.from(frame));
    return frame;
  };
  const victim = await world.raw();
  await victim.resume(session, { tamper: keep });
  victim.socket.destroy();
  const thief = await world.raw();
  await thief.greeted();
  const [resume, answer] = sent;
  assert.ok(resume && answer);
  thief.write(resume);
  await thief.next(FrameType.challenge);
  thief.write(answer);
  assert.equal((await thief.message('reject')).code, 'session_unknown');
});

test('REQ-RESUME-004: a RESUMED that never arrived: the session is resumed from the same epoch', async () => {
  await using world = await World.open();
  const session = await lost(world);
  const first = await world.raw();
  await first.resume(session);
  first.socket.destroy();
  const second = await world.raw();
  const { session: next, done } = await second.resume(session);
  await done();
  assert.equal(next.accept.epoch, 1);
  assert.equal(world.server.sessions[0]?.waiting, false);
});

test('REQ-RESUME-004: a RESUME_DONE that never arrived: the session is resumed from either epoch, and from the next alone once it was proven', async () => {
  await using world = await World.open();
  const session = await lost(world);
  const first = await world.raw();
  const { session: next } = await first.resume(session);
  first.socket.destroy();
  const second = await world.raw();
  const { session: third, done } = await second.resume(next);
  assert.equal(third.accept.epoch, 2);
  await assert.rejects((await world.raw()).resume(session), { code: 'ERR_SESSION_REPLACED' });
  await done();
  await assert.rejects((await world.raw()).resume(next), { code: 'ERR_SESSION_REPLACED' });
  second.socket.destroy();
  await until(() => world.server.sessions[0]?.waiting === true, 'the loss');
  await (await (await world.raw()).resume(third)).done();
});

test('REQ-RESUME-004: an epoch that is over tells its thief nothing: session_unknown without the device', async () => {
  await using world = await World.open();
  const session = await lost(world);
  const holder = await world.raw();
  await (await holder.resume(session)).done();
  await assert.rejects((await world.raw()).resume(session, { device: DeviceKey.generate() }), {
    code: 'ERR_SESSION_UNKNOWN',
  });
  assert.equal(holder.isClosed, false);
});

test('REQ-RESUME-010: of two copies of a client that resume at once one has the session, and the other is told replaced', async () => {
  await using world = await World.open();
  const session = await lost(world);
  const copies = await Promise.all([world.raw(), world.raw()]);
  const [one, two] = await Promise.all(copies.map((raw) => raw.resume(session)));
  assert.ok(one && two);
  const outcomes = await Promise.allSettled([one.done(), two.done()]);
  assert.deepEqual(outcomes.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
  const loser = copies[outcomes.findIndex(({ status }) => status === 'rejected')];
  await loser?.closed();
  assert.equal(world.server.sessions.length, 1);
  assert.equal(world.server.sessions[0]?.waiting, false);
  assert.deepEqual(
    world.rows('select epoch, next_key from sessions').map((row) => ({ ...row })),
    [{ epoch: 1, next_key: null }],
  );
});

test('a stolen copy that resumes a live session throws its owner out, which is told: replaced', async () => {
  await using world = await World.open();
  const { token } = await world.profile('mallory');
  const owner = await world.raw();
  const session = await owner.login({ token: token?.reveal(), features: ['resume'] });
  world.keepSessions();
  await (await (await world.raw()).resume(session)).done();
  assert.equal((await owner.message('close')).reason, 'replaced');
  await owner.closed();
});

const rights: readonly [what: string, take: (world: World, device: string) => Promise<unknown>][] = [
  ['disabling the user', (world) => world.server.administration['user.disable']({ name: 'mallory' })],
  ['deleting the user', (world) => world.server.administration['user.delete']({ name: 'mallory' })],
  ['revoking the device', (world, id) => world.server.administration['device.revoke']({ id })],
  ['a kick', async (world) => world.server.kick(world.server.sessions[0]?.id ?? '')],
];
for (const [what, take] of rights) {
  test(`${what} ends a session that waits, also after a restart, and its resume is refused`, async () => {
    await using world = await World.open();
    const session = await lost(world);
    await world.server.stop();
    await world.restart();
    assert.equal(world.server.sessions.length, 1);
    await take(world, session.device.id.toHex());
    assert.deepEqual(world.server.sessions, []);
    await assert.rejects((await world.raw()).resume(session), { code: 'ERR_SESSION_UNKNOWN' });
    await until(() => world.rows('select id from sessions').length === 0, 'the record to go');
  });
}

test('a session that waits ends with the access token that it was opened with, also after a restart, and its resume is refused', async () => {
  const login = { groups: { robots: { steps: ['device' as const, 'token' as const] } } };
  await using world = await World.open({ config: { login } });
  const enrolled = await lost(world, 'robot');
  await world.server.administration['user.regroup']({ name: 'robot', add: ['robots'] });
  const { id, token } = await world.accessToken('robot', ['tunnel']);
  const raw = await world.raw();
  const accessToken = Buffer.from(token, 'base64url');
  const session = await raw.login({ device: enrolled.device, accessToken, features: ['resume'] });
  raw.socket.destroy();
  await until(() => world.server.sessions[0]?.waiting === true, 'the loss');
  await world.server.stop();
  await world.restart({ login });
  const again = await (await world.raw()).resume(session);
  await again.done();
  await until(() => world.server.sessions.length === 1, 'the session to be back');
  assert.deepEqual(await world.server.administration['token.revoke']({ id }), { kicked: 1 });
  await until(() => world.server.sessions.length === 0, 'its end');
  await assert.rejects((await world.raw()).resume(again.session), { code: 'ERR_SESSION_UNKNOWN' });
});

test('a user who was disabled while the gateway was down cannot resume', async () => {
  await using world = await World.open();
  const session = await lost(world);
  await world.server.stop();
  const store = new DatabaseSync(join(world.dir, 'store.sqlite'));
  store.exec("update users set disabled_at = 1 where name = 'mallory'");
  store.close();
  await world.restart();
  await assert.rejects((await world.raw()).resume(session), { code: 'ERR_AUTH_REJECTED' });
});

test('REQ-RESUME-007: a session of whom more is asked since cannot be resumed, also when the gateway was down meanwhile', async () => {
  await using world = await World.open();
  const session = await lost(world);
  await world.server.stop();
  await world.restart({ login: { steps: ['device', 'totp'] } });
  await assert.rejects((await world.raw()).resume(session), { code: 'ERR_SESSION_UNKNOWN' });
  assert.match(refusals(world)[0] ?? '', /more is asked of the user than was proven at the login/);
  await until(() => world.rows('select id from sessions').length === 0, 'the end of the session');
});

test('REQ-RESUME-007: an application that authorizes logins is asked for a resume, too', async () => {
  let isAllowed = true;
  await using world = await World.open({ hooks: { authorizeLogin: () => isAllowed } });
  const session = await lost(world);
  isAllowed = false;
  await assert.rejects((await world.raw()).resume(session), { code: 'ERR_AUTH_REJECTED' });
  assert.match(refusals(world)[0] ?? '', /the application does not authorize it/);
  isAllowed = true;
  await (await (await world.raw()).resume(session)).done();
});

for (const whenFull of ['refuse', 'replace-oldest'] as const) {
  test(`a user may have so many sessions: ${whenFull}`, async () => {
    await using world = await World.open({ config: { session: { perUser: 2, whenFull } } });
    const first = await world.connected('alice');
    const second = await world.connected('alice');
    await world.connected('bob');
    const third = await world.client('alice');
    if (whenFull === 'refuse') {
      await assert.rejects(third.client.connect({ once: true }), { code: 'ERR_TOO_MANY_SESSIONS' });
      await exchange(world, first);
      await first.client.disconnect();
      await until(() => world.server.sessions.length === 2, 'room');
      await exchange(world, await world.connected('alice'));
    } else {
      await third.client.connect({ once: true });
      await until(() => first.client.snapshot.state === 'stopped', 'the end of the oldest');
      assert.match(first.client.snapshot.lastError?.message ?? '', /replaced/);
      await exchange(world, third);
    }
    await exchange(world, second);
    assert.equal(world.server.sessions.length, 3);
  });
}
