/**
 * The files of a gateway's certificates: what stands in them, and whether they have changed.
 *
 * Hides the file system from whoever decides about certificates, which may be a process that is not allowed to read them: then the
 * one that does leaves the key out. Loads nothing that understands a revocation list.
 */

import { stat } from 'node:fs/promises';
import { loadServerCredentials } from '../transport/credentials.ts';
import { type ServerCredentials, serverTlsOptions } from '../transport/tls.ts';
import type { GatewayConfig } from './config.ts';

export type CredentialsConfig = Pick<
  GatewayConfig,
  'certFile' | 'keyFile' | 'caFile' | 'crlFile' | 'requireClientAuth' | 'minVersion' | 'admin'
>;

/** The built-in authority. */
export interface OwnAuthority {
  readonly caPem: string;
  readonly crlFile: string;
}

/** Everything, or the revocation lists alone. */
export type CredentialKind = 'all' | 'lists';

/** What stands in the files. */
export interface CredentialTexts {
  /** Whoever may not see the key has an empty one. */
  readonly pem: ServerCredentials;
  readonly crlFile: string | undefined;
  /** Of the file with the lists, before it was read. */
  readonly stamp: string;
}

/** Reads the files, for whoever may not. */
export interface CredentialFiles {
  /** As `readCredentialTexts`; of `lists` only the revocation lists are new. */
  read(config: CredentialsConfig, what: CredentialKind): Promise<CredentialTexts>;
  /** Changes with the file. */
  stamp(crlFile: string): Promise<string>;
}

/** Files that this process may read. */
export function credentialFiles(own: OwnAuthority | undefined): CredentialFiles {
  return { read: (config, what) => readCredentialTexts(config, own, what), stamp: (crlFile) => stampOf(crlFile) };
}

/**
 * Reads what a configuration names, and checks that key and certificate belong together.
 *
 * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE
 */
export async function readCredentialTexts(
  config: CredentialsConfig,
  own: OwnAuthority | undefined,
  what: CredentialKind,
): Promise<CredentialTexts> {
  const asks = config.requireClientAuth !== false || config.admin.clientCertificates;
  const { crl: _, ...plain } = await loadServerCredentials({ ...config, crlFile: undefined });
  const isOwn = own !== undefined && plain.ca?.trim() === own.caPem.trim();
  const crlFile = asks ? (config.crlFile ?? (isOwn ? own.crlFile : undefined)) : undefined;
  const stamp = await stampOf(crlFile);
  const { crl } = await loadServerCredentials({ ...config, crlFile });
  const pem = { ...plain, crl };
  // Lists are looked at by whoever asks, who can say more about what is wrong with one.
  if (what === 'all') serverTlsOptions(pem, config.requireClientAuth, config.minVersion);
  return { pem, crlFile, stamp };
}

/** Changes with the file; the same as long as there is none. */
async function stampOf(file: string | undefined): Promise<string> {
  if (file === undefined) return '';
  try {
    const { ino, size, mtimeNs, ctimeNs } = await stat(file, { bigint: true });
    return [ino, size, mtimeNs, ctimeNs].join();
  } catch {
    return 'none';
  }
}
