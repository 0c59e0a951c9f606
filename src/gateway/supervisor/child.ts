/**
 * One process of a gateway, as the supervisor has it: started without rights, told things over a channel, ended when it breaks
 * a rule.
 *
 * Hides spawning and signals. Descriptors are handed over by number, from 3 on; the supervisor keeps its own.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { extname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { toVpnError, VpnError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { LaunchCommand } from '../../os/launcher.ts';
import { partCommand } from '../../os/own-program.ts';
import { closeFd } from '../../os/socket.ts';
import { socketPair } from '../../os/unix-socket.ts';
import { type ChannelLimits, type Contract, type Handlers, IpcChannel } from '../ipc/channel.ts';

/** From TypeScript in a checkout, from JavaScript in a built package. */
const EXTENSION = extname(import.meta.url);
/** What a child needs to know of the world around. */
const ENVIRONMENT = ['TZ', 'NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'SSL_CERT_DIR'];

const SCRIPTS = { auth: 'auth/main', worker: 'worker/main', 'worker-spare': 'worker/spare' } as const;

/** The command line of one of the gateway's programs. */
export function programOf(part: keyof typeof SCRIPTS): [string, ...string[]] {
  return partCommand(part, fileURLToPath(new URL(`../${SCRIPTS[part]}${EXTENSION}`, import.meta.url)));
}

const CHANNEL_FD = 3;

/** What a child that is given these has open, above its standard descriptors, by the numbers that they have there. */
export function descriptorsOfChild(inherited: readonly number[]): number[] {
  return [CHANNEL_FD, ...inherited.map((_fd, index) => CHANNEL_FD + 1 + index)];
}

export interface ChildOptions<Out extends Contract, In extends Contract> {
  /** For the log. */
  name: string;
  command: LaunchCommand;
  /** The folder in which it starts. */
  cwd: string;
  /** What it inherits as 4, 5, …; 3 is the channel. */
  descriptors: readonly number[];
  out: Out;
  in: In;
  handlers: Handlers<In>;
  limits: ChannelLimits;
  /** It has ended; `why` as far as that is known. Called once. */
  ended(why: string): void;
  log: Logger;
}

export class Child<Out extends Contract, In extends Contract> {
  readonly channel: IpcChannel<Out, In>;
  readonly #process: ChildProcess;
  readonly #exited = Promise.withResolvers<void>();
  #why: string | undefined;

  /** @throws {VpnError} ERR_SYSCALL */
  constructor(options: ChildOptions<Out, In>) {
    const { command, cwd, descriptors, name, log } = options;
    const [near, far] = socketPair('stream');
    const environment = ENVIRONMENT.flatMap((key) => (process.env[key] === undefined ? [] : [[key, process.env[key]]]));
    this.#process = spawn(command.file, command.args, {
      cwd,
      env: Object.fromEntries(environment),
      stdio: ['ignore', 'inherit', 'inherit', far, ...descriptors],
      ...command.options,
    });
    closeFd(far);
    let hasEnded = false;
    const ended = (why: string): void => {
      if (hasEnded) return;
      hasEnded = true;
      this.channel.close();
      this.#exited.resolve();
      options.ended(this.#why ?? why);
    };
    this.channel = new IpcChannel({
      fd: near,
      out: options.out,
      in: options.in,
      handlers: options.handlers,
      limits: options.limits,
      closed: (error) => {
        if (error === undefined) return;
        log.error('a process was cut off', { component: 'supervisor', process: name, reason: error.message });
        this.kill(error.message);
      },
    });
    this.#process.once('error', (error) => ended(`it could not be started: ${toVpnError(error).message}`));
    this.#process.once('exit', (status, signal) => ended(signal === null ? `status ${status}` : `signal ${signal}`));
  }

  get pid(): number {
    return this.#process.pid ?? 0;
  }

  /** Resolves when it has ended. */
  get exited(): Promise<void> {
    return this.#exited.promise;
  }

  /** Ends it at once. */
  kill(why?: string): void {
    this.#why ??= why;
    this.#process.kill('SIGKILL');
  }

  /** Closes the channel, at which it ends by itself; one that does not is killed. */
  async end(patienceMs: number): Promise<void> {
    this.channel.close();
    const late = setTimeout(() => this.kill('it did not end by itself'), patienceMs);
    await this.exited;
    clearTimeout(late);
  }

  /** The same as `promise`, unless the process ends before. @throws {VpnError} ERR_INVARIANT then */
  async whileAlive<T>(promise: Promise<T>): Promise<T> {
    const dead = this.exited.then(() => {
      throw new VpnError('ERR_INVARIANT', `a process of the gateway has ended: ${this.#why ?? 'unexpectedly'}`);
    });
    return await Promise.race([promise, dead]);
  }
}
