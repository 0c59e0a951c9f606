/**
 * Whether a policy file may be used: what is wrong in it, and which of its own tests fail.
 *
 * Hides the order of the questions. A file with an error, or with a test that fails, is used nowhere.
 */

import { VpnError } from '../base/errors.ts';
import type { Surroundings } from './access.ts';
import type { Problem } from './document.ts';
import { type Outcome, readExpectations, tryExpectation } from './expectation.ts';
import { type Policy, readPolicy } from './policy.ts';

/**
 * Reads a policy that is to be used.
 *
 * @param file its name, for messages
 * @throws {VpnError} ERR_CONFIG_VALUE with the first line that is wrong
 */
export function usablePolicy(text: string, file: string): Policy {
  const { policy, problems } = readPolicy(text);
  const errors: Pick<Problem, 'line' | 'message'>[] = problems.filter(({ severity }) => severity === 'error');
  if (policy !== undefined) errors.push(...readExpectations(policy).unreadable);
  const [first] = errors;
  if (policy !== undefined && first === undefined) return policy;
  const more = errors.length > 1 ? ` and ${errors.length - 1} more` : '';
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `policyFile: ${file}:${first?.line ?? 1}: ${first?.message ?? 'not a policy'}${more}; see all with: customvpn policy check ${file}`,
    { details: { key: 'policyFile', line: first?.line ?? 1 } },
  );
}

/** The host names that the tests of a policy speak of. */
export function testedHosts(policy: Policy): string[] {
  return readExpectations(policy).expectations.flatMap(({ where }) =>
    typeof where.host === 'string' ? [where.host] : [],
  );
}

/**
 * Tries the tests of a policy.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE when one fails, which it names
 */
export function requireTests(
  policy: Policy,
  file: string,
  surroundings: Surroundings & { groupsOfUser(user: string): Iterable<string> },
  now: number,
): void {
  const { expectations } = readExpectations(policy);
  const failed: Outcome[] = expectations
    .map((expectation) => tryExpectation(policy, expectation, surroundings, now))
    .filter(({ passed }) => !passed);
  const [first] = failed;
  if (first === undefined) return;
  const { expectation, reason } = first;
  const more = failed.length > 1 ? `, and ${failed.length - 1} other tests fail` : '';
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `policyFile: ${file}:${expectation.line}: the test "${expectation.text}" fails: ${reason}${more}; see: customvpn policy test ${file}`,
    { details: { key: 'policyFile', line: expectation.line } },
  );
}
