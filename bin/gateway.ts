/**
 * The verbs of a gateway: on its state directory, and on the running one.
 */

import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import { VpnError } from '../src/base/errors.ts';
import type {
  GatewayInit,
  GatewayInitResult,
  GatewaySource,
  RunningProcess,
  StoreCopyResult,
} from '../src/cli/host.ts';
import { type GatewayApi, gatewayOperations, RUNNING_ONLY } from '../src/control/operations.ts';
import { answers, connectControl } from '../src/control/socket.ts';
import { createAdministration } from '../src/gateway/administration.ts';
import { checkCertificateStep } from '../src/gateway/config.ts';
import { credentialFiles } from '../src/gateway/credential-files.ts';
import { readCredentials } from '../src/gateway/credentials.ts';
import { initGateway } from '../src/gateway/init.ts';
import { readGatewayConfig, statePaths } from '../src/gateway/layout.ts';
import { openPool } from '../src/gateway/pool.ts';
import { GatewayState, placeOfStore } from '../src/gateway/state.ts';
import { openBackend } from '../src/identity/backends/open.ts';
import { ProcessTree } from '../src/os/process-tree.ts';
import { gatewayUnit } from '../src/os/systemd-unit.ts';
import type { GatewayNetworks } from '../src/policy/sites.ts';
import { backUp, restore } from '../src/store/backup.ts';
import { configFileOf, presentConfigFileOf } from './gateway-source.ts';
import type { PolicyWorld } from './policy.ts';

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

/** The networks of the gateway of a state directory; none where there is no gateway. */
export async function gatewayNetworks(state: string): Promise<GatewayNetworks> {
  if (!existsSync(statePaths(state).config)) return { pool: [], routes: [] };
  const { pool, routes } = await readGatewayConfig(await presentConfigFileOf({ state }));
  return { pool, routes };
}

/** What the gateway of a state directory adds to a policy; nothing where there is none. */
export async function policyWorld(state: string): Promise<PolicyWorld> {
  const networks = await gatewayNetworks(state);
  if (networks.pool.length === 0) return { ...networks, groupsOfUser: () => [] };
  await using gateway = await openGateway({ state });
  const groups = new Map((await gateway['user.list']({})).map((user) => [user.name, user.groups]));
  return { ...networks, groupsOfUser: (user) => groups.get(user) ?? [] };
}

/** Which processes of a gateway still run. */
export async function watchProcesses(pid: number): Promise<() => readonly RunningProcess[]> {
  const tree = new ProcessTree(pid);
  // The number of one in a container is here that of somebody else.
  return /\bserver run\b/.test(tree.command) ? () => tree.left() : () => [];
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
    ...(Object.fromEntries(RUNNING_ONLY.map((name) => [name, notRunning])) as Record<
      (typeof RUNNING_ONLY)[number],
      typeof notRunning
    >),
    [Symbol.asyncDispose]: () => opened[Symbol.asyncDispose](),
  };
}
