/**
 * Reads certificates and keys from PEM files.
 *
 * Hides the file system from the TLS profile, which takes text. What the text means, and whether key and certificate
 * belong together, is checked there.
 */

import { readFile } from 'node:fs/promises';
import { VpnError } from '../base/errors.ts';
import type { ClientCredentials, ServerCredentials } from './tls.ts';

/** @throws {VpnError} ERR_CERT_FILE */
export async function loadServerCredentials(files: {
  certFile: string;
  keyFile: string;
  caFile?: string | undefined;
  crlFile?: string | undefined;
}): Promise<ServerCredentials> {
  const [cert, key, ca, crl] = await Promise.all([
    readPem(files.certFile),
    readPem(files.keyFile),
    readOptional(files.caFile),
    readOptional(files.crlFile),
  ]);
  return { cert, key, ca, crl };
}

/** @throws {VpnError} ERR_CERT_FILE */
export async function loadClientCredentials(files: {
  certFile?: string | undefined;
  keyFile?: string | undefined;
  caFile?: string | undefined;
}): Promise<ClientCredentials> {
  const [cert, key, ca] = await Promise.all([
    readOptional(files.certFile),
    readOptional(files.keyFile),
    readOptional(files.caFile),
  ]);
  return { cert, key, ca };
}

async function readOptional(path: string | undefined): Promise<string | undefined> {
  return path === undefined ? undefined : await readPem(path);
}

async function readPem(path: string): Promise<string> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code ?? 'unknown';
    const why = errno === 'ENOENT' ? 'there is no such file' : errno === 'EACCES' ? 'permission denied' : errno;
    throw new VpnError('ERR_CERT_FILE', `cannot read ${path}: ${why}`, { cause, details: { path, errno } });
  }
  // Who parses it later does not know the file's name.
  if (!text.includes('-----BEGIN ')) {
    throw new VpnError('ERR_CERT_FILE', `${path}: expected PEM text, found none`, { details: { path } });
  }
  return text;
}
