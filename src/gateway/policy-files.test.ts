/** Replacing a policy file: as a whole, in its place, with its mode, and never over what nobody has read. */

import assert from 'node:assert/strict';
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { policyDigest, replacePolicyFile } from './policy-files.ts';

function folder() {
  const path = mkdtempSync(join(tmpdir(), 'customvpn-policy-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

test('a policy file is replaced where it is, behind a link, with its mode', async () => {
  using place = folder();
  const file = join(place.path, 'real.toml');
  writeFileSync(file, 'old');
  chmodSync(file, 0o640);
  const link = join(place.path, 'policy.toml');
  symlinkSync('real.toml', link);
  await replacePolicyFile(link, 'new', policyDigest('old'));
  assert.equal(readFileSync(file, 'utf8'), 'new');
  assert.equal(statSync(file).mode & 0o777, 0o640);
  assert.deepEqual(readdirSync(place.path).sort(), ['policy.toml', 'real.toml']);
});

test('what somebody has written meanwhile is not overwritten', async () => {
  using place = folder();
  const file = join(place.path, 'policy.toml');
  writeFileSync(file, 'theirs');
  await assert.rejects(replacePolicyFile(file, 'ours', policyDigest('old')), { code: 'ERR_CONFLICT' });
  assert.equal(readFileSync(file, 'utf8'), 'theirs');
  assert.deepEqual(readdirSync(place.path), ['policy.toml']);
});

test('a file that is not there is not made', async () => {
  using place = folder();
  await assert.rejects(replacePolicyFile(join(place.path, 'x'), 'ours', policyDigest('')), { code: 'ERR_CONFIG_FILE' });
  assert.deepEqual(readdirSync(place.path), []);
});
