/**
 * What a client is made of when it is made for a profile: server, keys, who logs in, and what is kept after an enrolment.
 *
 * Hides the profile's fields and the state folder's files from those who run clients.
 */

import { existsSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { type Logger, Secret } from '../base/log.ts';
import { writePrivateFile } from '../base/private-file.ts';
import { type Profile, withoutToken, writeProfile } from '../control/profile.ts';
import { type ChooseProxy, parseProxyUrl, proxiesOfEnvironment } from '../transport/outbound-proxy.ts';
import type { ClientOptions } from './client.ts';
import type { DeviceKey } from './device-key.ts';
import type { AnswerSteps } from './login-answers.ts';
import { profilePaths } from './state-folder.ts';

export interface ProfileClient {
  readonly profile: Profile;
  /** Path of its file. */
  readonly path: string;
  /** The client's state directory. */
  readonly state: string;
  readonly key: DeviceKey;
  /** Default: the profile's. */
  readonly user?: string | undefined;
  readonly answer?: AnswerSteps | undefined;
  readonly log: Logger;
  readonly version: string;
}

/** How a client connects and logs in for a profile; what it does to its machine is for its caller to add. */
export function optionsForProfile({ profile, path, state, key, answer, log, version, ...rest }: ProfileClient) {
  const { server, ca, certFile, keyFile, token } = profile;
  const { enrolled } = profilePaths(state, profile.id);
  const isEnrolled = existsSync(enrolled);
  const user = rest.user ?? profile.user;
  const beside = (file: string): string => resolve(dirname(path), file);
  return {
    serverHost: server.hosts,
    serverPort: server.port,
    serverName: server.name,
    ...(ca === undefined ? {} : { ca }),
    ...(certFile === undefined ? {} : { certFile: beside(certFile) }),
    ...(keyFile === undefined ? {} : { keyFile: beside(keyFile) }),
    pins: profile.pins,
    verifyServer: profile.verifyServer,
    deviceKey: key,
    enrol: !isEnrolled,
    ...(user === undefined ? {} : { user }),
    ...(answer === undefined ? {} : { answer }),
    ...(isEnrolled || token === undefined ? {} : { token: token.reveal() }),
    proxy: chooseProxy(server.proxy),
    ...(server.camouflage === undefined ? {} : { camouflage: new Secret(server.camouflage) }),
    onEnrolled: async () => {
      await writePrivateFile(enrolled, `${new Date().toISOString()}\n`);
      await forgetToken(path, profile, log);
    },
    log,
    version,
  } satisfies ClientOptions;
}

/** What a profile says of a proxy. @throws {VpnError} ERR_CONFIG_VALUE */
export function chooseProxy(setting: Profile['server']['proxy']): ChooseProxy {
  if (setting === 'none') return () => undefined;
  if (setting === undefined || setting === 'environment') return proxiesOfEnvironment(process.env);
  const proxy = parseProxyUrl(setting, 'server.proxy in the profile');
  return () => proxy;
}

/** The token has been used up, and a file that is copied about must not look as if it still opened something. */
async function forgetToken(path: string, profile: Profile, log: Logger): Promise<void> {
  try {
    await writeProfile(path, withoutToken(profile), { when: 'replace' });
  } catch (error) {
    log.warn('the used token could not be removed from the profile', { error });
  }
}
