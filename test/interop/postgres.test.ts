// The store at a PostgreSQL server: the same tests as the embedded one passes, and what only a server can do to it.

import assert from 'node:assert/strict';
import { globSync, readFileSync } from 'node:fs';
import { appendFile, chmod, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { sql } from 'kysely';
import { ManualClock } from '../../src/base/clock.ts';
import { isVpnError } from '../../src/base/errors.ts';
import { Audit } from '../../src/store/audit.ts';
import { openStore, type Store } from '../../src/store/store.ts';
import { run } from '../lab/process.ts';
import { TestAuthority } from '../support/certificates.ts';
import { PASSWORD, postgresFault, TestPostgres } from '../support/postgres.ts';
import { POSTGRES_PASSWORD, POSTGRES_URL } from '../support/store.ts';
import { exchange, Relay, until, World } from '../support/world.ts';

const ROOT = join(import.meta.dirname, '..', '..');
const fault = postgresFault();
const skip = fault ?? false;

let server: TestPostgres;
before(async () => {
  if (fault === undefined) server = await TestPostgres.start();
});
after(() => server?.[Symbol.asyncDispose]());

const open = (url: string) => openStore({ url, password: PASSWORD });

const user = (name: string) => ({ id: `id-${name}`, name, created_at: 1, disabled_at: null, expires_at: null });

async function addUser(store: Store, name: string): Promise<void> {
  await store.db.insertInto('users').values(user(name)).execute();
}

const names = async (store: Store) =>
  (await store.db.selectFrom('users').select('name').execute()).map(({ name }) => name).sort();

test('what the embedded store is tested with holds at a server', { skip, timeout: 300_000 }, async () => {
  const files = globSync('src/{store,identity,gateway}/**/*.test.ts', { cwd: ROOT }).filter((file) =>
    readFileSync(join(ROOT, file), 'utf8').includes('openTestStore'),
  );
  assert.ok(files.length >= 8, `only ${files.length} files use a store for tests`);
  const { status, stdout } = await run(
    [
      'env',
      '-u',
      'NODE_TEST_CONTEXT',
      process.execPath,
      '--conditions=customvpn-source',
      '--test',
      '--test-reporter=tap',
      ...files.map((file) => join(ROOT, file)),
    ],
    {
      env: { [POSTGRES_URL]: server.url('postgres'), [POSTGRES_PASSWORD]: PASSWORD },
      timeoutMs: 280_000,
      anyStatus: true,
    },
  );
  assert.equal(status, 0, stdout);
  assert.ok(Number(/^# pass (\d+)$/m.exec(stdout)?.[1]) >= 50, stdout.slice(-500));
});

test('times come back as numbers and bytes as bytes', { skip }, async () => {
  await using store = await open(await server.create());
  await store.db
    .insertInto('users')
    .values({ ...user('ada'), created_at: 1_800_000_000_000 })
    .execute();
  await store.db
    .insertInto('passwords')
    .values({ user_id: 'id-ada', phc: 'x', set_at: 2 ** 53 - 1 })
    .execute();
  const { created_at: at, disabled_at: none } = await store.db
    .selectFrom('users')
    .selectAll()
    .executeTakeFirstOrThrow();
  assert.deepEqual([at, none], [1_800_000_000_000, null]);
  assert.equal((await store.db.selectFrom('passwords').select('set_at').executeTakeFirstOrThrow()).set_at, 2 ** 53 - 1);
  const { count } = await store.db
    .selectFrom('users')
    .select((build) => build.fn.countAll<number>().as('count'))
    .executeTakeFirstOrThrow();
  assert.equal(count, 1);
});

test('a transaction that fails leaves nothing, and a taken name is a conflict without its value', {
  skip,
}, async () => {
  await using store = await open(await server.create());
  await assert.rejects(
    store.transaction(async (db) => {
      await db.insertInto('users').values(user('half')).execute();
      throw new Error('stop');
    }),
    /stop/,
  );
  assert.deepEqual(await names(store), []);
  await addUser(store, 'taken-value');
  await assert.rejects(
    store.db
      .insertInto('users')
      .values({ ...user('taken-value'), id: '2' })
      .execute(),
    (error) =>
      isVpnError(error, 'ERR_CONFLICT') &&
      error.cause === undefined &&
      !JSON.stringify([error, error.message, error.stack]).includes('taken-value'),
  );
});

test('gateways that open an empty database at once agree on its schema', { skip }, async () => {
  const url = await server.create();
  const stores = await Promise.all([open(url), open(url), open(url)]);
  await Promise.all(stores.map((store, i) => addUser(store, `${i}`)));
  assert.deepEqual(await names(stores[0]), ['0', '1', '2']);
  for (const store of stores) await store.close();
});

test('of two gateways that take the same thing one gets it', { skip }, async () => {
  const url = await server.create();
  const stores = await Promise.all([open(url), open(url)]);
  await addUser(stores[0], 'u');
  // Reads, decides, writes: without serialisable transactions both decide on what they read first.
  const take = (store: Store) =>
    store.transaction(async (db) => {
      const groups = await db.selectFrom('user_groups').selectAll().execute();
      await db
        .insertInto('user_groups')
        .values({ user_id: 'id-u', name: `g${groups.length}` })
        .execute();
    });
  await Promise.all(Array.from({ length: 20 }, (_, i) => take(stores[i % 2] as Store)));
  const rows = await stores[0].db.selectFrom('user_groups').select('name').execute();
  assert.equal(new Set(rows.map(({ name }) => name)).size, 20);
  for (const store of stores) await store.close();
});

test('a statement between the read and the write of a transaction makes it run again', { skip }, async () => {
  const url = await server.create();
  const [one, two] = await Promise.all([open(url), open(url)]);
  await addUser(one, 'u');
  let runs = 0;
  await one.transaction(async (db) => {
    const { disabled_at: disabledAt } = await db.selectFrom('users').selectAll().executeTakeFirstOrThrow();
    if (runs++ === 0) await two.db.updateTable('users').set({ disabled_at: 7 }).execute();
    await db
      .updateTable('users')
      .set({ expires_at: disabledAt === null ? 1 : 2 })
      .execute();
  });
  assert.equal(runs, 2);
  const row = await one.db.selectFrom('users').selectAll().executeTakeFirstOrThrow();
  assert.deepEqual([row.disabled_at, row.expires_at], [7, 2]);
  await one.close();
  await two.close();
});

test('the audit record cannot be changed, removed or emptied at the server either', { skip }, async () => {
  const url = await server.create();
  await using store = await open(url);
  const audit = new Audit(store, new ManualClock());
  await audit.append({ event: 'login.refused', user: 'a\0b' });
  const database = new URL(url).pathname.slice(1);
  for (const change of ['update audit set reason = null', 'delete from audit', 'truncate audit']) {
    await assert.rejects(server.query(database, change), /append-only/, change);
  }
  assert.equal((await audit.list()).length, 1);
});

test('a server that ends is a clear error at once, and the store goes on when it is back', { skip }, async () => {
  await using store = await open(await server.create());
  await addUser(store, 'kept');
  const during = store.transaction(async (db) => {
    await db.selectFrom('users').selectAll().execute();
    await server.kill();
    await db.insertInto('users').values(user('lost')).execute();
  });
  await assert.rejects(during, { code: 'ERR_STORE' });
  const start = performance.now();
  await assert.rejects(addUser(store, 'refused'), { code: 'ERR_STORE', message: /is it running/ });
  assert.ok(performance.now() - start < 2000);
  await server.restart();
  await addUser(store, 'again');
  assert.deepEqual(await names(store), ['again', 'kept']);
});

test('a statement that waits for a lock ends in time', { skip }, async () => {
  const url = await server.create();
  await using store = await openStore({ url, password: PASSWORD, timeoutMs: 300 });
  await using other = await open(url);
  await addUser(store, 'u');
  const held = Promise.withResolvers<void>();
  const locked = Promise.withResolvers<void>();
  const holder = other.transaction(async (db) => {
    await db.updateTable('users').set({ expires_at: 1 }).execute();
    locked.resolve();
    await held.promise;
  });
  await locked.promise;
  await assert.rejects(store.db.updateTable('users').set({ expires_at: 2 }).execute(), {
    code: 'ERR_STORE',
    message: /took too long/,
  });
  held.resolve();
  await holder;
  await store.db.updateTable('users').set({ expires_at: 2 }).execute();
});

test('a wrong password, a database that is not there and a newer schema are told apart', { skip }, async () => {
  const url = await server.create();
  const refused = (message: RegExp) => ({ code: 'ERR_STORE', message });
  await assert.rejects(openStore({ url, password: 'wrong' }), refused(/passwordFile/));
  await assert.rejects(open(server.url('nowhere')), refused(/createdb/));
  await (await open(url)).close();
  await server.query(
    new URL(url).pathname.slice(1),
    "insert into kysely_migration (name, timestamp) values ('9999_later', '2030')",
  );
  await assert.rejects(open(url), refused(/newer version/));
  // It speaks no TLS: nothing is sent to it in the clear.
  await assert.rejects(open(`${url}?sslmode=verify-full`), refused(/SSL/));
});

test('over TLS it is reached with a certificate of the named authority for its name, and with no other', {
  skip,
}, async () => {
  const [authority, other] = [await TestAuthority.create('One'), await TestAuthority.create('Other')];
  const { pathname } = new URL(await server.create());
  const at = (host: string) => `postgres://vpn@${host}:${server.port}${pathname}?sslmode=verify-full`;
  await server.speakTls(await authority.server({ names: ['localhost'] }));
  try {
    const options = { url: at('localhost'), password: PASSWORD, ca: authority.cert };
    // Its processes learn of the certificate one by one.
    await using store = await until(() => openStore(options).catch(() => undefined), 'the server to speak TLS');
    const seen = sql<{
      ssl: boolean;
      version: string;
    }>`select ssl, version from pg_stat_ssl where pid = pg_backend_pid()`;
    assert.deepEqual((await seen.execute(store.db)).rows, [{ ssl: true, version: 'TLSv1.3' }]);
    await addUser(store, 'ada');
    for (const [what, change, message] of [
      ['another authority', { ca: other.cert }, /comes from no authority that is trusted here; .*store\.caFile/],
      ['no authority', { ca: undefined }, /comes from no authority/],
      ['another name', { url: at('127.0.0.1') }, /another name than the host in store\.url/],
    ] as const) {
      await assert.rejects(openStore({ ...options, ...change }), { code: 'ERR_STORE', message }, what);
    }
  } finally {
    await server.speakTls();
  }
});

test('while the server is gone sessions go on and logins are refused as no fault of theirs; when it is back all is well', {
  skip,
  timeout: 120_000,
}, async () => {
  const folder = await mkdtemp(join(tmpdir(), 'cvpn-pg-live-'));
  try {
    const passwordFile = join(folder, 'password');
    await writeFile(passwordFile, PASSWORD, { mode: 0o600 });
    await using world = await World.open({ config: { store: { url: await server.create(), passwordFile } } });
    await using relay = await Relay.open(world.port);
    const ada = await world.connected('ada');
    const bob = await world.connected('bob', { serverPort: relay.port });
    const eve = await world.client('eve');
    const told = () => world.lines.filter(({ component, level }) => component === 'expiry' && level === 'error').length;
    const [before] = world.server.sessions;
    await server.kill();
    try {
      await exchange(world, ada);
      await assert.rejects(eve.client.connect({ once: true }), { code: 'ERR_PEER_GONE' });
      assert.ok(world.lines.some(({ msg }) => msg === 'a login could not be judged'));
      for (const connection of relay.connections) connection.cut();
      await until(() => bob.client.snapshot.state === 'waiting', 'a resume that fails');
      await until(() => told() > 0, 'a look at who has expired');
      await exchange(world, ada);
    } finally {
      await server.restart();
    }
    await until(() => bob.client.snapshot.state === 'connected', 'the session to be resumed', 60_000);
    assert.equal(bob.client.snapshot.resumes, 1);
    await exchange(world, bob);
    await exchange(world, await world.connected('eve'));
    await exchange(world, ada);
    assert.equal(world.server.sessions[0]?.id, before?.id);
    await until(
      () => world.lines.some(({ msg }) => /it is looked again/.test(String(msg))),
      'a look at who has expired',
    );
    assert.equal(told(), 1, 'it is looked every second, and said once');
    await world.server.administration['user.disable']({ name: 'ada' });
    await until(() => ada.client.snapshot.state === 'stopped', 'the end of the session');
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('by command line: accounts are at the server that the configuration names, its password in a file', {
  skip,
}, async () => {
  const folder = await mkdtemp(join(tmpdir(), 'cvpn-pg-cli-'));
  try {
    const cli = (...words: string[]) =>
      run([join(ROOT, 'bin', 'customvpn'), ...words, '--state', folder], { anyStatus: true });
    const url = await server.create();
    assert.equal((await cli('server', 'init', '--name', '192.0.2.1')).status, 0);
    const secret = join(folder, 'store-password');
    await writeFile(secret, `${PASSWORD}\n`, { mode: 0o644 });
    await appendFile(
      join(folder, 'server.toml'),
      `\n[store]\nurl = ${JSON.stringify(url)}\npasswordFile = "store-password"\n`,
    );
    const open = await cli('user', 'add', 'ada');
    assert.deepEqual([open.status, /chmod 600/.test(open.stderr)], [78, true]);
    await chmod(secret, 0o600);
    assert.equal((await cli('server', 'run', '--check')).status, 0);
    const added = await cli('user', 'add', 'ada');
    assert.equal(added.status, 0, added.stderr);
    assert.equal(await server.query(new URL(url).pathname.slice(1), 'select name from users'), 'ada');
    const backup = await cli('server', 'backup', join(folder, 'copy'));
    assert.match(backup.stderr, /pg_dump.*ERR_UNSUPPORTED/s);
    await writeFile(secret, 'a wrong word');
    const refused = await cli('user', 'list');
    assert.deepEqual([refused.status, /passwordFile.*ERR_STORE/s.test(refused.stderr)], [71, true]);
    assert.ok(!`${refused.stderr}${added.stdout}${added.stderr}`.includes('wrong word'));
  } finally {
    await rm(folder, { recursive: true });
  }
});
