/**
 * Devices: the keys that clients made, and whose they are.
 *
 * Hides the table and the two key algorithms. A device is known by its public key; revoking it revokes that key for good,
 * whatever token comes with it later. It must not know how a login goes.
 */

import { createPublicKey, type KeyObject, verify } from 'node:crypto';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import type { DeviceAlgorithm } from '../protocol/messages.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Store } from '../store/store.ts';
import { normaliseName, parseLabel } from './names.ts';

/** `enrolling`: has not logged in with its key yet; `pending`: waits for an operator. */
export type DeviceState = 'enrolling' | 'pending' | 'active' | 'revoked';

/** Times are milliseconds since the Unix epoch. */
export interface Device {
  /** 32 hexadecimal digits: the first 16 bytes of the SHA-256 of its public key. */
  readonly id: string;
  readonly user: string;
  /** What the client calls its machine. */
  readonly name: string;
  readonly algorithm: DeviceAlgorithm;
  readonly state: DeviceState;
  readonly createdAt: number;
  readonly lastSeenAt: number | undefined;
}

export class Devices {
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;

  constructor(parts: { store: Store; audit: Audit; clock: Clock }) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
  }

  /** Every device, or those of one user, oldest first. */
  async list(user?: string): Promise<Device[]> {
    let select = this.#store.db
      .selectFrom('devices')
      .innerJoin('users', 'users.id', 'devices.user_id')
      .selectAll('devices')
      .select('users.name as user')
      .orderBy('devices.created_at')
      .orderBy('devices.id');
    if (user !== undefined) select = select.where('users.name', '=', normaliseName(user) ?? '');
    const rows = await select.execute();
    return rows.map((row) => ({
      id: row.id,
      user: row.user,
      name: row.name,
      algorithm: row.algorithm,
      state: stateOf(row),
      createdAt: Number(row.created_at),
      lastSeenAt: row.last_seen_at === null ? undefined : Number(row.last_seen_at),
    }));
  }

  /** @throws {VpnError} ERR_NOT_FOUND */
  async show(id: string): Promise<Device> {
    const device = (await this.list()).find((candidate) => candidate.id === id.toLowerCase());
    if (device === undefined) throw noDevice(id);
    return device;
  }

  /** Lets a pending device in. @throws {VpnError} ERR_NOT_FOUND; ERR_CONFLICT when it is revoked */
  async approve(id: string): Promise<void> {
    const device = await this.show(id);
    if (device.state === 'revoked') {
      throw new VpnError('ERR_CONFLICT', `device ${device.id} is revoked; make a new profile for a new key`);
    }
    await this.#set(device, 'approved_at', AuditEvent.deviceApproved);
  }

  /** Gives a device another name. @returns it. @throws {VpnError} ERR_NOT_FOUND, ERR_BAD_REQUEST */
  async rename(id: string, text: string): Promise<Device> {
    const device = await this.show(id);
    const name = parseLabel('device', text);
    await this.#store.transaction(async (db) => {
      await db.updateTable('devices').set({ name }).where('id', '=', device.id).execute();
      const detail = { from: device.name, to: name };
      await this.#audit.append({ event: AuditEvent.deviceRenamed, user: device.user, device: device.id, detail }, db);
    });
    return { ...device, name };
  }

  /** Refuses the device's key from now on; again is no error. @throws {VpnError} ERR_NOT_FOUND */
  async revoke(id: string): Promise<void> {
    await this.#set(await this.show(id), 'revoked_at', AuditEvent.deviceRevoked);
    this.#store.sync();
  }

  async #set(device: Device, column: 'approved_at' | 'revoked_at', event: AuditEvent): Promise<void> {
    await this.#store.transaction(async (db) => {
      const { numUpdatedRows } = await db
        .updateTable('devices')
        .set({ [column]: Math.trunc(this.#clock.wallNow()) })
        .where('id', '=', device.id)
        .where(column, 'is', null)
        .executeTakeFirst();
      if (numUpdatedRows > 0n) await this.#audit.append({ event, user: device.user, device: device.id }, db);
    });
  }
}

/** What the DER of a public key starts with; the rest is the key. One encoding for one key, so one id for one device. */
const SPKI_PREFIX: Readonly<Record<DeviceAlgorithm, Uint8Array>> = {
  // SEQUENCE { SEQUENCE { ecPublicKey, prime256v1 }, BIT STRING { 04 (uncompressed), x(32), y(32) } }
  p256: Uint8Array.fromHex('3059301306072a8648ce3d020106082a8648ce3d03010703420004'),
  // SEQUENCE { SEQUENCE { Ed25519 }, BIT STRING { key(32) } }
  ed25519: Uint8Array.fromHex('302a300506032b6570032100'),
};
const KEY_BYTES: Readonly<Record<DeviceAlgorithm, number>> = { p256: 64, ed25519: 32 };

/** Reads a device's public key (SubjectPublicKeyInfo, DER); undefined when it is not one of that algorithm. */
export function parseDeviceKey(algorithm: DeviceAlgorithm, spki: Uint8Array): KeyObject | undefined {
  const prefix = SPKI_PREFIX[algorithm];
  if (spki.length !== prefix.length + KEY_BYTES[algorithm]) return undefined;
  if (!prefix.every((byte, index) => spki[index] === byte)) return undefined;
  try {
    return createPublicKey({ key: Buffer.from(spki), format: 'der', type: 'spki' });
  } catch {
    return undefined;
  }
}

/** Keys that are kept ready. Beyond it the one that was needed longest ago is read again when it is. */
const MAX_READY_KEYS = 4096;

/** Reads keys of devices, and keeps those that were needed last ready: reading one costs a quarter of verifying with it. */
export class DeviceKeys {
  readonly #ready = new Map<string, { readonly encoded: Uint8Array; readonly key: KeyObject | undefined }>();

  /**
   * As `parseDeviceKey`. It takes the time of reading when `device` is asked for with this key for the first time, whoever
   * that is: also for those who do not exist, with whatever key stands for them.
   */
  read(device: string, algorithm: DeviceAlgorithm, spki: Uint8Array): KeyObject | undefined {
    const id = `${algorithm} ${device}`;
    let entry = this.#ready.get(id);
    this.#ready.delete(id);
    if (entry === undefined || Buffer.compare(entry.encoded, spki) !== 0) {
      entry = { encoded: Uint8Array.from(spki), key: parseDeviceKey(algorithm, spki) };
    }
    this.#ready.set(id, entry);
    const [oldest] = this.#ready.keys();
    if (this.#ready.size > MAX_READY_KEYS && oldest !== undefined) this.#ready.delete(oldest);
    return entry.key;
  }
}

/** Checks a device's signature: r‖s with SHA-256 for P-256, or Ed25519; 64 bytes either way. */
export function verifyDeviceSignature(
  algorithm: DeviceAlgorithm,
  key: KeyObject,
  signed: Uint8Array,
  signature: Uint8Array,
): boolean {
  return algorithm === 'p256'
    ? verify('sha256', signed, { key, dsaEncoding: 'ieee-p1363' }, signature)
    : verify(null, signed, key, signature);
}

function stateOf(row: {
  revoked_at: number | null;
  approved_at: number | null;
  first_login_at: number | null;
}): DeviceState {
  if (row.revoked_at !== null) return 'revoked';
  if (row.approved_at === null) return 'pending';
  return row.first_login_at === null ? 'enrolling' : 'active';
}

function noDevice(id: string): VpnError {
  return new VpnError('ERR_NOT_FOUND', `there is no device ${JSON.stringify(id.slice(0, 40))}`);
}
