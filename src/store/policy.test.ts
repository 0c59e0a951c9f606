/** Changes of the rules are on record, once each. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openTestStore } from '../../test/support/store.ts';
import { ManualClock } from '../base/clock.ts';
import { Audit } from './audit.ts';
import { recordPolicy } from './policy.ts';

test('what has changed since the last time is on record with what it is now, and nothing else', async () => {
  await using store = await openTestStore();
  const audit = new Audit(store, new ManualClock());
  const record = (rules: Record<string, unknown>) => recordPolicy(store, audit, rules);
  assert.deepEqual(await record({ login: { steps: ['device'] }, routes: [] }), ['login', 'routes']);
  assert.deepEqual(await record({ login: { steps: ['device'] }, routes: [] }), []);
  assert.deepEqual(await record({ login: { steps: ['device', 'totp'] }, routes: [] }), ['login']);
  assert.deepEqual(await record({ login: { steps: ['device'] }, routes: [] }), ['login'], 'back is a change, too');
  assert.deepEqual(await record({ login: { steps: ['device'] }, routes: ['10.0.0.0/8'.repeat(1000)] }), ['routes']);
  const details = (await audit.list({ event: 'policy.changed' })).map(({ detail }) => detail);
  assert.deepEqual(details.slice(0, 3), [
    { login: '{"steps":["device"]}', routes: '[]' },
    { login: '{"steps":["device","totp"]}' },
    { login: '{"steps":["device"]}' },
  ]);
  assert.equal(String(details[3]?.routes).length, 2048);
  assert.equal(details.length, 4);
});
