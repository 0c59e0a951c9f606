/**
 * The client's machine: a TUN device with the addresses, routes and rules that a configuration and the user ask for.
 *
 * Hides how they are set and undone. What the host has is compared with what it should have, so that a reconnect which
 * brings the same configuration changes nothing and inner connections live on, and a new one leaves no gap. Networks that
 * the machine is in and the tunnel wants are found, and a choice is made, before anything is changed.
 */

import { isVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { formatPrefix } from '../ip/address.ts';
import { HostNetwork } from '../os/host.ts';
import { readHostFacts } from '../os/host-facts.ts';
import type { TunDevice } from '../os/tun.ts';
import { openTun } from '../os/tun-linux.ts';
import { type AcceptedConfig, MIN_TUNNEL_MTU, type RefusedItem } from '../protocol/config-check.ts';
import type { ClientHost } from './client.ts';
import {
  DEVICE_NAME,
  findOverlaps,
  type HostPlan,
  type Overlap,
  type OverlapChoice,
  planHost,
  type TunnelWishes,
} from './host-plan.ts';

export interface TunnelHostOptions {
  /** Where changes to the host are written down before they are made. */
  journalPath: string;
  superPackets: boolean;
  wishes: TunnelWishes;
  /** Who gets networks that both have; `auto`: private ones stay local, others go into the tunnel. */
  overlap: 'auto' | OverlapChoice | 'stop';
  /** Asks a person in place of `auto`; ERR_AUTH_NEEDED means that nobody is there. */
  ask?: (overlaps: readonly Overlap[]) => Promise<OverlapChoice | 'stop'>;
  log: Logger;
}

const OUR_DEVICE = /^cvpn\d+$/;

export class TunnelHost implements ClientHost {
  readonly #options: TunnelHostOptions;
  readonly #log: Logger;
  /** By network and device; what was once chosen is not asked again. */
  readonly #choices = new Map<string, OverlapChoice>();
  #host: HostNetwork | undefined;
  #tun: TunDevice | undefined;
  #config: AcceptedConfig | undefined;
  #plan: HostPlan | undefined;
  #told = '';

  constructor(options: TunnelHostOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'host' });
  }

  /** What the host has at present; undefined before the first configuration. */
  get plan(): HostPlan | undefined {
    return this.#plan;
  }

  /** @throws {VpnError} ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_UNSUPPORTED, ERR_HOST_APPLY */
  async open(): Promise<TunDevice> {
    const { journalPath, superPackets, log } = this.#options;
    this.#host = await HostNetwork.open({ journalPath, log });
    this.#tun = openTun({ name: DEVICE_NAME, superPackets, mtu: MIN_TUNNEL_MTU });
    return this.#tun;
  }

  /** @throws {VpnError} ERR_HOST_APPLY; ERR_CONFLICT when an overlap is to stop the client */
  async apply(config: AcceptedConfig): Promise<readonly RefusedItem[]> {
    const host = this.#host;
    const device = this.#tun?.name;
    if (host === undefined || device === undefined) return [];
    const { wishes } = this.#options;
    const facts = await readHostFacts((name) => OUR_DEVICE.test(name));
    await this.#chooseAll(findOverlaps({ config, wishes, facts }));
    const choose = (overlap: Overlap): OverlapChoice => this.#choices.get(keyOf(overlap)) ?? standardChoice(overlap);
    const plan = planHost({ device, config, wishes, facts, choose });
    await host.become(plan.changes);
    this.#config = config;
    this.#plan = plan;
    this.#tell(plan);
    return plan.refused;
  }

  /**
   * The machine may be in other networks than before: judges again what stays local.
   *
   * @throws {VpnError} as `apply`
   */
  async networkChanged(): Promise<readonly RefusedItem[] | undefined> {
    return this.#config === undefined ? undefined : await this.apply(this.#config);
  }

  async close(): Promise<void> {
    try {
      await this.#host?.revert();
    } finally {
      await this.#tun?.close();
      this.#host = undefined;
      this.#tun = undefined;
      this.#config = undefined;
      this.#plan = undefined;
    }
  }

  async #chooseAll(overlaps: readonly Overlap[]): Promise<void> {
    const open = overlaps.filter((overlap) => !this.#choices.has(keyOf(overlap)));
    if (open.length === 0) return;
    const { overlap: policy, ask } = this.#options;
    let choice: TunnelHostOptions['overlap'] = policy;
    if (policy === 'auto' && ask !== undefined) {
      choice = await ask(open).catch((error: unknown) => {
        if (!isVpnError(error, 'ERR_AUTH_NEEDED')) throw error;
        return 'auto' as const;
      });
    }
    if (choice === 'stop') {
      throw new VpnError('ERR_CONFLICT', `${describeOverlaps(open)}; nothing was changed. ${OVERLAP_ADVICE}`);
    }
    for (const overlap of open) {
      this.#choices.set(keyOf(overlap), choice === 'auto' ? standardChoice(overlap) : choice);
    }
  }

  #tell({ mode, notes }: HostPlan): void {
    const text = JSON.stringify([mode, notes]);
    if (text === this.#told) return;
    this.#told = text;
    for (const note of notes) this.#log.warn(note, { mode });
  }
}

const OVERLAP_ADVICE =
  'Choose with --overlap local (they stay as they are), --overlap tunnel (they go into the tunnel), or tunnel.overlap in the profile';

/** Which networks both have, for people. */
export function describeOverlaps(overlaps: readonly Overlap[]): string {
  const list = overlaps.map(
    ({ prefix, device, route }) => `${formatPrefix(prefix)} (on ${device}; the tunnel has ${formatPrefix(route)})`,
  );
  return `this machine is in networks that the tunnel has, too: ${list.join(', ')}`;
}

function standardChoice({ isPrivate }: Overlap): OverlapChoice {
  return isPrivate ? 'local' : 'tunnel';
}

function keyOf({ prefix, device }: Overlap): string {
  return `${formatPrefix(prefix)} ${device}`;
}
