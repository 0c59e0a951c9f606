/** What a change of a policy allows and forbids. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseIp } from '../ip/address.ts';
import { comparePolicies } from './comparison.ts';
import { EMPTY_POLICY, type Policy, readPolicy } from './policy.ts';

const policy = (rules: string): Policy => {
  const { policy: read, problems } = readPolicy(`version = 1\n${rules}`);
  assert.ok(read !== undefined, JSON.stringify(problems));
  return read;
};
const rule = (name: string, from: string, to: string, services = '"tcp/443"', action = 'allow') =>
  `[[rules]]\nname = "${name}"\naction = "${action}"\nfrom = ["${from}"]\nto = ["${to}"]\nservices = [${services}]\n`;
const people = ['alice', 'bob'].map((user) => ({
  user,
  groups: user === 'bob' ? ['staff'] : [],
  hasCertificate: false,
}));
const surroundings = {
  addressesOf: (host: string) => (host === 'wiki.example' ? [parseIp('192.0.2.9')] : []),
  isOfClients: () => false,
  holderOf: () => undefined,
};
const compare = (former: Policy, next: Policy, limit = 100) =>
  comparePolicies(former, next, people, surroundings, { now: 0, limit }).map(
    ({ user, destination, service, after, rule: by }) => `${user} ${destination} ${service} ${after} ${by ?? '-'}`,
  );

test('what is added is allowed, for those whom it concerns; what is taken away is forbidden', () => {
  const web = policy(rule('web', 'user:alice', '198.51.100.0/24'));
  assert.deepEqual(compare(EMPTY_POLICY, web), ['alice 198.51.100.1 tcp/443 allow web']);
  assert.deepEqual(compare(web, EMPTY_POLICY), ['alice 198.51.100.1 tcp/443 deny -']);
  assert.deepEqual(compare(web, web), []);
});

test('groups, host names and the order of rules count', () => {
  const open = policy(rule('wiki', 'group:staff', 'wiki.example'));
  const shut = policy(
    rule('never', 'user:bob', 'wiki.example', '"any"', 'deny') + rule('wiki', 'group:staff', 'wiki.example'),
  );
  assert.deepEqual(compare(EMPTY_POLICY, open), ['bob wiki.example tcp/443 allow wiki']);
  assert.deepEqual(compare(open, shut), ['bob wiki.example tcp/443 deny never']);
});

test('there are no more than asked for', () => {
  const wide = policy(rule('all', 'any', '198.51.100.0/24', '"tcp/1", "tcp/2", "tcp/3"'));
  assert.equal(compare(EMPTY_POLICY, wide).length, 6);
  assert.equal(compare(EMPTY_POLICY, wide, 4).length, 4);
});
