/**
 * A VPN gateway as one object: construct, start, stop.
 *
 * Wires supervisor, auth and one worker together in one process and hides that they are three. It embeds in another program,
 * with the kernel's TUN devices, with devices of the caller's, or with none, when it carries no packets but logins and
 * echoes. The command line's gateway is the same three in processes of their own (`supervisor/processes.ts`).
 */

import { type Clock, systemClock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { type Logger, silentLogger } from '../base/log.ts';
import type { GatewayApi, GatewayStatus, SessionInfo } from '../control/operations.ts';
import type { CloseReason } from '../protocol/messages.ts';
import type { ServerCredentials } from '../transport/tls.ts';
import type { AdminPage } from './admin/admin.ts';
import type { Administration } from './administration.ts';
import type { StartedSession } from './auth/live-session.ts';
import { Observers } from './auth/observers.ts';
import { type GatewayFacts, gatewayApi, kick } from './auth/operations.ts';
import type { LoginFacts } from './auth/rights.ts';
import { AuthService, addressesOf } from './auth/service.ts';
import {
  type GatewayConfig,
  type GatewayOptions,
  gatewayConfigSchema,
  metricsEndpoint,
  resolveFiles,
} from './config.ts';
import { Dialler, type DialNetwork, HostDialNetwork } from './dialler.ts';
import { openPool } from './pool.ts';
import { DetachedSupervisor } from './supervisor/detached.ts';
import { HostSupervisor, type Supervisor } from './supervisor/supervisor.ts';
import { WorkerService } from './worker/service.ts';
import type { WorkerDevices } from './worker/worker.ts';

/** What a device of the caller's is and does. */
export type { PacketBuffer, TunDevice, TunReader } from '../os/tun.ts';
/** What a network of the caller's does. */
export type { DialNetwork } from './dialler.ts';

const WORKER_ID = 0;

/** What a hook learns of a session. */
export interface SessionFacts {
  /** Enough of the id to tell sessions apart; not the whole. */
  readonly id: string;
  readonly user: string;
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly addresses: readonly string[];
  /** Address and port of the client. */
  readonly remote: string;
  /** Bytes of packets; final in `onSessionEnd`. */
  readonly receivedBytes: number;
  readonly sentBytes: number;
}

/** What an application may add. Hooks are called outside the packet path; what they throw is logged. */
export interface ServerHooks {
  /** Has the last word on a login that the built-in steps have accepted. Anything but true refuses it. */
  authorizeLogin?(login: LoginFacts): boolean | Promise<boolean>;
  onSessionStart?(session: SessionFacts): void;
  onSessionEnd?(session: SessionFacts, reason: CloseReason): void;
}

export type ServerConfig = GatewayOptions & {
  /** A directory made by `initGateway`; without one, users and sessions live in memory. */
  stateDir?: string;
  /** `kernel` (default): TUN devices, routes and packet rules, as root. `none`: no packets. Or devices of your own. */
  tun?: 'kernel' | 'none' | WorkerDevices;
  /** Where connections of the proxy are made; default this machine's own network. */
  network?: DialNetwork;
  hooks?: ServerHooks;
  log?: Logger;
  clock?: Clock;
  /** Reported by `status`. */
  version?: string;
};

/** Everything that exists only while the gateway runs. */
interface Running {
  auth: AuthService;
  supervisor: Supervisor;
  worker: WorkerService;
  observers: Observers;
  since: number;
}

export class VpnServer {
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #hooks: ServerHooks;
  readonly #tun: 'kernel' | 'none' | WorkerDevices;
  readonly #network: DialNetwork;
  readonly #stateDir: string | undefined;
  readonly #version: string;
  readonly #stopped = Promise.withResolvers<void>();
  readonly #config: GatewayConfig;
  #running: Running | undefined;
  #page: AdminPage | undefined;
  #isStopping = false;

  /** @throws {VpnError} ERR_CONFIG_VALUE */
  constructor(options: ServerConfig) {
    const { stateDir, tun, network, hooks, log, clock, version, ...config } = options;
    const parsed = gatewayConfigSchema.safeParse(config);
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      throw new VpnError('ERR_CONFIG_VALUE', `${issue?.path.join('.') ?? 'options'}: ${issue?.message ?? 'not valid'}`);
    }
    this.#config = stateDir === undefined ? parsed.data : resolveFiles(parsed.data, stateDir);
    this.#stateDir = stateDir;
    this.#tun = tun ?? 'kernel';
    this.#network = network ?? new HostDialNetwork();
    this.#hooks = hooks ?? {};
    this.#log = log ?? silentLogger;
    this.#clock = clock ?? systemClock;
    this.#version = version ?? 'library';
  }

  /**
   * Starts the gateway; resolves when clients can connect. Reads and checks everything before it touches the host, and puts
   * the host back if a later step fails.
   *
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_FILE, ERR_CONFIG_VALUE, ERR_PORT_TAKEN, ERR_PRIVILEGE,
   *   ERR_TUN_OPEN, ERR_HOST_APPLY, ERR_STORE
   */
  async start(): Promise<void> {
    if (this.#running !== undefined) throw new VpnError('ERR_CONFLICT', 'the gateway runs already');
    await using undo = new AsyncDisposableStack();
    const config = this.#config;
    const clock = this.#clock;
    const log = this.#log;
    const auth = undo.adopt(
      await AuthService.open({
        config,
        workers: 1,
        stateDir: this.#stateDir,
        network: this.#network,
        authorize: this.#hooks.authorizeLogin?.bind(this.#hooks),
        events: {
          started: (session) => this.#tellHook(() => this.#hooks.onSessionStart?.(sessionFacts(session))),
          ended: (session, reason) => this.#tellHook(() => this.#hooks.onSessionEnd?.(sessionFacts(session), reason)),
        },
        clock,
        log,
      }),
      (opened) => opened.close(),
    );
    const supervisor = undo.adopt(await this.#openSupervisor(config), (opened) => opened.close());
    const useCredentials = async (_what: string, pem: ServerCredentials) => worker.useCredentials(pem);
    if (supervisor.deniedLog !== undefined) auth.readDenied(supervisor.deniedLog);
    await auth.begin({ supervisor, port: supervisor.port, useCredentials });
    const dialler = new Dialler({
      network: this.#network,
      userOf: (key) => auth.userOf(key, WORKER_ID),
      config: () => auth.config,
      judge: (facts) => auth.judgeStream(facts, WORKER_ID),
    });
    const worker = new WorkerService({
      config,
      auth: auth.gateOf(WORKER_ID),
      proxy: config.proxy.enabled ? { auth: auth.proxyGateOf(WORKER_ID), dialler } : undefined,
      devices: supervisor.devices,
      clock,
      log,
    });
    auth.connect(WORKER_ID, worker);
    worker.restore(auth.sessionsOf(WORKER_ID));
    undo.defer(() => worker.stop('shutdown'));
    await worker.start(supervisor.takeListenSocket(), auth.credentials);
    auth.start();
    const running = { auth, supervisor, worker, since: clock.wallNow() };
    const observers = undo.use(await this.#openObservers(running));
    this.#running = { ...running, observers };
    undo.move();
    this.#log.info('gateway runs', {
      component: 'server',
      listen: this.#listenText(),
      congestion: supervisor.congestion,
      devices: devicesOf(supervisor)
        .map(({ name }) => name)
        .join(' '),
    });
    // The gateway runs: what cannot be looked at is no reason to stop it.
    await auth.lookAtEnds();
    const { warnings } = await supervisor.report();
    for (const warning of [...warnings, ...(await auth.warnings({ ends: false }))]) {
      this.#log.warn(warning, { component: 'server' });
    }
  }

  /** Where it listens. @throws {VpnError} ERR_NOT_RUNNING */
  get address(): { address: string; port: number } {
    const { worker } = this.#live();
    return worker.address;
  }

  /** Resolves when the gateway has stopped. */
  get stopped(): Promise<void> {
    return this.#stopped.promise;
  }

  /** Tells the clients, ends everything, and puts the host back as it was. Idempotent. */
  async stop(): Promise<void> {
    const running = this.#running;
    if (running === undefined) return;
    if (this.#isStopping) return await this.#stopped.promise;
    this.#isStopping = true;
    await using undo = new AsyncDisposableStack();
    undo.defer(() => {
      this.#running = undefined;
      this.#stopped.resolve();
    });
    undo.defer(() => running.auth.close());
    undo.defer(() => running.supervisor.close());
    undo.defer(() => running.worker.stop('shutdown'));
    undo.defer(() => running.auth.pause());
    undo.use(running.observers);
  }

  /**
   * Uses a new configuration without dropping a connection; certificates are read again in any case.
   *
   * @returns the keys whose change took effect, and those that need a restart and were left as they are
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE, ERR_HOST_APPLY; then the old configuration
   *   stays
   */
  async reload(
    next: GatewayConfig = this.#live().auth.config,
  ): Promise<{ applied: string[]; needsRestart: string[]; warnings: string[] }> {
    return await this.#live().auth.reload(next);
  }

  /** Users, devices, profiles and certificates. @throws {VpnError} ERR_NOT_RUNNING */
  get administration(): Administration {
    return this.#live().auth.administration;
  }

  /** The whole control API; `readConfig` says where `server.reload` finds the new configuration. */
  api(readConfig: () => Promise<GatewayConfig>): GatewayApi {
    const running = this.#live();
    const { auth, supervisor } = running;
    const facts = this.#factsOf(running);
    const stop = (): void => {
      this.stop().catch((error: unknown) => this.#log.error('the gateway did not stop cleanly', { error }));
    };
    const replaceWorkers = async () => {
      throw new VpnError('ERR_UNSUPPORTED', 'this gateway is one process: there is no worker to replace');
    };
    return gatewayApi(auth, facts, {
      readConfig,
      stop,
      report: () => supervisor.report(),
      replaceWorkers,
      admin: () => this.#page,
    });
  }

  /**
   * Serves the admin page, if `admin.listen` says where, until the gateway stops.
   *
   * @returns the port; undefined where there is no page
   * @throws {VpnError} ERR_CONFLICT when it is served already
   */
  async openAdmin(readConfig: () => Promise<GatewayConfig>): Promise<number | undefined> {
    if (this.#page !== undefined) throw new VpnError('ERR_CONFLICT', 'the admin page is served already');
    const opened = await this.#live().auth.openAdmin(this.api(readConfig), this.#version, undefined);
    this.#page = opened;
    return opened?.port;
  }

  /** Where metrics are answered; undefined: nowhere. */
  get metricsPort(): number | undefined {
    return this.#live().observers.port;
  }

  /** Sends metrics and spans to the collector now. Never rejects. */
  async sendTelemetry(): Promise<void> {
    await this.#live().observers.send();
  }

  async #openObservers(running: Omit<Running, 'observers'>): Promise<Observers> {
    const { auth: service, supervisor } = running;
    const [facts, at] = [this.#factsOf(running), metricsEndpoint(this.#config)];
    return await Observers.open({ service, facts, report: () => supervisor.report(), at, log: this.#log });
  }

  #factsOf({ supervisor, worker, since }: Omit<Running, 'observers'>): GatewayFacts {
    return {
      version: this.#version,
      pid: process.pid,
      since,
      listen: endpointText(worker.address),
      congestion: supervisor.congestion,
      devices: devicesOf(supervisor),
    };
  }

  /** The live sessions, oldest first. */
  get sessions(): SessionInfo[] {
    const { auth, worker } = this.#live();
    return auth.withProxies(worker.sessions);
  }

  /**
   * Ends the session whose id starts with `id`, hexadecimal.
   *
   * @throws {VpnError} ERR_NOT_FOUND; ERR_BAD_REQUEST when several sessions match
   */
  kick(id: string): number {
    return kick(this.#live().auth, id);
  }

  #live(): Running {
    if (this.#running === undefined) throw new VpnError('ERR_NOT_RUNNING', 'the gateway does not run');
    return this.#running;
  }

  async #openSupervisor(config: GatewayConfig): Promise<Supervisor> {
    if (this.#tun === 'kernel') {
      return await HostSupervisor.open({ config, pool: openPool(config), stateDir: this.#stateDir, log: this.#log });
    }
    return DetachedSupervisor.open({ config, devices: this.#tun === 'none' ? undefined : this.#tun });
  }

  #listenText(): string {
    return endpointText(this.address);
  }

  #tellHook(call: () => void): void {
    try {
      call();
    } catch (error) {
      this.#log.error('a session hook failed', { component: 'server', error });
    }
  }
}

function endpointText({ address, port }: { address: string; port: number }): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

function devicesOf({ devices: { primary, plain } }: Supervisor): GatewayStatus['devices'] {
  return [primary, plain].flatMap((device) =>
    device === undefined
      ? []
      : [{ name: device.name, superPackets: device.superPackets, udpSegmentation: device.uso, mtu: device.mtu }],
  );
}

function sessionFacts({ key, user, device, lease, remote, traffic }: StartedSession): SessionFacts {
  const { receivedBytes, sentBytes } = traffic;
  return { id: key.slice(0, 8), user, device, addresses: addressesOf(lease), remote, receivedBytes, sentBytes };
}
