/** PROXY headers as the specification and HAProxy write them, and what is none. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { binaryHeader } from '../../test/support/proxy-header.ts';
import { isVpnError } from '../base/errors.ts';
import { MAX_BINARY_BYTES, MAX_TEXT_BYTES, parseProxyHeader, readProxyHeader } from './proxy-header.ts';

const text = (line: string): Uint8Array => Buffer.from(line, 'latin1');
const LONGEST =
  'PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n';

const V4 = Uint8Array.of(192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x01, 0xbb);
const V6 = Buffer.concat([
  Buffer.from('20010db8000000000000000000000009', 'hex'),
  Buffer.from('20010db8000000000000000000000001', 'hex'),
  Uint8Array.of(0xc3, 0x50, 0x01, 0xbb),
]);
const MAPPED = Buffer.concat([Buffer.from('00000000000000000000ffffc0000207', 'hex'), V6.subarray(16)]);
const MORE = Buffer.from('0400010005000a68616c6c6f2077656c74', 'hex');

const good: readonly [what: string, header: Uint8Array, client: [string, number] | undefined][] = [
  ['version 1, TCP4', text('PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n'), ['192.0.2.7', 50_000]],
  ['version 1, TCP6', text('PROXY TCP6 2001:DB8:0:0::9 2001:db8::1 50000 443\r\n'), ['2001:db8::9', 50_000]],
  ['version 1, mapped', text('PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 1 443\r\n'), ['192.0.2.7', 1]],
  ['version 1, UNKNOWN', text('PROXY UNKNOWN\r\n'), undefined],
  ['version 1, UNKNOWN with the longest line', text(LONGEST), undefined],
  ['version 2, TCP4', binaryHeader(0x21, 0x11, V4), ['192.0.2.7', 50_000]],
  ['version 2, TCP6', binaryHeader(0x21, 0x21, V6), ['2001:db8::9', 50_000]],
  ['version 2, mapped', binaryHeader(0x21, 0x21, MAPPED), ['192.0.2.7', 50_000]],
  ['version 2, with more about the client', binaryHeader(0x21, 0x11, Buffer.concat([V4, MORE])), ['192.0.2.7', 50_000]],
  ['version 2, LOCAL', binaryHeader(0x20, 0x00, new Uint8Array(0)), undefined],
  ['version 2, LOCAL with addresses', binaryHeader(0x20, 0x11, V4), undefined],
  ['version 2, UNSPEC', binaryHeader(0x21, 0x00, MORE), undefined],
  ['version 2, a UNIX socket', binaryHeader(0x21, 0x31, new Uint8Array(216)), undefined],
  [
    'version 2, the longest',
    binaryHeader(0x21, 0x11, Buffer.concat([V4, new Uint8Array(MAX_BINARY_BYTES - 16 - 12)])),
    ['192.0.2.7', 50_000],
  ],
];
for (const [what, header, client] of good) {
  test(`${what}: read, wherever it is cut, and not a byte further`, () => {
    const expected = {
      length: header.length,
      client: client === undefined ? undefined : { address: client[0], port: client[1] },
    };
    for (let at = 0; at < header.length; at++) assert.equal(parseProxyHeader(header.subarray(0, at)), undefined);
    assert.deepEqual(parseProxyHeader(header), expected);
    assert.deepEqual(parseProxyHeader(Buffer.concat([header, Buffer.from([0x16, 3, 1])])), expected);
  });
}

const bad: readonly [what: string, bytes: Uint8Array][] = [
  ['TLS', Uint8Array.of(0x16)],
  ['HTTP', text('POST')],
  ['a lower-case word', text('proxy ')],
  ['another family', text('PROXY UDP4 192.0.2.7 198.51.100.1 50000 443\r\n')],
  ['no family', text('PROXY \r\n')],
  ['a line feed alone', text('PROXY UNKNOWN\n')],
  ['a line that does not end', text(`PROXY UNKNOWN ${'x'.repeat(MAX_TEXT_BYTES)}`)],
  ['a line one byte too long', text(LONGEST.replace('\r\n', '1\r\n'))],
  ['addresses of the other family', text('PROXY TCP4 2001:db8::9 2001:db8::1 50000 443\r\n')],
  ['IPv4 called TCP6', text('PROXY TCP6 192.0.2.7 198.51.100.1 50000 443\r\n')],
  ['a short IPv4 address', text('PROXY TCP4 192.0.7 198.51.100.1 50000 443\r\n')],
  ['leading zeros', text('PROXY TCP4 192.0.02.7 198.51.100.1 50000 443\r\n')],
  ['a zone', text('PROXY TCP6 fe80::1%eth0 2001:db8::1 50000 443\r\n')],
  ['a bad destination', text('PROXY TCP4 192.0.2.7 nowhere 50000 443\r\n')],
  ['a port too high', text('PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n')],
  ['a port with a zero', text('PROXY TCP4 192.0.2.7 198.51.100.1 050 443\r\n')],
  ['a port with a sign', text('PROXY TCP4 192.0.2.7 198.51.100.1 +50 443\r\n')],
  ['no destination port', text('PROXY TCP4 192.0.2.7 198.51.100.1 50000\r\n')],
  ['two spaces', text('PROXY TCP4  192.0.2.7 198.51.100.1 50000 443\r\n')],
  ['a space at the end', text('PROXY TCP4 192.0.2.7 198.51.100.1 50000 443 \r\n')],
  ['a NUL', text('PROXY TCP4 192.0.2.7\0 198.51.100.1 50000 443\r\n')],
  ['another start of version 2', Buffer.from('0d0a0d0a000d0a515549540b', 'hex')],
  ['version 1 in the binary form', Buffer.from('0d0a0d0a000d0a515549540a11', 'hex')],
  ['another command', Buffer.from('0d0a0d0a000d0a515549540a22', 'hex')],
  ['UDP', binaryHeader(0x21, 0x12, V4)],
  ['an unknown family', binaryHeader(0x21, 0x41, V4)],
  ['TCP4 without room for it', binaryHeader(0x21, 0x11, V4.subarray(1))],
  ['TCP6 with the room of TCP4', binaryHeader(0x21, 0x21, V4)],
  ['one byte too many', binaryHeader(0x21, 0x11, new Uint8Array(MAX_BINARY_BYTES - 15)).subarray(0, 16)],
];
for (const [what, bytes] of bad) {
  test(`${what}: ERR_PROXY_HEADER`, () => {
    assert.throws(() => parseProxyHeader(bytes), { code: 'ERR_PROXY_HEADER' });
  });
}

/** Both ends of a TCP connection. */
async function pair(): Promise<{ near: Socket; far: Socket } & Disposable> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  assert.ok(typeof address === 'object' && address !== null);
  const accepted = once(server, 'connection');
  const far = connect(address.port, '127.0.0.1');
  const [near] = (await accepted) as [Socket];
  server.close();
  for (const socket of [near, far]) socket.on('error', () => {});
  return {
    near,
    far,
    [Symbol.dispose]() {
      near.destroy();
      far.destroy();
    },
  };
}

test('what follows a header is left for the next reader, in one piece or byte by byte', async () => {
  for (const isWhole of [true, false]) {
    using ends = await pair();
    const reading = readProxyHeader(ends.near, 10_000);
    const all = Buffer.concat([binaryHeader(0x21, 0x11, V4), text('the client speaks')]);
    if (isWhole) ends.far.write(all);
    else for (const byte of all) await new Promise((done) => ends.far.write(Uint8Array.of(byte), done));
    assert.deepEqual(await reading, { address: '192.0.2.7', port: 50_000 });
    let rest = '';
    for await (const chunk of ends.near) {
      rest += String(chunk);
      if (rest.length === 17) break;
    }
    assert.equal(rest, 'the client speaks');
  }
});

test('a connection that ends or stays silent inside a header is not waited for', async () => {
  for (const [code, act] of [
    ['ERR_PEER_GONE', (far: Socket) => far.end('PROXY TC')],
    ['ERR_PEER_GONE', (far: Socket) => far.resetAndDestroy()],
    ['ERR_STAGE_TIMEOUT', (far: Socket) => far.write('PROXY TC')],
    ['ERR_PROXY_HEADER', (far: Socket) => far.write('GET / HTTP/1.1\r\n')],
  ] as const) {
    using ends = await pair();
    const reading = readProxyHeader(ends.near, code === 'ERR_STAGE_TIMEOUT' ? 50 : 10_000);
    act(ends.far);
    await assert.rejects(reading, (error) => isVpnError(error) && error.code === code);
  }
});
