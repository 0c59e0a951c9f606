/**
 * One accepted connection: from the greeting, through login or attach, to its part in a session.
 *
 * Hides the order of things on a connection. It drives the login machine with frames and with auth's answers, and hands
 * frames to the session once there is one. Everything before that is hostile: the decoder caps what is read, the worker's
 * tick ends a connection that takes too long, and a failure costs only this connection.
 */

import { createHash } from 'node:crypto';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { LogFields, Logger } from '../../base/log.ts';
import { Feature } from '../../protocol/features.ts';
import { encodeGreeting, FrameDecoder, type FrameSink, FrameType } from '../../protocol/frame.ts';
import { type Exporter, exportKey, type Primitives } from '../../protocol/keys.ts';
import type { Liveness } from '../../protocol/liveness.ts';
import {
  asksPeople,
  type Challenge,
  type LoginFoundation,
  LoginServer,
  type LoginServerOutput,
  PROVIDER_SILENCE_SECONDS,
} from '../../protocol/login.ts';
import { type AttachMessage, type CloseReason, encodeMessage } from '../../protocol/messages.ts';
import { closeReasonOf, rejectCodeOf } from '../../protocol/reasons.ts';
import { ResumeServer, type ResumeServerOutput } from '../../protocol/resume.ts';
import type { HolderFacts } from '../../transport/certificate-facts.ts';
import type { Channel, ChannelFacts, ChannelHandler } from '../../transport/channel.ts';
import { formatEndpoint } from '../../transport/endpoint.ts';
import type { LogLimit } from '../../transport/log-limit.ts';
import type { PacketReceiver } from '../../transport/packet-link.ts';
import type { SlotConnection } from '../../transport/slot.ts';
import type { AuthPort, GrantedResume, LoginPeer, ResumedSession, SessionGrant } from '../ipc/ports.ts';
import type { Session } from './session.ts';

const EMPTY = new Uint8Array(0);
/** Of a name for people in a certificate. */
const MAX_NAME_LENGTH = 1024;
const UNREADABLE: HolderFacts = { names: { commonNames: [], emails: [], uris: [], upns: [] }, authority: '' };

/** What a connection needs of its worker. */
export interface ConnectionHost {
  readonly auth: AuthPort;
  readonly primitives: Primitives;
  /** What this machine offers in ACCEPT. */
  readonly features: readonly string[];
  /** Makes the session whose login this connection has just completed. */
  openSession(granted: SessionGrant, features: readonly string[], connection: Connection): Session;
  /** Takes over a session that has been resumed here and that another worker had. */
  adoptSession(resumed: ResumedSession, remote: string): Session;
  /** Log lines that peers without a session cause. */
  readonly strangers: LogLimit;
  findSession(key: string): Session | undefined;
  /** Monotonic milliseconds. */
  now(): number;
  /** ACCEPT and CONFIG have been sent. */
  sessionStarted(session: Session): void;
  /** The session has come over to this connection. */
  sessionResumed(session: Session, isChange: boolean): void;
  /** A data connection has been bound to its session. */
  dataAttached(): void;
  /** The connection came to nothing, for the worker's counters and bans. */
  refused(connection: Connection, code: string): void;
  /** The connection is gone. */
  connectionClosed(connection: Connection): void;
  /** Does something as soon as there is time for it: thousands of connections may end at once. */
  later(work: () => void): void;
}

/** How long a peer may take before it has a session. */
export interface StageLimits {
  /** From the greeting to its first message. */
  readonly helloSeconds: number;
  /** For each answer. */
  readonly stepSeconds: number;
  /** From the greeting to the verdict. */
  readonly loginSeconds: number;
  /** On top of the last two where a person has to type. */
  readonly answerSeconds: number;
}

/** RESUMED has been sent. */
interface Resumed {
  readonly resume: GrantedResume;
  readonly doneInput: Uint8Array;
  readonly epoch: number;
  readonly isRekey: boolean;
}

/** A connection and what it has become. */
export class Connection implements FrameSink, ChannelHandler, SlotConnection {
  target: Uint8Array = EMPTY;
  targetOffset = 0;
  /** Whether any byte has come since the worker's last tick. */
  heard = false;
  /** Kept by its session. */
  liveness: Liveness | undefined;
  readonly channel: Channel;
  readonly remote: string;
  readonly #host: ConnectionHost;
  readonly #log: Logger;
  readonly #decoder: FrameDecoder;
  readonly #peer: LoginPeer;
  readonly #exporter: Exporter;
  readonly #foundation: LoginFoundation;
  readonly #login: LoginServer;
  #resume: ResumeServer | undefined;
  /** RESUMED has been sent: only the proof of the next secret is taken. */
  #resumed: Resumed | undefined;
  #isConfirming = false;
  #session: Session | undefined;
  #receiver: PacketReceiver | undefined;
  /** Who has to speak next: the client with its first message or an answer, or we. */
  #stage: 'hello' | 'step' | 'verdict' = 'hello';
  #stageSince: number;
  readonly #openedAt: number;
  /** When a tick last found that something had come. */
  #heardAt: number;
  /** Somebody may have to type: the login takes longer than one between machines. */
  #isWaitingForPerson = false;
  /** Auth may keep something for an answer of the person. */
  #isWaitedFor = false;
  /** What a person who was sent to a provider may take on top of that. */
  #providerSeconds = 0;
  #isData = false;
  #isEnding = false;

  constructor(channel: Channel, binding: string, now: number, host: ConnectionHost, log: Logger) {
    this.channel = channel;
    this.#openedAt = now;
    this.#stageSince = now;
    this.#heardAt = now;
    this.#host = host;
    this.remote = formatEndpoint(channel.facts.remote);
    this.#log = log.child({ peer: this.remote });
    this.#decoder = new FrameDecoder(this, 'client');
    this.#exporter = (label, context) => channel.exporter(label, context);
    const certificate = certificateOf(channel.facts);
    this.#peer = {
      binding,
      remote: this.remote,
      serverId: channel.facts.serverId,
      ...(certificate === undefined ? {} : { certificate }),
    };
    this.#foundation = {
      primitives: host.primitives,
      exporter: this.#exporter,
      serverId: channel.facts.serverId,
      features: host.features,
    };
    this.#login = new LoginServer(this.#foundation);
  }

  /** The session this connection belongs to, once it does. */
  get session(): Session | undefined {
    return this.#session;
  }

  /** Whether it carries only data. */
  get isData(): boolean {
    return this.#isData;
  }

  /** Greets the client and starts to read. */
  start(): void {
    this.channel.sendControl(encodeGreeting());
    this.channel.start(this);
  }

  /** Says why and ends the connection. */
  close(reason: CloseReason, message?: string): void {
    this.#isEnding = true;
    this.channel.close(encodeMessage('close', { reason, ...(message === undefined ? {} : { message }) }));
  }

  hold(): void {
    this.channel.pause();
    this.#decoder.hold();
  }

  release(): void {
    this.channel.resume();
    try {
      this.#decoder.release();
    } catch (error) {
      this.fail(toVpnError(error));
    }
  }

  retire(): void {
    this.#receiver?.release();
    this.#receiver = undefined;
  }

  /** Ends the connection because of something the peer did or did not do. */
  fail(error: VpnError): void {
    if (this.#isEnding) return;
    this.#report(error.code, 'connection refused', { reason: error.message });
    this.#host.refused(this, error.code);
    this.close(closeReasonOf(error));
  }

  /** Ends the connection when a stage before its session has taken too long. */
  handleTick(now: number, { helloSeconds, stepSeconds, loginSeconds, answerSeconds }: StageLimits): void {
    if (this.#session !== undefined) return;
    if (this.heard) this.#heardAt = now;
    this.heard = false;
    const person = this.#isWaitingForPerson ? answerSeconds + this.#providerSeconds : 0;
    const check = (what: string, since: number, seconds: number): void => {
      if (now - since <= seconds * 1000) return;
      this.fail(
        new VpnError('ERR_STAGE_TIMEOUT', `expected ${what} within ${seconds} s; see limits in the configuration`),
      );
    };
    if (this.#stage === 'hello') check('the first message', this.#stageSince, helloSeconds);
    if (this.#stage === 'step') check('an answer', this.#stageSince, stepSeconds + person);
    check('the login', this.#openedAt, loginSeconds + person);
    // Before a client pings there may be something to type.
    const silence = Math.max(PROVIDER_SILENCE_SECONDS, answerSeconds);
    if (this.#providerSeconds > 0) check('a sign of life', this.#heardAt, silence);
  }

  bytes(chunk: Uint8Array): void {
    // What a superseded or revoked connection still sends goes nowhere.
    if (this.#isEnding) return;
    this.heard = true;
    try {
      this.#decoder.push(chunk);
    } catch (error) {
      this.#decoder.stop();
      this.fail(toVpnError(error));
    }
  }

  closed(error?: VpnError): void {
    this.#login.stop();
    this.#resume?.stop();
    this.#receiver?.release();
    this.#host.later(() => this.#afterClosed(error));
  }

  #afterClosed(error: VpnError | undefined): void {
    if (this.#session === undefined && this.#isWaitedFor) this.#host.auth.forget(this.#peer.binding);
    try {
      if (error === undefined && !this.#isEnding) this.#decoder.end();
    } catch (truncated) {
      const { code } = toVpnError(truncated);
      this.#report(code, 'connection broke off');
      this.#host.refused(this, code);
    }
    this.#session?.connectionClosed(this, error, this.#isEnding);
    this.#host.connectionClosed(this);
  }

  reserve(type: number, length: number, whole: boolean): void {
    const receiver = this.#receiver;
    if (receiver === undefined) {
      throw new VpnError('ERR_FRAME_STATE', 'a data frame came before the session was open, or after SWITCH');
    }
    receiver.reserve(type, length, whole);
    this.target = receiver.target;
    this.targetOffset = receiver.targetOffset;
  }

  data(type: number, length: number): void {
    this.#session?.dataArrived(this);
    this.#receiver?.data(type, length);
  }

  control(type: number, payload: Uint8Array): void {
    if (this.#session !== undefined) this.#session.control(this, type, payload);
    else if (this.#resumed !== undefined) this.#finishResume(this.#resumed, type, payload);
    else if (this.#resume !== undefined) this.#drive(this.#driveResume(this.#resume.receive(type, payload)));
    else this.#drive(this.#login.receive(type, payload));
  }

  idle(): void {
    this.#receiver?.idle();
  }

  unknown(_type: number): void {
    this.#session?.countUnknown();
  }

  #drive(output: LoginServerOutput): void {
    switch (output.kind) {
      case 'nothing':
        break;
      case 'send':
        this.channel.sendControl(output.frame);
        break;
      case 'challenge':
        this.#answer(async () => this.#ask(await this.#host.auth.challenge(output.request, this.#peer)));
        break;
      case 'verify':
        this.#answer(async () => {
          const verdict = await this.#host.auth.verify(output.evidence, this.#peer);
          if (verdict.accepted) return await this.#accept(verdict.session);
          if ('code' in verdict) return this.#login.reject(verdict.code, verdict.message);
          return this.#ask(verdict.challenge);
        });
        break;
      case 'attach':
        this.#answer(async () => await this.#attach(output.message));
        break;
      case 'resume':
        this.#startResume(output.payload);
        break;
      case 'rejected':
        this.#isEnding = true;
        this.#report(output.code, 'login refused');
        this.#host.refused(this, output.code);
        this.channel.close(output.frame);
        break;
      case 'accepted':
        throw new VpnError('ERR_INVARIANT', 'a login was accepted outside of #accept');
      case 'closed':
        this.#isEnding = true;
        this.channel.close();
        break;
    }
  }

  #startResume(payload: Uint8Array): void {
    const resume = new ResumeServer(this.#foundation, payload);
    this.#resume = resume;
    this.#answer(async () => {
      const output = this.#driveResume(resume.challenge(await this.#host.auth.challengeResume(this.#peer)));
      this.#enter('step');
      return output;
    });
  }

  /** Answers a resume as a login is answered, as far as both are alike. */
  #driveResume(output: ResumeServerOutput): LoginServerOutput {
    if (output.kind === 'resumed') throw new VpnError('ERR_INVARIANT', 'a resume was accepted without a verdict');
    if (output.kind !== 'verify') return output;
    this.#answer(async () => {
      const verdict = await this.#host.auth.resume(output.evidence, this.#peer);
      if (!verdict.accepted) return this.#driveResume(this.#resume?.reject(verdict.code) ?? { kind: 'nothing' });
      return await this.#grantResume(verdict.resume, verdict.features);
    });
    return { kind: 'nothing' };
  }

  async #grantResume(resume: GrantedResume, features: readonly string[]): Promise<LoginServerOutput> {
    const output = this.#resume?.accept(resume.grant, offeredTo(features.includes(Feature.compression), this.#host));
    if (output?.kind !== 'resumed') return { kind: 'nothing' };
    // Its packets are in the form that was agreed on before.
    if (!features.includes(Feature.resume) || features.join() !== output.resumed.features.join()) {
      return this.#login.reject('session_unknown');
    }
    await this.#host.auth.proposeResume(resume, output.mix);
    if (this.channel.isClosed) return { kind: 'nothing' };
    const { doneInput, resumed } = output;
    this.#resumed = { resume, doneInput, epoch: resumed.epoch, isRekey: this.#resume?.isRekey === true };
    this.#login.stop();
    this.#decoder.setPhase('session');
    this.channel.sendControl(output.frame);
    this.#enter('step');
    return { kind: 'nothing' };
  }

  /** @throws {VpnError} ERR_FRAME_STATE */
  #finishResume(resumed: Resumed, type: number, payload: Uint8Array) {
    if (type === FrameType.close) {
      this.#isEnding = true;
      this.channel.close();
      return;
    }
    if (type !== FrameType.resumeDone || this.#isConfirming) {
      throw new VpnError('ERR_FRAME_STATE', `frame type ${type} has no place before the resume is done`, {
        details: { type },
      });
    }
    this.#isConfirming = true;
    this.#enter('verdict');
    const { resume, doneInput } = resumed;
    const confirmation = { key: resume.key, attempt: resume.attempt, doneInput, payload: new Uint8Array(payload) };
    this.#host.auth.confirmResume(confirmation, this.#peer).then(
      (adopted) => this.#takeOver(resumed, adopted),
      (cause: unknown) => {
        const error = toVpnError(cause);
        this.#report(error.code, 'resume not confirmed', { session: resume.key.slice(0, 8), reason: error.message });
        this.#host.refused(this, error.code);
        if (!this.channel.isClosed) this.close(closeReasonOfResume(error));
      },
    );
  }

  #takeOver({ resume, epoch, isRekey }: Resumed, adopted: ResumedSession): void {
    const session = this.#host.findSession(resume.key) ?? this.#host.adoptSession(adopted, this.remote);
    this.#join(session, 'session');
    this.#resume = undefined;
    this.#resumed = undefined;
    const isChange = session.resume(this, epoch, isRekey);
    this.#host.sessionResumed(session, isChange);
    const { shortId, user, granted } = session;
    const fields = { session: shortId, user, device: granted.device };
    if (isChange) this.#log.debug('session changed its control connection', fields);
    else this.#log.info('session resumed', fields);
    // It may have been lost while its proof was checked.
    if (this.channel.isClosed) session.connectionClosed(this, undefined, false);
  }

  #enter(stage: 'step' | 'verdict'): void {
    this.#stage = stage;
    this.#stageSince = this.#host.now();
  }

  #ask(challenge: Challenge): LoginServerOutput {
    this.#enter('step');
    this.#isWaitingForPerson = asksPeople(challenge.steps);
    this.#isWaitedFor ||= this.#isWaitingForPerson;
    if (this.#isWaitedFor && this.channel.isClosed) this.#host.auth.forget(this.#peer.binding);
    this.#providerSeconds = Math.max(0, ...challenge.steps.map(({ seconds = 0 }) => seconds));
    return this.#login.challenge(challenge);
  }

  /** A stranger's mistakes are told at a bounded rate, those within a session each. */
  #report(code: string, message: string, fields: LogFields = {}): void {
    if (this.#session !== undefined) this.#log.info(message, { code, ...fields });
    else this.#host.strangers.write('info', code, message, { peer: this.remote, code, ...fields });
  }

  /** Does what auth is needed for and goes on with its answer. */
  #answer(ask: () => Promise<LoginServerOutput>): void {
    this.#enter('verdict');
    const drive = (output: LoginServerOutput): void => {
      try {
        this.#drive(output);
      } catch (error) {
        this.fail(toVpnError(error));
      }
    };
    ask().then(drive, (cause: unknown) => {
      const error = toVpnError(cause);
      if (error.kind === 'auth' || error.kind === 'resource') {
        const code = rejectCodeOf(error);
        drive({ kind: 'rejected', code, frame: encodeMessage('reject', { code, message: '' }) });
      } else {
        // Not the client's fault: it is not told that its login is worthless, and may come again.
        this.#log.error('a login could not be judged', { error });
        this.fail(error);
      }
    });
  }

  /**
   * The session stands in the worker's tables before anything is waited for, so that whoever ends it in the meantime (a
   * revocation, the same device elsewhere, the loss of this connection) finds it.
   */
  async #accept(granted: SessionGrant): Promise<LoginServerOutput> {
    const output = this.#login.accept(granted.grant, offeredTo(granted.compression === true, this.#host));
    if (output.kind !== 'accepted') {
      await this.#host.auth.end(granted.key, 'peer_disconnect');
      return output;
    }
    const session = this.#host.openSession(granted, output.accept.features, this);
    this.#session = session;
    this.#receiver = session.link.createReceiver();
    try {
      await this.#host.auth.establish(granted.key, output.secret, output.accept.features);
    } catch (cause) {
      const error = toVpnError(cause);
      this.#log.warn('session not opened', { session: session.shortId, code: error.code, reason: error.message });
      session.close(error.code === 'ERR_AUTH_REJECTED' ? 'revoked' : closeReasonOf(error));
    }
    this.#login.stop();
    if (session.isClosed) return { kind: 'nothing' };
    this.#decoder.setPhase('session');
    session.start(output.frame);
    this.#host.sessionStarted(session);
    this.#log.info('session opened', { session: session.shortId, user: session.user, device: granted.device });
    return { kind: 'nothing' };
  }

  async #attach(message: AttachMessage): Promise<LoginServerOutput> {
    const exported = exportKey(this.#exporter, 'attach', message.session);
    const verdict = await this.#host.auth.attach({ message, exported }, this.#peer);
    if (!verdict.accepted) {
      return 'movedTo' in verdict ? this.#moved(verdict.movedTo) : this.#login.reject(verdict.code);
    }
    const session = this.#host.findSession(verdict.key);
    // One that waits for its client has another secret when it comes.
    if (session === undefined || session.isDetached) return this.#login.reject('session_unknown');
    if (this.channel.isClosed) return { kind: 'nothing' };
    this.#login.stop();
    this.#isData = true;
    this.channel.sendControl(verdict.attached.frame);
    this.#join(session, 'data');
    session.attach(this, verdict.attached.slot, verdict.attached.generation);
    this.#host.dataAttached();
    return { kind: 'nothing' };
  }

  /** The client dials again, and then says whom it wants. */
  #moved(worker: number): LoginServerOutput {
    this.#login.stop();
    this.#isEnding = true;
    this.channel.close(encodeMessage('moved', { worker }));
    return { kind: 'nothing' };
  }

  #join(session: Session, phase: 'session' | 'data'): void {
    this.#session = session;
    this.#receiver = session.link.createReceiver();
    this.#decoder.setPhase(phase);
  }
}

/** Compression is offered only to those whom the policy lets have it. */
function offeredTo(mayCompress: boolean, { features }: ConnectionHost): readonly string[] {
  return mayCompress ? features : features.filter((name) => name !== Feature.compression);
}

/** A certificate whose holder cannot be read stands for nobody. */
function certificateOf({ authorized, peerCertificate }: ChannelFacts): LoginPeer['certificate'] {
  if (!authorized || peerCertificate === undefined) return undefined;
  const { name, serial, issuer, notAfter, holder = UNREADABLE } = peerCertificate;
  return { name: inShort(name), serial, issuer: inShort(issuer), notAfter, ...holder };
}

/** As it is up to a length; beyond that different names stay different. */
function inShort(name: string): string {
  if (name.length <= MAX_NAME_LENGTH) return name;
  const hash = createHash('sha256').update(name).digest('hex');
  return `${name.slice(0, MAX_NAME_LENGTH - hash.length)}${hash}`;
}

function closeReasonOfResume(error: VpnError): CloseReason {
  if (error.code === 'ERR_RESUME_PROOF') return 'protocol_error';
  return error.code === 'ERR_AUTH_REJECTED' ? 'revoked' : closeReasonOf(error);
}
