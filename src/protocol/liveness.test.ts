import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FrameType } from './frame.ts';
import { Liveness, SessionLimits } from './liveness.ts';

const OPTIONS = { intervalMs: 20_000, deadMs: 60_000 };

/** Two ends joined by arrays, driven by their own timeouts until `until`; `lost` says which frames vanish. */
function pair(until: number, lost: (now: number) => boolean): { died: number | undefined; pings: number } {
  const live = new Liveness(OPTIONS, 0);
  let pings = 0;
  for (let now = live.nextTimeout(); now <= until; now = live.nextTimeout()) {
    const due = live.handleTimeout(now);
    assert.notEqual(due, undefined, 'nextTimeout names a time at which something is due');
    if (due === 'dead') return { died: now, pings };
    const payload = live.pingPayload(now);
    pings += 1;
    if (!lost(now)) {
      live.received(now + 50);
      assert.equal(live.pong(payload, now + 50), 50);
    }
  }
  return { died: undefined, pings };
}

test('REQ-LIVE-001: silence is asked after; a peer that answers lives', () => {
  const { died, pings } = pair(3_600_000, () => false);
  assert.equal(died, undefined);
  assert.equal(pings, Math.floor(3_600_000 / 20_050));
});

test('REQ-LIVE-002: a peer that answers nothing is dead after its time, and was asked more than once', () => {
  const { died, pings } = pair(3_600_000, () => true);
  assert.equal(died, 60_000);
  assert.equal(pings, 2);
});

test('REQ-LIVE-002: lost answers in between do not kill', () => {
  assert.equal(pair(3_600_000, (now) => Math.floor(now / 20_000) % 2 === 0).died, undefined);
});

test('REQ-LIVE-003: any received byte is life', () => {
  const live = new Liveness(OPTIONS, 0);
  live.pingPayload(20_000);
  live.received(59_999);
  assert.equal(live.handleTimeout(60_000), undefined);
  assert.equal(live.nextTimeout(), 79_999);
  assert.equal(live.handleTimeout(79_998), undefined);
  assert.equal(live.handleTimeout(79_999), 'ping');
});

test('REQ-LIVE-004: nobody is dead who has not been asked, however long this machine slept', () => {
  const live = new Liveness(OPTIONS, 0);
  assert.equal(live.handleTimeout(8 * 3_600_000), 'ping');
  live.pingPayload(8 * 3_600_000);
  assert.equal(live.handleTimeout(8 * 3_600_000 + 39_999), 'ping');
  assert.equal(live.handleTimeout(8 * 3_600_000 + 40_000), 'dead');
});

test('REQ-LIVE-005: only the PONG of the last PING gives a round trip, once', () => {
  const live = new Liveness(OPTIONS, 0);
  const first = live.pingPayload(10);
  const second = live.pingPayload(20);
  assert.equal(live.pong(first, 25), undefined);
  assert.equal(live.pong(new Uint8Array(3), 25), undefined);
  assert.equal(live.pong(second, 32), 12);
  assert.equal(live.pong(second, 90), undefined);
  assert.equal(live.roundTripMs, 12);
});

test('REQ-LIMIT-001: an idle session ends, and only data is use: no PING, PONG or CLOSE prolongs it', () => {
  const limits = new SessionLimits({ idleMs: 1_000, absoluteMs: 0 }, 0);
  for (const type of [FrameType.ping, FrameType.pong, FrameType.close, FrameType.switch]) limits.frame(type, 900);
  assert.equal(limits.nextTimeout(), 1_000);
  assert.equal(limits.handleTimeout(999), undefined);
  assert.equal(limits.handleTimeout(1_000), 'idle_timeout');
  for (const [index, type] of [FrameType.packet, FrameType.super, FrameType.echo].entries()) {
    const now = 900 * (index + 1);
    limits.frame(type, now);
    assert.equal(limits.handleTimeout(now + 999), undefined);
    assert.equal(limits.handleTimeout(now + 1_000), 'idle_timeout');
  }
});

test('REQ-LIMIT-002: the absolute limit holds whatever flows', () => {
  const limits = new SessionLimits({ idleMs: 1_000, absoluteMs: 5_000 }, 100);
  for (let now = 100; now < 5_100; now += 100) {
    limits.frame(FrameType.packet, now);
    assert.equal(limits.handleTimeout(now), undefined);
  }
  assert.equal(limits.nextTimeout(), 5_100);
  assert.equal(limits.handleTimeout(5_100), 'session_timeout');
});

test('REQ-LIMIT-003: 0 means no limit', () => {
  const limits = new SessionLimits({ idleMs: 0, absoluteMs: 0 }, 0);
  assert.equal(limits.handleTimeout(1e12), undefined);
  assert.equal(limits.nextTimeout(), Number.POSITIVE_INFINITY);
});
