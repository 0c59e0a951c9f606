/**
 * Profiles that have been imported: one file each under a client's state directory, found by name.
 *
 * Hides where they are and how a name is told from a file. Whoever reads one gets what `readProfile` gives.
 */

import { existsSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { VpnError } from '../base/errors.ts';
import { makePrivateFolder } from '../base/private-file.ts';
import { type Profile, readProfile, writeProfile } from './profile.ts';

/** Also a part of a file name and of the name of a systemd unit. */
const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;

/** A profile under its name. */
export interface StoredProfile {
  readonly name: string;
  readonly path: string;
  readonly profile: Profile;
}

function folderOf(state: string): string {
  return join(resolve(state), 'profiles');
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
  let files: string[];
  try {
    files = await readdir(folderOf(state));
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    if (errno === 'ENOENT') return [];
    throw new VpnError('ERR_PRIVILEGE', `cannot read ${folderOf(state)}: ${errno}; run as root`, { cause });
  }
  const names = files.flatMap((file) => /^([^.].*)\.toml$/.exec(file)?.[1] ?? []).toSorted();
  return await Promise.all(
    names.map(async (name) => {
      const path = join(folderOf(state), `${name}.toml`);
      return { name, path, profile: await readProfile(path) };
    }),
  );
}

/**
 * The path of a profile: of a file, or of one that has been imported under this name.
 *
 * @throws {VpnError} ERR_CONFIG_FILE when there is neither
 */
export async function findProfile(state: string, nameOrFile: string): Promise<string> {
  const stored = join(folderOf(state), `${nameOrFile}.toml`);
  const isName = NAME.test(nameOrFile);
  if (isName && existsSync(stored)) return stored;
  if (existsSync(nameOrFile)) return resolve(nameOrFile);
  const names = isName ? (await listProfiles(state)).map(({ name }) => name) : [];
  const others = names.length === 0 ? 'none has been imported' : `imported are: ${names.join(', ')}`;
  const hint = isName ? `, and no imported profile of this name (${others}); see: customvpn client import --help` : '';
  throw new VpnError('ERR_CONFIG_FILE', `cannot read the profile ${nameOrFile}: there is no such file${hint}`, {
    details: { path: nameOrFile },
  });
}

/** Whether there is a file or an imported profile of this name. */
export function isStoredOrFile(state: string, nameOrFile: string): boolean {
  return (NAME.test(nameOrFile) && existsSync(join(folderOf(state), `${nameOrFile}.toml`))) || existsSync(nameOrFile);
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
