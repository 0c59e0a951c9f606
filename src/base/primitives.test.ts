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

test('random bytes have their length and differ', () => {
  assert.equal(nodePrimitives.randomBytes(16).length, 16);
  assert.notDeepEqual(nodePrimitives.randomBytes(16), nodePrimitives.randomBytes(16));
});
