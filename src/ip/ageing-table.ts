/**
 * A table of keys of a fixed number of 32-bit words that are forgotten when nobody has mentioned them for a while.
 *
 * Hides open addressing with linear probing in typed arrays. Its size is fixed when it is made: what strangers say cannot
 * make it grow, and where their keys lie depends on a seed that they do not know. A row is named by its slot, which is good
 * until the next `insert`, `remove` or `sweep`. Nothing allocates after the constructor.
 */

export class AgeingTable {
  /** Values of a row. */
  readonly owner: Int32Array;
  readonly high: Int32Array;
  readonly low: Int32Array;
  /** When the row was last mentioned, in ticks; `FOREVER` for one that does not age. */
  readonly seen: Float64Array;
  readonly #words: number;
  readonly #capacity: number;
  readonly #mask: number;
  readonly #seed: number;
  readonly #keys: Int32Array;
  readonly #used: Uint8Array;
  #count = 0;

  /** @param capacity rows at most @param seed 32 random bits */
  constructor(words: 2 | 4, capacity: number, seed: number) {
    // At most half full: probes stay short.
    const slots = 2 ** Math.ceil(Math.log2(Math.max(8, capacity * 2)));
    this.#words = words;
    this.#capacity = capacity;
    this.#mask = slots - 1;
    this.#seed = seed | 0;
    this.#keys = new Int32Array(slots * words);
    this.#used = new Uint8Array(slots);
    this.owner = new Int32Array(slots);
    this.high = new Int32Array(slots);
    this.low = new Int32Array(slots);
    this.seen = new Float64Array(slots);
  }

  get size(): number {
    return this.#count;
  }

  /** The slot of a key, or -1. */
  find(a: number, b: number, c = 0, d = 0): number {
    const slot = this.#probe(a, b, c, d);
    return this.#used[slot] === 1 ? slot : -1;
  }

  /** Adds a key that is not there. @returns its slot, or -1 when the table is full */
  insert(a: number, b: number, c = 0, d = 0): number {
    if (this.#count >= this.#capacity) return -1;
    const slot = this.#probe(a, b, c, d);
    const at = slot * this.#words;
    const keys = this.#keys;
    keys[at] = a;
    keys[at + 1] = b;
    if (this.#words === 4) {
      keys[at + 2] = c;
      keys[at + 3] = d;
    }
    this.#used[slot] = 1;
    this.#count += 1;
    return slot;
  }

  /** A word of the key at a slot. */
  word(slot: number, index: number): number {
    return this.#keys[slot * this.#words + index] ?? 0;
  }

  remove(slot: number): void {
    const used = this.#used;
    const mask = this.#mask;
    let free = slot;
    // What was pushed behind the freed slot moves up, so that no search ends too early.
    for (let next = (free + 1) & mask; used[next] === 1; next = (next + 1) & mask) {
      if (((next - this.#homeOf(next)) & mask) < ((next - free) & mask)) continue;
      this.#move(next, free);
      free = next;
    }
    used[free] = 0;
    this.#count -= 1;
  }

  /**
   * Forgets what was last mentioned before `oldest`, or belongs to `owner`.
   *
   * @param forgotten told of each row while it is still there
   */
  sweep(oldest: number, owner: number, forgotten: (slot: number) => void): void {
    for (let slot = this.#mask; slot >= 0; slot--) {
      // A row may have moved up from behind: the slot is looked at again.
      while (this.#used[slot] === 1 && ((this.seen[slot] ?? 0) < oldest || this.owner[slot] === owner)) {
        forgotten(slot);
        this.remove(slot);
      }
    }
  }

  /** Slots that are in use. */
  *slots(): Generator<number> {
    for (let slot = 0; slot <= this.#mask; slot++) if (this.#used[slot] === 1) yield slot;
  }

  #move(from: number, to: number): void {
    this.#keys.copyWithin(to * this.#words, from * this.#words, (from + 1) * this.#words);
    this.owner[to] = this.owner[from] ?? 0;
    this.high[to] = this.high[from] ?? 0;
    this.low[to] = this.low[from] ?? 0;
    this.seen[to] = this.seen[from] ?? 0;
    this.#used[to] = 1;
  }

  #probe(a: number, b: number, c: number, d: number): number {
    const mask = this.#mask;
    const keys = this.#keys;
    const words = this.#words;
    let slot = this.#hash(a, b, c, d) & mask;
    while (this.#used[slot] === 1) {
      const at = slot * words;
      const isSame = keys[at] === a && keys[at + 1] === b;
      if (isSame && (words === 2 || (keys[at + 2] === c && keys[at + 3] === d))) break;
      slot = (slot + 1) & mask;
    }
    return slot;
  }

  #homeOf(slot: number): number {
    const at = slot * this.#words;
    const keys = this.#keys;
    const isLong = this.#words === 4;
    const c = isLong ? (keys[at + 2] ?? 0) : 0;
    const d = isLong ? (keys[at + 3] ?? 0) : 0;
    return this.#hash(keys[at] ?? 0, keys[at + 1] ?? 0, c, d) & this.#mask;
  }

  #hash(a: number, b: number, c: number, d: number): number {
    let hash = round(this.#seed, a);
    hash = round(hash, b);
    hash = round(hash, c);
    hash = round(hash, d);
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    return hash ^ (hash >>> 16);
  }
}

export const FOREVER = Number.POSITIVE_INFINITY;

/** MurmurHash3's. */
function round(hash: number, word: number): number {
  let mixed = Math.imul(word, 0xcc9e2d51);
  mixed = Math.imul((mixed << 15) | (mixed >>> 17), 0x1b873593);
  const joined = hash ^ mixed;
  return (Math.imul((joined << 13) | (joined >>> 19), 5) + 0xe6546b64) | 0;
}
