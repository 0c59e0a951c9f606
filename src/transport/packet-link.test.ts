// What becomes of packets between a device and a channel: which frame they travel in, what is cut, what is refused.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import {
  concat,
  icmpPacket,
  mendIpv4,
  TcpFlag,
  type TcpOptions,
  tcpPacket,
  transportChecksumOk,
  udpPacket,
} from '../../test/support/packets.ts';
import { type ChannelPair, FrameCollector, openChannelPair } from '../../test/support/tls-pair.ts';
import { parseIp, parsePrefix } from '../ip/address.ts';
import { DROP_REASON_NAMES, DropReason } from '../ip/drop-reason.ts';
import { FLAG_PARTIAL_CHECKSUM, GsoType, VirtioGsoType } from '../ip/super-packet.ts';
import { PACKET_OFFSET } from '../os/tun.ts';
import { MemoryTun } from '../os/tun-memory.ts';
import { FrameDecoder, FrameType } from '../protocol/frame.ts';
import { Pacer, TokenBucket } from './pacer.ts';
import { PacketBufferPool, PacketLink, type PacketLinkOptions, SendBatch } from './packet-link.ts';

const OWN4 = '10.8.0.2';
const OWN6 = 'fd00:8::2';
const PARTIAL = { flags: FLAG_PARTIAL_CHECKSUM };

let pair: ChannelPair;
const MARKER = Uint8Array.of(FrameType.echo, 0, 0, 0);
let arrived: { type: number; payload: Uint8Array }[] = [];
let marked = Promise.withResolvers<void>();
const collector = new FrameCollector((type, payload) => {
  if (type === FrameType.echo) marked.resolve();
  else arrived.push({ type, payload: payload.slice() });
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

interface Rig {
  device: MemoryTun;
  batch: SendBatch;
  link: PacketLink;
  drops: Float64Array;
}

function rig(options: Partial<PacketLinkOptions> = {}): Rig {
  const device = new MemoryTun({ mtu: 1500 });
  const drops = new Float64Array(DROP_REASON_NAMES.length);
  const batch = new SendBatch();
  const link = new PacketLink({
    device,
    buffers: new PacketBufferPool(device),
    batch,
    lease: { v4: parseIp(OWN4), v6: parseIp(OWN6) },
    ownAddress: 'source',
    superPackets: true,
    limits: { mtu: 1500, uso: true },
    drops,
    ...options,
  });
  link.spread.set(0, pair.server);
  return { device, batch, link, drops };
}

/** Sends what the device would have read; resolves with the frames that the other end got. */
async function send(
  { batch, link }: Rig,
  packet: Uint8Array,
  facts: { gsoType?: number; flags?: number; gsoSize?: number } = {},
): Promise<{ type: number; payload: Uint8Array }[]> {
  arrived = [];
  marked = Promise.withResolvers<void>();
  const bytes = new Uint8Array(PACKET_OFFSET + packet.length);
  bytes.set(packet, PACKET_OFFSET);
  link.send(bytes, packet.length, facts.gsoType ?? 0, facts.flags ?? 0, facts.gsoSize ?? 0);
  batch.flush();
  // The marker is a flow of its own: it would pass packets that wait.
  while (pair.server.queuedBytes > 0) await new Promise(setImmediate);
  assert.ok(pair.server.sendData(MARKER, 0, MARKER.length));
  await collector.until(marked.promise);
  return arrived;
}

/** Receives frames as a decoder of the client's bytes would hand them over, each of a chunk of its own. */
function receive(r: Rig, ...frames: { type: number; payload: Uint8Array }[]): void {
  const decoder = decoderOf(r);
  for (const frame of frames) decoder.push(encode(frame));
}

function decoderOf({ link }: Rig): FrameDecoder {
  const receiver = link.createReceiver();
  const decoder = new FrameDecoder(
    {
      get target() {
        return receiver.target;
      },
      get targetOffset() {
        return receiver.targetOffset;
      },
      reserve: (type, length, whole) => receiver.reserve(type, length, whole),
      data: (type, length) => receiver.data(type, length),
      control: () => assert.fail('no control frame was sent'),
      unknown: () => assert.fail('no extension was sent'),
      idle: () => receiver.idle(),
    },
    'client',
  );
  decoder.setPhase('data');
  return decoder;
}

function encode({ type, payload }: { type: number; payload: Uint8Array }): Uint8Array {
  const { length } = payload;
  return Uint8Array.of(type, length >>> 16, length >>> 8, length, ...payload);
}

const superFrame = (packet: Uint8Array, gsoType: number, flags: number, gsoSize: number) => ({
  type: FrameType.super,
  payload: Uint8Array.of(gsoType, flags, gsoSize >>> 8, gsoSize & 0xff, ...packet),
});

const droppedAs = ({ drops }: Rig): Record<string, number> =>
  Object.fromEntries(DROP_REASON_NAMES.map((name, at) => [name, drops[at] ?? 0] as const).filter(([, n]) => n > 0));

test('a plain packet goes as PACKET, a super-packet as SUPER with its three facts', async () => {
  const r = rig();
  const plain = icmpPacket();
  assert.deepEqual(await send(r, plain), [{ type: FrameType.packet, payload: plain }]);
  const big = tcpPacket({ payload: 5000, partial: true });
  const [frame] = await send(r, big, { gsoType: GsoType.tcp4, gsoSize: 1448, ...PARTIAL });
  assert.deepEqual(frame, superFrame(big, GsoType.tcp4, 1, 1448));
  assert.deepEqual(droppedAs(r), {});
});

const cuts: readonly [
  what: string,
  options: Partial<PacketLinkOptions>,
  build: () => Uint8Array,
  facts: object,
  segments: number,
][] = [
  [
    'UDP segments where `uso` was not agreed on, IPv4',
    { limits: { mtu: 1500, uso: false } },
    () => udpPacket({ payload: 3500, partial: true }),
    { gsoType: GsoType.udpL4, gsoSize: 1200 },
    3,
  ],
  [
    'UDP segments where `uso` was not agreed on, IPv6',
    { limits: { mtu: 1500, uso: false } },
    () => udpPacket({ version: 6, payload: 2400, partial: true }),
    { gsoType: GsoType.udpL4, gsoSize: 1200 },
    2,
  ],
  [
    'UDP segments that are more than a peer takes',
    {},
    () => udpPacket({ payload: 70 * 300, partial: true }),
    { gsoType: GsoType.udpL4, gsoSize: 300 },
    70,
  ],
  [
    'UDP segments that are smaller than a peer takes',
    {},
    () => udpPacket({ payload: 1000, partial: true }),
    { gsoType: GsoType.udpL4, gsoSize: 255 },
    4,
  ],
  [
    'TCP segments that are smaller than a peer takes, IPv4',
    {},
    () => tcpPacket({ payload: 1000, partial: true, flags: TcpFlag.ack | TcpFlag.psh }),
    { gsoType: GsoType.tcp4, gsoSize: 255 },
    4,
  ],
  [
    'TCP segments that are smaller than a peer takes, IPv6',
    {},
    () => tcpPacket({ version: 6, payload: 1000, partial: true }),
    { gsoType: GsoType.tcp6, gsoSize: 100 },
    10,
  ],
  [
    'TCP segments for a peer without super-packets',
    { superPackets: false },
    () => tcpPacket({ payload: 4000, partial: true }),
    { gsoType: GsoType.tcp4, gsoSize: 1448 },
    3,
  ],
];
for (const [what, options, build, facts, segments] of cuts) {
  test(`REQ-PACKET-003: ${what} are cut in software and go as PACKET frames`, async () => {
    const r = rig(options);
    const packet = build();
    const frames = await send(r, packet, { ...PARTIAL, ...facts });
    assert.equal(frames.length, segments);
    let payload = 0;
    const header = headerOf(packet);
    for (const frame of frames) {
      assert.equal(frame.type, FrameType.packet);
      assert.ok(transportChecksumOk(frame.payload), 'the checksum is complete');
      const body = frame.payload.slice(header);
      assert.deepEqual(body, packet.slice(header + payload, header + payload + body.length));
      payload += body.length;
    }
    assert.equal(payload, packet.length - header, 'every byte was sent once');
    assert.deepEqual(droppedAs(r), {});
    assert.equal(r.link.counters.sentPackets, segments);
    // What the other end does with them: nothing is refused.
    const peer = rig({ ...options, superPackets: options.superPackets ?? true });
    receive(peer, ...frames);
    assert.deepEqual(droppedAs(peer), {});
    assert.equal(peer.device.written.length, segments);
  });
}

function headerOf(packet: Uint8Array): number {
  const network = (packet[0] ?? 0) >> 4 === 4 ? 20 : 40;
  const protocol = packet[network === 20 ? 9 : 6];
  return network + (protocol === 6 ? 20 : 8);
}

test('REQ-PACKET-003: a partial checksum is completed for a peer without super-packets', async () => {
  for (const packet of [
    tcpPacket({ payload: 33, partial: true }),
    udpPacket({ version: 6, payload: 34, partial: true }),
  ]) {
    const r = rig({ superPackets: false });
    assert.equal(transportChecksumOk(packet), false);
    const [frame] = await send(r, packet, PARTIAL);
    assert.equal(frame?.type, FrameType.packet);
    assert.ok(transportChecksumOk(frame.payload));
    assert.equal(frame.payload.length, packet.length);
  }
});

/** A bucket whose time stands still: what is in it is all that goes. */
function stopped(burstBytes: number): Pacer {
  return new Pacer([new TokenBucket({ bytesPerSecond: 1000, burstBytes }, () => 0)], 1500);
}

const bigFrame = (sequence: number, trafficClass = 0) =>
  superFrame(tcpPacket({ sequence, trafficClass, payload: 45 * 1448, partial: true }), GsoType.tcp4, 1, 1448);

test('what has arrived keeps a rate before it goes on: a super-packet in parts, DSCP and ECN as they came', async () => {
  const r = rig();
  r.link.shape({ receiving: stopped(20_000), isRefused: false, queueBytes: 1_000_000 });
  receive(r, bigFrame(0, (46 << 2) | 1));
  const bytesOf = () => r.link.counters.receivedBytes;
  assert.ok(bytesOf() <= 20_000 && bytesOf() >= 14_000, `${bytesOf()} bytes of a burst of 20,000`);
  const before = r.device.written.length;
  receive(r, { type: FrameType.packet, payload: icmpPacket() });
  assert.equal(r.device.written.length, before, 'it waits, too');
  r.link.shape({ isRefused: false, queueBytes: 1_000_000 });
  await new Promise(setImmediate);
  assert.equal(bytesOf(), 45 * (1448 + 40) + 84, 'without a rate all goes on');
  assert.equal(r.link.counters.receivedPackets, 46);
  for (const { bytes } of r.device.written) assert.equal(bytes[1], bytes[9] === 1 ? 0 : (46 << 2) | 1);
  assert.deepEqual(droppedAs(r), {});
  r.link.shape({ receiving: stopped(20_000), isRefused: false, queueBytes: 1_000_000 });
  receive(r, bigFrame(0));
  r.link.close();
  receive(r, { type: FrameType.packet, payload: icmpPacket() });
  assert.deepEqual(droppedAs(r), { quota: 1 });
});

test('what is sent keeps a rate, control frames do not wait for it, and without a rate all goes', async () => {
  const own = await openChannelPair();
  try {
    const r = rig();
    r.link.spread.set(0, own.server);
    let bytes = 0;
    const pong = Promise.withResolvers<void>();
    const all = Promise.withResolvers<void>();
    const frames = new FrameCollector((type, payload) => {
      if (type === FrameType.pong) pong.resolve();
      else bytes += payload.length - 8;
      if (bytes >= 65_000) all.resolve();
    });
    own.server.start({ bytes: () => {}, closed: () => {} });
    own.client.start(frames);
    r.link.shape({ sending: stopped(20_000), isRefused: false, queueBytes: 1_000_000 });
    const packet = tcpPacket({ payload: 45 * 1448, partial: true });
    const memory = new Uint8Array(PACKET_OFFSET + packet.length);
    memory.set(packet, PACKET_OFFSET);
    r.link.send(memory, packet.length, GsoType.tcp4, FLAG_PARTIAL_CHECKSUM, 1448);
    // What is in flight goes first.
    while (bytes < 13_000) await new Promise(setImmediate);
    own.server.sendControl(Uint8Array.of(FrameType.pong, 0, 0, 0));
    await frames.until(pong.promise);
    assert.ok(bytes <= 20_000, `${bytes} bytes of a burst of 20,000`);
    assert.ok(own.server.queuedBytes > 40_000, 'the rest waits');
    r.link.shape({ isRefused: false, queueBytes: 1_000_000 });
    await frames.until(all.promise);
  } finally {
    own.server.destroy();
    own.client.destroy();
  }
});

test('while a quota is used up nothing is carried, either way, and each packet is counted', async () => {
  const r = rig();
  r.link.shape({ isRefused: true, queueBytes: 1_000_000 });
  assert.deepEqual(await send(r, icmpPacket()), []);
  receive(r, bigFrame(0), { type: FrameType.packet, payload: icmpPacket() });
  assert.deepEqual(droppedAs(r), { quota: 47 });
  assert.equal(r.device.written.length, 0);
  r.link.shape({ isRefused: false, queueBytes: 1_000_000 });
  receive(r, bigFrame(0));
  assert.equal(r.device.written.length, 1);
});

test('segments that a peer takes are not cut', async () => {
  const limits: readonly [packet: Uint8Array, gsoType: number, gsoSize: number][] = [
    [tcpPacket({ payload: 1000, partial: true }), GsoType.tcp4, 256],
    [tcpPacket({ version: 6, payload: 1000, partial: true }), GsoType.tcp6, 256],
    [udpPacket({ payload: 1000, partial: true }), GsoType.udpL4, 256],
  ];
  for (const [packet, gsoType, gsoSize] of limits) {
    const [frame] = await send(rig(), packet, { ...PARTIAL, gsoType, gsoSize });
    assert.deepEqual(frame, superFrame(packet, gsoType, 1, gsoSize));
    const peer = rig();
    if (frame !== undefined) receive(peer, frame);
    assert.deepEqual(droppedAs(peer), {});
  }
});

test('what cannot be cut is dropped under the rule it breaks', () => {
  const r = rig({ superPackets: false });
  const packet = icmpPacket({ payload: 3000 });
  const bytes = new Uint8Array(PACKET_OFFSET + packet.length);
  bytes.set(packet, PACKET_OFFSET);
  r.link.send(bytes, packet.length, GsoType.tcp4, FLAG_PARTIAL_CHECKSUM, 1448);
  assert.deepEqual(droppedAs(r), { super_checksum_protocol: 1 });
});

test('REQ-SUPER-008: what is sent, received and dropped counts the segments of a super-packet', async () => {
  const tcp4 = tcpPacket({ payload: 3 * 1448 + 1, partial: true });
  const tcp6 = tcpPacket({ version: 6, payload: 2 * 1428, partial: true });
  const udp = udpPacket({ payload: 5 * 1000, partial: true });
  const cases = [
    [tcp4, GsoType.tcp4, 1448, 4],
    [tcp6, GsoType.tcp6, 1428, 2],
    [udp, GsoType.udpL4, 1000, 5],
  ] as const;
  for (const [packet, gsoType, gsoSize, segments] of cases) {
    const r = rig();
    const [frame] = await send(r, packet, { ...PARTIAL, gsoType, gsoSize });
    assert.equal(frame?.type, FrameType.super);
    assert.equal(r.link.counters.sentPackets, segments);
    r.link.spread.set(0, undefined);
    await send(r, packet, { ...PARTIAL, gsoType, gsoSize });
    assert.deepEqual(droppedAs(r), { no_channel: segments });
    const peer = rig();
    receive(peer, frame);
    assert.equal(peer.link.counters.receivedPackets, segments);
    peer.device.refusesWrites = true;
    receive(peer, frame);
    assert.deepEqual(droppedAs(peer), { tun_refused: segments });
  }
  const whole = rig();
  await send(whole, tcpPacket({ payload: 900, partial: true }), PARTIAL);
  await send(whole, icmpPacket());
  assert.equal(whole.link.counters.sentPackets, 2);
});

test('without a channel, and with a full one, packets are dropped and counted', () => {
  const r = rig();
  const bytes = new Uint8Array(PACKET_OFFSET + 100);
  r.link.spread.set(0, undefined);
  r.link.send(bytes, 100, 0, 0, 0);
  assert.deepEqual(droppedAs(r), { no_channel: 1 });
  assert.equal(r.link.counters.sentPackets, 0);
});

test('REQ-PACKET-002: a packet with a foreign source, or of a family without a lease, is dropped and counted', () => {
  const foreign: readonly Uint8Array[] = [
    icmpPacket({ source: '10.8.0.3' }),
    icmpPacket({ source: '0.0.0.0' }),
    icmpPacket({ source: 'fd00:8::3' }),
    icmpPacket({ source: '::' }),
    tcpPacket({ source: '127.0.0.1' }),
  ];
  for (const payload of foreign) {
    const r = rig();
    receive(r, { type: FrameType.packet, payload });
    assert.deepEqual(droppedAs(r), { source_not_leased: 1 });
    assert.equal(r.device.written.length, 0);
  }
  const onlyV4 = rig({ lease: { v4: parseIp(OWN4) } });
  receive(onlyV4, { type: FrameType.packet, payload: icmpPacket({ source: OWN6 }) });
  assert.deepEqual(droppedAs(onlyV4), { source_not_leased: 1 });
});

test('REQ-PACKET-002: a client takes only packets that are for its own address', () => {
  const r = rig({ ownAddress: 'destination' });
  const own = icmpPacket({ source: '192.0.2.1', destination: OWN4 });
  receive(r, { type: FrameType.packet, payload: own });
  receive(r, { type: FrameType.packet, payload: icmpPacket({ source: OWN4, destination: '192.0.2.1' }) });
  receive(r, { type: FrameType.packet, payload: icmpPacket({ source: '2001:db8::1', destination: OWN6 }) });
  assert.equal(r.device.written.length, 2);
  assert.deepEqual(r.device.written[0]?.bytes, own);
  assert.deepEqual(droppedAs(r), { source_not_leased: 1 });
});

test('REQ-SITE-004: addresses of networks behind the client are its own, as long as it has them', () => {
  const sources = ['10.20.3.4', 'fd00:20::9', OWN4, '10.21.0.1', 'fd00:21::1'];
  const passed = (r: Rig): number => {
    const before = r.device.written.length;
    for (const source of sources) receive(r, { type: FrameType.packet, payload: icmpPacket({ source }) });
    return r.device.written.length - before;
  };
  const r = rig();
  assert.equal(passed(r), 1);
  r.link.setNetworks(['10.20.0.0/16', 'fd00:20::/48'].map(parsePrefix));
  assert.equal(passed(r), 3);
  assert.deepEqual(droppedAs(r), { source_not_leased: 4 + 2 });
  r.link.setNetworks([]);
  assert.equal(passed(r), 1);
  const client = rig({ ownAddress: 'destination' });
  client.link.setNetworks([parsePrefix('10.20.0.0/16')]);
  for (const destination of ['10.20.3.4', '10.21.0.1']) {
    receive(client, { type: FrameType.packet, payload: icmpPacket({ source: '192.0.2.1', destination }) });
  }
  assert.equal(client.device.written.length, 1);
});

test('REQ-PACKET-003: SUPER and udp-l4 are refused where they were not agreed on', () => {
  const big = (options: TcpOptions = {}) => tcpPacket({ payload: 3000, partial: true, ...options });
  const without = rig({ superPackets: false });
  receive(without, superFrame(big(), GsoType.tcp4, 1, 1448));
  assert.deepEqual(droppedAs(without), { not_negotiated: 1 });
  const noUdp = rig({ limits: { mtu: 1500, uso: false } });
  receive(noUdp, superFrame(udpPacket({ payload: 3000, partial: true }), GsoType.udpL4, 1, 1200));
  assert.deepEqual(droppedAs(noUdp), { super_udp_unsupported: 1 });
  const agreed = rig();
  receive(agreed, superFrame(big(), GsoType.tcp4, 1, 1448));
  assert.equal(agreed.device.written[0]?.offload.gsoType, VirtioGsoType.tcp4);
  assert.deepEqual(droppedAs(agreed), {});
});

test('a packet that the device refuses is counted', () => {
  const r = rig();
  r.device.refusesWrites = true;
  receive(r, { type: FrameType.packet, payload: icmpPacket({ source: OWN4 }) });
  assert.equal(r.drops[DropReason.tunRefused], 1);
  assert.equal(r.link.counters.receivedPackets, 0);
});

test('a buffer held by a frame that breaks off goes back to the pool, and none is held between frames', () => {
  const device = new MemoryTun();
  let made = 0;
  const create = device.createBuffer.bind(device);
  device.createBuffer = () => {
    made += 1;
    return create();
  };
  const buffers = new PacketBufferPool(device);
  const r = rig({ device, buffers });
  const receiver = r.link.createReceiver();
  for (let i = 0; i < 100; i++) {
    receiver.reserve(FrameType.packet, 100, false);
    receiver.release();
  }
  assert.equal(made, 2, 'the shared buffer and one more');
});

test('small packets of one wake go out together, in one write; a super-packet behind them keeps its place', async () => {
  const r = rig();
  const small = tcpPacket({ source: OWN4, destination: OWN4, payload: new Uint8Array(100) });
  sendMany(r, small, 2);
  r.batch.flush();
  const writes = pair.server.counters.writes;
  sendMany(r, small, 5);
  assert.equal(pair.server.counters.writes, writes, 'nothing goes before the end of the wake');
  const frames = await send(r, small);
  assert.equal(frames.length, 8);
  assert.ok(pair.server.counters.writes <= writes + 2, 'six packets and the marker are two writes at most');
});

test('where small packets come one in a wake, each goes at once', async () => {
  const r = rig();
  const small = tcpPacket({ source: OWN4, destination: OWN4, payload: new Uint8Array(100) });
  arrived = [];
  for (let wake = 1; wake <= 3; wake++) {
    // Node tells of a TLS write in the turn after it.
    for (let turn = 0; turn < 2; turn++) await new Promise(setImmediate);
    const writes = pair.server.counters.writes;
    sendMany(r, small, 1);
    assert.equal(pair.server.counters.writes, writes + 1);
    r.batch.flush();
    while (arrived.length < wake) await new Promise(setImmediate);
  }
});

function sendMany(r: Rig, packet: Uint8Array, count: number): void {
  const bytes = new Uint8Array(PACKET_OFFSET + packet.length);
  for (let i = 0; i < count; i++) {
    bytes.set(packet, PACKET_OFFSET);
    r.link.send(bytes, packet.length, 0, 0, 0);
  }
}

describe('a peer without super-packets', () => {
  const segment = (index: number, version: 4 | 6 = 4): { type: number; payload: Uint8Array } => {
    const packet = tcpPacket({
      version,
      source: version === 4 ? OWN4 : OWN6,
      flags: TcpFlag.ack,
      sequence: 1000 * index,
      payload: 1000,
    });
    if (version === 4) packet[6] = 0x40;
    return { type: FrameType.packet, payload: version === 4 ? mendIpv4(packet) : packet };
  };
  const chunk = (...frames: { type: number; payload: Uint8Array }[]): Uint8Array => concat(...frames.map(encode));
  const facts = ({ written }: MemoryTun): [length: number, gsoSize: number][] =>
    written.map(({ bytes, offload }) => [bytes.length, offload.gsoSize]);

  test('its segments that come in one chunk go into the device as one super-packet', () => {
    for (const version of [4, 6] as const) {
      const r = rig({ superPackets: false });
      const header = version === 4 ? 40 : 60;
      decoderOf(r).push(chunk(...[0, 1, 2].map((index) => segment(index, version))));
      assert.deepEqual(facts(r.device), [[header + 3000, 1000]]);
      assert.equal(r.link.counters.receivedPackets, 3);
      assert.equal(r.link.counters.receivedBytes, 3 * (header + 1000));
    }
  });

  test('what cannot be joined goes in order, and nothing waits for another chunk', () => {
    const r = rig({ superPackets: false });
    const decoder = decoderOf(r);
    const ping = { type: FrameType.packet, payload: icmpPacket({ source: OWN4 }) };
    decoder.push(chunk(segment(0), segment(1), ping, segment(2)));
    decoder.push(chunk(segment(3)));
    const single: [number, number] = [1040, 0];
    assert.deepEqual(facts(r.device), [[2040, 1000], [ping.payload.length, 0], single, single]);
    assert.deepEqual(r.device.written.at(-1)?.bytes, segment(3).payload);
  });

  test('what came before a frame that ends the connection is delivered', () => {
    const r = rig({ superPackets: false });
    const decoder = decoderOf(r);
    assert.throws(() => decoder.push(concat(chunk(segment(0), segment(1)), Uint8Array.of(0x7f))));
    assert.deepEqual(facts(r.device), [[2040, 1000]]);
  });

  test('what the device refuses counts as the packets that it stands for', () => {
    const r = rig({ superPackets: false });
    r.device.refusesWrites = true;
    decoderOf(r).push(chunk(segment(0), segment(1)));
    assert.deepEqual(droppedAs(r), { [DROP_REASON_NAMES[DropReason.tunRefused] ?? '']: 2 });
  });

  test('a device that takes no super-packets gets none', () => {
    const device = new MemoryTun({ kind: 'tap', mtu: 1500 });
    const r = rig({ superPackets: false, device, buffers: new PacketBufferPool(device) });
    decoderOf(r).push(chunk(segment(0), segment(1)));
    assert.deepEqual(facts(device), [
      [1040, 0],
      [1040, 0],
    ]);
  });
});
