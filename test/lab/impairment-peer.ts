/**
 * A bad cable, run inside a namespace between two Ethernet devices:
 *
 *   node impairment-peer.ts DEVICE DEVICE SEED
 *
 * Frames that come in at one device leave at the other, after what the impairment says has been done to them. It is read
 * from standard input, one JSON object a line, and holds from then on; each line is answered with one of counters. Prints
 * `ready` when frames pass. Chances are drawn from the seed, one stream for each direction.
 */

import { createInterface } from 'node:readline';
import { checkResult, Errno, IoVector, NativeMemory, nativeCalls } from '../../src/os/ffi.ts';
import { Poll, PollEvents } from '../../src/os/poll.ts';
import type { ImpairmentCounters, ImpairmentOptions } from './impairment.ts';

const AF_PACKET = 17;
const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0x800 | 0x80000;
const ETH_P_ALL = 3;
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const SOL_PACKET = 263;
const PACKET_QDISC_BYPASS = 20;
const PACKET_IGNORE_OUTGOING = 23;
const RECEIVE_BUFFER_BYTES = 16 << 20;

const CLOCK_MONOTONIC = 1n;
const TFD_NONBLOCK_CLOEXEC = 0x800n | 0x80000n;
const TIMER_CALLS = { x64: [283n, 286n], arm64: [85n, 86n] } as const;

/** An Ethernet header and a packet of 1,500 bytes; one more byte means that a device has joined segments. */
const LONGEST_FRAME_BYTES = 1514;
const SLOT_BYTES = 2048;
/** Frames that are on the way in one direction, at most: 200 ms at a gigabit a second. */
const SLOTS = 1 << 15;
/** Frames that are read from one side before the other has its turn. */
const BATCH = 64;

const calls = nativeCalls();

/** A frame socket on one device. */
class Port {
  readonly fd: number;
  readonly poll: Poll;

  constructor(device: string) {
    const protocol = ((ETH_P_ALL & 0xff) << 8) | (ETH_P_ALL >> 8);
    this.fd = checkResult(calls.socket(AF_PACKET, SOCK_RAW_NONBLOCK_CLOEXEC, protocol), device, 'socket');
    for (const [level, name, value] of [
      [SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES],
      [SOL_PACKET, PACKET_IGNORE_OUTGOING, 1],
      [SOL_PACKET, PACKET_QDISC_BYPASS, 1],
    ] as const) {
      const memory = new NativeMemory(4);
      memory.view.setInt32(0, value, true);
      checkResult(calls.setsockopt(this.fd, level, name, memory.address, 4), device, 'setsockopt');
    }
    const address = new NativeMemory(20);
    address.view.setUint16(0, AF_PACKET, true);
    address.view.setUint16(2, ETH_P_ALL, false);
    address.view.setInt32(4, calls.if_nametoindex(device), true);
    checkResult(calls.bind(this.fd, address.address, 20), device, 'bind');
    this.poll = new Poll(this.fd);
  }
}

/** Numbers in [0, 1) from a seed: mulberry32. */
function randomFrom(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** One direction: reads at one port, holds frames until they are due, writes at the other. */
class Direction {
  readonly counters: ImpairmentCounters = {
    passed: 0,
    lost: 0,
    duplicated: 0,
    reordered: 0,
    overflowed: 0,
    tooLong: 0,
    bytes: 0,
  };
  readonly #from: Port;
  readonly #to: Port;
  readonly #random: () => number;
  readonly #memory = new NativeMemory(SLOTS * SLOT_BYTES);
  readonly #lengths = new Int32Array(SLOTS);
  readonly #free = Int32Array.from({ length: SLOTS }, (_, at) => at);
  #freeCount = SLOTS;
  /** A heap by time and then by arrival: slots, their times and their numbers. */
  readonly #heap = new Int32Array(SLOTS);
  readonly #due = new Float64Array(SLOTS);
  readonly #order = new Float64Array(SLOTS);
  #size = 0;
  #arrivals = 0;
  #lastDue = 0;
  readonly #vector = new IoVector();
  options: ImpairmentOptions = {};

  constructor(from: Port, to: Port, seed: number) {
    this.#from = from;
    this.#to = to;
    this.#random = randomFrom(seed);
  }

  /** When the next frame is due; Infinity: none waits. */
  get next(): number {
    return this.#size === 0 ? Number.POSITIVE_INFINITY : (this.#due[this.#heap[0] ?? 0] ?? 0);
  }

  receive(): void {
    for (let count = 0; count < BATCH; count += 1) {
      const slot = this.#freeCount === 0 ? undefined : this.#free[this.#freeCount - 1];
      if (slot === undefined) {
        // The oldest is let go ahead of its time rather than the newest lost: the ring is sized for what tests need.
        this.counters.overflowed += 1;
        this.#send(this.#take());
        continue;
      }
      this.#vector.setBase(this.#memory.address + BigInt(slot * SLOT_BYTES));
      this.#vector.setLength(SLOT_BYTES);
      const length = calls.readv(this.#from.fd, this.#vector.address, 1);
      if (length < 0) {
        const errno = calls.errno();
        if (errno === Errno.EAGAIN || errno === Errno.EINTR) return;
        throw checkResult(length, 'a frame', 'readv');
      }
      this.#freeCount -= 1;
      this.#lengths[slot] = length;
      this.#admit(slot, length);
    }
  }

  /** Sends whatever is due. */
  release(now: number): void {
    while (this.next <= now) this.#send(this.#take());
  }

  #admit(slot: number, length: number): void {
    const {
      loss = 0,
      duplicate = 0,
      reorder = 0,
      reorderMs = 5,
      delayMs = 0,
      jitterMs = 0,
      isBlackHole,
    } = this.options;
    if (length > LONGEST_FRAME_BYTES) this.counters.tooLong += 1;
    if (isBlackHole === true || (loss > 0 && this.#random() < loss)) {
      this.counters.lost += 1;
      this.#drop(slot);
      return;
    }
    if (delayMs === 0 && jitterMs === 0 && reorder === 0 && duplicate === 0 && this.#size === 0) {
      this.#send(slot);
      return;
    }
    const now = performance.now();
    const usual = now + delayMs + (jitterMs > 0 ? (this.#random() * 2 - 1) * jitterMs : 0);
    // A delay that varies changes no order; that is the business of `reorder`.
    let due = Math.max(usual, this.#lastDue);
    if (reorder > 0 && this.#random() < reorder) {
      this.counters.reordered += 1;
      due += reorderMs;
    } else this.#lastDue = due;
    this.#put(slot, due);
    if (duplicate > 0 && this.#random() < duplicate && this.#freeCount > 0) {
      this.counters.duplicated += 1;
      this.#freeCount -= 1;
      const copy = this.#free[this.#freeCount] ?? 0;
      this.#memory.bytes.copyWithin(copy * SLOT_BYTES, slot * SLOT_BYTES, slot * SLOT_BYTES + length);
      this.#lengths[copy] = length;
      this.#put(copy, due);
    }
  }

  #send(slot: number): void {
    const length = this.#lengths[slot] ?? 0;
    this.#vector.setBase(this.#memory.address + BigInt(slot * SLOT_BYTES));
    this.#vector.setLength(length);
    if (calls.writev(this.#to.fd, this.#vector.address, 1) < 0) this.counters.lost += 1;
    else {
      this.counters.passed += 1;
      this.counters.bytes += length;
    }
    this.#drop(slot);
  }

  #drop(slot: number): void {
    this.#free[this.#freeCount] = slot;
    this.#freeCount += 1;
  }

  #isBefore(one: number, other: number): boolean {
    const [a = 0, b = 0] = [this.#due[one], this.#due[other]];
    return a < b || (a === b && (this.#order[one] ?? 0) < (this.#order[other] ?? 0));
  }

  #put(slot: number, due: number): void {
    this.#due[slot] = due;
    this.#order[slot] = this.#arrivals;
    this.#arrivals += 1;
    let at = this.#size;
    this.#size += 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = this.#heap[parent] ?? 0;
      if (!this.#isBefore(slot, above)) break;
      this.#heap[at] = above;
      at = parent;
    }
    this.#heap[at] = slot;
  }

  #take(): number {
    const first = this.#heap[0] ?? 0;
    this.#size -= 1;
    const last = this.#heap[this.#size] ?? 0;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && this.#isBefore(this.#heap[child + 1] ?? 0, this.#heap[child] ?? 0)) child += 1;
      const below = this.#heap[child] ?? 0;
      if (!this.#isBefore(below, last)) break;
      this.#heap[at] = below;
      at = child;
    }
    this.#heap[at] = last;
    return first;
  }
}

/** Node's timers count whole milliseconds; this one does not. */
class Alarm {
  readonly #fd: number;
  readonly #settime: bigint;
  readonly #time = new NativeMemory(32);
  readonly #sink = new IoVector();
  readonly #sinkMemory = new NativeMemory(8);
  #at = Number.POSITIVE_INFINITY;

  constructor(ring: () => void) {
    const numbers = process.arch === 'arm64' ? TIMER_CALLS.arm64 : TIMER_CALLS.x64;
    this.#settime = numbers[1];
    this.#fd = checkResult(
      calls.syscall(numbers[0], CLOCK_MONOTONIC, TFD_NONBLOCK_CLOEXEC, 0n, 0n),
      'a timer',
      'timerfd_create',
    );
    this.#sink.setBase(this.#sinkMemory.address);
    this.#sink.setLength(8);
    new Poll(this.#fd).start(PollEvents.readable, () => {
      calls.readv(this.#fd, this.#sink.address, 1);
      this.#at = Number.POSITIVE_INFINITY;
      ring();
    });
  }

  /** Rings at a time of `performance.now()`, in place of the time before. */
  set(at: number): void {
    if (at === this.#at || at === Number.POSITIVE_INFINITY) return;
    this.#at = at;
    const wait = Math.max(at - performance.now(), 0.001);
    this.#time.view.setBigInt64(16, BigInt(Math.floor(wait / 1000)), true);
    this.#time.view.setBigInt64(24, BigInt(Math.floor((wait % 1000) * 1e6)), true);
    checkResult(
      calls.syscall(this.#settime, BigInt(this.#fd), 0n, this.#time.address, 0n),
      'a timer',
      'timerfd_settime',
    );
  }
}

function main(one: string, other: string, seed: number): void {
  const ports = [new Port(one), new Port(other)] as const;
  const directions = [new Direction(ports[0], ports[1], seed), new Direction(ports[1], ports[0], seed + 1)] as const;
  const turn = (): void => {
    const now = performance.now();
    for (const direction of directions) direction.release(now);
    alarm.set(Math.min(directions[0].next, directions[1].next));
  };
  const alarm = new Alarm(turn);
  for (const [at, port] of ports.entries()) {
    port.poll.start(PollEvents.readable, () => {
      directions[at]?.receive();
      turn();
    });
  }
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      if (line !== '') for (const direction of directions) direction.options = JSON.parse(line) as ImpairmentOptions;
      process.stdout.write(`${JSON.stringify(directions.map(({ counters }) => counters))}\n`);
    })
    .on('close', () => process.exit(0));
  process.stdout.write('ready\n');
}

const [, , one = '', other = '', seed = '1'] = process.argv;
main(one, other, Number(seed));
