/** The end of one process of a worker and the coming of the next, in either order. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { VpnError } from '../../base/errors.ts';
import { JoinedWorkers } from './joined-workers.ts';

/** Links by process id, what was done in which order, and when a former worker has been put aside. */
class Rig {
  readonly said: string[] = [];
  readonly ends = new Map<number, (error?: VpnError) => void>();
  readonly putAside: (() => void)[] = [];
  readonly workers: JoinedWorkers<{ pid: number; end(): void }>;

  constructor() {
    this.workers = new JoinedWorkers({
      open: ({ pid = 0 }, _fd, closed) => {
        let isClosed = false;
        const end = (error?: VpnError): void => {
          if (isClosed) return;
          isClosed = true;
          closed(error);
        };
        this.ends.set(pid, end);
        return { pid, end: () => end() };
      },
      connect: (worker, { pid }) => void this.said.push(`${pid} is ${worker}`),
      disconnect: async (worker) => {
        this.said.push(`nobody is ${worker}`);
        await new Promise<void>((resolve) => this.putAside.push(resolve));
        this.said.push(`${worker} is put aside`);
      },
      closed: ({ pid }) => void this.said.push(`${pid} has ended`),
      failed: (_worker, error) => assert.fail(String(error)),
    });
  }

  /** Has all that waits for nothing but its turn done. */
  async settle(): Promise<void> {
    for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  }
}

test('one that comes before the end of the former is heard of waits until that one is put aside', async () => {
  const rig = new Rig();
  rig.workers.take({ worker: 1, pid: 100 }, 5);
  rig.workers.take({ worker: 1, pid: 200 }, 6);
  await rig.settle();
  assert.deepEqual(rig.said, ['100 is 1', '100 has ended', 'nobody is 1']);
  // Late, as the kernel tells it.
  rig.ends.get(100)?.();
  rig.putAside.shift()?.();
  await rig.settle();
  assert.deepEqual(rig.said.slice(3), ['1 is put aside', '200 is 1']);
});

test('and so does one that comes while the former is being put aside', async () => {
  const rig = new Rig();
  rig.workers.take({ worker: 1, pid: 100 }, 5);
  await rig.settle();
  rig.ends.get(100)?.();
  rig.workers.take({ worker: 1, pid: 200 }, 6);
  await rig.settle();
  assert.deepEqual(rig.said, ['100 is 1', '100 has ended', 'nobody is 1']);
  rig.putAside.shift()?.();
  await rig.settle();
  assert.deepEqual(rig.said.slice(3), ['1 is put aside', '200 is 1']);
});

test('workers wait for none but their own', async () => {
  const rig = new Rig();
  rig.workers.take({ worker: 0, pid: 100 }, 5);
  rig.workers.take({ worker: 1, pid: 101 }, 6);
  rig.ends.get(100)?.();
  rig.ends.get(101)?.();
  rig.workers.take({ worker: 0, pid: 200 }, 7);
  rig.workers.take({ worker: 1, pid: 201 }, 8);
  await rig.settle();
  rig.putAside[1]?.();
  await rig.settle();
  assert.deepEqual(
    rig.said.filter((what) => what.includes(' is ') && !what.startsWith('nobody')),
    ['100 is 0', '101 is 1', '1 is put aside', '201 is 1'],
  );
});
