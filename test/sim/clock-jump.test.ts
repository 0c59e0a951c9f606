/** The time of day is set by an hour, either way, under live sessions: nothing that is a length of time takes notice. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ManualClock } from '../../src/base/clock.ts';
import { exchange, until, World } from '../support/world.ts';

const HOUR_MS = 3_600_000;
/** Longer than both ends take to look at their sessions and at who has expired. */
const LOOKS_MS = 2500;

for (const [way, jumpMs] of [
  ['forwards', HOUR_MS],
  ['backwards', -HOUR_MS],
] as const) {
  test(`REQ-LIMIT-007: a clock that is set an hour ${way} ends no session, loses no address and stops nobody from coming back`, async () => {
    const time = new ManualClock(Date.now());
    let set = 0;
    const clock = { now: () => time.now(), bootNow: () => time.bootNow(), wallNow: () => time.wallNow() + set };
    // All of them shorter than the jump.
    const session = { idleSeconds: 1800, absoluteSeconds: 1800, graceSeconds: 600, pingSeconds: 20, deadSeconds: 60 };
    await using world = await World.open({ clock, config: { session } });
    const live = await world.connected('alice', { clock });
    const { raw, session: lost } = await (async () => {
      const connection = await world.raw();
      const token = (await world.profile('bob')).token?.reveal();
      return { raw: connection, session: await connection.login({ token, features: ['attach', 'resume'] }) };
    })();
    world.keepSessions();
    raw.socket.destroy();
    await until(async () => (await world.status()).waiting === 1, 'one to wait for its client');
    set = jumpMs;
    await sleep(LOOKS_MS);
    await exchange(world, live);
    const { state, reconnects } = live.client.snapshot;
    assert.deepEqual([state, reconnects], ['connected', 0]);
    const { sessions, waiting } = await world.status();
    assert.deepEqual([sessions, waiting], [2, 1]);
    const { done } = await (await world.raw()).resume(lost);
    await done();
    assert.equal((await world.status()).waiting, 0);
    // Time itself still counts.
    time.advance(1_801_000);
    await until(async () => (await world.status()).sessions === 0, 'the end by the limits');
  });
}
