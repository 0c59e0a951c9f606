// Proxies: how they are named, for whom they are not, and what is said to them, to real ones and to such as say anything.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { connect as connectTls, createServer as createTlsServer } from 'node:tls';
import { TestAuthority } from '../../test/support/certificates.ts';
import { isVpnError } from '../base/errors.ts';
import {
  connectThrough,
  isException,
  type OutboundProxy,
  parseProxyUrl,
  proxiesOfEnvironment,
} from './outbound-proxy.ts';

test('a proxy is read from its URL, and its password shows nowhere', () => {
  const proxy = parseProxyUrl('http://ada:p%40ss@proxy.example.org:3128', 'test');
  assert.deepEqual(
    { ...proxy, password: undefined },
    {
      kind: 'http',
      host: 'proxy.example.org',
      port: 3128,
      user: 'ada',
      password: undefined,
    },
  );
  assert.equal(proxy.password?.reveal(), 'p@ss');
  assert.ok(!JSON.stringify(proxy).includes('p@ss'));
  assert.deepEqual(parseProxyUrl('socks5h://[2001:db8::1]', 'test'), {
    kind: 'socks5',
    host: '2001:db8::1',
    port: 1080,
  });
  assert.deepEqual(parseProxyUrl('proxy:8080', 'test'), { kind: 'http', host: 'proxy', port: 8080 });
  assert.deepEqual(parseProxyUrl('https://proxy.test', 'test'), { kind: 'https', host: 'proxy.test', port: 443 });
  for (const wrong of ['ftp://x', 'http://', 'http://x/path', 'http://a:%zz@x', '']) {
    assert.throws(() => parseProxyUrl(wrong, 'test'), { code: 'ERR_CONFIG_VALUE' }, wrong);
  }
});

test('NO_PROXY: domains with all below, addresses, networks, ports, everything', () => {
  const cases: [string, string, number, boolean][] = [
    ['example.org', 'example.org', 443, true],
    ['example.org', 'vpn.Example.org.', 443, true],
    ['.example.org', 'vpn.example.org', 443, true],
    ['*.example.org', 'vpn.example.org', 443, true],
    ['example.org', 'myexample.org', 443, false],
    ['example.org:8443', 'example.org', 443, false],
    ['example.org:8443', 'example.org', 8443, true],
    ['192.0.2.0/24', '192.0.2.9', 443, true],
    ['192.0.2.0/24', '192.0.3.9', 443, false],
    ['192.0.2.0/24', 'host.test', 443, false],
    ['192.0.2.1', '192.0.2.1', 443, true],
    ['2001:db8::1', '2001:DB8:0::1', 443, true],
    ['[2001:db8::1]:443', '2001:db8::1', 443, true],
    ['2001:db8::/32', '2001:db8:1::1', 443, true],
    ['*', 'anything', 1, true],
    ['10.0.0.0/99', '10.0.0.1', 443, false],
  ];
  for (const [entry, host, port, expected] of cases) {
    assert.equal(isException(entry, host, port), expected, `${entry} for ${host}:${port}`);
  }
});

test('the environment: HTTPS_PROXY before ALL_PROXY, lower case before upper, NO_PROXY over all', () => {
  const choose = proxiesOfEnvironment({
    HTTPS_PROXY: 'http://upper:1',
    https_proxy: 'http://lower:2',
    ALL_PROXY: 'socks5://all:3',
    no_proxy: 'localhost, 192.0.2.0/24 internal.test',
  });
  assert.equal(choose('vpn.example.org', 443)?.host, 'lower');
  for (const host of ['localhost', '192.0.2.7', 'a.internal.test']) assert.equal(choose(host, 443), undefined, host);
  assert.equal(proxiesOfEnvironment({ ALL_PROXY: 'socks5://all:3' })('x', 1)?.kind, 'socks5');
  assert.equal(proxiesOfEnvironment({})('x', 1), undefined);
  assert.throws(() => proxiesOfEnvironment({ HTTPS_PROXY: 'ftp://x' }), /HTTPS_PROXY/);
});

/** A proxy that says what it is told to, a piece for everything that comes, and keeps what came. */
async function talkTo(
  kind: OutboundProxy['kind'],
  pieces: readonly (string | Uint8Array)[],
  options: { user?: string; host?: string } = {},
): Promise<{ heard: Buffer; error: unknown }> {
  let heard: Buffer = Buffer.alloc(0);
  let next = 0;
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', (bytes: Buffer) => {
      heard = Buffer.concat([heard, bytes]);
      const piece = pieces[next++];
      if (piece === undefined) socket.end();
      else socket.write(typeof piece === 'string' ? Buffer.from(piece, 'latin1') : Buffer.from(piece));
    });
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  const socket: Socket = connect(port, '127.0.0.1');
  await once(socket, 'connect');
  const { user, host = 'vpn.example.org' } = options;
  const name = user === undefined ? '' : `${user}@`;
  const proxy = parseProxyUrl(`${kind === 'http' ? 'http' : 'socks5'}://${name}127.0.0.1:${port}`, 'test');
  try {
    await connectThrough(socket, proxy, host, 443);
    return { heard, error: undefined };
  } catch (error) {
    return { heard, error };
  } finally {
    socket.destroy();
    server.close();
  }
}

test('HTTP CONNECT names the host and proves the user', async () => {
  const { heard, error } = await talkTo('http', ['HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n'], {
    user: 'ada:secret',
  });
  assert.equal(error, undefined);
  assert.match(heard.toString(), /^CONNECT vpn\.example\.org:443 HTTP\/1\.1\r\nHost: vpn\.example\.org:443\r\n/);
  assert.match(
    heard.toString(),
    new RegExp(`Proxy-Authorization: Basic ${Buffer.from('ada:secret').toString('base64')}\r\n`),
  );
  const six = await talkTo('http', ['HTTP/1.0 200 OK\r\n\r\n'], { host: '2001:db8::1' });
  assert.match(six.heard.toString(), /^CONNECT \[2001:db8::1\]:443 /);
});

test('what an HTTP proxy refuses with is told, with what to do', async () => {
  const cases: [readonly string[], string, RegExp, string?][] = [
    [
      ['HTTP/1.1 407 X\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 3\r\n\r\nno!'],
      'ERR_PROXY_AUTH',
      /Basic.*user:password@/,
    ],
    [['HTTP/1.1 407 X\r\nProxy-Authenticate: Negotiate\r\n\r\n'], 'ERR_PROXY_AUTH', /refuses.*Negotiate/, 'ada:secret'],
    [
      ['HTTP/1.1 403 For\u0007bidden\r\n\r\n<html>'],
      'ERR_PROXY',
      /answered 403 For\?bidden to a connection to vpn\.example\.org:443/,
    ],
    [['\u0005\u0000'], 'ERR_PEER_GONE', /ended/],
    [['SSH-2.0-x\r\n\r\n'], 'ERR_PROXY', /does not speak HTTP/],
    [['HTTP/1.1 200 OK\r\n\r\nOK VPN-HELLO 1\r\n'], 'ERR_PROXY', /more than a proxy/],
    [[`HTTP/1.1 200 OK\r\nX: ${'y'.repeat(20_000)}`], 'ERR_PROXY', /more than a proxy/],
    [[], 'ERR_PEER_GONE', /ended the connection/],
  ];
  for (const [pieces, code, message, user] of cases) {
    const { error } = await talkTo(
      'http',
      pieces.length === 1 && code === 'ERR_PEER_GONE' ? [] : pieces,
      user === undefined ? {} : { user },
    );
    assert.ok(isVpnError(error), String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
    assert.ok(!error.message.includes('secret'));
  }
});

const OK4 = Uint8Array.of(5, 0, 0, 1, 0, 0, 0, 0, 0, 0);

test('SOCKS 5 is given the name, or the address, and the password where it wants one', async () => {
  const name = await talkTo('socks5', [Uint8Array.of(5, 0), OK4]);
  assert.equal(name.error, undefined);
  assert.deepEqual([...name.heard], [5, 1, 0, 5, 1, 0, 3, 15, ...Buffer.from('vpn.example.org'), 1, 187]);
  const address = await talkTo('socks5', [Uint8Array.of(5, 0), Uint8Array.of(5, 0, 0, 4, ...new Array(18).fill(0))], {
    host: '192.0.2.1',
  });
  assert.equal(address.error, undefined);
  assert.deepEqual([...address.heard.subarray(3)], [5, 1, 0, 1, 192, 0, 2, 1, 1, 187]);
  const proven = await talkTo('socks5', [Uint8Array.of(5, 2), Uint8Array.of(1, 0), OK4], { user: 'ada:pw' });
  assert.equal(proven.error, undefined);
  assert.deepEqual([...proven.heard.subarray(0, 12)], [5, 2, 0, 2, 1, 3, 97, 100, 97, 2, 112, 119]);
});

test('what a SOCKS proxy refuses with is told', async () => {
  const cases: [readonly Uint8Array[], string, RegExp, string?][] = [
    [[Uint8Array.of(5, 255)], 'ERR_PROXY_AUTH', /wants a user and password/],
    [[Uint8Array.of(5, 2), Uint8Array.of(1, 1)], 'ERR_PROXY_AUTH', /refuses this user/, 'ada:pw'],
    [[Uint8Array.of(5, 0), Uint8Array.of(5, 2, 0, 1, 0, 0, 0, 0, 0, 0)], 'ERR_PROXY', /not allowed by its rules/],
    [[Uint8Array.of(5, 0), Uint8Array.of(5, 5, 0, 1, 0, 0, 0, 0, 0, 0)], 'ERR_PROXY', /connection refused/],
    [[Buffer.from('HTTP/1.1 400 Bad\r\n')], 'ERR_PROXY', /more than a proxy/],
    [[Uint8Array.of(4, 90)], 'ERR_PROXY', /does not speak SOCKS 5/],
    [[Uint8Array.of(5, 0)], 'ERR_PEER_GONE', /ended/],
  ];
  for (const [pieces, code, message, user] of cases) {
    const { error } = await talkTo('socks5', pieces, user === undefined ? {} : { user });
    assert.ok(isVpnError(error), String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, message);
  }
});

/** A proxy that is spoken to in TLS; it connects all to a server that returns what it is told, in TLS, too. */
async function openSecureProxy(authority: TestAuthority, name: string) {
  const leaf = await authority.server({ names: [name] });
  const target = createTlsServer(leaf, (socket) => socket.on('error', () => {}).pipe(socket));
  await once(target.listen(0, '127.0.0.1'), 'listening');
  const heard: string[] = [];
  const proxy = createTlsServer({ ...leaf, ALPNProtocols: ['http/1.1'] }, (socket) => {
    socket.on('error', () => {});
    socket.once('data', (head: Buffer) => {
      heard.push(head.toString('latin1'));
      const inner = connect((target.address() as AddressInfo).port, '127.0.0.1');
      inner.on('error', () => socket.destroy());
      socket.write('HTTP/1.1 200 Connection established\r\n\r\n');
      socket.pipe(inner).pipe(socket);
    });
  });
  proxy.on('tlsClientError', () => {});
  await once(proxy.listen(0, '127.0.0.1'), 'listening');
  return { heard, port: (proxy.address() as AddressInfo).port, close: () => [proxy.close(), target.close()] };
}

test('an HTTPS proxy is asked within TLS, and the server is spoken to in TLS within that', async (t) => {
  const authority = await TestAuthority.create();
  const { heard, port, close } = await openSecureProxy(authority, 'localhost');
  t.after(close);
  const raw = connect(port, '127.0.0.1');
  const proxy = parseProxyUrl(`https://ada:secret@localhost:${port}`, 'test');
  const carrier = await connectThrough(raw, proxy, 'vpn.example.org', 443, [authority.cert]);
  assert.match(heard.join(), /^CONNECT vpn\.example\.org:443 HTTP\/1\.1\r\n.*Basic YWRhOnNlY3JldA==\r\n/s);
  const socket = connectTls({ socket: carrier, ca: authority.cert, servername: 'localhost' });
  await once(socket, 'secureConnect');
  const sent = Buffer.alloc(1_000_000, 'through both');
  socket.write(sent);
  let got = 0;
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    assert.ok(chunk.equals(sent.subarray(got, got + chunk.length)));
    got += chunk.length;
    if (got === sent.length) break;
  }
  assert.equal(got, sent.length);
  socket.destroy();
});

for (const [what, name, isKnown] of [
  ['of another name', 'other.test', true],
  ['of an unknown authority', 'localhost', false],
] as const) {
  test(`an HTTPS proxy with a certificate ${what} is told nothing`, async (t) => {
    const authority = await TestAuthority.create();
    const { heard, port, close } = await openSecureProxy(authority, name);
    t.after(close);
    const raw = connect(port, '127.0.0.1');
    const proxy = parseProxyUrl(`https://ada:secret@localhost:${port}`, 'test');
    const ca = isKnown ? [authority.cert] : undefined;
    await assert.rejects(connectThrough(raw, proxy, 'vpn.example.org', 443, ca), (error: unknown) => {
      assert.ok(isVpnError(error, 'ERR_PROXY'));
      assert.match(error.message, /no TLS with the HTTPS proxy localhost/);
      assert.ok(!error.message.includes('secret'));
      return true;
    });
    assert.deepEqual(heard, []);
    raw.destroy();
  });
}
