// Why a gateway cannot be reached, step by step: each obstacle is met and named.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer as createTcpServer } from 'node:net';
import { test } from 'node:test';
import { createServer as createTlsServer, type TlsOptions } from 'node:tls';
import { Secret } from '../../src/base/log.ts';
import { type ExamineTarget, examine } from '../../src/client/examine.ts';
import { TestAuthority } from '../support/certificates.ts';
import { World } from '../support/world.ts';

const none = (): undefined => undefined;

function targetOf(world: World, change: Partial<ExamineTarget> = {}): ExamineTarget {
  return { hosts: ['127.0.0.1'], port: world.port, serverName: 'localhost', ca: world.ca, proxy: none, ...change };
}

const steps = (findings: readonly { step: string; ok: boolean }[]) =>
  findings.map(({ step, ok }) => `${step} ${ok ? 'ok' : 'failed'}`);

test('a gateway that can be reached: every step is told, the login last', async () => {
  await using world = await World.open();
  const login = async () => ({ ok: true, found: 'accepted' });
  const { findings, facts, error } = await examine(targetOf(world, { login }));
  assert.equal(error, undefined);
  assert.deepEqual(steps(findings), ['tcp ok', 'tls ok', 'hello ok', 'mtu ok', 'clock ok', 'login ok']);
  assert.ok(findings.every(({ mend }) => mend === undefined));
  assert.equal(facts?.hello, 'OK VPN-HELLO 1');
  assert.equal(facts.certificate.trusted, true);
});

test('a clock that is wrong is told with by how much', async () => {
  await using world = await World.open();
  const { findings } = await examine(targetOf(world, { now: () => Date.now() - 3_600_000 }));
  const clock = findings.find(({ step }) => step === 'clock');
  assert.equal(clock?.ok, false);
  assert.match(clock.found, /^(3599|3600|3601) s behind/);
  assert.match(clock.mend ?? '', /set the clock/);
});

test('a login that is refused is the failure, with its own words', async () => {
  await using world = await World.open();
  const login = async () => ({ ok: false, found: 'the server refused the login', mend: 'ask' });
  const { error } = await examine(targetOf(world, { login }));
  assert.match(error?.message ?? '', /refused the login/);
});

test('addresses that refuse, and some that do not, are told one by one', async () => {
  await using world = await World.open();
  const { findings, error } = await examine(targetOf(world, { hosts: ['127.0.0.77', '127.0.0.1'] }));
  assert.equal(error, undefined);
  const tcp = findings.filter(({ step }) => step === 'tcp');
  assert.deepEqual(
    tcp.map(({ ok }) => ok),
    [false, true],
  );
  assert.match(tcp[0]?.mend ?? '', /nothing listens there/);
  const closed = await examine(targetOf(world, { port: 1 }));
  assert.equal(closed.error?.code, 'ERR_CONNECT');
  assert.deepEqual(steps(closed.findings), ['tcp failed']);
});

test('another gateway, and somebody who reads TLS, are told apart by who signed', async () => {
  await using world = await World.open();
  await using other = await World.open();
  const old = await examine(targetOf(world, { port: other.port }));
  assert.equal(old.error?.code, 'ERR_CERT_UNTRUSTED');
  assert.match(old.error.message, /not the one of this profile: its authority is "CN=CustomVPN CA/);

  const authority = await TestAuthority.create('Corp Inspection CA');
  const leaf = await authority.server();
  const options: TlsOptions = { cert: leaf.cert, key: leaf.key, ALPNProtocols: ['customvpn/1'] };
  const reader = createTlsServer(options, (socket) => {
    socket.on('error', () => {});
    socket.end('OK VPN-HELLO 1\r\n');
  });
  await once(reader.listen(0, '127.0.0.1'), 'listening');
  const { port } = reader.address() as AddressInfo;
  const read = await examine(targetOf(world, { port }));
  reader.close();
  assert.equal(read.error?.code, 'ERR_TLS_INTERCEPTED');
  assert.match(read.error?.message ?? '', /signed by "CN=Corp Inspection CA"/);
});

test('a port that is no TLS, and one that lets small packets through and no more, are told as such', async (t) => {
  await using world = await World.open();
  const plain = createTcpServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'));
  });
  t.after(() => plain.close());
  await once(plain.listen(0, '127.0.0.1'), 'listening');
  const { error, findings } = await examine(targetOf(world, { port: (plain.address() as AddressInfo).port }));
  assert.equal(error?.code, 'ERR_NOT_TLS');
  assert.deepEqual(steps(findings), ['tcp ok', 'tls failed', 'mtu ok']);
});

test('a gateway that is camouflaged is examined behind its path', async () => {
  const path = '/a-path-that-nobody-guesses';
  await using world = await World.open({ config: { camouflage: path, camouflageOnly: true } });
  assert.equal((await examine(targetOf(world, { camouflage: new Secret(path) }))).error, undefined);
  assert.equal((await examine(targetOf(world))).error?.code, 'ERR_TLS_ALPN');
});

test('a proxy on the way is named, and so is its refusal', async (t) => {
  await using world = await World.open();
  const proxy = createTcpServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.end('HTTP/1.1 403 Forbidden\r\n\r\n'));
  });
  t.after(() => proxy.close());
  await once(proxy.listen(0, '127.0.0.1'), 'listening');
  const { port } = proxy.address() as AddressInfo;
  const through = () => ({ kind: 'http', host: '127.0.0.1', port }) as const;
  const { error, findings } = await examine(targetOf(world, { proxy: through }));
  assert.equal(error?.code, 'ERR_PROXY');
  assert.deepEqual(steps(findings), ['proxy ok', 'proxy failed']);
  assert.match(findings[1]?.found ?? '', /403 Forbidden/);
});
