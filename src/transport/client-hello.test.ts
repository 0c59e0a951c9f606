/** The worker that a client asks for, as Node's own ClientHello says it, and that nothing else is ever taken for one. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { connect } from 'node:tls';
import fc from 'fast-check';
import { requestedWorker } from './client-hello.ts';
import { tunnelProtocols } from './tls.ts';

/** The first bytes that a TLS client with these protocols sends. */
async function helloWith(protocols: string[]): Promise<Buffer> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  const client = connect({ port, host: '127.0.0.1', ALPNProtocols: protocols, rejectUnauthorized: false });
  client.on('error', () => {});
  const [raw] = await once(server, 'connection');
  const chunks: Buffer[] = [];
  for await (const chunk of raw as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    const all = Buffer.concat(chunks);
    if (all.length >= 5 && all.length >= 5 + all.readUInt16BE(3)) break;
  }
  client.destroy();
  server.close();
  return Buffer.concat(chunks);
}

test('REQ-TLS-008: the worker that a client asks for is read from its ClientHello', async () => {
  for (const worker of [0, 7, 63, 255]) assert.equal(requestedWorker(await helloWith(tunnelProtocols(worker))), worker);
});

test('a tunnel without a worker is for any', async () => {
  assert.equal(requestedWorker(await helloWith(tunnelProtocols())), 'any');
  assert.equal(requestedWorker(await helloWith(['h2', 'customvpn/1'])), 'any');
});

test('clients that ask for no tunnel are nobody else’s', async () => {
  for (const protocols of [['h2', 'http/1.1'], ['customvpn/1+x'], ['customvpn/10'], ['xcustomvpn/1+1']]) {
    assert.equal(requestedWorker(await helloWith(protocols)), undefined);
  }
});

test('a ClientHello that is cut short, or no ClientHello, asks for no worker', async () => {
  const whole = await helloWith(tunnelProtocols(3));
  const end = 5 + whole.readUInt16BE(3);
  for (let length = 0; length < end; length += 7) {
    const worker = requestedWorker(whole.subarray(0, length));
    assert.ok(worker === undefined || worker === 'any' || worker === 3, `${length}`);
  }
  assert.equal(requestedWorker(Buffer.from('GET / HTTP/1.1\r\n\r\n')), undefined);
});

test('no bytes make it fail', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
      requestedWorker(Uint8Array.of(0x16, 3, 1, 0, 0, 1, ...bytes));
    }),
  );
});
