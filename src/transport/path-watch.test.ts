import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { PathFacts } from '../os/socket.ts';
import { PathWatch, type WatchedPath } from './path-watch.ts';

const MIB = 1024 * 1024;
const REVIEW_BYTES = 4 * MIB;
const SEGMENT_BYTES = 1448;

/** A connection whose path a test decides on. */
class FakePath implements WatchedPath {
  congestion = 'bbr';
  isTelling = true;
  refuses: string | undefined;
  rttMs = 0.4;
  minRttMs = 0.05;
  sentSegments = 0;
  resentSegments = 0;
  readonly changes: string[] = [];

  read(facts: PathFacts): boolean {
    const { rttMs, minRttMs, sentSegments, resentSegments } = this;
    Object.assign(facts, { rttMs, minRttMs, sentSegments, resentSegments });
    return this.isTelling;
  }

  use(congestion: string): boolean {
    if (congestion === this.refuses) return false;
    this.changes.push(congestion);
    this.congestion = congestion;
    return true;
  }
}

interface Flow {
  readonly path: FakePath;
  readonly watch: PathWatch;
  /** Sends 4 MiB in `ms`, of which this part is sent twice. */
  send(ms: number, resent?: number): void;
  /** Time goes on; with `mbps` sent meanwhile, in steps of 50 ms. */
  flow(ms: number, mbps: number, resent?: number): void;
}

function openFlow(t: TestContext, path = new FakePath()): Flow {
  t.mock.timers.enable({ apis: ['setInterval'] });
  let now = 1000;
  const watch = new PathWatch(path, () => now);
  t.after(() => watch.close());
  const write = (bytes: number, resent: number): void => {
    const segments = Math.round(bytes / SEGMENT_BYTES);
    path.sentSegments += segments;
    path.resentSegments += Math.round(segments * resent);
    watch.wrote(bytes);
  };
  const pass = (ms: number): void => {
    now += ms;
    t.mock.timers.tick(ms);
  };
  return {
    path,
    watch,
    send: (ms, resent = 0) => {
      pass(ms);
      write(REVIEW_BYTES, resent);
    },
    flow: (ms, mbps, resent = 0) => {
      for (let passed = 0; passed < ms; passed += 50) {
        write((mbps * 1e6 * 0.05) / 8, resent);
        pass(50);
      }
    },
  };
}

/** Long enough for whatever is to be decided. */
const sendFast = ({ send }: Flow, times = 8): void => {
  for (let i = 0; i < times; i++) send(16);
};

test('a near, clean and fast path gets Reno after a few reviews, not at once', (t) => {
  const flow = openFlow(t);
  sendFast(flow, 2);
  assert.deepEqual(flow.path.changes, []);
  flow.send(16);
  assert.deepEqual(flow.path.changes, ['reno']);
  assert.ok(flow.watch.isNear);
});

test('a slow flow stays with BBR, however near the peer', (t) => {
  const flow = openFlow(t);
  for (let i = 0; i < 50; i++) flow.send(200);
  assert.deepEqual(flow.path.changes, []);
});

for (const [what, change] of [
  ['a distant peer', { minRttMs: 1.2 }],
  ['queues on the way', { rttMs: 6 }],
  ['a kernel that tells nothing', { isTelling: false }],
] as const) {
  test(`${what}: the flow stays with BBR, however fast`, (t) => {
    const flow = openFlow(t, Object.assign(new FakePath(), change));
    sendFast(flow, 50);
    assert.deepEqual(flow.path.changes, []);
  });
}

test('loss: the flow stays with BBR, however fast', (t) => {
  const flow = openFlow(t);
  for (let i = 0; i < 50; i++) flow.send(16, 0.01);
  assert.deepEqual(flow.path.changes, []);
});

for (const [what, worsen] of [
  ['when segments get lost', ({ flow }: Flow) => flow(400, 2000, 0.01)],
  ['when the flow ends', ({ flow }: Flow) => flow(400, 0)],
  ['when the flow gets slow', ({ flow }: Flow) => flow(400, 100)],
  [
    'when queues build up',
    ({ flow, path }: Flow) => {
      path.rttMs = 20;
      flow(400, 2000);
    },
  ],
] as const) {
  test(`the path is far again ${what}`, (t) => {
    const flow = openFlow(t);
    sendFast(flow);
    worsen(flow);
    assert.deepEqual(flow.path.changes, ['reno', 'bbr']);
    assert.ok(!flow.watch.isNear);
  });
}

test('a moment of loss changes nothing', (t) => {
  const flow = openFlow(t);
  sendFast(flow);
  flow.flow(100, 2000, 0.01);
  flow.flow(2000, 2000);
  assert.deepEqual(flow.path.changes, ['reno']);
});

test('each turn back makes the next change to Reno take longer', (t) => {
  const flow = openFlow(t);
  const reviewsToNear = (): number => {
    for (let reviews = 1; reviews <= 100; reviews++) {
      flow.send(16);
      if (flow.watch.isNear) return reviews;
    }
    throw new Error('never near');
  };
  const counts = [reviewsToNear()];
  for (let turn = 0; turn < 3; turn++) {
    flow.flow(400, 2000, 0.01);
    assert.ok(!flow.watch.isNear);
    counts.push(reviewsToNear());
  }
  // The first review after a turn still sees the loss before it.
  assert.equal(counts[0], 3);
  for (const [index, count] of counts.entries()) {
    if (index > 0) assert.ok(count >= 2 * (counts[index - 1] ?? 0) - 1, counts.join(' '));
  }
});

test('a kernel without BBR, or one that does not allow the change, is left as it is', (t) => {
  const cubic = openFlow(t, Object.assign(new FakePath(), { congestion: 'cubic' }));
  sendFast(cubic, 50);
  assert.deepEqual(cubic.path.changes, []);
  t.mock.timers.reset();
  const forbidden = openFlow(t, Object.assign(new FakePath(), { refuses: 'reno' }));
  sendFast(forbidden, 50);
  assert.equal(forbidden.path.congestion, 'bbr');
  assert.ok(!forbidden.watch.isNear);
});

test('where the way back is not allowed, the path is left alone from then on', (t) => {
  const flow = openFlow(t, Object.assign(new FakePath(), { refuses: 'bbr' }));
  sendFast(flow);
  flow.flow(400, 2000, 0.01);
  sendFast(flow, 100);
  assert.deepEqual(flow.path.changes, ['reno']);
});

test('a closed watch changes nothing any more', (t) => {
  const flow = openFlow(t);
  sendFast(flow);
  flow.watch.close();
  flow.watch.close();
  flow.flow(1000, 2000, 0.5);
  sendFast(flow, 50);
  assert.deepEqual(flow.path.changes, ['reno']);
});
