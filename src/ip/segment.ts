/**
 * Cutting a super-packet: into the packets that it stands for, or into smaller super-packets.
 *
 * Hides what differs between the segments: lengths, IPv4 identification, TCP sequence number and flags, checksums. It
 * does in software what a kernel does for a device without segmentation, for the peers and the packets that must not
 * have a super-packet; and it takes segments off either end of one that waits. The caller gives the memory; nothing here
 * allocates or throws.
 */

import { readI32, readU8, readU16, writeU16, writeU32 } from './bytes.ts';
import { fold, internetChecksum, pseudoHeaderSum, writeIpv4HeaderChecksum } from './checksum.ts';
import {
  IPV6_HEADER_BYTES,
  IpProtocol,
  ipVersion,
  ipv4HeaderLength,
  transportOffset,
  transportProtocol,
} from './packet.ts';
import { type Offload, TCP_CHECKSUM_OFFSET, UDP_CHECKSUM_OFFSET, VirtioGsoType } from './super-packet.ts';

const FIN_PSH = 0x09;
const CWR = 0x80;

/**
 * Writes segment `index` of a super-packet to `target`, complete with its checksums.
 *
 * @param offset of the super-packet
 * @param length of the super-packet
 * @param offload as `rebuildOffload` computed it, with a segmentation type
 * @param index from 0, below `segmentCount(length, offload.headerLength, offload.gsoSize)`
 * @param target room for the headers and `gsoSize` bytes at `targetOffset`; must not overlap the super-packet
 * @returns the length of the segment
 */
export function writeSegment(
  bytes: Uint8Array,
  offset: number,
  length: number,
  offload: Readonly<Offload>,
  index: number,
  target: Uint8Array,
  targetOffset: number,
): number {
  const { headerLength, gsoSize, checksumStart } = offload;
  const payload = index * gsoSize;
  const payloadLength = Math.min(gsoSize, length - headerLength - payload);
  const segmentLength = headerLength + payloadLength;
  copy(bytes, offset, headerLength, target, targetOffset);
  copy(bytes, offset + headerLength + payload, payloadLength, target, targetOffset + headerLength);

  const version = ipVersion(bytes, offset);
  if (version === 4) {
    writeU16(target, targetOffset + 2, segmentLength);
    writeU16(target, targetOffset + 4, readU16(bytes, offset + 4) + index);
    writeIpv4HeaderChecksum(target, targetOffset, ipv4HeaderLength(bytes, offset));
  } else {
    writeU16(target, targetOffset + 4, segmentLength - IPV6_HEADER_BYTES);
  }

  const transport = targetOffset + checksumStart;
  const transportLength = segmentLength - checksumStart;
  const udp = offload.gsoType === VirtioGsoType.udpL4;
  if (udp) {
    writeU16(target, transport + 4, transportLength);
  } else {
    writeU32(target, transport + 4, readI32(bytes, offset + checksumStart + 4) + payload);
    let flags = readU8(target, transport + 13);
    // FIN and PSH belong to the last byte, the answer to ECN to the first.
    if (headerLength + payload + payloadLength < length) flags &= ~FIN_PSH;
    if (index > 0) flags &= ~CWR;
    target[transport + 13] = flags;
  }

  const protocol = udp ? IpProtocol.udp : IpProtocol.tcp;
  writeU16(
    target,
    transport + offload.checksumOffset,
    fold(pseudoHeaderSum(target, targetOffset, version, protocol, transportLength)),
  );
  const checksum = internetChecksum(target, transport, transportLength);
  writeU16(target, transport + offload.checksumOffset, udp && checksum === 0 ? 0xffff : checksum);
  return segmentLength;
}

/**
 * Makes a super-packet end after its first `payload` bytes, in place. FIN and PSH belonged to what is cut off.
 *
 * @param walk what `walkTransport` found: TCP or UDP
 * @param headerLength bytes of the IP and transport headers
 * @param payload bytes that stay, a multiple of the segment size
 */
export function keepFront(
  bytes: Uint8Array,
  offset: number,
  walk: number,
  headerLength: number,
  payload: number,
): void {
  if (transportProtocol(walk) === IpProtocol.tcp) {
    const flags = offset + transportOffset(walk) + 13;
    bytes[flags] = readU8(bytes, flags) & ~FIN_PSH;
  }
  setPayloadLength(bytes, offset, walk, headerLength, payload);
}

/**
 * Makes a super-packet begin after `cut` bytes of its payload: its headers move forward, over what is cut off.
 *
 * @param length of the super-packet; afterwards it is `length - cut`, at `offset + cut`
 * @param walk what `walkTransport` found: TCP or UDP
 * @param headerLength bytes of the IP and transport headers
 * @param cut a multiple of the segment size, less than the payload
 * @param segments how many segments that is
 */
export function keepBack(
  bytes: Uint8Array,
  offset: number,
  length: number,
  walk: number,
  headerLength: number,
  cut: number,
  segments: number,
): void {
  const at = offset + cut;
  bytes.copyWithin(at, offset, offset + headerLength);
  if (ipVersion(bytes, at) === 4) writeU16(bytes, at + 4, readU16(bytes, at + 4) + segments);
  if (transportProtocol(walk) === IpProtocol.tcp) {
    const transport = at + transportOffset(walk);
    writeU32(bytes, transport + 4, readI32(bytes, transport + 4) + cut);
    bytes[transport + 13] = readU8(bytes, transport + 13) & ~CWR;
  }
  setPayloadLength(bytes, at, walk, headerLength, length - headerLength - cut);
}

/**
 * Writes the lengths, the IPv4 header checksum and, as the partial transport checksum, the sum of the pseudo-header.
 *
 * @param walk what `walkTransport` found: TCP or UDP
 * @param headerLength bytes of the IP and transport headers
 * @param payload bytes behind them
 */
export function setPayloadLength(
  bytes: Uint8Array,
  offset: number,
  walk: number,
  headerLength: number,
  payload: number,
): void {
  const length = headerLength + payload;
  const version = ipVersion(bytes, offset);
  if (version === 4) {
    writeU16(bytes, offset + 2, length);
    writeIpv4HeaderChecksum(bytes, offset, ipv4HeaderLength(bytes, offset));
  } else {
    writeU16(bytes, offset + 4, length - IPV6_HEADER_BYTES);
  }
  const start = transportOffset(walk);
  const protocol = transportProtocol(walk);
  const udp = protocol === IpProtocol.udp;
  if (udp) writeU16(bytes, offset + start + 4, length - start);
  const sum = fold(pseudoHeaderSum(bytes, offset, version, protocol, length - start));
  writeU16(bytes, offset + start + (udp ? UDP_CHECKSUM_OFFSET : TCP_CHECKSUM_OFFSET), sum);
}

/** Byte by byte, because a view for `set` would be an allocation. */
function copy(from: Uint8Array, offset: number, length: number, to: Uint8Array, at: number): void {
  for (let index = 0; index < length; index++) to[at + index] = readU8(from, offset + index);
}
