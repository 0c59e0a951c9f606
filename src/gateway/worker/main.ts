/**
 * The program of a worker's process.
 *
 * Hides the order in which it becomes what it is: load everything, run the packet path once over, take the descriptors that
 * it was started with, give up every right, and only then hear what comes from the network. It ends with the supervisor, and
 * with auth.
 *
 * Descriptors: 3 supervisor, 4 auth, 5 listening socket, 6 primary device, 7 plain device, 8 connections that other workers
 * give, then one way to each other worker.
 */

import { systemClock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import { createLogger } from '../../base/log.ts';
import { enterCage } from '../../os/cage.ts';
import { giveUpRights } from '../../os/launcher.ts';
import { tunOf } from '../../os/tun-linux.ts';
import { warmUp } from '../../transport/warm-up.ts';
import { IpcChannel } from '../ipc/channel.ts';
import { LIMITS_FROM_ABOVE, supervisorToWorker, workerToSupervisor } from '../ipc/messages.ts';
import { AuthLink } from './auth-link.ts';
import { DialLink } from './dial-link.ts';
import { Handover } from './handover.ts';
import { WorkerService } from './service.ts';

const SUPERVISOR_FD = 3;
const AUTH_FD = 4;
const LISTEN_FD = 5;
const PRIMARY_FD = 6;
const PLAIN_FD = 7;
const HANDOVER_FD = 8;
const FIRST_WAY_FD = 9;

/** Some 4,000 packets make the code fast; `npm run bench` shows what they are worth. */
const WARM_UP = { rounds: 4000, timeMs: 1500 };

// Signals of a terminal go to the supervisor too, which knows what to do.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});

// Clients of a worker that takes another's place wait for it: slow at first is better than late.
const warm = process.argv.includes('--cold') ? Promise.resolve(0) : warmUp(WARM_UP).catch(() => 0);
let service: WorkerService | undefined;
let auth: AuthLink | undefined;

function running(): WorkerService {
  if (service === undefined) throw new VpnError('ERR_NOT_RUNNING', 'the worker is not prepared');
  return service;
}

function fail(error: unknown): never {
  process.stderr.write(`a worker ended: ${toVpnError(error).message}\n`);
  process.exit(1);
}
process.on('uncaughtException', fail);

new IpcChannel({
  fd: SUPERVISOR_FD,
  out: workerToSupervisor,
  in: supervisorToWorker,
  handlers: {
    prepare: async ({ worker, config, identity, primary, plain, others }) => {
      const log = createLogger(config.log).child({ worker });
      const devices = {
        primary: tunOf({ fd: PRIMARY_FD, ...primary }),
        plain: tunOf({ fd: PLAIN_FD, ...plain }),
      };
      const link = new AuthLink(AUTH_FD, running, () => process.exit(0));
      auth = link;
      const ways = new Map(others.map((other, index) => [other, FIRST_WAY_FD + index]));
      const handover = { ways: new Handover(worker, ways), fd: HANDOVER_FD };
      const dialler = new DialLink(() => link);
      handover.ways.onDialled = (id, fd) => dialler.take(id, fd);
      const proxy = config.proxy.enabled ? { auth: link.proxies, dialler } : undefined;
      service = new WorkerService({ config, auth, proxy, devices, handover, clock: systemClock, log });
      await warm;
      giveUpRights(identity);
      enterCage('worker', { log });
      return {};
    },
    serve: async ({ credentials }) => {
      const worker = running();
      worker.restore((await auth?.waiting()) ?? []);
      await worker.start(LISTEN_FD, credentials);
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
