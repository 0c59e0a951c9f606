/**
 * The internet checksum (RFC 1071) over bytes in place.
 *
 * Hides one's-complement arithmetic. Sums are kept unfolded in a number: a sum of 65,535 bytes stays below 2^32, so
 * parts may be added before `fold`. Nothing here allocates.
 */

import { readU8, readU16, writeU16 } from './bytes.ts';
import { addressBytes, destinationOffset, sourceOffset } from './packet.ts';

/**
 * Adds the 16-bit words of `[offset, offset + length)`, an odd last byte padded with zero.
 *
 * @param sum what to start from
 * @returns the unfolded sum
 */
export function addWords(bytes: Uint8Array, offset: number, length: number, sum = 0): number {
  const even = offset + (length & ~1);
  let total = sum;
  for (let at = offset; at < even; at += 2) total += readU16(bytes, at);
  return (length & 1) === 0 ? total : total + (readU8(bytes, even) << 8);
}

/** Folds a sum to 16 bits, carries added back in. */
export function fold(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded & 0xffff) + Math.floor(folded / 0x10000);
  return folded;
}

/** The internet checksum of `[offset, offset + length)`. */
export function internetChecksum(bytes: Uint8Array, offset: number, length: number): number {
  return ~fold(addWords(bytes, offset, length)) & 0xffff;
}

/** Whether the IPv4 header of `headerLength` bytes at `offset` carries its right checksum. */
export function ipv4HeaderChecksumOk(bytes: Uint8Array, offset: number, headerLength: number): boolean {
  return fold(addWords(bytes, offset, headerLength)) === 0xffff;
}

/** Computes and writes the checksum of the IPv4 header of `headerLength` bytes at `offset`. */
export function writeIpv4HeaderChecksum(bytes: Uint8Array, offset: number, headerLength: number): void {
  writeU16(bytes, offset + 10, 0);
  writeU16(bytes, offset + 10, internetChecksum(bytes, offset, headerLength));
}

/**
 * The unfolded sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1) of a packet.
 *
 * @param offset of the IP header, whose destination is taken as the final one
 * @param version 4 or 6
 * @param protocol of the transport header
 * @param transportLength bytes from the transport header to the end of the packet
 */
export function pseudoHeaderSum(
  bytes: Uint8Array,
  offset: number,
  version: number,
  protocol: number,
  transportLength: number,
): number {
  const size = addressBytes(version);
  const source = addWords(bytes, offset + sourceOffset(version), size, protocol + transportLength);
  return addWords(bytes, offset + destinationOffset(version), size, source);
}

/**
 * Completes a partial checksum in place, as a kernel does for `VIRTIO_NEEDS_CSUM`: sums from `checksumStart` to the end
 * of the packet, the field's partial value included, and writes the result into the field.
 *
 * @param offset of the packet
 * @param length of the packet
 * @param checksumStart counted from the packet's first byte
 * @param checksumOffset counted from `checksumStart`
 */
export function completeChecksum(
  bytes: Uint8Array,
  offset: number,
  length: number,
  checksumStart: number,
  checksumOffset: number,
): void {
  const checksum = internetChecksum(bytes, offset + checksumStart, length - checksumStart);
  // A UDP checksum of 0 says "none"; both forms of zero are equal in the sum.
  writeU16(bytes, offset + checksumStart + checksumOffset, checksum === 0 ? 0xffff : checksum);
}
