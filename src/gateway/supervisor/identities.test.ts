/** Who auth and workers become: accounts by name, numbers, or the fixed numbers; never root, never the same. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gatewayConfigSchema } from '../config.ts';
import { identitiesOf } from './identities.ts';

const ACCOUNTS = `root:x:0:0:root:/root:/bin/sh
customvpn-auth:x:990:980::/:/usr/sbin/nologin
toor:x:0:0::/:/bin/sh
vpn:x:5000:5001::/:/bin/false
`;

const of = (users: { auth?: string; worker?: string }, accounts = ACCOUNTS) =>
  identitiesOf(gatewayConfigSchema.parse({ users }), accounts);

test('accounts of the names are taken where they are, else fixed numbers', () => {
  assert.deepEqual(of({}), { auth: { uid: 990, gid: 980 }, worker: { uid: 60_979, gid: 60_979 } });
  assert.deepEqual(of({}, ''), { auth: { uid: 60_978, gid: 60_978 }, worker: { uid: 60_979, gid: 60_979 } });
  assert.deepEqual(of({ auth: 'vpn', worker: '7000' }), {
    auth: { uid: 5000, gid: 5001 },
    worker: { uid: 7000, gid: 7000 },
  });
});

for (const [what, users] of [
  ['a user that is not there', { auth: 'nobody-here' }],
  ['root', { worker: 'root' }],
  ['root by another name', { worker: 'toor' }],
  ['one for both', { auth: 'vpn', worker: 'vpn' }],
] as const) {
  test(`refused: ${what}`, () => assert.throws(() => of(users), { code: 'ERR_CONFIG_VALUE' }));
}
