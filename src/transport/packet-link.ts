/**
 * Joins a TUN device to the data frames of a session: packets out of the device become PACKET and SUPER frames, frames
 * become packets into it.
 *
 * Both ends use it; they differ only in which address of an arriving packet must be the session's own (a gateway checks
 * the source, a client the destination). It hides the frame layout, the rebuilding of the kernel's offload header and
 * where bytes stand while a frame arrives in pieces. It runs once per packet: it allocates nothing and throws nothing;
 * what it refuses is counted by reason.
 *
 * @see docs/protocol.md#REQ-SUPER-001
 */

import type { Prefix } from '../ip/address.ts';
import { completeChecksum } from '../ip/checksum.ts';
import { DropReason } from '../ip/drop-reason.ts';
import type { Lease } from '../ip/lease-pool.ts';
import { checkPacket } from '../ip/packet.ts';
import { RouteTable } from '../ip/route-table.ts';
import { writeSegment } from '../ip/segment.ts';
import { SegmentJoiner } from '../ip/segment-joiner.ts';
import {
  FLAG_PARTIAL_CHECKSUM,
  GsoType,
  headerBytes,
  MAX_UDP_SEGMENTS,
  MIN_GSO_SIZE,
  NO_OFFLOAD,
  type Offload,
  type OffloadLimits,
  rebuildOffload,
  segmentCount,
  VirtioGsoType,
} from '../ip/super-packet.ts';
import type { TrafficClasses } from '../ip/traffic-class.ts';
import { PACKET_OFFSET, type PacketBuffer, type TunDevice } from '../os/tun.ts';
import { FRAME_HEADER_BYTES, FrameType, SUPER_HEADER_BYTES, writeFrameHeader } from '../protocol/frame.ts';
import type { Channel } from './channel.ts';
import { expandFrame, FrameCompressor } from './compression.ts';
import { FlowSpread } from './flow-spread.ts';
import { PacedDelivery } from './paced-delivery.ts';
import type { Pacer } from './pacer.ts';
import type { QueueBudget } from './queue-budget.ts';

const PACKET_FRAME_OFFSET = PACKET_OFFSET - FRAME_HEADER_BYTES;
const SUPER_PAYLOAD_OFFSET = PACKET_OFFSET - SUPER_HEADER_BYTES;
const SUPER_FRAME_OFFSET = SUPER_PAYLOAD_OFFSET - FRAME_HEADER_BYTES;

/** More than any size: packets of this kind never take the fast path. */
const ALWAYS_LOOK = 0x1_0000;

/** By `GsoType`: the least size of segments that a peer takes unseen, of one that takes super-packets and of one that does not. */
const LEAST_SIZE = Uint32Array.of(0, MIN_GSO_SIZE, MIN_GSO_SIZE, ALWAYS_LOOK);
const NO_SIZE = new Uint32Array(4).fill(ALWAYS_LOOK);
/** Of the packet at hand: it is used up before the next is looked at. */
const parsed: Offload = { ...NO_OFFLOAD };

/** Packets below this wait for the end of the wake. A super-packet fills a write of its own. */
const DEFER_BELOW_BYTES = 8192;

/** Where the session's own address stands in a packet that arrives in a frame. */
export type OwnAddress = 'source' | 'destination';

/** Where segments are put together. */
interface Joining {
  readonly buffer: PacketBuffer;
  readonly joiner: SegmentJoiner;
}

/** Buffers for frames that arrive in pieces, shared by all links of a device. Empty ones cost nothing. */
export class PacketBufferPool {
  /** For frames that are complete in one chunk: used and done within one call. */
  readonly shared: PacketBuffer;
  readonly #device: TunDevice;
  readonly #free: PacketBuffer[] = [];
  #joining: Joining | undefined;
  static readonly #KEPT = 64;

  constructor(device: TunDevice) {
    this.#device = device;
    this.shared = device.createBuffer();
  }

  /** For segments of one chunk. Chunks are read one after the other, so that one serves all links. */
  get joining(): Joining {
    if (this.#joining === undefined) {
      const buffer = this.#device.createBuffer();
      this.#joining = { buffer, joiner: new SegmentJoiner(buffer.bytes, PACKET_OFFSET, this.#device.mtu) };
    }
    return this.#joining;
  }

  take(): PacketBuffer {
    return this.#free.pop() ?? this.#device.createBuffer();
  }

  give(buffer: PacketBuffer): void {
    if (this.#free.length < PacketBufferPool.#KEPT) this.#free.push(buffer);
  }
}

/**
 * The links that have small packets to send. They are sent when the device has no more for now, so that a wake of many small
 * packets costs one write and one TLS record for every 16 KiB of them, not for every packet. Where packets come one by one,
 * waiting would only delay them.
 */
export class SendBatch {
  readonly #links: TunnelLink[] = [];
  /** Small packets of this wake; and whether the one before had several. */
  #packets = 0;
  #isBusy = false;

  /** Told of each small packet. @returns whether it should wait for others */
  mayWait(): boolean {
    this.#packets += 1;
    return this.#isBusy || this.#packets > 1;
  }

  add(link: TunnelLink): void {
    this.#links.push(link);
  }

  /** Called at the end of every wake of a device. */
  flush(): void {
    const links = this.#links;
    this.#isBusy = this.#packets > 1;
    this.#packets = 0;
    for (let i = 0; i < links.length; i++) links[i]?.flush();
    links.length = 0;
  }
}

/**
 * What a link counts; plain integers, read at scrape. A super-packet counts as the segments that it stands for, each with its
 * headers.
 */
export interface LinkCounters {
  sentPackets: number;
  sentBytes: number;
  receivedPackets: number;
  receivedBytes: number;
}

export interface PacketLinkOptions {
  device: TunDevice;
  buffers: PacketBufferPool;
  /** Flushed by whoever reads the device. */
  batch: SendBatch;
  lease: Lease;
  ownAddress: OwnAddress;
  /** Whether both ends have agreed on SUPER frames. */
  superPackets: boolean;
  /** Whether both ends have agreed on COMPRESSED frames. */
  compression?: boolean;
  /** What this end's kernel takes. */
  limits: OffloadLimits;
  /** Drops by `DropReason`, in segments, shared by all links of a process. */
  drops: Float64Array;
}

/** What a session's packets have to keep beside the rules. */
export interface Shape {
  /** Rates of what is sent. */
  readonly sending?: Pacer | undefined;
  /** Rates of what has been received, before it goes on. */
  readonly receiving?: Pacer | undefined;
  readonly classes?: TrafficClasses | undefined;
  /** Nothing is carried, either way: the quota is used up. */
  readonly isRefused: boolean;
  /** Bound of what waits to go on, and of all that waits. */
  readonly queueBytes: number;
  readonly queues?: QueueBudget | undefined;
}

/** One session's way between a device and its data channels, whatever a frame carries. */
export interface TunnelLink {
  readonly counters: LinkCounters;
  /** Which channel a packet goes to; without one it is dropped. */
  readonly spread: FlowSpread;
  /** Sends what the device has just read; see `TunReader.packet` for the arguments. */
  send(bytes: Uint8Array, length: number, gsoType: number, flags: number, gsoSize: number): void;
  /** Sends the small packets that wait. */
  flush(): void;
  /** What its packets keep from now on. */
  shape(shape: Shape): void;
  /** Called about once a second. */
  handleTick(): void;
  /** Nothing comes or goes any more. */
  close(): void;
  /** The receiving half for one channel. */
  createReceiver(): PacketReceiver;
}

/** One session's way between a TUN device and its data channels. */
export class PacketLink implements TunnelLink {
  readonly counters: LinkCounters = { sentPackets: 0, sentBytes: 0, receivedPackets: 0, receivedBytes: 0 };
  readonly #device: TunDevice;
  readonly #buffers: PacketBufferPool;
  readonly #batch: SendBatch;
  readonly #superPackets: boolean;
  readonly #limits: OffloadLimits;
  readonly #drops: Float64Array;
  /** By `GsoType`: a packet with smaller segments is looked at before it is sent, as the peer might refuse it. */
  readonly #leastSize: Uint32Array;
  readonly #own4: Uint8Array | undefined;
  readonly #own6: Uint8Array | undefined;
  /** Undefined: none. */
  #networks: RouteTable<true> | undefined;
  readonly #ownOffset4: number;
  readonly #ownOffset6: number;
  /** Which channel a packet goes to; without one it is dropped. */
  readonly spread: FlowSpread;
  readonly #compression: boolean;
  /** Puts segments together that the peer has sent one by one, where it cannot do otherwise. */
  readonly #joining: Joining | undefined;
  #isDeferring = false;
  #isRefused = false;
  /** Where received packets wait for their time, while they have to keep a rate. */
  #delivery: PacedDelivery | undefined;

  constructor(options: PacketLinkOptions) {
    this.#device = options.device;
    this.#buffers = options.buffers;
    this.#batch = options.batch;
    this.#superPackets = options.superPackets;
    this.#compression = options.compression === true;
    this.spread = new FlowSpread(undefined, this.#compression ? new FrameCompressor() : undefined);
    this.#limits = options.limits;
    this.#leastSize = options.superPackets ? LEAST_SIZE : NO_SIZE;
    this.#drops = options.drops;
    const isJoining = !options.superPackets && options.device.takesSuperPackets;
    this.#joining = isJoining ? options.buffers.joining : undefined;
    this.#own4 = options.lease.v4?.bytes;
    this.#own6 = options.lease.v6?.bytes;
    this.#ownOffset4 = PACKET_OFFSET + (options.ownAddress === 'source' ? 12 : 16);
    this.#ownOffset6 = PACKET_OFFSET + (options.ownAddress === 'source' ? 8 : 24);
  }

  /** Sends a packet that the device has just read; see `TunReader.packet` for the arguments. */
  send(bytes: Uint8Array, length: number, gsoType: number, flags: number, gsoSize: number): void {
    const channel = this.spread.pick(bytes, PACKET_OFFSET, length);
    const header = gsoSize === 0 ? 0 : headerBytes(bytes, PACKET_OFFSET, length);
    const segments = segmentCount(length, header, gsoSize);
    if (channel === undefined || this.#isRefused) {
      this.#drop(this.#isRefused ? DropReason.quota : DropReason.noChannel, segments);
      return;
    }
    let start = PACKET_FRAME_OFFSET;
    if (gsoType !== GsoType.none || flags !== 0) {
      if (gsoSize < (this.#leastSize[gsoType] ?? ALWAYS_LOOK) && !this.#isTaken(length, gsoType, gsoSize)) {
        this.#sendCut(channel, bytes, length, gsoType, gsoSize);
        return;
      }
      start = SUPER_FRAME_OFFSET;
      writeFrameHeader(bytes, start, FrameType.super, SUPER_HEADER_BYTES + length);
      bytes[SUPER_PAYLOAD_OFFSET] = gsoType;
      bytes[SUPER_PAYLOAD_OFFSET + 1] = flags;
      bytes[SUPER_PAYLOAD_OFFSET + 2] = gsoSize >>> 8;
      bytes[SUPER_PAYLOAD_OFFSET + 3] = gsoSize & 0xff;
    } else {
      writeFrameHeader(bytes, start, FrameType.packet, length);
    }
    const end = PACKET_OFFSET + length;
    const isSent =
      length < DEFER_BELOW_BYTES && this.#batch.mayWait()
        ? this.#defer(channel, bytes, start, end)
        : channel.sendData(bytes, start, end);
    if (!isSent) {
      this.#drop(DropReason.queueFull, segments);
      return;
    }
    this.counters.sentPackets += segments;
    this.counters.sentBytes += length + (segments - 1) * header;
  }

  #defer(channel: Channel, bytes: Uint8Array, start: number, end: number): boolean {
    if (!this.#isDeferring) {
      this.#isDeferring = true;
      this.#batch.add(this);
    }
    return channel.deferData(bytes, start, end);
  }

  /** What its packets keep from now on. */
  shape(shape: Shape): void {
    const { sending, receiving, classes, isRefused, queueBytes, queues } = shape;
    this.#isRefused = isRefused;
    this.spread.shape(sending, classes);
    if (this.#delivery !== undefined) this.#delivery.pacer = receiving;
    else if (receiving !== undefined) {
      this.#delivery = new PacedDelivery({
        pacer: receiving,
        limitBytes: queueBytes,
        budget: queues,
        deliver: (bytes, at, frameBytes) => this.#goOn(bytes, at, frameBytes),
      });
    }
    if (this.#delivery !== undefined && classes !== undefined) this.#delivery.classes = classes;
    if (receiving === undefined && this.#delivery?.queuedBytes === 0) {
      this.#delivery.close();
      this.#delivery = undefined;
    }
  }

  /** Networks behind the client whose addresses count as the session's own from now on. */
  setNetworks(networks: readonly Prefix[]): void {
    const table = new RouteTable<true>();
    for (const network of networks) table.set(network, true);
    this.#networks = networks.length === 0 ? undefined : table;
  }

  /** Called about once a second. */
  handleTick(): void {
    this.spread.handleTick();
    this.#delivery?.releaseIfIdle();
  }

  /** Nothing comes or goes any more. */
  close(): void {
    this.#writeJoined();
    this.#isRefused = true;
    this.#delivery?.close();
    this.#delivery = undefined;
  }

  /** Sends the small packets that wait. */
  flush(): void {
    this.#isDeferring = false;
    this.spread.flush();
  }

  /** Whether the peer takes this as a super-packet. Its own limits on UDP are the only ones that a kernel exceeds. */
  #isTaken(length: number, gsoType: number, gsoSize: number): boolean {
    return (
      gsoType === GsoType.udpL4 &&
      this.#superPackets &&
      this.#limits.uso &&
      gsoSize >= MIN_GSO_SIZE &&
      length <= MAX_UDP_SEGMENTS * gsoSize
    );
  }

  /** Does in software what the peer's kernel is not asked to do: segments and checksums. */
  #sendCut(channel: Channel, bytes: Uint8Array, length: number, gsoType: number, gsoSize: number): void {
    const offload = parsed;
    // The kernel's own header is not needed: the parse of a partial checksum finds all that cutting takes.
    const reason = rebuildOffload(
      bytes,
      PACKET_OFFSET,
      length,
      GsoType.none,
      FLAG_PARTIAL_CHECKSUM,
      0,
      this.#limits,
      offload,
    );
    if (reason !== DropReason.none) {
      this.#drop(reason);
      return;
    }
    if (gsoSize === 0) {
      completeChecksum(bytes, PACKET_OFFSET, length, offload.checksumStart, offload.checksumOffset);
      this.#sendPacket(channel, bytes, length);
      return;
    }
    offload.gsoSize = gsoSize;
    offload.gsoType = gsoType === GsoType.udpL4 ? VirtioGsoType.udpL4 : VirtioGsoType.tcp4;
    // Free here: a received frame is done with it within one call.
    const segment = this.#buffers.shared.bytes;
    const count = segmentCount(length, offload.headerLength, gsoSize);
    for (let index = 0; index < count; index++) {
      this.#sendPacket(
        channel,
        segment,
        writeSegment(bytes, PACKET_OFFSET, length, offload, index, segment, PACKET_OFFSET),
      );
    }
  }

  #sendPacket(channel: Channel, bytes: Uint8Array, length: number): void {
    writeFrameHeader(bytes, PACKET_FRAME_OFFSET, FrameType.packet, length);
    if (!channel.sendData(bytes, PACKET_FRAME_OFFSET, PACKET_OFFSET + length)) {
      this.#drop(DropReason.queueFull);
      return;
    }
    this.counters.sentPackets += 1;
    this.counters.sentBytes += length;
  }

  /** The receiving half for one channel: a decoder fills it, a packet comes out of the device. */
  createReceiver(): PacketReceiver {
    return new PacketReceiver(
      this.#buffers,
      (buffer, type, length) => this.#receive(buffer, type, length),
      this.#joining === undefined ? undefined : () => this.#writeJoined(),
    );
  }

  #receive(buffer: PacketBuffer, type: number, payloadLength: number): void {
    if (type === FrameType.compressed) {
      this.#expand(buffer.bytes.subarray(PACKET_OFFSET, PACKET_OFFSET + payloadLength));
      return;
    }
    const { bytes } = buffer;
    const isSuper = type === FrameType.super;
    const length = isSuper ? payloadLength - SUPER_HEADER_BYTES : payloadLength;
    const offload = isSuper ? parsed : NO_OFFLOAD;
    let reason: DropReason = DropReason.notNegotiated;
    if (isSuper || type === FrameType.packet) reason = this.#check(bytes, isSuper, length);
    if (reason === DropReason.none && !this.#isOwn(bytes)) reason = DropReason.sourceNotLeased;
    if (reason !== DropReason.none) {
      this.#drop(reason);
      return;
    }
    const segments = segmentCount(length, offload.headerLength, offload.gsoSize);
    if (this.#isRefused) {
      this.#drop(DropReason.quota, segments);
      return;
    }
    const delivery = this.#delivery;
    if (delivery !== undefined) {
      const start = isSuper ? SUPER_FRAME_OFFSET : PACKET_FRAME_OFFSET;
      const end = PACKET_OFFSET + length;
      writeFrameHeader(bytes, start, type, payloadLength);
      if (!delivery.mayPass(bytes, start, end)) {
        if (!delivery.push(bytes, start, end)) this.#drop(DropReason.queueFull, segments);
        return;
      }
    } else if (this.#joining !== undefined && this.#isJoined(this.#joining.joiner, bytes, length)) return;
    this.#write(buffer, length, offload, segments);
  }

  #expand(payload: Uint8Array): void {
    if (!this.#compression) {
      this.#drop(DropReason.notNegotiated);
      return;
    }
    const frame = expandFrame(payload);
    if (frame === undefined) {
      this.#drop(DropReason.compressed);
      return;
    }
    const buffer = this.#buffers.shared;
    buffer.bytes.set(frame.payload, frame.type === FrameType.super ? SUPER_PAYLOAD_OFFSET : PACKET_OFFSET);
    this.#receive(buffer, frame.type, frame.payload.length);
  }

  /** Whether what a frame carries is taken; fills `parsed` for a super-packet. */
  #check(bytes: Uint8Array, isSuper: boolean, length: number): DropReason {
    if (!isSuper) return checkPacket(bytes, PACKET_OFFSET, length);
    if (!this.#superPackets) return DropReason.notNegotiated;
    return rebuildOffload(
      bytes,
      PACKET_OFFSET,
      length,
      bytes[SUPER_PAYLOAD_OFFSET] ?? 0,
      bytes[SUPER_PAYLOAD_OFFSET + 1] ?? 0,
      ((bytes[SUPER_PAYLOAD_OFFSET + 2] ?? 0) << 8) | (bytes[SUPER_PAYLOAD_OFFSET + 3] ?? 0),
      this.#limits,
      parsed,
    );
  }

  /** A frame that has been checked and has waited for its time. It may be a part of what came. */
  #goOn(frame: Uint8Array, at: number, frameBytes: number): void {
    const isSuper = frame[at] === FrameType.super;
    const start = isSuper ? SUPER_FRAME_OFFSET : PACKET_FRAME_OFFSET;
    // Free here: a received frame is done with it within one call.
    const buffer = this.#buffers.shared;
    buffer.bytes.set(frame.subarray(at, at + frameBytes), start);
    const length = start + frameBytes - PACKET_OFFSET;
    const offload = isSuper ? parsed : NO_OFFLOAD;
    const reason = this.#check(buffer.bytes, isSuper, length);
    if (reason !== DropReason.none) this.#drop(reason);
    else this.#write(buffer, length, offload, segmentCount(length, offload.headerLength, offload.gsoSize));
  }

  /** Keeps a packet until the chunk is read, if it can be joined to others. Otherwise it goes next, in order. */
  #isJoined(joiner: SegmentJoiner, bytes: Uint8Array, length: number): boolean {
    if (joiner.append(bytes, PACKET_OFFSET, length)) return true;
    this.#writeJoined();
    return joiner.begin(bytes, PACKET_OFFSET, length);
  }

  #writeJoined(): void {
    if (this.#joining === undefined || this.#joining.joiner.segments === 0) return;
    const { buffer, joiner } = this.#joining;
    joiner.finish();
    const { length, segments } = joiner;
    joiner.clear();
    this.#write(buffer, length, joiner.offload, segments);
  }

  #write(buffer: PacketBuffer, length: number, offload: Readonly<Offload>, segments: number): void {
    if (!this.#device.write(buffer, length, offload)) {
      this.#drop(DropReason.tunRefused, segments);
      return;
    }
    this.counters.receivedPackets += segments;
    this.counters.receivedBytes += length + (segments - 1) * offload.headerLength;
  }

  #isOwn(bytes: Uint8Array): boolean {
    const version4 = ((bytes[PACKET_OFFSET] ?? 0) & 0xf0) === 0x40;
    const own = version4 ? this.#own4 : this.#own6;
    if (own === undefined) return false;
    const offset = version4 ? this.#ownOffset4 : this.#ownOffset6;
    for (let i = 0; i < own.length; i++) {
      if (bytes[offset + i] !== own[i]) return this.#networks?.lookup(bytes, offset, version4 ? 4 : 6) === true;
    }
    return true;
  }

  /** What is malformed counts as one: what it stands for cannot be told. */
  #drop(reason: number, segments = 1): void {
    this.#drops[reason] = (this.#drops[reason] ?? 0) + segments;
  }
}

/** Gives a frame decoder the places for data frames of one channel; see `FrameSink.reserve`. */
export class PacketReceiver {
  target: Uint8Array;
  targetOffset: number = PACKET_OFFSET;
  readonly #pool: PacketBufferPool;
  readonly #deliver: (buffer: PacketBuffer, type: number, length: number) => void;
  readonly #idle: (() => void) | undefined;
  #buffer: PacketBuffer;

  /** @param idle told when a chunk has been read */
  constructor(
    pool: PacketBufferPool,
    deliver: (buffer: PacketBuffer, type: number, length: number) => void,
    idle?: () => void,
  ) {
    this.#pool = pool;
    this.#deliver = deliver;
    this.#idle = idle;
    this.#buffer = pool.shared;
    this.target = pool.shared.bytes;
  }

  reserve(type: number, _length: number, whole: boolean): void {
    const buffer = whole ? this.#pool.shared : this.#pool.take();
    this.#buffer = buffer;
    this.target = buffer.bytes;
    this.targetOffset = type === FrameType.super ? SUPER_PAYLOAD_OFFSET : PACKET_OFFSET;
  }

  data(type: number, length: number): void {
    this.#deliver(this.#buffer, type, length);
    this.#giveBack();
  }

  /** See `FrameSink.idle`. */
  idle(): void {
    this.#idle?.();
  }

  /** Nothing more comes: gives back a buffer that a broken-off frame holds. */
  release(): void {
    this.idle();
    this.#giveBack();
  }

  #giveBack(): void {
    if (this.#buffer !== this.#pool.shared) this.#pool.give(this.#buffer);
    this.#buffer = this.#pool.shared;
  }
}
