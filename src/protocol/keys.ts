/**
 * Transcript, key schedule and proofs of `customvpn/1`.
 *
 * Hides the exact byte strings that are hashed, signed and authenticated. It must not know where keys are kept or which
 * library computes a hash: the primitives are handed in. Integers are big-endian, lengths are fixed, and what is covered
 * is always bytes as received, never re-serialised messages.
 *
 * @see docs/protocol.md §5, docs/vectors.json, RFC 5869 (HKDF), RFC 8446 §7.5 and RFC 5705 (exporters)
 */

import { VpnError } from '../base/errors.ts';

/** What this room needs of cryptography. */
export interface Primitives {
  /** SHA-256 of the parts, one after the other; 32 bytes. */
  sha256(...parts: Uint8Array[]): Uint8Array;
  /** HMAC-SHA-256 of the parts, one after the other; 32 bytes. */
  hmacSha256(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array;
  /** Whether two byte strings are equal, in time that depends on their lengths only. */
  equal(a: Uint8Array, b: Uint8Array): boolean;
  /** Fresh unpredictable bytes. */
  randomBytes(length: number): Uint8Array;
}

/** The TLS exporter of one connection: 32 bytes for a full label (with its prefix) and a context. */
export type Exporter = (label: string, context: Uint8Array) => Uint8Array;

/** What every exporter label starts with. */
export const EXPORTER_LABEL_PREFIX = 'EXPORTER-customvpn-1-';

/** The uses of the exporter. `datagram` is reserved. */
export type ExporterLabel = 'auth' | 'session' | 'attach' | 'resume' | 'proxy' | 'datagram';

export const NONCE_BYTES = 32;
export const SESSION_ID_BYTES = 16;
export const DEVICE_ID_BYTES = 16;
export const PROOF_BYTES = 32;
/** Bytes of control frames that a transcript takes before it refuses. */
export const MAX_TRANSCRIPT_BYTES = 262_144;

/** `purpose` octet of a device signature. */
export const SignaturePurpose = { login: 1, resume: 2, enrol: 3 } as const;
export type SignaturePurpose = keyof typeof SignaturePurpose;

/** Who makes a proof. */
export type ProofRole = 'client' | 'server';

const EMPTY = new Uint8Array(0);
const ZERO_BYTE = new Uint8Array(1);

/** X(label, context): 32 bytes bound to one TLS connection. */
export function exportKey(exporter: Exporter, label: ExporterLabel, context: Uint8Array = EMPTY): Uint8Array {
  const key = exporter(EXPORTER_LABEL_PREFIX + label, context);
  if (key.length !== 32) throw new VpnError('ERR_INVARIANT', `the exporter gave ${key.length} bytes, not 32`);
  return key;
}

/**
 * The hash over everything both ends said: the greeting, then every LOGIN, CHALLENGE, ANSWER, ACCEPT, RESUME and RESUMED
 * frame as sent, header included, in protocol order.
 */
export class Transcript {
  readonly #primitives: Primitives;
  readonly #parts: Uint8Array[] = [];
  #bytes = 0;

  constructor(primitives: Primitives) {
    this.#primitives = primitives;
  }

  /** Adds bytes as sent; they are copied. @throws {VpnError} ERR_FRAME_TOO_LONG beyond `MAX_TRANSCRIPT_BYTES` */
  add(...parts: Uint8Array[]): void {
    for (const part of parts) {
      this.#bytes += part.length;
      if (this.#bytes > MAX_TRANSCRIPT_BYTES) {
        throw new VpnError('ERR_FRAME_TOO_LONG', `a login of more than ${MAX_TRANSCRIPT_BYTES} bytes`);
      }
      // Not `slice()`: a Node Buffer's is a view of memory that is used again.
      this.#parts.push(new Uint8Array(part));
    }
  }

  /** It is not needed any more. */
  forget(): void {
    this.#parts.length = 0;
  }

  /** SHA-256 of what was added so far. */
  digest(): Uint8Array {
    return this.#primitives.sha256(...this.#parts);
  }
}

/** The first 16 bytes of SHA-256 over a device's public key (SubjectPublicKeyInfo, DER). */
export function deviceIdOf(primitives: Primitives, publicKey: Uint8Array): Uint8Array {
  return new Uint8Array(primitives.sha256(publicKey).subarray(0, DEVICE_ID_BYTES));
}

/** SHA-256 over the public key (SubjectPublicKeyInfo, DER) of the server's leaf certificate. */
export function serverIdOf(primitives: Primitives, publicKey: Uint8Array): Uint8Array {
  return primitives.sha256(publicKey);
}

/** Everything a device signs. */
export interface DeviceSignatureFacts {
  purpose: SignaturePurpose;
  /** As the client dialled it, lower case, 1 to 255 bytes of UTF-8. */
  serverName: string;
  /** 32 bytes; see `serverIdOf`. */
  serverId: Uint8Array;
  /** X("auth", ""), 32 bytes. */
  exporterAuth: Uint8Array;
  /** The challenge's nonce, 32 bytes. */
  nonce: Uint8Array;
  /** 16 bytes; see `deviceIdOf`. */
  deviceId: Uint8Array;
  /** The transcript's digest through the CHALLENGE that asks, 32 bytes. */
  transcript: Uint8Array;
}

const SIGNATURE_CONTEXT = concat(new Uint8Array(64).fill(0x20), ascii('customvpn/1 device client'), ZERO_BYTE);
const SIGNATURE_FIXED_BYTES = SIGNATURE_CONTEXT.length + 2 + 32 + 32 + NONCE_BYTES + DEVICE_ID_BYTES + 32;

/**
 * The bytes a device signs.
 *
 * ```
 * 0x20 × 64 ‖ "customvpn/1 device client" ‖ 0x00 ‖ u8 purpose ‖ u8 len ‖ serverName ‖ serverId(32) ‖ X("auth","")(32)
 * ‖ nonce(32) ‖ deviceId(16) ‖ T(32)
 * ```
 *
 * @throws {VpnError} ERR_INVARIANT for a field of the wrong length
 */
export function deviceSignatureInput(facts: DeviceSignatureFacts): Uint8Array {
  const name = new TextEncoder().encode(facts.serverName);
  if (name.length < 1 || name.length > 255) {
    throw new VpnError('ERR_INVARIANT', `a server name of ${name.length} bytes, expected 1 to 255`);
  }
  return concat(
    SIGNATURE_CONTEXT,
    Uint8Array.of(SignaturePurpose[facts.purpose], name.length),
    name,
    fixed('serverId', facts.serverId, 32),
    fixed('exporterAuth', facts.exporterAuth, 32),
    fixed('nonce', facts.nonce, NONCE_BYTES),
    fixed('deviceId', facts.deviceId, DEVICE_ID_BYTES),
    fixed('transcript', facts.transcript, 32),
  );
}

/**
 * Takes a device signature's input apart again, so that whoever verifies the signature can check that it holds the nonce
 * it issued, its own server's identity, and the purpose and device that are claimed.
 *
 * @throws {VpnError} ERR_MESSAGE_SYNTAX when it is none
 */
export function parseDeviceSignatureInput(bytes: Uint8Array): DeviceSignatureFacts {
  const start = SIGNATURE_CONTEXT.length;
  const nameBytes = bytes[start + 1] ?? 0;
  const purpose = purposeOf(bytes[start]);
  if (
    bytes.length !== SIGNATURE_FIXED_BYTES + nameBytes ||
    nameBytes === 0 ||
    purpose === undefined ||
    !SIGNATURE_CONTEXT.every((byte, index) => bytes[index] === byte)
  ) {
    throw new VpnError('ERR_MESSAGE_SYNTAX', 'these bytes are not the input of a device signature');
  }
  let at = start + 2;
  const take = (length: number): Uint8Array => {
    at += length;
    return new Uint8Array(bytes.subarray(at - length, at));
  };
  let serverName: string;
  try {
    serverName = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(take(nameBytes));
  } catch (cause) {
    throw new VpnError('ERR_MESSAGE_SYNTAX', 'the server name in a device signature is not UTF-8', { cause });
  }
  return {
    purpose,
    serverName,
    serverId: take(32),
    exporterAuth: take(32),
    nonce: take(NONCE_BYTES),
    deviceId: take(DEVICE_ID_BYTES),
    transcript: take(32),
  };
}

function purposeOf(octet: number | undefined): SignaturePurpose | undefined {
  switch (octet) {
    case SignaturePurpose.login:
      return 'login';
    case SignaturePurpose.resume:
      return 'resume';
    case SignaturePurpose.enrol:
      return 'enrol';
    default:
      return undefined;
  }
}

/** HKDF-Extract (RFC 5869 §2.2); 32 bytes. */
export function hkdfExtract(primitives: Primitives, salt: Uint8Array, inputKey: Uint8Array): Uint8Array {
  return primitives.hmacSha256(salt, inputKey);
}

/** HKDF-Expand (RFC 5869 §2.3). `length` at most 255 × 32. @throws {VpnError} ERR_INVARIANT beyond that */
export function hkdfExpand(primitives: Primitives, key: Uint8Array, info: Uint8Array, length: number): Uint8Array {
  if (length > 255 * 32) throw new VpnError('ERR_INVARIANT', `HKDF-Expand cannot make ${length} bytes`);
  const output = new Uint8Array(length);
  let block: Uint8Array = EMPTY;
  for (let done = 0, counter = 1; done < length; done += 32, counter++) {
    block = primitives.hmacSha256(key, block, info, Uint8Array.of(counter));
    output.set(block.subarray(0, length - done), done);
  }
  return output;
}

/** S(0): `exporter` of the control connection, `transcript` digested through ACCEPT. Never sent. */
export function sessionSecret(exporter: Exporter, transcript: Uint8Array): Uint8Array {
  return exportKey(exporter, 'session', transcript);
}

/** S(n+1) from K_resume(n): `exporter` of the resuming connection, `transcript` of its frames digested through RESUMED. */
export function nextSecret(
  primitives: Primitives,
  key: Uint8Array,
  exporter: Exporter,
  transcript: Uint8Array,
): Uint8Array {
  return hkdfExtract(primitives, key, exportKey(exporter, 'session', transcript));
}

/** K_attach of a session secret. */
export function attachKey(primitives: Primitives, secret: Uint8Array): Uint8Array {
  return hkdfExpand(primitives, secret, ascii('customvpn/1 attach'), 32);
}

/** K_resume of a session secret. */
export function resumeKey(primitives: Primitives, secret: Uint8Array): Uint8Array {
  return hkdfExpand(primitives, secret, ascii('customvpn/1 resume'), 32);
}

/** What an ATTACH or ATTACHED proof covers. */
export interface AttachFacts {
  session: Uint8Array;
  /** u32 */
  epoch: number;
  /** u8 */
  slot: number;
  /** u32 */
  generation: number;
  /** u8 */
  flags: number;
}

/** `role " attach" ‖ 0 ‖ sid(16) ‖ u32 epoch ‖ u8 slot ‖ u32 generation ‖ X("attach", sid)(32) ‖ u8 flags` */
export function attachProofInput(role: ProofRole, facts: AttachFacts, exporter: Exporter): Uint8Array {
  const session = fixed('session', facts.session, SESSION_ID_BYTES);
  return concat(
    ascii(`${role} attach`),
    ZERO_BYTE,
    session,
    u32(facts.epoch),
    Uint8Array.of(facts.slot),
    u32(facts.generation),
    exportKey(exporter, 'attach', session),
    Uint8Array.of(facts.flags),
  );
}

/** HMAC-SHA-256 with K_attach over `attachProofInput`; `exporter` of the connection being attached. */
export function attachProof(
  primitives: Primitives,
  key: Uint8Array,
  role: ProofRole,
  facts: AttachFacts,
  exporter: Exporter,
): Uint8Array {
  return primitives.hmacSha256(key, attachProofInput(role, facts, exporter));
}

/** K_proxy of a session secret. */
export function proxyKey(primitives: Primitives, secret: Uint8Array): Uint8Array {
  return hkdfExpand(primitives, secret, ascii('customvpn/1 proxy'), 32);
}

/** What the proof that binds an HTTP/2 connection to a session covers. */
export interface ProxyFacts {
  session: Uint8Array;
  /** u32 */
  epoch: number;
}

/** `role " proxy" ‖ 0 ‖ sid(16) ‖ u32 epoch ‖ X("proxy", sid)(32)` */
export function proxyProofInput(role: ProofRole, facts: ProxyFacts, exporter: Exporter): Uint8Array {
  const session = fixed('session', facts.session, SESSION_ID_BYTES);
  return concat(ascii(`${role} proxy`), ZERO_BYTE, session, u32(facts.epoch), exportKey(exporter, 'proxy', session));
}

/** HMAC-SHA-256 with K_proxy over `proxyProofInput`; `exporter` of the HTTP/2 connection. */
export function proxyProof(
  primitives: Primitives,
  key: Uint8Array,
  role: ProofRole,
  facts: ProxyFacts,
  exporter: Exporter,
): Uint8Array {
  return primitives.hmacSha256(key, proxyProofInput(role, facts, exporter));
}

/** What a RESUME, RESUMED or RESUME_DONE proof covers. */
export interface ResumeFacts {
  session: Uint8Array;
  /** u32: the epoch whose key makes the proof. */
  epoch: number;
  /** The challenge's nonce, 32 bytes. */
  nonce: Uint8Array;
  /** Digest through the frame before the one that carries the proof; through RESUMED for RESUME_DONE. */
  transcript: Uint8Array;
}

/** Which frame a resume proof is for. */
export type ResumeProofKind = 'client resume' | 'server resume' | 'client resume done';

/** `kind ‖ 0 ‖ sid(16) ‖ u32 epoch ‖ nonce(32) ‖ X("resume", sid)(32) ‖ T(32)` */
export function resumeProofInput(kind: ResumeProofKind, facts: ResumeFacts, exporter: Exporter): Uint8Array {
  const session = fixed('session', facts.session, SESSION_ID_BYTES);
  return concat(
    ascii(kind),
    ZERO_BYTE,
    session,
    u32(facts.epoch),
    fixed('nonce', facts.nonce, NONCE_BYTES),
    exportKey(exporter, 'resume', session),
    fixed('transcript', facts.transcript, 32),
  );
}

/** HMAC-SHA-256 with K_resume of the facts' epoch over `resumeProofInput`. */
export function resumeProof(
  primitives: Primitives,
  key: Uint8Array,
  kind: ResumeProofKind,
  facts: ResumeFacts,
  exporter: Exporter,
): Uint8Array {
  return primitives.hmacSha256(key, resumeProofInput(kind, facts, exporter));
}

/** The bytes of an ASCII text. */
function ascii(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function u32(value: number): Uint8Array {
  return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
}

function concat(...parts: Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function fixed(name: string, bytes: Uint8Array, length: number): Uint8Array {
  if (bytes.length !== length) {
    throw new VpnError('ERR_INVARIANT', `${name} has ${bytes.length} bytes, expected ${length}`);
  }
  return bytes;
}
