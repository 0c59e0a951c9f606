// Names are looked up over sockets of our own, at servers that answer, do not, or lie.

import assert from 'node:assert/strict';
import { createSocket, type RemoteInfo } from 'node:dgram';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { resolveHost } from './resolver.ts';

const skip = process.platform === 'linux' && process.getuid?.() === 0 ? false : 'a firewall mark needs root on Linux';
const folder = mkdtempSync(join(tmpdir(), 'cvpn-resolver-'));
after(() => rmSync(folder, { recursive: true }));
const hostsFile = join(folder, 'hosts');
writeFileSync(hostsFile, '127.0.0.1 localhost\n192.0.2.9 Listed.test other # listed.test\n2001:db8::9\tlisted.test\n');

type Reply = (query: Buffer, type: number) => Buffer | undefined;

/** A name server on a port of its own on loopback; the same answers over TCP where they are given. */
async function serve(reply: Reply, overTcp?: Reply): Promise<AsyncDisposable & { port: number; asked: RemoteInfo[] }> {
  const typeOf = (query: Buffer): number => query.readUInt16BE(query.length - 4);
  const socket = createSocket('udp4');
  const asked: RemoteInfo[] = [];
  socket.on('message', (query, from) => {
    asked.push(from);
    const answer = reply(query, typeOf(query));
    if (answer !== undefined) socket.send(answer, from.port, from.address);
  });
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  const { port } = socket.address();
  const server = createServer((connection) => {
    connection.on('data', (chunk: Buffer) => {
      const query = chunk.subarray(2);
      const answer = overTcp?.(query, typeOf(query)) ?? Buffer.alloc(0);
      const length = Buffer.alloc(2);
      length.writeUInt16BE(answer.length);
      // In two parts: a stream has no packets.
      connection.write(length);
      connection.end(answer);
    });
    connection.on('error', () => {});
  }).listen(port, '127.0.0.1');
  await once(server, 'listening');
  return {
    port,
    asked,
    async [Symbol.asyncDispose]() {
      socket.close();
      server.close();
      await once(server, 'close');
    },
  };
}

function answer(query: Buffer, flags: number, addresses: readonly (readonly number[])[] = []): Buffer {
  const records = addresses.map((bytes) =>
    Buffer.from([0xc0, 12, 0, bytes.length === 4 ? 1 : 28, 0, 1, 0, 0, 0, 60, 0, bytes.length, ...bytes]),
  );
  const header = Buffer.from([
    query[0] ?? 0,
    query[1] ?? 0,
    flags >> 8,
    flags & 0xff,
    0,
    1,
    0,
    records.length,
    0,
    0,
    0,
    0,
  ]);
  return Buffer.concat([header, query.subarray(12), ...records]);
}

const OK = 0x8180;
const FOUR = [192, 0, 2, 1];
const SIX = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const both: Reply = (query, type) => answer(query, OK, [type === 1 ? FOUR : SIX]);

const lookup = (host: string, port: number, servers: readonly string[] = ['127.0.0.1']) =>
  resolveHost(host, { servers: async () => servers, mark: 0x4356, port, hostsFile, patienceMs: 2000 });

const isLookupError = (error: unknown) => isVpnError(error, 'ERR_NAME_LOOKUP');

test('both families are asked for, from ports of their own', { skip }, async () => {
  await using server = await serve(both);
  assert.deepEqual((await lookup('vpn.test', server.port)).toSorted(), ['192.0.2.1', '2001:db8::1']);
  assert.equal(new Set(server.asked.map(({ port }) => port)).size, 2);
});

test('one family is enough', { skip }, async () => {
  await using server = await serve((query, type) => answer(query, OK, type === 1 ? [FOUR] : []));
  assert.deepEqual(await lookup('vpn.test', server.port), ['192.0.2.1']);
});

test('the hosts file goes first and is not asked for', { skip }, async () => {
  await using server = await serve(both);
  assert.deepEqual(await lookup('listed.test', server.port), ['192.0.2.9', '2001:db8::9']);
  assert.equal(server.asked.length, 0);
});

test('a truncated answer is asked for over TCP', { skip }, async () => {
  await using server = await serve((query) => answer(query, OK | 0x0200), both);
  assert.deepEqual((await lookup('vpn.test', server.port)).toSorted(), ['192.0.2.1', '2001:db8::1']);
});

test('a server that is not there is passed over, and one that fails', { skip }, async () => {
  await using server = await serve(both);
  // Nothing listens on 127.0.0.2.
  assert.equal((await lookup('vpn.test', server.port, ['127.0.0.2', '127.0.0.1'])).length, 2);
  await using failing = await serve((query) => answer(query, 0x8182));
  await assert.rejects(lookup('vpn.test', failing.port), isLookupError);
});

test('a forged answer does not count', { skip }, async () => {
  await using server = await serve((query, type) => {
    const forged = both(query, type) ?? Buffer.alloc(0);
    forged[0] = (forged[0] ?? 0) ^ 1;
    return forged;
  });
  await assert.rejects(lookup('vpn.test', server.port), isLookupError);
});

test('a name that is none, that nobody knows, or without a server to ask, is an error that says so', {
  skip,
}, async () => {
  await using server = await serve((query) => answer(query, 0x8183));
  await assert.rejects(lookup('vpn.test', server.port), /there is no vpn\.test/);
  await assert.rejects(lookup('no such name', server.port), isLookupError);
  await assert.rejects(lookup('vpn.test', server.port, []), /no name server is known/);
});
