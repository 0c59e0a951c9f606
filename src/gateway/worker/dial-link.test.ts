// How fast a worker asks auth for connections, whatever its clients do, and whose turn it is. Time is a number here.
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { LIMITS_OF_WORKER } from '../ipc/messages.ts';
import type { DialRequest } from '../ipc/ports.ts';
import { DialLink } from './dial-link.ts';

const BURST = 10_000;

function request(key: string): DialRequest {
  return { key, kind: 'tcp', target: { host: '192.0.2.1', port: 7 } };
}

/** An auth that refuses everything at once, or when it is told to. */
function rig(t: TestContext, { answers = true } = {}) {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  let now = 0;
  const asked: string[] = [];
  const waiting: (() => void)[] = [];
  const link = new DialLink(
    () => ({
      dial: async (_id, { key }) => {
        asked.push(key);
        if (!answers) await new Promise<void>((resolve) => void waiting.push(resolve));
        return { refused: 'connection_limit_reached' };
      },
      isAllowed: async (key) => {
        asked.push(`${key}?`);
        return false;
      },
    }),
    () => now,
  );
  return {
    link,
    asked,
    waiting,
    /** Time passes, in steps of 10 ms. */
    pass: async (ms: number): Promise<void> => {
      for (let at = 0; at < ms; at += 10) {
        now += 10;
        t.mock.timers.tick(10);
        await new Promise((resolve) => setImmediate(resolve));
      }
    },
  };
}

test('a client that wants thousands of streams does not make the worker cross what auth takes', async (t) => {
  const { link, asked, pass } = rig(t);
  for (let i = 0; i < 30_000; i += 1) void link.dialTcp(request('greedy'));
  await pass(10);
  assert.ok(asked.length >= BURST && asked.length <= BURST + 100, `${asked.length} at once`);
  await pass(1000);
  const perSecond = asked.length - BURST;
  assert.ok(perSecond > 2500 && perSecond <= 3100, `${perSecond} in the second after`);
  assert.ok(perSecond * 2 <= LIMITS_OF_WORKER.framesPerSecond + 200 && BURST * 3 <= LIMITS_OF_WORKER.burstFrames);
  await pass(6000);
  assert.equal(asked.length, 30_000);
});

test('others have their turn meanwhile, and what is asked about streams that are open counts as well', async (t) => {
  const { link, asked, pass } = rig(t);
  for (let i = 0; i < 20_000; i += 1) void link.isAllowed('greedy', 'tcp', '192.0.2.1', 7);
  await pass(10);
  const before = asked.length;
  assert.ok(before < BURST + 100, `${before} at once`);
  void link.dialUdp(request('modest'));
  await pass(20);
  const at = asked.indexOf('modest') - before;
  assert.ok(at >= 0 && at < 100, `it was the ${at}th after`);
});

test('no more than so many are on their way', async (t) => {
  const { link, asked, waiting, pass } = rig(t, { answers: false });
  for (let i = 0; i < 2000; i += 1) void link.dialTcp(request('a'));
  await pass(50);
  assert.equal(asked.length, 1024);
  for (const answer of waiting.splice(0, 100)) answer();
  await pass(10);
  assert.equal(asked.length, 1124);
});
