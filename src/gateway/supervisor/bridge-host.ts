/**
 * The host of a gateway that bridges Ethernet: listening sockets, TAP devices, the bridge that they are ports of, packet rules.
 *
 * Hides whether the bridge is the administrator's, which is only joined, or one of the gateway's own, which is made, has the
 * gateway's addresses, and is removed. Workers are apart in the kernel unless clients may reach each other. Where addresses
 * live is no business of the kernel's routes here: the bridge learns it.
 *
 * @see docs/decisions/0026-ethernet-by-a-switch-in-each-worker.md
 */

import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { formatMac } from '../../ip/ethernet-station.ts';
import type { HostChange } from '../../os/host.ts';
import { HostNetwork } from '../../os/host.ts';
import { readLink } from '../../os/host-change.ts';
import { readCounters, replaceTable, tableExists } from '../../os/nft.ts';
import { closeFd } from '../../os/socket.ts';
import { openTunDescriptor } from '../../os/tun-linux.ts';
import type { GatewayConfig } from '../config.ts';
import type { Enforcement, HostReport } from '../ipc/ports.ts';
import { bridgeAddresses, checkTap, OWN_BRIDGE, policyOfFrames } from '../tap-config.ts';
import { BRIDGE_COUNTERS, BRIDGE_TABLE, bridgeRuleset, SEGMENT_COUNTERS, segmentRuleset } from './bridge-ruleset.ts';
import {
  CONGESTION,
  type GatewayHostOptions,
  journalOf,
  openGatewaySockets,
  type WorkerDescriptors,
  warnOfCongestion,
} from './host.ts';
import type { WorkerHost } from './open-host.ts';
import { GATEWAY_TABLE } from './ruleset.ts';

export class BridgeHost implements WorkerHost {
  readonly port: number;
  readonly congestion: string;
  readonly workers: readonly WorkerDescriptors[];
  readonly #options: GatewayHostOptions;
  readonly #log: Logger;
  readonly #host: HostNetwork;
  readonly #taken = new Set<WorkerDescriptors>();
  readonly #closed = new Set<number>();
  #config: GatewayConfig;

  private constructor(
    options: GatewayHostOptions,
    parts: { port: number; congestion: string; workers: readonly WorkerDescriptors[]; host: HostNetwork },
  ) {
    this.#options = options;
    this.#config = options.config;
    this.#log = options.log.child({ component: 'supervisor' });
    this.port = parts.port;
    this.congestion = parts.congestion;
    this.workers = parts.workers;
    this.#host = parts.host;
  }

  /**
   * Takes back what a crashed gateway left, then opens sockets and devices; on an error nothing stays.
   *
   * @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_HOST_APPLY, ERR_UNSUPPORTED, ERR_CONFIG_VALUE
   */
  static async open(options: GatewayHostOptions): Promise<BridgeHost> {
    const { config, log, workers: count } = options;
    await using undo = new AsyncDisposableStack();
    checkTap(config);
    const sockets = openGatewaySockets(config, count, undo);
    const journalPath = journalOf(options.stateDir);
    if (options.stateDir === undefined) undo.defer(() => rmSync(journalPath, { force: true }));
    const host = undo.adopt(await HostNetwork.open({ journalPath, log }), (opened) => opened.revert());
    for (const table of [GATEWAY_TABLE, BRIDGE_TABLE]) {
      if (!(await tableExists(table))) continue;
      const name = `${table.family} ${table.name}`;
      throw new VpnError(
        'ERR_ALREADY_RUNNING',
        `the packet rules of another gateway stand here (table ${name}); stop it, or, if there is none, remove them with: nft delete table ${name}`,
      );
    }
    await checkBridge(config);
    const workers = sockets.map(({ fd }, worker) => ({
      socket: fd,
      primary: undo.adopt(
        openTunDescriptor({
          name: worker === 0 ? config.tap.name : `${config.tap.name}-${worker}`,
          kind: 'tap',
          superPackets: false,
          mtu: config.mtu,
        }),
        (device) => closeFd(device.fd),
      ),
      plain: undefined,
    }));
    const { port = 0, congestion = '' } = sockets[0] ?? {};
    if (congestion !== CONGESTION) warnOfCongestion(log, congestion);
    undo.move();
    return new BridgeHost(options, { port, congestion, workers, host });
  }

  take(worker: number): WorkerDescriptors {
    const descriptors = this.workers[worker];
    if (descriptors === undefined || this.#taken.has(descriptors)) {
      throw new VpnError('ERR_INVARIANT', `the descriptors of worker ${worker} are not there to be taken`);
    }
    this.#taken.add(descriptors);
    return descriptors;
  }

  closeSocket(worker: number): void {
    const descriptors = this.workers[worker];
    if (descriptors === undefined || this.#closed.has(worker)) return;
    this.#closed.add(worker);
    closeFd(descriptors.socket);
  }

  /** Makes the host ready: rules before ports. @throws {VpnError} ERR_HOST_APPLY, ERR_PRIVILEGE */
  async configure(): Promise<void> {
    const config = this.#config;
    const isOwn = config.tap.bridge === undefined;
    const bridge = config.tap.bridge ?? OWN_BRIDGE;
    const devices = this.workers.map(({ primary }) => primary.name);
    await this.#host.applyAll([
      { kind: 'nft', table: BRIDGE_TABLE, body: bridgeRuleset(devices) },
      ...(isOwn
        ? ([
            { kind: 'nft', table: GATEWAY_TABLE, body: segmentRuleset(this.#segment(config)) },
            // It says whose the bridge is, and it does not change with the ports.
            { kind: 'bridge', device: bridge, mac: randomMac(0x02), mtu: config.mtu },
          ] satisfies HostChange[])
        : []),
    ]);
    const addresses = isOwn ? bridgeAddresses(config, this.#options.pool) : [];
    await this.#host.applyAll([
      ...addresses.map((address): HostChange => ({ kind: 'address', device: bridge, address })),
      ...(isOwn ? [{ kind: 'link', device: bridge, up: true } satisfies HostChange] : []),
      ...devices.flatMap((device): HostChange[] => [
        // High: a bridge without an address of its own takes the lowest of its ports.
        { kind: 'link', device, hardwareAddress: randomMac(0xfe), addressGeneration: 'none' },
        { kind: 'port', device, bridge, isolated: !config.clientToClient },
        { kind: 'link', device, up: true },
      ]),
    ]);
  }

  async update(config: GatewayConfig): Promise<void> {
    if (config.tap.bridge === undefined) await replaceTable(GATEWAY_TABLE, segmentRuleset(this.#segment(config)));
    this.#config = config;
  }

  async place(): Promise<void> {}

  async unplace(): Promise<void> {}

  async unplaceAll(): Promise<void> {}

  /** @throws {VpnError} ERR_CONFIG_VALUE: no rules of ours see what is bridged */
  async enforce(enforcement: Enforcement | undefined): Promise<void> {
    if (enforcement !== undefined) throw policyOfFrames();
  }

  async admit(): Promise<void> {}

  async dismiss(): Promise<void> {}

  async report(): Promise<HostReport> {
    const bridge = await readCounters(BRIDGE_TABLE);
    const segment = this.#config.tap.bridge === undefined ? await readCounters(GATEWAY_TABLE) : new Map();
    const names = [...BRIDGE_COUNTERS, ...(segment.size === 0 ? [] : SEGMENT_COUNTERS)];
    const packetsOf = (name: string): number => (bridge.get(name) ?? segment.get(name))?.packets ?? 0;
    return { counters: Object.fromEntries(names.map((name) => [`rule_${name}`, packetsOf(name)])), warnings: [] };
  }

  async close(): Promise<void> {
    await using undo = new AsyncDisposableStack();
    if (this.#options.stateDir === undefined) undo.defer(() => rmSync(journalOf(undefined), { force: true }));
    for (const [number, worker] of this.workers.entries()) {
      if (this.#taken.has(worker)) continue;
      undo.defer(() => closeFd(worker.primary.fd));
      undo.defer(() => this.closeSocket(number));
    }
    undo.defer(() => this.#host.revert());
    this.#log.debug('putting the host back');
  }

  #segment(config: GatewayConfig) {
    const { gateway4, gateway6 } = this.#options.pool;
    const gateways = [gateway4, gateway6].filter((own) => own !== undefined);
    return { bridge: OWN_BRIDGE, gateways, services: config.services };
  }
}

/** @throws {VpnError} ERR_CONFIG_VALUE */
async function checkBridge({ tap: { bridge }, mtu }: GatewayConfig): Promise<void> {
  const link = await readLink(bridge ?? OWN_BRIDGE);
  const wrong = (key: string, message: string): VpnError =>
    new VpnError('ERR_CONFIG_VALUE', `${key}: ${message}`, { details: { key } });
  if (bridge === undefined) {
    if (link === undefined) return;
    throw wrong('tap.bridge', `this host has a ${OWN_BRIDGE} already; to join it, set bridge = "${OWN_BRIDGE}"`);
  }
  if (link?.kind !== 'bridge') {
    const found = link === undefined ? 'there is none of that name' : 'it is no bridge';
    throw wrong(
      'tap.bridge',
      `expected the bridge "${bridge}", but ${found}; make one with: ip link add ${bridge} type bridge, or leave the key out`,
    );
  }
  if (link.mtu !== mtu) {
    throw wrong(
      'mtu',
      `expected that of the bridge ${bridge}, ${link.mtu}, got ${mtu}: a port of another would change it`,
    );
  }
}

function randomMac(first: number): string {
  return formatMac(Uint8Array.of(first, 0xc5, ...randomBytes(4)));
}
