/** Whole gateways whose people log in at a real OpenID Connect provider, or are challenged by a real RADIUS server. */

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { ManualClock } from '../../src/base/clock.ts';
import type { AskedStep, StepAnswers } from '../../src/client/login-answers.ts';
import { parseProfile } from '../../src/control/profile.ts';
import { TestAuthority } from '../support/certificates.ts';
import { exchange, type SimClient, until, World } from '../support/world.ts';
import { Freeradius, PROGRAM } from './freeradius.ts';
import { CLIENT, TestProvider } from './oidc-provider.ts';

/** A person: what their client showed, and how they answer. */
class Person {
  readonly shown: AskedStep[] = [];
  readonly #answers: StepAnswers[];

  constructor(...answers: StepAnswers[]) {
    this.#answers = answers;
  }

  readonly answer = async (steps: readonly AskedStep[]): Promise<StepAnswers> => {
    this.shown.push(...steps);
    return this.#answers.shift() ?? {};
  };

  /** Where the client says that the login is. */
  async page(): Promise<string> {
    return await until(() => this.shown.find(({ kind }) => kind === 'oidc')?.url, 'the page to log in at');
  }
}

type Options = Omit<NonNullable<Parameters<World['client']>[1]>, 'profile' | 'enrol' | 'answer'>;

/** A client with the profile that everybody has. */
async function newcomer(world: World, person: Person, options: Options = {}): Promise<SimClient> {
  const { profile } = await world.server.administration['profile.create']({});
  const shared = parseProfile(profile, 'profile');
  return await world.client('newcomer', { profile: shared, enrol: true, answer: person.answer, ...options });
}

const usersOf = async (world: World) => await world.server.administration['user.list']({});

describe('a login at an OpenID Connect provider', () => {
  let folder: string;
  let authority: TestAuthority;
  let provider: TestProvider;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'customvpn-provider-'));
    authority = await TestAuthority.create();
    await writeFile(join(folder, 'ca.pem'), authority.cert);
    await writeFile(join(folder, 'secret'), CLIENT.secret, { mode: 0o600 });
    provider = await TestProvider.start(authority);
    provider.people.set('1', { id: '1', claims: { preferred_username: 'alice', groups: ['Staff', 'Others'] } });
    provider.people.set('2', { id: '2', claims: { preferred_username: 'bob', groups: [] } });
  });
  after(async () => {
    await provider?.stop();
    await rm(folder, { recursive: true, force: true });
  });
  beforeEach(() => {
    provider.replacement = undefined;
    provider.bends.clear();
    provider.asked.clear();
  });

  const configured = (login: object = {}, issuer = provider.issuer) => ({
    accounts: { argon2: { memoryKiB: 8192, passes: 1 } },
    login: { steps: ['device' as const, 'oidc' as const], enrol: ['oidc' as const], provider: 'sso', ...login },
    backends: {
      sso: {
        kind: 'oidc' as const,
        issuer,
        clientId: CLIENT.id,
        clientSecretFile: join(folder, 'secret'),
        caFile: join(folder, 'ca.pem'),
        groups: { Staff: 'staff' },
        timeoutSeconds: 1,
      },
    },
  });

  test('somebody enrols by logging in there, has an account with groups then, and logs in the same way later', async () => {
    await using world = await World.open({ config: configured() });
    const alice = new Person();
    const first = await newcomer(world, alice);
    const connected = first.client.connect();
    const url = await alice.page();
    assert.ok(url.startsWith(`${provider.issuer}/device?user_code=`), url);
    const [step] = alice.shown;
    assert.match(step?.code ?? '', /^[A-Z]{4}-[A-Z]{4}$/);
    assert.equal(step?.seconds, 600);
    assert.equal(world.server.sessions.length, 0);
    await provider.browser().approve(url, '1');
    await connected;
    await exchange(world, first);
    const shown = await world.server.administration['user.show']({ name: 'alice' });
    assert.deepEqual([shown.source, shown.groups, shown.devices.length], ['sso', ['staff'], 1]);
    await first.client.disconnect();

    // The same device is hers alone: somebody else who logs in with it is refused, and so is a no.
    const { profile } = await world.server.administration['profile.create']({});
    const again = async (who: string, says: 'yes' | 'no' = 'yes') => {
      const person = new Person();
      const options = { profile: parseProfile(profile, 'profile'), deviceKey: first.key, answer: person.answer };
      const sim = await world.client('newcomer', options);
      const done = sim.client.connect();
      done.catch(() => {});
      await provider.browser().approve(await person.page(), who, says);
      await done;
      return sim;
    };
    await assert.rejects(again('2'), { code: 'ERR_AUTH_REJECTED' });
    await assert.rejects(again('1', 'no'), { code: 'ERR_AUTH_REJECTED' });
    await exchange(world, await again('1'));
    assert.match(JSON.stringify(world.rows('select reason from audit')), /the person, or the provider, said no/);
  });

  test('an account of ours is not taken over by the same name there', async () => {
    await using world = await World.open({ config: configured() });
    await world.server.administration['user.add']({ name: 'bob' });
    const bob = new Person();
    const sim = await newcomer(world, bob);
    const connected = sim.client.connect();
    connected.catch(() => {});
    await provider.browser().approve(await bob.page(), '2');
    await assert.rejects(connected, { code: 'ERR_AUTH_REJECTED' });
    assert.match(JSON.stringify(world.rows('select reason from audit')), /not its own here/);
  });

  test('a provider that is down, slow or answers nonsense is told as such, and live sessions stay', async () => {
    await using world = await World.open({ config: configured() });
    const alice = new Person();
    const sim = await newcomer(world, alice);
    const connected = sim.client.connect();
    await provider.browser().approve(await alice.page(), '1');
    await connected;
    const stall = (): void => {};
    for (const replacement of [
      stall,
      (_: unknown, response: { end(text: string): void }) => response.end('<html>'),
      (_: unknown, response: { destroy(): void }) => response.destroy(),
    ]) {
      provider.replacement = replacement;
      const late = new Person();
      const other = await newcomer(world, late);
      await assert.rejects(other.client.connect({ once: true }), { code: 'ERR_BACKEND' });
      assert.deepEqual(late.shown, []);
      await exchange(world, sim);
    }
    // Nor is a page shown that is none.
    provider.replacement = undefined;
    provider.bends.set('/device/auth', (body) => ({ ...body, verification_uri_complete: 'javascript:alert(1)' }));
    const lured = new Person();
    await assert.rejects((await newcomer(world, lured)).client.connect({ once: true }), { code: 'ERR_BACKEND' });
    assert.deepEqual(lured.shown, []);
    // One that fails while the person is there.
    provider.bends.clear();
    const late = new Person();
    const other = await newcomer(world, late);
    const failing = other.client.connect({ once: true });
    failing.catch(() => {});
    provider.bends.set('/token', () => ({ access_token: 7, token_type: 'nonsense' }));
    await provider.browser().approve(await late.page(), '2');
    await assert.rejects(failing, { code: 'ERR_BACKEND' });
    await exchange(world, sim);
    assert.match(JSON.stringify(world.rows('select reason from audit')), /sso cannot say/);
  });

  test('REQ-LOGIN-026: a client that goes away calls the login off: a yes that comes later opens nothing', async () => {
    await using world = await World.open({ config: configured() });
    const alice = new Person();
    const sim = await newcomer(world, alice);
    const connected = sim.client.connect();
    connected.catch(() => {});
    const url = await alice.page();
    await until(() => (provider.asked.get('/token') ?? 0) > 0, 'the provider to be asked');
    await sim.client.disconnect();
    await until(() => world.rows('select id from audit where reason is not null').length > 0, 'the record of it');
    assert.match(JSON.stringify(world.rows('select reason from audit')), /the client went away/);
    const asked = provider.asked.get('/token');
    await provider.browser().approve(url, '1');
    assert.equal(provider.asked.get('/token'), asked, 'the provider is not asked any more');
    assert.deepEqual(await usersOf(world), []);
  });

  test('REQ-LOGIN-026: a client that falls silent is given up, though its user has time left', async () => {
    const clock = new ManualClock();
    const config = { ...configured(), limits: { providerSeconds: 300 } };
    await using world = await World.open({ config, clock });
    const patient = new Person();
    const sim = await newcomer(world, patient);
    const connected = sim.client.connect({ once: true });
    connected.catch(() => {});
    await patient.page();
    await until(() => (provider.asked.get('/token') ?? 0) > 0, 'the provider to be asked');
    assert.equal(patient.shown[0]?.seconds, 300);
    // Slowly, so that the gateway's tick sees the seconds pass.
    const start = clock.now();
    await until(
      () => {
        clock.advance(100);
        return world.withCode('ERR_STAGE_TIMEOUT').length > 0;
      },
      'the end of the connection',
      20_000,
    );
    // Longer than the 30 s of any other login, less than the 450 s of this one.
    assert.ok(clock.now() - start > 100_000 && clock.now() - start < 300_000, String(clock.now() - start));
    await assert.rejects(connected);
    assert.match(JSON.stringify(world.withCode('ERR_STAGE_TIMEOUT')), /a sign of life within 120 s/);
  });

  test('a step that sends people nowhere keeps the gateway from starting', async () => {
    const { backends } = configured();
    for (const login of [
      { steps: ['oidc' as const] },
      { enrol: ['oidc' as const] },
      { groups: { staff: { steps: ['oidc' as const] } } },
      { provider: 'nowhere' },
      { provider: 'constructor' },
    ]) {
      await assert.rejects(World.open({ config: { login, backends } }), { code: 'ERR_CONFIG_VALUE' });
    }
  });
});

const skip = existsSync(PROGRAM) ? false : `${PROGRAM}: \`apt-get install freeradius\``;

describe('a RADIUS server that challenges', { skip }, () => {
  let folder: string;
  let radius: Freeradius;

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'customvpn-challenge-'));
    await writeFile(join(folder, 'radius'), 'testing123\n', { mode: 0o600 });
    const users = { dave: { password: 'the password of dave', otp: true } };
    radius = await Freeradius.start({ secret: 'testing123', users });
  });
  after(async () => {
    await radius?.[Symbol.asyncDispose]();
    await rm(folder, { recursive: true, force: true });
  });

  const open = () =>
    World.open({
      config: {
        login: { steps: ['device', 'password'], enrol: ['password'], backend: 'radius' },
        accounts: { argon2: { memoryKiB: 8192, passes: 1 } },
        backends: { radius: { kind: 'radius', servers: [radius.server], secretFile: join(folder, 'radius') } },
      },
    });
  const PASSWORD = { password: 'the password of dave' };

  test('REQ-LOGIN-028: the person is shown its text, answers, and is in', async () => {
    await using world = await open();
    const dave = new Person(PASSWORD, { ask: '123456' });
    const sim = await newcomer(world, dave, { user: 'dave' });
    await sim.client.connect();
    await exchange(world, sim);
    assert.deepEqual(dave.shown, [{ kind: 'password' }, { kind: 'ask', prompt: 'One-time code:', echo: false }]);
    assert.equal((await usersOf(world))[0]?.name, 'dave');
  });

  test('REQ-LOGIN-028: it may ask again, and say that the answer may be seen', async () => {
    await using world = await open();
    const dave = new Person(PASSWORD, { ask: 'next' }, { ask: '123456' });
    const sim = await newcomer(world, dave, { user: 'dave' });
    await sim.client.connect();
    assert.deepEqual(dave.shown.slice(1), [
      { kind: 'ask', prompt: 'One-time code:', echo: false },
      { kind: 'ask', prompt: 'The next code:', echo: true },
    ]);
  });

  test('a wrong answer, none, and one too many are refused, and leave no account', async () => {
    await using world = await open();
    const next = { ask: 'next' };
    for (const answers of [[{ ask: '654321' }], [{ ask: '' }], [{ ask: 'x'.repeat(4000) }], [next, next, next, next]]) {
      const dave = new Person(PASSWORD, ...answers);
      // Each from a name that has failed before would have to wait.
      await world.server.administration['user.unlock']({ name: 'dave' }).catch(() => {});
      const sim = await newcomer(world, dave, { user: 'dave' });
      await assert.rejects(sim.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    }
    const wrong = new Person({ password: 'the password of carol' });
    const sim = await newcomer(world, wrong, { user: 'dave' });
    await assert.rejects(sim.client.connect(), { code: 'ERR_AUTH_REJECTED' });
    assert.deepEqual(
      wrong.shown.map(({ kind }) => kind),
      ['password'],
    );
    assert.deepEqual(await usersOf(world), []);
  });
});
