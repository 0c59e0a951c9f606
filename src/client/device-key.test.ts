// The key of a device: made once, kept for its owner alone, and of a kind that the protocol knows.

import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { DeviceKey } from './device-key.ts';

const folder = await mkdtemp(join(tmpdir(), 'customvpn-key-'));
after(() => rm(folder, { recursive: true }));

test('a key is made where there is none, of mode 0600 whatever the umask, and is the same from then on', async () => {
  const path = join(folder, 'device.key');
  const former = process.umask(0);
  const made = await DeviceKey.open(path).finally(() => process.umask(former));
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  assert.deepEqual(await readdir(folder), ['device.key']);
  const again = await DeviceKey.open(path);
  assert.deepEqual([again.id, again.algorithm], [made.id, 'p256']);
});

test('P-256 and Ed25519 keys are taken, and sign 64 bytes; another key, or no key, is refused and left as it is', async () => {
  const pem = (key: { privateKey: { export(options: object): unknown } }) =>
    String(key.privateKey.export({ type: 'pkcs8', format: 'pem' }));
  const ed25519 = DeviceKey.parse(pem(generateKeyPairSync('ed25519')));
  assert.deepEqual([ed25519.algorithm, ed25519.sign(new Uint8Array(3)).length], ['ed25519', 64]);
  assert.equal(DeviceKey.generate().sign(new Uint8Array(3)).length, 64);
  for (const text of [pem(generateKeyPairSync('ec', { namedCurve: 'P-384' })), 'no key', '']) {
    const path = join(folder, 'other.key');
    await writeFile(path, text);
    await assert.rejects(DeviceKey.open(path), { code: 'ERR_CERT_FILE' });
    assert.equal((await stat(path)).size, text.length);
  }
});
