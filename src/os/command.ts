/**
 * Runs the administrator's programs, such as `ip` and `nft`.
 *
 * Hides where they are, how input reaches them and how their failures look. Arguments are vectors, never shell strings.
 */

import { execFile } from 'node:child_process';
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { VpnError } from '../base/errors.ts';

/** The Debian package of each program that the product runs. */
const PACKAGES: Readonly<Record<string, string>> = {
  ip: 'iproute2',
  nft: 'nftables',
  resolvectl: 'systemd-resolved',
  busctl: 'systemd',
};

/** A word of a command for `ip -batch`: nothing that could end the word or the line, or be taken for an option. */
export const IP_WORD = /^[A-Za-z0-9:][A-Za-z0-9:./_%@-]*$/;

const MAX_OUTPUT_BYTES = 16 * 1024 * 1024;
const TIMEOUT_MS = 20_000;

/** The search path of an administrator: a user's often lacks the folders in which `ip` and `nft` are. */
export function adminPath(): string {
  return [process.env.PATH ?? '/usr/bin:/bin', '/usr/sbin', '/sbin'].join(delimiter);
}

/**
 * Runs a program to its end and returns what it printed.
 *
 * @throws {VpnError} ERR_UNSUPPORTED when it is not installed, ERR_PRIVILEGE, ERR_HOST_APPLY with its own words
 */
export function runCommand(program: string, args: readonly string[], input = ''): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = execFile(
      program,
      args,
      { env: { ...process.env, PATH: adminPath(), LC_ALL: 'C' }, maxBuffer: MAX_OUTPUT_BYTES, timeout: TIMEOUT_MS },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else reject(commandError(program, args, error, stderr));
      },
    );
    // A program that ends without reading its input is judged by its status, not by the broken pipe.
    child.stdin?.on('error', () => {});
    child.stdin?.end(input);
  });
}

function commandError(program: string, args: readonly string[], error: Error, stderr: string): VpnError {
  const code: unknown = Reflect.get(error, 'code');
  const command = [program, ...args].join(' ');
  const details = { command, status: typeof code === 'number' ? code : String(code), stderr };
  // A folder of the search path that may not be entered makes EACCES of a program that is nowhere.
  if (code === 'ENOENT' || code === 'EACCES') {
    const fix = PACKAGES[program] ?? program;
    return new VpnError('ERR_UNSUPPORTED', `the program ${program} is missing; try: apt-get install ${fix}`, {
      cause: error,
      details,
    });
  }
  const words = stderr.trim().split('\n').slice(0, 5).join(' | ') || error.message;
  if (/Operation not permitted/.test(stderr)) {
    return new VpnError('ERR_PRIVILEGE', `${command}: ${words}; CAP_NET_ADMIN is needed, run as root`, {
      cause: error,
      details,
    });
  }
  return new VpnError('ERR_HOST_APPLY', `${command}: ${words}`, { cause: error, details });
}

/** Whether a program is on the administrator's path. */
export async function hasProgram(name: string): Promise<boolean> {
  for (const folder of adminPath().split(delimiter)) {
    try {
      await access(join(folder, name), constants.X_OK);
      return true;
    } catch {
      // Not in this folder.
    }
  }
  return false;
}
