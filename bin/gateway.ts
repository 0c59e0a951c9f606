/**
 * The verbs of a gateway: on its state directory, on the running one, and running it.
 */

import { existsSync } from 'node:fs';
import { readFile, rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import { VpnError } from '../src/base/errors.ts';
import { createLogger, type Logger } from '../src/base/log.ts';
import { writePrivateFile } from '../src/base/private-file.ts';
import type { GatewayInit, GatewayInitResult, GatewaySource, StoreCopyResult } from '../src/cli/host.ts';
import { type GatewayApi, gatewayOperations } from '../src/control/operations.ts';
import { answers, connectControl, serveControl } from '../src/control/socket.ts';
import { createAdministration } from '../src/gateway/administration.ts';
import { checkCertificateStep, type GatewayConfig } from '../src/gateway/config.ts';
import { credentialFiles, readCredentials } from '../src/gateway/credentials.ts';
import { initGateway, openPool } from '../src/gateway/init.ts';
import { VpnServer } from '../src/gateway/server.ts';
import { GatewayState, placeOfStore, readGatewayConfig, statePaths } from '../src/gateway/state.ts';
import { openBackend } from '../src/identity/backends/open.ts';
import { ServiceManager } from '../src/os/service-manager.ts';
import { gatewayUnit } from '../src/os/systemd-unit.ts';
import { backUp, restore } from '../src/store/backup.ts';
import type { PolicyWorld } from './policy.ts';
import { warmPath, withSignals } from './run.ts';

/** `server init`. */
export async function makeGateway(init: GatewayInit): Promise<GatewayInitResult> {
  const { config, configFile, pki } = await initGateway(init.state, init);
  return {
    configFile,
    certificates: [pki.paths.ca, pki.paths.server],
    names: config.names,
    listen: `${config.address.includes(':') ? `[${config.address}]` : config.address}:${config.port}`,
    pool: config.pool,
    routes: config.routes,
  };
}

/** `server run --check`: reads everything, opens nothing. */
export async function checkGateway(source: GatewaySource): Promise<string> {
  const config = await readGatewayConfig(configFileOf(source));
  openPool(config);
  checkCertificateStep(config);
  await readCredentials(config, credentialFiles(undefined), systemClock.wallNow());
  const place = await placeOfStore(source.state, config);
  if (typeof place !== 'string') (await import('../src/store/postgres.ts')).parsePostgresUrl(place.url);
  const parts = { grants: { load: async () => undefined, save: async () => {} }, clock: systemClock };
  for (const [name, settings] of Object.entries(config.backends)) {
    const backend = await openBackend(name, settings, parts);
    await backend.close();
  }
  return `${configFileOf(source)} is good`;
}

/** `server backup`. */
export async function backupStore(source: GatewaySource, file: string, force: boolean): Promise<StoreCopyResult> {
  return await backUp(await embeddedStore(source, 'pg_dump'), file, { force });
}

/** `server restore`. */
export async function restoreStore(source: GatewaySource, file: string, force: boolean): Promise<StoreCopyResult> {
  const { state } = source;
  const store = await embeddedStore(source, 'pg_restore');
  if (await answers(statePaths(state).control)) {
    throw new VpnError(
      'ERR_ALREADY_RUNNING',
      `the gateway of ${state} runs; stop it first: customvpn server stop --state ${state}`,
    );
  }
  return await restore(file, store, { force, clock: systemClock });
}

async function embeddedStore(source: GatewaySource, instead: string): Promise<string> {
  const { state } = source;
  const place = await placeOfStore(state, await readGatewayConfig(await presentConfigFileOf(source)));
  if (typeof place === 'string') return place;
  throw new VpnError('ERR_UNSUPPORTED', `the store of ${state} is at a PostgreSQL server; use its ${instead}`);
}

/** `server unit`. */
export async function unitOf({ state, config }: GatewaySource, program: string): Promise<string> {
  return gatewayUnit({ program, state: resolve(state), ...(config === undefined ? {} : { config: resolve(config) }) });
}

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
  using manager = ServiceManager.fromEnvironment();
  const server = new VpnServer({ ...config, stateDir: source.state, log, version });
  reloadOnHangUp(server, readConfig, log);
  await withSignals(async (signal) => {
    try {
      await Promise.all([server.start(), warmPath(log)]);
      const api = server.api(readConfig);
      const stopped: GatewayApi['server.stop'] = async (input) => {
        manager.stopping();
        return await api['server.stop'](input);
      };
      const operations = { ...api, 'server.stop': stopped };
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
      await server.stopped;
    } finally {
      await server.stop();
    }
  });
}

function formatEndpoint({ address, port }: { address: string; port: number }): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

/** SIGHUP reads the configuration again. */
function reloadOnHangUp(server: VpnServer, readConfig: () => Promise<GatewayConfig>, log: Logger): void {
  process.on('SIGHUP', () => {
    readConfig()
      .then((config) => server.reload(config))
      .catch((error: unknown) => log.error('the configuration was not reloaded; the old one stays', { error }));
  });
}

/** What the gateway of a state directory adds to a policy; nothing where there is none. */
export async function policyWorld(state: string): Promise<PolicyWorld> {
  if (!existsSync(statePaths(state).config)) return { pool: [], groupsOfUser: () => [] };
  const { pool } = await readGatewayConfig(await presentConfigFileOf({ state }));
  await using gateway = await openGateway({ state });
  const groups = new Map((await gateway['user.list']({})).map((user) => [user.name, user.groups]));
  return { pool, groupsOfUser: (user) => groups.get(user) ?? [] };
}

/** The running gateway's operations, or, where none runs, those on its state directory. */
export async function openGateway(source: GatewaySource): Promise<GatewayApi & AsyncDisposable> {
  const { state } = source;
  const paths = statePaths(state);
  if (await answers(paths.control)) {
    return { ...connectControl(paths.control, gatewayOperations), [Symbol.asyncDispose]: async () => {} };
  }
  const file = await presentConfigFileOf(source);
  const other = file === paths.config ? undefined : await readGatewayConfig(file);
  const opened = await GatewayState.open(state, systemClock, other === undefined ? {} : { config: other });
  const config = other ?? (await readGatewayConfig(file));
  opened.devicesPerUser = config.accounts.devicesPerUser;
  const idle = { endSessions: () => 0, endInsufficient: async () => 0, reloadCertificates: async () => {} };
  const notRunning = async (): Promise<never> => {
    throw new VpnError(
      'ERR_NOT_RUNNING',
      `the gateway does not run; start it with: customvpn server run --state ${state}`,
    );
  };
  return {
    ...createAdministration(opened, () => config, idle, systemClock.wallNow),
    'server.status': notRunning,
    'server.reload': notRunning,
    'server.stop': notRunning,
    'session.list': notRunning,
    'session.kick': notRunning,
    [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
  };
}

function configFileOf({ state, config }: GatewaySource): string {
  return config ?? statePaths(state).config;
}

/** That of the gateway as it ran last: else an account could land in a store that it does not use. */
async function presentConfigFileOf({ state, config }: GatewaySource): Promise<string> {
  if (config !== undefined) return config;
  const { config: own, configNote } = statePaths(state);
  const noted = await readFile(configNote, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw new VpnError('ERR_CONFIG_FILE', `cannot read ${configNote}: ${error.code}`, { cause: error });
  });
  return noted.trim() || own;
}

/** Notes the configuration that the gateway runs with, for commands while it does not. */
async function noteConfigFile({ state, config }: GatewaySource): Promise<void> {
  const { configNote } = statePaths(state);
  if (config === undefined) await rm(configNote, { force: true });
  else await writePrivateFile(configNote, `${resolve(config)}\n`);
}
