/**
 * The one verdict on a login.
 *
 * Hides the nonces, the steps and their order, and what is recorded. Default deny: the nonce must be the connection's,
 * the signed bytes must say what is claimed, every step must pass, all for the same user, and account and device must be
 * in good standing at the moment of the verdict. Where users are asked different steps there are two rounds: the first asks
 * what everybody is asked, the second, which alone counts, all steps of that user; a question that a source has of its own
 * continues that one. The client hears `rejected` and nothing else until everything but the
 * one thing it is told has been proven; the record has the true reason. It must not know frames, TLS or sessions.
 *
 * @see docs/protocol.md §6
 */

import { createHmac, randomBytes } from 'node:crypto';
import { sql } from 'kysely';
import type { Clock } from '../base/clock.ts';
import { isVpnError } from '../base/errors.ts';
import { nodePrimitives } from '../base/primitives.ts';
import { type DeviceSignatureFacts, parseDeviceSignatureInput, type SignaturePurpose } from '../protocol/keys.ts';
import type { Challenge, ChallengeRequest, ChallengeStep, LoginEvidence } from '../protocol/login.ts';
import type { RejectCode, StepKind } from '../protocol/messages.ts';
import type { ResumeEvidence } from '../protocol/resume.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import { prepare } from '../store/prepared.ts';
import type { Queries, Store } from '../store/store.ts';
import type { Bans, Trial } from './bans.ts';
import { parseDeviceKey, verifyDeviceSignature } from './devices.ts';
import type { EnrolmentTokens } from './enrolment.ts';
import {
  DEFAULT_LOGIN_RULES,
  firstSteps,
  isSameSteps,
  type LoginPurpose,
  type LoginRules,
  leadsToProvider,
  stepsFor,
  stepsForNobody,
} from './login-rules.ts';
import { normaliseName } from './names.ts';
import { Nonces } from './nonces.ts';
import { RecordBudget } from './record-budget.ts';
import { claimedUser } from './steps/claimed-user.ts';
import { DeviceStep } from './steps/device.ts';
import type { Attempt, Finding, LoginPeer, LoginStep, Question, Refusal, Subject } from './steps/step.ts';
import { TokenStep } from './steps/token.ts';

export type Verdict =
  | {
      readonly accepted: true;
      readonly user: string;
      /** Sorted. */
      readonly groups: readonly string[];
      /** Hexadecimal. */
      readonly deviceId: string;
      /** No login of this device had been accepted before. */
      readonly firstLogin: boolean;
      /** What was proven. */
      readonly steps: readonly StepKind[];
      /** When some of it is good no more, milliseconds since the Unix epoch; undefined: none of it ends by itself. */
      readonly endsAt?: number;
      /** Id of the access token that was shown. */
      readonly token?: string;
    }
  | { readonly accepted: false; readonly code: RejectCode }
  /** No verdict yet: these steps are asked in another round. */
  | { readonly accepted: false; readonly ask: Challenge['steps'] };

/** What can be asked, by purpose. */
export type LoginSteps = Readonly<Record<LoginPurpose, readonly LoginStep[]>>;

export interface AuthenticatorParts {
  readonly store: Store;
  readonly audit: Audit;
  readonly clock: Clock;
  readonly tokens: EnrolmentTokens;
  /** Default: failures have no consequence. */
  readonly bans?: Bans;
  /** Default: `device` for a login, `device` and `token` for an enrolment. */
  readonly steps?: LoginSteps;
  /** Secret of this gateway, 32 bytes: chooses the steps for those who do not exist. Default: of this process. */
  readonly serverKey?: Uint8Array;
}

/** Questions of sources that wait for an answer. Beyond it the oldest is forgotten. */
const MAX_OPEN_QUESTIONS = 10_000;
/** Questions of a source in one login. */
const MAX_QUESTIONS = 4;

/** Who asks to resume; `refusal` is why they may not, for the record. */
export interface ResumeIdentity {
  /** Hexadecimal; that of the holder of its key only if `isProven`. */
  readonly device: string;
  readonly user?: string;
  readonly groups?: readonly string[];
  readonly isProven: boolean;
  readonly refusal?: string;
}

/** Whom TLS has refused. The names are what the certificate says of itself. */
export interface RefusedCertificate {
  /** Address and port of the client. */
  readonly remote: string;
  readonly code: string;
  readonly reason: string;
  /** Undefined: none was shown. */
  readonly certificate?: { readonly name: string; readonly issuer: string; readonly serial: string };
}

/** What a signature has to be about. */
interface BoundAttempt {
  readonly evidence: Pick<LoginEvidence, 'nonce' | 'signedBytes' | 'serverName'> & {
    readonly purpose: SignaturePurpose;
  };
  readonly device: string;
  readonly peer: LoginPeer;
}

/** A login that has passed all its steps but for an answer that its source wants of the person. */
interface OpenQuestion {
  readonly device: string;
  readonly user: string | undefined;
  readonly purpose: LoginPurpose;
  /** What was asked and answered before. */
  readonly steps: readonly StepKind[];
  /** Of these steps, without the device and what the question came from. */
  readonly findings: readonly Finding[];
  readonly question: Question;
  /** How many the person has been asked in this login, with this one. */
  readonly count: number;
}

interface Standing {
  readonly user: string;
  readonly groups: readonly string[];
  readonly firstLogin: boolean;
}

const findStanding = prepare((db, { device, user }: { device: string; user: string }) =>
  db
    .selectFrom('devices')
    .innerJoin('users', 'users.id', 'devices.user_id')
    .select([
      'users.name',
      'users.disabled_at',
      'users.expires_at',
      'devices.approved_at',
      'devices.revoked_at',
      'devices.last_seen_at',
    ])
    .where('devices.id', '=', device)
    .where('users.id', '=', user),
);

const findGroups = prepare((db, { user }: { user: string }) =>
  db.selectFrom('user_groups').select('name').where('user_id', '=', user).orderBy('name'),
);

const noteSight = prepare((db, { device, now }: { device: string; now: number }) =>
  db.updateTable('devices').set({ last_seen_at: now }).where('id', '=', device),
);

const noteLogin = prepare((db, { device, now }: { device: string; now: number }) =>
  db
    .updateTable('devices')
    .set(({ fn, ref }) => ({
      last_seen_at: now,
      first_login_at: fn.coalesce(ref('first_login_at'), sql<number>`${now}`),
    }))
    .where('id', '=', device),
);

export class Authenticator {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;
  readonly #tokens: EnrolmentTokens;
  readonly #steps: LoginSteps;
  readonly #serverKey: Uint8Array;
  readonly #bans: Bans | undefined;
  readonly #nonces: Nonces;
  /** Peers who have proven something must not be hidden by those who have not. */
  readonly #provenRecords: RecordBudget;
  readonly #otherRecords: RecordBudget;
  readonly #certificateRecords: RecordBudget;
  /** By connection. */
  readonly #questions = new Map<string, OpenQuestion>();
  #rules: LoginRules = DEFAULT_LOGIN_RULES;

  constructor(parts: AuthenticatorParts) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
    this.#tokens = parts.tokens;
    this.#bans = parts.bans;
    this.#nonces = new Nonces(parts.clock);
    this.#provenRecords = new RecordBudget(parts.clock);
    this.#otherRecords = new RecordBudget(parts.clock);
    this.#certificateRecords = new RecordBudget(parts.clock);
    this.#steps = parts.steps ?? builtInSteps(parts);
    this.#serverKey = parts.serverKey ?? randomBytes(32);
  }

  /** Which steps whom is asked, from now on. */
  set rules(rules: LoginRules) {
    this.#rules = rules;
  }

  /** Whether a session that was opened with these steps would be opened today; undefined when the user is gone. */
  async stillSuffices(user: string, proven: readonly StepKind[]): Promise<boolean> {
    const row = await this.#store.db.selectFrom('users').select('id').where('name', '=', user).executeTakeFirst();
    if (row === undefined) return false;
    const wanted = stepsFor(this.#rules, 'login', await this.#groupsOf(this.#store.db, row.id));
    return wanted.every((step) => proven.includes(step));
  }

  /** A nonce for this connection: 32 bytes, single use, 60 s or `lifeMs`; one it had before is void. */
  issueNonce(binding: string, lifeMs?: number): Uint8Array {
    return this.#nonces.issue(binding, lifeMs);
  }

  /** What to ask first. It depends on the purpose, never on the name or device that somebody claims. */
  firstSteps(request: Pick<ChallengeRequest, 'purpose'>): Challenge['steps'] {
    return firstSteps(this.#rules, request.purpose).map((kind) => ({ kind }));
  }

  /** The connection is gone: whatever waits for its client ends. */
  forget(binding: string): void {
    this.#questions.delete(binding);
    for (const step of new Set([...this.#steps.login, ...this.#steps.enrol])) step.forget?.(binding);
  }

  /**
   * Decides on a login; uses up its nonce.
   *
   * @throws {VpnError} ERR_STORE: no verdict, and nothing was changed
   */
  async verify(evidence: LoginEvidence, peer: LoginPeer): Promise<Verdict> {
    const attempt: Attempt = {
      evidence,
      device: evidence.deviceId.toHex(),
      peer,
      now: Math.trunc(this.#clock.wallNow()),
    };
    const findings = [this.#examineBinding(attempt)];
    // The device first: one that proves its key answers for itself, not for what strangers do with its user's name.
    const isDeviceAsked = evidence.steps.includes('device');
    const device = isDeviceAsked ? await this.#examine('device', attempt) : {};
    const trial = await this.#begin(attempt, findings[0], device);
    if (trial?.refused !== undefined) {
      await trial.end('failed');
      return this.#refuse(attempt, undefined, { code: 'rejected', reason: trial.refused });
    }
    let pending = trial;
    let outcome: Parameters<Trial['end']>[0] = 'none';
    try {
      if (evidence.steps.includes('ask')) {
        const { asked, answer } = await this.#examineAnswer(attempt);
        findings.push(device, ...(asked?.findings ?? []), answer);
        const verdict = await this.#judge(asWholeLogin(attempt, asked), findings, asked?.count);
        outcome = outcomeOf(verdict, findings);
        return verdict;
      }
      for (const kind of evidence.steps) {
        if (leadsToProvider([kind]) && pending !== undefined) {
          // A person takes minutes, and nobody can guess meanwhile: the login must not stand in the way of others.
          await pending.end(findings.some(isWrong) || device.refusal !== undefined ? 'failed' : 'none');
          pending = undefined;
        }
        findings.push(kind === 'device' ? device : await this.#examine(kind, attempt));
      }
      // A person may have taken minutes.
      const verdict = await this.#judge({ ...attempt, now: Math.trunc(this.#clock.wallNow()) }, findings);
      outcome = outcomeOf(verdict, findings);
      return verdict;
    } finally {
      await pending?.end(outcome);
    }
  }

  /** What the answer to a source's question brings, and which question it was. */
  async #examineAnswer(attempt: Attempt): Promise<{ asked: OpenQuestion | undefined; answer: Finding }> {
    const { evidence, device, peer } = attempt;
    const asked = this.#questions.get(peer.binding);
    this.#questions.delete(peer.binding);
    const isTheirs =
      asked?.device === device &&
      asked.user === evidence.user &&
      asked.purpose === evidence.purpose &&
      isSameSteps(evidence.steps, ['device', 'ask']);
    if (asked !== undefined && isTheirs) {
      return { asked, answer: await asked.question.answer(evidence.ask ?? '', attempt) };
    }
    const reason = 'an answer to a question that nobody asked';
    return { asked: undefined, answer: { refusal: { code: 'rejected', reason } } };
  }

  /** Only a good signature, over this login, by a device of the user it claims to be, sets it apart from strangers. */
  async #begin(attempt: Attempt, binding: Finding | undefined, found: Finding): Promise<Trial | undefined> {
    const { evidence, device, peer } = attempt;
    const isProven =
      binding?.refusal === undefined &&
      found.refusal === undefined &&
      found.subject !== undefined &&
      (evidence.user === undefined || normaliseName(evidence.user) === found.subject.name);
    if (isProven) return this.#bans?.begin({ remote: peer.remote, name: found.subject?.name, device });
    // Guesses by means of a token or a device id count for the name of its owner.
    const name = evidence.user ?? (await claimedUser(this.#store, attempt))?.name;
    return this.#bans?.begin({ remote: peer.remote, name, device: undefined });
  }

  /** @param questions how many the person has been asked by a source in this login */
  async #judge(attempt: Attempt, findings: readonly Finding[], questions = 0): Promise<Verdict> {
    const { evidence } = attempt;
    const { subject, refusal } = conclude(findings, evidence.user);
    const wanted = await this.#wantedSteps(attempt, refusal === undefined ? subject : undefined);
    if (!isSameSteps(evidence.steps, wanted)) {
      // Whoever proved nothing is asked like everybody else, and hears the verdict in the end. Only to a provider nobody is
      // sent who has not even a key.
      const goesOn = refusal === undefined || !leadsToProvider(wanted);
      if (evidence.attempt === 1 && goesOn) return await this.#ask(attempt, wanted, subject);
      const reason = `${evidence.steps.join()} was proven where ${wanted.join()} is wanted`;
      return this.#refuse(attempt, subject, { code: 'rejected', reason: refusal?.reason ?? reason });
    }
    if (refusal !== undefined) return this.#refuse(attempt, subject, refusal);
    const question = findings.find((finding) => finding.question !== undefined)?.question;
    if (question !== undefined) return await this.#askPerson(attempt, findings, question, questions + 1);
    if (subject === undefined) {
      return this.#refuse(attempt, subject, { code: 'rejected', reason: 'no step stands for a user' });
    }
    return this.#decide(attempt, subject, findings);
  }

  /** Another round, with what the person has to be shown. */
  async #ask(attempt: Attempt, kinds: readonly StepKind[], subject: Subject | undefined): Promise<Verdict> {
    const ask: ChallengeStep[] = [];
    for (const kind of kinds) {
      const step = this.#steps[attempt.evidence.purpose].find((candidate) => candidate.kind === kind);
      const details = (await step?.begin?.(attempt, subject !== undefined)) ?? {};
      if ('reason' in details) return await this.#refuse(attempt, subject, details);
      ask.push({ ...details, kind });
    }
    return { accepted: false, ask };
  }

  /** Another round for a source's question; what the other steps found is kept for the verdict. */
  async #askPerson(
    attempt: Attempt,
    findings: readonly Finding[],
    question: Question,
    count: number,
  ): Promise<Verdict> {
    const { evidence, device, peer } = attempt;
    if (count > MAX_QUESTIONS) {
      return await this.#refuse(attempt, undefined, { code: 'rejected', reason: 'the source has too many questions' });
    }
    const { user, purpose, steps } = evidence;
    // The binding and the device are examined anew with the answer.
    const kept = findings.slice(2).filter((finding) => finding.question === undefined);
    this.#questions.set(peer.binding, { device, user, purpose, steps, findings: kept, question, count });
    const [oldest] = this.#questions.keys();
    if (this.#questions.size > MAX_OPEN_QUESTIONS && oldest !== undefined) this.#questions.delete(oldest);
    const { prompt, echo } = question;
    return { accepted: false, ask: [{ kind: 'device' }, { kind: 'ask', prompt, echo }] };
  }

  /**
   * Who asks to resume a session, by the device's signature; uses up the nonce. It says nothing of the session.
   *
   * @throws {VpnError} ERR_STORE: no verdict
   */
  async identify(evidence: ResumeEvidence, peer: LoginPeer): Promise<ResumeIdentity> {
    const device = evidence.deviceId.toHex();
    const now = Math.trunc(this.#clock.wallNow());
    const { refusal } = this.#examineBinding({ evidence: { ...evidence, purpose: 'resume' }, device, peer });
    const row = await this.#store.db
      .selectFrom('devices')
      .innerJoin('users', 'users.id', 'devices.user_id')
      .select(['devices.algorithm', 'devices.public_key', 'users.id', 'users.name'])
      .where('devices.id', '=', device)
      .executeTakeFirst();
    const key = row === undefined ? undefined : parseDeviceKey(row.algorithm, row.public_key);
    if (row === undefined || key === undefined) return { device, isProven: false, refusal: 'the device is unknown' };
    if (refusal !== undefined) return { device, isProven: false, refusal: refusal.reason };
    if (!verifyDeviceSignature(row.algorithm, key, evidence.signedBytes, evidence.signature)) {
      return { device, isProven: false, refusal: 'the device signature is wrong' };
    }
    const standing = await this.#standingOf(this.#store.db, { device, now }, row);
    if ('code' in standing) return { device, user: row.name, isProven: true, refusal: standing.reason };
    return { device, user: standing.user, groups: standing.groups, isProven: true };
  }

  /** Whether a device and its account are still good, whoever asks. @throws {VpnError} ERR_STORE */
  async stands(device: string): Promise<Pick<ResumeIdentity, 'groups' | 'refusal'>> {
    const { db } = this.#store;
    const owner = await db
      .selectFrom('devices')
      .innerJoin('users', 'users.id', 'devices.user_id')
      .select(['users.id', 'users.name'])
      .where('devices.id', '=', device)
      .executeTakeFirst();
    if (owner === undefined) return { refusal: 'the device is unknown' };
    const standing = await this.#standingOf(db, { device, now: Math.trunc(this.#clock.wallNow()) }, owner);
    return 'code' in standing ? { refusal: standing.reason } : { groups: standing.groups };
  }

  /** Puts a refused resume on record, as far as there is room for those of its kind. @throws {VpnError} ERR_STORE */
  async recordRefusedResume(identity: ResumeIdentity, peer: LoginPeer, session: string, reason: string): Promise<void> {
    const unrecorded = (identity.isProven ? this.#provenRecords : this.#otherRecords).take();
    if (unrecorded === undefined) return;
    await this.#audit.append({
      event: AuditEvent.resumeRefused,
      user: identity.user,
      device: identity.device,
      source: peer.remote,
      reason,
      detail: { session: session.slice(0, 8), ...(unrecorded > 0 ? { unrecorded } : {}) },
    });
  }

  /** Puts on record that a login which its steps had accepted was refused all the same. @throws {VpnError} ERR_STORE */
  async recordOverruled(who: { user: string; device: string }, { remote }: LoginPeer, reason: string): Promise<void> {
    const unrecorded = this.#provenRecords.take();
    if (unrecorded === undefined) return;
    const detail = unrecorded > 0 ? { unrecorded } : {};
    await this.#audit.append({ event: AuditEvent.loginRefused, ...who, source: remote, reason, detail });
  }

  /**
   * Puts on record that TLS has refused a client's certificate, or that a client had none where it needs one. Whoever it says
   * it is has proven nothing.
   *
   * @throws {VpnError} ERR_STORE
   */
  async recordRefusedCertificate({ remote, code, reason, certificate }: RefusedCertificate): Promise<void> {
    const unrecorded = this.#certificateRecords.take();
    if (unrecorded === undefined) return;
    await this.#audit.append({
      event: AuditEvent.certificateRefused,
      source: remote,
      reason,
      detail: { code, ...certificate, ...(unrecorded > 0 ? { unrecorded } : {}) },
    });
  }

  async #examine(kind: StepKind, attempt: Attempt): Promise<Finding> {
    const step = this.#steps[attempt.evidence.purpose].find((candidate) => candidate.kind === kind);
    if (step !== undefined) return await step.examine(attempt);
    return { refusal: { code: 'rejected', reason: `the step ${kind} is not there` } };
  }

  /** The steps for a user who has been proven to be there or, without one, for whoever the login claims to be. */
  async #wantedSteps({ evidence, device }: Attempt, subject: Subject | undefined): Promise<readonly StepKind[]> {
    const groups = await this.#groupsOf(this.#store.db, subject?.id ?? '');
    const claim = `${device} ${normaliseName(evidence.user ?? '') ?? ''}`;
    const choice = createHmac('sha256', this.#serverKey).update(claim).digest().readUInt32BE();
    return subject === undefined
      ? stepsForNobody(this.#rules, evidence.purpose, choice)
      : stepsFor(this.#rules, evidence.purpose, groups);
  }

  /** Whether the signed bytes are about this login, on this connection, now. */
  #examineBinding({ evidence, device, peer }: BoundAttempt): Finding {
    const refuse = (reason: string): Finding => ({ refusal: { code: 'rejected', reason } });
    const isFresh = this.#nonces.consume(peer.binding, evidence.nonce);
    let facts: DeviceSignatureFacts;
    try {
      facts = parseDeviceSignatureInput(evidence.signedBytes);
    } catch (error) {
      if (!isVpnError(error, 'ERR_MESSAGE_SYNTAX')) throw error;
      return refuse('the signed bytes are not the input of a device signature');
    }
    const { equal } = nodePrimitives;
    if (!isFresh) return refuse('the nonce is unknown, used, too old or of another connection');
    if (!equal(facts.nonce, evidence.nonce)) return refuse('the signature is over another nonce');
    if (facts.purpose !== evidence.purpose) return refuse('the signature is for another purpose');
    if (facts.deviceId.toHex() !== device) return refuse('the signature is of another device');
    if (facts.serverName !== evidence.serverName) return refuse('the signature is for another server name');
    if (!equal(facts.serverId, peer.serverId)) return refuse('the signature is for another server key');
    return {};
  }

  /** All or nothing: spends, looks once more at who it is, and records, in one transaction. */
  async #decide(attempt: Attempt, subject: Subject, findings: readonly Finding[]): Promise<Verdict> {
    let standing: Standing | Refusal;
    try {
      standing = await this.#store.transaction(async (db) => {
        for (const { spend } of findings) {
          const refusal = await spend?.(db);
          if (refusal !== undefined) return keepOrUndo(refusal);
        }
        const unenrolled = await this.#enrol(db, attempt, subject);
        if (unenrolled !== undefined) return keepOrUndo(unenrolled);
        const found = await this.#standingOf(db, attempt, subject);
        if ('code' in found) return keepOrUndo(found);
        await this.#recordAccepted(db, attempt, found);
        return found;
      });
    } catch (error) {
      if (!(error instanceof Undo)) throw error;
      standing = error.refusal;
    }
    if (attempt.evidence.purpose === 'enrol') this.#store.sync();
    if ('code' in standing) return this.#refuse(attempt, subject, standing);
    const ends = findings.flatMap(({ endsAt }) => endsAt ?? []);
    const token = findings.find((finding) => finding.token !== undefined)?.token;
    return {
      accepted: true,
      ...standing,
      deviceId: attempt.device,
      steps: attempt.evidence.steps,
      ...(ends.length === 0 ? {} : { endsAt: Math.min(...ends) }),
      ...(token === undefined ? {} : { token }),
    };
  }

  /** An enrolment without a profile's token: the other steps vouch for the device. */
  async #enrol(db: Queries, { evidence, device, peer, now }: Attempt, subject: Subject): Promise<Refusal | undefined> {
    const { purpose, steps, algorithm, publicKey, client } = evidence;
    if (purpose !== 'enrol' || steps.includes('token')) return undefined;
    if (publicKey === undefined) return { code: 'rejected', reason: 'an enrolment without a public key' };
    const enrolment = { device, algorithm, publicKey, name: client.name, source: peer.remote };
    switch (await this.#tokens.enrol(db, subject, enrolment, { approvedAt: now })) {
      case 'enrolled':
        return undefined;
      case 'foreign':
        return { code: 'rejected', reason: "the device is another user's" };
      case 'full':
        return { code: 'too_many_devices', reason: 'the user has as many devices as they may' };
    }
  }

  async #standingOf(
    db: Queries,
    { device, now }: Pick<Attempt, 'device' | 'now'>,
    subject: Subject,
  ): Promise<Standing | Refusal> {
    const { rows } = await findStanding(db, { device, user: subject.id });
    const [row] = rows;
    const groups = await this.#groupsOf(db, subject.id);
    const rejected = (reason: string): Refusal => ({ code: 'rejected', reason });
    if (row === undefined) return rejected('the user or the device is gone');
    if (row.revoked_at !== null) return rejected('the device is revoked');
    if (row.disabled_at !== null) return rejected('the user is disabled');
    if (row.expires_at !== null && Number(row.expires_at) <= now) return rejected('the account has expired');
    if (row.approved_at === null) {
      return { code: 'approval_pending', reason: 'the device waits for an operator', keep: true };
    }
    return { user: row.name, groups, firstLogin: row.last_seen_at === null };
  }

  async #groupsOf(db: Queries, userId: string): Promise<string[]> {
    const { rows } = await findGroups(db, { user: userId });
    return rows.map(({ name }) => name);
  }

  async #recordAccepted(db: Queries, { evidence, device, peer, now }: Attempt, standing: Standing): Promise<void> {
    if (evidence.purpose === 'login') {
      await noteLogin(db, { device, now });
      await this.#tokens.spend(db, device);
    } else {
      await noteSight(db, { device, now });
    }
    await this.#audit.append(
      {
        event: AuditEvent.loginAccepted,
        user: standing.user,
        device,
        source: peer.remote,
        detail: { purpose: evidence.purpose, steps: evidence.steps.join(',') },
      },
      db,
    );
  }

  async #refuse(attempt: Attempt, subject: Subject | undefined, refusal: Refusal): Promise<Verdict> {
    const { evidence, device, peer } = attempt;
    const budget = subject === undefined ? this.#otherRecords : this.#provenRecords;
    const unrecorded = budget.take();
    if (unrecorded !== undefined) {
      await this.#audit.append({
        event: refusal.event ?? AuditEvent.loginRefused,
        user: subject?.name ?? evidence.user,
        device,
        source: peer.remote,
        reason: refusal.reason,
        detail: {
          purpose: evidence.purpose,
          steps: evidence.steps.join(','),
          ...refusal.detail,
          ...(unrecorded > 0 ? { unrecorded } : {}),
        },
      });
    }
    return { accepted: false, code: refusal.code };
  }
}

/** Whoever is told more than `rejected` has proven something, and is no guesser. */
function outcomeOf(verdict: Verdict, findings: readonly Finding[]): Parameters<Trial['end']>[0] {
  if (verdict.accepted) return 'accepted';
  // Asked for more, after something that was wrong already: the answer may tell a guesser as much as a refusal.
  if ('ask' in verdict) return findings.some(isWrong) ? 'failed' : 'none';
  return verdict.code === 'rejected' ? 'failed' : 'none';
}

function isWrong({ refusal }: Finding): boolean {
  return refusal?.code === 'rejected';
}

/** The login that an answer to a question completes: its steps are those of the round before. */
function asWholeLogin(attempt: Attempt, asked: OpenQuestion | undefined): Attempt {
  return asked === undefined ? attempt : { ...attempt, evidence: { ...attempt.evidence, steps: asked.steps } };
}

/** What can be asked where nothing else is given. */
function builtInSteps({ store, tokens }: AuthenticatorParts): LoginSteps {
  const device = new DeviceStep(store);
  return { login: [device], enrol: [device, new TokenStep(tokens)] };
}

/** Thrown through a transaction to undo it. */
class Undo extends Error {
  readonly refusal: Refusal;

  constructor(refusal: Refusal) {
    super('undo');
    this.refusal = refusal;
  }
}

function keepOrUndo(refusal: Refusal): Refusal {
  if (refusal.keep === true) return refusal;
  throw new Undo(refusal);
}

/** Joins what the steps found, and the name that was typed. */
function conclude(
  findings: readonly Finding[],
  typedName: string | undefined,
): { subject: Subject | undefined; refusal: Refusal | undefined } {
  const subjects = findings.flatMap(({ subject }) => subject ?? []);
  const subject = subjects[0];
  const refusals = findings.flatMap(({ refusal }) => refusal ?? []);
  if (subjects.some(({ id }) => id !== subject?.id)) {
    refusals.push({ code: 'rejected', reason: 'the steps stand for different users' });
  }
  if (typedName !== undefined && subject !== undefined && normaliseName(typedName) !== subject.name) {
    refusals.push({ code: 'rejected', reason: "the name is not that of the steps' user" });
  }
  const [first] = refusals;
  if (first === undefined) return { subject, refusal: undefined };
  // Told only when it is all that is wrong: a guesser must not learn of a token by sending a bad signature with it.
  const code = refusals.every((refusal) => refusal.code === first.code) ? first.code : 'rejected';
  const telling = refusals.find(({ event }) => event !== undefined) ?? first;
  return { subject, refusal: { ...telling, code, reason: refusals.map(({ reason }) => reason).join('; ') } };
}
