/** Work that can wait: all of it is done, in order, and never much in one turn. Time is a number here. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runProgram } from '../../test/support/process.ts';
import { heldBytes, until } from '../../test/support/world.ts';
import { Chores } from './chores.ts';

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

test('a turn of the event loop does as much as its millisecond allows, in order', async () => {
  let now = 0;
  const done: number[] = [];
  const chores = new Chores(() => now);
  for (let number = 0; number < 10; number += 1) {
    chores.add(() => {
      done.push(number);
      now += 0.3;
    });
  }
  assert.deepEqual(done, [], 'not at once');
  await turn();
  assert.deepEqual(done, [0, 1, 2, 3]);
  assert.equal(chores.size, 6);
  await turn();
  assert.equal(done.length, 8);
  await turn();
  assert.deepEqual(done, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.equal(chores.size, 0);
});

test('work that takes longer than a turn has is done alone, and work may add work', async () => {
  let now = 0;
  const done: string[] = [];
  const chores = new Chores(() => now);
  const long = (name: string) => () => {
    done.push(name);
    now += 5;
    if (name === 'first') chores.add(long('added'));
  };
  chores.add(long('first'));
  chores.add(long('second'));
  for (const expected of [['first'], ['first', 'second'], ['first', 'second', 'added']]) {
    await turn();
    assert.deepEqual(done, expected);
  }
  await turn();
  assert.equal(done.length, 3);
});

test('work that throws is an uncaught exception, and keeps nothing else from being done', async () => {
  const { stdout } = await runProgram(process.execPath, [
    '--input-type=module',
    '--eval',
    `import { Chores } from ${JSON.stringify(new URL('chores.ts', import.meta.url).href)};
     process.on('uncaughtException', ({ message }) => console.log(message));
     const chores = new Chores(() => 0);
     chores.add(() => { throw new Error('broken'); });
     chores.add(() => console.log('done'));`,
  ]);
  assert.equal(stdout, 'broken\ndone\n');
});

test('what is done is dropped, also where there is always something that waits', async () => {
  let now = 0;
  const chores = new Chores(() => now);
  const done: WeakRef<object>[] = [];
  let left = 5000;
  let kept: number | undefined;
  const add = (): void => {
    const held = { bytes: new Uint8Array(1000) };
    chores.add(() => {
      now += 0.1;
      done.push(new WeakRef(held));
      left -= 1;
      if (left > 0) add();
      if (left !== 100) return;
      heldBytes();
      kept = done.filter((one) => one.deref() !== undefined).length;
    });
  };
  add();
  add();
  await until(() => left <= 0, 'all of it');
  assert.ok(kept !== undefined && kept < 1000, `${kept} of 4900 are kept`);
});
