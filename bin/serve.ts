/**
 * Runs a gateway: in processes of its own where it is started as root, else in this one.
 *
 * Loads only what this process itself needs, because clients wait.
 */

import { availableParallelism } from 'node:os';
import { VpnError } from '../src/base/errors.ts';
import { createLogger, type Logger } from '../src/base/log.ts';
import type { GatewaySource } from '../src/cli/host.ts';
import { type GatewayApi, gatewayOperations } from '../src/control/operations.ts';
import { answers, connectControl, serveControl } from '../src/control/socket.ts';
import type { GatewayConfig } from '../src/gateway/config.ts';
import { readGatewayConfig, statePaths } from '../src/gateway/layout.ts';
import { GatewayProcesses } from '../src/gateway/supervisor/processes.ts';
import { ServiceManager } from '../src/os/service-manager.ts';
import { configFileOf, noteConfigFile } from './gateway-source.ts';
import { withSignals } from './run.ts';

const MAX_WORKERS = 64;

/** `server run`. */
export async function runGateway(source: GatewaySource, version: string): Promise<void> {
  const readConfig = () => readGatewayConfig(configFileOf(source));
  const config = await readConfig();
  const log = createLogger(config.log);
  const paths = statePaths(source.state);
  if (await answers(paths.control)) {
    throw new VpnError(
      'ERR_ALREADY_RUNNING',
      `a gateway runs already with the state directory ${source.state}; stop it with: customvpn server stop --state ${source.state}`,
    );
  }
  const workers = config.workers ?? Math.min(availableParallelism(), MAX_WORKERS);
  const options: RunOptions = { source, config, readConfig, version, log };
  // Other users and their processes are root's to make.
  if (workers === 0 || process.geteuid?.() !== 0) await runInOneProcess(options);
  else await runInProcesses(options, workers);
}

interface RunOptions {
  source: GatewaySource;
  config: GatewayConfig;
  readConfig: () => Promise<GatewayConfig>;
  version: string;
  log: Logger;
}

async function runInProcesses(
  { source, config, readConfig, version, log }: RunOptions,
  workers: number,
): Promise<void> {
  using manager = ServiceManager.fromEnvironment();
  await withSignals(async (signal) => {
    const gateway = await GatewayProcesses.start({
      config,
      stateDir: source.state,
      workers,
      readConfig,
      version,
      log,
      stopping: () => manager.stopping(),
    });
    const stop = (): void => {
      gateway.stop().catch((error: unknown) => log.error('the gateway did not stop cleanly', { error }));
    };
    reloadOnHangUp(() => gateway.reload(), log);
    try {
      signal.addEventListener('abort', stop, { once: true });
      if (signal.aborted) return;
      await noteConfigFile(source);
      process.stdout.write('ready\n');
      manager.ready(`listening on ${gateway.listen}`);
      if (config.admin.listen !== undefined) {
        await showFirstLink(connectControl(statePaths(source.state).control, gatewayOperations), log);
      }
      await gateway.stopped;
    } finally {
      await gateway.stop();
    }
  });
}

async function runInOneProcess({ source, config, readConfig, version, log }: RunOptions): Promise<void> {
  const [{ VpnServer }, { warmPath }] = await Promise.all([import('../src/gateway/server.ts'), import('./warm.ts')]);
  using manager = ServiceManager.fromEnvironment();
  const paths = statePaths(source.state);
  const server = new VpnServer({ ...config, stateDir: source.state, log, version });
  reloadOnHangUp(async () => await server.reload(await readConfig()), log);
  await withSignals(async (signal) => {
    try {
      await Promise.all([server.start(), warmPath(log)]);
      const api = server.api(readConfig);
      const stopped: GatewayApi['server.stop'] = async (input) => {
        manager.stopping();
        return await api['server.stop'](input);
      };
      const operations = { ...api, 'server.stop': stopped };
      await server.openAdmin(readConfig);
      await using _control = await serveControl(paths.control, gatewayOperations, operations, log);
      const stop = (): void => {
        manager.stopping();
        server.stop().catch((error: unknown) => log.error('the gateway did not stop cleanly', { error }));
      };
      signal.addEventListener('abort', stop, { once: true });
      if (signal.aborted) return;
      await noteConfigFile(source);
      process.stdout.write('ready\n');
      manager.ready(`listening on ${formatEndpoint(server.address)}`);
      if (config.admin.listen !== undefined) await showFirstLink(operations, log);
      await server.stopped;
    } finally {
      await server.stop();
    }
  });
}

/** Where nobody can steer the gateway by the page yet: how to become the first who can. */
async function showFirstLink(api: Pick<GatewayApi, 'user.groups' | 'admin.link'>, log: Logger): Promise<void> {
  try {
    const groups = await api['user.groups']({});
    if (groups.some(({ role, users }) => role === 'administrator' && users > 0)) return;
    const { url } = await api['admin.link']({});
    process.stdout.write(`the admin page has no administrator yet; become one here (once, within an hour):\n${url}\n`);
  } catch (error) {
    log.warn('no link for the first administrator; make one with: customvpn server admin-link', { error });
  }
}

function formatEndpoint({ address, port }: { address: string; port: number }): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

/** SIGHUP reads the configuration again. */
function reloadOnHangUp(reload: () => Promise<unknown>, log: Logger): void {
  process.on('SIGHUP', () => {
    reload().catch((error: unknown) => log.error('the configuration was not reloaded; the old one stays', { error }));
  });
}
