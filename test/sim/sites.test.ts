// Networks behind clients and static addresses, whole stack: who gets what, what a worker lets pass, and what reloads and
// restarts change. The kernel's part: test/lab/sites.test.ts.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { formatPrefix, parsePrefix } from '../../src/ip/address.ts';
import { icmpPacket } from '../support/packets.ts';
import { addressOf, equal, exchange, type SimClient, until, World } from '../support/world.ts';

const LIMIT = { timeout: 120_000 };
const RULE = '[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["any"]\n';
const site = (...users: string[]): string =>
  `[[sites]]\nname = "berlin"\nfor = [${users.map((user) => `"user:${user}"`).join(', ')}]\nnetworks = ["10.30.0.0/16", { network = "fd30::/48", as = "fd31::/48" }]\n`;
const OFFER = { limits: { networks: ['10.30.0.0/16', 'fd30::/48'].map(parsePrefix) } };

class Stage implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'customvpn-sites-'));
  readonly file = join(this.#folder, 'policy.toml');
  pool = ['10.20.0.0/24', 'fd20:1::/64'];
  #world: World | undefined;

  get world(): World {
    assert.ok(this.#world !== undefined);
    return this.#world;
  }

  write(...parts: string[]): void {
    writeFileSync(this.file, `version = 1\n${parts.join('')}${RULE}`);
  }

  async open(...parts: string[]): Promise<World> {
    this.write(...parts);
    this.#world = await World.open({ config: { policyFile: this.file, pool: this.pool, admin: { editPolicy: true } } });
    return this.#world;
  }

  async reload(...parts: string[]): Promise<{ warnings: string[] }> {
    this.write(...parts);
    const { world } = this;
    return await world.server.api(async () => world.config())['server.reload']({});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#world?.[Symbol.asyncDispose]();
    rmSync(this.#folder, { recursive: true });
  }
}

const networksOf = ({ client }: SimClient): string[] =>
  (client.snapshot.config?.networks ?? []).map(
    ({ network, seenAs }) => `${formatPrefix(network)} ${formatPrefix(seenAs)}`,
  );
const routesOf = ({ client }: SimClient): string[] => (client.snapshot.config?.routes ?? []).map(formatPrefix);
const BOTH = ['10.30.0.0/16 10.30.0.0/16', 'fd30::/48 fd31::/48'];

let sequence = 0;

/** Whether a packet from an address behind a client comes out of the gateway's device, and one to it at the client. */
async function passes(world: World, sim: SimClient, behind: string, far: string): Promise<boolean> {
  sequence += 1;
  const up = icmpPacket({ source: behind, destination: far, sequence });
  const down = icmpPacket({ source: far, destination: behind, sequence });
  sim.host.tun.inject(up);
  world.tun.inject(down);
  // What comes after it shows that it has not come.
  await exchange(world, sim);
  const has = (tun: typeof world.tun, packet: Uint8Array): boolean =>
    tun.written.some(({ bytes }) => equal(bytes, packet));
  const both = [has(world.tun, up), has(sim.host.tun, down)];
  assert.equal(both[0], both[1], 'both ways or none');
  return both[0] === true;
}

test(
  'a client has of what it offers what the policy says; others get the route, and a stranger gets nothing',
  LIMIT,
  async () => {
    await using stage = new Stage();
    const world = await stage.open(site('router'));
    const router = await world.connected('router', OFFER);
    const other = await world.connected('other', OFFER);
    assert.deepEqual(networksOf(router), BOTH);
    assert.deepEqual(networksOf(other), []);
    assert.ok(routesOf(other).includes('10.30.0.0/16') && routesOf(other).includes('fd31::/48'));
    assert.ok(!routesOf(router).includes('10.30.0.0/16'), 'not to whom it is behind');
    assert.ok(routesOf(router).includes('10.20.0.0/24'), 'it has to find the way to the clients');
    assert.equal(await passes(world, router, '10.30.1.2', '192.0.2.80'), true);
    assert.equal(await passes(world, router, 'fd31::2', '2001:db8::80'), true);
    assert.equal(await passes(world, router, 'fd30::2', '2001:db8::80'), false, 'as others see it, not as it is');
    assert.equal(await passes(world, router, '10.31.0.2', '192.0.2.80'), false);
    assert.equal((await world.drops()).source_not_leased, 2);
    sequence += 1;
    const spoofed = icmpPacket({ source: '10.30.1.2', destination: '192.0.2.80', sequence });
    other.host.tun.inject(spoofed);
    await exchange(world, other);
    assert.ok(!world.tun.written.some(({ bytes }) => equal(bytes, spoofed)));
    const silent = await world.connected('router', {});
    assert.deepEqual(networksOf(silent), [], 'who offers nothing has nothing');
  },
);

test('a site stays with its session over a reload and is taken by another one', LIMIT, async () => {
  await using stage = new Stage();
  const world = await stage.open(site('router', 'stand-in'));
  const router = await world.connected('router', OFFER);
  const next = await world.connected('stand-in', OFFER);
  assert.deepEqual([networksOf(router), networksOf(next)], [BOTH, []]);
  await router.client.disconnect();
  await until(() => networksOf(next).length === 2, 'the next one has it');
  assert.equal(await passes(world, next, '10.30.1.2', '192.0.2.80'), true);
  await stage.reload(site('nobody'));
  await until(() => networksOf(next).length === 0, 'nobody has it');
  assert.equal(await passes(world, next, '10.30.1.2', '192.0.2.80'), false);
  assert.equal((await world.drops()).no_session, 1, 'the gateway has no way to it either');
  await stage.reload(site('stand-in'));
  await until(() => networksOf(next).length === 2, 'it has it again');
  assert.equal(await passes(world, next, '10.30.1.2', '192.0.2.80'), true);
});

test('a pool does not grow into the network of a site', LIMIT, async () => {
  await using stage = new Stage();
  const world = await stage.open(site('router'));
  const router = await world.connected('router', OFFER);
  const near = site('router').replaceAll('10.30.0.0/16', '10.20.1.0/24');
  await stage.reload(near);
  await assert.rejects(
    world.server.reload(world.config({ policyFile: stage.file, pool: ['10.20.0.0/23', 'fd20:1::/64'] })),
    {
      code: 'ERR_CONFIG_VALUE',
      message: /10\.20\.1\.0\/24 of the site berlin overlaps the pool/,
    },
  );
  await exchange(world, router);
  assert.equal((await world.status()).pool[0]?.prefix, '10.20.0.0/24');
});

test('addresses may be kept in what a pool grows by, and nobody else gets them', LIMIT, async () => {
  await using stage = new Stage();
  stage.pool = ['10.20.0.0/30', 'fd20:1::/64'];
  const world = await stage.open();
  await world.connected('alice');
  stage.write('[[addresses]]\nfor = ["user:carol"]\naddresses = ["10.20.0.3"]\n');
  const grown = world.config({ pool: ['10.20.0.0/28', 'fd20:1::/64'] });
  assert.deepEqual((await world.server.reload(grown)).applied, ['pool']);
  assert.equal(addressOf(await world.connected('bob'), 4), '10.20.0.4');
  assert.equal(addressOf(await world.connected('carol'), 4), '10.20.0.3');
});

test(
  'REQ-SITE-007: an offer is good for the session: its client has the networks again after a restart',
  LIMIT,
  async () => {
    await using stage = new Stage();
    const world = await stage.open(site('router'));
    const router = await world.connected('router', OFFER);
    await world.server.stop();
    await world.restart({ policyFile: stage.file });
    await until(() => router.client.snapshot.state === 'connected' && world.server.sessions.length === 1, 'it is back');
    assert.equal(router.client.snapshot.resumes, 1);
    assert.deepEqual(networksOf(router), BOTH);
    assert.equal(await passes(world, router, '10.30.1.2', '192.0.2.80'), true);
  },
);

test(
  'static addresses: by user and range, kept from others, two devices of one user, and told when somebody else has one',
  LIMIT,
  async () => {
    await using stage = new Stage();
    const kept = '[[addresses]]\nfor = ["user:alice"]\naddresses = ["10.20.0.2", "10.20.0.99"]\n';
    const world = await stage.open(kept);
    const bob = await world.connected('bob');
    assert.equal(addressOf(bob, 4), '10.20.0.3', 'the first one of the pool is kept');
    const alice = await world.connected('alice');
    assert.deepEqual([addressOf(alice, 4), addressOf(alice, 6)], ['10.20.0.2', 'fd20:1::2']);
    const second = await world.connected('alice');
    assert.equal(addressOf(second, 4), '10.20.0.99');
    const third = await world.connected('alice');
    assert.equal(addressOf(third, 4), '10.20.0.4', 'who has more devices than addresses gets another one');
    const { warnings } = await stage.reload('[[addresses]]\nfor = ["user:carol"]\naddresses = ["10.20.0.3"]\n');
    assert.match(
      warnings.join('\n'),
      /10\.20\.0\.3 and fd20:1::3 is kept for somebody by line 2, and bob has it until the session ends/,
    );
    const applied = await world.server
      .api(async () => world.config())
      ['policy.apply']({
        text: `version = 1\n\n[[addresses]]\nfor = ["user:carol"]\naddresses = ["10.20.0.3"]\n${RULE}`,
      });
    assert.match(
      applied.warnings.join('\n'),
      /10\.20\.0\.3 and fd20:1::3 is kept for somebody by line 3, and bob has it/,
    );
    const carol = await world.connected('carol');
    assert.notEqual(addressOf(carol, 4), '10.20.0.3');
    await bob.client.disconnect();
    await carol.client.disconnect();
    const again = await world.connected('carol');
    assert.equal(addressOf(again, 4), '10.20.0.3');
  },
);
