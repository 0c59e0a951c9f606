/**
 * How this program starts itself again, and where it finds what belongs to it.
 *
 * Hides in which form it is installed: as files that Node runs, of a checkout or a package, where each of its processes has a
 * script of its own; or as a single executable, in which Node, all scripts and all further files are one file.
 */

import { getAsset, getAssetKeys, isSea } from 'node:sea';

/** A process that this program is made of, by its name; `bin/single.ts` has their scripts. */
export type Part = 'auth' | 'worker' | 'worker-spare' | 'hasher' | 'hooks' | 'confine';

/** The first word of a single executable that is to be one of its parts; the second says which. */
export const PART_WORD = '--part';

/** Whether this program is a single executable. */
export const isSingleFile: boolean = isSea();

/** The command line of a part, before its own arguments; `script`: where it is if it is a file. */
export function partCommand(part: Part, script: string): [string, ...string[]] {
  if (isSingleFile) return [process.execPath, PART_WORD, part];
  return [process.execPath, '--disable-warning=ExperimentalWarning', '--conditions=customvpn-source', script];
}

/** The command line that starts this program as it was started, before its arguments. */
export function sameProgram(): [string, ...string[]] {
  if (isSingleFile) return [process.execPath];
  return [process.execPath, ...process.execArgv, process.argv[1] ?? ''];
}

/** The text of a file that a single executable has in it. */
export function embeddedFile(name: string): string | undefined {
  return isSingleFile && getAssetKeys().includes(name) ? getAsset(name, 'utf8') : undefined;
}
