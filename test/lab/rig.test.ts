/** The lab itself: what it makes works, and nothing of it stays. Needs root; says so where it is skipped. */

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { test } from 'node:test';
import { cpuSeconds, LabError, processesOfRun, run, until } from './process.ts';
import { missingForLab, Rig } from './rig.ts';
import { differences } from './snapshot.ts';

const missing = missingForLab();
const options = { skip: missing.length > 0 ? missing.join('; ') : false };

async function pair(rig: Rig) {
  const a = await rig.namespace('a');
  const b = await rig.namespace('b');
  await rig.link(
    { namespace: a, device: 'out0', addresses: ['198.51.100.1/24', '2001:db8::1/64'] },
    { namespace: b, device: 'out0', addresses: ['198.51.100.2/24', '2001:db8::2/64'] },
  );
  return { a, b };
}

test('two namespaces reach each other, and a capture sees the marker that was sent and no other', options, async () => {
  await using rig = await Rig.open();
  const { a, b } = await pair(rig);
  const sent = Buffer.from('c0ffee00c0ffee01c0ffee02c0ffee03', 'hex');
  const unsent = Buffer.from('c0ffee00c0ffee01c0ffee02c0ffee04', 'hex');
  await using capture = await b.capture('out0', { markers: [sent, unsent] });
  await a.run(['ping', '-c', '1', '-W', '2', '2001:db8::2']);
  await a.run(['ping', '-c', '1', '-W', '2', '-p', sent.toString('hex'), '198.51.100.2']);
  await until('the marker', () => capture.seen(sent));
  assert.equal(capture.seen(unsent), false);
  assert.ok((await capture.stop()).packets >= 4);
});

test(
  'a snapshot shows an address, a route, a rule set and a setting that were left, and nothing else',
  options,
  async () => {
    await using rig = await Rig.open();
    const { a } = await pair(rig);
    const before = await a.snapshot();
    assert.deepEqual(differences(before, await a.snapshot()), []);
    await a.run(['ip', 'address', 'add', '192.0.2.1/32', 'dev', 'lo']);
    await a.run(['ip', 'route', 'add', '203.0.113.0/24', 'via', '198.51.100.2']);
    await a.run(['nft', 'add', 'table', 'inet', 'left']);
    await a.setSysctl('net.ipv4.conf.out0.rp_filter', '2');
    const lines = differences(before, await a.snapshot()).join('\n');
    for (const expected of [
      '+ address lo 192.0.2.1/32',
      '+ route - 203.0.113.0/24',
      '"name":"left"',
      'out0.rp_filter',
    ]) {
      assert.ok(lines.includes(expected), `${expected} is not in\n${lines}`);
    }
    await a.run(['ip', 'address', 'delete', '192.0.2.1/32', 'dev', 'lo']);
    await a.run(['ip', 'route', 'delete', '203.0.113.0/24']);
    await a.run(['nft', 'delete', 'table', 'inet', 'left']);
    await a.setSysctl('net.ipv4.conf.out0.rp_filter', '0');
    assert.deepEqual(differences(before, await a.snapshot()), []);
  },
);

test(
  'closing ends processes, removes namespaces and the folder, and names a process that escaped',
  options,
  async () => {
    const rig = await Rig.open();
    const { a } = await pair(rig);
    const started = await a.start(['sleep', '600']);
    await a.run(['setsid', '-f', 'sleep', '601'], { anyStatus: true });
    await until('the escaped process', () => [...processesOfRun(rig.id).values()].includes('sleep 601'));
    const left = await rig.close();
    assert.equal(started.running, false);
    assert.equal(left.length, 1, left.join('\n'));
    assert.match(left[0] ?? '', /sleep 601/);
    assert.equal(existsSync(rig.folder), false);
    assert.equal(existsSync(`/run/netns/${a.name}`), false);
    assert.equal(processesOfRun(rig.id).size, 0);
  },
);

/** A program of its own that opens a lab with a process in it, and then waits. */
async function openElsewhere() {
  const program = `
    import { Rig } from ${JSON.stringify(new URL('./rig.ts', import.meta.url).href)};
    const rig = await Rig.open();
    const a = await rig.namespace('a');
    await a.start(['sleep', '602']);
    console.log(rig.id);
  `;
  const argv = ['--input-type=module', '-e', program];
  const child = spawn(process.execPath, argv, { stdio: ['ignore', 'pipe', 'ignore'] });
  let id = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    id += text;
  });
  await until('the lab to be up', () => id.endsWith('\n'));
  id = id.trim();
  assert.equal(existsSync(`/run/netns/${id}a`), true);
  assert.equal(processesOfRun(id).size, 1);
  return { child, id };
}

test('a signal removes the lab too', options, async () => {
  const { child, id } = await openElsewhere();
  child.kill('SIGINT');
  const [status] = await once(child, 'exit');
  assert.equal(status, 130);
  assert.equal(existsSync(`/run/netns/${id}a`), false);
  assert.equal(processesOfRun(id).size, 0);
});

test('what a killed run has left is removed by the next one', options, async () => {
  const { child, id } = await openElsewhere();
  child.kill('SIGKILL');
  await once(child, 'exit');
  assert.equal(existsSync(`/run/netns/${id}a`), true);
  await using _rig = await Rig.open();
  assert.equal(existsSync(`/run/netns/${id}a`), false);
  assert.equal(processesOfRun(id).size, 0);
});

test('a background process that ends before it is ready is an error with its output', options, async () => {
  await using rig = await Rig.open();
  await assert.rejects(rig.start(['sh', '-c', 'echo told you; exit 3'], { ready: /never/ }), (error) => {
    assert.ok(error instanceof LabError);
    assert.match(error.message, /told you/);
    return true;
  });
});

test('processor time counts the children of a process, living or waited for', options, async () => {
  await using rig = await Rig.open();
  const burn = 'i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done';
  const parent = await rig.start(['sh', '-c', `sh -c '${burn}'; sh -c '${burn}; echo burnt; sleep 60'; true`], {
    ready: /burnt/,
  });
  const total = cpuSeconds([parent.pid]);
  assert.ok(total >= 0.04, `${total} s`);
  await parent.stop();
});

test('a command that fails is an error with what it said', async () => {
  await assert.rejects(run(['sh', '-c', 'echo because >&2; exit 4']), /because/);
  assert.equal((await run(['sh', '-c', 'exit 4'], { anyStatus: true })).status, 4);
  await assert.rejects(run(['/nonexistent']), LabError);
  await assert.rejects(run(['sleep', '60'], { timeoutMs: 50 }), /not done after 50 ms/);
});
