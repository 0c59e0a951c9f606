/**
 * Takes addresses out of lines of the log, by rule.
 *
 * Hides what an address looks like. A line is JSON: what stands in its strings is looked at, its time is not. `shorten` leaves the
 * network, /24 or /48, which tells sources apart and no person; `hide` leaves nothing.
 */

import { BlockList, isIP } from 'node:net';

/** What becomes of addresses. */
export type AddressRule = 'keep' | 'shorten' | 'hide';

/** Runs of the characters of an address, with a dot or two colons in them. */
const CANDIDATE = /[0-9A-Fa-f:.]*[0-9A-Fa-f:][.:][0-9A-Fa-f:.]*[0-9A-Fa-f:]/g;
const TIME = /"time":"[^"]*"/;
const HIDDEN = '[address]';
const KEPT_GROUPS = 3;

/** Undefined: nothing is changed. @param kept networks whose addresses stay */
export function addressFilter(rule: AddressRule, kept: readonly string[]): ((line: string) => string) | undefined {
  if (rule === 'keep') return undefined;
  const list = new BlockList();
  for (const prefix of kept) {
    const [network = '', bits = ''] = prefix.split('/');
    const family = isIP(network) === 6 ? 'ipv6' : 'ipv4';
    list.addSubnet(network, Number(bits), family);
  }
  const clean = (text: string): string =>
    text.replace(CANDIDATE, (found) => {
      // With a port, as an IPv4 address has it: that of an IPv6 address stands after a bracket.
      const [, address = found, port = ''] = /^((?:\d{1,3}\.){3}\d{1,3})(:\d+)$/.exec(found) ?? [];
      const version = isIP(address);
      if (version === 0 || list.check(address, version === 6 ? 'ipv6' : 'ipv4')) return found;
      return (rule === 'hide' ? HIDDEN : shorten(address, version)) + port;
    });
  return (line) => {
    const time = TIME.exec(line);
    if (time === null) return clean(line);
    const end = time.index + time[0].length;
    return clean(line.slice(0, time.index)) + time[0] + clean(line.slice(end));
  };
}

function shorten(address: string, version: number): string {
  if (version === 4) return address.replace(/\d+$/, '0');
  // One that carries an IPv4 address is as that.
  const mapped = /^::ffff:(\d+\.\d+\.\d+)\.\d+$/i.exec(address);
  if (mapped !== null) return `::ffff:${mapped[1]}.0`;
  const [head = '', tail] = address.split('::');
  const groups = head === '' ? [] : head.split(':');
  const after = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros =
    tail === undefined ? [] : Array.from({ length: Math.max(0, 8 - groups.length - after.length) }, () => '0');
  return `${[...groups, ...zeros, ...after].slice(0, KEPT_GROUPS).join(':')}::`;
}
