import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { NO_OFFLOAD } from '../ip/super-packet.ts';
import { PACKET_OFFSET, type TunReader } from './tun.ts';
import { MemoryTun } from './tun-memory.ts';

interface Seen {
  text: string;
  gsoType: number;
  flags: number;
  gsoSize: number;
}

function collector(): { reader: TunReader; seen: Seen[]; idles: number[] } {
  const seen: Seen[] = [];
  const idles: number[] = [];
  const reader: TunReader = {
    packet(bytes, length, gsoType, flags, gsoSize) {
      const text = new TextDecoder().decode(bytes.slice(PACKET_OFFSET, PACKET_OFFSET + length));
      seen.push({ text, gsoType, flags, gsoSize });
    },
    idle: () => idles.push(seen.length),
  };
  return { reader, seen, idles };
}

const turn = (): Promise<void> => new Promise((done) => setImmediate(done));
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

test('injected packets reach the reader in order, with their facts, also those from before the start', async () => {
  const tun = new MemoryTun();
  const { reader, seen, idles } = collector();
  const first = bytesOf('first');
  tun.inject(first);
  first.fill(0);
  tun.start(reader);
  tun.inject(bytesOf('second'), { gsoType: 1, flags: 1, gsoSize: 1360 });
  assert.deepEqual(seen, []);
  await turn();
  assert.deepEqual(seen, [
    { text: 'first', gsoType: 0, flags: 0, gsoSize: 0 },
    { text: 'second', gsoType: 1, flags: 1, gsoSize: 1360 },
  ]);
  assert.deepEqual(idles, [2]);
  assert.equal(tun.counters.readPackets, 2);
  assert.equal(tun.counters.readBytes, 11);
});

test('a wake delivers a bounded batch and a full queue drops', async () => {
  const tun = new MemoryTun();
  const { reader, seen, idles } = collector();
  let taken = 0;
  while (tun.inject(bytesOf('x'))) taken += 1;
  assert.equal(taken, 500);
  tun.start(reader);
  while (seen.length < taken) await turn();
  assert.equal(idles[0], 64);
  assert.equal(tun.counters.wakes, Math.ceil(500 / 64));
});

test('written packets are collected, and the room in front of them is overwritten', () => {
  const tun = new MemoryTun();
  const buffer = tun.createBuffer();
  buffer.bytes.set(bytesOf('packet'), PACKET_OFFSET);
  assert.equal(tun.write(buffer, 6, NO_OFFLOAD), true);
  assert.equal(new TextDecoder().decode(tun.written[0]?.bytes), 'packet');
  assert.deepEqual(tun.written[0]?.offload, NO_OFFLOAD);
  assert.notEqual(buffer.bytes[0], 0);
  tun.refusesWrites = true;
  assert.equal(tun.write(buffer, 6, NO_OFFLOAD), false);
  assert.equal(tun.counters.writeErrors, 1);
  assert.equal(tun.counters.writtenPackets, 1);
});

test('a closed device delivers and takes nothing', async () => {
  const tun = new MemoryTun();
  const { reader, seen } = collector();
  tun.start(reader);
  tun.inject(bytesOf('x'));
  await tun.close();
  await turn();
  assert.deepEqual(seen, []);
  assert.equal(tun.inject(bytesOf('x')), false);
  assert.equal(tun.write(tun.createBuffer(), 1, NO_OFFLOAD), false);
  assert.throws(
    () => tun.start(reader),
    (error) => isVpnError(error, 'ERR_INVARIANT'),
  );
});
