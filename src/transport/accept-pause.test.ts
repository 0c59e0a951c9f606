// A server that has no descriptor for a connection: what waits is not lost, and nothing is kept in the end.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { connect, createServer, type Server } from 'node:net';
import { test } from 'node:test';
import { openListenSocket } from '../os/socket.ts';
import { AcceptPause } from './accept-pause.ts';

const linux = { skip: process.platform === 'linux' ? false : 'descriptors are listed and limited on Linux only' };

interface Watched {
  server: Server;
  pause: AcceptPause;
  port: number;
  seen: { accepted: number; paused: number };
}

async function open(): Promise<Watched> {
  const { fd, port } = openListenSocket({ address: '127.0.0.1', port: 0 });
  const seen = { accepted: 0, paused: 0 };
  const server = createServer((socket) => {
    seen.accepted += 1;
    socket.end();
  });
  server.listen({ fd });
  await once(server, 'listening');
  const paused = (): void => {
    seen.paused += 1;
  };
  return { server, pause: new AcceptPause({ server, fd, backlog: 16, paused }), port, seen };
}

/** Takes every descriptor that this process may have. */
function takeAll(): number[] {
  const taken: number[] = [];
  for (;;) {
    try {
      taken.push(openSync('/dev/null', 'r'));
    } catch (error) {
      assert.equal((error as NodeJS.ErrnoException).code, 'EMFILE');
      return taken;
    }
  }
}

test(
  'connections wait while there is no descriptor, and get in when there is one, pause after pause',
  linux,
  async () => {
    const [, former = ''] = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
    const limit = (soft: string) => execFileSync('prlimit', ['--pid', String(process.pid), `--nofile=${soft}:`]);
    const { server, pause, port, seen } = await open();
    const taken: number[] = [];
    const giveAll = (): void => {
      for (const fd of taken.splice(0)) closeSync(fd);
    };
    limit(String(Math.max(...readdirSync('/proc/self/fd').map(Number)) + 16));
    try {
      for (let round = 1; round <= 3; round++) {
        taken.push(...takeAll());
        pause.look();
        pause.look();
        assert.deepEqual([server.listening, seen.paused], [false, round]);
        giveAll();
        const client = connect({ host: '127.0.0.1', port });
        await once(client, 'connect');
        assert.equal(seen.accepted, round - 1);
        pause.look();
        client.resume();
        await once(client, 'close');
        assert.equal(seen.accepted, round);
      }
    } finally {
      giveAll();
      limit(former);
      server.close();
      pause.close();
    }
  },
);

test('whether it waits or not, nothing is open after its end', linux, async () => {
  const before = readdirSync('/proc/self/fd').length;
  const { server, pause } = await open();
  pause.look();
  assert.equal(server.listening, true);
  server.close();
  pause.close();
  pause.close();
  pause.look();
  assert.equal(readdirSync('/proc/self/fd').length, before);
});
