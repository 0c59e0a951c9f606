/**
 * Running only when nobody else wants to.
 *
 * Hides the scheduling policy that Node has no word for. The lowest priority is not enough: a thread that runs keeps its
 * processor until the end of a slice, and whoever wakes meanwhile waits for some milliseconds; one of this policy gives way
 * at once. In return it gets next to nothing while there is no idle time.
 *
 * @see sched(7), SCHED_IDLE
 */

import { NativeMemory } from './ffi.ts';
import { callByName } from './syscall.ts';

export const SCHED_IDLE = 5;

/**
 * This thread, and those that it starts from now on, run in idle time only, for good.
 *
 * @returns whether that could be had
 */
export function runInIdleTime(): boolean {
  if (process.platform !== 'linux') return false;
  // struct sched_param: the priority, which is 0 for this policy.
  const parameters = new NativeMemory(4);
  return callByName('sched_setscheduler', 0n, BigInt(SCHED_IDLE), parameters.address) === 0;
}
