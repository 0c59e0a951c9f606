/**
 * A gateway of several processes: this one, auth with its hasher, and workers.
 *
 * Hides how they are started, joined and replaced. This process keeps the rights and hears nothing of the network: its input
 * is the configuration and the messages of `ipc/messages`. A worker that ends is started again on the same socket and
 * devices, so that what came for it meanwhile has waited; when auth ends, all start again. The certificates' key goes from
 * here to the workers; auth, which makes it where the authority is built in, is not told of any other.
 */

import { existsSync, lchownSync, lstatSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { makeRoom } from '../../control/socket.ts';
import { type Identity, type LaunchCommand, Launcher } from '../../os/launcher.ts';
import { closeFd } from '../../os/socket.ts';
import type { TunDescriptor } from '../../os/tun-linux.ts';
import { DescriptorSender, listenAtPath, socketPair } from '../../os/unix-socket.ts';
import type { CloseReason } from '../../protocol/messages.ts';
import type { ServerCredentials } from '../../transport/tls.ts';
import { checkCertificateStep, type GatewayConfig } from '../config.ts';
import {
  type CredentialKind,
  type CredentialTexts,
  credentialFiles,
  type OwnAuthority,
  readCredentialTexts,
} from '../credential-files.ts';
import type { Handlers } from '../ipc/channel.ts';
import {
  authToSupervisor,
  encodeNewcomer,
  LIMITS_OF_AUTH,
  LIMITS_OF_WORKER_TO_SUPERVISOR,
  supervisorToAuth,
  supervisorToWorker,
  workerToSupervisor,
} from '../ipc/messages.ts';
import { statePaths } from '../layout.ts';
import { openPool } from '../pool.ts';
import { Child, programOf } from './child.ts';
import { GatewayHost } from './host.ts';
import { identitiesOf } from './identities.ts';

/** How long the processes may take to say goodbye. */
const WORKER_STOP_MS = 5000;
const AUTH_STOP_MS = 10_000;
const END_MS = 2000;
/** Ends within this time count as one trouble. */
const TROUBLE_MS = 60_000;
/** A worker that ends so often within that time is given up. */
const MAX_ENDS = 6;
const FIRST_DELAY_MS = 250;
const MAX_DELAY_MS = 30_000;

type AuthChild = Child<typeof supervisorToAuth, typeof authToSupervisor>;
type WorkerChild = Child<typeof supervisorToWorker, typeof workerToSupervisor>;

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
}

export class GatewayProcesses {
  readonly #options: GatewayProcessesOptions;
  readonly #log: Logger;
  readonly #launcher: Launcher;
  readonly #host: GatewayHost;
  readonly #identities: { auth: Identity; worker: Identity };
  readonly #control: { path: string; fd: number };
  readonly #own: OwnAuthority | undefined;
  readonly #stopped = Promise.withResolvers<void>();
  readonly #workers: (WorkerChild | undefined)[] = [];
  /** Over which connections are given to each worker: the end that it reads, and the end that all others have. */
  readonly #handovers: [read: number, write: number][];
  /** When auth, and each worker, has ended by itself lately, monotonic: one that ends over and over delays no other. */
  readonly #ends = new Map<'auth' | number, number[]>();
  readonly #givenUp = new Set<number>();
  #replacing: Promise<number> = Promise.resolve(0);
  #auth: { child: AuthChild; workers: DescriptorSender; fd: number } | undefined;
  #config: GatewayConfig;
  #next: GatewayConfig | undefined;
  #credentials: CredentialTexts;
  #lastRead: { texts: CredentialTexts; of: 'current' | 'next' } | undefined;
  #since = Date.now();
  #stopping: Promise<void> | undefined;

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
    await makeRoom(paths.control);
    const host = undo.adopt(await GatewayHost.open({ config, pool, workers, stateDir, log }), (opened) =>
      opened.close(),
    );
    handOver(paths.certs, identities.auth);
    const control = { path: paths.control, fd: listenAtPath(paths.control) };
    undo.defer(() => {
      closeFd(control.fd);
      rmSync(control.path, { force: true });
    });
    const gateway = new GatewayProcesses(
      { ...options, stateDir },
      { launcher, host, identities, control, own, credentials },
    );
    undo.defer(() => gateway.#end());
    await gateway.#startAll(() => host.configure(), { isCold: false });
    undo.move();
    log.info('gateway runs', {
      component: 'server',
      listen: gateway.listen,
      congestion: host.congestion,
      devices: host.workers.flatMap(({ primary, plain }) => [primary.name, plain.name]).join(' '),
      workers,
    });
    return gateway;
  }

  private constructor(
    options: GatewayProcessesOptions,
    parts: {
      launcher: Launcher;
      host: GatewayHost;
      identities: { auth: Identity; worker: Identity };
      control: { path: string; fd: number };
      own: OwnAuthority | undefined;
      credentials: CredentialTexts;
    },
  ) {
    this.#options = options;
    this.#config = options.config;
    this.#log = options.log.child({ component: 'supervisor' });
    this.#launcher = parts.launcher;
    this.#host = parts.host;
    this.#identities = parts.identities;
    this.#control = parts.control;
    this.#own = parts.own;
    this.#credentials = parts.credentials;
    this.#handovers = Array.from({ length: options.workers }, () => socketPair('packets'));
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
    undo.defer(() => clearJournal(statePaths(this.#options.stateDir).store));
    undo.defer(() => this.#host.close());
    undo.defer(() => this.#end());
    const auth = this.#auth?.child;
    await auth?.channel.call('pause', {}, AUTH_STOP_MS).catch(() => {});
    await this.#stopWorkers('shutdown');
    await auth?.channel.call('stop', {}, AUTH_STOP_MS).catch(() => {});
  }

  async #stopWorkers(reason: CloseReason): Promise<void> {
    const asked = this.#workers.map((worker) =>
      worker?.channel.call('stop', { reason }, WORKER_STOP_MS).catch(() => {}),
    );
    await Promise.all(asked);
  }

  /** Ends all processes. */
  async #end(): Promise<void> {
    this.#stopping ??= Promise.resolve();
    await Promise.all(this.#workers.map((worker) => worker?.end(END_MS)));
    await this.#auth?.child.end(END_MS);
    if (this.#auth !== undefined) closeFd(this.#auth.fd);
    this.#auth = undefined;
    for (const fd of this.#handovers.splice(0).flat()) closeFd(fd);
  }

  /** Starts auth and all workers, and meanwhile makes the host ready. */
  async #startAll(makeReady: () => Promise<void>, { isCold }: { isCold: boolean }): Promise<void> {
    const { config, workers: count, stateDir, version } = this.#options;
    const auth = this.#startAuth();
    const numbers = Array.from({ length: count }, (_, worker) => worker).filter((worker) => !this.#givenUp.has(worker));
    const workers = numbers.map((worker) => [worker, this.#spawnWorker(worker, isCold)] as const);
    for (const [worker, child] of workers) this.#workers[worker] = child;
    const identity = this.#identities.auth;
    const start = { config, workers: count, state: stateDir, identity };
    await Promise.all([
      makeReady(),
      auth.whileAlive(auth.channel.call('prepare', start)),
      ...workers.map(([worker, child]) => this.#prepare(child, worker)),
    ]);
    const facts = {
      version,
      pid: process.pid,
      since: this.#since,
      listen: this.listen,
      port: this.#host.port,
      congestion: this.#host.congestion,
      devices: this.#host.workers.flatMap(({ primary, plain }) => [deviceFacts(primary), deviceFacts(plain)]),
    };
    await auth.whileAlive(auth.channel.call('begin', { facts }));
    await Promise.all(workers.map(([worker, child]) => this.#join(child, worker)));
    await auth.whileAlive(auth.channel.call('serve', {}));
  }

  #startAuth(): AuthChild {
    const [near, far] = socketPair('packets');
    const { certs } = statePaths(this.#options.stateDir);
    const child: AuthChild = new Child({
      name: 'auth',
      command: this.#launcher.commandAsRoot(programOf('auth')),
      cwd: existsSync(certs) ? certs : '/',
      descriptors: [far, this.#control.fd],
      out: supervisorToAuth,
      in: authToSupervisor,
      handlers: this.#authHandlers(),
      limits: LIMITS_OF_AUTH,
      ended: (why) => this.#authEnded(child, why),
      log: this.#log,
    });
    closeFd(far);
    this.#auth = { child, workers: new DescriptorSender(near), fd: near };
    return child;
  }

  /** The ends of a worker's channel to auth, until both have theirs. */
  readonly #authEnds = new Map<WorkerChild, number>();

  /** @param isCold it is waited for, and does not run its code first */
  #spawnWorker(number: number, isCold = false): WorkerChild {
    const descriptors = this.#host.workers[number];
    // The number of a descriptor that has been closed may be another's by now.
    if (descriptors === undefined || this.#givenUp.has(number)) {
      throw new VpnError('ERR_INVARIANT', `there is no worker ${number}`);
    }
    const { socket, primary, plain } = descriptors;
    const [forWorker, forAuth] = socketPair('stream');
    const child: WorkerChild = new Child({
      name: `worker ${number}`,
      command: this.#workerCommand(number, isCold ? ['--cold'] : []),
      cwd: '/',
      descriptors: [
        forWorker,
        socket,
        primary.fd,
        plain.fd,
        this.#handovers[number]?.[0] ?? -1,
        ...this.#othersOf(number).map((other) => this.#handovers[other]?.[1] ?? -1),
      ],
      out: supervisorToWorker,
      in: workerToSupervisor,
      handlers: {} as Handlers<typeof workerToSupervisor>,
      limits: LIMITS_OF_WORKER_TO_SUPERVISOR,
      ended: (why) => this.#workerEnded(child, number, why),
      log: this.#log,
    });
    closeFd(forWorker);
    this.#authEnds.set(child, forAuth);
    return child;
  }

  #workerCommand(worker: number, flags: readonly string[]): LaunchCommand {
    const [file, ...words] = this.#options.workerProgram?.(worker) ?? programOf('worker');
    const program: [string, ...string[]] = [file, ...words, ...flags];
    const script = words.filter((word) => word.startsWith('/')).slice(0, 1);
    try {
      return this.#launcher.command(this.#identities.worker, program, script);
    } catch (error) {
      // It can load its program as root, and become that user afterwards.
      this.#log.debug('workers change their user themselves', { reason: toVpnError(error).message });
      return this.#launcher.commandAsRoot(program);
    }
  }

  /** The worker becomes nobody with any right. */
  async #prepare(child: WorkerChild, worker: number): Promise<void> {
    const descriptors = this.#host.workers[worker];
    if (descriptors === undefined) throw new VpnError('ERR_INVARIANT', `there is no worker ${worker}`);
    const primary = factsOf(descriptors.primary);
    const plain = factsOf(descriptors.plain);
    const identity = this.#identities.worker;
    const { config } = this.#options;
    const others = this.#othersOf(worker);
    await child.whileAlive(child.channel.call('prepare', { worker, config, identity, primary, plain, others }));
  }

  #othersOf(worker: number): number[] {
    return [...this.#handovers.keys()].filter((other) => other !== worker);
  }

  /** The worker meets auth, and serves clients. */
  async #join(child: WorkerChild, worker: number): Promise<void> {
    const fd = this.#authEnds.get(child);
    if (fd === undefined || this.#auth === undefined)
      throw new VpnError('ERR_INVARIANT', 'a worker has no way to auth');
    // First the way by which the worker gets the connections that auth makes for it.
    const way = this.#handovers[worker]?.[1] ?? -1;
    const { workers } = this.#auth;
    const isSent = workers.send(encodeNewcomer(worker), way) && workers.send(encodeNewcomer(worker, child.pid), fd);
    this.#authEnds.delete(child);
    closeFd(fd);
    if (!isSent) throw new VpnError('ERR_INVARIANT', 'auth takes no worker');
    await child.whileAlive(child.channel.call('serve', { credentials: this.#credentials.pem }));
  }

  #workerEnded(child: WorkerChild, worker: number, why: string): void {
    const fd = this.#authEnds.get(child);
    if (fd !== undefined) closeFd(fd);
    this.#authEnds.delete(child);
    if (this.#workers[worker] !== child) return;
    this.#workers[worker] = undefined;
    if (this.#stopping !== undefined || this.#auth === undefined) return;
    const ends = this.#countEnd(worker);
    if (ends >= MAX_ENDS) {
      this.#giveUp(worker, why);
      return;
    }
    this.#log.error('a worker has ended; another takes its place', { worker, why });
    this.#afterTrouble(ends, async () => {
      // All have started again meanwhile, or are about to.
      if (this.#workers[worker] !== undefined || this.#auth === undefined) return;
      const next = this.#spawnWorker(worker, true);
      this.#workers[worker] = next;
      try {
        await this.#prepare(next, worker);
        await this.#join(next, worker);
      } catch (error) {
        next.kill('it could not be started');
        throw error;
      }
      this.#log.info('a worker has been replaced', { worker, pid: next.pid });
    });
  }

  /** Its socket is closed, so that the others get who comes; sessions that it had are resumed there, with their addresses. */
  #giveUp(worker: number, why: string): void {
    this.#log.error(`a worker has ended ${MAX_ENDS} times in a minute, and is given up; start the gateway again`, {
      worker,
      why,
    });
    this.#givenUp.add(worker);
    this.#host.closeSocket(worker);
    // One that is being started again is left.
    if (this.#givenUp.size < this.#options.workers) return;
    this.#log.error('no worker is left; the gateway stops');
    this.stop().catch((error: unknown) => this.#log.error('the gateway did not stop cleanly', { error }));
  }

  /**
   * Puts another process in the place of each worker that there is, one after the other: the next one is ready before the
   * former one lets its clients go, who come back at once.
   *
   * @throws {VpnError} when one cannot be started; the former one stays
   */
  #replaceWorkers(): Promise<number> {
    const replaced = this.#replacing.then(async () => {
      let count = 0;
      for (const [worker, former] of [...this.#workers.entries()]) {
        if (former === undefined || this.#stopping !== undefined) continue;
        const next = this.#spawnWorker(worker);
        try {
          await this.#prepare(next, worker);
        } catch (error) {
          next.kill();
          throw error;
        }
        this.#workers[worker] = next;
        await former.channel.call('stop', { reason: 'shutdown' }, WORKER_STOP_MS).catch(() => {});
        await former.end(END_MS);
        await this.#join(next, worker);
        this.#log.info('a worker has been replaced', { worker, pid: next.pid });
        count += 1;
      }
      return count;
    });
    this.#replacing = replaced.catch(() => 0);
    return replaced;
  }

  #authEnded(child: AuthChild, why: string): void {
    if (this.#auth?.child !== child) return;
    closeFd(this.#auth.fd);
    this.#auth = undefined;
    if (this.#stopping !== undefined) return;
    this.#log.error('auth has ended; all processes start again', { why });
    this.#afterTrouble(this.#countEnd('auth'), async () => {
      await Promise.all(this.#workers.map((worker) => worker?.end(END_MS)));
      try {
        // The next auth places what it takes up; it knows nothing of where the last one had it.
        await this.#startAll(() => this.#host.unplaceAll(), { isCold: true });
      } catch (error) {
        // Half of a gateway serves nobody.
        this.#auth?.child.kill('not everything could be started with it');
        throw error;
      }
      this.#log.info('all processes have been started again');
    });
  }

  /** How often this one has ended lately, with this time. */
  #countEnd(part: 'auth' | number): number {
    const now = performance.now();
    const ends = [...(this.#ends.get(part) ?? []), now].filter((at) => at > now - TROUBLE_MS);
    this.#ends.set(part, ends);
    return ends.length;
  }

  /** At once the first time, later and later when it goes on. */
  #afterTrouble(ends: number, start: () => Promise<void>): void {
    const repeated = ends - 2;
    const delay = repeated < 0 ? 0 : Math.min(FIRST_DELAY_MS * 2 ** repeated, MAX_DELAY_MS);
    setTimeout(() => {
      if (this.#stopping !== undefined) return;
      start().catch((error: unknown) => {
        // Whoever is started in vain ends, and is tried again.
        if (this.#stopping === undefined) this.#log.error('a process could not be started', { error });
      });
    }, delay);
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
        const lost = [...this.#givenUp].map(
          (worker) =>
            `worker ${worker} ended again and again and is given up: look into the log, and start the gateway again`,
        );
        return { counters: { ...counters }, warnings: [...warnings, ...lost] };
      },
      readConfig: async () => {
        this.#next = await this.#options.readConfig();
        return this.#next;
      },
      apply: () => done(this.#apply()),
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
        const child = this.#workers[worker];
        // Another may have taken its place meanwhile.
        if (child?.pid === pid) child.kill(isSilent ? 'it has closed its channel to auth' : 'auth has cut it off');
      },
      replaceWorkers: async () => ({ replaced: await this.#replaceWorkers() }),
      stop: () => {
        this.stop().catch((error: unknown) => this.#log.error('the gateway did not stop cleanly', { error }));
      },
    };
  }

  /** With the files of the next configuration, whatever else has changed in it. */
  #configOf(which: 'current' | 'next'): GatewayConfig {
    if (which === 'current' || this.#next === undefined) return this.#config;
    const { caFile: _, crlFile: __, ...rest } = this.#config;
    const { certFile, keyFile, caFile, crlFile } = this.#next;
    const optional = { ...(caFile === undefined ? {} : { caFile }), ...(crlFile === undefined ? {} : { crlFile }) };
    return { ...rest, certFile, keyFile, ...optional };
  }

  async #apply(): Promise<void> {
    const { routes, services } = this.#next ?? this.#config;
    const config = { ...this.#config, routes, services };
    await this.#host.update(config);
    this.#config = config;
  }

  async #useCredentials(what: CredentialKind): Promise<void> {
    const read = this.#lastRead;
    if (read === undefined) throw new VpnError('ERR_INVARIANT', 'no certificates have been read');
    const { texts, of } = read;
    const former = this.#credentials;
    const next = what === 'all' ? texts : { ...texts, pem: { ...former.pem, crl: texts.pem.crl } };
    const live = this.#workers.filter((worker) => worker !== undefined);
    const put = (credentials: CredentialTexts) =>
      Promise.all(live.map((worker) => worker.channel.call('useCredentials', { credentials: credentials.pem })));
    try {
      await put(next);
    } catch (error) {
      // All have the new ones, or none.
      await put(former).catch(() => {});
      throw error;
    }
    this.#credentials = next;
    if (what === 'all') this.#config = this.#configOf(of);
  }
}

function factsOf({ name, mtu, superPackets, uso }: TunDescriptor) {
  return { name, mtu, superPackets, uso };
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
