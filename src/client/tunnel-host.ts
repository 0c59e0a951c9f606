/**
 * The client's machine: a TUN device with the addresses, routes and rules that a configuration and the user ask for.
 *
 * Hides how they are set and undone. What the host has is compared with what it should have, so that a reconnect which
 * brings the same configuration changes nothing and inner connections live on, and a new one leaves no gap. Networks that
 * the machine is in and the tunnel wants are found, and a choice is made, before anything is changed.
 */

import { isVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { formatIp, formatPrefix, isPrivateNetwork, type Prefix } from '../ip/address.ts';
import { HostNetwork } from '../os/host.ts';
import { type HostFacts, readHostFacts } from '../os/host-facts.ts';
import { type NameKeeper, NameService } from '../os/name-service.ts';
import type { TunDevice } from '../os/tun.ts';
import { openTun } from '../os/tun-linux.ts';
import { type AcceptedConfig, MIN_TUNNEL_MTU, type RefusedItem } from '../protocol/config-check.ts';
import { planEthernet } from './ethernet-plan.ts';
import {
  DEVICE_NAME,
  findOverlaps,
  type HostPlan,
  type Overlap,
  type OverlapChoice,
  planHost,
  type TunnelWishes,
} from './host-plan.ts';
import type { KillSwitch } from './kill-switch.ts';
import type { ClientHost } from './machine.ts';

export interface TunnelHostOptions {
  /** Where changes to the host are written down before they are made. */
  journalPath: string;
  /** Where the name servers that are replaced are written down. */
  namesPath: string;
  killSwitch: KillSwitch;
  /** `on`: closed before anything else; `always`: from boot, so that only `release` opens it. */
  closing: 'off' | 'on' | 'always';
  /** From the start, what a captive portal needs is open for so long. */
  portalMs?: number;
  /** Default: `tun`. */
  device?: 'tun' | 'tap';
  superPackets: boolean;
  wishes: TunnelWishes;
  /** Who gets networks that both have; `auto`: private ones stay local, others go into the tunnel. */
  overlap: 'auto' | OverlapChoice | 'stop';
  /** Asks a person in place of `auto`; ERR_AUTH_NEEDED means that nobody is there. */
  ask?: (overlaps: readonly Overlap[]) => Promise<OverlapChoice | 'stop'>;
  log: Logger;
}

/** How often is looked whether another program has opened the kill switch. */
const GUARD_MS = 5_000;
/** How long the machine is taken for what it was; a change that is noticed ends that. */
const FRESH_MS = 1_000;

const OUR_DEVICE = /^cvpn\d+$/;
const isOurs = (device: string): boolean => OUR_DEVICE.test(device);

export class TunnelHost implements ClientHost {
  readonly #options: TunnelHostOptions;
  readonly #log: Logger;
  /** By network and device; what was once chosen is not asked again. */
  readonly #choices = new Map<string, OverlapChoice>();
  #host: HostNetwork | undefined;
  #names: NameService | undefined;
  #tun: TunDevice | undefined;
  /** Whether the kill switch is to be closed, by wish or because a run before has left it so. */
  #isClosed: boolean;
  /** Whether a start that comes to nothing opens it again. */
  #isOpenedOnFailure = false;
  #hasApplied = false;
  #guard: NodeJS.Timeout | undefined;
  /** Ends a portal's time. */
  #portal: NodeJS.Timeout | undefined;
  #config: AcceptedConfig | undefined;
  #plan: HostPlan | undefined;
  #told = '';
  /** What forwarded before us: IPv4 by device, and IPv6. */
  #forwarded: { readonly devices: Map<string, boolean>; readonly six: boolean } | undefined;
  /** What was seen when the device was made: good for a configuration that comes at once. */
  #early: { readonly facts: Promise<HostFacts | undefined>; readonly at: number } | undefined;
  /** What changes the machine is done one after the other. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: TunnelHostOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'host' });
    this.#isClosed = options.closing !== 'off';
  }

  /** What the host has at present; undefined before the first configuration. */
  get plan(): HostPlan | undefined {
    return this.#plan;
  }

  /** Who has been told of the tunnel's name servers. */
  get nameKeeper(): NameKeeper {
    return this.#names?.keeper ?? 'none';
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** What is in the tunnel, or not, whatever is pushed. */
  get networks(): { include: readonly string[]; exclude: readonly string[] } {
    const { mode, include, exclude } = this.#options.wishes;
    const everything = mode === 'full' ? ['0.0.0.0/0', '::/0'] : [];
    return { include: [...include.map(formatPrefix), ...everything], exclude: exclude.map(formatPrefix) };
  }

  get isPortalOpen(): boolean {
    return this.#portal !== undefined;
  }

  /** Whether names are not looked up as they were: the tunnel's servers are asked, or the kill switch is in between. */
  get isApart(): boolean {
    return this.#isClosed || this.#plan !== undefined;
  }

  /** The name servers outside the tunnel. */
  async nameServers(): Promise<readonly string[]> {
    return (await this.#names?.servers()) ?? [];
  }

  /**
   * Closes the kill switch where that is wished, takes back what a run that died has left, and opens the device.
   *
   * @throws {VpnError} ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_UNSUPPORTED, ERR_HOST_APPLY
   */
  open(): Promise<TunDevice> {
    return this.#inTurn(() => this.#open());
  }

  async #open(): Promise<TunDevice> {
    const {
      journalPath,
      namesPath,
      device: kind = 'tun',
      superPackets,
      killSwitch,
      closing,
      portalMs,
      log,
    } = this.#options;
    const wasClosed = await killSwitch.isClosed();
    this.#isOpenedOnFailure = closing === 'on' && !wasClosed;
    if (wasClosed && !this.#isClosed)
      this.#log.warn('the kill switch is closed from before, and stays closed until down');
    this.#isClosed ||= wasClosed;
    if (this.#isClosed) await killSwitch.close(await this.#openNetworks());
    this.#guard = setInterval(() => void this.#keepClosed(), GUARD_MS).unref();
    this.#host = await HostNetwork.open({ journalPath, log });
    this.#names = await NameService.open({ journalPath: namesPath, log });
    const isSuper = superPackets && kind === 'tun';
    this.#tun = openTun({ name: DEVICE_NAME, kind, superPackets: isSuper, mtu: MIN_TUNNEL_MTU });
    this.#early = { facts: readHostFacts(isOurs).catch(() => undefined), at: performance.now() };
    if (portalMs !== undefined) await this.#openPortal(portalMs);
    return this.#tun;
  }

  /** @throws {VpnError} ERR_HOST_APPLY; ERR_CONFLICT when an overlap is to stop the client */
  apply(config: AcceptedConfig): Promise<readonly RefusedItem[]> {
    return this.#inTurn(() => this.#apply(config));
  }

  async #apply(config: AcceptedConfig): Promise<readonly RefusedItem[]> {
    const host = this.#host;
    const names = this.#names;
    const device = this.#tun?.name;
    if (host === undefined || names === undefined || device === undefined) return [];
    const { wishes } = this.#options;
    const facts = await this.#look();
    if (this.#options.device === 'tap')
      return await this.#applyEthernet(planEthernet({ device, config, facts, wishes }), config, device);
    await this.#chooseAll(findOverlaps({ config, wishes, facts }));
    const choose = (overlap: Overlap): OverlapChoice => this.#choices.get(keyOf(overlap)) ?? standardChoice(overlap);
    const plan = planHost({ device, config, wishes, facts, choose });
    await host.become(plan.changes);
    await this.#closeAgain();
    await names.apply(
      plan.dns === undefined ? undefined : { device, ...plan.dns, servers: plan.dns.servers.map(formatIp) },
    );
    await this.#endPortal();
    this.#hasApplied = true;
    this.#config = config;
    this.#plan = plan;
    this.#tell(plan);
    return plan.refused;
  }

  async #applyEthernet(plan: HostPlan, config: AcceptedConfig, device: string): Promise<readonly RefusedItem[]> {
    await this.#host?.become(plan.changes);
    const { dns } = plan;
    await this.#names?.apply(dns === undefined ? undefined : { device, ...dns, servers: dns.servers.map(formatIp) });
    this.#hasApplied = true;
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
  networkChanged(): Promise<readonly RefusedItem[] | undefined> {
    return this.#inTurn(async () => {
      this.#early = undefined;
      if (this.#portal !== undefined) return undefined;
      if (this.#config !== undefined) return await this.#apply(this.#config);
      await this.#closeAgain();
      return undefined;
    });
  }

  /**
   * For so long, everything is closed but what a captive portal needs, and that is outside the tunnel. It ends earlier when a
   * configuration is applied, which means that the portal is passed.
   *
   * @throws {VpnError} ERR_HOST_APPLY
   */
  openPortal(milliseconds: number): Promise<void> {
    return this.#inTurn(() => this.#openPortal(milliseconds));
  }

  async #openPortal(milliseconds: number): Promise<void> {
    const { killSwitch } = this.#options;
    await this.#endPortal();
    await killSwitch.close(await this.#openNetworks());
    this.#portal = setTimeout(() => void this.#inTurn(() => this.#portalOver()), milliseconds).unref();
    await this.#names?.revert();
    await this.#host?.become([]);
    this.#plan = undefined;
    await killSwitch.openPortal(milliseconds);
  }

  /**
   * Puts the machine back as it was and closes the device. The kill switch stays closed until `release`, unless nothing has
   * come of the start that closed it.
   *
   * @throws {VpnError} ERR_HOST_APPLY
   */
  close(): Promise<void> {
    return this.#inTurn(() => this.#close());
  }

  async #close(): Promise<void> {
    try {
      await this.#endPortal();
      await this.#names?.revert();
    } finally {
      await this.#closeDevice();
    }
    if (this.#isOpenedOnFailure && !this.#hasApplied) await this.release();
    if (this.#isClosed) {
      this.#log.warn('the kill switch stays closed; open it with: customvpn client down');
    }
  }

  /** The user wants no tunnel any more: opens the kill switch. @throws {VpnError} as `nft` */
  async release(): Promise<void> {
    // Not in turn: a configuration may be waiting for an answer of whoever wants out now.
    this.#isClosed = false;
    await this.#options.killSwitch.open();
  }

  #inTurn<T>(action: () => Promise<T>): Promise<T> {
    const result = this.#last.then(action);
    this.#last = result.catch(() => {});
    return result;
  }

  /** Closed as before, for what may stay open by now. */
  async #closeAgain(): Promise<void> {
    if (!this.#isClosed) return;
    const networks = await this.#openNetworks();
    // It may have been opened for good meanwhile.
    if (this.#isClosed) await this.#options.killSwitch.close(networks);
  }

  async #keepClosed(): Promise<void> {
    try {
      if (this.#isClosed) await this.#options.killSwitch.keepClosed();
    } catch (error) {
      this.#log.error('the kill switch could not be looked at', { error });
    }
  }

  async #closeDevice(): Promise<void> {
    clearInterval(this.#guard);
    try {
      await this.#host?.revert();
    } finally {
      await this.#tun?.close();
      this.#host = undefined;
      this.#names = undefined;
      this.#tun = undefined;
      this.#config = undefined;
      this.#plan = undefined;
      this.#forwarded = undefined;
    }
  }

  /** Where packets may go although the kill switch is closed. */
  async #openNetworks(): Promise<Prefix[]> {
    const { lan, exclude } = this.#options.wishes;
    if (!lan) return [...exclude];
    const { attached } = await readHostFacts(isOurs);
    return [...exclude, ...attached.map(({ prefix }) => prefix).filter(isPrivateNetwork)];
  }

  async #endPortal(): Promise<void> {
    if (this.#portal === undefined) return;
    clearTimeout(this.#portal);
    this.#portal = undefined;
    if (this.#isClosed) await this.#options.killSwitch.closePortal();
    else await this.#options.killSwitch.open();
  }

  /** Nobody has passed the portal. The kernel has closed it; what there was before it is put back. */
  async #portalOver(): Promise<void> {
    this.#log.warn('the time for the captive portal is over');
    try {
      if (this.#config === undefined) await this.#endPortal();
      else await this.#apply(this.#config);
    } catch (error) {
      this.#log.error('the machine could not be put back after the captive portal', { error });
    }
  }

  async #look(): Promise<HostFacts> {
    const early = this.#early;
    this.#early = undefined;
    const isFresh = early !== undefined && performance.now() - early.at < FRESH_MS;
    return this.#before((isFresh ? await early.facts : undefined) ?? (await readHostFacts(isOurs)));
  }

  /** What forwards without us: each device as it was seen first. */
  #before(facts: HostFacts): HostFacts {
    this.#forwarded ??= { devices: new Map(), six: facts.forwards6 };
    const { devices, six } = this.#forwarded;
    for (const { device } of [...facts.attached, ...facts.routed]) {
      if (!devices.has(device)) devices.set(device, facts.forwards4.includes(device));
    }
    const forwards4 = [...devices].flatMap(([device, isForwarding]) => (isForwarding ? [device] : []));
    return { ...facts, forwards4, forwards6: six };
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

/** Where a client's changes to its host are written down. */
export type HostTraces = Pick<TunnelHostOptions, 'journalPath' | 'namesPath' | 'killSwitch' | 'log'>;

/** Puts back what a client that died has left, and opens its kill switch. @throws {VpnError} ERR_HOST_APPLY */
export async function cleanHost({ journalPath, namesPath, killSwitch, log }: HostTraces): Promise<void> {
  await (await NameService.open({ journalPath: namesPath, log })).revert();
  await (await HostNetwork.open({ journalPath, log })).revert();
  await killSwitch.open();
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
