// Lines come whole however they are cut into chunks, and of one that never ends no more is kept than was asked for.

import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { readLines } from './lines.ts';

test('each line once, without its end, wherever the chunks end', async () => {
  const text = 'one\n\ntwö\nthree\nunfinished';
  const bytes = Buffer.from(text);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const stream = new PassThrough();
    const lines: [string, boolean][] = [];
    readLines(stream, 10, (line, isCut) => lines.push([line, isCut]));
    stream.write(bytes.subarray(0, cut));
    stream.end(bytes.subarray(cut));
    await new Promise((resolve) => stream.once('close', resolve));
    assert.deepEqual(lines, [
      ['one', false],
      ['', false],
      ['twö', false],
      ['three', false],
    ]);
  }
});

test("of a line that is too long the beginning is told once, at once, and the rest of it is nobody's", async () => {
  const stream = new PassThrough();
  const lines: [string, boolean][] = [];
  readLines(stream, 4, (line, isCut) => lines.push([line, isCut]));
  const long = 'abcdefgh';
  stream.write(long);
  await new Promise(setImmediate);
  assert.deepEqual(lines, [['abcd', true]]);
  for (let at = 0; at < 1000; at++) stream.write(long);
  stream.write('\nfour\nfives\nok\n');
  await new Promise(setImmediate);
  assert.deepEqual(lines, [
    ['abcd', true],
    ['four', false],
    ['five', true],
    ['ok', false],
  ]);
});
