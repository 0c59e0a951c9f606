/**
 * The packet rules of a gateway that bridges Ethernet, as text of `nft` tables.
 *
 * Hides what the kernel holds against a worker that does not keep its own guards (`ip/ethernet-switch`), and what clients on
 * the gateway's own bridge may ask of this host: echo, neighbours and configured services, and nothing is routed to or from
 * it. On the administrator's bridge that is the administrator's business. Pure; `os/nft.ts` applies it.
 */

import { formatIp, type IpAddress } from '../../ip/address.ts';

export const BRIDGE_TABLE = { family: 'bridge', name: 'customvpn' } as const;

/** Named counters of the table of the bridge. */
export const BRIDGE_COUNTERS = [
  'drop_control',
  'drop_tagged',
  'drop_router_advertisement',
  'drop_dhcp_server',
] as const;
/** Named counters of the table of the gateway's own segment. */
export const SEGMENT_COUNTERS = ['drop_input', 'drop_forward'] as const;

export interface Segment {
  bridge: string;
  /** This host's addresses on it. */
  gateways: readonly IpAddress[];
  /** As `53/udp`, either way round. */
  services: readonly string[];
}

/** The body of table `bridge customvpn`. @param devices of the workers */
export function bridgeRuleset(devices: readonly string[]): string {
  const drop = (name: (typeof BRIDGE_COUNTERS)[number]): string => `counter name ${name} drop`;
  return [
    ...BRIDGE_COUNTERS.map((name) => `\tcounter ${name} { }`),
    `\tset workers { type ifname; elements = { ${devices.map((name) => `"${name}"`).join(', ')} }; }`,
    '\tchain worker {',
    `\t\tether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 ${drop('drop_control')}`,
    `\t\tether daddr & ff:ff:ff:ff:ff:f0 == 01:00:0c:cc:cc:c0 ${drop('drop_control')}`,
    `\t\tether type { 0x8100, 0x88a8, 0x9100, 0x9200 } ${drop('drop_tagged')}`,
    `\t\ticmpv6 type { nd-router-advert, nd-redirect } ${drop('drop_router_advertisement')}`,
    `\t\tether type ip udp sport 67 ${drop('drop_dhcp_server')}`,
    `\t\tether type ip6 udp sport 547 ${drop('drop_dhcp_server')}`,
    '\t}',
    '\tchain prerouting {',
    '\t\ttype filter hook prerouting priority -300; policy accept;',
    '\t\tiifname @workers goto worker',
    '\t}',
  ].join('\n');
}

/** The body of table `inet customvpn` for the gateway's own bridge. */
export function segmentRuleset({ bridge, gateways, services }: Segment): string {
  const to = (address: IpAddress): string => `${address.version === 4 ? 'ip' : 'ip6'} daddr ${formatIp(address)}`;
  const ports = services.map((text) => {
    const [first = '', second = ''] = text.split('/');
    return /^\d+$/.test(first) ? `${second} dport ${first}` : `${first} dport ${second}`;
  });
  const drop = (name: (typeof SEGMENT_COUNTERS)[number]): string => `counter name ${name} drop`;
  return [
    ...SEGMENT_COUNTERS.map((name) => `\tcounter ${name} { }`),
    '\tchain input {',
    '\t\ttype filter hook input priority filter; policy accept;',
    `\t\tiifname != "${bridge}" accept`,
    '\t\tct direction reply accept',
    '\t\ticmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept',
    ...gateways.flatMap((address) => [
      `\t\t${to(address)} ${address.version === 4 ? 'icmp' : 'icmpv6'} type echo-request accept`,
      ...ports.map((port) => `\t\t${to(address)} ${port} accept`),
    ]),
    `\t\t${drop('drop_input')}`,
    '\t}',
    '\tchain forward {',
    '\t\ttype filter hook forward priority filter; policy accept;',
    // Bridged frames come by here on hosts that have IP rules look at them.
    `\t\tiifname "${bridge}" oifname "${bridge}" accept`,
    `\t\tiifname "${bridge}" ${drop('drop_forward')}`,
    `\t\toifname "${bridge}" ${drop('drop_forward')}`,
    '\t}',
  ].join('\n');
}
