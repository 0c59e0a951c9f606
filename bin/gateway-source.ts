/** Which configuration a verb of the gateway is about. */

import { readFile, rm } from 'node:fs/promises';
import { resolve } from 'node:path';
import { VpnError } from '../src/base/errors.ts';
import { writePrivateFile } from '../src/base/private-file.ts';
import type { GatewaySource } from '../src/cli/host.ts';
import { statePaths } from '../src/gateway/layout.ts';

/** The file that is named, or that of the state directory. */
export function configFileOf({ state, config }: GatewaySource): string {
  return config ?? statePaths(state).config;
}

/** That of the gateway as it ran last: else an account could land in a store that it does not use. */
export async function presentConfigFileOf({ state, config }: GatewaySource): Promise<string> {
  if (config !== undefined) return config;
  const { config: own, configNote } = statePaths(state);
  const noted = await readFile(configNote, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw new VpnError('ERR_CONFIG_FILE', `cannot read ${configNote}: ${error.code}`, { cause: error });
  });
  return noted.trim() || own;
}

/** Notes the configuration that the gateway runs with, for commands while it does not. */
export async function noteConfigFile({ state, config }: GatewaySource): Promise<void> {
  const { configNote } = statePaths(state);
  if (config === undefined) await rm(configNote, { force: true });
  else await writePrivateFile(configNote, `${resolve(config)}\n`);
}
