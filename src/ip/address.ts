/**
 * IP addresses and prefixes as values, for everything that is not the packet path.
 *
 * Hides the text forms (ipaddr.js reads and writes them) and the arithmetic on bytes. Text is read strictly: no short
 * IPv4 forms, no leading zeros, no zone ids, no v4-mapped IPv6; text is written as RFC 5952 says. Nothing here knows what
 * an address is used for, but which ones a peer may never have us route.
 */

import ipaddr from 'ipaddr.js';
import { VpnError } from '../base/errors.ts';

/** An address. Its bytes belong to it and are not changed. */
export interface IpAddress {
  readonly version: 4 | 6;
  /** 4 or 16 bytes, network order. */
  readonly bytes: Uint8Array;
}

/** A block of addresses. */
export interface Prefix {
  /** The first address of the block: bits behind `length` are zero. */
  readonly address: IpAddress;
  /** Bits of the prefix: 0 to 32, or 0 to 128. */
  readonly length: number;
}

/**
 * Reads an address.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE
 */
export function parseIp(text: string): IpAddress {
  if (ipaddr.IPv4.isValidFourPartDecimal(text)) {
    return { version: 4, bytes: Uint8Array.from(ipaddr.IPv4.parse(text).toByteArray()) };
  }
  if (IPV6_TEXT.test(text) && ipaddr.IPv6.isValid(text)) {
    const parsed = ipaddr.IPv6.parse(text);
    if (parsed.isIPv4MappedAddress()) {
      throw invalid(text, 'an IPv4 address must be written as one, not mapped into IPv6');
    }
    return { version: 6, bytes: Uint8Array.from(parsed.toByteArray()) };
  }
  throw invalid(text, 'expected an IPv4 address such as 192.0.2.1 or an IPv6 address such as 2001:db8::1');
}

/** Writes an address: dotted decimal, or RFC 5952. */
export function formatIp(address: IpAddress): string {
  return address.version === 4 ? address.bytes.join('.') : new ipaddr.IPv6(Array.from(address.bytes)).toRFC5952String();
}

export function ipEquals(a: IpAddress, b: IpAddress): boolean {
  return a.version === b.version && commonBits(a.bytes, b.bytes) === a.bytes.length * 8;
}

/**
 * Makes the block of `length` bits that holds an address.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE when the length is no integer within the address
 */
export function createPrefix(address: IpAddress, length: number): Prefix {
  const bits = address.bytes.length * 8;
  if (!Number.isInteger(length) || length < 0 || length > bits) {
    throw new VpnError('ERR_CONFIG_VALUE', `expected a prefix length from 0 to ${bits}, found ${length}`, {
      details: { length },
    });
  }
  const bytes = address.bytes.map((byte, at) => byte & (0xff00 >> Math.min(Math.max(length - at * 8, 0), 8)));
  return { address: { version: address.version, bytes }, length };
}

/**
 * Reads `ADDRESS/LENGTH`. Bits behind the length are cleared.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE
 */
export function parsePrefix(text: string): Prefix {
  const match = /^([^/]*)\/(0|[1-9]\d{0,2})$/.exec(text);
  if (match === null) throw invalid(text, 'expected ADDRESS/LENGTH such as 192.0.2.0/24 or 2001:db8::/32');
  return createPrefix(parseIp(match[1] ?? ''), Number(match[2]));
}

/** Writes `ADDRESS/LENGTH`. */
export function formatPrefix(prefix: Prefix): string {
  return `${formatIp(prefix.address)}/${prefix.length}`;
}

export function prefixContains(prefix: Prefix, address: IpAddress): boolean {
  return prefix.address.version === address.version && commonBits(prefix.address.bytes, address.bytes) >= prefix.length;
}

/** Whether all of a prefix is within another one. */
export function prefixCovers(outer: Prefix, inner: Prefix): boolean {
  return outer.length <= inner.length && prefixContains(outer, inner.address);
}

/** The prefix that holds one address only. */
export function hostPrefix(address: IpAddress): Prefix {
  return { address, length: address.bytes.length * 8 };
}

/** Whether two prefixes have an address in common, which means that one is within the other. */
export function prefixesOverlap(a: Prefix, b: Prefix): boolean {
  return a.length <= b.length ? prefixContains(a, b.address) : prefixContains(b, a.address);
}

/**
 * Finds prefixes of a list that have addresses in common, without comparing each with each.
 *
 * @returns for each that overlaps one before it in the list the first such one, both by their places
 */
export function findOverlaps(prefixes: readonly Prefix[]): ReadonlyMap<number, number> {
  const found = new Map<number, number>();
  const sorted = prefixes.map((prefix, at) => ({ prefix, at })).sort((a, b) => comparePrefixes(a.prefix, b.prefix));
  // Those that hold the one that is looked at, the widest first.
  const around: typeof sorted = [];
  for (const one of sorted) {
    for (let last = around.at(-1); last !== undefined && !prefixCovers(last.prefix, one.prefix); last = around.at(-1)) {
      around.pop();
    }
    for (const other of around) {
      const later = Math.max(one.at, other.at);
      found.set(later, Math.min(one.at, other.at, found.get(later) ?? later));
    }
    around.push(one);
  }
  return found;
}

/** How many addresses a prefix holds. */
export function prefixSize(prefix: Prefix): bigint {
  return 1n << BigInt(prefix.address.bytes.length * 8 - prefix.length);
}

/**
 * The address at `index` of a prefix, counted from 0, the prefix's own address.
 *
 * @throws {VpnError} ERR_INVARIANT when the prefix is not that big
 */
export function addressAt(prefix: Prefix, index: bigint): IpAddress {
  if (index < 0n || index >= prefixSize(prefix)) {
    throw new VpnError('ERR_INVARIANT', `${formatPrefix(prefix)} has no address ${index}`);
  }
  const bytes = prefix.address.bytes.slice();
  let rest = index;
  for (let at = bytes.length - 1; rest > 0n; at--) {
    bytes[at] = (bytes[at] ?? 0) | Number(rest & 0xffn);
    rest >>= 8n;
  }
  return { version: prefix.address.version, bytes };
}

/**
 * Whether a prefix is a part of a default route rather than a network: shorter than 8 bits. `0.0.0.0/1` and `128.0.0.0/1`
 * replace a default route as well as `0.0.0.0/0` does, so whoever refuses that one refuses these.
 */
export function isBroadRoute(prefix: Prefix): boolean {
  return prefix.length < BROAD_ROUTE_BITS;
}

/**
 * Whether a prefix must never be routed on a peer's word: this network, loopback, link-local, multicast, reserved,
 * unspecified, v4-mapped. A broad route covers some of these and is judged as the default route that it is part of: the
 * kernel's own, longer routes stay in front of it.
 */
export function isUnusableRoute(prefix: Prefix): boolean {
  return !isBroadRoute(prefix) && UNUSABLE_ROUTES.some((unusable) => prefixesOverlap(unusable, prefix));
}

/** Whether an address can be that of a host somewhere else: none of the prefixes that are never routed. */
export function isUnusableAddress(address: IpAddress): boolean {
  return UNUSABLE_ROUTES.some((unusable) => prefixContains(unusable, address));
}

/** Whether all of a prefix is for private networks: RFC 1918, or unique local addresses (RFC 4193). */
export function isPrivateNetwork(prefix: Prefix): boolean {
  return PRIVATE_NETWORKS.some((outer) => prefixCovers(outer, prefix));
}

const BROAD_ROUTE_BITS = 8;

/** Hexadecimal and colons, and perhaps a tail in dotted decimal without leading zeros: no zone id. */
const IPV6_TEXT = /^[0-9a-fA-F:]+(:(0|[1-9]\d*)(\.(0|[1-9]\d*)){3})?$/;

const V4_MAPPED: Prefix = {
  address: { version: 6, bytes: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0) },
  length: 96,
};

const UNUSABLE_ROUTES: readonly Prefix[] = [
  ...['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/4', '240.0.0.0/4'].map(parsePrefix),
  ...['::/128', '::1/128', 'fe80::/10', 'ff00::/8'].map(parsePrefix),
  V4_MAPPED,
];

const PRIVATE_NETWORKS: readonly Prefix[] = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', 'fc00::/7'].map(
  parsePrefix,
);

/** By family and address; of those that begin alike the widest comes first. */
function comparePrefixes(a: Prefix, b: Prefix): number {
  const [left, right] = [a.address, b.address];
  if (left.version !== right.version) return left.version - right.version;
  for (const [at, byte] of left.bytes.entries()) {
    const difference = byte - (right.bytes[at] ?? 0);
    if (difference !== 0) return difference;
  }
  return a.length - b.length;
}

/** How many leading bits two addresses of one version share. */
function commonBits(a: Uint8Array, b: Uint8Array): number {
  for (let at = 0; at < a.length; at++) {
    const difference = (a[at] ?? 0) ^ (b[at] ?? 0);
    if (difference !== 0) return at * 8 + Math.clz32(difference) - 24;
  }
  return a.length * 8;
}

function invalid(text: string, why: string): VpnError {
  return new VpnError('ERR_CONFIG_VALUE', `${why}, found ${JSON.stringify(text)}`, { details: { found: text } });
}
