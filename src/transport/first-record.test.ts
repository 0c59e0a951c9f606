/** How many bytes a first record needs. What a port does with them is in listener.test.ts. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { neededBytes } from './first-record.ts';

const bytes = (hex: string): Uint8Array => Buffer.from(hex, 'hex');

for (const [start, needed, why] of [
  ['', 5, 'nothing yet'],
  ['16', 5, 'the start of a header'],
  ['16030102', 5, 'most of a header'],
  ['1603010200', 517, 'a header'],
  ['1603010200aabb', 517, 'a header and some of its record'],
  ['1603010002aabb', 7, 'a whole record'],
  ['1603010002aabbccdd', 7, 'more than a record'],
  ['1603010000', 5, 'an empty record'],
  ['1603014000', 16_389, 'the longest record'],
  ['1603014001', 5, 'a record that is too long to be one'],
  ['160301ffff00', 6, 'the same with more behind it'],
  ['47', 1, 'plain text'],
  ['474554202f', 5, 'plain HTTP'],
  ['17', 1, 'a record of another type'],
] as const) {
  test(`${needed} bytes are needed of ${why}`, () => {
    assert.equal(neededBytes(bytes(start)), needed);
  });
}
