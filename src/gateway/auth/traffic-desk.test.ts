// Who is told what of rates and quotas, with a clock by hand: shares, days and months, restarts, changes of the policy.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../../test/support/store.ts';
import { ManualClock } from '../../base/clock.ts';
import { silentLogger } from '../../base/log.ts';
import type { GroupLimit, Settings } from '../../policy/settings.ts';
import type { Store } from '../../store/store.ts';
import { UsageRecord } from '../../store/usage.ts';
import type { Shapes, UserShape, WorkerPort } from '../ipc/ports.ts';
import type { LiveSession } from './live-session.ts';
import type { ProxyCarrier } from './proxy-grants.ts';
import { TrafficDesk } from './traffic-desk.ts';

const GIB = 1024 ** 3;
/** A second before midnight, at the end of a month. */
const EVENING = Date.UTC(2026, 10, 30, 23, 59, 50);

class Rig {
  readonly clock: ManualClock;
  readonly desk: TrafficDesk;
  readonly told: { worker: number; shapes: Shapes }[] = [];
  readonly noticed: string[][] = [];
  refusals = 0;
  settings: Record<string, Settings> = {};
  groups: Record<string, string[]> = {};
  limits = new Map<string, GroupLimit>();
  sessions: LiveSession[] = [];
  streams: ProxyCarrier[] = [];

  constructor(store: Store, at = EVENING) {
    this.clock = new ManualClock(at);
    this.desk = new TrafficDesk({
      rulesOf: ({ user }) => this.#rulesOf(user),
      rulesOfStreams: ({ user }) => this.#rulesOf(user),
      streams: () => this.streams,
      groupLimits: () => this.limits,
      classes: () => [],
      sessions: () => this.sessions,
      noticesChanged: (sessions) => this.noticed.push(sessions.map(({ user }) => user)),
      refused: () => {
        this.refusals += 1;
      },
      usage: new UsageRecord(store),
      mtu: 1500,
      clock: this.clock,
      log: silentLogger,
    });
    for (const worker of [0, 1, 2]) {
      const shape = (shapes: Shapes) => void this.told.push({ worker, shapes });
      this.desk.connect(worker, { shape, classify: () => {} } as unknown as WorkerPort);
    }
  }

  open(user: string, worker: number): void {
    const session = { user, worker } as LiveSession;
    this.sessions.push(session);
    this.desk.prepare(session);
  }

  #rulesOf(user: string) {
    return { settings: this.settings[user] ?? {}, groups: this.groups[user] ?? [] };
  }

  openStreams(user: string, worker: number): void {
    const carrier = { user, worker, holder: () => ({ user, groups: [], hasCertificate: false }) };
    this.streams.push(carrier);
    this.desk.prepareStreams(carrier);
  }

  /** The last word of a user to a worker. */
  last(user: string, worker: number): UserShape | undefined {
    return this.told
      .filter((one) => one.worker === worker)
      .flatMap(({ shapes }) => shapes.users)
      .findLast((shape) => shape.user === user);
  }

  report(worker: number, user: string, downBytes: number, downWaits = false): void {
    this.desk.report(worker, [{ kind: 'user', name: user, downBytes, upBytes: 0, downWaits, upWaits: false }], true);
  }

  async second(): Promise<void> {
    this.clock.advance(1000);
    await this.desk.tick();
  }
}

test('a worker hears of a user before its session, with the whole rate; of others nothing', async () => {
  await using store = await openTestStore();
  const rig = new Rig(store);
  rig.settings = { ada: { downMbit: 10, upMbit: 2, burstKiB: 64 } };
  rig.open('bob', 0);
  assert.deepEqual(rig.told, []);
  rig.open('ada', 1);
  assert.deepEqual(rig.told, [
    {
      worker: 1,
      shapes: {
        groups: [],
        users: [
          {
            user: 'ada',
            down: { bytesPerSecond: 1_250_000, burstBytes: 65_536 },
            up: { bytesPerSecond: 250_000, burstBytes: 65_536 },
            groups: [],
            isRefused: false,
          },
        ],
      },
    },
  ]);
  await rig.second();
  rig.open('ada', 1);
  assert.equal(rig.told.length, 1, 'what is known is not said again');
});

test('two workers share a rate by who waits, and never have more than the rate together', async () => {
  await using store = await openTestStore();
  const rig = new Rig(store);
  rig.settings = { ada: { downMbit: 10 } };
  rig.open('ada', 0);
  rig.open('ada', 1);
  const parts = () => [0, 1].map((worker) => rig.last('ada', worker)?.down?.bytesPerSecond ?? 0);
  assert.deepEqual(parts(), [625_000, 625_000]);
  for (let turn = 0; turn < 3; turn++) {
    rig.clock.advance(1000);
    rig.report(0, 'ada', parts()[0] ?? 0, true);
    rig.report(1, 'ada', 50_000);
    await rig.desk.tick();
    const [first = 0, second = 0] = parts();
    assert.ok(first + second <= 1_250_001, `${first} + ${second}`);
  }
  assert.ok((parts()[0] ?? 0) > 1_100_000, parts().join());
  // It has stopped, and the other has begun.
  rig.clock.advance(1000);
  rig.desk.report(0, [], true);
  rig.report(1, 'ada', 62_500, true);
  await rig.desk.tick();
  assert.ok((parts()[1] ?? 0) > 1_100_000, parts().join());
  rig.sessions = rig.sessions.filter(({ worker }) => worker === 1);
  await rig.second();
  assert.equal(parts()[1], 1_250_000);
});

test('whoever has streams only is told of, shares with sessions elsewhere, and is counted', async () => {
  await using store = await openTestStore();
  const rig = new Rig(store);
  rig.settings = { ada: { downMbit: 10, quotaDayGiB: 1, overQuota: 'refuse' } };
  rig.openStreams('ada', 2);
  assert.equal(rig.last('ada', 2)?.down?.bytesPerSecond, 1_250_000);
  rig.open('ada', 0);
  assert.deepEqual(
    [0, 2].map((worker) => rig.last('ada', worker)?.down?.bytesPerSecond),
    [625_000, 625_000],
  );
  // Most of a second's bytes came by streams that ended within it.
  rig.clock.advance(1000);
  rig.report(2, 'ada', 10_000, true);
  rig.desk.report(
    2,
    [{ kind: 'user', name: 'ada', downBytes: 600_000, upBytes: 0, downWaits: false, upWaits: false }],
    false,
  );
  await rig.desk.tick();
  assert.ok((rig.last('ada', 2)?.down?.bytesPerSecond ?? 0) > 1_100_000);
  rig.sessions = [];
  await rig.second();
  assert.equal(rig.last('ada', 2)?.down?.bytesPerSecond, 1_250_000);
  rig.report(2, 'ada', GIB);
  await rig.second();
  assert.equal(rig.desk.isRefused('ada'), true);
  assert.equal(rig.desk.usageOf('ada').day, GIB + 610_000);
});

test('a group shares its rate, and a user has both', async () => {
  await using store = await openTestStore();
  const rig = new Rig(store);
  rig.limits = new Map([['staff', { downMbit: 100 }]]);
  rig.groups = { ada: ['staff'], bob: ['staff'] };
  rig.settings = { ada: { downMbit: 10 } };
  rig.open('ada', 0);
  rig.open('bob', 0);
  assert.deepEqual(
    rig.told.flatMap(({ shapes }) => shapes.groups),
    [{ group: 'staff', down: { bytesPerSecond: 12_500_000, burstBytes: 250_000 } }],
  );
  assert.deepEqual(rig.last('bob', 0)?.groups, ['staff']);
  assert.equal(rig.last('ada', 0)?.down?.bytesPerSecond, 1_250_000);
});

test('a user is warned, then slowed down, and begins anew at midnight; what was carried is there after a restart', async () => {
  await using store = await openTestStore();
  const rig = new Rig(store);
  rig.settings = { ada: { quotaDayGiB: 1, slowMbit: 0.5, downMbit: 10 } };
  await rig.desk.open();
  rig.open('ada', 0);
  rig.report(0, 'ada', 0.79 * GIB);
  await rig.second();
  assert.deepEqual(rig.desk.noticesOf('ada'), []);
  rig.report(0, 'ada', 0.02 * GIB);
  await rig.second();
  assert.deepEqual(rig.desk.noticesOf('ada'), [
    '80 % of the quota of 1 GiB of this day is used; it begins anew at 2026-12-01T00:00:00Z',
  ]);
  assert.equal(rig.last('ada', 0)?.down?.bytesPerSecond, 1_250_000);
  rig.report(0, 'ada', 0.2 * GIB);
  await rig.second();
  assert.deepEqual(rig.desk.noticesOf('ada'), [
    'the quota of 1 GiB of this day is used up: the connection is slowed down to 0.5 Mbit/s until 2026-12-01T00:00:00Z',
  ]);
  assert.equal(rig.last('ada', 0)?.down?.bytesPerSecond, 62_500);
  assert.equal(rig.last('ada', 0)?.up?.bytesPerSecond, 62_500);
  assert.deepEqual(rig.noticed, [['ada'], ['ada']]);
  await rig.desk.stop();

  const later = new Rig(store, EVENING + 5000);
  later.settings = rig.settings;
  await later.desk.open();
  later.open('ada', 1);
  assert.equal(later.last('ada', 1)?.down?.bytesPerSecond, 62_500, 'a restart gives nothing back');
  for (let turn = 0; turn < 6; turn++) await later.second();
  assert.deepEqual(later.desk.noticesOf('ada'), []);
  assert.equal(later.last('ada', 1)?.down?.bytesPerSecond, 1_250_000);
  assert.equal(later.last('ada', 1)?.up, undefined);
  assert.deepEqual(later.noticed, [['ada']]);
});

test('over a month nothing is carried until the next, if the policy says so; another policy counts at once', async () => {
  await using store = await openTestStore();
  const rig = new Rig(store, EVENING - 86_400_000);
  rig.settings = { ada: { quotaMonthGiB: 2, overQuota: 'refuse' } };
  await rig.desk.open();
  rig.open('ada', 0);
  rig.report(0, 'ada', 1.5 * GIB);
  rig.report(0, 'ada', 0.6 * GIB);
  rig.report(0, 'bob', 5 * GIB);
  await rig.second();
  assert.equal(rig.last('ada', 0)?.isRefused, true);
  assert.equal(rig.desk.isRefused('ada'), true);
  assert.equal(rig.desk.isRefused('bob'), false);
  assert.equal(rig.refusals, 1);
  for (let turn = 0; turn < 12; turn++) await rig.second();
  assert.equal(rig.desk.isRefused('ada'), true, 'another day of the same month');
  assert.equal(rig.desk.usageOf('ada').day, 0);
  rig.settings = { ada: { quotaMonthGiB: 4, overQuota: 'refuse' } };
  rig.desk.refresh();
  assert.equal(rig.last('ada', 0)?.isRefused, false);
  rig.settings = { ada: { quotaMonthGiB: 2, overQuota: 'refuse' } };
  rig.desk.refresh();
  assert.equal(rig.last('ada', 0)?.isRefused, true);
  rig.clock.advance(86_400_000);
  await rig.second();
  assert.equal(rig.desk.isRefused('ada'), false, 'another month');
  assert.equal(rig.desk.usageOf('ada').month, 0);
  const rows = await store.db.selectFrom('usage').selectAll().orderBy('period').execute();
  assert.deepEqual(
    rows.map(({ account, period, bytes }) => [account, period, Number(bytes)]),
    [
      ['ada', '2026-11', Math.trunc(1.5 * GIB) + Math.trunc(0.6 * GIB)],
      ['ada', '2026-11-29', Math.trunc(1.5 * GIB) + Math.trunc(0.6 * GIB)],
    ],
  );
});
