/**
 * The program `customvpn`: wires the command line to gateway, client and machine.
 *
 * The only place that knows all of them. It decides where logs go, what a signal does, and how a client gets into the
 * background; everything else is in the rooms.
 */

import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import { ERROR_CODES, type ErrorCode, toVpnError, VpnError } from '../src/base/errors.ts';
import { createLogger, type Logger } from '../src/base/log.ts';
import { makePrivateFolder } from '../src/base/private-file.ts';
import type { ClientRun, CliHost } from '../src/cli/host.ts';
import { runProgram } from '../src/cli/program.ts';
import { cleanClients, clientOf, findClients, runClient } from '../src/client/daemon.ts';
import { probe } from '../src/client/probe.ts';
import { type GatewayApi, gatewayOperations } from '../src/control/operations.ts';
import { answers, connectControl, serveControl } from '../src/control/socket.ts';
import { createAdministration } from '../src/gateway/administration.ts';
import type { GatewayConfig } from '../src/gateway/config.ts';
import { initGateway, openPool } from '../src/gateway/init.ts';
import { VpnServer } from '../src/gateway/server.ts';
import { GatewayState, readGatewayConfig, statePaths } from '../src/gateway/state.ts';
import { loadServerCredentials } from '../src/transport/credentials.ts';
import { serverTlsOptions } from '../src/transport/tls.ts';
import { warmUp } from '../src/transport/warm-up.ts';

const version = readVersion();
/** A client in the background writes its outcome to this descriptor, as one JSON line, when it is up or has failed. */
const OUTCOME_FD = 3;
/** Some 4,000 packets make the code fast; `npm run bench` shows what they are worth. */
const WARM_UP = { rounds: 4000, timeMs: 1500 };
const OUTCOME_VARIABLE = 'CUSTOMVPN_OUTCOME_FD';

const host: CliHost = {
  openGateway,
  initGateway: async (init) => {
    const { config, configFile, pki } = await initGateway(init.state, init);
    return {
      configFile,
      certificates: [pki.paths.ca, pki.paths.server],
      names: config.names,
      listen: `${config.address.includes(':') ? `[${config.address}]` : config.address}:${config.port}`,
      pool: config.pool,
      routes: config.routes,
    };
  },
  checkGateway: async (source) => {
    const config = await readGatewayConfig(configFileOf(source));
    openPool(config);
    serverTlsOptions(await loadServerCredentials(config), config.requireClientAuth, config.minVersion);
    return `${configFileOf(source)} is good`;
  },
  runGateway,
  openClients: findClients,
  runClient: async (run) => {
    const log = createLogger({ level: 'info' });
    const outcome = openOutcome();
    try {
      await withSignals((signal) =>
        runClient(
          {
            ...run,
            version,
            log,
            onReady: () => {
              if (outcome === undefined) process.stdout.write('up\n');
              else outcome({});
              // Not before: the tunnel is of use already.
              void warmPath(log);
            },
          },
          signal,
        ),
      );
    } catch (error) {
      outcome?.({ error: toVpnError(error) });
      throw error;
    }
  },
  startClient,
  cleanClients: (state) => cleanClients(state, createLogger({ level: 'warn' })),
  probe,
  requirements: async () => (await import('../src/os/requirements.ts')).findRequirements(),
};

process.exitCode = await runProgram(host, version, process.argv.slice(2));

async function runGateway(source: { state: string; config?: string }): Promise<void> {
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
  const server = new VpnServer({ ...config, stateDir: source.state, log, version });
  await withSignals(async (signal) => {
    await Promise.all([server.start(), warmPath(log)]);
    signal.addEventListener('abort', () => void server.stop(), { once: true });
    if (signal.aborted) await server.stop();
    else {
      await using _control = await serveControl(paths.control, gatewayOperations, server.api(readConfig), log);
      reloadOnHangUp(server, readConfig, log);
      process.stdout.write('ready\n');
      await server.stopped;
    }
  });
}

/** Makes the first packets as fast as later ones. Without a loopback interface they are slower, and that is all. */
async function warmPath(log: Logger): Promise<void> {
  try {
    const rounds = await warmUp(WARM_UP);
    log.debug('warm', { rounds });
  } catch (error) {
    log.debug('the packet path was not warmed', { error });
  }
}

/** SIGHUP reads the configuration again. */
function reloadOnHangUp(server: VpnServer, readConfig: () => Promise<GatewayConfig>, log: Logger): void {
  process.on('SIGHUP', () => {
    readConfig()
      .then((config) => server.reload(config))
      .catch((error: unknown) => log.error('the configuration was not reloaded; the old one stays', { error }));
  });
}

/** The running gateway's operations, or, where none runs, those on its state directory. */
async function openGateway(state: string): Promise<GatewayApi & AsyncDisposable> {
  const paths = statePaths(state);
  if (await answers(paths.control)) {
    return { ...connectControl(paths.control, gatewayOperations), [Symbol.asyncDispose]: async () => {} };
  }
  const opened = await GatewayState.open(state, systemClock);
  const config = await readGatewayConfig(paths.config);
  const idle = { endSessions: () => 0, reloadCertificates: async () => {} };
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

/** Starts this program again as a client in the background and waits for its outcome. */
async function startClient(run: ClientRun): Promise<Awaited<ReturnType<typeof clientOf>>> {
  const logFile = join(resolve(run.state), 'client.log');
  await makePrivateFolder(resolve(run.state));
  const log = openSync(logFile, 'a', 0o600);
  const argv = [
    'client',
    'up',
    resolve(run.profile),
    '--state',
    resolve(run.state),
    '--foreground',
    ...(run.plain ? ['--plain'] : []),
  ];
  const child = spawn(process.execPath, [...process.execArgv, process.argv[1] ?? '', ...argv], {
    detached: true,
    stdio: ['ignore', 'ignore', log, 'pipe'],
    env: { ...process.env, [OUTCOME_VARIABLE]: String(OUTCOME_FD) },
  });
  closeSync(log);
  const pipe = child.stdio[OUTCOME_FD];
  let text = '';
  for await (const chunk of pipe as AsyncIterable<Buffer>) {
    text += chunk.toString('utf8');
    if (text.includes('\n')) break;
  }
  child.unref();
  const outcome = JSON.parse(
    text === '' ? '{"code":"ERR_INVARIANT","message":"the client ended without a word"}' : text,
  ) as {
    code?: string;
    message?: string;
  };
  if (outcome.code !== undefined) {
    const code = ERROR_CODES.find((known): known is ErrorCode => known === outcome.code) ?? 'ERR_INVARIANT';
    throw new VpnError(code, `${outcome.message ?? 'the client did not start'}; its log: ${logFile}`);
  }
  return await clientOf(run.state, run.profile);
}

/** Where a client in the background says how its start went; undefined in the foreground. */
function openOutcome(): ((outcome: { error?: VpnError }) => void) | undefined {
  if (process.env[OUTCOME_VARIABLE] !== String(OUTCOME_FD)) return undefined;
  let isSaid = false;
  return ({ error }) => {
    if (isSaid) return;
    isSaid = true;
    writeSync(
      OUTCOME_FD,
      `${JSON.stringify(error === undefined ? {} : { code: error.code, message: error.message })}\n`,
    );
    closeSync(OUTCOME_FD);
  };
}

/** Runs until done, or until a signal asks to stop; a second signal ends the process at once. */
async function withSignals(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const controller = new AbortController();
  const stop = (): void => {
    if (controller.signal.aborted) process.exit(130);
    controller.abort();
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);
  try {
    await work(controller.signal);
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop);
  }
}

function configFileOf({ state, config }: { state: string; config?: string }): string {
  return config ?? statePaths(state).config;
}

function readVersion(): string {
  const file = join(dirname(import.meta.dirname), 'package.json');
  const { version: found } = JSON.parse(readFileSync(file, 'utf8')) as { version: string };
  return found;
}
