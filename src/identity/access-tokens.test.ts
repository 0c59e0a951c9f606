import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Audit } from '../store/audit.ts';
import { AccessTokens } from './access-tokens.ts';
import { Accounts } from './accounts.ts';

async function setUp() {
  const store = await openTestStore();
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  const accounts = new Accounts({ store, audit, clock });
  const robot = await accounts.add('robot');
  return { store, clock, audit, accounts, robot, tokens: new AccessTokens({ store, audit, clock }) };
}

test('a token opens what its scopes name, for its user, until it expires or is revoked', async () => {
  const { tokens, clock, robot, store, audit } = await setUp();
  const now = clock.wallNow();
  const { token, facts } = await tokens.issue('robot', {
    name: ' nightly backup ',
    scopes: ['api', 'tunnel', 'tunnel'],
    expiresAt: now + 1000,
  });
  assert.equal(facts.name, 'nightly backup');
  assert.deepEqual(facts.scopes, ['tunnel', 'api']);
  const bytes = token.reveal();
  assert.equal(bytes.length, 40);
  const user = { id: robot.id, name: 'robot' };
  const endsAt = now + 1000;
  assert.deepEqual(await tokens.check(bytes, 'tunnel', now), { right: true, id: facts.id, user, endsAt });
  assert.deepEqual(await tokens.check(bytes, 'proxy', now), {
    right: false,
    user,
    reason: 'the token is not for proxy',
  });
  assert.deepEqual(await tokens.check(bytes, 'tunnel', now + 1000), {
    right: false,
    user,
    reason: 'the token has expired',
  });
  assert.equal((await tokens.revoke(facts.id.toUpperCase())).user, 'robot');
  await tokens.revoke(facts.id);
  assert.deepEqual(await tokens.check(bytes, 'tunnel', now), { right: false, user, reason: 'the token is revoked' });
  const events = (await audit.list({ user: 'robot' })).map(({ event }) => event);
  assert.deepEqual(events, ['user.added', 'access.issued', 'access.revoked']);
  await store.close();
});

test('a token with one wrong bit, of another length or of nobody is unknown', async () => {
  const { tokens, clock, store } = await setUp();
  const bytes = (await tokens.issue('robot', { name: 'x', scopes: ['tunnel'] })).token.reveal();
  const unknown = { right: false, user: undefined, reason: 'the token is unknown or wrong' };
  for (const at of [0, 7, 8, 39]) {
    const changed = Uint8Array.from(bytes);
    changed[at] = (changed[at] ?? 0) ^ 1;
    assert.deepEqual(await tokens.check(changed, 'tunnel', clock.wallNow()), unknown);
  }
  for (const other of [new Uint8Array(0), bytes.subarray(0, 39), new Uint8Array(41), new Uint8Array(40)]) {
    assert.deepEqual(await tokens.check(other, 'tunnel', clock.wallNow()), unknown);
  }
  await store.close();
});

test('using a token is noted, and a token that is revoked in between is not used', async () => {
  const { tokens, clock, store } = await setUp();
  const { facts } = await tokens.issue('robot', { name: 'x', scopes: ['tunnel'] });
  clock.advance(5000);
  assert.equal(await store.transaction((db) => tokens.spend(db, facts.id)), true);
  assert.equal((await tokens.list('robot'))[0]?.lastUsedAt, clock.wallNow());
  await tokens.revoke(facts.id);
  assert.equal(await store.transaction((db) => tokens.spend(db, facts.id)), false);
  await store.close();
});

test('what cannot be issued: for nobody, for nothing, without a name, already expired, one too many', async () => {
  const { tokens, clock, store } = await setUp();
  const good = { name: 'x', scopes: ['tunnel'] } as const;
  await assert.rejects(tokens.issue('nobody', good), { code: 'ERR_NOT_FOUND' });
  for (const bad of [
    { ...good, scopes: [] },
    { ...good, name: '' },
    { ...good, name: 'a\nb' },
    { ...good, name: 'x'.repeat(65) },
    { ...good, expiresAt: clock.wallNow() },
  ]) {
    await assert.rejects(tokens.issue('robot', bad), { code: 'ERR_BAD_REQUEST' });
  }
  for (let i = 0; i < 100; i++) await tokens.issue('robot', good);
  await assert.rejects(tokens.issue('robot', good), { code: 'ERR_CONFLICT' });
  await assert.rejects(tokens.revoke('00'), { code: 'ERR_NOT_FOUND' });
  await store.close();
});

test('the secret stands neither in the store nor in the record, and leaves no trace in JSON', async () => {
  const { tokens, store, audit } = await setUp();
  const issued = await tokens.issue('robot', { name: 'x', scopes: ['tunnel'] });
  const secret = Buffer.from(issued.token.reveal()).subarray(8).toString('hex');
  const hex = (_key: string, value: unknown) =>
    value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value;
  const seen = JSON.stringify(
    [issued, await store.db.selectFrom('access_tokens').selectAll().execute(), await audit.list(), await tokens.list()],
    hex,
  );
  assert.equal(seen.includes(secret), false);
  await store.close();
});
