/** The capture reader: markers and counts do not depend on where a chunk of the stream ends. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CaptureReader } from './capture.ts';
import { LabError } from './process.ts';

const MARKER = Buffer.from('marker-0');
const ABSENT = Buffer.from('marker-1');

function file(...packets: Buffer[]): Buffer {
  const header = Buffer.alloc(24);
  header.writeUInt32LE(0xa1b2c3d4, 0);
  const records = packets.map((packet) => {
    const record = Buffer.alloc(16);
    record.writeUInt32LE(packet.length, 8);
    record.writeUInt32LE(packet.length + 100, 12);
    return Buffer.concat([record, packet]);
  });
  return Buffer.concat([header, ...records]);
}

test('counts packets and finds markers, split at every byte', () => {
  const bytes = file(Buffer.from('an empty one'), Buffer.alloc(0), Buffer.from('....marker-0....'));
  for (let split = 0; split <= bytes.length; split += 1) {
    const reader = new CaptureReader([MARKER, ABSENT]);
    reader.push(bytes.subarray(0, split));
    reader.push(bytes.subarray(split));
    assert.equal(reader.seen(MARKER), true, `split at ${split}`);
    assert.equal(reader.seen(ABSENT), false, `split at ${split}`);
    assert.deepEqual(reader.facts, { packets: 3, bytes: 28, longestBytes: 116, dropped: 0 }, `split at ${split}`);
  }
});

test('finds a marker that comes byte by byte', () => {
  const reader = new CaptureReader([MARKER]);
  for (const byte of file(Buffer.from('xxmarker-0'))) reader.push(Buffer.from([byte]));
  assert.equal(reader.seen(MARKER), true);
});

test('does not join the end of one packet to the start of the next', () => {
  const reader = new CaptureReader([MARKER]);
  reader.push(file(Buffer.from('marker'), Buffer.from('-0')));
  assert.equal(reader.seen(MARKER), false);
});

test('refuses what is not a capture file', () => {
  assert.throws(() => new CaptureReader().push(Buffer.alloc(24)), LabError);
});
