import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseIp } from '../ip/address.ts';
import { kernelRules, withAddresses } from './kernel-rules.ts';
import { readPolicy } from './policy.ts';

function compile(text: string, hosts: Record<string, string[]> = {}) {
  const { policy, problems } = readPolicy(`version = 1\n${text}`);
  assert.ok(policy !== undefined, JSON.stringify(problems));
  return kernelRules({
    classes: new Map([[0, withAddresses(policy.rules, (host) => (hosts[host] ?? []).map(parseIp))]]),
    allow: 'accept',
    deny: 'drop',
    clients: { 4: 'pool4', 6: 'pool6' },
    peers: new Map([
      ['user:bob', { 4: 'bob4', 6: 'bob6' }],
      ['group:staff', { 4: 'staff4', 6: 'staff6' }],
    ]),
  });
}

const rule = (action: string, to: string, services: string): string =>
  `[[rules]]\naction = "${action}"\nfrom = ["any"]\nto = [${to}]\nservices = [${services}]\n`;

test('a rule is looked up with the first of its verdict that no other verdict for its addresses stands before', () => {
  const lines = compile(
    rule('allow', '"10.1.0.0/16"', '"any"') +
      rule('deny', '"10.2.0.0/16", "2001:db8:2::/48"', '"any"') +
      rule('allow', '"10.3.0.0/16"', '"any"') +
      // Within a denial, and around one: both come after it.
      rule('allow', '"10.2.3.0/24"', '"any"') +
      rule('allow', '"2001:db8::/32"', '"any"') +
      rule('deny', '"10.4.0.0/16"', '"any"') +
      // Around what the second layer of permissions has.
      rule('deny', '"10.2.0.0/20"', '"any"') +
      rule('allow', '"10.5.0.0/16"', '"any"'),
  );
  const sets = lines.flatMap((line) => /set (\S+) .* elements = \{ (.*) \}; \}/.exec(line)?.slice(1).join(': ') ?? []);
  assert.deepEqual(sets, [
    'class_0_0_whole4: 10.1.0.0/16, 10.3.0.0/16, 10.5.0.0/16',
    'class_0_1_whole4: 10.2.0.0/16, 10.4.0.0/16',
    'class_0_1_whole6: 2001:db8:2::/48',
    'class_0_2_whole4: 10.2.3.0/24',
    'class_0_2_whole6: 2001:db8::/32',
    'class_0_3_whole4: 10.2.0.0/20',
  ]);
});

test('rules of one verdict in a row are looked up together, in the order of verdicts', () => {
  const lines = compile(
    rule('allow', '"10.1.0.0/16"', '"tcp/80"') +
      rule('allow', '"10.2.0.0/16", "db.example.org"', '"any"') +
      rule('deny', '"10.0.0.0/8"', '"tcp/1-1000"') +
      rule('allow', '"any"', '"icmp/echo"'),
    { 'db.example.org': ['192.0.2.9', '2001:db8::9'] },
  );
  assert.deepEqual(lines.join('\n').split('\n'), [
    '\tset class_0_0_whole4 { type ipv4_addr; flags interval; auto-merge; elements = { 10.2.0.0/16, 192.0.2.9/32 }; }',
    '\tset class_0_0_ports4 { type ipv4_addr . inet_proto . inet_service; flags interval; elements = { 10.1.0.0/16 . 6 . 80 }; }',
    '\tset class_0_0_whole6 { type ipv6_addr; flags interval; auto-merge; elements = { 2001:db8::9/128 }; }',
    '\tset class_0_1_ports4 { type ipv4_addr . inet_proto . inet_service; flags interval; elements = { 10.0.0.0/8 . 6 . 1-1000 }; }',
    '\tset class_0_2_echo4 { type ipv4_addr; flags interval; auto-merge; elements = { 0.0.0.0/0 }; }',
    '\tset class_0_2_echo6 { type ipv6_addr; flags interval; auto-merge; elements = { ::/0 }; }',
    '\tchain class_0 {',
    '\t\tip daddr @pool4 goto class_0_clients',
    '\t\tip6 daddr @pool6 goto class_0_clients',
    '\t\tip daddr @class_0_0_whole4 accept',
    '\t\tip daddr . meta l4proto . th dport @class_0_0_ports4 accept',
    '\t\tip6 daddr @class_0_0_whole6 accept',
    '\t\tip daddr . meta l4proto . th dport @class_0_1_ports4 drop',
    '\t\ticmp type echo-request ip daddr @class_0_2_echo4 accept',
    '\t\ticmpv6 type echo-request ip6 daddr @class_0_2_echo6 accept',
    '\t\tdrop',
    '\t}',
    '\tchain class_0_clients {',
    '\t\tdrop',
    '\t}',
  ]);
});

test('boxes of prefixes and ports that overlap are cut apart, for the kernel takes no others', () => {
  const lines = compile(
    rule('allow', '"10.0.0.0/8"', '"tcp/80-90"') +
      rule('allow', '"10.1.0.0/16"', '"tcp/85-100", "tcp/70", "udp"') +
      rule('allow', '"10.1.2.0/24"', '"tcp/1-65535"') +
      rule('allow', '"10.1.2.3"', '"tcp/22"'),
  );
  const [, elements = ''] = /ports4 .* elements = \{ (.*) \}; \}/.exec(lines.join('\n')) ?? [];
  assert.deepEqual(
    elements.split(', ').sort(),
    [
      '10.0.0.0/8 . 6 . 80-90',
      '10.1.0.0/16 . 17 . 0-65535',
      '10.1.0.0/16 . 6 . 70',
      '10.1.0.0/16 . 6 . 91-100',
      '10.1.2.0/24 . 6 . 1-69',
      '10.1.2.0/24 . 6 . 101-65535',
      '10.1.2.0/24 . 6 . 71-79',
    ].sort(),
  );
});

test('users and groups as destinations are looked for in their sets', () => {
  const lines = compile(
    rule('allow', '"user:bob", "clients"', '"tcp/22"') +
      rule('deny', '"group:staff"', '"any"') +
      rule('allow', '"user:bob", "user:nobody"', '"icmp"'),
  );
  const text = lines.join('\n');
  assert.match(text, /ip daddr @bob4 meta l4proto 6 th dport 22 accept\n/);
  assert.match(text, /ip6 daddr @pool6 meta l4proto 6 th dport 22 accept\n/);
  assert.match(text, /ip daddr @staff4 drop\n/);
  assert.match(text, /ip6 daddr @bob6 meta l4proto 58 accept\n/);
  assert.doesNotMatch(text, /undefined/);
});

test('a name without addresses opens nothing', () => {
  const lines = compile(rule('allow', '"gone.example.org"', '"any"'));
  assert.doesNotMatch(lines.join('\n'), /accept/);
});

test('ten thousand rules of both verdicts make two sets: what the kernel has to do for a set is much more than for an element', () => {
  const rules = Array.from({ length: 10_000 }, (_, at) =>
    rule(at % 7 === 6 ? 'deny' : 'allow', `"10.${at >> 8}.${at & 255}.0/24"`, `"tcp/${1 + at}"`),
  );
  const lines = compile(rules.join(''));
  const sets = lines.flatMap((line) => /set (\S+)/.exec(line)?.[1] ?? []);
  assert.deepEqual(sets, ['class_0_0_ports4', 'class_0_1_ports4']);
  assert.equal(lines.join('\n').match(/10\.\d+\.\d+\.0\/24/g)?.length, 10_000);
});
