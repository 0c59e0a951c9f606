/**
 * Pairs of connected UNIX sockets between processes, and descriptors that travel over them.
 *
 * Hides socket pairs, message headers and control messages (unix(7), cmsg(3)). A packet carries a few bytes and one
 * descriptor: the receiver has its own copy and closes it. Whoever holds the sending end may send, so one end can be shared
 * by several processes. It must not know what the descriptors are.
 */

import { VpnError } from '../base/errors.ts';
import { checkResult, Errno, IoVector, type NativeCalls, NativeMemory, nativeCalls } from './ffi.ts';
import { Poll, PollEvents } from './poll.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_SEQPACKET = 5;
const NONBLOCK_CLOEXEC = 0x800 | 0x80000;

const PATH_BYTES = 108;
const BACKLOG = 128;

const SIOCOUTQ = 0x5411n;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const SO_PEERCRED = 17;
/** `struct ucred`: pid, uid, gid. */
const UCRED_BYTES = 12;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;

/** `struct msghdr` and `struct cmsghdr` of Linux with 64-bit pointers. */
const MSGHDR_BYTES = 56;
const CMSG_HEADER_BYTES = 16;
/** Room for one descriptor and no more: the kernel closes any others. */
const CMSG_LENGTH = CMSG_HEADER_BYTES + 4;

/** Longest packet. */
export const MAX_DESCRIPTOR_PACKET_BYTES = 20_480;
/** A wake takes at most so many. */
const WAKE_PACKETS = 64;

/**
 * Two connected sockets, both the caller's to close: `stream` for bytes, `packets` for descriptors.
 *
 * @throws {VpnError} ERR_SYSCALL
 */
export function socketPair(kind: 'stream' | 'packets'): [number, number] {
  const calls = nativeCalls();
  const type = (kind === 'stream' ? SOCK_STREAM : SOCK_SEQPACKET) | NONBLOCK_CLOEXEC;
  const pair = new NativeMemory(8);
  checkResult(calls.socketpair(AF_UNIX, type, 0, pair.address), 'connecting two processes', 'socketpair');
  return [pair.view.getInt32(0, true), pair.view.getInt32(4, true)];
}

/**
 * The user at the other end of a connected unix socket, as it was when it connected.
 *
 * @throws {VpnError} ERR_SYSCALL
 */
export function peerUser(fd: number): number {
  const credentials = new NativeMemory(UCRED_BYTES);
  const length = new NativeMemory(4);
  length.view.setUint32(0, UCRED_BYTES, true);
  const result = nativeCalls().getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials.address, length.address);
  checkResult(result, 'asking who calls', 'getsockopt SO_PEERCRED');
  return credentials.view.getUint32(4, true);
}

/** One message with room for a descriptor. */
class Message {
  readonly bytes: NativeMemory;
  readonly #vector = new IoVector();
  readonly #control = new NativeMemory(CMSG_LENGTH);
  readonly #header = new NativeMemory(MSGHDR_BYTES);

  constructor(lengthBytes: number) {
    this.bytes = new NativeMemory(lengthBytes);
    this.#vector.setBase(this.bytes.address);
    const { view } = this.#header;
    view.setBigUint64(16, this.#vector.address, true);
    view.setBigUint64(24, 1n, true);
    view.setBigUint64(32, this.#control.address, true);
  }

  get address(): bigint {
    return this.#header.address;
  }

  prepare(length: number, fd: number | undefined): void {
    this.#vector.setLength(length);
    this.#header.view.setBigUint64(40, BigInt(CMSG_LENGTH), true);
    this.#header.view.setInt32(48, 0, true);
    this.#control.bytes.fill(0);
    if (fd === undefined) return;
    this.#control.view.setBigUint64(0, BigInt(CMSG_LENGTH), true);
    this.#control.view.setInt32(8, SOL_SOCKET, true);
    this.#control.view.setInt32(12, SCM_RIGHTS, true);
    this.#control.view.setInt32(CMSG_HEADER_BYTES, fd, true);
  }

  /** The descriptor that came; undefined: none. */
  get descriptor(): number | undefined {
    const has =
      this.#header.view.getBigUint64(40, true) >= BigInt(CMSG_LENGTH) &&
      this.#control.view.getBigUint64(0, true) >= BigInt(CMSG_LENGTH) &&
      this.#control.view.getInt32(8, true) === SOL_SOCKET &&
      this.#control.view.getInt32(12, true) === SCM_RIGHTS;
    return has ? this.#control.view.getInt32(CMSG_HEADER_BYTES, true) : undefined;
  }
}

/** Sends descriptors over one end of a pair of `packets`. The end stays the caller's. */
export class DescriptorSender {
  readonly #calls: NativeCalls = nativeCalls();
  readonly #fd: number;
  readonly #message = new Message(MAX_DESCRIPTOR_PACKET_BYTES);
  readonly #unread = new NativeMemory(4);

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Whether the receiver has not read all that was sent. */
  get hasUnread(): boolean {
    const { address, view } = this.#unread;
    return this.#calls.ioctl(this.#fd, SIOCOUTQ, address) >= 0 && view.getInt32(0, true) > 0;
  }

  /**
   * Sends a copy of a descriptor. Never waits.
   *
   * @param bytes at least one, at most `MAX_DESCRIPTOR_PACKET_BYTES`
   * @returns false when the receiver has too much to do, or is gone
   */
  send(bytes: Uint8Array, fd: number): boolean {
    if (bytes.length === 0 || bytes.length > MAX_DESCRIPTOR_PACKET_BYTES) {
      throw new VpnError('ERR_INVARIANT', `a packet with a descriptor has ${bytes.length} bytes`);
    }
    this.#message.bytes.bytes.set(bytes);
    this.#message.prepare(bytes.length, fd);
    return this.#calls.sendmsg(this.#fd, this.#message.address, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
  }
}

/** Takes descriptors from one end of a pair of `packets`, which it takes over. */
export class DescriptorReceiver {
  readonly #calls: NativeCalls = nativeCalls();
  readonly #poll: Poll;
  readonly #message = new Message(MAX_DESCRIPTOR_PACKET_BYTES);
  readonly #take: (bytes: Uint8Array, fd: number) => void;
  #fd: number;
  #isPaused = true;

  /**
   * @param take given the bytes, which are good only during the call, and the descriptor, which it has to close
   * @throws {VpnError} ERR_SYSCALL
   */
  constructor(fd: number, take: (bytes: Uint8Array, fd: number) => void) {
    this.#fd = fd;
    this.#take = take;
    this.#poll = new Poll(fd);
    this.resume();
  }

  /** Takes no more for now; what is sent meanwhile waits, and then the sender is told. May be called by `take`. */
  pause(): void {
    this.#isPaused = true;
    this.#poll.stop();
  }

  resume(): void {
    if (!this.#isPaused || this.#fd < 0) return;
    this.#isPaused = false;
    this.#poll.start(PollEvents.readable, () => this.#wake());
  }

  /** No more can come: the senders are gone, one of them has ended it for all (shutdown(2)), or it was closed here. */
  get isOver(): boolean {
    return this.#fd < 0;
  }

  #wake(): void {
    for (let count = 0; count < WAKE_PACKETS && this.#fd >= 0 && !this.#isPaused; count++) {
      this.#message.prepare(MAX_DESCRIPTOR_PACKET_BYTES, undefined);
      const length = this.#calls.recvmsg(this.#fd, this.#message.address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
      if (length < 0) {
        const errno = this.#calls.errno();
        if (errno === Errno.EINTR) continue;
        if (errno === Errno.EAGAIN) return;
        // Whatever a sender has done to the pair: nothing more comes over it.
        void this.close();
        return;
      }
      const fd = this.#message.descriptor;
      if (length === 0) {
        // Every sender is gone, or a sender means to look like that: an empty packet cannot be told from it.
        if (fd !== undefined) this.#calls.close(fd);
        void this.close();
        return;
      }
      if (fd !== undefined) this.#take(this.#message.bytes.bytes.subarray(0, length), fd);
    }
  }

  /** Idempotent. */
  close(): Promise<void> {
    const closed = this.#poll.close();
    if (this.#fd >= 0) {
      this.#calls.close(this.#fd);
      this.#fd = -1;
    }
    return closed;
  }
}

/**
 * Opens a listening socket at a path, which only the owner may connect to unless it is `forAll`; the caller's to close, and the path
 * to remove.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE when the path is too long, ERR_SYSCALL
 */
export function listenAtPath(path: string, forAll = false): number {
  const calls = nativeCalls();
  const what = `listening at ${path}`;
  const name = Buffer.from(`${path}\0`);
  if (name.length > PATH_BYTES) throw new VpnError('ERR_CONFIG_VALUE', `${what}: the path is too long for a socket`);
  const address = new NativeMemory(2 + name.length);
  address.view.setUint16(0, AF_UNIX, true);
  address.bytes.set(name, 2);
  const fd = checkResult(calls.socket(AF_UNIX, SOCK_STREAM | NONBLOCK_CLOEXEC, 0), what, 'socket');
  const mask = process.umask(forAll ? 0o111 : 0o177);
  try {
    checkResult(calls.bind(fd, address.address, address.bytes.length), what, 'bind');
    checkResult(calls.listen(fd, BACKLOG), what, 'listen');
    return fd;
  } catch (error) {
    calls.close(fd);
    throw error;
  } finally {
    process.umask(mask);
  }
}
