/** Client certificates as a login step: whom they name, by which rule, and when that ends. */

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseProfile, withoutToken } from '../../src/control/profile.ts';
import type { GatewayOptions } from '../../src/gateway/config.ts';
import { TestAuthority, type TestLeaf } from '../support/certificates.ts';
import { exchange, stopsFinally, until, World } from '../support/world.ts';

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

/** Two authorities whose lists are in one file, and what each has revoked. */
async function twoAuthorities(folder: Folder) {
  const one = await TestAuthority.create('One');
  const other = await TestAuthority.create('Other');
  const list = async (serials: readonly string[], hours = 24) =>
    (await one.crl(serials, hours)) + (await other.crl([], hours));
  const config: GatewayOptions = {
    ...PATIENT,
    requireClientAuth: true,
    caFile: folder.write('ca.pem', one.cert + other.cert),
    crlFile: folder.write('crl.pem', await list([])),
  };
  return { one, other, list, config };
}

test('a list that another program replaces ends the session of that issuer and serial within a second, and no other', async () => {
  using folder = new Folder();
  const { one, other, list, config } = await twoAuthorities(folder);
  await using world = await World.open({ config });
  const serial = '4abc';
  const revoked = folder.leaf('one', await one.client('ada', { serial }));
  const ada = await world.connected('ada', revoked);
  const bob = await world.connected('bob', folder.leaf('other', await other.client('bob', { serial })));
  await exchange(world, ada, 4);
  const since = performance.now();
  folder.write('crl.pem', await list([serial]));
  await stopsFinally(ada, 'revoked');
  assert.ok(performance.now() - since < 1000);
  const again = await world.client('ada', { ...revoked, deviceKey: ada.key });
  await assert.rejects(again.client.connect(), { code: 'ERR_CERT_REVOKED' });
  await exchange(world, bob, 4);
});

test('a list that cannot be used is said, and the one before it stays in force until it is mended', async () => {
  using folder = new Folder();
  const { one, list, config } = await twoAuthorities(folder);
  await using world = await World.open({ config });
  const [good, bad] = [await one.client('ada'), await one.client('bob')];
  folder.write('crl.pem', await list([bad.serial]));
  await until(() => world.lines.some(({ msg }) => String(msg).includes('has changed and is in force')), 'the list');
  const ada = await world.connected('ada', folder.leaf('ada', good));
  for (const [text, why] of [
    ['nothing\n', /found none/],
    ['-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n', /cannot be read/],
    [await list([], -1), /has expired at/],
    [await (await TestAuthority.create('One')).crl([]), /is not signed by the key of that authority/],
  ] as const) {
    const known = world.withCode('ERR_CERT_FILE').length;
    folder.write('crl.pem', text);
    await until(() => world.withCode('ERR_CERT_FILE').length > known, `a complaint ${why}`);
    assert.match((await world.status()).warnings.join('\n'), why);
    await assert.rejects(world.server.reload(), { code: 'ERR_CERT_FILE' });
    const refused = await world.client('bob', folder.leaf('bob', bad));
    await assert.rejects(refused.client.connect(), { code: 'ERR_CERT_REVOKED' });
  }
  await exchange(world, ada, 4);
  folder.write('crl.pem', await list([good.serial]));
  await stopsFinally(ada, 'revoked');
  assert.deepEqual(
    (await world.status()).warnings.filter((text) => text.includes('not in force')),
    [],
  );
});

test('a gateway does not start with a list that is missing or has expired', async () => {
  using folder = new Folder();
  const { list, config } = await twoAuthorities(folder);
  for (const crlFile of [folder.write('old.pem', await list([], -1)), join(folder.path, 'none.pem')]) {
    await assert.rejects(World.open({ config: { ...config, crlFile } }), { code: 'ERR_CERT_FILE' });
  }
});

test('a certificate that is revoked between handshake and login opens no session', async () => {
  const { crlFile: _, ...config } = OWN;
  await using world = await World.open({ config });
  const files = await issue(world, 'ada');
  const [cert, key] = [readFileSync(files.certFile, 'utf8'), readFileSync(files.keyFile, 'utf8')];
  const raw = await world.raw({ cert, key });
  await raw.greeted();
  const profile = await world.profile('ada');
  // Without `crlFile` the list of the built-in authority counts.
  await world.server.administration['pki.revoke']({ serial: files.serial });
  await assert.rejects(raw.login({ token: profile.token?.reveal() }), { code: 'ERR_CERT_REVOKED' });
  assert.deepEqual(world.rows('select id from sessions'), []);
  const late = await world.client('ada', files);
  await assert.rejects(late.client.connect(), { code: 'ERR_CERT_REVOKED' });
});

test('whatever ends within 30 days is in the log and the status: server, authorities, list, and certificates of sessions', async () => {
  using folder = new Folder();
  const { one, config } = await twoAuthorities(folder);
  const leaf = await one.server();
  await using world = await World.open({
    config: {
      ...config,
      certFile: folder.write('server.pem', leaf.cert),
      keyFile: folder.write('server.key', leaf.key),
    },
  });
  const holder = await one.client('ada', { serial: '4abc' });
  const files = folder.leaf('ada', holder);
  const profile = await world.profile('ada');
  await world.connected('ada', { profile: { ...profile, ca: one.cert, pins: [leaf.pin] }, ...files });
  await world.server.reload();
  for (const text of [
    /the server certificate of CN=localhost ends in 0 days/,
    /the CA certificate of CN=One ends in 1 days/,
    /the CA certificate of CN=Other ends in 1 days/,
    /the revocation list of CN=One ends in 0 days/,
    /the client certificate 4abc of ada, in use by a session, ends in 0 days/,
  ]) {
    assert.match((await world.status()).warnings.join('\n'), text);
    assert.equal(world.lines.filter(({ msg }) => text.test(String(msg))).length, 1, String(text));
  }
  await using far = await World.open();
  assert.deepEqual((await far.status()).warnings, []);
});

test('the renewed certificate of a client is good for a login, until it is revoked', async () => {
  await using world = await World.open({ config: { ...OWN, login: { steps: ['device', 'certificate'] } } });
  const { administration } = world.server;
  const files = await issue(world, 'ada');
  const ada = await world.connected('ada', files);
  const renewed = await administration['pki.renew']({ name: 'ada', key: 'new' });
  assert.notEqual(renewed.serial, files.serial);
  await exchange(world, ada, 4);
  const options = { ...files, deviceKey: ada.key, profile: withoutToken(await world.profile('ada')) };
  const again = await world.connected('ada', options);
  assert.equal((await administration['pki.revoke']({ serial: files.serial })).kicked, 0, 'nobody uses the old one');
  await exchange(world, again, 4);
  assert.equal((await administration['pki.revoke']({ serial: renewed.serial })).kicked, 1);
  await stopsFinally(again, 'revoked');
});

test("a session that a certificate has opened is resumed with the user's certificate, and not with another's of the same name", async () => {
  using folder = new Folder();
  const { one, config } = await twoAuthorities(folder);
  await using world = await World.open({
    config: {
      ...config,
      login: { steps: ['device', 'certificate'], certificate: { user: 'email', pattern: '{user}@example.org' } },
    },
  });
  const holder = (user: string) =>
    one.client('Employee', { alternatives: [{ type: 'email', value: `${user}@example.org` }] });
  const [adas, bobs] = [await holder('ada'), await holder('bob')];
  const token = (await world.profile('ada')).token?.reveal();
  await world.profile('bob');
  const raw = await world.raw(adas);
  const session = await raw.login({ token, features: ['attach', 'resume'] });
  world.keepSessions();
  raw.socket.destroy();
  const wrong = await world.raw(bobs);
  await assert.rejects(wrong.resume(session), { code: 'ERR_AUTH_REJECTED' });
  assert.match(reasons(world), /the client certificate is not the user's/);
  const right = await world.raw(await holder('ada'));
  const { done } = await right.resume(session);
  await done();
});

test('a session whose login showed a certificate is resumed with one of the same holder only, though no step asks for it', async () => {
  using folder = new Folder();
  const { one, other, config } = await twoAuthorities(folder);
  await using world = await World.open({ config: { ...config, requireClientAuth: 'optional' } });
  const token = (await world.profile('ada')).token?.reveal();
  const raw = await world.raw(await one.client('ada'));
  const session = await raw.login({ token, features: ['attach', 'resume'] });
  world.keepSessions();
  raw.socket.destroy();
  for (const shown of [await one.client('bob'), await other.client('ada'), {}]) {
    await assert.rejects((await world.raw(shown)).resume(session), { code: 'ERR_AUTH_REJECTED' });
  }
  assert.match(reasons(world), /the client certificate of the login was not shown/);
  await (await (await world.raw(await one.client('ada'))).resume(session)).done();
});

test('a session that waits ends with its certificate, also where that was revoked while the gateway was down, and its resume is refused', async () => {
  using folder = new Folder();
  const { one, list, config } = await twoAuthorities(folder);
  await using world = await World.open({ config: { ...config, requireClientAuth: 'optional' } });
  const [first, second, fresh] = [await one.client('ada'), await one.client('ada'), await one.client('ada')];
  const waiting = async (certificate: TestLeaf) => {
    const raw = await world.raw(certificate);
    const token = (await world.profile('ada')).token?.reveal();
    const session = await raw.login({ token, features: ['attach', 'resume'] });
    world.keepSessions();
    raw.socket.destroy();
    await until(() => world.server.sessions.some((one) => one.waiting), 'the loss');
    return session;
  };
  const refused = async (session: Awaited<ReturnType<typeof waiting>>) => {
    const resume = (await world.raw(fresh)).resume(session);
    await assert.rejects(resume, { code: 'ERR_SESSION_UNKNOWN' });
    await until(() => world.rows('select id from sessions').length === 0, 'the record to go');
  };
  const live = await waiting(first);
  folder.write('crl.pem', await list([first.serial]));
  await until(() => world.server.sessions.length === 0, 'the end of the session');
  await refused(live);
  const kept = await waiting(second);
  await world.server.stop();
  folder.write('crl.pem', await list([first.serial, second.serial]));
  await world.restart();
  assert.deepEqual(world.server.sessions, []);
  await refused(kept);
});

test('whom TLS refuses for a certificate is on record, with the true reason and what the certificate says of itself', async () => {
  using folder = new Folder();
  const { one, list, config } = await twoAuthorities(folder);
  const foreign = await TestAuthority.create('Elsewhere');
  const revoked = await one.client('ada');
  folder.write('crl.pem', await list([revoked.serial]));
  await using world = await World.open({ config });
  const old = await one.client('bob', { notBeforeHours: -10, notAfterHours: -1 });
  const others = await foreign.client(`eve\u202e\u001b[2J${'x'.repeat(400)}`);
  const refusals = [
    ['ERR_CERT_REVOKED', revoked],
    ['ERR_CERT_EXPIRED', old],
    ['ERR_CERT_UNTRUSTED', others],
    ['ERR_CERT_REQUIRED', undefined],
  ] as const;
  for (const [code, shown] of refusals) {
    const raw = await world.raw(shown === undefined ? {} : { cert: shown.cert, key: shown.key });
    await until(() => raw.isClosed, `the end of ${code}`);
  }
  // Browsers and scanners look at the port, too; none of them was refused as a client.
  const browser = await world.raw({ alpn: 'http/1.1' });
  await until(() => browser.isClosed, 'the end of a browser');
  const list4 = () => world.server.administration['audit.list']({ event: 'certificate' });
  let records: Awaited<ReturnType<typeof list4>> = [];
  await until(async () => {
    records = await list4();
    return records.length >= refusals.length;
  }, 'the records');
  assert.deepEqual(
    records.map(({ event, detail }) => [event, detail.code, detail.serial]),
    refusals.map(([code, shown]) => ['certificate.refused', code, shown?.serial]),
  );
  const [ofAda, , ofEve, ofNobody] = records;
  assert.deepEqual([ofAda?.detail.name, ofAda?.detail.issuer], ['ada', 'CN=One']);
  assert.match(ofAda?.source ?? '', /^127\.0\.0\.1:\d+$/);
  assert.match(ofAda?.reason ?? '', /revoked/);
  assert.equal(String(ofEve?.detail.name).length, 256);
  assert.equal(ofNobody?.detail.name, undefined);
});
