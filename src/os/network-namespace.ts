/**
 * A network namespace without a name: it is there as long as a descriptor or a process has it.
 *
 * Hides that a namespace belongs to a thread. This program's main thread enters one for the time of a synchronous call and
 * comes back: children, sockets and devices that are made in that time are inside for good, everything else of this process
 * stays where it was. Nothing on disk, and no mount, keeps the namespace, so the kernel removes it with the last that has
 * it, however that ended. See namespaces(7).
 */

import { closeSync, constants, fstatSync, openSync, type PathLike } from 'node:fs';
import { VpnError } from '../base/errors.ts';
import { checkResult, Errno, nativeCalls, systemError } from './ffi.ts';

const CLONE_NEWNET = 0x4000_0000;
const OWN_NAMESPACE = '/proc/self/ns/net';

export class NetworkNamespace implements Disposable {
  readonly #home: number;
  #fd: number;

  private constructor(home: number, fd: number) {
    this.#home = home;
    this.#fd = fd;
  }

  /**
   * Makes one. It has a loopback device that is down, and no way out.
   *
   * @throws {VpnError} ERR_PRIVILEGE without CAP_SYS_ADMIN, ERR_UNSUPPORTED on a kernel without them
   */
  static create(): NetworkNamespace {
    const home = open(OWN_NAMESPACE);
    try {
      const calls = nativeCalls();
      if (calls.unshare(CLONE_NEWNET) < 0) throw creationError(calls.errno());
      let fd = -1;
      try {
        fd = open(OWN_NAMESPACE);
      } finally {
        comeBack(home);
      }
      return new NetworkNamespace(home, fd);
    } catch (error) {
      closeSync(home);
      throw error;
    }
  }

  /**
   * Takes hold of another process's namespace.
   *
   * @param path as its `path` says
   * @param inode as its `inode` says: another one at that path is refused
   * @throws {VpnError} ERR_NOT_RUNNING when it is not there any more, ERR_PRIVILEGE
   */
  static join(path: string, inode: number): NetworkNamespace {
    const home = open(OWN_NAMESPACE);
    let fd = -1;
    try {
      fd = open(path);
      if (fstatSync(fd).ino !== inode) {
        throw new VpnError('ERR_NOT_RUNNING', `the network namespace at ${path} is another one by now`);
      }
      return new NetworkNamespace(home, fd);
    } catch (error) {
      if (fd >= 0) closeSync(fd);
      closeSync(home);
      throw error;
    }
  }

  /** Where other processes of this machine's root can open it, while this one has it. */
  get path(): string {
    return `/proc/${process.pid}/fd/${this.#fd}`;
  }

  /** What tells it from every other namespace that there is. */
  get inode(): number {
    return fstatSync(this.#fd).ino;
  }

  /**
   * Does something inside. Only what `action` does before it returns is inside: not what it awaits, nor what Node does on
   * other threads, such as looking names up and the asynchronous functions for files.
   *
   * @throws {VpnError} ERR_SYSCALL, and what `action` throws
   */
  inside<T>(action: () => T): T {
    const what = 'entering a network namespace';
    checkResult(nativeCalls().setns(this.#fd, CLONE_NEWNET), what, 'setns');
    try {
      return action();
    } finally {
      comeBack(this.#home);
    }
  }

  /** Lets go of it. Idempotent. */
  [Symbol.dispose](): void {
    if (this.#fd < 0) return;
    closeSync(this.#fd);
    closeSync(this.#home);
    this.#fd = -1;
  }
}

/** A program that cannot come back would go on with its sockets in the wrong network: it must not go on. */
function comeBack(home: number): void {
  if (nativeCalls().setns(home, CLONE_NEWNET) < 0) process.kill(process.pid, 'SIGKILL');
}

function open(path: PathLike): number {
  try {
    return openSync(path, constants.O_RDONLY);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM') {
      throw new VpnError('ERR_PRIVILEGE', `not permitted to enter a network namespace (${message}); run as root`, {
        cause,
      });
    }
    throw new VpnError('ERR_NOT_RUNNING', `there is no network namespace at ${String(path)}: ${message}`, { cause });
  }
}

function creationError(errno: number): VpnError {
  if (errno === Errno.EPERM) {
    return new VpnError(
      'ERR_PRIVILEGE',
      'a network namespace of its own for a command needs CAP_SYS_ADMIN; run as root, for instance with sudo',
    );
  }
  if (errno === Errno.EINVAL) return new VpnError('ERR_UNSUPPORTED', 'this kernel has no network namespaces');
  return systemError('making a network namespace', 'unshare', errno);
}
