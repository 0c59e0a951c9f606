/** A new configuration under live sessions: pools that grow, pools that cannot, and a change that fails half way. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { VpnError } from '../../src/base/errors.ts';
import { AuthService } from '../../src/gateway/auth/service.ts';
import type { SupervisorPort } from '../../src/gateway/ipc/ports.ts';
import { addressOf, exchange, until, World } from '../support/world.ts';

const SMALL = ['10.20.0.0/30', 'fd20:1::/64'];
const LARGE = ['10.20.0.0/28', 'fd20:1::/64'];

test('a pool that has run out grows: who is there stays, and who was refused gets in', async () => {
  await using world = await World.open({ config: { pool: SMALL } });
  const alice = await world.connected('alice');
  const bob = await world.client('bob');
  await assert.rejects(bob.client.connect({ once: true }), { code: 'ERR_POOL_EXHAUSTED' });
  const [before] = world.server.sessions;
  assert.deepEqual(await world.server.reload(world.config({ pool: LARGE })), {
    applied: ['pool'],
    needsRestart: [],
    warnings: [],
  });
  const [first] = (await world.status()).pool;
  assert.deepEqual([first?.prefix, first?.size], ['10.20.0.0/28', '13']);
  const carol = await world.connected('carol');
  assert.equal(addressOf(carol, 4), '10.20.0.3');
  await exchange(world, carol, 4);
  await exchange(world, carol, 6);
  await exchange(world, alice, 4);
  assert.deepEqual([world.server.sessions[0]?.id, alice.client.snapshot.reconnects], [before?.id, 0]);

  const address = addressOf(carol, 4);
  await world.server.stop();
  await world.restart({ pool: LARGE });
  await until(() => carol.client.snapshot.resumes === 1, 'the return after a start with the larger pool');
  assert.equal(addressOf(carol, 4), address);
});

for (const [what, pool, why] of [
  ['another network', ['10.30.0.0/24', 'fd20:1::/64'], /^pool: expected 10\.20\.0\.0\/28 or a larger .*started again$/],
  ['a smaller one', SMALL, /got 10\.20\.0\.0\/30/],
  ['one family less', ['10.20.0.0/28'], /expected fd20:1::\/64 or a larger .* got none/],
] as const) {
  test(`a reload leaves the pool as it is where it would be ${what}, says why, and applies the rest`, async () => {
    await using world = await World.open({ config: { pool: LARGE } });
    const sim = await world.connected('alice');
    const { applied, needsRestart, warnings } = await world.server.reload(
      world.config({ pool: [...pool], routes: ['198.51.100.0/24'] }),
    );
    assert.deepEqual([applied, needsRestart], [['routes'], ['pool']]);
    assert.match(warnings.join('\n'), why);
    await until(() => sim.client.snapshot.config?.routes.length === 1, 'the route');
    const [first] = (await world.status()).pool;
    assert.equal(first?.prefix, '10.20.0.0/28');
    await exchange(world, sim, 4);
  });
}

test('a reload that fails half way is taken back whole: host, policy, pool and what is pushed', async () => {
  await using world = await World.open({ config: { pool: SMALL } });
  const config = world.config();
  await using undo = new AsyncDisposableStack();
  const service = undo.adopt(
    await AuthService.open({ config, workers: 2, stateDir: undefined, clock: systemClock, log: world.log }),
    (opened) => opened.close(),
  );
  const said: string[] = [];
  const supervisor: SupervisorPort = {
    place: async () => {},
    unplace: async () => {},
    update: async ({ pool }) => void said.push(`update ${pool[0]}`),
    takeBack: async ({ pool }) => void said.push(`back ${pool[0]}`),
    reloaded: () => void said.push('reloaded'),
    enforce: async () => {},
    admit: async () => {},
    dismiss: async () => {},
    report: async () => ({ counters: {}, warnings: [] }),
  };
  let isBroken = true;
  await service.begin({
    supervisor,
    port: 1,
    useCredentials: async () => {
      if (isBroken) throw new VpnError('ERR_BUSY', 'a worker has ended');
    },
  });
  undo.defer(() => service.pause());
  const next = world.config({ pool: LARGE, routes: ['198.51.100.0/24'] });
  await assert.rejects(service.reload(next), { code: 'ERR_BUSY' });
  assert.deepEqual(said, ['update 10.20.0.0/28', 'back 10.20.0.0/30']);
  assert.deepEqual([service.pool.size, service.config.pool, service.config.routes], [1, SMALL, []]);
  isBroken = false;
  assert.deepEqual((await service.reload(next)).applied, ['pool', 'routes']);
  assert.deepEqual(said.slice(2), ['update 10.20.0.0/28', 'reloaded']);
  assert.deepEqual([service.pool.size, service.config.pool], [13, LARGE]);
});

test('an operator who is here through the tunnel is warned when it would be the last time, and nobody else is', async () => {
  const services = ['udp/53', 'tcp/22'];
  await using world = await World.open({ config: { pool: LARGE, services } });
  let next = world.config({ pool: LARGE, services });
  const api = world.server.api(async () => next);
  const warned = async (from: string, to: string) => {
    const { warnings } = await api['server.reload']({ via: { from, to, port: 22 } });
    return warnings.filter((warning) => warning.includes('comes through the tunnel'));
  };
  assert.deepEqual(await warned('10.20.0.2', '10.20.0.1'), []);
  next = world.config({ pool: LARGE, services: ['udp/53'] });
  assert.deepEqual(await warned('198.51.100.7', '192.0.2.1'), [], 'from outside');
  for (const [from, to] of [
    ['10.20.0.2', '10.20.0.1'],
    ['fd20:1::2', 'fd20:1::1'],
  ] as const) {
    const [warning, ...others] = await warned(from, to);
    assert.match(warning ?? '', new RegExp(`from ${from} to port 22 of ${to}, .*put "tcp/22" back into services`));
    assert.deepEqual(others, []);
  }
  assert.deepEqual((await api['server.reload']({})).warnings, [], 'nobody is here through the tunnel');
});
