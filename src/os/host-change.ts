/**
 * One change to this machine's network and its inverse, as commands of `ip` and `nft` and writes to `/proc/sys`.
 *
 * Hides how a change is made, what has to be known before it so that it can be taken back, and what an inverse looks like in
 * the journal. What is there already is not ours: such a change has no steps. Must not know the journal.
 */

import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { toVpnError, VpnError } from '../base/errors.ts';
import { IP_WORD, runCommand } from './command.ts';
import { deleteTable, replaceTable, type TableName } from './nft.ts';

/** A change to the host, as data. */
export type HostChange =
  /** `key` below `net`, with dots or, where a device's name has dots, with slashes. */
  | { kind: 'sysctl'; key: string; value: string }
  /** Forwarding of IPv6, without losing the routes that routers advertise to this host. */
  | { kind: 'forwarding6' }
  | {
      kind: 'link';
      device: string;
      up?: boolean;
      mtu?: number;
      queueLength?: number;
      /** `none`: no link-local address of its own. */
      addressGeneration?: 'none' | 'eui64';
      /** As `02:c5:0a:58:00:02`; of a device that is down. */
      hardwareAddress?: string;
    }
  /** A bridge of our own, down, without addresses; known again by its MAC address, which nobody else has. */
  | { kind: 'bridge'; device: string; mac: string; mtu: number }
  /** A device becomes a port of a bridge; `isolated`: the kernel carries nothing to other isolated ports. */
  | { kind: 'port'; device: string; bridge: string; isolated: boolean }
  /** An address, alone or with its prefix length. */
  | { kind: 'address'; device: string; address: string }
  | {
      kind: 'route';
      /** Default: an ordinary one. `throw`: the lookup goes on with the next rule. */
      type?: 'throw' | 'unreachable';
      prefix: string;
      device?: string;
      via?: string;
      /** `global`, of IPv4: the kernel finds no next hop of another route by it. Default: by what it leads to. */
      scope?: 'global';
      /** The address that the host speaks from on this way, one of its own. Default: one of the device's. */
      source?: string;
      table?: number;
      metric?: number;
    }
  | RoutingRule
  /** Our own table: it is replaced, and deleted in the end. */
  | { kind: 'nft'; table: TableName; body: string };

/** Which packets are looked up in which table; the lower the priority's number, the earlier. */
export interface RoutingRule {
  kind: 'rule';
  family: 4 | 6;
  priority: number;
  table: number | 'main';
  /** All packets but those with this firewall mark. */
  notMark?: number;
  /** Packets to this prefix only. */
  to?: string;
  /** Packets of this protocol and these ports only. */
  ports?: { protocol: 'udp' | 'tcp'; source: number; destination: number };
  /** Routes of this prefix length, or shorter, do not count. */
  suppressLength?: number;
}

/** What brings a change back: what stands in the journal. Devices are known by number, because names are used again. */
export type Undo =
  | { op: 'sysctl'; key: string; from: string; to: string; sideEffects: Record<string, string> }
  | { op: 'link'; device: string; index: number; set: string[][] }
  | { op: 'address'; device: string; index: number; address: string }
  | { op: 'route'; device: string | null; index: number; args: string[] }
  | { op: 'rule'; family: 4 | 6; args: string[] }
  | { op: 'bridge'; device: string; mac: string }
  | { op: 'nft'; table: TableName };

/** One step of a plan: what has to be written down, then what has to be done. */
export interface Step {
  undo: Undo | undefined;
  /** Lines for one run of `ip -batch`. */
  ip?: string[][];
  run?: () => Promise<void>;
}

const SYSCTL_ROOT = '/proc/sys';
/** What the kernel also changes when a setting is written: it is read before and put back after. */
const SIDE_EFFECTS: Readonly<Record<string, readonly string[]>> = {
  'net/ipv4/ip_forward': ['net/ipv4/conf/*/forwarding', 'net/ipv4/conf/all/accept_redirects'],
  'net/ipv6/conf/all/forwarding': ['net/ipv6/conf/*/forwarding'],
};

const SYSCTL_KEY = /^net(\/[A-Za-z0-9_][A-Za-z0-9_.@:-]*)+$/;
export interface Link {
  index: number;
  mtu: number;
  isUp: boolean;
  queueLength: number;
  addressGeneration: string | undefined;
  hardwareAddress: string;
  /** As `ip` names it: `tun`, `bridge`, `veth`; undefined for a piece of hardware. */
  kind: string | undefined;
  isTun: boolean;
}

export async function listLinks(): Promise<Map<string, Link>> {
  const links = new Map<string, Link>();
  for (const link of JSON.parse(await runCommand('ip', ['-j', '-d', 'link', 'show'])) as Record<string, unknown>[]) {
    const kind = isRecord(link.linkinfo) ? link.linkinfo.info_kind : undefined;
    const generation = link.inet6_addr_gen_mode;
    links.set(String(link.ifname), {
      index: Number(link.ifindex),
      mtu: Number(link.mtu),
      isUp: Array.isArray(link.flags) && link.flags.includes('UP'),
      queueLength: Number(link.txqlen ?? 0),
      addressGeneration: typeof generation === 'string' ? generation : undefined,
      hardwareAddress: String(link.address ?? ''),
      kind: typeof kind === 'string' ? kind : undefined,
      isTun: kind === 'tun',
    });
  }
  return links;
}

/** A device as it is, if there is one of the name. */
export async function readLink(device: string): Promise<Link | undefined> {
  return (await listLinks()).get(device);
}

export async function planChange(change: HostChange, links: ReadonlyMap<string, Link>): Promise<Step[]> {
  switch (change.kind) {
    case 'sysctl':
      return await planSysctl(change.key, change.value);
    case 'forwarding6':
      return await planForwarding6(links);
    case 'link':
      return planLink(change, linkOf(change.device, links));
    case 'bridge': {
      const { device, mac, mtu } = change;
      const words = ['link', 'add', 'name', device, 'address', mac, 'mtu', String(mtu), 'type', 'bridge'];
      return [{ undo: { op: 'bridge', device, mac }, ip: [[...words, 'mcast_snooping', '0']] }];
    }
    case 'port': {
      const { device, bridge, isolated } = change;
      const { index } = linkOf(device, links);
      const flags = ['isolated', isolated ? 'on' : 'off', 'guard', 'on', 'root_block', 'on'];
      return [
        {
          undo: { op: 'link', device, index, set: [['nomaster']] },
          ip: [
            ['link', 'set', 'dev', device, 'master', bridge],
            ['link', 'set', 'dev', device, 'type', 'bridge_slave', ...flags],
          ],
        },
      ];
    }
    case 'address':
      return await planAddress(change, linkOf(change.device, links));
    case 'route':
      return await planRoute(change, links);
    case 'rule': {
      const { family } = change;
      const args = ruleWords(change);
      const undo: Undo = { op: 'rule', family, args };
      // A batch of `ip` speaks of IPv4 where no address says otherwise.
      return [
        family === 4 ? { undo, ip: [['rule', 'add', ...args]] } : { undo, run: () => changeRule(6, 'add', args) },
      ];
    }
    case 'nft': {
      const { table, body } = change;
      return [{ undo: { op: 'nft', table }, run: () => replaceTable(table, body) }];
    }
  }
}

function linkOf(device: string, links: ReadonlyMap<string, Link>): Link {
  const link = links.get(device);
  if (link !== undefined) return link;
  throw new VpnError('ERR_HOST_APPLY', `there is no network device ${device}; see them with: ip link`, {
    details: { device },
  });
}

function sysctlPath(key: string): string {
  const path = key.includes('/') ? key : key.replaceAll('.', '/');
  if (!SYSCTL_KEY.test(path)) throw new VpnError('ERR_INVARIANT', `${JSON.stringify(key)} is no setting below net`);
  return path;
}

async function readSysctl(path: string): Promise<string | undefined> {
  return await readFile(join(SYSCTL_ROOT, path), 'utf8').then(
    (text) => text.trim(),
    () => undefined,
  );
}

async function writeSysctl(path: string, value: string): Promise<void> {
  try {
    await writeFile(join(SYSCTL_ROOT, path), value);
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException;
    const isDenied = code === 'EACCES' || code === 'EPERM' || code === 'EROFS';
    throw new VpnError(
      isDenied ? 'ERR_PRIVILEGE' : 'ERR_HOST_APPLY',
      `cannot set ${path} to ${value}: ${code}${isDenied ? '; run as root, with /proc/sys writable' : ''}`,
      { cause, details: { key: path, value, errno: code } },
    );
  }
}

async function planSysctl(key: string, value: string): Promise<Step[]> {
  const path = sysctlPath(key);
  const from = await readSysctl(path);
  if (from === undefined) {
    throw new VpnError('ERR_HOST_APPLY', `this kernel has no setting ${path}`, { details: { key: path } });
  }
  if (from === value) return [];
  const sideEffects: Record<string, string> = {};
  for (const pattern of SIDE_EFFECTS[path] ?? []) {
    for (const other of await expandSysctl(pattern)) {
      const current = await readSysctl(other);
      if (current !== undefined && other !== path) sideEffects[other] = current;
    }
  }
  return [{ undo: { op: 'sysctl', key: path, from, to: value, sideEffects }, run: () => writeSysctl(path, value) }];
}

async function expandSysctl(pattern: string): Promise<string[]> {
  const [folder = '', rest] = pattern.split('/*');
  if (rest === undefined) return [pattern];
  const names = await readdir(join(SYSCTL_ROOT, folder)).catch(() => []);
  return names.map((name) => `${folder}/${name}${rest}`);
}

/** A forwarding host ignores router advertisements, and drops the default route it has from one, unless told otherwise first. */
async function planForwarding6(links: ReadonlyMap<string, Link>): Promise<Step[]> {
  const forwarding = 'net/ipv6/conf/all/forwarding';
  if ((await readSysctl(forwarding)) === '1') return [];
  const steps: Step[] = [];
  for (const [device, link] of links) {
    const key = `net/ipv6/conf/${device}/accept_ra`;
    if (device === 'lo' || link.isTun || (await readSysctl(key)) !== '1') continue;
    steps.push(...(await planSysctl(key, '2')));
  }
  return [...steps, ...(await planSysctl(forwarding, '1'))];
}

function planLink(change: Extract<HostChange, { kind: 'link' }>, link: Link): Step[] {
  const { device } = change;
  const forward: string[][] = [];
  const back: string[][] = [];
  const set = (words: string[], oldWords: string[]): void => {
    forward.push(['link', 'set', 'dev', device, ...words]);
    back.unshift(oldWords);
  };
  if (change.mtu !== undefined && change.mtu !== link.mtu) {
    set(['mtu', String(change.mtu)], ['mtu', String(link.mtu)]);
  }
  if (change.queueLength !== undefined && change.queueLength !== link.queueLength) {
    set(['txqueuelen', String(change.queueLength)], ['txqueuelen', String(link.queueLength)]);
  }
  const { hardwareAddress } = change;
  if (hardwareAddress !== undefined && hardwareAddress !== link.hardwareAddress) {
    set(['address', hardwareAddress], ['address', link.hardwareAddress]);
  }
  const generation = change.addressGeneration;
  if (generation !== undefined && link.addressGeneration !== undefined && generation !== link.addressGeneration) {
    set(['addrgenmode', generation], ['addrgenmode', link.addressGeneration]);
  }
  if (change.up !== undefined && change.up !== link.isUp) {
    set([change.up ? 'up' : 'down'], [link.isUp ? 'up' : 'down']);
  }
  if (forward.length === 0) return [];
  return [{ undo: { op: 'link', device, index: link.index, set: back }, ip: forward }];
}

async function planAddress(change: Extract<HostChange, { kind: 'address' }>, link: Link): Promise<Step[]> {
  const { device } = change;
  const isV6 = change.address.includes(':');
  const address = change.address.includes('/') ? change.address : `${change.address}/${isV6 ? 128 : 32}`;
  if (!link.isTun) {
    if ((await countShown(['address', 'show', 'dev', device, 'to', address])) > 0) return [];
  }
  const words = ['address', 'add', address, 'dev', device, ...(isV6 ? ['nodad'] : [])];
  return [{ undo: { op: 'address', device, index: link.index, address }, ip: [words] }];
}

async function planRoute(
  change: Extract<HostChange, { kind: 'route' }>,
  links: ReadonlyMap<string, Link>,
): Promise<Step[]> {
  const { type, prefix, device, via, scope, source, table, metric } = change;
  const link = device === undefined ? undefined : linkOf(device, links);
  const selector = [
    ...(device === undefined ? [] : ['dev', device]),
    ...(via === undefined ? [] : ['via', via]),
    ...(scope === undefined ? [] : ['scope', scope]),
    ...(source === undefined ? [] : ['src', source]),
    ...(table === undefined ? [] : ['table', String(table)]),
    ...(metric === undefined ? [] : ['metric', String(metric)]),
  ];
  const args = [...(type === undefined ? [] : [type]), prefix, ...selector];
  // Routes of a TUN device are nobody's but ours; elsewhere one that is there already must stay when we go.
  if (link?.isTun !== true) {
    if ((await countShown(showRoute(args))) > 0) return [];
  }
  return [
    { undo: { op: 'route', device: device ?? null, index: link?.index ?? 0, args }, ip: [['route', 'add', ...args]] },
  ];
}

function showRoute(args: readonly string[]): string[] {
  const [first = '', ...rest] = args;
  const isTyped = !first.includes('/');
  const family = (isTyped ? rest[0] : first)?.includes(':') ? '-6' : '-4';
  return [family, 'route', 'show', ...(isTyped ? ['type', first, 'exact', ...rest] : ['exact', ...args])];
}

function ruleWords(rule: RoutingRule): string[] {
  const { ports } = rule;
  return [
    ...['priority', String(rule.priority)],
    ...(rule.notMark === undefined ? [] : ['not', 'fwmark', String(rule.notMark)]),
    ...(rule.to === undefined ? [] : ['to', rule.to]),
    ...(ports === undefined
      ? []
      : ['ipproto', ports.protocol, 'sport', String(ports.source), 'dport', String(ports.destination)]),
    ...['lookup', String(rule.table)],
    ...(rule.suppressLength === undefined ? [] : ['suppress_prefixlength', String(rule.suppressLength)]),
  ];
}

async function changeRule(family: 4 | 6, verb: 'add' | 'delete', words: readonly string[]): Promise<void> {
  await runCommand('ip', [`-${family}`, 'rule', verb, ...words]);
}

/** Checks what the journal says: root is about to act on it. */
export function parseUndo(value: unknown): Undo {
  const undo = value as Undo;
  const isFine = isRecord(value) && UNDO_CHECKS[String(value.op)]?.(value);
  if (isFine !== true)
    throw new VpnError('ERR_HOST_APPLY', 'the journal of changes to this host has a line we did not write');
  return undo;
}

const isWord = (value: unknown): value is string => typeof value === 'string' && IP_WORD.test(value);
const isWords = (value: unknown): boolean => Array.isArray(value) && value.every(isWord);
const isPlace = (undo: Record<string, unknown>): boolean => isWord(undo.device) && Number.isInteger(undo.index);
const isKey = (value: unknown): boolean => typeof value === 'string' && SYSCTL_KEY.test(value);

const UNDO_CHECKS: Readonly<Record<string, (undo: Record<string, unknown>) => boolean>> = {
  sysctl: (undo) =>
    isKey(undo.key) &&
    typeof undo.from === 'string' &&
    typeof undo.to === 'string' &&
    isRecord(undo.sideEffects) &&
    Object.entries(undo.sideEffects).every(([key, text]) => isKey(key) && typeof text === 'string'),
  link: (undo) => isPlace(undo) && Array.isArray(undo.set) && undo.set.every(isWords),
  address: (undo) => isPlace(undo) && isWord(undo.address),
  route: (undo) => (undo.device === null || isPlace(undo)) && isWords(undo.args),
  bridge: (undo) => isWord(undo.device) && isWord(undo.mac),
  rule: (undo) => (undo.family === 4 || undo.family === 6) && isWords(undo.args),
  nft: (undo) => isRecord(undo.table) && isWord(undo.table.family) && isWord(undo.table.name),
};

/** Commands for `ip -batch`; none when the device is gone, and what was on it with it. Undefined: not a matter of `ip`. */
export function ipUndo(undo: Undo, links: ReadonlyMap<string, Link>): string[][] | undefined {
  if (undo.op === 'nft' || undo.op === 'sysctl' || undo.op === 'rule' || undo.op === 'bridge') return undefined;
  if (undo.device !== null && links.get(undo.device)?.index !== undo.index) return [];
  switch (undo.op) {
    case 'link':
      return undo.set.map((words) => ['link', 'set', 'dev', undo.device, ...words]);
    case 'address':
      return [['address', 'delete', undo.address, 'dev', undo.device]];
    case 'route':
      return [['route', 'delete', ...undo.args]];
  }
}

export async function runUndo(undo: Undo): Promise<void> {
  if (undo.op === 'nft') await deleteTable(undo.table);
  // One rule at a time: a rule that is gone is what is wanted.
  if (undo.op === 'rule') await changeRule(undo.family, 'delete', undo.args).catch(ignoreGone);
  if (undo.op === 'bridge') {
    const link = await readLink(undo.device);
    const isOurs = link?.kind === 'bridge' && link.hardwareAddress === undo.mac;
    if (isOurs) await runCommand('ip', ['link', 'delete', 'dev', undo.device]);
  }
  if (undo.op !== 'sysctl') return;
  // A side effect of a crash in the middle of undoing: the setting is back, what the kernel changed with it is not yet.
  const current = await readSysctl(undo.key);
  if (current !== undo.to && current !== undo.from) return;
  if (current === undo.to) await writeSysctl(undo.key, undo.from);
  for (const [key, value] of Object.entries(undo.sideEffects)) {
    const now = await readSysctl(key);
    if (now !== undefined && now !== value) await writeSysctl(key, value);
  }
}

function ignoreGone(error: unknown): void {
  if (!/No such file or directory|No such process/.test(toVpnError(error).message)) throw error;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Whether what was to be taken back is not there any more. What `ip` says of that differs between kernels. */
export async function isGone(undo: Undo): Promise<boolean> {
  const show =
    undo.op === 'address'
      ? ['address', 'show', 'dev', undo.device, 'to', undo.address]
      : undo.op === 'route'
        ? showRoute(undo.args)
        : undefined;
  if (show === undefined) return false;
  // A device or a table that is gone is an error of `ip`, and what was in it is gone too.
  return (await countShown(show)) === 0;
}

/** How many objects `ip -j` shows; 0 also when it refuses. */
async function countShown(args: readonly string[]): Promise<number> {
  const text = await runCommand('ip', ['-j', ...args]).catch(() => '');
  const shown = (text.trim() === '' ? [] : JSON.parse(text)) as Record<string, unknown>[];
  // For addresses one object is a device: an empty one, or one without addresses, is none.
  return shown.filter((one) => ('dst' in one ? true : Array.isArray(one.addr_info) && one.addr_info.length > 0)).length;
}
