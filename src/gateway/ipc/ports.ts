/**
 * What the processes of a gateway may ask of each other.
 *
 * Supervisor, auth and workers meet only through these interfaces, so that they can live in one process or in several of
 * different privilege. Everything in a request is a value that could cross a process boundary; nothing holds a key of
 * somebody else or a function, and the one thing that holds a socket, the answer to a `dial`, holds a descriptor to pass. Auth believes no worker: proofs, signatures and credentials are checked there.
 */

import type { Socket as DatagramSocket } from 'node:dgram';
import type { Socket } from 'node:net';
import type { ErrorCode } from '../../base/errors.ts';
import type { HistogramCounts } from '../../base/histogram.ts';
import type { SessionInfo } from '../../control/operations.ts';
import type { ProxyCredentials } from '../../identity/proxy-login.ts';
import type { ClientCertificate } from '../../identity/steps/step.ts';
import type { IpAddress } from '../../ip/address.ts';
import type { Lease } from '../../ip/lease-pool.ts';
import type { ClassRule } from '../../ip/traffic-class.ts';
import type { Policy } from '../../policy/policy.ts';
import type { Attached } from '../../protocol/attach.ts';
import type { Challenge, ChallengeRequest, Grant, LoginEvidence } from '../../protocol/login.ts';
import type { AttachMessage, CloseReason, ConfigMessage, RejectCode } from '../../protocol/messages.ts';
import type { ProxyClaim } from '../../protocol/proxy-binding.ts';
import type { ResumeEvidence, ResumeGrant } from '../../protocol/resume.ts';
import type { Rate } from '../../transport/pacer.ts';
import type { StreamRefusal, StreamTarget } from '../../transport/stream-request.ts';
import type { GatewayConfig } from '../config.ts';

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
  /** Whether the policy lets the session compress; counts when it is opened. */
  readonly compression?: boolean;
}

/** A client that TLS has refused for its certificate, or for having none. What the certificate says is nobody's word but its own. */
export interface RefusedCertificate {
  /** Address and port of the client. */
  readonly remote: string;
  readonly code: ErrorCode;
  readonly reason: string;
  readonly certificate?: { readonly name: string; readonly issuer: string; readonly serial: string };
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
  | { readonly accepted: false; readonly code: RejectCode }
  /** Another worker owns the session. */
  | { readonly accepted: false; readonly movedTo: number };

/** A resume that has been granted and not been confirmed yet. */
export interface GrantedResume {
  readonly key: SessionKey;
  /** Which of the session's resumes; one that another has overtaken is worth nothing. */
  readonly attempt: number;
  /** What RESUMED says. */
  readonly grant: ResumeGrant;
}

export type ResumeVerdict =
  | {
      readonly accepted: true;
      readonly resume: GrantedResume;
      /** What both ends have agreed on when the session was opened. */
      readonly features: readonly string[];
    }
  | { readonly accepted: false; readonly code: RejectCode };

/** A session that has been resumed, for a worker that may not have had it. */
export interface ResumedSession {
  readonly granted: SessionGrant;
  readonly features: readonly string[];
  /** Milliseconds since the Unix epoch. */
  readonly openedAt: number;
}

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

/** What a session has carried. */
export interface SessionTraffic {
  receivedBytes: number;
  receivedPackets: number;
  sentBytes: number;
  sentPackets: number;
}

/** What all packets of a user at one worker keep: the worker's part of the user's rates. */
export interface UserShape {
  readonly user: string;
  readonly down?: Rate;
  readonly up?: Rate;
  /** Groups whose rates count, too. */
  readonly groups: readonly string[];
  /** Nothing is carried. */
  readonly isRefused: boolean;
}

/** The worker's part of the rates that a group shares. */
export interface GroupShape {
  readonly group: string;
  readonly down?: Rate;
  readonly up?: Rate;
}

export interface Shapes {
  readonly groups: readonly GroupShape[];
  readonly users: readonly UserShape[];
}

/** What a user or a group has carried at a worker since its last report. */
export interface UsageReport {
  readonly kind: 'user' | 'group';
  readonly name: string;
  readonly downBytes: number;
  readonly upBytes: number;
  /** Whether packets had to wait for the rate. */
  readonly downWaits: boolean;
  readonly upWaits: boolean;
}

/** How many of these one message holds. */
export const SHAPES_PER_MESSAGE = 1000;

/** What a worker may ask of auth, of the sessions that it owns and the connections that it has. */
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
  /** Somebody was refused before there was a login; for the record. */
  certificateRefused(refused: RefusedCertificate): void;
  /**
   * Records a session, with S(0), and has its packets routed to the worker, before its ACCEPT is sent; `features` are what
   * both ends have agreed on.
   *
   * @throws {VpnError} ERR_SESSION_REPLACED, ERR_AUTH_REJECTED when it has been ended since the verdict; ERR_STORE,
   *   ERR_HOST_APPLY
   */
  establish(session: SessionKey, secret: Uint8Array, features: readonly string[]): Promise<void>;
  /**
   * Checks an ATTACH proof; the answer carries the ATTACHED frame with ours. Where a connection is changed, device, account
   * and certificate are checked again, and the session of one that has lost its right ends.
   *
   * @throws {VpnError} ERR_STORE: no verdict
   */
  attach(request: AttachRequest, peer: LoginPeer): Promise<AttachVerdict>;
  /** A nonce for the proofs of a resume. */
  challengeResume(peer: LoginPeer): Promise<Uint8Array>;
  /**
   * The verdict on a resume, of whichever worker's session. On yes nothing has changed yet.
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
   * Checks RESUME_DONE: the session belongs to this connection, and to this worker, and S(n) is void.
   *
   * @throws {VpnError} ERR_RESUME_PROOF, ERR_SESSION_REPLACED, ERR_AUTH_REJECTED, ERR_STORE
   */
  confirmResume(confirmation: ResumeConfirmation, peer: LoginPeer): Promise<ResumedSession>;
  /** The client has been told of the session, or has it back; `remote`: its address and port. */
  started(session: SessionKey, remote: string): void;
  /** What a session has carried so far. */
  traffic(session: SessionKey, traffic: SessionTraffic): void;
  /** What users and groups with a shape have carried, in parts; `isFirst`: a new report. */
  usage(reports: readonly UsageReport[], isFirst: boolean): void;
  /**
   * The session has lost its control connection and waits for its client; with a reason: at another worker, or at a later
   * life of the gateway.
   *
   * @throws {VpnError} ERR_STORE
   */
  detach(session: SessionKey, reason?: CloseReason): Promise<void>;
  /** The session is over: its lease is free, its record closed. */
  end(session: SessionKey, reason: CloseReason): Promise<void>;
}

/** What a worker tells of itself. */
export interface WorkerReport {
  readonly sessions: number;
  /** Those of them that wait for their clients. */
  readonly waiting: number;
  readonly counters: Readonly<Record<string, number>>;
  /** By reason. */
  readonly drops: Readonly<Record<string, number>>;
  /** What all its sessions have carried, those that have ended included. */
  readonly traffic: Readonly<SessionTraffic>;
  /** How things are now. */
  readonly gauges: Readonly<Record<string, number>>;
  /** How long things took, counted with the bounds of `telemetry/gateway-metrics`. */
  readonly histograms: Readonly<Record<string, HistogramCounts>>;
}

/** A source of connections that are refused unread. */
export interface RefusedSource {
  readonly source: string;
  /** Milliseconds since the Unix epoch. */
  readonly until: number;
}

/** What auth may tell a worker, and ask of it. */
export interface WorkerPort extends ProxyWorkerPort {
  /** Ends a session at once; its client hears the reason. */
  close(session: SessionKey, reason: CloseReason): void;
  /** Sends a new CONFIG. */
  configure(session: SessionKey, config: ConfigMessage): void;
  /** Another worker has the session: resolves when nothing of it goes through this one any more. */
  release(session: SessionKey): Promise<void>;
  /** Asks clients to move to another server, those that come back, too: this one stops serving in so many seconds. */
  drain(seconds: number): void;
  /** What strangers may cost from now on. */
  limit(limits: GatewayConfig['limits']): void;
  /** Whom to refuse unread from now on; in place of those before. */
  refuse(sources: readonly RefusedSource[]): void;
  /** What users and groups may carry from now on, of those in it. */
  shape(shapes: Shapes): void;
  /** Which traffic belongs to which class from now on. */
  classify(rules: readonly ClassRule[]): void;
  report(): Promise<WorkerReport>;
  /** Up to `SESSIONS_PER_PAGE` sessions, oldest first, after the first so many. */
  listSessions(after: number): Promise<SessionInfo[]>;
}

/** So that a page is a frame of a worker, whatever stands in it. */
export const SESSIONS_PER_PAGE = 64;

/** Which device of a worker: the one for super-packets, or the one for peers that cannot take them. */
export type Place = 'primary' | 'plain';

/** What the supervisor tells of the host. */
export interface HostReport {
  /** Packets by kernel rule. */
  readonly counters: Readonly<Record<string, number>>;
  /** What stands in the way of clients on this host, with the command that mends it. */
  readonly warnings: readonly string[];
}

/** What the policy says of one client. */
export interface Access {
  /** The rules that are in force, by their place in the policy, ascending. */
  readonly rules: readonly number[];
  /** What the client is when a rule lets others reach it: `user:NAME` and `group:NAME`. */
  readonly peers: readonly string[];
  /** Networks behind the client that it speaks for, by their place in the policy. */
  readonly networks?: readonly number[];
}

export interface AdmittedLease {
  readonly lease: Lease;
  readonly access: Access;
}

/** A policy, and what it comes to at the moment. */
export interface Enforcement {
  readonly policy: Policy;
  /** What the names in it stand for. */
  readonly hosts: ReadonlyMap<string, readonly IpAddress[]>;
  /** Everybody who has a lease. */
  readonly sessions: readonly AdmittedLease[];
}

/** What auth may ask of the supervisor. */
export interface SupervisorPort {
  /** Routes the addresses of a lease to a device of a worker, and lets nobody else speak for them. @throws {VpnError} ERR_HOST_APPLY */
  place(lease: Lease, worker: number, place: Place): Promise<void>;
  /** They go where their share says again. @throws {VpnError} ERR_HOST_APPLY */
  unplace(lease: Lease): Promise<void>;
  /** Applies changed routes, services and pools. @throws {VpnError} ERR_HOST_APPLY; the host stays as it was */
  update(config: GatewayConfig): Promise<void>;
  /** What `update` has applied last is not to be after all, but what was before it. @throws {VpnError} ERR_HOST_APPLY */
  takeBack(former: GatewayConfig): Promise<void>;
  /** The whole of the configuration that was read last is in force now, as far as it can be. */
  reloaded(): void;
  /**
   * Puts a policy in force for packets, in place of the one before; without one routes say where clients may go.
   *
   * @throws {VpnError} ERR_HOST_APPLY; the old rules stay
   */
  enforce(enforcement: Enforcement | undefined): Promise<void>;
  /** Clients come, or may reach something else, under the policy in force. @throws {VpnError} ERR_HOST_APPLY; then none of them */
  admit(entries: readonly AdmittedLease[]): Promise<void>;
  /** A client is gone. @throws {VpnError} ERR_HOST_APPLY */
  dismiss(lease: Lease): Promise<void>;
  /** How the host is. */
  report(): Promise<HostReport>;
}

/** One connection's right to use the gateway as a proxy; unguessable, never logged. */
export type ProxyKey = string;

/** Who uses the gateway as a proxy, or wants to. */
export type ProxyPeer = Pick<LoginPeer, 'remote'>;

/** An HTTP/2 connection that claims to belong to a session. */
export interface ProxyProof {
  readonly claim: ProxyClaim;
  /** X("proxy", sid) of the connection, 32 bytes. */
  readonly exported: Uint8Array;
}

export interface ProxyGrant {
  readonly key: ProxyKey;
  readonly user: string;
}

/** What the streams of a connection have carried so far, and how many there are. */
export interface StreamTraffic {
  readonly streams: number;
  readonly sentBytes: number;
  readonly receivedBytes: number;
}

/** What a worker may ask of auth for those who use the gateway as a proxy. */
export interface ProxyPort {
  /** Checks the proof of an HTTP/2 connection; `info` is ours. */
  bind(proof: ProxyProof, peer: ProxyPeer): Promise<(ProxyGrant & { readonly info: string }) | undefined>;
  /** Checks a name and an access token. @throws {VpnError} ERR_STORE: no verdict */
  login(credentials: ProxyCredentials, peer: ProxyPeer): Promise<ProxyGrant | undefined>;
  /** What a connection has carried so far. */
  traffic(key: ProxyKey, traffic: StreamTraffic): void;
  /** The connection is gone. */
  release(key: ProxyKey): void;
}

/** What auth may tell a worker of those. */
export interface ProxyWorkerPort {
  /** Ends a connection and its streams at once. */
  closeProxy(key: ProxyKey): void;
  /** What may be reached has changed: ends the streams to where it is not allowed any more. */
  recheckStreams(): void;
}

/** Where somebody wants to go. */
export interface DialRequest {
  readonly key: ProxyKey;
  readonly kind: 'tcp' | 'udp';
  readonly target: StreamTarget;
}

/** A connected socket, which is the asker's, and its other end. */
export interface Dialled<S> {
  readonly socket: S;
  readonly address: string;
}

/** That, or why there is none. */
export type DialVerdict<S> = Dialled<S> | { readonly refused: StreamRefusal };

/**
 * Who dials for a worker, which may not even make a socket. Names are resolved, and policy is checked, at this port's other
 * side: whoever asks gets connections to nowhere else.
 */
export interface DialPort {
  dialTcp(request: DialRequest): Promise<DialVerdict<Socket>>;
  dialUdp(request: DialRequest): Promise<DialVerdict<DatagramSocket>>;
  /** Whether the policy now in force still has a connection that was made before. */
  isAllowed(key: ProxyKey, kind: 'tcp' | 'udp', address: string, port: number): Promise<boolean>;
}
