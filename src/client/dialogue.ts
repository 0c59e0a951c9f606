/**
 * The dialogue that opens a session on a fresh connection: a login or a resume, from the greeting to CONFIG.
 *
 * Hides which of the two machines runs, its deadline, and who answers what the server asks. One loop drives either: each
 * says in the same few words what it wants done.
 */

import { toVpnError, VpnError } from '../base/errors.ts';
import { FrameType } from '../protocol/frame.ts';
import type { Primitives } from '../protocol/keys.ts';
import {
  LoginClient,
  type LoginClientOutput,
  PROVIDER_PING_SECONDS,
  PROVIDER_SILENCE_SECONDS,
} from '../protocol/login.ts';
import { type AcceptMessage, type CloseReason, type ConfigMessage, decodeMessage } from '../protocol/messages.ts';
import { recoveryAfterClose, recoveryAfterError } from '../protocol/reasons.ts';
import { ResumeClient, type ResumeClientOutput } from '../protocol/resume.ts';
import type { ServerConnection } from './connection.ts';
import { type Answerer, answersOf } from './login-answers.ts';

const DIALOGUE_TIMEOUT_MS = 30_000;

export interface DialogueOptions extends Answerer {
  primitives: Primitives;
  user?: string | undefined;
  /** The name that was verified, as dialled. */
  serverName: string;
  serverVerified: boolean;
  features: readonly string[];
  /** Networks behind this client that it offers. */
  networks?: readonly string[];
  /** Told to the server. */
  version: string;
  /** Resumes this session in place of a login. */
  resume?: ResumeTicket | undefined;
  /** The session's connections live: the resume changes its control connection for this one. */
  rekey?: boolean | undefined;
  /** Told what the session can be resumed with from now on; undefined: not at all. */
  keep: (ticket: ResumeTicket | undefined) => void;
}

/** What it takes to resume a session. Secret. */
export interface ResumeTicket {
  /** As it was sent, with the epoch and times of the last resume. */
  readonly accept: AcceptMessage;
  /** S(epoch) */
  readonly secret: Uint8Array;
}

export interface OpenedSession extends ResumeTicket {
  readonly config: ConfigMessage;
}

/** What a dialogue wants done next. */
type Wish =
  | { kind: 'nothing' }
  | { kind: 'send'; frame: Uint8Array }
  /** Time stands still while the answer is found: the server has a deadline of its own for that. */
  | { kind: 'answer'; answer: () => Promise<Wish>; moreMs: number }
  /** The server has said yes; `frame`, if any, goes out before anything else. */
  | { kind: 'opened'; ticket: ResumeTicket; frame?: Uint8Array }
  | { kind: 'failed'; error: VpnError; frame?: Uint8Array }
  | { kind: 'closed'; reason: CloseReason };

interface Dialogue {
  readonly name: 'login' | 'resume';
  start(greeting: Uint8Array): Wish;
  receive(type: number, payload: Uint8Array): Wish;
  /** Whether somebody elsewhere has to act, so that silence is not the end. */
  readonly isWaiting: boolean;
  /** A sign of life while that is so. */
  ping(): Wish;
  /** An answer was not to be had. */
  giveUp(): Wish;
  stop(): void;
}

/**
 * Logs in, or resumes, over a fresh connection; resolves when CONFIG has come. What follows is held, until whoever takes the
 * connection over releases it.
 *
 * @throws {VpnError} whatever stopped it
 */
export async function openDialogue(connection: ServerConnection, options: DialogueOptions): Promise<OpenedSession> {
  const { resume } = options;
  const dialogue = resume === undefined ? loginOn(connection, options) : resumeOn(connection, options, resume);
  const { name } = dialogue;
  const done = Promise.withResolvers<OpenedSession>();
  const deadline = new Deadline(DIALOGUE_TIMEOUT_MS, () => {
    done.reject(new VpnError('ERR_STAGE_TIMEOUT', `the server did not finish the ${name} in time`));
  });
  let ticket: ResumeTicket | undefined;
  let silentBeats = 0;
  let isOver = false;

  const drive = (wish: Wish): void => {
    switch (wish.kind) {
      case 'nothing':
        break;
      case 'send':
        connection.channel.sendControl(wish.frame);
        break;
      case 'answer':
        deadline.stop();
        wish.answer().then(
          (next) => {
            if (isOver) return;
            deadline.start(wish.moreMs);
            drive(next);
          },
          (error: unknown) => {
            done.reject(toVpnError(error));
            drive(dialogue.giveUp());
          },
        );
        break;
      case 'opened':
        ticket = wish.ticket;
        connection.setPhase('session');
        if (wish.frame !== undefined) connection.channel.sendControl(wish.frame);
        break;
      case 'failed':
        if (wish.frame !== undefined) connection.channel.sendControl(wish.frame);
        done.reject(wish.error);
        break;
      case 'closed':
        done.reject(closedError(wish.reason, `the server closed the connection during the ${name}`));
        break;
    }
  };
  connection.onGreeting = (line) => drive(dialogue.start(line));
  connection.onControl = (type, payload) => {
    if (ticket === undefined) drive(dialogue.receive(type, payload));
    else if (type === FrameType.config) {
      const config = decodeMessage('config', payload);
      connection.hold();
      done.resolve({ ...ticket, config });
    } else if (type === FrameType.close) {
      done.reject(closedError(decodeMessage('close', payload).reason));
    } else
      throw new VpnError('ERR_FRAME_STATE', `frame type ${type} came where CONFIG was expected`, { details: { type } });
  };
  connection.onClosed = (error) => {
    dialogue.stop();
    done.reject(error ?? new VpnError('ERR_PEER_GONE', `the server closed the connection during the ${name}`));
  };
  connection.start();
  deadline.start();
  const heartbeat = setInterval(() => {
    silentBeats = connection.heard || !dialogue.isWaiting ? 0 : silentBeats + 1;
    connection.heard = false;
    if (silentBeats * PROVIDER_PING_SECONDS > PROVIDER_SILENCE_SECONDS) {
      done.reject(new VpnError('ERR_PEER_GONE', `the server has not been heard of during the ${name}`));
    } else drive(dialogue.ping());
  }, PROVIDER_PING_SECONDS * 1000);
  try {
    return await done.promise;
  } finally {
    isOver = true;
    clearInterval(heartbeat);
    deadline.stop();
  }
}

function loginOn(connection: ServerConnection, options: DialogueOptions): Dialogue {
  const { device, user } = options;
  const machine = new LoginClient({
    primitives: options.primitives,
    exporter: connection.exporter,
    serverId: connection.channel.facts.serverId,
    features: options.features,
    purpose: options.enrol ? 'enrol' : 'login',
    serverName: options.serverName,
    serverVerified: options.serverVerified,
    device: { id: device.id, algorithm: device.algorithm, publicKey: device.publicKey },
    ...(user === undefined ? {} : { user }),
    networks: options.networks ?? [],
    client: { name: 'customvpn', version: options.version, platform: process.platform },
  });
  const wish = (output: LoginClientOutput): Wish => {
    switch (output.kind) {
      case 'answer':
        return {
          kind: 'answer',
          answer: async () => wish(machine.answer(await answersOf(output, options))),
          // A person at a provider takes longer; the server knows how long.
          moreMs: Math.max(0, ...output.steps.map(({ seconds = 0 }) => seconds)) * 1000,
        };
      case 'accepted':
        return { kind: 'opened', ticket: { accept: output.accept, secret: output.secret } };
      default:
        return output;
    }
  };
  return {
    name: 'login',
    start: (greeting) => wish(machine.start(greeting)),
    receive: (type, payload) => wish(machine.receive(type, payload)),
    get isWaiting() {
      return machine.isAtProvider;
    },
    ping: () => wish(machine.ping()),
    giveUp: () => wish(machine.giveUp()),
    stop: () => machine.stop(),
  };
}

function resumeOn(
  connection: ServerConnection,
  { device, primitives, serverName, keep, rekey }: DialogueOptions,
  { accept, secret }: ResumeTicket,
): Dialogue {
  const machine = new ResumeClient({
    primitives,
    exporter: connection.exporter,
    serverId: connection.channel.facts.serverId,
    // Packets stay in the form that was agreed on.
    features: accept.features,
    session: accept.session,
    epoch: accept.epoch,
    secret,
    serverName,
    device: { id: device.id, algorithm: device.algorithm, publicKey: device.publicKey },
    rekey,
  });
  const wish = (output: ResumeClientOutput): Wish => {
    switch (output.kind) {
      case 'answer':
        return wish(machine.answer(device.sign(output.signedBytes)));
      case 'resumed': {
        const { proof: _, ...resumed } = output.resumed;
        const ticket = { accept: { ...accept, ...resumed }, secret: output.secret };
        // The server may have the proof although its answer is lost.
        keep(ticket);
        return { kind: 'opened', ticket, frame: output.frame };
      }
      case 'failed':
        if (recoveryAfterError(output.error) === 'final' || output.code === 'session_unknown') keep(undefined);
        return output;
      default:
        return output;
    }
  };
  return {
    name: 'resume',
    start: (greeting) => wish(machine.start(greeting)),
    receive: (type, payload) => wish(machine.receive(type, payload)),
    isWaiting: false,
    ping: () => ({ kind: 'nothing' }),
    giveUp: () => ({ kind: 'nothing' }),
    stop: () => machine.stop(),
  };
}

/** What a CLOSE of the server means for whoever waits: the code says whether to try again. */
export function closedError(reason: CloseReason, what = 'the server closed the session'): VpnError {
  const isFinal = recoveryAfterClose(reason) === 'final';
  const code = reason === 'replaced' ? 'ERR_SESSION_REPLACED' : isFinal ? 'ERR_AUTH_REJECTED' : 'ERR_PEER_GONE';
  return new VpnError(code, `${what}: ${reason}`, { details: { reason } });
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
