/**
 * The verbs of a client: running it here, in the background, and finding those that run.
 */

import { spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { Socket } from 'node:net';
import { join, resolve } from 'node:path';
import { ERROR_CODES, type ErrorCode, toVpnError, VpnError } from '../src/base/errors.ts';
import { createLogger } from '../src/base/log.ts';
import { makePrivateFolder } from '../src/base/private-file.ts';
import type { ClientRun, CredentialRequest, CredentialSource, TunnelFlags } from '../src/cli/host.ts';
import { cleanClients, clientOf, runClient } from '../src/client/daemon.ts';
import type { AnswerSteps } from '../src/client/login-answers.ts';
import type { ClientApi } from '../src/control/operations.ts';
import { warmPath, withSignals } from './run.ts';

export { findClients } from '../src/client/daemon.ts';

/**
 * A client in the background talks over this descriptor with whoever started it, a JSON line a turn: it asks for what its
 * login wants, and says when it is up or has failed.
 */
const TALK_FD = 3;
const PROGRESS_MS = 2000;
/** As a shell reports a program that SIGINT ended. */
const GIVEN_UP_STATUS = 130;
const TALK_VARIABLE = 'CUSTOMVPN_TALK_FD';
const MAX_TALK_BYTES = 64 * 1024;

/** What the client in the background says. */
type Said = { ask: CredentialRequest } | { code: string; message: string } | { up: true };
/** What it is answered. */
type Answered = { answers: Record<string, string> } | { code: string; message: string };

/** `client up --foreground`. */
export async function runClientHere(run: ClientRun, version: string): Promise<void> {
  const log = createLogger();
  using starter = openStarter();
  const answer = starter === undefined ? run.answer : (request: CredentialRequest) => starter.ask(request);
  const onReady = (): void => {
    if (starter === undefined) process.stdout.write('up\n');
    else starter.finish({ up: true });
    // Not before: the tunnel is of use already.
    void warmPath(log);
  };
  const options = {
    ...run,
    ...(answer === undefined ? {} : { answer: orderedAnswers(answer) }),
    version,
    log,
    onReady,
  };
  try {
    // A closed terminal is a signal, too.
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
    await withSignals((signal) => runClient(options, signal), signals);
  } catch (error) {
    const { code, message } = toVpnError(error);
    starter?.finish({ code, message });
    throw error;
  }
}

/** The command line's way of answering, as the client wants it. */
function orderedAnswers(answer: CredentialSource): AnswerSteps {
  return async (steps) => {
    const { password, totp, token, ask } = await answer(steps);
    return {
      ...(password === undefined ? {} : { password }),
      ...(totp === undefined ? {} : { totp }),
      ...(token === undefined ? {} : { token }),
      ...(ask === undefined ? {} : { ask }),
    };
  };
}

/** Takes away what crashed clients left; returns how many had left something. */
export function cleanUp(state: string): Promise<number> {
  return cleanClients(state, createLogger({ level: 'warn' }));
}

/** Starts this program again as a client in the background and waits for its outcome. */
export async function startClient(run: ClientRun): Promise<ClientApi> {
  const logFile = join(resolve(run.state), 'client.log');
  await makePrivateFolder(resolve(run.state));
  const log = openSync(logFile, 'a', 0o600);
  const argv = [
    'client',
    'up',
    resolve(run.profile),
    '--state',
    resolve(run.state),
    '--foreground',
    ...(run.plain ? ['--plain'] : []),
    ...(run.user === undefined ? [] : ['--user', run.user]),
    ...tunnelArguments(run.tunnel ?? {}),
  ];
  const child = spawn(process.execPath, [...process.execArgv, process.argv[1] ?? '', ...argv], {
    detached: true,
    stdio: ['ignore', 'ignore', log, 'pipe'],
    env: { ...process.env, [TALK_VARIABLE]: String(TALK_FD) },
  });
  closeSync(log);
  // Whoever gives up waiting gives up the client.
  const giveUp = (): void => {
    child.kill('SIGTERM');
    process.stderr.write('gave up; the client was stopped\n');
    process.exit(GIVEN_UP_STATUS);
  };
  process.once('SIGINT', giveUp).once('SIGTERM', giveUp);
  let outcome: { code: string; message: string } | undefined;
  try {
    outcome = await talk(child.stdio[TALK_FD] as Socket, run);
  } finally {
    process.off('SIGINT', giveUp).off('SIGTERM', giveUp);
  }
  child.unref();
  if (outcome !== undefined) throw errorOf(outcome, `; its log: ${logFile}`);
  return await clientOf(run.state, run.profile);
}

/** The words that say the same to the client in the background. */
function tunnelArguments({ mode, lan, overlap, isAsked }: TunnelFlags): string[] {
  return [
    ...(mode === undefined ? [] : [`--${mode}`]),
    ...(lan === undefined ? [] : [lan ? '--lan' : '--no-lan']),
    ...(overlap === undefined ? (isAsked === true ? ['--overlap', 'ask'] : []) : ['--overlap', overlap]),
  ];
}

/** Answers what the client asks, until it says how its start went: undefined when it is up. */
async function talk(socket: Socket, run: ClientRun): Promise<{ code: string; message: string } | undefined> {
  const startProgress = () => setInterval(() => void tellProgress(run), PROGRESS_MS);
  let progress = startProgress();
  try {
    for await (const line of linesOf(socket)) {
      const said = JSON.parse(line) as Said;
      if ('up' in said) return undefined;
      if ('code' in said) return said;
      clearInterval(progress);
      socket.write(`${JSON.stringify(await answered(said.ask, run.answer))}\n`);
      // Nothing is said over a page and a code that somebody is busy with.
      if (!said.ask.some(({ kind }) => kind === 'oidc')) progress = startProgress();
    }
  } finally {
    clearInterval(progress);
    socket.destroy();
  }
  return { code: 'ERR_INVARIANT', message: 'the client ended without a word' };
}

async function answered(request: CredentialRequest, answer: CredentialSource | undefined): Promise<Answered> {
  try {
    if (answer === undefined) throw nobodyToAsk(request);
    return { answers: { ...(await answer(request)) } };
  } catch (error) {
    const { code, message } = toVpnError(error);
    return { code, message };
  }
}

function nobodyToAsk(request: CredentialRequest): VpnError {
  const kinds = request.map(({ kind }) => kind).join(' and ');
  return new VpnError(
    'ERR_AUTH_NEEDED',
    `the login asks for a ${kinds}; run this in a terminal, or give it on standard input with --password-stdin`,
  );
}

function errorOf({ code, message }: { code: string; message: string }, hint = ''): VpnError {
  const known = ERROR_CODES.find((candidate): candidate is ErrorCode => candidate === code) ?? 'ERR_INVARIANT';
  return new VpnError(known, `${message}${hint}`);
}

/** Says why a client that is being started is not up yet. */
async function tellProgress(run: ClientRun): Promise<void> {
  try {
    const client = await clientOf(run.state, run.profile);
    const { state, lastError } = await client['client.status']({});
    process.stderr.write(`${state}: ${lastError?.message ?? 'no answer yet'} (Ctrl-C gives up)\n`);
  } catch {
    // It has not got as far as having a status; the next look may tell.
  }
}

/** Whoever started this client in the background; undefined in the foreground. */
function openStarter(): Starter | undefined {
  return process.env[TALK_VARIABLE] === String(TALK_FD) ? new Starter() : undefined;
}

class Starter implements Disposable {
  readonly #socket = new Socket({ fd: TALK_FD, readable: true, writable: true });
  readonly #lines = linesOf(this.#socket);
  #isFinished = false;

  constructor() {
    // Nobody waits for it any more.
    this.#socket.on('error', () => {
      this.#isFinished = true;
    });
  }

  /** @throws {VpnError} ERR_AUTH_NEEDED when nobody is there any more, or whatever the other end says */
  async ask(request: CredentialRequest): Promise<Readonly<Record<string, string>>> {
    if (this.#isFinished) throw nobodyToAsk(request);
    this.#socket.write(`${JSON.stringify({ ask: request })}\n`);
    const { value, done } = await this.#lines.next();
    if (done === true) throw nobodyToAsk(request);
    const answer = JSON.parse(value) as Answered;
    if ('code' in answer) throw errorOf(answer);
    return answer.answers;
  }

  finish(outcome: Said): void {
    if (this.#isFinished) return;
    this.#isFinished = true;
    this.#socket.end(`${JSON.stringify(outcome)}\n`);
    // What the other end still sends is nothing to us, and its end must not keep this process.
    this.#socket.resume().unref();
  }

  [Symbol.dispose](): void {
    if (!this.#isFinished) this.#socket.destroy();
  }
}

async function* linesOf(socket: Socket): AsyncGenerator<string, void> {
  let text = '';
  for await (const chunk of socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    text += chunk.toString('utf8');
    if (text.length > MAX_TALK_BYTES)
      throw new VpnError('ERR_INVARIANT', 'a line between two of our processes is too long');
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
      yield text.slice(0, end);
      text = text.slice(end + 1);
    }
  }
}
