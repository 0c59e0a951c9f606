/**
 * Which rules of the policy each client's packets go through, as a part of the gateway's table of packet rules.
 *
 * Hides classes: clients for whom the same rules are in force share one chain, which is made when the first of them comes, and stays
 * a while after the last has gone. Hides marks, too: what a client's rules let through bears a mark of that client's own, and answers pass only with the
 * client's present mark. What comes from a network behind a client goes the client's way. It gets another one with other rules, so that what the new ones do not allow stops, both ways, and
 * nobody else's connections are disturbed. Text of `nft` commands comes out; who runs them, and when, is not known here. Pure.
 */

import { VpnError } from '../../base/errors.ts';
import { formatIp, formatPrefix, type IpAddress, type Prefix } from '../../ip/address.ts';
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
  /** Networks that may be behind clients, by their place in the policy. */
  readonly networks?: readonly Prefix[];
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

/** A client's address, or a network behind it. */
interface Member {
  readonly access: Access;
  readonly version: 4 | 6;
  /** As `nft` writes it; networks have a length. */
  readonly element: string;
  readonly mark: number;
}

const KEPT_CLASSES = 64;
/** Where an element is kept: many addresses, which are found at once, apart from the few networks. */
const kindOf = (element: string): '' | 'site_' => (element.includes('/') ? 'site_' : '');
const KINDS = ['', 'site_'] as const;

const TYPE = { 4: 'ipv4_addr', 6: 'ipv6_addr' } as const;
const IP = { 4: 'ip', 6: 'ip6' } as const;
const VERSIONS = [4, 6] as const;

/** The rule that sends a client's packet through its class. Who is in none gets no further. */
export const ACCESS_RULES: readonly string[] = KINDS.flatMap((kind) =>
  VERSIONS.map((version) => `${IP[version]} saddr vmap @${kind}access${version}`),
);

/** Writes the mark of a packet's client on its connection. */
export const MARK_RULES: readonly string[] = KINDS.flatMap((kind) =>
  VERSIONS.map((version) => `ct mark set ${IP[version]} saddr map @${kind}marks${version}`),
);

/** The same of clients that have a network behind them, for packets from there alone. */
export const SITE_MARK_RULES: readonly string[] = VERSIONS.map(
  (version) => `ct mark set ${IP[version]} saddr map @site_marks${version}`,
);

/** Match what answers a connection that bears the present mark of the client that began it. */
export const ANSWER_MATCHES: readonly string[] = KINDS.flatMap((kind) =>
  VERSIONS.map((version) => `ct direction reply ct original ${IP[version]} saddr . ct mark @${kind}current${version}`),
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
  /** By element. */
  readonly #members = new Map<string, Member>();
  /** Networks behind each client, by the text of its lease. */
  readonly #networks = new Map<string, readonly Prefix[]>();
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
    for (const member of members) {
      for (const set of this.#setsOf(member)) {
        const list = inside.get(set);
        if (list === undefined) inside.set(set, [member.element]);
        else list.push(member.element);
      }
    }
    for (const version of VERSIONS) {
      for (const sets of this.#peers.values()) {
        lines.push(`\tset ${sets[version]} { type ${TYPE[version]};${elements(inside.get(sets[version]) ?? [])} }`);
      }
    }
    // A chain has to stand before what leads to it.
    for (const [kind, version] of KINDS.flatMap((one) => VERSIONS.map((other) => [one, other] as const))) {
      const own = members.filter((member) => member.version === version && kindOf(member.element) === kind);
      const type = TYPE[version];
      const flags = kind === '' ? '' : ' flags interval;';
      const jumps = own.map(({ element, access }) => `${element} : goto ${this.#chainOf(access)}`);
      const marks = own.map(({ element, mark }) => `${element} : ${mark}`);
      const current = own.map(({ element, mark }) => `${element} . ${mark}`);
      lines.push(
        `\tmap ${kind}access${version} { type ${type} : verdict;${flags}${elements(jumps)} }`,
        `\tmap ${kind}marks${version} { type ${type} : mark;${flags}${elements(marks)} }`,
        `\tset ${kind}current${version} { type ${type} . mark;${flags}${elements(current)} }`,
      );
    }
    return lines;
  }

  /** Puts clients in their classes, in place of those that they were in. @throws {VpnError} ERR_INVARIANT */
  admit(entries: readonly AdmittedLease[]): AccessChange {
    for (const { access } of entries) this.#check(access);
    const firstNew = this.#nextClass;
    const before = entries.flatMap(({ lease }) => this.#elementsOf(lease));
    const wanted = entries.flatMap(({ access }) => this.#networksOf(access).map(formatPrefix));
    const undo = this.#undoFor([...before, ...wanted]);
    const lost = new Set<string>();
    const commands: string[] = [];
    for (const { lease, access } of entries) {
      for (const element of this.#elementsOf(lease)) {
        for (const peer of this.#members.get(element)?.access.peers ?? []) {
          if (!access.peers.includes(peer)) lost.add(peer);
        }
      }
      commands.push(this.#remove(this.#elementsOf(lease)));
      // Whoever had its networks has them no more.
      commands.push(this.#remove(this.#networksOf(access).map(formatPrefix)));
      this.#put(lease, access, false);
    }
    const added = [...this.#classes].filter(([, { number }]) => number >= firstNew);
    if (added.length > 0) {
      const { table } = this.#options;
      commands.unshift(`table ${table} {\n${kernelRules(this.#compiled(added)).join('\n')}\n}\n`);
    }
    const touched = new Set(entries.flatMap(({ lease }) => this.#elementsOf(lease)));
    for (const element of touched) commands.push(this.#add(element));
    const marked = this.#leadingTo(lost).filter(({ element }) => !touched.has(element));
    const undoMarks = this.#undoFor(marked.map(({ element }) => element));
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
    const own = this.#elementsOf(lease);
    const undo = this.#undoFor(own);
    const commands = this.#remove(own);
    this.#networks.delete(textOfLease(lease));
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

  /** The networks behind each client, where there are any, by the text of its lease. */
  get networks(): ReadonlyMap<string, readonly Prefix[]> {
    return this.#networks;
  }

  #remove(own: readonly string[]): string {
    const { table } = this.#options;
    const commands: string[] = [];
    for (const element of own) {
      const member = this.#members.get(element);
      if (member === undefined) continue;
      this.#seat(element, undefined);
      const map = `${kindOf(element)}access${member.version}`;
      commands.push(`delete element ${table} ${map} { ${element} }\n`, this.#unmark(member));
      for (const set of this.#setsOf(member)) commands.push(`delete element ${table} ${set} { ${element} }\n`);
    }
    return commands.join('');
  }

  #add(element: string): string {
    const { table } = this.#options;
    const member = this.#members.get(element);
    if (member === undefined) return '';
    const map = `${kindOf(element)}access${member.version}`;
    return [
      `add element ${table} ${map} { ${element} : goto ${this.#chainOf(member.access)} }\n`,
      this.#mark(member),
      ...this.#setsOf(member).map((set) => `add element ${table} ${set} { ${element} }\n`),
    ].join('');
  }

  #mark({ element, version, mark }: Member): string {
    const { table } = this.#options;
    const kind = kindOf(element);
    return `add element ${table} ${kind}marks${version} { ${element} : ${mark} }\nadd element ${table} ${kind}current${version} { ${element} . ${mark} }\n`;
  }

  #unmark({ element, version, mark }: Member): string {
    const { table } = this.#options;
    const kind = kindOf(element);
    return `delete element ${table} ${kind}marks${version} { ${element} }\ndelete element ${table} ${kind}current${version} { ${element} . ${mark} }\n`;
  }

  #remark(member: Member): string {
    const next = { ...member, mark: this.#options.nextMark() };
    this.#seat(member.element, next);
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

  /** Puts back what is known of these elements, and which networks are behind which clients. */
  #undoFor(own: readonly string[]): () => void {
    const before = own.map((element) => [element, this.#members.get(element)] as const);
    const networks = [...this.#networks];
    return () => {
      for (const [element, member] of before) this.#seat(element, member);
      this.#networks.clear();
      for (const [text, behind] of networks) this.#networks.set(text, behind);
    };
  }

  /** What of a client stands in the table. */
  #elementsOf(lease: Lease): string[] {
    const behind = this.#networks.get(textOfLease(lease)) ?? [];
    return [...addressesOf(lease).map(formatIp), ...behind.map(formatPrefix)];
  }

  /** @throws {VpnError} ERR_INVARIANT for one that the policy does not have */
  #networksOf({ networks = [] }: Access): Prefix[] {
    return networks.map((number) => {
      const network = this.#options.networks?.[number];
      if (network === undefined) throw new VpnError('ERR_INVARIANT', `the policy has no network ${number}`);
      return network;
    });
  }

  #put(lease: Lease, access: Access, mayKeep: boolean): void {
    this.#check(access);
    const key = keyOf(access);
    if (!this.#classes.has(key)) {
      this.#classes.set(key, { number: this.#nextClass, members: 0 });
      this.#nextClass += 1;
    }
    const behind = this.#networksOf(access);
    const text = textOfLease(lease);
    const taken = new Set(behind.map(formatPrefix));
    for (const [other, networks] of taken.size === 0 ? [] : this.#networks) {
      if (other === text) continue;
      const left = networks.filter((network) => !taken.has(formatPrefix(network)));
      if (left.length === 0) this.#networks.delete(other);
      else if (left.length < networks.length) this.#networks.set(other, left);
    }
    if (behind.length === 0) this.#networks.delete(text);
    else this.#networks.set(text, behind);
    const all = [
      ...addressesOf(lease).map((address) => [formatIp(address), address.version] as const),
      ...behind.map((network) => [formatPrefix(network), network.address.version] as const),
    ];
    for (const [element, version] of all) {
      const kept = mayKeep ? this.#keptMark(element, access) : undefined;
      this.#seat(element, { access, version, element, mark: kept ?? this.#options.nextMark() });
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
  #keptMark(element: string, access: Access): number | undefined {
    const { former } = this.#options;
    if (former === undefined) return undefined;
    const member = former.#members.get(element);
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

  /** What leads to a user or a group leads to no network behind their clients. */
  #setsOf({ element, version, access: { peers } }: Member): string[] {
    if (kindOf(element) !== '') return [];
    return peers.flatMap((peer) => this.#peers.get(peer)?.[version] ?? []);
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

function textOfLease(lease: Lease): string {
  return addressesOf(lease).map(formatIp).join();
}

function addressesOf({ v4, v6 }: Lease): IpAddress[] {
  return [v4, v6].filter((address) => address !== undefined);
}
