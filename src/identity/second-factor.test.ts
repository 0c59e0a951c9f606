// Which codes are good, when, and how often.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { TOTP, URI } from 'otpauth';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Audit } from '../store/audit.ts';
import { Vault } from '../store/vault.ts';
import { Accounts } from './accounts.ts';
import { SecondFactors } from './second-factor.ts';

const START = Date.UTC(2030, 0, 1);

async function setUp() {
  const store = await openTestStore();
  const clock = new ManualClock();
  const audit = new Audit(store, clock);
  const accounts = new Accounts({ store, audit, clock });
  const ada = await accounts.add('ada');
  const factors = new SecondFactors({ store, audit, clock, vault: new Vault(randomBytes(32)) });
  const made = await factors.create('ada', 'Example');
  const app = URI.parse(made.uri.reveal());
  assert.ok(app instanceof TOTP);
  /** Tries a code, and uses it up when it is good, as a login does. */
  const tries = async (code: string, now: number, id: string | undefined = ada.id): Promise<string> => {
    const verdict = await factors.check(id, code, now);
    if (!verdict.right) return verdict.reason;
    return (await store.transaction(verdict.spend)) ? 'good' : 'used by another login';
  };
  return {
    store,
    clock,
    audit,
    accounts,
    ada,
    factors,
    made,
    app,
    tries,
    codeAt: (at: number) => app.generate({ timestamp: at }),
  };
}

test('an app set up from the URI makes codes that are good now, 30 seconds before and after, and no longer', async () => {
  const { tries, codeAt, app, store } = await setUp();
  assert.equal(app.issuer, 'Example');
  assert.equal(app.label, 'ada');
  const now = START + 15_000;
  const wrong = 'the code is wrong, or of another time';
  assert.equal(await tries(codeAt(now - 60_000), now), wrong);
  assert.equal(await tries(codeAt(now - 30_000), now), 'good');
  assert.equal(await tries(codeAt(now), now), 'good');
  assert.equal(await tries(codeAt(now + 30_000), now), 'good');
  assert.equal(await tries(codeAt(now + 60_000), now), wrong);
  assert.equal(await tries(codeAt(now + 3_600_000), now), wrong);
  for (const code of ['', '000000x', '12345', '1234567']) assert.equal(await tries(code, now), wrong);
  await store.close();
});

test('a code is good once, and after it no earlier one', async () => {
  const { tries, codeAt, store } = await setUp();
  assert.equal(await tries(codeAt(START), START), 'good');
  assert.equal(await tries(codeAt(START), START + 1000), 'the code has been used before');
  assert.equal(await tries(codeAt(START - 30_000), START + 1000), 'the code has been used before');
  assert.equal(await tries(codeAt(START + 30_000), START + 30_000), 'good');
  await store.close();
});

test('of two logins with one code at once, one is let in', async () => {
  const { factors, codeAt, ada, store } = await setUp();
  const [one, other] = [
    await factors.check(ada.id, codeAt(START), START),
    await factors.check(ada.id, codeAt(START), START),
  ];
  assert.ok(one.right && other.right);
  assert.equal(await store.transaction(one.spend), true);
  assert.equal(await store.transaction(other.spend), false);
  await store.close();
});

test('a code of a secret that was replaced while it was judged opens nothing', async () => {
  const { factors, codeAt, ada, store } = await setUp();
  const verdict = await factors.check(ada.id, codeAt(START), START);
  assert.ok(verdict.right);
  await factors.create('ada', 'CustomVPN');
  assert.equal(await store.transaction(verdict.spend), false);
  await store.close();
});

test('a code that is judged and not spent stays good', async () => {
  const { factors, tries, codeAt, ada, store } = await setUp();
  for (let i = 0; i < 3; i++) assert.equal((await factors.check(ada.id, codeAt(START), START)).right, true);
  assert.equal(await tries(codeAt(START), START), 'good');
  await store.close();
});

test('a recovery code is good once, for its user, and is recorded; two at once are one', async () => {
  const { made, tries, factors, accounts, audit, ada, store } = await setUp();
  const bob = await accounts.add('bob');
  await factors.create('bob', 'Example');
  const [first = '', second = ''] = made.recoveryCodes.reveal();
  assert.equal(made.recoveryCodes.reveal().length, 10);
  assert.match(first, /^[a-z2-7]{16}$/);
  assert.equal(await tries(first, START, bob.id), 'the recovery code is wrong');
  assert.equal(await tries(first, START), 'good');
  assert.equal(await tries(first, START), 'the recovery code has been used before');
  const [one, other] = [await factors.check(ada.id, second, START), await factors.check(ada.id, second, START)];
  assert.ok(one.right && other.right);
  assert.equal(await store.transaction(one.spend), true);
  assert.equal(await store.transaction(other.spend), false);
  assert.deepEqual(await factors.describe(ada.id), { hasTotp: true, recoveryCodesLeft: 8 });
  assert.equal((await audit.list({ event: 'recovery.used' })).length, 2);
  await store.close();
});

test('new codes, a new secret and removal void the old ones at once', async () => {
  const { made, tries, factors, codeAt, ada, store } = await setUp();
  const [old = ''] = made.recoveryCodes.reveal();
  const [fresh = ''] = (await factors.renewCodes('ada')).reveal();
  assert.equal(await tries(old, START), 'the recovery code is wrong');
  assert.equal(await tries(fresh, START), 'good');
  await factors.create('ada', 'Example');
  assert.equal(await tries(codeAt(START), START), 'the code is wrong, or of another time');
  assert.equal(await factors.remove('ada'), true);
  assert.equal(await factors.remove('ada'), false);
  assert.deepEqual(await factors.describe(ada.id), { hasTotp: false, recoveryCodesLeft: 0 });
  assert.equal(await tries(codeAt(START), START), 'the user has no second factor');
  assert.equal(await tries(codeAt(START), START, undefined), 'the user has no second factor');
  await assert.rejects(factors.renewCodes('ada'), { code: 'ERR_NOT_FOUND' });
  await assert.rejects(factors.create('nobody', 'Example'), { code: 'ERR_NOT_FOUND' });
  await store.close();
});

test('neither secret nor codes stand in the store or the record', async () => {
  const { made, app, store, audit } = await setUp();
  const rows = JSON.stringify(
    [
      await store.db.selectFrom('totp_secrets').selectAll().execute(),
      await store.db.selectFrom('recovery_codes').selectAll().execute(),
      await audit.list(),
    ],
    (_key, value: unknown) => (value instanceof Uint8Array ? Buffer.from(value).toString('latin1') : value),
  );
  assert.equal(rows.includes(Buffer.from(app.secret.buffer).toString('latin1')), false);
  for (const code of made.recoveryCodes.reveal()) assert.equal(rows.includes(code), false);
  assert.equal(JSON.stringify(made).includes(made.recoveryCodes.reveal()[0] ?? ''), false);
  await store.close();
});
