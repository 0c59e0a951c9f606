/**
 * Examines the way to a profile's gateway, up to a login.
 *
 * Hides what of a profile the examination needs, and what a login may cost: one that would use up the token is not tried, and one
 * that asks a person has come far enough.
 */

import { existsSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { isVpnError, toVpnError } from '../base/errors.ts';
import { Secret, silentLogger } from '../base/log.ts';
import { type Profile, readProfile } from '../control/profile.ts';
import { answers } from '../control/socket.ts';
import { VpnClient } from './client.ts';
import { DeviceKey } from './device-key.ts';
import { type Examination, examine, type Finding } from './examine.ts';
import { chooseProxy } from './profile-client.ts';
import { profilePaths } from './state-folder.ts';

/** @throws {VpnError} ERR_CONFIG_* for the profile */
export async function examineProfile(path: string, state: string, version: string): Promise<Examination> {
  const profile = await readProfile(path);
  const { server, ca, pins } = profile;
  return await examine({
    hosts: server.hosts,
    port: server.port,
    serverName: server.name,
    ...(ca === undefined ? {} : { ca }),
    pins,
    ...(server.camouflage === undefined ? {} : { camouflage: new Secret(server.camouflage) }),
    proxy: chooseProxy(server.proxy),
    login: () => tryLogin(profile, path, state, version),
  });
}

/** Examines the way to a gateway of which nothing else is known. */
export function examineServer(host: string, port: number): Promise<Examination> {
  return examine({ hosts: [host], port, serverName: host, proxy: chooseProxy('environment') });
}

async function tryLogin(
  profile: Profile,
  path: string,
  state: string,
  version: string,
): Promise<Omit<Finding, 'step'>> {
  const { key, enrolled, control } = profilePaths(state, profile.id);
  if (await answers(control))
    return { ok: true, found: 'a client of this profile is running; see: customvpn client status' };
  if (!existsSync(enrolled)) {
    const found =
      profile.token === undefined ? 'this machine is not enrolled' : 'not tried: it would use up the one-time token';
    return { ok: true, found: `${found}; the first \`client up\` enrols it` };
  }
  const client = new VpnClient({
    serverHost: profile.server.hosts,
    serverPort: profile.server.port,
    serverName: profile.server.name,
    ...(profile.ca === undefined ? {} : { ca: profile.ca }),
    ...(profile.certFile === undefined ? {} : { certFile: resolve(dirname(path), profile.certFile) }),
    ...(profile.keyFile === undefined ? {} : { keyFile: resolve(dirname(path), profile.keyFile) }),
    pins: profile.pins,
    verifyServer: profile.verifyServer,
    deviceKey: await DeviceKey.open(key),
    enrol: false,
    ...(profile.user === undefined ? {} : { user: profile.user }),
    proxy: chooseProxy(profile.server.proxy),
    ...(profile.server.camouflage === undefined ? {} : { camouflage: new Secret(profile.server.camouflage) }),
    log: silentLogger,
    version,
  });
  try {
    await client.connect({ once: true });
    const { user } = client.snapshot;
    return { ok: true, found: `accepted${user === undefined ? '' : `, as ${user}`}` };
  } catch (cause) {
    const { message } = toVpnError(cause);
    if (isVpnError(cause, 'ERR_AUTH_NEEDED'))
      return { ok: true, found: 'this device is known; the login asks a person' };
    return { ok: false, found: message, mend: 'see docs/errors.md, or ask for a new profile' };
  } finally {
    await client.disconnect();
  }
}
