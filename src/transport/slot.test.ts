// The switch rule at one end: what is held, what is closed, and when. Channels are recorders; the bytes are in test/sim/rekey.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { code, split } from '../../test/support/protocol.ts';
import { type CloseReason, decodeMessage } from '../protocol/messages.ts';
import { SWITCH_TIMEOUT_MS } from '../protocol/rekey.ts';
import type { Channel } from './channel.ts';
import { Slot, type SlotConnection } from './slot.ts';

/** A connection that writes down what is done to it. */
class Recorder implements SlotConnection {
  readonly seen: string[] = [];
  readonly channel: Channel;
  /** Our last frame goes to the socket. */
  drain: () => void = () => {};

  constructor() {
    const sendLast = (frame: Uint8Array, sent: () => void): void => {
      const { slot, generation } = decodeMessage('switch', split(frame)[1]);
      this.seen.push(`switch ${slot}/${generation}`);
      this.drain = sent;
    };
    this.channel = { sendLast } as unknown as Channel;
  }

  hold(): void {
    this.seen.push('hold');
  }

  release(): void {
    this.seen.push('release');
  }

  retire(): void {
    this.seen.push('retire');
  }

  close(reason: CloseReason): void {
    this.seen.push(`close ${reason}`);
  }
}

function slot() {
  const counters = { rekeys: 0, rekeyGaps: 0 };
  const sending: (Recorder | undefined)[] = [];
  const made = new Slot<Recorder>({ number: 3, counters, onSending: (connection) => void sending.push(connection) });
  const [old, next] = [new Recorder(), new Recorder()] as const;
  made.attach(old, 0, true, 0);
  return { slot: made, counters, sending, old, next };
}

test('the old connection is closed when both ends have said their last word on it, whichever comes first', () => {
  for (const oursFirst of [true, false]) {
    const { slot: made, counters, sending, old, next } = slot();
    made.attach(next, 1, true, 10);
    assert.deepEqual(old.seen, ['switch 3/1']);
    assert.deepEqual(next.seen, ['hold']);
    assert.deepEqual([made.reading, made.sending, made.isChanging], [old, next, true]);
    if (oursFirst) old.drain();
    made.switched(old, { slot: 3, generation: 1 });
    if (!oursFirst) {
      assert.deepEqual(old.seen.slice(1), ['retire'], 'our own last frame still waits behind data');
      old.drain();
    }
    assert.deepEqual(old.seen.slice(1), ['retire', 'close replaced']);
    assert.deepEqual(next.seen, ['hold', 'release']);
    assert.deepEqual([made.reading, made.generation, made.isChanging], [next, 1, false]);
    assert.deepEqual(sending, [old, next]);
    assert.deepEqual(counters, { rekeys: 1, rekeyGaps: 0 });
  }
});

test('a SWITCH that comes before the new connection is waited with, and the change is then done at once', () => {
  const { slot: made, counters, old, next } = slot();
  made.switched(old, { slot: 3, generation: 1 });
  assert.equal(made.isSwitched, true);
  assert.equal(made.reading, old);
  made.attach(next, 1, true, 10);
  assert.deepEqual(next.seen, ['hold', 'release']);
  assert.deepEqual(counters, { rekeys: 1, rekeyGaps: 0 });
});

test('SWITCH on a connection that is not read is refused, and so is a wrong one', () => {
  const { slot: made, old, next } = slot();
  made.attach(next, 1, true, 0);
  assert.throws(() => made.switched(next, { slot: 3, generation: 2 }), code('ERR_FRAME_STATE'));
  assert.throws(() => made.switched(old, { slot: 2, generation: 1 }), code('ERR_FRAME_STATE'));
  assert.throws(() => made.switched(old, { slot: 3, generation: 2 }), code('ERR_FRAME_STATE'));
  assert.deepEqual(next.seen, ['hold']);
});

test('without SWITCH it goes on after 5 s, or with the end of the old connection, and counts a gap', () => {
  for (const end of [
    (of: ReturnType<typeof slot>) => of.slot.handleTimeout(10 + SWITCH_TIMEOUT_MS),
    (of: ReturnType<typeof slot>) => of.slot.closed(of.old),
  ]) {
    const all = slot();
    all.slot.attach(all.next, 1, true, 10);
    all.slot.handleTimeout(9 + SWITCH_TIMEOUT_MS);
    assert.deepEqual(all.next.seen, ['hold']);
    end(all);
    assert.deepEqual(all.next.seen, ['hold', 'release']);
    assert.ok(all.old.seen.includes('close replaced'));
    assert.deepEqual(all.counters, { rekeys: 1, rekeyGaps: 1 });
  }
});

test('a peer that knows no change, or a generation that jumps, replaces at once', () => {
  for (const [generation, canChange] of [
    [1, false],
    [2, true],
  ] as const) {
    const { slot: made, counters, sending, old, next } = slot();
    made.attach(next, generation, canChange, 0);
    assert.deepEqual(old.seen, ['close replaced']);
    assert.deepEqual(next.seen, []);
    assert.deepEqual([made.reading, made.generation], [next, generation]);
    assert.deepEqual(sending, [old, next]);
    assert.deepEqual(counters, { rekeys: 0, rekeyGaps: 0 });
  }
});

test('a new connection that is lost before SWITCH leaves the old one to be read, and nothing to send on', () => {
  const { slot: made, sending, old, next } = slot();
  made.attach(next, 1, true, 0);
  assert.equal(made.closed(next), true);
  assert.deepEqual([made.reading, made.sending], [old, undefined]);
  assert.deepEqual(sending, [old, next, undefined]);
  const third = new Recorder();
  made.attach(third, 1, true, 0);
  assert.deepEqual(third.seen, [], 'the old one cannot say its last word again: it is replaced');
  assert.ok(old.seen.includes('close replaced'));
});

test('the end of a connection that has been changed is nobody else’s', () => {
  const { slot: made, old, next } = slot();
  made.attach(next, 1, true, 0);
  made.switched(old, { slot: 3, generation: 1 });
  old.drain();
  assert.equal(made.closed(old), false);
  assert.deepEqual([made.reading, made.sending], [next, next]);
  assert.equal(made.closed(next), true);
  assert.deepEqual([made.reading, made.sending], [undefined, undefined]);
});

test('closing it closes every connection that it has, once', () => {
  const { slot: made, old, next } = slot();
  made.attach(next, 1, true, 0);
  made.close('shutdown');
  assert.deepEqual(old.seen, ['switch 3/1', 'close shutdown']);
  assert.deepEqual(next.seen, ['hold', 'close shutdown']);
  assert.deepEqual(made.connections, []);
  assert.equal(made.sending, undefined);
});
