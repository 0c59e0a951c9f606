/** What the gateway and its hasher say to each other; both check what they get. */

import type { Argon2Parameters } from '../../identity/passwords.ts';

/** The argument of a hasher whose parent is in a cage. */
export const CAGED = 'caged';
/** The argument of a hasher that runs in idle time only. */
export const IDLE = 'idle';

/** One at a time; the next comes after the reply. */
export type HasherRequest =
  | ({ readonly kind: 'hash'; readonly id: number; readonly password: string } & Argon2Parameters)
  | { readonly kind: 'verify'; readonly id: number; readonly password: string; readonly phc: string };

export type HasherReply =
  | { readonly id: number; readonly result: string | boolean }
  | { readonly id: number; readonly error: string };

const MAX_PASSWORD_UNITS = 1024;
const MAX_PHC_UNITS = 512;

export function isHasherRequest(value: unknown): value is HasherRequest {
  if (!isRecord(value) || typeof value.id !== 'number') return false;
  if (typeof value.password !== 'string' || value.password.length > MAX_PASSWORD_UNITS) return false;
  if (value.kind === 'verify') return typeof value.phc === 'string' && value.phc.length <= MAX_PHC_UNITS;
  return value.kind === 'hash' && [value.memory, value.passes, value.parallelism].every(Number.isSafeInteger);
}

export function isHasherReply(value: unknown): value is HasherReply {
  if (!isRecord(value) || typeof value.id !== 'number') return false;
  const { result, error } = value;
  if (error !== undefined) return typeof error === 'string';
  return typeof result === 'boolean' || (typeof result === 'string' && result.length <= MAX_PHC_UNITS);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}
