/**
 * Buffers of one or two sizes that are used again.
 *
 * Hides how many are kept. What is asked for and given back thousands of times a second must not be allocated each time: V8
 * answers memory outside of its heap by marking the whole heap (docs/decisions/0009).
 */

/** A buffer, and which part of it is in use: `bytes[start, end)`. */
export interface Chunk {
  readonly bytes: Uint8Array;
  start: number;
  end: number;
}

/** In front of what a chunk holds, for a header. */
const ROOM_BYTES = 16;
const MAX_KEPT = 256;

export class ChunkPool {
  readonly #lengthBytes: number;
  readonly #smallBytes: number;
  readonly #kept: Chunk[] = [];
  readonly #keptSmall: Chunk[] = [];

  /**
   * @param lengthBytes what one chunk can hold behind the room for a header
   * @param smallBytes what one for little can hold; default: there are none
   */
  constructor(lengthBytes: number, smallBytes = 0) {
    this.#lengthBytes = lengthBytes;
    this.#smallBytes = smallBytes;
  }

  /** What a chunk holds that `take` gives for so many bytes. */
  lengthFor(wanted: number): number {
    return wanted <= this.#smallBytes ? this.#smallBytes : this.#lengthBytes;
  }

  /** What this chunk can hold. */
  lengthOf(chunk: Chunk): number {
    return chunk.bytes.length - ROOM_BYTES;
  }

  /** An empty chunk. It begins behind the room for a header. @param wanted bytes that are to be put into it; it may hold fewer */
  take(wanted = this.#lengthBytes): Chunk {
    const length = this.lengthFor(wanted);
    const chunk = (length === this.#lengthBytes ? this.#kept : this.#keptSmall).pop();
    if (chunk === undefined) {
      return { bytes: Buffer.allocUnsafeSlow(ROOM_BYTES + length), start: ROOM_BYTES, end: ROOM_BYTES };
    }
    chunk.start = ROOM_BYTES;
    chunk.end = ROOM_BYTES;
    return chunk;
  }

  /** Nobody uses it any more. */
  release(chunk: Chunk): void {
    const kept = this.lengthOf(chunk) === this.#lengthBytes ? this.#kept : this.#keptSmall;
    if (kept.length < MAX_KEPT) kept.push(chunk);
  }
}

/** Puts as much of `bytes[start, end)` behind what the chunk holds as it takes; returns how much. */
export function appendTo(chunk: Chunk, bytes: Uint8Array, start: number, end: number): number {
  const length = Math.min(end - start, chunk.bytes.length - chunk.end);
  chunk.bytes.set(start === 0 && length === bytes.length ? bytes : bytes.subarray(start, start + length), chunk.end);
  chunk.end += length;
  return length;
}
