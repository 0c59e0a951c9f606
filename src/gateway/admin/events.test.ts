/** Events over real HTTP: only what has changed is sent, and whoever does not read is cut off. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, get, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect } from 'node:net';
import { test } from 'node:test';
import { ManualClock } from '../../base/clock.ts';
import type { AuditRecordInfo, GatewayStatus, SessionInfo } from '../../control/operations.ts';
import { EventFeed, type Topic } from './events.ts';

const session = (id: string, sentBytes = 0) => ({ id, sentBytes }) as SessionInfo;

/** A feed behind a server; what it sees is what a test sets. */
async function open(topics: Topic[]) {
  const clock = new ManualClock();
  const now = { sessions: [] as SessionInfo[], records: [] as AuditRecordInfo[], mayListen: true };
  const feed = new EventFeed({
    source: {
      sessions: async () => now.sessions,
      records: async () => now.records,
      status: async () => ({ sessions: 0 }) as GatewayStatus,
    },
    clock,
    failed: (error) => assert.fail(String(error)),
  });
  const ended = new AbortController();
  const server = createServer((_, response) => {
    feed.add(response, topics, { ended: ended.signal, mayListen: async () => now.mayListen });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  return {
    clock,
    now,
    feed,
    ended,
    port,
    [Symbol.asyncDispose]: async () => {
      await feed.stop();
      server.closeAllConnections();
      server.close();
    },
  };
}

/** What came, a line of data each. */
async function listen(port: number) {
  const [response] = (await once(get({ port, host: '127.0.0.1', agent: false }), 'response')) as [IncomingMessage];
  let text = '';
  response.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  response.on('error', () => {});
  const lines = () => [...text.matchAll(/^data: (.*)\n\n/gm)].map((match) => JSON.parse(match[1] ?? '') as unknown);
  return {
    lines,
    response,
    /** Waits for so many. */
    async have(count: number) {
      while (lines().length < count) await once(response, 'data');
      return lines();
    },
  };
}

test('a listener gets all sessions once, and then what has changed', async () => {
  await using rig = await open(['sessions']);
  rig.now.sessions = [session('a'), session('b')];
  const first = await listen(rig.port);
  await first.have(1);
  rig.now.sessions = [session('a', 5), session('c')];
  await rig.feed.look();
  await first.have(2);
  const second = await listen(rig.port);
  await second.have(1);
  await rig.feed.look();
  rig.now.sessions = [];
  await rig.feed.look();
  assert.deepEqual(await first.have(3), [
    { all: [session('a'), session('b')] },
    { changed: [session('a', 5), session('c')], removed: ['b'] },
    { changed: [], removed: ['a', 'c'] },
  ]);
  assert.deepEqual((await second.have(2))[0], { all: [session('a', 5), session('c')] });
});

test('ten thousand sessions come whole, and so does a change of each of them', async () => {
  await using rig = await open(['sessions']);
  const all = (sentBytes: number) =>
    Array.from(
      { length: 10_000 },
      (_, index): SessionInfo => ({
        id: index.toString(16).padStart(8, '0'),
        user: `a.rather.long.name.of.a.user.${index}`,
        device: index.toString(16).padStart(32, '0'),
        addresses: [`10.88.${index >> 8}.${index & 255}`, `fd12:3456:789a::${index.toString(16)}`],
        peer: `[2001:db8:1234:5678:9abc:def0:1234:5678]:${10_000 + index}`,
        waiting: false,
        superPackets: true,
        channels: 1,
        streams: 0,
        since: '2026-03-02T09:30:00.000Z',
        receivedBytes: 123_456_789,
        sentBytes,
        roundTripMs: 12.5,
      }),
    );
  rig.now.sessions = all(1);
  const listener = await listen(rig.port);
  await listener.have(1);
  rig.now.sessions = all(2);
  await rig.feed.look();
  const [first, second] = (await listener.have(2)) as [{ all: unknown[] }, { changed: unknown[]; removed: unknown[] }];
  assert.deepEqual([first.all.length, second.changed.length, second.removed.length], [10_000, 10_000, 0]);
});

test('who never reads is cut off at a bounded backlog, and others go on', async () => {
  await using rig = await open(['audit']);
  rig.now.records = [{ id: '0' } as AuditRecordInfo];
  const socket = connect(rig.port, '127.0.0.1');
  await once(socket, 'connect');
  socket.on('error', () => {});
  socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n');
  while (rig.feed.listeners < 1) await new Promise((resolve) => setImmediate(resolve));
  const reader = await listen(rig.port);
  await rig.feed.look();
  let sent = 0;
  for (; rig.feed.listeners === 2; sent++) {
    assert.ok(sent < 200, 'two hundred megabytes wait for somebody who does not read');
    rig.now.records = [{ id: String(sent + 1), reason: 'x'.repeat(1 << 20) } as AuditRecordInfo];
    await rig.feed.look();
    await reader.have(sent + 1);
  }
  assert.equal(rig.feed.listeners, 1);
  assert.equal(reader.response.complete, false, 'the other still listens');
  socket.destroy();
});

test('who has not read for too long is cut off, however little waits', async () => {
  await using rig = await open(['audit']);
  rig.now.records = [{ id: '0' } as AuditRecordInfo];
  const socket = connect(rig.port, '127.0.0.1');
  await once(socket, 'connect');
  socket.on('error', () => {});
  socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n');
  while (rig.feed.listeners < 1) await new Promise((resolve) => setImmediate(resolve));
  // Until the kernel takes no more, in pieces that are far from the bound.
  let id = 0;
  const look = async (reason: string) => {
    id += 1;
    rig.now.records = [{ id: String(id), reason } as AuditRecordInfo];
    await rig.feed.look();
    await new Promise((resolve) => setImmediate(resolve));
  };
  for (let count = 0; count < 60 && rig.feed.listeners === 1; count++) await look('x'.repeat(100_000));
  rig.clock.advance(20_000);
  for (let count = 0; count < 10 && rig.feed.listeners === 1; count++) await look('y');
  assert.equal(rig.feed.listeners, 0);
  socket.destroy();
});

test('who may not listen any more hears the end', async () => {
  await using rig = await open(['sessions']);
  const reader = await listen(rig.port);
  await reader.have(1);
  rig.now.mayListen = false;
  const ended = once(reader.response, 'end');
  for (let count = 0; count < 5; count++) await rig.feed.look();
  await ended;
});

test('a login that ends takes its listeners with it', async () => {
  await using rig = await open(['sessions']);
  const reader = await listen(rig.port);
  await reader.have(1);
  const ended = once(reader.response, 'end');
  rig.ended.abort();
  await ended;
});
