/**
 * Prefixes to values, longest prefix first, looked up straight from a packet.
 *
 * Hides a `HostTable` for single addresses, which nearly all packets go to, and behind it a binary trie for the few
 * shorter prefixes. A lookup allocates nothing.
 */

import type { Prefix } from './address.ts';
import { readU8 } from './bytes.ts';
import { HostTable } from './host-table.ts';

interface Node<T> {
  zero: Node<T> | undefined;
  one: Node<T> | undefined;
  value: T | undefined;
}

/** A routing table of both versions. Values are not `undefined`. */
export class RouteTable<T extends NonNullable<unknown>> {
  readonly #hosts = new HostTable<T>();
  readonly #root4: Node<T> = createNode();
  readonly #root6: Node<T> = createNode();
  #count = 0;

  /** How many prefixes have a value. */
  get size(): number {
    return this.#hosts.size + this.#count;
  }

  /** Sets the value of a prefix, in place of the one it had. */
  set(prefix: Prefix, value: T): void {
    if (isHost(prefix)) {
      this.#hosts.set(prefix.address, value);
      return;
    }
    let node = this.#root(prefix.address.version);
    for (let depth = 0; depth < prefix.length; depth++) {
      if (bitAt(prefix.address.bytes, 0, depth) === 0) {
        node.zero ??= createNode();
        node = node.zero;
      } else {
        node.one ??= createNode();
        node = node.one;
      }
    }
    if (node.value === undefined) this.#count++;
    node.value = value;
  }

  /** Removes a prefix, of exactly this length. @returns whether it was there */
  delete(prefix: Prefix): boolean {
    if (isHost(prefix)) return this.#hosts.delete(prefix.address);
    const bytes = prefix.address.bytes;
    let node = this.#root(prefix.address.version);
    // The last node on the way that is needed for something else, and the branch below it that is not.
    let keep = node;
    let branch = 0;
    for (let depth = 0; depth < prefix.length; depth++) {
      const bit = bitAt(bytes, 0, depth);
      const next = bit === 0 ? node.zero : node.one;
      if (next === undefined) return false;
      if (depth === 0 || node.value !== undefined || (node.zero !== undefined && node.one !== undefined)) {
        keep = node;
        branch = bit;
      }
      node = next;
    }
    if (node.value === undefined) return false;
    node.value = undefined;
    this.#count--;
    if (node.zero === undefined && node.one === undefined && prefix.length > 0) {
      if (branch === 0) keep.zero = undefined;
      else keep.one = undefined;
    }
    return true;
  }

  /** The value of a prefix of exactly this length. */
  get(prefix: Prefix): T | undefined {
    const { bytes, version } = prefix.address;
    if (isHost(prefix)) return this.#hosts.lookup(bytes, 0, version);
    let node: Node<T> | undefined = this.#root(version);
    for (let depth = 0; node !== undefined && depth < prefix.length; depth++) {
      node = bitAt(bytes, 0, depth) === 0 ? node.zero : node.one;
    }
    return node?.value;
  }

  /**
   * The value of the longest prefix that holds the address of `version` at `offset`.
   *
   * @param version 4 or 6, as `ipVersion` tells
   */
  lookup(bytes: Uint8Array, offset: number, version: number): T | undefined {
    const host = this.#hosts.lookup(bytes, offset, version);
    if (host !== undefined || this.#count === 0) return host;
    let node: Node<T> | undefined = this.#root(version);
    let best: T | undefined;
    // A node at the depth of a whole address does not exist: hosts are in the other table.
    for (let depth = 0; node !== undefined; depth++) {
      if (node.value !== undefined) best = node.value;
      node = bitAt(bytes, offset, depth) === 0 ? node.zero : node.one;
    }
    return best;
  }

  #root(version: number): Node<T> {
    return version === 4 ? this.#root4 : this.#root6;
  }
}

function createNode<T>(): Node<T> {
  return { zero: undefined, one: undefined, value: undefined };
}

function isHost(prefix: Prefix): boolean {
  return prefix.length === prefix.address.bytes.length * 8;
}

function bitAt(bytes: Uint8Array, offset: number, depth: number): number {
  return (readU8(bytes, offset + (depth >>> 3)) >>> (7 - (depth & 7))) & 1;
}
