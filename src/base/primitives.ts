/**
 * Hashes, random bytes and constant-time comparison, by `node:crypto`.
 *
 * Hides the library, so that the pure rooms get it handed in. It has the shape of `Primitives` in `protocol/keys.ts`; what
 * is hashed and compared is decided there.
 */

import { createHmac, hash, randomBytes, timingSafeEqual } from 'node:crypto';

export const nodePrimitives = {
  sha256(...parts: Uint8Array[]): Uint8Array {
    const [first] = parts;
    // In one call: an object for each hash costs more than what is hashed here.
    return hash('sha256', parts.length === 1 && first !== undefined ? first : Buffer.concat(parts), 'buffer');
  },
  hmacSha256(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array {
    const hmac = createHmac('sha256', key);
    for (const part of parts) hmac.update(part);
    return hmac.digest();
  },
  equal: (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && timingSafeEqual(a, b),
  randomBytes: freshBytes,
};

const POOL_BYTES = 4096;
let pool = Buffer.alloc(0);

/** Unpredictable bytes that nobody has had; the caller's own. Few come out of many that were made together, which is cheaper. */
export function freshBytes(length: number): Uint8Array {
  if (length > POOL_BYTES / 16) return randomBytes(length);
  if (pool.length < length) pool = randomBytes(POOL_BYTES);
  const given = pool.subarray(0, length);
  const bytes = Uint8Array.from(given);
  given.fill(0);
  pool = pool.subarray(length);
  return bytes;
}
