// What a change makes of classes, peers and marks, as text; that the kernel does what the text says: test/lab/policy-*.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../../base/errors.ts';
import { formatPrefix, parseIp, parsePrefix } from '../../ip/address.ts';
import { withAddresses } from '../../policy/kernel-rules.ts';
import { readPolicy } from '../../policy/policy.ts';
import type { AdmittedLease } from '../ipc/ports.ts';
import { AccessTable } from './access-table.ts';

const RULES = `version = 1
[[rules]]
action = "allow"
from = ["any"]
to = ["192.0.2.0/24"]
[[rules]]
action = "allow"
from = ["any"]
to = ["group:ops"]
[[rules]]
action = "deny"
from = ["any"]
to = ["198.51.100.7"]
`;

const KEPT = 4;
let mark = 0;

function tableOf(text: string, admitted: readonly AdmittedLease[], former?: AccessTable): AccessTable {
  const { policy, problems } = readPolicy(text);
  assert.ok(policy !== undefined, JSON.stringify(problems));
  return new AccessTable({
    table: 'inet t',
    rules: withAddresses(policy.rules, () => []),
    allow: 'accept',
    deny: 'drop',
    clients: { 4: 'pool4', 6: 'pool6' },
    networks: ['10.20.0.0/16', 'fd00:20::/48'].map(parsePrefix),
    admitted,
    nextMark: () => ++mark,
    keptClasses: KEPT,
    former,
  });
}

const client = (
  v4: string,
  rules: readonly number[],
  peers: readonly string[] = [],
  networks: readonly number[] = [],
): AdmittedLease => ({
  lease: { v4: parseIp(v4) },
  access: { rules, peers, networks },
});

/** The mark of each client, by its address. */
function marksOf(table: AccessTable): Record<string, string> {
  const line = table.lines().find((one) => one.includes('map marks4')) ?? '';
  return Object.fromEntries(
    [...line.matchAll(/(\d+\.\d+\.\d+\.\d+) : (\d+)/g)].map(([, address, one]) => [address, one]),
  );
}

test('with other rules a client gets another mark, and nobody else does', () => {
  const one = client('10.0.0.1', [0]);
  const two = client('10.0.0.2', [0]);
  const table = tableOf(RULES, [one, two]);
  const before = marksOf(table);
  table.admit([client('10.0.0.1', [0, 2])]);
  const between = marksOf(table);
  assert.notEqual(between['10.0.0.1'], before['10.0.0.1']);
  assert.equal(between['10.0.0.2'], before['10.0.0.2']);
  // Another policy, in which the first client's rules are the same, and the second one's are not.
  const next = tableOf(
    RULES.replace('192.0.2.0/24', '192.0.2.0/25').replace('198.51.100.7', '192.0.2.0/24'),
    [client('10.0.0.1', [0]), client('10.0.0.2', [0])],
    tableOf(
      RULES.replace('192.0.2.0/24', '192.0.2.0/25'),
      [client('10.0.0.1', [0]), client('10.0.0.2', [0, 2])],
      table,
    ),
  );
  const again = tableOf(RULES, [client('10.0.0.1', [0])], next);
  assert.notEqual(marksOf(again)['10.0.0.1'], marksOf(next)['10.0.0.1']);
  const kept = tableOf(
    RULES.replace('198.51.100.7', '198.51.100.8'),
    [client('10.0.0.1', [0]), client('10.0.0.3', [0])],
    again,
  );
  assert.equal(marksOf(kept)['10.0.0.1'], marksOf(again)['10.0.0.1']);
  assert.notEqual(marksOf(kept)['10.0.0.3'], undefined);
});

test('who leaves a group that rules lead to is left by the connections that those rules let through', () => {
  const table = tableOf(RULES, [
    client('10.0.0.1', [0, 1]),
    client('10.0.0.2', [0]),
    client('10.0.0.9', [0], ['group:ops']),
  ]);
  const before = marksOf(table);
  const { commands } = table.admit([client('10.0.0.9', [0])]);
  const after = marksOf(table);
  assert.match(commands, /delete element inet t peers_0_4 \{ 10\.0\.0\.9 \}/);
  assert.notEqual(after['10.0.0.1'], before['10.0.0.1']);
  assert.equal(after['10.0.0.2'], before['10.0.0.2']);
});

test('what was not carried out is undone, classes too', () => {
  const table = tableOf(RULES, [client('10.0.0.1', [0]), client('10.0.0.9', [0, 1], ['group:ops'])]);
  // Maps do not have an order.
  const sorted = () =>
    table.lines().map((line) =>
      line
        .split(/[{},]/)
        .map((word) => word.trim())
        .toSorted()
        .join(),
    );
  const before = sorted();
  table.admit([client('10.0.0.9', [0]), client('10.0.0.5', [0, 1, 2])]).undo();
  table.dismiss({ v4: parseIp('10.0.0.1') }).undo();
  assert.deepEqual(sorted(), before);
  // The class is made again, as it is not in the kernel.
  assert.match(table.admit([client('10.0.0.5', [0, 1, 2])]).commands, /chain class_2 \{/);
});

/** A policy of so many rules of two services each, so that there can be many classes. */
function manyRules(count: number): string {
  const rules = Array.from({ length: count }, (_, at) => {
    return `[[rules]]\naction = "allow"\nfrom = ["any"]\nto = ["192.0.2.${at}"]\nservices = ["tcp/80"]\n`;
  });
  return `version = 1\n${rules.join('')}`;
}

test('of the classes that nobody is in some are kept, and those that have been empty the longest go', () => {
  const count = 3 * KEPT;
  const table = tableOf(manyRules(count), []);
  const comeAndGo = (rule: number) => {
    table.admit([client('10.0.0.1', [rule])]);
    return table.dismiss({ v4: parseIp('10.0.0.1') }).commands;
  };
  for (let rule = 0; rule < KEPT; rule++) assert.doesNotMatch(comeAndGo(rule), /chain/);
  // It is empty again, and not for the longest any more.
  comeAndGo(0);
  const removal = comeAndGo(KEPT);
  assert.deepEqual(removal.trim().split('\n').slice(-5), [
    'flush chain inet t class_1',
    'flush chain inet t class_1_clients',
    'delete chain inet t class_1',
    'delete chain inet t class_1_clients',
    'delete set inet t class_1_0_ports4',
  ]);
  for (let rule = 0; rule < count; rule++) comeAndGo(rule);
  assert.equal(table.classes, KEPT);
  const made = table.lines().filter((line) => /chain class_\d+ /.test(line));
  assert.equal(made.length, KEPT);
  // One that comes is not taken for an empty one, and its number is nobody else's.
  table.admit([client('10.0.0.2', [count - 1])]);
  assert.equal(table.classes, KEPT);
  const chains = table.lines().flatMap((line) => /chain (class_\d+) /.exec(line)?.[1] ?? []);
  assert.equal(new Set(chains).size, chains.length);
});

test('a class that was not taken out after all is there', () => {
  const table = tableOf(manyRules(KEPT + 2), []);
  for (let rule = 0; rule <= KEPT; rule++) {
    table.admit([client('10.0.0.1', [rule])]);
    if (rule < KEPT) table.dismiss({ v4: parseIp('10.0.0.1') });
  }
  const change = table.dismiss({ v4: parseIp('10.0.0.1') });
  assert.match(change.commands, /delete chain inet t class_0\n/);
  change.undo();
  assert.equal(table.classes, KEPT + 1);
  assert.doesNotMatch(table.admit([client('10.0.0.2', [0])]).commands, /chain class_\d+ \{/);
});

test('numbers of rules that are none, or out of order, are refused before anything changes', () => {
  const table = tableOf(RULES, []);
  for (const rules of [[3], [-1], [1, 0], [0, 0], [0.5]]) {
    assert.throws(
      () => table.admit([client('10.0.0.1', rules)]),
      (error) => isVpnError(error, 'ERR_INVARIANT'),
      rules.join(),
    );
  }
  assert.equal(table.dismiss({ v4: parseIp('10.0.0.1') }).commands, '');
});

test('what comes from a network behind a client goes the way of the client, and answers with its mark', () => {
  const table = tableOf(RULES, [client('10.0.0.1', [0], ['group:ops'], [0, 1])]);
  const text = table.lines().join('\n');
  assert.match(
    text,
    /map site_access4 \{ type ipv4_addr : verdict; flags interval; elements = \{ 10\.20\.0\.0\/16 : goto class_0 \}; \}/,
  );
  assert.match(
    text,
    /map site_marks6 \{ type ipv6_addr : mark; flags interval; elements = \{ fd00:20::\/48 : \d+ \}; \}/,
  );
  assert.match(
    text,
    /set site_current4 \{ type ipv4_addr \. mark; flags interval; elements = \{ 10\.20\.0\.0\/16 \. \d+ \}; \}/,
  );
  assert.match(
    text,
    /set peers_0_4 \{ type ipv4_addr; elements = \{ 10\.0\.0\.1 \}; \}/,
    'a group is its clients, not what is behind them',
  );
});

test('a network goes from one client to another in one transaction, and away with its client', () => {
  const behind = (table: AccessTable): Record<string, string[]> =>
    Object.fromEntries([...table.networks].map(([lease, networks]) => [lease, networks.map(formatPrefix)]));
  const table = tableOf(RULES, [client('10.0.0.1', [0], [], [0, 1])]);
  const { commands, undo } = table.admit([client('10.0.0.2', [0, 2], [], [0])]);
  assert.deepEqual(behind(table), { '10.0.0.1': ['fd00:20::/48'], '10.0.0.2': ['10.20.0.0/16'] });
  const removed = commands.indexOf('delete element inet t site_access4 { 10.20.0.0/16 }');
  const added = commands.indexOf('add element inet t site_access4 { 10.20.0.0/16 : goto class_1 }');
  assert.ok(removed >= 0 && added > removed, commands);
  undo();
  assert.deepEqual(behind(table), { '10.0.0.1': ['10.20.0.0/16', 'fd00:20::/48'] });
  const left = table.dismiss({ v4: parseIp('10.0.0.1') });
  assert.match(left.commands, /delete element inet t site_current6 \{ fd00:20::\/48 \. \d+ \}/);
  assert.deepEqual(behind(table), {});
  left.undo();
  assert.deepEqual(Object.keys(behind(table)), ['10.0.0.1']);
  assert.throws(
    () => table.admit([client('10.0.0.3', [0], [], [2])]),
    (error) => isVpnError(error, 'ERR_INVARIANT'),
    'a network that the policy does not have',
  );
  assert.deepEqual(Object.keys(behind(table)), ['10.0.0.1']);
});
