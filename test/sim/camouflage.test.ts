// Tunnels that look like a web server's connections: the whole of a session, data connections and resumes included.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Secret } from '../../src/base/log.ts';
import { addressOf, exchange, Relay, until, World } from '../support/world.ts';

const PATH = '/a-path-that-nobody-guesses';

test('REQ-TLS-010: a session with its data connection lives behind the secret path, and is resumed there', async () => {
  await using world = await World.open({ config: { camouflage: PATH, camouflageOnly: true } });
  await using relay = await Relay.open(world.port);
  const profile = await world.profile('alice');
  assert.equal(profile.server.camouflage, PATH, 'the profile has the path');
  const sim = await world.connected('alice', { profile, serverPort: relay.port, camouflage: new Secret(PATH) });
  assert.equal(sim.client.snapshot.tls?.alpn, 'http/1.1');
  assert.ok(sim.client.snapshot.channels >= 1, 'data has a connection of its own');
  await exchange(world, sim, 4);
  await exchange(world, sim, 6);
  const address = addressOf(sim, 4);
  for (const connection of relay.connections) connection.cut();
  await until(() => sim.client.snapshot.resumes === 1 && sim.client.snapshot.state === 'connected', 'the resume');
  assert.equal(addressOf(sim, 4), address);
  await exchange(world, sim, 4);
  world.secrets.add(PATH.slice(1));
});

test('REQ-TLS-010: a client that does not know the path, or the trick, gets no further than anybody', async () => {
  await using world = await World.open({ config: { camouflage: PATH, camouflageOnly: true } });
  const plain = await world.client('alice');
  await assert.rejects(plain.client.connect({ once: true }), { code: 'ERR_TLS_ALPN' });
  const wrong = await world.client('bob', { camouflage: new Secret('/another-path-that-nobody-guesses') });
  await assert.rejects(wrong.client.connect({ once: true }), { code: 'ERR_UPGRADE' });
  assert.equal((await world.status()).counters.logins, 0);
});

test('a gateway that is not only camouflaged serves both kinds', async () => {
  await using world = await World.open({ config: { camouflage: PATH } });
  await exchange(world, await world.connected('alice'));
  await exchange(world, await world.connected('bob', { camouflage: new Secret(PATH) }));
});
