// Whatever bytes come, the protocol room answers with a VpnError of kind protocol or auth, keeps its memory within its
// limits, and never opens a session that no verdict granted.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isVpnError } from '../../src/base/errors.ts';
import { parseIp } from '../../src/ip/address.ts';
import { AttachClient, AttachServer } from '../../src/protocol/attach.ts';
import { checkConfig } from '../../src/protocol/config-check.ts';
import { encodeFrame, encodeGreeting, FrameDecoder, type FrameSink, FrameType } from '../../src/protocol/frame.ts';
import { LoginClient, LoginServer } from '../../src/protocol/login.ts';
import { decodeMessage, encodeMessage, type MessageName } from '../../src/protocol/messages.ts';
import { encodeStreamFrame, StreamFrameType } from '../../src/protocol/stream-frame.ts';
import { type MuxStream, StreamMux, type StreamSink } from '../../src/protocol/stream-mux.ts';
import { createDevice, exporterOf, primitives, split, utf8 } from '../support/protocol.ts';

const RUNS = Number(process.env.FUZZ_RUNS ?? 300);
const NAMES: MessageName[] = [
  'login',
  'challenge',
  'answer',
  'accept',
  'reject',
  'config',
  'close',
  'attach',
  'attached',
  'moved',
  'resume',
  'resumed',
  'resumeDone',
  'switch',
  'drain',
];
const FOUNDATION = { primitives, exporter: exporterOf('fuzz'), serverId: new Uint8Array(32), features: ['super'] };

/** Only errors that blame the peer may leave the room. */
function orVpnError<T>(action: () => T): T | undefined {
  try {
    return action();
  } catch (error) {
    assert.ok(isVpnError(error) && (error.kind === 'protocol' || error.kind === 'auth'), String(error));
    return undefined;
  }
}

const DEVICE = createDevice('ed25519');

function createClient(): LoginClient {
  return new LoginClient({
    ...FOUNDATION,
    purpose: 'enrol',
    serverName: 'vpn.example',
    serverVerified: true,
    device: DEVICE,
    client: { name: 'x', version: '1', platform: 'linux' },
  });
}

/** Valid payloads to start from, so that changed ones get past the first check. */
const SEEDS: [MessageName, Uint8Array][] = (() => {
  const client = createClient();
  const start = client.start(encodeGreeting());
  assert.ok(start.kind === 'send');
  const bytes = (length: number) => new Uint8Array(length);
  const grant = { session: bytes(16), worker: 0, user: 'u', absoluteSeconds: 0, idleSeconds: 0, graceSeconds: 0 };
  const frames: [MessageName, Uint8Array][] = [
    ['login', start.frame],
    [
      'challenge',
      encodeMessage('challenge', { nonce: bytes(32), steps: [{ kind: 'device' }, { kind: 'token' }], attempt: 1 }),
    ],
    ['accept', encodeMessage('accept', { ...grant, epoch: 0, features: [], deviceId: DEVICE.id })],
    ['reject', encodeMessage('reject', { code: 'rejected', message: '' })],
    ['close', encodeMessage('close', { reason: 'admin' })],
    [
      'attach',
      encodeMessage('attach', { session: bytes(16), epoch: 0, slot: 0, generation: 0, flags: 0, proof: bytes(32) }),
    ],
    ['attached', encodeMessage('attached', { slot: 0, generation: 0, flags: 0, proof: bytes(32) })],
    ['moved', encodeMessage('moved', { worker: 1 })],
    [
      'resume',
      encodeMessage('resume', {
        version: 1,
        session: bytes(16),
        epoch: 0,
        deviceId: bytes(16),
        serverName: 'a',
        features: [],
      }),
    ],
    ['switch', encodeMessage('switch', { slot: 0, generation: 1 })],
    ['drain', encodeMessage('drain', { seconds: 900 })],
  ];
  return frames.map(([name, frame]) => [name, frame.subarray(4)]);
})();

const payload = fc.oneof(
  fc.uint8Array({ maxLength: 200 }),
  fc.json().map(utf8),
  fc.tuple(fc.constantFrom(...SEEDS), fc.nat(), fc.nat(255), fc.boolean()).map(([[, seed], at, byte, cut]) => {
    const bytes = seed.slice(0, cut ? at % seed.length : seed.length);
    if (bytes.length > 0) bytes[at % bytes.length] = byte;
    return bytes;
  }),
  fc.constantFrom(...SEEDS).map(([, seed]) => seed),
);
const frame = fc.tuple(fc.constantFrom(...Object.values(FrameType), 0x00, 0x80, 0xff), payload);

test('no payload makes a message reader throw anything but a protocol error', () => {
  fc.assert(
    fc.property(fc.constantFrom(...NAMES), payload, (name, bytes) => {
      const value = orVpnError(() => decodeMessage(name, bytes));
      if (value !== undefined) assert.deepEqual(decodeMessage(name, split(encodeMessage(name, value))[1]), value);
    }),
    { numRuns: RUNS * 4 },
  );
});

test('no frames bring a login server to ask for a verdict without LOGIN and ANSWER, or past it at all', () => {
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 12 }), (frames) => {
      const server = new LoginServer(FOUNDATION);
      let asked = 0;
      for (const [type, bytes] of frames) {
        const output = orVpnError(() => server.receive(type, bytes));
        if (output === undefined) {
          assert.ok(server.over);
          continue;
        }
        assert.notEqual(output.kind, 'accepted');
        if (output.kind === 'challenge') {
          asked += 1;
          assert.equal(asked, 1);
          server.challenge({ nonce: new Uint8Array(32), steps: [{ kind: 'device' }, { kind: 'token' }] });
        }
        if (output.kind === 'verify') assert.equal(asked, 1);
      }
    }),
    { numRuns: RUNS },
  );
});

test('no frames bring a login client to a session without its own answer', () => {
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 12 }), (frames) => {
      const client = createClient();
      client.start(encodeGreeting());
      for (const [type, bytes] of frames) {
        const output = orVpnError(() => client.receive(type, bytes));
        assert.notEqual(output?.kind, 'accepted');
      }
    }),
    { numRuns: RUNS },
  );
});

test('no frames attach a data connection without the key', () => {
  const session = new Uint8Array(16);
  const key = primitives.randomBytes(32);
  fc.assert(
    fc.property(fc.array(frame, { maxLength: 6 }), (frames) => {
      const server = new AttachServer({ primitives, session, epoch: 0, key, slots: 4 });
      const client = new AttachClient({
        primitives,
        exporter: exporterOf('fuzz'),
        session,
        epoch: 0,
        key,
        slot: 0,
        generation: 0,
      });
      client.start();
      for (const [type, bytes] of frames) {
        const message = orVpnError(() => decodeMessage('attach', bytes));
        if (message !== undefined)
          assert.equal(
            orVpnError(() => server.receive(message, exporterOf('fuzz'))),
            undefined,
          );
        assert.notEqual(orVpnError(() => client.receive(type, bytes))?.kind, 'attached');
      }
    }),
    { numRuns: RUNS },
  );
});

test('decoder and machine together: any bytes of a client, in any chunks', () => {
  const stream = fc.array(
    fc.oneof(
      frame.map(([type, bytes]) => Uint8Array.of(type, bytes.length >> 16, bytes.length >> 8, bytes.length, ...bytes)),
      fc.uint8Array({ maxLength: 40 }),
      fc.constantFrom(...SEEDS).map(([name, bytes]) => encodeFrame(FrameType[name], bytes)),
    ),
    { maxLength: 10 },
  );
  fc.assert(
    fc.property(stream, fc.integer({ min: 1, max: 400 }), (parts, step) => {
      const bytes = Uint8Array.from(parts.flatMap((part) => Array.from(part)));
      const server = new LoginServer(FOUNDATION);
      const sink: FrameSink = {
        target: new Uint8Array(0),
        targetOffset: 0,
        reserve: () => assert.fail('data before login'),
        data: () => assert.fail('data before login'),
        unknown: () => assert.fail('an extension before login'),
        control: (type, body) => void server.receive(type, body),
      };
      const decoder = new FrameDecoder(sink, 'client');
      orVpnError(() => {
        for (let at = 0; at < bytes.length; at += step) decoder.push(bytes.subarray(at, at + step));
        decoder.end();
      });
    }),
    { numRuns: RUNS },
  );
});

test('any CONFIG that can be read is judged without an exception, within what a client takes', () => {
  const text = fc.oneof(
    fc.ipV4(),
    fc.ipV6(),
    fc.tuple(fc.ipV4(), fc.nat(40)).map(([a, n]) => `${a}/${n}`),
    fc.constant('x'),
  );
  const config = fc.record({
    revision: fc.nat(),
    addresses: fc.record({
      v4: fc.record({ address: text, gateway: text }),
      v6: fc.record({ address: text, gateway: text }),
    }),
    routes: fc.array(text, { maxLength: 20 }),
    dns: fc.record({
      servers: fc.array(text, { maxLength: 12 }),
      domains: fc.constantFrom<string[]>(['corp.example']),
    }),
    mtu: fc.nat(65_535),
    ping: fc.record({ intervalSeconds: fc.nat(), deadSeconds: fc.nat() }),
    data: fc.record({ mode: fc.constantFrom('inline' as const, 'attached' as const), channels: fc.nat(255) }),
    transports: fc.constantFrom<string[]>([]),
    pins: fc.array(text, { maxLength: 3 }),
  });
  fc.assert(
    fc.property(config, (value) => {
      const limits = { serverVerified: true, defaultRoute: false, dns: true, outside: [parseIp('192.0.2.1')] };
      const { accepted } = checkConfig(value, limits);
      assert.ok(accepted.mtu >= 1_280 && accepted.mtu <= 9_000);
      assert.ok(accepted.ping.deadMs >= 2 * accepted.ping.intervalMs);
      assert.ok(accepted.data.channels <= 16);
      assert.ok(accepted.routes.every(({ length }) => length >= 8));
    }),
    { numRuns: RUNS },
  );
});

test('a connection for streams takes whatever bytes with errors that blame the peer, and passes on what was sent', () => {
  const { bind, open, data, end, reset, credit } = StreamFrameType;
  const frame = fc.oneof(
    fc.record({
      type: fc.constantFrom(bind, open, data, end, reset, credit),
      stream: fc.nat(4),
      payload: fc.uint8Array({ maxLength: 40 }),
    }),
    fc.record({ type: fc.constant(open), stream: fc.nat(4), payload: fc.constant(utf8('\x01\x00\x07host')) }),
  );
  fc.assert(
    fc.property(
      fc.array(frame, { maxLength: 30 }),
      fc.uint8Array({ maxLength: 20 }),
      fc.nat(50),
      (frames, tail, size) => {
        const received = new Map<number, number>();
        const wakes: number[] = [];
        const mux: StreamMux = new StreamMux({
          role: 'server',
          maxWindowBytes: 1 << 20,
          windowBudgetBytes: 1 << 20,
          output: { isIdle: false, write: () => {}, wake: () => void wakes.push(1) },
          onBind: () => mux.answerBind('yes'),
          onWanted: (stream) => {
            stream.sink = {
              bytes: (_bytes, from, to) => void received.set(stream.id, (received.get(stream.id) ?? 0) + to - from),
              ended: () => stream.end(),
              broken: () => {},
              room: () => {},
            };
            stream.accept();
          },
        });
        const bytes = Buffer.concat([
          ...frames.map((one) => encodeStreamFrame(one.type, one.stream, one.payload)),
          tail,
        ]);
        for (let at = 0; at < bytes.length; at += size + 1)
          orVpnError(() => mux.receive(bytes.subarray(at, at + size + 1)));
        const sent = frames.reduce((sum, one) => sum + (one.type === data ? one.payload.length : 0), 0);
        assert.ok([...received.values()].reduce((sum, length) => sum + length, 0) <= sent + tail.length);
        mux.close();
        assert.equal(mux.streams, 0);
        assert.deepEqual(wakes, []);
      },
    ),
    { numRuns: RUNS },
  );
});

test('two ends of a connection for streams pass on every byte in order, however writes and reads fall', () => {
  const step = fc.record({
    from: fc.constantFrom(0, 1),
    stream: fc.nat(2),
    length: fc.integer({ min: 1, max: 70_000 }),
    isInPlace: fc.boolean(),
    takes: fc.nat(3),
    cut: fc.integer({ min: 1, max: 50_000 }),
  });
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 25 }), (steps) => {
      const wires: Uint8Array[][] = [[], []];
      const ends: MuxStream[][] = [[], []];
      const sums = [0, 1].map(() => [0, 1, 2].map(() => ({ sent: 0, received: 0 })));
      const idle = [true, true];
      const sinkOf = (side: number, stream: () => number): StreamSink => ({
        bytes: (bytes, from, to) => {
          const sum = sums[1 - side]?.[stream()];
          assert.ok(sum);
          for (let i = from; i < to; i++) assert.equal(bytes[i], sum.received++ % 251);
          ends[side]?.[stream()]?.consumed(to - from);
        },
        ended: () => {},
        broken: () => {},
        room: () => {},
      });
      const create = (side: number): StreamMux => {
        const mux: StreamMux = new StreamMux({
          role: side === 0 ? 'client' : 'server',
          maxWindowBytes: 1 << 18,
          windowBudgetBytes: 1 << 18,
          output: {
            get isIdle() {
              return idle[side] ?? false;
            },
            write: (bytes) => {
              wires[side]?.push(bytes.slice());
              idle[side] = false;
            },
            wake: () => {},
          },
          onBind: () => mux.answerBind('yes'),
          onWanted: (stream) => {
            ends[1]?.push(stream);
            stream.sink = sinkOf(1, () => stream.id - 1);
            stream.accept();
          },
        });
        return mux;
      };
      const muxes = [create(0), create(1)];
      const carry = (side: number, takes: number, cut: number): void => {
        for (let i = 0; i < takes; i++) {
          const bytes = muxes[side]?.take();
          if (bytes !== undefined) wires[side]?.push(bytes.slice());
        }
        idle[side] = true;
        const bytes = Buffer.concat(wires[side]?.splice(0) ?? []);
        for (let at = 0; at < bytes.length; at += cut) muxes[1 - side]?.receive(bytes.subarray(at, at + cut));
      };
      muxes[0]?.bind('x');
      for (const i of [0, 1, 2]) {
        const stream = muxes[0]?.open(
          { kind: 'tcp', host: 'a', port: 1 },
          sinkOf(0, () => i),
        );
        if (stream !== undefined) ends[0]?.push(stream);
      }
      for (const side of [0, 1, 0, 1]) carry(side, 5, 1000);
      const block = new Uint8Array(8 + 70_000);
      for (const { from, stream: at, length, isInPlace, takes, cut } of steps) {
        const stream = ends[from]?.[at];
        const sum = sums[from]?.[at];
        assert.ok(stream !== undefined && sum !== undefined);
        for (let i = 0; i < length; i++) block[8 + i] = sum.sent++ % 251;
        if (isInPlace) stream.sendInPlace(block, 8, 8 + length);
        else stream.send(block, 8, 8 + length);
        block.fill(0);
        carry(from, takes, cut);
        carry(1 - from, takes, cut);
      }
      for (let i = 0; i < 200; i++) carry(i % 2, 5, 65_536);
      assert.deepEqual(
        sums.flat().map(({ received }) => received),
        sums.flat().map(({ sent }) => sent),
      );
    }),
    { numRuns: Math.ceil(RUNS / 10) },
  );
});
