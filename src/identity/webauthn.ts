/**
 * What an authenticator says when somebody makes or uses a passkey, and whether it is true.
 *
 * Hides the bytes of WebAuthn. Nothing is asked of who made the authenticator (attestation): at its making, a passkey is
 * as good as the login in which it is made, so the public key is taken as the browser gives it. Each use must have been
 * verified by the authenticator (PIN, finger or face), for it stands for password and second factor at once. Pure: it must
 * not know which passkeys there are.
 *
 * @see W3C Web Authentication Level 2, §6.1, §7.1 and §7.2
 */

import { createHash, createPublicKey, type KeyObject, timingSafeEqual, verify } from 'node:crypto';
import { VpnError } from '../base/errors.ts';

const HASH_BYTES = 32;
const FLAGS_AT = HASH_BYTES;
const COUNT_AT = FLAGS_AT + 1;
const HEAD_BYTES = COUNT_AT + 4;
const AAGUID_BYTES = 16;
const FLAG_PRESENT = 0x01;
const FLAG_VERIFIED = 0x04;
const FLAG_CREDENTIAL = 0x40;
const MIN_ID_BYTES = 16;
const MAX_ID_BYTES = 1023;
const MIN_RSA_BITS = 2048;

/** COSE's numbers of the algorithms that we take, the best first. */
export const PASSKEY_ALGORITHMS = [-8, -7, -257] as const;

/** What the page asked for. */
export interface Asked {
  readonly challenge: Uint8Array;
  /** Of the page, such as `https://vpn.example:8443`. */
  readonly origin: string;
  /** The host that the passkey is for. */
  readonly host: string;
}

/** A new passkey. */
export interface NewPasskey {
  readonly id: Uint8Array;
  readonly count: number;
}

/**
 * Checks what a browser says of a passkey that it has just made.
 *
 * @param publicKey SubjectPublicKeyInfo, DER
 * @throws {VpnError} ERR_BAD_REQUEST
 */
export function checkNewPasskey(
  made: { readonly clientData: Uint8Array; readonly authenticatorData: Uint8Array; readonly publicKey: Uint8Array },
  asked: Asked,
): NewPasskey {
  checkClientData(made.clientData, 'webauthn.create', asked);
  const data = readAuthenticatorData(made.authenticatorData, asked);
  keyOf(made.publicKey);
  if (data.id === undefined) throw wrong('it names no passkey');
  return { id: data.id, count: data.count };
}

/**
 * Checks a use of a passkey; returns the authenticator's count of uses, 0 when it keeps none.
 *
 * @param publicKey SubjectPublicKeyInfo, DER
 * @throws {VpnError} ERR_BAD_REQUEST
 */
export function checkPasskeyUse(
  used: { readonly clientData: Uint8Array; readonly authenticatorData: Uint8Array; readonly signature: Uint8Array },
  publicKey: Uint8Array,
  asked: Asked,
): number {
  checkClientData(used.clientData, 'webauthn.get', asked);
  const { count } = readAuthenticatorData(used.authenticatorData, asked);
  const signed = Buffer.concat([used.authenticatorData, sha256(used.clientData)]);
  const key = keyOf(publicKey);
  const digest = key.asymmetricKeyType === 'ed25519' ? null : 'sha256';
  if (!verify(digest, signed, key, used.signature)) throw wrong('the signature is not of this passkey');
  return count;
}

function checkClientData(bytes: Uint8Array, type: string, { challenge, origin }: Asked): void {
  let data: { type?: unknown; challenge?: unknown; origin?: unknown; crossOrigin?: unknown };
  try {
    data = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)) ?? {};
  } catch {
    throw wrong('what the browser collected is no JSON');
  }
  const answered = Buffer.from(typeof data.challenge === 'string' ? data.challenge : '', 'base64url');
  if (data.type !== type) throw wrong('it is for another purpose');
  if (answered.length !== challenge.length || !timingSafeEqual(answered, challenge)) {
    throw wrong('it answers another question');
  }
  if (data.origin !== origin) throw wrong('it is for another page');
  if (data.crossOrigin === true) throw wrong('it was made in a frame of another page');
}

function readAuthenticatorData(bytes: Uint8Array, { host }: Asked): { id: Uint8Array | undefined; count: number } {
  if (bytes.length < HEAD_BYTES) throw wrong('it is too short');
  if (!timingSafeEqual(bytes.subarray(0, HASH_BYTES), sha256(host))) throw wrong('it is for another host');
  const flags = bytes[FLAGS_AT] ?? 0;
  if ((flags & FLAG_PRESENT) === 0) throw wrong('nobody was present');
  if ((flags & FLAG_VERIFIED) === 0) throw wrong('the authenticator has not verified its user (PIN, finger or face)');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const count = view.getUint32(COUNT_AT);
  if ((flags & FLAG_CREDENTIAL) === 0) return { id: undefined, count };
  const lengthAt = HEAD_BYTES + AAGUID_BYTES;
  const length = bytes.length < lengthAt + 2 ? 0 : view.getUint16(lengthAt);
  const id = Uint8Array.from(bytes.subarray(lengthAt + 2, lengthAt + 2 + length));
  if (id.length !== length || length < MIN_ID_BYTES || length > MAX_ID_BYTES) throw wrong('its id has a wrong length');
  return { id, count };
}

function keyOf(publicKey: Uint8Array): KeyObject {
  let key: KeyObject;
  try {
    key = createPublicKey({ key: Buffer.from(publicKey), format: 'der', type: 'spki' });
  } catch (cause) {
    throw new VpnError('ERR_BAD_REQUEST', 'this passkey cannot be used: its public key cannot be read', { cause });
  }
  const { namedCurve, modulusLength = 0 } = key.asymmetricKeyDetails ?? {};
  const isGood =
    key.asymmetricKeyType === 'ed25519' ||
    (key.asymmetricKeyType === 'ec' && namedCurve === 'prime256v1') ||
    (key.asymmetricKeyType === 'rsa' && modulusLength >= MIN_RSA_BITS);
  if (!isGood) throw wrong('its key is of a kind that is not taken');
  return key;
}

function sha256(data: Uint8Array | string): Uint8Array {
  return createHash('sha256').update(data).digest();
}

function wrong(why: string): VpnError {
  return new VpnError('ERR_BAD_REQUEST', `this passkey cannot be used: ${why}`);
}
