// What a network namespace gets for a configuration. That nothing leaves it otherwise: test/lab/exec.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatIp, parseIp, parsePrefix } from '../ip/address.ts';
import type { AcceptedConfig } from '../protocol/config-check.ts';
import type { TunnelWishes } from './host-plan.ts';
import { type NamespacePlan, planNamespace, stepsBetween } from './namespace-plan.ts';

const WISHES: TunnelWishes = { mode: 'auto', include: [], exclude: [], lan: false, dns: [] };

function plan(routes: readonly string[], wishes: Partial<TunnelWishes> = {}, change: Partial<AcceptedConfig> = {}) {
  const config: AcceptedConfig = {
    revision: 1,
    addresses: {
      v4: { address: parseIp('10.88.0.2'), gateway: parseIp('10.88.0.1') },
      v6: { address: parseIp('fd88::2'), gateway: parseIp('fd88::1') },
    },
    routes: routes.map(parsePrefix),
    dns: { servers: [], domains: [] },
    mtu: 1400,
    ping: { intervalMs: 20_000, deadMs: 60_000 },
    rekeyMs: 3_600_000,
    networks: [],
    data: { mode: 'attached', channels: 1 },
    pins: [],
    notices: [],
    ...change,
  };
  return planNamespace('cvpn0', config, { ...WISHES, ...wishes });
}

const routesOf = ({ items }: NamespacePlan): string[] =>
  items.flatMap(({ add: [object, , ...words] }) => (object === 'route' ? [words.join(' ')] : []));

test('what the gateway pushes is reached, and no more', () => {
  const split = plan(['192.0.2.0/24', '2001:db8::/32']);
  assert.equal(split.mode, 'split');
  assert.deepEqual(routesOf(split), [
    '10.88.0.1/32 dev cvpn0',
    '192.0.2.0/24 dev cvpn0',
    'fd88::1/128 dev cvpn0',
    '2001:db8::/32 dev cvpn0',
  ]);
});

test('a default route of one family leaves the other what was pushed of it', () => {
  assert.deepEqual(routesOf(plan(['0.0.0.0/0', '2001:db8::/32'])), [
    '0.0.0.0/0 dev cvpn0',
    'fd88::1/128 dev cvpn0',
    '2001:db8::/32 dev cvpn0',
  ]);
});

test('a family that the tunnel has not is not there, and name servers of it neither', () => {
  const only4 = plan(
    ['0.0.0.0/0', '::/0'],
    {},
    {
      addresses: { v4: { address: parseIp('10.88.0.2'), gateway: parseIp('10.88.0.1') } },
      dns: { servers: [parseIp('fd88::53'), parseIp('192.0.2.53')], domains: ['corp.test'] },
    },
  );
  assert.deepEqual(routesOf(only4), ['0.0.0.0/0 dev cvpn0', '192.0.2.53/32 dev cvpn0']);
  assert.deepEqual(only4.servers.map(formatIp), ['192.0.2.53']);
  assert.deepEqual(only4.domains, ['corp.test']);
});

test('what the profile keeps out of the tunnel is out of reach', () => {
  const routes = routesOf(plan(['0.0.0.0/0'], { exclude: [parsePrefix('192.0.2.0/24')] }));
  assert.deepEqual(routes.at(-1), 'unreachable 192.0.2.0/24');
});

test('without name servers that is said', () => {
  assert.match(plan(['0.0.0.0/0']).notes.join(), /names no name servers.*tunnel\.dns/);
  assert.deepEqual(plan(['0.0.0.0/0'], { dns: [parseIp('192.0.2.53')] }).notes, []);
});

test('from one configuration to another only the difference is made, the new before the old goes', () => {
  const [before, after] = [plan(['192.0.2.0/24']), plan(['198.51.100.0/24'])];
  assert.deepEqual(stepsBetween(before.items, before.items), []);
  assert.deepEqual(
    stepsBetween(before.items, after.items).map((words) => words.join(' ')),
    ['route replace 198.51.100.0/24 dev cvpn0', 'route delete 192.0.2.0/24 dev cvpn0'],
  );
});
