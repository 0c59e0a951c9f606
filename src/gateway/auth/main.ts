/**
 * The program of auth's process.
 *
 * Hides the order in which it becomes what it is: it opens the store, the keys and the secrets of the configuration while it
 * may, gives up every right, and only then hears what workers and operators say. What it has open it keeps; of the state
 * directory it can reach nothing afterwards but the folder of certificates, in which it was started. It ends with the
 * supervisor.
 *
 * Descriptors: 3 supervisor, 4 packets with the channels of workers, 5 listening control socket; then those of metrics and of the
 * admin page where the configuration has them, and the log of denied packets where there is one.
 */

import type { Socket } from 'node:net';
import { systemClock } from '../../base/clock.ts';
import { toVpnError, VpnError } from '../../base/errors.ts';
import { createLogger, type Logger } from '../../base/log.ts';
import { type GatewayApi, gatewayOperations } from '../../control/operations.ts';
import { serveControl } from '../../control/socket.ts';
import { enterCage } from '../../os/cage.ts';
import { giveUpRights } from '../../os/launcher.ts';
import { closeFd, socketFd } from '../../os/socket.ts';
import { DescriptorReceiver, DescriptorSender, peerUser } from '../../os/unix-socket.ts';
import type { AdminPage } from '../admin/admin.ts';
import type { GatewayConfig } from '../config.ts';
import { Dialler, HostDialNetwork } from '../dialler.ts';
import { IpcChannel } from '../ipc/channel.ts';
import { decodeNewcomer } from '../ipc/descriptors.ts';
import { authToSupervisor, LIMITS_FROM_ABOVE, supervisorToAuth } from '../ipc/messages.ts';
import { DialDesk } from './dial-desk.ts';
import { JoinedWorkers } from './joined-workers.ts';
import { Observers } from './observers.ts';
import { type GatewayFacts, gatewayApi } from './operations.ts';
import { AuthService } from './service.ts';
import { SupervisorLink } from './supervisor-link.ts';
import { WorkerLink } from './worker-link.ts';

const SUPERVISOR_FD = 3;
const WORKERS_FD = 4;
/** A process that has closed its channel ends within this time, or it does not mean to. */
const ENDING_MS = 1000;
const CONTROL_FD = 5;
const METRICS_FD = 6;

/** The folder in which it was started, which it may not be able to reach by its name. */
const CERTS = '/proc/self/cwd';

// Signals of a terminal go to the supervisor too, which knows what to do.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => {});

function fail(error: unknown): never {
  process.stderr.write(`auth ended: ${toVpnError(error).message}\n`);
  process.exit(1);
}
process.on('uncaughtException', fail);

interface Prepared {
  service: AuthService;
  log: Logger;
  /** What `CERTS` is called by everybody else. */
  folder: string;
}

const supervisor = new SupervisorLink(() => channel);
let prepared: Prepared | undefined;
let facts: GatewayFacts | undefined;
let control: AsyncDisposable | undefined;
let observers: AsyncDisposable | undefined;
let adminPage: AdminPage | undefined;
let isStopping = false;
const ways = new Map<number, number>();

function running(): Prepared {
  if (prepared === undefined) throw new VpnError('ERR_NOT_RUNNING', 'auth is not prepared');
  return prepared;
}

const channel = new IpcChannel({
  fd: SUPERVISOR_FD,
  out: authToSupervisor,
  in: supervisorToAuth,
  handlers: {
    alive: async () => ({}),
    prepare: async ({ config, firstPool, workers, state, identity, showsDenied, page }) => {
      const log = createLogger(config.log);
      const service = await AuthService.open({
        config,
        firstPool,
        workers,
        stateDir: state,
        files: supervisor,
        policyFiles: supervisor,
        certs: CERTS,
        page,
        clock: systemClock,
        log,
      });
      prepared = { service, log, folder: `${state}/certs` };
      if (showsDenied) service.readDenied(descriptorsOf(config).denied);
      giveUpRights(identity);
      enterCage('auth', { log });
      return {};
    },
    begin: async ({ facts: { port, ...given }, drainSeconds }) => {
      const { service } = running();
      facts = given;
      await service.begin({ supervisor, port, useCredentials: (what) => supervisor.useCredentials(what) });
      if (drainSeconds !== undefined) service.drain(drainSeconds, () => supervisor.stop());
      const workers = joinedWorkers(service, running().log);
      new DescriptorReceiver(WORKERS_FD, (bytes, fd) => {
        const newcomer = decodeNewcomer(bytes);
        if (newcomer.pid === undefined) takeWay(newcomer.worker, fd);
        else workers.take(newcomer, fd);
      });
      return {};
    },
    serve: async () => {
      const { service, log, folder } = running();
      if (facts === undefined) throw new VpnError('ERR_INVARIANT', 'auth serves before it has begun');
      service.start();
      const api = gatewayApi(service, facts, {
        readConfig: () => supervisor.readConfig(),
        stop: () => supervisor.stop(),
        drained: (seconds) => supervisor.drained(seconds),
        report: () => supervisor.report(),
        replaceWorkers: () => supervisor.replaceWorkers(),
        admin: () => adminPage,
      });
      const operations = inTheirWords(api, folder);
      if (service.config.admin.listen !== undefined)
        adminPage = await service.openAdmin(operations, facts.version, { fd: descriptorsOf(service.config).page });
      const forUsers = service.unixUsers.operations(operations);
      const userOf = (socket: Socket): number => peerUser(socketFd(socket));
      control = await serveControl({ fd: CONTROL_FD }, gatewayOperations, forUsers, log, userOf);
      const at = service.config.metrics.listen === undefined ? undefined : { fd: METRICS_FD };
      observers = await Observers.open({ service, facts, report: () => supervisor.report(), at, log });
      await service.lookAtEnds();
      for (const warning of await service.warnings({ ends: false })) log.warn(warning, { component: 'server' });
      return {};
    },
    reload: async () => {
      await running().service.reload(await supervisor.readConfig());
      return {};
    },
    pause: async () => {
      await prepared?.service.pause();
      return {};
    },
    stop: async () => {
      isStopping = true;
      await control?.[Symbol.asyncDispose]();
      await observers?.[Symbol.asyncDispose]();
      await prepared?.service.close();
      return {};
    },
  },
  limits: LIMITS_FROM_ABOVE,
  closed: () => process.exit(0),
});

/** Where the admin page's listening socket is, and the log of denied packets after it. */
function descriptorsOf({ metrics, admin }: GatewayConfig): { page: number; denied: number } {
  const page = metrics.listen === undefined ? METRICS_FD : METRICS_FD + 1;
  return { page, denied: admin.listen === undefined ? page : page + 1 };
}

/** By which a worker gets the connections that are made for it. Comes before the worker itself. */
function takeWay(worker: number, fd: number): void {
  const former = ways.get(worker);
  if (former !== undefined) closeFd(former);
  ways.set(worker, fd);
}

function joinedWorkers(service: AuthService, log: Logger): JoinedWorkers<WorkerLink> {
  return new JoinedWorkers({
    open: ({ worker }, fd, closed) => {
      const dialler = new Dialler({
        network: new HostDialNetwork({ isRead: false }),
        userOf: (key) => service.userOf(key, worker),
        config: () => service.config,
        judge: (facts) => service.judgeStream(facts, worker),
      });
      const desk = new DialDesk(dialler, new DescriptorSender(ways.get(worker) ?? -1));
      const waiting = () => service.sessionsOf(worker);
      return new WorkerLink(fd, service.gateOf(worker), service.proxyGateOf(worker), desk, waiting, closed);
    },
    connect: (worker, link) => service.connect(worker, link),
    // In the end all go, and have said all they had to say.
    disconnect: async (worker) => {
      if (!isStopping) await service.disconnect(worker);
    },
    closed: ({ worker, pid = 0 }, error) => {
      if (error !== undefined) {
        log.error('a worker was cut off', { component: 'auth', worker, code: error.code, reason: error.message });
      }
      // One that only went silent has its share of the port's connections while it lives; one that has ended is known to have.
      const replace = (): void => {
        if (!isStopping) supervisor.replace(worker, pid, error === undefined);
      };
      if (error === undefined) setTimeout(replace, ENDING_MS);
      else replace();
    },
    failed: (worker, error) => {
      log.error('the sessions of a worker could not be put aside', { component: 'auth', worker, error });
    },
  });
}

/** The operations, with the folder of certificates by its name in whatever they answer. */
function inTheirWords(api: GatewayApi, folder: string): GatewayApi {
  const renamed = (text: string): string => text.replaceAll(CERTS, () => folder);
  const operations = Object.entries(api).map(([name, operation]) => [
    name,
    async (input: never) => {
      try {
        return JSON.parse(renamed(JSON.stringify(await operation(input)) ?? 'null')) as unknown;
      } catch (cause) {
        const { code, message, details } = toVpnError(cause);
        throw new VpnError(code, renamed(message), { cause, details });
      }
    },
  ]);
  return Object.fromEntries(operations) as GatewayApi;
}
