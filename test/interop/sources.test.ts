/** Whole gateways whose accounts come from a real directory and a real RADIUS server, in one process with their clients. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, describe, test } from 'node:test';
import { Attribute, Change, Client } from 'ldapts';
import { ManualClock } from '../../src/base/clock.ts';
import { TestAuthority } from '../support/certificates.ts';
import { exchange, type SimClient, until, World } from '../support/world.ts';
import { Freeradius, PROGRAM } from './freeradius.ts';
import { freePort, Slapd } from './slapd.ts';

const missing = ['/usr/sbin/slapd', PROGRAM].filter((program) => !existsSync(program));
const skip = missing.length === 0 ? false : `${missing.join(', ')}: \`apt-get install slapd freeradius\``;

const BASE = 'dc=example,dc=org';
const ALICE = `uid=alice,${BASE}`;
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

dn: ${ALICE}
objectClass: inetOrgPerson
uid: alice
cn: alice
sn: alice

dn: uid=bob,${BASE}
objectClass: inetOrgPerson
uid: bob
cn: bob
sn: bob
`;

describe('accounts of outside sources', { skip }, () => {
  let folder: string;
  let authority: TestAuthority;
  let slapd: Slapd;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'customvpn-sources-'));
    authority = await TestAuthority.create();
    await writeFile(join(folder, 'ca.pem'), authority.cert);
    await writeFile(join(folder, 'searcher'), 'searcher\n', { mode: 0o600 });
    await writeFile(join(folder, 'radius'), 'testing123\n', { mode: 0o600 });
    slapd = await Slapd.start({ authority, ldif: LDIF });
  });
  after(async () => {
    await slapd?.[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  const directory = (urls: string[]) => ({
    kind: 'ldap' as const,
    urls,
    caFile: join(folder, 'ca.pem'),
    bindDn: `cn=vpn,${BASE}`,
    bindPasswordFile: join(folder, 'searcher'),
    baseDn: BASE,
    disabledFilter: '(employeeType=disabled)',
    timeoutSeconds: 2,
  });

  async function connected(world: World, user: string, source?: string): Promise<SimClient> {
    const profile = await world.profile(user);
    if (source !== undefined) {
      const store = new DatabaseSync(join(world.dir, 'store.sqlite'));
      store.prepare('update users set source = ? where name = ?').run(source, user);
      store.close();
    }
    return await world.connected(user, { profile });
  }

  test('an account that is disabled in the directory loses its session within the recheck time', async () => {
    const clock = new ManualClock();
    const config = { login: { recheckSeconds: 10 }, backends: { office: directory([slapd.tlsUrl]) } };
    await using world = await World.open({ config, clock });
    const alice = await connected(world, 'alice', 'office');
    await connected(world, 'bob', 'office');
    await connected(world, 'local');
    await exchange(world, alice);
    await using administrator = new Client({ url: slapd.plainUrl });
    await administrator.bind(`cn=admin,${BASE}`, 'administration');
    const disabled = new Attribute({ type: 'employeeType', values: ['disabled'] });
    // The gateway looks once a second, and the first look only learns who is there.
    const asked = slapd.log.length;
    await until(
      () => {
        clock.advance(500);
        return /uid=alice[\s\S]*uid=bob|uid=bob[\s\S]*uid=alice/.test(slapd.log.slice(asked));
      },
      'a first recheck of both',
      15_000,
    );
    assert.equal(world.server.sessions.length, 3);
    await administrator.modify(ALICE, new Change({ operation: 'add', modification: disabled }));
    await until(
      () => {
        clock.advance(100);
        return world.server.sessions.length === 2;
      },
      'the end of the session',
      15_000,
    );
    assert.deepEqual(world.server.sessions.map(({ user }) => user).sort(), ['bob', 'local']);
    await until(() => alice.client.snapshot.state === 'stopped', 'the client to stop');
    assert.match(alice.client.snapshot.lastError?.message ?? '', /revoked/);
    const [record] = world.rows("select * from audit where event = 'source.gone'");
    assert.equal(record?.user, 'alice');
  });

  test('a directory that is down ends no session, and is told of in the log', async () => {
    const clock = new ManualClock();
    const down = directory([`ldaps://127.0.0.1:${await freePort()}`]);
    await using world = await World.open({
      config: { login: { recheckSeconds: 10 }, backends: { office: down } },
      clock,
    });
    const alice = await connected(world, 'alice', 'office');
    await until(
      () => {
        clock.advance(500);
        return world.lines.some(({ msg }) => /cannot say who is still good/.test(String(msg)));
      },
      'a recheck that came to nothing',
      15_000,
    );
    await exchange(world, alice);
    assert.equal(world.server.sessions.length, 1);
  });

  test('a source that is asked without TLS is warned of', async () => {
    const config = {
      backends: { office: { ...directory([slapd.plainUrl]), startTls: false, insecure: true } },
    };
    await using world = await World.open({ config });
    assert.ok((await world.status()).warnings.some((warning) => /office is asked without TLS/.test(warning)));
    assert.ok(
      world.lines.some(({ level, msg }) => level === 'warn' && /office is asked without TLS/.test(String(msg))),
    );
  });

  test('the RADIUS server has the session on record, with what it carried and why it ended', async () => {
    await using radius = await Freeradius.start({ secret: 'testing123', users: {} });
    const config = {
      backends: {
        radius: {
          kind: 'radius' as const,
          servers: [radius.server],
          secretFile: join(folder, 'radius'),
          accountingServers: [radius.accountingServer],
        },
      },
    };
    await using world = await World.open({ config });
    const alice = await connected(world, 'alice', 'radius');
    await connected(world, 'local');
    await exchange(world, alice);
    await until(async () => (await radius.records().catch(() => '')).includes('= Start'), 'the start');
    world.server.kick(world.server.sessions.find(({ user }) => user === 'alice')?.id ?? '');
    await until(async () => (await radius.records()).includes('= Stop'), 'the end');
    const records = await radius.records();
    assert.match(records, /Acct-Terminate-Cause = Admin-Reset/);
    assert.match(records, /User-Name = "alice"/);
    assert.match(records, /Framed-IP-Address = 10\.20\.0\./);
    assert.match(records, /Acct-Input-Octets = [1-9]/);
    assert.doesNotMatch(records, /User-Name = "local"/);

    // A gateway that stops tells of the sessions that end with it.
    await connected(world, 'alice', 'radius');
    await world.server.stop();
    assert.match(await radius.records(), /Acct-Terminate-Cause = NAS-Reboot/);
  });
});
