/** What opening an outside source reads, and refuses to. */

import assert from 'node:assert/strict';
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { ManualClock } from '../../base/clock.ts';
import { parseConfig } from '../../base/config.ts';
import { type BackendConfig, gatewayConfigSchema } from '../../gateway/config.ts';
import { openBackend } from './open.ts';

const folder = await mkdtemp(join(tmpdir(), 'customvpn-backends-'));
after(() => rm(folder, { recursive: true, force: true }));
const at = (name: string) => join(folder, name);
await writeFile(at('ca.pem'), '-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n');
await writeFile(at('secret'), 'correct horse\n', { mode: 0o600 });

const parts = { grants: { load: async () => undefined, save: async () => {} }, clock: new ManualClock() };

function settings(text: string): BackendConfig {
  const backend = parseConfig(`[backends.office]\n${text}`, gatewayConfigSchema, 'x').backends.office;
  assert.ok(backend !== undefined);
  return backend;
}

const LDAP = `kind = "ldap"\nurls = ["ldaps://127.0.0.1:1"]\nbaseDn = "dc=a"\nbindDn = "cn=vpn"\n`;
const ldap = (ca: string, secret: string) =>
  settings(`${LDAP}caFile = "${at(ca)}"\nbindPasswordFile = "${at(secret)}"\n`);

const oidc = settings(
  `kind = "oidc"\nissuer = "https://127.0.0.1:1"\nclientId = "vpn"\nclientSecretFile = "${at('secret')}"\n`,
);

const radius = settings(`kind = "radius"\nservers = ["127.0.0.1:1"]\nsecretFile = "${at('secret')}"\n`);

test('a source opens without being asked, and closes', async () => {
  await using stack = new AsyncDisposableStack();
  for (const config of [ldap('ca.pem', 'secret'), oidc, radius]) {
    const backend = stack.adopt(await openBackend('office', config, parts), (opened) => opened.close());
    assert.equal(backend.name, 'office');
    assert.equal('begin' in backend, config.kind === 'oidc');
  }
});

test('a secret that others may read, or that is none, is refused', async () => {
  const cases: [string, string | undefined, number][] = [
    ['open', 'correct horse\n', 0o644],
    ['empty', '\n', 0o600],
    ['two', 'a\nb\n', 0o600],
    ['long', 'a'.repeat(4097), 0o600],
    ['nothing', undefined, 0],
  ];
  for (const [name, content, mode] of cases) {
    if (content !== undefined) {
      await writeFile(at(name), content);
      await chmod(at(name), mode);
    }
    await assert.rejects(openBackend('office', ldap('ca.pem', name), parts), (error: Error & { code?: string }) => {
      assert.equal(error.code, 'ERR_CONFIG_FILE', name);
      assert.ok(error.message.includes(at(name)) && !error.message.includes('horse'), error.message);
      return true;
    });
  }
});

test('CAs that cannot be read, or are none, are refused', async () => {
  for (const name of ['nothing.pem', 'secret']) {
    await assert.rejects(openBackend('office', ldap(name, 'secret'), parts), { code: 'ERR_CERT_FILE' });
  }
});
