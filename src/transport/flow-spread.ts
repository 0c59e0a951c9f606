/**
 * Chooses which of a session's data channels a packet goes to, so that the packets of one flow stay in order.
 *
 * Hides the hash and the buckets: a flow is one of 256, and a bucket belongs to one slot. A slot that is lost gives its
 * buckets to the others, theirs stay; one that comes takes its share, but each bucket only after it was quiet for a while,
 * as packets that still wait elsewhere would be overtaken. With one channel nothing is hashed. Runs once per packet.
 *
 * @see docs/protocol.md#REQ-SPREAD-001
 */

import { type FlowKey, flowHash } from '../ip/packet.ts';
import type { TrafficClasses } from '../ip/traffic-class.ts';
import type { Channel } from './channel.ts';
import type { FrameCompressor } from './compression.ts';
import type { Pacer } from './pacer.ts';

export const BUCKETS = 256;
const EMPTY = new Uint8Array(0);
/** A bucket that had a packet is left alone until it was quiet for one to two ticks. */
const QUIET_TICKS = 2;

export class FlowSpread {
  /** The hash must not be known to who sends the packets: they could all choose one channel. */
  readonly #key: FlowKey;
  /** By slot. */
  readonly #channels: (Channel | undefined)[] = [];
  /** By bucket; made when there is a choice, which most sessions never have. */
  #slots = EMPTY;
  /** By bucket: ticks until it counts as quiet. */
  #quietIn = EMPTY;
  #count = 0;
  /** While there is no choice. */
  #only: Channel | undefined;
  #wasUsed = false;
  #pacer: Pacer | undefined;
  #classes: TrafficClasses | undefined;
  readonly #compressor: FrameCompressor | undefined;

  /** @param compressor what all channels send goes through it */
  constructor(key: FlowKey = randomKey(), compressor?: FrameCompressor) {
    this.#key = key;
    this.#compressor = compressor;
  }

  /** How many channels there are. */
  get count(): number {
    return this.#count;
  }

  /** The channel of a slot. */
  at(slot: number): Channel | undefined {
    return this.#channels[slot];
  }

  /** Which slot has a bucket. */
  slotOf(bucket: number): number {
    return this.#slots[bucket] ?? 0;
  }

  /** The slot's packets go to this channel from now on; undefined: it has none. */
  set(slot: number, channel: Channel | undefined): void {
    const former = this.#channels[slot];
    this.#channels[slot] = channel;
    if (channel !== undefined) this.#prepare(channel);
    const live = this.#channels.filter((one) => one !== undefined);
    this.#only = live[0];
    this.#count = live.length;
    if ((former === undefined) === (channel === undefined)) return;
    if (this.#slots === EMPTY && (slot > 0 || this.#count > 1)) {
      this.#slots = new Uint8Array(BUCKETS);
      this.#quietIn = new Uint8Array(BUCKETS);
    }
    // While there was one channel nobody looked which buckets were in use.
    if (this.#count === 2 && channel !== undefined) this.#quietIn.fill(this.#wasUsed ? QUIET_TICKS : 0);
    this.#wasUsed = false;
    this.#settle();
  }

  /** What is sent keeps these rates, on all channels together, and belongs to these classes of traffic. */
  shape(pacer: Pacer | undefined, classes: TrafficClasses | undefined): void {
    this.#pacer = pacer;
    this.#classes = classes;
    for (const channel of this.#channels) if (channel !== undefined) this.#prepare(channel);
  }

  #prepare(channel: Channel): void {
    channel.pacer = this.#pacer;
    channel.compressor = this.#compressor;
    if (this.#classes !== undefined) channel.classes = this.#classes;
  }

  /** The channel for the packet `bytes[offset, offset + length)`; undefined when there is none. */
  pick(bytes: Uint8Array, offset: number, length: number): Channel | undefined {
    if (this.#count < 2) {
      this.#wasUsed = true;
      return this.#only;
    }
    const bucket = flowHash(bytes, offset, length, this.#key) & (BUCKETS - 1);
    this.#quietIn[bucket] = QUIET_TICKS;
    return this.#channels[this.#slots[bucket] ?? 0];
  }

  /** Sends what was deferred on any channel. */
  flush(): void {
    const channels = this.#channels;
    for (let slot = 0; slot < channels.length; slot++) channels[slot]?.flush();
  }

  /** Called about once a second. */
  handleTick(): void {
    if (this.#count < 2) return;
    const quietIn = this.#quietIn;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      const ticks = quietIn[bucket] ?? 0;
      if (ticks > 0) quietIn[bucket] = ticks - 1;
    }
    this.#settle();
  }

  /** Gives every bucket to its slot, except those in use that have another. */
  #settle(): void {
    if (this.#count === 0) return;
    for (let bucket = 0; bucket < this.#slots.length; bucket++) {
      const isHomeless = this.#channels[this.#slots[bucket] ?? 0] === undefined;
      if (isHomeless || this.#quietIn[bucket] === 0) this.#slots[bucket] = this.#home(bucket);
    }
  }

  /** The live slot that suits a bucket best (rendezvous hashing): one slot more or less moves no other's buckets. */
  #home(bucket: number): number {
    let home = 0;
    let most = -1;
    for (let slot = 0; slot < this.#channels.length; slot++) {
      if (this.#channels[slot] === undefined) continue;
      const weight = mix(bucket, slot);
      if (weight > most) {
        most = weight;
        home = slot;
      }
    }
    return home;
  }
}

/** A number of 32 bits that says nothing of its two. */
function mix(bucket: number, slot: number): number {
  let x = Math.imul(bucket + 1, 0x9e3779b1) ^ Math.imul(slot + 1, 0x85ebca77);
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}

function randomKey(): FlowKey {
  const [first = 0, second = 0] = crypto.getRandomValues(new Int32Array(2));
  return [first, second];
}
