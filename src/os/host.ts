/**
 * Changes to this machine's network, that are taken back whatever happens.
 *
 * Hides `ip`, `nft` and `/proc/sys`, and the journal that makes a change safe: its inverse is written down and synced
 * before it is made, and undoing is idempotent, so that after a crash at any point the next start (or `revert`) brings the
 * host back to what it was. What is there already is not ours and stays. Must not know what the changes are for.
 */

import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { IP_WORD, runCommand } from './command.ts';
import { Journal, type JournalEntry } from './journal.ts';
import { deleteTable, replaceTable, type TableName } from './nft.ts';

export { type HostRoute, RouteBatch } from './route-batch.ts';

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
    }
  /** An address, alone or with its prefix length. */
  | { kind: 'address'; device: string; address: string }
  | { kind: 'route'; prefix: string; device?: string; via?: string; table?: number; metric?: number }
  /** Our own table: it is replaced, and deleted in the end. */
  | { kind: 'nft'; table: TableName; body: string };

/** What brings a change back: what stands in the journal. Devices are known by number, because names are used again. */
type Undo =
  | { op: 'sysctl'; key: string; from: string; to: string; sideEffects: Record<string, string> }
  | { op: 'link'; device: string; index: number; set: string[][] }
  | { op: 'address'; device: string; index: number; address: string }
  | { op: 'route'; device: string | null; index: number; args: string[] }
  | { op: 'nft'; table: TableName };

/** One step of a plan: what has to be written down, then what has to be done. */
interface Step {
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

export interface HostNetworkOptions {
  /** Where inverses are written down. The folder is made; the file is there only while there is something to undo. */
  journalPath: string;
  log: Logger;
}

export class HostNetwork {
  readonly #path: string;
  readonly #log: Logger;
  #journal: Journal | undefined;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(options: HostNetworkOptions) {
    this.#path = options.journalPath;
    this.#log = options.log.child({ component: 'host' });
  }

  /**
   * Takes back what a run that died has left, then stands ready for changes.
   *
   * @throws {VpnError} ERR_ALREADY_RUNNING while another process has changes under this journal; ERR_HOST_APPLY when
   *   something cannot be taken back
   */
  static async open(options: HostNetworkOptions): Promise<HostNetwork> {
    const host = new HostNetwork(options);
    await host.revert();
    return host;
  }

  /**
   * Makes a change.
   *
   * @throws {VpnError} ERR_HOST_APPLY, ERR_PRIVILEGE, ERR_UNSUPPORTED; what has been done stays until `revert`
   */
  apply(change: HostChange): Promise<void> {
    return this.applyAll([change]);
  }

  /** Makes several changes, in order, in fewer steps than one by one. @throws {VpnError} as `apply` */
  applyAll(changes: readonly HostChange[]): Promise<void> {
    return this.#enqueue(() => this.#applyAll(changes));
  }

  /** Takes every change back, newest first. Idempotent; changes may follow. @throws {VpnError} ERR_HOST_APPLY */
  revert(): Promise<void> {
    return this.#enqueue(() => this.#revert());
  }

  #enqueue(action: () => Promise<void>): Promise<void> {
    const result = this.#last.then(action);
    this.#last = result.catch(() => {});
    return result;
  }

  async #applyAll(changes: readonly HostChange[]): Promise<void> {
    this.#journal ??= await this.#openJournal();
    const steps: Step[] = [];
    const links = await listLinks();
    for (const change of changes) steps.push(...(await planChange(change, links)));
    await this.#journal.append(steps.flatMap(({ undo }) => (undo === undefined ? [] : [undo])));
    this.#log.debug('changes written down', { changes: changes.length });
    let lines: string[][] = [];
    const flush = async (): Promise<void> => {
      const batch = lines;
      lines = [];
      if (batch.length === 0) return;
      await runIpBatch(batch);
      this.#log.debug('changed', { commands: batch.map((words) => words.join(' ')) });
    };
    for (const { ip, run } of steps) {
      if (ip !== undefined) lines.push(...ip);
      if (run === undefined) continue;
      await flush();
      await run();
      this.#log.debug('changed');
    }
    await flush();
  }

  async #openJournal(): Promise<Journal> {
    const journal = await Journal.open(this.#path);
    if (journal.foreignEntries > 0) {
      this.#log.warn('changes of an earlier start of this machine, or in another network namespace, are forgotten', {
        journal: this.#path,
        entries: journal.foreignEntries,
      });
    }
    return journal;
  }

  async #revert(): Promise<void> {
    const isLeftover = this.#journal === undefined;
    const journal = this.#journal ?? (await this.#openJournal());
    this.#journal = undefined;
    try {
      const { entries } = journal;
      if (isLeftover && entries.length > 0) {
        this.#log.warn('taking back what a run that died has left', { journal: this.#path, entries: entries.length });
      }
      const failures = await this.#undoAll(journal, entries.toReversed());
      const [first] = failures;
      if (first !== undefined) {
        const rest = failures.length === 1 ? '' : ` (and ${failures.length - 1} more)`;
        throw new VpnError(
          'ERR_HOST_APPLY',
          `cannot take back a change to this host: ${first.message}${rest}; it is tried again at the next start; ` +
            `to give it up, remove ${this.#path}`,
          { cause: first, details: { journal: this.#path, failures: failures.length } },
        );
      }
    } finally {
      await journal.close();
    }
  }

  /** Goes on after a failure: what can be taken back is. */
  async #undoAll(journal: Journal, entries: readonly JournalEntry[]): Promise<VpnError[]> {
    const failures: VpnError[] = [];
    const links = entries.length === 0 ? new Map<string, Link>() : await listLinks();
    let batch: { number: number; undo: Undo; lines: string[][] }[] = [];
    const flush = async (): Promise<void> => {
      const now = batch;
      batch = [];
      const failed = await runIpBatchLeniently(now.flatMap(({ lines }) => lines));
      const undone: number[] = [];
      let line = 0;
      for (const { number, undo, lines } of now) {
        const own = lines.flatMap(() => failed.get(++line) ?? []);
        if (own.length === 0 || (await isGone(undo))) undone.push(number);
        else failures.push(new VpnError('ERR_HOST_APPLY', own.join(' | ')));
      }
      await journal.markUndone(undone);
      if (now.length > 0) this.#log.debug('taken back', { entries: now.length });
    };
    for (const { number, value } of entries) {
      try {
        const undo = parseUndo(value);
        const lines = ipUndo(undo, links);
        if (lines !== undefined) {
          batch.push({ number, undo, lines });
          continue;
        }
        await flush();
        await runUndo(undo);
        await journal.markUndone([number]);
        this.#log.debug('taken back');
      } catch (error) {
        failures.push(toVpnError(error, 'ERR_HOST_APPLY'));
      }
    }
    await flush();
    return failures;
  }
}

interface Link {
  index: number;
  mtu: number;
  isUp: boolean;
  queueLength: number;
  addressGeneration: string | undefined;
  isTun: boolean;
}

async function listLinks(): Promise<Map<string, Link>> {
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
      isTun: kind === 'tun',
    });
  }
  return links;
}

async function planChange(change: HostChange, links: ReadonlyMap<string, Link>): Promise<Step[]> {
  switch (change.kind) {
    case 'sysctl':
      return await planSysctl(change.key, change.value);
    case 'forwarding6':
      return await planForwarding6(links);
    case 'link':
      return planLink(change, linkOf(change.device, links));
    case 'address':
      return await planAddress(change, linkOf(change.device, links));
    case 'route':
      return await planRoute(change, links);
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
  const { prefix, device, via, table, metric } = change;
  const link = device === undefined ? undefined : linkOf(device, links);
  const selector = [
    ...(device === undefined ? [] : ['dev', device]),
    ...(via === undefined ? [] : ['via', via]),
    ...(table === undefined ? [] : ['table', String(table)]),
    ...(metric === undefined ? [] : ['metric', String(metric)]),
  ];
  const args = [prefix, ...selector];
  // Routes of a TUN device are nobody's but ours; elsewhere one that is there already must stay when we go.
  if (link?.isTun !== true) {
    const family = prefix.includes(':') ? '-6' : '-4';
    if ((await countShown([family, 'route', 'show', 'exact', prefix, ...selector])) > 0) return [];
  }
  return [
    { undo: { op: 'route', device: device ?? null, index: link?.index ?? 0, args }, ip: [['route', 'add', ...args]] },
  ];
}

/** Checks what the journal says: root is about to act on it. */
function parseUndo(value: unknown): Undo {
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
  nft: (undo) => isRecord(undo.table) && isWord(undo.table.family) && isWord(undo.table.name),
};

/** Commands for `ip -batch`; none when the device is gone, and what was on it with it. Undefined: not a matter of `ip`. */
function ipUndo(undo: Undo, links: ReadonlyMap<string, Link>): string[][] | undefined {
  if (undo.op === 'nft' || undo.op === 'sysctl') return undefined;
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

async function runUndo(undo: Undo): Promise<void> {
  if (undo.op === 'nft') await deleteTable(undo.table);
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

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function batchText(lines: readonly (readonly string[])[]): string {
  for (const word of lines.flat()) {
    if (!IP_WORD.test(word)) throw new VpnError('ERR_INVARIANT', `${JSON.stringify(word)} is no word of an ip command`);
  }
  return lines.map((words) => `${words.join(' ')}\n`).join('');
}

/** Stops at the first command that fails. */
async function runIpBatch(lines: readonly string[][]): Promise<void> {
  try {
    await runCommand('ip', ['-batch', '-'], batchText(lines));
  } catch (error) {
    const failure = toVpnError(error, 'ERR_HOST_APPLY');
    const line = /Command failed -:(\d+)/.exec(failure.message)?.[1];
    const command = line === undefined ? undefined : lines[Number(line) - 1];
    if (command === undefined) throw failure;
    const words = failure.message.replace(/ \| Command failed.*$/, '').replace(/^ip -batch -: /, '');
    throw new VpnError(failure.code, `ip ${command.join(' ')}: ${words}`, { cause: error, details: failure.details });
  }
}

/** Goes on after commands that fail. Returns what was said of each, by its line, the first being 1. */
async function runIpBatchLeniently(lines: readonly string[][]): Promise<Map<number, string>> {
  const failed = new Map<number, string>();
  const text = batchText(lines);
  if (text === '') return failed;
  try {
    await runCommand('ip', ['-force', '-batch', '-'], text);
  } catch (error) {
    const { code, details } = toVpnError(error, 'ERR_HOST_APPLY');
    if (code === 'ERR_UNSUPPORTED') throw error;
    let words: string[] = [];
    for (const said of String(details.stderr ?? '').split('\n')) {
      const line = /^Command failed -:(\d+)/.exec(said)?.[1];
      if (line === undefined) {
        words.push(said);
      } else {
        failed.set(Number(line), `ip ${lines[Number(line) - 1]?.join(' ')}: ${words.join(' ')}`);
        words = [];
      }
    }
    if (failed.size === 0) throw error;
  }
  return failed;
}

/** Whether what was to be taken back is not there any more. What `ip` says of that differs between kernels. */
async function isGone(undo: Undo): Promise<boolean> {
  const show =
    undo.op === 'address'
      ? ['address', 'show', 'dev', undo.device, 'to', undo.address]
      : undo.op === 'route'
        ? [undo.args[0]?.includes(':') ? '-6' : '-4', 'route', 'show', 'exact', ...undo.args]
        : undefined;
  if (show === undefined) return false;
  // A device or a table that is gone is an error of `ip`, and what was in it is gone too.
  return (await countShown(show)) === 0;
}

/**
 * The networks that this host routes in its main table, by prefix text, with the device; not those over `except`.
 *
 * @throws {VpnError} ERR_HOST_APPLY, ERR_UNSUPPORTED
 */
export async function listRoutes(except: string): Promise<ReadonlyMap<string, string>> {
  const routes = new Map<string, string>();
  for (const [family, hostLength, all] of [
    ['-4', 32, '0.0.0.0/0'],
    ['-6', 128, '::/0'],
  ] as const) {
    const text = await runCommand('ip', ['-j', family, 'route', 'show', 'table', 'main']);
    for (const route of (text.trim() === '' ? [] : JSON.parse(text)) as Record<string, unknown>[]) {
      const { dst, dev } = route;
      if (typeof dst !== 'string' || typeof dev !== 'string' || dev === except) continue;
      routes.set(dst === 'default' ? all : dst.includes('/') ? dst : `${dst}/${hostLength}`, dev);
    }
  }
  return routes;
}

/** How many objects `ip -j` shows; 0 also when it refuses. */
async function countShown(args: readonly string[]): Promise<number> {
  const text = await runCommand('ip', ['-j', ...args]).catch(() => '');
  const shown = (text.trim() === '' ? [] : JSON.parse(text)) as Record<string, unknown>[];
  // For addresses one object is a device: an empty one, or one without addresses, is none.
  return shown.filter((one) => ('dst' in one ? true : Array.isArray(one.addr_info) && one.addr_info.length > 0)).length;
}
