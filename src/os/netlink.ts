/**
 * Tells at once when links, addresses or routes of this machine change.
 *
 * Hides the kernel's routing socket (rtnetlink(7)): its groups, messages and alignment, and that messages are lost when they come
 * too fast, which is told as one more change. No privilege is needed. It must not know what a change means for a connection.
 */

import { checkResult, Errno, NativeMemory, nativeCalls, systemError } from './ffi.ts';
import { Poll, PollEvents } from './poll.ts';

const AF_NETLINK = 16;
const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0x800 | 0x80000;
const NETLINK_ROUTE = 0;
/** RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE */
const GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const SOCKADDR_NL_BYTES = 12;
const BUFFER_BYTES = 64 * 1024;

const HEADER_BYTES = 16;
const INTERFACE_AT = HEADER_BYTES + 4;
const ROUTE_BYTES = 12;
const ROUTE_FLAGS_AT = HEADER_BYTES + 8;
/** A cached route: a consequence of traffic, not a change of the machine. */
const RTM_F_CLONED = 0x200;
const RTA_OIF = 4;

/** What a message is about, by its type: link, address, route. */
const KINDS: Readonly<Record<number, NetworkChange['kind']>> = {
  16: 'link',
  17: 'link',
  20: 'address',
  21: 'address',
  24: 'route',
  25: 'route',
};

/** One change. */
export interface NetworkChange {
  readonly kind: 'link' | 'address' | 'route';
  /** The index of the interface; 0 where the kernel named none, as of a route to nowhere. */
  readonly index: number;
}

/** The changes that are in a datagram of the routing socket; whatever else is in it is skipped. */
export function parseChanges(bytes: Uint8Array): NetworkChange[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const changes: NetworkChange[] = [];
  for (let at = 0; at + HEADER_BYTES <= bytes.length; ) {
    const length = view.getUint32(at, true);
    if (length < HEADER_BYTES || at + length > bytes.length) break;
    const kind = KINDS[view.getUint16(at + 4, true)];
    if (kind === 'route') {
      const isCached = length >= ROUTE_FLAGS_AT + 4 && (view.getUint32(at + ROUTE_FLAGS_AT, true) & RTM_F_CLONED) !== 0;
      if (!isCached)
        changes.push({ kind, index: outgoingInterface(view, at + HEADER_BYTES + ROUTE_BYTES, at + length) });
    } else if (kind !== undefined && length >= INTERFACE_AT + 4) {
      changes.push({ kind, index: view.getUint32(at + INTERFACE_AT, true) });
    }
    at += (length + 3) & ~3;
  }
  return changes;
}

function outgoingInterface(view: DataView, start: number, end: number): number {
  for (let at = start; at + 4 <= end; ) {
    const length = view.getUint16(at, true);
    if (length < 4 || at + length > end) break;
    if (view.getUint16(at + 2, true) === RTA_OIF && length >= 8) return view.getUint32(at + 4, true);
    at += (length + 3) & ~3;
  }
  return 0;
}

/** The index of an interface; 0 when there is none of that name. */
export function interfaceIndex(name: string): number {
  return nativeCalls().if_nametoindex(name);
}

/** Watches the network of this machine until it is disposed of; its owner has to. */
export class NetworkMonitor implements AsyncDisposable {
  readonly #calls = nativeCalls();
  readonly #fd: number;
  readonly #poll: Poll;
  readonly #buffer = new NativeMemory(BUFFER_BYTES);
  readonly #onChange: () => void;
  readonly #ignored = new Set<number>();
  #isClosed = false;

  /**
   * @param onChange called once for all changes that have come together; must not throw
   * @throws {VpnError} ERR_SYSCALL, ERR_UNSUPPORTED (not Linux)
   */
  constructor(onChange: () => void) {
    this.#onChange = onChange;
    const calls = this.#calls;
    const what = 'watching the network';
    const fd = checkResult(calls.socket(AF_NETLINK, SOCK_RAW_NONBLOCK_CLOEXEC, NETLINK_ROUTE), what, 'socket');
    this.#fd = fd;
    try {
      const address = new NativeMemory(SOCKADDR_NL_BYTES);
      address.view.setUint16(0, AF_NETLINK, true);
      address.view.setUint32(8, GROUPS, true);
      checkResult(calls.bind(fd, address.address, SOCKADDR_NL_BYTES), what, 'bind');
      this.#poll = new Poll(fd);
      this.#poll.start(PollEvents.readable, () => this.#read());
    } catch (error) {
      calls.close(fd);
      throw error;
    }
  }

  /** Changes of this interface are nobody's business: it is our own. */
  ignore(name: string): void {
    const index = interfaceIndex(name);
    if (index !== 0) this.#ignored.add(index);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#poll.close();
    this.#calls.close(this.#fd);
  }

  #read(): void {
    let hasChanged = false;
    for (;;) {
      const length = this.#calls.recv(this.#fd, this.#buffer.address, BigInt(BUFFER_BYTES), 0);
      if (length < 0) {
        const errno = this.#calls.errno();
        if (errno === Errno.EINTR) continue;
        // Lost messages: something has changed, and what it was is found by looking.
        if (errno === Errno.ENOBUFS) {
          hasChanged = true;
          continue;
        }
        if (errno !== Errno.EAGAIN) throw systemError('watching the network', 'recv', errno);
        break;
      }
      hasChanged ||= parseChanges(this.#buffer.bytes.subarray(0, length)).some(
        ({ index }) => !this.#ignored.has(index),
      );
    }
    if (hasChanged) this.#onChange();
  }
}
