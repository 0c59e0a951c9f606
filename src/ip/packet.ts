/**
 * Reading IP packets in place.
 *
 * Hides the layout of IPv4 (RFC 791) and IPv6 (RFC 8200) headers and the walk to the transport header. Functions take
 * bytes, the offset of the packet and its length, read only inside `[offset, offset + length)`, allocate nothing and
 * never throw: what is wrong with a packet is a `DropReason`. Nothing here knows of frames, sessions or devices.
 */

import { readI32, readU8, readU16 } from './bytes.ts';
import { DropReason } from './drop-reason.ts';

/** Bytes of an IPv4 header without options. */
export const IPV4_HEADER_BYTES = 20;
/** Bytes of the fixed IPv6 header. */
export const IPV6_HEADER_BYTES = 40;
/** Bytes of a TCP header without options. */
export const TCP_HEADER_BYTES = 20;
/** Bytes of a UDP header. */
export const UDP_HEADER_BYTES = 8;

/** How many IPv6 extension headers are walked. */
export const MAX_EXTENSION_HEADERS = 8;

/** Protocol numbers and IPv6 next-header values (IANA) that are looked at. */
export const IpProtocol = {
  hopByHop: 0,
  icmp: 1,
  tcp: 6,
  udp: 17,
  dccp: 33,
  routing: 43,
  fragment: 44,
  esp: 50,
  ah: 51,
  icmpv6: 58,
  noNextHeader: 59,
  destinationOptions: 60,
  sctp: 132,
  udpLite: 136,
} as const;
export type IpProtocol = (typeof IpProtocol)[keyof typeof IpProtocol];

/** The version nibble of the packet at `offset`. */
export function ipVersion(bytes: Uint8Array, offset: number): number {
  return readU8(bytes, offset) >>> 4;
}

/** Where the source address starts in a packet of this version, counted from its first byte. */
export function sourceOffset(version: number): number {
  return version === 4 ? 12 : 8;
}

/** Where the destination address starts in a packet of this version, counted from its first byte. */
export function destinationOffset(version: number): number {
  return version === 4 ? 16 : 24;
}

/** Bytes of an address of this version. */
export function addressBytes(version: number): number {
  return version === 4 ? 4 : 16;
}

/**
 * Checks what every packet must be: an IPv4 or IPv6 header that fits, whose length field is exactly `length`.
 *
 * The other functions of this file rely on it for meaning, not for safety.
 *
 * @returns `none`, `tooShort`, `version`, `ipHeaderLength` or `ipLength`
 */
export function checkPacket(bytes: Uint8Array, offset: number, length: number): DropReason {
  if (length < 1) return DropReason.tooShort;
  const version = ipVersion(bytes, offset);
  if (version === 4) {
    if (length < IPV4_HEADER_BYTES) return DropReason.tooShort;
    const headerLength = ipv4HeaderLength(bytes, offset);
    if (headerLength < IPV4_HEADER_BYTES || headerLength > length) return DropReason.ipHeaderLength;
    return readU16(bytes, offset + 2) === length ? DropReason.none : DropReason.ipLength;
  }
  if (version === 6) {
    if (length < IPV6_HEADER_BYTES) return DropReason.tooShort;
    return IPV6_HEADER_BYTES + readU16(bytes, offset + 4) === length ? DropReason.none : DropReason.ipLength;
  }
  return DropReason.version;
}

/** Bytes of the IPv4 header at `offset`, options included, as its first byte says: 0 to 60, unchecked. */
export function ipv4HeaderLength(bytes: Uint8Array, offset: number): number {
  return (readU8(bytes, offset) & 0x0f) << 2;
}

/**
 * Walks from the start of a packet that passed `checkPacket` to its transport header.
 *
 * IPv6: at most 8 extension headers, of hop-by-hop options (first only), routing with no segments left, and destination
 * options. Any other next-header value ends the walk and is the protocol.
 *
 * @returns `transportOffset << 8 | protocol`, the offset counted from the packet's first byte and at most its length;
 *   or the negative of `superFragment`, `superExtensionCount`, `superExtensionOrder`, `superRouting`, `superTruncated`
 */
export function walkTransport(bytes: Uint8Array, offset: number, length: number): number {
  if (length < IPV4_HEADER_BYTES) return -DropReason.superTruncated;
  if (ipVersion(bytes, offset) === 4) {
    if ((readU16(bytes, offset + 6) & FRAGMENT_MASK) !== 0) return -DropReason.superFragment;
    const headerLength = ipv4HeaderLength(bytes, offset);
    return headerLength > length ? -DropReason.superTruncated : (headerLength << 8) | readU8(bytes, offset + 9);
  }
  if (length < IPV6_HEADER_BYTES) return -DropReason.superTruncated;
  let next = readU8(bytes, offset + 6);
  let at = IPV6_HEADER_BYTES;
  for (let walked = 0; ; walked++) {
    if (next === IpProtocol.fragment) return -DropReason.superFragment;
    if (next !== IpProtocol.hopByHop && next !== IpProtocol.routing && next !== IpProtocol.destinationOptions) {
      return (at << 8) | next;
    }
    if (next === IpProtocol.hopByHop && walked > 0) return -DropReason.superExtensionOrder;
    if (walked === MAX_EXTENSION_HEADERS) return -DropReason.superExtensionCount;
    if (at + 8 > length) return -DropReason.superTruncated;
    if (next === IpProtocol.routing && readU8(bytes, offset + at + 3) !== 0) return -DropReason.superRouting;
    next = readU8(bytes, offset + at);
    at += (readU8(bytes, offset + at + 1) + 1) << 3;
    if (at > length) return -DropReason.superTruncated;
  }
}

/** The offset in a non-negative result of `walkTransport`. */
export function transportOffset(walk: number): number {
  return walk >>> 8;
}

/** The protocol in a non-negative result of `walkTransport`. */
export function transportProtocol(walk: number): number {
  return walk & 0xff;
}

/** Whether the address of `version` at `offset` is a multicast address, or the IPv4 broadcast address. */
export function isMulticast(bytes: Uint8Array, offset: number, version: number): boolean {
  const first = readU8(bytes, offset);
  if (version === 6) return first === 0xff;
  return (first & 0xf0) === 0xe0 || readI32(bytes, offset) === -1;
}

/**
 * Whether the address of `version` at `offset` must not come out of a tunnel or go into one: unspecified or this network,
 * loopback, link-local, multicast, broadcast and reserved, v4-mapped. The same as `isUnusableAddress`, for packets.
 */
export function isUnroutable(bytes: Uint8Array, offset: number, version: number): boolean {
  const first = readU8(bytes, offset);
  if (version === 4) {
    return first === 0 || first === 127 || first >= 0xe0 || (first === 169 && readU8(bytes, offset + 1) === 254);
  }
  if (first === 0xff) return true;
  if (first === 0xfe) return (readU8(bytes, offset + 1) & 0xc0) === 0x80;
  if (first !== 0 || readI32(bytes, offset) !== 0 || readI32(bytes, offset + 4) !== 0) return false;
  const third = readI32(bytes, offset + 8);
  if (third === 0xffff) return true;
  const fourth = readI32(bytes, offset + 12);
  return third === 0 && (fourth === 0 || fourth === 1);
}

/** The key of a flow hash: two random 32-bit integers, signed or not. */
export type FlowKey = readonly [number, number];

/**
 * The keyed hash by which a session spreads flows over its connections: HalfSipHash-2-4 of the addresses, the ports of
 * TCP, UDP, UDP-Lite, SCTP and DCCP, the protocol and the version. What `walkTransport` does not walk, fragments above
 * all, has no ports, and the protocol that its IP header names: all fragments of a packet get one hash.
 *
 * @returns 31 bits, never negative: such a number is never boxed; 0 for a packet shorter than its IP header
 */
export function flowHash(bytes: Uint8Array, offset: number, length: number, key: FlowKey): number {
  if (length < IPV4_HEADER_BYTES) return 0;
  const version = ipVersion(bytes, offset);
  if (version !== 4 && length < IPV6_HEADER_BYTES) return 0;
  let protocol = readU8(bytes, offset + (version === 4 ? 9 : 6));
  let ports = 0;
  const walk = walkTransport(bytes, offset, length);
  if (walk >= 0) {
    protocol = transportProtocol(walk);
    const start = transportOffset(walk);
    if (hasPorts(protocol) && start + 4 <= length) ports = readI32(bytes, offset + start);
  }

  // Source and destination stand side by side in both versions.
  const addresses = offset + sourceOffset(version);
  const addressWords = addressBytes(version) >>> 1;
  const k0 = key[0] | 0;
  const k1 = key[1] | 0;
  let v0 = k0;
  let v1 = k1;
  let v2 = k0 ^ 0x6c796765;
  let v3 = k1 ^ 0x74656462;
  // Two words behind the addresses, then the block that holds the length, then the finish.
  for (let word = 0; word <= addressWords + 3; word++) {
    let message = 0;
    let rounds = 2;
    if (word < addressWords) message = swap(readI32(bytes, addresses + word * 4));
    else if (word === addressWords) message = swap(ports);
    else if (word === addressWords + 1) message = protocol | (version << 8);
    else if (word === addressWords + 2) message = (addressWords + 2) << 26;
    else {
      v2 ^= 0xff;
      rounds = 4;
    }
    v3 ^= message;
    for (; rounds > 0; rounds--) {
      v0 = (v0 + v1) | 0;
      v1 = ((v1 << 5) | (v1 >>> 27)) ^ v0;
      v0 = (v0 << 16) | (v0 >>> 16);
      v2 = (v2 + v3) | 0;
      v3 = ((v3 << 8) | (v3 >>> 24)) ^ v2;
      v0 = (v0 + v3) | 0;
      v3 = ((v3 << 7) | (v3 >>> 25)) ^ v0;
      v2 = (v2 + v1) | 0;
      v1 = ((v1 << 13) | (v1 >>> 19)) ^ v2;
      v2 = (v2 << 16) | (v2 >>> 16);
    }
    v0 ^= message;
  }
  return (v1 ^ v3) & 0x7fffffff;
}

function hasPorts(protocol: number): boolean {
  return (
    protocol === IpProtocol.tcp ||
    protocol === IpProtocol.udp ||
    protocol === IpProtocol.sctp ||
    protocol === IpProtocol.udpLite ||
    protocol === IpProtocol.dccp
  );
}

/** The hash is defined over little-endian words. */
function swap(word: number): number {
  return (word << 24) | ((word & 0xff00) << 8) | ((word >>> 8) & 0xff00) | (word >>> 24);
}

/** More fragments, and the fragment offset. */
const FRAGMENT_MASK = 0x3fff;
