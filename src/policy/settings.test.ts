import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatPrefix } from '../ip/address.ts';
import { readPolicy } from './policy.ts';
import { settingsFor } from './settings.ts';

const TEXT = `version = 1

[groups]
everyone = ["group:staff"]

[[settings]]
for = ["user:ada"]
dns = []

[[settings]]
for = ["group:everyone"]
routes = ["10.1.0.0/16", "fd00:1::/48"]
dns = ["10.1.0.53"]
absoluteSeconds = 3600

[[settings]]
for = ["any"]
mode = "full"
routes = ["10.9.0.0/16"]
idleSeconds = 600
`;

function settingsOf(user: string, groups: string[]): Record<string, unknown> {
  const { policy, problems } = readPolicy(TEXT);
  assert.ok(policy !== undefined, JSON.stringify(problems));
  const { routes, ...rest } = settingsFor(policy, { user, groups });
  return { ...rest, routes: routes?.map(formatPrefix) };
}

test('each key is that of the first entry that speaks of the session and has it', () => {
  assert.deepEqual(settingsOf('ada', ['staff']), {
    dns: [],
    routes: ['10.1.0.0/16', 'fd00:1::/48'],
    absoluteSeconds: 3600,
    mode: 'full',
    idleSeconds: 600,
  });
  assert.deepEqual(settingsOf('bob', []), { mode: 'full', routes: ['10.9.0.0/16'], idleSeconds: 600 });
});

test('what is wrong in settings is said with its line', () => {
  const text =
    'version = 1\n\n[[settings]]\nfor = ["staff"]\nroutes = ["10.1.0.0/16", "nowhere"]\n\n[[settings]]\nfor = ["any"]\nidleSeconds = 5\n';
  const { policy, problems } = readPolicy(text.replace('\nidleSeconds = 5', ''));
  assert.equal(policy, undefined);
  assert.deepEqual(
    problems.map(({ line, message }) => `${line}: ${message}`),
    [
      '4: expected any, user:NAME or group:NAME, found "staff"',
      '5: expected a prefix such as 10.1.0.0/16, found "nowhere"',
    ],
  );
  const [problem] = readPolicy(text).problems;
  assert.equal(problem?.line, 9);
  assert.match(problem?.message ?? '', /idleSeconds/);
});
