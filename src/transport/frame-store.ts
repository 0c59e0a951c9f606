/**
 * Frames of many flows in one piece of memory: in order within a flow, in any order between flows.
 *
 * Hides where the bytes stand. A frame never wraps, so that it goes to the socket as it is; the memory of frames that have
 * left is used again when the ones in front of them have left, too, or after what is left has been moved together. Knows
 * nothing of what frames are, of whose turn it is or of how much there may be.
 *
 * Nothing is allocated per frame.
 */

import { VpnError } from '../base/errors.ts';

/** Flows are numbers below this. */
export const FLOWS = 256;
/** The least memory: a few frames of ordinary size. */
export const LEAST_STORE_BYTES = 16 * 1024;
const FIRST_FRAMES = 64;
/** Frames smaller than this on the average fill the table of frames before the memory. */
const LEAST_FRAME_BYTES = 64;

const NO_FRAME = -1;
/** Numbers of frames begin again after so many. */
const NUMBER_MASK = 0x3fff_ffff;
const LEFT = -1;

/** One queue's frames. */
export class FrameStore {
  #ring: Buffer;
  #usedBytes = 0;
  /** Where the next frame goes. */
  #tail = 0;
  /** The newest frames stand in front of the oldest one. */
  #isWrapped = false;

  // The table of frames, by number: from the oldest that has not left to the newest.
  #first = 0;
  #next = 0;
  #waiting = 0;
  #mask = FIRST_FRAMES - 1;
  #offsets = new Int32Array(FIRST_FRAMES);
  #lengths = new Int32Array(FIRST_FRAMES);
  #successors = new Int32Array(FIRST_FRAMES);
  #flows = new Int16Array(FIRST_FRAMES);
  #times = new Float64Array(FIRST_FRAMES);

  // The frames of each flow, by number of the flow.
  readonly #heads = new Int32Array(FLOWS).fill(NO_FRAME);
  readonly #tails = new Int32Array(FLOWS);

  constructor(bytes: number) {
    this.#ring = Buffer.allocUnsafeSlow(bytes);
  }

  /** The memory in which frames stand; another one after `resize`. */
  get ring(): Buffer {
    return this.#ring;
  }

  get sizeBytes(): number {
    return this.#ring.length;
  }

  /** Bytes of all frames. */
  get usedBytes(): number {
    return this.#usedBytes;
  }

  /** Whether the flow has no frame. */
  isEmpty(flow: number): boolean {
    return this.#heads[flow] === NO_FRAME;
  }

  /** Where the flow's oldest frame stands in `ring`. Frames move in `put`, `compact` and `resize`. */
  offset(flow: number): number {
    return this.#offsets[this.#headIndex(flow)] ?? 0;
  }

  /** Bytes of the flow's oldest frame. */
  length(flow: number): number {
    return this.#lengths[this.#headIndex(flow)] ?? 0;
  }

  /** What `put` was told with the flow's oldest frame. */
  time(flow: number): number {
    return this.#times[this.#headIndex(flow)] ?? 0;
  }

  /** What `put` was told with the oldest frame of all. */
  get oldestTime(): number {
    return this.#times[this.#first & this.#mask] ?? 0;
  }

  /** Whether `put` finds room in one piece. */
  hasRoom(length: number): boolean {
    if (this.#usedBytes === 0) return length <= this.#ring.length;
    if (this.#frames() > this.#mask && !this.#mayHaveMoreFrames()) return false;
    const head = this.#offsets[this.#first & this.#mask] ?? 0;
    if (this.#isWrapped) return head - this.#tail >= length;
    return this.#ring.length - this.#tail >= length || head >= length;
  }

  /** Whether there is room after `compact`, and so much that it will not be needed again soon. */
  isWorthCompacting(length: number): boolean {
    if (this.#usedBytes + length > this.#ring.length * WORTHWHILE) return false;
    return this.#mayHaveMoreFrames() || this.#waiting <= this.#mask * WORTHWHILE;
  }

  /**
   * Copies `bytes[start, end)` behind the flow's other frames.
   *
   * @param length `hasRoom` has found room for it
   * @param time anything
   */
  put(bytes: Uint8Array, start: number, end: number, flow: number, time: number): void {
    const length = end - start;
    if (this.#usedBytes === 0) this.clear();
    if (this.#frames() > this.#mask) this.#growTable();
    if (!this.#isWrapped && this.#ring.length - this.#tail < length) {
      this.#isWrapped = true;
      this.#tail = 0;
    }
    const at = this.#tail;
    // `set` would need a view, which is an allocation.
    copyBytes.call(bytes, this.#ring, at, start, end);
    this.#tail = at + length;
    this.#usedBytes += length;
    const frame = this.#next;
    this.#next = (frame + 1) & NUMBER_MASK;
    this.#waiting += 1;
    const index = frame & this.#mask;
    this.#offsets[index] = at;
    this.#lengths[index] = length;
    this.#flows[index] = flow;
    this.#times[index] = time;
    this.#append(flow, frame);
  }

  /** The flow's oldest frame leaves. Its bytes stay readable until the next `put`, `compact` or `resize`. */
  remove(flow: number): void {
    const frame = this.#heads[flow] ?? NO_FRAME;
    const index = frame & this.#mask;
    const offset = this.#offsets[index] ?? 0;
    this.#heads[flow] = this.#successors[index] ?? NO_FRAME;
    this.#usedBytes -= this.#lengths[index] ?? 0;
    this.#waiting -= 1;
    this.#flows[index] = LEFT;
    if (frame !== this.#first) return;
    let first = frame;
    while (first !== this.#next && this.#flows[first & this.#mask] === LEFT) first = (first + 1) & NUMBER_MASK;
    this.#first = first;
    // The oldest frame may be one of those that stand in front.
    if (this.#isWrapped && (this.#offsets[first & this.#mask] ?? 0) < offset) this.#isWrapped = false;
  }

  /** The flow's oldest frame has lost bytes at its start. */
  cutFront(flow: number, bytes: number): void {
    const index = this.#headIndex(flow);
    this.#offsets[index] = (this.#offsets[index] ?? 0) + bytes;
    this.cutBack(flow, bytes);
  }

  /** The flow's oldest frame has lost bytes at its end. */
  cutBack(flow: number, bytes: number): void {
    const index = this.#headIndex(flow);
    this.#lengths[index] = (this.#lengths[index] ?? 0) - bytes;
    this.#usedBytes -= bytes;
  }

  /** Forgets every frame; keeps the memory. */
  clear(): void {
    if (this.#waiting > 0) this.#heads.fill(NO_FRAME);
    this.#waiting = 0;
    this.#usedBytes = 0;
    this.#first = this.#next;
    this.#tail = 0;
    this.#isWrapped = false;
  }

  /** Moves all frames together, so that all that is free is in one piece. Costs a copy of what is there. */
  compact(): void {
    const ring = this.#ring;
    let border = this.#first;
    if (this.#isWrapped) {
      const oldest = this.#offsets[this.#first & this.#mask] ?? 0;
      while (border !== this.#next && (this.#offsets[border & this.#mask] ?? 0) >= oldest) {
        border = (border + 1) & NUMBER_MASK;
      }
    }
    this.#tail = this.#moveDown(border, this.#next, ring);
    // The older ones go to the end of the memory, the last of them first.
    let end = ring.length;
    for (let frame = border; frame !== this.#first; ) {
      frame = (frame - 1) & NUMBER_MASK;
      const index = frame & this.#mask;
      if (this.#flows[index] === LEFT) continue;
      const offset = this.#offsets[index] ?? 0;
      const length = this.#lengths[index] ?? 0;
      end -= length;
      ring.copyWithin(end, offset, offset + length);
      this.#offsets[index] = end;
    }
    this.#renumber();
  }

  /** Moves all frames to memory of another size. @throws {VpnError} ERR_INVARIANT when they do not fit */
  resize(bytes: number): void {
    if (this.#usedBytes > bytes) throw new VpnError('ERR_INVARIANT', 'a queue was made smaller than what it holds');
    const ring = Buffer.allocUnsafeSlow(bytes);
    this.#tail = this.#moveDown(this.#first, this.#next, ring);
    this.#isWrapped = false;
    this.#ring = ring;
    this.#renumber();
  }

  /** Copies the frames from `from` up to `to` to the start of `target`, in order; returns where they end. */
  #moveDown(from: number, to: number, target: Buffer): number {
    const ring = this.#ring;
    let end = 0;
    for (let frame = from; frame !== to; frame = (frame + 1) & NUMBER_MASK) {
      const index = frame & this.#mask;
      if (this.#flows[index] === LEFT) continue;
      const offset = this.#offsets[index] ?? 0;
      const length = this.#lengths[index] ?? 0;
      if (ring !== target) ring.copy(target, end, offset, offset + length);
      else if (offset !== end) ring.copyWithin(end, offset, offset + length);
      this.#offsets[index] = end;
      end += length;
    }
    return end;
  }

  /** Closes the gaps in the table. */
  #renumber(): void {
    this.#heads.fill(NO_FRAME);
    let next = this.#first;
    for (let frame = this.#first; frame !== this.#next; frame = (frame + 1) & NUMBER_MASK) {
      const from = frame & this.#mask;
      const flow = this.#flows[from] ?? LEFT;
      if (flow === LEFT) continue;
      const to = next & this.#mask;
      this.#offsets[to] = this.#offsets[from] ?? 0;
      this.#lengths[to] = this.#lengths[from] ?? 0;
      this.#times[to] = this.#times[from] ?? 0;
      this.#flows[to] = flow;
      this.#append(flow, next);
      next = (next + 1) & NUMBER_MASK;
    }
    this.#next = next;
  }

  #append(flow: number, frame: number): void {
    this.#successors[frame & this.#mask] = NO_FRAME;
    if (this.#heads[flow] === NO_FRAME) this.#heads[flow] = frame;
    else this.#successors[(this.#tails[flow] ?? 0) & this.#mask] = frame;
    this.#tails[flow] = frame;
  }

  #headIndex(flow: number): number {
    return (this.#heads[flow] ?? 0) & this.#mask;
  }

  #frames(): number {
    return (this.#next - this.#first) & NUMBER_MASK;
  }

  #mayHaveMoreFrames(): boolean {
    return (this.#mask + 1) * 2 * LEAST_FRAME_BYTES <= this.#ring.length;
  }

  #growTable(): void {
    const mask = this.#mask * 2 + 1;
    this.#offsets = this.#grown(this.#offsets, new Int32Array(mask + 1));
    this.#lengths = this.#grown(this.#lengths, new Int32Array(mask + 1));
    this.#successors = this.#grown(this.#successors, new Int32Array(mask + 1));
    this.#flows = this.#grown(this.#flows, new Int16Array(mask + 1));
    this.#times = this.#grown(this.#times, new Float64Array(mask + 1));
    this.#mask = mask;
  }

  #grown<T extends Int16Array | Int32Array | Float64Array>(old: T, target: T): T {
    const mask = target.length - 1;
    for (let frame = this.#first; frame !== this.#next; frame = (frame + 1) & NUMBER_MASK) {
      target[frame & mask] = old[frame & this.#mask] ?? 0;
    }
    return target;
  }
}

/** Of a memory that is fuller than this, moving frames would give back little for what it costs. */
const WORTHWHILE = 3 / 4;

const copyBytes = Buffer.prototype.copy;
