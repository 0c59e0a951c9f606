/**
 * Binds a connection for streams to its session, from both ends: in BIND and BOUND, or in the fields of one HTTP request and its
 * answer.
 *
 * Hides the bytes of the credential. As with a data connection every proof covers the exporter of the connection it
 * arrives on: a credential that was read elsewhere opens nothing. It must not know what carries it.
 *
 * ```
 * Proxy-Authorization:       CustomVPN base64url(sid(16) ‖ u32 epoch ‖ client proof(32))
 * Proxy-Authentication-Info: proof=base64url(server proof(32))
 * ```
 *
 * @see docs/protocol.md §15
 */

import { VpnError } from '../base/errors.ts';
import { type Exporter, PROOF_BYTES, type Primitives, type ProxyFacts, proxyProof, SESSION_ID_BYTES } from './keys.ts';

const SCHEME = 'CustomVPN ';
const INFO = 'proof=';
const CREDENTIAL_BYTES = SESSION_ID_BYTES + 4 + PROOF_BYTES;

/** What either end knows of the session. */
export interface ProxyBinding extends ProxyFacts {
  /** K_proxy of the epoch. */
  readonly key: Uint8Array;
}

/** What a client claims. */
export interface ProxyClaim extends ProxyFacts {
  readonly proof: Uint8Array;
}

/** The client's credential for the connection with this exporter. */
export function proxyCredential(primitives: Primitives, binding: ProxyBinding, exporter: Exporter): string {
  const bytes = new Uint8Array(CREDENTIAL_BYTES);
  bytes.set(binding.session);
  new DataView(bytes.buffer).setUint32(SESSION_ID_BYTES, binding.epoch);
  bytes.set(proxyProof(primitives, binding.key, 'client', binding, exporter), SESSION_ID_BYTES + 4);
  return SCHEME + base64Url(bytes);
}

/** Takes a credential apart; undefined when it is none of this scheme, or broken. */
export function parseProxyCredential(text: string): ProxyClaim | undefined {
  const bytes = text.startsWith(SCHEME) ? fromBase64Url(text.slice(SCHEME.length)) : undefined;
  if (bytes?.length !== CREDENTIAL_BYTES) return undefined;
  return {
    session: bytes.slice(0, SESSION_ID_BYTES),
    epoch: new DataView(bytes.buffer, bytes.byteOffset).getUint32(SESSION_ID_BYTES),
    proof: bytes.slice(SESSION_ID_BYTES + 4),
  };
}

/** Judges a claim; returns the server's answer, or undefined whatever is wrong with it. */
export function answerProxyClaim(
  primitives: Primitives,
  binding: ProxyBinding,
  claim: ProxyClaim,
  exporter: Exporter,
): string | undefined {
  const expected = proxyProof(primitives, binding.key, 'client', claim, exporter);
  const isProven = primitives.equal(expected, claim.proof);
  if (!isProven || claim.epoch !== binding.epoch || !primitives.equal(claim.session, binding.session)) return undefined;
  return INFO + base64Url(proxyProof(primitives, binding.key, 'server', binding, exporter));
}

/** The client's check of that answer. @throws {VpnError} ERR_ATTACH_PROOF */
export function checkProxyAnswer(
  primitives: Primitives,
  binding: ProxyBinding,
  answer: string | undefined,
  exporter: Exporter,
): void {
  const proof = answer?.startsWith(INFO) === true ? fromBase64Url(answer.slice(INFO.length)) : undefined;
  const expected = proxyProof(primitives, binding.key, 'server', binding, exporter);
  if (proof !== undefined && primitives.equal(expected, proof)) return;
  throw new VpnError(
    'ERR_ATTACH_PROOF',
    'the server has not proven that it knows the session; the connection is not used',
  );
}

function base64Url(bytes: Uint8Array): string {
  return bytes.toBase64({ alphabet: 'base64url', omitPadding: true });
}

function fromBase64Url(text: string): Uint8Array | undefined {
  try {
    const bytes = Uint8Array.fromBase64(text, { alphabet: 'base64url' });
    return base64Url(bytes) === text ? bytes : undefined;
  } catch {
    return undefined;
  }
}
