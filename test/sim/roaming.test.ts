// Machines that move: another address, a way that is dead, sleep, a server elsewhere. The session and its addresses stay.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import type { VpnError } from '../../src/base/errors.ts';
import type { NetworkView } from '../../src/client/roaming.ts';
import { addressOf, exchange, Relay, type SimClient, until, World } from '../support/world.ts';

/** A machine's network that changes when a test says so. */
class FakeNetwork implements NetworkView {
  source: string | undefined = '127.0.0.1';
  boot = 0;
  readonly ignored: string[] = [];
  isWatched = false;
  #onChange: () => void = () => {};

  watch(onChange: () => void) {
    this.isWatched = true;
    this.#onChange = onChange;
    return {
      ignore: (device: string) => void this.ignored.push(device),
      [Symbol.asyncDispose]: async () => {
        this.isWatched = false;
      },
    };
  }

  sourceFor(): string | undefined {
    return this.source;
  }

  bootNow(): number {
    return this.boot;
  }

  change(): void {
    this.#onChange();
  }
}

async function moving(world: World, options: Parameters<World['client']>[1] = {}) {
  const network = new FakeNetwork();
  const relay = await Relay.open(world.port);
  const sim = await world.connected('alice', { serverPort: relay.port, network, ...options });
  const addresses = [addressOf(sim, 4), addressOf(sim, 6)];
  return { network, relay, sim, addresses };
}

/** Every byte goes nowhere, and both ends believe that their connection stands. */
function hold(relay: Relay): void {
  for (const connection of relay.connections) connection.hold();
}

async function resumed({ client }: SimClient, times = 1): Promise<void> {
  await until(() => client.snapshot.resumes === times && client.snapshot.state === 'connected', `resume ${times}`);
}

test('REQ-ROAM-001: a client whose machine has another address resumes from there at once, with its inner addresses', async () => {
  await using world = await World.open();
  const { network, relay, sim, addresses } = await moving(world);
  await using _ = relay;
  hold(relay);
  network.source = '127.0.0.9';
  network.change();
  // The next connection is from the old address again, as this machine has no other.
  network.source = '127.0.0.1';
  await resumed(sim);
  assert.deepEqual([addressOf(sim, 4), addressOf(sim, 6)], addresses);
  assert.equal((await world.status()).counters.logins, 1);
  await exchange(world, sim);
  assert.deepEqual(network.ignored, ['sim0']);
  await sim.client.disconnect();
  assert.equal(network.isWatched, false);
});

test('REQ-ROAM-001: a machine that has lost its address has no other by its tunnel', async () => {
  await using world = await World.open();
  const { network, relay, sim } = await moving(world);
  await using _ = relay;
  for (const version of [4, 6] as const) {
    network.source = addressOf(sim, version);
    network.change();
  }
  // The server still answers, so nothing is to be done.
  await until(() => sim.client.snapshot.roundTripMs !== undefined, 'the answer to a sign of life');
  await exchange(world, sim);
  assert.deepEqual([sim.client.snapshot.reconnects, sim.client.snapshot.resumes], [0, 0]);
});

test('REQ-ROAM-002: after a change that leaves the address alone, a server that does not answer is given up, one that does is not', async () => {
  await using world = await World.open();
  const { network, relay, sim, addresses } = await moving(world);
  await using _ = relay;
  network.change();
  // Longer than the answer may take: a second change asks again only when the first question is settled.
  await until(() => sim.client.snapshot.roundTripMs !== undefined, 'the answer');
  await exchange(world, sim);
  assert.equal(sim.client.snapshot.reconnects, 0);
  hold(relay);
  await until(
    () => {
      network.change();
      return sim.client.snapshot.resumes === 1;
    },
    'the resume',
    20_000,
  );
  await until(() => sim.client.snapshot.state === 'connected', 'the connection');
  assert.deepEqual([addressOf(sim, 4), addressOf(sim, 6)], addresses);
  await exchange(world, sim);
});

test('REQ-ROAM-002: a data connection that does not answer is replaced, and the session goes on', async () => {
  await using world = await World.open();
  const { network, relay, sim } = await moving(world);
  await using _ = relay;
  const [, data] = relay.connections;
  data?.hold();
  network.change();
  await until(async () => (await world.status()).counters.attached === 2, 'another data connection', 20_000);
  await until(() => sim.client.snapshot.channels === 1, 'its use');
  await exchange(world, sim);
  assert.deepEqual([sim.client.snapshot.resumes, sim.client.snapshot.reconnects], [0, 0]);
});

test('REQ-ROAM-003: a machine that slept asks for a sign of life as soon as it wakes', async () => {
  await using world = await World.open();
  const clock = new ManualClock();
  const { network, relay, sim } = await moving(world, { clock });
  await using _ = relay;
  hold(relay);
  // Time since boot goes on in sleep, and the other clock does not: silence alone is never noticed here.
  network.boot += 60_000;
  await until(() => sim.client.snapshot.resumes === 1, 'the resume', 20_000);
  await exchange(world, sim);
});

test('REQ-ROAM-004: a client that waits to try again does so at once when the network changes', async () => {
  await using world = await World.open();
  const asked: string[] = [];
  let address = '127.0.0.1';
  const lookup = async (host: string) => {
    asked.push(host);
    return [address];
  };
  const { network, relay, sim, addresses } = await moving(world, { serverHost: 'gateway.test', lookup });
  await using _ = relay;
  // Where nobody listens.
  address = '127.0.0.99';
  for (const connection of relay.connections) connection.cut();
  await until(() => sim.states.filter((state) => state === 'waiting').length >= 6, 'long waits', 30_000);
  address = '127.0.0.1';
  const tries = asked.length;
  network.change();
  await resumed(sim);
  assert.equal(asked.length - tries, 2, 'one try, and its data connection');
  assert.deepEqual([addressOf(sim, 4), addressOf(sim, 6)], addresses);
});

test('REQ-ROAM-005: the server is looked up for every try, so that it may have another address', async () => {
  await using world = await World.open({ config: { address: '::' } });
  let address = '127.0.0.1';
  const lookup = async () => [address];
  const sim = await world.connected('alice', { serverHost: 'gateway.test', serverPort: world.port, lookup });
  assert.equal(sim.client.snapshot.tls?.remote.address, '127.0.0.1');
  const inner = addressOf(sim, 4);
  address = '::1';
  await world.server.stop();
  await world.restart();
  await resumed(sim);
  assert.equal(sim.client.snapshot.tls?.remote.address, '::1');
  assert.equal(addressOf(sim, 4), inner);
});

test('REQ-RETRY-005: a client that was connected does not end because somebody else answers for a while', async () => {
  await using world = await World.open();
  const { network, relay, sim } = await moving(world);
  const { port } = relay;
  await relay[Symbol.asyncDispose]();
  await using other = await World.open();
  const imposter = await forward(port, other.port);
  await until(() => sim.client.snapshot.lastError?.code === 'ERR_CERT_UNTRUSTED', 'the wrong certificate', 20_000);
  assert.equal(sim.client.snapshot.state, 'waiting');
  await imposter[Symbol.asyncDispose]();
  await using _ = await forward(port, world.port);
  network.change();
  await resumed(sim);
  await exchange(world, sim);
});

test('what stands in the way is looked for in a new network, and not because a server is gone', async () => {
  await using world = await World.open();
  const asked: string[] = [];
  const explain = async (error: VpnError) => {
    asked.push(error.code);
    return error;
  };
  const { network, relay, sim } = await moving(world, { explain });
  await relay[Symbol.asyncDispose]();
  await until(() => sim.states.filter((state) => state === 'waiting').length >= 3, 'tries', 20_000);
  assert.deepEqual(asked, []);
  network.change();
  await until(() => asked.length > 0, 'the question', 20_000);
  assert.deepEqual(asked, ['ERR_CONNECT']);
});

/** A port of this machine that leads to another. */
async function forward(from: number, to: number): Promise<AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(to, '127.0.0.1');
    for (const socket of [near, far]) sockets.add(socket.on('error', () => {}));
    near.pipe(far).pipe(near);
  });
  await once(server.listen(from, '127.0.0.1'), 'listening');
  return {
    [Symbol.asyncDispose]: async () => {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
