/** People who log in at the admin page by a real OpenID Connect provider: authorization code with PKCE. */

import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import type { AdminBrowser } from '../support/admin.ts';
import { TestAuthority } from '../support/certificates.ts';
import { Office } from '../support/office.ts';
import { until } from '../support/world.ts';
import { CLIENT, TestProvider } from './oidc-provider.ts';

describe('a login at the admin page by a provider', { timeout: 120_000 }, () => {
  let folder: string;
  let provider: TestProvider;

  const person = (id: string, name: string, groups: string[]) =>
    provider.people.set(id, { id, claims: { preferred_username: name, groups } });

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'customvpn-provider-'));
    const authority = await TestAuthority.create();
    await writeFile(join(folder, 'ca.pem'), authority.cert);
    await writeFile(join(folder, 'secret'), CLIENT.secret, { mode: 0o600 });
    provider = await TestProvider.start(authority);
    person('2', 'bob', ['Staff']);
    person('3', 'ada', ['Admins']);
    person('4', 'carol', ['Admins']);
  });
  after(async () => {
    await provider?.stop();
    await rm(folder, { recursive: true, force: true });
  });
  beforeEach(() => {
    provider.bends.clear();
    person('1', 'alice', ['Staff', 'Admins']);
  });

  const open = () =>
    Office.open({
      config: {
        admin: { provider: 'sso' },
        login: { recheckSeconds: 10 },
        // More than the page lets a stranger ask at once.
        limits: { failuresPerSource: 20, failuresPerUser: 10 },
        backends: {
          sso: {
            kind: 'oidc' as const,
            issuer: provider.issuer,
            clientId: CLIENT.id,
            clientSecretFile: join(folder, 'secret'),
            caFile: join(folder, 'ca.pem'),
            groups: { Admins: 'administrators', Staff: 'staff' },
          },
        },
      },
    });

  const cookieIn = (headers: readonly string[] | undefined, name: string): string | undefined =>
    headers?.find((cookie) => cookie.startsWith(`${name}=`))?.split(';')[0];

  /** Goes to the provider; where it says to go, with what the browser keeps. */
  async function leave(browser: AdminBrowser) {
    const sent = await browser.raw({ path: '/api/login/provider' });
    assert.equal(sent.status, 303, sent.text);
    const visit = cookieIn(sent.headers['set-cookie'], '__Host-customvpn-visit');
    assert.match(sent.headers['set-cookie']?.[0] ?? '', /HttpOnly; SameSite=Lax$/);
    return { url: sent.headers.location ?? '', visit: visit ?? '' };
  }

  async function arrive(office: Office, person: string) {
    const browser = office.stranger();
    const { url, visit } = await leave(browser);
    const back = await provider.browser().comeBack(url, person, `https://localhost:${office.port}/`);
    const path = `${back.pathname}${back.search}`;
    const reply = await browser.raw({ path, headers: { cookie: visit, 'sec-fetch-site': 'cross-site' } });
    browser.cookie = cookieIn(reply.headers['set-cookie'], '__Host-customvpn');
    return { browser, reply, path, visit };
  }

  test('whom the provider puts into a group with a role comes in, once for each visit', async () => {
    await using office = await open();
    assert.equal((await office.stranger().raw({ path: '/api/login' })).body.provider, 'sso');
    const { browser, reply, path, visit } = await arrive(office, '1');
    assert.deepEqual([reply.status, reply.headers.location], [303, '/'], reply.text);
    assert.match(reply.headers['set-cookie']?.[1] ?? '', /HttpOnly; SameSite=Strict$/);
    const me = await browser.raw({ path: '/api/me' });
    assert.deepEqual([me.body.user, me.body.role], ['alice', 'administrator']);
    const [user] = await office.api['user.list']({});
    assert.deepEqual([user?.name, user?.source, user?.groups], ['alice', 'sso', ['administrators', 'staff']]);
    const again = await office.stranger().raw({ path, headers: { cookie: visit } });
    assert.deepEqual([again.status, again.headers.location], [303, '/#refused']);
    const [login] = await office.api['audit.list']({ event: 'operator.login' });
    assert.deepEqual([login?.user, login?.detail.with], ['alice', 'provider']);
  });

  test('whom it gives no role gets neither in nor an account; nor does a name of ours', async () => {
    await using office = await open();
    const { reply } = await arrive(office, '2');
    assert.equal(reply.headers.location, '/#refused');
    assert.deepEqual(await office.api['user.list']({}), []);
    await office.account('ada', ['administrators']);
    const { reply: other, browser } = await arrive(office, '3');
    assert.equal(other.headers.location, '/#refused');
    assert.equal(browser.cookie, undefined);
    const reasons = (await office.api['audit.list']({ event: 'operator.refused' })).map(({ reason }) => reason);
    assert.deepEqual(reasons, [
      'provider: it stands for nobody that we know',
      'provider: the name is of an account from elsewhere',
    ]);
  });

  test('whom it takes the role away from is out, whatever was known of them before', async () => {
    await using office = await open();
    const { browser } = await arrive(office, '1');
    assert.equal((await browser.raw({ path: '/api/me' })).body.role, 'administrator');
    person('1', 'alice', ['Staff']);
    const { reply, browser: again } = await arrive(office, '1');
    assert.equal(reply.headers.location, '/#refused');
    assert.equal(again.cookie, undefined);
    const [user] = await office.api['user.list']({});
    assert.deepEqual([user?.name, user?.groups], ['alice', ['staff']]);
    assert.equal((await browser.raw({ path: '/api/me' })).status, 401, 'nor does the session from before go on');
    const changes = await office.api['audit.list']({ event: 'user.changed', user: 'alice' });
    assert.deepEqual(changes.at(-1)?.detail, { groups: 'staff', from: 'sso' });
    person('1', 'alice', []);
    await arrive(office, '1');
    assert.deepEqual((await office.api['user.show']({ name: 'alice' })).groups, []);
  });

  test('who is disabled there is out of the page within the time of a recheck, without a session of the VPN', async () => {
    await using office = await open();
    const { browser } = await arrive(office, '1');
    const { browser: other } = await arrive(office, '4');
    provider.people.delete('1');
    await until(async () => {
      office.clock.advance(1000);
      return (await browser.raw({ path: '/api/me', headers: { 'x-background': '1' } })).status === 401;
    }, 'the session to end');
    assert.equal((await other.raw({ path: '/api/me' })).status, 200);
    const [gone] = await office.api['audit.list']({ event: 'source.gone' });
    assert.deepEqual([gone?.user, gone?.detail.source], ['alice', 'sso']);
  });

  test('what another site has a browser send here counts against nobody, nor does a provider that is down', async () => {
    await using office = await open();
    const origin = `https://localhost:${office.port}/`;
    const comeBack = async (path: string, cookie: string) => {
      office.clock.advance(2000);
      const reply = await office.stranger().raw({ path, headers: { cookie, 'sec-fetch-site': 'cross-site' } });
      assert.equal(reply.headers.location, '/#refused');
    };
    for (let count = 0; count < 12; count++) {
      await comeBack('/api/login/back?code=x&state=y', '');
      await comeBack('/api/login/back?code=x&state=y', (await leave(office.stranger())).visit);
    }
    const { url, visit } = await leave(office.stranger());
    const back = await provider.browser().comeBack(url, '4', origin);
    provider.replacement = (_, response) => void response.writeHead(500).end();
    await comeBack(`${back.pathname}${back.search}`, visit);
    provider.replacement = undefined;
    assert.deepEqual(await office.api['server.bans']({}), []);
    assert.equal((await office.api['audit.list']({ event: 'operator.refused' })).length, 25);
    const { reply } = await arrive(office, '4');
    assert.equal(reply.headers.location, '/');
    // Nor does it use up what a person at this address has for a login.
    for (let count = 0; count < 30; count++) {
      const headers = { 'sec-fetch-site': 'cross-site' };
      assert.equal((await office.stranger().raw({ path: '/api/login/provider', headers })).status, 403);
      await office.stranger().raw({ path: '/api/login/back?code=x&state=y', headers });
    }
    const login = { user: 'nobody', password: 'wrong', code: '000000' };
    assert.equal((await office.stranger().post('/api/login', login)).status, 401);
  });

  test('who comes from the provider and has no business here is counted as others are', async () => {
    await using office = await open();
    for (let count = 0; count < 4; count++) await arrive(office, '2');
    const [held] = await office.api['server.bans']({});
    assert.deepEqual([held?.kind, held?.key], ['name', 'bob']);
  });

  test('what comes back to another browser, with another state, or after a no, opens nothing', async () => {
    await using office = await open();
    const browser = office.stranger();
    const origin = `https://localhost:${office.port}/`;
    const tries = [
      // Somebody has another's browser come back with their own login.
      async () => ({ back: await provider.browser().comeBack((await leave(browser)).url, '1', origin), cookie: '' }),
      async () => {
        const { url, visit } = await leave(browser);
        const back = await provider.browser().comeBack(url, '1', origin);
        back.searchParams.set('state', 'another');
        return { back, cookie: visit };
      },
      async () => {
        const { url, visit } = await leave(browser);
        return { back: await provider.browser().comeBack(url, '1', origin, 'no'), cookie: visit };
      },
      async () => ({ back: new URL(`${origin}api/login/back?code=x`), cookie: (await leave(browser)).visit }),
    ];
    for (const made of tries) {
      office.clock.advance(5000);
      const { back, cookie } = await made();
      const reply = await office.stranger().raw({ path: `${back.pathname}${back.search}`, headers: { cookie } });
      assert.equal(reply.headers.location, '/#refused');
      assert.equal(cookieIn(reply.headers['set-cookie'], '__Host-customvpn'), undefined);
    }
  });

  test('an ID token of another nonce, or signed by somebody else, opens nothing', async () => {
    await using office = await open();
    for (const bend of [
      (body: Record<string, unknown>) => ({
        ...body,
        id_token: provider.resigned(body.id_token, { nonce: 'another' }),
      }),
      (body: Record<string, unknown>) => ({
        ...body,
        id_token: provider.resigned(body.id_token, {}, provider.strangeKey()),
      }),
    ]) {
      provider.bends.set('/token', bend);
      const { reply } = await arrive(office, '1');
      assert.equal(reply.headers.location, '/#refused');
    }
    assert.deepEqual(await office.api['user.list']({}), []);
  });

  test('without a provider there is no such way', async () => {
    await using office = await Office.open();
    assert.equal((await office.stranger().raw({ path: '/api/login/provider' })).status, 404);
  });
});
