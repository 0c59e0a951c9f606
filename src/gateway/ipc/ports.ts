/**
 * What the processes of a gateway may ask of each other.
 *
 * Supervisor, auth and workers meet only through these interfaces, so that they can live in one process or in several of
 * different privilege. Everything in a request is a value that could cross a process boundary; nothing holds a socket, a
 * key of somebody else or a function. Auth believes no worker: proofs, signatures and credentials are checked there.
 */

import type { Lease } from '../../ip/lease-pool.ts';
import type { Attached } from '../../protocol/attach.ts';
import type { Challenge, ChallengeRequest, Grant, LoginEvidence } from '../../protocol/login.ts';
import type { AttachMessage, CloseReason, ConfigMessage, RejectCode } from '../../protocol/messages.ts';

/** Hexadecimal session id; the key of everything about a session. Never logged whole. */
export type SessionKey = string;

/** The connection on whose behalf a worker asks. */
export interface LoginPeer {
  /** Worker and connection: a nonce given to one is worthless to another. */
  readonly binding: string;
  /** Address and port of the client. */
  readonly remote: string;
  /** SHA-256 of the public key of the server's leaf in this handshake. */
  readonly serverId: Uint8Array;
  /** The client certificate that TLS has verified. */
  readonly certificate?: { readonly name: string; readonly serial: string; readonly issuer: string };
}

/** A session as its owner worker sees it. */
export interface SessionGrant {
  readonly key: SessionKey;
  /** What ACCEPT says. */
  readonly grant: Grant;
  readonly user: string;
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly lease: Lease;
  readonly config: ConfigMessage;
}

export type LoginVerdict =
  | { readonly accepted: true; readonly session: SessionGrant }
  | { readonly accepted: false; readonly code: RejectCode; readonly message: string }
  /** No verdict yet: the login goes on with another round. */
  | { readonly accepted: false; readonly challenge: Challenge };

/** A data connection that claims to belong to a session. */
export interface AttachRequest {
  readonly message: AttachMessage;
  /** X("attach", sid) of the connection, 32 bytes. */
  readonly exported: Uint8Array;
}

export type AttachVerdict =
  | { readonly accepted: true; readonly key: SessionKey; readonly attached: Attached }
  | { readonly accepted: false; readonly code: RejectCode };

/** What a worker may ask of auth. */
export interface AuthPort {
  /** A nonce and the steps to ask. */
  challenge(request: ChallengeRequest, peer: LoginPeer): Promise<Challenge>;
  /**
   * The one verdict on a login, or another round. On yes a session and its lease exist, and end when the worker says so.
   *
   * @throws {VpnError} ERR_BUSY, ERR_STORE: no verdict
   */
  verify(evidence: LoginEvidence, peer: LoginPeer): Promise<LoginVerdict>;
  /**
   * Records a session, with S(0), before its ACCEPT is sent.
   *
   * @throws {VpnError} ERR_SESSION_REPLACED, ERR_AUTH_REJECTED when it has been ended since the verdict; ERR_STORE
   */
  establish(session: SessionKey, secret: Uint8Array): Promise<void>;
  /** Checks an ATTACH proof; the answer carries the ATTACHED frame with ours. */
  attach(request: AttachRequest): Promise<AttachVerdict>;
  /** The session is over: its lease is free, its record closed. */
  end(session: SessionKey, reason: CloseReason): Promise<void>;
}

/** What auth may tell a worker. */
export interface WorkerPort {
  /** Ends a session at once; its client hears the reason. */
  close(session: SessionKey, reason: CloseReason): void;
  /** Sends a new CONFIG. */
  configure(session: SessionKey, config: ConfigMessage): void;
}

/** What others may ask of the supervisor. */
export interface SupervisorPort {
  /** Routes a lease to the plain device, for a peer without super-packets. */
  routePlain(lease: Lease): Promise<void>;
  /** Takes that back. */
  unroutePlain(lease: Lease): Promise<void>;
}
