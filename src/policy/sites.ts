/**
 * Networks behind clients, and addresses that are always the same: what a policy says of them, and whose they are at a moment.
 *
 * Hides who has a network when several clients offer it, where a network is seen under other addresses than it has at its
 * site, and how such a table is read and found to contradict itself or the gateway's own networks. Pure.
 */

import { toVpnError } from '../base/errors.ts';
import {
  findOverlaps,
  formatIp,
  formatPrefix,
  hostPrefix,
  type IpAddress,
  isBroadRoute,
  isUnusableRoute,
  type Prefix,
  parseIp,
  parsePrefix,
  prefixContains,
  prefixCovers,
  prefixesOverlap,
  prefixSize,
} from '../ip/address.ts';
import { KEPT_INDEXES, LeasePool } from '../ip/lease-pool.ts';
import { groupsOf, type Holder, isSubject } from './access.ts';
import { type AddressesDocument, MAX_NETWORKS, type Problem, type SiteDocument } from './document.ts';
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
  if (count > MAX_SITE_NETWORKS) {
    reader.error(['sites'], `sites have ${count} networks, at most ${MAX_SITE_NETWORKS} can be had together`);
    return sites;
  }
  const seen = new Map<string, Site>();
  const all = sites.flatMap((site) => site.networks.map((network) => ({ site, network })));
  const overlaps = findOverlaps(all.map(({ network }) => network.seenAs));
  for (const [index, site] of sites.entries()) {
    const former = seen.get(site.name);
    if (former !== undefined) {
      reader.error(['sites', index, 'name'], `there is a site ${site.name} in line ${former.line}`);
    }
    seen.set(site.name, site);
    for (const [at, network] of site.networks.entries()) {
      const path = ['sites', index, 'networks', at];
      const other = all[overlaps.get(network.number) ?? -1];
      if (other !== undefined) {
        const where = other.site === site ? 'is in the list already' : `is that of the site ${other.site.name}, too`;
        reader.error(
          path,
          `${formatPrefix(network.seenAs)} ${where}; give one of them another one for everybody else: { network = "${formatPrefix(network.network)}", as = "…" }`,
        );
      }
      for (const before of site.networks.slice(0, at)) {
        if (before === other?.network || !prefixesOverlap(before.network, network.network)) continue;
        reader.error(path, `${formatPrefix(network.network)} overlaps ${formatPrefix(before.network)}`);
      }
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
  const entries = documents.map((document, index) => {
    const line = reader.line(['addresses', index]);
    const addresses = document.addresses.flatMap((text, at) => {
      const path = ['addresses', index, 'addresses', at];
      const prefix = addressOrPrefix(text);
      if (prefix !== undefined) return [{ text, path, line, prefix }];
      reader.error(path, `expected an address or a prefix, found ${JSON.stringify(text)}`);
      return [];
    });
    return { line, for: claimants(document.for, ['addresses', index, 'for'], reader), addresses };
  });
  const all = entries.flatMap(({ addresses }) => addresses);
  checkKept(all, sites, reader);
  return entries.map(({ addresses, ...rest }) => ({ ...rest, addresses: addresses.map(({ prefix }) => prefix) }));
}

interface KeptAddresses {
  readonly text: string;
  readonly path: readonly PropertyKey[];
  readonly line: number;
  readonly prefix: Prefix;
}

function checkKept(all: readonly KeptAddresses[], sites: readonly Site[], reader: TableReader): void {
  let count = 0n;
  for (const { path, prefix } of all) {
    count += prefixSize(prefix);
    if (count <= MAX_KEPT) continue;
    reader.error(path, `more than ${MAX_KEPT} addresses are kept`);
    return;
  }
  const prefixes = all.map(({ prefix }) => prefix);
  const behind = sites.flatMap(({ name, networks }) => networks.map(({ seenAs }) => ({ name, seenAs })));
  const overlaps = findOverlaps(prefixes);
  const inSites = findOverlaps([...behind.map(({ seenAs }) => seenAs), ...prefixes]);
  for (const [at, { text, path }] of all.entries()) {
    const other = all[overlaps.get(at) ?? -1];
    if (other !== undefined) {
      const by = `${formatPrefix(other.prefix)} in line ${other.line}`;
      reader.error(path, `${text} is kept for somebody already, by ${by}`);
    }
    const site = behind[inSites.get(behind.length + at) ?? -1];
    if (site !== undefined) reader.error(path, `${text} is in the network of the site ${site.name}`);
  }
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
    return hostPrefix(parseIp(text));
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
      const route = routes.find((one) => prefixCovers(seenAs, one));
      if (route !== undefined) {
        say(
          'warning',
          line,
          `${formatPrefix(route)} of the gateway's routes is in ${formatPrefix(seenAs)} of the site ${name}: it goes there`,
        );
      }
    }
  }
  if (addresses.length === 0) return problems;
  const leases = new LeasePool(byFamily(pool));
  for (const { line, addresses: kept } of addresses) {
    for (const prefix of kept) {
      if (!pool.some((one) => prefixCovers(one, prefix))) {
        say('error', line, `${formatPrefix(prefix)} is not in the pool (${gateway.pool.join(', ')})`);
      } else if (!leases.canKeep(prefix)) {
        say(
          'error',
          line,
          `no client can have ${formatPrefix(prefix)}: expected addresses behind the gateway's own (${gatewayText(leases)}), before the last of an IPv4 pool, and among the first ${KEPT_INDEXES} that the pool has in each family`,
        );
      }
    }
  }
  return problems;
}

/**
 * Which networks each session has. Of several that offer the same site's, the one that comes first has them, and the next one when
 * that is over. One session has no more than `MAX_NETWORKS`, the first of the policy.
 *
 * @param sessions oldest first
 */
export function grantNetworks(policy: Policy, sessions: readonly Offering[]): Map<string, readonly SiteNetwork[]> {
  const granted = new Map<string, readonly SiteNetwork[]>();
  const taken = new Set<SiteNetwork>();
  for (const session of sessions) {
    if (session.offered.length === 0) continue;
    const own = policy.sites
      .filter((site) => isClaimedBy(policy, site.for, session))
      .flatMap(({ networks }) => networks)
      .filter((one) => !taken.has(one) && session.offered.some((offer) => prefixCovers(offer, one.network)))
      .slice(0, MAX_NETWORKS);
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

function byFamily(pool: readonly Prefix[]): { v4?: Prefix; v6?: Prefix } {
  const [v4, v6] = ([4, 6] as const).map((version) => pool.find(({ address }) => address.version === version));
  return { ...(v4 === undefined ? {} : { v4 }), ...(v6 === undefined ? {} : { v6 }) };
}

function gatewayText({ gateway4, gateway6 }: LeasePool): string {
  return [gateway4, gateway6].flatMap((address) => (address === undefined ? [] : [formatIp(address)])).join(', ');
}
