import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  changed,
  concat,
  fragmentHeader,
  guard,
  icmpPacket,
  ipPacket,
  mendIpv4,
  optionsHeader,
  placed,
  routingHeader,
  TcpFlag,
  tcpPacket,
  udpPacket,
} from '../../test/support/packets.ts';
import { DROP_REASON_NAMES, DropReason } from './drop-reason.ts';
import {
  FLAG_PARTIAL_CHECKSUM,
  GsoType,
  gsoTypeFromVirtio,
  headerBytes,
  MAX_TCP_SEGMENTS,
  MAX_UDP_SEGMENTS,
  MIN_GSO_SIZE,
  NO_OFFLOAD,
  type Offload,
  type OffloadLimits,
  rebuildOffload,
  segmentCount,
  VIRTIO_GSO_ECN,
  VIRTIO_NEEDS_CSUM,
  VirtioGsoType,
} from './super-packet.ts';

const LIMITS: OffloadLimits = { mtu: 1400, uso: true };

interface Asked {
  gsoType?: number;
  flags?: number;
  gsoSize?: number;
  limits?: OffloadLimits;
}

function rebuild(packet: Uint8Array, asked: Asked): { reason: string; offload: Offload } {
  const offload = { ...NO_OFFLOAD };
  const reason = rebuildOffload(
    guard(placed(packet), 16, packet.length),
    16,
    packet.length,
    asked.gsoType ?? GsoType.none,
    asked.flags ?? FLAG_PARTIAL_CHECKSUM,
    asked.gsoSize ?? 0,
    asked.limits ?? LIMITS,
    offload,
  );
  return { reason: DROP_REASON_NAMES[reason] ?? '?', offload };
}

const TCP4: Asked = { gsoType: GsoType.tcp4, gsoSize: 1360 };
const TCP6: Asked = { gsoType: GsoType.tcp6, gsoSize: 1340 };
const UDP: Asked = { gsoType: GsoType.udpL4, gsoSize: 1200 };
const PARTIAL: Asked = { flags: FLAG_PARTIAL_CHECKSUM };
const AS_IS: Asked = { flags: 0 };

const tcp4 = (options: Parameters<typeof tcpPacket>[0] = {}): Uint8Array =>
  tcpPacket({ payload: 14_000, partial: true, ...options });
const tcp6 = (options: Parameters<typeof tcpPacket>[0] = {}): Uint8Array => tcp4({ version: 6, ...options });
const udp4 = (options: Parameters<typeof udpPacket>[0] = {}): Uint8Array =>
  udpPacket({ payload: 12_000, partial: true, ...options });
const udp6 = (options: Parameters<typeof udpPacket>[0] = {}): Uint8Array => udp4({ version: 6, ...options });
const eight = Array.from({ length: 8 }, () => optionsHeader(60));

const TAKEN: readonly [string, Uint8Array, Asked, Partial<Offload>][] = [
  [
    'tcp4',
    tcp4(),
    TCP4,
    { gsoType: VirtioGsoType.tcp4, headerLength: 40, gsoSize: 1360, checksumStart: 20, checksumOffset: 16 },
  ],
  [
    'tcp4 with IP and TCP options',
    tcp4({ ipOptions: new Uint8Array(8).fill(1), tcpOptions: new Uint8Array(12).fill(1) }),
    { ...TCP4, gsoSize: 1340 },
    { gsoType: VirtioGsoType.tcp4, headerLength: 60, gsoSize: 1340, checksumStart: 28, checksumOffset: 16 },
  ],
  [
    'tcp6',
    tcp6(),
    TCP6,
    { gsoType: VirtioGsoType.tcp6, headerLength: 60, gsoSize: 1340, checksumStart: 40, checksumOffset: 16 },
  ],
  [
    'tcp6 behind hop-by-hop, routing and destination options',
    tcp6({ extensions: [optionsHeader(0), routingHeader(0), optionsHeader(60, 1)] }),
    { ...TCP6, gsoSize: 1000 },
    { gsoType: VirtioGsoType.tcp6, headerLength: 92, gsoSize: 1000, checksumStart: 72, checksumOffset: 16 },
  ],
  ['tcp6 behind 8 extension headers', tcp6({ extensions: eight }), { ...TCP6, gsoSize: 1000 }, { checksumStart: 104 }],
  [
    'udp-l4 over IPv4',
    udp4(),
    UDP,
    { gsoType: VirtioGsoType.udpL4, headerLength: 28, gsoSize: 1200, checksumStart: 20, checksumOffset: 6 },
  ],
  [
    'udp-l4 over IPv6',
    udp6(),
    UDP,
    { gsoType: VirtioGsoType.udpL4, headerLength: 48, gsoSize: 1200, checksumStart: 40, checksumOffset: 6 },
  ],
  [
    'a partial TCP checksum, of a SYN too',
    tcpPacket({ partial: true, flags: TcpFlag.syn | TcpFlag.cwr }),
    PARTIAL,
    { gsoType: VirtioGsoType.none, headerLength: 40, gsoSize: 0, checksumStart: 20, checksumOffset: 16 },
  ],
  [
    'a partial UDP checksum',
    udpPacket({ version: 6, partial: true, payload: 0 }),
    PARTIAL,
    { gsoType: VirtioGsoType.none, headerLength: 48, gsoSize: 0, checksumStart: 40, checksumOffset: 6 },
  ],
  ['a partial checksum without UDP segmentation in the kernel', udp4(), { limits: { mtu: 1400, uso: false } }, {}],
  ['tcp4 without UDP segmentation in the kernel', tcp4(), { ...TCP4, limits: { mtu: 1400, uso: false } }, {}],
  ['CWR', tcp4({ flags: TcpFlag.ack | TcpFlag.cwr }), TCP4, { gsoType: VirtioGsoType.tcp4 | VIRTIO_GSO_ECN }],
  ['CWR over IPv6', tcp6({ flags: TcpFlag.ack | TcpFlag.cwr }), TCP6, { gsoType: VirtioGsoType.tcp6 | VIRTIO_GSO_ECN }],
  ['ECE, PSH and FIN', tcp4({ flags: 0x59 }), TCP4, { gsoType: VirtioGsoType.tcp4 }],
  ['the smallest segments', tcp4({ payload: 257 }), { ...TCP4, gsoSize: MIN_GSO_SIZE }, { gsoSize: MIN_GSO_SIZE }],
  ['segments that fill the MTU', tcp4(), { ...TCP4, limits: { mtu: 1400, uso: true } }, {}],
  ['256 TCP segments', tcp4({ payload: 65_475 }), { ...TCP4, gsoSize: 256 }, {}],
  ['exactly 64 UDP segments', udp4({ payload: 64 * 256 }), { ...UDP, gsoSize: 256 }, {}],
  ['one byte more than a segment', tcp4({ payload: 1361 }), TCP4, {}],
];

for (const [name, packet, asked, expected] of TAKEN) {
  test(`taken: ${name}`, () => {
    const { reason, offload } = rebuild(packet, asked);
    assert.equal(reason, 'none');
    assert.equal(offload.flags, VIRTIO_NEEDS_CSUM);
    for (const [field, value] of Object.entries(expected)) assert.equal(offload[field as keyof Offload], value, field);
  });
}

const AS_THEY_ARE: readonly [string, Uint8Array][] = [
  ['TCP', tcpPacket()],
  ['ICMP', icmpPacket()],
  ['an IPv4 fragment', udpPacket({ fragment: { offset: 3, more: true } })],
  ['an IPv6 fragment', udpPacket({ version: 6, extensions: [fragmentHeader()] })],
  ['a routing header with segments left', tcpPacket({ version: 6, extensions: [routingHeader(2)] })],
  ['nine extension headers', tcpPacket({ version: 6, extensions: [...eight, optionsHeader(60)] })],
  ['an unknown protocol', ipPacket(253, new Uint8Array(1))],
];

for (const [name, packet] of AS_THEY_ARE) {
  test(`taken without segmentation and partial checksum: ${name}`, () => {
    const { reason, offload } = rebuild(packet, AS_IS);
    assert.equal(reason, 'none');
    assert.deepEqual(offload, NO_OFFLOAD);
  });
}

test('a packet that goes as it is clears what was in the offload before', () => {
  const offload: Offload = { flags: 1, gsoType: 1, headerLength: 1, gsoSize: 1, checksumStart: 1, checksumOffset: 1 };
  const packet = tcpPacket();
  assert.equal(rebuildOffload(packet, 0, packet.length, GsoType.none, 0, 0, LIMITS, offload), DropReason.none);
  assert.deepEqual(offload, NO_OFFLOAD);
});

const udpInIpv4 = (length: number): Uint8Array => changed(udp4(), { 24: length >> 8, 25: length & 0xff });

const DROPPED: readonly [keyof typeof DropReason, string, Uint8Array, Asked][] = [
  // What is asked for (rule 6).
  ['superType', 'UFO', udp4(), { ...UDP, gsoType: VirtioGsoType.udp + 1 }],
  ['superType', 'a virtio value with the ECN bit', tcp4(), { ...TCP4, gsoType: VirtioGsoType.tcp4 | VIRTIO_GSO_ECN }],
  ['superType', 'a UDP tunnel', udp4(), { ...UDP, gsoType: 0x20 }],
  ['superType', 'a type beyond a byte', udp4(), { ...UDP, gsoType: 257 }],
  ['superFlags', 'checksum already verified', tcp4(), { ...TCP4, flags: FLAG_PARTIAL_CHECKSUM | 2 }],
  ['superFlags', 'the highest flag', tcp4(), { flags: 0x80 }],
  ['superUnusedSize', 'a segment size without segmentation', tcp4(), { ...PARTIAL, gsoSize: 1360 }],
  ['superUdpUnsupported', 'udp-l4', udp4(), { ...UDP, limits: { mtu: 1400, uso: false } }],

  // The IP header (rule 1).
  ['tooShort', 'no packet', new Uint8Array(0), AS_IS],
  ['tooShort', 'half a header', tcp4().slice(0, 12), TCP4],
  ['version', 'version 7', changed(tcp4(), { 0: 0x75 }), TCP4],
  ['superVersion', 'tcp4 over IPv6', tcp6(), TCP4],
  ['superVersion', 'tcp6 over IPv4', tcp4(), TCP6],
  ['ipHeaderLength', 'IHL 4', mendIpv4(changed(tcp4(), { 0: 0x44 })), TCP4],
  ['ipHeaderLength', 'IHL beyond the packet', ipPacket(6, new Uint8Array(0)).fill(0x4f, 0, 1), PARTIAL],
  ['ipLength', 'a trailing byte', concat(tcp4(), Uint8Array.of(0)), TCP4],
  ['ipLength', 'a trailing byte over IPv6', concat(tcp6(), Uint8Array.of(0)), TCP6],
  ['ipLength', 'a missing byte', tcp4().slice(0, -1), TCP4],
  ['ipLength', 'a missing byte over IPv6', tcp6().slice(0, -1), TCP6],
  ['superHeaderChecksum', 'one bit of the time to live', changed(tcp4(), { 8: 63 }), TCP4],
  ['superHeaderChecksum', 'no header checksum', changed(tcp4(), { 10: 0, 11: 0 }), PARTIAL],
  ['superHeaderChecksum', 'as it is', changed(tcp4(), { 8: 63 }), AS_IS],
  ['superEmpty', 'IPv6 without payload', ipPacket(59, new Uint8Array(0), { version: 6 }), PARTIAL],
  ['superEmpty', 'as it is', ipPacket(59, new Uint8Array(0), { version: 6 }), AS_IS],

  // The walk (rule 2).
  ['superFragment', 'first fragment', tcp4({ fragment: { more: true } }), TCP4],
  ['superFragment', 'last fragment, partial checksum', udp4({ fragment: { offset: 1 } }), PARTIAL],
  ['superFragment', 'IPv6 fragment', tcp6({ extensions: [fragmentHeader()] }), TCP6],
  ['superFragment', 'IPv6 atomic fragment', udp6({ extensions: [fragmentHeader(0, false)] }), PARTIAL],
  ['superExtensionCount', 'nine', tcp6({ extensions: [...eight, optionsHeader(60)] }), { ...TCP6, gsoSize: 1000 }],
  ['superExtensionOrder', 'hop-by-hop second', tcp6({ extensions: [routingHeader(), optionsHeader(0)] }), TCP6],
  ['superRouting', 'a segment left', tcp6({ extensions: [routingHeader(1)] }), TCP6],
  ['superTruncated', 'an extension header', ipPacket(60, Uint8Array.of(6, 9, 0, 0, 0, 0, 0, 0), { version: 6 }), TCP6],
  ['superTruncated', 'a TCP header', ipPacket(6, new Uint8Array(19)), TCP4],
  ['superTruncated', 'a UDP header', ipPacket(17, new Uint8Array(7)), UDP],

  // The transport header (rules 3 to 5).
  ['superChecksumProtocol', 'ICMP', icmpPacket(), PARTIAL],
  ['superChecksumProtocol', 'ICMPv6', icmpPacket({ version: 6 }), PARTIAL],
  ['superChecksumProtocol', 'UDP-Lite', ipPacket(136, new Uint8Array(20)), PARTIAL],
  [
    'superChecksumProtocol',
    'behind a header that is not walked',
    ipPacket(51, new Uint8Array(24), { version: 6 }),
    PARTIAL,
  ],
  ['superTcpDataOffset', '4 words', changed(tcp4(), { 32: 0x40 }), TCP4],
  ['superTcpDataOffset', '0 words, partial checksum', changed(tcp4(), { 32: 0x0f }), PARTIAL],
  ['superTcpDataOffset', 'beyond the packet', changed(tcp4({ payload: 3 }), { 32: 0x60 }), PARTIAL],
  ['superUdpLength', 'one less than the rest', udpInIpv4(12_007), UDP],
  ['superUdpLength', 'one more than the rest', udpInIpv4(12_009), PARTIAL],
  ['superUdpLength', '0', udpInIpv4(0), PARTIAL],
  ['superChecksumMissing', 'tcp4', tcp4(), { ...TCP4, flags: 0 }],
  ['superChecksumMissing', 'tcp6', tcp6(), { ...TCP6, flags: 0 }],
  ['superChecksumMissing', 'udp-l4', udp4(), { ...UDP, flags: 0 }],
  ['superProtocol', 'tcp4 of UDP', udp4(), TCP4],
  ['superProtocol', 'tcp6 of UDP', udp6(), TCP6],
  ['superProtocol', 'udp-l4 of TCP', tcp4(), UDP],
  ['superProtocol', 'tcp4 of ICMP', icmpPacket({ payload: 5_000 }), TCP4],
  ['superTcpFlags', 'SYN', tcp4({ flags: TcpFlag.ack | TcpFlag.syn }), TCP4],
  ['superTcpFlags', 'RST', tcp4({ flags: TcpFlag.ack | TcpFlag.rst }), TCP4],
  ['superTcpFlags', 'URG', tcp6({ flags: TcpFlag.ack | TcpFlag.urg }), TCP6],

  // The segments (rules 4 and 5).
  ['superSegmentTooSmall', '0', tcp4(), { ...TCP4, gsoSize: 0 }],
  ['superSegmentTooSmall', '1', tcp4(), { ...TCP4, gsoSize: 1 }],
  ['superSegmentTooSmall', '255', tcp4({ payload: 1000 }), { ...TCP4, gsoSize: 255 }],
  ['superSegmentTooSmall', '255 of UDP', udp4(), { ...UDP, gsoSize: 255 }],
  ['superSegmentTooBig', 'one more than the MTU', tcp4(), { ...TCP4, gsoSize: 1361 }],
  ['superSegmentTooBig', 'by TCP options', tcp4({ tcpOptions: new Uint8Array(4).fill(1) }), TCP4],
  ['superSegmentTooBig', 'by an extension header', tcp6({ extensions: [optionsHeader(60)] }), TCP6],
  ['superSegmentTooBig', 'UDP', udp4(), { ...UDP, gsoSize: 1373 }],
  ['superOneSegment', 'a payload of one segment', tcp4({ payload: 1360 }), TCP4],
  ['superOneSegment', 'no payload', tcp4({ payload: 0 }), TCP4],
  ['superOneSegment', 'UDP', udp4({ payload: 1200 }), UDP],
  ['superTooManySegments', '65 of UDP', udp4({ payload: 64 * 256 + 1 }), { ...UDP, gsoSize: 256 }],
];

for (const [reason, name, packet, asked] of DROPPED) {
  test(`dropped, ${reason}: ${name}`, () => {
    const { reason: found, offload } = rebuild(packet, asked);
    assert.equal(found, DROP_REASON_NAMES[DropReason[reason]]);
    assert.deepEqual(offload, NO_OFFLOAD, 'nothing is written');
  });
}

test('257 TCP segments cannot be asked for: 256 of the smallest are more than a packet holds', () => {
  assert.ok((MAX_TCP_SEGMENTS + 1) * MIN_GSO_SIZE - (MIN_GSO_SIZE - 1) + 60 > 65_575);
  assert.equal(MAX_UDP_SEGMENTS, 64);
});

test('the table of drops holds every reason that this file gives', () => {
  const elsewhere = ['superTooShort'];
  const expected = Object.keys(DropReason).filter((key) => key.startsWith('super') && !elsewhere.includes(key));
  const tested = new Set<string>(DROPPED.map(([reason]) => reason));
  assert.deepEqual(
    expected.filter((key) => !tested.has(key)),
    [],
  );
});

test('whatever is asked of whatever packet, the offload lies within the headers of that packet', () => {
  const fields = {
    version: fc.constantFrom(4 as const, 6 as const),
    payload: fc.oneof(fc.nat(600), fc.nat(40_000)),
    tcp: fc.boolean(),
    flags: fc.oneof(fc.constant(0x18), fc.nat(255)),
    tcpOptions: fc.nat(10).map((words) => new Uint8Array(words * 4)),
    ipOptions: fc.nat(10).map((words) => new Uint8Array(words * 4)),
    extensions: fc.array(fc.constantFrom(optionsHeader(60), routingHeader(0, 2), optionsHeader(0)), { maxLength: 3 }),
  };
  const asked = fc.record({
    gsoType: fc.nat(4),
    flags: fc.constantFrom(1, 1, 1, 0, 3),
    gsoSize: fc.oneof(fc.constant(0), fc.integer({ min: 256, max: 1400 }), fc.nat(65_535)),
    likely: fc.option(fc.integer({ min: 256, max: 1200 }), { nil: undefined, freq: 2 }),
  });
  let taken = 0;
  fc.assert(
    fc.property(fc.record(fields), asked, ({ tcp, ...options }, drawn) => {
      const right = !tcp ? GsoType.udpL4 : options.version === 4 ? GsoType.tcp4 : GsoType.tcp6;
      const request = drawn.likely === undefined ? drawn : { gsoType: right, flags: 1, gsoSize: drawn.likely };
      const packet = (tcp ? tcpPacket : udpPacket)({ ...options, partial: true });
      const { reason, offload } = rebuild(packet, request);
      if (reason !== 'none') {
        assert.deepEqual(offload, NO_OFFLOAD);
        return;
      }
      if (offload.flags === 0) return;
      taken++;
      const extensions = options.extensions.reduce((sum, { bytes }) => sum + bytes.length, 0);
      const start = options.version === 4 ? 20 + options.ipOptions.length : 40 + extensions;
      assert.equal(offload.checksumStart, start);
      assert.equal(offload.checksumOffset, tcp ? 16 : 6);
      assert.equal(offload.headerLength, packet.length - options.payload);
      assert.equal(offload.gsoSize, request.gsoSize);
      assert.ok(offload.headerLength <= packet.length);
      assert.equal(headerBytes(packet, 0, packet.length), offload.headerLength);
      if (request.gsoType !== 0) {
        assert.ok(offload.headerLength + offload.gsoSize <= LIMITS.mtu);
        const count = segmentCount(packet.length, offload.headerLength, offload.gsoSize);
        assert.ok(count > 1 && count <= (tcp ? MAX_TCP_SEGMENTS : MAX_UDP_SEGMENTS));
      }
    }),
    { numRuns: 2_000 },
  );
  assert.ok(taken > 100, `only ${taken} packets were taken: the property tests nothing`);
});

test('a kernel type is turned into ours, or refused', () => {
  assert.equal(gsoTypeFromVirtio(0), GsoType.none);
  assert.equal(gsoTypeFromVirtio(VirtioGsoType.tcp4), GsoType.tcp4);
  assert.equal(gsoTypeFromVirtio(VirtioGsoType.tcp4 | VIRTIO_GSO_ECN), GsoType.tcp4);
  assert.equal(gsoTypeFromVirtio(VirtioGsoType.tcp6 | VIRTIO_GSO_ECN), GsoType.tcp6);
  assert.equal(gsoTypeFromVirtio(VirtioGsoType.udpL4), GsoType.udpL4);
  for (const value of [VirtioGsoType.udp, 2, 6, 0x20, 0x40, 0x7f]) assert.equal(gsoTypeFromVirtio(value), -1);
});

test('segments are counted', () => {
  assert.equal(segmentCount(1500, 40, 0), 1);
  assert.equal(segmentCount(40, 40, 1000), 1);
  assert.equal(segmentCount(1040, 40, 1000), 1);
  assert.equal(segmentCount(1041, 40, 1000), 2);
  assert.equal(segmentCount(65_535, 52, 1448), 46);
});

test('the headers of a packet are measured, or 0', () => {
  const size = (packet: Uint8Array): number => headerBytes(guard(placed(packet), 16, packet.length), 16, packet.length);
  assert.equal(size(tcp4({ tcpOptions: new Uint8Array(12) })), 52);
  assert.equal(size(udp6({ extensions: [optionsHeader(0)] })), 56);
  assert.equal(size(icmpPacket()), 0);
  assert.equal(size(tcp4({ fragment: { more: true } })), 0);
  assert.equal(size(tcp4({ payload: 0 })), 40);
  assert.equal(size(ipPacket(6, new Uint8Array(19))), 0);
  assert.equal(size(ipPacket(6, new Uint8Array(12))), 0);
  assert.equal(size(ipPacket(17, new Uint8Array(7))), 0);
  assert.equal(size(changed(tcp4({ payload: 3 }), { 32: 0x60 })), 0);
  assert.equal(size(changed(tcp4(), { 32: 0x40 })), 0);
});
