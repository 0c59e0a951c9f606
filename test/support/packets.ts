/**
 * Builds IP packets for tests.
 *
 * Hides header layouts and checksums, with arithmetic of its own, so that a test compares two implementations. Every
 * field has a sensible default; a malformed packet is made by changing bytes of a good one, or by `guard`ing it.
 */

import { isIPv6 } from 'node:net';
import { parseIp } from '../../src/ip/address.ts';

/** An IPv6 extension header. Its first byte is filled in by the builder. */
export interface ExtensionHeader {
  type: number;
  bytes: Uint8Array;
}

export interface IpOptions {
  /** Default 4, or what the addresses say. */
  version?: 4 | 6;
  source?: string;
  destination?: string;
  ttl?: number;
  /** Traffic class: DSCP and ECN. */
  trafficClass?: number;
  /** IPv4 options, a multiple of 4 bytes. */
  ipOptions?: Uint8Array;
  /** IPv6 extension headers, in order. */
  extensions?: readonly ExtensionHeader[];
  /** IPv4 only: flags and offset of a fragment. IPv6 fragments are made with `fragmentHeader`. */
  fragment?: { offset?: number; more?: boolean };
}

export interface TransportOptions extends IpOptions {
  sourcePort?: number;
  destinationPort?: number;
  /** Bytes of it, or how many. */
  payload?: Uint8Array | number;
  /** Puts only the sum of the pseudo-header in the checksum field, as a kernel does for an offload. */
  partial?: boolean;
}

export interface TcpOptions extends TransportOptions {
  /** Bits of `TcpFlag`. Default ACK. */
  flags?: number;
  sequence?: number;
  acknowledgment?: number;
  /** TCP options, a multiple of 4 bytes. */
  tcpOptions?: Uint8Array;
}

export const TcpFlag = {
  fin: 0x01,
  syn: 0x02,
  rst: 0x04,
  psh: 0x08,
  ack: 0x10,
  urg: 0x20,
  ece: 0x40,
  cwr: 0x80,
} as const;

/** A TCP packet. */
export function tcpPacket(options: TcpOptions = {}): Uint8Array {
  const tcpOptions = options.tcpOptions ?? new Uint8Array(0);
  const header = new Uint8Array(20);
  const view = new DataView(header.buffer);
  view.setUint16(0, options.sourcePort ?? 40_000);
  view.setUint16(2, options.destinationPort ?? 443);
  view.setUint32(4, options.sequence ?? 1_000);
  view.setUint32(8, options.acknowledgment ?? 2_000);
  view.setUint8(12, ((20 + tcpOptions.length) / 4) << 4);
  view.setUint8(13, options.flags ?? TcpFlag.ack);
  view.setUint16(14, 0xffff);
  return ipPacket(6, concat(header, tcpOptions, payloadOf(options.payload)), options, 16, options.partial ?? false);
}

/** A UDP packet. */
export function udpPacket(options: TransportOptions = {}): Uint8Array {
  const payload = payloadOf(options.payload);
  const header = new Uint8Array(8);
  const view = new DataView(header.buffer);
  view.setUint16(0, options.sourcePort ?? 40_000);
  view.setUint16(2, options.destinationPort ?? 53);
  view.setUint16(4, 8 + payload.length);
  return ipPacket(17, concat(header, payload), options, 6, options.partial ?? false);
}

/** An ICMP or ICMPv6 echo request. */
export function icmpPacket(options: IpOptions & { payload?: Uint8Array | number; sequence?: number } = {}): Uint8Array {
  const version = versionOf(options);
  const header = new Uint8Array(8);
  const view = new DataView(header.buffer);
  view.setUint8(0, version === 4 ? 8 : 128);
  view.setUint16(4, 0x1234);
  view.setUint16(6, options.sequence ?? 1);
  const message = concat(header, payloadOf(options.payload ?? 56));
  if (version === 6) return ipPacket(58, message, options, 2, false);
  new DataView(message.buffer).setUint16(2, naiveChecksum(message));
  return ipPacket(1, message, options);
}

/**
 * An IP packet around any transport bytes.
 *
 * @param checksumAt where in `transport` the checksum over it and the pseudo-header goes; left alone when absent
 * @param partial writes only the pseudo-header's sum there
 */
export function ipPacket(
  protocol: number,
  transport: Uint8Array,
  options: IpOptions = {},
  checksumAt?: number,
  partial = false,
): Uint8Array {
  const version = versionOf(options);
  const source = parseIp(options.source ?? (version === 4 ? '10.8.0.2' : 'fd00:8::2')).bytes;
  const destination = parseIp(options.destination ?? (version === 4 ? '192.0.2.80' : '2001:db8::80')).bytes;
  const body = transport.slice();
  if (checksumAt !== undefined) {
    const size = new Uint8Array(4);
    new DataView(size.buffer).setUint32(0, body.length);
    const pseudo = concat(source, destination, size, Uint8Array.of(0, 0, 0, protocol));
    const value = partial ? ~naiveChecksum(pseudo) & 0xffff : naiveChecksum(concat(pseudo, body));
    new DataView(body.buffer).setUint16(checksumAt, value === 0 && protocol === 17 ? 0xffff : value);
  }
  if (version === 4) {
    const ipOptions = options.ipOptions ?? new Uint8Array(0);
    const header = concat(new Uint8Array(12), source, destination, ipOptions);
    const view = new DataView(header.buffer);
    view.setUint8(0, 0x40 | (header.length / 4));
    view.setUint8(1, options.trafficClass ?? 0);
    view.setUint16(2, header.length + body.length);
    view.setUint16(4, 0x4242);
    const fragment = options.fragment;
    view.setUint16(6, fragment === undefined ? 0x4000 : (fragment.more === true ? 0x2000 : 0) | (fragment.offset ?? 0));
    view.setUint8(8, options.ttl ?? 64);
    view.setUint8(9, protocol);
    view.setUint16(10, naiveChecksum(header));
    return concat(header, body);
  }
  const extensions = (options.extensions ?? []).map((extension) => ({ ...extension, bytes: extension.bytes.slice() }));
  for (const [at, extension] of extensions.entries()) extension.bytes[0] = extensions[at + 1]?.type ?? protocol;
  const header = concat(new Uint8Array(8), source, destination);
  const payload = concat(...extensions.map((extension) => extension.bytes), body);
  const view = new DataView(header.buffer);
  view.setUint32(0, (6 << 28) | ((options.trafficClass ?? 0) << 20) | 0x12345);
  view.setUint16(4, payload.length);
  view.setUint8(6, extensions[0]?.type ?? protocol);
  view.setUint8(7, options.ttl ?? 64);
  return concat(header, payload);
}

/** Hop-by-hop (0) or destination options (60) of `8 + 8 × more` bytes of padding. */
export function optionsHeader(type: 0 | 60, more = 0): ExtensionHeader {
  const bytes = new Uint8Array(8 + 8 * more);
  bytes[1] = more;
  return { type, bytes };
}

/** A routing header (43). */
export function routingHeader(segmentsLeft = 0, more = 0): ExtensionHeader {
  const bytes = new Uint8Array(8 + 8 * more);
  bytes[1] = more;
  bytes[3] = segmentsLeft;
  return { type: 43, bytes };
}

/** An IPv6 fragment header (44). */
export function fragmentHeader(offset = 0, more = true): ExtensionHeader {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setUint16(2, (offset << 3) | (more ? 1 : 0));
  return { type: 44, bytes };
}

/** A copy of a packet with bytes changed, by position. The IPv4 header checksum is not mended; see `mendIpv4`. */
export function changed(packet: Uint8Array, changes: Readonly<Record<number, number>>): Uint8Array {
  const copy = packet.slice();
  for (const [at, value] of Object.entries(changes)) copy[Number(at)] = value;
  return copy;
}

/** Recomputes the IPv4 header checksum in place. */
export function mendIpv4(packet: Uint8Array): Uint8Array {
  const header = packet.subarray(0, ((packet[0] ?? 0) & 0x0f) * 4);
  header[10] = 0;
  header[11] = 0;
  new DataView(packet.buffer, packet.byteOffset).setUint16(10, naiveChecksum(header));
  return packet;
}

/** A packet at `offset` of a bigger array whose other bytes are `filler`. */
export function placed(packet: Uint8Array, offset = 16, filler = 0xa5): Uint8Array {
  const bytes = new Uint8Array(offset + packet.length + 64).fill(filler);
  bytes.set(packet, offset);
  return bytes;
}

/** A view of bytes that fails the test when anything outside `[offset, offset + length)` is read or written. */
export function guard(bytes: Uint8Array, offset: number, length: number): Uint8Array {
  const check = (property: string | symbol): void => {
    if (typeof property !== 'string' || !/^-?\d+$/.test(property)) return;
    const at = Number(property);
    if (at < offset || at >= offset + length) {
      throw new RangeError(`touched byte ${at} outside [${offset}, ${offset + length})`);
    }
  };
  return new Proxy(bytes, {
    get(target, property) {
      check(property);
      return Reflect.get(target, property, target);
    },
    set(target, property, value) {
      check(property);
      return Reflect.set(target, property, value, target);
    },
  });
}

/** The internet checksum, bit by bit as RFC 1071 describes it. */
export function naiveChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) {
    sum += (bytes[at] ?? 0) * 256 + (bytes[at + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return 0xffff - sum;
}

/** Whether the transport checksum of a TCP, UDP or ICMPv6 packet without extension headers is right. */
export function transportChecksumOk(packet: Uint8Array): boolean {
  const version = (packet[0] ?? 0) >> 4;
  const start = version === 4 ? ((packet[0] ?? 0) & 0x0f) * 4 : 40;
  const addresses = version === 4 ? packet.subarray(12, 20) : packet.subarray(8, 40);
  const size = new Uint8Array(4);
  new DataView(size.buffer).setUint32(0, packet.length - start);
  const protocol = packet[version === 4 ? 9 : 6] ?? 0;
  return naiveChecksum(concat(addresses, size, Uint8Array.of(0, 0, 0, protocol), packet.subarray(start))) === 0;
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

function payloadOf(payload: Uint8Array | number | undefined): Uint8Array {
  if (payload instanceof Uint8Array) return payload;
  return Uint8Array.from({ length: payload ?? 100 }, (_, at) => (at * 7 + 13) & 0xff);
}

function versionOf(options: IpOptions): 4 | 6 {
  if (options.version !== undefined) return options.version;
  return isIPv6(options.source ?? options.destination ?? '') ? 6 : 4;
}
