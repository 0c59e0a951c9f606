// Rates: never more than burst + rate × t, whatever comes; all of it while there is something; equal turns.

import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import fc from 'fast-check';
import { PaceGate, Pacer, TokenBucket } from './pacer.ts';

/** 10 Mbit/s. */
const RATE = { bytesPerSecond: 1_250_000, burstBytes: 25_000 };
const MTU = 1500;

interface Sent {
  readonly at: number;
  readonly bytes: number;
}

/** The most that was sent within any window of so many milliseconds. */
function mostWithin(sent: readonly Sent[], windowMs: number): number {
  let most = 0;
  let sum = 0;
  let first = 0;
  for (const { at, bytes } of sent) {
    sum += bytes;
    while ((sent[first]?.at ?? at) < at - windowMs) {
      sum -= sent[first]?.bytes ?? 0;
      first += 1;
    }
    most = Math.max(most, sum);
  }
  return most;
}

/** Runs with timers that wait for nobody. */
function withClock(run: (advance: (ms: number) => void, now: () => number) => void): void {
  mock.timers.enable({ apis: ['setTimeout', 'setImmediate', 'Date'] });
  try {
    run(
      (ms) => mock.timers.tick(ms),
      () => Date.now(),
    );
  } finally {
    mock.timers.reset();
  }
}

/** Sends without end through a gate, in pieces of so many bytes. */
function greedy(pacer: Pacer, now: () => number, sent: Sent[], pieces: () => number): PaceGate {
  const pump = (): void => {
    while (gate.isOpen()) {
      let batch = 0;
      for (let piece = pieces(); batch === 0 || batch + piece <= pacer.quantum; piece = pieces()) batch += piece;
      sent.push({ at: now(), bytes: batch });
      gate.spent(batch);
    }
  };
  const gate = new PaceGate(pump);
  gate.pacer = pacer;
  setImmediate(pump);
  return gate;
}

test('whoever always has something gets the whole rate, and within any time never more than burst + rate × t', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 20_000, max: 50_000_000 }),
      fc.integer({ min: 8000, max: 1_000_000 }),
      fc.integer({ min: 1, max: 6 }),
      fc.array(fc.integer({ min: 20, max: 3000 }), { minLength: 1, maxLength: 20 }),
      (bytesPerSecond, burstBytes, holders, sizes) => {
        // Timers know milliseconds: a burst has to last for some.
        fc.pre(burstBytes >= bytesPerSecond / 100);
        withClock((advance, now) => {
          const bucket = new TokenBucket({ bytesPerSecond, burstBytes }, now);
          const sent: Sent[] = [];
          let turn = 0;
          const gates = Array.from({ length: holders }, () =>
            greedy(new Pacer([bucket], MTU), now, sent, () => sizes[turn++ % sizes.length] ?? 20),
          );
          for (let ms = 0; ms < 2000; ms++) advance(1);
          for (const windowMs of [1, 100, 1000]) {
            const allowed = burstBytes + (bytesPerSecond * windowMs) / 1000;
            const most = mostWithin(sent, windowMs);
            assert.ok(most <= allowed + 1, `${most} of ${allowed} within ${windowMs} ms`);
          }
          const total = sent.reduce((sum, { bytes }) => sum + bytes, 0);
          // What is saved up for the next turn has not gone yet.
          const least = (bytesPerSecond * 2 + burstBytes) * 0.97 - 4 * MTU;
          assert.ok(total >= least, `${total} of at least ${least}`);
          for (const gate of gates) gate.close();
        });
      },
    ),
    { numRuns: 40 },
  );
});

test('timers that are late lose nothing of the rate, as long as they are not later than the burst lasts', () => {
  withClock((advance, now) => {
    const bucket = new TokenBucket(RATE, now);
    const sent: Sent[] = [];
    const gate = greedy(new Pacer([bucket], MTU), now, sent, () => 1500);
    // Nobody looks for 15 ms at a time.
    for (let turn = 0; turn < 200; turn++) advance(15);
    const total = sent.reduce((sum, { bytes }) => sum + bytes, 0);
    const expected = (RATE.bytesPerSecond * 3000) / 1000;
    assert.ok(Math.abs(total / expected - 1) < 0.03, `${total} of ${expected}`);
    gate.close();
  });
});

test('who shares a bucket gets equal turns, also with another bucket of its own', () => {
  withClock((advance, now) => {
    const shared = new TokenBucket(RATE, now);
    const own = new TokenBucket({ bytesPerSecond: 100_000, burstBytes: 20_000 }, now);
    const sent: Sent[][] = [[], [], []];
    const pacers = [new Pacer([shared], MTU), new Pacer([shared], MTU), new Pacer([shared, own], MTU)];
    const gates = pacers.map((pacer, at) => greedy(pacer, now, sent[at] ?? [], () => 1400));
    for (let ms = 0; ms < 10_000; ms++) advance(1);
    const [a = 0, b = 0, slow = 0] = sent.map((list) => list.reduce((sum, { bytes }) => sum + bytes, 0));
    assert.ok(Math.abs(a / b - 1) < 0.02, `${a}, ${b}`);
    assert.ok(Math.abs(slow / 1_020_000 - 1) < 0.05, `${slow}`);
    assert.ok(Math.abs((a + b + slow) / 12_525_000 - 1) < 0.02, `${a + b + slow}`);
    for (const gate of gates) gate.close();
  });
});

test('what goes past an empty queue is paid for, and does not pass those who wait', () => {
  withClock((advance, now) => {
    const bucket = new TokenBucket(RATE, now);
    const pacer = new Pacer([bucket], MTU);
    assert.equal(pacer.tryPay(25_000), true);
    assert.equal(pacer.tryPay(1), false);
    advance(1);
    assert.equal(pacer.tryPay(1250), true);
    let turns = 0;
    const gate = new PaceGate(() => {
      turns += 1;
    });
    gate.pacer = pacer;
    assert.equal(gate.isOpen(), false);
    advance(1);
    assert.equal(pacer.tryPay(100), false, 'another stands in line');
    advance(3);
    assert.equal(turns, 1);
    assert.equal(pacer.tryPay(5000), true, 'it had nothing to send in its turn');
    assert.equal(bucket.usedBytes, 25_000 + 1250 + 5000);
    gate.close();
  });
});

test('turns are not wasted by those who send less than one', () => {
  withClock((advance, now) => {
    const bucket = new TokenBucket(RATE, now);
    const sent: Sent[][] = Array.from({ length: 50 }, () => []);
    // All but one have a small packet per turn.
    const gates = sent.map((list, at) => {
      const pump = (): void => {
        while (gate.isOpen()) {
          list.push({ at: now(), bytes: at === 0 ? 4500 : 200 });
          gate.spent(at === 0 ? 4500 : 200);
        }
      };
      const gate = new PaceGate(pump);
      gate.pacer = new Pacer([bucket], MTU);
      setImmediate(pump);
      return gate;
    });
    for (let ms = 0; ms < 2000; ms++) advance(1);
    const total = sent.flat().reduce((sum, { bytes }) => sum + bytes, 0);
    assert.ok(Math.abs(total / 2_525_000 - 1) < 0.02, `${total}`);
    for (const gate of gates) gate.close();
  });
});

test('another rate counts at once, also for those who wait', () => {
  withClock((advance, now) => {
    const bucket = new TokenBucket({ bytesPerSecond: 1000, burstBytes: 20_000 }, now);
    const sent: Sent[] = [];
    const gate = greedy(new Pacer([bucket], MTU), now, sent, () => 1500);
    advance(1);
    const before = sent.length;
    advance(500);
    assert.ok(sent.length <= before + 1, 'at 8 kbit/s');
    bucket.change({ bytesPerSecond: 1_000_000, burstBytes: 20_000 });
    gate.pacer = new Pacer([bucket], MTU);
    for (let ms = 0; ms < 100; ms++) advance(1);
    const total = sent.slice(before).reduce((sum, { bytes }) => sum + bytes, 0);
    assert.ok(total >= 90_000 && total <= 124_000, `${total}`);
    gate.pacer = undefined;
    assert.equal(gate.isOpen(), true);
    assert.equal(gate.batchBytes, Number.POSITIVE_INFINITY);
    gate.close();
  });
});
