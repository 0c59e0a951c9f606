/**
 * The process that decides: who may log in, which session and lease they get, when a session must end.
 *
 * Hides credentials, session secrets and leases from the workers. A worker brings evidence and gets a verdict; the proof
 * that ties a data connection to a session is checked here, with a key that leaves this room only as a proof. Everything
 * is default deny: the built-in steps must say yes, and then the application's own hook.
 */

import type { Clock } from '../../base/clock.ts';
import { isVpnError, toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { Authenticator, ResumeIdentity } from '../../identity/authenticator.ts';
import type { Standing } from '../../identity/backends/backend.ts';
import { NONCE_LIFE_MS } from '../../identity/nonces.ts';
import type { ProxyLogins } from '../../identity/proxy-login.ts';
import { formatIp } from '../../ip/address.ts';
import type { Lease, LeasePool } from '../../ip/lease-pool.ts';
import { type Attached, AttachServer } from '../../protocol/attach.ts';
import { Feature } from '../../protocol/features.ts';
import { attachKey, hkdfExtract, type Primitives, proxyKey, resumeKey, SESSION_ID_BYTES } from '../../protocol/keys.ts';
import { asksPeople, type Challenge, type ChallengeRequest, type LoginEvidence } from '../../protocol/login.ts';
import {
  type CloseReason,
  type ConfigMessage,
  type RejectCode,
  STEP_KINDS,
  type StepKind,
} from '../../protocol/messages.ts';
import type { ProxyBinding } from '../../protocol/proxy-binding.ts';
import { rejectCodeOf } from '../../protocol/reasons.ts';
import { checkResumeDone, type ResumeEvidence } from '../../protocol/resume.ts';
import type { ResumeKey, SessionCertificate, Sessions } from '../../store/sessions.ts';
import { LogLimit } from '../../transport/log-limit.ts';
import type { GatewayConfig } from '../config.ts';
import type {
  AttachRequest,
  AttachVerdict,
  DetachedSession,
  GrantedResume,
  LoginPeer,
  LoginVerdict,
  ResumeConfirmation,
  ResumedSession,
  ResumeVerdict,
  SessionGrant,
  SessionKey,
  SessionTraffic,
  SupervisorPort,
  WorkerPort,
} from '../ipc/ports.ts';
import { ProxyGrants } from './proxy-grants.ts';

/** How long the worker that a session leaves may take to let go of it. */
const FENCE_MS = 1000;

const NO_TRAFFIC: Readonly<SessionTraffic> = { receivedBytes: 0, receivedPackets: 0, sentBytes: 0, sentPackets: 0 };
const TRAFFIC = Object.keys(NO_TRAFFIC) as readonly (keyof SessionTraffic)[];

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

export interface AuthOptions {
  config: GatewayConfig;
  authenticator: Authenticator;
  /** Judges those who use the gateway as a proxy by name and access token. */
  proxyLogins: ProxyLogins;
  sessions: Sessions;
  pool: LeasePool;
  primitives: Primitives;
  clock: Clock;
  log: Logger;
  /** Asks the outside source of an account whether it is still good. Never rejects. */
  standing?: ((user: string) => Promise<Standing>) | undefined;
  /** Whether a client certificate stands for this user. Default: none does. */
  isCertificateOf?: ((user: string, certificate: LoginPeer['certificate']) => boolean) | undefined;
  /** Whether a client certificate has been revoked. Default: none has. */
  isRevoked?: ((certificate: SessionCertificate) => boolean) | undefined;
  /** Told after a session has begun in the life of this gateway, and after it has ended. */
  events?: {
    started(session: StartedSession): void;
    ended(session: StartedSession, reason: CloseReason): void;
  };
  /** May still refuse what the login steps have accepted; an error refuses, too. */
  authorize?: ((login: LoginFacts) => boolean | Promise<boolean>) | undefined;
}

interface LiveSession {
  readonly key: SessionKey;
  readonly id: Uint8Array;
  readonly user: string;
  readonly device: string;
  remote: string;
  certificate: SessionCertificate | undefined;
  readonly lease: Lease;
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
  /** When something of that is good no more, milliseconds since the Unix epoch; undefined: never. */
  readonly proofEndsAt: number | undefined;
  /** That, or the end of the certificate. */
  endsAt: number;
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
interface Resuming {
  readonly attempt: number;
  /** On one of whose connections. */
  readonly worker: number;
  /** The epoch n that was proven. */
  readonly epoch: number;
  /** K_resume(n), and which key on record it is. */
  readonly proven: ResumeKey;
  /** The session's data connections stay. */
  readonly isRekey: boolean;
  /** S(n+1) and the key on record that was made of it, once it is known. */
  next?: { readonly secret: Uint8Array; readonly version: Uint8Array };
}

/** What a change of rights can concern: a session, or a login that is being judged. */
export interface RightsHolder {
  readonly user: string | undefined;
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly certificate: SessionCertificate | undefined;
  /** What was proven, or is said to be. */
  readonly steps: readonly StepKind[];
  /** When what it rests on ends by itself, milliseconds since the Unix epoch; undefined while that is not known. */
  readonly endsAt?: number | undefined;
}

interface JudgedLogin extends RightsHolder {
  user: string | undefined;
  hasLostItsRight: boolean;
  /** What is asked of its user may have changed since it was judged. */
  mustSuffice: boolean;
}

export class Auth {
  /** Who may use the gateway as a proxy. */
  readonly proxies: ProxyGrants;
  readonly #options: AuthOptions;
  readonly #log: Logger;
  /** Oldest first. */
  readonly #live = new Map<SessionKey, LiveSession>();
  readonly #byDevice = new Map<string, SessionKey>();
  readonly #judged = new Set<JudgedLogin>();
  readonly #lines: LogLimit;
  #config: GatewayConfig;
  #revision = 1;
  /** Nobody new is let in; those that have a session may resume it. */
  isDraining = false;
  #attempts = 0;
  #supervisor: SupervisorPort | undefined;
  readonly #workers = new Map<number, WorkerPort>();

  constructor(options: AuthOptions) {
    this.#options = options;
    this.#config = options.config;
    this.#log = options.log.child({ component: 'auth' });
    this.#lines = new LogLimit(this.#log, options.clock);
    this.proxies = new ProxyGrants({
      logins: options.proxyLogins,
      primitives: options.primitives,
      clock: options.clock,
      log: options.log,
      findSession: (key) => {
        const { user, binding } = this.#live.get(key) ?? {};
        return user === undefined || binding === undefined ? undefined : { user, binding };
      },
      standing: async (user) => await options.standing?.(user),
      isAuthorized: (login) => this.#isAuthorized(login),
      judging: (holder, judge, grant) => this.#judging(holder, judge, grant),
    });
  }

  /** Who routes the addresses of sessions. Set once, before `restore`. */
  set supervisor(supervisor: SupervisorPort) {
    this.#supervisor = supervisor;
  }

  /** A worker is there; `sessionsOf` says what is its own. */
  connect(worker: number, port: WorkerPort): void {
    this.#workers.set(worker, port);
  }

  /**
   * A worker is gone: its sessions wait for their clients, those that are not on record are over.
   *
   * @throws {VpnError} ERR_STORE
   */
  async disconnect(worker: number): Promise<void> {
    this.#workers.delete(worker);
    const now = this.#options.clock.wallNow();
    for (const session of [...this.#live.values()]) {
      if (session.worker !== worker) continue;
      session.attach = undefined;
      session.binding = undefined;
      session.detachedAt ??= now;
      session.formerTraffic = { ...session.traffic };
      if (session.isRecorded) await this.#options.sessions.detach(session.key);
      else await this.end(session.key, 'shutdown');
    }
  }

  /** The worker that owns a session. */
  ownerOf(key: SessionKey): number | undefined {
    return this.#live.get(key)?.worker;
  }

  /** The keys of the live sessions, oldest first. */
  get keys(): SessionKey[] {
    return [...this.#live.keys()];
  }

  async challenge(request: ChallengeRequest, peer: LoginPeer): Promise<Challenge> {
    const { authenticator } = this.#options;
    return this.#challengeOf(authenticator.firstSteps(request), peer);
  }

  async verify(evidence: LoginEvidence, peer: LoginPeer, worker: number): Promise<LoginVerdict> {
    if (this.isDraining) return { accepted: false, code: 'shutting_down', message: 'the gateway takes nobody new' };
    const device = evidence.deviceId.toHex();
    const { steps } = evidence;
    const judged: JudgedLogin = {
      user: undefined,
      device,
      certificate: peer.certificate,
      steps,
      hasLostItsRight: false,
      mustSuffice: false,
    };
    this.#judged.add(judged);
    try {
      const verdict = await this.#judge(evidence, peer, judged, worker);
      if (!verdict.accepted) return verdict;
      // Whoever takes a right away ends the sessions there are; this one may not have been among them yet.
      while (judged.mustSuffice && !judged.hasLostItsRight) {
        judged.mustSuffice = false;
        const { user } = verdict.session;
        judged.hasLostItsRight = !(await this.#options.authenticator.stillSuffices(user, steps));
      }
      return judged.hasLostItsRight ? await this.#takeBack(verdict.session, peer) : verdict;
    } finally {
      this.#judged.delete(judged);
    }
  }

  #challengeOf(steps: Challenge['steps'], { binding }: LoginPeer): Challenge {
    const personMs = Math.max(NONCE_LIFE_MS, this.#config.limits.answerSeconds * 1000);
    const nonce = this.#options.authenticator.issueNonce(binding, asksPeople(steps) ? personMs : NONCE_LIFE_MS);
    return { nonce, steps };
  }

  forget(binding: string): void {
    this.#options.authenticator.forget(binding);
  }

  async #takeBack({ key, user, device }: SessionGrant, peer: LoginPeer): Promise<LoginVerdict> {
    await this.end(key, 'revoked');
    return this.#overrule('rejected', 'a right that it rests on was taken away meanwhile', { user, device }, peer);
  }

  /** Refuses a login that its steps have accepted; only the record has the reason. */
  async #overrule(
    code: RejectCode,
    reason: string,
    who: { user: string; device: string },
    peer: LoginPeer,
    message = '',
  ): Promise<LoginVerdict> {
    this.#log.warn(`login refused: ${reason}`, { user: who.user, peer: peer.remote, code });
    await this.#options.authenticator.recordOverruled(who, peer, reason);
    return { accepted: false, code, message };
  }

  async #judge(evidence: LoginEvidence, peer: LoginPeer, judged: JudgedLogin, worker: number): Promise<LoginVerdict> {
    const verdict = await this.#options.authenticator.verify(evidence, peer);
    if (!verdict.accepted) {
      if ('code' in verdict) return { accepted: false, code: verdict.code, message: '' };
      return { accepted: false, challenge: this.#challengeOf(verdict.ask, peer) };
    }
    const { user, groups, steps, endsAt: proofEndsAt } = verdict;
    const { device } = judged;
    judged.user = user;
    // A password or a login at a provider has just been judged at the source; a device's key alone says nothing of the account there.
    const isAsked = steps.includes('password') || steps.includes('oidc');
    const overrule = (code: RejectCode, reason: string, message?: string) =>
      this.#overrule(code, reason, { user, device }, peer, message);
    if (!isAsked && (await this.#options.standing?.(user)) === 'gone') {
      return await overrule('rejected', 'the account is gone at its source');
    }
    if (!(await this.#isAuthorized({ user, groups, device, remote: peer.remote, ...certificateName(peer) }))) {
      return await overrule('rejected', 'the application does not authorize it');
    }
    // Its handshake may have been before the revocation.
    if (this.#isRevoked(peer)) return await overrule('certificate_revoked', 'the client certificate was revoked');
    const { perUser, whenFull } = this.#config.session;
    // Other logins of this device, or of this user, may come while an old session ends.
    for (;;) {
      const owned = perUser === 0 ? [] : [...this.#live.values()].filter((session) => session.user === user);
      const oldest = owned.length >= perUser ? owned[0]?.key : undefined;
      const superseded = this.#byDevice.get(device) ?? oldest;
      if (superseded === undefined) break;
      if (!this.#byDevice.has(device) && whenFull === 'refuse') {
        const message = 'the account has as many sessions as it may';
        return await overrule('too_many_sessions', `the user has ${perUser} sessions, as many as one may`, message);
      }
      await this.#replace(superseded);
    }
    if (this.#live.size >= this.#config.limits.sessions) {
      return await overrule('too_many_sessions', `the gateway has ${this.#live.size} sessions, as many as it may`);
    }
    let lease: Lease;
    try {
      lease = this.#options.pool.lease(device, worker);
    } catch (error) {
      if (!isVpnError(error, 'ERR_POOL_EXHAUSTED')) throw error;
      return await overrule(rejectCodeOf(error), 'there is no free address');
    }
    const id = this.#options.primitives.randomBytes(SESSION_ID_BYTES);
    const key = id.toHex();
    const { remote, certificate } = peer;
    const endsAt = endOf(proofEndsAt, certificate);
    const openedAt = this.#options.clock.wallNow();
    const state = { ...freshState(), isRecorded: false, detachedAt: undefined, features: [], endsAt };
    const facts = { key, id, user, device, remote, certificate, lease, worker, openedAt, steps, proofEndsAt };
    this.#live.set(key, { ...facts, ...state });
    this.#byDevice.set(device, key);
    return { accepted: true, session: this.#grantOf({ key, id, user, device, lease, worker }) };
  }

  #grantOf({
    key,
    id,
    user,
    device,
    lease,
    worker,
  }: Pick<LiveSession, 'key' | 'id' | 'user' | 'device' | 'lease' | 'worker'>): SessionGrant {
    const grant = { session: id, worker, user, ...this.#times() };
    return { key, grant, user, device, lease, config: this.#configOf(lease) };
  }

  #times() {
    const { absoluteSeconds, idleSeconds, graceSeconds } = this.#config.session;
    return { absoluteSeconds, idleSeconds, graceSeconds };
  }

  async establish(key: SessionKey, secret: Uint8Array, features: readonly string[]): Promise<void> {
    const session = this.#live.get(key);
    // Between a verdict and now another connection of the device may have taken its place, or an operator its right.
    if (session === undefined) throw endedMeanwhile('replaced');
    const { primitives, sessions, clock } = this.#options;
    const epoch = 0;
    session.features = features;
    await this.#place(session);
    this.#bindTo(session, epoch, secret);
    await sessions.open({
      id: key,
      user: session.user,
      device: session.device,
      worker: session.worker,
      epoch,
      lease4: session.lease.v4 === undefined ? undefined : formatIp(session.lease.v4),
      lease6: session.lease.v6 === undefined ? undefined : formatIp(session.lease.v6),
      policyGeneration: 1,
      source: session.remote,
      expiresAt: Math.min(
        clock.wallNow() + this.#config.session.absoluteSeconds * 1000,
        session.proofEndsAt ?? Number.POSITIVE_INFINITY,
      ),
      resumeKey: resumeKey(primitives, secret),
      steps: session.steps,
      features,
      certificate: session.certificate,
    });
    session.isRecorded = true;
    if (session.ended === undefined) return;
    await sessions.end(key, session.ended);
    throw endedMeanwhile(session.ended);
  }

  /** Has the host route the session's packets to where its owner reads them. @throws {VpnError} ERR_HOST_APPLY */
  async #place(session: LiveSession): Promise<void> {
    const { lease, worker, features } = session;
    const isPlain = !features.includes(Feature.superPackets);
    if (isPlain || this.#options.pool.shareOf(lease) !== worker) {
      session.isPlaced = true;
      await this.#supervisor?.place(lease, worker, isPlain ? 'plain' : 'primary');
    } else await this.#unplace(session);
  }

  async #unplace(session: LiveSession): Promise<void> {
    if (!session.isPlaced) return;
    session.isPlaced = false;
    await this.#supervisor?.unplace(session.lease);
  }

  /** From now on connections prove that they belong to the session with what follows from this secret. */
  #bindTo(session: LiveSession, epoch: number, secret: Uint8Array, former?: AttachServer): void {
    const { primitives } = this.#options;
    const { id } = session;
    const key = attachKey(primitives, secret);
    session.attach = new AttachServer({
      primitives,
      session: id,
      epoch,
      key,
      slots: this.#config.data.channels,
      former,
    });
    session.binding = { session: id, epoch, key: proxyKey(primitives, secret) };
  }

  /**
   * Takes up the sessions on record that may still be resumed, with their leases, and ends the others. Called once, before
   * any login and any worker.
   *
   * @throws {VpnError} ERR_STORE, ERR_HOST_APPLY
   */
  async restore(): Promise<void> {
    const { sessions, pool, clock } = this.#options;
    const now = clock.wallNow();
    for (const record of await sessions.list()) {
      const { id: key, user, device, features, certificate, source: remote, openedAt } = record;
      // Of a gateway that died nobody knows when its clients lost it.
      const detachedMs = Math.max(0, now - (record.detachedAt ?? now));
      const isLate = detachedMs >= this.#config.session.graceSeconds * 1000 || now >= (record.expiresAt ?? now + 1);
      const lease = isLate || !features.includes(Feature.resume) ? undefined : pool.lease(device);
      if (
        lease === undefined ||
        this.#byDevice.has(device) ||
        (lease.v4 && formatIp(lease.v4)) !== record.lease4 ||
        (lease.v6 && formatIp(lease.v6)) !== record.lease6
      ) {
        if (lease !== undefined) pool.release(lease);
        await sessions.end(key, isLate ? 'session_timeout' : 'shutdown');
        continue;
      }
      await sessions.detach(key);
      const id = Uint8Array.fromHex(key);
      const steps = record.steps.filter(isStepKind);
      // The one of its limits that counts the soonest.
      const proofEndsAt = record.expiresAt;
      const endsAt = endOf(proofEndsAt, certificate);
      // Its client will come to whom it lives with; where its addresses are at home, they need no route of their own.
      const worker = pool.shareOf(lease);
      const state = { ...freshState(), isRecorded: true, detachedAt: now - detachedMs, features, endsAt };
      const facts = { key, id, user, device, remote, certificate, lease, worker, openedAt, steps, proofEndsAt };
      const session: LiveSession = { ...facts, ...state };
      this.#live.set(key, session);
      this.#byDevice.set(device, key);
      await this.#place(session);
    }
  }

  /** The sessions that a worker owns and that wait for their clients, for a worker that begins. */
  sessionsOf(worker: number): DetachedSession[] {
    const now = this.#options.clock.wallNow();
    return [...this.#live.values()].flatMap((session) => {
      if (session.worker !== worker || !session.isRecorded) return [];
      const { features, remote, openedAt, detachedAt = now } = session;
      return [{ granted: this.#grantOf(session), features, remote, openedAt, detachedMs: now - detachedAt }];
    });
  }

  async challengeResume(peer: LoginPeer): Promise<Uint8Array> {
    return this.#options.authenticator.issueNonce(peer.binding);
  }

  async resume(evidence: ResumeEvidence, peer: LoginPeer, worker: number): Promise<ResumeVerdict> {
    const key = evidence.session.toHex();
    const { authenticator, primitives } = this.#options;
    const identity = await authenticator.identify(evidence, peer);
    const refuse = async (code: RejectCode, reason: string): Promise<ResumeVerdict> => {
      this.#lines.write('warn', code, 'resume refused', { session: key.slice(0, 8), code, reason, peer: peer.remote });
      await authenticator.recordRefusedResume(identity, peer, key, reason);
      return { accepted: false, code };
    };
    const session = this.#live.get(key);
    if (session === undefined || !session.isRecorded) return refuse('session_unknown', 'there is no such session');
    // Whoever has the id and not the device learns no more than whoever has neither.
    const isHolder = identity.isProven && identity.device === session.device && identity.user === session.user;
    let proven: ResumeKey;
    try {
      proven = await this.#options.sessions.resumeKey(key, evidence.epoch);
    } catch (error) {
      if (!isVpnError(error) || error.kind !== 'auth') throw error;
      if (isHolder && error.code === 'ERR_SESSION_REPLACED') return refuse('session_replaced', error.message);
      return refuse('session_unknown', error.message);
    }
    const isProof =
      isResumeInput('client resume', evidence.proofInput, evidence) &&
      isResumeInput('server resume', evidence.serverProofInput, evidence) &&
      primitives.equal(primitives.hmacSha256(proven.key, evidence.proofInput), evidence.proof);
    if (!isProof) return refuse('session_unknown', 'the session secret was not proven');
    if (!isHolder) return refuse('rejected', identity.refusal ?? "the session is another device's");
    const refusal =
      identity.refusal !== undefined
        ? ({ code: 'rejected', reason: identity.refusal } as const)
        : await this.#standsStill(session, identity, peer);
    if (refusal !== undefined) {
      // Its other connections must not live on.
      if (evidence.rekey) this.#close(key, 'revoked');
      return refuse(refusal.code, refusal.reason);
    }
    // It may have been ended, or replaced, while others were asked.
    if (this.#live.get(key) !== session) return refuse('session_unknown', 'the session was ended meanwhile');
    this.#attempts += 1;
    const attempt = this.#attempts;
    // What lives at another worker cannot go on here.
    const isRekey = evidence.rekey && session.worker === worker;
    session.resuming = { attempt, worker, epoch: evidence.epoch, proven, isRekey };
    const proof = primitives.hmacSha256(proven.key, evidence.serverProofInput);
    return {
      accepted: true,
      resume: { key, attempt, grant: { proof, worker, ...this.#times() } },
      features: session.features,
    };
  }

  /** Whether the session would be opened today; undefined: it would. */
  async #standsStill(
    session: LiveSession,
    { groups = [] }: Pick<ResumeIdentity, 'groups'>,
    peer: LoginPeer,
  ): Promise<{ code: RejectCode; reason: string } | undefined> {
    const { user, device, steps, certificate } = session;
    if (certificate !== undefined && !isSameHolder(certificate, peer.certificate)) {
      return { code: 'rejected', reason: 'the client certificate of the login was not shown' };
    }
    if (this.#isRevoked(peer)) {
      return { code: 'certificate_revoked', reason: 'the client certificate was revoked' };
    }
    if (steps.includes('certificate') && this.#options.isCertificateOf?.(user, peer.certificate) !== true) {
      return { code: 'rejected', reason: "the client certificate is not the user's" };
    }
    if (!(await this.#options.authenticator.stillSuffices(user, steps))) {
      this.#close(session.key, 'revoked');
      return { code: 'session_unknown', reason: 'more is asked of the user than was proven at the login' };
    }
    if ((await this.#options.standing?.(user)) === 'gone') {
      return { code: 'rejected', reason: 'the account is gone at its source' };
    }
    if (!(await this.#isAuthorized({ user, groups, device, remote: peer.remote, ...certificateName(peer) }))) {
      return { code: 'rejected', reason: 'the application does not authorize it' };
    }
    return undefined;
  }

  async proposeResume({ key, attempt }: GrantedResume, mix: Uint8Array, worker: number): Promise<void> {
    const { primitives, sessions } = this.#options;
    const { session, resuming } = this.#resuming(key, attempt, worker);
    const secret = hkdfExtract(primitives, resuming.proven.key, mix);
    const next = resumeKey(primitives, secret);
    const version = await sessions.propose(key, resuming.epoch, resuming.proven.version, next);
    if (session.resuming !== resuming) throw overtaken();
    // From here on S(n) is good for another resume only.
    session.formerAttach = session.attach ?? session.formerAttach;
    session.attach = undefined;
    session.binding = undefined;
    resuming.next = { secret, version };
  }

  async confirmResume(confirmation: ResumeConfirmation, peer: LoginPeer, worker: number): Promise<ResumedSession> {
    const { key, attempt, doneInput, payload } = confirmation;
    const { primitives, sessions } = this.#options;
    const { session, resuming } = this.#resuming(key, attempt, worker);
    if (resuming.next === undefined) throw overtaken();
    if (this.#isRevoked(peer)) throw endedMeanwhile('revoked');
    const { secret, version } = resuming.next;
    const epoch = resuming.epoch + 1;
    checkResumeDone(primitives, resumeKey(primitives, secret), doneInput, payload);
    await sessions.confirm(key, epoch, version, peer.remote, resuming.isRekey);
    if (this.#live.get(key) !== session) throw endedMeanwhile(session.ended ?? 'revoked');
    session.resuming = undefined;
    session.remote = peer.remote;
    session.certificate = peer.certificate;
    session.endsAt = endOf(session.proofEndsAt, session.certificate);
    session.detachedAt = undefined;
    await this.#move(session, worker);
    if (this.#live.get(key) !== session) throw endedMeanwhile(session.ended ?? 'revoked');
    this.#bindTo(session, epoch, secret, resuming.isRekey ? session.formerAttach : undefined);
    session.formerAttach = undefined;
    return { granted: this.#grantOf(session), features: session.features, openedAt: session.openedAt };
  }

  /** Gives the session to a worker: packets go there as soon as the one that had it has let go of it, or is fenced off. */
  async #move(session: LiveSession, worker: number): Promise<void> {
    const former = session.worker;
    if (former === worker) return;
    session.worker = worker;
    session.formerTraffic = { ...session.traffic };
    const { promise: fenced, resolve: fence } = Promise.withResolvers<void>();
    const late = setTimeout(fence, FENCE_MS).unref();
    const released = this.#workers.get(former)?.release(session.key);
    await Promise.race([released?.catch(() => {}), fenced]);
    clearTimeout(late);
    await this.#place(session);
    this.#log.info('session moved to another worker', { session: session.key.slice(0, 8), from: former, to: worker });
  }

  #resuming(key: SessionKey, attempt: number, worker: number): { session: LiveSession; resuming: Resuming } {
    const session = this.#live.get(key);
    if (session === undefined) throw endedMeanwhile('revoked');
    if (session.resuming?.attempt !== attempt || session.resuming.worker !== worker) throw overtaken();
    return { session, resuming: session.resuming };
  }

  async detach(key: SessionKey, reason?: CloseReason): Promise<void> {
    const session = this.#live.get(key);
    if (session?.isRecorded !== true) return;
    session.detachedAt ??= this.#options.clock.wallNow();
    if (reason !== undefined) this.#tellEnd(session, reason);
    await this.#options.sessions.detach(key);
  }

  /** The client has been told of the session, or has it back at this address. */
  started(key: SessionKey, remote: string): void {
    const session = this.#live.get(key);
    if (session === undefined) return;
    session.remote = remote;
    if (session.isStarted) return;
    session.isStarted = true;
    this.#options.events?.started(session);
  }

  /** What a session has carried so far. */
  traffic(key: SessionKey, traffic: SessionTraffic): void {
    const session = this.#live.get(key);
    if (session === undefined) return;
    const { formerTraffic: former } = session;
    for (const name of TRAFFIC) session.traffic[name] = former[name] + traffic[name];
  }

  #tellEnd(session: LiveSession, reason: CloseReason): void {
    if (!session.isStarted) return;
    session.isStarted = false;
    this.#options.events?.ended(session, reason);
  }

  async attach({ message, exported }: AttachRequest, peer: LoginPeer, worker: number): Promise<AttachVerdict> {
    const key = message.session.toHex();
    const session = this.#live.get(key);
    const server = session?.attach;
    if (session === undefined || server === undefined) return { accepted: false, code: 'session_unknown' };
    if (session.worker !== worker) return { accepted: false, movedTo: session.worker };
    const refuse = (code: RejectCode, reason: string, logged: string = code): AttachVerdict => {
      const fields = { session: key.slice(0, 8), code: logged, reason, peer: peer.remote };
      this.#lines.write('warn', logged, 'data connection refused', fields);
      return { accepted: false, code };
    };
    let attached: Attached;
    try {
      attached = server.receive(message, () => exported);
    } catch (cause) {
      const error = toVpnError(cause);
      return refuse(rejectCodeOf(error), error.message, error.code);
    }
    // The first of a slot comes right after a login or a resume, which has just been judged.
    if (message.generation > 0) {
      const identity = await this.#options.authenticator.stands(session.device);
      const refusal =
        identity.refusal !== undefined
          ? ({ code: 'rejected', reason: identity.refusal } as const)
          : await this.#standsStill(session, identity, peer);
      if (refusal !== undefined) {
        this.#close(key, 'revoked');
        return refuse(refusal.code, refusal.reason);
      }
      // It may have been ended or resumed while others were asked.
      if (session.attach !== server || this.#live.get(key) !== session) {
        return { accepted: false, code: 'session_unknown' };
      }
    }
    return { accepted: true, key, attached };
  }

  async end(key: SessionKey, reason: CloseReason): Promise<void> {
    const session = this.#live.get(key);
    if (session === undefined) return;
    session.ended = reason;
    this.#live.delete(key);
    if (this.#byDevice.get(session.device) === key) this.#byDevice.delete(session.device);
    this.#tellEnd(session, reason);
    // In turn with what is routed: whoever has the addresses next comes after this.
    const unplaced = this.#unplace(session);
    this.#options.pool.release(session.lease);
    this.proxies.endSession(key);
    await Promise.all([unplaced, session.isRecorded ? this.#options.sessions.end(key, reason) : undefined]);
  }

  /** The client certificates that live sessions rest on. */
  get certificates(): SessionCertificate[] {
    return [...this.#live.values()].flatMap(({ certificate }) => certificate ?? []);
  }

  /** Ends the session whose key begins like this; returns how many there are that do, and ends none if several do. */
  kick(beginning: string): number {
    const matching = this.keys.filter((key) => key.startsWith(beginning));
    const [key, another] = matching;
    if (key !== undefined && another === undefined) this.#close(key, 'admin');
    return matching.length;
  }

  /** Ends the sessions that a change concerns, at once; returns how many there were. */
  closeSessions(concerned: (holder: RightsHolder) => boolean, reason: CloseReason): number {
    for (const login of this.#judged) if (concerned(login)) login.hasLostItsRight = true;
    const keys = [...this.#live.values()].filter(concerned).map(({ key }) => key);
    for (const key of keys) this.#close(key, reason);
    return keys.length + this.proxies.close(concerned);
  }

  /** The grant follows the last look at the right without a turn between them. */
  async #judging<T>(holder: RightsHolder, judge: () => Promise<boolean>, grant: () => T): Promise<T | undefined> {
    const judged: JudgedLogin = { ...holder, hasLostItsRight: false, mustSuffice: false };
    this.#judged.add(judged);
    try {
      return (await judge()) && !judged.hasLostItsRight ? grant() : undefined;
    } finally {
      this.#judged.delete(judged);
    }
  }

  /**
   * Uses a new configuration for logins from now on, and tells the live sessions. Those that proved less than is asked of
   * their users now are ended.
   *
   * @throws {VpnError} ERR_STORE
   */
  async reconfigure(config: GatewayConfig): Promise<void> {
    this.#config = config;
    this.#revision += 1;
    for (const { key, lease, worker } of this.#live.values()) {
      this.#workers.get(worker)?.configure(key, this.#configOf(lease));
    }
    await this.endInsufficient();
  }

  /** Ends the sessions that proved less than is asked of their users now; returns how many. @throws {VpnError} ERR_STORE */
  async endInsufficient(user?: string): Promise<number> {
    for (const login of this.#judged) login.mustSuffice = true;
    let ended = 0;
    for (const session of [...this.#live.values()]) {
      if (user !== undefined && session.user !== user) continue;
      if (await this.#options.authenticator.stillSuffices(session.user, session.steps)) continue;
      this.#close(session.key, 'revoked');
      ended += 1;
    }
    return ended;
  }

  async #replace(key: SessionKey): Promise<void> {
    this.#close(key, 'replaced');
    await this.end(key, 'replaced');
  }

  /** Has the owner end a session; one whose owner is not there is ended here. */
  #close(key: SessionKey, reason: CloseReason): void {
    const session = this.#live.get(key);
    if (session === undefined) return;
    const owner = this.#workers.get(session.worker);
    if (owner !== undefined) owner.close(key, reason);
    else this.end(key, reason).catch((error: unknown) => this.#log.error('a session could not be ended', { error }));
  }

  #isRevoked({ certificate }: LoginPeer): boolean {
    return certificate !== undefined && this.#options.isRevoked?.(certificate) === true;
  }

  async #isAuthorized(login: LoginFacts): Promise<boolean> {
    const { authorize } = this.#options;
    if (authorize === undefined) return true;
    try {
      return (await authorize(login)) === true;
    } catch (error) {
      this.#log.error('the login hook failed; the login is refused', { user: login.user, error });
      return false;
    }
  }

  #configOf(lease: Lease): ConfigMessage {
    const config = this.#config;
    const { gateway4, gateway6 } = this.#options.pool;
    const addresses: ConfigMessage['addresses'] = {};
    if (lease.v4 !== undefined && gateway4 !== undefined) {
      addresses.v4 = { address: formatIp(lease.v4), gateway: formatIp(gateway4) };
    }
    if (lease.v6 !== undefined && gateway6 !== undefined) {
      addresses.v6 = { address: formatIp(lease.v6), gateway: formatIp(gateway6) };
    }
    return {
      revision: this.#revision,
      addresses,
      routes: [...config.routes],
      dns: { servers: [...config.dns], domains: [...config.dnsDomains] },
      mtu: config.mtu,
      ping: { intervalSeconds: config.session.pingSeconds, deadSeconds: config.session.deadSeconds },
      data: { mode: config.data.mode, channels: config.data.mode === 'attached' ? config.data.channels : 0 },
      rekeySeconds: config.session.rekeySeconds,
      transports: [],
      pins: [],
    };
  }
}

/** Whether a proof is about this resume; what follows in it, exporter and transcript, only the ends can know. */
function isResumeInput(kind: string, input: Uint8Array, { session, epoch, nonce }: ResumeEvidence): boolean {
  const number = Buffer.alloc(4);
  number.writeUInt32BE(epoch);
  const start = Buffer.concat([Buffer.from(`${kind}\0`), session, number, nonce]);
  return input.length === start.length + 64 && start.equals(input.subarray(0, start.length));
}

/** Whether a certificate is that one or its successor. */
function isSameHolder(
  { name, issuer }: { name: string; issuer: string },
  shown: { name: string; issuer: string } | undefined,
): boolean {
  return shown?.name === name && shown.issuer === issuer;
}

function freshState() {
  const flags = { isStarted: false, isPlaced: false };
  const counters = { traffic: { ...NO_TRAFFIC }, formerTraffic: { ...NO_TRAFFIC } };
  return {
    attach: undefined,
    binding: undefined,
    formerAttach: undefined,
    resuming: undefined,
    ended: undefined,
    ...flags,
    ...counters,
  };
}

function endOf(proofEndsAt = Number.POSITIVE_INFINITY, certificate?: SessionCertificate): number {
  return Math.min(proofEndsAt, certificate?.notAfter ?? Number.POSITIVE_INFINITY);
}

function isStepKind(step: string): step is StepKind {
  return (STEP_KINDS as readonly string[]).includes(step);
}

function overtaken(): VpnError {
  return new VpnError('ERR_SESSION_REPLACED', 'another resume of the session has come between');
}

function endedMeanwhile(reason: CloseReason): VpnError {
  return reason === 'replaced'
    ? new VpnError('ERR_SESSION_REPLACED', 'the device has logged in again meanwhile')
    : new VpnError('ERR_AUTH_REJECTED', 'the session was ended before it was open');
}

function certificateName({ certificate }: LoginPeer): { certificate?: string } {
  return certificate === undefined ? {} : { certificate: certificate.name };
}
