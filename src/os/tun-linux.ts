/**
 * A TUN or TAP device of the Linux kernel.
 *
 * Hides the character device, its ioctls and the `virtio_net_hdr` in front of every packet. With super-packets the kernel
 * hands over and takes TCP (and UDP) payloads of up to 64 KiB with their segmentation facts; without them it cuts and
 * checksums before we see a packet. Both kinds carry the header, so that one `PacketBuffer` serves either device. One
 * system call per packet, into and out of memory whose address was taken once.
 *
 * Must not know frames or sessions. Follows Documentation/networking/tuntap.rst and the virtio specification §5.1.6:
 *
 *     u8 flags | u8 gso_type | u16 hdr_len | u16 gso_size | u16 csum_start | u16 csum_offset      (native, little-endian)
 */

import { VpnError } from '../base/errors.ts';
import { FLAG_PARTIAL_CHECKSUM, GsoType, type Offload, VirtioGsoType } from '../ip/super-packet.ts';
import {
  checkResult,
  Errno,
  errnoName,
  IoVector,
  type NativeCalls,
  NativeMemory,
  nativeCalls,
  systemError,
} from './ffi.ts';
import { createNativePacketBuffer } from './packet-buffer.ts';
import { Poll, PollEvents } from './poll.ts';
import { PACKET_OFFSET, type PacketBuffer, type TunCounters, type TunDevice, type TunReader } from './tun.ts';

export interface OpenTunOptions {
  /** At most 15 characters; `%d` in it is replaced by the kernel with the first free number. */
  name: string;
  /** What it carries: IP packets (default) or Ethernet frames. */
  kind?: 'tun' | 'tap';
  superPackets: boolean;
  mtu: number;
  /** Makes the device behave as on a kernel that lacks a capability. */
  force?: { uso?: boolean };
}

const TUN_PATH = '/dev/net/tun';
const O_RDWR_NONBLOCK_CLOEXEC = 0x2 | 0x800 | 0x80000;

const TUNSETIFF = 0x400454can;
const TUNSETOFFLOAD = 0x400454d0n;
const TUNSETVNETHDRSZ = 0x400454d8n;
const SIOCSIFMTU = 0x8922n;

const IFF_TUN = 0x0001;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
/** Never take over a device that is already there. */
const IFF_TUN_EXCL = 0x8000;

const TUN_F_CSUM_TSO = 0x01n | 0x02n | 0x04n | 0x08n;
const TUN_F_USO = 0x20n | 0x40n;

const IFREQ_BYTES = 40;
const IFNAMSIZ = 16;

const VNET_HEADER_BYTES = 10;
const VNET_HEADER_OFFSET = PACKET_OFFSET - VNET_HEADER_BYTES;
/** From virtio's gso_type without its ECN bit. */
const GSO_TYPES = new Uint8Array(8);
GSO_TYPES[VirtioGsoType.tcp4] = GsoType.tcp4;
GSO_TYPES[VirtioGsoType.tcp6] = GsoType.tcp6;
GSO_TYPES[VirtioGsoType.udpL4] = GsoType.udpL4;

/** A wake reads at most this many packets and about this many bytes; then sockets get their turn. A wake costs some 4 µs. */
const WAKE_PACKETS = 64;
const WAKE_BYTES = 256 * 1024;

/** A device of the kernel as its descriptor: what a process needs to use a device that another has made. */
export interface TunDescriptor {
  readonly fd: number;
  readonly name: string;
  /** Default: `tun`. */
  readonly kind?: 'tun' | 'tap';
  readonly mtu: number;
  readonly superPackets: boolean;
  readonly uso: boolean;
}

/**
 * Creates a TUN device and sets its MTU. It has no addresses and is down: configuring it is `HostNetwork`'s work. The kernel
 * removes it with the last descriptor, also when the process is killed.
 *
 * @throws {VpnError} ERR_PRIVILEGE, ERR_TUN_OPEN, ERR_UNSUPPORTED
 */
export function openTun(options: OpenTunOptions): TunDevice {
  return tunOf(openTunDescriptor(options));
}

/** The device of a descriptor, which it takes over. Needs no privilege. @throws {VpnError} ERR_SYSCALL */
export function tunOf(descriptor: TunDescriptor): TunDevice {
  return new LinuxTun(nativeCalls(), descriptor);
}

/** As `openTun`; the descriptor is the caller's to close. */
export function openTunDescriptor(options: OpenTunOptions): TunDescriptor {
  const calls = nativeCalls();
  if (!/^[A-Za-z0-9][A-Za-z0-9_.%-]{0,14}$/.test(options.name)) {
    throw new VpnError(
      'ERR_TUN_OPEN',
      `"${options.name}" is no device name: 1 to 15 letters, digits, "_", "." or "-" are expected`,
    );
  }
  const fd = calls.open(TUN_PATH, O_RDWR_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) throw openError(calls.errno());
  try {
    const name = attach(calls, fd, options.name, options.kind === 'tap' ? IFF_TAP : IFF_TUN);
    const uso = options.superPackets && enableSuperPackets(calls, fd, options.force?.uso ?? true);
    setMtu(calls, name, options.mtu);
    return { fd, name, kind: options.kind ?? 'tun', mtu: options.mtu, superPackets: options.superPackets, uso };
  } catch (error) {
    calls.close(fd);
    throw error;
  }
}

function openError(errno: number): VpnError {
  const details = { syscall: 'open', errno: errnoName(errno), path: TUN_PATH };
  if (errno === Errno.EACCES || errno === Errno.EPERM) {
    return new VpnError('ERR_PRIVILEGE', `cannot open ${TUN_PATH}: permission denied; run as root`, { details });
  }
  if (errno === Errno.ENOENT || errno === Errno.ENODEV) {
    return new VpnError('ERR_TUN_OPEN', `this machine has no ${TUN_PATH}; try: modprobe tun`, { details });
  }
  return new VpnError('ERR_TUN_OPEN', `cannot open ${TUN_PATH}: ${errnoName(errno)}`, { details });
}

/** Makes the device; returns the name that the kernel gave it. */
function attach(calls: NativeCalls, fd: number, name: string, kind: number): string {
  const request = new NativeMemory(IFREQ_BYTES);
  request.bytes.set(new TextEncoder().encode(name));
  request.view.setUint16(IFNAMSIZ, kind | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL, true);
  if (calls.ioctl(fd, TUNSETIFF, request.address) < 0) {
    const errno = calls.errno();
    const details = { syscall: 'ioctl', errno: errnoName(errno), device: name };
    if (errno === Errno.EPERM) {
      throw new VpnError(
        'ERR_PRIVILEGE',
        `cannot create the device ${name}: CAP_NET_ADMIN is needed; run as root, for instance with sudo`,
        { details },
      );
    }
    const why =
      errno === Errno.EBUSY ? `there is a device of that name; try: ip link delete ${name}` : errnoName(errno);
    throw new VpnError('ERR_TUN_OPEN', `cannot create the device ${name}: ${why}`, { details });
  }
  const end = request.bytes.indexOf(0);
  const headerBytes = new NativeMemory(4);
  headerBytes.view.setInt32(0, VNET_HEADER_BYTES, true);
  checkResult(calls.ioctl(fd, TUNSETVNETHDRSZ, headerBytes.address), `setting up ${name}`, 'ioctl TUNSETVNETHDRSZ');
  return new TextDecoder().decode(request.bytes.subarray(0, Math.min(end, IFNAMSIZ)));
}

/** Returns whether the kernel also takes UDP super-packets (6.2 and later do). */
function enableSuperPackets(calls: NativeCalls, fd: number, tryUso: boolean): boolean {
  if (tryUso && calls.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM_TSO | TUN_F_USO) >= 0) return true;
  checkResult(calls.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM_TSO), 'enabling super-packets', 'ioctl TUNSETOFFLOAD');
  return false;
}

function setMtu(calls: NativeCalls, name: string, mtu: number): void {
  const AF_INET = 2;
  const SOCK_DGRAM_CLOEXEC = 2 | 0x80000;
  const what = `setting the MTU of ${name} to ${mtu}`;
  const request = new NativeMemory(IFREQ_BYTES);
  request.bytes.set(new TextEncoder().encode(name));
  request.view.setInt32(IFNAMSIZ, mtu, true);
  const socket = checkResult(calls.socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0), what, 'socket');
  try {
    checkResult(calls.ioctl(socket, SIOCSIFMTU, request.address), what, 'ioctl SIOCSIFMTU');
  } finally {
    calls.close(socket);
  }
}

class LinuxTun implements TunDevice {
  readonly name: string;
  readonly kind: 'tun' | 'tap';
  readonly mtu: number;
  readonly superPackets: boolean;
  /** What a device is told of offloads is about what it gives. */
  readonly takesSuperPackets: boolean;
  readonly uso: boolean;
  readonly counters: TunCounters = {
    readPackets: 0,
    readBytes: 0,
    writtenPackets: 0,
    writtenBytes: 0,
    writeErrors: 0,
    wakes: 0,
  };

  readonly #calls: NativeCalls;
  readonly #poll: Poll;
  #fd: number;
  #closed: Promise<void> | undefined;
  #reader: TunReader | undefined;

  // Addresses do not keep memory alive: everything the kernel is pointed to is a field of this object.
  readonly #readBuffer = createNativePacketBuffer();
  readonly #readVector = new IoVector();
  readonly #readVectorAddress = this.#readVector.address;
  readonly #writeVector = new IoVector();
  readonly #writeVectorAddress = this.#writeVector.address;
  #lastWritten: PacketBuffer | undefined;

  constructor(calls: NativeCalls, { fd, name, kind = 'tun', mtu, superPackets, uso }: TunDescriptor) {
    this.#calls = calls;
    this.#fd = fd;
    this.name = name;
    this.kind = kind;
    this.mtu = mtu;
    this.superPackets = superPackets;
    this.takesSuperPackets = kind === 'tun';
    this.uso = uso;
    this.#readVector.setBase(this.#readBuffer.address + BigInt(VNET_HEADER_OFFSET));
    this.#readVector.setLength(this.#readBuffer.bytes.length - VNET_HEADER_OFFSET);
    this.#poll = new Poll(fd);
  }

  createBuffer(): PacketBuffer {
    return createNativePacketBuffer();
  }

  start(reader: TunReader): void {
    if (this.#reader !== undefined || this.#fd < 0) {
      throw new VpnError('ERR_INVARIANT', `the device ${this.name} was started twice or after it was closed`);
    }
    this.#reader = reader;
    this.#poll.start(PollEvents.readable, (status) => this.#wake(reader, status));
  }

  #wake(reader: TunReader, status: number): void {
    if (status < 0) {
      this.#fail(reader, 'poll', -status);
      return;
    }
    const counters = this.counters;
    const bytes = this.#readBuffer.bytes;
    counters.wakes += 1;
    let packetsLeft = WAKE_PACKETS;
    let bytesLeft = WAKE_BYTES;
    while (packetsLeft > 0 && bytesLeft > 0) {
      const got = this.#calls.readv(this.#fd, this.#readVectorAddress, 1);
      if (got < 0) {
        const errno = this.#calls.errno();
        if (errno === Errno.EINTR) continue;
        if (errno === Errno.EAGAIN) break;
        this.#fail(reader, 'readv', errno);
        return;
      }
      const length = got - VNET_HEADER_BYTES;
      packetsLeft -= 1;
      bytesLeft -= length;
      if (length <= 0) continue;
      counters.readPackets += 1;
      counters.readBytes += length;
      const flags = (bytes[VNET_HEADER_OFFSET] ?? 0) & FLAG_PARTIAL_CHECKSUM;
      const gsoType = GSO_TYPES[(bytes[VNET_HEADER_OFFSET + 1] ?? 0) & 7] ?? 0;
      const gsoSize =
        gsoType === GsoType.none
          ? 0
          : (bytes[VNET_HEADER_OFFSET + 4] ?? 0) | ((bytes[VNET_HEADER_OFFSET + 5] ?? 0) << 8);
      reader.packet(bytes, length, gsoType, flags, gsoSize);
      if (this.#fd < 0) return;
    }
    reader.idle();
  }

  /** Without a stop, a device that is gone would wake the loop for ever. */
  #fail(reader: TunReader, syscall: string, errno: number): void {
    this.#poll.stop();
    reader.failed?.(systemError(`reading from the device ${this.name}`, syscall, errno));
  }

  write(buffer: PacketBuffer, length: number, offload: Offload): boolean {
    const counters = this.counters;
    if (this.#fd < 0) {
      counters.writeErrors += 1;
      return false;
    }
    if (buffer !== this.#lastWritten) {
      this.#writeVector.setBase(buffer.address + BigInt(VNET_HEADER_OFFSET));
      this.#lastWritten = buffer;
    }
    this.#writeVector.setLength(VNET_HEADER_BYTES + length);
    const bytes = buffer.bytes;
    bytes[VNET_HEADER_OFFSET] = offload.flags;
    bytes[VNET_HEADER_OFFSET + 1] = offload.gsoType;
    bytes[VNET_HEADER_OFFSET + 2] = offload.headerLength;
    bytes[VNET_HEADER_OFFSET + 3] = offload.headerLength >> 8;
    bytes[VNET_HEADER_OFFSET + 4] = offload.gsoSize;
    bytes[VNET_HEADER_OFFSET + 5] = offload.gsoSize >> 8;
    bytes[VNET_HEADER_OFFSET + 6] = offload.checksumStart;
    bytes[VNET_HEADER_OFFSET + 7] = offload.checksumStart >> 8;
    bytes[VNET_HEADER_OFFSET + 8] = offload.checksumOffset;
    bytes[VNET_HEADER_OFFSET + 9] = offload.checksumOffset >> 8;
    if (this.#calls.writev(this.#fd, this.#writeVectorAddress, 1) < 0) {
      counters.writeErrors += 1;
      return false;
    }
    counters.writtenPackets += 1;
    counters.writtenBytes += length;
    return true;
  }

  close(): Promise<void> {
    if (this.#closed === undefined) {
      this.#closed = this.#poll.close();
      this.#calls.close(this.#fd);
      this.#fd = -1;
    }
    return this.#closed;
  }
}
