/** Whether an address, as a socket tells it, lies in one of some networks. */

import { isIP } from 'node:net';
import { parseIp, parsePrefix, prefixContains } from '../ip/address.ts';

/** @throws {VpnError} ERR_CONFIG_VALUE for what is no prefix */
export function isWithinAny(networks: readonly string[]): (address: string) => boolean {
  const prefixes = networks.map(parsePrefix);
  return (text) => {
    if (prefixes.length === 0) return false;
    // A link-local peer's address has its zone behind it.
    const plain = text.replace(/%.*$/, '');
    if (isIP(plain) === 0) return false;
    const address = parseIp(plain);
    return prefixes.some((prefix) => prefixContains(prefix, address));
  };
}
