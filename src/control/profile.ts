/**
 * The profile: one file that tells a client everything about one gateway.
 *
 * Hides the TOML text. A profile holds names and port, the CA, the pins, what the gateway may ask of the client, and until
 * the first login a one-time enrolment token. The token is a `Secret` from the moment it is read, and no error repeats a
 * line of the file. It must not know how a client dials or enrols.
 *
 * @see docs/protocol.md §1 (pins) and §12 (what a client accepts)
 */

import { randomBytes, X509Certificate } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import { z } from 'zod';
import { parseConfig } from '../base/config.ts';
import { isVpnError, VpnError } from '../base/errors.ts';
import { Secret } from '../base/log.ts';
import { writePrivateFile } from '../base/private-file.ts';

export const PROFILE_VERSION = 1;
/** Bytes of an enrolment token: id(8) ‖ secret(32). */
const TOKEN_BYTES = 40;
/** Prefixes that a client takes from a gateway at most, whatever its profile says. */
const MAX_ROUTES = 1000;
const MAX_FILE_BYTES = 262_144;

const text = (maximum: number) =>
  z
    .string()
    .min(1)
    .max(maximum)
    .regex(/^[^\p{Cc}\p{Bidi_Control}]*$/u, 'expected text without control characters');
const host = z
  .string()
  .max(253)
  .regex(/^[A-Za-z0-9](?:[A-Za-z0-9.:_-]*[A-Za-z0-9])?$|^[0-9A-Fa-f:.]+$/, 'expected a host name or an address');
const domain = z
  .string()
  .max(253)
  .regex(/^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/, 'expected a domain name in lower case');
const pin = z.string().regex(/^[A-Za-z0-9+/]{43}=$/, 'expected the base64 of a SHA-256');
const token = z
  .string()
  .refine((value) => decodeToken(value) !== undefined, 'expected an enrolment token')
  .transform((value) => new Secret<Uint8Array>(decodeToken(value) ?? new Uint8Array(0)));

const server = z.strictObject({
  hosts: z.array(host).min(1).max(16).describe('tried in order'),
  port: z.int().min(1).max(65_535),
  name: host.describe('the name that the certificate must have'),
  camouflage: z
    .string()
    .regex(/^\/[A-Za-z0-9._~/-]{1,255}$/, 'expected a path such as /a1b2c3')
    .exactOptional()
    .describe(
      'the secret path at which the gateway opens a tunnel, so that the connection looks like one to a web server',
    ),
  proxy: z
    .string()
    .max(1024)
    .regex(
      /^(?:environment|none|(?:https?|socks5h?):\/\/.+)$/,
      'expected environment, none, or the URL of a proxy: http://…, https://… or socks5://…',
    )
    .exactOptional()
    .describe('the proxy on the way; left out: what HTTPS_PROXY, ALL_PROXY and NO_PROXY say'),
});

const allow = z.strictObject({
  fullTunnel: z.boolean().default(true).describe('the gateway may take all traffic'),
  maxRoutes: z.int().min(0).max(MAX_ROUTES).default(MAX_ROUTES),
  dns: z.boolean().default(true).describe('the gateway may name DNS servers'),
  dnsDomains: z.array(domain).max(64).exactOptional().describe('only for these domains and what is below them'),
});

const ip = z.union([z.ipv4(), z.ipv6()], 'expected an IP address');
const network = z
  .union([z.cidrv4(), z.cidrv6()], 'expected a network such as 192.0.2.0/24 or 2001:db8::/32')
  .refine((text) => Number(text.slice(text.indexOf('/') + 1)) >= 8, 'too broad: for everything use mode = "full"');

const tunnel = z.strictObject({
  device: z
    .enum(['tun', 'tap'])
    .default('tun')
    .describe('`tap`: Ethernet frames, for a gateway that bridges; the tunnel is split then'),
  mode: z
    .enum(['auto', 'full', 'split'])
    .default('auto')
    .describe('`full`: all traffic goes through the tunnel; `auto`: when the gateway offers that'),
  include: z.array(network).max(256).default([]).describe('networks in the tunnel besides those that are pushed'),
  exclude: z.array(network).max(256).default([]).describe('networks outside the tunnel, whatever is pushed'),
  lan: z
    .boolean()
    .default(false)
    .describe('in a full tunnel: the private networks that the machine is in stay reachable'),
  overlap: z
    .enum(['auto', 'local', 'tunnel', 'stop'])
    .default('auto')
    .describe('who gets networks that the machine is in and the tunnel has, too'),
  dns: z.array(ip).max(8).default([]).describe('name servers in place of those that are pushed'),
  killSwitch: z
    .enum(['off', 'on', 'always'])
    .default('off')
    .describe('nothing leaves outside the tunnel: from `up` to `down`; `always`: from boot'),
  networks: z
    .array(network)
    .max(64)
    .default([])
    .describe('networks behind this machine that others reach through it, as far as the gateway grants it'),
  channels: z
    .int()
    .min(1)
    .max(16)
    .exactOptional()
    .describe('data connections at most; left out: as many as the gateway allows'),
  compression: z
    .boolean()
    .default(false)
    .describe('compress packets where the gateway allows it; tells the sizes of secrets, see docs/security.md'),
});

export const profileSchema = z
  .strictObject({
    version: z.literal(PROFILE_VERSION, `expected ${PROFILE_VERSION}; a newer profile needs a newer client`),
    id: z.string().regex(/^[0-9a-f]{32}$/, 'expected 32 hexadecimal digits'),
    name: text(128).describe('what people call it'),
    user: text(128).exactOptional(),
    token: token.exactOptional(),
    tokenExpires: z.iso.datetime().exactOptional().describe('until when the token can be used'),
    verifyServer: z.boolean().default(true),
    pins: z.array(pin).max(16).default([]),
    certFile: text(4096).exactOptional().describe('client certificate, when the gateway asks for one'),
    keyFile: text(4096).exactOptional(),
    ca: z
      .string()
      .max(65_536)
      .refine(isCertificates, 'expected one or more certificates in PEM')
      .exactOptional()
      .describe("left out: the system's authorities"),
    server,
    allow: allow.prefault({}),
    tunnel: tunnel.prefault({}),
  })
  .refine((profile) => profile.token === undefined || profile.pins.length > 0, {
    path: ['pins'],
    message: 'a profile with an enrolment token must have a pin',
  })
  .refine((profile) => profile.token === undefined || profile.verifyServer, {
    path: ['verifyServer'],
    message: 'a profile with an enrolment token must verify its server',
  })
  .refine(({ tunnel: { killSwitch, mode } }) => killSwitch === 'off' || mode !== 'split', {
    path: ['tunnel', 'killSwitch'],
    message: 'a kill switch lets nothing out but the tunnel, so mode cannot be "split"',
  })
  .refine(({ tunnel: { device, killSwitch, mode } }) => device === 'tun' || (killSwitch === 'off' && mode !== 'full'), {
    path: ['tunnel', 'device'],
    message: '"tap" joins a network and leaves the others alone: it has no full tunnel and no kill switch',
  })
  .refine((profile) => (profile.certFile === undefined) === (profile.keyFile === undefined), {
    path: ['keyFile'],
    message: 'certFile and keyFile come together',
  });

/** What a client knows of a gateway. */
export type Profile = Readonly<z.output<typeof profileSchema>>;
/** A profile to be written; what is left out takes its default. */
export type NewProfile = Readonly<
  Omit<Profile, 'verifyServer' | 'pins' | 'allow' | 'tunnel'> &
    Partial<Pick<Profile, 'verifyServer' | 'pins' | 'allow'>> & { tunnel?: Partial<Profile['tunnel']> }
>;

/** A name for a new profile that no other has: 32 hexadecimal digits. */
export function newProfileId(): string {
  return randomBytes(16).toString('hex');
}

/**
 * Reads a profile's text; `name` is what messages call it.
 *
 * @throws {VpnError} ERR_CONFIG_SYNTAX, ERR_CONFIG_KEY, ERR_CONFIG_VALUE
 */
export function parseProfile(content: string, name: string): Profile {
  if (content.length > MAX_FILE_BYTES) {
    throw new VpnError('ERR_CONFIG_VALUE', `${name}: ${content.length} characters are too many for a profile`, {
      details: { path: name },
    });
  }
  try {
    return parseConfig(content, profileSchema, name);
  } catch (error) {
    // The parser's own error quotes the lines around the mistake, and one of them may be the token.
    if (isVpnError(error)) throw new VpnError(error.code, error.message, { details: error.details });
    throw error;
  }
}

/**
 * Reads a profile from a file.
 *
 * @throws {VpnError} ERR_CONFIG_FILE, and what `parseProfile` throws
 */
export async function readProfile(path: string): Promise<Profile> {
  let content: string;
  try {
    const { size } = await stat(path);
    content = size > MAX_FILE_BYTES ? ' '.repeat(MAX_FILE_BYTES + 1) : await readFile(path, 'utf8');
  } catch (cause) {
    const errno = (cause as NodeJS.ErrnoException).code;
    const why = errno === 'ENOENT' ? 'there is no such file' : errno === 'EACCES' ? 'permission denied' : String(errno);
    throw new VpnError('ERR_CONFIG_FILE', `cannot read the profile ${path}: ${why}`, {
      cause,
      details: { path, errno },
    });
  }
  return parseProfile(content, path);
}

/** A profile's text, with its token in the clear: for a private file or for the operator who asked. */
export function formatProfile(profile: NewProfile): string {
  const lines = [
    '# A CustomVPN profile. Keep it private: until the first login it holds a one-time token.',
    `version = ${PROFILE_VERSION}`,
    `id = ${quote(profile.id)}`,
    `name = ${quote(profile.name)}`,
  ];
  if (profile.user !== undefined) lines.push(`user = ${quote(profile.user)}`);
  if (profile.token !== undefined) lines.push(`token = ${quote(encodeToken(profile.token.reveal()))}`);
  if (profile.token !== undefined && profile.tokenExpires !== undefined) {
    lines.push(`tokenExpires = ${quote(profile.tokenExpires)}`);
  }
  if (profile.verifyServer === false) lines.push('verifyServer = false');
  if (profile.pins !== undefined && profile.pins.length > 0) lines.push(`pins = ${list(profile.pins)}`);
  if (profile.certFile !== undefined) lines.push(`certFile = ${quote(profile.certFile)}`);
  if (profile.keyFile !== undefined) lines.push(`keyFile = ${quote(profile.keyFile)}`);
  if (profile.ca !== undefined) lines.push(`ca = """`, profile.ca.trim(), '"""');
  const { hosts, port, name, camouflage, proxy } = profile.server;
  lines.push('', '[server]', `hosts = ${list(hosts)}`, `port = ${port}`, `name = ${quote(name)}`);
  if (camouflage !== undefined) lines.push(`camouflage = ${quote(camouflage)}`);
  if (proxy !== undefined) lines.push(`proxy = ${quote(proxy)}`);
  const { fullTunnel, maxRoutes, dns, dnsDomains } = profile.allow ?? allow.parse({});
  lines.push('', '# What the gateway may ask of this machine.', '[allow]', `fullTunnel = ${fullTunnel}`);
  lines.push(`maxRoutes = ${maxRoutes}`, `dns = ${dns}`);
  if (dnsDomains !== undefined) lines.push(`dnsDomains = ${list(dnsDomains)}`);
  lines.push(...tunnelLines(profile.tunnel));
  return `${lines.join('\n')}\n`;
}

/** What differs from the defaults. */
function tunnelLines(wishes: Partial<Profile['tunnel']> | undefined): string[] {
  const defaults: Readonly<Record<string, unknown>> = tunnel.parse({});
  const lines = Object.entries(wishes ?? {}).flatMap(([key, value]) => {
    if (JSON.stringify(value) === JSON.stringify(defaults[key])) return [];
    return [`${key} = ${Array.isArray(value) ? list(value) : JSON.stringify(value)}`];
  });
  return lines.length === 0 ? [] : ['', '# What the tunnel does to this machine.', '[tunnel]', ...lines];
}

/**
 * Writes a profile to a file of mode 0600, whole.
 *
 * @throws {VpnError} ERR_CONFLICT when it exists and `when` is `create`; ERR_SYSCALL
 */
export function writeProfile(
  path: string,
  profile: NewProfile,
  options: { readonly when?: 'create' | 'replace' } = {},
): Promise<void> {
  return writePrivateFile(path, formatProfile(profile), options);
}

/** The same profile after enrolment. */
export function withoutToken(profile: Profile): Profile {
  const { token: _, tokenExpires: __, ...rest } = profile;
  return rest;
}

/** An enrolment token as it is written in a profile. */
export function encodeToken(bytes: Uint8Array): string {
  return bytes.toBase64({ alphabet: 'base64url', omitPadding: true });
}

function decodeToken(value: string): Uint8Array | undefined {
  try {
    const bytes = Uint8Array.fromBase64(value, { alphabet: 'base64url' });
    return bytes.length === TOKEN_BYTES && encodeToken(bytes) === value ? bytes : undefined;
  } catch {
    return undefined;
  }
}

const CERTIFICATE = /-----BEGIN CERTIFICATE-----\r?\n[A-Za-z0-9+/=\r\n]+-----END CERTIFICATE-----/g;

function isCertificates(pem: string): boolean {
  const blocks = pem.match(CERTIFICATE) ?? [];
  if (blocks.length === 0 || pem.replace(CERTIFICATE, '').trim() !== '') return false;
  try {
    for (const block of blocks) new X509Certificate(block);
    return true;
  } catch {
    return false;
  }
}

/** A TOML basic string: JSON's, where no control characters are left. */
function quote(value: string): string {
  return JSON.stringify(value);
}

function list(values: readonly string[]): string {
  return `[${values.map(quote).join(', ')}]`;
}
