/**
 * Quotas: how much of a day's and a month's a user has carried, what follows, and what the user is told.
 *
 * Hides periods and texts. It counts nothing and ends nothing itself.
 */

import type { Settings } from '../../policy/settings.ts';
import { endsOfPeriods, type Usage } from '../../store/usage.ts';

const GIB = 1024 ** 3;
/** From this part on a user is warned. */
const WARN_PART = 0.8;
const DEFAULT_SLOW_MBIT = 1;

export type QuotaSettings = Pick<Settings, 'quotaDayGiB' | 'quotaMonthGiB' | 'overQuota' | 'slowMbit'>;

/** What a quota comes to at a moment. */
export interface QuotaState {
  /** Nothing is carried. */
  readonly isRefused: boolean;
  /** Rate each way, Mbit/s; undefined: as it is. */
  readonly slowMbit: number | undefined;
  /** For the user. */
  readonly notices: readonly string[];
}

const WITHIN: QuotaState = { isRefused: false, slowMbit: undefined, notices: [] };

/** @param at milliseconds since the Unix epoch */
export function judgeQuota(settings: QuotaSettings, usage: Usage, at: number): QuotaState {
  const ends = endsOfPeriods(at);
  const { overQuota = 'slow', slowMbit = DEFAULT_SLOW_MBIT } = settings;
  let state = WITHIN;
  for (const period of ['month', 'day'] as const) {
    const quota = period === 'day' ? settings.quotaDayGiB : settings.quotaMonthGiB;
    if (quota === undefined) continue;
    const until = new Date(ends[period]).toISOString().replace('.000', '');
    const what = `${quota} GiB of this ${period}`;
    if (usage[period] >= quota * GIB) {
      const isRefused = overQuota === 'refuse';
      const effect = isRefused ? 'nothing is carried' : `the connection is slowed down to ${slowMbit} Mbit/s`;
      state = {
        isRefused,
        slowMbit: isRefused ? undefined : slowMbit,
        notices: [...state.notices, `the quota of ${what} is used up: ${effect} until ${until}`],
      };
    } else if (usage[period] >= quota * GIB * WARN_PART) {
      const notice = `${WARN_PART * 100} % of the quota of ${what} is used; it begins anew at ${until}`;
      state = { ...state, notices: [...state.notices, notice] };
    }
  }
  return state;
}
