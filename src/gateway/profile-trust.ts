/**
 * What a profile tells its client to trust: whatever the gateway's certificate comes from.
 *
 * Hides the three kinds of certificates: of the built-in authority, of a public one, and of an operator's own. A profile has
 * to outlive renewals with other keys, so what is pinned is the top of the chain, unless the leaf is asked for.
 */

import { X509Certificate } from 'node:crypto';
import { rootCertificates } from 'node:tls';
import { spkiPin } from '../identity/pki.ts';

export interface ProfileTrust {
  /** PEM; without it the client has to know the authority by itself. */
  readonly ca?: string;
  readonly pins: string[];
}

/** The parts of the built-in authority that matter here. */
export interface OwnTrust {
  readonly caPem: string;
  pins(): Promise<{ readonly ca: string; readonly leaf: string; readonly backup: string }>;
}

/**
 * @param served the certificate in force and what follows it, PEM
 * @param named the authority that the operator names, PEM
 * @param own the built-in authority, where there is one
 * @param roots what clients know by themselves, PEM each
 */
export async function profileTrust(
  pin: 'ca' | 'leaf',
  served: string,
  named: string | undefined,
  own: OwnTrust | undefined,
  roots: readonly string[] = rootCertificates,
): Promise<ProfileTrust> {
  const chain = [...served.matchAll(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g)].map(
    ([pem]) => pem,
  );
  const [leaf = served] = chain;
  const top = chain.at(-1) ?? served;
  if (own !== undefined && isSignedBy(leaf, own.caPem)) {
    const pins = await own.pins();
    return { ca: own.caPem, pins: pin === 'leaf' ? [pins.leaf, pins.backup] : [pins.ca] };
  }
  const root = roots.find((candidate) => isSignedBy(top, candidate));
  // Clients check the chain up to the same root.
  if (root !== undefined) return { pins: [spkiPin(pin === 'leaf' ? leaf : root)] };
  const authority = [top, named].find(
    (candidate) => candidate !== undefined && isAuthority(candidate) && isSignedBy(top, candidate),
  );
  return {
    ...(authority === undefined ? {} : { ca: authority }),
    pins: [spkiPin(pin === 'leaf' || authority === undefined ? leaf : authority)],
  };
}

function isSignedBy(certificate: string, authority: string): boolean {
  try {
    const subject = new X509Certificate(certificate);
    const issuer = new X509Certificate(authority);
    return subject.checkIssued(issuer) && subject.verify(issuer.publicKey);
  } catch {
    // Whatever it is, it has not signed this.
    return false;
  }
}

function isAuthority(certificate: string): boolean {
  return new X509Certificate(certificate).ca;
}
