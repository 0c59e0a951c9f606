/**
 * A policy as packet rules of the kernel: parts of one `nft` table.
 *
 * Hides how an ordered list of rules becomes a few look-ups in sets. Sessions for which the same rules are in force make a
 * class; each class has a chain. Rules of the same verdict are looked up together, unless one of the other verdict that
 * speaks of the same addresses stands between them, so that a class of a thousand rules costs a packet no more than one of
 * ten, and the kernel few sets. Pure: it makes text from values.
 */

import { createPrefix, formatPrefix, type IpAddress, type Prefix } from '../ip/address.ts';
import { type Destination, formatDestination, type Rule } from './policy.ts';
import { ICMP4, ICMP6, type Service } from './service.ts';

/** What the kernel has to know of a rule: it looks up no host names. */
export interface KernelRule extends Pick<Rule, 'action' | 'services'> {
  readonly to: readonly Exclude<Destination, { kind: 'host' }>[];
}

export interface KernelRulesInput {
  /** The rules of each class, in their order, by its number. */
  readonly classes: ReadonlyMap<number, readonly KernelRule[]>;
  /** What to do with a packet that a rule allows, such as `accept`. */
  readonly allow: string;
  /** What to do with one that a rule denies, or that none allows. */
  readonly deny: string;
  /** The sets that hold the addresses of all clients. */
  readonly clients: Readonly<Record<4 | 6, string>>;
  /** The sets that hold the addresses of a user's or a group's clients: `user:NAME` or `group:NAME` → their names. */
  readonly peers: ReadonlyMap<string, Readonly<Record<4 | 6, string>>>;
}

/** The chain of a class; packets of its sessions go to it. */
export function classChain(index: number): string {
  return `class_${index}`;
}

const VERSIONS = [4, 6] as const;
const EVERYWHERE: Readonly<Record<4 | 6, Prefix>> = {
  4: { address: { version: 4, bytes: new Uint8Array(4) }, length: 0 },
  6: { address: { version: 6, bytes: new Uint8Array(16) }, length: 0 },
};

/** The same rules with the addresses of host names in place of the names. */
export function withAddresses(
  rules: readonly Rule[],
  addressesOf: (host: string) => readonly IpAddress[],
): KernelRule[] {
  return rules.map(({ action, services, to }) => ({
    action,
    services,
    to: to.flatMap((destination) => {
      if (destination.kind !== 'host') return [destination];
      return addressesOf(destination.name).map((address) => {
        return { kind: 'prefix' as const, prefix: { address, length: address.bytes.length * 8 } };
      });
    }),
  }));
}

/** Lines of the table: sets, then chains. */
export function kernelRules(input: KernelRulesInput): string[] {
  const { sets, chains } = written(input);
  return [...sets.values(), ...chains.values()];
}

/** Commands that take the same lines out of a table again, once nothing leads to the classes. */
export function kernelRulesRemoval(table: string, input: KernelRulesInput): string {
  const { sets, chains } = written(input);
  return [
    // One leads to another.
    ...[...chains.keys()].map((chain) => `flush chain ${table} ${chain}\n`),
    ...[...chains.keys()].map((chain) => `delete chain ${table} ${chain}\n`),
    ...[...sets.keys()].map((set) => `delete set ${table} ${set}\n`),
  ].join('');
}

function written(input: KernelRulesInput): Writer {
  const writer = new Writer(input);
  for (const [index, rules] of input.classes) writer.writeClass(index, rules);
  return writer;
}

/** A range of ports, both ends included. */
type Range = readonly [low: number, high: number];

/** What rules of one verdict speak of, in one version. */
interface Reach {
  readonly whole: Prefix[];
  readonly echo: Prefix[];
  /** By protocol. */
  readonly protocols: Map<number, Prefix[]>;
  readonly ports: Map<number, { prefix: Prefix; range: Range }[]>;
}

class Writer {
  /** Their text, by name. */
  readonly sets = new Map<string, string>();
  readonly chains = new Map<string, string>();
  readonly #input: KernelRulesInput;

  constructor(input: KernelRulesInput) {
    this.#input = input;
  }

  writeClass(index: number, rules: readonly KernelRule[]): void {
    const { clients, deny } = this.#input;
    const name = classChain(index);
    const toClients = [`ip daddr @${clients[4]} goto ${name}_clients`, `ip6 daddr @${clients[6]} goto ${name}_clients`];
    const elsewhere = layersOf(rules).flatMap((run, at) =>
      VERSIONS.flatMap((version) => this.#reachRules(run, version, `${name}_${at}`)),
    );
    const among = rules.flatMap((rule) => this.#peerRules(rule));
    this.#chain(name, [...toClients, ...elsewhere, deny]);
    this.#chain(`${name}_clients`, [...among, deny]);
  }

  #chain(name: string, rules: readonly string[]): void {
    this.chains.set(name, [`\tchain ${name} {`, ...rules.map((rule) => `\t\t${rule}`), '\t}'].join('\n'));
  }

  /** A set of `elements`; undefined when there are none. */
  #set(name: string, type: string, elements: readonly string[]): string | undefined {
    if (elements.length === 0) return undefined;
    const merging = type.includes('.') ? '' : ' auto-merge;';
    const held = elements.join(', ');
    this.sets.set(name, `\tset ${name} { type ${type}; flags interval;${merging} elements = { ${held} }; }`);
    return name;
  }

  #reachRules(run: readonly KernelRule[], version: 4 | 6, name: string): string[] {
    const { allow, deny } = this.#input;
    const verdict = run[0]?.action === 'allow' ? allow : deny;
    const reach = this.#reachOf(run, version);
    if (reach.whole.some(({ length }) => length === 0)) return [`meta nfproto ipv${version} ${verdict}`];
    const [ip, address] = version === 4 ? ['ip', 'ipv4_addr'] : ['ip6', 'ipv6_addr'];
    const echo = version === 4 ? 'icmp type echo-request' : 'icmpv6 type echo-request';
    const whole = this.#set(`${name}_whole${version}`, address, reach.whole.map(textOf));
    const echoes = this.#set(`${name}_echo${version}`, address, reach.echo.map(textOf));
    const protocols = this.#set(
      `${name}_protocols${version}`,
      `inet_proto . ${address}`,
      [...reach.protocols].flatMap(([protocol, prefixes]) =>
        outermost(prefixes).map((prefix) => `${protocol} . ${textOf(prefix)}`),
      ),
    );
    const ports = this.#set(
      `${name}_ports${version}`,
      `${address} . inet_proto . inet_service`,
      [...reach.ports].flatMap(([protocol, boxes]) =>
        apart(boxes).map(({ prefix, range }) => `${textOf(prefix)} . ${protocol} . ${formatRange(range)}`),
      ),
    );
    return [
      ...(whole === undefined ? [] : [`${ip} daddr @${whole} ${verdict}`]),
      ...(ports === undefined ? [] : [`${ip} daddr . meta l4proto . th dport @${ports} ${verdict}`]),
      ...(protocols === undefined ? [] : [`meta l4proto . ${ip} daddr @${protocols} ${verdict}`]),
      ...(echoes === undefined ? [] : [`${echo} ${ip} daddr @${echoes} ${verdict}`]),
    ];
  }

  #reachOf(run: readonly KernelRule[], version: 4 | 6): Reach {
    const reach: Reach = { whole: [], echo: [], protocols: new Map(), ports: new Map() };
    for (const { to, services } of run) {
      const prefixes = to.flatMap((destination) => prefixesOf(destination, version));
      for (const service of services) addService(reach, service, version, prefixes);
    }
    return reach;
  }

  #peerRules(rule: KernelRule): string[] {
    const verdict = rule.action === 'allow' ? this.#input.allow : this.#input.deny;
    return rule.to.filter(isPeer).flatMap((destination) => {
      const sets = this.#peerSet(destination);
      if (sets === undefined) return [];
      return VERSIONS.flatMap((version) => {
        const to = `${version === 4 ? 'ip' : 'ip6'} daddr @${sets[version]}`;
        return rule.services.map((service) => `${to}${serviceMatch(service, version)} ${verdict}`);
      });
    });
  }

  #peerSet(destination: Destination): Readonly<Record<4 | 6, string>> | undefined {
    const { clients, peers } = this.#input;
    return destination.kind === 'clients' ? clients : peers.get(formatDestination(destination));
  }
}

function prefixesOf(destination: Destination, version: 4 | 6): Prefix[] {
  if (destination.kind === 'any') return [EVERYWHERE[version]];
  return destination.kind === 'prefix' && destination.prefix.address.version === version ? [destination.prefix] : [];
}

/**
 * The rules that lead elsewhere than to clients, in as few layers as their order allows: a layer is of one verdict, verdicts
 * alternate, and of two rules of different verdicts that have addresses in common the former is in the former layer.
 */
function layersOf(rules: readonly KernelRule[]): KernelRule[][] {
  const leading = rules.filter(({ to }) => !to.every(isPeer));
  const prefixes = leading.map(({ to }) =>
    VERSIONS.flatMap((version) => to.flatMap((destination) => prefixesOf(destination, version))),
  );
  const lengths = [...new Set(prefixes.flat().map(({ length }) => length))].sort((a, b) => a - b);
  const layers: KernelRule[][] = [];
  /** Of each verdict, by prefix: the last layer that has it, and the last that has one within it. */
  const seen = { allow: new Map<string, number>(), deny: new Map<string, number>() };
  const inside = { allow: new Map<string, number>(), deny: new Map<string, number>() };
  for (const [at, rule] of leading.entries()) {
    const { action } = rule;
    const other = action === 'allow' ? 'deny' : 'allow';
    let before = -1;
    const own = (prefixes[at] ?? []).map((prefix) => within(prefix, lengths));
    for (const around of own) {
      before = Math.max(before, inside[other].get(around.at(-1) ?? '') ?? -1);
      for (const key of around) before = Math.max(before, seen[other].get(key) ?? -1);
    }
    let layer = before + 1;
    if (layers[layer] !== undefined && layers[layer]?.[0]?.action !== action) layer += 1;
    const found = layers[layer];
    if (found === undefined) layers.push([rule]);
    else found.push(rule);
    for (const around of own) {
      const key = around.at(-1) ?? '';
      seen[action].set(key, Math.max(layer, seen[action].get(key) ?? -1));
      for (const outer of around) inside[action].set(outer, Math.max(layer, inside[action].get(outer) ?? -1));
    }
  }
  return layers;
}

function isPeer({ kind }: Destination): boolean {
  return kind === 'clients' || kind === 'user' || kind === 'group';
}

function addService(reach: Reach, service: Service, version: 4 | 6, prefixes: readonly Prefix[]): void {
  switch (service.kind) {
    case 'any':
      reach.whole.push(...prefixes);
      break;
    case 'icmp':
      if (service.echo) reach.echo.push(...prefixes);
      else append(reach.protocols, version === 4 ? ICMP4 : ICMP6, prefixes);
      break;
    case 'protocol':
      append(reach.protocols, service.protocol, prefixes);
      break;
    case 'ports': {
      const range: Range = [service.low, service.high];
      append(
        reach.ports,
        service.protocol,
        prefixes.map((prefix) => ({ prefix, range })),
      );
    }
  }
}

function append<T>(map: Map<number, T[]>, key: number, values: readonly T[]): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [...values]);
  else for (const value of values) list.push(value);
}

function serviceMatch(service: Service, version: 4 | 6): string {
  switch (service.kind) {
    case 'any':
      return '';
    case 'icmp':
      if (service.echo) return version === 4 ? ' icmp type echo-request' : ' icmpv6 type echo-request';
      return ` meta l4proto ${version === 4 ? ICMP4 : ICMP6}`;
    case 'protocol':
      return ` meta l4proto ${service.protocol}`;
    case 'ports':
      return ` meta l4proto ${service.protocol} th dport ${formatRange([service.low, service.high])}`;
  }
}

function formatRange([low, high]: Range): string {
  return low === high ? String(low) : `${low}-${high}`;
}

/** The prefixes that no other of them holds; two prefixes are apart, or one is within the other. */
function outermost(prefixes: readonly Prefix[]): Prefix[] {
  const kept = new Map<string, Prefix>();
  const lengths = [...new Set(prefixes.map(({ length }) => length))].sort((a, b) => a - b);
  for (const prefix of prefixes.toSorted((a, b) => a.length - b.length)) {
    if (!within(prefix, lengths).some((key) => kept.has(key))) kept.set(textOf(prefix), prefix);
  }
  return [...kept.values()];
}

/** The same prefixes and ports in boxes of which no two overlap: the kernel takes no others. */
function apart(boxes: readonly { prefix: Prefix; range: Range }[]): { prefix: Prefix; range: Range }[] {
  const byPrefix = new Map<string, { prefix: Prefix; ranges: Range[] }>();
  for (const { prefix, range } of boxes) {
    const key = textOf(prefix);
    const found = byPrefix.get(key);
    if (found === undefined) byPrefix.set(key, { prefix, ranges: [range] });
    else found.ranges.push(range);
  }
  const lengths = [...new Set([...byPrefix.values()].map(({ prefix }) => prefix.length))].sort((a, b) => a - b);
  return [...byPrefix.values()].flatMap(({ prefix, ranges }) => {
    const around = within(prefix, lengths).flatMap((key) => {
      const outer = byPrefix.get(key);
      return outer === undefined || outer.prefix.length === prefix.length ? [] : outer.ranges;
    });
    return without(union(ranges), union(around)).map((range) => ({ prefix, range }));
  });
}

/** Classes share their rules, and ask the same of them again. */
const TEXTS = new WeakMap<Prefix, string[]>();

/** The text of the prefixes of some lengths that hold a prefix, itself included. */
function within(prefix: Prefix, lengths: readonly number[]): string[] {
  return lengths.filter((candidate) => candidate <= prefix.length).map((candidate) => textAt(prefix, candidate));
}

/** The text of the prefix of a length that holds a prefix. */
function textAt(prefix: Prefix, length: number): string {
  const texts = TEXTS.get(prefix) ?? [];
  TEXTS.set(prefix, texts);
  const text = texts[length] ?? formatPrefix(createPrefix(prefix.address, length));
  texts[length] = text;
  return text;
}

function textOf(prefix: Prefix): string {
  return textAt(prefix, prefix.length);
}

function union(ranges: readonly Range[]): Range[] {
  const merged: Range[] = [];
  for (const [low, high] of ranges.toSorted((a, b) => a[0] - b[0])) {
    const last = merged.at(-1);
    if (last === undefined || low > last[1] + 1) merged.push([low, high]);
    else if (high > last[1]) merged[merged.length - 1] = [last[0], high];
  }
  return merged;
}

/** Both in order and without overlaps of their own. */
function without(ranges: readonly Range[], taken: readonly Range[]): Range[] {
  return ranges.flatMap(([low, high]) => {
    const left: Range[] = [];
    let start = low;
    for (const [from, to] of taken) {
      if (to < start || from > high) continue;
      if (from > start) left.push([start, from - 1]);
      start = to + 1;
    }
    if (start <= high) left.push([start, high]);
    return left;
  });
}
