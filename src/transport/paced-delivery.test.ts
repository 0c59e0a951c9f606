// What has arrived goes on in time: super-packets in parts, small flows first, nothing lost in silence.

import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { concat, TcpFlag, tcpPacket, udpPacket } from '../../test/support/packets.ts';
import { DROP_REASON_NAMES, DropReason } from '../ip/drop-reason.ts';
import { FLAG_PARTIAL_CHECKSUM, GsoType } from '../ip/super-packet.ts';
import { encodeFrame, FrameType } from '../protocol/frame.ts';
import { frameCost, frameSegments } from './data-frame.ts';
import { PacedDelivery } from './paced-delivery.ts';
import { Pacer, TokenBucket } from './pacer.ts';
import { QueueBudget } from './queue-budget.ts';

const MSS = 1448;
/** 10 Mbit/s. */
const RATE = { bytesPerSecond: 1_250_000, burstBytes: 25_000 };

/** A super-packet of 45 segments, with 32 bytes of TCP header. */
function superFrame(sequence: number): Uint8Array {
  const packet = tcpPacket({
    partial: true,
    flags: TcpFlag.ack,
    sequence,
    tcpOptions: new Uint8Array(12).fill(1),
    payload: 45 * MSS,
  });
  return encodeFrame(
    FrameType.super,
    concat(Uint8Array.of(GsoType.tcp4, FLAG_PARTIAL_CHECKSUM, MSS >>> 8, MSS & 0xff), packet),
  );
}

interface Went {
  readonly at: number;
  readonly bytes: number;
  readonly type: number;
  readonly segments: number;
}

function withDelivery(
  run: (delivery: PacedDelivery, went: Went[], advance: (ms: number) => void, budget: QueueBudget) => void,
  limitBytes = 1_000_000,
): void {
  mock.timers.enable({ apis: ['setTimeout', 'setImmediate', 'Date'] });
  const went: Went[] = [];
  const now = (): number => Date.now();
  const budget = new QueueBudget();
  const delivery = new PacedDelivery({
    pacer: new Pacer([new TokenBucket(RATE, now)], 1500),
    limitBytes,
    budget,
    now,
    deliver: (bytes, at, length) =>
      went.push({
        at: now(),
        bytes: frameCost(bytes, at, length),
        type: bytes[at] ?? 0,
        segments: frameSegments(bytes, at, length),
      }),
  });
  try {
    run(delivery, went, (ms) => mock.timers.tick(ms), budget);
  } finally {
    delivery.close();
    mock.timers.reset();
  }
}

test('a super-packet longer than the burst goes in parts, in time, and every segment counts with its headers', () => {
  withDelivery((delivery, went, advance) => {
    let sequence = 0;
    const feed = (): void => {
      while (delivery.queuedBytes < 200_000) {
        const frame = superFrame(sequence);
        sequence += 45 * MSS;
        assert.equal(delivery.mayPass(frame, 0, frame.length), false, 'it is longer than the burst');
        assert.equal(delivery.push(frame, 0, frame.length), true);
      }
    };
    const start = Date.now();
    for (let ms = 0; ms < 10_000; ms++) {
      feed();
      advance(1);
    }
    for (const { bytes, segments } of went) {
      assert.ok(bytes <= 5 * 1500, `a part of ${bytes} bytes`);
      assert.ok(bytes <= segments * (MSS + 52), 'no more than its segments');
    }
    const within = (from: number, to: number) =>
      went.filter(({ at }) => at - start >= from && at - start < to).reduce((sum, { bytes }) => sum + bytes, 0);
    for (let from = 0; from + 100 <= 10_000; from += 10) {
      const bytes = within(from, from + 100);
      assert.ok(bytes <= 125_000 + 25_000, `${bytes} within 100 ms from ${from}`);
    }
    for (let from = 0; from < 10_000; from += 1000) {
      const bytes = within(from, from + 1000);
      assert.ok(Math.abs(bytes / 1_250_000 - 1) < 0.05, `${bytes} within a second from ${from}`);
    }
    assert.ok(Math.abs(within(0, 10_000) / 12_500_000 - 1) < 0.05);
  });
});

test('a flow with little to send passes what waits, and what nothing waits for passes at once', () => {
  withDelivery((delivery, went, advance) => {
    const small = encodeFrame(FrameType.packet, udpPacket({ payload: 100, sourcePort: 5000 }));
    assert.equal(delivery.mayPass(small, 0, small.length), true);
    for (let count = 0; count < 3; count++) {
      const frame = superFrame(count * 45 * MSS);
      delivery.push(frame, 0, frame.length);
    }
    advance(5);
    const before = went.length;
    const arrived = Date.now();
    assert.equal(delivery.mayPass(small, 0, small.length), false, 'its packets must not pass each other');
    delivery.push(small, 0, small.length);
    for (let ms = 0; ms < 20; ms++) advance(1);
    const found = went.slice(before).find(({ type }) => type === FrameType.packet);
    assert.ok(found !== undefined && found.at - arrived <= 10, `${(found?.at ?? 0) - arrived} ms`);
  });
});

test('more than may wait is dropped and counted; without a rate what waits goes at once', () => {
  withDelivery((delivery, went, advance, budget) => {
    for (let count = 0; count < 10; count++) {
      const frame = superFrame(count * 45 * MSS);
      delivery.push(frame, 0, frame.length);
    }
    assert.ok(delivery.queuedBytes <= 262_144);
    const drops = budget.drops[DropReason.queueFull] ?? 0;
    const waiting = delivery.queuedBytes;
    assert.ok(drops >= 45, `${drops} ${DROP_REASON_NAMES[DropReason.queueFull]}`);
    delivery.pacer = undefined;
    advance(1);
    assert.equal(delivery.queuedBytes, 0);
    assert.ok(went.reduce((sum, { bytes }) => sum + bytes, 0) >= waiting * 0.9);
  }, 262_144);
});
