import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CLIENTS, modelPolicy, textOf } from '../../test/support/policy-model.ts';
import { type Holder, rulesFor } from './access.ts';
import { readPolicy } from './policy.ts';
import { Selector } from './selector.ts';

const NOW = Date.UTC(2026, 2, 2, 9);
const MINUTE_MS = 60_000;

const holders: readonly Holder[] = CLIENTS.map(({ user, groups, hasCertificate, mfaMinutes }) => ({
  user,
  groups,
  hasCertificate,
  mfaAt: mfaMinutes === undefined ? undefined : NOW - mfaMinutes * MINUTE_MS,
}));

test('whatever the policy, the session and the time, the rules are those that looking at each rule finds', () => {
  let found = 0;
  fc.assert(
    fc.property(modelPolicy, fc.array(fc.integer({ min: 0, max: 3 * 24 * 60 }), { maxLength: 6 }), (model, minutes) => {
      const { policy } = readPolicy(textOf(model));
      assert.ok(policy !== undefined);
      const selector = new Selector(policy);
      for (const minute of [0, ...minutes, 0]) {
        const now = NOW + minute * MINUTE_MS + 1;
        for (const holder of holders) {
          const { rules, numbers } = selector.select(holder, now);
          const expected = rulesFor(policy, holder, now);
          assert.deepEqual(rules, expected);
          assert.deepEqual(
            numbers,
            expected.map(({ index }) => index),
          );
          found += rules.length;
        }
      }
    }),
    { numRuns: 150 },
  );
  assert.ok(found > 1000);
});

test('sessions that rules cannot tell apart share one answer, until an hour, an age or a group tells them apart', () => {
  const { policy } = readPolicy(`version = 1
[[rules]]
action = "allow"
from = ["group:staff"]
to = ["any"]
when = { from = "08:00", to = "10:00" }
[[rules]]
action = "allow"
from = ["any"]
to = ["group:staff", "user:ada"]
require = { mfaMinutes = 30 }
`);
  assert.ok(policy !== undefined);
  const selector = new Selector(policy);
  const holder = (user: string, groups: string[], mfaAt?: number) => ({ user, groups, hasCertificate: false, mfaAt });
  const bob = selector.select(holder('bob', ['staff']), NOW);
  assert.equal(selector.select(holder('eve', ['staff']), NOW + 30_000), bob);
  assert.deepEqual([bob.numbers, bob.peers], [[0], ['group:staff']]);
  // She is spoken of by her name.
  assert.deepEqual(selector.select(holder('ada', ['staff']), NOW).peers, ['user:ada', 'group:staff']);
  assert.notEqual(selector.select(holder('bob', []), NOW), bob);
  assert.deepEqual(selector.select(holder('bob', ['staff']), NOW + 60 * MINUTE_MS).numbers, []);
  const proven = holder('bob', ['staff'], NOW);
  assert.deepEqual(selector.select(proven, NOW + 30 * MINUTE_MS).numbers, [0, 1]);
  assert.deepEqual(selector.select(proven, NOW + 30 * MINUTE_MS + 1).numbers, [0]);
});
