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
import { delimiter, dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { refuseRings } from './cage.ts';
import { adminPath } from './command.ts';

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

/** The options of `setpriv` that are used; util-linux has them all since 2.33. */
const SETPRIV_OPTIONS = [
  '--bounding-set',
  '--inh-caps',
  '--ambient-caps',
  '--no-new-privs',
  '--pdeathsig',
  '--clear-groups',
];

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
   * The command that runs `argv` as `identity`, without any right. `argv[0]` is the path of a program.
   *
   * @param reads further files and folders that the program has to reach
   * @throws {VpnError} ERR_PRIVILEGE naming the folder, when that user cannot reach one of them
   */
  command({ uid, gid }: Identity, argv: readonly [string, ...string[]], reads: readonly string[] = []): LaunchCommand {
    const [file, ...args] = argv;
    for (const path of [file, ...reads]) checkReach({ uid, gid }, path);
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

/** The first on the administrator's path that has the options: other makers' programs of that name lack some. */
async function findSetpriv(): Promise<string | undefined> {
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
