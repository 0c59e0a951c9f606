/**
 * Takes addresses out of lines of the log, by rule.
 *
 * Hides what an address looks like. A line is JSON: what stands in its strings is looked at, its time is not. `shorten` leaves the
 * network, /24 or /48, which tells sources apart and no person; `hide` leaves nothing.
 */

import { BlockList, isIP } from 'node:net';

/** What becomes of addresses. */
export type AddressRule = 'keep' | 'shorten' | 'hide';

/** A whole run of the characters of addresses with a dot or a colon in it, also behind an escaped character of JSON. */
const CANDIDATE = /(?:\\u[0-9A-Fa-f]{4}|(?<![0-9A-Fa-f:.]))([0-9A-Fa-f]*[.:][0-9A-Fa-f:.]*)/g;
const DOTS = /^\.+|\.+$/g;
const IPV4 = /(?<!\d)(?<!\d\.)\d{1,3}(?:\.\d{1,3}){3}(?!\d)(?!\.\d)/g;
/** How many parts of a run, between colons, are tried to be no part of its address: a word before it, a port or colon behind. */
const OUTSIDE = [
  [0, 0],
  [0, 1],
  [1, 0],
  [1, 1],
] as const;
/** A run of more is a fingerprint, or the like. */
const MAX_PARTS = 12;
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
  const put = (address: string, version: 4 | 6): string => {
    if (list.check(address, version === 6 ? 'ipv6' : 'ipv4')) return address;
    return rule === 'hide' ? HIDDEN : shorten(address, version);
  };
  const cleanRun = (run: string): string => {
    const ipv6 = findIpv6(run);
    if (ipv6 !== undefined) return run.replace(ipv6, () => put(ipv6, 6));
    return run.replace(IPV4, (found) => (isIP(found) === 4 ? put(found, 4) : found));
  };
  const clean = (text: string): string =>
    text.replace(CANDIDATE, (found, run: string) => found.slice(0, found.length - run.length) + cleanRun(run));
  return (line) => {
    const time = TIME.exec(line);
    if (time === null) return clean(line);
    const end = time.index + time[0].length;
    return clean(line.slice(0, time.index)) + time[0] + clean(line.slice(end));
  };
}

function findIpv6(run: string): string | undefined {
  const parts = run.replace(DOTS, '').split(':');
  if (parts.length < 3 || parts.length > MAX_PARTS) return undefined;
  for (const [before, behind] of OUTSIDE) {
    const text = parts.slice(before, parts.length - behind).join(':');
    // Everybody, as in `[::]:443`, is nobody's.
    if (text !== '::' && isIP(text) === 6) return text;
  }
  return undefined;
}

function shorten(address: string, version: 4 | 6): string {
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
