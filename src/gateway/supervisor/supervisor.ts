/**
 * The privileged part of a gateway: listening socket, TUN devices, addresses, routes, packet rules, kernel settings.
 *
 * Hides the host from auth and workers, and puts everything back when it is closed, and after a crash when it is opened
 * again. It parses nothing that comes from the network: its whole input is a checked configuration and leases.
 */

import { randomInt } from 'node:crypto';
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { formatIp, type IpAddress, type Prefix, parsePrefix } from '../../ip/address.ts';
import type { Lease, LeasePool } from '../../ip/lease-pool.ts';
import { type HostChange, HostNetwork, RouteBatch } from '../../os/host.ts';
import { findForeignDrops, readCounters, replaceTable, runNft, tableExists } from '../../os/nft.ts';
import { closeFd, openListenSocket } from '../../os/socket.ts';
import type { TunDevice } from '../../os/tun.ts';
import { openTun } from '../../os/tun-linux.ts';
import type { GatewayConfig } from '../config.ts';
import type { HostReport, Place, SupervisorPort } from '../ipc/ports.ts';
import type { WorkerDevices } from '../worker/worker.ts';
import { GATEWAY_TABLE, gatewayRuleset, moveHost, RULESET_COUNTERS, type RulesetInput } from './ruleset.ts';

const CONGESTION = 'bbr';
/** Small, so that what waits is in our queues, where it can be dropped and overtaken. */
const NOT_SENT_LOWAT_BYTES = 8192;
const BACKLOG = 4096;
/** Connections that the kernel tracks for one client address. */
const CONNECTIONS_PER_ADDRESS = 4096;
const PLAIN_DEVICE_INDEX = 1;
const MAX_GENERATION = 0xffff_ffff;
/** Packets that the kernel keeps for us while we are busy. */
const QUEUE_LENGTH = 1000;

/** What a gateway needs of its privileged part. */
export interface Supervisor extends SupervisorPort {
  readonly devices: WorkerDevices;
  readonly port: number;
  /** The congestion control in force on the listening socket. */
  readonly congestion: string;
  /** The listening socket; whoever takes it closes it. */
  takeListenSocket(): number;
  close(): Promise<void>;
}

/** The gateway's listening socket, until somebody takes it. */
export function openGatewaySocket(config: GatewayConfig): {
  port: number;
  congestion: string;
  take(): number;
  close(): void;
} {
  const { fd, port, congestion } = openListenSocket({
    address: config.address,
    port: config.port,
    backlog: BACKLOG,
    congestion: CONGESTION,
    notSentLowat: NOT_SENT_LOWAT_BYTES,
    // What has been sent and is not acknowledged tells a dead way from a silent peer, without a question.
    userTimeoutMs: config.session.deadSeconds * 1000,
    noDelay: true,
  });
  let isOurs = true;
  const release = (): boolean => {
    const was = isOurs;
    isOurs = false;
    return was;
  };
  return {
    port,
    congestion,
    take: () => {
      if (!release()) throw new VpnError('ERR_INVARIANT', 'the listening socket has been taken');
      return fd;
    },
    close: () => {
      if (release()) closeFd(fd);
    },
  };
}

export interface HostSupervisorOptions {
  config: GatewayConfig;
  pool: LeasePool;
  /** Where the journal of changes lives; a temporary folder for a gateway without state. */
  stateDir: string | undefined;
  log: Logger;
}

export class HostSupervisor implements Supervisor {
  readonly devices: WorkerDevices;
  readonly congestion: string;
  readonly port: number;
  readonly #options: HostSupervisorOptions;
  readonly #log: Logger;
  readonly #socket: ReturnType<typeof openGatewaySocket>;
  readonly #host: HostNetwork;
  readonly #plain: TunDevice;
  readonly #routes: RouteBatch;
  readonly #plainHosts = new Set<IpAddress>();
  /** One after the other: a client that comes back gets the address whose route is just being taken away. */
  #plainChanges: Promise<void> = Promise.resolve();
  #config: GatewayConfig;
  /** Not a fixed one: connections that the kernel remembers of an earlier run must not pass by their mark. */
  #generation = randomInt(1, MAX_GENERATION);

  private constructor(
    options: HostSupervisorOptions,
    parts: {
      socket: ReturnType<typeof openGatewaySocket>;
      host: HostNetwork;
      primary: TunDevice;
      plain: TunDevice;
      routes: RouteBatch;
    },
  ) {
    this.#options = options;
    this.#config = options.config;
    this.#log = options.log.child({ component: 'supervisor' });
    this.#socket = parts.socket;
    this.port = parts.socket.port;
    this.congestion = parts.socket.congestion;
    this.#host = parts.host;
    this.#plain = parts.plain;
    this.#routes = parts.routes;
    this.devices = { primary: parts.primary, plain: parts.plain };
  }

  /**
   * Takes back what a crashed gateway left, then opens and configures everything; on an error nothing stays.
   *
   * @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_HOST_APPLY, ERR_UNSUPPORTED
   */
  static async open(options: HostSupervisorOptions): Promise<HostSupervisor> {
    const { config, log } = options;
    await using undo = new AsyncDisposableStack();
    const socket = undo.adopt(openGatewaySocket(config), (opened) => opened.close());
    const journalPath = journalOf(options.stateDir);
    if (options.stateDir === undefined) undo.defer(() => rmSync(journalPath, { force: true }));
    const host = undo.adopt(await HostNetwork.open({ journalPath, log }), (opened) => opened.revert());
    if (await tableExists(GATEWAY_TABLE)) {
      const name = `${GATEWAY_TABLE.family} ${GATEWAY_TABLE.name}`;
      throw new VpnError(
        'ERR_ALREADY_RUNNING',
        `the packet rules of another gateway stand here (table ${name}); stop it, run this one in a network namespace of its own, or, if there is none, remove them with: nft delete table ${name}`,
      );
    }
    const primary = undo.adopt(
      openTun({ name: config.device, superPackets: config.data.superPackets, mtu: config.mtu }),
      (opened) => opened.close(),
    );
    const plain = undo.adopt(openTun({ name: `${config.device}p`, superPackets: false, mtu: config.mtu }), (opened) =>
      opened.close(),
    );
    const routes = undo.adopt(await RouteBatch.open({ log }), (opened) => opened.close());
    const supervisor = new HostSupervisor(options, { socket, host, primary, plain, routes });
    await supervisor.#configure();
    if (socket.congestion !== CONGESTION) {
      log.warn(`the kernel offers no ${CONGESTION}: throughput on lossy paths will be low`, {
        component: 'supervisor',
        congestion: socket.congestion,
      });
    }
    undo.move();
    return supervisor;
  }

  takeListenSocket(): number {
    return this.#socket.take();
  }

  update(config: GatewayConfig): Promise<void> {
    // In turn with the moves of hosts: the new table must hold those that were made, and none may be lost between.
    return this.#changePlain(async () => {
      const generation = nextGeneration(this.#generation);
      await replaceTable(GATEWAY_TABLE, gatewayRuleset(this.#rules(config, generation)));
      this.#generation = generation;
      this.#config = config;
    });
  }

  place(lease: Lease, _worker: number, place: Place): Promise<void> {
    return place === 'plain' ? this.#changePlain(() => this.#routePlain(lease)) : this.unplace(lease);
  }

  unplace(lease: Lease): Promise<void> {
    return this.#changePlain(() => this.#unroutePlain(lease));
  }

  #changePlain(change: () => Promise<void>): Promise<void> {
    const done = this.#plainChanges.then(change);
    this.#plainChanges = done.catch(() => {});
    return done;
  }

  async #routePlain(lease: Lease): Promise<void> {
    for (const address of addressesOf(lease)) {
      this.#plainHosts.add(address);
      await runNft(moveHost(PLAIN_DEVICE_INDEX, address, 'here'));
      await this.#routes.add({ prefix: hostPrefix(address), device: this.#plain.name });
    }
  }

  async #unroutePlain(lease: Lease): Promise<void> {
    for (const address of addressesOf(lease)) {
      if (!this.#plainHosts.delete(address)) continue;
      await this.#routes.remove({ prefix: hostPrefix(address), device: this.#plain.name });
      await runNft(moveHost(PLAIN_DEVICE_INDEX, address, 'back'));
    }
  }

  async report(): Promise<HostReport> {
    const counters = await readCounters(GATEWAY_TABLE);
    return {
      counters: Object.fromEntries(RULESET_COUNTERS.map((name) => [`rule_${name}`, counters.get(name)?.packets ?? 0])),
      warnings: await this.#warnings().catch((error: unknown) => [`the host could not be looked at: ${String(error)}`]),
    };
  }

  async #warnings(): Promise<string[]> {
    const drops = await findForeignDrops({
      own: GATEWAY_TABLE,
      devices: [this.devices.primary.name, this.#plain.name],
      listen: [{ protocol: 'tcp', port: this.port }],
    });
    return drops.map(
      ({ owner, table, chain, hook, advice }) =>
        `${owner === 'other' ? 'another firewall' : owner} drops ${hook === 'forward' ? "clients' traffic" : 'connections to the gateway'} ` +
        `(table ${table}, chain ${chain}); mend it with: ${advice.join(' && ')}`,
    );
  }

  async close(): Promise<void> {
    await using undo = new AsyncDisposableStack();
    if (this.#options.stateDir === undefined) undo.defer(() => rmSync(journalOf(undefined), { force: true }));
    undo.defer(() => this.#plain.close());
    undo.defer(() => this.devices.primary.close());
    undo.defer(() => this.#host.revert());
    undo.defer(() => this.#routes.close());
    undo.defer(() => this.#socket.close());
    this.#log.debug('putting the host back');
  }

  /** Rules first: nothing is forwarded before they stand. */
  async #configure(): Promise<void> {
    const config = this.#config;
    const { pool } = this.#options;
    const device = this.devices.primary.name;
    const { v4, v6 } = prefixesOf(config);
    const gateways = [pool.gateway4, pool.gateway6].filter((address) => address !== undefined);
    await this.#host.applyAll([
      { kind: 'nft', table: GATEWAY_TABLE, body: gatewayRuleset(this.#rules(config, this.#generation)) },
      ...[device, this.#plain.name].map(
        (name): HostChange => ({
          kind: 'link',
          device: name,
          up: true,
          addressGeneration: 'none',
          queueLength: QUEUE_LENGTH,
        }),
      ),
      ...gateways.map((address): HostChange => ({ kind: 'address', device, address: formatIp(address) })),
      ...config.pool.map((prefix): HostChange => ({ kind: 'route', prefix, device })),
      ...(v4 === undefined ? [] : [{ kind: 'sysctl', key: 'net.ipv4.ip_forward', value: '1' } satisfies HostChange]),
      ...(v6 === undefined ? [] : [{ kind: 'forwarding6' } satisfies HostChange]),
    ]);
  }

  #rules(config: GatewayConfig, generation: number): RulesetInput {
    const { pool } = this.#options;
    const { v4, v6 } = prefixesOf(config);
    const blocks = [v4, v6].filter((prefix) => prefix !== undefined);
    return {
      devices: [
        { name: this.devices.primary.name, kind: config.data.superPackets ? 'super' : 'plain', blocks, hosts: [] },
        { name: this.#plain.name, kind: 'plain', blocks: [], hosts: [...this.#plainHosts] },
      ],
      ...(v4 === undefined || pool.gateway4 === undefined ? {} : { pool4: v4, gateway4: pool.gateway4 }),
      ...(v6 === undefined || pool.gateway6 === undefined ? {} : { pool6: v6, gateway6: pool.gateway6 }),
      allowed: config.routes.map(parsePrefix),
      clientToClient: config.clientToClient,
      services: config.services.map(parseService),
      listenPorts: [this.port],
      masquerade4: config.nat4,
      masquerade6: config.nat6,
      generation,
      connectionsPerAddress: CONNECTIONS_PER_ADDRESS,
    };
  }
}

function nextGeneration(generation: number): number {
  return generation === MAX_GENERATION ? 1 : generation + 1;
}

function journalOf(stateDir: string | undefined): string {
  return stateDir === undefined
    ? join(tmpdir(), `customvpn-${process.pid}.journal`)
    : join(stateDir, 'run', 'host.journal');
}

function prefixesOf(config: GatewayConfig): { v4: Prefix | undefined; v6: Prefix | undefined } {
  const prefixes = config.pool.map(parsePrefix);
  return {
    v4: prefixes.find(({ address }) => address.version === 4),
    v6: prefixes.find(({ address }) => address.version === 6),
  };
}

function addressesOf({ v4, v6 }: Lease): IpAddress[] {
  return [v4, v6].filter((address) => address !== undefined);
}

function hostPrefix(address: IpAddress): string {
  return `${formatIp(address)}/${address.version === 4 ? 32 : 128}`;
}

function parseService(text: string): { protocol: 'tcp' | 'udp'; port: number } {
  const [first = '', second = ''] = text.split('/');
  const [protocol, port] = /^\d+$/.test(first) ? [second, first] : [first, second];
  return { protocol: protocol === 'udp' ? 'udp' : 'tcp', port: Number(port) };
}
