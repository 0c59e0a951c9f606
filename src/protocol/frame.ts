/**
 * The frame codec: bytes of a channel ↔ frames.
 *
 * Hides how frames lie across chunks, which frames are legal when, and their limits. It must not know what a payload
 * means, whose session it belongs to, or where bytes come from. The decoder is on the path of every packet: it allocates
 * nothing per frame, parses headers in place and copies a data payload once, to where its owner wants it.
 *
 * ```
 *  0        1                          4
 *  +--------+--------------------------+----------------------+
 *  | type 8 |  length of payload 24 BE | payload              |
 *  +--------+--------------------------+----------------------+
 * ```
 *
 * @see docs/protocol.md §2, §3
 */

import { VpnError } from '../base/errors.ts';

/** Every frame type of `customvpn/1`. Types from 0x80 on that are not listed are extensions: skipped and counted. */
export const FrameType = {
  login: 0x01,
  challenge: 0x02,
  answer: 0x03,
  accept: 0x04,
  reject: 0x05,
  config: 0x06,
  ping: 0x07,
  pong: 0x08,
  close: 0x09,
  attach: 0x0a,
  attached: 0x0b,
  moved: 0x0c,
  resume: 0x0d,
  resumed: 0x0e,
  resumeDone: 0x0f,
  switch: 0x10,
  drain: 0x11,
  packet: 0x20,
  super: 0x21,
  echo: 0x22,
  ethernet: 0x23,
  compressed: 0x24,
} as const;
export type FrameType = (typeof FrameType)[keyof typeof FrameType];

/** Bytes of a frame's header: type u8, length u24 big-endian. */
export const FRAME_HEADER_BYTES = 4;
/** Bytes in front of the packet in a `SUPER` payload: u8 gsoType, u8 flags, u16 gsoSize. */
export const SUPER_HEADER_BYTES = 4;

/** Bytes in front of the zstd frame in a `COMPRESSED` payload: the header of the data frame that it was. */
export const COMPRESSED_HEADER_BYTES = 4;

/** Longest payload of any frame before a login has been accepted. */
export const MAX_LOGIN_PAYLOAD_BYTES = 16_384;
/** Longest payload of a control frame after it. */
export const MAX_CONTROL_PAYLOAD_BYTES = 262_144;
/** Longest `PACKET` or `ECHO` payload: an IPv6 header and 65,535 bytes. */
export const MAX_PACKET_PAYLOAD_BYTES = 65_575;
/** Longest `SUPER` payload. */
export const MAX_SUPER_PAYLOAD_BYTES = MAX_PACKET_PAYLOAD_BYTES + SUPER_HEADER_BYTES;
/** Longest `ETHERNET` payload: a header and the largest MTU. */
export const MAX_ETHERNET_PAYLOAD_BYTES = 9_014;
/** Longest `PING` or `PONG` payload after login. */
export const MAX_PING_PAYLOAD_BYTES = 1_024;
/** Longest `PING` payload before login, and how many of them a client may send there. */
export const MAX_EARLY_PING_PAYLOAD_BYTES = 64;
export const MAX_EARLY_PINGS = 4;
/** Longest `CLOSE`, `SWITCH`, `RESUME_DONE` or `DRAIN` payload. */
export const MAX_SHORT_PAYLOAD_BYTES = 4_096;

/** The line with which the server opens every connection. */
export const GREETING = 'OK VPN-HELLO 1\r\n';
/** Longest greeting that a client reads, line end included. */
export const MAX_GREETING_BYTES = 64;

/** Which end sends the frames that a decoder reads. */
export type FrameSender = 'client' | 'server';

/**
 * How far a connection has come. `greeting`: a line, then `login` (only from a server). `login`: until ACCEPT, RESUMED or
 * ATTACHED. `session`: a control connection after it. `data`: a data connection after it.
 */
export type FramePhase = 'greeting' | 'login' | 'session' | 'data';

/** Takes what a decoder finds, in order. What it throws ends the decoder and is thrown by `push`. */
export interface FrameSink {
  /** Where the payload announced by `reserve` goes: `target[targetOffset, targetOffset + length)`. */
  target: Uint8Array;
  targetOffset: number;
  /**
   * Asks for room for a `PACKET`, `SUPER`, `ETHERNET` or `COMPRESSED` payload; must set `target` and `targetOffset`. They are read once, now.
   *
   * @param whole all of the payload is in the chunk at hand: `data` follows before `push` returns
   */
  reserve(type: number, length: number, whole: boolean): void;
  /** The payload reserved last is complete at its place. */
  data(type: number, length: number): void;
  /** Any other frame. `payload` is borrowed until this returns. */
  control(type: number, payload: Uint8Array): void;
  /** An extension frame was skipped. */
  unknown(type: number): void;
  /** All complete frames of a chunk have been delivered, or the decoder has stopped. Must not throw. */
  idle?(): void;
  /** The greeting line, as received, line end included; borrowed. Needed only by who starts in phase `greeting`. */
  greeting?(line: Uint8Array): void;
}

const EMPTY = new Uint8Array(0);

/** What is done with a frame: 0 refuse, else a `Handling`. */
const Handling = { refuse: 0, data: 1, control: 2, skip: 3 } as const;

interface Rules {
  readonly handling: Uint8Array;
  readonly minimum: Uint32Array;
  readonly maximum: Uint32Array;
}

const KNOWN_TYPES: ReadonlySet<number> = new Set(Object.values(FrameType));

type Limits = Partial<Record<keyof typeof FrameType, number>>;

function rules(limits: Limits, maxUnknown: number): Rules {
  const handling = new Uint8Array(256);
  const minimum = new Uint32Array(256);
  const maximum = new Uint32Array(256);
  for (const [name, type] of Object.entries(FrameType) as [keyof typeof FrameType, number][]) {
    const limit = limits[name];
    if (limit === undefined) continue;
    handling[type] = DATA_TYPES.has(name) ? Handling.data : Handling.control;
    minimum[type] = MINIMUM[name] ?? 1;
    maximum[type] = limit;
  }
  if (maxUnknown > 0) {
    for (let type = 0x80; type < 0x100; type++) {
      if (KNOWN_TYPES.has(type)) continue;
      handling[type] = Handling.skip;
      maximum[type] = maxUnknown;
    }
  }
  return { handling, minimum, maximum };
}

const DATA_TYPES: ReadonlySet<string> = new Set(['packet', 'super', 'ethernet', 'compressed']);
const MINIMUM: Limits = {
  ping: 0,
  pong: 0,
  echo: 0,
  super: SUPER_HEADER_BYTES + 1,
  ethernet: 14,
  compressed: COMPRESSED_HEADER_BYTES + 1,
};

const DATA_LIMITS: Limits = {
  ping: MAX_PING_PAYLOAD_BYTES,
  pong: MAX_PING_PAYLOAD_BYTES,
  close: MAX_SHORT_PAYLOAD_BYTES,
  switch: MAX_SHORT_PAYLOAD_BYTES,
  packet: MAX_PACKET_PAYLOAD_BYTES,
  super: MAX_SUPER_PAYLOAD_BYTES,
  ethernet: MAX_ETHERNET_PAYLOAD_BYTES,
  echo: MAX_PACKET_PAYLOAD_BYTES,
  compressed: MAX_PACKET_PAYLOAD_BYTES,
};

const RULES: Readonly<Record<FrameSender, Readonly<Record<FramePhase, Rules | undefined>>>> = {
  client: {
    greeting: undefined,
    login: rules(
      {
        login: MAX_LOGIN_PAYLOAD_BYTES,
        answer: MAX_LOGIN_PAYLOAD_BYTES,
        attach: MAX_LOGIN_PAYLOAD_BYTES,
        resume: MAX_LOGIN_PAYLOAD_BYTES,
        close: MAX_SHORT_PAYLOAD_BYTES,
        ping: MAX_EARLY_PING_PAYLOAD_BYTES,
      },
      0,
    ),
    session: rules({ ...DATA_LIMITS, resumeDone: MAX_SHORT_PAYLOAD_BYTES }, MAX_CONTROL_PAYLOAD_BYTES),
    data: rules(DATA_LIMITS, MAX_CONTROL_PAYLOAD_BYTES),
  },
  server: {
    greeting: rules({}, 0),
    login: rules(
      {
        challenge: MAX_LOGIN_PAYLOAD_BYTES,
        accept: MAX_LOGIN_PAYLOAD_BYTES,
        reject: MAX_LOGIN_PAYLOAD_BYTES,
        attached: MAX_LOGIN_PAYLOAD_BYTES,
        moved: MAX_LOGIN_PAYLOAD_BYTES,
        resumed: MAX_LOGIN_PAYLOAD_BYTES,
        close: MAX_SHORT_PAYLOAD_BYTES,
        pong: MAX_EARLY_PING_PAYLOAD_BYTES,
      },
      0,
    ),
    session: rules(
      { ...DATA_LIMITS, config: MAX_CONTROL_PAYLOAD_BYTES, drain: MAX_SHORT_PAYLOAD_BYTES },
      MAX_CONTROL_PAYLOAD_BYTES,
    ),
    data: rules(DATA_LIMITS, MAX_CONTROL_PAYLOAD_BYTES),
  },
};

/** Buffers longer than this are given back as soon as their frame is done. */
const KEPT_BUFFER_BYTES = 4_096;
/** What a half-received control frame allocates at most beyond twice what has come of it. */
const FIRST_BUFFER_BYTES = 4_096;
/** Below this, a byte loop is faster than a view and a `set`. */
const LOOP_COPY_BYTES = 24;

/**
 * Reads frames out of the bytes of one connection, in any chunking.
 *
 * Memory is bounded by the longest frame legal in the phase, and by twice what has arrived of it. After an error or
 * `stop()` it delivers nothing more.
 */
export class FrameDecoder {
  readonly #sink: FrameSink;
  readonly #sender: FrameSender;
  #phase: FramePhase;
  #rules: Rules;
  #stopped = false;
  #isHeld = false;
  /** Stopped or held: nothing more is delivered for now. */
  #isHalted = false;
  /** What came while it was held. */
  readonly #unread: Uint8Array[] = [];

  /** Header bytes seen so far, and how many. */
  #header = 0;
  #headerBytes = 0;

  /** The frame whose payload is being read: its handling (0: none), type, length, and bytes read. */
  #handling: number = Handling.refuse;
  #type = 0;
  #length = 0;
  #filled = 0;
  #target: Uint8Array = EMPTY;
  #targetOffset = 0;

  /** A control payload that came in pieces. */
  #buffer: Uint8Array = EMPTY;

  /** A decoder of what `sender` sends. It starts in `greeting` when that is the server, else in `login`. */
  constructor(sink: FrameSink, sender: FrameSender) {
    this.#sink = sink;
    this.#sender = sender;
    this.#phase = sender === 'server' ? 'greeting' : 'login';
    this.#rules = rulesOf(sender, this.#phase);
  }

  get phase(): FramePhase {
    return this.#phase;
  }

  /** Sets what is legal from the next frame on. Called from the sink it already holds for the rest of the chunk. */
  setPhase(phase: FramePhase): void {
    this.#rules = rulesOf(this.#sender, phase);
    this.#phase = phase;
    // What comes in a session is short, and mostly in one piece.
    if (this.#handling === Handling.refuse) this.#buffer = EMPTY;
  }

  /** Delivers nothing more. May be called from the sink. */
  stop(): void {
    this.#stopped = true;
    this.#isHalted = true;
    this.#target = EMPTY;
    this.#buffer = EMPTY;
    this.#unread.length = 0;
  }

  /**
   * Keeps what comes from the next frame on, the rest of the chunk at hand included, until `release`. May be called from the
   * sink. Who calls it stops reading: all that still comes is kept.
   */
  hold(): void {
    this.#isHeld = true;
    this.#isHalted = true;
  }

  get isHeld(): boolean {
    return this.#isHeld;
  }

  /** Reads what was kept, and goes on. @throws {VpnError} as `push` */
  release(): void {
    if (this.#stopped) return;
    this.#isHeld = false;
    this.#isHalted = false;
    while (!this.#isHalted) {
      const chunk = this.#unread.shift();
      if (chunk === undefined) break;
      this.push(chunk);
    }
  }

  /**
   * Reads the next bytes. `chunk` is not kept.
   *
   * @throws {VpnError} ERR_GREETING, ERR_PROTOCOL_VERSION, ERR_FRAME_TYPE, ERR_FRAME_STATE, ERR_FRAME_EMPTY, ERR_FRAME_TOO_LONG, and whatever
   *   the sink throws
   */
  push(chunk: Uint8Array): void {
    if (this.#stopped) return;
    if (this.#isHeld) {
      this.#unread.push(new Uint8Array(chunk));
      return;
    }
    try {
      const read = this.#run(chunk);
      // In front of what is still to be read, where a chunk that was kept is held again.
      if (read < chunk.length && this.#isHeld) this.#unread.unshift(new Uint8Array(chunk.subarray(read)));
    } catch (error) {
      this.stop();
      throw error;
    } finally {
      this.#sink.idle?.();
    }
  }

  /**
   * The connection has ended.
   *
   * @throws {VpnError} ERR_FRAME_TRUNCATED inside a frame, ERR_GREETING inside the greeting
   */
  end(): void {
    if (this.#stopped) return;
    this.stop();
    if (this.#phase === 'greeting') {
      throw new VpnError('ERR_GREETING', 'the connection ended before the greeting was complete');
    }
    if (this.#headerBytes > 0 || this.#handling !== Handling.refuse) {
      throw new VpnError('ERR_FRAME_TRUNCATED', 'the connection ended inside a frame', {
        details: { type: this.#type, expected: this.#length, received: this.#filled },
      });
    }
  }

  /** @returns how much of it was read: all, unless the sink stopped or held the decoder */
  #run(chunk: Uint8Array): number {
    const sink = this.#sink;
    const end = chunk.length;
    let at = 0;
    if (this.#phase === 'greeting') {
      at = this.#readGreeting(chunk);
    }
    if (this.#isHalted) return at;
    if (this.#handling !== Handling.refuse) {
      at = this.#continuePayload(chunk, at);
    }
    while (at < end && !this.#isHalted) {
      let type: number;
      let length: number;
      if (this.#headerBytes === 0 && end - at >= FRAME_HEADER_BYTES) {
        type = chunk[at] ?? 0;
        length = ((chunk[at + 1] ?? 0) << 16) | ((chunk[at + 2] ?? 0) << 8) | (chunk[at + 3] ?? 0);
        at += FRAME_HEADER_BYTES;
      } else {
        this.#header = (this.#header << 8) | (chunk[at] ?? 0);
        at += 1;
        this.#headerBytes += 1;
        // A type that can never be legal is refused at once; nothing waits for the rest of its header.
        if (this.#headerBytes < FRAME_HEADER_BYTES) {
          if (this.#headerBytes === 1 && this.#rules.handling[this.#header] === Handling.refuse) {
            this.#refuse(this.#header, 1);
          }
          continue;
        }
        type = this.#header >>> 24;
        length = this.#header & 0xffffff;
        this.#header = 0;
        this.#headerBytes = 0;
      }

      const { handling: handlings, minimum, maximum } = this.#rules;
      const handling = handlings[type] ?? Handling.refuse;
      if (handling === Handling.refuse || length < (minimum[type] ?? 1) || length > (maximum[type] ?? 0)) {
        this.#refuse(type, length);
      }

      if (end - at >= length) {
        if (handling === Handling.data) {
          sink.reserve(type, length, true);
          copy(chunk, at, length, sink.target, sink.targetOffset);
          at += length;
          sink.data(type, length);
        } else if (handling === Handling.control) {
          const payload = chunk.subarray(at, at + length);
          at += length;
          sink.control(type, payload);
        } else {
          at += length;
          sink.unknown(type);
        }
        continue;
      }

      this.#type = type;
      this.#length = length;
      this.#filled = 0;
      if (handling === Handling.data) {
        sink.reserve(type, length, false);
        this.#target = sink.target;
        this.#targetOffset = sink.targetOffset;
      }
      this.#handling = handling;
      at = this.#continuePayload(chunk, at);
    }
    return at;
  }

  /** Takes what the chunk has of the payload under way; returns where the next frame starts. */
  #continuePayload(chunk: Uint8Array, at: number): number {
    const length = this.#length;
    const filled = this.#filled;
    const available = chunk.length - at;
    const take = Math.min(available, length - filled);
    const handling = this.#handling;
    if (handling === Handling.data) {
      copy(chunk, at, take, this.#target, this.#targetOffset + filled);
    } else if (handling === Handling.control) {
      if (this.#buffer.length < filled + take) this.#grow(filled + take);
      copy(chunk, at, take, this.#buffer, filled);
    }
    this.#filled = filled + take;
    if (this.#filled < length) return at + take;

    this.#handling = Handling.refuse;
    if (handling === Handling.data) {
      this.#target = EMPTY;
      this.#sink.data(this.#type, length);
    } else if (handling === Handling.control) {
      const payload = this.#buffer.subarray(0, length);
      if (this.#buffer.length > KEPT_BUFFER_BYTES) this.#buffer = EMPTY;
      this.#sink.control(this.#type, payload);
    } else {
      this.#sink.unknown(this.#type);
    }
    return at + take;
  }

  /** A declared length alone reserves little: the buffer at most doubles with what has come. */
  #grow(needed: number): void {
    const bytes = new Uint8Array(Math.min(this.#length, Math.max(FIRST_BUFFER_BYTES, needed * 2)));
    bytes.set(this.#buffer.subarray(0, this.#filled));
    this.#buffer = bytes;
  }

  #readGreeting(chunk: Uint8Array): number {
    const room = MAX_GREETING_BYTES - this.#filled;
    const newline = chunk.indexOf(0x0a);
    const take = newline < 0 ? chunk.length : newline + 1;
    if (take > room) throw new VpnError('ERR_GREETING', `the greeting is longer than ${MAX_GREETING_BYTES} bytes`);
    if (this.#buffer.length === 0) this.#buffer = new Uint8Array(MAX_GREETING_BYTES);
    this.#buffer.set(chunk.subarray(0, take), this.#filled);
    this.#filled += take;
    // What cannot become the greeting is refused at its first wrong byte, so that a foreign server is named at once.
    for (let i = 0; i < this.#filled && i < GREETING_START.length; i++) {
      if (this.#buffer[i] !== GREETING_START[i]) throw notGreeting(this.#buffer.subarray(0, this.#filled));
    }
    if (newline < 0) return take;
    const line = this.#buffer.slice(0, this.#filled);
    parseGreeting(line);
    this.#filled = 0;
    this.#buffer = EMPTY;
    this.setPhase('login');
    this.#sink.greeting?.(line);
    return take;
  }

  #refuse(type: number, length: number): never {
    const details = { type, length, phase: this.#phase };
    const name = `frame type 0x${type.toString(16).padStart(2, '0')}`;
    const handling = this.#rules.handling[type] ?? Handling.refuse;
    if (handling === Handling.refuse) {
      if (KNOWN_TYPES.has(type) || type >= 0x80) {
        throw new VpnError('ERR_FRAME_STATE', `${name} from the ${this.#sender} is not legal in phase ${this.#phase}`, {
          details,
        });
      }
      throw new VpnError('ERR_FRAME_TYPE', `${name} is unknown and not an extension (0x80 and up)`, { details });
    }
    if (length < (this.#rules.minimum[type] ?? 1)) {
      throw new VpnError('ERR_FRAME_EMPTY', `${name} has a payload of ${length} bytes, too short to hold anything`, {
        details,
      });
    }
    throw new VpnError(
      'ERR_FRAME_TOO_LONG',
      `${name} announces ${length} bytes; in phase ${this.#phase} at most ${this.#rules.maximum[type]} are legal`,
      { details },
    );
  }
}

function rulesOf(sender: FrameSender, phase: FramePhase): Rules {
  const found = RULES[sender][phase];
  if (found === undefined) throw new VpnError('ERR_INVARIANT', `a ${sender} sends nothing in phase ${phase}`);
  return found;
}

function copy(from: Uint8Array, at: number, length: number, to: Uint8Array, offset: number): void {
  if (length <= LOOP_COPY_BYTES) {
    for (let i = 0; i < length; i++) to[offset + i] = from[at + i] ?? 0;
  } else {
    to.set(from.subarray(at, at + length), offset);
  }
}

/**
 * Writes a frame's header at `bytes[offset, offset + FRAME_HEADER_BYTES)`.
 *
 * @throws {VpnError} ERR_FRAME_TOO_LONG where 24 bits do not hold `length`
 */
export function writeFrameHeader(bytes: Uint8Array, offset: number, type: number, length: number): void {
  if (length > 0xffffff) {
    throw new VpnError('ERR_FRAME_TOO_LONG', `a payload of ${length} bytes does not fit a frame`, {
      details: { type, length },
    });
  }
  bytes[offset] = type;
  bytes[offset + 1] = length >>> 16;
  bytes[offset + 2] = length >>> 8;
  bytes[offset + 3] = length;
}

/** One frame in memory of its own. @throws {VpnError} ERR_FRAME_TOO_LONG */
export function encodeFrame(type: FrameType, payload: Uint8Array): Uint8Array {
  const frame = new Uint8Array(FRAME_HEADER_BYTES + payload.length);
  writeFrameHeader(frame, 0, type, payload.length);
  frame.set(payload, FRAME_HEADER_BYTES);
  return frame;
}

/** The greeting's bytes. */
export function encodeGreeting(): Uint8Array {
  return new TextEncoder().encode(GREETING);
}

const GREETING_START = new TextEncoder().encode('OK VPN-HELLO');

/**
 * Reads a greeting line, line end included. `OK VPN-HELLO` alone means version 1.
 *
 * @throws {VpnError} ERR_GREETING when it is none, ERR_PROTOCOL_VERSION when its version is not 1
 */
export function parseGreeting(line: Uint8Array): { version: number } {
  let text = '';
  for (const byte of line) text += String.fromCharCode(byte);
  const match = /^OK VPN-HELLO(?: ([1-9][0-9]{0,8}))?\r?\n$/.exec(text);
  if (match === null || line.length > MAX_GREETING_BYTES) throw notGreeting(line);
  const version = match[1] === undefined ? 1 : Number(match[1]);
  if (version !== 1) {
    throw new VpnError('ERR_PROTOCOL_VERSION', `the server speaks version ${version}; this client speaks version 1`, {
      details: { version },
    });
  }
  return { version };
}

function notGreeting(line: Uint8Array): VpnError {
  let came = '';
  for (const byte of line.subarray(0, 32)) came += byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.';
  return new VpnError('ERR_GREETING', `expected the greeting "OK VPN-HELLO 1", got "${came}"`);
}
