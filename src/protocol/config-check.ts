/**
 * What a client accepts from a server's CONFIG.
 *
 * Hides the rules: a server may only push what the profile allows, and some things no server may push. Every item is
 * judged alone; a refused one is left out and said, the rest is used. It must not know how a route is set.
 *
 * @see docs/protocol.md §12
 */

import { toVpnError } from '../base/errors.ts';
import {
  formatPrefix,
  type IpAddress,
  isBroadRoute,
  isUnusableAddress,
  isUnusableRoute,
  type Prefix,
  parseIp,
  parsePrefix,
  prefixContains,
  prefixesOverlap,
} from '../ip/address.ts';
import { parseMac } from '../ip/ethernet-station.ts';
import type { ConfigMessage, DataMode } from './messages.ts';
import { REKEY_INTERVAL_MS } from './rekey.ts';

export const MIN_TUNNEL_MTU = 1_280;
export const MAX_TUNNEL_MTU = 9_000;
export const MAX_ACCEPTED_ROUTES = 1_000;
export const MAX_DNS_SERVERS = 8;
export const MAX_DATA_CHANNELS = 16;
const PING_INTERVAL_SECONDS = { least: 1, most: 600, standard: 20 };
const REKEY_SECONDS = { least: 2, most: 86_400 };
const DEAD_SECONDS = { least: 3, most: 3_600, standard: 60 };

/** What the profile and the circumstances allow. */
export interface ClientLimits {
  /** False: no default route and no name servers are accepted, whatever the profile says. */
  serverVerified: boolean;
  /** Whether a default route, or a part of one, is accepted. */
  defaultRoute: boolean;
  /** Pushed routes must lie within one of these; absent: any network. A default route is judged by `defaultRoute`. */
  routes?: readonly Prefix[];
  /** How many routes are accepted; at most, and by default, `MAX_ACCEPTED_ROUTES`. */
  maxRoutes?: number;
  /** Whether name servers are accepted. */
  dns: boolean;
  /** Pushed domains must be one of these or below; absent: any. */
  domains?: readonly string[];
  /** Addresses that must stay outside the tunnel: the server's outer ones, the local router's. */
  outside: readonly IpAddress[];
  /** Networks behind this client that it offers: it carries packets for no others. Default none. */
  networks?: readonly Prefix[];
  /** The client's own connections stay outside whatever is routed, so a route may hold an address of `outside`. */
  socketsExempt?: boolean;
}

/** What a client uses of a CONFIG. */
export interface AcceptedConfig {
  revision: number;
  addresses: { v4?: TunnelAddress; v6?: TunnelAddress };
  routes: readonly Prefix[];
  dns: { servers: readonly IpAddress[]; domains: readonly string[] };
  mtu: number;
  ping: { intervalMs: number; deadMs: number };
  data: { mode: DataMode; channels: number };
  rekeyMs: number;
  /** Networks behind this client that it carries packets for. */
  networks: readonly AcceptedNetwork[];
  /** Where the session carries Ethernet. */
  ethernet?: AcceptedEthernet;
  /** Base64 of SHA-256 of a public key; added to the profile's. */
  pins: readonly string[];
  /** What the server wants the person to know. Text of the server's: shown as that, never acted upon. */
  notices: readonly string[];
}

/** A network behind this client. */
export interface AcceptedNetwork {
  readonly network: Prefix;
  /** What everybody else sees it as; of the same length. */
  readonly seenAs: Prefix;
}

/** What the client is on an Ethernet segment. */
export interface AcceptedEthernet {
  /** As `02:c5:0a:58:00:02`. */
  mac: string;
  /** The network of the segment, in which the client's address is. */
  v4?: Prefix;
  v6?: Prefix;
  /** Next hops of the routes. */
  routers: readonly IpAddress[];
  dhcp: boolean;
}

export interface TunnelAddress {
  address: IpAddress;
  gateway: IpAddress;
}

/** Something the server pushed that is not used. */
export interface RefusedItem {
  /** What, in the terms of CONFIG: `routes 10.0.0.0/8`. */
  item: string;
  why: string;
}

/** Judges every item of a CONFIG. Throws nothing. */
export function checkConfig(
  config: ConfigMessage,
  limits: ClientLimits,
): { accepted: AcceptedConfig; refused: readonly RefusedItem[] } {
  const refused: RefusedItem[] = [];
  const refuse = (item: string, why: string): undefined => {
    refused.push({ item, why });
  };

  const v4 = readAddresses('v4', config, refuse);
  const v6 = readAddresses('v6', config, refuse);
  const accepted: AcceptedConfig = {
    revision: config.revision,
    addresses: { ...(v4 === undefined ? {} : { v4 }), ...(v6 === undefined ? {} : { v6 }) },
    routes: readRoutes(config, limits, { 4: v4 !== undefined, 6: v6 !== undefined }, refuse),
    dns: readDns(config, limits, refuse),
    mtu: readMtu(config.mtu, refuse),
    ping: readTimers(config, refuse),
    data: readData(config, refuse),
    rekeyMs: readRekey(config, refuse),
    networks: readNetworks(config.networks ?? [], limits, { 4: v4 !== undefined, 6: v6 !== undefined }, refuse),
    ...(config.ethernet === undefined ? {} : readEthernet(config.ethernet, { v4, v6 }, refuse)),
    pins: config.pins.filter(
      (pin) => /^[A-Za-z0-9+/]{43}=$/.test(pin) || refuse(`pins ${pin}`, 'no base64 of a SHA-256'),
    ),
    notices: config.notices ?? [],
  };
  return { accepted, refused };
}

type Refuse = (item: string, why: string) => undefined;

function readAddresses(family: 'v4' | 'v6', config: ConfigMessage, refuse: Refuse): TunnelAddress | undefined {
  const pushed = config.addresses[family];
  if (pushed === undefined) return undefined;
  const version = family === 'v4' ? 4 : 6;
  const item = `addresses.${family} ${pushed.address}`;
  const address = read(() => parseIp(pushed.address));
  const gateway = read(() => parseIp(pushed.gateway));
  if (address === undefined || gateway === undefined) return refuse(item, 'not an IP address');
  if (address.version !== version || gateway.version !== version) return refuse(item, 'of the other family');
  if (isUnusableAddress(address) || isUnusableAddress(gateway)) return refuse(item, 'never the address of a host');
  return { address, gateway };
}

function readRoutes(
  config: ConfigMessage,
  limits: ClientLimits,
  has: Record<4 | 6, boolean>,
  refuse: Refuse,
): Prefix[] {
  const routes = new Map<string, Prefix>();
  const limit = Math.min(limits.maxRoutes ?? MAX_ACCEPTED_ROUTES, MAX_ACCEPTED_ROUTES);
  for (const text of config.routes) {
    const item = `routes ${text}`;
    const prefix = read(() => parsePrefix(text));
    if (prefix === undefined) {
      refuse(item, 'not a prefix');
      continue;
    }
    const why = refusalOfRoute(prefix, limits, has);
    if (why !== undefined) refuse(item, why);
    else if (routes.size >= limit) refuse(item, `more than ${limit} routes`);
    else routes.set(formatPrefix(prefix), prefix);
  }
  return [...routes.values()];
}

function refusalOfRoute(prefix: Prefix, limits: ClientLimits, has: Record<4 | 6, boolean>): string | undefined {
  if (!has[prefix.address.version]) return 'there is no address of its family';
  if (isUnusableRoute(prefix)) return 'never routed on the word of a server';
  if (isBroadRoute(prefix)) {
    if (!limits.serverVerified) return 'a default route from a server that is not verified';
    return limits.defaultRoute ? undefined : 'the profile allows no default route';
  }
  if (limits.socketsExempt !== true && limits.outside.some((address) => prefixContains(prefix, address))) {
    return 'it holds an address that must stay outside the tunnel';
  }
  const allowed = limits.routes;
  if (allowed === undefined) return undefined;
  const within = allowed.some((outer) => outer.length <= prefix.length && prefixContains(outer, prefix.address));
  return within ? undefined : 'not within what the profile allows';
}

function readDns(config: ConfigMessage, limits: ClientLimits, refuse: Refuse): AcceptedConfig['dns'] {
  const servers: IpAddress[] = [];
  for (const text of config.dns.servers) {
    const item = `dns.servers ${text}`;
    const server = read(() => parseIp(text));
    if (server === undefined || isUnusableAddress(server)) refuse(item, 'not the address of a host');
    else if (!limits.serverVerified) refuse(item, 'name servers from a server that is not verified');
    else if (!limits.dns) refuse(item, 'the profile allows no name servers');
    else if (servers.length >= MAX_DNS_SERVERS) refuse(item, `more than ${MAX_DNS_SERVERS} name servers`);
    else servers.push(server);
  }
  const domains = config.dns.domains.filter((domain) => {
    const item = `dns.domains ${domain}`;
    if (!limits.serverVerified || !limits.dns) return refuse(item, 'no name servers are accepted from this server');
    const allowed = limits.domains;
    if (allowed === undefined || allowed.some((outer) => domain === outer || domain.endsWith(`.${outer}`))) return true;
    return refuse(item, 'not within what the profile allows');
  });
  return { servers, domains };
}

function readMtu(mtu: number, refuse: Refuse): number {
  if (mtu >= MIN_TUNNEL_MTU && mtu <= MAX_TUNNEL_MTU) return mtu;
  refuse(`mtu ${mtu}`, `not within ${MIN_TUNNEL_MTU} to ${MAX_TUNNEL_MTU}`);
  return MIN_TUNNEL_MTU;
}

function readTimers(config: ConfigMessage, refuse: Refuse): AcceptedConfig['ping'] {
  const { intervalSeconds, deadSeconds } = config.ping;
  const within =
    intervalSeconds >= PING_INTERVAL_SECONDS.least &&
    intervalSeconds <= PING_INTERVAL_SECONDS.most &&
    deadSeconds >= DEAD_SECONDS.least &&
    deadSeconds <= DEAD_SECONDS.most &&
    deadSeconds >= 2 * intervalSeconds;
  if (within) return { intervalMs: intervalSeconds * 1_000, deadMs: deadSeconds * 1_000 };
  refuse(`ping ${intervalSeconds}/${deadSeconds}`, 'timers out of bounds');
  return { intervalMs: PING_INTERVAL_SECONDS.standard * 1_000, deadMs: DEAD_SECONDS.standard * 1_000 };
}

function readData(config: ConfigMessage, refuse: Refuse): AcceptedConfig['data'] {
  const { mode, channels } = config.data;
  if (mode === 'inline') return { mode, channels: 0 };
  if (channels >= 1 && channels <= MAX_DATA_CHANNELS) return { mode, channels };
  refuse(`data.channels ${channels}`, `not within 1 to ${MAX_DATA_CHANNELS}`);
  return { mode, channels: 1 };
}

function readRekey({ rekeySeconds }: ConfigMessage, refuse: Refuse): number {
  if (rekeySeconds === undefined) return REKEY_INTERVAL_MS;
  if (rekeySeconds >= REKEY_SECONDS.least && rekeySeconds <= REKEY_SECONDS.most) return rekeySeconds * 1_000;
  refuse(`rekeySeconds ${rekeySeconds}`, `not within ${REKEY_SECONDS.least} to ${REKEY_SECONDS.most}`);
  return REKEY_INTERVAL_MS;
}

function readNetworks(
  pushed: NonNullable<ConfigMessage['networks']>,
  { networks: offered = [] }: ClientLimits,
  has: Record<4 | 6, boolean>,
  refuse: Refuse,
): AcceptedNetwork[] {
  const taken: AcceptedNetwork[] = [];
  for (const { network: text, as = text } of pushed) {
    const item = `networks ${text}`;
    const network = read(() => parsePrefix(text));
    const seenAs = read(() => parsePrefix(as));
    if (network === undefined || seenAs === undefined) refuse(item, 'not a prefix');
    else if (!offered.some((outer) => outer.length <= network.length && prefixContains(outer, network.address))) {
      refuse(item, 'not a network that this client offers');
    } else if (seenAs.length !== network.length || seenAs.address.version !== network.address.version) {
      refuse(item, `${as} is not of its length and family`);
    } else if (isBroadRoute(seenAs) || isUnusableRoute(seenAs)) refuse(item, `${as} is never routed`);
    else if (!has[network.address.version]) refuse(item, 'there is no address of its family');
    else if (taken.some((other) => prefixesOverlap(other.network, network) || prefixesOverlap(other.seenAs, seenAs))) {
      refuse(item, 'overlaps another one');
    } else taken.push({ network, seenAs });
  }
  return taken;
}

function readEthernet(
  { mac, networks, routers, dhcp }: NonNullable<ConfigMessage['ethernet']>,
  addresses: { v4: TunnelAddress | undefined; v6: TunnelAddress | undefined },
  refuse: Refuse,
): { ethernet?: AcceptedEthernet } {
  if (parseMac(mac) === undefined) {
    refuse(`ethernet.mac ${mac}`, 'no MAC address of a single station');
    return {};
  }
  const prefixes = networks.flatMap((text) => {
    const prefix = read(() => parsePrefix(text));
    const own = prefix?.address.version === 4 ? addresses.v4 : addresses.v6;
    if (prefix !== undefined && !isBroadRoute(prefix) && own !== undefined && prefixContains(prefix, own.address)) {
      return [prefix];
    }
    refuse(`ethernet.networks ${text}`, 'not the network of an address that was pushed');
    return [];
  });
  const v4 = prefixes.find(({ address }) => address.version === 4);
  const v6 = prefixes.find(({ address }) => address.version === 6);
  const hops = routers.flatMap((text) => {
    const router = read(() => parseIp(text));
    const network = router?.version === 4 ? v4 : v6;
    if (router !== undefined && network !== undefined && prefixContains(network, router)) return [router];
    refuse(`ethernet.routers ${text}`, 'not within a network of the segment');
    return [];
  });
  return {
    ethernet: { mac, ...(v4 === undefined ? {} : { v4 }), ...(v6 === undefined ? {} : { v6 }), routers: hops, dhcp },
  };
}

/** The value, or undefined where the text is not one. */
function read<T>(parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (toVpnError(error).code === 'ERR_CONFIG_VALUE') return undefined;
    throw error;
  }
}
