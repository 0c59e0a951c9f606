/**
 * One session with a gateway, from the greeting to its end.
 *
 * Hides the connections: a control connection that logs in and stays, and a data connection bound to the session by mutual
 * proof, or data inline. Its owner gives it a way to dial, answers for the device, and learns one thing: how it ended.
 * Reconnecting is the owner's business, who keeps what it takes to resume the session in the meantime.
 */

import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type IpAddress, parseIp } from '../ip/address.ts';
import { AttachClient, MAX_MOVES } from '../protocol/attach.ts';
import { type AcceptedConfig, type ClientLimits, checkConfig, type RefusedItem } from '../protocol/config-check.ts';
import { Feature } from '../protocol/features.ts';
import { encodeFrame, FrameDecoder, type FrameSink, FrameType, MAX_PACKET_PAYLOAD_BYTES } from '../protocol/frame.ts';
import { attachKey, type Exporter, type Primitives } from '../protocol/keys.ts';
import { Liveness } from '../protocol/liveness.ts';
import {
  type LoginAnswers,
  LoginClient,
  type LoginClientOutput,
  PROVIDER_PING_SECONDS,
  PROVIDER_SILENCE_SECONDS,
  TOKEN_BYTES,
} from '../protocol/login.ts';
import {
  type AcceptMessage,
  type CloseReason,
  type ConfigMessage,
  decodeMessage,
  encodeMessage,
  fromBase64Url,
} from '../protocol/messages.ts';
import { closeReasonOf, recoveryAfterClose, recoveryAfterError } from '../protocol/reasons.ts';
import { ResumeClient, type ResumeClientOutput } from '../protocol/resume.ts';
import type { Channel, ChannelHandler } from '../transport/channel.ts';
import type { PacketLink, PacketReceiver } from '../transport/packet-link.ts';
import type { DeviceKey } from './device-key.ts';

const EMPTY = new Uint8Array(0);
const TICK_MS = 1000;
const LOGIN_TIMEOUT_MS = 30_000;
const ATTACH_TIMEOUT_MS = 10_000;
/** A data connection that lives shorter is not worth another. */
const REATTACH_AFTER_MS = 10_000;
/** How much later than on the data connection the end of a session may be told on the control connection. */
const END_DELAY_MS = 1000;
/** The server returns echoes through a bounded queue; more in flight could overflow it. */
const MAX_ECHO_BYTES_IN_FLIGHT = 256 * 1024;
const STEP_WORDS: Readonly<Record<AskedStep['kind'], string>> = {
  password: 'a password',
  totp: 'a one-time code',
  token: 'an access token',
  oidc: 'a login at an identity provider',
  ask: 'an answer',
};

export interface ClientSessionOptions {
  /** Opens a connection to the gateway; a data connection names the worker that its session belongs to. */
  dial: (worker?: number) => Promise<Channel>;
  device: DeviceKey;
  /** The one-time token of a profile: enrols the device. */
  token?: Uint8Array | undefined;
  user?: string | undefined;
  /** The server does not know the device yet: it is brought in by the token, or by what is answered. */
  enrol: boolean;
  /** Answers the steps that a person or machine has to; without it they fail. */
  answer?: AnswerSteps | undefined;
  /** The name that was verified, as dialled. */
  serverName: string;
  serverVerified: boolean;
  features: readonly string[];
  limits: ClientLimits;
  version: string;
  primitives: Primitives;
  /** Monotonic milliseconds. */
  now: () => number;
  /** Calls the login off. */
  signal: AbortSignal;
  log: Logger;
  /** Resumes this session in place of a login. */
  resume?: ResumeTicket | undefined;
  /** Told what the session can be resumed with from now on; undefined: not at all. */
  keep: (ticket: ResumeTicket | undefined) => void;
  /** Makes the tunnel ready for this configuration: device, addresses, routes. Without a link no packets are carried. */
  openLink: (config: AcceptedConfig, accepted: AcceptMessage) => Promise<PacketLink | undefined>;
}

/** What it takes to resume a session. Secret. */
export interface ResumeTicket {
  /** As it was sent, with the epoch and times of the last resume. */
  readonly accept: AcceptMessage;
  /** S(epoch) */
  readonly secret: Uint8Array;
}

/** A step of a login that the client's keys do not answer. */
export interface AskedStep {
  /** `oidc` is only shown: the person logs in elsewhere, and the answer to the server need not wait for that. */
  readonly kind: 'password' | 'totp' | 'token' | 'oidc' | 'ask';
  /** What the server would have the person read. */
  readonly prompt?: string;
  /** Whether the answer may be seen while it is typed. */
  readonly echo?: boolean;
  /** Of `oidc`: where the person logs in, */
  readonly url?: string;
  /** what is to be compared or typed there, */
  readonly code?: string;
  /** and how long that may take. */
  readonly seconds?: number;
}

/** What was answered; `token` is an access token as it was shown when it was made. */
export interface StepAnswers {
  readonly password?: string;
  readonly totp?: string;
  readonly token?: string;
  readonly ask?: string;
}

/** Called once a round of a login, outside of any packet. What it throws ends the login with that error. */
export type AnswerSteps = (steps: readonly AskedStep[], signal: AbortSignal) => Promise<StepAnswers>;

/** How a session ended: with an error, or with the reason the server gave. */
export interface SessionEnd {
  readonly error?: VpnError;
  readonly reason?: CloseReason;
}

interface PendingEcho {
  readonly bytes: number;
  resolve(payload: Uint8Array): void;
  reject(error: VpnError): void;
}

export class ClientSession {
  readonly accepted: AcceptMessage;
  readonly channel: Channel;
  readonly #options: ClientSessionOptions;
  readonly #control: ServerConnection;
  readonly #attachKey: Uint8Array;
  readonly #limits: ClientLimits;
  readonly #liveness: Liveness;
  readonly #tick: NodeJS.Timeout;
  readonly #ended = Promise.withResolvers<SessionEnd>();
  readonly #echoes: PendingEcho[] = [];
  #echoBytes = 0;
  #config: AcceptedConfig;
  #refused: readonly RefusedItem[];
  #link: PacketLink | undefined;
  #data: ServerConnection | undefined;
  #generation = 0;
  #reattachedAt = Number.NEGATIVE_INFINITY;
  #isOver = false;

  /** Logs in and makes the tunnel ready; resolves when packets can flow. @throws {VpnError} whatever stopped it */
  static async open(options: ClientSessionOptions): Promise<ClientSession> {
    const channel = await options.dial();
    const control = new ServerConnection(channel);
    const callOff = (): void => control.fail(new VpnError('ERR_CONNECT', 'connecting was called off'));
    options.signal.addEventListener('abort', callOff, { once: true });
    try {
      if (options.signal.aborted) callOff();
      const login = await (options.resume === undefined
        ? logIn(control, options)
        : resume(control, options, options.resume));
      const { accept, secret } = login;
      options.keep(accept.features.includes(Feature.resume) ? { accept, secret } : undefined);
      const session = new ClientSession(options, control, login);
      await session.#start();
      return session;
    } catch (error) {
      control.fail(toVpnError(error));
      throw error;
    } finally {
      options.signal.removeEventListener('abort', callOff);
    }
  }

  private constructor(options: ClientSessionOptions, control: ServerConnection, login: LoginResult) {
    this.#options = options;
    this.#control = control;
    this.channel = control.channel;
    this.accepted = login.accept;
    this.#attachKey = attachKey(options.primitives, login.secret);
    this.#limits = { ...options.limits, outside: [...options.limits.outside, ...outerAddresses(this.channel)] };
    const { accepted, refused } = checkConfig(login.config, this.#limits);
    this.#config = accepted;
    this.#refused = refused;
    this.#liveness = new Liveness(accepted.ping, options.now());
    this.#tick = setInterval(() => this.#handleTick(), TICK_MS);
    this.#tick.unref();
    control.onControl = (type, payload) => this.#receive(control, type, payload);
    control.onClosed = (error) => this.#end(error === undefined ? {} : { error });
    for (const frame of login.early) this.#receive(control, frame.type, frame.payload);
  }

  /** Resolves when the session is over; never rejects. */
  get ended(): Promise<SessionEnd> {
    return this.#ended.promise;
  }

  get config(): AcceptedConfig {
    return this.#config;
  }

  /** What the server pushed and this client does not use. */
  get refused(): readonly RefusedItem[] {
    return this.#refused;
  }

  get link(): PacketLink | undefined {
    return this.#link;
  }

  /** Data connections; 0 when data flows inline. */
  get dataChannels(): number {
    return this.#data === undefined ? 0 : 1;
  }

  get roundTripMs(): number | undefined {
    return this.#liveness.roundTripMs;
  }

  /**
   * Sends a payload that the server returns.
   *
   * @throws {VpnError} ERR_FRAME_TOO_LONG, ERR_BUSY (too much in flight), ERR_PEER_GONE
   */
  echo(payload: Uint8Array): Promise<Uint8Array> {
    if (payload.length > MAX_PACKET_PAYLOAD_BYTES) {
      throw new VpnError(
        'ERR_FRAME_TOO_LONG',
        `an echo has at most ${MAX_PACKET_PAYLOAD_BYTES} bytes, got ${payload.length}`,
      );
    }
    if (this.#isOver) throw new VpnError('ERR_PEER_GONE', 'the session is over');
    if (this.#echoBytes + payload.length > MAX_ECHO_BYTES_IN_FLIGHT) {
      throw new VpnError('ERR_BUSY', 'more than 256 KiB of echoes are in flight; wait for one to return');
    }
    this.#echoBytes += payload.length;
    const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
    this.#echoes.push({ bytes: payload.length, resolve, reject });
    this.channel.sendControl(encodeFrame(FrameType.echo, payload));
    return promise;
  }

  /** Tells the server and ends the session. */
  close(reason: CloseReason = 'peer_disconnect'): void {
    if (this.#isOver) return;
    this.#control.close(reason);
    this.#end({});
  }

  async #start(): Promise<void> {
    // The second handshake runs while the machine is being set up.
    const isAttached = this.#config.data.mode === 'attached' && this.accepted.features.includes(Feature.attach);
    const attached = isAttached ? this.#attach() : Promise.resolve(undefined);
    attached.catch(() => {});
    this.#link = await this.#options.openLink(this.#config, this.accepted);
    try {
      await attached;
    } catch (error) {
      // A session that is gone says why on its control connection.
      if (!this.#isOver && !isVpnError(error, 'ERR_SESSION_UNKNOWN')) throw error;
      throw await withTimeout(this.ended, END_DELAY_MS, 'the server did not say why').then(endError, () => error);
    }
    if (this.#isOver) throw endError(await this.ended);
    if (this.#link !== undefined) {
      this.#control.receiver = this.#link.createReceiver();
      if (this.#data !== undefined) this.#data.receiver = this.#link.createReceiver();
      this.#link.channel = (this.#data ?? this.#control).channel;
    }
  }

  /** Dials the data connection and proves that it belongs here; after two MOVEDs data goes inline. */
  async #attach(): Promise<void> {
    let hint = this.accepted.worker;
    for (let move = 0; move < MAX_MOVES; move++) {
      const connection = new ServerConnection(await this.#options.dial(hint));
      try {
        const moved = await withTimeout(
          this.#prove(connection),
          ATTACH_TIMEOUT_MS,
          'the server did not answer an ATTACH',
        );
        if (moved === undefined) {
          if (this.#isOver) connection.close('peer_disconnect');
          else this.#adopt(connection);
          return;
        }
        hint = moved;
        connection.close('peer_disconnect');
      } catch (error) {
        connection.fail(toVpnError(error));
        throw error;
      }
    }
    this.#options.log.warn('the data connection was moved too often; data goes over the control connection');
    if (this.#link !== undefined) this.#link.channel = this.#control.channel;
  }

  /** Resolves with undefined when attached, or with the worker that owns the session. */
  async #prove(connection: ServerConnection): Promise<number | undefined> {
    const { primitives } = this.#options;
    const attach = new AttachClient({
      primitives,
      exporter: connection.exporter,
      session: this.accepted.session,
      epoch: this.accepted.epoch,
      key: this.#attachKey,
      slot: 0,
      generation: this.#generation++,
    });
    const done = Promise.withResolvers<number | undefined>();
    connection.onGreeting = () => connection.channel.sendControl(attach.start());
    connection.onControl = (type, payload) => {
      const output = attach.receive(type, payload);
      switch (output.kind) {
        case 'attached':
          connection.setPhase('data');
          done.resolve(undefined);
          break;
        case 'moved':
          done.resolve(output.worker);
          break;
        case 'failed':
          done.reject(output.error);
          break;
        case 'closed':
          done.reject(new VpnError('ERR_PEER_GONE', `the server closed the data connection: ${output.reason}`));
          break;
      }
    };
    connection.onClosed = (error) =>
      done.reject(error ?? new VpnError('ERR_PEER_GONE', 'the data connection was closed'));
    connection.start();
    return await done.promise;
  }

  #adopt(connection: ServerConnection): void {
    this.#data = connection;
    connection.onControl = (type, payload) => this.#receive(connection, type, payload);
    connection.onClosed = (error) => {
      if (this.#data !== connection) return;
      this.#data = undefined;
      if (this.#link !== undefined) this.#link.channel = undefined;
      if (!this.#isOver) this.#reattach(error);
    };
    if (this.#link !== undefined) {
      connection.receiver = this.#link.createReceiver();
      this.#link.channel = connection.channel;
    }
  }

  /** A lost data connection does not end the session; one that is lost again at once does, so that the backoff applies. */
  #reattach(error: VpnError | undefined): void {
    const now = this.#options.now();
    if (now - this.#reattachedAt < REATTACH_AFTER_MS) {
      const failure = error ?? new VpnError('ERR_PEER_GONE', 'the data connection was lost again at once');
      this.#control.fail(failure);
      this.#end({ error: failure });
      return;
    }
    this.#reattachedAt = now;
    this.#options.log.info('the data connection was lost; dialling another', { code: error?.code });
    this.#attach().catch((cause: unknown) => {
      const failure = toVpnError(cause);
      this.#control.fail(failure);
      this.#end({ error: failure });
    });
  }

  #receive(connection: ServerConnection, type: number, payload: Uint8Array): void {
    switch (type) {
      case FrameType.ping:
        connection.channel.sendControl(encodeFrame(FrameType.pong, payload));
        break;
      case FrameType.pong:
        this.#liveness.pong(payload, this.#options.now());
        break;
      case FrameType.echo: {
        const echo = this.#echoes.shift();
        if (echo === undefined) break;
        this.#echoBytes -= echo.bytes;
        // Not `slice()`: a Node Buffer's is a view of memory that is used again.
        echo.resolve(new Uint8Array(payload));
        break;
      }
      case FrameType.config:
        this.#reconfigure(payload);
        break;
      case FrameType.close: {
        const { reason } = decodeMessage('close', payload);
        connection.channel.close();
        if (connection === this.#control) this.#end({ reason });
        break;
      }
    }
  }

  #reconfigure(payload: Uint8Array): void {
    const { accepted, refused } = checkConfig(decodeMessage('config', payload), this.#limits);
    this.#options.openLink(accepted, this.accepted).then(
      () => {
        this.#config = accepted;
        this.#refused = refused;
      },
      (cause: unknown) => {
        // Addresses or routes may be missing now: a tunnel in that state must not look like one that works.
        const error = toVpnError(cause);
        this.#options.log.error('the pushed configuration could not be applied; connecting anew', { error });
        this.#control.fail(error);
        this.#end({
          error: new VpnError('ERR_PEER_GONE', `a pushed configuration failed: ${error.message}`, { cause }),
        });
      },
    );
  }

  #handleTick(): void {
    const now = this.#options.now();
    if (this.#control.heard || this.#data?.heard === true) {
      this.#control.heard = false;
      if (this.#data !== undefined) this.#data.heard = false;
      this.#liveness.received(now);
    }
    const due = this.#liveness.handleTimeout(now);
    if (due === 'ping') {
      this.channel.sendControl(encodeFrame(FrameType.ping, this.#liveness.pingPayload(now)));
    } else if (due === 'dead') {
      const error = new VpnError('ERR_PEER_GONE', 'the server has not answered for too long');
      this.#control.fail(error);
      this.#end({ error });
    }
  }

  #end(end: SessionEnd): void {
    if (this.#isOver) return;
    this.#isOver = true;
    clearInterval(this.#tick);
    if (this.#link !== undefined) this.#link.channel = undefined;
    this.#data?.close('peer_disconnect');
    const gone = new VpnError('ERR_PEER_GONE', 'the session ended before the echo returned');
    for (const echo of this.#echoes.splice(0)) echo.reject(gone);
    this.#ended.resolve(end);
  }
}

interface LoginResult {
  accept: AcceptMessage;
  secret: Uint8Array;
  config: ConfigMessage;
  /** Frames that came in one piece with CONFIG. */
  early: { type: number; payload: Uint8Array }[];
}

/** Drives the login machine over a fresh connection until CONFIG has come. */
async function logIn(connection: ServerConnection, options: ClientSessionOptions): Promise<LoginResult> {
  const { device, user, primitives } = options;
  const done = Promise.withResolvers<LoginResult>();
  // Stands still while a person types: the server has a deadline of its own for that.
  const deadline = new Deadline(LOGIN_TIMEOUT_MS, () => {
    done.reject(new VpnError('ERR_STAGE_TIMEOUT', 'the server did not finish the login in time'));
  });
  const login = new LoginClient({
    primitives,
    exporter: connection.exporter,
    serverId: connection.channel.facts.serverId,
    features: options.features,
    purpose: options.enrol ? 'enrol' : 'login',
    serverName: options.serverName,
    serverVerified: options.serverVerified,
    device: { id: device.id, algorithm: device.algorithm, publicKey: device.publicKey },
    ...(user === undefined ? {} : { user }),
    client: { name: 'customvpn', version: options.version, platform: process.platform },
  });
  let accepted: { accept: AcceptMessage; secret: Uint8Array } | undefined;
  let result: LoginResult | undefined;
  let silentBeats = 0;

  const drive = (output: LoginClientOutput): void => {
    switch (output.kind) {
      case 'nothing':
        break;
      case 'send':
        connection.channel.sendControl(output.frame);
        break;
      case 'answer':
        deadline.stop();
        answersOf(output, options)
          .then((answers) => {
            // A person at a provider takes longer; the server knows how long.
            deadline.start(Math.max(0, ...output.steps.map(({ seconds = 0 }) => seconds)) * 1000);
            drive(login.answer(answers));
          })
          .catch((error: unknown) => {
            done.reject(toVpnError(error));
            const end = login.giveUp();
            if (end.kind === 'failed' && end.frame !== undefined) connection.channel.sendControl(end.frame);
          });
        break;
      case 'accepted':
        connection.setPhase('session');
        accepted = output;
        break;
      case 'failed':
        if (output.frame !== undefined) connection.channel.sendControl(output.frame);
        done.reject(output.error);
        break;
      case 'closed':
        done.reject(closedError(output.reason, 'the server closed the connection during the login'));
        break;
    }
  };
  connection.onGreeting = (line) => drive(login.start(line));
  connection.onControl = (type, payload) => {
    if (accepted === undefined) drive(login.receive(type, payload));
    else if (result !== undefined) result.early.push({ type, payload: new Uint8Array(payload) });
    else if (type === FrameType.config) {
      result = { ...accepted, config: decodeMessage('config', payload), early: [] };
      done.resolve(result);
    } else if (type === FrameType.close) {
      done.reject(closedError(decodeMessage('close', payload).reason));
    } else
      throw new VpnError('ERR_FRAME_STATE', `frame type ${type} came where CONFIG was expected`, { details: { type } });
  };
  connection.onClosed = (error) => {
    login.stop();
    done.reject(error ?? new VpnError('ERR_PEER_GONE', 'the server closed the connection during the login'));
  };
  connection.start();
  deadline.start();
  const heartbeat = setInterval(() => {
    silentBeats = connection.heard || !login.isAtProvider ? 0 : silentBeats + 1;
    connection.heard = false;
    if (silentBeats * PROVIDER_PING_SECONDS > PROVIDER_SILENCE_SECONDS) {
      done.reject(new VpnError('ERR_PEER_GONE', 'the server has not been heard of during the login'));
    } else drive(login.ping());
  }, PROVIDER_PING_SECONDS * 1000);
  try {
    return await done.promise;
  } finally {
    clearInterval(heartbeat);
    deadline.stop();
  }
}

/** Drives the resume machine over a fresh connection until CONFIG has come. */
async function resume(
  connection: ServerConnection,
  options: ClientSessionOptions,
  { accept, secret }: ResumeTicket,
): Promise<LoginResult> {
  const { device, primitives } = options;
  const done = Promise.withResolvers<LoginResult>();
  const deadline = new Deadline(LOGIN_TIMEOUT_MS, () => {
    done.reject(new VpnError('ERR_STAGE_TIMEOUT', 'the server did not finish the resume in time'));
  });
  const machine = new ResumeClient({
    primitives,
    exporter: connection.exporter,
    serverId: connection.channel.facts.serverId,
    features: options.features,
    session: accept.session,
    epoch: accept.epoch,
    secret,
    serverName: options.serverName,
    device: { id: device.id, algorithm: device.algorithm, publicKey: device.publicKey },
  });
  let ticket: ResumeTicket | undefined;
  let result: LoginResult | undefined;

  const drive = (output: ResumeClientOutput): void => {
    switch (output.kind) {
      case 'nothing':
        break;
      case 'send':
        connection.channel.sendControl(output.frame);
        break;
      case 'answer':
        drive(machine.answer(device.sign(output.signedBytes)));
        break;
      case 'resumed': {
        const { proof: _, ...resumed } = output.resumed;
        ticket = { accept: { ...accept, ...resumed }, secret: output.secret };
        // The server may have the proof although its answer is lost.
        options.keep(ticket);
        connection.setPhase('session');
        connection.channel.sendControl(output.frame);
        break;
      }
      case 'failed':
        if (recoveryAfterError(output.error) === 'final' || output.code === 'session_unknown') options.keep(undefined);
        done.reject(output.error);
        break;
      case 'closed':
        done.reject(closedError(output.reason, 'the server closed the connection during the resume'));
        break;
    }
  };
  connection.onGreeting = (line) => drive(machine.start(line));
  connection.onControl = (type, payload) => {
    if (ticket === undefined) drive(machine.receive(type, payload));
    else if (result !== undefined) result.early.push({ type, payload: new Uint8Array(payload) });
    else if (type === FrameType.config) {
      result = { ...ticket, config: decodeMessage('config', payload), early: [] };
      done.resolve(result);
    } else if (type === FrameType.close) done.reject(closedError(decodeMessage('close', payload).reason));
    else
      throw new VpnError('ERR_FRAME_STATE', `frame type ${type} came where CONFIG was expected`, { details: { type } });
  };
  connection.onClosed = (error) => {
    machine.stop();
    done.reject(error ?? new VpnError('ERR_PEER_GONE', 'the server closed the connection during the resume'));
  };
  connection.start();
  deadline.start();
  try {
    return await done.promise;
  } finally {
    deadline.stop();
  }
}

/** Signs for the device and has the rest answered. @throws {VpnError} ERR_AUTH_NEEDED when nobody can answer */
async function answersOf(
  { steps, signedBytes }: Extract<LoginClientOutput, { kind: 'answer' }>,
  { device, token, enrol, answer, signal }: ClientSessionOptions,
): Promise<LoginAnswers> {
  const asked = steps.flatMap((step): AskedStep[] => {
    const { kind } = step;
    const isAsked =
      kind === 'password' ||
      kind === 'totp' ||
      kind === 'oidc' ||
      kind === 'ask' ||
      (kind === 'token' && token === undefined);
    return isAsked ? [{ ...step, kind }] : [];
  });
  const signature = device.sign(signedBytes);
  if (enrol && asked.some(({ kind }) => kind === 'token')) {
    throw new VpnError(
      'ERR_AUTH_REJECTED',
      'this machine is not enrolled, and the profile has no enrolment token any more; ask for a new profile',
    );
  }
  if (asked.length === 0) return { signature, ...(token === undefined ? {} : { token }) };
  if (answer === undefined) {
    const kinds = asked.map(({ kind }) => STEP_WORDS[kind]).join(' and ');
    throw new VpnError(
      'ERR_AUTH_NEEDED',
      `the login asks for ${kinds}; run in a terminal: customvpn client up PROFILE`,
    );
  }
  const { password, totp, token: text, ask } = await answer(asked, signal);
  const accessToken = text === undefined ? token : fromBase64Url(text.trim());
  if (text !== undefined && accessToken?.length !== TOKEN_BYTES) {
    throw new VpnError(
      'ERR_USAGE',
      'this is no access token: expected the 54 characters that were shown when it was made',
    );
  }
  return {
    signature,
    ...(accessToken === undefined ? {} : { token: accessToken }),
    ...(password === undefined ? {} : { password }),
    ...(totp === undefined ? {} : { totp }),
    ...(ask === undefined ? {} : { ask }),
  };
}

/** The end of a session that never was: the code says whether to try again. */
function endError({ error, reason }: SessionEnd): VpnError {
  return error ?? closedError(reason ?? 'peer_disconnect');
}

function closedError(reason: CloseReason, what = 'the server closed the session'): VpnError {
  const isFinal = recoveryAfterClose(reason) === 'final';
  const code = reason === 'replaced' ? 'ERR_SESSION_REPLACED' : isFinal ? 'ERR_AUTH_REJECTED' : 'ERR_PEER_GONE';
  return new VpnError(code, `${what}: ${reason}`, { details: { reason } });
}

/** A connection to the gateway whose handlers change as it advances. */
class ServerConnection implements FrameSink, ChannelHandler {
  target: Uint8Array = EMPTY;
  targetOffset = 0;
  /** Whether any byte has come since the last tick. */
  heard = false;
  receiver: PacketReceiver | undefined;
  onGreeting: (line: Uint8Array) => void = () => {};
  onControl: (type: number, payload: Uint8Array) => void = () => {};
  onClosed: (error?: VpnError) => void = () => {};
  readonly channel: Channel;
  readonly exporter: Exporter;
  readonly #decoder = new FrameDecoder(this, 'server');
  #failure: VpnError | undefined;
  /** Where packets go that come before the tunnel is ready. */
  #discarded: Uint8Array | undefined;

  constructor(channel: Channel) {
    this.channel = channel;
    this.exporter = (label, context) => channel.exporter(label, context);
  }

  start(): void {
    this.channel.start(this);
  }

  setPhase(phase: 'session' | 'data'): void {
    this.#decoder.setPhase(phase);
  }

  close(reason: CloseReason): void {
    this.channel.close(encodeMessage('close', { reason }));
  }

  /** Ends the connection because of an error, which `onClosed` then gets. */
  fail(error: VpnError): void {
    this.#failure ??= error;
    this.#decoder.stop();
    this.close(closeReasonOf(error));
  }

  bytes(chunk: Uint8Array): void {
    this.heard = true;
    try {
      this.#decoder.push(chunk);
    } catch (error) {
      this.fail(toVpnError(error));
      this.onClosed(toVpnError(error));
    }
  }

  closed(error?: VpnError): void {
    this.receiver?.release();
    let failure = this.#failure ?? error;
    try {
      this.#decoder.end();
    } catch (truncated) {
      if (isVpnError(truncated)) failure ??= truncated;
    }
    this.onClosed(failure);
  }

  greeting(line: Uint8Array): void {
    this.#decoder.setPhase('login');
    this.onGreeting(line);
  }

  reserve(type: number, length: number, whole: boolean): void {
    if (this.receiver === undefined) {
      this.#discarded ??= new Uint8Array(MAX_PACKET_PAYLOAD_BYTES + 16);
      this.target = this.#discarded;
      this.targetOffset = 0;
      return;
    }
    this.receiver.reserve(type, length, whole);
    this.target = this.receiver.target;
    this.targetOffset = this.receiver.targetOffset;
  }

  data(type: number, length: number): void {
    if (this.target === this.#discarded) return;
    this.receiver?.data(type, length);
  }

  control(type: number, payload: Uint8Array): void {
    this.onControl(type, payload);
  }

  unknown(): void {}
}

/** What carries the tunnel and so must not go through it: the gateway's address, as it was dialled. */
function outerAddresses({ facts }: Channel): IpAddress[] {
  try {
    return [parseIp(facts.remote.address)];
  } catch {
    // An address with a zone is link-local: no pushed route holds it.
    return [];
  }
}

/** Calls back when it has run for so long in one piece. */
class Deadline {
  readonly #timeoutMs: number;
  readonly #onPassed: () => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(timeoutMs: number, onPassed: () => void) {
    this.#timeoutMs = timeoutMs;
    this.#onPassed = onPassed;
  }

  /** @param moreMs on top of what it has anyway */
  start(moreMs = 0): void {
    this.stop();
    this.#timer = setTimeout(this.#onPassed, this.#timeoutMs + moreMs);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

async function withTimeout<T>(promise: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => reject(new VpnError('ERR_STAGE_TIMEOUT', `${what} within ${timeoutMs / 1000} s`)),
    timeoutMs,
  );
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
