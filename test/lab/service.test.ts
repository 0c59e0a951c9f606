/** The gateway as a service: with no more rights than its systemd unit leaves it, it does all that it does. */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Receiver } from '../support/datagrams.ts';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { until } from './process.ts';

describe('a gateway with the rights of its unit', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;
  let unit: string;
  let manager: Receiver;

  /** `cap_net_admin,…`, as the unit names them. */
  const capabilities = (): string[] => /^CapabilityBoundingSet=(.*)$/m.exec(unit)?.[1]?.toLowerCase().split(' ') ?? [];

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first);
    client = first;
    unit = (await deployment.ok(deployment.gateway, 'server', 'unit', '--state', deployment.state)).stdout;
    const only = capabilities().map((name) => `+${name.replace(/^cap_/, '')}`);
    assert.ok(only.length > 0, unit);
    const socket = join(deployment.rig.folder, 'notify');
    manager = new Receiver(socket);
    const environment = ['env', `NOTIFY_SOCKET=${socket}`];
    await deployment.run([
      ...environment,
      'setpriv',
      `--bounding-set=-all,${only.join()}`,
      '--inh-caps=-all',
      '--no-new-privs',
    ]);
    await deployment.enrol(client);
  });
  after(async () => {
    manager?.[Symbol.dispose]();
    await deployment?.[Symbol.asyncDispose]();
  });

  test('it has the capabilities of the unit and no other, and cannot get any', async () => {
    const status = await readFile(`/proc/${deployment.server.pid}/status`, 'utf8');
    const field = (name: string) => new RegExp(`^${name}:\\s*(\\S+)`, 'm').exec(status)?.[1] ?? '';
    const bits: Record<string, bigint> = {
      cap_chown: 0n,
      cap_dac_read_search: 2n,
      cap_kill: 5n,
      cap_setgid: 6n,
      cap_setuid: 7n,
      cap_setpcap: 8n,
      cap_net_bind_service: 10n,
      cap_net_admin: 12n,
    };
    const mask = capabilities().reduce((sum, name) => sum | (1n << (bits[name] ?? 63n)), 0n);
    for (const set of ['CapBnd', 'CapPrm', 'CapEff']) assert.equal(BigInt(`0x${field(set)}`), mask, set);
    assert.equal(field('NoNewPrivs'), '1');
  });

  test('it tells its service manager that it is ready, and where it listens', async () => {
    let said: string | undefined;
    await until('the word', () => {
      said = manager.take();
      return said !== undefined;
    });
    assert.match(said ?? '', /^READY=1\nSTATUS=listening on \[::\]:\d+$/);
  });

  test('it names the state directory as the only place to write, and systemd as its watch', () => {
    assert.match(unit, new RegExp(`^ReadWritePaths=${deployment.state}$`, 'm'));
    assert.match(unit, new RegExp(`^ExecStart=/\\S*/bin/customvpn server run --state ${deployment.state}$`, 'm'));
    assert.match(unit, /^WatchdogSec=\d+$/m);
  });

  test('clients connect and are served over both families, with addresses of their own', async () => {
    const { addresses } = await client.up();
    assert.equal(addresses.length, 2);
    assert.ok(await client.reaches(BEHIND.host4));
    assert.ok(await client.reaches(BEHIND.host6));
  });

  test('it reloads, stops, and leaves nothing of its own on the host', async () => {
    await deployment.ok(deployment.gateway, 'server', 'reload', '--state', deployment.state);
    await client.down();
    assert.equal(await deployment.stop(), 0);
    assert.equal(manager.take(), 'STOPPING=1');
    const links = (await deployment.gateway.run(['ip', '-o', 'link'])).stdout;
    assert.doesNotMatch(links, /cvpn/);
    assert.doesNotMatch((await deployment.gateway.run(['nft', 'list', 'tables'])).stdout, /customvpn/);
  });
});
