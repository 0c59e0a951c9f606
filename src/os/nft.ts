/**
 * The kernel's packet filter, through the program `nft`.
 *
 * Hides transactions and the JSON of `nft -j`: a table is replaced as a whole or not at all, and put up and taken down
 * idempotently. Also finds what other firewalls on the machine do to our packets: a drop of theirs wins over our accept.
 * Must not know what our rules mean.
 */

import { readFile } from 'node:fs/promises';
import { VpnError } from '../base/errors.ts';
import { hasProgram, runCommand } from './command.ts';

/** A table, as `nft` writes it: `inet customvpn`. */
export interface TableName {
  family: 'inet' | 'ip' | 'ip6' | 'bridge';
  name: string;
}

export interface CounterValue {
  packets: number;
  bytes: number;
}

/**
 * Replaces a table in one transaction: packets see the old rules or the new ones, never none.
 *
 * @param body what stands between the braces of `table … { }`
 * @throws {VpnError} ERR_HOST_APPLY, ERR_PRIVILEGE, ERR_UNSUPPORTED
 */
export async function replaceTable(table: TableName, body: string): Promise<void> {
  await runCommand('nft', ['-f', '-'], replaceTableText(table, body));
}

/** The transaction of `replaceTable`. The first line makes the second one succeed where there is no table yet. */
export function replaceTableText(table: TableName, body: string): string {
  const name = `${table.family} ${table.name}`;
  return `add table ${name}\ndelete table ${name}\ntable ${name} {\n${body}\n}\n`;
}

/** Removes a table; none there is fine. @throws {VpnError} as `replaceTable` */
export async function deleteTable(table: TableName): Promise<void> {
  const name = `${table.family} ${table.name}`;
  await runCommand('nft', ['-f', '-'], `add table ${name}\ndelete table ${name}\n`);
}

/** Runs `nft` commands as one transaction. @throws {VpnError} as `replaceTable` */
export async function runNft(commands: string): Promise<void> {
  await runCommand('nft', ['-f', '-'], commands);
}

/** Whether a table is there. @throws {VpnError} as `replaceTable` */
export async function tableExists(table: TableName): Promise<boolean> {
  const objects = await listJson(['list', 'tables', table.family]);
  return objects.some((object) => object.table?.family === table.family && object.table.name === table.name);
}

/** The named counters of a table. @throws {VpnError} as `replaceTable` */
export async function readCounters(table: TableName): Promise<Map<string, CounterValue>> {
  const counters = new Map<string, CounterValue>();
  for (const { counter } of await listJson(['list', 'counters', 'table', table.family, table.name])) {
    if (counter !== undefined) counters.set(counter.name, { packets: counter.packets, bytes: counter.bytes });
  }
  return counters;
}

interface ChainObject {
  family: string;
  table: string;
  name: string;
  hook?: string;
  policy?: string;
}

interface RuleObject {
  family: string;
  table: string;
  chain: string;
  expr?: unknown[];
}

interface NftObject {
  table?: TableName;
  counter?: CounterValue & { name: string };
  chain?: ChainObject;
  rule?: RuleObject;
}

async function listJson(args: readonly string[]): Promise<NftObject[]> {
  const text = await runCommand('nft', ['-j', ...args]);
  const parsed = JSON.parse(text) as { nftables?: NftObject[] };
  return parsed.nftables ?? [];
}

/** Another firewall's chain that would drop our packets. */
export interface ForeignDrop {
  /** Family and name, as in `ip filter`. */
  table: string;
  chain: string;
  /** `forward`: traffic of clients; `input`: connections to the gateway. */
  hook: 'forward' | 'input';
  /** Who seems to have made it. */
  owner: 'docker' | 'ufw' | 'firewalld' | 'other';
  /** The commands that mend it. */
  advice: string[];
}

export interface ForeignDropQuery {
  /** Our own table. */
  own: TableName;
  /** Our devices. */
  devices: readonly string[];
  /** Ports that the gateway listens on. */
  listen: readonly { protocol: 'tcp' | 'udp'; port: number }[];
}

/**
 * Finds chains of other firewalls on the way of our packets that drop by policy, or reject at their end, and have no rule
 * that lets our devices (or our ports) pass.
 *
 * @throws {VpnError} ERR_HOST_APPLY, ERR_PRIVILEGE, ERR_UNSUPPORTED
 */
export async function findForeignDrops(query: ForeignDropQuery): Promise<ForeignDrop[]> {
  const objects = await listJson(['list', 'ruleset']);
  return [...foreignDrops(objects, query), ...(await legacyDrops(query))];
}

/** As `findForeignDrops`, from the text of `nft -j list ruleset`. */
export function foreignDropsIn(rulesetJson: string, query: ForeignDropQuery): ForeignDrop[] {
  let parsed: { nftables?: NftObject[] };
  try {
    parsed = JSON.parse(rulesetJson) as { nftables?: NftObject[] };
  } catch (cause) {
    throw new VpnError('ERR_HOST_APPLY', 'nft printed something that is not JSON', { cause });
  }
  return foreignDrops(parsed.nftables ?? [], query);
}

function foreignDrops(objects: readonly NftObject[], query: ForeignDropQuery): ForeignDrop[] {
  const found: ForeignDrop[] = [];
  for (const { chain } of objects) {
    if (chain === undefined || (chain.hook !== 'forward' && chain.hook !== 'input')) continue;
    if (chain.family === query.own.family && chain.table === query.own.name) continue;
    if (chain.family !== 'inet' && chain.family !== 'ip' && chain.family !== 'ip6') continue;
    const sameTable = objects.filter((it) => it.rule?.family === chain.family && it.rule.table === chain.table);
    const rules = sameTable.flatMap((it) => (it.rule === undefined ? [] : [it.rule]));
    const isDropping = chain.policy === 'drop' || endsInDrop(rules.filter((rule) => rule.chain === chain.name));
    if (!isDropping) continue;
    const hook = chain.hook;
    const passes =
      hook === 'forward'
        ? query.devices.every((device) => rules.some((rule) => letsDevicePass(rule, device)))
        : query.listen.every(({ port }) => rules.some((rule) => letsPortPass(rule, port)));
    if (passes) continue;
    const chains = objects.flatMap((it) => (it.chain?.table === chain.table ? [it.chain.name] : []));
    const owner = ownerOf(chain.table, chains);
    const advice = adviceFor(owner, hook, query, `${chain.family} ${chain.table} ${chain.name}`);
    found.push({ table: `${chain.family} ${chain.table}`, chain: chain.name, hook, owner, advice });
  }
  return found;
}

/** A last rule without a condition that drops or rejects, as firewalld writes it. */
function endsInDrop(rules: readonly RuleObject[]): boolean {
  const last = rules.at(-1)?.expr ?? [];
  const hasCondition = last.some((part) => isRecord(part) && 'match' in part);
  return !hasCondition && last.some((part) => isRecord(part) && ('drop' in part || 'reject' in part));
}

function letsDevicePass(rule: RuleObject, device: string): boolean {
  if (!accepts(rule)) return false;
  const names = matchedValues(rule, (left) => {
    const key = isRecord(left.meta) ? left.meta.key : undefined;
    return key === 'iifname' || key === 'iif';
  });
  return names.some((name) => matchesDevice(String(name), device));
}

function letsPortPass(rule: RuleObject, port: number): boolean {
  if (!accepts(rule)) return false;
  return matchedValues(rule, (left) => isRecord(left.payload) && left.payload.field === 'dport').includes(port);
}

function accepts(rule: RuleObject): boolean {
  return (rule.expr ?? []).some((part) => isRecord(part) && 'accept' in part);
}

/** The right sides of a rule's equalities whose left side is wanted; sets are flattened. */
function matchedValues(rule: RuleObject, isWanted: (left: Record<string, unknown>) => boolean): unknown[] {
  const values: unknown[] = [];
  for (const part of rule.expr ?? []) {
    const match = isRecord(part) ? part.match : undefined;
    if (!isRecord(match) || match.op !== '==' || !isRecord(match.left) || !isWanted(match.left)) continue;
    const right = match.right;
    if (isRecord(right) && Array.isArray(right.set)) values.push(...right.set);
    else values.push(right);
  }
  return values;
}

function matchesDevice(pattern: string, device: string): boolean {
  return pattern.endsWith('*') ? device.startsWith(pattern.slice(0, -1)) : pattern === device;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

function ownerOf(table: string, chains: readonly string[]): ForeignDrop['owner'] {
  if (table === 'firewalld') return 'firewalld';
  if (chains.some((name) => name.startsWith('ufw'))) return 'ufw';
  if (chains.includes('DOCKER-USER')) return 'docker';
  return 'other';
}

function adviceFor(
  owner: ForeignDrop['owner'],
  hook: 'forward' | 'input',
  query: ForeignDropQuery,
  where: string,
): string[] {
  if (hook === 'input') {
    return query.listen.map(({ protocol, port }) => {
      if (owner === 'ufw') return `ufw allow ${port}/${protocol}`;
      if (owner === 'firewalld')
        return `firewall-cmd --permanent --add-port=${port}/${protocol} && firewall-cmd --reload`;
      return `nft insert rule ${where} ${protocol} dport ${port} accept`;
    });
  }
  return query.devices.flatMap((device) => {
    if (owner === 'ufw') return [`ufw route allow in on ${device}`];
    if (owner === 'firewalld') {
      return [`firewall-cmd --permanent --zone=trusted --add-interface=${device} && firewall-cmd --reload`];
    }
    if (owner === 'docker') {
      return [
        `iptables -I DOCKER-USER -i ${device} -j ACCEPT`,
        `iptables -I DOCKER-USER -o ${device} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
      ];
    }
    return [
      `nft insert rule ${where} iifname ${device} accept`,
      `nft insert rule ${where} oifname ${device} ct state established,related accept`,
    ];
  });
}

/** Rules made by the old `iptables` are not in the ruleset that `nft` lists. */
async function legacyDrops(query: ForeignDropQuery): Promise<ForeignDrop[]> {
  const found: ForeignDrop[] = [];
  for (const [file, program] of [
    ['/proc/net/ip_tables_names', 'iptables-legacy'],
    ['/proc/net/ip6_tables_names', 'ip6tables-legacy'],
  ] as const) {
    const names = await readFile(file, 'utf8').catch(() => '');
    if (!names.split('\n').includes('filter') || !(await hasProgram(program))) continue;
    found.push(...legacyDropsIn(await runCommand(program, ['-S']), program, query));
  }
  return found;
}

/** What `iptables-legacy -S` shows of drops that our packets meet. */
export function legacyDropsIn(rules: string, program: string, query: ForeignDropQuery): ForeignDrop[] {
  const found: ForeignDrop[] = [];
  const lines = rules.split('\n');
  for (const [chain, hook] of [
    ['FORWARD', 'forward'],
    ['INPUT', 'input'],
  ] as const) {
    if (!lines.includes(`-P ${chain} DROP`)) continue;
    const accepted = lines.filter((line) => line.endsWith('-j ACCEPT'));
    const passes =
      hook === 'forward'
        ? query.devices.every((device) => accepted.some((line) => line.includes(` -i ${device} `)))
        : query.listen.every(({ port }) => accepted.some((line) => line.includes(` --dport ${port} `)));
    if (passes) continue;
    const advice =
      hook === 'forward'
        ? query.devices.flatMap((device) => [
            `${program} -I FORWARD -i ${device} -j ACCEPT`,
            `${program} -I FORWARD -o ${device} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
          ])
        : query.listen.map(({ protocol, port }) => `${program} -I INPUT -p ${protocol} --dport ${port} -j ACCEPT`);
    const owner = lines.includes('-N DOCKER-USER')
      ? 'docker'
      : lines.some((it) => it.startsWith('-N ufw'))
        ? 'ufw'
        : 'other';
    found.push({ table: `${program} filter`, chain, hook, owner, advice });
  }
  return found;
}
