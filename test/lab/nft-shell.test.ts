/** Small changes of packet rules by a long-lived `nft`: each is whole or not at all, and one that fails spoils no other. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { missingForLab, Rig } from './rig.ts';

const missing = missingForLab();
const options = { skip: missing.length > 0 ? missing.join('; ') : false };

test(
  'changes are whole or not at all, those that fail spoil no others, and a killed nft is started again',
  options,
  async () => {
    const rig = await Rig.open();
    try {
      const namespace = await rig.namespace('rules');
      const child = new URL('./nft-shell-child.ts', import.meta.url).pathname;
      const node = [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source', child];
      const { stdout } = await namespace.run(node);
      const { outcomes, listed } = JSON.parse(stdout) as { outcomes: string[]; listed: string[] };
      const [two, half, nowhere, nonsense, one, lost, next, late] = outcomes;
      assert.deepEqual([two, one, next], ['done', 'done', 'done']);
      for (const failed of [half, nowhere]) assert.match(failed ?? '', /^nft: .*No such file or directory/);
      assert.match(nonsense ?? '', /^nft: /);
      // It was carried out before the end, or not.
      assert.match(lost ?? '', /^done$|^nft -i: it has ended/);
      assert.match(late ?? '', /after the end/);
      const certain = listed.filter((address) => address !== '192.0.2.6').toSorted();
      assert.deepEqual(certain, ['192.0.2.1', '192.0.2.2', '192.0.2.5', '192.0.2.7']);
    } finally {
      await rig.close();
    }
  },
);
