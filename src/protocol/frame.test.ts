import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { code, utf8 } from '../../test/support/protocol.ts';
import { isVpnError, VpnError } from '../base/errors.ts';
import {
  encodeFrame,
  encodeGreeting,
  FrameDecoder,
  type FramePhase,
  type FrameSender,
  type FrameSink,
  FrameType,
  GREETING,
  MAX_CONTROL_PAYLOAD_BYTES,
  MAX_EARLY_PING_PAYLOAD_BYTES,
  MAX_ETHERNET_PAYLOAD_BYTES,
  MAX_LOGIN_PAYLOAD_BYTES,
  MAX_PACKET_PAYLOAD_BYTES,
  MAX_PING_PAYLOAD_BYTES,
  MAX_SHORT_PAYLOAD_BYTES,
  MAX_SUPER_PAYLOAD_BYTES,
  parseGreeting,
  writeFrameHeader,
} from './frame.ts';

const OFFSET = 16;

setFlagsFromString('--expose-gc');
const collectGarbage: () => void = runInNewContext('gc');

/** Records every call as text, and keeps data payloads at an offset as the packet path does. */
class Recorder implements FrameSink {
  readonly seen: string[] = [];
  readonly wholes: boolean[] = [];
  target = new Uint8Array(0);
  targetOffset = 0;
  onFrame: ((type: number) => void) | undefined;

  reserve(_type: number, length: number, whole: boolean): void {
    this.wholes.push(whole);
    this.target = new Uint8Array(OFFSET + length);
    this.targetOffset = OFFSET;
  }
  data(type: number, length: number): void {
    assert.ok(this.target.subarray(0, OFFSET).every((byte) => byte === 0));
    this.seen.push(`data ${type} ${hash(this.target.subarray(OFFSET, OFFSET + length))}`);
    this.onFrame?.(type);
  }
  control(type: number, payload: Uint8Array): void {
    this.seen.push(`control ${type} ${hash(payload)}`);
    this.onFrame?.(type);
  }
  unknown(type: number): void {
    this.seen.push(`unknown ${type}`);
  }
  greeting(line: Uint8Array): void {
    this.seen.push(`greeting ${hash(line)}`);
  }
}

const SILENT: FrameSink = {
  target: new Uint8Array(0),
  targetOffset: 0,
  reserve: () => {},
  data: () => {},
  control: () => {},
  unknown: () => {},
};

/** Short payloads in full, long ones by length and sum. */
function hash(bytes: Uint8Array): string {
  if (bytes.length <= 32) return bytes.toHex();
  return `${bytes.length}:${bytes.reduce((sum, byte, at) => (sum * 31 + byte + at) % 1_000_003, 7)}`;
}

function frame(type: number, length: number): Uint8Array {
  const bytes = new Uint8Array(4 + length);
  writeFrameHeader(bytes, 0, type, length);
  for (let i = 0; i < length; i++) bytes[4 + i] = (i * 7 + type) & 0xff;
  return bytes;
}

function concat(...parts: Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => Array.from(part)));
}

/** What a decoder makes of these chunks: its calls, and how it ended. */
function decode(sender: FrameSender, phase: FramePhase, chunks: Iterable<Uint8Array>): string[] {
  const sink = new Recorder();
  const decoder = new FrameDecoder(sink, sender);
  if (phase !== 'greeting') decoder.setPhase(phase);
  try {
    for (const chunk of chunks) decoder.push(chunk);
    decoder.end();
  } catch (error) {
    if (!isVpnError(error)) throw error;
    sink.seen.push(error.code);
  }
  return sink.seen;
}

/** The same result whole, byte by byte, and cut in two at every byte (long inputs: near both ends). */
function assertDecodes(sender: FrameSender, phase: FramePhase, bytes: Uint8Array, expected: string[]): void {
  assert.deepEqual(decode(sender, phase, [bytes]), expected);
  if (bytes.length <= 20_000) {
    assert.deepEqual(
      decode(
        sender,
        phase,
        Array.from(bytes, (byte) => Uint8Array.of(byte)),
      ),
      expected,
      'by bytes',
    );
  }
  for (let cut = 1; cut < bytes.length; cut++) {
    if (cut === 40 && bytes.length > 80) cut = bytes.length - 40;
    assert.deepEqual(decode(sender, phase, [bytes.subarray(0, cut), bytes.subarray(cut)]), expected, `cut at ${cut}`);
  }
}

const hex = (type: number, length: number) => hash(frame(type, length).subarray(4));

const DATA_TYPES: readonly number[] = [FrameType.packet, FrameType.super, FrameType.ethernet, FrameType.compressed];

test('REQ-FRAME-001: a frame is a type, a length of 24 bits big-endian and the payload', () => {
  assert.equal(encodeFrame(FrameType.ping, utf8('ab')).toHex(), '070000026162');
  assert.equal(encodeFrame(FrameType.config, new Uint8Array(0x012345)).subarray(0, 4).toHex(), '06012345');
  assertDecodes('client', 'session', concat(frame(0x07, 2), frame(0x20, 3)), [
    `control 7 ${hex(0x07, 2)}`,
    `data 32 ${hex(0x20, 3)}`,
  ]);
});

test('REQ-FRAME-002: the type numbers', () => {
  assert.deepEqual(
    Object.entries(FrameType).map(([name, type]) => `${name} ${type.toString(16)}`),
    [
      'login 1',
      'challenge 2',
      'answer 3',
      'accept 4',
      'reject 5',
      'config 6',
      'ping 7',
      'pong 8',
      'close 9',
      'attach a',
      'attached b',
      'moved c',
      'resume d',
      'resumed e',
      'resumeDone f',
      'switch 10',
      'drain 11',
      'packet 20',
      'super 21',
      'echo 22',
      'ethernet 23',
      'compressed 24',
    ],
  );
});

test('REQ-FRAME-003: frames mean the same however bytes come', () => {
  const sizes = [0, 1, 23, 24, 25, 200];
  const bytes = concat(
    ...sizes.map((size) => frame(FrameType.ping, size)),
    ...sizes.slice(1).map((size) => frame(FrameType.packet, size)),
    frame(FrameType.super, 70),
    frame(0x80, 5),
    frame(FrameType.close, 30),
  );
  const expected = [
    ...sizes.map((size) => `control 7 ${hex(7, size)}`),
    ...sizes.slice(1).map((size) => `data 32 ${hex(32, size)}`),
    `data 33 ${hex(33, 70)}`,
    'unknown 128',
    `control 9 ${hex(9, 30)}`,
  ];
  assertDecodes('client', 'session', bytes, expected);
});

test('REQ-FRAME-003: any frames in any chunks are what they were', () => {
  const lengths = fc.array(fc.tuple(fc.constantFrom(0x07, 0x20, 0x22, 0x90), fc.integer({ min: 1, max: 900 })), {
    maxLength: 12,
  });
  fc.assert(
    fc.property(lengths, fc.array(fc.integer({ min: 1, max: 700 }), { minLength: 1, maxLength: 60 }), (list, steps) => {
      const bytes = concat(...list.map(([type, length]) => frame(type, length)));
      const chunks: Uint8Array[] = [];
      for (let at = 0, i = 0; at < bytes.length; i++) {
        const next = at + (steps[i % steps.length] ?? 1);
        chunks.push(bytes.subarray(at, next));
        at = next;
      }
      const expected = list.map(([type, length]) =>
        type === 0x90 ? 'unknown 144' : `${type === 0x20 ? 'data' : 'control'} ${type} ${hex(type, length)}`,
      );
      assert.deepEqual(decode('client', 'data', chunks), expected);
    }),
    { numRuns: 150 },
  );
});

test('REQ-FRAME-004: a payload as long as its limit is taken, one byte more is ERR_FRAME_TOO_LONG', () => {
  const cases: [FrameSender, FramePhase, number, number][] = [
    ['client', 'login', FrameType.login, MAX_LOGIN_PAYLOAD_BYTES],
    ['client', 'login', FrameType.ping, MAX_EARLY_PING_PAYLOAD_BYTES],
    ['client', 'login', FrameType.close, MAX_SHORT_PAYLOAD_BYTES],
    ['server', 'login', FrameType.accept, MAX_LOGIN_PAYLOAD_BYTES],
    ['server', 'session', FrameType.config, MAX_CONTROL_PAYLOAD_BYTES],
    ['client', 'session', FrameType.ping, MAX_PING_PAYLOAD_BYTES],
    ['client', 'session', FrameType.echo, MAX_PACKET_PAYLOAD_BYTES],
    ['client', 'session', FrameType.packet, MAX_PACKET_PAYLOAD_BYTES],
    ['server', 'data', FrameType.packet, MAX_PACKET_PAYLOAD_BYTES],
    ['server', 'data', FrameType.super, MAX_SUPER_PAYLOAD_BYTES],
    ['client', 'data', FrameType.ethernet, MAX_ETHERNET_PAYLOAD_BYTES],
    ['client', 'session', 0xff, MAX_CONTROL_PAYLOAD_BYTES],
  ];
  assert.equal(MAX_PACKET_PAYLOAD_BYTES, 65_575);
  assert.equal(MAX_SUPER_PAYLOAD_BYTES, 65_579);
  assert.equal(MAX_ETHERNET_PAYLOAD_BYTES, 9_014);
  assert.equal(MAX_LOGIN_PAYLOAD_BYTES, 16_384);
  assert.equal(MAX_CONTROL_PAYLOAD_BYTES, 262_144);
  for (const [sender, phase, type, limit] of cases) {
    const handling = type === 0xff ? 'unknown' : DATA_TYPES.includes(type) ? 'data' : 'control';
    const expected = type === 0xff ? 'unknown 255' : `${handling} ${type} ${hex(type, limit)}`;
    const largest = frame(type, limit);
    assert.deepEqual(decode(sender, phase, [largest]), [expected]);
    for (const cut of [1, 2, 3, 4, 5, 100, 16_384, limit]) {
      assert.deepEqual(decode(sender, phase, [largest.subarray(0, cut), largest.subarray(cut)]), [expected]);
    }
    assertDecodes(sender, phase, frame(type, limit + 1).subarray(0, 5), ['ERR_FRAME_TOO_LONG']);
    assertDecodes(sender, phase, Uint8Array.of(type, 0xff, 0xff, 0xff), ['ERR_FRAME_TOO_LONG']);
  }
});

test('REQ-FRAME-005: a frame that must hold something and does not is ERR_FRAME_EMPTY', () => {
  assertDecodes('client', 'login', frame(FrameType.login, 0), ['ERR_FRAME_EMPTY']);
  assertDecodes('client', 'login', frame(FrameType.close, 0), ['ERR_FRAME_EMPTY']);
  assertDecodes('server', 'session', frame(FrameType.config, 0), ['ERR_FRAME_EMPTY']);
  assertDecodes('client', 'session', frame(FrameType.packet, 0), ['ERR_FRAME_EMPTY']);
  for (let length = 0; length <= 4; length++) {
    assertDecodes('client', 'session', frame(FrameType.super, length), ['ERR_FRAME_EMPTY']);
  }
  assertDecodes('client', 'session', frame(FrameType.ethernet, 13), ['ERR_FRAME_EMPTY']);
  assertDecodes('client', 'session', frame(FrameType.ethernet, 14), [`data 35 ${hex(35, 14)}`]);
  for (let length = 0; length <= 4; length++) {
    assertDecodes('client', 'session', frame(FrameType.compressed, length), ['ERR_FRAME_EMPTY']);
  }
  assertDecodes('client', 'session', frame(FrameType.super, 5), [`data 33 ${hex(33, 5)}`]);
  assertDecodes('client', 'session', concat(frame(FrameType.ping, 0), frame(FrameType.echo, 0)), [
    'control 7 ',
    'control 34 ',
  ]);
});

test('REQ-FRAME-006: an unknown type below 0x80 is ERR_FRAME_TYPE, from its first byte on', () => {
  for (const type of [0x00, 0x12, 0x1f, 0x25, 0x7f]) {
    assertDecodes('client', 'session', frame(type, 3), ['ERR_FRAME_TYPE']);
    assertDecodes('server', 'login', Uint8Array.of(type), ['ERR_FRAME_TYPE']);
  }
  assertDecodes('client', 'login', utf8('GET / HTTP/1.1\r\n'), ['ERR_FRAME_TYPE']);
});

test('REQ-FRAME-007: an unknown type from 0x80 on is skipped and counted once logged in', () => {
  for (const phase of ['session', 'data'] as const) {
    assertDecodes('server', phase, concat(frame(0x80, 0), frame(0xfe, 90), frame(FrameType.pong, 1)), [
      'unknown 128',
      'unknown 254',
      `control 8 ${hex(8, 1)}`,
    ]);
  }
});

test('REQ-FRAME-008: before login no extension type is legal', () => {
  assertDecodes('client', 'login', frame(0x80, 1), ['ERR_FRAME_STATE']);
  assertDecodes('server', 'login', frame(0xff, 1), ['ERR_FRAME_STATE']);
});

test('REQ-FRAME-009: every known type is legal only in the phases and from the end that the table lists', () => {
  const legal: Record<string, string> = {
    'client login': 'login answer ping close attach resume',
    'client session': 'ping pong close resumeDone switch packet super echo ethernet compressed',
    'client data': 'ping pong close switch packet super echo ethernet compressed',
    'server login': 'challenge accept reject pong close attached moved resumed',
    'server session': 'config ping pong close switch drain packet super echo ethernet compressed',
    'server data': 'ping pong close switch packet super echo ethernet compressed',
  };
  for (const sender of ['client', 'server'] as const) {
    for (const phase of ['login', 'session', 'data'] as const) {
      const names = (legal[`${sender} ${phase}`] ?? '').split(' ');
      for (const [name, type] of Object.entries(FrameType)) {
        const bytes = frame(type, 20);
        const data = DATA_TYPES.includes(type);
        const expected = names.includes(name)
          ? `${data ? 'data' : 'control'} ${type} ${hex(type, 20)}`
          : 'ERR_FRAME_STATE';
        assertDecodes(sender, phase, bytes, [expected]);
      }
    }
  }
  assert.throws(() => new FrameDecoder(new Recorder(), 'client').setPhase('greeting'), code('ERR_INVARIANT'));
});

test('REQ-FRAME-009: data before login is ERR_FRAME_STATE', () => {
  assertDecodes('client', 'login', frame(FrameType.ethernet, 40), ['ERR_FRAME_STATE']);
  assertDecodes('client', 'login', frame(FrameType.packet, 40), ['ERR_FRAME_STATE']);
  assertDecodes('client', 'login', frame(FrameType.super, 40), ['ERR_FRAME_STATE']);
  assertDecodes('client', 'login', frame(FrameType.echo, 40), ['ERR_FRAME_STATE']);
});

test('REQ-FRAME-010: a connection that ends inside a frame, at whatever byte, is ERR_FRAME_TRUNCATED', () => {
  const bytes = frame(FrameType.packet, 60);
  for (let length = 1; length < bytes.length; length++) {
    assertDecodes('client', 'session', bytes.subarray(0, length), ['ERR_FRAME_TRUNCATED']);
  }
  assert.deepEqual(decode('client', 'session', [bytes]), [`data 32 ${hex(32, 60)}`]);
  assert.deepEqual(decode('client', 'session', [frame(0x90, 9).subarray(0, 8)]), ['ERR_FRAME_TRUNCATED']);
});

test('REQ-FRAME-011: a length that does not fit 24 bits is never written', () => {
  assert.throws(() => writeFrameHeader(new Uint8Array(4), 0, 0x20, 0x1000000), code('ERR_FRAME_TOO_LONG'));
});

test('REQ-FRAME-012: after an error nothing more is delivered', () => {
  const sink = new Recorder();
  const decoder = new FrameDecoder(sink, 'client');
  decoder.setPhase('session');
  assert.throws(() => decoder.push(concat(frame(0x7f, 0), frame(FrameType.ping, 1))), code('ERR_FRAME_TYPE'));
  decoder.push(frame(FrameType.ping, 1));
  decoder.end();
  assert.deepEqual(sink.seen, []);
});

test('REQ-FRAME-012: what the sink throws ends the decoder', () => {
  const sink = new Recorder();
  const decoder = new FrameDecoder(sink, 'client');
  decoder.setPhase('session');
  sink.onFrame = () => {
    throw new VpnError('ERR_FRAME_STATE', 'the machine says no');
  };
  assert.throws(
    () => decoder.push(concat(frame(FrameType.ping, 1), frame(FrameType.ping, 1))),
    code('ERR_FRAME_STATE'),
  );
  decoder.push(frame(FrameType.ping, 1));
  assert.equal(sink.seen.length, 1);
});

test('REQ-FRAME-013: the phase that a sink sets holds from the next frame of the same chunk on', () => {
  const bytes = concat(frame(FrameType.accept, 2), frame(FrameType.config, 20_000), frame(FrameType.packet, 4));
  for (const chunks of [[bytes], Array.from(bytes, (byte) => Uint8Array.of(byte))]) {
    const sink = new Recorder();
    const decoder = new FrameDecoder(sink, 'server');
    sink.onFrame = (type) => {
      if (type === FrameType.accept) decoder.setPhase('session');
    };
    decoder.push(encodeGreeting());
    for (const chunk of chunks) decoder.push(chunk);
    assert.deepEqual(sink.seen.slice(1), [
      `control 4 ${hex(4, 2)}`,
      `control 6 ${hex(6, 20_000)}`,
      `data 32 ${hex(32, 4)}`,
    ]);
  }
});

test('a sink may stop the decoder in the middle of a chunk', () => {
  const sink = new Recorder();
  const decoder = new FrameDecoder(sink, 'client');
  decoder.setPhase('session');
  sink.onFrame = () => decoder.stop();
  decoder.push(concat(frame(FrameType.ping, 1), frame(FrameType.ping, 2)));
  decoder.push(frame(FrameType.ping, 3));
  decoder.end();
  assert.deepEqual(sink.seen, [`control 7 ${hex(7, 1)}`]);
});

test('reserve says whether the payload is all there', () => {
  const sink = new Recorder();
  const decoder = new FrameDecoder(sink, 'client');
  decoder.setPhase('data');
  const bytes = frame(FrameType.packet, 100);
  decoder.push(bytes);
  decoder.push(bytes.subarray(0, 50));
  decoder.push(bytes.subarray(50));
  decoder.push(bytes.subarray(0, 4));
  decoder.push(bytes.subarray(4));
  assert.deepEqual(sink.wholes, [true, false, false]);
  assert.equal(sink.seen.length, 3);
});

test('REQ-FRAME-014: an announced length alone makes no memory', () => {
  const start = Uint8Array.of(FrameType.config, 0x04, 0x00, 0x00, 0x7b);
  const before = process.memoryUsage().arrayBuffers;
  const decoders = Array.from({ length: 400 }, () => {
    const decoder = new FrameDecoder(new Recorder(), 'server');
    decoder.push(encodeGreeting());
    decoder.setPhase('session');
    decoder.push(start);
    return decoder;
  });
  const taken = process.memoryUsage().arrayBuffers - before;
  assert.ok(taken < decoders.length * 8_192, `${taken} bytes for ${decoders.length} announced frames`);
});

test('REQ-FRAME-014: the memory of a long frame is given back when it is done', async () => {
  const long = frame(FrameType.config, MAX_CONTROL_PAYLOAD_BYTES);
  collectGarbage();
  const before = process.memoryUsage().arrayBuffers;
  const decoders = Array.from({ length: 200 }, () => {
    const decoder = new FrameDecoder({ ...SILENT }, 'server');
    decoder.push(encodeGreeting());
    decoder.setPhase('session');
    decoder.push(long.subarray(0, 1_000));
    decoder.push(long.subarray(1_000));
    return decoder;
  });
  const limit = (decoders.length * MAX_CONTROL_PAYLOAD_BYTES) / 2;
  let taken = Number.POSITIVE_INFINITY;
  // What was collected is counted off by another thread, which a busy machine keeps waiting.
  for (let tries = 0; tries < 100 && taken >= limit; tries++) {
    collectGarbage();
    await setImmediate();
    taken = process.memoryUsage().arrayBuffers - before;
  }
  assert.ok(taken < limit, `${taken} bytes kept by idle decoders`);
});

test('REQ-GREETING-001: the server opens with one line, then frames', () => {
  assert.equal(GREETING, 'OK VPN-HELLO 1\r\n');
  assertDecodes('server', 'greeting', concat(encodeGreeting(), frame(FrameType.challenge, 3)), [
    `greeting ${encodeGreeting().toHex()}`,
    `control 2 ${hex(2, 3)}`,
  ]);
});

test('REQ-GREETING-002: a greeting without a version is version 1; others are ERR_PROTOCOL_VERSION', () => {
  assert.deepEqual(parseGreeting(utf8('OK VPN-HELLO\r\n')), { version: 1 });
  assert.deepEqual(parseGreeting(utf8('OK VPN-HELLO 1\n')), { version: 1 });
  assertDecodes('server', 'greeting', utf8('OK VPN-HELLO 2\r\n'), ['ERR_PROTOCOL_VERSION']);
  assert.throws(() => parseGreeting(utf8('OK VPN-HELLO 10\r\n')), code('ERR_PROTOCOL_VERSION'));
});

test('REQ-GREETING-003: anything else, too long, or cut off is ERR_GREETING', () => {
  for (const line of [
    'HTTP/1.1 400 Bad Request\r\n',
    'SSH-2.0-x\r\n',
    'OK VPN-HELLO x\r\n',
    'OK VPN-HELLO 01\r\n',
    '\n',
  ]) {
    assertDecodes('server', 'greeting', utf8(line), ['ERR_GREETING']);
  }
  assertDecodes('server', 'greeting', utf8(`OK VPN-HELLO ${'1'.repeat(60)}`), ['ERR_GREETING']);
  for (let length = 0; length < GREETING.length; length++) {
    assertDecodes('server', 'greeting', utf8(GREETING.slice(0, length)), ['ERR_GREETING']);
  }
});

test('no bytes make a decoder throw anything but a VpnError of kind protocol', () => {
  const inputs = fc.array(fc.uint8Array({ maxLength: 64 }), { maxLength: 8 });
  fc.assert(
    fc.property(inputs, fc.constantFrom<FramePhase>('login', 'session', 'data'), (chunks, phase) => {
      const sink = new Recorder();
      const decoder = new FrameDecoder(sink, 'client');
      decoder.setPhase(phase);
      try {
        for (const chunk of chunks) decoder.push(chunk);
        decoder.end();
      } catch (error) {
        assert.ok(isVpnError(error) && error.kind === 'protocol');
      }
    }),
  );
});

test('a decoder that is held keeps what comes, however it is cut and wherever it is held, and reads it in order later', () => {
  const frames = [
    FrameType.packet,
    FrameType.pong,
    FrameType.packet,
    FrameType.super,
    FrameType.ping,
    FrameType.packet,
  ];
  const bytes = concat(...frames.map((type, index) => frame(type, 20 + index)));
  const expected = decode('server', 'data', [bytes]);
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 60 }), { maxLength: 20 }), fc.array(fc.boolean()), (cuts, holds) => {
      const sink = new Recorder();
      const decoder = new FrameDecoder(sink, 'server');
      decoder.setPhase('data');
      let frameNumber = 0;
      sink.onFrame = () => {
        if (holds[frameNumber] === true) decoder.hold();
        frameNumber += 1;
      };
      let at = 0;
      for (const cut of [...cuts, bytes.length]) {
        const seen = sink.seen.length;
        const wasHeld = decoder.isHeld;
        decoder.push(bytes.subarray(at, at + cut));
        at += cut;
        if (wasHeld) assert.equal(sink.seen.length, seen, 'nothing is read while it is held');
        else if (cut % 2 === 0) decoder.release();
      }
      while (decoder.isHeld) decoder.release();
      decoder.end();
      assert.deepEqual(sink.seen, expected);
    }),
  );
});

test('what is kept while a decoder is held is forgotten when it stops', () => {
  const sink = new Recorder();
  const decoder = new FrameDecoder(sink, 'server');
  decoder.setPhase('data');
  decoder.hold();
  decoder.push(frame(FrameType.packet, 20));
  decoder.stop();
  decoder.release();
  assert.deepEqual(sink.seen, []);
});
