/**
 * Explicit congestion notification (RFC 3168) in an IP header.
 *
 * Hides where the two bits are. A sender that says it understands them is told of a queue without losing a packet.
 */

import { readU8 } from './bytes.ts';
import { writeIpv4HeaderChecksum } from './checksum.ts';
import { ipVersion, ipv4HeaderLength } from './packet.ts';

const NOT_CAPABLE = 0;
const CONGESTION = 3;
/** In IPv6 the traffic class begins in the middle of the first byte. */
const IPV6_SHIFT = 4;

/**
 * Sets "congestion experienced" on a packet whose sender is capable of it; does nothing to others.
 *
 * @returns whether the packet carries the mark
 */
export function markCongestion(bytes: Uint8Array, offset: number): boolean {
  const isV4 = ipVersion(bytes, offset) === 4;
  const shift = isV4 ? 0 : IPV6_SHIFT;
  const field = readU8(bytes, offset + 1);
  if (((field >>> shift) & CONGESTION) === NOT_CAPABLE) return false;
  bytes[offset + 1] = field | (CONGESTION << shift);
  if (isV4) writeIpv4HeaderChecksum(bytes, offset, ipv4HeaderLength(bytes, offset));
  return true;
}
