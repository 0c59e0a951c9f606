/** The bad cable does what it says, no more and no less: what is measured over it would be worth nothing else. */

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { Impairment } from './impairment.ts';
import { missingForLab, type Namespace, Rig } from './rig.ts';

const missing = missingForLab({ ethtool: 'ethtool', iperf3: 'iperf3' });
const options = { skip: missing.length > 0 ? missing.join('; ') : false };
const FAR = '10.99.0.2';

let rig: Rig | undefined;
let near: Namespace;
let far: Namespace;
let cable: Impairment;

before(async () => {
  if (missing.length > 0) return;
  rig = await Rig.open();
  near = await rig.namespace('near');
  far = await rig.namespace('far');
  cable = await Impairment.open(rig, 'cable', [
    { namespace: near, device: 'out0', addresses: ['10.99.0.1/24'] },
    { namespace: far, device: 'out0', addresses: [`${FAR}/24`] },
  ]);
  await near.run(['ping', '-n', '-c', '1', '-W', '5', FAR]);
});

after(async () => {
  await rig?.close();
});

interface Pings {
  sent: number;
  received: number;
  duplicates: number;
  times: number[];
  /** Sequence numbers in the order of their answers. */
  order: number[];
}

async function ping(count: number, interval = '0.002'): Promise<Pings> {
  const { stdout } = await near.run(['ping', '-n', '-c', String(count), '-i', interval, '-W', '2', FAR], {
    anyStatus: true,
  });
  const answers = [...stdout.matchAll(/icmp_seq=(\d+) ttl=\d+ time=([\d.]+) ms(.*)/g)];
  const firsts = answers.filter(([, , , rest]) => !rest?.includes('DUP'));
  return {
    sent: count,
    received: firsts.length,
    duplicates: answers.length - firsts.length,
    times: firsts.map(([, , time]) => Number(time)),
    order: firsts.map(([, sequence]) => Number(sequence)),
  };
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

test('without an impairment everything passes, in order', options, async () => {
  await cable.set({});
  const { sent, received, duplicates, order } = await ping(300);
  assert.deepEqual([received, duplicates], [sent, 0]);
  assert.deepEqual(
    order,
    order.toSorted((a, b) => a - b),
  );
});

test('a delay is a delay, each way', options, async () => {
  await cable.set({ delayMs: 25 });
  const { sent, received, times } = await ping(100, '0.01');
  assert.equal(received, sent);
  assert.ok(Math.min(...times) >= 50 && median(times) < 60, `median ${median(times)}, least ${Math.min(...times)}`);
});

test('jitter spreads the delay and keeps the order', options, async () => {
  await cable.set({ delayMs: 25, jitterMs: 15 });
  const { sent, received, times, order } = await ping(100, '0.02');
  assert.equal(received, sent);
  assert.deepEqual(
    order,
    order.toSorted((a, b) => a - b),
  );
  const [least, most] = [Math.min(...times), Math.max(...times)];
  assert.ok(least >= 20 && least < 42 && most > 58, `from ${least} to ${most}`);
});

test('loss is drawn for each frame and each way', options, async () => {
  await cable.set({ loss: 0.2 });
  const [a, b] = await cable.counters();
  const { sent, received } = await ping(300);
  const [c, d] = await cable.counters();
  const lost = [c.lost - a.lost, d.lost - b.lost];
  assert.ok(received > sent * 0.5 && received < sent * 0.78, `${received} of ${sent} answered`);
  for (const count of lost) assert.ok(count > sent * 0.08, `lost ${lost.join(' and ')}`);
});

test('duplicates come twice', options, async () => {
  await cable.set({ duplicate: 0.5 });
  const { sent, received, duplicates } = await ping(200);
  assert.equal(received, sent);
  assert.ok(duplicates > sent / 2, `${duplicates} duplicates`);
});

test('frames that are held back are passed by later ones', options, async () => {
  await cable.set({ reorder: 0.2, reorderMs: 20 });
  const { sent, received, order } = await ping(300);
  assert.equal(received, sent);
  const late = order.filter((sequence, at) => sequence < (order[at - 1] ?? 0)).length;
  assert.ok(late > sent / 20, `${late} came late`);
});

test('a black hole takes everything, until it is closed', options, async () => {
  await cable.set({ isBlackHole: true });
  assert.equal((await ping(5, '0.1')).received, 0);
  await cable.set({});
  assert.equal((await ping(5, '0.1')).received, 5);
});

test('segments pass one by one, and fast enough to measure over', options, async (t) => {
  await cable.set({ delayMs: 10 });
  await using _server = await far.start(['iperf3', '-s', '-1', '--forceflush'], { ready: /Server listening/ });
  const { stdout } = await near.run(['iperf3', '-c', FAR, '-t', '3', '-C', 'cubic', '-J'], { timeoutMs: 60_000 });
  const { bits_per_second } = JSON.parse(stdout).end.sum_received;
  t.diagnostic(`${Math.round(bits_per_second / 1e6)} Mbit/s over 20 ms`);
  const [sent] = await cable.counters();
  assert.equal(sent.overflowed, 0);
  assert.ok(sent.bytes > 1e6);
});
