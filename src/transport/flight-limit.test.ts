// What may be on the way follows what the path has delivered lately, and its own round trip.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { PathFacts } from '../os/socket.ts';
import { FlightLimit } from './flight-limit.ts';

class Path {
  now = 5000;
  facts = { rttMs: 5, minRttMs: 5, sentSegments: 0, resentSegments: 0, ackedBytes: 0 };
  isKnown = true;
  reads = 0;
  readonly limit = new FlightLimit((facts: PathFacts) => {
    this.reads += 1;
    Object.assign(facts, this.facts);
    return this.isKnown;
  });

  /** Lets the path deliver `rate` bytes a millisecond for `ms`; returns what may be on the way then. */
  run(ms: number, rate: number, rttMs = this.facts.rttMs): number {
    this.facts.rttMs = rttMs;
    let bytes = this.limit.bytes(this.now);
    for (let at = 0; at < ms; at += 10) {
      this.now += 10;
      this.facts.ackedBytes += rate * 10;
      bytes = this.limit.bytes(this.now);
    }
    return bytes;
  }
}

test('a few round trips and some time at the rate of the path', () => {
  const path = new Path();
  assert.equal(path.limit.bytes(path.now), Number.POSITIVE_INFINITY, 'nothing is known yet');
  assert.equal(Math.round(path.run(500, 2500)), 2500 * (3 * 5 + 25));
  assert.ok(path.reads <= 6, `${path.reads} looks in half a second`);
});

test('a queue that the connection has itself filled does not lengthen the path; a path that has become longer does', () => {
  const path = new Path();
  path.run(500, 2500);
  assert.equal(Math.round(path.run(5000, 2500, 90)), 2500 * 40);
  assert.equal(Math.round(path.run(10_000, 2500, 90)), 2500 * (3 * 90 + 25));
});

test('buffers that are full at the first look are seen through', () => {
  const path = new Path();
  assert.equal(Math.round(path.run(500, 2500, 90)), 2500 * 40);
});

test('the rate of a pause is not the rate of the path, until it is long past', () => {
  const path = new Path();
  path.run(500, 2500);
  assert.equal(Math.round(path.run(5000, 10)), 2500 * 40);
  assert.equal(Math.round(path.run(10_000, 10)), 64 * 1024, 'never less than this');
  path.now += 60_000;
  assert.ok(path.run(300, 5000) > 5000 * 20, 'and it is found again within a moment');
});

test('now and then little is on the way, so that the path is seen behind its own queue', () => {
  const path = new Path();
  path.run(7900, 2500, 30);
  assert.equal(Math.round(path.run(200, 2500, 30)), Math.round((2500 * 40) / 8));
  assert.ok(path.run(400, 2500, 6) > 2500 * 20, 'only for a moment');
  assert.equal(Math.round(path.run(6000, 2500, 30)), 2500 * (3 * 6 + 25), 'and what was seen is remembered');
});

test('without facts there is no limit', () => {
  const path = new Path();
  path.isKnown = false;
  assert.equal(path.run(500, 2500), Number.POSITIVE_INFINITY);
});
