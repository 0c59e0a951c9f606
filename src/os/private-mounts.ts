/**
 * Files that a command sees in place of the machine's, so that it looks names up where it is told to and nowhere else.
 *
 * Hides the mount namespace. A name is looked up in more ways than by the resolver's file: modules of nsswitch.conf(5) and
 * the C library itself ask services of the machine over unix sockets, which no network namespace holds back. These sockets
 * are covered, and modules that ask others are left out. Mounts are of this thread and its children, and go with them.
 */

import { randomBytes } from 'node:crypto';
import { existsSync, lstatSync, readFileSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { VpnError } from '../base/errors.ts';
import { checkResult, Errno, errnoName, nativeCalls } from './ffi.ts';

const CLONE_NEWNS = 0x0002_0000;
const MS_BIND = 4096n;
const MS_REC = 16_384n;
/** Mounts of the machine are seen here, ours are not seen there. */
const MS_SLAVE = 524_288n;

const RESOLV_CONF = '/etc/resolv.conf';
const NSSWITCH = '/etc/nsswitch.conf';
/** Who looks names up for others: nscd for the C library, systemd-resolved and Avahi for their modules. */
const NAME_SERVICES = [
  '/run/nscd/socket',
  '/var/run/nscd/socket',
  '/run/systemd/resolve/io.systemd.Resolve',
  '/run/systemd/resolve/io.systemd.Resolve.Monitor',
  '/run/avahi-daemon/socket',
  '/var/run/avahi-daemon/socket',
];
/** Modules that look into this machine, or ask the servers of the resolver's file. */
const OWN_MODULES = new Set(['files', 'dns', 'myhostname', 'compat', 'db']);

/** One file in the place of another. */
interface Cover {
  readonly source: string;
  readonly target: string;
}

export class PrivateMounts {
  readonly #covers: readonly Cover[];
  #warnings: readonly string[];

  private constructor(covers: readonly Cover[], warnings: readonly string[]) {
    this.#covers = covers;
    this.#warnings = warnings;
  }

  /**
   * Gives this thread, and the children that it starts from now on, mounts of their own, for good.
   *
   * @param resolvConf a file that is seen as `/etc/resolv.conf`, also when it is changed in place later
   * @param folder where a file may be made for a moment
   * @throws {VpnError} ERR_PRIVILEGE, ERR_SYSCALL
   */
  static enter(resolvConf: string, folder: string): PrivateMounts {
    const calls = nativeCalls();
    if (calls.unshare(CLONE_NEWNS) < 0 && calls.errno() === Errno.EPERM) {
      throw new VpnError('ERR_PRIVILEGE', 'mounts of its own for a command need CAP_SYS_ADMIN; run as root');
    }
    const what = 'giving a command mounts of its own';
    // Without this, what is mounted below would be mounted on the machine.
    checkResult(calls.mount('none', '/', 'none', MS_SLAVE | MS_REC, 0n), what, 'mount');
    const warnings: string[] = [];
    const covers: Cover[] = [];
    if (existsSync(RESOLV_CONF)) covers.push({ source: resolvConf, target: RESOLV_CONF });
    else
      warnings.push(
        `this machine has no ${RESOLV_CONF}: names are not looked up in there; mend it with: touch ${RESOLV_CONF}`,
      );
    covers.push(...NAME_SERVICES.map((target) => ({ source: '/dev/null', target })));
    const mounts = new PrivateMounts(covers, warnings);
    const switched = withoutServices(existsSync(NSSWITCH) ? readFileSync(NSSWITCH, 'utf8') : '');
    if (switched !== undefined) coverOnce(switched, NSSWITCH, folder);
    mounts.renew();
    return mounts;
  }

  /** What a user should know. */
  get warnings(): readonly string[] {
    return this.#warnings;
  }

  /** Covers again what the machine has replaced by a new file, which takes the old one's cover away. */
  renew(): void {
    for (const { source, target } of this.#covers) {
      if (!isThere(target) || isSame(source, target)) continue;
      bind(source, realpathSync(target));
    }
  }
}

/** nsswitch.conf with only those ways to look up hosts that ask nobody else; undefined: it has no others. */
export function withoutServices(text: string): string | undefined {
  const changed = text.replace(/^([ \t]*hosts[ \t]*:)(.*)$/m, (line, name: string, ways: string) => {
    const [comment = ''] = /#.*$/.exec(ways) ?? [];
    const words = ways.slice(0, ways.length - comment.length).match(/\[[^\]]*\]|\S+/g) ?? [];
    const kept = words.filter((word, at) => {
      // An action in brackets belongs to the module before it.
      const module = word.startsWith('[') ? words.slice(0, at).findLast((before) => !before.startsWith('[')) : word;
      return module !== undefined && OWN_MODULES.has(module.toLowerCase());
    });
    if (kept.length === words.length) return line;
    return `${name} ${(kept.includes('dns') ? kept : [...kept, 'dns']).join(' ')}`;
  });
  return changed === text ? undefined : changed;
}

/** The file lives on only where it is mounted. */
function coverOnce(text: string, target: string, folder: string): void {
  const source = join(folder, `.${randomBytes(8).toString('hex')}.tmp`);
  writeFileSync(source, text, { mode: 0o644, flag: 'wx' });
  try {
    bind(source, realpathSync(target));
  } finally {
    rmSync(source, { force: true });
  }
}

function bind(source: string, target: string): void {
  const calls = nativeCalls();
  if (calls.mount(source, target, 'none', MS_BIND, 0n) === 0) return;
  const errno = calls.errno();
  throw new VpnError('ERR_SYSCALL', `mounting ${source} over ${target} for a command: ${errnoName(errno)}`, {
    details: { syscall: 'mount', errno: errnoName(errno), target },
  });
}

function isThere(path: string): boolean {
  return (
    lstatSync(path, { throwIfNoEntry: false }) !== undefined && statSync(path, { throwIfNoEntry: false }) !== undefined
  );
}

function isSame(a: string, b: string): boolean {
  const [one, other] = [statSync(a), statSync(b)];
  return one.ino === other.ino && one.dev === other.dev;
}
