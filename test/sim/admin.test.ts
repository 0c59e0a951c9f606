// The admin page's API: who may do what, and everything that is refused. Real TLS, a real store, and clients that do what a
// browser does, or what it would never do.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { z } from 'zod';
import { GATEWAY_ACCESS, isAtLeast } from '../../src/control/access.ts';
import { openApiDocument } from '../../src/control/openapi.ts';
import { gatewayOperations, ROLES, type Role } from '../../src/control/operations.ts';
import { type AdminBrowser, codeOf } from '../support/admin.ts';
import { Office, PASSWORD } from '../support/office.ts';
import { until } from '../support/world.ts';

const LIMIT = { timeout: 60_000 };

test('a set-up link makes one administrator, once, and nothing is half done on the way', LIMIT, async () => {
  await using office = await Office.open();
  const { url } = await office.api['admin.link']({});
  const token = new URL(url).hash.slice('#setup='.length);
  const browser = office.stranger();
  assert.equal((await browser.post('/api/setup', { token: 'x'.repeat(43) })).status, 401);
  assert.equal((await browser.post('/api/setup', { token })).status, 200);
  const weak = await browser.post('/api/setup/account', { token, name: 'ada', password: 'short' });
  assert.equal(weak.status, 400);
  assert.deepEqual(await office.api['user.list']({}), []);
  const made = await browser.post('/api/setup/account', { token, name: 'ada', password: PASSWORD });
  assert.equal(made.status, 200, made.text);
  assert.equal(made.body.recoveryCodes.length, 10);
  assert.deepEqual((await office.api['user.show']({ name: 'ada' })).groups, [], 'no right before the factor works');
  assert.equal((await browser.post('/api/setup/finish', { token, code: '000000' })).status, 401);
  const again = await browser.post('/api/setup/account', { token, name: 'ada.l', password: PASSWORD });
  assert.deepEqual(
    (await office.api['user.list']({})).map(({ name }) => name),
    ['ada.l'],
  );
  const code = codeOf(again.body.uri, office.clock.wallNow());
  const done = await browser.post('/api/setup/finish', { token, code });
  assert.equal(done.status, 200, done.text);
  assert.equal(done.body.role, 'administrator');
  assert.equal((await browser.call('user.list')).status, 200);
  for (const path of ['/api/setup', '/api/setup/finish']) {
    assert.equal((await office.stranger().post(path, path.endsWith('h') ? { token, code } : { token })).status, 401);
  }
});

test('a set-up link does not take an account over', LIMIT, async () => {
  await using office = await Office.open();
  await office.account('alice', []);
  const { url } = await office.api['admin.link']({});
  const token = new URL(url).hash.slice('#setup='.length);
  const reply = await office.stranger().post('/api/setup/account', { token, name: 'alice', password: PASSWORD });
  assert.equal(reply.status, 409);
});

test(
  'name, password, code and a group with a role are needed, and the answer does not tell which is missing',
  LIMIT,
  async () => {
    await using office = await Office.open();
    await office.account('ada', ['administrators']);
    await office.account('bob', ['staff']);
    await office.api['user.add']({ name: 'bare', groups: ['administrators'], password: PASSWORD });
    const tries = [
      { user: 'ada', password: 'wrong password', code: await office.code('ada') },
      { user: 'ada', password: PASSWORD, code: '123456' },
      { user: 'nobody', password: PASSWORD, code: '123456' },
      { user: 'bob', password: PASSWORD, code: await office.code('bob') },
      { user: 'bare', password: PASSWORD, code: '' },
      { user: "' or 1=1 --", password: PASSWORD, code: '' },
    ];
    const answers = new Set<string>();
    for (const body of tries) {
      const reply = await office.stranger().post('/api/login', body);
      assert.equal(reply.status, 401, JSON.stringify(body));
      assert.equal(reply.headers['set-cookie'], undefined);
      answers.add(reply.text);
    }
    assert.equal(answers.size, 1);
    const refused = await office.api['audit.list']({ event: 'operator.refused' });
    assert.equal(refused.length, tries.length);
    assert.ok(refused.some(({ reason }) => reason === 'no group of the user gives a role'));
  },
);

test('a code is good once, also at the page', LIMIT, async () => {
  await using office = await Office.open();
  await office.account('ada', ['administrators']);
  const code = await office.code('ada');
  assert.equal((await office.stranger().post('/api/login', { user: 'ada', password: PASSWORD, code })).status, 200);
  assert.equal((await office.stranger().post('/api/login', { user: 'ada', password: PASSWORD, code })).status, 401);
});

test('failed logins are held against the name as those of the VPN are', LIMIT, async () => {
  await using office = await Office.open({
    config: { admin: { listen: '127.0.0.1:0' }, limits: { failuresPerUser: 4 } },
  });
  await office.account('ada', ['administrators']);
  for (let count = 0; count < 4; count++) {
    await office.stranger().post('/api/login', { user: 'ada', password: 'not her password', code: '000000' });
    office.clock.advance(70_000);
  }
  const right = { user: 'ada', password: PASSWORD, code: await office.code('ada') };
  assert.equal((await office.stranger().post('/api/login', right)).status, 401, 'banned');
  assert.ok(
    (await office.api['server.bans']({})).some(({ kind, key, banned }) => kind === 'name' && key === 'ada' && banned),
  );
  await office.api['user.unlock']({ name: 'ada' });
  assert.equal((await office.stranger().post('/api/login', { ...right, code: await office.code('ada') })).status, 200);
});

test('strangers are slowed down', LIMIT, async () => {
  await using office = await Office.open();
  const statuses: number[] = [];
  for (let count = 0; count < 25; count++) {
    statuses.push((await office.stranger().post('/api/setup', { token: 'x' })).status);
  }
  assert.equal(statuses[0], 401);
  assert.equal(statuses.at(-1), 429);
});

test('each operation is for the role that the table says, and for nobody without a login', LIMIT, async () => {
  await using office = await Office.open();
  const stranger = office.stranger();
  const browsers = new Map<Role, AdminBrowser>();
  for (const role of ROLES) browsers.set(role, await office.as(role));
  for (const [operation, { role: needed, reads }] of Object.entries(GATEWAY_ACCESS)) {
    assert.equal((await stranger.call(operation, {})).status, 401, operation);
    if (reads) assert.equal((await stranger.raw({ path: `/api/v1/${operation}` })).status, 401, operation);
    for (const role of ROLES) {
      // What is not valid changes nothing, and is looked at only by whoever may call.
      const reply = await browsers.get(role)?.call(operation, { nonsense: true });
      const expected = isAtLeast(role, needed) ? 400 : 403;
      assert.equal(reply?.status, expected, `${operation} by ${role}: ${reply?.text}`);
    }
  }
  assert.equal((await browsers.get('administrator')?.call('no.such'))?.status, 404);
  assert.equal((await browsers.get('administrator')?.call('constructor'))?.status, 404);
});

test('an operator makes nobody a ruler, and touches no ruler', LIMIT, async () => {
  await using office = await Office.open();
  await office.account('ada', ['administrators']);
  await office.api['user.add']({ name: 'carol' });
  const operator = await office.as('operator');
  const refused: [string, object][] = [
    ['user.add', { name: 'eve', groups: ['administrators'] }],
    ['user.regroup', { name: 'operator', add: ['administrators'] }],
    ['user.regroup', { name: 'carol', add: ['viewers'] }],
    ['user.password', { name: 'ada', password: 'another password' }],
    ['user.totp', { name: 'ada' }],
    ['user.totpRemove', { name: 'ada' }],
    ['user.recovery', { name: 'ada' }],
    ['user.disable', { name: 'ada' }],
    ['user.delete', { name: 'ada' }],
    ['token.issue', { user: 'ada', name: 'x', scopes: ['api'] }],
    ['profile.create', { user: 'ada' }],
    ['admin.link', {}],
  ];
  for (const [operation, input] of refused) {
    const reply = await operator.call(operation, input);
    assert.equal(reply.status, 403, `${operation}: ${reply.text}`);
  }
  const before = await office.api['user.list']({});
  assert.deepEqual(
    before.map(({ name, groups }) => [name, groups]),
    [
      ['ada', ['administrators']],
      ['carol', []],
      ['operator', ['operators']],
    ],
  );
  assert.equal((await operator.call('user.add', { name: 'dan', groups: ['staff'] })).status, 200);
  assert.equal((await operator.call('user.password', { name: 'carol', password: 'another password' })).status, 200);
});

test('what another site has a browser send is refused', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('administrator');
  const own = browser.ownHeaders;
  const { origin: _, ...withoutOrigin } = own;
  const { 'x-csrf-token': __, ...withoutToken } = own;
  const cases: [string, Record<string, string>, number][] = [
    ['another site', { ...own, 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' }, 403],
    ['a sister site', { ...own, 'sec-fetch-site': 'same-site' }, 403],
    ['another origin, old browser', { ...withoutOrigin, 'sec-fetch-site': '', origin: 'https://evil.example' }, 403],
    ['an opaque origin', { ...own, origin: 'null' }, 403],
    ['plain http', { ...own, origin: `http://localhost:${office.port}` }, 403],
    ['no token', withoutToken, 403],
    ['another login`s token', { ...own, 'x-csrf-token': 'x'.repeat(43) }, 403],
    ['a form', { ...own, 'content-type': 'application/x-www-form-urlencoded' }, 415],
    ['text', { ...own, 'content-type': 'text/plain' }, 415],
  ];
  for (const [what, headers, status] of cases) {
    const body = JSON.stringify({ name: 'mallory' });
    const reply = await browser.raw({ method: 'POST', path: '/api/v1/user.add', headers, body });
    assert.equal(reply.status, status, `${what}: ${reply.text}`);
  }
  const got = await browser.raw({ path: '/api/v1/user.add?name=mallory' });
  assert.equal(got.status, 405, 'a link changes nothing');
  assert.ok(!(await office.api['user.list']({})).some(({ name }) => name === 'mallory'));
  const login = { user: 'administrator', password: PASSWORD, code: await office.code('administrator') };
  const foreign = await office.stranger().post('/api/login', login, { 'sec-fetch-site': 'cross-site' });
  assert.equal(foreign.status, 403, 'nor is anybody logged in');
});

test('a session is made by the login, never taken from the browser, and ends with the logout', LIMIT, async () => {
  await using office = await Office.open();
  await office.account('ada', ['administrators']);
  const planted = office.stranger();
  const fixed = `__Host-customvpn=${'A'.repeat(43)}`;
  planted.cookie = fixed;
  const reply = await planted.post('/api/login', { user: 'ada', password: PASSWORD, code: await office.code('ada') });
  assert.equal(reply.status, 200);
  const [cookie = ''] = reply.headers['set-cookie'] ?? [];
  assert.match(cookie, /^__Host-customvpn=[A-Za-z0-9_-]{43}; Path=\/; Secure; HttpOnly; SameSite=Strict$/);
  assert.notEqual(planted.cookie, fixed);
  const thief = office.stranger();
  thief.cookie = fixed;
  assert.equal((await thief.raw({ path: '/api/me' })).status, 401);
  const former = planted.cookie;
  await planted.post('/api/login', { user: 'ada', password: PASSWORD, code: await office.code('ada') });
  thief.cookie = former;
  assert.equal((await thief.raw({ path: '/api/me' })).status, 401, 'a new login ends the old session of that browser');
  thief.cookie = planted.cookie;
  assert.equal((await thief.raw({ path: '/api/me' })).status, 200);
  assert.equal((await planted.post('/api/logout', {})).status, 200);
  assert.equal((await thief.raw({ path: '/api/me' })).status, 401);
});

test('rights that are taken away are gone at the next call', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('administrator', 'ada');
  await office.api['user.regroup']({ name: 'ada', add: ['viewers'], remove: ['administrators'] });
  assert.equal((await browser.call('server.reload')).status, 403);
  assert.equal((await browser.call('user.list')).status, 200);
  await office.api['user.disable']({ name: 'ada' });
  assert.equal((await browser.call('user.list')).status, 401);
  await office.api['user.enable']({ name: 'ada' });
  const again = await office.login('ada');
  await office.api['user.password']({ name: 'ada', password: 'quite another one' });
  assert.equal((await again.call('user.list')).status, 401, 'the old password opens nothing any more');
});

test('somebody who does nothing is logged out, and looking by itself is nothing', LIMIT, async () => {
  await using office = await Office.open({ config: { admin: { listen: '127.0.0.1:0', idleSeconds: 300 } } });
  const browser = await office.as('viewer');
  office.clock.advance(200_000);
  assert.equal((await browser.raw({ path: '/api/me', headers: { 'x-background': '1' } })).status, 200);
  office.clock.advance(200_000);
  assert.equal((await browser.raw({ path: '/api/me' })).status, 401);
});

test('an access token of the scope api is for programs, with the rights of its owner', LIMIT, async () => {
  await using office = await Office.open();
  await office.account('robot', ['viewers']);
  const { token } = await office.api['token.issue']({ user: 'robot', name: 'monitoring', scopes: ['api'] });
  const { token: other } = await office.api['token.issue']({ user: 'robot', name: 'proxy', scopes: ['proxy'] });
  const ask = (bearer: string, operation: string) =>
    office.stranger().raw({ path: `/api/v1/${operation}`, headers: { authorization: `Bearer ${bearer}` } });
  assert.equal((await ask(token, 'user.list')).status, 200);
  assert.equal((await ask(token, 'admin.sessions')).status, 403);
  assert.equal((await ask(other, 'user.list')).status, 401);
  assert.equal((await ask('x'.repeat(54), 'user.list')).status, 401);
});

test(
  'nothing is found by tricks with paths, and what is served says what a browser may do with it',
  LIMIT,
  async () => {
    await using office = await Office.open();
    const stranger = office.stranger();
    const home = await stranger.raw({ path: '/' });
    assert.equal(home.status, 200);
    const policy = String(home.headers['content-security-policy']);
    assert.match(policy, /default-src 'none'/);
    assert.match(policy, /script-src 'self'/);
    assert.doesNotMatch(policy, /unsafe|\*/);
    assert.doesNotMatch(home.text, /<script(?![^>]*src=)|style=|https?:\/\//);
    const script = /src="(\/assets\/page-[0-9a-f]{16}\.js)"/.exec(home.text)?.[1] ?? '';
    const served = await stranger.raw({ path: script });
    assert.equal(served.status, 200);
    assert.match(String(served.headers['cache-control']), /immutable/);
    for (const path of [
      '/..',
      '/../../etc/passwd',
      '/assets/../../master.key',
      '/assets/%2e%2e/%2e%2e/master.key',
      '/assets/..%2f..%2fmaster.key',
      '/assets//etc/passwd',
      '//etc/passwd',
      '/assets/page.js%00.css',
      `${script}/`,
      `${script}%20`,
      '/ASSETS/',
      '/index.html',
      '/api',
      '/api/v1',
      '/api/v2/user.list',
      '/api/v1/../me',
      '/.well-known/x',
      'http://evil.example/',
    ]) {
      const reply = await stranger.raw({ path });
      assert.ok(reply.status === 404 || reply.status === 401, `${path}: ${reply.status}`);
      assert.equal(reply.headers['content-type'], 'application/json');
      assert.equal(reply.headers['content-security-policy'], policy);
      assert.equal(reply.headers['x-content-type-options'], 'nosniff');
    }
    assert.equal((await stranger.raw({ method: 'DELETE', path: '/' })).status, 405);
  },
);

test('bodies have bounds, and what is no JSON is refused', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('operator');
  const headers = browser.ownHeaders;
  const post = (body: string) => browser.raw({ method: 'POST', path: '/api/v1/user.add', headers, body });
  assert.equal((await post('{')).status, 400);
  assert.equal((await post('[]')).status, 400);
  assert.equal((await post('null')).status, 400);
  assert.equal((await post(JSON.stringify({ name: 'x'.repeat(200) }))).status, 400);
  assert.equal((await post(JSON.stringify({ name: 'ok', extra: 1 }))).status, 400);
  assert.equal((await post('{"name":"x","__proto__":{"groups":["administrators"]}}')).status, 400);
  const long = await post(JSON.stringify({ name: 'x'.repeat(2 << 20) })).catch(() => undefined);
  assert.ok(long === undefined || long.status === 413);
  const stranger = office.stranger();
  const tooLong = await stranger
    .post('/api/login', { user: 'x', password: 'y'.repeat(20_000), code: '' })
    .catch(() => undefined);
  assert.ok(tooLong === undefined || tooLong.status === 413);
  assert.deepEqual(
    (await office.api['user.list']({})).map(({ name }) => name),
    ['operator'],
  );
});

/** Something that a schema takes. */
function sampleOf(schema: Shape): unknown {
  if (schema.const !== undefined) return schema.const;
  if (schema.enum !== undefined) return schema.enum[0];
  if (schema.anyOf !== undefined) return sampleOf(schema.anyOf[0] ?? {});
  if (schema.type === 'array') return Array.from({ length: schema.minItems ?? 0 }, () => sampleOf(schema.items ?? {}));
  if (schema.type === 'integer' || schema.type === 'number') return Math.max(1, schema.minimum ?? 1);
  if (schema.type === 'boolean') return true;
  if (schema.type !== 'object') return schema.format === 'date-time' ? '2030-01-01T00:00:00.000Z' : 'sample';
  const own = Object.entries(schema.properties ?? {}).filter(([key]) => schema.required?.includes(key) === true);
  return Object.fromEntries(own.map(([key, value]) => [key, sampleOf(value)]));
}

/** Values just beyond the bounds of a schema, and of another type. */
function beyond(schema: Shape): unknown[] {
  if (schema.anyOf !== undefined) return [{ nonsense: 1 }];
  const { type, maxLength, minLength, maximum, minimum, minItems, items } = schema;
  return [
    ...(type === 'string' ? [7] : ['seven', '7']),
    ...(maxLength === undefined ? [] : ['x'.repeat(maxLength + 1)]),
    ...(minLength === undefined || minLength === 0 ? [] : ['']),
    ...(maximum === undefined || maximum > 1e12 ? [] : [maximum + 1]),
    ...(minimum === undefined || minimum < -1e12 ? [] : [minimum - 1]),
    ...(minItems === undefined ? [] : [[]]),
    ...(items === undefined ? [] : [[{ nonsense: 1 }]]),
    ...(type === 'integer' ? [1.5] : []),
  ];
}

interface Shape {
  readonly type?: string;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly anyOf?: readonly Shape[];
  readonly format?: string;
  readonly maxLength?: number;
  readonly minLength?: number;
  readonly maximum?: number;
  readonly minimum?: number;
  readonly minItems?: number;
  readonly items?: Shape;
  readonly properties?: Readonly<Record<string, Shape>>;
  readonly required?: readonly string[];
}

test(
  "each field of each operation has its bounds, and what is beyond is refused with the field's name",
  LIMIT,
  async () => {
    await using office = await Office.open();
    const browser = await office.as('administrator');
    let tried = 0;
    let unbounded = 0;
    for (const [operation, { input }] of Object.entries(gatewayOperations)) {
      const shape = z.toJSONSchema(input, { io: 'input' }) as Shape;
      const sample = sampleOf(shape) as Record<string, unknown>;
      assert.ok(input.safeParse(sample).success, `${operation}: ${JSON.stringify(sample)}`);
      for (const [key, field] of Object.entries(shape.properties ?? {})) {
        if (
          field.type === 'string' &&
          field.maxLength === undefined &&
          field.enum === undefined &&
          field.format === undefined
        )
          unbounded += 1;
        for (const value of beyond(field)) {
          office.clock.advance(100);
          const reply = await browser.call(operation, { ...sample, [key]: value });
          assert.equal(reply.status, 400, `${operation} ${key} ${JSON.stringify(value).slice(0, 60)}: ${reply.text}`);
          assert.ok(String(reply.body.message).startsWith(key), `${operation}: ${reply.body.message}`);
          tried += 1;
        }
      }
    }
    assert.ok(tried > 100, `${tried}`);
    assert.equal(unbounded, 0, 'texts without a bound');
  },
);

test('a change of what somebody else has changed meanwhile is refused (If-Match)', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('operator');
  await office.api['user.add']({ name: 'carol' });
  const shown = await browser.raw({ path: '/api/v1/user.show?name=carol' });
  const etag = shown.headers.etag ?? '';
  assert.match(etag, /^"[\w-]{22}"$/);
  const same = await browser.raw({ path: '/api/v1/user.show?name=carol', headers: { 'if-none-match': etag } });
  assert.equal(same.status, 304);
  await office.api['user.regroup']({ name: 'carol', add: ['staff'] });
  const late = await browser.call('user.regroup', { name: 'carol', add: ['night'] }, { 'if-match': etag });
  assert.equal(late.status, 412);
  assert.deepEqual((await office.api['user.show']({ name: 'carol' })).groups, ['staff']);
  const fresh = await browser.raw({ path: '/api/v1/user.show?name=carol' });
  const [one, two] = await Promise.all(
    ['a', 'b'].map((group) =>
      browser.call('user.regroup', { name: 'carol', add: [group] }, { 'if-match': fresh.headers.etag ?? '' }),
    ),
  );
  assert.deepEqual([one?.status, two?.status].sort(), [200, 412], 'of two at once one is first');
});

test('every change is on record with who made it, and no secret is in the record', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('operator', 'olga');
  const password = 'only one of us knows it';
  office.world.keepSecret(password);
  await browser.call('user.add', { name: 'carol', password });
  await browser.call('user.disable', { name: 'carol' });
  const records = await office.api['audit.list']({});
  const own = records
    .filter(({ event }) => event === 'operator.acted')
    .map(({ detail }) => [detail.operation, detail.by, detail.about]);
  assert.deepEqual(own, [
    ['user.add', 'olga', 'carol'],
    ['user.disable', 'olga', 'carol'],
  ]);
  assert.equal(records.find(({ event }) => event === 'user.disabled')?.detail.by, 'olga');
  assert.ok(!JSON.stringify(records).includes(password));
});

test('names that are scripts come back as the text that they are, in JSON that no browser runs', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('operator');
  const script = '"><img src=x onerror=alert(1)><script>alert(1)</script>';
  assert.equal((await browser.call('user.add', { name: script })).status, 400, 'a user has no such name');
  await office.api['user.add']({ name: 'carol' });
  const issued = await browser.call('token.issue', { user: 'carol', name: '<svg onload=alert(1)>', scopes: ['proxy'] });
  assert.equal(issued.status, 200, issued.text);
  await office.stranger().post('/api/login', { user: script, password: 'x', code: '' });
  const shown = await browser.raw({ path: '/api/v1/user.show?name=carol' });
  assert.equal(shown.body.tokens[0].name, '<svg onload=alert(1)>');
  assert.equal(shown.headers['content-type'], 'application/json');
  const audit = await browser.call('audit.list', { event: 'operator.refused' });
  assert.equal(audit.body.at(-1).user, script);
});

test('ten thousand users: pages, a search and a filter, each in little', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('viewer', 'zz.viewer');
  const db = new (await import('node:sqlite')).DatabaseSync(`${office.world.dir}/store.sqlite`);
  db.exec('begin');
  const add = db.prepare('insert into users (id, name, created_at) values (?, ?, 1)');
  const join = db.prepare('insert into user_groups (user_id, name) values (?, ?)');
  for (let index = 0; index < 10_000; index++) {
    const id = String(index).padStart(32, '0');
    add.run(id, `user${String(index).padStart(5, '0')}`);
    if (index % 100 === 0) join.run(id, 'staff');
  }
  db.exec('commit');
  db.close();
  const names: string[] = [];
  for (let after = ''; ; ) {
    const query = `limit=1000${after === '' ? '' : `&after=${after}`}`;
    const { body } = await browser.raw({ path: `/api/v1/user.list?${query}` });
    names.push(...body.map(({ name }: { name: string }) => name));
    if (body.length < 1000) break;
    after = names.at(-1) ?? '';
  }
  assert.equal(names.length, 10_001);
  assert.equal(new Set(names).size, 10_001);
  assert.equal((await browser.raw({ path: '/api/v1/user.list?group=staff' })).body.length, 100);
  assert.equal((await browser.raw({ path: '/api/v1/user.list?search=0999' })).body.length, 11);
  assert.equal((await browser.raw({ path: '/api/v1/user.list?limit=0' })).status, 400);
  assert.equal((await browser.raw({ path: '/api/v1/user.list?limit=1001' })).status, 400);
});

/** Events of a stream as they come. */
async function listen(
  browser: AdminBrowser,
  topics: string,
): Promise<{ text: () => string; ended: Promise<unknown>; stop: () => void }> {
  const response = await browser.open({ path: `/api/events?topics=${topics}` });
  assert.equal(response.statusCode, 200);
  assert.equal(response.headers['content-type'], 'text/event-stream');
  let text = '';
  response.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  const ended = once(response, 'close').catch(() => {});
  return { text: () => text, ended, stop: () => response.destroy() };
}

test('events come as they happen, and end with the login', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('viewer');
  assert.equal((await office.stranger().raw({ path: '/api/events' })).status, 401);
  assert.equal((await browser.raw({ path: '/api/events?topics=secrets' })).status, 400);
  const events = await listen(browser, 'sessions,audit,health');
  await until(() => events.text().includes('event: sessions\ndata: {"all":[]}'), 'the sessions there are');
  await until(() => events.text().includes('event: health'), 'health');
  await office.api['user.add']({ name: 'carol' });
  await until(() => /event: audit\ndata: \[.*"user\.added".*carol/.test(events.text()), 'a record', 20_000);
  await office.api['user.password']({ name: 'viewer', password: 'quite another one' });
  await events.ended;
});

test(
  'a policy that is being written is checked, tried and compared, and nothing of it is in force',
  LIMIT,
  async () => {
    await using office = await Office.open();
    await office.api['user.add']({ name: 'carol', groups: ['staff'] });
    const browser = await office.as('operator');
    const rule =
      '[[rules]]\nname = "web"\naction = "allow"\nfrom = ["group:staff"]\nto = ["198.51.100.0/24"]\nservices = ["tcp/443"]\n';
    const tests =
      '[tests]\nexpect = ["carol can reach 198.51.100.7:443/tcp", "carol cannot reach 198.51.100.7:22/tcp"]\n';
    const { body, status } = await browser.call('policy.check', { text: `version = 1\n${tests}${rule}` });
    assert.equal(status, 200, JSON.stringify(body));
    assert.deepEqual(
      body.outcomes.map(({ passed }: { passed: boolean }) => passed),
      [true, true],
      JSON.stringify(body),
    );
    assert.deepEqual(body.changes, [
      { user: 'carol', destination: '198.51.100.1', service: 'tcp/443', after: 'allow', rule: 'web' },
    ]);
    assert.equal(body.good, true);
    const wrong = await browser.call('policy.check', {
      text: 'version = 1\n[[rules]]\nname = "x"\naction = "perhaps"\n',
    });
    assert.equal(wrong.status, 200);
    assert.equal(wrong.body.good, false);
    assert.ok(
      wrong.body.problems.some(({ line }: { line: number }) => line === 4),
      JSON.stringify(wrong.body.problems),
    );
    assert.deepEqual((await browser.call('policy.text')).body, {
      file: null,
      text: '',
      digest: null,
      isEditable: false,
    });
  },
);

test('the OpenAPI document has every operation, with its role and its shapes', LIMIT, async () => {
  await using office = await Office.open();
  const browser = await office.as('viewer');
  assert.equal((await office.stranger().raw({ path: '/api/openapi.json' })).status, 401);
  const { body, status } = await browser.raw({ path: '/api/openapi.json' });
  assert.equal(status, 200);
  assert.deepEqual(body, JSON.parse(JSON.stringify(openApiDocument('library'))));
  assert.equal(body.openapi, '3.1.0');
  const paths = Object.keys(body.paths);
  assert.deepEqual(
    paths.sort(),
    Object.keys(gatewayOperations)
      .map((name) => `/api/v1/${name}`)
      .sort(),
  );
  for (const [name, { role, reads }] of Object.entries(GATEWAY_ACCESS)) {
    const item = body.paths[`/api/v1/${name}`];
    assert.deepEqual(Object.keys(item).sort(), reads ? ['get', 'post'] : ['post'], name);
    assert.equal(item.post['x-role'], role);
    assert.equal(item.post.requestBody.content['application/json'].schema.type, 'object', name);
    assert.ok(item.post.responses[200].content['application/json'].schema !== undefined, name);
  }
  assert.equal(
    body.paths['/api/v1/user.add'].post.requestBody.content['application/json'].schema.additionalProperties,
    false,
  );
});
