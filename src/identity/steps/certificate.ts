/**
 * The `certificate` step: the client holds the private key of a certificate that says who it is.
 *
 * TLS has verified the certificate on this very connection; the answer to the step is empty. Hides how a certificate names
 * a user: which of its names count, and what stands around the user's in them. A certificate that names nobody, or several,
 * stands for nobody.
 *
 * @see docs/protocol.md#REQ-LOGIN-029
 */

import type { Store } from '../../store/store.ts';
import { normaliseName } from '../names.ts';
import type { Attempt, ClientCertificate, Finding, LoginStep } from './step.ts';

/** How a certificate names its user. */
export interface CertificateMapping {
  readonly user: 'common-name' | 'email' | 'uri' | 'upn';
  /** What such a name looks like; `{user}` stands once where the user's name belongs. */
  readonly pattern: string;
}

export const DEFAULT_CERTIFICATE_MAPPING: CertificateMapping = { user: 'common-name', pattern: '{user}' };

export class CertificateStep implements LoginStep {
  readonly kind = 'certificate';
  readonly #store: Store;
  readonly #mapping: () => CertificateMapping;

  constructor(store: Store, mapping: () => CertificateMapping) {
    this.#store = store;
    this.#mapping = mapping;
  }

  async examine({ peer: { certificate } }: Attempt): Promise<Finding> {
    const names = certificate === undefined ? [] : usersNamed(certificate, this.#mapping());
    const [name = '', another] = names;
    const subject = await this.#store.db
      .selectFrom('users')
      .select(['id', 'name'])
      .where('name', '=', another === undefined ? name : '')
      .executeTakeFirst();
    if (subject !== undefined) return { subject };
    return { refusal: { code: 'rejected', reason: whyNobody(certificate, names) } };
  }
}

/** The users that a certificate names, each once. */
export function usersNamed({ names }: Pick<ClientCertificate, 'names'>, mapping: CertificateMapping): string[] {
  const [before = '', after = ''] = mapping.pattern.split('{user}');
  const users = new Set<string>();
  for (const text of namesOfKind(names, mapping.user)) {
    if (text.length < before.length + after.length || !text.startsWith(before) || !text.endsWith(after)) continue;
    const user = normaliseName(text.slice(before.length, text.length - after.length));
    if (user !== undefined) users.add(user);
  }
  return [...users];
}

function namesOfKind(names: ClientCertificate['names'], kind: CertificateMapping['user']): readonly string[] {
  switch (kind) {
    case 'common-name':
      return names.commonNames;
    case 'email':
      return names.emails;
    case 'uri':
      return names.uris;
    case 'upn':
      return names.upns;
  }
}

function whyNobody(certificate: ClientCertificate | undefined, names: readonly string[]): string {
  if (certificate === undefined) return 'no client certificate was shown';
  const which = `the client certificate ${certificate.serial}`;
  if (names.length === 0) return `${which} has no name of a user in the configured form`;
  return names.length > 1 ? `${which} names several users` : `${which} is of nobody that we know`;
}
