import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock, systemClock } from './clock.ts';
import { SleepWatch } from './sleep-watch.ts';

test('a sleep is what the time since boot has gone on beyond the monotonic clock, told once', () => {
  const clock = new ManualClock();
  const watch = new SleepWatch(
    () => clock.now(),
    () => clock.bootNow(),
  );
  clock.advance(1000);
  assert.deepEqual(watch.look(), { passedMs: 1000, sleptMs: 0 });
  clock.advance(500);
  clock.sleep(3_600_000);
  assert.deepEqual(watch.look(), { passedMs: 500, sleptMs: 3_600_000 });
  assert.deepEqual(watch.look(), { passedMs: 0, sleptMs: 0 });
});

test('a process that stood still is no sleep of the machine, nor are clocks that differ a little', () => {
  const clock = new ManualClock();
  const watch = new SleepWatch(
    () => clock.now(),
    () => clock.bootNow(),
  );
  clock.advance(60_000);
  assert.deepEqual(watch.look(), { passedMs: 60_000, sleptMs: 0 });
  clock.sleep(1900);
  assert.equal(watch.look().sleptMs, 0);
});

test('a wall clock that is set is no sleep', () => {
  const boot = systemClock.bootNow();
  assert.ok(boot > 0 && systemClock.bootNow() - boot < 60_000);
  assert.ok(Math.abs(boot - systemClock.wallNow()) > 1e9, 'it counts from the start of the machine');
});
