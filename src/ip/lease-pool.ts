/**
 * The addresses that sessions lease.
 *
 * Hides how addresses are counted: one index stands for an IPv4 and an IPv6 address with the same host part. An owner
 * gets the index it had last for as long as nobody else needed it. Memory is bounded by the leases held at once and the
 * number of owners remembered, however large the prefixes are. Nothing here knows of sessions or time.
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
  /** Free indexes with the owner that had each last, the longest free first, and the same the other way round. */
  readonly #ownerOf = new Map<number, string>();
  readonly #indexOf = new Map<string, number>();
  /** Free indexes that nobody is remembered for. */
  readonly #free: number[] = [];
  /** The lowest index that was never leased. */
  #next = GATEWAY_INDEX + 1;

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
  }

  /**
   * Remembers owners of an earlier life of the pool, the longest away first; addresses that are not of this pool are
   * passed over. Of two owners of one address the later keeps it. Call it before the first lease.
   */
  restore(former: Iterable<readonly [owner: string, addresses: Lease]>): void {
    for (const [owner, addresses] of former) {
      const index = this.#indexFor(addresses);
      if (index === undefined || this.#indexOf.has(owner)) continue;
      const earlier = this.#ownerOf.get(index);
      if (earlier !== undefined) this.#indexOf.delete(earlier);
      this.#ownerOf.delete(index);
      this.#ownerOf.set(index, owner);
      this.#indexOf.set(owner, index);
      if (this.#ownerOf.size > this.#rememberedOwners) {
        const longest = this.#longestFree();
        this.#indexOf.delete(this.#ownerOf.get(longest) ?? '');
        this.#ownerOf.delete(longest);
      }
    }
    let highest = GATEWAY_INDEX;
    for (const index of this.#ownerOf.keys()) highest = Math.max(highest, index);
    this.#next = highest + 1;
    this.#free.length = 0;
    for (let index = this.#next - 1; index > GATEWAY_INDEX; index--) {
      if (!this.#ownerOf.has(index)) this.#free.push(index);
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
   * @throws {VpnError} ERR_POOL_EXHAUSTED
   */
  lease(owner: string): Lease {
    const index = this.#take(owner);
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
    this.#ownerOf.set(index, owner);
    if (this.#ownerOf.size > this.#rememberedOwners) this.#forget(this.#longestFree());
  }

  #take(owner: string): number {
    const former = this.#indexOf.get(owner);
    if (former !== undefined) {
      this.#indexOf.delete(owner);
      this.#ownerOf.delete(former);
      return former;
    }
    // An index used before comes before a fresh one, so that the list of free ones stays short.
    if (this.#free.length === 0 && this.#next <= this.size + GATEWAY_INDEX) return this.#next++;
    if (this.#free.length === 0 && this.#ownerOf.size > 0) this.#forget(this.#longestFree());
    const index = this.#free.pop();
    if (index === undefined) {
      throw new VpnError(
        'ERR_POOL_EXHAUSTED',
        `all ${this.size} addresses of the pool ${this.#describe()} are leased`,
        {
          details: { size: this.size },
        },
      );
    }
    return index;
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

  #longestFree(): number {
    for (const index of this.#ownerOf.keys()) return index;
    throw new VpnError('ERR_INVARIANT', 'no owner is remembered');
  }

  #forget(index: number): void {
    const owner = this.#ownerOf.get(index);
    if (owner !== undefined) this.#indexOf.delete(owner);
    this.#ownerOf.delete(index);
    this.#free.push(index);
  }

  #describe(): string {
    return [this.#v4, this.#v6].flatMap((prefix) => (prefix === undefined ? [] : [formatPrefix(prefix)])).join(' and ');
  }
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
