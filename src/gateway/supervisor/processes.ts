/**
 * A gateway of several processes: this one, auth with its hasher, and workers.
 *
 * Hides how they are started and joined, and what becomes of the gateway when one ends. This process keeps the rights and hears
 * nothing of the network: its input is the configuration and the messages of `ipc/messages`. A worker that ends is replaced
 * (`workers.ts`); when auth ends, all start again. The certificates' key goes from here to the workers; auth, which makes it where
 * the authority is built in, is not told of any other.
 */

import { chmodSync, existsSync, lchownSync, lstatSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { systemClock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { makeRoom } from '../../control/socket.ts';
import { landlockVersion } from '../../os/landlock.ts';
import { type Identity, Launcher } from '../../os/launcher.ts';
import { closeFd, openListenSocket } from '../../os/socket.ts';
import type { TunDescriptor } from '../../os/tun-linux.ts';
import { DescriptorSender, listenAtPath, socketPair } from '../../os/unix-socket.ts';
import type { ServerCredentials } from '../../transport/tls.ts';
import { loadPage, type PageSource } from '../admin/files.ts';
import { checkCertificateStep, type GatewayConfig, metricsEndpoint, parseEndpoint } from '../config.ts';
import {
  type CredentialKind,
  type CredentialTexts,
  credentialFiles,
  type OwnAuthority,
  readCredentialTexts,
} from '../credential-files.ts';
import type { Handlers } from '../ipc/channel.ts';
import { encodeNewcomer } from '../ipc/descriptors.ts';
import { authToSupervisor, LIMITS_OF_AUTH, supervisorToAuth } from '../ipc/messages.ts';
import { statePaths } from '../layout.ts';
import { mayEditPolicy } from '../policy-files.ts';
import { openPool } from '../pool.ts';
import { planReload, withHostKeys } from '../reload.ts';
import { isOpen } from '../unix-users.ts';
import { authFiles } from './auth-files.ts';
import { Child, descriptorsOfChild, programOf } from './child.ts';
import { openDeniedLog } from './host.ts';
import { identitiesOf } from './identities.ts';
import { LifeWatch } from './life-watch.ts';
import { openHost, type WorkerHost } from './open-host.ts';
import { PolicyStage } from './policy-stage.ts';
import { Trouble } from './trouble.ts';
import { Workers } from './workers.ts';

/** How long the processes may take to say goodbye. */
const AUTH_STOP_MS = 10_000;
const END_MS = 2000;

type AuthChild = Child<typeof supervisorToAuth, typeof authToSupervisor>;

export interface GatewayProcessesOptions {
  config: GatewayConfig;
  stateDir: string;
  /** How many workers. */
  workers: number;
  /** The configuration as it is written now. */
  readConfig(): Promise<GatewayConfig>;
  version: string;
  log: Logger;
  /** The gateway begins to stop. */
  stopping?(): void;
  /** What runs as a worker, in place of ours. */
  workerProgram?: ((worker: number) => [string, ...string[]]) | undefined;
  /** What runs as auth, in place of ours. */
  authProgram?: [string, ...string[]] | undefined;
}

export class GatewayProcesses {
  readonly #options: GatewayProcessesOptions;
  readonly #log: Logger;
  readonly #launcher: Launcher;
  readonly #identities: { auth: Identity; worker: Identity };
  readonly #control: { path: string; fd: number };
  /** The listening socket for those who watch the gateway. */
  readonly #metrics: number | undefined;
  /** What shows packets that the policy denies. */
  readonly #deniedLog: number | undefined;
  /** The listening socket of the admin page. */
  readonly #pageFd: number | undefined;
  /** Its script and style: auth can load neither. */
  readonly #page: Promise<PageSource | undefined>;
  readonly #own: OwnAuthority | undefined;
  readonly #stopped = Promise.withResolvers<void>();
  readonly #trouble: Trouble;
  readonly #life = new LifeWatch(systemClock);
  readonly #workers: Workers;
  #opened: WorkerHost | undefined;
  #hasStarted = false;
  #auth: { child: AuthChild; workers: DescriptorSender; fd: number; unwatch(): void } | undefined;
  #config: GatewayConfig;
  #next: GatewayConfig | undefined;
  /** What `apply` has replaced last. */
  #replaced: GatewayConfig | undefined;
  readonly #policy = new PolicyStage();
  #credentials: CredentialTexts;
  #lastRead: { texts: CredentialTexts; of: 'current' | 'next' } | undefined;
  #since = Date.now();
  #stopping: Promise<void> | undefined;
  /** When a drained gateway stops, monotonic. */
  #drainedAt: number | undefined;

  /**
   * Starts a gateway; resolves when clients can connect. On an error nothing stays.
   *
   * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_FILE, ERR_CONFIG_VALUE, ERR_PORT_TAKEN, ERR_PRIVILEGE,
   *   ERR_TUN_OPEN, ERR_HOST_APPLY, ERR_STORE, ERR_ALREADY_RUNNING
   */
  static async start(options: GatewayProcessesOptions): Promise<GatewayProcesses> {
    const { config, workers, log } = options;
    await using undo = new AsyncDisposableStack();
    const stateDir = resolve(options.stateDir);
    const paths = statePaths(stateDir);
    checkCertificateStep(config);
    const identities = identitiesOf(config);
    const pool = openPool(config, workers);
    const own = ownAuthority(paths.certs);
    const credentials = await readCredentialTexts(config, own, 'all');
    const launcher = await Launcher.open({ log });
    if (landlockVersion() === 0) {
      log.warn(
        'this kernel has no Landlock (Linux 5.13, lsm=landlock): auth is held from other files by its user alone',
        {
          component: 'supervisor',
        },
      );
    }
    await makeRoom(paths.control);
    handOver(paths.certs, identities.auth);
    const control = { path: paths.control, fd: listenAtPath(paths.control, isOpen(config)) };
    if (isOpen(config)) letThrough(paths.control, log);
    undo.defer(() => {
      closeFd(control.fd);
      rmSync(control.path, { force: true });
    });
    const watched = metricsEndpoint(config);
    const metrics = watched === undefined ? undefined : openListenSocket({ address: watched.host, port: watched.port });
    if (metrics !== undefined) undo.defer(() => closeFd(metrics.fd));
    const deniedLog = openDeniedLog(log);
    if (deniedLog !== undefined) undo.defer(() => closeFd(deniedLog));
    const page = parseEndpoint(config.admin.listen ?? '');
    const pageFd = page === undefined ? undefined : undo.adopt(openListenSocket({ ...page, backlog: 64 }).fd, closeFd);
    const gateway = new GatewayProcesses(
      { ...options, stateDir },
      { launcher, identities, control, metrics: metrics?.fd, pageFd, deniedLog, own, credentials },
    );
    undo.defer(() => gateway.#opened?.close());
    undo.defer(() => gateway.#end());
    // Loading their code is what takes longest.
    gateway.#spawnAll({ isCold: false });
    gateway.#life.start();
    const host = await openHost({ config, pool, workers, stateDir, log });
    gateway.#opened = host;
    await gateway.#startAll(() => host.configure());
    gateway.#hasStarted = true;
    undo.move();
    log.info('gateway runs', {
      component: 'server',
      listen: gateway.listen,
      congestion: host.congestion,
      devices: devicesOf(host)
        .map(({ name }) => name)
        .join(' '),
      workers,
    });
    return gateway;
  }

  private constructor(
    options: GatewayProcessesOptions,
    parts: {
      launcher: Launcher;
      identities: { auth: Identity; worker: Identity };
      control: { path: string; fd: number };
      metrics: number | undefined;
      deniedLog: number | undefined;
      pageFd: number | undefined;
      own: OwnAuthority | undefined;
      credentials: CredentialTexts;
    },
  ) {
    this.#options = options;
    this.#config = options.config;
    this.#log = options.log.child({ component: 'supervisor' });
    this.#launcher = parts.launcher;
    this.#identities = parts.identities;
    this.#control = parts.control;
    this.#metrics = parts.metrics;
    this.#deniedLog = parts.deniedLog;
    this.#pageFd = parts.pageFd;
    this.#page = parts.pageFd === undefined ? Promise.resolve(undefined) : loadPage();
    // It is said where it is waited for.
    this.#page.catch(() => {});
    this.#own = parts.own;
    this.#credentials = parts.credentials;
    this.#trouble = new Trouble(this.#log, () => this.#stopping !== undefined);
    this.#workers = new Workers({
      count: options.workers,
      config: options.config,
      identity: parts.identities.worker,
      launcher: parts.launcher,
      program: options.workerProgram,
      descriptorsOf: (worker) => this.#host.workers[worker],
      introduce: (...newcomer) => this.#introduce(...newcomer),
      credentials: () => this.#credentials.pem,
      isServing: () => this.#hasStarted && this.#stopping === undefined && this.#auth !== undefined,
      givenUp: (worker) => this.#host.closeSocket(worker),
      lost: () => {
        this.#log.error('no worker is left; the gateway stops');
        this.stop().catch((error: unknown) => this.#log.error('the gateway did not stop cleanly', { error }));
      },
      trouble: this.#trouble,
      life: this.#life,
      log: this.#log,
    });
  }

  get #host(): WorkerHost {
    if (this.#opened === undefined) throw new VpnError('ERR_INVARIANT', 'the host has not been opened');
    return this.#opened;
  }

  /** Address and port that clients connect to. */
  get listen(): string {
    const { address } = this.#options.config;
    return `${address.includes(':') ? `[${address}]` : address}:${this.#host.port}`;
  }

  /** Resolves when the gateway has stopped. */
  get stopped(): Promise<void> {
    return this.#stopped.promise;
  }

  /** Reads the configuration again. @throws {VpnError} as `AuthService.reload` */
  async reload(): Promise<void> {
    await this.#auth?.child.channel.call('reload', {});
  }

  /** Tells the clients, ends every process, and puts the host back as it was. Idempotent. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop().finally(() => this.#stopped.resolve());
    return this.#stopping;
  }

  async #stop(): Promise<void> {
    this.#options.stopping?.();
    await using undo = new AsyncDisposableStack();
    undo.defer(() => rmSync(this.#control.path, { force: true }));
    undo.defer(() => closeFd(this.#control.fd));
    undo.defer(() => {
      for (const fd of [this.#metrics, this.#pageFd, this.#deniedLog]) if (fd !== undefined) closeFd(fd);
    });
    undo.defer(() => clearJournal(statePaths(this.#options.stateDir).store));
    undo.defer(() => this.#host.close());
    undo.defer(() => this.#end());
    const auth = this.#auth?.child;
    await auth?.channel.call('pause', {}, AUTH_STOP_MS).catch(() => {});
    await this.#workers.stop();
    await auth?.channel.call('stop', {}, AUTH_STOP_MS).catch(() => {});
  }

  /** Ends all processes. */
  async #end(): Promise<void> {
    this.#stopping ??= Promise.resolve();
    this.#life.stop();
    await this.#workers.close();
    await this.#auth?.child.end(END_MS);
    if (this.#auth !== undefined) closeFd(this.#auth.fd);
    this.#auth = undefined;
  }

  /** Starts auth and all workers, which load their code side by side. */
  #spawnAll({ isCold }: { isCold: boolean }): void {
    this.#startAuth();
    this.#workers.spawn({ isCold });
  }

  /** Joins what has been started, and meanwhile makes the host ready. */
  async #startAll(makeReady: () => Promise<void>): Promise<void> {
    const { config: first, workers, stateDir: state, version } = this.#options;
    const auth = this.#auth?.child;
    if (auth === undefined) throw new VpnError('ERR_INVARIANT', 'auth has ended before anything could begin');
    const prepare = async (): Promise<void> => {
      const page = await this.#page;
      const start = {
        // As a reload has left it.
        config: this.#config,
        firstPool: [...first.pool],
        workers,
        state,
        identity: this.#identities.auth,
        showsDenied: this.#deniedLog !== undefined,
        ...(page === undefined ? {} : { page }),
      };
      await auth.whileAlive(auth.channel.call('prepare', start));
    };
    await Promise.all([makeReady(), prepare(), this.#workers.prepare()]);
    const facts = {
      version,
      pid: process.pid,
      since: this.#since,
      listen: this.listen,
      port: this.#host.port,
      congestion: this.#host.congestion,
      devices: devicesOf(this.#host).map(deviceFacts),
    };
    await auth.whileAlive(auth.channel.call('begin', { facts, ...this.#drain }));
    await this.#workers.join();
    await auth.whileAlive(auth.channel.call('serve', {}));
  }

  get #drain(): { drainSeconds?: number } {
    if (this.#drainedAt === undefined) return {};
    return { drainSeconds: Math.max(0, Math.round((this.#drainedAt - systemClock.now()) / 1000)) };
  }

  #startAuth(): void {
    this.#policy.clear();
    const [near, far] = socketPair('packets');
    const { stateDir, authProgram = programOf('auth') } = this.#options;
    const { certs } = statePaths(stateDir);
    const files = authFiles(this.#config, stateDir);
    const inherited = [
      far,
      this.#control.fd,
      ...[this.#metrics, this.#pageFd, this.#deniedLog].filter((fd) => fd !== undefined),
    ];
    const child: AuthChild = new Child({
      name: 'auth',
      command: this.#launcher.commandAsRoot(authProgram, { ...files, descriptors: descriptorsOfChild(inherited) }),
      cwd: existsSync(certs) ? certs : '/',
      descriptors: inherited,
      out: supervisorToAuth,
      in: authToSupervisor,
      handlers: this.#authHandlers(),
      limits: LIMITS_OF_AUTH,
      ended: (why) => this.#authEnded(child, why),
      log: this.#log,
    });
    closeFd(far);
    const lost = (why: string): void => child.kill(why);
    const unwatch = this.#life.add({ ask: () => child.channel.call('alive', {}), lost });
    this.#auth = { child, workers: new DescriptorSender(near), fd: near, unwatch };
  }

  /** First the way by which the worker gets the connections that auth makes for it. */
  #introduce(worker: number, pid: number, way: number, channel: number): boolean {
    const workers = this.#auth?.workers;
    if (workers === undefined) return false;
    const isSent = workers.send(encodeNewcomer({ worker, pid: undefined }), way);
    return isSent && workers.send(encodeNewcomer({ worker, pid }), channel);
  }

  #authEnded(child: AuthChild, why: string): void {
    if (this.#auth?.child !== child) return;
    closeFd(this.#auth.fd);
    this.#auth.unwatch();
    this.#auth = undefined;
    if (this.#stopping !== undefined || !this.#hasStarted) return;
    this.#log.error('auth has ended; all processes start again', { why });
    this.#trouble.after(this.#trouble.count('auth'), async () => {
      await this.#workers.end();
      try {
        this.#spawnAll({ isCold: true });
        // The next auth places what it takes up; it knows nothing of where the last one had it.
        await this.#startAll(() => this.#host.unplaceAll());
      } catch (error) {
        // Half of a gateway serves nobody.
        this.#auth?.child.kill('not everything could be started with it');
        throw error;
      }
      this.#log.info('all processes have been started again');
    });
  }

  #authHandlers(): Handlers<typeof authToSupervisor> {
    const done = async (work: Promise<unknown>): Promise<Record<string, never>> => {
      await work;
      return {};
    };
    return {
      place: ({ lease, worker, place }) => done(this.#host.place(lease, worker, place)),
      unplace: ({ lease }) => done(this.#host.unplace(lease)),
      report: async () => {
        const { counters, warnings } = await this.#host.report();
        return { counters: { ...counters }, warnings: [...warnings, ...this.#workers.warnings] };
      },
      readPolicy: ({ of }) =>
        this.#policy.read((of === 'next' ? (this.#next ?? this.#config) : this.#config).policyFile),
      policyPart: ({ text }) => this.#policy.offer(text),
      offerPolicy: async ({ digest }) => {
        this.#checkMayEdit();
        return this.#policy.readOffered(digest);
      },
      savePolicy: ({ revision, replaces }) => {
        this.#checkMayEdit();
        return done(this.#policy.save(revision, this.#config.policyFile, replaces));
      },
      stage: (part) => this.#policy.add(part),
      enforce: ({ revision }) => done(this.#enforce(revision)),
      admit: ({ revision, admitted }) => done(this.#host.admit(this.#policy.admitted(revision, admitted))),
      dismiss: ({ lease }) => done(this.#host.dismiss(lease)),
      readConfig: async () => {
        this.#next = await this.#options.readConfig();
        return this.#next;
      },
      apply: () => done(this.#apply()),
      takeBack: () => done(this.#takeBack()),
      reloaded: () => {
        if (this.#next !== undefined) this.#config = planReload(this.#config, this.#next).merged;
      },
      readCredentials: async ({ what, of }) => {
        const texts = await readCredentialTexts(this.#configOf(of), this.#own, what);
        this.#lastRead = { texts, of };
        return { ...texts, pem: publicPart(texts.pem) };
      },
      stampOfLists: async () => {
        const { crlFile } = this.#credentials;
        return { stamp: crlFile === undefined ? '' : await credentialFiles(this.#own).stamp(crlFile) };
      },
      useCredentials: ({ what }) => done(this.#useCredentials(what)),
      replace: ({ worker, pid, isSilent }) => {
        this.#workers.cutOff(worker, pid, isSilent ? 'it has closed its channel to auth' : 'auth has cut it off');
      },
      drained: ({ seconds }) => {
        this.#drainedAt = systemClock.now() + seconds * 1000;
      },
      replaceWorkers: async () => ({ replaced: await this.#workers.replaceAll() }),
      stop: () => {
        this.stop().catch((error: unknown) => this.#log.error('the gateway did not stop cleanly', { error }));
      },
    };
  }

  /** Auth is not believed that an operator may. @throws {VpnError} ERR_PRIVILEGE */
  #checkMayEdit(): void {
    if (mayEditPolicy(this.#config)) return;
    throw new VpnError(
      'ERR_PRIVILEGE',
      'the configuration does not let operators change the policy (admin.editPolicy)',
    );
  }

  /** With the files of the next configuration, whatever else has changed in it. */
  #configOf(which: 'current' | 'next'): GatewayConfig {
    if (which === 'current' || this.#next === undefined) return this.#config;
    const { caFile: _, crlFile: __, ...rest } = this.#config;
    const { certFile, keyFile, caFile, crlFile } = this.#next;
    const optional = { ...(caFile === undefined ? {} : { caFile }), ...(crlFile === undefined ? {} : { crlFile }) };
    return { ...rest, certFile, keyFile, ...optional };
  }

  async #enforce(revision: number | null): Promise<void> {
    await this.#host.enforce(this.#policy.take(revision));
    this.#policy.entered(revision);
  }

  async #apply(): Promise<void> {
    const former = this.#config;
    const { merged } = planReload(former, this.#next ?? former);
    const config = withHostKeys(former, merged);
    await this.#host.update(config);
    this.#replaced = former;
    this.#config = config;
  }

  async #takeBack(): Promise<void> {
    const former = this.#replaced;
    if (former === undefined) throw new VpnError('ERR_INVARIANT', 'nothing has been applied');
    this.#replaced = undefined;
    const config = withHostKeys(this.#config, former);
    await this.#host.update(config);
    this.#config = config;
  }

  async #useCredentials(what: CredentialKind): Promise<void> {
    const read = this.#lastRead;
    if (read === undefined) throw new VpnError('ERR_INVARIANT', 'no certificates have been read');
    const { texts, of } = read;
    const former = this.#credentials;
    const next = what === 'all' ? texts : { ...texts, pem: { ...former.pem, crl: texts.pem.crl } };
    await this.#workers.useCredentials(next.pem, former.pem);
    this.#credentials = next;
    if (what === 'all') this.#config = this.#configOf(of);
  }
}

function devicesOf({ workers }: WorkerHost): TunDescriptor[] {
  return workers.flatMap(({ primary, plain }) => [primary, ...(plain === undefined ? [] : [plain])]);
}

function deviceFacts({ name, mtu, superPackets, uso }: TunDescriptor) {
  return { name, superPackets, udpSegmentation: uso, mtu };
}

function ownAuthority(certs: string): OwnAuthority | undefined {
  if (!existsSync(join(certs, 'ca.key'))) return undefined;
  return { caPem: readFileSync(join(certs, 'ca.pem'), 'utf8'), crlFile: join(certs, 'crl.pem') };
}

/**
 * What auth may see. It may write some of these files: what it puts in the place of one, such as a link to another's key, is
 * read with the rights of this process and must not come back to it.
 */
function publicPart({ cert, ca, crl }: ServerCredentials): ServerCredentials {
  return {
    key: '',
    cert: publicBlocks(cert),
    ...(ca === undefined ? {} : { ca: publicBlocks(ca) }),
    ...(crl === undefined ? {} : { crl: publicBlocks(crl) }),
  };
}

function publicBlocks(pem: string): string {
  return (pem.match(/-----BEGIN (CERTIFICATE|X509 CRL)-----[^-]*-----END \1-----\r?\n?/g) ?? []).join('');
}

/** Auth has closed the store, and may not remove files. A journal that holds anything is left to whoever opens it next. */
function clearJournal(store: string): void {
  const journal = `${store}-wal`;
  if (!existsSync(journal) || lstatSync(journal).size > 0) return;
  for (const file of [journal, `${store}-shm`]) rmSync(file, { force: true });
}

/** Others may reach the socket, and nothing else of its folder, whose names they cannot list. */
function letThrough(path: string, log: Logger): void {
  const folder = dirname(path);
  chmodSync(folder, 0o711);
  const state = dirname(folder);
  if ((lstatSync(state).mode & 0o001) !== 0) return;
  log.warn(`users whom \`control\` names cannot reach ${path}; let them through: chmod o+x ${state}`, {
    component: 'supervisor',
  });
}

/** Auth writes certificates, and nothing else of the state directory. @throws {VpnError} ERR_PRIVILEGE */
function handOver(folder: string, identity: Identity): void {
  try {
    giveFolder(folder, identity);
  } catch (cause) {
    throw new VpnError('ERR_PRIVILEGE', `cannot give ${folder} to user ${identity.uid}: ${toVpnError(cause).message}`, {
      cause,
      details: { path: folder },
    });
  }
}

/** Links are left alone, wherever they lead. */
function giveFolder(path: string, { uid, gid }: Identity): void {
  if (!existsSync(path)) return;
  const stats = lstatSync(path);
  const isPlainFile = stats.isFile() && stats.nlink === 1;
  if (!isPlainFile && !stats.isDirectory()) return;
  if (stats.uid !== uid || stats.gid !== gid) lchownSync(path, uid, gid);
  if (stats.isDirectory()) for (const name of readdirSync(path)) giveFolder(join(path, name), { uid, gid });
}
