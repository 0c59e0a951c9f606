/**
 * The bytes that all queues of a process may hold together, and what these queues count.
 *
 * Hides who gives when there is no more: a queue that is empty, else the longest. A queue asks before it takes memory and
 * says when it has given some back; it must never ask on behalf of another. Costs nothing while there is enough.
 */

import { DROP_REASON_NAMES } from '../ip/drop-reason.ts';

/** A queue, as the budget sees it. */
export interface BudgetedQueue {
  /** Memory held. */
  readonly heldBytes: number;
  /** Bytes that wait in it. */
  readonly queuedBytes: number;
  /** How long the oldest of them have waited. */
  readonly waitingMs?: number;
  /** Gives back all of an unused memory, or at least half of a used one, dropping what no longer fits. */
  give(): void;
}

/** What queues count beside drops; plain integers, read at scrape. */
export interface QueueCounters {
  /** Packets that were told of congestion in their header (ECN). */
  marked: number;
  /** Parts in which super-packets left because the connection is slow. */
  parts: number;
  /** Signals to a flow because its queue was long in bytes, and because it was long in time. */
  signalsByLength: number;
  signalsByTime: number;
}

/** How many queues are looked at for an empty one before a used one has to give. */
const LOOKED_AT = 32;

/** Shared by all queues of a process. */
export class QueueBudget {
  readonly limitBytes: number;
  /** Drops by `DropReason`, in segments; shared with whoever else counts them. */
  readonly drops: Float64Array;
  readonly counters: QueueCounters = { marked: 0, parts: 0, signalsByLength: 0, signalsByTime: 0 };
  #heldBytes = 0;
  /** By the binary logarithm of the memory held. */
  readonly #queues: Set<BudgetedQueue>[] = Array.from({ length: 32 }, () => new Set());

  constructor(limitBytes = Number.POSITIVE_INFINITY, drops: Float64Array = new Float64Array(DROP_REASON_NAMES.length)) {
    this.limitBytes = limitBytes;
    this.drops = drops;
  }

  /** Memory held by all queues. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** What waits in all queues, and how long the oldest of it has. For whoever asks now and then. */
  get waiting(): { bytes: number; ms: number } {
    let bytes = 0;
    let ms = 0;
    for (const queue of this.#queues.flatMap((queues) => [...queues])) {
      bytes += queue.queuedBytes;
      ms = Math.max(ms, queue.waitingMs ?? 0);
    }
    return { bytes, ms };
  }

  /** Whether so much is held that every queue should be short. */
  get isTight(): boolean {
    return this.#heldBytes > this.limitBytes / 2;
  }

  /**
   * Grants a queue memory of another size; others may have to give for it.
   *
   * @param queue holds `heldBytes` now and `bytes` afterwards, if this returns true
   * @returns false when the queue is itself among the longest
   */
  grant(queue: BudgetedQueue, bytes: number): boolean {
    const more = bytes - queue.heldBytes;
    while (more > 0 && this.#heldBytes + more > this.limitBytes) {
      const giver = this.#findGiver(queue, bytes);
      if (giver === undefined) return false;
      this.#take(giver);
    }
    this.#move(queue, queue.heldBytes, bytes);
    return true;
  }

  /** A queue has given all of its memory back, by itself. */
  returned(queue: BudgetedQueue, bytes: number): void {
    this.#move(queue, bytes, 0);
  }

  #take(giver: BudgetedQueue): void {
    const before = giver.heldBytes;
    giver.give();
    this.#move(giver, before, giver.heldBytes);
  }

  #move(queue: BudgetedQueue, before: number, after: number): void {
    this.#heldBytes += after - before;
    if (before > 0) this.#queues[sizeClass(before)]?.delete(queue);
    // Last in its set: those that have given stand behind those that have not.
    if (after > 0) this.#queues[sizeClass(after)]?.add(queue);
  }

  #findGiver(asking: BudgetedQueue, bytes: number): BudgetedQueue | undefined {
    let looked = 0;
    let longest: BudgetedQueue | undefined;
    for (let size = this.#queues.length - 1; size >= 0; size--) {
      for (const queue of this.#queues[size] ?? []) {
        if (queue === asking) continue;
        if (queue.queuedBytes === 0) return queue;
        longest ??= queue;
        looked += 1;
        if (looked >= LOOKED_AT) break;
      }
    }
    return longest !== undefined && longest.heldBytes > bytes ? longest : undefined;
  }
}

function sizeClass(bytes: number): number {
  return 31 - Math.clz32(bytes);
}
