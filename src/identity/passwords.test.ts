// Which passwords are taken, how they are kept, and that nobody's password takes as long as somebody's.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { Audit } from '../store/audit.ts';
import { Accounts } from './accounts.ts';
import {
  type Argon2Parameters,
  hashPassword,
  isOutdated,
  normalisePassword,
  type PasswordHasher,
  Passwords,
  parseNewPassword,
  verifyPassword,
} from './passwords.ts';

const CHEAP: Argon2Parameters = { memory: 64, passes: 1, parallelism: 1 };
const GOOD = 'correct horse battery';
const REFUSED = { code: 'ERR_BAD_REQUEST' };

class CountingHasher implements PasswordHasher {
  parameters = CHEAP;
  readonly verified: string[] = [];
  isBusy = false;

  hash(password: string): Promise<string> {
    return hashPassword(password, this.parameters);
  }

  async verify(phc: string, password: string): Promise<boolean> {
    if (this.isBusy) throw new VpnError('ERR_BUSY', 'busy');
    this.verified.push(phc);
    return await verifyPassword(phc, password);
  }
}

async function setUp() {
  const store = await openTestStore();
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  const hasher = new CountingHasher();
  const accounts = new Accounts({ store, audit, clock });
  const user = await accounts.add('ada');
  return { store, clock, audit, hasher, accounts, user, passwords: new Passwords({ store, audit, clock, hasher }) };
}

test('a PHC string has the parameters and a fresh salt, and verifies the password alone', async () => {
  const phc = await hashPassword(GOOD, CHEAP);
  assert.match(phc, /^\$argon2id\$v=19\$m=64,t=1,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$/);
  assert.notEqual(await hashPassword(GOOD, CHEAP), phc);
  assert.equal(await verifyPassword(phc, GOOD), true);
  assert.equal(await verifyPassword(phc, `${GOOD} `), false);
  assert.equal(await verifyPassword(phc, ''), false);
  assert.equal(isOutdated(phc, CHEAP), false);
  assert.equal(isOutdated(phc, { ...CHEAP, passes: 2 }), true);
});

test('a hash of the reference implementation verifies', async () => {
  // printf password | argon2 somesalt -id -t 2 -m 16 -p 1 -l 32
  const phc = '$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc';
  assert.equal(await verifyPassword(phc, 'password'), true);
  assert.equal(await verifyPassword(phc, 'Password'), false);
});

test('a stored text that is no hash of ours, or asks for absurd work, is ERR_STORE and is not computed', async () => {
  const [, , , , salt = '', hash = ''] = (await hashPassword(GOOD, CHEAP)).split('$');
  for (const text of [
    '',
    'plain',
    `$argon2i$v=19$m=64,t=1,p=1$${salt}$${hash}`,
    `$argon2id$v=16$m=64,t=1,p=1$${salt}$${hash}`,
    `$argon2id$v=19$m=9999999,t=1,p=1$${salt}$${hash}`,
    `$argon2id$v=19$m=64,t=99,p=1$${salt}$${hash}`,
    `$argon2id$v=19$m=64,t=1,p=99$${salt}$${hash}`,
    `$argon2id$v=19$m=1,t=1,p=1$${salt}$${hash}`,
    `$argon2id$v=19$m=64,t=1,p=1$${salt}$`,
  ]) {
    await assert.rejects(verifyPassword(text, GOOD), { code: 'ERR_STORE' }, text);
  }
});

test('what may be set: 10 characters to 1,024 bytes, no control characters, not the name, not one letter again and again', () => {
  assert.equal(parseNewPassword('Zoe\u0308 und Anton', 'ada'), 'Zo\u00eb und Anton');
  for (const bad of [
    '',
    'short',
    'nine char',
    'x'.repeat(1025),
    'é'.repeat(600),
    'nul\0nul nul',
    'tab\ttab tab',
    'line\nline line',
    'I am AdA Lovelace',
    'aaaaaaaaaaaaab',
  ]) {
    assert.throws(() => parseNewPassword(bad, 'ada'), REFUSED, JSON.stringify(bad.slice(0, 20)));
  }
  assert.throws(
    () => parseNewPassword('ada is my name', 'ada'),
    (error) => error instanceof VpnError && !error.message.includes('my name'),
  );
});

test('what may be claimed: nothing longer than can be set, and no work for it', () => {
  assert.equal(normalisePassword('x'.repeat(1024)), 'x'.repeat(1024));
  for (const bad of ['', 'x'.repeat(1025), 'x'.repeat(1e7), 'a\0b', 'é'.repeat(513)])
    assert.equal(normalisePassword(bad), undefined);
});

test('a password is set, replaced, judged and removed; two spellings are one', async () => {
  const { passwords, user, store, audit } = await setUp();
  await passwords.set('ada', 'Zo\u00eb und Anton');
  assert.equal((await passwords.check(user.id, 'Zoe\u0308 und Anton')).right, true);
  assert.equal((await passwords.check(user.id, 'Zoe und Anton')).right, false);
  await passwords.set('ada', GOOD);
  assert.equal((await passwords.check(user.id, 'Zo\u00eb und Anton')).right, false);
  assert.equal((await passwords.check(user.id, GOOD)).right, true);
  assert.equal(await passwords.remove('ada'), true);
  assert.equal(await passwords.remove('ada'), false);
  assert.equal((await passwords.check(user.id, GOOD)).right, false);
  await assert.rejects(passwords.set('nobody', GOOD), { code: 'ERR_NOT_FOUND' });
  await assert.rejects(passwords.set('ada', 'short'), REFUSED);
  const events = (await audit.list({ user: 'ada' })).map(({ event }) => event);
  assert.deepEqual(events, ['user.added', 'password.set', 'password.set', 'password.removed']);
  assert.equal(JSON.stringify(await audit.list()).includes(GOOD), false);
  await store.close();
});

test('for nobody, for a user without a password and for a text that nobody can have, one hash is computed all the same', async () => {
  const { passwords, hasher, user, store, accounts } = await setUp();
  const bare = await accounts.add('bob');
  await passwords.set('ada', GOOD);
  for (const [id, text] of [
    [undefined, GOOD],
    [bare.id, GOOD],
    [user.id, 'x'.repeat(5000)],
    [user.id, 'nul\0'],
    [user.id, ''],
    [undefined, ''],
  ] as const) {
    hasher.verified.length = 0;
    assert.equal((await passwords.check(id, text)).right, false);
    assert.equal(hasher.verified.length, 1);
    assert.equal(isOutdated(hasher.verified[0] ?? '', CHEAP), false);
  }
  // Other parameters for everybody are other parameters for nobody.
  hasher.parameters = { ...CHEAP, passes: 3 };
  hasher.verified.length = 0;
  await passwords.check(undefined, GOOD);
  assert.match(hasher.verified[0] ?? '', /t=3/);
  await store.close();
});

test('a hash with other parameters is renewed when its password was right, unless it was changed meanwhile', async () => {
  const { passwords, hasher, user, store, clock } = await setUp();
  await passwords.set('ada', GOOD);
  hasher.parameters = { ...CHEAP, passes: 2 };
  const phc = async () => (await store.db.selectFrom('passwords').select('phc').executeTakeFirstOrThrow()).phc;
  const outdated = await phc();
  const [first, second, late] = [
    await passwords.check(user.id, GOOD),
    await passwords.check(user.id, GOOD),
    await passwords.check(user.id, GOOD),
  ];
  assert.ok(first.right && second.right && late.right);
  assert.equal(await phc(), outdated, 'judging changes nothing');
  assert.equal(await store.transaction(first.confirm), true);
  const renewed = await phc();
  assert.notEqual(renewed, outdated);
  assert.equal(await store.transaction(second.confirm), true, 'it is the same password');
  assert.equal(await phc(), renewed);
  clock.advance(1000);
  await passwords.set('ada', 'another password');
  const set = await phc();
  assert.equal(await store.transaction(late.confirm), false);
  assert.equal(await phc(), set);
  assert.equal((await passwords.check(user.id, GOOD)).right, false);
  assert.equal((await passwords.check(user.id, 'another password')).right, true);
  await store.close();
});

test('a password that is changed or taken away while it is judged opens nothing', async () => {
  const { passwords, user, store, clock } = await setUp();
  for (const change of [() => passwords.set('ada', 'another password'), () => passwords.remove('ada')]) {
    await passwords.set('ada', GOOD);
    const verdict = await passwords.check(user.id, GOOD);
    assert.ok(verdict.right);
    assert.equal(await store.transaction(verdict.confirm), true);
    clock.advance(1000);
    await change();
    assert.equal(await store.transaction(verdict.confirm), false);
  }
  await store.close();
});

test('a hasher with too much to do gives no verdict', async () => {
  const { passwords, hasher, user, store } = await setUp();
  await passwords.set('ada', GOOD);
  hasher.isBusy = true;
  await assert.rejects(passwords.check(user.id, GOOD), { code: 'ERR_BUSY' });
  await store.close();
});
