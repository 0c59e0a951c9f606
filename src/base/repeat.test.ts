import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Repeat } from './repeat.ts';

const settled = () => new Promise<void>((resolve) => setImmediate(resolve));

test('it runs once in every interval, and the first time after one', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  let runs = 0;
  const repeat = new Repeat(
    100,
    async () => {
      runs += 1;
    },
    () => {},
  );
  t.mock.timers.tick(500);
  assert.equal(runs, 0, 'not before it is started');
  repeat.start();
  t.mock.timers.tick(99);
  assert.equal(runs, 0);
  t.mock.timers.tick(1);
  await settled();
  t.mock.timers.tick(100);
  assert.equal(runs, 2);
  repeat.everyMs = 1_000;
  await settled();
  t.mock.timers.tick(999);
  assert.equal(runs, 2);
  t.mock.timers.tick(1);
  assert.equal(runs, 3);
  await repeat.stop();
  t.mock.timers.tick(5_000);
  assert.equal(runs, 3);
});

test('a run that takes long is not joined by another, and is waited for by stop', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  let runs = 0;
  const gate = Promise.withResolvers<void>();
  const repeat = new Repeat(
    10,
    async () => {
      runs += 1;
      await gate.promise;
    },
    () => {},
  );
  repeat.start();
  t.mock.timers.tick(50);
  assert.equal(runs, 1);
  assert.equal(repeat.run(), repeat.run());
  let isStopped = false;
  const stopped = repeat.stop().then(() => {
    isStopped = true;
  });
  await settled();
  assert.equal(isStopped, false);
  gate.resolve();
  await stopped;
});

test('what a run throws is told, and the next run comes', async (t) => {
  t.mock.timers.enable({ apis: ['setInterval'] });
  const told: unknown[] = [];
  const repeat = new Repeat(
    10,
    async () => {
      throw new Error(`run ${told.length + 1}`);
    },
    (error) => told.push(error),
  );
  repeat.start();
  t.mock.timers.tick(10);
  await settled();
  t.mock.timers.tick(10);
  await settled();
  assert.deepEqual(told.map(String), ['Error: run 1', 'Error: run 2']);
  await repeat.stop();
});
