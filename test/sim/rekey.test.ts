// Connections that are changed under the traffic: nothing is lost or overtaken, and whoever has lost the right to a session
// does not keep it by changing its connections.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { test } from 'node:test';
import { setImmediate as immediate } from 'node:timers/promises';
import { ManualClock } from '../../src/base/clock.ts';
import type { GatewayOptions } from '../../src/gateway/config.ts';
import type { MemoryTun } from '../../src/os/tun-memory.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { attachProof } from '../../src/protocol/keys.ts';
import { encodeMessage } from '../../src/protocol/messages.ts';
import { CONTROL_SLOT, SWITCH_TIMEOUT_MS } from '../../src/protocol/rekey.ts';
import { icmpPacket } from '../support/packets.ts';
import { primitives } from '../support/protocol.ts';
import {
  addressOf,
  exchange,
  type RawClient,
  type RawSession,
  Relay,
  type SimClient,
  until,
  World,
} from '../support/world.ts';

/** More than an hour and a tenth. */
const WORN_MS = 4_000_000;
const FAR = '192.0.2.80';
const SEQUENCE_AT = 26;
const FEATURES = ['attach', 'resume', 'rekey', 'super'];

/** One flow each way, of numbered packets, until it is stopped. */
class Flow {
  readonly #world: World;
  readonly #sim: SimClient;
  readonly #own: string;
  readonly #running: Promise<void>;
  sent = 0;
  #isOver = false;

  constructor(world: World, sim: SimClient) {
    this.#world = world;
    this.#sim = sim;
    this.#own = addressOf(sim, 4);
    world.tun.written.length = 0;
    sim.host.tun.written.length = 0;
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    while (!this.#isOver) {
      const ahead = this.sent - Math.min(this.#arrived(this.#world.tun), this.#arrived(this.#sim.host.tun));
      if (ahead < 200) {
        const [source, destination, sequence] = [this.#own, FAR, this.sent];
        this.#sim.host.tun.inject(icmpPacket({ source, destination, sequence, payload: 1000 }));
        this.#world.tun.inject(icmpPacket({ source: FAR, destination: this.#own, sequence, payload: 1000 }));
        this.sent += 1;
      }
      await immediate();
    }
  }

  #arrived(tun: MemoryTun): number {
    return tun.written.length;
  }

  /** Stops it; both ends got every packet, in order. */
  async check(): Promise<void> {
    this.#isOver = true;
    await this.#running;
    assert.ok(this.sent > 100 && this.sent < 0x10000, `${this.sent} packets`);
    for (const tun of [this.#world.tun, this.#sim.host.tun]) {
      await until(() => tun.written.length >= this.sent, 'the last packet');
      const numbers = tun.written.map(({ bytes }) => ((bytes[SEQUENCE_AT] ?? 0) << 8) | (bytes[SEQUENCE_AT + 1] ?? 0));
      assert.deepEqual(
        numbers,
        Array.from({ length: this.sent }, (_, number) => number),
      );
    }
  }
}

async function changed(world: World, { client }: SimClient, times: number): Promise<void> {
  await until(async () => client.snapshot.rekeys >= times && (await rekeys(world)) >= times, `change ${times}`, 20_000);
}

async function rekeys(world: World): Promise<number> {
  return (await world.status()).counters.rekeys ?? 0;
}

const modes: readonly [what: string, config: GatewayOptions, connections: number][] = [
  ['with one data connection', {}, 2],
  ['with three data connections', { data: { channels: 3 } }, 4],
  ['with data inline', { data: { mode: 'inline' } }, 1],
];
for (const [what, config, connections] of modes) {
  test(`REQ-REKEY-002: ${what}, every connection is changed under traffic, again and again, and no packet is lost or overtaken`, async () => {
    const clock = new ManualClock();
    await using world = await World.open({ config });
    const sim = await world.connected('alice', { clock });
    const [before] = world.server.sessions;
    const { dataChannels } = { dataChannels: connections - 1 };
    await until(() => sim.client.snapshot.channels === dataChannels, 'the data connections');
    const flow = new Flow(world, sim);
    for (let round = 1; round <= 3; round++) {
      const sent = flow.sent;
      clock.advance(WORN_MS);
      await changed(world, sim, round * connections);
      await until(() => flow.sent > sent + 100, 'traffic on the new connections');
    }
    assert.deepEqual(await sim.client.echo(Buffer.from('echo')), new Uint8Array(Buffer.from('echo')));
    await flow.check();
    const { counters } = await world.status();
    assert.equal(counters.rekeys, 3 * connections);
    assert.deepEqual([counters.rekeyGaps, sim.client.snapshot.rekeyGaps], [0, 0]);
    assert.deepEqual([counters.logins, counters.resumes, sim.client.snapshot.reconnects], [1, 0, 0]);
    assert.deepEqual(world.rows("select id from audit where event = 'session.resumed'"), [], 'no line every hour');
    const [after] = world.server.sessions;
    assert.deepEqual([after?.id, after?.channels, after?.waiting], [before?.id, dataChannels, false]);
    assert.deepEqual(
      world.rows('select epoch from sessions').map(({ epoch }) => epoch),
      [3],
      'each change of the control connection is a resume',
    );
    assert.deepEqual(await world.drops(), {});
    assert.deepEqual(sim.client.snapshot.drops, {});
  });
}

test('REQ-REKEY-001: the interval is that of the configuration, and a fresh connection is left alone', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ config: { session: { rekeySeconds: 100 } } });
  const sim = await world.connected('alice', { clock });
  await until(() => {
    if (clock.now() < 89_000) clock.advance(100);
    return sim.client.snapshot.roundTripMs !== undefined;
  }, 'a tick: after so much silence it asks');
  assert.equal(sim.client.snapshot.rekeys, 0);
  clock.advance(111_000);
  await changed(world, sim, 2);
});

test('an older end on either side changes nothing: no SWITCH, no resume', async () => {
  const clock = new ManualClock();
  await using world = await World.open();
  const { token } = await world.profile('mallory');
  const raw = await world.raw();
  const session = await raw.login({ token: token?.reveal(), features: ['attach', 'resume'] });
  world.keepSessions();
  const [old] = await attached(world, session, 0);
  assert.ok(old);
  old.write(switchTo(0, 1));
  assert.equal((await old.message('close')).reason, 'protocol_error');
  assert.equal(world.server.sessions.length, 1);
  clock.advance(WORN_MS);
});

test('REQ-REKEY-008: a change of the control connection that fails leaves the old one in service, and is tried again', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ config: { data: { mode: 'inline' } } });
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { clock, serverPort: relay.port });
  relay.refuses = true;
  clock.advance(WORN_MS);
  await until(() => world.lines.some(({ msg }) => msg === 'the control connection could not be changed'), 'a failure');
  await exchange(world, sim);
  relay.refuses = false;
  clock.advance(60_000);
  await changed(world, sim, 1);
  await exchange(world, sim);
  assert.equal(sim.client.snapshot.reconnects, 0);
});

/** Revokes without telling the gateway, as another gateway of the same store would. */
function store(world: World, sql: string): void {
  const db = new DatabaseSync(join(world.dir, 'store.sqlite'));
  db.exec('pragma busy_timeout = 5000');
  db.exec(sql);
  db.close();
}

const losses: readonly [what: string, sql: string][] = [
  [
    'a device that was revoked',
    "update devices set revoked_at = 1 where user_id in (select id from users where name = 'alice')",
  ],
  ['a user who was disabled', "update users set disabled_at = 1 where name = 'alice'"],
  ['an account that has expired', "update users set expires_at = 1 where name = 'alice'"],
];
for (const [what, sql] of losses) {
  for (const mode of ['inline', 'attached'] as const) {
    test(`REQ-REKEY-006: ${what} is not served beyond the next change, data ${mode}`, async () => {
      const clock = new ManualClock();
      await using world = await World.open({ config: { data: { mode } } });
      const sim = await world.connected('alice', { clock });
      await exchange(world, sim);
      store(world, sql);
      await exchange(world, sim);
      clock.advance(WORN_MS);
      await until(() => sim.client.snapshot.state === 'stopped', 'the end');
      assert.deepEqual(world.server.sessions, []);
      assert.equal(sim.host.isClosed, true);
    });
  }
}

test('REQ-REKEY-006: a data connection alone is not changed for a device that was revoked, and its session ends', async () => {
  await using world = await World.open();
  const { token } = await world.profile('alice');
  const control = await world.raw();
  const session = await control.login({ token: token?.reveal(), features: FEATURES });
  world.keepSessions();
  await attached(world, session, 0);
  store(world, 'update devices set revoked_at = 1');
  const raw = await (await world.raw()).greeted();
  const facts = { session: session.accept.session, epoch: 0, slot: 0, generation: 1, flags: 0 };
  const proof = attachProof(primitives, session.attachKey, 'client', facts, raw.exporter);
  raw.write(encodeMessage('attach', { ...facts, proof }));
  assert.equal((await raw.message('reject')).code, 'rejected');
  assert.equal((await control.message('close')).reason, 'revoked');
  await until(() => world.server.sessions.length === 0, 'the end of the session');
});

/** A data connection of a raw client in this slot and generation, and the proof it gave. */
async function attached(
  world: World,
  { accept, attachKey }: Pick<RawSession, 'accept' | 'attachKey'>,
  generation: number,
  slot = 0,
): Promise<[RawClient]> {
  const raw = await (await world.raw()).greeted();
  const facts = { session: accept.session, epoch: accept.epoch, slot, generation, flags: 0 };
  const proof = attachProof(primitives, attachKey, 'client', facts, raw.exporter);
  raw.write(encodeMessage('attach', { ...facts, proof }));
  await raw.next(FrameType.attached);
  return [raw];
}

function switchTo(slot: number, generation: number): Uint8Array {
  return encodeMessage('switch', { slot, generation });
}

/** A raw client whose slot 0 is being changed: attached anew, and SWITCH not said. */
async function changing(world: World): Promise<{ control: RawClient; old: RawClient; next: RawClient; own: string }> {
  const { token } = await world.profile('mallory');
  const control = await world.raw();
  const session = await control.login({ token: token?.reveal(), features: FEATURES });
  world.keepSessions();
  const [old] = await attached(world, session, 0);
  const [next] = await attached(world, session, 1);
  const own = world.server.sessions[0]?.addresses[0] ?? '';
  return { control, old, next, own };
}

function packet(own: string, sequence: number): Uint8Array {
  return encodeFrame(FrameType.packet, icmpPacket({ source: own, destination: FAR, sequence }));
}

function numbers(world: World): number[] {
  return world.tun.written.map(({ bytes }) => ((bytes[SEQUENCE_AT] ?? 0) << 8) | (bytes[SEQUENCE_AT + 1] ?? 0));
}

test('REQ-REKEY-003: a gateway says SWITCH last on the old connection, and reads the new one only after it has heard it', async () => {
  await using world = await World.open();
  const { old, next, own } = await changing(world);
  assert.deepEqual(await old.message('switch'), { slot: 0, generation: 1 });
  next.write(packet(own, 3));
  old.write(packet(own, 1));
  old.write(packet(own, 2));
  await until(() => world.tun.written.length === 2, 'what was sent on the old connection');
  assert.deepEqual(numbers(world), [1, 2]);
  world.tun.inject(icmpPacket({ source: FAR, destination: own, sequence: 9 }));
  await next.next(FrameType.packet);
  old.write(switchTo(0, 1));
  await until(() => world.tun.written.length === 3, 'what waits on the new one');
  assert.deepEqual(numbers(world), [1, 2, 3]);
  assert.equal((await old.message('close')).reason, 'replaced');
  const { counters } = await world.status();
  assert.deepEqual([counters.rekeys, counters.rekeyGaps], [1, 0]);
});

test('REQ-REKEY-004: where SWITCH does not come, a gateway goes on after 5 s, and counts a gap', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ clock });
  const { old, next, own } = await changing(world);
  next.write(packet(own, 7));
  clock.advance(SWITCH_TIMEOUT_MS - 1);
  old.write(packet(own, 6));
  await until(() => world.tun.written.length === 1, 'the old connection is read on');
  clock.advance(1);
  await until(() => world.tun.written.length === 2, 'the new one');
  assert.deepEqual(numbers(world), [6, 7]);
  assert.equal((await world.status()).counters.rekeyGaps, 1);
  assert.equal((await old.message('close')).reason, 'replaced');
});

test('REQ-REKEY-004: the end of the old connection without SWITCH is a gap, too', async () => {
  await using world = await World.open();
  const { old, next, own } = await changing(world);
  next.write(packet(own, 1));
  old.socket.destroy();
  await until(() => world.tun.written.length === 1, 'the new one');
  assert.equal((await world.status()).counters.rekeyGaps, 1);
});

const wrong: readonly [what: string, frames: readonly Uint8Array[]][] = [
  ['for another slot', [switchTo(1, 1)]],
  ['for the control connection', [switchTo(CONTROL_SLOT, 1)]],
  ['of the present generation', [switchTo(0, 0)]],
  ['of a generation too far', [switchTo(0, 2)]],
];
for (const [what, frames] of wrong) {
  test(`REQ-REKEY-005: a SWITCH ${what} ends that connection, and no other`, async () => {
    await using world = await World.open();
    const { control, old, next, own } = await changing(world);
    for (const frame of frames) old.write(frame);
    assert.equal((await old.message('close')).reason, 'protocol_error');
    next.write(packet(own, 1));
    await until(() => world.tun.written.length === 1, 'the new connection goes on');
    assert.equal((await world.status()).counters.rekeyGaps, 1);
    assert.equal(control.isClosed, false);
    assert.equal(world.server.sessions.length, 1);
  });
}

test('REQ-REKEY-005: a second SWITCH, and data after the first, end the connection they come on', async () => {
  await using world = await World.open();
  const { token } = await world.profile('mallory');
  const control = await world.raw();
  const session = await control.login({ token: token?.reveal(), features: FEATURES });
  world.keepSessions();
  const own = world.server.sessions[0]?.addresses[0] ?? '';
  for (const [generation, after] of [
    [0, switchTo(0, 1)],
    [2, packet(own, 1)],
  ] as const) {
    const [raw] = await attached(world, session, generation);
    raw.write(switchTo(0, generation + 1));
    raw.write(after);
    assert.equal((await raw.message('close')).reason, 'protocol_error');
    await raw.closed();
  }
  assert.deepEqual(world.tun.written, []);
  assert.equal(control.isClosed, false);
});

test('REQ-REKEY-005: a SWITCH on the new connection while the old one is read is refused, once it is read', async () => {
  await using world = await World.open();
  const { old, next } = await changing(world);
  next.write(switchTo(0, 1));
  old.write(switchTo(0, 1));
  assert.equal((await next.message('close')).reason, 'protocol_error');
});

test('REQ-ATTACH-003: an ATTACH of an old generation is refused, and changes nothing, while another change is under way', async () => {
  await using world = await World.open();
  const { token } = await world.profile('mallory');
  const control = await world.raw();
  const session = await control.login({ token: token?.reveal(), features: FEATURES });
  world.keepSessions();
  const own = world.server.sessions[0]?.addresses[0] ?? '';
  const [old] = await attached(world, session, 0);
  const [next] = await attached(world, session, 1);
  for (const generation of [0, 1]) {
    const raw = await (await world.raw()).greeted();
    const facts = { session: session.accept.session, epoch: 0, slot: 0, generation, flags: 0 };
    const proof = attachProof(primitives, session.attachKey, 'client', facts, raw.exporter);
    raw.write(encodeMessage('attach', { ...facts, proof }));
    assert.equal((await raw.message('reject')).code, 'rejected');
  }
  old.write(switchTo(0, 1));
  next.write(packet(own, 1));
  await until(() => world.tun.written.length === 1, 'the change');
});

test('REQ-ATTACH-007: a generation that jumps replaces at once: a lost connection is not waited for', async () => {
  await using world = await World.open();
  const { token } = await world.profile('mallory');
  const control = await world.raw();
  const session = await control.login({ token: token?.reveal(), features: FEATURES });
  world.keepSessions();
  const own = world.server.sessions[0]?.addresses[0] ?? '';
  const [old] = await attached(world, session, 0);
  const [next] = await attached(world, session, 2);
  assert.equal((await old.message('close')).reason, 'replaced');
  next.write(packet(own, 1));
  await until(() => world.tun.written.length === 1, 'a packet');
  const { counters } = await world.status();
  assert.deepEqual([counters.rekeys, counters.rekeyGaps], [0, 0]);
});

test('REQ-REKEY-007: a resume that is no change takes the data connections of the session away, one that is keeps them', async () => {
  await using world = await World.open();
  const { token } = await world.profile('mallory');
  const control = await world.raw();
  const session = await control.login({ token: token?.reveal(), features: FEATURES });
  world.keepSessions();
  const own = world.server.sessions[0]?.addresses[0] ?? '';
  const [data] = await attached(world, session, 0);
  const second = await world.raw();
  const change = await second.resume(session, { rekey: true });
  control.write(switchTo(CONTROL_SLOT, 1));
  await change.done();
  assert.deepEqual(await control.message('switch'), { slot: CONTROL_SLOT, generation: 1 });
  assert.equal((await control.message('close')).reason, 'replaced');
  data.write(packet(own, 1));
  await until(() => world.tun.written.length === 1, 'a packet on the data connection');
  const [next] = await attached(world, change.session, 1);
  assert.deepEqual(await data.message('switch'), { slot: 0, generation: 1 }, 'its generation goes on');

  const third = await world.raw();
  await (await third.resume(change.session)).done();
  assert.equal((await second.message('close')).reason, 'replaced');
  assert.equal((await next.message('close')).reason, 'replaced');
});

test('a client that is disconnected in the middle of a change gives the unfinished connections up at once', async () => {
  const clock = new ManualClock();
  await using world = await World.open();
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { clock, serverPort: relay.port });
  relay.holds = true;
  clock.advance(WORN_MS);
  await until(
    () => relay.connections.length > 2 && relay.connections.slice(2).every(({ heldBytes }) => heldBytes > 0),
    'an unfinished connection',
  );
  await sim.client.disconnect();
  await until(
    () => relay.connections.slice(2).every(({ hasClientLeft }) => hasClientLeft),
    'the end of all of them',
    5000,
  );
});
