/**
 * The line, or the few bytes, with which a proxy in front of the gateway says for whom it connects: the PROXY protocol,
 * versions 1 and 2.
 *
 * Hides both forms, their bounds, and how they are taken off a socket so that TLS finds every byte behind them. Addresses
 * come out in one form, whatever the proxy wrote. It must not know who is believed: a header from a stranger is not for
 * this file.
 *
 * @see https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
 */

import type { Socket } from 'node:net';
import { toVpnError, VpnError } from '../base/errors.ts';
import { formatIp, type IpAddress, parseIp } from '../ip/address.ts';
import type { Endpoint } from './endpoint.ts';

/** What a proxy has said. */
export interface ProxyHeader {
  /** Bytes of the header; what follows is the client's. */
  readonly length: number;
  /** For whom it connects; undefined when it connects for itself (LOCAL) or does not say (UNKNOWN). */
  readonly client: Endpoint | undefined;
}

const TEXT_START = Buffer.from('PROXY ');
/** With the line end; the longest that the specification allows. */
export const MAX_TEXT_BYTES = 107;

const BINARY_START = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');
const BINARY_FIXED_BYTES = 16;
/** Addresses and what a proxy adds about the client's TLS and names. */
export const MAX_BINARY_BYTES = BINARY_FIXED_BYTES + 2048;

const Family = { unspecified: 0x00, tcp4: 0x11, tcp6: 0x21, unixStream: 0x31 } as const;
/** Addresses and ports, by family. */
const TCP4_BYTES = 12;
const TCP6_BYTES = 36;
const UNIX_BYTES = 216;

/**
 * Reads the header at the start of `bytes`.
 *
 * @returns undefined when more bytes are needed
 * @throws {VpnError} ERR_PROXY_HEADER as soon as it cannot become a header
 */
export function parseProxyHeader(bytes: Uint8Array): ProxyHeader | undefined {
  if (startsLike(bytes, TEXT_START)) return parseText(bytes);
  if (startsLike(bytes, BINARY_START)) return parseBinary(bytes);
  throw invalid('something else came');
}

/**
 * Takes a header off a connection that nobody has read from. What follows it stays in the socket for the next reader.
 * The socket is left open whatever happens; it must have a listener for errors.
 *
 * @throws {VpnError} ERR_PROXY_HEADER, ERR_STAGE_TIMEOUT, ERR_PEER_GONE when the connection ends first
 */
export function readProxyHeader(socket: Socket, timeoutMs: number): Promise<Endpoint | undefined> {
  const { promise, resolve, reject } = Promise.withResolvers<Endpoint | undefined>();
  let bytes: Buffer = Buffer.alloc(0);
  const read = (): void => {
    for (;;) {
      const chunk: unknown = socket.read();
      if (!(chunk instanceof Uint8Array)) return;
      bytes = Buffer.concat([bytes, chunk]);
      try {
        const header = parseProxyHeader(bytes);
        if (header === undefined) continue;
        stop();
        if (bytes.length > header.length) socket.unshift(bytes.subarray(header.length));
        resolve(header.client);
      } catch (error) {
        stop();
        reject(toVpnError(error));
      }
      return;
    }
  };
  const gone = (): void => {
    stop();
    reject(new VpnError('ERR_PEER_GONE', 'the connection ended before the PROXY header was complete'));
  };
  const deadline = setTimeout(() => {
    stop();
    reject(new VpnError('ERR_STAGE_TIMEOUT', `no complete PROXY header came within ${timeoutMs / 1000} s`));
  }, timeoutMs).unref();
  const stop = (): void => {
    clearTimeout(deadline);
    socket.off('readable', read).off('end', gone).off('close', gone);
  };
  socket.on('readable', read).once('end', gone).once('close', gone);
  return promise;
}

/** Whether they are alike as far as both go. */
function startsLike(bytes: Uint8Array, start: Uint8Array): boolean {
  const common = Math.min(bytes.length, start.length);
  return Buffer.compare(bytes.subarray(0, common), start.subarray(0, common)) === 0;
}

function parseText(bytes: Uint8Array): ProxyHeader | undefined {
  const end = bytes.subarray(0, MAX_TEXT_BYTES).indexOf(0x0a);
  if (end < 0) {
    if (bytes.length >= MAX_TEXT_BYTES) throw invalid(`the line has no end within ${MAX_TEXT_BYTES} bytes`);
    return undefined;
  }
  const line = Buffer.from(bytes.subarray(0, end + 1)).toString('latin1');
  if (!line.endsWith('\r\n')) throw invalid('the line does not end with CR LF');
  const length = end + 1;
  const [, family, source, destination, sourcePort, destinationPort, ...more] = line.slice(0, -2).split(' ');
  if (family === 'UNKNOWN') return { length, client: undefined };
  if (family !== 'TCP4' && family !== 'TCP6') throw invalid('the line names neither TCP4, TCP6 nor UNKNOWN');
  if (more.length > 0) throw invalid('the line has more than a family, two addresses and two ports');
  const version = family === 'TCP4' ? 4 : 6;
  textAddress(destination, version);
  textPort(destinationPort);
  return { length, client: { address: textAddress(source, version), port: textPort(sourcePort) } };
}

function textAddress(text: string | undefined, version: 4 | 6): string {
  // A proxy that listens on both families at once writes IPv4 clients like this.
  const mapped = version === 6 ? /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(text ?? '')?.[1] : undefined;
  let address: IpAddress;
  try {
    address = parseIp(mapped ?? text ?? '');
  } catch {
    throw invalid(`the line has no IPv${version} address where one belongs`);
  }
  if (mapped === undefined && address.version !== version) throw invalid('an address is not of the family named');
  return formatIp(address);
}

function textPort(text: string | undefined): number {
  if (text === undefined || !/^(?:0|[1-9]\d{0,4})$/.test(text) || Number(text) > 65_535) {
    throw invalid('the line has no port from 0 to 65535 where one belongs');
  }
  return Number(text);
}

function parseBinary(bytes: Uint8Array): ProxyHeader | undefined {
  const [command = 0x20, family = 0] = bytes.subarray(BINARY_START.length);
  if (command !== 0x20 && command !== 0x21) throw invalid('version or command is unknown');
  if (bytes.length < BINARY_FIXED_BYTES) return undefined;
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const payloadBytes = view.readUInt16BE(14);
  const length = BINARY_FIXED_BYTES + payloadBytes;
  if (length > MAX_BINARY_BYTES) {
    throw invalid(`it announces ${payloadBytes} bytes, more than ${MAX_BINARY_BYTES - BINARY_FIXED_BYTES}`);
  }
  const isLocal = command === 0x20;
  if (!isLocal && payloadBytes < leastBytes(family)) throw invalid('it is too short for the addresses it announces');
  if (bytes.length < length) return undefined;
  if (isLocal || family === Family.unspecified || family === Family.unixStream) return { length, client: undefined };
  const payload = view.subarray(BINARY_FIXED_BYTES, length);
  return family === Family.tcp4
    ? { length, client: { address: binaryAddress(payload.subarray(0, 4)), port: payload.readUInt16BE(8) } }
    : { length, client: { address: binaryAddress(payload.subarray(0, 16)), port: payload.readUInt16BE(32) } };
}

function leastBytes(family: number): number {
  switch (family) {
    case Family.unspecified:
      return 0;
    case Family.tcp4:
      return TCP4_BYTES;
    case Family.tcp6:
      return TCP6_BYTES;
    case Family.unixStream:
      return UNIX_BYTES;
    default:
      throw invalid('it is for something else than a TCP connection');
  }
}

const MAPPED = Buffer.from('00000000000000000000ffff', 'hex');

function binaryAddress(bytes: Uint8Array): string {
  if (bytes.length === 4) return formatIp({ version: 4, bytes });
  const isMapped = startsLike(bytes, MAPPED);
  return formatIp(isMapped ? { version: 4, bytes: bytes.subarray(12) } : { version: 6, bytes });
}

function invalid(why: string): VpnError {
  return new VpnError(
    'ERR_PROXY_HEADER',
    `expected a PROXY header, version 1 or 2, from an address in proxyFrom: ${why}; have the proxy send one (HAProxy: send-proxy-v2)`,
  );
}
