/**
 * A policy that somebody is writing: what is wrong with it, whether its tests hold, and what it would change.
 *
 * Nothing of it is put in force, and nothing of the one in force changes.
 */

import type { GatewayApi } from '../../control/operations.ts';
import { comparePolicies } from '../../policy/comparison.ts';
import { readExpectations, tryExpectation } from '../../policy/expectation.ts';
import { EMPTY_POLICY, readPolicy } from '../../policy/policy.ts';
import { reviewPolicy } from '../../policy/review.ts';
import type { AccessDesk } from './access-desk.ts';

type Examination = Awaited<ReturnType<GatewayApi['policy.check']>>;

const MAX_DIFFERENCES = 200;
/** Of those who have an account. */
const MAX_PEOPLE = 500;

/**
 * Examines a policy's text.
 *
 * @param now milliseconds since the Unix epoch
 * @throws {VpnError} ERR_STORE
 */
export async function examineDraft(text: string, access: AccessDesk, now: number): Promise<Examination> {
  const { policy, problems } = readPolicy(text);
  if (policy === undefined) {
    return { good: false, rules: 0, problems: [...problems], outcomes: [], changes: [], isCut: false };
  }
  const { expectations, unreadable } = readExpectations(policy);
  const all = [
    ...problems,
    ...reviewPolicy(policy),
    ...unreadable.map(({ line, message }) => ({ severity: 'error' as const, line, column: 1, message })),
  ].toSorted((a, b) => a.line - b.line);
  const isReadable = !all.some(({ severity }) => severity === 'error');
  if (!isReadable) {
    return { good: false, rules: policy.rules.length, problems: all, outcomes: [], changes: [], isCut: false };
  }
  const surroundings = await access.surroundingsOf(policy);
  const outcomes = expectations.map((expectation) => tryExpectation(policy, expectation, surroundings, now));
  const people = [...surroundings.groups]
    .slice(0, MAX_PEOPLE)
    .map(([user, groups]) => ({ user, groups, hasCertificate: false }));
  const former = access.inForce?.selector.policy ?? EMPTY_POLICY;
  const limits = { now, limit: MAX_DIFFERENCES };
  const changes = comparePolicies(former, policy, people, surroundings, limits);
  return {
    good: outcomes.every(({ passed }) => passed),
    rules: policy.rules.length,
    problems: all,
    outcomes: outcomes.map(({ expectation: { line, text: said }, passed, reason }) => ({
      line,
      text: said,
      passed,
      reason,
    })),
    changes: changes.map(({ rule, ...change }) => ({ ...change, rule: rule ?? null })),
    isCut: changes.length >= MAX_DIFFERENCES || surroundings.groups.size > MAX_PEOPLE,
  };
}
