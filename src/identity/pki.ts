/**
 * The built-in certificate authority: one CA, the gateway's server certificate, client certificates, and the list of
 * revoked ones.
 *
 * Hides how certificates are made and the folder that holds them:
 *
 *     DIR/certs/ca.pem ca.key          the authority; ten years
 *               server.pem server.key  the gateway's leaf and key
 *               server.next.key        the key of the next leaf, made beforehand so that profiles can pin it
 *               clients/NAME.pem .key  the newest client certificate of a name
 *               clients/.NAME.next.key the key of the next one while it is being renewed
 *               crl.pem                what TLS reads; made from `revoked/`
 *               issued/SERIAL.pem      every leaf ever made
 *               revoked/SERIAL         one file per revocation, so that two at once cannot lose one
 *
 * Keys are P-256, PKCS #8, mode 0600; every file is written whole. It must not know users, sessions or TLS sockets.
 *
 * @see RFC 5280
 */

import 'reflect-metadata';
import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  X509Certificate,
} from 'node:crypto';
import { readdir, readFile, rename, rm } from 'node:fs/promises';
import { isIP } from 'node:net';
import { dirname, join } from 'node:path';
import { domainToASCII } from 'node:url';
import * as x509 from '@peculiar/x509';
import { type Clock, systemClock } from '../base/clock.ts';
import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import { makePrivateFolder, writePrivateFile } from '../base/private-file.ts';
import { parseName } from './names.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** Clocks of clients may be behind. */
const BACKDATE_MS = HOUR_MS;
const CA_DAYS = 3650;
const LEAF_DAYS = 825;
/** A page's certificate is made anew at a start within this time before its end. */
const PAGE_RENEWAL_DAYS = 60;
const MAX_NAMES = 32;
const MAX_CRL_ATTEMPTS = 100;
const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const CRL_NUMBER = '2.5.29.20';
const SERVER_AUTH = '1.3.6.1.5.5.7.3.1';
const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2';

/** When a certificate holds; what is left out is the default: from an hour ago, for its role's time. */
export interface Validity {
  readonly notBefore?: Date;
  readonly notAfter?: Date;
}

/** What is known of a certificate; all of it public. */
export interface CertificateFacts {
  readonly role: 'ca' | 'server' | 'client';
  /** The common name of a CA or client; the names of a server, separated by commas. */
  readonly name: string;
  /** Lower-case hexadecimal. */
  readonly serial: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
  readonly revoked: boolean;
  /** See `spkiPin`. */
  readonly pin: string;
  readonly file: string;
  /** The authority itself, or the leaf that is in use under its name. */
  readonly isNewest: boolean;
}

export interface IssuedCertificate {
  readonly certificate: CertificateFacts;
  readonly certFile: string;
  readonly keyFile: string;
}

export interface PkiPaths {
  readonly folder: string;
  readonly ca: string;
  readonly caKey: string;
  readonly server: string;
  readonly serverKey: string;
  readonly nextServerKey: string;
  readonly crl: string;
  readonly clients: string;
}

/** Base64 of the SHA-256 of a certificate's public key (SubjectPublicKeyInfo), as in RFC 7469. */
export function spkiPin(certificate: string | Uint8Array | X509Certificate): string {
  const parsed = certificate instanceof X509Certificate ? certificate : new X509Certificate(certificate);
  return pinOf(parsed.publicKey.export({ type: 'spki', format: 'der' }));
}

export class Pki {
  readonly paths: PkiPaths;
  readonly #clock: Clock;
  readonly #ca: x509.X509Certificate;
  readonly #caKey: CryptoKey;

  private constructor(paths: PkiPaths, ca: x509.X509Certificate, caKey: CryptoKey, clock: Clock) {
    this.paths = paths;
    this.#ca = ca;
    this.#caKey = caKey;
    this.#clock = clock;
  }

  /**
   * Makes the authority and the server's first certificate under `dir`/certs.
   *
   * @param options.names DNS names and addresses of the gateway, at least one
   * @throws {VpnError} ERR_CONFLICT when there is an authority already: it is never replaced; ERR_BAD_REQUEST for a name
   */
  static async create(
    dir: string,
    options: {
      readonly names: readonly string[];
      readonly clock?: Clock;
      readonly caValidity?: Validity;
      readonly serverValidity?: Validity;
    },
  ): Promise<Pki> {
    const clock = options.clock ?? systemClock;
    const names = serverNames(options.names);
    // All of it appears at once, by a rename that refuses a folder with anything in it.
    const target = pathsIn(join(dir, 'certs')).folder;
    const paths = pathsIn(join(dir, `.certs.${randomBytes(8).toString('hex')}.tmp`));
    for (const folder of [paths.folder, paths.clients, issuedFolder(paths), revokedFolder(paths)]) {
      await makePrivateFolder(folder);
    }
    const key = newKey();
    const { notBefore, notAfter } = period(clock, CA_DAYS, options.caValidity);
    const signingKey = await toCryptoKey(key.privatePem);
    // Authorities of two gateways must differ in name, or a client that knows both takes one for the other.
    const subject = [{ CN: [`CustomVPN CA ${randomBytes(4).toString('hex')}`] }];
    const ca = await x509.X509CertificateGenerator.create({
      serialNumber: newSerial(),
      subject,
      issuer: subject,
      notBefore,
      notAfter,
      publicKey: key.spki,
      signingKey,
      signingAlgorithm: ALGORITHM,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(key.spki),
      ],
    });
    await writePrivateFile(paths.caKey, key.privatePem);
    await writePrivateFile(paths.ca, pemOf(ca), { mode: 0o644 });
    const pki = new Pki(paths, ca, signingKey, clock);
    await pki.#writeCrl();
    await writePrivateFile(paths.nextServerKey, newKey().privatePem);
    await pki.#renewServer(names, options.serverValidity);
    try {
      await rename(paths.folder, target);
    } catch (cause) {
      await rm(paths.folder, { recursive: true });
      const errno = (cause as NodeJS.ErrnoException).code;
      if (errno !== 'ENOTEMPTY' && errno !== 'EEXIST' && errno !== 'ENOTDIR') throw toVpnError(cause, 'ERR_SYSCALL');
      throw new VpnError('ERR_CONFLICT', `${target} exists already and is not replaced`, {
        cause,
        details: { path: target },
      });
    }
    return Pki.open(dir, { clock });
  }

  /**
   * Opens the authority under `dir`/certs, and finishes what a crash left half done.
   *
   * @param options.folder another way to that folder, for a process that cannot go by its name
   * @throws {VpnError} ERR_CERT_FILE for a missing or unreadable file; ERR_CERT_KEY_MISMATCH
   */
  static async open(dir: string, options: { readonly clock?: Clock; readonly folder?: string } = {}): Promise<Pki> {
    const paths = pathsIn(options.folder ?? join(dir, 'certs'));
    const caPem = await readPem(paths.ca);
    const keyPem = await readPem(paths.caKey);
    const ca = parseCertificate(caPem, paths.ca);
    if (!keyMatches(parseX509(caPem, paths.ca), keyPem, paths.caKey)) {
      throw new VpnError('ERR_CERT_KEY_MISMATCH', `${paths.caKey} is not the key of ${paths.ca}`, {
        details: { certificate: paths.ca, key: paths.caKey },
      });
    }
    const pki = new Pki(paths, ca, await toCryptoKey(keyPem), options.clock ?? systemClock);
    await pki.#finishRenewal();
    for (const file of await readdir(paths.clients)) {
      const [, name] = /^\.(.+)\.next\.key$/.exec(file) ?? [];
      if (name !== undefined) await pki.#finishClient(name);
    }
    if (!(await pki.#crlIsCurrent())) await pki.#writeCrl();
    return pki;
  }

  /** The authority's certificate, PEM. */
  get caPem(): string {
    return pemOf(this.#ca);
  }

  /** Pins that a profile may carry: the authority's, the server's present key's, and that of the key after it. */
  async pins(): Promise<{ ca: string; leaf: string; backup: string }> {
    const next = createPublicKey(createPrivateKey(await readPem(this.paths.nextServerKey)));
    return {
      ca: spkiPin(this.caPem),
      leaf: spkiPin(await readPem(this.paths.server)),
      backup: pinOf(next.export({ type: 'spki', format: 'der' })),
    };
  }

  /**
   * Makes a key and certificate for a client, `clients/NAME.pem` and `.key`.
   *
   * @throws {VpnError} ERR_CONFLICT while that name has a certificate that is neither revoked nor expired, unless
   *   `replace` is set; ERR_BAD_REQUEST for a name
   */
  async issue(
    name: string,
    options: { readonly validity?: Validity; readonly replace?: boolean } = {},
  ): Promise<IssuedCertificate> {
    const common = parseName('certificate', name);
    const { certFile, keyFile } = clientPaths(this.paths, common);
    if (options.replace !== true) await this.#refuseLive(certFile, common);
    const key = newKey();
    const certificate = await this.#sign(key.spki, {
      subject: [{ CN: [common] }],
      usage: CLIENT_AUTH,
      validity: options.validity,
      names: [],
    });
    // A crash in between leaves a key without its certificate, which the next `issue` replaces.
    await writePrivateFile(keyFile, key.privatePem);
    await writePrivateFile(certFile, pemOf(certificate), { mode: 0o644 });
    return { certificate: await this.#facts(certificate, certFile), certFile, keyFile };
  }

  /**
   * The certificate of the admin page, with its key: the one that there is, `page.pem` and `page.key`, or a new one where that
   * ends soon, is revoked, or has other names. PEM.
   *
   * @throws {VpnError} ERR_BAD_REQUEST for a name; ERR_SYSCALL
   */
  async pageCertificate(names: readonly string[]): Promise<{ cert: string; key: string }> {
    const wanted = serverNames(names);
    const [certFile, keyFile] = [join(this.paths.folder, 'page.pem'), join(this.paths.folder, 'page.key')];
    const cert = await readFile(certFile, 'utf8').catch(() => undefined);
    const key = await readFile(keyFile, 'utf8').catch(() => undefined);
    if (cert !== undefined && key !== undefined) {
      const present = new x509.X509Certificate(parseX509(cert, certFile).raw);
      const isGood =
        present.notAfter.getTime() > this.#clock.wallNow() + PAGE_RENEWAL_DAYS * DAY_MS &&
        sansOf(present).toSorted().join() === wanted.toSorted().join() &&
        !(await this.#revocations()).has(normaliseSerial(present.serialNumber)) &&
        keyMatches(parseX509(cert, certFile), key, keyFile);
      if (isGood) return { cert, key };
    }
    const made = newKey();
    const subject = [{ CN: ['CustomVPN admin page'] }];
    const certificate = await this.#sign(made.spki, {
      subject,
      usage: SERVER_AUTH,
      validity: undefined,
      names: wanted,
    });
    await writePrivateFile(keyFile, made.privatePem);
    await writePrivateFile(certFile, pemOf(certificate), { mode: 0o644 });
    return { cert: pemOf(certificate), key: made.privatePem };
  }

  /**
   * Gives the server a new certificate, with the same names unless others are given: for its next key or, with `key:
   * 'same'`, for the one it has. The old one stays valid until it ends or is revoked.
   *
   * @throws {VpnError} ERR_BAD_REQUEST for a name
   */
  async renew(
    options: { readonly names?: readonly string[]; readonly validity?: Validity; readonly key?: 'same' | 'new' } = {},
  ): Promise<IssuedCertificate> {
    const names =
      options.names === undefined
        ? sansOf(parseCertificate(await readPem(this.paths.server), this.paths.server))
        : serverNames(options.names);
    const certificate = await this.#renewServer(names, options.validity, options.key);
    return {
      certificate: await this.#facts(certificate, this.paths.server),
      certFile: this.paths.server,
      keyFile: this.paths.serverKey,
    };
  }

  /**
   * Gives a client a new certificate under its name, for the key it has or, with `key: 'new'`, for another. The old one
   * stays in its place until the new one is made, and valid until it ends or is revoked.
   *
   * @throws {VpnError} ERR_NOT_FOUND for a name without a certificate; ERR_CONFLICT where it was revoked
   */
  async renewClient(
    name: string,
    options: { readonly validity?: Validity; readonly key?: 'same' | 'new' } = {},
  ): Promise<IssuedCertificate> {
    const common = parseName('certificate', name);
    const { certFile, keyFile, nextKeyFile } = clientPaths(this.paths, common);
    const pem = await readFile(certFile, 'utf8').catch(() => undefined);
    if (pem === undefined) {
      throw new VpnError('ERR_NOT_FOUND', `${common} has no certificate; make one with: customvpn pki issue ${common}`);
    }
    const old = await this.#facts(parseCertificate(pem, certFile), certFile);
    // Whoever has the key that was revoked must not be let in again.
    if (old.revoked) {
      throw new VpnError(
        'ERR_CONFLICT',
        `the certificate ${old.serial} of ${common} was revoked; make another with: customvpn pki issue ${common}`,
        { details: { name: common, serial: old.serial } },
      );
    }
    const key = options.key === 'new' ? newKey() : undefined;
    const spki = key?.spki ?? spkiOf(parseX509(pem, certFile).publicKey);
    const certificate = await this.#sign(spki, {
      subject: [{ CN: [common] }],
      usage: CLIENT_AUTH,
      validity: options.validity,
      names: [],
    });
    if (key !== undefined) await writePrivateFile(nextKeyFile, key.privatePem);
    await writePrivateFile(certFile, pemOf(certificate), { mode: 0o644 });
    await this.#finishClient(common);
    return { certificate: await this.#facts(certificate, certFile), certFile, keyFile };
  }

  /**
   * Revokes a leaf by its serial number and writes the list anew.
   *
   * @param serial hexadecimal; colons and leading zeros are ignored
   * @param decided told, with the serial number as facts have it, as soon as nothing can undo it, before anybody can read the list
   * @throws {VpnError} ERR_NOT_FOUND for a serial that this authority has not issued; ERR_BAD_REQUEST for its own
   */
  async revoke(serial: string, decided: (serial: string) => void = () => {}): Promise<CertificateFacts> {
    const wanted = normaliseSerial(serial);
    if (wanted === normaliseSerial(this.#ca.serialNumber)) {
      throw new VpnError('ERR_BAD_REQUEST', 'an authority cannot revoke itself; make a new one and new profiles');
    }
    const file = join(issuedFolder(this.paths), `${wanted}.pem`);
    const pem = /^[0-9a-f]+$/.test(wanted) ? await readFile(file, 'utf8').catch(() => undefined) : undefined;
    if (pem === undefined) {
      throw new VpnError('ERR_NOT_FOUND', 'this authority has issued no certificate with that serial number');
    }
    try {
      const at = new Date(this.#clock.wallNow()).toISOString();
      await writePrivateFile(join(revokedFolder(this.paths), wanted), `${at}\n`, { when: 'create' });
    } catch (error) {
      if (!isVpnError(error, 'ERR_CONFLICT')) throw error;
    }
    decided(wanted);
    await this.#writeCrl();
    return this.#facts(parseCertificate(pem, file), file);
  }

  /** Every certificate, the authority first, then by the time they were made. */
  async show(): Promise<CertificateFacts[]> {
    const folder = issuedFolder(this.paths);
    const revoked = await this.#revocations();
    const leaves: CertificateFacts[] = [];
    for (const name of await readdir(folder)) {
      if (!/^[0-9a-f]+\.pem$/.test(name)) continue;
      const file = join(folder, name);
      const certificate = parseCertificate(await readPem(file), file);
      leaves.push(factsOf(certificate, await this.#presentFile(certificate, file), revoked, folder));
    }
    leaves.sort((a, b) => a.notBefore.getTime() - b.notBefore.getTime() || (a.serial < b.serial ? -1 : 1));
    return [factsOf(this.#ca, this.paths.ca, revoked, folder), ...leaves];
  }

  async #sign(
    spki: Uint8Array<ArrayBuffer>,
    leaf: { subject: x509.JsonName; usage: string; validity: Validity | undefined; names: readonly string[] },
  ): Promise<x509.X509Certificate> {
    const { notBefore, notAfter } = period(this.#clock, LEAF_DAYS, leaf.validity, this.#ca.notAfter);
    const extensions: x509.Extension[] = [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([leaf.usage]),
      await x509.SubjectKeyIdentifierExtension.create(spki),
      await x509.AuthorityKeyIdentifierExtension.create(this.#ca.publicKey),
    ];
    if (leaf.names.length > 0) {
      extensions.push(
        new x509.SubjectAlternativeNameExtension(
          leaf.names.map((value) => ({ type: isIP(value) === 0 ? 'dns' : 'ip', value })),
        ),
      );
    }
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: newSerial(),
      subject: leaf.subject,
      issuer: this.#ca.subjectName,
      notBefore,
      notAfter,
      publicKey: spki,
      signingKey: this.#caKey,
      signingAlgorithm: ALGORITHM,
      extensions,
    });
    // On record before anyone can use it, so that it can always be revoked.
    const file = join(issuedFolder(this.paths), `${normaliseSerial(certificate.serialNumber)}.pem`);
    await writePrivateFile(file, pemOf(certificate), { mode: 0o644, when: 'create' });
    return certificate;
  }

  /** Three steps in an order that `#finishRenewal` can take up after any of them. */
  async #renewServer(
    names: readonly string[],
    validity: Validity | undefined,
    which: 'same' | 'new' = 'new',
  ): Promise<x509.X509Certificate> {
    const { serverKey, nextServerKey } = this.paths;
    const spki = spkiOf(createPublicKey(createPrivateKey(await readPem(which === 'new' ? nextServerKey : serverKey))));
    const subject = [{ CN: ['CustomVPN gateway'] }];
    const certificate = await this.#sign(spki, { subject, usage: SERVER_AUTH, validity, names });
    await writePrivateFile(this.paths.server, pemOf(certificate), { mode: 0o644 });
    await this.#finishRenewal();
    return certificate;
  }

  async #finishRenewal(): Promise<void> {
    const { server, serverKey, nextServerKey } = this.paths;
    const certificate = await readFile(server, 'utf8').catch(() => undefined);
    const next = await readFile(nextServerKey, 'utf8').catch(() => undefined);
    if (next === undefined) {
      await writePrivateFile(nextServerKey, newKey().privatePem);
    } else if (certificate !== undefined && keyMatches(parseX509(certificate, server), next, nextServerKey)) {
      await rename(nextServerKey, serverKey);
      await writePrivateFile(nextServerKey, newKey().privatePem);
    }
  }

  /** A key whose certificate is in place belongs beside it; any other is of a renewal that did not get so far. */
  async #finishClient(name: string): Promise<void> {
    const { certFile, keyFile, nextKeyFile } = clientPaths(this.paths, name);
    const certificate = await readFile(certFile, 'utf8').catch(() => undefined);
    const next = await readFile(nextKeyFile, 'utf8').catch(() => undefined);
    if (certificate === undefined || next === undefined) return;
    if (keyMatches(parseX509(certificate, certFile), next, nextKeyFile)) await rename(nextKeyFile, keyFile);
  }

  async #refuseLive(file: string, name: string): Promise<void> {
    const pem = await readFile(file, 'utf8').catch(() => undefined);
    if (pem === undefined) return;
    const facts = await this.#facts(parseCertificate(pem, file), file);
    if (facts.revoked || facts.notAfter.getTime() <= this.#clock.wallNow()) return;
    throw new VpnError(
      'ERR_CONFLICT',
      `${name} has a certificate that is valid until ${facts.notAfter.toISOString()}; revoke ${facts.serial} first`,
      { details: { name, serial: facts.serial } },
    );
  }

  async #revocations(): Promise<Map<string, Date>> {
    const folder = revokedFolder(this.paths);
    const revocations = new Map<string, Date>();
    for (const serial of (await readdir(folder)).sort()) {
      if (!/^[0-9a-f]+$/.test(serial)) continue;
      const at = new Date((await readFile(join(folder, serial), 'utf8')).trim());
      revocations.set(serial, Number.isNaN(at.getTime()) ? new Date(this.#clock.wallNow()) : at);
    }
    return revocations;
  }

  /** Makes the list until it holds every revocation there is after it was written: others may be writing it too. */
  async #writeCrl(): Promise<void> {
    for (let attempt = 0; attempt < MAX_CRL_ATTEMPTS; attempt++) {
      const crl = await this.#signCrl(await this.#revocations());
      await writePrivateFile(this.paths.crl, crl, { mode: 0o644 });
      if (await this.#crlIsCurrent()) return;
    }
    throw new VpnError('ERR_INVARIANT', `${this.paths.crl} does not hold what was written to it`);
  }

  async #signCrl(revocations: Map<string, Date>): Promise<string> {
    const now = this.#clock.wallNow();
    const crl = await x509.X509CrlGenerator.create({
      issuer: this.#ca.subjectName,
      thisUpdate: new Date(now - BACKDATE_MS),
      // It is a local file that is always present: an end of its own could only lock everybody out.
      nextUpdate: this.#ca.notAfter,
      entries: [...revocations].map(([serialNumber, revocationDate]) => ({
        serialNumber,
        revocationDate,
        reason: x509.X509CrlReason.privilegeWithdrawn,
      })),
      extensions: [
        await x509.AuthorityKeyIdentifierExtension.create(this.#ca.publicKey),
        new x509.Extension(CRL_NUMBER, false, derInteger(now)),
      ],
      signingAlgorithm: ALGORITHM,
      signingKey: this.#caKey,
    });
    return `${x509.PemConverter.encode(crl.rawData, 'X509 CRL')}\n`;
  }

  async #crlIsCurrent(): Promise<boolean> {
    try {
      const crl = new x509.X509Crl(x509.PemConverter.decodeFirst(await readFile(this.paths.crl, 'utf8')));
      const listed = new Set(crl.entries.map((entry) => normaliseSerial(entry.serialNumber)));
      const wanted = await this.#revocations();
      return (
        listed.size === wanted.size &&
        [...wanted.keys()].every((serial) => listed.has(serial)) &&
        (await crl.verify({ publicKey: this.#ca }))
      );
    } catch {
      return false;
    }
  }

  /** Where people find a leaf: under its name while it is the newest of that name. */
  async #presentFile(certificate: x509.X509Certificate, file: string): Promise<string> {
    const named =
      roleOf(certificate) === 'server'
        ? this.paths.server
        : join(this.paths.clients, `${parseName('certificate', commonName(certificate))}.pem`);
    return (await readFile(named, 'utf8').catch(() => '')) === pemOf(certificate) ? named : file;
  }

  async #facts(certificate: x509.X509Certificate, file: string): Promise<CertificateFacts> {
    return factsOf(certificate, file, await this.#revocations(), issuedFolder(this.paths));
  }
}

function factsOf(
  certificate: x509.X509Certificate,
  file: string,
  revoked: Map<string, Date>,
  issued: string,
): CertificateFacts {
  const role = roleOf(certificate);
  const serial = normaliseSerial(certificate.serialNumber);
  return {
    role,
    name: role === 'server' ? sansOf(certificate).join(',') : commonName(certificate),
    serial,
    notBefore: certificate.notBefore,
    notAfter: certificate.notAfter,
    revoked: revoked.has(serial),
    pin: spkiPin(pemOf(certificate)),
    file,
    isNewest: dirname(file) !== issued,
  };
}

function pathsIn(folder: string): PkiPaths {
  return {
    folder,
    ca: join(folder, 'ca.pem'),
    caKey: join(folder, 'ca.key'),
    server: join(folder, 'server.pem'),
    serverKey: join(folder, 'server.key'),
    nextServerKey: join(folder, 'server.next.key'),
    crl: join(folder, 'crl.pem'),
    clients: join(folder, 'clients'),
  };
}

function clientPaths({ clients }: PkiPaths, name: string): { certFile: string; keyFile: string; nextKeyFile: string } {
  // No name begins with a full stop.
  const at = (file: string) => join(clients, file);
  return { certFile: at(`${name}.pem`), keyFile: at(`${name}.key`), nextKeyFile: at(`.${name}.next.key`) };
}

function spkiOf(key: KeyObject): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(key.export({ type: 'spki', format: 'der' }));
}

function issuedFolder(paths: PkiPaths): string {
  return join(paths.folder, 'issued');
}

function revokedFolder(paths: PkiPaths): string {
  return join(paths.folder, 'revoked');
}

function newKey(): { privatePem: string; spki: Uint8Array<ArrayBuffer> } {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return {
    privatePem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    spki: Uint8Array.from(publicKey.export({ type: 'spki', format: 'der' })),
  };
}

async function toCryptoKey(privatePem: string): Promise<CryptoKey> {
  return createPrivateKey(privatePem).toCryptoKey(ALGORITHM, false, ['sign']);
}

/** Sixteen octets, random but for two bits: positive without a further octet, and with no leading zero. */
function newSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return bytes.toString('hex');
}

function normaliseSerial(serial: string): string {
  return serial.toLowerCase().replaceAll(':', '').replace(/^0+/, '');
}

function period(clock: Clock, days: number, wanted: Validity = {}, limit?: Date): { notBefore: Date; notAfter: Date } {
  const now = clock.wallNow();
  const end = now + days * DAY_MS;
  return {
    notBefore: wanted.notBefore ?? new Date(now - BACKDATE_MS),
    notAfter: wanted.notAfter ?? new Date(limit === undefined ? end : Math.min(end, limit.getTime())),
  };
}

function serverNames(texts: readonly string[]): string[] {
  const names = [...new Set(texts.map(serverName))];
  if (names.length >= 1 && names.length <= MAX_NAMES) return names;
  throw new VpnError('ERR_BAD_REQUEST', `expected 1 to ${MAX_NAMES} names of the gateway, got ${names.length}`);
}

function serverName(text: string): string {
  const bare = text.trim().replace(/^\[(.*)\]$/, '$1');
  if (isIP(bare) !== 0 && !bare.includes('%')) return bare.toLowerCase();
  // A URL's parser would cut the text at the first of these.
  const name = /[/\\?#@:%\s]/.test(bare) ? '' : domainToASCII(bare).replace(/\.$/, '');
  const label = '[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?';
  if (name.length <= 253 && new RegExp(`^${label}(\\.${label})*$`).test(name) && !/(^|\.)[0-9]+$/.test(name))
    return name;
  throw new VpnError('ERR_BAD_REQUEST', `${JSON.stringify(text.slice(0, 80))} is neither a host name nor an address`);
}

function sansOf(certificate: x509.X509Certificate): string[] {
  const extension = certificate.getExtension(x509.SubjectAlternativeNameExtension);
  return extension?.names.items.map((item) => item.value) ?? [];
}

function roleOf(certificate: x509.X509Certificate): CertificateFacts['role'] {
  if (certificate.getExtension(x509.BasicConstraintsExtension)?.ca === true) return 'ca';
  const usages = certificate.getExtension(x509.ExtendedKeyUsageExtension)?.usages ?? [];
  return usages.includes(SERVER_AUTH) ? 'server' : 'client';
}

function commonName(certificate: x509.X509Certificate): string {
  return certificate.subjectName.getField('CN')[0] ?? '';
}

function pemOf(certificate: x509.X509Certificate): string {
  return `${certificate.toString('pem')}\n`;
}

function pinOf(spki: Uint8Array): string {
  return createHash('sha256').update(spki).digest('base64');
}

/** A non-negative INTEGER, DER. */
function derInteger(value: number): Uint8Array<ArrayBuffer> {
  const digits = value.toString(16);
  const bytes = Buffer.from(digits.length % 2 === 0 ? digits : `0${digits}`, 'hex');
  const content = (bytes[0] ?? 0) > 0x7f ? [0, ...bytes] : [...bytes];
  return Uint8Array.of(0x02, content.length, ...content);
}

async function readPem(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    throw new VpnError('ERR_CERT_FILE', `cannot read ${path}: ${String(errno)}`, { cause, details: { path, errno } });
  }
}

function parseCertificate(pem: string, path: string): x509.X509Certificate {
  return new x509.X509Certificate(parseX509(pem, path).raw);
}

function parseX509(pem: string, path: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new VpnError('ERR_CERT_FILE', `${path} holds no certificate`, { cause, details: { path } });
  }
}

function keyMatches(certificate: X509Certificate, keyPem: string, path: string): boolean {
  try {
    return certificate.checkPrivateKey(createPrivateKey(keyPem));
  } catch {
    // The cause is left out: a parser's message may quote what it read.
    throw new VpnError('ERR_CERT_FILE', `${path} holds no private key`, { details: { path } });
  }
}
