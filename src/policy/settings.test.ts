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

test('rates, quotas and classes are read; groups in groups and named services count', () => {
  const { policy, problems } = readPolicy(`version = 1
[services]
backup = ["tcp/873", "udp/9000-9010"]

[[settings]]
for = ["any"]
downMbit = 10
upMbit = 2.5
burstKiB = 64
quotaDayGiB = 0.5
overQuota = "refuse"
compression = true

[groupLimits.staff]
downMbit = 100

[[classes]]
class = "bulk"
services = ["backup"]

[[classes]]
class = "interactive"
services = ["tcp"]
`);
  assert.deepEqual(problems, []);
  assert.deepEqual(policy && settingsFor(policy, { user: 'ada', groups: [] }), {
    downMbit: 10,
    upMbit: 2.5,
    burstKiB: 64,
    quotaDayGiB: 0.5,
    overQuota: 'refuse',
    compression: true,
  });
  assert.deepEqual([...(policy?.groupLimits ?? [])], [['staff', { downMbit: 100 }]]);
  assert.deepEqual(policy?.classes, [
    { class: 2, protocol: 'tcp', from: 873, to: 873 },
    { class: 2, protocol: 'udp', from: 9000, to: 9010 },
    { class: 0, protocol: 'tcp', from: 0, to: 65_535 },
  ]);
});

test('a rate of nothing, a negative quota and a class for what has no ports are refused with their lines', () => {
  const lines = (text: string) =>
    readPolicy(`version = 1\n${text}`).problems.map(({ line, message }) => [line, message]);
  assert.equal(lines('[[settings]]\nfor = ["any"]\ndownMbit = 0')[0]?.[0], 4);
  assert.equal(lines('[[settings]]\nfor = ["any"]\nquotaDayGiB = -1')[0]?.[0], 4);
  assert.deepEqual(lines('[[classes]]\nclass = "bulk"\nservices = ["icmp"]'), [
    [4, 'expected TCP or UDP ports, found icmp: other traffic has its DSCP'],
  ]);
  assert.equal(lines('[[classes]]\nclass = "urgent"\nservices = ["tcp/1"]')[0]?.[0], 3);
});
