/**
 * The part of a gateway's configuration that is about Ethernet: the table `tap`, in force with `device = "tap"`.
 *
 * Hides the keys, their bounds and what they are for the switch and for a client.
 */

import { z } from 'zod';
import { VpnError } from '../base/errors.ts';
import {
  createPrefix,
  formatIp,
  formatPrefix,
  type IpAddress,
  type Prefix,
  parseIp,
  parsePrefix,
  prefixContains,
} from '../ip/address.ts';
import { formatMac, stationMac } from '../ip/ethernet-station.ts';
import type { SwitchOptions } from '../ip/ethernet-switch.ts';
import type { Lease, LeasePool } from '../ip/lease-pool.ts';
import type { ConfigMessage } from '../protocol/messages.ts';
import type { GatewayConfig } from './config.ts';

/** The bridge that a gateway makes where the administrator names none. */
export const OWN_BRIDGE = 'cvbr0';

const link = z.string().regex(/^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$/, 'expected the name of a network device');
const cidr = z.union([z.cidrv4(), z.cidrv6()], 'expected a network such as 192.0.2.0/24 or fd12::/64');
const address = z.union([z.ipv4(), z.ipv6()], 'expected an IPv4 or IPv6 address');
const count = (least: number, most: number) => z.int('expected a whole number').min(least).max(most);

export const tapSchema = z.strictObject({
  bridge: link
    .exactOptional()
    .describe('the bridge to join, which must be there; left out: one of its own, which goes with the gateway'),
  name: z
    .string()
    .regex(/^[a-zA-Z][a-zA-Z0-9_]{0,11}$/, 'expected a name of at most 12 letters, digits or _')
    .default('cvtap0')
    .describe('TAP device of the first worker; those of the others end in -1, -2 and so on'),
  addressing: z
    .enum(['pool', 'dhcp'])
    .default('pool')
    .describe(
      '`pool`: clients get addresses of `pool`, and may use no others; `dhcp`: they ask a DHCP server on the bridge',
    ),
  networks: z
    .array(cidr)
    .max(2)
    .default([])
    .describe(
      'the networks on the bridge, one of each family, with the pool in them; left out: the pool is all of them',
    ),
  routers: z
    .array(address)
    .max(2)
    .default([])
    .describe("next hops of `routes`, one of each family; left out: on the gateway's own bridge, the gateway"),
  reserved: z
    .array(address)
    .max(256)
    .default([])
    .describe('addresses that no client may ever use, besides the routers'),
  protocols: z
    .array(z.int('expected an Ethernet type such as 0x8892').min(0x600).max(0xffff))
    .max(64)
    .default([])
    .describe('Ethernet types that pass besides IPv4, IPv6 and ARP'),
  macsPerClient: count(1, 256).default(1).describe('MAC addresses of one client, its own included'),
  addressesPerClient: count(1, 256).default(16).describe('IP addresses of one client that were not leased here'),
  broadcastsPerSecond: count(1, 1_000_000).default(100).describe('broadcasts and multicasts of one client'),
  floodsPerSecond: count(1, 1_000_000)
    .default(1000)
    .describe('broadcasts and multicasts from the bridge that a worker copies to its clients'),
  tableSize: count(16, 1_048_576)
    .default(8192)
    .describe('MAC addresses, and IP addresses, that a worker knows at once'),
  ageSeconds: count(60, 86_400).default(300).describe('until an address that is not heard of is forgotten'),
});

/** Whether a gateway carries Ethernet. */
export function isBridging({ device }: Pick<GatewayConfig, 'device'>): boolean {
  return device === 'tap';
}

/** The networks of the segment. @throws {VpnError} ERR_CONFIG_VALUE when they do not hold the pool or the routers */
export function segmentOf({ tap, pool }: Pick<GatewayConfig, 'tap' | 'pool'>): Prefix[] {
  const networks = tap.networks.map(parsePrefix);
  const families = pool.map(parsePrefix).map((own) => {
    const network = networks.find((prefix) => prefix.address.version === own.address.version) ?? own;
    if (network.length <= own.length && prefixContains(network, own.address)) return network;
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      `tap.networks: expected a network with the pool ${formatPrefix(own)} in it, got ${formatPrefix(network)}`,
      { details: { key: 'tap.networks' } },
    );
  });
  for (const text of tap.routers) {
    const router = parseIp(text);
    if (tap.addressing === 'dhcp' || families.some((prefix) => prefixContains(prefix, router))) continue;
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      `tap.routers: ${text} is in none of ${families.map(formatPrefix).join(', ')}`,
      {
        details: { key: 'tap.routers' },
      },
    );
  }
  return families;
}

/** What no key alone shows. @throws {VpnError} ERR_CONFIG_VALUE */
export function checkTap(config: GatewayConfig): void {
  if (!isBridging(config)) return;
  segmentOf(config);
  if (config.policyFile !== undefined) throw policyOfFrames();
}

export function policyOfFrames(): VpnError {
  return new VpnError(
    'ERR_CONFIG_VALUE',
    'policyFile: a policy judges packets that are routed, and device = "tap" bridges frames past it; leave out one of the two',
    { details: { key: 'policyFile' } },
  );
}

/** What the gateway's own bridge has as addresses, with the length of the segment's prefix. */
export function bridgeAddresses(config: GatewayConfig, { gateway4, gateway6 }: LeasePool): string[] {
  return segmentOf(config).flatMap(({ address: { version }, length }) => {
    const own = version === 4 ? gateway4 : gateway6;
    return own === undefined ? [] : [`${formatIp(own)}/${length}`];
  });
}

/** What CONFIG says of the segment to who has a lease; and what stays of the rest where addresses come by DHCP. */
export function ethernetConfig(
  config: GatewayConfig,
  pool: Pick<LeasePool, 'gateway4' | 'gateway6'>,
  lease: Lease,
): Partial<ConfigMessage> {
  const { tap } = config;
  const mac = formatMac(stationMac(lease));
  if (tap.addressing === 'dhcp') {
    return { addresses: {}, routes: [], ethernet: { mac, networks: [], routers: [], dhcp: true } };
  }
  const networks = segmentOf(config).map(({ address: at, length }) => formatPrefix(createPrefix(at, length)));
  return { ethernet: { mac, networks, routers: routersOf(config, pool), dhcp: false } };
}

/** What a worker's switch works with. @param seed 32 random bits */
export function switchOptions(config: GatewayConfig, pool: LeasePool, seed: number): SwitchOptions {
  const { tap, mtu, clientToClient } = config;
  const gateways = [pool.gateway4, pool.gateway6].filter((own) => own !== undefined);
  const reserved: IpAddress[] = [...tap.reserved, ...tap.routers].map(parseIp);
  return {
    mtu,
    clientToClient,
    protocols: tap.protocols,
    reserved: [...reserved, ...gateways],
    seed,
    limits: {
      macsPerClient: tap.macsPerClient,
      addressesPerClient: tap.addressesPerClient,
      tableSize: tap.tableSize,
      ageTicks: tap.ageSeconds,
      broadcasts: tap.broadcastsPerSecond,
      floods: tap.floodsPerSecond,
    },
  };
}

function routersOf({ tap }: GatewayConfig, { gateway4, gateway6 }: Pick<LeasePool, 'gateway4' | 'gateway6'>): string[] {
  if (tap.routers.length > 0 || tap.bridge !== undefined) return [...tap.routers];
  return [gateway4, gateway6].flatMap((own) => (own === undefined ? [] : [formatIp(own)]));
}
