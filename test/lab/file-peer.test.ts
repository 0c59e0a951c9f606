/** The file of the demo: the same at both ends, different in every block, and full of the marker. */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { fileBlocks } from './file-peer.ts';

const MARKER = Buffer.from('00112233445566778899aabbccddeeff', 'hex');

function digest(bytes: number, marker: Buffer): string {
  const hash = createHash('sha256');
  for (const block of fileBlocks(bytes, marker)) hash.update(block);
  return hash.digest('hex');
}

test('the file is as long as asked for, and the same each time', () => {
  for (const bytes of [0, 1, 1024 * 1024, 1024 * 1024 + 1, 3_000_000]) {
    const length = [...fileBlocks(bytes, MARKER)].reduce((sum, block) => sum + block.length, 0);
    assert.equal(length, bytes);
  }
  assert.equal(digest(3_000_000, MARKER), digest(3_000_000, MARKER));
  assert.notEqual(digest(3_000_000, MARKER), digest(3_000_000, Buffer.from(MARKER).fill(1)));
});

test('no block is like another, and each holds the marker every 64 KiB', () => {
  const seen = new Set<string>();
  for (const block of fileBlocks(4 * 1024 * 1024, MARKER)) {
    seen.add(createHash('sha256').update(block).digest('hex'));
    let count = 0;
    for (let at = block.indexOf(MARKER); at >= 0; at = block.indexOf(MARKER, at + 1)) count += 1;
    assert.equal(count, 16);
  }
  assert.equal(seen.size, 4);
});
