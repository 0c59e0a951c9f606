/** Conditional changes: nothing comes between look and change, and nobody is kept waiting by one that was refused. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GatewayApi } from '../../control/operations.ts';
import type { Audit } from '../../store/audit.ts';
import { Calls } from './calls.ts';

const ADMINISTRATOR = { user: 'ada', role: 'administrator', source: '192.0.2.1:1' } as const;

/** One user, whose groups are looked at slowly. */
function rig() {
  const groups: string[] = [];
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  const api = {
    'user.show': async () => {
      const seen = [...groups];
      await turn();
      return { name: 'carol', groups: seen };
    },
    'user.regroup': async ({ add = [] }: { add?: string[] }) => {
      await turn();
      groups.push(...add);
      return { groups: [...groups], kicked: 0 };
    },
  } as unknown as GatewayApi;
  const audit = { append: async () => {} } as unknown as Audit;
  const calls = new Calls({ api, audit, roleOfUser: async () => undefined, roleOfGroups: () => undefined });
  return { calls, groups };
}

test('of two changes of what was read at once the first is made, and the second is told', async () => {
  const { calls, groups } = rig();
  const { tag } = await calls.call('user.show', { name: 'carol' }, ADMINISTRATOR);
  const results = await Promise.allSettled(
    ['one', 'two'].map((group) => calls.call('user.regroup', { name: 'carol', add: [group] }, ADMINISTRATOR, tag)),
  );
  assert.deepEqual(
    results.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  assert.deepEqual(groups, ['one']);
  const { tag: fresh } = await calls.call('user.show', { name: 'carol' }, ADMINISTRATOR);
  await calls.call('user.regroup', { name: 'carol', add: ['two'] }, ADMINISTRATOR, fresh);
  assert.deepEqual(groups, ['one', 'two']);
});

test('a condition on what has none is refused, and nothing is changed', async () => {
  const { calls } = rig();
  await assert.rejects(calls.call('server.unban', { source: '192.0.2.7' }, ADMINISTRATOR, '"x"'), {
    code: 'ERR_BAD_REQUEST',
  });
});

test('an operation that is none is not found, whatever an object has by itself', async () => {
  const { calls } = rig();
  for (const name of ['', 'toString', '__proto__', 'user.show ']) {
    await assert.rejects(calls.call(name, {}, ADMINISTRATOR), { code: 'ERR_NOT_FOUND' });
    assert.equal(calls.reads(name), undefined);
  }
});
