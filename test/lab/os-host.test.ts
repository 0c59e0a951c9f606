/**
 * Changes to a host come and go without a trace, also when the process dies at any step on the way. Needs root.
 */

import assert from 'node:assert/strict';
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { missingForLab, type Namespace, Rig } from './rig.ts';
import { differences } from './snapshot.ts';

const missing = missingForLab();
const options = { skip: missing.length > 0 ? missing.join('; ') : false };
const CHILD = new URL('./os-host-child.ts', import.meta.url).pathname;

/** What the lab says of a process that a signal ended. */
const KILLED = -1;

interface Lab {
  rig: Rig;
  host: Namespace;
  journal: string;
  child(scenario: string, killAt?: number): Promise<unknown>;
}

/** A host with settings of its own that must survive: an address, a route, forwarding on one device, a redirect setting. */
async function openLab(): Promise<Lab & AsyncDisposable> {
  const rig = await Rig.open();
  const host = await rig.namespace('host');
  const other = await rig.namespace('other');
  await rig.link(
    { namespace: host, device: 'out0', addresses: ['198.51.100.1/24', '2001:db8::1/64'] },
    { namespace: other, device: 'out0', addresses: ['198.51.100.2/24', '2001:db8::2/64'] },
  );
  await host.run(['ip', 'link', 'add', 'down0', 'type', 'veth', 'peer', 'name', 'down1', 'netns', other.name]);
  // A device that has never been up has another queue than one that has been.
  await host.run(['ip', 'link', 'set', 'down0', 'up']);
  await host.run(['ip', 'link', 'set', 'down0', 'down']);
  await host.run(['ip', 'route', 'add', '203.0.114.0/24', 'via', '198.51.100.2']);
  await host.setSysctl('net.ipv4.conf.all.accept_redirects', '0');
  await host.setSysctl('net.ipv4.conf.down0.forwarding', '1');
  await host.setSysctl('net.ipv6.conf.down0.forwarding', '1');
  await host.setSysctl('net.ipv4.conf.all.rp_filter', '1');
  const journal = join(rig.folder, 'run', 'host.journal');
  return {
    rig,
    host,
    journal,
    async child(scenario, killAt = 0) {
      const node = [process.execPath, '--disable-warning=ExperimentalWarning', CHILD];
      const { stdout, status } = await host.run([...node, scenario, journal, String(killAt)], {
        anyStatus: killAt > 0,
      });
      return stdout === '' ? status : JSON.parse(stdout);
    },
    [Symbol.asyncDispose]: () => rig[Symbol.asyncDispose](),
  };
}

test('all changes are there while applied, and nothing of them after', options, async () => {
  await using lab = await openLab();
  const before = await lab.host.snapshot();
  assert.equal(await lab.child('apply'), 'applied');
  const lines = differences(before, await lab.host.snapshot()).join('\n');
  for (const expected of [
    '"name":"hosttest"',
    '"mtu":1400',
    '+ address out0 192.0.2.7/24',
    '+ address out0 2001:db8:7::1/128',
    'net.ipv4.ip_forward: 0 → 1',
    'net.ipv6.conf.all.forwarding: 0 → 1',
    'net.ipv6.conf.out0.accept_ra: 1 → 2',
    'net.ipv4.conf.all.rp_filter: 1 → 0',
    '203.0.113.0/24 198.51.100.2 out0',
    '0.0.0.0/1 - out0 4242 7',
    '2001:db8:9::/48',
    '+ route throw 198.18.0.0/15 - - 4242',
    '+ route unreachable 2001:db8:a::/48 - lo 4242',
    '"fwmark":"0x7","not":null,"priority":4242',
    '"dst":"2001:db8:b::","dstlen":48',
    '"suppress_prefixlen":47',
    '"dport":67',
  ]) {
    assert.ok(lines.includes(expected), `${expected} is not in\n${lines}`);
  }
  assert.equal(await lab.child('recover'), 1);
  assert.deepEqual(differences(before, await lab.host.snapshot()), []);
  assert.equal(existsSync(lab.journal), false);
});

test(
  'what the host should have replaces what it had, without a gap, and not at all when a part of it fails',
  options,
  async () => {
    await using lab = await openLab();
    const before = await lab.host.snapshot();
    assert.deepEqual(await lab.child('become'), [
      '192.0.2.7 mtu 1400 one',
      '192.0.2.7 192.0.2.8 mtu 1300 two',
      'ERR_HOST_APPLY 192.0.2.7 192.0.2.8 mtu 1300 two',
      '192.0.2.8 mtu 1400 two',
      'mtu 1500',
    ]);
    assert.deepEqual(differences(before, await lab.host.snapshot()), []);
  },
);

test('forwarding goes with its reason, other settings in the end', options, async () => {
  await using lab = await openLab();
  const before = await lab.host.snapshot();
  assert.deepEqual(await lab.child('forwarding'), [
    '0 0 0 mtu 1500',
    '1 1 1 mtu 1400',
    '1 0 0 mtu 1400',
    '0 0 0 mtu 1400',
    '0 0 0 mtu 1500',
  ]);
  assert.deepEqual(differences(before, await lab.host.snapshot()), []);
});

test('a process that dies at any step leaves nothing behind after the next start', options, async () => {
  await using lab = await openLab();
  const before = await lab.host.snapshot();
  const steps = await lab.child('run');
  assert.ok(typeof steps === 'number' && steps >= 10, `${steps} steps`);
  assert.deepEqual(differences(before, await lab.host.snapshot()), []);
  for (let step = 1; step <= steps; step += 1) {
    assert.equal(await lab.child('run', step), KILLED, `not killed at step ${step}`);
    await lab.child('recover');
    assert.deepEqual(differences(before, await lab.host.snapshot()), [], `killed at step ${step}`);
    assert.equal(existsSync(lab.journal), false, `killed at step ${step}`);
  }
});

test('a setting that somebody else has changed meanwhile is left alone', options, async () => {
  await using lab = await openLab();
  await lab.child('apply');
  await lab.host.setSysctl('net.ipv4.conf.all.rp_filter', '2');
  await lab.child('recover');
  const { stdout } = await lab.host.run(['sysctl', '-n', 'net.ipv4.conf.all.rp_filter']);
  assert.equal(stdout.trim(), '2');
});

test('a journal of another start of the machine, or of another namespace, is forgotten', options, async () => {
  await using lab = await openLab();
  await lab.child('apply');
  const applied = await lab.host.snapshot();
  for (const field of ['boot', 'netns']) {
    const [header = '', ...rest] = readFileSync(lab.journal, 'utf8').split('\n');
    const foreign = [JSON.stringify({ ...JSON.parse(header), [field]: 'another' }), ...rest].join('\n');
    const copy = `${lab.journal}.copy`;
    writeFileSync(copy, foreign);
    const script = [process.execPath, '--disable-warning=ExperimentalWarning', CHILD];
    await lab.host.run([...script, 'recover', copy]);
    assert.deepEqual(differences(applied, await lab.host.snapshot()), []);
    assert.equal(existsSync(copy), false);
  }
});

test('a line that we did not write is not acted on, and what we wrote still is', options, async () => {
  await using lab = await openLab();
  const before = await lab.host.snapshot();
  await lab.child('apply');
  for (const undo of [
    { op: 'route', device: null, index: 0, args: ['203.0.114.0/24\nlink delete out0'] },
    { op: 'sysctl', key: 'kernel/core_pattern', from: 'x', to: 'y', sideEffects: {} },
    { op: 'sysctl', key: 'net/../kernel/hostname', from: 'x', to: 'y', sideEffects: {} },
    { op: 'nft', table: { family: 'inet', name: 'x; flush ruleset' } },
    { op: 'netns', args: ['exec', 'x', 'sh'] },
  ]) {
    appendFileSync(lab.journal, `${JSON.stringify({ number: 999, undo })}\n`);
    await assert.rejects(lab.child('recover'), /ERR_HOST_APPLY/);
  }
  assert.deepEqual(differences(before, await lab.host.snapshot()), []);
  assert.equal(existsSync(lab.journal), true);
});

test('a change that fails has its own code, and what went before it is taken back', options, async () => {
  await using lab = await openLab();
  const before = await lab.host.snapshot();
  assert.deepEqual(await lab.child('failing'), {
    unknownDevice: 'ERR_HOST_APPLY',
    badRoute: 'ERR_HOST_APPLY',
    badRules: 'ERR_HOST_APPLY',
    held: 'ERR_ALREADY_RUNNING',
  });
  assert.deepEqual(differences(before, await lab.host.snapshot()), []);
});

test('what was on a device that is gone needs no undoing', options, async () => {
  await using lab = await openLab();
  const before = await lab.host.snapshot();
  assert.equal(await lab.child('device'), 'reverted');
  assert.deepEqual(differences(before, await lab.host.snapshot()), []);
});

test('thousands of routes of single peers come and go in order, each confirmed', options, async () => {
  await using lab = await openLab();
  const before = await lab.host.snapshot();
  assert.deepEqual(await lab.child('routes'), {
    added: 2000,
    mixed: ['fulfilled', 'rejected', 'fulfilled', 'fulfilled', 'fulfilled'],
    injected: 'ERR_INVARIANT',
    left: 1,
    late: 'ERR_INVARIANT',
  });
  assert.deepEqual(differences(before, await lab.host.snapshot()), []);
});
