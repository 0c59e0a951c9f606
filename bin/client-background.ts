/**
 * A client in the background: starting one, and waiting until it is of use.
 *
 * Hides the second process. It says over a descriptor, in a JSON line, that it can be talked to, or why it has ended; what its
 * login asks is answered by whoever waits.
 */

import { spawn } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import type { Socket } from 'node:net';
import { resolve } from 'node:path';
import { ERROR_CODES, type ErrorCode, toVpnError, VpnError } from '../src/base/errors.ts';
import { makePrivateFolder } from '../src/base/private-file.ts';
import type { ClientRun, CredentialRequest, CredentialSource, TunnelFlags } from '../src/cli/host.ts';
import { DEFAULT_CLIENT_STATE } from '../src/cli/options.ts';
import type { ClientApi } from '../src/control/operations.ts';
import { sameProgram } from '../src/os/own-program.ts';

const START_FD = 3;
export const START_VARIABLE = 'CUSTOMVPN_START_FD';
const MAX_START_BYTES = 64 * 1024;
const PROGRESS_MS = 2000;
/** As a shell reports a program that SIGINT ended. */
export const GIVEN_UP_STATUS = 130;

/** Whether this process is one that `spawnClient` has started. To be asked once. */
export function wasStartedInBackground(): boolean {
  const isBackground = process.env[START_VARIABLE] === String(START_FD);
  delete process.env[START_VARIABLE];
  return isBackground;
}

let isSaid = false;

/** Tells whoever has started this process; only the first time counts. */
export function tellWhoStarted(outcome: object): void {
  if (isSaid) return;
  isSaid = true;
  try {
    writeSync(START_FD, `${JSON.stringify(outcome)}\n`);
  } catch {
    // Nobody waits any more.
  }
  closeSync(START_FD);
}

/** The answers of the command line, as a client takes them. */
export function answersOf({ password, totp, token, ask }: Readonly<Record<string, string>>) {
  return {
    ...(password === undefined ? {} : { password }),
    ...(totp === undefined ? {} : { totp }),
    ...(token === undefined ? {} : { token }),
    ...(ask === undefined ? {} : { ask }),
  };
}

/** An error of a client in the background, and where to read more. */
export function withLog(
  { code, message }: VpnError,
  { profile, state }: Pick<ClientRun, 'profile' | 'state'>,
): VpnError {
  const at = state === DEFAULT_CLIENT_STATE ? '' : ` --state ${state}`;
  return new VpnError(code, `${message}; its log: customvpn client logs ${profile}${at}`);
}

/** Starts this program again as a client in the background; resolves when it can be talked to. */
export async function spawnClient(run: ClientRun, folder: string, logFile: string) {
  await makePrivateFolder(folder);
  const log = openSync(logFile, 'a', 0o600);
  const argv = [
    'client',
    'up',
    run.profile,
    '--state',
    resolve(run.state),
    '--foreground',
    ...(run.enclosed === true ? ['--enclosed'] : []),
    ...(run.plain ? ['--plain'] : []),
    ...(run.user === undefined ? [] : ['--user', run.user]),
    ...tunnelArguments(run.tunnel ?? {}),
  ];
  const [program, ...words] = sameProgram();
  const child = spawn(program, [...words, ...argv], {
    detached: true,
    stdio: ['ignore', 'ignore', log, 'pipe'],
    env: { ...process.env, [START_VARIABLE]: String(START_FD) },
  });
  closeSync(log);
  const kill = (): void => {
    child.kill('SIGTERM');
    process.exit(GIVEN_UP_STATUS);
  };
  process.once('SIGINT', kill).once('SIGTERM', kill);
  try {
    const said = JSON.parse(await firstLine(child.stdio[START_FD] as Socket)) as
      | { code: string; message: string }
      | object;
    if ('code' in said) throw errorOf(said);
  } finally {
    process.off('SIGINT', kill).off('SIGTERM', kill);
  }
  child.unref();
  return child;
}

/** The words that say the same to the client in the background. */
function tunnelArguments({ mode, lan, overlap, isAsked, killSwitch, portalMs, networks = [] }: TunnelFlags): string[] {
  return [
    ...(killSwitch === true ? ['--kill-switch'] : []),
    ...networks.flatMap((network) => ['--network', network]),
    ...(portalMs === undefined ? [] : ['--portal', `${Math.ceil(portalMs / 1000)}s`]),
    ...(mode === undefined ? [] : [`--${mode}`]),
    ...(lan === undefined ? [] : [lan ? '--lan' : '--no-lan']),
    ...(overlap === undefined ? (isAsked === true ? ['--overlap', 'ask'] : []) : ['--overlap', overlap]),
  ];
}

async function firstLine(socket: Socket): Promise<string> {
  let text = '';
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    text += chunk.toString('utf8');
    if (text.includes('\n') || text.length > MAX_START_BYTES) break;
  }
  socket.destroy();
  return text.includes('\n')
    ? text.slice(0, text.indexOf('\n'))
    : JSON.stringify({ code: 'ERR_INVARIANT', message: 'the client ended without a word' });
}

/** Answers what the client asks, until it is up. @throws {VpnError} why it is not */
export async function waitUntilUp(client: ClientApi, run: Pick<ClientRun, 'answer'>): Promise<void> {
  let isQuiet = false;
  for (;;) {
    const { news, state, lastError } = await client['client.next']({ waitMs: PROGRESS_MS });
    switch (news.kind) {
      case 'up':
        return;
      case 'failed':
        throw errorOf(news);
      case 'down':
        throw new VpnError('ERR_NOT_RUNNING', 'the client was told to disconnect meanwhile');
      case 'ask': {
        // Nothing is said over a page and a code, or a question, that somebody is busy with.
        isQuiet = true;
        const { id, steps } = news;
        void answer(client, id, steps, run.answer).finally(() => {
          isQuiet = steps.some(({ kind }) => kind === 'oidc');
        });
        break;
      }
      case 'nothing':
        if (!isQuiet) process.stderr.write(`${state}: ${lastError?.message ?? 'no answer yet'} (Ctrl-C gives up)\n`);
    }
  }
}

async function answer(
  client: ClientApi,
  id: number,
  steps: CredentialRequest,
  source: CredentialSource | undefined,
): Promise<void> {
  try {
    if (source === undefined) throw new VpnError('ERR_AUTH_NEEDED', 'nobody can be asked here');
    await client['client.answer']({ id, answers: answersOf(await source(steps)) });
  } catch (error) {
    await client['client.answer']({ id, declined: toVpnError(error).message.slice(0, 1024) }).catch(() => {});
  }
}

function errorOf({ code, message }: { code: string; message: string }): VpnError {
  const known = ERROR_CODES.find((candidate): candidate is ErrorCode => candidate === code) ?? 'ERR_INVARIANT';
  return new VpnError(known, message);
}
