/** The warm-up carries packets through the whole path, stops at either limit, and leaves nothing open. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { warmUp } from './warm-up.ts';

test('it stops after the rounds asked for', async () => {
  assert.equal(await warmUp({ rounds: 50, timeMs: 10_000 }), 50);
});

test('it stops when the time is over', async () => {
  const rounds = await warmUp({ rounds: 1e9, timeMs: 50 });
  assert.ok(rounds > 0 && rounds < 1e9);
});

test('it closes what it opened', async () => {
  const before = process.getActiveResourcesInfo().filter((name) => name.includes('TCP') || name.includes('TLS')).length;
  await warmUp({ rounds: 5, timeMs: 10_000 });
  const gone = Promise.withResolvers<void>();
  const look = (): void => {
    const open = process.getActiveResourcesInfo().filter((name) => name.includes('TCP') || name.includes('TLS')).length;
    if (open <= before) gone.resolve();
    else setImmediate(look);
  };
  look();
  await gone.promise;
});
