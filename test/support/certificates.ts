/**
 * Certificates for tests, made in memory: a CA, leaves of every sort of wrongness, and revocation lists.
 *
 * Independent of the product's own PKI, so that a fault there cannot hide one elsewhere.
 */

import 'reflect-metadata';
import { createHash, randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import { isIP } from 'node:net';
import * as x509 from '@peculiar/x509';

x509.cryptoProvider.set(webcrypto as unknown as Crypto);

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const HOUR_MS = 3_600_000;

/** A certificate and its key in PEM. */
export interface TestLeaf {
  cert: string;
  key: string;
  /** Lower-case hexadecimal. */
  serial: string;
  /** Base64 SHA-256 of the public key (SPKI). */
  pin: string;
}

export interface LeafOptions {
  commonName?: string;
  /** DNS names and addresses. */
  names?: readonly string[];
  /** Hours from now; default -1. */
  notBeforeHours?: number;
  /** Hours from now; default 24. */
  notAfterHours?: number;
  /** Further alternative names. */
  alternatives?: readonly { type: 'email' | 'url' | 'upn'; value: string }[];
  usage?: 'server' | 'client';
  /** Hexadecimal; default random. */
  serial?: string;
}

/** A certificate authority; `cert` is its own certificate. */
export class TestAuthority {
  readonly cert: string;
  readonly pin: string;
  readonly #certificate: x509.X509Certificate;
  readonly #keys: webcrypto.CryptoKeyPair;

  /** @param imitated an authority whose key identifier the new one claims, though its key is another */
  static async create(name = 'Test CA', imitated?: TestAuthority): Promise<TestAuthority> {
    const keys = await newKeys();
    const claimed =
      imitated === undefined ? null : imitated.#certificate.getExtension(x509.SubjectKeyIdentifierExtension);
    const certificate = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: newSerial(),
      name: `CN=${name}`,
      notBefore: hoursFromNow(-48),
      notAfter: hoursFromNow(48),
      keys,
      signingAlgorithm: ALGORITHM,
      extensions: [
        new x509.BasicConstraintsExtension(true, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        claimed ?? (await x509.SubjectKeyIdentifierExtension.create(keys.publicKey)),
      ],
    });
    return new TestAuthority(certificate, keys);
  }

  private constructor(certificate: x509.X509Certificate, keys: webcrypto.CryptoKeyPair) {
    this.#certificate = certificate;
    this.#keys = keys;
    this.cert = `${certificate.toString('pem')}\n`;
    this.pin = pinOf(this.cert);
  }

  /** A certificate for `localhost` and the loopback addresses, unless told otherwise. */
  server(options: LeafOptions = {}): Promise<TestLeaf> {
    return this.#issue({ names: ['localhost', '127.0.0.1', '::1'], usage: 'server', ...options });
  }

  client(commonName = 'alice', options: LeafOptions = {}): Promise<TestLeaf> {
    return this.#issue({ commonName, usage: 'client', ...options });
  }

  /** The list of these serials as revoked. */
  async crl(serials: readonly string[], nextUpdateHours = 24): Promise<string> {
    const list = await x509.X509CrlGenerator.create({
      issuer: this.#certificate.subject,
      thisUpdate: hoursFromNow(-48),
      nextUpdate: hoursFromNow(nextUpdateHours),
      entries: serials.map((serialNumber) => ({ serialNumber, revocationDate: hoursFromNow(-1) })),
      signingKey: this.#keys.privateKey,
      signingAlgorithm: ALGORITHM,
      extensions: [await x509.AuthorityKeyIdentifierExtension.create(this.#certificate, false)],
    });
    return `${list.toString('pem').replaceAll('BEGIN CRL', 'BEGIN X509 CRL').replaceAll('END CRL', 'END X509 CRL')}\n`;
  }

  async #issue(options: LeafOptions): Promise<TestLeaf> {
    const { names = [], usage = 'server', commonName = names[0] ?? 'leaf' } = options;
    const keys = await newKeys();
    const { serial = newSerial() } = options;
    const extensions: x509.Extension[] = [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([
        usage === 'server' ? x509.ExtendedKeyUsage.serverAuth : x509.ExtendedKeyUsage.clientAuth,
      ]),
      await x509.AuthorityKeyIdentifierExtension.create(this.#certificate, false),
    ];
    const { alternatives = [] } = options;
    if (names.length + alternatives.length > 0) {
      const general = names.map((value) => ({ type: isIP(value) === 0 ? ('dns' as const) : ('ip' as const), value }));
      extensions.push(new x509.SubjectAlternativeNameExtension([...general, ...alternatives]));
    }
    const certificate = await x509.X509CertificateGenerator.create({
      serialNumber: serial,
      subject: `CN=${commonName}`,
      issuer: this.#certificate.subject,
      notBefore: hoursFromNow(options.notBeforeHours ?? -1),
      notAfter: hoursFromNow(options.notAfterHours ?? 24),
      publicKey: keys.publicKey,
      signingKey: this.#keys.privateKey,
      signingAlgorithm: ALGORITHM,
      extensions,
    });
    const pkcs8 = await webcrypto.subtle.exportKey('pkcs8', keys.privateKey);
    const cert = `${certificate.toString('pem')}\n`;
    return { cert, key: `${x509.PemConverter.encode(pkcs8, 'PRIVATE KEY')}\n`, serial, pin: pinOf(cert) };
  }
}

function newKeys(): Promise<webcrypto.CryptoKeyPair> {
  return webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify']) as Promise<webcrypto.CryptoKeyPair>;
}

/** Positive and without leading zeros, whatever the first byte. */
function newSerial(): string {
  return `4${randomBytes(8).toString('hex').slice(1)}`;
}

function hoursFromNow(hours: number): Date {
  return new Date(Date.now() + hours * HOUR_MS);
}

function pinOf(cert: string): string {
  const spki = new X509Certificate(cert).publicKey.export({ type: 'spki', format: 'der' });
  return createHash('sha256').update(spki).digest('base64');
}
