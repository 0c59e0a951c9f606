import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { guard, placed } from '../../test/support/packets.ts';
import {
  createPrefix,
  formatPrefix,
  type IpAddress,
  type Prefix,
  parseIp,
  parsePrefix,
  prefixContains,
} from './address.ts';
import { RouteTable } from './route-table.ts';

function find<T extends NonNullable<unknown>>(table: RouteTable<T>, address: IpAddress): T | undefined {
  const bytes = placed(address.bytes, 7);
  return table.lookup(guard(bytes, 7, address.bytes.length), 7, address.version);
}

/** A list that is searched from end to end. */
class NaiveRoutes {
  readonly routes = new Map<string, { prefix: Prefix; value: number }>();

  lookup(address: IpAddress): number | undefined {
    let best: { prefix: Prefix; value: number } | undefined;
    for (const route of this.routes.values()) {
      if (prefixContains(route.prefix, address) && route.prefix.length >= (best?.prefix.length ?? 0)) best = route;
    }
    return best?.value;
  }
}

test('the longest prefix wins, a host before all', () => {
  const table = new RouteTable<string>();
  table.set(parsePrefix('0.0.0.0/0'), 'default');
  table.set(parsePrefix('10.0.0.0/8'), 'ten');
  table.set(parsePrefix('10.8.0.0/16'), 'pool');
  table.set(parsePrefix('10.8.0.2/32'), 'host');
  assert.equal(find(table, parseIp('10.8.0.2')), 'host');
  assert.equal(find(table, parseIp('10.8.0.3')), 'pool');
  assert.equal(find(table, parseIp('10.9.0.3')), 'ten');
  assert.equal(find(table, parseIp('192.0.2.1')), 'default');
  assert.equal(find(table, parseIp('::1')), undefined);
  assert.equal(table.size, 4);
});

test('IPv6 prefixes, up to the last bit', () => {
  const table = new RouteTable<string>();
  table.set(parsePrefix('2001:db8::/32'), 'site');
  table.set(parsePrefix('2001:db8::2/127'), 'pair');
  table.set(parsePrefix('2001:db8::2/128'), 'host');
  assert.equal(find(table, parseIp('2001:db8::2')), 'host');
  assert.equal(find(table, parseIp('2001:db8::3')), 'pair');
  assert.equal(find(table, parseIp('2001:db8::4')), 'site');
  assert.equal(find(table, parseIp('2001:db9::')), undefined);
});

test('deleting a prefix uncovers the next shorter one and leaves longer ones', () => {
  const table = new RouteTable<string>();
  table.set(parsePrefix('10.0.0.0/8'), 'ten');
  table.set(parsePrefix('10.8.0.0/16'), 'pool');
  table.set(parsePrefix('10.8.1.0/24'), 'office');
  assert.equal(table.delete(parsePrefix('10.8.0.0/16')), true);
  assert.equal(find(table, parseIp('10.8.0.1')), 'ten');
  assert.equal(find(table, parseIp('10.8.1.1')), 'office');
  assert.equal(table.delete(parsePrefix('10.8.0.0/16')), false);
  assert.equal(table.delete(parsePrefix('10.8.1.0/25')), false);
  assert.equal(table.delete(parsePrefix('10.8.1.0/24')), true);
  assert.equal(table.delete(parsePrefix('10.0.0.0/8')), true);
  assert.equal(find(table, parseIp('10.8.1.1')), undefined);
  assert.equal(table.size, 0);
});

test('the default route is set, replaced and deleted', () => {
  const table = new RouteTable<string>();
  table.set(parsePrefix('0.0.0.0/0'), 'one');
  table.set(parsePrefix('0.0.0.0/0'), 'two');
  assert.equal(table.size, 1);
  assert.equal(find(table, parseIp('198.51.100.1')), 'two');
  assert.equal(table.delete(parsePrefix('0.0.0.0/0')), true);
  assert.equal(find(table, parseIp('198.51.100.1')), undefined);
});

test('it does what a naive search does, in any order of sets and deletes', () => {
  // Addresses of few distinct bits, so that prefixes nest and look-ups hit.
  const bits = fc.constantFrom(0x00, 0x00, 0x01, 0x80, 0xff, 0xc0);
  const address: fc.Arbitrary<IpAddress> = fc.oneof(
    fc
      .array(bits, { minLength: 4, maxLength: 4 })
      .map((octets) => ({ version: 4 as const, bytes: Uint8Array.from(octets) })),
    fc
      .array(bits, { minLength: 16, maxLength: 16 })
      .map((octets) => ({ version: 6 as const, bytes: Uint8Array.from(octets) })),
  );
  const prefix = fc
    .tuple(address, fc.oneof(fc.nat(12), fc.nat(128)))
    .map(([of, length]) => createPrefix(of, Math.min(length, of.bytes.length * 8)));
  const step = fc.record({ prefix, value: fc.option(fc.nat(), { nil: undefined, freq: 2 }), again: fc.nat() });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), fc.array(address, { maxLength: 20 }), (steps, probes) => {
      const table = new RouteTable<number>();
      const oracle = new NaiveRoutes();
      for (const { prefix: drawn, value, again } of steps) {
        // A delete of something drawn at random seldom meets what is there.
        const known = [...oracle.routes.values()];
        const target = value === undefined ? (known[again % (known.length || 1)]?.prefix ?? drawn) : drawn;
        const key = formatPrefix(target);
        if (value === undefined) {
          assert.equal(table.get(target), oracle.routes.get(key)?.value);
          assert.equal(table.delete(target), oracle.routes.delete(key));
        } else {
          table.set(target, value);
          assert.equal(table.get(target), value);
          oracle.routes.set(key, { prefix: target, value });
        }
        assert.equal(table.size, oracle.routes.size);
        for (const probe of [...probes, target.address]) assert.equal(find(table, probe), oracle.lookup(probe));
      }
    }),
    { numRuns: 300 },
  );
});
