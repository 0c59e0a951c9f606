/** What happens to live tunnels: gateways that restart or fall silent, new configurations, rights that are taken away. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, INNER, labOptions, OUTER, PORT } from './deployment.ts';
import { type BackgroundProcess, until } from './process.ts';

const CLOSED_NETWORKS = ['203.0.113.0/24', '2001:db8:ffff::/64'];

describe('the life of a tunnel', labOptions(), () => {
  let deployment: Deployment;
  let first: Client;
  let second: Client;

  before(async () => {
    deployment = await Deployment.open({
      clients: 2,
      settings: '[session]\npingSeconds = 1\ndeadSeconds = 3\n',
    });
    await deployment.configure((text) => text.replace('requireClientAuth = false', 'requireClientAuth = "optional"'));
    const [one, two] = deployment.clients;
    assert.ok(one !== undefined && two !== undefined);
    first = one;
    second = two;
    await deployment.run();
    for (const client of [first, second]) await deployment.enrol(client);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  const isConnected = ({ state }: { state: string }): boolean => state === 'connected';

  /** Waits until a process has ended by itself. */
  async function endOf(running: BackgroundProcess, timeoutMs = 15_000): Promise<number> {
    await until('the client to end', () => !running.running, { timeoutMs });
    return await running.exited;
  }

  test('two clients at once have addresses of their own and are both served', async () => {
    const one = await first.up();
    const two = await second.up();
    assert.equal(new Set([...one.addresses, ...two.addresses]).size, 4);
    const answers = await Promise.all([first.reaches(BEHIND.host4), second.reaches(BEHIND.host6)]);
    assert.deepEqual(answers, [true, true]);
    const sessions = await deployment.sessions;
    assert.deepEqual(sessions.map(({ user }) => user).sort(), [first.user, second.user]);
    assert.deepEqual(
      sessions.flatMap(({ addresses }) => addresses).sort(),
      [...one.addresses, ...two.addresses].sort(),
    );
  });

  for (const how of ['stop', 'kill -9'] as const) {
    test(`clients come back by themselves after a gateway's ${how} and start, with their addresses`, async () => {
      const before = [await first.status(), await second.status()];
      if (how === 'stop') await deployment.stop();
      else {
        deployment.server.signal('SIGKILL');
        await deployment.server.exited;
      }
      await first.statusWhen('the client to notice', (status) => !isConnected(status));
      await deployment.run();
      const now = [
        await first.statusWhen('the first client to be back', isConnected),
        await second.statusWhen('the second client to be back', isConnected),
      ];
      for (const [index, status] of now.entries()) {
        assert.deepEqual(status.addresses, before[index]?.addresses);
        assert.equal(status.pid, before[index]?.pid);
        assert.equal(status.device, before[index]?.device);
        assert.ok(status.reconnects > (before[index]?.reconnects ?? 0));
      }
      assert.ok(await first.reaches(BEHIND.host4));
      assert.ok(await second.reaches(BEHIND.host6));
    });
  }

  test('a silent network is noticed at both ends, and the client comes back when it speaks again', async (t) => {
    const { pid, addresses } = await first.status();
    const nft = (text: string) => first.namespace.run(['nft', '-f', '-'], { input: text });
    t.after(() => first.namespace.run(['nft', 'delete table inet silence'], { anyStatus: true }));
    await nft(
      `table inet silence { chain in { type filter hook input priority 0; tcp sport ${PORT} drop; }; ` +
        `chain out { type filter hook output priority 0; tcp dport ${PORT} drop; }; }`,
    );
    const lost = await first.statusWhen('the client to notice', (status) => !isConnected(status));
    assert.equal(lost.lastError?.code, 'ERR_PEER_GONE');
    await until('the gateway to notice', async () => (await deployment.status).waiting === 1);
    assert.ok(await second.reaches(BEHIND.host4));
    await nft('delete table inet silence');
    const back = await first.statusWhen('the client to be back', isConnected);
    assert.equal(back.pid, pid);
    assert.deepEqual(back.addresses, addresses);
    assert.ok(await first.reaches(BEHIND.host4));
  });

  test("a reload changes the clients' routes, both ways, and what the gateway lets through", async () => {
    const { pid, reconnects, routes } = await first.status();
    assert.equal((await first.ping(BEHIND.closed4, '-q', '-c1', '-W1')).status, 2, 'there is a route already');
    const listed = (list: readonly string[]) => `routes = ${JSON.stringify(list)}`;
    await deployment.configure((text) => text.replace(/^routes = .*$/m, listed([...routes, ...CLOSED_NETWORKS])));
    const grown = await deployment.ask<{ applied: string[]; needsRestart: string[] }>('server', 'reload');
    assert.deepEqual(grown, { applied: ['routes'], needsRestart: [], warnings: [] });
    const more = await first.statusWhen('the new routes', (status) => status.routes.length > routes.length);
    assert.deepEqual(more.routes, [...routes, ...CLOSED_NETWORKS]);
    await until('a way there', () => first.reaches(BEHIND.closed4));
    assert.ok(await first.reaches(BEHIND.closed6));

    await deployment.configure((text) => text.replace(/^routes = .*$/m, listed(routes)));
    await deployment.ask('server', 'reload');
    const less = await first.statusWhen('the old routes', (status) => status.routes.length === routes.length);
    assert.deepEqual(less.routes, routes);
    await until('no way there', async () => (await first.ping(BEHIND.closed4, '-q', '-c1', '-W1')).status === 2);
    assert.ok(await first.reaches(BEHIND.host4));
    assert.equal(less.pid, pid);
    assert.equal(less.reconnects, reconnects);
  });

  test('a pushed network that the client is in stays where it is, and is said', async () => {
    const near = { address: '10.77.1.1/24', network: '10.77.1.0/24', pushed: '10.77.0.0/16', inside: '10.77.1.9' };
    const { routes, pid } = await first.status();
    await first.namespace.run(['ip', 'address', 'add', near.address, 'dev', 'out0']);
    const listed = (list: readonly string[]) => `routes = ${JSON.stringify(list)}`;
    await deployment.configure((text) => text.replace(/^routes = .*$/m, listed([...routes, near.pushed])));
    await deployment.ask('server', 'reload');
    const told = await first.statusWhen('the refusal', ({ refused }) => refused.length > 0);
    assert.deepEqual(
      told.refused.map(({ item }) => item),
      [`routes ${near.network}`],
    );
    assert.match(told.refused[0]?.why ?? '', /on out0.*--overlap tunnel/);
    assert.deepEqual(told.routes, [...routes, near.pushed]);
    assert.equal(told.pid, pid);
    const deviceTo = async (address: string) => {
      const { stdout } = await first.namespace.run(['ip', '-j', 'route', 'get', address]);
      return (JSON.parse(stdout) as { dev: string }[])[0]?.dev;
    };
    assert.deepEqual([await deviceTo(near.inside), await deviceTo('10.77.2.9')], ['out0', told.device]);
    assert.ok(await first.reaches(BEHIND.host4));

    await deployment.configure((text) => text.replace(/^routes = .*$/m, listed(routes)));
    await deployment.ask('server', 'reload');
    await first.statusWhen('no refusal', ({ refused }) => refused.length === 0);
    await first.namespace.run(['ip', 'address', 'delete', near.address, 'dev', 'out0']);
  });

  test('a pool that grows is routed and let through at once, and is as large when auth has started again', async () => {
    const { pid, reconnects, addresses } = await first.status();
    const sizes = async () => (await deployment.status).pool.map(({ prefix }) => prefix);
    const [small4 = '', small6 = ''] = await sizes();
    const listed = (list: readonly string[]) => `pool = ${JSON.stringify(list)}`;
    const write = (list: readonly string[]) =>
      deployment.configure((text) => text.replace(/^pool = .*$/m, listed(list)));
    const routed = async (address: string) => {
      const { stdout } = await deployment.gateway.run(['ip', '-j', 'route', 'get', address], { anyStatus: true });
      return (JSON.parse(stdout || '[]') as { dev: string; prefsrc: string }[])[0];
    };
    assert.equal((await routed('10.88.1.200'))?.dev, undefined);
    await write(['10.88.0.0/23', small6]);
    const grown = await deployment.ask('server', 'reload');
    assert.deepEqual(grown, { applied: ['pool'], needsRestart: [], warnings: [] });
    // The upper half of what is new is the second worker's.
    for (const [address, device] of [
      ['10.88.1.20', 'cvpn0'],
      ['10.88.1.200', (await deployment.status).devices.length > 2 ? 'cvpn0-1' : 'cvpn0'],
    ] as const) {
      const { dev, prefsrc } = (await routed(address)) ?? {};
      assert.deepEqual([dev, prefsrc], [device, INNER.gateway4]);
    }
    assert.match((await deployment.gateway.run(['nft', 'list', 'ruleset'])).stdout, /10\.88\.0\.0\/23/);
    assert.ok(await first.reaches(BEHIND.host4));
    const same = await first.status();
    assert.deepEqual([same.pid, same.reconnects, same.addresses], [pid, reconnects, addresses]);

    await write(['10.99.0.0/24', small6]);
    const refused = await deployment.ask<{ needsRestart: string[]; warnings: string[] }>('server', 'reload');
    assert.deepEqual(refused.needsRestart, ['pool']);
    assert.match(refused.warnings.join(), /pool: expected 10\.88\.0\.0\/23 or a larger network/);
    await write([small4, small6]);

    const children = await deployment.gateway.run(['pgrep', '-f', '-P', String(deployment.server.pid), 'auth/main']);
    process.kill(Number(children.stdout.trim()), 'SIGKILL');
    await until(
      'all processes anew',
      async () => deployment.server.output.includes('all processes have been started again'),
      { timeoutMs: 60_000 },
    );
    assert.deepEqual(
      await sizes(),
      ['10.88.0.0/23', small6],
      'as the reload has left it, and not as it is written since',
    );
    const back = await first.statusWhen('the return', (now) => isConnected(now) && now.reconnects > reconnects, 60_000);
    assert.deepEqual(back.addresses, addresses);
    await until('the way', () => first.reaches(BEHIND.host4));
  });

  test('a reload of a bad configuration is refused with its line, and changes nothing', async () => {
    await deployment.configure((text) => text.replace(/^services = .*$/m, 'services = ["ssh"]'));
    const refused = await deployment.cli(deployment.gateway, 'server', 'reload', '--state', deployment.state);
    await deployment.configure((text) => text.replace(/^services = .*$/m, 'services = []'));
    assert.equal(refused.status, 78);
    assert.match(refused.stderr, /server\.toml:\d+: services.*\(ERR_CONFIG_VALUE\)/);
    assert.ok(await first.reaches(BEHIND.host4));
  });

  test('a renewed certificate is shown to new connections, and live sessions go on', async () => {
    const probe = async () => {
      const argv = ['client', 'probe', `${OUTER[0].gateway4}:${PORT}`, '--json'];
      const { stdout } = await deployment.ok(first.namespace, ...argv);
      return (JSON.parse(stdout) as { certificate: { pin: string } }).certificate.pin;
    };
    const sessions = await deployment.sessions;
    const { reconnects } = await first.status();
    const old = await probe();
    await deployment.ask('pki', 'renew');
    assert.notEqual(await probe(), old);
    await deployment.ask('server', 'reload');
    assert.deepEqual(
      (await deployment.sessions).map(({ id }) => id),
      sessions.map(({ id }) => id),
    );
    assert.equal((await first.status()).reconnects, reconnects);
    assert.ok(await first.reaches(BEHIND.host4));
    // A new login with the profile of before: its pin is the authority's.
    await second.down();
    assert.equal((await second.up()).state, 'connected');
  });

  test('a client whose session is kicked ends and says why; it may come again', async () => {
    await first.down();
    const running = await first.upInForeground();
    const session = (await deployment.sessions).find(({ user }) => user === first.user);
    assert.deepEqual(await deployment.ask('server', 'kick', session?.id ?? ''), { kicked: 1 });
    assert.equal(await endOf(running), 69);
    assert.match(running.output, /admin.*\(ERR_PEER_GONE\)/);
    assert.ok(await second.reaches(BEHIND.host4));
    assert.equal((await first.up()).state, 'connected');
    await first.down();
  });

  test('a revoked client certificate ends its session and every later try', async () => {
    const issued = await deployment.ask<{ certificate: { serial: string; file: string }; keyFile: string }>(
      'pki',
      'issue',
      'laptop',
    );
    const profile = await deployment.ok(deployment.gateway, 'profile', first.user, '--state', deployment.state);
    const files = `certFile = "${issued.certificate.file}"\nkeyFile = "${issued.keyFile}"\n`;
    await writeFile(first.profile, `${files}${profile.stdout}`, { mode: 0o600 });
    await first.dialOver(4);
    const running = await first.upInForeground();
    assert.ok(await first.reaches(BEHIND.host4));
    const revoked = await deployment.ask<{ kicked: number }>('pki', 'revoke', issued.certificate.serial);
    assert.equal(revoked.kicked, 1);
    assert.notEqual(await endOf(running), 0);
    assert.match(running.output, /revoked/);
    // The gateway ends the connection before its greeting, and does not say why to whoever it does not know.
    const again = await first.upInForeground(/trying again|^error/m);
    const { counters, sessions } = await deployment.status;
    assert.ok((counters.handshake_err_cert_revoked ?? 0) >= 1, JSON.stringify(counters));
    assert.equal(sessions, 1);
    await again.stop();
    assert.ok(await second.reaches(BEHIND.host4));
  });

  test('a client whose device is revoked ends, says why, and is refused from then on', async () => {
    await second.down();
    const running = await second.upInForeground();
    const [device] = await deployment.ask<{ id: string }[]>('device', 'list', '--user', second.user);
    assert.deepEqual(await deployment.ask('device', 'revoke', device?.id ?? ''), { kicked: 1 });
    assert.notEqual(await endOf(running), 0);
    assert.match(running.output, /revoked/);
    const again = await second.upInForeground().then(
      () => undefined,
      (error: Error) => error.message,
    );
    assert.match(again ?? 'it came up', /\(ERR_AUTH_REJECTED\)/);
    const status = await deployment.cli(second.namespace, 'client', 'up', second.profile, '--state', second.state);
    assert.equal(status.status, 77);
    assert.equal((await deployment.status).sessions, 0);
  });
});
