/** Reading without the stream gives the same bytes in the same order, and is what happens on this Node. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { openSocketPair } from '../../test/support/tls-pair.ts';
import { readDirectly } from './direct-read.ts';

/** Bytes that tell a lost, repeated or swapped piece. */
function pattern(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i + 4 <= length; i += 4) bytes.writeUInt32BE(i, i);
  return bytes;
}

test('this version of Node has the fields: no buffer is allocated for what is read', async () => {
  const { server, client } = await openSocketPair();
  assert.equal(
    readDirectly(server, () => {}),
    true,
  );
  server.destroy();
  client.destroy();
});

test('everything arrives once and in order, what the stream held already first', async () => {
  const { server, client } = await openSocketPair();
  const sent = pattern(1_000_000);
  const early = once(server, 'readable');
  client.write(sent.subarray(0, 5000));
  await early;
  const received: Buffer[] = [];
  const take = (bytes: Uint8Array): void => void received.push(Buffer.copyBytesFrom(bytes));
  readDirectly(server, take);
  server.on('data', take);
  const ended = once(server, 'end');
  client.end(sent.subarray(5000));
  await ended;
  assert.ok(Buffer.concat(received).equals(sent));
  server.destroy();
});

test('two sockets share the buffer without mixing their bytes', async () => {
  const pairs = [await openSocketPair(), await openSocketPair()] as const;
  const sent = [Buffer.alloc(300_000, 1), Buffer.alloc(300_000, 2)] as const;
  await Promise.all(
    pairs.map(async ({ server, client }, index) => {
      const received: Buffer[] = [];
      const take = (bytes: Uint8Array): void => void received.push(Buffer.copyBytesFrom(bytes));
      readDirectly(server, take);
      server.on('data', take);
      const ended = once(server, 'end');
      client.end(sent[index] ?? Buffer.alloc(0));
      await ended;
      assert.ok(Buffer.concat(received).equals(sent[index] ?? Buffer.alloc(0)));
      server.destroy();
    }),
  );
});

test('a socket that has ended is left alone', async () => {
  const { server, client } = await openSocketPair();
  const closed = once(server, 'close');
  server.destroy();
  client.destroy();
  await closed;
  assert.equal(
    readDirectly(server, () => {}),
    false,
  );
});
