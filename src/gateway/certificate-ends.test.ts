/** Warnings before certificates end: when, how often, and of what not. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../base/clock.ts';
import { type Logger, silentLogger } from '../base/log.ts';
import { CertificateEnds, type End } from './certificate-ends.ts';

const HOUR = 3_600_000;
const DAY = 24 * HOUR;

function watch(ends: (now: number) => readonly End[]) {
  const clock = new ManualClock();
  const start = clock.wallNow();
  const warnings: string[] = [];
  const log: Logger = { ...silentLogger, warn: (message) => void warnings.push(message), child: () => log };
  const watched = new CertificateEnds({ clock, log, find: async () => ends(start) });
  const taken = async () => {
    await watched.look();
    return warnings.splice(0);
  };
  return { clock, watched, taken };
}

test('the first warning comes 30 days before the end, and another every day, also after it', async () => {
  const { clock, taken } = watch((start) => [
    { key: 'a', what: 'the certificate', at: start + 31 * DAY, remedy: 'mend' },
  ]);
  assert.deepEqual(await taken(), []);
  clock.advance(DAY);
  assert.deepEqual(await taken(), []);
  clock.advance(1);
  assert.deepEqual(await taken(), ['the certificate ends in 29 days, on 2026-02-01; mend']);
  clock.advance(23 * HOUR);
  assert.deepEqual(await taken(), []);
  clock.advance(HOUR);
  assert.deepEqual(await taken(), ['the certificate ends in 28 days, on 2026-02-01; mend']);
  clock.advance(40 * DAY);
  assert.deepEqual(await taken(), ['the certificate has ended on 2026-02-01; mend']);
});

test('each thing is said once however often it is found, the soonest first, and one that is mended no more', async () => {
  let isMended = false;
  const { watched, taken } = watch((start) => [
    { key: 'b', what: 'b', at: start + 3 * DAY },
    ...(isMended ? [] : [{ key: 'a', what: 'a', at: start + DAY }]),
    { key: 'b', what: 'b again', at: start + 3 * DAY },
    { key: 'c', what: 'c', at: start + 300 * DAY },
  ]);
  assert.deepEqual(await taken(), ['a ends in 1 days, on 2026-01-02', 'b ends in 3 days, on 2026-01-04']);
  isMended = true;
  assert.deepEqual(
    (await watched.soon()).map(({ key }) => key),
    ['b'],
  );
});

test('a source that fails is told and ends nothing', async () => {
  const { watched } = watch(() => {
    throw new Error('gone');
  });
  await watched.look();
});
