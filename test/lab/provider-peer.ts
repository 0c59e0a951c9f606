/**
 * An OpenID Connect provider in a namespace of its own choice, and the people who log in there.
 *
 * Usage: provider-peer.ts FOLDER. It writes `ca.pem` and `secret` there, says where it is as `issuer URL`, and then, for
 * each line `URL` on standard input, logs `alice` in at that page and says `approved`.
 */

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { CLIENT, TestProvider } from '../interop/oidc-provider.ts';
import { TestAuthority } from '../support/certificates.ts';

const folder = process.argv[2] ?? '';
const authority = await TestAuthority.create();
await writeFile(join(folder, 'ca.pem'), authority.cert);
await writeFile(join(folder, 'secret'), CLIENT.secret, { mode: 0o600 });
const provider = await TestProvider.start(authority);
provider.people.set('1', { id: '1', claims: { preferred_username: 'alice', groups: ['Staff'] } });
process.stdout.write(`issuer ${provider.issuer}\n`);
for await (const url of createInterface({ input: process.stdin })) {
  await provider.browser().approve(url, '1');
  process.stdout.write('approved\n');
}
