/**
 * The addresses of the host names in a policy.
 *
 * Hides that names change, cannot be looked up for a while, or stand for thousands of addresses: an answer is asked for again
 * after a minute, the last good one is kept, and of a long one the first so many count.
 */

import type { Logger } from '../../base/log.ts';
import { formatIp, type IpAddress, parseIp } from '../../ip/address.ts';
import { MAX_HOST_ADDRESSES } from '../ipc/messages.ts';

/** Looked up at once. */
const CONCURRENCY = 16;
const LOOKUP_MS = 5000;

/** Looks up a name; none, or an error: there is nothing. */
export type Resolve = (name: string) => Promise<readonly string[]>;

export class HostNames {
  readonly #resolve: Resolve;
  readonly #log: Logger;
  #found: ReadonlyMap<string, readonly IpAddress[]>;

  /** @param known addresses from before */
  constructor(resolve: Resolve, log: Logger, known: ReadonlyMap<string, readonly IpAddress[]> = new Map()) {
    this.#resolve = resolve;
    this.#log = log;
    this.#found = known;
  }

  /** Of the names that were looked up last. */
  get found(): ReadonlyMap<string, readonly IpAddress[]> {
    return this.#found;
  }

  /** Looks names up, and forgets others. Never rejects. @returns whether any has other addresses than before */
  async look(names: readonly string[]): Promise<boolean> {
    const next = new Map<string, readonly IpAddress[]>();
    const waiting = names.values();
    const work = async (): Promise<void> => {
      for (const name of waiting) next.set(name, await this.#lookUp(name));
    };
    await Promise.all(Array.from({ length: CONCURRENCY }, work));
    const hasChanged = names.some((name) => textOf(next.get(name)) !== textOf(this.#found.get(name)));
    this.#found = new Map(names.map((name) => [name, next.get(name) ?? []]));
    return hasChanged;
  }

  async #lookUp(name: string): Promise<readonly IpAddress[]> {
    const known = this.#found.get(name) ?? [];
    const late = Promise.withResolvers<readonly string[]>();
    const timer = setTimeout(() => late.resolve([]), LOOKUP_MS);
    const answers = await Promise.race([this.#resolve(name).catch(() => []), late.promise]);
    clearTimeout(timer);
    const addresses = readAddresses(answers);
    if (addresses.length === 0) {
      const what = known.length === 0 ? 'no rule for it matches' : 'its last addresses count';
      this.#log.warn(`the name ${name} in the policy cannot be looked up: ${what}`, { name });
      return known;
    }
    if (addresses.length > MAX_HOST_ADDRESSES) {
      const text = `the name ${name} in the policy has ${addresses.length} addresses: the first ${MAX_HOST_ADDRESSES} count`;
      this.#log.warn(text, { name });
    }
    return addresses.slice(0, MAX_HOST_ADDRESSES);
  }
}

/** Sorted, so that another order is no change. */
function readAddresses(texts: readonly string[]): IpAddress[] {
  const found = new Map<string, IpAddress>();
  for (const text of texts) {
    try {
      const address = parseIp(text);
      found.set(formatIp(address), address);
    } catch {
      // With a zone, or mapped: never a destination.
    }
  }
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, address]) => address);
}

function textOf(addresses: readonly IpAddress[] = []): string {
  return addresses.map(formatIp).join();
}
