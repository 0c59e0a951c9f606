/**
 * What leaves this machine while the kill switch is closed, as text of one `nft` table. Pure.
 *
 * All that is not listed here is refused at once, so that programs notice instead of waiting: packets on the way out, those of
 * connections that were open before among them, and packets that the machine forwards. The table names no device that comes
 * and goes, so it is the same from boot on, and stays in force whatever becomes of the client.
 *
 * @see docs/security.md, what a client lets out
 */

import { formatPrefix, type Prefix, prefixCovers } from '../ip/address.ts';

export interface KillSwitchInput {
  /** The firewall mark of our own sockets. */
  readonly mark: number;
  /** Networks that packets may go to all the same: excluded from the tunnel, or local ones that were to stay reachable. */
  readonly open: readonly Prefix[];
}

/** The set of ports that a captive portal needs; its elements go by themselves. */
export const PORTAL_SET = 'portal';
/** Names, and pages where a person logs in. */
export const PORTAL_PORTS = ['udp . 53', 'tcp . 53', 'tcp . 80', 'tcp . 443', 'tcp . 8080', 'tcp . 8443'] as const;

/** The body of the table. */
export function killSwitchRules({ mark, open }: KillSwitchInput): string {
  return [
    `set ${PORTAL_SET} {`,
    '  type inet_proto . inet_service',
    '  flags timeout',
    '}',
    'chain refused {',
    '  meta l4proto tcp reject with tcp reset',
    '  reject with icmpx admin-prohibited',
    '}',
    'chain output {',
    '  type filter hook output priority filter; policy drop;',
    '  oifname { "lo" } accept',
    '  oifname "cvpn*" accept',
    `  meta mark ${mark} accept`,
    // DHCP: leases of both families.
    '  meta nfproto ipv4 udp sport 68 udp dport 67 accept',
    '  ip6 daddr { fe80::/10, ff02::/16 } udp sport 546 udp dport 547 accept',
    // Neighbours and routers, and the groups without which switches do not deliver these.
    '  ip6 hoplimit 255 icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept',
    '  ip6 daddr ff02::16 icmpv6 type mld2-listener-report accept',
    ...daddrRules(open),
    `  meta l4proto . th dport @${PORTAL_SET} accept`,
    '  goto refused',
    '}',
    'chain forward {',
    '  type filter hook forward priority filter; policy drop;',
    '  oifname "cvpn*" accept',
    '  iifname "cvpn*" ct state established,related accept',
    '  goto refused',
    '}',
  ].join('\n');
}

function daddrRules(open: readonly Prefix[]): string[] {
  // A set of the packet filter has no place for one prefix within another.
  const outermost = open.filter(
    (inner, at) =>
      !open.some(
        (outer, other) => other !== at && prefixCovers(outer, inner) && !(prefixCovers(inner, outer) && other > at),
      ),
  );
  return ([4, 6] as const).flatMap((family) => {
    const prefixes = outermost.filter(({ address }) => address.version === family).map(formatPrefix);
    return prefixes.length === 0 ? [] : [`  ${family === 4 ? 'ip' : 'ip6'} daddr { ${prefixes.join(', ')} } accept`];
  });
}
