// A server that has no descriptor for a connection: what waits is not lost, and nothing is kept in the end.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { test } from 'node:test';
import { openListenSocket } from '../os/socket.ts';
import { AcceptPause } from './accept-pause.ts';

const linux = { skip: process.platform === 'linux' ? false : 'descriptors are listed on Linux only' };
const exhausted = Object.assign(new Error('accept EMFILE'), { code: 'EMFILE' });

async function open(): Promise<{ server: Server; pause: AcceptPause; port: number; accepted: () => number }> {
  const { fd, port } = openListenSocket({ address: '127.0.0.1', port: 0 });
  let accepted = 0;
  const server = createServer((socket) => {
    accepted += 1;
    socket.end();
  });
  server.listen({ fd });
  await once(server, 'listening');
  return { server, pause: new AcceptPause(server, fd, 16), port, accepted: () => accepted };
}

test(
  'connections wait while there is no descriptor, and are accepted afterwards, pause after pause',
  linux,
  async () => {
    const { server, pause, port, accepted } = await open();
    for (let round = 1; round <= 3; round++) {
      assert.equal(pause.failed(exhausted), true);
      assert.equal(server.listening, false);
      assert.equal(pause.failed(exhausted), false, 'it waits already');
      const client = connect({ host: '127.0.0.1', port });
      await once(client, 'connect');
      assert.equal(accepted(), round - 1);
      client.resume();
      await once(client, 'close');
      assert.equal(accepted(), round);
    }
    assert.equal(pause.failed(Object.assign(new Error('accept ECONNABORTED'), { code: 'ECONNABORTED' })), false);
    server.close();
    pause.close();
  },
);

test('whether it waits or not, nothing is open after its end', linux, async () => {
  const before = readdirSync('/proc/self/fd').length;
  for (const waits of [false, true]) {
    const { server, pause } = await open();
    if (waits) pause.failed(exhausted);
    else server.close();
    pause.close();
    pause.close();
    assert.equal(server.listening, false);
  }
  assert.equal(readdirSync('/proc/self/fd').length, before);
});
