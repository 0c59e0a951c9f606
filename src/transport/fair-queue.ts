/**
 * The queue of a connection's data frames: fair between flows, short for those who respond, bounded for those who do not.
 *
 * Hides which frame goes next and which has to go. Three classes of traffic share the connection by weight, and the more
 * urgent goes first; within a class, flows with little to send pass those with much (fq_codel, RFC 8290) and the others
 * take turns by bytes. A flow whose packets wait too long, or that is the longest of a queue that is half full,
 * is told: by a mark where it understands marks, else by the loss of one segment, not of a whole super-packet. At the bound,
 * whole packets go from the head of the longest flow. On a slow connection super-packets leave in parts, so that nothing
 * waits long behind one. Frames that carry no packet are never dropped: they are refused when there is no room.
 *
 * Of frames it knows whether they carry a packet; what can be done to one is `data-frame.ts`, where they stand is
 * `frame-store.ts`. Must not know sockets. The clock is read once per write; per frame nothing is allocated.
 *
 * @see docs/decisions/0012-queues.md
 */

import { VpnError } from '../base/errors.ts';
import { DropReason } from '../ip/drop-reason.ts';
import type { FlowKey } from '../ip/packet.ts';
import { TrafficClasses } from '../ip/traffic-class.ts';
import {
  frameLength,
  frameSegments,
  isPacketFrame,
  markFrame,
  packetOffset,
  splitFrame,
  trimFrame,
} from './data-frame.ts';
import { FlowTable, NO_FLOW, OTHER_FLOW, QUANTUM_BYTES } from './flow-table.ts';
import { LEAST_STORE_BYTES } from './frame-store.ts';
import { type BudgetedQueue, QueueBudget } from './queue-budget.ts';

/** One batch is at most this much, or one frame. */
const BATCH_BYTES = 16 * 1024;
/** A batch takes the connection so long. Below some 260 Mbit/s a super-packet of 64 KiB would take longer. */
const UNIT_MS = 2;
const LEAST_UNIT_BYTES = 3000;
const NO_UNIT = 0x7fff_ffff;
/** The rate is looked at after so much time with frames waiting. */
const RATE_WINDOW_MS = 10;
/** How much a look counts. */
const RATE_WEIGHT = 1 / 4;

/** Waiting is counted up to this in one piece; beyond, the connection repairs a loss, which is no congestion. */
const STALL_MS = 20;
/** How long packets may wait (CoDel's target), at the least. */
const TARGET_MS = 100;
/** Or so many of the connection's own round trips. */
const TARGET_ROUND_TRIPS = 4;
const ROUND_TRIP_REVIEW_MS = 1000;
/** Between two signals to the longest flow of a queue that is half full, at first and at the least. */
const LENGTH_SIGNAL_MS = 16;
const LEAST_LENGTH_SIGNAL_MS = 2;
/** Where memory is short, a queue is long when it fills so much of its own bound. */
const TIGHT_PART = 32;

/** The queue was empty: what was before the next look does not count. */
const NOT_LOOKED = -1;

export interface FairQueueOptions {
  /** Neither the frames nor the memory for them ever exceed this. */
  limitBytes: number;
  /** Default: one of its own, without a limit. */
  budget?: QueueBudget | undefined;
  /** The connection's own smoothed round trip, milliseconds. Asked about once a second at most, when packets wait long. */
  roundTripMs?: () => number;
  /** Monotonic milliseconds. */
  now?: () => number;
  /** Spreads flows over places; what it is must not be known to who sends the packets. */
  key?: FlowKey;
  /** Says which class a packet belongs to. Default: its DSCP. */
  classes?: TrafficClasses | undefined;
}

/** Data frames on their way to one connection. Not for use by two readers. */
export class FairQueue implements BudgetedQueue {
  readonly limitBytes: number;
  readonly #budget: QueueBudget;
  readonly #roundTripMs: () => number;
  readonly #now: () => number;
  readonly #key: FlowKey;
  #flows: FlowTable | undefined;
  #wasUsed = false;
  /** May be replaced at any time, for flows that come. */
  classes: TrafficClasses;

  /** Counted time: it stands still while the queue is empty and while the connection stalls. */
  #time = 0;
  #lookedAt = 0;
  /** Of the batch that the connection is busy with, if others waited behind it. */
  #batchBytes = 0;
  #rateBytes = 0;
  #rateMs = 0;
  /** Bytes per millisecond; 0 until it is known. */
  #rate = 0;
  #unitBytes = NO_UNIT;

  #targetMs = TARGET_MS;
  #targetUntil = 0;
  #lengthSignalAt = 0;
  #lengthSignals = 0;
  /** Bytes that had to go at the bound since anything was taken. */
  #turnedOver = 0;

  constructor(options: FairQueueOptions) {
    this.limitBytes = options.limitBytes;
    this.#budget = options.budget ?? new QueueBudget();
    this.#roundTripMs = options.roundTripMs ?? (() => 0);
    this.#now = options.now ?? (() => performance.now());
    this.#key = options.key ?? processKey;
    this.classes = options.classes ?? BY_DSCP;
  }

  /** Bytes that wait. */
  get queuedBytes(): number {
    return this.#flows?.store.usedBytes ?? 0;
  }

  /** Memory held for frames, used or not. */
  get heldBytes(): number {
    return this.#flows?.store.sizeBytes ?? 0;
  }

  /** How long the oldest frame has waited, in counted time. */
  get waitingMs(): number {
    const flows = this.#flows;
    if (flows === undefined || flows.store.usedBytes === 0) return 0;
    const sinceLook = this.#lookedAt === NOT_LOOKED ? 0 : this.#now() - this.#lookedAt;
    return this.#time - flows.store.oldestTime + sinceLook;
  }

  /** Whether the connection has been measured, and found so slow that super-packets leave in parts. */
  get isSlow(): boolean {
    return this.#unitBytes !== NO_UNIT;
  }

  /** What leaves at once is at most this long, or two segments. */
  get unitBytes(): number {
    return this.#unitBytes;
  }

  /**
   * Copies the one frame `bytes[start, end)`; packets of other flows, or older ones of this, may have to go for it.
   *
   * @returns false when there is no room
   * @throws {VpnError} ERR_INVARIANT when the bytes are not one frame
   */
  push(bytes: Uint8Array, start: number, end: number): boolean {
    const length = end - start;
    if (length < 4 || frameLength(bytes, start) !== length) {
      throw new VpnError('ERR_INVARIANT', `expected one frame in ${length} bytes`, { details: { length } });
    }
    const flows = this.#flows ?? this.#open(length);
    if (flows === undefined) return false;
    const { store } = flows;
    const flow = isPacketFrame(bytes, start) ? this.#findFlow(flows, bytes, start, length) : OTHER_FLOW;
    if (store.usedBytes === 0) {
      this.#lookedAt = NOT_LOOKED;
      this.#batchBytes = 0;
    }
    if (
      (store.usedBytes + length > this.limitBytes || !store.hasRoom(length)) &&
      !this.#makeRoom(flows, flow, length)
    ) {
      return false;
    }
    flows.put(bytes, start, end, flow, this.#time);
    this.#wasUsed = true;
    return true;
  }

  /**
   * Removes and returns what goes next: frames, or a part of one, that take the connection about 2 ms; at least one, or two
   * segments of one. `undefined` when empty. What is returned is overwritten by the next call of anything.
   *
   * @param mostBytes a batch is no longer than this, either
   */
  take(mostBytes: number = NO_UNIT): Buffer | undefined {
    const flows = this.#flows;
    if (flows === undefined || flows.store.usedBytes === 0) return undefined;
    this.#look();
    this.#turnedOver = 0;
    const { store } = flows;
    if (store.usedBytes > this.limitBytes / (this.#budget.isTight ? TIGHT_PART : 2)) this.#signalLongest(flows);
    else this.#lengthSignals = 0;

    const unit = Math.min(this.#unitBytes, mostBytes);
    const most = Math.min(BATCH_BYTES, unit);
    let start = 0;
    let end = 0;
    let isGathered = false;
    for (;;) {
      const flow = this.#select(flows);
      if (flow === NO_FLOW) break;
      const length = store.length(flow);
      const offset = store.offset(flow);
      if (end === start) {
        const cut = length > unit ? splitFrame(store.ring, offset, length, unit, batch, 0) : 0;
        if (cut > 0) {
          const part = frameLength(batch, 0);
          flows.shorten(flow, cut, true);
          flows.charge(flow, part);
          this.#budget.counters.parts += 1;
          this.#batchBytes = part;
          return batch.subarray(0, part);
        }
        start = offset;
        end = offset + length;
      } else if (end - start + length > most) {
        break;
      } else if (!isGathered && offset === end) {
        end += length;
      } else {
        if (!isGathered) {
          store.ring.copy(batch, 0, start, end);
          end -= start;
          start = 0;
          isGathered = true;
        }
        store.ring.copy(batch, end, offset, offset + length);
        end += length;
      }
      flows.leave(flow);
      flows.charge(flow, length);
      if (end - start >= most) break;
    }
    if (end === start) return undefined;
    this.#batchBytes = store.usedBytes > 0 ? end - start : 0;
    return (isGathered ? batch : store.ring).subarray(start, end);
  }

  /** Forgets every frame; keeps the memory. */
  clear(): void {
    this.#flows?.clear();
  }

  /** Forgets every frame and gives the memory back. */
  close(): void {
    const held = this.heldBytes;
    this.#flows = undefined;
    if (held > 0) this.#budget.returned(this, held);
  }

  /**
   * Gives the memory back if the queue is empty and nothing was pushed since the last call; to be called now and then.
   *
   * @returns whether the queue holds no memory now
   */
  releaseIfIdle(): boolean {
    if (!this.#wasUsed && this.queuedBytes === 0) this.close();
    this.#wasUsed = false;
    return this.#flows === undefined;
  }

  /** For the budget. */
  give(): void {
    const flows = this.#flows;
    if (flows === undefined) return;
    const half = flows.store.sizeBytes >>> 1;
    while (flows.store.usedBytes > half && this.#evict(flows, DropReason.queueBudget) > 0);
    // What carries no packet is not dropped, except here, where all of the process's memory is at stake.
    if (flows.store.usedBytes > half) this.clear();
    if (flows.store.usedBytes === 0) this.#flows = undefined;
    else flows.store.resize(half);
  }

  #open(length: number): FlowTable | undefined {
    const size = this.#sizeFor(length);
    if (length > this.limitBytes || !this.#budget.grant(this, size)) return undefined;
    this.#flows = new FlowTable(size);
    return this.#flows;
  }

  /** A power of two, or the limit. */
  #sizeFor(bytes: number): number {
    let size = LEAST_STORE_BYTES;
    while (size < bytes) size *= 2;
    return Math.min(size, this.limitBytes);
  }

  #findFlow(flows: FlowTable, bytes: Uint8Array, start: number, length: number): number {
    const offset = packetOffset(bytes, start);
    const at = start + offset;
    const trafficClass = this.classes.classOf(bytes, at, length - offset);
    return flows.find(bytes, at, length - offset, trafficClass, this.#key);
  }

  /** Called when the frame does not fit as things are. */
  #makeRoom(flows: FlowTable, flow: number, length: number): boolean {
    const { store } = flows;
    if (length > this.limitBytes) return false;
    for (;;) {
      const isWithin = store.usedBytes + length <= this.limitBytes;
      if (isWithin && (store.hasRoom(length) || this.#grow(flows, length))) return true;
      if (isWithin && store.isWorthCompacting(length)) {
        store.compact();
        continue;
      }
      // Nothing has left for a whole turnover: what is new would go the same way.
      const isHopeless = this.#turnedOver >= this.limitBytes && !store.isEmpty(flow);
      const evicted = isHopeless ? 0 : this.#evict(flows, DropReason.queueFull);
      if (evicted === 0) return false;
      this.#turnedOver += evicted;
    }
  }

  #grow(flows: FlowTable, length: number): boolean {
    const { store } = flows;
    const needed = store.usedBytes + length;
    // Half empty, it is the gaps that are in the way.
    if (needed <= store.sizeBytes / 2 && store.isWorthCompacting(length)) return false;
    const size = this.#sizeFor(Math.max(needed, store.sizeBytes + 1));
    if (size <= store.sizeBytes || !this.#budget.grant(this, size)) return false;
    store.resize(size);
    return store.hasRoom(length);
  }

  /** Drops a packet at the head of the longest flow. @returns its bytes; 0 when there is none to drop */
  #evict(flows: FlowTable, reason: DropReason): number {
    const flow = flows.longest();
    if (flow === NO_FLOW) return 0;
    const length = flows.store.length(flow);
    this.#drop(flows, flow, reason);
    return length;
  }

  #drop(flows: FlowTable, flow: number, reason: DropReason): void {
    const { store } = flows;
    this.#count(reason, frameSegments(store.ring, store.offset(flow), store.length(flow)));
    flows.leave(flow);
  }

  #count(reason: DropReason, segments: number): void {
    const { drops } = this.#budget;
    drops[reason] = (drops[reason] ?? 0) + segments;
  }

  /** The flow whose turn it is; its oldest frame may go. */
  #select(flows: FlowTable): number {
    for (;;) {
      const flow = flows.select();
      if (flow === NO_FLOW || this.#isTimely(flows, flow)) return flow;
    }
  }

  /** CoDel: tells a flow whose packets wait too long. @returns false when its oldest frame was dropped for that */
  #isTimely(flows: FlowTable, flow: number): boolean {
    const waited = this.#time - flows.store.time(flow);
    const isShort = (flows.bytes[flow] ?? 0) <= QUANTUM_BYTES;
    if (waited < TARGET_MS || isShort || waited < this.#target()) {
      if (flows.signalAt[flow] !== 0) {
        flows.signalAt[flow] = 0;
        flows.signals[flow] = (flows.signals[flow] ?? 0) >>> 1;
      }
      return true;
    }
    const signalAt = flows.signalAt[flow] ?? 0;
    if (signalAt === 0) {
      flows.signalAt[flow] = this.#time + this.#targetMs;
      return true;
    }
    if (this.#time < signalAt) return true;
    const signals = Math.min((flows.signals[flow] ?? 0) + 1, 0xffff);
    flows.signals[flow] = signals;
    flows.signalAt[flow] = this.#time + this.#targetMs / Math.sqrt(signals);
    this.#budget.counters.signalsByTime += 1;
    return this.#signal(flows, flow);
  }

  #target(): number {
    if (this.#time >= this.#targetUntil) {
      this.#targetUntil = this.#time + ROUND_TRIP_REVIEW_MS;
      this.#targetMs = Math.max(TARGET_MS, TARGET_ROUND_TRIPS * this.#roundTripMs());
    }
    return this.#targetMs;
  }

  #signalLongest(flows: FlowTable): void {
    if (this.#time < this.#lengthSignalAt) return;
    const flow = flows.longest();
    if (flow === NO_FLOW) return;
    this.#lengthSignals += 1;
    this.#lengthSignalAt =
      this.#time + Math.max(LEAST_LENGTH_SIGNAL_MS, LENGTH_SIGNAL_MS / Math.sqrt(this.#lengthSignals));
    this.#budget.counters.signalsByLength += 1;
    this.#signal(flows, flow);
  }

  /** Tells a flow that it sends too fast. @returns false when its oldest frame is gone for that */
  #signal(flows: FlowTable, flow: number): boolean {
    const { store } = flows;
    const offset = store.offset(flow);
    const length = store.length(flow);
    if (flow === OTHER_FLOW) return true;
    if (markFrame(store.ring, offset, length)) {
      this.#budget.counters.marked += frameSegments(store.ring, offset, length);
      return true;
    }
    const trimmed = trimFrame(store.ring, offset, length);
    if (trimmed === length) {
      this.#drop(flows, flow, DropReason.queueSignal);
      return false;
    }
    flows.shorten(flow, length - trimmed, false);
    this.#count(DropReason.queueTrimmed, 1);
    return true;
  }

  /** Looks at the clock: counts time, and measures how fast the connection takes what is given to it. */
  #look(): void {
    const now = this.#now();
    const elapsed = this.#lookedAt === NOT_LOOKED ? 0 : now - this.#lookedAt;
    this.#lookedAt = now;
    const usual = this.#rate === 0 ? 0 : (2 * this.#batchBytes) / this.#rate;
    const counted = Math.min(elapsed, Math.max(STALL_MS, usual));
    this.#time += counted;
    if (this.#batchBytes === 0) return;
    this.#rateBytes += this.#batchBytes;
    this.#rateMs += counted;
    if (this.#rateMs < RATE_WINDOW_MS) return;
    const found = this.#rateBytes / this.#rateMs;
    this.#rate = this.#rate === 0 ? found : this.#rate + (found - this.#rate) * RATE_WEIGHT;
    this.#rateBytes = 0;
    this.#rateMs = 0;
    const unit = this.#rate * UNIT_MS;
    this.#unitBytes = unit >= WHOLE_BYTES ? NO_UNIT : Math.max(LEAST_UNIT_BYTES, Math.floor(unit));
  }
}

/** The longest frame, and then some: as long a unit splits nothing. */
const WHOLE_BYTES = 66_000;
/** For one batch of any queue: it is used up before the next is made. */
const batch = Buffer.allocUnsafeSlow(BATCH_BYTES + WHOLE_BYTES);
const BY_DSCP = new TrafficClasses([]);
const random = crypto.getRandomValues(new Int32Array(2));
const processKey: FlowKey = [random[0] ?? 0, random[1] ?? 0];
