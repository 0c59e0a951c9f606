/**
 * The flows of a queue, and whose turn it is: three classes by weight, in each new flows before old, the old by bytes.
 *
 * Hides places, lists, deficits and turns. A class that has little to send is served at once, the more urgent of two first;
 * classes that all have much share by weight, so that none is passed over for long. Within a class every flow gets the same.
 * What frames are, and which must not go, is not known here. Nothing is allocated after the constructor.
 */

import { type FlowKey, flowHash } from '../ip/packet.ts';
import { CLASS_NAMES, TrafficClass } from '../ip/traffic-class.ts';
import { FLOWS, FrameStore } from './frame-store.ts';

/** What a flow may send in its turn: about two packets. */
export const QUANTUM_BYTES = 3000;
/** New flows pass the others, but not for longer than this: an endless stream of new flows would stop them. */
const NEW_RUN_BYTES = 16 * 1024;
/** A flow has one of so many places, chosen by its hash. */
const WAYS = 8;
const SETS = (FLOWS - 1) >>> 3;
/** Frames that carry no packet are one flow, which has the last place for itself. */
export const OTHER_FLOW = FLOWS - 1;

/** What each class gets of so many bytes while all have something to send. */
const CLASS_WEIGHTS = [8, 4, 1] as const;
const CLASSES = CLASS_NAMES.length;

/** Each class has a list of new flows and one of old: `NEW + 2 * class`, and the next. */
const NOT_LISTED = 0;
const NEW = 1;
const LISTS = 1 + 2 * CLASSES;
export const NO_FLOW = -1;

/** Memory of a queue that is in use. */
export class FlowTable {
  readonly store: FrameStore;
  readonly bytes = new Int32Array(FLOWS);
  readonly deficits = new Int32Array(FLOWS);
  /** When the flow is told the next time, in counted milliseconds; 0 while its packets do not wait long. */
  readonly signalAt = new Float64Array(FLOWS);
  readonly signals = new Uint16Array(FLOWS);
  readonly #hashes = new Int32Array(FLOWS);
  /** Flows that are not the one of `hashes` wait here, too. */
  readonly #isShared = new Uint8Array(FLOWS);
  /** A `TrafficClass`. */
  readonly #classes = new Uint8Array(FLOWS).fill(TrafficClass.normal);
  /** NOT_LISTED, or a list of its class. */
  readonly #lists = new Uint8Array(FLOWS);
  readonly #next = new Int16Array(FLOWS);
  readonly #first = new Int16Array(LISTS).fill(NO_FLOW);
  readonly #last = new Int16Array(LISTS).fill(NO_FLOW);
  /** By class: what new flows have sent in one go. */
  readonly #newRuns = new Float64Array(CLASSES);
  /** By class: bytes sent, divided by its weight. A class that had nothing to send begins where the others are. */
  readonly #turns = new Float64Array(CLASSES);
  #turn = 0;

  /** @param bytes of memory for frames */
  constructor(bytes: number) {
    this.store = new FrameStore(bytes);
  }

  /** The place of a packet's flow. A flow that changes its class is another flow. */
  find(bytes: Uint8Array, offset: number, length: number, trafficClass: number, key: FlowKey): number {
    const hash = flowHash(bytes, offset, length, key) ^ (trafficClass - TrafficClass.normal);
    const first = ((hash >>> 0) % SETS) * WAYS;
    let free = NO_FLOW;
    for (let flow = first; flow < first + WAYS; flow++) {
      if (this.#hashes[flow] === hash) return flow;
      if (this.#lists[flow] === NOT_LISTED) free = flow;
    }
    // More flows than places: two share one, until all of that place has left, so that no flow is put out of order.
    const shared = first + ((hash >>> 16) & (WAYS - 1));
    if (this.#isShared[shared] === 1 && this.store.isEmpty(shared)) this.#isShared[shared] = 0;
    if (this.#isShared[shared] === 1) return shared;
    if (free === NO_FLOW) {
      this.#isShared[shared] = 1;
      return shared;
    }
    this.#hashes[free] = hash;
    this.#classes[free] = trafficClass;
    this.signals[free] = 0;
    return free;
  }

  /** Takes a whole frame in at the end of a flow. */
  put(bytes: Uint8Array, start: number, end: number, flow: number, time: number): void {
    this.store.put(bytes, start, end, flow, time);
    this.bytes[flow] = (this.bytes[flow] ?? 0) + end - start;
    if (this.#lists[flow] !== NOT_LISTED) return;
    this.deficits[flow] = QUANTUM_BYTES;
    const trafficClass = this.#classOf(flow);
    if (!this.#isListed(trafficClass)) {
      this.#turns[trafficClass] = Math.max(this.#turns[trafficClass] ?? 0, this.#turn);
    }
    this.#append(NEW + 2 * trafficClass, flow);
  }

  /** Takes a flow's oldest frame out. The flow keeps its place in its list until its turn. */
  leave(flow: number): void {
    this.bytes[flow] = (this.bytes[flow] ?? 0) - this.store.length(flow);
    this.store.remove(flow);
  }

  /** Takes so many bytes off the front or the back of a flow's oldest frame. */
  shorten(flow: number, bytes: number, isFront: boolean): void {
    if (isFront) this.store.cutFront(flow, bytes);
    else this.store.cutBack(flow, bytes);
    this.bytes[flow] = (this.bytes[flow] ?? 0) - bytes;
  }

  /** A flow has sent so many bytes in its turn. */
  charge(flow: number, bytes: number): void {
    const trafficClass = this.#classOf(flow);
    this.deficits[flow] = (this.deficits[flow] ?? 0) - bytes;
    const isNew = this.#lists[flow] === NEW + 2 * trafficClass;
    const run = this.#newRuns[trafficClass] ?? 0;
    this.#newRuns[trafficClass] = isNew ? run + Math.min(bytes, QUANTUM_BYTES) : 0;
    this.#turn = this.#turns[trafficClass] ?? 0;
    this.#turns[trafficClass] = this.#turn + bytes / (CLASS_WEIGHTS[trafficClass] ?? 1);
  }

  /** The flow whose turn it is, with something to send; NO_FLOW: none has. */
  select(): number {
    for (;;) {
      let next: number = CLASSES;
      for (let trafficClass = 0; trafficClass < CLASSES; trafficClass++) {
        if (!this.#isListed(trafficClass)) continue;
        // Of two that are as far, the more urgent.
        if (next === CLASSES || (this.#turns[trafficClass] ?? 0) < (this.#turns[next] ?? 0)) next = trafficClass;
      }
      if (next === CLASSES) return NO_FLOW;
      const flow = this.#selectOf(next);
      if (flow !== NO_FLOW) return flow;
    }
  }

  /** The flow with most bytes, of those that may lose packets. */
  longest(): number {
    let longest = NO_FLOW;
    let most = 0;
    for (let flow = 0; flow < OTHER_FLOW; flow++) {
      const waiting = this.bytes[flow] ?? 0;
      if (waiting > most) {
        most = waiting;
        longest = flow;
      }
    }
    return longest;
  }

  /** Forgets every frame. */
  clear(): void {
    this.store.clear();
    this.bytes.fill(0);
    this.#lists.fill(NOT_LISTED);
    this.#first.fill(NO_FLOW);
    this.#last.fill(NO_FLOW);
  }

  /** NO_FLOW when the class has nothing left. */
  #selectOf(trafficClass: number): number {
    const first = this.#first;
    const newList = NEW + 2 * trafficClass;
    const oldList = newList + 1;
    for (;;) {
      const isNewFirst =
        first[newList] !== NO_FLOW &&
        ((this.#newRuns[trafficClass] ?? 0) < NEW_RUN_BYTES || first[oldList] === NO_FLOW);
      const list = isNewFirst ? newList : oldList;
      const flow = first[list] ?? NO_FLOW;
      if (flow === NO_FLOW) return NO_FLOW;
      if (this.store.isEmpty(flow)) {
        this.#removeFirst(list);
        this.signalAt[flow] = 0;
        // One that comes and goes must not be new each time.
        if (list === newList && first[oldList] !== NO_FLOW) this.#append(oldList, flow);
        continue;
      }
      const deficit = this.deficits[flow] ?? 0;
      if (deficit > 0 || (first[newList] === NO_FLOW && this.#last[oldList] === flow)) {
        if (deficit <= 0) this.deficits[flow] = QUANTUM_BYTES;
        return flow;
      }
      this.deficits[flow] = deficit + QUANTUM_BYTES;
      this.#removeFirst(list);
      this.#append(oldList, flow);
    }
  }

  #classOf(flow: number): number {
    return this.#classes[flow] ?? TrafficClass.normal;
  }

  #isListed(trafficClass: number): boolean {
    const list = NEW + 2 * trafficClass;
    return this.#first[list] !== NO_FLOW || this.#first[list + 1] !== NO_FLOW;
  }

  #append(list: number, flow: number): void {
    const last = this.#last[list] ?? NO_FLOW;
    if (last === NO_FLOW) this.#first[list] = flow;
    else this.#next[last] = flow;
    this.#last[list] = flow;
    this.#next[flow] = NO_FLOW;
    this.#lists[flow] = list;
  }

  #removeFirst(list: number): void {
    const flow = this.#first[list] ?? NO_FLOW;
    const next = this.#next[flow] ?? NO_FLOW;
    this.#first[list] = next;
    if (next === NO_FLOW) this.#last[list] = NO_FLOW;
    this.#lists[flow] = NOT_LISTED;
  }
}
