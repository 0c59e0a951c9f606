/** Processes that give no sign of life: they are lost after three misses, and never because everything stood still. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../base/clock.ts';
import { LifeWatch } from './life-watch.ts';

const LOOK_MS = 3000;

/** A process that answers or does not, and what was said of it. */
class Process {
  isWell = true;
  asked = 0;
  readonly lost: string[] = [];

  watchedBy(watch: LifeWatch): () => void {
    return watch.add({
      ask: () => {
        this.asked += 1;
        return this.isWell ? Promise.resolve() : new Promise(() => {});
      },
      lost: (why) => void this.lost.push(why),
    });
  }
}

async function look(clock: ManualClock, watch: LifeWatch, times = 1, everyMs = LOOK_MS): Promise<void> {
  for (let time = 0; time < times; time++) {
    clock.advance(everyMs);
    watch.look();
    await Promise.resolve();
    await Promise.resolve();
  }
}

test('a process that stops answering is lost after three misses, once, and the others are not', async () => {
  const clock = new ManualClock();
  const watch = new LifeWatch(clock);
  const [one, other] = [new Process(), new Process()];
  one.watchedBy(watch);
  other.watchedBy(watch);
  await look(clock, watch, 5);
  one.isWell = false;
  await look(clock, watch, 3);
  assert.deepEqual(one.lost, []);
  const { asked } = one;
  await look(clock, watch);
  assert.deepEqual(one.lost, ['it has given no sign of life for 9 s']);
  await look(clock, watch, 10);
  assert.equal(one.lost.length, 1);
  assert.equal(one.asked, asked, 'one question at a time');
  assert.deepEqual(other.lost, []);
});

test('a process that answers late, but in time, is not lost', async () => {
  const clock = new ManualClock();
  const watch = new LifeWatch(clock);
  const lost: string[] = [];
  let answer = (): void => {};
  watch.add({ ask: () => new Promise<void>((resolve) => (answer = resolve)), lost: (why) => void lost.push(why) });
  for (let time = 0; time < 10; time++) {
    await look(clock, watch, 2);
    answer();
    await look(clock, watch, 0);
    await Promise.resolve();
  }
  assert.deepEqual(lost, []);
});

for (const [what, pass] of [
  ['the machine slept', (clock: ManualClock) => clock.sleep(60_000)],
  ['this process stood still with them', (clock: ManualClock) => clock.advance(60_000)],
] as const) {
  test(`nobody is blamed when ${what}`, async () => {
    const clock = new ManualClock();
    const watch = new LifeWatch(clock);
    const process = new Process();
    process.watchedBy(watch);
    await look(clock, watch, 2);
    process.isWell = false;
    await look(clock, watch, 3);
    pass(clock);
    await look(clock, watch, 3);
    assert.deepEqual(process.lost, []);
    await look(clock, watch);
    assert.equal(process.lost.length, 1, 'one that hangs is found out afterwards');
  });
}

test('a process that loads its code has a minute for its first sign', async () => {
  const clock = new ManualClock();
  const watch = new LifeWatch(clock);
  const process = new Process();
  process.isWell = false;
  process.watchedBy(watch);
  await look(clock, watch, 19);
  assert.deepEqual(process.lost, []);
  await look(clock, watch);
  assert.deepEqual(process.lost, ['it has given no sign of life for 60 s']);
});

test('one that has ended is asked no more', async () => {
  const clock = new ManualClock();
  const watch = new LifeWatch(clock);
  const process = new Process();
  const forget = process.watchedBy(watch);
  await look(clock, watch);
  forget();
  process.isWell = false;
  await look(clock, watch, 10);
  assert.deepEqual([process.asked, process.lost], [1, []]);
});
