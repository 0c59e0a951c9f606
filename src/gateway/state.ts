/**
 * What a gateway keeps: its configuration, certificates, keys and store, in one state directory.
 *
 * Hides that directory from everything that uses its parts. A gateway that is embedded in another program
 * may live in memory instead. Opening reads and checks everything and changes nothing of the host.
 */

import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { readSecretFile } from '../base/private-file.ts';
import { AccessTokens } from '../identity/access-tokens.ts';
import { Accounts } from '../identity/accounts.ts';
import { Authenticator } from '../identity/authenticator.ts';
import { type AccountSource, openBackend } from '../identity/backends/open.ts';
import { Bans } from '../identity/bans.ts';
import { Devices } from '../identity/devices.ts';
import { DEFAULT_DEVICES_PER_USER, EnrolmentTokens } from '../identity/enrolment.ts';
import { Operators } from '../identity/operators.ts';
import { Passkeys } from '../identity/passkeys.ts';
import {
  ARGON2_PARAMETERS,
  hashPassword,
  type PasswordHasher,
  Passwords,
  verifyPassword,
} from '../identity/passwords.ts';
import { Pki } from '../identity/pki.ts';
import { ProxyLogins } from '../identity/proxy-login.ts';
import { SecondFactors } from '../identity/second-factor.ts';
import { AccessTokenStep } from '../identity/steps/access-token.ts';
import {
  type CertificateMapping,
  CertificateStep,
  DEFAULT_CERTIFICATE_MAPPING,
} from '../identity/steps/certificate.ts';
import { DeviceStep } from '../identity/steps/device.ts';
import { type LoginProvider, OidcStep } from '../identity/steps/oidc.ts';
import { type PasswordSources, PasswordStep } from '../identity/steps/password.ts';
import { TokenStep } from '../identity/steps/token.ts';
import { TotpStep } from '../identity/steps/totp.ts';
import { Audit } from '../store/audit.ts';
import { AuditRetention } from '../store/audit-retention.ts';
import { recordPolicy } from '../store/policy.ts';
import { PolicyVersions } from '../store/policy-versions.ts';
import type { PostgresOptions } from '../store/postgres.ts';
import { Sessions } from '../store/sessions.ts';
import { Sources } from '../store/sources.ts';
import { openStore, type Store } from '../store/store.ts';
import { UsageRecord } from '../store/usage.ts';
import { Vault } from '../store/vault.ts';
import { WebhookRecord } from '../store/webhooks.ts';
import { sourceOf } from '../transport/endpoint.ts';
import type { GatewayConfig } from './config.ts';
import { readGatewayConfig, statePaths } from './layout.ts';

const MASTER_KEY_BYTES = 32;

/** What of a configuration says who may enter, and where to. It holds no secret: those are in files. */
const POLICY_KEYS = [
  'accounts',
  'backends',
  'caFile',
  'clientToClient',
  'limits',
  'login',
  'minVersion',
  'proxyFrom',
  'requireClientAuth',
  'routes',
  'services',
  'session',
] as const satisfies readonly (keyof GatewayConfig)[];

const LOCAL_HASHER: PasswordHasher = {
  parameters: ARGON2_PARAMETERS,
  hash: (password) => hashPassword(password, ARGON2_PARAMETERS),
  verify: verifyPassword,
};

/**
 * Where a gateway's store is: the file in its state directory, or a server with what it takes to log in there.
 *
 * @throws {VpnError} ERR_CONFIG_FILE when the password cannot be read or others may read it; ERR_CERT_FILE
 */
export async function placeOfStore(dir: string, { store }: GatewayConfig): Promise<string | PostgresOptions> {
  const { url, passwordFile, caFile } = store;
  if (url === undefined) return statePaths(dir).store;
  const password = passwordFile === undefined ? undefined : await readSecretFile(passwordFile);
  if (caFile === undefined) return { url, password };
  try {
    return { url, password, ca: await readFile(caFile, 'utf8') };
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    throw new VpnError('ERR_CERT_FILE', `cannot read ${caFile}, named as store.caFile: ${errno}`, {
      cause,
      details: { path: caFile, errno },
    });
  }
}

/** The parts of a gateway that outlive a run. */
export class GatewayState implements AsyncDisposable {
  /** Undefined for a gateway in memory. */
  readonly dir: string | undefined;
  readonly accounts: Accounts;
  readonly devices: Devices;
  readonly tokens: EnrolmentTokens;
  readonly audit: Audit;
  readonly sessions: Sessions;
  readonly usage: UsageRecord;
  readonly webhooks: WebhookRecord;
  readonly policyVersions: PolicyVersions;
  readonly sources: Sources;
  readonly passwords: Passwords;
  readonly secondFactors: SecondFactors;
  readonly accessTokens: AccessTokens;
  readonly passkeys: Passkeys;
  readonly bans: Bans;
  readonly proxyLogins: ProxyLogins;
  readonly operators: Operators;
  readonly authenticator: Authenticator;
  /** The outside sources that judge passwords; none while no gateway runs. */
  passwordSources: PasswordSources | undefined;
  /** The identity provider that people are sent to; none while no gateway runs. */
  loginProvider: LoginProvider | undefined;
  /** How client certificates name their users. */
  certificateMapping: CertificateMapping = DEFAULT_CERTIFICATE_MAPPING;
  /** How many devices a user may have. */
  devicesPerUser = DEFAULT_DEVICES_PER_USER;
  readonly #store: Store;
  readonly #pki: Pki | undefined;

  private constructor(parts: {
    dir: string | undefined;
    store: Store;
    vault: Vault;
    pki: Pki | undefined;
    clock: Clock;
    hasher: PasswordHasher;
    audit: Audit;
    bans: Bans;
  }) {
    const { dir, store, vault, pki, clock, hasher } = parts;
    this.dir = dir;
    this.#store = store;
    this.#pki = pki;
    this.audit = parts.audit;
    this.bans = parts.bans;
    const shared = { store, audit: this.audit, clock };
    this.accounts = new Accounts(shared);
    this.devices = new Devices(shared);
    this.tokens = new EnrolmentTokens({ ...shared, devicesPerUser: () => this.devicesPerUser });
    this.passwords = new Passwords({ ...shared, hasher });
    this.secondFactors = new SecondFactors({ ...shared, vault });
    this.accessTokens = new AccessTokens(shared);
    this.passkeys = new Passkeys(shared);
    this.proxyLogins = new ProxyLogins({ ...shared, tokens: this.accessTokens, bans: this.bans });
    const { passwords, secondFactors, accessTokens, bans } = this;
    this.operators = new Operators({ ...shared, passwords, secondFactors, accessTokens, bans });
    this.sessions = new Sessions({ ...shared, vault });
    this.usage = new UsageRecord(store);
    this.webhooks = new WebhookRecord(store);
    this.policyVersions = new PolicyVersions(store, clock);
    this.sources = new Sources({ store, vault, clock });
    const common = [
      new DeviceStep(store),
      new CertificateStep(store, () => this.certificateMapping),
      new PasswordStep(store, this.passwords, () => this.passwordSources),
      new TotpStep(store, this.secondFactors),
      new OidcStep(() => this.loginProvider, clock),
    ];
    this.authenticator = new Authenticator({
      ...shared,
      tokens: this.tokens,
      bans: this.bans,
      steps: {
        login: [...common, new AccessTokenStep(this.accessTokens)],
        enrol: [...common, new TokenStep(this.tokens)],
      },
      serverKey: vault.secret('login steps'),
    });
  }

  /**
   * Opens a state directory that `server init` has made.
   *
   * @param options.hasher default: passwords are hashed in this process, which is for short commands only
   * @param options.config default: what the directory's own file says
   * @param options.certs another way to the folder of certificates
   * @throws {VpnError} ERR_CONFIG_FILE when it is none; ERR_STORE, ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH
   */
  static async open(
    dir: string,
    clock: Clock,
    { hasher = LOCAL_HASHER, config, certs }: { hasher?: PasswordHasher; config?: GatewayConfig; certs?: string } = {},
  ): Promise<GatewayState> {
    const paths = statePaths(dir);
    if (!existsSync(paths.config) && !existsSync(paths.masterKey)) {
      throw new VpnError(
        'ERR_CONFIG_FILE',
        `${dir} is no state directory: there is no ${paths.config}; make one with: customvpn server init --state ${dir} --name HOST`,
        {
          details: { path: paths.config },
        },
      );
    }
    const vault = await Vault.open(paths.masterKey, { mustExist: true });
    // Certificates of another authority need no PKI of ours.
    const pki = existsSync(join(paths.certs, 'ca.key'))
      ? await Pki.open(dir, certs === undefined ? { clock } : { clock, folder: certs })
      : undefined;
    const place = await placeOfStore(dir, config ?? (await readGatewayConfig(paths.config)));
    const store = await openStore(place, { mustExist: true });
    return new GatewayState({ dir: resolve(dir), vault, pki, hasher, ...(await openShared(store, clock)) });
  }

  /** State that is gone with the process. */
  static async inMemory(clock: Clock, hasher: PasswordHasher = LOCAL_HASHER): Promise<GatewayState> {
    const vault = new Vault(randomBytes(MASTER_KEY_BYTES));
    const store = await openStore(':memory:');
    return new GatewayState({ dir: undefined, vault, pki: undefined, hasher, ...(await openShared(store, clock)) });
  }

  /** @throws {VpnError} ERR_NOT_FOUND when the certificates come from elsewhere */
  get pki(): Pki {
    if (this.#pki === undefined) {
      throw new VpnError(
        'ERR_NOT_FOUND',
        'this gateway has no certificate authority of its own: its certificates come from elsewhere',
      );
    }
    return this.#pki;
  }

  /**
   * Opens the outside sources of accounts, by name; the caller closes them.
   *
   * @throws {VpnError} ERR_CONFIG_FILE, ERR_CERT_FILE
   */
  async openSources(config: GatewayConfig, clock: Clock): Promise<ReadonlyMap<string, AccountSource>> {
    const opened = new Map<string, AccountSource>();
    for (const [name, settings] of Object.entries(config.backends)) {
      opened.set(name, await openBackend(name, settings, { grants: this.sources.grantsOf(name), clock }));
    }
    return opened;
  }

  /** Keeps the audit record within its bounds, once it is started. */
  retention({ audit: { keepDays, keepRecords } }: GatewayConfig, clock: Clock, log: Logger): AuditRetention {
    return new AuditRetention({ store: this.#store, audit: this.audit, keepDays, keepRecords, clock, log });
  }

  /** Puts on record what has changed in who may enter, and where to. @throws {VpnError} ERR_STORE */
  async recordPolicy(config: GatewayConfig, digest?: string): Promise<void> {
    const rules = Object.fromEntries(POLICY_KEYS.map((key) => [key, config[key]]));
    // Of a file of thousands of rules it is enough to know that it was another one.
    await recordPolicy(this.#store, this.audit, { ...rules, policyFile: config.policyFile, policy: digest ?? 'none' });
  }

  get hasPki(): boolean {
    return this.#pki !== undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store.close();
  }
}

/** Closes the store when it cannot be read. */
async function openShared(
  store: Store,
  clock: Clock,
): Promise<{ store: Store; clock: Clock; audit: Audit; bans: Bans }> {
  await using undo = new AsyncDisposableStack();
  undo.use(store);
  const audit = await Audit.open(store, clock);
  const bans = await Bans.open({ store, audit, clock, sourceOf });
  undo.move();
  return { store, clock, audit, bans };
}
