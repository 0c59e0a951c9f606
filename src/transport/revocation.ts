/**
 * Lists of revoked certificates (CRLs): what TLS refuses at a handshake, for the connections whose handshake is over.
 *
 * Hides ASN.1. A certificate is told by its issuer and serial number together. It must not know files or sessions.
 *
 * @see RFC 5280 §5
 */

import 'reflect-metadata';
import * as x509 from '@peculiar/x509';
import { VpnError } from '../base/errors.ts';
import { authorityOf } from './certificate-facts.ts';

/** What one authority has revoked. */
export interface RevocationList {
  /** The authority's name, for people. */
  readonly issuer: string;
  /** See `authorityOf`. */
  readonly authority: string;
  /** Milliseconds since the Unix epoch; after it TLS takes no certificate of this authority. */
  readonly nextUpdate: number | undefined;
  /** Lower-case hexadecimal, without leading zeros. */
  readonly serials: ReadonlySet<string>;
}

/**
 * Reads the lists in PEM text, and checks them against the authorities that they come from, as far as these are known here.
 *
 * @param ca PEM text of the authorities
 * @param now milliseconds since the Unix epoch
 * @throws {VpnError} ERR_CERT_FILE for text without a list, one that cannot be read, has been forged or has expired
 */
export async function readRevocationLists(pem: string, ca: string, now: number): Promise<RevocationList[]> {
  const blocks = pem.match(/-----BEGIN X509 CRL-----[^-]*-----END X509 CRL-----/g) ?? [];
  if (blocks.length === 0) throw broken('expected PEM with the label X509 CRL, found none');
  const authorities = (ca.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? []).map(
    (block) => new x509.X509Certificate(block),
  );
  const lists: RevocationList[] = [];
  for (const block of blocks) {
    const { list, crl } = parse(block);
    const issuers = authorities.filter((authority) => authorityOf(authority.subjectName) === list.authority);
    const verdicts = await Promise.all(issuers.map((publicKey) => crl.verify({ publicKey }).catch(() => false)));
    if (verdicts.length > 0 && !verdicts.includes(true)) {
      throw broken(`the list of ${list.issuer} is not signed by the key of that authority`);
    }
    if (list.nextUpdate !== undefined && list.nextUpdate <= now) {
      const end = new Date(list.nextUpdate).toISOString();
      throw broken(`the list of ${list.issuer} has expired at ${end}; have its authority make another`);
    }
    lists.push(list);
  }
  return lists;
}

/** Whether a certificate is on a list. One whose issuer could not be told is on a list with its serial number alone. */
export function isOnList(
  lists: readonly RevocationList[],
  { authority, serial }: { readonly authority: string; readonly serial: string },
): boolean {
  const wanted = normaliseSerial(serial);
  return lists.some((list) => (authority === '' || list.authority === authority) && list.serials.has(wanted));
}

/** Whether two are one; where an issuer could not be told, the serial number decides. */
export function isSameCertificate(
  one: { readonly authority: string; readonly serial: string },
  other: { readonly authority: string; readonly serial: string },
): boolean {
  const isSameIssuer = one.authority === '' || other.authority === '' || one.authority === other.authority;
  return isSameIssuer && normaliseSerial(one.serial) === normaliseSerial(other.serial);
}

/** One form for the ways in which serial numbers are written. */
function normaliseSerial(serial: string): string {
  return serial.toLowerCase().replace(/^0+/, '');
}

function parse(block: string): { list: RevocationList; crl: x509.X509Crl } {
  try {
    const crl = new x509.X509Crl(x509.PemConverter.decodeFirst(block));
    const list: RevocationList = {
      issuer: crl.issuer,
      authority: authorityOf(crl.issuerName),
      nextUpdate: crl.nextUpdate?.getTime(),
      serials: new Set(crl.entries.map(({ serialNumber }) => normaliseSerial(serialNumber))),
    };
    return { list, crl };
  } catch (cause) {
    throw new VpnError('ERR_CERT_FILE', 'revocation list: this cannot be read', { cause });
  }
}

function broken(why: string): VpnError {
  return new VpnError('ERR_CERT_FILE', `revocation list: ${why}`);
}
