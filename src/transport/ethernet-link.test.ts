// Which frame Ethernet travels in, and what is refused where it was, or was not, agreed on.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { arpFrame, ipFrame } from '../../test/support/ethernet.ts';
import { tcpPacket } from '../../test/support/packets.ts';
import { type ChannelPair, FrameCollector, openChannelPair } from '../../test/support/tls-pair.ts';
import { parseIp } from '../ip/address.ts';
import { DROP_REASON_NAMES } from '../ip/drop-reason.ts';
import { PACKET_OFFSET } from '../os/tun.ts';
import { MemoryTun } from '../os/tun-memory.ts';
import { FrameType, MAX_ETHERNET_PAYLOAD_BYTES } from '../protocol/frame.ts';
import { EthernetLink } from './ethernet-link.ts';
import { Pacer, TokenBucket } from './pacer.ts';
import { PacketBufferPool, PacketLink, SendBatch, type TunnelLink } from './packet-link.ts';

let pair: ChannelPair;
let arrived: { type: number; payload: Uint8Array }[] = [];
let expected = 0;
let all = Promise.withResolvers<void>();
const collector = new FrameCollector((type, payload) => {
  arrived.push({ type, payload: payload.slice() });
  if (arrived.length >= expected) all.resolve();
});

before(async () => {
  pair = await openChannelPair();
  pair.client.start(collector);
  pair.server.start({ bytes: () => {}, closed: () => {} });
});
after(() => {
  pair.client.destroy();
  pair.server.destroy();
});

function rig() {
  const device = new MemoryTun({ kind: 'tap' });
  const drops = new Float64Array(DROP_REASON_NAMES.length);
  const batch = new SendBatch();
  const buffers = new PacketBufferPool(device);
  const received: Uint8Array[] = [];
  const link = new EthernetLink({
    buffers,
    batch,
    drops,
    receive: ({ bytes }, length) => received.push(bytes.slice(PACKET_OFFSET, PACKET_OFFSET + length)) > 0,
  });
  link.spread.set(0, pair.server);
  const dropped = (): string[] => DROP_REASON_NAMES.filter((_, reason) => (drops[reason] ?? 0) > 0).map((name) => name);
  return { link, batch, received, dropped, device, buffers, drops };
}

function place(frame: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(PACKET_OFFSET + frame.length);
  bytes.set(frame, PACKET_OFFSET);
  return bytes;
}

/** As the decoder of a channel hands a frame over. */
function deliver(link: TunnelLink, type: number, payload: Uint8Array): void {
  const receiver = link.createReceiver();
  receiver.reserve(type, payload.length, true);
  receiver.target.set(payload, receiver.targetOffset);
  receiver.data(type, payload.length);
}

test('REQ-ETHERNET-001: Ethernet frames go as ETHERNET, whether they wait for others or not', async () => {
  const { link, batch } = rig();
  arrived = [];
  expected = 2;
  all = Promise.withResolvers();
  const arp = arpFrame();
  const ip = ipFrame(tcpPacket({ payload: 1400 }));
  link.send(place(arp), arp.length);
  batch.flush();
  link.forward(place(ip), ip.length);
  await collector.until(all.promise);
  assert.deepEqual(
    arrived.map(({ type, payload }) => [type, payload.toHex()]),
    [
      [FrameType.ethernet, arp.toHex()],
      [FrameType.ethernet, ip.toHex()],
    ],
  );
  assert.deepEqual([link.counters.sentPackets, link.counters.sentBytes], [2, arp.length + ip.length]);
});

test('REQ-ETHERNET-001: where Ethernet was agreed on, PACKET and SUPER are dropped; elsewhere ETHERNET is', () => {
  const ethernet = rig();
  deliver(ethernet.link, FrameType.ethernet, arpFrame());
  assert.deepEqual(
    ethernet.received.map((bytes) => bytes.toHex()),
    [arpFrame().toHex()],
  );
  assert.deepEqual([ethernet.link.counters.receivedPackets, ethernet.dropped()], [1, []]);
  for (const type of [FrameType.packet, FrameType.super]) {
    const { link, received, dropped } = rig();
    deliver(link, type, tcpPacket());
    assert.deepEqual([received.length, dropped()], [0, ['not_negotiated']]);
  }
  const { device, buffers, batch, drops, dropped } = rig();
  const link = new PacketLink({
    device,
    buffers,
    batch,
    drops,
    lease: { v4: parseIp('10.8.0.2') },
    ownAddress: 'source',
    superPackets: true,
    limits: { mtu: 1500, uso: true },
  });
  // Bytes that would pass as a packet.
  deliver(link, FrameType.ethernet, tcpPacket({ source: '10.8.0.2' }));
  assert.deepEqual([device.written.length, dropped()], [0, ['not_negotiated']]);
});

test('what has no channel, or does not fit, is dropped and counted', () => {
  const { link, dropped, drops } = rig();
  const long = new Uint8Array(MAX_ETHERNET_PAYLOAD_BYTES + 1);
  link.send(place(long), long.length);
  assert.deepEqual(dropped(), ['too_big']);
  link.send(place(long), 13);
  assert.deepEqual(dropped(), ['too_big', 'frame_too_short']);
  drops.fill(0);
  link.spread.set(0, undefined);
  link.send(place(arpFrame()), arpFrame().length);
  assert.deepEqual(dropped(), ['no_channel']);
  assert.equal(link.counters.sentPackets, 0);
});

test('what has arrived keeps a rate and a quota before it goes on, as packets do', async () => {
  const { link, received, dropped } = rig();
  const one = ipFrame(tcpPacket({ payload: 1400 }));
  // Its clock stands still: what the burst does not cover waits.
  const receiving = new Pacer([new TokenBucket({ bytesPerSecond: 100_000, burstBytes: 8_000 }, () => 0)], 1500);
  link.shape({ receiving, isRefused: false, queueBytes: 1_000_000 });
  for (let i = 0; i < 20; i++) deliver(link, FrameType.ethernet, one);
  assert.ok(received.length >= 3 && received.length <= 5, `${received.length} of a burst of 8,000 bytes`);
  link.shape({ isRefused: false, queueBytes: 1_000_000 });
  await new Promise(setImmediate);
  assert.equal(received.length, 20, 'without a rate all goes on');
  assert.ok(received.every((bytes) => bytes.toHex() === one.toHex()));
  assert.deepEqual([link.counters.receivedPackets, dropped()], [20, []]);
  link.shape({ isRefused: true, queueBytes: 1_000_000 });
  deliver(link, FrameType.ethernet, one);
  link.send(place(one), one.length);
  assert.deepEqual([received.length, link.counters.sentPackets, dropped()], [20, 0, ['quota']]);
});
