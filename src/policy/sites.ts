/**
 * Networks behind clients, and addresses that are always the same: what a policy says of them, and whose they are at a moment.
 *
 * Hides who has a network when several clients offer it, where a network is seen under other addresses than it has at its
 * site, and how such a table is read and found to contradict itself or the gateway's own networks. Pure.
 */

import { toVpnError } from '../base/errors.ts';
import {
  formatPrefix,
  type IpAddress,
  isBroadRoute,
  isUnusableRoute,
  type Prefix,
  parseIp,
  parsePrefix,
  prefixContains,
  prefixesOverlap,
} from '../ip/address.ts';
import { groupsOf, type Holder, isSubject } from './access.ts';
import type { AddressesDocument, Problem, SiteDocument } from './document.ts';
import type { Destination, Policy, Rule, Subject } from './policy.ts';

/** Whose something may be: a user's, a member's of a group, or one device's. */
export type Claimant = Exclude<Subject, { kind: 'any' }> | { readonly kind: 'device'; readonly id: string };

/** A network behind a client. */
export interface SiteNetwork {
  /** Its place among those of all sites. */
  readonly number: number;
  /** As it is at the site. */
  readonly network: Prefix;
  /** As everybody else sees it: the same, or one of the same length that it is translated to, one to one. */
  readonly seenAs: Prefix;
}

export interface Site {
  readonly name: string;
  readonly line: number;
  readonly for: readonly Claimant[];
  readonly networks: readonly SiteNetwork[];
  /** Networks on the gateway's side from where connections to the site may be begun. */
  readonly openTo: readonly Prefix[];
}

/** Addresses that only some get. */
export interface StaticAddresses {
  readonly line: number;
  readonly for: readonly Claimant[];
  readonly addresses: readonly Prefix[];
}

/** Somebody with a device. */
export interface DeviceHolder extends Pick<Holder, 'user' | 'groups'> {
  /** Device id, hexadecimal. */
  readonly device: string;
}

/** A session that offers networks. */
export interface Offering extends DeviceHolder {
  readonly key: string;
  readonly offered: readonly Prefix[];
}

/** What a table is read with. */
export interface TableReader {
  error(path: readonly PropertyKey[], message: string): void;
  account(text: string): Exclude<Subject, { kind: 'any' }> | undefined;
  line(path: readonly PropertyKey[]): number;
}

/** Of all sites together. */
export const MAX_SITE_NETWORKS = 4_096;
/** Of addresses that are kept for somebody, all together. */
const MAX_KEPT = 65_536n;
const DEVICE = /^device:([0-9a-f]{8,32})$/;

/** Reads `[[sites]]`. What contradicts itself is an error. */
export function readSites(documents: readonly SiteDocument[], reader: TableReader): Site[] {
  let count = 0;
  const sites = documents.map(({ name, networks, openTo, ...rest }, index): Site => {
    const path = ['sites', index];
    return {
      name,
      line: reader.line(path),
      for: claimants(rest.for, [...path, 'for'], reader),
      networks: networks.map((entry, at) => siteNetwork(entry, count++, [...path, 'networks', at], reader)),
      openTo: openTo.map(parsePrefix),
    };
  });
  if (count > MAX_SITE_NETWORKS) reader.error(['sites'], `sites have more than ${MAX_SITE_NETWORKS} networks`);
  const seen = new Map<string, Site>();
  const taken: { site: Site; network: SiteNetwork }[] = [];
  for (const [index, site] of sites.entries()) {
    const former = seen.get(site.name);
    if (former !== undefined) {
      reader.error(['sites', index, 'name'], `there is a site ${site.name} in line ${former.line}`);
    }
    seen.set(site.name, site);
    for (const [at, network] of site.networks.entries()) {
      const path = ['sites', index, 'networks', at];
      for (const other of taken) {
        if (prefixesOverlap(other.network.seenAs, network.seenAs)) {
          const where = other.site === site ? 'is in the list already' : `is that of the site ${other.site.name}, too`;
          reader.error(
            path,
            `${formatPrefix(network.seenAs)} ${where}; give one of them another one for everybody else: { network = "${formatPrefix(network.network)}", as = "…" }`,
          );
        } else if (other.site === site && prefixesOverlap(other.network.network, network.network)) {
          reader.error(path, `${formatPrefix(network.network)} overlaps ${formatPrefix(other.network.network)}`);
        }
      }
      taken.push({ site, network });
    }
  }
  return sites;
}

/** Reads `[[addresses]]`. What is kept for two is an error. */
export function readStaticAddresses(
  documents: readonly AddressesDocument[],
  sites: readonly Site[],
  reader: TableReader,
): StaticAddresses[] {
  const taken: { line: number; prefix: Prefix }[] = [];
  let count = 0n;
  return documents.map((document, index) => {
    const line = reader.line(['addresses', index]);
    const addresses = document.addresses.flatMap((text, at) => {
      const path = ['addresses', index, 'addresses', at];
      const prefix = addressOrPrefix(text);
      if (prefix === undefined) {
        reader.error(path, `expected an address or a prefix, found ${JSON.stringify(text)}`);
        return [];
      }
      const other = taken.find((one) => prefixesOverlap(one.prefix, prefix));
      if (other !== undefined)
        reader.error(
          path,
          `${text} is kept for somebody already, by ${formatPrefix(other.prefix)} in line ${other.line}`,
        );
      const site = sites.find(({ networks }) => networks.some(({ seenAs }) => prefixesOverlap(seenAs, prefix)));
      if (site !== undefined) reader.error(path, `${text} is in the network of the site ${site.name}`);
      taken.push({ line, prefix });
      count += 1n << BigInt(prefix.address.bytes.length * 8 - prefix.length);
      if (count > MAX_KEPT) reader.error(path, `more than ${MAX_KEPT} addresses are kept`);
      return [prefix];
    });
    return { line, for: claimants(document.for, ['addresses', index, 'for'], reader), addresses };
  });
}

function claimants(texts: readonly string[], path: readonly PropertyKey[], reader: TableReader): Claimant[] {
  return texts.flatMap((text, at): Claimant[] => {
    const [, id] = DEVICE.exec(text) ?? [];
    if (id !== undefined) return [{ kind: 'device', id }];
    const account = reader.account(text);
    if (account !== undefined) return [account];
    reader.error(
      [...path, at],
      `expected user:NAME, group:NAME or device:ID (8 to 32 hexadecimal digits), found ${JSON.stringify(text)}`,
    );
    return [];
  });
}

function siteNetwork(
  entry: SiteDocument['networks'][number],
  number: number,
  path: readonly PropertyKey[],
  reader: TableReader,
): SiteNetwork {
  const network = parsePrefix(typeof entry === 'string' ? entry : entry.network);
  const seenAs = typeof entry === 'string' ? network : parsePrefix(entry.as);
  for (const prefix of [network, seenAs]) {
    if (isBroadRoute(prefix)) reader.error(path, `${formatPrefix(prefix)} is too broad for a network behind a client`);
    else if (isUnusableRoute(prefix)) reader.error(path, `${formatPrefix(prefix)} is never routed`);
  }
  if (network.length !== seenAs.length || network.address.version !== seenAs.address.version) {
    reader.error(path, `${formatPrefix(seenAs)} is not of the length and family of ${formatPrefix(network)}`);
  }
  return { number, network, seenAs };
}

function addressOrPrefix(text: string): Prefix | undefined {
  try {
    if (text.includes('/')) return parsePrefix(text);
    const address = parseIp(text);
    return { address, length: address.bytes.length * 8 };
  } catch (error) {
    if (toVpnError(error).code === 'ERR_CONFIG_VALUE') return undefined;
    throw error;
  }
}

/** What `site:NAME` stands for in a rule; undefined: there is no such site. */
export function destinationsOf(name: string, sites: readonly Site[]): readonly Destination[] | undefined {
  const site = sites.find((one) => one.name === name);
  return site?.networks.map(({ seenAs }) => ({ kind: 'prefix', prefix: seenAs }));
}

/** Of a gateway, what the tables must fit. */
export interface GatewayNetworks {
  readonly pool: readonly string[];
  /** What its clients reach through it. */
  readonly routes: readonly string[];
}

/** What in a policy does not fit the networks of a gateway. */
export function checkNetworks({ sites, addresses }: Policy, gateway: GatewayNetworks): Problem[] {
  const problems: Problem[] = [];
  const say = (severity: Problem['severity'], line: number, message: string): void => {
    problems.push({ severity, line, column: 1, message });
  };
  const pool = gateway.pool.map(parsePrefix);
  const routes = gateway.routes.map(parsePrefix).filter((route) => !isBroadRoute(route));
  for (const { name, line, networks } of sites) {
    for (const { network, seenAs } of networks) {
      if (pool.some((one) => prefixesOverlap(one, seenAs))) {
        say('error', line, `${formatPrefix(seenAs)} of the site ${name} overlaps the pool of the gateway's clients`);
      } else if (pool.some((one) => prefixesOverlap(one, network))) {
        const text = formatPrefix(network);
        say(
          'warning',
          line,
          `at the site ${name}, ${text} is the network there: the pool overlaps it, so it cannot reach the clients`,
        );
      }
      if (!pool.some(({ address }) => address.version === network.address.version)) {
        const text = formatPrefix(network);
        say('error', line, `the pool has no addresses of the family of ${text} of the site ${name}`);
      }
      const route = routes.find((one) => covers(seenAs, one));
      if (route !== undefined) {
        say(
          'warning',
          line,
          `${formatPrefix(route)} of the gateway's routes is in ${formatPrefix(seenAs)} of the site ${name}: it goes there`,
        );
      }
    }
  }
  for (const { line, addresses: kept } of addresses) {
    for (const prefix of kept) {
      if (!pool.some((one) => covers(one, prefix))) {
        say('error', line, `${formatPrefix(prefix)} is not in the pool (${gateway.pool.join(', ')})`);
      }
    }
  }
  return problems;
}

/**
 * Which networks each session has. Of several that offer the same site's, the one that comes first has them, and the next one when
 * that is over.
 *
 * @param sessions oldest first
 */
export function grantNetworks(policy: Policy, sessions: readonly Offering[]): Map<string, readonly SiteNetwork[]> {
  const granted = new Map<string, readonly SiteNetwork[]>();
  const taken = new Set<SiteNetwork>();
  for (const session of sessions) {
    const own = policy.sites
      .filter((site) => isClaimedBy(policy, site.for, session))
      .flatMap(({ networks }) => networks)
      .filter((one) => !taken.has(one) && session.offered.some((offer) => covers(offer, one.network)));
    for (const one of own) taken.add(one);
    if (own.length > 0) granted.set(session.key, own);
  }
  return granted;
}

/** The networks of sites that some of these rules lead to. */
export function reachableNetworks({ sites }: Policy, rules: readonly Rule[]): Prefix[] {
  if (sites.length === 0) return [];
  const allowed = rules.filter(({ action }) => action === 'allow').flatMap(({ to }) => to);
  return sites
    .flatMap(({ networks }) => networks.map(({ seenAs }) => seenAs))
    .filter((network) => allowed.some((to) => leadsTo(to, network)));
}

function leadsTo(to: Destination, network: Prefix): boolean {
  return to.kind === 'any' || (to.kind === 'prefix' && prefixesOverlap(to.prefix, network));
}

/** The addresses that a session should have one of; undefined: any. */
export function staticAddressesOf(policy: Policy, holder: DeviceHolder): readonly Prefix[] | undefined {
  return policy.addresses.find((entry) => isClaimedBy(policy, entry.for, holder))?.addresses;
}

/** Whose network behind a client an address is in; undefined: nobody's. */
export function siteOf({ sites }: Policy, address: IpAddress): Site | undefined {
  return sites.find(({ networks }) => networks.some(({ seenAs }) => prefixContains(seenAs, address)));
}

function isClaimedBy(policy: Policy, claims: readonly Claimant[], holder: DeviceHolder): boolean {
  const groups = groupsOf(policy, holder);
  return claims.some((claim) =>
    claim.kind === 'device' ? holder.device.startsWith(claim.id) : isSubject(claim, holder.user, groups),
  );
}

function covers(outer: Prefix, inner: Prefix): boolean {
  return outer.length <= inner.length && prefixContains(outer, inner.address);
}
