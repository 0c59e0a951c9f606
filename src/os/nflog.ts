/**
 * Packets that the kernel's rules have logged to a group (nfnetlink_log).
 *
 * Hides the netlink socket and its messages. Opening takes CAP_NET_ADMIN; whoever has the descriptor reads without any right,
 * and can change nothing by it: the kernel asks for the right of whoever sends, too. What is read is what strangers sent.
 */

import { VpnError } from '../base/errors.ts';
import { checkResult, Errno, NativeMemory, nativeCalls, systemError } from './ffi.ts';
import { Poll, PollEvents } from './poll.ts';

const AF_NETLINK = 16;
const SOCK_RAW_NONBLOCK_CLOEXEC = 3 | 0x800 | 0x80000;
const NETLINK_NETFILTER = 12;
const SOCKADDR_NL_BYTES = 12;
const SOL_SOCKET = 1;
const SO_RCVBUF = 8;
const RECEIVE_BYTES = 256 * 1024;
const BUFFER_BYTES = 64 * 1024;
/** Packets of one turn; what is left waits for the next. */
const MAX_PER_TURN = 64;

const HEADER_BYTES = 16;
const NFGENMSG_BYTES = 4;
const NLMSG_ERROR = 2;
const NLM_F_REQUEST_ACK = 1 | 4;
const NFNL_SUBSYS_ULOG = 4;
const NFULNL_MSG_PACKET = 0;
const NFULNL_MSG_CONFIG = 1;
const NFULA_PAYLOAD = 9;
const NFULA_CFG_CMD = 1;
const NFULA_CFG_MODE = 2;
const NFULNL_CFG_CMD_BIND = 1;
const NFULNL_COPY_PACKET = 2;

/** A message that configures a group: an attribute of up to 8 bytes. */
function configMessage(group: number, attribute: number, value: readonly number[]): Uint8Array {
  const attributeBytes = 4 + value.length;
  const length = HEADER_BYTES + NFGENMSG_BYTES + attributeBytes;
  const bytes = new Uint8Array((length + 3) & ~3);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, (NFNL_SUBSYS_ULOG << 8) | NFULNL_MSG_CONFIG, true);
  view.setUint16(6, NLM_F_REQUEST_ACK, true);
  // struct nfgenmsg: family, version, resource id in network order.
  view.setUint16(HEADER_BYTES + 2, group);
  view.setUint16(HEADER_BYTES + NFGENMSG_BYTES, attributeBytes, true);
  view.setUint16(HEADER_BYTES + NFGENMSG_BYTES + 2, attribute, true);
  bytes.set(value, HEADER_BYTES + NFGENMSG_BYTES + 4);
  return bytes;
}

/**
 * Opens the log of a group; the caller's to close.
 *
 * @throws {VpnError} ERR_PRIVILEGE, ERR_SYSCALL, ERR_HOST_APPLY when another program reads that group
 */
export function openLogGroup(group: number): number {
  const calls = nativeCalls();
  const what = 'reading what the packet rules log';
  const fd = checkResult(calls.socket(AF_NETLINK, SOCK_RAW_NONBLOCK_CLOEXEC, NETLINK_NETFILTER), what, 'socket');
  try {
    const address = new NativeMemory(SOCKADDR_NL_BYTES);
    address.view.setUint16(0, AF_NETLINK, true);
    checkResult(calls.bind(fd, address.address, SOCKADDR_NL_BYTES), what, 'bind');
    const size = new NativeMemory(4);
    size.view.setInt32(0, RECEIVE_BYTES, true);
    calls.setsockopt(fd, SOL_SOCKET, SO_RCVBUF, size.address, 4);
    ask(fd, configMessage(group, NFULA_CFG_CMD, [NFULNL_CFG_CMD_BIND]), group);
    // struct nfulnl_msg_config_mode: range in network order, mode, padding.
    ask(fd, configMessage(group, NFULA_CFG_MODE, [0, 0, 0xff, 0xff, NFULNL_COPY_PACKET, 0]), group);
    return fd;
  } catch (error) {
    calls.close(fd);
    throw error;
  }
}

/** The kernel answers while it is asked. */
function ask(fd: number, message: Uint8Array, group: number): void {
  const calls = nativeCalls();
  const what = 'reading what the packet rules log';
  const memory = new NativeMemory(message.length);
  memory.bytes.set(message);
  checkResult(calls.sendto(fd, memory.address, BigInt(message.length), 0, 0n, 0), what, 'sendto');
  const answer = new NativeMemory(BUFFER_BYTES);
  for (;;) {
    const length = checkResult(calls.recv(fd, answer.address, BigInt(BUFFER_BYTES), 0), what, 'recv');
    if (length < HEADER_BYTES + 4 || answer.view.getUint16(4, true) !== NLMSG_ERROR) continue;
    const errno = -answer.view.getInt32(HEADER_BYTES, true);
    if (errno === 0) return;
    if (errno === Errno.EPERM) throw new VpnError('ERR_PRIVILEGE', `${what}: CAP_NET_ADMIN is needed; run as root`);
    throw new VpnError('ERR_HOST_APPLY', `${what}: the kernel refuses group ${group} (errno ${errno})`, {
      details: { errno },
    });
  }
}

/** The packets in a datagram of the socket, as they begin; whatever else is in it is skipped. */
export function loggedPackets(bytes: Uint8Array): Uint8Array[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const packets: Uint8Array[] = [];
  for (let at = 0; at + HEADER_BYTES <= bytes.length; ) {
    const length = view.getUint32(at, true);
    if (length < HEADER_BYTES || at + length > bytes.length) break;
    if (view.getUint16(at + 4, true) === ((NFNL_SUBSYS_ULOG << 8) | NFULNL_MSG_PACKET)) {
      const packet = payloadIn(bytes, view, at + HEADER_BYTES + NFGENMSG_BYTES, at + length);
      if (packet !== undefined) packets.push(packet);
    }
    at += (length + 3) & ~3;
  }
  return packets;
}

function payloadIn(bytes: Uint8Array, view: DataView, start: number, end: number): Uint8Array | undefined {
  for (let at = start; at + 4 <= end; ) {
    const length = view.getUint16(at, true);
    if (length < 4 || at + length > end) return undefined;
    if ((view.getUint16(at + 2, true) & 0x3fff) === NFULA_PAYLOAD) return bytes.slice(at + 4, at + length);
    at += (length + 3) & ~3;
  }
  return undefined;
}

/** Reads the log of a group until it is disposed of; its owner has to. The descriptor stays the caller's. */
export class LogReader implements AsyncDisposable {
  readonly #calls = nativeCalls();
  readonly #fd: number;
  readonly #poll: Poll;
  readonly #buffer = new NativeMemory(BUFFER_BYTES);
  readonly #onPacket: (packet: Uint8Array) => void;
  #isClosed = false;

  /** @param onPacket must not throw */
  constructor(fd: number, onPacket: (packet: Uint8Array) => void) {
    this.#fd = fd;
    this.#onPacket = onPacket;
    this.#poll = new Poll(fd);
    this.#poll.start(PollEvents.readable, () => this.#read());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    await this.#poll.close();
  }

  #read(): void {
    for (let read = 0; read < MAX_PER_TURN; read++) {
      const length = this.#calls.recv(this.#fd, this.#buffer.address, BigInt(BUFFER_BYTES), 0);
      if (length < 0) {
        const errno = this.#calls.errno();
        // Lost messages: the log is a sample, whoever floods it.
        if (errno === Errno.EINTR || errno === Errno.ENOBUFS) continue;
        if (errno !== Errno.EAGAIN) throw systemError('reading what the packet rules log', 'recv', errno);
        return;
      }
      for (const packet of loggedPackets(this.#buffer.bytes.subarray(0, length))) this.#onPacket(packet);
    }
  }
}
