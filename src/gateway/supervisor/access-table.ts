/**
 * Which rules of the policy each client's packets go through, as a part of the gateway's table of packet rules.
 *
 * Hides classes: clients for whom the same rules are in force share one chain, which is made when the first of them comes.
 * Text of `nft` commands comes out; who runs them, and when, is not known here. Pure.
 */

import { VpnError } from '../../base/errors.ts';
import { formatIp, type IpAddress } from '../../ip/address.ts';
import type { Lease } from '../../ip/lease-pool.ts';
import { classChain, type KernelRule, kernelRules } from '../../policy/kernel-rules.ts';

/** What the policy says of one client. */
export interface Access {
  /** The rules that are in force, by their place in the policy, ascending. */
  readonly rules: readonly number[];
  /** What the client is when a rule lets others reach it: `user:NAME` and `group:NAME`. */
  readonly peers: readonly string[];
}

export interface AdmittedLease {
  readonly lease: Lease;
  readonly access: Access;
}

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
}

const TYPE = { 4: 'ipv4_addr', 6: 'ipv6_addr' } as const;

/** The rule that sends a client's packet through its class. Who is in none gets no further. */
export const ACCESS_RULES: readonly string[] = ['ip saddr vmap @access4', 'ip6 saddr vmap @access6'];

export class AccessTable {
  readonly #options: AccessTableOptions;
  /** By the rules' numbers. */
  readonly #classes = new Map<string, number>();
  /** Every `user:` and `group:` that some rule of the policy leads to → its sets. */
  readonly #peers = new Map<string, Readonly<Record<4 | 6, string>>>();
  readonly #members = new Map<string, { access: Access; address: IpAddress }>();

  constructor(options: AccessTableOptions) {
    this.#options = options;
    for (const { to } of options.rules) {
      for (const destination of to) {
        if (destination.kind !== 'user' && destination.kind !== 'group') continue;
        const key = `${destination.kind}:${destination.name}`;
        const index = this.#peers.size;
        if (!this.#peers.has(key)) this.#peers.set(key, { 4: `peers_${index}_4`, 6: `peers_${index}_6` });
      }
    }
    for (const { lease, access } of options.admitted) this.#put(lease, access);
  }

  /** How many classes there are, with those that nobody is in any more. */
  get classes(): number {
    return this.#classes.size;
  }

  /** Lines of the table: sets, maps and chains, with everybody who is admitted. */
  lines(): string[] {
    const classes = [...this.#classes.keys()].map((key) => this.#rulesOf(key));
    const members = [...this.#members.values()];
    const lines = this.#compile(classes, 0);
    for (const version of [4, 6] as const) {
      const own = members.filter(({ address }) => address.version === version);
      for (const [peer, sets] of this.#peers) {
        const inside = own.filter(({ access }) => access.peers.includes(peer)).map(({ address }) => formatIp(address));
        lines.push(`\tset ${sets[version]} { type ${TYPE[version]};${elements(inside)} }`);
      }
    }
    // A chain has to stand before what leads to it.
    const maps = ([4, 6] as const).map((version) => {
      const jumps = members
        .filter(({ address }) => address.version === version)
        .map(({ address, access }) => `${formatIp(address)} : goto ${classChain(this.#classOf(access))}`);
      return `\tmap access${version} { type ${TYPE[version]} : verdict;${elements(jumps)} }`;
    });
    return [...lines, ...maps];
  }

  /** Commands that put a client in its class, in place of the one it was in. @throws {VpnError} ERR_INVARIANT */
  admit(lease: Lease, access: Access): string {
    const known = this.#classes.size;
    const removed = this.dismiss(lease);
    this.#put(lease, access);
    const { table } = this.#options;
    const commands: string[] = [];
    if (this.#classes.size > known) {
      const lines = this.#compile([this.#rulesOf(keyOf(access))], known);
      commands.push(`table ${table} {\n${lines.join('\n')}\n}\n`);
    }
    for (const address of addressesOf(lease)) {
      const element = formatIp(address);
      const chain = classChain(this.#classOf(access));
      commands.push(`add element ${table} access${address.version} { ${element} : goto ${chain} }\n`);
      for (const sets of this.#setsOf(access)) {
        commands.push(`add element ${table} ${sets[address.version]} { ${element} }\n`);
      }
    }
    return removed + commands.join('');
  }

  /** Commands that take a client out; empty for one who is in no class. */
  dismiss(lease: Lease): string {
    const { table } = this.#options;
    const commands: string[] = [];
    for (const address of addressesOf(lease)) {
      const element = formatIp(address);
      const member = this.#members.get(element);
      if (member === undefined) continue;
      this.#members.delete(element);
      commands.push(`delete element ${table} access${address.version} { ${element} }\n`);
      for (const sets of this.#setsOf(member.access)) {
        commands.push(`delete element ${table} ${sets[address.version]} { ${element} }\n`);
      }
    }
    return commands.join('');
  }

  #put(lease: Lease, access: Access): void {
    const count = this.#options.rules.length;
    const isGood = access.rules.every(
      (index, at) => Number.isInteger(index) && index < count && index > (access.rules[at - 1] ?? -1),
    );
    if (!isGood) throw new VpnError('ERR_INVARIANT', `expected rules of ${count}, ascending`);
    const key = keyOf(access);
    if (!this.#classes.has(key)) this.#classes.set(key, this.#classes.size);
    for (const address of addressesOf(lease)) this.#members.set(formatIp(address), { access, address });
  }

  #classOf(access: Access): number {
    return this.#classes.get(keyOf(access)) ?? 0;
  }

  #setsOf({ peers }: Access): Readonly<Record<4 | 6, string>>[] {
    return peers.flatMap((peer) => this.#peers.get(peer) ?? []);
  }

  #rulesOf(key: string): KernelRule[] {
    const indexes = key === '' ? [] : key.split(',').map(Number);
    return indexes.flatMap((index) => this.#options.rules[index] ?? []);
  }

  #compile(classes: readonly (readonly KernelRule[])[], first: number): string[] {
    const { allow, deny, clients } = this.#options;
    return kernelRules({ classes, first, allow, deny, clients, peers: this.#peers });
  }
}

function keyOf({ rules }: Access): string {
  return rules.join();
}

function elements(list: readonly string[]): string {
  return list.length === 0 ? '' : ` elements = { ${list.join(', ')} };`;
}

function addressesOf({ v4, v6 }: Lease): IpAddress[] {
  return [v4, v6].filter((address) => address !== undefined);
}
