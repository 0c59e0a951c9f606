/**
 * Makes a gateway's state directory: certificates, keys, store and a configuration with every choice written out.
 *
 * Everything is checked before anything is written, and an existing gateway is never overwritten.
 */

import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseConfig } from '../base/config.ts';
import { VpnError } from '../base/errors.ts';
import { writePrivateFile } from '../base/private-file.ts';
import { Pki } from '../identity/pki.ts';
import { formatPrefix, parsePrefix } from '../ip/address.ts';
import { openStore } from '../store/store.ts';
import { Vault } from '../store/vault.ts';
import { type GatewayConfig, gatewayConfigSchema } from './config.ts';
import { statePaths } from './layout.ts';
import { openPool } from './pool.ts';

export interface InitOptions {
  names: readonly string[];
  /** Default `::`. */
  address?: string;
  /** Default 443. */
  port?: number;
  /** Default 10.88.0.0/24 and a random unique local /64. */
  pool?: readonly string[];
  dns?: readonly string[];
  routes?: readonly string[];
}

const DEFAULT_POOL4 = '10.88.0.0/24';

/**
 * Makes `dir` the state directory of a new gateway.
 *
 * @returns the configuration it was given
 * @throws {VpnError} ERR_CONFLICT when there is a gateway already; ERR_CONFIG_VALUE, ERR_BAD_REQUEST for a value;
 *   ERR_SYSCALL
 */
export async function initGateway(
  dir: string,
  options: InitOptions,
): Promise<{ config: GatewayConfig; configFile: string; pki: Pki }> {
  const paths = statePaths(dir);
  if (existsSync(paths.config)) {
    throw new VpnError(
      'ERR_CONFLICT',
      `${paths.config} exists: ${resolve(dir)} is a gateway already; choose another --state, or edit that file`,
    );
  }
  const pool =
    options.pool === undefined || options.pool.length === 0 ? [DEFAULT_POOL4, randomUlaPrefix()] : [...options.pool];
  const text = formatGatewayConfig({
    address: options.address ?? '::',
    port: options.port ?? 443,
    names: [...options.names],
    pool: pool.map((prefix) => formatPrefix(parsePrefix(prefix))),
    routes: (options.routes ?? []).map((prefix) => formatPrefix(parsePrefix(prefix))),
    dns: [...(options.dns ?? [])],
  });
  const config = parseConfig(text, gatewayConfigSchema, 'the new configuration');
  openPool(config);
  const pki = await Pki.create(dir, { names: config.names });
  await Vault.open(paths.masterKey);
  await (await openStore(paths.store)).close();
  // Last: a directory with a configuration is complete.
  await writePrivateFile(paths.config, text, { when: 'create' });
  return { config, configFile: paths.config, pki };
}

/** A random /64 of the unique local range (RFC 4193). */
function randomUlaPrefix(): string {
  const [a, b, c, d, e] = randomBytes(5).toString('hex').match(/../g) ?? [];
  return formatPrefix(parsePrefix(`fd${a}:${b}${c}:${d}${e}:1::/64`));
}

function formatGatewayConfig(
  values: Pick<GatewayConfig, 'address' | 'port' | 'names' | 'pool' | 'routes' | 'dns'>,
): string {
  const list = (items: readonly string[]) => `[${items.map((item) => JSON.stringify(item)).join(', ')}]`;
  return `# CustomVPN gateway. Every key: docs/configuration.md. Check it with: customvpn server run --check
# After a change: customvpn server reload (what needs a restart is named)

# Where to listen. "::" takes IPv4, too.
address = ${JSON.stringify(values.address)}
port = ${values.port}

# Names or addresses by which clients reach this gateway; the first is the one they verify.
names = ${list(values.names)}

# Addresses for clients: an IPv4 prefix, an IPv6 prefix, or both. The gateway has the first of each.
pool = ${list(values.pool)}

# Networks that clients may reach. Nothing else is forwarded.
routes = ${list(values.routes)}

# Name servers for clients.
dns = ${list(values.dns)}

# Ports open to clients on the gateway's own address, such as "53/udp".
services = []

certFile = ${JSON.stringify(join('certs', 'server.pem'))}
keyFile = ${JSON.stringify(join('certs', 'server.key'))}
caFile = ${JSON.stringify(join('certs', 'ca.pem'))}
crlFile = ${JSON.stringify(join('certs', 'crl.pem'))}
# true: only with a certificate of the CA (customvpn pki issue NAME), "optional": checked when shown.
requireClientAuth = false
`;
}
