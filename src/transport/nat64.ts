/**
 * IPv4 addresses in networks that have only IPv6, behind a NAT64.
 *
 * Hides how such a network's prefix is found and where in an address of it an IPv4 address stands. Pure.
 *
 * @see RFC 6052 §2.2, RFC 7050
 */

import { formatIp, type IpAddress, parseIp } from '../ip/address.ts';

/** This name has only these IPv4 addresses: IPv6 addresses of it were made by the network. */
export const IPV4_ONLY_NAME = 'ipv4only.arpa';
const WELL_KNOWN = [Uint8Array.of(192, 0, 0, 170), Uint8Array.of(192, 0, 0, 171)];

/** Where the four bytes are, by the length of the prefix; byte 8 is always left out. */
const PLACES: readonly (readonly [number, number, number, number])[] = [
  [12, 13, 14, 15],
  [9, 10, 11, 12],
  [7, 9, 10, 11],
  [6, 7, 9, 10],
  [5, 6, 7, 9],
  [4, 5, 6, 7],
];

/** How a network writes IPv4 addresses. */
export interface Nat64Prefix {
  readonly template: Uint8Array;
  readonly place: readonly [number, number, number, number];
}

/** The prefixes that a network has put in front of the well-known addresses. @param addresses those of `IPV4_ONLY_NAME` */
export function nat64Prefixes(addresses: readonly string[]): Nat64Prefix[] {
  const found: Nat64Prefix[] = [];
  for (const text of addresses) {
    if (!text.includes(':')) continue;
    let address: IpAddress;
    try {
      address = parseIp(text);
    } catch {
      continue;
    }
    const { bytes } = address;
    const place = PLACES.find((at) => WELL_KNOWN.some((known) => at.every((byte, i) => bytes[byte] === known[i])));
    if (place === undefined) continue;
    const template = bytes.slice();
    for (const byte of place) template[byte] = 0;
    if (!found.some((prefix) => prefix.place === place && prefix.template.every((byte, i) => byte === template[i]))) {
      found.push({ template, place });
    }
  }
  return found;
}

/** An IPv4 address as it is reached through a NAT64. */
export function throughNat64({ template, place }: Nat64Prefix, ipv4: string): string {
  const bytes = template.slice();
  const { bytes: four } = parseIp(ipv4);
  for (const [i, byte] of place.entries()) bytes[byte] = four[i] ?? 0;
  return formatIp({ version: 6, bytes });
}
