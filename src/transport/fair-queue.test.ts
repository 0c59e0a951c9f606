// The queue: who goes first, who is told, who loses packets, and that nothing else is lost.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { concat, TcpFlag, tcpPacket, udpPacket } from '../../test/support/packets.ts';
import { isVpnError } from '../base/errors.ts';
import { DROP_REASON_NAMES, DropReason } from '../ip/drop-reason.ts';
import { GsoType, NO_OFFLOAD, rebuildOffload } from '../ip/super-packet.ts';
import { encodeFrame, FrameType } from '../protocol/frame.ts';
import { frameLength, frameSegments } from './data-frame.ts';
import { FairQueue, type FairQueueOptions } from './fair-queue.ts';
import { QueueBudget } from './queue-budget.ts';

const MIB = 1024 * 1024;
const MSS = 1448;

/** A queue with a clock by hand. */
class Rig {
  now = 1000;
  roundTripMs = 0;
  readonly budget: QueueBudget;
  readonly queue: FairQueue;

  constructor(options: Partial<FairQueueOptions> = {}) {
    this.budget = options.budget ?? new QueueBudget();
    this.queue = new FairQueue({
      limitBytes: MIB,
      now: () => this.now,
      roundTripMs: () => this.roundTripMs,
      key: [1, 2],
      ...options,
      budget: this.budget,
    });
  }

  push(frame: Uint8Array): boolean {
    const bytes = concat(new Uint8Array(3), frame, new Uint8Array(5));
    const taken = this.queue.push(bytes, 3, 3 + frame.length);
    bytes.fill(0xee);
    return taken;
  }

  /** The frames of the next batch, copied. */
  take(): Frame[] {
    const batch = this.queue.take();
    const frames: Frame[] = [];
    for (let at = 0; batch !== undefined && at < batch.length; ) {
      const length = frameLength(batch, at);
      assert.ok(at + length <= batch.length, 'a batch is whole frames');
      frames.push(new Frame(Buffer.from(batch.subarray(at, at + length))));
      at += length;
    }
    return frames;
  }

  takeAll(): Frame[] {
    const frames: Frame[] = [];
    while (this.queue.queuedBytes > 0) frames.push(...this.take());
    return frames;
  }

  /** Empties the queue over a connection of so many bytes per millisecond, for so long. */
  drain(rate: number, forMs: number, refill: () => void = () => {}): Frame[] {
    const frames: Frame[] = [];
    const until = this.now + forMs;
    refill();
    while (this.now < until) {
      const batch = this.take();
      if (batch.length === 0) break;
      frames.push(...batch);
      this.now += batch.reduce((sum, frame) => sum + frame.bytes.length, 0) / rate;
      refill();
    }
    return frames;
  }

  dropped(): Record<string, number> {
    const { drops } = this.budget;
    return Object.fromEntries(
      DROP_REASON_NAMES.map((name, at) => [name, drops[at] ?? 0] as const).filter(([, n]) => n > 0),
    );
  }
}

class Frame {
  readonly bytes: Buffer;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  get packet(): Buffer {
    return this.bytes.subarray(this.bytes[0] === FrameType.super ? 8 : 4);
  }

  get port(): number {
    return this.packet.readUInt16BE(20);
  }

  get sequence(): number {
    return this.packet.readUInt32BE(24);
  }

  get payload(): number {
    return this.packet.length - 40;
  }

  get segments(): number {
    return frameSegments(this.bytes, 0, this.bytes.length);
  }

  /** The receiver's own check. */
  check(): void {
    if (this.bytes[0] !== FrameType.super) return;
    const offload = { ...NO_OFFLOAD };
    const [type = 0, flags = 0] = this.bytes.subarray(4);
    const size = this.bytes.readUInt16BE(6);
    const limits = { mtu: 1500, uso: true };
    assert.equal(
      rebuildOffload(this.packet, 0, this.packet.length, type, flags, size, limits, offload),
      DropReason.none,
    );
  }
}

/** A TCP packet of the flow `port`, a super-packet where its payload takes more than one segment. */
function tcpFrame(
  port: number,
  sequence: number,
  payload: number,
  trafficClass = 0,
  flags: number = TcpFlag.ack,
): Uint8Array {
  const isSuper = payload > MSS;
  const packet = tcpPacket({ sourcePort: port, sequence, payload, trafficClass, flags, partial: isSuper });
  if (!isSuper) return encodeFrame(FrameType.packet, packet);
  return encodeFrame(FrameType.super, concat(Uint8Array.of(GsoType.tcp4, 1, MSS >>> 8, MSS & 0xff), packet));
}

const anyStep = fc.oneof(
  {
    weight: 12,
    arbitrary: fc.record({
      kind: fc.constant('push' as const),
      port: fc.integer({ min: 1, max: 12 }),
      payload: fc.oneof(fc.integer({ min: 1, max: MSS }), fc.integer({ min: 1, max: 40_000 })),
      ecn: fc.constantFrom(0, 0, 0, 2),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('echo' as const), length: fc.nat(3000) }) },
  { weight: 10, arbitrary: fc.record({ kind: fc.constant('take' as const), ms: fc.constantFrom(0, 0.1, 3, 20, 500) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('release' as const) }) },
);

test('REQ-CHANNEL-003: whatever comes and goes: in order within a flow, nothing lost but what is counted, no bound exceeded', () => {
  const seen = { parts: 0, trimmed: 0, full: 0, marked: 0 };
  fc.assert(
    fc.property(
      fc.constantFrom(64 * 1024, 100_000, 512 * 1024),
      fc.array(anyStep, { minLength: 20, maxLength: 500, size: 'max' }),
      (limitBytes, steps) => {
        const rig = new Rig({ limitBytes });
        const { queue } = rig;
        const sent = new Map<number, number>();
        let [pushed, took, refused, echoes] = [0, 0, 0, 0];
        const gone = new Map<number, number>();
        const receive = (frames: readonly Frame[]): void => {
          for (const frame of frames) {
            if (frame.bytes[0] === FrameType.echo) {
              echoes -= 1;
              continue;
            }
            frame.check();
            took += frame.segments;
            const before = gone.get(frame.port) ?? 0;
            assert.ok(frame.sequence >= before, `flow ${frame.port}: ${frame.sequence} after ${before}`);
            gone.set(frame.port, frame.sequence + frame.payload);
          }
        };
        for (const action of steps) {
          if (action.kind === 'push') {
            const sequence = sent.get(action.port) ?? 0;
            const frame = tcpFrame(action.port, sequence, action.payload, action.ecn);
            sent.set(action.port, sequence + action.payload);
            const segments = Math.ceil(action.payload / MSS);
            if (rig.push(frame)) pushed += segments;
            else refused += 1;
          } else if (action.kind === 'echo') {
            if (rig.push(encodeFrame(FrameType.echo, new Uint8Array(action.length)))) echoes += 1;
          } else if (action.kind === 'take') {
            rig.now += action.ms;
            receive(rig.take());
          } else queue.releaseIfIdle();
          assert.ok(queue.queuedBytes <= queue.heldBytes && queue.heldBytes <= limitBytes);
          assert.equal(rig.budget.heldBytes, queue.heldBytes);
        }
        receive(rig.takeAll());
        const lost = rig.budget.drops.reduce((sum, count) => sum + count, 0);
        assert.equal(took + lost, pushed);
        assert.equal(echoes, 0, 'what carries no packet is never dropped');
        if (refused > 0) assert.ok(limitBytes < MIB);
        seen.parts += rig.budget.counters.parts;
        seen.trimmed += rig.budget.drops[DropReason.queueTrimmed] ?? 0;
        seen.full += rig.budget.drops[DropReason.queueFull] ?? 0;
        seen.marked += rig.budget.counters.marked;
      },
    ),
    { numRuns: 15 },
  );
  for (const [what, count] of Object.entries(seen)) assert.ok(count > 5, `${what}: only ${count}`);
});

test('a packet of a flow with little to send passes the backlog of others', () => {
  const rig = new Rig();
  for (let turn = 0; turn < 7; turn++) rig.push(tcpFrame(1, turn * 60_000, 60_000));
  assert.equal(rig.take()[0]?.port, 1);
  rig.push(udpFrame(9));
  assert.equal(rig.take()[0]?.port, 9, 'the first flow has had more than its turn');
});

function udpFrame(port: number, payload = 64): Uint8Array {
  return encodeFrame(FrameType.packet, udpPacket({ sourcePort: port, payload }));
}

/** (Σx)² / (n Σx²): 1 when all have the same. */
function jain(shares: readonly number[]): number {
  const sum = shares.reduce((total, share) => total + share, 0);
  return sum ** 2 / (shares.length * shares.reduce((total, share) => total + share ** 2, 0));
}

test('flows that send as much as they can have the same share, whatever the size of their packets', () => {
  const sizes = [60, 200, MSS, MSS, 10_000, 20_000, 60_000, 60_000];
  const rig = new Rig({ limitBytes: 4 * MIB });
  const shares = sizes.map(() => 0);
  const sequences = sizes.map(() => 0);
  const waiting = sizes.map(() => 0);
  const frames = rig.drain(20_000, 1000, () => {
    for (const [flow, size] of sizes.entries()) {
      while ((waiting[flow] ?? 0) < 130_000) {
        assert.ok(rig.push(tcpFrame(flow + 1, sequences[flow] ?? 0, size)));
        sequences[flow] = (sequences[flow] ?? 0) + size;
        waiting[flow] = (waiting[flow] ?? 0) + size;
      }
    }
    // What has left is only known from the outside: top up by what the queue no longer holds.
    if (rig.queue.queuedBytes < 800_000) waiting.fill(0);
  });
  for (const frame of frames) shares[frame.port - 1] = (shares[frame.port - 1] ?? 0) + frame.bytes.length;
  assert.ok(jain(shares) > 0.95, `Jain's index ${jain(shares)} of ${shares}`);
});

test('an endless stream of new flows does not stop the others', () => {
  const rig = new Rig();
  for (let turn = 0; turn < 6; turn++) rig.push(tcpFrame(1, turn * 60_000, 60_000));
  rig.take();
  let bulk = 0;
  for (let port = 100; port < 1100; port++) {
    for (let packet = 0; packet < 2; packet++) rig.push(udpFrame(port, 1400));
    for (const frame of rig.take()) if (frame.port === 1) bulk += frame.bytes.length;
  }
  assert.ok(bulk > 100_000, `${bulk} bytes of the old flow`);
});

/** Traffic class fields: EF, none, LE. */
const [EF, BEST_EFFORT, LE] = [46 << 2, 0, 1 << 2];

test('a class that has little to send does not wait for the others, however many flows those have', () => {
  const rig = new Rig();
  for (let port = 1; port <= 20; port++) rig.push(tcpFrame(port, 0, 20 * MSS, port % 2 === 0 ? LE : BEST_EFFORT));
  rig.drain(1000, 50);
  for (let turn = 0; turn < 20; turn++) {
    // Not new any more, and yet first.
    rig.push(tcpFrame(50, turn * 200, 200, EF));
    assert.equal(rig.take()[0]?.port, 50, `turn ${turn}`);
    rig.drain(1000, 5);
  }
});

test('classes that send as much as they can share by weight: bulk is never passed over for long', () => {
  const rig = new Rig();
  const sent = new Map<number, number>();
  const classOf = (port: number): number => [EF, BEST_EFFORT, LE][port % 3] ?? 0;
  const sequences = new Map<number, number>();
  const reached = new Map<number, number>();
  const refill = (): void => {
    for (let port = 0; port < 9; port++) {
      const sequence = sequences.get(port) ?? 0;
      if (sequence - (reached.get(port) ?? 0) > 50_000) continue;
      rig.push(tcpFrame(port, sequence, 1000 + 400 * (port % 2), classOf(port)));
      sequences.set(port, sequence + 1000 + 400 * (port % 2));
    }
  };
  let longest = 0;
  let bulkAt = rig.now;
  for (let step = 0; step < 3000; step++) {
    for (let more = 0; more < 8; more++) refill();
    for (const frame of rig.take()) {
      reached.set(frame.port, frame.sequence + frame.payload);
      sent.set(frame.port, (sent.get(frame.port) ?? 0) + frame.bytes.length);
      rig.now += frame.bytes.length / 1000;
      if (classOf(frame.port) !== LE) continue;
      longest = Math.max(longest, rig.now - bulkAt);
      bulkAt = rig.now;
    }
  }
  const total = (first: number) => [0, 3, 6].reduce((sum, more) => sum + (sent.get(first + more) ?? 0), 0);
  const [interactive, normal, bulk] = [total(0), total(1), total(2)];
  assert.ok(Math.abs(interactive / bulk / 8 - 1) < 0.05, `${interactive}, ${bulk}`);
  assert.ok(Math.abs(normal / bulk / 4 - 1) < 0.05, `${normal}, ${bulk}`);
  // At 1 MB/s a packet of bulk is passed by some 18 kB.
  assert.ok(longest < 60, `bulk waited ${longest} ms`);
  for (const first of [0, 1, 2]) {
    const shares = [0, 3, 6].map((more) => sent.get(first + more) ?? 0);
    assert.ok(Math.max(...shares) / Math.min(...shares) < 1.05, `within a class: ${shares.join()}`);
  }
});

test('more flows than places: every flow keeps its order', () => {
  const rig = new Rig({ limitBytes: 4 * MIB });
  const last = new Map<number, number>();
  let checked = 0;
  const check = (frames: readonly Frame[]): void => {
    for (const { port, sequence } of frames) {
      assert.ok(sequence > (last.get(port) ?? -1));
      last.set(port, sequence);
      checked += 1;
    }
  };
  for (let turn = 0; turn < 6000; turn++) {
    rig.push(tcpFrame(1 + ((turn * 7919) % 1500), turn, 20 + (turn % 400)));
    if (turn % 3 === 0) check(rig.take());
  }
  check(rig.takeAll());
  assert.equal(checked, 6000);
});

test('REQ-CHANNEL-003: at the bound the longest flow loses its oldest packets; a flow with little to send loses none', () => {
  const rig = new Rig({ limitBytes: 256 * 1024 });
  for (let port = 50; port < 60; port++) rig.push(udpFrame(port));
  for (let turn = 0; turn < 8; turn++) assert.ok(rig.push(tcpFrame(1, turn * 57_920, 57_920)));
  const frames = rig.takeAll();
  assert.deepEqual(
    frames.slice(0, 10).map(({ port }) => port),
    Array.from({ length: 10 }, (_, at) => 50 + at),
  );
  assert.equal(frames.at(-1)?.sequence, 7 * 57_920, 'the newest is kept');
  const { queue_full: full = 0, ...others } = rig.dropped();
  assert.deepEqual(others, { queue_trimmed: others.queue_trimmed });
  assert.ok(full > 0 && full % 40 === 0, 'whole super-packets, counted by segments');
});

test('a peer that takes nothing costs no copying without end: after one turnover packets are refused', () => {
  const rig = new Rig({ limitBytes: 256 * 1024 });
  let refused = 0;
  for (let turn = 0; turn < 1000; turn++) if (!rig.push(tcpFrame(1, turn, MSS))) refused += 1;
  assert.ok(refused > 600);
  assert.ok(rig.push(udpFrame(77)), 'another flow still finds room');
  assert.ok(rig.take().some(({ port }) => port === 77));
  rig.takeAll();
  assert.ok(rig.push(tcpFrame(1, 5000, MSS)), 'and all do once the peer reads');
});

test('half full, the longest flow is told: one segment is cut off one super-packet, and then not for a while', () => {
  const rig = new Rig();
  for (let turn = 0; turn < 12; turn++) rig.push(tcpFrame(1, turn * 57_920, 57_920));
  const [first] = rig.take();
  assert.equal(first?.payload, 57_920 - MSS);
  assert.equal(rig.take()[0]?.payload, 57_920);
  assert.deepEqual(rig.dropped(), { queue_trimmed: 1 });
  rig.now += 17;
  rig.push(tcpFrame(1, 12 * 57_920, 57_920));
  rig.push(tcpFrame(1, 13 * 57_920, 57_920));
  rig.take();
  assert.deepEqual(rig.dropped(), { queue_trimmed: 2 });
  assert.equal(rig.budget.counters.signalsByLength, 2);
});

test('half full, a flow that understands marks is marked and loses nothing', () => {
  const rig = new Rig();
  for (let turn = 0; turn < 12; turn++) rig.push(tcpFrame(1, turn * 57_920, 57_920, 2));
  const [first] = rig.take();
  assert.equal((first?.packet[1] ?? 0) & 3, 3);
  assert.deepEqual(rig.dropped(), {});
  assert.equal(rig.budget.counters.marked, 40);
});

test('half full, a flow of plain packets loses one', () => {
  const rig = new Rig();
  for (let turn = 0; turn < 600; turn++) rig.push(tcpFrame(1, turn, MSS));
  assert.equal(rig.take()[0]?.sequence, 1);
  assert.deepEqual(rig.dropped(), { queue_signal: 1 });
});

/** Keeps 200 KB of one flow waiting on a connection of 2.5 kB/ms: some 80 ms, or whatever `backlog` makes. */
function slowFlow(rig: Rig, backlog: number): () => void {
  let sequence = 0;
  return () => {
    while (rig.queue.queuedBytes < backlog) {
      rig.push(tcpFrame(1, sequence, 14_480));
      sequence += 14_480;
    }
  };
}

test('packets that wait longer than the target for as long again are told, and more often while it lasts', () => {
  const short = new Rig();
  short.drain(2500, 3000, slowFlow(short, 200_000));
  assert.deepEqual(short.dropped(), {}, '80 ms are no reason');
  const long = new Rig();
  long.drain(2500, 150, slowFlow(long, 400_000));
  assert.deepEqual(long.dropped(), {}, 'nor is a burst');
  long.drain(2500, 3000, slowFlow(long, 400_000));
  const { queue_trimmed: trimmed = 0, queue_signal: dropped = 0, ...others } = long.dropped();
  assert.ok(trimmed > 40, `${trimmed} segments in 3 s`);
  assert.deepEqual(others, {});
  assert.equal(long.budget.counters.signalsByTime, trimmed + dropped);
});

test('the target follows the round trip of the connection', () => {
  const rig = new Rig();
  rig.roundTripMs = 50;
  rig.drain(2500, 3000, slowFlow(rig, 400_000));
  assert.deepEqual(rig.dropped(), {}, '160 ms are less than four round trips');
});

test('a stall of the connection is not taken for congestion', () => {
  const rig = new Rig();
  const refill = slowFlow(rig, 150_000);
  for (let turn = 0; turn < 20; turn++) {
    rig.drain(2500, 100, refill);
    rig.now += 400;
  }
  assert.deepEqual(rig.dropped(), {});
});

test('the unit follows the rate: whole super-packets on a fast connection, about 2 ms of them on a slow one', () => {
  const fast = new Rig();
  const frames = fast.drain(100_000, 200, slowFlow(fast, 100_000));
  assert.ok(frames.every(({ payload }) => payload === 14_480));
  assert.equal(fast.budget.counters.parts, 0);
  const slow = new Rig();
  slow.drain(2500, 200, slowFlow(slow, 100_000));
  const parts = slow.drain(2500, 200, slowFlow(slow, 100_000));
  assert.ok(slow.queue.unitBytes > 4500 && slow.queue.unitBytes < 5500, `unit of ${slow.queue.unitBytes} bytes`);
  assert.ok(parts.every(({ payload }) => payload <= 3 * MSS));
  assert.ok(parts.filter(({ segments }) => segments === 3).length > parts.length / 2);
  slow.takeAll();
  const again = slow.drain(100_000, 200, slowFlow(slow, 100_000));
  assert.equal(again.at(-1)?.payload, 14_480, 'and is found again when the connection is fast');
});

test('one flow of bulk is handed over where it stands, not copied', () => {
  const rig = new Rig();
  for (let turn = 0; turn < 3; turn++) rig.push(tcpFrame(1, turn * 57_920, 57_920));
  const [a, b] = [rig.queue.take(), rig.queue.take()];
  assert.equal(a?.buffer, b?.buffer);
  assert.equal((b?.byteOffset ?? 0) - (a?.byteOffset ?? 0), a?.length);
});

test('small frames of one flow, and of many, go in one batch', () => {
  const one = new Rig();
  for (let turn = 0; turn < 100; turn++) one.push(udpFrame(5));
  assert.equal(one.take().length, 100);
  const many = new Rig();
  for (let turn = 0; turn < 100; turn++) many.push(udpFrame(1 + (turn % 7)));
  assert.equal(many.take().length, 100);
});

test('what carries no packet is refused when there is no room, and kept in order', () => {
  const rig = new Rig({ limitBytes: 64 * 1024 });
  const echo = (fill: number) => encodeFrame(FrameType.echo, new Uint8Array(10_000).fill(fill));
  for (let turn = 0; turn < 6; turn++) assert.equal(rig.push(echo(turn)), true);
  assert.equal(rig.push(echo(6)), false);
  assert.equal(rig.push(tcpFrame(1, 0, 20_000)), false, 'no packet drives it out');
  assert.deepEqual(
    rig.takeAll().map(({ bytes }) => bytes[4]),
    [0, 1, 2, 3, 4, 5],
  );
});

test('memory comes with the first frame, grows, and goes when the queue is unused', () => {
  const rig = new Rig();
  const { queue } = rig;
  assert.equal(queue.heldBytes, 0);
  rig.push(udpFrame(1));
  assert.equal(queue.heldBytes, 16 * 1024);
  for (let turn = 0; turn < 4; turn++) rig.push(tcpFrame(1, turn, 50_000));
  assert.equal(queue.heldBytes, 256 * 1024);
  assert.equal(queue.releaseIfIdle(), false, 'not while frames wait');
  rig.takeAll();
  rig.push(udpFrame(1));
  rig.takeAll();
  assert.equal(queue.releaseIfIdle(), false, 'not when it was used since the last call');
  assert.equal(queue.releaseIfIdle(), true);
  assert.equal(queue.heldBytes, 0);
  assert.equal(rig.budget.heldBytes, 0);
});

test('bytes that are not one frame are refused', () => {
  const { queue } = new Rig();
  const bytes = concat(udpFrame(1), udpFrame(1));
  for (const [start, end] of [
    [0, bytes.length],
    [0, 3],
    [0, 0],
    [1, 104],
  ] as const) {
    assert.throws(
      () => queue.push(bytes, start, end),
      (error) => isVpnError(error, 'ERR_INVARIANT'),
    );
  }
  assert.equal(queue.queuedBytes, 0);
});

test('all queues together hold no more than their budget: what more is needed comes from the longest', () => {
  const budget = new QueueBudget(512 * 1024);
  const long = new Rig({ budget });
  for (let turn = 0; turn < 8; turn++) long.push(tcpFrame(1, turn * 50_000, 50_000));
  assert.equal(long.queue.heldBytes, 512 * 1024);
  const others = Array.from({ length: 20 }, () => new Rig({ budget }));
  for (const [at, other] of others.entries()) {
    assert.ok(other.push(udpFrame(at)), `queue ${at} finds room`);
    assert.ok(budget.heldBytes <= 512 * 1024);
  }
  assert.equal(long.queue.heldBytes, 128 * 1024);
  assert.ok((long.dropped().queue_budget ?? 0) > 100);
  for (const other of others) assert.equal(other.takeAll().length, 1, 'they lost nothing');
  // An empty queue gives all it holds before a used one gives any.
  const dropped = long.dropped().queue_budget;
  for (let turn = 0; turn < 4; turn++) long.push(tcpFrame(1, turn * 50_000, 50_000));
  assert.equal(long.dropped().queue_budget, dropped);
  assert.equal(long.queue.heldBytes, 512 * 1024);
  assert.ok(others.every(({ queue }) => queue.heldBytes === 0));
  for (const { queue } of [long, ...others]) queue.close();
  assert.equal(budget.heldBytes, 0);
});
