/**
 * What a SOCKS5 client says, and what it is answered (RFC 1928).
 *
 * Hides the octets. Bytes in, values out: a message is undefined until it is whole, and no message is longer than its own
 * length fields can say, 262 bytes.
 */

import { isIP } from 'node:net';
import { VpnError } from '../base/errors.ts';
import { formatIp, parseIp } from '../ip/address.ts';
import { readU8, readU16, writeU16 } from '../ip/bytes.ts';
import type { StreamRefusal, StreamTarget } from '../transport/stream-request.ts';

const VERSION = 5;
const NO_AUTHENTICATION = 0;
const ADDRESS_4 = 1;
const NAME = 3;
const ADDRESS_6 = 4;
const COMMANDS = ['connect', 'bind', 'associate'] as const;

/** RFC 1928 §6. */
export const SocksReply = {
  succeeded: 0,
  failure: 1,
  denied: 2,
  networkUnreachable: 3,
  hostUnreachable: 4,
  refused: 5,
  noCommand: 7,
  noAddressType: 8,
} as const;
type SocksReply = (typeof SocksReply)[keyof typeof SocksReply];

/** A message, and how many bytes it took. */
interface Parsed<T> {
  readonly value: T;
  readonly length: number;
}

export interface SocksRequest {
  /** Undefined: none of RFC 1928. */
  readonly command: (typeof COMMANDS)[number] | undefined;
  /** A UDP association may name port 0 and no address. Undefined: an address of a kind that is none. */
  readonly target: StreamTarget | undefined;
}

/** A datagram of a UDP association. */
export interface SocksDatagram {
  readonly target: StreamTarget;
  readonly payload: Uint8Array;
}

/** The greeting: whether no authentication is among what the client offers. @throws {VpnError} ERR_MESSAGE_SYNTAX */
export function parseGreeting(bytes: Uint8Array): Parsed<boolean> | undefined {
  checkVersion(bytes);
  const length = 2 + readU8(bytes, 1);
  if (bytes.length < Math.max(length, 2)) return undefined;
  return { value: bytes.subarray(2, length).includes(NO_AUTHENTICATION), length };
}

/** @throws {VpnError} ERR_MESSAGE_SYNTAX */
export function parseRequest(bytes: Uint8Array): Parsed<SocksRequest> | undefined {
  checkVersion(bytes);
  if (bytes.length < 5) return undefined;
  const command = COMMANDS[readU8(bytes, 1) - 1];
  const address = parseAddress(bytes, 3);
  if (address === 'unknown') return { value: { command, target: undefined }, length: bytes.length };
  if (address === undefined) return undefined;
  return { value: { command, target: address.value }, length: address.length };
}

/** A datagram from the client; undefined: a fragment, or none at all, which is dropped. */
export function parseDatagram(bytes: Uint8Array): SocksDatagram | undefined {
  if (bytes.length < 5 || readU16(bytes, 0) !== 0 || readU8(bytes, 2) !== 0) return undefined;
  const address = parseAddress(bytes, 3);
  if (address === undefined || address === 'unknown' || address.value.port === 0) return undefined;
  return { target: address.value, payload: bytes.subarray(address.length) };
}

export function encodeMethod(isAccepted: boolean): Uint8Array {
  return Uint8Array.of(VERSION, isAccepted ? NO_AUTHENTICATION : 0xff);
}

/** @param bound where the client sends its datagrams; it has no meaning in other answers */
export function encodeReply(reply: SocksReply, bound: StreamTarget = { host: '0.0.0.0', port: 0 }): Uint8Array {
  return Uint8Array.of(VERSION, reply, 0, ...encodeAddress(bound));
}

/** A datagram for the client. */
export function encodeDatagram({ target, payload }: SocksDatagram): Uint8Array {
  const head = Uint8Array.of(0, 0, 0, ...encodeAddress(target));
  const bytes = new Uint8Array(head.length + payload.length);
  bytes.set(head);
  bytes.set(payload, head.length);
  return bytes;
}

/** What a gateway's no is called here. */
export function replyOf(why: StreamRefusal): SocksReply {
  switch (why) {
    case 'http_request_denied':
    case 'destination_ip_prohibited':
      return SocksReply.denied;
    case 'connection_refused':
      return SocksReply.refused;
    case 'destination_ip_unroutable':
      return SocksReply.networkUnreachable;
    case 'dns_error':
    case 'dns_timeout':
    case 'connection_timeout':
      return SocksReply.hostUnreachable;
    case 'connection_limit_reached':
    case 'proxy_internal_error':
      return SocksReply.failure;
  }
}

/** Address type, address and port from `at` on; its `length` counts from the start of `bytes`. */
function parseAddress(bytes: Uint8Array, at: number): Parsed<StreamTarget> | 'unknown' | undefined {
  const type = readU8(bytes, at);
  const start = type === NAME ? at + 2 : at + 1;
  const size = type === ADDRESS_4 ? 4 : type === ADDRESS_6 ? 16 : type === NAME ? readU8(bytes, at + 1) : undefined;
  if (size === undefined) return 'unknown';
  const end = start + size;
  if (bytes.length < Math.max(start, end + 2)) return undefined;
  const address = new Uint8Array(bytes.subarray(start, end));
  const port = readU16(bytes, end);
  if (type !== NAME) {
    return {
      value: { host: formatIp({ version: type === ADDRESS_4 ? 4 : 6, bytes: address }), port },
      length: end + 2,
    };
  }
  const host = Buffer.from(address).toString('latin1');
  if (!/^[A-Za-z0-9._:-]+$/.test(host)) return 'unknown';
  return { value: { host, port }, length: end + 2 };
}

function encodeAddress({ host, port }: StreamTarget): Uint8Array {
  const family = isIP(host);
  const name = family === 0 ? Buffer.from(host, 'latin1') : parseIp(host).bytes;
  const head = family === 4 ? [ADDRESS_4] : family === 6 ? [ADDRESS_6] : [NAME, name.length];
  const bytes = Uint8Array.of(...head, ...name, 0, 0);
  writeU16(bytes, bytes.length - 2, port);
  return bytes;
}

function checkVersion(bytes: Uint8Array): void {
  if (bytes.length === 0 || bytes[0] === VERSION) return;
  throw new VpnError('ERR_MESSAGE_SYNTAX', `expected SOCKS version 5, got ${bytes[0]}`);
}
