/**
 * Which files a process can reach (Landlock, landlock(7)), for processes that open some.
 *
 * Hides rule sets, their versions and how restrictions come to hold on every thread: the kernel puts them on the calling
 * thread only, so they are taken on before a program is started in place of the one that runs (`confine.ts`). Restrictions
 * are for good, and children have them too.
 */

import { fstatSync } from 'node:fs';
import { checkResult, Errno, NativeMemory, nativeCalls, systemError } from './ffi.ts';
import { callByName, setNoNewPrivileges } from './syscall.ts';

/** Absolute paths of files and folders; a folder stands for all below it. What is not there is left out. */
export interface FileAccess {
  readonly read: readonly string[];
  /** Also to make, rename and remove. */
  readonly write: readonly string[];
  /** Also to read. */
  readonly execute: readonly string[];
}

const CREATE_RULESET_VERSION = 1n;
const RULE_PATH_BENEATH = 1n;
const O_PATH_CLOEXEC = 0x20_0000 | 0x8_0000;

const Access = {
  execute: 1 << 0,
  writeFile: 1 << 1,
  readFile: 1 << 2,
  readDir: 1 << 3,
  removeDir: 1 << 4,
  removeFile: 1 << 5,
  makeChar: 1 << 6,
  makeDir: 1 << 7,
  makeRegular: 1 << 8,
  makeSocket: 1 << 9,
  makeFifo: 1 << 10,
  makeBlock: 1 << 11,
  makeSymlink: 1 << 12,
  refer: 1 << 13,
  truncate: 1 << 14,
  ioctlDevice: 1 << 15,
} as const;

const READ = Access.readFile | Access.readDir;
const WRITE =
  READ |
  Access.writeFile |
  Access.removeDir |
  Access.removeFile |
  Access.makeDir |
  Access.makeRegular |
  Access.makeSocket |
  Access.refer |
  Access.truncate;
const EXECUTE = READ | Access.execute;
/** What a rule about a single file may say. */
const OF_FILES = Access.execute | Access.writeFile | Access.readFile | Access.truncate | Access.ioctlDevice;

/** Signals to, and abstract sockets of, processes that are not confined like this one. */
const SCOPE_ALL = 3n;

/** Bits that a version of the kernel's interface knows. */
function handledBy(version: number): number {
  if (version >= 5) return 0xffff;
  if (version >= 3) return 0x7fff;
  return version === 2 ? 0x3fff : 0x1fff;
}

/** The version of Landlock that this kernel has; 0: none. */
export function landlockVersion(): number {
  const version = callByName('landlock_create_ruleset', 0n, 0n, CREATE_RULESET_VERSION);
  return version === undefined || version < 0 ? 0 : version;
}

/**
 * Restricts this thread, and the program that it starts in place of this one, to these files. Other threads go on as before.
 *
 * @returns whether that was done; false on a kernel without Landlock
 * @throws {VpnError} ERR_SYSCALL
 */
export function restrictFiles({ read, write, execute }: FileAccess): boolean {
  const version = landlockVersion();
  if (version === 0) return false;
  const calls = nativeCalls();
  const what = 'restricting the files of this process';
  const handled = handledBy(version);
  // struct landlock_ruleset_attr: files u64, network u64 (version 4), scopes u64 (version 6).
  const attributes = new NativeMemory(24);
  attributes.view.setBigUint64(0, BigInt(handled), true);
  attributes.view.setBigUint64(16, version >= 6 ? SCOPE_ALL : 0n, true);
  const size = version >= 6 ? 24n : version >= 4 ? 16n : 8n;
  const created = callByName('landlock_create_ruleset', attributes.address, size) ?? -1;
  const ruleset = checkResult(created, what, 'landlock_create_ruleset');
  try {
    for (const [paths, access] of [
      [read, READ],
      [write, WRITE],
      [execute, EXECUTE],
    ] as const) {
      for (const path of paths) allow(ruleset, path, access & handled, what);
    }
    setNoNewPrivileges(what);
    checkResult(callByName('landlock_restrict_self', BigInt(ruleset)) ?? -1, what, 'landlock_restrict_self');
  } finally {
    calls.close(ruleset);
  }
  return true;
}

function allow(ruleset: number, path: string, access: number, what: string): void {
  const calls = nativeCalls();
  const fd = calls.open(path, O_PATH_CLOEXEC, 0);
  if (fd < 0) {
    const errno = calls.errno();
    // What this user cannot reach needs no rule.
    if (errno === Errno.ENOENT || errno === Errno.EACCES) return;
    throw systemError(`${what}: ${path}`, 'open', errno);
  }
  try {
    // struct landlock_path_beneath_attr, packed: access u64, descriptor i32.
    const rule = new NativeMemory(16);
    rule.view.setBigUint64(0, BigInt(fstatSync(fd).isDirectory() ? access : access & OF_FILES), true);
    rule.view.setInt32(8, fd, true);
    const added = callByName('landlock_add_rule', BigInt(ruleset), RULE_PATH_BENEATH, rule.address) ?? -1;
    checkResult(added, `${what}: ${path}`, 'landlock_add_rule');
  } finally {
    calls.close(fd);
  }
}
