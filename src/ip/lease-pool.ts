/**
 * The addresses that sessions lease.
 *
 * Hides how addresses are counted: one index stands for an IPv4 and an IPv6 address with the same host part. An owner
 * gets the index it had last for as long as nobody else needed it. A pool can be cut into shares of equal
 * blocks, from which new owners are served apart; one that is full borrows from the others. Memory is bounded by the leases held at once and
 * the number of owners remembered, however large the prefixes are. Nothing here knows of sessions or time.
 */

import { VpnError } from '../base/errors.ts';
import { addressAt, formatPrefix, type IpAddress, type Prefix, prefixContains, prefixSize } from './address.ts';

/** The addresses of a session: of each family that the pool has. Given back by `release` of this very object. */
export interface Lease {
  readonly v4?: IpAddress;
  readonly v6?: IpAddress;
}

export interface LeasePoolOptions {
  /** At most /30. Its network and broadcast addresses are never leased. */
  v4?: Prefix;
  /** At most /126. Its first address, the routers' anycast address, is never leased. */
  v6?: Prefix;
  /** How many owners without a lease are remembered. */
  rememberedOwners?: number;
  /** Into how many shares the pool is cut; default 1. A pool that is too small leaves the last ones empty. */
  shares?: number;
}

/** One part of a pool. */
interface Block {
  readonly first: number;
  readonly last: number;
  /** Free indexes with the owner that had each last, the longest free first. */
  readonly ownerOf: Map<number, string>;
  /** Free indexes that nobody is remembered for. */
  readonly free: number[];
  /** The lowest index that was never leased. */
  next: number;
}

interface Holding {
  readonly index: number;
  readonly owner: string;
}

/** The host part of the gateway's own addresses. */
const GATEWAY_INDEX = 1;
const REMEMBERED_OWNERS = 65_536;
/** Nobody is restored to a higher index, so that the free ones below stay few. */
const HIGHEST_RESTORED_INDEX = 2 ** 20;
/** A smaller block would be borrowing all the time. */
const MIN_BLOCK_SIZE = 8;

/** Leases addresses of one block per family. The first usable address of each is the gateway's. */
export class LeasePool {
  readonly gateway4: IpAddress | undefined;
  readonly gateway6: IpAddress | undefined;
  /** How many leases there can be at once. */
  readonly size: number;
  readonly #v4: Prefix | undefined;
  readonly #v6: Prefix | undefined;
  readonly #rememberedOwners: number;
  readonly #held = new Map<Lease, Holding>();
  readonly #blocks: readonly Block[];
  readonly #shares: number;
  /** Indexes that a block has, a power of two. */
  readonly #blockSize: number;
  /** What the blocks remember, the other way round. */
  readonly #indexOf = new Map<string, number>();

  /** @throws {VpnError} ERR_CONFIG_VALUE when there is no prefix, or one without room */
  constructor(options: LeasePoolOptions) {
    const { v4, v6 } = options;
    if (v4 === undefined && v6 === undefined) {
      throw new VpnError('ERR_CONFIG_VALUE', 'an address pool needs an IPv4 or an IPv6 prefix, found none');
    }
    this.#v4 = v4;
    this.#v6 = v6;
    this.#rememberedOwners = options.rememberedOwners ?? REMEMBERED_OWNERS;
    this.gateway4 = v4 && gatewayOf(v4, 4);
    this.gateway6 = v6 && gatewayOf(v6, 6);
    // Indexes are exact as numbers; a pool beyond 2^32 is never full.
    const last4 = v4 === undefined ? Number.POSITIVE_INFINITY : Number(prefixSize(v4)) - 2;
    const last6 = v6 === undefined ? Number.POSITIVE_INFINITY : Number(prefixSize(v6)) - 1;
    this.size = Math.min(last4, last6, 2 ** 32) - GATEWAY_INDEX;
    const room = 2 ** Math.ceil(Math.log2(this.size + GATEWAY_INDEX + 1));
    this.#shares = Math.max(1, options.shares ?? 1);
    const wanted = 2 ** Math.ceil(Math.log2(this.#shares));
    const count = Math.max(1, Math.min(wanted, Math.floor(room / MIN_BLOCK_SIZE)));
    this.#blockSize = room / count;
    this.#blocks = Array.from({ length: count }, (_, number) => {
      const first = Math.max(GATEWAY_INDEX + 1, number * this.#blockSize);
      const last = Math.min((number + 1) * this.#blockSize - 1, this.size + GATEWAY_INDEX);
      return { first, last, ownerOf: new Map(), free: [], next: first };
    });
  }

  /** The blocks of a share, per family. */
  prefixesOf(share: number): Prefix[] {
    const families = [this.#v4, this.#v6].filter((prefix) => prefix !== undefined);
    if (this.#blocks.length === 1) return share === 0 ? families : [];
    const bits = Math.log2(this.#blockSize);
    return this.#blocks.flatMap((_, number) => {
      if (number % this.#shares !== share) return [];
      return families.map((prefix) => ({
        address: addressAt(prefix, BigInt(number * this.#blockSize)),
        length: (prefix.address.version === 4 ? 32 : 128) - bits,
      }));
    });
  }

  /** The share that leased addresses belong to. */
  shareOf(lease: Lease): number {
    return this.#numberOf(this.#held.get(lease)?.index ?? this.#indexFor(lease) ?? 0) % this.#shares;
  }

  /**
   * Remembers owners of an earlier life of the pool, the longest away first; addresses that are not of this pool are
   * passed over. Of two owners of one address the later keeps it. Call it before the first lease.
   */
  restore(former: Iterable<readonly [owner: string, addresses: Lease]>): void {
    for (const [owner, addresses] of former) {
      const index = this.#indexFor(addresses);
      if (index === undefined || this.#indexOf.has(owner)) continue;
      const { ownerOf } = this.#blockAt(index);
      const earlier = ownerOf.get(index);
      if (earlier !== undefined) this.#indexOf.delete(earlier);
      ownerOf.delete(index);
      ownerOf.set(index, owner);
      this.#indexOf.set(owner, index);
      if (this.#indexOf.size > this.#rememberedOwners) {
        const longest = longestFree(ownerOf);
        this.#indexOf.delete(ownerOf.get(longest) ?? '');
        ownerOf.delete(longest);
      }
    }
    for (const block of this.#blocks) {
      let highest = block.first - 1;
      for (const index of block.ownerOf.keys()) highest = Math.max(highest, index);
      block.next = highest + 1;
      block.free.length = 0;
      for (let index = block.next - 1; index >= block.first; index--) {
        if (!block.ownerOf.has(index)) block.free.push(index);
      }
    }
  }

  /** How many leases are held. */
  get leased(): number {
    return this.#held.size;
  }

  /**
   * Leases addresses: the ones the owner had last if they are free, else ones that nobody is remembered for, else those
   * of the owner that has been away longest. An owner may hold several leases.
   *
   * @param share where addresses that are new to the owner come from, as long as it has any
   * @throws {VpnError} ERR_POOL_EXHAUSTED
   */
  lease(owner: string, share = 0): Lease {
    const index = this.#take(owner, share);
    const lease: Lease = {
      ...(this.#v4 && { v4: addressAt(this.#v4, BigInt(index)) }),
      ...(this.#v6 && { v6: addressAt(this.#v6, BigInt(index)) }),
    };
    this.#held.set(lease, { index, owner });
    return lease;
  }

  /** Gives a lease back. Idempotent. */
  release(lease: Lease): void {
    const holding = this.#held.get(lease);
    if (holding === undefined) return;
    this.#held.delete(lease);
    const { index, owner } = holding;
    const former = this.#indexOf.get(owner);
    if (former !== undefined) this.#forget(former);
    this.#indexOf.set(owner, index);
    const { ownerOf } = this.#blockAt(index);
    ownerOf.set(index, owner);
    if (this.#indexOf.size > this.#rememberedOwners) this.#forget(longestFree(ownerOf));
  }

  #take(owner: string, share: number): number {
    const former = this.#indexOf.get(owner);
    if (former !== undefined) {
      this.#indexOf.delete(owner);
      this.#blockAt(former).ownerOf.delete(former);
      return former;
    }
    const isOwn = (_: Block, number: number): boolean => number % this.#shares === share;
    const others = this.#blocks.filter((block, number) => !isOwn(block, number));
    const inOrder = [...this.#blocks.filter(isOwn), ...others];
    for (const block of inOrder) {
      // An index used before comes before a fresh one, so that the list of free ones stays short.
      const index = block.free.pop();
      if (index !== undefined) return index;
      if (block.next <= block.last) return block.next++;
    }
    for (const { ownerOf, free } of inOrder) {
      if (ownerOf.size === 0) continue;
      this.#forget(longestFree(ownerOf));
      const index = free.pop();
      if (index !== undefined) return index;
    }
    throw new VpnError('ERR_POOL_EXHAUSTED', `all ${this.size} addresses of the pool ${this.#describe()} are leased`, {
      details: { size: this.size },
    });
  }

  /** The index that stands for these addresses in this pool; undefined where there is none. */
  #indexFor({ v4, v6 }: Lease): number | undefined {
    const indexes = [
      ...(this.#v4 === undefined ? [] : [v4 && indexIn(this.#v4, v4)]),
      ...(this.#v6 === undefined ? [] : [v6 && indexIn(this.#v6, v6)]),
    ].filter((index) => index !== undefined);
    const [index] = indexes;
    const last = Math.min(this.size + GATEWAY_INDEX, HIGHEST_RESTORED_INDEX);
    if (index === undefined || indexes.some((other) => other !== index)) return undefined;
    return index > GATEWAY_INDEX && index <= last ? index : undefined;
  }

  #forget(index: number): void {
    const { ownerOf, free } = this.#blockAt(index);
    const owner = ownerOf.get(index);
    if (owner !== undefined) this.#indexOf.delete(owner);
    ownerOf.delete(index);
    free.push(index);
  }

  #numberOf(index: number): number {
    return Math.min(Math.floor(index / this.#blockSize), this.#blocks.length - 1);
  }

  #blockAt(index: number): Block {
    const block = this.#blocks[this.#numberOf(index)];
    if (block === undefined) throw new VpnError('ERR_INVARIANT', `there is no block for index ${index}`);
    return block;
  }

  #describe(): string {
    return [this.#v4, this.#v6].flatMap((prefix) => (prefix === undefined ? [] : [formatPrefix(prefix)])).join(' and ');
  }
}

function longestFree(ownerOf: ReadonlyMap<number, string>): number {
  for (const index of ownerOf.keys()) return index;
  throw new VpnError('ERR_INVARIANT', 'no owner is remembered');
}

/** The host part of an address; undefined outside the prefix. */
function indexIn(prefix: Prefix, address: IpAddress): number | undefined {
  if (!prefixContains(prefix, address)) return undefined;
  let index = 0n;
  for (const [at, byte] of address.bytes.entries())
    index = (index << 8n) | BigInt(byte ^ (prefix.address.bytes[at] ?? 0));
  return Number(index);
}

/** @throws {VpnError} ERR_CONFIG_VALUE */
function gatewayOf(prefix: Prefix, version: 4 | 6): IpAddress {
  const longest = version === 4 ? 30 : 126;
  if (prefix.address.version !== version || prefix.length > longest) {
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      `expected an IPv${version} pool of at most /${longest}, found ${formatPrefix(prefix)}`,
      { details: { found: formatPrefix(prefix) } },
    );
  }
  return addressAt(prefix, BigInt(GATEWAY_INDEX));
}
