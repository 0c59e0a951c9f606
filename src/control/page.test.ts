/** Pages of long lists. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { pageOf } from './page.ts';

const names = Array.from({ length: 25 }, (_, index) => `user${String(index).padStart(2, '0')}`);
const page = (query: Parameters<typeof pageOf>[1]): string[] =>
  pageOf(
    names,
    query,
    (name) => name,
    (name) => [name],
  );

test('pages one after the other give the whole list, once', () => {
  const all: string[] = [];
  for (let after: string | undefined; ; ) {
    const part = page({ after, limit: 10 });
    all.push(...part);
    if (part.length < 10) break;
    after = part.at(-1);
  }
  assert.deepEqual(all, names);
});

test('a search is for a part, whatever its case, and has pages too', () => {
  assert.deepEqual(page({ search: 'USER2' }), ['user20', 'user21', 'user22', 'user23', 'user24']);
  assert.deepEqual(page({ search: 'r2', after: 'user21', limit: 2 }), ['user22', 'user23']);
  assert.deepEqual(page({ search: 'nobody' }), []);
});

test('after an item that is gone there is nothing, rather than everything again', () => {
  assert.deepEqual(page({ after: 'user99' }), []);
});
