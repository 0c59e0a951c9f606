/**
 * What tests of the protocol need: real primitives, a stand-in for the TLS exporter, device keys, and frames taken apart.
 */

import {
  createHash,
  createHmac,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
  timingSafeEqual,
  verify,
} from 'node:crypto';
import { type ErrorCode, isVpnError, type VpnError } from '../../src/base/errors.ts';
import { FRAME_HEADER_BYTES } from '../../src/protocol/frame.ts';
import { deviceIdOf, type Exporter, type Primitives } from '../../src/protocol/keys.ts';

export const primitives: Primitives = {
  sha256: (...parts) => new Uint8Array(parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest()),
  hmacSha256: (key, ...parts) =>
    new Uint8Array(parts.reduce((mac, part) => mac.update(part), createHmac('sha256', key)).digest()),
  equal: (a, b) => a.length === b.length && timingSafeEqual(a, b),
  randomBytes: (length) => randomBytes(length),
};

/** The exporter of one imagined connection: both ends that are given the same name share it. */
export function exporterOf(connection: string): Exporter {
  return (label, context) => primitives.hmacSha256(utf8(connection), utf8(`${label}\0`), context);
}

export interface TestDevice {
  id: Uint8Array;
  algorithm: 'p256' | 'ed25519';
  publicKey: Uint8Array;
  sign(bytes: Uint8Array): Uint8Array;
  verify(bytes: Uint8Array, signature: Uint8Array): boolean;
}

export function createDevice(algorithm: 'p256' | 'ed25519' = 'p256'): TestDevice {
  const pair: { publicKey: KeyObject; privateKey: KeyObject } =
    algorithm === 'p256' ? generateKeyPairSync('ec', { namedCurve: 'P-256' }) : generateKeyPairSync('ed25519');
  const publicKey = new Uint8Array(pair.publicKey.export({ type: 'spki', format: 'der' }));
  const hash = algorithm === 'p256' ? 'sha256' : null;
  return {
    id: deviceIdOf(primitives, publicKey),
    algorithm,
    publicKey,
    sign: (bytes) => sign(hash, bytes, { key: pair.privateKey, dsaEncoding: 'ieee-p1363' }),
    verify: (bytes, signature) => verify(hash, bytes, { key: pair.publicKey, dsaEncoding: 'ieee-p1363' }, signature),
  };
}

/** Type and payload of exactly one frame. */
export function split(frame: Uint8Array): [type: number, payload: Uint8Array] {
  return [frame[0] ?? 0, frame.subarray(FRAME_HEADER_BYTES)];
}

export function utf8(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

export function json(value: unknown): Uint8Array {
  return utf8(JSON.stringify(value));
}

/** For `assert.throws`: a `VpnError` of this code. */
export function code(expected: ErrorCode): (error: unknown) => error is VpnError {
  return (error): error is VpnError => {
    if (isVpnError(error, expected)) return true;
    throw error;
  };
}
