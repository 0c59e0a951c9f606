/**
 * Files that only their owner may read, replaced as a whole or not at all.
 *
 * Hides the order that makes a replacement safe against a crash: a temporary file beside the target, mode first, content,
 * fsync, rename, fsync of the folder. A reader sees the old file or the new one. It must not know what the files mean.
 */

import { randomBytes } from 'node:crypto';
import { type FileHandle, link, mkdir, open, rename, unlink } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { VpnError } from './errors.ts';

const MAX_SECRET_BYTES = 4096;

export interface PrivateFileOptions {
  /** Permission bits; default 0600. */
  readonly mode?: number;
  /** `create`: refuse when the file exists; `replace` (default): take its place. */
  readonly when?: 'create' | 'replace';
  /** False: after a loss of power the file may be gone or empty; for what is of use only until then. Default true. */
  readonly durable?: boolean;
}

/**
 * Writes a whole file, durably.
 *
 * @throws {VpnError} ERR_CONFLICT when it exists and must not; ERR_SYSCALL
 */
export async function writePrivateFile(
  path: string,
  content: string | Uint8Array,
  options: PrivateFileOptions = {},
): Promise<void> {
  const mode = options.mode ?? 0o600;
  const folder = dirname(path);
  const temporary = join(folder, `.${basename(path)}.${randomBytes(8).toString('hex')}.tmp`);
  try {
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.chmod(mode);
      await file.writeFile(content);
      if (options.durable !== false) await file.sync();
    } finally {
      await file.close();
    }
    if (options.when === 'create') {
      // A link refuses an existing target; a rename would replace it.
      await link(temporary, path);
      await unlink(temporary);
    } else {
      await rename(temporary, path);
    }
    if (options.durable !== false) await syncFolder(folder);
  } catch (cause) {
    await unlink(temporary).catch(() => {});
    throw fileError(cause, path);
  }
}

/**
 * Reads a secret that an operator has put into a file: its only line, without the line's end.
 *
 * @throws {VpnError} ERR_CONFIG_FILE when it cannot be read, others may read it, or it does not hold one line of 1 to
 *   4,096 bytes
 */
export async function readSecretFile(path: string): Promise<string> {
  const failure = (why: string, cause?: unknown) =>
    new VpnError('ERR_CONFIG_FILE', `the secret ${path} ${why}`, { cause, details: { path } });
  let file: FileHandle;
  try {
    file = await open(path, 'r');
  } catch (cause) {
    const { code: errno } = cause as NodeJS.ErrnoException;
    throw failure(`cannot be read: ${errno === 'ENOENT' ? 'there is no such file' : String(errno)}`, cause);
  }
  try {
    const { mode } = await file.stat();
    if ((mode & 0o077) !== 0) throw failure(`can be read by others; run: chmod 600 ${path}`);
    const { bytesRead, buffer } = await file.read(Buffer.alloc(MAX_SECRET_BYTES + 3), 0);
    const line = buffer.toString('utf8', 0, bytesRead).replace(/\r?\n$/, '');
    if (line.length === 0 || Buffer.byteLength(line) > MAX_SECRET_BYTES || /[\r\n\0]/.test(line)) {
      throw failure(`is not one line of 1 to ${MAX_SECRET_BYTES} bytes`);
    }
    return line;
  } finally {
    await file.close();
  }
}

/**
 * Makes a folder, and those above it, that only their owner may enter. An existing folder stays as it is.
 *
 * @throws {VpnError} ERR_SYSCALL
 */
export async function makePrivateFolder(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw fileError(cause, path);
  }
}

/** Makes what was renamed, created or removed in a folder survive a loss of power. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r');
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function fileError(cause: unknown, path: string): VpnError {
  const { code: errno, syscall } = cause as NodeJS.ErrnoException;
  if (errno === 'EEXIST') {
    return new VpnError('ERR_CONFLICT', `${path} exists already and is not replaced`, { cause, details: { path } });
  }
  return new VpnError('ERR_SYSCALL', `cannot write ${path}: ${syscall ?? 'system call'}: ${errno ?? 'failed'}`, {
    cause,
    details: { path, errno, syscall },
  });
}
