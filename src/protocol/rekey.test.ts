import assert from 'node:assert/strict';
import { test } from 'node:test';
import { code, split } from '../../test/support/protocol.ts';
import { decodeMessage } from './messages.ts';
import {
  REKEY_BYTES,
  REKEY_INTERVAL_MS,
  RekeySchedule,
  SWITCH_TIMEOUT_MS,
  SwitchReceiver,
  SwitchSender,
} from './rekey.ts';

test('REQ-REKEY-001: a rekey is due after an hour ± 10 % or 64 GiB', () => {
  const hour = 3_600_000;
  assert.equal(REKEY_INTERVAL_MS, hour);
  for (const [random, factor] of [
    [0, 0.9],
    [0.5, 1],
    [0.999_999, 1.099_999],
  ] as const) {
    const schedule = new RekeySchedule(1_000, random);
    assert.equal(schedule.isDue(1_000 + hour * factor - 20, 0), false);
    assert.equal(schedule.isDue(1_000 + hour * factor + 20, 0), true);
    assert.ok(Math.abs(schedule.dueAt - (1_000 + hour * factor)) < 20);
  }
  assert.equal(REKEY_BYTES, 68_719_476_736);
  const busy = new RekeySchedule(0, 0);
  assert.equal(busy.isDue(1, REKEY_BYTES - 1), false);
  assert.equal(busy.isDue(1, REKEY_BYTES), true);
  const early = new RekeySchedule(0, 0.999_999);
  assert.equal(
    early.isDue(1, REKEY_BYTES * 0.9 + 100_000),
    true,
    'up to a tenth less, so that not all are due at once',
  );
  assert.equal(early.isDue(1, REKEY_BYTES * 0.9 - 100_000), false);
  assert.equal(new RekeySchedule(0, 0.5, 10_000).dueAt, 10_000, 'the interval is configurable');
});

test('REQ-REKEY-002: SWITCH names the slot and the next generation, and is the last frame on the old connection', () => {
  const sender = new SwitchSender(3, 6);
  const message = decodeMessage('switch', split(sender.attached(7))[1]);
  assert.deepEqual(message, { slot: 3, generation: 7 });
  assert.equal(sender.generation, 7);
  assert.throws(() => sender.attached(7), code('ERR_INVARIANT'));
  assert.throws(() => sender.attached(9), code('ERR_INVARIANT'));
});

test('REQ-REKEY-003: the new connection is not read before SWITCH has come on the old', () => {
  const receiver = new SwitchReceiver(0, 0);
  assert.equal(receiver.attached(1, 100), 'hold');
  assert.equal(receiver.generation, 0);
  assert.equal(receiver.switched({ slot: 0, generation: 1 }), 'release');
  assert.equal(receiver.generation, 1);
  assert.equal(receiver.gaps, 0);
  assert.equal(receiver.nextTimeout, undefined);
});

test('REQ-REKEY-003: a SWITCH that overtakes ATTACHED waits for it', () => {
  const receiver = new SwitchReceiver(0, 4);
  assert.equal(receiver.switched({ slot: 0, generation: 5 }), 'hold');
  assert.equal(receiver.generation, 4);
  assert.equal(receiver.attached(5, 0), 'release');
  assert.equal(receiver.attached(6, 0), 'hold');
});

test('REQ-REKEY-004: after 5 s, or the end of the old connection, it goes on and counts a gap', () => {
  const slow = new SwitchReceiver(0, 0);
  slow.attached(1, 100);
  assert.equal(slow.nextTimeout, 100 + SWITCH_TIMEOUT_MS);
  assert.equal(slow.handleTimeout(5_099), 'hold');
  assert.equal(slow.handleTimeout(5_100), 'release');
  assert.equal(slow.gaps, 1);
  const cut = new SwitchReceiver(0, 0);
  assert.equal(cut.oldClosed(), 'hold');
  assert.equal(cut.gaps, 0);
  cut.attached(1, 0);
  assert.equal(cut.oldClosed(), 'release');
  assert.equal(cut.gaps, 1);
});

test('REQ-REKEY-005: a SWITCH of another slot or generation, or a second one, is ERR_FRAME_STATE', () => {
  for (const message of [
    { slot: 1, generation: 1 },
    { slot: 0, generation: 0 },
    { slot: 0, generation: 2 },
  ]) {
    assert.throws(() => new SwitchReceiver(0, 0).switched(message), code('ERR_FRAME_STATE'));
  }
  const receiver = new SwitchReceiver(0, 0);
  receiver.switched({ slot: 0, generation: 1 });
  assert.throws(() => receiver.switched({ slot: 0, generation: 1 }), code('ERR_FRAME_STATE'));
  const attached = new SwitchReceiver(0, 0);
  attached.attached(1, 0);
  assert.throws(() => attached.attached(1, 0), code('ERR_INVARIANT'));
  assert.throws(() => new SwitchReceiver(0, 0).attached(2, 0), code('ERR_INVARIANT'));
});
