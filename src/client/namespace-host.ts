/**
 * A network namespace whose only way out is the tunnel, for the commands of `client exec`.
 *
 * Hides how the tunnel's device gets into it while this process, its sockets and its look-ups stay outside. The machine's own
 * network is not touched, so there is nothing to put back: the kernel removes the namespace with this process, and whoever
 * runs in it longer has no way out any more.
 */

import { writeFileSync } from 'node:fs';
import { chmod, readFile, rm, writeFile } from 'node:fs/promises';
import type { Logger } from '../base/log.ts';
import { formatIp } from '../ip/address.ts';
import { runIpBatch } from '../os/ip-batch.ts';
import { NetworkNamespace } from '../os/network-namespace.ts';
import { formatResolvConf } from '../os/resolv-conf.ts';
import type { TunDevice } from '../os/tun.ts';
import { openTun } from '../os/tun-linux.ts';
import { type AcceptedConfig, MIN_TUNNEL_MTU, type RefusedItem } from '../protocol/config-check.ts';
import { DEVICE_NAME, type TunnelWishes } from './host-plan.ts';
import type { ClientHost } from './machine.ts';
import { type NamespaceItem, type NamespacePlan, planNamespace, stepsBetween } from './namespace-plan.ts';

export interface NamespaceHostOptions {
  /** The file that commands see as `/etc/resolv.conf`. */
  readonly resolvConf: string;
  readonly superPackets: boolean;
  readonly wishes: TunnelWishes;
  readonly log: Logger;
}

/** Who may send pings without rights: a new namespace does not take that over, and `ping` may need it. */
const PING_GROUPS = '/proc/sys/net/ipv4/ping_group_range';

export class NamespaceHost implements ClientHost {
  readonly #options: NamespaceHostOptions;
  readonly #log: Logger;
  #namespace: NetworkNamespace | undefined;
  #tun: TunDevice | undefined;
  #items: readonly NamespaceItem[] = [];
  #plan: NamespacePlan | undefined;

  constructor(options: NamespaceHostOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'namespace' });
  }

  /** What the namespace has at present; undefined before the first configuration. */
  get plan(): NamespacePlan | undefined {
    return this.#plan;
  }

  /** Where commands run; undefined while it is not open. */
  get enclosure(): { path: string; inode: number; resolvConf: string } | undefined {
    const namespace = this.#namespace;
    if (namespace === undefined) return undefined;
    return { path: namespace.path, inode: namespace.inode, resolvConf: this.#options.resolvConf };
  }

  /**
   * Makes the namespace, and the device in it.
   *
   * @throws {VpnError} ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_UNSUPPORTED, ERR_HOST_APPLY
   */
  async open(): Promise<TunDevice> {
    const { superPackets, resolvConf } = this.#options;
    const pingGroups = await readFile(PING_GROUPS, 'utf8').catch(() => undefined);
    // Until there are servers, nobody is asked.
    await this.#writeServers([], []);
    const namespace = NetworkNamespace.create();
    this.#namespace = namespace;
    this.#tun = namespace.inside(() => {
      if (pingGroups !== undefined) writeFileSync(PING_GROUPS, pingGroups);
      return openTun({ name: DEVICE_NAME, superPackets, mtu: MIN_TUNNEL_MTU });
    });
    await namespace.inside(() => runIpBatch([['link', 'set', 'dev', 'lo', 'up']]));
    this.#log.debug('namespace made', { inode: namespace.inode, resolvConf });
    return this.#tun;
  }

  /** @throws {VpnError} ERR_HOST_APPLY */
  async apply(config: AcceptedConfig): Promise<readonly RefusedItem[]> {
    const device = this.#tun?.name;
    if (device === undefined) return [];
    const plan = planNamespace(device, config, this.#options.wishes);
    const steps = stepsBetween(this.#items, plan.items);
    if (steps.length > 0) await this.#namespace?.inside(() => runIpBatch(steps));
    this.#items = plan.items;
    await this.#writeServers(plan.servers.map(formatIp), plan.domains);
    if (this.#plan === undefined) for (const note of plan.notes) this.#log.warn(note);
    this.#plan = plan;
    return [];
  }

  /** Closes the device and lets go of the namespace. Idempotent. */
  async close(): Promise<void> {
    try {
      await this.#tun?.close();
    } finally {
      this.#namespace?.[Symbol.dispose]();
      this.#namespace = undefined;
      this.#tun = undefined;
      this.#plan = undefined;
      this.#items = [];
      await rm(this.#options.resolvConf, { force: true });
    }
  }

  /** In place: commands that run have this very file mounted. */
  async #writeServers(servers: readonly string[], domains: readonly string[]): Promise<void> {
    const { resolvConf } = this.#options;
    await writeFile(resolvConf, formatResolvConf(servers, domains));
    await chmod(resolvConf, 0o644);
  }
}
