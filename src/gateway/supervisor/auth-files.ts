/**
 * The files that auth reaches, of all that there are on the machine.
 *
 * Hides which keys of a configuration name a file of auth's. Key and certificate of the server are not among them: the supervisor
 * reads those.
 */

import { dirname } from 'node:path';
import type { GatewayConfig } from '../config.ts';
import { statePaths } from '../layout.ts';

/** What tells a TLS library which authorities to trust, in the environment of a child. */
const AUTHORITIES = ['NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'SSL_CERT_DIR'] as const;

/**
 * Files and folders, absolute. Those of `/etc` as a whole: the ones about names are replaced by new ones while auth runs, and what is
 * allowed is a file and not its name. What is secret there is held by its owner and mode, as in the state directory, in which SQLite
 * makes files beside its own.
 */
export function authFiles(config: GatewayConfig, stateDir: string): { read: string[]; write: string[] } {
  const { store, admin, audit, backends, webhooks, hook, otlp } = config;
  const named = [store, admin, otlp, ...Object.values(backends), ...Object.values(webhooks)].flatMap((section) =>
    Object.entries(section).flatMap(([key, value]) =>
      key.endsWith('File') && typeof value === 'string' ? [value] : [],
    ),
  );
  const authorities = AUTHORITIES.flatMap((name) => process.env[name] ?? []);
  return {
    // What the file of the hooks imports lies beside it.
    read: [
      '/etc',
      '/run/NetworkManager',
      ...authorities,
      ...named,
      ...(hook.file === undefined ? [] : [dirname(hook.file)]),
    ],
    // The record may be moved away and begun anew at any time.
    write: [dirname(statePaths(stateDir).store), ...(audit.file === undefined ? [] : [dirname(audit.file)])],
  };
}
