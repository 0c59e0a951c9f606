/**
 * A TUN device in memory, for tests and for the whole stack in one process.
 *
 * Hides nothing of the kernel: `inject` is what an application would send into the device, `written` is what the program
 * has put out of it. Delivery is asynchronous and in batches, like a real device's; a full queue drops, like a real one's.
 */

import { VpnError } from '../base/errors.ts';
import type { Offload } from '../ip/super-packet.ts';
import { createPlainPacketBuffer } from './packet-buffer.ts';
import {
  MAX_PACKET_BYTES,
  PACKET_OFFSET,
  type PacketBuffer,
  type TunCounters,
  type TunDevice,
  type TunReader,
} from './tun.ts';

/** A packet as it crossed the device. */
export interface MemoryPacket {
  bytes: Uint8Array;
  /** A `GsoType` for an injected packet. */
  gsoType: number;
  flags: number;
  gsoSize: number;
}

/** A packet that the program wrote, with what it allowed the kernel to do. */
export interface WrittenPacket {
  bytes: Uint8Array;
  offload: Readonly<Offload>;
}

export interface MemoryTunOptions {
  name?: string;
  kind?: 'tun' | 'tap';
  mtu?: number;
  superPackets?: boolean;
  uso?: boolean;
}

const QUEUE_PACKETS = 500;

export class MemoryTun implements TunDevice {
  readonly name: string;
  readonly kind: 'tun' | 'tap';
  readonly mtu: number;
  readonly superPackets: boolean;
  readonly takesSuperPackets: boolean;
  readonly uso: boolean;
  readonly counters: TunCounters = {
    readPackets: 0,
    readBytes: 0,
    writtenPackets: 0,
    writtenBytes: 0,
    writeErrors: 0,
    wakes: 0,
  };
  /** What the program has written, oldest first; the test may empty it. */
  readonly written: WrittenPacket[] = [];
  /** Called instead of collecting into `written`. */
  onWritten: ((packet: WrittenPacket) => void) | undefined;
  /** While true every write is refused, as by a device that is down. */
  refusesWrites = false;

  readonly #readBuffer = createPlainPacketBuffer();
  readonly #queue: MemoryPacket[] = [];
  #reader: TunReader | undefined;
  #isWakeDue = false;
  #isClosed = false;

  constructor(options: MemoryTunOptions = {}) {
    this.name = options.name ?? 'memory0';
    this.kind = options.kind ?? 'tun';
    this.mtu = options.mtu ?? 1400;
    this.superPackets = options.superPackets ?? true;
    this.takesSuperPackets = this.kind === 'tun';
    this.uso = options.uso ?? this.superPackets;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  createBuffer(): PacketBuffer {
    return createPlainPacketBuffer();
  }

  start(reader: TunReader): void {
    if (this.#reader !== undefined || this.#isClosed) {
      throw new VpnError('ERR_INVARIANT', `the device ${this.name} was started twice or after it was closed`);
    }
    this.#reader = reader;
    this.#schedule();
  }

  /** Sends a packet into the device; false when its queue is full, as a kernel's would be. The bytes are copied. */
  inject(bytes: Uint8Array, facts: { gsoType?: number; flags?: number; gsoSize?: number } = {}): boolean {
    if (bytes.length > MAX_PACKET_BYTES || this.#isClosed || this.#queue.length >= QUEUE_PACKETS) return false;
    this.#queue.push({
      bytes: bytes.slice(),
      gsoType: facts.gsoType ?? 0,
      flags: facts.flags ?? 0,
      gsoSize: facts.gsoSize ?? 0,
    });
    this.#schedule();
    return true;
  }

  #schedule(): void {
    if (this.#isWakeDue || this.#reader === undefined || this.#queue.length === 0) return;
    this.#isWakeDue = true;
    setImmediate(() => this.#wake());
  }

  #wake(): void {
    this.#isWakeDue = false;
    const reader = this.#reader;
    if (reader === undefined || this.#isClosed) return;
    this.counters.wakes += 1;
    for (const packet of this.#queue.splice(0, 64)) {
      this.#readBuffer.bytes.set(packet.bytes, PACKET_OFFSET);
      this.counters.readPackets += 1;
      this.counters.readBytes += packet.bytes.length;
      reader.packet(this.#readBuffer.bytes, packet.bytes.length, packet.gsoType, packet.flags, packet.gsoSize);
      if (this.#isClosed) return;
    }
    reader.idle();
    this.#schedule();
  }

  write(buffer: PacketBuffer, length: number, offload: Offload): boolean {
    if (this.#isClosed || this.refusesWrites) {
      this.counters.writeErrors += 1;
      return false;
    }
    const packet = { bytes: buffer.bytes.slice(PACKET_OFFSET, PACKET_OFFSET + length), offload: { ...offload } };
    // The contract lets a device overwrite this room: whoever keeps something there must fail here, too.
    buffer.bytes.fill(0xee, 0, PACKET_OFFSET);
    this.counters.writtenPackets += 1;
    this.counters.writtenBytes += length;
    if (this.onWritten === undefined) this.written.push(packet);
    else this.onWritten(packet);
    return true;
  }

  close(): Promise<void> {
    this.#isClosed = true;
    this.#queue.length = 0;
    return Promise.resolve();
  }
}
