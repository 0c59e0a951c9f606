/**
 * A switch between the clients of one worker and the bridge that they all share.
 *
 * Hides who is where: which MAC address is at which port and which IP address is whose, learnt from what goes by, forgotten
 * with age, bounded in size. A client's port has a MAC address of its own from the start. Every frame gets one verdict: where
 * it goes, or why it does not. What a client says in another's name is dropped, whether the other is a client or a host on
 * the bridge that has been heard lately. Time comes in ticks. Pure; per frame nothing is allocated.
 *
 * @see docs/protocol.md#REQ-ETHERNET-003, docs/decisions/0026-ethernet-by-a-switch-in-each-worker.md
 */

import type { IpAddress } from './address.ts';
import { AgeingTable, FOREVER } from './ageing-table.ts';
import { readI32, readU16 } from './bytes.ts';
import { DropReason } from './drop-reason.ts';
import {
  checkFrame,
  EtherType,
  type FrameFacts,
  findDhcpAck,
  inspectFrame,
  isGroupAddress,
  isLinkLocal6,
  isUnspecified,
} from './ethernet.ts';
import type { Lease } from './lease-pool.ts';

/** A verdict that is neither a port's number nor negative (a `DropReason` with its sign changed). */
export const Verdict = {
  /** To the bridge. */
  bridge: 0x1_0000,
  /** To every client but the sender; from a client also to the bridge. */
  everybody: 0x1_0001,
} as const;

/** What a client may have and do. Ticks are what `handleTick` is called in: seconds. */
export interface SwitchLimits {
  /** MAC addresses of one client, its own included. */
  macsPerClient: number;
  /** IP addresses of one client that are learnt. */
  addressesPerClient: number;
  /** MAC addresses, and IP addresses, that are known at once. */
  tableSize: number;
  /** Ticks after which one that is not heard of is forgotten. */
  ageTicks: number;
  /** Broadcasts and multicasts of one client in a tick. */
  broadcasts: number;
  /** Broadcasts and multicasts from the bridge in a tick. */
  floods: number;
}

export interface SwitchOptions {
  mtu: number;
  limits: SwitchLimits;
  /** Frames go from client to client. */
  clientToClient: boolean;
  /** Types that pass besides IPv4, IPv6 and ARP. */
  protocols: readonly number[];
  /** IP addresses that no client may have: routers, the host's own. */
  reserved: readonly IpAddress[];
  /** 32 random bits. */
  seed: number;
}

export interface PortOptions {
  /** The client's own MAC address, 6 bytes. */
  mac: Uint8Array;
  /** What it may send from; undefined: what it is the first to use. */
  lease: Lease | undefined;
}

interface Port {
  readonly mac: Uint8Array;
  readonly lease: Lease | undefined;
  macs: number;
  addresses: number;
  broadcasts: number;
}

const BRIDGE = -1;
const RESERVED = -2;
const NOBODY = -3;
/** While an address was heard elsewhere so many ticks ago, no client may take it over. */
const CLAIM_TICKS = 30;
const V4_MAPPED = 0xffff;

export class EthernetSwitch {
  readonly #options: SwitchOptions;
  readonly #limits: SwitchLimits;
  readonly #protocols: ReadonlySet<number>;
  /** By number; a gap is a free one. */
  readonly #ports: (Port | undefined)[] = [];
  /** Owner: a port, or BRIDGE. */
  readonly #macs: AgeingTable;
  /** Owner: a port, BRIDGE or RESERVED; high and low: the MAC address that it belongs to. */
  readonly #addresses: AgeingTable;
  readonly #facts: FrameFacts = { type: 0, version: 0, claim: 0, target: 0 };
  #now = 0;
  #floods: number;

  constructor(options: SwitchOptions) {
    this.#options = options;
    this.#limits = options.limits;
    this.#protocols = new Set(options.protocols);
    this.#macs = new AgeingTable(2, options.limits.tableSize, options.seed);
    this.#addresses = new AgeingTable(4, options.limits.tableSize, Math.imul(options.seed, 0x9e3779b1));
    this.#floods = options.limits.floods;
    for (const { bytes, version } of options.reserved) {
      const slot = this.#insertAddress(bytes, 0, version);
      if (slot >= 0) this.#settleAddress(slot, RESERVED, 0, 0, FOREVER);
    }
  }

  /** How many MAC and IP addresses are known. */
  get sizes(): { macs: number; addresses: number } {
    return { macs: this.#macs.size, addresses: this.#addresses.size };
  }

  /** A new client. What was known of its MAC address elsewhere is forgotten: it has moved. @returns the port's number */
  openPort({ mac, lease }: PortOptions): number {
    const free = this.#ports.indexOf(undefined);
    const number = free < 0 ? this.#ports.length : free;
    const port = { mac, lease, macs: 1, addresses: 0, broadcasts: this.#limits.broadcasts };
    this.#ports[number] = port;
    const high = readU16(mac, 0);
    const low = readI32(mac, 2);
    const known = this.#macs.find(high, low);
    if (known >= 0) this.#forgetMac(known);
    const slot = this.#macs.insert(high, low);
    // In a full table the oldest stranger would have to go; the client's own frames make room as they age.
    if (slot >= 0) {
      this.#macs.owner[slot] = number;
      this.#macs.seen[slot] = FOREVER;
    }
    return number;
  }

  /** The client is gone, and all that was known of it. */
  closePort(number: number): void {
    this.#ports[number] = undefined;
    this.#macs.sweep(Number.NEGATIVE_INFINITY, number, NOTHING);
    this.#addresses.sweep(Number.NEGATIVE_INFINITY, number, NOTHING);
  }

  /** IP addresses that belong to the MAC address of a port. Allocates. */
  addressesOf(number: number): Uint8Array[] {
    const mac = this.#ports[number]?.mac;
    if (mac === undefined) return [];
    const table = this.#addresses;
    const [high, low] = [readU16(mac, 0), readI32(mac, 2)];
    const mine = [...table.slots()].filter((slot) => table.high[slot] === high && table.low[slot] === low);
    return mine.map((slot) => addressAt(table, slot));
  }

  /** Once a second: what is old is forgotten, and everybody may broadcast again. */
  handleTick(): void {
    this.#now += 1;
    this.#floods = this.#limits.floods;
    for (const port of this.#ports) if (port !== undefined) port.broadcasts = this.#limits.broadcasts;
    const oldest = this.#now - this.#limits.ageTicks;
    this.#macs.sweep(oldest, NOBODY, this.#macForgotten);
    this.#addresses.sweep(oldest, NOBODY, this.#addressForgotten);
  }

  /** The verdict on a frame of a client. @returns a port's number, a `Verdict`, or a `DropReason` with its sign changed */
  fromClient(number: number, bytes: Uint8Array, offset: number, length: number): number {
    const port = this.#ports[number];
    if (port === undefined) return -DropReason.noSession;
    let reason = checkFrame(bytes, offset, length, this.#options.mtu, this.#protocols);
    if (reason !== DropReason.none) return -reason;
    const facts = this.#facts;
    reason = inspectFrame(bytes, offset, length, facts);
    if (reason !== DropReason.none) return -reason;
    const high = readU16(bytes, offset + 6);
    const low = readI32(bytes, offset + 8);
    reason = this.#claimMac(port, number, high, low);
    if (reason !== DropReason.none) return -reason;
    if (facts.version !== 0) {
      reason = this.#claimAddress(port, number, high, low, bytes, facts.claim, facts.version);
      if (reason === DropReason.none && facts.target !== 0) {
        reason = this.#claimAddress(port, number, high, low, bytes, facts.target, 6);
      }
      if (reason !== DropReason.none) return -reason;
    }
    if (isGroupAddress(bytes, offset)) {
      if (port.broadcasts <= 0) return -DropReason.broadcastRate;
      port.broadcasts -= 1;
      return this.#options.clientToClient ? Verdict.everybody : Verdict.bridge;
    }
    const slot = this.#macs.find(readU16(bytes, offset), readI32(bytes, offset + 2));
    const owner = slot < 0 ? BRIDGE : (this.#macs.owner[slot] ?? BRIDGE);
    if (owner === BRIDGE) return Verdict.bridge;
    if (owner === number) return -DropReason.sameSide;
    return this.#options.clientToClient ? owner : -DropReason.clientIsolated;
  }

  /** The verdict on a frame from the bridge; as `fromClient`. */
  fromBridge(bytes: Uint8Array, offset: number, length: number): number {
    const reason = checkFrame(bytes, offset, length, this.#options.mtu, this.#protocols);
    if (reason !== DropReason.none) return -reason;
    const high = readU16(bytes, offset + 6);
    const low = readI32(bytes, offset + 8);
    const source = this.#macs.find(high, low);
    if (source < 0) this.#learnMac(high, low);
    else if (this.#macs.owner[source] !== BRIDGE) return -DropReason.macSpoofed;
    else this.#macs.seen[source] = this.#now;
    this.#learnFromBridge(bytes, offset, length);
    if (isGroupAddress(bytes, offset)) {
      if (this.#floods <= 0) return -DropReason.floodRate;
      this.#floods -= 1;
      return Verdict.everybody;
    }
    const slot = this.#macs.find(readU16(bytes, offset), readI32(bytes, offset + 2));
    const owner = slot < 0 ? NOBODY : (this.#macs.owner[slot] ?? NOBODY);
    if (owner === NOBODY) return -DropReason.noSession;
    return owner === BRIDGE ? -DropReason.sameSide : owner;
  }

  #claimMac(port: Port, number: number, high: number, low: number): DropReason {
    const macs = this.#macs;
    const slot = macs.find(high, low);
    if (slot >= 0) {
      if (macs.owner[slot] === number) {
        if (macs.seen[slot] !== FOREVER) macs.seen[slot] = this.#now;
        return DropReason.none;
      }
      const isStale = macs.owner[slot] === BRIDGE && this.#now - (macs.seen[slot] ?? 0) > CLAIM_TICKS;
      if (!isStale) return DropReason.macSpoofed;
      if (port.macs >= this.#limits.macsPerClient) return DropReason.macLimit;
      macs.owner[slot] = number;
      macs.seen[slot] = this.#now;
      port.macs += 1;
      return DropReason.none;
    }
    // Its own address, for which there was no room when it came.
    const isOwn = high === readU16(port.mac, 0) && low === readI32(port.mac, 2);
    if (!isOwn && port.macs >= this.#limits.macsPerClient) return DropReason.macLimit;
    const fresh = macs.insert(high, low);
    if (fresh < 0) return DropReason.macTableFull;
    macs.owner[fresh] = number;
    macs.seen[fresh] = isOwn ? FOREVER : this.#now;
    if (!isOwn) port.macs += 1;
    return DropReason.none;
  }

  #claimAddress(
    port: Port,
    number: number,
    high: number,
    low: number,
    bytes: Uint8Array,
    at: number,
    version: number,
  ): DropReason {
    if (isUnspecified(bytes, at, version)) return DropReason.none;
    const { lease } = port;
    if (lease !== undefined && !(version === 6 && isLinkLocal6(bytes, at))) {
      const own = version === 4 ? lease.v4 : lease.v6;
      return own !== undefined && isSame(own.bytes, bytes, at) ? DropReason.none : DropReason.addressSpoofed;
    }
    const first = bytes[at] ?? 0;
    if (version === 4 ? first === 127 || first >= 0xe0 : first === 0xff) return DropReason.addressSpoofed;
    const table = this.#addresses;
    let slot = this.#findAddress(bytes, at, version);
    if (slot >= 0) {
      if (table.high[slot] === high && table.low[slot] === low) {
        // The client has moved here, or is heard again.
        if (table.owner[slot] !== number) this.#settleAddress(slot, number, high, low, this.#now);
        else table.seen[slot] = this.#now;
        return DropReason.none;
      }
      const isStale = table.owner[slot] !== RESERVED && this.#now - (table.seen[slot] ?? 0) > CLAIM_TICKS;
      if (!isStale) return DropReason.addressSpoofed;
    }
    if (table.owner[slot] !== number && port.addresses >= this.#limits.addressesPerClient) {
      return DropReason.addressLimit;
    }
    if (slot < 0) slot = this.#insertAddress(bytes, at, version);
    if (slot < 0) return DropReason.macTableFull;
    this.#settleAddress(slot, number, high, low, this.#now);
    return DropReason.none;
  }

  #learnMac(high: number, low: number): void {
    const slot = this.#macs.insert(high, low);
    // Nobody is cut off by a full table: what is not known is at the bridge.
    if (slot < 0) return;
    this.#macs.owner[slot] = BRIDGE;
    this.#macs.seen[slot] = this.#now;
  }

  /** Whose IP addresses are whose, from ARP and from DHCP servers, which are at the bridge. */
  #learnFromBridge(bytes: Uint8Array, offset: number, length: number): void {
    const facts = this.#facts;
    const type = readU16(bytes, offset + 12);
    if (type === EtherType.arp) {
      if (inspectFrame(bytes, offset, length, facts) === DropReason.none) {
        this.#learnAddress(bytes, facts.claim, 4, readU16(bytes, offset + 6), readI32(bytes, offset + 8), false);
      }
      return;
    }
    if (type === EtherType.ipv6) {
      const isAdvertisement = inspectFrame(bytes, offset, length, facts) === DropReason.none && facts.target !== 0;
      if (isAdvertisement) {
        this.#learnAddress(bytes, facts.target, 6, readU16(bytes, offset + 6), readI32(bytes, offset + 8), false);
      }
      return;
    }
    const ack = findDhcpAck(bytes, offset, length);
    if (ack !== 0) this.#learnAddress(bytes, ack + 16, 4, readU16(bytes, ack + 28), readI32(bytes, ack + 30), true);
  }

  /** @param isGiven by a DHCP server: its word counts more than who was first */
  #learnAddress(bytes: Uint8Array, at: number, version: number, high: number, low: number, isGiven: boolean): void {
    if (isUnspecified(bytes, at, version)) return;
    const table = this.#addresses;
    const mac = this.#macs.find(high, low);
    const owner = mac < 0 ? BRIDGE : (this.#macs.owner[mac] ?? BRIDGE);
    let slot = this.#findAddress(bytes, at, version);
    if (slot >= 0) {
      if (table.owner[slot] === RESERVED) return;
      const isSameMac = table.high[slot] === high && table.low[slot] === low;
      const isStale = this.#now - (table.seen[slot] ?? 0) > CLAIM_TICKS;
      if (!isSameMac && !isGiven && !isStale && (table.owner[slot] ?? BRIDGE) !== BRIDGE) return;
    } else slot = this.#insertAddress(bytes, at, version);
    if (slot >= 0) this.#settleAddress(slot, owner, high, low, this.#now);
  }

  /** An address belongs to a MAC address, which is at a port or at the bridge. */
  #settleAddress(slot: number, owner: number, high: number, low: number, seen: number): void {
    const table = this.#addresses;
    const former = this.#ports[table.owner[slot] ?? BRIDGE];
    if (former !== undefined) former.addresses -= 1;
    const port = this.#ports[owner];
    if (port !== undefined) port.addresses += 1;
    table.owner[slot] = owner;
    table.high[slot] = high;
    table.low[slot] = low;
    table.seen[slot] = seen;
  }

  #findAddress(bytes: Uint8Array, at: number, version: number): number {
    if (version === 4) return this.#addresses.find(0, 0, V4_MAPPED, readI32(bytes, at));
    return this.#addresses.find(
      readI32(bytes, at),
      readI32(bytes, at + 4),
      readI32(bytes, at + 8),
      readI32(bytes, at + 12),
    );
  }

  #insertAddress(bytes: Uint8Array, at: number, version: number): number {
    const table = this.#addresses;
    const slot =
      version === 4
        ? table.insert(0, 0, V4_MAPPED, readI32(bytes, at))
        : table.insert(readI32(bytes, at), readI32(bytes, at + 4), readI32(bytes, at + 8), readI32(bytes, at + 12));
    if (slot >= 0) table.owner[slot] = NOBODY;
    return slot;
  }

  #forgetMac(slot: number): void {
    this.#macForgotten(slot);
    this.#macs.remove(slot);
  }

  readonly #macForgotten = (slot: number): void => {
    const port = this.#ports[this.#macs.owner[slot] ?? BRIDGE];
    if (port !== undefined) port.macs -= 1;
  };

  readonly #addressForgotten = (slot: number): void => {
    const port = this.#ports[this.#addresses.owner[slot] ?? BRIDGE];
    if (port !== undefined) port.addresses -= 1;
  };
}

const NOTHING = (): void => {};

function isSame(own: Uint8Array, bytes: Uint8Array, at: number): boolean {
  for (let i = 0; i < own.length; i++) if (bytes[at + i] !== own[i]) return false;
  return true;
}

/** 4 or 16 bytes. */
function addressAt(table: AgeingTable, slot: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(16));
  for (let word = 0; word < 4; word++) view.setInt32(word * 4, table.word(slot, word));
  const bytes = new Uint8Array(view.buffer);
  const isV4 = table.word(slot, 0) === 0 && table.word(slot, 1) === 0 && table.word(slot, 2) === V4_MAPPED;
  return isV4 ? bytes.slice(12) : bytes;
}
