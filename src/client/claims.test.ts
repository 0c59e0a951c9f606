// Which networks of two tunnels cannot both be had.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatPrefix, parseIp, parsePrefix } from '../ip/address.ts';
import { findClash, networksOf } from './claims.ts';

const clash = (own: string[], other: string[]) => {
  const found = findClash(own.map(parsePrefix), other.map(parsePrefix));
  return found && [formatPrefix(found.own), formatPrefix(found.other)];
};

test('networks clash when one holds the other, whichever is larger', () => {
  assert.deepEqual(clash(['10.0.0.0/8'], ['192.0.2.0/24', '10.2.0.0/16']), ['10.0.0.0/8', '10.2.0.0/16']);
  assert.deepEqual(clash(['10.2.0.0/16'], ['10.0.0.0/8']), ['10.2.0.0/16', '10.0.0.0/8']);
  assert.deepEqual(clash(['2001:db8::/32'], ['2001:db8::/32']), ['2001:db8::/32', '2001:db8::/32']);
  assert.equal(clash(['10.0.0.0/9', 'fd00::/9'], ['10.128.0.0/9', 'fd80::/9']), undefined);
  assert.equal(clash([], ['10.0.0.0/8']), undefined);
});

test('a default route, whole or in halves, clashes only with another', () => {
  assert.equal(clash(['0.0.0.0/0', '::/0'], ['10.0.0.0/8', '2001:db8::/32']), undefined);
  assert.equal(clash(['10.0.0.0/8'], ['0.0.0.0/1', '128.0.0.0/1']), undefined);
  assert.deepEqual(clash(['0.0.0.0/0'], ['128.0.0.0/1']), ['0.0.0.0/0', '128.0.0.0/1']);
  assert.equal(clash(['0.0.0.0/0'], ['::/0']), undefined);
});

test('the addresses of both ends are networks, too: two gateways may have the same pool', () => {
  const addresses = { v4: { address: parseIp('10.88.0.2'), gateway: parseIp('10.88.0.1') } };
  const networks = networksOf({ addresses, routes: [parsePrefix('192.0.2.0/24')] });
  assert.deepEqual(networks.map(formatPrefix), ['192.0.2.0/24', '10.88.0.2/32', '10.88.0.1/32']);
});
