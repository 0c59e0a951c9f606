/**
 * A client as a station on an Ethernet segment: its MAC address, and the frames that say where it is.
 *
 * Hides how an address is made of a lease, and the bytes of the announcements: gratuitous ARP (RFC 5227), unsolicited
 * neighbour advertisement (RFC 4861 §7.2.6) and a RARP request (RFC 903), which tells bridges of a station without addresses.
 */

import { writeU16 } from './bytes.ts';
import { addWords, fold } from './checksum.ts';
import { ETHERNET_HEADER_BYTES, EtherType, MAC_BYTES } from './ethernet.ts';
import type { Lease } from './lease-pool.ts';

/** Locally administered, of a single station. */
const OF_IPV4 = [0x02, 0xc5] as const;
const OF_IPV6 = [0x02, 0xc6] as const;
const BROADCAST = new Uint8Array(MAC_BYTES).fill(0xff);
const ALL_NODES_MAC = Uint8Array.of(0x33, 0x33, 0, 0, 0, 1);

/** The longest announcement. */
export const ANNOUNCEMENT_BYTES = 86;

/** The MAC address of who has a lease: leases are unique, so it is, too. 6 bytes. */
export function stationMac({ v4, v6 }: Lease): Uint8Array {
  if (v4 !== undefined) return Uint8Array.of(...OF_IPV4, ...v4.bytes);
  return Uint8Array.of(...OF_IPV6, ...(v6?.bytes.subarray(12) ?? new Uint8Array(4)));
}

/** As `02:c5:0a:58:00:02`. */
export function formatMac(mac: Uint8Array): string {
  return Array.from(mac, (byte) => byte.toString(16).padStart(2, '0')).join(':');
}

/** The address of a single station that a text is, or undefined. */
export function parseMac(text: string): Uint8Array | undefined {
  if (!/^[0-9a-f]{2}(?::[0-9a-f]{2}){5}$/.test(text)) return undefined;
  const mac = Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
  return ((mac[0] ?? 1) & 1) === 1 || mac.every((byte) => byte === 0) ? undefined : mac;
}

/**
 * Writes an announcement of an address, of 4 or 16 bytes, or of none: an empty one.
 *
 * @returns the length of the frame at `offset`
 */
export function writeAnnouncement(bytes: Uint8Array, offset: number, mac: Uint8Array, address: Uint8Array): number {
  if (address.length === 16) return writeNeighbour(bytes, offset, mac, address);
  bytes.set(BROADCAST, offset);
  bytes.set(mac, offset + 6);
  writeU16(bytes, offset + 12, address.length === 4 ? EtherType.arp : EtherType.rarp);
  const at = offset + ETHERNET_HEADER_BYTES;
  bytes.fill(0, at, at + 28);
  bytes.set([0, 1, 8, 0, 6, 4, 0, address.length === 4 ? 1 : 3], at);
  bytes.set(mac, at + 8);
  if (address.length === 4) {
    bytes.set(address, at + 14);
    bytes.set(address, at + 24);
  } else bytes.set(mac, at + 18);
  return ETHERNET_HEADER_BYTES + 28;
}

function writeNeighbour(bytes: Uint8Array, offset: number, mac: Uint8Array, address: Uint8Array): number {
  bytes.set(ALL_NODES_MAC, offset);
  bytes.set(mac, offset + 6);
  writeU16(bytes, offset + 12, EtherType.ipv6);
  const at = offset + ETHERNET_HEADER_BYTES;
  bytes.fill(0, at, at + 72);
  bytes.set([0x60, 0, 0, 0, 0, 32, 58, 255], at);
  bytes.set(address, at + 8);
  bytes.set([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], at + 24);
  // Override.
  bytes.set([136, 0, 0, 0, 0x20, 0, 0, 0], at + 40);
  bytes.set(address, at + 48);
  bytes.set([2, 1, ...mac], at + 64);
  const sum = addWords(bytes, at + 8, 32, 58 + 32);
  writeU16(bytes, at + 42, ~fold(addWords(bytes, at + 40, 32, sum)) & 0xffff);
  return ANNOUNCEMENT_BYTES;
}
