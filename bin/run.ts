/**
 * What every long-running command does: end on a signal, and be fast from the first packet on.
 */

import type { Logger } from '../src/base/log.ts';
import { warmUp } from '../src/transport/warm-up.ts';

/** Some 4,000 packets make the code fast; `npm run bench` shows what they are worth. */
const WARM_UP = { rounds: 4000, timeMs: 1500 };

/** Runs until done, or until a signal asks to stop; a second signal ends the process at once. */
export async function withSignals(
  work: (signal: AbortSignal) => Promise<void>,
  signals: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM'],
): Promise<void> {
  const controller = new AbortController();
  const stop = (): void => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort();
  };
  for (const name of signals) process.on(name, stop);
  try {
    await work(controller.signal);
  } finally {
    for (const name of signals) process.off(name, stop);
  }
}

/** Makes the first packets as fast as later ones. Without a loopback interface they are slower, and that is all. */
export async function warmPath(log: Logger): Promise<void> {
  try {
    const rounds = await warmUp(WARM_UP);
    log.debug('warm', { rounds });
  } catch (error) {
    log.debug('the packet path was not warmed', { error });
  }
}
