/**
 * What the sessions of some get beside access: routes, name servers, limits of time, rates and quotas.
 *
 * Hides the order in which entries count: for each key the first entry that speaks of the session and has it. A key that no
 * entry has is as the gateway's configuration says.
 */

import type { Prefix } from '../ip/address.ts';
import { groupsOf, type Holder, isSubject } from './access.ts';
import type { Policy, Subject } from './policy.ts';

/** Every key may be missing. */
export interface Settings {
  /** Networks that are pushed in place of the gateway's. */
  readonly routes?: readonly Prefix[] | undefined;
  /** `full`: everything is pushed, whatever `routes` says. */
  readonly mode?: 'full' | 'split' | undefined;
  /** Name servers, as text. */
  readonly dns?: readonly string[] | undefined;
  readonly dnsDomains?: readonly string[] | undefined;
  /** A session ends after this, however busy. */
  readonly absoluteSeconds?: number | undefined;
  /** A session ends when no packet came for this long. */
  readonly idleSeconds?: number | undefined;
  /** For all sessions of a user together. */
  readonly downMbit?: number | undefined;
  readonly upMbit?: number | undefined;
  readonly burstKiB?: number | undefined;
  readonly quotaDayGiB?: number | undefined;
  readonly quotaMonthGiB?: number | undefined;
  readonly overQuota?: 'slow' | 'refuse' | undefined;
  readonly slowMbit?: number | undefined;
  readonly compression?: boolean | undefined;
}

/** Rates that the members of a group share. */
export type GroupLimit = Pick<Settings, 'downMbit' | 'upMbit' | 'burstKiB'>;

/** Some settings, and for whom. */
export interface SettingsEntry {
  readonly for: readonly Subject[];
  /** Where it stands. */
  readonly line: number;
  readonly settings: Settings;
}

/** What a session gets. */
export function settingsFor(policy: Policy, holder: Pick<Holder, 'user' | 'groups'>): Settings {
  const groups = groupsOf(policy, holder);
  const entries = policy.settings.filter((entry) =>
    entry.for.some((subject) => isSubject(subject, holder.user, groups)),
  );
  // What comes later in an object counts: so the first entry last.
  return Object.assign({}, ...entries.map(({ settings }) => given(settings)).reverse()) as Settings;
}

/** Without the keys that say nothing. */
function given(settings: Settings): Settings {
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
}
