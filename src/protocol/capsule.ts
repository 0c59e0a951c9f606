/**
 * Capsules (RFC 9297 §3) and the datagrams of proxied UDP (RFC 9298 §5) in them.
 *
 * Hides variable-length integers and what to skip. What comes is a stream of chunks cut anywhere; what goes out is one
 * payload at a time. A length is judged before anything is kept for it.
 */

import { VpnError } from '../base/errors.ts';

const DATAGRAM = 0;
/** The context of plain UDP payloads; datagrams of others are skipped (RFC 9298 §4). */
const UDP_CONTEXT = 0;
/** RFC 9298 §5. */
export const MAX_UDP_PAYLOAD_BYTES = 65_527;
/** Type and length. */
const MAX_HEAD_BYTES = 16;
const EMPTY = new Uint8Array(0);

/** One capsule with a UDP payload. @throws {VpnError} ERR_FRAME_TOO_LONG */
export function encodeUdp(payload: Uint8Array): Uint8Array {
  if (payload.length > MAX_UDP_PAYLOAD_BYTES) throw tooLong(payload.length);
  const length = payload.length + 1;
  const head = length < 64 ? 1 : length < 16_384 ? 2 : 4;
  const bytes = new Uint8Array(2 + head + payload.length);
  bytes[0] = DATAGRAM;
  if (head === 1) bytes[1] = length;
  else if (head === 2) new DataView(bytes.buffer).setUint16(1, 0x4000 | length);
  else new DataView(bytes.buffer).setUint32(1, 0x8000_0000 + length);
  bytes[1 + head] = UDP_CONTEXT;
  bytes.set(payload, 2 + head);
  return bytes;
}

/** Takes a stream of capsules apart. */
export class CapsuleDecoder {
  readonly #onPayload: (payload: Uint8Array) => void;
  /** The beginning of a capsule's type and length. */
  #head: Uint8Array = EMPTY;
  /** A datagram that is not whole yet, and how much of it is there. */
  #body: Uint8Array | undefined;
  #filled = 0;
  /** Of a capsule that is nothing to us. */
  #skip = 0;

  /** @param onPayload told each UDP payload; it is the receiver's to keep */
  constructor(onPayload: (payload: Uint8Array) => void) {
    this.#onPayload = onPayload;
  }

  /** Takes the next bytes of the stream. @throws {VpnError} ERR_FRAME_TOO_LONG: the stream has to be reset */
  push(chunk: Uint8Array): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, chunk.length - at);
        this.#skip -= skipped;
        at += skipped;
      } else if (this.#body !== undefined) {
        at += this.#fill(this.#body, chunk.subarray(at));
      } else {
        at += this.#takeHead(chunk.subarray(at));
      }
    }
  }

  #fill(body: Uint8Array, bytes: Uint8Array): number {
    const part = bytes.subarray(0, body.length - this.#filled);
    body.set(part, this.#filled);
    this.#filled += part.length;
    if (this.#filled === body.length) {
      this.#body = undefined;
      this.#deliver(body);
    }
    return part.length;
  }

  /** Returns how many of the bytes belong to it. */
  #takeHead(bytes: Uint8Array): number {
    const known = this.#head.length;
    const head = joined(this.#head, bytes.subarray(0, MAX_HEAD_BYTES));
    const type = readVarint(head, 0);
    const length = type === undefined ? undefined : readVarint(head, type.end);
    if (type === undefined || length === undefined) {
      this.#head = head;
      return bytes.length;
    }
    this.#head = EMPTY;
    if (type.value !== DATAGRAM) {
      this.#skip = length.value;
    } else {
      // A context in 8 bytes, and the longest payload.
      if (length.value > MAX_UDP_PAYLOAD_BYTES + 8) throw tooLong(length.value);
      this.#filled = 0;
      if (length.value > 0) this.#body = new Uint8Array(length.value);
    }
    return length.end - known;
  }

  #deliver(body: Uint8Array): void {
    const context = readVarint(body, 0);
    if (context?.value !== UDP_CONTEXT) return;
    const payload = body.subarray(context.end);
    if (payload.length > MAX_UDP_PAYLOAD_BYTES) throw tooLong(payload.length);
    this.#onPayload(payload);
  }
}

/** RFC 9000 §16. A value beyond 2^53 comes out as one too large for anything. */
function readVarint(bytes: Uint8Array, at: number): { value: number; end: number } | undefined {
  const first = bytes[at];
  if (first === undefined) return undefined;
  const end = at + (1 << (first >> 6));
  if (bytes.length < end) return undefined;
  let value = first & 0x3f;
  for (let i = at + 1; i < end; i++) value = value * 256 + (bytes[i] ?? 0);
  return { value, end };
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(a.length + b.length);
  bytes.set(a);
  bytes.set(b, a.length);
  return bytes;
}

function tooLong(length: number): VpnError {
  return new VpnError('ERR_FRAME_TOO_LONG', `a datagram of ${length} bytes, expected at most ${MAX_UDP_PAYLOAD_BYTES}`);
}
