/**
 * Passwords: what may be one, how one is hashed, whose is right.
 *
 * Hides the table, the PHC string and the hash function's parameters. Who hashes is handed in: argon2 takes a tenth of a
 * second of a core and 19 MiB, which must not be the gateway's own (see `gateway/auth/hasher.ts`). For a user without a
 * password the same work is done against a hash that no password has. It must not know how a login goes.
 */

import { argon2, randomBytes, timingSafeEqual } from 'node:crypto';
import { promisify } from 'node:util';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Queries, Store } from '../store/store.ts';
import { findUser } from './accounts.ts';

/** Memory in KiB. */
export interface Argon2Parameters {
  readonly memory: number;
  readonly passes: number;
  readonly parallelism: number;
}

/** OWASP's recommendation; 70 to 90 ms of one core. */
export const ARGON2_PARAMETERS: Argon2Parameters = { memory: 19_456, passes: 2, parallelism: 1 };

/** Whoever does the work. Passwords are normalised and bounded already. */
export interface PasswordHasher {
  /** What `hash` hashes with. */
  readonly parameters: Argon2Parameters;
  /** @returns a PHC string. @throws {VpnError} ERR_BUSY when too much waits */
  hash(password: string): Promise<string>;
  /** @throws {VpnError} ERR_BUSY when too much waits; ERR_STORE for a text that is no PHC string of ours */
  verify(phc: string, password: string): Promise<boolean>;
}

const MIN_CHARACTERS = 10;
const MAX_BYTES = 1024;
const SALT_BYTES = 16;
const HASH_BYTES = 32;
const ARGON2_VERSION = 19;
/** What a damaged or foreign row may cost at the most. */
const MAX_MEMORY = 2_097_152;
const MAX_PASSES = 64;
const MAX_PARALLELISM = 64;

const PHC = /^\$argon2id\$v=19\$m=(\d{1,7}),t=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})$/;

const derive = promisify(argon2);

interface Phc extends Argon2Parameters {
  readonly salt: Uint8Array;
  readonly hash: Uint8Array;
}

/** Hashes a password with fresh salt. @returns a PHC string */
export async function hashPassword(password: string, parameters: Argon2Parameters): Promise<string> {
  const salt = randomBytes(SALT_BYTES);
  const hash = await derivation(password, { ...parameters, salt, hash: new Uint8Array(HASH_BYTES) });
  const { memory, passes, parallelism } = parameters;
  return `$argon2id$v=${ARGON2_VERSION}$m=${memory},t=${passes},p=${parallelism}$${base64(salt)}$${base64(hash)}`;
}

/** Whether a password is the one of a PHC string. @throws {VpnError} ERR_STORE */
export async function verifyPassword(phc: string, password: string): Promise<boolean> {
  const stored = parsePhc(phc);
  return timingSafeEqual(await derivation(password, stored), stored.hash);
}

/** Whether a PHC string was made with other parameters than these. @throws {VpnError} ERR_STORE */
export function isOutdated(phc: string, parameters: Argon2Parameters): boolean {
  const { memory, passes, parallelism } = parsePhc(phc);
  return memory !== parameters.memory || passes !== parameters.passes || parallelism !== parameters.parallelism;
}

function derivation(password: string, { memory, passes, parallelism, salt, hash }: Phc): Promise<Buffer> {
  return derive('argon2id', {
    message: Buffer.from(password, 'utf8'),
    nonce: salt,
    memory,
    passes,
    parallelism,
    tagLength: hash.length,
  });
}

function parsePhc(text: string): Phc {
  const [, memory = '', passes = '', parallelism = '', salt = '', hash = ''] = PHC.exec(text) ?? [];
  const parsed = {
    memory: Number(memory),
    passes: Number(passes),
    parallelism: Number(parallelism),
    salt: Buffer.from(salt, 'base64'),
    hash: Buffer.from(hash, 'base64'),
  };
  const isSane =
    parsed.parallelism >= 1 &&
    parsed.parallelism <= MAX_PARALLELISM &&
    parsed.passes >= 1 &&
    parsed.passes <= MAX_PASSES &&
    parsed.memory >= 8 * parsed.parallelism &&
    parsed.memory <= MAX_MEMORY;
  if (!isSane) throw new VpnError('ERR_STORE', 'a stored password hash is not one that this version makes');
  return parsed;
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64').replaceAll('=', '');
}

/**
 * The one form of a password that an operator or user chooses.
 *
 * @throws {VpnError} ERR_BAD_REQUEST; the message never has the password
 */
export function parseNewPassword(text: string, user: string): string {
  const password = normalisePassword(text);
  if (password === undefined) {
    throw new VpnError(
      'ERR_BAD_REQUEST',
      `a password has at most ${MAX_BYTES} bytes and no control characters; choose another`,
    );
  }
  if (Array.from(password).length < MIN_CHARACTERS) {
    throw new VpnError('ERR_BAD_REQUEST', `a password has at least ${MIN_CHARACTERS} characters; a sentence is best`);
  }
  if (password.toLowerCase().includes(user.toLowerCase())) {
    throw new VpnError('ERR_BAD_REQUEST', "the password contains the user's name; choose another");
  }
  if (new Set(password).size < 4) {
    throw new VpnError('ERR_BAD_REQUEST', 'the password repeats too few characters; choose another');
  }
  return password;
}

/** The one form of a password that somebody claims to know, or undefined for a text that nobody can have set. */
export function normalisePassword(text: string): string | undefined {
  // Normalising costs time by length, and a peer chooses the length.
  if (text.length === 0 || text.length > MAX_BYTES) return undefined;
  const password = text.normalize('NFC');
  return Buffer.byteLength(password) <= MAX_BYTES && !/\p{Cc}/u.test(password) ? password : undefined;
}

/** What a step learns of a password that was tried. */
export type PasswordVerdict =
  | { readonly right: false }
  | {
      readonly right: true;
      /**
       * Whether it is still the password: it may have been changed while it was judged. Stores the hash anew where it was
       * made with other parameters than today's.
       */
      readonly confirm: (db: Queries) => Promise<boolean>;
    };

export class Passwords {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;
  readonly #hasher: PasswordHasher;
  #nobody: { parameters: Argon2Parameters; phc: Promise<string> } | undefined;

  constructor(parts: { store: Store; audit: Audit; clock: Clock; hasher: PasswordHasher }) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
    this.#hasher = parts.hasher;
  }

  /** Sets or replaces a user's password. @throws {VpnError} ERR_NOT_FOUND, ERR_BAD_REQUEST, ERR_BUSY */
  async set(name: string, text: string): Promise<void> {
    const user = await findUser(this.#store.db, name);
    const phc = await this.#hasher.hash(parseNewPassword(text, user.name));
    await this.#store.transaction(async (db) => {
      await this.#put(db, user.id, phc);
      await this.#audit.append({ event: AuditEvent.passwordSet, user: user.name }, db);
    });
    this.#store.sync();
  }

  /** Takes a user's password away; tells whether there was one. @throws {VpnError} ERR_NOT_FOUND */
  async remove(name: string): Promise<boolean> {
    const user = await findUser(this.#store.db, name);
    const removed = await this.#store.transaction(async (db) => {
      const { numDeletedRows } = await db.deleteFrom('passwords').where('user_id', '=', user.id).executeTakeFirst();
      if (numDeletedRows === 0n) return false;
      await this.#audit.append({ event: AuditEvent.passwordRemoved, user: user.name }, db);
      return true;
    });
    this.#store.sync();
    return removed;
  }

  /** When a user's password was set, milliseconds since the Unix epoch; undefined when there is none. */
  async setAt(userId: string): Promise<number | undefined> {
    const row = await this.#store.db
      .selectFrom('passwords')
      .select('set_at')
      .where('user_id', '=', userId)
      .executeTakeFirst();
    return row === undefined ? undefined : Number(row.set_at);
  }

  /**
   * Judges what somebody claims to be the password of `userId`. Takes as long for nobody as for somebody.
   *
   * @throws {VpnError} ERR_BUSY when too many passwords wait to be judged
   */
  async check(userId: string | undefined, text: string): Promise<PasswordVerdict> {
    const row = await this.#store.db
      .selectFrom('passwords')
      .select(['phc', 'set_at'])
      .where('user_id', '=', userId ?? '')
      .executeTakeFirst();
    const password = normalisePassword(text);
    const phc = row?.phc ?? (await this.#hashOfNobody());
    const right = await this.#hasher.verify(phc, password ?? '');
    if (!right || row === undefined || password === undefined || userId === undefined) return { right: false };
    const renewed = isOutdated(phc, this.#hasher.parameters) ? await this.#hasher.hash(password) : undefined;
    return {
      right: true,
      confirm: async (db) => {
        const present = await db
          .selectFrom('passwords')
          .select('set_at')
          .where('user_id', '=', userId)
          .executeTakeFirst();
        // A renewed hash is of the same password.
        if (present === undefined || Number(present.set_at) !== Number(row.set_at)) return false;
        if (renewed !== undefined) await this.#put(db, userId, renewed, phc);
        return true;
      },
    };
  }

  /** @param instead only if this is what stands there: a password that was changed meanwhile stays changed */
  async #put(db: Queries, userId: string, phc: string, instead?: string): Promise<void> {
    const values = { phc, set_at: Math.trunc(this.#clock.wallNow()) };
    if (instead !== undefined) {
      await db.updateTable('passwords').set({ phc }).where('user_id', '=', userId).where('phc', '=', instead).execute();
      return;
    }
    await db
      .insertInto('passwords')
      .values({ user_id: userId, ...values })
      .onConflict((conflict) => conflict.column('user_id').doUpdateSet(values))
      .execute();
  }

  /** With today's parameters, so that it takes as long as everybody's. */
  #hashOfNobody(): Promise<string> {
    const { parameters } = this.#hasher;
    if (this.#nobody?.parameters !== parameters) {
      const phc = this.#hasher.hash(randomBytes(32).toString('base64'));
      this.#nobody = { parameters, phc };
      phc.catch(() => {
        this.#nobody = undefined;
      });
    }
    return this.#nobody.phc;
  }
}
