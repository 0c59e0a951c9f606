/**
 * The one door to C: system calls and libuv, through `node:ffi`.
 *
 * Hides the foreign function interface and its rules, so that it can be replaced by changing this file: a raw pointer
 * does not keep its memory alive (`NativeMemory` couples the two), pointers travel as 64-bit integers computed once,
 * results come back as 32-bit integers (a 64-bit result would allocate), `errno` is read before anything else happens.
 * Nothing is loaded until it is first used, so that a platform without these functions can import this file.
 * Numbers are those of Linux on x86-64 and arm64, whose ABI passes variadic arguments like fixed ones.
 *
 * Must not know what the calls are for. No other file imports `node:ffi`; an architecture test holds that.
 */

import { dlopen, getCurrentEventLoop, getRawPointer, toArrayBuffer } from 'node:ffi';
import { getSystemErrorMap } from 'node:util';
import { VpnError } from '../base/errors.ts';

const SYSTEM_CALLS = {
  open: { arguments: ['string', 'i32', 'i32'], return: 'i32' },
  close: { arguments: ['i32'], return: 'i32' },
  ioctl: { arguments: ['i32', 'u64', 'u64'], return: 'i32' },
  fcntl: { arguments: ['i32', 'i32', 'u64'], return: 'i32' },
  readv: { arguments: ['i32', 'u64', 'i32'], return: 'i32' },
  writev: { arguments: ['i32', 'u64', 'i32'], return: 'i32' },
  socket: { arguments: ['i32', 'i32', 'i32'], return: 'i32' },
  bind: { arguments: ['i32', 'u64', 'u32'], return: 'i32' },
  listen: { arguments: ['i32', 'i32'], return: 'i32' },
  sendto: { arguments: ['i32', 'u64', 'u64', 'i32', 'u64', 'u32'], return: 'i32' },
  socketpair: { arguments: ['i32', 'i32', 'i32', 'u64'], return: 'i32' },
  sendmsg: { arguments: ['i32', 'u64', 'i32'], return: 'i32' },
  recvmsg: { arguments: ['i32', 'u64', 'i32'], return: 'i32' },
  connect: { arguments: ['i32', 'u64', 'u32'], return: 'i32' },
  recv: { arguments: ['i32', 'u64', 'u64', 'i32'], return: 'i32' },
  setsockopt: { arguments: ['i32', 'i32', 'i32', 'u64', 'u32'], return: 'i32' },
  getsockopt: { arguments: ['i32', 'i32', 'i32', 'u64', 'u64'], return: 'i32' },
  getsockname: { arguments: ['i32', 'u64', 'u64'], return: 'i32' },
  flock: { arguments: ['i32', 'i32'], return: 'i32' },
  setns: { arguments: ['i32', 'i32'], return: 'i32' },
  unshare: { arguments: ['i32'], return: 'i32' },
  mount: { arguments: ['string', 'string', 'string', 'u64', 'u64'], return: 'i32' },
  if_nametoindex: { arguments: ['string'], return: 'u32' },
  prctl: { arguments: ['i32', 'u64', 'u64', 'u64', 'u64'], return: 'i32' },
  syscall: { arguments: ['u64', 'u64', 'u64', 'u64', 'u64'], return: 'i32' },
  __errno_location: { arguments: [], return: 'u64' },
  uv_handle_size: { arguments: ['i32'], return: 'u64' },
  uv_poll_init: { arguments: ['u64', 'u64', 'i32'], return: 'i32' },
  uv_poll_start: { arguments: ['u64', 'i32', 'u64'], return: 'i32' },
  uv_poll_stop: { arguments: ['u64'], return: 'i32' },
  uv_close: { arguments: ['u64', 'u64'], return: 'void' },
} as const;

/** The system calls of this process, bound once per thread. A failed call returns -1; ask `errno()` at once. */
export interface NativeCalls {
  open(path: string, flags: number, mode: number): number;
  close(fd: number): number;
  ioctl(fd: number, request: bigint, argument: bigint): number;
  fcntl(fd: number, command: number, argument: bigint): number;
  /** `iovec`: address of an `IoVector`'s memory. */
  readv(fd: number, iovec: bigint, count: number): number;
  writev(fd: number, iovec: bigint, count: number): number;
  socket(family: number, type: number, protocol: number): number;
  bind(fd: number, address: bigint, length: number): number;
  listen(fd: number, backlog: number): number;
  sendto(fd: number, bytes: bigint, length: bigint, flags: number, address: bigint, addressLength: number): number;
  socketpair(family: number, type: number, protocol: number, pair: bigint): number;
  /** `message`: address of a `struct msghdr`. */
  sendmsg(fd: number, message: bigint, flags: number): number;
  recvmsg(fd: number, message: bigint, flags: number): number;
  connect(fd: number, address: bigint, length: number): number;
  recv(fd: number, bytes: bigint, length: bigint, flags: number): number;
  setsockopt(fd: number, level: number, name: number, value: bigint, length: number): number;
  getsockopt(fd: number, level: number, name: number, value: bigint, length: bigint): number;
  getsockname(fd: number, address: bigint, length: bigint): number;
  flock(fd: number, operation: number): number;
  /** These two are for the calling thread only. */
  setns(fd: number, kind: number): number;
  unshare(flags: number): number;
  mount(source: string, target: string, type: string, flags: bigint, data: bigint): number;
  /** 0: there is no such interface. */
  if_nametoindex(name: string): number;
  prctl(option: number, a: bigint, b: bigint, c: bigint, d: bigint): number;
  /** A call that the C library has no function for, by its number on this architecture. */
  syscall(number: bigint, a: bigint, b: bigint, c: bigint, d: bigint): number;
  /** The error number of the last failed call on this thread. Valid only until the next call of anything. */
  errno(): number;
}

/** What `poll.ts` needs of libuv, on this thread's event loop. The callbacks must not throw. */
export interface NativePoll {
  readonly handleBytes: number;
  init(handle: bigint, fd: number): number;
  start(handle: bigint, events: number): number;
  stop(handle: bigint): number;
  close(handle: bigint): void;
}

interface Bound {
  library: ReturnType<typeof dlopen>['lib'];
  functions: ReturnType<typeof dlopen<typeof SYSTEM_CALLS>>['functions'];
  calls: NativeCalls;
}

let bound: Bound | undefined;

function bind(): Bound {
  if (bound !== undefined) return bound;
  if (process.platform !== 'linux') {
    throw new VpnError('ERR_UNSUPPORTED', `this needs Linux; this machine runs ${process.platform}`, {
      details: { platform: process.platform },
    });
  }
  const { lib, functions } = dlopen(null, SYSTEM_CALLS);
  const errnoView = new Int32Array(toArrayBuffer(functions.__errno_location(), 4, false));
  bound = { library: lib, functions, calls: { ...functions, errno: () => errnoView[0] ?? 0 } };
  return bound;
}

/**
 * The system calls of this process.
 *
 * @throws {VpnError} ERR_UNSUPPORTED on a platform other than Linux
 */
export function nativeCalls(): NativeCalls {
  return bind().calls;
}

/** Called with the handle's address, a libuv status (negative: an error number) and the events that came. */
export type NativePollListener = (handle: bigint, status: number, events: number) => void;

/**
 * Registers the callbacks of all of this thread's poll handles. They live as long as the thread: a callback that is never
 * taken away cannot be called after it is gone.
 */
export function nativePoll(onEvent: NativePollListener, onClosed: (handle: bigint) => void): NativePoll {
  const { library, functions } = bind();
  const loop = getCurrentEventLoop();
  const eventCallback = library.registerCallback({ arguments: ['u64', 'i32', 'i32'], return: 'void' }, onEvent);
  const closedCallback = library.registerCallback({ arguments: ['u64'], return: 'void' }, onClosed);
  const uvPoll = 8;
  return {
    handleBytes: Number(functions.uv_handle_size(uvPoll)),
    init: (handle, fd) => functions.uv_poll_init(loop, handle, fd),
    start: (handle, events) => functions.uv_poll_start(handle, events, eventCallback),
    stop: (handle) => functions.uv_poll_stop(handle),
    close: (handle) => functions.uv_close(handle, closedCallback),
  };
}

/**
 * Zeroed memory whose address C may be given. Valid as long as this object is reachable: keep it in a field of whatever
 * outlives the calls. It never moves: small typed arrays live on the collector's heap, an explicit ArrayBuffer does not.
 */
export class NativeMemory {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
  readonly address: bigint;

  constructor(lengthBytes: number) {
    const memory = new ArrayBuffer(lengthBytes);
    this.bytes = new Uint8Array(memory);
    this.view = new DataView(memory);
    this.address = getRawPointer(memory);
  }
}

/** One `struct iovec` (base u64, length u64, little-endian), so that a length reaches the kernel without a 64-bit number. */
export class IoVector {
  readonly #memory = new NativeMemory(16);
  readonly #base = new BigUint64Array(this.#memory.bytes.buffer, 0, 1);
  readonly #length = new Uint32Array(this.#memory.bytes.buffer, 8, 2);

  get address(): bigint {
    return this.#memory.address;
  }

  setBase(address: bigint): void {
    this.#base[0] = address;
  }

  setLength(lengthBytes: number): void {
    this.#length[0] = lengthBytes;
  }
}

/** The name of an error number, as in `EAGAIN`. */
export function errnoName(errno: number): string {
  return getSystemErrorMap().get(-errno)?.[0] ?? `errno ${errno}`;
}

/** The error numbers that the program branches on. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EBADF: 9,
  EAGAIN: 11,
  EACCES: 13,
  EBUSY: 16,
  ENODEV: 19,
  EINVAL: 22,
  ENOSYS: 38,
  ENOPROTOOPT: 92,
  EADDRINUSE: 98,
  EADDRNOTAVAIL: 99,
  ENOBUFS: 105,
} as const;

/** An error for a system call that failed with `errno`, in words: what was being done, which call, why. */
export function systemError(what: string, syscall: string, errno: number): VpnError {
  const name = errnoName(errno);
  const why = getSystemErrorMap().get(-errno)?.[1] ?? 'unknown error';
  return new VpnError('ERR_SYSCALL', `${what}: ${syscall}: ${name} (${why})`, {
    details: { syscall, errno: name, errnoNumber: errno },
  });
}

/**
 * Passes a result on; turns -1 into an error.
 *
 * @throws {VpnError} ERR_SYSCALL
 */
export function checkResult(result: number, what: string, syscall: string): number {
  if (result >= 0) return result;
  throw systemError(what, syscall, nativeCalls().errno());
}
