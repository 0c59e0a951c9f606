/**
 * Reading Ethernet frames in place, and judging what a client may say in one.
 *
 * Hides the layout of Ethernet II (IEEE 802.3), ARP (RFC 826), neighbour discovery (RFC 4861) and DHCP (RFC 2131) as far as a
 * guard has to know them. What needs no memory of other frames is judged here; whose addresses are whose is the switch's
 * (`ethernet-switch.ts`). Nothing allocates, throws or reads outside `[offset, offset + length)`.
 *
 * @see docs/protocol.md#REQ-ETHERNET-003
 */

import { readI32, readU8, readU16 } from './bytes.ts';
import { DropReason } from './drop-reason.ts';
import { IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, IpProtocol, MAX_EXTENSION_HEADERS, UDP_HEADER_BYTES } from './packet.ts';

/** Bytes of destination, source and type. */
export const ETHERNET_HEADER_BYTES = 14;
export const MAC_BYTES = 6;

/** Types of frames that are looked at. */
export const EtherType = { ipv4: 0x0800, arp: 0x0806, rarp: 0x8035, ipv6: 0x86dd } as const;

/** Below it, the type is a length, and LLC follows. */
const LEAST_TYPE = 0x600;
/** 802.1Q, 802.1ad, and what switches used before that was one. */
const TAGS: ReadonlySet<number> = new Set([0x8100, 0x88a8, 0x9100, 0x9200]);

const ARP_BYTES = 28;
const DHCP_SERVER_PORT = 67;
const DHCPV6_SERVER_PORT = 547;
/** BOOTP's fixed part with the magic cookie before the options. */
const DHCP_FIXED_BYTES = 240;
const DHCP_MAGIC = 0x63825363;
const DHCP_MESSAGE_TYPE = 53;
const DHCP_ACK = 5;
const BOOT_REPLY = 2;

const ICMPV6_ROUTER_ADVERTISEMENT = 134;
const ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136;
const ICMPV6_REDIRECT = 137;
const ICMPV6_TARGET_OFFSET = 8;
const NEIGHBOUR_BYTES = 24;

/** What a frame says, besides its header. Reused, not kept. */
export interface FrameFacts {
  /** An `EtherType`, or any other. */
  type: number;
  /** Version of the address that the sender claims; 0: none. */
  version: number;
  /** Where that address starts, counted from the beginning of `bytes`. */
  claim: number;
  /** Where the address starts for which the sender answers (a neighbour advertisement's target); 0: none. */
  target: number;
}

/** What is dropped of a frame's addresses and type, whichever side it comes from. @returns `none` or the reason */
export function checkFrame(
  bytes: Uint8Array,
  offset: number,
  length: number,
  mtu: number,
  protocols: ReadonlySet<number>,
): DropReason {
  if (length < ETHERNET_HEADER_BYTES) return DropReason.frameTooShort;
  const type = readU16(bytes, offset + 12);
  if (TAGS.has(type)) return DropReason.frameTagged;
  if (length > mtu + ETHERNET_HEADER_BYTES) return DropReason.tooBig;
  if (type < LEAST_TYPE || isReserved(bytes, offset)) return DropReason.frameControl;
  // The group bit, or nobody at all.
  const first = readU16(bytes, offset + 6);
  if ((first & 0x100) !== 0 || (first === 0 && readI32(bytes, offset + 8) === 0)) return DropReason.frameSource;
  if (type === EtherType.ipv4 || type === EtherType.ipv6 || type === EtherType.arp) return DropReason.none;
  return protocols.has(type) ? DropReason.none : DropReason.frameProtocol;
}

/**
 * Judges a frame of a client that passed `checkFrame`, by itself: headers that do not fit, router advertisements and redirects,
 * answers of DHCP servers, fragments that may hide one, ARP and DHCP messages in the name of another MAC address.
 *
 * @param facts what the frame claims; written only when the result is `none`
 */
export function inspectFrame(bytes: Uint8Array, offset: number, length: number, facts: FrameFacts): DropReason {
  const type = readU16(bytes, offset + 12);
  facts.type = type;
  facts.version = 0;
  facts.claim = 0;
  facts.target = 0;
  const at = offset + ETHERNET_HEADER_BYTES;
  const rest = length - ETHERNET_HEADER_BYTES;
  if (type === EtherType.ipv4) return inspectIpv4(bytes, offset, at, rest, facts);
  if (type === EtherType.ipv6) return inspectIpv6(bytes, at, rest, facts);
  if (type === EtherType.arp) return inspectArp(bytes, offset, at, rest, facts);
  return DropReason.none;
}

/** Whether the address at `at` is one of a group: broadcast or multicast. */
export function isGroupAddress(bytes: Uint8Array, at: number): boolean {
  return (readU8(bytes, at) & 1) !== 0;
}

/** Whether the IPv6 address at `at` is link-local. */
export function isLinkLocal6(bytes: Uint8Array, at: number): boolean {
  return (readU16(bytes, at) & 0xffc0) === 0xfe80;
}

/** Whether the address of `version` at `at` says "none yet". */
export function isUnspecified(bytes: Uint8Array, at: number, version: number): boolean {
  if (readI32(bytes, at) !== 0) return false;
  if (version === 4) return true;
  return readI32(bytes, at + 4) === 0 && readI32(bytes, at + 8) === 0 && readI32(bytes, at + 12) === 0;
}

/**
 * Where a DHCP server's ACK begins that gives an address, for a frame that passed `checkFrame`.
 *
 * @returns offset of the BOOTP message (`yiaddr` at 16, `chaddr` at 28), or 0 for every other frame
 */
export function findDhcpAck(bytes: Uint8Array, offset: number, length: number): number {
  const at = offset + ETHERNET_HEADER_BYTES;
  const end = offset + length;
  if (readU16(bytes, offset + 12) !== EtherType.ipv4 || at + IPV4_HEADER_BYTES > end) return 0;
  if (readU8(bytes, at + 9) !== IpProtocol.udp || (readU16(bytes, at + 6) & 0x3fff) !== 0) return 0;
  const udp = at + ((readU8(bytes, at) & 0x0f) << 2);
  const message = udp + UDP_HEADER_BYTES;
  if (message + DHCP_FIXED_BYTES > end || readU16(bytes, udp) !== DHCP_SERVER_PORT) return 0;
  if (readU8(bytes, message) !== BOOT_REPLY || readU16(bytes, message + 1) !== 0x0106) return 0;
  if (readI32(bytes, message + 236) !== DHCP_MAGIC || readI32(bytes, message + 16) === 0) return 0;
  for (let option = message + DHCP_FIXED_BYTES; option + 2 < end; ) {
    const code = readU8(bytes, option);
    if (code === 0xff) return 0;
    if (code === DHCP_MESSAGE_TYPE) return readU8(bytes, option + 2) === DHCP_ACK ? message : 0;
    option += code === 0 ? 1 : 2 + readU8(bytes, option + 1);
  }
  return 0;
}

/** 01:80:c2:00:00:00 to 0f, which no bridge forwards, and Cisco's 01:00:0c:cc:cc:c0 to cf. */
function isReserved(bytes: Uint8Array, at: number): boolean {
  const high = readI32(bytes, at);
  if (high === 0x0180c200) return (readU16(bytes, at + 4) & 0xfff0) === 0;
  return high === 0x01000ccc && (readU16(bytes, at + 4) & 0xfff0) === 0xccc0;
}

function inspectArp(bytes: Uint8Array, offset: number, at: number, rest: number, facts: FrameFacts): DropReason {
  if (rest < ARP_BYTES) return DropReason.frameTooShort;
  const isEthernetIpv4 = readI32(bytes, at) === 0x0001_0800 && readU16(bytes, at + 4) === 0x0604;
  const operation = readU16(bytes, at + 6);
  if (!isEthernetIpv4 || (operation !== 1 && operation !== 2)) return DropReason.frameProtocol;
  if (!isSameMac(bytes, at + 8, offset + 6)) return DropReason.macSpoofed;
  facts.version = 4;
  facts.claim = at + 14;
  return DropReason.none;
}

function inspectIpv4(bytes: Uint8Array, offset: number, at: number, rest: number, facts: FrameFacts): DropReason {
  if (rest < IPV4_HEADER_BYTES) return DropReason.tooShort;
  if (readU8(bytes, at) >>> 4 !== 4) return DropReason.version;
  const header = (readU8(bytes, at) & 0x0f) << 2;
  const total = readU16(bytes, at + 2);
  if (header < IPV4_HEADER_BYTES || header > total) return DropReason.ipHeaderLength;
  // Short frames are filled up behind the packet.
  if (total > rest) return DropReason.ipLength;
  facts.version = 4;
  facts.claim = at + 12;
  if (readU8(bytes, at + 9) !== IpProtocol.udp) return DropReason.none;
  const fragment = readU16(bytes, at + 6);
  const position = fragment & 0x1fff;
  // A second fragment that overwrites the ports of the first (RFC 3128).
  if (position === 1) return DropReason.frameFragment;
  if (position !== 0) return DropReason.none;
  if (total < header + UDP_HEADER_BYTES) return DropReason.frameFragment;
  const udp = at + header;
  if (readU16(bytes, udp) === DHCP_SERVER_PORT) return DropReason.dhcpServer;
  if (readU16(bytes, udp + 2) !== DHCP_SERVER_PORT) return DropReason.none;
  const message = udp + UDP_HEADER_BYTES;
  // Who asks in other clients' names empties the server's pool.
  if (message + DHCP_FIXED_BYTES > at + total) return DropReason.frameTooShort;
  return isSameMac(bytes, message + 28, offset + 6) ? DropReason.none : DropReason.macSpoofed;
}

function inspectIpv6(bytes: Uint8Array, at: number, rest: number, facts: FrameFacts): DropReason {
  if (rest < IPV6_HEADER_BYTES) return DropReason.tooShort;
  if (readU8(bytes, at) >>> 4 !== 6) return DropReason.version;
  const end = IPV6_HEADER_BYTES + readU16(bytes, at + 4);
  if (end > rest) return DropReason.ipLength;
  facts.version = 6;
  facts.claim = at + 8;
  let next = readU8(bytes, at + 6);
  let position = IPV6_HEADER_BYTES;
  let isFragment = false;
  for (let walked = 0; ; walked++) {
    const isOptions =
      next === IpProtocol.hopByHop || next === IpProtocol.routing || next === IpProtocol.destinationOptions;
    if (!isOptions && next !== IpProtocol.fragment) break;
    if (walked === MAX_EXTENSION_HEADERS || position + 8 > end) return DropReason.frameFragment;
    const following = readU8(bytes, at + position);
    if (next === IpProtocol.fragment) {
      isFragment = true;
      // Of one that is not the first nothing can be told; without the first it comes to nothing.
      if (readU16(bytes, at + position + 2) >>> 3 !== 0) return DropReason.none;
      position += 8;
    } else position += (readU8(bytes, at + position + 1) + 1) << 3;
    next = following;
  }
  if (next === IpProtocol.icmpv6) {
    if (position >= end) return DropReason.frameFragment;
    const type = readU8(bytes, at + position);
    if (type === ICMPV6_ROUTER_ADVERTISEMENT || type === ICMPV6_REDIRECT) return DropReason.routerAdvertisement;
    if (type !== ICMPV6_NEIGHBOUR_ADVERTISEMENT) return DropReason.none;
    // Never in fragments (RFC 6980).
    if (isFragment) return DropReason.frameFragment;
    if (position + NEIGHBOUR_BYTES > end) return DropReason.frameTooShort;
    facts.target = at + position + ICMPV6_TARGET_OFFSET;
    return DropReason.none;
  }
  if (next === IpProtocol.udp) {
    if (position + UDP_HEADER_BYTES > end) return DropReason.frameFragment;
    if (readU16(bytes, at + position) === DHCPV6_SERVER_PORT) return DropReason.dhcpServer;
  }
  return DropReason.none;
}

function isSameMac(bytes: Uint8Array, one: number, other: number): boolean {
  return readI32(bytes, one) === readI32(bytes, other) && readU16(bytes, one + 4) === readU16(bytes, other + 4);
}
