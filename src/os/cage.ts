/**
 * The cage of a process without privilege: what it can still ask of the kernel after it has loaded all that it needs.
 *
 * Hides `no_new_privs`, the system call filter and what each kind of process needs of a kernel. Both hold on every thread,
 * and for good. A caged worker opens no file, makes no socket, starts no program and leaves no trace on a device: it works
 * with the descriptors that it has. Whatever would be loaded later must be loaded before: a module that is imported in the
 * cage is refused like any file.
 *
 * The filter sees no call that goes through an io_uring, which every Node has from its start on unless it is refused one;
 * so the launcher (`launcher.ts`) has children start without, and a process that has one is not taken in.
 */

import { VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { Errno, errnoName, NativeMemory, nativeCalls } from './ffi.ts';
import { SCHED_IDLE } from './idle.ts';
import {
  type AllowedWays,
  type ArgumentCondition,
  allowAllBut,
  allowOnly,
  INSTRUCTION_BYTES,
  isFilterArch,
  type SyscallName,
  type SyscallRules,
} from './seccomp.ts';
import { callByName, setNoNewPrivileges } from './syscall.ts';

/**
 * What a process is there for.
 *
 * - `worker`: serves the listening sockets and devices that it has inherited.
 * - `hasher`: answers its parent.
 * - `auth`: also opens files, dials, and starts the hasher, which inherits this cage and then enters its own.
 */
export type CageKind = 'worker' | 'hasher' | 'auth';

const PR_SET_NAME = 15;
const PR_GET_NAME = 16;
const PR_SET_PDEATHSIG = 1;
const PR_CAPBSET_READ = 23;
const PR_SET_NO_NEW_PRIVS = 38;
const PR_GET_NO_NEW_PRIVS = 39;
/** Names memory areas; V8 uses it. */
const PR_SET_VMA = 0x5356_4d41;

const REFUSALS: ReadonlySet<number> = new Set([Errno.ENOSYS, Errno.EPERM]);

const CAPABILITY_VERSION_3 = 0x2008_0522;

const SECCOMP_SET_MODE_FILTER = 1n;
const SECCOMP_FILTER_FLAG_TSYNC = 1n;

const CLONE_THREAD = 0x0001_0000;
/** CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; CLONE_PTRACE and CLONE_UNTRACED. */
const CLONE_FOREIGN = 0x0002_0000 | 0x7e00_0000 | 0x0000_2000 | 0x0080_0000;

const FIONREAD = 0x541b;
const FIONBIO = 0x5421;
const FIONCLEX = 0x5450;
const FIOCLEX = 0x5451;
const TCGETS = 0x5401;
const TIOCGWINSZ = 0x5413;
const SIOCOUTQ = 0x5411;
const SIOCOUTQNSD = 0x894b;

const F_DUPFD = 0;
const F_GETFD = 1;
const F_SETFD = 2;
const F_GETFL = 3;
const F_SETFL = 4;
const F_GETLK = 5;
const F_SETLK = 6;
const F_SETLKW = 7;
const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_OFD_SETLKW = 38;
const F_DUPFD_CLOEXEC = 1030;

const SOL_SOCKET = 1;
const IPPROTO_TCP = 6;
/**
 * SO_REUSEADDR, SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE, SO_LINGER. None that puts a program on a socket: on one of the listening
 * sockets of a port (SO_ATTACH_REUSEPORT_CBPF) it would decide which of them gets a connection, whoever they belong to.
 */
const SOCKET_OPTIONS = [2, 7, 8, 9, 13];
/** TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_CONGESTION, TCP_USER_TIMEOUT, TCP_NOTSENT_LOWAT. */
const TCP_OPTIONS = [1, 4, 5, 6, 13, 18, 25];

/** Connects a socket by sending: on a listening socket that was shut down first it would be a way out. */
const MSG_FASTOPEN = 0x2000_0000;

const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
/** The C library asks the kernel for addresses by it when it looks a name up. */
const AF_NETLINK = 16;

/** Descriptor commands that reach no other process: none that sends a signal to an owner. */
const DESCRIPTOR_COMMANDS = [F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL];
/** Requests of sockets, pipes and terminals: none of a TUN device, none of an interface. */
const REQUESTS = [SIOCOUTQNSD, SIOCOUTQ, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ];

/** A call, or a call and the conditions under which it is allowed; more than one entry of the same call: any of them. */
type Rules = readonly (SyscallName | readonly [SyscallName, ...ArgumentCondition[]])[];

/** What the language, its threads and its event loop need to go on. The most frequent first. */
function running(pid: number): Rules {
  return [
    'read',
    'write',
    'readv',
    'writev',
    ['ioctl', { argument: 1, oneOf: REQUESTS }],
    'epoll_wait',
    'epoll_pwait',
    'epoll_pwait2',
    'epoll_ctl',
    'futex',
    'clock_gettime',
    ['fcntl', { argument: 1, oneOf: DESCRIPTOR_COMMANDS }],
    'close',
    // Memory.
    'madvise',
    'mmap',
    'munmap',
    'mprotect',
    'mremap',
    'brk',
    'mincore',
    'membarrier',
    'pkey_alloc',
    'pkey_free',
    'pkey_mprotect',
    // Threads of this process, never another process.
    ['clone', { argument: 0, having: CLONE_THREAD, without: CLONE_FOREIGN }],
    'exit',
    'exit_group',
    'set_robust_list',
    'set_tid_address',
    'rseq',
    'gettid',
    'futex_waitv',
    'sched_yield',
    'sched_getaffinity',
    'sched_getparam',
    'sched_getscheduler',
    'sched_get_priority_max',
    'sched_get_priority_min',
    'getcpu',
    'arch_prctl',
    ['prctl', { argument: 0, oneOf: [PR_SET_VMA, PR_SET_NAME, PR_GET_NAME, PR_GET_NO_NEW_PRIVS, PR_CAPBSET_READ] }],
    // Signals, to itself.
    'rt_sigaction',
    'rt_sigprocmask',
    'rt_sigreturn',
    'rt_sigpending',
    'rt_sigtimedwait',
    'rt_sigsuspend',
    'sigaltstack',
    'restart_syscall',
    ['kill', { argument: 0, oneOf: [pid] }],
    ['tgkill', { argument: 0, oneOf: [pid] }],
    // Time.
    'clock_getres',
    'clock_nanosleep',
    'nanosleep',
    'gettimeofday',
    'time',
    'times',
    'timerfd_create',
    'timerfd_settime',
    'timerfd_gettime',
    // Questions about itself.
    'getpid',
    'getppid',
    'getuid',
    'geteuid',
    'getgid',
    'getegid',
    'getgroups',
    'getresuid',
    'getresgid',
    'capget',
    'uname',
    'sysinfo',
    'getrusage',
    'getrlimit',
    ['prlimit64', { argument: 0, oneOf: [0, pid] }],
    'getpriority',
    'getcwd',
    'getrandom',
    // Descriptors that it has. The look-ups by name tell that something is there, and open nothing.
    'fstat',
    'newfstatat',
    'statx',
    'lseek',
    'pread64',
    'pwrite64',
    'preadv',
    'pwritev',
    'preadv2',
    'pwritev2',
    'dup',
    'dup2',
    'dup3',
    'close_range',
    'poll',
    'ppoll',
    'select',
    'pselect6',
    'epoll_create1',
    'eventfd',
    'eventfd2',
    'pipe',
    'pipe2',
    'splice',
    'sendfile',
    // The channel to the process that started it.
    'recvmsg',
    ['sendmsg', { argument: 2, without: MSG_FASTOPEN }],
    'recvfrom',
    ['sendto', { argument: 3, without: MSG_FASTOPEN }],
    'recvmmsg',
    ['sendmmsg', { argument: 3, without: MSG_FASTOPEN }],
    'getsockopt',
    ['setsockopt', { argument: 1, oneOf: [SOL_SOCKET] }, { argument: 2, oneOf: SOCKET_OPTIONS }],
    ['setsockopt', { argument: 1, oneOf: [IPPROTO_TCP] }, { argument: 2, oneOf: TCP_OPTIONS }],
    'getsockname',
    'getpeername',
    'shutdown',
  ];
}

/** Connections that come in at sockets that it was given. */
const SERVING: Rules = ['accept4', 'accept', 'listen'];

const FILES: Rules = [
  'openat',
  'open',
  [
    'fcntl',
    {
      argument: 1,
      oneOf: [...DESCRIPTOR_COMMANDS, F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW],
    },
  ],
  'stat',
  'lstat',
  'access',
  'faccessat',
  'faccessat2',
  'readlink',
  'readlinkat',
  'getdents64',
  'fstatfs',
  'chdir',
  'umask',
  'mkdir',
  'mkdirat',
  'rmdir',
  'link',
  'linkat',
  'unlink',
  'unlinkat',
  'rename',
  'renameat',
  'renameat2',
  'truncate',
  'ftruncate',
  'fallocate',
  'fadvise64',
  'fsync',
  'fdatasync',
  'msync',
  'flock',
  'chmod',
  'fchmod',
  'fchmodat',
  'fchown',
  'utimes',
  'utimensat',
  'copy_file_range',
  'inotify_init1',
  'inotify_add_watch',
  'inotify_rm_watch',
];

const DIALLING: Rules = [
  ['socket', { argument: 0, oneOf: [AF_INET, AF_INET6, AF_UNIX, AF_NETLINK] }],
  ['socketpair', { argument: 0, oneOf: [AF_UNIX] }],
  'connect',
  'bind',
  'sendmsg',
  'sendto',
  'sendmmsg',
  'setsockopt',
];

/** Children, which get this same cage and may narrow it; they can do nothing that their parent cannot. */
const STARTING: Rules = [
  'execve',
  ['clone', { argument: 0, without: CLONE_FOREIGN }],
  'fork',
  'vfork',
  'wait4',
  'waitid',
  'setsid',
  'setpriority',
  // The hasher gives way to all others.
  ['sched_setscheduler', { argument: 0, oneOf: [0] }, { argument: 1, oneOf: [SCHED_IDLE] }],
  'kill',
  'tgkill',
  ['prlimit64', { argument: 0, oneOf: [0] }],
  [
    'prctl',
    {
      argument: 0,
      oneOf: [
        PR_SET_VMA,
        PR_SET_NAME,
        PR_GET_NAME,
        PR_GET_NO_NEW_PRIVS,
        PR_CAPBSET_READ,
        PR_SET_NO_NEW_PRIVS,
        PR_SET_PDEATHSIG,
      ],
    },
  ],
  'seccomp',
  'landlock_create_ruleset',
  'landlock_add_rule',
  'landlock_restrict_self',
];

/** What a kind of process may ask of the kernel; `pid` is its own. */
export function cageRules(kind: CageKind, pid: number): SyscallRules {
  const extras: Record<CageKind, readonly Rules[]> = {
    worker: [SERVING],
    hasher: [],
    auth: [FILES, SERVING, DIALLING, STARTING],
  };
  const rules = new Map<SyscallName, AllowedWays>();
  for (const part of [running(pid), ...extras[kind]]) {
    const ways = Map.groupBy(part, (rule) => (typeof rule === 'string' ? rule : rule[0]));
    // What is said of a call later holds in place of what was said before.
    for (const [name, entries] of ways) {
      rules.set(
        name,
        entries.flatMap((rule) => (typeof rule === 'string' ? [] : [rule.slice(1) as ArgumentCondition[]])),
      );
    }
  }
  return rules;
}

export interface CageOptions {
  log: Logger;
}

let entered: CageKind | undefined;

/** The cage that this process is in. */
export function cageOfThisProcess(): CageKind | undefined {
  return entered;
}

/**
 * Takes this process into the cage of its kind, on every thread and for good.
 *
 * @returns whether there is a filter; false on an architecture whose calls are not known, which is also logged
 * @throws {VpnError} ERR_INVARIANT when the process has privileges or an io_uring; ERR_UNSUPPORTED when the kernel has no
 *   system call filter; ERR_SYSCALL
 */
export function enterCage(kind: CageKind, { log }: CageOptions): boolean {
  checkUnprivileged(kind);
  setNoNewPrivileges(`the cage of the ${kind}`);
  entered = kind;
  if (!isFilterArch(process.arch)) {
    log.error(`no system call filter for ${process.arch}: this ${kind} is held by its user id alone`, {
      component: 'cage',
      arch: process.arch,
    });
    return false;
  }
  if (mayHaveRing()) {
    throw new VpnError(
      'ERR_INVARIANT',
      `the ${kind} was started with an io_uring, which no filter sees; start it by the launcher`,
    );
  }
  // The time zone is read from a file when it is first asked for.
  new Date().getTimezoneOffset();
  install(allowOnly(process.arch, cageRules(kind, process.pid)), `the cage of the ${kind}`);
  return true;
}

/**
 * Lets no process that this one starts from now on have an io_uring. This one keeps what it has; it gains no rights by
 * programs that give some (`no_new_privs`).
 *
 * @returns whether that can be; false on an architecture whose calls are not known
 * @throws {VpnError} ERR_UNSUPPORTED, ERR_SYSCALL
 */
export function refuseRings(): boolean {
  const what = 'refusing io_uring to children';
  if (!isFilterArch(process.arch)) return false;
  setNoNewPrivileges(what);
  install(allowAllBut(process.arch, ['io_uring_setup']), what);
  return true;
}

function checkUnprivileged(kind: CageKind): void {
  // struct __user_cap_header_struct: version u32, pid i32; two structs of effective, permitted, inheritable u32.
  const header = new NativeMemory(8);
  header.view.setUint32(0, CAPABILITY_VERSION_3, true);
  const sets = new NativeMemory(24);
  const asked = callByName('capget', header.address, sets.address);
  const isHolding = asked !== 0 || sets.bytes.some((byte) => byte !== 0);
  if (process.getuid?.() !== 0 && (asked === undefined || !isHolding)) return;
  const why = isHolding ? 'with capabilities' : 'as root';
  throw new VpnError(
    'ERR_INVARIANT',
    `the ${kind} was started ${why}, which it must not have; start it by the launcher`,
    {
      details: { uid: process.getuid?.() },
    },
  );
}

/** Whether this process could have an io_uring: it could make one, and Node makes one when it starts. */
function mayHaveRing(): boolean {
  const result = callByName('io_uring_setup') ?? -1;
  return result >= 0 || !REFUSALS.has(nativeCalls().errno());
}

/** On every thread of this process. */
function install(program: Uint8Array<ArrayBuffer>, what: string): void {
  const instructions = new NativeMemory(program.length);
  instructions.bytes.set(program);
  // struct sock_fprog: count u16, then on its own eight bytes the address.
  const header = new NativeMemory(16);
  header.view.setUint16(0, program.length / INSTRUCTION_BYTES, true);
  header.view.setBigUint64(8, instructions.address, true);
  const result = callByName('seccomp', SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, header.address) ?? -1;
  if (result === 0) return;
  if (result > 0) throw new VpnError('ERR_SYSCALL', `${what}: thread ${result} has a filter of its own`);
  const errno = errnoName(nativeCalls().errno());
  throw new VpnError(
    'ERR_UNSUPPORTED',
    `${what}: this kernel takes no system call filter (${errno}); CONFIG_SECCOMP_FILTER is needed`,
    {
      details: { syscall: 'seccomp', errno },
    },
  );
}
