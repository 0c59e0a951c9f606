// What the streams of a worker keep of datagrams for clients that do not read; all else of them is in test/sim/proxy.test.ts.
import assert from 'node:assert/strict';
import { createSocket, type Socket } from 'node:dgram';
import { Duplex } from 'node:stream';
import { test } from 'node:test';
import { until } from '../../../test/support/world.ts';
import { systemClock } from '../../base/clock.ts';
import { silentLogger } from '../../base/log.ts';
import type { ProxyConnection, StreamRequest } from '../../transport/stream-request.ts';
import { gatewayConfigSchema } from '../config.ts';
import { Streams } from './streams.ts';

const BLOCK = Buffer.alloc(32_768);
const ALL_BYTES = 64 * 1024 * 1024;

/** A client's end that takes nothing until it is told to. */
class Unread extends Duplex {
  #isOpen = false;
  #taken: () => void = () => {};

  override _read(): void {}

  override _write(_chunk: unknown, _encoding: BufferEncoding, callback: () => void): void {
    if (this.#isOpen) callback();
    else this.#taken = callback;
  }

  drain(): void {
    this.#isOpen = true;
    this.#taken();
  }
}

test('datagrams for clients that do not read are bounded for each stream and for all together', async () => {
  const sockets: Socket[] = [];
  const never = async (): Promise<never> => assert.fail('nobody asks for that');
  const streams = new Streams({
    config: gatewayConfigSchema.parse({ pool: ['10.8.0.0/24'] }),
    clock: systemClock,
    log: silentLogger,
    auth: {
      bind: never,
      login: async () => ({ key: 'k', user: 'alice' }),
      traffic: () => {},
      release: () => {},
    },
    rates: { streamOpened: () => {}, streamClosed: () => {} },
    dialler: {
      dialTcp: never,
      isAllowed: never,
      dialUdp: async ({ target: { port } }) => {
        await new Promise((resolve) => setImmediate(resolve));
        const socket = createSocket('udp4');
        sockets[port - 1] = socket;
        return { socket, address: '192.0.2.1' };
      },
    },
  });
  const connection: ProxyConnection = {
    remote: { address: '192.0.2.9', port: 1 },
    exporter: () => new Uint8Array(32),
    admit: () => {},
    onClosed: () => {},
    end: () => {},
    destroy: () => {},
  };
  const ends: Unread[] = [];
  const open = (): void => {
    const end = new Unread();
    ends.push(end);
    const request: StreamRequest = {
      ...{ connection, authorization: 'basic YTpi', kind: 'udp', target: { host: '192.0.2.1', port: ends.length } },
      ...{ onGone: () => {}, challenge: () => assert.fail('it is known'), refuse: (why) => assert.fail(why) },
      accept: () => ({ duplex: end, reset: () => end.destroy() }),
    };
    streams.handle(request);
  };
  const waiting = (): number => ends.reduce((sum, { writableLength }) => sum + writableLength, 0);
  const say = (socket: Socket | undefined, times: number): void => {
    for (let i = 0; i < times; i += 1) socket?.emit('message', BLOCK);
  };
  for (let i = 0; i < 400; i += 1) open();
  await until(() => streams.counters.open === 400, 'the streams');
  say(sockets[0], 20);
  assert.ok(waiting() > 256 * 1024 && waiting() < 320 * 1024, `${waiting()} bytes of one`);
  for (const socket of sockets) say(socket, 20);
  assert.ok(waiting() > ALL_BYTES && waiting() < ALL_BYTES + 400 * 33_000, `${waiting()} bytes of all`);
  assert.ok(streams.counters.droppedDatagrams > 400 * 20 - ALL_BYTES / BLOCK.length - 400);
  // Those that read get theirs, also while the others do not.
  const before = streams.counters.droppedDatagrams;
  const [first] = ends;
  first?.drain();
  await until(() => first?.writableLength === 0, 'the first to read');
  say(sockets[0], 1);
  assert.equal(streams.counters.droppedDatagrams, before);
  for (const end of ends) end.destroy();
  await until(() => streams.counters.open === 0, 'their end');
  streams.stop();
});
