/** Whatever ends a gateway or a client, the hosts are as they were: at once, or after the next start. */

import assert from 'node:assert/strict';
import { existsSync, globSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, changesSince, Deployment, labOptions } from './deployment.ts';
import { processesOfRun, until } from './process.ts';
import type { Namespace } from './rig.ts';
import type { Snapshot } from './snapshot.ts';

const SIGNALS = ['SIGTERM', 'SIGINT'] as const;

describe('nothing is left behind', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;
  let clean: { gateway: Snapshot; client: Snapshot; processes: number };

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    await deployment.enrol(client);
    clean = {
      gateway: await deployment.gateway.snapshot(),
      client: await client.namespace.snapshot(),
      processes: processesOfRun(deployment.rig.id).size,
    };
  });

  after(async () => assert.deepEqual(await deployment?.close(), []));

  async function assertClean(which: 'gateway' | 'client'): Promise<void> {
    const where: Namespace = which === 'gateway' ? deployment.gateway : client.namespace;
    assert.deepEqual(await changesSince(clean[which], where), []);
    assert.deepEqual(leftFiles(which), []);
  }

  /** Sockets and journals, which are there only while something runs or after it was killed. */
  function leftFiles(which: 'gateway' | 'client'): string[] {
    const folder = which === 'gateway' ? join(deployment.state, 'run') : client.state;
    return globSync('**/{*.sock,*.journal}', { cwd: folder });
  }

  async function isChanged(which: 'gateway' | 'client'): Promise<boolean> {
    const where = which === 'gateway' ? deployment.gateway : client.namespace;
    return (await changesSince(clean[which], where)).length > 0;
  }

  describe('of a gateway', () => {
    test('after `server stop`', async () => {
      const server = await deployment.run();
      assert.ok(await isChanged('gateway'));
      assert.equal(await deployment.stop(), 0);
      assert.equal(server.running, false);
      await assertClean('gateway');
    });

    for (const signal of SIGNALS) {
      test(`after ${signal}`, async () => {
        const server = await deployment.run();
        server.signal(signal);
        assert.equal(await server.exited, 0);
        await assertClean('gateway');
      });
    }

    test('after `kill -9`, the next run and its stop', async () => {
      for (let round = 0; round < 2; round++) {
        const server = await deployment.run();
        server.signal('SIGKILL');
        await server.exited;
        assert.ok(await isChanged('gateway'), 'a killed gateway leaves its rules');
        assert.ok(existsSync(join(deployment.state, 'run/host.journal')));
      }
      await deployment.run();
      assert.equal(await deployment.stop(), 0);
      await assertClean('gateway');
    });

    test('settings that an operator had made stay', async (t) => {
      const settings = ['net.ipv4.ip_forward', 'net.ipv6.conf.all.forwarding'];
      const table =
        'table inet theirs {\n chain theirs {\n type filter hook forward priority 10; policy accept;\n }\n}\n';
      const set = async (value: string) => {
        for (const name of settings) await deployment.gateway.setSysctl(name, value);
      };
      await set('1');
      await deployment.gateway.run(['nft', '-f', '-'], { input: table });
      t.after(async () => {
        await set('0');
        await deployment.gateway.run(['nft', 'delete table inet theirs']);
        // Turning forwarding on and off again leaves this setting behind in the kernel.
        await deployment.gateway.setSysctl('net.ipv4.conf.all.accept_redirects', '1');
        await assertClean('gateway');
      });
      const before = await deployment.gateway.snapshot();
      await deployment.run();
      await deployment.stop();
      assert.deepEqual(await changesSince(before, deployment.gateway), []);
    });

    test('a run that fails after it has begun to change the host takes that back', async (t) => {
      // The device's name is taken, which is found when the listening socket and the first device are open already.
      await deployment.gateway.run(['ip', 'link', 'add', 'cvpn0p', 'type', 'veth', 'peer', 'name', 'taken']);
      t.after(async () => {
        await deployment.gateway.run(['ip', 'link', 'delete', 'cvpn0p']);
        await assertClean('gateway');
      });
      const before = await deployment.gateway.snapshot();
      const failed = await deployment.cli(deployment.gateway, 'server', 'run', '--state', deployment.state);
      assert.equal(failed.status, 71);
      assert.match(failed.stderr, /cvpn0p.*\(ERR_TUN_OPEN\)/s);
      assert.deepEqual(await changesSince(before, deployment.gateway), []);
    });
  });

  describe('of a client', () => {
    before(() => deployment.run());
    after(() => deployment.stop());

    test('after `client down`', async () => {
      await client.up();
      assert.ok(await client.reaches(BEHIND.host4));
      assert.ok(await isChanged('client'));
      await client.down();
      await assertClean('client');
    });

    for (const signal of SIGNALS) {
      test(`after ${signal}`, async () => {
        const running = await client.upInForeground();
        assert.ok(await isChanged('client'));
        running.signal(signal);
        assert.equal(await running.exited, 0);
        await assertClean('client');
      });
    }

    test('after `kill -9`, the next `up` and its `down`', async () => {
      const { pid } = await client.up();
      process.kill(pid, 'SIGKILL');
      await until('the client to be gone', () => !existsSync(`/proc/${pid}`));
      assert.notDeepEqual(leftFiles('client'), []);
      const status = await deployment.cli(client.namespace, 'client', 'status', '--state', client.state);
      assert.equal(status.status, 69);
      client.forget();
      const { state } = await client.up();
      assert.equal(state, 'connected');
      assert.ok(await client.reaches(BEHIND.host4));
      await client.down();
      await assertClean('client');
    });

    test('after `kill -9` and `client down` alone', async () => {
      const { pid } = await client.up();
      process.kill(pid, 'SIGKILL');
      await until('the client to be gone', () => !existsSync(`/proc/${pid}`));
      const { stdout } = await client.down();
      assert.match(stdout, /crashed client/);
      await assertClean('client');
      const again = await deployment.cli(client.namespace, 'client', 'down', '--state', client.state);
      assert.equal(again.status, 69);
    });

    test('and of neither after the gateway went first', async () => {
      const running = await client.upInForeground();
      await deployment.stop();
      await assertClean('gateway');
      running.signal('SIGTERM');
      assert.equal(await running.exited, 0);
      await assertClean('client');
      await deployment.run();
    });
  });

  test('and no process lives on', async () => {
    await until('all processes to end', () => processesOfRun(deployment.rig.id).size === clean.processes);
  });
});
