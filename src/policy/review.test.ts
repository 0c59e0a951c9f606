import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readPolicy } from './policy.ts';
import { reviewPolicy } from './review.ts';

function warnings(...rules: string[]): string[] {
  const text = ['version = 1', ...rules.map((rule) => `[[rules]]\n${rule.replaceAll('; ', '\n')}`)].join('\n');
  const { policy, problems } = readPolicy(text);
  assert.ok(policy !== undefined, JSON.stringify(problems));
  return reviewPolicy(policy).map(({ line, message }) => `${line}: ${message}`);
}

const ALLOW = 'action = "allow"; from = ["group:staff"]; to = ["10.1.2.0/24"]; services = ["tcp/80"]';
const rule = (change: Record<string, string> = {}): string =>
  Object.entries(change).reduce((text, [from, to]) => text.replace(from, to), ALLOW);

test('a rule that one before it covers is warned of, with both lines', () => {
  assert.deepEqual(warnings(rule({ '10.1.2.0/24': '10.0.0.0/8', 'tcp/80': 'tcp' }), rule({ allow: 'deny' })), [
    '7: rule 2 is never reached: rule 1 in line 2 allows all of it before',
  ]);
  assert.deepEqual(warnings(rule({ 'group:staff': 'any', '"tcp/80"': '"any"' }), rule()), [
    '7: rule 2 adds nothing: rule 1 in line 2 allows all of it',
  ]);
});

for (const [what, first, second] of [
  ['another subject', rule(), rule({ 'group:staff': 'group:admins' })],
  ['a wider network', rule(), rule({ '10.1.2.0/24': '10.1.0.0/16' })],
  ['another port', rule(), rule({ 'tcp/80': 'tcp/81' })],
  ['more of everything', rule(), rule({ '"group:staff"': '"group:staff", "user:ada"' })],
  ['clients, after any', rule({ '10.1.2.0/24': 'any' }), rule({ '10.1.2.0/24': 'clients' })],
  ['always, after some hours', `${rule()}; when = { from = "08:00", to = "09:00" }`, rule()],
  ['anybody, after those with a certificate', `${rule()}; require = { certificate = true }`, rule()],
  ['an older second factor', `${rule()}; require = { mfaMinutes = 5 }`, `${rule()}; require = { mfaMinutes = 50 }`],
] as const) {
  test(`a rule for ${what} is not covered`, () => {
    assert.deepEqual(warnings(first, second), []);
  });
}

test('requirements and hours that are the same or stricter are covered', () => {
  const hours = 'when = { from = "08:00", to = "09:00" }';
  assert.equal(warnings(`${rule()}; ${hours}`, `${rule()}; ${hours}`).length, 1);
  const [wide, narrow] = [50, 5].map((minutes) => `${rule()}; require = { mfaMinutes = ${minutes} }`);
  assert.equal(warnings(wide ?? '', narrow ?? '').length, 1);
});

test('ten thousand rules are looked through', () => {
  const rules = Array.from({ length: 10_000 }, (_, at) =>
    rule({ staff: `g${at % 100}`, '10.1.2.0/24': `10.${at >> 8}.${at & 255}.0/24`, 'tcp/80': `tcp/${1 + at}` }),
  );
  assert.deepEqual(warnings(...rules, rule({ staff: 'g7', '10.1.2.0/24': '10.0.7.3', 'tcp/80': 'tcp/8' })), [
    '50002: rule 10001 adds nothing: rule 8 in line 37 allows all of it',
  ]);
});

test('a route that is pushed though no rule allows anything there is warned of, but where a name may be there', () => {
  const text = (to: string) => `version = 1
[[rules]]
action = "allow"
from = ["any"]
to = ["${to}"]

[[settings]]
for = ["any"]
routes = ["10.1.0.0/16", "10.2.0.0/16", "fd00:1::/48"]
`;
  const warnings = (to: string) => {
    const { policy, problems } = readPolicy(text(to));
    assert.ok(policy !== undefined, JSON.stringify(problems));
    return reviewPolicy(policy).map(({ line, message }) => `${line}: ${message}`);
  };
  const nowhere = (route: string) => `7: the route ${route} is pushed, and no rule allows anything there`;
  assert.deepEqual(warnings('10.1.2.3'), [nowhere('10.2.0.0/16'), nowhere('fd00:1::/48')]);
  assert.deepEqual(warnings('10.0.0.0/8'), [nowhere('fd00:1::/48')]);
  assert.deepEqual(warnings('db.example.org'), []);
  assert.deepEqual(warnings('any'), []);
});
