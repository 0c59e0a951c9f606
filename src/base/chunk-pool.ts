/**
 * Buffers of one size that are used again.
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
  readonly #kept: Chunk[] = [];

  /** @param lengthBytes what one chunk can hold behind the room for a header */
  constructor(lengthBytes: number) {
    this.#lengthBytes = lengthBytes;
  }

  /** An empty chunk. It begins behind the room for a header. */
  take(): Chunk {
    const chunk = this.#kept.pop();
    if (chunk === undefined) {
      return { bytes: Buffer.allocUnsafeSlow(ROOM_BYTES + this.#lengthBytes), start: ROOM_BYTES, end: ROOM_BYTES };
    }
    chunk.start = ROOM_BYTES;
    chunk.end = ROOM_BYTES;
    return chunk;
  }

  /** Nobody uses it any more. */
  release(chunk: Chunk): void {
    if (this.#kept.length < MAX_KEPT) this.#kept.push(chunk);
  }
}

/** Puts as much of `bytes[start, end)` behind what the chunk holds as it takes; returns how much. */
export function appendTo(chunk: Chunk, bytes: Uint8Array, start: number, end: number): number {
  const length = Math.min(end - start, chunk.bytes.length - chunk.end);
  chunk.bytes.set(start === 0 && length === bytes.length ? bytes : bytes.subarray(start, start + length), chunk.end);
  chunk.end += length;
  return length;
}
