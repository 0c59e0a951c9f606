/**
 * Which name servers this machine asks, for which names.
 *
 * Hides who keeps them: systemd-resolved where it runs, which knows name servers by link and domain, and forgets a link's
 * with the link; else, or where programs do not read what it writes, the resolver's file.
 */

import { existsSync } from 'node:fs';
import { readFile, readlink } from 'node:fs/promises';
import type { Logger } from '../base/log.ts';
import { hasProgram, runCommand } from './command.ts';
import { ResolvConf, serversIn } from './resolv-conf.ts';

const RESOLVED_FOLDER = '/run/systemd/resolve';
const RESOLVED_UPLINKS = `${RESOLVED_FOLDER}/resolv.conf`;
const RESOLVED_STUB = '127.0.0.53';
const HAS_RESOLVED = [
  ...['--system', '--no-pager', 'call', 'org.freedesktop.DBus', '/org/freedesktop/DBus', 'org.freedesktop.DBus'],
  ...['NameHasOwner', 's', 'org.freedesktop.resolve1'],
];

/** Name servers that are reached over a device. */
export interface LinkNames {
  readonly device: string;
  readonly servers: readonly string[];
  /** Searched, and asked at these servers. */
  readonly domains: readonly string[];
  /** Whether all other names are asked there, too. */
  readonly all: boolean;
}

/** Who has been told: `none` while nothing is set. */
export type NameKeeper = 'systemd-resolved' | 'resolv.conf' | 'both' | 'none';

export interface NameServiceOptions {
  /** Where the resolver's file is written down while ours is in place. */
  journalPath: string;
  /** Default `/etc/resolv.conf`. */
  path?: string;
  log: Logger;
}

export class NameService {
  readonly #path: string;
  readonly #file: ResolvConf;
  readonly #log: Logger;
  #names: LinkNames | undefined;
  #keeper: NameKeeper = 'none';

  private constructor(path: string, file: ResolvConf, log: Logger) {
    this.#path = path;
    this.#file = file;
    this.#log = log;
  }

  /** Puts back what a run that died has left. @throws {VpnError} ERR_HOST_APPLY */
  static async open(options: NameServiceOptions): Promise<NameService> {
    const path = options.path ?? '/etc/resolv.conf';
    const file = await ResolvConf.open({ ...options, path });
    return new NameService(path, file, options.log.child({ component: 'dns' }));
  }

  get keeper(): NameKeeper {
    return this.#keeper;
  }

  /** The name servers outside the tunnel. */
  async servers(): Promise<readonly string[]> {
    const listed = await this.#file.servers();
    const found = listed.includes(RESOLVED_STUB)
      ? serversIn(await readFile(RESOLVED_UPLINKS, 'utf8').catch(() => ''))
      : listed;
    return found.filter((server) => this.#names?.servers.includes(server) !== true);
  }

  /**
   * Has these servers asked from now on; what was set before is taken back where it differs.
   *
   * @throws {VpnError} ERR_HOST_APPLY
   */
  async apply(names: LinkNames | undefined): Promise<void> {
    if (names === undefined) {
      await this.revert();
      return;
    }
    const isResolved = await hasResolved();
    const isFile = !isResolved || !(await readsResolved(this.#path));
    if (isResolved && JSON.stringify(names) !== JSON.stringify(this.#names)) await tellResolved(names);
    if (isFile) await this.#file.apply({ servers: names.servers, domains: names.domains, fallback: !names.all });
    else await this.#file.revert();
    const keeper = isResolved ? (isFile ? 'both' : 'systemd-resolved') : 'resolv.conf';
    if (keeper !== this.#keeper) this.#log.info('name servers set', { keeper, all: names.all });
    this.#names = names;
    this.#keeper = keeper;
  }

  /** Takes back what was set. Idempotent. @throws {VpnError} ERR_HOST_APPLY */
  async revert(): Promise<void> {
    const { device } = this.#names ?? {};
    this.#names = undefined;
    const wasResolved = this.#keeper === 'systemd-resolved' || this.#keeper === 'both';
    this.#keeper = 'none';
    try {
      await this.#file.revert();
    } finally {
      // A link that is gone has taken its servers with it.
      if (device !== undefined && wasResolved) await runCommand('resolvectl', ['revert', device]).catch(() => {});
    }
  }
}

async function hasResolved(): Promise<boolean> {
  if (!existsSync(RESOLVED_FOLDER)) return false;
  if (!(await hasProgram('busctl')) || !(await hasProgram('resolvectl'))) return false;
  const answer = await runCommand('busctl', HAS_RESOLVED).catch(() => '');
  return answer.trim() === 'b true';
}

/** Whether programs that read the resolver's file come to systemd-resolved. */
async function readsResolved(path: string): Promise<boolean> {
  const target = await readlink(path).catch(() => '');
  if (/(^|\/)run\/systemd\/resolve\/stub-resolv\.conf$/.test(target)) return true;
  return serversIn(await readFile(path, 'utf8').catch(() => '')).includes(RESOLVED_STUB);
}

async function tellResolved({ device, servers, domains, all }: LinkNames): Promise<void> {
  await runCommand('resolvectl', ['dns', device, ...servers]);
  await runCommand('resolvectl', ['domain', device, ...(all ? ['~.'] : []), ...domains]);
  await runCommand('resolvectl', ['default-route', device, all ? 'yes' : 'no']);
  // The tunnel is what encrypts; names of the local link are none of it.
  for (const protocol of ['dnsovertls', 'llmnr', 'mdns']) await runCommand('resolvectl', [protocol, device, 'no']);
  await runCommand('resolvectl', ['flush-caches']);
}
