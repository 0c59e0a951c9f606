// Where an IPv4 address stands in a network's IPv6 addresses: the examples of RFC 6052 §2.4.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { nat64Prefixes, throughNat64 } from './nat64.ts';

/** Prefix, and what 192.0.2.33 is behind it. */
const EXAMPLES = [
  ['2001:db8::/32', '2001:db8:c000:221::'],
  ['2001:db8:100::/40', '2001:db8:1c0:2:21::'],
  ['2001:db8:122::/48', '2001:db8:122:c000:2:2100::'],
  ['2001:db8:122:300::/56', '2001:db8:122:3c0:0:221::'],
  ['2001:db8:122:344::/64', '2001:db8:122:344:c0:2:2100:0'],
  ['2001:db8:122:344::/96', '2001:db8:122:344::c000:221'],
  ['64:ff9b::/96', '64:ff9b::c000:221'],
] as const;
/** 192.0.0.170 behind the same prefixes. */
const DISCOVERED = [
  '2001:db8:c000:aa::',
  '2001:db8:1c0:0:aa::',
  '2001:db8:122:c000:0:aa00::',
  '2001:db8:122:3c0:0:aa::',
  '2001:db8:122:344:c0::aa00:0',
  '2001:db8:122:344::c000:aa',
  '64:ff9b::c000:aa',
] as const;

for (const [index, [prefix, expected]] of EXAMPLES.entries()) {
  test(`RFC 6052: ${prefix} is found, and 192.0.2.33 behind it`, () => {
    const [found, another] = nat64Prefixes([DISCOVERED[index] ?? '']);
    assert.ok(found !== undefined && another === undefined);
    const address = throughNat64(found, '192.0.2.33');
    const canonical = (text: string) => new URL(`http://[${text}]/`).hostname;
    assert.equal(canonical(address), canonical(expected));
  });
}

test('both well-known addresses of one prefix are one prefix, and whatever is none is skipped', () => {
  assert.equal(
    nat64Prefixes(['64:ff9b::c000:aa', '64:ff9b::c000:ab', '64:ff9b::c000:ac', '192.0.0.170', 'x:']).length,
    1,
  );
  assert.deepEqual(nat64Prefixes([]), []);
});
