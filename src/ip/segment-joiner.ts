/**
 * Joins segments of one TCP flow that follow each other to one super-packet, as a kernel does with what it receives
 * (generic receive offload).
 *
 * Hides which packets may be joined and how. What is joined is cut again by a kernel or taken by its TCP whole, so the
 * result must stand for exactly the packets that came: their headers are equal but for what counts up, and each checksum
 * was right before it is given up for a partial one. What does not fit stays as it is. Runs in the packet path: nothing
 * here allocates or throws.
 */

import { readI32, readU8, readU16 } from './bytes.ts';
import { addWords, fold, ipv4HeaderChecksumOk, pseudoHeaderSum } from './checksum.ts';
import { IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, IpProtocol, ipVersion, TCP_HEADER_BYTES } from './packet.ts';
import { setPayloadLength } from './segment.ts';
import {
  MAX_TCP_SEGMENTS,
  MIN_GSO_SIZE,
  NO_OFFLOAD,
  type Offload,
  TCP_CHECKSUM_OFFSET,
  VIRTIO_NEEDS_CSUM,
  VirtioGsoType,
} from './super-packet.ts';

/** The largest packet that is made: what the length field of IPv4 can say. */
const MAX_BYTES = 65_535;
const IPV4_WITHOUT_OPTIONS = 0x45;
const DONT_FRAGMENT = 0x4000;
/** More fragments, and the fragment offset, and the reserved bit. */
const FRAGMENT_BITS = 0xbfff;
const ACK = 0x10;
const PSH = 0x08;

export class SegmentJoiner {
  /** Bytes of the packet at its place; 0: there is none. */
  length = 0;
  /** How many packets it stands for. */
  segments = 0;
  /** What a kernel is asked to do with it: nothing, as long as it stands for one. */
  readonly offload: Offload = { ...NO_OFFLOAD };
  readonly #bytes: Uint8Array;
  readonly #offset: number;
  readonly #mtu: number;
  #ipBytes = 0;
  #headerBytes = 0;
  #gsoSize = 0;
  /** What the next segment begins with, as a signed integer. */
  #nextSequence = 0;
  /** A short segment, or one that is to be delivered at once, is the last. */
  #isComplete = false;

  /**
   * @param bytes where the packet is put together, at `offset`; room for 65,535 bytes
   * @param mtu what a kernel that cuts it again takes: longer packets are not joined
   */
  constructor(bytes: Uint8Array, offset: number, mtu: number) {
    this.#bytes = bytes;
    this.#offset = offset;
    this.#mtu = mtu;
  }

  /**
   * Begins with a packet, which is copied. Nothing may be held.
   *
   * @param length of a packet that passed `checkPacket`
   * @returns whether it was taken: others can follow it
   */
  begin(bytes: Uint8Array, offset: number, length: number): boolean {
    const headerBytes = joinableHeader(bytes, offset, length);
    if (headerBytes === 0 || length > this.#mtu || length - headerBytes < MIN_GSO_SIZE) return false;
    const ipBytes = ipVersion(bytes, offset) === 4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES;
    // One that ends a train is met alone, too often to be copied for nothing.
    if ((readU8(bytes, offset + ipBytes + 13) & PSH) !== 0) return false;
    if (!isTcpChecksumRight(bytes, offset, ipBytes, length)) return false;
    const target = this.#bytes;
    const at = this.#offset;
    for (let index = 0; index < length; index++) target[at + index] = readU8(bytes, offset + index);
    this.#ipBytes = ipBytes;
    this.#headerBytes = headerBytes;
    this.#gsoSize = length - headerBytes;
    this.#nextSequence = (readI32(bytes, offset + ipBytes + 4) + this.#gsoSize) | 0;
    this.#isComplete = false;
    this.length = length;
    this.segments = 1;
    return true;
  }

  /**
   * Joins a packet to what is held.
   *
   * @returns whether it was taken; if not, what is held has to go before it
   */
  append(bytes: Uint8Array, offset: number, length: number): boolean {
    const headerBytes = this.#headerBytes;
    const payload = length - headerBytes;
    if (this.#isComplete || this.segments === 0 || payload <= 0 || payload > this.#gsoSize) return false;
    if (this.length + payload > MAX_BYTES || this.segments === MAX_TCP_SEGMENTS) return false;
    const ipBytes = this.#ipBytes;
    if (!this.#hasSameHeader(bytes, offset) || readI32(bytes, offset + ipBytes + 4) !== this.#nextSequence)
      return false;
    if (ipBytes === IPV4_HEADER_BYTES && !ipv4HeaderChecksumOk(bytes, offset, ipBytes)) return false;
    if (!isTcpChecksumRight(bytes, offset, ipBytes, length)) return false;
    const target = this.#bytes;
    const at = this.#offset + this.length;
    const from = offset + headerBytes;
    for (let index = 0; index < payload; index++) target[at + index] = readU8(bytes, from + index);
    this.#nextSequence = (this.#nextSequence + payload) | 0;
    this.length += payload;
    this.segments += 1;
    const isPushed = (readU8(bytes, offset + ipBytes + 13) & PSH) !== 0;
    if (isPushed) {
      const flags = this.#offset + ipBytes + 13;
      target[flags] = readU8(target, flags) | PSH;
    }
    this.#isComplete = isPushed || payload < this.#gsoSize;
    return true;
  }

  /** Makes the headers and `offload` say what is held, which is written next. */
  finish(): void {
    const { offload } = this;
    if (this.segments < 2) {
      Object.assign(offload, NO_OFFLOAD);
      return;
    }
    const ipBytes = this.#ipBytes;
    const isVersion4 = ipBytes === IPV4_HEADER_BYTES;
    const walk = (ipBytes << 8) | IpProtocol.tcp;
    setPayloadLength(this.#bytes, this.#offset, walk, this.#headerBytes, this.length - this.#headerBytes);
    offload.flags = VIRTIO_NEEDS_CSUM;
    offload.gsoType = isVersion4 ? VirtioGsoType.tcp4 : VirtioGsoType.tcp6;
    offload.headerLength = this.#headerBytes;
    offload.gsoSize = this.#gsoSize;
    offload.checksumStart = ipBytes;
    offload.checksumOffset = TCP_CHECKSUM_OFFSET;
  }

  /** Holds nothing any more. */
  clear(): void {
    this.length = 0;
    this.segments = 0;
  }

  /** Whether the headers are equal but for lengths, identification, checksums, sequence number and PSH. */
  #hasSameHeader(bytes: Uint8Array, offset: number): boolean {
    const held = this.#bytes;
    const at = this.#offset;
    const ipBytes = this.#ipBytes;
    if (ipBytes === IPV4_HEADER_BYTES) {
      if (readU16(bytes, offset) !== readU16(held, at)) return false;
      for (let index = 6; index < 10; index++) if (bytes[offset + index] !== held[at + index]) return false;
      for (let index = 12; index < 20; index++) if (bytes[offset + index] !== held[at + index]) return false;
    } else {
      if (readI32(bytes, offset) !== readI32(held, at)) return false;
      for (let index = 6; index < ipBytes; index++) if (bytes[offset + index] !== held[at + index]) return false;
    }
    const tcp = offset + ipBytes;
    const heldTcp = at + ipBytes;
    if (readI32(bytes, tcp) !== readI32(held, heldTcp) || readI32(bytes, tcp + 8) !== readI32(held, heldTcp + 8)) {
      return false;
    }
    if (readU8(bytes, tcp + 12) !== readU8(held, heldTcp + 12) || (readU8(bytes, tcp + 13) & ~PSH) !== ACK)
      return false;
    if (readU16(bytes, tcp + 14) !== readU16(held, heldTcp + 14)) return false;
    for (let index = ipBytes + 18; index < this.#headerBytes; index++) {
      if (bytes[offset + index] !== held[at + index]) return false;
    }
    return true;
  }
}

/**
 * Bytes of the headers of a packet that may be joined to others: TCP with ACK and at most PSH, no options of IP, not to be
 * fragmented. 0 for any other.
 */
function joinableHeader(bytes: Uint8Array, offset: number, length: number): number {
  let ipBytes: number;
  if (readU8(bytes, offset) === IPV4_WITHOUT_OPTIONS) {
    ipBytes = IPV4_HEADER_BYTES;
    if (readU8(bytes, offset + 9) !== IpProtocol.tcp) return 0;
    // Without DF the identification has a meaning, which cutting would give to others.
    const fragment = readU16(bytes, offset + 6);
    if ((fragment & DONT_FRAGMENT) === 0 || (fragment & FRAGMENT_BITS) !== 0) return 0;
    if (!ipv4HeaderChecksumOk(bytes, offset, ipBytes)) return 0;
  } else if (ipVersion(bytes, offset) === 6) {
    ipBytes = IPV6_HEADER_BYTES;
    if (readU8(bytes, offset + 6) !== IpProtocol.tcp) return 0;
  } else {
    return 0;
  }
  if (ipBytes + TCP_HEADER_BYTES > length) return 0;
  const tcp = offset + ipBytes;
  const tcpBytes = (readU8(bytes, tcp + 12) >>> 4) << 2;
  if (tcpBytes < TCP_HEADER_BYTES || ipBytes + tcpBytes > length) return 0;
  return (readU8(bytes, tcp + 13) & ~PSH) === ACK ? ipBytes + tcpBytes : 0;
}

function isTcpChecksumRight(bytes: Uint8Array, offset: number, ipBytes: number, length: number): boolean {
  const tcpLength = length - ipBytes;
  const version = ipBytes === IPV4_HEADER_BYTES ? 4 : 6;
  const pseudo = pseudoHeaderSum(bytes, offset, version, IpProtocol.tcp, tcpLength);
  return fold(addWords(bytes, offset + ipBytes, tcpLength, pseudo)) === 0xffff;
}
