/**
 * `client proxy`: runs a client's local proxy here until it is interrupted.
 */

import { createLogger } from '../src/base/log.ts';
import type { ProxyRun } from '../src/cli/host.ts';
import { runProxy } from '../src/client/proxy-run.ts';
import { findProfile } from '../src/control/profile-place.ts';
import { orderedAnswers } from './client-run.ts';
import { withSignals } from './run.ts';

export async function runProxyHere(run: ProxyRun, version: string): Promise<void> {
  const { answer, ...rest } = run;
  const options = {
    ...rest,
    profile: await findProfile(run.state, run.profile),
    ...(answer === undefined ? {} : { answer: orderedAnswers(answer) }),
    version,
    log: createLogger({ level: 'warn' }),
  };
  await withSignals(async (signal) => await runProxy(options, signal), ['SIGINT', 'SIGTERM', 'SIGHUP']);
}
