/** Builds Ethernet frames for tests. Every field has a sensible default; numbers of stations stand for MAC addresses. */

import { parseIp } from '../../src/ip/address.ts';
import { concat, type ExtensionHeader, ipPacket, type TransportOptions, udpPacket } from './packets.ts';

export const BROADCAST = 'ff:ff:ff:ff:ff:ff';

export interface FrameOptions {
  source?: string;
  destination?: string;
}

export function macBytes(text: string): Uint8Array {
  return Uint8Array.from(text.split(':'), (byte) => Number.parseInt(byte, 16));
}

export function frame(
  type: number,
  payload: Uint8Array,
  { source = '02:00:00:00:00:01', destination = '02:00:00:00:00:02' }: FrameOptions = {},
): Uint8Array {
  return concat(macBytes(destination), macBytes(source), Uint8Array.of(type >> 8, type & 0xff), payload);
}

export interface ArpOptions extends FrameOptions {
  operation?: 1 | 2;
  /** What the message says; default: the frame's source. */
  senderMac?: string;
  sender?: string;
  target?: string;
}

export function arpFrame(options: ArpOptions = {}): Uint8Array {
  const { source = '02:00:00:00:00:01', destination = BROADCAST, operation = 1 } = options;
  const { senderMac = source, sender = '192.0.2.1', target = '192.0.2.2' } = options;
  const message = concat(
    Uint8Array.of(0, 1, 8, 0, 6, 4, 0, operation),
    macBytes(senderMac),
    parseIp(sender).bytes,
    new Uint8Array(6),
    parseIp(target).bytes,
  );
  return frame(0x0806, message, { source, destination });
}

export function ipFrame(packet: Uint8Array, options: FrameOptions = {}): Uint8Array {
  return frame((packet[0] ?? 0) >> 4 === 4 ? 0x0800 : 0x86dd, packet, options);
}

/** @param packet addresses of the packet, and what else there is of it */
export function udpFrame(packet: TransportOptions, options: FrameOptions = {}): Uint8Array {
  return ipFrame(udpPacket(packet), options);
}

export interface NeighbourOptions extends FrameOptions {
  /** 133 to 137: router solicitation and advertisement, neighbour solicitation and advertisement, redirect. */
  type: number;
  sender?: string;
  target?: string;
  extensions?: readonly ExtensionHeader[];
  /** What stands behind the target. */
  rest?: Uint8Array;
}

export function neighbourFrame(options: NeighbourOptions): Uint8Array {
  const { type, sender = 'fe80::1', target = 'fe80::1', extensions, rest = new Uint8Array(0) } = options;
  const message = concat(Uint8Array.of(type, 0, 0, 0, 0x20, 0, 0, 0), parseIp(target).bytes, rest);
  const packet = ipPacket(58, message, {
    version: 6,
    source: sender,
    destination: 'ff02::1',
    ...(extensions === undefined ? {} : { extensions }),
  });
  return ipFrame(packet, { destination: '33:33:00:00:00:01', ...options });
}

export interface DhcpOptions extends FrameOptions {
  from: 'client' | 'server';
  /** 1 DISCOVER, 3 REQUEST, 5 ACK. */
  message: number;
  chaddr?: string;
  yiaddr?: string;
  sender?: string;
  /** In the field for the server's name, at most 64 bytes. */
  name?: Uint8Array;
}

export function dhcpFrame(options: DhcpOptions): Uint8Array {
  const { from, message, source = '02:00:00:00:00:01', yiaddr = '0.0.0.0' } = options;
  const isServer = from === 'server';
  const fixed = new Uint8Array(236);
  fixed.set([isServer ? 2 : 1, 1, 6, 0]);
  fixed.set(parseIp(yiaddr).bytes, 16);
  fixed.set(macBytes(options.chaddr ?? source), 28);
  fixed.set(options.name ?? new Uint8Array(0), 44);
  const payload = concat(fixed, Uint8Array.of(0x63, 0x82, 0x53, 0x63, 0, 53, 1, message, 255));
  return udpFrame(
    {
      source: options.sender ?? (isServer ? '192.0.2.1' : '0.0.0.0'),
      destination: '255.255.255.255',
      sourcePort: isServer ? 67 : 68,
      destinationPort: isServer ? 68 : 67,
      payload,
    },
    { source, destination: options.destination ?? BROADCAST },
  );
}
