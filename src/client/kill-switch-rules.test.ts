// What the text says; what the kernel makes of it: test/lab/client-leaks.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parsePrefix } from '../ip/address.ts';
import { killSwitchRules } from './kill-switch-rules.ts';

const rulesFor = (...open: string[]) => killSwitchRules({ mark: 0x4356, open: open.map(parsePrefix) });

test('both hooks drop what no rule accepts, and every accepting rule names what it is for', () => {
  const text = rulesFor();
  assert.deepEqual(text.match(/hook (output|forward) priority filter; policy \w+/g), [
    'hook output priority filter; policy drop',
    'hook forward priority filter; policy drop',
  ]);
  for (const line of text.split('\n').filter((one) => one.endsWith(' accept'))) {
    assert.match(line, /oifname|meta mark 17238|dport|icmpv6 type|ct state/, line);
  }
  assert.doesNotMatch(text, /ip6? daddr \{ [0-9]/);
});

test('networks that stay open are by family, and none within another', () => {
  const text = rulesFor('192.168.1.0/24', '192.168.1.0/25', '192.168.1.0/24', 'fd00::/64', '10.0.0.0/8');
  assert.match(text, /^ {2}ip daddr \{ 192\.168\.1\.0\/24, 10\.0\.0\.0\/8 \} accept$/m);
  assert.match(text, /^ {2}ip6 daddr \{ fd00::\/64 \} accept$/m);
});
