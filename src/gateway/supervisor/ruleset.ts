/**
 * The gateway's packet rules, as text of one `nft` table.
 *
 * Hides every rule of the kernel's that keeps clients apart from each other and from the host (docs/architecture.md).
 * What a client may not do is dropped and counted under a name. Pure: it makes text from values; `os/nft.ts` applies it.
 *
 * The way of a packet from a tunnel: its source must belong to the device it came from (before the kernel tracks its
 * connection); its destination must be one that is ever routed; then, to the host: only echo requests and configured
 * services on the gateway's own address; to elsewhere: every packet in the direction of the connection's first one is
 * judged anew and writes the generation of these rules on the connection, and an answer passes only with that mark.
 * So a rule that is gone stops a running download at its next packet, both ways.
 */

import { VpnError } from '../../base/errors.ts';
import { formatIp, formatPrefix, type IpAddress, type Prefix, prefixContains } from '../../ip/address.ts';
import { ACCESS_RULES, ANSWER_MATCHES, MARK_RULES, SITE_MARK_RULES } from './access-table.ts';

export const GATEWAY_TABLE = { family: 'inet', name: 'customvpn' } as const;

/** A TUN device of a worker. */
export interface RulesetDevice {
  name: string;
  kind: 'super' | 'plain';
  /** The blocks of the pools that its worker leases from; none for a plain device, whose clients are all in `hosts`. */
  blocks: readonly Prefix[];
  /** Addresses that live here and not where their block says. */
  hosts: readonly IpAddress[];
  /** Networks behind clients that live here. */
  networks?: readonly Prefix[];
}

export interface RulesetInput {
  devices: readonly RulesetDevice[];
  pool4?: Prefix;
  pool6?: Prefix;
  gateway4?: IpAddress;
  gateway6?: IpAddress;
  /** Where clients may go; client-to-client is not a matter of this list. */
  allowed: readonly Prefix[];
  clientToClient: boolean;
  /** What clients reach on the gateway's own address. */
  services: readonly { protocol: 'tcp' | 'udp'; port: number }[];
  /** Ports that the gateway listens on: no client may send from them through the masquerade (port shadow). */
  listenPorts: readonly number[];
  /** False: the pool is routed to us, and addresses stay as they are. */
  masquerade4: boolean;
  masquerade6: boolean;
  /** 1 to 2^32 - 1; a different one for every set of rules that differs. */
  generation: number;
  /** Connections that the kernel tracks for one address of the pool, or for all of a network behind a client, at most. */
  connectionsPerAddress: number;
  /** What a policy adds (`access-table`); it says where clients may go, in place of `allowed` and `clientToClient`. */
  access?: readonly string[];
  /** Networks that may be behind clients: packets for one whose client is not there go nowhere else. */
  networks?: readonly Prefix[];
  /** From where outside which of these may be spoken to first. */
  open?: readonly { readonly from: Prefix; readonly to: Prefix }[];
}

/** What a rule of a policy has done with a packet: chains of this table. */
export const POLICY_VERDICTS = { allow: 'goto allowed', deny: 'goto denied' } as const;

/** The group of the kernel's log by which packets that a policy denies can be seen. */
export const DENIED_GROUP = 17_238;

/** Of a packet, for the log: its headers. */
const LOGGED_BYTES = 128;

/** Named counters of the table; each drop has one. */
export const RULESET_COUNTERS = [
  'accepted',
  'replies',
  'drop_source',
  'drop_destination_class',
  'drop_pool_outside',
  'drop_input',
  'drop_unsolicited',
  'drop_stale',
  'drop_invalid',
  'drop_port_shadow',
  'drop_connections',
  'drop_client_to_client',
  'drop_destination',
  'drop_policy',
  'drop_site_away',
  'drop_redirect',
] as const;

export type RulesetCounter = (typeof RULESET_COUNTERS)[number];

/** Never the destination of a client's packet: this network, loopback, link-local, multicast, broadcast, v4-mapped. */
const NEVER4 = '0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3';
const NEVER6 = '::/127, ::ffff:0:0/96, fe80::/10, ff00::/8';

/** How many addresses, or networks behind clients, the kernel counts connections of. */
const COUNTED_ADDRESSES = 65_536;

/**
 * The body of table `inet customvpn`, for `replaceTable`.
 *
 * @throws {VpnError} ERR_INVARIANT on values that no rule can be made of
 */
export function gatewayRuleset(input: RulesetInput): string {
  check(input);
  const chains = [
    ingressChain(input),
    ...input.devices.map(sourceChain(input)),
    destinationChain(),
    inputChain(input),
    forwardChain(input),
    outputChain(),
    postroutingChain(input),
  ];
  return [...counters(), ...sets(input), ...chains].join('\n');
}

/**
 * Commands about an address that lives elsewhere than its block says: `here`, it lives at this device of the table; `away`,
 * it lives at another one; `back`, it lives where its block says. For `runNft`; idempotent.
 */
export function moveHost(deviceIndex: number, address: IpAddress, where: 'here' | 'away' | 'back'): string {
  const table = `${GATEWAY_TABLE.family} ${GATEWAY_TABLE.name}`;
  const element = `{ ${formatIp(address)} }`;
  const names = [hostSet(deviceIndex, address.version), ...(where === 'away' ? [] : [movedSet(address.version)])];
  // Deleting what is not there fails; adding what is there does not.
  const add = names.map((name) => `add element ${table} ${name} ${element}\n`);
  const remove = names.map((name) => `delete element ${table} ${name} ${element}\n`);
  return [...add, ...(where === 'here' ? [] : remove)].join('');
}

/** Commands about a network behind a client that lives at a device of the table, or does so no more. Idempotent, as `moveHost`. */
export function moveNetwork(deviceIndex: number, network: Prefix, where: 'here' | 'away'): string {
  const table = `${GATEWAY_TABLE.family} ${GATEWAY_TABLE.name}`;
  const element = `${networkSet(deviceIndex, network.address.version)} { ${formatPrefix(network)} }\n`;
  const add = `add element ${table} ${element}`;
  return where === 'here' ? add : `${add}delete element ${table} ${element}`;
}

function check(input: RulesetInput): void {
  const { generation } = input;
  if (!Number.isInteger(generation) || generation < 1 || generation > 0xffff_ffff) {
    throw new VpnError('ERR_INVARIANT', `${generation} is no generation of rules`);
  }
  const names = input.devices.map((device) => device.name);
  if (names.length === 0 || new Set(names).size !== names.length) {
    throw new VpnError('ERR_INVARIANT', 'rules need devices of different names');
  }
  for (const name of names) {
    if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$/.test(name)) {
      throw new VpnError('ERR_INVARIANT', `"${name}" is no device name`);
    }
  }
  for (const [pool, gateway, version] of [
    [input.pool4, input.gateway4, 4],
    [input.pool6, input.gateway6, 6],
  ] as const) {
    const fits = pool === undefined ? gateway === undefined : gateway !== undefined && prefixContains(pool, gateway);
    if (!fits || (pool !== undefined && pool.address.version !== version)) {
      throw new VpnError('ERR_INVARIANT', `the IPv${version} pool and the gateway's address in it do not fit`);
    }
  }
}

function counters(): string[] {
  return RULESET_COUNTERS.map((name) => `\tcounter ${name} { }`);
}

const hostSet = (device: number, version: 4 | 6): string => `hosts${version}_${device}`;
const blockSet = (device: number, version: 4 | 6): string => `blocks${version}_${device}`;
const networkSet = (device: number, version: 4 | 6): string => `networks${version}_${device}`;
const movedSet = (version: 4 | 6): string => `moved${version}`;

function sets(input: RulesetInput): string[] {
  const hosts = input.devices.flatMap((device) => device.hosts);
  const counted = [`size ${COUNTED_ADDRESSES}`, 'flags dynamic'];
  const names = input.devices.map((device) => `"${device.name}"`);
  const lines = [setOf('tunnels', 'ifname', [], names), setOf('connections', 'mark', counted, [])];
  for (const version of [4, 6] as const) {
    const type = version === 4 ? 'ipv4_addr' : 'ipv6_addr';
    const interval = ['flags interval', 'auto-merge'];
    const pool = version === 4 ? input.pool4 : input.pool6;
    lines.push(
      setOf(`pool${version}`, type, interval, pool === undefined ? [] : [formatPrefix(pool)]),
      setOf(`allowed${version}`, type, interval, prefixes(input.allowed, version)),
      setOf(movedSet(version), type, [], addresses(hosts, version)),
      setOf(`connections${version}`, type, counted, []),
      setOf(`networks${version}`, type, interval, prefixes(input.networks ?? [], version)),
      setOf(`open${version}`, `${type} . ${type}`, ['flags interval'], openings(input.open ?? [], version)),
    );
    for (const [index, device] of input.devices.entries()) {
      lines.push(
        setOf(blockSet(index, version), type, interval, prefixes(device.blocks, version)),
        setOf(hostSet(index, version), type, [], addresses(device.hosts, version)),
        setOf(networkSet(index, version), type, ['flags interval'], prefixes(device.networks ?? [], version)),
      );
    }
  }
  return lines;
}

function setOf(name: string, type: string, properties: readonly string[], elements: readonly string[]): string {
  const parts = [`type ${type}`, ...properties];
  if (elements.length > 0) parts.push(`elements = { ${elements.join(', ')} }`);
  return `\tset ${name} { ${parts.join('; ')}; }`;
}

function openings(all: NonNullable<RulesetInput['open']>, version: 4 | 6): string[] {
  return all
    .filter(({ from, to }) => from.address.version === version && to.address.version === version)
    .map(({ from, to }) => `${formatPrefix(from)} . ${formatPrefix(to)}`);
}

function prefixes(all: readonly Prefix[], version: 4 | 6): string[] {
  return all.filter((prefix) => prefix.address.version === version).map(formatPrefix);
}

function addresses(all: readonly IpAddress[], version: 4 | 6): string[] {
  return [...new Set(all.filter((address) => address.version === version).map(formatIp))];
}

function chain(name: string, rules: readonly string[], hook?: string): string {
  const head = hook === undefined ? [] : [`type ${hook}; policy accept;`];
  return [`\tchain ${name} {`, ...[...head, ...rules].map((rule) => `\t\t${rule}`), '\t}'].join('\n');
}

const drop = (counter: RulesetCounter): string => `counter name ${counter} drop`;

/** Before connection tracking, for packets to the host and through it alike. */
function ingressChain(input: RulesetInput): string {
  const jumps = input.devices.map((device, index) => `"${device.name}" : jump source_${index}`).join(', ');
  const rules = [`iifname vmap { ${jumps} }`, 'iifname @tunnels goto destination', 'iifname "lo" accept'];
  // CVE-2019-14899: nobody outside may address a client, or the gateway's inner address. Where a pool is masqueraded, an
  // answer is still addressed to the outside here; where it is routed, the forward chain tells answers from questions.
  if (input.masquerade4) rules.push(`ip daddr @pool4 ${drop('drop_pool_outside')}`);
  if (input.masquerade6) rules.push(`ip6 daddr @pool6 ${drop('drop_pool_outside')}`);
  for (const gateway of gateways(input)) rules.push(`${daddr(gateway)} ${drop('drop_pool_outside')}`);
  return chain('ingress', rules, 'filter hook prerouting priority raw');
}

/** A compromised worker cannot speak for another's clients, nor for the gateway. */
function sourceChain(input: RulesetInput): (device: RulesetDevice, index: number) => string {
  const own = gateways(input).map((gateway) => `${saddr(gateway)} ${drop('drop_source')}`);
  return (_device, index) =>
    chain(`source_${index}`, [
      ...own,
      `ip saddr @${hostSet(index, 4)} return`,
      `ip6 saddr @${hostSet(index, 6)} return`,
      `ip saddr @${movedSet(4)} ${drop('drop_source')}`,
      `ip6 saddr @${movedSet(6)} ${drop('drop_source')}`,
      `ip saddr @${blockSet(index, 4)} return`,
      `ip6 saddr @${blockSet(index, 6)} return`,
      `ip saddr @${networkSet(index, 4)} return`,
      `ip6 saddr @${networkSet(index, 6)} return`,
      drop('drop_source'),
    ]);
}

function destinationChain(): string {
  return chain('destination', [
    `ip daddr { ${NEVER4} } ${drop('drop_destination_class')}`,
    `ip6 daddr { ${NEVER6} } ${drop('drop_destination_class')}`,
  ]);
}

function inputChain(input: RulesetInput): string {
  const rules = ['iifname != @tunnels accept', 'ct direction reply accept', ...connectionCaps(input)];
  for (const gateway of gateways(input)) {
    const to = daddr(gateway);
    if (gateway.version === 4) {
      rules.push(`${to} icmp type echo-request accept`);
      rules.push(
        `${to} ct state related icmp type { destination-unreachable, time-exceeded, parameter-problem } accept`,
      );
    } else {
      rules.push(`${to} icmpv6 type echo-request accept`);
      const errors = 'destination-unreachable, packet-too-big, time-exceeded, parameter-problem';
      rules.push(`${to} ct state related icmpv6 type { ${errors} } accept`);
    }
    for (const { protocol, port } of input.services) rules.push(`${to} ${protocol} dport ${port} accept`);
  }
  return chain('input', [...rules, drop('drop_input')], 'filter hook input priority filter');
}

/** What one client may have the kernel remember, wherever its packets go: a network behind it counts as one address. */
function connectionCaps({ connectionsPerAddress, access }: RulesetInput): string[] {
  const cap = `ct count over ${connectionsPerAddress}`;
  return bySource(
    access !== undefined,
    (set, key) => `add @connections${set} { ${key} ${cap} } ${drop('drop_connections')}`,
  ).map((rule) => `ct state new ${rule}`);
}

/**
 * Rules that keep something for each client. Addresses of the pool are kept by themselves; the mark of the client stands for
 * all those behind it, of which there are more than any set holds.
 */
function bySource(hasSites: boolean, rule: (set: string, key: string) => string): string[] {
  const [four, six] = [rule('4', 'ip saddr'), rule('6', 'ip6 saddr')];
  if (!hasSites) return [four, six];
  return [
    `ip saddr @pool4 ${four}`,
    `ip6 saddr @pool6 ${six}`,
    ...SITE_MARK_RULES,
    `ip saddr @networks4 ${rule('', 'ct mark')}`,
    `ip6 saddr @networks6 ${rule('', 'ct mark')}`,
  ];
}

function forwardChain(input: RulesetInput): string {
  const { generation, access } = input;
  const mark = `ct mark set ${generation}`;
  const away = 'counter name drop_site_away reject with icmpx no-route';
  const rules = [
    `iifname @tunnels oifname != @tunnels ip daddr @networks4 ${away}`,
    `iifname @tunnels oifname != @tunnels ip6 daddr @networks6 ${away}`,
    // What others send through this machine is its own business, but for those who may speak to the site.
    `oifname != @tunnels ip saddr . ip daddr @open4 ${away}`,
    `oifname != @tunnels ip6 saddr . ip6 daddr @open6 ${away}`,
    'iifname @tunnels goto from_tunnel',
    'oifname @tunnels goto to_tunnel',
  ];
  const matches = access === undefined ? [`ct direction reply ct mark ${generation}`] : ANSWER_MATCHES;
  const answers = [
    ...matches.map((match) => `${match} counter name replies accept`),
    `ct direction reply ${drop('drop_stale')}`,
  ];
  const ports = input.listenPorts.join(', ');
  const byRoutes = [
    input.clientToClient
      ? `oifname @tunnels ${mark} counter name accepted accept`
      : `oifname @tunnels ${drop('drop_client_to_client')}`,
    `ip daddr @allowed4 ${mark} counter name accepted accept`,
    `ip6 daddr @allowed6 ${mark} counter name accepted accept`,
    drop('drop_destination'),
  ];
  // An answer from a site to whoever may speak to it first: as long as that may, and no longer.
  const answersOfSites = [
    'ct direction reply ip daddr . ip saddr @open4 counter name replies accept',
    'ct direction reply ip6 daddr . ip6 saddr @open6 counter name replies accept',
  ];
  const toSites = [
    'ct direction original ip saddr . ip daddr @open4 counter name accepted accept',
    'ct direction original ip6 saddr . ip6 daddr @open6 counter name accepted accept',
  ];
  const fromTunnel = [
    ...answersOfSites,
    ...answers,
    `ct state { invalid, untracked } ${drop('drop_invalid')}`,
    ...(ports === ''
      ? []
      : [`oifname != @tunnels meta l4proto { tcp, udp } th sport { ${ports} } ${drop('drop_port_shadow')}`]),
    ...connectionCaps(input),
    ...(access === undefined ? byRoutes : [...ACCESS_RULES, POLICY_VERDICTS.deny]),
  ];
  return [
    ...(access === undefined ? [] : policyParts(access)),
    chain('from_tunnel', fromTunnel),
    chain('to_tunnel', [...toSites, ...answers, drop('drop_unsolicited')]),
    chain('forward', rules, 'filter hook forward priority filter'),
  ].join('\n');
}

/** What a policy denies loses its mark, so that nothing answers it any more; some of it is shown to who reads the log. */
function policyParts(access: readonly string[]): string[] {
  const log = `log group ${DENIED_GROUP} snaplen ${LOGGED_BYTES} queue-threshold 1`;
  const often = 'limit rate 5/second burst 20 packets';
  const properties = [`size ${COUNTED_ADDRESSES}`, 'flags dynamic, timeout', 'timeout 1m'];
  return [
    setOf('denied4', 'ipv4_addr', properties, []),
    setOf('denied6', 'ipv6_addr', properties, []),
    setOf('denied', 'mark', properties, []),
    chain('allowed', [...MARK_RULES, 'counter name accepted accept']),
    chain('denied', [
      ...bySource(true, (set, key) => `update @denied${set} { ${key} ${often} } ${log}`),
      'ct mark set 0',
      drop('drop_policy'),
    ]),
    ...access,
  ];
}

/** Two clients share a device, so the kernel would tell them to talk to each other without it. */
function outputChain(): string {
  return chain(
    'output',
    [
      `oifname @tunnels icmp type redirect ${drop('drop_redirect')}`,
      `oifname @tunnels icmpv6 type nd-redirect ${drop('drop_redirect')}`,
    ],
    'filter hook output priority filter',
  );
}

/** Ports are chosen at random, so that no client can guess or claim the one of another's connection. */
function postroutingChain(input: RulesetInput): string {
  const rules: string[] = [];
  if (input.masquerade4) rules.push('oifname != @tunnels ip saddr @pool4 masquerade fully-random');
  if (input.masquerade6) rules.push('oifname != @tunnels ip6 saddr @pool6 masquerade fully-random');
  return chain('postrouting', rules, 'nat hook postrouting priority srcnat');
}

function gateways(input: RulesetInput): IpAddress[] {
  return [input.gateway4, input.gateway6].filter((gateway) => gateway !== undefined);
}

const daddr = (address: IpAddress): string => `${address.version === 4 ? 'ip' : 'ip6'} daddr ${formatIp(address)}`;
const saddr = (address: IpAddress): string => `${address.version === 4 ? 'ip' : 'ip6'} saddr ${formatIp(address)}`;
