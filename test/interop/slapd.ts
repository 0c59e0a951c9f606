/**
 * Debian's slapd with a configuration, data folder and ports of its own, for tests of the LDAP back end.
 *
 * Hides how it is set up. The machine's own directory, if it runs one, is neither used nor disturbed.
 */

import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BackgroundProcess, run } from '../lab/process.ts';
import type { TestAuthority } from '../support/certificates.ts';

const PROGRAM = '/usr/sbin/slapd';

/** A TCP port of the loopback address that nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === 'object' && address !== null ? address.port : 0;
}

export interface SlapdOptions {
  authority: TestAuthority;
  /** LDIF of everything below and with the suffix `dc=example,dc=org`. */
  ldif: string;
}

export class Slapd implements AsyncDisposable {
  readonly plainUrl: string;
  readonly tlsUrl: string;
  readonly #folder: string;
  readonly #process: BackgroundProcess;

  static async start({ authority, ldif }: SlapdOptions): Promise<Slapd> {
    const folder = await mkdtemp(join(tmpdir(), 'customvpn-slapd-'));
    const at = (name: string) => join(folder, name);
    const leaf = await authority.server();
    await mkdir(at('data'));
    await writeFile(at('ca.pem'), authority.cert);
    await writeFile(at('server.pem'), leaf.cert);
    await writeFile(at('server.key'), leaf.key, { mode: 0o600 });
    await writeFile(at('content.ldif'), ldif);
    await writeFile(
      at('slapd.conf'),
      [
        'include /etc/ldap/schema/core.schema',
        'include /etc/ldap/schema/cosine.schema',
        'include /etc/ldap/schema/inetorgperson.schema',
        'modulepath /usr/lib/ldap',
        'moduleload back_mdb',
        'moduleload memberof',
        `pidfile ${at('slapd.pid')}`,
        `TLSCACertificateFile ${at('ca.pem')}`,
        `TLSCertificateFile ${at('server.pem')}`,
        `TLSCertificateKeyFile ${at('server.key')}`,
        'allow bind_anon_dn',
        'database mdb',
        'maxsize 16777216',
        'suffix "dc=example,dc=org"',
        'rootdn "cn=admin,dc=example,dc=org"',
        'rootpw administration',
        `directory ${at('data')}`,
        'overlay memberof',
        'access to attrs=userPassword by anonymous auth by * none',
        'access to * by dn="cn=vpn,dc=example,dc=org" read by self read by * auth',
        '',
      ].join('\n'),
    );
    await run(['/usr/sbin/slapadd', '-f', at('slapd.conf'), '-l', at('content.ldif')]);
    const [plain, tls] = [await freePort(), await freePort()];
    const urls = `ldap://127.0.0.1:${plain} ldaps://127.0.0.1:${tls}`;
    const process = await BackgroundProcess.start([PROGRAM, '-d', 'stats', '-f', at('slapd.conf'), '-h', urls], {
      ready: /slapd starting/,
    });
    return new Slapd(folder, process, plain, tls);
  }

  private constructor(folder: string, process: BackgroundProcess, plain: number, tls: number) {
    this.#folder = folder;
    this.#process = process;
    this.plainUrl = `ldap://127.0.0.1:${plain}`;
    this.tlsUrl = `ldaps://127.0.0.1:${tls}`;
  }

  /** What it says that it was asked. */
  get log(): string {
    return this.#process.output;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stop();
    await rm(this.#folder, { recursive: true, force: true });
  }
}
