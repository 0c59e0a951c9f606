/** Who begins a handshake, and when; and who makes room. Time is a number here. */

import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { Handshakes } from './handshakes.ts';

interface Handshake {
  readonly name: string;
  readonly source: string | undefined;
}

class Rig {
  now = 0;
  readonly begun: string[] = [];
  readonly displaced: string[] = [];
  readonly all: Handshakes<Handshake>;
  readonly #byName = new Map<string, Handshake>();

  constructor({ most = 8, mostPerSource = 4 } = {}) {
    this.all = new Handshakes<Handshake>({
      limits: () => ({ most, mostPerSource }),
      begin: ({ name }) => this.begun.push(name),
      displaced: ({ name }) => this.displaced.push(name),
      now: () => this.now,
    });
  }

  /** The source is what the name begins with. */
  add(...names: string[]): void {
    for (const name of names) {
      const handshake = { name, source: name[0] === '-' ? undefined : name[0] };
      this.#byName.set(name, handshake);
      this.all.add(handshake);
    }
  }

  wait(...names: string[]): void {
    for (const name of names) {
      this.add(name);
      this.all.wait(this.of(name));
    }
  }

  of(name: string): Handshake {
    const handshake = this.#byName.get(name);
    assert.ok(handshake !== undefined);
    return handshake;
  }
}

/** One turn of the event loop. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

async function turns(count: number): Promise<void> {
  for (let at = 0; at < count; at += 1) await turn();
}

test('one handshake begins in each turn of the event loop, however many wait', async () => {
  const rig = new Rig();
  rig.wait('a1', 'b1', 'c1');
  assert.deepEqual(rig.begun, []);
  for (const expected of [['a1'], ['a1', 'b1'], ['a1', 'b1', 'c1']]) {
    await turn();
    assert.deepEqual(rig.begun, expected);
  }
  assert.equal(rig.all.size, 3);
});

test('the source with the fewest begun is the next, and those with as many take turns', async () => {
  const rig = new Rig();
  rig.wait('a1', 'a2', 'a3');
  await turns(2);
  rig.wait('b1', 'b2', 'b3');
  await turns(4);
  assert.deepEqual(rig.begun, ['a1', 'a2', 'b1', 'b2', 'a3', 'b3']);
});

test('while handshakes come to an end, who has said its hello waits and is not sent away', async () => {
  const rig = new Rig({ most: 3 });
  rig.wait('a1', 'b1', 'c1');
  await turns(3);
  rig.wait('d1', 'e1', 'f1');
  await turns(5);
  assert.deepEqual(rig.begun, ['a1', 'b1', 'c1']);
  rig.now = 999;
  assert.equal(rig.all.delete(rig.of('a1')), true);
  await turns(2);
  assert.deepEqual(rig.begun, ['a1', 'b1', 'c1', 'd1']);
  assert.equal(rig.all.delete(rig.of('a1')), false);
  assert.deepEqual(rig.displaced, []);
});

test('who does not go on for a second makes room for one that waits, the oldest of the source with the most', async (t: TestContext) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const rig = new Rig({ most: 3 });
  rig.wait('a1', 'b1', 'b2');
  await turns(3);
  rig.now = 5000;
  await turns(3);
  assert.deepEqual(rig.displaced, [], 'nobody waits');
  rig.now = 0;
  rig.wait('c1', 'd1');
  await turns(3);
  assert.deepEqual(rig.displaced, []);
  rig.now = 1000;
  t.mock.timers.tick(1000);
  await turns(4);
  assert.deepEqual(rig.displaced, ['b1', 'a1']);
  assert.deepEqual(rig.begun, ['a1', 'b1', 'b2', 'c1', 'd1']);
});

test('a source has so many begun; more of it wait, and keep nobody else out', async () => {
  const rig = new Rig({ mostPerSource: 2 });
  rig.wait('a1', 'a2', 'a3');
  await turns(4);
  rig.wait('b1');
  await turns(2);
  assert.deepEqual(rig.begun, ['a1', 'a2', 'b1']);
  rig.all.delete(rig.of('a1'));
  await turns(2);
  assert.deepEqual(rig.begun, ['a1', 'a2', 'b1', 'a3']);
  // Of proxies that speak for themselves there may be any number.
  rig.wait('-1', '-2', '-3');
  await turns(4);
  assert.deepEqual(rig.begun.slice(4), ['-1', '-2', '-3']);
});

test('those who have said nothing are bounded by themselves: the oldest of the source with the most makes room', () => {
  const rig = new Rig({ most: 4, mostPerSource: 3 });
  rig.add('a1', 'b1', 'b2', 'b3');
  assert.equal(rig.all.admits('b'), false);
  assert.equal(rig.all.admits('a'), true);
  rig.add('c1');
  assert.deepEqual(rig.displaced, ['b1']);
  assert.equal(rig.all.admits('b'), true);
  rig.add('c2');
  assert.deepEqual(rig.displaced, ['b1', 'b2']);
  assert.equal(rig.all.size, 4);
});

test('there is room to wait for so many; then the source with the most makes room there, too', async () => {
  const rig = new Rig({ most: 4 });
  rig.wait('a1', 'a2', 'a3', 'a4');
  await turns(4);
  rig.wait('b1', 'c1', 'c2', 'c3');
  assert.deepEqual(rig.displaced, []);
  rig.wait('d1');
  assert.deepEqual(rig.displaced, ['c1']);
  rig.all.delete(rig.of('c2'));
  rig.wait('d2', 'd3');
  assert.deepEqual(rig.displaced, ['c1', 'd1']);
  assert.equal(rig.all.size, 8);
});

test('where there is no room left to wait, nobody is waited for longer than half a second', async (t: TestContext) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const rig = new Rig({ most: 2 });
  rig.wait('a1', 'b1');
  await turns(3);
  rig.now = 600;
  rig.wait('c1');
  await turns(3);
  assert.deepEqual(rig.displaced, [], 'there is room for another one to wait');
  rig.wait('d1');
  await turns(3);
  assert.deepEqual(rig.displaced, ['a1']);
  assert.deepEqual(rig.begun, ['a1', 'b1', 'c1']);
  await turns(3);
  assert.deepEqual(rig.displaced, ['a1'], 'there is room again');
});

test('who makes room is found as fast among many, of proxies or of strangers', () => {
  const flood = (count: number, name: (at: number) => string): number => {
    const rig = new Rig({ most: count, mostPerSource: count });
    for (let at = 0; at < count; at += 1) rig.add(name(at));
    const before = performance.now();
    for (let at = 0; at < 20_000; at += 1) rig.add(name(count + at));
    assert.equal(rig.displaced.length, 20_000);
    return performance.now() - before;
  };
  // Of the last one there are two at most times, behind all others.
  for (const name of [
    (at: number) => `-${at}`,
    (at: number) => (at < 8000 ? `${String.fromCodePoint(0x4e00 + at)}` : `z${at}`),
  ]) {
    flood(100, name);
    const [few, many] = [flood(100, name), flood(8000, name)];
    assert.ok(many < 20 * few + 100, `${few} ms of 100, ${many} ms of 8000`);
  }
});

test('none begins once it is closed', async () => {
  const rig = new Rig();
  rig.wait('a1', 'b1');
  await turn();
  rig.add('c1');
  assert.deepEqual(
    rig.all.close().map(({ name }) => name),
    ['c1', 'b1', 'a1'],
  );
  await turns(2);
  assert.deepEqual(rig.begun, ['a1']);
});
