// The table against a Map: what it knows, what it forgets, and that it never grows.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { AgeingTable, FOREVER } from './ageing-table.ts';

const KEYS = fc.integer({ min: 0, max: 40 });
const CAPACITY = 16;

test('a table knows what was put in and not yet forgotten, whatever the order, and refuses what is beyond its size', () => {
  const step = fc.oneof(
    fc.record({ do: fc.constant('insert' as const), key: KEYS, owner: fc.integer({ min: 0, max: 3 }) }),
    fc.record({ do: fc.constant('remove' as const), key: KEYS, owner: fc.constant(0) }),
    fc.record({ do: fc.constant('sweep' as const), key: KEYS, owner: fc.integer({ min: 0, max: 3 }) }),
  );
  for (const words of [2, 4] as const) {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), fc.integer(), (steps, seed) => {
        const table = new AgeingTable(words, CAPACITY, seed);
        const model = new Map<number, { owner: number; seen: number }>();
        const find = (key: number): number => (words === 2 ? table.find(key, -key) : table.find(key, 7, -key, 9));
        for (const [now, { do: what, key, owner }] of steps.entries()) {
          const slot = find(key);
          assert.equal(slot >= 0, model.has(key));
          if (what === 'insert' && slot < 0) {
            const fresh = words === 2 ? table.insert(key, -key) : table.insert(key, 7, -key, 9);
            assert.equal(fresh >= 0, model.size < CAPACITY);
            if (fresh < 0) continue;
            table.owner[fresh] = owner;
            table.seen[fresh] = now;
            model.set(key, { owner, seen: now });
          } else if (what === 'remove' && slot >= 0) {
            table.remove(slot);
            model.delete(key);
          } else if (what === 'sweep') {
            const gone: number[] = [];
            table.sweep(now - 20, owner, (one) => gone.push(table.word(one, 0)));
            const expected = [...model].filter(([, row]) => row.seen < now - 20 || row.owner === owner);
            assert.deepEqual(
              gone.sort((a, b) => a - b),
              expected.map(([one]) => one).sort((a, b) => a - b),
            );
            for (const one of gone) model.delete(one);
          }
          assert.equal(table.size, model.size);
          for (const [one, row] of model) {
            const at = find(one);
            assert.deepEqual({ owner: table.owner[at], seen: table.seen[at] }, row);
          }
        }
      }),
    );
  }
});

test('what has no age stays', () => {
  const table = new AgeingTable(2, 8, 1);
  table.seen[table.insert(1, 2)] = FOREVER;
  table.sweep(1e12, -9, () => assert.fail('it was forgotten'));
  assert.ok(table.find(1, 2) >= 0);
});
