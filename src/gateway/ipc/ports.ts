/**
 * What the processes of a gateway may ask of each other.
 *
 * Supervisor, auth and workers meet only through these interfaces, so that they can live in one process or in several of
 * different privilege. Everything in a request is a value that could cross a process boundary; nothing holds a socket, a
 * key of somebody else or a function. Auth believes no worker: proofs, signatures and credentials are checked there.
 */

import type { ClientCertificate } from '../../identity/steps/step.ts';
import type { Lease } from '../../ip/lease-pool.ts';
import type { Attached } from '../../protocol/attach.ts';
import type { Challenge, ChallengeRequest, Grant, LoginEvidence } from '../../protocol/login.ts';
import type { AttachMessage, CloseReason, ConfigMessage, RejectCode } from '../../protocol/messages.ts';
import type { ResumeEvidence, ResumeGrant } from '../../protocol/resume.ts';

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
  readonly certificate?: ClientCertificate;
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

/** A resume that has been granted and not been confirmed yet. */
export interface GrantedResume {
  readonly key: SessionKey;
  /** Which of the session's resumes; one that another has overtaken is worth nothing. */
  readonly attempt: number;
  /** What RESUMED says. */
  readonly grant: ResumeGrant;
}

export type ResumeVerdict =
  | { readonly accepted: true; readonly resume: GrantedResume }
  | { readonly accepted: false; readonly code: RejectCode };

/** The client's proof of the next secret. */
export interface ResumeConfirmation {
  readonly key: SessionKey;
  readonly attempt: number;
  readonly doneInput: Uint8Array;
  /** Payload of RESUME_DONE. */
  readonly payload: Uint8Array;
}

/** A session that waits for its client. */
export interface DetachedSession {
  readonly granted: SessionGrant;
  readonly features: readonly string[];
  /** Address and port of its last control connection. */
  readonly remote: string;
  /** Milliseconds since the Unix epoch. */
  readonly openedAt: number;
  /** Milliseconds since it lost its control connection. */
  readonly detachedMs: number;
}

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
  /** A connection that had a login is gone: whatever waits for its client ends. */
  forget(binding: string): void;
  /**
   * Records a session, with S(0), before its ACCEPT is sent; `features` are what both ends have agreed on.
   *
   * @throws {VpnError} ERR_SESSION_REPLACED, ERR_AUTH_REJECTED when it has been ended since the verdict; ERR_STORE
   */
  establish(session: SessionKey, secret: Uint8Array, features: readonly string[]): Promise<void>;
  /** Checks an ATTACH proof; the answer carries the ATTACHED frame with ours. */
  attach(request: AttachRequest): Promise<AttachVerdict>;
  /** A nonce for the proofs of a resume. */
  challengeResume(peer: LoginPeer): Promise<Uint8Array>;
  /**
   * The verdict on a resume. On yes nothing has changed yet.
   *
   * @throws {VpnError} ERR_STORE: no verdict
   */
  resume(evidence: ResumeEvidence, peer: LoginPeer): Promise<ResumeVerdict>;
  /**
   * Records S(n+1) = HKDF-Extract(K_resume(n), mix) beside S(n), before its RESUMED is sent.
   *
   * @throws {VpnError} ERR_SESSION_REPLACED, ERR_SESSION_UNKNOWN, ERR_STORE
   */
  proposeResume(resume: GrantedResume, mix: Uint8Array): Promise<void>;
  /**
   * Checks RESUME_DONE: the session belongs to this connection, and S(n) is void.
   *
   * @throws {VpnError} ERR_RESUME_PROOF, ERR_SESSION_REPLACED, ERR_AUTH_REJECTED, ERR_STORE
   */
  confirmResume(confirmation: ResumeConfirmation, peer: LoginPeer): Promise<SessionGrant>;
  /** The session has lost its control connection and waits for its client. @throws {VpnError} ERR_STORE */
  detach(session: SessionKey): Promise<void>;
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
