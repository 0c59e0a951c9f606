/**
 * The addresses of a gateway's names, found outside the tunnel, and kept for when nobody answers.
 *
 * Hides who is asked: the system's resolver while it is as it was; our own, over marked sockets, once the tunnel or the kill
 * switch stand between the two. Addresses that a connection came about with are kept in the profile's state; they are what
 * is dialled when no name server answers, behind a kill switch from boot for example. They are no secret and no proof.
 */

import { lookup as systemLookup } from 'node:dns/promises';
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { toVpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { writePrivateFile } from '../base/private-file.ts';
import { parseIp } from '../ip/address.ts';
import { resolveHost } from '../transport/resolver.ts';
import { OWN_MARK } from './host-plan.ts';

/** A dial has ten seconds for everything. */
const SYSTEM_MS = 4_000;
const MAX_HOSTS = 64;

const savedSchema = z.record(z.string().max(253), z.array(z.union([z.ipv4(), z.ipv6()])).max(64));
type Saved = z.output<typeof savedSchema>;

export interface ServerNamesOptions {
  /** Where addresses are kept. */
  path: string;
  /** Whether the system's resolver is out of reach, or asks in the tunnel. */
  isApart: () => boolean | Promise<boolean>;
  /** The name servers outside the tunnel. */
  servers: () => Promise<readonly string[]>;
  log: Logger;
}

export class ServerNames {
  readonly #options: ServerNamesOptions;
  readonly #log: Logger;
  /** Found in this run, not yet connected to. */
  readonly #found = new Map<string, readonly string[]>();

  constructor(options: ServerNamesOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'names' });
  }

  /**
   * The addresses of a name, as found just now, else those that worked last.
   *
   * @throws {VpnError} ERR_NAME_LOOKUP when there are neither
   */
  async lookup(host: string): Promise<readonly string[]> {
    try {
      const addresses = (await this.#options.isApart())
        ? await resolveHost(host, { servers: this.#options.servers, mark: OWN_MARK })
        : await lookupInSystem(host);
      this.#found.set(host, addresses);
      return addresses;
    } catch (error) {
      const kept = (await this.#read())[host];
      if (kept === undefined || kept.length === 0) throw toVpnError(error, 'ERR_NAME_LOOKUP');
      this.#log.warn('the name of the gateway is not found; its last address is tried', {
        host,
        addresses: kept,
        reason: toVpnError(error).message,
      });
      return kept;
    }
  }

  /** A connection came about: keeps what was found, the address that was reached first. */
  async confirm(reached: string): Promise<void> {
    const saved = await this.#read();
    const next: Saved = { ...saved };
    for (const [host, addresses] of this.#found) {
      next[host] = addresses.includes(reached)
        ? [reached, ...addresses.filter((one) => one !== reached)]
        : [...addresses];
    }
    this.#found.clear();
    if (JSON.stringify(next) === JSON.stringify(saved) || Object.keys(next).length > MAX_HOSTS) return;
    try {
      await writePrivateFile(this.#options.path, `${JSON.stringify(next)}\n`, { when: 'replace' });
    } catch (error) {
      this.#log.warn('the addresses of the gateway could not be kept', { error });
    }
  }

  async #read(): Promise<Saved> {
    try {
      return savedSchema.parse(JSON.parse(await readFile(this.#options.path, 'utf8')));
    } catch {
      return {};
    }
  }
}

async function lookupInSystem(host: string): Promise<readonly string[]> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`no answer within ${SYSTEM_MS} ms`)), SYSTEM_MS);
  try {
    const found = await Promise.race([late.promise, systemLookup(host, { all: true, order: 'verbatim' })]);
    return found.flatMap(({ address }) => (isPlain(address) ? [address] : []));
  } finally {
    clearTimeout(timer);
  }
}

/** Not one with a zone, which would mean nothing elsewhere. */
function isPlain(address: string): boolean {
  try {
    parseIp(address);
    return true;
  } catch {
    return false;
  }
}
