/** Client certificates as an administrator and a user meet them: the real command line, real tunnels. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { after, before, describe, test } from 'node:test';
import { BEHIND, type Client, Deployment, labOptions } from './deployment.ts';
import { until } from './process.ts';

interface Issued {
  certificate: { serial: string; file: string };
  keyFile: string;
}

describe('a gateway that asks for the certificate of the user', labOptions(), () => {
  let deployment: Deployment;
  let client: Client;
  let own: Issued;

  before(async () => {
    deployment = await Deployment.open();
    const [first] = deployment.clients;
    assert.ok(first !== undefined);
    client = first;
    // No delay may stand in for the refusals, nor be in the way of what follows them.
    await deployment.configure(
      (text) =>
        `${text.replace('requireClientAuth = false', 'requireClientAuth = "optional"')}\n[login]\nsteps = ["device", "certificate"]\n[limits]\nallow = ["198.51.100.0/24"]\n`,
    );
    await deployment.run();
    await deployment.enrol(client);
    own = await deployment.ask<Issued>('pki', 'issue', client.user);
  });
  after(() => deployment?.[Symbol.asyncDispose]());

  /** Gives the profile these files in place of those it had. */
  async function hold(issued: Issued | undefined): Promise<void> {
    const text = (await readFile(client.profile, 'utf8')).replace(/^(certFile|keyFile) = .*\n/gm, '');
    const files =
      issued === undefined ? '' : `certFile = "${issued.certificate.file}"\nkeyFile = "${issued.keyFile}"\n`;
    await writeFile(client.profile, `${files}${text}`, { mode: 0o600 });
  }

  const tryUp = () =>
    deployment.cli(client.namespace, 'client', 'up', client.profile, '--state', client.state, '--json');

  test("without a certificate, and with another's, the login is refused", async () => {
    for (const issued of [undefined, await deployment.ask<Issued>('pki', 'issue', 'somebody-else')]) {
      await hold(issued);
      const { status, stderr } = await tryUp();
      assert.equal(status, 77, stderr);
      assert.match(stderr, /ERR_AUTH_REJECTED/);
    }
  });

  test('with the own one packets flow, and go on with the one that was renewed', async () => {
    await hold(own);
    await client.up();
    assert.ok(await client.reaches(BEHIND.host4));
    const { stdout } = await deployment.ok(
      deployment.gateway,
      'pki',
      'renew',
      client.user,
      '--new-key',
      '--state',
      deployment.state,
    );
    assert.match(stdout, new RegExp(`^client certificate for ${client.user} until \\d{4}-\\d\\d-\\d\\d: `));
    const nobody = await deployment.cli(deployment.gateway, 'pki', 'renew', 'nobody', '--state', deployment.state);
    assert.equal(nobody.status, 69);
    assert.match(nobody.stderr, /pki issue nobody.*ERR_NOT_FOUND/s);
    await client.down();
    await client.up();
    assert.ok(await client.reaches(BEHIND.host4));
  });

  test('a revocation ends the session within a second, and nothing comes in with it again', async () => {
    const shown = await deployment.ask<{ serial: string; file: string }[]>('pki', 'show');
    const renewed = shown.find(({ file }) => file === own.certificate.file);
    assert.ok(renewed !== undefined && renewed.serial !== own.certificate.serial);
    const { pid } = await client.status();
    assert.deepEqual((await deployment.ask<{ kicked: number }>('pki', 'revoke', own.certificate.serial)).kicked, 0);
    assert.deepEqual((await deployment.ask<{ kicked: number }>('pki', 'revoke', renewed.serial)).kicked, 1);
    await until('the session to end', async () => (await deployment.sessions).length === 0, { timeoutMs: 1000 });
    // Until it has ended, `up` would find it up.
    await until('the client to end', async () => !existsSync(`/proc/${pid}`));
    client.forget();
    const again = await tryUp();
    assert.notEqual(again.status, 0);
    assert.match(again.stderr, /ERR_CERT_REVOKED/);
    const [refused] = await deployment.ask<{ source: string; detail: Record<string, unknown> }[]>(
      'audit',
      '--event',
      'certificate.refused',
    );
    assert.equal(refused?.detail.code, 'ERR_CERT_REVOKED');
    assert.equal(refused?.detail.serial, renewed.serial);
    assert.ok(refused?.source.startsWith(client.outer.client4), refused?.source);
    const { status } = await deployment.cli(
      deployment.gateway,
      'pki',
      'renew',
      client.user,
      '--state',
      deployment.state,
    );
    assert.notEqual(status, 0, 'what was revoked is not renewed');
  });
});
