/**
 * What the rest of the program knows of a TUN device.
 *
 * Hides the operating system's way of reading and writing IP packets and its offload header. Packets cross this boundary
 * in place: a device reads into and writes from a `PacketBuffer` that leaves room in front of the packet, so that a frame
 * header (or the kernel's `virtio_net_hdr`) is put there without moving the packet.
 */

import type { VpnError } from '../base/errors.ts';
import type { Offload } from '../ip/super-packet.ts';

/** Bytes in front of the packet in a `PacketBuffer`: room for a frame header or for the kernel's header. */
export const PACKET_OFFSET = 16;

/** The largest packet a device gives or takes: an IPv6 header and 65,535 bytes of payload. */
export const MAX_PACKET_BYTES = 65_575;

/** Memory whose address is known, so that system calls need no look-up per packet. The packet starts at `PACKET_OFFSET`. */
export interface PacketBuffer {
  readonly bytes: Uint8Array;
  /** Address of `bytes[0]`; 0n for memory that no system call sees. Valid as long as this object is reachable. */
  readonly address: bigint;
}

/** Takes what a device reads. Called synchronously; nothing it is given may be kept. It must not throw. */
export interface TunReader {
  /**
   * One packet, at `bytes[PACKET_OFFSET, PACKET_OFFSET + length)`. `bytes[0, PACKET_OFFSET)` may be overwritten.
   *
   * @param gsoType a `GsoType`
   * @param flags bit 0 (`FLAG_PARTIAL_CHECKSUM`): the transport checksum holds only the pseudo-header
   * @param gsoSize payload bytes per segment, 0 when `gsoType` is none
   */
  packet(bytes: Uint8Array, length: number, gsoType: number, flags: number, gsoSize: number): void;
  /** No more packets for now. */
  idle(): void;
  /** The device is gone: somebody removed it. Nothing more comes; the owner still has to close it. */
  failed?(error: VpnError): void;
}

/** Plain integers, read at scrape. Packets count frames crossing the device, not segments. */
export interface TunCounters {
  readPackets: number;
  readBytes: number;
  writtenPackets: number;
  writtenBytes: number;
  /** Writes that the kernel refused: device down, queue full, malformed. */
  writeErrors: number;
  /** Wake-ups of the reader. */
  wakes: number;
}

/** A TUN device that belongs to the caller until `close`. */
export interface TunDevice {
  readonly name: string;
  /** What its packets are: of IP (`tun`, the default), or Ethernet frames. */
  readonly kind?: 'tun' | 'tap';
  /** Whether the device gives and takes super-packets and partial checksums. */
  readonly superPackets: boolean;
  /** Whether `write` takes super-packets: of TCP in any case. A device can take them without giving any. */
  readonly takesSuperPackets: boolean;
  /** Whether it also takes UDP super-packets (Linux 6.2 and later). */
  readonly uso: boolean;
  readonly mtu: number;
  readonly counters: TunCounters;
  /** A buffer that `write` takes; it stays usable until the device is closed. */
  createBuffer(): PacketBuffer;
  /** Starts reading. Called once. Every wake reads a bounded number of packets, so that sockets get their turn. */
  start(reader: TunReader): void;
  /**
   * Writes the packet at `buffer.bytes[PACKET_OFFSET, PACKET_OFFSET + length)`. Overwrites `bytes[0, PACKET_OFFSET)`.
   *
   * @param offload what the kernel may do to the packet; `NO_OFFLOAD` for a device that takes no super-packets
   * @returns false when the kernel refused it (counted)
   */
  write(buffer: PacketBuffer, length: number, offload: Offload): boolean;
  /** Stops reading and closes the device; the kernel removes it. Idempotent. */
  close(): Promise<void>;
}
