// Sessions that outlive their connections: resumed by their client, by nobody else, and not for ever.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { addressOf, exchange, Relay, type SimClient, until, World } from '../support/world.ts';

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
