/**
 * What a network namespace, and the host, look like at one moment, so that what was left behind is the difference of two.
 *
 * Hides the JSON of `ip` and `nft` and what in it changes by itself (handles, counters, lifetimes). A snapshot is a flat
 * map from a readable name to a canonical value; nothing here knows what a VPN changes.
 */

import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { processesOfRun, run } from './process.ts';

/** Readable name, such as `address tun0 10.0.0.1/24`, to its value. */
export type Snapshot = ReadonlyMap<string, string>;

type Json = Readonly<Record<string, unknown>>;

/** Settings of the kernel that report a state, such as which modules are loaded, instead of holding one. */
const VOLATILE_SYSCTLS =
  /\/(flush|stat_refresh|tcp_fastopen_key|stable_secret|fib_info|gc_\w+|route\/\w+|tcp_available_congestion_control)$/;

/** Looks at one network namespace; without a name, at the one this process is in. */
export async function takeNetworkSnapshot(namespace?: string): Promise<Snapshot> {
  const select = namespace === undefined ? [] : ['-n', namespace];
  const inside = namespace === undefined ? [] : ['ip', 'netns', 'exec', namespace];
  const ip = async (...words: string[]) => parseList((await run(['ip', ...select, '-j', ...words])).stdout);
  const [links, addresses, routes4, routes6, rules4, rules6, nft, sysctls] = await Promise.all([
    ip('-d', 'link'),
    ip('address'),
    ip('-4', 'route', 'show', 'table', 'all'),
    ip('-6', 'route', 'show', 'table', 'all'),
    ip('-4', 'rule'),
    ip('-6', 'rule'),
    run([...inside, 'nft', '-j', 'list', 'ruleset'], { anyStatus: true }),
    run([...inside, 'grep', '-rsH', '.', '/proc/sys/net/core', '/proc/sys/net/ipv4', '/proc/sys/net/ipv6'], {
      anyStatus: true,
    }),
  ]);
  const entries = new Map<string, string>();
  for (const link of links) {
    const up = Array.isArray(link.flags) && link.flags.includes('UP');
    entries.set(`link ${link.ifname}`, canonical({ ...pick(link, 'mtu', 'master', 'gso_max_size', 'qdisc'), up }));
  }
  for (const address of addresses) {
    const all = Array.isArray(address.addr_info) ? (address.addr_info as Json[]) : [];
    for (const one of all) {
      entries.set(`address ${address.ifname} ${one.local}/${one.prefixlen}`, canonical(pick(one, 'scope')));
    }
  }
  for (const route of [...routes4, ...routes6]) {
    const { flags: _flags, expires: _expires, ...rest } = route;
    const words = ['type', 'dst', 'gateway', 'dev', 'table', 'metric'].map((key) => rest[key] ?? '-').join(' ');
    entries.set(`route ${words}`, canonical(rest));
  }
  for (const rule of [...rules4, ...rules6]) entries.set(`rule ${canonical(rule)}`, '');
  for (const object of nftObjects(nft.stdout)) entries.set(`nft ${canonical(object)}`, '');
  for (const line of sysctls.stdout.split('\n')) {
    const colon = line.indexOf(':');
    const path = line.slice('/proc/sys/'.length, colon);
    if (colon > 0 && !VOLATILE_SYSCTLS.test(path))
      entries.set(`sysctl ${path.replaceAll('/', '.')}`, line.slice(colon + 1));
  }
  return entries;
}

/** iproute2 makes it for the first namespace of a machine and keeps it; what is in it is looked at. */
const NETNS_FOLDER = 'netns';

/** Looks at the host: its own network, the namespaces, `/run`, the resolver's file, and the processes of a run. */
export async function takeHostSnapshot(runId: string): Promise<Snapshot> {
  const entries = new Map(await takeNetworkSnapshot());
  for (const name of list('/run/netns')) entries.set(`namespace ${name}`, '');
  for (const name of list('/run')) if (name !== NETNS_FOLDER) entries.set(`/run/${name}`, '');
  for (const [pid, command] of processesOfRun(runId)) entries.set(`process ${pid}`, command);
  entries.set('/etc/resolv.conf', resolverHash());
  return entries;
}

/** What differs, one line each: `+` is there now, `-` is gone, `~` has another value. */
export function differences(before: Snapshot, after: Snapshot): string[] {
  const lines: string[] = [];
  for (const [name, value] of after) {
    const old = before.get(name);
    if (old === undefined) lines.push(`+ ${name}${value === '' ? '' : ` = ${value}`}`);
    else if (old !== value) lines.push(`~ ${name}: ${old} → ${value}`);
  }
  for (const name of before.keys()) if (!after.has(name)) lines.push(`- ${name}`);
  return lines.sort();
}

function* nftObjects(text: string): Generator<Json> {
  if (text === '') return;
  const { nftables } = JSON.parse(text) as { nftables: Json[] };
  for (const object of nftables) if (!('metainfo' in object)) yield object;
}

function resolverHash(): string {
  try {
    return createHash('sha256').update(readFileSync('/etc/resolv.conf')).digest('hex');
  } catch {
    return 'missing';
  }
}

function parseList(text: string): Json[] {
  // `ip` prints nothing at all for some empty lists, and `{}` for an address family without entries.
  return text.trim() === '' ? [] : (JSON.parse(text) as Json[]).filter((entry) => Object.keys(entry).length > 0);
}

function pick(value: Json, ...keys: string[]): Json {
  return Object.fromEntries(keys.filter((key) => key in value).map((key) => [key, value[key]]));
}

/** JSON with sorted keys and without what the kernel counts or numbers. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (key, inner: unknown) => {
    if (key === 'handle' || key === 'packets' || key === 'bytes' || key === 'index') return undefined;
    if (typeof inner !== 'object' || inner === null || Array.isArray(inner)) return inner;
    return Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
