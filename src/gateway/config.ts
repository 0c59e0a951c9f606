/**
 * The gateway's configuration: every key, its default and its bounds, in one table.
 *
 * `server.toml` in the state directory and the options of `VpnServer` are the same value. Relative file names are
 * resolved against the folder of the configuration file. `docs/configuration.md` describes every key, and a test
 * compares the two.
 */

import { isIP } from 'node:net';
import { isAbsolute, resolve } from 'node:path';
import { z } from 'zod';
import { VpnError } from '../base/errors.ts';
import type { Role } from '../control/operations.ts';
import { normaliseName } from '../identity/names.ts';
import { parsePrefix } from '../ip/address.ts';
import { tapSchema } from './tap-config.ts';

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
const step = z.enum(['device', 'certificate', 'token', 'password', 'totp', 'oidc']);
const domain = z
  .string()
  .max(253)
  .regex(/^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/, 'expected a domain name in lower case');

const account = z.string().regex(/^[a-z_][a-z0-9_-]{0,31}$|^[1-9][0-9]{0,9}$/, 'expected the name or number of a user');

/** The port may be 0, for tests. */
const endpoint = z.string().refine((value) => parseEndpoint(value) !== undefined, {
  message: 'expected an address and port such as "127.0.0.1:8443" or "[::1]:8443"',
});

const distinguishedName = z.string().min(1).max(1024);
const filter = z
  .string()
  .max(1024)
  .regex(/^\(.*\)$/s, 'expected a filter in parentheses, such as (uid={user})');
const groupName = z.string().refine((value) => normaliseName(value) === value, 'expected the name of a group');
const attribute = z.string().regex(/^[A-Za-z][A-Za-z0-9-]{0,63}$/, 'expected the name of an attribute');
/** Theirs to ours. A table that is not there: the source has no say in groups. */
const groupTable = z.record(distinguishedName, groupName, 'expected a table of "their group" = "our group"').optional();
const backendSeconds = seconds(1, 60);
const server = z.string().refine((value) => {
  const parts = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::([1-9]\d{0,4}))?$/.exec(value);
  return parts !== null && isIP(parts[1] ?? parts[2] ?? '') !== 0 && Number(parts[3] ?? 1) <= 65_535;
}, 'expected an address such as 192.0.2.1:1812 or [2001:db8::1]:1812');

const ldapBackend = z
  .strictObject({
    kind: z.literal('ldap'),
    urls: z
      .array(z.string().regex(/^ldaps?:\/\/[^/\s?#@]+\/?$/, 'expected ldaps://HOST[:PORT] or ldap://HOST[:PORT]'))
      .min(1)
      .max(8)
      .describe('tried in order'),
    startTls: z.boolean().default(true).describe('turn ldap:// into TLS before anything is said'),
    caFile: text.optional().describe('CAs that the certificate of the directory must come from'),
    insecure: z.boolean().default(false).describe('allow ldap:// without TLS: passwords cross the network readable'),
    bindDn: distinguishedName.optional().describe('account that searches'),
    bindPasswordFile: text.optional(),
    bindTemplate: distinguishedName
      .regex(/\{user\}/, 'expected {user} where the name belongs')
      .optional()
      .describe('DN of a user, in place of the search'),
    baseDn: distinguishedName.optional().describe('where users are searched'),
    filter: filter
      .regex(/\{user\}/, 'expected {user} where the name belongs')
      .default('(uid={user})')
      .describe('finds the user'),
    nameAttribute: attribute.default('uid').describe("holds the account's name"),
    disabledFilter: filter.optional().describe('matches accounts that are disabled'),
    groupAttribute: attribute.default('memberOf').describe("lists the user's groups"),
    groupBaseDn: distinguishedName.optional().describe('where groups are searched, in place of the attribute'),
    groupFilter: filter.default('(member={dn})').describe('finds the groups of {dn} or {user}'),
    groups: groupTable,
    timeoutSeconds: backendSeconds.default(5).describe('for a whole question'),
  })
  .refine(({ insecure, caFile }) => insecure || caFile !== undefined, {
    path: ['caFile'],
    message: 'expected the CAs of the directory, such as /etc/ssl/certs/ca-certificates.crt',
  })
  .refine(({ urls, startTls, insecure }) => insecure || startTls || urls.every((url) => url.startsWith('ldaps:')), {
    path: ['startTls'],
    message: 'expected true with ldap://; without TLS passwords cross the network readable: that needs insecure = true',
  })
  .refine(({ bindTemplate, baseDn }) => bindTemplate !== undefined || baseDn !== undefined, {
    path: ['baseDn'],
    message: 'expected where to search users, or bindTemplate',
  })
  .refine(({ bindDn, bindPasswordFile }) => (bindDn === undefined) === (bindPasswordFile === undefined), {
    path: ['bindPasswordFile'],
    message: 'expected together with bindDn',
  });

const oidcBackend = z
  .strictObject({
    kind: z.literal('oidc'),
    issuer: z.url({ protocol: /^https?$/, error: 'expected https://HOST/…' }),
    clientId: text,
    clientSecretFile: text.optional().describe('without one the gateway is a public client'),
    scopes: z
      .array(z.string().regex(/^[\x21\x23-\x5b\x5d-\x7e]{1,128}$/, 'expected a scope'))
      .max(32)
      .default(['openid', 'profile', 'email', 'offline_access'])
      .refine((scopes) => scopes.includes('openid'), 'expected "openid" among them'),
    nameClaim: z.string().min(1).max(64).default('preferred_username').describe("holds the account's name"),
    groupsClaim: z.string().min(1).max(64).default('groups'),
    groups: groupTable,
    caFile: text.optional().describe('in place of the CAs of this machine'),
    insecure: z.boolean().default(false).describe('allow http:// on this machine itself'),
    timeoutSeconds: backendSeconds.default(10).describe('for one request'),
  })
  .refine(({ issuer, insecure }) => issuer.startsWith('https:') || (insecure && isLoopbackUrl(issuer)), {
    path: ['issuer'],
    message: 'expected https://; http:// is possible only on this machine itself, with insecure = true',
  });

const radiusServers = z.array(server).min(1).max(8);
const radiusBackend = z.strictObject({
  kind: z.literal('radius'),
  servers: radiusServers.describe('tried in order; port 1812 if none is given'),
  secretFile: text,
  nasIdentifier: z.string().min(1).max(253).default('customvpn').describe('how the gateway names itself'),
  groupAttribute: z.enum(['Class', 'Filter-Id']).default('Class').describe('names a group of the user'),
  groups: groupTable,
  tries: z.int().min(1).max(10).default(3).describe('packets for each server'),
  timeoutSeconds: backendSeconds.default(2).describe('for an answer to one packet'),
  accountingServers: radiusServers.optional().describe('told of sessions; port 1813 if none is given'),
  interimSeconds: seconds(60, 86_400).default(600).describe('between reports of a running session'),
});

const backend = z.discriminatedUnion('kind', [ldapBackend, oidcBackend, radiusBackend], {
  error: 'expected kind = "ldap", "oidc" or "radius"',
});

const outsideUrl = z
  .url({ protocol: /^https?$/, error: 'expected https://HOST/…' })
  .max(2048)
  .refine((value) => !URL.parse(value)?.username && !URL.parse(value)?.password, 'expected no user or password in it');
const ONLY_TLS = {
  path: ['url'],
  message: 'expected https://; http:// needs insecure = true: anybody on the way reads along',
};
const eventName = z
  .string()
  .regex(
    /^[a-z]+(?:\.[a-z_]+)?$/,
    'expected an event such as login.refused, or the first part of several, such as session',
  );

const webhook = z
  .strictObject({
    url: outsideUrl,
    secretFile: text.describe('what requests are signed with'),
    events: z
      .array(eventName)
      .max(64)
      .default([])
      .describe('events of the audit record, or their first parts; empty: all'),
    caFile: text.optional().describe('in place of the CAs of this machine'),
    insecure: z.boolean().default(false).describe('allow http://'),
    timeoutSeconds: seconds(1, 60).default(10).describe('for one request'),
    tries: z.int().min(1).max(20).default(8).describe('requests for one event before it is put aside'),
    keepHours: z.int().min(1).max(720).default(24).describe('an event that is older is put aside'),
  })
  .refine(({ url, insecure }) => insecure || url.startsWith('https:'), ONLY_TLS);

export const gatewayConfigSchema = z.strictObject({
  address: z.string().max(64).default('::').describe('address to listen on; "::" takes IPv4 too'),
  port: z.number().int().min(0).max(65_535).default(443),
  proxyFrom: z
    .array(prefix)
    .max(64)
    .default([])
    .describe('proxies that tell with a PROXY header for whom they connect, and have to'),
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
  camouflage: z
    .string()
    .regex(
      /^\/[A-Za-z0-9._~/-]{16,255}$/,
      'expected a path that nobody guesses: / and 16 to 255 letters, digits or ._~/-',
    )
    .exactOptional()
    .describe('secret path at which the front door opens a tunnel'),
  camouflageOnly: z
    .boolean()
    .default(false)
    .describe('tunnels open nowhere else: to whoever probes it, the port is that of a web server'),

  device: z
    .string()
    .regex(/^[a-zA-Z][a-zA-Z0-9_-]{0,12}$/, 'expected a name of at most 13 letters, digits, - or _')
    .default('cvpn0')
    .describe('TUN device; a second one with "p" appended serves peers without super-packets; "tap": bridge Ethernet'),
  tap: tapSchema.prefault({}),
  mtu: z.number().int().min(1280).max(9000).default(1500).describe('of the devices'),
  pool: z
    .array(prefix)
    .min(1)
    .max(2)
    .default(['10.88.0.0/24'])
    .describe('client addresses: one IPv4 prefix, one IPv6 prefix, or both'),
  policyFile: text
    .optional()
    .describe(
      'policy file: who may reach what, in place of routes and clientToClient; without one all clients reach the same',
    ),
  routes: z.array(prefix).max(1000).default([]).describe('networks that clients may reach; pushed to them'),
  dns: z.array(address).max(8).default([]),
  dnsDomains: z.array(domain).max(64).default([]),
  services: z.array(service).max(64).default([]).describe("ports open to clients on the gateway's own address"),
  clientToClient: z.boolean().default(false),
  nat4: z.boolean().default(true).describe('masquerade IPv4 clients'),
  nat6: z.boolean().default(true).describe('masquerade IPv6 clients'),

  workers: z
    .int('expected a whole number')
    .min(0)
    .max(64)
    .optional()
    .describe('processes that serve clients; default: one for each core; 0: the whole gateway is one process'),
  users: z
    .strictObject({
      auth: account.default('customvpn-auth').describe('who holds accounts and sessions'),
      worker: account.default('customvpn-worker').describe('who faces the network'),
    })
    .prefault({}),

  data: z
    .strictObject({
      mode: z
        .enum(['attached', 'inline'])
        .default('attached')
        .describe('data on its own connection, or on the control one'),
      channels: z.int().min(1).max(16).default(1).describe('data connections that a session may have'),
      superPackets: z.boolean().default(true),
      queueBytes: z.number().int().min(131_072).max(67_108_864).default(8_388_608).describe('bound of a session queue'),
      totalQueueBytes: z
        .number()
        .int()
        .min(1_048_576)
        .max(68_719_476_736)
        .default(268_435_456)
        .describe('bound of all session queues and proxy streams together'),
    })
    .prefault({}),

  session: z
    .strictObject({
      absoluteSeconds: seconds(60, 31_536_000).default(604_800).describe('a session ends after this, however busy'),
      idleSeconds: seconds(60, 31_536_000).default(86_400).describe('a session ends when no packet came for this long'),
      graceSeconds: seconds(0, 86_400)
        .default(120)
        .describe('a session whose client is gone is kept for this long; 0: it ends'),
      perUser: z.number().int().min(0).max(10_000).default(0).describe('sessions of one user at once; 0: no limit'),
      whenFull: z
        .enum(['refuse', 'replace-oldest'])
        .default('refuse')
        .describe('what becomes of a login of somebody who has that many'),
      pingSeconds: seconds(1, 600).default(20).describe('silence before an end asks whether the other lives'),
      rekeySeconds: seconds(2, 86_400)
        .default(3600)
        .describe('how long a connection serves before its keys are changed, give or take a tenth'),
      deadSeconds: seconds(3, 3600).default(60).describe('silence after which the other end counts as gone'),
    })
    .refine(({ pingSeconds, deadSeconds }) => deadSeconds >= 2 * pingSeconds, {
      path: ['deadSeconds'],
      message: 'expected at least twice pingSeconds, or every client would refuse both',
    })
    .prefault({}),

  limits: z
    .strictObject({
      proxyHeaderSeconds: seconds(1, 60).default(3).describe('for the PROXY header of a proxy'),
      handshakeSeconds: seconds(1, 60).default(10).describe('for the TLS handshake'),
      helloSeconds: seconds(1, 600).default(10).describe('from the greeting to the first message'),
      stepSeconds: seconds(1, 600).default(15).describe('for each answer of the client'),
      loginSeconds: seconds(1, 600).default(30).describe('from the greeting to the verdict'),
      answerSeconds: seconds(1, 600).default(120).describe('on top of both where a person has to type'),
      providerSeconds: seconds(10, 1800).default(600).describe('on top of it for a login at an identity provider'),
      connectionsPerSource: z.number().int().min(1).max(100_000).default(512).describe('per IPv4 address or IPv6 /64'),
      handshakesInFlight: z.number().int().min(1).max(100_000).default(4096),
      sessions: z.number().int().min(1).max(100_000).default(10_000),
      delayAfter: z
        .number()
        .int()
        .min(1)
        .max(1000)
        .default(3)
        .describe('failed logins before the next one has to wait'),
      failuresPerUser: z
        .number()
        .int()
        .min(1)
        .max(10_000)
        .default(10)
        .describe('failed logins that ban a name or device'),
      failuresPerSource: z.number().int().min(1).max(10_000).default(30).describe('failed logins that ban a source'),
      banSeconds: seconds(1, 2_592_000).default(900),
      allow: z.array(prefix).max(1000).default([]).describe('networks in which failed logins do not count'),
    })
    .prefault({}),

  proxy: z
    .strictObject({
      enabled: z.boolean().default(true).describe('be a proxy for clients and their programs on the same port'),
      streamsPerUser: z.number().int().min(1).max(1_000_000).default(8192).describe('connections of one user at once'),
      dialSeconds: seconds(1, 120).default(10).describe('for the name of a server and a connection to it'),
      idleSeconds: seconds(10, 86_400).default(3600).describe('a connection ends when nothing was carried for so long'),
      udpIdleSeconds: seconds(10, 86_400).default(180).describe('the same for UDP'),
    })
    .prefault({}),

  accounts: z
    .strictObject({
      devicesPerUser: z.number().int().min(1).max(1000).default(10),
      issuer: z.string().min(1).max(64).default('CustomVPN').describe("shown by users' authenticator apps"),
      argon2: z
        .strictObject({
          memoryKiB: z.number().int().min(8192).max(2_097_152).default(19_456),
          passes: z.number().int().min(1).max(64).default(2),
          parallelism: z.number().int().min(1).max(16).default(1),
        })
        .describe('cost of a password hash; hashes made with another are renewed at the next login')
        .prefault({}),
    })
    .prefault({}),

  login: z
    .strictObject({
      steps: z.array(step).max(8).default(['device']).describe('what every login has to prove'),
      enrol: z
        .array(step)
        .max(8)
        .default(['device', 'token'])
        .refine((steps) => steps.some((kind) => kind !== 'device' && kind !== 'totp'), {
          message: 'expected a step that vouches for the new device: token, password, oidc or certificate',
        })
        .describe('what brings a new device in, besides the steps of its logins'),
      backend: z
        .string()
        .min(1)
        .max(32)
        .optional()
        .describe('the outside source that judges the passwords of names that nobody has here'),
      provider: z
        .string()
        .min(1)
        .max(32)
        .optional()
        .describe('the source of kind oidc that the step oidc sends people to'),
      groups: z
        .record(groupName, z.strictObject({ steps: z.array(step).min(1).max(8) }))
        .default({})
        .describe('steps of the users in a group, in place of the general ones'),
      certificate: z
        .strictObject({
          user: z
            .enum(['common-name', 'email', 'uri', 'upn'])
            .default('common-name')
            .describe('which name of a client certificate says whose it is'),
          pattern: z
            .string()
            .max(256)
            .regex(/^[^{}]*\{user\}[^{}]*$/, 'expected {user} once, where the name of the user belongs')
            .default('{user}')
            .describe('what that name looks like'),
        })
        .prefault({}),
      recheckSeconds: seconds(10, 86_400)
        .default(900)
        .describe('how often an outside source is asked whether an account is still good'),
    })
    .prefault({}),

  backends: z
    .record(
      z.string().regex(/^[a-z][a-z0-9_-]{0,31}$/, 'expected a name of at most 32 lower-case letters, digits, - or _'),
      backend,
    )
    .default({})
    .describe('outside sources of accounts'),

  store: z
    .strictObject({
      url: text
        .regex(/^postgres(?:ql)?:\/\/[^/]/, 'expected postgres://USER@HOST[:PORT]/DATABASE')
        .refine((url) => !URL.parse(url)?.password, 'expected no password in it; name a file as store.passwordFile')
        .optional()
        .describe('a PostgreSQL server, in place of the file in the state directory'),
      passwordFile: text.optional().describe('password for that server'),
      caFile: text.optional().describe("CAs that the server's certificate must come from"),
    })
    .refine(({ url, passwordFile, caFile }) => url !== undefined || (passwordFile ?? caFile) === undefined, {
      path: ['url'],
      message: 'expected together with passwordFile or caFile',
    })
    .prefault({}),

  metrics: z
    .strictObject({
      listen: z
        .string()
        .regex(
          /^(?:\[[0-9a-fA-F:.]{2,45}\]|[0-9.]{7,15}):\d{1,5}$/,
          'expected ADDRESS:PORT, such as 127.0.0.1:9464 or [::1]:9464',
        )
        .optional()
        .describe('where /metrics, /healthz and /readyz are answered, over plain HTTP; default: nowhere'),
    })
    .prefault({}),

  otlp: z
    .strictObject({
      endpoint: outsideUrl.optional().describe('an OpenTelemetry collector, to which metrics and spans are sent'),
      headersFile: text.optional().describe('NAME=VALUE,… of headers of each request'),
      caFile: text.optional().describe('in place of the CAs of this machine'),
      insecure: z.boolean().default(false).describe('allow http:// to another machine'),
      metrics: z.boolean().default(true),
      traces: z.boolean().default(true),
      intervalSeconds: seconds(5, 3600).default(60).describe('between two sets of metrics'),
      serviceName: z.string().min(1).max(64).default('customvpn'),
    })
    .refine(
      ({ endpoint, insecure }) =>
        endpoint === undefined || insecure || endpoint.startsWith('https:') || isLoopbackUrl(endpoint),
      { ...ONLY_TLS, path: ['endpoint'] },
    )
    .prefault({}),

  audit: z
    .strictObject({
      file: text.optional().describe('the audit record as JSON lines, beside the table'),
      keepDays: z
        .int('expected whole days')
        .min(0)
        .max(36_500)
        .default(400)
        .describe('records older than this are removed from the table; 0: none is'),
      keepRecords: z
        .int('expected a whole number')
        .min(10_000)
        .max(1_000_000_000)
        .default(1_000_000)
        .describe('so many are kept, at most half of them refusals; some 300 bytes each'),
    })
    .prefault({}),

  webhooks: z
    .record(
      z.string().regex(/^[a-z][a-z0-9_-]{0,31}$/, 'expected a name of at most 32 lower-case letters, digits, - or _'),
      webhook,
    )
    .default({})
    .describe('programs that are told what goes into the audit record'),

  hook: z
    .strictObject({
      file: text.optional().describe('TypeScript or JavaScript file with functions that are asked and told'),
      timeoutSeconds: seconds(1, 20).default(5).describe('for an answer'),
      onFailure: z
        .enum(['deny', 'allow'])
        .default('deny')
        .describe('what a login or a policy comes to when its function fails'),
    })
    .prefault({}),

  control: z
    .strictObject({
      administrators: z.array(account).max(64).default([]).describe('users of this machine who may do everything'),
      operators: z.array(account).max(64).default([]).describe('who do the daily work'),
      viewers: z.array(account).max(64).default([]).describe('who may look'),
    })
    .prefault({}),

  admin: z
    .strictObject({
      listen: endpoint.optional().describe('address and port of the admin page and its API'),
      certFile: text.optional().describe('certificate of the admin page; default: one of the own authority'),
      keyFile: text.optional(),
      passkeys: z.boolean().default(true).describe('log in with passkeys, once somebody has one'),
      clientCertificates: z
        .boolean()
        .default(false)
        .describe('log in with a client certificate; browsers that have one ask for it'),
      provider: z.string().min(1).max(32).optional().describe('the source of kind oidc at which people log in'),
      administrators: z.array(groupName).max(64).default(['administrators']).describe('groups that may do everything'),
      operators: z.array(groupName).max(64).default(['operators']).describe('groups that do the daily work'),
      viewers: z.array(groupName).max(64).default(['viewers']).describe('groups that may look'),
      editPolicy: z
        .boolean()
        .optional()
        .describe('let administrators change the policy file by page and command; default: where there is a page'),
      idleSeconds: seconds(60, 86_400).default(1800).describe('somebody who does nothing is logged out after this'),
      absoluteSeconds: seconds(300, 604_800).default(43_200).describe('everybody logs in again after this'),
    })
    .refine(({ certFile, keyFile }) => (certFile === undefined) === (keyFile === undefined), {
      path: ['keyFile'],
      message: 'expected together with certFile',
    })
    .prefault({}),

  log: z
    .strictObject({
      level: z.enum(['debug', 'info', 'warn', 'error']).default('info'),
      format: z.enum(['text', 'json']).default('text'),
      addresses: z.enum(['keep', 'shorten', 'hide']).default('keep').describe('what becomes of addresses in lines'),
      keepAddresses: z
        .array(prefix)
        .max(64)
        .default(['0.0.0.0/32', '127.0.0.0/8', '::/127'])
        .describe('networks whose addresses stay all the same'),
    })
    .prefault({}),
});

/** What an operator writes. */
export type GatewayOptions = z.input<typeof gatewayConfigSchema>;
/** What the program reads: complete, checked and frozen. */
export type GatewayConfig = Readonly<z.output<typeof gatewayConfigSchema>>;

/** One outside source of accounts, as configured. */
export type BackendConfig = GatewayConfig['backends'][string];

/** The keys of `admin` that list groups, and the role that each gives; the highest first. */
export const GROUP_ROLES = [
  ['administrators', 'administrator'],
  ['operators', 'operator'],
  ['viewers', 'viewer'],
] as const;

/** The highest role that one of these groups gives; undefined: none. */
export function roleOf(groups: readonly string[], admin: GatewayConfig['admin']): Role | undefined {
  return GROUP_ROLES.find(([key]) => groups.some((group) => admin[key].includes(group)))?.[1];
}

/** Address and port of `ADDRESS:PORT`, with brackets around an IPv6 address; undefined for anything else. */
export function parseEndpoint(text: string): { address: string; port: number } | undefined {
  const [, v6, v4, digits] = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d{1,5})$/.exec(text) ?? [];
  const address = v6 ?? v4 ?? '';
  const port = Number(digits);
  return isIP(address) !== (v6 === undefined ? 4 : 6) || port > 65_535 ? undefined : { address, port };
}

/** Keys that `reload` applies to a running gateway; the others need a restart, but for a `pool` that grows. */
export const RELOADABLE_KEYS: readonly (keyof GatewayConfig)[] = [
  'certFile',
  'keyFile',
  'caFile',
  'crlFile',
  'policyFile',
  'routes',
  'dns',
  'dnsDomains',
  'services',
  'limits',
  'accounts',
  'login',
];

/**
 * Whoever is asked for a certificate must be able to show one.
 *
 * @throws {VpnError} ERR_CONFIG_VALUE
 */
export function checkCertificateStep({ login, requireClientAuth }: GatewayConfig): void {
  const lists = [login.steps, login.enrol, ...Object.values(login.groups).map(({ steps }) => steps)];
  if (requireClientAuth !== false || !lists.some((steps) => steps.includes('certificate'))) return;
  throw new VpnError(
    'ERR_CONFIG_VALUE',
    'login: the step "certificate" needs requireClientAuth = true or "optional", got false: nobody could log in',
    { details: { key: 'requireClientAuth' } },
  );
}

/** Where metrics are answered. */
export function metricsEndpoint({ metrics }: GatewayConfig): { host: string; port: number } | undefined {
  const [, bracketed, plain, port] = /^(?:\[(.+)\]|(.+)):(\d+)$/.exec(metrics.listen ?? '') ?? [];
  const host = bracketed ?? plain;
  return host === undefined ? undefined : { host, port: Number(port) };
}

/** The configuration with its file names made absolute. */
export function resolveFiles(config: GatewayConfig, folder: string): GatewayConfig {
  const absolute = (file: string) => (isAbsolute(file) ? file : resolve(folder, file));
  return {
    ...config,
    audit: config.audit.file === undefined ? config.audit : { ...config.audit, file: absolute(config.audit.file) },
    store: {
      ...config.store,
      ...(config.store.passwordFile === undefined ? {} : { passwordFile: absolute(config.store.passwordFile) }),
      ...(config.store.caFile === undefined ? {} : { caFile: absolute(config.store.caFile) }),
    },
    admin: {
      ...config.admin,
      ...(config.admin.certFile === undefined ? {} : { certFile: absolute(config.admin.certFile) }),
      ...(config.admin.keyFile === undefined ? {} : { keyFile: absolute(config.admin.keyFile) }),
    },
    certFile: absolute(config.certFile),
    keyFile: absolute(config.keyFile),
    ...(config.caFile === undefined ? {} : { caFile: absolute(config.caFile) }),
    ...(config.crlFile === undefined ? {} : { crlFile: absolute(config.crlFile) }),
    ...(config.policyFile === undefined ? {} : { policyFile: absolute(config.policyFile) }),
    backends: Object.fromEntries(
      Object.entries(config.backends).map(([name, options]) => [name, resolveOwnFiles(options, absolute)]),
    ),
    otlp: resolveOwnFiles(config.otlp, absolute),
    hook: config.hook.file === undefined ? config.hook : { ...config.hook, file: absolute(config.hook.file) },
    webhooks: Object.fromEntries(
      Object.entries(config.webhooks).map(([name, options]) => [name, resolveOwnFiles(options, absolute)]),
    ),
  };
}

function resolveOwnFiles<T extends object>(options: T, absolute: (file: string) => string): T {
  const files = ['caFile', 'bindPasswordFile', 'clientSecretFile', 'secretFile', 'headersFile'];
  const made = Object.entries(options).map(([key, value]) => [
    key,
    files.includes(key) && typeof value === 'string' ? absolute(value) : value,
  ]);
  return { ...options, ...Object.fromEntries(made) };
}

function isLoopbackUrl(url: string): boolean {
  const { hostname } = new URL(url);
  return hostname === 'localhost' || hostname === '[::1]' || /^127(?:\.\d{1,3}){3}$/.test(hostname);
}
