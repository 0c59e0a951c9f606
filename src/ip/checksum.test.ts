import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  guard,
  ipPacket,
  naiveChecksum,
  placed,
  tcpPacket,
  transportChecksumOk,
  udpPacket,
} from '../../test/support/packets.ts';
import {
  addWords,
  completeChecksum,
  fold,
  internetChecksum,
  ipv4HeaderChecksumOk,
  pseudoHeaderSum,
  writeIpv4HeaderChecksum,
} from './checksum.ts';

test('the checksum of the example in RFC 1071 §3', () => {
  const bytes = Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7);
  assert.equal(fold(addWords(bytes, 0, 8)), 0xddf2);
  assert.equal(internetChecksum(bytes, 0, 8), 0x220d);
});

test('an odd last byte is padded with zero behind it', () => {
  assert.equal(fold(addWords(Uint8Array.of(0x12, 0x34, 0x56, 0xff), 0, 3)), 0x1234 + 0x5600);
});

test('the checksum of any bytes at any offset is the naive one, of 65,535 bytes of ones too', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.nat(20), (bytes, offset) => {
      const at = Math.min(offset, bytes.length);
      const guarded = guard(bytes, at, bytes.length - at);
      assert.equal(internetChecksum(guarded, at, bytes.length - at), naiveChecksum(bytes.subarray(at)));
    }),
  );
  const ones = new Uint8Array(65_535).fill(0xff);
  assert.equal(internetChecksum(ones, 0, ones.length), naiveChecksum(ones));
});

test('an IPv4 header checksum is recognised, missed by any changed bit, and written', () => {
  const packet = tcpPacket({ ipOptions: Uint8Array.of(1, 1, 1, 0), payload: 3 });
  assert.ok(ipv4HeaderChecksumOk(packet, 0, 24));
  for (let bit = 0; bit < 24 * 8; bit++) {
    const broken = packet.slice();
    broken[bit >> 3] = (broken[bit >> 3] ?? 0) ^ (0x80 >> (bit & 7));
    assert.ok(!ipv4HeaderChecksumOk(broken, 0, 24), `bit ${bit}`);
    writeIpv4HeaderChecksum(broken, 0, 24);
    assert.ok(ipv4HeaderChecksumOk(broken, 0, 24), `bit ${bit} mended`);
  }
});

test('the pseudo-header sum is what a partial checksum field holds', () => {
  for (const version of [4, 6] as const) {
    const tcp = tcpPacket({ version, payload: 999, partial: true });
    const start = version === 4 ? 20 : 40;
    const view = new DataView(tcp.buffer);
    assert.equal(fold(pseudoHeaderSum(tcp, 0, version, 6, tcp.length - start)), view.getUint16(start + 16));
  }
});

test('completing a partial checksum gives the full one', () => {
  fc.assert(
    fc.property(fc.constantFrom(4 as const, 6 as const), fc.uint8Array({ maxLength: 80 }), (version, payload) => {
      const start = version === 4 ? 20 : 40;
      for (const [build, checksumOffset] of [
        [tcpPacket, 16],
        [udpPacket, 6],
      ] as const) {
        const packet = build({ version, payload, partial: true });
        const bytes = placed(packet);
        completeChecksum(guard(bytes, 16, packet.length), 16, packet.length, start, checksumOffset);
        const complete = bytes.slice(16, 16 + packet.length);
        assert.ok(transportChecksumOk(complete));
        assert.deepEqual(complete, build({ version, payload }));
      }
    }),
  );
});

test('a UDP checksum that would be 0 becomes 0xffff', () => {
  const empty = ipPacket(17, Uint8Array.of(0, 0, 0, 0, 0, 10, 0, 0, 0, 0), {}, 6, true);
  const view = new DataView(empty.buffer);
  view.setUint16(28, 0xffff - fold(view.getUint16(26) + 10));
  completeChecksum(empty, 0, empty.length, 20, 6);
  assert.equal(view.getUint16(26), 0xffff);
});
