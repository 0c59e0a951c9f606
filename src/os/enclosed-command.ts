/**
 * Runs somebody's command in a network namespace and with name servers of its own, as if it had been typed without us.
 *
 * Hides how standard streams, terminal, signals and status are passed through, whose rights the command has, and that it ends
 * with us. It inherits no descriptor but the standard ones, and nothing in its environment is ours. Must not know what the
 * namespace is connected to.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, constants, existsSync, readdirSync, readFileSync, statSync, writeSync } from 'node:fs';
import { constants as osConstants } from 'node:os';
import { delimiter, join } from 'node:path';
import { VpnError } from '../base/errors.ts';
import { Repeat } from '../base/repeat.ts';
import { runCommand } from './command.ts';
import { nativeCalls } from './ffi.ts';
import { findSetpriv } from './launcher.ts';
import { NetworkNamespace } from './network-namespace.ts';
import { PrivateMounts } from './private-mounts.ts';

/** Where a command runs. */
export interface Enclosure {
  /** Of the namespace, as `NetworkNamespace` says. */
  readonly path: string;
  readonly inode: number;
  /** The file that it sees as `/etc/resolv.conf`. */
  readonly resolvConf: string;
}

/** A user of this machine, from its user database. */
export interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
  readonly shell: string;
}

/** As shells report a program that cannot be started. */
const NOT_EXECUTABLE = 126;
const NOT_FOUND = 127;
const SIGNAL_BASE = 128;
/** The terminal sends these to every process in the foreground, so the command has them already. */
const TERMINAL_SIGNALS = ['SIGINT', 'SIGQUIT'] as const;
const PASSED_SIGNALS = ['SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGALRM', 'SIGWINCH'] as const;
const RENEW_MS = 1000;
const F_SETFD = 2;
const FD_CLOEXEC = 1n;

/**
 * Looks a user up by name or number.
 *
 * @throws {VpnError} ERR_USAGE when there is none
 */
export async function findUser(nameOrNumber: string): Promise<User> {
  const isWord = /^[A-Za-z0-9_][A-Za-z0-9_.@-]*\$?$/.test(nameOrNumber);
  const line = isWord ? await runCommand('getent', ['passwd', nameOrNumber]).catch(() => '') : '';
  const [name = '', , uid = '', gid = '', , home = '', shell = ''] = line.trim().split(':');
  if (name === '' || !/^\d+$/.test(uid) || !/^\d+$/.test(gid)) {
    throw new VpnError(
      'ERR_USAGE',
      `expected a user of this machine, got "${nameOrNumber}"; see them with: getent passwd`,
    );
  }
  return { name, uid: Number(uid), gid: Number(gid), home, shell };
}

/**
 * Why a command cannot be started, as far as can be said before anything is done, and the status for that.
 *
 * @param command its program first; one without a slash is looked for on PATH
 */
export function whyNotStarted([program = '']: readonly string[]): { status: number; why: string } | undefined {
  const paths = program.includes('/')
    ? [program]
    : (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder || '.', program));
  const there = program === '' ? [] : paths.filter((path) => existsSync(path));
  if (there.length === 0) return { status: NOT_FOUND, why: `there is no command "${program}"` };
  if (there.some(isProgram)) return undefined;
  return { status: NOT_EXECUTABLE, why: `"${program}" is not a program that can be started` };
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

export interface EnclosedCommandOptions {
  readonly command: readonly string[];
  readonly enclosure: Enclosure;
  /** Where a file may be made for a moment. */
  readonly folder: string;
  /** Whose rights it has; default those of this process. */
  readonly user?: User;
  /** Variables that it does not get. */
  readonly without?: readonly string[];
}

/**
 * Runs a command to its end. This thread has the command's mounts from then on.
 *
 * @returns its status; 128 and the signal's number when a signal ended it
 * @throws {VpnError} ERR_NOT_RUNNING when the namespace is gone, ERR_PRIVILEGE, ERR_SYSCALL
 */
export async function runEnclosed(options: EnclosedCommandOptions): Promise<number> {
  const { command, enclosure, folder, user, without = [] } = options;
  const setpriv = await findSetpriv();
  using namespace = NetworkNamespace.join(enclosure.path, enclosure.inode);
  const mounts = PrivateMounts.enter(enclosure.resolvConf, folder);
  // Not `process.stderr`: a stream would make the command's standard error non-blocking.
  for (const warning of mounts.warnings) writeSync(2, `customvpn: ${warning}\n`);
  const environment = environmentOf(user, without);
  keepDescriptors();
  const [file = '', ...args] = setpriv === undefined ? command : [setpriv, ...setprivWords(user), '--', ...command];
  // Before the command runs: a signal that comes at once is its own, and is handled when it has been started.
  const stopPassing = passSignals((signal) => child.kill(signal));
  const child = namespace.inside(() =>
    spawn(file, args, {
      stdio: 'inherit',
      env: environment,
      ...(setpriv === undefined && user !== undefined ? { uid: user.uid, gid: user.gid } : {}),
    }),
  );
  const renewal = new Repeat(
    RENEW_MS,
    async () => mounts.renew(),
    () => {},
  );
  renewal.start();
  try {
    return await endOf(child, command);
  } finally {
    stopPassing();
    await renewal.stop();
  }
}

/** Node marks what it opens, and not all that it was given, to be closed when another program starts. */
function keepDescriptors(): void {
  const calls = nativeCalls();
  for (const name of readdirSync('/proc/self/fd')) {
    const fd = Number(name);
    if (fd > 2) calls.fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
}

/** The command ends with whoever waits for it, and keeps none of our capabilities as another user. */
function setprivWords(user: User | undefined): string[] {
  const identity =
    user === undefined
      ? []
      : [`--reuid=${user.uid}`, `--regid=${user.gid}`, '--init-groups', '--inh-caps=-all', '--ambient-caps=-all'];
  return [...identity, '--pdeathsig=KILL'];
}

function environmentOf(user: User | undefined, without: readonly string[]): NodeJS.ProcessEnv {
  const environment = { ...process.env };
  for (const name of without) delete environment[name];
  if (user === undefined) return environment;
  for (const name of Object.keys(environment)) if (name.startsWith('SUDO_')) delete environment[name];
  const { name, uid, home, shell } = user;
  Object.assign(environment, { HOME: home, USER: name, LOGNAME: name, SHELL: shell });
  delete environment.MAIL;
  const runtime = `/run/user/${uid}`;
  if (existsSync(runtime)) environment.XDG_RUNTIME_DIR = runtime;
  else delete environment.XDG_RUNTIME_DIR;
  return environment;
}

/** Returns what ends it. */
function passSignals(pass: (signal: NodeJS.Signals) => void): () => void {
  const passFromElsewhere = (signal: NodeJS.Signals): void => {
    if (!isInForeground()) pass(signal);
  };
  for (const signal of PASSED_SIGNALS) process.on(signal, pass);
  for (const signal of TERMINAL_SIGNALS) process.on(signal, passFromElsewhere);
  return () => {
    for (const signal of PASSED_SIGNALS) process.off(signal, pass);
    for (const signal of TERMINAL_SIGNALS) process.off(signal, passFromElsewhere);
  };
}

/** Whether a terminal's signals go to this process's group, and so to the command; see proc_pid_stat(5). */
function isInForeground(): boolean {
  const stat = readFileSync('/proc/self/stat', 'latin1');
  const [, , , group, , , foreground] = stat.slice(stat.lastIndexOf(')') + 1).split(' ');
  return group !== undefined && group === foreground;
}

function endOf(child: ChildProcess, [program = '']: readonly string[]): Promise<number> {
  return new Promise((resolve) => {
    child.once('error', (error: NodeJS.ErrnoException) => {
      writeSync(2, `customvpn: cannot start ${program}: ${error.message}\n`);
      resolve(error.code === 'ENOENT' ? NOT_FOUND : NOT_EXECUTABLE);
    });
    child.once('exit', (status, signal) => {
      resolve(status ?? SIGNAL_BASE + (signal === null ? 0 : osConstants.signals[signal]));
    });
  });
}
