/**
 * The sessions that a gateway keeps on record, so that they survive a worker and can be listed and ended.
 *
 * Hides the table and the sealing: of a session's secrets only K_resume is stored, sealed (docs/protocol.md §14). A
 * session that has ended leaves no row, only what the audit record says. It must not know what runs the session.
 */

import type { Insertable } from 'kysely';
import type { Clock } from '../base/clock.ts';
import { VpnError } from '../base/errors.ts';
import { type Audit, AuditEvent } from './audit.ts';
import { prepare } from './prepared.ts';
import type { Schema } from './schema.ts';
import type { Queries, Store } from './store.ts';
import type { Vault } from './vault.ts';

const PURPOSE = 'session resume';

/** What identifies and bounds a session; everything but `resumeKey` may be shown to an operator. */
export interface SessionRecord {
  /** 32 hexadecimal digits. Never logged whole. */
  readonly id: string;
  readonly user: string;
  /** Device id, hexadecimal. */
  readonly device: string;
  readonly worker: number;
  readonly epoch: number;
  readonly lease4?: string | undefined;
  readonly lease6?: string | undefined;
  readonly policyGeneration: number;
  /** Address and port of the control connection. */
  readonly source: string;
  /** Milliseconds since the Unix epoch. */
  readonly openedAt: number;
  /** The absolute limit, or the end of what was proven at the login if that is before it; undefined for none. */
  readonly expiresAt?: number | undefined;
  /** What was proven at the login. */
  readonly steps: readonly string[];
  /** Id of the access token among it; empty: it was opened by a version that did not note it. */
  readonly token?: string | undefined;
  /** What both ends had agreed on. */
  readonly features: readonly string[];
  /** Networks behind its client that it offers, as text. */
  readonly networks: readonly string[];
  /** The client certificate that TLS had verified. */
  readonly certificate?: SessionCertificate | undefined;
  /** When it lost its control connection; undefined while it has one. */
  readonly detachedAt?: number | undefined;
}

export interface SessionCertificate {
  readonly name: string;
  readonly serial: string;
  readonly issuer: string;
  /** The issuer's name in short; with the serial number it says which certificate this is. */
  readonly authority: string;
  /** Milliseconds since the Unix epoch. */
  readonly notAfter: number;
}

/** A key with which a session may be resumed, and which of the keys on record it is: for the compare-and-swap. */
export interface ResumeKey {
  readonly key: Uint8Array;
  readonly version: Uint8Array;
}

/** The addresses that a device had in its last session. */
export type LastLease = Pick<SessionRecord, 'device' | 'lease4' | 'lease6'>;

export interface NewSession extends Omit<SessionRecord, 'openedAt' | 'detachedAt'> {
  /** K_resume; not kept. */
  readonly resumeKey: Uint8Array;
}

const findOwner = prepare((db, { device, user }: { device: string; user: string }) =>
  db
    .selectFrom('devices')
    .innerJoin('users', 'users.id', 'devices.user_id')
    .select('users.id')
    .where('devices.id', '=', device)
    .where('users.name', '=', user)
    .where('devices.revoked_at', 'is', null)
    .where('users.disabled_at', 'is', null),
);

const insertSession = prepare((db, row: Omit<Insertable<Schema['sessions']>, 'next_key' | 'detached_at'>) =>
  db.insertInto('sessions').values({
    id: row.id,
    user_id: row.user_id,
    device_id: row.device_id,
    worker: row.worker,
    epoch: row.epoch,
    resume_key: row.resume_key,
    next_key: null,
    steps: row.steps,
    token: row.token,
    features: row.features,
    networks: row.networks,
    certificate: row.certificate,
    detached_at: null,
    lease4: row.lease4,
    lease6: row.lease6,
    policy_generation: row.policy_generation,
    source: row.source,
    opened_at: row.opened_at,
    expires_at: row.expires_at,
  }),
);

const noteLease = prepare((db, { device_id, lease4, lease6, leased_at }: Insertable<Schema['leases']>) => {
  const lease = { lease4, lease6, leased_at };
  return db
    .insertInto('leases')
    .values({ device_id, ...lease })
    .onConflict((conflict) => conflict.column('device_id').doUpdateSet(lease));
});

const findHolder = prepare((db, { id }: { id: string }) =>
  db
    .selectFrom('sessions')
    .innerJoin('users', 'users.id', 'sessions.user_id')
    .select(['users.name as user', 'sessions.device_id as device', 'sessions.source as source'])
    .where('sessions.id', '=', id),
);

const removeSession = prepare((db, { id }: { id: string }) => db.deleteFrom('sessions').where('id', '=', id));

// All sessions of a gateway that stops are noted in one moment: each waiting for the other's turn would take seconds.
const noteDetached = prepare((db, { id, at }: { id: string; at: number }) =>
  db.updateTable('sessions').set({ detached_at: at }).where('id', '=', id).where('detached_at', 'is', null),
);

export class Sessions {
  readonly #store: Store;
  readonly #vault: Vault;
  readonly #audit: Audit;
  readonly #clock: Clock;

  constructor(parts: { store: Store; vault: Vault; audit: Audit; clock: Clock }) {
    this.#store = parts.store;
    this.#vault = parts.vault;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
  }

  /**
   * Puts a session on record.
   *
   * @throws {VpnError} ERR_AUTH_REJECTED when its user or device has been deleted, disabled or revoked meanwhile;
   *   ERR_CONFLICT when the id is taken
   */
  async open(session: NewSession): Promise<void> {
    const sealed = this.#vault.seal(PURPOSE, contextOf(session.id, session.epoch), session.resumeKey);
    await this.#store.transaction(async (db) => {
      const { rows } = await findOwner(db, session);
      const [owner] = rows;
      if (owner === undefined) {
        throw new VpnError('ERR_AUTH_REJECTED', 'the account or device of the session may not log in any more');
      }
      const now = Math.trunc(this.#clock.wallNow());
      const { id, device: device_id, worker, epoch, lease4 = null, lease6 = null, source, certificate } = session;
      await insertSession(db, {
        id,
        user_id: owner.id,
        device_id,
        worker,
        epoch,
        resume_key: sealed,
        steps: session.steps.join(),
        token: session.token ?? null,
        features: session.features.join(),
        networks: session.networks.join(),
        certificate: certificate === undefined ? null : JSON.stringify(essential(certificate)),
        lease4,
        lease6,
        policy_generation: session.policyGeneration,
        source,
        opened_at: now,
        expires_at: session.expiresAt ?? null,
      });
      await noteLease(db, { device_id, lease4, lease6, leased_at: now });
      await this.#audit.append({ ...describe(session), event: AuditEvent.sessionOpened }, db);
    });
  }

  /** The sessions on record, oldest first; of one user or device when given. */
  async list(filter: { user?: string; device?: string } = {}): Promise<SessionRecord[]> {
    let select = this.#store.db
      .selectFrom('sessions')
      .innerJoin('users', 'users.id', 'sessions.user_id')
      .selectAll('sessions')
      .select('users.name as user')
      .orderBy('sessions.opened_at')
      .orderBy('sessions.id');
    if (filter.user !== undefined) select = select.where('users.name', '=', filter.user);
    if (filter.device !== undefined) select = select.where('sessions.device_id', '=', filter.device);
    const rows = await select.execute();
    return rows.map((row) => ({
      id: row.id,
      user: row.user,
      device: row.device_id,
      worker: row.worker,
      epoch: Number(row.epoch),
      lease4: row.lease4 ?? undefined,
      lease6: row.lease6 ?? undefined,
      policyGeneration: Number(row.policy_generation),
      source: row.source,
      openedAt: Number(row.opened_at),
      expiresAt: row.expires_at === null ? undefined : Number(row.expires_at),
      steps: splitList(row.steps),
      token: row.token ?? undefined,
      features: splitList(row.features),
      networks: splitList(row.networks),
      certificate: parseCertificate(row.certificate),
      detachedAt: row.detached_at === null ? undefined : Number(row.detached_at),
    }));
  }

  /** The users whose account has expired and who have a session on record. */
  async expiredUsers(): Promise<string[]> {
    const rows = await this.#store.db
      .selectFrom('users')
      .select('name')
      .where('expires_at', '<=', Math.trunc(this.#clock.wallNow()))
      .where(({ exists, selectFrom }) =>
        exists(selectFrom('sessions').select('sessions.id').whereRef('sessions.user_id', '=', 'users.id')),
      )
      .execute();
    return rows.map(({ name }) => name);
  }

  /** What each device leased last, the longest ago first. */
  async lastLeases(): Promise<LastLease[]> {
    const rows = await this.#store.db
      .selectFrom('leases')
      .selectAll()
      .orderBy('leased_at')
      .orderBy('device_id')
      .execute();
    return rows.map(({ device_id, lease4, lease6 }) => ({
      device: device_id,
      lease4: lease4 ?? undefined,
      lease6: lease6 ?? undefined,
    }));
  }

  /**
   * K_resume of an epoch that may still resume: the one that the client has confirmed last, or the next.
   *
   * @throws {VpnError} ERR_SESSION_UNKNOWN; ERR_SESSION_REPLACED for an older epoch; ERR_STORE when it does not unseal
   */
  async resumeKey(id: string, epoch: number): Promise<ResumeKey> {
    const version = await versionOf(this.#store.db, id, epoch);
    return { key: this.#vault.unseal(PURPOSE, contextOf(id, epoch), version), version };
  }

  /**
   * A resume of `epoch` is granted: K_resume of the epoch after it goes on record, beside the one that was proven. A next
   * key that was never confirmed is forgotten; one that was proven by this resume is confirmed by it.
   *
   * @param proven the version that was proven
   * @returns the version of `next`
   * @throws {VpnError} ERR_SESSION_REPLACED when another resume has come between; ERR_SESSION_UNKNOWN; ERR_STORE
   */
  async propose(id: string, epoch: number, proven: Uint8Array, next: Uint8Array): Promise<Uint8Array> {
    const sealed = this.#vault.seal(PURPOSE, contextOf(id, epoch + 1), next);
    await this.#store.transaction(async (db) => {
      const present = await versionOf(db, id, epoch);
      if (Buffer.compare(present, proven) !== 0) throw superseded();
      await db
        .updateTable('sessions')
        .set({ epoch, resume_key: present, next_key: sealed })
        .where('id', '=', id)
        .execute();
    });
    return sealed;
  }

  /**
   * The client has proven the key of this version: it is the only one from now on. Of all that were proposed for an epoch
   * one can be confirmed.
   *
   * @param epoch the epoch of that key
   * @param isRekey the client says that it only changes its connection: where it does so from the same address, that is not
   *   worth a line in the audit record every hour
   * @throws {VpnError} ERR_SESSION_REPLACED, ERR_STORE
   */
  async confirm(id: string, epoch: number, version: Uint8Array, source: string, isRekey = false): Promise<void> {
    await this.#store.transaction(async (db) => {
      const former = isRekey
        ? await db.selectFrom('sessions').select('source').where('id', '=', id).executeTakeFirst()
        : undefined;
      const { numUpdatedRows } = await db
        .updateTable('sessions')
        .set({ epoch, resume_key: version, next_key: null, source, detached_at: null })
        .where('id', '=', id)
        .where('epoch', '=', epoch - 1)
        .where('next_key', '=', version)
        .executeTakeFirst();
      if (numUpdatedRows !== 1n) throw superseded();
      if (former !== undefined && addressOf(former.source ?? '') === addressOf(source)) return;
      const row = await db
        .selectFrom('sessions')
        .innerJoin('users', 'users.id', 'sessions.user_id')
        .select(['users.name as user', 'sessions.device_id as device'])
        .where('sessions.id', '=', id)
        .executeTakeFirstOrThrow();
      await this.#audit.append({ ...describe({ ...row, id, source }), event: AuditEvent.sessionResumed }, db);
    });
  }

  /** It has lost its control connection, and waits for its client from now on. */
  async detach(id: string): Promise<void> {
    await noteDetached(this.#store.db, { id, at: Math.trunc(this.#clock.wallNow()) });
  }

  /**
   * Takes a session off the record; tells whether it was on it.
   *
   * @param reason a close reason, such as `admin`
   */
  async end(id: string, reason: string): Promise<boolean> {
    return this.#store.transaction(async (db) => {
      const { rows } = await findHolder(db, { id });
      const [row] = rows;
      if (row === undefined) return false;
      await removeSession(db, { id });
      await this.#audit.append({ ...describe({ ...row, id }), event: AuditEvent.sessionEnded, reason }, db);
      return true;
    });
  }
}

/** @throws {VpnError} ERR_SESSION_UNKNOWN, ERR_SESSION_REPLACED */
async function versionOf(db: Queries, id: string, epoch: number): Promise<Uint8Array> {
  const row = await db
    .selectFrom('sessions')
    .select(['epoch', 'resume_key', 'next_key'])
    .where('id', '=', id)
    .executeTakeFirst();
  const present = Number(row?.epoch);
  if (row !== undefined && epoch === present) return row.resume_key;
  if (row !== undefined && epoch === present + 1 && row.next_key !== null) return row.next_key;
  if (epoch < present) throw superseded();
  throw new VpnError('ERR_SESSION_UNKNOWN', 'there is no such session or epoch');
}

function superseded(): VpnError {
  return new VpnError('ERR_SESSION_REPLACED', 'the session has been resumed by another connection meanwhile');
}

function parseCertificate(text: string | null): SessionCertificate | undefined {
  const parsed: unknown = text === null ? undefined : JSON.parse(text);
  if (typeof parsed !== 'object' || parsed === null) return undefined;
  const [name = '', serial = '', issuer = '', authority = ''] = ['name', 'serial', 'issuer', 'authority'].map((key) =>
    String(Reflect.get(parsed, key) ?? ''),
  );
  return {
    name,
    serial,
    issuer,
    authority,
    notAfter: Number(Reflect.get(parsed, 'notAfter') ?? Number.POSITIVE_INFINITY),
  };
}

/** Without what else a verdict may have rested on. */
function essential({ name, serial, issuer, authority, notAfter }: SessionCertificate): SessionCertificate {
  return { name, serial, issuer, authority, notAfter };
}

function splitList(list: string): string[] {
  return list === '' ? [] : list.split(',');
}

/** A key of one epoch must not open as that of another. */
function contextOf(id: string, epoch: number): string {
  return `${id} ${epoch}`;
}

function describe(session: { id: string; user: string; device: string; source: string }) {
  return {
    user: session.user,
    device: session.device,
    source: session.source,
    detail: { session: session.id.slice(0, 8) },
  };
}

/** Of an address and a port. */
function addressOf(endpoint: string): string {
  return endpoint.slice(0, endpoint.lastIndexOf(':'));
}
