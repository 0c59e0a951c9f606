/**
 * What a client certificate says of its holder and of who issued it.
 *
 * Hides ASN.1: names are read from the certificate's bytes and not from text that was made for people, in which a peer
 * could have put a name that it does not have. It must not know which users there are.
 *
 * @see RFC 5280
 */

import 'reflect-metadata';
import { createHash } from 'node:crypto';
import * as x509 from '@peculiar/x509';

/** More is no name of a user, and would be carried about by whoever speaks of the certificate. */
const MAX_NAMES = 16;
const MAX_NAME_LENGTH = 256;

/** What a certificate calls its holder; each kind may come more than once. None where there are too many, or one is too long. */
export interface CertificateNames {
  readonly commonNames: readonly string[];
  readonly emails: readonly string[];
  readonly uris: readonly string[];
  /** User principal names, as Microsoft's authorities write them. */
  readonly upns: readonly string[];
}

export interface HolderFacts {
  readonly names: CertificateNames;
  /** See `authorityOf`. */
  readonly authority: string;
}

/**
 * Reads a certificate that TLS has verified.
 *
 * @param der borrowed
 * @returns undefined for one that cannot be read here: it stands for nobody
 */
export function readHolder(der: Uint8Array): HolderFacts | undefined {
  try {
    const certificate = new x509.X509Certificate(Uint8Array.from(der));
    const others = certificate.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
    const ofType = (type: x509.GeneralNameType) => others.flatMap((name) => (name.type === type ? [name.value] : []));
    const names = {
      commonNames: certificate.subjectName.getField('CN'),
      emails: ofType('email'),
      uris: ofType('url'),
      upns: ofType('upn'),
    };
    return { names: isBounded(names) ? names : NO_NAMES, authority: authorityOf(certificate.issuerName) };
  } catch {
    return undefined;
  }
}

const NO_NAMES: CertificateNames = { commonNames: [], emails: [], uris: [], upns: [] };

/** Leaving some out would not do: who is named twice is nobody, and must not become somebody by that. */
function isBounded(names: CertificateNames): boolean {
  const all = Object.values(names).flat();
  return all.length <= MAX_NAMES && all.every((name) => name.length <= MAX_NAME_LENGTH);
}

/** An issuer's name in short, hexadecimal; equal for names that are equal by RFC 5280 §7.1, however they are encoded. */
export function authorityOf(issuer: x509.Name): string {
  const parts = issuer.toJSON().map((part) =>
    Object.entries(part)
      .map(([type, values]) => [
        type,
        ...values.map((value) => value.normalize('NFKC').trim().replace(/\s+/g, ' ').toLowerCase()),
      ])
      .sort(),
  );
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 32);
}
