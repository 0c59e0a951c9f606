/**
 * Many streams over one connection: `customvpn-streams/1`, at either end.
 *
 * Hides numbers, credit, turns and which frames are legal when. Each stream has credit of its own, which grows while its reader
 * keeps up; streams with something to send take turns. Bytes that can go at once are written from where they lie; others wait
 * in a few chunks of their stream, and its owner is told to pause. Pure: it is given bytes and a place to write, and knows no time.
 * It must not know what a stream is for.
 *
 * @see docs/protocol.md §18
 */

import { appendTo, type Chunk } from '../base/chunk-pool.ts';
import { VpnError } from '../base/errors.ts';
import { readU16, writeU32 } from '../ip/bytes.ts';
import {
  decodeWish,
  encodeWish,
  INITIAL_WINDOW_BYTES,
  MAX_STREAM_DATA_BYTES,
  refusalOfCode,
  STREAM_HEADER_BYTES,
  StreamFrameDecoder,
  type StreamFrameSink,
  StreamFrameType,
  StreamRefusalCode,
  type StreamRefusalName,
  type StreamWish,
  writeStreamHeader,
} from './stream-frame.ts';
import { type MemoryHolder, type MemoryLimit, StreamMemory } from './stream-memory.ts';

/** Who has one end of a stream. What is told here comes in order, and nothing after `refused` or `broken`. */
export interface StreamSink {
  /** At the client: there is a connection. */
  opened?(): void;
  /** At the client: there is none. */
  refused?(why: StreamRefusalName): void;
  /**
   * `bytes[start, end)` have come, borrowed until this returns; `consumed` says when they are done with.
   *
   * @param isLast nothing that belongs to them is known to follow at once
   */
  bytes(bytes: Uint8Array, start: number, end: number, isLast: boolean): void;
  /** The other end says no more. */
  ended(): void;
  /** The other end broke it, or the connection did. */
  broken(): void;
  /** After `isFull`: more may be sent. */
  room(): void;
}

/** Where a mux writes. */
export interface MuxOutput {
  /** Whether what is written now goes at once. */
  readonly isIdle: boolean;
  /** Writes at once; the bytes are borrowed until this returns. Only while idle. */
  write(bytes: Uint8Array): void;
  /** There is something to take. */
  wake(): void;
}

export interface MuxOptions {
  readonly role: 'client' | 'server';
  readonly output: MuxOutput;
  /** How far the window of a stream may grow. */
  readonly maxWindowBytes: number;
  /** How far all windows together may grow beyond what each begins with. */
  readonly windowBudgetBytes: number;
  /** What its streams may hold; default: what credit and windows allow. */
  readonly memory?: MemoryLimit;
  /** At the server: a client wants to be known; `answerBind` says what comes of it. */
  onBind?(credential: string): void;
  /** At the client: what the server answered. */
  onBound?(answer: string): void;
  /** At the server: a client wants a stream, which has no sink yet. */
  onWanted?(stream: MuxStream, wish: StreamWish): void;
  onPong?(): void;
  /** The last stream is over. */
  onUnused?(): void;
}

/** What a stream keeps at most of what cannot be sent yet, give or take one `send`. */
const FULL_BYTES = 131_072;
/** The same of all streams of a connection: beyond it, each waits for its own to have gone. */
const ALL_FULL_BYTES = 524_288;
/** What is gathered for one write. */
const BATCH_BYTES = 65_536;
/** From here on a chunk is written from where it lies. */
const WHOLE_BYTES = 16_384;
/** Of frames other than DATA, that a peer does not read. */
const MAX_CONTROL_BYTES = 1 << 20;
/** The same of a peer that has proven nothing yet. */
const MAX_STRANGER_CONTROL_BYTES = 1 << 14;
const MAX_CREDIT = 0x7fff_ffff;
const NOTHING = new Uint8Array(0);

const NO_SINK: StreamSink = { bytes: ignore, ended: ignore, broken: ignore, room: ignore };

/** One end of one stream. */
export class MuxStream implements MemoryHolder {
  readonly #mux: StreamMux;
  readonly id: number;
  sink: StreamSink = NO_SINK;
  /** Both ends know of it. */
  isOpen = false;
  /** Nothing is told of it or said on it any more. */
  isGone = false;
  /** It was broken by the other end, or with the connection. */
  isBroken = false;
  /** @internal May be sent yet. */
  sendCredit = INITIAL_WINDOW_BYTES;
  /** @internal What waits to be sent. */
  readonly chunks: Chunk[] = [];
  /** @internal */
  pendingBytes = 0;
  /** @internal In chunks, by whoever has them. */
  heldBytes = 0;
  /** @internal */
  isLeaving = false;
  /** @internal It has a turn coming. */
  isQueued = false;
  /** @internal */
  next: MuxStream | undefined;
  /** @internal The owner waits for room. */
  isWaiting = false;
  /** @internal Nothing is sent after what waits; and that has been said. */
  isEnding = false;
  isEndSent = false;
  /** @internal The other end may send so much yet. */
  receiveCredit = INITIAL_WINDOW_BYTES;
  isEndReceived = false;
  /** @internal */
  windowBytes = INITIAL_WINDOW_BYTES;
  #unreturnedBytes = 0;

  constructor(mux: StreamMux, id: number) {
    this.#mux = mux;
    this.id = id;
  }

  /** At the server: there is a connection. */
  accept(): void {
    if (this.isGone) return;
    this.isOpen = true;
    this.#mux.say(StreamFrameType.opened, this.id);
  }

  /** At the server: there is none. */
  refuse(why: StreamRefusalName): void {
    if (this.isGone) return;
    this.#mux.forget(this);
    this.#mux.say(StreamFrameType.refused, this.id, Uint8Array.of(StreamRefusalCode[why]));
  }

  /** Whether the owner should send no more until `room` is called. */
  get isFull(): boolean {
    const isFull = this.pendingBytes >= FULL_BYTES || (this.pendingBytes > 0 && this.#mux.isFull);
    this.isWaiting = isFull;
    return isFull;
  }

  /** Sends `bytes[start, end)`, which may be reused at once. */
  send(bytes: Uint8Array, start: number, end: number): void {
    if (!this.isGone && !this.isEnding) this.#mux.queue(this, bytes, start, end);
  }

  /** As `send`; the `STREAM_HEADER_BYTES` in front of `start` may be written over. */
  sendInPlace(bytes: Uint8Array, start: number, end: number): void {
    if (this.isGone || this.isEnding) return;
    if (!this.#mux.writeNow(this, bytes, start, end)) this.#mux.queue(this, bytes, start, end);
  }

  /** Says no more, once what was sent has gone. */
  end(): void {
    if (this.isGone || this.isEnding) return;
    this.isEnding = true;
    this.#mux.ready(this);
  }

  /** Breaks it at the other end. Nothing is told to the sink any more. */
  reset(): void {
    if (this.isGone) return;
    this.#mux.forget(this);
    this.#mux.say(StreamFrameType.reset, this.id);
  }

  /** Breaks it at both ends. */
  cut(): void {
    this.isBroken = true;
    this.reset();
    this.sink.broken();
  }

  /**
   * An empty chunk for bytes of the stream that wait somewhere else than here.
   *
   * @param wanted how many there are; it may hold fewer
   * @returns undefined: there is no memory for them, and the stream has been broken
   */
  takeChunk(wanted: number): Chunk | undefined {
    return this.#mux.memory.take(this, wanted);
  }

  /** Nobody uses the chunk any more. */
  releaseChunk(chunk: Chunk): void {
    this.#mux.memory.release(this, chunk);
  }

  /** Nobody waits for the chunk any more, but it may still be read. */
  abandonChunk(chunk: Chunk): void {
    this.#mux.memory.discount(this, chunk);
  }

  /** So many of the bytes that have come are done with: as many may come again, or more; fewer where memory is short. */
  consumed(length: number): void {
    this.#unreturnedBytes += length;
    if (this.isGone || this.isEndReceived || this.#unreturnedBytes * 2 < this.windowBytes) return;
    const credit = this.#unreturnedBytes + this.#mux.resize(this);
    this.#unreturnedBytes = 0;
    if (credit === 0) return;
    this.receiveCredit += credit;
    this.#mux.say(StreamFrameType.credit, this.id, u32(credit));
  }
}

export class StreamMux implements StreamFrameSink {
  /** What all streams hold, in both directions. */
  readonly memory: StreamMemory;
  readonly #options: MuxOptions;
  readonly #decoder: StreamFrameDecoder;
  readonly #streams = new Map<number, MuxStream>();
  readonly #batch = new Uint8Array(BATCH_BYTES);
  /** Frames other than DATA that wait; they overtake it. */
  #control = new Uint8Array(1024);
  #controlBytes = 0;
  /** The other half of it: one is being written while the other is filled. */
  #spare = new Uint8Array(1024);
  /** Whose turns are coming: the first and the last of them. */
  #first: MuxStream | undefined;
  #last: MuxStream | undefined;
  /** The chunk that was taken last, when nothing of it is left. */
  #taken: Chunk | undefined;
  /** Those that have room again. */
  readonly #roomy: MuxStream[] = [];
  #lastId = 0;
  /** BIND has been said, or has come: it is one for a connection. */
  #hasBound = false;
  #isBound = false;
  #isClosed = false;
  #widenedBytes = 0;
  /** Of all streams. */
  #pendingBytes = 0;

  constructor(options: MuxOptions) {
    this.#options = options;
    this.memory = new StreamMemory(options.memory);
    this.#decoder = new StreamFrameDecoder(this);
  }

  /** Streams that are open, or being opened. */
  get streams(): number {
    return this.#streams.size;
  }

  /** At the client: says who it is. */
  bind(credential: string): void {
    this.#hasBound = true;
    this.say(StreamFrameType.bind, 0, asciiOf(credential));
  }

  /** At the server. @param answer undefined: nothing was proven */
  answerBind(answer: string | undefined): void {
    this.#isBound = answer !== undefined;
    this.say(StreamFrameType.bound, 0, answer === undefined ? NOTHING : asciiOf(answer));
  }

  /** At the client: asks for a stream. @throws {VpnError} ERR_MESSAGE_FIELD */
  open(wish: StreamWish, sink: StreamSink): MuxStream {
    const payload = encodeWish(wish);
    this.#lastId += 1;
    const stream = new MuxStream(this, this.#lastId);
    stream.sink = sink;
    this.#add(stream);
    this.say(StreamFrameType.open, stream.id, payload);
    return stream;
  }

  /** Asks for a sign of life. */
  ping(): void {
    this.say(StreamFrameType.ping, 0, new Uint8Array(8));
  }

  /** Takes what has come. @throws {VpnError} of kind protocol: the connection is to be given up, and `close` called */
  receive(bytes: Uint8Array): void {
    this.#decoder.push(bytes);
  }

  /** The connection is gone, and every stream with it. Idempotent. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#decoder.stop();
    this.#controlBytes = 0;
    for (const stream of [...this.#streams.values()]) this.#break(stream);
    this.#first = this.#last = undefined;
  }

  /** What is to be written next, borrowed until the next call of anything here; undefined: nothing is. */
  take(): Uint8Array | undefined {
    if (this.#taken !== undefined) this.memory.reuse(this.#taken);
    this.#taken = undefined;
    const taken = this.#controlBytes > 0 ? this.#takeControl() : this.#takeData();
    for (let stream = this.#roomy.pop(); stream !== undefined; stream = this.#roomy.pop()) {
      if (!stream.isGone) stream.sink.room();
    }
    return taken;
  }

  #takeControl(): Uint8Array {
    const bytes = this.#control.subarray(0, this.#controlBytes);
    [this.#control, this.#spare] = [this.#spare, this.#control];
    this.#controlBytes = 0;
    return bytes;
  }

  #takeData(): Uint8Array | undefined {
    const batch = this.#batch;
    let filled = 0;
    for (let stream = this.#first; stream !== undefined; stream = this.#first) {
      const [chunk] = stream.chunks;
      const length = chunk === undefined ? 0 : Math.min(chunk.end - chunk.start, stream.sendCredit);
      if (chunk !== undefined && length >= WHOLE_BYTES && filled > 0) break;
      if (filled + STREAM_HEADER_BYTES + length > BATCH_BYTES && length < WHOLE_BYTES) break;
      this.#unqueue(stream);
      if (chunk !== undefined && length > 0) {
        const from = chunk.start - STREAM_HEADER_BYTES;
        if (length >= WHOLE_BYTES) {
          writeStreamHeader(chunk.bytes, from, StreamFrameType.data, stream.id, length);
          const frame = chunk.bytes.subarray(from, chunk.start + length);
          this.#spent(stream, chunk, length);
          return frame;
        }
        writeStreamHeader(batch, filled, StreamFrameType.data, stream.id, length);
        filled += STREAM_HEADER_BYTES;
        batch.set(chunk.bytes.subarray(chunk.start, chunk.start + length), filled);
        filled += length;
        this.#spent(stream, chunk, length);
      }
      if (stream.pendingBytes === 0 && stream.isEnding && !stream.isEndSent) {
        if (filled + STREAM_HEADER_BYTES > BATCH_BYTES) {
          this.ready(stream);
          break;
        }
        writeStreamHeader(batch, filled, StreamFrameType.end, stream.id, 0);
        filled += STREAM_HEADER_BYTES;
        this.#endSent(stream);
      }
    }
    return filled === 0 ? undefined : batch.subarray(0, filled);
  }

  /** So much of a stream's first chunk has gone. */
  #spent(stream: MuxStream, chunk: Chunk, length: number): void {
    chunk.start += length;
    this.#pendingBytes -= length;
    stream.pendingBytes -= length;
    stream.sendCredit -= length;
    if (chunk.start === chunk.end) {
      stream.chunks.shift();
      this.memory.discount(stream, chunk);
      if (length >= WHOLE_BYTES) this.#taken = chunk;
      else this.memory.reuse(chunk);
    }
    if (stream.isWaiting && stream.pendingBytes < FULL_BYTES) {
      stream.isWaiting = false;
      this.#roomy.push(stream);
    }
    if (stream.pendingBytes > 0 ? stream.sendCredit > 0 : stream.isEnding) this.#enqueue(stream);
  }

  #endSent(stream: MuxStream): void {
    stream.isEndSent = true;
    if (stream.isEndReceived) this.forget(stream);
  }

  /** @internal */
  get isFull(): boolean {
    return this.#pendingBytes >= ALL_FULL_BYTES;
  }

  /** @internal Writes at once, where nothing is in front of it. */
  writeNow(stream: MuxStream, bytes: Uint8Array, start: number, end: number): boolean {
    const length = end - start;
    const { output } = this.#options;
    if (!output.isIdle || this.#controlBytes > 0 || this.#first !== undefined || stream.pendingBytes > 0) return false;
    if (length > stream.sendCredit || length > MAX_STREAM_DATA_BYTES || this.#isClosed) return false;
    stream.sendCredit -= length;
    writeStreamHeader(bytes, start - STREAM_HEADER_BYTES, StreamFrameType.data, stream.id, length);
    output.write(bytes.subarray(start - STREAM_HEADER_BYTES, end));
    return true;
  }

  /** @internal */
  queue(stream: MuxStream, bytes: Uint8Array, start: number, end: number): void {
    this.#pendingBytes += end - start;
    stream.pendingBytes += end - start;
    for (let at = start; at < end; ) {
      let chunk = stream.chunks.at(-1);
      if (chunk === undefined || chunk.end === chunk.bytes.length) {
        chunk = this.memory.take(stream, chunk === undefined ? end - at : MAX_STREAM_DATA_BYTES);
        if (chunk === undefined) return;
        stream.chunks.push(chunk);
      }
      at += appendTo(chunk, bytes, at, end);
    }
    if (stream.sendCredit > 0) this.ready(stream);
  }

  /** @internal A stream has something that can be sent. */
  ready(stream: MuxStream): void {
    this.#enqueue(stream);
    if (!this.#isClosed && this.#options.output.isIdle) this.#options.output.wake();
  }

  #enqueue(stream: MuxStream): void {
    if (stream.isQueued) return;
    stream.isQueued = true;
    if (this.#last === undefined) this.#first = stream;
    else this.#last.next = stream;
    this.#last = stream;
  }

  #unqueue(stream: MuxStream): void {
    stream.isQueued = false;
    this.#first = stream.next;
    if (this.#first === undefined) this.#last = undefined;
    stream.next = undefined;
  }

  /** @internal Sends a frame other than DATA. @throws {VpnError} ERR_PEER_GONE */
  say(type: StreamFrameType, stream: number, payload: Uint8Array = NOTHING): void {
    if (this.#isClosed) return;
    const length = STREAM_HEADER_BYTES + payload.length;
    if (this.#control.length < this.#controlBytes + length) {
      const larger = new Uint8Array(2 * (this.#controlBytes + length));
      larger.set(this.#control.subarray(0, this.#controlBytes));
      this.#control = larger;
    }
    writeStreamHeader(this.#control, this.#controlBytes, type, stream, payload.length);
    this.#control.set(payload, this.#controlBytes + STREAM_HEADER_BYTES);
    this.#controlBytes += length;
    if (this.#options.output.isIdle) this.#options.output.wake();
  }

  /** @internal How much wider a stream's window becomes; less than 0: narrower, by no more than a half. */
  resize(stream: MuxStream): number {
    const { maxWindowBytes, windowBudgetBytes } = this.#options;
    const more = stream.windowBytes;
    if (this.memory.isTight) {
      const less = Math.min(more / 2, more - INITIAL_WINDOW_BYTES);
      this.#widenedBytes -= less;
      stream.windowBytes -= less;
      return -less;
    }
    if (2 * more > maxWindowBytes || this.#widenedBytes + more > windowBudgetBytes) return 0;
    this.#widenedBytes += more;
    stream.windowBytes += more;
    return more;
  }

  /** @internal Nothing more of a stream. */
  forget(stream: MuxStream): void {
    if (!this.#streams.delete(stream.id)) return;
    stream.isGone = true;
    this.#widenedBytes -= stream.windowBytes - INITIAL_WINDOW_BYTES;
    for (const chunk of stream.chunks) this.memory.release(stream, chunk);
    stream.chunks.length = 0;
    this.memory.leave(stream);
    this.#pendingBytes -= stream.pendingBytes;
    stream.pendingBytes = 0;
    stream.isEnding = false;
    if (this.#streams.size === 0 && !this.#isClosed) this.#options.onUnused?.();
  }

  #break(stream: MuxStream): void {
    this.forget(stream);
    stream.isBroken = true;
    stream.sink.broken();
  }

  data(id: number, bytes: Uint8Array, start: number, end: number, isLast: boolean): void {
    const stream = this.#known(id, 'DATA');
    if (stream === undefined) return;
    if (!stream.isOpen || stream.isEndReceived) throw wrong('DATA came for a stream that is not open for it');
    stream.receiveCredit -= end - start;
    if (stream.receiveCredit < 0) throw wrong('more DATA came than there was credit for');
    stream.sink.bytes(bytes, start, end, isLast);
  }

  control(type: StreamFrameType, id: number, payload: Uint8Array): void {
    if (this.#controlBytes > (this.#isBound ? MAX_CONTROL_BYTES : MAX_STRANGER_CONTROL_BYTES)) {
      throw new VpnError('ERR_FRAME_STATE', 'the peer asks without reading what it is answered');
    }
    const { role } = this.#options;
    switch (type) {
      case StreamFrameType.ping:
        this.say(StreamFrameType.pong, 0, payload);
        return;
      case StreamFrameType.pong:
        this.#options.onPong?.();
        return;
      case StreamFrameType.bind:
        if (role === 'client' || this.#hasBound) throw wrong('BIND came where it cannot');
        this.#hasBound = true;
        this.#options.onBind?.(textOf(payload));
        return;
      case StreamFrameType.bound:
        if (role === 'server' || this.#isBound || !this.#hasBound) throw wrong('BOUND came where it cannot');
        this.#isBound = true;
        this.#options.onBound?.(textOf(payload));
        return;
      case StreamFrameType.open:
        if (role === 'client' || !this.#isBound || id <= this.#lastId) throw wrong('OPEN came where it cannot');
        this.#wanted(id, payload);
        return;
      case StreamFrameType.opened:
      case StreamFrameType.refused:
        if (role === 'server') throw wrong('an answer came to what was not asked');
        this.#answered(id, type === StreamFrameType.opened ? undefined : refusalOfCode(payload[0] ?? 0));
        return;
      case StreamFrameType.end:
        this.#ended(id);
        return;
      case StreamFrameType.reset: {
        const stream = this.#known(id, 'RESET');
        if (stream !== undefined) this.#break(stream);
        return;
      }
      case StreamFrameType.credit:
        this.#credited(id, readU16(payload, 0) * 65_536 + readU16(payload, 2));
        return;
      case StreamFrameType.data:
        throw new VpnError('ERR_INVARIANT', 'DATA is told piece by piece');
      default:
        throw new VpnError('ERR_INVARIANT', `an unknown frame ${type satisfies never}`);
    }
  }

  #wanted(id: number, payload: Uint8Array): void {
    const wish = decodeWish(payload);
    this.#lastId = id;
    const stream = new MuxStream(this, id);
    this.#add(stream);
    this.#options.onWanted?.(stream, wish);
  }

  #add(stream: MuxStream): void {
    this.#streams.set(stream.id, stream);
    this.memory.join(stream);
  }

  #answered(id: number, refusal: StreamRefusalName | undefined): void {
    const stream = this.#known(id, 'an answer');
    if (stream === undefined) return;
    if (stream.isOpen) throw wrong('a stream was answered twice');
    if (refusal === undefined) {
      stream.isOpen = true;
      stream.sink.opened?.();
    } else {
      this.forget(stream);
      stream.sink.refused?.(refusal);
    }
  }

  #ended(id: number): void {
    const stream = this.#known(id, 'END');
    if (stream === undefined) return;
    if (!stream.isOpen || stream.isEndReceived) throw wrong('END came for a stream that is not open for it');
    stream.isEndReceived = true;
    if (stream.isEndSent) this.forget(stream);
    stream.sink.ended();
  }

  #credited(id: number, credit: number): void {
    const stream = this.#known(id, 'CREDIT');
    if (stream === undefined) return;
    if (credit === 0 || stream.sendCredit + credit > MAX_CREDIT) throw wrong('CREDIT of nothing, or of too much');
    stream.sendCredit += credit;
    if (stream.pendingBytes > 0) this.ready(stream);
  }

  /** The stream of that number; undefined: it is over, and what comes for it is late. @throws {VpnError} there was none */
  #known(id: number, what: string): MuxStream | undefined {
    const stream = this.#streams.get(id);
    if (stream === undefined && (id > this.#lastId || id === 0))
      throw wrong(`${what} came for a stream that never was`);
    return stream;
  }
}

function wrong(what: string): VpnError {
  return new VpnError('ERR_FRAME_STATE', what);
}

function u32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  writeU32(bytes, 0, value);
  return bytes;
}

function asciiOf(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0));
}

function textOf(bytes: Uint8Array): string {
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

function ignore(): void {}
