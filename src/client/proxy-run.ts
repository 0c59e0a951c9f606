/**
 * A client that is a proxy for programs on its machine, and has no tunnel: `client proxy`.
 *
 * Hides what it shares with other clients of the profile: the device's key, the one session that a device has, and the
 * control socket by which it is found. It changes nothing on the host and needs no privilege.
 */

import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { makePrivateFolder } from '../base/private-file.ts';
import { clientOperations } from '../control/operations.ts';
import { readProfile } from '../control/profile.ts';
import { answers, type Handlers, serveControl } from '../control/socket.ts';
import { VpnClient } from './client.ts';
import { statusOf } from './client-status.ts';
import { DeviceKey } from './device-key.ts';
import { LocalProxy } from './local-proxy.ts';
import type { AnswerSteps } from './login-answers.ts';
import { optionsForProfile } from './profile-client.ts';
import { ProxyStreams } from './proxy-streams.ts';
import { machineNetwork } from './roaming.ts';
import { profilePaths } from './state-folder.ts';

export interface ProxyRunOptions {
  /** Path of the profile file. */
  profile: string;
  /** The client's state directory. */
  state: string;
  /** Default: the profile's. */
  user?: string;
  answer?: AnswerSteps;
  socks?: { host: string; port: number };
  http?: { host: string; port: number };
  expose: boolean;
  version: string;
  log: Logger;
  /** Told once, when programs can connect, and where. */
  onReady(where: { socks: string | undefined; http: string | undefined }): void;
}

/** Nothing is done to the machine. */
const NO_HOST = { plan: undefined, nameKeeper: 'none', isClosed: false, isPortalOpen: false } as const;

/**
 * Runs until it is told to stop, by its control socket or by `signal`.
 *
 * @throws {VpnError} what made it stop: ERR_CONFIG_* for the profile, ERR_ALREADY_RUNNING, ERR_USAGE, ERR_PORT_TAKEN,
 *   ERR_TLS_ALPN (the gateway is no proxy), ERR_AUTH_*, ERR_CERT_*
 */
export async function runProxy(options: ProxyRunOptions, signal: AbortSignal): Promise<void> {
  const { log, version } = options;
  const profile = await readProfile(options.profile);
  const paths = profilePaths(options.state, profile.id);
  await makePrivateFolder(paths.folder);
  if (await answers(paths.control)) {
    throw new VpnError(
      'ERR_ALREADY_RUNNING',
      `this profile is connected already, and a device has one session; disconnect with: customvpn client down --state ${options.state}`,
    );
  }
  let streams: ProxyStreams | undefined;
  const { state, user, answer } = options;
  const key = await DeviceKey.open(paths.key);
  const client = new VpnClient({
    ...optionsForProfile({ profile, path: options.profile, state, key, user, answer, log, version }),
    ...(process.platform === 'linux' ? { network: machineNetwork() } : {}),
    // What was lost on the way is noticed now, and not when a program waits for it.
    onState: (state) => void (state === 'connected' && streams?.check()),
  });
  const isProxy = async (): Promise<never> => {
    throw new VpnError(
      'ERR_CONFLICT',
      'this profile is used by client proxy, and a device has one session; end that first',
    );
  };
  const operations: Handlers<typeof clientOperations> = {
    'client.status': async () => statusOf(client.snapshot, profile, NO_HOST, version),
    'client.up': async () => ({}),
    'client.portal': async () => {
      throw new VpnError('ERR_BAD_REQUEST', 'this client is a proxy and has no kill switch to open');
    },
    'client.down': async () => {
      await client.disconnect();
      return {};
    },
    'client.next': async () => {
      const { state, lastError } = statusOf(client.snapshot, profile, NO_HOST, version);
      return { news: { kind: 'nothing' }, state, lastError };
    },
    'client.answer': async () => ({}),
    'client.enter': isProxy,
    'client.hold': isProxy,
    'client.leave': isProxy,
  };
  await using undo = new AsyncDisposableStack();
  undo.use(await serveControl(paths.control, clientOperations, operations, log));
  const stop = (): void => void client.disconnect();
  signal.addEventListener('abort', stop, { once: true });
  undo.defer(() => signal.removeEventListener('abort', stop));
  undo.defer(() => client.disconnect());
  streams = undo.use(new ProxyStreams(client, log));
  const { socks, http, expose } = options;
  // Before the login: a port that is taken must not cost the device its other session.
  const proxy = undo.use(await LocalProxy.open({ streams, socks, http, expose, log }));
  if (signal.aborted) return;
  try {
    await client.connect();
    await streams.prepare();
    options.onReady({ socks: textOf(proxy.socks), http: textOf(proxy.http) });
    await client.stopped;
  } catch (error) {
    if (!client.wasAskedToStop) throw error;
  }
  const { lastError } = client.snapshot;
  if (lastError !== undefined && !client.wasAskedToStop) throw lastError;
}

function textOf(endpoint: { host: string; port: number } | undefined): string | undefined {
  if (endpoint === undefined) return undefined;
  const { host, port } = endpoint;
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}
