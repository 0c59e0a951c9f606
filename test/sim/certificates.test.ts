/** Client certificates as a login step: whom they name, by which rule, and when that ends. */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseProfile, withoutToken } from '../../src/control/profile.ts';
import type { GatewayOptions } from '../../src/gateway/config.ts';
import { TestAuthority, type TestLeaf } from '../support/certificates.ts';
import { exchange, stopsFinally, World } from '../support/world.ts';

/** No delay may stand in for the refusal that a test is about. */
const PATIENT = { limits: { allow: ['127.0.0.0/8'] } };
const OWN: GatewayOptions = {
  ...PATIENT,
  requireClientAuth: 'optional',
  caFile: 'certs/ca.pem',
  crlFile: 'certs/crl.pem',
};

/** A client certificate of the gateway's own authority. */
async function issue(world: World, name: string): Promise<{ certFile: string; keyFile: string; serial: string }> {
  const { certificate, keyFile } = await world.server.administration['pki.issue']({ name });
  return { certFile: certificate.file, keyFile, serial: certificate.serial };
}

/** Files of another authority, outside of the gateway's. */
class Folder implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), 'customvpn-certificates-'));

  write(name: string, text: string): string {
    const file = join(this.path, name);
    writeFileSync(file, text, { mode: 0o600 });
    return file;
  }

  leaf(name: string, { cert, key }: TestLeaf): { certFile: string; keyFile: string } {
    return { certFile: this.write(`${name}.pem`, cert), keyFile: this.write(`${name}.key`, key) };
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true });
  }
}

function reasons(world: World): string {
  return JSON.stringify(world.rows('select reason from audit'));
}

test("REQ-LOGIN-029: the step passes with the user's certificate, and is refused with none and with another's", async () => {
  await using world = await World.open({
    config: { ...OWN, login: { groups: { staff: { steps: ['device', 'certificate'] } } } },
  });
  const { administration } = world.server;
  for (const name of ['ada', 'bob']) await administration['user.add']({ name, groups: ['staff'] });
  const [adas, bobs, nobodys] = [await issue(world, 'ada'), await issue(world, 'bob'), await issue(world, 'eve')];
  const ada = await world.connected('ada', adas);
  await exchange(world, ada, 4);
  const options = { deviceKey: ada.key, profile: withoutToken(await world.profile('ada')) };
  for (const wrong of [bobs, nobodys, {}]) {
    const refused = await world.client('ada', { ...options, ...wrong });
    await assert.rejects(refused.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    const enrols = await world.client('ada', wrong);
    await assert.rejects(enrols.client.connect(), { code: 'ERR_AUTH_REJECTED' });
  }
  assert.equal(world.rows('select id from devices').length, 1, 'a refused enrolment leaves no device');
  for (const reason of [/stand for different users/, /is of nobody that we know/, /no client certificate was shown/]) {
    assert.match(reasons(world), reason);
  }
  // Whoever is in no such group needs none.
  await exchange(world, await world.connected('carl'), 4);
  await exchange(world, ada, 4);
});

test('a certificate alone brings a device in, by the address in it, and only by one of the configured form', async () => {
  using folder = new Folder();
  const authority = await TestAuthority.create();
  await using world = await World.open({
    config: {
      ...PATIENT,
      requireClientAuth: true,
      caFile: folder.write('ca.pem', authority.cert),
      crlFile: folder.write('crl.pem', await authority.crl([])),
      login: {
        steps: ['device', 'certificate'],
        enrol: ['certificate'],
        certificate: { user: 'email', pattern: '{user}@example.org' },
      },
    },
  });
  const { administration } = world.server;
  for (const name of ['ada', 'bob']) await administration['user.add']({ name });
  const shared = parseProfile((await administration['profile.create']({})).profile, 'profile');
  const holder = async (...emails: string[]) =>
    folder.leaf(
      'leaf',
      await authority.client('ada', { alternatives: emails.map((value) => ({ type: 'email', value })) }),
    );
  for (const emails of [
    ['ada@example.net'],
    ['ada@example.org', 'bob@example.org'],
    ['bob@example.org'],
    ['eve@example.org'],
    [],
  ]) {
    const refused = await world.client('ada', {
      profile: shared,
      user: 'ada',
      enrol: true,
      ...(await holder(...emails)),
    });
    await assert.rejects(refused.client.connect(), { code: 'ERR_AUTH_REJECTED' }, emails.join());
  }
  assert.equal(world.rows('select id from devices').length, 0);
  const files = await holder('ada@example.org', 'ada@example.net');
  const ada = await world.connected('ada', { profile: shared, user: 'ada', enrol: true, ...files });
  await exchange(world, ada, 4);
  // Another rule: what the certificate has opened ends, and it opens nothing more.
  const login = { steps: ['device' as const, 'certificate' as const], certificate: { user: 'uri' as const } };
  await world.server.reload(world.config({ login }));
  await stopsFinally(ada, 'revoked');
  const later = await world.client('ada', { profile: shared, user: 'ada', deviceKey: ada.key, ...files });
  await assert.rejects(later.client.connect(), { code: 'ERR_AUTH_REJECTED' });
});

test('a gateway that asks nobody for a certificate does not start with the step, nor take it by a reload', async () => {
  const login = { steps: ['device' as const, 'certificate' as const] };
  await assert.rejects(World.open({ config: { login } }), { code: 'ERR_CONFIG_VALUE' });
  await using world = await World.open();
  await assert.rejects(world.server.reload(world.config({ login })), { code: 'ERR_CONFIG_VALUE' });
  const sim = await world.connected('ada');
  await exchange(world, sim, 4);
});
