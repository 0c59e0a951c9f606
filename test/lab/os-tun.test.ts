/**
 * The Linux TUN device against the real kernel: each test works a device in a namespace of its own. Needs root.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { missingForLab, Rig } from './rig.ts';

const missing = missingForLab({ setpriv: 'util-linux' });
const options = { skip: missing.length > 0 ? missing.join('; ') : false };
const NODE = [process.execPath, '--disable-warning=ExperimentalWarning'];
const CHILD = new URL('./os-tun-child.ts', import.meta.url).pathname;

async function scenario(name: string, flags: string[] = []): Promise<unknown> {
  await using rig = await Rig.open();
  const namespace = await rig.namespace('tun');
  const { stdout } = await namespace.run([...NODE, ...flags, CHILD, name]);
  return JSON.parse(stdout);
}

interface BulkResult {
  received: number;
  largest: number;
  uso: boolean;
  drops: number;
  counters: { readPackets: number; readBytes: number; writtenPackets: number; writeErrors: number; wakes: number };
}

const TOTAL = 8 * 1024 * 1024;

test('a device exists while it is open, refuses a second opener, and is gone after close', options, async () => {
  assert.deepEqual(await scenario('lifecycle'), {
    name: 'cvt0',
    isThere: true,
    mtu: 1380,
    second: 'ERR_TUN_OPEN',
    badName: 'ERR_TUN_OPEN',
    startedTwice: 'ERR_INVARIANT',
    lateWrite: false,
    isGone: true,
  });
});

test('super-packets cross the device both ways, far larger than its MTU', options, async () => {
  const result = (await scenario('super')) as BulkResult;
  assert.equal(result.received, TOTAL);
  assert.ok(result.largest > 16_000, `largest packet ${result.largest}`);
  assert.equal(result.drops, 0);
  assert.ok(result.counters.readPackets < TOTAL / 4000, `${result.counters.readPackets} packets read`);
  assert.ok(result.counters.wakes <= result.counters.readPackets + 1, 'every wake reads what is there');
});

test('a kernel without UDP segmentation still gives TCP super-packets', options, async () => {
  const result = (await scenario('fallback')) as BulkResult;
  assert.equal(result.uso, false);
  assert.equal(result.received, TOTAL);
  assert.ok(result.largest > 16_000);
});

test('a plain device gives and takes packets of its MTU, checksummed by the kernel', options, async () => {
  const result = (await scenario('plain')) as BulkResult;
  assert.equal(result.received, TOTAL);
  assert.equal(result.largest, 1400);
  assert.equal(result.counters.writeErrors, 0);
});

test('a plain device takes segments that were joined, as the packets that they were', options, async () => {
  const result = (await scenario('joined')) as BulkResult;
  assert.equal(result.received, TOTAL);
  const { readPackets, writtenPackets, writeErrors } = result.counters;
  assert.equal(writeErrors, 0);
  assert.ok(writtenPackets < readPackets / 2, `${readPackets} packets were written in ${writtenPackets}`);
});

test('memory that the kernel is pointed to survives forced collections during traffic', options, async () => {
  const result = (await scenario('collected', ['--expose-gc'])) as BulkResult;
  assert.equal(result.received, TOTAL);
});

test('ticks and promises queued by a reader run at the end of its wake', options, async () => {
  assert.deepEqual(await scenario('ticks'), ['tick', 'soon', 'promise']);
});

test('a device that somebody deletes is reported once and does not spin', options, async () => {
  assert.deepEqual(await scenario('removed'), { codes: ['ERR_SYSCALL'], extraWakes: 0, wrote: false });
});

test('a process may end with an open device', options, async () => {
  assert.deepEqual(await scenario('exits'), { open: true });
});

test('a process without privilege is told what it lacks', options, async () => {
  await using rig = await Rig.open();
  const namespace = await rig.namespace('tun');
  const program = `import('${new URL('../../src/os/tun-linux.ts', import.meta.url).pathname}')
    .then(({ openTun }) => openTun({ name: 'cvt0', superPackets: true, mtu: 1400 }))
    .catch((error) => console.log(error.code));`;
  const unprivileged = ['--reuid=65534', '--regid=65534', '--clear-groups', '--inh-caps=-all', '--bounding-set=-all'];
  const { stdout } = await namespace.run(['setpriv', ...unprivileged, ...NODE, '-e', program]);
  assert.equal(stdout.trim(), 'ERR_PRIVILEGE');
});
