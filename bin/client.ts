/**
 * The verbs of a client: running it here, in the background, and finding those that run.
 */

import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { isVpnError, toVpnError, VpnError } from '../src/base/errors.ts';
import { createLogger, silentLogger } from '../src/base/log.ts';
import type { ClientFacts, ClientRun, CredentialSource } from '../src/cli/host.ts';
import type { AnswerSteps } from '../src/client/login-answers.ts';
import { cleanClients, clientOf, profileIds, profilePaths, readEnd } from '../src/client/state-folder.ts';
import type { ClientApi } from '../src/control/operations.ts';
import { readProfile } from '../src/control/profile.ts';
import { findProfile } from '../src/control/profile-store.ts';
import { answers } from '../src/control/socket.ts';
import { parsePrefix } from '../src/ip/address.ts';
import { ServiceManager } from '../src/os/service-manager.ts';
import { clientUnit, killSwitchUnit } from '../src/os/systemd-unit.ts';
import {
  answersOf,
  GIVEN_UP_STATUS,
  spawnClient,
  tellWhoStarted,
  waitUntilUp,
  wasStartedInBackground,
  withLog,
} from './client-background.ts';

export { findClients } from '../src/client/state-folder.ts';

/** `client up --foreground`. */
export async function runClientHere(run: ClientRun, version: string): Promise<void> {
  // Only whoever is the client needs all of it; whoever talks to one is waited for.
  const [{ runClient }, { withSignals }, { warmPath }] = await Promise.all([
    import('../src/client/daemon.ts'),
    import('./run.ts'),
    import('./warm.ts'),
  ]);
  const log = createLogger();
  const isBackground = wasStartedInBackground();
  const tellStarter = (outcome: object): void => {
    if (isBackground) tellWhoStarted(outcome);
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

function withAnswers(answer: CredentialSource | undefined): { answer?: AnswerSteps } {
  return answer === undefined ? {} : { answer: orderedAnswers(answer) };
}

/** The command line's way of answering, as the client wants it. */
export function orderedAnswers(answer: CredentialSource): AnswerSteps {
  return async (steps) => answersOf(await answer(steps));
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
    throw withLog(end?.error ?? toVpnError(error), run);
  } finally {
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
  return client;
}
