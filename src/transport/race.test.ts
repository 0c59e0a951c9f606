// Who wins when ways to a server are tried beside each other, and when each begins. Time is the test's.

import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { ATTEMPT_DELAY_MS, type Attempt, race, Ways } from './race.ts';

class Track {
  readonly begun: string[] = [];
  readonly calledOff: string[] = [];
  readonly controls = new Map<string, Attempt>();
  readonly #runs = new Map<string, PromiseWithResolvers<string>>();

  readonly attempt = (way: string, control: Attempt): Promise<string> => {
    const run = Promise.withResolvers<string>();
    this.begun.push(way);
    this.controls.set(way, control);
    this.#runs.set(way, run);
    control.signal.addEventListener('abort', () => {
      this.calledOff.push(way);
      run.reject(new Error('called off'));
    });
    return run.promise;
  };

  async win(way: string): Promise<void> {
    this.#runs.get(way)?.resolve(way);
    await turn();
  }

  async fail(way: string): Promise<void> {
    this.#runs.get(way)?.reject(new Error(way));
    await turn();
  }
}

function open(ways: readonly string[], isComplete = true) {
  const source = new Ways<string>();
  source.add(ways);
  if (isComplete) source.complete();
  const track = new Track();
  const running = race(source, track.attempt, (failures) => new Error(failures.map(({ way }) => way).join('+')));
  running.winner.catch(() => {});
  return { source, track, ...running };
}

test('the next begins when one hangs for a quarter of a second, and at once when one fails', async (t) => {
  mock.timers.enable({ apis: ['setTimeout'] });
  t.after(() => mock.timers.reset());
  const { track, winner } = open(['a', 'b', 'c', 'd']);
  assert.deepEqual(track.begun, ['a']);
  mock.timers.tick(ATTEMPT_DELAY_MS - 1);
  assert.deepEqual(track.begun, ['a']);
  mock.timers.tick(1);
  assert.deepEqual(track.begun, ['a', 'b']);
  await track.fail('b');
  assert.deepEqual(track.begun, ['a', 'b', 'c']);
  await track.win('c');
  assert.equal(await winner, 'c');
  assert.deepEqual(track.calledOff, ['a']);
  mock.timers.tick(10_000);
  assert.deepEqual(track.begun, ['a', 'b', 'c'], 'nothing begins after the end');
});

test('one that has got through is alone, but not for ever; when it fails the next begins at once', async (t) => {
  mock.timers.enable({ apis: ['setTimeout'] });
  t.after(() => mock.timers.reset());
  const { track, winner } = open(['a', 'b', 'c']);
  track.controls.get('a')?.gotThrough();
  mock.timers.tick(ATTEMPT_DELAY_MS * 4);
  assert.deepEqual(track.begun, ['a']);
  mock.timers.tick(2000);
  assert.deepEqual(track.begun, ['a', 'b']);
  await track.fail('a');
  assert.deepEqual(track.begun, ['a', 'b', 'c']);
  await track.win('b');
  assert.equal(await winner, 'b');
});

test('ways that are found late are tried, each once; when all have failed their errors are one', async () => {
  const { source, track, winner } = open([], false);
  assert.deepEqual(track.begun, []);
  source.add(['a']);
  assert.deepEqual(track.begun, ['a']);
  await track.fail('a');
  source.add(['a', 'b']);
  assert.deepEqual(track.begun, ['a', 'b']);
  await track.fail('b');
  source.complete();
  await assert.rejects(winner, { message: 'a+b' });
});

test('without any way the race is lost, and one that is called off calls its attempts off', async () => {
  await assert.rejects(open([]).winner, { message: '' });
  const { track, callOff } = open(['a', 'b']);
  callOff();
  assert.deepEqual(track.calledOff, ['a']);
});
