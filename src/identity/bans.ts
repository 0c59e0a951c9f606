/**
 * Failed logins: who has to wait, who is banned, and until when.
 *
 * Hides the counting, its bounds and the table that lets it survive a restart. Three things are counted apart: a *source*
 * of strangers; a *name* that strangers typed, whether anybody has it or not; a *device* that has proven its key, which
 * answers for itself alone, so that strangers who type a name never lock its owner's devices out. After some failures each
 * further one makes the next login wait, twice as long each time, and in the end there is a ban. It must not know steps,
 * connections, nor what an address looks like.
 */

import type { Clock } from '../base/clock.ts';
import { type Audit, AuditEvent } from '../store/audit.ts';
import type { Store } from '../store/store.ts';
import { normaliseName } from './names.ts';

export type BanKind = 'source' | 'name' | 'device';

export interface BanPolicy {
  /** From this failure on each one makes the next login wait. */
  readonly delayAfter: number;
  /** Failures of strangers with one name, or of one device, that make a ban. */
  readonly failuresPerUser: number;
  /** Failures of strangers from one source that make a ban. */
  readonly failuresPerSource: number;
  readonly banSeconds: number;
  /** Whether nothing is counted and nobody refused from this address. */
  isExempt(address: string): boolean;
}

/** What is held against somebody. */
export interface Ban {
  readonly kind: BanKind;
  /** A source, a name, or a device id. */
  readonly key: string;
  readonly failures: number;
  /** Milliseconds since the Unix epoch. */
  readonly until: number;
  /** Otherwise the next login only has to wait. */
  readonly banned: boolean;
}

export interface BanParts {
  readonly store: Store;
  readonly audit: Audit;
  readonly clock: Clock;
  /** What of an address counts as one source. */
  readonly sourceOf: (address: string) => string;
}

/** Who wants in. */
export interface Applicant {
  /** Address and port. */
  readonly remote: string;
  /** As it was typed. */
  readonly name: string | undefined;
  /** The device whose key was proven, of the user it claims to be. */
  readonly device: string | undefined;
}

/** One login on its way to a verdict; `end` is called exactly once. */
export interface Trial {
  /** Why it must be refused whatever it proves; for the record. */
  readonly refused: string | undefined;
  /** @throws {VpnError} ERR_STORE; it is counted all the same */
  end(outcome: 'failed' | 'accepted' | 'none'): Promise<void>;
}

interface Tally {
  readonly kind: BanKind;
  readonly key: string;
  failures: number;
  /** Nobody gets in before. */
  until: number;
  banned: boolean;
  forgetAt: number;
}

const FIRST_DELAY_MS = 1000;
const MAX_DELAY_MS = 60_000;
/** Of each weight. Beyond it the one that failed longest ago is forgotten. */
const MAX_TALLIES = 10_000;

export const DEFAULT_BAN_POLICY: BanPolicy = {
  delayAfter: 3,
  failuresPerUser: 10,
  failuresPerSource: 30,
  banSeconds: 900,
  isExempt: () => false,
};

export class Bans {
  policy: BanPolicy = DEFAULT_BAN_POLICY;
  /** Told of every ban that begins. */
  onBan: (ban: Ban) => void = () => undefined;
  readonly #store: Store;
  readonly #audit: Audit;
  readonly #clock: Clock;
  readonly #sourceOf: (address: string) => string;
  /** Too few failures to be held against anybody. Apart, so that many of these do not displace those that are. */
  readonly #light = new Map<string, Tally>();
  /** In the table, too. */
  readonly #heavy = new Map<string, Tally>();
  /** Logins without a verdict yet: guesses made at the same time must not pass for one. */
  readonly #pending = new Map<string, number>();

  /**
   * Takes up what was held before a restart.
   *
   * @throws {VpnError} ERR_STORE
   */
  static async open(parts: BanParts): Promise<Bans> {
    const bans = new Bans(parts);
    await bans.#load();
    return bans;
  }

  private constructor(parts: BanParts) {
    this.#store = parts.store;
    this.#audit = parts.audit;
    this.#clock = parts.clock;
    this.#sourceOf = parts.sourceOf;
  }

  /** How many tallies are kept in memory. */
  get size(): number {
    return this.#light.size + this.#heavy.size;
  }

  /** Whether connections from this address are refused unread. Costs a look-up or two. */
  isRefused(address: string): boolean {
    if (this.#heavy.size === 0) return false;
    const tally = this.#find(idOf('source', this.#sourceOf(address)));
    return tally?.banned === true && tally.until > this.#now() && !this.policy.isExempt(address);
  }

  /** Asked before the verdict on a login. */
  begin({ remote, name, device }: Applicant): Trial {
    const address = addressOf(remote);
    if (this.policy.isExempt(address)) return { refused: undefined, end: async () => undefined };
    const typed = normaliseName(name ?? '');
    const source = { kind: 'source', key: this.#sourceOf(address) } as const;
    const own: { kind: BanKind; key: string }[] = [];
    if (device !== undefined) own.push({ kind: 'device', key: device });
    else if (typed !== undefined) own.push({ kind: 'name', key: typed });
    const all = device === undefined ? [source, ...own] : own;
    const refused = all.map((one) => this.#whyHeld(one)).find((why) => why !== undefined);
    // Whoever is held tells nothing of a name by trying on, only of the source.
    const counted = refused === undefined ? all : all.filter(({ kind }) => kind === 'source');
    const ids = refused === undefined ? own.map(({ kind, key }) => idOf(kind, key)) : [];
    for (const id of ids) this.#pending.set(id, (this.#pending.get(id) ?? 0) + 1);
    return {
      refused,
      end: async (outcome) => {
        for (const id of ids) {
          const left = (this.#pending.get(id) ?? 1) - 1;
          if (left === 0) this.#pending.delete(id);
          else this.#pending.set(id, left);
        }
        if (outcome === 'failed') await this.#count(counted, remote);
        // The source stays as it is: who has an account could else guess at others' between two logins of their own.
        if (outcome === 'accepted') for (const { kind, key } of own) await this.#forget(idOf(kind, key));
      },
    };
  }

  /** All that is held against somebody at this moment, bans first. */
  list(): Ban[] {
    const now = this.#now();
    return [...this.#heavy.values()]
      .filter(({ until }) => until > now)
      .map(banOf)
      .toSorted((a, b) => Number(b.banned) - Number(a.banned) || b.until - a.until);
  }

  /**
   * Forgets the failures with a name, and those of these devices; returns whether anything was held.
   *
   * @throws {VpnError} ERR_STORE
   */
  async unlock(name: string, devices: readonly string[]): Promise<boolean> {
    const ids = [idOf('name', name), ...devices.map((device) => idOf('device', device))];
    return await this.#lift(ids, { user: name });
  }

  /**
   * Forgets the failures of a source, given as one of its addresses or as `list` shows it; returns whether there was any.
   *
   * @throws {VpnError} ERR_STORE
   */
  async unban(source: string): Promise<boolean> {
    const key = this.#sourceOf(source.toLowerCase().replace(/\/64$/, ''));
    return await this.#lift([idOf('source', key)], { source: key });
  }

  async #lift(ids: readonly string[], whom: { user?: string; source?: string }): Promise<boolean> {
    const held = ids.filter((id) => this.#find(id) !== undefined);
    for (const id of held) await this.#forget(id);
    if (held.length > 0) await this.#audit.append({ event: AuditEvent.banLifted, ...whom });
    return held.length > 0;
  }

  #whyHeld({ kind, key }: { kind: BanKind; key: string }): string | undefined {
    const id = idOf(kind, key);
    const tally = this.#find(id);
    if (tally !== undefined && tally.until > this.#now()) {
      const what = tally.banned ? 'is banned' : 'has to wait';
      return `the ${kind} ${key} ${what} until ${new Date(tally.until).toISOString()} after ${tally.failures} failed logins`;
    }
    const pending = this.#pending.get(id) ?? 0;
    if (pending > 0 && (tally?.failures ?? 0) + pending >= this.#delayAfter(kind)) {
      return `the ${kind} ${key} has ${pending} logins under way after ${tally?.failures ?? 0} failed ones`;
    }
    return undefined;
  }

  async #count(whom: readonly { kind: BanKind; key: string }[], remote: string): Promise<void> {
    // All of it in memory first: a store that fails must not open a door.
    const tallies = whom.map(({ kind, key }) => this.#add(kind, key));
    for (const { tally, isHeld, begins } of tallies) {
      if (isHeld) await this.#save(tally);
      if (begins) await this.#record(tally, remote);
    }
  }

  #add(kind: BanKind, key: string): { tally: Tally; isHeld: boolean; begins: boolean } {
    const { failuresPerSource, failuresPerUser, banSeconds } = this.policy;
    const delayAfter = this.#delayAfter(kind);
    const id = idOf(kind, key);
    const now = this.#now();
    const tally = this.#find(id) ?? { kind, key, failures: 0, until: 0, banned: false, forgetAt: 0 };
    const wasBanned = tally.banned && tally.until > now;
    tally.failures += 1;
    const isBanned = tally.failures >= (kind === 'source' ? failuresPerSource : failuresPerUser);
    if (isBanned) {
      tally.banned = true;
      tally.until = now + banSeconds * 1000;
    } else if (tally.failures >= delayAfter) {
      const delay = Math.min(FIRST_DELAY_MS * 2 ** (tally.failures - delayAfter), MAX_DELAY_MS);
      tally.until = Math.max(tally.until, now + delay);
    }
    tally.forgetAt = Math.max(tally.until, now) + banSeconds * 1000;
    const isHeld = isBanned || tally.failures >= delayAfter;
    this.#light.delete(id);
    this.#heavy.delete(id);
    (isHeld ? this.#heavy : this.#light).set(id, tally);
    const [oldest] = this.#light.keys();
    if (this.#light.size > MAX_TALLIES && oldest !== undefined) this.#light.delete(oldest);
    return { tally, isHeld, begins: isBanned && !wasBanned };
  }

  /** Several people share a source: in proportion to its bound. */
  #delayAfter(kind: BanKind): number {
    const { delayAfter, failuresPerSource, failuresPerUser } = this.policy;
    return kind === 'source' ? Math.ceil((delayAfter * failuresPerSource) / failuresPerUser) : delayAfter;
  }

  async #record(tally: Tally, remote: string): Promise<void> {
    const ban = banOf(tally);
    this.onBan(ban);
    await this.#audit.append({
      event: AuditEvent.banBegun,
      ...(tally.kind === 'name' ? { user: tally.key } : {}),
      ...(tally.kind === 'device' ? { device: tally.key } : {}),
      source: tally.kind === 'source' ? tally.key : remote,
      reason: `${tally.failures} failed logins`,
      detail: { kind: tally.kind, until: new Date(tally.until).toISOString() },
    });
  }

  async #save({ kind, key, failures, until, banned, forgetAt }: Tally): Promise<void> {
    const row = { failures, held_until: until, banned: banned ? 1 : 0, forget_at: forgetAt };
    const displaced = this.#displaced();
    await this.#store.transaction(async (db) => {
      await db.deleteFrom('login_failures').where('forget_at', '<=', this.#now()).execute();
      for (const old of displaced) {
        await db.deleteFrom('login_failures').where('kind', '=', old.kind).where('key', '=', old.key).execute();
      }
      await db
        .insertInto('login_failures')
        .values({ kind, key, ...row })
        .onConflict((conflict) => conflict.columns(['kind', 'key']).doUpdateSet(row))
        .execute();
    });
  }

  /** Takes out of memory what is too much there. */
  #displaced(): Tally[] {
    const displaced: Tally[] = [];
    for (const [id, tally] of this.#heavy) {
      if (this.#heavy.size <= MAX_TALLIES) break;
      this.#heavy.delete(id);
      displaced.push(tally);
    }
    return displaced;
  }

  async #forget(id: string): Promise<void> {
    this.#light.delete(id);
    const tally = this.#heavy.get(id);
    if (tally === undefined) return;
    this.#heavy.delete(id);
    const { kind, key } = tally;
    await this.#store.db.deleteFrom('login_failures').where('kind', '=', kind).where('key', '=', key).execute();
  }

  #find(id: string): Tally | undefined {
    const tally = this.#heavy.get(id) ?? this.#light.get(id);
    return tally !== undefined && tally.forgetAt > this.#now() ? tally : undefined;
  }

  async #load(): Promise<void> {
    const rows = await this.#store.db
      .selectFrom('login_failures')
      .selectAll()
      .where('forget_at', '>', this.#now())
      .orderBy('forget_at', 'desc')
      .limit(MAX_TALLIES)
      .execute();
    for (const row of rows.reverse()) {
      const kind = row.kind as BanKind;
      this.#heavy.set(idOf(kind, row.key), {
        kind,
        key: row.key,
        failures: Number(row.failures),
        until: Number(row.held_until),
        banned: Number(row.banned) === 1,
        forgetAt: Number(row.forget_at),
      });
    }
  }

  #now(): number {
    return Math.trunc(this.#clock.wallNow());
  }
}

function idOf(kind: BanKind, key: string): string {
  return `${kind} ${key}`;
}

function banOf({ kind, key, failures, until, banned }: Tally): Ban {
  return { kind, key, failures, until, banned };
}

/** Without the port. */
function addressOf(remote: string): string {
  const match = /^\[(.*)\]:\d+$|^(.*?):\d+$/.exec(remote);
  return match?.[1] ?? match?.[2] ?? remote;
}
