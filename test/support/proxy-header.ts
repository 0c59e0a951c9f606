/** PROXY headers of version 2. */

/** @param payload addresses, ports and what follows them */
export function binaryHeader(command: number, family: number, payload: Uint8Array): Uint8Array {
  return Buffer.concat([
    Buffer.from('0d0a0d0a000d0a515549540a', 'hex'),
    Uint8Array.of(command, family, payload.length >>> 8, payload.length & 0xff),
    payload,
  ]);
}
