/**
 * The certificates that a running gateway uses: its own, the authorities of its clients, and what these have revoked.
 *
 * Hides files and when they are read. The revocation list is looked at four times a second, so that one that another program has
 * replaced counts without a reload; a list that cannot be used is said loudly, and the one before it stays in force. Where
 * clients come from the built-in authority and no list is configured, that authority's is used.
 */

import { X509Certificate } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { Repeat } from '../base/repeat.ts';
import { isOnList, type RevocationList, readRevocationLists } from '../transport/revocation.ts';
import type { ServerCredentials } from '../transport/tls.ts';
import type { End } from './certificate-ends.ts';
import type { CredentialFiles, CredentialKind, CredentialsConfig, CredentialTexts } from './credential-files.ts';

/** A revocation has a second to bite. */
const LOOK_MS = 250;

/** What has been read and found to be good. */
export interface Loaded extends CredentialTexts {
  readonly config: CredentialsConfig;
  readonly lists: readonly RevocationList[];
}

/**
 * Reads and checks what a configuration names; changes nothing.
 *
 * @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH, ERR_CONFIG_VALUE
 */
export async function readCredentials(config: CredentialsConfig, files: CredentialFiles, now: number): Promise<Loaded> {
  const texts = await files.read(config, 'all');
  const { pem, crlFile } = texts;
  const lists = pem.crl === undefined ? [] : await readLists(pem.crl, pem.ca ?? '', now, crlFile);
  return { config, lists, ...texts };
}

async function readLists(crl: string, ca: string, now: number, file = ''): Promise<RevocationList[]> {
  try {
    return await readRevocationLists(crl, ca, now);
  } catch (cause) {
    const { code, message } = toVpnError(cause);
    throw new VpnError(code, `${file}: ${message}`, { cause, details: { path: file } });
  }
}

export interface CredentialsOptions {
  readonly loaded: Loaded;
  readonly files: CredentialFiles;
  readonly clock: Clock;
  readonly log: Logger;
  /** Puts what was read last in force for handshakes: all of it, or only the revocation lists. */
  use(what: CredentialKind, credentials: ServerCredentials): Promise<void>;
  /** Other certificates may be revoked now: ends the sessions that rest on one. */
  revoked(): void;
}

/** The credentials in force. */
export class Credentials {
  readonly #options: CredentialsOptions;
  readonly #log: Logger;
  #loaded: Loaded;
  /** The last stamp that was looked into, for good or bad. */
  #seen: string;
  #problem: string | undefined;
  readonly #looks: Repeat;

  constructor(options: CredentialsOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'credentials' });
    this.#loaded = options.loaded;
    this.#seen = options.loaded.stamp;
    this.#looks = new Repeat(
      LOOK_MS,
      () => this.#lookAgain(),
      (error) => this.#log.error('the revocation list could not be looked at', { error }),
    );
  }

  get loaded(): Loaded {
    return this.#loaded;
  }

  /** Why a newer revocation list is not in force. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** Whether a client certificate has been revoked. */
  isRevoked(certificate: { readonly authority: string; readonly serial: string }): boolean {
    return isOnList(this.#loaded.lists, certificate);
  }

  /** When what is in force ends. */
  ends(): End[] {
    const { config, pem, lists, crlFile } = this.#loaded;
    const [leaf, ...others] = certificatesIn(pem.cert);
    const authorities = config.requireClientAuth === false ? [] : certificatesIn(pem.ca ?? '');
    return [
      ...(leaf === undefined
        ? []
        : [{ ...endOf('server certificate', leaf, config.certFile), kind: 'server' as const }]),
      ...others.map((certificate) => ({
        ...endOf('intermediate certificate', certificate, config.certFile),
        kind: 'intermediate' as const,
      })),
      ...authorities.map((certificate) => ({
        ...endOf('CA certificate', certificate, config.caFile),
        kind: 'authority' as const,
      })),
      ...lists.flatMap(({ authority, issuer, nextUpdate }) => {
        if (nextUpdate === undefined) return [];
        const remedy = `put a newer one in its place: ${crlFile}`;
        return [
          {
            key: `list ${authority}`,
            what: `the revocation list of ${issuer}`,
            at: nextUpdate,
            remedy,
            kind: 'revocation_list' as const,
          },
        ];
      }),
    ];
  }

  /** Puts in force what `readCredentials` has read last. */
  async take(loaded: Loaded, what: CredentialKind = 'all'): Promise<void> {
    await this.#options.use(what, loaded.pem);
    this.#loaded = loaded;
    this.#seen = loaded.stamp;
    this.#problem = undefined;
    this.#options.revoked();
  }

  /** @throws {VpnError} ERR_CERT_FILE, ERR_CERT_KEY_MISMATCH: then nothing has changed */
  async reload(): Promise<void> {
    const { files, clock } = this.#options;
    await this.take(await readCredentials(this.#loaded.config, files, clock.wallNow()));
  }

  start(): void {
    this.#looks.start();
  }

  /** Resolves when no file is read any more. */
  async stop(): Promise<void> {
    await this.#looks.stop();
  }

  /** Reads the revocation list again if its file has changed. Never rejects; while one look runs, another is the same one. */
  look(): Promise<void> {
    return this.#looks.run();
  }

  async #lookAgain(): Promise<void> {
    const { crlFile, config, pem } = this.#loaded;
    if (crlFile === undefined) return;
    const { files, clock } = this.#options;
    const stamp = await files.stamp(crlFile);
    if (stamp === this.#seen) return;
    this.#seen = stamp;
    const before = this.#loaded;
    try {
      const { crl } = (await files.read(config, 'lists')).pem;
      const lists = await readLists(crl ?? '', pem.ca ?? '', clock.wallNow(), crlFile);
      // A reload that came between has read the same file, or another.
      if (this.#loaded !== before) return;
      await this.take({ ...before, pem: { ...pem, crl }, lists, stamp }, 'lists');
      this.#log.info('the revocation list has changed and is in force', { file: crlFile });
    } catch (error) {
      this.#problem = `the revocation list is not in force, the one before it is: ${toVpnError(error).message}`;
      this.#log.error(this.#problem, { code: toVpnError(error).code });
    }
  }
}

function certificatesIn(pem: string): X509Certificate[] {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  return blocks.map((block) => new X509Certificate(block));
}

function endOf(kind: string, certificate: X509Certificate, file = ''): End {
  const name = certificate.subject.replaceAll('\n', ', ');
  return {
    key: certificate.serialNumber.toLowerCase().replace(/^0+/, ''),
    what: `the ${kind} of ${name}`,
    at: certificate.validToDate.getTime(),
    remedy: `put a newer one in its place: ${file}`,
  };
}
