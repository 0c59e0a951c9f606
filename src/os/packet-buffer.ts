/**
 * Makes packet buffers: one packet of the largest size, with `PACKET_OFFSET` bytes of room in front.
 *
 * Hides where the memory lies. A native buffer has an address for system calls; a plain one is for the in-memory device.
 */

import { NativeMemory } from './ffi.ts';
import { MAX_PACKET_BYTES, PACKET_OFFSET, type PacketBuffer } from './tun.ts';

const BUFFER_BYTES = PACKET_OFFSET + MAX_PACKET_BYTES;

/** A buffer whose address system calls may be given. */
export function createNativePacketBuffer(): PacketBuffer {
  return new NativeMemory(BUFFER_BYTES);
}

/** A buffer that no system call sees. */
export function createPlainPacketBuffer(): PacketBuffer {
  return { bytes: new Uint8Array(BUFFER_BYTES), address: 0n };
}
