/**
 * The TLS profile of CustomVPN and the translation of TLS failures.
 *
 * @see docs/protocol.md
 */
import { type ErrorCode, VpnError } from '../base/errors.ts';

/** Turns a failure of a socket or of TLS into a `VpnError`; `fallback` is for what is not known better. */
export function translateTlsError(error: unknown, fallback: ErrorCode): VpnError {
  return new VpnError(fallback, error instanceof Error ? error.message : String(error), { cause: error });
}
