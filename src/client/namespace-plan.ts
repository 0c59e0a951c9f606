/**
 * What a network namespace should have for a configuration, when the tunnel is its only way out: a value.
 *
 * Hides what is the tunnel's in there. Nothing of the machine's is in the namespace, so there is nothing to go before or to
 * be kept apart: what no route leads to is refused at once. Pure.
 */

import { formatIp, formatPrefix, hostPrefix, type IpAddress, type Prefix, parsePrefix } from '../ip/address.ts';
import type { AcceptedConfig } from '../protocol/config-check.ts';
import { dnsPlan, isOpen, modeOf, narrowRoutes, type TunnelWishes } from './host-plan.ts';

const QUEUE_LENGTH = 1000;
const ALL = { 4: parsePrefix('0.0.0.0/0'), 6: parsePrefix('::/0') } as const;

/** One thing in the namespace, as words of `ip`: how it is made, and how it is taken away again. */
export interface NamespaceItem {
  readonly add: readonly string[];
  /** Undefined: it goes only with the namespace, or another of its kind takes its place. */
  readonly remove: readonly string[] | undefined;
}

export interface NamespacePlan {
  readonly mode: 'full' | 'split';
  /** In the order in which they are made. */
  readonly items: readonly NamespaceItem[];
  readonly servers: readonly IpAddress[];
  readonly domains: readonly string[];
  readonly notes: readonly string[];
}

/** What has to be in the namespace that `device` is in. */
export function planNamespace(device: string, config: AcceptedConfig, wishes: TunnelWishes): NamespacePlan {
  const mode = modeOf(config, wishes);
  const { v4, v6 } = config.addresses;
  const carried = ([4, 6] as const).filter((family) => (family === 4 ? v4 : v6) !== undefined);
  const isWhole = (family: 4 | 6): boolean => mode === 'full' && isOpen(family, config, wishes, true);
  const inside = carried.flatMap((family) => (isWhole(family) ? [ALL[family]] : narrowRoutes(config, wishes, family)));
  const dns = dnsPlan(config, wishes, mode);
  const servers = (dns?.servers ?? []).map((server) => ({ server, prefix: formatPrefix(hostPrefix(server)) }));
  const routes = new Set([...inside.map(formatPrefix), ...servers.map(({ prefix }) => prefix)]);
  const outside = wishes.exclude.filter(({ address }) => carried.some((family) => family === address.version));
  const link = ['mtu', String(config.mtu), 'txqueuelen', String(QUEUE_LENGTH), 'addrgenmode', 'none'];
  return {
    mode,
    items: [
      { add: ['link', 'set', 'dev', device, ...link], remove: undefined },
      { add: ['link', 'set', 'dev', device, 'up'], remove: undefined },
      ...[v4, v6].flatMap((pair) => (pair === undefined ? [] : [address(device, formatIp(pair.address))])),
      ...[...routes].map((prefix) => route([prefix, 'dev', device])),
      ...outside.map((prefix: Prefix) => route(['unreachable', formatPrefix(prefix)])),
    ],
    servers: servers.map(({ server }) => server),
    domains: dns?.domains ?? [],
    notes:
      servers.length > 0
        ? []
        : ['the gateway names no name servers: commands find no names; set tunnel.dns in the profile'],
  };
}

function address(device: string, text: string): NamespaceItem {
  const words = [text.includes(':') ? `${text}/128` : `${text}/32`, 'dev', device];
  const noDetection = text.includes(':') ? ['nodad'] : [];
  return { add: ['address', 'replace', ...words, ...noDetection], remove: ['address', 'delete', ...words] };
}

function route(words: readonly string[]): NamespaceItem {
  return { add: ['route', 'replace', ...words], remove: ['route', 'delete', ...words] };
}

/** The steps from what is there to what should be: nothing that stays is touched, and nothing is missing in between. */
export function stepsBetween(
  there: readonly NamespaceItem[],
  wanted: readonly NamespaceItem[],
): readonly (readonly string[])[] {
  const textOf = ({ add }: NamespaceItem): string => add.join(' ');
  const had = new Set(there.map(textOf));
  const want = new Set(wanted.map(textOf));
  const removed = there.filter((item) => !want.has(textOf(item))).toReversed();
  return [
    ...wanted.filter((item) => !had.has(textOf(item))).map(({ add }) => add),
    ...removed.flatMap(({ remove }) => (remove === undefined ? [] : [remove])),
  ];
}
