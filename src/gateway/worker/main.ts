/**
 * The program of a worker's process.
 *
 * Hides the order in which it becomes what it is: load everything, run the packet path once over, take the descriptors that
 * it is given, give up every right, and only then hear what comes from the network. It ends with the supervisor, and with auth.
 *
 * Descriptors: 3 supervisor, 4 packets with all further ones (`ipc/descriptors`). Arguments: its number, or another word while it has
 * none; `--cold`: it is waited for.
 */

import { fileURLToPath } from 'node:url';
import { systemClock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import { createLogger } from '../../base/log.ts';
import { enterCage } from '../../os/cage.ts';
import { giveUpRights } from '../../os/launcher.ts';
import { partCommand } from '../../os/own-program.ts';
import { tunOf } from '../../os/tun-linux.ts';
import { DescriptorReceiver } from '../../os/unix-socket.ts';
import { warmUp } from '../../transport/warm-up.ts';
import { IpcChannel } from '../ipc/channel.ts';
import { decodeWorkerDescriptor, type WorkerDescriptor } from '../ipc/descriptors.ts';
import { LIMITS_FROM_ABOVE, supervisorToWorker, workerToSupervisor } from '../ipc/messages.ts';
import { AuthLink } from './auth-link.ts';
import { DialLink } from './dial-link.ts';
import { Handover } from './handover.ts';
import { WorkerService } from './service.ts';

const SUPERVISOR_FD = 3;
const DESCRIPTORS_FD = 4;

/** Some 4,000 packets make the code fast; `npm run bench` shows what they are worth. */
const WARM_UP = { rounds: 4000, timeMs: 1500 };

// Signals of a terminal go to the supervisor too, which knows what to do.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});

// Clients of a worker that takes another's place wait for it: slow at first is better than late.
const warm = process.argv.includes('--cold') ? Promise.resolve(0) : warmUp(WARM_UP).catch(() => 0);
let service: WorkerService | undefined;
let auth: AuthLink | undefined;
let handover: Handover | undefined;
/** What it is to work with, by use; what comes for other workers' connections waits here until it is one itself. */
const inherited = {
  auth: Promise.withResolvers<number>(),
  listen: Promise.withResolvers<number>(),
  primary: Promise.withResolvers<number>(),
  plain: Promise.withResolvers<number>(),
};
const ways: [WorkerDescriptor, number][] = [];

function running(): WorkerService {
  if (service === undefined) throw new VpnError('ERR_NOT_RUNNING', 'the worker is not prepared');
  return service;
}

function fail(error: unknown): never {
  process.stderr.write(`a worker ended: ${toVpnError(error).message}\n`);
  process.exit(1);
}
process.on('uncaughtException', fail);

new DescriptorReceiver(DESCRIPTORS_FD, (bytes, fd) => {
  const descriptor = decodeWorkerDescriptor(bytes);
  const { use } = descriptor;
  if (use === 'auth' || use === 'listen' || use === 'primary' || use === 'plain') inherited[use].resolve(fd);
  else if (handover === undefined) ways.push([descriptor, fd]);
  else addWay(handover, descriptor, fd);
});

function addWay(to: Handover, descriptor: WorkerDescriptor, fd: number): void {
  if (descriptor.use === 'to') to.addWay(descriptor.worker, fd);
  else if (descriptor.use === 'from') to.addSender(descriptor.worker, fd);
  else to.addDialled(fd);
}

/** What others see of it in a list of processes: which worker it is, also of one that was started as none. */
function showNumber(worker: number): void {
  process.title = [...partCommand('worker', fileURLToPath(import.meta.url)), worker].join(' ');
}

new IpcChannel({
  fd: SUPERVISOR_FD,
  out: workerToSupervisor,
  in: supervisorToWorker,
  handlers: {
    alive: async () => ({}),
    load: async () => {
      await warm;
      return {};
    },
    prepare: async ({ worker, config, identity, primary, plain }) => {
      const log = createLogger(config.log).child({ worker });
      const devices = {
        primary: tunOf({ fd: await inherited.primary.promise, ...primary }),
        plain: plain === undefined ? undefined : tunOf({ fd: await inherited.plain.promise, ...plain }),
      };
      const link = new AuthLink(await inherited.auth.promise, running, () => process.exit(0));
      auth = link;
      const given = new Handover({ worker, maxInHandshake: () => Math.floor(running().maxHandshakes / 2) });
      handover = given;
      for (const [descriptor, fd] of ways.splice(0)) addWay(given, descriptor, fd);
      const dialler = new DialLink(() => link);
      given.onDialled = (id, fd) => dialler.take(id, fd);
      const proxy = config.proxy.enabled ? { auth: link.proxies, dialler } : undefined;
      service = new WorkerService({ config, auth, proxy, devices, handover, clock: systemClock, log });
      await warm;
      showNumber(worker);
      giveUpRights(identity);
      enterCage('worker', { log });
      return {};
    },
    serve: async ({ credentials }) => {
      const worker = running();
      worker.restore((await auth?.waiting()) ?? []);
      await worker.start(await inherited.listen.promise, credentials);
      return {};
    },
    useCredentials: async ({ credentials }) => {
      running().useCredentials(credentials);
      return {};
    },
    stop: async ({ reason }) => {
      await running().stop(reason);
      return {};
    },
  },
  limits: LIMITS_FROM_ABOVE,
  closed: () => process.exit(0),
});
