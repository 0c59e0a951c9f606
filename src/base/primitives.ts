/**
 * Hashes, random bytes and constant-time comparison, by `node:crypto`.
 *
 * Hides the library, so that the pure rooms get it handed in. It has the shape of `Primitives` in `protocol/keys.ts`; what
 * is hashed and compared is decided there.
 */

import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';

export const nodePrimitives = {
  sha256(...parts: Uint8Array[]): Uint8Array {
    const hash = createHash('sha256');
    for (const part of parts) hash.update(part);
    return hash.digest();
  },
  hmacSha256(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array {
    const hmac = createHmac('sha256', key);
    for (const part of parts) hmac.update(part);
    return hmac.digest();
  },
  equal: (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && timingSafeEqual(a, b),
  randomBytes: (length: number): Uint8Array => randomBytes(length),
};
