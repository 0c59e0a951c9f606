/** A bundle for somebody who helps: it says what is needed, and none of the secrets that were put in its way. */

import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type Client, Deployment, labOptions } from './deployment.ts';

describe('a bundle', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;
  const secrets = new Map<string, string>();

  before(async () => {
    secrets.set('camouflage', '/tulips-and-other-flowers');
    secrets.set('radius secret', 'lilac wine');
    deployment = await Deployment.open({
      settings: `camouflage = "${secrets.get('camouflage')}"

[backends.office]
kind = "radius"
servers = ["192.0.2.99"]
secretFile = "radius.secret"
`,
    });
    const [first] = deployment.clients;
    assert.ok(first);
    client = first;
    writeFileSync(join(deployment.state, 'radius.secret'), `${secrets.get('radius secret')}\n`, { mode: 0o600 });
    await deployment.run();
    await deployment.enrol(client);
    const { token } = await deployment.ask<{ token: string }>(
      'user',
      'token',
      client.user,
      '--name',
      'x',
      '--scope',
      'proxy',
    );
    secrets.set('access token', token);
    const profile = readFileSync(client.profile, 'utf8');
    const [, enrolment = ''] = /^token = "([^"]+)"/m.exec(profile) ?? [];
    assert.ok(enrolment !== '');
    secrets.set('enrolment token', enrolment);
    const master = readFileSync(join(deployment.state, 'master.key'));
    for (const form of ['hex', 'base64', 'base64url', 'latin1'] as const)
      secrets.set(`master key, ${form}`, master.toString(form).trim());
    const key = readFileSync(join(deployment.state, 'certs/server.key'), 'utf8');
    secrets.set('server key', key.split('\n')[1] ?? '');
    secrets.set('user', client.user);
    secrets.set('address', client.outer.client4);
    await client.up();
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  /** Makes a bundle with a log in which every secret stands; returns its files. */
  async function make(name: string): Promise<ReadonlyMap<string, string>> {
    const folder = join(deployment.rig.folder, name);
    const log = join(deployment.rig.folder, `${name}.log`);
    const said = [...secrets].map(([what, secret], at) =>
      at % 2 === 0
        ? `warn 12:00:00 auth: ${what} reason="${secret}" more`
        : `{"level":"info","msg":"seen ${secret} here"}`,
    );
    writeFileSync(log, `${said.join('\n')}\nwarn 12:00:01 worker: harmless line of the log\n`);
    const words = ['bundle', folder, '--log', log, '--state', deployment.state];
    await deployment.ok(deployment.gateway, 'server', ...words);
    assert.equal(statSync(folder).mode & 0o777, 0o700);
    return new Map(readdirSync(folder).map((file) => [file, readFileSync(join(folder, file), 'utf8')]));
  }

  function search(files: ReadonlyMap<string, string>): void {
    for (const [what, secret] of secrets) {
      assert.ok(secret.length > 3, what);
      for (const [file, text] of files) assert.ok(!text.includes(secret), `${what} is in ${file}`);
    }
  }

  test('of a gateway that runs says what is needed, and no secret, name or public address', async () => {
    const files = await make('running');
    search(files);
    const of = (file: string): string => files.get(file) ?? '';
    assert.match(of('configuration.toml'), /^pool = /m);
    assert.match(of('configuration.toml'), /secretFile = "radius\.secret"/);
    assert.match(of('status.json'), /"sessions": 1/);
    assert.match(of('sessions.json'), /"user": "user-1"/);
    assert.match(of('packet-rules.txt'), /table inet customvpn/);
    assert.match(of('links.txt'), /cvpn0/);
    assert.match(of('requirements.json'), /"required": true/);
    assert.match(of('audit-counts.json'), /"session\.opened": 1/);
    assert.match(of('log.txt'), /harmless line of the log/);
    assert.match(of('machine.json'), /"kernel"/);
  });

  test('a folder that is there is left alone', async () => {
    const folder = join(deployment.rig.folder, 'mine');
    mkdirSync(folder);
    const { status, stderr } = await deployment.cli(
      deployment.gateway,
      'server',
      'bundle',
      folder,
      '--state',
      deployment.state,
    );
    assert.equal(status, 69, stderr);
    assert.match(stderr, /ERR_CONFLICT/);
    assert.deepEqual(readdirSync(folder), []);
  });

  test('of a gateway that does not run says that, and the rest', async () => {
    await client.down();
    await deployment.stop();
    const files = await make('stopped');
    search(files);
    assert.match(files.get('status.json') ?? '', /^not there: the gateway does not run/);
    assert.match(files.get('configuration.toml') ?? '', /^pool = /m);
    assert.match(files.get('users.json') ?? '', /"devices": 1/);
  });
});
