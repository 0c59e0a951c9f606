/**
 * The two ends of a TCP connection, and what of an address counts as one source.
 *
 * Hides how Node and the kernel write addresses.
 */

import type { Socket } from 'node:net';

/** An address and port of one end. An IPv4 address mapped into IPv6 is written as IPv4. */
export interface Endpoint {
  readonly address: string;
  readonly port: number;
}

/** This end of a socket; empty when it is closed. */
export function localEnd(socket: Socket): Endpoint {
  return { address: plainAddress(socket.localAddress ?? ''), port: socket.localPort ?? 0 };
}

/** The other end of a socket; empty when it is closed. */
export function remoteEnd(socket: Socket): Endpoint {
  return { address: plainAddress(socket.remoteAddress ?? ''), port: socket.remotePort ?? 0 };
}

/** As text: `192.0.2.1:443`, `[2001:db8::1]:443`. */
export function formatEndpoint({ address, port }: Endpoint): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

function plainAddress(address: string): string {
  return address.startsWith('::ffff:') && address.includes('.') ? address.slice(7) : address;
}

/** What counts as one source: an IPv4 address, or the /64 of an IPv6 address. */
export function sourceOf(address: string): string {
  if (!address.includes(':')) return address;
  const [head = '', tail] = address.split('::');
  const groups = head === '' ? [] : head.split(':');
  if (tail !== undefined) {
    const rest = tail === '' ? [] : tail.split(':');
    while (groups.length + rest.length < 8) groups.push('0');
    groups.push(...rest);
  }
  return `${groups.slice(0, 4).join(':')}::/64`;
}
