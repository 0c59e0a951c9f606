import assert from 'node:assert/strict';
import { test } from 'node:test';
import { VpnError } from '../base/errors.ts';
import { Callers } from './callers.ts';

function open(): { callers: Callers; empty: () => number } {
  let count = 0;
  return { callers: new Callers(() => (count += 1)), empty: () => count };
}

test('the last user that leaves ends it, and nobody comes after', () => {
  const { callers, empty } = open();
  const [first, second] = [callers.enter(), callers.enter()];
  assert.equal(callers.leave(first), 1);
  assert.equal(callers.leave(first), 1);
  assert.equal(empty(), 0);
  assert.equal(callers.leave(second), 0);
  assert.equal(empty(), 1);
  assert.throws(() => callers.enter(), { code: 'ERR_NOT_RUNNING' });
});

test('a user whose call ends has left', async () => {
  const { callers, empty } = open();
  const gone = new AbortController();
  const held = callers.hold(callers.enter(), gone.signal);
  assert.equal(callers.count, 1);
  gone.abort();
  assert.deepEqual(await held, { ended: null });
  assert.equal(empty(), 1);
});

test('a ticket that nobody holds in time is given back, and so is a tunnel that nobody uses', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const used = open();
  used.callers.enter();
  t.mock.timers.tick(10_000);
  assert.equal(used.empty(), 1);
  const unused = open();
  t.mock.timers.tick(10_000);
  assert.equal(unused.empty(), 1);
});

test('the end of the tunnel is told to all users, with its reason, and is not their doing', async () => {
  const { callers, empty } = open();
  const held = callers.hold(callers.enter(), new AbortController().signal);
  callers.end(new VpnError('ERR_AUTH_REJECTED', 'the device was revoked'));
  assert.deepEqual(await held, { ended: { code: 'ERR_AUTH_REJECTED', message: 'the device was revoked' } });
  assert.equal(empty(), 0);
  await assert.rejects(callers.hold(1, new AbortController().signal), { code: 'ERR_NOT_FOUND' });
});
