// Sessions with several data connections: how many there are, what goes where, and what the loss of one costs.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import type { VpnClient } from '../../src/client/client.ts';
import { udpPacket } from '../support/packets.ts';
import { addressOf, equal, exchange, Relay, type SimClient, until, World } from '../support/world.ts';

const FAR = '192.0.2.80';
const FLOWS = Array.from({ length: 64 }, (_, index) => 20_000 + index);

async function channels(client: VpnClient, count: number): Promise<void> {
  await until(() => client.snapshot.channels === count, `${count} data connections`);
}

/** One packet of each flow each way; all arrive. */
async function exchangeFlows(world: World, sim: SimClient, payload = 100): Promise<void> {
  const own = addressOf(sim, 4);
  const up = FLOWS.map((sourcePort) => udpPacket({ source: own, destination: FAR, sourcePort, payload }));
  const down = FLOWS.map((destinationPort) => udpPacket({ source: FAR, destination: own, destinationPort, payload }));
  for (const [from, to, packets] of [
    [sim.host.tun, world.tun, up],
    [world.tun, sim.host.tun, down],
  ] as const) {
    to.written.length = 0;
    for (const packet of packets) from.inject(packet);
    await until(() => to.written.length === packets.length, 'a packet of every flow');
    for (const packet of packets) assert.ok(to.written.some(({ bytes }) => equal(bytes, packet)));
  }
}

const wishes: readonly [allowed: number, wish: number | undefined, used: number][] = [
  [1, undefined, 1],
  [4, undefined, 4],
  [4, 2, 2],
  [2, 16, 2],
];
for (const [allowed, wish, used] of wishes) {
  test(`REQ-ATTACH-008: a gateway that allows ${allowed} and a client that wants ${wish ?? 'what it may have'} use ${used}`, async () => {
    await using world = await World.open({ config: { data: { channels: allowed } } });
    const sim = await world.connected('alice', wish === undefined ? {} : { dataChannels: wish });
    await channels(sim.client, used);
    await until(() => world.server.sessions[0]?.channels === used, 'the gateway to see them');
    await exchangeFlows(world, sim);
    assert.equal((await world.status()).counters.attached, used);
    assert.deepEqual(await world.drops(), {});
  });
}

test('REQ-SPREAD-001: flows are spread over the data connections, in both directions', async () => {
  await using world = await World.open({ config: { data: { channels: 3 } } });
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { serverPort: relay.port });
  await channels(sim.client, 3);
  await until(() => world.server.sessions[0]?.channels === 3, 'the gateway to see them');
  const before = relay.connections.map(({ upBytes, downBytes }) => ({ upBytes, downBytes }));
  await exchangeFlows(world, sim, 1000);
  const [control, ...data] = relay.connections.map(({ upBytes, downBytes }, index) => ({
    up: upBytes - (before[index]?.upBytes ?? 0),
    down: downBytes - (before[index]?.downBytes ?? 0),
  }));
  assert.equal(data.length, 3);
  for (const { up, down } of data) assert.ok(up > 5_000 && down > 5_000, `each carries its share: ${up}, ${down}`);
  assert.ok((control?.up ?? 0) < 1000 && (control?.down ?? 0) < 1000);
});

test('REQ-ATTACH-008: a lost data connection costs the session nothing and is dialled again, at once and then with waits', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ config: { data: { channels: 2 } } });
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { serverPort: relay.port, clock });
  await channels(sim.client, 2);
  const [before] = world.server.sessions;
  relay.connections[2]?.cut();
  await until(() => relay.connections.length === 4, 'another connection at once');
  await channels(sim.client, 2);
  await until(() => world.server.sessions[0]?.channels === 2, 'the gateway to see it');
  await exchangeFlows(world, sim);

  relay.connections[3]?.cut();
  await channels(sim.client, 1);
  await exchangeFlows(world, sim);
  assert.equal(relay.connections.length, 4, 'one that is lost soon again waits');
  clock.advance(30_000);
  await channels(sim.client, 2);
  assert.equal(relay.connections.length, 5);
  await until(() => world.server.sessions[0]?.channels === 2, 'the gateway to see it');
  await exchangeFlows(world, sim);
  const { reconnects, resumes, state } = sim.client.snapshot;
  assert.deepEqual([reconnects, resumes, state], [0, 0, 'connected']);
  assert.equal(world.server.sessions[0]?.id, before?.id);
});

for (const count of [1, 3]) {
  test(`REQ-ATTACH-009: a session whose first data connection comes to nothing lives, inline, until it has its ${count}`, async () => {
    const clock = new ManualClock();
    await using world = await World.open({ config: { data: { channels: count } } });
    await using relay = await Relay.open(world.port);
    relay.takes = 1;
    const sim = await world.connected('alice', { serverPort: relay.port, clock });
    const [before] = world.server.sessions;
    await exchange(world, sim);
    clock.advance(1000);
    const failures = () => world.lines.filter(({ msg }) => msg === 'a data connection could not be dialled');
    await until(() => failures().length >= 2, 'another try in vain');
    await exchange(world, sim);
    assert.equal(sim.client.snapshot.channels, 0);

    relay.takes = Number.POSITIVE_INFINITY;
    clock.advance(30_000);
    await channels(sim.client, count);
    await until(() => world.server.sessions[0]?.channels === count, 'the gateway to see them');
    const carried = relay.connections[0]?.upBytes ?? 0;
    await exchangeFlows(world, sim, 1000);
    assert.ok((relay.connections[0]?.upBytes ?? 0) - carried < 1000, 'nothing goes inline any more');
    const { reconnects, resumes } = sim.client.snapshot;
    assert.deepEqual([reconnects, resumes, world.server.sessions[0]?.id], [0, 0, before?.id]);
    assert.equal((await world.status()).counters.logins, 1);
  });
}

test('the control connection carries nothing once any data connection is there, whichever of them comes first', async () => {
  const clock = new ManualClock();
  await using world = await World.open({ config: { data: { channels: 3 } } });
  await using relay = await Relay.open(world.port);
  relay.takes = 1;
  const sim = await world.connected('alice', { serverPort: relay.port, clock });
  // The first has to wait before it is tried again, the others have not.
  relay.takes = Number.POSITIVE_INFINITY;
  await channels(sim.client, 2);
  await until(() => world.server.sessions[0]?.channels === 2, 'the gateway to see them');
  const [control] = relay.connections;
  const before = { up: control?.upBytes ?? 0, down: control?.downBytes ?? 0 };
  await exchangeFlows(world, sim, 1000);
  assert.equal(sim.client.snapshot.channels, 2);
  assert.ok((control?.upBytes ?? 0) - before.up < 1000 && (control?.downBytes ?? 0) - before.down < 1000);
});

test('the only data connection of a session may be lost, too', async () => {
  await using world = await World.open();
  await using relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { serverPort: relay.port });
  relay.connections[1]?.cut();
  await until(async () => (await world.status()).counters.attached === 2, 'another');
  await channels(sim.client, 1);
  await exchange(world, sim);
  assert.equal(sim.client.snapshot.resumes, 0);
});

test('REQ-LIVE-006: of several connections the one that is dead is given up, whichever end finds it silent', async () => {
  for (const end of ['client', 'gateway'] as const) {
    const clock = new ManualClock();
    const other = new ManualClock();
    const [near, far] = end === 'client' ? [clock, other] : [other, clock];
    await using world = await World.open({ config: { data: { channels: 2 } }, clock: far });
    await using relay = await Relay.open(world.port);
    const sim = await world.connected('alice', { serverPort: relay.port, clock: near });
    await channels(sim.client, 2);
    await until(() => world.server.sessions[0]?.channels === 2, 'the gateway to see them');
    const [before] = world.server.sessions;
    relay.connections[2]?.hold();
    await until(
      async () => {
        clock.advance(500);
        const { counters } = await world.status();
        return end === 'client' ? counters.attached === 3 : world.server.sessions[0]?.channels === 1;
      },
      'the dead one to be given up',
      60_000,
    );
    if (end === 'client') {
      await channels(sim.client, 2);
      await exchangeFlows(world, sim);
    } else {
      const own = addressOf(sim, 4);
      for (const destinationPort of FLOWS)
        world.tun.inject(udpPacket({ source: FAR, destination: own, destinationPort }));
      await until(() => sim.host.tun.written.length === FLOWS.length, 'every flow on the other one');
    }
    assert.deepEqual([sim.client.snapshot.resumes, sim.client.snapshot.reconnects], [0, 0]);
    assert.equal(world.server.sessions[0]?.id, before?.id);
  }
});
