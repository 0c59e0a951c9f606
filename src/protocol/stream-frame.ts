/**
 * The frames of `customvpn-streams/1`: bytes of a connection ↔ what is said of its streams.
 *
 * Hides how frames lie across chunks, and their limits. A payload of DATA is handed on in the pieces in which it comes,
 * without a copy; every other payload is short. It must not know which streams there are, nor what is legal for them.
 *
 * ```
 *  0        1                          4                                 8
 *  +--------+--------------------------+---------------------------------+----------------------+
 *  | type 8 |  length of payload 24 BE | stream 32 BE, 0: the connection | payload              |
 *  +--------+--------------------------+---------------------------------+----------------------+
 * ```
 *
 * @see docs/protocol.md §18
 */

import { VpnError } from '../base/errors.ts';
import { readU16, writeU16, writeU32 } from '../ip/bytes.ts';

export const StreamFrameType = {
  bind: 0x01,
  bound: 0x02,
  open: 0x03,
  opened: 0x04,
  refused: 0x05,
  data: 0x06,
  end: 0x07,
  reset: 0x08,
  credit: 0x09,
  ping: 0x0a,
  pong: 0x0b,
} as const;
export type StreamFrameType = (typeof StreamFrameType)[keyof typeof StreamFrameType];

export const STREAM_HEADER_BYTES = 8;
/** Longest payload of DATA. */
export const MAX_STREAM_DATA_BYTES = 65_536;
/** Longest payload of any other frame. */
export const MAX_STREAM_CONTROL_BYTES = 512;
/** What may be sent on a stream before there is any CREDIT. */
export const INITIAL_WINDOW_BYTES = 65_536;

/** Why there is no stream: names of RFC 9209 §2.3, as bytes of REFUSED. */
export const StreamRefusalCode = {
  http_request_denied: 1,
  destination_ip_prohibited: 2,
  connection_limit_reached: 3,
  dns_error: 4,
  dns_timeout: 5,
  connection_refused: 6,
  destination_ip_unroutable: 7,
  connection_timeout: 8,
  proxy_internal_error: 9,
} as const;
export type StreamRefusalName = keyof typeof StreamRefusalCode;

const KINDS = ['tcp', 'udp'] as const;

/** What OPEN asks for. */
export interface StreamWish {
  readonly kind: (typeof KINDS)[number];
  readonly host: string;
  readonly port: number;
}

interface Limits {
  readonly minimum: number;
  readonly maximum: number;
}

/** Of payloads, by type. */
const LIMITS: readonly (Limits | undefined)[] = (() => {
  const limits: Limits[] = [];
  const { bind, bound, open, opened, refused, data, end, reset, credit, ping, pong } = StreamFrameType;
  limits[bind] = { minimum: 1, maximum: MAX_STREAM_CONTROL_BYTES };
  limits[bound] = { minimum: 0, maximum: MAX_STREAM_CONTROL_BYTES };
  limits[open] = { minimum: 4, maximum: 258 };
  limits[data] = { minimum: 1, maximum: MAX_STREAM_DATA_BYTES };
  limits[refused] = { minimum: 1, maximum: 1 };
  limits[credit] = { minimum: 4, maximum: 4 };
  for (const type of [opened, end, reset]) limits[type] = { minimum: 0, maximum: 0 };
  for (const type of [ping, pong]) limits[type] = { minimum: 8, maximum: 8 };
  return limits;
})();

/** Writes a header at `at`; the payload of `length` bytes follows it. */
export function writeStreamHeader(bytes: Uint8Array, at: number, type: number, stream: number, length: number): void {
  bytes[at] = type;
  bytes[at + 1] = length >>> 16;
  writeU16(bytes, at + 2, length);
  writeU32(bytes, at + 4, stream);
}

/** One whole frame. */
export function encodeStreamFrame(type: StreamFrameType, stream: number, payload: Uint8Array = EMPTY): Uint8Array {
  const bytes = new Uint8Array(STREAM_HEADER_BYTES + payload.length);
  writeStreamHeader(bytes, 0, type, stream, payload.length);
  bytes.set(payload, STREAM_HEADER_BYTES);
  return bytes;
}

/** The payload of OPEN. @throws {VpnError} ERR_MESSAGE_FIELD for a host that is longer than a name can be, or not in ASCII */
export function encodeWish({ kind, host, port }: StreamWish): Uint8Array {
  if (!isHost(host)) throw new VpnError('ERR_MESSAGE_FIELD', 'a host is a name or an address of 1 to 255 characters');
  const bytes = new Uint8Array(3 + host.length);
  bytes[0] = KINDS.indexOf(kind) + 1;
  writeU16(bytes, 1, port);
  for (let i = 0; i < host.length; i++) bytes[3 + i] = host.charCodeAt(i);
  return bytes;
}

/** @throws {VpnError} ERR_MESSAGE_FIELD */
export function decodeWish(payload: Uint8Array): StreamWish {
  const kind = KINDS[(payload[0] ?? 0) - 1];
  const port = readU16(payload, 1);
  let host = '';
  for (let i = 3; i < payload.length; i++) host += String.fromCharCode(payload[i] ?? 0);
  if (kind === undefined || port === 0 || !isHost(host)) {
    throw new VpnError('ERR_MESSAGE_FIELD', 'OPEN asks for something that is neither a TCP nor a UDP destination');
  }
  return { kind, host, port };
}

function isHost(text: string): boolean {
  return /^(?:[A-Za-z0-9._-]{1,255}|[0-9a-fA-F:.]{2,45})$/.test(text);
}

/** The name of a REFUSED; a code that is not known is an error of the proxy's own. */
export function refusalOfCode(code: number): StreamRefusalName {
  return REFUSALS[code] ?? 'proxy_internal_error';
}

const REFUSALS: readonly (StreamRefusalName | undefined)[] = (() => {
  const names: StreamRefusalName[] = [];
  for (const name of Object.keys(StreamRefusalCode) as StreamRefusalName[]) names[StreamRefusalCode[name]] = name;
  return names;
})();

/** Takes what a decoder finds, in order. What it throws ends the decoder and is thrown by `push`. */
export interface StreamFrameSink {
  /**
   * The next piece of a DATA payload: `bytes[start, end)`, borrowed until this returns.
   *
   * @param isLast the frame is complete with it
   */
  data(stream: number, bytes: Uint8Array, start: number, end: number, isLast: boolean): void;
  /** Any other frame. `payload` is borrowed until this returns. */
  control(type: StreamFrameType, stream: number, payload: Uint8Array): void;
}

const EMPTY = new Uint8Array(0);

/** Reads frames out of the bytes of one connection, in any chunking. Memory: one short frame. */
export class StreamFrameDecoder {
  readonly #sink: StreamFrameSink;
  /** A header, or a short frame, that is not whole yet. */
  readonly #kept = new Uint8Array(STREAM_HEADER_BYTES + MAX_STREAM_CONTROL_BYTES);
  #keptBytes = 0;
  /** Of the DATA frame under way. */
  #stream = 0;
  #missing = 0;
  #isStopped = false;

  constructor(sink: StreamFrameSink) {
    this.#sink = sink;
  }

  /** Whether the bytes read so far end where a frame does. */
  get isBetweenFrames(): boolean {
    return this.#keptBytes === 0 && this.#missing === 0;
  }

  /** Delivers nothing more. May be called from the sink. */
  stop(): void {
    this.#isStopped = true;
  }

  /**
   * Reads the next bytes. `chunk` is not kept.
   *
   * @throws {VpnError} ERR_FRAME_TYPE, ERR_FRAME_EMPTY, ERR_FRAME_TOO_LONG, and whatever the sink throws
   */
  push(chunk: Uint8Array): void {
    try {
      let at = 0;
      while (at < chunk.length && !this.#isStopped) {
        if (this.#missing > 0) at = this.#data(chunk, at);
        else if (this.#keptBytes > 0) at = this.#complete(chunk, at);
        else at = this.#frame(chunk, at);
      }
    } catch (error) {
      this.stop();
      throw error;
    }
  }

  #data(chunk: Uint8Array, at: number): number {
    const end = Math.min(chunk.length, at + this.#missing);
    this.#missing -= end - at;
    this.#sink.data(this.#stream, chunk, at, end, this.#missing === 0);
    return end;
  }

  /** Reads what begins at a frame's beginning; returns how far it came. */
  #frame(chunk: Uint8Array, at: number): number {
    const available = chunk.length - at;
    if (available < STREAM_HEADER_BYTES) return this.#keep(chunk, at, available);
    const length = this.#judge(chunk, at);
    const body = at + STREAM_HEADER_BYTES;
    if (chunk[at] === StreamFrameType.data) {
      this.#stream = streamOf(chunk, at);
      this.#missing = length;
      return body;
    }
    if (available < STREAM_HEADER_BYTES + length) return this.#keep(chunk, at, available);
    this.#control(chunk, at, length);
    return body + length;
  }

  /** Goes on with a frame of which some is kept. */
  #complete(chunk: Uint8Array, at: number): number {
    const kept = this.#kept;
    let wanted = STREAM_HEADER_BYTES;
    if (this.#keptBytes >= STREAM_HEADER_BYTES) wanted += this.#judge(kept, 0);
    const taken = Math.min(wanted - this.#keptBytes, chunk.length - at);
    this.#keep(chunk, at, taken);
    if (this.#keptBytes < wanted) return at + taken;
    if (wanted === STREAM_HEADER_BYTES) {
      const length = this.#judge(kept, 0);
      if (kept[0] === StreamFrameType.data) {
        this.#stream = streamOf(kept, 0);
        this.#missing = length;
        this.#keptBytes = 0;
        return at + taken;
      }
      if (length > 0) return at + taken;
    }
    this.#keptBytes = 0;
    this.#control(kept, 0, wanted - STREAM_HEADER_BYTES);
    return at + taken;
  }

  #keep(chunk: Uint8Array, at: number, length: number): number {
    for (let i = 0; i < length; i++) this.#kept[this.#keptBytes + i] = chunk[at + i] ?? 0;
    this.#keptBytes += length;
    return at + length;
  }

  #control(bytes: Uint8Array, at: number, length: number): void {
    const body = at + STREAM_HEADER_BYTES;
    // `judge` has looked the type up.
    this.#sink.control(bytes[at] as StreamFrameType, streamOf(bytes, at), bytes.subarray(body, body + length));
  }

  /** The length of the frame whose header is at `at`. */
  #judge(bytes: Uint8Array, at: number): number {
    const type = bytes[at] ?? 0;
    const length = ((bytes[at + 1] ?? 0) << 16) | readU16(bytes, at + 2);
    const limits = LIMITS[type];
    const details = { type, length };
    if (limits === undefined) {
      throw new VpnError('ERR_FRAME_TYPE', `there is no frame of type ${type} on a connection for streams`, {
        details,
      });
    }
    if (length > limits.maximum) {
      throw new VpnError(
        'ERR_FRAME_TOO_LONG',
        `a frame of type ${type} has at most ${limits.maximum} bytes, this one ${length}`,
        { details },
      );
    }
    if (length < limits.minimum) {
      throw new VpnError(
        'ERR_FRAME_EMPTY',
        `a frame of type ${type} has at least ${limits.minimum} bytes, this one ${length}`,
        { details },
      );
    }
    return length;
  }
}

function streamOf(bytes: Uint8Array, at: number): number {
  return ((readU16(bytes, at + 4) << 16) | readU16(bytes, at + 6)) >>> 0;
}
