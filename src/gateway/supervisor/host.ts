/**
 * The host of a gateway, made ready: listening sockets, TUN devices, addresses, routes, packet rules, kernel settings.
 *
 * Hides the host from auth and workers, and puts everything back when it is closed, and after a crash when it is opened
 * again. Each worker has a socket on the port, two devices and a share of the pool; an address that lives elsewhere than its
 * share says has a route of its own, and the rules let nobody else speak for it. It parses nothing that comes from the
 * network: its whole input is a checked configuration and leases.
 */

import { randomInt } from 'node:crypto';
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { formatIp, formatPrefix, hostPrefix, type IpAddress, parseIp, parsePrefix } from '../../ip/address.ts';
import type { Lease, LeasePool } from '../../ip/lease-pool.ts';
import { type HostChange, HostNetwork, RouteBatch } from '../../os/host.ts';
import { openLogGroup } from '../../os/nflog.ts';
import { findForeignDrops, readCounters, replaceTable, runNft, tableExists } from '../../os/nft.ts';
import { MAX_SHELL_BYTES, NftShell } from '../../os/nft-shell.ts';
import { closeFd, openListenSocket } from '../../os/socket.ts';
import { openTunDescriptor, type TunDescriptor } from '../../os/tun-linux.ts';
import { withAddresses } from '../../policy/kernel-rules.ts';
import { EMPTY_POLICY } from '../../policy/policy.ts';
import type { Site } from '../../policy/sites.ts';
import type { GatewayConfig } from '../config.ts';
import type { AdmittedLease, Enforcement, HostReport, Place } from '../ipc/ports.ts';
import { openPool, prefixesOf } from '../pool.ts';
import { type AccessChange, AccessTable } from './access-table.ts';
import type { WorkerHost } from './open-host.ts';
import {
  DENIED_GROUP,
  GATEWAY_TABLE,
  gatewayRuleset,
  moveHost,
  POLICY_VERDICTS,
  RULESET_COUNTERS,
  type RulesetInput,
} from './ruleset.ts';
import { checkSites, SiteRoutes } from './site-routes.ts';

export const CONGESTION = 'bbr';
/** Small, so that what waits is in our queues, where it can be dropped and overtaken. */
const NOT_SENT_LOWAT_BYTES = 8192;
const BACKLOG = 4096;
/** As the client: a way that is there again is noticed within that; see docs/decisions/0027. */
const MAX_RETRANSMIT_MS = 1000;
/** Connections that the kernel tracks for one client address. */
const CONNECTIONS_PER_ADDRESS = 4096;
/** Of a worker's plain device, counted from its primary one. */
const PLAIN = 1;
const DEVICES_PER_WORKER = 2;
const MAX_DEVICE_NAME = 15;
const MAX_GENERATION = 0xffff_ffff;
/** Packets that the kernel keeps for us while we are busy. */
const QUEUE_LENGTH = 1000;
const NOTHING: Enforcement = { policy: EMPTY_POLICY, hosts: new Map(), sessions: [] };

/**
 * A socket on the gateway's port; the caller's to close.
 *
 * @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_CONFIG_VALUE, ERR_SYSCALL
 */
export function openGatewaySocket(
  { address, session }: GatewayConfig,
  { port, shared }: { port: number; shared: boolean },
): { fd: number; port: number; congestion: string } {
  return openListenSocket({
    address,
    port,
    reusePort: shared,
    backlog: BACKLOG,
    congestion: CONGESTION,
    notSentLowat: NOT_SENT_LOWAT_BYTES,
    // What has been sent and is not acknowledged tells a dead way from a silent peer, without a question.
    userTimeoutMs: session.deadSeconds * 1000,
    maxRetransmitMs: MAX_RETRANSMIT_MS,
    noDelay: true,
  });
}

/** What shows packets that the policy denies (`os/nflog`), the caller's to close; undefined: nothing does, which is logged. */
export function openDeniedLog(log: Logger): number | undefined {
  try {
    return openLogGroup(DENIED_GROUP);
  } catch (error) {
    log.warn('denied packets cannot be shown', { component: 'supervisor', reason: toVpnError(error).message });
    return undefined;
  }
}

/** What one worker works with. */
export interface WorkerDescriptors {
  /** Its listening socket. */
  readonly socket: number;
  readonly primary: TunDescriptor;
  /** For peers that cannot take super-packets; none where Ethernet is bridged. */
  readonly plain: TunDescriptor | undefined;
}

/** A socket for each worker. @throws {VpnError} as `openGatewaySocket` */
export function openGatewaySockets(
  config: GatewayConfig,
  count: number,
  undo: AsyncDisposableStack,
): ReturnType<typeof openGatewaySocket>[] {
  const sockets: ReturnType<typeof openGatewaySocket>[] = [];
  for (let worker = 0; worker < count; worker++) {
    const port = sockets[0]?.port ?? config.port;
    sockets.push(undo.adopt(openGatewaySocket(config, { port, shared: count > 1 }), (opened) => closeFd(opened.fd)));
  }
  return sockets;
}

export function warnOfCongestion(log: Logger, congestion: string): void {
  log.warn(`the kernel offers no ${CONGESTION}: throughput on lossy paths will be low`, {
    component: 'supervisor',
    congestion,
  });
}

export interface GatewayHostOptions {
  config: GatewayConfig;
  /** With a share for each worker. */
  pool: LeasePool;
  workers: number;
  /** Where the journal of changes lives; a temporary folder for a gateway without state. */
  stateDir: string | undefined;
  log: Logger;
}

export class GatewayHost implements WorkerHost {
  readonly port: number;
  /** The congestion control in force on the listening sockets. */
  readonly congestion: string;
  /** By number of the worker. */
  readonly workers: readonly WorkerDescriptors[];
  readonly #options: GatewayHostOptions;
  readonly #log: Logger;
  readonly #host: HostNetwork;
  readonly #routes: RouteBatch;
  readonly #taken = new Set<WorkerDescriptors>();
  readonly #closed = new Set<number>();
  #pool: LeasePool;
  /** The rules that were made first, as the journal knows them. */
  #firstRules = '';
  /** Device of each address that lives elsewhere than its share says, by address as text. */
  readonly #placed = new Map<string, { address: IpAddress; device: number }>();
  readonly #siteRoutes: SiteRoutes;
  /** What may be behind clients under the policy in force. */
  #sites: readonly Site[] = [];
  /** One after the other: a client that comes back gets the address whose route is just being taken away. */
  #changes: Promise<void> = Promise.resolve();
  #config: GatewayConfig;
  /** Who may reach what by the policy; undefined: there is none, and routes say it. */
  #access: AccessTable | undefined;
  readonly #shell = new NftShell();
  #mark = randomInt(1, MAX_GENERATION);
  /** Not a fixed one: connections that the kernel remembers of an earlier run must not pass by their mark. */
  #generation = randomInt(1, MAX_GENERATION);

  private constructor(
    options: GatewayHostOptions,
    parts: {
      port: number;
      congestion: string;
      workers: readonly WorkerDescriptors[];
      host: HostNetwork;
      routes: RouteBatch;
    },
  ) {
    this.#options = options;
    this.#config = options.config;
    this.#pool = options.pool;
    this.#log = options.log.child({ component: 'supervisor' });
    this.port = parts.port;
    this.congestion = parts.congestion;
    this.workers = parts.workers;
    this.#host = parts.host;
    this.#routes = parts.routes;
    this.#siteRoutes = new SiteRoutes({
      routes: parts.routes,
      shell: this.#shell,
      to: ({ network, device }) => ({ device: this.#deviceName(device) ?? '', ...this.#sourceOf(network.address) }),
    });
    // Until the policy is there nobody reaches anything.
    if (options.config.policyFile !== undefined) this.#access = this.#accessOf(NOTHING);
  }

  /**
   * Takes back what a crashed gateway left, then opens sockets and devices; on an error nothing stays. Nothing is forwarded
   * before `configure`.
   *
   * @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_HOST_APPLY, ERR_UNSUPPORTED, ERR_CONFIG_VALUE
   */
  static async open(options: GatewayHostOptions): Promise<GatewayHost> {
    const { config, log, workers: count } = options;
    await using undo = new AsyncDisposableStack();
    const names = Array.from({ length: count }, (_, worker) => deviceNames(config.device, worker));
    const sockets = openGatewaySockets(config, count, undo);
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
    const open = (name: string, superPackets: boolean): TunDescriptor =>
      undo.adopt(openTunDescriptor({ name, superPackets, mtu: config.mtu }), ({ fd }) => closeFd(fd));
    const workers = names.map(({ primary, plain }, worker) => ({
      socket: sockets[worker]?.fd ?? -1,
      primary: open(primary, config.data.superPackets),
      plain: open(plain, false),
    }));
    const routes = undo.adopt(await RouteBatch.open({ log }), (opened) => opened.close());
    const { port = 0, congestion = '' } = sockets[0] ?? {};
    const opened = new GatewayHost(options, { port, congestion, workers, host, routes });
    if (congestion !== CONGESTION) warnOfCongestion(log, congestion);
    undo.move();
    return opened;
  }

  /** Hands the descriptors of a worker over: whoever takes them closes them, after `close`. */
  take(worker: number): WorkerDescriptors {
    const descriptors = this.workers[worker];
    if (descriptors === undefined || this.#taken.has(descriptors)) {
      throw new VpnError('ERR_INVARIANT', `the descriptors of worker ${worker} are not there to be taken`);
    }
    this.#taken.add(descriptors);
    return descriptors;
  }

  /** Refuses whoever comes to a worker's socket: the kernel gives new connections to those of the others. Idempotent. */
  closeSocket(worker: number): void {
    const descriptors = this.workers[worker];
    if (descriptors === undefined || this.#closed.has(worker)) return;
    this.#closed.add(worker);
    closeFd(descriptors.socket);
  }

  enforce(enforcement: Enforcement | undefined): Promise<void> {
    return this.#change(async () => {
      for (const { lease } of enforcement?.sessions ?? []) this.#checkLease(lease);
      const access = enforcement === undefined ? undefined : this.#accessOf(enforcement);
      const sites = enforcement?.policy.sites ?? [];
      checkSites(sites, this.#config.pool);
      const former = { access: this.#access, sites: this.#sites };
      await this.#replaceAccess(access, sites);
      await this.#routeNetworks(() => this.#replaceAccess(former.access, former.sites));
    });
  }

  async #replaceAccess(access: AccessTable | undefined, sites: readonly Site[]): Promise<void> {
    const generation = nextGeneration(this.#generation);
    await replaceTable(GATEWAY_TABLE, gatewayRuleset(this.#rules(this.#config, generation, access, sites)));
    this.#generation = generation;
    this.#access = access;
    this.#sites = sites;
  }

  admit(entries: readonly AdmittedLease[]): Promise<void> {
    return this.#change(async () => {
      for (const { lease } of entries) this.#checkLease(lease);
      if (this.#access === undefined) return;
      const change = this.#access.admit(entries);
      await this.#regrade(change);
      await this.#routeNetworks(async () => {
        change.undo();
        await this.#replaceAccess(this.#access, this.#sites);
      });
    });
  }

  dismiss(lease: Lease): Promise<void> {
    return this.#change(async () => {
      if (this.#access === undefined) return;
      await this.#regrade(this.#access.dismiss(lease));
      await this.#routeNetworks();
    });
  }

  async #regrade({ commands, undo }: AccessChange): Promise<void> {
    try {
      // New classes are blocks of text, and as long as their rules are many.
      if (commands.length > MAX_SHELL_BYTES || commands.includes('{\n')) await runNft(commands);
      else await this.#shell.run(commands);
    } catch (error) {
      undo();
      throw error;
    }
  }

  #accessOf({ policy, hosts, sessions }: Enforcement): AccessTable {
    return new AccessTable({
      table: `${GATEWAY_TABLE.family} ${GATEWAY_TABLE.name}`,
      rules: withAddresses(policy.rules, (host) => hosts.get(host) ?? []),
      ...POLICY_VERDICTS,
      clients: { 4: 'pool4', 6: 'pool6' },
      networks: policy.sites.flatMap(({ networks }) => networks.map(({ seenAs }) => seenAs)),
      admitted: sessions,
      nextMark: () => {
        this.#mark = nextGeneration(this.#mark);
        return this.#mark;
      },
      former: this.#access,
    });
  }

  /** Nobody can be given rights over addresses that are no client's. */
  #checkLease({ v4, v6 }: Lease): void {
    for (const address of [v4, v6]) {
      if (address === undefined || this.#pool.contains(address)) continue;
      throw new VpnError('ERR_INVARIANT', `${formatIp(address)} is no client's address`);
    }
  }

  /**
   * Routes each network to where its client lives, and lets nobody else speak for it.
   *
   * @param takeBack undoes what it is done for, where it fails
   */
  async #routeNetworks(takeBack?: () => Promise<void>): Promise<void> {
    try {
      await this.#moveNetworks();
    } catch (error) {
      if (takeBack === undefined) throw error;
      try {
        await takeBack();
        await this.#moveNetworks();
      } catch (second) {
        this.#log.error('a change of access failed half way and could not be taken back', { error: second });
      }
      throw error;
    }
  }

  async #moveNetworks(): Promise<void> {
    const all = [...(this.#access?.networks ?? [])];
    await this.#siteRoutes.become(
      all.flatMap(([lease, networks]) => {
        const [address = ''] = lease.split(',');
        const device = this.#placed.get(address)?.device ?? this.#home(parseIp(address));
        return networks.map((network) => ({ network, device }));
      }),
    );
  }

  update(config: GatewayConfig): Promise<void> {
    // In turn with the moves of hosts: the new table must hold those that were made, and none may be lost between.
    return this.#change(async () => {
      checkSites(this.#sites, config.pool);
      const former = { pool: this.#pool, config: this.#config };
      const generation = nextGeneration(this.#generation);
      const isOtherPool = config.pool.join() !== former.config.pool.join();
      if (isOtherPool) {
        const pool = openPool(config, this.workers.length, this.#options.config.pool);
        await this.#host.become(this.#wanted(config, pool));
        this.#pool = pool;
      }
      try {
        await replaceTable(GATEWAY_TABLE, gatewayRuleset(this.#rules(config, generation)));
      } catch (error) {
        this.#pool = former.pool;
        if (isOtherPool) await this.#host.become(this.#wanted(former.config, former.pool));
        throw error;
      }
      this.#generation = generation;
      this.#config = config;
    });
  }

  place(lease: Lease, worker: number, place: Place): Promise<void> {
    const device = worker * DEVICES_PER_WORKER + (place === 'plain' ? PLAIN : 0);
    if (this.#deviceName(device) === undefined) {
      return Promise.reject(new VpnError('ERR_INVARIANT', `there is no worker ${worker}`));
    }
    return this.#change(async () => {
      for (const address of addressesOf(lease)) {
        if (device === this.#home(address)) await this.#takeHome(address);
        else await this.#settle(address, device);
      }
      await this.#routeNetworks();
    });
  }

  unplace(lease: Lease): Promise<void> {
    return this.#change(async () => {
      for (const address of addressesOf(lease)) await this.#takeHome(address);
      await this.#routeNetworks();
    });
  }

  /** All addresses go where their share says again. @throws {VpnError} ERR_HOST_APPLY */
  unplaceAll(): Promise<void> {
    return this.#change(async () => {
      for (const { address } of [...this.#placed.values()]) await this.#takeHome(address);
      await this.#routeNetworks();
    });
  }

  #change(change: () => Promise<void>): Promise<void> {
    const done = this.#changes.then(change);
    this.#changes = done.catch(() => {});
    return done;
  }

  /** The device that an address is routed to by the share it lies in. */
  #home(address: IpAddress): number {
    return this.#pool.shareOf(address.version === 4 ? { v4: address } : { v6: address }) * DEVICES_PER_WORKER;
  }

  async #settle(address: IpAddress, device: number): Promise<void> {
    const key = formatIp(address);
    const former = this.#placed.get(key)?.device;
    if (former === device) return;
    const away = former === undefined ? '' : moveHost(former, address, 'away');
    await this.#shell.run(`${away}${moveHost(device, address, 'here')}`);
    await this.#routes.add({
      prefix: formatPrefix(hostPrefix(address)),
      device: this.#deviceName(device) ?? '',
      ...this.#sourceOf(address),
    });
    this.#placed.set(key, { address, device });
  }

  async #takeHome(address: IpAddress): Promise<void> {
    const key = formatIp(address);
    const former = this.#placed.get(key)?.device;
    if (former === undefined) return;
    await this.#routes.remove({ prefix: formatPrefix(hostPrefix(address)), device: this.#deviceName(former) ?? '' });
    await this.#shell.run(moveHost(former, address, 'back'));
    this.#placed.delete(key);
  }

  /** The host speaks to every client from the gateway's own address, whichever device it lives on. */
  #sourceOf({ version }: IpAddress): { source?: string } {
    const { gateway4, gateway6 } = this.#pool;
    const gateway = version === 4 ? gateway4 : gateway6;
    return gateway === undefined ? {} : { source: formatIp(gateway) };
  }

  #deviceName(device: number): string | undefined {
    const worker = this.workers[Math.floor(device / DEVICES_PER_WORKER)];
    return device % DEVICES_PER_WORKER === PLAIN ? worker?.plain?.name : worker?.primary.name;
  }

  get #deviceNames(): string[] {
    return this.workers.flatMap(({ primary, plain }) =>
      [primary, ...(plain === undefined ? [] : [plain])].map(({ name }) => name),
    );
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
      devices: this.#deviceNames,
      listen: [{ protocol: 'tcp', port: this.port }],
    });
    return drops.map(
      ({ owner, table, chain, hook, advice }) =>
        `${owner === 'other' ? 'another firewall' : owner} drops ${hook === 'forward' ? "clients' traffic" : 'connections to the gateway'} ` +
        `(table ${table}, chain ${chain}); mend it with: ${advice.join(' && ')}`,
    );
  }

  /** Takes everything back, and closes what nobody has taken. */
  async close(): Promise<void> {
    await using undo = new AsyncDisposableStack();
    if (this.#options.stateDir === undefined) undo.defer(() => rmSync(journalOf(undefined), { force: true }));
    for (const [number, worker] of this.workers.entries()) {
      if (this.#taken.has(worker)) continue;
      for (const device of [worker.plain, worker.primary])
        if (device !== undefined) undo.defer(() => closeFd(device.fd));
      undo.defer(() => this.closeSocket(number));
    }
    undo.defer(() => this.#host.revert());
    undo.defer(() => this.#routes.close());
    undo.defer(() => this.#shell.close());
    this.#log.debug('putting the host back');
  }

  /**
   * Makes the host ready. Rules first: nothing is forwarded before they stand.
   *
   * @throws {VpnError} ERR_HOST_APPLY, ERR_PRIVILEGE
   */
  async configure(): Promise<void> {
    this.#firstRules = gatewayRuleset(this.#rules(this.#config, this.#generation));
    await this.#host.applyAll(this.#wanted(this.#config, this.#pool));
  }

  /** What the host has to have with these pools. Rules are replaced by themselves, and go as they came. */
  #wanted(config: GatewayConfig, pool: LeasePool): HostChange[] {
    const device = this.#deviceName(0) ?? '';
    const { v4, v6 } = prefixesOf(config.pool);
    const gateways = [pool.gateway4, pool.gateway6].filter((address) => address !== undefined);
    const shares = this.workers.slice(1).flatMap(({ primary }, index) =>
      pool.prefixesOf(index + 1).map((prefix): HostChange => {
        return { kind: 'route', prefix: formatPrefix(prefix), device: primary.name, ...this.#sourceOf(prefix.address) };
      }),
    );
    return [
      { kind: 'nft', table: GATEWAY_TABLE, body: this.#firstRules },
      ...this.#deviceNames.map(
        (name): HostChange => ({
          kind: 'link',
          device: name,
          up: true,
          addressGeneration: 'none',
          queueLength: QUEUE_LENGTH,
        }),
      ),
      ...gateways.map((address): HostChange => ({ kind: 'address', device, address: formatIp(address) })),
      // What is in no other share goes to the first worker, also what nobody has leased.
      ...[v4, v6].flatMap((prefix): HostChange[] =>
        prefix === undefined
          ? []
          : [{ kind: 'route', prefix: formatPrefix(prefix), device, ...this.#sourceOf(prefix.address) }],
      ),
      ...shares,
      ...(v4 === undefined ? [] : [{ kind: 'sysctl', key: 'net.ipv4.ip_forward', value: '1' } satisfies HostChange]),
      ...(v6 === undefined ? [] : [{ kind: 'forwarding6' } satisfies HostChange]),
    ];
  }

  #rules(config: GatewayConfig, generation: number, access = this.#access, sites = this.#sites): RulesetInput {
    const pool = this.#pool;
    const { v4, v6 } = prefixesOf(config.pool);
    const placed = [...this.#placed.values()];
    const hostsOf = (device: number) => placed.flatMap((host) => (host.device === device ? [host.address] : []));
    return {
      devices: this.workers.flatMap(({ primary, plain }, worker) => {
        const first = worker * DEVICES_PER_WORKER;
        const kind = config.data.superPackets ? 'super' : 'plain';
        return [
          {
            name: primary.name,
            kind,
            blocks: pool.prefixesOf(worker),
            hosts: hostsOf(first),
            networks: this.#siteRoutes.of(first),
          } as const,
          {
            ...{ name: plain?.name ?? '', kind: 'plain', blocks: [] },
            ...{ hosts: hostsOf(first + PLAIN), networks: this.#siteRoutes.of(first + PLAIN) },
          } as const,
        ];
      }),
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
      networks: sites.flatMap(({ networks }) => networks.map(({ seenAs }) => seenAs)),
      open: sites.flatMap(({ networks, openTo }) =>
        networks.flatMap(({ seenAs }) => openTo.map((from) => ({ from, to: seenAs }))),
      ),
      ...(access === undefined ? {} : { access: access.lines() }),
    };
  }
}

/** @throws {VpnError} ERR_CONFIG_VALUE */
function deviceNames(device: string, worker: number): { primary: string; plain: string } {
  const primary = worker === 0 ? device : `${device}-${worker}`;
  const plain = `${primary}p`;
  if (plain.length <= MAX_DEVICE_NAME) return { primary, plain };
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `device: "${device}" is too long for worker ${worker}, whose device would be ${plain}: at most ${MAX_DEVICE_NAME} letters; choose a shorter name or fewer workers`,
    { details: { key: 'device' } },
  );
}

function nextGeneration(generation: number): number {
  return generation === MAX_GENERATION ? 1 : generation + 1;
}

export function journalOf(stateDir: string | undefined): string {
  return stateDir === undefined
    ? join(tmpdir(), `customvpn-${process.pid}.journal`)
    : join(stateDir, 'run', 'host.journal');
}

function addressesOf({ v4, v6 }: Lease): IpAddress[] {
  return [v4, v6].filter((address) => address !== undefined);
}

function parseService(text: string): { protocol: 'tcp' | 'udp'; port: number } {
  const [first = '', second = ''] = text.split('/');
  const [protocol, port] = /^\d+$/.test(first) ? [second, first] : [first, second];
  return { protocol: protocol === 'udp' ? 'udp' : 'tcp', port: Number(port) };
}
