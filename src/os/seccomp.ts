/**
 * Programs for the kernel's system call filter: which calls a process may make, and with which arguments.
 *
 * Hides classic BPF, `struct seccomp_data` and the numbers of system calls, which differ by architecture. Pure: rules in,
 * bytes out. What is not listed is refused: calls that are known with EPERM, and those that came after this table with
 * ENOSYS, as on a kernel that lacks them, so that a C library falls back. Another architecture's calls (`int 0x80`) end
 * the process; those of x32 have numbers of their own and are refused like all that is not listed.
 *
 * Arguments are compared by their lower 32 bits, all that the kernel itself looks at in those that are filtered: requests,
 * flags, process ids and families are C integers. What a pointer leads to cannot be filtered.
 */

import { VpnError } from '../base/errors.ts';

/** Name → number on x86-64, on arm64; null: that architecture has no such call. */
const NUMBERS = {
  read: [0, 63],
  write: [1, 64],
  open: [2, null],
  close: [3, 57],
  stat: [4, null],
  fstat: [5, 80],
  lstat: [6, null],
  poll: [7, null],
  lseek: [8, 62],
  mmap: [9, 222],
  mprotect: [10, 226],
  munmap: [11, 215],
  brk: [12, 214],
  rt_sigaction: [13, 134],
  rt_sigprocmask: [14, 135],
  rt_sigreturn: [15, 139],
  ioctl: [16, 29],
  pread64: [17, 67],
  pwrite64: [18, 68],
  readv: [19, 65],
  writev: [20, 66],
  access: [21, null],
  pipe: [22, null],
  select: [23, null],
  sched_yield: [24, 124],
  mremap: [25, 216],
  msync: [26, 227],
  mincore: [27, 232],
  madvise: [28, 233],
  dup: [32, 23],
  dup2: [33, null],
  nanosleep: [35, 101],
  getpid: [39, 172],
  sendfile: [40, 71],
  socket: [41, 198],
  connect: [42, 203],
  accept: [43, 202],
  sendto: [44, 206],
  recvfrom: [45, 207],
  sendmsg: [46, 211],
  recvmsg: [47, 212],
  shutdown: [48, 210],
  bind: [49, 200],
  listen: [50, 201],
  getsockname: [51, 204],
  getpeername: [52, 205],
  socketpair: [53, 199],
  setsockopt: [54, 208],
  getsockopt: [55, 209],
  clone: [56, 220],
  fork: [57, null],
  vfork: [58, null],
  execve: [59, 221],
  exit: [60, 93],
  wait4: [61, 260],
  kill: [62, 129],
  uname: [63, 160],
  fcntl: [72, 25],
  flock: [73, 32],
  fsync: [74, 82],
  fdatasync: [75, 83],
  truncate: [76, 45],
  ftruncate: [77, 46],
  getcwd: [79, 17],
  chdir: [80, 49],
  rename: [82, null],
  mkdir: [83, null],
  rmdir: [84, null],
  link: [86, null],
  unlink: [87, null],
  readlink: [89, null],
  chmod: [90, null],
  fchmod: [91, 52],
  fchown: [93, 55],
  umask: [95, 166],
  gettimeofday: [96, 169],
  getrlimit: [97, 163],
  getrusage: [98, 165],
  sysinfo: [99, 179],
  times: [100, 153],
  getuid: [102, 174],
  getgid: [104, 176],
  geteuid: [107, 175],
  getegid: [108, 177],
  getppid: [110, 173],
  setsid: [112, 157],
  getgroups: [115, 158],
  getresuid: [118, 148],
  getresgid: [120, 150],
  capget: [125, 90],
  rt_sigpending: [127, 136],
  rt_sigtimedwait: [128, 137],
  rt_sigsuspend: [130, 133],
  sigaltstack: [131, 132],
  fstatfs: [138, 44],
  getpriority: [140, 141],
  setpriority: [141, 140],
  sched_getparam: [143, 121],
  sched_setscheduler: [144, 119],
  sched_getscheduler: [145, 120],
  sched_get_priority_max: [146, 125],
  sched_get_priority_min: [147, 126],
  prctl: [157, 167],
  arch_prctl: [158, null],
  gettid: [186, 178],
  time: [201, null],
  futex: [202, 98],
  sched_getaffinity: [204, 123],
  getdents64: [217, 61],
  set_tid_address: [218, 96],
  restart_syscall: [219, 128],
  fadvise64: [221, 223],
  clock_gettime: [228, 113],
  clock_getres: [229, 114],
  clock_nanosleep: [230, 115],
  exit_group: [231, 94],
  epoll_wait: [232, null],
  epoll_ctl: [233, 21],
  tgkill: [234, 131],
  utimes: [235, null],
  waitid: [247, 95],
  inotify_add_watch: [254, 27],
  inotify_rm_watch: [255, 28],
  openat: [257, 56],
  mkdirat: [258, 34],
  newfstatat: [262, 79],
  unlinkat: [263, 35],
  linkat: [265, 37],
  renameat: [264, 38],
  readlinkat: [267, 78],
  fchmodat: [268, 53],
  faccessat: [269, 48],
  pselect6: [270, 72],
  ppoll: [271, 73],
  set_robust_list: [273, 99],
  splice: [275, 76],
  utimensat: [280, 88],
  epoll_pwait: [281, 22],
  timerfd_create: [283, 85],
  eventfd: [284, null],
  fallocate: [285, 47],
  timerfd_settime: [286, 86],
  timerfd_gettime: [287, 87],
  accept4: [288, 242],
  eventfd2: [290, 19],
  epoll_create1: [291, 20],
  dup3: [292, 24],
  pipe2: [293, 59],
  inotify_init1: [294, 26],
  preadv: [295, 69],
  pwritev: [296, 70],
  recvmmsg: [299, 243],
  prlimit64: [302, 261],
  sendmmsg: [307, 269],
  getcpu: [309, 168],
  renameat2: [316, 276],
  seccomp: [317, 277],
  getrandom: [318, 278],
  membarrier: [324, 283],
  copy_file_range: [326, 285],
  preadv2: [327, 286],
  pwritev2: [328, 287],
  pkey_mprotect: [329, 288],
  pkey_alloc: [330, 289],
  pkey_free: [331, 290],
  statx: [332, 291],
  rseq: [334, 293],
  io_uring_setup: [425, 425],
  io_uring_enter: [426, 426],
  io_uring_register: [427, 427],
  clone3: [435, 435],
  close_range: [436, 436],
  faccessat2: [439, 439],
  epoll_pwait2: [441, 441],
  landlock_create_ruleset: [444, 444],
  landlock_add_rule: [445, 445],
  landlock_restrict_self: [446, 446],
  futex_waitv: [449, 449],
} as const satisfies Record<string, readonly [number, number | null]>;

export type SyscallName = keyof typeof NUMBERS;

/** The architectures whose numbers are known. */
export type FilterArch = 'x64' | 'arm64';

const ARCHES: Readonly<Record<FilterArch, { column: 0 | 1; audit: number }>> = {
  x64: { column: 0, audit: 0xc000_003e },
  arm64: { column: 1, audit: 0xc000_00b7 },
};

/** The last number of Linux 6.13; the two architectures have had the same ones since 5.1. */
const LAST_KNOWN = 466;
/** Set in every x32 call. */
const X32_BIT = 0x4000_0000;

/** A condition on the lower 32 bits of one argument. */
export interface ArgumentCondition {
  /** 0 to 5. */
  readonly argument: number;
  /** The values that are allowed; default any. */
  readonly oneOf?: readonly number[];
  /** Bits of which none may be set. */
  readonly without?: number;
  /** Bits of which at least one must be set. */
  readonly having?: number;
}

/** Ways in which a call is allowed: all conditions of one of them must hold. None: it is allowed in any case. */
export type AllowedWays = readonly (readonly ArgumentCondition[])[];

/** The calls that are allowed; those that come first are found sooner. */
export type SyscallRules = ReadonlyMap<SyscallName, AllowedWays>;

/** What becomes of a call that is not allowed. */
export const FilterVerdict = {
  allow: 0x7fff_0000,
  /** EPERM */
  refuse: 0x0005_0001,
  /** ENOSYS */
  unknown: 0x0005_0026,
  killProcess: 0x8000_0000,
} as const;

/** Bytes of one instruction: code u16, jump if true u8, jump if false u8, operand u32; little-endian. */
export const INSTRUCTION_BYTES = 8;
/** BPF_MAXINSNS */
const MAX_INSTRUCTIONS = 4096;

const LOAD_WORD = 0x20;
const JUMP_IF_EQUAL = 0x15;
const JUMP_IF_ABOVE = 0x25;
const JUMP_IF_AT_LEAST = 0x35;
const JUMP_IF_BITS = 0x45;
const JUMP = 0x05;
const RETURN = 0x06;

const OFFSET_OF_NUMBER = 0;
const OFFSET_OF_ARCH = 4;
const OFFSET_OF_ARGUMENTS = 16;

type Instruction = readonly [code: number, jumpTrue: number, jumpFalse: number, operand: number];

/** Whether the system calls of an architecture (`process.arch`) are known. */
export function isFilterArch(arch: string): arch is FilterArch {
  return Object.hasOwn(ARCHES, arch);
}

/** A call's number; null where the architecture has no such call. */
export function syscallNumber(arch: FilterArch, name: SyscallName): number | null {
  return NUMBERS[name][ARCHES[arch].column];
}

/** Every name that is known. */
export const SYSCALL_NAMES = Object.keys(NUMBERS) as readonly SyscallName[];

/**
 * The program that allows what `rules` list and nothing else.
 *
 * @returns instructions of `INSTRUCTION_BYTES` each
 * @throws {VpnError} ERR_INVARIANT for rules that make no program
 */
export function allowOnly(arch: FilterArch, rules: SyscallRules): Uint8Array<ArrayBuffer> {
  const program = opening(arch);
  for (const [name, ways] of rules) {
    const number = syscallNumber(arch, name);
    if (number === null) continue;
    // What looks at arguments overwrites the number: it has to come to a verdict.
    const block: Instruction[] =
      ways.length === 0
        ? [[RETURN, 0, 0, FilterVerdict.allow]]
        : [...ways.flatMap(tryWay), [RETURN, 0, 0, FilterVerdict.refuse]];
    program.push([JUMP_IF_EQUAL, 0, checkedJump(block.length), number], ...block);
  }
  // clone3's flags are behind a pointer; without it the C library uses clone.
  const clone3 = NUMBERS.clone3[ARCHES[arch].column];
  program.push(
    [JUMP_IF_EQUAL, 2, 0, clone3],
    [JUMP_IF_AT_LEAST, 2, 0, X32_BIT],
    [JUMP_IF_ABOVE, 0, 1, LAST_KNOWN],
    [RETURN, 0, 0, FilterVerdict.unknown],
    [RETURN, 0, 0, FilterVerdict.refuse],
  );
  return encode(program);
}

/** The program that refuses the calls named, as a kernel without them would, and allows all others. */
export function allowAllBut(arch: FilterArch, names: readonly SyscallName[]): Uint8Array<ArrayBuffer> {
  const program = opening(arch);
  for (const name of names) {
    const number = syscallNumber(arch, name);
    if (number === null) continue;
    program.push([JUMP_IF_EQUAL, 0, 1, number], [RETURN, 0, 0, FilterVerdict.unknown]);
  }
  program.push([RETURN, 0, 0, FilterVerdict.allow]);
  return encode(program);
}

function opening(arch: FilterArch): Instruction[] {
  return [
    [LOAD_WORD, 0, 0, OFFSET_OF_ARCH],
    [JUMP_IF_EQUAL, 1, 0, ARCHES[arch].audit],
    [RETURN, 0, 0, FilterVerdict.killProcess],
    [LOAD_WORD, 0, 0, OFFSET_OF_NUMBER],
  ];
}

/** Allows the call if all conditions hold; else it goes on behind itself. */
function tryWay(conditions: readonly ArgumentCondition[]): Instruction[] {
  let block: Instruction[] = [[RETURN, 0, 0, FilterVerdict.allow]];
  for (const condition of conditions.toReversed()) block = [...check(condition, block.length), ...block];
  return block;
}

/** Goes on behind itself if the condition holds; else it jumps over the `rest` that is there. */
function check({ argument, oneOf, without, having }: ArgumentCondition, rest: number): Instruction[] {
  let block: Instruction[] = [];
  if (oneOf !== undefined) {
    const tests = oneOf.map((value, index): Instruction => {
      return [JUMP_IF_EQUAL, checkedJump(oneOf.length - index), 0, value >>> 0];
    });
    block = [...tests, [JUMP, 0, 0, rest]];
  }
  if (having !== undefined) block = [[JUMP_IF_BITS, 0, checkedJump(block.length + rest), having], ...block];
  if (without !== undefined) block = [[JUMP_IF_BITS, checkedJump(block.length + rest), 0, without], ...block];
  return [[LOAD_WORD, 0, 0, OFFSET_OF_ARGUMENTS + 8 * argument], ...block];
}

function checkedJump(instructions: number): number {
  if (instructions > 255) throw new VpnError('ERR_INVARIANT', 'the conditions of a system call are too many');
  return instructions;
}

function encode(program: readonly Instruction[]): Uint8Array<ArrayBuffer> {
  if (program.length > MAX_INSTRUCTIONS) {
    throw new VpnError(
      'ERR_INVARIANT',
      `a filter of ${program.length} instructions; the kernel takes ${MAX_INSTRUCTIONS}`,
    );
  }
  const bytes = new Uint8Array(program.length * INSTRUCTION_BYTES);
  const view = new DataView(bytes.buffer);
  for (const [index, [code, jumpTrue, jumpFalse, operand]] of program.entries()) {
    const at = index * INSTRUCTION_BYTES;
    view.setUint16(at, code, true);
    view.setUint8(at + 2, jumpTrue);
    view.setUint8(at + 3, jumpFalse);
    view.setUint32(at + 4, operand, true);
  }
  return bytes;
}
