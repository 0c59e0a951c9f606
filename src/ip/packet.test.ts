import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  changed,
  concat,
  fragmentHeader,
  guard,
  type IpOptions,
  icmpPacket,
  ipPacket,
  optionsHeader,
  placed,
  routingHeader,
  tcpPacket,
  udpPacket,
} from '../../test/support/packets.ts';
import { isUnusableAddress, parseIp } from './address.ts';
import { DropReason } from './drop-reason.ts';
import {
  addressBytes,
  checkPacket,
  destinationOffset,
  flowHash,
  ipVersion,
  isMulticast,
  isUnroutable,
  sourceOffset,
  transportOffset,
  transportProtocol,
  walkTransport,
} from './packet.ts';

/** Places the packet inside other bytes and guards it: reading outside fails the test. */
function at16(packet: Uint8Array): [Uint8Array, number, number] {
  return [guard(placed(packet), 16, packet.length), 16, packet.length];
}

test('version and addresses are found at any offset', () => {
  const packet = tcpPacket({ source: 'fd00:8::2', destination: '2001:db8::80' });
  const bytes = placed(packet, 3);
  assert.equal(ipVersion(bytes, 3), 6);
  const source = 3 + sourceOffset(6);
  assert.deepEqual(bytes.slice(source, source + addressBytes(6)), parseIp('fd00:8::2').bytes);
  const destination = 3 + destinationOffset(6);
  assert.deepEqual(bytes.slice(destination, destination + addressBytes(6)), parseIp('2001:db8::80').bytes);

  const packet4 = tcpPacket({ source: '10.8.0.2', destination: '192.0.2.80' });
  assert.equal(ipVersion(packet4, 0), 4);
  assert.deepEqual(packet4.slice(sourceOffset(4), sourceOffset(4) + addressBytes(4)), parseIp('10.8.0.2').bytes);
  assert.deepEqual(packet4.slice(destinationOffset(4), destinationOffset(4) + 4), parseIp('192.0.2.80').bytes);
});

const GOOD: readonly [string, Uint8Array][] = [
  ['IPv4 TCP', tcpPacket()],
  ['IPv4 UDP without payload', udpPacket({ payload: 0 })],
  ['IPv4 header only', ipPacket(6, new Uint8Array(0))],
  ['IPv4 with the most options', tcpPacket({ ipOptions: new Uint8Array(40).fill(1) })],
  ['IPv4 fragment', udpPacket({ fragment: { offset: 185, more: true } })],
  ['IPv4 of 65,535 bytes', udpPacket({ payload: 65_535 - 28 })],
  ['IPv6 ICMP', icmpPacket({ version: 6 })],
  ['IPv6 without payload', ipPacket(59, new Uint8Array(0), { version: 6 })],
  ['IPv6 of 65,575 bytes', udpPacket({ version: 6, payload: 65_535 - 8 })],
  ['IPv6 with a header that is not walked', ipPacket(51, new Uint8Array(24), { version: 6 })],
];

for (const [name, packet] of GOOD) {
  test(`checkPacket takes ${name}`, () => {
    assert.equal(checkPacket(...at16(packet)), DropReason.none);
  });
}

const v4 = tcpPacket({ payload: 100 });
const v6 = tcpPacket({ version: 6, payload: 100 });

const BAD: readonly [string, Uint8Array, DropReason][] = [
  ['an empty packet', new Uint8Array(0), DropReason.tooShort],
  ['one byte of IPv4', v4.slice(0, 1), DropReason.tooShort],
  ['19 bytes of IPv4', v4.slice(0, 19), DropReason.tooShort],
  ['39 bytes of IPv6', v6.slice(0, 39), DropReason.tooShort],
  ['version 0', changed(v4, { 0: 0x05 }), DropReason.version],
  ['version 5', changed(v4, { 0: 0x55 }), DropReason.version],
  ['version 15 in one byte', Uint8Array.of(0xf0), DropReason.version],
  ['an IPv4 header of 4 words', changed(v4, { 0: 0x44 }), DropReason.ipHeaderLength],
  ['an IPv4 header longer than the packet', changed(ipPacket(6, new Uint8Array(3)), { 0: 0x46 }), 3],
  ['IPv4 with a byte behind it', concat(v4, Uint8Array.of(0)), DropReason.ipLength],
  ['IPv4 cut by a byte', v4.slice(0, -1), DropReason.ipLength],
  ['IPv4 with total length 0', changed(v4, { 2: 0, 3: 0 }), DropReason.ipLength],
  ['IPv6 with a byte behind it', concat(v6, Uint8Array.of(0)), DropReason.ipLength],
  ['IPv6 cut by a byte', v6.slice(0, -1), DropReason.ipLength],
  ['IPv6 with payload length 0 and a payload', changed(v6, { 4: 0, 5: 0 }), DropReason.ipLength],
];

for (const [name, packet, reason] of BAD) {
  test(`checkPacket drops ${name}`, () => {
    assert.equal(checkPacket(...at16(packet)), reason);
  });
}

test('every prefix of a packet is dropped, and none is read beyond', () => {
  for (const packet of [v4, v6]) {
    for (let length = 0; length < packet.length; length++) {
      assert.notEqual(checkPacket(guard(placed(packet), 16, length), 16, length), DropReason.none, `${length} bytes`);
    }
  }
});

function walk(packet: Uint8Array): { offset: number; protocol: number } | { reason: number } {
  const result = walkTransport(...at16(packet));
  return result < 0 ? { reason: -result } : { offset: transportOffset(result), protocol: transportProtocol(result) };
}

const eight = Array.from({ length: 8 }, () => optionsHeader(60));

const WALKS: readonly [string, Uint8Array, { offset: number; protocol: number } | { reason: number }][] = [
  ['IPv4 TCP', tcpPacket(), { offset: 20, protocol: 6 }],
  ['IPv4 UDP behind 40 bytes of options', udpPacket({ ipOptions: new Uint8Array(40) }), { offset: 60, protocol: 17 }],
  ['an IPv4 header and nothing else', ipPacket(255, new Uint8Array(0)), { offset: 20, protocol: 255 }],
  ['an IPv4 first fragment', udpPacket({ fragment: { more: true } }), { reason: DropReason.superFragment }],
  ['an IPv4 last fragment', udpPacket({ fragment: { offset: 1 } }), { reason: DropReason.superFragment }],
  ['an IPv4 fragment at the highest offset', udpPacket({ fragment: { offset: 0x1fff } }), { reason: 12 }],
  ['IPv4 with DF', udpPacket(), { offset: 20, protocol: 17 }],
  ['IPv6 TCP', tcpPacket({ version: 6 }), { offset: 40, protocol: 6 }],
  ['IPv6 without payload', ipPacket(59, new Uint8Array(0), { version: 6 }), { offset: 40, protocol: 59 }],
  [
    'IPv6 hop-by-hop, destination options, routing',
    tcpPacket({ version: 6, extensions: [optionsHeader(0, 1), optionsHeader(60), routingHeader(0, 2)] }),
    { offset: 40 + 16 + 8 + 24, protocol: 6 },
  ],
  ['8 extension headers', tcpPacket({ version: 6, extensions: eight }), { offset: 40 + 64, protocol: 6 }],
  [
    '9 extension headers',
    tcpPacket({ version: 6, extensions: [...eight, optionsHeader(60)] }),
    { reason: DropReason.superExtensionCount },
  ],
  [
    'hop-by-hop as the second header',
    tcpPacket({ version: 6, extensions: [optionsHeader(60), optionsHeader(0)] }),
    { reason: DropReason.superExtensionOrder },
  ],
  [
    'hop-by-hop twice',
    tcpPacket({ version: 6, extensions: [optionsHeader(0), optionsHeader(0)] }),
    { reason: DropReason.superExtensionOrder },
  ],
  [
    'a routing header with a segment left',
    tcpPacket({ version: 6, extensions: [routingHeader(1)] }),
    { reason: DropReason.superRouting },
  ],
  ['an IPv6 fragment', tcpPacket({ version: 6, extensions: [fragmentHeader()] }), { reason: DropReason.superFragment }],
  [
    'an atomic fragment behind options',
    tcpPacket({ version: 6, extensions: [optionsHeader(0), fragmentHeader(0, false)] }),
    { reason: DropReason.superFragment },
  ],
  [
    'an authentication header ends the walk',
    ipPacket(51, new Uint8Array(24), { version: 6 }),
    { offset: 40, protocol: 51 },
  ],
  ['mobility ends the walk', ipPacket(135, new Uint8Array(8), { version: 6 }), { offset: 40, protocol: 135 }],
  [
    'an extension header of 7 bytes',
    ipPacket(60, new Uint8Array(7), { version: 6 }),
    { reason: DropReason.superTruncated },
  ],
  [
    'an extension header longer than the packet',
    ipPacket(60, Uint8Array.of(6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), { version: 6 }),
    { reason: DropReason.superTruncated },
  ],
  [
    'an extension header that ends with the packet',
    ipPacket(60, Uint8Array.of(6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), { version: 6 }),
    { offset: 56, protocol: 6 },
  ],
];

test('the walk stays within a packet that is cut anywhere', () => {
  const chain = tcpPacket({ version: 6, extensions: [optionsHeader(0), routingHeader(0), optionsHeader(60, 1)] });
  for (const packet of [v4, chain]) {
    for (let length = 0; length < packet.length; length++) {
      const result = walkTransport(guard(placed(packet), 16, length), 16, length);
      const whole = length >= (packet === v4 ? 20 : 72);
      assert.equal(result < 0 ? -result : 0, whole ? 0 : DropReason.superTruncated, `${length} bytes`);
    }
  }
});

for (const [name, packet, expected] of WALKS) {
  test(`walkTransport: ${name}`, () => assert.deepEqual(walk(packet), expected));
}

test('the walk finds the transport header behind any chain that is allowed', () => {
  const header = fc.oneof(
    fc.nat(3).map((more) => optionsHeader(60, more)),
    fc.nat(3).map((more) => routingHeader(0, more)),
  );
  fc.assert(
    fc.property(fc.array(header, { maxLength: 8 }), fc.boolean(), (chain, hopByHop) => {
      const extensions = hopByHop ? [optionsHeader(0, 1), ...chain.slice(0, 7)] : chain;
      const bytes = extensions.reduce((sum, extension) => sum + extension.bytes.length, 0);
      assert.deepEqual(walk(udpPacket({ version: 6, extensions })), { offset: 40 + bytes, protocol: 17 });
    }),
  );
});

const UNROUTABLE = [
  ...['0.0.0.0', '0.1.2.3', '127.0.0.1', '127.255.255.255', '169.254.0.0', '169.254.169.254', '224.0.0.1'],
  ...['239.255.255.255', '240.0.0.1', '255.255.255.255', '::', '::1', 'fe80::1', 'febf::1', 'ff02::1', 'ffff::'],
];
const ROUTABLE = [
  ...['1.0.0.0', '10.0.0.1', '126.255.255.255', '128.0.0.1', '169.253.255.255', '169.255.0.0', '223.255.255.255'],
  ...['::2', '::1:0:0', '1::', '64:ff9b::1', '2001:db8::1', 'fd00::1', 'fec0::1', 'fe7f::1', '::fffe:1:2'],
];

test('addresses that never cross a tunnel', () => {
  for (const text of UNROUTABLE) {
    const { bytes, version } = parseIp(text);
    assert.ok(isUnroutable(guard(placed(bytes), 16, bytes.length), 16, version), text);
  }
  for (const text of ROUTABLE) {
    const { bytes, version } = parseIp(text);
    assert.ok(!isUnroutable(bytes, 0, version), text);
  }
  const mapped = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1);
  assert.ok(isUnroutable(mapped, 0, 6), 'v4-mapped');
});

test('the packet path and the configuration agree on which addresses these are', () => {
  const edge = fc.constantFrom(0, 0, 0, 0, 1, 127, 128, 169, 223, 224, 254, 255, 255);
  for (const version of [4, 6] as const) {
    const length = addressBytes(version);
    const bytes = fc.array(fc.oneof(edge, fc.nat(255)), { minLength: length, maxLength: length });
    fc.assert(
      fc.property(bytes, (octets) => {
        const address = { version, bytes: Uint8Array.from(octets) };
        assert.equal(isUnroutable(address.bytes, 0, version), isUnusableAddress(address));
      }),
      { numRuns: 2_000 },
    );
  }
});

test('multicast and broadcast', () => {
  for (const text of ['224.0.0.0', '239.1.2.3', '255.255.255.255', 'ff02::fb', 'ff00::']) {
    const { bytes, version } = parseIp(text);
    assert.ok(isMulticast(bytes, 0, version), text);
  }
  for (const text of ['223.255.255.255', '240.0.0.0', '255.255.255.254', 'fe80::1', '2001:db8::1']) {
    const { bytes, version } = parseIp(text);
    assert.ok(!isMulticast(bytes, 0, version), text);
  }
});

const KEY = [0x03020100, 0x07060504] as const;

function hash(packet: Uint8Array, key: readonly [number, number] = KEY): number {
  return flowHash(...at16(packet), key);
}

test('the oracle of the flow hash gives the published vectors of HalfSipHash-2-4', () => {
  const expected = [0x5b9f35a9, 0xb85a4727, 0x03a662fa, 0x04e7fe8a, 0x89466e2a, 0x69b6fac5, 0x23fc6358, 0xc563cf8b];
  const message = Uint8Array.from({ length: 8 }, (_, at) => at);
  for (const [length, value] of expected.entries()) assert.equal(halfSipHash(message.slice(0, length), KEY), value);
});

test('the flow hash is HalfSipHash-2-4 of addresses, ports, protocol and version', () => {
  const options = fc.record({
    version: fc.constantFrom(4 as const, 6 as const),
    sourcePort: fc.nat(65_535),
    destinationPort: fc.nat(65_535),
    payload: fc.nat(30),
  });
  const key = fc.tuple(
    fc.integer(),
    fc.maxSafeNat().map((value) => value % 2 ** 32),
  );
  fc.assert(
    fc.property(options, key, fc.boolean(), (fields, words, tcp) => {
      const packet = tcp ? tcpPacket(fields) : udpPacket(fields);
      const addresses = fields.version === 4 ? packet.slice(12, 20) : packet.slice(8, 40);
      const start = fields.version === 4 ? 20 : 40;
      const protocol = Uint8Array.of(tcp ? 6 : 17, fields.version, 0, 0);
      const message = concat(addresses, packet.slice(start, start + 4), protocol);
      assert.equal(hash(packet, words), halfSipHash(message, words) & 0x7fffffff);
    }),
  );
});

test('each part of a flow and of the key changes the hash', () => {
  for (const version of [4, 6] as const) {
    const [source, destination] = version === 4 ? ['10.8.0.9', '192.0.2.9'] : ['fd00:8::9', '2001:db8::9'];
    const flows: Uint8Array[] = [
      tcpPacket({ version }),
      udpPacket({ version, destinationPort: 443 }),
      tcpPacket({ version, sourcePort: 40_001 }),
      tcpPacket({ version, destinationPort: 444 }),
      tcpPacket({ version, source }),
      tcpPacket({ version, destination }),
      icmpPacket({ version }),
    ];
    assert.equal(new Set(flows.map((flow) => hash(flow))).size, flows.length);
    const packet = tcpPacket({ version });
    assert.equal(new Set([hash(packet), hash(packet, [0, KEY[1]]), hash(packet, [KEY[0], 0])]).size, 3);
  }
});

test('what is no part of the flow does not change the hash', () => {
  assert.equal(hash(tcpPacket({ payload: 0 })), hash(tcpPacket({ payload: 900, sequence: 7, flags: 0x18, ttl: 3 })));
  assert.equal(hash(icmpPacket({ sequence: 1 })), hash(icmpPacket({ sequence: 2 })));
  const plain = tcpPacket({ version: 6 });
  assert.equal(hash(plain), hash(tcpPacket({ version: 6, extensions: [optionsHeader(60)] })));
});

test('all fragments of a packet have one hash, without ports', () => {
  const first: IpOptions = { fragment: { more: true } };
  const last: IpOptions = { fragment: { offset: 185 } };
  assert.equal(hash(udpPacket({ ...first, sourcePort: 1 })), hash(udpPacket({ ...last, sourcePort: 2 })));
  assert.notEqual(hash(udpPacket(first)), hash(tcpPacket(first)));
  const first6: IpOptions = { version: 6, extensions: [fragmentHeader(0, true)] };
  const last6: IpOptions = { version: 6, extensions: [fragmentHeader(185, false)] };
  assert.equal(hash(udpPacket({ ...first6, sourcePort: 1 })), hash(udpPacket({ ...last6, sourcePort: 2 })));
});

test('the hash spreads flows evenly over 256 buckets', () => {
  const buckets = new Uint32Array(256);
  for (let port = 0; port < 25_600; port++) {
    const bucket = flowHash(changed(v4, { 20: port >> 8, 21: port & 0xff }), 0, v4.length, KEY) & 0xff;
    buckets[bucket] = (buckets[bucket] ?? 0) + 1;
  }
  // 100 expected in each; ten standard deviations is no chance.
  for (const count of buckets) assert.ok(count > 0 && count < 200, `a bucket of ${count}`);
});

test('a header alone has a hash, and ports only when all four bytes are there', () => {
  for (const version of [4, 6] as const) {
    const alone = hash(ipPacket(6, new Uint8Array(0), { version }));
    assert.notEqual(alone, 0);
    assert.equal(hash(ipPacket(6, Uint8Array.of(1, 2, 3), { version })), alone);
    assert.notEqual(hash(ipPacket(6, Uint8Array.of(1, 2, 3, 4), { version })), alone);
  }
});

test('a packet shorter than its header has hash 0', () => {
  assert.equal(hash(new Uint8Array(0)), 0);
  assert.equal(hash(v4.slice(0, 19)), 0);
  assert.equal(hash(v6.slice(0, 39)), 0);
});

/** HalfSipHash-2-4 with BigInt, over bytes. */
function halfSipHash(message: Uint8Array, key: readonly [number, number]): number {
  const mask = 0xffff_ffffn;
  const k0 = BigInt.asUintN(32, BigInt(key[0]));
  const k1 = BigInt.asUintN(32, BigInt(key[1]));
  let [a, b, c, d] = [k0, k1, k0 ^ 0x6c796765n, k1 ^ 0x74656462n];
  const rotate = (value: bigint, by: bigint): bigint => ((value << by) | (value >> (32n - by))) & mask;
  const round = (): void => {
    a = (a + b) & mask;
    b = rotate(b, 5n) ^ a;
    a = rotate(a, 16n);
    c = (c + d) & mask;
    d = rotate(d, 8n) ^ c;
    a = (a + d) & mask;
    d = rotate(d, 7n) ^ a;
    c = (c + b) & mask;
    b = rotate(b, 13n) ^ c;
    c = rotate(c, 16n);
  };
  const padded = new Uint8Array((message.length & ~3) + 4);
  padded.set(message);
  padded[padded.length - 1] = message.length;
  for (let at = 0; at < padded.length; at += 4) {
    const word = BigInt(new DataView(padded.buffer).getUint32(at, true));
    d ^= word;
    round();
    round();
    a ^= word;
  }
  c ^= 0xffn;
  for (let count = 0; count < 4; count++) round();
  return Number(b ^ d);
}
