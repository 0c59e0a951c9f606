/** Whole gateways whose accounts come from a real directory and a real RADIUS server, in one process with their clients. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { after, before, describe, test } from 'node:test';
import { connect as connectTls } from 'node:tls';
import { Attribute, Change, Client } from 'ldapts';
import { ManualClock } from '../../src/base/clock.ts';
import { parseProfile, withoutToken } from '../../src/control/profile.ts';
import { formatPrefix } from '../../src/ip/address.ts';
import { TestAuthority } from '../support/certificates.ts';
import { TargetNetwork } from '../support/target-network.ts';
import { exchange, Relay, type SimClient, until, World } from '../support/world.ts';
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
userPassword: the password of bob

dn: uid=carol,${BASE}
objectClass: inetOrgPerson
uid: carol
cn: carol
sn: carol
userPassword: the password of carol

dn: cn=engineers,${BASE}
objectClass: groupOfNames
cn: engineers
member: uid=carol,${BASE}
`;

function setSource(world: World, user: string, source: string): void {
  const store = new DatabaseSync(join(world.dir, 'store.sqlite'));
  store.prepare('update users set source = ? where name = ?').run(source, user);
  store.close();
}

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

  async function connected(
    world: World,
    user: string,
    source?: string,
    options: Parameters<World['connected']>[1] = {},
  ): Promise<SimClient> {
    const profile = await world.profile(user);
    if (source !== undefined) setSource(world, user, source);
    return await world.connected(user, { ...options, profile });
  }

  /** A gateway where whoever the directory knows may enrol a device with their password. */
  const openForEverybody = (urls: string[], steps: ('device' | 'password')[] = ['device', 'password']) =>
    World.open({
      config: {
        login: { steps, enrol: ['password'], backend: 'office' },
        accounts: { argon2: { memoryKiB: 8192, passes: 1 } },
        backends: {
          office: {
            ...directory(urls),
            groupBaseDn: BASE,
            groups: { [`cn=engineers,${BASE}`]: 'staff' },
          },
        },
      },
    });

  /** A client with the profile that everybody has. */
  async function newcomer(world: World, user: string, password: string): Promise<SimClient> {
    const { profile, expiresAt } = await world.server.administration['profile.create']({});
    assert.equal(expiresAt, null);
    const shared = parseProfile(profile, 'profile');
    assert.equal(shared.token, undefined);
    return await world.client(user, { profile: shared, enrol: true, user, answer: async () => ({ password }) });
  }

  test('somebody whom only the directory knows enrols with the password that it knows, and has an account and groups then', async () => {
    await using world = await openForEverybody([slapd.tlsUrl]);
    const wrong = await newcomer(world, 'carol', 'the password of bob');
    await assert.rejects(wrong.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    assert.deepEqual(await world.server.administration['user.list']({}), []);
    const carol = await newcomer(world, 'carol', 'the password of carol');
    await carol.client.connect();
    await exchange(world, carol);
    const shown = await world.server.administration['user.show']({ name: 'carol' });
    assert.deepEqual([shown.source, shown.groups, shown.devices.length], ['office', ['staff'], 1]);
    const nobody = await newcomer(world, 'nobody', 'the password of nobody');
    await assert.rejects(nobody.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    assert.match(JSON.stringify(world.rows('select reason from audit')), /office: /);
  });

  test('an account of ours is not judged by the directory, though a name there is the same', async () => {
    await using world = await openForEverybody([slapd.tlsUrl]);
    await world.server.administration['user.add']({ name: 'bob', password: 'a password of our own' });
    const theirs = await newcomer(world, 'bob', 'the password of bob');
    await assert.rejects(theirs.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    const ours = await newcomer(world, 'bob', 'a password of our own');
    await ours.client.connect();
    assert.equal((await world.server.administration['user.show']({ name: 'bob' })).source, null);
  });

  test('a directory that is down refuses a login with a code that says so, and nobody is in', async () => {
    await using world = await openForEverybody([`ldaps://127.0.0.1:${await freePort()}`]);
    const carol = await newcomer(world, 'carol', 'the password of carol');
    await assert.rejects(carol.client.connect({ once: true }), { code: 'ERR_BACKEND' });
    assert.match(JSON.stringify(world.rows('select reason from audit')), /office cannot say/);
    assert.deepEqual(await world.server.administration['user.list']({}), []);
  });

  test('where a key is enough to log in, an account that is gone from the directory is refused all the same', async () => {
    await using world = await openForEverybody([slapd.tlsUrl], ['device']);
    const bob = await newcomer(world, 'bob', 'the password of bob');
    await bob.client.connect();
    await bob.client.disconnect();
    const options = { profile: withoutToken(await world.profile('bob')), deviceKey: bob.key };
    await (await world.connected('bob', options)).client.disconnect();
    await using administrator = new Client({ url: slapd.plainUrl });
    await administrator.bind(`cn=admin,${BASE}`, 'administration');
    const disabled = new Attribute({ type: 'employeeType', values: ['disabled'] });
    const entry = `uid=bob,${BASE}`;
    await administrator.modify(entry, new Change({ operation: 'add', modification: disabled }));
    const late = await world.client('bob', options);
    await assert.rejects(late.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    await administrator.modify(entry, new Change({ operation: 'delete', modification: disabled }));
  });

  test('a RADIUS server judges passwords, too', async () => {
    await using radius = await Freeradius.start({
      secret: 'testing123',
      users: { dave: { password: 'the password of dave' } },
    });
    await using world = await World.open({
      config: {
        login: { steps: ['device', 'password'], enrol: ['password'], backend: 'radius' },
        accounts: { argon2: { memoryKiB: 8192, passes: 1 } },
        backends: {
          radius: { kind: 'radius', servers: [radius.server], secretFile: join(folder, 'radius') },
        },
      },
    });
    const wrong = await newcomer(world, 'dave', 'the password of carol');
    await assert.rejects(wrong.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    const dave = await newcomer(world, 'dave', 'the password of dave');
    await dave.client.connect();
    await exchange(world, dave);
  });

  test('a login that names a source which is not there, or judges no passwords, keeps the gateway from starting', async () => {
    for (const backend of ['nowhere', 'constructor']) {
      await assert.rejects(World.open({ config: { login: { backend } } }), { code: 'ERR_CONFIG_VALUE' });
    }
  });

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

  test('what the directory says of groups at a login ends the other sessions that proved too little for them', async () => {
    const crew = `cn=crew,${BASE}`;
    const members = (user: string) => new Attribute({ type: 'member', values: [`uid=${user},${BASE}`] });
    await using administrator = new Client({ url: slapd.plainUrl });
    await administrator.bind(`cn=admin,${BASE}`, 'administration');
    await administrator.add(crew, { objectClass: 'groupOfNames', cn: 'crew', member: `uid=bob,${BASE}` });
    await using world = await World.open({
      config: {
        login: { enrol: ['password'], backend: 'office', groups: { crew: { steps: ['device', 'totp'] } } },
        accounts: { argon2: { memoryKiB: 8192, passes: 1 } },
        backends: { office: { ...directory([slapd.tlsUrl]), groupBaseDn: BASE, groups: { [crew]: 'crew' } } },
      },
    });
    const first = await newcomer(world, 'carol', 'the password of carol');
    await first.client.connect();
    await exchange(world, first);
    await administrator.modify(crew, new Change({ operation: 'replace', modification: members('carol') }));
    const second = await newcomer(world, 'carol', 'the password of carol');
    await assert.rejects(second.client.connect({ once: true }));
    await until(() => first.client.snapshot.state === 'stopped', 'the end of the first session');
    assert.deepEqual(world.server.sessions, []);
    assert.deepEqual((await world.server.administration['user.show']({ name: 'carol' })).groups, ['crew']);
    await administrator.del(crew);
  });

  test('groups that change in the directory take effect on a live session within the recheck time', async () => {
    const clock = new ManualClock();
    const policyFile = join(folder, 'policy.toml');
    const settings = (who: string, routes: string) => `\n[[settings]]\nfor = ["${who}"]\nroutes = ["${routes}"]\n`;
    await writeFile(
      policyFile,
      `version = 1\n[[rules]]\nname = "all"\naction = "allow"\nfrom = ["any"]\nto = ["any"]\n${[
        settings('group:engineers', '192.0.2.128/25'),
        settings('any', '192.0.2.0/25'),
      ].join('')}`,
    );
    const groups = { [`cn=engineers,${BASE}`]: 'engineers', [`cn=board,${BASE}`]: 'board' };
    await using world = await World.open({
      clock,
      config: {
        policyFile,
        login: { recheckSeconds: 10, groups: { board: { steps: ['device', 'password'] } } },
        backends: { office: { ...directory([slapd.tlsUrl]), groups, groupBaseDn: BASE } },
      },
    });
    const carol = await connected(world, 'carol', 'office');
    const bystander = await connected(world, 'local');
    const routes = () => carol.client.snapshot.config?.routes.map(formatPrefix).join();
    // Asked about at the login, too.
    await until(() => routes() === '192.0.2.128/25', 'the routes of an engineer');
    const recheck = (what: string, isDone: () => boolean) =>
      until(
        () => {
          clock.advance(100);
          return isDone();
        },
        what,
        15_000,
      );
    await using administrator = new Client({ url: slapd.plainUrl });
    await administrator.bind(`cn=admin,${BASE}`, 'administration');
    const members = (user: string) => new Attribute({ type: 'member', values: [`uid=${user},${BASE}`] });
    const setMember = (user: string) =>
      administrator.modify(`cn=engineers,${BASE}`, new Change({ operation: 'replace', modification: members(user) }));
    await setMember('bob');
    await recheck('the routes of everybody', () => routes() === '192.0.2.0/25');
    await exchange(world, carol);
    assert.equal(world.server.sessions.length, 2);
    await administrator.add(`cn=board,${BASE}`, {
      objectClass: 'groupOfNames',
      cn: 'board',
      member: `uid=carol,${BASE}`,
    });
    await recheck('the end of a session that proved too little', () => world.server.sessions.length === 1);
    await until(() => carol.client.snapshot.state === 'stopped', 'the client to stop');
    await exchange(world, bystander);
    await administrator.del(`cn=board,${BASE}`);
    await setMember('carol');
    const changes = world
      .rows("select detail from audit where event = 'user.changed' and user = 'carol' order by id")
      .map(({ detail }) => JSON.parse(String(detail)));
    assert.deepEqual(changes, [
      { groups: 'engineers', from: 'office' },
      { groups: '', from: 'office' },
      { groups: 'board', from: 'office' },
    ]);
  });

  test('an account that is disabled in the directory is asked about when its session is resumed, whenever the recheck is', async () => {
    await using world = await World.open({ config: { backends: { office: directory([slapd.tlsUrl]) } } });
    await using relay = await Relay.open(world.port);
    const bob = await connected(world, 'bob', 'office', { serverPort: relay.port });
    const cut = () => {
      for (const connection of relay.connections) connection.cut();
    };
    cut();
    await until(() => bob.client.snapshot.resumes === 1 && bob.client.snapshot.state === 'connected', 'a resume');
    await using administrator = new Client({ url: slapd.plainUrl });
    await administrator.bind(`cn=admin,${BASE}`, 'administration');
    const disabled = new Attribute({ type: 'employeeType', values: ['disabled'] });
    const entry = `uid=bob,${BASE}`;
    await administrator.modify(entry, new Change({ operation: 'add', modification: disabled }));
    cut();
    await until(() => bob.client.snapshot.state === 'stopped', 'the client to stop');
    await administrator.modify(entry, new Change({ operation: 'delete', modification: disabled }));
    // Whichever comes first, the resume or an ATTACH that was on its way, it is the last.
    assert.equal(world.rows("select id from audit where event = 'session.resumed'").length, 1);
    assert.equal(world.rows("select id from audit where event = 'session.resume_refused'").length, 1);
    const [gone] = world.rows("select user, detail from audit where event = 'source.gone' order by id");
    assert.deepEqual([gone?.user, JSON.parse(String(gone?.detail)).sessions], ['bob', 1]);
    assert.deepEqual(world.server.sessions, []);
  });

  test('a program that uses the proxy by a token is cut off within the recheck time when its account is disabled in the directory', async () => {
    const clock = new ManualClock();
    await using network = new TargetNetwork();
    await network.serve('192.0.2.1', 7, (socket) => void socket.pipe(socket));
    const login = { recheckSeconds: 10 };
    const backends = { office: directory([slapd.tlsUrl]) };
    await using world = await World.open({ clock, network, config: { routes: ['192.0.2.0/24'], login, backends } });
    const { token } = await world.accessToken('bob');
    setSource(world, 'bob', 'office');
    const socket = connectTls({ host: '127.0.0.1', port: world.port, ca: world.ca, servername: 'localhost' });
    let text = '';
    socket
      .on('error', () => {})
      .on('data', (chunk) => {
        text += String(chunk);
      });
    const credentials = Buffer.from(`bob:${token}`).toString('base64');
    socket.write(`CONNECT 192.0.2.1:7 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`);
    await until(() => /^HTTP\/1\.1 200 /.test(text), 'the stream');
    await using administrator = new Client({ url: slapd.plainUrl });
    await administrator.bind(`cn=admin,${BASE}`, 'administration');
    const disabled = new Attribute({ type: 'employeeType', values: ['disabled'] });
    const entry = `uid=bob,${BASE}`;
    await administrator.modify(entry, new Change({ operation: 'add', modification: disabled }));
    await until(
      () => {
        clock.advance(100);
        return socket.closed;
      },
      'the end of the stream',
      15_000,
    );
    await administrator.modify(entry, new Change({ operation: 'delete', modification: disabled }));
    assert.equal(world.rows("select id from audit where event = 'source.gone' and user = 'bob'").length, 1);
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
