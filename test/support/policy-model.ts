/**
 * Random policies and flows for tests, and what a policy means, told a second time.
 *
 * Knows nothing of `src/policy`: it judges the values of which the file was written, address by address, as text and
 * numbers. Universes are small, so that rules overlap, shadow and contradict each other all the time.
 */

import { isIPv6 } from 'node:net';
import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import { stringify } from 'smol-toml';

export interface ModelRule {
  action: 'allow' | 'deny';
  from: string[];
  to: string[];
  services: string[];
  require?: { certificate?: true; mfaMinutes?: number };
}

export interface ModelPolicy {
  version: 1;
  groups: Record<string, string[]>;
  networks: Record<string, string[]>;
  services: Record<string, string[]>;
  rules: ModelRule[];
}

export interface ModelClient {
  user: string;
  groups: string[];
  address4: string;
  address6: string;
  hasCertificate: boolean;
  /** Minutes since the second factor; undefined: never. */
  mfaMinutes: number | undefined;
}

export interface ModelFlow {
  client: number;
  destination: string;
  protocol: number;
  /** TCP and UDP. */
  port?: number;
  /** ICMP. */
  isEcho?: boolean;
}

export const POOLS = ['10.20.0.0/24', 'fd20::/64'];
export const HOSTS: Readonly<Record<string, readonly string[]>> = {
  'db.example.org': ['10.1.2.9', 'fd00:1::9'],
  'gone.example.org': [],
  // A name that resolves to a client's address opens no way to the client.
  'evil.example.org': ['10.20.0.3', '10.2.0.1'],
};
export const CLIENTS: readonly ModelClient[] = [
  client('alice', ['staff', 'admins'], 2, true, 5),
  client('bob', ['staff'], 3, false, undefined),
  client('eve', [], 4, true, 50),
  client('mallory', ['contractors'], 5, false, 500),
];

const NETWORKS: Record<string, string[]> = {
  office: ['10.1.0.0/16', 'fd00:1::/48'],
  lab: ['10.1.2.0/24', '10.1.3.0/25', 'fd00:1:0:2::/64', 'more'],
  more: ['10.2.0.0/15', 'db.example.org'],
};
const SERVICES: Record<string, string[]> = { web: ['tcp/80', 'tcp/443', 'quic'], quic: ['udp/443'] };
const GROUPS: Record<string, string[]> = { ops: ['eve', 'group:admins'], everyone: ['group:ops', 'group:staff'] };

const FROM = ['any', 'user:alice', 'user:eve', 'group:staff', 'group:ops', 'group:everyone', 'group:contractors'];
const TO = [
  ...['any', 'clients', 'office', 'lab', 'more', 'user:bob', 'group:staff', 'group:ops', 'gone.example.org'],
  ...['10.0.0.0/8', '10.1.2.0/25', '10.1.2.3', '10.20.0.0/16', '0.0.0.0/0', '10.2.0.0/16', 'evil.example.org'],
  ...['fd00::/16', 'fd00:1:0:2::3', '::/0', 'fd20::/64', 'db.example.org'],
];
const SERVED = [
  ...['any', 'web', 'quic', 'tcp', 'udp', 'icmp', 'icmp/echo', 'ip/47', 'ip/132', 'tcp/22', 'tcp/1-1000'],
  ...['tcp/80-443', 'tcp/443-8000', 'udp/53', 'udp/1-65535', 'udp/400-500', 'ip/1', 'ip/58'],
];
const DESTINATIONS = [
  ...['10.1.2.3', '10.1.2.9', '10.1.2.130', '10.1.3.1', '10.1.9.9', '10.2.0.1', '10.3.0.1', '10.4.0.1', '192.0.2.1'],
  ...['10.20.0.2', '10.20.0.3', '10.20.0.4', '10.20.0.99', 'fd20::2', 'fd20::3', 'fd20::5', 'fd20::99'],
  ...['fd00:1::9', 'fd00:1:0:2::3', 'fd00:1:0:2::4', 'fd00:2::1', 'fd01::1', '2001:db8::1'],
];
const PORTS = [1, 22, 53, 79, 80, 81, 442, 443, 444, 999, 1000, 1001, 7999, 8000, 8001, 65_535];

const rule: fc.Arbitrary<ModelRule> = fc.record(
  {
    action: fc.constantFrom('allow', 'deny'),
    from: fc.uniqueArray(fc.constantFrom(...FROM), { minLength: 1, maxLength: 2 }),
    to: fc.uniqueArray(fc.constantFrom(...TO), { minLength: 1, maxLength: 3 }),
    services: fc.uniqueArray(fc.constantFrom(...SERVED), { minLength: 1, maxLength: 3 }),
    require: fc.record(
      { certificate: fc.constant<true>(true), mfaMinutes: fc.constantFrom(10, 60) },
      { requiredKeys: [] },
    ),
  },
  { requiredKeys: ['action', 'from', 'to', 'services'] },
);

export const modelPolicy: fc.Arbitrary<ModelPolicy> = fc
  .array(rule, { minLength: 1, maxLength: 12, size: 'max' })
  .map((rules) => ({ version: 1, groups: GROUPS, networks: NETWORKS, services: SERVICES, rules }));

export const modelFlow: fc.Arbitrary<ModelFlow> = fc
  .record({
    client: fc.nat({ max: CLIENTS.length - 1 }),
    destination: fc.constantFrom(...DESTINATIONS),
    kind: fc.constantFrom('tcp', 'tcp', 'tcp', 'udp', 'udp', 'echo', 'icmp', 'gre', 'sctp', 'unknown'),
    port: fc.constantFrom(...PORTS),
  })
  .map(({ client: index, destination, kind, port }) => {
    const icmp = isIPv6(destination) ? 58 : 1;
    const flow = { client: index, destination };
    switch (kind) {
      case 'tcp':
        return { ...flow, protocol: 6, port };
      case 'udp':
        return { ...flow, protocol: 17, port };
      case 'echo':
        return { ...flow, protocol: icmp, isEcho: true };
      case 'icmp':
        return { ...flow, protocol: icmp, isEcho: false };
      default:
        return { ...flow, protocol: kind === 'gre' ? 47 : kind === 'sctp' ? 132 : 253 };
    }
  });

export function textOf(policy: ModelPolicy): string {
  return stringify(policy);
}

/** Whether a policy lets a flow through: rule by rule, word by word. */
export function isAllowed(policy: ModelPolicy, flow: ModelFlow): boolean {
  const source = CLIENTS[flow.client];
  if (source === undefined) throw new Error(`there is no client ${flow.client}`);
  for (const { action, from, to, services, require } of policy.rules) {
    if (require?.certificate === true && !source.hasCertificate) continue;
    if (require?.mfaMinutes !== undefined && !((source.mfaMinutes ?? Infinity) <= require.mfaMinutes)) continue;
    if (!from.some((word) => isMeant(policy, word, source))) continue;
    if (!to.some((word) => isThere(policy, word, flow.destination))) continue;
    if (!services.some((word) => isServed(policy, word, flow))) continue;
    return action === 'allow';
  }
  return false;
}

function isMeant(policy: ModelPolicy, word: string, { user, groups }: ModelClient): boolean {
  if (word === 'any') return true;
  if (word.startsWith('user:')) return word === `user:${user}`;
  const group = word.slice('group:'.length);
  const members = policy.groups[group] ?? [];
  return (
    groups.includes(group) ||
    members.some((member) =>
      isMeant(policy, member.includes(':') ? member : `user:${member}`, { user, groups } as ModelClient),
    )
  );
}

function isThere(policy: ModelPolicy, word: string, destination: string): boolean {
  const peer = CLIENTS.find(({ address4, address6 }) => address4 === destination || address6 === destination);
  const inPool = POOLS.some((pool) => isInside(pool, destination));
  if (word === 'clients') return inPool;
  if (word.startsWith('user:') || word.startsWith('group:')) return peer !== undefined && isMeant(policy, word, peer);
  const network = policy.networks[word];
  if (network !== undefined) return network.some((entry) => isThere(policy, entry, destination));
  if (inPool) return false;
  if (word === 'any') return true;
  const host = HOSTS[word];
  if (host !== undefined) return host.includes(destination);
  return word.includes('/') ? isInside(word, destination) : word === destination;
}

function isServed(policy: ModelPolicy, word: string, flow: ModelFlow): boolean {
  const named = policy.services[word];
  if (named !== undefined) return named.some((entry) => isServed(policy, entry, flow));
  if (word === 'any') return true;
  const icmp = isIPv6(flow.destination) ? 58 : 1;
  if (word === 'icmp') return flow.protocol === icmp;
  if (word === 'icmp/echo') return flow.protocol === icmp && flow.isEcho === true;
  const [kind = '', what] = word.split('/');
  if (kind === 'ip') return flow.protocol === Number(what);
  if (flow.protocol !== (kind === 'tcp' ? 6 : 17)) return false;
  if (what === undefined) return true;
  const [low = 0, high = low] = what.split('-').map(Number);
  return (flow.port ?? -1) >= low && (flow.port ?? -1) <= high;
}

function isInside(prefix: string, address: string): boolean {
  const [range, bits] = ipaddr.parseCIDR(prefix);
  const parsed = ipaddr.parse(address);
  return parsed.kind() === range.kind() && parsed.match(range, bits);
}

function client(
  user: string,
  groups: string[],
  host: number,
  hasCertificate: boolean,
  mfaMinutes?: number,
): ModelClient {
  return { user, groups, address4: `10.20.0.${host}`, address6: `fd20::${host}`, hasCertificate, mfaMinutes };
}
