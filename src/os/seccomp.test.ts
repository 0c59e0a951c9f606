/** System call filters, run here by an interpreter of the few instructions that they are made of. */

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { isVpnError } from '../base/errors.ts';
import { cageRules } from './cage.ts';
import {
  allowAllBut,
  allowOnly,
  type FilterArch,
  FilterVerdict,
  INSTRUCTION_BYTES,
  isFilterArch,
  SYSCALL_NAMES,
  type SyscallName,
  syscallNumber,
} from './seccomp.ts';

const AUDIT = { x64: 0xc000_003e, arm64: 0xc000_00b7 } as const;
const { allow, refuse, unknown, killProcess } = FilterVerdict;
const PID = 4711;

/** What the kernel would do with a call. Throws where it would not load the program. */
function judge(
  program: Uint8Array,
  number: number,
  args: readonly (number | bigint)[] = [],
  audit: number = AUDIT.x64,
): number {
  const data = new DataView(new ArrayBuffer(64));
  data.setUint32(0, number, true);
  data.setUint32(4, audit, true);
  for (const [index, argument] of args.entries())
    data.setBigUint64(16 + 8 * index, BigInt.asUintN(64, BigInt(argument)), true);
  const view = new DataView(program.buffer, program.byteOffset, program.length);
  let accumulator = 0;
  for (let at = 0; at < program.length / INSTRUCTION_BYTES; at += 1) {
    const base = at * INSTRUCTION_BYTES;
    const operand = view.getUint32(base + 4, true);
    const jump = (isTaken: boolean): void => {
      at += view.getUint8(base + (isTaken ? 2 : 3));
    };
    switch (view.getUint16(base, true)) {
      case 0x20:
        accumulator = data.getUint32(operand, true);
        break;
      case 0x15:
        jump(accumulator === operand);
        break;
      case 0x25:
        jump(accumulator > operand);
        break;
      case 0x35:
        jump(accumulator >= operand);
        break;
      case 0x45:
        jump((accumulator & operand) !== 0);
        break;
      case 0x05:
        at += operand;
        break;
      case 0x06:
        return operand;
      default:
        assert.fail(`instruction ${at} has the unknown code ${view.getUint16(base, true)}`);
    }
  }
  return assert.fail('the program runs over its end');
}

function numberOf(name: SyscallName, arch: FilterArch = 'x64'): number {
  return syscallNumber(arch, name) ?? assert.fail(`${name} has no number on ${arch}`);
}

test('what is listed is allowed and all else is refused, on both architectures', () => {
  for (const arch of ['x64', 'arm64'] as const) {
    const program = allowOnly(
      arch,
      new Map([
        ['read', []],
        ['futex', []],
      ]),
    );
    for (const name of SYSCALL_NAMES) {
      const number = syscallNumber(arch, name);
      if (number === null) continue;
      const expected = name === 'read' || name === 'futex' ? allow : name === 'clone3' ? unknown : refuse;
      assert.equal(judge(program, number, [], AUDIT[arch]), expected, `${name} on ${arch}`);
    }
  }
});

test('another architecture ends the process, x32 is refused, and what is newer than the table is unknown', () => {
  const program = allowOnly('x64', new Map([['read', []]]));
  assert.equal(judge(program, 0, [], 0x4000_0003), killProcess);
  assert.equal(judge(program, 0, [], AUDIT.arm64), killProcess);
  assert.equal(judge(program, 0x4000_0000), refuse);
  assert.equal(judge(program, 0xffff_ffff), refuse);
  assert.equal(judge(program, 466), refuse);
  assert.equal(judge(program, 467), unknown);
  assert.equal(judge(program, 0x3fff_ffff), unknown);
});

test('conditions look at the lower half of an argument, as the kernel does', () => {
  const program = allowOnly(
    'x64',
    new Map([
      ['ioctl', [[{ argument: 1, oneOf: [0x5421, 0x894b] }]]],
      ['clone', [[{ argument: 0, having: 0x1_0000, without: 0x2_0000 }]]],
      [
        'kill',
        [
          [
            { argument: 0, oneOf: [PID] },
            { argument: 1, oneOf: [0, 9] },
          ],
        ],
      ],
      ['close', []],
    ]),
  );
  assert.equal(judge(program, numberOf('ioctl'), [3, 0x5421]), allow);
  assert.equal(judge(program, numberOf('ioctl'), [3, 0x894b]), allow);
  assert.equal(judge(program, numberOf('ioctl'), [0x5421, 0x4004_54cb]), refuse);
  assert.equal(judge(program, numberOf('ioctl'), [3, 0x1_0000_5421n]), allow, 'what the kernel takes for 0x5421');
  assert.equal(judge(program, numberOf('clone'), [0x1_0000]), allow);
  assert.equal(judge(program, numberOf('clone'), [0]), refuse);
  assert.equal(judge(program, numberOf('clone'), [0x3_0000]), refuse);
  assert.equal(judge(program, numberOf('kill'), [PID, 9]), allow);
  assert.equal(judge(program, numberOf('kill'), [PID, 10]), refuse);
  assert.equal(judge(program, numberOf('kill'), [1, 9]), refuse);
  assert.equal(judge(program, numberOf('kill'), [-1, 9]), refuse);
  assert.equal(judge(program, numberOf('close'), [3]), allow, 'a call behind those with conditions');
});

test('a call with several ways is allowed by any of them, and by no mixture', () => {
  const way = (level: number, oneOf: number[], without = 0x8000) => [
    { argument: 1, oneOf: [level] },
    { argument: 2, oneOf, without, having: 0x7f },
  ];
  const program = allowOnly(
    'x64',
    new Map([
      ['setsockopt', [way(1, [2, 9]), way(6, [1, 13, 25])]],
      ['close', []],
    ]),
  );
  const judged = (level: number, name: number) => judge(program, numberOf('setsockopt'), [3, level, name]);
  for (const [level, name] of [
    [1, 2],
    [1, 9],
    [6, 1],
    [6, 13],
    [6, 25],
  ] as const)
    assert.equal(judged(level, name), allow);
  for (const [level, name] of [
    [1, 1],
    [1, 25],
    [6, 2],
    [0, 1],
    [41, 2],
    [1, 0x8002],
  ] as const) {
    assert.equal(judged(level, name), refuse, `${level} ${name}`);
  }
  assert.equal(judge(program, numberOf('close')), allow);
});

test('a filter of exceptions refuses those and nothing else', () => {
  const program = allowAllBut('x64', ['io_uring_setup']);
  assert.equal(judge(program, 425), unknown);
  assert.equal(judge(program, 426), allow);
  assert.equal(judge(program, 59), allow);
  assert.equal(judge(program, 0, [], AUDIT.arm64), killProcess);
});

test('conditions that do not fit into a jump are refused, not cut', () => {
  const oneOf = Array.from({ length: 300 }, (_, index) => index);
  assert.throws(
    () => allowOnly('x64', new Map([['ioctl', [[{ argument: 1, oneOf }]]]])),
    (error) => isVpnError(error, 'ERR_INVARIANT'),
  );
});

test('architectures without a table are known as such', () => {
  assert.deepEqual(['x64', 'arm64', 'riscv64', 'ia32', 'toString'].filter(isFilterArch), ['x64', 'arm64']);
});

test('a worker and a hasher cannot open, dial, start, trace or change a device; auth can open, dial and start', () => {
  const never: SyscallName[] = ['io_uring_setup', 'io_uring_enter', 'io_uring_register'];
  const notInWorker: SyscallName[] = [
    'open',
    'openat',
    'socket',
    'connect',
    'bind',
    'execve',
    'fork',
    'vfork',
    'unlink',
    'unlinkat',
    'rename',
    'chmod',
    'seccomp',
    'inotify_init1',
  ];
  /** By number, for they are in no table: a filter that lists what is allowed need not know them. */
  const dangerous = {
    ptrace: 101,
    mount: 165,
    umount2: 166,
    init_module: 175,
    kexec_load: 246,
    keyctl: 250,
    unshare: 272,
    perf_event_open: 298,
    open_by_handle_at: 304,
    setns: 308,
    process_vm_readv: 310,
    process_vm_writev: 311,
    memfd_create: 319,
    bpf: 321,
    execveat: 322,
    userfaultfd: 323,
    openat2: 437,
    pidfd_getfd: 438,
    process_madvise: 440,
    setuid: 105,
    setresuid: 117,
    capset: 126,
    personality: 135,
    chroot: 161,
    pidfd_send_signal: 424,
    rt_sigqueueinfo: 129,
  };
  for (const kind of ['worker', 'hasher', 'auth'] as const) {
    const program = allowOnly('x64', cageRules(kind, PID));
    for (const [name, number] of Object.entries(dangerous))
      assert.equal(judge(program, number), refuse, `${name} in ${kind}`);
    for (const name of never) assert.equal(judge(program, numberOf(name)), refuse, `${name} in ${kind}`);
    for (const name of notInWorker) {
      assert.equal(judge(program, numberOf(name), [2]), kind === 'auth' ? allow : refuse, `${name} in ${kind}`);
    }
    assert.equal(judge(program, numberOf('accept4')), kind === 'hasher' ? refuse : allow);
    const requests = {
      TUNSETIFF: 0x4004_54ca,
      TUNSETPERSIST: 0x4004_54cb,
      TUNSETOFFLOAD: 0x4004_54d0,
      TUNSETQUEUE: 0x4004_54d9,
      SIOCSIFMTU: 0x8922,
      TIOCSTI: 0x5412,
      FIOSETOWN: 0x8901,
    };
    for (const [name, request] of Object.entries(requests)) {
      assert.equal(judge(program, numberOf('ioctl'), [5, request]), refuse, `${name} in ${kind}`);
      assert.equal(
        judge(program, numberOf('ioctl'), [5, BigInt(request) | 0xffff_ffff_0000_0000n]),
        refuse,
        `${name} in ${kind}`,
      );
    }
    assert.equal(judge(program, numberOf('ioctl'), [5, 0x894b]), allow);
    assert.equal(judge(program, numberOf('fcntl'), [5, 8]), refuse, 'F_SETOWN sends signals to others');
    assert.equal(judge(program, numberOf('clone'), [0x3d_0f00]), allow, 'a thread');
    assert.equal(judge(program, numberOf('clone'), [0x3d_0f00 | 0x1000_0000]), refuse, 'a thread in a user namespace');
  }
});

test('a worker and a hasher put no program on a socket and bind it to no device', () => {
  const program = allowOnly('x64', cageRules('worker', PID));
  const judged = (level: number, name: number) => judge(program, numberOf('setsockopt'), [5, level, name]);
  const refused = {
    SO_BINDTODEVICE: 25,
    SO_ATTACH_FILTER: 26,
    SO_DETACH_FILTER: 27,
    SO_LOCK_FILTER: 44,
    SO_ATTACH_BPF: 50,
    SO_ATTACH_REUSEPORT_CBPF: 51,
    SO_ATTACH_REUSEPORT_EBPF: 52,
  };
  for (const [name, number] of Object.entries(refused)) assert.equal(judged(1, number), refuse, name);
  for (const [level, name] of [
    [6, 1],
    [6, 13],
    [6, 25],
    [1, 9],
    [1, 13],
  ] as const)
    assert.equal(judged(level, name), allow);
});

test('a worker and a hasher signal and limit nobody but themselves, and connect by no flag', () => {
  for (const kind of ['worker', 'hasher'] as const) {
    const program = allowOnly('x64', cageRules(kind, PID));
    for (const name of ['kill', 'tgkill', 'prlimit64'] as const) {
      assert.equal(judge(program, numberOf(name), [PID]), allow);
      for (const other of [1, PID + 1, -1, -PID]) assert.equal(judge(program, numberOf(name), [other]), refuse, name);
    }
    assert.equal(judge(program, numberOf('clone'), [0x1200011]), refuse, 'a child');
    const MSG_FASTOPEN = 0x2000_0000;
    assert.equal(judge(program, numberOf('sendto'), [5, 0, 0, MSG_FASTOPEN | 0x4000]), refuse);
    assert.equal(judge(program, numberOf('sendmsg'), [5, 0, MSG_FASTOPEN]), refuse);
    assert.equal(judge(program, numberOf('sendmmsg'), [5, 0, 1, MSG_FASTOPEN]), refuse);
    assert.equal(judge(program, numberOf('sendmsg'), [5, 0, 0x4000]), allow);
  }
});

test('the calls that packets and ticks cost are found first', () => {
  const names = [...cageRules('worker', PID).keys()];
  for (const name of ['read', 'write', 'readv', 'writev', 'ioctl', 'epoll_wait'] as const) {
    assert.ok(names.indexOf(name) < 8, `${name} is number ${names.indexOf(name)}`);
  }
});

const X64_HEADER = '/usr/include/x86_64-linux-gnu/asm/unistd_64.h';
const GENERIC_HEADER = '/usr/include/asm-generic/unistd.h';

test('the numbers of x86-64 are those of the kernel headers', {
  skip: existsSync(X64_HEADER) ? false : `no ${X64_HEADER} (Debian package linux-libc-dev)`,
}, () => {
  compareWithHeader('x64', readNumbers(X64_HEADER));
});

test('the numbers of arm64 are those of the kernel headers', {
  skip: existsSync(GENERIC_HEADER) ? false : `no ${GENERIC_HEADER} (Debian package linux-libc-dev)`,
}, () => {
  // arm64 has every call of the generic list under its generic name, but for the 64-bit variants.
  const numbers = readNumbers(GENERIC_HEADER);
  const renamed = {
    fcntl: 'fcntl',
    lseek: 'lseek',
    mmap: 'mmap',
    sendfile: 'sendfile',
    truncate: 'truncate',
    ftruncate: 'ftruncate',
    fstatfs: 'fstatfs',
    newfstatat: 'fstatat',
    fstat: 'fstat',
    fadvise64: 'fadvise64',
  };
  for (const [name, shared] of Object.entries(renamed))
    numbers.set(name, numbers.get(`3264_${shared}`) ?? assert.fail(shared));
  // Behind conditions that arm64 sets (__ARCH_WANT_RENAMEAT, __ARCH_WANT_SET_GET_RLIMIT).
  compareWithHeader('arm64', numbers);
});

function readNumbers(file: string): Map<string, number> {
  const matches = readFileSync(file, 'utf8').matchAll(/^#define __NR(?:_|(?=3264))(\w+)\s+(\d+)/gm);
  return new Map([...matches].map(([, name = '', number]) => [name, Number(number)]));
}

function compareWithHeader(arch: FilterArch, header: ReadonlyMap<string, number>): void {
  for (const name of SYSCALL_NAMES) {
    const expected = header.get(name) ?? null;
    assert.equal(syscallNumber(arch, name), expected, name);
  }
}
