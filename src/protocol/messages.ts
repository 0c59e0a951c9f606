/**
 * Control messages: payload bytes ↔ typed values.
 *
 * Hides the JSON schema of every control frame, its limits, and base64url. It must not know when a message is legal (the
 * decoder and the machines do) or what is done with it. Fields that a message does not define are ignored, so that a
 * newer peer is understood; what is missing, too long or of the wrong shape is refused.
 *
 * @see docs/protocol.md §4
 */

import { z } from 'zod';
import { VpnError } from '../base/errors.ts';
import { encodeFrame, FrameType } from './frame.ts';
import { parseJson } from './json.ts';
import { DEVICE_ID_BYTES, NONCE_BYTES, PROOF_BYTES, SESSION_ID_BYTES } from './keys.ts';

/** Why a login, resume or attach is refused. The list is closed; a code that is not in it reads as `rejected`. */
export const REJECT_CODES = [
  'rejected',
  'profile_used',
  'token_expired',
  'approval_pending',
  'pool_exhausted',
  'too_many_sessions',
  'session_unknown',
  'session_replaced',
  'version',
  'shutting_down',
  'too_many_devices',
  'busy',
  'unavailable',
  'certificate_required',
  'certificate_untrusted',
  'certificate_expired',
  'certificate_not_yet_valid',
  'certificate_revoked',
  'device_kind',
] as const;
export type RejectCode = (typeof REJECT_CODES)[number];

/** Why a channel is closed. A reason that is not in the list reads as `peer_disconnect`. */
export const CLOSE_REASONS = [
  'peer_disconnect',
  'dead_peer',
  'idle_timeout',
  'session_timeout',
  'replaced',
  'admin',
  'revoked',
  'shutdown',
  'protocol_error',
] as const;
export type CloseReason = (typeof CLOSE_REASONS)[number];

/** What a login step asks for. */
export const STEP_KINDS = ['device', 'token', 'password', 'totp', 'certificate', 'oidc', 'ask', 'resume'] as const;
export type StepKind = (typeof STEP_KINDS)[number];

/** Where data frames travel: on the control connection, or on data connections attached to the session. */
export const DATA_MODES = ['inline', 'attached'] as const;
export type DataMode = (typeof DATA_MODES)[number];

export const MAX_FEATURES = 64;
export const MAX_STEPS = 8;
export const MAX_ROUTES = 4_096;
export const MAX_NETWORKS = 64;
const MAX_LISTED = 64;

const U8 = z.int().min(0).max(0xff);
const U32 = z.int().min(0).max(0xffff_ffff);

/** Canonical base64url without padding ↔ bytes. */
function bytes(minimum: number, maximum: number = minimum) {
  return z.codec(
    z
      .string()
      .regex(/^[A-Za-z0-9_-]*$/, 'expected base64url')
      .max(Math.ceil((maximum * 4) / 3)),
    z.custom<Uint8Array>(
      (value) => value instanceof Uint8Array && value.length >= minimum && value.length <= maximum,
      `expected ${minimum === maximum ? String(minimum) : `${minimum} to ${maximum}`} bytes`,
    ),
    {
      decode: (text, context) => {
        const value = fromBase64Url(text);
        if (value !== undefined) return value;
        context.issues.push({ code: 'custom', message: 'expected canonical base64url', input: text });
        return z.NEVER;
      },
      encode: toBase64Url,
    },
  );
}

/** Bytes as base64url without padding. */
export function toBase64Url(value: Uint8Array): string {
  return value.toBase64({ alphabet: 'base64url', omitPadding: true });
}

/** Bytes of canonical base64url without padding, or undefined. */
export function fromBase64Url(text: string): Uint8Array | undefined {
  try {
    const value = Uint8Array.fromBase64(text, { alphabet: 'base64url' });
    return toBase64Url(value) === text ? value : undefined;
  } catch {
    return undefined;
  }
}

/** A name out of a list; one that a newer peer has added reads as `fallback`. */
function openEnum<const T extends string>(list: readonly T[], fallback: NoInfer<T>) {
  return z.codec(z.string().min(1).max(64), z.enum(list), {
    decode: (name) => list.find((known) => known === name) ?? fallback,
    encode: (name) => name,
  });
}

/** Text that people see, or a name: 1 to `maximum` UTF-16 units; the JSON reader has already refused control characters. */
const text = (maximum: number) => z.string().min(1).max(maximum);

const FEATURE = z.string().regex(/^[a-z0-9][a-z0-9.-]{0,31}$/);
/** A list longer than the limit is refused; so is a name of the wrong shape, and one that comes twice. */
const FEATURES = z
  .array(FEATURE)
  .max(MAX_FEATURES)
  .refine((list) => new Set(list).size === list.length, { error: 'expected no feature twice' });
const SERVER_NAME = z
  .string()
  .max(255)
  .regex(/^[a-z0-9](?:[a-z0-9.:_-]*[a-z0-9])?$|^::$|^[0-9a-f:.]+$/, 'expected a host name or address in lower case');

const ADDRESS = text(64);
const PREFIX = text(64);
const DOMAIN = z
  .string()
  .max(253)
  .regex(/^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/);

const ALGORITHM = z.enum(['p256', 'ed25519']);

const DEVICE = z.object({
  id: bytes(DEVICE_ID_BYTES),
  algorithm: ALGORITHM,
  publicKey: bytes(32, 256).exactOptional(),
});

const CLIENT = z.object({ name: text(64), version: text(64), platform: text(64) });

const LOGIN = z.object({
  version: z.int().min(1).max(0xffff),
  user: text(128).exactOptional(),
  device: DEVICE,
  purpose: z.enum(['login', 'enrol']),
  serverName: SERVER_NAME,
  features: FEATURES,
  client: CLIENT,
  /** Networks behind this client that it would carry packets for. */
  networks: z.array(PREFIX).max(MAX_NETWORKS).exactOptional(),
});

const STEP = z.object({
  kind: z.string().regex(/^[a-z][a-z0-9_]{0,31}$/),
  prompt: text(256).exactOptional(),
  /** Whether what the person types may be seen. */
  echo: z.boolean().exactOptional(),
  /** Where the person logs in. People see it and may click on it. */
  url: z
    .string()
    .max(1_024)
    .regex(/^https?:\/\/[\x21-\x7e]+$/, 'expected an address of a page, in ASCII')
    .exactOptional(),
  /** What the person compares or types there. */
  code: z
    .string()
    .regex(/^[\x20-\x7e]{1,64}$/, 'expected 1 to 64 printable characters')
    .exactOptional(),
  /** How long the person may take there. */
  seconds: z.int().min(1).max(3_600).exactOptional(),
});

const CHALLENGE = z.object({
  nonce: bytes(NONCE_BYTES),
  steps: z.array(STEP).min(1).max(MAX_STEPS),
  attempt: z.int().min(1).max(MAX_STEPS),
});

const ANSWER = z.object({
  answers: z
    .array(z.object({ kind: z.string().regex(/^[a-z][a-z0-9_]{0,31}$/), value: z.string().max(4_096) }))
    .min(1)
    .max(MAX_STEPS),
});

const ACCEPT = z.object({
  session: bytes(SESSION_ID_BYTES),
  epoch: U32,
  worker: U8,
  features: FEATURES,
  user: text(128),
  deviceId: bytes(DEVICE_ID_BYTES),
  /** Seconds from now until the session ends whatever happens; 0: never. */
  absoluteSeconds: U32,
  /** Seconds without data until the session ends; 0: never. */
  idleSeconds: U32,
  /** Seconds for which a session without a connection keeps its lease. */
  graceSeconds: U32,
});

const REJECT = z.object({ code: openEnum(REJECT_CODES, 'rejected'), message: z.string().max(512) });

const CONFIG = z.object({
  revision: U32,
  addresses: z.object({
    v4: z.object({ address: ADDRESS, gateway: ADDRESS }).exactOptional(),
    v6: z.object({ address: ADDRESS, gateway: ADDRESS }).exactOptional(),
  }),
  routes: z.array(PREFIX).max(MAX_ROUTES),
  dns: z.object({ servers: z.array(ADDRESS).max(MAX_LISTED), domains: z.array(DOMAIN).max(1_000) }),
  mtu: z.int().min(0).max(0xffff),
  ping: z.object({ intervalSeconds: U32, deadSeconds: U32 }),
  data: z.object({ mode: openEnum(DATA_MODES, 'inline'), channels: U8 }),
  /** How long a connection serves before it is changed. */
  rekeySeconds: U32.exactOptional(),
  /** What the person should know of the session, in place of what was said before; shown, never acted upon. */
  notices: z.array(text(256)).max(4).exactOptional(),
  /** What the client is on an Ethernet segment, where `ethernet` was agreed on. */
  ethernet: z
    .object({
      mac: text(17),
      /** The networks of the segment, at most one of each family. */
      networks: z.array(PREFIX).max(2),
      /** The next hops of `routes`. */
      routers: z.array(ADDRESS).max(2),
      /** Addresses come from a DHCP server on the segment, or from its routers. */
      dhcp: z.boolean(),
    })
    .exactOptional(),
  /** Of the networks that the client offered, those that it carries packets for; `as`: what everybody else sees each as. */
  networks: z
    .array(z.object({ network: PREFIX, as: PREFIX.exactOptional() }))
    .max(MAX_NETWORKS)
    .exactOptional(),
  transports: z.array(text(32)).max(MAX_LISTED),
  pins: z.array(text(64)).max(MAX_LISTED),
});

const CLOSE = z.object({
  reason: openEnum(CLOSE_REASONS, 'peer_disconnect'),
  message: z.string().max(512).exactOptional(),
});

const ATTACH = z.object({
  session: bytes(SESSION_ID_BYTES),
  epoch: U32,
  slot: U8,
  generation: U32,
  flags: U8,
  proof: bytes(PROOF_BYTES),
});

const ATTACHED = z.object({ slot: U8, generation: U32, flags: U8, proof: bytes(PROOF_BYTES) });
const MOVED = z.object({ worker: U8 });

const RESUME = z.object({
  version: z.int().min(1).max(0xffff),
  session: bytes(SESSION_ID_BYTES),
  epoch: U32,
  deviceId: bytes(DEVICE_ID_BYTES),
  serverName: SERVER_NAME,
  features: FEATURES,
  /** The session's connections live and stay: only the control connection is changed. */
  rekey: z.boolean().exactOptional(),
});

const RESUMED = z.object({
  epoch: U32,
  worker: U8,
  features: FEATURES,
  absoluteSeconds: U32,
  idleSeconds: U32,
  graceSeconds: U32,
  proof: bytes(PROOF_BYTES),
});

const RESUME_DONE = z.object({ proof: bytes(PROOF_BYTES) });
const SWITCH = z.object({ slot: U8, generation: U32 });
/** Seconds from now until the server stops serving, whatever happens. */
const DRAIN = z.object({ seconds: U32 });

/** The value of every message. Bytes are `Uint8Array`, times seconds. */
export interface Messages {
  login: z.output<typeof LOGIN>;
  challenge: z.output<typeof CHALLENGE>;
  answer: z.output<typeof ANSWER>;
  accept: z.output<typeof ACCEPT>;
  reject: z.output<typeof REJECT>;
  config: z.output<typeof CONFIG>;
  close: z.output<typeof CLOSE>;
  attach: z.output<typeof ATTACH>;
  attached: z.output<typeof ATTACHED>;
  moved: z.output<typeof MOVED>;
  resume: z.output<typeof RESUME>;
  resumed: z.output<typeof RESUMED>;
  resumeDone: z.output<typeof RESUME_DONE>;
  switch: z.output<typeof SWITCH>;
  drain: z.output<typeof DRAIN>;
}

const ENCODER = new TextEncoder();

/** The control frames that carry a message; the others carry opaque bytes. */
export type MessageName = keyof Messages;

const SCHEMAS: { readonly [N in MessageName]: z.ZodType<Messages[N]> } = {
  login: LOGIN,
  challenge: CHALLENGE,
  answer: ANSWER,
  accept: ACCEPT,
  reject: REJECT,
  config: CONFIG,
  close: CLOSE,
  attach: ATTACH,
  attached: ATTACHED,
  moved: MOVED,
  resume: RESUME,
  resumed: RESUMED,
  resumeDone: RESUME_DONE,
  switch: SWITCH,
  drain: DRAIN,
};

export type LoginMessage = Messages['login'];
export type ChallengeMessage = Messages['challenge'];
export type AnswerMessage = Messages['answer'];
export type AcceptMessage = Messages['accept'];
export type RejectMessage = Messages['reject'];
export type ConfigMessage = Messages['config'];
export type CloseMessage = Messages['close'];
export type AttachMessage = Messages['attach'];
export type AttachedMessage = Messages['attached'];
export type MovedMessage = Messages['moved'];
export type ResumeMessage = Messages['resume'];
export type ResumedMessage = Messages['resumed'];
export type ResumeDoneMessage = Messages['resumeDone'];
export type SwitchMessage = Messages['switch'];
export type DrainMessage = Messages['drain'];
export type DeviceAlgorithm = z.output<typeof ALGORITHM>;
export type ClientFacts = z.output<typeof CLIENT>;
/** A login step; a `kind` outside `STEP_KINDS` is one that this version cannot answer. */
export type Step = z.output<typeof STEP>;

/**
 * A message's payload as a whole frame, ready to send.
 *
 * @throws {VpnError} ERR_INVARIANT for a value that its own schema refuses
 */
export function encodeMessage<N extends MessageName>(name: N, value: Messages[N]): Uint8Array {
  const schema: z.ZodType<Messages[N]> = SCHEMAS[name];
  const result = schema.safeEncode(value);
  if (!result.success) {
    throw new VpnError('ERR_INVARIANT', `cannot encode ${name}: ${describe(result.error)}`, { cause: result.error });
  }
  return encodeFrame(FrameType[name], ENCODER.encode(JSON.stringify(result.data)));
}

/**
 * Reads a message's payload.
 *
 * @throws {VpnError} ERR_MESSAGE_SYNTAX where it is not strict JSON, ERR_MESSAGE_FIELD where a field is missing or wrong
 */
export function decodeMessage<N extends MessageName>(name: N, payload: Uint8Array): Messages[N] {
  const result = SCHEMAS[name].safeParse(parseJson(payload));
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw new VpnError('ERR_MESSAGE_FIELD', `${name}: ${describe(result.error)}`, {
    cause: result.error,
    details: { message: name, field: issue?.path.join('.') },
  });
}

function describe(error: z.ZodError): string {
  const issue = error.issues[0];
  if (issue === undefined) return 'malformed';
  return issue.path.length === 0 ? issue.message : `${issue.path.join('.')}: ${issue.message}`;
}
