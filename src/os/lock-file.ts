/**
 * A lock that is held by one process at a time, and that the kernel takes away with the process.
 *
 * Hides `flock`. The file itself means nothing and stays where it is.
 */

import { type FileHandle, open } from 'node:fs/promises';
import { VpnError } from '../base/errors.ts';
import { Errno, nativeCalls, systemError } from './ffi.ts';

const LOCK_EXCLUSIVE_NONBLOCKING = 2 | 4;

/**
 * Locks a file, which is made when it is not there; its folder has to be.
 *
 * @throws {VpnError} ERR_ALREADY_RUNNING while somebody else holds it; ERR_SYSCALL
 */
export async function lockFile(path: string): Promise<AsyncDisposable> {
  let file: FileHandle;
  try {
    file = await open(path, 'a', 0o600);
  } catch (cause) {
    throw new VpnError('ERR_SYSCALL', `cannot lock ${path}: ${(cause as Error).message}`, { cause });
  }
  try {
    lock(file, path);
  } catch (error) {
    await file.close();
    throw error;
  }
  return { [Symbol.asyncDispose]: () => file.close() };
}

/** As `lockFile`, for a file that is open. @throws {VpnError} */
export function lock(file: FileHandle, path: string): void {
  const calls = nativeCalls();
  if (calls.flock(file.fd, LOCK_EXCLUSIVE_NONBLOCKING) === 0) return;
  const errno = calls.errno();
  if (errno !== Errno.EAGAIN) throw systemError(`locking ${path}`, 'flock', errno);
  throw new VpnError('ERR_ALREADY_RUNNING', `another process holds ${path}; see who with: fuser ${path}`, {
    details: { path },
  });
}
