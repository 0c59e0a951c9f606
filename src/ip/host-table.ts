/**
 * Exact addresses to values, looked up straight from a packet.
 *
 * Hides two hash tables: a `Map` keyed by a 32-bit integer for IPv4, and for IPv6, whose addresses are no JavaScript
 * key, an open-addressing table of four 32-bit words a key. A lookup allocates nothing. Addresses in the table are our
 * own (leases, moved hosts), never chosen by a peer, so its hash needs no key.
 */

import type { IpAddress } from './address.ts';
import { readI32 } from './bytes.ts';

const WORDS = 4;
const SMALLEST = 16;

/** A table of single addresses of both versions. Values are not `undefined`. */
export class HostTable<T extends NonNullable<unknown>> {
  readonly #v4 = new Map<number, T>();
  /** Linear probing: slot i holds the words [4i, 4i + 4) of `#keys` and the value i; a free slot has no value. */
  #keys = new Int32Array(SMALLEST * WORDS);
  #values: (T | undefined)[] = new Array<T | undefined>(SMALLEST).fill(undefined);
  #count6 = 0;

  /** How many addresses have a value. */
  get size(): number {
    return this.#v4.size + this.#count6;
  }

  /** Sets the value of an address, in place of the one it had. */
  set(address: IpAddress, value: T): void {
    if (address.version === 4) {
      this.#v4.set(readI32(address.bytes, 0), value);
      return;
    }
    if ((this.#count6 + 1) * 2 > this.#values.length) this.#grow();
    const slot = this.#find(address.bytes, 0);
    if (this.#values[slot] === undefined) {
      this.#count6++;
      for (let word = 0; word < WORDS; word++) this.#keys[slot * WORDS + word] = readI32(address.bytes, word * 4);
    }
    this.#values[slot] = value;
  }

  /** Removes an address. @returns whether it was there */
  delete(address: IpAddress): boolean {
    if (address.version === 4) return this.#v4.delete(readI32(address.bytes, 0));
    let free = this.#find(address.bytes, 0);
    if (this.#values[free] === undefined) return false;
    // What was pushed behind the freed slot moves up, so that no search ends too early.
    const mask = this.#values.length - 1;
    for (let slot = (free + 1) & mask; this.#values[slot] !== undefined; slot = (slot + 1) & mask) {
      if (((slot - this.#homeOf(slot)) & mask) < ((slot - free) & mask)) continue;
      this.#keys.copyWithin(free * WORDS, slot * WORDS, (slot + 1) * WORDS);
      this.#values[free] = this.#values[slot];
      free = slot;
    }
    this.#values[free] = undefined;
    this.#count6--;
    return true;
  }

  /**
   * The value of the address of `version` at `offset`.
   *
   * @param version 4 or 6, as `ipVersion` tells
   */
  lookup(bytes: Uint8Array, offset: number, version: number): T | undefined {
    if (version === 4) return this.#v4.get(readI32(bytes, offset));
    return this.#count6 === 0 ? undefined : this.#values[this.#find(bytes, offset)];
  }

  /** The slot that holds the address, or the free one where it belongs. */
  #find(bytes: Uint8Array, offset: number): number {
    const a = readI32(bytes, offset);
    const b = readI32(bytes, offset + 4);
    const c = readI32(bytes, offset + 8);
    const d = readI32(bytes, offset + 12);
    const mask = this.#values.length - 1;
    let slot = mix(a, b, c, d) & mask;
    while (this.#values[slot] !== undefined) {
      const key = slot * WORDS;
      if (
        this.#keys[key + 3] === d &&
        this.#keys[key + 2] === c &&
        this.#keys[key + 1] === b &&
        this.#keys[key] === a
      ) {
        break;
      }
      slot = (slot + 1) & mask;
    }
    return slot;
  }

  #homeOf(slot: number): number {
    const key = slot * WORDS;
    const keys = this.#keys;
    return mix(keys[key] ?? 0, keys[key + 1] ?? 0, keys[key + 2] ?? 0, keys[key + 3] ?? 0) & (this.#values.length - 1);
  }

  #grow(): void {
    const keys = this.#keys;
    const values = this.#values;
    this.#keys = new Int32Array(keys.length * 2);
    this.#values = new Array<T | undefined>(values.length * 2).fill(undefined);
    const mask = this.#values.length - 1;
    for (const [old, value] of values.entries()) {
      if (value === undefined) continue;
      const key = old * WORDS;
      let slot = mix(keys[key] ?? 0, keys[key + 1] ?? 0, keys[key + 2] ?? 0, keys[key + 3] ?? 0) & mask;
      while (this.#values[slot] !== undefined) slot = (slot + 1) & mask;
      this.#keys.set(keys.subarray(key, key + WORDS), slot * WORDS);
      this.#values[slot] = value;
    }
  }
}

/** Spreads addresses that differ in a few low bits, as leases do, over the low bits of the result. */
function mix(a: number, b: number, c: number, d: number): number {
  let hash = Math.imul(a, 0x9e3779b1) ^ Math.imul(b, 0x85ebca6b) ^ Math.imul(c, 0xc2b2ae35) ^ Math.imul(d, 0x27d4eb2f);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return hash ^ (hash >>> 13);
}
