// Imported profiles: found by name or as a file, kept apart, and replaced only by themselves.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { formatProfile, newProfileId, type Profile, parseProfile } from './profile.ts';
import { findProfile, profileIdAt } from './profile-place.ts';
import { importProfile, listProfiles, removeProfile } from './profile-store.ts';

let state = '';
before(() => {
  state = mkdtempSync(join(tmpdir(), 'customvpn-store-'));
});
after(() => rmSync(state, { recursive: true }));

function profile(name: string, id = newProfileId()): Profile {
  const server = { hosts: ['vpn.example.org'], port: 443, name: 'vpn.example.org' };
  return parseProfile(formatProfile({ version: 1, id, name, server }), 'test');
}

test('a profile is kept for its owner only, under a name made of what it is called, and found by it', async () => {
  const { name, path } = await importProfile(state, profile('Ada Lovelace @ home'));
  assert.equal(name, 'ada-lovelace-home');
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.equal(await findProfile(state, name), path);
  assert.deepEqual(
    (await listProfiles(state)).map((stored) => stored.name),
    [name],
  );
});

test('a newer form of the same profile takes its place; another of that name does not', async () => {
  const id = newProfileId();
  await importProfile(state, profile('bob', id), 'work');
  await importProfile(state, profile('bobby', id), 'work');
  assert.equal((await listProfiles(state)).find(({ name }) => name === 'work')?.profile.name, 'bobby');
  await assert.rejects(importProfile(state, profile('eve'), 'work'), { code: 'ERR_CONFLICT' });
  await assert.rejects(importProfile(state, profile('bob', id), 'home'), { code: 'ERR_CONFLICT' });
});

test('a name that could be a path, or none, is refused', async () => {
  for (const name of ['../x', '', '.hidden', 'a/b', 'A', 'x'.repeat(65)]) {
    await assert.rejects(importProfile(state, profile('x'), name), { code: 'ERR_USAGE' }, name);
    await assert.rejects(removeProfile(state, name), { code: 'ERR_USAGE' }, name);
  }
  await assert.rejects(importProfile(state, profile('名')), { code: 'ERR_USAGE' });
});

test('a file is found where it is, a wrong name nowhere', async () => {
  const file = join(state, 'some.toml');
  writeFileSync(file, '');
  assert.equal(await findProfile(state, file), file);
  await assert.rejects(findProfile(state, 'wrok'), (error: Error) => {
    assert.match(error.message, /imported are: ada-lovelace-home, work/);
    return true;
  });
  await assert.rejects(findProfile(state, './no.toml'), { code: 'ERR_CONFIG_FILE' });
});

test('what is removed is gone', async () => {
  await removeProfile(state, 'work');
  await assert.rejects(removeProfile(state, 'work'), { code: 'ERR_NOT_FOUND' });
  await assert.rejects(findProfile(state, 'work'), { code: 'ERR_CONFIG_FILE' });
});

test('which profile a file holds is told without reading the rest; what is wrong with it is told as by who reads it', async () => {
  const path = join(state, 'which.toml');
  const id = newProfileId();
  writeFileSync(path, `id = "${id}"\nsomething = "else"\n`);
  assert.equal(await profileIdAt(path), id);
  for (const text of ['', 'id = "short"\n', 'id = \n']) {
    writeFileSync(path, text);
    await assert.rejects(profileIdAt(path), { name: 'VpnError', kind: 'config' });
  }
});
