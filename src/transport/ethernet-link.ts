/**
 * Joins Ethernet to the data frames of a session: frames out become ETHERNET frames of a channel, and these come in.
 *
 * Both ends use it. It hides the frame layout and where bytes stand while a frame arrives in pieces; what may come in and where
 * it goes is its owner's business. It runs once per frame: it allocates nothing and throws nothing.
 *
 * @see docs/protocol.md#REQ-ETHERNET-001
 */

import { DropReason } from '../ip/drop-reason.ts';
import { ETHERNET_HEADER_BYTES } from '../ip/ethernet.ts';
import { PACKET_OFFSET, type PacketBuffer } from '../os/tun.ts';
import { FRAME_HEADER_BYTES, FrameType, MAX_ETHERNET_PAYLOAD_BYTES, writeFrameHeader } from '../protocol/frame.ts';
import { FlowSpread } from './flow-spread.ts';
import { PacedDelivery } from './paced-delivery.ts';
import {
  type LinkCounters,
  type PacketBufferPool,
  PacketReceiver,
  type SendBatch,
  type Shape,
  type TunnelLink,
} from './packet-link.ts';

const FRAME_OFFSET = PACKET_OFFSET - FRAME_HEADER_BYTES;
const IP_OFFSET = PACKET_OFFSET + ETHERNET_HEADER_BYTES;

export interface EthernetLinkOptions {
  buffers: PacketBufferPool;
  /** Flushed by whoever reads the device. */
  batch: SendBatch;
  /** Drops by `DropReason`, shared by all links of a process. */
  drops: Float64Array;
  /**
   * Takes a frame that has come, at `buffer.bytes[PACKET_OFFSET, PACKET_OFFSET + length)`; it is borrowed, and what is in front
   * of it may be overwritten. Must not throw.
   *
   * @returns whether it went anywhere; if not, it has been counted
   */
  receive(buffer: PacketBuffer, length: number): boolean;
}

export class EthernetLink implements TunnelLink {
  readonly counters: LinkCounters = { sentPackets: 0, sentBytes: 0, receivedPackets: 0, receivedBytes: 0 };
  readonly spread = new FlowSpread();
  readonly #options: EthernetLinkOptions;
  #isDeferring = false;
  #isRefused = false;
  /** Where received frames wait for their time, while they have to keep a rate. */
  #delivery: PacedDelivery | undefined;

  constructor(options: EthernetLinkOptions) {
    this.#options = options;
  }

  /** Sends the frame at `bytes[PACKET_OFFSET, PACKET_OFFSET + length)`, which a device has just read. */
  send(bytes: Uint8Array, length: number): void {
    this.#send(bytes, length, true);
  }

  /** Sends a frame that has come from elsewhere; overwrites what is in front of it. */
  forward(bytes: Uint8Array, length: number): void {
    this.#send(bytes, length, false);
  }

  /** @param isBatched the batch is flushed soon: the frame may wait for others */
  #send(bytes: Uint8Array, length: number, isBatched: boolean): void {
    const { batch } = this.#options;
    const channel = this.spread.pick(bytes, IP_OFFSET, length - ETHERNET_HEADER_BYTES);
    if (channel === undefined || this.#isRefused) {
      this.#drop(this.#isRefused ? DropReason.quota : DropReason.noChannel);
      return;
    }
    if (length > MAX_ETHERNET_PAYLOAD_BYTES || length < ETHERNET_HEADER_BYTES) {
      this.#drop(length < ETHERNET_HEADER_BYTES ? DropReason.frameTooShort : DropReason.tooBig);
      return;
    }
    writeFrameHeader(bytes, FRAME_OFFSET, FrameType.ethernet, length);
    const end = PACKET_OFFSET + length;
    if (isBatched && !this.#isDeferring) {
      this.#isDeferring = true;
      batch.add(this);
    }
    const isSent = isBatched ? channel.deferData(bytes, FRAME_OFFSET, end) : channel.sendData(bytes, FRAME_OFFSET, end);
    if (!isSent) {
      this.#drop(DropReason.queueFull);
      return;
    }
    this.counters.sentPackets += 1;
    this.counters.sentBytes += length;
  }

  flush(): void {
    this.#isDeferring = false;
    this.spread.flush();
  }

  shape({ sending, receiving, classes, isRefused, queueBytes, queues }: Shape): void {
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

  handleTick(): void {
    this.spread.handleTick();
    this.#delivery?.releaseIfIdle();
  }

  close(): void {
    this.#isRefused = true;
    this.#delivery?.close();
    this.#delivery = undefined;
  }

  createReceiver(): PacketReceiver {
    return new PacketReceiver(this.#options.buffers, (buffer, type, length) => this.#receive(buffer, type, length));
  }

  #receive(buffer: PacketBuffer, type: number, length: number): void {
    if (type !== FrameType.ethernet) {
      this.#drop(DropReason.notNegotiated);
      return;
    }
    if (this.#isRefused) {
      this.#drop(DropReason.quota);
      return;
    }
    const delivery = this.#delivery;
    if (delivery !== undefined) {
      const { bytes } = buffer;
      const end = PACKET_OFFSET + length;
      writeFrameHeader(bytes, FRAME_OFFSET, FrameType.ethernet, length);
      if (!delivery.mayPass(bytes, FRAME_OFFSET, end)) {
        if (!delivery.push(bytes, FRAME_OFFSET, end)) this.#drop(DropReason.queueFull);
        return;
      }
    }
    this.#deliver(buffer, length);
  }

  /** A frame that has waited for its time. */
  #goOn(frame: Uint8Array, at: number, frameBytes: number): void {
    // Free here: a received frame is done with it within one call.
    const buffer = this.#options.buffers.shared;
    buffer.bytes.set(frame.subarray(at, at + frameBytes), FRAME_OFFSET);
    this.#deliver(buffer, frameBytes - FRAME_HEADER_BYTES);
  }

  #deliver(buffer: PacketBuffer, length: number): void {
    if (!this.#options.receive(buffer, length)) return;
    this.counters.receivedPackets += 1;
    this.counters.receivedBytes += length;
  }

  #drop(reason: number): void {
    const { drops } = this.#options;
    drops[reason] = (drops[reason] ?? 0) + 1;
  }
}
