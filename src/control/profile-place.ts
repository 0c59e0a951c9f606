/**
 * Where profiles are: files, and those that have been imported under a name, under a client's state directory.
 *
 * Hides how a name is told from a file. It looks into a profile no further than to tell which one it is, so that a command that
 * talks to a client that runs does not have to load what reads the rest.
 */

import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { parse } from 'smol-toml';
import { VpnError } from '../base/errors.ts';

/** Also a part of a file name and of the name of a systemd unit. */
export const NAME = /^[a-z0-9][a-z0-9._-]{0,63}$/;
const ID = /^[0-9a-f]{32}$/;

export function folderOf(state: string): string {
  return join(resolve(state), 'profiles');
}

/** The names of those that have been imported, in order. @throws {VpnError} ERR_PRIVILEGE */
export async function storedNames(state: string): Promise<string[]> {
  try {
    const files = await readdir(folderOf(state));
    return files.flatMap((file) => /^([^.].*)\.toml$/.exec(file)?.[1] ?? []).toSorted();
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    if (errno === 'ENOENT') return [];
    throw new VpnError('ERR_PRIVILEGE', `cannot read ${folderOf(state)}: ${errno}; run as root`, { cause });
  }
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
  const names = isName ? await storedNames(state) : [];
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

/**
 * The id of the profile in a file. The rest of a good file is not looked at.
 *
 * @throws {VpnError} what `readProfile` throws when there is no id in it
 */
export async function profileIdAt(path: string): Promise<string> {
  try {
    const { id } = parse(await readFile(path, 'utf8'));
    if (typeof id === 'string' && ID.test(id)) return id;
  } catch {
    // Whoever reads all of it says better what is wrong.
  }
  const { readProfile } = await import('./profile.ts');
  return (await readProfile(path)).id;
}
