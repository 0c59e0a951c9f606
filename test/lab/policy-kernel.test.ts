/**
 * Random policies in the real kernel: what its rules do to whole and fragmented packets of every kind, with and without
 * extension headers, is what a model says that reads the policy word by word. Needs root.
 */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Report } from './policy-kernel-child.ts';
import { missingForLab, Rig } from './rig.ts';

const missing = missingForLab();
const options = { skip: missing.length > 0 ? missing.join('; ') : false };
const POLICIES = 60;
const FLOWS = 80;

test('the kernel lets through what the model lets through, and nothing else', options, async (t) => {
  const rig = await Rig.open();
  try {
    const gateway = await rig.namespace('gateway');
    await gateway.setSysctl('net.ipv4.ip_forward', '1');
    await gateway.setSysctl('net.ipv6.conf.all.forwarding', '1');
    const seed = Math.trunc(Math.random() * 2 ** 31);
    t.diagnostic(`seed ${seed}`);
    const child = new URL('./policy-kernel-child.ts', import.meta.url).pathname;
    const node = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source', child];
    const { stdout } = await gateway.run([...node, String(seed), String(POLICIES), String(FLOWS)]);
    const { sent, allowed, dresses, differences } = JSON.parse(stdout) as Report;
    t.diagnostic(`${sent} flows, ${allowed} let through; ${JSON.stringify(dresses)}`);
    assert.deepEqual(differences.slice(0, 3), [], `${differences.length} differences with seed ${seed}`);
    assert.equal(sent, POLICIES * FLOWS);
    assert.ok(allowed > sent / 20 && allowed < sent / 1.1, `${allowed} of ${sent} were let through`);
  } finally {
    await rig.close();
  }
});
