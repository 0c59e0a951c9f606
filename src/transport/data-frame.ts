/**
 * What can be done to a PACKET, SUPER or ETHERNET frame that waits: mark it, take segments off it, send a part of it.
 *
 * Hides the frame's headers and the packet behind them. Everything happens in the memory that holds the frame; a frame
 * never grows, and what comes out passes the receiver's rules (docs/protocol.md, REQ-SUPER-002 to -006) if the frame did.
 * Runs in the packet path: nothing here allocates or throws.
 *
 * @see docs/protocol.md#REQ-SUPER-009
 */

import { DropReason } from '../ip/drop-reason.ts';
import { markCongestion } from '../ip/ecn.ts';
import { ETHERNET_HEADER_BYTES } from '../ip/ethernet.ts';
import { checkPacket, walkTransport } from '../ip/packet.ts';
import { keepBack, keepFront } from '../ip/segment.ts';
import { FLAG_PARTIAL_CHECKSUM, GsoType, headerBytes, segmentCount } from '../ip/super-packet.ts';
import { FRAME_HEADER_BYTES, FrameType, SUPER_HEADER_BYTES, writeFrameHeader } from '../protocol/frame.ts';

/** Where the packet of a SUPER frame starts. */
const SUPER_PACKET_OFFSET = FRAME_HEADER_BYTES + SUPER_HEADER_BYTES;
/** Where the packet of an ETHERNET frame starts; what is no packet there is taken for one that does not parse. */
const ETHERNET_PACKET_OFFSET = FRAME_HEADER_BYTES + ETHERNET_HEADER_BYTES;
/** Fewer would not be a super-packet. */
const LEAST_SEGMENTS = 2;

/** Bytes of the frame at `at`, header included. */
export function frameLength(bytes: Uint8Array, at: number): number {
  const length = ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0);
  return FRAME_HEADER_BYTES + length;
}

/** Whether a frame carries a packet or an Ethernet frame, which may be lost on the way. */
export function isPacketFrame(bytes: Uint8Array, at: number): boolean {
  const type = bytes[at];
  return type === FrameType.packet || type === FrameType.super || type === FrameType.ethernet;
}

/** Where the packet starts, counted from the frame. */
export function packetOffset(bytes: Uint8Array, at: number): number {
  if (bytes[at] === FrameType.packet) return FRAME_HEADER_BYTES;
  return bytes[at] === FrameType.super ? SUPER_PACKET_OFFSET : ETHERNET_PACKET_OFFSET;
}

/** How many packets a frame stands for. @param length of the frame with its header */
export function frameSegments(bytes: Uint8Array, at: number, length: number): number {
  const gsoSize = segmentSize(bytes, at);
  if (gsoSize === 0) return 1;
  const packetLength = length - SUPER_PACKET_OFFSET;
  return segmentCount(packetLength, headerBytes(bytes, at + SUPER_PACKET_OFFSET, packetLength), gsoSize);
}

/** Bytes of the packets that a frame stands for, as they are on a network: every segment with its headers. */
export function frameCost(bytes: Uint8Array, at: number, length: number): number {
  const offset = packetOffset(bytes, at);
  const packetLength = length - offset;
  const gsoSize = segmentSize(bytes, at);
  if (gsoSize === 0) return packetLength;
  const header = headerBytes(bytes, at + offset, packetLength);
  return packetLength + (segmentCount(packetLength, header, gsoSize) - 1) * header;
}

/** The same for whole frames, one behind the other. */
export function batchCost(batch: Uint8Array): number {
  let cost = 0;
  for (let at = 0; at < batch.length; ) {
    const length = frameLength(batch, at);
    cost += frameCost(batch, at, length);
    at += length;
  }
  return cost;
}

/** Says "congestion experienced" to a sender that understands. @returns false for one that does not */
export function markFrame(bytes: Uint8Array, at: number, length: number): boolean {
  const offset = packetOffset(bytes, at);
  if (checkPacket(bytes, at + offset, length - offset) !== DropReason.none) return false;
  return markCongestion(bytes, at + offset);
}

/** Cuts the last segment off. @returns the frame's length afterwards: the same when there is nothing to cut off */
export function trimFrame(bytes: Uint8Array, at: number, length: number): number {
  const gsoSize = segmentSize(bytes, at);
  if (gsoSize === 0) return length;
  const offset = at + SUPER_PACKET_OFFSET;
  const packetLength = length - SUPER_PACKET_OFFSET;
  const header = headerBytes(bytes, offset, packetLength);
  const segments = segmentCount(packetLength, header, gsoSize);
  if (header === 0 || segments < 2) return length;
  const payload = (segments - 1) * gsoSize;
  keepFront(bytes, offset, walkTransport(bytes, offset, packetLength), header, payload);
  return finish(bytes, at, header + payload, gsoSize, payload);
}

/**
 * Copies the first part of a SUPER frame to `target`, as a frame of its own, and leaves the rest in place.
 *
 * @param most bytes that the part may have; it has at least two segments in any case
 * @param target must not overlap the frame
 * @returns by how much the frame is shorter, 0 when it is to go whole. The part's length stands in its header; what is
 *   left is a frame that starts that much later
 */
export function splitFrame(
  bytes: Buffer,
  at: number,
  length: number,
  most: number,
  target: Buffer,
  targetAt: number,
): number {
  const gsoSize = segmentSize(bytes, at);
  if (gsoSize === 0) return 0;
  const offset = at + SUPER_PACKET_OFFSET;
  const packetLength = length - SUPER_PACKET_OFFSET;
  const header = headerBytes(bytes, offset, packetLength);
  if (header === 0) return 0;
  const segments = Math.max(LEAST_SEGMENTS, Math.floor((most - SUPER_PACKET_OFFSET - header) / gsoSize));
  const payload = segments * gsoSize;
  if (header + payload >= packetLength) return 0;
  const walk = walkTransport(bytes, offset, packetLength);
  bytes.copy(target, targetAt, at, offset + header + payload);
  keepFront(target, targetAt + SUPER_PACKET_OFFSET, walk, header, payload);
  finish(target, targetAt, header + payload, gsoSize, payload);
  // The header of the frame moves with the packet's.
  bytes.copyWithin(at + payload, at, offset + header);
  keepBack(bytes, offset, packetLength, walk, header, payload, segments);
  finish(bytes, at + payload, packetLength - payload, gsoSize, packetLength - payload - header);
  return payload;
}

/** 0 for what is not segmented, or not in a way that we could change. */
function segmentSize(bytes: Uint8Array, at: number): number {
  if (bytes[at] !== FrameType.super || bytes[at + 4] === GsoType.none) return 0;
  if (((bytes[at + 5] ?? 0) & FLAG_PARTIAL_CHECKSUM) === 0) return 0;
  return ((bytes[at + 6] ?? 0) << 8) | (bytes[at + 7] ?? 0);
}

/** Writes the headers of a SUPER frame; one segment is a packet that is not segmented. @returns the frame's length */
function finish(bytes: Uint8Array, at: number, packetLength: number, gsoSize: number, payload: number): number {
  writeFrameHeader(bytes, at, FrameType.super, SUPER_HEADER_BYTES + packetLength);
  if (payload <= gsoSize) {
    bytes[at + 4] = GsoType.none;
    bytes[at + 6] = 0;
    bytes[at + 7] = 0;
  }
  return SUPER_PACKET_OFFSET + packetLength;
}
