/** Lists of sessions: whole, fresh, and no more of them than workers may tell. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { SessionInfo } from '../../control/operations.ts';
import { SESSIONS_PER_PAGE, type WorkerPort } from '../ipc/ports.ts';
import { SessionList } from './session-list.ts';

/** A worker with so many sessions, whose answers take a turn of the event loop. */
function workerWith(count: () => number) {
  const asked: number[] = [];
  const port = {
    listSessions: async (after: number) => {
      asked.push(after);
      const rest = Math.max(0, Math.min(SESSIONS_PER_PAGE, count() - after));
      await new Promise((resolve) => setImmediate(resolve));
      return Array.from({ length: rest }, (_, index) => ({ id: String(after + index) }) as SessionInfo);
    },
  } as unknown as WorkerPort;
  return { port, asked };
}

test('a list is whole and in order, whatever its length is to that of a page, and however many were expected', async () => {
  for (const count of [0, 1, SESSIONS_PER_PAGE - 1, SESSIONS_PER_PAGE, SESSIONS_PER_PAGE + 1, 40 * SESSIONS_PER_PAGE]) {
    for (const known of [0, count, 10 * count]) {
      const { port } = workerWith(() => count);
      const ids = (
        await new SessionList(
          () => [port],
          () => known,
        ).read()
      ).map(({ id }) => id);
      assert.deepEqual(
        ids,
        Array.from({ length: count }, (_, index) => String(index)),
        `${count} of ${known}`,
      );
    }
  }
});

test('who comes while one is read gets the next, which all of them share, and which has what was new when they came', async () => {
  let count = 1;
  const { port, asked } = workerWith(() => count);
  const list = new SessionList(
    () => [port],
    () => 1,
  );
  const first = list.read();
  await new Promise((resolve) => setImmediate(resolve));
  count = 2;
  const later = Array.from({ length: 50 }, () => list.read());
  assert.equal((await first).length, 1);
  for (const all of await Promise.all(later)) assert.equal(all.length, 2);
  assert.equal(asked.length, 2);
});

test('after many long lists the next one waits, so that no worker says more than it may', async () => {
  const { port, asked } = workerWith(() => 4000);
  const list = new SessionList(
    () => [port],
    () => 4000,
  );
  const since = performance.now();
  // Half a second's worth each, of which two seconds' are free.
  for (let count = 0; count < 6; count++) assert.equal((await list.read()).length, 4000);
  assert.ok(performance.now() - since >= 450, `${asked.length} pages within ${performance.now() - since} ms`);
});

test('a worker that does not answer keeps no other from being listed', async () => {
  const { port } = workerWith(() => 3);
  const silent = { listSessions: () => Promise.reject(new Error('gone')) } as unknown as WorkerPort;
  assert.equal(
    (
      await new SessionList(
        () => [silent, port],
        () => 3,
      ).read()
    ).length,
    3,
  );
});
