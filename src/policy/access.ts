/**
 * What a policy says about one packet or connection, in this process.
 *
 * Hides how the rules that concern a session are found, and how an address is looked for in them. The kernel has the same
 * rules as a table of its own (`kernel-rules.ts`); a test holds the two against an evaluator that knows neither.
 */

import { type IpAddress, ipEquals, prefixContains } from '../ip/address.ts';
import type { Destination, Policy, Rule, Subject } from './policy.ts';
import { serviceMatches, type Transport } from './service.ts';

/** A session, as far as rules look at it. */
export interface Holder {
  readonly user: string;
  /** Those of the account; the policy file adds its own. */
  readonly groups: Iterable<string>;
  /** A client certificate was shown. */
  readonly hasCertificate: boolean;
  /** When a second factor was proven, milliseconds since the Unix epoch; undefined: never. */
  readonly mfaAt?: number | undefined;
}

/** What changes without the policy file. */
export interface Surroundings {
  /** The addresses that a host name has; none: the name could not be looked up. */
  addressesOf(host: string): readonly IpAddress[];
  /** Whether an address is one of those that clients get. */
  isOfClients(address: IpAddress): boolean;
  /** Whose session has an address; undefined: nobody's. */
  holderOf(address: IpAddress): Holder | undefined;
}

/** The first packet of a connection. */
export interface Flow extends Transport {
  readonly destination: IpAddress;
}

export interface Decision {
  readonly action: 'allow' | 'deny';
  /** Undefined: no rule matched, so it is denied. */
  readonly rule: Rule | undefined;
}

/** Every group that somebody is in, with those of the policy file. */
export function groupsOf(policy: Policy, { user, groups }: Pick<Holder, 'user' | 'groups'>): Set<string> {
  const all = new Set([...groups, ...(policy.memberships.get(user) ?? [])]);
  // Grows while it is walked.
  for (const group of all) for (const outer of policy.nesting.get(group) ?? []) all.add(outer);
  return all;
}

/**
 * The rules that are in force for a session at a time, in their order: whose subject it is, whose hours it is, and whose
 * requirements it meets.
 *
 * @param now milliseconds since the Unix epoch
 */
export function rulesFor(policy: Policy, holder: Holder, now: number): Rule[] {
  const groups = groupsOf(policy, holder);
  return policy.rules.filter(
    (rule) =>
      rule.from.some((subject) => isSubject(subject, holder.user, groups)) &&
      (!rule.needsCertificate || holder.hasCertificate) &&
      (rule.mfaMinutes === undefined || isRecent(holder.mfaAt, rule.mfaMinutes, now)) &&
      (rule.hours === undefined || rule.hours.includes(now)),
  );
}

/**
 * Judges a flow by rules that are in force for its session. Default: deny.
 *
 * Clients are reached only by what speaks of them (`clients`, users, groups): no prefix, host or `any` opens a way from one
 * client to another.
 */
export function decide(policy: Policy, rules: readonly Rule[], flow: Flow, surroundings: Surroundings): Decision {
  const { version } = flow.destination;
  for (const rule of rules) {
    if (!rule.services.some((service) => serviceMatches(service, version, flow))) continue;
    if (!rule.to.some((destination) => isDestination(policy, destination, flow.destination, surroundings))) continue;
    return { action: rule.action, rule };
  }
  return { action: 'deny', rule: undefined };
}

/** Whether somebody of that name, in those groups, is meant. */
export function isSubject(subject: Subject, user: string, groups: ReadonlySet<string>): boolean {
  switch (subject.kind) {
    case 'any':
      return true;
    case 'user':
      return subject.name === user;
    case 'group':
      return groups.has(subject.name);
  }
}

function isDestination(
  policy: Policy,
  destination: Destination,
  address: IpAddress,
  { addressesOf, isOfClients, holderOf }: Surroundings,
): boolean {
  switch (destination.kind) {
    case 'any':
      return !isOfClients(address);
    case 'prefix':
      return prefixContains(destination.prefix, address) && !isOfClients(address);
    case 'host':
      return !isOfClients(address) && addressesOf(destination.name).some((one) => ipEquals(one, address));
    case 'clients':
      return isOfClients(address);
    case 'user':
      return holderOf(address)?.user === destination.name;
    case 'group': {
      const holder = holderOf(address);
      return holder !== undefined && groupsOf(policy, holder).has(destination.name);
    }
  }
}

function isRecent(at: number | undefined, minutes: number, now: number): boolean {
  return at !== undefined && now - at <= minutes * 60_000;
}
