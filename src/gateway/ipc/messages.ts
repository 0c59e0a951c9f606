/**
 * Every message between the processes of a gateway, with the shape and the bounds of what is in it.
 *
 * Four directions, four contracts. `IpcChannel` checks each message against these on both sides: when it is said, and again
 * when it is heard. Bytes travel as base64, addresses as text. What is not here cannot be said.
 */

import { z } from 'zod';
import { ERROR_CODES } from '../../base/errors.ts';
import { formatIp, type IpAddress, parseIp } from '../../ip/address.ts';
import { MAX_SITE_NETWORKS } from '../../policy/sites.ts';
import { CLOSE_REASONS, MAX_NETWORKS, REJECT_CODES, STEP_KINDS } from '../../protocol/messages.ts';
import { STREAM_REFUSALS, type StreamRefusal } from '../../transport/stream-request.ts';
import { gatewayConfigSchema } from '../config.ts';
import type { ChannelLimits, Contract } from './channel.ts';
import { SESSIONS_PER_PAGE, SHAPES_PER_MESSAGE } from './ports.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

/** Bounds of a policy: of its file, its rules, and of the addresses that a name in it stands for. */
export const MAX_POLICY_BYTES = 8 * 1024 * KIB;
/**
 * Characters of one that operators write, of one that they put in force again, which is as long as one that is kept
 * (`store/policy-versions`), and of a part of it: six bytes each at most.
 */
export const MAX_EDITED_POLICY = 400_000;
export const MAX_OFFERED_POLICY = 1_000_000;
export const POLICY_PART = 8 * KIB;
const MAX_POLICY_RULES = 24_000;
export const MAX_HOST_ADDRESSES = 256;

/** What auth hears from a worker: it parses what strangers say, and may be one of them. */
export const LIMITS_OF_WORKER: ChannelLimits = {
  // The longest: a login with a certificate of many names, and a page of sessions.
  frameBytes: 64 * KIB,
  callsInFlight: 4096,
  // A login is some six frames of a KiB at most, and a core makes fewer than a thousand logins a second for long.
  framesPerSecond: 6000,
  burstFrames: 30_000,
  bytesPerSecond: 8 * MIB,
  burstBytes: 24 * MIB,
};

/** What the supervisor hears from a worker: next to nothing. */
export const LIMITS_OF_WORKER_TO_SUPERVISOR: ChannelLimits = {
  frameBytes: 16 * KIB,
  callsInFlight: 4,
  framesPerSecond: 20,
  burstFrames: 200,
  bytesPerSecond: 64 * KIB,
  burstBytes: 256 * KIB,
};

/** What the supervisor hears from auth. */
export const LIMITS_OF_AUTH: ChannelLimits = {
  frameBytes: 64 * KIB,
  callsInFlight: 20_000,
  framesPerSecond: 20_000,
  burstFrames: 50_000,
  bytesPerSecond: 8 * MIB,
  burstBytes: 32 * MIB,
};

/** What a process hears from one with more rights than it has itself. */
export const LIMITS_FROM_ABOVE: ChannelLimits = {
  frameBytes: 64 * MIB,
  callsInFlight: 100_000,
  framesPerSecond: 1_000_000,
  burstFrames: 1_000_000,
  bytesPerSecond: Number.MAX_SAFE_INTEGER,
  burstBytes: Number.MAX_SAFE_INTEGER,
};

const text = (maximum: number) => z.string().max(maximum);
const count = z.number().min(0).max(Number.MAX_SAFE_INTEGER);
const instant = z.number().min(0).max(Number.MAX_SAFE_INTEGER);
const u32 = z.int().min(0).max(0xffff_ffff);
const seconds = u32;
const worker = z.int().min(0).max(255);
const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const nothing = z.strictObject({});

/**
 * A string that stands for a value. What is no such value is encoded as nothing instead of being given to `encode`: inside of
 * an array with a limit zod encodes once without looking, and then what an optional key does not have, too.
 */
function standsFor<T>(
  written: z.ZodType<string, string>,
  isValue: (value: unknown) => value is T,
  { decode, encode, expected }: { decode: (text: string) => T; encode: (value: T) => string; expected: string },
) {
  return z.codec(written, z.custom<T>(isValue, expected), {
    decode,
    encode: (value) => (isValue(value) ? encode(value) : (undefined as unknown as string)),
  });
}

/** Bytes ↔ base64. */
function bytes(minimum: number, maximum: number = minimum) {
  return standsFor(
    z.base64().max(Math.ceil(maximum / 3) * 4),
    (value): value is Uint8Array => value instanceof Uint8Array && value.length >= minimum && value.length <= maximum,
    {
      decode: (encoded): Uint8Array => Uint8Array.fromBase64(encoded),
      encode: (value) => value.toBase64(),
      expected: `expected ${minimum} to ${maximum} bytes`,
    },
  );
}

const ip = standsFor(
  z.union([z.ipv4(), z.ipv6()]),
  (value): value is IpAddress => typeof value === 'object' && value !== null && 'version' in value,
  { decode: parseIp, encode: formatIp, expected: 'expected an address' },
);

const sessionKey = z.string().regex(/^[0-9a-f]{32}$/);
const sessionId = bytes(16);
const device = bytes(16);
const hash = bytes(32);
const features = z.array(text(32)).max(64).readonly();
const closeReason = z.enum(CLOSE_REASONS);
const rejectCode = z.enum(REJECT_CODES);
const binding = z.string().regex(/^[0-9]{1,16}$/);
const remote = text(64);
const user = text(128);

const lease = z.strictObject({ v4: ip.exactOptional(), v6: ip.exactOptional() }).readonly();
const names = z.array(text(256)).max(16).readonly();

const certificate = z
  .strictObject({
    name: text(1024),
    serial: text(128),
    issuer: text(1024),
    authority: text(128),
    notAfter: z.number(),
    names: z.strictObject({ commonNames: names, emails: names, uris: names, upns: names }).readonly(),
  })
  .readonly();

const peer = z.strictObject({ binding, remote, serverId: hash, certificate: certificate.exactOptional() }).readonly();

const refusedCertificate = z
  .strictObject({
    remote,
    code: z.enum(ERROR_CODES),
    reason: text(256),
    certificate: z
      .strictObject({ name: text(256), issuer: text(256), serial: text(64) })
      .readonly()
      .exactOptional(),
  })
  .readonly();

const clientFacts = z.strictObject({ name: text(64), version: text(64), platform: text(64) });
const algorithm = z.enum(['p256', 'ed25519']);
const purpose = z.enum(['login', 'enrol']);
const attempt = z.int().min(1).max(64);

const challengeRequest = z.strictObject({
  purpose,
  user: user.exactOptional(),
  deviceId: device,
  algorithm,
  serverName: text(255),
  client: clientFacts,
  attempt,
});

const step = z.strictObject({
  kind: z.enum(STEP_KINDS),
  prompt: text(256).exactOptional(),
  echo: z.boolean().exactOptional(),
  url: text(1024).exactOptional(),
  code: text(64).exactOptional(),
  seconds: z.int().min(1).max(3600).exactOptional(),
});
const challenge = z.strictObject({ nonce: hash, steps: z.array(step).max(8).readonly() });

const evidence = z.strictObject({
  purpose,
  user: user.exactOptional(),
  deviceId: device,
  algorithm,
  publicKey: bytes(32, 256).exactOptional(),
  serverName: text(255),
  client: clientFacts,
  nonce: hash,
  signature: bytes(64),
  signedBytes: bytes(1, 1024),
  token: bytes(40).exactOptional(),
  password: text(4096).exactOptional(),
  totp: text(64).exactOptional(),
  ask: text(4096).exactOptional(),
  steps: z.array(z.enum(STEP_KINDS)).max(8).readonly(),
  attempt,
  networks: z.array(text(64)).max(MAX_NETWORKS).readonly().exactOptional(),
});

const addresses = z.strictObject({ address: text(64), gateway: text(64) });
const clientConfig = z.strictObject({
  revision: u32,
  addresses: z.strictObject({ v4: addresses.exactOptional(), v6: addresses.exactOptional() }),
  routes: z.array(text(64)).max(4096),
  dns: z.strictObject({ servers: z.array(text(64)).max(64), domains: z.array(text(253)).max(1000) }),
  mtu: z.int().min(0).max(0xffff),
  ping: z.strictObject({ intervalSeconds: u32, deadSeconds: u32 }),
  data: z.strictObject({ mode: z.enum(['inline', 'attached']), channels: z.int().min(0).max(255) }),
  rekeySeconds: u32.exactOptional(),
  notices: z.array(text(256)).max(4).exactOptional(),
  ethernet: z
    .strictObject({
      mac: text(17),
      networks: z.array(text(64)).max(2),
      routers: z.array(text(64)).max(2),
      dhcp: z.boolean(),
    })
    .exactOptional(),
  networks: z
    .array(z.strictObject({ network: text(64), as: text(64).exactOptional() }))
    .max(MAX_NETWORKS)
    .exactOptional(),
  transports: z.array(text(32)).max(64),
  pins: z.array(text(64)).max(64),
});

const times = { absoluteSeconds: seconds, idleSeconds: seconds, graceSeconds: seconds };
const grant = z
  .strictObject({
    key: sessionKey,
    grant: z.strictObject({ session: sessionId, worker, user, ...times }),
    user,
    device: text(64),
    lease,
    config: clientConfig,
    compression: z.boolean().exactOptional(),
  })
  .readonly();

const verdict = z.union([
  z.strictObject({ accepted: z.literal(true), session: grant }).readonly(),
  z.strictObject({ accepted: z.literal(false), code: rejectCode, message: text(512) }).readonly(),
  z.strictObject({ accepted: z.literal(false), challenge }).readonly(),
]);

const attachRequest = z
  .strictObject({
    message: z.strictObject({
      session: sessionId,
      epoch: u32,
      slot: z.int().min(0).max(255),
      generation: u32,
      flags: z.int().min(0).max(255),
      proof: hash,
    }),
    exported: hash,
  })
  .readonly();
const attachVerdict = z.union([
  z
    .strictObject({
      accepted: z.literal(true),
      key: sessionKey,
      attached: z.strictObject({ slot: z.int().min(0).max(255), generation: u32, frame: bytes(1, 1024) }),
    })
    .readonly(),
  z.strictObject({ accepted: z.literal(false), code: rejectCode }).readonly(),
  z.strictObject({ accepted: z.literal(false), movedTo: worker }).readonly(),
]);

const resumeEvidence = z.strictObject({
  session: sessionId,
  epoch: u32,
  deviceId: device,
  serverName: text(255),
  nonce: hash,
  proof: hash,
  proofInput: bytes(1, 1024),
  signature: bytes(64),
  signedBytes: bytes(1, 1024),
  serverProofInput: bytes(1, 1024),
  rekey: z.boolean(),
});
const grantedResume = z
  .strictObject({
    key: sessionKey,
    attempt: z.int().min(0),
    grant: z.strictObject({ proof: hash, worker, ...times }),
  })
  .readonly();
const resumeVerdict = z.union([
  z.strictObject({ accepted: z.literal(true), resume: grantedResume, features }).readonly(),
  z.strictObject({ accepted: z.literal(false), code: rejectCode }).readonly(),
]);
const confirmation = z
  .strictObject({
    key: sessionKey,
    attempt: z.int().min(0),
    doneInput: bytes(1, 1024),
    payload: bytes(0, 16 * KIB),
  })
  .readonly();
const resumed = z.strictObject({ granted: grant, features, openedAt: instant }).readonly();
const waiting = z.strictObject({ granted: grant, features, remote, openedAt: instant, detachedMs: instant }).readonly();

const rate = z.strictObject({ bytesPerSecond: z.number().positive(), burstBytes: z.int().min(1) }).readonly();
const rates = { down: rate.exactOptional(), up: rate.exactOptional() };
const groupNames = z.array(text(64)).max(1000).readonly();
const shapes = z.strictObject({
  groups: z
    .array(z.strictObject({ group: text(64), ...rates }))
    .max(SHAPES_PER_MESSAGE)
    .readonly(),
  users: z
    .array(z.strictObject({ user, ...rates, groups: groupNames, isRefused: z.boolean() }))
    .max(SHAPES_PER_MESSAGE)
    .readonly(),
});
const port16 = z.int().min(0).max(0xffff);
const classRule = z
  .strictObject({
    class: z.union([z.literal(0), z.literal(1), z.literal(2)]),
    protocol: z.enum(['tcp', 'udp']),
    from: port16,
    to: port16,
  })
  .readonly();
const usageReport = z
  .strictObject({
    kind: z.enum(['user', 'group']),
    name: user,
    downBytes: count,
    upBytes: count,
    downWaits: z.boolean(),
    upWaits: z.boolean(),
  })
  .readonly();

const traffic = z.strictObject({
  receivedBytes: count,
  receivedPackets: count,
  sentBytes: count,
  sentPackets: count,
});

const proxyKey = z.string().regex(/^[0-9a-f]{32}$/);
const dialId = z.string().regex(/^[0-9a-f]{32}$/);
const streamKind = z.enum(['tcp', 'udp']);
const port = z.int().min(1).max(0xffff);
const target = z.strictObject({ host: text(255), port }).readonly();
const proxyProof = z
  .strictObject({ claim: z.strictObject({ session: sessionId, epoch: u32, proof: hash }), exported: hash })
  .readonly();
const proxyGrant = z.strictObject({ key: proxyKey, user }).readonly();
const boundGrant = z.strictObject({ key: proxyKey, user, info: text(64) }).readonly();
const streamTraffic = z.strictObject({ streams: count, sentBytes: count, receivedBytes: count }).readonly();

/** How many waiting sessions one answer holds. */
export const WAITING_PER_PAGE = 100;

/** What a worker may ask of auth. */
export const workerToAuth = {
  challenge: { input: z.strictObject({ request: challengeRequest, peer }), output: challenge },
  verify: { input: z.strictObject({ evidence, peer }), output: verdict },
  forget: { input: z.strictObject({ binding }) },
  certificateRefused: { input: z.strictObject({ refused: refusedCertificate }) },
  establish: { input: z.strictObject({ session: sessionKey, secret: hash, features }), output: nothing },
  attach: { input: z.strictObject({ request: attachRequest, peer }), output: attachVerdict },
  challengeResume: { input: z.strictObject({ peer }), output: z.strictObject({ nonce: hash }) },
  resume: { input: z.strictObject({ evidence: resumeEvidence, peer }), output: resumeVerdict },
  proposeResume: { input: z.strictObject({ resume: grantedResume, mix: hash }), output: nothing },
  confirmResume: { input: z.strictObject({ confirmation, peer }), output: resumed },
  started: { input: z.strictObject({ session: sessionKey, remote }) },
  traffic: { input: z.strictObject({ session: sessionKey, traffic }) },
  usage: { input: z.strictObject({ reports: z.array(usageReport).max(SHAPES_PER_MESSAGE), isFirst: z.boolean() }) },
  detach: { input: z.strictObject({ session: sessionKey, reason: closeReason.exactOptional() }), output: nothing },
  end: { input: z.strictObject({ session: sessionKey, reason: closeReason }), output: nothing },
  proxyBind: {
    input: z.strictObject({ proof: proxyProof, remote }),
    output: z.strictObject({ grant: boundGrant.nullable() }),
  },
  proxyLogin: {
    input: z.strictObject({ user: text(1024), token: bytes(0, 1024), remote }),
    output: z.strictObject({ grant: proxyGrant.nullable() }),
  },
  proxyTraffic: { input: z.strictObject({ key: proxyKey, traffic: streamTraffic }) },
  proxyRelease: { input: z.strictObject({ key: proxyKey }) },
  /** The descriptor comes by itself, with this number. */
  dial: {
    input: z.strictObject({ id: dialId, key: proxyKey, kind: streamKind, target }),
    output: z.union([
      z.strictObject({ address: text(64) }).readonly(),
      z.strictObject({ refused: z.enum(Object.keys(STREAM_REFUSALS) as StreamRefusal[]) }).readonly(),
    ]),
  },
  isAllowed: {
    input: z.strictObject({ key: proxyKey, kind: streamKind, address: text(64), port }),
    output: z.strictObject({ isAllowed: z.boolean() }),
  },
  /** The sessions that wait for their clients at this worker, after the first so many. */
  waiting: { input: z.strictObject({ after: z.int().min(0) }), output: z.array(waiting).max(WAITING_PER_PAGE) },
} as const satisfies Contract;

const sessionInfo = z.strictObject({
  id: text(32),
  user,
  device: text(64),
  addresses: z.array(text(64)).max(2),
  peer: remote,
  waiting: z.boolean(),
  superPackets: z.boolean(),
  channels: z.int().min(0).max(256),
  streams: count,
  since: z.iso.datetime(),
  receivedBytes: count,
  sentBytes: count,
  roundTripMs: z.number().nullable(),
});
const totals = z.record(text(64), z.number()).refine((all) => Object.keys(all).length <= 1024, 'too many');

const histograms = z
  .record(text(32), z.strictObject({ counts: z.array(count).max(32).readonly(), sum: count }))
  .refine((all) => Object.keys(all).length <= 16, 'too many');

/** What auth may tell a worker. */
export const authToWorker = {
  close: { input: z.strictObject({ session: sessionKey, reason: closeReason }) },
  configure: { input: z.strictObject({ session: sessionKey, config: clientConfig }) },
  release: { input: z.strictObject({ session: sessionKey }), output: nothing },
  drain: { input: z.strictObject({ seconds }) },
  limit: { input: z.strictObject({ limits: gatewayConfigSchema.shape.limits }) },
  refuse: {
    input: z.strictObject({ sources: z.array(z.strictObject({ source: text(64), until: instant })).readonly() }),
  },
  shape: { input: shapes },
  classify: { input: z.strictObject({ rules: z.array(classRule).max(100_000).readonly() }) },
  closeProxy: { input: z.strictObject({ key: proxyKey }) },
  recheckStreams: { input: nothing },
  report: {
    input: nothing,
    output: z.strictObject({
      sessions: count,
      waiting: count,
      counters: totals,
      drops: totals,
      traffic,
      gauges: totals,
      histograms,
    }),
  },
  listSessions: {
    input: z.strictObject({ after: z.int().min(0) }),
    output: z.array(sessionInfo).max(SESSIONS_PER_PAGE),
  },
} as const satisfies Contract;

const identity = z.strictObject({ uid: u32, gid: u32 });
const pem = z.string().max(32 * 1024 * KIB);
const credentials = z.strictObject({
  cert: pem,
  /** Empty for whoever may not see it. */
  key: pem,
  ca: z.union([pem, z.undefined()]).optional(),
  crl: z.union([pem, z.undefined()]).optional(),
});
const deviceFacts = z.strictObject({ name: text(15), mtu: z.int(), superPackets: z.boolean(), uso: z.boolean() });
/** `GatewayConfig`, whose files are absolute. */
const config = gatewayConfigSchema;

/** What the supervisor tells a worker. */
export const supervisorToWorker = {
  /** A sign of life. */
  alive: { input: nothing, output: nothing },
  /** Answered when all its code is there and warm. */
  load: { input: nothing, output: nothing },
  /** What it is, and whom it becomes; its descriptors are on their way. Answered when it is nobody with any right. */
  prepare: {
    input: z.strictObject({
      worker,
      config,
      identity,
      primary: deviceFacts,
      /** None where Ethernet is bridged. */
      plain: deviceFacts.exactOptional(),
    }),
    output: nothing,
  },
  /** Everything is in place: clients may connect. */
  serve: { input: z.strictObject({ credentials }), output: nothing },
  useCredentials: { input: z.strictObject({ credentials }), output: nothing },
  /** Nobody new; `reason`: what its clients hear. Answered when all is said. */
  stop: { input: z.strictObject({ reason: closeReason }), output: nothing },
} as const satisfies Contract;

/** A worker asks nothing of the supervisor. */
export const workerToSupervisor = {} as const satisfies Contract;

const facts = z.strictObject({
  version: text(64),
  pid: z.int(),
  since: instant,
  listen: text(80),
  port: z.int().min(0).max(65_535),
  congestion: text(16),
  devices: z
    .array(z.strictObject({ name: text(15), superPackets: z.boolean(), udpSegmentation: z.boolean(), mtu: z.int() }))
    .readonly(),
});

/** Script and style of the admin page. */
const page = z.strictObject({ script: text(4096 * KIB), style: text(1024 * KIB) });

/** What the supervisor tells auth. */
export const supervisorToAuth = {
  /** A sign of life. */
  alive: { input: nothing, output: nothing },
  /** The first. Answered when everything has been read and it is nobody with any right. */
  prepare: {
    input: z.strictObject({
      config,
      /** The pool that the gateway started with. */
      firstPool: z.array(text(64)).max(16),
      workers: z.int().min(1).max(255),
      state: text(4096),
      identity,
      /** It has inherited the log of denied packets. */
      showsDenied: z.boolean(),
      page: page.exactOptional(),
    }),
    output: nothing,
  },
  /** The host is as it must be. Answered when workers may come. With a time: the gateway is drained, and stops then. */
  begin: { input: z.strictObject({ facts, drainSeconds: seconds.exactOptional() }), output: nothing },
  /** Workers serve clients: the control API is answered from now on. */
  serve: { input: nothing, output: nothing },
  /** Read the configuration again. */
  reload: { input: nothing, output: nothing },
  /** Nothing more is decided by time; before the workers stop. */
  pause: { input: nothing, output: nothing },
  /** After the workers have stopped. Answered when the store is closed. */
  stop: { input: nothing, output: nothing },
} as const satisfies Contract;

const kind = z.enum(['all', 'lists']);

/** Some of the rules of a policy, ascending ↔ base64 of a bit for each rule up to the last. */
const ruleNumbers = z.codec(
  z.base64().max((MAX_POLICY_RULES / 8 / 3) * 4 + 4),
  z.custom<readonly number[]>((value) => Array.isArray(value) && value.every((one) => one < MAX_POLICY_RULES)),
  {
    decode: (encoded) => {
      const rules: number[] = [];
      for (const [at, byte] of Uint8Array.fromBase64(encoded).entries()) {
        for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) !== 0) rules.push(at * 8 + bit);
      }
      return rules;
    },
    encode: (rules) => {
      const bytes = new Uint8Array(((rules.at(-1) ?? -8) >> 3) + 1);
      for (const rule of rules) bytes[rule >> 3] = (bytes[rule >> 3] ?? 0) | (1 << (rule & 7));
      return bytes.toBase64();
    },
  },
);
const revision = u32;
/** Networks of the policy's sites, by their place. */
const networkNumbers = z.array(z.int().min(0).max(MAX_SITE_NETWORKS)).max(MAX_NETWORKS);
const hostName = z.strictObject({ name: text(253), addresses: z.array(ip).max(MAX_HOST_ADDRESSES) });
/** Clients, and the classes that they are in, by number. */
const admitted = z.strictObject({
  classes: z.array(ruleNumbers).max(MAX_POLICY_RULES),
  sessions: z
    .array(
      z.strictObject({
        lease,
        class: u32,
        peers: z.array(text(80)).max(256),
        networks: networkNumbers.exactOptional(),
      }),
    )
    .max(10_000),
});

/** What auth may ask of the supervisor. No path and no name is in it, and rules only where operators may edit the policy. */
export const authToSupervisor = {
  place: { input: z.strictObject({ lease, worker, place: z.enum(['primary', 'plain']) }), output: nothing },
  unplace: { input: z.strictObject({ lease }), output: nothing },
  report: {
    input: nothing,
    output: z.strictObject({ counters: totals, warnings: z.array(text(4096)).max(1024) }),
  },
  /** The configuration as it is written now, which is the next one from then on. */
  readConfig: { input: nothing, output: config },
  /** The policy file as it is written now; null: there is none. What auth says of a policy afterwards is of this revision. */
  readPolicy: {
    input: z.strictObject({ of: z.enum(['current', 'next']) }),
    output: z.strictObject({ text: z.string().max(MAX_POLICY_BYTES).nullable(), revision }),
  },
  /** A part of a policy that an operator has written. */
  policyPart: { input: z.strictObject({ text: text(POLICY_PART) }) },
  /** All parts of the text with this SHA-256 are there: what auth says of a policy afterwards is of this revision. */
  offerPolicy: { input: z.strictObject({ digest: sha256 }), output: z.strictObject({ revision }) },
  /** Puts it into the policy file, in the place of the text that has this SHA-256. */
  savePolicy: { input: z.strictObject({ revision, replaces: sha256 }), output: nothing },
  /** A part of what is to be put in force. */
  stage: { input: z.union([z.strictObject({ hosts: z.array(hostName).max(1000) }), admitted]) },
  /** Puts what has been staged in force; null: there is no policy. The supervisor has read the rules itself. */
  enforce: { input: z.strictObject({ revision: revision.nullable() }), output: nothing },
  admit: { input: z.strictObject({ revision, admitted }), output: nothing },
  dismiss: { input: z.strictObject({ lease }), output: nothing },
  /** Puts routes, services and pools of the next one in force. */
  apply: { input: nothing, output: nothing },
  /** Puts back what `apply` has replaced last. */
  takeBack: { input: nothing, output: nothing },
  /** The next one is in force, as far as a gateway that runs can take it. */
  reloaded: { input: nothing },
  readCredentials: {
    input: z.strictObject({ what: kind, of: z.enum(['current', 'next']) }),
    output: z.strictObject({
      pem: credentials,
      crlFile: z.union([text(4096), z.undefined()]).optional(),
      stamp: text(256),
    }),
  },
  /** Changes with the file of the revocation lists. */
  stampOfLists: { input: nothing, output: z.strictObject({ stamp: text(256) }) },
  /** Hands what was read last to every worker. */
  useCredentials: { input: z.strictObject({ what: kind }), output: nothing },
  /** A worker has broken a rule or closed its channel: another process is to take its place. */
  replace: { input: z.strictObject({ worker, pid: u32, isSilent: z.boolean() }) },
  /** Other processes in the place of all workers, one after the other. */
  replaceWorkers: { input: nothing, output: z.strictObject({ replaced: z.int().min(0) }) },
  /** The gateway is drained, and stops in so long: whoever is auth next goes on with it. */
  drained: { input: z.strictObject({ seconds }) },
  /** Somebody wants the gateway to stop. */
  stop: { input: nothing },
} as const satisfies Contract;
