/** `npm run demo -- --json` on this machine: the exact document, with every claim in it true. Needs root and TUN. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { run } from './process.ts';
import { missingForLab } from './rig.ts';

const missing = missingForLab();

test('the demo shows what it claims, and leaves nothing behind', { skip: missing.join('; ') || false }, async () => {
  const script = join(import.meta.dirname, '../../scripts/demo.ts');
  const argv = [
    process.execPath,
    ...process.execArgv.filter((flag) => flag.startsWith('--conditions')),
    script,
    '--json',
  ];
  const { stdout } = await run(argv, { timeoutMs: 150_000 });
  const { tls, rttMs, download, ...rest } = JSON.parse(stdout);
  assert.deepEqual(rest, { ping: { v4: true, v6: true }, markerSeenOutside: false, leftBehind: [] });
  assert.deepEqual(Object.keys(tls), ['protocol', 'cipher', 'group']);
  assert.equal(tls.protocol, 'TLSv1.3');
  assert.equal(download.bytes, 1024 ** 3);
  assert.equal(download.sha256Equal, true);
  assert.ok(download.mbps > 0);
  assert.ok(rttMs.p50 > 0 && rttMs.p99 >= rttMs.p50);
});
