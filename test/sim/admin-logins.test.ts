// The ways into the admin page beside a password: passkeys and client certificates, at a real TLS port, and whoever lies about them.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { AdminBrowser } from '../support/admin.ts';
import { inText, SoftPasskey } from '../support/authenticator.ts';
import { TestAuthority } from '../support/certificates.ts';
import { Office } from '../support/office.ts';
import { until } from '../support/world.ts';

const LIMIT = { timeout: 60_000 };

/** What a browser believes that it is asked, at this page. */
async function scene(office: Office, browser: AdminBrowser, path: string) {
  const { body } = await browser.post(path, {});
  return { challenge: String(body.challenge), host: 'localhost', origin: `https://localhost:${office.port}` };
}

const toAdd = (office: Office, browser: AdminBrowser) => scene(office, browser, '/api/passkeys/challenge');
const toLogIn = (office: Office, browser: AdminBrowser) => scene(office, browser, '/api/login/passkey/challenge');

async function add(office: Office, browser: AdminBrowser, passkey: SoftPasskey, name = 'a key') {
  const made = passkey.made(await toAdd(office, browser));
  return await browser.post('/api/passkeys', { name, ...inText(made) });
}

async function logIn(office: Office, passkey: SoftPasskey, browser = office.stranger()) {
  passkey.count += 1;
  const used = passkey.used(await toLogIn(office, browser));
  return { browser, reply: await browser.post('/api/login/passkey', inText(used)) };
}

test('who is logged in makes a passkey, and comes in by it with the same rights', LIMIT, async () => {
  await using office = await Office.open();
  assert.equal((await office.stranger().raw({ path: '/api/login' })).body.passkey, true);
  const viewer = await office.as('viewer');
  const passkey = new SoftPasskey();
  assert.equal((await add(office, viewer, passkey, 'my laptop')).status, 200);
  const { browser, reply } = await logIn(office, passkey);
  assert.equal(reply.status, 200, reply.text);
  assert.deepEqual([reply.body.user, reply.body.role], ['viewer', 'viewer']);
  assert.equal((await browser.call('server.status')).status, 200);
  const { body } = await browser.raw({ path: '/api/passkeys' });
  assert.deepEqual([body.length, body[0].name, body[0].host], [1, 'my laptop', 'localhost']);
  assert.ok(body[0].lastUsedAt !== null);
  const [added] = await office.api['audit.list']({ event: 'passkey.added' });
  assert.deepEqual([added?.user, added?.detail.by], ['viewer', 'viewer']);
  const [, login] = await office.api['audit.list']({ event: 'operator.login' });
  assert.deepEqual([login?.user, login?.detail.with], ['viewer', 'passkey']);
});

test('a passkey that is used in another way than it must be opens nothing, and nobody is told why', LIMIT, async () => {
  await using office = await Office.open({ config: { limits: { failuresPerUser: 1000, delayAfter: 1000 } } });
  const ada = await office.as('administrator', 'ada');
  const passkey = new SoftPasskey();
  await add(office, ada, passkey);
  const browser = office.stranger();
  passkey.count = 5;
  const good = await toLogIn(office, browser);
  const first = inText(passkey.used(good));
  assert.equal((await browser.post('/api/login/passkey', first)).status, 200);
  const answers = new Set<string>();
  const tries = [
    // The same answer again.
    async () => first,
    async () => inText(passkey.used(good)),
    // A challenge of ours for another purpose.
    async () => inText(passkey.used(await toAdd(office, ada))),
    // A count that has not risen: a copy.
    async () => inText(passkey.used(await toLogIn(office, browser))),
    async () => inText(new SoftPasskey().used(await toLogIn(office, browser))),
    async () => inText(passkey.used({ ...(await toLogIn(office, browser)), origin: 'https://evil.example' })),
    async () => inText(passkey.used({ ...(await toLogIn(office, browser)), flags: 0x01 })),
  ];
  for (const made of tries) {
    office.clock.advance(2000);
    const stranger = office.stranger();
    const reply = await stranger.post('/api/login/passkey', await made());
    assert.equal(reply.status, 401, reply.text);
    assert.equal(reply.headers['set-cookie'], undefined);
    answers.add(reply.text);
  }
  assert.equal(answers.size, 1);
  const refused = await office.api['audit.list']({ event: 'operator.refused' });
  assert.equal(refused.length, tries.length);
  assert.ok(refused.some(({ reason }) => reason === 'passkey: there is a copy of it: its count has not risen'));
});

test('a challenge is good for five minutes', LIMIT, async () => {
  await using office = await Office.open();
  const ada = await office.as('administrator', 'ada');
  const passkey = new SoftPasskey();
  const late = passkey.made(await toAdd(office, ada));
  office.clock.advance(301_000);
  assert.equal((await ada.post('/api/passkeys', { name: 'late', ...inText(late) })).status, 400);
});

test(
  'a passkey that is removed, by its owner or an operator, opens nothing; and nobody removes what is not theirs',
  LIMIT,
  async () => {
    await using office = await Office.open();
    const ada = await office.as('administrator', 'ada');
    const vera = await office.as('viewer', 'vera');
    const [hers, adas] = [new SoftPasskey('ed25519'), new SoftPasskey()];
    const { body: added } = await add(office, vera, hers);
    const { body: other } = await add(office, ada, adas);
    assert.equal((await vera.post('/api/passkeys/remove', { id: other.id })).status, 404);
    const olga = await office.as('operator', 'olga');
    assert.equal((await olga.call('passkey.remove', { id: other.id })).status, 403, 'not of somebody with a role');
    const { browser: inside } = await logIn(office, hers);
    assert.equal((await ada.call('passkey.remove', { id: added.id })).status, 200);
    assert.equal((await inside.raw({ path: '/api/me' })).status, 401, 'and what it opened has ended');
    assert.equal((await logIn(office, hers)).reply.status, 401);
    assert.equal((await ada.post('/api/passkeys/remove', { id: other.id })).status, 200);
    assert.equal((await logIn(office, adas)).reply.status, 401);
  },
);

test('passkeys are made by whoever is logged in, from the page, and within bounds', LIMIT, async () => {
  await using office = await Office.open();
  const ada = await office.as('administrator', 'ada');
  const made = () => new SoftPasskey();
  assert.equal((await office.stranger().post('/api/passkeys/challenge', {})).status, 401);
  assert.equal((await ada.post('/api/passkeys/challenge', {}, { 'x-csrf-token': 'x' })).status, 403);
  assert.equal((await ada.post('/api/passkeys/challenge', {}, { 'sec-fetch-site': 'cross-site' })).status, 403);
  assert.equal((await add(office, ada, made(), '')).status, 400);
  assert.equal((await add(office, ada, made(), '\n')).status, 400);
  const long = inText(made().made(await toAdd(office, ada)));
  assert.equal((await ada.post('/api/passkeys', { name: 'x', ...long, publicKey: 'A'.repeat(4097) })).status, 400);
  for (let count = 0; count < 20; count++) assert.equal((await add(office, ada, made())).status, 200);
  assert.equal((await add(office, ada, made())).status, 409);
});

test('somebody disabled, or without a role, does not come in by a passkey', LIMIT, async () => {
  await using office = await Office.open();
  const vera = await office.as('viewer', 'vera');
  const passkey = new SoftPasskey();
  await add(office, vera, passkey);
  await office.api['user.regroup']({ name: 'vera', remove: ['viewers'] });
  assert.equal((await logIn(office, passkey)).reply.status, 401);
  await office.api['user.regroup']({ name: 'vera', add: ['viewers'] });
  await office.api['user.disable']({ name: 'vera' });
  assert.equal((await logIn(office, passkey)).reply.status, 401);
  await office.api['user.enable']({ name: 'vera' });
  office.clock.advance(10_000);
  assert.equal((await logIn(office, passkey)).reply.status, 200);
});

test('where passkeys are off, and at an address, there are none', LIMIT, async () => {
  await using office = await Office.open({ config: { admin: { passkeys: false } } });
  assert.equal((await office.stranger().raw({ path: '/api/login' })).body.passkey, false);
  assert.equal((await office.stranger().post('/api/login/passkey/challenge', {})).status, 400);
  await using other = await Office.open();
  const headers = { host: `127.0.0.1:${other.port}` };
  assert.equal((await other.stranger().raw({ path: '/api/login', headers })).body.passkey, false);
  assert.equal(
    (await other.stranger().raw({ path: '/api/login', headers: { host: 'evil.example' } })).body.passkey,
    false,
  );
});

test('a client certificate of the own authority lets its user in, until it is revoked', LIMIT, async () => {
  await using office = await Office.open({ config: { caFile: 'certs/ca.pem', admin: { clientCertificates: true } } });
  const { world, api } = office;
  await api['user.add']({ name: 'ada', groups: ['administrators'] });
  const shown = async (name: string) => {
    const { certificate, keyFile } = await api['pki.issue']({ name });
    const holding = (file: string) => {
      const pair = { cert: readFileSync(file, 'utf8'), key: readFileSync(keyFile, 'utf8') };
      return new AdminBrowser(office.port, world.ca, pair);
    };
    return { serial: certificate.serial, browser: holding(certificate.file), holding };
  };
  const { browser, serial, holding } = await shown('ada');
  assert.equal((await browser.raw({ path: '/api/login' })).body.certificate, 'ada');
  const entered = await browser.post('/api/login/certificate', {});
  assert.deepEqual([entered.status, entered.body.role], [200, 'administrator'], entered.text);
  assert.equal((await browser.call('server.status')).status, 200);
  const { browser: nobody } = await shown('nobody');
  assert.equal((await nobody.post('/api/login/certificate', {})).status, 401);
  assert.equal((await office.stranger().post('/api/login/certificate', {})).status, 401);
  assert.equal((await office.stranger().raw({ path: '/api/login' })).body.certificate, null);
  assert.equal((await office.stranger().raw({ path: '/' })).status, 200, 'nobody is turned away for having none');
  const renewed = await api['pki.renew']({ name: 'ada', key: 'new' });
  const twin = holding(renewed.file);
  assert.equal((await twin.post('/api/login/certificate', {})).status, 200);
  await api['pki.revoke']({ serial });
  assert.equal((await browser.raw({ path: '/api/me' })).status, 401, 'what it has opened has ended');
  assert.equal((await twin.raw({ path: '/api/me' })).status, 200, 'and what another one has opened has not');
  const late = await browser.post('/api/login/certificate', {});
  assert.equal(late.status, 401);
  const refused = await api['audit.list']({ event: 'operator.refused' });
  assert.equal(refused.at(-1)?.reason, 'certificate: it has been revoked');
});

test('a list that another program replaces ends what a certificate has opened, and nothing else', LIMIT, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'customvpn-lists-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const authority = await TestAuthority.create();
  const [caFile, crlFile] = [join(folder, 'ca.pem'), join(folder, 'crl.pem')];
  writeFileSync(caFile, authority.cert);
  writeFileSync(crlFile, await authority.crl([]));
  await using office = await Office.open({ config: { caFile, crlFile, admin: { clientCertificates: true } } });
  await office.api['user.add']({ name: 'ada', groups: ['administrators'] });
  const enter = async () => {
    const { cert, key, serial } = await authority.client('ada');
    const browser = new AdminBrowser(office.port, office.world.ca, { cert, key });
    assert.equal((await browser.post('/api/login/certificate', {})).status, 200);
    return { browser, serial };
  };
  const [lost, other] = [await enter(), await enter()];
  writeFileSync(crlFile, await authority.crl([lost.serial]));
  await until(async () => (await lost.browser.raw({ path: '/api/me' })).status === 401, 'the end of the session');
  assert.equal((await other.browser.raw({ path: '/api/me' })).status, 200);
});

test('a certificate of another authority is none, and where they are off nobody is asked', LIMIT, async () => {
  await using office = await Office.open({ config: { caFile: 'certs/ca.pem', admin: { clientCertificates: true } } });
  await office.api['user.add']({ name: 'ada', groups: ['administrators'] });
  await using stranger = await Office.open();
  const { certificate, keyFile } = await stranger.api['pki.issue']({ name: 'ada' });
  const pair = { cert: readFileSync(certificate.file, 'utf8'), key: readFileSync(keyFile, 'utf8') };
  const forged = new AdminBrowser(office.port, office.world.ca, pair);
  assert.equal((await forged.raw({ path: '/api/login' })).body.certificate, null);
  assert.equal((await forged.post('/api/login/certificate', {})).status, 401);
  const off = new AdminBrowser(stranger.port, stranger.world.ca, pair);
  assert.equal((await off.raw({ path: '/api/login' })).body.certificate, null);
  assert.equal((await off.post('/api/login/certificate', {})).status, 401);
});

test(
  'another password ends what its owner has open; passkeys stay, are shown with the user, and are removed there',
  LIMIT,
  async () => {
    await using office = await Office.open();
    const ada = await office.as('administrator', 'ada');
    const vera = await office.as('viewer', 'vera');
    const passkey = new SoftPasskey();
    const { body: added } = await add(office, vera, passkey, 'a key');
    const { browser: inside } = await logIn(office, passkey);
    assert.equal((await ada.call('user.password', { name: 'vera', password: 'another long one' })).status, 200);
    for (const browser of [vera, inside]) assert.equal((await browser.raw({ path: '/api/me' })).status, 401);
    const shown = (await ada.call('user.show', { name: 'vera' })).body;
    assert.deepEqual(
      shown.passkeys.map(({ id, name }: { id: string; name: string }) => [id, name]),
      [[added.id, 'a key']],
    );
    const { browser: back, reply } = await logIn(office, passkey);
    assert.equal(reply.status, 200);
    assert.equal((await ada.call('user.totp', { name: 'vera' })).status, 200);
    assert.equal((await back.raw({ path: '/api/me' })).status, 401, 'so does another second factor');
    assert.equal((await ada.call('passkey.remove', { id: added.id })).status, 200);
    assert.deepEqual((await ada.call('user.show', { name: 'vera' })).body.passkeys, []);
    assert.equal((await logIn(office, passkey)).reply.status, 401);
  },
);
