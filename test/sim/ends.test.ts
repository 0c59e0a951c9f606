// How sessions end: by an operator, by another login, by time and by silence; and what the client does then.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import { withoutToken } from '../../src/control/profile.ts';
import { FrameType } from '../../src/protocol/frame.ts';
import type { CloseReason } from '../../src/protocol/messages.ts';
import { exchange, Relay, stopsFinally, until, World } from '../support/world.ts';

const SECOND = 1000;
const LOOK_MS = 1300;

/** Why a session ended, by the record. */
function recorded(world: World): unknown[] {
  return world.rows("select reason from audit where event = 'session.ended' order by id").map(({ reason }) => reason);
}

const operations: readonly [
  name: string,
  reason: CloseReason,
  act: (world: World, device: string) => Promise<number>,
][] = [
  [
    'a kick',
    'admin',
    async (world) => world.server.kick(world.server.sessions.find(({ user }) => user === 'alice')?.id ?? ''),
  ],
  [
    'disabling the user',
    'revoked',
    async (world) => (await world.server.administration['user.disable']({ name: 'alice' })).kicked,
  ],
  [
    'deleting the user',
    'revoked',
    async (world) => (await world.server.administration['user.delete']({ name: 'alice' })).kicked,
  ],
  [
    'revoking the device',
    'revoked',
    async (world, id) => (await world.server.administration['device.revoke']({ id })).kicked,
  ],
];
for (const [name, reason, act] of operations) {
  test(`REQ-SESSION-003: ${name} ends the session at once on both its connections, and the client does not come back`, async () => {
    await using world = await World.open();
    const bystander = await world.connected('bob');
    const relayed = await Relay.open(world.port);
    await using _ = relayed;
    const sim = await world.connected('alice', { serverPort: relayed.port });
    const since = performance.now();
    assert.equal(await act(world, sim.key.id.toHex()), 1);
    assert.deepEqual(
      world.server.sessions.map(({ user }) => user),
      ['bob'],
      'the session is gone when the operation answers',
    );
    await stopsFinally(sim, reason);
    await until(() => relayed.connections.every(({ isOpen }) => !isOpen), 'the end of both connections', SECOND);
    assert.ok(performance.now() - since < SECOND, 'within a second');
    await until(() => recorded(world).includes(reason) || name === 'deleting the user', 'the record');
    await exchange(world, bystander, 4);
  });
}

test('after a kick a client may log in again; after a revocation it is rejected, and that is final', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  const login = { profile: withoutToken(await world.profile('alice')), deviceKey: sim.key };
  world.server.kick(world.server.sessions[0]?.id ?? '');
  await stopsFinally(sim, 'admin');
  const again = await world.connected('alice', login);
  await world.server.administration['user.disable']({ name: 'alice' });
  await stopsFinally(again, 'revoked');
  const refused = await world.client('alice', login);
  await assert.rejects(refused.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  assert.equal(refused.client.snapshot.state, 'stopped');
  await world.server.administration['user.enable']({ name: 'alice' });
  await exchange(world, await world.connected('alice', login));
});

test('REQ-SESSION-001: a second login of a device replaces its session, which does not fight back', async () => {
  await using world = await World.open();
  const first = await world.connected('alice');
  const profile = withoutToken(await world.profile('alice'));
  const second = await world.connected('alice', { profile, deviceKey: first.key });
  await stopsFinally(first, 'replaced');
  assert.equal(world.server.sessions.length, 1);
  await exchange(world, second, 4);
  await exchange(world, second, 6);
  assert.deepEqual(recorded(world), ['replaced']);
});

test('REQ-SESSION-001: many logins of one device at once leave one session, one lease and one record', async () => {
  await using world = await World.open();
  const first = await world.connected('alice');
  const profile = withoutToken(await world.profile('alice'));
  const login = { profile, deviceKey: first.key };
  const sims = await Promise.all(Array.from({ length: 12 }, () => world.client('alice', login)));
  const outcomes = await Promise.allSettled(sims.map(({ client }) => client.connect({ once: true })));
  await until(
    () => sims.filter(({ client }) => client.snapshot.state === 'connected').length === 1,
    'all but one to give up',
  );
  for (const outcome of outcomes) {
    if (outcome.status === 'rejected') assert.match(outcome.reason.code, /^ERR_SESSION_REPLACED$/);
  }
  const winner = sims.find(({ client }) => client.snapshot.state === 'connected');
  assert.ok(winner);
  assert.equal(world.server.sessions.length, 1);
  assert.equal((await world.status()).pool[0]?.used, 1);
  await until(() => world.rows('select id from sessions').length === 1, 'one record');
  await exchange(world, winner, 4);
  await exchange(world, winner, 6);
});

test('a user who is disabled while logging in gets no session', async () => {
  const world = await World.open({
    hooks: {
      authorizeLogin: async ({ user }) => {
        if (user === 'alice') await world.server.administration['user.disable']({ name: 'alice' });
        return true;
      },
    },
  });
  await using _ = world;
  const sim = await world.client('alice');
  await assert.rejects(sim.client.connect({ once: true }), { code: 'ERR_AUTH_REJECTED' });
  assert.deepEqual(world.server.sessions, []);
  assert.equal((await world.status()).pool[0]?.used, 0, 'the lease is free again');
  await exchange(world, await world.connected('bob'));
});

test('a client ends its own session: the gateway frees everything at once', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  await sim.client.disconnect();
  await until(() => world.server.sessions.length === 0, 'the end of the session', SECOND);
  await until(() => world.rows('select id from sessions').length === 0, 'the end of the record', SECOND);
  assert.equal((await world.status()).pool[0]?.used, 0);
  assert.deepEqual(sim.states, ['connecting', 'connected', 'stopping', 'stopped']);
  await assert.rejects(sim.client.echo(new Uint8Array(1)), { code: 'ERR_PEER_GONE' });
});

test('a lost control connection ends the session, and the client comes back', async () => {
  await using world = await World.open();
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { serverPort: relay.port });
  relay.connections[0]?.cut();
  await until(() => sim.states.includes('waiting'), 'the loss');
  await until(() => sim.client.snapshot.state === 'connected', 'the client to come back');
  await exchange(world, sim, 4);
  assert.equal(world.server.sessions.length, 1);
});

/** Tells how often it was looked at: when nothing else happens, that is once per tick of the gateway. */
class WatchedClock extends ManualClock {
  reads = 0;

  override now(): number {
    this.reads += 1;
    return super.now();
  }
}

/** Whoever has this clock has looked at it since, and so at what came before. */
async function ticks(clock: WatchedClock): Promise<void> {
  const { reads } = clock;
  const since = performance.now();
  // Others read the clock, too: within this time each end has looked at its sessions, which it does once a second.
  await until(() => clock.reads > reads && performance.now() - since > LOOK_MS, 'a tick');
}

/** A world whose gateway runs on a clock of its own. */
async function timed(session: Record<string, number>): Promise<{ world: World; clock: WatchedClock }> {
  const clock = new WatchedClock(Date.now());
  return { world: await World.open({ clock, config: { session } }), clock };
}

test('PING goes out after silence, its PONG gives the round trip, and a session lives on', async () => {
  const { world, clock } = await timed({ pingSeconds: 20, deadSeconds: 60 });
  await using _ = world;
  const ours = new WatchedClock(Date.now());
  const sim = await world.connected('alice', { clock: ours });
  assert.equal(world.server.sessions[0]?.roundTripMs, null);
  await ticks(clock);
  clock.advance(21 * SECOND);
  await until(() => typeof world.server.sessions[0]?.roundTripMs === 'number', "the gateway's round trip");
  assert.equal(world.server.sessions[0]?.roundTripMs, 0, 'by the clock that was handed in');
  await ticks(ours);
  ours.advance(26 * SECOND);
  await until(() => sim.client.snapshot.roundTripMs !== undefined, "the client's round trip");
  for (let step = 0; step < 3; step++) {
    clock.advance(30 * SECOND);
    await ticks(clock);
    assert.equal(world.server.sessions.length, 1, 'a client that answers lives');
  }
  await exchange(world, sim, 4);
});

test('however many sessions there are, each is asked whether it lives, and all that lose their connections at once wait', async () => {
  const { world, clock } = await timed({ pingSeconds: 20, deadSeconds: 60 });
  await using _ = world;
  const raws = await Promise.all(
    Array.from({ length: 40 }, async (_one, index) => {
      const { token } = await world.profile(`user${index}`);
      const raw = await world.raw();
      await raw.login({ token: token?.reveal(), features: ['resume'] });
      return raw;
    }),
  );
  world.keepSessions();
  await ticks(clock);
  clock.advance(21 * SECOND);
  await Promise.all(raws.map((raw) => raw.next(FrameType.ping)));
  for (const { socket } of raws) socket.destroy();
  await until(() => world.server.sessions.every(({ waiting }) => waiting), 'all of them to wait');
  assert.equal(world.server.sessions.length, raws.length);
  const isRecorded = () => world.rows('select id from sessions where detached_at is not null').length === raws.length;
  await until(isRecorded, 'the record');
});

test('a client that has fallen silent is dead: CLOSE dead_peer, and its address is free', async () => {
  const { world, clock } = await timed({ pingSeconds: 20, deadSeconds: 60 });
  await using _ = world;
  const { token } = await world.profile('alice');
  const raw = await world.raw();
  await raw.login({ token: token?.reveal() });
  await ticks(clock);
  clock.advance(21 * SECOND);
  await raw.next(FrameType.ping);
  clock.advance(41 * SECOND);
  assert.equal((await raw.message('close')).reason, 'dead_peer');
  await raw.closed();
  assert.equal((await world.status()).pool[0]?.used, 0);
  await until(() => recorded(world).length === 1, 'the record');
  assert.deepEqual(recorded(world), ['dead_peer']);
});

test('a gateway that has fallen silent is dead for a client, which dials again', async () => {
  await using world = await World.open();
  await using relay = await Relay.open(world.port);
  const clock = new WatchedClock(Date.now());
  const sim = await world.connected('alice', { serverPort: relay.port, clock });
  await ticks(clock);
  for (const connection of relay.connections) connection.hold();
  // Nobody is dead who was not asked: the first tick after the silence sends a PING, a later one gives up.
  clock.advance(26 * SECOND);
  await until(() => relay.connections.some(({ heldBytes }) => heldBytes > 0), 'a PING');
  clock.advance(60 * SECOND);
  await until(() => sim.client.snapshot.lastError?.code === 'ERR_PEER_GONE', 'the end of patience');
  assert.match(sim.client.snapshot.lastError?.message ?? '', /not answered/);
  await until(() => sim.client.snapshot.state === 'connected', 'the next session');
  await exchange(world, sim, 4);
});

test('a session without packets or echoes ends with idle_timeout, and the client does not come back by itself', async () => {
  // Nothing else may end it, however far the clock goes.
  const patient = { absoluteSeconds: 31_536_000, pingSeconds: 600, deadSeconds: 3600 };
  const { world, clock } = await timed({ ...patient, idleSeconds: 120 });
  await using _ = world;
  const sim = await world.connected('alice');
  for (const use of ['packet', 'echo', 'packet'] as const) {
    clock.advance(100 * SECOND);
    await ticks(clock);
    assert.equal(world.server.sessions.length, 1, 'what came before was use');
    if (use === 'packet') await exchange(world, sim, 4);
    else await sim.client.echo(new Uint8Array(10));
    // The gateway looks about once a second: it must have seen the use before time goes on.
    await ticks(clock);
  }
  // The gateway's next look may be the one that sees the last use.
  await until(() => {
    if (sim.client.snapshot.state === 'stopped') return true;
    clock.advance(SECOND);
    return false;
  }, 'the idle limit');
  assert.match(sim.client.snapshot.lastError?.message ?? '', /idle_timeout/);
  await until(() => recorded(world).length === 1, 'the record');
  assert.deepEqual(recorded(world), ['idle_timeout']);
});

test('REQ-LIMIT-005: while the machine of a gateway sleeps the limits of its sessions go on, and nobody is dead for that', async () => {
  const { world, clock } = await timed({ absoluteSeconds: 3600 });
  await using _ = world;
  const sim = await world.connected('alice');
  clock.sleep(1800 * SECOND);
  await until(() => world.lines.some(({ msg }) => msg === 'this machine slept'), 'the gateway to notice');
  assert.equal(world.server.sessions.length, 1);
  assert.equal(sim.client.snapshot.reconnects, 0);
  await exchange(world, sim, 4);
  clock.sleep(1801 * SECOND);
  await until(() => recorded(world).includes('session_timeout'), 'the end of the session');
});

test('REQ-LIMIT-006: a session that waits for its client waits no longer because the machine sleeps', async () => {
  const { world, clock } = await timed({ graceSeconds: 600 });
  await using _ = world;
  const sim = await world.connected('alice');
  await sim.client.disconnect({ keep: true });
  await until(() => world.server.sessions[0]?.waiting === true, 'the loss');
  clock.sleep(601 * SECOND);
  await until(() => world.server.sessions.length === 0, 'the end of the grace period');
});

test('a session ends with session_timeout however busy it is, and the client logs in again', async () => {
  const { world, clock } = await timed({ absoluteSeconds: 600 });
  await using _ = world;
  const sim = await world.connected('alice');
  await exchange(world, sim, 4);
  clock.advance(601 * SECOND);
  await until(() => sim.states.includes('waiting'), 'the end');
  await until(() => sim.client.snapshot.state === 'connected', 'the next session');
  assert.ok(recorded(world).includes('session_timeout'));
  await exchange(world, sim, 4);
});

test('REQ-TLS-007: a client certificate that is required: missing, good, and revoked while its session lives', async () => {
  await using world = await World.open({
    config: { requireClientAuth: true, caFile: 'certs/ca.pem', crlFile: 'certs/crl.pem' },
  });
  const { administration } = world.server;
  const without = await world.client('alice');
  await assert.rejects(without.client.connect({ once: true }), { code: 'ERR_CERT_REQUIRED' });
  assert.ok(((await world.status()).counters.handshake_err_cert_required ?? 0) > 0);

  const { certificate, keyFile } = await administration['pki.issue']({ name: 'alice-laptop' });
  const files = { certFile: certificate.file, keyFile };
  const sim = await world.connected('alice', files);
  const other = await administration['pki.issue']({ name: 'bob-laptop' });
  const bob = await world.connected('bob', { certFile: other.certificate.file, keyFile: other.keyFile });
  await exchange(world, sim, 4);

  const { kicked } = await administration['pki.revoke']({ serial: certificate.serial });
  assert.equal(kicked, 1);
  await stopsFinally(sim, 'revoked');
  const again = await world.client('alice', files);
  // Final, though it would try again after other failures.
  await assert.rejects(again.client.connect(), { code: 'ERR_CERT_REVOKED' });
  assert.equal((await world.status()).counters.handshake_err_cert_revoked, 1);
  await exchange(world, bob, 4);
});

test('the certificate is renewed under live sessions: they stay, and new ones see the new one', async () => {
  await using world = await World.open();
  const before = await world.connected('alice');
  await world.server.administration['pki.renew']({});
  const after = await world.connected('bob');
  assert.notEqual(
    after.client.snapshot.tls?.peerCertificate?.serial,
    before.client.snapshot.tls?.peerCertificate?.serial,
  );
  await exchange(world, before, 4);
  await exchange(world, after, 4);
});

test('a reload with files that cannot be used changes nothing', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  const bad = join(world.dir, 'bad.pem');
  await assert.rejects(world.server.reload(world.config({ certFile: bad })), { code: 'ERR_CERT_FILE' });
  writeFileSync(bad, 'no certificate');
  await assert.rejects(world.server.reload(world.config({ certFile: bad })), { code: 'ERR_CERT_FILE' });
  await assert.rejects(world.server.reload(world.config({ keyFile: 'certs/ca.key' })), {
    code: 'ERR_CERT_KEY_MISMATCH',
  });
  await exchange(world, sim, 4);
  await exchange(world, await world.connected('bob'), 4);
});
