/**
 * Packet rules that stand as long as a tunnel's device, as text of one `nft` table.
 *
 * Hides what routing alone cannot say. Pure: it makes text from values.
 *
 * - Nobody outside may speak to the machine's address in the tunnel (CVE-2019-14899).
 * - Answers to our marked sockets carry the mark, too, so that a strict reverse path check knows their way.
 * - Only the machine's own address may enter the tunnel: a connection that was open before has another one, and is cut at
 *   once instead of hanging. So is everything of a family that the tunnel does not carry.
 *
 * The last ones are bound to the device: when it goes with a client that crashed, they hold nothing up.
 */

import { formatIp, formatPrefix, type IpAddress, type Prefix } from '../ip/address.ts';

export interface GuardInput {
  readonly device: string;
  readonly mark: number;
  /** This machine's addresses in the tunnel. */
  readonly v4?: IpAddress;
  readonly v6?: IpAddress;
  /** Families of which only a part, or nothing, may enter the tunnel. */
  readonly only: readonly { readonly family: 4 | 6; readonly to: readonly Prefix[] }[];
}

export function guardRules({ device, mark, v4, v6, only }: GuardInput): string {
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
    v4 === undefined ? '  meta nfproto ipv4 goto cut' : `  ip saddr != ${formatIp(v4)} goto cut`,
    v6 === undefined ? '  meta nfproto ipv6 goto cut' : `  ip6 saddr != ${formatIp(v6)} goto cut`,
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
    '}',
  ].join('\n');
}

function outsideOf(family: 4 | 6, to: readonly Prefix[]): string {
  if (to.length === 0) return `meta nfproto ipv${family}`;
  return `${family === 4 ? 'ip' : 'ip6'} daddr != { ${to.map(formatPrefix).join(', ')} }`;
}
