/** The last hour in samples. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { SessionInfo } from '../../control/operations.ts';
import { History } from './history.ts';

const session = (id: string, receivedBytes: number, sentBytes: number) =>
  ({ id, receivedBytes, sentBytes }) as SessionInfo;

function rig() {
  const now = { sessions: [] as SessionInfo[], logins: { accepted: 0, refused: 0 }, at: 1_000_000 };
  const history = new History({
    sessions: async () => now.sessions,
    logins: () => now.logins,
    clock: { now: () => now.at, wallNow: () => now.at } as never,
    failed: (error) => assert.fail(String(error)),
  });
  return { now, history };
}

test('a sample holds what was carried and who came since the sample before', async () => {
  const { now, history } = rig();
  now.sessions = [session('a', 1000, 2000)];
  now.logins = { accepted: 5, refused: 1 };
  await history.sample();
  assert.deepEqual(history.report().samples, [], 'what was before the first look has no time');
  now.sessions = [session('a', 1500, 2100), session('b', 10, 20)];
  now.logins = { accepted: 6, refused: 4 };
  await history.sample();
  const [sample] = history.report().samples;
  assert.deepEqual(
    { ...sample, at: '' },
    { at: '', sessions: 2, receivedBytes: 510, sentBytes: 120, accepted: 1, refused: 3 },
  );
});

test('a session that is gone, or counts anew, takes nothing away', async () => {
  const { now, history } = rig();
  now.sessions = [session('a', 1000, 1000), session('b', 1000, 1000)];
  await history.sample();
  now.sessions = [session('a', 10, 10)];
  await history.sample();
  assert.equal(history.report().samples[0]?.receivedBytes, 0);
});

test('an hour is kept, and no more', async () => {
  const { history } = rig();
  for (let count = 0; count < 400; count++) await history.sample();
  assert.equal(history.report().samples.length, 360);
});
