/**
 * Who may log in, and whose right has ended.
 *
 * Hides credentials from the workers. A worker brings evidence and gets a verdict; everything is default deny: the built-in
 * steps must say yes, and then the application's own hook. A right that is taken away while a login is being judged is not
 * granted. What comes of a yes is in `session-book`, how a client comes back in `resumption`.
 */

import type { Clock } from '../../base/clock.ts';
import { isVpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { AccessTokens } from '../../identity/access-tokens.ts';
import type { Authenticator } from '../../identity/authenticator.ts';
import type { Rechecked } from '../../identity/backends/backend.ts';
import { NONCE_LIFE_MS } from '../../identity/nonces.ts';
import type { ProxyLogins } from '../../identity/proxy-login.ts';
import type { LeasePool } from '../../ip/lease-pool.ts';
import type { Primitives } from '../../protocol/keys.ts';
import { asksPeople, type Challenge, type ChallengeRequest, type LoginEvidence } from '../../protocol/login.ts';
import type { CloseReason, RejectCode } from '../../protocol/messages.ts';
import { rejectCodeOf } from '../../protocol/reasons.ts';
import type { SessionCertificate, Sessions } from '../../store/sessions.ts';
import { LogLimit } from '../../transport/log-limit.ts';
import type { GatewayConfig } from '../config.ts';
import type {
  LoginPeer,
  LoginVerdict,
  RefusedCertificate,
  SessionGrant,
  SessionKey,
  UsageReport,
} from '../ipc/ports.ts';
import { holderOf } from './access-desk.ts';
import type { LiveSession } from './live-session.ts';
import { ProxyGrants } from './proxy-grants.ts';
import { Resumption } from './resumption.ts';
import { certificateName, type LoginFacts, type RightsHolder } from './rights.ts';
import { type SessionAccess, SessionBook, type SessionEvents } from './session-book.ts';
import type { TrafficDesk } from './traffic-desk.ts';

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
  access: SessionAccess;
  traffic: TrafficDesk;
  /** Asks the outside source of an account whether it is still good; what else it says has taken effect. @throws {VpnError} ERR_STORE */
  standing?: ((user: string) => Promise<Rechecked | undefined>) | undefined;
  /** Whether a client certificate stands for this user. Default: none does. */
  isCertificateOf?: ((user: string, certificate: LoginPeer['certificate']) => boolean) | undefined;
  /** Whether a client certificate has been revoked. Default: none has. */
  isRevoked?: ((certificate: SessionCertificate) => boolean) | undefined;
  /** Told after a session has begun in the life of this gateway, and after it has ended. */
  events?: SessionEvents;
  /** May still refuse what the login steps have accepted; an error refuses, too. */
  authorize?: ((login: LoginFacts) => boolean | Promise<boolean>) | undefined;
  /** The operator's own function. Never rejects. */
  askHook?(login: LoginFacts): Promise<{ readonly allow: boolean; readonly reason: string } | undefined>;
}

interface JudgedLogin extends RightsHolder {
  user: string | undefined;
  hasLostItsRight: boolean;
  /** What is asked of its user may have changed since it was judged. */
  mustSuffice: boolean;
}

export class Auth {
  readonly sessions: SessionBook;
  readonly resumption: Resumption;
  /** Who may use the gateway as a proxy. */
  readonly proxies: ProxyGrants;
  readonly #options: AuthOptions;
  readonly #log: Logger;
  readonly #lines: LogLimit;
  readonly #judged = new Set<JudgedLogin>();
  #config: GatewayConfig;
  /** Nobody new is let in; those that have a session may resume it. */
  isDraining = false;

  constructor(options: AuthOptions) {
    this.#options = options;
    this.#config = options.config;
    this.#log = options.log.child({ component: 'auth' });
    const { authenticator, sessions, pool, primitives, clock, events } = options;
    this.#lines = new LogLimit(this.#log, clock);
    const objection = (login: LoginFacts) => this.#objection(login);
    const standing = async (user: string) => await options.standing?.(user);
    this.sessions = new SessionBook({
      ...{ config: options.config, sessions, pool, primitives, clock, log: this.#log, events },
      access: options.access,
      traffic: options.traffic,
      over: (key) => this.proxies.endSession(key),
    });
    this.resumption = new Resumption({
      ...{ book: this.sessions, clock, authenticator, sessions, primitives, objection, standing },
      lines: this.#lines,
      isCertificateOf: (user, certificate) => options.isCertificateOf?.(user, certificate) === true,
      isRevoked: (peer) => this.#isRevoked(peer),
    });
    this.proxies = new ProxyGrants({
      ...{ logins: options.proxyLogins, primitives, clock, log: options.log, objection, standing },
      findSession: (key) => {
        const session = this.sessions.get(key);
        return session === undefined ? undefined : { holder: holderOf(session), binding: session.binding };
      },
      judging: (holder, judge, grant) => this.#judging(holder, judge, grant),
      prepare: (carrier) => options.traffic.prepareStreams(carrier),
    });
  }

  /** What a worker says that users and groups have carried; of users it is heard of its own only. */
  report(worker: number, reports: readonly UsageReport[], isFirst: boolean): void {
    const own = new Set(
      [...this.sessions.all, ...this.proxies.carriers].flatMap((one) => (one.worker === worker ? [one.user] : [])),
    );
    const heard = reports.filter(({ kind, name }) => kind === 'group' || own.has(name));
    this.#options.traffic.report(worker, heard, isFirst);
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
      // Only said to be, while it is judged: one that is revoked meanwhile must not be missed.
      token: evidence.token === undefined ? undefined : AccessTokens.idOf(evidence.token),
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

  /** A nonce for the proofs of a resume. */
  nonceFor({ binding }: LoginPeer): Uint8Array {
    return this.#options.authenticator.issueNonce(binding);
  }

  forget(binding: string): void {
    this.#options.authenticator.forget(binding);
  }

  /** Puts on record whom TLS has refused, as far as there is room for strangers. */
  certificateRefused(refused: RefusedCertificate): void {
    this.#options.authenticator.recordRefusedCertificate(refused).catch((error: unknown) => {
      this.#lines.write('warn', 'certificate', 'a refused certificate could not be put on record', { error });
    });
  }

  async #takeBack({ key, user, device }: SessionGrant, peer: LoginPeer): Promise<LoginVerdict> {
    await this.sessions.end(key, 'revoked');
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
    this.#lines.write('warn', 'overruled', `login refused: ${reason}`, { user: who.user, peer: peer.remote, code });
    await this.#options.authenticator.recordOverruled(who, peer, reason);
    return { accepted: false, code, message };
  }

  async #judge(evidence: LoginEvidence, peer: LoginPeer, judged: JudgedLogin, worker: number): Promise<LoginVerdict> {
    const verdict = await this.#options.authenticator.verify(evidence, peer);
    if (!verdict.accepted) {
      if ('code' in verdict) return { accepted: false, code: verdict.code, message: '' };
      return { accepted: false, challenge: this.#challengeOf(verdict.ask, peer) };
    }
    const { user, steps, token, endsAt: proofEndsAt } = verdict;
    const { networks = [] } = evidence;
    const { device } = judged;
    judged.user = user;
    // A password or a login at a provider has just been judged at the source; a device's key alone says nothing of the account there.
    const isAsked = steps.includes('password') || steps.includes('oidc');
    const overrule = (code: RejectCode, reason: string, message?: string) =>
      this.#overrule(code, reason, { user, device }, peer, message);
    const asked = isAsked ? undefined : await this.#options.standing?.(user);
    if (asked?.standing === 'gone') return await overrule('rejected', 'the account is gone at its source');
    const groups = asked?.groups ?? verdict.groups;
    const objection = await this.#objection({ user, groups, device, remote: peer.remote, ...certificateName(peer) });
    if (objection !== undefined) return await overrule('rejected', objection);
    // Its handshake may have been before the revocation.
    if (this.#isRevoked(peer)) return await overrule('certificate_revoked', 'the client certificate was revoked');
    const { perUser, whenFull } = this.#config.session;
    // Other logins of this device, or of this user, may come while an old session ends.
    for (;;) {
      const owned = perUser === 0 ? [] : this.sessions.all.filter((session) => session.user === user);
      const oldest = owned.length >= perUser ? owned[0] : undefined;
      const former = this.sessions.ofDevice(device);
      const superseded = former ?? oldest;
      if (superseded === undefined) break;
      if (former === undefined && whenFull === 'refuse') {
        const message = 'the account has as many sessions as it may';
        return await overrule('too_many_sessions', `the user has ${perUser} sessions, as many as one may`, message);
      }
      await this.#replace(superseded.key);
    }
    if (this.sessions.size >= this.#config.limits.sessions) {
      return await overrule('too_many_sessions', `the gateway has ${this.sessions.size} sessions, as many as it may`);
    }
    let session: LiveSession;
    try {
      session = this.sessions.open({ user, groups, device, peer, worker, steps, token, proofEndsAt, networks });
    } catch (error) {
      if (!isVpnError(error, 'ERR_POOL_EXHAUSTED')) throw error;
      return await overrule(rejectCodeOf(error), 'there is no free address');
    }
    return { accepted: true, session: this.sessions.grantOf(session) };
  }

  /** Ends the sessions that a change concerns, at once; returns how many there were. */
  closeSessions(concerned: (holder: RightsHolder) => boolean, reason: CloseReason): number {
    for (const login of this.#judged) if (concerned(login)) login.hasLostItsRight = true;
    const keys = this.sessions.all.filter(concerned).map(({ key }) => key);
    for (const key of keys) this.sessions.close(key, reason);
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
    this.sessions.reconfigure(config);
    await this.endInsufficient();
  }

  /** Ends the sessions that proved less than is asked of their users now; returns how many. @throws {VpnError} ERR_STORE */
  async endInsufficient(user?: string): Promise<number> {
    for (const login of this.#judged) login.mustSuffice = true;
    let ended = 0;
    for (const session of this.sessions.all) {
      if (user !== undefined && session.user !== user) continue;
      if (await this.#options.authenticator.stillSuffices(session.user, session.steps)) continue;
      this.sessions.close(session.key, 'revoked');
      ended += 1;
    }
    return ended;
  }

  async #replace(key: SessionKey): Promise<void> {
    this.sessions.close(key, 'replaced');
    await this.sessions.end(key, 'replaced');
  }

  #isRevoked({ certificate }: LoginPeer): boolean {
    return certificate !== undefined && this.#options.isRevoked?.(certificate) === true;
  }

  /** Why the application or the operator's hook does not want it; undefined: they do. */
  async #objection(login: LoginFacts): Promise<string | undefined> {
    const { authorize, askHook } = this.#options;
    try {
      if (authorize !== undefined && (await authorize(login)) !== true) return 'the application does not authorize it';
    } catch (error) {
      this.#log.error('the login hook failed; the login is refused', { user: login.user, error });
      return 'the application does not authorize it';
    }
    const answer = await askHook?.(login);
    return answer === undefined || answer.allow ? undefined : answer.reason;
  }
}
