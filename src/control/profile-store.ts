/**
 * Profiles that have been imported: one file each under a client's state directory, kept under a name.
 *
 * Whoever reads one gets what `readProfile` gives.
 */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { VpnError } from '../base/errors.ts';
import { makePrivateFolder } from '../base/private-file.ts';
import { type Profile, readProfile, writeProfile } from './profile.ts';
import { folderOf, NAME, storedNames } from './profile-place.ts';

/** A profile under its name. */
export interface StoredProfile {
  readonly name: string;
  readonly path: string;
  readonly profile: Profile;
}

/**
 * Keeps a profile under a name, in place of an older one with the same id.
 *
 * @param name default: made of what the profile is called
 * @throws {VpnError} ERR_USAGE (no name), ERR_CONFLICT (another profile has it), ERR_SYSCALL
 */
export async function importProfile(state: string, profile: Profile, name = nameFor(profile)): Promise<StoredProfile> {
  checkName(name);
  await makePrivateFolder(folderOf(state));
  const stored = await listProfiles(state);
  const same = stored.find((entry) => entry.name === name);
  if (same !== undefined && same.profile.id !== profile.id) {
    throw new VpnError(
      'ERR_CONFLICT',
      `there is another profile "${name}", for ${same.profile.server.name}; choose a name with --name, or remove it: customvpn client remove ${name}`,
    );
  }
  const elsewhere = stored.find((entry) => entry.name !== name && entry.profile.id === profile.id);
  if (elsewhere !== undefined) {
    throw new VpnError('ERR_CONFLICT', `this profile has been imported already, as "${elsewhere.name}"`);
  }
  const path = join(folderOf(state), `${name}.toml`);
  await writeProfile(path, profile, { when: same === undefined ? 'create' : 'replace' });
  return { name, path, profile };
}

/** All that have been imported, by name. @throws {VpnError} ERR_PRIVILEGE, and what `readProfile` throws */
export async function listProfiles(state: string): Promise<StoredProfile[]> {
  const names = await storedNames(state);
  return await Promise.all(
    names.map(async (name) => {
      const path = join(folderOf(state), `${name}.toml`);
      return { name, path, profile: await readProfile(path) };
    }),
  );
}

/** Forgets an imported profile. @throws {VpnError} ERR_NOT_FOUND, ERR_USAGE */
export async function removeProfile(state: string, name: string): Promise<StoredProfile> {
  checkName(name);
  const stored = (await listProfiles(state)).find((entry) => entry.name === name);
  if (stored === undefined) {
    throw new VpnError('ERR_NOT_FOUND', `there is no imported profile "${name}"; see them: customvpn client profiles`);
  }
  await rm(stored.path, { force: true });
  return stored;
}

function nameFor({ name }: Profile): string {
  return name
    .toLowerCase()
    .replaceAll(/[^a-z0-9._-]+/g, '-')
    .replaceAll(/^[^a-z0-9]+|-+$/g, '')
    .slice(0, 64);
}

function checkName(name: string): void {
  if (NAME.test(name)) return;
  throw new VpnError(
    'ERR_USAGE',
    `a profile's name has up to 64 of a-z, 0-9, dot, hyphen and underscore, and begins with a letter or digit, got "${name}"; give one with --name`,
  );
}
