// What was carried is added up by day and month, and is there after a restart.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { endsOfPeriods, UsageRecord } from './usage.ts';

const LATE = Date.UTC(2026, 10, 30, 23, 59, 59);
const DAY = 86_400_000;

test('bytes are added to the day and the month that they were carried in, however many users', async () => {
  await using store = await openTestStore();
  const record = new UsageRecord(store);
  await record.add(new Map([['ada', 100]]), LATE);
  await record.add(new Map(Array.from({ length: 1000 }, (_, at) => [`user${at}`, at] as const)), LATE);
  await record.add(new Map([['ada', 23]]), LATE);
  assert.deepEqual((await record.read(LATE)).get('ada'), { day: 123, month: 123 });
  assert.deepEqual((await record.read(LATE)).get('user999'), { day: 999, month: 999 });
  assert.equal((await record.read(LATE + 1000)).size, 0, 'another day, and another month');
  await record.add(new Map([['ada', 7]]), LATE - DAY);
  assert.deepEqual((await record.read(LATE)).get('ada'), { day: 123, month: 130 });
  assert.deepEqual((await new UsageRecord(store).read(LATE)).get('ada'), { day: 123, month: 130 });
  // More than 32 bits.
  await record.add(new Map([['ada', 2 ** 45]]), LATE);
  assert.equal((await record.read(LATE)).get('ada')?.month, 2 ** 45 + 130);
});

test('old days and months are forgotten, the present ones are not', async () => {
  await using store = await openTestStore();
  const record = new UsageRecord(store);
  for (const at of [LATE, LATE - DAY, LATE - 400 * DAY]) await record.add(new Map([['ada', 1]]), at);
  await record.forget(LATE);
  const periods = await store.db.selectFrom('usage').select('period').orderBy('period').execute();
  assert.deepEqual(
    periods.map(({ period }) => period),
    ['2026-11', '2026-11-30'],
  );
});

test('days and months end at midnight UTC, also at the end of a year', () => {
  const { day, month } = endsOfPeriods(Date.UTC(2026, 11, 31, 12));
  assert.equal(new Date(day).toISOString(), '2027-01-01T00:00:00.000Z');
  assert.equal(day, month);
});
