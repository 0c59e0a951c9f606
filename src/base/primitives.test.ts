// The protocol's primitives against published vectors.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nodePrimitives } from './primitives.ts';

const bytes = (text: string) => new TextEncoder().encode(text);
const hex = (value: Uint8Array) => Buffer.from(value).toString('hex');

test('SHA-256 of parts is that of the whole (FIPS 180-4, "abc")', () => {
  const expected = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad';
  assert.equal(hex(nodePrimitives.sha256(bytes('abc'))), expected);
  assert.equal(hex(nodePrimitives.sha256(bytes('a'), bytes(''), bytes('bc'))), expected);
});

test('HMAC-SHA-256 of parts is that of the whole (RFC 4231, case 2)', () => {
  const expected = '5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843';
  assert.equal(
    hex(nodePrimitives.hmacSha256(bytes('Jefe'), bytes('what do ya want '), bytes('for nothing?'))),
    expected,
  );
});

test('equal compares contents and lengths', () => {
  assert.equal(nodePrimitives.equal(bytes('same'), bytes('same')), true);
  assert.equal(nodePrimitives.equal(bytes('same'), bytes('sane')), false);
  assert.equal(nodePrimitives.equal(bytes('same'), bytes('same ')), false);
  assert.equal(nodePrimitives.equal(bytes(''), bytes('')), true);
});

test('no two of many random bytes are alike, whatever their length, and they are whose they are', () => {
  const seen = new Set<string>();
  for (let at = 0; at < 3000; at += 1) seen.add(hex(nodePrimitives.randomBytes(12 + (at % 3) * 10)));
  assert.equal(seen.size, 3000);
  const [one, other] = [nodePrimitives.randomBytes(16), nodePrimitives.randomBytes(16)];
  const before = hex(other);
  one.fill(0);
  nodePrimitives.randomBytes(16);
  assert.equal(hex(other), before);
  assert.equal(one.buffer.byteLength, 16);
  assert.equal(nodePrimitives.randomBytes(10_000).length, 10_000);
});

test('random bytes have their length and differ', () => {
  assert.equal(nodePrimitives.randomBytes(16).length, 16);
  assert.notDeepEqual(nodePrimitives.randomBytes(16), nodePrimitives.randomBytes(16));
});
