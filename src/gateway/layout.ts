/**
 * Where a gateway keeps what it keeps, and how its configuration is read from there.
 *
 * Hides the layout of a state directory. Loads nothing of what works with the files.
 *
 * ```
 * DIR/server.toml        the configuration
 * DIR/config.path        the file that was given in place of it at the last start
 * DIR/certs/             CA, server and client certificates and keys, CRL
 * DIR/store.sqlite       users, devices, tokens, sessions, audit
 * DIR/master.key         seals secrets in the store
 * DIR/run/control.sock   the running gateway
 * DIR/run/host.journal   what it has changed on the host
 * ```
 */

import { dirname, resolve } from 'node:path';
import { readConfig } from '../base/config.ts';
import { type GatewayConfig, gatewayConfigSchema, resolveFiles } from './config.ts';

/** Where things are under a state directory. */
export function statePaths(dir: string): {
  config: string;
  configNote: string;
  certs: string;
  store: string;
  masterKey: string;
  control: string;
  journal: string;
} {
  const at = (...parts: string[]) => resolve(dir, ...parts);
  return {
    config: at('server.toml'),
    configNote: at('config.path'),
    certs: at('certs'),
    store: at('store.sqlite'),
    masterKey: at('master.key'),
    control: at('run', 'control.sock'),
    journal: at('run', 'host.journal'),
  };
}

/**
 * Reads a gateway's configuration; file names in it become absolute.
 *
 * @throws {VpnError} ERR_CONFIG_FILE, ERR_CONFIG_SYNTAX, ERR_CONFIG_KEY, ERR_CONFIG_VALUE
 */
export async function readGatewayConfig(file: string): Promise<GatewayConfig> {
  return resolveFiles(await readConfig(file, gatewayConfigSchema), dirname(resolve(file)));
}
