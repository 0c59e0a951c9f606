// What a stream and a socket keep for each other: little of what is not read, in few writes, and never more than the process has.
import assert from 'node:assert/strict';
import { Socket } from 'node:net';
import { test } from 'node:test';
import { openSocketPair } from '../../test/support/tls-pair.ts';
import { until } from '../../test/support/world.ts';
import { INITIAL_WINDOW_BYTES } from '../protocol/stream-frame.ts';
import type { MuxStream, StreamSink } from '../protocol/stream-mux.ts';
import { QueueBudget } from './queue-budget.ts';
import type { SpliceOutcome } from './splice.ts';
import { StreamConnection } from './stream-connection.ts';
import { StreamEnd } from './stream-end.ts';

const MIB = 1 << 20;
/** A chunk for little. */
const SMALL_BYTES = 4096;

/** A connection to a server that takes nothing until it is told to. */
class Unread extends Socket {
  /** Lengths of what was written, one number a write. */
  readonly writes: number[] = [];
  written = '';
  #taken: (() => void)[] = [];

  override _write(chunk: Uint8Array, _encoding: BufferEncoding, callback: () => void): void {
    this._writev([{ chunk }], callback);
  }

  override _writev(chunks: readonly { chunk: Uint8Array }[], callback: () => void): void {
    for (const { chunk } of chunks) {
      this.writes.push(chunk.length);
      if (chunk.length < 1000) this.written += Buffer.from(chunk).toString('latin1');
    }
    this.#taken.push(callback);
  }

  override _read(): void {}

  override _final(callback: () => void): void {
    callback();
  }

  /** Takes what has been written. */
  drain(): void {
    for (const taken of this.#taken.splice(0)) taken();
  }
}

/** One that has been joined with a stream, at the gateway. */
interface Joined {
  readonly stream: MuxStream;
  readonly socket: Unread;
  outcome: SpliceOutcome | undefined;
}

class Ear implements StreamSink {
  isBroken = false;
  readonly #opened: () => void;

  constructor(opened: () => void) {
    this.#opened = opened;
  }

  opened(): void {
    this.#opened();
  }

  broken(): void {
    this.isBroken = true;
  }

  bytes(): void {}
  ended(): void {}
  room(): void {}
}

/** A connection for streams over TLS; each stream is joined with a server that reads nothing. */
async function open(queues: QueueBudget) {
  const sockets = await openSocketPair();
  const joined: Joined[] = [];
  const windows = { maxWindowBytes: MIB, windowBudgetBytes: 16 * MIB };
  const server: StreamConnection = new StreamConnection(sockets.server, {
    ...windows,
    role: 'server',
    queues,
    onBind: () => server.mux.answerBind('yes'),
    onWanted: (stream) => {
      const end = new StreamEnd(stream);
      stream.accept();
      const one: Joined = { stream, socket: new Unread(), outcome: undefined };
      joined.push(one);
      end.join(one.socket, (outcome) => {
        one.outcome = outcome;
      });
    },
    closed: () => {},
  });
  const client = new StreamConnection(sockets.client, { ...windows, role: 'client', closed: () => {} });
  client.mux.bind('right');
  const openStream = async (): Promise<{ mine: MuxStream; ear: Ear; theirs: Joined }> => {
    const { promise, resolve } = Promise.withResolvers<void>();
    const ear = new Ear(resolve);
    const mine = client.mux.open({ kind: 'tcp', host: '192.0.2.1', port: 7 }, ear);
    await promise;
    const theirs = joined.find(({ stream }) => stream.id === mine.id);
    assert.ok(theirs);
    return { mine, ear, theirs };
  };
  return {
    server,
    sockets,
    openStream,
    [Symbol.dispose]: () => {
      client.destroy();
      server.destroy();
    },
  };
}

const letters = (length: number, letter = 'a'): Uint8Array => Buffer.alloc(length, letter);

test('frames that come while a write is under way are gathered into the next one', async () => {
  using rig = await open(new QueueBudget());
  const { mine, theirs } = await rig.openStream();
  const { socket, stream } = theirs;
  const received = (bytes: number): Promise<true> =>
    until(() => stream.receiveCredit === INITIAL_WINDOW_BYTES - bytes, `${bytes} bytes at the gateway`);
  mine.send(letters(1), 0, 1);
  await received(1);
  for (let i = 2; i <= 300; i += 1) {
    mine.send(letters(1, String(i % 10)), 0, 1);
    await received(i);
  }
  assert.deepEqual(socket.writes, [1]);
  assert.equal(rig.server.mux.memory.heldBytes, 2 * SMALL_BYTES, 'one that is written, and one that is gathered');
  socket.drain();
  await until(() => socket.writes.length === 2, 'the next write');
  assert.deepEqual(socket.writes, [1, 299]);
  assert.equal(socket.written, `a${Array.from({ length: 299 }, (_, i) => (i + 2) % 10).join('')}`);
  mine.send(letters(2), 0, 2);
  mine.end();
  await until(() => socket.writableEnded, 'the end');
  socket.drain();
  await until(() => socket.writes.length === 3, 'what came before the end');
  socket.drain();
  await until(() => rig.server.mux.memory.heldBytes === 0, 'nothing that is held');
  assert.equal(socket.written.slice(-2), 'aa');
});

test('a frame larger than a chunk, and many that fill chunks, arrive whole', async () => {
  using rig = await open(new QueueBudget());
  const { mine, theirs } = await rig.openStream();
  const { socket } = theirs;
  let sent = 0;
  for (const length of [3000, 3000, 30_000, 5, 29_000]) {
    mine.send(letters(length), 0, length);
    sent += length;
    await until(() => theirs.stream.receiveCredit === INITIAL_WINDOW_BYTES - sent, 'the bytes');
  }
  assert.ok(rig.server.mux.memory.heldBytes <= 2 * INITIAL_WINDOW_BYTES + 2 * SMALL_BYTES);
  while (socket.writes.reduce((sum, length) => sum + length, 0) < sent) {
    socket.drain();
    await new Promise((resolve) => setImmediate(resolve));
  }
  socket.drain();
  await until(() => rig.server.mux.memory.heldBytes === 0, 'nothing that is held');
  assert.ok(socket.writes.length <= 4, `${socket.writes.length} writes`);
});

test('what streams hold that nobody reads is bounded: the connection that holds the most loses its longest', async () => {
  const queues = new QueueBudget(4 * MIB);
  using hoarder = await open(queues);
  using modest = await open(queues);
  const small = await modest.openStream();
  small.mine.send(letters(10), 0, 10);
  await until(() => small.theirs.socket.writes.length === 1, 'a little');
  const streams: Awaited<ReturnType<typeof hoarder.openStream>>[] = [];
  let most = 0;
  for (let i = 0; i < 200; i += 1) {
    const one = await hoarder.openStream();
    streams.push(one);
    one.mine.send(letters(INITIAL_WINDOW_BYTES), 0, INITIAL_WINDOW_BYTES);
    const { theirs } = one;
    await until(() => theirs.stream.receiveCredit === 0 || theirs.stream.isGone, 'all that there is credit for');
    most = Math.max(most, queues.heldBytes);
    assert.ok(hoarder.server.mux.memory.heldBytes < queues.heldBytes);
  }
  assert.ok(most <= 4 * MIB && most > 2 * MIB, `${most} bytes`);
  const cut = streams.filter(({ theirs }) => theirs.outcome === 'broken');
  assert.ok(cut.length >= 200 - 64 && cut.length < 200, `${cut.length} streams were cut`);
  assert.ok(cut.every(({ theirs }) => theirs.socket.destroyed && theirs.stream.isBroken));
  await until(() => cut.every(({ ear }) => ear.isBroken), 'the client to hear of it');
  assert.ok(!small.ear.isBroken && small.theirs.outcome === undefined);
  assert.ok(!hoarder.server.isClosed);
  for (const { mine } of streams) mine.reset();
  assert.equal(modest.server.mux.memory.heldBytes, SMALL_BYTES);
  await until(() => queues.heldBytes === INITIAL_WINDOW_BYTES, 'what the others hold');
});

test('the same holds for what a client does not read, and for streams whose client has said its last word', async () => {
  const queues = new QueueBudget(2 * MIB);
  using rig = await open(queues);
  const streams = await Promise.all(Array.from({ length: 100 }, () => rig.openStream()));
  rig.sockets.client.pause();
  const said = streams.slice(0, 10);
  for (const { mine } of said) {
    mine.send(letters(30_000), 0, 30_000);
    mine.end();
  }
  await until(() => said.every(({ theirs }) => theirs.socket.writableEnded), 'their ends');
  for (const { theirs } of said) theirs.stream.end();
  let most = 0;
  for (const { theirs } of streams.slice(10)) {
    for (let i = 0; i < 4 && !theirs.stream.isFull && !theirs.stream.isGone; i += 1) {
      theirs.stream.send(letters(60_000), 0, 60_000);
      most = Math.max(most, queues.heldBytes);
    }
  }
  assert.ok(most <= 2 * MIB && most > MIB, `${most} bytes`);
  assert.ok(streams.some(({ theirs }) => theirs.outcome === 'broken'));
  rig.sockets.client.destroy();
  await until(() => rig.server.isClosed, 'the end of the connection');
  for (const { theirs } of said) theirs.socket.drain();
  await until(() => queues.heldBytes === 0, 'nothing that is held');
});
