/**
 * The verbs of a client: running it here, in the background, and finding those that run.
 */

import { spawn } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { ERROR_CODES, type ErrorCode, toVpnError, VpnError } from '../src/base/errors.ts';
import { createLogger } from '../src/base/log.ts';
import { makePrivateFolder } from '../src/base/private-file.ts';
import type { ClientRun } from '../src/cli/host.ts';
import { cleanClients, clientOf, runClient } from '../src/client/daemon.ts';
import type { ClientApi } from '../src/control/operations.ts';
import { warmPath, withSignals } from './run.ts';

export { findClients } from '../src/client/daemon.ts';

/** A client in the background writes its outcome to this descriptor, as one JSON line, when it is up or has failed. */
const OUTCOME_FD = 3;
const PROGRESS_MS = 2000;
/** As a shell reports a program that SIGINT ended. */
const GIVEN_UP_STATUS = 130;
const OUTCOME_VARIABLE = 'CUSTOMVPN_OUTCOME_FD';

/** `client up --foreground`. */
export async function runClientHere(run: ClientRun, version: string): Promise<void> {
  const log = createLogger();
  const outcome = openOutcome();
  const onReady = (): void => {
    if (outcome === undefined) process.stdout.write('up\n');
    else outcome({});
    // Not before: the tunnel is of use already.
    void warmPath(log);
  };
  try {
    // A closed terminal is a signal, too.
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
    await withSignals((signal) => runClient({ ...run, version, log, onReady }, signal), signals);
  } catch (error) {
    outcome?.({ error: toVpnError(error) });
    throw error;
  }
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
  ];
  const child = spawn(process.execPath, [...process.execArgv, process.argv[1] ?? '', ...argv], {
    detached: true,
    stdio: ['ignore', 'ignore', log, 'pipe'],
    env: { ...process.env, [OUTCOME_VARIABLE]: String(OUTCOME_FD) },
  });
  closeSync(log);
  // Whoever gives up waiting gives up the client.
  const giveUp = (): void => {
    child.kill('SIGTERM');
    process.stderr.write('gave up; the client was stopped\n');
    process.exit(GIVEN_UP_STATUS);
  };
  process.once('SIGINT', giveUp).once('SIGTERM', giveUp);
  const progress = setInterval(() => void tellProgress(run), PROGRESS_MS);
  const pipe = child.stdio[OUTCOME_FD];
  let text = '';
  try {
    for await (const chunk of pipe as AsyncIterable<Buffer>) {
      text += chunk.toString('utf8');
      if (text.includes('\n')) break;
    }
  } finally {
    clearInterval(progress);
    process.off('SIGINT', giveUp).off('SIGTERM', giveUp);
  }
  child.unref();
  const outcome = JSON.parse(
    text === '' ? '{"code":"ERR_INVARIANT","message":"the client ended without a word"}' : text,
  ) as {
    code?: string;
    message?: string;
  };
  if (outcome.code !== undefined) {
    const code = ERROR_CODES.find((known): known is ErrorCode => known === outcome.code) ?? 'ERR_INVARIANT';
    throw new VpnError(code, `${outcome.message ?? 'the client did not start'}; its log: ${logFile}`);
  }
  return await clientOf(run.state, run.profile);
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

/** Where a client in the background says how its start went; undefined in the foreground. */
function openOutcome(): ((outcome: { error?: VpnError }) => void) | undefined {
  if (process.env[OUTCOME_VARIABLE] !== String(OUTCOME_FD)) return undefined;
  let isSaid = false;
  return ({ error }) => {
    if (isSaid) return;
    isSaid = true;
    const outcome = error === undefined ? {} : { code: error.code, message: error.message };
    try {
      writeSync(OUTCOME_FD, `${JSON.stringify(outcome)}\n`);
      closeSync(OUTCOME_FD);
    } catch {
      // Nobody waits for it any more.
    }
  };
}
