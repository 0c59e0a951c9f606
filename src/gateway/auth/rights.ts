/**
 * What a right to be here rests on, for whoever judges a login and whoever takes a right away.
 */

import type { StepKind } from '../../protocol/messages.ts';
import type { SessionCertificate } from '../../store/sessions.ts';
import type { LoginPeer } from '../ipc/ports.ts';

/** A login that the built-in steps have accepted, as an application's hook sees it. */
export interface LoginFacts {
  readonly user: string;
  readonly groups: readonly string[];
  /** Device id, hexadecimal. */
  readonly device: string;
  /** Address and port of the client. */
  readonly remote: string;
  /** Common name of the verified client certificate. */
  readonly certificate?: string;
}

/** What a change of rights can concern: a session, or a login that is being judged. */
export interface RightsHolder {
  readonly user: string | undefined;
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly certificate: SessionCertificate | undefined;
  /** What was proven, or is said to be. */
  readonly steps: readonly StepKind[];
  /** Id of the access token that was shown, or is said to be; empty: of one of the user's, nobody knows which. */
  readonly token?: string | undefined;
  /** When what it rests on ends by itself, milliseconds since the Unix epoch; undefined while that is not known. */
  readonly endsAt?: number | undefined;
}

/** The certificate that a peer has shown, as the application sees it. */
export function certificateName({ certificate }: LoginPeer): { certificate?: string } {
  return certificate === undefined ? {} : { certificate: certificate.name };
}
