/**
 * What in a policy is allowed and probably not meant: rules that never count, routes to where nothing is allowed.
 *
 * Hides how a rule is found to be covered by one before it, without comparing each with each. A warning here is certain:
 * what is covered only by several rules together is not found.
 */

import { formatPrefix, type Prefix, prefixCovers, prefixesOverlap } from '../ip/address.ts';
import type { Problem } from './document.ts';
import type { Destination, Policy, Rule, Subject } from './policy.ts';
import { formatDestination, formatSubject } from './policy.ts';
import { serviceCovers } from './service.ts';

/** Rules before one that are compared with it, at most. */
const MAX_COMPARED = 2_000;

/** Warnings about a policy, by line. */
export function reviewPolicy(policy: Policy): Problem[] {
  return [...shadowedRules(policy.rules), ...uselessRoutes(policy), ...sitesAtOdds(policy)].toSorted(
    (a, b) => a.line - b.line,
  );
}

/** Routes that are pushed though no rule allows anything there. Where a rule leads to a name, nobody knows. */
function uselessRoutes({ rules, settings }: Policy): Problem[] {
  const allowed = rules.filter(({ action }) => action === 'allow').flatMap(({ to }) => to);
  if (allowed.some(({ kind }) => kind === 'any' || kind === 'host')) return [];
  const prefixes = allowed.flatMap((one) => (one.kind === 'prefix' ? [one.prefix] : []));
  return settings.flatMap(({ line, settings: { routes = [] } }) =>
    routes
      .filter((route) => !prefixes.some((prefix) => prefixesOverlap(prefix, route)))
      .map((route): Problem => {
        const message = `the route ${formatPrefix(route)} is pushed, and no rule allows anything there`;
        return { severity: 'warning', line, column: 1, message };
      }),
  );
}

/** Sites that nobody reaches, and routes that are pushed to what is at a site anyway. */
function sitesAtOdds({ rules, settings, sites }: Policy): Problem[] {
  const problems: Problem[] = [];
  const allowed = rules.filter(({ action }) => action === 'allow').flatMap(({ to }) => to);
  const isReached = (network: Prefix): boolean =>
    allowed.some((to) => to.kind === 'any' || (to.kind === 'prefix' && prefixesOverlap(to.prefix, network)));
  for (const { name, line, networks, openTo } of sites) {
    if (openTo.length > 0 || networks.some(({ seenAs }) => isReached(seenAs))) continue;
    const message = `no rule allows anything to the site ${name}: name it in "to", as site:${name}`;
    problems.push({ severity: 'warning', line, column: 1, message });
  }
  for (const { line, settings: given } of settings) {
    for (const route of given.routes ?? []) {
      const site = sites.find(({ networks }) => networks.some(({ seenAs }) => prefixCovers(seenAs, route)));
      if (site === undefined) continue;
      const message = `the route ${formatPrefix(route)} is that of the site ${site.name} in line ${site.line}, which is pushed to whoever may reach it: leave it out`;
      problems.push({ severity: 'warning', line, column: 1, message });
    }
  }
  return problems;
}

function shadowedRules(rules: readonly Rule[]): Problem[] {
  const problems: Problem[] = [];
  const earlier = new Map<string, Rule[]>();
  for (const rule of rules) {
    const [subject] = rule.from;
    // Whatever covers it covers its first subject and its first destination.
    const [destination] = rule.to;
    if (subject !== undefined && destination !== undefined) {
      const cover = candidates(earlier, subject, destination).find((candidate) => covers(candidate, rule));
      if (cover !== undefined) {
        const same = cover.action === rule.action;
        problems.push({
          severity: 'warning',
          line: rule.line,
          column: 1,
          message: same
            ? `${rule.name} adds nothing: ${cover.name} in line ${cover.line} ${verb(cover)} all of it`
            : `${rule.name} is never reached: ${cover.name} in line ${cover.line} ${verb(cover)} all of it before`,
        });
      }
    }
    for (const one of rule.from) {
      for (const to of rule.to) {
        const key = keyOf(one, to);
        const list = earlier.get(key);
        if (list === undefined) earlier.set(key, [rule]);
        else list.push(rule);
      }
    }
  }
  return problems;
}

/** The rules before that speak of a subject and of a destination, or of more. */
function candidates(earlier: ReadonlyMap<string, readonly Rule[]>, subject: Subject, to: Destination): Rule[] {
  const subjects: Subject[] = subject.kind === 'any' ? [subject] : [{ kind: 'any' }, subject];
  const found = new Set<Rule>();
  for (const one of subjects) {
    for (const wider of widerThan(to)) {
      for (const rule of earlier.get(keyOf(one, wider)) ?? []) {
        found.add(rule);
        if (found.size === MAX_COMPARED) return [...found];
      }
    }
  }
  return [...found];
}

function* widerThan(destination: Destination): Generator<Destination> {
  yield destination;
  if (destination.kind === 'user' || destination.kind === 'group') yield { kind: 'clients' };
  if (destination.kind === 'host') yield { kind: 'any' };
  if (destination.kind !== 'prefix') return;
  yield { kind: 'any' };
  const { address, length } = destination.prefix;
  const bytes = address.bytes.slice();
  for (let bit = length - 1; bit >= 0; bit--) {
    bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) & (0xff00 >> (bit & 7));
    const prefix: Prefix = { address: { version: address.version, bytes: bytes.slice() }, length: bit };
    yield { kind: 'prefix', prefix };
  }
}

function keyOf(subject: Subject, destination: Destination): string {
  return `${formatSubject(subject)} ${formatDestination(destination)}`;
}

/** Whether whatever an inner rule matches is matched by the outer one, at any time and in any session. */
function covers(outer: Rule, inner: Rule): boolean {
  return (
    (outer.hours === undefined || outer.hours.key === inner.hours?.key) &&
    (!outer.needsCertificate || inner.needsCertificate) &&
    (outer.mfaMinutes === undefined || (inner.mfaMinutes !== undefined && inner.mfaMinutes <= outer.mfaMinutes)) &&
    inner.from.every((one) => outer.from.some((other) => subjectCovers(other, one))) &&
    inner.services.every((one) => outer.services.some((other) => serviceCovers(other, one))) &&
    inner.to.every((one) => outer.to.some((other) => destinationCovers(other, one)))
  );
}

function subjectCovers(outer: Subject, inner: Subject): boolean {
  return outer.kind === 'any' || formatSubject(outer) === formatSubject(inner);
}

function destinationCovers(outer: Destination, inner: Destination): boolean {
  if (outer.kind === 'any') return inner.kind === 'any' || inner.kind === 'prefix' || inner.kind === 'host';
  if (outer.kind === 'clients') return inner.kind === 'clients' || inner.kind === 'user' || inner.kind === 'group';
  if (outer.kind === 'prefix' && inner.kind === 'prefix') {
    return prefixCovers(outer.prefix, inner.prefix);
  }
  return formatDestination(outer) === formatDestination(inner);
}

function verb({ action }: Rule): string {
  return action === 'allow' ? 'allows' : 'denies';
}
