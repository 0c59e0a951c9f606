/**
 * A bounded queue of whole frames in one ring of bytes.
 *
 * Hides where the bytes stand: a frame never wraps, so that a batch of frames is one contiguous piece that goes to the
 * socket as it is. Memory comes with the first frame, grows by doubling up to the limit, and goes when the owner finds
 * the queue unused. Of frames it knows only the length in their header (docs/protocol.md, REQ-FRAME-001).
 */

import { VpnError } from '../base/errors.ts';
import { FRAME_HEADER_BYTES } from '../protocol/frame.ts';
import { frameLength } from './data-frame.ts';

/** The first piece of memory: for the few short frames that mostly wait. */
const FIRST_RING_BYTES = 4 * 1024;

/** Frames in order of arrival. Not for use by two readers. */
export class PacketQueue {
  readonly limitBytes: number;
  #ring: Buffer | undefined;
  #head = 0;
  #tail = 0;
  /** Where the frames in front of the wrap end; meaningful while `#isWrapped`. */
  #wrapAt = 0;
  #isWrapped = false;
  #queuedBytes = 0;
  #wasUsed = false;

  /** @param limitBytes neither the frames nor the memory held for them ever exceed it */
  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  get queuedBytes(): number {
    return this.#queuedBytes;
  }

  /** Memory held, used or not. */
  get heldBytes(): number {
    return this.#ring?.length ?? 0;
  }

  /**
   * Copies the whole frames of `bytes[start, end)` to the end of the queue, all or none.
   *
   * @returns false when there is no room
   * @throws {VpnError} ERR_INVARIANT when the bytes are not whole frames
   */
  push(bytes: Uint8Array, start: number, end: number): boolean {
    const length = end - start;
    if (this.#queuedBytes + length > this.limitBytes) return false;
    checkWholeFrames(bytes, start, end);
    if (!this.#makeRoom(length)) return false;
    this.#ring?.set(start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end), this.#tail);
    this.#tail += length;
    this.#queuedBytes += length;
    this.#wasUsed = true;
    return true;
  }

  /**
   * Removes and returns the frames at the head: as many as fit into `maxBytes`, and at least one. `undefined` when
   * empty. What is returned is overwritten by the next `push`.
   */
  take(maxBytes: number): Buffer | undefined {
    const ring = this.#ring;
    if (ring === undefined || this.#queuedBytes === 0) return undefined;
    const start = this.#head;
    const regionEnd = this.#isWrapped ? this.#wrapAt : this.#tail;
    let end = start + frameLength(ring, start);
    while (end < regionEnd) {
      const next = end + frameLength(ring, end);
      if (next - start > maxBytes) break;
      end = next;
    }
    this.#queuedBytes -= end - start;
    if (this.#queuedBytes === 0) {
      this.#reset();
    } else if (end === regionEnd) {
      this.#head = 0;
      this.#isWrapped = false;
    } else {
      this.#head = end;
    }
    return ring.subarray(start, end);
  }

  /** Forgets every frame; keeps the memory. */
  clear(): void {
    this.#queuedBytes = 0;
    this.#reset();
  }

  /**
   * Gives the memory back if the queue is empty and nothing was pushed since the last call; to be called now and then.
   *
   * @returns whether the queue holds no memory now
   */
  releaseIfIdle(): boolean {
    if (!this.#wasUsed && this.#queuedBytes === 0) this.#ring = undefined;
    this.#wasUsed = false;
    return this.#ring === undefined;
  }

  #reset(): void {
    this.#head = 0;
    this.#tail = 0;
    this.#isWrapped = false;
  }

  /** Sets the tail to where `length` bytes fit. */
  #makeRoom(length: number): boolean {
    const size = this.heldBytes;
    if (this.#isWrapped) {
      if (this.#head - this.#tail >= length) return true;
    } else {
      if (size - this.#tail >= length) return true;
      if (this.#head >= length) {
        this.#wrapAt = this.#tail;
        this.#isWrapped = true;
        this.#tail = 0;
        return true;
      }
    }
    return this.#grow(length);
  }

  #grow(length: number): boolean {
    const needed = this.#queuedBytes + length;
    let size = Math.max(this.heldBytes, Math.min(FIRST_RING_BYTES, this.limitBytes));
    while (size < needed) size *= 2;
    if (size === this.heldBytes) size *= 2;
    size = Math.min(size, this.limitBytes);
    if (size === this.heldBytes) return this.#compact(length);
    const ring = Buffer.allocUnsafeSlow(size);
    this.#moveTo(ring);
    this.#ring = ring;
    return true;
  }

  /** At the largest size: there is room, but not in one piece. Moving is dear, so it is done only when half is free. */
  #compact(length: number): boolean {
    const ring = this.#ring;
    if (ring === undefined || this.#queuedBytes + length > ring.length) return false;
    if (this.#queuedBytes > ring.length / 2) return false;
    const copy = Buffer.allocUnsafeSlow(this.#queuedBytes);
    this.#moveTo(copy);
    copy.copy(ring);
    return true;
  }

  #moveTo(target: Buffer): void {
    const ring = this.#ring;
    if (ring !== undefined) {
      const regionEnd = this.#isWrapped ? this.#wrapAt : this.#tail;
      ring.copy(target, 0, this.#head, regionEnd);
      if (this.#isWrapped) ring.copy(target, regionEnd - this.#head, 0, this.#tail);
    }
    this.#head = 0;
    this.#tail = this.#queuedBytes;
    this.#isWrapped = false;
  }
}

function checkWholeFrames(bytes: Uint8Array, start: number, end: number): void {
  let at = start;
  while (at + FRAME_HEADER_BYTES <= end) at += frameLength(bytes, at);
  if (at !== end || start === end) {
    throw new VpnError('ERR_INVARIANT', `expected whole frames in ${end - start} bytes`, {
      details: { length: end - start },
    });
  }
}
