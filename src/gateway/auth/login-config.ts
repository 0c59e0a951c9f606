/**
 * What the configuration says of logins, in the terms of those who judge them.
 *
 * Hides the shape of the configuration from the identity room, and that sources of accounts and steps of logins are
 * configured in different places and must fit.
 */

import { VpnError } from '../../base/errors.ts';
import type { AccountSource } from '../../identity/backends/open.ts';
import type { BanPolicy } from '../../identity/bans.ts';
import type { Argon2Parameters } from '../../identity/passwords.ts';
import type { LoginProvider } from '../../identity/steps/oidc.ts';
import type { PasswordSources } from '../../identity/steps/password.ts';
import type { PageProvider } from '../admin/entrances.ts';
import type { GatewayConfig } from '../config.ts';
import { isWithinAny } from '../networks.ts';
import type { GatewayState } from '../state.ts';

/** Puts an account that came from a source into the groups that it says now, with all that comes of it. */
export type Follow = PageProvider['follow'];

/** Where passwords of people without an account here are judged. */
export function passwordSourcesOf(
  { login }: GatewayConfig,
  state: GatewayState,
  sources: ReadonlyMap<string, AccountSource>,
  follow: Follow,
): PasswordSources {
  return {
    find: (name) => {
      const source = sources.get(name);
      return source !== undefined && 'authenticate' in source ? source : undefined;
    },
    forStrangers: login.backend,
    provision: provisionOf(state, follow),
  };
}

/** An account that is here follows its source first: other sessions of its may prove too little for what it is now. */
function provisionOf({ accounts }: GatewayState, follow: Follow): PasswordSources['provision'] {
  return async (user, source, groups) => {
    if (groups !== undefined) await follow(user, source, groups);
    return await accounts.provision(user, source, groups);
  };
}

/** Where the step `oidc` sends people; undefined: nowhere. */
export function loginProviderOf(
  { login, limits }: GatewayConfig,
  state: GatewayState,
  sources: ReadonlyMap<string, AccountSource>,
  follow: Follow,
): LoginProvider | undefined {
  const backend = login.provider === undefined ? undefined : sources.get(login.provider);
  if (backend === undefined || !('begin' in backend)) return undefined;
  return {
    backend,
    seconds: limits.providerSeconds,
    provision: provisionOf(state, follow),
  };
}

/** Where the admin page sends people who log in; undefined: nowhere. */
export function pageProviderOf(
  { admin }: GatewayConfig,
  state: GatewayState,
  sources: ReadonlyMap<string, AccountSource>,
  follow: Follow,
): PageProvider | undefined {
  const backend = admin.provider === undefined ? undefined : sources.get(admin.provider);
  if (backend === undefined || !('visit' in backend)) return undefined;
  return { backend, follow, provision: provisionOf(state, follow) };
}

/** @throws {VpnError} ERR_CONFIG_VALUE */
export function checkLoginSources(config: GatewayConfig): void {
  checkLoginBackend(config);
  checkPageLogins(config);
  const { login, backends } = config;
  const lists = [login.steps, login.enrol, ...Object.values(login.groups).map(({ steps }) => steps)];
  if (login.provider === undefined && !lists.some((steps) => steps.includes('oidc'))) return;
  const name = login.provider ?? '';
  if (Object.hasOwn(backends, name) && backends[name]?.kind === 'oidc') return;
  const known = Object.entries(backends).flatMap(([key, { kind }]) => (kind === 'oidc' ? [key] : []));
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `login.provider: the step oidc needs a source of kind oidc, got "${name}"; configured are: ${known.join(', ') || 'none'}`,
    { details: { key: 'login.provider' } },
  );
}

function checkPageLogins({ admin, backends, caFile }: GatewayConfig): void {
  if (admin.clientCertificates && caFile === undefined) {
    throw new VpnError('ERR_CONFIG_VALUE', 'admin.clientCertificates: expected caFile, the CAs that they come from', {
      details: { key: 'caFile' },
    });
  }
  const name = admin.provider;
  if (name === undefined || (Object.hasOwn(backends, name) && backends[name]?.kind === 'oidc')) return;
  const known = Object.entries(backends).flatMap(([key, { kind }]) => (kind === 'oidc' ? [key] : []));
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `admin.provider: expected a source of kind oidc, got "${name}"; configured are: ${known.join(', ') || 'none'}`,
    { details: { key: 'admin.provider' } },
  );
}

function checkLoginBackend({ login, backends }: GatewayConfig): void {
  if (login.backend === undefined) return;
  const kind = Object.hasOwn(backends, login.backend) ? backends[login.backend]?.kind : undefined;
  if (kind === 'ldap' || kind === 'radius') return;
  const known = Object.keys(backends).join(', ') || 'none';
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    `login.backend: expected a source that judges passwords (kind ldap or radius), got "${login.backend}"; configured are: ${known}`,
    { details: { key: 'login.backend' } },
  );
}

export function banPolicyOf({ limits }: GatewayConfig): BanPolicy {
  return { ...limits, isExempt: isWithinAny(limits.allow) };
}

export function argon2Of({ accounts: { argon2 } }: GatewayConfig): Argon2Parameters {
  return { memory: argon2.memoryKiB, passes: argon2.passes, parallelism: argon2.parallelism };
}

/** Sources that are asked in a way that others can read or forge. */
export function insecureSources(config: GatewayConfig): string[] {
  return Object.entries(config.backends).flatMap(([name, backend]) => {
    const isOpen =
      (backend.kind === 'ldap' && !backend.startTls && backend.urls.some((url) => url.startsWith('ldap:'))) ||
      (backend.kind === 'oidc' && backend.issuer.startsWith('http:'));
    if (!isOpen) return [];
    return [
      `the source of accounts ${name} is asked without TLS: everybody on the way can read the passwords and forge the answers`,
    ];
  });
}
