/**
 * A VPN gateway as one object: construct, start, stop.
 *
 * Wires supervisor, auth and worker together in one process and hides that they are three. It runs the command line's
 * gateway, and embeds in another program: with the kernel's TUN devices, with devices of the caller's, or with none, when
 * it carries no packets but logins and echoes.
 */

import { isIP } from 'node:net';
import { type Clock, systemClock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { type Logger, silentLogger } from '../base/log.ts';
import { nodePrimitives } from '../base/primitives.ts';
import type { GatewayApi, GatewayStatus, SessionInfo } from '../control/operations.ts';
import type { AccountSource } from '../identity/backends/open.ts';
import type { BanPolicy } from '../identity/bans.ts';
import type { Argon2Parameters } from '../identity/passwords.ts';
import type { CertificateFacts } from '../identity/pki.ts';
import { usersNamed } from '../identity/steps/certificate.ts';
import type { LoginProvider } from '../identity/steps/oidc.ts';
import { formatIp, formatPrefix, type Prefix, parseIp, parsePrefix, prefixContains } from '../ip/address.ts';
import { DROP_REASON_NAMES } from '../ip/drop-reason.ts';
import type { Lease, LeasePool } from '../ip/lease-pool.ts';
import type { CloseReason } from '../protocol/messages.ts';
import type { SessionCertificate } from '../store/sessions.ts';
import { Listener } from '../transport/listener.ts';
import type { QueueBudget } from '../transport/queue-budget.ts';
import { isSameCertificate } from '../transport/revocation.ts';
import { type Administration, auditInfo, type Concerned, createAdministration } from './administration.ts';
import { type AccountedSession, Accounting } from './auth/accounting.ts';
import { AuditFile } from './auth/audit-file.ts';
import { Auth, type LoginFacts, type RightsHolder } from './auth/auth.ts';
import { Expiry } from './auth/expiry.ts';
import { HasherProcess } from './auth/hasher.ts';
import { Recheck } from './auth/recheck.ts';
import { CertificateEnds, type End } from './certificate-ends.ts';
import {
  checkCertificateStep,
  type GatewayConfig,
  type GatewayOptions,
  gatewayConfigSchema,
  RELOADABLE_KEYS,
  resolveFiles,
} from './config.ts';
import { Credentials, readCredentials } from './credentials.ts';
import { openPool } from './init.ts';
import { GatewayState } from './state.ts';
import { DetachedSupervisor } from './supervisor/detached.ts';
import { HostSupervisor, type Supervisor } from './supervisor/supervisor.ts';
import type { Session } from './worker/session.ts';
import { Worker, type WorkerDevices } from './worker/worker.ts';

/** What a device of the caller's is and does. */
export type { PacketBuffer, TunDevice, TunReader } from '../os/tun.ts';

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
  hooks?: ServerHooks;
  log?: Logger;
  clock?: Clock;
  /** Reported by `status`. */
  version?: string;
};

/** Everything that exists only while the gateway runs. */
interface Running {
  state: GatewayState;
  hasher: HasherProcess;
  auditFile: AuditFile | undefined;
  supervisor: Supervisor;
  auth: Auth;
  worker: Worker;
  listener: Listener;
  credentials: Credentials;
  ends: CertificateEnds;
  expiry: Expiry;
  pool: LeasePool;
  administration: Administration;
  /** What has to do with outside sources of accounts. */
  outside: { backends: ReadonlyMap<string, AccountSource>; recheck: Recheck; accounting: Accounting };
  since: number;
}

export class VpnServer {
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #hooks: ServerHooks;
  readonly #tun: 'kernel' | 'none' | WorkerDevices;
  readonly #stateDir: string | undefined;
  readonly #version: string;
  readonly #stopped = Promise.withResolvers<void>();
  #config: GatewayConfig;
  #running: Running | undefined;
  #isStopping = false;

  /** @throws {VpnError} ERR_CONFIG_VALUE */
  constructor(options: ServerConfig) {
    const { stateDir, tun, hooks, log, clock, version, ...config } = options;
    const parsed = gatewayConfigSchema.safeParse(config);
    if (!parsed.success) {
      const issue = parsed.error.issues[0];
      throw new VpnError('ERR_CONFIG_VALUE', `${issue?.path.join('.') ?? 'options'}: ${issue?.message ?? 'not valid'}`);
    }
    this.#config = stateDir === undefined ? parsed.data : resolveFiles(parsed.data, stateDir);
    this.#stateDir = stateDir;
    this.#tun = tun ?? 'kernel';
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
    const pool = openPool(config);
    const hasher = undo.use(new HasherProcess({ log: this.#log, parameters: argon2Of(config) }));
    const state = undo.use(
      this.#stateDir === undefined
        ? await GatewayState.inMemory(clock, hasher)
        : await GatewayState.open(this.#stateDir, clock, { hasher, config }),
    );
    checkLoginSources(config);
    checkCertificateStep(config);
    state.bans.policy = banPolicyOf(config);
    state.bans.onBan = ({ kind, key, failures, until }) => {
      this.#log.warn('banned for failed logins', { component: 'auth', kind, key, failures, until: instantOf(until) });
    };
    state.authenticator.rules = config.login;
    state.certificateMapping = config.login.certificate;
    state.devicesPerUser = config.accounts.devicesPerUser;
    const backends = undo.adopt(await state.openSources(config, clock), closeAll);
    state.passwordSources = {
      find: (name) => {
        const source = backends.get(name);
        return source !== undefined && 'authenticate' in source ? source : undefined;
      },
      forStrangers: config.login.backend,
      provision: (user, source, groups) => state.accounts.provision(user, source, groups),
    };
    state.loginProvider = loginProviderOf(config, state, backends);
    const own = state.hasPki ? { caPem: state.pki.caPem, crlFile: state.pki.paths.crl } : undefined;
    const loaded = await readCredentials(config, own, clock.wallNow());
    const supervisor = undo.adopt(await this.#openSupervisor(config, pool), (opened) => opened.close());
    pool.restore(
      (await state.sessions.lastLeases()).map(({ device, lease4, lease6 }) => [device, leaseOf(lease4, lease6)]),
    );
    const auth = new Auth({
      workerId: WORKER_ID,
      config,
      authenticator: state.authenticator,
      sessions: state.sessions,
      pool,
      primitives: nodePrimitives,
      clock,
      log: this.#log,
      authorize: this.#hooks.authorizeLogin?.bind(this.#hooks),
      isRevoked: (certificate) => credentials.isRevoked(certificate),
      isCertificateOf: (user, certificate) => {
        const [named, another] = certificate === undefined ? [] : usersNamed(certificate, state.certificateMapping);
        return named === user && another === undefined;
      },
      standing: async (user) => await recheck.check({ user, source: await state.sources.sourceOf(user) }),
    });
    const accountants = [...backends].flatMap(([name, source]) =>
      'report' in source ? [[name, source] as const] : [],
    );
    const accounting = new Accounting({
      accountants: new Map(accountants),
      sourceOf: (user) => state.sources.sourceOf(user),
      clock,
      log: this.#log,
    });
    const worker = new Worker({
      id: WORKER_ID,
      config,
      auth,
      supervisor,
      devices: supervisor.devices,
      primitives: nodePrimitives,
      clock,
      log: this.#log,
      events: {
        sessionOpened: (session) => {
          accounting.opened(accounted(session));
          this.#tellHook(() => this.#hooks.onSessionStart?.(sessionFacts(session)));
        },
        sessionEnded: (session, reason) => {
          accounting.ended(accounted(session), reason);
          this.#tellHook(() => this.#hooks.onSessionEnd?.(sessionFacts(session), reason));
        },
      },
    });
    auth.worker = worker;
    // Before anybody else can have their addresses.
    await worker.restore(await auth.restore());
    const listener = undo.adopt(
      await Listener.open({
        fd: supervisor.takeListenSocket(),
        credentials: loaded.pem,
        requireClientAuth: config.requireClientAuth,
        minVersion: config.minVersion,
        isProxy: isWithinAny(config.proxyFrom),
        proxyHeaderTimeoutMs: config.limits.proxyHeaderSeconds * 1000,
        handshakeTimeoutMs: config.limits.handshakeSeconds * 1000,
        maxHandshakes: config.limits.handshakesInFlight,
        maxConnectionsPerSource: config.limits.connectionsPerSource,
        isRefused: (address) => state.bans.isRefused(address),
        greetWithoutAlpn: config.greetWithoutAlpn,
        dataQueueBytes: config.data.queueBytes,
        queues: worker.queues,
        onChannel: (channel) => worker.accept(channel),
        log: this.#log,
        clock,
      }),
      (opened) => opened.close(),
    );
    const credentials = new Credentials({
      loaded,
      own,
      clock,
      log: this.#log,
      use: (pem) => listener.reload(pem),
      revoked: () => endRevoked(),
    });
    const endRevoked = () =>
      auth.closeSessions(
        ({ certificate }) => certificate !== undefined && credentials.isRevoked(certificate),
        'revoked',
      );
    // Of the sessions from before a restart.
    endRevoked();
    const ends = new CertificateEnds({
      find: async () => [
        // The first that names a certificate knows best what to do.
        ...(state.hasPki ? endsOf(await state.pki.show()) : []),
        ...credentials.ends(),
        ...auth.certificates.map(endOfSession),
      ],
      clock,
      log: this.#log,
    });
    const recheck = new Recheck({
      sources: state.sources,
      backends,
      intervalSeconds: config.login.recheckSeconds,
      end: (user) => auth.closeSessions((session) => session.user === user, 'revoked'),
      audit: state.audit,
      clock,
      log: this.#log,
    });
    const expiry = new Expiry({
      expiredUsers: () => state.sessions.expiredUsers(),
      closeSessions: (concerned, reason) => auth.closeSessions(concerned, reason),
      clock,
      log: this.#log,
    });
    const auditFile =
      config.audit.file === undefined
        ? undefined
        : await AuditFile.open({ audit: state.audit, path: config.audit.file, log: this.#log, format: auditInfo });
    worker.start();
    recheck.start();
    expiry.start();
    credentials.start();
    ends.start();
    accounting.start();
    const administration = createAdministration(
      state,
      () => ({ ...this.#config, port: this.address.port }),
      {
        endSessions: (concerned) => auth.closeSessions((session) => isConcerned(session, concerned), 'revoked'),
        endInsufficient: (user) => auth.endInsufficient(user),
        reloadCertificates: () => credentials.reload(),
      },
      () => clock.wallNow(),
    );
    const since = clock.wallNow();
    const outside = { backends, recheck, accounting };
    this.#running = {
      state,
      auditFile,
      hasher,
      supervisor,
      auth,
      worker,
      listener,
      credentials,
      ends,
      expiry,
      pool,
      administration,
      outside,
      since,
    };
    undo.move();
    this.#log.info('gateway runs', {
      component: 'server',
      listen: this.#listenText(),
      congestion: supervisor.congestion,
      devices: [supervisor.devices.primary, supervisor.devices.plain].flatMap((device) => device?.name ?? []).join(' '),
    });
    // The gateway runs: what cannot be looked at is no reason to stop it.
    await ends.look();
    const warnings = await this.#hostWarnings().catch((error: unknown) => [
      `the host could not be looked at: ${String(error)}`,
    ]);
    for (const warning of warnings) this.#log.warn(warning, { component: 'server' });
  }

  /** Where it listens. @throws {VpnError} ERR_NOT_RUNNING */
  get address(): { address: string; port: number } {
    return this.#live().listener.address;
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
    undo.use(running.hasher);
    undo.use(running.state);
    undo.defer(() => running.auditFile?.close());
    undo.defer(() => closeAll(running.outside.backends));
    undo.defer(() => running.outside.accounting.stop());
    undo.defer(() => running.supervisor.close());
    undo.defer(() => running.worker.stop('shutdown'));
    undo.defer(() => running.outside.recheck.stop());
    undo.defer(() => running.expiry.stop());
    undo.defer(() => running.listener.close());
    undo.defer(() => running.credentials.stop());
    undo.defer(() => running.ends.stop());
  }

  /**
   * Uses a new configuration without dropping a connection; certificates are read again in any case.
   *
   * @returns the keys whose change took effect, and those that need a restart and were left as they are
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_HOST_APPLY; then the old configuration stays
   */
  async reload(next: GatewayConfig = this.#config): Promise<{ applied: string[]; needsRestart: string[] }> {
    const running = this.#live();
    const keys = Object.keys(next) as (keyof GatewayConfig)[];
    const changed = keys.filter((key) => JSON.stringify(next[key]) !== JSON.stringify(this.#config[key]));
    const applied = changed.filter((key) => RELOADABLE_KEYS.includes(key));
    const merged = { ...this.#config, ...Object.fromEntries(applied.map((key) => [key, next[key]])) };
    const { state } = running;
    const own = state.hasPki ? { caPem: state.pki.caPem, crlFile: state.pki.paths.crl } : undefined;
    const loaded = await readCredentials(merged, own, this.#clock.wallNow());
    checkLoginSources(merged);
    checkCertificateStep(merged);
    if (applied.some((key) => key === 'routes' || key === 'services')) await running.supervisor.update(merged);
    running.credentials.take(loaded);
    const isOtherMapping = JSON.stringify(merged.login.certificate) !== JSON.stringify(this.#config.login.certificate);
    this.#config = merged;
    running.state.authenticator.rules = merged.login;
    if (isOtherMapping) {
      running.state.certificateMapping = merged.login.certificate;
      running.auth.closeSessions(({ steps }) => steps.includes('certificate'), 'revoked');
    }
    if (running.state.passwordSources !== undefined) {
      running.state.passwordSources = { ...running.state.passwordSources, forStrangers: merged.login.backend };
    }
    running.state.loginProvider = loginProviderOf(merged, running.state, running.outside.backends);
    running.state.devicesPerUser = merged.accounts.devicesPerUser;
    running.hasher.parameters = argon2Of(merged);
    running.outside.recheck.reconfigure(merged.login.recheckSeconds);
    if (applied.length > 0) await running.auth.reconfigure(merged);
    await running.ends.look();
    this.#log.info('reloaded', { component: 'server', applied: applied.join(' ') || 'certificates' });
    return { applied, needsRestart: changed.filter((key) => !applied.includes(key)) };
  }

  /** Users, devices, profiles and certificates. @throws {VpnError} ERR_NOT_RUNNING */
  get administration(): Administration {
    return this.#live().administration;
  }

  /** The whole control API; `readConfig` says where `server.reload` finds the new configuration. */
  api(readConfig: () => Promise<GatewayConfig>): GatewayApi {
    return {
      ...this.administration,
      'server.status': () => this.#status(),
      'server.reload': async () => await this.reload(await readConfig()),
      'server.stop': async () => {
        const sessions = this.#live().worker.sessions.length;
        setImmediate(() => {
          this.stop().catch((error: unknown) => this.#log.error('the gateway did not stop cleanly', { error }));
        });
        return { sessions };
      },
      'session.list': async () => this.sessions,
      'session.kick': async ({ id }) => ({ kicked: this.kick(id) }),
    };
  }

  /** The live sessions, oldest first. */
  get sessions(): SessionInfo[] {
    return this.#live().worker.sessions.map(sessionInfo);
  }

  /**
   * Ends the session whose id starts with `id`, hexadecimal.
   *
   * @throws {VpnError} ERR_NOT_FOUND; ERR_BAD_REQUEST when several sessions match
   */
  kick(id: string): number {
    const matching = this.#live().worker.sessions.filter(({ granted }) => granted.key.startsWith(id.toLowerCase()));
    const [session, another] = matching;
    if (session === undefined)
      throw new VpnError('ERR_NOT_FOUND', `no session starts with ${id}; see: customvpn server sessions`);
    if (another !== undefined)
      throw new VpnError('ERR_BAD_REQUEST', `${matching.length} sessions start with ${id}; give more digits`);
    session.close('admin');
    return 1;
  }

  #live(): Running {
    if (this.#running === undefined) throw new VpnError('ERR_NOT_RUNNING', 'the gateway does not run');
    return this.#running;
  }

  async #openSupervisor(config: GatewayConfig, pool: LeasePool): Promise<Supervisor> {
    if (this.#tun === 'kernel') {
      return await HostSupervisor.open({ config, pool, stateDir: this.#stateDir, log: this.#log });
    }
    return DetachedSupervisor.open({ config, devices: this.#tun === 'none' ? undefined : this.#tun });
  }

  async #status(): Promise<GatewayStatus> {
    const { worker, listener, supervisor, pool, state, since, administration } = this.#live();
    const { primary, plain } = supervisor.devices;
    const { failed, ...connections } = listener.counters;
    const failures = Object.entries(failed).map(([code, count]) => [`handshake_${code.toLowerCase()}`, count ?? 0]);
    return {
      version: this.#version,
      pid: process.pid,
      since: new Date(since).toISOString(),
      listen: [this.#listenText()],
      names: [...this.#config.names],
      devices: [primary, plain].flatMap((device) =>
        device === undefined
          ? []
          : [{ name: device.name, superPackets: device.superPackets, udpSegmentation: device.uso, mtu: device.mtu }],
      ),
      congestionControl: supervisor.congestion,
      sessions: worker.sessions.length,
      waiting: worker.sessions.filter(({ isDetached }) => isDetached).length,
      pool: this.#config.pool.map((prefix) => ({
        prefix: formatPrefix(parsePrefix(prefix)),
        used: pool.leased,
        size: String(pool.size),
      })),
      certificates: state.hasPki ? await administration['pki.show']({}) : [],
      counters: {
        ...connections,
        ...Object.fromEntries(failures),
        handshakes: listener.handshakeCount,
        ...worker.counters,
        ...queueCounters(worker.queues),
        ...Object.fromEntries(
          Object.entries(worker.refusals).map(([code, count]) => [`refused_${code.toLowerCase()}`, count]),
        ),
        ...(await supervisor.counters()),
      },
      drops: Object.fromEntries(DROP_REASON_NAMES.map((name, reason) => [name, worker.drops[reason] ?? 0])),
      warnings: await this.#warnings(),
    };
  }

  /** What an operator should know before it breaks. */
  async #warnings(): Promise<string[]> {
    const { ends } = this.#live();
    return [...(await this.#hostWarnings()), ...(await ends.soon()).map(({ text }) => text)];
  }

  async #hostWarnings(): Promise<string[]> {
    const { supervisor, credentials } = this.#live();
    return [
      ...(await supervisor.warnings()),
      ...insecureSources(this.#config),
      ...[credentials.problem].flatMap((problem) => problem ?? []),
    ];
  }

  #listenText(): string {
    const { address, port } = this.address;
    return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
  }

  #tellHook(call: () => void): void {
    try {
      call();
    } catch (error) {
      this.#log.error('a session hook failed', { component: 'server', error });
    }
  }
}

async function closeAll(backends: ReadonlyMap<string, AccountSource>): Promise<void> {
  await Promise.all([...backends.values()].map((backend) => backend.close()));
}

/** Where the step `oidc` sends people; undefined: nowhere. */
function loginProviderOf(
  { login, limits }: GatewayConfig,
  { accounts }: GatewayState,
  sources: ReadonlyMap<string, AccountSource>,
): LoginProvider | undefined {
  const backend = login.provider === undefined ? undefined : sources.get(login.provider);
  if (backend === undefined || !('begin' in backend)) return undefined;
  return {
    backend,
    seconds: limits.providerSeconds,
    provision: (user, source, groups) => accounts.provision(user, source, groups),
  };
}

/** @throws {VpnError} ERR_CONFIG_VALUE */
function checkLoginSources(config: GatewayConfig): void {
  checkLoginBackend(config);
  const { login, backends } = config;
  const lists = [login.steps, login.enrol, ...Object.values(login.groups).map(({ steps }) => steps)];
  if (login.provider === undefined && !lists.some((steps) => steps.includes('oidc'))) return;
  const name = login.provider ?? '';
  if (Object.hasOwn(backends, name) && backends[name]?.kind === 'oidc') return;
  const known = Object.entries(backends).flatMap(([key, { kind }]) => (kind === 'oidc' ? [key] : []));
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `login.provider: the step oidc needs a source of kind oidc, got "${name}"; configured are: ${known.join(', ') || 'none'}`,
    { details: { key: 'login.provider' } },
  );
}

function checkLoginBackend({ login, backends }: GatewayConfig): void {
  if (login.backend === undefined) return;
  const kind = Object.hasOwn(backends, login.backend) ? backends[login.backend]?.kind : undefined;
  if (kind === 'ldap' || kind === 'radius') return;
  const known = Object.keys(backends).join(', ') || 'none';
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `login.backend: expected a source that judges passwords (kind ldap or radius), got "${login.backend}"; configured are: ${known}`,
    { details: { key: 'login.backend' } },
  );
}

function banPolicyOf({ limits }: GatewayConfig): BanPolicy {
  return { ...limits, isExempt: isWithinAny(limits.allow) };
}

function isWithinAny(networks: readonly string[]): (address: string) => boolean {
  const prefixes = networks.map(parsePrefix);
  return (address) => prefixes.length > 0 && isWithin(prefixes, address);
}

function isWithin(prefixes: readonly Prefix[], text: string): boolean {
  // A link-local peer's address has its zone behind it.
  const plain = text.replace(/%.*$/, '');
  if (isIP(plain) === 0) return false;
  const address = parseIp(plain);
  return prefixes.some((prefix) => prefixContains(prefix, address));
}

function instantOf(at: number): string {
  return new Date(at).toISOString();
}

function argon2Of({ accounts: { argon2 } }: GatewayConfig): Argon2Parameters {
  return { memory: argon2.memoryKiB, passes: argon2.passes, parallelism: argon2.parallelism };
}

/** Sources that are asked in a way that others can read or forge. */
function insecureSources(config: GatewayConfig): string[] {
  return Object.entries(config.backends).flatMap(([name, backend]) => {
    const isOpen =
      (backend.kind === 'ldap' && !backend.startTls && backend.urls.some((url) => url.startsWith('ldap:'))) ||
      (backend.kind === 'oidc' && backend.issuer.startsWith('http:'));
    if (!isOpen) return [];
    return [
      `the source of accounts ${name} is asked without TLS: everybody on the way can read the passwords and forge the answers`,
    ];
  });
}

/** What the built-in authority has made and is of use: not what was revoked, superseded or has ended unused. */
function endsOf(certificates: readonly CertificateFacts[]): End[] {
  return certificates.flatMap(({ role, name, serial, notAfter, revoked, isNewest }) => {
    if (revoked || !isNewest) return [];
    const remedy =
      role === 'ca'
        ? 'make another gateway and new profiles'
        : `renew it with: customvpn pki renew${role === 'client' ? ` ${name}` : ''}`;
    return [{ key: serial, what: `the ${role} certificate of ${name}`, at: notAfter.getTime(), remedy }];
  });
}

function endOfSession({ name, serial, notAfter }: SessionCertificate): End {
  return { key: serial, what: `the client certificate ${serial} of ${name}, in use by a session,`, at: notAfter };
}

function accounted(session: Session): AccountedSession {
  return {
    // The short id may come again in the life of a server that keeps accounts.
    id: `${session.shortId}-${Math.trunc(session.since).toString(36)}`,
    user: session.user,
    addresses: addressesOf(session),
    get remote() {
      return session.remote;
    },
    counters: session.link.counters,
  };
}

function queueCounters({ counters, heldBytes }: QueueBudget): Record<string, number> {
  return {
    queue_memory_bytes: heldBytes,
    queue_marked_packets: counters.marked,
    queue_split_parts: counters.parts,
    queue_signals_by_length: counters.signalsByLength,
    queue_signals_by_time: counters.signalsByTime,
  };
}

function leaseOf(v4: string | undefined, v6: string | undefined): Lease {
  return { ...(v4 === undefined ? {} : { v4: parseIp(v4) }), ...(v6 === undefined ? {} : { v6: parseIp(v6) }) };
}

function isConcerned(session: RightsHolder, { user, device, certificate, proven }: Concerned): boolean {
  if (user !== undefined && session.user === user) return proven === undefined || session.steps.includes(proven);
  if (device !== undefined && session.device === device) return true;
  return (
    certificate !== undefined &&
    session.certificate !== undefined &&
    isSameCertificate(session.certificate, certificate)
  );
}

function addressesOf({ granted: { lease } }: Session): string[] {
  return [lease.v4, lease.v6].flatMap((address) => (address === undefined ? [] : [formatIp(address)]));
}

function sessionFacts(session: Session): SessionFacts {
  const { receivedBytes, sentBytes } = session.link.counters;
  const { user, device } = session.granted;
  return {
    id: session.shortId,
    user,
    device,
    addresses: addressesOf(session),
    remote: session.remote,
    receivedBytes,
    sentBytes,
  };
}

function sessionInfo(session: Session): SessionInfo {
  const { receivedBytes, sentBytes } = session.link.counters;
  return {
    id: session.shortId,
    user: session.user,
    device: session.granted.device,
    addresses: addressesOf(session),
    peer: session.remote,
    waiting: session.isDetached,
    superPackets: session.superPackets,
    channels: session.dataChannels,
    since: new Date(session.since).toISOString(),
    receivedBytes,
    sentBytes,
    roundTripMs: session.roundTripMs ?? null,
  };
}
