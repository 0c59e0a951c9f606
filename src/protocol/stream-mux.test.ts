// Two ends of a connection for streams, joined by an array: what one says the other hears, in any chunking, and neither can be
// made to keep more than it has given credit for.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { encodeStreamFrame, INITIAL_WINDOW_BYTES, StreamFrameType, type StreamWish } from './stream-frame.ts';
import { type MuxOptions, type MuxStream, StreamMux, type StreamSink } from './stream-mux.ts';

/** One end, and what it has written. */
class End {
  readonly mux: StreamMux;
  readonly written: Uint8Array[] = [];
  isIdle = true;

  constructor(options: Partial<MuxOptions> & Pick<MuxOptions, 'role'>) {
    const isIdle = () => this.isIdle;
    this.mux = new StreamMux({
      maxWindowBytes: 1 << 20,
      windowBudgetBytes: 1 << 22,
      ...options,
      output: {
        get isIdle() {
          return isIdle();
        },
        write: (bytes) => void this.written.push(bytes.slice()),
        wake: () => this.pump(),
      },
    });
  }

  /** Writes until nothing waits. */
  pump(): void {
    this.isIdle = false;
    for (let bytes = this.mux.take(); bytes !== undefined; bytes = this.mux.take()) this.written.push(bytes.slice());
    this.isIdle = true;
  }
}

/** Writes down what it is told. */
class Ear implements StreamSink {
  readonly told: string[] = [];
  received = 0;
  text = '';
  rooms = 0;
  opened(): void {
    this.told.push('opened');
  }
  refused(why: string): void {
    this.told.push(`refused ${why}`);
  }
  bytes(bytes: Uint8Array, start: number, end: number): void {
    this.received += end - start;
    if (this.text.length < 1000) this.text += Buffer.from(bytes.subarray(start, end)).toString('latin1');
  }
  ended(): void {
    this.told.push('ended');
  }
  broken(): void {
    this.told.push('broken');
  }
  room(): void {
    this.rooms += 1;
  }
}

interface Pair {
  readonly client: End;
  readonly server: End;
  readonly wanted: { stream: MuxStream; wish: StreamWish; ear: Ear }[];
  /** Carries what was written, `size` bytes at a time, until both are quiet. */
  carry(size?: number): void;
}

function pair(options: Partial<MuxOptions> = {}): Pair {
  const wanted: Pair['wanted'] = [];
  const client = new End({ role: 'client', ...options });
  const server: End = new End({
    role: 'server',
    ...options,
    onBind: (credential) => server.mux.answerBind(credential === 'right' ? 'yes' : undefined),
    onWanted: (stream, wish) => {
      const ear = new Ear();
      stream.sink = ear;
      wanted.push({ stream, wish, ear });
    },
  });
  const carry = (size = Number.POSITIVE_INFINITY): void => {
    while (client.written.length > 0 || server.written.length > 0) {
      for (const [from, to] of [
        [client, server],
        [server, client],
      ] as const) {
        const bytes = Buffer.concat(from.written.splice(0));
        for (let at = 0; at < bytes.length; at += size) to.mux.receive(bytes.subarray(at, at + size));
      }
    }
  };
  client.mux.bind('right');
  carry();
  return { client, server, wanted, carry };
}

const WISH: StreamWish = { kind: 'tcp', host: '192.0.2.1', port: 7 };
const text = (words: string): Uint8Array => new TextEncoder().encode(words);

function openOne(ends: Pair): { mine: MuxStream; ear: Ear; theirs: MuxStream; far: Ear } {
  const ear = new Ear();
  const mine = ends.client.mux.open(WISH, ear);
  ends.carry();
  const last = ends.wanted.at(-1);
  assert.ok(last);
  last.stream.accept();
  ends.carry();
  return { mine, ear, theirs: last.stream, far: last.ear };
}

test('REQ-MUX-004 REQ-MUX-005: a stream is asked for, opened, carries both ways, and each half ends by itself', () => {
  for (const size of [1, 7, 1000]) {
    const ends = pair();
    const { mine, ear, theirs, far } = openOne(ends);
    assert.deepEqual(ends.wanted[0]?.wish, WISH);
    mine.send(text('question'), 0, 8);
    mine.end();
    ends.carry(size);
    assert.deepEqual([far.text, far.told], ['question', ['ended']]);
    theirs.send(text('xanswer'), 1, 7);
    ends.carry(size);
    assert.deepEqual([ear.text, ear.told], ['answer', ['opened']]);
    assert.equal(ends.client.mux.streams, 1);
    theirs.end();
    ends.carry(size);
    assert.deepEqual(ear.told, ['opened', 'ended']);
    assert.deepEqual([ends.client.mux.streams, ends.server.mux.streams], [0, 0]);
    assert.ok(!mine.isBroken && !theirs.isBroken);
  }
});

test('REQ-MUX-006: a stream that there is none of is refused with the reason', () => {
  const ends = pair();
  const ear = new Ear();
  ends.client.mux.open(WISH, ear);
  ends.carry();
  ends.wanted[0]?.stream.refuse('dns_error');
  ends.carry();
  assert.deepEqual(ear.told, ['refused dns_error']);
  assert.deepEqual([ends.client.mux.streams, ends.server.mux.streams], [0, 0]);
});

test('REQ-MUX-005: a reset breaks the other end, before an answer and after it; what is late for it is dropped', () => {
  const ends = pair();
  const early = ends.client.mux.open(WISH, new Ear());
  ends.carry();
  early.reset();
  ends.carry();
  assert.deepEqual(ends.wanted[0]?.ear.told, ['broken']);
  ends.wanted[0]?.stream.accept();
  ends.carry();
  const { mine, ear, theirs, far } = openOne(ends);
  mine.send(text('gone'), 0, 4);
  theirs.reset();
  mine.end();
  ends.carry();
  assert.deepEqual(ear.told, ['opened', 'broken']);
  assert.deepEqual(far.told, []);
  assert.ok(mine.isBroken);
  assert.deepEqual([ends.client.mux.streams, ends.server.mux.streams], [0, 0]);
});

test('REQ-MUX-007: nothing is sent without credit, the owner is told when it is full and when there is room', () => {
  const ends = pair();
  const { mine, theirs, far } = openOne(ends);
  const block = new Uint8Array(50_000).fill(1);
  let sent = 0;
  for (; !mine.isFull; sent += block.length) mine.send(block, 0, block.length);
  ends.carry();
  assert.equal(far.received, INITIAL_WINDOW_BYTES);
  assert.ok(sent <= INITIAL_WINDOW_BYTES + 131_072 + block.length);
  let consumed = 0;
  for (; consumed < far.received; ends.carry()) {
    const length = far.received - consumed;
    theirs.consumed(length);
    consumed += length;
  }
  assert.equal(far.received, sent);
});

test('REQ-MUX-007: a window grows while its reader keeps up, to its limit and within what all may have', () => {
  const ends = pair({ maxWindowBytes: 4 * INITIAL_WINDOW_BYTES, windowBudgetBytes: 4 * INITIAL_WINDOW_BYTES });
  const grow = ({ mine, theirs, far }: ReturnType<typeof openOne>): number => {
    const block = new Uint8Array(65_536);
    for (let i = 0; i < 100; i++) {
      if (!mine.isFull) mine.send(block, 0, block.length);
      const before = far.received;
      ends.carry();
      theirs.consumed(far.received - before);
      ends.carry();
    }
    return theirs.windowBytes;
  };
  const first = openOne(ends);
  assert.equal(grow(first), 4 * INITIAL_WINDOW_BYTES);
  assert.equal(grow(openOne(ends)), 2 * INITIAL_WINDOW_BYTES);
  first.mine.reset();
  ends.carry();
  assert.equal(grow(openOne(ends)), 4 * INITIAL_WINDOW_BYTES);
});

test('REQ-MUX-007: while memory is short windows shrink to what each begins with, and no stream stands still', () => {
  let isTight = false;
  const memory = {
    get isTight() {
      return isTight;
    },
    hold: () => true,
  };
  const ends = pair({ memory });
  const { mine, theirs, far } = openOne(ends);
  const block = new Uint8Array(65_536);
  let consumed = 0;
  const carry = (): void => {
    if (!mine.isFull) mine.send(block, 0, block.length);
    ends.carry();
    theirs.consumed(far.received - consumed);
    consumed = far.received;
    ends.carry();
  };
  for (let i = 0; i < 100; i++) carry();
  assert.equal(theirs.windowBytes, 1 << 20);
  isTight = true;
  for (let i = 0; i < 100; i++) carry();
  assert.equal(theirs.windowBytes, INITIAL_WINDOW_BYTES);
  const before = far.received;
  for (let i = 0; i < 20; i++) carry();
  assert.ok(far.received >= before + 10 * INITIAL_WINDOW_BYTES);
  for (let i = 0; i < 20; i++) {
    mine.send(block, 0, block.length);
    ends.carry();
  }
  assert.ok(far.received - consumed <= INITIAL_WINDOW_BYTES, 'what comes without being consumed');
});

test('REQ-MUX-008: streams take turns, and what is said of them overtakes what they carry', () => {
  const ends = pair();
  const streams = [openOne(ends), openOne(ends), openOne(ends)];
  ends.client.isIdle = false;
  const block = new Uint8Array(60_000);
  for (const [i, { mine }] of streams.entries()) mine.send(block.fill(i), 0, block.length);
  ends.client.mux.open(WISH, new Ear());
  const order: string[] = [];
  for (let bytes = ends.client.mux.take(); bytes !== undefined; bytes = ends.client.mux.take()) {
    order.push(`${bytes[0]} ${bytes[7]}`);
  }
  assert.deepEqual(order, ['3 4', '6 1', '6 2', '6 3']);
});

test('what waits is sent whole, and bytes are right whichever way they go', () => {
  const ends = pair();
  const { mine, far, theirs } = openOne(ends);
  const room = new Uint8Array(8 + 1000);
  let expected = '';
  let consumed = 0;
  for (let i = 0; i < 300; i++) {
    ends.client.isIdle = i % 3 !== 0;
    const length = 1 + ((i * 37) % 900);
    room.fill(97 + (i % 26), 8);
    expected += String.fromCharCode(97 + (i % 26)).repeat(length);
    if (i % 2 === 0) mine.sendInPlace(room, 8, 8 + length);
    else mine.send(room, 8, 8 + length);
    ends.client.isIdle = true;
    ends.client.pump();
    ends.carry(113);
    theirs.consumed(far.received - consumed);
    consumed = far.received;
    ends.carry();
    assert.equal(far.text.slice(-length), expected.slice(far.text.length - length, far.text.length));
    if (far.text.length >= 1000) far.text = '';
    expected = expected.slice(expected.length - far.text.length);
  }
});

test('REQ-MUX-009: the end of the connection breaks every stream', () => {
  const ends = pair();
  const { ear, far } = openOne(ends);
  ends.client.mux.close();
  ends.server.mux.close();
  assert.deepEqual([ear.told, far.told], [['opened', 'broken'], ['broken']]);
  assert.equal(ends.client.mux.streams, 0);
});

test('REQ-MUX-010: PING is answered with its payload', () => {
  const pongs: number[] = [];
  const ends = pair({ onPong: () => void pongs.push(1) });
  ends.client.mux.ping();
  ends.carry();
  assert.equal(pongs.length, 1);
});

test('REQ-MUX-004 REQ-MUX-007 REQ-MUX-011: what is not legal ends the connection', () => {
  const { data, end, open, opened, refused, credit, reset, bind, bound } = StreamFrameType;
  const wish = Buffer.concat([Uint8Array.of(1, 0, 7), Buffer.from('a')]);
  const unbound = new End({ role: 'server', onBind: () => {} });
  assert.throws(() => unbound.mux.receive(encodeStreamFrame(open, 1, wish)), isWrong);
  const toServer: [string, Uint8Array][] = [
    ['DATA before OPENED', Buffer.concat([encodeStreamFrame(open, 9, wish), encodeStreamFrame(data, 9, text('x'))])],
    ['END before OPENED', Buffer.concat([encodeStreamFrame(open, 9, wish), encodeStreamFrame(end, 9)])],
    ['DATA for none', encodeStreamFrame(data, 9, text('x'))],
    ['DATA for the connection', encodeStreamFrame(data, 0, text('x'))],
    ['CREDIT for none', encodeStreamFrame(credit, 9, Uint8Array.of(0, 0, 0, 1))],
    ['RESET for none', encodeStreamFrame(reset, 9)],
    ['a number that was used', encodeStreamFrame(open, 1, wish)],
    ['OPENED at the server', encodeStreamFrame(opened, 1)],
    ['BIND twice', encodeStreamFrame(bind, 0, text('right'))],
    ['BOUND at the server', encodeStreamFrame(bound, 0, text('yes'))],
    ['CREDIT of nothing', encodeStreamFrame(credit, 1, new Uint8Array(4))],
    ['CREDIT beyond all', encodeStreamFrame(credit, 1, Uint8Array.of(0x7f, 0xff, 0xff, 0xff))],
    [
      'more than the credit',
      Buffer.concat([encodeStreamFrame(data, 1, new Uint8Array(65_536)), encodeStreamFrame(data, 1, text('x'))]),
    ],
    ['DATA after END', Buffer.concat([encodeStreamFrame(end, 1), encodeStreamFrame(data, 1, text('x'))])],
    ['END twice', Buffer.concat([encodeStreamFrame(end, 1), encodeStreamFrame(end, 1)])],
  ];
  for (const [what, bytes] of toServer) {
    const ends = pair();
    openOne(ends);
    assert.throws(() => ends.server.mux.receive(bytes), isWrong, what);
  }
  const toClient: [string, Uint8Array][] = [
    ['OPEN at the client', encodeStreamFrame(open, 2, wish)],
    ['BIND at the client', encodeStreamFrame(bind, 0, text('x'))],
    ['an answer twice', encodeStreamFrame(opened, 1)],
    ['an answer to nothing', encodeStreamFrame(refused, 7, Uint8Array.of(1))],
  ];
  for (const [what, bytes] of toClient) {
    const ends = pair();
    openOne(ends);
    assert.throws(() => ends.client.mux.receive(bytes), isWrong, what);
  }
});

test('REQ-MUX-012: a connection is bound once, whatever came of it', () => {
  const { bind, bound } = StreamFrameType;
  const asked: string[] = [];
  const server = new End({ role: 'server', onBind: (credential) => void asked.push(credential) });
  server.mux.receive(encodeStreamFrame(bind, 0, text('first')));
  assert.throws(() => server.mux.receive(encodeStreamFrame(bind, 0, text('second'))), isWrong, 'before an answer');
  const refused = new End({ role: 'server', onBind: (credential) => void asked.push(credential) });
  refused.mux.receive(encodeStreamFrame(bind, 0, text('wrong')));
  refused.mux.answerBind(undefined);
  assert.throws(() => refused.mux.receive(encodeStreamFrame(bind, 0, text('again'))), isWrong, 'after a no');
  assert.deepEqual(asked, ['first', 'wrong']);
  const client = new End({ role: 'client' });
  assert.throws(() => client.mux.receive(encodeStreamFrame(bound, 0, text('yes'))), isWrong, 'an answer to nothing');
  const answered = pair();
  assert.throws(() => answered.client.mux.receive(encodeStreamFrame(bound, 0, text('yes'))), isWrong, 'two answers');
});

test('REQ-MUX-011: a peer that asks and does not read is given up', () => {
  const server = new End({ role: 'server' });
  server.isIdle = false;
  const pings = Buffer.concat(
    Array.from({ length: 1000 }, () => encodeStreamFrame(StreamFrameType.ping, 0, new Uint8Array(8))),
  );
  // A stranger sooner than one that has proven something.
  assert.throws(() => {
    for (let i = 0; i < 3; i++) server.mux.receive(pings);
  }, isWrong);
  const { server: bound } = pair();
  bound.isIdle = false;
  for (let i = 0; i < 50; i++) bound.mux.receive(pings);
  assert.throws(() => {
    for (let i = 0; i < 50; i++) bound.mux.receive(pings);
  }, isWrong);
});

function isWrong(error: unknown): boolean {
  return isVpnError(error) && error.kind === 'protocol';
}
