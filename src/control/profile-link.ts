/**
 * A profile as one line: a link that can be sent, pasted or drawn as a QR code.
 *
 * Hides the encoding: `customvpn:1.` and the base64url of the raw deflate of the profile's own text, whose certificate stands as
 * DER. It holds the one-time token, so it is as secret as the file, and worth nothing once a device is enrolled with it.
 *
 * @see docs/decisions/0016-profile-links.md
 */

import { deflateRawSync, inflateRawSync } from 'node:zlib';
import { VpnError } from '../base/errors.ts';
import { formatProfile, type Profile, parseProfile } from './profile.ts';

const PREFIX = 'customvpn:1.';
const MAX_LINK_CHARACTERS = 64 * 1024;
const MAX_TEXT_BYTES = 256 * 1024;
/** Words that every profile has: deflate begins with them in its window. */
const DICTIONARY = Buffer.from(
  'version = 1\nid = "\nname = "\nuser = "\ntoken = "\ntokenExpires = "\npins = ["="]\nca = """\n-----BEGIN CERTIFICATE-----\nMII' +
    '\n-----END CERTIFICATE-----\n"""\n\n[server]\nhosts = [", "]\nport = 443\nname = "\n\n' +
    '# What the gateway may ask of this machine.\n[allow]\nfullTunnel = true\nmaxRoutes = 1000\ndns = true\n',
);
const CERTIFICATE = /-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]+)-----END CERTIFICATE-----/g;
const COMMENTS = /^#.*\n/gm;
/** How a certificate is marked in a link's text, which is Latin-1: its length, and its bytes. */
const DER_MARK = '\u0001';

/** Whether a text means to be a link. */
export function isProfileLink(text: string): boolean {
  return text.trimStart().startsWith('customvpn:');
}

/** Writes a profile as a link, token and all. */
export function encodeProfileLink(profile: Profile): string {
  const text = formatProfile(profile).replace(COMMENTS, '');
  // Base64 of a certificate does not compress, and its line ends cost on top.
  const packed: Buffer[] = [];
  let at = 0;
  for (const match of text.matchAll(CERTIFICATE)) {
    const der = Buffer.from((match[1] ?? '').replaceAll('\n', ''), 'base64');
    const length = Buffer.alloc(2);
    length.writeUInt16BE(der.length);
    packed.push(Buffer.from(text.slice(at, match.index)), Buffer.from(DER_MARK), length, der);
    at = match.index + match[0].length;
  }
  packed.push(Buffer.from(text.slice(at)));
  const bytes = deflateRawSync(Buffer.concat(packed), { level: 9, dictionary: DICTIONARY });
  return `${PREFIX}${bytes.toString('base64url')}`;
}

/**
 * Reads a link. No error repeats any of it.
 *
 * @throws {VpnError} ERR_CONFIG_SYNTAX (no link, or one that is cut off or changed), and what `parseProfile` throws
 */
export function decodeProfileLink(link: string): Profile {
  const text = link.trim();
  if (text.length > MAX_LINK_CHARACTERS || !/^customvpn:1\.[A-Za-z0-9_-]+$/.test(text)) {
    const isNewer = /^customvpn:\d+\./.test(text) && !text.startsWith(PREFIX);
    throw new VpnError(
      'ERR_CONFIG_SYNTAX',
      isNewer
        ? 'this link is of a newer kind; update customvpn'
        : `expected a link that begins with ${PREFIX} and is in one piece; copy it again, or ask for a new one`,
    );
  }
  let bytes: Buffer;
  try {
    bytes = inflateRawSync(Buffer.from(text.slice(PREFIX.length), 'base64url'), {
      maxOutputLength: MAX_TEXT_BYTES,
      dictionary: DICTIONARY,
    });
  } catch {
    // The cause would hold nothing that helps, and may hold some of the link.
    throw new VpnError('ERR_CONFIG_SYNTAX', 'the link is damaged; copy it again, or ask for a new one');
  }
  return parseProfile(unpack(bytes), 'the link');
}

function unpack(bytes: Buffer): string {
  let text = '';
  let at = 0;
  for (;;) {
    const mark = bytes.indexOf(DER_MARK, at);
    if (mark < 0 || mark + 3 > bytes.length) break;
    const length = bytes.readUInt16BE(mark + 1);
    const der = bytes.subarray(mark + 3, mark + 3 + length);
    const lines = der.toString('base64').match(/.{1,64}/g) ?? [];
    text += `${bytes.toString('utf8', at, mark)}-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----`;
    at = mark + 3 + length;
  }
  return text + bytes.toString('utf8', at);
}
