/**
 * Which rules of the policy each client's packets go through, as a part of the gateway's table of packet rules.
 *
 * Hides classes: clients for whom the same rules are in force share one chain, which is made when the first of them comes, and stays
 * a while after the last has gone. Hides marks, too: what a client's rules let through bears a mark of that client's own, and answers pass only with the
 * client's present mark. It gets another one with other rules, so that what the new ones do not allow stops, both ways, and
 * nobody else's connections are disturbed. Text of `nft` commands comes out; who runs them, and when, is not known here. Pure.
 */

import { VpnError } from '../../base/errors.ts';
import { formatIp, type IpAddress } from '../../ip/address.ts';
import type { Lease } from '../../ip/lease-pool.ts';
import {
  classChain,
  type KernelRule,
  type KernelRulesInput,
  kernelRules,
  kernelRulesRemoval,
} from '../../policy/kernel-rules.ts';
import { formatDestination } from '../../policy/policy.ts';
import { formatService } from '../../policy/service.ts';
import type { Access, AdmittedLease } from '../ipc/ports.ts';

export interface AccessTableOptions {
  /** As `nft` writes it: `inet customvpn`. */
  readonly table: string;
  /** The policy's rules, host names already looked up. */
  readonly rules: readonly KernelRule[];
  /** Verdicts and sets of the table around. */
  readonly allow: string;
  readonly deny: string;
  readonly clients: Readonly<Record<4 | 6, string>>;
  /** Who is there already. */
  readonly admitted: Iterable<AdmittedLease>;
  /** 1 to 2^32 - 1; never the same twice. */
  nextMark(): number;
  /** How many classes without clients stay, so that no process is spawned when one of them comes back; default 64. */
  readonly keptClasses?: number;
  /** The table before this one: whose rules are as they were keeps its mark. */
  readonly former?: AccessTable | undefined;
}

/** Commands for `nft`, one transaction; `undo`: they were not carried out. */
export interface AccessChange {
  readonly commands: string;
  undo(): void;
}

interface Class {
  /** In the name of its chain; never another's. */
  readonly number: number;
  /** Addresses in it. */
  members: number;
}

interface Member {
  readonly access: Access;
  readonly address: IpAddress;
  readonly mark: number;
}

const KEPT_CLASSES = 64;
const TYPE = { 4: 'ipv4_addr', 6: 'ipv6_addr' } as const;
const IP = { 4: 'ip', 6: 'ip6' } as const;
const VERSIONS = [4, 6] as const;

/** The rule that sends a client's packet through its class. Who is in none gets no further. */
export const ACCESS_RULES: readonly string[] = VERSIONS.map((version) => `${IP[version]} saddr vmap @access${version}`);

/** Writes the mark of a packet's client on its connection. */
export const MARK_RULES: readonly string[] = VERSIONS.map(
  (version) => `ct mark set ${IP[version]} saddr map @marks${version}`,
);

/** Match what answers a connection that bears the present mark of the client that began it. */
export const ANSWER_MATCHES: readonly string[] = VERSIONS.map(
  (version) => `ct direction reply ct original ${IP[version]} saddr . ct mark @current${version}`,
);

export class AccessTable {
  readonly #options: AccessTableOptions;
  /** By the rules' numbers. */
  readonly #classes = new Map<string, Class>();
  #nextClass = 0;
  /** Keys of those that nobody is in, the longest empty first. */
  readonly #empty = new Set<string>();
  /** Every `user:` and `group:` that some rule of the policy leads to → its sets. */
  readonly #peers = new Map<string, Readonly<Record<4 | 6, string>>>();
  readonly #members = new Map<string, Member>();
  /** Whether a class of the former table and one of this are of the same rules, by both keys. */
  readonly #same = new Map<string, boolean>();

  /** @throws {VpnError} ERR_INVARIANT */
  constructor(options: AccessTableOptions) {
    this.#options = options;
    for (const { to } of options.rules) {
      for (const destination of to) {
        if (destination.kind !== 'user' && destination.kind !== 'group') continue;
        const key = formatDestination(destination);
        const index = this.#peers.size;
        if (!this.#peers.has(key)) this.#peers.set(key, { 4: `peers_${index}_4`, 6: `peers_${index}_6` });
      }
    }
    for (const { lease, access } of options.admitted) this.#put(lease, access, true);
  }

  /** How many classes there are, with those that nobody is in at the moment. */
  get classes(): number {
    return this.#classes.size;
  }

  /** Lines of the table: sets, maps and chains, with everybody who is admitted. */
  lines(): string[] {
    const members = [...this.#members.values()];
    const lines = kernelRules(this.#compiled(this.#classes));
    const inside = new Map<string, string[]>();
    for (const { address, access } of members) {
      for (const sets of this.#setsOf(access)) {
        const set = sets[address.version];
        const list = inside.get(set);
        if (list === undefined) inside.set(set, [formatIp(address)]);
        else list.push(formatIp(address));
      }
    }
    for (const version of VERSIONS) {
      for (const sets of this.#peers.values()) {
        lines.push(`\tset ${sets[version]} { type ${TYPE[version]};${elements(inside.get(sets[version]) ?? [])} }`);
      }
    }
    // A chain has to stand before what leads to it.
    for (const version of VERSIONS) {
      const own = members.filter(({ address }) => address.version === version);
      const type = TYPE[version];
      const jumps = own.map(({ address, access }) => `${formatIp(address)} : goto ${this.#chainOf(access)}`);
      const marks = own.map(({ address, mark }) => `${formatIp(address)} : ${mark}`);
      const current = own.map(({ address, mark }) => `${formatIp(address)} . ${mark}`);
      lines.push(
        `\tmap access${version} { type ${type} : verdict;${elements(jumps)} }`,
        `\tmap marks${version} { type ${type} : mark;${elements(marks)} }`,
        `\tset current${version} { type ${type} . mark;${elements(current)} }`,
      );
    }
    return lines;
  }

  /** Puts clients in their classes, in place of those that they were in. @throws {VpnError} ERR_INVARIANT */
  admit(entries: readonly AdmittedLease[]): AccessChange {
    for (const { access } of entries) this.#check(access);
    const firstNew = this.#nextClass;
    const undo = this.#undoFor(entries.flatMap(({ lease }) => addressesOf(lease)));
    const lost = new Set<string>();
    const commands: string[] = [];
    for (const { lease, access } of entries) {
      for (const address of addressesOf(lease)) {
        for (const peer of this.#members.get(formatIp(address))?.access.peers ?? []) {
          if (!access.peers.includes(peer)) lost.add(peer);
        }
      }
      commands.push(this.#remove(lease));
      this.#put(lease, access, false);
    }
    const added = [...this.#classes].filter(([, { number }]) => number >= firstNew);
    if (added.length > 0) {
      const { table } = this.#options;
      commands.unshift(`table ${table} {\n${kernelRules(this.#compiled(added)).join('\n')}\n}\n`);
    }
    for (const { lease } of entries) for (const address of addressesOf(lease)) commands.push(this.#add(address));
    const touched = new Set(entries.flatMap(({ lease }) => addressesOf(lease).map(formatIp)));
    const marked = this.#leadingTo(lost).filter(({ address }) => !touched.has(formatIp(address)));
    const undoMarks = this.#undoFor(marked.map(({ address }) => address));
    commands.push(...marked.map((member) => this.#remark(member)));
    const removal = this.#removeEmpty();
    return {
      commands: commands.join('') + removal.commands,
      undo: () => {
        removal.undo();
        undoMarks();
        undo();
        for (const [key] of added) {
          this.#classes.delete(key);
          this.#empty.delete(key);
        }
        this.#nextClass = firstNew;
      },
    };
  }

  /** Takes a client out; without commands for one who is in no class. */
  dismiss(lease: Lease): AccessChange {
    const undo = this.#undoFor(addressesOf(lease));
    const commands = this.#remove(lease);
    const removal = this.#removeEmpty();
    return {
      commands: commands + removal.commands,
      undo: () => {
        removal.undo();
        undo();
      },
    };
  }

  /** Forgets the classes that have been empty the longest, but for some. */
  #removeEmpty(): AccessChange {
    const { keptClasses = KEPT_CLASSES } = this.#options;
    const keys = [...this.#empty].slice(0, Math.max(0, this.#empty.size - keptClasses));
    const removed = keys.flatMap((key) => {
      const known = this.#classes.get(key);
      return known === undefined ? [] : [[key, known] as const];
    });
    for (const key of keys) {
      this.#classes.delete(key);
      this.#empty.delete(key);
    }
    return {
      commands: removed.length === 0 ? '' : kernelRulesRemoval(this.#options.table, this.#compiled(removed)),
      undo: () => {
        for (const [key, known] of removed) {
          this.#classes.set(key, known);
          this.#empty.add(key);
        }
      },
    };
  }

  #remove(lease: Lease): string {
    const { table } = this.#options;
    const commands: string[] = [];
    for (const address of addressesOf(lease)) {
      const element = formatIp(address);
      const member = this.#members.get(element);
      if (member === undefined) continue;
      const { version } = address;
      this.#seat(element, undefined);
      commands.push(`delete element ${table} access${version} { ${element} }\n`, this.#unmark(member));
      for (const sets of this.#setsOf(member.access)) {
        commands.push(`delete element ${table} ${sets[version]} { ${element} }\n`);
      }
    }
    return commands.join('');
  }

  #add(address: IpAddress): string {
    const { table } = this.#options;
    const element = formatIp(address);
    const member = this.#members.get(element);
    if (member === undefined) return '';
    const { access } = member;
    const peers = this.#setsOf(access).map((sets) => sets[address.version]);
    return [
      `add element ${table} access${address.version} { ${element} : goto ${this.#chainOf(access)} }\n`,
      this.#mark(member),
      ...peers.map((set) => `add element ${table} ${set} { ${element} }\n`),
    ].join('');
  }

  #mark({ address, mark }: Member): string {
    const { table } = this.#options;
    const element = formatIp(address);
    const { version } = address;
    return `add element ${table} marks${version} { ${element} : ${mark} }\nadd element ${table} current${version} { ${element} . ${mark} }\n`;
  }

  #unmark({ address, mark }: Member): string {
    const { table } = this.#options;
    const element = formatIp(address);
    const { version } = address;
    return `delete element ${table} marks${version} { ${element} }\ndelete element ${table} current${version} { ${element} . ${mark} }\n`;
  }

  #remark(member: Member): string {
    const next = { ...member, mark: this.#options.nextMark() };
    this.#seat(formatIp(member.address), next);
    return this.#unmark(member) + this.#mark(next);
  }

  /** The clients that some rule of theirs leads to one of these. */
  #leadingTo(peers: ReadonlySet<string>): Member[] {
    if (peers.size === 0) return [];
    const leading = new Set<string>();
    for (const key of this.#classes.keys()) {
      const leads = this.#rulesOf(key).some(({ to }) => to.some((one) => peers.has(formatDestination(one))));
      if (leads) leading.add(key);
    }
    return [...this.#members.values()].filter(({ access }) => leading.has(keyOf(access)));
  }

  /** Puts back what is known of these addresses. */
  #undoFor(addresses: readonly IpAddress[]): () => void {
    const before = addresses.map((address) => [formatIp(address), this.#members.get(formatIp(address))] as const);
    return () => {
      for (const [element, member] of before) this.#seat(element, member);
    };
  }

  #put(lease: Lease, access: Access, mayKeep: boolean): void {
    this.#check(access);
    const key = keyOf(access);
    if (!this.#classes.has(key)) {
      this.#classes.set(key, { number: this.#nextClass, members: 0 });
      this.#nextClass += 1;
    }
    for (const address of addressesOf(lease)) {
      const kept = mayKeep ? this.#keptMark(address, access) : undefined;
      this.#seat(formatIp(address), { access, address, mark: kept ?? this.#options.nextMark() });
    }
  }

  /** Whose an address is, and so how many are in each class. @param member undefined: nobody's */
  #seat(element: string, member: Member | undefined): void {
    const former = this.#members.get(element);
    if (member === undefined) this.#members.delete(element);
    else {
      this.#members.set(element, member);
      this.#count(keyOf(member.access), 1);
    }
    if (former !== undefined) this.#count(keyOf(former.access), -1);
  }

  #count(key: string, more: number): void {
    const known = this.#classes.get(key);
    if (known === undefined) return;
    known.members += more;
    if (known.members === 0) this.#empty.add(key);
    else this.#empty.delete(key);
  }

  /** The mark that a client had, when what it may reach is the same; that of others' addresses is not known. */
  #keptMark(address: IpAddress, access: Access): number | undefined {
    const { former } = this.#options;
    if (former === undefined) return undefined;
    const member = former.#members.get(formatIp(address));
    if (member === undefined) return undefined;
    const pair = `${keyOf(member.access)} ${keyOf(access)}`;
    const known = this.#same.get(pair);
    const isSame = known ?? this.#isSame(former.#rulesOf(keyOf(member.access)), this.#rulesOf(keyOf(access)));
    this.#same.set(pair, isSame);
    return isSame ? member.mark : undefined;
  }

  #isSame(before: readonly KernelRule[], after: readonly KernelRule[]): boolean {
    if (before.length !== after.length) return false;
    return after.every((rule, at) => {
      const other = before[at];
      const leadsToPeers = rule.to.some(({ kind }) => kind === 'user' || kind === 'group');
      return other !== undefined && !leadsToPeers && (other === rule || textOf(other) === textOf(rule));
    });
  }

  #check({ rules, peers }: Access): void {
    const count = this.#options.rules.length;
    const isGood = rules.every(
      (index, at) => Number.isInteger(index) && index < count && index > (rules[at - 1] ?? -1),
    );
    if (!isGood) throw new VpnError('ERR_INVARIANT', `expected rules of ${count}, ascending`);
    if (new Set(peers).size !== peers.length) throw new VpnError('ERR_INVARIANT', 'a client is named twice');
  }

  #chainOf(access: Access): string {
    return classChain(this.#classes.get(keyOf(access))?.number ?? 0);
  }

  #setsOf({ peers }: Access): Readonly<Record<4 | 6, string>>[] {
    return peers.flatMap((peer) => this.#peers.get(peer) ?? []);
  }

  #rulesOf(key: string): KernelRule[] {
    const indexes = key === '' ? [] : key.split(',').map(Number);
    return indexes.flatMap((index) => this.#options.rules[index] ?? []);
  }

  #compiled(classes: Iterable<readonly [key: string, of: Class]>): KernelRulesInput {
    const { allow, deny, clients } = this.#options;
    const rules = new Map([...classes].map(([key, { number }]) => [number, this.#rulesOf(key)]));
    return { classes: rules, allow, deny, clients, peers: this.#peers };
  }
}

const KEYS = new WeakMap<readonly number[], string>();

function keyOf({ rules }: Access): string {
  const known = KEYS.get(rules);
  if (known !== undefined) return known;
  const key = rules.join();
  KEYS.set(rules, key);
  return key;
}

function textOf({ action, services, to }: KernelRule): string {
  return `${action} ${services.map(formatService).join()} ${to.map(formatDestination).join()}`;
}

function elements(list: readonly string[]): string {
  return list.length === 0 ? '' : ` elements = { ${list.join(', ')} };`;
}

function addressesOf({ v4, v6 }: Lease): IpAddress[] {
  return [v4, v6].filter((address) => address !== undefined);
}
