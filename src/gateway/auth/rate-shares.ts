/**
 * A rate that several workers keep together: how much of it each of them gets.
 *
 * Hides the arithmetic. The parts never exceed the rate together. A worker whose sessions do not wait gets what they use
 * and some more; those that wait share the rest by the number of their sessions, so that it does not matter to a session
 * which worker has it.
 */

import type { Rate } from '../../transport/pacer.ts';

/** What a worker that does not wait gets beyond what it uses, so that it can begin to. */
const ROOM = 1.25;
/** Nobody has less than this part of an equal share: a session that begins must be seen to wait. */
const LEAST_PART = 0.1;
/** A burst below this stops a pair of segments (docs/decisions/0023-shaping.md). */
const LEAST_BURST_BYTES = 8 * 1024;

/** One worker, since it was asked the last time. */
export interface Demand {
  readonly sessions: number;
  readonly bytesPerSecond: number;
  readonly isWaiting: boolean;
}

/** The parts, in the order of the demands. */
export function shareRate({ bytesPerSecond, burstBytes }: Rate, demands: readonly Demand[]): Rate[] {
  if (demands.length === 1) return [{ bytesPerSecond, burstBytes }];
  const least = (bytesPerSecond / demands.length) * LEAST_PART;
  const parts = demands.map((demand) => (demand.isWaiting ? least : Math.max(least, demand.bytesPerSecond * ROOM)));
  const total = parts.reduce((sum, part) => sum + part, 0);
  // More is used than there is, for a moment: everybody less.
  if (total > bytesPerSecond) for (const at of parts.keys()) parts[at] = ((parts[at] ?? 0) * bytesPerSecond) / total;
  const rest = Math.max(0, bytesPerSecond - total);
  const waiting = demands.filter(({ isWaiting }) => isWaiting);
  const takers = waiting.length > 0 ? waiting : demands;
  const sessions = takers.reduce((sum, demand) => sum + demand.sessions, 0);
  return demands.map((demand, at) => {
    const more = takers.includes(demand) ? (rest * demand.sessions) / Math.max(1, sessions) : 0;
    const part = (parts[at] ?? 0) + more;
    return {
      bytesPerSecond: part,
      burstBytes: Math.max(LEAST_BURST_BYTES, Math.floor((burstBytes * part) / bytesPerSecond)),
    };
  });
}
