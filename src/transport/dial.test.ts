/** What a client accepts from a server, and what it says when it does not: real sockets on loopback. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect as connectTcp, createServer as createTcpServer, type Server } from 'node:net';
import { test } from 'node:test';
import { createServer as createTlsServer, type TlsOptions } from 'node:tls';
import { TestAuthority, type TestLeaf } from '../../test/support/certificates.ts';
import { collectLog } from '../../test/support/log-lines.ts';
import { FrameCollector } from '../../test/support/tls-pair.ts';
import { type ErrorCode, isVpnError, type VpnError } from '../base/errors.ts';
import { Secret, silentLogger } from '../base/log.ts';
import { closeFd, openListenSocket } from '../os/socket.ts';
import { encodeFrame, FrameType } from '../protocol/frame.ts';
import type { Channel } from './channel.ts';
import { alternateFamilies, type DialOptions, dial } from './dial.ts';
import { Listener, type ListenerOptions } from './listener.ts';

const authority = await TestAuthority.create();
const leaf = await authority.server();
const otherAuthority = await TestAuthority.create('Other CA');

/** A gateway's port; every channel it gets is closed with it. */
class Rig implements AsyncDisposable {
  readonly listener: Listener;
  readonly #channels: Channel[];

  static async open(served: TestLeaf = leaf, options: Partial<ListenerOptions> = {}): Promise<Rig> {
    const channels: Channel[] = [];
    const listener = await Listener.open({
      credentials: { cert: served.cert, key: served.key, ca: authority.cert },
      onChannel: (channel) => channels.push(channel),
      log: silentLogger,
      ...options,
    });
    return new Rig(listener, channels);
  }

  private constructor(listener: Listener, channels: Channel[]) {
    this.listener = listener;
    this.#channels = channels;
  }

  get channels(): readonly Channel[] {
    return this.#channels;
  }

  dial(options: Partial<DialOptions> = {}): Promise<Channel> {
    const { port } = this.listener.address;
    return dial({
      host: '127.0.0.1',
      port,
      serverName: 'localhost',
      ca: authority.cert,
      log: silentLogger,
      ...options,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.listener.close();
    for (const channel of this.#channels) channel.destroy();
  }
}

async function rejectsWith(promise: Promise<Channel>, ...codes: ErrorCode[]): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(isVpnError(error), String(error));
    assert.ok(codes.includes(error.code), `${error.code}: ${error.message}`);
    return true;
  });
}

test('REQ-TLS-006: a channel comes out, verified, with the same facts and keys at both ends', async () => {
  await using rig = await Rig.open();
  const client = await rig.dial({ pins: [authority.pin] });
  while (rig.channels.length === 0) await new Promise(setImmediate);
  const [server] = rig.channels;
  assert.ok(server !== undefined);
  assert.equal(client.facts.authorized, true);
  assert.equal(client.facts.peerCertificate?.serial, leaf.serial);
  assert.equal(client.facts.protocol, 'TLSv1.3');
  assert.equal(client.facts.cipher, 'TLS_AES_128_GCM_SHA256');
  assert.equal(client.facts.group, 'X25519MLKEM768');
  assert.equal(client.facts.alpn, 'customvpn/1');
  assert.deepEqual(client.facts.serverId, server.facts.serverId);
  assert.deepEqual(client.facts.local, server.facts.remote);
  assert.deepEqual(client.facts.remote, server.facts.local);
  const context = new Uint8Array(16);
  assert.deepEqual(client.exporter('EXPORTER-test', context), server.exporter('EXPORTER-test', context));

  const got = Promise.withResolvers<Uint8Array>();
  const collector = new FrameCollector((_type, payload) => got.resolve(Uint8Array.from(payload)));
  client.start(collector);
  const frame = encodeFrame(FrameType.packet, new Uint8Array(2000).fill(9));
  server.sendData(frame, 0, frame.length);
  assert.deepEqual(await collector.until(got.promise), new Uint8Array(2000).fill(9));
  client.destroy();
});

test('REQ-TLS-008: a worker hint is offered and chosen', async () => {
  await using rig = await Rig.open();
  const client = await rig.dial({ worker: 7 });
  assert.equal(client.facts.alpn, 'customvpn/1+7');
  client.destroy();
});

test('a server may be known by its address', async () => {
  await using rig = await Rig.open();
  const client = await rig.dial({ serverName: '127.0.0.1' });
  assert.equal(client.facts.authorized, true);
  client.destroy();
  await using nameless = await Rig.open(await authority.server({ names: ['localhost'] }));
  await rejectsWith(nameless.dial({ serverName: '127.0.0.1' }), 'ERR_CERT_NAME');
});

const wrongServers = [
  ['expired', await authority.server({ notBeforeHours: -10, notAfterHours: -1 }), 'ERR_CERT_EXPIRED'],
  ['not yet valid', await authority.server({ notBeforeHours: 1 }), 'ERR_CERT_NOT_YET_VALID'],
  ['for another name', await authority.server({ names: ['vpn.example.com'] }), 'ERR_CERT_NAME'],
  ['of another CA', await otherAuthority.server(), 'ERR_CERT_UNTRUSTED'],
  ['for clients', await authority.client('localhost', { names: ['localhost'] }), 'ERR_CERT_UNTRUSTED'],
] as const;

for (const [what, served, code] of wrongServers) {
  test(`REQ-TLS-006: a server certificate that is ${what}: ${code}`, async () => {
    await using rig = await Rig.open(served);
    await rejectsWith(rig.dial(), code);
  });
}

test('without a CA of its own a client trusts the system, which does not know a private one', async () => {
  await using rig = await Rig.open();
  await rejectsWith(
    dial({ host: '127.0.0.1', port: rig.listener.address.port, serverName: 'localhost', log: silentLogger }),
    'ERR_CERT_UNTRUSTED',
  );
});

test('a revoked server certificate: ERR_CERT_REVOKED', async () => {
  await using rig = await Rig.open();
  await rejectsWith(rig.dial({ crl: await authority.crl([leaf.serial]) }), 'ERR_CERT_REVOKED');
});

test('with verifyServer off any server will do, and the log warns', async () => {
  await using rig = await Rig.open(await otherAuthority.server({ names: ['elsewhere'] }));
  const { log, lines } = collectLog();
  const client = await rig.dial({ verifyServer: false, pins: [authority.pin], log });
  assert.equal(client.facts.authorized, false);
  assert.ok(lines.some((line) => line.level === 'warn' && String(line.msg).includes('NOT verified')));
  client.destroy();
});

test('REQ-TLS-006: one pin of the set must be in the chain: the CA or the leaf', async () => {
  await using rig = await Rig.open();
  for (const pins of [[authority.pin], [leaf.pin], [otherAuthority.pin, leaf.pin]]) {
    (await rig.dial({ pins })).destroy();
  }
  await rejectsWith(rig.dial({ pins: [otherAuthority.pin] }), 'ERR_CERT_PIN');
  await rejectsWith(rig.dial({ pins: ['nonsense', ''] }), 'ERR_CERT_PIN');
});

test('REQ-TLS-006: a pinned certificate that was sent along, but signed nothing, is not in the chain: ERR_CERT_PIN', async () => {
  const sentAlong = { ...leaf, cert: leaf.cert + otherAuthority.cert };
  await using rig = await Rig.open(sentAlong);
  await rejectsWith(rig.dial({ pins: [otherAuthority.pin] }), 'ERR_CERT_PIN');
  // The same name and key identifier as the issuer's, but another key.
  const twin = await TestAuthority.create(undefined, authority);
  await using twinRig = await Rig.open({ ...leaf, cert: leaf.cert + twin.cert });
  await rejectsWith(twinRig.dial({ pins: [twin.pin] }), 'ERR_CERT_PIN');
  await rejectsWith(twinRig.dial({ pins: [twin.pin], ca: authority.cert + twin.cert }), 'ERR_CERT_PIN');
});

test('client certificates: shown when given; missing, the server says so after the handshake', async () => {
  await using rig = await Rig.open(leaf, { requireClientAuth: true });
  const alice = await authority.client('alice');
  const client = await rig.dial({ cert: alice.cert, key: alice.key });
  while (rig.channels.length === 0) await new Promise(setImmediate);
  assert.equal(rig.channels[0]?.facts.peerCertificate?.name, 'alice');
  client.destroy();
  const without = await rig.dial();
  const ended = Promise.withResolvers<void>();
  let said = '';
  without.start({
    bytes: (chunk) => {
      said += Buffer.from(chunk).toString('latin1');
    },
    closed: () => ended.resolve(),
  });
  await ended.promise;
  assert.match(said, /^OK VPN-HELLO 1\r\n.*"certificate_required"/s);
  const other = await authority.client('bob');
  await rejectsWith(rig.dial({ cert: alice.cert, key: other.key }), 'ERR_CERT_KEY_MISMATCH');
});

/** A server that is not ours. */
async function openStranger(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

function dialStranger(port: number, options: Partial<DialOptions> = {}): Promise<Channel> {
  return dial({ host: '127.0.0.1', port, serverName: 'localhost', ca: authority.cert, log: silentLogger, ...options });
}

const strangers: readonly [string, TlsOptions, Partial<DialOptions>, ErrorCode][] = [
  ['no ALPN', {}, {}, 'ERR_TLS_ALPN'],
  ['a foreign ALPN', { ALPNProtocols: ['h2'] }, {}, 'ERR_TLS_ALPN'],
  ['TLS 1.2 only', { maxVersion: 'TLSv1.2', ALPNProtocols: ['customvpn/1'] }, {}, 'ERR_TLS_VERSION'],
  [
    'TLS 1.1 only',
    { minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' },
    { minVersion: '1.2' },
    'ERR_TLS_VERSION',
  ],
  [
    'TLS 1.2 without the extended master secret',
    { maxVersion: 'TLSv1.2', secureOptions: 1, ALPNProtocols: ['customvpn/1'] },
    { minVersion: '1.2' },
    'ERR_TLS_MASTER_SECRET',
  ],
];

for (const [what, serverOptions, dialOptions, code] of strangers) {
  test(`a server with ${what}: ${code}`, async () => {
    const server = createTlsServer({ cert: leaf.cert, key: leaf.key, ...serverOptions }, (socket) =>
      socket.on('error', () => {}),
    );
    const port = await openStranger(server);
    await rejectsWith(dialStranger(port, dialOptions), code);
    server.close();
  });
}

test('REQ-TLS-002: TLS 1.2 with the extended master secret is accepted where it is configured', async () => {
  const options: TlsOptions = { cert: leaf.cert, key: leaf.key, maxVersion: 'TLSv1.2', ALPNProtocols: ['customvpn/1'] };
  const server = createTlsServer(options, (socket) => socket.on('error', () => {}));
  const port = await openStranger(server);
  const client = await dialStranger(port, { minVersion: '1.2' });
  assert.equal(client.facts.protocol, 'TLSv1.2');
  assert.equal(client.facts.group, 'X25519');
  client.destroy();
  server.close();
});

test('a port that speaks plain HTTP: ERR_NOT_TLS', async () => {
  const server = createTcpServer((socket) => {
    socket.on('error', () => {});
    socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n');
  });
  await rejectsWith(dialStranger(await openStranger(server)), 'ERR_NOT_TLS');
  server.close();
});

test('a server that closes during the handshake: ERR_PEER_GONE', async () => {
  const server = createTcpServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.destroy());
  });
  await rejectsWith(dialStranger(await openStranger(server)), 'ERR_PEER_GONE');
  server.close();
});

test('a server that says nothing: ERR_STAGE_TIMEOUT', async () => {
  const sockets: { destroy(): void }[] = [];
  const server = createTcpServer((socket) => {
    socket.on('error', () => {});
    sockets.push(socket);
  });
  await rejectsWith(dialStranger(await openStranger(server), { timeoutMs: 50 }), 'ERR_STAGE_TIMEOUT');
  for (const socket of sockets) socket.destroy();
  server.close();
});

test('a closed port: ERR_CONNECT; several, each named', async () => {
  const server = createTcpServer();
  const port = await openStranger(server);
  server.close();
  await once(server, 'close');
  await rejectsWith(dialStranger(port), 'ERR_CONNECT');
  await assert.rejects(dialStranger(port, { host: ['127.0.0.1', '127.0.0.2'] }), /127\.0\.0\.1: .*127\.0\.0\.2: /);
});

test('a name that nobody knows: ERR_NAME_LOOKUP', async () => {
  const lookup = async (): Promise<string[]> => {
    throw Object.assign(new Error('not found'), { code: 'ENOTFOUND' });
  };
  await rejectsWith(dialStranger(1, { host: 'gateway.invalid', lookup }), 'ERR_NAME_LOOKUP');
  await rejectsWith(dialStranger(1, { host: 'gateway.invalid', lookup: async () => [] }), 'ERR_NAME_LOOKUP');
});

test('a resolver that never answers: ERR_CONNECT_TIMEOUT', async () => {
  const lookup = (): Promise<string[]> => new Promise(() => {});
  await rejectsWith(dialStranger(1, { host: 'gateway.invalid', lookup, timeoutMs: 30 }), 'ERR_CONNECT_TIMEOUT');
});

test('dialling can be called off', async () => {
  const lookup = (): Promise<string[]> => new Promise(() => {});
  const controller = new AbortController();
  const dialled = dialStranger(1, { host: 'gateway.invalid', lookup, signal: controller.signal });
  controller.abort();
  await rejectsWith(dialled, 'ERR_CONNECT');
  await rejectsWith(dialStranger(1, { signal: AbortSignal.abort() }), 'ERR_CONNECT');
});

test('an address that refuses does not delay the next; the first that connects wins', async (t) => {
  // No timer ever fires: the next attempt begins because the one before has failed.
  t.mock.timers.enable({ apis: ['setTimeout'] });
  await using rig = await Rig.open(leaf, { address: '127.0.0.1' });
  const lookup = async (): Promise<string[]> => ['::1', '127.0.0.1'];
  const client = await rig.dial({ host: 'localhost', lookup });
  assert.equal(client.facts.remote.address, '127.0.0.1');
  client.destroy();
  const listed = await rig.dial({ host: ['127.0.0.9', '127.0.0.1'] });
  assert.equal(listed.facts.remote.address, '127.0.0.1');
  listed.destroy();
});

test('an address that does not answer is overtaken by the next', async () => {
  await using rig = await Rig.open(leaf, { address: '127.0.0.1' });
  const { port } = rig.listener.address;
  // Nobody accepts there, and one connection fills the backlog: the kernel leaves further ones unanswered.
  const silent = openListenSocket({ address: '127.0.0.5', port, backlog: 0 });
  const first = connectTcp(port, '127.0.0.5');
  await once(first, 'connect');
  const client = await rig.dial({ host: ['127.0.0.5', '127.0.0.1'] });
  assert.equal(client.facts.remote.address, '127.0.0.1');
  client.destroy();
  await rejectsWith(rig.dial({ host: '127.0.0.5', timeoutMs: 50 }), 'ERR_CONNECT_TIMEOUT');
  first.destroy();
  closeFd(silent.fd);
});

test('families take turns, beginning with the preferred one', () => {
  assert.deepEqual(alternateFamilies(['2001:db8::1', '2001:db8::2', '192.0.2.1']), [
    '2001:db8::1',
    '192.0.2.1',
    '2001:db8::2',
  ]);
  assert.deepEqual(alternateFamilies(['192.0.2.1', '192.0.2.2', '2001:db8::1']), [
    '192.0.2.1',
    '2001:db8::1',
    '192.0.2.2',
  ]);
  assert.deepEqual(alternateFamilies([]), []);
});

test('REQ-DIAL-001: a server that answers and cannot finish is passed over for the next, whatever it shows', async () => {
  const stranger = await otherAuthority.server();
  await using good = await Rig.open(leaf, { address: '127.0.0.1' });
  const { port } = good.listener.address;
  await using _ = await Rig.open(stranger, { address: '127.0.0.2', port });
  const channel = await good.dial({ host: ['127.0.0.2', '127.0.0.1'] });
  assert.equal(channel.facts.remote.address, '127.0.0.1');
  channel.destroy();
  const error = await failure(good.dial({ host: ['127.0.0.2', '127.0.0.3'] }));
  assert.equal(error.code, 'ERR_CERT_UNTRUSTED', 'who spoke says more than who did not');
});

test('REQ-DIAL-002: a name that does not resolve holds up no other', async () => {
  await using rig = await Rig.open();
  const lookup = (host: string) =>
    host === 'slow.test' ? new Promise<readonly string[]>(() => {}) : Promise.resolve(['127.0.0.1']);
  const channel = await rig.dial({ host: ['slow.test', 'quick.test'], lookup });
  channel.destroy();
});

test('a certificate that is not accepted is told with who is on it', async () => {
  await using rig = await Rig.open(await otherAuthority.server());
  const error = await failure(rig.dial());
  assert.match(error.message, /signed by CN=Other CA/);
  assert.equal(error.details.issuer, 'CN=Other CA');
});

test('REQ-TLS-010: behind a secret path of the front door a tunnel opens, over HTTP/1.1 to whoever watches', async () => {
  const path = '/a-path-that-nobody-guesses';
  await using rig = await Rig.open(leaf, { camouflage: { path, only: true } });
  const channel = await rig.dial({ camouflage: new Secret(path) });
  assert.equal(channel.facts.alpn, 'http/1.1');
  const far = rig.channels[0];
  assert.ok(far !== undefined);
  assert.deepEqual(
    far.exporter('EXPORTER-test', new Uint8Array()),
    channel.exporter('EXPORTER-test', new Uint8Array()),
  );
  // Both ways, a frame each.
  const heard = [Promise.withResolvers<Uint8Array>(), Promise.withResolvers<Uint8Array>()] as const;
  const near = new FrameCollector((_type, payload) => heard[0].resolve(Uint8Array.from(payload)));
  const other = new FrameCollector((_type, payload) => heard[1].resolve(Uint8Array.from(payload)));
  channel.start(near);
  far.start(other);
  channel.sendControl(encodeFrame(FrameType.ping, Uint8Array.of(1, 2, 3, 4)));
  far.sendControl(encodeFrame(FrameType.pong, Uint8Array.of(5, 6, 7, 8)));
  assert.deepEqual(await other.until(heard[1].promise), Uint8Array.of(1, 2, 3, 4));
  assert.deepEqual(await near.until(heard[0].promise), Uint8Array.of(5, 6, 7, 8));
  channel.destroy();
  const wrong = await failure(rig.dial({ camouflage: new Secret('/another-path-that-nobody-guesses') }));
  assert.equal(wrong.code, 'ERR_UPGRADE');
  assert.match(wrong.message, /answered 404/);
  // The tunnel's own protocol is not spoken at all.
  assert.equal((await failure(rig.dial())).code, 'ERR_TLS_ALPN');
});

async function failure(dialled: Promise<Channel>): Promise<VpnError> {
  const outcome = await dialled.then(
    (channel) => {
      channel.destroy();
      return undefined;
    },
    (error: unknown) => error,
  );
  assert.ok(isVpnError(outcome), String(outcome));
  return outcome;
}
