import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DROP_REASON_NAMES, DropReason } from './drop-reason.ts';

test('reasons are consecutive from 0, so that counters are plain arrays', () => {
  const values: number[] = Object.values(DropReason);
  assert.deepEqual(
    values,
    values.map((_, at) => at),
  );
  assert.equal(DropReason.none, 0);
});

test('each reason has one name in snake case at its value', () => {
  assert.equal(DROP_REASON_NAMES.length, Object.keys(DropReason).length);
  assert.equal(new Set(DROP_REASON_NAMES).size, DROP_REASON_NAMES.length);
  for (const name of DROP_REASON_NAMES) assert.match(name, /^[a-z]+(_[a-z]+)*$/);
  assert.equal(DROP_REASON_NAMES[DropReason.superTcpDataOffset], 'super_tcp_data_offset');
  assert.equal(DROP_REASON_NAMES[DropReason.sourceNotLeased], 'source_not_leased');
});
