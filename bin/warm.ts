/** Being fast from the first packet on. */

import type { Logger } from '../src/base/log.ts';
import { warmUp } from '../src/transport/warm-up.ts';

/** Some 4,000 packets make the code fast; `npm run bench` shows what they are worth. */
const WARM_UP = { rounds: 4000, timeMs: 1500 };

/** Makes the first packets as fast as later ones. Without a loopback interface they are slower, and that is all. */
export async function warmPath(log: Logger): Promise<void> {
  try {
    const rounds = await warmUp(WARM_UP);
    log.debug('warm', { rounds });
  } catch (error) {
    log.debug('the packet path was not warmed', { error });
  }
}
