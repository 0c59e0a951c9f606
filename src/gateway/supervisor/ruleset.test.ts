// What the rules' text must hold; that the kernel does what the text says is shown in test/lab/os-ruleset.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isVpnError } from '../../base/errors.ts';
import { parseIp, parsePrefix } from '../../ip/address.ts';
import { gatewayRuleset, moveHost, moveNetwork, RULESET_COUNTERS, type RulesetInput } from './ruleset.ts';

function input(over: Partial<RulesetInput> = {}): RulesetInput {
  return {
    devices: [
      { name: 'cvpn0', kind: 'super', blocks: [parsePrefix('10.8.0.0/16'), parsePrefix('fd00:8::/64')], hosts: [] },
      { name: 'cvpn0p', kind: 'plain', blocks: [], hosts: [parseIp('10.8.0.9')] },
    ],
    pool4: parsePrefix('10.8.0.0/16'),
    pool6: parsePrefix('fd00:8::/64'),
    gateway4: parseIp('10.8.0.1'),
    gateway6: parseIp('fd00:8::1'),
    allowed: [parsePrefix('0.0.0.0/0')],
    clientToClient: false,
    services: [{ protocol: 'udp', port: 53 }],
    listenPorts: [443],
    masquerade4: true,
    masquerade6: true,
    generation: 7,
    connectionsPerAddress: 4096,
    ...over,
  };
}

test('every drop is counted under a name of the list, and every name of the list is used', () => {
  const text = [gatewayRuleset(input()), gatewayRuleset(input({ access: [] }))].join('\n');
  const drops = text.split('\n').filter((line) => / drop$/.test(line));
  assert.ok(drops.length > 15);
  for (const line of drops) assert.match(line, /counter name \w+ drop$/);
  const used = new Set([...text.matchAll(/counter name (\w+)/g)].map((match) => match[1]));
  assert.deepEqual([...used].toSorted(), [...RULESET_COUNTERS].toSorted());
});

test('with a policy, classes and not routes say where clients may go, and only a mark of the client lets answers pass', () => {
  const text = gatewayRuleset(input({ access: ['\tmap access4 { type ipv4_addr : verdict; }'], clientToClient: true }));
  assert.doesNotMatch(text, /daddr @allowed|ct mark 7|oifname @tunnels .*accept/);
  const forward = text.slice(text.indexOf('chain from_tunnel'));
  assert.match(
    forward,
    /saddr vmap @access4\n\t\tip6 saddr vmap @access6\n\t\tip saddr vmap @site_access4\n\t\tip6 saddr vmap @site_access6\n\t\tgoto denied/,
  );
  assert.equal(
    forward.match(/ct direction reply ct original ip saddr \. ct mark @current4 counter name replies accept/g)?.length,
    2,
  );
});

test('a gateway of one family has no rule for an address of the other', () => {
  const { pool6: _pool, gateway6: _gateway, ...four } = input();
  const text = gatewayRuleset(four);
  assert.doesNotMatch(text, /fd00:8::1/);
  assert.match(text, /set pool6 \{ type ipv6_addr; flags interval; auto-merge; \}/);
});

test('without masquerade there is no masquerade, and the pool is not closed before the forward chain', () => {
  const text = gatewayRuleset(input({ masquerade4: false, masquerade6: false }));
  assert.doesNotMatch(text, /masquerade/);
  assert.doesNotMatch(text, /daddr @pool/);
});

test('an empty list of listening ports makes no rule of an empty set', () => {
  assert.doesNotMatch(gatewayRuleset(input({ listenPorts: [] })), /\{ *\} counter name drop_port_shadow/);
});

test('moving a host writes both sets, and moving it back works twice', () => {
  assert.equal(
    moveHost(1, parseIp('10.8.0.7'), 'here'),
    'add element inet customvpn hosts4_1 { 10.8.0.7 }\nadd element inet customvpn moved4 { 10.8.0.7 }\n',
  );
  const back = moveHost(1, parseIp('fd00:8::7'), 'back').trim().split('\n');
  assert.deepEqual(
    back.map((line) => line.split(' ').slice(0, 5).join(' ')),
    [
      'add element inet customvpn hosts6_1',
      'add element inet customvpn moved6',
      'delete element inet customvpn hosts6_1',
      'delete element inet customvpn moved6',
    ],
  );
});

test('values that no rule can be made of are refused', () => {
  const device = { name: 'cvpn0', kind: 'super', blocks: [], hosts: [] } as const;
  const { gateway4: _gateway, ...noGateway } = input();
  for (const bad of [
    input({ generation: 0 }),
    input({ generation: 2 ** 32 }),
    input({ generation: 1.5 }),
    input({ devices: [] }),
    input({ devices: [device, device] }),
    input({ devices: [{ ...device, name: 'x" accept; iifname "y' }] }),
    input({ gateway4: parseIp('10.9.0.1') }),
    input({ pool4: parsePrefix('fd00:8::/64'), gateway4: parseIp('fd00:8::1') }),
    noGateway,
  ]) {
    assert.throws(
      () => gatewayRuleset(bad),
      (error) => isVpnError(error, 'ERR_INVARIANT'),
    );
  }
});

test('a network behind a client may speak from its device alone, and is nowhere else when its client is away', () => {
  const network = parsePrefix('10.20.0.0/16');
  const base = input();
  const [primary, plain] = base.devices;
  assert.ok(primary !== undefined && plain !== undefined);
  const text = gatewayRuleset(
    input({
      devices: [primary, { ...plain, networks: [network] }],
      networks: [network, parsePrefix('fd00:20::/48')],
      open: [{ from: parsePrefix('10.1.0.0/16'), to: network }],
      access: [],
    }),
  );
  assert.match(text, /set networks4_0 \{ type ipv4_addr; flags interval; \}/);
  assert.match(text, /set networks4_1 \{ type ipv4_addr; flags interval; elements = \{ 10\.20\.0\.0\/16 \}; \}/);
  assert.match(text, /chain source_1 \{[^}]*ip saddr @networks4_1 return\n[^}]*counter name drop_source drop\n/);
  assert.match(text, /\tiifname @tunnels oifname != @tunnels ip6 daddr @networks6 counter name drop_site_away reject/);
  assert.match(text, /set networks6 \{[^\n]*fd00:20::\/48/);
  assert.match(
    text,
    /set open4 \{ type ipv4_addr \. ipv4_addr; flags interval; elements = \{ 10\.1\.0\.0\/16 \. 10\.20\.0\.0\/16 \}; \}/,
  );
  assert.equal(moveNetwork(3, network, 'here'), 'add element inet customvpn networks4_3 { 10.20.0.0/16 }\n');
  assert.match(
    moveNetwork(3, network, 'away'),
    /^add element .*\ndelete element inet customvpn networks4_3 \{ 10\.20\.0\.0\/16 \}\n$/,
  );
});
