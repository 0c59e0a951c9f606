/**
 * Super-packets: one packet that stands for many, and what a kernel is asked to do with it.
 *
 * Hides how an offload header (Linux `virtio_net_hdr`) is made. A kernel changes a packet by that header after its
 * filters have seen the packet, so nothing of it is taken over from a peer: the peer says the segmentation type, whether
 * the checksum is partial, and the segment size; everything else is computed here from our own parse, and what does not
 * parse is dropped. Nothing here allocates, throws, or reads outside the packet.
 */

import { readU8, readU16 } from './bytes.ts';
import { ipv4HeaderChecksumOk } from './checksum.ts';
import { DropReason } from './drop-reason.ts';
import {
  checkPacket,
  IpProtocol,
  ipVersion,
  ipv4HeaderLength,
  TCP_HEADER_BYTES,
  transportOffset,
  transportProtocol,
  UDP_HEADER_BYTES,
  walkTransport,
} from './packet.ts';

/** Segmentation types as they are on the wire of CustomVPN. */
export const GsoType = { none: 0, tcp4: 1, tcp6: 2, udpL4: 3 } as const;
export type GsoType = (typeof GsoType)[keyof typeof GsoType];

/** Flag of a SUPER frame: the transport checksum field holds only the sum of the pseudo-header. */
export const FLAG_PARTIAL_CHECKSUM = 1;

/** `gso_type` of `virtio_net_hdr`. */
export const VirtioGsoType = { none: 0, tcp4: 1, udp: 3, tcp6: 4, udpL4: 5 } as const;
/** Bit of `gso_type`: the first segment alone keeps CWR. */
export const VIRTIO_GSO_ECN = 0x80;
/** Bit of `flags` of `virtio_net_hdr`: the checksum is partial. */
export const VIRTIO_NEEDS_CSUM = 1;

/** The fewest payload bytes of a segment: smaller ones cost a kernel far more than the frame cost its sender. */
export const MIN_GSO_SIZE = 256;
export const MAX_TCP_SEGMENTS = 256;
/** What Linux takes (`UDP_MAX_SEGMENTS` before 6.9). */
export const MAX_UDP_SEGMENTS = 64;

/** What a kernel is asked to do with a packet: the fields of `virtio_net_hdr`, with its values. Reused, not kept. */
export interface Offload {
  /** 0 or `VIRTIO_NEEDS_CSUM`. */
  flags: number;
  /** A `VirtioGsoType`, with `VIRTIO_GSO_ECN` where it applies. */
  gsoType: number;
  /** Bytes of the IP and transport headers. */
  headerLength: number;
  /** Payload bytes per segment; 0 without segmentation. */
  gsoSize: number;
  /** Where the checksummed part starts, counted from the packet's first byte. */
  checksumStart: number;
  /** Where the checksum field is, counted from `checksumStart`. */
  checksumOffset: number;
}

/** The packet goes as it is. */
export const NO_OFFLOAD: Readonly<Offload> = Object.freeze({
  flags: 0,
  gsoType: VirtioGsoType.none,
  headerLength: 0,
  gsoSize: 0,
  checksumStart: 0,
  checksumOffset: 0,
});

/** What the receiving side can take. */
export interface OffloadLimits {
  /** MTU of the device that the packet is written to. */
  readonly mtu: number;
  /** Whether its kernel does UDP segmentation. */
  readonly uso: boolean;
}

/** Where the checksum stands in a TCP header. */
export const TCP_CHECKSUM_OFFSET = 16;
/** Where the checksum stands in a UDP header. */
export const UDP_CHECKSUM_OFFSET = 6;
const TCP_SYN_RST_URG = 0x26;
const TCP_CWR = 0x80;

/**
 * Computes the offload header of a packet from its bytes, or says why the packet is dropped.
 *
 * @param gsoType as the peer said; any number
 * @param flags as the peer said; any number
 * @param gsoSize as the peer said; any number
 * @param out written only when the result is `none`
 */
export function rebuildOffload(
  bytes: Uint8Array,
  offset: number,
  length: number,
  gsoType: number,
  flags: number,
  gsoSize: number,
  limits: OffloadLimits,
  out: Offload,
): DropReason {
  if (gsoType !== GsoType.none && gsoType !== GsoType.tcp4 && gsoType !== GsoType.tcp6 && gsoType !== GsoType.udpL4) {
    return DropReason.superType;
  }
  if ((flags & ~FLAG_PARTIAL_CHECKSUM) !== 0) return DropReason.superFlags;
  if (gsoType === GsoType.none && gsoSize !== 0) return DropReason.superUnusedSize;
  if (gsoType === GsoType.udpL4 && !limits.uso) return DropReason.superUdpUnsupported;

  const malformed = checkPacket(bytes, offset, length);
  if (malformed !== DropReason.none) return malformed;
  const version = ipVersion(bytes, offset);
  if (gsoType === GsoType.tcp4 && version !== 4) return DropReason.superVersion;
  if (gsoType === GsoType.tcp6 && version !== 6) return DropReason.superVersion;
  if (version === 4) {
    if (!ipv4HeaderChecksumOk(bytes, offset, ipv4HeaderLength(bytes, offset))) return DropReason.superHeaderChecksum;
  } else if (readU16(bytes, offset + 4) === 0) {
    return DropReason.superEmpty;
  }

  if (gsoType === GsoType.none && flags === 0) {
    out.flags = 0;
    out.gsoType = VirtioGsoType.none;
    out.headerLength = 0;
    out.gsoSize = 0;
    out.checksumStart = 0;
    out.checksumOffset = 0;
    return DropReason.none;
  }

  const walk = walkTransport(bytes, offset, length);
  if (walk < 0) return -walk as DropReason;
  const protocol = transportProtocol(walk);
  const start = transportOffset(walk);
  if (gsoType !== GsoType.none) {
    if (flags !== FLAG_PARTIAL_CHECKSUM) return DropReason.superChecksumMissing;
    if (protocol !== (gsoType === GsoType.udpL4 ? IpProtocol.udp : IpProtocol.tcp)) return DropReason.superProtocol;
  }

  let headerLength: number;
  let virtioGsoType: number = VirtioGsoType.none;
  if (protocol === IpProtocol.tcp) {
    if (start + TCP_HEADER_BYTES > length) return DropReason.superTruncated;
    const dataOffset = (readU8(bytes, offset + start + 12) >>> 4) << 2;
    if (dataOffset < TCP_HEADER_BYTES || start + dataOffset > length) return DropReason.superTcpDataOffset;
    headerLength = start + dataOffset;
    if (gsoType !== GsoType.none) {
      const tcpFlags = readU8(bytes, offset + start + 13);
      if ((tcpFlags & TCP_SYN_RST_URG) !== 0) return DropReason.superTcpFlags;
      virtioGsoType = version === 4 ? VirtioGsoType.tcp4 : VirtioGsoType.tcp6;
      if ((tcpFlags & TCP_CWR) !== 0) virtioGsoType |= VIRTIO_GSO_ECN;
    }
  } else if (protocol === IpProtocol.udp) {
    if (start + UDP_HEADER_BYTES > length) return DropReason.superTruncated;
    if (readU16(bytes, offset + start + 4) !== length - start) return DropReason.superUdpLength;
    headerLength = start + UDP_HEADER_BYTES;
    if (gsoType !== GsoType.none) virtioGsoType = VirtioGsoType.udpL4;
  } else {
    return DropReason.superChecksumProtocol;
  }

  if (gsoType !== GsoType.none) {
    if (gsoSize < MIN_GSO_SIZE) return DropReason.superSegmentTooSmall;
    if (headerLength + gsoSize > limits.mtu) return DropReason.superSegmentTooBig;
    if (length - headerLength <= gsoSize) return DropReason.superOneSegment;
    const most = protocol === IpProtocol.tcp ? MAX_TCP_SEGMENTS : MAX_UDP_SEGMENTS;
    if (length - headerLength > most * gsoSize) return DropReason.superTooManySegments;
  }

  out.flags = VIRTIO_NEEDS_CSUM;
  out.gsoType = virtioGsoType;
  out.headerLength = headerLength;
  out.gsoSize = gsoSize;
  out.checksumStart = start;
  out.checksumOffset = protocol === IpProtocol.tcp ? TCP_CHECKSUM_OFFSET : UDP_CHECKSUM_OFFSET;
  return DropReason.none;
}

/** The `GsoType` of a kernel's `gso_type`, or -1 for one that is never carried. The ECN bit is found again by the peer. */
export function gsoTypeFromVirtio(virtioGsoType: number): GsoType | -1 {
  switch (virtioGsoType & ~VIRTIO_GSO_ECN) {
    case VirtioGsoType.none:
      return GsoType.none;
    case VirtioGsoType.tcp4:
      return GsoType.tcp4;
    case VirtioGsoType.tcp6:
      return GsoType.tcp6;
    case VirtioGsoType.udpL4:
      return GsoType.udpL4;
    default:
      return -1;
  }
}

/**
 * How many packets a packet stands for. Limits, rates and counts count these.
 *
 * @param length bytes of the whole packet
 * @param headerLength bytes of its IP and transport headers
 * @param gsoSize payload bytes per segment; 0 for a packet that is not segmented
 */
export function segmentCount(length: number, headerLength: number, gsoSize: number): number {
  return gsoSize === 0 ? 1 : Math.max(1, Math.ceil((length - headerLength) / gsoSize));
}

/** Bytes of the IP and transport headers of a TCP or UDP packet; 0 when the walk does not reach one that fits. */
export function headerBytes(bytes: Uint8Array, offset: number, length: number): number {
  const walk = walkTransport(bytes, offset, length);
  if (walk < 0) return 0;
  const start = transportOffset(walk);
  let transportBytes = 0;
  if (transportProtocol(walk) === IpProtocol.udp) {
    transportBytes = UDP_HEADER_BYTES;
  } else if (transportProtocol(walk) === IpProtocol.tcp && start + TCP_HEADER_BYTES <= length) {
    transportBytes = (readU8(bytes, offset + start + 12) >>> 4) << 2;
    if (transportBytes < TCP_HEADER_BYTES) return 0;
  }
  return transportBytes === 0 || start + transportBytes > length ? 0 : start + transportBytes;
}
