/** What an outside source says of a password comes no sooner than what a hash of ours says, where it tells a guesser something. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { ManualClock } from '../../base/clock.ts';
import { VpnError } from '../../base/errors.ts';
import { Audit } from '../../store/audit.ts';
import { openStore } from '../../store/store.ts';
import type { BackendVerdict } from '../backends/backend.ts';
import { Passwords } from '../passwords.ts';
import { PasswordStep } from './password.ts';
import type { Attempt } from './step.ts';

/** A step whose source answers `verdict` at once, and whose hashes wait for `release`, or `fail`. */
async function setUp(verdict: BackendVerdict) {
  const store = await openStore(':memory:');
  const hash = Promise.withResolvers<boolean>();
  hash.promise.catch(() => {});
  const hashed: string[] = [];
  const clock = new ManualClock();
  const hasher = {
    parameters: { memory: 8192, passes: 1, parallelism: 1 },
    hash: async () => 'a hash',
    verify: (_phc: string, password: string) => {
      hashed.push(password);
      return hash.promise;
    },
  };
  const passwords = new Passwords({ store, audit: new Audit(store, clock), clock, hasher });
  const asked: string[] = [];
  const step = new PasswordStep(store, passwords, () => ({
    forStrangers: 'office',
    find: (name) => ({
      name,
      authenticate: async ({ password }) => {
        asked.push(password);
        return verdict;
      },
      recheck: async () => ({ standing: 'unknown' }),
      close: async () => {},
    }),
    provision: async (name) => ({ id: '1', name }),
  }));
  let isDone = false;
  const examine = (password: string) => {
    const attempt = { evidence: { user: 'ada', purpose: 'enrol', password }, device: '', peer: {}, now: 0 };
    const finding = step.examine(attempt as unknown as Attempt);
    finding.then(
      () => (isDone = true),
      () => (isDone = true),
    );
    return finding;
  };
  return { store, hash, hashed, asked, examine, isDone: () => isDone };
}

/** Until it is so, and then long enough for what would follow at once. */
async function settled(isSo: () => boolean): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!isSo() && performance.now() < deadline) await setImmediate();
  for (let turn = 0; turn < 50; turn++) await setImmediate();
}

const no: BackendVerdict = { kind: 'refused', reason: 'no such account' };

for (const [what, password] of [
  ['a wrong password', 'wrong horse'],
  ['a text that is no password', 'x'.repeat(2000)],
] as const) {
  test(`${what} for somebody at a source is refused no sooner than one of ours`, async () => {
    const { store, hash, hashed, asked, examine, isDone } = await setUp(no);
    await using _ = store;
    const finding = examine(password);
    const isAsked = password.length <= 1024;
    await settled(() => hashed.length === 1 && asked.length === Number(isAsked));
    assert.deepEqual([hashed.length, asked.length, isDone()], [1, Number(isAsked), false]);
    hash.resolve(false);
    assert.equal((await finding).refusal?.code, 'rejected');
  });
}

test('whoever the source accepts, or cannot judge, waits for no hash of ours', async () => {
  for (const [verdict, code] of [
    [{ kind: 'accepted', user: 'ada', groups: undefined }, undefined],
    [{ kind: 'unavailable', reason: 'down' }, 'unavailable'],
  ] as const) {
    const { store, hash, examine } = await setUp(verdict);
    await using _ = store;
    assert.equal((await examine('right horse')).refusal?.code, code);
    hash.reject(new VpnError('ERR_BUSY', 'too much waits'));
  }
});

test('where a refusal of ours would have been no verdict, one of a source is none either', async () => {
  const { store, hash, examine } = await setUp(no);
  await using _ = store;
  const finding = examine('wrong horse');
  hash.reject(new VpnError('ERR_BUSY', 'too much waits'));
  await assert.rejects(finding, { code: 'ERR_BUSY' });
});
