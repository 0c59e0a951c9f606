/**
 * Which steps a login has to pass.
 *
 * Hides how the lists of the configuration become the list for one user: the lists of the groups that they are in, all of
 * them together, or the default; always `device` first, each step once, in one order. Pure.
 *
 * What is asked must tell nothing about an account to somebody who has proven nothing. Where all lists are the same, it is
 * asked at once. Otherwise the first round asks what everybody is asked, and the second what this user is; a user or
 * device that does not exist gets a list, too, the same each time (docs/protocol.md, REQ-LOGIN-024).
 *
 * A login at a provider costs the provider a request and the person their attention: the device proves its key in a round
 * of its own before.
 */

import type { LoginEvidence } from '../protocol/login.ts';
import type { StepKind } from '../protocol/messages.ts';

export type LoginPurpose = LoginEvidence['purpose'];

/** As configured. */
export interface LoginRules {
  /** Of users in no group of `groups`. */
  readonly steps: readonly StepKind[];
  /** What brings a device in; whoever enrols must also pass the steps of their logins. */
  readonly enrol: readonly StepKind[];
  /** Of users in a group, in place of `steps`. */
  readonly groups: Readonly<Record<string, { readonly steps: readonly StepKind[] }>>;
}

/** A device's key and nothing else; a profile's token brings the device in. */
export const DEFAULT_LOGIN_RULES: LoginRules = { steps: ['device'], enrol: ['device', 'token'], groups: {} };

/** The order in which steps are asked: what costs nothing and needs nobody first. */
const ORDER: readonly StepKind[] = ['device', 'certificate', 'token', 'password', 'totp', 'oidc'];
/** What the first round asks where a later one sends a person to a provider: nothing that people would type twice. */
const FROM_MACHINES: readonly StepKind[] = ['device', 'certificate', 'token'];

/** The steps for a user in these groups. */
export function stepsFor(rules: LoginRules, purpose: LoginPurpose, groups: readonly string[]): readonly StepKind[] {
  const own = groups.flatMap((group) => (Object.hasOwn(rules.groups, group) ? (rules.groups[group]?.steps ?? []) : []));
  return withPurpose(rules, purpose, own.length === 0 ? rules.steps : own);
}

/** What is asked before anything is known. */
export function firstSteps(rules: LoginRules, purpose: LoginPurpose): readonly StepKind[] {
  const lists = possibleSteps(rules, purpose);
  const [only, another] = lists;
  const enrol = purpose === 'enrol' ? rules.enrol : [];
  if (lists.some(leadsToProvider)) return ordered(enrol.filter((step) => FROM_MACHINES.includes(step)));
  if (only !== undefined && another === undefined) return only;
  return ordered(enrol);
}

/**
 * The list for somebody who does not exist.
 *
 * @param choice any number; the same one for the same somebody
 */
export function stepsForNobody(rules: LoginRules, purpose: LoginPurpose, choice: number): readonly StepKind[] {
  const lists = possibleSteps(rules, purpose);
  return lists[choice % lists.length] ?? ordered(rules.steps);
}

/** Whether a person has to be sent to a provider. */
export function leadsToProvider(steps: readonly StepKind[]): boolean {
  return steps.includes('oidc');
}

export function isSameSteps(one: readonly StepKind[], other: readonly StepKind[]): boolean {
  return one.length === other.length && one.every((step, index) => step === other[index]);
}

/** The lists that users of one group or of none can have, without repetition. */
function possibleSteps(rules: LoginRules, purpose: LoginPurpose): (readonly StepKind[])[] {
  const lists = [rules.steps, ...Object.values(rules.groups).map(({ steps }) => steps)];
  const found = new Map(lists.map((list) => withPurpose(rules, purpose, list)).map((list) => [list.join(), list]));
  return [...found.values()];
}

function withPurpose(rules: LoginRules, purpose: LoginPurpose, steps: readonly StepKind[]): readonly StepKind[] {
  // The token of an enrolment is the profile's: a machine's own token does not exist yet for a device that does not.
  return ordered(purpose === 'login' ? steps : [...rules.enrol, ...steps.filter((step) => step !== 'token')]);
}

function ordered(steps: readonly StepKind[]): readonly StepKind[] {
  return ORDER.filter((step) => step === 'device' || steps.includes(step));
}
