/**
 * Big-endian integers in byte arrays.
 *
 * Hides the bounds test that the compiler asks for. A read beyond the end gives 0 and not an exception; the callers
 * check lengths first, and a test holds them to it. Nothing here allocates.
 */

/** The byte at `at`. */
export function readU8(bytes: Uint8Array, at: number): number {
  return bytes[at] ?? 0;
}

/** The 16-bit integer at `at`, unsigned. */
export function readU16(bytes: Uint8Array, at: number): number {
  return ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
}

/** The 32-bit integer at `at`, signed: such a number is never boxed. */
export function readI32(bytes: Uint8Array, at: number): number {
  return ((bytes[at] ?? 0) << 24) | ((bytes[at + 1] ?? 0) << 16) | ((bytes[at + 2] ?? 0) << 8) | (bytes[at + 3] ?? 0);
}

/** Writes the low 16 bits of `value` at `at`. */
export function writeU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

/** Writes the low 32 bits of `value` at `at`. */
export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 24;
  bytes[at + 1] = value >>> 16;
  bytes[at + 2] = value >>> 8;
  bytes[at + 3] = value;
}
