/**
 * The tests that stand in a policy file: sentences about who can reach what.
 *
 * Hides their grammar, `WHO can|cannot reach WHERE`, and how a sentence is tried: whoever is named has no requirement of a
 * rule met but those that the sentence states, and rules with hours count as the sentence says.
 *
 *     alice can reach 10.1.2.3:443/tcp
 *     group:contractors cannot reach 10.1.2.3
 *     alice with certificate, mfa can reach [2001:db8::1]:22/tcp at 2026-03-02T09:00Z
 */

import { toVpnError, VpnError } from '../base/errors.ts';
import { type IpAddress, parseIp } from '../ip/address.ts';
import { type Decision, decide, type Holder, rulesFor, type Surroundings } from './access.ts';
import type { Policy } from './policy.ts';
import { ICMP4, ICMP6, TCP, type Transport, UDP } from './service.ts';

export interface Expectation {
  readonly text: string;
  readonly line: number;
  readonly who: string;
  readonly hasCertificate: boolean;
  readonly hasMfa: boolean;
  readonly isReached: boolean;
  readonly where: Target;
  /** Milliseconds since the Unix epoch; undefined: now. */
  readonly at: number | undefined;
}

interface Target {
  /** An address, or a host name that is looked up. */
  readonly host: IpAddress | string;
  /** Undefined: whatever protocol and port; reached when any of them is. */
  readonly transport: { readonly protocol: 'tcp' | 'udp' | 'icmp'; readonly port?: number } | undefined;
}

export interface Outcome {
  readonly expectation: Expectation;
  readonly passed: boolean;
  /** What was found instead, or why it could not be tried; empty when passed. */
  readonly reason: string;
}

const SENTENCE =
  /^(?<who>\S+)(?: with (?<having>[a-z]+(?:, ?[a-z]+)*))? (?<can>can|cannot|can not) reach (?<where>\S+)(?: at (?<at>\S+))?$/u;
const WHERE =
  /^(?:\[(?<v6>[^\]]+)\]|(?<host>[^:[\]/]+)|(?<bare6>[0-9a-fA-F:.]*:[0-9a-fA-F:.]*))(?::(?<port>\d{1,5}))?(?:\/(?<protocol>tcp|udp|icmp))?$/u;

/** @throws {VpnError} ERR_CONFIG_VALUE */
export function parseExpectation(text: string, line: number): Expectation {
  const fail = (why: string): VpnError =>
    new VpnError('ERR_CONFIG_VALUE', `${why}; a test reads like: alice can reach 10.1.2.3:443/tcp`);
  const groups = SENTENCE.exec(text.trim().replace(/\s+/g, ' '))?.groups;
  if (groups === undefined)
    throw fail(`expected WHO can reach WHERE or WHO cannot reach WHERE, found ${JSON.stringify(text)}`);
  const { who = '', having = '', can = '', where = '', at } = groups;
  const had = having === '' ? [] : having.split(/, ?/);
  const unknown = had.find((word) => word !== 'certificate' && word !== 'mfa');
  if (unknown !== undefined) throw fail(`expected "with certificate" or "with mfa", found ${JSON.stringify(unknown)}`);
  const instant = at === undefined ? undefined : Date.parse(at);
  if (Number.isNaN(instant)) throw fail(`expected an instant such as 2026-03-02T09:00Z, found ${JSON.stringify(at)}`);
  return {
    text,
    line,
    who,
    hasCertificate: had.includes('certificate'),
    hasMfa: had.includes('mfa'),
    isReached: can === 'can',
    where: parseTarget(where, fail),
    at: instant,
  };
}

function parseTarget(text: string, fail: (why: string) => VpnError): Target {
  const { v6, host, bare6, port, protocol } = WHERE.exec(text)?.groups ?? {};
  const name = v6 ?? host ?? bare6;
  if (name === undefined)
    throw fail(`expected ADDRESS:PORT/tcp, ADDRESS/icmp or ADDRESS, found ${JSON.stringify(text)}`);
  if (port !== undefined && (protocol === 'icmp' || Number(port) < 1 || Number(port) > 65_535)) {
    throw fail(`expected a port from 1 to 65535 of tcp or udp, found ${JSON.stringify(text)}`);
  }
  if (port === undefined && (protocol === 'tcp' || protocol === 'udp')) {
    throw fail(`expected a port before /${protocol}, found ${JSON.stringify(text)}`);
  }
  const isName = v6 === undefined && bare6 === undefined && /[a-z]/i.test(name);
  try {
    return { host: isName ? name.toLowerCase() : parseIp(name), transport: transportOf(protocol, port) };
  } catch (error) {
    throw fail(toVpnError(error).message);
  }
}

function transportOf(protocol: string | undefined, port: string | undefined): Target['transport'] {
  if (protocol === 'icmp') return { protocol };
  if (port === undefined) return undefined;
  return { protocol: protocol === 'udp' ? 'udp' : 'tcp', port: Number(port) };
}

/** Reads the tests of a policy. Those that are none are returned as failed outcomes. */
export function readExpectations(policy: Policy): {
  expectations: Expectation[];
  unreadable: { line: number; message: string }[];
} {
  const expectations: Expectation[] = [];
  const unreadable: { line: number; message: string }[] = [];
  for (const { text, line } of policy.tests) {
    try {
      expectations.push(parseExpectation(text, line));
    } catch (error) {
      unreadable.push({ line, message: toVpnError(error).message });
    }
  }
  return { expectations, unreadable };
}

/**
 * Tries one test.
 *
 * @param groupsOfUser the groups of an account; those of the policy file are added
 */
export function tryExpectation(
  policy: Policy,
  expectation: Expectation,
  surroundings: Surroundings & { groupsOfUser(user: string): Iterable<string> },
  now: number,
): Outcome {
  const { where, isReached, at = now } = expectation;
  const holder = holderOf(policy, expectation, surroundings, at);
  const addresses = typeof where.host === 'string' ? surroundings.addressesOf(where.host) : [where.host];
  if (addresses.length === 0) {
    return { expectation, passed: false, reason: `the name ${String(where.host)} could not be looked up` };
  }
  const rules = rulesFor(policy, holder, at);
  for (const destination of addresses) {
    const decisions = transportsOf(where, destination, rules).map((transport) =>
      decide(policy, rules, { destination, ...transport }, surroundings),
    );
    const allowed = decisions.find(({ action }) => action === 'allow');
    const found = allowed ?? decisions[0];
    // Of a name's addresses all must be as the sentence says.
    if ((allowed !== undefined) !== isReached && found !== undefined) {
      return { expectation, passed: false, reason: describe(found) };
    }
  }
  return { expectation, passed: true, reason: '' };
}

function holderOf(
  policy: Policy,
  { who, hasCertificate, hasMfa }: Expectation,
  surroundings: { groupsOfUser(user: string): Iterable<string> },
  now: number,
): Holder {
  const [, kind, rest = who] = /^(user|group):(.+)$/su.exec(who) ?? [];
  const name = rest.normalize('NFC');
  const proofs = { hasCertificate, mfaAt: hasMfa ? now : undefined };
  // A user of a name that no account can have: in that group and in no other.
  if (kind === 'group' || (kind === undefined && policy.groups.has(name))) {
    return { user: '', groups: [name], ...proofs };
  }
  return { user: name, groups: surroundings.groupsOfUser(name), ...proofs };
}

/** What to try: what the sentence names or, where it names nothing, every edge that the rules know and something else. */
function transportsOf({ transport }: Target, { version }: IpAddress, rules: ReturnType<typeof rulesFor>): Transport[] {
  const icmp = version === 4 ? ICMP4 : ICMP6;
  if (transport?.protocol === 'icmp') return [{ protocol: icmp, isEcho: true }];
  if (transport !== undefined) {
    return [{ protocol: transport.protocol === 'tcp' ? TCP : UDP, port: transport.port ?? 0 }];
  }
  const edges = rules.flatMap(({ services }) =>
    services.flatMap((service): Transport[] => {
      if (service.kind === 'ports') {
        const { protocol, low, high } = service;
        return [low, high, low - 1, high + 1]
          .filter((port) => port >= 0 && port <= 65_535)
          .map((port) => ({ protocol, port }));
      }
      return service.kind === 'protocol' ? [{ protocol: service.protocol }] : [];
    }),
  );
  const always = [TCP, UDP].map((protocol) => ({ protocol, port: 0 }));
  const unknown = { protocol: 253 };
  return [...always, { protocol: icmp, isEcho: true }, { protocol: icmp, isEcho: false }, unknown, ...edges];
}

function describe({ action, rule }: Decision): string {
  if (rule === undefined) return 'no rule allows it';
  return `${rule.name} in line ${rule.line} ${action === 'allow' ? 'allows' : 'denies'} it`;
}
