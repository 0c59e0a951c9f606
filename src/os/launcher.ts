/**
 * Starts processes without privilege.
 *
 * Hides how rights are given up before a program runs: user and group, no further groups, no capabilities, an empty bounding
 * set, `no_new_privs`, and an end together with the process that started it. `setpriv` of util-linux does all of it in between;
 * where it is missing, Node changes user and group, and the child gives up the rest itself when it enters its cage.
 */

import { execFile } from 'node:child_process';
import { constants, statSync } from 'node:fs';
import { access } from 'node:fs/promises';
import { delimiter, dirname, extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { refuseRings } from './cage.ts';
import { adminPath } from './command.ts';
import { checkResult, nativeCalls } from './ffi.ts';
import type { FileAccess } from './landlock.ts';
import { isSingleFile, partCommand } from './own-program.ts';

/** The user and group of a process. */
export interface Identity {
  readonly uid: number;
  readonly gid: number;
}

/** What to hand to `child_process.spawn`. */
export interface LaunchCommand {
  readonly file: string;
  readonly args: readonly string[];
  readonly options: { readonly uid?: number; readonly gid?: number };
}

/** Files that a confined program can reach beside those of its own: what Node and the C library are made of and look into. */
const EVERYBODY: FileAccess = {
  read: [
    '/usr',
    '/lib',
    '/lib64',
    '/etc/ld.so.cache',
    '/etc/localtime',
    '/etc/ssl/certs',
    '/etc/ssl/openssl.cnf',
    '/etc/pki/ca-trust/extracted',
    '/etc/pki/tls/certs',
    '/etc/pki/tls/openssl.cnf',
    // Looking names up.
    '/etc/hosts',
    '/etc/host.conf',
    '/etc/nsswitch.conf',
    '/etc/gai.conf',
    '/etc/services',
    '/etc/resolv.conf',
    '/run/systemd/resolve',
    '/run/resolvconf',
    // Memory and processors.
    '/proc/self',
    '/proc/meminfo',
    '/sys/devices/system/cpu',
    '/sys/fs/cgroup',
    '/dev/urandom',
  ],
  write: ['/dev/null'],
  // What the kernel starts in a program's stead so that it finds its libraries.
  execute: [
    '/lib64/ld-linux-x86-64.so.2',
    '/lib/ld-linux-aarch64.so.1',
    '/lib/ld-musl-x86_64.so.1',
    '/lib/ld-musl-aarch64.so.1',
  ],
};

const CONFINE = fileURLToPath(new URL(`confine${extname(import.meta.url)}`, import.meta.url));
/** This package, and the packages beside it and above, which it may be made of; a single executable has them in it. */
const CODE = isSingleFile ? [] : codeOf(dirname(dirname(dirname(CONFINE))));

function codeOf(folder: string): string[] {
  const above: string[] = [folder];
  for (let at = folder; ; at = dirname(at)) {
    above.push(join(at, 'node_modules'));
    if (at === dirname(at)) return above;
  }
}

/** Confines a program to files of its own, on a kernel that can; its descriptors have to be named. */
export interface Confinement {
  /** Files and folders beside the program's own package, Node, and what the system has for everybody. */
  readonly read: readonly string[];
  readonly write: readonly string[];
  /** Descriptors that the program inherits, above 2. */
  readonly descriptors: readonly number[];
}

/** The options of `setpriv` that are used; util-linux has them all since 2.33. */
const SETPRIV_OPTIONS = [
  '--bounding-set',
  '--inh-caps',
  '--ambient-caps',
  '--no-new-privs',
  '--pdeathsig',
  '--clear-groups',
];

const PR_SET_PDEATHSIG = 1;
const PR_SET_DUMPABLE = 4;
const SIGKILL = 9n;

/** Makes commands that start a program without privilege. */
export class Launcher {
  readonly #setpriv: string | undefined;

  private constructor(setpriv: string | undefined) {
    this.#setpriv = setpriv;
  }

  /**
   * Prepares this process for starting others: from here on its children get no io_uring, and it gains no rights by
   * programs that give some.
   *
   * @throws {VpnError} ERR_PRIVILEGE when not root; ERR_UNSUPPORTED
   */
  static async open({ log }: { log: Logger }): Promise<Launcher> {
    if (process.getuid?.() !== 0) {
      throw new VpnError('ERR_PRIVILEGE', 'starting processes as other users needs root; run this with sudo');
    }
    refuseRings();
    const setpriv = await findSetpriv();
    if (setpriv === undefined) {
      log.warn('no setpriv (Debian package util-linux): child processes keep a full capability bounding set', {
        component: 'launcher',
      });
    }
    return new Launcher(setpriv);
  }

  /**
   * The command that runs a program as root with no right but to open any file and to become somebody else, by `giveUpRights`.
   *
   * @param confinement the only files that it can reach then, as root and later; it can start nothing but `program[0]`
   */
  commandAsRoot(program: readonly [string, ...string[]], confinement?: Confinement): LaunchCommand {
    const argv = confinement === undefined ? program : confinedProgram(program, confinement);
    const [file, ...args] = argv;
    if (this.#setpriv === undefined) return { file, args, options: {} };
    return {
      file: this.#setpriv,
      args: [
        '--inh-caps=-all',
        '--ambient-caps=-all',
        '--bounding-set=-all,+setuid,+setgid,+dac_override,+dac_read_search',
        '--no-new-privs',
        '--pdeathsig=KILL',
        '--',
        ...argv,
      ],
      options: {},
    };
  }

  /**
   * The command that runs `argv` as `identity`, without any right. `argv[0]` is the path of a program.
   *
   * @param reads further files and folders that the program has to reach
   * @param confinement the only files that it can reach then; it can start nothing but `argv[0]`
   * @throws {VpnError} ERR_PRIVILEGE naming the folder, when that user cannot reach one of them
   */
  command(
    { uid, gid }: Identity,
    program: readonly [string, ...string[]],
    reads: readonly string[] = [],
    confinement?: Confinement,
  ): LaunchCommand {
    for (const path of [program[0], ...reads]) checkReach({ uid, gid }, path);
    const argv = confinement === undefined ? program : confinedProgram(program, confinement);
    const [file, ...args] = argv;
    if (this.#setpriv === undefined) return { file, args, options: { uid, gid } };
    return {
      file: this.#setpriv,
      args: [
        `--reuid=${uid}`,
        `--regid=${gid}`,
        '--clear-groups',
        '--inh-caps=-all',
        '--ambient-caps=-all',
        '--bounding-set=-all',
        '--no-new-privs',
        '--pdeathsig=KILL',
        '--',
        ...argv,
      ],
      options: {},
    };
  }
}

/** The command line that runs a program confined to files, with the rights of whoever starts it. */
export function confinedProgram(
  program: readonly [string, ...string[]],
  confinement: Confinement,
): [string, ...string[]] {
  const files: FileAccess = {
    read: [...EVERYBODY.read, ...CODE, ...confinement.read],
    write: [...EVERYBODY.write, ...confinement.write],
    execute: [...EVERYBODY.execute, program[0]],
  };
  const orders = JSON.stringify({ files, descriptors: confinement.descriptors });
  return [...partCommand('confine', CONFINE), orders, ...program];
}

/**
 * Becomes a user without rights, on every thread and for good, and ends together with whoever started this process. For a
 * program that had to open something first, or that the user could not have started; see `Launcher.commandAsRoot`.
 *
 * @throws {VpnError} ERR_PRIVILEGE
 */
export function giveUpRights({ uid, gid }: Identity): void {
  if (process.getuid?.() !== uid) {
    try {
      process.setgroups?.([]);
      process.setgid?.(gid);
      process.setuid?.(uid);
    } catch (cause) {
      const errno = (cause as NodeJS.ErrnoException).code;
      throw new VpnError('ERR_PRIVILEGE', `cannot become user ${uid}, group ${gid}: ${errno}`, {
        cause,
        details: { uid, gid, errno },
      });
    }
  }
  const calls = nativeCalls();
  // Whoever changes user has both taken away: its own entries in /proc, and the word of its parent's end.
  checkResult(calls.prctl(PR_SET_DUMPABLE, 1n, 0n, 0n, 0n), 'giving up rights', 'prctl PR_SET_DUMPABLE');
  checkResult(calls.prctl(PR_SET_PDEATHSIG, SIGKILL, 0n, 0n, 0n), 'giving up rights', 'prctl PR_SET_PDEATHSIG');
}

/** The first on the administrator's path that has the options: other makers' programs of that name lack some. */
export async function findSetpriv(): Promise<string | undefined> {
  for (const folder of adminPath().split(delimiter)) {
    const path = join(folder, 'setpriv');
    try {
      await access(path, constants.X_OK);
      const { stdout } = await promisify(execFile)(path, ['--help'], { timeout: 5000 });
      if (SETPRIV_OPTIONS.every((option) => stdout.includes(option))) return path;
    } catch {
      // Not here, or not that program.
    }
  }
  return undefined;
}

/** A user who cannot enter a folder on the way would only say that there is no such module. */
function checkReach({ uid, gid }: Identity, path: string): void {
  for (let at = path; ; at = dirname(at)) {
    const stats = statSync(at);
    const mode = stats.uid === uid ? stats.mode >> 6 : stats.gid === gid ? stats.mode >> 3 : stats.mode;
    // Read, and search in folders above.
    const needed = at === path ? (stats.isDirectory() ? 5 : 4) : 1;
    if ((mode & needed) !== needed) {
      const grant = needed === 1 ? 'o+x' : needed === 5 ? 'o+rx' : 'o+r';
      throw new VpnError(
        'ERR_PRIVILEGE',
        `the gateway's processes run as user ${uid}, who cannot reach ${at}, which they need; install elsewhere, or: chmod ${grant} ${at}`,
        { details: { path: at, uid, gid } },
      );
    }
    if (at === dirname(at)) return;
  }
}
