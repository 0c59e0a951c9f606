/** The LDAP back end at Debian's slapd, run by the test on ports of its own. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { after, before, describe, test } from 'node:test';
import { Attribute, Change, Client } from 'ldapts';
import { Secret } from '../../src/base/log.ts';
import type { BackendVerdict } from '../../src/identity/backends/backend.ts';
import { LdapBackend, type LdapOptions } from '../../src/identity/backends/ldap.ts';
import { TestAuthority } from '../support/certificates.ts';
import { freePort, Slapd } from './slapd.ts';

const BASE = 'dc=example,dc=org';
const PEOPLE = `ou=people,${BASE}`;

const person = (uid: string, password: string, more = '') => `
dn: uid=${uid.replace('+', '\\+')},${PEOPLE}
objectClass: inetOrgPerson
uid: ${uid}
cn: ${uid}
sn: ${uid}
mail: ${uid}@example.org
userPassword: ${password}
${more}`;

const LDIF = `dn: ${BASE}
objectClass: dcObject
objectClass: organization
o: Example
dc: example

dn: cn=vpn,${BASE}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: vpn
userPassword: searcher

dn: ${PEOPLE}
objectClass: organizationalUnit
ou: people

dn: ou=groups,${BASE}
objectClass: organizationalUnit
ou: groups
${person('alice', 'correct horse')}
${person('bob', 'battery staple', 'employeeType: disabled\n')}
${person('carol+vpn', 'plus')}
${person('josé', 'accent').replaceAll(/^(dn|uid|cn|sn|mail): (.*é.*)$/gm, (_, key, value) => `${key}:: ${Buffer.from(value).toString('base64')}`)}
`;

const GROUPS = {
  [`CN=staff, OU=groups, ${BASE}`]: 'staff',
  [`cn=admins,ou=groups,${BASE}`]: 'operators',
  [`cn=board,ou=groups,${BASE}`]: 'board',
};

const never = new AbortController().signal;

describe('slapd', { skip: existsSync('/usr/sbin/slapd') ? false : 'slapd: `apt-get install slapd`' }, () => {
  let authority: TestAuthority;
  let slapd: Slapd;

  before(async () => {
    authority = await TestAuthority.create();
    slapd = await Slapd.start({ authority, ldif: LDIF });
    // Through the running directory, which then keeps memberOf.
    await administer(async (client) => {
      for (const [cn, members] of Object.entries({ Staff: ['alice', 'bob'], admins: ['alice'] })) {
        const member = members.map((uid) => `uid=${uid},${PEOPLE}`);
        await client.add(`cn=${cn},ou=groups,${BASE}`, { objectClass: 'groupOfNames', cn, member });
      }
    });
  });
  after(() => slapd?.[Symbol.asyncDispose]());

  function open(options: Partial<LdapOptions> = {}, ca = authority.cert, bindPassword = 'searcher'): LdapBackend {
    return new LdapBackend({
      name: 'office',
      ca,
      bindPassword: new Secret(bindPassword),
      options: {
        urls: [slapd.tlsUrl],
        startTls: true,
        insecure: false,
        bindDn: `cn=vpn,${BASE}`,
        baseDn: PEOPLE,
        filter: '(&(objectClass=inetOrgPerson)(uid={user}))',
        nameAttribute: 'uid',
        disabledFilter: '(employeeType=disabled)',
        groupAttribute: 'memberOf',
        groupFilter: '(member={dn})',
        groups: GROUPS,
        timeoutSeconds: 5,
        ...options,
      },
    });
  }

  const login = (backend: LdapBackend, user: string, password: string): Promise<BackendVerdict> =>
    backend.authenticate({ user, password }, never);

  async function assertRefused(verdict: Promise<BackendVerdict>, reason: RegExp): Promise<void> {
    const came = await verdict;
    assert.equal(came.kind, 'refused', JSON.stringify(came));
    assert.match('reason' in came ? came.reason : '', reason);
  }

  async function assertUnavailable(verdict: Promise<BackendVerdict>, reason: RegExp): Promise<void> {
    const came = await verdict;
    assert.equal(came.kind, 'unavailable', JSON.stringify(came));
    assert.match('reason' in came ? came.reason : '', reason);
  }

  /** As the directory's administrator. */
  async function administer(work: (client: Client) => Promise<void>): Promise<void> {
    await using client = new Client({ url: slapd.plainUrl });
    await client.bind(`cn=admin,${BASE}`, 'administration');
    await work(client);
  }

  for (const way of ['ldaps', 'StartTLS', 'bind template'] as const) {
    const options = (): Partial<LdapOptions> => ({
      urls: [way === 'StartTLS' ? slapd.plainUrl : slapd.tlsUrl],
      ...(way === 'bind template' ? { bindTemplate: `uid={user},${PEOPLE}` } : {}),
    });

    test(`${way}: the right password is accepted, with the directory's name and our groups`, async () => {
      const accepted = { kind: 'accepted', user: 'alice', groups: ['operators', 'staff'] };
      assert.deepEqual(await login(open(options()), 'alice', 'correct horse'), accepted);
      // The directory does not tell case apart; the account is one.
      assert.deepEqual(await login(open(options()), 'ALICE', 'correct horse'), accepted);
      assert.deepEqual(await login(open({ ...options(), groups: undefined }), 'alice', 'correct horse'), {
        ...accepted,
        groups: undefined,
      });
      assert.deepEqual(await login(open(options()), 'josé', 'accent'), { kind: 'accepted', user: 'josé', groups: [] });
      const plus = { kind: 'accepted', user: 'carol+vpn', groups: [] };
      assert.deepEqual(await login(open(options()), 'carol+vpn', 'plus'), plus);
    });

    test(`${way}: a wrong password, an unknown and a disabled account are refused`, async () => {
      await assertRefused(login(open(options()), 'alice', 'battery staple'), /wrong password/);
      await assertRefused(
        login(open(options()), 'mallory', 'x'),
        way === 'bind template' ? /wrong/ : /no such account/,
      );
      await assertRefused(login(open(options()), 'bob', 'battery staple'), /disabled/);
    });

    test(`${way}: an empty password is refused before the directory is asked`, async () => {
      const before = slapd.log.length;
      await assertRefused(login(open(options()), 'alice', ''), /empty password/);
      await assertRefused(login(open(options()), 'alice', '\0'), /empty password/);
      assert.equal(slapd.log.length, before, slapd.log.slice(before));
    });
  }

  test('a name cannot change the filter or the DN', async () => {
    for (const name of ['*', 'alice)(uid=*', 'a*', 'alice,ou=people', 'alice\0', '', ' ', 'alice)(|(uid=bob']) {
      await assertRefused(login(open(), name, 'correct horse'), /not a name/);
      await assertRefused(login(open({ bindTemplate: `uid={user},${PEOPLE}` }), name, 'correct horse'), /not a name/);
    }
  });

  test('groups can be searched, by DN and by name', async () => {
    const searched = { groupBaseDn: `ou=groups,${BASE}`, groupAttribute: 'nothing' };
    const verdict = await login(open(searched), 'alice', 'correct horse');
    assert.deepEqual(verdict.kind === 'accepted' && verdict.groups, ['operators', 'staff']);
    const byName = { ...searched, groupFilter: `(&(cn=admins)(member=uid={user},${PEOPLE}))` };
    const narrow = await login(open(byName), 'alice', 'correct horse');
    assert.deepEqual(narrow.kind === 'accepted' && narrow.groups, ['operators']);
  });

  test('an account found by its address has its own name, and is found again by it', async () => {
    const byMail = open({ filter: '(mail={user})' });
    const verdict = await login(byMail, 'alice@example.org', 'correct horse');
    assert.equal(verdict.kind === 'accepted' && verdict.user, 'alice');
    assert.equal((await byMail.recheck('alice', never)).standing, 'good');
    assert.equal((await byMail.recheck('mallory', never)).standing, 'gone');
  });

  test('a recheck sees an account that was disabled or no longer matches, and takes a fault for neither', async () => {
    const backend = open();
    assert.equal((await backend.recheck('alice', never)).standing, 'good');
    assert.equal((await backend.recheck('bob', never)).standing, 'gone');
    assert.equal((await backend.recheck('mallory', never)).standing, 'gone');
    const alice = `uid=alice,${PEOPLE}`;
    const disabled = new Attribute({ type: 'employeeType', values: ['disabled'] });
    await administer((client) => client.modify(alice, new Change({ operation: 'add', modification: disabled })));
    assert.equal((await backend.recheck('alice', never)).standing, 'gone');
    await assertRefused(login(backend, 'alice', 'correct horse'), /disabled/);
    await administer((client) => client.modify(alice, new Change({ operation: 'delete', modification: disabled })));
    assert.equal((await backend.recheck('alice', never)).standing, 'good');

    assert.equal((await open({ baseDn: `ou=nowhere,${BASE}` }).recheck('alice', never)).standing, 'unknown');
    assert.equal((await open({}, authority.cert, 'wrong').recheck('alice', never)).standing, 'unknown');
    const nobody = open({ bindTemplate: `uid={user},${PEOPLE}`, bindDn: undefined });
    assert.equal((await nobody.recheck('alice', never)).standing, 'unknown');
  });

  test('a recheck says in which groups an account is now, and of none where the directory has no say in them', async () => {
    const group = `cn=admins,ou=groups,${BASE}`;
    const alice = new Attribute({ type: 'member', values: [`uid=alice,${PEOPLE}`] });
    const bob = new Attribute({ type: 'member', values: [`uid=bob,${PEOPLE}`] });
    const ways = [open(), open({ groupBaseDn: `ou=groups,${BASE}` })];
    for (const backend of ways) {
      assert.deepEqual(await backend.recheck('alice', never), { standing: 'good', groups: ['operators', 'staff'] });
    }
    await administer(async (client) => {
      await client.modify(group, new Change({ operation: 'add', modification: bob }));
      await client.modify(group, new Change({ operation: 'delete', modification: alice }));
    });
    for (const backend of ways) {
      assert.deepEqual(await backend.recheck('alice', never), { standing: 'good', groups: ['staff'] });
    }
    await administer(async (client) => {
      await client.modify(group, new Change({ operation: 'add', modification: alice }));
      await client.modify(group, new Change({ operation: 'delete', modification: bob }));
    });
    assert.deepEqual(await open({ groups: undefined }).recheck('alice', never), {
      standing: 'good',
      groups: undefined,
    });
    const nowhere = open({ groupBaseDn: `ou=nowhere,${BASE}` });
    assert.equal(
      (await nowhere.recheck('alice', never)).standing,
      'unknown',
      'groups that cannot be read are not none',
    );
  });

  test('a directory of another authority gets no password, over ldaps and StartTLS', async () => {
    const other = await TestAuthority.create('Other CA');
    for (const urls of [[slapd.tlsUrl], [slapd.plainUrl]]) {
      const before = slapd.log.length;
      await assertUnavailable(login(open({ urls }, other.cert), 'alice', 'correct horse'), /certificate|issuer|signed/);
      assert.doesNotMatch(slapd.log.slice(before), /BIND/);
    }
  });

  test('without TLS only when the operator says so', async () => {
    const plain = open({ urls: [slapd.plainUrl], startTls: false, insecure: true });
    assert.equal((await login(plain, 'alice', 'correct horse')).kind, 'accepted');
  });

  test('a searcher that the directory refuses is a fault of ours, not of the account', async () => {
    await assertUnavailable(login(open({}, authority.cert, 'wrong'), 'alice', 'correct horse'), /refuses bindDn/);
    await assertUnavailable(login(open({ baseDn: 'dc=nowhere' }), 'alice', 'correct horse'), /0x20/);
  });

  test('the next directory is asked when one is down or hangs', async () => {
    const down = `ldaps://127.0.0.1:${await freePort()}`;
    const tarpit: Server = createServer(() => {});
    await new Promise<void>((resolve) => tarpit.listen(0, '127.0.0.1', resolve));
    const address = tarpit.address();
    const slow = `ldap://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`;
    try {
      const both = open({ urls: [down, slow, slapd.tlsUrl], timeoutSeconds: 4 });
      assert.equal((await login(both, 'alice', 'correct horse')).kind, 'accepted');
      await assertUnavailable(login(open({ urls: [down] }), 'alice', 'correct horse'), /ECONNREFUSED/);
      await assertUnavailable(login(open({ urls: [slow], timeoutSeconds: 0.2 }), 'alice', 'x'), /no answer in time/);
      assert.equal((await open({ urls: [slow], timeoutSeconds: 0.2 }).recheck('alice', never)).standing, 'unknown');
    } finally {
      tarpit.close();
    }
  });
});
