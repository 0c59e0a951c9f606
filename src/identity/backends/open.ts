/**
 * Opens an outside source of accounts as the configuration describes it.
 *
 * Hides which kinds there are and where their secrets and CAs are read from. Opening reads files and asks nobody: a source
 * that is down does not keep a gateway from starting. The libraries of a kind are loaded when it is first used.
 */

import { readFile } from 'node:fs/promises';
import type { Clock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import { Secret } from '../../base/log.ts';
import { readSecretFile } from '../../base/private-file.ts';
import type { GrantStore } from './backend.ts';
import type { LdapBackend, LdapOptions } from './ldap.ts';
import type { OidcBackend, OidcOptions } from './oidc.ts';
import type { RadiusBackend, RadiusOptions } from './radius.ts';

/** What a section opens to; those that are told of sessions have `report`. */
export type AccountSource = LdapBackend | OidcBackend | RadiusBackend;

/** A section `[backends.NAME]`, with absolute file names. */
export type BackendSettings =
  | (LdapOptions & {
      readonly kind: 'ldap';
      readonly caFile?: string | undefined;
      readonly bindPasswordFile?: string | undefined;
    })
  | (OidcOptions & {
      readonly kind: 'oidc';
      readonly caFile?: string | undefined;
      readonly clientSecretFile?: string | undefined;
    })
  | (RadiusOptions & { readonly kind: 'radius'; readonly secretFile: string });

/**
 * @param name as the configuration names it
 * @throws {VpnError} ERR_CONFIG_FILE for a secret that cannot be read or that others can; ERR_CERT_FILE for the CAs
 */
export async function openBackend(
  name: string,
  settings: BackendSettings,
  parts: { readonly grants: GrantStore; readonly clock: Clock },
): Promise<AccountSource> {
  switch (settings.kind) {
    case 'ldap': {
      const [ca, bindPassword] = [await readAuthorities(settings.caFile), await readSecret(settings.bindPasswordFile)];
      const { LdapBackend } = await import('./ldap.ts');
      return new LdapBackend({ name, options: settings, ca, bindPassword });
    }
    case 'oidc': {
      const [ca, clientSecret] = [await readAuthorities(settings.caFile), await readSecret(settings.clientSecretFile)];
      const { OidcBackend } = await import('./oidc.ts');
      return new OidcBackend({ name, options: settings, ca, clientSecret, ...parts });
    }
    case 'radius': {
      const secret = new Secret(await readSecretFile(settings.secretFile));
      const { RadiusBackend } = await import('./radius.ts');
      return new RadiusBackend({ name, options: settings, secret });
    }
  }
}

async function readSecret(path: string | undefined): Promise<Secret<string> | undefined> {
  return path === undefined ? undefined : new Secret(await readSecretFile(path));
}

/** @throws {VpnError} ERR_CERT_FILE */
export async function readAuthorities(path: string | undefined): Promise<string | undefined> {
  if (path === undefined) return undefined;
  const pem = await readFile(path, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    throw new VpnError('ERR_CERT_FILE', `cannot read the CAs ${path}: ${String(cause.code)}`, {
      cause,
      details: { path },
    });
  });
  if (pem.includes('-----BEGIN CERTIFICATE-----')) return pem;
  throw new VpnError('ERR_CERT_FILE', `${path} holds no certificate in PEM`, { details: { path } });
}
