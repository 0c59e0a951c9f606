/**
 * The workers of a gateway of several processes.
 *
 * Hides which process is which worker, how they get to know each other and auth, and how one is replaced: when it ends, when it
 * gives no sign of life, or for an upgrade. A worker that ends is replaced on the same socket and devices, so that what came for it
 * meanwhile has waited; a spare process, loaded and warm, stands by for that. One that ends again and again is given up.
 */

import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { Identity, LaunchCommand, Launcher } from '../../os/launcher.ts';
import { closeFd } from '../../os/socket.ts';
import { socketPair } from '../../os/unix-socket.ts';
import type { ServerCredentials } from '../../transport/tls.ts';
import type { GatewayConfig } from '../config.ts';
import type { WorkerDescriptor } from '../ipc/descriptors.ts';
import { programOf } from './child.ts';
import type { WorkerDescriptors } from './host.ts';
import type { LifeWatch } from './life-watch.ts';
import type { Trouble } from './trouble.ts';
import { WorkerProcess } from './worker-process.ts';

const STOP_MS = 5000;
const END_MS = 2000;
/** A worker that ends so often within a minute is given up. */
const MAX_ENDS = 6;
/** The spare one must not take the processor from those who begin to serve. */
const SPARE_DELAY_MS = 1000;

/** What workers need of the rest of the gateway. */
export interface WorkersOptions {
  readonly count: number;
  readonly config: GatewayConfig;
  readonly identity: Identity;
  readonly launcher: Launcher;
  /** What runs as a worker, in place of ours; then there is no spare one. */
  readonly program?: ((worker: number) => [string, ...string[]]) | undefined;
  descriptorsOf(worker: number): WorkerDescriptors | undefined;
  /** Hands auth the way by which a worker gets connections, and then its channel. @returns false when there is no auth, or it takes none */
  introduce(worker: number, pid: number, way: number, channel: number): boolean;
  credentials(): ServerCredentials;
  /** Whether a worker that ends is to be replaced now: the gateway runs, and auth is there. */
  isServing(): boolean;
  /** Closes the socket of a worker that is given up. */
  givenUp(worker: number): void;
  /** All are given up. */
  lost(): void;
  readonly trouble: Trouble;
  readonly life: LifeWatch;
  readonly log: Logger;
}

export class Workers {
  readonly #options: WorkersOptions;
  readonly #log: Logger;
  readonly #processes: (WorkerProcess | undefined)[] = [];
  /** Those that are started together, whether they live or not. */
  #starting: [worker: number, process: WorkerProcess][] = [];
  readonly #givenUp = new Set<number>();
  readonly #watches = new Map<WorkerProcess, () => void>();
  #spare: WorkerProcess | undefined;
  #spareTimer: NodeJS.Timeout | undefined;
  #replacing: Promise<number> = Promise.resolve(0);

  constructor(options: WorkersOptions) {
    this.#options = options;
    this.#log = options.log;
  }

  /** Starts the processes of all workers, which load their code meanwhile. */
  spawn({ isCold }: { isCold: boolean }): void {
    this.#starting = [];
    for (let worker = 0; worker < this.#options.count; worker++) {
      if (this.#givenUp.has(worker)) continue;
      const process = this.#spawn(worker, isCold);
      this.#processes[worker] = process;
      this.#starting.push([worker, process]);
    }
  }

  /** Resolves when each is nobody with any right. @throws {VpnError} when one of them ends */
  async prepare(): Promise<void> {
    await Promise.all(this.#starting.map(([worker, process]) => this.#prepare(process, worker)));
  }

  /** Resolves when all serve clients. @throws {VpnError} when one of them ends */
  async join(): Promise<void> {
    await Promise.all(this.#starting.map(([worker, process]) => this.#join(process, worker)));
    this.#startSpare();
  }

  /** What an operator should know. */
  get warnings(): string[] {
    return [...this.#givenUp].map(
      (worker) =>
        `worker ${worker} ended again and again and is given up: look into the log, and start the gateway again`,
    );
  }

  /** Ends the process that is this worker, if it still is. */
  cutOff(worker: number, pid: number, why: string): void {
    const process = this.#processes[worker];
    if (process?.pid === pid) process.kill(why);
  }

  /** All use these from now on, or on an error those that they had. */
  async useCredentials(next: ServerCredentials, former: ServerCredentials): Promise<void> {
    const live = this.#live();
    const put = (credentials: ServerCredentials) =>
      Promise.all(live.map(([, process]) => process.useCredentials(credentials)));
    try {
      await put(next);
    } catch (error) {
      await put(former).catch(() => {});
      throw error;
    }
  }

  /**
   * Puts another process in the place of each worker that there is, one after the other: the next one is ready before the
   * former one lets its clients go, who come back at once.
   *
   * @returns how many there were
   * @throws {VpnError} when one cannot be started; the former one stays
   */
  replaceAll(): Promise<number> {
    const replaced = this.#replacing.then(async () => {
      // It has the code of before.
      await this.#endSpare();
      let count = 0;
      for (const [worker, former] of this.#live()) {
        if (this.#processes[worker] !== former || !this.#options.isServing()) continue;
        const next = this.#spawn(worker, false);
        try {
          await this.#prepare(next, worker);
        } catch (error) {
          next.kill();
          throw error;
        }
        this.#processes[worker] = next;
        await former.stop(STOP_MS);
        await former.end(END_MS);
        await this.#join(next, worker);
        this.#log.info('a worker has been replaced', { worker, pid: next.pid });
        count += 1;
      }
      return count;
    });
    this.#replacing = replaced.catch(() => 0).finally(() => this.#startSpare());
    return replaced;
  }

  /** Tells the clients of all workers. Never rejects. */
  async stop(): Promise<void> {
    await Promise.all(this.#live().map(([, process]) => process.stop(STOP_MS)));
  }

  /** Ends all processes but the spare one. */
  async end(): Promise<void> {
    await Promise.all(this.#live().map(([, process]) => process.end(END_MS)));
  }

  /** Ends all processes. */
  async close(): Promise<void> {
    await Promise.all([this.end(), this.#endSpare()]);
  }

  #live(): [worker: number, process: WorkerProcess][] {
    return [...this.#processes.entries()].flatMap(([worker, process]) =>
      process === undefined ? [] : [[worker, process] as [number, WorkerProcess]],
    );
  }

  /** @param worker undefined: a spare one; @param isCold it is waited for, and does not run its code first */
  #spawn(worker: number | undefined, isCold = false): WorkerProcess {
    const process = new WorkerProcess({
      name: worker === undefined ? 'spare worker' : `worker ${worker}`,
      command: this.#commandOf(worker, isCold),
      ended: (ended, why) => this.#ended(ended, why),
      log: this.#log,
    });
    const living = { ask: () => process.alive(), lost: (why: string) => process.kill(why) };
    this.#watches.set(process, this.#options.life.add(living));
    return process;
  }

  #commandOf(worker: number | undefined, isCold: boolean): LaunchCommand {
    const { launcher, identity, program } = this.#options;
    const own = worker === undefined ? programOf('worker-spare') : (program?.(worker) ?? programOf('worker'));
    const argv: [string, ...string[]] = [...own, worker === undefined ? 'spare' : String(worker)];
    if (isCold) argv.push('--cold');
    const script = own
      .slice(1)
      .filter((word) => word.startsWith('/'))
      .slice(0, 1);
    try {
      return launcher.command(identity, argv, script);
    } catch (error) {
      // It can load its program as root, and become that user afterwards.
      this.#log.debug('workers change their user themselves', { reason: toVpnError(error).message });
      return launcher.commandAsRoot(argv);
    }
  }

  /** The worker becomes nobody with any right. */
  async #prepare(process: WorkerProcess, worker: number): Promise<void> {
    const descriptors = this.#options.descriptorsOf(worker);
    // The number of a descriptor that has been closed may be another's by now.
    if (descriptors === undefined || this.#givenUp.has(worker)) {
      throw new VpnError('ERR_INVARIANT', `there is no worker ${worker}`);
    }
    const { config, identity } = this.#options;
    await process.prepare({ worker, config, identity, descriptors });
  }

  /** The worker meets auth and the others, and serves clients. */
  async #join(process: WorkerProcess, worker: number): Promise<void> {
    const channel = process.takeAuthEnd();
    if (channel === undefined) throw new VpnError('ERR_INVARIANT', 'a worker has no way to auth');
    const [fromAuth, toWorker] = socketPair('packets');
    process.give({ use: 'dialled' }, fromAuth);
    const isIntroduced = this.#options.introduce(worker, process.pid, toWorker, channel);
    for (const fd of [fromAuth, toWorker, channel]) closeFd(fd);
    if (!isIntroduced) throw new VpnError('ERR_INVARIANT', 'auth takes no worker');
    for (const [other, near] of this.#live()) {
      if (near === process || !near.hasJoined) continue;
      this.#connect([worker, process], [other, near]);
      this.#connect([other, near], [worker, process]);
    }
    process.hasJoined = true;
    await process.serve(this.#options.credentials());
  }

  /** A way of its own from one to the other. One who does not take it in is served by whoever accepts a connection. */
  #connect([from, sender]: [number, WorkerProcess], [to, receiver]: [number, WorkerProcess]): void {
    const [near, far] = socketPair('packets');
    const toSender: WorkerDescriptor = { use: 'to', worker: to };
    const toReceiver: WorkerDescriptor = { use: 'from', worker: from };
    sender.give(toSender, near);
    receiver.give(toReceiver, far);
    closeFd(near);
    closeFd(far);
  }

  #ended(process: WorkerProcess, why: string): void {
    this.#watches.get(process)?.();
    this.#watches.delete(process);
    const { trouble, isServing } = this.#options;
    if (process === this.#spare) {
      this.#spare = undefined;
      if (!isServing()) return;
      this.#log.warn('the spare worker has ended', { why });
      trouble.after(Math.max(2, trouble.count('spare')), async () => this.#startSpare());
      return;
    }
    const worker = this.#processes.indexOf(process);
    if (worker < 0) return;
    this.#processes[worker] = undefined;
    if (!isServing()) return;
    const ends = trouble.count(`worker ${worker}`);
    if (ends >= MAX_ENDS) {
      this.#giveUp(worker, why);
      return;
    }
    this.#log.error('a worker has ended; another takes its place', { worker, why });
    trouble.after(ends, async () => {
      // All have started again meanwhile, or are about to.
      if (this.#processes[worker] === undefined && isServing()) await this.#replace(worker);
    });
  }

  async #replace(worker: number): Promise<void> {
    const spare = this.#spare?.isLoaded === true ? this.#spare : undefined;
    if (spare !== undefined) this.#spare = undefined;
    const next = spare ?? this.#spawn(worker, true);
    this.#processes[worker] = next;
    try {
      await this.#prepare(next, worker);
      await this.#join(next, worker);
    } catch (error) {
      next.kill('it could not be started');
      throw error;
    }
    this.#log.info('a worker has been replaced', { worker, pid: next.pid });
    this.#startSpare();
  }

  #startSpare(): void {
    if (this.#options.program !== undefined) return;
    clearTimeout(this.#spareTimer);
    this.#spareTimer = setTimeout(() => {
      if (this.#spare !== undefined || !this.#options.isServing()) return;
      try {
        const spare = this.#spawn(undefined);
        this.#spare = spare;
        spare.load().then(
          () => this.#log.info('a spare worker stands by', { pid: spare.pid }),
          // It has ended, which is told.
          () => {},
        );
      } catch (error) {
        this.#log.warn('there is no spare worker: one that ends is replaced more slowly', { error });
      }
    }, SPARE_DELAY_MS).unref();
  }

  async #endSpare(): Promise<void> {
    clearTimeout(this.#spareTimer);
    const spare = this.#spare;
    this.#spare = undefined;
    await spare?.end(END_MS);
  }

  /** Its socket is closed, so that the others get who comes; sessions that it had are resumed there, with their addresses. */
  #giveUp(worker: number, why: string): void {
    this.#log.error(`a worker has ended ${MAX_ENDS} times in a minute, and is given up; start the gateway again`, {
      worker,
      why,
    });
    this.#givenUp.add(worker);
    this.#options.givenUp(worker);
    // One that is being started again is left.
    if (this.#givenUp.size === this.#options.count) this.#options.lost();
  }
}
