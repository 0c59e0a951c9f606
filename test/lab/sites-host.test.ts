/** A gateway's host that cannot make the route to a network behind a client: rules and rights are as before, too. Needs root. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { missingForLab, Rig } from './rig.ts';

const missing = missingForLab();
const options = { skip: missing.length > 0 ? missing.join('; ') : false };

test(
  'what fails half way is taken back: another policy, a client with its network, and a pool that holds one',
  options,
  async () => {
    await using rig = await Rig.open();
    const gateway = await rig.namespace('gateway');
    await gateway.run(['ip', 'link', 'set', 'lo', 'up']);
    const child = new URL('./sites-host-child.ts', import.meta.url).pathname;
    const { stdout } = await gateway.run([process.execPath, '--disable-warning=ExperimentalWarning', child]);
    assert.deepEqual(JSON.parse(stdout), {
      enforce: 'ERR_HOST_APPLY',
      isAsBefore: true,
      admit: 'ERR_HOST_APPLY',
      isAdmittedAsBefore: true,
      again: 'done',
      route: '50000',
      pool: 'ERR_CONFIG_VALUE',
    });
  },
);
