/** What packaging needs of the checkout: scripts that a shell can read, and a Dockerfile that names what exists. */

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, globSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';

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
