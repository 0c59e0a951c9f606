// Clients that break the rules, against a gateway that serves an honest one beside them all the time.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import type { ErrorCode } from '../../src/base/errors.ts';
import { DROP_REASON_NAMES } from '../../src/ip/drop-reason.ts';
import { FLAG_PARTIAL_CHECKSUM, GsoType } from '../../src/ip/super-packet.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { attachProof } from '../../src/protocol/keys.ts';
import { type AttachMessage, encodeMessage } from '../../src/protocol/messages.ts';
import {
  changed,
  icmpPacket,
  mendIpv4,
  optionsHeader,
  routingHeader,
  TcpFlag,
  tcpPacket,
  udpPacket,
} from '../support/packets.ts';
import { json, primitives } from '../support/protocol.ts';
import {
  equal,
  exchange,
  heldBytes,
  type RawClient,
  type RawSession,
  type SimClient,
  until,
  World,
} from '../support/world.ts';

let world: World;
let good: SimClient;
before(async () => {
  world = await World.open();
  good = await world.connected('good');
});
afterEach(async () => {
  await exchange(world, good, 4);
  await exchange(world, good, 6);
  assert.equal(good.client.snapshot.reconnects, 0, 'the honest client was never disturbed');
  assert.deepEqual(
    world.lines.filter(({ level }) => level === 'error' || level === 'fatal'),
    [],
  );
});
after(() => world[Symbol.asyncDispose]());

async function counter(name: string): Promise<number> {
  return (await world.status()).counters[name] ?? 0;
}

/** The gateway ended this connection because of `code`, told it so, counted it and wrote one line. */
async function refusedWith(raw: RawClient, code: ErrorCode, act: () => void | Promise<void>): Promise<void> {
  const name = `refused_${code.toLowerCase()}`;
  const earlier = await counter(name);
  const peer = raw.name;
  await act();
  assert.equal((await raw.message('close')).reason, 'protocol_error');
  await raw.closed();
  assert.equal(await counter(name), earlier + 1);
  const lines = world.lines.filter((line) => line.peer === peer && line.code === code);
  assert.equal(lines.length, 1, `one line about ${peer} with ${code}`);
}

let users = 0;

/** A raw client with a session of its own, on a fresh device. */
async function session(
  options: { features?: readonly string[] } = {},
): Promise<{ raw: RawClient; session: RawSession; v4: string; v6: string }> {
  const { token } = await world.profile(`mallory${users++}`);
  const raw = await world.raw();
  const opened = await raw.login({ token: token?.reveal(), ...options });
  world.keepSessions();
  const [v4 = '', v6 = ''] = world.server.sessions.find(({ peer }) => peer === raw.name)?.addresses ?? [];
  return { raw, session: opened, v4, v6 };
}

const header = (type: number, length: number, payload: Uint8Array = new Uint8Array(0)) =>
  Uint8Array.of(type, length >>> 16, length >>> 8, length, ...payload);
const LOGIN = {
  version: 1,
  device: { id: Buffer.alloc(16).toString('base64url'), algorithm: 'p256' },
  purpose: 'login',
  serverName: 'localhost',
  features: [],
  client: { name: 'raw', version: '0', platform: 'test' },
};
const login = (change: object = {}) => encodeFrame(FrameType.login, json({ ...LOGIN, ...change }));
const answer = () => encodeFrame(FrameType.answer, json({ answers: [{ kind: 'device', value: 'A'.repeat(86) }] }));

const beforeLogin: readonly [what: string, code: ErrorCode, bytes: () => Uint8Array][] = [
  ['an unknown type', 'ERR_FRAME_TYPE', () => header(0x33, 0)],
  ['an extension', 'ERR_FRAME_STATE', () => header(0x90, 0)],
  ['a PACKET', 'ERR_FRAME_STATE', () => encodeFrame(FrameType.packet, icmpPacket())],
  ['a SUPER', 'ERR_FRAME_STATE', () => header(FrameType.super, 100)],
  ['an ECHO', 'ERR_FRAME_STATE', () => header(FrameType.echo, 0)],
  ['a frame that only a server sends', 'ERR_FRAME_STATE', () => header(FrameType.accept, 10)],
  ['an ANSWER to nothing', 'ERR_FRAME_STATE', answer],
  ['a LOGIN of length 0', 'ERR_FRAME_EMPTY', () => header(FrameType.login, 0)],
  ['a LOGIN of the maximum and one byte', 'ERR_FRAME_TOO_LONG', () => header(FrameType.login, 16_385)],
  ['a frame of the longest length there is', 'ERR_FRAME_TOO_LONG', () => header(FrameType.login, 0xffffff)],
  ['a PING of the maximum and one byte', 'ERR_FRAME_TOO_LONG', () => header(FrameType.ping, 65)],
  ['five PINGs', 'ERR_FRAME_STATE', () => Buffer.concat(Array.from({ length: 5 }, () => header(FrameType.ping, 0)))],
  ['a LOGIN that is no JSON', 'ERR_MESSAGE_SYNTAX', () => encodeFrame(FrameType.login, Uint8Array.of(0x7b))],
  ['a LOGIN without a device', 'ERR_MESSAGE_FIELD', () => login({ device: undefined })],
  ['an ATTACH without a proof', 'ERR_MESSAGE_FIELD', () => encodeFrame(FrameType.attach, json({}))],
];
for (const [what, code, bytes] of beforeLogin) {
  test(`REQ-SESSION-004: before login, ${what}: ${code}`, async () => {
    const raw = await world.raw();
    await raw.greeted();
    await refusedWith(raw, code, () => raw.write(bytes()));
  });
}

test('a LOGIN of exactly the maximum is read, and a second hello ends the connection: ERR_FRAME_STATE', async () => {
  const raw = await world.raw();
  await raw.greeted();
  const filler = 16_384 - json({ ...LOGIN, filler: '' }).length;
  raw.write(login({ filler: 'x'.repeat(filler) }));
  await raw.next(FrameType.challenge);
  await refusedWith(raw, 'ERR_FRAME_STATE', () => raw.write(login()));
});

test('a pipelined ANSWER ends the connection: ERR_FRAME_STATE', async () => {
  const raw = await world.raw();
  await raw.greeted();
  await refusedWith(raw, 'ERR_FRAME_STATE', () => raw.write(Buffer.concat([login(), answer()])));
});

test('a LOGIN of another version is told so', async () => {
  const raw = await world.raw();
  await raw.greeted();
  raw.write(login({ version: 2 }));
  assert.equal((await raw.message('reject')).code, 'version');
  await raw.closed();
});

test('REQ-RESUME-007: a session id without the secret resumes nothing: session_unknown', async () => {
  const { session: opened, raw: other } = await session();
  const raw = await world.raw();
  await raw.greeted();
  const { session: id, deviceId } = opened.accept;
  raw.write(
    encodeMessage('resume', { version: 1, session: id, epoch: 0, deviceId, serverName: 'localhost', features: [] }),
  );
  await raw.message('challenge');
  const zeros = (length: number) => Buffer.alloc(length).toString('base64url');
  raw.write(
    encodeMessage('answer', {
      answers: [
        { kind: 'resume', value: zeros(32) },
        { kind: 'device', value: zeros(64) },
      ],
    }),
  );
  assert.equal((await raw.message('reject')).code, 'session_unknown');
  await raw.closed();
  assert.equal(other.isClosed, false);
});

test('a login that breaks off at any byte leaves nothing behind: ERR_FRAME_TRUNCATED', async () => {
  const count = () => counter('refused_err_frame_truncated');
  const cutAt = async (frame: Uint8Array, at: number, raw: RawClient): Promise<void> => {
    await new Promise<void>((resolve) => raw.socket.end(Buffer.from(frame.subarray(0, at)), resolve));
    await raw.closed();
  };
  const connections = await counter('connections');
  const earlier = await count();
  const first = login();
  const second = answer();
  const cuts = [
    ...Array.from({ length: first.length - 1 }, (_, at) => ({ frame: first, at: at + 1, isAnswer: false })),
    ...Array.from({ length: second.length - 1 }, (_, at) => ({ frame: second, at: at + 1, isAnswer: true })),
  ];
  for (let at = 0; at < cuts.length; at += 16) {
    await Promise.all(
      cuts.slice(at, at + 16).map(async (cut) => {
        const raw = await (await world.raw()).greeted();
        if (cut.isAnswer) {
          raw.write(first);
          await raw.next(FrameType.challenge);
        }
        await cutAt(cut.frame, cut.at, raw);
      }),
    );
  }
  await until(async () => (await count()) === earlier + cuts.length, 'every cut to be counted');
  assert.equal(await counter('connections'), connections + cuts.length);
  assert.equal(world.server.sessions.filter(({ user }) => user !== 'good' && !user.startsWith('mallory')).length, 0);
});

const inSession: readonly [what: string, code: ErrorCode, bytes: () => Uint8Array][] = [
  ['a PACKET of length 0', 'ERR_FRAME_EMPTY', () => header(FrameType.packet, 0)],
  ['a PACKET of the maximum and one byte', 'ERR_FRAME_TOO_LONG', () => header(FrameType.packet, 65_576)],
  ['a SUPER without a packet', 'ERR_FRAME_EMPTY', () => header(FrameType.super, 4, new Uint8Array(4))],
  ['a SUPER of the maximum and one byte', 'ERR_FRAME_TOO_LONG', () => header(FrameType.super, 65_580)],
  ['an ECHO of the maximum and one byte', 'ERR_FRAME_TOO_LONG', () => header(FrameType.echo, 65_576)],
  ['a PING of the maximum and one byte', 'ERR_FRAME_TOO_LONG', () => header(FrameType.ping, 1025)],
  ['an extension of the maximum and one byte', 'ERR_FRAME_TOO_LONG', () => header(0x90, 262_145)],
  ['an unknown type', 'ERR_FRAME_TYPE', () => header(0x7f, 0)],
  ['a second hello', 'ERR_FRAME_STATE', () => login()],
  ['an ATTACH', 'ERR_FRAME_STATE', () => encodeFrame(FrameType.attach, json({}))],
  ['a CONFIG', 'ERR_FRAME_STATE', () => header(FrameType.config, 10)],
  ['a RESUME_DONE', 'ERR_FRAME_STATE', () => encodeFrame(FrameType.resumeDone, json({}))],
  ['a CLOSE that is no JSON', 'ERR_MESSAGE_SYNTAX', () => encodeFrame(FrameType.close, Uint8Array.of(1))],
];
for (const [what, code, bytes] of inSession) {
  test(`REQ-SESSION-004: in a session, ${what}: ${code}, and the session ends`, async () => {
    const { raw, v4 } = await session();
    await refusedWith(raw, code, () => raw.write(bytes()));
    await until(() => !world.server.sessions.some(({ addresses }) => addresses.includes(v4)), 'the end of the session');
  });
}

test('REQ-PING-001: frames of exactly the maximum are taken, extensions skipped, and the session goes on', async () => {
  const { raw } = await session();
  const payload = new Uint8Array(1024).fill(7);
  raw.send(FrameType.ping, payload);
  assert.deepEqual(await raw.next(FrameType.pong), payload);
  raw.write(header(0x90, 0));
  raw.write(header(0xff, 262_144, new Uint8Array(0)));
  raw.write(new Uint8Array(262_144));
  raw.send(FrameType.packet, new Uint8Array(65_575).fill(0x45));
  raw.send(FrameType.super, new Uint8Array(65_579));
  const echo = new Uint8Array(65_575).fill(9);
  raw.send(FrameType.echo, echo);
  assert.deepEqual(await raw.next(FrameType.echo), echo);
  assert.equal(raw.isClosed, false);
});

test('a session that breaks off inside a packet ends, and its half packet is never written', async () => {
  const { raw, v4 } = await session();
  const written = world.tun.counters.writtenPackets;
  const packet = icmpPacket({ source: v4 });
  raw.socket.end(Buffer.from(encodeFrame(FrameType.packet, packet).subarray(0, 40)));
  await until(() => !world.server.sessions.some(({ addresses }) => addresses.includes(v4)), 'the end of the session');
  assert.equal(world.tun.counters.writtenPackets, written);
});

test('an ATTACH whose proof is wrong, replayed, foreign, or for another epoch, slot or session is rejected', async () => {
  const { raw, session: mine } = await session();
  const { session: theirs } = await session();
  const { session: id } = mine.accept;
  const prove = (on: RawClient, change: Partial<AttachMessage> = {}, key = mine.attachKey): AttachMessage => {
    const facts = { session: id, epoch: 0, slot: 0, generation: 5, flags: 0, ...change };
    return { ...facts, proof: change.proof ?? attachProof(primitives, key, 'client', facts, on.exporter) };
  };
  const open = async () => await (await world.raw({ alpn: 'customvpn/1+0' })).greeted();
  const recorded = await open();
  const replay = prove(recorded);
  const cases: readonly [what: string, reject: string, message: (on: RawClient) => AttachMessage][] = [
    ['a wrong proof', 'rejected', (on) => prove(on, { proof: new Uint8Array(32) })],
    ['a proof made on another connection', 'rejected', () => replay],
    ["another session's key", 'rejected', (on) => prove(on, {}, theirs.attachKey)],
    ["another session's id", 'rejected', (on) => prove(on, { session: theirs.accept.session })],
    ['another epoch', 'rejected', (on) => prove(on, { epoch: 1 })],
    ['a slot that is not there', 'rejected', (on) => prove(on, { slot: 1 })],
    ['a session that is not there', 'session_unknown', (on) => prove(on, { session: new Uint8Array(16) })],
  ];
  for (const [what, reject, message] of cases) {
    const on = await open();
    on.write(encodeMessage('attach', message(on)));
    assert.equal((await on.message('reject')).code, reject, what);
    await on.closed();
  }
  assert.ok((await counter('refused_rejected')) >= 6);
  // The real one works, once; a generation is never used twice.
  recorded.write(encodeMessage('attach', replay));
  await recorded.next(FrameType.attached);
  const late = await open();
  late.write(encodeMessage('attach', prove(late)));
  assert.equal((await late.message('reject')).code, 'rejected');
  // A newer generation takes the slot over.
  const newer = await open();
  newer.write(encodeMessage('attach', prove(newer, { generation: 6 })));
  await newer.next(FrameType.attached);
  assert.equal((await recorded.message('close')).reason, 'replaced');
  assert.equal(raw.isClosed, false);
  raw.send(FrameType.ping, new Uint8Array(3));
  assert.deepEqual(await raw.next(FrameType.pong), new Uint8Array(3));
});

test('REQ-SESSION-003: the data connection ends with the control connection', async () => {
  const { raw, session: mine } = await session();
  const data = await (await world.raw()).greeted();
  const facts = { session: mine.accept.session, epoch: 0, slot: 0, generation: 0, flags: 0 };
  const proof = attachProof(primitives, mine.attachKey, 'client', facts, data.exporter);
  data.write(encodeMessage('attach', { ...facts, proof }));
  await data.next(FrameType.attached);
  raw.socket.destroy();
  await data.next(FrameType.close);
  await data.closed();
});

/** Sends frames and resolves with what the gateway counted them under. */
async function dropsOf(
  raw: RawClient,
  frames: readonly { type: FrameType; payload: Uint8Array }[],
): Promise<Record<string, number>> {
  const earlier = await world.drops();
  for (const { type, payload } of frames) raw.send(type, payload);
  const marker = Buffer.from(`marker ${users++}`);
  raw.send(FrameType.echo, marker);
  assert.ok(equal(await raw.next(FrameType.echo), marker));
  const later = await world.drops();
  return Object.fromEntries(
    Object.entries(later)
      .map(([name, count]) => [name, count - (earlier[name] ?? 0)] as const)
      .filter(([, count]) => count > 0),
  );
}

test('packets with a source that is not leased to the session are dropped and counted, v4 and v6', async () => {
  const { raw, v4, v6 } = await session();
  const [theirs4 = '', theirs6 = ''] = world.server.sessions.find(({ user }) => user === 'good')?.addresses ?? [];
  const written = world.tun.counters.writtenPackets;
  const sources = [
    theirs4,
    theirs6,
    '10.20.0.1',
    'fd20:1::1',
    '192.0.2.1',
    '2001:db8::1',
    '127.0.0.1',
    '::1',
    '0.0.0.0',
    '::',
  ];
  const frames = sources.map((source) => ({ type: FrameType.packet, payload: icmpPacket({ source }) }));
  assert.deepEqual(await dropsOf(raw, frames), { source_not_leased: sources.length });
  const big = tcpPacket({ source: theirs4, payload: 3000, partial: true });
  const frame = { type: FrameType.super, payload: Uint8Array.of(GsoType.tcp4, 1, 1200 >> 8, 1200 & 0xff, ...big) };
  assert.deepEqual(await dropsOf(raw, [frame]), { source_not_leased: 1 });
  assert.equal(world.tun.counters.writtenPackets, written);
  const own = [v4, v6].map((source) => ({ type: FrameType.packet, payload: icmpPacket({ source }) }));
  assert.deepEqual(await dropsOf(raw, own), {});
  assert.equal(world.tun.counters.writtenPackets, written + 2);
});

type Super = { gsoType?: number; flags?: number; gsoSize?: number; packet: Uint8Array };

/** One way to break each rule of the specification, §13. */
function brokenRules(v4: string, v6: string): Record<string, Super> {
  const tcp = (options: object = {}) => tcpPacket({ source: v4, payload: 3000, partial: true, ...options });
  const tcp6 = (options: object = {}) => tcpPacket({ source: v6, payload: 3000, partial: true, ...options });
  const udp = (options: object = {}) => udpPacket({ source: v4, payload: 3000, partial: true, ...options });
  const noNext = tcp6();
  return {
    too_short: { gsoType: 0, flags: 0, gsoSize: 0, packet: tcp().slice(0, 10) },
    version: { packet: changed(tcp(), { 0: 0x55 }) },
    ip_header_length: { packet: changed(tcp(), { 0: 0x44 }) },
    ip_length: { packet: tcp().slice(0, -1) },
    super_type: { gsoType: 4, packet: tcp() },
    super_flags: { flags: 3, packet: tcp() },
    super_unused_size: { gsoType: GsoType.none, packet: tcp() },
    super_version: { gsoType: GsoType.tcp6, packet: tcp() },
    super_header_checksum: { packet: changed(tcp(), { 10: 0, 11: 0 }) },
    super_empty: { gsoType: 0, flags: 0, gsoSize: 0, packet: changed(noNext.slice(0, 40), { 4: 0, 5: 0 }) },
    super_fragment: { packet: tcp({ fragment: { more: true } }) },
    super_extension_count: {
      gsoType: GsoType.tcp6,
      packet: tcp6({ extensions: Array.from({ length: 9 }, () => optionsHeader(60)) }),
    },
    super_extension_order: {
      gsoType: GsoType.tcp6,
      packet: tcp6({ extensions: [optionsHeader(60), optionsHeader(0)] }),
    },
    super_routing: { gsoType: GsoType.tcp6, packet: tcp6({ extensions: [routingHeader(1)] }) },
    super_truncated: { gsoType: 0, gsoSize: 0, packet: shortened(tcp(), 30) },
    super_checksum_protocol: { gsoType: 0, gsoSize: 0, packet: icmpPacket({ source: v4 }) },
    super_tcp_data_offset: { packet: changed(tcp(), { 32: 0x40 }) },
    super_udp_length: { gsoType: 0, gsoSize: 0, packet: changed(udp(), { 24: 0, 25: 9 }) },
    super_checksum_missing: { flags: 0, packet: tcp() },
    super_protocol: { packet: udp() },
    super_tcp_flags: { packet: tcp({ flags: TcpFlag.ack | TcpFlag.syn }) },
    super_segment_too_small: { gsoSize: 255, packet: tcp() },
    super_segment_too_big: { gsoSize: 1461, packet: tcp() },
    super_one_segment: { gsoSize: 1460, packet: tcp({ payload: 1460 }) },
    super_too_many_segments: { gsoType: GsoType.udpL4, gsoSize: 256, packet: udp({ payload: 256 * 64 + 1 }) },
  };
}

/** A packet cut to `length` whose IPv4 header says so. */
function shortened(packet: Uint8Array, length: number): Uint8Array {
  return mendIpv4(changed(packet.slice(0, length), { 2: length >> 8, 3: length & 0xff }));
}

test('REQ-PACKET-001 REQ-SUPER-002 REQ-SUPER-003 REQ-SUPER-004 REQ-SUPER-005 REQ-SUPER-006 REQ-SUPER-007: a packet that breaks a rule is dropped under its name, and reaches no device', async () => {
  const { raw, v4, v6 } = await session();
  const written = world.tun.counters.writtenPackets;
  const seen = new Set<string>();
  for (const [
    name,
    { gsoType = GsoType.tcp4, flags = FLAG_PARTIAL_CHECKSUM, gsoSize = 1200, packet },
  ] of Object.entries(brokenRules(v4, v6))) {
    const payload = Uint8Array.of(gsoType, flags, gsoSize >> 8, gsoSize & 0xff, ...packet);
    assert.deepEqual(await dropsOf(raw, [{ type: FrameType.super, payload }]), { [name]: 1 });
    seen.add(name);
  }
  assert.equal(world.tun.counters.writtenPackets, written);
  // Short frames cannot pass the decoder; UDP without `uso` and what was not agreed on are met below.
  const elsewhere = ['super_too_short', 'super_udp_unsupported'];
  assert.deepEqual(
    DROP_REASON_NAMES.filter((name) => name.startsWith('super_') && !seen.has(name)),
    elsewhere,
  );
});

test('SUPER where it was not agreed on is dropped: not_negotiated, and udp-l4 without `uso`: super_udp_unsupported', async () => {
  const tcp = Uint8Array.of(GsoType.tcp4, 1, 4, 176, ...tcpPacket({ payload: 3000, partial: true }));
  const udp = Uint8Array.of(GsoType.udpL4, 1, 4, 176, ...udpPacket({ payload: 3000, partial: true }));
  const { raw: plain } = await session({ features: ['attach'] });
  assert.deepEqual(await dropsOf(plain, [{ type: FrameType.super, payload: tcp }]), { not_negotiated: 1 });
  const { raw: noUso } = await session({ features: ['attach', 'super'] });
  assert.deepEqual(await dropsOf(noUso, [{ type: FrameType.super, payload: udp }]), { super_udp_unsupported: 1 });
});

test('a device that refuses packets, and packets for nobody, are counted', async () => {
  const { raw, v4 } = await session();
  world.tun.refusesWrites = true;
  assert.deepEqual(await dropsOf(raw, [{ type: FrameType.packet, payload: icmpPacket({ source: v4 }) }]), {
    tun_refused: 1,
  });
  world.tun.refusesWrites = false;
  const earlier = (await world.drops()).no_session ?? 0;
  world.tun.inject(icmpPacket({ source: '192.0.2.1', destination: '10.20.0.250' }));
  await until(async () => (await world.drops()).no_session === earlier + 1, 'the drop');
});

test('a client that never reads loses its own packets only: queue_full, and memory stays bounded', async () => {
  const { raw, v4 } = await session({ features: ['super'] });
  raw.socket.pause();
  const flood = icmpPacket({ source: '192.0.2.1', destination: v4, payload: 1400 });
  const earlier = (await world.drops()).queue_full ?? 0;
  await until(
    async () => {
      for (let at = 0; at < 200; at++) world.tun.inject(flood);
      return ((await world.drops()).queue_full ?? 0) > earlier + 100;
    },
    'its queue to be full',
    20_000,
  );
  const held = heldBytes();
  const before = await world.drops();
  for (let round = 0; round < 30; round++) {
    for (let at = 0; at < 100; at++) world.tun.inject(flood);
    await exchange(world, good, 4);
  }
  const dropped = ((await world.drops()).queue_full ?? 0) - (before.queue_full ?? 0);
  assert.ok(dropped > 1000, `${dropped} of 3000 packets were dropped`);
  // Four megabytes went by; what is kept for the client is bounded by its queue.
  const grown = heldBytes() - held;
  assert.ok(grown < 2_000_000, `${grown} bytes more are held`);
  assert.deepEqual(good.client.snapshot.drops, {});
});

test('a client that echoes and never reads fills its own queue, and is ended when control frames pile up', async () => {
  const { raw } = await session();
  raw.socket.pause();
  const earlier = (await world.drops()).queue_full ?? 0;
  const echo = encodeFrame(FrameType.echo, new Uint8Array(65_000));
  const ping = Buffer.concat(Array.from({ length: 60 }, () => encodeFrame(FrameType.ping, new Uint8Array(1024))));
  let isOver = false;
  raw.socket.once('close', () => {
    isOver = true;
  });
  await until(
    async () => {
      if (!isOver) raw.write(echo);
      return ((await world.drops()).queue_full ?? 0) > earlier;
    },
    'its queue to be full',
    20_000,
  );
  const peer = raw.name;
  await until(
    () => {
      if (raw.socket.writableLength < 1_000_000) raw.write(ping);
      return !world.server.sessions.some((live) => live.peer === peer);
    },
    'the gateway to give up',
    20_000,
  );
});
