import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseIp, parsePrefix, prefixContains } from '../ip/address.ts';
import { parseExpectation, readExpectations, tryExpectation } from './expectation.ts';
import { readPolicy } from './policy.ts';

const NOW = Date.UTC(2026, 2, 2, 9);
const POLICY = `version = 1
[groups]
ops = ["ada"]
[[rules]]
name = "no database"
action = "deny"
from = ["group:contractors"]
to = ["10.1.2.3", "db.example.org"]
[[rules]]
name = "web"
action = "allow"
from = ["group:contractors", "user:bob"]
to = ["10.1.0.0/16", "192.0.2.0/24", "fd00::/16", "db.example.org"]
services = ["tcp/443", "icmp/echo"]
[[rules]]
name = "shells by day"
action = "allow"
from = ["group:ops"]
to = ["10.1.0.0/16"]
services = ["tcp/22"]
when = { days = ["mon", "tue", "wed", "thu", "fri"] }
require = { certificate = true, mfaMinutes = 30 }
`;

const pool = parsePrefix('10.20.0.0/24');
const hosts: Record<string, string[]> = { 'db.example.org': ['192.0.2.9', '198.51.100.9'] };
const surroundings = {
  addressesOf: (host: string) => (hosts[host] ?? []).map(parseIp),
  isOfClients: (address: ReturnType<typeof parseIp>) => prefixContains(pool, address),
  holderOf: () => undefined,
  groupsOfUser: (user: string) => (user === 'carl' ? ['contractors'] : []),
};

function outcomeOf(text: string): { passed: boolean; reason: string } {
  const { policy } = readPolicy(POLICY);
  assert.ok(policy !== undefined);
  const { passed, reason } = tryExpectation(policy, parseExpectation(text, 1), surroundings, NOW);
  return { passed, reason };
}

for (const text of [
  'bob can reach 10.1.2.3:443/tcp',
  'bob can reach 10.1.2.3:443',
  'bob can reach 10.1.2.3',
  'bob can reach [fd00::1]:443/tcp',
  'bob can reach fd00::1/icmp',
  'bob cannot reach 10.1.2.3:80/tcp',
  'bob cannot reach 10.1.2.3:443/udp',
  'bob cannot reach 198.51.100.1',
  'carl cannot reach 10.1.2.3',
  'carl can reach 10.1.2.4:443/tcp',
  'group:contractors cannot reach 10.1.2.3:443/tcp',
  'contractors can not reach 10.1.2.3:443/tcp',
  'user:contractors cannot reach 10.1.2.4',
  'ada cannot reach 10.1.2.3:22/tcp',
  'ada with certificate cannot reach 10.1.2.3:22/tcp',
  'ada with certificate, mfa can reach 10.1.2.3:22/tcp',
  'ada with mfa, certificate cannot reach 10.1.2.3:22/tcp at 2026-03-01T09:00Z',
  'group:contractors cannot reach db.example.org',
  'nobody cannot reach 10.1.2.3',
]) {
  test(`${text}: holds, and its opposite does not`, () => {
    assert.deepEqual(outcomeOf(text), { passed: true, reason: '' });
    const isNo = /can ?not/.test(text);
    const opposite = isNo ? text.replace(/can ?not/, 'can') : text.replace(' can ', ' cannot ');
    assert.equal(outcomeOf(opposite).passed, false);
  });
}

test('what fails says which rule, or that none', () => {
  assert.deepEqual(outcomeOf('carl can reach 10.1.2.3:443/tcp').reason, 'no database in line 4 denies it');
  assert.deepEqual(outcomeOf('bob cannot reach 10.1.2.3').reason, 'web in line 9 allows it');
  assert.deepEqual(outcomeOf('eve can reach 10.1.2.3').reason, 'no rule allows it');
  assert.deepEqual(
    outcomeOf('bob can reach gone.example.org:443').reason,
    'the name gone.example.org could not be looked up',
  );
});

test('all addresses of a name must be as the sentence says', () => {
  assert.equal(outcomeOf('bob can reach db.example.org:443/tcp').passed, true);
  assert.equal(outcomeOf('bob cannot reach db.example.org:443/tcp').passed, false);
});

for (const text of [
  'alice',
  'alice reach 10.1.2.3',
  'alice can reach',
  'alice can reach 10.1.2',
  'alice can reach 10.1.2.3:0/tcp',
  'alice can reach 10.1.2.3:70000/tcp',
  'alice can reach 10.1.2.3:80/sctp',
  'alice can reach 10.1.2.3/tcp',
  'alice can reach 10.1.2.3:8/icmp',
  'alice can reach [10.1.2.3',
  'alice with passport can reach 10.1.2.3',
  'alice can reach 10.1.2.3 at noon',
  'alice can reach 10.0.0.0/8',
]) {
  test(`${JSON.stringify(text)} is no test, and the message shows what one is like`, () => {
    assert.throws(() => parseExpectation(text, 1), {
      code: 'ERR_CONFIG_VALUE',
      message: /; a test reads like: alice can reach 10\.1\.2\.3:443\/tcp$/,
    });
  });
}

test('the tests of a file are read with their lines, those that are none apart', () => {
  const { policy } = readPolicy('version = 1\n[tests]\nexpect = [\n"alice can reach 10.1.2.3",\n"what",\n]\n');
  assert.ok(policy !== undefined);
  const { expectations, unreadable } = readExpectations(policy);
  assert.deepEqual([expectations.map(({ line }) => line), unreadable.map(({ line }) => line)], [[4], [5]]);
});
