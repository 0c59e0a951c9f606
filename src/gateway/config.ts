/**
 * The gateway's configuration: every key, its default and its bounds, in one table.
 *
 * `server.toml` in the state directory and the options of `VpnServer` are the same value. Relative file names are
 * resolved against the folder of the configuration file. `docs/configuration.md` describes every key, and a test
 * compares the two.
 */

import { isAbsolute, resolve } from 'node:path';
import { z } from 'zod';
import { parsePrefix } from '../ip/address.ts';

const text = z.string().min(1).max(4096);
const address = z.union([z.ipv4(), z.ipv6()], 'expected an IPv4 or IPv6 address');
const prefix = z
  .string()
  .refine((value) => {
    try {
      parsePrefix(value);
      return true;
    } catch {
      return false;
    }
  }, 'expected a prefix such as 10.20.0.0/16 or fd12::/64')
  .describe('a prefix in CIDR notation');
const service = z
  .string()
  .regex(/^(tcp|udp)\/([1-9]\d{0,4})$|^([1-9]\d{0,4})\/(tcp|udp)$/, 'expected PORT/tcp or PORT/udp');
const seconds = (low: number, high: number) => z.int('expected whole seconds').min(low).max(high);
const domain = z
  .string()
  .max(253)
  .regex(/^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/, 'expected a domain name in lower case');

export const gatewayConfigSchema = z.strictObject({
  address: z.string().max(64).default('::').describe('address to listen on; "::" takes IPv4 too'),
  port: z.number().int().min(0).max(65_535).default(443),
  names: z
    .array(text)
    .max(16)
    .default([])
    .describe('names or addresses by which clients reach the gateway; the first is verified'),

  certFile: text.default('certs/server.pem'),
  keyFile: text.default('certs/server.key'),
  caFile: text.optional().describe('CAs that client certificates must come from'),
  crlFile: text.optional(),
  requireClientAuth: z
    .union([z.boolean(), z.literal('optional')], 'expected true, false or "optional"')
    .default(false)
    .describe('ask for a client certificate'),
  minVersion: z.enum(['1.2', '1.3']).default('1.3').describe('lowest TLS version'),
  greetWithoutAlpn: z.boolean().default(false).describe('greet clients that offer no ALPN'),

  device: z
    .string()
    .regex(/^[a-zA-Z][a-zA-Z0-9_-]{0,12}$/, 'expected a name of at most 13 letters, digits, - or _')
    .default('cvpn0')
    .describe('TUN device; a second one with "p" appended serves peers without super-packets'),
  mtu: z.number().int().min(1280).max(9000).default(1500).describe('of the TUN devices'),
  pool: z
    .array(prefix)
    .min(1)
    .max(2)
    .default(['10.88.0.0/24'])
    .describe('client addresses: one IPv4 prefix, one IPv6 prefix, or both'),
  routes: z.array(prefix).max(1000).default([]).describe('networks that clients may reach; pushed to them'),
  dns: z.array(address).max(8).default([]),
  dnsDomains: z.array(domain).max(64).default([]),
  services: z.array(service).max(64).default([]).describe("ports open to clients on the gateway's own address"),
  clientToClient: z.boolean().default(false),
  nat4: z.boolean().default(true).describe('masquerade IPv4 clients'),
  nat6: z.boolean().default(true).describe('masquerade IPv6 clients'),

  data: z
    .strictObject({
      mode: z
        .enum(['attached', 'inline'])
        .default('attached')
        .describe('data on its own connection, or on the control one'),
      superPackets: z.boolean().default(true),
      queueBytes: z.number().int().min(131_072).max(16_777_216).default(1_048_576).describe('bound of a session queue'),
    })
    .prefault({}),

  session: z
    .strictObject({
      absoluteSeconds: seconds(60, 31_536_000).default(604_800).describe('a session ends after this, however busy'),
      idleSeconds: seconds(60, 31_536_000).default(86_400).describe('a session ends when no packet came for this long'),
      graceSeconds: seconds(0, 86_400).default(120).describe('told to clients for resuming, which is not there yet'),
      pingSeconds: seconds(1, 600).default(20).describe('silence before an end asks whether the other lives'),
      deadSeconds: seconds(3, 3600).default(60).describe('silence after which the other end counts as gone'),
    })
    .refine(({ pingSeconds, deadSeconds }) => deadSeconds >= 2 * pingSeconds, {
      path: ['deadSeconds'],
      message: 'expected at least twice pingSeconds, or every client would refuse both',
    })
    .prefault({}),

  limits: z
    .strictObject({
      handshakeSeconds: seconds(1, 60).default(10).describe('for the TLS handshake'),
      loginSeconds: seconds(1, 600).default(30).describe('from the greeting to the verdict'),
      connectionsPerSource: z.number().int().min(1).max(100_000).default(512).describe('per IPv4 address or IPv6 /64'),
      handshakesInFlight: z.number().int().min(1).max(100_000).default(512),
      sessions: z.number().int().min(1).max(100_000).default(10_000),
    })
    .prefault({}),

  log: z
    .strictObject({
      level: z.enum(['debug', 'info', 'warn', 'error']).default('info'),
      format: z.enum(['text', 'json']).default('text'),
    })
    .prefault({}),
});

/** What an operator writes. */
export type GatewayOptions = z.input<typeof gatewayConfigSchema>;
/** What the program reads: complete, checked and frozen. */
export type GatewayConfig = Readonly<z.output<typeof gatewayConfigSchema>>;

/** Keys that `reload` applies to a running gateway; the others need a restart. */
export const RELOADABLE_KEYS: readonly (keyof GatewayConfig)[] = [
  'certFile',
  'keyFile',
  'caFile',
  'crlFile',
  'routes',
  'dns',
  'dnsDomains',
  'services',
];

/** The configuration with its file names made absolute. */
export function resolveFiles(config: GatewayConfig, folder: string): GatewayConfig {
  const absolute = (file: string) => (isAbsolute(file) ? file : resolve(folder, file));
  return {
    ...config,
    certFile: absolute(config.certFile),
    keyFile: absolute(config.keyFile),
    ...(config.caFile === undefined ? {} : { caFile: absolute(config.caFile) }),
    ...(config.crlFile === undefined ? {} : { crlFile: absolute(config.crlFile) }),
  };
}
