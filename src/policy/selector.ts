/**
 * Which rules are in force for many sessions, as time passes.
 *
 * Hides how a thousand sessions are judged by thousands of rules without looking at each rule for each: sessions that rules
 * cannot tell apart share one answer, the rules of a subject are found by its name, and hours are asked once for all.
 */

import { groupsOf, type Holder } from './access.ts';
import { formatDestination, formatSubject, type Policy, type Rule } from './policy.ts';
import { type Settings, settingsFor } from './settings.ts';

/** What a policy comes to for one session. The same object as long as nothing has changed. */
export interface Selection {
  /** By their place in the policy, ascending. */
  readonly numbers: readonly number[];
  readonly rules: readonly Rule[];
  /** What it is when rules lead to `user:NAME` and `group:NAME`; only what some rule leads to. */
  readonly peers: readonly string[];
  readonly settings: Settings;
}

const MINUTE_MS = 60_000;

export class Selector {
  readonly policy: Policy;
  readonly #bySubject = new Map<string, Rule[]>();
  /** Those that some rule leads to. */
  readonly #destinations = new Set<string>();
  /** Those that some rule or setting speaks of. */
  readonly #users = new Set<string>();
  /** Ages of second factors that rules ask for, in minutes. */
  readonly ages: readonly number[];
  readonly #known = new Map<string, Selection>();
  readonly #hours: readonly { readonly key: string; includes(at: number): boolean }[];
  #minute = Number.NaN;
  #open = '';

  constructor(policy: Policy) {
    this.policy = policy;
    const ages = new Set<number>();
    for (const rule of policy.rules) {
      for (const subject of rule.from) {
        const key = formatSubject(subject);
        const list = this.#bySubject.get(key);
        if (list === undefined) this.#bySubject.set(key, [rule]);
        else list.push(rule);
        if (subject.kind === 'user') this.#users.add(subject.name);
      }
      for (const to of rule.to) {
        if (to.kind === 'user' || to.kind === 'group') this.#destinations.add(formatDestination(to));
        if (to.kind === 'user') this.#users.add(to.name);
      }
      if (rule.mfaMinutes !== undefined) ages.add(rule.mfaMinutes);
    }
    for (const { for: subjects } of policy.settings) {
      for (const subject of subjects) if (subject.kind === 'user') this.#users.add(subject.name);
    }
    this.ages = [...ages].sort((a, b) => a - b);
    const hours = policy.rules.flatMap((rule) => rule.hours ?? []);
    this.#hours = [...new Map(hours.map((one) => [one.key, one])).values()];
  }

  /**
   * What is in force for a session at a time.
   *
   * @param now milliseconds since the Unix epoch
   */
  select(holder: Holder, now: number): Selection {
    this.look(now);
    const { user, hasCertificate, mfaAt } = holder;
    const groups = [...groupsOf(this.policy, holder)].sort();
    const age = this.ages.find((minutes) => mfaAt !== undefined && now - mfaAt <= minutes * MINUTE_MS) ?? '';
    const name = this.#users.has(user) ? user : '';
    // No name has a line break in it.
    const key = `${name}\n${hasCertificate}\n${age}\n${groups.join('\n')}`;
    let selection = this.#known.get(key);
    if (selection === undefined) {
      selection = this.#make(holder, groups, now);
      this.#known.set(key, selection);
    }
    return selection;
  }

  /** Forgets what other hours have made. @returns which hours it is; the same as long as they are the same */
  look(now: number): string {
    const minute = Math.floor(now / MINUTE_MS);
    if (minute === this.#minute) return this.#open;
    this.#minute = minute;
    const open = this.#hours.map((hours) => (hours.includes(now) ? '1' : '0')).join('');
    if (open !== this.#open) this.#known.clear();
    this.#open = open;
    return open;
  }

  #make(holder: Holder, groups: readonly string[], now: number): Selection {
    const subjects = ['any', `user:${holder.user}`, ...groups.map((group) => `group:${group}`)];
    const found = new Set(subjects.flatMap((subject) => this.#bySubject.get(subject) ?? []));
    const rules = [...found]
      .filter(
        ({ needsCertificate, mfaMinutes, hours }) =>
          (!needsCertificate || holder.hasCertificate) &&
          (mfaMinutes === undefined || (holder.mfaAt !== undefined && now - holder.mfaAt <= mfaMinutes * MINUTE_MS)) &&
          (hours === undefined || hours.includes(now)),
      )
      .sort((a, b) => a.index - b.index);
    return {
      numbers: rules.map(({ index }) => index),
      rules,
      peers: subjects.slice(1).filter((subject) => this.#destinations.has(subject)),
      settings: settingsFor(this.policy, holder),
    };
  }
}
