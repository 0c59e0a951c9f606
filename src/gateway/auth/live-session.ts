/**
 * What is known of one session that is alive. A value; `session-book` keeps it.
 */

import type { Prefix } from '../../ip/address.ts';
import type { Lease } from '../../ip/lease-pool.ts';
import type { AttachServer } from '../../protocol/attach.ts';
import type { CloseReason, StepKind } from '../../protocol/messages.ts';
import type { ProxyBinding } from '../../protocol/proxy-binding.ts';
import type { ResumeKey, SessionCertificate } from '../../store/sessions.ts';
import type { SessionKey, SessionTraffic } from '../ipc/ports.ts';

const NO_TRAFFIC: Readonly<SessionTraffic> = { receivedBytes: 0, receivedPackets: 0, sentBytes: 0, sentPackets: 0 };

/** A session that its client has been told of. */
export interface StartedSession {
  readonly key: SessionKey;
  readonly user: string;
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly lease: Lease;
  /** Address and port of the client. */
  readonly remote: string;
  /** Milliseconds since the Unix epoch. */
  readonly openedAt: number;
  /** As of the last word of its worker. */
  readonly traffic: Readonly<SessionTraffic>;
}

export interface LiveSession {
  readonly key: SessionKey;
  readonly id: Uint8Array;
  readonly user: string;
  readonly device: string;
  /** Of the account, as far as known. */
  groups: readonly string[];
  remote: string;
  certificate: SessionCertificate | undefined;
  readonly lease: Lease;
  /** Networks behind its client that it offers to carry packets for. */
  readonly offered: readonly Prefix[];
  /** Who owns it: all its connections end there. */
  worker: number;
  /** Its addresses are routed elsewhere than their share says. */
  isPlaced: boolean;
  /** What both ends have agreed on. */
  features: readonly string[];
  /** Its client has been told of it, and nobody yet of its end. */
  isStarted: boolean;
  openedAt: number;
  traffic: SessionTraffic;
  /** What of that was carried by workers that had it before. */
  formerTraffic: SessionTraffic;
  /** Milliseconds since the Unix epoch; undefined while it has a control connection. */
  detachedAt: number | undefined;
  /** What was proven when it was opened. */
  readonly steps: readonly StepKind[];
  /** Id of the access token among it; empty: it was opened by a version that did not note it. */
  readonly token: string | undefined;
  /** When something of that is good no more, milliseconds since the Unix epoch; undefined: never. */
  readonly proofEndsAt: number | undefined;
  /** That, or the end of the certificate. */
  endsAt: number;
  /** When it was last looked at whether it would be opened today, monotonic; undefined: not in the life of this process. */
  judgedAt: number | undefined;
  attach: AttachServer | undefined;
  /** Of the epoch whose data connections are alive. */
  formerAttach: AttachServer | undefined;
  /** What binds HTTP/2 connections to it; undefined while it has no secret that is certain. */
  binding: ProxyBinding | undefined;
  /** The last resume that was granted and not confirmed yet. */
  resuming: Resuming | undefined;
  isRecorded: boolean;
  /** Why it is not alive any more. */
  ended: CloseReason | undefined;
}

/** A resume on its way from the verdict to its confirmation. */
export interface Resuming {
  readonly attempt: number;
  /** On one of whose connections. */
  readonly worker: number;
  /** The epoch n that was proven. */
  readonly epoch: number;
  /** K_resume(n), and which key on record it is. */
  readonly proven: ResumeKey;
  /** What its proofs are over, among other things. */
  readonly nonce: Uint8Array;
  /** The session's data connections stay. */
  readonly isRekey: boolean;
  /** S(n+1) and the key on record that was made of it, once it is known. */
  next?: { readonly secret: Uint8Array; readonly version: Uint8Array };
}

/** What of a session nobody knows before its client is there. */
export function freshState() {
  const flags = { isStarted: false, isPlaced: false };
  const counters = { traffic: { ...NO_TRAFFIC }, formerTraffic: { ...NO_TRAFFIC } };
  return {
    judgedAt: undefined,
    attach: undefined,
    binding: undefined,
    formerAttach: undefined,
    resuming: undefined,
    ended: undefined,
    ...flags,
    ...counters,
  };
}

/** When a session has to end by what it rests on, milliseconds since the Unix epoch. */
export function endOf(proofEndsAt = Number.POSITIVE_INFINITY, certificate?: SessionCertificate): number {
  return Math.min(proofEndsAt, certificate?.notAfter ?? Number.POSITIVE_INFINITY);
}
