/**
 * Pacing, order, ownership of bytes, bounds and ends of a channel, over real TLS on loopback. The frames are of a type that
 * is never dropped, so that all are accounted for; what is dropped of packets is the queue's own test.
 */

import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { duplexPair } from 'node:stream';
import { test } from 'node:test';
import { ANY_FACTS, FrameCollector, openChannelPair, openSocketPairOver } from '../../test/support/tls-pair.ts';
import { isVpnError, VpnError } from '../base/errors.ts';
import { encodeFrame, FrameType, writeFrameHeader } from '../protocol/frame.ts';
import { Channel, type SendGate } from './channel.ts';

const MIB = 1024 * 1024;

/** Writes a frame at `offset`: its payload begins with a number and repeats the number's lowest byte. */
function putFrame(bytes: Uint8Array, offset: number, number: number, length: number): void {
  writeFrameHeader(bytes, offset, FrameType.echo, length);
  bytes.fill(number, offset + 4, offset + 4 + length);
  new DataView(bytes.buffer, bytes.byteOffset).setUint32(offset + 4, number);
}

function checkFrame(payload: Uint8Array, number: number, length: number): void {
  assert.equal(payload.length, length);
  assert.equal(new DataView(payload.buffer, payload.byteOffset).getUint32(0), number);
  assert.ok(Buffer.from(payload.subarray(4)).equals(Buffer.alloc(length - 4, number & 0xff)));
}

/** A gate that a test opens and shuts. */
class ManualGate implements SendGate {
  isOpen = true;
  isClosed = false;
  wroteBytes = 0;
  #waiting: (() => void) | undefined;

  wrote(bytes: number): void {
    this.wroteBytes += bytes;
  }

  unsent(): number {
    return this.isOpen ? 0 : MIB;
  }

  whenWritable(callback: () => void): void {
    this.#waiting = callback;
  }

  open(): void {
    this.isOpen = true;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.();
  }

  unacknowledged(): number {
    return 0;
  }

  read(): boolean {
    return false;
  }

  close(): void {
    this.isClosed = true;
  }
}

test('REQ-CHANNEL-001: the bytes given to sendData may be overwritten at once, written directly or queued', async () => {
  const { server, client } = await openChannelPair();
  const lengths = Array.from({ length: 1500 }, (_, i) => [40, 1400, 65_575, 16_000, 4][i % 5] ?? 4);
  const buffer = new Uint8Array(70_000);
  let sent = 0;
  let received = 0;
  let refusals = 0;
  const done = Promise.withResolvers<void>();
  const pump = (): void => {
    for (; sent < lengths.length; sent++) {
      const length = lengths[sent] ?? 0;
      putFrame(buffer, 12, sent, length);
      const taken = server.sendData(buffer, 12, 16 + length);
      buffer.fill(0xee);
      if (taken) continue;
      refusals += 1;
      return;
    }
  };
  server.start(new FrameCollector(undefined, pump));
  pump();
  assert.ok(refusals > 0, 'the peer does not read yet: the queue must have filled');
  const collector = new FrameCollector((_type, payload) => {
    checkFrame(payload, received, lengths[received] ?? 0);
    received += 1;
    if (received === lengths.length) done.resolve();
  });
  client.start(collector);
  await collector.until(done.promise);
  assert.equal(server.counters.refused, refusals);
  assert.ok(server.counters.writes < lengths.length, 'small frames go together');
  server.destroy();
  client.destroy();
});

test('the same holds when every single frame finds nothing in flight', async () => {
  const { server, client } = await openChannelPair();
  const buffer = new Uint8Array(70_000);
  let sent = 0;
  const done = Promise.withResolvers<void>();
  const sendNext = (): void => {
    putFrame(buffer, 0, sent, 65_575);
    assert.equal(server.sendData(buffer, 0, 65_579), true);
    buffer.fill(0xee);
    assert.equal(server.queuedBytes, 0, 'written at once');
    sent += 1;
  };
  server.start(new FrameCollector());
  const collector = new FrameCollector((_type, payload) => {
    checkFrame(payload, sent - 1, 65_575);
    if (sent === 50) done.resolve();
    else setImmediate(() => setImmediate(sendNext));
  });
  client.start(collector);
  sendNext();
  await collector.until(done.promise);
  server.destroy();
  client.destroy();
});

test('REQ-CHANNEL-002: a control frame passes queued data, between two frames', async () => {
  const { server, client } = await openChannelPair();
  const bytes = new Uint8Array(1404);
  let sent = 0;
  for (;;) {
    putFrame(bytes, 0, sent, 1400);
    if (!server.sendData(bytes, 0, 1404)) break;
    sent += 1;
  }
  assert.ok(server.queuedBytes > MIB - 2000);
  const ping = encodeFrame(FrameType.ping, new Uint8Array(8));
  server.sendControl(ping);
  ping.fill(0xee);
  const done = Promise.withResolvers<void>();
  let received = 0;
  let position = -1;
  const collector = new FrameCollector((type, payload) => {
    if (type === FrameType.ping) {
      position = received;
      assert.deepEqual(payload, new Uint8Array(8));
    } else {
      checkFrame(payload, received, 1400);
      received += 1;
    }
    if (received === sent) done.resolve();
  });
  client.start(collector);
  await collector.until(done.promise);
  assert.ok(position >= 0 && position < sent - 700, `came after ${position} of ${sent} frames`);
  server.destroy();
  client.destroy();
});

test('REQ-CHANNEL-003: a peer that never reads costs a bounded amount of memory; REQ-CHANNEL-004: closing waits a second', async () => {
  const { server, client } = await openChannelPair({ dataQueueBytes: 256 * 1024 });
  const collector = new FrameCollector();
  server.start(collector);
  const bytes = encodeFrame(FrameType.echo, new Uint8Array(65_000));
  const before = process.memoryUsage().arrayBuffers;
  let refused = 0;
  for (let turn = 0; turn < 200; turn++) {
    for (let i = 0; i < 50; i++) if (!server.sendData(bytes, 0, bytes.length)) refused += 1;
    await new Promise(setImmediate);
  }
  assert.ok(refused > 9000);
  assert.ok(server.queuedBytes <= 256 * 1024);
  assert.ok(server.heldBytes <= 256 * 1024);
  assert.ok(server.counters.sentBytes < 32 * MIB, 'what went out stands in the kernel');
  assert.ok(process.memoryUsage().arrayBuffers - before < 8 * MIB);
  const closedAt = performance.now();
  server.close(encodeFrame(FrameType.close, new Uint8Array(2)));
  assert.equal(await collector.end, undefined);
  assert.ok(performance.now() - closedAt > 900, 'the peer had its second');
  client.destroy();
});

test('REQ-CHANNEL-003: a peer that lets control frames pile up is given up with ERR_PEER_GONE', async () => {
  const { server, client } = await openChannelPair();
  const collector = new FrameCollector();
  server.start(collector);
  const bytes = encodeFrame(FrameType.config, new Uint8Array(200_000));
  for (let i = 0; i < 10_000 && !server.isClosed; i++) {
    server.sendControl(bytes);
    await new Promise(setImmediate);
    assert.ok(server.queuedBytes <= MIB);
  }
  assert.ok(isVpnError(await collector.end, 'ERR_PEER_GONE'));
  client.destroy();
});

test('two ends that send and echo at once, in random sizes, never block each other', async () => {
  const { server, client } = await openChannelPair({ dataQueueBytes: 128 * 1024 });
  const requests = 3000;
  const ends = [server, client].map((channel) => ({ channel, sent: 0, seen: 0, echoed: 0, answers: 0 }));
  const done = Promise.withResolvers<void>();
  const check = (): void => {
    const [a, b] = ends;
    if (a === undefined || b === undefined) return;
    if (a.seen === requests && b.seen === requests && a.answers === b.echoed && b.answers === a.echoed) done.resolve();
  };
  const scratch = new Uint8Array(65_579);
  for (const end of ends) {
    const pump = (): void => {
      while (end.sent < requests) {
        const length = randomInt(10) === 0 ? randomInt(1, 65_575) : randomInt(1, 1500);
        writeFrameHeader(scratch, 0, FrameType.echo, length);
        if (!end.channel.sendData(scratch, 0, 4 + length)) return;
        end.sent += 1;
      }
    };
    end.channel.start(
      new FrameCollector((type, payload) => {
        if (type === FrameType.pong) {
          end.answers += 1;
        } else {
          end.seen += 1;
          const answer = encodeFrame(FrameType.pong, payload);
          if (end.channel.sendData(answer, 0, answer.length)) end.echoed += 1;
        }
        check();
      }, pump),
    );
    pump();
  }
  await done.promise;
  for (const { channel, echoed } of ends) {
    assert.ok(echoed > 0);
    channel.destroy();
  }
});

test('nothing is written while the kernel has enough unsent bytes', async () => {
  const gate = new ManualGate();
  const { server, client } = await openChannelPair({ openGate: () => gate });
  const types: number[] = [];
  const done = Promise.withResolvers<void>();
  const collector = new FrameCollector((type) => {
    types.push(type);
    if (types.length === 3) done.resolve();
  });
  client.start(collector);
  const packet = encodeFrame(FrameType.echo, new Uint8Array(100));
  gate.isOpen = false;
  assert.equal(server.sendData(packet, 0, packet.length), true);
  assert.equal(server.sendData(packet, 0, packet.length), true);
  server.sendControl(encodeFrame(FrameType.ping, new Uint8Array(0)));
  assert.deepEqual({ ...server.counters, refused: 0 }, { ...server.counters, writes: 0, gateWaits: 1 });
  assert.equal(server.queuedBytes, 212);
  gate.open();
  await collector.until(done.promise);
  assert.deepEqual(types, [FrameType.ping, FrameType.echo, FrameType.echo]);
  server.destroy();
  assert.equal(gate.isClosed, true);
  client.destroy();
});

test('the kernel gate opens again by itself, and a destroyed channel is closed on the wire', async () => {
  const { server, client } = await openChannelPair();
  const bytes = encodeFrame(FrameType.echo, new Uint8Array(60_000));
  while (server.sendData(bytes, 0, bytes.length)) await new Promise(setImmediate);
  if (process.platform === 'linux') assert.ok(server.counters.gateWaits > 0);
  const drained = Promise.withResolvers<void>();
  server.start(new FrameCollector(undefined, drained.resolve));
  const collector = new FrameCollector();
  client.start(collector);
  await drained.promise;
  server.destroy();
  await collector.end;
  client.destroy();
});

test('it works over streams that have no descriptor', async () => {
  const [a, b] = duplexPair();
  const sockets = await openSocketPairOver(a, b);
  const server = new Channel(sockets.server, { facts: ANY_FACTS });
  const client = new Channel(sockets.client, { facts: ANY_FACTS });
  const got = Promise.withResolvers<Uint8Array>();
  client.start(new FrameCollector((_type, payload) => got.resolve(Uint8Array.from(payload))));
  const bytes = encodeFrame(FrameType.echo, new Uint8Array(60_000).fill(7));
  assert.equal(server.sendData(bytes, 0, bytes.length), true);
  bytes.fill(0);
  assert.deepEqual(await got.promise, new Uint8Array(60_000).fill(7));
  server.destroy();
  client.destroy();
});

test('REQ-CHANNEL-004: close sends the final frame in front of queued data, and ends without an error at both ends', async () => {
  const { server, client } = await openChannelPair();
  const packet = encodeFrame(FrameType.echo, new Uint8Array(1400));
  while (server.sendData(packet, 0, packet.length));
  const collector = new FrameCollector();
  server.start(collector);
  server.close(encodeFrame(FrameType.close, new Uint8Array([1, 2])));
  assert.equal(server.isClosed, true);
  assert.equal(server.queuedBytes, 6, 'data is forgotten');
  assert.equal(server.sendData(packet, 0, packet.length), false);
  server.sendControl(packet);
  assert.equal(server.queuedBytes, 6);
  const types: number[] = [];
  const other = new FrameCollector((type) => types.push(type));
  client.start(other);
  assert.equal(await other.end, undefined);
  assert.equal(types.at(-1), FrameType.close);
  assert.equal(await collector.end, undefined);
});

test('after close nothing is delivered, though the final frame still waits and the peer goes on sending', async () => {
  const gate = new ManualGate();
  const { server, client } = await openChannelPair({ openGate: () => gate });
  const packet = encodeFrame(FrameType.echo, new Uint8Array(20_000));
  gate.isOpen = false;
  server.sendData(packet, 0, packet.length);
  let received = 0;
  const collector = new FrameCollector(() => {
    received += 1;
    server.close(encodeFrame(FrameType.close, new Uint8Array(2)));
  });
  server.start(collector);
  client.start(new FrameCollector());
  for (let i = 0; i < 20; i++) client.sendData(packet, 0, packet.length);
  assert.equal(await collector.end, undefined);
  assert.equal(received, 1);
  client.destroy();
});

test('what the handler throws closes the channel with that error', async () => {
  const { server, client } = await openChannelPair();
  const end = Promise.withResolvers<VpnError | undefined>();
  server.start({
    bytes: () => {
      throw new VpnError('ERR_FRAME_TYPE', 'no such frame');
    },
    closed: end.resolve,
  });
  const other = new FrameCollector();
  client.start(other);
  client.sendControl(encodeFrame(FrameType.ping, new Uint8Array(0)));
  assert.ok(isVpnError(await end.promise, 'ERR_FRAME_TYPE'));
  await other.end;
});

test('a lost connection is ERR_PEER_GONE', async () => {
  const { server, client } = await openChannelPair();
  const collector = new FrameCollector();
  server.start(collector);
  const packet = encodeFrame(FrameType.echo, new Uint8Array(60_000));
  while (server.sendData(packet, 0, packet.length)) await new Promise(setImmediate);
  // The kernel resets a connection that is closed with bytes unread.
  client.destroy();
  assert.ok(isVpnError(await collector.end, 'ERR_PEER_GONE'));
});

test('a channel that closed before it was started says so', async () => {
  const { server, client } = await openChannelPair();
  server.destroy(new VpnError('ERR_STAGE_TIMEOUT', 'too slow'));
  const collector = new FrameCollector();
  server.start(collector);
  assert.ok(isVpnError(await collector.end, 'ERR_STAGE_TIMEOUT'));
  client.destroy();
});

test('both ends have the same keying material; another label or context gives other bytes', async () => {
  const { server, client } = await openChannelPair();
  const label = 'EXPORTER-customvpn-1-session';
  const context = new Uint8Array(32).fill(1);
  const ours = server.exporter(label, context);
  assert.equal(ours.length, 32);
  assert.deepEqual(client.exporter(label, context), ours);
  assert.notDeepEqual(client.exporter(label, new Uint8Array(0)), ours);
  assert.notDeepEqual(client.exporter('EXPORTER-customvpn-1-auth', context), ours);
  assert.deepEqual(client.exporter(label, new Uint8Array(0)), server.exporter(label, new Uint8Array(0)));
  server.destroy();
  assert.throws(
    () => server.exporter(label, context),
    (error) => isVpnError(error, 'ERR_PEER_GONE'),
  );
  client.destroy();
});

test('memory for a burst is given back when the queues are idle', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const { server, client } = await openChannelPair();
  const packet = encodeFrame(FrameType.echo, new Uint8Array(60_000));
  for (let i = 0; i < 10; i++) server.sendData(packet, 0, packet.length);
  assert.ok(server.heldBytes >= 500_000);
  let received = 0;
  const done = Promise.withResolvers<void>();
  const collector = new FrameCollector(() => {
    received += 1;
    if (received === 10) done.resolve();
  });
  client.start(collector);
  await collector.until(done.promise);
  t.mock.timers.tick(5000);
  assert.ok(server.heldBytes > 0);
  t.mock.timers.tick(5000);
  assert.equal(server.heldBytes, 0);
  server.destroy();
  client.destroy();
});

/** The payloads that have come, copied. */
class Payloads {
  readonly payloads: Uint8Array[] = [];
  #wanted = 0;
  #reached = Promise.withResolvers<void>();
  readonly collector = new FrameCollector((_type, payload) => {
    this.payloads.push(Uint8Array.from(payload));
    if (this.payloads.length >= this.#wanted) this.#reached.resolve();
  });

  async until(count: number): Promise<void> {
    this.#wanted = count;
    this.#reached = Promise.withResolvers();
    if (this.payloads.length < count) await this.collector.until(this.#reached.promise);
  }
}

test('the last frame goes behind all data that waits and behind no control frame, and no data is taken after it', async () => {
  const gate = new ManualGate();
  gate.isOpen = false;
  const { server, client } = await openChannelPair({ openGate: () => gate });
  const frames = new Payloads();
  client.start(frames.collector);
  server.start({ bytes: () => {}, closed: () => {} });
  const bytes = new Uint8Array(1004);
  for (let number = 0; number < 100; number++) {
    putFrame(bytes, 0, number, 1000);
    assert.equal(server.sendData(bytes, 0, bytes.length), true);
  }
  let sent = 0;
  server.sendLast(encodeFrame(FrameType.switch, Buffer.from('last')), () => {
    sent += 1;
  });
  assert.equal(sent, 0);
  assert.equal(server.sendData(bytes, 0, bytes.length), false);
  assert.equal(server.deferData(bytes, 0, bytes.length), false);
  server.sendLast(encodeFrame(FrameType.switch, Buffer.from('again')), () => assert.fail('there is one last frame'));
  server.sendControl(encodeFrame(FrameType.pong, Buffer.from('control')));
  gate.open();
  await frames.until(102);
  assert.equal(sent, 1);
  assert.equal(frames.payloads[0] && Buffer.from(frames.payloads[0]).toString(), 'control');
  for (let number = 0; number < 100; number++) checkFrame(frames.payloads[number + 1] ?? bytes, number, 1000);
  assert.equal(Buffer.from(frames.payloads[101] ?? []).toString(), 'last');
  server.sendControl(encodeFrame(FrameType.pong, Buffer.from('on it')));
  await frames.until(103);
  server.destroy();
  client.destroy();
});

test('a channel that is closed before its last frame could go never says that it went', async () => {
  const gate = new ManualGate();
  gate.isOpen = false;
  const { server, client } = await openChannelPair({ openGate: () => gate });
  server.start({ bytes: () => {}, closed: () => {} });
  const bytes = new Uint8Array(1004);
  putFrame(bytes, 0, 1, 1000);
  server.sendData(bytes, 0, bytes.length);
  server.sendLast(encodeFrame(FrameType.switch, Buffer.from('last')), () => assert.fail('it was never sent'));
  server.close();
  gate.open();
  server.destroy();
  client.destroy();
});

test('a paused channel leaves what comes to the kernel, and goes on where it stopped', async () => {
  const { server, client } = await openChannelPair();
  const frames = new Payloads();
  client.start(frames.collector);
  server.start({ bytes: () => {}, closed: () => {} });
  const bytes = new Uint8Array(60_004);
  let number = 0;
  const send = (): boolean => {
    putFrame(bytes, 0, number, 60_000);
    const isTaken = server.sendData(bytes, 0, bytes.length);
    if (isTaken) number += 1;
    return isTaken;
  };
  send();
  await frames.until(1);
  client.pause();
  // More than all buffers on the way: the sender is stopped.
  while (send());
  const received = client.counters.receivedBytes;
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.ok(client.counters.receivedBytes - received < MIB, 'what had been read already');
  client.resume();
  await frames.until(number);
  for (let index = 0; index < number; index++) checkFrame(frames.payloads[index] ?? bytes, index, 60_000);
  server.destroy();
  client.destroy();
});
