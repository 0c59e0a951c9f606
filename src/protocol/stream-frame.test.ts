// The frames of connections for streams: every layout by its bytes, every limit, and every chunking.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import {
  decodeWish,
  encodeStreamFrame,
  encodeWish,
  refusalOfCode,
  StreamFrameDecoder,
  StreamFrameType,
  StreamRefusalCode,
} from './stream-frame.ts';

/** What a decoder tells, with the pieces of each DATA frame joined. */
function decode(chunks: readonly Uint8Array[]): string[] {
  const told: string[] = [];
  let data = '';
  const decoder = new StreamFrameDecoder({
    data: (stream, bytes, start, end, isLast) => {
      data += Buffer.from(bytes.subarray(start, end)).toString('hex');
      if (!isLast) return;
      told.push(`${stream} data ${data}`);
      data = '';
    },
    control: (type, stream, payload) => void told.push(`${stream} ${type} ${Buffer.from(payload).toString('hex')}`),
  });
  for (const chunk of chunks) decoder.push(chunk);
  assert.ok(decoder.isBetweenFrames);
  return told;
}

const FRAMES = Buffer.concat([
  encodeStreamFrame(StreamFrameType.bind, 0, Buffer.from('who')),
  encodeStreamFrame(StreamFrameType.open, 1, encodeWish({ kind: 'tcp', host: 'a.b', port: 443 })),
  encodeStreamFrame(StreamFrameType.opened, 1),
  encodeStreamFrame(StreamFrameType.data, 1, Buffer.from('hello')),
  encodeStreamFrame(StreamFrameType.credit, 0xfffffffe, Uint8Array.of(0, 1, 0, 0)),
  encodeStreamFrame(StreamFrameType.end, 1),
  encodeStreamFrame(StreamFrameType.data, 2, new Uint8Array(1)),
  encodeStreamFrame(StreamFrameType.reset, 2),
]);
const TOLD = [
  '0 1 77686f',
  '1 3 0101bb612e62',
  '1 4 ',
  '1 data 68656c6c6f',
  '4294967294 9 00010000',
  '1 7 ',
  '2 data 00',
  '2 8 ',
];

test('REQ-MUX-001: a frame is type, length, stream and payload, in any chunking', () => {
  assert.equal(
    Buffer.from(encodeStreamFrame(StreamFrameType.data, 0x01020304, Uint8Array.of(0xff))).toString('hex'),
    '0600000101020304ff',
  );
  assert.deepEqual(decode([FRAMES]), TOLD);
  for (let at = 1; at < FRAMES.length; at++)
    assert.deepEqual(decode([FRAMES.subarray(0, at), FRAMES.subarray(at)]), TOLD, `cut at ${at}`);
  assert.deepEqual(decode(Array.from(FRAMES, (byte) => Uint8Array.of(byte))), TOLD);
});

test('REQ-MUX-002: a type that is none, and a length outside of its type, end the connection', () => {
  const refusals: [string, string][] = [
    ['0000000000000000', 'ERR_FRAME_TYPE'],
    ['0c00000000000000', 'ERR_FRAME_TYPE'],
    ['0601000100000001', 'ERR_FRAME_TOO_LONG'],
    ['0600000000000001', 'ERR_FRAME_EMPTY'],
    ['0700000100000001', 'ERR_FRAME_TOO_LONG'],
    ['0900000300000001', 'ERR_FRAME_EMPTY'],
    ['0a00000900000000', 'ERR_FRAME_TOO_LONG'],
    ['0100020100000000', 'ERR_FRAME_TOO_LONG'],
    ['0300010300000001', 'ERR_FRAME_TOO_LONG'],
  ];
  for (const [hex, code] of refusals) {
    const bytes = Buffer.from(hex, 'hex');
    for (const chunks of [[bytes], Array.from(bytes, (byte) => Uint8Array.of(byte))]) {
      assert.throws(
        () => decode(chunks),
        (error) => isVpnError(error) && error.code === code && error.kind === 'protocol',
        hex,
      );
    }
  }
});

test('nothing is told after an error, or when the decoder was stopped', () => {
  const told: number[] = [];
  const decoder = new StreamFrameDecoder({ data: () => {}, control: (type) => void told.push(type) });
  assert.throws(() => decoder.push(new Uint8Array(8)));
  decoder.push(encodeStreamFrame(StreamFrameType.opened, 1));
  assert.deepEqual(told, []);
});

test('REQ-MUX-003: OPEN names a kind, a port and a host', () => {
  for (const wish of [
    { kind: 'tcp', host: 'example.com', port: 1 },
    { kind: 'udp', host: '2001:db8::1', port: 65_535 },
    { kind: 'tcp', host: '192.0.2.1', port: 53 },
  ] as const) {
    assert.deepEqual(decodeWish(encodeWish(wish)), wish);
  }
  for (const hex of ['0300356161', '0000356161', '0100006161', '01003500', '0100356120', '010035c3a4']) {
    assert.throws(
      () => decodeWish(Buffer.from(hex, 'hex')),
      (error) => isVpnError(error, 'ERR_MESSAGE_FIELD'),
      hex,
    );
  }
  for (const host of ['', 'a'.repeat(256), 'ä', 'a b', 'a\0b'])
    assert.throws(
      () => encodeWish({ kind: 'tcp', host, port: 1 }),
      (error) => isVpnError(error, 'ERR_MESSAGE_FIELD'),
    );
});

test('REQ-MUX-006: each refusal has a code, and one that is not known is an error of the proxy', () => {
  for (const [name, code] of Object.entries(StreamRefusalCode)) assert.equal(refusalOfCode(code), name);
  assert.equal(new Set(Object.values(StreamRefusalCode)).size, Object.keys(StreamRefusalCode).length);
  for (const code of [0, 10, 255]) assert.equal(refusalOfCode(code), 'proxy_internal_error');
});
