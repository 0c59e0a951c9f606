/**
 * What Node's sockets cannot be asked for: options of the kernel's TCP, and how much it has not sent yet.
 *
 * Hides socket options, socket address structures and the one private field of `net.Socket` that holds its descriptor.
 * A connection carries a tunnel well only with a small unsent backlog and, but for near paths, with BBR: both are set on the
 * listening socket, because accepted sockets inherit them, and on a dialled socket before its first data.
 */

import { createSocket, type Socket as DatagramSocket } from 'node:dgram';
import { Socket, type SocketConstructorOpts } from 'node:net';
import { VpnError } from '../base/errors.ts';
import { type IpAddress, parseIp } from '../ip/address.ts';
import { checkResult, Errno, errnoName, type NativeCalls, NativeMemory, nativeCalls, systemError } from './ffi.ts';
import { Poll, PollEvents } from './poll.ts';

const AF_INET = 2;
const AF_INET6 = 10;
const SOCK_STREAM_NONBLOCK_CLOEXEC = 1 | 0x800 | 0x80000;
const SOCK_DGRAM_CLOEXEC = 2 | 0x80000;
const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0x800 | 0x80000;

const SOL_SOCKET = 1;
const SO_REUSEADDR = 2;
const SO_REUSEPORT = 15;
const SO_MARK = 36;
const IPPROTO_IPV6 = 41;
const IPV6_V6ONLY = 26;
const IPPROTO_IP = 0;
const IP_MTU = 14;
const IPV6_MTU = 24;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const TCP_INFO = 11;
const TCP_CONGESTION = 13;
const TCP_USER_TIMEOUT = 18;
const TCP_NOTSENT_LOWAT = 25;
/** Since Linux 6.15. */
const TCP_RTO_MAX_MS = 44;

const SIOCOUTQ = 0x5411n;
const SIOCOUTQNSD = 0x894bn;
const F_DUPFD_CLOEXEC = 1030;

const CONGESTION_NAME_BYTES = 16;
/** `struct tcp_info` of linux/tcp.h, up to the last field that is read. */
const TCP_INFO_BYTES = 160;
const INFO_RTT = 68;
const INFO_TOTAL_RETRANS = 100;
const INFO_BYTES_ACKED = 120;
const INFO_MIN_RTT = 148;
const INFO_DATA_SEGS_OUT = 156;
const SOCKADDR_BYTES = 28;

export interface TuneOptions {
  /** The congestion control to use where the kernel has it and allows it. */
  congestion?: string;
  /** Bytes that may wait unsent in the kernel before the socket stops being writable. */
  notSentLowat?: number;
  /** How long sent data may stay unacknowledged before the kernel gives the connection up. */
  userTimeoutMs?: number;
  /** The longest time after which what was lost is sent again, where the kernel lets that be said; at least 1000. */
  maxRetransmitMs?: number;
  /** The firewall mark of the connection's packets; needs CAP_NET_ADMIN. */
  mark?: number;
  noDelay?: boolean;
}

export interface ListenSocketOptions extends TuneOptions {
  /** An IPv4 or IPv6 address; `::` takes both families. */
  address: string;
  /** 0: the kernel chooses. */
  port: number;
  backlog?: number;
  /** Several sockets share the port; the kernel spreads connections over them. */
  reusePort?: boolean;
}

/** A listening socket that belongs to the caller; pass `fd` to `server.listen({ fd })` or to a child. */
export interface ListenSocket {
  fd: number;
  port: number;
  /** The congestion control in force: not the one asked for where the kernel lacks it, which the caller should say. */
  congestion: string;
}

/**
 * Opens a listening TCP socket.
 *
 * @throws {VpnError} ERR_PORT_TAKEN, ERR_PRIVILEGE, ERR_CONFIG_VALUE (no address of this machine), ERR_SYSCALL
 */
export function openListenSocket(options: ListenSocketOptions): ListenSocket {
  const calls = nativeCalls();
  const ip = parseIp(options.address);
  const family = ip.version === 4 ? AF_INET : AF_INET6;
  const what = `listening on ${formatEndpoint(options.address, options.port)}`;
  const fd = checkResult(calls.socket(family, SOCK_STREAM_NONBLOCK_CLOEXEC, 0), what, 'socket');
  try {
    setInt(calls, fd, SOL_SOCKET, SO_REUSEADDR, 1, what);
    if (options.reusePort === true) setInt(calls, fd, SOL_SOCKET, SO_REUSEPORT, 1, what);
    if (ip.version === 6) {
      const isWildcard = ip.bytes.every((byte) => byte === 0);
      setInt(calls, fd, IPPROTO_IPV6, IPV6_V6ONLY, isWildcard ? 0 : 1, what);
    }
    const { congestion } = tuneSocket(fd, options);
    const address = socketAddress(ip.bytes, options.port);
    const addressBytes = ip.version === 4 ? 16 : SOCKADDR_BYTES;
    if (calls.bind(fd, address.address, addressBytes) < 0) throw bindError(calls.errno(), options, what);
    if (calls.listen(fd, options.backlog ?? 4096) < 0) throw bindError(calls.errno(), options, what);
    return { fd, port: boundPort(calls, fd, what), congestion };
  } catch (error) {
    calls.close(fd);
    throw error;
  }
}

/**
 * The address that this machine would send from to reach `remote` now; undefined when there is no way there. Nothing is sent.
 *
 * @param mark the firewall mark of the packets, where routing looks at it
 * @throws {VpnError} ERR_SYSCALL, ERR_PRIVILEGE (mark)
 */
export function sourceAddress(remote: IpAddress, mark?: number): IpAddress | undefined {
  const calls = nativeCalls();
  const what = 'looking for the way to a server';
  const is4 = remote.version === 4;
  const fd = checkResult(calls.socket(is4 ? AF_INET : AF_INET6, SOCK_DGRAM_CLOEXEC, 0), what, 'socket');
  try {
    if (mark !== undefined) setMark(calls, fd, mark, what);
    // Any port will do: a datagram socket only looks up the route.
    const address = socketAddress(remote.bytes, 9);
    if (calls.connect(fd, address.address, is4 ? 16 : SOCKADDR_BYTES) < 0) return undefined;
    const local = new NativeMemory(SOCKADDR_BYTES);
    const length = new NativeMemory(4);
    length.view.setUint32(0, SOCKADDR_BYTES, true);
    checkResult(calls.getsockname(fd, local.address, length.address), what, 'getsockname');
    return { version: remote.version, bytes: local.bytes.slice(is4 ? 4 : 8, is4 ? 8 : 24) };
  } finally {
    calls.close(fd);
  }
}

/** The largest packet that the way of a connected socket takes, as far as the kernel knows; undefined when it does not tell. */
export function pathMtu(fd: number, version: 4 | 6): number | undefined {
  const value = new NativeMemory(4);
  const length = new NativeMemory(4);
  length.view.setUint32(0, 4, true);
  const [level, name] = version === 4 ? [IPPROTO_IP, IP_MTU] : [IPPROTO_IPV6, IPV6_MTU];
  if (nativeCalls().getsockopt(fd, level, name, value.address, length.address) < 0) return undefined;
  return value.view.getInt32(0, true);
}

/** Another descriptor of the same thing, the caller's to close. @throws {VpnError} ERR_SYSCALL */
export function duplicateFd(fd: number): number {
  return checkResult(nativeCalls().fcntl(fd, F_DUPFD_CLOEXEC, 0n), 'duplicating a descriptor', 'fcntl F_DUPFD_CLOEXEC');
}

/** Closes a descriptor that this room has opened and nobody has taken over. */
export function closeFd(fd: number): void {
  nativeCalls().close(fd);
}

function bindError(errno: number, options: ListenSocketOptions, what: string): VpnError {
  const details = { errno: errnoName(errno), address: options.address, port: options.port };
  if (errno === Errno.EADDRINUSE) {
    return new VpnError(
      'ERR_PORT_TAKEN',
      `${what}: another program has this port; find it with: ss -ltnp 'sport = :${options.port}'`,
      { details },
    );
  }
  if (errno === Errno.EACCES || errno === Errno.EPERM) {
    return new VpnError(
      'ERR_PRIVILEGE',
      `${what}: permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE`,
      { details },
    );
  }
  if (errno === Errno.EADDRNOTAVAIL) {
    return new VpnError(
      'ERR_CONFIG_VALUE',
      `${what}: no interface of this machine has this address; see them with: ip address`,
      { details },
    );
  }
  return systemError(what, 'bind', errno);
}

function socketAddress(ip: Uint8Array, port: number): NativeMemory {
  const memory = new NativeMemory(SOCKADDR_BYTES);
  memory.view.setUint16(0, ip.length === 4 ? AF_INET : AF_INET6, true);
  memory.view.setUint16(2, port);
  memory.bytes.set(ip, ip.length === 4 ? 4 : 8);
  return memory;
}

function boundPort(calls: NativeCalls, fd: number, what: string): number {
  const address = new NativeMemory(SOCKADDR_BYTES);
  const length = new NativeMemory(4);
  length.view.setUint32(0, SOCKADDR_BYTES, true);
  checkResult(calls.getsockname(fd, address.address, length.address), what, 'getsockname');
  return address.view.getUint16(2);
}

/**
 * Sets options on a TCP socket, before its first data. A congestion control that the kernel does not have, or does not
 * allow to this user, is left out.
 *
 * @returns the congestion control in force
 * @throws {VpnError} ERR_SYSCALL, ERR_PRIVILEGE (mark)
 */
export function tuneSocket(fd: number, options: TuneOptions): { congestion: string } {
  const calls = nativeCalls();
  const what = 'setting socket options';
  if (options.mark !== undefined) setMark(calls, fd, options.mark, what);
  if (options.noDelay !== undefined) setInt(calls, fd, IPPROTO_TCP, TCP_NODELAY, options.noDelay ? 1 : 0, what);
  if (options.notSentLowat !== undefined) {
    setInt(calls, fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, options.notSentLowat, what);
  }
  if (options.userTimeoutMs !== undefined) {
    setInt(calls, fd, IPPROTO_TCP, TCP_USER_TIMEOUT, options.userTimeoutMs, what);
  }
  if (options.maxRetransmitMs !== undefined) setMaxRetransmit(calls, fd, options.maxRetransmitMs, what);
  if (options.congestion !== undefined) {
    const name = new NativeMemory(CONGESTION_NAME_BYTES);
    const length = new TextEncoder().encodeInto(options.congestion, name.bytes).written;
    if (calls.setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.address, length) < 0) {
      const errno = calls.errno();
      if (errno !== Errno.ENOENT && errno !== Errno.EPERM) {
        throw systemError(what, 'setsockopt TCP_CONGESTION', errno);
      }
    }
  }
  return { congestion: congestionOf(calls, fd, what) };
}

function setMaxRetransmit(calls: NativeCalls, fd: number, milliseconds: number, what: string): void {
  const value = new NativeMemory(4);
  value.view.setInt32(0, milliseconds, true);
  if (calls.setsockopt(fd, IPPROTO_TCP, TCP_RTO_MAX_MS, value.address, 4) >= 0) return;
  const errno = calls.errno();
  if (errno !== Errno.ENOPROTOOPT) throw systemError(what, 'setsockopt TCP_RTO_MAX_MS', errno);
}

function setMark(calls: NativeCalls, fd: number, mark: number, what: string): void {
  const value = new NativeMemory(4);
  value.view.setUint32(0, mark, true);
  if (calls.setsockopt(fd, SOL_SOCKET, SO_MARK, value.address, 4) >= 0) return;
  const errno = calls.errno();
  if (errno !== Errno.EPERM) throw systemError(what, 'setsockopt SO_MARK', errno);
  throw new VpnError('ERR_PRIVILEGE', 'a firewall mark on a socket needs CAP_NET_ADMIN; run as root');
}

/**
 * A TCP socket for `connect`, whose packets carry a firewall mark from the first one on.
 *
 * @throws {VpnError} ERR_PRIVILEGE, ERR_SYSCALL
 */
export function openMarkedSocket(family: 4 | 6, mark: number): Socket {
  const calls = nativeCalls();
  const kind = family === 4 ? AF_INET : AF_INET6;
  const fd = checkResult(calls.socket(kind, SOCK_STREAM_NONBLOCK_CLOEXEC, 0), 'opening a socket', 'socket');
  try {
    setMark(calls, fd, mark, 'marking a socket');
    // Without it Node reads at once from whatever has a descriptor, and this one is not connected yet.
    return new Socket({ fd, manualStart: true } as SocketConstructorOpts);
  } catch (error) {
    calls.close(fd);
    throw error;
  }
}

/**
 * A UDP socket whose packets carry a firewall mark.
 *
 * @throws {VpnError} ERR_PRIVILEGE, ERR_SYSCALL
 */
export function openMarkedDatagrams(family: 4 | 6, mark: number): DatagramSocket {
  const calls = nativeCalls();
  const kind = family === 4 ? AF_INET : AF_INET6;
  const fd = checkResult(calls.socket(kind, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0), 'opening a socket', 'socket');
  try {
    setMark(calls, fd, mark, 'marking a socket');
    return createSocket(family === 4 ? 'udp4' : 'udp6').bind({ fd });
  } catch (error) {
    calls.close(fd);
    throw error;
  }
}

function congestionOf(calls: NativeCalls, fd: number, what: string): string {
  const name = new NativeMemory(CONGESTION_NAME_BYTES);
  const length = new NativeMemory(4);
  length.view.setUint32(0, CONGESTION_NAME_BYTES, true);
  const result = calls.getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name.address, length.address);
  checkResult(result, what, 'getsockopt TCP_CONGESTION');
  const end = name.bytes.indexOf(0);
  return new TextDecoder().decode(name.bytes.subarray(0, end < 0 ? CONGESTION_NAME_BYTES : end));
}

function setInt(calls: NativeCalls, fd: number, level: number, name: number, value: number, what: string): void {
  const memory = new NativeMemory(4);
  memory.view.setInt32(0, value, true);
  checkResult(calls.setsockopt(fd, level, name, memory.address, 4), what, `setsockopt ${level}/${name}`);
}

function formatEndpoint(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

/**
 * The descriptor of a connected socket; also of a `tls.TLSSocket`.
 *
 * @throws {VpnError} ERR_INVARIANT when it has none: not connected, or destroyed
 */
export function socketFd(socket: Socket): number {
  const handle: unknown = Reflect.get(socket, '_handle');
  const fd: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'fd') : undefined;
  if (typeof fd !== 'number' || fd < 0) throw new VpnError('ERR_INVARIANT', 'the socket has no descriptor');
  return fd;
}

/** What Node's dgram keeps of a socket, where it has no public word for it. */
function datagramState(socket: DatagramSocket): object {
  const symbol = Object.getOwnPropertySymbols(socket).find(({ description }) => description === 'state symbol');
  const state: unknown = symbol === undefined ? undefined : Reflect.get(socket, symbol);
  if (typeof state === 'object' && state !== null) return state;
  throw new VpnError('ERR_INVARIANT', 'this Node keeps its UDP sockets in another way');
}

/** The descriptor of a UDP socket. @throws {VpnError} ERR_INVARIANT when it has none */
export function datagramFd(socket: DatagramSocket): number {
  const handle: unknown = Reflect.get(datagramState(socket), 'handle');
  const fd: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'fd') : undefined;
  if (typeof fd !== 'number' || fd < 0) throw new VpnError('ERR_INVARIANT', 'the socket has no descriptor');
  return fd;
}

/** CONNECT_STATE_CONNECTED of Node's dgram. */
const DGRAM_CONNECTED = 2;

/** Takes over a UDP socket that is connected in the kernel; Node itself could only connect it again. */
export async function adoptDatagrams(fd: number, family: 4 | 6): Promise<DatagramSocket> {
  const socket = createSocket(family === 4 ? 'udp4' : 'udp6');
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once('error', reject);
  socket.bind({ fd }, resolve);
  await promise;
  socket.off('error', reject);
  Reflect.set(datagramState(socket), 'connectState', DGRAM_CONNECTED);
  return socket;
}

/** What the kernel has learnt of a connection's way to its peer. */
export interface PathFacts {
  /** Smoothed round trip, milliseconds. */
  rttMs: number;
  /** The shortest round trip of the last minutes, milliseconds. */
  minRttMs: number;
  /** Segments with data, repetitions included. */
  sentSegments: number;
  resentSegments: number;
  /** Bytes that the peer has acknowledged. */
  ackedBytes: number;
}

/** A connection's way to its peer, as the kernel sees it. The descriptor is the caller's, and stays open as long as this is used. */
export class TcpPath {
  readonly #calls: NativeCalls = nativeCalls();
  readonly #fd: number;
  readonly #info = new NativeMemory(TCP_INFO_BYTES);
  readonly #length = new NativeMemory(4);

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Fills in the facts. @returns false when the kernel tells nothing, as of a connection that has ended */
  read(facts: PathFacts): boolean {
    this.#length.view.setUint32(0, TCP_INFO_BYTES, true);
    const info = this.#info;
    if (this.#calls.getsockopt(this.#fd, IPPROTO_TCP, TCP_INFO, info.address, this.#length.address) < 0) return false;
    if (this.#length.view.getUint32(0, true) < TCP_INFO_BYTES) return false;
    facts.rttMs = info.view.getUint32(INFO_RTT, true) / 1000;
    facts.minRttMs = info.view.getUint32(INFO_MIN_RTT, true) / 1000;
    facts.sentSegments = info.view.getUint32(INFO_DATA_SEGS_OUT, true);
    const ackedHigh = info.view.getUint32(INFO_BYTES_ACKED + 4, true);
    facts.ackedBytes = info.view.getUint32(INFO_BYTES_ACKED, true) + ackedHigh * 2 ** 32;
    facts.resentSegments = info.view.getUint32(INFO_TOTAL_RETRANS, true);
    return true;
  }

  /** The congestion control in force. @throws {VpnError} ERR_SYSCALL */
  get congestion(): string {
    return congestionOf(this.#calls, this.#fd, 'watching a connection');
  }

  /** Changes the congestion control of the living connection. @returns whether the kernel did */
  use(congestion: string): boolean {
    const name = new NativeMemory(CONGESTION_NAME_BYTES);
    const length = new TextEncoder().encodeInto(congestion, name.bytes).written;
    return this.#calls.setsockopt(this.#fd, IPPROTO_TCP, TCP_CONGESTION, name.address, length) >= 0;
  }
}

/** One result slot is enough for all gates: the call and the reading of its result are one step. */
let unsentResult: { memory: NativeMemory; value: Int32Array } | undefined;

/**
 * Tells how much of a connection's data the kernel has not sent yet, and when it takes more.
 *
 * Holds a duplicate of the descriptor, because one descriptor can be in an event loop only once. The connection is therefore
 * closed on the wire only when this gate is closed, too: close it as soon as the socket is given up.
 */
export class UnsentGate {
  readonly #calls: NativeCalls;
  readonly #result: { memory: NativeMemory; value: Int32Array };
  readonly #poll: Poll;
  #fd: number;
  #callback: (() => void) | undefined;
  readonly #onEvent = (): void => {
    this.#poll.stop();
    const callback = this.#callback;
    this.#callback = undefined;
    callback?.();
  };

  /** @throws {VpnError} ERR_SYSCALL */
  constructor(fd: number) {
    this.#calls = nativeCalls();
    if (unsentResult === undefined) {
      const memory = new NativeMemory(4);
      unsentResult = { memory, value: new Int32Array(memory.bytes.buffer) };
    }
    this.#result = unsentResult;
    this.#fd = duplicateFd(fd);
    try {
      this.#poll = new Poll(this.#fd);
    } catch (error) {
      this.#calls.close(this.#fd);
      throw error;
    }
  }

  /** The duplicate, -1 once the gate is closed. */
  get fd(): number {
    return this.#fd;
  }

  /** Bytes that the kernel holds and has not sent; 0 once the gate is closed. */
  unsent(): number {
    return this.#ask(SIOCOUTQNSD);
  }

  /** Bytes that the peer's kernel has not acknowledged, sent or not; 0 once the gate is closed. */
  unacknowledged(): number {
    return this.#ask(SIOCOUTQ);
  }

  #ask(request: bigint): number {
    if (this.#fd < 0) return 0;
    if (this.#calls.ioctl(this.#fd, request, this.#result.memory.address) < 0) return 0;
    return this.#result.value[0] ?? 0;
  }

  /** Calls back once, when the socket takes more or has failed. A second call replaces the callback; never called after `close`. */
  whenWritable(callback: () => void): void {
    if (this.#fd < 0) return;
    this.#callback = callback;
    this.#poll.start(PollEvents.writable, this.#onEvent);
  }

  /** Idempotent. Resolves when the event loop has let go of it. */
  close(): Promise<void> {
    this.#callback = undefined;
    const closed = this.#poll.close();
    if (this.#fd >= 0) {
      this.#calls.close(this.#fd);
      this.#fd = -1;
    }
    return closed;
  }
}
