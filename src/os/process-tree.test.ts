import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { ProcessTree } from './process-tree.ts';

/** A shell whose child outlives it; says the child's number. */
function startTree(): ChildProcess {
  return spawn('sh', ['-c', 'sleep 600 & echo $!; read line'], { stdio: ['pipe', 'pipe', 'inherit'] });
}

test('a tree is left while any process of it runs, also one whose parent has ended', async () => {
  const root = startTree();
  const [said] = (await once(root.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
  const child = Number(said.toString());
  const tree = new ProcessTree(root.pid ?? 0);
  try {
    assert.deepEqual(
      tree
        .left()
        .map(({ pid }) => pid)
        .toSorted(),
      [root.pid, child].toSorted(),
    );
    assert.match(tree.command, /^sh -c sleep/);
    root.stdin?.end('\n');
    await once(root, 'exit');
    assert.deepEqual(tree.left(), [{ pid: child, command: 'sleep 600' }]);
  } finally {
    process.kill(child, 'SIGKILL');
  }
  while (tree.left().length > 0) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(tree.command, '');
});

test('a process that is not there has no tree', () => {
  assert.deepEqual(new ProcessTree(2 ** 22 + 1).left(), []);
});
