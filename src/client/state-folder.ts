/**
 * The client's state directory: what is kept of each profile, and finding the clients that run.
 *
 * ```
 * DIR/ID/device.key      the device's private key, ID being the first half of the profile's
 * DIR/ID/enrolled        the token has been used
 * DIR/ID/control.sock    the running client
 * DIR/ID/host.journal    what it has changed on the host
 * DIR/ID/dns.journal     the name servers that it has replaced
 * DIR/ID/addresses.json  the gateway's addresses that worked last
 * DIR/ID/claim.json      the networks that the running client has
 * DIR/ID/resolv.conf     the name servers of the commands that `client exec` runs
 * DIR/ID/client.lock     held by the running client
 * DIR/ID/end.json        why the last client ended by itself
 * DIR/ID/client.log      the log of clients in the background
 * DIR/profiles/          imported profiles (see control/profile-store)
 * ```
 */

import { existsSync } from 'node:fs';
import { readdir, readFile, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { ERROR_CODES, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { writePrivateFile } from '../base/private-file.ts';
import type { ClientApi, clientOperations } from '../control/operations.ts';
import { answers, connectDaemon } from '../control/socket.ts';

export interface ProfilePaths {
  readonly folder: string;
  readonly key: string;
  readonly enrolled: string;
  readonly control: string;
  readonly journal: string;
  readonly names: string;
  readonly addresses: string;
  readonly claim: string;
  readonly resolvConf: string;
  readonly lock: string;
  readonly end: string;
  readonly log: string;
}

/** Where things of the profile with this id are. */
export function profilePaths(state: string, id: string): ProfilePaths {
  const folder = join(resolve(state), id.slice(0, 16));
  const at = (name: string) => join(folder, name);
  return {
    folder,
    key: at('device.key'),
    enrolled: at('enrolled'),
    control: at('control.sock'),
    journal: at('host.journal'),
    names: at('dns.journal'),
    addresses: at('addresses.json'),
    claim: at('claim.json'),
    resolvConf: at('resolv.conf'),
    lock: at('client.lock'),
    end: at('end.json'),
    log: at('client.log'),
  };
}

/** Folders of profiles that have been used under a state directory, by the first half of the profile's id. */
export async function profileIds(state: string): Promise<string[]> {
  try {
    return (await readdir(resolve(state))).filter((name) => /^[0-9a-f]{16}$/.test(name));
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    if (errno === 'ENOENT') return [];
    throw new VpnError('ERR_PRIVILEGE', `cannot read the state directory ${state}: ${errno}; run as root`, { cause });
  }
}

/** The running clients under a state directory. */
export async function findClients(state: string): Promise<Map<string, ClientApi>> {
  const clients = new Map<string, ClientApi>();
  for (const id of await profileIds(state)) {
    const { control } = profilePaths(state, id);
    if (await answers(control)) clients.set(id, clientOf(state, id));
  }
  return clients;
}

/** The client of the profile with this id; its calls throw ERR_NOT_RUNNING when there is none. */
export function clientOf(state: string, id: string): ClientApi {
  return connectDaemon<typeof clientOperations>(profilePaths(state, id).control, ['client.hold']);
}

/** Takes back what clients that died left on the host, and opens their kill switches; returns how many had left something. */
export async function cleanClients(state: string, log: Logger): Promise<number> {
  let cleaned = 0;
  for (const id of await profileIds(state)) {
    const { control, journal, names, claim, resolvConf } = profilePaths(state, id);
    // Only now: whoever only looks for clients is waited for.
    const [{ KillSwitch }, { cleanHost }] = await Promise.all([import('./kill-switch.ts'), import('./tunnel-host.ts')]);
    const killSwitch = new KillSwitch(id, log);
    const hasTraces = [control, journal, names].some((path) => existsSync(path));
    if ((await answers(control)) || !(hasTraces || (await killSwitch.isClosed()))) continue;
    await cleanHost({ journalPath: journal, namesPath: names, killSwitch, log });
    await rm(control, { force: true });
    for (const path of [claim, resolvConf]) await rm(path, { force: true });
    cleaned += 1;
  }
  return cleaned;
}

/** Why a client ended by itself. */
export interface ClientEnd {
  readonly at: string;
  readonly error: VpnError;
}

/** Keeps why a client ended, for whoever asks later; undefined: it was asked to, or it runs. */
export async function writeEnd(path: string, error: VpnError | undefined, at: string): Promise<void> {
  if (error === undefined) await rm(path, { force: true });
  else await writePrivateFile(path, `${JSON.stringify({ at, code: error.code, message: error.message })}\n`);
}

/** Why the last client of the profile with this id ended by itself; undefined when it did not. */
export async function readEnd(state: string, id: string): Promise<ClientEnd | undefined> {
  try {
    const { at, code, message } = JSON.parse(await readFile(profilePaths(state, id).end, 'utf8')) as ClientEnd &
      Record<string, unknown>;
    const known = ERROR_CODES.find((candidate) => candidate === code) ?? 'ERR_INVARIANT';
    return { at, error: new VpnError(known, String(message)) };
  } catch {
    return undefined;
  }
}
