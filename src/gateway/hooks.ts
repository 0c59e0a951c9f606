/**
 * What a file of hooks may have in it: the types that its author imports, and how its answers are read.
 *
 * The file is the one that `hook.file` of the configuration names; it exports functions of these names, or an object of them as
 * its default. They run in a process of their own.
 */

import type { LoginFacts } from './auth/rights.ts';

/** Yes or no; the reason stands in the audit record, and the client is not told. */
export type HookVerdict = boolean | { readonly allow: boolean; readonly reason?: string };

/** A session, as a hook learns of it. */
export interface HookSession {
  /** Enough of the id to tell sessions apart; not the whole. */
  readonly id: string;
  readonly user: string;
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly addresses: readonly string[];
  /** Address and port of the client. */
  readonly remote: string;
  /** ISO 8601. */
  readonly openedAt: string;
}

/** A session that is over. */
export interface EndedHookSession extends HookSession {
  /** Why, such as `shutdown`, `idle_timeout`, `revoked`. */
  readonly reason: string;
  readonly receivedBytes: number;
  readonly sentBytes: number;
}

/** A policy that is about to take effect. */
export interface HookPolicy {
  /** Null: policies end, and routes say where clients may go. */
  readonly file: string | null;
  readonly text: string | null;
  /** SHA-256 of the text, hexadecimal. */
  readonly digest: string | null;
  /** That of the policy in force. */
  readonly formerDigest: string | null;
}

/** The functions; each may be left out. */
export interface GatewayHooks {
  /** Has the last word on a login, a resume and a login of the proxy that everything else has accepted. */
  onLogin?(login: LoginFacts): HookVerdict | Promise<HookVerdict>;
  onSessionStart?(session: HookSession): unknown;
  onSessionEnd?(session: EndedHookSession): unknown;
  /** Has the last word on a policy that was read without a fault, at the start and by a reload. */
  onPolicy?(policy: HookPolicy): HookVerdict | Promise<HookVerdict>;
}

export const HOOK_NAMES = ['onLogin', 'onSessionStart', 'onSessionEnd', 'onPolicy'] as const;
export type HookName = (typeof HOOK_NAMES)[number];

const MAX_REASON = 200;

/** What an answer says; undefined: it is none. */
export function verdictOf(value: unknown): { readonly allow: boolean; readonly reason: string } | undefined {
  if (typeof value === 'boolean') return { allow: value, reason: '' };
  if (typeof value !== 'object' || value === null) return undefined;
  const { allow, reason = '' } = value as { allow?: unknown; reason?: unknown };
  if (typeof allow !== 'boolean' || typeof reason !== 'string') return undefined;
  return { allow, reason: reason.slice(0, MAX_REASON) };
}
