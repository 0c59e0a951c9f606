/**
 * Frames that have arrived and must keep a rate before they go on: a fair queue of their own, emptied in time.
 *
 * Hides the queue and the waiting. The peer's connection is read on meanwhile, so that neither its control frames nor its
 * small packets stand behind what waits in the kernel, and its senders are slowed down by what the queue tells them
 * (`FairQueue`): marks, lost segments. Must not know what becomes of a frame.
 *
 * @see docs/decisions/0023-shaping.md
 */

import type { TrafficClasses } from '../ip/traffic-class.ts';
import { batchCost, frameCost, frameLength } from './data-frame.ts';
import { FairQueue } from './fair-queue.ts';
import { PaceGate, type Pacer } from './pacer.ts';
import type { QueueBudget } from './queue-budget.ts';

export interface PacedDeliveryOptions {
  pacer: Pacer;
  limitBytes: number;
  budget?: QueueBudget | undefined;
  classes?: TrafficClasses | undefined;
  /** Takes one frame `bytes[at, at + length)`, borrowed until it returns. */
  deliver(bytes: Uint8Array, at: number, length: number): void;
  /** Monotonic milliseconds. */
  now?: (() => number) | undefined;
}

export class PacedDelivery {
  readonly #queue: FairQueue;
  readonly #gate: PaceGate;
  readonly #deliver: (bytes: Uint8Array, at: number, length: number) => void;

  constructor(options: PacedDeliveryOptions) {
    const { limitBytes, budget, classes, now, deliver } = options;
    this.#queue = new FairQueue({ limitBytes, budget, classes, ...(now === undefined ? {} : { now }) });
    this.#gate = new PaceGate(() => this.#pump());
    this.#gate.pacer = options.pacer;
    this.#deliver = deliver;
  }

  /** Bytes that wait. */
  get queuedBytes(): number {
    return this.#queue.queuedBytes;
  }

  /** Other rates from now on; undefined: none, and what waits goes at once. */
  set pacer(pacer: Pacer | undefined) {
    this.#gate.pacer = pacer;
    if (pacer === undefined) this.#pump();
  }

  set classes(classes: TrafficClasses) {
    this.#queue.classes = classes;
  }

  /** Whether the one frame `bytes[start, end)` may go on at once; it is paid for. */
  mayPass(bytes: Uint8Array, start: number, end: number): boolean {
    return this.#queue.queuedBytes === 0 && this.#gate.tryPay(frameCost(bytes, start, end - start));
  }

  /** Has a frame wait for its turn; the bytes may be reused at once. @returns false when there is no room */
  push(bytes: Uint8Array, start: number, end: number): boolean {
    const isTaken = this.#queue.push(bytes, start, end);
    if (!this.#gate.isWaiting) this.#pump();
    return isTaken;
  }

  /** To be called now and then: gives memory back that is not used. */
  releaseIfIdle(): void {
    this.#queue.releaseIfIdle();
  }

  /** Forgets what waits. */
  close(): void {
    this.#queue.close();
    this.#gate.close();
  }

  #pump(): void {
    const queue = this.#queue;
    const gate = this.#gate;
    while (queue.queuedBytes > 0 && gate.isOpen()) {
      const batch = queue.take(gate.batchBytes);
      gate.spent(batch === undefined ? 0 : batchCost(batch));
      if (batch === undefined) break;
      for (let at = 0; at < batch.length; ) {
        const length = frameLength(batch, at);
        this.#deliver(batch, at, length);
        at += length;
      }
    }
  }
}
