/**
 * Copies of the embedded store: one made while it is in use, and one put in its place.
 *
 * Hides the order of steps that leaves either the old file or the new one, whole, whenever it is interrupted: a copy under
 * another name, its check, then a rename. It must not know what the tables mean, but that sessions end with a restore.
 */

import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fsyncSync,
  linkSync,
  openSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { isVpnError, VpnError } from '../base/errors.ts';
import { Audit, AuditEvent } from './audit.ts';
import { checkCopy, copySqlite, settleSqlite } from './sqlite.ts';
import { openStore } from './store.ts';

export interface StoreCopy {
  /** Absolute. */
  readonly file: string;
  readonly bytes: number;
  readonly users: number;
  /** Where the store is that a restore took the place of. */
  readonly replaced?: string;
}

/**
 * Copies the store at `store` to `file`, mode 0600, as it is at one moment; others may read and write it meanwhile.
 *
 * @throws {VpnError} ERR_CONFLICT when `file` exists and `force` is not set; ERR_STORE when there is no store, it is damaged,
 *   or the copy cannot be written. `file` is then as it was.
 */
export async function backUp(store: string, file: string, options: { force?: boolean } = {}): Promise<StoreCopy> {
  const target = resolve(file);
  if (target === resolve(store)) throw new VpnError('ERR_CONFLICT', `${target} is the store itself; name another file`);
  const temporary = temporaryBeside(target);
  refuseExisting(target, options.force === true);
  try {
    closeSync(openTemporary(temporary));
    copySqlite(store, temporary);
    const users = checkCopy(temporary);
    syncFile(temporary);
    if (options.force === true) renameSync(temporary, target);
    // A rename would replace what has come to be there meanwhile.
    else linkSync(temporary, target);
    syncFile(dirname(target));
    return { file: target, bytes: (await stat(target)).size, users };
  } catch (cause) {
    throw failure(cause, target);
  } finally {
    removeDatabase(temporary);
  }
}

/**
 * Puts the copy `file` in the place of the store at `store`, which nobody may have open. The old store stays beside it.
 * Sessions of then are left out: their keys may have been renewed since.
 *
 * @throws {VpnError} ERR_CONFLICT when there is a store and `force` is not set; ERR_STORE when `file` is not there, damaged,
 *   not a store or of a newer version, or the store is in use. The store is then as it was.
 */
export async function restore(
  file: string,
  store: string,
  { force = false, clock }: { force?: boolean; clock: Clock },
): Promise<StoreCopy> {
  const source = resolve(file);
  const target = resolve(store);
  if (source === target) throw new VpnError('ERR_CONFLICT', `${source} is the store itself; name a backup`);
  if (!existsSync(source))
    throw new VpnError('ERR_STORE', `there is no backup ${source}`, { details: { path: source } });
  refuseExisting(target, force);
  const temporary = temporaryBeside(target);
  try {
    closeSync(openTemporary(temporary));
    copyFileSync(source, temporary);
    const users = named(source, () => checkCopy(temporary));
    const opened = await openStore(temporary).catch((error: unknown) => {
      throw named(source, () => {
        throw error;
      });
    });
    await opened.db.deleteFrom('sessions').execute();
    await (await Audit.open(opened, clock)).append({
      event: AuditEvent.storeRestored,
      detail: { file: basename(source) },
    });
    await opened.close();
    syncFile(temporary);
    const replaced = existsSync(target) ? `${target}.replaced` : undefined;
    if (replaced !== undefined) {
      settleSqlite(target);
      rmSync(replaced, { force: true });
      linkSync(target, replaced);
    }
    // A journal of the old file would be taken for one of the new.
    for (const suffix of ['-wal', '-shm']) rmSync(`${target}${suffix}`, { force: true });
    renameSync(temporary, target);
    syncFile(dirname(target));
    const { size: bytes } = await stat(target);
    return { file: source, bytes, users, ...(replaced === undefined ? {} : { replaced }) };
  } catch (cause) {
    throw failure(cause, target);
  } finally {
    removeDatabase(temporary);
  }
}

function refuseExisting(path: string, force: boolean): void {
  if (force || !existsSync(path)) return;
  throw new VpnError('ERR_CONFLICT', `${path} exists already; add --force to replace it`, { details: { path } });
}

function temporaryBeside(path: string): string {
  return join(dirname(path), `.${basename(path)}.${randomBytes(8).toString('hex')}.tmp`);
}

/** The mode comes before the content. */
function openTemporary(path: string): number {
  return openSync(path, constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, 0o600);
}

function syncFile(path: string): void {
  const file = openSync(path, 'r');
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

function removeDatabase(path: string): void {
  for (const suffix of ['', '-wal', '-shm', '-journal']) rmSync(`${path}${suffix}`, { force: true });
}

/** An operator has to hear the name of the file that was given, not of its copy. */
function named<T>(source: string, check: () => T): T {
  try {
    return check();
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new VpnError('ERR_STORE', `the backup ${source} is not used: ${why.replace(/\S+\.tmp/g, source)}`, {
      cause,
      details: { path: source },
    });
  }
}

function failure(cause: unknown, path: string): VpnError {
  if (isVpnError(cause)) return cause;
  const { code: errno, syscall } = cause as NodeJS.ErrnoException;
  if (errno === 'EEXIST') return new VpnError('ERR_CONFLICT', `${path} exists already; add --force to replace it`);
  return new VpnError('ERR_STORE', `cannot write ${path}: ${syscall ?? 'system call'}: ${errno ?? 'failed'}`, {
    cause,
    details: { path, errno, syscall },
  });
}
