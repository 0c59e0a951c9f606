// Nonces: single use, one connection, 60 seconds, bounded.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../base/clock.ts';
import { Nonces } from './nonces.ts';

test('is good once, and a wrong guess uses it up too', () => {
  const nonces = new Nonces(new ManualClock());
  const nonce = nonces.issue('a');
  assert.equal(nonce.length, 32);
  assert.equal(nonces.consume('a', nonce), true);
  assert.equal(nonces.consume('a', nonce), false);
  const next = nonces.issue('a');
  assert.notDeepEqual(next, nonce);
  assert.equal(nonces.consume('a', nonce), false);
  assert.equal(nonces.consume('a', next), false);
});

test('belongs to one connection', () => {
  const nonces = new Nonces(new ManualClock());
  const [a, b] = [nonces.issue('a'), nonces.issue('b')];
  assert.equal(nonces.consume('a', b), false);
  assert.equal(nonces.consume('b', b), true);
  assert.equal(nonces.consume('c', a), false);
});

test('a new one for a connection voids the old one', () => {
  const nonces = new Nonces(new ManualClock());
  const old = nonces.issue('a');
  nonces.issue('a');
  assert.equal(nonces.size, 1);
  assert.equal(nonces.consume('a', old), false);
});

test('ends after 60 seconds', () => {
  const clock = new ManualClock();
  const nonces = new Nonces(clock);
  const [first, second] = [nonces.issue('a'), nonces.issue('b')];
  clock.advance(59_999);
  assert.equal(nonces.consume('a', first), true);
  clock.advance(1);
  assert.equal(nonces.consume('b', second), false);
});

test('one that a person has to answer may live longer, and does not keep the others', () => {
  const clock = new ManualClock();
  const nonces = new Nonces(clock);
  const [person, machine] = [nonces.issue('a', 120_000), nonces.issue('b')];
  clock.advance(60_000);
  assert.equal(nonces.consume('b', machine), false);
  clock.advance(59_999);
  assert.equal(nonces.consume('a', person), true);
  const late = nonces.issue('a', 120_000);
  clock.advance(120_000);
  assert.equal(nonces.consume('a', late), false);
});

test('a changed copy does not change the nonce, and other lengths are refused', () => {
  const nonces = new Nonces(new ManualClock());
  const nonce = nonces.issue('a');
  const copy = Uint8Array.from(nonce);
  nonce.fill(0);
  assert.equal(nonces.consume('a', copy), true);
  nonces.issue('b');
  assert.equal(nonces.consume('b', new Uint8Array(0)), false);
});

test('a full table gives up its oldest nonce; expired ones go first', () => {
  const clock = new ManualClock();
  const nonces = new Nonces(clock, 3);
  const [a, b] = [nonces.issue('a'), nonces.issue('b')];
  nonces.issue('c');
  nonces.issue('d');
  assert.equal(nonces.size, 3);
  assert.equal(nonces.consume('a', a), false);
  assert.equal(nonces.consume('b', b), true);
  clock.advance(60_000);
  nonces.issue('e');
  assert.equal(nonces.size, 1);
});
