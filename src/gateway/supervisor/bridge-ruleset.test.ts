// The text of the rules. That the kernel takes them and does what they say: test/lab/tap.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseIp } from '../../ip/address.ts';
import { BRIDGE_COUNTERS, bridgeRuleset, SEGMENT_COUNTERS, segmentRuleset } from './bridge-ruleset.ts';

test('every device of a worker is guarded, and every drop is counted under its name', () => {
  const text = bridgeRuleset(['cvtap0', 'cvtap0-1']);
  assert.match(text, /elements = \{ "cvtap0", "cvtap0-1" \}/);
  for (const name of BRIDGE_COUNTERS) assert.match(text, new RegExp(`counter name ${name} drop`));
});

test('on its own segment this host answers echo, neighbours and services, on its own address only', () => {
  const gateways = [parseIp('10.88.0.1'), parseIp('fd88::1')];
  const text = segmentRuleset({ bridge: 'cvbr0', gateways, services: ['53/udp', 'tcp/80'] });
  for (const line of [
    'ip daddr 10.88.0.1 icmp type echo-request accept',
    'ip6 daddr fd88::1 icmpv6 type echo-request accept',
    'ip daddr 10.88.0.1 udp dport 53 accept',
    'ip6 daddr fd88::1 tcp dport 80 accept',
  ]) {
    assert.ok(text.includes(line), line);
  }
  for (const name of SEGMENT_COUNTERS) assert.match(text, new RegExp(`counter name ${name} drop`));
});
