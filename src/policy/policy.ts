/**
 * A policy: who may reach what, as an ordered list of rules of which the first that matches counts.
 *
 * Hides how the names in a policy file are looked up: groups of users, networks, services. What comes out speaks only of
 * users, groups, prefixes, host names and services. Default deny: where no rule matches, nothing is reached.
 */

import { toVpnError } from '../base/errors.ts';
import { formatPrefix, type Prefix, parseIp, parsePrefix } from '../ip/address.ts';
import { type ClassRule, TrafficClass } from '../ip/traffic-class.ts';
import {
  type PolicyDocument,
  type Problem,
  type ReadDocument,
  type RuleDocument,
  readDocument,
  type SettingsDocument,
} from './document.ts';
import { Hours } from './hours.ts';
import { formatService, parseService, type Service, TCP } from './service.ts';
import type { GroupLimit, SettingsEntry } from './settings.ts';
import { destinationsOf, readSites, readStaticAddresses, type Site, type StaticAddresses } from './sites.ts';

/** Who a rule speaks of. */
export type Subject =
  | { readonly kind: 'any' }
  | { readonly kind: 'user'; readonly name: string }
  | { readonly kind: 'group'; readonly name: string };

/** Where to. Users and groups stand for the addresses of their sessions, `clients` for those of all sessions. */
export type Destination =
  | { readonly kind: 'any' }
  | { readonly kind: 'prefix'; readonly prefix: Prefix }
  /** The addresses that the host's name has, as the gateway looks it up. */
  | { readonly kind: 'host'; readonly name: string }
  | { readonly kind: 'clients' }
  | { readonly kind: 'user'; readonly name: string }
  | { readonly kind: 'group'; readonly name: string };

export interface Rule {
  /** Its place in the file, from 0. */
  readonly index: number;
  readonly name: string;
  /** Where it stands. */
  readonly line: number;
  readonly action: 'allow' | 'deny';
  readonly from: readonly Subject[];
  readonly to: readonly Destination[];
  readonly services: readonly Service[];
  readonly hours: Hours | undefined;
  readonly needsCertificate: boolean;
  /** A second factor must have been proven not longer ago. */
  readonly mfaMinutes: number | undefined;
}

export interface Policy {
  readonly rules: readonly Rule[];
  readonly settings: readonly SettingsEntry[];
  /** Networks behind clients. */
  readonly sites: readonly Site[];
  /** Addresses that are always the same. */
  readonly addresses: readonly StaticAddresses[];
  /** Rates that groups share, by group. */
  readonly groupLimits: ReadonlyMap<string, GroupLimit>;
  /** Which traffic belongs to which class; the first counts. */
  readonly classes: readonly ClassRule[];
  /** Groups that the file adds members to: user → groups, through groups in groups. */
  readonly memberships: ReadonlyMap<string, ReadonlySet<string>>;
  /** Groups within groups: group → every group that has it as a member. */
  readonly nesting: ReadonlyMap<string, ReadonlySet<string>>;
  /** Every group that the file speaks of. */
  readonly groups: ReadonlySet<string>;
  /** Host names to look up. */
  readonly hosts: readonly string[];
  readonly tests: readonly { readonly text: string; readonly line: number }[];
}

/** Allows nothing to anybody. */
export const EMPTY_POLICY: Policy = {
  rules: [],
  settings: [],
  sites: [],
  addresses: [],
  memberships: new Map(),
  nesting: new Map(),
  groups: new Set(),
  hosts: [],
  tests: [],
  groupLimits: new Map(),
  classes: [],
};

export interface ReadPolicy {
  /** Undefined when there is an error. */
  readonly policy: Policy | undefined;
  /** By line. */
  readonly problems: readonly Problem[];
}

const ACCOUNT = /^[\p{L}\p{N}][\p{L}\p{M}\p{N}._@+-]{0,63}$/u;
const HOST = /^(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/;
const PATH_DEPTH = 16;
/** Entries of networks and services that are walked while names are looked up. */
const MAX_STEPS = 2_000_000;

/** Reads the text of a policy file. Never throws for what is in it. */
export function readPolicy(text: string): ReadPolicy {
  const read = readDocument(text);
  if (read.document === undefined) return { policy: undefined, problems: sorted(read.problems) };
  const reader = new PolicyReader(read.document, read);
  const policy = reader.read();
  const problems = sorted(reader.problems);
  return { policy: problems.some(({ severity }) => severity === 'error') ? undefined : policy, problems };
}

class PolicyReader {
  readonly problems: Problem[] = [];
  readonly #document: PolicyDocument;
  readonly #locate: ReadDocument['locate'];
  readonly #lineOf: ReadDocument['lineOf'];
  readonly #groups = new Set<string>();
  readonly #hosts = new Set<string>();
  /** What a named network or service has turned out to be. */
  readonly #networks = new Map<string, readonly Destination[]>();
  readonly #services = new Map<string, readonly Service[]>();
  #sites: readonly Site[] = [];
  #steps = 0;

  constructor(document: PolicyDocument, { locate, lineOf }: Pick<ReadDocument, 'locate' | 'lineOf'>) {
    this.#document = document;
    this.#locate = locate;
    this.#lineOf = lineOf;
  }

  read(): Policy {
    const { groups, networks, services, rules, settings, sites, addresses, groupLimits, classes, tests } =
      this.#document;
    const tables = {
      error: (path: readonly PropertyKey[], message: string) => this.#error(path, message),
      account: (text: string) => this.#account(text),
      line: (path: readonly PropertyKey[]) => this.#locate(path).line,
    };
    // Before the networks and rules that speak of them.
    this.#sites = readSites(sites, tables);
    for (const name of Object.keys(networks)) this.#network(name, ['networks', name], []);
    for (const name of Object.keys(services)) this.#service(name, ['services', name], []);
    for (const name of Object.keys(groups)) this.#groups.add(normal(name));
    const { memberships, nesting } = this.#members();
    return {
      rules: rules.map((rule, index) => this.#rule(rule, index)),
      settings: settings.map((entry, index) => this.#settings(entry, index)),
      sites: this.#sites,
      addresses: readStaticAddresses(addresses, this.#sites, tables),
      groupLimits: new Map(Object.entries(groupLimits).map(([name, limit]) => [this.#limited(name), limit])),
      classes: classes.flatMap((entry, index) => this.#classRules(entry, index)),
      memberships,
      nesting,
      groups: this.#groups,
      hosts: [...this.#hosts].sort(),
      tests: tests.expect.map((text, index) => ({ text, line: this.#lineOf('tests', index) })),
    };
  }

  #error(path: readonly PropertyKey[], message: string): void {
    this.problems.push({ severity: 'error', ...this.#locate(path), message });
  }

  #rule(rule: RuleDocument, index: number): Rule {
    const path = ['rules', index];
    const line = this.#lineOf('rules', index);
    return {
      index,
      name: rule.name ?? `rule ${index + 1}`,
      line,
      action: rule.action,
      from: unique(
        rule.from.flatMap((text, at) => this.#subject(text, [...path, 'from', at])),
        formatSubject,
      ),
      to: unique(
        rule.to.flatMap((text, at) => this.#destination(text, [...path, 'to', at], [])),
        formatDestination,
      ),
      services: unique(
        rule.services.flatMap((text, at) => this.#service(text, [...path, 'services', at], [])),
        formatService,
      ),
      hours: rule.when === undefined ? undefined : new Hours(rule.when),
      needsCertificate: rule.require?.certificate === true,
      mfaMinutes: rule.require?.mfaMinutes,
    };
  }

  #settings({ for: subjects, routes, ...settings }: SettingsDocument, index: number): SettingsEntry {
    const path = ['settings', index];
    return {
      for: subjects.flatMap((text, at) => this.#subject(text, [...path, 'for', at])),
      line: this.#lineOf('settings', index),
      settings: { ...settings, routes: routes?.flatMap((text, at) => this.#route(text, [...path, 'routes', at])) },
    };
  }

  #limited(name: string): string {
    this.#groups.add(normal(name));
    return normal(name);
  }

  #classRules({ class: name, services }: PolicyDocument['classes'][number], index: number): ClassRule[] {
    return services.flatMap((text, at) => {
      const path = ['classes', index, 'services', at];
      return this.#service(text, path, []).flatMap((service): ClassRule[] => {
        if (service.kind !== 'ports') {
          this.#error(path, `expected TCP or UDP ports, found ${formatService(service)}: other traffic has its DSCP`);
          return [];
        }
        const { low: from, high: to } = service;
        return [{ class: TrafficClass[name], protocol: service.protocol === TCP ? 'tcp' : 'udp', from, to }];
      });
    });
  }

  #route(text: string, path: readonly PropertyKey[]): Prefix[] {
    const prefix = prefixOf(text);
    if (prefix === undefined) this.#error(path, `expected a prefix such as 10.1.0.0/16, found ${JSON.stringify(text)}`);
    return prefix === undefined ? [] : [prefix];
  }

  #subject(text: string, path: readonly PropertyKey[]): Subject[] {
    if (text === 'any') return [{ kind: 'any' }];
    const account = this.#account(text);
    if (account !== undefined) return [account];
    this.#error(path, `expected any, user:NAME or group:NAME, found ${JSON.stringify(text)}`);
    return [];
  }

  #account(text: string): Extract<Subject, { name: string }> | undefined {
    const [, kind, name = ''] = /^(user|group):(.*)$/su.exec(text) ?? [];
    if (kind === undefined || !ACCOUNT.test(normal(name))) return undefined;
    if (kind === 'group') this.#groups.add(normal(name));
    return { kind: kind === 'user' ? 'user' : 'group', name: normal(name) };
  }

  #destination(text: string, path: readonly PropertyKey[], within: readonly string[]): readonly Destination[] {
    if (text === 'any' || text === 'clients') return [{ kind: text }];
    if (Object.hasOwn(this.#document.networks, text)) return this.#network(text, path, within);
    const account = this.#account(text);
    if (account !== undefined) return [account];
    const prefix = prefixOf(text);
    if (prefix !== undefined) return [{ kind: 'prefix', prefix }];
    if (text.startsWith('site:')) {
      const found = destinationsOf(text.slice('site:'.length), this.#sites);
      if (found === undefined) this.#error(path, `there is no site ${text.slice('site:'.length)} in [[sites]]`);
      return found ?? [];
    }
    const host = text.toLowerCase();
    // What consists of digits and dots is a wrong address, never a name.
    if (HOST.test(host)) {
      this.#hosts.add(host);
      return [{ kind: 'host', name: host }];
    }
    this.#error(
      path,
      `expected any, clients, a network of [networks], a prefix such as 10.1.0.0/16, an address, a host name, site:NAME, user:NAME or group:NAME, found ${JSON.stringify(text)}`,
    );
    return [];
  }

  #network(name: string, path: readonly PropertyKey[], within: readonly string[]): readonly Destination[] {
    const known = this.#networks.get(name);
    if (known !== undefined) return known;
    if (this.#isLoop('network', name, path, within)) return [];
    const found = new Map<string, Destination>();
    for (const [at, text] of (this.#document.networks[name] ?? []).entries()) {
      for (const destination of this.#destination(text, ['networks', name, at], [...within, name])) {
        found.set(formatDestination(destination), destination);
        if (this.#isTooMuch(name, path)) return [];
      }
    }
    this.#networks.set(name, [...found.values()]);
    return [...found.values()];
  }

  #service(text: string, path: readonly PropertyKey[], within: readonly string[]): readonly Service[] {
    const known = this.#services.get(text);
    if (known !== undefined) return known;
    const { services } = this.#document;
    if (!Object.hasOwn(services, text)) {
      try {
        return [parseService(text)];
      } catch (error) {
        this.#error(path, toVpnError(error).message);
        return [];
      }
    }
    if (this.#isLoop('service', text, path, within)) return [];
    const found = new Map<string, Service>();
    for (const [at, entry] of (services[text] ?? []).entries()) {
      for (const service of this.#service(entry, ['services', text, at], [...within, text])) {
        found.set(formatService(service), service);
        if (this.#isTooMuch(text, path)) return [];
      }
    }
    this.#services.set(text, [...found.values()]);
    return [...found.values()];
  }

  /** Whether a name leads back to itself, or through too many others. */
  #isLoop(what: string, name: string, path: readonly PropertyKey[], within: readonly string[]): boolean {
    if (!within.includes(name) && within.length < PATH_DEPTH) return false;
    this.#error(path, `the ${what} ${name} contains itself: ${[...within, name].slice(0, 6).join(' → ')}`);
    return true;
  }

  /** Whether the names have led to more than a gateway should look at. Said once. */
  #isTooMuch(name: string, path: readonly PropertyKey[]): boolean {
    this.#steps += 1;
    if (this.#steps < MAX_STEPS) return false;
    if (this.#steps === MAX_STEPS)
      this.#error(path, `${name} and what is before it stand for more than ${MAX_STEPS} entries`);
    return true;
  }

  #members(): Pick<Policy, 'memberships' | 'nesting'> {
    const nesting = new Map<string, Set<string>>();
    const memberships = new Map<string, Set<string>>();
    for (const [key, members] of Object.entries(this.#document.groups)) {
      const group = normal(key);
      for (const [at, text] of members.entries()) {
        const account = this.#account(text.includes(':') ? text : `user:${text}`);
        if (account === undefined) {
          this.#error(['groups', key, at], `expected the name of a user or group:NAME, found ${JSON.stringify(text)}`);
        } else addTo(account.kind === 'user' ? memberships : nesting, account.name, group);
      }
    }
    for (const outer of nesting.values()) spread(outer, nesting);
    for (const groups of memberships.values()) spread(groups, nesting);
    for (const [group, outer] of nesting) {
      if (outer.has(group)) this.#error(['groups', group], `the group ${group} contains itself`);
    }
    return { memberships, nesting };
  }
}

export function formatSubject(subject: Subject): string {
  return subject.kind === 'any' ? 'any' : `${subject.kind}:${subject.name}`;
}

export function formatDestination(destination: Destination): string {
  switch (destination.kind) {
    case 'any':
    case 'clients':
      return destination.kind;
    case 'prefix':
      return formatPrefix(destination.prefix);
    case 'host':
      return destination.name;
    case 'user':
    case 'group':
      return `${destination.kind}:${destination.name}`;
  }
}

function prefixOf(text: string): Prefix | undefined {
  try {
    if (text.includes('/')) return parsePrefix(text);
    const address = parseIp(text);
    return { address, length: address.version === 4 ? 32 : 128 };
  } catch {
    return undefined;
  }
}

/** One form for the same name. */
function normal(name: string): string {
  return name.normalize('NFC');
}

function addTo(map: Map<string, Set<string>>, key: string, value: string): void {
  const values = map.get(key);
  if (values === undefined) map.set(key, new Set([value]));
  else values.add(value);
}

/** Adds the groups that the groups of a set are in; a set grows while it is walked. */
function spread(groups: Set<string>, nesting: ReadonlyMap<string, ReadonlySet<string>>): void {
  for (const group of groups) for (const outer of nesting.get(group) ?? []) groups.add(outer);
}

function unique<T>(values: readonly T[], format: (value: T) => string): T[] {
  return [...new Map(values.map((value) => [format(value), value])).values()];
}

function sorted(problems: readonly Problem[]): Problem[] {
  return problems.toSorted((a, b) => a.line - b.line || a.column - b.column);
}
