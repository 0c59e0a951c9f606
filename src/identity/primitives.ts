/**
 * The protocol's cryptographic primitives, by `node:crypto`.
 *
 * Hides the library, nothing else; what is hashed and compared is decided in `protocol/keys.ts`.
 */

import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Primitives } from '../protocol/keys.ts';

export const nodePrimitives: Primitives = {
  sha256(...parts) {
    const hash = createHash('sha256');
    for (const part of parts) hash.update(part);
    return hash.digest();
  },
  hmacSha256(key, ...parts) {
    const hmac = createHmac('sha256', key);
    for (const part of parts) hmac.update(part);
    return hmac.digest();
  },
  equal: (a, b) => a.length === b.length && timingSafeEqual(a, b),
  randomBytes: (length) => randomBytes(length),
};
