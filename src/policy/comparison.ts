/**
 * What another policy would allow and forbid that the one in force does not.
 *
 * Hides where it is looked: for each person, at an address and a port of whatever a rule of either policy speaks of. A rule that
 * covers more than what other rules speak of is seen at one of its addresses and ports; what is found is certain, but a difference
 * between two of these places is not seen.
 */

import { formatIp, type IpAddress, type Prefix } from '../ip/address.ts';
import { decide, type Flow, type Holder, rulesFor, type Surroundings } from './access.ts';
import type { Destination, Policy } from './policy.ts';
import { formatService, ICMP4, ICMP6, type Service, TCP } from './service.ts';

/** A flow that is judged differently. */
export interface Difference {
  readonly user: string;
  readonly destination: string;
  readonly service: string;
  readonly after: 'allow' | 'deny';
  /** The rule that says so after it; undefined: none. */
  readonly rule: string | undefined;
}

const MAX_FLOWS = 400;
/** A port that no rule is likely to mean. */
const SOME_PORT = 65_000;
/** Addresses of the internet at large, kept for documents (RFC 5737, RFC 3849). */
const ELSEWHERE: readonly IpAddress[] = [
  { version: 4, bytes: Uint8Array.of(203, 0, 113, 77) },
  { version: 6, bytes: Uint8Array.of(0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77) },
];

interface Place {
  readonly name: string;
  readonly address: IpAddress;
}

/**
 * Compares two policies for these people.
 *
 * @param limit at most so many differences
 */
export function comparePolicies(
  former: Policy,
  next: Policy,
  people: readonly Holder[],
  surroundings: Surroundings,
  { now, limit }: { now: number; limit: number },
): Difference[] {
  const flows = flowsOf([former, next], surroundings);
  const found: Difference[] = [];
  for (const holder of people) {
    const [before, after] = [rulesFor(former, holder, now), rulesFor(next, holder, now)];
    for (const { flow, destination, service } of flows) {
      const was = decide(former, before, flow, surroundings);
      const is = decide(next, after, flow, surroundings);
      if (was.action === is.action) continue;
      if (found.length >= limit) return found;
      found.push({ user: holder.user, destination, service, after: is.action, rule: is.rule?.name });
    }
  }
  return found;
}

function flowsOf(policies: readonly Policy[], surroundings: Surroundings) {
  const flows = new Map<string, { flow: Flow; destination: string; service: string }>();
  for (const rule of policies.flatMap(({ rules }) => rules)) {
    for (const { name, address } of rule.to.flatMap((to) => placesOf(to, surroundings))) {
      for (const service of rule.services) {
        const key = `${formatIp(address)} ${formatService(service)}`;
        if (flows.size >= MAX_FLOWS || flows.has(key)) continue;
        flows.set(key, { flow: flowOf(address, service), destination: name, service: formatService(service) });
      }
    }
  }
  return [...flows.values()];
}

function placesOf(to: Destination, { addressesOf, isOfClients }: Surroundings): Place[] {
  switch (to.kind) {
    case 'any':
      return ELSEWHERE.map((address) => ({ name: 'any other address', address }));
    case 'prefix': {
      const address = withinPrefix(to.prefix);
      return isOfClients(address) ? [] : [{ name: formatIp(address), address }];
    }
    case 'host':
      return addressesOf(to.name).map((address) => ({ name: to.name, address }));
    // Who has which client's address changes with each login.
    default:
      return [];
  }
}

/** The first address behind the one that names the block, where there is one. */
function withinPrefix({ address, length }: Prefix): IpAddress {
  const bytes = Uint8Array.from(address.bytes);
  const last = bytes.length - 1;
  if (length < bytes.length * 8 - 1) bytes[last] = (bytes[last] ?? 0) | 1;
  return { version: address.version, bytes };
}

function flowOf(destination: IpAddress, service: Service): Flow {
  switch (service.kind) {
    case 'any':
      return { destination, protocol: TCP, port: SOME_PORT };
    case 'ports':
      return { destination, protocol: service.protocol, port: Math.max(1, service.low) };
    case 'protocol':
      return { destination, protocol: service.protocol };
    case 'icmp':
      return { destination, protocol: destination.version === 4 ? ICMP4 : ICMP6, isEcho: true };
  }
}
