/** What a port does with good clients, bad clients and no clients at all: real sockets on loopback. */

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { connect as connectTcp, createServer as createTcpServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import { TestAuthority } from '../../test/support/certificates.ts';
import { collectLog, type LogLine } from '../../test/support/log-lines.ts';
import { binaryHeader } from '../../test/support/proxy-header.ts';
import { FrameCollector } from '../../test/support/tls-pair.ts';
import { ManualClock } from '../base/clock.ts';
import { type ErrorCode, isVpnError } from '../base/errors.ts';
import { silentLogger } from '../base/log.ts';
import { openListenSocket } from '../os/socket.ts';
import { encodeFrame, FrameDecoder, FrameType } from '../protocol/frame.ts';
import { decodeMessage } from '../protocol/messages.ts';
import { rejectError } from '../protocol/reasons.ts';
import type { Channel } from './channel.ts';
import { sourceOf } from './endpoint.ts';
import { Listener, type ListenerOptions } from './listener.ts';
import { LogLimit } from './log-limit.ts';
import { negotiatedGroup } from './tls.ts';

const authority = await TestAuthority.create();
const leaf = await authority.server();
const otherAuthority = await TestAuthority.create('Other CA');
const credentials = { cert: leaf.cert, key: leaf.key, ca: authority.cert };

/** Waits for the end of a connection. Resolves with the code of the error that ended it, if there was one. */
function failureOf(socket: Socket): Promise<string | undefined> {
  socket.resume();
  let code: string | undefined;
  socket.once('error', (error: NodeJS.ErrnoException) => {
    code = error.code;
  });
  return new Promise((resolve) => socket.once('close', () => resolve(code)));
}

/** What a client says first. */
async function clientHello(): Promise<Buffer> {
  const server = createTcpServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  const client = connectTls({ port, host: '127.0.0.1', ALPNProtocols: ['customvpn/1'] }).on('error', () => {});
  const [socket] = (await once(server, 'connection')) as [Socket];
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  const whole = (): Buffer => Buffer.concat(chunks);
  while (whole().length < 5 || whole().length < 5 + whole().readUInt16BE(3)) await once(socket, 'data');
  client.destroy();
  socket.destroy();
  server.close();
  return whole();
}

class Rig implements AsyncDisposable {
  readonly listener: Listener;
  readonly lines: LogLine[];
  readonly port: number;
  readonly #channels: Channel[];
  readonly #arrivals: ((channel: Channel) => void)[];

  static async open(options: Partial<ListenerOptions> = {}): Promise<Rig> {
    const channels: Channel[] = [];
    const arrivals: ((channel: Channel) => void)[] = [];
    const { log, lines } = collectLog();
    const onChannel = (channel: Channel): void => {
      channels.push(channel);
      arrivals.shift()?.(channel);
    };
    const listener = await Listener.open({ address: '127.0.0.1', port: 0, credentials, onChannel, log, ...options });
    return new Rig(listener, lines, channels, arrivals);
  }

  private constructor(
    listener: Listener,
    lines: LogLine[],
    channels: Channel[],
    arrivals: ((channel: Channel) => void)[],
  ) {
    this.listener = listener;
    this.lines = lines;
    this.port = listener.address.port;
    this.#channels = channels;
    this.#arrivals = arrivals;
  }

  /** The next channel that the listener hands over. */
  arrival(): Promise<Channel> {
    return new Promise((resolve) => this.#arrivals.push(resolve));
  }

  get channelCount(): number {
    return this.#channels.length;
  }

  tls(options: ConnectionOptions = {}): TLSSocket {
    const socket = connectTls({
      host: '127.0.0.1',
      port: this.port,
      ca: authority.cert,
      ALPNProtocols: ['customvpn/1'],
      ...options,
    });
    socket.on('error', () => {});
    return socket;
  }

  /** Sends bytes to the port and waits until the server has closed the connection. */
  async raw(bytes?: string | Uint8Array): Promise<void> {
    const socket = connectTcp(this.port, '127.0.0.1', () => bytes !== undefined && socket.write(bytes));
    socket.on('error', () => {});
    await failureOf(socket);
  }

  /** That a connection failed with this code, once, was logged with its peer, and hurt nobody else. */
  async expectFailure(code: ErrorCode): Promise<void> {
    while (this.listener.connectionCount > 0) await new Promise(setImmediate);
    assert.deepEqual(this.listener.counters.failed, { [code]: 1 });
    const line = this.lines.find((one) => one.code === code);
    assert.equal(line?.peer, '127.0.0.1');
    assert.equal(line?.level, 'info');
    assert.equal(this.listener.handshakeCount, 0);
    assert.equal(this.channelCount, 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.listener.close();
    for (const channel of this.#channels) channel.destroy();
  }
}

test('a tunnel client becomes a channel whose facts are true', async () => {
  await using rig = await Rig.open();
  const arrival = rig.arrival();
  const client = rig.tls();
  await once(client, 'secureConnect');
  const { facts } = await arrival;
  assert.equal(facts.protocol, 'TLSv1.3');
  assert.equal(facts.cipher, 'TLS_AES_128_GCM_SHA256');
  assert.equal(facts.alpn, 'customvpn/1');
  assert.equal(facts.group, 'X25519MLKEM768');
  assert.deepEqual(facts.remote, { address: '127.0.0.1', port: client.localPort });
  assert.deepEqual(facts.local, { address: '127.0.0.1', port: rig.port });
  assert.equal(facts.authorized, false);
  assert.equal(facts.peerCertificate, undefined);
  assert.equal(Buffer.from(facts.serverId).toString('base64'), leaf.pin);
  client.destroy();
});

test('the group is the one of this handshake, at both ends and on both versions', async () => {
  await using rig = await Rig.open({ minVersion: '1.2' });
  for (const maxVersion of ['TLSv1.3', 'TLSv1.2'] as const) {
    for (const group of ['X25519MLKEM768', 'X25519', 'P-256', 'P-384']) {
      if (maxVersion === 'TLSv1.2' && group !== 'X25519' && group !== 'P-256') continue;
      const arrival = rig.arrival();
      // On 1.2 the list of groups is also the list of curves that the certificate may have.
      const client = rig.tls({ ecdhCurve: maxVersion === 'TLSv1.2' ? `${group}:P-256` : group, maxVersion });
      await once(client, 'secureConnect');
      assert.equal((await arrival).facts.group, group);
      const session = client.getSession();
      assert.ok(session !== undefined);
      assert.equal(negotiatedGroup(session), group);
      client.destroy();
    }
  }
});

test('frames go both ways through a listening socket that was handed in', async () => {
  const { fd, port } = openListenSocket({ address: '::', port: 0, congestion: 'bbr', notSentLowat: 8192 });
  await using rig = await Rig.open({ fd });
  assert.equal(rig.port, port);
  const arrival = rig.arrival();
  const client = rig.tls();
  const server = await arrival;
  assert.equal(server.facts.remote.address, '127.0.0.1', 'no mapped address');
  const frame = encodeFrame(FrameType.packet, new Uint8Array(1000).fill(3));
  server.sendData(frame, 0, frame.length);
  const [chunk] = await once(client, 'data');
  assert.deepEqual(Uint8Array.from(chunk as Buffer), frame);
  client.destroy();
});

test('plain HTTP is ERR_NOT_TLS', async () => {
  await using rig = await Rig.open();
  await rig.raw('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n');
  await rig.expectFailure('ERR_NOT_TLS');
});

for (const [what, bytes] of [
  ['zeros', new Uint8Array(100)],
  ['another protocol', 'SSH-2.0-OpenSSH_9.2\r\n'],
  ['a proxy request', 'CONNECT localhost:1 HTTP/1.1\r\n\r\n'],
  ['random bytes', Buffer.concat([Buffer.from([0x80 | 0x47]), randomBytes(99)])],
] as const) {
  test(`${what}: ERR_NOT_TLS`, async () => {
    await using rig = await Rig.open();
    await rig.raw(bytes);
    await rig.expectFailure('ERR_NOT_TLS');
  });
}

test('a TLS record that holds no ClientHello is ERR_TLS_HANDSHAKE', async () => {
  await using rig = await Rig.open();
  await rig.raw(Buffer.concat([Buffer.from('160301001001', 'hex'), Buffer.alloc(15, 0xff)]));
  await rig.expectFailure('ERR_TLS_HANDSHAKE');
});

test('random bytes in any number leave the port serving others', async () => {
  await using rig = await Rig.open();
  await Promise.all(Array.from({ length: 30 }, (_, i) => rig.raw(randomBytes(50 + i * 40))));
  const arrival = rig.arrival();
  const client = rig.tls();
  await arrival;
  client.destroy();
});

test('a peer that resets during the handshake is ERR_PEER_GONE, with its address', async () => {
  await using rig = await Rig.open();
  const socket = connectTcp(rig.port, '127.0.0.1');
  socket.write(Buffer.from('1603010200', 'hex'));
  while (rig.listener.handshakeCount === 0) await new Promise(setImmediate);
  socket.resetAndDestroy();
  await rig.expectFailure('ERR_PEER_GONE');
});

for (const [manner, bytes] of [
  ['never begun', undefined],
  ['left in the middle of its first record', Buffer.from('1603010200', 'hex')],
  ['not continued after the ClientHello', await clientHello()],
] as const) {
  test(`REQ-STAGE-001: a handshake that is ${manner} is ERR_STAGE_TIMEOUT`, async () => {
    await using rig = await Rig.open({ handshakeTimeoutMs: 50 });
    await rig.raw(bytes);
    await rig.expectFailure('ERR_STAGE_TIMEOUT');
  });
}

test('a ClientHello may come in any pieces', async () => {
  await using rig = await Rig.open();
  const hello = await clientHello();
  for (const sizes of [[1], [4, 1], [5], [6, 1000], [hello.length - 1, 1]]) {
    const socket = connectTcp({ port: rig.port, host: '127.0.0.1', noDelay: true });
    await once(socket, 'connect');
    for (let at = 0, piece = 0; at < hello.length; piece++) {
      const next = at + (sizes[Math.min(piece, sizes.length - 1)] ?? 1);
      socket.write(hello.subarray(at, next));
      at = next;
      await new Promise(setImmediate);
    }
    const [answer] = await once(socket, 'data');
    assert.equal((answer as Buffer)[0], 0x16, 'a ServerHello');
    socket.destroy();
  }
});

test('TLS sees nothing of a first record before it is whole', async () => {
  await using rig = await Rig.open();
  const socket = connectTcp({ port: rig.port, host: '127.0.0.1', noDelay: true });
  const failed = failureOf(socket);
  // TLS would refuse this version by the header alone.
  socket.write(Buffer.from('160000000501020304', 'hex'));
  while (rig.listener.handshakeCount === 0) await new Promise(setImmediate);
  // By the end of a whole handshake the port has read what came before it.
  const arrival = rig.arrival();
  const other = rig.tls();
  await arrival;
  assert.deepEqual(rig.listener.counters.failed, {});
  socket.write(Buffer.from('05', 'hex'));
  await failed;
  assert.deepEqual(rig.listener.counters.failed, { ERR_NOT_TLS: 1 });
  other.destroy();
});

test('a peer that ends its side before it has said anything is ERR_PEER_GONE', async () => {
  await using rig = await Rig.open();
  connectTcp(rig.port, '127.0.0.1').end();
  while (rig.listener.counters.accepted === 0) await new Promise(setImmediate);
  await rig.expectFailure('ERR_PEER_GONE');
});

test('connections wait in the kernel by the thousand while the process is busy', async () => {
  await using rig = await Rig.open({ fd: openListenSocket({ address: '127.0.0.1', port: 0 }).fd });
  // A connection too many is tried again a second later, and again is one too many: nobody accepts meanwhile.
  const script = `
    let open = 0;
    const stop = () => { console.log(open); process.exit(); };
    setTimeout(stop, 10_000);
    for (let at = 0; at < 1000; at++)
      require('node:net').connect(${rig.port}, '127.0.0.1', () => ++open === 1000 && stop()).on('error', stop);`;
  const { stdout } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' });
  assert.equal(stdout.trim(), '1000');
});

test('REQ-STAGE-001: a handshake that comes byte by byte is no longer waited for than a silent one', async () => {
  await using rig = await Rig.open({ handshakeTimeoutMs: 300 });
  const began = performance.now();
  const socket = connectTcp(rig.port, '127.0.0.1');
  const hello = Buffer.concat([Buffer.from('1603010200010001fc0303', 'hex'), Buffer.alloc(500)]);
  let sent = 0;
  // Ten bytes in the time that one silence may last.
  const dripping = setInterval(() => socket.write(hello.subarray(sent, ++sent)), 30);
  await failureOf(socket);
  clearInterval(dripping);
  await rig.expectFailure('ERR_STAGE_TIMEOUT');
  assert.ok(sent >= 2 && performance.now() - began < 3_000);
});

for (const version of ['TLSv1.1', 'TLSv1.2'] as const) {
  test(`REQ-TLS-001: ${version} is ERR_TLS_VERSION`, async () => {
    await using rig = await Rig.open();
    const client = rig.tls({ minVersion: version, maxVersion: version, ciphers: 'DEFAULT@SECLEVEL=0' });
    assert.equal(await failureOf(client), 'ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION');
    await rig.expectFailure('ERR_TLS_VERSION');
  });
}

test('REQ-TLS-001: TLS 1.1 is refused where 1.2 is allowed, too', async () => {
  await using rig = await Rig.open({ minVersion: '1.2' });
  const client = rig.tls({ minVersion: 'TLSv1.1', maxVersion: 'TLSv1.1', ciphers: 'DEFAULT@SECLEVEL=0' });
  await failureOf(client);
  await rig.expectFailure('ERR_TLS_VERSION');
});

test('REQ-TLS-003: TLS 1.2 works where it is allowed, with forward secrecy and AEAD', async () => {
  await using rig = await Rig.open({ minVersion: '1.2' });
  const arrival = rig.arrival();
  const client = rig.tls({ maxVersion: 'TLSv1.2' });
  const { facts } = await arrival;
  assert.equal(facts.protocol, 'TLSv1.2');
  assert.equal(facts.cipher, 'TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256');
  client.destroy();
});

test('REQ-TLS-002: TLS 1.2 without the extended master secret is ERR_TLS_MASTER_SECRET', async () => {
  await using rig = await Rig.open({ minVersion: '1.2' });
  const SSL_OP_NO_EXTENDED_MASTER_SECRET = 1;
  const client = rig.tls({ maxVersion: 'TLSv1.2', secureOptions: SSL_OP_NO_EXTENDED_MASTER_SECRET });
  await failureOf(client);
  await rig.expectFailure('ERR_TLS_MASTER_SECRET');
});

for (const ciphers of ['ECDHE-ECDSA-AES128-SHA256', 'AES128-GCM-SHA256', 'TLS_AES_128_CCM_SHA256']) {
  test(`REQ-TLS-003: a client with only ${ciphers} is refused`, async () => {
    await using rig = await Rig.open({ minVersion: '1.2' });
    const version = ciphers.startsWith('TLS') ? 'TLSv1.3' : 'TLSv1.2';
    const client = rig.tls({ ciphers, minVersion: version, maxVersion: version });
    await failureOf(client);
    await rig.expectFailure('ERR_TLS_HANDSHAKE');
  });
}

test('REQ-TLS-005: a client may not renegotiate', async () => {
  await using rig = await Rig.open({ minVersion: '1.2' });
  const arrival = rig.arrival();
  const client = rig.tls({ maxVersion: 'TLSv1.2' });
  await once(client, 'secureConnect');
  const collector = new FrameCollector();
  (await arrival).start(collector);
  const refused = Promise.withResolvers<Error | null>();
  client.renegotiate({ rejectUnauthorized: false }, refused.resolve);
  client.once('error', refused.resolve);
  assert.ok((await refused.promise) instanceof Error);
  client.destroy();
  await collector.end;
});

test('REQ-TLS-008: a foreign application protocol is refused with an alert: ERR_TLS_ALPN', async () => {
  await using rig = await Rig.open();
  const client = rig.tls({ ALPNProtocols: ['h2', 'customvpn/2'] });
  assert.equal(await failureOf(client), 'ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL');
  await rig.expectFailure('ERR_TLS_ALPN');
});

async function readAll(socket: Socket): Promise<string> {
  let text = '';
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
  });
  await failureOf(socket);
  return text;
}

for (const ALPNProtocols of [[], ['http/1.1'], ['h2', 'http/1.1']]) {
  test(`REQ-TLS-009: a client that offers ${ALPNProtocols.join(' and ') || 'no protocol'} meets the front door: an ordinary 404`, async () => {
    await using rig = await Rig.open();
    const client = rig.tls({ ALPNProtocols });
    client.write('GET /login HTTP/1.1\r\nHost: localhost\r\n\r\n');
    assert.match(await readAll(client), /^HTTP\/1\.1 404 Not Found\r\n[\s\S]*connection: close/);
    assert.deepEqual([rig.channelCount, rig.listener.counters.frontDoor], [0, 1]);
  });
}

test('REQ-TLS-010: who does not know the secret path gets what everybody gets, to the byte', async () => {
  const path = '/a-path-that-nobody-guesses';
  await using rig = await Rig.open({ camouflage: { path, only: true } });
  const upgrade = 'Connection: Upgrade\r\nUpgrade: customvpn/1\r\n';
  const ask = async (method: string, target: string, fields: string) => {
    const client = rig.tls({ ALPNProtocols: ['http/1.1'] });
    client.write(`${method} ${target} HTTP/1.1\r\nHost: localhost\r\n${fields}\r\n`);
    return (await readAll(client)).replace(/^Date: .*$/im, 'Date: …');
  };
  const ordinary = await ask('GET', '/', '');
  assert.match(ordinary, /^HTTP\/1\.1 404 Not Found\r\n/);
  for (const [method, target, fields] of [
    ['GET', `${path}x`, upgrade],
    ['GET', '/', upgrade],
    ['GET', path, ''],
    ['GET', path, 'Connection: Upgrade\r\nUpgrade: websocket\r\n'],
    ['POST', path, `${upgrade}Content-Length: 0\r\n`],
    ['GET', `${path}?`, upgrade],
  ] as const) {
    assert.equal(await ask(method, target, fields), ordinary, `${method} ${target} ${fields}`);
  }
  assert.equal(rig.channelCount, 0);
});

test('the front door closes on what is not HTTP, and on who says nothing', async () => {
  await using rig = await Rig.open({ frontDoorTimeoutMs: 50 });
  const garbage = rig.tls({ ALPNProtocols: [] });
  garbage.write(Buffer.alloc(300, 1));
  assert.equal(await readAll(garbage), '');
  const silent = rig.tls({ ALPNProtocols: ['http/1.1'] });
  assert.equal(await readAll(silent), '');
  assert.equal(rig.listener.counters.frontDoor, 2);
});

test('REQ-TLS-009: a client without ALPN gets a tunnel where that is configured', async () => {
  await using rig = await Rig.open({ greetWithoutAlpn: true });
  const arrival = rig.arrival();
  const client = rig.tls({ ALPNProtocols: [] });
  assert.equal((await arrival).facts.alpn, undefined);
  client.destroy();
});

test('client certificates: a good one is known by name, serial and pin', async () => {
  await using rig = await Rig.open({ requireClientAuth: true });
  const alice = await authority.client('alice');
  const arrival = rig.arrival();
  const client = rig.tls({ cert: alice.cert, key: alice.key });
  const { facts } = await arrival;
  assert.equal(facts.authorized, true);
  assert.equal(facts.peerCertificate?.name, 'alice');
  assert.equal(facts.peerCertificate?.serial, alice.serial);
  assert.equal(facts.peerCertificate?.issuer, 'CN=Test CA');
  assert.equal(facts.peerCertificate?.pin, alice.pin);
  client.destroy();
});

/** What a client hears that is refused for its certificate, whatever it sends: the error that the REJECT means. */
async function refusalOf(client: TLSSocket): Promise<ErrorCode | undefined> {
  let code: ErrorCode | undefined;
  const decoder = new FrameDecoder(
    {
      target: new Uint8Array(0),
      targetOffset: 0,
      greeting: () => decoder.setPhase('login'),
      control: (type, payload) => {
        assert.equal(type, FrameType.reject);
        code = rejectError(decodeMessage('reject', payload).code).code;
      },
      reserve: () => assert.fail('no data is sent'),
      data: () => assert.fail('no data is sent'),
      unknown: () => assert.fail('no extension is sent'),
    },
    'server',
  );
  client.on('data', (chunk: Buffer) => decoder.push(chunk));
  client.on('secureConnect', () => client.write(encodeFrame(FrameType.ping, new Uint8Array(8))));
  await failureOf(client);
  return code;
}

test('REQ-TLS-007: no client certificate where one is required: ERR_CERT_REQUIRED, and the client is told', async () => {
  await using rig = await Rig.open({ requireClientAuth: true });
  assert.equal(await refusalOf(rig.tls()), 'ERR_CERT_REQUIRED');
  await rig.expectFailure('ERR_CERT_REQUIRED');
});

test('REQ-TLS-007: without the certificate that is required the front door stays shut, too', async () => {
  await using rig = await Rig.open({ requireClientAuth: true });
  const client = rig.tls({ ALPNProtocols: ['http/1.1'] });
  let answered = '';
  client.on('data', (chunk) => {
    answered += String(chunk);
  });
  client.on('secureConnect', () => client.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n'));
  await failureOf(client);
  assert.equal(answered, '');
  await rig.expectFailure('ERR_CERT_REQUIRED');
});

test('no client certificate where one is optional: a channel that is not authorized', async () => {
  await using rig = await Rig.open({ requireClientAuth: 'optional' });
  const arrival = rig.arrival();
  const client = rig.tls();
  assert.equal((await arrival).facts.authorized, false);
  client.destroy();
});

const revoked = await authority.client('mallory');
const badClients = [
  ['expired', await authority.client('bob', { notBeforeHours: -10, notAfterHours: -1 }), 'ERR_CERT_EXPIRED'],
  ['not yet valid', await authority.client('bob', { notBeforeHours: 1 }), 'ERR_CERT_NOT_YET_VALID'],
  ['of another CA', await otherAuthority.client('bob'), 'ERR_CERT_UNTRUSTED'],
  ['for servers', await authority.server(), 'ERR_CERT_UNTRUSTED'],
  ['revoked', revoked, 'ERR_CERT_REVOKED'],
] as const;
const crl = await authority.crl([revoked.serial]);

for (const requireClientAuth of [true, 'optional'] as const) {
  for (const [what, bad, code] of badClients) {
    test(`REQ-TLS-007: a client certificate that is ${what}, ${requireClientAuth === true ? 'required' : 'optional'}: ${code}`, async () => {
      await using rig = await Rig.open({ requireClientAuth, credentials: { ...credentials, crl } });
      assert.equal(await refusalOf(rig.tls({ cert: bad.cert, key: bad.key })), code);
      await rig.expectFailure(code);
    });
  }
}

test('an expired revocation list lets nobody in', async () => {
  const old = await authority.crl([], -1);
  await using rig = await Rig.open({ requireClientAuth: true, credentials: { ...credentials, crl: old } });
  const alice = await authority.client();
  const client = rig.tls({ cert: alice.cert, key: alice.key });
  await failureOf(client);
  await rig.expectFailure('ERR_CERT_UNTRUSTED');
});

for (const version of ['TLSv1.3', 'TLSv1.2'] as const) {
  test(`REQ-TLS-004: ${version}: no session is resumed, and a revoked certificate with a saved session is refused`, async () => {
    await using rig = await Rig.open({ requireClientAuth: true, minVersion: '1.2', credentials });
    const mallory = { cert: revoked.cert, key: revoked.key, minVersion: version, maxVersion: version } as const;
    const arrival = rig.arrival();
    const first = rig.tls(mallory);
    const sessions: Buffer[] = [];
    first.on('session', (session: Buffer) => sessions.push(session));
    await once(first, 'secureConnect');
    // A frame from the server comes after any ticket.
    (await arrival).sendControl(encodeFrame(FrameType.ping, new Uint8Array(0)));
    await once(first, 'data');
    const current = first.getSession();
    if (current !== undefined) sessions.push(current);
    assert.ok(sessions.length > 0);
    first.destroy();

    for (const session of sessions) {
      const again = rig.arrival();
      const second = rig.tls({ ...mallory, session });
      await once(second, 'secureConnect');
      assert.equal(second.isSessionReused(), false);
      await again;
      second.destroy();
    }
    rig.listener.reload({ ...credentials, crl });
    for (const session of sessions) {
      const count = rig.channelCount;
      const third = rig.tls({ ...mallory, session });
      await failureOf(third);
      assert.equal(rig.channelCount, count);
    }
    assert.deepEqual(rig.listener.counters.failed, { ERR_CERT_REVOKED: sessions.length });
  });
}

test('reload: new handshakes see the new certificate and list, open connections go on', async () => {
  await using rig = await Rig.open({
    requireClientAuth: true,
    credentials: { ...credentials, crl: await authority.crl([]) },
  });
  const mallory = { cert: revoked.cert, key: revoked.key };
  const arrival = rig.arrival();
  const before = rig.tls(mallory);
  await once(before, 'secureConnect');
  const server = await arrival;
  const got = Promise.withResolvers<Uint8Array>();
  const collector = new FrameCollector((_type, payload) => got.resolve(Uint8Array.from(payload)));
  server.start(collector);

  const renewed = await authority.server();
  rig.listener.reload({ cert: renewed.cert, key: renewed.key, ca: authority.cert, crl });
  const alice = await authority.client();
  const next = rig.arrival();
  const after = rig.tls({ cert: alice.cert, key: alice.key });
  await once(after, 'secureConnect');
  assert.equal(after.getPeerX509Certificate()?.serialNumber.toLowerCase(), renewed.serial);
  assert.equal(Buffer.from((await next).facts.serverId).toString('base64'), renewed.pin);
  const refused = rig.tls(mallory);
  await failureOf(refused);
  assert.deepEqual(rig.listener.counters.failed, { ERR_CERT_REVOKED: 1 });

  before.write(encodeFrame(FrameType.packet, new Uint8Array([1, 2, 3])));
  assert.deepEqual(await collector.until(got.promise), new Uint8Array([1, 2, 3]));
  before.destroy();
  after.destroy();
});

test('who has connected before a reload and spoken after it meets the new certificate', async () => {
  await using rig = await Rig.open();
  const socket = connectTcp(rig.port, '127.0.0.1');
  while (rig.listener.handshakeCount === 0) await new Promise(setImmediate);
  const renewed = await authority.server();
  rig.listener.reload({ cert: renewed.cert, key: renewed.key, ca: authority.cert });
  const arrival = rig.arrival();
  const client = rig.tls({ socket });
  assert.equal(Buffer.from((await arrival).facts.serverId).toString('base64'), renewed.pin);
  assert.equal(client.getPeerX509Certificate()?.serialNumber.toLowerCase(), renewed.serial);
  client.destroy();
});

test('a reload that fails keeps the old certificate', async () => {
  await using rig = await Rig.open();
  const other = await authority.server();
  assert.throws(
    () => rig.listener.reload({ cert: other.cert, key: leaf.key }),
    (error) => isVpnError(error, 'ERR_CERT_KEY_MISMATCH'),
  );
  const arrival = rig.arrival();
  const client = rig.tls();
  await once(client, 'secureConnect');
  assert.equal(client.getPeerX509Certificate()?.serialNumber.toLowerCase(), leaf.serial);
  assert.equal(Buffer.from((await arrival).facts.serverId).toString('base64'), leaf.pin);
  client.destroy();
});

test('a port that is taken is ERR_PORT_TAKEN, an address that is not ours ERR_CONFIG_VALUE', async () => {
  const taken = createTcpServer().listen(0, '127.0.0.1');
  await once(taken, 'listening');
  const address = taken.address();
  assert.ok(typeof address === 'object' && address !== null);
  const options = { credentials, onChannel: () => {}, log: silentLogger };
  await assert.rejects(Listener.open({ ...options, address: '127.0.0.1', port: address.port }), (error) =>
    isVpnError(error, 'ERR_PORT_TAKEN'),
  );
  await assert.rejects(Listener.open({ ...options, address: '192.0.2.1', port: 0 }), (error) =>
    isVpnError(error, 'ERR_CONFIG_VALUE'),
  );
  taken.close();
});

test('one source has a bounded number of connections, and gets its places back', async () => {
  await using rig = await Rig.open({ maxConnectionsPerSource: 3 });
  const clients: TLSSocket[] = [];
  for (let i = 0; i < 3; i++) {
    const arrival = rig.arrival();
    clients.push(rig.tls());
    await arrival;
  }
  await rig.raw();
  assert.equal(rig.listener.counters.refusedSource, 1);
  assert.equal(rig.listener.connectionCount, 3);
  // Another address of loopback is another source.
  const elsewhere = rig.arrival();
  const socket = connectTcp({ host: '127.0.0.1', port: rig.port, localAddress: '127.0.0.2' });
  clients.push(rig.tls({ socket }));
  assert.equal((await elsewhere).facts.remote.address, '127.0.0.2');
  clients[0]?.destroy();
  while (rig.listener.connectionCount > 3) await new Promise(setImmediate);
  // The server's channel sees the end as soon as it reads.
  const arrival = rig.arrival();
  clients.push(rig.tls());
  await arrival;
  for (const client of clients) client.destroy();
});

test('handshakes in flight are bounded: the oldest makes room, and finished ones do not count', async () => {
  await using rig = await Rig.open({ maxHandshakes: 2 });
  const done = rig.arrival();
  const client = rig.tls();
  await done;
  const slow = [connectTcp(rig.port, '127.0.0.1'), connectTcp(rig.port, '127.0.0.1')] as const;
  const evicted = failureOf(slow[0]);
  slow[1].on('error', () => {});
  while (rig.listener.handshakeCount < 2) await new Promise(setImmediate);
  const arrival = rig.arrival();
  const next = rig.tls();
  await arrival;
  await evicted;
  assert.equal(rig.listener.counters.refusedHandshakes, 1);
  assert.equal(rig.listener.handshakeCount, 1);
  for (const socket of [...slow, client, next]) socket.destroy();
});

test('clients that come all at once, more than may be in their handshake, all get in', async () => {
  await using rig = await Rig.open({ maxHandshakes: 8, maxHandshakesPerSource: 8 });
  const clients = Array.from({ length: 60 }, () => rig.tls());
  await Promise.all(clients.map((client) => once(client, 'secureConnect')));
  while (rig.channelCount < clients.length) await new Promise(setImmediate);
  assert.equal(rig.listener.counters.refusedHandshakes, 0);
  assert.equal(rig.listener.handshakeCount, 0);
  for (const client of clients) client.destroy();
});

test('one source that opens handshakes and says nothing does not keep out another', async () => {
  await using rig = await Rig.open({ maxHandshakes: 64, maxHandshakesPerSource: 4 });
  const silent = Array.from({ length: 6 }, () => {
    const socket = connectTcp({ port: rig.port, host: '127.0.0.1', localAddress: '127.0.0.2' });
    socket.on('error', () => {});
    return socket;
  });
  while (rig.listener.counters.refusedSource < 2) await new Promise(setImmediate);
  assert.equal(rig.listener.handshakeCount, 4);
  const arrival = rig.arrival();
  const client = rig.tls();
  await arrival;
  for (const socket of [...silent, client]) socket.destroy();
});

test('many sources that hold handshakes open displace each other, and not a client with one', async () => {
  await using rig = await Rig.open({ maxHandshakes: 8, maxHandshakesPerSource: 4 });
  const open = (source: number): Socket => {
    const socket = connectTcp({ port: rig.port, host: '127.0.0.1', localAddress: `127.0.0.${source}` });
    socket.on('error', () => {});
    return socket;
  };
  const client = open(2);
  while (rig.listener.handshakeCount < 1) await new Promise(setImmediate);
  let lost = false;
  client.once('close', () => {
    lost = true;
  });
  const flood = Array.from({ length: 40 }, (_, at) => open(10 + (at % 5)));
  while (rig.listener.counters.accepted + rig.listener.counters.refusedSource < 41) await new Promise(setImmediate);
  assert.equal(rig.listener.handshakeCount, 8);
  assert.ok(rig.listener.counters.refusedHandshakes > 0);
  assert.equal(lost, false);
  const arrival = rig.arrival();
  const secured = connectTls({
    socket: client,
    servername: 'localhost',
    ca: authority.cert,
    ALPNProtocols: ['customvpn/1'],
  });
  secured.on('error', () => {});
  await arrival;
  for (const socket of [...flood, client, secured]) socket.destroy();
});

test('close ends handshakes and the front door, and leaves channels to their owner', async () => {
  const rig = await Rig.open();
  const arrival = rig.arrival();
  const client = rig.tls();
  const channel = await arrival;
  const slow = connectTcp(rig.port, '127.0.0.1');
  const web = rig.tls({ ALPNProtocols: ['http/1.1'] });
  while (rig.listener.handshakeCount === 0 || rig.listener.counters.frontDoor === 0) await new Promise(setImmediate);
  slow.on('error', () => {});
  await Promise.all([rig.listener.close(), failureOf(slow), failureOf(web)]);
  channel.sendControl(encodeFrame(FrameType.ping, new Uint8Array(0)));
  await once(client, 'data');
  const late = connectTcp(rig.port, '127.0.0.1');
  const [error] = (await once(late, 'error')) as [NodeJS.ErrnoException];
  assert.equal(error.code, 'ECONNREFUSED');
  client.destroy();
  await rig[Symbol.asyncDispose]();
});

test('lines that strangers cause are bounded per minute, and what was left out is said', () => {
  const { log, lines } = collectLog();
  const clock = new ManualClock();
  const limit = new LogLimit(log, clock);
  for (let i = 0; i < 1000; i++) limit.write('info', 'ERR_NOT_TLS', 'connection failed', { peer: '192.0.2.1' });
  limit.write('info', 'ERR_TLS_ALPN', 'connection failed', {});
  assert.equal(lines.length, 11);
  clock.advance(60_000);
  limit.write('info', 'ERR_NOT_TLS', 'connection failed', { peer: '192.0.2.2' });
  limit.write('info', 'ERR_NOT_TLS', 'connection failed', { peer: '192.0.2.3' });
  assert.deepEqual(
    lines.slice(11).map(({ peer, suppressed }) => [peer, suppressed]),
    [
      ['192.0.2.2', 990],
      ['192.0.2.3', undefined],
    ],
  );
});

test('a source is an IPv4 address or an IPv6 /64', () => {
  assert.equal(sourceOf('192.0.2.7'), '192.0.2.7');
  assert.equal(sourceOf('2001:db8:1:2:3:4:5:6'), '2001:db8:1:2::/64');
  assert.equal(sourceOf('2001:db8:1:2::9'), sourceOf('2001:db8:1:2:ffff::'));
  assert.equal(sourceOf('2001:db8::9'), '2001:db8:0:0::/64');
  assert.equal(sourceOf('::1'), '0:0:0:0::/64');
  assert.notEqual(sourceOf('2001:db8:1:2::9'), sourceOf('2001:db8:1:3::9'));
});

const PROXY = '127.0.0.9';

/** A TLS client behind a proxy at `PROXY` that sends this before anything else. */
async function proxied(rig: Rig, header: string | Uint8Array): Promise<TLSSocket> {
  const raw = connectTcp({ port: rig.port, host: '127.0.0.1', localAddress: PROXY });
  raw.on('error', () => {});
  await once(raw, 'connect');
  if (header.length > 0) raw.write(header);
  const socket = connectTls({
    socket: raw,
    servername: 'localhost',
    ca: authority.cert,
    ALPNProtocols: ['customvpn/1'],
  });
  socket.on('error', () => {});
  return socket;
}

const isProxy = (address: string): boolean => address === PROXY;
const headerOf = (client: string): string => `PROXY TCP4 ${client} 198.51.100.1 50000 443\r\n`;

for (const [what, header, remote] of [
  ['version 1', headerOf('192.0.2.7'), { address: '192.0.2.7', port: 50_000 }],
  [
    'version 2',
    binaryHeader(0x21, 0x11, Uint8Array.of(192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 1, 187)),
    { address: '192.0.2.7', port: 50_000 },
  ],
  ['UNKNOWN', 'PROXY UNKNOWN\r\n', undefined],
  ['LOCAL', binaryHeader(0x20, 0, new Uint8Array(0)), undefined],
] as const) {
  test(`a PROXY header from a proxy, ${what}: the connection is ${remote === undefined ? "the proxy's own" : "its client's"}`, async () => {
    const asked: string[] = [];
    const isRefused = (address: string): boolean => {
      asked.push(address);
      return false;
    };
    await using rig = await Rig.open({ isProxy, isRefused });
    const arrival = rig.arrival();
    const client = await proxied(rig, header);
    const { facts } = await arrival;
    assert.deepEqual(facts.remote, remote ?? { address: PROXY, port: facts.remote.port });
    assert.notEqual(facts.remote.port, 0);
    assert.deepEqual(asked, [facts.remote.address]);
    client.destroy();
  });
}

test('a PROXY header from anybody else is no TLS: ERR_NOT_TLS', async () => {
  for (const header of [headerOf('192.0.2.7'), binaryHeader(0x20, 0, new Uint8Array(0))]) {
    await using rig = await Rig.open({ isProxy });
    await rig.raw(header);
    await rig.expectFailure('ERR_NOT_TLS');
  }
});

for (const [code, bytes] of [
  ['ERR_PROXY_HEADER', Buffer.from('1603010200', 'hex')],
  ['ERR_PROXY_HEADER', 'PROXY TCP4 192.0.2.7 198.51.100.1 50000\r\n'],
  ['ERR_PROXY_HEADER', `PROXY UNKNOWN ${'x'.repeat(100)}`],
  ['ERR_STAGE_TIMEOUT', 'PROXY TCP4'],
  ['ERR_STAGE_TIMEOUT', ''],
] as const) {
  test(`a proxy that sends ${bytes.length === 0 ? 'nothing' : `"${String(bytes).slice(0, 20)}"`} is ${code}, with its own address`, async () => {
    await using rig = await Rig.open({ isProxy, proxyHeaderTimeoutMs: code === 'ERR_STAGE_TIMEOUT' ? 50 : 10_000 });
    const socket = connectTcp({ port: rig.port, host: '127.0.0.1', localAddress: PROXY });
    socket.write(bytes);
    await failureOf(socket);
    while (rig.listener.connectionCount > 0) await new Promise(setImmediate);
    assert.deepEqual(rig.listener.counters.failed, { [code]: 1 });
    assert.equal(rig.lines.find((line) => line.code === code)?.peer, PROXY);
    assert.equal(rig.listener.counters.accepted, 0);
  });
}

test('limits per source and bans count the client of a proxy, and never the proxy', async () => {
  const isRefused = (address: string): boolean => address === '192.0.2.66' || address === '127.0.0.66';
  await using rig = await Rig.open({ isProxy, isRefused, maxConnectionsPerSource: 1 });
  const clients: TLSSocket[] = [];
  for (const header of [headerOf('192.0.2.1'), headerOf('192.0.2.2'), 'PROXY UNKNOWN\r\n', 'PROXY UNKNOWN\r\n']) {
    const arrival = rig.arrival();
    clients.push(await proxied(rig, header));
    await arrival;
  }
  await failureOf(await proxied(rig, headerOf('192.0.2.1')));
  assert.equal(rig.listener.counters.refusedSource, 1);
  await failureOf(await proxied(rig, headerOf('192.0.2.66')));
  assert.equal(rig.listener.counters.refusedBanned, 1);
  assert.deepEqual(
    rig.lines.filter(({ code }) => code === 'ERR_TOO_MANY_CONNECTIONS').map(({ peer }) => peer),
    ['192.0.2.1', '192.0.2.66'],
  );
  for (const client of clients) client.destroy();
  while (rig.listener.connectionCount > 0) await new Promise(setImmediate);
  const arrival = rig.arrival();
  const again = await proxied(rig, headerOf('192.0.2.1'));
  await arrival;
  again.destroy();
});

test('connections of proxies without a header are bounded, and end with the listener', async () => {
  const rig = await Rig.open({ isProxy, maxHandshakes: 2 });
  const silent = Array.from({ length: 3 }, () => {
    const socket = connectTcp({ port: rig.port, host: '127.0.0.1', localAddress: PROXY });
    return failureOf(socket);
  });
  await Promise.race(silent);
  assert.equal(rig.listener.counters.refusedHandshakes, 1);
  assert.equal(rig.listener.connectionCount, 2);
  const arrival = rig.arrival();
  const client = rig.tls();
  await arrival;
  client.destroy();
  await rig.listener.close();
  await Promise.all(silent);
  await rig[Symbol.asyncDispose]();
});
