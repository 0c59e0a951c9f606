/**
 * The verbs of a policy file: what is wrong with it, whether its tests hold, what editors want to know of its keys.
 */

import { lookup } from 'node:dns/promises';
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { VpnError } from '../src/base/errors.ts';
import type { PolicyCheck, PolicyTrial } from '../src/cli/host.ts';
import { type IpAddress, parseIp, parsePrefix, prefixContains } from '../src/ip/address.ts';
import { type Problem, policyJsonSchema } from '../src/policy/document.ts';
import { readExpectations, tryExpectation } from '../src/policy/expectation.ts';
import { type Policy, readPolicy } from '../src/policy/policy.ts';
import { reviewPolicy } from '../src/policy/review.ts';
import { checkNetworks } from '../src/policy/sites.ts';

/** Names that are looked up at once. */
const CONCURRENCY = 16;
/** For all of them. */
const LOOKUP_MS = 10_000;

/** What a gateway adds to a policy file when its tests are tried. */
export interface PolicyWorld {
  /** Addresses that clients get. */
  readonly pool: readonly string[];
  /** What clients reach through it. */
  readonly routes: readonly string[];
  groupsOfUser(user: string): readonly string[];
}

/** `policy check`. */
export async function checkPolicy(file: string, world: Pick<PolicyWorld, 'pool' | 'routes'>): Promise<PolicyCheck> {
  const { policy, problems } = await read(file);
  // Without a gateway nobody knows its networks.
  const misfits = policy === undefined || world.pool.length === 0 ? [] : checkNetworks(policy, world);
  const { expectations, unreadable } =
    policy === undefined ? { expectations: [], unreadable: [] } : readExpectations(policy);
  return {
    file,
    good: policy !== undefined && unreadable.length === 0 && !misfits.some(({ severity }) => severity === 'error'),
    rules: policy?.rules.length ?? 0,
    tests: expectations.length,
    problems: [
      ...problems,
      ...(policy === undefined ? [] : reviewPolicy(policy)),
      ...misfits,
      ...unreadable.map(({ line, message }): Problem => ({ severity: 'error', line, column: 1, message })),
    ].toSorted((a, b) => a.line - b.line),
  };
}

/**
 * `policy test`.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE when the file has errors
 */
export async function testPolicy(file: string, world: PolicyWorld): Promise<PolicyTrial> {
  const { policy } = await read(file);
  const { problems, good } = await checkPolicy(file, world);
  if (policy === undefined || !good) {
    const first = problems.find(({ severity }) => severity === 'error');
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      `${file}:${first?.line}: ${first?.message}; see all with: customvpn policy check ${file}`,
    );
  }
  const { expectations } = readExpectations(policy);
  const names = expectations.flatMap(({ where }) => (typeof where.host === 'string' ? [where.host] : []));
  const addresses = await lookUp([...new Set([...policy.hosts, ...names])]);
  const pool = world.pool.map(parsePrefix);
  const surroundings = {
    addressesOf: (host: string) => addresses.get(host) ?? [],
    isOfClients: (address: IpAddress) => pool.some((prefix) => prefixContains(prefix, address)),
    holderOf: () => undefined,
    groupsOfUser: world.groupsOfUser,
  };
  const outcomes = expectations.map((expectation) => tryExpectation(policy, expectation, surroundings, Date.now()));
  return {
    file,
    good: outcomes.every(({ passed }) => passed),
    outcomes: outcomes.map(({ expectation: { line, text }, passed, reason }) => ({ line, text, passed, reason })),
    unresolved: [...addresses].filter(([, found]) => found.length === 0).map(([host]) => host),
  };
}

/** `policy schema`. */
export function schemaOfPolicy(): object {
  return policyJsonSchema();
}

async function read(file: string): Promise<{ policy: Policy | undefined; problems: readonly Problem[] }> {
  return readPolicy(await readPolicyText(file));
}

/** The text of a policy file, as `policy apply` sends it. @throws {VpnError} ERR_CONFIG_FILE */
export async function readPolicyText(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    const why = errno === 'ENOENT' ? 'there is no such file' : String(errno ?? cause);
    throw new VpnError('ERR_CONFIG_FILE', `cannot read the policy ${file}: ${why}`, { cause, details: { path: file } });
  }
}

async function lookUp(hosts: readonly string[]): Promise<Map<string, IpAddress[]>> {
  const found = new Map<string, IpAddress[]>();
  const waiting = hosts.values();
  const limit = delay(LOOKUP_MS, [], { ref: false });
  const work = async (): Promise<void> => {
    for (const host of waiting) {
      const answers = await Promise.race([lookup(host, { all: true }).catch(() => []), limit]);
      found.set(
        host,
        answers.map(({ address }) => parseIp(address)),
      );
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, work));
  return found;
}
