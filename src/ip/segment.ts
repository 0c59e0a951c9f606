/**
 * Cutting a super-packet into the packets that it stands for.
 *
 * Hides what differs between the segments: lengths, IPv4 identification, TCP sequence number and flags, checksums. It
 * does in software what a kernel does for a device without segmentation, for the peers and the packets that must not
 * have a super-packet. The caller gives the memory; nothing here allocates or throws.
 */

import { readI32, readU8, readU16, writeU16, writeU32 } from './bytes.ts';
import { fold, internetChecksum, pseudoHeaderSum, writeIpv4HeaderChecksum } from './checksum.ts';
import { IPV6_HEADER_BYTES, IpProtocol, ipVersion, ipv4HeaderLength } from './packet.ts';
import { type Offload, VirtioGsoType } from './super-packet.ts';

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

/** Byte by byte, because a view for `set` would be an allocation. */
function copy(from: Uint8Array, offset: number, length: number, to: Uint8Array, at: number): void {
  for (let index = 0; index < length; index++) to[at + index] = readU8(from, offset + index);
}
