/**
 * Networks behind clients at a real gateway: two sites with the same network, seen under others; hosts behind both ends speak,
 * nobody else may speak for them, and with the client goes the way. And an address that is always the same.
 */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, changesSince, Deployment, labOptions, OUTER } from './deployment.ts';
import { until } from './process.ts';
import type { Namespace } from './rig.ts';
import type { Snapshot } from './snapshot.ts';

/** As it is at both sites. */
const LOCAL = { network4: '192.168.7.0/24', router4: '192.168.7.1', host4: '192.168.7.2' };
const LOCAL6 = { network6: 'fd07:7::/64', router6: 'fd07:7::1', host6: 'fd07:7::2' };
/** As everybody else sees the same host. */
const SEEN = [
  { network4: '10.201.7.0/24', host4: '10.201.7.2', network6: 'fd01:7::/64', host6: 'fd01:7::2' },
  { network4: '10.202.7.0/24', host4: '10.202.7.2', network6: 'fd02:7::/64', host6: 'fd02:7::2' },
] as const;
const KEPT = ['10.88.0.77', 'fd88::4d'];
const WITHIN_MS = 20_000;

const site = (number: 0 | 1): string => `
[[sites]]
name = "site${number}"
for = ["user:user${number}"]
networks = [
  { network = "${LOCAL.network4}", as = "${SEEN[number].network4}" },
  { network = "${LOCAL6.network6}", as = "${SEEN[number].network6}" },
]
openTo = ["192.0.2.0/24", "2001:db8:2::/64"]
`;
const POLICY = `version = 1
${site(0)}${site(1)}
[[addresses]]
for = ["user:user1"]
addresses = ["${KEPT[0]}"]

[[rules]]
action = "allow"
from = ["any"]
to = ["site:site0", "site:site1", "${BEHIND.host4}", "${BEHIND.host6}"]
`;

describe('networks behind clients', labOptions(), () => {
  let deployment: Deployment;
  let first: Client;
  let second: Client;
  const hosts: Namespace[] = [];
  let clean: Snapshot;

  const offers = ['--network', LOCAL.network4, LOCAL6.network6];
  const pings = async (from: Namespace, address: string, ...flags: string[]): Promise<boolean> =>
    (await from.run(['ping', '-n', '-q', '-c', '2', '-i', '0.1', '-W', '1', ...flags, address], { anyStatus: true }))
      .status === 0;
  const routes = async (): Promise<string> => {
    const [four, six] = await Promise.all(
      ['-4', '-6'].map((version) => deployment.gateway.run(['ip', version, 'route', 'show'])),
    );
    return `${four?.stdout}${six?.stdout}`;
  };
  const drops = async (name: string): Promise<number> => (await deployment.status).counters[name] ?? 0;

  before(async () => {
    deployment = await Deployment.open({ clients: 2, workers: 1 });
    const [one, two] = deployment.clients;
    assert.ok(one !== undefined && two !== undefined);
    first = one;
    second = two;
    for (const [number, client] of [first, second].entries()) {
      const host = await deployment.rig.namespace(`site${number}`);
      await deployment.rig.link(
        { namespace: client.namespace, device: 'lan0', addresses: [`${LOCAL.router4}/24`, `${LOCAL6.router6}/64`] },
        { namespace: host, device: 'lan0', addresses: [`${LOCAL.host4}/24`, `${LOCAL6.host6}/64`] },
      );
      await host.run(['ip', 'route', 'add', 'default', 'via', LOCAL.router4]);
      await host.run(['ip', '-6', 'route', 'add', 'default', 'via', LOCAL6.router6]);
      hosts.push(host);
    }
    // The host on the gateway's side has to know the way, as a site is not masqueraded.
    for (const { network4, network6 } of SEEN) {
      await deployment.behind.run(['ip', 'route', 'add', network4, 'via', BEHIND.gateway4]);
      await deployment.behind.run(['ip', '-6', 'route', 'add', network6, 'via', BEHIND.gateway6]);
    }
    const policy = join(deployment.state, 'policy.toml');
    await writeFile(policy, POLICY);
    await deployment.configure((text) => `policyFile = "${policy}"\n${text}`);
    clean = await first.namespace.snapshot();
    await deployment.run();
    for (const client of [first, second]) await deployment.enrol(client);
    await first.up(...offers);
    await second.up('--plain', ...offers);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  test('hosts of two sites that have the same network speak with each other, and with those behind the gateway', async () => {
    const [host0, host1] = hosts;
    assert.ok(host0 !== undefined && host1 !== undefined);
    for (const version of ['host4', 'host6'] as const) {
      assert.ok(await pings(host0, SEEN[1][version]), `site 0 to site 1, ${version}`);
      assert.ok(await pings(host1, SEEN[0][version]), `site 1 to site 0, ${version}`);
      assert.ok(await pings(host0, BEHIND[version]), `site 0 to what is behind the gateway, ${version}`);
      assert.ok(await pings(deployment.behind, SEEN[0][version]), `from there to site 0, ${version}`);
      assert.ok(await pings(deployment.behind, SEEN[1][version]), `from there to site 1, ${version}`);
      assert.ok(await first.reaches(SEEN[1][version]), `a client to the other's site, ${version}`);
    }
    const shown = await deployment.ask<{ sites: { name: string; users: string[] }[] }>('policy', 'show');
    assert.deepEqual(
      shown.sites.map(({ name, users }) => [name, ...users]),
      [
        ['site0', first.user],
        ['site1', second.user],
      ],
    );
    const sessions = await deployment.ask<{ user: string; networks?: string[] }[]>('server', 'sessions');
    assert.deepEqual(sessions.find(({ user }) => user === first.user)?.networks, [SEEN[0].network4, SEEN[0].network6]);
  });

  test('nobody else speaks for a site, and a client for no more than its own', async () => {
    // Whatever is not translated leaves the client as it is, and the gateway's worker refuses it.
    await second.namespace.run(['ip', 'address', 'add', SEEN[0].host4, 'dev', 'lo']);
    assert.equal(await pings(second.namespace, BEHIND.host4, '-I', SEEN[0].host4), false);
    await second.namespace.run(['ip', 'address', 'del', SEEN[0].host4, 'dev', 'lo']);
    // The rules of the kernel alone: a packet on the wrong device, as a worker that was taken over would write it.
    const isHeld = await deployment.gateway.run(['nft', 'list', 'chain', 'inet', 'customvpn', 'source_0']);
    assert.match(isHeld.stdout, /ip saddr @networks4_0 return[\s\S]*counter name "drop_source" drop/);
    const sets = await Promise.all(
      [0, 1].map((number) =>
        deployment.gateway.run(['nft', 'list', 'set', 'inet', 'customvpn', `networks4_${number}`]),
      ),
    );
    const owners = sets.map(({ stdout }) => SEEN.map(({ network4 }) => stdout.includes(network4)));
    assert.equal(owners.flat().filter(Boolean).length, 2, 'each network is that of one device');
  });

  test('with its client a site goes: the route, the right to speak, and the way out to anywhere else', async () => {
    const [host0, host1] = hosts;
    assert.ok(host0 !== undefined && host1 !== undefined);
    assert.match(await routes(), /10\.202\.7\.0\/24 dev cvpn0/);
    await second.down();
    await until('the route to be gone', async () => !(await routes()).includes('10.202.7.0/24'), {
      timeoutMs: WITHIN_MS,
    });
    assert.ok((await routes()).includes(SEEN[0].network4), 'the other stays');
    assert.ok(!(await routes()).includes(SEEN[1].network6));
    // As a default route would, and most gateways have one.
    await deployment.gateway.run(['ip', 'route', 'add', '10.0.0.0/8', 'via', BEHIND.host4]);
    const before = await drops('rule_drop_site_away');
    assert.equal(await pings(host0, SEEN[1].host4), false);
    assert.ok((await drops('rule_drop_site_away')) > before, 'it is sent nowhere else');
    const { addresses } = await second.up('--plain', ...offers);
    assert.deepEqual(addresses, KEPT);
    assert.ok(await pings(host1, SEEN[0].host4));
    assert.ok(await pings(host0, SEEN[1].host6));
  });

  test('a machine that forwards for its site forwards nothing else', async () => {
    const [host0] = hosts;
    const [outer] = OUTER;
    assert.ok(host0 !== undefined);
    const back = ['route', 'add', LOCAL6.network6, 'via', outer.client6];
    await deployment.gateway.run(['ip', '-6', ...back]);
    assert.ok(await pings(first.namespace, outer.gateway6), 'the machine itself gets there');
    assert.equal(await pings(host0, outer.gateway6), false);
    await deployment.gateway.run(['ip', '-6', ...back.with(1, 'del')]);
    assert.ok(await pings(host0, BEHIND.host6));
  });

  test('a client that was kept and comes up with another offer has what it offers then', async () => {
    const seen = async (): Promise<string[] | undefined> => {
      const sessions = await deployment.ask<{ user: string; networks?: string[] }[]>('server', 'sessions');
      const own = sessions.filter(({ user }) => user === second.user);
      assert.equal(own.length, 1);
      return own[0]?.networks;
    };
    await second.down('--keep');
    await second.up('--network', LOCAL.network4);
    assert.deepEqual(await seen(), [SEEN[1].network4]);
    await second.down('--keep');
    await second.up(...offers);
    assert.deepEqual(await seen(), [SEEN[1].network4, SEEN[1].network6]);
    const [host0] = hosts;
    assert.ok(host0 !== undefined);
    await until('the site to answer', () => pings(host0, SEEN[1].host6), { timeoutMs: WITHIN_MS });
  });

  test('after a restart of the gateway the same client has its site and its address again, and nobody else the address', async () => {
    const [host0, host1] = hosts;
    assert.ok(host0 !== undefined && host1 !== undefined);
    await deployment.stop();
    await deployment.run();
    for (const client of [first, second]) {
      await client.statusWhen('it to be back', ({ state }) => state === 'connected', 60_000);
    }
    assert.deepEqual((await second.status()).addresses, KEPT);
    assert.ok(!(await first.status()).addresses.includes(KEPT[0] ?? ''));
    await until('the sites to speak again', () => pings(host0, SEEN[1].host4), { timeoutMs: WITHIN_MS });
    assert.ok(await pings(host1, SEEN[0].host6));
  });

  test('a policy without the site takes it from the live client, and a client that is down leaves its host as it was', async () => {
    const [host0] = hosts;
    assert.ok(host0 !== undefined);
    await writeFile(join(deployment.state, 'policy.toml'), POLICY.replace(site(1), '').replace(', "site:site1"', ''));
    await deployment.ask('server', 'reload');
    assert.ok(!(await routes()).includes(SEEN[1].network4));
    await until('the client to know', async () => JSON.stringify(await second.status()).includes('"networks":[]'), {
      timeoutMs: WITHIN_MS,
    });
    assert.equal(await pings(host0, SEEN[1].host4), false);
    for (const key of ['ipv4/conf/lan0', 'ipv6/conf/all']) {
      const path = `/proc/sys/net/${key}/forwarding`;
      const values = await Promise.all([first, second].map(({ namespace }) => namespace.run(['cat', path])));
      assert.deepEqual(
        values.map(({ stdout }) => stdout.trim()),
        ['1', '0'],
        `${key}: who has no site any more forwards nothing`,
      );
    }
    assert.ok(await pings(host0, BEHIND.host4), 'the other site is not disturbed');
    await first.down();
    assert.deepEqual(await changesSince(clean, { snapshot: () => first.namespace.snapshot() } as Namespace), []);
  });
});
