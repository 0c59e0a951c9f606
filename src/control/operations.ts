/**
 * The control API: every operation that a daemon offers, with the shape of its input and output.
 *
 * This is the single source for the daemons that implement it and the programs that call it. It knows neither transport
 * nor implementation. Names are `noun.verb`; inputs refuse unknown keys; outputs never hold secrets, except those an
 * operation exists to hand out (a profile, a private key), which it alone returns.
 */

import { z } from 'zod';

/** An operation's contract. */
export interface Operation {
  readonly input: z.ZodType;
  readonly output: z.ZodType;
  /** The answer comes when something has happened, however long that takes. */
  readonly isLong?: true;
}
export type Operations = Readonly<Record<string, Operation>>;

/** What a caller sees of a set of operations. */
export type Api<T extends Operations> = {
  readonly [K in keyof T]: (input: z.input<T[K]['input']>) => Promise<z.output<T[K]['output']>>;
};

const none = z.strictObject({});
const name = z.string().min(1).max(128);
const counter = z.number();
const instant = z.iso.datetime();
/** One that somebody says: its fraction of a second may have any number of digits otherwise. */
const saidInstant = instant.max(40);

const user = z.object({
  name: z.string(),
  groups: z.array(z.string()),
  disabled: z.boolean(),
  createdAt: instant,
  expiresAt: instant.nullable().describe('from then on no login is accepted'),
  source: z.string().nullable().describe('the outside source that the account comes from'),
  devices: counter,
});

/** How many sessions a change ended. */
const kicked = z.object({ kicked: counter });

/** What only this answer shows. */
const password = z.string().min(1).max(4096);
const recoveryCodes = z.array(z.string());

const accessToken = z.object({
  id: z.string().describe('16 hexadecimal digits'),
  user: z.string(),
  name: z.string(),
  scopes: z.array(z.enum(['tunnel', 'proxy', 'api'])),
  createdAt: instant,
  expiresAt: instant.nullable(),
  lastUsedAt: instant.nullable(),
  revokedAt: instant.nullable(),
});

const passkey = z.object({
  id: z.string().describe('32 hexadecimal digits'),
  user: z.string(),
  name: z.string(),
  host: z.string().describe('of the page that it is for'),
  createdAt: instant,
  lastUsedAt: instant.nullable(),
});

const device = z.object({
  id: z.string().describe('32 hexadecimal digits'),
  user: z.string(),
  name: z.string(),
  algorithm: z.enum(['p256', 'ed25519']),
  state: z.enum(['enrolling', 'pending', 'active', 'revoked']),
  createdAt: instant,
  lastSeenAt: instant.nullable(),
});

const session = z.object({
  id: z.string().describe('the first 8 hexadecimal digits, of the session or the access token; enough for `kick`'),
  user: z.string(),
  device: z.string().describe('empty for a program that uses the gateway as a proxy by an access token'),
  addresses: z.array(z.string()),
  networks: z.array(z.string()).exactOptional().describe('behind the client, as everybody else sees them'),
  peer: z.string().describe('address and port of the control connection'),
  waiting: z.boolean().describe('it has lost its control connection and waits for its client to resume it'),
  superPackets: z.boolean(),
  channels: counter.describe('data connections; 0 when data flows inline'),
  streams: counter.describe('connections that are open through the proxy'),
  since: instant,
  receivedBytes: counter,
  sentBytes: counter,
  roundTripMs: counter.nullable(),
});

const certificate = z.object({
  role: z.enum(['ca', 'server', 'client']),
  name: z.string(),
  serial: z.string(),
  notBefore: instant,
  notAfter: instant,
  daysLeft: z.number(),
  revoked: z.boolean(),
  pin: z.string(),
  file: z.string(),
});

const auditRecord = z.object({
  id: z.string().describe('sorts by time'),
  at: instant,
  event: z.string(),
  user: z.string().nullable(),
  device: z.string().nullable(),
  source: z.string().nullable().describe('address and port of the peer'),
  reason: z.string().nullable().describe('the true reason, which the peer was not told'),
  detail: z.record(z.string(), z.union([z.string(), z.number()])),
});

const denial = z.object({
  id: counter.describe('rises with time'),
  at: instant,
  kind: z.enum(['packet', 'stream']).describe('through the tunnel, or through the proxy'),
  user: z.string(),
  session: z.string(),
  source: z.string().describe("the client's address in the tunnel"),
  destination: z.string(),
  protocol: z.string(),
  port: counter.nullable(),
  rule: z.object({ name: z.string(), line: counter }).nullable().describe('null: no rule allows it'),
  count: counter.describe('how often within a few seconds, as far as it was looked at'),
});

const policyRule = z.object({
  name: z.string(),
  line: counter,
  action: z.enum(['allow', 'deny']),
  to: z.array(z.string()),
  services: z.array(z.string()),
});

/** A policy that an operator writes; a longer one is for whoever has the gateway's files. */
const policyText = z.string().max(400_000);

/** A policy has been put in force. */
const applied = z.object({
  version: counter.describe('under which it is kept'),
  warnings: z.array(z.string()).describe('what an operator should know'),
});

const policyVersion = {
  version: counter,
  at: instant,
  by: z.string().nullable().describe('who put it in force; null: it was read from the file'),
  note: z.string(),
};

/** One page of a long list: what matches, in the list's own order. */
const page = {
  search: z.string().max(128).optional().describe('only what has this text in it, whatever its case'),
  after: z.string().max(128).optional().describe('the last of the page before'),
  limit: z.int().min(1).max(1000).optional().describe('at most so many; default: all'),
};

/** Who may do what: each role may do what those before it may. */
export const ROLES = ['viewer', 'operator', 'administrator'] as const;

/** Totals by name, such as drops by reason. */
const totals = z.record(z.string(), counter);

/** A gateway that lets nobody new in, and how far it has come. */
const drain = z.object({
  since: instant,
  until: instant.describe('when it stops at the latest'),
  sessions: counter.describe('how many there were when it began'),
  left: counter,
  asked: counter.describe('those that are left and whose clients know how to move to another server'),
});

/** What a gateway offers. Those of a running one (`RUNNING_ONLY`) are refused while it does not run. */
export const gatewayOperations = {
  'server.status': {
    input: none,
    output: z.object({
      version: z.string(),
      pid: counter,
      since: instant,
      listen: z.array(z.string()),
      names: z.array(z.string()),
      devices: z.array(
        z.object({ name: z.string(), superPackets: z.boolean(), udpSegmentation: z.boolean(), mtu: counter }),
      ),
      congestionControl: z.string(),
      sessions: counter.describe('those that wait for their client included'),
      waiting: counter,
      drain: drain.nullable().describe('null: it is not drained'),
      pool: z.array(z.object({ prefix: z.string(), used: counter, size: z.string() })),
      certificates: z.array(certificate),
      counters: totals,
      drops: totals,
      warnings: z.array(z.string()),
    }),
  },
  'server.reload': {
    input: z.strictObject({
      via: z
        .strictObject({ from: z.string().max(64), to: z.string().max(64), port: z.int().min(1).max(65_535) })
        .optional()
        .describe('the connection by which the operator is here'),
    }),
    output: z.object({
      applied: z.array(z.string()),
      needsRestart: z.array(z.string()),
      warnings: z.array(z.string()),
    }),
  },
  'server.stop': { input: none, output: z.object({ sessions: counter }) },
  'server.drain': {
    input: z.strictObject({ seconds: z.int().min(0).max(86_400).default(300) }),
    output: drain,
  },
  'server.replaceWorkers': { input: none, output: z.object({ replaced: counter }) },
  'policy.show': {
    input: z.strictObject({ user: name.optional().describe('also what is in force for this user') }),
    output: z.object({
      file: z.string().nullable().describe('null: there is no policy; routes say what clients reach'),
      since: instant.nullable(),
      rules: counter,
      tests: counter,
      hosts: z.array(z.object({ name: z.string(), addresses: z.array(z.string()) })),
      sites: z.array(
        z.object({
          name: z.string(),
          networks: z.array(z.object({ network: z.string(), seenAs: z.string() })),
          openTo: z.array(z.string()),
          users: z.array(z.string()).describe('whose clients carry packets for it at the moment'),
        }),
      ),
      user: z
        .array(
          z.object({
            session: z.string().describe('empty: nobody has one; as it would be without certificate and second factor'),
            addresses: z.array(z.string()),
            kept: z.array(z.string()).describe('addresses of which it should have one'),
            networks: z.array(z.string()).describe('behind its client, as everybody else sees them'),
            groups: z.array(z.string()),
            rules: z.array(policyRule).describe('those that are in force, in their order'),
            settings: z.record(z.string(), z.union([z.string(), counter, z.boolean(), z.array(z.string())])),
          }),
        )
        .nullable(),
    }),
  },
  'policy.text': {
    input: none,
    output: z.object({
      file: z.string().nullable().describe('null: there is no policy'),
      text: z.string(),
      digest: z.string().nullable().describe('SHA-256 of the text, hexadecimal'),
      isEditable: z.boolean().describe('`policy.apply` is possible'),
    }),
  },
  'policy.apply': {
    input: z.strictObject({
      text: policyText,
      note: z.string().max(256).optional().describe('why; kept with the version'),
    }),
    output: applied,
  },
  'policy.rollback': {
    input: z.strictObject({ version: z.int().min(1), note: z.string().max(256).optional() }),
    output: applied,
  },
  'policy.history': {
    input: z.strictObject({ limit: z.int().min(1).max(200).default(50) }),
    output: z.array(
      z.object({
        ...policyVersion,
        isInForce: z.boolean(),
        hasText: z.boolean().describe('it is kept, and may be put in force again'),
      }),
    ),
  },
  'policy.version': {
    input: z.strictObject({ version: z.int().min(1) }),
    output: z.object({ ...policyVersion, text: z.string() }),
  },
  'policy.check': {
    input: z.strictObject({ text: policyText }),
    output: z.object({
      good: z.boolean().describe('it may be put in force: no errors, and its tests hold'),
      rules: counter,
      problems: z.array(
        z.object({ severity: z.enum(['error', 'warning']), line: counter, column: counter, message: z.string() }),
      ),
      outcomes: z.array(z.object({ line: counter, text: z.string(), passed: z.boolean(), reason: z.string() })),
      changes: z
        .array(
          z.object({
            user: z.string(),
            destination: z.string(),
            service: z.string(),
            after: z.enum(['allow', 'deny']),
            rule: z.string().nullable().describe('what says so after it; null: no rule allows it'),
          }),
        )
        .describe('against the policy in force, looked at where a rule of either speaks of something'),
      isCut: z.boolean().describe('there are more people or changes than are listed'),
    }),
  },
  'policy.denied': {
    input: z.strictObject({
      after: z.int().min(0).optional().describe('only those with a higher id'),
      user: name.optional(),
      limit: z.int().min(1).max(1000).default(100).describe('the newest so many'),
    }),
    output: z.array(denial),
  },
  'server.bans': {
    input: none,
    output: z.array(
      z.object({
        kind: z.enum(['source', 'name', 'device']),
        key: z.string(),
        failures: counter,
        until: instant,
        banned: z.boolean().describe('otherwise the next login only has to wait'),
      }),
    ),
  },
  'server.unban': { input: z.strictObject({ source: z.string().min(1).max(64) }), output: none },
  'server.history': {
    input: none,
    output: z.object({
      everySeconds: counter,
      samples: z.array(
        z.object({
          at: instant,
          sessions: counter,
          receivedBytes: counter.describe('from clients, since the sample before'),
          sentBytes: counter,
          accepted: counter.describe('logins since the sample before'),
          refused: counter,
        }),
      ),
    }),
  },
  'server.settings': {
    input: none,
    output: z.object({
      values: z.record(z.string(), z.unknown()).describe('the configuration in force, by key; secrets are in files'),
      reloadable: z.array(z.string()).describe('keys that `server.reload` applies'),
    }),
  },
  'admin.link': {
    input: none,
    output: z.object({ url: z.string(), expiresAt: instant }),
  },
  'admin.sessions': {
    input: none,
    output: z.array(
      z.object({ id: z.string(), user: z.string(), role: z.enum(ROLES), source: z.string(), since: instant }),
    ),
  },
  'session.list': { input: z.strictObject(page), output: z.array(session) },
  'session.kick': { input: z.strictObject({ id: z.string().min(4).max(32) }), output: z.object({ kicked: counter }) },
  'user.add': {
    input: z.strictObject({
      name,
      groups: z.array(name).max(64).default([]),
      expiresAt: saidInstant.optional(),
      password: password.optional(),
    }),
    output: user,
  },
  'user.list': {
    input: z.strictObject({
      ...page,
      group: name.optional(),
      state: z.enum(['enabled', 'disabled']).optional(),
    }),
    output: z.array(user),
  },
  'user.groups': {
    input: none,
    output: z.array(z.object({ name: z.string(), users: counter, role: z.enum(ROLES).nullable() })),
  },
  'user.show': {
    input: z.strictObject({ name }),
    output: user.extend({
      devices: z.array(device),
      passwordSetAt: instant.nullable(),
      totp: z.boolean(),
      recoveryCodesLeft: counter,
      passkeys: z.array(passkey),
      tokens: z.array(accessToken),
    }),
  },
  'user.disable': { input: z.strictObject({ name }), output: kicked },
  'user.enable': { input: z.strictObject({ name }), output: none },
  'user.unlock': { input: z.strictObject({ name }), output: z.object({ unlocked: z.boolean() }) },
  'user.delete': { input: z.strictObject({ name }), output: kicked },
  'user.regroup': {
    input: z.strictObject({ name, add: z.array(name).max(64).default([]), remove: z.array(name).max(64).default([]) }),
    output: kicked.extend({ groups: z.array(z.string()) }),
  },
  'user.expire': { input: z.strictObject({ name, expiresAt: saidInstant.nullable() }), output: kicked },
  'user.password': { input: z.strictObject({ name, password: password.nullable() }), output: kicked },
  'user.totp': {
    input: z.strictObject({ name }),
    output: kicked.extend({ uri: z.string(), recoveryCodes }),
  },
  'user.totpRemove': { input: z.strictObject({ name }), output: kicked.extend({ removed: z.boolean() }) },
  'user.recovery': { input: z.strictObject({ name }), output: z.object({ recoveryCodes }) },
  'token.list': { input: z.strictObject({ user: name.optional() }), output: z.array(accessToken) },
  'token.issue': {
    input: z.strictObject({
      user: name,
      name: z.string().min(1).max(256),
      scopes: z
        .array(z.enum(['tunnel', 'proxy', 'api']))
        .min(1)
        .max(3),
      expiresAt: saidInstant.optional(),
    }),
    output: accessToken.extend({ token: z.string() }),
  },
  'token.revoke': { input: z.strictObject({ id: z.string().max(64) }), output: kicked },
  'passkey.list': {
    input: z.strictObject({ user: name.optional() }),
    output: z.array(passkey),
  },
  'passkey.remove': {
    input: z.strictObject({ id: z.string().min(1).max(64) }),
    output: z.object({ user: z.string() }),
  },
  'device.list': {
    input: z.strictObject({ ...page, user: name.optional(), state: device.shape.state.optional() }),
    output: z.array(device),
  },
  'device.approve': { input: z.strictObject({ id: z.string().min(1).max(128) }), output: none },
  'device.rename': {
    input: z.strictObject({ id: z.string().min(1).max(128), name: z.string().min(1).max(256) }),
    output: device,
  },
  'device.revoke': { input: z.strictObject({ id: z.string().min(1).max(128) }), output: z.object({ kicked: counter }) },
  'profile.create': {
    input: z.strictObject({
      user: name.optional().describe('without one: no token, for everybody who enrols by other steps'),
      pin: z.enum(['ca', 'leaf']).default('ca'),
      validHours: z.number().int().min(1).max(8760).default(72),
      approve: z.boolean().default(false),
    }),
    output: z.object({
      profile: z.string().describe('the file'),
      link: z.string().describe('the same as one line'),
      expiresAt: instant.nullable(),
    }),
  },
  'audit.list': {
    input: z.strictObject({
      since: saidInstant.optional(),
      user: name.optional(),
      event: z.string().max(64).optional().describe('an event such as login.refused, or its first part'),
      search: page.search,
      after: z.string().max(64).optional().describe('the id of a record: only those after it'),
      before: z.string().max(64).optional().describe('the id of a record: only those before it'),
      limit: z.number().int().min(1).max(10_000).default(1000).describe('the newest so many'),
    }),
    output: z.array(auditRecord),
  },
  'webhook.list': {
    input: none,
    output: z.array(
      z.object({
        name: z.string(),
        target: z.string().describe('scheme, host and port'),
        events: z.array(z.string()).describe('empty: all'),
        state: z.enum(['idle', 'sending', 'failing']),
        waiting: counter.describe('events that are still to be told'),
        dead: counter.describe('events that were put aside'),
        delivered: counter.describe('since the start'),
        failed: counter.describe('requests, since the start'),
        lastDeliveredAt: instant.nullable(),
        nextTryAt: instant.nullable(),
        lastError: z.string().nullable(),
      }),
    ),
  },
  'webhook.test': {
    input: z.strictObject({ name }),
    output: z.object({ status: counter.nullable(), ms: counter, error: z.string().nullable() }),
    isLong: true,
  },
  'webhook.dead': {
    input: z.strictObject({ name: name.optional(), limit: z.int().min(1).max(1000).default(100) }),
    output: z.array(
      z.object({
        webhook: z.string(),
        at: instant.describe('when it was put aside'),
        tries: counter,
        why: z.string(),
        record: auditRecord.nullable(),
        id: z.string().describe('of the record'),
      }),
    ),
  },
  'webhook.retry': {
    input: z.strictObject({ name: name.optional(), id: z.string().min(1).max(64).optional() }),
    output: z.object({ queued: counter }),
  },
  'pki.show': { input: none, output: z.array(certificate) },
  'pki.issue': { input: z.strictObject({ name }), output: z.object({ certificate, keyFile: z.string() }) },
  'pki.revoke': {
    input: z.strictObject({ serial: z.string().min(1).max(128) }),
    output: z.object({ certificate, kicked: counter }),
  },
  'pki.renew': {
    input: z.strictObject({
      name: name.optional().describe("a client's; without one the server's"),
      key: z.enum(['same', 'new']).optional().describe('default: new for the server, the same for a client'),
    }),
    output: certificate,
  },
} as const satisfies Operations;

/** What nothing but a running gateway can answer. */
export const RUNNING_ONLY = [
  'server.status',
  'server.reload',
  'server.stop',
  'server.drain',
  'server.replaceWorkers',
  'server.history',
  'policy.show',
  'policy.text',
  'policy.apply',
  'policy.rollback',
  'policy.history',
  'policy.version',
  'policy.check',
  'policy.denied',
  'session.list',
  'session.kick',
  'admin.link',
  'admin.sessions',
  'webhook.list',
  'webhook.test',
  'webhook.dead',
  'webhook.retry',
] as const satisfies readonly (keyof typeof gatewayOperations)[];

const clientError = z.object({ code: z.string(), message: z.string() });

const answer = z.string().max(4096).exactOptional();

/** What a login asks a person. */
const askedStep = z.object({
  kind: z.enum(['password', 'totp', 'token', 'oidc', 'ask']),
  prompt: z.string().exactOptional(),
  echo: z.boolean().exactOptional(),
  url: z.string().exactOptional(),
  code: z.string().exactOptional(),
  seconds: counter.exactOptional(),
});

/** What the command line says of the tunnel. */
const tunnelFlags = z.strictObject({
  mode: z.enum(['full', 'split']).exactOptional(),
  lan: z.boolean().exactOptional(),
  overlap: z.enum(['local', 'tunnel', 'stop']).exactOptional(),
  isAsked: z.boolean().exactOptional(),
  killSwitch: z.boolean().exactOptional(),
  portalMs: z.number().exactOptional(),
  networks: z.array(z.string().max(64)).max(64).readonly().exactOptional(),
});

/** What a running client offers. */
export const clientOperations = {
  'client.status': {
    input: none,
    output: z.object({
      version: z.string(),
      pid: counter,
      profile: z.string(),
      name: z.string().describe('by which commands know the profile'),
      state: z
        .enum(['connecting', 'connected', 'waiting', 'stopping', 'down'])
        .describe('`down`: disconnected, with the session kept'),
      server: z.string(),
      verified: z.boolean().describe('whether the server certificate is checked'),
      since: instant.nullable().describe('when the present state was entered'),
      user: z.string().nullable(),
      device: z.string().nullable().describe('name of the TUN device'),
      addresses: z.array(z.string()),
      routes: z.array(z.string()),
      networks: z
        .array(z.object({ network: z.string(), seenAs: z.string() }))
        .describe('behind this machine, that others reach through it; as what they see each'),
      dns: z.object({
        servers: z.array(z.string()),
        domains: z.array(z.string()),
        all: z.boolean().describe('whether names outside the domains are asked there, too'),
        keeper: z.enum(['none', 'systemd-resolved', 'resolv.conf', 'both']).describe('who has been told'),
      }),
      mode: z.enum(['full', 'split']).nullable().describe('whether all traffic goes through the tunnel'),
      killSwitch: z.enum(['open', 'closed', 'portal']),
      notes: z.array(z.string()).describe('what the user should know of the routes'),
      namespace: z
        .object({
          path: z.string().describe('of the network namespace, as nsenter(1) takes it'),
          inode: counter.describe('tells it from others'),
          resolvConf: z.string().describe('what is seen as /etc/resolv.conf in there'),
          commands: counter.describe('of `client exec` that run in it'),
        })
        .nullable()
        .describe('where the tunnel is, when it is there for commands only'),
      refused: z.array(z.object({ item: z.string(), why: z.string() })),
      tls: z.object({ protocol: z.string(), cipher: z.string(), group: z.string() }).nullable(),
      superPackets: z.boolean(),
      channels: counter.describe('data connections; 0 when data flows inline'),
      sentBytes: counter,
      receivedBytes: counter,
      roundTripMs: counter.nullable(),
      reconnects: counter,
      rekeys: counter.describe('connections changed for ones with new keys'),
      rekeyGaps: counter.describe('of these, such as may have lost packets'),
      lastError: clientError.nullable(),
    }),
  },
  'client.up': {
    input: z.strictObject({ tunnel: tunnelFlags.exactOptional() }),
    output: none,
  },
  'client.portal': {
    input: z.strictObject({ seconds: z.int().min(1).max(3600) }),
    output: none,
  },
  'client.down': {
    input: z.strictObject({
      keep: z.boolean().optional().describe('the session is kept, at both ends, to be resumed by `client.up`'),
    }),
    output: none,
  },
  'client.enter': {
    input: z.strictObject({ tunnel: tunnelFlags.exactOptional() }),
    output: z.object({ ticket: counter.describe('has to be held') }),
  },
  'client.hold': {
    input: z.strictObject({ ticket: z.int() }),
    output: z.object({
      ended: clientError.nullable().describe('why the tunnel ended; null: the ticket was given back'),
    }),
    isLong: true,
  },
  'client.leave': {
    input: z.strictObject({ ticket: z.int() }),
    output: z.object({ commands: counter.describe('that are left') }),
  },
  'client.next': {
    input: z.strictObject({ waitMs: z.number().min(0).max(20_000) }),
    output: z.object({
      state: z.string(),
      lastError: clientError.nullable(),
      news: z.discriminatedUnion('kind', [
        z.object({ kind: z.literal('nothing') }),
        z.object({ kind: z.literal('up') }),
        z.object({ kind: z.literal('down') }),
        z.object({ kind: z.literal('failed'), code: z.string(), message: z.string() }),
        z.object({ kind: z.literal('ask'), id: counter, steps: z.array(askedStep) }),
      ]),
    }),
  },
  'client.answer': {
    input: z.strictObject({
      id: counter,
      answers: z.strictObject({ password: answer, totp: answer, token: answer, ask: answer }).optional(),
      declined: z.string().max(1024).optional().describe('why there is no answer'),
    }),
    output: none,
  },
} as const satisfies Operations;

export type GatewayApi = Api<typeof gatewayOperations>;
export type ClientApi = Api<typeof clientOperations>;
export type DrainInfo = z.output<typeof drain>;
export type GatewayStatus = z.output<(typeof gatewayOperations)['server.status']['output']>;
export type ClientStatus = z.output<(typeof clientOperations)['client.status']['output']>;
export type SessionInfo = z.output<typeof session>;
export type UserInfo = z.output<typeof user>;
export type AccessTokenInfo = z.output<typeof accessToken>;
export type DenialInfo = z.output<typeof denial>;
export type PolicyInfo = z.output<(typeof gatewayOperations)['policy.show']['output']>;
export type PolicyVersionInfo = z.output<(typeof gatewayOperations)['policy.history']['output']>[number];
export type PasskeyInfo = z.output<typeof passkey>;
export type AuditRecordInfo = z.output<typeof auditRecord>;
export type Role = (typeof ROLES)[number];
export type GatewayHistory = z.output<(typeof gatewayOperations)['server.history']['output']>;
export type UserDetails = z.output<(typeof gatewayOperations)['user.show']['output']>;
export type DeviceInfo = z.output<typeof device>;
export type CertificateInfo = z.output<typeof certificate>;
