/**
 * The TLS profile of CustomVPN: which versions, suites, groups and options, what was negotiated, and what a failure means.
 *
 * Hides OpenSSL's names and Node's quirks. TLS 1.3 with AEAD suites and the post-quantum hybrid group; TLS 1.2 only when
 * configured, and then with the extended master secret (RFC 7627), because exporter values are not bound to the
 * connection without it. No resumption of any kind: a resumed session keeps a revoked certificate's authority. It must not
 * know of sockets' lives: who listens, who dials and who waits is said elsewhere.
 *
 * @see docs/protocol.md §1
 */

import { constants, createHash, createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto';
import {
  type ConnectionOptions,
  createSecureContext,
  type DetailedPeerCertificate,
  type SecureContextOptions,
  type TLSSocket,
  type TlsOptions,
} from 'node:tls';
import { type ErrorCode, VpnError } from '../base/errors.ts';
import type { ChannelFacts, PeerCertificate } from './channel.ts';
import type { Endpoint } from './endpoint.ts';

/** The application protocol by which a TLS client asks for a tunnel. */
export const TUNNEL_ALPN = 'customvpn/1';
/** The front door's protocol. */
export const HTTP_ALPN = 'http/1.1';
/** The other one, where the front door is a proxy. */
export const HTTP2_ALPN = 'h2';
/** And the one by which clients of ours have their streams. */
export const STREAMS_ALPN = 'customvpn-streams/1';

const CIPHERS_13 = ['TLS_AES_128_GCM_SHA256', 'TLS_AES_256_GCM_SHA384', 'TLS_CHACHA20_POLY1305_SHA256'];
const CIPHERS_12 = [
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-RSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-RSA-CHACHA20-POLY1305',
];
const GROUPS = 'X25519MLKEM768:X25519:P-256:P-384';

/** The lowest TLS version that is spoken. */
export type MinTlsVersion = '1.2' | '1.3';

/** Whether the server asks clients for a certificate. `optional`: a client may have none, but not a bad one. */
export type ClientAuth = boolean | 'optional';

/** PEM text. */
export interface ServerCredentials {
  /** The leaf, and after it any intermediates. */
  cert: string;
  key: string;
  /** The authorities that client certificates are checked against; needed when they are asked for. */
  ca?: string | undefined;
  /** Revocation lists (label `X509 CRL`); with any, every authority in a client's chain needs one. */
  crl?: string | undefined;
}

/** PEM text, and what is demanded of the server. */
export interface ClientCredentials {
  /** The authorities the server's chain must end in; without any, the system's. */
  ca?: string | undefined;
  crl?: string | undefined;
  cert?: string | undefined;
  key?: string | undefined;
}

/**
 * Node's options for a server with this profile.
 *
 * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE (client certificates asked for, but no `ca`)
 */
export function serverTlsOptions(
  credentials: ServerCredentials,
  clientAuth: ClientAuth,
  minVersion: MinTlsVersion,
): TlsOptions {
  if (clientAuth !== false && credentials.ca === undefined) {
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      'client certificates are asked for, but no CA to check them against is given',
      {
        details: { key: 'caFile' },
      },
    );
  }
  const options: TlsOptions = {
    ...profile(minVersion),
    cert: credentials.cert,
    key: credentials.key,
    honorCipherOrder: true,
    requestCert: clientAuth !== false,
    // Node would cut the connection without a word. The listener judges the certificate and says why.
    rejectUnauthorized: false,
  };
  if (clientAuth !== false) {
    options.ca = certificateBlocks(credentials.ca ?? '', 'the CA');
    if (credentials.crl !== undefined) options.crl = credentials.crl;
  }
  checkKeyPair(credentials.cert, credentials.key, 'the server');
  checkContext(options);
  return options;
}

/**
 * Node's options for a client with this profile; the caller adds socket, name and ALPN.
 *
 * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH
 */
export function clientTlsOptions(
  credentials: ClientCredentials,
  verifyServer: boolean,
  minVersion: MinTlsVersion,
): ConnectionOptions {
  const options: ConnectionOptions = { ...profile(minVersion), rejectUnauthorized: verifyServer };
  if (credentials.ca !== undefined) options.ca = certificateBlocks(credentials.ca, 'the CA');
  if (credentials.crl !== undefined) options.crl = credentials.crl;
  if (credentials.cert !== undefined || credentials.key !== undefined) {
    if (credentials.cert === undefined || credentials.key === undefined) {
      throw new VpnError('ERR_CERT_FILE', 'a client certificate needs both its certificate and its key');
    }
    checkKeyPair(credentials.cert, credentials.key, 'the client');
    options.cert = credentials.cert;
    options.key = credentials.key;
  }
  checkContext(options);
  return options;
}

function profile(minVersion: MinTlsVersion): TlsOptions & ConnectionOptions {
  return {
    minVersion: minVersion === '1.2' ? 'TLSv1.2' : 'TLSv1.3',
    maxVersion: 'TLSv1.3',
    ciphers: (minVersion === '1.2' ? [...CIPHERS_13, ...CIPHERS_12] : CIPHERS_13).join(':'),
    ecdhCurve: GROUPS,
    secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION,
  };
}

/** Node ignores text that is no certificate in `ca`, so each block is parsed here. */
function certificateBlocks(pem: string, what: string): string[] {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0) throw new VpnError('ERR_CERT_FILE', `${what}: expected a PEM certificate, found none`);
  for (const block of blocks) parseCertificate(block, what);
  return blocks;
}

function parseCertificate(pem: string, what: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new VpnError('ERR_CERT_FILE', `${what}: this is not a PEM certificate`, { cause });
  }
}

function checkKeyPair(cert: string, key: string, whose: string): void {
  const leaf = parseCertificate(cert, `${whose}'s certificate`);
  let privateKey: KeyObject;
  try {
    privateKey = createPrivateKey(key);
  } catch (cause) {
    throw new VpnError('ERR_CERT_FILE', `${whose}'s key: this is not a PEM private key without a passphrase`, {
      cause,
    });
  }
  if (leaf.checkPrivateKey(privateKey)) return;
  throw new VpnError(
    'ERR_CERT_KEY_MISMATCH',
    `${whose}'s private key does not belong to the certificate ${nameOf(leaf)}; give the key it was issued with`,
  );
}

function checkContext(options: SecureContextOptions): void {
  try {
    createSecureContext(options);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new VpnError('ERR_CERT_FILE', `certificate, key or revocation list cannot be used: ${why}`, { cause });
  }
}

/** The protocols a client offers; `worker` is the hint of an earlier ACCEPT. */
export function tunnelProtocols(worker?: number): string[] {
  return worker === undefined ? [TUNNEL_ALPN] : [`${TUNNEL_ALPN}+${worker}`, TUNNEL_ALPN];
}

/** The worker that a protocol names; undefined: none. */
export function workerOf(protocol: string): number | undefined {
  const hint = /^customvpn\/1\+([0-9]{1,3})$/.exec(protocol)?.[1];
  const worker = Number(hint ?? 256);
  return worker <= 255 ? worker : undefined;
}

/** Whether a protocol is `customvpn/1`, with or without a worker hint. */
export function isTunnelProtocol(protocol: string): boolean {
  return /^customvpn\/1(\+\d{1,3})?$/.test(protocol);
}

/** What the server answers to a client's list; `undefined` refuses the connection with an alert. */
export function chooseProtocol(
  offered: readonly string[],
  { hasTunnels = true, isProxy = false }: { readonly hasTunnels?: boolean; readonly isProxy?: boolean } = {},
): string | undefined {
  const own = hasTunnels && isProxy ? [STREAMS_ALPN] : [];
  const http = isProxy ? [HTTP2_ALPN, HTTP_ALPN] : [HTTP_ALPN];
  return (
    (hasTunnels ? offered.find(isTunnelProtocol) : undefined) ??
    [...own, ...http].find((protocol) => offered.includes(protocol))
  );
}

/** IANA "TLS Supported Groups". */
const GROUP_NAMES: Readonly<Record<number, string>> = {
  23: 'P-256',
  24: 'P-384',
  25: 'P-521',
  29: 'X25519',
  30: 'X448',
  4587: 'SecP256r1MLKEM768',
  4588: 'X25519MLKEM768',
  4589: 'SecP384r1MLKEM1024',
};

const SESSION_FLAGS = 13;
const SESSION_GROUP = 19;
const FLAG_EXTENDED_MASTER_SECRET = 1;

/**
 * Whether a TLS 1.2 handshake used the extended master secret. Node has no API for it; the flag is in the session.
 *
 * @param session OpenSSL's `SSL_SESSION` in DER, as `getSession()` of either end gives it
 */
export function hasExtendedMasterSecret(session: Uint8Array): boolean {
  return ((sessionField(session, SESSION_FLAGS) ?? 0) & FLAG_EXTENDED_MASTER_SECRET) !== 0;
}

/** The group of the key exchange. `getEphemeralKeyInfo()` knows it at the client only; the session knows it at both ends. */
export function negotiatedGroup(session: Uint8Array): string {
  const group = sessionField(session, SESSION_GROUP);
  if (group === undefined) return 'unknown';
  return GROUP_NAMES[group] ?? `0x${group.toString(16).padStart(4, '0')}`;
}

/** Node's client puts this, a u16 length and the server's name in front of the DER. */
const CLIENT_SESSION_PREFIX = Buffer.from('\0nodejs:tls:session:1\0');

function sessionDer(session: Uint8Array): Uint8Array {
  const { length } = CLIENT_SESSION_PREFIX;
  if (!CLIENT_SESSION_PREFIX.equals(session.subarray(0, length))) return session;
  const nameLength = ((session[length] ?? 0) << 8) | (session[length + 1] ?? 0);
  return session.subarray(length + 2 + nameLength);
}

/** The small integer under an explicit context tag of an `SSL_SESSION` (ssl_asn1.c); `undefined` when absent or broken. */
function sessionField(session: Uint8Array, tag: number): number | undefined {
  const der = sessionDer(session);
  const sequence = readElement(der, 0, der.length);
  if (sequence === undefined || sequence.tag !== 0x30) return undefined;
  let at = sequence.start;
  while (at < sequence.end) {
    const element = readElement(der, at, sequence.end);
    if (element === undefined) return undefined;
    at = element.end;
    if (element.tag !== (0xa0 | tag)) continue;
    const integer = readElement(der, element.start, element.end);
    if (integer === undefined || integer.tag !== 0x02 || integer.end - integer.start > 5) return undefined;
    let value = 0;
    for (let i = integer.start; i < integer.end; i++) value = value * 256 + (der[i] ?? 0);
    return value;
  }
  return undefined;
}

function readElement(
  der: Uint8Array,
  at: number,
  limit: number,
): { tag: number; start: number; end: number } | undefined {
  const tag = der[at];
  const first = der[at + 1];
  if (tag === undefined || first === undefined) return undefined;
  let start = at + 2;
  let length = first;
  if (first >= 0x80) {
    const count = first & 0x7f;
    if (count === 0 || count > 3) return undefined;
    length = 0;
    for (let i = 0; i < count; i++) length = length * 256 + (der[start + i] ?? 0);
    start += count;
  }
  const end = start + length;
  return end > limit ? undefined : { tag, start, end };
}

/** SHA-256 of a certificate's public key (SPKI). */
export function keyHash(certificate: X509Certificate): Uint8Array {
  return createHash('sha256')
    .update(certificate.publicKey.export({ type: 'spki', format: 'der' }))
    .digest();
}

/** The key hash of the first certificate in PEM text. The text has been checked by `serverTlsOptions`. */
export function serverIdOf(cert: string): Uint8Array {
  return keyHash(new X509Certificate(cert));
}

/** What the profile demands of a handshake besides its certificates; see docs/protocol.md §1. */
export function checkHandshake(socket: TLSSocket): VpnError | undefined {
  if (socket.isSessionReused()) {
    return new VpnError('ERR_TLS_HANDSHAKE', 'the handshake resumed an earlier TLS session; resumption is not allowed');
  }
  if (socket.getProtocol() === 'TLSv1.3') return undefined;
  if (hasExtendedMasterSecret(socket.getSession() ?? new Uint8Array())) return undefined;
  return new VpnError(
    'ERR_TLS_MASTER_SECRET',
    'the peer speaks TLS 1.2 without the extended master secret (RFC 7627), which this protocol needs; use TLS 1.3',
  );
}

/**
 * What is known of a connection whose handshake is complete. `remote` is passed in, because an accepted socket may be gone.
 *
 * @param ends `isAnonymous`: the peer was not asked for a certificate
 */
export function readFacts(
  socket: TLSSocket,
  ends: { local: Endpoint; remote: Endpoint; serverId: Uint8Array; authorized: boolean; isAnonymous?: boolean },
): ChannelFacts {
  const peer = ends.isAnonymous === true ? undefined : socket.getPeerX509Certificate();
  return {
    protocol: socket.getProtocol() ?? 'unknown',
    cipher: socket.getCipher().standardName,
    group: negotiatedGroup(socket.getSession() ?? new Uint8Array()),
    alpn: socket.alpnProtocol === false || socket.alpnProtocol === null ? undefined : socket.alpnProtocol,
    local: ends.local,
    remote: ends.remote,
    authorized: ends.authorized && peer !== undefined,
    peerCertificate: peer === undefined ? undefined : describeCertificate(peer),
    serverId: ends.serverId,
  };
}

function describeCertificate(certificate: X509Certificate): PeerCertificate {
  return {
    name: nameOf(certificate),
    serial: certificate.serialNumber.toLowerCase(),
    issuer: certificate.issuer,
    pin: Buffer.from(keyHash(certificate)).toString('base64'),
    notAfter: certificate.validToDate.getTime(),
  };
}

/** The common name; a subject with none, or with several, is given whole. */
function nameOf(certificate: X509Certificate): string {
  const names = certificate.subject.split('\n').filter((line) => line.startsWith('CN='));
  const [name] = names;
  return names.length === 1 && name !== undefined ? name.slice(3) : certificate.subject.replaceAll('\n', ', ');
}

/**
 * Whether one of the pins is the key of the leaf, or of an authority that has signed it directly or through others.
 *
 * Node's chain is linked by names; a peer may have sent any certificate along. So every link's signature and CA flag are
 * checked here again.
 *
 * @param pins base64 SHA-256 of an SPKI
 */
export function isPinned(chain: DetailedPeerCertificate, pins: readonly string[]): boolean {
  const seen = new Set<string>();
  let current = new X509Certificate(chain.raw);
  let link = chain;
  for (;;) {
    if (pins.includes(Buffer.from(keyHash(current)).toString('base64'))) return true;
    seen.add(current.fingerprint256);
    // Types promise an issuer; at run time the last link may have none.
    const next: DetailedPeerCertificate | undefined = link.issuerCertificate;
    if (next === undefined) return false;
    const issuer = new X509Certificate(next.raw);
    if (seen.has(issuer.fingerprint256)) return false;
    if (!issuer.ca || !current.checkIssued(issuer) || !current.verify(issuer.publicKey)) return false;
    current = issuer;
    link = next;
  }
}

interface Meaning {
  code: ErrorCode;
  /** What came, and what to do. */
  text: string;
}

const NOT_TLS: Meaning = { code: 'ERR_NOT_TLS', text: 'the peer does not speak TLS' };
const HTTP: Meaning = { code: 'ERR_NOT_TLS', text: 'plain HTTP came to the TLS port; use https' };
const VERSION: Meaning = {
  code: 'ERR_TLS_VERSION',
  text: 'the two ends have no TLS version in common; TLS 1.3 is expected (1.2 only where configured)',
};
const ALPN: Meaning = {
  code: 'ERR_TLS_ALPN',
  text: `the two ends have no application protocol in common; expected ${TUNNEL_ALPN}`,
};
const NO_CERTIFICATE: Meaning = {
  code: 'ERR_CERT_REQUIRED',
  text: 'the server requires a client certificate, and none was given',
};
const EXPIRED: Meaning = {
  code: 'ERR_CERT_EXPIRED',
  text: 'the certificate has expired; renew it, or set the clock right',
};
const GONE: Meaning = {
  code: 'ERR_PEER_GONE',
  text: 'the peer has closed the connection, or cannot be reached any more',
};
const REVOKED: Meaning = { code: 'ERR_CERT_REVOKED', text: 'the certificate has been revoked' };
const UNTRUSTED: Meaning = { code: 'ERR_CERT_UNTRUSTED', text: 'the certificate is not trusted' };

/** OpenSSL's reasons and verification results by the names Node gives them. */
const MEANINGS: ReadonlyMap<string | undefined, Meaning> = new Map(
  Object.entries({
    ECONNRESET: GONE,
    EPIPE: GONE,
    ETIMEDOUT: GONE,
    ERR_SSL_HTTP_REQUEST: HTTP,
    ERR_SSL_HTTPS_PROXY_REQUEST: HTTP,
    ERR_SSL_WRONG_VERSION_NUMBER: NOT_TLS,
    ERR_SSL_PACKET_LENGTH_TOO_LONG: NOT_TLS,
    ERR_SSL_UNSUPPORTED_PROTOCOL: VERSION,
    ERR_SSL_VERSION_TOO_LOW: VERSION,
    ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION: VERSION,
    ERR_SSL_NO_PROTOCOLS_AVAILABLE: VERSION,
    ERR_SSL_NO_APPLICATION_PROTOCOL: ALPN,
    ERR_SSL_TLSV1_ALERT_NO_APPLICATION_PROTOCOL: ALPN,
    ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE: NO_CERTIFICATE,
    ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED: NO_CERTIFICATE,
    ERR_TLS_HANDSHAKE_TIMEOUT: { code: 'ERR_STAGE_TIMEOUT', text: 'the TLS handshake took too long' },
    ERR_TLS_CERT_ALTNAME_INVALID: { code: 'ERR_CERT_NAME', text: 'the certificate is for another name' },
    HOSTNAME_MISMATCH: { code: 'ERR_CERT_NAME', text: 'the certificate is for another name' },
    CERT_HAS_EXPIRED: EXPIRED,
    'ERR_SSL_SSL/TLS_ALERT_CERTIFICATE_EXPIRED': EXPIRED,
    CERT_NOT_YET_VALID: {
      code: 'ERR_CERT_NOT_YET_VALID',
      text: 'the certificate is not valid yet; set the clock right',
    },
    CERT_REVOKED: REVOKED,
    'ERR_SSL_SSL/TLS_ALERT_CERTIFICATE_REVOKED': REVOKED,
    'ERR_SSL_SSL/TLS_ALERT_BAD_CERTIFICATE': UNTRUSTED,
    'ERR_SSL_SSL/TLS_ALERT_UNSUPPORTED_CERTIFICATE': UNTRUSTED,
    'ERR_SSL_SSL/TLS_ALERT_CERTIFICATE_UNKNOWN': UNTRUSTED,
    ERR_SSL_TLSV1_ALERT_UNKNOWN_CA: UNTRUSTED,
    INVALID_PURPOSE: { code: 'ERR_CERT_UNTRUSTED', text: 'the certificate is not for this use (extended key usage)' },
    CRL_HAS_EXPIRED: {
      code: 'ERR_CERT_UNTRUSTED',
      text: 'the revocation list has expired; its authority has to make another',
    },
    UNABLE_TO_GET_CRL: {
      code: 'ERR_CERT_UNTRUSTED',
      text: 'there is no revocation list of the authority that issued it',
    },
    ...Object.fromEntries(
      [
        'CERT_CHAIN_TOO_LONG',
        'CERT_REJECTED',
        'CERT_SIGNATURE_FAILURE',
        'CERT_UNTRUSTED',
        'CRL_NOT_YET_VALID',
        'CRL_SIGNATURE_FAILURE',
        'DEPTH_ZERO_SELF_SIGNED_CERT',
        'ERROR_IN_CERT_NOT_AFTER_FIELD',
        'ERROR_IN_CERT_NOT_BEFORE_FIELD',
        'ERROR_IN_CRL_LAST_UPDATE_FIELD',
        'ERROR_IN_CRL_NEXT_UPDATE_FIELD',
        'INVALID_CA',
        'OUT_OF_MEM',
        'PATH_LENGTH_EXCEEDED',
        'SELF_SIGNED_CERT_IN_CHAIN',
        'UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY',
        'UNABLE_TO_DECRYPT_CERT_SIGNATURE',
        'UNABLE_TO_DECRYPT_CRL_SIGNATURE',
        'UNABLE_TO_GET_ISSUER_CERT',
        'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
        'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
        'UNSPECIFIED',
      ].map((name) => [name, UNTRUSTED]),
    ),
  }),
);

/**
 * Says what a failure of TLS means.
 *
 * @param fallback the code for what is not in the table: a broken handshake, or a connection lost
 */
export function translateTlsError(error: Error, fallback: ErrorCode): VpnError {
  const reason = 'code' in error ? String(error.code) : undefined;
  const meaning = MEANINGS.get(reason);
  const details = { reason };
  if (meaning === undefined) return new VpnError(fallback, `${describe(error, reason)}`, { cause: error, details });
  return new VpnError(meaning.code, `${meaning.text} (${reason})`, { cause: error, details });
}

/** OpenSSL's message holds addresses and source lines; its reason says the same shorter. */
function describe(error: Error, reason: string | undefined): string {
  const text = 'reason' in error && typeof error.reason === 'string' ? error.reason : error.message;
  return reason === undefined || text.includes(reason) ? text : `${text} (${reason})`;
}

/** A verification result that Node gives as a name only. */
export function certificateError(reason: string): VpnError {
  return translateTlsError(Object.assign(new Error(reason), { code: reason }), 'ERR_CERT_UNTRUSTED');
}
