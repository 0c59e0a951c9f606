import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { changed, concat, guard, mendIpv4, placed, TcpFlag, tcpPacket } from '../../test/support/packets.ts';
import { DropReason } from './drop-reason.ts';
import { writeSegment } from './segment.ts';
import { SegmentJoiner } from './segment-joiner.ts';
import { GsoType, NO_OFFLOAD, rebuildOffload } from './super-packet.ts';

const OFFSET = 16;
const MTU = 1400;

interface Train {
  version: 4 | 6;
  sizes: readonly number[];
  sequence?: number;
  tcpOptions?: Uint8Array;
}

/** The packets of a sender that cuts nothing at once. */
function train({ version, sizes, sequence = 1000, tcpOptions = new Uint8Array(12).fill(1) }: Train): Uint8Array[] {
  let next = sequence;
  return sizes.map((size, index) => {
    const packet = tcpPacket({
      version,
      sequence: next,
      tcpOptions,
      flags: TcpFlag.ack,
      payload: Uint8Array.from({ length: size }, (_, at) => at * 7 + index),
    });
    next = (next + size) % 2 ** 32;
    return numbered(packet, index);
  });
}

/** With an identification that counts up, and DF. */
function numbered(packet: Uint8Array, index: number): Uint8Array {
  return packet[0] === 0x45 ? mendIpv4(changed(packet, { 4: 0x42, 5: index, 6: 0x40, 7: 0 })) : packet;
}

/** What is written for packets that come in this order: the bytes and what they stand for. */
function join(packets: readonly Uint8Array[], mtu = MTU): { bytes: Uint8Array; segments: number; gsoSize: number }[] {
  const target = new Uint8Array(OFFSET + 65_535);
  const joiner = new SegmentJoiner(target, OFFSET, mtu);
  const written: { bytes: Uint8Array; segments: number; gsoSize: number }[] = [];
  const write = (): void => {
    if (joiner.segments === 0) return;
    joiner.finish();
    const { length, segments, offload } = joiner;
    written.push({ bytes: target.slice(OFFSET, OFFSET + length), segments, gsoSize: offload.gsoSize });
    joiner.clear();
  };
  for (const packet of packets) {
    const bytes = guard(placed(packet), OFFSET, packet.length);
    if (joiner.append(bytes, OFFSET, packet.length)) continue;
    write();
    if (!joiner.begin(bytes, OFFSET, packet.length)) written.push({ bytes: packet, segments: 1, gsoSize: 0 });
  }
  write();
  return written;
}

/** The packets that a kernel makes of a joined one, by the rules for what comes from a peer. */
function cut({ bytes, segments, gsoSize }: { bytes: Uint8Array; segments: number; gsoSize: number }): Uint8Array[] {
  if (segments === 1) return [bytes];
  const offload = { ...NO_OFFLOAD };
  const gsoType = (bytes[0] ?? 0) >> 4 === 4 ? GsoType.tcp4 : GsoType.tcp6;
  const limits = { mtu: MTU, uso: true };
  assert.equal(rebuildOffload(bytes, 0, bytes.length, gsoType, 1, gsoSize, limits, offload), DropReason.none);
  return Array.from({ length: segments }, (_, index) => {
    const target = new Uint8Array(2000);
    return target.slice(0, writeSegment(bytes, 0, bytes.length, offload, index, target, 0));
  });
}

describe('segments of one flow', () => {
  test('are joined, and cut again they are the packets that came', () => {
    const options = fc.record({
      version: fc.constantFrom(4 as const, 6 as const),
      count: fc.integer({ min: 2, max: 60 }),
      size: fc.integer({ min: 256, max: 1300 }),
      last: fc.integer({ min: 1, max: 1300 }),
      sequence: fc.constantFrom(0, 77, 0x7fff_ff00, 0xffff_fc00),
      tcpOptions: fc.nat(10).map((words) => new Uint8Array(words * 4).fill(1)),
    });
    fc.assert(
      fc.property(options, ({ count, size, last, ...fields }) => {
        const sizes = [...new Array<number>(count).fill(size), Math.min(last, size)];
        const packets = train({ ...fields, sizes });
        if (packets.some((packet) => packet.length > MTU)) return;
        const written = join(packets);
        assert.ok(written.length <= Math.ceil((sizes.length * size) / (65_535 - 100)) + 1, `${written.length} writes`);
        assert.deepEqual(written.flatMap(cut), packets);
      }),
    );
  });

  test('become no packet of more than 65,535 bytes, and none of more than 256 segments', () => {
    for (const [size, count] of [
      [1300, 100],
      [256, 300],
    ] as const) {
      const packets = train({ version: 6, sizes: new Array<number>(count).fill(size) });
      const written = join(packets);
      assert.equal(written.length, 2);
      for (const { bytes, segments } of written) assert.ok(bytes.length <= 65_535 && segments <= 256);
      assert.deepEqual(written.flatMap(cut), packets);
    }
  });

  test('end with one that is short, and with one that is pushed, whose flag stays with the last byte', () => {
    const [a, b, c, d] = train({ version: 4, sizes: [1000, 1000, 500, 1000] }) as [
      Uint8Array,
      Uint8Array,
      Uint8Array,
      Uint8Array,
    ];
    assert.deepEqual(
      join([a, b, c, d]).map(({ segments }) => segments),
      [3, 1],
    );
    const pushed = withTcp(b, (tcp) => tcp.setUint8(13, TcpFlag.ack | TcpFlag.psh));
    const written = join([a, pushed, c]);
    assert.deepEqual(
      written.map(({ segments }) => segments),
      [2, 1],
    );
    assert.deepEqual(written.flatMap(cut), [a, pushed, c]);
  });
});

/** A packet whose TCP header was changed, with its checksum made right. */
function withTcp(packet: Uint8Array, change: (tcp: DataView) => void): Uint8Array {
  const copy = packet.slice();
  const ipBytes = (copy[0] ?? 0) >> 4 === 4 ? 20 : 40;
  const tcp = new DataView(copy.buffer, ipBytes);
  const before = new Uint8Array(copy.buffer, ipBytes).slice();
  change(tcp);
  // RFC 1624: the checksum changes by what has changed.
  let sum = ~tcp.getUint16(16) & 0xffff;
  for (let at = 0; at < 60 && at + 1 < before.length; at += 2) {
    if (at === 16) continue;
    sum += tcp.getUint16(at) + (~(((before[at] ?? 0) << 8) | (before[at + 1] ?? 0)) & 0xffff);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  tcp.setUint16(16, ~sum & 0xffff);
  return copy;
}

describe('a packet that could change by it is not joined', () => {
  const cases: Record<string, (second: Uint8Array) => Uint8Array> = {
    'a gap in the sequence': (second) => withTcp(second, (tcp) => tcp.setUint32(4, tcp.getUint32(4) + 1)),
    'another acknowledgement': (second) => withTcp(second, (tcp) => tcp.setUint32(8, tcp.getUint32(8) + 1)),
    'another window': (second) => withTcp(second, (tcp) => tcp.setUint16(14, 5)),
    'another port': (second) => withTcp(second, (tcp) => tcp.setUint16(2, 5)),
    'other options': (second) => withTcp(second, (tcp) => tcp.setUint8(24, 0)),
    FIN: (second) => withTcp(second, (tcp) => tcp.setUint8(13, TcpFlag.ack | TcpFlag.fin)),
    'the answer to ECN': (second) => withTcp(second, (tcp) => tcp.setUint8(13, TcpFlag.ack | TcpFlag.cwr)),
    'a wrong checksum': (second) => withByte(second, second.length - 1, (value) => value ^ 1),
    'another hop limit': (second) => withByte(second, second[0] === 0x45 ? 8 : 7, (value) => value - 1),
    // Two bytes of the payload make up for it in the checksum.
    'another source': (second) => {
      const at = second[0] === 0x45 ? 15 : 23;
      const words = new DataView(second.buffer, second.byteOffset);
      const payload = second.length - 2;
      const value = words.getUint16(payload) - 1;
      return withByte(changed(second, { [payload]: value >> 8, [payload + 1]: value & 0xff }), at, (byte) => byte + 1);
    },
    'congestion on the way': (second) => withByte(second, 1, (value) => value | (second[0] === 0x45 ? 3 : 0x30)),
  };
  for (const [name, change] of Object.entries(cases)) {
    test(name, () => {
      for (const version of [4, 6] as const) {
        const [first, second] = train({ version, sizes: [1000, 1000] }) as [Uint8Array, Uint8Array];
        const other = change(second);
        assert.deepEqual(
          join([first, other]).map(({ bytes }) => bytes),
          [first, other],
        );
      }
    });
  }

  test('one that may be fragmented, is a fragment, or has options of IP', () => {
    for (const change of [
      (packet: Uint8Array) => withByte(packet, 6, () => 0),
      (packet: Uint8Array) => withByte(packet, 6, () => 0x60),
      (packet: Uint8Array) => withByte(packet, 0, () => 0x46),
    ]) {
      const packets = train({ version: 4, sizes: [1000, 1000] }).map(change);
      assert.deepEqual(
        join(packets).map(({ bytes }) => bytes),
        packets,
      );
    }
  });

  test('one that is small, or longer than the device takes', () => {
    for (const [size, mtu] of [
      [255, MTU],
      [1000, 1040],
    ] as const) {
      const packets = train({ version: 4, sizes: [size, size] });
      assert.equal(join(packets, mtu).length, 2);
    }
  });

  test('any bytes', () => {
    const packets = fc.array(fc.uint8Array({ minLength: 20, maxLength: 200 }), { maxLength: 5 });
    fc.assert(
      fc.property(packets, (list) => {
        assert.deepEqual(concat(...join(list).map(({ bytes }) => bytes)), concat(...list));
      }),
    );
  });
});

/** With another byte, and the checksum of the IPv4 header right. */
function withByte(packet: Uint8Array, at: number, change: (value: number) => number): Uint8Array {
  const copy = changed(packet, { [at]: change(packet[at] ?? 0) });
  return packet[0] === 0x45 ? mendIpv4(copy) : copy;
}
