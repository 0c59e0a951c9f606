// The gateway as a proxy: who may use it, where it goes, and what of a connection goes through it. The network behind it is
// of this process; everything else is real.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer as createHttpServer } from 'node:http';
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2, constants } from 'node:http2';
import { test } from 'node:test';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { ManualClock } from '../../src/base/clock.ts';
import { CapsuleDecoder, encodeUdp } from '../../src/protocol/capsule.ts';
import { TargetNetwork } from '../support/target-network.ts';
import { until, World, type WorldOptions } from '../support/world.ts';

const LIMIT = { timeout: 30_000 };
const FLOOD_LIMIT = { timeout: 120_000 };
const ROUTES = ['192.0.2.0/24'];

interface Stage extends AsyncDisposable {
  readonly world: World;
  readonly network: TargetNetwork;
}

/** A gateway, and servers behind it: an echo at 192.0.2.1:7. */
async function open(options: WorldOptions = {}): Promise<Stage> {
  const network = new TargetNetwork();
  await network.serve('192.0.2.1', 7, (socket) => void socket.pipe(socket));
  network.names.set('echo.example', ['192.0.2.1']);
  const world = await World.open({ network, tun: 'none', ...options, config: { routes: ROUTES, ...options.config } });
  return {
    world,
    network,
    [Symbol.asyncDispose]: async () => {
      await world[Symbol.asyncDispose]();
      await network[Symbol.asyncDispose]();
    },
  };
}

const basic = (user: string, token: string) => `Basic ${Buffer.from(`${user}:${token}`).toString('base64')}`;

async function dialTls(world: World, protocols: string[]): Promise<TLSSocket> {
  const socket = connectTls({
    host: '127.0.0.1',
    port: world.port,
    ca: world.ca,
    servername: 'localhost',
    ALPNProtocols: protocols,
  });
  socket.on('error', () => {});
  await once(socket, 'secureConnect');
  return socket;
}

async function dialHttp2(world: World): Promise<ClientHttp2Session> {
  const socket = await dialTls(world, ['h2']);
  const session = connectHttp2('https://localhost', { createConnection: () => socket });
  session.on('error', () => {});
  return session;
}

/** What a request on HTTP/2 is answered, and its stream. */
async function ask(
  session: ClientHttp2Session,
  headers: Record<string, string>,
): Promise<{ status: number | undefined; headers: Record<string, unknown>; stream: ClientHttp2Stream }> {
  const stream = session.request(headers, { endStream: false });
  stream.on('error', () => {});
  const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>();
  stream.once('response', resolve);
  stream.once('close', () => reject(new Error('the stream was closed without an answer')));
  const answer = await promise;
  return { status: answer[':status'] as number | undefined, headers: answer, stream };
}

const connectTo = (authority: string, authorization?: string): Record<string, string> => ({
  ':method': 'CONNECT',
  ':authority': authority,
  ...(authorization === undefined ? {} : { 'proxy-authorization': authorization }),
});

/** Sends text over HTTP/1.1 and returns all that comes before the connection ends, or `until`. */
async function say(world: World, text: string, end?: string): Promise<string> {
  const socket = await dialTls(world, ['http/1.1']);
  socket.write(text);
  let heard = '';
  for await (const chunk of socket) {
    heard += String(chunk);
    if (end !== undefined && heard.includes(end)) break;
  }
  socket.destroy();
  return heard;
}

async function echo(stream: ClientHttp2Stream | TLSSocket, text: string): Promise<void> {
  stream.write(text);
  let heard = '';
  while (heard.length < text.length) heard += String((await once(stream, 'data'))[0]);
  assert.equal(heard, text);
}

async function lost(stream: ClientHttp2Stream): Promise<number | undefined> {
  stream.resume();
  if (!stream.closed || !stream.destroyed) await once(stream, 'close').catch(() => {});
  return stream.rstCode;
}

/** Resolves when a connection is closed, by an error or without. */
const closed = (session: ClientHttp2Session) =>
  new Promise<void>((resolve) => void session.once('close', () => resolve()));

/** The 404 of the front door over HTTP/1.1. */
const PAGE = /^HTTP\/1\.1 404 Not Found\r\n[\s\S]*\r\n\r\n[\s\S]*Not Found\n/;

test('REQ-STREAM-001: user and access token open streams over HTTP/2', LIMIT, async () => {
  await using stage = await open();
  const { world } = stage;
  const { token } = await world.accessToken('alice');
  const session = await dialHttp2(world);
  const authorization = basic('alice', token);
  const opened = await Promise.all(
    Array.from({ length: 40 }, () => ask(session, connectTo('echo.example:7', authorization))),
  );
  for (const { status, stream } of opened) {
    assert.equal(status, 200);
    await echo(stream, 'hello');
  }
  const [listed] = world.server.sessions;
  assert.equal(listed?.user, 'alice');
  assert.equal(listed?.channels, 1);
  assert.equal(world.rows("select * from audit where event = 'login.accepted'").length, 1);
  session.destroy();
});

test(
  'REQ-STREAM-001: user and access token open a stream over HTTP/1.1, with what follows the request',
  LIMIT,
  async () => {
    await using stage = await open();
    const { world } = stage;
    const { token } = await world.accessToken('alice');
    const request = `CONNECT 192.0.2.1:7 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: ${basic('alice', token)}\r\n\r\nearly`;
    const heard = await say(world, request, 'early');
    assert.match(heard, /^HTTP\/1\.1 200 [^\r]*\r\n\r\nearly$/);
  },
);

test('REQ-STREAM-002: a visitor meets a web server that has no page, in both versions of HTTP', LIMIT, async () => {
  await using stage = await open();
  const { world } = stage;
  assert.match(await say(world, 'GET / HTTP/1.1\r\nHost: x\r\n\r\n'), PAGE);
  assert.match(await say(world, 'OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n'), PAGE);
  assert.match(
    await say(world, 'GET /x HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n'),
    PAGE,
  );
  const session = await dialHttp2(world);
  for (const headers of [
    { ':method': 'GET', ':path': '/', ':scheme': 'https', ':authority': 'localhost' },
    { ':method': 'OPTIONS', ':path': '*', ':scheme': 'https', ':authority': 'localhost' },
    // The same for a proof of nothing.
    {
      ':method': 'OPTIONS',
      ':path': '*',
      ':scheme': 'https',
      ':authority': 'localhost',
      'proxy-authorization': `CustomVPN ${Buffer.alloc(52).toString('base64url')}`,
    },
  ]) {
    const { status, stream, headers: answer } = await ask(session, headers);
    assert.equal(status, 404);
    assert.equal(answer['content-type'], 'text/plain; charset=utf-8');
    assert.equal(String((await once(stream, 'data'))[0]), 'Not Found\n');
  }
  session.destroy();
});

test(
  'REQ-STREAM-002: whatever is wrong with the credentials, the answer is 407 and nothing is dialled',
  LIMIT,
  async () => {
    await using stage = await open();
    const { world, network } = stage;
    const { token } = await world.accessToken('alice');
    const { token: tunnel } = await world.accessToken('alice', ['tunnel']);
    const { token: foreign } = await world.accessToken('bob');
    const { token: disabled } = await world.accessToken('carol');
    await world.server.administration['user.disable']({ name: 'carol' });
    const wrong = Buffer.from(token, 'base64url');
    wrong[39] = (wrong[39] ?? 0) ^ 1;
    for (const authorization of [
      undefined,
      'Basic !!!',
      'Basic',
      'Bearer x',
      basic('alice', 'password'),
      basic('alice', wrong.toString('base64url')),
      basic('alice', tunnel),
      basic('alice', foreign),
      basic('carol', disabled),
      basic('nobody', token),
    ]) {
      const session = await dialHttp2(world);
      const { status, headers } = await ask(session, connectTo('192.0.2.1:7', authorization));
      assert.equal(status, 407, authorization ?? 'none');
      assert.match(String(headers['proxy-authenticate']), /^Basic /);
      session.destroy();
    }
    assert.match(
      await say(world, 'CONNECT 192.0.2.1:7 HTTP/1.1\r\nHost: x\r\n\r\n'),
      /^HTTP\/1\.1 407 Proxy Authentication Required\r\n/,
    );
    assert.deepEqual(network.dialled, []);
    const refused = world
      .rows("select reason from audit where event = 'login.refused'")
      .map(({ reason }) => String(reason));
    assert.ok(refused.includes('the token is not for proxy'));
    assert.ok(refused.includes('the user is disabled'));
  },
);

test(
  'REQ-STREAM-002: wrong tokens ban their source, as other failed logins do; the right one is not locked out by them',
  LIMIT,
  async () => {
    await using stage = await open({
      config: { routes: ROUTES, limits: { failuresPerUser: 3, failuresPerSource: 6 } },
    });
    const { world } = stage;
    const { token } = await world.accessToken('alice');
    const attempt = async (secret: string): Promise<number | undefined> => {
      const session = await dialHttp2(world);
      const { status } = await ask(session, connectTo('192.0.2.1:7', basic('alice', secret)));
      session.destroy();
      return status;
    };
    for (let i = 0; i < 4; i++) assert.equal(await attempt('guess'), 407);
    const bans = await world.server.administration['server.bans']({});
    assert.deepEqual(
      bans.map(({ kind }) => kind),
      ['name'],
    );
    assert.equal(await attempt(token), 200);
    for (let i = 0; i < 2; i++) assert.equal(await attempt('guess'), 407);
    await assert.rejects(dialTls(world, ['h2']));
  },
);

test('REQ-STREAM-002: a connection that guesses is ended', LIMIT, async () => {
  await using stage = await open();
  const { world } = stage;
  await world.accessToken('alice');
  const session = await dialHttp2(world);
  for (let i = 0; i < 3; i++) await ask(session, connectTo('192.0.2.1:7', basic('alice', `guess ${i}`)));
  if (!session.destroyed) await once(session, 'close');
});

test('without the proxy the front door has neither HTTP/2 nor CONNECT', LIMIT, async () => {
  await using stage = await open({ config: { routes: ROUTES, proxy: { enabled: false } } });
  const { world } = stage;
  await assert.rejects(dialTls(world, ['h2']));
  assert.match(await say(world, 'CONNECT 192.0.2.1:7 HTTP/1.1\r\nHost: x\r\n\r\n'), PAGE);
  assert.match(await say(world, 'GET http://192.0.2.1/ HTTP/1.1\r\nHost: x\r\n\r\n'), PAGE);
});

for (const [what, end] of [
  [
    'its token is revoked',
    async (world: World, id: string) => void (await world.server.administration['token.revoke']({ id })),
  ],
  [
    'its user is disabled',
    async (world: World) => void (await world.server.administration['user.disable']({ name: 'alice' })),
  ],
  [
    'its user is deleted',
    async (world: World) => void (await world.server.administration['user.delete']({ name: 'alice' })),
  ],
  ['an operator ends it', async (world: World, id: string) => void world.server.kick(id.slice(0, 8))],
] as const) {
  test(`REQ-STREAM-005: streams end when ${what}`, LIMIT, async () => {
    await using stage = await open();
    const { world, network } = stage;
    const { id, token } = await world.accessToken('alice');
    const session = await dialHttp2(world);
    const { stream } = await ask(session, connectTo('192.0.2.1:7', basic('alice', token)));
    await echo(stream, 'alive');
    const began = performance.now();
    await end(world, id);
    await lost(stream);
    await until(() => network.connections === 0, 'the connection to the server ends');
    assert.ok(performance.now() - began < 5000);
    assert.deepEqual(world.server.sessions, []);
  });
}

test('REQ-STREAM-005: streams end when the time of the token is over', LIMIT, async () => {
  await using stage = await open();
  const { world, network } = stage;
  await world.server.administration['user.add']({ name: 'alice' });
  const { token } = await world.server.administration['token.issue']({
    user: 'alice',
    name: 'short',
    scopes: ['proxy'],
    expiresAt: new Date(Date.now() + 3000).toISOString(),
  });
  world.keepSecret(Buffer.from(token, 'base64url'));
  const session = await dialHttp2(world);
  const { stream } = await ask(session, connectTo('192.0.2.1:7', basic('alice', token)));
  await lost(stream);
  await until(() => network.connections === 0, 'the connection to the server ends');
});

test('REQ-STREAM-006: nothing is dialled that packets may not go to, by address or by name', LIMIT, async () => {
  const config = { routes: ['192.0.2.0/24', '0.0.0.0/0', '::/0'], services: ['tcp/53'] };
  await using stage = await open({ config });
  const { world, network } = stage;
  network.own.add('192.0.2.9');
  network.names.set('inside.example', ['127.0.0.1', '::1', '169.254.169.254', '192.0.2.9']);
  network.names.set('mixed.example', ['127.0.0.1', '192.0.2.1']);
  const { token } = await world.accessToken('alice');
  const authorization = basic('alice', token);
  const session = await dialHttp2(world);
  for (const target of [
    '127.0.0.1:7',
    '127.1.2.3:7',
    '0.0.0.0:7',
    '[::1]:7',
    '[::]:7',
    '[::ffff:127.0.0.1]:7',
    '[::ffff:192.0.2.1]:7',
    '169.254.169.254:80',
    '[fe80::1]:7',
    '224.0.0.1:7',
    '255.255.255.255:7',
    '192.0.2.9:7',
    '10.20.0.1:22',
    '10.20.0.7:7',
    '[fd20:1::7]:7',
    'inside.example:7',
  ]) {
    const { status, headers } = await ask(session, connectTo(target, authorization));
    assert.equal(status, 403, target);
    assert.equal(headers['proxy-status'], 'customvpn; error=destination_ip_prohibited', target);
  }
  assert.deepEqual(network.dialled, []);
  assert.equal((await ask(session, connectTo('mixed.example:7', authorization))).status, 200);
  assert.deepEqual(network.dialled, ['192.0.2.1']);
  // What clients have on the gateway's own address is there for streams, too.
  assert.equal((await ask(session, connectTo('10.20.0.1:53', authorization))).status, 502);
  session.destroy();
});

test(
  'REQ-STREAM-006: by default nothing is allowed; a route that is taken away ends the streams that went there',
  LIMIT,
  async () => {
    await using stage = await open({ config: { routes: [] } });
    const { world, network } = stage;
    const { token } = await world.accessToken('alice');
    const authorization = basic('alice', token);
    const session = await dialHttp2(world);
    assert.equal((await ask(session, connectTo('192.0.2.1:7', authorization))).status, 403);
    await world.server.reload(world.config({ routes: ROUTES }));
    const { status, stream } = await ask(session, connectTo('192.0.2.1:7', authorization));
    assert.equal(status, 200);
    await echo(stream, 'still');
    await world.server.reload(world.config({ routes: ['198.51.100.0/24'] }));
    assert.equal(await lost(stream), constants.NGHTTP2_CONNECT_ERROR);
    await until(() => network.connections === 0, 'the connection to the server ends');
    session.destroy();
  },
);

test('REQ-STREAM-007: a failure has the status and the name that say which', LIMIT, async () => {
  await using stage = await open();
  const { world } = stage;
  const { token } = await world.accessToken('alice');
  const session = await dialHttp2(world);
  for (const [target, status, why] of [
    ['192.0.2.1:9', 502, 'connection_refused'],
    ['unknown.example:7', 502, 'dns_error'],
    ['198.51.100.1:7', 403, 'destination_ip_prohibited'],
  ] as const) {
    const answer = await ask(session, connectTo(target, basic('alice', token)));
    assert.equal(answer.status, status, target);
    assert.equal(answer.headers['proxy-status'], `customvpn; error=${why}`);
  }
  for (const target of ['192.0.2.1', '192.0.2.1:0', '192.0.2.1:65536', 'x:7:8']) {
    const { status } = await ask(session, connectTo(target, basic('alice', token)));
    assert.equal(status, 400, target);
  }
  session.destroy();
});

test('REQ-STREAM-008: each direction ends by itself, over HTTP/2 and HTTP/1.1', LIMIT, async () => {
  await using stage = await open();
  const { world, network } = stage;
  // Says all it has heard once the other end has said all.
  await network.serve('192.0.2.2', 7, (socket) => {
    const chunks: Buffer[] = [];
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.once('end', () => socket.end(Buffer.concat(chunks)));
  });
  // Ends first, and still listens.
  const late = Promise.withResolvers<string>();
  await network.serve('192.0.2.3', 7, (socket) => {
    let heard = '';
    socket.end('bye');
    socket.on('data', (chunk) => {
      heard += String(chunk);
    });
    socket.once('end', () => late.resolve(heard));
  });
  const { token } = await world.accessToken('alice');
  const authorization = basic('alice', token);
  const session = await dialHttp2(world);
  const one = await ask(session, connectTo('192.0.2.2:7', authorization));
  one.stream.end('all of it');
  assert.equal(String((await once(one.stream, 'data'))[0]), 'all of it');
  assert.equal(await lost(one.stream), constants.NGHTTP2_NO_ERROR);
  const two = await ask(session, connectTo('192.0.2.3:7', authorization));
  two.stream.resume();
  await once(two.stream, 'end');
  two.stream.end('after the end');
  assert.equal(await late.promise, 'after the end');
  session.destroy();

  const socket = await dialTls(world, ['http/1.1']);
  socket.allowHalfOpen = true;
  socket.write(`CONNECT 192.0.2.2:7 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: ${authorization}\r\n\r\n`);
  await once(socket, 'data');
  socket.end('all of it');
  assert.equal(String((await once(socket, 'data'))[0]), 'all of it');
  await once(socket, 'close');
  await until(() => network.connections === 0, 'no connection is left');
});

test('REQ-STREAM-008: a reset at one end is a reset at the other', LIMIT, async () => {
  await using stage = await open();
  const { world, network } = stage;
  await network.serve('192.0.2.2', 7, (socket) => {
    socket.write('going');
    socket.once('data', () => socket.resetAndDestroy());
  });
  const failed = Promise.withResolvers<string | undefined>();
  await network.serve('192.0.2.3', 7, (socket) => {
    socket.write('going');
    socket.resume();
    socket.on('end', () => failed.resolve('end'));
    socket.on('error', (error: NodeJS.ErrnoException) => failed.resolve(error.code));
  });
  const { token } = await world.accessToken('alice');
  const authorization = basic('alice', token);
  const session = await dialHttp2(world);
  const one = await ask(session, connectTo('192.0.2.2:7', authorization));
  await once(one.stream, 'data');
  one.stream.write('x');
  assert.equal(await lost(one.stream), constants.NGHTTP2_CONNECT_ERROR);
  const two = await ask(session, connectTo('192.0.2.3:7', authorization));
  await once(two.stream, 'data');
  two.stream.close(constants.NGHTTP2_CANCEL);
  assert.equal(await failed.promise, 'ECONNRESET');
  session.destroy();

  const socket = await dialTls(world, ['http/1.1']);
  const broken = once(socket, 'error');
  socket.write(`CONNECT 192.0.2.2:7 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: ${authorization}\r\n\r\n`);
  let heard = '';
  while (!heard.endsWith('going')) heard += String((await once(socket, 'data'))[0]);
  socket.write('x');
  assert.equal(((await broken)[0] as NodeJS.ErrnoException).code, 'ECONNRESET');
  await until(() => network.connections === 0, 'no connection is left');
});

test(
  'REQ-STREAM-009: datagrams go to a UDP server and back, over HTTP/2 and by an upgrade of HTTP/1.1',
  LIMIT,
  async () => {
    await using stage = await open();
    const { world, network } = stage;
    await network.serveUdp('192.0.2.5', 53, (payload) => [payload, Buffer.from('again')]);
    const { token } = await world.accessToken('alice');
    const authorization = basic('alice', token);
    const session = await dialHttp2(world);
    await once(session, 'remoteSettings');
    const { status, headers, stream } = await ask(session, {
      ':method': 'CONNECT',
      ':protocol': 'connect-udp',
      ':scheme': 'https',
      ':authority': 'localhost',
      ':path': '/.well-known/masque/udp/192.0.2.5/53/',
      'capsule-protocol': '?1',
      'proxy-authorization': authorization,
    });
    assert.equal(status, 200);
    assert.equal(headers['capsule-protocol'], '?1');
    const payloads: string[] = [];
    const decoder = new CapsuleDecoder((payload) => void payloads.push(Buffer.from(payload).toString()));
    stream.on('data', (chunk: Buffer) => decoder.push(chunk));
    stream.write(encodeUdp(Buffer.from('one')));
    await until(() => payloads.length === 2, 'two datagrams back');
    assert.deepEqual(payloads, ['one', 'again']);
    session.destroy();

    const socket = await dialTls(world, ['http/1.1']);
    socket.write(
      `GET /.well-known/masque/udp/192.0.2.5/53/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\nProxy-Authorization: ${authorization}\r\n\r\n`,
    );
    const [head] = await once(socket, 'data');
    assert.match(String(head), /^HTTP\/1\.1 101 [\s\S]*upgrade: connect-udp/i);
    const more: string[] = [];
    const second = new CapsuleDecoder((payload) => void more.push(Buffer.from(payload).toString()));
    socket.on('data', (chunk: Buffer) => second.push(chunk));
    socket.write(encodeUdp(Buffer.from('two')));
    await until(() => more.length === 2, 'two datagrams back');
    assert.deepEqual(more, ['two', 'again']);
    socket.destroy();
  },
);

test('REQ-STREAM-009: a datagram that is too long ends its stream, and only that', LIMIT, async () => {
  await using stage = await open();
  const { world, network } = stage;
  await network.serveUdp('192.0.2.5', 53, () => []);
  const { token } = await world.accessToken('alice');
  const authorization = basic('alice', token);
  const session = await dialHttp2(world);
  await once(session, 'remoteSettings');
  const { stream } = await ask(session, {
    ':method': 'CONNECT',
    ':protocol': 'connect-udp',
    ':scheme': 'https',
    ':authority': 'localhost',
    ':path': '/.well-known/masque/udp/192.0.2.5/53/',
    'proxy-authorization': authorization,
  });
  stream.write(Uint8Array.of(0, 0x80, 1, 0, 8));
  assert.equal(await lost(stream), constants.NGHTTP2_CONNECT_ERROR);
  assert.equal((await ask(session, connectTo('192.0.2.1:7', authorization))).status, 200);
  session.destroy();
});

test('REQ-STREAM-010: a user has a bounded number of streams', LIMIT, async () => {
  await using stage = await open({ config: { routes: ROUTES, proxy: { streamsPerUser: 3 } } });
  const { world } = stage;
  const { token } = await world.accessToken('alice');
  const authorization = basic('alice', token);
  const sessions = [await dialHttp2(world), await dialHttp2(world)];
  const open3 = await Promise.all(
    [0, 1, 0].map((i) => ask(sessions[i] ?? assert.fail(), connectTo('192.0.2.1:7', authorization))),
  );
  assert.deepEqual(
    open3.map(({ status }) => status),
    [200, 200, 200],
  );
  const refused = await ask(sessions[1] ?? assert.fail(), connectTo('192.0.2.1:7', authorization));
  assert.equal(refused.status, 503);
  open3[0]?.stream.close();
  await until(async () => (await world.status()).counters.proxy_open === 2, 'one has ended');
  assert.equal((await ask(sessions[1] ?? assert.fail(), connectTo('192.0.2.1:7', authorization))).status, 200);
  for (const session of sessions) session.destroy();
});

test(
  'REQ-STREAM-010: what the client does not read is not read from the server, and the other way round',
  LIMIT,
  async () => {
    await using stage = await open();
    const { world, network } = stage;
    let given = 0;
    await network.serve('192.0.2.2', 7, (socket) => {
      const chunk = Buffer.alloc(64 * 1024);
      const give = (): void => {
        while (!socket.destroyed) {
          given += chunk.length;
          if (!socket.write(chunk)) break;
        }
      };
      socket.on('drain', give);
      give();
    });
    // Never reads.
    await network.serve('192.0.2.3', 7, (socket) => void socket.pause());
    const { token } = await world.accessToken('alice');
    const authorization = basic('alice', token);
    const session = await dialHttp2(world);
    const down = await ask(session, connectTo('192.0.2.2:7', authorization));
    down.stream.pause();
    const steady = async (measure: () => number, what: string): Promise<number> => {
      let last = -1;
      let same = 0;
      return await until(
        () => {
          same = measure() === last ? same + 1 : 0;
          last = measure();
          return same > 200 ? last : undefined;
        },
        what,
        30_000,
      );
    };
    // Socket buffers of the kernel, twice, are most of it.
    assert.ok((await steady(() => given, 'the server is held up')) < 32 << 20);
    const up = await ask(session, connectTo('192.0.2.3:7', authorization));
    let taken = 0;
    const push = (): void => {
      up.stream.write(Buffer.alloc(64 * 1024), (error) => {
        if (error != null) return;
        taken += 64 * 1024;
        push();
      });
    };
    push();
    assert.ok((await steady(() => taken, 'the client is held up')) < 32 << 20);
    // Others go on.
    const { stream } = await ask(session, connectTo('192.0.2.1:7', authorization));
    await echo(stream, 'not held up');
    session.destroy();
    await until(async () => (await world.status()).counters.proxy_open === 0, 'no stream is left');
  },
);

test(
  'REQ-STREAM-010: streams without a byte end after their time, and so do dials without an answer',
  LIMIT,
  async () => {
    const clock = new ManualClock();
    await using stage = await open({ clock, config: { routes: ROUTES, proxy: { idleSeconds: 10 } } });
    const { world } = stage;
    const { token } = await world.accessToken('alice');
    const session = await dialHttp2(world);
    const { stream } = await ask(session, connectTo('192.0.2.1:7', basic('alice', token)));
    await echo(stream, 'x');
    await until(async () => (await world.status()).counters.proxy_open === 1, 'it is open');
    // A tick has to see the byte before the time goes on.
    await until(() => world.server.sessions[0]?.sentBytes === 1, 'the byte is counted');
    clock.advance(11_000);
    assert.equal(await lost(stream), constants.NGHTTP2_CONNECT_ERROR);
    session.destroy();
  },
);

test('REQ-STREAM-011: a plain request goes on as HTTP says, by both versions', LIMIT, async () => {
  await using stage = await open();
  const { world, network } = stage;
  const heard: { method?: string; url?: string; headers: Record<string, unknown>; body: string }[] = [];
  const origin = createHttpServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += String(chunk);
    const { method = '', url = '', headers } = request;
    heard.push({ method, url, headers, body });
    response.writeHead(201, { 'x-answer': 'yes', connection: 'keep-alive, x-hop', 'x-hop': '1' });
    response.end(`got ${body}`);
  });
  await network.serve('192.0.2.4', 80, (socket) => void origin.emit('connection', socket));
  network.names.set('web.example', ['192.0.2.4']);
  const { token } = await world.accessToken('alice');
  const authorization = basic('alice', token);
  const answer = await say(
    world,
    `POST http://web.example/path?q=1 HTTP/1.1\r\nHost: other.example\r\nConnection: close, x-mine\r\nX-Mine: 1\r\nX-End: 2\r\nProxy-Authorization: ${authorization}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n`,
    'got hello',
  );
  assert.match(answer, /^HTTP\/1\.1 201 /);
  assert.match(answer, /x-answer: yes/);
  assert.doesNotMatch(answer, /x-hop/);
  const session = await dialHttp2(world);
  const put = session.request({
    ':method': 'PUT',
    ':scheme': 'http',
    ':authority': 'web.example',
    ':path': '/two',
    'proxy-authorization': authorization,
  });
  put.end('second');
  const [fields] = (await once(put, 'response')) as [Record<string, unknown>];
  assert.equal(fields[':status'], 201);
  assert.equal(String((await once(put, 'data'))[0]), 'got second');
  session.destroy();
  assert.equal(heard[0]?.url, '/path?q=1');
  assert.equal(heard[0]?.headers.host, 'web.example');
  assert.equal(heard[0]?.headers['x-end'], '2');
  for (const name of ['proxy-authorization', 'x-mine']) assert.equal(heard[0]?.headers[name], undefined, name);
  assert.equal(heard[1]?.method, 'PUT');
  origin.close();
});

test(
  'hostile: streams that are opened and reset at once, and heads that are too long, cost only their connection',
  FLOOD_LIMIT,
  async () => {
    await using stage = await open();
    const { world } = stage;
    const { token } = await world.accessToken('alice');
    const authorization = basic('alice', token);
    const good = await dialHttp2(world);
    const { stream } = await ask(good, connectTo('192.0.2.1:7', authorization));

    const rapid = await dialHttp2(world);
    const ended = closed(rapid);
    const flood = setInterval(() => {
      for (let i = 0; i < 500 && !rapid.destroyed; i++) {
        const reset = rapid.request(connectTo('192.0.2.1:7', authorization));
        reset.on('error', () => {});
        reset.close(constants.NGHTTP2_CANCEL);
      }
    }, 1);
    await ended;
    clearInterval(flood);

    const long = await dialHttp2(world);
    long
      .request({
        ...connectTo('192.0.2.1:7'),
        ...Object.fromEntries(Array.from({ length: 500 }, (_, i) => [`x-${i}`, 'y'.repeat(100)])),
      })
      .on('error', () => {});
    await closed(long);
    assert.match(
      await say(world, `CONNECT 192.0.2.1:7 HTTP/1.1\r\nX: ${'y'.repeat(20_000)}\r\n\r\n`).catch(() => ''),
      /^(HTTP\/1\.1 4\d\d|$)/,
    );
    await echo(stream, 'still here');
    good.destroy();
    await until(async () => (await world.status()).counters.proxy_open === 0, 'no stream is left');
  },
);

test("a stranger's connection has a deadline and few streams; one that is known stays", LIMIT, async () => {
  await using stage = await open();
  const { world } = stage;
  const session = await dialHttp2(world);
  await once(session, 'remoteSettings');
  assert.equal(session.remoteSettings?.maxConcurrentStreams, 100);
  const { token } = await world.accessToken('alice');
  const { status } = await ask(session, connectTo('192.0.2.1:7', basic('alice', token)));
  assert.equal(status, 200);
  await until(() => session.remoteSettings?.maxConcurrentStreams === 8192, 'more streams');
  session.destroy();
});
