/**
 * The addresses that sessions lease.
 *
 * Hides how addresses are counted: one index stands for an IPv4 and an IPv6 address with the same host part. An owner
 * gets the index it had last for as long as nobody else needed it. A pool can be cut into shares of equal
 * blocks, from which new owners are served apart; one that is full borrows from the others. It can grow, twice as large at a time,
 * by blocks behind those that it has. Some addresses can be kept for those who ask for them by name. Memory is bounded by the leases
 * held at once, the number of owners remembered and of addresses kept, however large the prefixes are. Nothing here knows of sessions
 * or time.
 */

import { VpnError } from '../base/errors.ts';
import {
  addressAt,
  formatIp,
  formatPrefix,
  type IpAddress,
  type Prefix,
  prefixContains,
  prefixSize,
} from './address.ts';

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
  readonly share: number;
  /** Where it begins, and how many indexes it has, both of them a power of two or a multiple of it. */
  readonly base: number;
  readonly length: number;
  /** Of those that may be leased. */
  readonly first: number;
  last: number;
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
/** Nobody is restored to an index further within its block, so that the free ones below stay few. */
const MOST_RESTORED = 2 ** 20;
/** Addresses are kept for somebody among so many at the beginning of a pool, for the same reason. */
export const KEPT_INDEXES = 2 ** 20;
/** A smaller block would be borrowing all the time. */
const MIN_BLOCK_SIZE = 8;

/** Leases addresses of one block per family. The first usable address of each is the gateway's. */
export class LeasePool {
  readonly gateway4: IpAddress | undefined;
  readonly gateway6: IpAddress | undefined;
  #v4: Prefix | undefined;
  #v6: Prefix | undefined;
  #size = 0;
  /** Indexes that blocks have been made for, a power of two. */
  #room = 0;
  readonly #rememberedOwners: number;
  readonly #held = new Map<Lease, Holding>();
  /** In the order of their indexes. */
  readonly #blocks: Block[] = [];
  readonly #heldIndexes = new Set<number>();
  /** Indexes that are leased to nobody who does not want them. */
  #kept: ReadonlySet<number> = new Set();
  /** Who had each of these last. */
  readonly #keptBy = new Map<number, string>();
  readonly #shares: number;
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
    this.#shares = Math.max(1, options.shares ?? 1);
    this.#size = sizeOf(options);
    const room = roomOf(this.#size);
    this.#cut(0, room);
    this.#room = room;
  }

  /** How many leases there can be at once. */
  get size(): number {
    return this.#size;
  }

  /** Makes a block for each share, as far as there is room for several, of the indexes from `base` on. */
  #cut(base: number, room: number): void {
    const wanted = 2 ** Math.ceil(Math.log2(this.#shares));
    const count = Math.max(1, Math.min(wanted, Math.floor(room / MIN_BLOCK_SIZE)));
    const length = room / count;
    for (let number = 0; number < count; number++) {
      const start = base + number * length;
      const first = Math.max(GATEWAY_INDEX + 1, start);
      const last = Math.min(start + length - 1, this.#size + GATEWAY_INDEX);
      const share = number % this.#shares;
      this.#blocks.push({ share, base: start, length, first, last, ownerOf: new Map(), free: [], next: first });
    }
  }

  /** Why it cannot become a pool of these prefixes while it is in use; undefined: it can. */
  whyNotGrown({ v4, v6 }: Pick<LeasePoolOptions, 'v4' | 'v6'>): string | undefined {
    for (const [own, next] of [
      [this.#v4, v4],
      [this.#v6, v6],
    ] as const) {
      const isSame = own === undefined || next === undefined ? own === next : isSameOrLarger(own, next);
      if (isSame) continue;
      const wanted =
        own === undefined ? 'no other family' : `${formatPrefix(own)} or a larger network that begins alike`;
      return `expected ${wanted}, got ${next === undefined ? 'none' : formatPrefix(next)}`;
    }
    return undefined;
  }

  /** Makes room for more, behind what there is; leases stay. @throws {VpnError} ERR_CONFIG_VALUE where that cannot be */
  grow(prefixes: Pick<LeasePoolOptions, 'v4' | 'v6'>): void {
    const why = this.whyNotGrown(prefixes);
    if (why !== undefined) throw new VpnError('ERR_CONFIG_VALUE', `pool: ${why}`);
    this.#v4 = prefixes.v4;
    this.#v6 = prefixes.v6;
    this.#size = sizeOf(prefixes);
    // What was the last address may be one of many now.
    for (const block of this.#blocks) {
      block.last = Math.min(block.base + block.length - 1, this.#size + GATEWAY_INDEX);
    }
    for (const room = roomOf(this.#size); this.#room < room; this.#room *= 2) this.#cut(this.#room, this.#room);
  }

  /** Of each family that it has. */
  get prefixes(): Prefix[] {
    return [this.#v4, this.#v6].filter((prefix) => prefix !== undefined);
  }

  /** Whether an address lies in it, leased or not. */
  contains(address: IpAddress): boolean {
    const prefix = address.version === 4 ? this.#v4 : this.#v6;
    return prefix !== undefined && prefixContains(prefix, address);
  }

  /** The blocks of a share, per family. */
  prefixesOf(share: number): Prefix[] {
    const families = this.prefixes;
    if (this.#blocks.length === 1) return share === 0 ? families : [];
    return this.#blocks.flatMap((block) => {
      if (block.share !== share) return [];
      return families.map((prefix) => ({
        address: addressAt(prefix, BigInt(block.base)),
        length: (prefix.address.version === 4 ? 32 : 128) - Math.log2(block.length),
      }));
    });
  }

  /** The share that leased addresses belong to. */
  shareOf(lease: Lease): number {
    return this.#blockAt(this.#held.get(lease)?.index ?? this.#indexFor(lease) ?? 0).share;
  }

  /**
   * Remembers owners of an earlier life of the pool, the longest away first; addresses that are not of this pool are
   * passed over. Of two owners of one address the later keeps it. Call it before the first lease.
   */
  restore(former: Iterable<readonly [owner: string, addresses: Lease]>): void {
    for (const [owner, addresses] of former) {
      const index = this.#indexFor(addresses);
      if (index === undefined || this.#indexOf.has(owner)) continue;
      const { ownerOf, base } = this.#blockAt(index);
      if (index - base > MOST_RESTORED) continue;
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
        if (!block.ownerOf.has(index) && !this.#kept.has(index)) block.free.push(index);
      }
    }
  }

  /**
   * Keeps these addresses, in place of those that were kept before, for whoever wants them. Who has one of them already has it
   * until its release.
   */
  keep(prefixes: readonly Prefix[]): void {
    const former = this.#kept;
    this.#kept = new Set(this.#indexesOf(prefixes));
    for (const index of former) {
      if (this.#kept.has(index)) continue;
      this.#keptBy.delete(index);
      if (this.#heldIndexes.has(index)) this.#reach(index);
      else if (index < this.#blockAt(index).next) this.#blockAt(index).free.push(index);
    }
    for (const index of this.#kept) {
      const { ownerOf } = this.#blockAt(index);
      const owner = ownerOf.get(index);
      if (owner === undefined) continue;
      ownerOf.delete(index);
      this.#indexOf.delete(owner);
      this.#keptBy.set(index, owner);
    }
    for (const { free } of this.#blocks) {
      const left = free.filter((index) => !this.#kept.has(index));
      free.splice(0, free.length, ...left);
    }
  }

  /** Whether any address of a prefix is one that can be kept for somebody. */
  canKeep(prefix: Prefix): boolean {
    const [first, last] = this.#keptRange(prefix);
    return first <= last;
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
   * @param wanted one of these before any other, as long as one is free; the one that the owner had last before the others
   * @throws {VpnError} ERR_POOL_EXHAUSTED
   */
  lease(owner: string, share = 0, wanted: readonly Prefix[] = []): Lease {
    const index = this.#takeWanted(owner, wanted) ?? this.#take(owner, share);
    this.#heldIndexes.add(index);
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
    this.#heldIndexes.delete(index);
    if (this.#kept.has(index)) {
      this.#keptBy.set(index, owner);
      return;
    }
    const former = this.#indexOf.get(owner);
    if (former !== undefined) this.#forget(former);
    this.#indexOf.set(owner, index);
    const { ownerOf } = this.#blockAt(index);
    ownerOf.set(index, owner);
    if (this.#indexOf.size > this.#rememberedOwners) this.#forget(longestFree(ownerOf));
  }

  #takeWanted(owner: string, wanted: readonly Prefix[]): number | undefined {
    if (wanted.length === 0) return undefined;
    const free = this.#indexesOf(wanted).filter((index) => !this.#heldIndexes.has(index));
    const index =
      free.find((one) => this.#keptBy.get(one) === owner || this.#blockAt(one).ownerOf.get(one) === owner) ??
      free.find((one) => !this.#keptBy.has(one)) ??
      free[0];
    if (index === undefined || this.#kept.has(index)) return index;
    const block = this.#blockAt(index);
    const former = block.ownerOf.get(index);
    if (former !== undefined) this.#indexOf.delete(former);
    block.ownerOf.delete(index);
    this.#reach(index);
    const at = block.free.indexOf(index);
    if (at >= 0) block.free.splice(at, 1);
    return index;
  }

  /** All below an index that is leased out of turn are free, and no more next. */
  #reach(index: number): void {
    const block = this.#blockAt(index);
    for (; block.next <= index; block.next++) {
      if (block.next !== index && !this.#kept.has(block.next)) block.free.push(block.next);
    }
  }

  #take(owner: string, share: number): number {
    const former = this.#indexOf.get(owner);
    if (former !== undefined) {
      this.#indexOf.delete(owner);
      this.#blockAt(former).ownerOf.delete(former);
      return former;
    }
    const others = this.#blocks.filter((block) => block.share !== share);
    const inOrder = [...this.#blocks.filter((block) => block.share === share), ...others];
    for (const block of inOrder) {
      // An index used before comes before a fresh one, so that the list of free ones stays short.
      const index = block.free.pop();
      if (index !== undefined) return index;
      while (block.next <= block.last) {
        const next = block.next++;
        if (!this.#kept.has(next)) return next;
      }
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
    if (index === undefined || indexes.some((other) => other !== index)) return undefined;
    return index > GATEWAY_INDEX && index <= this.size + GATEWAY_INDEX ? index : undefined;
  }

  /** The indexes of the addresses of this pool that these prefixes hold. */
  #indexesOf(prefixes: readonly Prefix[]): number[] {
    const found = new Set<number>();
    for (const prefix of prefixes) {
      const [first, end] = this.#keptRange(prefix);
      for (let index = first; index <= end; index++) found.add(index);
    }
    return [...found];
  }

  /** The first and the last index that a prefix can keep; there are none where the last is the lower. */
  #keptRange(prefix: Prefix): [first: number, last: number] {
    const own = prefix.address.version === 4 ? this.#v4 : this.#v6;
    const first = own === undefined ? undefined : indexIn(own, prefix.address);
    if (first === undefined) return [0, -1];
    const last = Math.min(this.size + GATEWAY_INDEX, KEPT_INDEXES, first + Number(prefixSize(prefix)) - 1);
    return [Math.max(first, GATEWAY_INDEX + 1), last];
  }

  #forget(index: number): void {
    const { ownerOf, free } = this.#blockAt(index);
    const owner = ownerOf.get(index);
    if (owner !== undefined) this.#indexOf.delete(owner);
    ownerOf.delete(index);
    free.push(index);
  }

  #blockAt(index: number): Block {
    const block = this.#blocks.findLast(({ base }) => base <= index);
    if (block === undefined) throw new VpnError('ERR_INVARIANT', `there is no block for index ${index}`);
    return block;
  }

  #describe(): string {
    return [this.#v4, this.#v6].flatMap((prefix) => (prefix === undefined ? [] : [formatPrefix(prefix)])).join(' and ');
  }
}

/** How many indexes can be leased. They are exact as numbers; of a larger pool the first 2^32 are enough, which shares cut evenly. */
function sizeOf({ v4, v6 }: Pick<LeasePoolOptions, 'v4' | 'v6'>): number {
  const last4 = v4 === undefined ? Number.POSITIVE_INFINITY : Number(prefixSize(v4)) - 2;
  const last6 = v6 === undefined ? Number.POSITIVE_INFINITY : Number(prefixSize(v6)) - 1;
  return Math.min(last4, last6, 2 ** 32 - 1) - GATEWAY_INDEX;
}

function roomOf(size: number): number {
  return 2 ** Math.ceil(Math.log2(size + GATEWAY_INDEX + 1));
}

/** Whether every address has the same index in the other prefix. */
function isSameOrLarger(prefix: Prefix, other: Prefix): boolean {
  return other.length <= prefix.length && formatIp(prefix.address) === formatIp(other.address);
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
