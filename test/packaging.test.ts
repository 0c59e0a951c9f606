/** What packaging needs of the checkout: scripts that a shell can read, and a Dockerfile that names what exists. */

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, globSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { DEPENDS } from '../scripts/packaging/deb.ts';

const ROOT = dirname(import.meta.dirname);
const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { scripts: Record<string, string> };

test('every script of the packages can be run, and is one for sh', () => {
  const files = globSync('packaging/{deb,acme}/*', { cwd: ROOT });
  assert.ok(files.length >= 4, files.join());
  for (const file of files) {
    assert.ok((statSync(join(ROOT, file)).mode & 0o111) !== 0, file);
    const { status, stderr } = spawnSync('sh', ['-n', join(ROOT, file)], { encoding: 'utf8' });
    assert.equal(status, 0, stderr);
  }
});

test('the Debian package depends on every library that its Node is linked to', {
  skip: process.platform !== 'linux',
}, () => {
  // By what Debian calls the packages; libgcc-s1 comes with libstdc++6.
  const packages: Readonly<Record<string, string>> = {
    'libatomic.so': 'libatomic1',
    'libstdc++.so': 'libstdc++6',
    'libgcc_s.so': 'libstdc++6',
    'libc.so': 'libc6',
    'libm.so': 'libc6',
    'libdl.so': 'libc6',
    'libpthread.so': 'libc6',
  };
  const { stdout } = spawnSync('ldd', [process.execPath], { encoding: 'utf8' });
  const libraries = [...stdout.matchAll(/^\s*(lib\S+?\.so)\S* => /gm)].map(([, library = '']) => library);
  assert.ok(libraries.includes('libc.so'), stdout);
  const depends = DEPENDS.split(', ').map((word) => word.replace(/ .*/, ''));
  for (const library of libraries) assert.ok(depends.includes(packages[library] ?? library), library);
});

test('the Dockerfile copies what exists, runs scripts that exist, and builds on images of a named version', () => {
  const text = readFileSync(join(ROOT, 'Dockerfile'), 'utf8').replaceAll('\\\n', ' ');
  const copied = [...text.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(([, names = '']) => names.split(' '));
  for (const name of copied) assert.ok(existsSync(join(ROOT, name)), name);
  for (const [, name = ''] of text.matchAll(/npm run ([\w:-]+)/g)) assert.ok(name in scripts, name);
  const images = [...text.matchAll(/^FROM (\S+)/gm)].map(([, image]) => image ?? '');
  assert.equal(images.length, 2);
  for (const image of images) assert.match(image, /:(?!latest)[\w.-]+$/);
  const ignored = readFileSync(join(ROOT, '.dockerignore'), 'utf8').split('\n');
  for (const secret of ['certs', '*.key', 'node_modules']) assert.ok(ignored.includes(secret), secret);
});
