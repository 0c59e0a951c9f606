import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Hours, isZone } from './hours.ts';

/** Whether the hours include each of the instants. */
function at(hours: Hours, ...instants: string[]): boolean[] {
  return instants.map((instant) => hours.includes(Date.parse(instant)));
}

test('hours of the day, the end not included, in their zone and through its changes of the clock', () => {
  const office = new Hours({ from: '08:00', to: '17:30', zone: 'Europe/Berlin' });
  assert.deepEqual(at(office, '2026-01-12T06:59Z', '2026-01-12T07:00Z', '2026-01-12T16:29Z', '2026-01-12T16:30Z'), [
    false,
    true,
    true,
    false,
  ]);
  assert.deepEqual(at(office, '2026-07-13T05:59Z', '2026-07-13T06:00Z'), [false, true]);
});

test('days of the week are those of the zone', () => {
  const monday = new Hours({ days: ['mon'], zone: 'Asia/Tokyo' });
  assert.deepEqual(at(monday, '2026-03-01T14:59Z', '2026-03-01T15:00Z', '2026-03-02T14:59Z', '2026-03-02T15:00Z'), [
    false,
    true,
    true,
    false,
  ]);
});

test('a night belongs to the day it began on', () => {
  const night = new Hours({ days: ['sun'], from: '22:00', to: '06:00' });
  assert.deepEqual(
    at(night, '2026-03-01T05:00Z', '2026-03-01T22:00Z', '2026-03-02T05:59Z', '2026-03-02T06:00Z', '2026-03-02T22:00Z'),
    [false, true, true, false, false],
  );
});

test('midnight is in the day that it begins', () => {
  const whole = new Hours({ days: ['tue'], from: '00:00', to: '24:00' });
  assert.deepEqual(at(whole, '2026-03-02T23:59Z', '2026-03-03T00:00Z', '2026-03-03T23:59Z', '2026-03-04T00:00Z'), [
    false,
    true,
    true,
    false,
  ]);
});

test('the same hours have the same key, others another', () => {
  assert.equal(new Hours({ days: ['mon', 'tue'] }).key, new Hours({ days: ['tue', 'mon'], zone: 'UTC' }).key);
  assert.notEqual(new Hours({ from: '08:00', to: '09:00' }).key, new Hours({ from: '08:00', to: '09:01' }).key);
  assert.deepEqual([isZone('Europe/Berlin'), isZone('Mars/Olympus'), isZone('')], [true, false, false]);
});
