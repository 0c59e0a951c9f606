/**
 * Auth as a whole: the store and everything that decides with it.
 *
 * Hides accounts, sources, bans, certificates, accounting, the audit record and how a new configuration takes effect from
 * whoever runs auth, in this process or in one of its own. It is opened before the host is touched, gets to know the
 * supervisor in `begin`, and workers as they come. It opens no port and reads no packet.
 */

import type { Clock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { nodePrimitives } from '../../base/primitives.ts';
import type { GatewayApi, SessionInfo } from '../../control/operations.ts';
import type { AccountSource } from '../../identity/backends/open.ts';
import { usersNamed } from '../../identity/steps/certificate.ts';
import { formatIp, parseIp } from '../../ip/address.ts';
import type { Lease, LeasePool } from '../../ip/lease-pool.ts';
import { LogReader } from '../../os/nflog.ts';
import { Feature } from '../../protocol/features.ts';
import { AuditEvent } from '../../store/audit.ts';
import type { AuditRetention } from '../../store/audit-retention.ts';
import { noTracer, SpanQueue, type Tracer } from '../../telemetry/tracing.ts';
import { loadServerCredentials } from '../../transport/credentials.ts';
import { isSameCertificate } from '../../transport/revocation.ts';
import type { ServerCredentials } from '../../transport/tls.ts';
import { AdminPage, namesOfPage } from '../admin/admin.ts';
import type { PageCertificates } from '../admin/entrances.ts';
import { loadPage, type PageFiles, type PageSource, pageFiles } from '../admin/files.ts';
import { History } from '../admin/history.ts';
import { type Administration, auditInfo, type Concerned, createAdministration } from '../administration.ts';
import { CertificateEnds, endOfSession, endsOf } from '../certificate-ends.ts';
import { checkCertificateStep, type GatewayConfig, parseEndpoint } from '../config.ts';
import { type CredentialFiles, type CredentialKind, credentialFiles } from '../credential-files.ts';
import { Credentials, type Loaded, readCredentials } from '../credentials.ts';
import { type DialNetwork, HostDialNetwork } from '../dialler.ts';
import type { HookName, HookSession } from '../hooks.ts';
import type {
  AuthPort,
  DetachedSession,
  ProxyKey,
  ProxyPort,
  RefusedSource,
  SupervisorPort,
  WorkerPort,
} from '../ipc/ports.ts';
import { type PolicyFiles, policyFiles } from '../policy-files.ts';
import { openPool, prefixesOf } from '../pool.ts';
import { planReload } from '../reload.ts';
import { GatewayState } from '../state.ts';
import type { StreamFacts } from '../stream-policy.ts';
import { checkTap } from '../tap-config.ts';
import { UnixUsers } from '../unix-users.ts';
import { AccessDesk, holderOf, type ReadyPolicy } from './access-desk.ts';
import { Accounting } from './accounting.ts';
import { AuditFile } from './audit-file.ts';
import { Auth } from './auth.ts';
import { Draining, type DrainProgress } from './draining.ts';
import { Expiry } from './expiry.ts';
import { HasherProcess } from './hasher.ts';
import { type HookCounts, Hooks } from './hooks.ts';
import type { LiveSession, StartedSession } from './live-session.ts';
import {
  argon2Of,
  banPolicyOf,
  checkLoginSources,
  type Follow,
  insecureSources,
  loginProviderOf,
  pageProviderOf,
  passwordSourcesOf,
} from './login-config.ts';
import { type Collector, readCollector } from './observers.ts';
import { PolicyChanges } from './policy-changes.ts';
import { type OperatorWay, PolicyDesk } from './policy-desk.ts';
import type { ProxyLoginInfo } from './proxy-grants.ts';
import { Recheck } from './recheck.ts';
import type { LoginFacts, RightsHolder } from './rights.ts';
import type { SessionEvents } from './session-book.ts';
import { SessionList } from './session-list.ts';
import { TrafficDesk } from './traffic-desk.ts';
import { readWebhookTargets, Webhooks, type WebhookTarget } from './webhooks.ts';
import { WorkerGate } from './worker-gate.ts';

export interface AuthServiceOptions {
  config: GatewayConfig;
  /** How many workers there are; each leases from a share of the pool. */
  workers: number;
  /** The pool that the gateway started with; default: that of the configuration. */
  firstPool?: readonly string[] | undefined;
  /** Undefined: users and sessions live in memory. */
  stateDir: string | undefined;
  /** Reads certificates; default: from the files themselves. */
  files?: CredentialFiles | undefined;
  /** Reads the policy file; default: from the file itself. */
  policyFiles?: PolicyFiles | undefined;
  /** Looks names of a policy up; default: as this machine does. */
  network?: Pick<DialNetwork, 'resolve'> | undefined;
  /** Another way to the folder of certificates. */
  certs?: string | undefined;
  /** Script and style of the admin page; default: loaded where there is a page. */
  page?: PageSource | undefined;
  /** Has the last word on a login that the steps have accepted. */
  authorize?: ((login: LoginFacts) => boolean | Promise<boolean>) | undefined;
  /** Told of sessions as their clients are. */
  events?: SessionEvents;
  clock: Clock;
  log: Logger;
}

/** What auth needs once there is a host. */
export interface AuthHost {
  readonly supervisor: SupervisorPort;
  /** The port that clients connect to. */
  readonly port: number;
  /** Puts certificates in force in every worker. */
  useCredentials(what: CredentialKind, credentials: ServerCredentials): Promise<void>;
}

/** What the admin page is made of, read while that is possible. */
interface PageMaterial {
  readonly files: PageFiles;
  readonly credentials: { readonly cert: string; readonly key: string };
}

interface Begun {
  host: AuthHost;
  credentials: Credentials;
  ends: CertificateEnds;
  expiry: Expiry;
  recheck: Recheck;
  administration: Administration;
}

export class AuthService {
  readonly #log: Logger;
  readonly #clock: Clock;
  readonly #state: GatewayState;
  readonly #hasher: HasherProcess;
  readonly #backends: ReadonlyMap<string, AccountSource>;
  readonly #files: CredentialFiles;
  readonly #accounting: Accounting;
  readonly #auditFile: AuditFile | undefined;
  readonly #retention: AuditRetention;
  readonly #pool: LeasePool;
  readonly #auth: Auth;
  readonly #sessionList = new SessionList(
    () => this.workers.values(),
    () => this.#auth.sessions.all.length,
  );
  readonly #access: AccessDesk;
  readonly #policyDesk: PolicyDesk;
  readonly #policyChanges: PolicyChanges;
  readonly #traffic: TrafficDesk;
  #deniedLog: LogReader | undefined;
  /** The operator's own functions. */
  #hooks: Hooks | undefined;
  readonly #hookCounts = new Map<HookName, HookCounts>();
  /** As it was read before there was a host. */
  #policy: ReadyPolicy | undefined;
  readonly #workers = new Map<number, WorkerPort>();
  readonly #starts = new Map<number, number>();
  readonly #page: PageMaterial | undefined;
  /** The last hour. */
  readonly history: History;
  /** Programs that are told what goes into the audit record. */
  readonly webhooks: Webhooks;
  /** Where metrics and spans are sent; undefined: nowhere. */
  readonly collector: Collector | undefined;
  readonly tracer: Tracer;
  /** Those that wait to be sent; undefined: none are made. */
  readonly spans: SpanQueue | undefined;
  #admin: AdminPage | undefined;
  #loaded: Loaded;
  #config: GatewayConfig;
  #begun: Begun | undefined;
  readonly #draining: Draining;

  /**
   * Reads and checks everything; the host is not touched.
   *
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_FILE, ERR_CONFIG_VALUE, ERR_STORE
   */
  static async open(options: AuthServiceOptions): Promise<AuthService> {
    const { config, clock, log, stateDir } = options;
    await using undo = new AsyncDisposableStack();
    const pool = openPool(config, options.workers, options.firstPool);
    const hasher = undo.use(new HasherProcess({ log, parameters: argon2Of(config) }));
    const state = undo.use(
      stateDir === undefined
        ? await GatewayState.inMemory(clock, hasher)
        : await GatewayState.open(stateDir, clock, {
            hasher,
            config,
            ...(options.certs === undefined ? {} : { certs: options.certs }),
          }),
    );
    checkLoginSources(config);
    checkCertificateStep(config);
    const backends = undo.adopt(await state.openSources(config, clock), closeAll);
    const own = state.hasPki ? { caPem: state.pki.caPem, crlFile: state.pki.paths.crl } : undefined;
    const files = options.files ?? credentialFiles(own);
    const loaded = await readCredentials(config, files, clock.wallNow());
    const names = new HostDialNetwork();
    const access = new AccessDesk({
      pool,
      files: options.policyFiles ?? policyFiles,
      resolve: (name) => (options.network ?? names).resolve(name),
      groups: async () => new Map((await state.accounts.list()).map(({ name, groups }) => [name, groups])),
      clock,
      log,
    });
    const policy = await access.read(config);
    const page = await readPage(config, state, options.page);
    const webhooks = await readWebhookTargets(config);
    const collector = await readCollector(config);
    const path = config.audit.file;
    const auditFile =
      path === undefined
        ? undefined
        : await AuditFile.open({ audit: state.audit, path, clock, log, format: auditInfo });
    undo.move();
    const parts = {
      pool,
      hasher,
      state,
      backends,
      files,
      loaded,
      auditFile,
      access,
      policy,
      page,
      webhooks,
      collector,
    };
    return new AuthService(options, parts);
  }

  private constructor(
    options: AuthServiceOptions,
    parts: {
      pool: LeasePool;
      hasher: HasherProcess;
      state: GatewayState;
      backends: ReadonlyMap<string, AccountSource>;
      files: CredentialFiles;
      loaded: Loaded;
      auditFile: AuditFile | undefined;
      access: AccessDesk;
      policy: ReadyPolicy | undefined;
      page: PageMaterial | undefined;
      webhooks: readonly WebhookTarget[];
      collector: Collector | undefined;
    },
  ) {
    const { config, clock, log } = options;
    const { state } = parts;
    this.#config = config;
    this.#clock = clock;
    this.#log = log;
    this.#state = state;
    this.#pool = parts.pool;
    this.#hasher = parts.hasher;
    this.#backends = parts.backends;
    this.#files = parts.files;
    this.#loaded = parts.loaded;
    this.#auditFile = parts.auditFile;
    this.#retention = state.retention(config, clock, log);
    this.#access = parts.access;
    this.#policy = parts.policy;
    this.#page = parts.page;
    this.collector = parts.collector;
    this.spans = parts.collector !== undefined && config.otlp.traces ? new SpanQueue() : undefined;
    this.tracer = this.spans ?? noTracer;
    this.webhooks = new Webhooks({ targets: parts.webhooks, audit: state.audit, record: state.webhooks, clock, log });
    this.history = new History({
      sessions: () => this.listSessions(),
      logins: () => ({
        accepted: state.audit.count(AuditEvent.loginAccepted),
        refused: state.audit.count(AuditEvent.loginRefused),
      }),
      clock,
      failed: (error) => log.warn('the last hour has a gap', { component: 'admin', error }),
    });
    state.bans.policy = banPolicyOf(config);
    state.bans.onBan = ({ kind, key, failures, until }) => {
      log.warn('banned for failed logins', { component: 'auth', kind, key, failures, until: instantOf(until) });
      this.#tellRefused();
    };
    state.passwordSources = passwordSourcesOf(config, state, this.#backends, this.#follow);
    this.#configureLogins(config);
    const accountants = [...this.#backends].flatMap(([name, source]) =>
      'report' in source ? [[name, source] as const] : [],
    );
    this.#accounting = new Accounting({
      accountants: new Map(accountants),
      sourceOf: (user) => state.sources.sourceOf(user),
      clock,
      log,
    });
    this.#traffic = new TrafficDesk({
      rulesOf: (session) => parts.access.trafficRulesOf(holderOf(session)),
      rulesOfStreams: ({ holder }) => parts.access.trafficRulesOf(holder()),
      groupLimits: () => parts.access.inForce?.selector.policy.groupLimits ?? new Map(),
      classes: () => parts.access.inForce?.selector.policy.classes ?? [],
      sessions: () => this.#auth.sessions.all,
      streams: () => this.#auth.proxies.carriers,
      noticesChanged: (sessions) => this.#auth.sessions.resettle(sessions),
      refused: () => this.#recheckStreams(),
      usage: state.usage,
      mtu: config.mtu,
      clock,
      log,
    });
    this.#auth = new Auth({
      config,
      authenticator: state.authenticator,
      proxyLogins: state.proxyLogins,
      sessions: state.sessions,
      pool: parts.pool,
      primitives: nodePrimitives,
      clock,
      log,
      access: parts.access,
      traffic: this.#traffic,
      authorize: options.authorize,
      askHook: async (login) => {
        const hooks = this.#hooks;
        return hooks === undefined ? undefined : await this.tracer.span('hook onLogin', {}, () => hooks.login(login));
      },
      isRevoked: (certificate) => this.#begun?.credentials.isRevoked(certificate) !== false,
      isCertificateOf: (user, certificate) => {
        const [named, another] = certificate === undefined ? [] : usersNamed(certificate, state.certificateMapping);
        return named === user && another === undefined;
      },
      standing: async (user) => {
        const source = await state.sources.sourceOf(user);
        return await this.#begun?.recheck.check({ user, source });
      },
      events: {
        started: (session) => {
          this.#accounting.opened(accounted(session));
          this.#hooks?.sessionStarted(hookSession(session));
          options.events?.started(session);
        },
        ended: (session, reason) => {
          this.#accounting.ended(accounted(session), reason);
          const { receivedBytes, sentBytes } = session.traffic;
          this.#hooks?.sessionEnded({ ...hookSession(session), reason, receivedBytes, sentBytes });
          options.events?.ended(session, reason);
        },
      },
    });
    parts.access.attach({
      sessions: () => this.#auth.sessions.all,
      resettled: (sessions) => this.#auth.sessions.resettle(sessions),
      regrouped: (groups) => this.#auth.proxies.regroup(groups),
      changed: () => {
        this.#keepAddresses();
        this.#traffic.refresh();
        this.#recheckStreams();
      },
    });
    this.#policyDesk = new PolicyDesk({ access: parts.access, auth: this.#auth, clock });
    this.unixUsers = new UnixUsers({ config, audit: state.audit, groupsOf: (name) => state.operators.groupsOf(name) });
    this.#policyChanges = new PolicyChanges({
      access: parts.access,
      files: options.policyFiles ?? policyFiles,
      versions: state.policyVersions,
      config: () => this.#config,
      ask: (policy) => this.#askPolicy(this.#hooks, policy),
      enforce: (policy) => this.#enforce(policy),
      changed: (policy, losers) => this.#policyChanged(policy, losers),
    });
    this.#draining = new Draining({
      count: () => this.#auth.sessions.count(Feature.drain),
      ask: (seconds) => {
        for (const worker of this.#workers.values()) worker.drain(seconds);
      },
      clock,
      log,
    });
  }

  get config(): GatewayConfig {
    return this.#config;
  }

  /** What the policy denies, and what is in force of it. */
  get policy(): PolicyDesk {
    return this.#policyDesk;
  }

  /** Users of this machine, at the control socket. */
  readonly unixUsers: UnixUsers;

  /** Changes of the policy by operators. */
  get policyChanges(): PolicyChanges {
    return this.#policyChanges;
  }

  /** The certificates in force; the key is empty where this process may not see it. */
  get credentials(): ServerCredentials {
    return (this.#begun?.credentials.loaded ?? this.#loaded).pem;
  }

  /**
   * Takes up the sessions on record; then workers may come.
   *
   * @throws {VpnError} ERR_STORE, ERR_HOST_APPLY
   */
  async begin(host: AuthHost): Promise<void> {
    const auth = this.#auth;
    const state = this.#state;
    const clock = this.#clock;
    const log = this.#log;
    this.#pool.restore(
      (await state.sessions.lastLeases()).map(({ device, lease4, lease6 }) => [device, leaseOf(lease4, lease6)]),
    );
    auth.sessions.supervisor = host.supervisor;
    this.#access.supervisor = host.supervisor;
    // Before anybody else can have their addresses.
    await this.#traffic.open();
    this.#hooks = await this.#startHooks(this.#config);
    await auth.sessions.restore();
    await this.#askPolicy(this.#hooks, this.#policy);
    await this.#enforce(this.#policy);
    const credentials = new Credentials({
      loaded: this.#loaded,
      files: this.#files,
      clock,
      log,
      use: (what, pem) => host.useCredentials(what, pem),
      revoked: () => endRevoked(),
    });
    const endRevoked = () => {
      this.#admin?.endCertificates((certificate) => credentials.isRevoked(certificate));
      auth.closeSessions(
        ({ certificate }) => certificate !== undefined && credentials.isRevoked(certificate),
        'revoked',
      );
    };
    const ends = new CertificateEnds({
      find: async () => [
        // The first that names a certificate knows best what to do.
        ...(state.hasPki ? endsOf(await state.pki.show()) : []),
        ...credentials.ends(),
        ...auth.sessions.certificates.map(endOfSession),
      ],
      clock,
      log,
    });
    const recheck = new Recheck({
      sources: {
        withSessions: async () => {
          // Programs that use the proxy by an access token have no session on record, nor do people at the admin page.
          const users = new Set([...auth.proxies.users, ...(this.#admin?.users ?? [])]);
          const [recorded, others] = await Promise.all([state.sources.withSessions(), state.sources.among([...users])]);
          return [...new Map([...recorded, ...others].map((account) => [account.user, account])).values()];
        },
        forgetOrphans: () => state.sources.forgetOrphans(),
      },
      backends: this.#backends,
      intervalSeconds: this.#config.login.recheckSeconds,
      end: (user) => {
        this.#admin?.endUser(user);
        return auth.closeSessions((session) => session.user === user, 'revoked');
      },
      regroup: this.#follow,
      audit: state.audit,
      clock,
      log,
    });
    const expiry = new Expiry({
      expiredUsers: async () => [
        ...(await state.sessions.expiredUsers()),
        ...(await state.proxyLogins.expired(auth.proxies.users)),
      ],
      closeSessions: (concerned, reason) => auth.closeSessions(concerned, reason),
      clock,
      log,
    });
    await this.webhooks.start();
    await state.recordPolicy(this.#config, this.#policy?.digest);
    await this.#policyChanges.keep(this.#policy);
    const administration = this.#administration(host.port, credentials);
    this.#begun = { host, credentials, ends, expiry, recheck, administration };
    // Of the sessions from before a restart.
    endRevoked();
  }

  /** An account of an outside source is in the groups that the source says. @throws {VpnError} ERR_STORE, ERR_HOST_APPLY */
  readonly #follow: Follow = async (user, source, groups) => {
    if (!(await this.#state.accounts.follow(user, source, groups))) return;
    const ended = await this.#auth.endInsufficient(user);
    await this.#access.regroup();
    const facts = { component: 'auth', user, source, ended };
    this.#log.info('the groups of an account have changed at its source', facts);
  };

  /** @throws {VpnError} as `AccessDesk.enforce` */
  #enforce(policy: ReadyPolicy | undefined): Promise<LiveSession[]> {
    const rules = policy?.selector.policy.rules.length ?? 0;
    return this.tracer.span('policy change', { 'customvpn.rules': rules }, () => this.#access.enforce(policy));
  }

  /** How often calls of the operator's functions came to what. */
  get hookCounts(): ReadonlyMap<HookName, HookCounts> {
    return this.#hookCounts;
  }

  /** @throws {VpnError} ERR_CONFIG_FILE */
  async #startHooks({ hook }: GatewayConfig): Promise<Hooks | undefined> {
    const { file, timeoutSeconds, onFailure } = hook;
    if (file === undefined) return undefined;
    const [clock, log] = [this.#clock, this.#log];
    const counts = this.#hookCounts;
    return await Hooks.start({ file, timeoutMs: timeoutSeconds * 1000, onFailure, counts, clock, log });
  }

  /** @throws {VpnError} ERR_CONFIG_VALUE when the operator's function does not want the policy */
  async #askPolicy(hooks: Hooks | undefined, policy: ReadyPolicy | undefined): Promise<void> {
    const former = this.#access.inForce?.digest;
    if (hooks === undefined || policy?.digest === former) return;
    const { file, text, digest } = policy ?? { file: null, text: null, digest: null };
    const { allow, reason } = await hooks.policy({ file, text, digest, formerDigest: former ?? null });
    if (!allow) throw new VpnError('ERR_CONFIG_VALUE', `policyFile: ${reason}`, { details: { key: 'policyFile' } });
  }

  #administration(port: number, credentials: Credentials): Administration {
    const auth = this.#auth;
    const administration = createAdministration(
      this.#state,
      () => ({ ...this.#config, port }),
      {
        endSessions: (concerned) => {
          const { user, certificate } = concerned;
          if (user !== undefined) this.#admin?.endUser(user);
          if (certificate !== undefined) {
            this.#admin?.endCertificates((shown) => isSameCertificate(shown, certificate));
          }
          return auth.closeSessions((session) => isConcerned(session, concerned), 'revoked');
        },
        endPageSessions: (user) => this.#admin?.endUser(user),
        endInsufficient: async (user) => {
          const ended = await auth.endInsufficient(user);
          await this.#access.regroup();
          return ended;
        },
        reloadCertificates: () => credentials.reload(),
        credentials: () => credentials.loaded.pem,
      },
      () => this.#clock.wallNow(),
    );
    return {
      ...administration,
      'server.unban': async (input) => {
        const answer = await administration['server.unban'](input);
        this.#tellRefused();
        return answer;
      },
    };
  }

  /** Shows what packets the kernel denies by the policy, from its log; the descriptor stays the caller's, while this lives. */
  readDenied(fd: number): void {
    this.#deniedLog = new LogReader(fd, (packet) => this.#policyDesk.denials.packet(packet));
  }

  /** Begins what is done again and again. */
  start(): void {
    const { recheck, expiry, credentials, ends } = this.#live();
    recheck.start();
    expiry.start();
    credentials.start();
    ends.start();
    this.#accounting.start();
    this.#access.start();
    this.#traffic.start();
    this.history.start();
    this.#retention.start();
  }

  /** What a worker may ask. */
  gateOf(worker: number): AuthPort {
    return new WorkerGate(this.#auth, worker, this.tracer);
  }

  /** What a worker may ask for those who use the gateway as a proxy. */
  proxyGateOf(worker: number): ProxyPort {
    return this.#auth.proxies.gateOf(worker);
  }

  /** What the policy says of a stream that a worker wants; undefined: there is no policy. */
  judgeStream(facts: StreamFacts, worker: number): boolean | undefined {
    const user = this.#auth.proxies.userOf(facts.key, worker);
    if (user !== undefined && this.#traffic.isRefused(user)) return false;
    return this.#policyDesk.judgeStream(facts, worker);
  }

  /** Whose key of a worker it is; undefined: nobody's any more. */
  userOf(key: ProxyKey, worker: number): string | undefined {
    return this.#auth.proxies.userOf(key, worker);
  }

  /** A worker is there. Its sessions are in `sessionsOf`. */
  connect(worker: number, port: WorkerPort): void {
    this.#workers.set(worker, port);
    this.#starts.set(worker, (this.#starts.get(worker) ?? 0) + 1);
    this.#auth.sessions.connect(worker, port);
    this.#auth.proxies.connect(worker, port);
    this.#traffic.connect(worker, port);
    port.limit(this.#config.limits);
    port.refuse(this.#refused());
    const { secondsLeft } = this.#draining;
    if (secondsLeft !== undefined) port.drain(secondsLeft);
  }

  /** The sessions that wait for their clients at a worker. */
  sessionsOf(worker: number): DetachedSession[] {
    return this.#auth.sessions.sessionsOf(worker);
  }

  /** A worker is gone, and its connections with it. @throws {VpnError} ERR_STORE */
  async disconnect(worker: number): Promise<void> {
    this.#workers.delete(worker);
    this.#auth.proxies.disconnect(worker);
    this.#traffic.disconnect(worker);
    await this.#auth.sessions.disconnect(worker);
  }

  /** The workers that are there, by number. */
  get workers(): ReadonlyMap<number, WorkerPort> {
    return this.#workers;
  }

  /** How many leases are held, and how many there can be. */
  get pool(): { readonly leased: number; readonly size: number } {
    return this.#pool;
  }

  /**
   * Serves the admin page with these operations; undefined where the configuration has none.
   *
   * @throws {VpnError} ERR_PORT_TAKEN
   */
  async openAdmin(
    api: GatewayApi,
    version: string,
    at: { readonly fd: number } | undefined,
  ): Promise<AdminPage | undefined> {
    const where = at ?? parseEndpoint(this.#config.admin.listen ?? '');
    if (this.#page === undefined || where === undefined) return undefined;
    this.#admin = new AdminPage({
      state: this.#state,
      api,
      config: () => this.#config,
      version,
      ...this.#page,
      provider: () => pageProviderOf(this.#config, this.#state, this.#backends, this.#follow),
      certificates: this.#pageCertificates(),
      clock: this.#clock,
      log: this.#log,
    });
    await this.#admin.listen(where);
    return this.#admin;
  }

  /** Whose client certificates open the page; undefined: nobody's. */
  #pageCertificates(): PageCertificates | undefined {
    if (!this.#config.admin.clientCertificates) return undefined;
    const { ca } = this.credentials;
    if (ca === undefined) return undefined;
    return {
      ca,
      mapping: () => this.#state.certificateMapping,
      isRevoked: (certificate) => this.#begun?.credentials.isRevoked(certificate) !== false,
    };
  }

  /** Users, devices, profiles and certificates. */
  get administration(): Administration {
    return this.#live().administration;
  }

  get hasPki(): boolean {
    return this.#state.hasPki;
  }

  /** Ends the session whose key begins like this; returns how many there are that do, and ends none if several do. */
  kick(beginning: string): number {
    return this.#auth.sessions.kick(beginning) || this.#auth.proxies.kick(beginning);
  }

  /** The live sessions of all workers, and of the proxy. */
  async listSessions(): Promise<SessionInfo[]> {
    return this.withProxies(await this.#sessionList.read());
  }

  /** Sessions with what goes through the proxy, and the programs that use it by an access token; oldest first. */
  withProxies(sessions: readonly SessionInfo[]): SessionInfo[] {
    const { proxies } = this.#auth;
    const live = new Map(this.#auth.sessions.all.map((session) => [session.key.slice(0, 8), session]));
    const own = sessions.map((session) => {
      const known = live.get(session.id);
      const networks = known === undefined ? [] : this.#policyDesk.networksOf(known);
      const { streams, sentBytes, receivedBytes } = proxies.trafficOf(session.id);
      return {
        ...session,
        ...(networks.length === 0 ? {} : { networks }),
        streams,
        sentBytes: session.sentBytes + sentBytes,
        receivedBytes: session.receivedBytes + receivedBytes,
      };
    });
    return [...own, ...proxies.logins.map(proxyLoginInfo)].toSorted(
      (a, b) => Date.parse(a.since) - Date.parse(b.since),
    );
  }

  /**
   * Lets nobody new in, asks the clients to move to another server, and has the gateway stop when no session is left, or
   * after so many seconds. May be said again, with another time.
   */
  drain(seconds: number, stop: () => void): DrainProgress {
    this.#auth.isDraining = true;
    return this.#draining.begin(seconds, stop);
  }

  /** Undefined: the gateway is not drained. */
  get drainProgress(): DrainProgress | undefined {
    return this.#draining.progress;
  }

  /** When the first of each kind ends that the gateway's own TLS rests on, milliseconds since the Unix epoch. */
  certificateEnds(): Map<string, number> {
    const ends = new Map<string, number>();
    for (const { kind, at } of this.#live().credentials.ends()) {
      if (kind !== undefined) ends.set(kind, Math.min(at, ends.get(kind) ?? Number.POSITIVE_INFINITY));
    }
    return ends;
  }

  /** Banned for failed logins, by kind. */
  get banCounts(): Record<string, number> {
    const counts: Record<string, number> = { source: 0, user: 0, device: 0 };
    for (const { kind, banned } of this.#state.bans.list()) if (banned) counts[kind] = (counts[kind] ?? 0) + 1;
    return counts;
  }

  /** Reads something small. @throws {VpnError} ERR_STORE */
  async lookAtStore(): Promise<void> {
    await this.#state.audit.list({ limit: 1 });
  }

  /** How often each worker has come. */
  get workerStarts(): ReadonlyMap<number, number> {
    return this.#starts;
  }

  get isDraining(): boolean {
    return this.#auth.isDraining;
  }

  wallNow(): number {
    return this.#clock.wallNow();
  }

  /** Says what ends soon, in the log. Never rejects. */
  async lookAtEnds(): Promise<void> {
    await this.#live().ends.look();
  }

  /** What an operator should know of accounts and certificates before it breaks; `ends`: also what ends soon. */
  async warnings(options: { ends: boolean }): Promise<string[]> {
    const { credentials, ends } = this.#live();
    const drain = this.#draining.progress;
    return [
      ...(drain === undefined
        ? []
        : [`the gateway is drained: it lets nobody new in, and stops by ${instantOf(drain.until)}`]),
      ...insecureSources(this.#config),
      ...this.#access.warnings,
      ...[credentials.problem].flatMap((problem) => problem ?? []),
      ...(options.ends ? (await ends.soon()).map(({ text }) => text) : []),
    ];
  }

  /**
   * Uses a new configuration without dropping a connection; certificates are read again in any case.
   *
   * @returns the keys whose change took effect, and those that need a restart and were left as they are
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE, ERR_HOST_APPLY; then the old configuration
   *   stays
   */
  async reload(
    next: GatewayConfig,
    via?: OperatorWay,
  ): Promise<{ applied: string[]; needsRestart: string[]; warnings: string[] }> {
    return await this.tracer.span('reload', {}, async (span) => {
      const reloaded = await this.#policyChanges.inTurn(() => this.#reload(next, via));
      span.set({ 'customvpn.applied': reloaded.applied.join(' ') });
      return reloaded;
    });
  }

  async #reload(
    next: GatewayConfig,
    via: OperatorWay | undefined,
  ): Promise<{ applied: string[]; needsRestart: string[]; warnings: string[] }> {
    const { host, credentials, recheck, ends } = this.#live();
    const former = this.#config;
    const { merged, applied, needsRestart, isOfHost, ...plan } = planReload(former, next);
    const loaded = await readCredentials(merged, this.#files, this.#clock.wallNow());
    checkLoginSources(merged);
    checkCertificateStep(merged);
    checkTap(merged);
    const policy = await this.#access.read(merged);
    await using undo = new AsyncDisposableStack();
    const formerHooks = this.#hooks;
    const hooks = undo.adopt(await this.#startHooks(merged), (started) => started?.stop());
    await this.#askPolicy(hooks, policy);
    const formerPolicy = this.#access.inForce;
    const losers = await this.#enforce(policy);
    let isHostChanged = false;
    try {
      if (isOfHost) await host.supervisor.update(merged);
      isHostChanged = isOfHost;
      await credentials.take(loaded);
    } catch (error) {
      if (isHostChanged) await host.supervisor.takeBack(former);
      await this.#enforce(formerPolicy);
      throw error;
    }
    undo.move();
    this.#hooks = hooks;
    formerHooks?.stop().catch((error: unknown) => this.#log.warn('the former hooks did not end', { error }));
    if (applied.includes('pool')) {
      this.#pool.grow(prefixesOf(merged.pool));
      // Some of them may be in what has been added.
      this.#keepAddresses();
    }
    host.supervisor.reloaded();
    const isOtherMapping = JSON.stringify(merged.login.certificate) !== JSON.stringify(former.login.certificate);
    this.#config = merged;
    this.#configureLogins(merged);
    if (isOtherMapping) {
      this.#admin?.endCertificates(() => true);
      this.#auth.closeSessions(({ steps }) => steps.includes('certificate'), 'revoked');
    }
    this.#hasher.parameters = argon2Of(merged);
    this.#state.bans.policy = banPolicyOf(merged);
    for (const worker of this.#workers.values()) worker.limit(merged.limits);
    recheck.reconfigure(merged.login.recheckSeconds);
    if (applied.length > 0) await this.#auth.reconfigure(merged);
    this.#recheckStreams();
    const unrecorded = await this.#record(merged, policy);
    await ends.look();
    this.#log.info('reloaded', { component: 'server', applied: applied.join(' ') || 'certificates' });
    const desk = this.#policyDesk;
    const warnings = [
      ...plan.warnings,
      ...unrecorded,
      ...desk.cutOff(losers),
      ...desk.taken(),
      ...desk.cutsWay(via, merged),
    ];
    for (const warning of warnings) this.#log.warn(warning, { component: 'server' });
    return { applied, needsRestart, warnings };
  }

  /** What is in force goes on record; returns what an operator should know where that fails. */
  async #record(config: GatewayConfig, policy: ReadyPolicy | undefined): Promise<string[]> {
    try {
      await this.#state.recordPolicy(config, policy?.digest);
      await this.#policyChanges.keep(policy);
      return [];
    } catch (error) {
      return [`what was reloaded is in force, and could not be put on record: ${toVpnError(error).message}`];
    }
  }

  /** Operators have put another policy in force; streams that it does not have are ended by `access`. */
  async #policyChanged({ digest }: ReadyPolicy, losers: readonly LiveSession[]): Promise<string[]> {
    await this.#state.recordPolicy(this.#config, digest);
    this.#log.info('another policy is in force', { component: 'policy', digest: digest.slice(0, 16) });
    const warnings = [...this.#policyDesk.cutOff(losers), ...this.#policyDesk.taken()];
    for (const warning of warnings) this.#log.warn(warning, { component: 'server' });
    return warnings;
  }

  /** Nothing is decided by time any more. Before the workers stop. */
  async pause(): Promise<void> {
    await this.#draining.stop();
    await this.history.stop();
    await this.#retention.stop();
    await this.#admin?.close();
    const begun = this.#begun;
    if (begun === undefined) return;
    await begun.ends.stop();
    await begun.credentials.stop();
    await begun.expiry.stop();
    await begun.recheck.stop();
    await this.#access.stop();
  }

  /** Ends everything; the last reports are sent, the store is closed. After the workers have stopped. */
  async close(): Promise<void> {
    await using undo = new AsyncDisposableStack();
    undo.use(this.#hasher);
    undo.use(this.#state);
    undo.defer(() => this.webhooks.stop());
    undo.defer(() => this.#hooks?.stop());
    undo.defer(() => this.#auditFile?.close());
    undo.defer(() => closeAll(this.#backends));
    undo.defer(() => this.#accounting.stop());
    undo.defer(async () => await this.#deniedLog?.[Symbol.asyncDispose]());
    undo.defer(() => this.#traffic.stop());
  }

  /** Nobody else gets the addresses that the policy gives to some. */
  #keepAddresses(): void {
    this.#pool.keep(this.#access.inForce?.selector.policy.addresses.flatMap(({ addresses }) => addresses) ?? []);
  }

  #recheckStreams(): void {
    for (const worker of this.#workers.values()) worker.recheckStreams();
  }

  #configureLogins(config: GatewayConfig): void {
    const state = this.#state;
    state.authenticator.rules = config.login;
    state.certificateMapping = config.login.certificate;
    state.devicesPerUser = config.accounts.devicesPerUser;
    if (state.passwordSources !== undefined) {
      state.passwordSources = { ...state.passwordSources, forStrangers: config.login.backend };
    }
    state.loginProvider = loginProviderOf(config, state, this.#backends, this.#follow);
  }

  #refused(): RefusedSource[] {
    return this.#state.bans
      .list()
      .flatMap(({ kind, key, until, banned }) => (kind === 'source' && banned ? [{ source: key, until }] : []));
  }

  #tellRefused(): void {
    const refused = this.#refused();
    for (const worker of this.#workers.values()) worker.refuse(refused);
  }

  #live(): Begun {
    if (this.#begun === undefined) throw new VpnError('ERR_NOT_RUNNING', 'the gateway does not run');
    return this.#begun;
  }
}

/** @throws {VpnError} ERR_CONFIG_VALUE, ERR_CERT_FILE, ERR_UNSUPPORTED */
async function readPage(
  { admin, ...config }: GatewayConfig,
  state: GatewayState,
  source: PageSource | undefined,
): Promise<PageMaterial | undefined> {
  if (admin.listen === undefined) return undefined;
  const files = pageFiles(source ?? (await loadPage()));
  const { certFile, keyFile } = admin;
  if (certFile !== undefined && keyFile !== undefined) {
    return { files, credentials: await loadServerCredentials({ certFile, keyFile }) };
  }
  if (!state.hasPki) {
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      'admin.certFile: expected a certificate and admin.keyFile, because this gateway has no authority of its own',
    );
  }
  return { files, credentials: await state.pki.pageCertificate(namesOfPage({ ...config, admin })) };
}

async function closeAll(backends: ReadonlyMap<string, AccountSource>): Promise<void> {
  await Promise.all([...backends.values()].map((backend) => backend.close()));
}

function isConcerned(session: RightsHolder, { user, device, certificate, proven, accessToken }: Concerned): boolean {
  if (accessToken !== undefined) {
    return session.token === accessToken.id || (session.token === '' && session.user === accessToken.user);
  }
  if (user !== undefined && session.user === user) return proven === undefined || session.steps.includes(proven);
  if (device !== undefined && session.device === device) return true;
  return (
    certificate !== undefined &&
    session.certificate !== undefined &&
    isSameCertificate(session.certificate, certificate)
  );
}

function accounted(session: StartedSession) {
  return {
    // The short id may come again in the life of a server that keeps accounts.
    id: `${session.key.slice(0, 8)}-${Math.trunc(session.openedAt).toString(36)}`,
    user: session.user,
    // Asked for only where somebody keeps accounts.
    get addresses() {
      return addressesOf(session.lease);
    },
    get remote() {
      return session.remote;
    },
    counters: session.traffic,
  };
}

function hookSession(session: StartedSession): HookSession {
  const { key, user, device, lease, remote, openedAt } = session;
  const addresses = addressesOf(lease);
  return { id: key.slice(0, 8), user, device, addresses, remote, openedAt: instantOf(openedAt) };
}

/** As text. */
export function addressesOf({ v4, v6 }: Lease): string[] {
  return [v4, v6].flatMap((address) => (address === undefined ? [] : [formatIp(address)]));
}

function leaseOf(v4: string | undefined, v6: string | undefined): Lease {
  return { ...(v4 === undefined ? {} : { v4: parseIp(v4) }), ...(v6 === undefined ? {} : { v6: parseIp(v6) }) };
}

function proxyLoginInfo(login: ProxyLoginInfo): SessionInfo {
  const { token, user, remote, connections, since, streams, receivedBytes, sentBytes } = login;
  return {
    id: token.slice(0, 8),
    user,
    device: '',
    addresses: [],
    peer: remote,
    waiting: connections === 0,
    superPackets: false,
    channels: connections,
    streams,
    since: new Date(since).toISOString(),
    receivedBytes,
    sentBytes,
    roundTripMs: null,
  };
}

function instantOf(at: number): string {
  return new Date(at).toISOString();
}
