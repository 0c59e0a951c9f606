/**
 * The verbs of a client: running it here, in the background, and finding those that run.
 */

import { spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, writeSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { resolve } from 'node:path';
import { ERROR_CODES, type ErrorCode, isVpnError, toVpnError, VpnError } from '../src/base/errors.ts';
import { createLogger, silentLogger } from '../src/base/log.ts';
import { makePrivateFolder } from '../src/base/private-file.ts';
import type { ClientFacts, ClientRun, CredentialRequest, CredentialSource, TunnelFlags } from '../src/cli/host.ts';
import { DEFAULT_CLIENT_STATE } from '../src/cli/options.ts';
import type { AnswerSteps } from '../src/client/login-answers.ts';
import { cleanClients, clientOf, profileIds, profilePaths, readEnd } from '../src/client/state-folder.ts';
import type { ClientApi } from '../src/control/operations.ts';
import { readProfile } from '../src/control/profile.ts';
import { findProfile } from '../src/control/profile-store.ts';
import { answers } from '../src/control/socket.ts';
import { parsePrefix } from '../src/ip/address.ts';
import { ServiceManager } from '../src/os/service-manager.ts';
import { clientUnit, killSwitchUnit } from '../src/os/systemd-unit.ts';

export { findClients } from '../src/client/state-folder.ts';

/** A client in the background says over this descriptor, in a JSON line, that it can be talked to, or why it has ended. */
const START_FD = 3;
const START_VARIABLE = 'CUSTOMVPN_START_FD';
const MAX_START_BYTES = 64 * 1024;
const PROGRESS_MS = 2000;
/** As a shell reports a program that SIGINT ended. */
const GIVEN_UP_STATUS = 130;

/** `client up --foreground`. */
export async function runClientHere(run: ClientRun, version: string): Promise<void> {
  // Only whoever is the client needs all of it; whoever talks to one is waited for.
  const [{ runClient }, { withSignals }, { warmPath }] = await Promise.all([
    import('../src/client/daemon.ts'),
    import('./run.ts'),
    import('./warm.ts'),
  ]);
  const log = createLogger();
  const isBackground = process.env[START_VARIABLE] === String(START_FD);
  delete process.env[START_VARIABLE];
  const tellStarter = (outcome: object): void => {
    if (isBackground) sayAndClose(outcome);
  };
  using manager = ServiceManager.fromEnvironment();
  try {
    const profile = await findProfile(run.state, run.profile);
    const options = {
      ...run,
      profile,
      ...(profile === resolve(run.profile) ? {} : { name: run.profile }),
      ...withAnswers(isBackground ? undefined : run.answer),
      ...(isBackground || run.show === undefined ? {} : { show: run.show }),
      isLogged: isBackground,
      version,
      log,
      onListening: () => {
        tellStarter({ listening: true });
        manager.ready('connecting');
      },
      onState: (state: string) => manager.status(state),
      onReady: () => {
        if (!isBackground) process.stdout.write('up\n');
        // Not before: the tunnel is of use already.
        void warmPath(log);
      },
    };
    // A closed terminal is a signal, too.
    const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
    await withSignals(async (signal) => {
      signal.addEventListener('abort', () => manager.stopping(), { once: true });
      await runClient(options, signal);
    }, signals);
  } catch (error) {
    const { code, message } = toVpnError(error);
    tellStarter({ code, message });
    if (isBackground) log.error('the client has ended', { code, reason: message });
    throw error;
  }
}

let isSaid = false;

function sayAndClose(outcome: object): void {
  if (isSaid) return;
  isSaid = true;
  try {
    writeSync(START_FD, `${JSON.stringify(outcome)}\n`);
  } catch {
    // Nobody waits any more.
  }
  closeSync(START_FD);
}

function withAnswers(answer: CredentialSource | undefined): { answer?: AnswerSteps } {
  return answer === undefined ? {} : { answer: orderedAnswers(answer) };
}

/** The command line's way of answering, as the client wants it. */
export function orderedAnswers(answer: CredentialSource): AnswerSteps {
  return async (steps) => answersOf(await answer(steps));
}

function answersOf({ password, totp, token, ask }: Readonly<Record<string, string>>) {
  return {
    ...(password === undefined ? {} : { password }),
    ...(totp === undefined ? {} : { totp }),
    ...(token === undefined ? {} : { token }),
    ...(ask === undefined ? {} : { ask }),
  };
}

/** Takes away what crashed clients left; returns how many had left something. */
export function cleanUp(state: string): Promise<number> {
  return cleanClients(state, createLogger({ level: 'warn' }));
}

/** `client unit`. */
export function unitOf(state: string, program: string): string {
  return clientUnit({ program, state: resolve(state) });
}

/** Closes or opens a kill switch, or looks; returns whether it is closed then. */
export async function workKillSwitch(state: string, name: string, action: 'close' | 'open' | 'look'): Promise<boolean> {
  const { KillSwitch } = await import('../src/client/kill-switch.ts');
  const { id, tunnel } = await readProfile(await findProfile(state, name));
  if (action === 'open' && (await answers(profilePaths(state, id).control))) {
    throw new VpnError(
      'ERR_CONFLICT',
      `the client of ${name} runs and keeps it as it is; end it, and open it with that: customvpn client down ${name}`,
    );
  }
  const killSwitch = new KillSwitch(id, createLogger({ level: 'warn' }));
  // One that a client keeps closed is that client's: it knows what else is to stay open.
  if (action === 'close' && !(await killSwitch.isClosed())) await killSwitch.close(tunnel.exclude.map(parsePrefix));
  if (action === 'open') await killSwitch.open();
  return await killSwitch.isClosed();
}

/** The text of the unit that closes a profile's kill switch at boot. */
export async function killSwitchUnitOf(state: string, name: string, program: string): Promise<string> {
  const profile = resolve(await findProfile(state, name));
  await readProfile(profile);
  return killSwitchUnit({ program, profile });
}

/** What there is of each profile that has been used. */
export async function clientFacts(state: string): Promise<ReadonlyMap<string, ClientFacts>> {
  const { KillSwitch } = await import('../src/client/kill-switch.ts');
  const facts = new Map<string, ClientFacts>();
  for (const id of await profileIds(state)) {
    const { control, enrolled, log } = profilePaths(state, id);
    const end = await readEnd(state, id);
    facts.set(id, {
      isRunning: await answers(control),
      isClosed: await new KillSwitch(id, silentLogger).isClosed().catch(() => false),
      isEnrolled: existsSync(enrolled),
      log,
      ...(end === undefined ? {} : { end: { at: end.at, code: end.error.code, message: end.error.message } }),
    });
  }
  return facts;
}

/** Forgets the device's key and everything else that is kept of a profile. */
export async function forgetClient(state: string, id: string): Promise<void> {
  await rm(profilePaths(state, id).folder, { recursive: true, force: true });
}

/** Sees to it that a client for the profile runs in the background and is connected. */
export async function startClient(run: ClientRun): Promise<ClientApi> {
  const path = await findProfile(run.state, run.profile);
  const { id } = await readProfile(path);
  const paths = profilePaths(run.state, id);
  const client = clientOf(run.state, id);
  let giveUp: () => Promise<unknown>;
  if (await answers(paths.control)) {
    const { state } = await client['client.status']({});
    // With its flags, which a client that runs already must have been started with.
    await client['client.up']({ ...(run.tunnel === undefined ? {} : { tunnel: run.tunnel }) });
    if (state === 'connected') {
      process.stderr.write('connected already\n');
      return client;
    }
    giveUp = () => (state === 'down' ? client['client.down']({ keep: true }) : Promise.resolve());
  } else {
    const child = await spawnClient(run, paths.folder, paths.log);
    giveUp = async () => child.kill('SIGTERM');
  }
  // Whoever gives up waiting gives up the client.
  const interrupted = (): void => {
    process.stderr.write('gave up\n');
    void giveUp()
      .catch(() => {})
      .finally(() => process.exit(GIVEN_UP_STATUS));
  };
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    await waitUntilUp(client, run);
  } catch (error) {
    // It has ended before it could say why to us.
    const end = isVpnError(error, 'ERR_NOT_RUNNING') ? await readEnd(run.state, id.slice(0, 16)) : undefined;
    const { code, message } = end?.error ?? toVpnError(error);
    throw new VpnError(code, `${message}; its log: customvpn client logs ${run.profile}${stateWord(run.state)}`);
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
  return client;
}

function stateWord(state: string): string {
  return state === DEFAULT_CLIENT_STATE ? '' : ` --state ${state}`;
}

/** Starts this program again as a client in the background; resolves when it can be talked to. */
async function spawnClient(run: ClientRun, folder: string, logFile: string) {
  await makePrivateFolder(folder);
  const log = openSync(logFile, 'a', 0o600);
  const argv = [
    'client',
    'up',
    run.profile,
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
function tunnelArguments({ mode, lan, overlap, isAsked, killSwitch, portalMs }: TunnelFlags): string[] {
  return [
    ...(killSwitch === true ? ['--kill-switch'] : []),
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
async function waitUntilUp(client: ClientApi, run: ClientRun): Promise<void> {
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
