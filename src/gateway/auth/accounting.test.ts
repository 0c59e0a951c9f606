/** What outside sources are told of sessions, in which order, and that they delay nobody. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManualClock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import { silentLogger } from '../../base/log.ts';
import type { SessionReport } from '../../identity/backends/backend.ts';
import { type AccountedSession, Accounting } from './accounting.ts';

function open(reports: 'every ten minutes' | 'never' = 'every ten minutes') {
  const clock = new ManualClock();
  const told: SessionReport[] = [];
  let answer: () => Promise<void> = async () => {};
  const accountant = {
    interimSeconds: reports === 'never' ? undefined : 600,
    report: async (report: SessionReport) => {
      told.push(report);
      await answer();
    },
  };
  const accounting = new Accounting({
    accountants: new Map([['radius', accountant]]),
    sourceOf: async (user) => (user === 'local' ? undefined : user === 'dora' ? 'office' : 'radius'),
    clock,
    log: silentLogger,
  });
  return {
    clock,
    told,
    accounting,
    answers: (next: () => Promise<void>) => {
      answer = next;
    },
  };
}

function session(user = 'alice'): AccountedSession & { counters: { receivedBytes: number } } {
  const counters = { receivedBytes: 0, receivedPackets: 0, sentBytes: 0, sentPackets: 0 };
  return { id: `${user}-1`, user, addresses: ['10.88.0.2'], remote: '192.0.2.7:5555', counters };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));

test('start, course and end are told in order, with what was carried by then', async () => {
  const { clock, told, accounting } = open();
  const alice = session();
  accounting.opened(alice);
  await settled();
  alice.counters.receivedBytes = 7;
  clock.advance(599_000);
  accounting.tick();
  clock.advance(1000);
  accounting.tick();
  await settled();
  alice.counters.receivedBytes = 9;
  clock.advance(1000);
  accounting.tick();
  accounting.ended(alice, 'idle_timeout');
  await accounting.stop();
  assert.deepEqual(
    told.map(({ status, seconds, counters, reason }) => [status, seconds, counters.receivedBytes, reason]),
    [
      ['start', 0, 0, undefined],
      ['interim', 600, 7, undefined],
      ['stop', 601, 9, 'idle_timeout'],
    ],
  );
});

test('sessions of others, and of a source that wants no reports, are not told', async () => {
  const { clock, told, accounting } = open();
  for (const user of ['local', 'dora']) accounting.opened(session(user));
  await settled();
  clock.advance(601_000);
  accounting.tick();
  for (const user of ['local', 'dora']) accounting.ended(session(user), 'admin');
  await accounting.stop();
  assert.deepEqual(told, []);

  const silent = open('never');
  silent.accounting.opened(session());
  silent.accounting.ended(session(), 'admin');
  await silent.accounting.stop();
  assert.deepEqual(silent.told, []);
});

test('a source that does not answer is not told of more, and the end comes after what was under way', async () => {
  const { clock, told, accounting, answers } = open();
  const { promise, resolve } = Promise.withResolvers<void>();
  accounting.opened(session());
  await settled();
  answers(() => promise);
  for (let round = 0; round < 3; round++) {
    clock.advance(600_000);
    accounting.tick();
    await settled();
  }
  accounting.ended(session(), 'admin');
  await settled();
  assert.deepEqual(
    told.map(({ status }) => status),
    ['start', 'interim'],
  );
  resolve();
  await accounting.stop();
  assert.equal(told.at(-1)?.status, 'stop');
});

test('a report that is lost is no fault of the session', async () => {
  const { told, accounting, answers } = open();
  answers(async () => {
    throw new VpnError('ERR_BACKEND', 'no answer');
  });
  accounting.opened(session());
  accounting.ended(session(), 'shutdown');
  await accounting.stop();
  assert.deepEqual(
    told.map(({ status }) => status),
    ['start', 'stop'],
  );
});
