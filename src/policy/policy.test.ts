import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatDestination, formatSubject, readPolicy } from './policy.ts';
import { formatService } from './service.ts';

const GOOD = `version = 1

[groups]
ops = ["ada", "group:admins"]
all = ["group:ops"]

[networks]
office = ["10.1.0.0/16", "fd00:1::/48", "wiki"]
wiki = ["wiki.example.org", "10.1.0.0/16"]

[services]
web = ["tcp/80", "tcp/443"]

[[rules]]
name = "office"
action = "allow"
from = ["group:staff", "user:Zoë"]
to = ["office", "192.0.2.7"]
services = ["web", "icmp/echo"]
`;

/** Each problem as `line: message`. */
function problemsOf(text: string): string[] {
  return readPolicy(text).problems.map(({ line, message }) => `${line}: ${message}`);
}

test('names are looked up: networks in networks, services, groups in groups', () => {
  const { policy, problems } = readPolicy(GOOD);
  assert.deepEqual(problems, []);
  assert.ok(policy !== undefined);
  const [rule] = policy.rules;
  assert.ok(rule !== undefined);
  assert.deepEqual(
    [rule.from.map(formatSubject), rule.to.map(formatDestination), rule.services.map(formatService), rule.line],
    [
      ['group:staff', 'user:Zoë'],
      ['10.1.0.0/16', 'fd00:1::/48', 'wiki.example.org', '192.0.2.7/32'],
      ['tcp/80', 'tcp/443', 'icmp/echo'],
      14,
    ],
  );
  assert.deepEqual(policy.hosts, ['wiki.example.org']);
  assert.deepEqual([...(policy.memberships.get('ada') ?? [])].sort(), ['all', 'ops']);
  assert.deepEqual([...(policy.nesting.get('admins') ?? [])].sort(), ['all', 'ops']);
});

for (const [what, change, expected] of [
  ['a word that is no TOML', ['version = 1', 'version = = 1'], /^1: /],
  ['an unknown key', ['action = "allow"', 'acton = "allow"'], /^16: unknown key "acton"/],
  ['an unknown table', ['[networks]', '[network]'], /^7: unknown key "network"/],
  ['an action that is none', ['"allow"', '"alow"'], /^16: action: Invalid option/],
  ['a missing key', ['action = "allow"\n', ''], /^14: action: /],
  ['another version', ['version = 1', 'version = 2'], /^1: version: /],
  ['a bare name in from', ['"group:staff"', '"staff"'], /^17: expected any, user:NAME or group:NAME, found "staff"/],
  ['a prefix with too many bits', ['"192.0.2.7"', '"192.0.2.7/33"'], /^18: expected any, clients, a network/],
  ['an address that is none', ['"192.0.2.7"', '"192.0.2.777"'], /^18: .*found "192\.0\.2\.777"/],
  ['a network that is not there', ['"office",', '"ofice",'], /^18: .*found "ofice"/],
  ['a service that is not there', ['"web",', '"webb",'], /^19: expected a named service.*found "webb"/],
  ['a port out of range', ['"tcp/443"', '"tcp/70000"'], /^12: .*found "tcp\/70000"/],
  ['ports in the wrong order', ['"tcp/443"', '"tcp/443-80"'], /^12: .*found "tcp\/443-80"/],
  ['a network within itself', ['"wiki.example.org"', '"office"'], /^\d+: the network \w+ contains itself: /],
  ['a group within itself', ['["group:ops"]', '["group:all"]'], /^5: the group all contains itself/],
  ['a member that is no name', ['"ada"', '"a da"'], /^4: expected the name of a user or group:NAME, found "a da"/],
  ['a name that means something else', ['wiki = [', 'any = ['], /^9: any: .*expected another name than/],
  ['an empty list', ['to = ["office", "192.0.2.7"]', 'to = []'], /^18: to: Too small/],
] as const) {
  test(`${what} is an error with its line`, () => {
    const text = GOOD.replace(change[0], change[1]);
    assert.notEqual(text, GOOD);
    const { policy, problems } = readPolicy(text);
    assert.equal(policy, undefined);
    assert.match(problemsOf(text).join('\n'), new RegExp(expected.source, 'm'));
    for (const { severity } of problems) assert.equal(severity, 'error');
  });
}

test('every error is told at once, by line', () => {
  const text = GOOD.replace('"ada"', '"a da"')
    .replace('"tcp/80"', '"tcp/0"')
    .replace('"192.0.2.7"', '"::ffff:1.2.3.4"');
  assert.deepEqual(
    problemsOf(text).map((problem) => problem.split(':')[0]),
    ['4', '12', '18'],
  );
});

for (const [what, when, expected] of [
  ['an hour that is none', '{ from = "25:00", to = "26:00" }', /expected a time of day/],
  ['half of the hours', '{ from = "08:00" }', /expected both from and to/],
  ['no time at all', '{ from = "08:00", to = "08:00" }', /the same time/],
  ['a zone that is none', '{ zone = "Mars/Olympus" }', /expected a time zone/],
  ['a day that is none', '{ days = ["monday"] }', /Invalid option/],
] as const) {
  test(`hours with ${what} are an error with their line`, () => {
    const [problem = ''] = problemsOf(`${GOOD}when = ${when}\n`);
    assert.match(problem, /^20: /);
    assert.match(problem, expected);
  });
}

test('names that stand for more and more names are cut off, not walked to the end', () => {
  const width = 3_000;
  const networks = Array.from({ length: width }, (_, at) => `n${at} = ["big", "10.${at >> 8}.${at & 255}.0/24"]`);
  const big = Array.from({ length: width }, (_, at) => `"172.16.${at >> 8}.${at & 255}"`);
  const text = `version = 1\n[networks]\nbig = [${big.join(',')}]\nall = [${networks.map((_, at) => `"n${at}"`).join(',')}]\n${networks.join('\n')}\n`;
  assert.match(problemsOf(text).join('\n'), /stand for more than 2000000 entries/);
});

test('names that mean something to an object are names like others', () => {
  const text =
    'version = 1\n[networks]\nconstructor = ["10.0.0.1"]\n[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["constructor", "toString"]\n';
  assert.deepEqual(
    problemsOf(text).map((problem) => /found .*/.exec(problem)?.[0]),
    ['found "toString"'],
  );
});

test('rules, settings and tests have their lines, however they are written', () => {
  const usual = `version = 1

  [[ rules ]]
action = "deny"
from = ["any"]
to = ["any"]
[[rules]] # another
action = "deny"
from = ["any"]
to = ["any"]
[[settings]]
for = ["any"]
[tests]
expect = ["a cannot reach 192.0.2.1", "a cannot reach 192.0.2.1",
  "b cannot reach 192.0.2.1"]
`;
  const linesOf = (text: string) => {
    const { policy, problems } = readPolicy(text);
    assert.ok(policy !== undefined, JSON.stringify(problems));
    return [policy.rules, policy.settings, policy.tests].map((list) => list.map(({ line }) => line));
  };
  assert.deepEqual(linesOf(usual), [[3, 7], [11], [14, 14, 15]]);
  const rule = '{ action = "deny", from = ["any"], to = ["any"] }';
  const inline = `version = 1\nrules = [\n  ${rule},\n  ${rule} ]\n[tests]\nexpect = ['a cannot reach 192.0.2.1']\n`;
  assert.deepEqual(linesOf(inline), [[3, 4], [], [6]]);
  const misleading = usual.replace('action = "deny"', 'name = """\n[[rules]]\n"""\naction = "deny"');
  assert.deepEqual(linesOf(misleading)[0], [3, 10]);
});
