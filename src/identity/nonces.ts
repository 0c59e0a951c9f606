/**
 * The nonces that logins sign: single use, 60 seconds, good on one connection only (docs/protocol.md §6).
 *
 * Hides the table and its bound. A connection has at most one nonce. When the table is full the oldest nonce goes: a flood
 * of connections must renew the whole table within one honest login to hinder it, where a table that refuses would lock
 * everybody out for a minute. It must not know what a nonce is signed into.
 */

import { timingSafeEqual } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { freshBytes } from '../base/primitives.ts';

const NONCE_BYTES = 32;
export const NONCE_LIFE_MS = 60_000;
export const MAX_NONCES = 65_536;

interface Outstanding {
  readonly nonce: Uint8Array;
  readonly expiresAt: number;
}

export class Nonces {
  readonly #clock: Clock;
  readonly #limit: number;
  /** By binding, in the order in which they were made: of equal lives, the first is the next to expire. */
  readonly #outstanding = new Map<string, Outstanding>();

  constructor(clock: Clock, limit: number = MAX_NONCES) {
    this.#clock = clock;
    this.#limit = limit;
  }

  get size(): number {
    return this.#outstanding.size;
  }

  /** A fresh nonce for a connection; one it had before is void. */
  issue(binding: string, lifeMs: number = NONCE_LIFE_MS): Uint8Array {
    const now = this.#clock.now();
    this.#outstanding.delete(binding);
    for (const [oldest, { expiresAt }] of this.#outstanding) {
      if (expiresAt > now && this.#outstanding.size < this.#limit) break;
      this.#outstanding.delete(oldest);
    }
    const nonce = freshBytes(NONCE_BYTES);
    this.#outstanding.set(binding, { nonce, expiresAt: now + lifeMs });
    return new Uint8Array(nonce);
  }

  /** Whether this is the connection's nonce and still good. Right or wrong, the connection has none afterwards. */
  consume(binding: string, nonce: Uint8Array): boolean {
    const entry = this.#outstanding.get(binding);
    this.#outstanding.delete(binding);
    if (entry === undefined || entry.expiresAt <= this.#clock.now() || nonce.length !== NONCE_BYTES) return false;
    return timingSafeEqual(entry.nonce, nonce);
  }
}
