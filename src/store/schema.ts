/**
 * The tables, as the queries see them, and the migrations that make them.
 *
 * Hides nothing: this is the one description of what is stored. Times are milliseconds since the Unix epoch; a nullable
 * time says at once whether and when. Identifiers made from bytes are lower-case hexadecimal. A migration that has been
 * released is never changed; a new one is appended. They are portable: `bytea` is a type in PostgreSQL and a name that
 * SQLite ignores; only triggers and the order of names are written for each.
 */

import { type ColumnType, type Kysely, PostgresAdapter, sql } from 'kysely';
import type { Migration } from 'kysely/migration';

export type DeviceAlgorithm = 'p256' | 'ed25519';

export interface Schema {
  users: {
    /** 16 random bytes; survives a change of name. */
    id: string;
    name: string;
    created_at: number;
    disabled_at: number | null;
    /** From this moment on no login is accepted. */
    expires_at: number | null;
    /** The outside source that the account comes from, as the configuration names it; null for an account of ours. */
    source: ColumnType<string | null, string | null | undefined, string | null>;
  };
  user_groups: { user_id: string; name: string };
  devices: {
    /** First 16 bytes of the SHA-256 of `public_key`. */
    id: string;
    user_id: string;
    /** What the client calls its machine; for people only. */
    name: string;
    algorithm: DeviceAlgorithm;
    /** SubjectPublicKeyInfo, DER. */
    public_key: Uint8Array;
    created_at: number;
    /** Null while an operator has not said yes. */
    approved_at: number | null;
    /** The first login with the device's own key after enrolment. */
    first_login_at: number | null;
    last_seen_at: number | null;
    revoked_at: number | null;
  };
  usage: {
    /** Name of the user. */
    account: string;
    /** A day (`2026-11-26`) or a month (`2026-11`), UTC. */
    period: string;
    bytes: number;
  };
  passwords: {
    user_id: string;
    /** PHC string: algorithm, parameters, salt and hash. */
    phc: string;
    set_at: number;
  };
  totp_secrets: {
    user_id: string;
    /** Sealed. */
    secret: Uint8Array;
    created_at: number;
    /** The last 30-second step that was used: no code of it or of an earlier one is taken again. */
    last_step: number;
  };
  recovery_codes: {
    user_id: string;
    /** SHA-256 of the code. */
    hash: Uint8Array;
    used_at: number | null;
  };
  access_tokens: {
    /** The token's 8 public bytes. */
    id: string;
    /** SHA-256 of the whole token. */
    hash: Uint8Array;
    user_id: string;
    /** What it is for; for people only. */
    name: string;
    /** What it opens, space-separated. */
    scopes: string;
    created_at: number;
    /** Null: never. */
    expires_at: number | null;
    last_used_at: number | null;
    revoked_at: number | null;
  };
  passkeys: {
    /** First 16 bytes of the SHA-256 of the authenticator's id. */
    id: string;
    user_id: string;
    /** For people only. */
    name: string;
    /** The host of the page that it is for. */
    host: string;
    /** SubjectPublicKeyInfo, DER. */
    public_key: Uint8Array;
    /** The authenticator's count at the last use; 0: it keeps none. */
    use_count: number;
    created_at: number;
    last_used_at: number | null;
  };
  enrolment_tokens: {
    /** The token's 8 public bytes. */
    id: string;
    /** SHA-256 of the whole token. */
    hash: Uint8Array;
    user_id: string;
    created_at: number;
    expires_at: number;
    /** 1: the device it enrols waits for an operator. */
    needs_approval: number;
    bound_device: string | null;
    bound_at: number | null;
    bound_source: string | null;
    /** The bound device has logged in with its own key: nobody may use the token again. */
    spent_at: number | null;
  };
  sessions: {
    id: string;
    user_id: string;
    device_id: string;
    worker: number;
    epoch: number;
    /** K_resume of `epoch`, sealed. */
    resume_key: Uint8Array;
    /** K_resume of the epoch after it, sealed, once a resume has been granted that the client has not confirmed yet. */
    next_key: Uint8Array | null;
    /** What was proven at the login, separated by commas. */
    steps: ColumnType<string, string | undefined, string>;
    /** Id of the access token among it; empty in rows from before this was noted. */
    token: ColumnType<string | null, string | null | undefined, string | null>;
    /** What both ends had agreed on, separated by commas. */
    features: ColumnType<string, string | undefined, string>;
    /** Networks behind its client that it offers, separated by commas. */
    networks: ColumnType<string, string | undefined, string>;
    /** The client certificate as JSON: name, serial, issuer, the issuer in short, end. */
    certificate: string | null;
    /** When it lost its control connection; null while it has one. */
    detached_at: number | null;
    lease4: string | null;
    lease6: string | null;
    policy_generation: number;
    source: string;
    opened_at: number;
    expires_at: number | null;
  };
  /** What each device leased last, so that it gets the same again after a restart. */
  leases: {
    device_id: string;
    lease4: string | null;
    lease6: string | null;
    leased_at: number;
  };
  /** What an outside source gave us with which we ask about an account later. */
  source_grants: {
    /** As the configuration names it. */
    source: string;
    /** The account's name, as `users.name`; the row may be older than the user. */
    account: string;
    /** Sealed. */
    sealed: Uint8Array;
    saved_at: number;
  };
  /** Failed logins that make somebody wait. */
  login_failures: {
    /** `source`, `name` or `device`. */
    kind: string;
    /** The source, the name as it was typed (nobody need have it), or the device id. */
    key: string;
    failures: number;
    /** Nobody gets in before. */
    held_until: number;
    /** 1: banned, not only delayed. */
    banned: number;
    forget_at: number;
  };
  /** How far a webhook has got in the audit record. */
  webhook_progress: {
    /** As the configuration names it. */
    webhook: string;
    /** Id of the last record that needs no more work; empty: none. */
    after_id: string;
  };
  /** Records that a webhook was not told of, and will not be unless somebody asks for it. */
  webhook_dead: {
    webhook: string;
    /** Id of the record. */
    record_id: string;
    died_at: number;
    tries: number;
    why: string;
  };
  /** The rules in force when the gateway last looked, by their key in the configuration. */
  policy: {
    key: string;
    /** JSON. */
    value: string;
  };
  /** Policies that were in force. */
  policy_versions: {
    version: number;
    at: number;
    /** Who put it in force; null: it was read from the file. */
    by: string | null;
    /** SHA-256 of its text, hexadecimal. */
    digest: string;
    note: string;
    /** Null: it was too long to be kept. */
    text: string | null;
  };
  audit: {
    /** Sorts by time, then by order of writing. */
    id: string;
    at: number;
    event: string;
    user: string | null;
    device: string | null;
    source: string | null;
    /** The true reason of a refusal, which the peer is not told. */
    reason: string | null;
    /** Further facts, JSON object of strings and numbers. */
    detail: string;
  };
  /** Up to where rows of the audit record may be removed. */
  audit_retention: {
    /** `*`: whatever the event. */
    event: string;
    before_id: string;
  };
}

/** In the order in which they are applied; the names sort that way. */
export const MIGRATIONS: Readonly<Record<string, Migration>> = {
  '0001_first': { up: first },
  '0002_leases': { up: leases },
  '0003_credentials': { up: credentials },
  '0004_resume': { up: resume },
  '0005_failures': { up: failures },
  '0007_sources': { up: sources },
  '0008_append_only': { up: appendOnly },
  '0009_policy': { up: policy },
  '0010_usage': { up: usage },
  '0011_audit_retention': { up: auditRetention },
  '0012_webhooks': { up: webhooks },
  '0013_policy_versions': { up: policyVersions },
  '0014_passkeys': { up: passkeys },
  '0015_session_token': { up: sessionToken },
  '0016_networks': { up: networks },
};

async function first(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('users')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('name', 'text', (column) => column.notNull().unique())
    .addColumn('created_at', 'bigint', (column) => column.notNull())
    .addColumn('disabled_at', 'bigint')
    .addColumn('expires_at', 'bigint')
    .execute();

  await db.schema
    .createTable('user_groups')
    .addColumn('user_id', 'text', (column) => column.notNull().references('users.id').onDelete('cascade'))
    .addColumn('name', 'text', (column) => column.notNull())
    .addPrimaryKeyConstraint('user_groups_key', ['user_id', 'name'])
    .execute();

  await db.schema
    .createTable('devices')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('user_id', 'text', (column) => column.notNull().references('users.id').onDelete('cascade'))
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('algorithm', 'text', (column) => column.notNull())
    .addColumn('public_key', 'bytea', (column) => column.notNull())
    .addColumn('created_at', 'bigint', (column) => column.notNull())
    .addColumn('approved_at', 'bigint')
    .addColumn('first_login_at', 'bigint')
    .addColumn('last_seen_at', 'bigint')
    .addColumn('revoked_at', 'bigint')
    .execute();
  await db.schema.createIndex('devices_user').on('devices').column('user_id').execute();

  await db.schema
    .createTable('enrolment_tokens')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('hash', 'bytea', (column) => column.notNull())
    .addColumn('user_id', 'text', (column) => column.notNull().references('users.id').onDelete('cascade'))
    .addColumn('created_at', 'bigint', (column) => column.notNull())
    .addColumn('expires_at', 'bigint', (column) => column.notNull())
    .addColumn('needs_approval', 'integer', (column) => column.notNull())
    .addColumn('bound_device', 'text')
    .addColumn('bound_at', 'bigint')
    .addColumn('bound_source', 'text')
    .addColumn('spent_at', 'bigint')
    .execute();
  await db.schema.createIndex('enrolment_tokens_device').on('enrolment_tokens').column('bound_device').execute();
  await db.schema.createIndex('enrolment_tokens_user').on('enrolment_tokens').column('user_id').execute();

  await db.schema
    .createTable('sessions')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('user_id', 'text', (column) => column.notNull().references('users.id').onDelete('cascade'))
    .addColumn('device_id', 'text', (column) => column.notNull().references('devices.id').onDelete('cascade'))
    .addColumn('worker', 'integer', (column) => column.notNull())
    .addColumn('epoch', 'bigint', (column) => column.notNull())
    .addColumn('resume_key', 'bytea', (column) => column.notNull())
    .addColumn('lease4', 'text')
    .addColumn('lease6', 'text')
    .addColumn('policy_generation', 'bigint', (column) => column.notNull())
    .addColumn('source', 'text', (column) => column.notNull())
    .addColumn('opened_at', 'bigint', (column) => column.notNull())
    .addColumn('expires_at', 'bigint')
    .execute();
  await db.schema.createIndex('sessions_user').on('sessions').column('user_id').execute();
  await db.schema.createIndex('sessions_device').on('sessions').column('device_id').execute();

  await db.schema
    .createTable('audit')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('at', 'bigint', (column) => column.notNull())
    .addColumn('event', 'text', (column) => column.notNull())
    .addColumn('user', 'text')
    .addColumn('device', 'text')
    .addColumn('source', 'text')
    .addColumn('reason', 'text')
    .addColumn('detail', 'text', (column) => column.notNull())
    .execute();
  await db.schema.createIndex('audit_at').on('audit').column('at').execute();

  // By their bytes, as SQLite does, whatever the language of the server.
  if (isPostgres(db)) {
    for (const table of ['users', 'user_groups']) {
      await sql`alter table ${sql.table(table)} alter column name type text collate "C"`.execute(db);
    }
  }
}

async function leases(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('leases')
    .addColumn('device_id', 'text', (column) => column.primaryKey().references('devices.id').onDelete('cascade'))
    .addColumn('lease4', 'text')
    .addColumn('lease6', 'text')
    .addColumn('leased_at', 'bigint', (column) => column.notNull())
    .execute();
}

async function failures(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('login_failures')
    .addColumn('kind', 'text', (column) => column.notNull())
    .addColumn('key', 'text', (column) => column.notNull())
    .addColumn('failures', 'integer', (column) => column.notNull())
    .addColumn('held_until', 'bigint', (column) => column.notNull())
    .addColumn('banned', 'integer', (column) => column.notNull())
    .addColumn('forget_at', 'bigint', (column) => column.notNull())
    .addPrimaryKeyConstraint('login_failures_key', ['kind', 'key'])
    .execute();
  await db.schema.createIndex('login_failures_forget').on('login_failures').column('forget_at').execute();
}

async function sources(db: Kysely<unknown>): Promise<void> {
  await db.schema.alterTable('users').addColumn('source', 'text').execute();
  await db.schema
    .createTable('source_grants')
    .addColumn('source', 'text', (column) => column.notNull())
    .addColumn('account', 'text', (column) => column.notNull())
    .addColumn('sealed', 'bytea', (column) => column.notNull())
    .addColumn('saved_at', 'bigint', (column) => column.notNull())
    .addPrimaryKeyConstraint('source_grants_key', ['source', 'account'])
    .execute();
}

async function credentials(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('passwords')
    .addColumn('user_id', 'text', (column) => column.primaryKey().references('users.id').onDelete('cascade'))
    .addColumn('phc', 'text', (column) => column.notNull())
    .addColumn('set_at', 'bigint', (column) => column.notNull())
    .execute();

  await db.schema
    .createTable('totp_secrets')
    .addColumn('user_id', 'text', (column) => column.primaryKey().references('users.id').onDelete('cascade'))
    .addColumn('secret', 'bytea', (column) => column.notNull())
    .addColumn('created_at', 'bigint', (column) => column.notNull())
    .addColumn('last_step', 'bigint', (column) => column.notNull())
    .execute();

  await db.schema
    .createTable('recovery_codes')
    .addColumn('user_id', 'text', (column) => column.notNull().references('users.id').onDelete('cascade'))
    .addColumn('hash', 'bytea', (column) => column.notNull())
    .addColumn('used_at', 'bigint')
    .addPrimaryKeyConstraint('recovery_codes_key', ['user_id', 'hash'])
    .execute();

  await db.schema
    .createTable('access_tokens')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('hash', 'bytea', (column) => column.notNull())
    .addColumn('user_id', 'text', (column) => column.notNull().references('users.id').onDelete('cascade'))
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('scopes', 'text', (column) => column.notNull())
    .addColumn('created_at', 'bigint', (column) => column.notNull())
    .addColumn('expires_at', 'bigint')
    .addColumn('last_used_at', 'bigint')
    .addColumn('revoked_at', 'bigint')
    .execute();
  await db.schema.createIndex('access_tokens_user').on('access_tokens').column('user_id').execute();
}

/** What it takes to resume a session: its next key, what it rests on, and since when it waits for its client. */
async function resume(db: Kysely<unknown>): Promise<void> {
  const table = db.schema.alterTable('sessions');
  await table.addColumn('next_key', 'bytea').execute();
  await table.addColumn('steps', 'text', (column) => column.notNull().defaultTo('')).execute();
  await table.addColumn('features', 'text', (column) => column.notNull().defaultTo('')).execute();
  await table.addColumn('certificate', 'text').execute();
  await table.addColumn('detached_at', 'bigint').execute();
}

async function policy(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('policy')
    .addColumn('key', 'text', (column) => column.primaryKey())
    .addColumn('value', 'text', (column) => column.notNull())
    .execute();
}

async function usage(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('usage')
    .addColumn('account', 'text', (column) => column.notNull())
    .addColumn('period', 'text', (column) => column.notNull())
    .addColumn('bytes', 'bigint', (column) => column.notNull())
    .addPrimaryKeyConstraint('usage_key', ['account', 'period'])
    .execute();
}

async function webhooks(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('webhook_progress')
    .addColumn('webhook', 'text', (column) => column.primaryKey())
    .addColumn('after_id', 'text', (column) => column.notNull())
    .execute();
  await db.schema
    .createTable('webhook_dead')
    .addColumn('webhook', 'text', (column) => column.notNull())
    .addColumn('record_id', 'text', (column) => column.notNull())
    .addColumn('died_at', 'bigint', (column) => column.notNull())
    .addColumn('tries', 'integer', (column) => column.notNull())
    .addColumn('why', 'text', (column) => column.notNull())
    .addPrimaryKeyConstraint('webhook_dead_key', ['webhook', 'record_id'])
    .execute();
}

async function networks(db: Kysely<unknown>): Promise<void> {
  const table = db.schema.alterTable('sessions');
  await table.addColumn('networks', 'text', (column) => column.notNull().defaultTo('')).execute();
}

/** Rows of the audit record are appended and read, by whomever, with whatever program. */
async function appendOnly(db: Kysely<unknown>): Promise<void> {
  if (isPostgres(db)) {
    await sql`
      create function audit_refuse() returns trigger language plpgsql as
      $$ begin raise exception 'the audit record is append-only'; end $$
    `.execute(db);
    await sql`
      create trigger audit_append_only before update or delete or truncate on audit
      for each statement execute function audit_refuse()
    `.execute(db);
    return;
  }
  for (const change of ['update', 'delete']) {
    await sql
      .raw(
        `create trigger audit_no_${change} before ${change} on audit begin select raise(abort, 'the audit record is append-only'); end`,
      )
      .execute(db);
  }
}

/** Rows of the audit record may go once the same database says so; nothing else of them may change. */
async function auditRetention(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('audit_retention')
    .addColumn('event', 'text', (column) => column.primaryKey())
    .addColumn('before_id', 'text', (column) => column.notNull())
    .execute();
  if (isPostgres(db)) {
    await sql`drop trigger audit_append_only on audit`.execute(db);
    await sql`
      create trigger audit_append_only before update or truncate on audit
      for each statement execute function audit_refuse()
    `.execute(db);
    await sql`
      create function audit_let_go() returns trigger language plpgsql as
      $$ begin
        if exists (
          select 1 from audit_retention
          where event in ('*', old.event) and old.id collate "C" < before_id collate "C"
        ) then return old; end if;
        raise exception 'the audit record is append-only';
      end $$
    `.execute(db);
    await sql`
      create trigger audit_no_delete before delete on audit for each row execute function audit_let_go()
    `.execute(db);
    return;
  }
  await sql`drop trigger audit_no_delete`.execute(db);
  await sql
    .raw(
      `create trigger audit_no_delete before delete on audit
      when not exists (select 1 from audit_retention where event in ('*', old.event) and old.id < before_id)
      begin select raise(abort, 'the audit record is append-only'); end`,
    )
    .execute(db);
}

async function passkeys(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('passkeys')
    .addColumn('id', 'text', (column) => column.primaryKey())
    .addColumn('user_id', 'text', (column) => column.notNull().references('users.id').onDelete('cascade'))
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('host', 'text', (column) => column.notNull())
    .addColumn('public_key', 'bytea', (column) => column.notNull())
    .addColumn('use_count', 'bigint', (column) => column.notNull())
    .addColumn('created_at', 'bigint', (column) => column.notNull())
    .addColumn('last_used_at', 'bigint')
    .execute();
  await db.schema.createIndex('passkeys_user').on('passkeys').column('user_id').execute();
}

async function policyVersions(db: Kysely<unknown>): Promise<void> {
  await db.schema
    .createTable('policy_versions')
    .addColumn('version', 'bigint', (column) => column.primaryKey())
    .addColumn('at', 'bigint', (column) => column.notNull())
    .addColumn('by', 'text')
    .addColumn('digest', 'text', (column) => column.notNull())
    .addColumn('note', 'text', (column) => column.notNull())
    .addColumn('text', 'text')
    .execute();
}

async function sessionToken(db: Kysely<unknown>): Promise<void> {
  await db.schema.alterTable('sessions').addColumn('token', 'text').execute();
  await sql`update sessions set token = '' where ',' || steps || ',' like '%,token,%'`.execute(db);
}

function isPostgres(db: Kysely<unknown>): boolean {
  return db.getExecutor().adapter instanceof PostgresAdapter;
}
