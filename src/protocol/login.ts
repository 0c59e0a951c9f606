/**
 * The login machines of both ends.
 *
 * Hide the order of LOGIN, CHALLENGE, ANSWER and ACCEPT, the transcript, what a device signs, and the first session
 * secret. They must not know connections, clocks, accounts or how a credential is checked: a shell feeds them frames,
 * does what the output says, and gives the answers back. Every method returns one output; what the peer does wrong is
 * thrown as a `VpnError` of kind `protocol`, after which the machine is over.
 *
 * ```
 * client                        server shell              auth
 *   LOGIN          ──────────►  receive → challenge  ───►  nonce, steps
 *                  ◄──────────  challenge() → send
 *   ANSWER         ──────────►  receive → verify     ───►  one verdict
 *                  ◄──────────  accept() → accepted  |  reject() → rejected  |  challenge() → another round
 * ```
 *
 * A machine is in one state at a time. While it waits for its own shell, the only frame it takes is CLOSE (and a client
 * REJECT): nothing is queued, a pipelined frame is ERR_FRAME_STATE. There is one way to `accepted`: a verdict on the
 * answers to every step of the last challenge.
 *
 * @see docs/protocol.md §5, §6
 */

import { VpnError } from '../base/errors.ts';
import { Feature, negotiateFeatures } from './features.ts';
import { encodeFrame, encodeGreeting, FrameType, MAX_EARLY_PINGS, parseGreeting } from './frame.ts';
import {
  deviceIdOf,
  deviceSignatureInput,
  type Exporter,
  exportKey,
  type Primitives,
  sessionSecret,
  Transcript,
} from './keys.ts';
import {
  type AcceptMessage,
  type AnswerMessage,
  type AttachMessage,
  type ClientFacts,
  type CloseReason,
  type DeviceAlgorithm,
  decodeMessage,
  encodeMessage,
  fromBase64Url,
  type LoginMessage,
  MAX_STEPS,
  type RejectCode,
  type ResumeMessage,
  type Step,
  type StepKind,
  toBase64Url,
} from './messages.ts';
import { rejectError } from './reasons.ts';

export const PROTOCOL_VERSION = 1;

/** Bytes of a device signature: r‖s of P-256, or Ed25519. */
export const SIGNATURE_BYTES = 64;
/** Bytes of an enrolment token: id(8) ‖ secret(32). */
export const TOKEN_BYTES = 40;
/** Rounds of CHALLENGE and ANSWER in one login. */
export const MAX_ROUNDS = MAX_STEPS;
/** Seconds between the PINGs of a client whose user is at a provider. */
export const PROVIDER_PING_SECONDS = 20;
/** Seconds of silence after which nobody waits for that user any more. */
export const PROVIDER_SILENCE_SECONDS = 3 * PROVIDER_PING_SECONDS;
/** PINGs in one login while its user is at a provider: an hour of them, and some. */
export const MAX_PROVIDER_PINGS = 256;

/** What both machines are made with. */
export interface LoginFoundation {
  primitives: Primitives;
  /** The exporter of this connection. */
  exporter: Exporter;
  /** SHA-256 of the public key of the server's leaf certificate in this handshake. */
  serverId: Uint8Array;
  /** What this end's machine can do; see `Feature`. */
  features: readonly string[];
}

/** What auth needs to choose the steps and to make a nonce. Nothing in it is proven. */
export interface ChallengeRequest {
  purpose: 'login' | 'enrol';
  user?: string;
  deviceId: Uint8Array;
  algorithm: DeviceAlgorithm;
  serverName: string;
  client: ClientFacts;
  /** 1 for the first challenge of a login. */
  attempt: number;
}

/** What auth asks. The first step is always `device`. */
export interface Challenge {
  /** 32 bytes, single use, bound to this connection by whoever made it. */
  nonce: Uint8Array;
  steps: readonly ChallengeStep[];
}

/** A step as it is asked, with what its person has to know. */
export type ChallengeStep = Omit<Step, 'kind'> & { readonly kind: StepKind };

/**
 * Everything a verdict rests on. Nothing in it has been verified, except that it is well-formed, that `deviceId` belongs
 * to `publicKey`, and that `signedBytes` was built here from the challenge's nonce and the frames of this connection.
 */
export interface LoginEvidence {
  purpose: 'login' | 'enrol';
  user?: string;
  deviceId: Uint8Array;
  algorithm: DeviceAlgorithm;
  /** SubjectPublicKeyInfo, DER; present when `purpose` is `enrol`. */
  publicKey?: Uint8Array;
  /** As dialled by the client, lower case. */
  serverName: string;
  client: ClientFacts;
  /** The nonce of the challenge that is answered; also inside `signedBytes`. */
  nonce: Uint8Array;
  /** 64 bytes. */
  signature: Uint8Array;
  /** What the signature must cover; see `parseDeviceSignatureInput`. */
  signedBytes: Uint8Array;
  /** id(8) ‖ secret(32) */
  token?: Uint8Array;
  password?: string;
  /** 6 to 8 digits, or a recovery code of 16 characters. */
  totp?: string;
  /** What the person answered to the prompt of the step `ask`. */
  ask?: string;
  /** The steps that were asked and answered, in order. */
  steps: readonly StepKind[];
  /** 1 for the first challenge of a login. */
  attempt: number;
  /** Networks that the client offers to carry packets for, as text; what becomes of them is no part of the verdict. */
  networks?: readonly string[];
}

/** A session that has been granted. Times are seconds from now, 0 meaning never. */
export interface Grant {
  /** 16 bytes. */
  session: Uint8Array;
  worker: number;
  user: string;
  absoluteSeconds: number;
  idleSeconds: number;
  graceSeconds: number;
}

/** What the server's shell does next. */
export type LoginServerOutput =
  /** Nothing: the next frame or the shell's own answer decides. */
  | { kind: 'nothing' }
  /** Send this and go on feeding frames. */
  | { kind: 'send'; frame: Uint8Array }
  /** Ask auth for a challenge; answer with `challenge()` or `reject()`. */
  | { kind: 'challenge'; request: ChallengeRequest }
  /** Ask auth for a verdict; answer with `accept()`, `reject()` or `challenge()` for another round. */
  | { kind: 'verify'; evidence: LoginEvidence }
  /** Set the decoder to phase `session`, send this, open the session with this secret. The machine is over. */
  | { kind: 'accepted'; frame: Uint8Array; accept: AcceptMessage; secret: Uint8Array; login: LoginMessage }
  /** Send this and close. The machine is over. */
  | { kind: 'rejected'; frame: Uint8Array; code: RejectCode }
  /** The connection is a data connection: give this to the session's `AttachServer`, or `reject()`. */
  | { kind: 'attach'; message: AttachMessage }
  /** The connection resumes a session: give payload to a `ResumeServer`, or `reject()`. */
  | { kind: 'resume'; message: ResumeMessage; payload: Uint8Array }
  /** The client has given up. The machine is over. */
  | { kind: 'closed'; reason: CloseReason };

type ServerState = 'opening' | 'challenging' | 'answering' | 'verifying' | 'handed' | 'over';

const NOTHING = { kind: 'nothing' } as const;

const ANSWERED_BY_PEOPLE: ReadonlySet<StepKind> = new Set<StepKind>(['password', 'totp', 'oidc', 'ask']);

/** Whether somebody may have to type for these: that takes longer than what machines answer. */
export function asksPeople(steps: Challenge['steps']): boolean {
  return steps.some(({ kind }) => ANSWERED_BY_PEOPLE.has(kind));
}

/** The server's side of a new connection, from the greeting to ACCEPT. */
export class LoginServer {
  readonly #foundation: LoginFoundation;
  readonly #transcript: Transcript;
  #state: ServerState = 'opening';
  #pings = 0;
  #login: LoginMessage | undefined;
  #challenge: Challenge | undefined;
  /** The user logs in at a provider: the client shows that it is still there. */
  #isAtProvider = false;
  #attempt = 0;

  /** The greeting, `encodeGreeting()`, has been sent. */
  constructor(foundation: LoginFoundation) {
    this.#foundation = foundation;
    this.#transcript = new Transcript(foundation.primitives);
    this.#transcript.add(encodeGreeting());
  }

  /** Whether nothing can come of this login any more: a verdict that arrives now must open no session. */
  get over(): boolean {
    return this.#state === 'over';
  }

  /** The login is over, or its connection gone: answers that still arrive are ignored, and what was said is forgotten. */
  stop(): void {
    this.#state = 'over';
    this.#login = undefined;
    this.#challenge = undefined;
    this.#transcript.forget();
  }

  /**
   * Takes a control frame as received.
   *
   * @throws {VpnError} ERR_FRAME_STATE, ERR_MESSAGE_SYNTAX, ERR_MESSAGE_FIELD, ERR_FRAME_TOO_LONG
   */
  receive(type: number, payload: Uint8Array): LoginServerOutput {
    try {
      return this.#receive(type, payload);
    } catch (error) {
      this.#state = 'over';
      throw error;
    }
  }

  #receive(type: number, payload: Uint8Array): LoginServerOutput {
    const state = this.#state;
    if (state !== 'over' && state !== 'handed' && type === FrameType.close) {
      const { reason } = decodeMessage('close', payload);
      this.#state = 'over';
      return { kind: 'closed', reason };
    }
    if (state === 'opening') {
      switch (type) {
        case FrameType.ping:
          this.#pings += 1;
          if (this.#pings > MAX_EARLY_PINGS) throw wrongState(type, `after ${MAX_EARLY_PINGS} PINGs before login`);
          return { kind: 'send', frame: encodeFrame(FrameType.pong, payload) };
        case FrameType.login:
          return this.#open(payload);
        case FrameType.attach: {
          const message = decodeMessage('attach', payload);
          this.#state = 'handed';
          return { kind: 'attach', message };
        }
        case FrameType.resume: {
          const message = decodeMessage('resume', payload);
          this.#state = 'handed';
          return { kind: 'resume', message, payload: new Uint8Array(payload) };
        }
      }
    }
    if (state === 'answering' && type === FrameType.answer) return this.#answered(payload);
    if (state === 'verifying' && this.#isAtProvider && type === FrameType.ping) {
      this.#pings += 1;
      if (this.#pings > MAX_PROVIDER_PINGS) throw wrongState(type, `after ${MAX_PROVIDER_PINGS} PINGs`);
      return { kind: 'send', frame: encodeFrame(FrameType.pong, payload) };
    }
    throw wrongState(type, `while ${state}`);
  }

  #open(payload: Uint8Array): LoginServerOutput {
    const login = decodeMessage('login', payload);
    if (login.version !== PROTOCOL_VERSION) {
      return this.#refuse('version', `this server speaks version ${PROTOCOL_VERSION}`);
    }
    const bridges = this.#foundation.features.includes(Feature.ethernet);
    if (bridges !== login.features.includes(Feature.ethernet)) return this.#refuse('device_kind', deviceKind(bridges));
    checkDevice(this.#foundation.primitives, login);
    this.#transcript.add(encodeFrame(FrameType.login, payload));
    this.#login = login;
    this.#state = 'challenging';
    this.#attempt = 1;
    const { purpose, user, device, serverName, client } = login;
    return {
      kind: 'challenge',
      request: {
        purpose,
        ...(user === undefined ? {} : { user }),
        deviceId: device.id,
        algorithm: device.algorithm,
        serverName,
        client,
        attempt: 1,
      },
    };
  }

  /**
   * Auth asks these steps; also the answer to `verify` when another round is needed.
   *
   * @throws {VpnError} ERR_INVARIANT where nothing was asked for, or `device` is not the first step
   */
  challenge(challenge: Challenge): LoginServerOutput {
    if (this.#state === 'over') return NOTHING;
    if (this.#state !== 'challenging' && this.#state !== 'verifying') throw unasked('challenge', this.#state);
    if (challenge.steps[0]?.kind !== 'device') {
      throw new VpnError('ERR_INVARIANT', 'the first step of every challenge is the device signature');
    }
    if (this.#state === 'verifying') this.#attempt += 1;
    if (this.#attempt > MAX_ROUNDS) return this.#refuse('rejected', 'too many rounds');
    const frame = encodeMessage('challenge', {
      nonce: challenge.nonce,
      steps: [...challenge.steps],
      attempt: this.#attempt,
    });
    this.#transcript.add(frame);
    this.#challenge = challenge;
    this.#state = 'answering';
    return { kind: 'send', frame };
  }

  #answered(payload: Uint8Array): LoginServerOutput {
    const login = this.#login;
    const challenge = this.#challenge;
    if (login === undefined || challenge === undefined) throw unasked('answer', this.#state);
    const steps = challenge.steps.map((step) => step.kind);
    const answers = readAnswers(decodeMessage('answer', payload), steps);
    const { serverId, exporter } = this.#foundation;
    const signedBytes = deviceSignatureInput({
      purpose: login.purpose,
      serverName: login.serverName,
      serverId,
      exporterAuth: exportKey(exporter, 'auth'),
      nonce: challenge.nonce,
      deviceId: login.device.id,
      transcript: this.#transcript.digest(),
    });
    this.#transcript.add(encodeFrame(FrameType.answer, payload));
    this.#challenge = undefined;
    this.#isAtProvider = steps.includes('oidc');
    this.#state = 'verifying';
    return {
      kind: 'verify',
      evidence: {
        purpose: login.purpose,
        ...(login.user === undefined ? {} : { user: login.user }),
        deviceId: login.device.id,
        algorithm: login.device.algorithm,
        ...(login.device.publicKey === undefined ? {} : { publicKey: login.device.publicKey }),
        serverName: login.serverName,
        client: login.client,
        nonce: challenge.nonce,
        signedBytes,
        ...answers,
        steps,
        attempt: this.#attempt,
        ...(login.networks === undefined ? {} : { networks: login.networks }),
      },
    };
  }

  /**
   * Auth says yes: makes ACCEPT and the session secret.
   *
   * @param features what this end offers to this user; default: all that it has
   * @throws {VpnError} ERR_INVARIANT where no evidence was handed out for it
   */
  accept(grant: Grant, features: readonly string[] = this.#foundation.features): LoginServerOutput {
    if (this.#state === 'over') return NOTHING;
    const login = this.#login;
    if (this.#state !== 'verifying' || login === undefined) throw unasked('accept', this.#state);
    const accept: AcceptMessage = {
      ...grant,
      epoch: 0,
      features: negotiateFeatures(login.features, features),
      deviceId: login.device.id,
    };
    const frame = encodeMessage('accept', accept);
    this.#transcript.add(frame);
    this.#state = 'over';
    return {
      kind: 'accepted',
      frame,
      accept,
      secret: sessionSecret(this.#foundation.exporter, this.#transcript.digest()),
      login,
    };
  }

  /** Says no, at any time before ACCEPT. `message` is for people and helps no guesser. */
  reject(code: RejectCode, message = ''): LoginServerOutput {
    if (this.#state === 'over') return NOTHING;
    return this.#refuse(code, message);
  }

  #refuse(code: RejectCode, message: string): LoginServerOutput {
    this.#state = 'over';
    return { kind: 'rejected', frame: encodeMessage('reject', { code, message }), code };
  }
}

/** A device's public side, as the client presents it. */
export interface ClientDevice {
  id: Uint8Array;
  algorithm: DeviceAlgorithm;
  /** SubjectPublicKeyInfo, DER. */
  publicKey: Uint8Array;
}

export interface LoginClientOptions extends LoginFoundation {
  purpose: 'login' | 'enrol';
  /** As dialled; it is put in lower case here. */
  serverName: string;
  /** False when the server's certificate is not verified: then no token, password or code is sent. */
  serverVerified: boolean;
  device: ClientDevice;
  user?: string;
  client: ClientFacts;
  /** Networks that this client offers to carry packets for. */
  networks?: readonly string[];
}

/** What the client's user and device answer; each is needed when its step is asked. */
export interface LoginAnswers {
  /** The signature over `signedBytes`, 64 bytes. */
  signature: Uint8Array;
  /** id(8) ‖ secret(32) */
  token?: Uint8Array;
  password?: string;
  totp?: string;
  ask?: string;
}

/** What the client's shell does next. */
export type LoginClientOutput =
  | { kind: 'nothing' }
  /** Send this and go on feeding frames. */
  | { kind: 'send'; frame: Uint8Array }
  /** Sign `signedBytes`, collect what the steps ask; answer with `answer()` or `giveUp()`. */
  | { kind: 'answer'; steps: readonly ChallengeStep[]; signedBytes: Uint8Array; attempt: number }
  /** Set the decoder to phase `session` at once; CONFIG comes next. The machine is over. */
  | { kind: 'accepted'; accept: AcceptMessage; secret: Uint8Array }
  /** Send `frame` if there is one, and close; `error` says why and by its code whether to try again. */
  | { kind: 'failed'; error: VpnError; code?: RejectCode; frame?: Uint8Array }
  /** The server has closed the connection with a reason. The machine is over. */
  | { kind: 'closed'; reason: CloseReason; message?: string };

type ClientState = 'idle' | 'opening' | 'asked' | 'answered' | 'over';

/** Whoever logs in at a page that a stranger names gives the login away: that is a secret, too. */
const SECRET_STEPS: ReadonlySet<StepKind> = new Set<StepKind>(['token', 'password', 'totp', 'oidc', 'ask']);
const ANSWERABLE_STEPS: ReadonlySet<string> = new Set<StepKind>([
  'device',
  'token',
  'password',
  'totp',
  'certificate',
  'oidc',
  'ask',
]);

/** The client's side, from the greeting to ACCEPT. */
export class LoginClient {
  readonly #options: LoginClientOptions;
  readonly #serverName: string;
  readonly #transcript: Transcript;
  #state: ClientState = 'idle';
  #steps: readonly Step[] = [];
  #nonce: Uint8Array | undefined;
  #attempt = 0;
  /** PINGs that have not been answered. */
  #pings = 0;

  constructor(options: LoginClientOptions) {
    this.#options = options;
    this.#serverName = options.serverName.toLowerCase();
    this.#transcript = new Transcript(options.primitives);
  }

  get over(): boolean {
    return this.#state === 'over';
  }

  /** The connection is gone: answers that still arrive are ignored. */
  stop(): void {
    this.#state = 'over';
  }

  /**
   * Takes the greeting line as received and opens the login.
   *
   * @throws {VpnError} ERR_GREETING, ERR_PROTOCOL_VERSION
   */
  start(greeting: Uint8Array): LoginClientOutput {
    if (this.#state !== 'idle') throw unasked('start', this.#state);
    this.#state = 'over';
    parseGreeting(greeting);
    const { purpose, user, device, features, client, networks = [] } = this.#options;
    const frame = encodeMessage('login', {
      version: PROTOCOL_VERSION,
      ...(user === undefined ? {} : { user: user.normalize('NFC') }),
      device: {
        id: device.id,
        algorithm: device.algorithm,
        ...(purpose === 'enrol' ? { publicKey: device.publicKey } : {}),
      },
      purpose,
      serverName: this.#serverName,
      features: [...features],
      client,
      ...(networks.length === 0 ? {} : { networks: [...networks] }),
    });
    this.#transcript.add(greeting, frame);
    this.#state = 'opening';
    return { kind: 'send', frame };
  }

  /**
   * Takes a control frame as received.
   *
   * @throws {VpnError} ERR_FRAME_STATE, ERR_MESSAGE_SYNTAX, ERR_MESSAGE_FIELD, ERR_FRAME_TOO_LONG
   */
  receive(type: number, payload: Uint8Array): LoginClientOutput {
    try {
      return this.#receive(type, payload);
    } catch (error) {
      this.#state = 'over';
      throw error;
    }
  }

  #receive(type: number, payload: Uint8Array): LoginClientOutput {
    const state = this.#state;
    if (state === 'idle' || state === 'over') throw wrongState(type, `while ${state}`);
    if (type === FrameType.close) {
      const { reason, message } = decodeMessage('close', payload);
      this.#state = 'over';
      return { kind: 'closed', reason, ...(message === undefined ? {} : { message }) };
    }
    if (type === FrameType.reject) {
      const { code, message } = decodeMessage('reject', payload);
      this.#state = 'over';
      return { kind: 'failed', error: rejectError(code, message), code };
    }
    if (type === FrameType.challenge && state !== 'asked') return this.#challenged(payload);
    if (type === FrameType.accept && state === 'answered') return this.#accepted(payload);
    if (type === FrameType.pong && this.#pings > 0) {
      this.#pings -= 1;
      return NOTHING;
    }
    throw wrongState(type, `while ${state}`);
  }

  #challenged(payload: Uint8Array): LoginClientOutput {
    const { nonce, steps, attempt } = decodeMessage('challenge', payload);
    if (attempt !== this.#attempt + 1) throw wrongField('challenge', 'attempt', `expected ${this.#attempt + 1}`);
    if (steps[0]?.kind !== 'device') throw wrongField('challenge', 'steps', 'expected "device" first');
    const previous = this.#nonce;
    if (previous !== undefined && this.#options.primitives.equal(previous, nonce)) {
      throw wrongField('challenge', 'nonce', 'the nonce has been used before');
    }
    this.#transcript.add(encodeFrame(FrameType.challenge, payload));
    for (const step of steps) checkStep(step);
    const known = steps.filter(isAnswerable);
    if (known.length < steps.length) {
      return this.#fail('ERR_AUTH_REJECTED', 'the server asks for a login step that this version does not know');
    }
    if (!this.#options.serverVerified && known.some((step) => SECRET_STEPS.has(step.kind))) {
      return this.#fail(
        'ERR_CERT_UNTRUSTED',
        'the server asks for a secret, but its certificate is not verified: nothing was sent',
      );
    }
    this.#steps = known;
    this.#nonce = nonce;
    this.#attempt = attempt;
    this.#state = 'asked';
    return { kind: 'answer', steps: known, signedBytes: this.#signedBytes(nonce), attempt };
  }

  #signedBytes(nonce: Uint8Array): Uint8Array {
    const { purpose, serverId, exporter, device } = this.#options;
    return deviceSignatureInput({
      purpose,
      serverName: this.#serverName,
      serverId,
      exporterAuth: exportKey(exporter, 'auth'),
      nonce,
      deviceId: device.id,
      transcript: this.#transcript.digest(),
    });
  }

  /**
   * Answers the challenge at hand.
   *
   * @throws {VpnError} ERR_INVARIANT where nothing was asked, or an answer is missing
   */
  answer(answers: LoginAnswers): LoginClientOutput {
    if (this.#state === 'over') return NOTHING;
    if (this.#state !== 'asked') throw unasked('answer', this.#state);
    const list = this.#steps.map(({ kind }) => ({ kind, value: answerOf(kind, answers) }));
    const frame = encodeMessage('answer', { answers: list });
    this.#transcript.add(frame);
    this.#state = 'answered';
    return { kind: 'send', frame };
  }

  /** Whether the server waits for what the user does at a provider: `ping` then shows that this end is still there. */
  get isAtProvider(): boolean {
    return this.#state === 'answered' && this.#steps.some(({ kind }) => kind === 'oidc');
  }

  /** A sign of life, while the user is at a provider. */
  ping(): LoginClientOutput {
    if (!this.isAtProvider) return NOTHING;
    this.#pings += 1;
    return { kind: 'send', frame: encodeFrame(FrameType.ping, new Uint8Array(0)) };
  }

  /** The user or the shell stops the login. */
  giveUp(): LoginClientOutput {
    if (this.#state === 'over') return NOTHING;
    return this.#fail('ERR_AUTH_REJECTED', 'the login was given up');
  }

  #accepted(payload: Uint8Array): LoginClientOutput {
    const accept = decodeMessage('accept', payload);
    if (accept.epoch !== 0) throw wrongField('accept', 'epoch', 'expected 0');
    const { device, features, primitives, exporter } = this.#options;
    if (!primitives.equal(accept.deviceId, device.id)) {
      throw wrongField('accept', 'deviceId', 'this is not the device that logged in');
    }
    if (!accept.features.every((name) => features.includes(name))) {
      throw wrongField('accept', 'features', 'the server uses a feature that was not offered');
    }
    if (features.includes(Feature.ethernet) && !accept.features.includes(Feature.ethernet)) {
      throw new VpnError('ERR_DEVICE_KIND', deviceKind(false));
    }
    this.#transcript.add(encodeFrame(FrameType.accept, payload));
    this.#state = 'over';
    return { kind: 'accepted', accept, secret: sessionSecret(exporter, this.#transcript.digest()) };
  }

  #fail(code: 'ERR_AUTH_REJECTED' | 'ERR_CERT_UNTRUSTED', why: string): LoginClientOutput {
    this.#state = 'over';
    return {
      kind: 'failed',
      error: new VpnError(code, why),
      frame: encodeMessage('close', { reason: 'peer_disconnect' }),
    };
  }
}

function deviceKind(bridges: boolean): string {
  return bridges
    ? 'this gateway bridges Ethernet: set device = "tap" under [tunnel] of the profile'
    : 'this gateway carries IP packets: leave out device = "tap" under [tunnel] of the profile';
}

function isAnswerable(step: Step): step is Step & { kind: StepKind } {
  return ANSWERABLE_STEPS.has(step.kind);
}

function answerOf(kind: string, answers: LoginAnswers): string {
  const value =
    kind === 'device'
      ? toBase64Url(answers.signature)
      : kind === 'token'
        ? answers.token && toBase64Url(answers.token)
        : kind === 'password'
          ? answers.password?.normalize('NFC')
          : kind === 'totp'
            ? answers.totp
            : kind === 'ask'
              ? answers.ask?.normalize('NFC')
              : '';
  if (value === undefined) throw new VpnError('ERR_INVARIANT', `no answer was given for the step "${kind}"`);
  return value;
}

interface ReadAnswers {
  signature: Uint8Array;
  token?: Uint8Array;
  password?: string;
  totp?: string;
  ask?: string;
}

/** All steps of the challenge, each once, in its order; anything else proves nothing. */
function readAnswers({ answers }: AnswerMessage, steps: readonly StepKind[]): ReadAnswers {
  if (answers.length !== steps.length || answers.some(({ kind }, index) => kind !== steps[index])) {
    throw wrongField('answer', 'answers', 'expected one answer for every step, in the order of the challenge');
  }
  const read: ReadAnswers = { signature: new Uint8Array(0) };
  for (const { kind, value } of answers) {
    if (kind === 'device') read.signature = answerBytes(kind, value, SIGNATURE_BYTES);
    else if (kind === 'token') read.token = answerBytes(kind, value, TOKEN_BYTES);
    else if (kind === 'password') read.password = value;
    else if (kind === 'totp') {
      if (!/^(?:[0-9]{6,8}|[a-z2-7]{16})$/.test(value)) {
        throw wrongField('answer', 'totp', 'expected 6 to 8 digits, or a recovery code');
      }
      read.totp = value;
    } else if (kind === 'ask') read.ask = value;
    else if (kind === 'oidc' && value !== '') throw wrongField('answer', 'oidc', 'expected nothing');
  }
  return read;
}

function answerBytes(kind: string, value: string, length: number): Uint8Array {
  const bytes = fromBase64Url(value);
  if (bytes?.length !== length) throw wrongField('answer', kind, `expected ${length} bytes as base64url`);
  return bytes;
}

/** What a person cannot do without. */
function checkStep({ kind, prompt, url, code, seconds }: Step): void {
  if (kind === 'ask' && prompt === undefined) throw wrongField('challenge', 'steps.prompt', 'a question has a text');
  if (kind === 'oidc' && (url === undefined || code === undefined || seconds === undefined)) {
    throw wrongField('challenge', 'steps', 'a login at a provider has an address, a code and a time');
  }
}

function checkDevice(primitives: Primitives, { purpose, device }: LoginMessage): void {
  if (device.publicKey === undefined) {
    if (purpose === 'enrol') throw wrongField('login', 'device.publicKey', 'an enrolment brings the public key');
  } else if (!primitives.equal(deviceIdOf(primitives, device.publicKey), device.id)) {
    throw wrongField('login', 'device.id', 'expected the first 16 bytes of SHA-256 of the public key');
  }
}

function wrongField(message: string, field: string, why: string): VpnError {
  return new VpnError('ERR_MESSAGE_FIELD', `${message}: ${field}: ${why}`, { details: { message, field } });
}

function wrongState(type: number, when: string): VpnError {
  return new VpnError('ERR_FRAME_STATE', `frame type 0x${type.toString(16).padStart(2, '0')} is not legal ${when}`, {
    details: { type },
  });
}

/** Our own shell answered what was not asked: no peer can cause this. */
function unasked(what: string, state: string): VpnError {
  return new VpnError('ERR_INVARIANT', `${what} was not asked for in state ${state}`);
}
