/**
 * The operations on what a gateway keeps: users, devices, profiles, certificates.
 *
 * Implements the part of the control API that works whether the gateway runs or not. When it runs, every change that takes
 * a right away also ends the sessions that relied on it, before the operation answers.
 */

import { X509Certificate } from 'node:crypto';
import { VpnError } from '../base/errors.ts';
import type {
  AccessTokenInfo,
  AuditRecordInfo,
  CertificateInfo,
  DeviceInfo,
  GatewayApi,
  PasskeyInfo,
  RUNNING_ONLY,
  UserInfo,
} from '../control/operations.ts';
import { pageOf } from '../control/page.ts';
import { formatProfile, newProfileId, parseProfile } from '../control/profile.ts';
import { encodeProfileLink } from '../control/profile-link.ts';
import type { AccessToken } from '../identity/access-tokens.ts';
import type { Account } from '../identity/accounts.ts';
import type { Device } from '../identity/devices.ts';
import { parseName } from '../identity/names.ts';
import type { Passkey } from '../identity/passkeys.ts';
import { parseNewPassword } from '../identity/passwords.ts';
import type { CertificateFacts } from '../identity/pki.ts';
import type { StepKind } from '../protocol/messages.ts';
import { AuditEvent, type AuditRecord } from '../store/audit.ts';
import { readHolder } from '../transport/certificate-facts.ts';
import { loadServerCredentials } from '../transport/credentials.ts';
import type { ServerCredentials } from '../transport/tls.ts';
import { type GatewayConfig, GROUP_ROLES, RELOADABLE_KEYS, roleOf } from './config.ts';
import { profileTrust } from './profile-trust.ts';
import type { GatewayState } from './state.ts';
import { isBridging } from './tap-config.ts';

const DAY_MS = 86_400_000;
const HOUR_MS = 3_600_000;

/** The operations that need no running gateway. */
export type Administration = Omit<GatewayApi, (typeof RUNNING_ONLY)[number]>;

/** The sessions that a change concerns. */
export interface Concerned {
  readonly user?: string;
  /** Device id, hexadecimal. */
  readonly device?: string;
  /** A client certificate, by its issuer in short and its serial number, hexadecimal. */
  readonly certificate?: { readonly authority: string; readonly serial: string };
  /** With `user`: only the sessions that were opened with this step. */
  readonly proven?: StepKind;
  /** The sessions that were opened with this token. */
  readonly accessToken?: { readonly id: string; readonly user: string };
}

/** What a running gateway does about changes. */
export interface LiveGateway {
  /** Ends sessions; returns how many. */
  endSessions(concerned: Concerned): number;
  /** Ends the sessions of a user that proved less than is asked of the user now; returns how many. */
  endInsufficient(user: string): Promise<number>;
  /** Ends what a user has open at the admin page. */
  endPageSessions?(user: string): void;
  /** Certificates or the revocation list have changed on disk. */
  reloadCertificates(): Promise<void>;
  /** The certificates in force; else those in the files. */
  credentials?(): Pick<ServerCredentials, 'cert' | 'ca'>;
}

/** Implements the operations on `state`. */
export function createAdministration(
  state: GatewayState,
  config: () => GatewayConfig,
  live: LiveGateway,
  wallNow: () => number,
): Administration {
  const { accounts, devices, tokens, passwords, secondFactors, accessTokens, passkeys, bans } = state;
  const certificate = ({ isNewest: _, ...facts }: CertificateFacts): CertificateInfo => ({
    ...facts,
    notBefore: facts.notBefore.toISOString(),
    notAfter: facts.notAfter.toISOString(),
    daysLeft: Math.floor((facts.notAfter.getTime() - wallNow()) / DAY_MS),
  });

  const recordCertificate = (event: AuditEvent, { role, name, serial, notAfter }: CertificateFacts) =>
    state.audit.append({ event, detail: { role, name, serial, ends: notAfter.toISOString() } });

  return {
    'user.add': async ({ name, groups, expiresAt, password }) => {
      // Before the user is there: a password that is refused must not leave half an account.
      if (password !== undefined) parseNewPassword(password, name);
      const account = await accounts.add(name, {
        groups: groups ?? [],
        ...(expiresAt === undefined ? {} : { expiresAt: Date.parse(expiresAt) }),
      });
      if (password !== undefined) await passwords.set(account.name, password);
      return userInfo(account);
    },
    'user.list': async ({ group, state: wanted, ...page }) => {
      const { search, after, limit } = page;
      if (search === undefined && limit !== undefined) {
        return (await accounts.page({ after, limit, group: group?.normalize('NFC'), state: wanted })).map(userInfo);
      }
      const matching = (await accounts.list())
        .filter(({ groups }) => group === undefined || groups.includes(group.normalize('NFC')))
        .filter(({ disabledAt }) => wanted === undefined || (wanted === 'disabled') === (disabledAt !== undefined));
      return pageOf(
        matching,
        page,
        ({ name }) => name,
        ({ name, groups }) => [name, ...groups],
      ).map(userInfo);
    },
    'user.groups': async () => {
      const counts = new Map(GROUP_ROLES.flatMap(([key]) => config().admin[key]).map((name) => [name, 0]));
      for (const { groups } of await accounts.list()) {
        for (const name of groups) counts.set(name, (counts.get(name) ?? 0) + 1);
      }
      return [...counts].sort().map(([name, users]) => ({ name, users, role: roleOf([name], config().admin) ?? null }));
    },
    'server.settings': async () => {
      const { camouflage, webhooks, ...values } = config();
      // What follows the host is often a secret of the receiver's.
      const shown = Object.entries(webhooks).map(([name, hook]) => [name, { ...hook, url: new URL(hook.url).origin }]);
      return {
        // Whoever knows the path finds the tunnel.
        values: {
          ...values,
          webhooks: Object.fromEntries(shown),
          ...(camouflage === undefined ? {} : { camouflage: '(secret)' }),
        },
        reloadable: [...RELOADABLE_KEYS],
      };
    },
    'user.show': async ({ name }) => {
      const account = await accounts.show(name);
      const { hasTotp, recoveryCodesLeft } = await secondFactors.describe(account.id);
      return {
        ...userInfo(account),
        devices: (await devices.list(account.name)).map(deviceInfo),
        passwordSetAt: instantOf(await passwords.setAt(account.id)),
        totp: hasTotp,
        recoveryCodesLeft,
        passkeys: (await passkeys.list(account.name)).map(passkeyInfo),
        tokens: (await accessTokens.list(account.name)).map(accessTokenInfo),
      };
    },
    'user.regroup': async ({ name, add, remove }) => {
      const groups = await accounts.regroup(name, { add: add ?? [], remove: remove ?? [] });
      return { groups, kicked: await live.endInsufficient(name.normalize('NFC')) };
    },
    'user.expire': async ({ name, expiresAt }) => {
      const at = expiresAt === null ? undefined : Date.parse(expiresAt);
      await accounts.setExpiry(name, at);
      return { kicked: at !== undefined && at <= wallNow() ? live.endSessions({ user: name.normalize('NFC') }) : 0 };
    },
    'user.password': async ({ name, password }) => {
      if (password === null) await passwords.remove(name);
      else await passwords.set(name, password);
      return { kicked: live.endSessions({ user: name.normalize('NFC'), proven: 'password' }) };
    },
    'user.totp': async ({ name }) => {
      const { uri, recoveryCodes } = await secondFactors.create(name, config().accounts.issuer);
      const kicked = live.endSessions({ user: name.normalize('NFC'), proven: 'totp' });
      return { uri: uri.reveal(), recoveryCodes: [...recoveryCodes.reveal()], kicked };
    },
    'user.totpRemove': async ({ name }) => {
      const removed = await secondFactors.remove(name);
      return { removed, kicked: live.endSessions({ user: name.normalize('NFC'), proven: 'totp' }) };
    },
    'user.recovery': async ({ name }) => ({ recoveryCodes: [...(await secondFactors.renewCodes(name)).reveal()] }),
    'token.list': async ({ user }) => (await accessTokens.list(user)).map(accessTokenInfo),
    'token.issue': async ({ user, name, scopes, expiresAt }) => {
      const { token, facts } = await accessTokens.issue(user, {
        name,
        scopes,
        ...(expiresAt === undefined ? {} : { expiresAt: Date.parse(expiresAt) }),
      });
      return { ...accessTokenInfo(facts), token: Buffer.from(token.reveal()).toString('base64url') };
    },
    'token.revoke': async ({ id }) => {
      const { id: revoked, user } = await accessTokens.revoke(id);
      return { kicked: live.endSessions({ accessToken: { id: revoked, user } }) };
    },
    'passkey.list': async ({ user }) => (await passkeys.list(user)).map(passkeyInfo),
    'passkey.remove': async ({ id }) => {
      const user = await passkeys.remove(id);
      live.endPageSessions?.(user);
      return { user };
    },
    'user.disable': async ({ name }) => {
      await accounts.disable(name);
      return { kicked: live.endSessions({ user: name.normalize('NFC') }) };
    },
    'user.enable': async ({ name }) => {
      await accounts.enable(name);
      return {};
    },
    'user.unlock': async ({ name }) => {
      const user = parseName('user', name);
      const owned = (await accounts.list()).some((account) => account.name === user) ? await devices.list(user) : [];
      const ids = owned.map(({ id }) => id);
      return { unlocked: await bans.unlock(user, ids) };
    },
    'server.bans': async () => bans.list().map((ban) => ({ ...ban, until: new Date(ban.until).toISOString() })),
    'server.unban': async ({ source }) => {
      if (await bans.unban(source)) return {};
      throw new VpnError('ERR_NOT_FOUND', `nothing is held against ${source}; see: customvpn server bans`);
    },
    'user.delete': async ({ name }) => {
      const { name: user } = await accounts.show(name);
      // Before, so that their ends are on record; and those that began meanwhile.
      const kicked = live.endSessions({ user });
      await accounts.delete(name);
      live.endSessions({ user });
      return { kicked };
    },
    'device.list': async ({ user, state: wanted, ...page }) =>
      pageOf(
        (await devices.list(user)).filter((device) => wanted === undefined || device.state === wanted),
        page,
        ({ id }) => id,
        ({ id, name, user }) => [id, name, user],
      ).map(deviceInfo),
    'device.approve': async ({ id }) => {
      await devices.approve(id);
      return {};
    },
    'device.rename': async ({ id, name }) => deviceInfo(await devices.rename(id, name)),
    'device.revoke': async ({ id }) => {
      await devices.revoke(id);
      return { kicked: live.endSessions({ device: id.toLowerCase() }) };
    },
    'profile.create': async ({ user, pin, validHours, approve }) => {
      const account = user === undefined ? undefined : (await accounts.show(user)).name;
      const { names, port, camouflage } = config();
      const [name] = names;
      if (name === undefined) {
        throw new VpnError('ERR_CONFIG_VALUE', 'names: a profile needs a name by which clients reach the gateway');
      }
      const { cert, ca } = live.credentials?.() ?? (await loadServerCredentials(config()));
      const trust = await profileTrust(pin ?? 'ca', cert, ca, state.hasPki ? state.pki : undefined);
      const issued =
        account === undefined
          ? undefined
          : await tokens.issue(account, { lifeMs: (validHours ?? 72) * HOUR_MS, approve: approve ?? false });
      const profile = formatProfile({
        version: 1,
        id: newProfileId(),
        name: account ?? name,
        server: {
          hosts: [...names],
          port,
          name,
          ...(camouflage === undefined ? {} : { camouflage }),
        },
        ...trust,
        ...(isBridging(config()) ? { tunnel: { device: 'tap' as const } } : {}),
        ...(issued === undefined
          ? {}
          : { token: issued.token, tokenExpires: new Date(issued.expiresAt).toISOString() }),
      });
      const link = encodeProfileLink(parseProfile(profile, 'the profile'));
      return { profile, link, expiresAt: instantOf(issued?.expiresAt) };
    },
    'audit.list': async ({ since, user, event, search, after, before, limit }) => {
      const records = await state.audit.list({
        ...(since === undefined ? {} : { since: Date.parse(since) }),
        ...(user === undefined ? {} : { user: user.normalize('NFC') }),
        ...(event === undefined ? {} : { event }),
        ...(search === undefined ? {} : { search }),
        ...(after === undefined ? {} : { after }),
        ...(before === undefined ? {} : { before }),
        limit: limit ?? 1000,
      });
      return records.map(auditInfo);
    },
    'pki.show': async () => (await state.pki.show()).map(certificate),
    'pki.issue': async ({ name }) => {
      const issued = await state.pki.issue(name);
      await recordCertificate(AuditEvent.certificateIssued, issued.certificate);
      return { certificate: certificate(issued.certificate), keyFile: issued.keyFile };
    },
    'pki.revoke': async ({ serial }) => {
      const authority = readHolder(new X509Certificate(state.pki.caPem).raw)?.authority ?? '';
      let kicked = 0;
      // Before the list is there: whoever watches its file would end them uncounted.
      const facts = await state.pki.revoke(serial, (revoked) => {
        kicked = live.endSessions({ certificate: { authority, serial: revoked } });
      });
      await live.reloadCertificates();
      await recordCertificate(AuditEvent.certificateRevoked, facts);
      return { certificate: certificate(facts), kicked };
    },
    'pki.renew': async ({ name, key }) => {
      const { certificate: facts } =
        name === undefined
          ? await state.pki.renew({ key: key ?? 'new' })
          : await state.pki.renewClient(name, { key: key ?? 'same' });
      await recordCertificate(AuditEvent.certificateRenewed, facts);
      if (name === undefined) await live.reloadCertificates();
      return certificate(facts);
    },
  };
}

function userInfo(account: Account): UserInfo {
  return {
    name: account.name,
    groups: [...account.groups],
    disabled: account.disabledAt !== undefined,
    createdAt: new Date(account.createdAt).toISOString(),
    expiresAt: instantOf(account.expiresAt),
    source: account.source ?? null,
    devices: account.devices,
  };
}

function accessTokenInfo(token: AccessToken): AccessTokenInfo {
  const { id, user, name, scopes, createdAt, expiresAt, lastUsedAt, revokedAt } = token;
  return {
    id,
    user,
    name,
    scopes: [...scopes],
    createdAt: new Date(createdAt).toISOString(),
    expiresAt: instantOf(expiresAt),
    lastUsedAt: instantOf(lastUsedAt),
    revokedAt: instantOf(revokedAt),
  };
}

export function passkeyInfo({ createdAt, lastUsedAt, ...passkey }: Passkey): PasskeyInfo {
  return { ...passkey, createdAt: new Date(createdAt).toISOString(), lastUsedAt: instantOf(lastUsedAt) };
}

/** A record as the API and the file of JSON lines have it. */
export function auditInfo({ id, at, event, user, device, source, reason, detail }: AuditRecord): AuditRecordInfo {
  return {
    id,
    at: new Date(at).toISOString(),
    event,
    user: user ?? null,
    device: device ?? null,
    source: source ?? null,
    reason: reason ?? null,
    detail: { ...detail },
  };
}

function instantOf(at: number | undefined): string | null {
  return at === undefined ? null : new Date(at).toISOString();
}

function deviceInfo(device: Device): DeviceInfo {
  const { id, user, name, algorithm, state, createdAt, lastSeenAt } = device;
  return {
    id,
    user,
    name,
    algorithm,
    state,
    createdAt: new Date(createdAt).toISOString(),
    lastSeenAt: instantOf(lastSeenAt),
  };
}
