/**
 * Waits until a client has sent its first TLS record whole, or something that cannot be one.
 *
 * Hides the record header. Who says nothing, or a byte at a time, costs a socket and what they have sent, and none of what
 * TLS keeps for a connection. It judges nothing: what comes out goes to TLS, which knows what is wrong with it.
 *
 * @see RFC 8446 §5.1
 */

import type { Socket } from 'node:net';

const HANDSHAKE = 0x16;
const HEADER_BYTES = 5;
/** Of a record without encryption. */
const MAX_PAYLOAD_BYTES = 2 ** 14;

/** Bytes until `start` holds a whole record: of the header first. What is no record of a handshake is whole as it is. */
export function neededBytes(start: Uint8Array): number {
  if (start.length > 0 && start[0] !== HANDSHAKE) return start.length;
  if (start.length < HEADER_BYTES) return HEADER_BYTES;
  const payloadBytes = ((start[3] ?? 0) << 8) | (start[4] ?? 0);
  return payloadBytes > MAX_PAYLOAD_BYTES ? start.length : HEADER_BYTES + payloadBytes;
}

/**
 * Calls `ready` once, with every byte that has come, which are back in the socket, too, unless the socket closes first. The deadline is the
 * caller's. A client that ends its side before is disconnected.
 */
export function whenFirstRecord(socket: Socket, ready: (start: Buffer) => void): void {
  const chunks: Buffer[] = [];
  let length = 0;
  let needed = HEADER_BYTES;
  let hasHeader = false;
  const read = (): void => {
    for (let chunk: unknown = socket.read(); chunk !== null; chunk = socket.read()) {
      chunks.push(chunk as Buffer);
      length += (chunk as Buffer).length;
      // Until then it is the header that is needed, or its first byte that says it never will be.
      if (!hasHeader) needed = neededBytes(together(chunks));
      hasHeader = length >= HEADER_BYTES;
      if (length < needed) continue;
      socket.off('readable', read).off('end', gone);
      const start = together(chunks);
      socket.unshift(start);
      ready(start);
      return;
    }
  };
  const gone = (): void => void socket.destroy();
  socket.on('readable', read).once('end', gone);
}

function together(chunks: readonly Buffer[]): Buffer {
  const [first] = chunks;
  return chunks.length === 1 && first !== undefined ? first : Buffer.concat(chunks);
}
