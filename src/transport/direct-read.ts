/**
 * Takes decrypted bytes from a TLS socket without the stream in between.
 *
 * Node can read into one buffer of the caller's (the `onread` option of `net.Socket`), but offers that only for sockets it
 * dials itself. The ordinary way allocates a buffer for every 16 KiB, which V8 answers by marking its whole heap several times
 * a second: more than half of a receiver's processor time. So the option's two private fields are found on a socket that has
 * it and set on one that has not. Where that cannot be done, nothing is changed and the caller reads the stream.
 *
 * Must not know what the bytes are.
 */

import { Socket } from 'node:net';
import type { TLSSocket } from 'node:tls';

/** A TLS record's plaintext, and then some: a larger buffer is never filled. */
const BUFFER_BYTES = 64 * 1024;

/** One for all sockets: it is read before the next read of any of them can happen. */
const buffer = Buffer.alloc(BUFFER_BYTES);

interface Fields {
  readonly buffer: symbol;
  readonly callback: symbol;
}

let fields: Fields | null | undefined;

/**
 * Has `onBytes` called with what is read from now on; what the stream holds already comes as its `data` first.
 * The bytes are borrowed until `onBytes` returns, and it must not throw.
 *
 * @returns false when the socket must be read as a stream
 */
export function readDirectly(socket: TLSSocket, onBytes: (bytes: Uint8Array) => void): boolean {
  return readInto(socket, buffer, (length) => {
    onBytes(buffer.subarray(0, length));
    return true;
  });
}

/**
 * The same for any socket and any buffer, which sockets may share.
 *
 * @param onBytes told how many bytes lie at the beginning of `target`; false stops reading until `socket.resume()`
 */
export function readInto(socket: Socket, target: Uint8Array, onBytes: (length: number) => boolean): boolean {
  fields ??= findFields();
  if (fields === null) return false;
  const handle: unknown = Reflect.get(socket, '_handle');
  const useUserBuffer: unknown = isObject(handle) ? Reflect.get(handle, 'useUserBuffer') : undefined;
  if (typeof useUserBuffer !== 'function') return false;
  Reflect.set(socket, fields.buffer, target);
  Reflect.set(socket, fields.callback, onBytes);
  Reflect.apply(useUserBuffer, handle, [target]);
  return true;
}

/** The fields that Node sets for its option; null where it does not do it the way we know. */
function findFields(): Fields | null {
  const own = Buffer.alloc(1);
  const callback = (): boolean => true;
  const socket = new Socket({ onread: { buffer: own, callback } });
  const symbols = Object.getOwnPropertySymbols(socket);
  const found = {
    buffer: symbols.find((symbol) => Reflect.get(socket, symbol) === own),
    callback: symbols.find((symbol) => Reflect.get(socket, symbol) === callback),
  };
  socket.destroy();
  return found.buffer === undefined || found.callback === undefined
    ? null
    : { buffer: found.buffer, callback: found.callback };
}

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null;
}
