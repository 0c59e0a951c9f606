/** Users of this machine at the control socket: root everything, those who are named their role, others nothing. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { GatewayApi } from '../control/operations.ts';
import type { Audit } from '../store/audit.ts';
import { gatewayConfigSchema } from './config.ts';
import { UnixUsers } from './unix-users.ts';

const ACCOUNTS = 'root:x:0:0::/root:/bin/sh\nolga:x:1001:1001::/:/bin/sh\nvera:x:1002:1002::/:/bin/sh\n';
const gone = new AbortController().signal;

function rig(control: object) {
  const done: string[] = [];
  const records: Record<string, unknown>[] = [];
  const api = new Proxy({} as GatewayApi, {
    get: (_, name) => async () => {
      done.push(String(name));
      return {};
    },
  });
  const audit = { append: async (entry: Record<string, unknown>) => void records.push(entry) } as unknown as Audit;
  const config = gatewayConfigSchema.parse({ control });
  const users = new UnixUsers({ config, audit, groupsOf: async () => [], accounts: ACCOUNTS });
  return { operations: users.operations(api), done, records };
}

test('each has the role that the configuration gives, and what they change is on record', async () => {
  const { operations, done, records } = rig({ operators: ['olga', '1002'], viewers: ['vera'] });
  await operations['session.kick']({ id: 'aaaa' }, { gone, uid: 1001 });
  assert.deepEqual(
    records.map(({ source, detail }) => [source, detail]),
    [['unix socket, user 1001', { operation: 'session.kick', by: 'unix user olga', role: 'operator', about: 'aaaa' }]],
  );
  await assert.rejects(operations['server.stop']({}, { gone, uid: 1001 }), { code: 'ERR_PRIVILEGE' });
  // Named twice: the higher role.
  await operations['session.kick']({ id: 'bbbb' }, { gone, uid: 1002 });
  await assert.rejects(operations['server.status']({}, { gone, uid: 1003 }), { code: 'ERR_PRIVILEGE' });
  assert.deepEqual(done, ['session.kick', 'session.kick']);
});

test('root, and whoever runs the gateway, does everything', async () => {
  const { operations, done } = rig({});
  for (const uid of [0, process.getuid?.()]) await operations['server.stop']({}, { gone, uid });
  assert.deepEqual(done, ['server.stop', 'server.stop']);
});

test('a user that this machine does not have is an error of the configuration', () => {
  assert.throws(() => rig({ viewers: ['nobody-here'] }), { code: 'ERR_CONFIG_VALUE', message: /control\.viewers/ });
});
