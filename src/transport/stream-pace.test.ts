// Flows of a stream, with a clock by hand: what goes at once, what waits and in which pieces, datagrams, another rate, the end.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Pacer, TokenBucket } from './pacer.ts';
import { PacedFlow } from './stream-pace.ts';

const MTU = 1436;
/** Two packets of it and what their headers may be. */
const QUANTUM = 3000;
const WAIT_MS = 20;

class Rig {
  now = 0;
  readonly bucket: TokenBucket;
  readonly pacer: Pacer;
  readonly flow = new PacedFlow();
  readonly pieces: number[] = [];
  received = Buffer.alloc(0);
  drained = 0;

  /** 1000 bytes in a millisecond of its clock. */
  constructor() {
    this.bucket = new TokenBucket({ bytesPerSecond: 1_000_000, burstBytes: 6000 }, () => this.now);
    this.pacer = new Pacer([this.bucket], MTU);
    assert.equal(this.pacer.quantum, QUANTUM);
    this.flow.target = {
      forward: (bytes) => {
        this.pieces.push(bytes.length);
        this.received = Buffer.concat([this.received, bytes]);
      },
      drained: () => {
        this.drained += 1;
      },
    };
    this.flow.pacer = this.pacer;
  }

  /** Lets so much time pass for the bucket, and its timer come. */
  async pass(ms: number): Promise<void> {
    this.now += ms;
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
  }
}

const counted = (length: number) => Buffer.from(Uint8Array.from({ length }, (_, at) => at % 251));

test('what is covered goes at once, the rest in time and in order, though its buffer is used again', async () => {
  const rig = new Rig();
  assert.equal(rig.flow.isPaced, true);
  const bytes = counted(10_000);
  const expected = Buffer.from(bytes);
  rig.flow.pushBorrowed(bytes);
  assert.deepEqual(rig.pieces, [QUANTUM, QUANTUM]);
  assert.equal(rig.flow.heldBytes, 4000);
  bytes.fill(0);
  await rig.pass(2);
  assert.equal(rig.pieces.length, 2, 'a batch goes whole or not at all');
  await rig.pass(1);
  assert.deepEqual(rig.pieces, [QUANTUM, QUANTUM, QUANTUM]);
  assert.deepEqual([rig.flow.isHolding, rig.drained], [true, 0]);
  await rig.pass(3);
  assert.deepEqual([rig.flow.isHolding, rig.drained], [false, 1]);
  assert.deepEqual(rig.received, expected);
  assert.equal(rig.bucket.usedBytes, 10_000);
});

test('two flows of one rate take turns', async () => {
  const [one, other] = [new Rig(), new Rig()];
  other.flow.pacer = one.pacer;
  one.flow.push(counted(30_000));
  other.flow.push(counted(30_000));
  for (let turn = 0; turn < 10; turn++) await one.pass(3);
  assert.equal(one.pieces.length + other.pieces.length, 12);
  assert.ok(other.pieces.length >= 5, `${other.pieces.length} turns`);
});

test('datagrams go whole, and a few may wait', async () => {
  const rig = new Rig();
  rig.flow.isWhole = true;
  for (let count = 0; count < 5; count++) rig.flow.push(counted(1400));
  assert.deepEqual(rig.pieces, [1400, 1400, 1400]);
  assert.equal(rig.flow.hasRoom(1400), true);
  assert.equal(rig.flow.hasRoom(100_000), false, 'more than takes 100 ms');
  await rig.pass(6);
  assert.deepEqual(rig.pieces, [1400, 1400, 1400, 1400, 1400]);
});

test('what waits goes when there is no rate any more; after the end nothing does', async () => {
  const rig = new Rig();
  rig.flow.push(counted(50_000));
  rig.flow.pacer = undefined;
  assert.equal(rig.flow.isPaced, true, 'what is held goes first');
  await rig.pass(0);
  assert.equal(rig.received.length, 50_000);
  assert.equal(rig.flow.isPaced, false);

  const closed = new Rig();
  closed.flow.push(counted(50_000));
  closed.flow.close();
  await closed.pass(100);
  assert.equal(closed.received.length, 6000);
  assert.equal(closed.bucket.isAwaited, false);
});
