/**
 * Packet rules that stand as long as a tunnel's device, as text of one `nft` table.
 *
 * Hides what routing alone cannot say. Pure: it makes text from values.
 *
 * - Nobody outside may speak to the machine's address in the tunnel (CVE-2019-14899).
 * - Answers to our marked sockets carry the mark, too, so that a strict reverse path check knows their way.
 * - Only the machine's own address may enter the tunnel: a connection that was open before has another one, and is cut at
 *   once instead of hanging. So is everything of a family that the tunnel does not carry.
 * - Networks behind the machine may enter, too; those that are seen under other addresses elsewhere are translated, one to one.
 *   What comes out of the tunnel goes to them and to nothing else behind the machine, and a machine that forwards for their sake
 *   forwards nothing else.
 *
 * The last ones are bound to the device: when it goes with a client that crashed, they hold nothing up.
 */

import { formatIp, formatPrefix, type IpAddress, type Prefix } from '../ip/address.ts';
import type { AcceptedNetwork } from '../protocol/config-check.ts';

/** All devices of ours. */
const TUNNELS = '"cvpn*"';
/** Of which `nft` makes nothing else. */
const DEVICE_NAME = /^[\w.@:-]+$/;

export interface GuardInput {
  readonly device: string;
  readonly mark: number;
  /** This machine's addresses in the tunnel. */
  readonly v4?: IpAddress;
  readonly v6?: IpAddress;
  /** Networks behind this machine that it carries packets for. */
  readonly networks: readonly AcceptedNetwork[];
  /** What forwards for these networks only, and would not without them: IPv4 from these devices, and IPv6 from any. */
  readonly opened: { readonly devices4: readonly string[]; readonly all6: boolean };
  /** Families of which only a part, or nothing, may enter the tunnel. */
  readonly only: readonly { readonly family: 4 | 6; readonly to: readonly Prefix[] }[];
}

export function guardRules({ device, mark, v4, v6, networks, opened, only }: GuardInput): string {
  const outside = `iifname != "${device}"`;
  const into = `oifname "${device}"`;
  return [
    'chain outside {',
    '  type filter hook prerouting priority raw; policy accept;',
    ...(v4 === undefined ? [] : [`  ${outside} ip daddr ${formatIp(v4)} fib saddr type != local drop`]),
    ...(v6 === undefined ? [] : [`  ${outside} ip6 daddr ${formatIp(v6)} fib saddr type != local drop`]),
    '}',
    'chain answers {',
    '  type filter hook prerouting priority mangle; policy accept;',
    `  ct mark ${mark} meta mark set ${mark}`,
    '}',
    'chain asked {',
    '  type filter hook postrouting priority mangle; policy accept;',
    `  meta mark ${mark} ct mark set ${mark}`,
    '}',
    'chain cut {',
    '  meta l4proto tcp reject with tcp reset',
    '  reject with icmpx admin-prohibited',
    '}',
    'chain refused {',
    ...only.map(({ family, to }) => `  ${outsideOf(family, to)} goto cut`),
    '}',
    'chain own {',
    '  ip6 saddr { ::, fe80::/10 } drop',
    v4 === undefined ? '  meta nfproto ipv4 goto cut' : `  ip saddr != ${sources(v4, networks)} goto cut`,
    v6 === undefined ? '  meta nfproto ipv6 goto cut' : `  ip6 saddr != ${sources(v6, networks)} goto cut`,
    '  jump refused',
    '}',
    'chain output {',
    '  type filter hook output priority filter; policy accept;',
    `  ${into} jump own`,
    '}',
    // The address of a forwarded packet is set after this: only where it goes can be judged.
    'chain forward {',
    '  type filter hook forward priority filter; policy accept;',
    `  ${into} jump refused`,
    ...between(device, networks, opened),
    '}',
    ...translation(device, networks),
  ].join('\n');
}

function sources(own: IpAddress, networks: readonly AcceptedNetwork[]): string {
  const behind = networks.filter(({ network }) => network.address.version === own.version);
  if (behind.length === 0) return formatIp(own);
  return `{ ${[formatIp(own), ...behind.map(({ network }) => formatPrefix(network))].join(', ')} }`;
}

/** For forwarded packets, whose destination is that of the site already. Other tunnels have rules of their own. */
function between(device: string, networks: readonly AcceptedNetwork[], opened: GuardInput['opened']): string[] {
  if (networks.length === 0) return [];
  const from = `iifname "${device}"`;
  const inside = ([4, 6] as const).flatMap((version) => {
    const own = networks.filter(({ network }) => network.address.version === version);
    const to = own.map(({ network }) => formatPrefix(network)).join(', ');
    return own.length === 0 ? [] : [`  ${from} ${version === 4 ? 'ip' : 'ip6'} daddr { ${to} } accept`];
  });
  const devices = opened.devices4.filter((name) => DEVICE_NAME.test(name)).map((name) => `"${name}"`);
  return [
    // Others behind this machine may have asked something through the tunnel, from its own address.
    `  ${from} ct direction reply accept`,
    ...inside,
    `  ${from} drop`,
    ...(devices.length === 0
      ? []
      : [`  meta nfproto ipv4 iifname { ${devices.join(', ')} } oifname != ${TUNNELS} drop`]),
    ...(opened.all6 ? [`  meta nfproto ipv6 iifname != ${TUNNELS} oifname != ${TUNNELS} drop`] : []),
  ];
}

function translation(device: string, networks: readonly AcceptedNetwork[]): string[] {
  const translated = networks.filter(({ network, seenAs }) => formatPrefix(network) !== formatPrefix(seenAs));
  if (translated.length === 0) return [];
  const rules = (way: 'snat' | 'dnat'): string[] =>
    ([4, 6] as const).flatMap((version) => {
      const own = translated.filter(({ network }) => network.address.version === version);
      if (own.length === 0) return [];
      const pairs = own.map(({ network, seenAs }) => [formatPrefix(network), formatPrefix(seenAs)] as const);
      const map = pairs.map(([here, there]) => (way === 'snat' ? `${here} : ${there}` : `${there} : ${here}`));
      const ip = version === 4 ? 'ip' : 'ip6';
      const where = way === 'snat' ? `oifname "${device}"` : `iifname "${device}"`;
      return [`  ${where} ${way} ${ip} prefix to ${ip} ${way === 'snat' ? 's' : 'd'}addr map { ${map.join(', ')} }`];
    });
  return [
    'chain inwards {',
    '  type nat hook prerouting priority dstnat; policy accept;',
    ...rules('dnat'),
    '}',
    'chain outwards {',
    '  type nat hook postrouting priority srcnat; policy accept;',
    ...rules('snat'),
    '}',
  ];
}

function outsideOf(family: 4 | 6, to: readonly Prefix[]): string {
  if (to.length === 0) return `meta nfproto ipv${family}`;
  return `${family === 4 ? 'ip' : 'ip6'} daddr != { ${to.map(formatPrefix).join(', ')} }`;
}
