// The life of a session, with the whole stack in one process: enrolment, packets, push, loss, and the ways to come back.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withoutToken } from '../../src/control/profile.ts';
import { formatPrefix } from '../../src/ip/address.ts';
import { FLAG_PARTIAL_CHECKSUM, GsoType, segmentCount, VirtioGsoType } from '../../src/ip/super-packet.ts';
import { FrameType } from '../../src/protocol/frame.ts';
import { tcpPacket, transportChecksumOk, udpPacket } from '../support/packets.ts';
import { addressOf, equal, exchange, Relay, type SimClient, until, World } from '../support/world.ts';

const PARTIAL = { flags: FLAG_PARTIAL_CHECKSUM };

/** Disconnects a client and waits until the gateway has forgotten the session. */
async function leave(world: World, { client }: SimClient): Promise<void> {
  await client.disconnect();
  await until(() => world.server.sessions.length === 0, 'the end of the session');
}

test('a device enrols, logs in again without its token, and packets of both families cross', async () => {
  await using world = await World.open();
  let enrolled = 0;
  const first = await world.connected('alice', { onEnrolled: () => void enrolled++ });
  const { snapshot } = first.client;
  assert.equal(snapshot.user, 'alice');
  assert.equal(snapshot.superPackets, true);
  assert.equal(snapshot.channels, 1);
  assert.deepEqual(
    [snapshot.tls?.protocol, snapshot.tls?.cipher, snapshot.tls?.group],
    ['TLSv1.3', 'TLS_AES_128_GCM_SHA256', 'X25519MLKEM768'],
  );
  assert.deepEqual([addressOf(first, 4), addressOf(first, 6)], ['10.20.0.2', 'fd20:1::2']);
  assert.equal(enrolled, 1, 'REQ-ENROL-005: the owner of the profile is told to delete the token');
  await exchange(world, first, 4);
  await exchange(world, first, 6);
  const [info] = world.server.sessions;
  assert.equal(info?.user, 'alice');
  assert.equal(info.channels, 1);
  assert.ok(info.receivedBytes > 0 && info.sentBytes > 0);
  await leave(world, first);
  assert.equal(first.host.isClosed, true);

  const again = await world.connected('alice', {
    profile: withoutToken(await world.profile('alice')),
    deviceKey: first.key,
  });
  assert.deepEqual([addressOf(again, 4), addressOf(again, 6)], ['10.20.0.2', 'fd20:1::2']);
  await exchange(world, again, 4);
  await leave(world, again);
  assert.deepEqual(await world.drops(), {});
});

test('REQ-ENROL-005: after its enrolment a client logs in without the token, also when it reconnects', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  await world.server.stop();
  await world.restart({ session: { graceSeconds: 0 } });
  await until(
    () => sim.client.snapshot.state === 'connected' && world.server.sessions.length === 1,
    'the second login',
  );
  const purposes = world
    .rows("select detail from audit where event = 'login.accepted' order by id")
    .map(({ detail }) => (JSON.parse(String(detail)) as { purpose: string }).purpose);
  assert.deepEqual(purposes, ['enrol', 'login']);
});

test('REQ-SUPER-001: super-packets cross whole between devices that have them, and the header is rebuilt at the other end', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  const cases = [
    { version: 4, gsoType: GsoType.tcp4, virtio: VirtioGsoType.tcp4, make: tcpPacket },
    { version: 6, gsoType: GsoType.tcp6, virtio: VirtioGsoType.tcp6, make: tcpPacket },
    { version: 4, gsoType: GsoType.udpL4, virtio: VirtioGsoType.udpL4, make: udpPacket },
    { version: 6, gsoType: GsoType.udpL4, virtio: VirtioGsoType.udpL4, make: udpPacket },
  ] as const;
  for (const { version, gsoType, virtio, make } of cases) {
    const own = addressOf(sim, version);
    const far = version === 4 ? '192.0.2.80' : '2001:db8::80';
    const up = make({ version, source: own, destination: far, payload: 20_000, partial: true });
    const down = make({ version, source: far, destination: own, payload: 21_000, partial: true });
    sim.host.tun.inject(up, { ...PARTIAL, gsoType, gsoSize: 1200 });
    world.tun.inject(down, { ...PARTIAL, gsoType, gsoSize: 1100 });
    const sent = await until(() => world.tun.written.find(({ bytes }) => equal(bytes, up)), 'a super-packet up');
    const came = await until(() => sim.host.tun.written.find(({ bytes }) => equal(bytes, down)), 'a super-packet down');
    assert.deepEqual([sent.offload.gsoType, sent.offload.gsoSize], [virtio, 1200]);
    assert.deepEqual([came.offload.gsoType, came.offload.gsoSize], [virtio, 1100]);
    assert.equal(sent.offload.headerLength, (version === 4 ? 20 : 40) + (make === tcpPacket ? 20 : 8));
  }
  assert.deepEqual(await world.drops(), {});
});

test('a peer without super-packets is served by the plain device, and never sent a SUPER', async () => {
  await using world = await World.open();
  for (const options of [{ superPackets: false }, { tun: { superPackets: false } }]) {
    const sim = await world.connected('alice', options);
    assert.equal(sim.client.snapshot.superPackets, false);
    assert.ok(world.plain);
    await exchange(world, sim, 4, world.plain);
    await exchange(world, sim, 6, world.plain);
    assert.equal(world.tun.counters.writtenPackets, 0);
    await leave(world, sim);
  }
  assert.deepEqual(await world.drops(), {});
});

test("a client's device may make super-packets that the gateway does not take: they are cut on the way", async () => {
  await using world = await World.open({ config: { data: { superPackets: false } } });
  const sim = await world.connected('alice');
  const { plain } = world;
  assert.ok(plain);
  assert.equal(sim.client.snapshot.superPackets, false);
  const big = tcpPacket({ source: addressOf(sim, 4), payload: 4000, partial: true });
  sim.host.tun.inject(big, { ...PARTIAL, gsoType: GsoType.tcp4, gsoSize: 1448 });
  sim.host.tun.inject(tcpPacket({ source: addressOf(sim, 4), payload: 10, partial: true }), PARTIAL);
  // The gateway joins again what comes in one chunk.
  const packets = () =>
    plain.written.reduce(
      (sum, { bytes, offload }) => sum + segmentCount(bytes.length, offload.headerLength, offload.gsoSize),
      0,
    );
  await until(() => packets() === 4, 'three segments and a small packet');
  for (const { bytes, offload } of plain.written) assert.ok(offload.flags !== 0 || transportChecksumOk(bytes));
  assert.deepEqual(sim.client.snapshot.drops, {});
});

test('UDP segments are cut where one end lacks UDP segmentation, whichever it is', async () => {
  for (const lacking of ['gateway', 'client']) {
    await using world = await World.open({ tun: { uso: lacking !== 'gateway' } });
    const sim = await world.connected('alice', { tun: { uso: lacking !== 'client' } });
    const make = (source: string, destination: string) =>
      udpPacket({ source, destination, payload: 3000, partial: true });
    const facts = { ...PARTIAL, gsoType: GsoType.udpL4, gsoSize: 1200 };
    sim.host.tun.inject(make(addressOf(sim, 4), '192.0.2.1'), facts);
    world.tun.inject(make('192.0.2.1', addressOf(sim, 4)), facts);
    await until(() => world.tun.written.length === 3, 'three segments up');
    await until(() => sim.host.tun.written.length === 3, 'three segments down');
    for (const { bytes } of [...world.tun.written, ...sim.host.tun.written]) assert.ok(transportChecksumOk(bytes));
    assert.deepEqual(await world.drops(), {});
  }
});

test('data goes inline on the control connection where the gateway is configured so', async () => {
  await using world = await World.open({ config: { data: { mode: 'inline' } } });
  const sim = await world.connected('alice');
  assert.equal(sim.client.snapshot.channels, 0);
  await exchange(world, sim, 4);
  await exchange(world, sim, 6);
  assert.equal((await world.status()).counters.connections, 1);
});

test('a client that does not attach gets its packets inline at once', async () => {
  await using world = await World.open();
  const raw = await world.raw();
  const { token } = await world.profile('alice');
  const session = await raw.login({ token: token?.reveal(), features: [] });
  assert.equal(session.accept.features.length, 0);
  const down = tcpPacket({ source: '192.0.2.1', destination: '10.20.0.2' });
  world.plain?.inject(down);
  assert.deepEqual(await raw.next(FrameType.packet), down);
});

test('REQ-PING-002: echoes of every size return, in order', async () => {
  await using world = await World.open({ tun: 'none' });
  const sim = await world.connected('alice', { tun: 'none' });
  for (const length of [0, 1, 1400, 65_575]) {
    const payload = Uint8Array.from({ length }, (_, at) => (at * 31 + length) & 0xff);
    assert.deepEqual(await sim.client.echo(payload), payload);
  }
  const payloads = Array.from({ length: 40 }, (_, at) => new Uint8Array(1000).fill(at));
  assert.deepEqual(await Promise.all(payloads.map((payload) => sim.client.echo(payload))), payloads);
  await assert.rejects(sim.client.echo(new Uint8Array(65_576)), { code: 'ERR_FRAME_TOO_LONG' });
  const flood = Array.from({ length: 5 }, () => sim.client.echo(new Uint8Array(65_575)));
  const outcomes = await Promise.allSettled(flood);
  assert.deepEqual(
    outcomes.map((outcome) => (outcome.status === 'fulfilled' ? 'back' : String(outcome.reason.code))),
    ['back', 'back', 'back', 'ERR_BUSY', 'ERR_BUSY'],
  );
});

test('REQ-PUSH-001: CONFIG follows ACCEPT, and a reload pushes it again with a greater revision', async () => {
  await using world = await World.open({ config: { routes: ['192.0.2.0/24'], dns: ['10.20.0.1'] } });
  const sim = await world.connected('alice');
  const config = () => sim.client.snapshot.config;
  assert.deepEqual(config()?.routes.map(formatPrefix), ['192.0.2.0/24']);
  assert.equal(config()?.dns.servers.length, 1);
  const before = config()?.revision ?? 0;
  const outcome = await world.server.reload(
    world.config({ routes: ['192.0.2.0/24', '198.51.100.0/24'], dns: [], mtu: 1400 }),
  );
  assert.deepEqual(outcome, { applied: ['routes', 'dns'], needsRestart: ['mtu'], warnings: [] });
  await until(() => config()?.routes.length === 2, 'the pushed routes');
  assert.ok((config()?.revision ?? 0) > before);
  assert.deepEqual(sim.host.applied.at(-1)?.routes.map(formatPrefix), ['192.0.2.0/24', '198.51.100.0/24']);
  assert.equal(config()?.dns.servers.length, 0);
  await exchange(world, sim, 4);
});

test('a push that comes while the client is still attaching does not cost it its packets', async () => {
  await using world = await World.open({
    hooks: { onSessionStart: () => void world.server.reload(world.config({ routes: ['198.51.100.0/24'] })) },
  });
  const sim = await world.connected('alice');
  await until(() => sim.client.snapshot.config?.routes.length === 1, 'the pushed route');
  await exchange(world, sim, 4);
  assert.deepEqual(sim.client.snapshot.drops, {});
});

test('what a profile does not allow is refused item by item, and said', async () => {
  await using world = await World.open({
    config: { routes: ['0.0.0.0/0', '127.0.0.0/8', '192.0.2.0/24'], dns: ['10.20.0.1'] },
  });
  const sim = await world.connected('alice', { limits: { defaultRoute: false, dns: false } });
  assert.deepEqual(sim.client.snapshot.config?.routes.map(formatPrefix), ['192.0.2.0/24']);
  assert.deepEqual(
    sim.client.snapshot.refused.map(({ item }) => item),
    ['routes 0.0.0.0/0', 'routes 127.0.0.0/8', 'dns.servers 10.20.0.1'],
  );
});

test('a lost data connection is attached again; the session and its address stay', async () => {
  await using world = await World.open();
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { serverPort: relay.port });
  await exchange(world, sim, 4);
  const [session] = world.server.sessions;
  assert.equal((await world.status()).counters.attached, 1);
  const [, data] = relay.connections;
  data?.cut();
  await until(() => sim.client.snapshot.channels === 0, 'the loss');
  await until(() => sim.client.snapshot.channels === 1, 'the next data connection');
  await until(() => world.server.sessions[0]?.channels === 1, 'the next data connection at the gateway');
  await exchange(world, sim, 4);
  assert.equal(world.server.sessions[0]?.id, session?.id);
  assert.equal(sim.client.snapshot.reconnects, 0);
  assert.equal((await world.status()).counters.attached, 2);
});

test('the gateway restarts: a client comes back by itself, with the addresses it had', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  const addresses = [addressOf(sim, 4), addressOf(sim, 6)];
  await world.server.stop();
  await until(() => sim.client.snapshot.state === 'waiting', 'the loss');
  assert.equal(sim.client.snapshot.lastError?.code, 'ERR_PEER_GONE');
  await world.restart();
  await until(() => world.server.sessions.length === 1 && sim.client.snapshot.state === 'connected', 'the client');
  assert.deepEqual([addressOf(sim, 4), addressOf(sim, 6)], addresses);
  assert.ok(sim.client.snapshot.reconnects > 0);
  await exchange(world, sim, 4);
  assert.equal(sim.host.isClosed, false, 'the device lives through it');
});

test('a gateway that stops and keeps no sessions leaves none on record, and tells its clients why', async () => {
  await using world = await World.open({ config: { session: { graceSeconds: 0 } } });
  const sims = [await world.connected('alice'), await world.connected('bob')];
  await world.server.stop();
  assert.deepEqual(world.rows('select id from sessions'), []);
  const ends = world.rows("select reason from audit where event = 'session.ended'").map(({ reason }) => reason);
  assert.deepEqual(ends, ['shutdown', 'shutdown']);
  for (const { client } of sims) {
    await until(() => client.snapshot.state === 'waiting', 'the client to wait');
    assert.match(client.snapshot.lastError?.message ?? '', /shutdown/);
  }
  assert.deepEqual(
    world.lines.filter(({ level }) => level === 'error'),
    [],
  );
  await world.restart();
});

test('a reload of the limits holds for whoever comes next, and for nobody who is there', async () => {
  await using world = await World.open();
  const sim = await world.connected('alice');
  await world.raw();
  const limits = { ...world.config().limits, helloSeconds: 1, connectionsPerSource: 1 };
  assert.deepEqual(await world.server.reload(world.config({ limits })), {
    applied: ['limits'],
    needsRestart: [],
    warnings: [],
  });
  assert.equal(sim.client.snapshot.state, 'connected');
  // Those that are open are more than may be now: nobody else is let in.
  await assert.rejects(world.raw());
  assert.ok(((await world.status()).counters.refusedSource ?? 0) > 0);
  await until(() => world.withCode('ERR_STAGE_TIMEOUT').length > 0, 'the stranger to be sent away after a second');
  assert.equal(world.server.sessions.length, 1);
  await exchange(world, sim, 4);
});
