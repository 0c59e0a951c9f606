/** What the gateway does not let clients do, and what a client does not let the gateway do. Every drop is counted. */

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, INNER, labOptions, OUTER, peer, ROUTES, startPeer } from './deployment.ts';
import { until } from './process.ts';

const OPEN_PORT = '9001';
const CLOSED_PORT = '9000';

describe('policy', labOptions(), () => {
  let deployment: Deployment;
  let first: Client;
  let second: Client;
  let device: string;

  before(async () => {
    deployment = await Deployment.open({
      clients: 2,
      // Each holds the address at which one client dials the gateway.
      routes: [...ROUTES, '198.51.100.0/24', '2001:db8:3::/64'],
      settings: `services = ["${OPEN_PORT}/tcp"]\n`,
    });
    await deployment.configure((text) => text.replace('services = []\n', ''));
    const [one, two] = deployment.clients;
    assert.ok(one !== undefined && two !== undefined);
    first = one;
    second = two;
    await deployment.run();
    await Promise.all([first, second].map((client) => deployment.enrol(client)));
    const { device: name } = await first.up();
    // The second has no super-packets: it is on the gateway's other device.
    await second.dialOver(6);
    await second.up('--plain');
    device = name ?? '';
    await startPeer(deployment.gateway, 'serve', OPEN_PORT, '::');
    await startPeer(deployment.gateway, 'serve', CLOSED_PORT, '::');
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  /** Runs `action` and says by how much the gateway's counters rose. */
  async function risen(action: () => Promise<void>): Promise<Record<string, number>> {
    const counts = async () => {
      const { counters, drops } = await deployment.status;
      return { ...counters, ...drops };
    };
    const from = await counts();
    await action();
    const to = await counts();
    return Object.fromEntries(Object.entries(to).map(([name, value]) => [name, value - (from[name] ?? 0)]));
  }

  /** Sends a few packets over the tunnel, whatever the routes say, and expects no answer. */
  async function unanswered(client: Client, address: string, ...flags: string[]): Promise<void> {
    const ping = await client.ping(address, '-q', '-c', '3', '-i', '0.05', '-W', '0.4', ...flags);
    assert.match(ping.stdout, /3 packets transmitted, 0 received/, ping.stdout + ping.stderr);
  }

  /** Routes more into the first client's tunnel than was pushed. */
  async function route(prefix: string): Promise<void> {
    await first.namespace.run(['ip', 'route', 'add', prefix, 'dev', device]);
  }

  test('what is allowed works', async () => {
    const addresses = [BEHIND.host4, BEHIND.host6, INNER.gateway4, INNER.gateway6];
    for (const client of [first, second]) {
      const answered = await Promise.all(addresses.map((address) => client.reaches(address)));
      assert.deepEqual(answered, [true, true, true, true], client.user);
    }
  });

  test('a route that holds the address of the gateway is taken, and the connection to the gateway stays outside of it', async () => {
    for (const { client, address } of [
      { client: first, address: OUTER[0].gateway4 },
      { client: second, address: OUTER[1].gateway6 },
    ]) {
      const { refused, routes, reconnects, device: name } = await client.status();
      assert.deepEqual(refused, []);
      assert.deepEqual(routes.toSorted(), [...ROUTES, '198.51.100.0/24', '2001:db8:3::/64'].toSorted());
      // What is not ours goes into the tunnel, also to the gateway's own address.
      const { stdout } = await client.namespace.run(['ip', 'route', 'get', address]);
      assert.ok(stdout.includes(` dev ${name} `), stdout);
      assert.ok(await client.reaches(BEHIND.host4));
      assert.equal((await client.status()).reconnects, reconnects);
    }
  });

  test('a destination outside the routes is dropped, and counted', async () => {
    await route(`${BEHIND.closed4}/32`);
    await route(`${BEHIND.closed6}/128`);
    const counts = await risen(async () => {
      await unanswered(first, BEHIND.closed4);
      await unanswered(first, BEHIND.closed6);
    });
    assert.equal(counts.rule_drop_destination, 6);
    // The gateway itself does reach them: only the rule stands between.
    for (const address of [BEHIND.closed4, BEHIND.closed6]) {
      await deployment.gateway.run(['ping', '-q', '-c', '1', '-W', '1', address]);
    }
  });

  test('clients do not reach each other, across devices and on one, and are not told by a redirect', async () => {
    const [address4 = '', address6 = ''] = (await second.status()).addresses;
    await route(`${address4}/32`);
    await route(`${address6}/128`);
    const counts = await risen(async () => {
      await unanswered(first, address4);
      await unanswered(first, address6);
    });
    assert.equal(counts.rule_drop_client_to_client, 6);
  });

  test("the gateway's own ports are closed but for its services, on every address it has", async () => {
    const accepted = async (address: string, port: string) =>
      (await peer<{ accepted: boolean }>(first.namespace, 'reach', address, port)).accepted;
    await route(`${OUTER[1].gateway4}/32`);
    const closed: [string, string][] = [
      [INNER.gateway4, CLOSED_PORT],
      [INNER.gateway6, CLOSED_PORT],
      [BEHIND.gateway4, OPEN_PORT],
      [BEHIND.gateway6, OPEN_PORT],
      [OUTER[1].gateway4, CLOSED_PORT],
    ];
    const counts = await risen(async () => {
      const results = await Promise.all(closed.map(([address, port]) => accepted(address, port)));
      assert.ok(!results.includes(true), JSON.stringify(results));
    });
    assert.ok((counts.rule_drop_input ?? 0) >= closed.length, JSON.stringify(counts));
    for (const address of [INNER.gateway4, INNER.gateway6]) assert.equal(await accepted(address, OPEN_PORT), true);
    // They do listen: from behind they are reached.
    const behind = await peer<{ accepted: boolean }>(deployment.behind, 'reach', BEHIND.gateway4, CLOSED_PORT);
    assert.equal(behind.accepted, true);
  });

  for (const which of ['super-packets', 'plain'] as const) {
    test(`a source that is not leased is dropped, and counted: ${which}`, async () => {
      const client = which === 'plain' ? second : first;
      const { device: name, addresses } = await client.status();
      // Who has taken a client over does without its guard.
      await client.namespace.run(['nft', 'delete', 'table', 'inet', `customvpn_${name}`]);
      const other = which === 'plain' ? first : second;
      const [stolen = ''] = (await other.status()).addresses;
      const sources = ['10.88.0.77', stolen, INNER.gateway4, BEHIND.host4, 'fd88::77', '2001:db8:2::99'];
      const counts = await risen(async () => {
        for (const source of sources) {
          const isV6 = source.includes(':');
          const address = [`${source}/${isV6 ? 128 : 32}`, 'dev', name ?? ''];
          await client.namespace.run(['ip', 'address', 'add', ...address, ...(isV6 ? ['nodad'] : [])]);
          // An address that is one's own is no destination to send to.
          const destination = isV6 ? BEHIND.host6 : source === BEHIND.host4 ? BEHIND.nobody4 : BEHIND.host4;
          await unanswered(client, destination, '-I', source);
          await client.namespace.run(['ip', 'address', 'delete', ...address]);
        }
      });
      assert.equal(counts.source_not_leased, 3 * sources.length);
      assert.ok(await client.reaches(BEHIND.host4, '-I', addresses[0] ?? ''));
    });
  }

  test('multicast, broadcast and loopback are never taken from a client', async () => {
    const counts = await risen(async () => {
      await route('239.1.2.3/32');
      await unanswered(first, '239.1.2.3', '-I', device);
      await route('169.254.7.7/32');
      await unanswered(first, '169.254.7.7');
    });
    const dropped = (counts.rule_drop_destination_class ?? 0) + (counts.destination_class ?? 0);
    assert.ok(dropped >= 6, JSON.stringify(Object.entries(counts).filter(([, count]) => count > 0)));
  });

  test('nobody outside reaches a client by its inner address', async () => {
    const [address4 = ''] = (await first.status()).addresses;
    await deployment.behind.run(['ip', 'route', 'add', '10.88.0.0/24', 'via', BEHIND.gateway4]);
    const counts = await risen(async () => {
      const ping = ['ping', '-q', '-c', '3', '-i', '0.1', '-W', '1', address4];
      assert.notEqual((await deployment.behind.run(ping, { anyStatus: true })).status, 0);
    });
    assert.equal(counts.rule_drop_pool_outside, 3);
  });

  test('after all that, both clients are still served', async () => {
    await until('an answer', async () => (await first.reaches(BEHIND.host4)) && (await second.reaches(BEHIND.host6)));
    assert.equal((await deployment.status).sessions, 2);
  });
});
