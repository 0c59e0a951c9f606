/** A certificate that an ACME client renews: its files, its hook, and a gateway that goes on. */

import assert from 'node:assert/strict';
import { appendFileSync, mkdirSync, readFileSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { COMMAND } from './command.ts';
import { BEHIND, type Client, Deployment, labOptions, PORT } from './deployment.ts';
import { run } from './process.ts';

const HOOK = join(import.meta.dirname, '../../packaging/acme/reload-gateway');

describe('a gateway with the certificate of an ACME client', labOptions({ openssl: 'openssl' }), () => {
  let deployment: Deployment;
  let client: Client;
  let folder: string;

  /** What an ACME client does: the next files beside those before, and then the links. */
  async function obtain(number: number): Promise<void> {
    const [key, cert] = ['privkey', 'fullchain'].map((name) => join(folder, `archive/${name}${number}.pem`));
    assert.ok(key !== undefined && cert !== undefined);
    const authority = join(folder, 'ca.pem');
    const words = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '90'];
    const signer = ['-CA', authority, '-CAkey', join(folder, 'ca.key')];
    const extensions = [`subjectAltName=IP:${client.outer.gateway4}`, 'basicConstraints=critical,CA:FALSE'];
    if (number === 1) {
      // biome-ignore format: a command line
      await run(['openssl', 'req', ...words, '-keyout', join(folder, 'ca.key'), '-out', authority, '-subj', '/CN=An authority']);
    }
    // biome-ignore format: a command line
    await run(['openssl', 'req', ...words, ...signer, '-keyout', key, '-out', cert, '-subj', '/CN=gateway',
      ...extensions.flatMap((extension) => ['-addext', extension])]);
    appendFileSync(cert, readFileSync(authority));
    link('privkey.pem', key);
    link('fullchain.pem', cert);
  }

  function link(name: string, target: string): void {
    symlinkSync(target, join(folder, `live/${name}.new`));
    renameSync(join(folder, `live/${name}.new`), join(folder, `live/${name}`));
  }

  const hook = () =>
    deployment.gateway.run(['env', `CUSTOMVPN=${COMMAND}`, `CUSTOMVPN_STATE=${deployment.state}`, HOOK], {
      anyStatus: true,
    });

  /** The key that a stranger is shown. */
  async function pin(): Promise<string> {
    const target = `${client.outer.gateway4}:${PORT}`;
    const { stdout } = await deployment.cli(client.namespace, 'client', 'probe', target, '--json');
    const found = /"pin": "([^"]+)"/.exec(stdout)?.[1];
    assert.ok(found !== undefined, stdout);
    return found;
  }

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first);
    client = first;
    folder = join(deployment.rig.folder, 'acme');
    mkdirSync(join(folder, 'live'), { recursive: true });
    mkdirSync(join(folder, 'archive'), { mode: 0o700 });
    await obtain(1);
    await deployment.configure((text) =>
      text
        .replace(/^certFile = .*$/m, `certFile = "${join(folder, 'live/fullchain.pem')}"`)
        .replace(/^keyFile = .*$/m, `keyFile = "${join(folder, 'live/privkey.pem')}"`),
    );
    assert.match(readFileSync(deployment.configFile, 'utf8'), /acme\/live\/fullchain/);
    await deployment.run();
    await deployment.enrol(client);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  test('the hook puts the renewed certificate in force, and no session ends', async () => {
    await client.up();
    const former = await pin();
    const [session] = await deployment.sessions;
    await obtain(2);
    assert.equal(await pin(), former, 'nothing has been read yet');
    const { status, stderr } = await hook();
    assert.equal(status, 0, stderr);
    assert.notEqual(await pin(), former);
    assert.equal((await deployment.sessions)[0]?.id, session?.id);
    assert.ok(await client.reaches(BEHIND.host4));
    // Its profile trusts who has signed both.
    await client.down();
    await client.up();
  });

  test('a renewal that went wrong is refused, the hook says so, and the certificate before stays', async () => {
    const former = await pin();
    writeFileSync(join(folder, 'archive/broken.pem'), '-----BEGIN CERTIFICATE-----\nnothing\n');
    link('fullchain.pem', join(folder, 'archive/broken.pem'));
    const { status, stderr } = await hook();
    assert.equal(status, 78, stderr);
    assert.match(stderr, /ERR_CERT_FILE/);
    assert.equal(await pin(), former);
    assert.ok(await client.reaches(BEHIND.host4));
  });
});
