/**
 * Resumes a session on a new connection, from both ends.
 *
 * Hides the order RESUME, CHALLENGE, ANSWER, RESUMED, RESUME_DONE, its proofs, and which secret is valid when. It must
 * not know stores or leases. Who holds K_resume need not be who holds the connection: the server's machine hands out the
 * inputs of the proofs and takes proofs back.
 *
 * @see docs/protocol.md §9
 */

import { VpnError } from '../base/errors.ts';
import { negotiateFeatures } from './features.ts';
import { encodeFrame, encodeGreeting, FrameType, parseGreeting } from './frame.ts';
import {
  deviceSignatureInput,
  exportKey,
  nextSecret,
  type Primitives,
  resumeKey,
  resumeProof,
  resumeProofInput,
  Transcript,
} from './keys.ts';
import { type ClientDevice, type LoginFoundation, PROTOCOL_VERSION, SIGNATURE_BYTES } from './login.ts';
import {
  type CloseReason,
  decodeMessage,
  encodeMessage,
  fromBase64Url,
  type RejectCode,
  type ResumedMessage,
  type ResumeMessage,
  toBase64Url,
} from './messages.ts';
import { rejectError } from './reasons.ts';

const STEPS = ['resume', 'device'] as const;

/** Everything a verdict on a resume rests on; nothing in it has been verified. */
export interface ResumeEvidence {
  session: Uint8Array;
  /** The epoch n whose K_resume must fit. */
  epoch: number;
  deviceId: Uint8Array;
  serverName: string;
  nonce: Uint8Array;
  /** HMAC-SHA-256 with K_resume(n) over `proofInput` must equal `proof`. */
  proof: Uint8Array;
  proofInput: Uint8Array;
  /** The device's signature over `signedBytes`. */
  signature: Uint8Array;
  signedBytes: Uint8Array;
  /** HMAC-SHA-256 with K_resume(n) over this is the answer's `proof`. */
  serverProofInput: Uint8Array;
  /** The session's connections live, and only the control connection is changed. */
  rekey: boolean;
}

/** A resume that has been granted. */
export interface ResumeGrant {
  /** Over `serverProofInput`. */
  proof: Uint8Array;
  worker: number;
  absoluteSeconds: number;
  idleSeconds: number;
  graceSeconds: number;
}

export type ResumeServerOutput =
  | { kind: 'nothing' }
  | { kind: 'send'; frame: Uint8Array }
  /** Ask auth for a verdict; answer with `accept()` or `reject()`. */
  | { kind: 'verify'; evidence: ResumeEvidence }
  /**
   * Set the decoder to phase `session`, send `frame`. S(n+1) = HKDF-Extract(K_resume(n), mix). Nothing but RESUME_DONE is taken
   * from the client before its proof over `doneInput` under K_resume(n+1) has been checked.
   */
  | { kind: 'resumed'; frame: Uint8Array; resumed: ResumedMessage; mix: Uint8Array; doneInput: Uint8Array }
  | { kind: 'rejected'; frame: Uint8Array; code: RejectCode }
  | { kind: 'closed'; reason: CloseReason };

/** The server's side, from a RESUME that `LoginServer` has handed out. */
export class ResumeServer {
  readonly #foundation: LoginFoundation;
  readonly #transcript: Transcript;
  readonly #resume: ResumeMessage;
  #state: 'challenging' | 'answering' | 'verifying' | 'over' = 'challenging';
  #nonce: Uint8Array = new Uint8Array(0);

  /** `payload` is RESUME's payload as received. */
  constructor(foundation: LoginFoundation, payload: Uint8Array) {
    this.#foundation = foundation;
    this.#resume = decodeMessage('resume', payload);
    this.#transcript = new Transcript(foundation.primitives);
    this.#transcript.add(encodeGreeting(), encodeFrame(FrameType.resume, payload));
  }

  get over(): boolean {
    return this.#state === 'over';
  }

  /** The client's other connections stay as they are. */
  get isRekey(): boolean {
    return this.#resume.rekey === true;
  }

  stop(): void {
    this.#state = 'over';
  }

  /** Asks for the proofs; `nonce` is auth's, single use. */
  challenge(nonce: Uint8Array): ResumeServerOutput {
    if (this.#state === 'over') return { kind: 'nothing' };
    if (this.#state !== 'challenging') throw unasked('challenge');
    if (this.#resume.version !== PROTOCOL_VERSION) return this.reject('version');
    const frame = encodeMessage('challenge', { nonce, steps: STEPS.map((kind) => ({ kind })), attempt: 1 });
    this.#transcript.add(frame);
    this.#nonce = nonce;
    this.#state = 'answering';
    return { kind: 'send', frame };
  }

  /** @throws {VpnError} ERR_FRAME_STATE, ERR_MESSAGE_SYNTAX, ERR_MESSAGE_FIELD */
  receive(type: number, payload: Uint8Array): ResumeServerOutput {
    const state = this.#state;
    this.#state = 'over';
    if (state !== 'over' && type === FrameType.close) {
      return { kind: 'closed', reason: decodeMessage('close', payload).reason };
    }
    if (state !== 'answering' || type !== FrameType.answer) throw wrongState(type, state);
    const { answers } = decodeMessage('answer', payload);
    const [proof, signature] = STEPS.map((kind, index) => {
      const answer = answers[index];
      return answer?.kind === kind && answers.length === STEPS.length ? fromBase64Url(answer.value) : undefined;
    });
    if (proof?.length !== 32 || signature?.length !== SIGNATURE_BYTES) {
      throw new VpnError('ERR_MESSAGE_FIELD', 'answer: expected a resume proof, then a device signature', {
        details: { message: 'answer', field: 'answers' },
      });
    }
    const { exporter, serverId } = this.#foundation;
    const { session, epoch, deviceId, serverName } = this.#resume;
    const nonce = this.#nonce;
    const asked = { session, epoch, nonce, transcript: this.#transcript.digest() };
    const signedBytes = deviceSignatureInput({
      purpose: 'resume',
      serverName,
      serverId,
      exporterAuth: exportKey(exporter, 'auth'),
      nonce,
      deviceId,
      transcript: asked.transcript,
    });
    this.#transcript.add(encodeFrame(FrameType.answer, payload));
    const answered = { session, epoch, nonce, transcript: this.#transcript.digest() };
    this.#state = 'verifying';
    return {
      kind: 'verify',
      evidence: {
        session,
        epoch,
        deviceId,
        serverName,
        nonce,
        proof,
        proofInput: resumeProofInput('client resume', asked, exporter),
        signature,
        signedBytes,
        serverProofInput: resumeProofInput('server resume', answered, exporter),
        rekey: this.isRekey,
      },
    };
  }

  /**
   * Auth says yes: it has moved the session from epoch n to n + 1 and to this connection.
   *
   * @param features what this end offers to this user; default: all that it has
   */
  accept(grant: ResumeGrant, features: readonly string[] = this.#foundation.features): ResumeServerOutput {
    if (this.#state === 'over') return { kind: 'nothing' };
    if (this.#state !== 'verifying') throw unasked('accept');
    const { exporter } = this.#foundation;
    const { session } = this.#resume;
    const epoch = this.#resume.epoch + 1;
    const resumed = { ...grant, epoch, features: negotiateFeatures(this.#resume.features, features) };
    const frame = encodeMessage('resumed', resumed);
    this.#transcript.add(frame);
    this.#state = 'over';
    const transcript = this.#transcript.digest();
    return {
      kind: 'resumed',
      frame,
      resumed,
      mix: exportKey(exporter, 'session', transcript),
      doneInput: resumeProofInput('client resume done', { session, epoch, nonce: this.#nonce, transcript }, exporter),
    };
  }

  reject(code: RejectCode, message = ''): ResumeServerOutput {
    if (this.#state === 'over') return { kind: 'nothing' };
    this.#state = 'over';
    return { kind: 'rejected', frame: encodeMessage('reject', { code, message }), code };
  }
}

/**
 * Checks RESUME_DONE, the first frame under the new epoch.
 *
 * @param key K_resume(n+1)
 * @throws {VpnError} ERR_RESUME_PROOF, ERR_MESSAGE_SYNTAX, ERR_MESSAGE_FIELD
 */
export function checkResumeDone(
  primitives: Primitives,
  key: Uint8Array,
  doneInput: Uint8Array,
  payload: Uint8Array,
): void {
  const { proof } = decodeMessage('resumeDone', payload);
  if (!primitives.equal(primitives.hmacSha256(key, doneInput), proof)) {
    throw new VpnError('ERR_RESUME_PROOF', 'RESUME_DONE does not prove the new session secret');
  }
}

export interface ResumeClientOptions extends LoginFoundation {
  session: Uint8Array;
  epoch: number;
  /** S(epoch) */
  secret: Uint8Array;
  serverName: string;
  device: ClientDevice;
  /** The session's connections live, and only the control connection is changed. */
  rekey?: boolean | undefined;
}

export type ResumeClientOutput =
  | { kind: 'nothing' }
  | { kind: 'send'; frame: Uint8Array }
  /** Sign `signedBytes`; answer with `answer()`. */
  | { kind: 'answer'; signedBytes: Uint8Array }
  /** Set the decoder to phase `session`, send `frame` (RESUME_DONE) before anything else; `secret` is S(n+1). */
  | { kind: 'resumed'; frame: Uint8Array; resumed: ResumedMessage; secret: Uint8Array }
  | { kind: 'failed'; error: VpnError; code: RejectCode }
  | { kind: 'closed'; reason: CloseReason };

/** The client's side, from the greeting to RESUME_DONE. */
export class ResumeClient {
  readonly #options: ResumeClientOptions;
  readonly #serverName: string;
  readonly #transcript: Transcript;
  #state: 'idle' | 'opening' | 'asked' | 'answered' | 'over' = 'idle';
  #nonce: Uint8Array = new Uint8Array(0);

  constructor(options: ResumeClientOptions) {
    this.#options = options;
    this.#serverName = options.serverName.toLowerCase();
    this.#transcript = new Transcript(options.primitives);
  }

  get over(): boolean {
    return this.#state === 'over';
  }

  stop(): void {
    this.#state = 'over';
  }

  /** @throws {VpnError} ERR_GREETING, ERR_PROTOCOL_VERSION */
  start(greeting: Uint8Array): ResumeClientOutput {
    if (this.#state !== 'idle') throw unasked('start');
    this.#state = 'over';
    parseGreeting(greeting);
    const { session, epoch, device, features, rekey = false } = this.#options;
    const frame = encodeMessage('resume', {
      version: PROTOCOL_VERSION,
      session,
      epoch,
      deviceId: device.id,
      serverName: this.#serverName,
      features: [...features],
      ...(rekey ? { rekey } : {}),
    });
    this.#transcript.add(greeting, frame);
    this.#state = 'opening';
    return { kind: 'send', frame };
  }

  /** @throws {VpnError} ERR_RESUME_PROOF, ERR_FRAME_STATE, ERR_MESSAGE_SYNTAX, ERR_MESSAGE_FIELD */
  receive(type: number, payload: Uint8Array): ResumeClientOutput {
    const state = this.#state;
    this.#state = 'over';
    if (state === 'opening' || state === 'asked' || state === 'answered') {
      if (type === FrameType.close) return { kind: 'closed', reason: decodeMessage('close', payload).reason };
      if (type === FrameType.reject) {
        const { code, message } = decodeMessage('reject', payload);
        return { kind: 'failed', error: rejectError(code, message), code };
      }
    }
    if (state === 'opening' && type === FrameType.challenge) return this.#challenged(payload);
    if (state === 'answered' && type === FrameType.resumed) return this.#resumed(payload);
    throw wrongState(type, state);
  }

  #challenged(payload: Uint8Array): ResumeClientOutput {
    const { nonce, steps } = decodeMessage('challenge', payload);
    if (steps.length !== STEPS.length || steps.some(({ kind }, index) => kind !== STEPS[index])) {
      throw new VpnError('ERR_MESSAGE_FIELD', 'challenge: a resume asks for "resume", then "device"', {
        details: { message: 'challenge', field: 'steps' },
      });
    }
    this.#transcript.add(encodeFrame(FrameType.challenge, payload));
    this.#nonce = nonce;
    this.#state = 'asked';
    const { serverId, exporter, device } = this.#options;
    return {
      kind: 'answer',
      signedBytes: deviceSignatureInput({
        purpose: 'resume',
        serverName: this.#serverName,
        serverId,
        exporterAuth: exportKey(exporter, 'auth'),
        nonce,
        deviceId: device.id,
        transcript: this.#transcript.digest(),
      }),
    };
  }

  answer(signature: Uint8Array): ResumeClientOutput {
    if (this.#state === 'over') return { kind: 'nothing' };
    if (this.#state !== 'asked') throw unasked('answer');
    const { primitives, secret, exporter } = this.#options;
    const key = resumeKey(primitives, secret);
    const proof = resumeProof(primitives, key, 'client resume', this.#facts(0), exporter);
    const frame = encodeMessage('answer', {
      answers: [
        { kind: 'resume', value: toBase64Url(proof) },
        { kind: 'device', value: toBase64Url(signature) },
      ],
    });
    this.#transcript.add(frame);
    this.#state = 'answered';
    return { kind: 'send', frame };
  }

  #resumed(payload: Uint8Array): ResumeClientOutput {
    const resumed = decodeMessage('resumed', payload);
    const { primitives, secret, exporter, epoch, features } = this.#options;
    const key = resumeKey(primitives, secret);
    const expected = resumeProof(primitives, key, 'server resume', this.#facts(0), exporter);
    if (!primitives.equal(expected, resumed.proof) || resumed.epoch !== epoch + 1) {
      throw new VpnError('ERR_RESUME_PROOF', 'the server has not proven that it knows the session');
    }
    if (!resumed.features.every((name) => features.includes(name))) {
      throw new VpnError('ERR_MESSAGE_FIELD', 'resumed: the server uses a feature that was not offered', {
        details: { message: 'resumed', field: 'features' },
      });
    }
    this.#transcript.add(encodeFrame(FrameType.resumed, payload));
    const next = nextSecret(primitives, key, exporter, this.#transcript.digest());
    const nextKey = resumeKey(primitives, next);
    const done = resumeProof(primitives, nextKey, 'client resume done', this.#facts(1), exporter);
    return { kind: 'resumed', frame: encodeMessage('resumeDone', { proof: done }), resumed, secret: next };
  }

  #facts(epochsOn: 0 | 1) {
    const { session, epoch } = this.#options;
    return { session, epoch: epoch + epochsOn, nonce: this.#nonce, transcript: this.#transcript.digest() };
  }
}

function wrongState(type: number, state: string): VpnError {
  return new VpnError('ERR_FRAME_STATE', `frame type ${type} is not legal while ${state}`, { details: { type } });
}

function unasked(what: string): VpnError {
  return new VpnError('ERR_INVARIANT', `${what} was not asked for`);
}
