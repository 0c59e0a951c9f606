/**
 * A client that runs for one profile: keys on disk, a control socket, and the machine put back when it ends.
 *
 * Hides the client's state directory and what enrolment changes in it. It runs in the foreground; whoever wants it in the
 * background starts a process.
 *
 * ```
 * DIR/ID/device.key      the device's private key, ID being the profile's
 * DIR/ID/enrolled        the token has been used
 * DIR/ID/control.sock    the running client
 * DIR/ID/host.journal    what it has changed on the host
 * ```
 */

import { existsSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { makePrivateFolder, writePrivateFile } from '../base/private-file.ts';
import { type ClientApi, type ClientStatus, clientOperations } from '../control/operations.ts';
import { type Profile, readProfile, withoutToken, writeProfile } from '../control/profile.ts';
import { answers, connectControl, serveControl } from '../control/socket.ts';
import { formatIp, formatPrefix } from '../ip/address.ts';
import { HostNetwork } from '../os/host.ts';
import { type ClientSnapshot, VpnClient } from './client.ts';
import { DeviceKey } from './device-key.ts';
import { OWN_MARK } from './host-plan.ts';
import type { AnswerSteps } from './login-answers.ts';
import { machineNetwork } from './roaming.ts';
import { TunnelHost } from './tunnel-host.ts';
import { hostWishes, pushLimits, type TunnelFlags } from './wishes.ts';

export interface ClientRunOptions {
  /** Path of the profile file. */
  profile: string;
  /** The client's state directory. */
  state: string;
  /** Behave as a machine without super-packets. */
  plain: boolean;
  version: string;
  log: Logger;
  /** Default: the profile's. */
  user?: string;
  /** What the command line says of the tunnel; default: what the profile says. */
  tunnel?: TunnelFlags;
  answer?: AnswerSteps;
  /** Told once, when packets can flow. */
  onReady?: (() => void) | undefined;
}

function profilePaths(
  state: string,
  id: string,
): { folder: string; key: string; enrolled: string; control: string; journal: string } {
  const folder = join(resolve(state), id.slice(0, 16));
  const at = (name: string) => join(folder, name);
  return {
    folder,
    key: at('device.key'),
    enrolled: at('enrolled'),
    control: at('control.sock'),
    journal: at('host.journal'),
  };
}

/**
 * Runs a client until it is told to stop, by its control socket or by `signal`.
 *
 * @throws {VpnError} what made it stop: ERR_CONFIG_* for the profile, ERR_ALREADY_RUNNING, ERR_PRIVILEGE, ERR_AUTH_*, ERR_CERT_*
 */
export async function runClient(options: ClientRunOptions, signal: AbortSignal): Promise<void> {
  const { log, version } = options;
  const profile = await readProfile(options.profile);
  const paths = profilePaths(options.state, profile.id);
  await makePrivateFolder(paths.folder);
  if (await answers(paths.control)) {
    throw new VpnError(
      'ERR_ALREADY_RUNNING',
      `this profile is connected already; disconnect with: customvpn client down --state ${options.state}`,
    );
  }
  const deviceKey = await DeviceKey.open(paths.key);
  const isEnrolled = existsSync(paths.enrolled);
  const client = new VpnClient({
    serverHost: profile.server.hosts,
    serverPort: profile.server.port,
    serverName: profile.server.name,
    ...(profile.ca === undefined ? {} : { ca: profile.ca }),
    ...(profile.certFile === undefined ? {} : { certFile: resolve(dirname(options.profile), profile.certFile) }),
    ...(profile.keyFile === undefined ? {} : { keyFile: resolve(dirname(options.profile), profile.keyFile) }),
    pins: profile.pins,
    verifyServer: profile.verifyServer,
    deviceKey,
    enrol: !isEnrolled,
    ...userOf(options.user ?? profile.user),
    ...(options.answer === undefined ? {} : { answer: options.answer }),
    ...(isEnrolled || profile.token === undefined ? {} : { token: profile.token.reveal() }),
    limits: pushLimits(profile, options.tunnel ?? {}),
    mark: OWN_MARK,
    superPackets: !options.plain,
    network: machineNetwork(OWN_MARK),
    host: new TunnelHost({
      journalPath: paths.journal,
      superPackets: !options.plain,
      ...hostWishes(profile, options.tunnel ?? {}, options.answer, signal),
      log,
    }),
    onEnrolled: async () => {
      await writePrivateFile(paths.enrolled, `${new Date().toISOString()}\n`);
      await forgetToken(options.profile, profile, log);
    },
    log,
    version,
  });
  const stop = (): void => void client.disconnect();
  signal.addEventListener('abort', stop, { once: true });
  await using _control = await serveControl(
    paths.control,
    clientOperations,
    {
      'client.status': async () => statusOf(client.snapshot, profile, version),
      'client.down': async () => {
        await client.disconnect();
        return {};
      },
    },
    log,
  );
  try {
    if (signal.aborted) return;
    await client.connect();
    options.onReady?.();
    await client.stopped;
    const { lastError } = client.snapshot;
    if (lastError !== undefined && !client.wasAskedToStop) throw lastError;
  } catch (error) {
    if (!client.wasAskedToStop) throw error;
  } finally {
    await client.disconnect();
    signal.removeEventListener('abort', stop);
  }
}

/** The running clients under a state directory. */
export async function findClients(state: string): Promise<Map<string, ClientApi>> {
  const clients = new Map<string, ClientApi>();
  for (const id of await profileIds(state)) {
    const { control } = profilePaths(state, id);
    if (await answers(control)) clients.set(id, connectControl(control, clientOperations));
  }
  return clients;
}

/** The running client of a profile. @throws {VpnError} ERR_NOT_RUNNING on its calls when there is none */
export async function clientOf(state: string, profile: string): Promise<ClientApi> {
  const { id } = await readProfile(profile);
  return connectControl(profilePaths(state, id).control, clientOperations);
}

/** Takes back what clients that died left on the host; returns how many had left something. */
export async function cleanClients(state: string, log: Logger): Promise<number> {
  let cleaned = 0;
  for (const id of await profileIds(state)) {
    const { control, journal } = profilePaths(state, id);
    if ((await answers(control)) || (!existsSync(control) && !existsSync(journal))) continue;
    const host = await HostNetwork.open({ journalPath: journal, log });
    await host.revert();
    await rm(control, { force: true });
    cleaned += 1;
  }
  return cleaned;
}

async function profileIds(state: string): Promise<string[]> {
  try {
    return (await readdir(resolve(state))).filter((name) => /^[0-9a-f]{16}$/.test(name));
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    if (errno === 'ENOENT') return [];
    throw new VpnError('ERR_PRIVILEGE', `cannot read the state directory ${state}: ${errno}; run as root`, { cause });
  }
}

/** The token has been used up, and a file that is copied about must not look as if it still opened something. */
async function forgetToken(path: string, profile: Profile, log: Logger): Promise<void> {
  try {
    await writeProfile(path, withoutToken(profile), { when: 'replace' });
  } catch (error) {
    log.warn('the used token could not be removed from the profile', { error });
  }
}

function statusOf(snapshot: ClientSnapshot, profile: Profile, version: string): ClientStatus {
  const { config, tls, lastError } = snapshot;
  const addresses = config === undefined ? [] : [config.addresses.v4, config.addresses.v6];
  return {
    version,
    pid: process.pid,
    profile: profile.name,
    state: snapshot.state === 'idle' || snapshot.state === 'stopped' ? 'stopping' : snapshot.state,
    server: `${profile.server.name}:${profile.server.port}`,
    verified: profile.verifyServer,
    since: new Date(snapshot.since).toISOString(),
    user: snapshot.user ?? null,
    device: snapshot.device?.name ?? null,
    addresses: addresses.flatMap((entry) => (entry === undefined ? [] : [formatIp(entry.address)])),
    routes: (config?.routes.map(formatPrefix) ?? []).filter(
      (route) => !snapshot.refused.some(({ item }) => item === `routes ${route}`),
    ),
    refused: [...snapshot.refused],
    tls: tls === undefined ? null : { protocol: tls.protocol, cipher: tls.cipher, group: tls.group },
    superPackets: snapshot.superPackets,
    channels: snapshot.channels,
    sentBytes: snapshot.sentBytes,
    receivedBytes: snapshot.receivedBytes,
    roundTripMs: snapshot.roundTripMs ?? null,
    reconnects: snapshot.reconnects,
    lastError: lastError === undefined ? null : { code: lastError.code, message: lastError.message },
  };
}

function userOf(user: string | undefined): { user?: string } {
  return user === undefined ? {} : { user };
}
