// The built-in authority, judged by Node's own TLS on loopback and by its X.509 parser.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import tls from 'node:tls';
import { promisify } from 'node:util';
import { type Clock, ManualClock } from '../base/clock.ts';
import { Pki, spkiPin } from './pki.ts';

let root = '';
before(async () => {
  root = await mkdtemp(join(tmpdir(), 'pki-'));
});
after(() => rm(root, { recursive: true }));

let count = 0;
const fresh = () => join(root, `state-${count++}`);
const NAMES = ['vpn.example.org', '127.0.0.1', '::1'];
const create = (options = {}) => Pki.create(fresh(), { names: NAMES, ...options });
const text = (path: string) => readFile(path, 'utf8');
const modeOf = async (path: string) => (await stat(path)).mode & 0o777;

interface Outcome {
  /** What the client made of the server's certificate; undefined: it was accepted. */
  readonly client: string | undefined;
  /** What the server made of the client's. */
  readonly server: string | undefined;
}

/** One handshake in which both ends ask for a certificate and neither breaks off. */
async function handshake(options: {
  server: { cert: string; key: string };
  client?: { cert: string; key: string };
  ca: string;
  crl?: string;
  serverName?: string;
}): Promise<Outcome> {
  const verdict = Promise.withResolvers<string | undefined>();
  const server = tls.createServer(
    {
      ...options.server,
      ca: options.ca,
      ...(options.crl === undefined ? {} : { crl: options.crl }),
      requestCert: true,
      rejectUnauthorized: false,
    },
    (socket) => {
      verdict.resolve(socket.authorized ? undefined : String(socket.authorizationError));
      socket.end();
    },
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const socket = tls.connect({
    port: (server.address() as AddressInfo).port,
    host: '127.0.0.1',
    servername: options.serverName ?? 'vpn.example.org',
    ca: options.ca,
    rejectUnauthorized: false,
    ...options.client,
  });
  try {
    await new Promise((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject));
    const error: unknown = socket.authorizationError;
    const client = socket.authorized
      ? undefined
      : error instanceof Error
        ? (error as { code?: string }).code
        : String(error);
    return { client: client ?? undefined, server: await verdict.promise };
  } finally {
    socket.destroy();
    server.close();
  }
}

async function pair(cert: string, key: string) {
  return { cert: await text(cert), key: await text(key) };
}

test('makes certificates that both ends of a TLS connection accept, by DNS name and by address', async () => {
  const pki = await create();
  const server = await pair(pki.paths.server, pki.paths.serverKey);
  const { certFile, keyFile } = await pki.issue('ada@example.org');
  const client = await pair(certFile, keyFile);
  const crl = await text(pki.paths.crl);
  for (const serverName of ['vpn.example.org', 'VPN.example.org']) {
    assert.deepEqual(await handshake({ server, client, ca: pki.caPem, crl, serverName }), {
      client: undefined,
      server: undefined,
    });
  }
  const leaf = new X509Certificate(server.cert);
  assert.equal(leaf.checkIP('127.0.0.1'), '127.0.0.1');
  assert.equal(leaf.checkIP('::1'), '::1');
  assert.equal(leaf.checkIP('127.0.0.2'), undefined);
  assert.equal(leaf.checkHost('other.example.org'), undefined);
  const wrongName = await handshake({ server, ca: pki.caPem, serverName: 'other.example.org' });
  assert.equal(wrongName.client, 'ERR_TLS_CERT_ALTNAME_INVALID');
});

test('a revoked client certificate is refused, another stays good, and an empty list revokes nobody', async () => {
  const pki = await create();
  const server = await pair(pki.paths.server, pki.paths.serverKey);
  const ada = await pki.issue('ada');
  const bob = await pki.issue('bob');
  const attempt = async (issued: { certFile: string; keyFile: string }) =>
    (
      await handshake({
        server,
        client: await pair(issued.certFile, issued.keyFile),
        ca: pki.caPem,
        crl: await text(pki.paths.crl),
      })
    ).server;
  assert.equal(await attempt(ada), undefined);
  const serial = ada.certificate.serial;
  const facts = await pki.revoke(serial.toUpperCase().match(/../g)?.join(':') ?? '');
  assert.equal(facts.revoked, true);
  assert.equal(await attempt(ada), 'CERT_REVOKED');
  assert.equal(await attempt(bob), undefined);
  assert.deepEqual(
    (await pki.show())
      .map(({ name, revoked }) => [name, revoked])
      .filter(([name]) => name === 'ada' || name === 'bob')
      .sort(),
    [
      ['ada', true],
      ['bob', false],
    ],
  );
  await pki.revoke(serial);
});

test('a client certificate does not pass for a server, nor a server certificate for a client', async () => {
  const pki = await create();
  const server = await pair(pki.paths.server, pki.paths.serverKey);
  const issued = await pki.issue('mallory');
  const client = await pair(issued.certFile, issued.keyFile);
  assert.equal((await handshake({ server: client, ca: pki.caPem })).client, 'INVALID_PURPOSE');
  assert.equal((await handshake({ server, client: server, ca: pki.caPem })).server, 'INVALID_PURPOSE');
});

test('another authority, an expired certificate and one not yet valid are refused', async () => {
  const now = Date.now();
  const pki = await create();
  const other = await create();
  const server = await pair(pki.paths.server, pki.paths.serverKey);
  assert.notEqual((await handshake({ server, ca: other.caPem })).client, undefined);

  const past = await pki.renew({ validity: { notBefore: new Date(now - 9e6), notAfter: new Date(now - 5e6) } });
  assert.equal(
    (await handshake({ server: await pair(past.certFile, past.keyFile), ca: pki.caPem })).client,
    'CERT_HAS_EXPIRED',
  );
  const future = await pki.renew({ validity: { notBefore: new Date(now + 9e6) } });
  assert.equal(
    (await handshake({ server: await pair(future.certFile, future.keyFile), ca: pki.caPem })).client,
    'CERT_NOT_YET_VALID',
  );
  const late = await pki.issue('late', { validity: { notBefore: new Date(now - 9e6), notAfter: new Date(now - 5e6) } });
  const client = await pair(late.certFile, late.keyFile);
  assert.equal((await handshake({ server, client, ca: pki.caPem })).server, 'CERT_HAS_EXPIRED');
});

test('certificates have the extensions and the serial numbers of RFC 5280', async (t) => {
  const pki = await create();
  const { certFile } = await pki.issue('ada');
  const [ca, server, client] = await Promise.all([pki.paths.ca, pki.paths.server, certFile].map(text));
  const described = async (path: string) =>
    (await promisify(execFile)('openssl', ['x509', '-noout', '-text', '-in', path])).stdout;
  const root = new X509Certificate(ca ?? '');
  assert.equal(root.ca, true);
  assert.equal(root.checkIssued(root), true);
  for (const leaf of [server, client]) {
    const parsed = new X509Certificate(leaf ?? '');
    assert.equal(parsed.ca, false);
    assert.equal(parsed.checkIssued(root), true);
    assert.equal(parsed.verify(root.publicKey), true);
    assert.match(parsed.serialNumber, /^[4-7][0-9A-F]{31}$/);
    assert.ok(Math.abs(parsed.validFromDate.getTime() - (Date.now() - 3_600_000)) < 60_000);
    assert.ok(parsed.validToDate <= root.validToDate);
  }
  let caText: string;
  try {
    caText = await described(pki.paths.ca);
  } catch {
    t.diagnostic('there is no openssl command here: the extensions were not compared');
    return;
  }
  const [serverText, clientText] = [await described(pki.paths.server), await described(certFile)];
  assert.match(caText, /Basic Constraints: critical\s+CA:TRUE, pathlen:0/);
  assert.match(caText, /Key Usage: critical\s+Certificate Sign, CRL Sign/);
  for (const leafText of [serverText, clientText]) {
    assert.match(leafText, /Basic Constraints: critical\s+CA:FALSE/);
    assert.match(leafText, /Key Usage: critical\s+Digital Signature\n/);
    const keyId = /Subject Key Identifier: \n?\s+([0-9A-F:]+)/;
    const authorityId = /Authority Key Identifier: \n?\s+(?:keyid:)?([0-9A-F:]+)/;
    assert.equal(authorityId.exec(leafText)?.[1], keyId.exec(caText)?.[1]);
    assert.notEqual(keyId.exec(leafText)?.[1], keyId.exec(caText)?.[1]);
  }
  assert.match(serverText, /Extended Key Usage: \n?\s+TLS Web Server Authentication\n/);
  assert.match(serverText, /DNS:vpn\.example\.org, IP Address:127\.0\.0\.1, IP Address:0:0:0:0:0:0:0:1/);
  assert.match(clientText, /Extended Key Usage: \n?\s+TLS Web Client Authentication\n/);
});

test('private keys have mode 0600 in folders of mode 0700', async () => {
  const pki = await create();
  const { keyFile } = await pki.issue('ada');
  for (const key of [pki.paths.caKey, pki.paths.serverKey, pki.paths.nextServerKey, keyFile]) {
    assert.equal(await modeOf(key), 0o600, key);
  }
  for (const folder of [pki.paths.folder, pki.paths.clients]) assert.equal(await modeOf(folder), 0o700, folder);
});

test('an authority is never replaced', async () => {
  const dir = fresh();
  const first = await Pki.create(dir, { names: NAMES });
  await assert.rejects(Pki.create(dir, { names: NAMES }), { code: 'ERR_CONFLICT' });
  assert.equal((await Pki.open(dir)).caPem, first.caPem);
  assert.deepEqual(await readdir(dir), ['certs']);
});

test('two that make an authority at once leave one whole authority', async () => {
  const dir = fresh();
  const results = await Promise.allSettled([Pki.create(dir, { names: NAMES }), Pki.create(dir, { names: NAMES })]);
  assert.equal(results.filter((result) => result.status === 'fulfilled').length, 1);
  await Pki.open(dir);
  assert.deepEqual(await readdir(dir), ['certs']);
});

test('open names what is missing, damaged or does not belong together', async () => {
  await assert.rejects(Pki.open(fresh()), { code: 'ERR_CERT_FILE' });
  const pki = await create();
  const dir = join(pki.paths.folder, '..');
  await copyFile(pki.paths.serverKey, pki.paths.caKey);
  await assert.rejects(Pki.open(dir), { code: 'ERR_CERT_KEY_MISMATCH' });
  await writeFile(pki.paths.caKey, 'nonsense-secret');
  await assert.rejects(Pki.open(dir), (error: Error & { code: string }) => {
    assert.equal(error.code, 'ERR_CERT_FILE');
    assert.doesNotMatch(`${error.message}${String(error.cause)}`, /nonsense-secret/);
    return true;
  });
  await writeFile(pki.paths.ca, 'nonsense');
  await assert.rejects(Pki.open(dir), { code: 'ERR_CERT_FILE' });
});

test('names of a server are checked, lowered and made ASCII', async () => {
  const names = async (list: string[]) => new X509Certificate(await text((await create({ names: list })).paths.server));
  assert.equal(
    (await names(['VPN.Example.org', '[::1]'])).subjectAltName,
    'DNS:vpn.example.org, IP Address:0:0:0:0:0:0:0:1',
  );
  assert.equal((await names(['münchen.example'])).subjectAltName, 'DNS:xn--mnchen-3ya.example');
  for (const bad of [
    [],
    [''],
    ['a b'],
    ['-x.org'],
    ['*.example.org'],
    ['1.2.3'],
    ['fe80::1%eth0'],
    ['x/../y'],
    ['a'.repeat(64)],
  ]) {
    await assert.rejects(create({ names: bad }), { code: 'ERR_BAD_REQUEST' }, JSON.stringify(bad));
  }
});

test('names of clients cannot leave their folder', async () => {
  const pki = await create();
  for (const bad of ['', '.', '..', '../ca', 'a/b', 'a\\b', 'a\0b', '.hidden', 'x'.repeat(65), 'a\u202eb']) {
    await assert.rejects(pki.issue(bad), { code: 'ERR_BAD_REQUEST' }, JSON.stringify(bad));
  }
  assert.deepEqual(await readdir(pki.paths.clients), []);
  const issued = await pki.issue('Zoe\u0308');
  assert.equal(issued.certificate.name, 'Zo\u00eb');
});

test('a live certificate of a name is not replaced unawares', async () => {
  const pki = await create();
  const first = await pki.issue('ada');
  await assert.rejects(pki.issue('ada'), { code: 'ERR_CONFLICT' });
  await pki.revoke(first.certificate.serial);
  const second = await pki.issue('ada');
  const third = await pki.issue('ada', { replace: true });
  const shown = (await pki.show()).filter((facts) => facts.name === 'ada');
  assert.equal(shown.length, 3);
  assert.deepEqual(
    shown.filter((facts) => facts.file === third.certFile).map((facts) => facts.serial),
    [third.certificate.serial],
  );
  assert.notEqual(second.certificate.serial, third.certificate.serial);
});

test('revoke knows its own certificates only', async () => {
  const pki = await create();
  for (const serial of ['', '00', 'zz', '../../ca', 'ab'.repeat(16)]) {
    await assert.rejects(pki.revoke(serial), { code: 'ERR_NOT_FOUND' }, serial);
  }
  const [ca] = await pki.show();
  await assert.rejects(pki.revoke(ca?.serial ?? ''), { code: 'ERR_BAD_REQUEST' });
});

test('revocations made at once, by two processes, are all in the list', async () => {
  const dir = fresh();
  const a = await Pki.create(dir, { names: NAMES });
  const b = await Pki.open(dir);
  const issued = await Promise.all(Array.from({ length: 8 }, (_, i) => a.issue(`user-${i}`)));
  await Promise.all(issued.map(({ certificate }, i) => (i % 2 === 0 ? a : b).revoke(certificate.serial)));
  const server = await pair(a.paths.server, a.paths.serverKey);
  const crl = await text(a.paths.crl);
  for (const { certFile, keyFile } of issued) {
    const outcome = await handshake({ server, client: await pair(certFile, keyFile), ca: a.caPem, crl });
    assert.equal(outcome.server, 'CERT_REVOKED');
  }
});

test('a revocation that another process makes while the list is being written is in the list', async () => {
  let whileSigning = () => {};
  const clock: Clock = {
    now: () => 0,
    bootNow: () => 0,
    wallNow: () => {
      whileSigning();
      return Date.now();
    },
  };
  const pki = await create({ clock });
  const [ada, bob] = [await pki.issue('ada'), await pki.issue('bob')];
  let calls = 0;
  whileSigning = () => {
    // The first call dates the revocation; the second comes between reading the revocations and writing the list.
    if (++calls === 2)
      writeFileSync(join(pki.paths.folder, 'revoked', bob.certificate.serial), '2026-01-01T00:00:00Z\n');
  };
  await pki.revoke(ada.certificate.serial);
  const server = await pair(pki.paths.server, pki.paths.serverKey);
  const client = await pair(bob.certFile, bob.keyFile);
  const crl = await text(pki.paths.crl);
  assert.equal((await handshake({ server, client, ca: pki.caPem, crl })).server, 'CERT_REVOKED');
});

test('a revocation whose list was never written is in the list after open', async () => {
  const pki = await create();
  const ada = await pki.issue('ada');
  const before = await text(pki.paths.crl);
  await pki.revoke(ada.certificate.serial);
  await writeFile(pki.paths.crl, before);
  await Pki.open(join(pki.paths.folder, '..'));
  const server = await pair(pki.paths.server, pki.paths.serverKey);
  const client = await pair(ada.certFile, ada.keyFile);
  assert.equal(
    (await handshake({ server, client, ca: pki.caPem, crl: await text(pki.paths.crl) })).server,
    'CERT_REVOKED',
  );
});

test('renew takes the key that was pinned beforehand and makes the next', async () => {
  const pki = await create();
  const before = await pki.pins();
  assert.equal(before.ca, spkiPin(pki.caPem));
  const renewed = await pki.renew();
  const after = await pki.pins();
  assert.equal(after.ca, before.ca);
  assert.equal(after.leaf, before.backup);
  assert.equal(renewed.certificate.pin, before.backup);
  assert.notEqual(after.backup, before.backup);
  assert.equal(renewed.certificate.name, NAMES.join(','));
  const { cert, key } = await pair(pki.paths.server, pki.paths.serverKey);
  assert.equal(new X509Certificate(cert).checkPrivateKey(createPrivateKey(key)), true);
  assert.equal((await pki.renew({ names: ['new.example.org'] })).certificate.name, 'new.example.org');
});

test("the server's certificate is renewed for the key it has when that is asked for, and the next key stays pinned", async () => {
  const pki = await create();
  const before = await pki.pins();
  const old = await text(pki.paths.server);
  await pki.renew({ key: 'same' });
  assert.deepEqual(await pki.pins(), before);
  assert.notEqual(await text(pki.paths.server), old);
});

test("a client's certificate is renewed for the same key or a new one; the old one stays valid until it is revoked", async () => {
  const pki = await create();
  const first = await pki.issue('ada');
  const key = await text(first.keyFile);
  const same = await pki.renewClient('ada');
  assert.equal(await text(same.keyFile), key);
  assert.equal(same.certificate.pin, first.certificate.pin);
  assert.notEqual(same.certificate.serial, first.certificate.serial);
  const other = await pki.renewClient('ada', { key: 'new' });
  assert.notEqual(other.certificate.pin, first.certificate.pin);
  const { cert, key: newKey } = await pair(other.certFile, other.keyFile);
  assert.equal(new X509Certificate(cert).checkPrivateKey(createPrivateKey(newKey)), true);
  assert.equal(await modeOf(other.keyFile), 0o600);
  const shown = (await pki.show()).filter(({ role }) => role === 'client');
  assert.deepEqual(
    shown.map(({ revoked }) => revoked),
    [false, false, false],
  );
  assert.deepEqual(
    shown.filter(({ isNewest }) => isNewest).map(({ serial }) => serial),
    [other.certificate.serial],
  );
});

test('nothing is renewed for a client without a certificate, or one whose certificate was revoked', async () => {
  const pki = await create();
  await assert.rejects(pki.renewClient('ada'), { code: 'ERR_NOT_FOUND' });
  await assert.rejects(pki.renewClient('../ca'), { code: 'ERR_BAD_REQUEST' });
  const { certificate } = await pki.issue('ada');
  await pki.revoke(certificate.serial);
  for (const key of ['same', 'new'] as const) {
    await assert.rejects(pki.renewClient('ada', { key }), { code: 'ERR_CONFLICT' });
  }
});

test("a client's renewal that a crash cut is finished by open, or has changed nothing", async () => {
  const pki = await create();
  const dir = join(pki.paths.folder, '..');
  const { certFile, keyFile } = await pki.issue('ada');
  const next = join(pki.paths.clients, '.ada.next.key');
  const [oldCert, oldKey] = [await text(certFile), await text(keyFile)];
  await pki.renewClient('ada', { key: 'new' });
  const [newCert, newKey] = [await text(certFile), await text(keyFile)];
  // After the next key, before the certificate.
  for (const [file, content] of [
    [certFile, oldCert],
    [keyFile, oldKey],
    [next, newKey],
  ] as const)
    await writeFile(file, content);
  await Pki.open(dir);
  assert.equal(await text(keyFile), oldKey);
  // After the certificate, before its key is in place.
  await writeFile(certFile, newCert);
  await Pki.open(dir);
  assert.equal(await text(keyFile), newKey);
});

test('a renewal that a crash cut after any of its steps is finished by open', async () => {
  const pki = await create();
  const dir = join(pki.paths.folder, '..');
  const matches = async () => {
    const { cert, key } = await pair(pki.paths.server, pki.paths.serverKey);
    return new X509Certificate(cert).checkPrivateKey(createPrivateKey(key));
  };
  const saved = join(dir, 'saved');
  await mkdir(saved);
  await copyFile(pki.paths.serverKey, join(saved, 'old.key'));
  await copyFile(pki.paths.nextServerKey, join(saved, 'next.key'));
  await pki.renew();
  // After the certificate, before the key.
  await copyFile(join(saved, 'old.key'), pki.paths.serverKey);
  await copyFile(join(saved, 'next.key'), pki.paths.nextServerKey);
  assert.equal(await matches(), false);
  await Pki.open(dir);
  assert.equal(await matches(), true);
  // After the key, before the next one.
  await rm(pki.paths.nextServerKey);
  await Pki.open(dir);
  assert.equal(await matches(), true);
  assert.equal(await modeOf(pki.paths.nextServerKey), 0o600);
});

test('the clock decides validity, and a leaf does not outlive its authority', async () => {
  const clock = new ManualClock(Date.UTC(2030, 0, 1));
  const pki = await Pki.create(fresh(), {
    names: NAMES,
    clock,
    caValidity: { notAfter: new Date(Date.UTC(2030, 1, 1)) },
  });
  const [ca, server] = await pki.show();
  assert.deepEqual(ca?.notAfter, new Date(Date.UTC(2030, 1, 1)));
  assert.deepEqual(server?.notBefore, new Date(Date.UTC(2029, 11, 31, 23)));
  assert.deepEqual(server?.notAfter, ca?.notAfter);
});

test('the pin is the SHA-256 of the public key', async () => {
  const pki = await create();
  const pem = await text(pki.paths.server);
  assert.equal(spkiPin(pem), spkiPin(new X509Certificate(pem).raw));
  assert.match(spkiPin(pem), /^[A-Za-z0-9+/]{43}=$/);
  assert.notEqual(spkiPin(pem), spkiPin(pki.caPem));
});
