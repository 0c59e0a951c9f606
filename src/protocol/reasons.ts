/**
 * What reject codes and close reasons mean, in errors and for whoever would connect again.
 *
 * Hides the tables. It must not know timers or connections; `backoff.ts` says how long to wait.
 *
 * @see docs/protocol.md §4.3, §11
 */

import { type ErrorCode, VpnError } from '../base/errors.ts';
import type { CloseReason, RejectCode } from './messages.ts';

const REJECT_ERRORS: Readonly<Record<RejectCode, readonly [ErrorCode, string]>> = {
  rejected: ['ERR_AUTH_REJECTED', 'the server refused the login'],
  profile_used: ['ERR_AUTH_PROFILE_USED', 'this profile has already enrolled another device; ask for a new one'],
  token_expired: ['ERR_AUTH_TOKEN_EXPIRED', 'the enrolment token has expired; ask for a new profile'],
  approval_pending: ['ERR_AUTH_APPROVAL_PENDING', 'the device waits for an operator to approve it'],
  pool_exhausted: ['ERR_POOL_EXHAUSTED', 'the server has no free address'],
  too_many_sessions: ['ERR_TOO_MANY_SESSIONS', 'there are too many sessions'],
  session_unknown: ['ERR_SESSION_UNKNOWN', 'the server does not know the session'],
  session_replaced: ['ERR_SESSION_REPLACED', 'the session has moved to another connection'],
  version: ['ERR_PROTOCOL_VERSION', 'client and server speak different versions of the protocol'],
  shutting_down: ['ERR_PEER_GONE', 'the server is shutting down'],
  too_many_devices: ['ERR_AUTH_TOO_MANY_DEVICES', 'the account has as many devices as it may; have one revoked first'],
  unavailable: [
    'ERR_BACKEND',
    'the server cannot reach the source of accounts that has to judge the login; try again later',
  ],
  busy: ['ERR_BUSY', 'the server has too much to do; try again'],
  certificate_required: [
    'ERR_CERT_REQUIRED',
    'the server wants a client certificate; ask for one, and name it in the profile',
  ],
  certificate_untrusted: ['ERR_CERT_UNTRUSTED', 'the server does not trust the client certificate'],
  certificate_expired: ['ERR_CERT_EXPIRED', 'the client certificate has expired; ask for a new one'],
  certificate_not_yet_valid: ['ERR_CERT_NOT_YET_VALID', 'the client certificate is not valid yet; is the clock right?'],
  certificate_revoked: ['ERR_CERT_REVOKED', 'the client certificate has been revoked'],
  device_kind: ['ERR_DEVICE_KIND', 'one of client and gateway wants Ethernet (TAP), the other IP packets (TUN)'],
};

/** A REJECT as an error; `said` is the server's own text, if any. */
export function rejectError(code: RejectCode, said = ''): VpnError {
  const [errorCode, meaning] = REJECT_ERRORS[code];
  return new VpnError(errorCode, said === '' ? meaning : `${meaning} (the server says: ${said})`, {
    details: { reject: code },
  });
}

/** The code with which a server refuses because of `error`; everything unlisted is `rejected`. */
export function rejectCodeOf(error: VpnError): RejectCode {
  switch (error.code) {
    case 'ERR_AUTH_PROFILE_USED':
      return 'profile_used';
    case 'ERR_AUTH_TOKEN_EXPIRED':
      return 'token_expired';
    case 'ERR_AUTH_APPROVAL_PENDING':
      return 'approval_pending';
    case 'ERR_POOL_EXHAUSTED':
      return 'pool_exhausted';
    case 'ERR_TOO_MANY_SESSIONS':
      return 'too_many_sessions';
    case 'ERR_SESSION_UNKNOWN':
      return 'session_unknown';
    case 'ERR_SESSION_REPLACED':
      return 'session_replaced';
    case 'ERR_PROTOCOL_VERSION':
      return 'version';
    case 'ERR_AUTH_TOO_MANY_DEVICES':
      return 'too_many_devices';
    case 'ERR_BUSY':
      return 'busy';
    case 'ERR_BACKEND':
      return 'unavailable';
    case 'ERR_CERT_REQUIRED':
      return 'certificate_required';
    case 'ERR_CERT_UNTRUSTED':
      return 'certificate_untrusted';
    case 'ERR_CERT_EXPIRED':
      return 'certificate_expired';
    case 'ERR_CERT_NOT_YET_VALID':
      return 'certificate_not_yet_valid';
    case 'ERR_CERT_REVOKED':
      return 'certificate_revoked';
    case 'ERR_DEVICE_KIND':
      return 'device_kind';
    default:
      return 'rejected';
  }
}

/** The reason to give in CLOSE when a channel ends with `error`; without an error, a wish of this end. */
export function closeReasonOf(error: VpnError | undefined): CloseReason {
  if (error === undefined) return 'peer_disconnect';
  if (error.kind === 'protocol') return 'protocol_error';
  if (error.code === 'ERR_PEER_GONE' || error.code === 'ERR_STAGE_TIMEOUT') return 'dead_peer';
  if (error.code === 'ERR_SESSION_REPLACED') return 'replaced';
  return 'shutdown';
}

/** What a client does after a failure or a CLOSE. `slow`: only a person elsewhere can mend it, so ask rarely. */
export type Recovery = 'retry' | 'slow' | 'final';

/** Whether trying again can help. Never after a certificate error: it would only train people to wait. */
export function recoveryAfterError(error: VpnError): Recovery {
  switch (error.kind) {
    case 'transport':
      // A handshake also fails while a server restarts; who answers without TLS may be a portal that wants a login.
      if (error.code === 'ERR_TLS_HANDSHAKE') return 'retry';
      if (error.code === 'ERR_NOT_TLS') return 'slow';
      if (error.code === 'ERR_UPGRADE') return 'final';
      return error.code.startsWith('ERR_CERT_') || error.code.startsWith('ERR_TLS_') ? 'final' : 'retry';
    case 'resource':
      return 'retry';
    case 'auth':
      if (error.code === 'ERR_AUTH_APPROVAL_PENDING') return 'slow';
      return error.code === 'ERR_SESSION_UNKNOWN' ||
        error.code === 'ERR_ATTACH_PROOF' ||
        error.code === 'ERR_RESUME_PROOF'
        ? 'retry'
        : 'final';
    case 'protocol':
      return error.code === 'ERR_FRAME_TRUNCATED' ? 'retry' : error.code === 'ERR_PROTOCOL_VERSION' ? 'final' : 'slow';
    case 'config':
    case 'system':
    case 'control':
    case 'internal':
      return 'final';
  }
}

/** Whether a client connects again after the server's CLOSE. */
export function recoveryAfterClose(reason: CloseReason): Recovery {
  switch (reason) {
    case 'shutdown':
    case 'dead_peer':
    case 'peer_disconnect':
    case 'session_timeout':
      return 'retry';
    case 'protocol_error':
      return 'slow';
    case 'idle_timeout':
    case 'replaced':
    case 'admin':
    case 'revoked':
      return 'final';
  }
}
