// The client's own proxy, from a program on its machine to a server behind the gateway: SOCKS5 and HTTP at one end, the
// gateway's front door at the other. The network behind the gateway is of this process; everything else is real.
import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer as createHttpServer, request as httpRequest } from 'node:http';
import { connect as connectHttp2 } from 'node:http2';
import { connect, type Socket } from 'node:net';
import { test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { isVpnError } from '../../src/base/errors.ts';
import { Secret, silentLogger } from '../../src/base/log.ts';
import { nodePrimitives } from '../../src/base/primitives.ts';
import { LocalProxy } from '../../src/client/local-proxy.ts';
import { ProxyConnection } from '../../src/client/proxy-connection.ts';
import { ProxyStreams } from '../../src/client/proxy-streams.ts';
import { proxyCredential } from '../../src/protocol/proxy-binding.ts';
import { encodeStreamFrame, encodeWish, StreamFrameType } from '../../src/protocol/stream-frame.ts';
import { TargetNetwork } from '../support/target-network.ts';
import { Relay, type SimClient, until, World, type WorldOptions } from '../support/world.ts';

const LIMIT = { timeout: 30_000 };

interface Stage extends AsyncDisposable {
  readonly world: World;
  readonly network: TargetNetwork;
  readonly sim: SimClient;
  readonly streams: ProxyStreams;
  readonly proxy: LocalProxy;
}

async function open(
  options: WorldOptions & { through?: (port: number) => Promise<number>; camouflage?: Secret<string> } = {},
): Promise<Stage> {
  await using undo = new AsyncDisposableStack();
  const network = undo.use(new TargetNetwork());
  await network.serve('192.0.2.1', 7, (socket) => void socket.pipe(socket));
  network.names.set('echo.example', ['192.0.2.1']);
  const config = { routes: ['192.0.2.0/24'], ...options.config };
  const world = undo.use(await World.open({ network, tun: 'none', ...options, config }));
  const serverPort = (await options.through?.(world.port)) ?? world.port;
  const { camouflage } = options;
  const sim = await world.connected('alice', { tun: 'none', serverPort, ...(camouflage && { camouflage }) });
  const streams = undo.use(new ProxyStreams(sim.client, world.log));
  const local = { host: '127.0.0.1', port: 0 };
  const proxy = undo.use(await LocalProxy.open({ streams, socks: local, http: local, expose: false, log: world.log }));
  const all = undo.move();
  return { world, network, sim, streams, proxy, [Symbol.asyncDispose]: () => all.disposeAsync() };
}

async function program(port: number | undefined): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port: port ?? 0, allowHalfOpen: true, noDelay: true });
  socket.on('error', () => {});
  await once(socket, 'connect');
  return socket;
}

async function read(socket: Socket, length: number): Promise<Buffer> {
  let bytes: Buffer = Buffer.alloc(0);
  while (bytes.length < length) {
    const chunk: Buffer | null = socket.read();
    if (chunk !== null) bytes = Buffer.concat([bytes, chunk]);
    else if (socket.readableEnded || socket.destroyed)
      assert.fail(`the connection ended after ${bytes.toString('hex')}`);
    else await once(socket, 'readable');
  }
  if (bytes.length > length) socket.unshift(bytes.subarray(length));
  return bytes.subarray(0, length);
}

/** Resolves when a connection is over, broken or not. */
const closed = (socket: Socket) => new Promise<void>((resolve) => void socket.once('close', () => resolve()));

function socksRequest(command: number, host: string, port: number): Buffer {
  const name = Buffer.from(host);
  return Buffer.from([5, command, 0, 3, name.length, ...name, port >> 8, port & 0xff]);
}

/** A connection through SOCKS5; fails unless the reply is `reply`. */
async function socks(stage: Stage, host: string, port: number, reply = 0, command = 1): Promise<Socket> {
  const socket = await program(stage.proxy.socks?.port);
  socket.write(Buffer.from([5, 1, 0]));
  assert.deepEqual([...(await read(socket, 2))], [5, 0]);
  socket.write(socksRequest(command, host, port));
  const answer = await read(socket, 10);
  assert.equal(answer[1], reply, `the reply for ${host}:${port}`);
  return socket;
}

test(
  'REQ-STREAM-003 REQ-STREAM-012: programs get to servers by SOCKS5, and names are looked up at the gateway',
  LIMIT,
  async () => {
    await using stage = await open();
    const { world } = stage;
    const socket = await socks(stage, 'echo.example', 7);
    socket.write('hello');
    assert.equal(String(await read(socket, 5)), 'hello');
    // Another on the same connection to the gateway.
    const another = await socks(stage, '192.0.2.1', 7);
    another.end('bye');
    assert.equal(String(await read(another, 3)), 'bye');
    await once(another.resume(), 'end');
    assert.equal((await world.status()).counters.frontDoor, 1);
    await until(() => world.server.sessions[0]?.streams === 1, 'the session shows its stream');
    await until(() => world.server.sessions[0]?.sentBytes === 8, 'and what it carried');
    socket.destroy();
    await until(() => world.server.sessions[0]?.streams === 0, 'and that it is gone');
  },
);

test('REQ-STREAM-012: a thousand programs at once', { timeout: 60_000 }, async () => {
  await using stage = await open();
  const sockets: Socket[] = [];
  // Each has a time to say what it wants in, which a slow machine must not use up for all.
  while (sockets.length < 1000) {
    sockets.push(...(await Promise.all(Array.from({ length: 100 }, () => socks(stage, 'echo.example', 7)))));
  }
  await Promise.all(
    sockets.map(async (socket, i) => {
      const text = String(i).padStart(5, '0');
      socket.end(text);
      assert.equal(String(await read(socket, 5)), text);
      await once(socket.resume(), 'end');
    }),
  );
  assert.equal((await stage.world.status()).counters.frontDoor, 1);
});

test('REQ-STREAM-012: failures are said as SOCKS5 says them, and BIND is refused', LIMIT, async () => {
  await using stage = await open();
  await socks(stage, '192.0.2.1', 9, 5);
  await socks(stage, '198.51.100.1', 7, 2);
  await socks(stage, '127.0.0.1', 7, 2);
  await socks(stage, 'unknown.example', 7, 4);
  await socks(stage, '192.0.2.1', 7, 7, 2);
  await socks(stage, '192.0.2.1', 7, 7, 9);
  assert.ok(!stage.network.dialled.includes('198.51.100.1'));
});

test('REQ-STREAM-012: what is no SOCKS5 is refused and costs nothing else', LIMIT, async () => {
  await using stage = await open();
  const port = stage.proxy.socks?.port;
  for (const bytes of [
    Buffer.from([4, 1, 0, 7, 192, 0, 2, 1, 0]),
    Buffer.from([5, 1, 2]),
    Buffer.from([5, 0]),
    Buffer.from([5, 1, 0, 5, 1, 0, 9, 1, 2, 3, 4, 0, 7]),
    Buffer.from([5, 1, 0, 4, 1, 0, 1, 192, 0, 2, 1, 0, 7]),
    Buffer.concat([Buffer.from([5, 1, 0]), socksRequest(1, 'a\0b', 7)]),
  ]) {
    const socket = await program(port);
    socket.end(bytes);
    await once(socket.resume(), 'close');
  }
  const http = await program(port);
  http.write('GET http://192.0.2.1/ HTTP/1.1\r\n\r\n');
  assert.match(String((await once(http, 'data'))[0]), /501 Not an HTTP proxy/);
  // Cut anywhere, and with the first bytes of the connection right behind.
  const slow = await program(port);
  for (const byte of [5, 2, 7, 0, ...socksRequest(1, 'echo.example', 7)]) slow.write(Buffer.from([byte]));
  slow.write('early');
  assert.equal(String((await read(slow, 17)).subarray(12)), 'early');
  assert.deepEqual(stage.network.dialled, ['192.0.2.1']);
  slow.destroy();
});

test('REQ-STREAM-012: programs get to servers by HTTP CONNECT and by plain requests', LIMIT, async () => {
  await using stage = await open();
  const { network, proxy } = stage;
  const origin = createHttpServer(async (incoming, response) => {
    let body = '';
    for await (const chunk of incoming) body += String(chunk);
    response.setHeader('x-host', incoming.headers.host ?? '');
    response.end(`${incoming.method} ${incoming.url} ${body}`);
  });
  await network.serve('192.0.2.4', 80, (socket) => void origin.emit('connection', socket));
  network.names.set('web.example', ['192.0.2.4']);
  const socket = await program(proxy.http?.port);
  socket.write('CONNECT echo.example:7 HTTP/1.1\r\nHost: x\r\n\r\nearly');
  let heard = '';
  while (!heard.endsWith('early')) heard += String((await once(socket, 'data'))[0]);
  assert.match(heard, /^HTTP\/1\.1 200 /);
  socket.destroy();
  const answerOf = async (path: string, method: string, body?: string): Promise<{ status: number; text: string }> => {
    const asked = httpRequest({
      host: '127.0.0.1',
      port: proxy.http?.port,
      method,
      path,
      headers: { host: 'x' },
      agent: false,
    });
    asked.end(body);
    const [response] = (await once(asked, 'response')) as [import('node:http').IncomingMessage];
    let text = '';
    for await (const chunk of response) text += String(chunk);
    return { status: response.statusCode ?? 0, text };
  };
  assert.deepEqual(await answerOf('http://web.example/a?b', 'GET'), { status: 200, text: 'GET /a?b ' });
  assert.deepEqual(await answerOf('http://web.example/', 'POST', 'x'.repeat(100_000)), {
    status: 200,
    text: `POST / ${'x'.repeat(100_000)}`,
  });
  assert.equal((await answerOf('http://198.51.100.1/', 'GET')).status, 403);
  assert.equal((await answerOf('http://192.0.2.1:9/', 'GET')).status, 502);
  assert.equal((await answerOf('/', 'GET')).status, 400);
  origin.closeAllConnections();
  origin.close();
});

test('REQ-STREAM-012: datagrams of a program go to several servers and back, to it alone', LIMIT, async () => {
  await using stage = await open();
  const { network } = stage;
  await network.serveUdp('192.0.2.5', 53, (payload) => [Buffer.concat([Buffer.from('five '), payload])]);
  await network.serveUdp('192.0.2.6', 53, (payload) => [Buffer.concat([Buffer.from('six '), payload])]);
  network.names.set('six.example', ['192.0.2.6']);
  const control = await program(stage.proxy.socks?.port);
  control.write(Buffer.from([5, 1, 0]));
  await read(control, 2);
  control.write(Buffer.from([5, 3, 0, 1, 0, 0, 0, 0, 0, 0]));
  const reply = await read(control, 10);
  assert.equal(reply[1], 0);
  const relay = reply.readUInt16BE(8);
  const socket = createSocket('udp4');
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  const heard: string[] = [];
  socket.on('message', (bytes) => void heard.push(String(bytes)));
  const name = Buffer.from('six.example');
  const fragment = Buffer.concat([Buffer.from([0, 0, 1, 1, 192, 0, 2, 5, 0, 53]), Buffer.from('no')]);
  socket.send(fragment, relay, '127.0.0.1');
  socket.send(Buffer.from('short'), relay, '127.0.0.1');
  socket.send(Buffer.concat([Buffer.from([0, 0, 0, 1, 192, 0, 2, 5, 0, 53]), Buffer.from('one')]), relay, '127.0.0.1');
  socket.send(
    Buffer.concat([Buffer.from([0, 0, 0, 3, name.length]), name, Buffer.from([0, 53]), Buffer.from('two')]),
    relay,
    '127.0.0.1',
  );
  await until(() => heard.length === 2, 'two answers');
  assert.deepEqual(heard.map((text) => text.replace(/^[\s\S]*(five|six) /, '$1 ')).sort(), ['five one', 'six two']);
  // Another program's datagrams are nobody's.
  const stranger = createSocket('udp4');
  stranger.bind(0, '127.0.0.1');
  await once(stranger, 'listening');
  stranger.send(
    Buffer.concat([Buffer.from([0, 0, 0, 1, 192, 0, 2, 5, 0, 53]), Buffer.from('three')]),
    relay,
    '127.0.0.1',
  );
  socket.send(Buffer.concat([Buffer.from([0, 0, 0, 1, 192, 0, 2, 5, 0, 53]), Buffer.from('four')]), relay, '127.0.0.1');
  await until(() => heard.length === 3, 'the next answer');
  assert.match(heard[2] ?? '', /five four$/);
  control.destroy();
  await until(async () => (await stage.world.status()).counters.proxy_open === 0, 'the association has ended');
  socket.close();
  stranger.close();
});

test('REQ-STREAM-008: half-closes and resets go through both proxies', LIMIT, async () => {
  await using stage = await open();
  const { network } = stage;
  await network.serve('192.0.2.2', 7, (socket) => {
    const chunks: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.once('end', () => socket.end(Buffer.concat(chunks)));
  });
  await network.serve('192.0.2.3', 7, (socket) => void socket.once('data', () => socket.resetAndDestroy()));
  const ends = Promise.withResolvers<string | undefined>();
  await network.serve('192.0.2.4', 7, (socket) => {
    socket.resume();
    socket.on('end', () => ends.resolve('end'));
    socket.on('error', (error: NodeJS.ErrnoException) => ends.resolve(error.code));
  });
  const half = await socks(stage, '192.0.2.2', 7);
  half.end('all of it');
  assert.equal(String(await read(half, 9)), 'all of it');
  const broken = await socks(stage, '192.0.2.3', 7);
  const error = once(broken, 'error');
  broken.write('x');
  broken.resume();
  assert.equal(((await error)[0] as NodeJS.ErrnoException).code, 'ECONNRESET');
  const breaking = await socks(stage, '192.0.2.4', 7);
  breaking.resetAndDestroy();
  assert.equal(await ends.promise, 'ECONNRESET');
});

test('REQ-STREAM-005: what the client has open ends with its session', LIMIT, async () => {
  await using stage = await open();
  const { world, network } = stage;
  const socket = await socks(stage, 'echo.example', 7);
  socket.resume();
  const ended = closed(socket);
  await world.server.administration['user.disable']({ name: 'alice' });
  await ended;
  await until(() => network.connections === 0, 'the connection to the server ends');
  await stage.sim.client.stopped;
  const after = await program(stage.proxy.socks?.port);
  after.destroy();
});

test(
  'REQ-STREAM-004: a connection stays bound when its session is resumed, and another proves the new secret',
  LIMIT,
  async () => {
    await using relays = new AsyncDisposableStack();
    let relay: Relay | undefined;
    await using stage = await open({
      through: async (port) => {
        relay = relays.use(await Relay.open(port));
        return relay.port;
      },
    });
    const { world, sim, streams } = stage;
    const socket = await socks(stage, 'echo.example', 7);
    // The control connection alone is lost.
    relay?.connections[0]?.cut();
    await until(() => sim.client.snapshot.resumes === 1 && sim.client.snapshot.state === 'connected', 'it has resumed');
    socket.write('still');
    assert.equal(String(await read(socket, 5)), 'still');
    const { socket: tls, binding } = await sim.client.dialProxy();
    assert.equal(binding.epoch, 1);
    const connection = await ProxyConnection.open(tls, binding);
    const stream = await connection.open('tcp', { host: '192.0.2.1', port: 7 });
    stream.duplex.end();
    connection.destroy();
    assert.equal(world.server.sessions.length, 1);
    assert.ok(streams.streams > 0);
    socket.destroy();
  },
);

test(
  'REQ-STREAM-004: a proof is worth nothing on another connection, for another epoch, or changed',
  LIMIT,
  async () => {
    await using stage = await open();
    const { world, sim } = stage;
    const { socket: tls, binding } = await sim.client.dialProxy();
    tls.destroy();
    const exporterOf = (socket: import('node:tls').TLSSocket) => (label: string, context: Uint8Array) =>
      socket.exportKeyingMaterial(32, label, Buffer.from(context));
    const attempt = async (
      make: (own: ReturnType<typeof exporterOf>, other: ReturnType<typeof exporterOf>) => string,
    ) => {
      const dialled = await Promise.all(
        [0, 1].map(async () => {
          const socket = connectTls({
            host: '127.0.0.1',
            port: world.port,
            ca: world.ca,
            servername: 'localhost',
            ALPNProtocols: ['h2'],
          });
          await once(socket, 'secureConnect');
          return socket;
        }),
      );
      const [own, other] = dialled;
      assert.ok(own && other);
      const session = connectHttp2('https://localhost', { createConnection: () => own });
      session.on('error', () => {});
      const stream = session.request({
        ':method': 'OPTIONS',
        ':path': '*',
        ':scheme': 'https',
        ':authority': 'localhost',
        'proxy-authorization': make(exporterOf(own), exporterOf(other)),
      });
      const [headers] = (await once(stream, 'response')) as [Record<string, unknown>];
      session.destroy();
      other.destroy();
      return headers[':status'];
    };
    const credential = (change: object, exporter: ReturnType<typeof exporterOf>) =>
      proxyCredential(nodePrimitives, { ...binding, ...change }, exporter);
    assert.equal(await attempt((own) => credential({}, own)), 204);
    assert.equal(await attempt((_own, other) => credential({}, other)), 404);
    assert.equal(await attempt((own) => credential({ epoch: 1 }, own)), 404);
    assert.equal(await attempt((own) => credential({ key: new Uint8Array(32) }, own)), 404);
    assert.equal(await attempt((own) => credential({ session: new Uint8Array(16) }, own)), 404);
  },
);

test(
  'REQ-STREAM-003: a client uses no connection whose other end has not proven that it knows the session',
  LIMIT,
  async () => {
    await using stage = await open();
    const { socket, binding } = await stage.sim.client.dialProxy();
    const wrong = { ...binding, key: new Uint8Array(32) };
    await assert.rejects(ProxyConnection.open(socket, wrong), (error) => isVpnError(error, 'ERR_ATTACH_PROOF'));
  },
);

test('REQ-MUX-005: what a server says before it is asked reaches the program, with its end', LIMIT, async () => {
  await using stage = await open();
  await stage.network.serve('192.0.2.8', 22, (socket) => void socket.end('SSH-2.0-first\r\n'));
  for (let i = 0; i < 5; i++) {
    const socket = await socks(stage, '192.0.2.8', 22);
    assert.equal(String(await read(socket, 15)), 'SSH-2.0-first\r\n');
    await once(socket.resume(), 'end');
    socket.end();
  }
  await until(() => stage.network.connections === 0, 'nothing is left open');
});

test(
  'REQ-MUX-007: a megabyte both ways at once, past a program and a server that read when they like',
  LIMIT,
  async () => {
    await using stage = await open();
    const block = Buffer.alloc(1 << 20, 'customvpn ');
    await stage.network.serve('192.0.2.9', 7, (socket) => {
      const chunks: Buffer[] = [];
      socket.write(block);
      socket.on('data', (chunk: Buffer) => chunks.push(chunk));
      socket.once('end', () => socket.end(Buffer.concat(chunks)));
    });
    const sockets = await Promise.all([1, 2, 3, 4].map(() => socks(stage, '192.0.2.9', 7)));
    await Promise.all(
      sockets.map(async (socket) => {
        socket.end(block);
        assert.ok((await read(socket, 2 << 20)).equals(Buffer.concat([block, block])));
        await once(socket.resume(), 'end');
      }),
    );
  },
);

test('REQ-TLS-010: streams go by the secret path, too, and nobody sees that they are ours', LIMIT, async () => {
  const path = '/a-path-that-nobody-guesses';
  await using stage = await open({
    config: { camouflage: path, camouflageOnly: true },
    camouflage: new Secret(path),
  });
  const socket = await socks(stage, 'echo.example', 7);
  socket.write('hidden');
  assert.equal(String(await read(socket, 6)), 'hidden');
  const { socket: tls } = await stage.sim.client.dialProxy();
  assert.equal(tls.alpnProtocol, 'http/1.1');
  tls.destroy();
  const stranger = connectTls({
    host: '127.0.0.1',
    port: stage.world.port,
    ca: stage.world.ca,
    servername: 'localhost',
    ALPNProtocols: ['customvpn-streams/1'],
  });
  await assert.rejects(once(stranger, 'secureConnect'), 'a gateway behind camouflage does not know the protocol');
  socket.destroy();
});

test(
  'REQ-MUX-004 REQ-MUX-011: without a proof no stream, and who gives them up in floods is cut off',
  LIMIT,
  async () => {
    await using stage = await open();
    const { world, sim } = stage;
    const wish = encodeWish({ kind: 'tcp', host: '192.0.2.1', port: 7 });
    const stranger = connectTls({
      host: '127.0.0.1',
      port: world.port,
      ca: world.ca,
      servername: 'localhost',
      ALPNProtocols: ['customvpn-streams/1'],
    });
    stranger.on('error', () => {});
    await once(stranger, 'secureConnect');
    stranger.write(encodeStreamFrame(StreamFrameType.open, 1, wish));
    await closed(stranger.resume());
    assert.deepEqual(stage.network.dialled, []);

    const { socket: tls, binding } = await sim.client.dialProxy();
    const exporter = (label: string, context: Uint8Array) => tls.exportKeyingMaterial(32, label, Buffer.from(context));
    const credential = proxyCredential(nodePrimitives, binding, exporter);
    tls.write(encodeStreamFrame(StreamFrameType.bind, 0, Buffer.from(credential)));
    const ended = closed(tls.resume());
    let id = 0;
    const flood = setInterval(() => {
      for (let i = 0; i < 500 && !tls.destroyed; i++) {
        id += 1;
        tls.write(encodeStreamFrame(StreamFrameType.open, id, wish));
        tls.write(encodeStreamFrame(StreamFrameType.reset, id));
      }
    }, 1);
    await ended;
    clearInterval(flood);
    const socket = await socks(stage, 'echo.example', 7);
    socket.write('still here');
    assert.equal(String(await read(socket, 10)), 'still here');
    socket.destroy();
    await until(async () => (await world.status()).counters.proxy_open === 0, 'no stream is left');
  },
);

test('a gateway without a proxy is told as one, by either way', LIMIT, async () => {
  const path = '/a-path-that-nobody-guesses';
  for (const [camouflage, code] of [
    [undefined, 'ERR_TLS_ALPN'],
    [new Secret(path), 'ERR_UPGRADE'],
  ] as const) {
    await using stage = await open({
      config: { proxy: { enabled: false }, ...(camouflage && { camouflage: path }) },
      ...(camouflage && { camouflage }),
    });
    await assert.rejects(
      stage.streams.prepare(),
      (error) => isVpnError(error, code) && /its proxy is switched off/.test(error.message),
    );
  }
});

test('streams come back when the gateway has been away', LIMIT, async () => {
  await using stage = await open();
  const { world, sim } = stage;
  const socket = await socks(stage, 'echo.example', 7);
  const ended = closed(socket.resume());
  await world.server.stop();
  await ended;
  await world.restart();
  await until(() => sim.client.snapshot.state === 'connected', 'the client is back', 20_000);
  const again = await socks(stage, 'echo.example', 7);
  again.write('again');
  assert.equal(String(await read(again, 5)), 'again');
  again.destroy();
});

test('REQ-STREAM-012: the local ports are for this machine alone, unless told otherwise', async () => {
  const streams = { open: () => Promise.reject(new Error('not asked for')) };
  const options = { streams, log: silentLogger };
  for (const host of ['0.0.0.0', '::', '192.0.2.1', 'example.org', '127.evil.example']) {
    await assert.rejects(LocalProxy.open({ ...options, socks: { host, port: 0 }, expose: false }), (error) =>
      isVpnError(error, 'ERR_USAGE'),
    );
  }
  for (const host of ['127.0.0.1', '::1', 'localhost']) {
    await using proxy = await LocalProxy.open({ ...options, http: { host, port: 0 }, expose: false });
    assert.ok((proxy.http?.port ?? 0) > 0);
  }
  await using exposed = await LocalProxy.open({ ...options, socks: { host: '0.0.0.0', port: 0 }, expose: true });
  assert.ok((exposed.socks?.port ?? 0) > 0);
});
