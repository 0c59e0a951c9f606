/**
 * What one worker may ask of auth: the questions of its own connections, about its own sessions.
 *
 * Hides from auth which worker asks, and from the worker that there are others. A worker is not believed: what it says of a
 * session that it does not own is refused or goes unheard, and the names of its connections are made different from all
 * others' here, not by it. Only a resume may be of another worker's session: its proofs say whose it is.
 */

import { VpnError } from '../../base/errors.ts';
import type { Challenge, ChallengeRequest, LoginEvidence } from '../../protocol/login.ts';
import type { CloseReason } from '../../protocol/messages.ts';
import type { ResumeEvidence } from '../../protocol/resume.ts';
import type { Tracer } from '../../telemetry/tracing.ts';
import type {
  AttachRequest,
  AttachVerdict,
  AuthPort,
  GrantedResume,
  LoginPeer,
  LoginVerdict,
  RefusedCertificate,
  ResumeConfirmation,
  ResumedSession,
  ResumeVerdict,
  SessionKey,
  SessionTraffic,
  UsageReport,
} from '../ipc/ports.ts';
import type { Auth } from './auth.ts';

export class WorkerGate implements AuthPort {
  readonly #auth: Auth;
  readonly #worker: number;
  readonly #tracer: Tracer;

  constructor(auth: Auth, worker: number, tracer: Tracer) {
    this.#auth = auth;
    this.#worker = worker;
    this.#tracer = tracer;
  }

  challenge(request: ChallengeRequest, peer: LoginPeer): Promise<Challenge> {
    return this.#auth.challenge(request, this.#own(peer));
  }

  verify(evidence: LoginEvidence, peer: LoginPeer): Promise<LoginVerdict> {
    const facts = { 'customvpn.worker': this.#worker, 'customvpn.steps': evidence.steps.join(' ') };
    return this.#tracer.span('login', facts, async (span) => {
      const verdict = await this.#auth.verify(evidence, this.#own(peer), this.#worker);
      if (verdict.accepted) span.set({ 'customvpn.result': 'accepted', 'customvpn.user': verdict.session.user });
      else if ('code' in verdict) span.set({ 'customvpn.result': verdict.code });
      else span.set({ 'customvpn.result': 'asked' });
      return verdict;
    });
  }

  forget(binding: string): void {
    this.#auth.forget(this.#bindingOf(binding));
  }

  certificateRefused(refused: RefusedCertificate): void {
    this.#auth.certificateRefused(refused);
  }

  async establish(session: SessionKey, secret: Uint8Array, features: readonly string[]): Promise<void> {
    // One that has been ended since the verdict belongs to nobody: auth knows why.
    const owner = this.#auth.sessions.get(session)?.worker;
    if (owner !== undefined && owner !== this.#worker) {
      throw new VpnError('ERR_SESSION_UNKNOWN', 'the session belongs to another worker');
    }
    await this.#auth.sessions.establish(session, secret, features);
  }

  attach(request: AttachRequest, peer: LoginPeer): Promise<AttachVerdict> {
    return this.#auth.resumption.attach(request, this.#own(peer), this.#worker);
  }

  async challengeResume(peer: LoginPeer): Promise<Uint8Array> {
    return this.#auth.nonceFor(this.#own(peer));
  }

  resume(evidence: ResumeEvidence, peer: LoginPeer): Promise<ResumeVerdict> {
    return this.#tracer.span('resume', { 'customvpn.worker': this.#worker }, async (span) => {
      const verdict = await this.#auth.resumption.resume(evidence, this.#own(peer), this.#worker);
      span.set({ 'customvpn.result': 'code' in verdict ? verdict.code : 'accepted' });
      return verdict;
    });
  }

  proposeResume(resume: GrantedResume, mix: Uint8Array): Promise<void> {
    return this.#auth.resumption.proposeResume(resume, mix, this.#worker);
  }

  confirmResume(confirmation: ResumeConfirmation, peer: LoginPeer): Promise<ResumedSession> {
    return this.#auth.resumption.confirmResume(confirmation, this.#own(peer), this.#worker);
  }

  started(session: SessionKey, remote: string): void {
    if (this.#owns(session)) this.#auth.sessions.started(session, remote);
  }

  traffic(session: SessionKey, traffic: SessionTraffic): void {
    if (this.#owns(session)) this.#auth.sessions.traffic(session, traffic);
  }

  usage(reports: readonly UsageReport[], isFirst: boolean): void {
    this.#auth.report(this.#worker, reports, isFirst);
  }

  async detach(session: SessionKey, reason?: CloseReason): Promise<void> {
    if (this.#owns(session)) await this.#auth.sessions.detach(session, reason);
  }

  async end(session: SessionKey, reason: CloseReason): Promise<void> {
    if (this.#owns(session)) await this.#auth.sessions.end(session, reason);
  }

  #owns(session: SessionKey): boolean {
    return this.#auth.sessions.get(session)?.worker === this.#worker;
  }

  #own(peer: LoginPeer): LoginPeer {
    return { ...peer, binding: this.#bindingOf(peer.binding) };
  }

  #bindingOf(binding: string): string {
    return `${this.#worker}/${binding}`;
  }
}
