/** Keys of devices that are kept ready: always the key that was asked for. */

import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { test } from 'node:test';
import { DeviceKeys } from './devices.ts';

const spki = (): Buffer =>
  generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ type: 'spki', format: 'der' });
const readable = (key: ReturnType<DeviceKeys['read']>) => key?.export({ type: 'spki', format: 'der' });

test('a key that is kept ready is the same one, and another key of the same name is another', () => {
  const keys = new DeviceKeys();
  const [one, other] = [spki(), spki()];
  const first = keys.read('a', 'p256', one);
  assert.deepEqual(readable(first), one);
  assert.equal(keys.read('a', 'p256', one), first);
  assert.deepEqual(readable(keys.read('a', 'p256', other)), other);
  assert.deepEqual(readable(keys.read('b', 'p256', one)), one);
  // What the caller does with its bytes afterwards changes nothing.
  const given = Buffer.from(one);
  keys.read('c', 'p256', given);
  given.set(other);
  assert.deepEqual(readable(keys.read('c', 'p256', given)), other);
});

test('what is no key of the algorithm stays none', () => {
  const keys = new DeviceKeys();
  const key = spki();
  assert.equal(keys.read('a', 'ed25519', key), undefined);
  assert.equal(keys.read('a', 'ed25519', key), undefined);
  assert.deepEqual(readable(keys.read('a', 'p256', key)), key);
});
