// Sealed values open only as what they were sealed as.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import fc from 'fast-check';
import { Vault } from './vault.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'vault-'));
});
after(() => rm(folder, { recursive: true }));

const vault = new Vault(new Uint8Array(32).fill(7));
const secret = new Uint8Array(32).fill(9);

test('opens what it sealed', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), fc.string(), (plain, context) => {
      assert.deepEqual(
        Uint8Array.from(vault.unseal('test', context, vault.seal('test', context, plain))),
        Uint8Array.from(plain),
      );
    }),
  );
});

test('the sealed form does not contain the plain one and is never the same twice', () => {
  const [a, b] = [vault.seal('test', 'x', secret), vault.seal('test', 'x', secret)];
  assert.notDeepEqual(a, b);
  assert.equal(Buffer.from(a).includes(secret), false);
  assert.equal(a.length, 1 + 12 + secret.length + 16);
});

test('every changed bit, another purpose, context, key or length is refused', () => {
  const sealed = vault.seal('test', 'row 1', secret);
  for (let bit = 0; bit < sealed.length * 8; bit++) {
    const changed = Uint8Array.from(sealed);
    changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    assert.throws(() => vault.unseal('test', 'row 1', changed), { code: 'ERR_STORE' });
  }
  for (let length = 0; length < sealed.length; length++) {
    assert.throws(() => vault.unseal('test', 'row 1', sealed.subarray(0, length)), { code: 'ERR_STORE' });
  }
  assert.throws(() => vault.unseal('test', 'row 2', sealed), { code: 'ERR_STORE' });
  assert.throws(() => vault.unseal('other', 'row 1', sealed), { code: 'ERR_STORE' });
  assert.throws(() => new Vault(randomBytes(32)).unseal('test', 'row 1', sealed), { code: 'ERR_STORE' });
});

test('makes the key once, with mode 0600, and reads it again', async () => {
  const path = join(folder, 'new', 'master.key');
  const sealed = (await Vault.open(path)).seal('test', 'x', secret);
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  assert.deepEqual(Uint8Array.from((await Vault.open(path)).unseal('test', 'x', sealed)), secret);
});

test('a key that has to be there is not made anew', async () => {
  const path = join(folder, 'gone', 'master.key');
  await assert.rejects(Vault.open(path, { mustExist: true }), {
    code: 'ERR_STORE',
    message: /is gone: put your copy back/,
  });
  await assert.rejects(stat(path), { code: 'ENOENT' });
});

test('two processes that make the key at once use the same', async () => {
  const path = join(folder, 'race', 'master.key');
  const [a, b] = await Promise.all([Vault.open(path), Vault.open(path)]);
  assert.deepEqual(Uint8Array.from(b.unseal('test', 'x', a.seal('test', 'x', secret))), secret);
});

test('a key that others may read, or that is no key, is refused and kept', async () => {
  const path = join(folder, 'open.key');
  await writeFile(path, randomBytes(32), { mode: 0o600 });
  await chmod(path, 0o640);
  await assert.rejects(Vault.open(path), { code: 'ERR_STORE' });
  const short = join(folder, 'short.key');
  await writeFile(short, 'short', { mode: 0o600 });
  await assert.rejects(Vault.open(short), { code: 'ERR_STORE' });
  assert.equal(await readFile(short, 'utf8'), 'short');
});
