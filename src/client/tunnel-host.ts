/**
 * The client's machine: a TUN device with the addresses and routes that a gateway's accepted configuration asks for.
 *
 * Hides how addresses and routes are set and undone. The state asked for is compared with the state at hand, so that a
 * reconnect which brings the same configuration changes nothing and inner connections live on.
 */

import type { Logger } from '../base/log.ts';
import { formatIp, formatPrefix } from '../ip/address.ts';
import { type HostChange, HostNetwork, listRoutes } from '../os/host.ts';
import type { TunDevice } from '../os/tun.ts';
import { openTun } from '../os/tun-linux.ts';
import { type AcceptedConfig, MIN_TUNNEL_MTU, type RefusedItem } from '../protocol/config-check.ts';
import type { ClientHost } from './client.ts';

/** The kernel puts the first free number in place of %d. */
const DEVICE_NAME = 'cvpn%d';
const QUEUE_LENGTH = 1000;

export interface TunnelHostOptions {
  /** Where changes to the host are written down before they are made. */
  journalPath: string;
  superPackets: boolean;
  log: Logger;
}

export class TunnelHost implements ClientHost {
  readonly #options: TunnelHostOptions;
  #host: HostNetwork | undefined;
  #tun: TunDevice | undefined;
  #applied = '';

  constructor(options: TunnelHostOptions) {
    this.#options = options;
  }

  /** @throws {VpnError} ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_UNSUPPORTED, ERR_HOST_APPLY */
  async open(): Promise<TunDevice> {
    const { journalPath, superPackets, log } = this.#options;
    this.#host = await HostNetwork.open({ journalPath, log });
    this.#tun = openTun({ name: DEVICE_NAME, superPackets, mtu: MIN_TUNNEL_MTU });
    return this.#tun;
  }

  /**
   * A network that this machine routes elsewhere already, such as its own, stays where it is.
   *
   * @throws {VpnError} ERR_HOST_APPLY
   */
  async apply(config: AcceptedConfig): Promise<readonly RefusedItem[]> {
    const host = this.#host;
    if (host === undefined || this.#tun === undefined) return [];
    const present = await listRoutes(this.#tun.name);
    const refused: RefusedItem[] = [];
    const routes = config.routes.filter((prefix) => {
      const device = present.get(formatPrefix(prefix));
      if (device === undefined) return true;
      refused.push({
        item: `routes ${formatPrefix(prefix)}`,
        why: `this machine has that network on ${device} already`,
      });
      return false;
    });
    const changes = planOf(this.#tun.name, { ...config, routes });
    const wanted = JSON.stringify(changes);
    if (wanted === this.#applied) return refused;
    await host.revert();
    this.#applied = '';
    await host.applyAll(changes);
    this.#applied = wanted;
    return refused;
  }

  async close(): Promise<void> {
    try {
      await this.#host?.revert();
    } finally {
      await this.#tun?.close();
      this.#host = undefined;
      this.#tun = undefined;
    }
  }
}

/** What has to be changed on a host, in order, for a configuration. */
export function planOf(device: string, config: AcceptedConfig): HostChange[] {
  const { v4, v6 } = config.addresses;
  const addresses = [v4, v6].filter((address) => address !== undefined);
  return [
    { kind: 'link', device, up: true, mtu: config.mtu, addressGeneration: 'none', queueLength: QUEUE_LENGTH },
    ...addresses.map(({ address }): HostChange => ({ kind: 'address', device, address: formatIp(address) })),
    ...addresses.map(({ gateway }): HostChange => ({ kind: 'route', device, prefix: hostPrefix(formatIp(gateway)) })),
    ...config.routes.map((prefix): HostChange => ({ kind: 'route', device, prefix: formatPrefix(prefix) })),
  ];
}

function hostPrefix(address: string): string {
  return `${address}/${address.includes(':') ? 128 : 32}`;
}
