/**
 * The one error class of CustomVPN and the closed list of its codes.
 *
 * Hides how a failure is classified. The *kind* of a code says whose fault it is, and the kind alone decides what a
 * shell does with it: close the channel, ask the user again, retry, refuse to start. Messages say what was expected,
 * what came and what to do; they never carry secrets. Every code has a heading in `docs/errors.md`.
 */

/** Whose fault a failure is. */
export type ErrorKind = 'protocol' | 'auth' | 'transport' | 'config' | 'system' | 'resource' | 'control' | 'internal';

const CODES = {
  // The peer broke the protocol: its channel is closed, nothing else.
  ERR_PROXY_HEADER: 'protocol',
  ERR_GREETING: 'protocol',
  ERR_PROTOCOL_VERSION: 'protocol',
  ERR_FRAME_TYPE: 'protocol',
  ERR_FRAME_TOO_LONG: 'protocol',
  ERR_FRAME_EMPTY: 'protocol',
  ERR_FRAME_STATE: 'protocol',
  ERR_FRAME_TRUNCATED: 'protocol',
  ERR_MESSAGE_SYNTAX: 'protocol',
  ERR_MESSAGE_FIELD: 'protocol',

  // The user, device or session was refused.
  ERR_AUTH_REJECTED: 'auth',
  ERR_AUTH_PROFILE_USED: 'auth',
  ERR_AUTH_TOKEN_EXPIRED: 'auth',
  ERR_AUTH_APPROVAL_PENDING: 'auth',
  ERR_AUTH_TOO_MANY_DEVICES: 'auth',
  ERR_AUTH_NEEDED: 'auth',
  ERR_PROXY_AUTH: 'auth',
  ERR_ATTACH_PROOF: 'auth',
  ERR_RESUME_PROOF: 'auth',
  ERR_SESSION_UNKNOWN: 'auth',
  ERR_SESSION_REPLACED: 'auth',

  // The network, or the TLS peer at its other end.
  ERR_NAME_LOOKUP: 'transport',
  ERR_CONNECT: 'transport',
  ERR_CONNECT_TIMEOUT: 'transport',
  ERR_TLS_HANDSHAKE: 'transport',
  ERR_TLS_VERSION: 'transport',
  ERR_TLS_MASTER_SECRET: 'transport',
  ERR_TLS_ALPN: 'transport',
  ERR_NOT_TLS: 'transport',
  ERR_UPGRADE: 'transport',
  ERR_PROXY: 'transport',
  ERR_CAPTIVE_PORTAL: 'transport',
  ERR_TLS_INTERCEPTED: 'transport',
  ERR_CERT_EXPIRED: 'transport',
  ERR_CERT_NOT_YET_VALID: 'transport',
  ERR_CERT_NAME: 'transport',
  ERR_CERT_UNTRUSTED: 'transport',
  ERR_CERT_PIN: 'transport',
  ERR_CERT_REQUIRED: 'transport',
  ERR_CERT_REVOKED: 'transport',
  ERR_PEER_GONE: 'transport',
  ERR_STAGE_TIMEOUT: 'transport',
  ERR_BACKEND: 'transport',

  // The operator's files and arguments.
  ERR_USAGE: 'config',
  ERR_CONFIG_FILE: 'config',
  ERR_CONFIG_SYNTAX: 'config',
  ERR_CONFIG_KEY: 'config',
  ERR_CONFIG_VALUE: 'config',
  ERR_DEVICE_KIND: 'config',
  ERR_CERT_KEY_MISMATCH: 'config',
  ERR_CERT_FILE: 'config',

  // The machine.
  ERR_SYSCALL: 'system',
  ERR_PRIVILEGE: 'system',
  ERR_UNSUPPORTED: 'system',
  ERR_TUN_OPEN: 'system',
  ERR_PORT_TAKEN: 'system',
  ERR_HOST_APPLY: 'system',
  ERR_STORE: 'system',

  // Load.
  ERR_POOL_EXHAUSTED: 'resource',
  ERR_TOO_MANY_SESSIONS: 'resource',
  ERR_TOO_MANY_CONNECTIONS: 'resource',
  ERR_BUSY: 'resource',

  // A client of the control API.
  ERR_BAD_REQUEST: 'control',
  ERR_NOT_FOUND: 'control',
  ERR_CONFLICT: 'control',
  ERR_NOT_RUNNING: 'control',
  ERR_ALREADY_RUNNING: 'control',

  // Us.
  ERR_INVARIANT: 'internal',
} as const satisfies Record<string, ErrorKind>;

/** A stable name for a failure; tests and callers branch on it, never on the message. */
export type ErrorCode = keyof typeof CODES;

/** Every code, in the order of the table. */
export const ERROR_CODES = Object.keys(CODES) as readonly ErrorCode[];

/** Facts about a failure that a program may want; never secrets. */
export type ErrorDetails = Readonly<Record<string, string | number | boolean | undefined>>;

/** The only error that CustomVPN throws on purpose. */
export class VpnError extends Error {
  override readonly name = 'VpnError';
  readonly code: ErrorCode;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, message: string, options: { details?: ErrorDetails; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
  }

  get kind(): ErrorKind {
    return CODES[this.code];
  }
}

/** Tells whether a value is a `VpnError`, of one of the codes if any are given. */
export function isVpnError(value: unknown, ...codes: ErrorCode[]): value is VpnError {
  return value instanceof VpnError && (codes.length === 0 || codes.includes(value.code));
}

/** Turns anything thrown into a `VpnError`, keeping it as the cause. A `VpnError` is returned as it is. */
export function toVpnError(value: unknown, code: ErrorCode = 'ERR_INVARIANT'): VpnError {
  if (value instanceof VpnError) return value;
  return new VpnError(code, value instanceof Error ? value.message : String(value), { cause: value });
}

/** The `sysexits(3)` status with which a command ends on this error. */
export function exitStatus(error: VpnError): number {
  if (error.code === 'ERR_USAGE' || error.code === 'ERR_BAD_REQUEST') return 64;
  if (error.code === 'ERR_PRIVILEGE') return 77;
  switch (error.kind) {
    case 'auth':
      return 77;
    case 'config':
      return 78;
    case 'system':
      return 71;
    case 'internal':
      return 70;
    case 'protocol':
      return 76;
    case 'transport':
    case 'resource':
    case 'control':
      return 69;
  }
}
