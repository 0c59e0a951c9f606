/**
 * What the streams of one connection hold, and which of them gives when there is no more.
 *
 * Hides chunks and their sizes, and who is cut off: of streams that are not read, those that hold the most. Credit cannot be
 * called back, so what every stream may send before anybody has read is bounded only here, by memory that is really held. Must
 * not know in which direction bytes go.
 */

import { type Chunk, ChunkPool } from '../base/chunk-pool.ts';
import { MAX_STREAM_DATA_BYTES } from './stream-frame.ts';

/** For streams that say little: thousands may have something waiting at once. */
const SMALL_BYTES = 4096;
const CHUNKS = new ChunkPool(MAX_STREAM_DATA_BYTES, SMALL_BYTES);

/** Whose memory it is. */
export interface MemoryLimit {
  /** There is little left: no window grows, and wide ones shrink. */
  readonly isTight: boolean;
  /** The connection's streams hold so many bytes. @returns false: they may not; always true for fewer than before */
  hold(bytes: number): boolean;
}

/** A stream that holds chunks, in either direction. */
export interface MemoryHolder {
  heldBytes: number;
  /** It takes nothing any more. */
  isLeaving: boolean;
  /** Breaks it at both ends, and gives back all that it holds. */
  cut(): void;
}

export class StreamMemory {
  readonly #limit: MemoryLimit | undefined;
  /** All that may hold something: a set that changes with every chunk would keep the collector busy. */
  readonly #holders = new Set<MemoryHolder>();
  #heldBytes = 0;
  /** What is given back is said once, at the end. */
  #isShedding = false;

  /** @param limit default: there is none */
  constructor(limit: MemoryLimit | undefined) {
    this.#limit = limit;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  get isTight(): boolean {
    return this.#limit?.isTight === true;
  }

  /** Before it takes anything. */
  join(holder: MemoryHolder): void {
    this.#holders.add(holder);
  }

  /** It takes nothing any more. What it holds is still known. */
  leave(holder: MemoryHolder): void {
    if (holder.heldBytes === 0) this.#holders.delete(holder);
    else holder.isLeaving = true;
  }

  /**
   * An empty chunk; where there is no memory, some streams of this connection are cut for it.
   *
   * @param wanted bytes that are to be put into it; it may hold fewer
   * @returns undefined: the stream that asks has been cut
   */
  take(holder: MemoryHolder, wanted: number): Chunk | undefined {
    const length = CHUNKS.lengthFor(wanted);
    if (this.#limit?.hold(this.#heldBytes + length) === false) {
      const held = holder.heldBytes;
      this.shed();
      this.#limit.hold(this.#heldBytes);
      if (held > 0 && holder.heldBytes === 0) return undefined;
      if (!this.#limit.hold(this.#heldBytes + length)) {
        holder.cut();
        return undefined;
      }
    }
    this.#heldBytes += length;
    holder.heldBytes += length;
    return CHUNKS.take(wanted);
  }

  /** The chunk counts no longer; it is still in use. */
  discount(holder: MemoryHolder, chunk: Chunk): void {
    const length = CHUNKS.lengthOf(chunk);
    this.#heldBytes -= length;
    holder.heldBytes -= length;
    if (holder.isLeaving && holder.heldBytes === 0) this.#holders.delete(holder);
    if (!this.#isShedding) this.#limit?.hold(this.#heldBytes);
  }

  /** Nobody uses a chunk any more that has been discounted. */
  reuse(chunk: Chunk): void {
    CHUNKS.release(chunk);
  }

  /** Nobody uses the chunk any more. */
  release(holder: MemoryHolder, chunk: Chunk): void {
    this.discount(holder, chunk);
    CHUNKS.release(chunk);
  }

  /** Gives back at least half of what is held: those that hold the most are cut. The limit is not told. */
  shed(): void {
    const most = this.#heldBytes / 2;
    this.#isShedding = true;
    const holding = [...this.#holders].filter(({ heldBytes }) => heldBytes > 0);
    for (const holder of holding.sort((a, b) => b.heldBytes - a.heldBytes)) {
      if (this.#heldBytes <= most) break;
      holder.cut();
    }
    this.#isShedding = false;
  }
}
