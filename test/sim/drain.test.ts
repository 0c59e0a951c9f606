/** A gateway that is drained: who is asked to move to another server, who can, who goes on to the end, and when that is. */

import assert from 'node:assert/strict';
import { cpSync, rmSync } from 'node:fs';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import type { ClientOptions } from '../../src/client/client.ts';
import { DeviceKey } from '../../src/client/device-key.ts';
import type { DrainInfo } from '../../src/control/operations.ts';
import { VpnServer } from '../../src/gateway/server.ts';
import { MemoryTun } from '../../src/os/tun-memory.ts';
import { FrameType } from '../../src/protocol/frame.ts';
import { FakeGateway } from '../support/fake-gateway.ts';
import { icmpPacket } from '../support/packets.ts';
import { addressOf, equal, exchange, NAMES, type RawClient, type SimClient, until, World } from '../support/world.ts';

const FEATURES = ['attach', 'resume', 'rekey', 'drain'];

async function drain(world: World, seconds: number): Promise<DrainInfo> {
  return await world.server.api(() => Promise.reject(new Error('not asked for')))['server.drain']({ seconds });
}

async function loggedIn(world: World, user: string, features: readonly string[] = FEATURES) {
  const raw = await world.raw();
  const device = DeviceKey.generate();
  world.keepSecret(device.toPem());
  const { token } = await world.profile(user);
  const session = await raw.login({ device, token: token?.reveal(), features });
  world.keepSessions();
  return { raw, session };
}

/** The connection answers, so whatever was sent before has come. */
async function settle(raw: RawClient): Promise<number[]> {
  raw.send(FrameType.ping, Buffer.from('settle'));
  await until(() => raw.frames.some(({ type }) => type === FrameType.pong), 'an answer');
  return raw.frames.splice(0).map(({ type }) => type);
}

/** Two gateways of one port with the same users and devices, on 127.0.0.1 and 127.0.0.2, and the device of a user of both. */
class Pair implements AsyncDisposable {
  readonly first: World;
  readonly second: VpnServer;
  readonly secondTun: MemoryTun;
  readonly #dir: string;
  readonly #options: Partial<ClientOptions> & { profile: Awaited<ReturnType<World['profile']>> };

  static async open(): Promise<Pair> {
    const world = await World.open();
    const profile = await world.profile('alice');
    const deviceKey = DeviceKey.generate();
    const { client } = await world.connected('alice', { profile, deviceKey });
    await client.disconnect();
    await until(() => world.server.sessions.length === 0, 'the session to be over');
    await world.server.stop();
    const dir = `${world.dir}-second`;
    cpSync(world.dir, dir, { recursive: true });
    await world.restart();
    const tun = new MemoryTun({ name: 'gw1', mtu: 1500 });
    const second = new VpnServer({
      address: '127.0.0.2',
      port: world.port,
      names: NAMES,
      pool: ['10.30.0.0/24'],
      stateDir: dir,
      tun: { primary: tun, plain: undefined },
      log: world.log,
    });
    await second.start();
    const { token: _spent, ...known } = profile;
    return new Pair(world, second, tun, dir, { profile: known, deviceKey, enrol: false });
  }

  private constructor(
    first: World,
    second: VpnServer,
    secondTun: MemoryTun,
    dir: string,
    options: Partial<ClientOptions> & { profile: Awaited<ReturnType<World['profile']>> },
  ) {
    this.first = first;
    this.second = second;
    this.secondTun = secondTun;
    this.#dir = dir;
    this.#options = options;
  }

  /** A client whose profile names both, the first one first. */
  async client(options: Partial<ClientOptions> = {}): Promise<SimClient> {
    const hosts = { serverHost: ['127.0.0.1', '127.0.0.2'] };
    const sim = await this.first.client('alice', { ...this.#options, ...hosts, ...options });
    await sim.client.connect({ once: true });
    this.first.keepSessions();
    return sim;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.first[Symbol.asyncDispose]();
    await this.second.stop();
    rmSync(this.#dir, { recursive: true });
  }
}

/** A packet from the client comes out at the second gateway, from an address of its pool. */
async function reachesSecond({ secondTun }: Pair, sim: SimClient): Promise<void> {
  const up = icmpPacket({ source: addressOf(sim, 4), destination: '192.0.2.80' });
  sim.host.tun.inject(up);
  await until(() => secondTun.written.some(({ bytes }) => equal(bytes, up)), 'a packet at the second gateway');
}

test('REQ-DRAIN-001: a drained gateway tells who knows what that means, again when the time changes, and serves on', async () => {
  await using world = await World.open();
  const { raw } = await loggedIn(world, 'alice');
  const begun = await drain(world, 600);
  assert.deepEqual([begun.sessions, begun.left, begun.asked], [1, 1, 1]);
  assert.equal((await raw.message('drain')).seconds, 600);
  await drain(world, 300);
  assert.equal((await raw.message('drain')).seconds, 300);
  // What was open works on.
  assert.deepEqual(await settle(raw), [FrameType.pong]);
  const status = await world.status();
  assert.deepEqual([status.drain?.sessions, status.drain?.left], [1, 1]);
  assert.match(status.warnings.join(), /is drained/);
});

test('REQ-DRAIN-001: whoever resumes a session there is told, too, and how long is left', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ clock });
  const { raw, session } = await loggedIn(world, 'alice');
  await drain(world, 600);
  raw.socket.destroy();
  await until(async () => (await world.status()).waiting === 1, 'the loss to be seen');
  clock.advance(100_000);
  const again = await world.raw();
  const { done } = await again.resume(session);
  await done();
  assert.equal((await again.message('drain')).seconds, 500);
});

test('REQ-DRAIN-002: a drained gateway refuses logins as one that is shutting down', async () => {
  await using world = await World.open();
  await loggedIn(world, 'alice');
  await drain(world, 600);
  const sim = await world.client('bob');
  await assert.rejects(sim.client.connect({ once: true }), /shutting down/);
  assert.equal((await world.status()).sessions, 1);
});

test('REQ-DRAIN-003: a client that does not know DRAIN is not sent it, and lives to the end, which is told as shutdown', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ clock });
  const { raw } = await loggedIn(world, 'alice', ['attach', 'resume', 'rekey']);
  const { asked } = await drain(world, 600);
  assert.equal(asked, 0);
  clock.advance(599_000);
  assert.deepEqual(await settle(raw), [FrameType.pong]);
  clock.advance(2000);
  assert.equal((await raw.message('close')).reason, 'shutdown');
  await world.server.stopped;
});

test('a drained gateway stops as soon as the last session has gone, and not before', async () => {
  await using world = await World.open();
  const { raw } = await loggedIn(world, 'alice');
  const { raw: other } = await loggedIn(world, 'bob');
  await drain(world, 600);
  raw.send(FrameType.close, Buffer.from('{"reason":"peer_disconnect"}'));
  await until(async () => (await world.status()).drain?.left === 1, 'one to be left');
  await settle(other);
  other.send(FrameType.close, Buffer.from('{"reason":"peer_disconnect"}'));
  await world.server.stopped;
});

test('a time of day that is set does not bring the end of a drained gateway nearer', async () => {
  const clock = new ManualClock();
  let offset = 0;
  const setClock = { now: () => clock.now(), bootNow: () => clock.bootNow(), wallNow: () => clock.wallNow() + offset };
  await using world = await World.open({ clock: setClock });
  const { raw } = await loggedIn(world, 'alice');
  await drain(world, 600);
  offset = 3_600_000;
  const left = (await world.status()).drain;
  assert.equal(Date.parse(left?.until ?? '') - setClock.wallNow(), 600_000);
  // Longer than it takes to look.
  await new Promise((resolve) => setTimeout(resolve, 1200));
  assert.deepEqual(
    (await settle(raw)).filter((type) => type === FrameType.close),
    [],
  );
  offset = -3_600_000;
  clock.advance(601_000);
  assert.equal((await raw.message('close')).reason, 'shutdown');
});

test('REQ-DRAIN-004: a client with several servers moves to another while its session goes on, and the gateway can stop', async () => {
  await using pair = await Pair.open();
  const sim = await pair.client();
  await exchange(pair.first, sim);
  const before = addressOf(sim, 4);
  const seen = sim.states.length;
  await drain(pair.first, 10);
  await until(() => pair.second.sessions.length === 1, 'a session at the second gateway');
  await pair.first.server.stopped;
  await until(() => addressOf(sim, 4) !== before, 'the other address');
  await reachesSecond(pair, sim);
  const { state, reconnects, receivedBytes, sentBytes } = sim.client.snapshot;
  assert.deepEqual([state, reconnects], ['connected', 0]);
  assert.deepEqual(sim.states.slice(seen), [], 'it was connected all the time');
  // What the former session has carried counts on.
  assert.ok(receivedBytes > 0 && sentBytes > receivedBytes);
  assert.equal(pair.second.sessions[0]?.channels, 1);
});

test('REQ-DRAIN-004: a session that has moved is resumed, and drained, where it is', async () => {
  await using pair = await Pair.open();
  const sim = await pair.client();
  await drain(pair.first, 10);
  await pair.first.server.stopped;
  await pair.first.restart();
  const [session] = pair.second.sessions;
  assert.ok(session);
  await sim.client.echo(Buffer.from('there'));
  // Back again: the first one is good again.
  await pair.second.api(() => Promise.reject(new Error('not asked for')))['server.drain']({ seconds: 10 });
  await until(() => pair.first.server.sessions.length === 1, 'the way back');
  await pair.second.stopped;
  await exchange(pair.first, sim);
  assert.equal(sim.client.snapshot.reconnects, 0);
});

test('REQ-DRAIN-005: a client that no other server takes stays where it is', async () => {
  await using pair = await Pair.open();
  await pair.second.administration['user.disable']({ name: 'alice' });
  const sim = await pair.client();
  await drain(pair.first, 20);
  const isSaid = ({ msg }: { msg?: unknown }) => String(msg).startsWith('there is no other server for this client');
  await until(() => pair.first.lines.some(isSaid), 'it to be said');
  await exchange(pair.first, sim);
  assert.equal(pair.first.server.sessions.length, 1);
  assert.equal(sim.client.snapshot.state, 'connected');
});

test('REQ-DRAIN-005: one whose profile has no other server stays, and is back when the gateway is', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ clock });
  const sim = await world.connected('alice', { serverHost: 'localhost' });
  await drain(world, 600);
  const isSaid = ({ msg }: { msg?: unknown }) => String(msg).startsWith('the server is drained');
  await until(() => world.lines.some(isSaid), 'DRAIN to have come');
  await exchange(world, sim);
  assert.equal(sim.client.snapshot.reconnects, 0);
  clock.advance(601_000);
  await world.server.stopped;
  await world.restart();
  await until(() => sim.client.snapshot.state === 'connected' && sim.client.snapshot.resumes === 1, 'its return');
  await exchange(world, sim);
});

test('a login passes over a server that is shutting down', async () => {
  await using pair = await Pair.open();
  await loggedIn(pair.first, 'guest');
  await drain(pair.first, 600);
  const sim = await pair.client();
  await reachesSecond(pair, sim);
  assert.equal(pair.first.server.sessions.length, 1, 'only the guest');
});

test('REQ-DRAIN-004: a client refuses DRAIN that it has not agreed on', async () => {
  await using gateway = await FakeGateway.open({ config: { data: { mode: 'inline', channels: 0 } } });
  const { client } = gateway.client();
  await client.connect({ once: true });
  gateway.control?.sendControl(Buffer.concat([Uint8Array.of(0x11, 0, 0, 14), Buffer.from('{"seconds":10}')]));
  await until(() => client.snapshot.lastError?.code === 'ERR_FRAME_STATE', 'the refusal');
  await client.disconnect();
});
