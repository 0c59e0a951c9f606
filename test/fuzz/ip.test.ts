/**
 * Throws random bytes, and good packets with random changes, at every parser of `src/ip`: none throws anything but a
 * `VpnError`, none touches a byte outside the packet, none answers with something that is no answer.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../../src/base/errors.ts';
import { formatIp, formatPrefix, parseIp, parsePrefix } from '../../src/ip/address.ts';
import { completeChecksum, internetChecksum, ipv4HeaderChecksumOk } from '../../src/ip/checksum.ts';
import { DROP_REASON_NAMES, DropReason } from '../../src/ip/drop-reason.ts';
import { checkFrame, findDhcpAck, inspectFrame } from '../../src/ip/ethernet.ts';
import { EthernetSwitch, Verdict } from '../../src/ip/ethernet-switch.ts';
import { HostTable } from '../../src/ip/host-table.ts';
import {
  checkPacket,
  destinationOffset,
  flowHash,
  ipVersion,
  ipv4HeaderLength,
  isMulticast,
  isUnroutable,
  sourceOffset,
  transportOffset,
  walkTransport,
} from '../../src/ip/packet.ts';
import { RouteTable } from '../../src/ip/route-table.ts';
import { headerBytes, NO_OFFLOAD, rebuildOffload } from '../../src/ip/super-packet.ts';
import { encodeFrame, FrameType } from '../../src/protocol/frame.ts';
import { frameLength, markFrame, splitFrame, trimFrame } from '../../src/transport/data-frame.ts';
import { arpFrame, dhcpFrame, ipFrame, neighbourFrame } from '../support/ethernet.ts';
import {
  concat,
  fragmentHeader,
  guard,
  icmpPacket,
  ipPacket,
  mendIpv4,
  optionsHeader,
  placed,
  routingHeader,
  tcpPacket,
  udpPacket,
} from '../support/packets.ts';

const RUNS = Number(process.env.FUZZ_RUNS ?? 3_000);

const SEEDS: readonly Uint8Array[] = [
  tcpPacket({ partial: true, payload: 3_000 }),
  tcpPacket({ version: 6, partial: true, payload: 3_000, extensions: [optionsHeader(0), routingHeader(0, 1)] }),
  tcpPacket({ ipOptions: new Uint8Array(12), tcpOptions: new Uint8Array(20), payload: 0 }),
  udpPacket({ partial: true, payload: 2_000 }),
  udpPacket({ version: 6, partial: true, payload: 2_000, extensions: [optionsHeader(60)] }),
  udpPacket({ version: 6, extensions: [fragmentHeader()] }),
  icmpPacket(),
  icmpPacket({ version: 6 }),
  ipPacket(59, new Uint8Array(0), { version: 6 }),
  ipPacket(60, Uint8Array.of(60, 0, 0, 0, 0, 0, 0, 0), { version: 6 }),
];

/** A good packet with a few bytes changed near its start, perhaps cut or lengthened, its IPv4 checksum perhaps mended. */
const mutated = fc
  .record({
    seed: fc.constantFrom(...SEEDS),
    changes: fc.array(fc.tuple(fc.nat(110), fc.nat(255)), { maxLength: 4 }),
    cut: fc.option(fc.nat(120), { nil: undefined, freq: 3 }),
    mend: fc.boolean(),
    fixLength: fc.boolean(),
  })
  .map(({ seed, changes, cut, mend, fixLength }) => {
    const packet = seed.slice(0, cut ?? seed.length);
    for (const [at, value] of changes) if (at < packet.length) packet[at] = value;
    const version = (packet[0] ?? 0) >> 4;
    const view = new DataView(packet.buffer);
    if (fixLength && version === 4 && packet.length >= 20) view.setUint16(2, packet.length);
    if (fixLength && version === 6 && packet.length >= 40) view.setUint16(4, packet.length - 40);
    return mend && version === 4 && packet.length >= 60 ? mendIpv4(packet) : packet;
  });

const anyPacket = fc.oneof(
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 200 }) },
  { weight: 4, arbitrary: mutated },
);

const asked = fc.record({
  gsoType: fc.oneof(fc.nat(4), fc.nat(255)),
  flags: fc.oneof(fc.constant(1), fc.nat(255)),
  gsoSize: fc.oneof(fc.constant(0), fc.constant(1000), fc.nat(65_535)),
  mtu: fc.oneof(fc.constant(1_400), fc.integer({ min: 1280, max: 65_535 })),
  uso: fc.boolean(),
});

test('packets: no parser throws or touches a byte outside the packet', () => {
  const hosts = new HostTable<number>();
  const routes = new RouteTable<number>();
  for (const [value, text] of ['10.8.0.2', 'fd00:8::2', '0.0.0.0', '::'].entries()) hosts.set(parseIp(text), value);
  for (const [value, text] of ['10.0.0.0/8', 'fd00::/127', '::/0'].entries()) routes.set(parsePrefix(text), value);
  const seen = new Set<number>();

  fc.assert(
    fc.property(anyPacket, asked, fc.nat(40), (packet, { mtu, uso, ...request }, offset) => {
      const length = packet.length;
      const bytes = guard(placed(packet, offset), offset, length);
      const reason = checkPacket(bytes, offset, length);
      assert.ok(reason < DROP_REASON_NAMES.length);
      seen.add(reason);

      const walk = walkTransport(bytes, offset, length);
      if (walk < 0) assert.ok(DROP_REASON_NAMES[-walk]?.startsWith('super_'));
      else assert.ok(transportOffset(walk) <= length);
      const hash = flowHash(bytes, offset, length, [1, 2]);
      assert.ok(Number.isInteger(hash) && hash >= 0 && hash <= 0x7fff_ffff);
      assert.ok(headerBytes(bytes, offset, length) <= length);
      internetChecksum(bytes, offset, length);

      const offload = { ...NO_OFFLOAD };
      const { gsoType, flags, gsoSize } = request;
      const verdict = rebuildOffload(bytes, offset, length, gsoType, flags, gsoSize, { mtu, uso }, offload);
      seen.add(verdict);
      if (reason !== DropReason.none) {
        assert.notEqual(verdict, DropReason.none);
        return;
      }

      const version = ipVersion(bytes, offset);
      if (version === 4) ipv4HeaderChecksumOk(bytes, offset, ipv4HeaderLength(bytes, offset));
      for (const at of [offset + sourceOffset(version), offset + destinationOffset(version)]) {
        hosts.lookup(bytes, at, version);
        routes.lookup(bytes, at, version);
        isMulticast(bytes, at, version);
        isUnroutable(bytes, at, version);
      }
      if (verdict !== DropReason.none) {
        assert.deepEqual(offload, NO_OFFLOAD);
        return;
      }
      assert.ok(offload.headerLength + offload.gsoSize <= Math.max(mtu, length));
      if (offload.flags === 0) return;
      assert.ok(offload.checksumStart + offload.checksumOffset + 2 <= offload.headerLength);
      assert.ok(offload.headerLength <= length);
      completeChecksum(bytes, offset, length, offload.checksumStart, offload.checksumOffset);
    }),
    { numRuns: RUNS },
  );
  // Random bytes that all fail at the first test would prove nothing.
  assert.ok(seen.size > 15, `only ${seen.size} different verdicts`);
});

test('packets: what stands behind a packet changes no verdict', () => {
  fc.assert(
    fc.property(anyPacket, asked, (packet, { gsoType, flags, gsoSize, ...limits }) => {
      const [a, b] = [0x00, 0xff].map((filler) => {
        const bytes = placed(packet, 16, filler);
        const offload = { ...NO_OFFLOAD };
        const verdict = rebuildOffload(bytes, 16, packet.length, gsoType, flags, gsoSize, limits, offload);
        return { verdict, offload, hash: flowHash(bytes, 16, packet.length, [3, 4]) };
      });
      assert.deepEqual(a, b);
    }),
    { numRuns: RUNS },
  );
});

test('text: addresses and prefixes are read back as written, or ERR_CONFIG_VALUE', () => {
  const pieces = fc.constantFrom(
    '0',
    '1',
    '10',
    '255',
    '256',
    'ffff',
    'a',
    '.',
    ':',
    '::',
    '/',
    '%',
    '-',
    ' ',
    '0x',
    '\u0661',
  );
  const text = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 40 }),
    fc.array(pieces, { maxLength: 16 }).map((parts) => parts.join('')),
    fc.tuple(fc.oneof(fc.ipV4(), fc.ipV6()), fc.nat(140)).map(([address, length]) => `${address}/${length}`),
  );
  fc.assert(
    fc.property(text, (candidate) => {
      const address = parsed(parseIp, candidate);
      if (address !== undefined) assert.deepEqual(parseIp(formatIp(address)), address);
      const prefix = parsed(parsePrefix, candidate);
      if (prefix !== undefined) assert.deepEqual(parsePrefix(formatPrefix(prefix)), prefix);
    }),
    { numRuns: RUNS },
  );
});

function parsed<T>(parse: (text: string) => T, text: string): T | undefined {
  try {
    return parse(text);
  } catch (error) {
    if (isVpnError(error, 'ERR_CONFIG_VALUE')) return undefined;
    throw error;
  }
}

test('data frames: trimming, splitting and marking touch nothing outside the frame and make no good frame bad', () => {
  let changedFrames = 0;
  fc.assert(
    fc.property(
      fc.oneof(anyPacket, fc.constantFrom(...SEEDS)),
      askedWell,
      fc.integer({ min: 200, max: 4000 }),
      (packet, { gsoType, flags, gsoSize, ...limits }, most) => {
        const head = Uint8Array.of(gsoType, flags, gsoSize >>> 8, gsoSize & 0xff);
        const frame = encodeFrame(FrameType.super, concat(head, packet));
        const verdict = (bytes: Uint8Array, at: number, length: number): number => {
          const size = ((bytes[at + 6] ?? 0) << 8) | (bytes[at + 7] ?? 0);
          const offload = { ...NO_OFFLOAD };
          const [type = 0, flag = 0] = bytes.subarray(at + 4);
          return rebuildOffload(bytes, at + 8, length - 8, type, flag, size, limits, offload);
        };
        const isGood = verdict(frame, 0, frame.length) === DropReason.none;
        for (const change of [markFrame, trimFrame, split] as const) {
          const memory = Buffer.alloc(frame.length + 30, 0xa5);
          memory.set(frame, 10);
          const length = Number(change(memory, 10, frame.length));
          assert.ok(memory.subarray(0, 10).every((byte) => byte === 0xa5));
          assert.ok(memory.subarray(10 + frame.length).every((byte) => byte === 0xa5));
          if (!isGood) continue;
          if (!memory.subarray(10, 10 + frame.length).equals(frame)) changedFrames += 1;
          const [at, rest] =
            change === split
              ? [10 + length, frame.length - length]
              : [10, change === trimFrame ? length : frame.length];
          assert.equal(verdict(memory, at, rest), DropReason.none);
          if (change === split && length > 0) assert.equal(verdict(part, 7, frameLength(part, 7)), DropReason.none);
        }
        function split(bytes: Buffer, at: number, length: number): number {
          part.fill(0x5a);
          const cut = splitFrame(bytes, at, length, most, part, 7);
          const end = cut === 0 ? 7 : 7 + frameLength(part, 7);
          assert.ok(
            part.subarray(0, 7).every((byte) => byte === 0x5a) && part.subarray(end).every((byte) => byte === 0x5a),
          );
          return cut;
        }
      },
    ),
    { numRuns: RUNS },
  );
  assert.ok(changedFrames > 50, `only ${changedFrames} frames were changed`);
});

const part = Buffer.alloc(8000);
/** More often than by chance what fits the packet. */
const askedWell = fc.oneof(
  asked,
  fc.record({
    gsoType: fc.integer({ min: 1, max: 3 }),
    flags: fc.constant(1),
    gsoSize: fc.constantFrom(256, 700, 1000),
    mtu: fc.constant(1500),
    uso: fc.constant(true),
  }),
);

/** Frames of clients and of the segment, with a few bytes changed and perhaps cut. */
const FRAMES: readonly Uint8Array[] = [
  arpFrame(),
  dhcpFrame({ from: 'client', message: 3 }),
  dhcpFrame({ from: 'server', message: 5, yiaddr: '192.0.2.9' }),
  neighbourFrame({ type: 136, extensions: [optionsHeader(0), optionsHeader(60, 1)] }),
  neighbourFrame({ type: 134, extensions: [fragmentHeader(0)] }),
  ...SEEDS.map((packet) => ipFrame(packet)),
];
const mutatedFrame = fc
  .tuple(
    fc.constantFrom(...FRAMES),
    fc.array(fc.tuple(fc.nat({ max: 90 }), fc.nat({ max: 255 })), { maxLength: 6 }),
    fc.option(fc.nat({ max: 120 }), { nil: undefined }),
  )
  .map(([frame, changes, cut]) => {
    const bytes = frame.slice(0, cut);
    for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
    return bytes;
  });

test('an Ethernet frame of any kind gets an answer of the list, and nothing outside of it is read', () => {
  fc.assert(
    fc.property(fc.oneof(mutatedFrame, fc.uint8Array({ maxLength: 200 })), (frame) => {
      const bytes = guard(placed(frame), 16, frame.length);
      const facts = { type: 0, version: 0, claim: 0, target: 0 };
      const first = checkFrame(bytes, 16, frame.length, 1500, new Set([0x8892]));
      assert.ok(DROP_REASON_NAMES[first] !== undefined);
      if (first !== DropReason.none) return;
      assert.ok(DROP_REASON_NAMES[inspectFrame(bytes, 16, frame.length, facts)] !== undefined);
      const size = facts.version === 4 ? 4 : facts.version === 6 ? 16 : 0;
      assert.ok(size === 0 || (facts.claim >= 30 && facts.claim + size <= 16 + frame.length));
      assert.ok(facts.target === 0 || facts.target + 16 <= 16 + frame.length);
      const ack = findDhcpAck(bytes, 16, frame.length);
      assert.ok(ack === 0 || ack + 240 <= 16 + frame.length);
    }),
    { numRuns: RUNS },
  );
});

test('a switch lives through any frames: its verdicts are those of the list, its tables keep their bounds', () => {
  const options = { mtu: 1500, clientToClient: true, protocols: [], reserved: [], seed: 3 };
  const limits = { macsPerClient: 3, addressesPerClient: 4, tableSize: 16, ageTicks: 5, broadcasts: 1e9, floods: 1e9 };
  const bridge = new EthernetSwitch({ ...options, limits });
  const ports = [1, 2, 3].map((last) =>
    bridge.openPort({ mac: Uint8Array.of(2, 0xc5, 0, 0, 0, last), lease: undefined }),
  );
  fc.assert(
    fc.property(mutatedFrame, fc.nat({ max: 255 }), fc.nat({ max: 4 }), (frame, sender, where) => {
      const bytes = frame.slice();
      if (bytes.length > 11) bytes[11] = sender;
      const port = ports[where];
      const verdict =
        port === undefined
          ? bridge.fromBridge(bytes, 0, bytes.length)
          : bridge.fromClient(port, bytes, 0, bytes.length);
      if (verdict < 0) assert.ok(DROP_REASON_NAMES[-verdict] !== undefined);
      else assert.ok(ports.includes(verdict) || verdict === Verdict.bridge || verdict === Verdict.everybody);
      assert.notEqual(verdict, port, 'a frame comes back');
      const { macs, addresses } = bridge.sizes;
      assert.ok(macs <= 16 && addresses <= 16);
      if (sender % 7 === 0) bridge.handleTick();
    }),
    { numRuns: RUNS },
  );
});
