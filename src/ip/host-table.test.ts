import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { guard, placed, tcpPacket } from '../../test/support/packets.ts';
import { formatIp, type IpAddress, parseIp } from './address.ts';
import { HostTable } from './host-table.ts';
import { destinationOffset, sourceOffset } from './packet.ts';

function find<T extends NonNullable<unknown>>(table: HostTable<T>, address: IpAddress): T | undefined {
  const bytes = placed(address.bytes, 5);
  return table.lookup(guard(bytes, 5, address.bytes.length), 5, address.version);
}

test('an address is found straight in a packet', () => {
  const table = new HostTable<string>();
  table.set(parseIp('10.8.0.2'), 'a');
  table.set(parseIp('fd00:8::2'), 'b');
  const packet4 = placed(tcpPacket({ source: '10.8.0.2', destination: '192.0.2.1' }));
  assert.equal(table.lookup(packet4, 16 + sourceOffset(4), 4), 'a');
  assert.equal(table.lookup(packet4, 16 + destinationOffset(4), 4), undefined);
  const packet6 = placed(tcpPacket({ source: 'fd00:8::2', destination: 'fd00:8::3' }));
  assert.equal(table.lookup(packet6, 16 + sourceOffset(6), 6), 'b');
  assert.equal(table.lookup(packet6, 16 + destinationOffset(6), 6), undefined);
});

test('an empty table finds nothing, :: and 0.0.0.0 included', () => {
  const table = new HostTable<number>();
  assert.equal(find(table, parseIp('::')), undefined);
  assert.equal(find(table, parseIp('0.0.0.0')), undefined);
  assert.equal(table.size, 0);
  assert.equal(table.delete(parseIp('::')), false);
});

test('versions are kept apart', () => {
  const table = new HostTable<number>();
  table.set(parseIp('0.0.0.0'), 4);
  assert.equal(find(table, parseIp('::')), undefined);
  table.set(parseIp('::'), 6);
  assert.equal(find(table, parseIp('0.0.0.0')), 4);
  assert.equal(find(table, parseIp('::')), 6);
});

test('it does what a Map of texts does, in any order of sets and deletes', () => {
  // Few addresses, so that they meet again; many enough to grow the table and to collide in it.
  const address = fc
    .tuple(fc.nat(60), fc.boolean())
    .map(([host, v4]) => parseIp(v4 ? `10.8.0.${host}` : `fd00::${host % 3}:${host.toString(16)}`));
  const step = fc.record({ address, value: fc.option(fc.nat(), { nil: undefined, freq: 2 }) });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const table = new HostTable<number>();
      const oracle = new Map<string, number>();
      for (const { address: key, value } of steps) {
        if (value === undefined) {
          assert.equal(table.delete(key), oracle.delete(formatIp(key)));
        } else {
          table.set(key, value);
          oracle.set(formatIp(key), value);
        }
        assert.equal(table.size, oracle.size);
      }
      for (const { address: key } of steps) assert.equal(find(table, key), oracle.get(formatIp(key)));
    }),
    { numRuns: 300 },
  );
});

test('20,000 leases of one /64, every other one removed, are all found', () => {
  const table = new HostTable<number>();
  const address = (index: number): IpAddress => {
    const bytes = parseIp('fd00:8::').bytes.slice();
    new DataView(bytes.buffer).setUint32(12, index);
    return { version: 6, bytes };
  };
  for (let index = 0; index < 20_000; index++) table.set(address(index), index);
  for (let index = 0; index < 20_000; index += 2) assert.ok(table.delete(address(index)));
  assert.equal(table.size, 10_000);
  for (let index = 0; index < 20_000; index++) {
    assert.equal(table.lookup(address(index).bytes, 0, 6), index % 2 === 0 ? undefined : index);
  }
});
