// What a private file promises: its mode, all or nothing, and nothing left behind.

import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { makePrivateFolder, writePrivateFile } from './private-file.ts';

let folder = '';
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'private-file-'));
});
after(() => rm(folder, { recursive: true }));

test('writes with mode 0600 whatever the mode of the file it replaces', async () => {
  const path = join(folder, 'key');
  await writeFile(path, 'old', { mode: 0o644 });
  await writePrivateFile(path, 'new');
  assert.equal(await readFile(path, 'utf8'), 'new');
  assert.equal((await stat(path)).mode & 0o777, 0o600);
});

test('sets the mode that is asked for', async () => {
  const path = join(folder, 'public');
  await writePrivateFile(path, 'x', { mode: 0o644 });
  assert.equal((await stat(path)).mode & 0o777, 0o644);
});

test('create refuses an existing file, keeps it and leaves no temporary file', async () => {
  const path = join(folder, 'once');
  await writePrivateFile(path, 'first', { when: 'create' });
  await assert.rejects(writePrivateFile(path, 'second', { when: 'create' }), { code: 'ERR_CONFLICT' });
  assert.equal(await readFile(path, 'utf8'), 'first');
  assert.deepEqual(
    (await readdir(folder)).filter((name) => name.endsWith('.tmp')),
    [],
  );
});

test('a target that cannot be replaced is an error and leaves no temporary file', async () => {
  const path = join(folder, 'folder');
  await makePrivateFolder(join(path, 'inside'));
  await assert.rejects(writePrivateFile(path, 'x'), { code: 'ERR_SYSCALL' });
  assert.deepEqual(
    (await readdir(folder)).filter((name) => name.endsWith('.tmp')),
    [],
  );
});

test('a missing folder is an error that names system call and errno', async () => {
  await assert.rejects(
    writePrivateFile(join(folder, 'absent', 'x'), 'x'),
    (error: { code: string; details: object }) => {
      assert.equal(error.code, 'ERR_SYSCALL');
      assert.deepEqual({ ...error.details, path: '' }, { path: '', errno: 'ENOENT', syscall: 'open' });
      return true;
    },
  );
});

test('makes folders with mode 0700', async () => {
  const path = join(folder, 'a', 'b');
  await makePrivateFolder(path);
  assert.equal((await stat(path)).mode & 0o777, 0o700);
  assert.equal((await stat(join(folder, 'a'))).mode & 0o777, 0o700);
});
