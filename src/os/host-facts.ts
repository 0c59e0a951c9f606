/**
 * What this machine's network looks like: which networks it is in, and where it sends what.
 *
 * Hides the JSON of `ip`. Looks only. Devices of ours are left out: what they carry is what is being decided.
 */

import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { formatPrefix, isBroadRoute, isUnusableRoute, type Prefix, parsePrefix } from '../ip/address.ts';
import { runCommand } from './command.ts';

const CONF_FOLDER = '/proc/sys/net/ipv4/conf';
const FORWARDING6 = '/proc/sys/net/ipv6/conf/all/forwarding';

/** A network and the device that leads to it. */
export interface NetworkOnDevice {
  readonly prefix: Prefix;
  readonly device: string;
}

export interface HostFacts {
  /** Networks in which this machine has an address, loopback's and single addresses aside. */
  readonly attached: readonly NetworkOnDevice[];
  /** What the main table sends through another machine, but for default routes: somebody else has said so. */
  readonly routed: readonly NetworkOnDevice[];
  /** What tunnels of ours carry, default routes and single addresses aside, where there are several. */
  readonly tunnels: readonly NetworkOnDevice[];
  /** Whether the kernel has IPv6 at all. */
  readonly hasIpv6: boolean;
  /** Whether some device takes only packets whose sender it would answer over the same device (RFC 3704 §2.2). */
  readonly isStrict: boolean;
  /** Devices from which this machine forwards IPv4. */
  readonly forwards4: readonly string[];
  /** Whether it forwards IPv6, from all devices. */
  readonly forwards6: boolean;
}

/**
 * Looks at the host.
 *
 * @param isOurs tells devices that are left out
 * @throws {VpnError} ERR_HOST_APPLY, ERR_UNSUPPORTED
 */
export async function readHostFacts(isOurs: (device: string) => boolean): Promise<HostFacts> {
  const hasIpv6 = await readFile('/proc/net/if_inet6').then(
    () => true,
    () => false,
  );
  const list = async (...words: string[]): Promise<Record<string, unknown>[]> => {
    const text = await runCommand('ip', ['-j', ...words]);
    return text.trim() === '' ? [] : (JSON.parse(text) as Record<string, unknown>[]);
  };
  const carriedByTunnels = async (): Promise<NetworkOnDevice[]> => {
    const all = await Promise.all([
      list('-4', 'route', 'show', 'table', 'all'),
      hasIpv6 ? list('-6', 'route', 'show', 'table', 'all') : [],
    ]);
    return routesOn(all.flat(), isOurs);
  };
  const [addresses, routes4, routes6] = await Promise.all([
    list('address', 'show', 'up'),
    list('-4', 'route', 'show', 'table', 'main'),
    hasIpv6 ? list('-6', 'route', 'show', 'table', 'main') : [],
  ]);
  const tunnels = addresses.filter(({ ifname }) => typeof ifname === 'string' && isOurs(ifname));
  return {
    tunnels: tunnels.length < 2 ? [] : await carriedByTunnels(),
    attached: attachedIn(addresses).filter(({ device }) => !isOurs(device)),
    routed: routedIn([...routes4, ...routes6]).filter(({ device }) => !isOurs(device)),
    hasIpv6,
    isStrict: (await devicesWith('rp_filter')).length > 0,
    forwards4: await devicesWith('forwarding'),
    forwards6: (await readFile(FORWARDING6, 'utf8').catch(() => '')).trim() === '1',
  };
}

/** Devices, `all` and `default` among them, whose setting is 1. */
async function devicesWith(setting: 'rp_filter' | 'forwarding'): Promise<string[]> {
  const devices = await readdir(CONF_FOLDER).catch(() => []);
  const values = await Promise.all(
    devices.map((device) => readFile(join(CONF_FOLDER, device, setting), 'utf8').catch(() => '')),
  );
  return devices.filter((_device, at) => values[at]?.trim() === '1');
}

/** From the list of `ip -j address`. */
export function attachedIn(links: readonly Record<string, unknown>[]): NetworkOnDevice[] {
  const found = new Map<string, NetworkOnDevice>();
  for (const { ifname, addr_info: addresses } of links) {
    if (typeof ifname !== 'string' || ifname === 'lo' || !Array.isArray(addresses)) continue;
    for (const { family, local, prefixlen, scope } of addresses as Record<string, unknown>[]) {
      if (scope !== 'global' && scope !== 'site') continue;
      const bits = family === 'inet' ? 32 : 128;
      if (typeof local !== 'string' || typeof prefixlen !== 'number' || prefixlen === bits) continue;
      const prefix = readPrefix(`${local}/${prefixlen}`);
      if (prefix !== undefined) found.set(`${formatPrefix(prefix)} ${ifname}`, { prefix, device: ifname });
    }
  }
  return [...found.values()];
}

/** From the list of `ip -j route show`. */
export function routedIn(routes: readonly Record<string, unknown>[]): NetworkOnDevice[] {
  return routes.flatMap(({ dst, dev, gateway, via }) => {
    if (typeof dst !== 'string' || typeof dev !== 'string' || dst === 'default') return [];
    if (gateway === undefined && via === undefined) return [];
    const length = dst.includes(':') ? 128 : 32;
    const prefix = readPrefix(dst.includes('/') ? dst : `${dst}/${length}`);
    return prefix === undefined ? [] : [{ prefix, device: dev }];
  });
}

/** From the list of `ip -j route show table all`: networks on some devices. */
export function routesOn(
  routes: readonly Record<string, unknown>[],
  isWanted: (device: string) => boolean,
): NetworkOnDevice[] {
  return routes.flatMap(({ dst, dev }) => {
    if (typeof dst !== 'string' || typeof dev !== 'string' || !dst.includes('/') || !isWanted(dev)) return [];
    const prefix = readPrefix(dst);
    return prefix === undefined || isBroadRoute(prefix) || isUnusableRoute(prefix) ? [] : [{ prefix, device: dev }];
  });
}

/** The kernel has prefixes that are none for us, such as v4-mapped ones. */
function readPrefix(text: string): Prefix | undefined {
  try {
    return parsePrefix(text);
  } catch {
    return undefined;
  }
}
