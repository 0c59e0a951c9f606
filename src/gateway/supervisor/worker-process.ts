/**
 * One process of a worker, from its start to its end.
 *
 * Hides its program and how it gets what it works with: a process is started with a channel and a socket over which descriptors come,
 * and is no worker in particular until `prepare`. So one can wait, loaded, for another's place.
 */

import type { Logger } from '../../base/log.ts';
import type { Identity, LaunchCommand } from '../../os/launcher.ts';
import { closeFd } from '../../os/socket.ts';
import type { TunDescriptor } from '../../os/tun-linux.ts';
import { DescriptorSender, socketPair } from '../../os/unix-socket.ts';
import type { ServerCredentials } from '../../transport/tls.ts';
import type { GatewayConfig } from '../config.ts';
import type { Handlers } from '../ipc/channel.ts';
import { encodeWorkerDescriptor, type WorkerDescriptor } from '../ipc/descriptors.ts';
import { LIMITS_OF_WORKER_TO_SUPERVISOR, supervisorToWorker, workerToSupervisor } from '../ipc/messages.ts';
import { Child } from './child.ts';
import type { WorkerDescriptors } from './host.ts';

export interface WorkerProcessOptions {
  command: LaunchCommand;
  /** For the log. */
  name: string;
  /** It has ended. Called once. */
  ended(process: WorkerProcess, why: string): void;
  log: Logger;
}

/** What a process becomes. */
export interface WorkerPlace {
  readonly worker: number;
  readonly config: GatewayConfig;
  readonly identity: Identity;
  readonly descriptors: WorkerDescriptors;
}

export class WorkerProcess {
  /** It serves clients, or is about to. */
  hasJoined = false;
  /** It has nothing left to load: it is a worker as soon as it is told which. */
  isLoaded = false;
  readonly #child: Child<typeof supervisorToWorker, typeof workerToSupervisor>;
  readonly #descriptors: DescriptorSender;
  /** Our end of the socket for descriptors, and auth's end of the worker's channel to it, until auth has it. */
  #fd: number | undefined;
  #authEnd: number | undefined;

  /** @throws {VpnError} ERR_SYSCALL */
  constructor({ command, name, ended, log }: WorkerProcessOptions) {
    const [near, far] = socketPair('packets');
    this.#fd = near;
    this.#descriptors = new DescriptorSender(near);
    try {
      this.#child = new Child({
        name,
        command,
        cwd: '/',
        descriptors: [far],
        out: supervisorToWorker,
        in: workerToSupervisor,
        handlers: {} as Handlers<typeof workerToSupervisor>,
        limits: LIMITS_OF_WORKER_TO_SUPERVISOR,
        ended: (why) => {
          this.#close();
          ended(this, why);
        },
        log,
      });
    } finally {
      closeFd(far);
    }
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Resolves when it has loaded all its code and run it once over; rejects when it ends before. */
  async load(): Promise<void> {
    await this.#child.channel.call('load', {});
    this.isLoaded = true;
  }

  /** Makes it a worker, with no right. @throws {VpnError} ERR_INVARIANT when it ends, or takes nothing */
  async prepare({ worker, config, identity, descriptors }: WorkerPlace): Promise<void> {
    const { socket, primary, plain } = descriptors;
    const [forWorker, forAuth] = socketPair('stream');
    this.#authEnd = forAuth;
    this.give({ use: 'auth' }, forWorker);
    closeFd(forWorker);
    this.give({ use: 'listen' }, socket);
    this.give({ use: 'primary' }, primary.fd);
    if (plain !== undefined) this.give({ use: 'plain' }, plain.fd);
    const place = {
      worker,
      config,
      identity,
      primary: factsOf(primary),
      ...(plain === undefined ? {} : { plain: factsOf(plain) }),
    };
    await this.#child.whileAlive(this.#child.channel.call('prepare', place));
  }

  /** Sends it a copy. @returns false when it takes no more */
  give(descriptor: WorkerDescriptor, fd: number): boolean {
    return this.#fd !== undefined && this.#descriptors.send(encodeWorkerDescriptor(descriptor), fd);
  }

  /** Auth's end of its channel to auth; the caller's to close. Once. */
  takeAuthEnd(): number | undefined {
    const fd = this.#authEnd;
    this.#authEnd = undefined;
    return fd;
  }

  /** Lets clients connect. */
  async serve(credentials: ServerCredentials): Promise<void> {
    await this.#child.whileAlive(this.#child.channel.call('serve', { credentials }));
  }

  async useCredentials(credentials: ServerCredentials): Promise<void> {
    await this.#child.channel.call('useCredentials', { credentials });
  }

  /** Resolves with a sign of life. */
  async alive(): Promise<void> {
    await this.#child.channel.call('alive', {});
  }

  /** Tells its clients, and takes nobody new. Never rejects. */
  async stop(timeoutMs: number): Promise<void> {
    await this.#child.channel.call('stop', { reason: 'shutdown' }, timeoutMs).catch(() => {});
  }

  /** Ends it at once. */
  kill(why?: string): void {
    this.#child.kill(why);
  }

  /** Ends it, by itself if it does so in time. */
  async end(patienceMs: number): Promise<void> {
    await this.#child.end(patienceMs);
  }

  #close(): void {
    for (const fd of [this.#fd, this.#authEnd]) if (fd !== undefined) closeFd(fd);
    this.#fd = undefined;
    this.#authEnd = undefined;
  }
}

function factsOf({ name, mtu, superPackets, uso }: TunDescriptor) {
  return { name, mtu, superPackets, uso };
}
