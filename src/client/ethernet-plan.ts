/**
 * What a client's machine should have as a station on an Ethernet segment: a value, as `host-plan` makes for a tunnel of packets.
 *
 * Hides how little that is: the device with its MAC address, an address with the segment's prefix, and routes by a router of the
 * segment. Nothing else of the machine is touched. Where addresses come by DHCP the device is brought up without one, for
 * the machine's own DHCP client. Pure.
 */

import { VpnError } from '../base/errors.ts';
import { formatIp, formatPrefix, isBroadRoute, type Prefix, prefixContains, prefixesOverlap } from '../ip/address.ts';
import type { HostChange } from '../os/host.ts';
import type { RefusedItem } from '../protocol/config-check.ts';
import type { HostPlan, PlanInput } from './host-plan.ts';

const QUEUE_LENGTH = 1000;

/**
 * What has to be on the host for a configuration.
 *
 * @throws {VpnError} ERR_CONFLICT where the machine is in the segment's network already: two devices would answer for it;
 *   ERR_DEVICE_KIND for a configuration without Ethernet
 */
export function planEthernet({ device, config, facts, wishes }: Omit<PlanInput, 'choose'>): HostPlan {
  const { ethernet } = config;
  if (ethernet === undefined) {
    throw new VpnError('ERR_DEVICE_KIND', 'the gateway did not say what this machine is on its Ethernet segment');
  }
  const { mac, v4, v6, routers, dhcp } = ethernet;
  const hasFamily = (version: 4 | 6): boolean => version === 4 || facts.hasIpv6;
  const networks = [v4, v6].filter((prefix) => prefix !== undefined);
  for (const network of networks) {
    const own = facts.attached.find(({ prefix }) => prefixesOverlap(prefix, network));
    if (own === undefined) continue;
    throw new VpnError(
      'ERR_CONFLICT',
      `this machine is in ${formatPrefix(own.prefix)} on ${own.device} already, and the gateway's segment is ${formatPrefix(network)}; nothing was changed`,
    );
  }
  const refused: RefusedItem[] = [];
  const refuse = (prefix: Prefix, why: string): HostChange[] => {
    refused.push({ item: `routes ${formatPrefix(prefix)}`, why });
    return [];
  };
  const routes = [...config.routes, ...wishes.include].flatMap((prefix): HostChange[] => {
    const { version } = prefix.address;
    if (!hasFamily(version)) return [];
    if (isBroadRoute(prefix))
      return refuse(prefix, 'a default route over Ethernet would take the tunnel from under itself');
    if (networks.some((network) => network.length <= prefix.length && prefixContains(network, prefix.address)))
      return [];
    const router = routers.find(({ version: of }) => of === version);
    if (router === undefined) return refuse(prefix, 'the gateway names no router for it on the segment');
    return [{ kind: 'route', device, prefix: formatPrefix(prefix), via: formatIp(router) }];
  });
  const addresses = [
    { own: config.addresses.v4?.address, network: v4 },
    { own: config.addresses.v6?.address, network: v6 },
  ].flatMap(({ own, network }): HostChange[] =>
    own === undefined || network === undefined || !hasFamily(own.version)
      ? []
      : [{ kind: 'address', device, address: `${formatIp(own)}/${network.length}` }],
  );
  const ofDevice = (name: string, value: string): HostChange => {
    return { kind: 'sysctl', key: `net/ipv6/conf/${device}/${name}`, value };
  };
  const ipv6 = facts.hasIpv6
    ? [
        ofDevice('disable_ipv6', '0'),
        // A router of the segment is not this machine's way to the rest of the world; without DHCP it gives no address either.
        ofDevice('accept_ra_defrtr', '0'),
        ...(dhcp ? [] : [ofDevice('accept_ra', '0')]),
      ]
    : [];
  const { servers, domains } = config.dns;
  const usable = servers.filter(({ version }) => hasFamily(version));
  return {
    mode: 'split',
    changes: [
      ...ipv6,
      { kind: 'link', device, hardwareAddress: mac, mtu: config.mtu, queueLength: QUEUE_LENGTH },
      { kind: 'link', device, up: true },
      ...addresses,
      ...routes,
    ],
    dns: usable.length === 0 ? undefined : { servers: usable, domains, all: domains.length === 0 },
    refused,
    notes: dhcp
      ? [
          `${device} is up without an address: have your DHCP client ask for one, for instance with: udhcpc -i ${device}`,
        ]
      : [],
  };
}
