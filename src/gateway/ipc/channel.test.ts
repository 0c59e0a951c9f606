/** The channel between processes: what crosses it, and that whoever breaks a rule of it is cut off and nothing else happens. */

import assert from 'node:assert/strict';
import { Socket } from 'node:net';
import { test } from 'node:test';
import { z } from 'zod';
import { VpnError } from '../../base/errors.ts';
import { socketPair } from '../../os/unix-socket.ts';
import { type ChannelLimits, IpcChannel } from './channel.ts';

const options = { skip: process.platform === 'linux' ? false : 'needs Linux' };

const contract = {
  add: { input: z.strictObject({ a: z.int(), b: z.int() }), output: z.strictObject({ sum: z.int() }) },
  wait: { input: z.strictObject({}), output: z.strictObject({}) },
  note: { input: z.strictObject({ text: z.string().max(8) }) },
};
const LIMITS: ChannelLimits = {
  frameBytes: 1024,
  callsInFlight: 3,
  framesPerSecond: 10,
  burstFrames: 100,
  bytesPerSecond: 5000,
  burstBytes: 9000,
};

/** A server of the contract, and the bare socket of a process that may say anything. */
function serve(limits = LIMITS) {
  const [near, far] = socketPair('stream');
  const notes: string[] = [];
  const closed = Promise.withResolvers<VpnError | undefined>();
  let time = 0;
  const server = new IpcChannel({
    fd: near,
    out: {},
    in: contract,
    handlers: {
      add: async ({ a, b }) => {
        if (a < 0) throw new VpnError('ERR_BUSY', 'too little');
        return { sum: a + b };
      },
      wait: () => new Promise<Record<string, never>>(() => {}),
      note: ({ text }) => {
        if (text === 'bad') throw new VpnError('ERR_INVARIANT', 'nobody may say that');
        notes.push(text);
      },
    },
    limits,
    closed: closed.resolve,
    now: () => time,
  });
  const pass = (ms: number) => {
    time += ms;
  };
  return { server, far, notes, closed: closed.promise, pass };
}

function frameOf(value: unknown): Buffer {
  const body = Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
  const head = Buffer.alloc(4);
  head.writeUInt32BE(body.length);
  return Buffer.concat([head, body]);
}

test('calls are answered, errors keep their code, words need no answer', options, async () => {
  const { far, notes, server } = serve();
  const client = new IpcChannel({
    fd: far,
    out: contract,
    in: {},
    handlers: {},
    limits: LIMITS,
    closed: () => {},
  });
  client.tell('note', { text: 'hello' });
  assert.deepEqual(await client.call('add', { a: 1, b: 2 }), { sum: 3 });
  assert.deepEqual(notes, ['hello']);
  await assert.rejects(client.call('add', { a: -1, b: 2 }), { code: 'ERR_BUSY', message: 'too little' });
  assert.throws(() => client.tell('note', { text: 'far too long' }), { code: 'ERR_INVARIANT' });
  const waiting = client.call('wait', {});
  server.close();
  await assert.rejects(waiting, { code: 'ERR_BUSY' });
  await assert.rejects(client.call('add', { a: 1, b: 2 }), { code: 'ERR_BUSY' });
});

test('an answer that takes too long is given up, and the channel lives on', options, async () => {
  const { far, server } = serve();
  const client = new IpcChannel({ fd: far, out: contract, in: {}, handlers: {}, limits: LIMITS, closed: () => {} });
  await assert.rejects(client.call('wait', {}, 5), { code: 'ERR_BUSY' });
  assert.deepEqual(await client.call('add', { a: 1, b: 1 }), { sum: 2 });
  client.close();
  server.close();
});

test('what is longer than the other end takes is not said, and the channel lives on', options, async () => {
  const [near, far] = socketPair('stream');
  const kinds = { text: { input: z.strictObject({ text: z.string() }), output: z.strictObject({ text: z.string() }) } };
  const closed = (): void => {};
  const handlers = { text: async ({ text }: { text: string }) => ({ text: text.repeat(3) }) };
  const limits = { ...LIMITS, burstBytes: 1e6 };
  const server = new IpcChannel({ fd: near, out: {}, in: kinds, handlers, limits, maxSentBytes: 1024, closed });
  const client = new IpcChannel({ fd: far, out: kinds, in: {}, handlers: {}, limits, maxSentBytes: 1024, closed });
  assert.throws(() => client.call('text', { text: 'x'.repeat(1024) }), { code: 'ERR_INVARIANT' });
  await assert.rejects(client.call('text', { text: 'x'.repeat(500) }), { code: 'ERR_INVARIANT' });
  assert.deepEqual(await client.call('text', { text: 'ab' }), { text: 'ababab' });
  client.close();
  server.close();
});

test('frames arrive in any pieces', options, async () => {
  const { far, notes, server, closed } = serve();
  const socket = new Socket({ fd: far });
  for (const byte of frameOf({ tell: 'note', input: { text: 'piece' } })) socket.write(Buffer.of(byte));
  socket.end(frameOf({ tell: 'note', input: { text: 'whole' } }));
  assert.equal(await closed, undefined);
  assert.deepEqual(notes, ['piece', 'whole']);
  server.close();
});

const broken: readonly [what: string, said: readonly Buffer[], why: RegExp][] = [
  ['a frame longer than is allowed', [Buffer.of(0, 0, 4, 1)], /1025 bytes/],
  ['a huge frame', [Buffer.of(0xff, 0xff, 0xff, 0xff)], /4294967295 bytes/],
  ['no JSON', [frameOf('{')], /no JSON/],
  ['no known kind', [frameOf({ shout: 'note' })], /no known kind/],
  ['a kind with more in it', [frameOf({ tell: 'note', input: { text: '' }, more: 1 })], /no known kind/],
  ['a call that is not in the contract', [frameOf({ call: 'drop', id: 1, input: {} })], /not in the contract/],
  ['a name of Object', [frameOf({ call: 'constructor', id: 1, input: {} })], /not in the contract/],
  ['a word as a call', [frameOf({ call: 'note', id: 1, input: { text: '' } })], /not in the contract/],
  ['a call as a word', [frameOf({ tell: 'add', input: { a: 1, b: 2 } })], /not in the contract/],
  ['a value of another type', [frameOf({ call: 'add', id: 1, input: { a: '1', b: 2 } })], /a: /],
  ['a value out of bounds', [frameOf({ tell: 'note', input: { text: 'x'.repeat(9) } })], /text: /],
  ['a value too many', [frameOf({ call: 'add', id: 1, input: { a: 1, b: 2, c: 3 } })], /wrong value/],
  ['an answer to nothing', [frameOf({ answer: 7, output: {} })], /answer to nothing/],
  [
    'too many calls in flight',
    [1, 2, 3, 4].map((id) => frameOf({ call: 'wait', id, input: {} })),
    /more than 3 calls in flight/,
  ],
  [
    'too many frames',
    Array.from({ length: 101 }, () => frameOf({ tell: 'note', input: { text: '' } })),
    /more than 10 frames a second/,
  ],
  [
    'too many bytes in few frames',
    // 9,036 bytes; spaces are JSON.
    Array.from({ length: 9 }, () => frameOf(JSON.stringify({ tell: 'note', input: { text: '' } }).padEnd(1000))),
    /more than 5000 bytes a second/,
  ],
];
for (const [what, said, why] of broken) {
  test(`cut off: ${what}`, options, async () => {
    const { far, closed } = serve();
    const socket = new Socket({ fd: far });
    socket.on('error', () => {});
    const ended = new Promise((resolve) => socket.once('close', resolve));
    for (const bytes of said) socket.write(bytes);
    socket.resume();
    const error = await closed;
    assert.equal(error?.code, 'ERR_MESSAGE_FIELD');
    assert.match(error.message, why);
    await ended;
  });
}

test('cut off: a word that whoever hears it refuses', options, async () => {
  const { far, notes, closed } = serve();
  const peer = new Socket({ fd: far });
  peer.write(frameOf({ tell: 'note', input: { text: 'bad' } }));
  const error = await closed;
  assert.match(error?.message ?? '', /note cannot be heard: nobody may say that/);
  assert.deepEqual(notes, []);
  peer.destroy();
});

test('whoever has said much may go on after a while', options, async () => {
  const { far, notes, server, pass, closed } = serve();
  const socket = new Socket({ fd: far });
  const note = frameOf({ tell: 'note', input: { text: '' } });
  for (let count = 0; count < 100; count++) socket.write(note);
  while (notes.length < 100) await new Promise((resolve) => setImmediate(resolve));
  pass(1000);
  for (let count = 0; count < 10; count++) socket.write(note);
  socket.end();
  assert.equal(await closed, undefined);
  assert.equal(notes.length, 110);
  server.close();
});

test('closed in the middle of a frame: nothing has been said', options, async () => {
  const { far, notes, closed } = serve();
  const socket = new Socket({ fd: far });
  socket.end(frameOf({ tell: 'note', input: { text: 'half' } }).subarray(0, 12));
  assert.equal(await closed, undefined);
  assert.deepEqual(notes, []);
});
