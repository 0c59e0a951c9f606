/**
 * Reads from the first record of a TLS connection which worker its client asks for.
 *
 * Hides the ClientHello, of which it looks at nothing but the protocols that are offered (ALPN). Nothing is decided by it that
 * TLS does not decide again: what cannot be read names no worker. Pure.
 *
 * @see RFC 8446 §4.1.2, RFC 7301 §3.1; docs/protocol.md REQ-TLS-008
 */

import { isTunnelProtocol, workerOf } from './tls.ts';

const RECORD_HEADER_BYTES = 5;
const CLIENT_HELLO = 1;
/** Message type and length, version, random. */
const FIXED_BYTES = 4 + 2 + 32;
const ALPN = 16;

/** The worker that a ClientHello's offered protocols name; `any`: a tunnel at whichever; undefined: no tunnel. */
export function requestedWorker(record: Uint8Array): number | 'any' | undefined {
  try {
    return workerIn(new Cursor(record.subarray(RECORD_HEADER_BYTES)));
  } catch {
    return undefined;
  }
}

function workerIn(hello: Cursor): number | 'any' | undefined {
  if (hello.bytes(FIXED_BYTES)[0] !== CLIENT_HELLO) return undefined;
  // Session id, cipher suites, compression methods.
  hello.bytes(hello.number(1));
  hello.bytes(hello.number(2));
  hello.bytes(hello.number(1));
  const extensions = new Cursor(hello.bytes(hello.number(2)));
  while (!extensions.isEmpty) {
    const type = extensions.number(2);
    const body = extensions.bytes(extensions.number(2));
    if (type !== ALPN) continue;
    const outer = new Cursor(body);
    const names = new Cursor(outer.bytes(outer.number(2)));
    let isTunnel = false;
    while (!names.isEmpty) {
      const protocol = Buffer.from(names.bytes(names.number(1))).toString('latin1');
      const worker = workerOf(protocol);
      if (worker !== undefined) return worker;
      isTunnel ||= isTunnelProtocol(protocol);
    }
    return isTunnel ? 'any' : undefined;
  }
  return undefined;
}

/** Reads forward; whatever is not there is an error. */
class Cursor {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get isEmpty(): boolean {
    return this.#at >= this.#bytes.length;
  }

  bytes(length: number): Uint8Array {
    if (this.#at + length > this.#bytes.length) throw new RangeError('the message ends too soon');
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  number(length: number): number {
    return this.bytes(length).reduce((value, byte) => value * 256 + byte, 0);
  }
}
