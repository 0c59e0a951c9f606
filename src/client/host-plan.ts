/**
 * What a client's machine should have for a configuration: a value, made from the configuration, the user's wishes and what
 * the machine looks like.
 *
 * Hides policy routing. All that the tunnel carries is in a routing table of its own, which rules put before every other
 * table: so no route that a network hands out, however narrow, takes anything out of the tunnel (TunnelVision). What stays
 * outside is our own sockets, by their firewall mark, and never an address, so nobody else's packets to the gateway get out
 * (TunnelCrack). Local networks stay outside only where that was chosen, and only by routes as narrow as they are: when
 * the machine moves elsewhere, their addresses go into the tunnel like all others. Pure.
 *
 * @see docs/security.md, what a client lets out
 */

import {
  formatIp,
  formatPrefix,
  hostPrefix,
  type IpAddress,
  isBroadRoute,
  isPrivateNetwork,
  type Prefix,
  parsePrefix,
  prefixCovers,
  prefixesOverlap,
} from '../ip/address.ts';
import type { HostChange } from '../os/host.ts';
import type { HostFacts, NetworkOnDevice } from '../os/host-facts.ts';
import type { AcceptedConfig, AcceptedNetwork, RefusedItem } from '../protocol/config-check.ts';
import { type GuardInput, guardRules } from './guard-rules.ts';

/** The firewall mark of our sockets: `CV`. All clients of a machine share it: none carries another's tunnel. */
export const OWN_MARK = 0x4356;
/** Names of our devices; the kernel puts the first free number in place of %d. */
export const DEVICE_NAME = 'cvpn%d';
const FIRST_TABLE = 17_238_000;
/** Priorities of rules; a device's number is added, so that two clients do not share a rule. Before 32766, the main table. */
const LOCAL_PRIORITY = 4_200;
const SPLIT_PRIORITY = 4_400;
const DHCP_PRIORITY = 4_500;
const FULL_PRIORITY = 4_600;
const QUEUE_LENGTH = 1000;
const DHCP_PORTS = { protocol: 'udp', source: 68, destination: 67 } as const;
const ALL = { 4: parsePrefix('0.0.0.0/0'), 6: parsePrefix('::/0') } as const;

/** What a user wants of the tunnel; see `[tunnel]` of a profile. */
export interface TunnelWishes {
  /** `auto`: full when the gateway pushes a default route. */
  readonly mode: 'auto' | 'full' | 'split';
  /** Networks in the tunnel besides those that are pushed. */
  readonly include: readonly Prefix[];
  /** Networks outside the tunnel, whatever is pushed. */
  readonly exclude: readonly Prefix[];
  /** In a full tunnel: private networks in which the machine is stay reachable. */
  readonly lan: boolean;
  /** Name servers in place of those that are pushed. */
  readonly dns: readonly IpAddress[];
}

/** A network in which this machine is and that the tunnel wants, too. */
export interface Overlap extends NetworkOnDevice {
  /** The tunnel's. */
  readonly route: Prefix;
  /** Addresses that anybody may use at home; any other network that claims to be local may be a trap (TunnelCrack). */
  readonly isPrivate: boolean;
}

/** Who gets a network that both have. */
export type OverlapChoice = 'local' | 'tunnel';

/** The names that the tunnel's name servers are asked. */
export interface DnsPlan {
  readonly servers: readonly IpAddress[];
  /** Searched, and asked here. */
  readonly domains: readonly string[];
  /** Whether all other names are asked here, too. */
  readonly all: boolean;
}

export interface HostPlan {
  readonly mode: 'full' | 'split';
  /** In the order in which they are made: the rules, which put all in force, last. */
  readonly changes: readonly HostChange[];
  readonly dns: DnsPlan | undefined;
  /** What the tunnel does not get, of what was pushed. */
  readonly refused: readonly RefusedItem[];
  /** What the user should know. */
  readonly notes: readonly string[];
}

export interface PlanInput {
  /** Of our device: one that was opened as `DEVICE_NAME`. */
  readonly device: string;
  readonly config: AcceptedConfig;
  readonly wishes: TunnelWishes;
  readonly facts: HostFacts;
  /** What was chosen for an overlap. */
  readonly choose: (overlap: Overlap) => OverlapChoice;
}

/** Whether all traffic is to go through the tunnel. */
export function modeOf(config: AcceptedConfig, wishes: TunnelWishes): 'full' | 'split' {
  if (wishes.mode !== 'auto') return wishes.mode;
  return config.routes.some(isBroadRoute) ? 'full' : 'split';
}

/** Networks that both the machine and the tunnel have. None in a full tunnel, which takes all but what `lan` leaves. */
export function findOverlaps({ config, wishes, facts }: Pick<PlanInput, 'config' | 'wishes' | 'facts'>): Overlap[] {
  if (modeOf(config, wishes) === 'full') return [];
  const routes = splitRoutes(config, wishes);
  const outside = [...wishes.exclude, ...config.networks.map(({ network }) => network)];
  return facts.attached.flatMap(({ prefix, device }) => {
    const route = routes.find((wanted) => prefixesOverlap(wanted, prefix));
    const isExcluded = outside.some((excluded) => prefixCovers(excluded, prefix));
    if (route === undefined || isExcluded) return [];
    return [{ prefix, device, route, isPrivate: isPrivateNetwork(prefix) }];
  });
}

/** What has to be on the host for a configuration. */
export function planHost(given: PlanInput): HostPlan {
  const input = { ...given, config: carriedBy(given) };
  const { device, config, wishes, facts } = input;
  const mode = modeOf(config, wishes);
  const number = Number(/\d+$/.exec(device)?.[0] ?? 0);
  const { v4, v6 } = config.addresses;
  const addresses = [v4, v6].filter((address) => address !== undefined);
  const families: readonly (4 | 6)[] = facts.hasIpv6 ? [4, 6] : [4];
  const has = { 4: v4 !== undefined, 6: v6 !== undefined };
  const overlaps = findOverlaps(input);
  const kept = overlaps.filter((overlap) => input.choose(overlap) === 'local');
  const local = mode === 'full' ? (wishes.lan ? facts.attached.filter(isPrivate) : []) : kept;
  const routes = mode === 'full' ? families.map((family) => ALL[family]) : splitRoutes(config, wishes);
  const table = FIRST_TABLE + number;
  // Whoever sets a route by its next hop alone must not have that found in the tunnel.
  const inTable = (prefix: string): HostChange =>
    prefix.includes(':')
      ? { kind: 'route', device, prefix, table }
      : { kind: 'route', device, prefix, scope: 'global', table };
  const networks = config.networks.filter(({ network }) => families.some((one) => one === network.address.version));
  const rules = families.flatMap((family): HostChange[] => [
    ...networks
      .filter(({ network }) => network.address.version === family)
      .map(({ network }): HostChange => behindRule(network, LOCAL_PRIORITY + number)),
    ...local
      .filter(({ prefix }) => prefix.address.version === family)
      .map(({ prefix }): HostChange => localRule(prefix, LOCAL_PRIORITY + number)),
    ...(mode === 'full' && family === 4 ? [dhcpRule(DHCP_PRIORITY + number)] : []),
    {
      kind: 'rule',
      family,
      priority: (mode === 'full' ? FULL_PRIORITY : SPLIT_PRIORITY) + number,
      notMark: OWN_MARK,
      table,
    },
  ]);
  const closed = mode === 'full' ? families.filter((family) => !isOpen(family, config, wishes, has[family])) : [];
  const changes: HostChange[] = [
    ...(facts.hasIpv6 ? [{ kind: 'sysctl', key: `net/ipv6/conf/${device}/disable_ipv6`, value: '0' } as const] : []),
    { kind: 'sysctl', key: 'net/ipv4/conf/all/src_valid_mark', value: '1' },
    // A neighbour whose network is in the tunnel would not be told our address: the check knows no marks of its questions.
    ...(facts.isStrict ? [{ kind: 'sysctl', key: 'net/ipv4/conf/all/rp_filter', value: '2' } as const] : []),
    ...forwarding(device, networks, facts),
    { kind: 'link', device, up: true, mtu: config.mtu, addressGeneration: 'none', queueLength: QUEUE_LENGTH },
    ...addresses.map(({ address }): HostChange => ({ kind: 'address', device, address: formatIp(address) })),
    {
      kind: 'nft',
      table: { family: 'inet', name: `customvpn_${device}` },
      body: guardRules({
        device,
        mark: OWN_MARK,
        ...(v4 === undefined ? {} : { v4: v4.address }),
        ...(v6 === undefined ? {} : { v6: v6.address }),
        networks,
        opened: openedFor(networks, facts),
        only: closed.map((family) => ({ family, to: narrowRoutes(config, wishes, family) })),
      }),
    },
    ...uniqueTexts(
      addresses.map(({ gateway }) => formatPrefix(hostPrefix(gateway))),
      routes.map(formatPrefix),
      mode === 'full' ? [] : dnsServers(config, wishes).map((server) => formatPrefix(hostPrefix(server))),
    ).map(inTable),
    ...wishes.exclude
      .filter(({ address }) => families.some((family) => family === address.version))
      .map((prefix): HostChange => ({ kind: 'route', type: 'throw', prefix: formatPrefix(prefix), table })),
    ...rules,
  ];
  return {
    mode,
    changes,
    dns: dnsPlan(config, wishes, mode),
    refused: kept.map(refusalOf),
    notes: [
      ...notesOf(input, mode),
      ...closed.map(
        (family) => `IPv${family} is blocked: the gateway carries ${has[family] ? 'only some of it' : 'none'}`,
      ),
      ...overlaps.filter((overlap) => !kept.includes(overlap)).map(takenNote),
    ],
  };
}

/** The configuration without a family that the kernel does not have. */
function carriedBy({ config, facts }: PlanInput): AcceptedConfig {
  if (facts.hasIpv6) return config;
  const { v4 } = config.addresses;
  return { ...config, addresses: v4 === undefined ? {} : { v4 } };
}

/** Routes of a split tunnel. What is as broad as a default route belongs to a full one. */
function splitRoutes(config: AcceptedConfig, wishes: TunnelWishes): Prefix[] {
  const { v4, v6 } = config.addresses;
  const hasFamily = ({ address }: Prefix): boolean => (address.version === 4 ? v4 : v6) !== undefined;
  return [...config.routes.filter((prefix) => !isBroadRoute(prefix)), ...wishes.include].filter(hasFamily);
}

/** Whether a family goes into a full tunnel whole: the user or the gateway says so, and the tunnel has it. */
export function isOpen(family: 4 | 6, config: AcceptedConfig, wishes: TunnelWishes, isCarried: boolean): boolean {
  if (!isCarried) return false;
  if (wishes.mode === 'full') return true;
  return config.routes.some((prefix) => prefix.address.version === family && isBroadRoute(prefix));
}

/** Where a family that is not open may go inside all the same. */
export function narrowRoutes(config: AcceptedConfig, wishes: TunnelWishes, family: 4 | 6): Prefix[] {
  const gateway = (family === 4 ? config.addresses.v4 : config.addresses.v6)?.gateway;
  if (gateway === undefined) return [];
  const own = hostPrefix(gateway);
  const all = [own, ...splitRoutes(config, wishes).filter(({ address }) => address.version === family)];
  // A set of the packet filter has no place for one prefix within another.
  return all.filter(
    (inner, at) =>
      !all.some((outer, i) => i !== at && prefixCovers(outer, inner) && !(prefixCovers(inner, outer) && i > at)),
  );
}

/** A route in the main table counts only when it is as narrow as the network: not a default one, after a move. */
function localRule(prefix: Prefix, priority: number): HostChange {
  const family = prefix.address.version;
  return {
    kind: 'rule',
    family,
    priority,
    to: formatPrefix(prefix),
    table: 'main',
    ...(prefix.length === 0 ? {} : { suppressLength: prefix.length - 1 }),
  };
}

/** What is behind this machine is not in the tunnel, however broad the tunnel's routes are. */
function behindRule(network: Prefix, priority: number): HostChange {
  const family = network.address.version;
  return { kind: 'rule', family, priority, to: formatPrefix(network), table: 'main', suppressLength: 0 };
}

/** Packets pass between the tunnel and the devices that lead to what is behind this machine; IPv6 knows only all or none. */
function forwarding(device: string, networks: readonly AcceptedNetwork[], facts: HostFacts): HostChange[] {
  const has = (version: 4 | 6): boolean => networks.some(({ network }) => network.address.version === version);
  const devices = has(4) ? [device, ...new Set(waysTo(networks, facts).map((way) => way.device))] : [];
  return [
    ...devices.map((one): HostChange => ({ kind: 'sysctl', key: `net/ipv4/conf/${one}/forwarding`, value: '1' })),
    ...(has(6) ? [{ kind: 'forwarding6' } as const] : []),
  ];
}

/** What forwards only because of these networks. */
function openedFor(networks: readonly AcceptedNetwork[], facts: HostFacts): GuardInput['opened'] {
  const has = (version: 4 | 6): boolean => networks.some(({ network }) => network.address.version === version);
  const ways = has(4) ? [...new Set(waysTo(networks, facts).map((way) => way.device))] : [];
  return { devices4: ways.filter((way) => !facts.forwards4.includes(way)), all6: has(6) && !facts.forwards6 };
}

/** The devices that lead to networks behind this machine. */
function waysTo(networks: readonly AcceptedNetwork[], facts: HostFacts): NetworkOnDevice[] {
  return [...facts.attached, ...facts.routed].filter(({ prefix }) =>
    networks.some(({ network }) => prefixesOverlap(network, prefix)),
  );
}

/** A lease is renewed at the server that gave it, which is in the local network. */
function dhcpRule(priority: number): HostChange {
  return { kind: 'rule', family: 4, priority, ports: DHCP_PORTS, table: 'main' };
}

function dnsServers(config: AcceptedConfig, wishes: TunnelWishes): readonly IpAddress[] {
  const { v4, v6 } = config.addresses;
  const servers = wishes.dns.length > 0 ? wishes.dns : config.dns.servers;
  return servers.filter(({ version }) => (version === 4 ? v4 : v6) !== undefined);
}

export function dnsPlan(config: AcceptedConfig, wishes: TunnelWishes, mode: 'full' | 'split'): DnsPlan | undefined {
  const servers = dnsServers(config, wishes);
  if (servers.length === 0) return undefined;
  const { domains } = config.dns;
  return { servers, domains, all: mode === 'full' || domains.length === 0 };
}

/** The narrower of the two is what the tunnel does not get. */
function refusalOf({ prefix, device, route }: Overlap): RefusedItem {
  const left = prefix.length >= route.length ? prefix : route;
  return {
    item: `routes ${formatPrefix(left)}`,
    why: `this machine is in that network, on ${device}; to have it in the tunnel: --overlap tunnel`,
  };
}

function takenNote({ prefix, device, route }: Overlap): string {
  return `the local network ${formatPrefix(prefix)} on ${device} goes into the tunnel, as ${formatPrefix(route)}`;
}

function notesOf({ device, facts, config, wishes }: PlanInput, mode: 'full' | 'split'): string[] {
  const notes: string[] = [];
  for (const one of config.networks) {
    if (waysTo([one], facts).length > 0) continue;
    notes.push(`this machine has no way to ${formatPrefix(one.network)}, which is to be reached through it`);
  }
  notes.push(...(mode === 'full' ? [] : clashNotes(device, splitRoutes(config, wishes), facts)));
  const routes = mode === 'full' ? [ALL[4], ALL[6]] : splitRoutes(config, wishes);
  const overruled = facts.routed.filter(({ prefix }) => routes.some((route) => prefixCovers(route, prefix)));
  for (const { prefix, device } of overruled.slice(0, 10)) {
    notes.push(`a route of this machine to ${formatPrefix(prefix)} on ${device} is overruled by the tunnel`);
  }
  if (mode === 'full' && dnsServers(config, wishes).length === 0) {
    notes.push(
      'the gateway names no name servers: those of the local network are out of reach; set tunnel.dns in the profile',
    );
  }
  if (mode === 'full' && wishes.mode === 'full' && !config.routes.some(isBroadRoute)) {
    notes.push('the gateway offers no default route: it may refuse what it does not route');
  }
  return notes;
}

/** The table of one tunnel is asked before that of another, whatever the lengths of their prefixes are. */
function clashNotes(device: string, routes: readonly Prefix[], { tunnels }: HostFacts): string[] {
  const number = (name: string): number => Number(/\d+$/.exec(name)?.[0] ?? 0);
  const clashes = routes.flatMap((route) => {
    const other = tunnels.find((one) => one.device !== device && prefixesOverlap(one.prefix, route));
    return other === undefined ? [] : [{ route, other }];
  });
  return clashes.slice(0, 10).map(({ route, other }) => {
    const winner = number(other.device) < number(device) ? other.device : device;
    return `${formatPrefix(route)} is in another tunnel, too: ${other.device} has ${formatPrefix(other.prefix)}; ${winner} gets it, unless its profile names it in tunnel.exclude`;
  });
}

function isPrivate({ prefix }: NetworkOnDevice): boolean {
  return isPrivateNetwork(prefix);
}

function uniqueTexts(...lists: readonly (readonly string[])[]): string[] {
  return [...new Set(lists.flat())];
}
