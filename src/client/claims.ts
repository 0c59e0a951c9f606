/**
 * Keeps clients of one machine out of each other's way: no two of them may have the same networks.
 *
 * Hides how they know of each other: each writes down what it has before it looks at the others, so that of two that start
 * together at least one sees the other. A claim counts as long as its client answers. Two networks clash when one holds the
 * other; a default route clashes only with another, because every other route goes before it.
 */

import { existsSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { VpnError } from '../base/errors.ts';
import { writePrivateFile } from '../base/private-file.ts';
import { answers } from '../control/socket.ts';
import {
  createPrefix,
  formatPrefix,
  isBroadRoute,
  type Prefix,
  parsePrefix,
  prefixContains,
  prefixesOverlap,
} from '../ip/address.ts';
import type { TunDevice } from '../os/tun.ts';
import type { AcceptedConfig, RefusedItem } from '../protocol/config-check.ts';
import type { ClientHost } from './machine.ts';
import { profileIds, profilePaths } from './state-folder.ts';

interface Claim {
  /** What people call the profile. */
  readonly name: string;
  readonly networks: readonly string[];
}

/** Two networks that two clients want. */
export interface Clash {
  readonly own: Prefix;
  readonly other: Prefix;
}

/** The first two networks that cannot both be had, one of each list. */
export function findClash(own: readonly Prefix[], others: readonly Prefix[]): Clash | undefined {
  for (const prefix of own) {
    for (const other of others) {
      if (isBroadRoute(prefix) === isBroadRoute(other) && prefixesOverlap(prefix, other)) return { own: prefix, other };
    }
  }
  return undefined;
}

/** The networks that a configuration brings into the tunnel: the routes, and the addresses of both ends. */
export function networksOf({ addresses, routes }: Pick<AcceptedConfig, 'addresses' | 'routes'>): Prefix[] {
  const ends = [addresses.v4, addresses.v6].flatMap((pair) => (pair === undefined ? [] : [pair.address, pair.gateway]));
  return [...routes, ...ends.map((address) => createPrefix(address, address.bytes.length * 8))];
}

/** What a profile has in its tunnel, or not, whatever is pushed. */
export interface OwnNetworks {
  readonly include: readonly string[];
  readonly exclude: readonly string[];
}

/** A client's host that is changed only when no other client has the networks in question. */
export class ClaimingHost implements ClientHost {
  readonly #host: ClientHost;
  readonly #state: string;
  readonly #id: string;
  readonly #name: string;
  readonly #include: readonly Prefix[];
  readonly #exclude: readonly Prefix[];

  /** @param id first half of the profile's; @param name what people call it */
  constructor(host: ClientHost, state: string, id: string, name: string, own: OwnNetworks) {
    this.#host = host;
    this.#state = state;
    this.#id = id;
    this.#name = name;
    this.#include = own.include.map(parsePrefix);
    this.#exclude = own.exclude.map(parsePrefix);
  }

  open(): Promise<TunDevice> {
    return this.#host.open();
  }

  /** @throws {VpnError} ERR_CONFLICT, and what the host throws */
  async apply(config: AcceptedConfig): Promise<readonly RefusedItem[]> {
    const own = [...networksOf(config), ...this.#include].filter(
      (prefix) =>
        !this.#exclude.some((excluded) => excluded.length <= prefix.length && prefixContains(excluded, prefix.address)),
    );
    const { claim } = profilePaths(this.#state, this.#id);
    const text: Claim = { name: this.#name, networks: own.map(formatPrefix) };
    await writePrivateFile(claim, `${JSON.stringify(text)}\n`, { durable: false });
    for (const id of await profileIds(this.#state)) {
      if (id === this.#id) continue;
      const other = await this.#claimOf(id);
      const clash = other === undefined ? undefined : findClash(own, other.networks.map(parsePrefix));
      if (other === undefined || clash === undefined) continue;
      await rm(claim, { force: true });
      throw new VpnError(
        'ERR_CONFLICT',
        `the profile "${other.name}" is connected and has ${formatPrefix(clash.other)}, and this one wants ` +
          `${formatPrefix(clash.own)}; disconnect the other (customvpn client down ${other.name}), or leave networks out with tunnel.exclude in a profile`,
        { details: { own: formatPrefix(clash.own), other: formatPrefix(clash.other) } },
      );
    }
    return await this.#host.apply(config);
  }

  /** What it has does not change with the network that it is in. */
  networkChanged(): Promise<readonly RefusedItem[] | undefined> {
    return this.#host.networkChanged?.() ?? Promise.resolve(undefined);
  }

  async close(): Promise<void> {
    try {
      await this.#host.close();
    } finally {
      await rm(profilePaths(this.#state, this.#id).claim, { force: true });
    }
  }

  async #claimOf(id: string): Promise<Claim | undefined> {
    const { claim, control } = profilePaths(this.#state, id);
    if (!existsSync(claim) || !(await answers(control))) return undefined;
    try {
      return JSON.parse(await readFile(claim, 'utf8')) as Claim;
    } catch {
      // It has been taken back meanwhile.
      return undefined;
    }
  }
}
