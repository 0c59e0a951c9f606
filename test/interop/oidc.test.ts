/** The OpenID Connect back end at a real provider that the test runs, with a browser that the test plays. */

import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import { isVpnError } from '../../src/base/errors.ts';
import { Secret } from '../../src/base/log.ts';
import type { BackendVerdict, GrantStore } from '../../src/identity/backends/backend.ts';
import { OidcBackend, type OidcOptions } from '../../src/identity/backends/oidc.ts';
import { TestAuthority } from '../support/certificates.ts';
import { CLIENT, TestProvider } from './oidc-provider.ts';

const never = new AbortController().signal;

class MemoryGrants implements GrantStore {
  readonly kept = new Map<string, string>();

  async load(account: string): Promise<string | undefined> {
    return this.kept.get(account);
  }

  async save(account: string, text: string): Promise<void> {
    this.kept.set(account, text);
  }
}

describe('oidc-provider', () => {
  let authority: TestAuthority;
  let provider: TestProvider;
  let grants: MemoryGrants;
  const opened: OidcBackend[] = [];

  before(async () => {
    authority = await TestAuthority.create();
    provider = await TestProvider.start(authority);
    provider.people.set('1001', {
      id: '1001',
      claims: {
        preferred_username: 'alice',
        groups: ['Staff', 'unknown', 'Admins'],
        email: 'alice@example.org',
        email_verified: true,
      },
    });
    provider.people.set('1002', { id: '1002', claims: { email: 'bob@example.org', email_verified: false } });
    provider.people.set('1003', { id: '1003', claims: { preferred_username: 'alice' } });
    provider.people.set('1004', { id: '1004', claims: { preferred_username: '../etc' } });
  });
  after(async () => {
    for (const backend of opened) await backend.close();
    await provider?.stop();
  });
  beforeEach(() => {
    grants = new MemoryGrants();
    provider.bends.clear();
    provider.asked.clear();
    provider.replacement = undefined;
  });

  function open(options: Partial<OidcOptions> = {}, ca = authority.cert): OidcBackend {
    const backend = new OidcBackend({
      name: 'sso',
      ca,
      clientSecret: new Secret(CLIENT.secret),
      grants,
      clock: new ManualClock(),
      options: {
        issuer: provider.issuer,
        clientId: CLIENT.id,
        scopes: ['openid', 'profile', 'email', 'offline_access'],
        nameClaim: 'preferred_username',
        groupsClaim: 'groups',
        groups: { Staff: 'staff', Admins: 'operators', Board: 'board' },
        insecure: false,
        timeoutSeconds: 5,
        ...options,
      },
    });
    opened.push(backend);
    return backend;
  }

  async function login(backend: OidcBackend, person: string, says: 'yes' | 'no' = 'yes'): Promise<BackendVerdict> {
    const begun = await backend.begin(never);
    const verdict = begun.finish(never);
    await provider.browser().approve(begun.url, person, says);
    return await verdict;
  }

  async function assertSays(verdict: Promise<BackendVerdict>, kind: BackendVerdict['kind'], reason: RegExp) {
    const came = await verdict;
    assert.equal(came.kind, kind, JSON.stringify(came));
    assert.match('reason' in came ? came.reason : '', reason);
  }

  async function assertBackendError(begun: Promise<unknown>, message: RegExp): Promise<void> {
    await assert.rejects(begun, (error) => {
      assert.ok(isVpnError(error, 'ERR_BACKEND'), String(error));
      assert.match(error.message, message);
      assert.ok(!error.message.includes(CLIENT.secret));
      return true;
    });
  }

  test('a person who says yes is accepted, with the provider’s name and our groups', async () => {
    const backend = open();
    const begun = await backend.begin(never);
    assert.ok(begun.url.startsWith(`${provider.issuer}/device?user_code=`), begun.url);
    assert.match(begun.code, /^[A-Z]{4}-[A-Z]{4}$/);
    assert.equal(begun.expiresAt, new ManualClock().wallNow() + 600_000);
    const verdict = begun.finish(never);
    await provider.browser().approve(begun.url, '1001');
    assert.deepEqual(await verdict, { kind: 'accepted', user: 'alice', groups: ['operators', 'staff'] });
    const without = open({ groups: undefined });
    assert.deepEqual(await login(without, '1001'), { kind: 'accepted', user: 'alice', groups: undefined });
  });

  test('a person who says no is refused', async () => {
    await assertSays(login(open(), '1001', 'no'), 'refused', /said no/);
  });

  test('a code that expires is refused', async () => {
    provider.bends.set('/device/auth', (body) => ({ ...body, expires_in: 1 }));
    const begun = await open().begin(never);
    await assertSays(begun.finish(never), 'refused', /expired/);
    await using hasty = await TestProvider.start(authority, { codeSeconds: 1 });
    // The provider's own word for it: it forgets sooner than it said.
    hasty.bends.set('/device/auth', (body) => ({ ...body, expires_in: 600, interval: 1.5 }));
    const late = await open({ issuer: hasty.issuer }).begin(never);
    await assertSays(late.finish(never), 'refused', /expired|does not know/);
  });

  test('a login that is called off waits for nothing', async () => {
    const stop = new AbortController();
    provider.bends.set('/device/auth', (body) => ({ ...body, interval: 60 }));
    const begun = await open().begin(never);
    const verdict = begun.finish(stop.signal);
    const start = performance.now();
    stop.abort();
    await assertSays(verdict, 'unavailable', /called off/);
    assert.ok(performance.now() - start < 1000);
    await assertBackendError(open().begin(stop.signal), /called off/);
  });

  test('no more than 256 logins wait at once', async () => {
    provider.bends.set('/device/auth', (body) => ({ ...body, interval: 60 }));
    const backend = open();
    const begun = await backend.begin(never);
    const stop = new AbortController();
    const waiting = Array.from({ length: 256 }, () => begun.finish(stop.signal));
    await assertBackendError(backend.begin(never), /too many logins/);
    stop.abort();
    for (const verdict of waiting) await assertSays(verdict, 'unavailable', /called off/);
    await backend.begin(never);
  });

  test('the provider’s interval is kept', async () => {
    let polls = 0;
    provider.bends.set('/token', (body) => {
      polls += 1;
      return body;
    });
    provider.bends.set('/device/auth', (body) => ({ ...body, interval: 0.4 }));
    const begun = await open().begin(never);
    const start = performance.now();
    const verdict = begun.finish(never);
    await provider.browser().approve(begun.url, '1001');
    assert.equal((await verdict).kind, 'accepted');
    const took = performance.now() - start;
    assert.ok(polls <= Math.ceil(took / 400), `${polls} polls in ${took} ms`);
  });

  test('an account without the claim, or with one that is no name, is refused', async () => {
    await assertSays(login(open(), '1002'), 'refused', /preferred_username/);
    await assertSays(login(open(), '1004'), 'refused', /no name/);
  });

  test('an address counts only when it is verified', async () => {
    const byMail = { nameClaim: 'email', groups: undefined };
    const accepted = { kind: 'accepted', user: 'alice@example.org', groups: undefined };
    assert.deepEqual(await login(open(byMail), '1001'), accepted);
    await assertSays(login(open(byMail), '1002'), 'refused', /not verified/);
  });

  test('a name that passes to another account of the provider does not carry ours along', async () => {
    assert.equal((await login(open(), '1001')).kind, 'accepted');
    await assertSays(login(open(), '1003'), 'refused', /another account/);
  });

  test('a recheck asks with the refresh token, and an account that was disabled is gone', async () => {
    const backend = open();
    assert.equal((await backend.recheck('alice', never)).standing, 'unknown', 'nothing is known of the account');
    await login(backend, '1001');
    assert.equal((await backend.recheck('alice', never)).standing, 'good');
    assert.equal((await backend.recheck('alice', never)).standing, 'good');
    const alice = provider.people.get('1001');
    assert.ok(alice !== undefined);
    provider.people.delete('1001');
    try {
      assert.equal((await backend.recheck('alice', never)).standing, 'gone');
    } finally {
      provider.people.set('1001', alice);
    }
    // The provider has taken the token back; the subject is still known.
    assert.equal((await backend.recheck('alice', never)).standing, 'unknown');
    assert.deepEqual(JSON.parse(grants.kept.get('alice') ?? ''), { subject: '1001' });
  });

  test('a recheck says in which groups an account is now; a provider that does not say takes none away', async () => {
    const backend = open();
    await login(backend, '1001');
    assert.deepEqual(await backend.recheck('alice', never), { standing: 'good', groups: ['operators', 'staff'] });
    const alice = provider.people.get('1001');
    assert.ok(alice !== undefined);
    const withGroups = (groups: unknown) =>
      provider.people.set('1001', { ...alice, claims: { ...alice.claims, groups } });
    try {
      withGroups(['Board', 'Unknown']);
      assert.deepEqual(await backend.recheck('alice', never), { standing: 'good', groups: ['board'] });
      withGroups([]);
      assert.deepEqual(await backend.recheck('alice', never), { standing: 'good', groups: [] });
      provider.bends.set('/me', () => 'nonsense');
      assert.deepEqual(await backend.recheck('alice', never), { standing: 'good', groups: undefined });
    } finally {
      provider.bends.delete('/me');
      provider.people.set('1001', alice);
    }
    assert.deepEqual(await open({ groups: undefined }).recheck('alice', never), {
      standing: 'good',
      groups: undefined,
    });
  });

  test('a refresh token that the provider replaces is kept, and two rechecks at once ask once', async () => {
    await using rotating = await TestProvider.start(authority, { clientSecret: false });
    rotating.people.set('7', { id: '7', claims: { preferred_username: 'rita' } });
    const backend = new OidcBackend({
      name: 'sso',
      ca: authority.cert,
      clientSecret: undefined,
      grants,
      clock: new ManualClock(),
      options: {
        issuer: rotating.issuer,
        clientId: CLIENT.id,
        scopes: ['openid', 'profile', 'offline_access'],
        nameClaim: 'preferred_username',
        groupsClaim: 'groups',
        insecure: false,
        timeoutSeconds: 5,
      },
    });
    opened.push(backend);
    const begun = await backend.begin(never);
    const verdict = begun.finish(never);
    await rotating.browser().approve(begun.url, '7');
    assert.equal((await verdict).kind, 'accepted');
    const first = grants.kept.get('rita');
    rotating.asked.clear();
    const both = await Promise.all([backend.recheck('rita', never), backend.recheck('rita', never)]);
    assert.deepEqual(
      both.map(({ standing }) => standing),
      ['good', 'good'],
    );
    assert.equal(rotating.asked.get('/token'), 1);
    assert.notEqual(grants.kept.get('rita'), first);
    assert.equal((await backend.recheck('rita', never)).standing, 'good');
  });

  test('a token of another key, issuer, audience or time is no login', async () => {
    const bends: [string, RegExp, (body: Record<string, unknown>) => unknown][] = [
      ['another key', /signature/, (body) => provider.resigned(body.id_token, {}, provider.strangeKey())],
      ['another issuer', /iss/, (body) => provider.resigned(body.id_token, { iss: 'https://evil.example' })],
      ['another audience', /aud/, (body) => provider.resigned(body.id_token, { aud: 'other' })],
      ['expired', /time/, (body) => provider.resigned(body.id_token, { iat: 1, exp: 2 })],
      [
        'not signed',
        /./,
        (body) => `${Buffer.from('{"alg":"none"}').toString('base64url')}.${String(body.id_token).split('.')[1]}.`,
      ],
      ['no token', /ID token/, () => undefined],
    ];
    for (const [what, reason, token] of bends) {
      provider.bends.set('/token', (body) => ('id_token' in body ? { ...body, id_token: token(body) } : body));
      const verdict = await login(open(), '1001');
      assert.equal(verdict.kind, 'unavailable', `${what}: ${JSON.stringify(verdict)}`);
      assert.match('reason' in verdict ? verdict.reason : '', reason, what);
      assert.equal(grants.kept.size, 0);
    }
  });

  test('a provider that is somebody else, or offers no device grant, is an error', async () => {
    provider.bends.set('/.well-known/openid-configuration', (body) => ({ ...body, issuer: 'https://evil.example' }));
    await assertBackendError(open().begin(never), /issuer/);
    provider.bends.set('/.well-known/openid-configuration', ({ device_authorization_endpoint, ...body }) => body);
    await assertBackendError(open().begin(never), /device authorisation grant/);
    provider.bends.clear();
    const other = await TestAuthority.create('Other CA');
    await assertBackendError(open({}, other.cert).begin(never), /certificate|issuer/);
    await assertBackendError(open({ clientId: 'nobody' }).begin(never), /does not accept clientId/);
  });

  test('what a person is shown is an https address and a short code', async () => {
    for (const change of [
      { verification_uri: 'javascript:alert(1)', verification_uri_complete: undefined },
      { verification_uri_complete: 'http://127.0.0.1/' },
      { verification_uri_complete: `https://127.0.0.1/${'a'.repeat(2000)}` },
      { user_code: '\u001b[2J' },
      { user_code: 'a'.repeat(65) },
    ]) {
      provider.bends.set('/device/auth', (body) => ({ ...body, ...change }));
      await assertBackendError(open().begin(never), /https|printable/);
    }
  });

  test('a provider that is down, slow, floods or talks nonsense is an error, and no account is gone', async () => {
    const backend = open({ timeoutSeconds: 1 });
    await login(backend, '1001');
    const faults: [string, NonNullable<TestProvider['replacement']>][] = [
      ['down', (request) => request.socket.destroy()],
      ['slow', () => {}],
      ['nonsense', (_, response) => response.end('<html>')],
      ['wrong JSON', (_, response) => response.setHeader('content-type', 'application/json').end('[{]')],
      ['5xx', (_, response) => response.writeHead(502).end('bad gateway')],
      ['redirect', (_, response) => response.writeHead(302, { location: 'https://evil.example/' }).end()],
      ['flood', (_, response) => response.setHeader('content-type', 'application/json').end('"'.repeat(3_000_000))],
      ['odd status', (_, response) => response.writeHead(999).end('{}')],
    ];
    for (const [what, replacement] of faults) {
      provider.replacement = replacement;
      await assertBackendError(open({ timeoutSeconds: 1 }).begin(never), what === 'flood' ? /too long/ : /sso/);
      await assertBackendError(backend.begin(never), /sso/);
      assert.equal((await backend.recheck('alice', never)).standing, 'unknown', what);
    }
    provider.replacement = undefined;
    assert.equal((await backend.recheck('alice', never)).standing, 'good');
  });

  test('a request that is lost while the person logs in is made again', async () => {
    const backend = open();
    const begun = await backend.begin(never);
    let lost = 0;
    provider.bends.set('/token', (body) => {
      lost += 1;
      return body;
    });
    const verdict = begun.finish(never);
    provider.replacement = (request) => {
      request.socket.destroy();
      lost += 1;
      provider.replacement = undefined;
    };
    while (provider.replacement !== undefined) await new Promise((resolve) => setTimeout(resolve, 10));
    await provider.browser().approve(begun.url, '1001');
    assert.equal((await verdict).kind, 'accepted');
    assert.ok(lost >= 1);
  });
});

test('without TLS only this machine is asked, and only when the operator says so', async () => {
  const backend = new OidcBackend({
    name: 'sso',
    ca: undefined,
    clientSecret: undefined,
    grants: new MemoryGrants(),
    clock: new ManualClock(),
    options: {
      issuer: 'http://192.0.2.1',
      clientId: 'x',
      scopes: ['openid'],
      nameClaim: 'sub',
      groupsClaim: 'groups',
      insecure: true,
      timeoutSeconds: 1,
    },
  });
  await assert.rejects(backend.begin(never), { code: 'ERR_BACKEND', message: /neither https nor this machine/ });
});
