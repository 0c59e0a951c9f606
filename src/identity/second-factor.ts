/**
 * The second factor: time-based codes (TOTP, RFC 6238) and recovery codes for the day the telephone is lost.
 *
 * Hides the tables, the sealing of secrets and which code is good when. A code is good within its 30 seconds and one step to
 * either side, and each step once: neither a code that was seen nor an earlier one is taken again. A recovery code is good
 * once. It must not know how a login goes: what may be used once is used up by `spend`, in the login's transaction.
 */

import { createHash, randomBytes } from 'node:crypto';
import { Secret as OtpSecret, TOTP } from 'otpauth';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { Secret } from '../base/log.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Queries, Store } from '../store/store.ts';
import type { Vault } from '../store/vault.ts';
import { findUser } from './accounts.ts';

const PURPOSE = 'totp secret';
const SECRET_BYTES = 20;
const DIGITS = 6;
const PERIOD_S = 30;
/** Steps to either side: a clock that is half a minute wrong, or a slow hand. */
const WINDOW = 1;
const RECOVERY_CODES = 10;
const RECOVERY_BYTES = 10;
const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567';

/** What a user gets once. */
export interface NewSecondFactor {
  /** `otpauth://totp/…`, for a QR code. */
  readonly uri: Secret<string>;
  /** Sixteen letters and digits each. */
  readonly recoveryCodes: Secret<readonly string[]>;
}

/** What a step learns of a code that was tried. `spend` uses it up, and tells whether somebody was faster. */
export type CodeVerdict =
  | { readonly right: false; readonly reason: string }
  | { readonly right: true; readonly spend: (db: Queries) => Promise<boolean> };

export class SecondFactors {
  readonly #store: Store;
  readonly #vault: Vault;
  readonly #audit: Audit;
  readonly #clock: Clock;
  /** For users who have none: judged against all the same. */
  readonly #nobody = randomBytes(SECRET_BYTES);

  constructor(parts: { store: Store; vault: Vault; audit: Audit; clock: Clock }) {
    this.#store = parts.store;
    this.#vault = parts.vault;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
  }

  /**
   * Makes a secret and recovery codes for a user; earlier ones are void at once.
   *
   * @param issuer what the user's app shows beside the name
   * @throws {VpnError} ERR_NOT_FOUND
   */
  async create(name: string, issuer: string): Promise<NewSecondFactor> {
    const user = await findUser(this.#store.db, name);
    const secret = randomBytes(SECRET_BYTES);
    const codes = newCodes();
    await this.#store.transaction(async (db) => {
      const values = {
        secret: this.#vault.seal(PURPOSE, user.id, secret),
        created_at: this.#now(),
        last_step: 0,
      };
      await db
        .insertInto('totp_secrets')
        .values({ user_id: user.id, ...values })
        .onConflict((conflict) => conflict.column('user_id').doUpdateSet(values))
        .execute();
      await this.#replaceCodes(db, user.id, codes);
      await this.#audit.append({ event: AuditEvent.totpSet, user: user.name }, db);
    });
    this.#store.sync();
    const label = user.name;
    const uri = new TOTP({ issuer, label, secret: otpSecret(secret), digits: DIGITS, period: PERIOD_S }).toString();
    return { uri: new Secret<string>(uri), recoveryCodes: new Secret<readonly string[]>(codes) };
  }

  /** Makes new recovery codes; the old ones are void. @throws {VpnError} ERR_NOT_FOUND, also when there is no secret */
  async renewCodes(name: string): Promise<Secret<readonly string[]>> {
    const user = await findUser(this.#store.db, name);
    const codes = newCodes();
    await this.#store.transaction(async (db) => {
      const row = await db
        .selectFrom('totp_secrets')
        .select('user_id')
        .where('user_id', '=', user.id)
        .executeTakeFirst();
      if (row === undefined) {
        throw new VpnError(
          'ERR_NOT_FOUND',
          `${user.name} has no second factor; make one with: customvpn user totp ${user.name}`,
        );
      }
      await this.#replaceCodes(db, user.id, codes);
      await this.#audit.append({ event: AuditEvent.recoveryCodesMade, user: user.name }, db);
    });
    this.#store.sync();
    return new Secret<readonly string[]>(codes);
  }

  /** Takes secret and recovery codes away; tells whether there were any. @throws {VpnError} ERR_NOT_FOUND */
  async remove(name: string): Promise<boolean> {
    const user = await findUser(this.#store.db, name);
    const removed = await this.#store.transaction(async (db) => {
      await db.deleteFrom('recovery_codes').where('user_id', '=', user.id).execute();
      const { numDeletedRows } = await db.deleteFrom('totp_secrets').where('user_id', '=', user.id).executeTakeFirst();
      if (numDeletedRows === 0n) return false;
      await this.#audit.append({ event: AuditEvent.totpRemoved, user: user.name }, db);
      return true;
    });
    this.#store.sync();
    return removed;
  }

  /** Whether a user has a second factor, and how many recovery codes are left. */
  async describe(userId: string): Promise<{ hasTotp: boolean; recoveryCodesLeft: number }> {
    const secret = await this.#store.db
      .selectFrom('totp_secrets')
      .select('user_id')
      .where('user_id', '=', userId)
      .executeTakeFirst();
    const codes = await this.#store.db
      .selectFrom('recovery_codes')
      .select('hash')
      .where('user_id', '=', userId)
      .where('used_at', 'is', null)
      .execute();
    return { hasTotp: secret !== undefined, recoveryCodesLeft: codes.length };
  }

  /** Judges a code, changing nothing. Does the same work for nobody as for somebody. */
  async check(userId: string | undefined, code: string, now: number): Promise<CodeVerdict> {
    const row = await this.#store.db
      .selectFrom('totp_secrets')
      .select(['secret', 'last_step'])
      .where('user_id', '=', userId ?? '')
      .executeTakeFirst();
    const isRecovery = RECOVERY.test(code);
    const hash = hashOf(code);
    const recovery = await this.#store.db
      .selectFrom('recovery_codes')
      .select('used_at')
      .where('user_id', '=', userId ?? '')
      .where('hash', '=', hash)
      .executeTakeFirst();
    const secret =
      row === undefined || userId === undefined ? this.#nobody : this.#vault.unseal(PURPOSE, userId, row.secret);
    const step = matchingStep(secret, code, now);
    if (row === undefined || userId === undefined) return { right: false, reason: 'the user has no second factor' };
    if (isRecovery) {
      if (recovery === undefined) return { right: false, reason: 'the recovery code is wrong' };
      if (recovery.used_at !== null) return { right: false, reason: 'the recovery code has been used before' };
      return { right: true, spend: (db) => this.#spendCode(db, userId, hash) };
    }
    if (step === undefined) return { right: false, reason: 'the code is wrong, or of another time' };
    if (step <= Number(row.last_step)) return { right: false, reason: 'the code has been used before' };
    return { right: true, spend: (db) => spendStep(db, userId, row.secret, step) };
  }

  async #spendCode(db: Queries, userId: string, hash: Uint8Array): Promise<boolean> {
    const { numUpdatedRows } = await db
      .updateTable('recovery_codes')
      .set({ used_at: this.#now() })
      .where('user_id', '=', userId)
      .where('hash', '=', hash)
      .where('used_at', 'is', null)
      .executeTakeFirst();
    if (numUpdatedRows !== 1n) return false;
    const user = await db.selectFrom('users').select('name').where('id', '=', userId).executeTakeFirst();
    await this.#audit.append({ event: AuditEvent.recoveryCodeUsed, user: user?.name }, db);
    return true;
  }

  async #replaceCodes(db: Queries, userId: string, codes: readonly string[]): Promise<void> {
    await db.deleteFrom('recovery_codes').where('user_id', '=', userId).execute();
    await db
      .insertInto('recovery_codes')
      .values(codes.map((code) => ({ user_id: userId, hash: hashOf(code), used_at: null })))
      .execute();
  }

  #now(): number {
    return Math.trunc(this.#clock.wallNow());
  }
}

/** Of two logins with one code at once, the second finds the step used; with another secret by now it finds none. */
async function spendStep(db: Queries, userId: string, sealed: Uint8Array, step: number): Promise<boolean> {
  const { numUpdatedRows } = await db
    .updateTable('totp_secrets')
    .set({ last_step: step })
    .where('user_id', '=', userId)
    .where('secret', '=', sealed)
    .where('last_step', '<', step)
    .executeTakeFirst();
  return numUpdatedRows === 1n;
}

const RECOVERY = /^[a-z2-7]{16}$/;

function matchingStep(secret: Uint8Array, code: string, now: number): number | undefined {
  const delta = TOTP.validate({
    token: code,
    secret: otpSecret(secret),
    digits: DIGITS,
    period: PERIOD_S,
    timestamp: now,
    window: WINDOW,
  });
  return delta === null ? undefined : Math.floor(now / 1000 / PERIOD_S) + delta;
}

function otpSecret(bytes: Uint8Array): OtpSecret {
  return new OtpSecret({ buffer: Uint8Array.from(bytes).buffer });
}

function newCodes(): string[] {
  return Array.from({ length: RECOVERY_CODES }, () => base32(randomBytes(RECOVERY_BYTES)));
}

/** Ten bytes are sixteen characters. */
function base32(bytes: Uint8Array): string {
  let value = 0n;
  for (const byte of bytes) value = (value << 8n) | BigInt(byte);
  let text = '';
  for (let shift = bytes.length * 8 - 5; shift >= 0; shift -= 5) text += BASE32[Number((value >> BigInt(shift)) & 31n)];
  return text;
}

function hashOf(code: string): Uint8Array {
  return createHash('sha256').update(`recovery ${code}`).digest();
}
