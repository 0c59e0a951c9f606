/**
 * A stream of `customvpn-streams/1` and what it is joined with: a TCP connection, or whoever reads and writes it as a `Duplex`.
 *
 * Hides how bytes get from one to the other. Between socket and stream there is no stream of Node's: a socket is read into one
 * buffer that all sockets share, from which a frame is written where it lies; what comes is written
 * to the socket a frame at a time, and gathered while a write is under way. Ends, resets and back pressure go both ways.
 */

import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { appendTo, type Chunk } from '../base/chunk-pool.ts';
import { MAX_STREAM_DATA_BYTES, STREAM_HEADER_BYTES } from '../protocol/stream-frame.ts';
import type { MuxStream, StreamSink } from '../protocol/stream-mux.ts';
import { readInto } from './direct-read.ts';
import { resetSocket, type SpliceEnd, type SpliceOutcome } from './splice.ts';
import type { StreamPace } from './stream-pace.ts';

/** What is read from a socket, behind room for a frame's header; it is sent or copied before the next read of any. */
const READ = Buffer.alloc(STREAM_HEADER_BYTES + MAX_STREAM_DATA_BYTES);
const READ_BODY = READ.subarray(STREAM_HEADER_BYTES);

/** An open stream as one end of a splice. What comes before it is known what it is joined with is kept: a window at most. */
export class StreamEnd implements SpliceEnd, StreamSink {
  readonly #stream: MuxStream;
  readonly #early: Uint8Array[] = [];
  #hasEnded = false;
  #duplex: Duplex | undefined;

  constructor(stream: MuxStream) {
    this.#stream = stream;
    stream.sink = this;
  }

  get isBroken(): boolean {
    return this.#stream.isBroken;
  }

  get duplex(): Duplex {
    if (this.#duplex === undefined) {
      const duplex = new StreamDuplex(this.#stream);
      this.#duplex = duplex;
      this.#hand(duplex);
    }
    return this.#duplex;
  }

  readonly reset = (): void => {
    this.#stream.reset();
    this.#duplex?.destroy();
  };

  join(socket: Socket, done: (outcome: SpliceOutcome) => void, pace?: StreamPace): void {
    this.#hand(new SocketJoint(socket, this.#stream, done, pace));
  }

  bytes(bytes: Uint8Array, start: number, end: number): void {
    this.#early.push(bytes.slice(start, end));
  }

  ended(): void {
    this.#hasEnded = true;
  }

  // Whoever it is joined with sees that the stream is gone.
  broken(): void {}
  room(): void {}

  #hand(sink: StreamSink): void {
    for (const bytes of this.#early.splice(0)) sink.bytes(bytes, 0, bytes.length, true);
    if (this.#hasEnded) sink.ended();
  }
}

/** A socket and a stream, until both have ended or either has broken. */
class SocketJoint implements StreamSink {
  readonly #socket: Socket;
  readonly #stream: MuxStream;
  readonly #done: (outcome: SpliceOutcome) => void;
  readonly #pace: StreamPace | undefined;
  readonly #written: () => void;
  readonly #flushLater: () => void;
  /** What is gathered for the next write. */
  #gathered: Chunk | undefined;
  /** What is being written, in order, all but the first full; and how many bytes each write has of it. */
  readonly #writing: Chunk[] = [];
  readonly #lengths: number[] = [];
  #isFlushDue = false;
  #hasEnded = false;
  #hasSocketEnded = false;
  #isSocketClosed = false;
  #isOver = false;

  constructor(socket: Socket, stream: MuxStream, done: (outcome: SpliceOutcome) => void, pace: StreamPace | undefined) {
    this.#socket = socket;
    this.#stream = stream;
    this.#done = done;
    this.#pace = pace;
    this.#written = () => {
      const [chunk] = this.#writing;
      const length = this.#lengths.shift();
      if (chunk === undefined || length === undefined) return;
      chunk.start += length;
      if (chunk.start === chunk.end) {
        this.#writing.shift();
        stream.releaseChunk(chunk);
      }
      stream.consumed(length);
      if (!this.#isFlushDue) this.#flush();
    };
    this.#flushLater = () => {
      this.#isFlushDue = false;
      this.#flush();
    };
    stream.sink = this;
    socket.on('error', () => this.#finish('broken'));
    socket.once('end', () => {
      this.#hasSocketEnded = true;
      this.#drained();
    });
    socket.once('close', () => {
      this.#isSocketClosed = true;
      this.#drained();
    });
    if (socket.destroyed || stream.isGone) {
      this.#finish('broken');
      return;
    }
    const down = pace?.down;
    if (pace !== undefined) {
      pace.down.target = {
        forward: (bytes) => stream.send(bytes, 0, bytes.length),
        drained: () => this.#drained(),
      };
      pace.up.target = {
        forward: (bytes) => this.#send(bytes),
        drained: () => {
          if (this.#hasEnded) socket.end();
        },
      };
    }
    readInto(socket, READ_BODY, (length) => {
      if (this.#isOver) return true;
      if (down?.isPaced === true) down.pushBorrowed(READ_BODY.subarray(0, length));
      else stream.sendInPlace(READ, STREAM_HEADER_BYTES, STREAM_HEADER_BYTES + length);
      return down?.isHolding !== true && !stream.isFull;
    });
    socket.on('data', (chunk: Uint8Array) => {
      if (down?.isPaced === true) down.push(chunk);
      else stream.send(chunk, 0, chunk.length);
      if (down?.isHolding === true || stream.isFull) socket.pause();
    });
    // Whoever had it before may have paused it.
    socket.resume();
  }

  bytes(bytes: Uint8Array, start: number, end: number, isLast: boolean): void {
    for (let at = start; at < end; ) {
      // Small chunks are for who says little, and neither for the beginning of much nor for a little again and again.
      const isLittle = isLast && this.#writing.length < 2;
      this.#gathered ??= this.#stream.takeChunk(isLittle ? end - at : MAX_STREAM_DATA_BYTES);
      if (this.#gathered === undefined) return;
      at += appendTo(this.#gathered, bytes, at, end);
      if (isFull(this.#gathered)) this.#write();
    }
    if (isLast) this.#flush();
    else if (!this.#isFlushDue && this.#gathered !== undefined) {
      // The rest of the frame is mostly in what has been read already, but perhaps still on its way.
      this.#isFlushDue = true;
      setImmediate(this.#flushLater);
    }
  }

  ended(): void {
    this.#write();
    this.#hasEnded = true;
    if (this.#pace?.up.isHolding !== true) this.#socket.end();
  }

  broken(): void {
    this.#finish('broken');
  }

  room(): void {
    if (!this.#isOver && this.#pace?.down.isHolding !== true) this.#socket.resume();
  }

  /** Nothing from the socket is held: what came after it has its turn. */
  #drained(): void {
    const socket = this.#socket;
    if (this.#isOver || this.#pace?.down.isHolding === true) return;
    if (this.#hasSocketEnded) this.#stream.end();
    else if (!this.#isSocketClosed && !this.#stream.isFull) socket.resume();
    if (!this.#isSocketClosed) return;
    this.#finish(this.#hasEnded && socket.readableEnded && socket.writableFinished ? 'ended' : 'broken');
  }

  /** Writes what is gathered, unless more may come to it first. */
  #flush(): void {
    if (this.#writing.length === 0) this.#write();
  }

  #write(): void {
    const chunk = this.#gathered;
    if (chunk === undefined || this.#isOver) return;
    this.#gathered = undefined;
    this.#writing.push(chunk);
    const { buffer, byteOffset } = chunk.bytes;
    const bytes = Buffer.from(buffer, byteOffset + chunk.start, chunk.end - chunk.start);
    if (this.#pace?.up.isPaced === true) this.#pace.up.push(bytes);
    else this.#send(bytes);
  }

  #send(bytes: Uint8Array): void {
    this.#lengths.push(bytes.length);
    this.#socket.write(bytes, this.#written);
  }

  #finish(outcome: SpliceOutcome): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#pace?.close();
    if (outcome === 'broken') {
      this.#stream.reset();
      if (!this.#socket.closed) resetSocket(this.#socket);
    }
    if (this.#gathered !== undefined) this.#stream.releaseChunk(this.#gathered);
    this.#gathered = undefined;
    // The socket lets go of them a little later.
    for (const chunk of this.#writing.splice(0)) this.#stream.abandonChunk(chunk);
    this.#done(outcome);
  }
}

function isFull(chunk: Chunk): boolean {
  return chunk.end === chunk.bytes.length;
}

/** A stream for those who take it as Node's. */
class StreamDuplex extends Duplex implements StreamSink {
  readonly #stream: MuxStream;
  #unreadBytes = 0;
  #waiting: (() => void) | undefined;

  constructor(stream: MuxStream) {
    super({ allowHalfOpen: true });
    this.#stream = stream;
    stream.sink = this;
    // Whoever has it hears of its end; an error that nobody waits for must not end the process.
    this.on('error', () => {});
    if (stream.isGone) process.nextTick(() => this.broken());
  }

  bytes(bytes: Uint8Array, start: number, end: number): void {
    if (this.destroyed) return;
    this.#unreadBytes += end - start;
    if (this.push(Buffer.from(bytes.subarray(start, end)))) this.#consume();
  }

  ended(): void {
    this.push(null);
  }

  broken(): void {
    if (!this.destroyed) this.destroy(Object.assign(new Error('the stream was reset'), { code: 'ECONNRESET' }));
  }

  room(): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    waiting?.();
  }

  override _read(): void {
    this.#consume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.#stream.send(chunk, 0, chunk.length);
    if (this.#stream.isFull) this.#waiting = callback;
    else callback();
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#stream.end();
    callback();
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    // What has ended both ways is over already, or will be when its end has gone.
    if (error !== null || !this.readableEnded || !this.writableFinished) this.#stream.reset();
    this.room();
    callback(error);
  }

  #consume(): void {
    const length = this.#unreadBytes;
    this.#unreadBytes = 0;
    if (length > 0) this.#stream.consumed(length);
  }
}
