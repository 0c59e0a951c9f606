/**
 * How a client comes back to its session, and how its further connections join it.
 *
 * Hides the proofs of RESUME and ATTACH, and that whoever comes back is judged as if the session were opened today. One resume
 * overtakes another; what was granted is worth something only to the connection that asked.
 */

import type { Clock } from '../../base/clock.ts';
import { isVpnError, toVpnError, VpnError } from '../../base/errors.ts';
import type { Authenticator, ResumeIdentity } from '../../identity/authenticator.ts';
import type { Rechecked } from '../../identity/backends/backend.ts';
import type { Attached } from '../../protocol/attach.ts';
import { hkdfExtract, type Primitives, type ResumeProofKind, resumeKey } from '../../protocol/keys.ts';
import type { RejectCode } from '../../protocol/messages.ts';
import { rejectCodeOf } from '../../protocol/reasons.ts';
import { checkResumeDone, type ResumeEvidence } from '../../protocol/resume.ts';
import type { ResumeKey, Sessions } from '../../store/sessions.ts';
import type { LogLimit } from '../../transport/log-limit.ts';
import type {
  AttachRequest,
  AttachVerdict,
  GrantedResume,
  LoginPeer,
  ResumeConfirmation,
  ResumedSession,
  ResumeVerdict,
  SessionKey,
} from '../ipc/ports.ts';
import { endOf, type LiveSession, type Resuming } from './live-session.ts';
import { certificateName, type LoginFacts } from './rights.ts';
import { endedMeanwhile, type SessionBook } from './session-book.ts';

/** So long after a login or a resume the first connections of its slots are not judged once more. */
const JUST_NOW_MS = 10_000;

export interface ResumptionParts {
  readonly clock: Pick<Clock, 'now'>;
  readonly book: SessionBook;
  readonly authenticator: Authenticator;
  readonly sessions: Sessions;
  readonly primitives: Primitives;
  readonly lines: LogLimit;
  /** Asks the outside source of an account whether it is still good. */
  standing(user: string): Promise<Rechecked | undefined>;
  isCertificateOf(user: string, certificate: LoginPeer['certificate']): boolean;
  isRevoked(peer: LoginPeer): boolean;
  /** Why the application or the operator's hook does not want it. */
  objection(login: LoginFacts): Promise<string | undefined>;
}

export class Resumption {
  readonly #parts: ResumptionParts;
  readonly #book: SessionBook;
  #attempts = 0;

  constructor(parts: ResumptionParts) {
    this.#parts = parts;
    this.#book = parts.book;
  }

  async resume(evidence: ResumeEvidence, peer: LoginPeer, worker: number): Promise<ResumeVerdict> {
    const key = evidence.session.toHex();
    const { authenticator, primitives } = this.#parts;
    const identity = await authenticator.identify(evidence, peer);
    const refuse = async (code: RejectCode, reason: string): Promise<ResumeVerdict> => {
      this.#parts.lines.write('warn', code, 'resume refused', {
        session: key.slice(0, 8),
        code,
        reason,
        peer: peer.remote,
      });
      await authenticator.recordRefusedResume(identity, peer, key, reason);
      return { accepted: false, code };
    };
    const session = this.#book.get(key);
    if (session === undefined || !session.isRecorded) return refuse('session_unknown', 'there is no such session');
    // Whoever has the id and not the device learns no more than whoever has neither.
    const isHolder = identity.isProven && identity.device === session.device && identity.user === session.user;
    let proven: ResumeKey;
    try {
      proven = await this.#parts.sessions.resumeKey(key, evidence.epoch);
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
      if (evidence.rekey) this.#book.close(key, 'revoked');
      return refuse(refusal.code, refusal.reason);
    }
    // It may have been ended, or replaced, while others were asked.
    if (this.#book.get(key) !== session) return refuse('session_unknown', 'the session was ended meanwhile');
    this.#attempts += 1;
    const attempt = this.#attempts;
    // What lives at another worker cannot go on here.
    const isRekey = evidence.rekey && session.worker === worker;
    session.judgedAt = this.#parts.clock.now();
    const { epoch, nonce } = evidence;
    session.resuming = { attempt, worker, epoch, nonce, proven, isRekey };
    const proof = primitives.hmacSha256(proven.key, evidence.serverProofInput);
    return {
      accepted: true,
      resume: { key, attempt, grant: { proof, worker, ...this.#book.times(session) } },
      features: session.features,
    };
  }

  /** Whether the session would be opened today; undefined: it would. */
  async #standsStill(
    session: LiveSession,
    identity: Pick<ResumeIdentity, 'groups'>,
    peer: LoginPeer,
  ): Promise<{ code: RejectCode; reason: string } | undefined> {
    const { user, device, steps, certificate } = session;
    if (certificate !== undefined && !isSameHolder(certificate, peer.certificate)) {
      return { code: 'rejected', reason: 'the client certificate of the login was not shown' };
    }
    if (this.#parts.isRevoked(peer)) {
      return { code: 'certificate_revoked', reason: 'the client certificate was revoked' };
    }
    if (steps.includes('certificate') && !this.#parts.isCertificateOf(user, peer.certificate)) {
      return { code: 'rejected', reason: "the client certificate is not the user's" };
    }
    const asked = await this.#parts.standing(user);
    if (asked?.standing === 'gone') return { code: 'rejected', reason: 'the account is gone at its source' };
    // After that: the source may just have said other groups, of which more is asked.
    if (!(await this.#parts.authenticator.stillSuffices(user, steps))) {
      this.#book.close(session.key, 'revoked');
      return { code: 'session_unknown', reason: 'more is asked of the user than was proven at the login' };
    }
    const groups = asked?.groups ?? identity.groups ?? [];
    const login = { user, groups, device, remote: peer.remote, ...certificateName(peer) };
    const reason = await this.#parts.objection(login);
    return reason === undefined ? undefined : { code: 'rejected', reason };
  }

  async proposeResume({ key, attempt }: GrantedResume, mix: Uint8Array, worker: number): Promise<void> {
    const { primitives, sessions } = this.#parts;
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
    const { primitives, sessions } = this.#parts;
    const { session, resuming } = this.#resuming(key, attempt, worker);
    if (resuming.next === undefined) throw overtaken();
    if (this.#parts.isRevoked(peer)) throw endedMeanwhile('revoked');
    const { secret, version } = resuming.next;
    const epoch = resuming.epoch + 1;
    if (!isResumeInput('client resume done', doneInput, { session: session.id, epoch, nonce: resuming.nonce })) {
      throw new VpnError('ERR_RESUME_PROOF', 'the proof of the new session secret is not about this resume');
    }
    checkResumeDone(primitives, resumeKey(primitives, secret), doneInput, payload);
    await sessions.confirm(key, epoch, version, peer.remote, resuming.isRekey);
    if (this.#book.get(key) !== session) throw endedMeanwhile(session.ended ?? 'revoked');
    session.resuming = undefined;
    session.remote = peer.remote;
    session.certificate = peer.certificate;
    session.endsAt = endOf(session.proofEndsAt, session.certificate);
    session.detachedAt = undefined;
    await this.#book.move(session, worker);
    if (this.#book.get(key) !== session) throw endedMeanwhile(session.ended ?? 'revoked');
    this.#book.bindTo(session, epoch, secret, resuming.isRekey ? session.formerAttach : undefined);
    session.formerAttach = undefined;
    return { granted: this.#book.grantOf(session), features: session.features, openedAt: session.openedAt };
  }

  #resuming(key: SessionKey, attempt: number, worker: number): { session: LiveSession; resuming: Resuming } {
    const session = this.#book.get(key);
    if (session === undefined) throw endedMeanwhile('revoked');
    if (session.resuming?.attempt !== attempt || session.resuming.worker !== worker) throw overtaken();
    return { session, resuming: session.resuming };
  }

  async attach({ message, exported }: AttachRequest, peer: LoginPeer, worker: number): Promise<AttachVerdict> {
    const key = message.session.toHex();
    const session = this.#book.get(key);
    const server = session?.attach;
    if (session === undefined || server === undefined) return { accepted: false, code: 'session_unknown' };
    if (session.worker !== worker) return { accepted: false, movedTo: session.worker };
    const refuse = (code: RejectCode, reason: string, logged: string = code): AttachVerdict => {
      const fields = { session: key.slice(0, 8), code: logged, reason, peer: peer.remote };
      this.#parts.lines.write('warn', logged, 'data connection refused', fields);
      return { accepted: false, code };
    };
    let attached: Attached;
    try {
      attached = server.receive(message, () => exported);
    } catch (cause) {
      const error = toVpnError(cause);
      return refuse(rejectCodeOf(error), error.message, error.code);
    }
    // The first of a slot comes right after a login or a resume, which has just been judged, or it is another.
    const sinceMs = this.#parts.clock.now() - (session.judgedAt ?? Number.NEGATIVE_INFINITY);
    if (message.generation > 0 || sinceMs > JUST_NOW_MS) {
      const identity = await this.#parts.authenticator.stands(session.device);
      const refusal =
        identity.refusal !== undefined
          ? ({ code: 'rejected', reason: identity.refusal } as const)
          : await this.#standsStill(session, identity, peer);
      if (refusal !== undefined) {
        this.#book.close(key, 'revoked');
        return refuse(refusal.code, refusal.reason);
      }
      // It may have been ended or resumed while others were asked.
      if (session.attach !== server || this.#book.get(key) !== session) {
        return { accepted: false, code: 'session_unknown' };
      }
    }
    return { accepted: true, key, attached };
  }
}

/** Whether a proof is about this resume; what follows in it, exporter and transcript, only the ends can know. */
function isResumeInput(
  kind: ResumeProofKind,
  input: Uint8Array,
  { session, epoch, nonce }: Pick<ResumeEvidence, 'session' | 'epoch' | 'nonce'>,
): boolean {
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

function overtaken(): VpnError {
  return new VpnError('ERR_SESSION_REPLACED', 'another resume of the session has come between');
}
