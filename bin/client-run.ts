/**
 * `client up --foreground`: being a client, until it is told to end.
 */

import { resolve } from 'node:path';
import { toVpnError } from '../src/base/errors.ts';
import { createLogger } from '../src/base/log.ts';
import type { ClientRun, CredentialSource } from '../src/cli/host.ts';
import { runClient } from '../src/client/daemon.ts';
import type { AnswerSteps } from '../src/client/login-answers.ts';
import { findProfile } from '../src/control/profile-place.ts';
import { ServiceManager } from '../src/os/service-manager.ts';
import { answersOf, tellWhoStarted, wasStartedInBackground } from './client-background.ts';
import { withSignals } from './run.ts';
import { warmPath } from './warm.ts';

/** Runs until stopped. */
export async function runClientHere(run: ClientRun, version: string): Promise<void> {
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
