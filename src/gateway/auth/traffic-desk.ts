/**
 * How much users and groups may carry: rates, shared among the workers that have their sessions and streams, and quotas.
 *
 * Hides who is told what and when. A worker hears of a user before it gets a session or a stream of that user, and again
 * when something changes; it reports about once a second, in bulk. What was carried is added to the store every few seconds:
 * a crash loses so much at most. Without a policy that speaks of rates or quotas nobody is told or counted.
 */

import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import { Repeat } from '../../base/repeat.ts';
import type { ClassRule } from '../../ip/traffic-class.ts';
import type { GroupLimit, Settings } from '../../policy/settings.ts';
import { periodsOf, type Usage, type UsageRecord } from '../../store/usage.ts';
import type { Rate } from '../../transport/pacer.ts';
import type { GroupShape, Shapes, UsageReport, UserShape, WorkerPort } from '../ipc/ports.ts';
import type { LiveSession } from './live-session.ts';
import type { ProxyCarrier } from './proxy-grants.ts';
import { judgeQuota, type QuotaState } from './quota.ts';
import { type Demand, shareRate } from './rate-shares.ts';

const TICK_MS = 1000;
/** Ticks between two additions to the store. */
const SAVE_TICKS = 5;
const FORGET_TICKS = 3600;
const BYTES_PER_MBIT = 125_000;
const LEAST_BURST_BYTES = 16 * 1024;
/** The burst that nobody has chosen, and the least that timers of a millisecond can use. */
const BURST_SECONDS = 0.02;
const LEAST_BURST_SECONDS = 0.005;
/** A part that differs by less is not worth a message. */
const CHANGE = 0.03;

/** What a policy says of somebody's traffic. */
export interface TrafficRules {
  readonly settings: Settings;
  /** Groups whose limit counts for the user. */
  readonly groups: readonly string[];
}

export interface TrafficDeskOptions {
  rulesOf(session: LiveSession): TrafficRules;
  rulesOfStreams(carrier: ProxyCarrier): TrafficRules;
  groupLimits(): ReadonlyMap<string, GroupLimit>;
  classes(): readonly ClassRule[];
  sessions(): readonly LiveSession[];
  /** Who uses the gateway as a proxy, and at which workers. */
  streams(): readonly ProxyCarrier[];
  /** These sessions have something else to tell their clients. */
  noticesChanged(sessions: readonly LiveSession[]): void;
  /** Somebody's quota is used up, and nothing more is to be carried. */
  refused(): void;
  usage: UsageRecord;
  mtu: number;
  clock: Clock;
  log: Logger;
}

interface Account {
  rules: TrafficRules;
  usage: { day: number; month: number };
  quota: QuotaState;
}

/** Some rate, and who keeps how much of it. */
interface Share {
  /** By worker, as of its last report. */
  readonly demands: Map<number, Omit<Demand, 'sessions'>>;
  /** What each worker has been told. */
  told: ReadonlyMap<number, Rate>;
  rate: Rate;
}

const NO_DEMAND = { bytesPerSecond: 0, isWaiting: false };
/** Two reports are hardly nearer. */
const LEAST_REPORT_MS = 200;

export class TrafficDesk {
  readonly #options: TrafficDeskOptions;
  readonly #log: Logger;
  readonly #workers = new Map<number, WorkerPort>();
  readonly #accounts = new Map<string, Account>();
  /** By direction, kind and name. */
  readonly #shares = new Map<string, Share>();
  /** What each worker was told of each user: its shape as text. */
  readonly #told = new Map<number, Map<string, string>>();
  readonly #repeat: Repeat;
  #known: Map<string, Usage> = new Map();
  #unsaved = new Map<string, number>();
  #periods: { readonly day: string; readonly month: string };
  /** When each worker has reported. */
  readonly #reportedAt = new Map<number, number>();
  /** What its last report is about. */
  readonly #elapsedMs = new Map<number, number>();
  #ticks = 0;

  constructor(options: TrafficDeskOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'traffic' });
    this.#periods = periodsOf(options.clock.wallNow());
    this.#repeat = new Repeat(
      TICK_MS,
      () => this.tick(),
      (error) => this.#log.error('what users have carried could not be saved; it is tried again', { error }),
    );
  }

  /** Reads what has been carried in the present periods. @throws {VpnError} ERR_STORE */
  async open(): Promise<void> {
    this.#known = await this.#options.usage.read(this.#options.clock.wallNow());
  }

  start(): void {
    this.#repeat.start();
  }

  /** Saves what is not saved yet. @throws {VpnError} ERR_STORE */
  async stop(): Promise<void> {
    await this.#repeat.stop();
    await this.#save();
  }

  connect(worker: number, port: WorkerPort): void {
    this.#workers.set(worker, port);
    this.#told.set(worker, new Map());
    const classes = this.#options.classes();
    if (classes.length > 0) port.classify(classes);
    for (const session of this.#options.sessions()) if (session.worker === worker) this.prepare(session);
    for (const carrier of this.#options.streams()) if (carrier.worker === worker) this.prepareStreams(carrier);
  }

  disconnect(worker: number): void {
    this.#workers.delete(worker);
    this.#told.delete(worker);
    for (const share of this.#shares.values()) {
      share.demands.delete(worker);
    }
  }

  /** The owner of a session is to know what its user may carry: before it hears of the session. */
  prepare(session: LiveSession): void {
    const rules = this.#options.rulesOf(session);
    const known = this.#accounts.get(session.user);
    if (known === undefined && !isLimited(rules)) return;
    this.#account(session.user, rules);
    this.#tell([session.user]);
  }

  /** The same for a worker that is to carry streams for somebody. What a session of the user has is what counts. */
  prepareStreams(carrier: ProxyCarrier): void {
    const { user } = carrier;
    if (!this.#accounts.has(user)) {
      const rules = this.#options.rulesOfStreams(carrier);
      if (!isLimited(rules)) return;
      this.#account(user, rules);
    }
    this.#tell([user]);
  }

  /** What the clients of a user are to know. */
  noticesOf(user: string): readonly string[] {
    return this.#accounts.get(user)?.quota.notices ?? [];
  }

  /** What a user has carried, of those whose quota is counted. */
  usageOf(user: string): Usage {
    return this.#accounts.get(user)?.usage ?? this.#known.get(user) ?? { day: 0, month: 0 };
  }

  /** Whether a user may carry nothing. */
  isRefused(user: string): boolean {
    return this.#accounts.get(user)?.quota.isRefused === true;
  }

  /**
   * What a worker says that users and groups have carried since its last report. It owns sessions of these users.
   *
   * @param isFirst it is the first part of a report: who is in none of them has carried nothing
   */
  report(worker: number, reports: readonly UsageReport[], isFirst: boolean): void {
    const now = this.#options.clock.now();
    const elapsedMs = Math.max(LEAST_REPORT_MS, now - (this.#reportedAt.get(worker) ?? now - TICK_MS));
    if (isFirst) {
      for (const { demands } of this.#shares.values()) demands.delete(worker);
      this.#elapsedMs.set(worker, elapsedMs);
      this.#reportedAt.set(worker, now);
    }
    const seconds = (this.#elapsedMs.get(worker) ?? TICK_MS) / 1000;
    for (const { kind, name, downBytes, upBytes, downWaits, upWaits } of reports) {
      if (kind === 'user') this.#carried(name, downBytes + upBytes);
      this.#demands(`down ${kind} ${name}`, worker, downBytes / seconds, downWaits);
      this.#demands(`up ${kind} ${name}`, worker, upBytes / seconds, upWaits);
    }
  }

  /** What ends between two reports is told by itself, and counts with the last. */
  #demands(key: string, worker: number, bytesPerSecond: number, isWaiting: boolean): void {
    const demands = this.#shares.get(key)?.demands;
    const former = demands?.get(worker) ?? NO_DEMAND;
    demands?.set(worker, {
      bytesPerSecond: former.bytesPerSecond + bytesPerSecond,
      isWaiting: former.isWaiting || isWaiting,
    });
  }

  /** A user has carried so many bytes, in packets or in streams. */
  #carried(user: string, count: number): void {
    const account = this.#accounts.get(user);
    // Whatever a worker says, the store takes whole numbers only.
    const bytes = Math.trunc(count);
    if (account === undefined || bytes <= 0) return;
    this.#unsaved.set(user, (this.#unsaved.get(user) ?? 0) + bytes);
    account.usage.day += bytes;
    account.usage.month += bytes;
  }

  /** The policy is another one, or groups have changed. */
  refresh(): void {
    const classes = this.#options.classes();
    for (const port of this.#workers.values()) port.classify(classes);
    const seen = new Set<string>();
    for (const session of this.#options.sessions()) {
      if (seen.has(session.user)) continue;
      seen.add(session.user);
      const rules = this.#options.rulesOf(session);
      if (isLimited(rules) || this.#accounts.has(session.user)) this.#account(session.user, rules);
    }
    for (const carrier of this.#options.streams()) {
      if (seen.has(carrier.user)) continue;
      seen.add(carrier.user);
      const rules = this.#options.rulesOfStreams(carrier);
      if (isLimited(rules) || this.#accounts.has(carrier.user)) this.#account(carrier.user, rules);
    }
    this.#tell([...seen]);
    this.#tellNotices(seen);
  }

  /** Looks at quotas and at who wants how much; called once a second. @throws {VpnError} ERR_STORE */
  async tick(): Promise<void> {
    const { clock } = this.#options;
    this.#ticks += 1;
    const now = clock.wallNow();
    const { day, month } = periodsOf(now);
    if (day !== this.#periods.day) {
      const isMonth = month !== this.#periods.month;
      // What was carried until now belongs to the old periods.
      await this.#save();
      this.#periods = { day, month };
      this.#known = await this.#options.usage.read(now);
      for (const { usage } of this.#accounts.values()) {
        usage.day = 0;
        if (isMonth) usage.month = 0;
      }
    }
    const sessions = this.#options.sessions();
    const users = new Set([...sessions, ...this.#options.streams()].map(({ user }) => user));
    const changed = new Set<string>();
    let isRefused = false;
    for (const [user, account] of this.#accounts) {
      const former = account.quota;
      account.quota = judgeQuota(account.rules.settings, account.usage, now);
      if (former.notices.join('\n') !== account.quota.notices.join('\n')) {
        changed.add(user);
        for (const notice of account.quota.notices) this.#log.info(notice, { user });
      }
      isRefused ||= account.quota.isRefused && !former.isRefused;
      if (users.has(user)) continue;
      this.#known.set(user, account.usage);
      this.#accounts.delete(user);
    }
    this.#tell([...this.#accounts.keys()]);
    this.#tellNotices(changed);
    if (isRefused) this.#options.refused();
    if (this.#ticks % SAVE_TICKS === 0) await this.#save();
    if (this.#ticks % FORGET_TICKS === 0) await this.#options.usage.forget(now);
  }

  #account(user: string, rules: TrafficRules): void {
    const account = this.#accounts.get(user) ?? {
      rules,
      usage: { ...(this.#known.get(user) ?? { day: 0, month: 0 }) },
      quota: judgeQuota({}, { day: 0, month: 0 }, 0),
    };
    account.rules = rules;
    account.quota = judgeQuota(rules.settings, account.usage, this.#options.clock.wallNow());
    this.#accounts.set(user, account);
  }

  /** Tells the workers what has changed for these users and all groups. */
  #tell(users: readonly string[]): void {
    if (this.#accounts.size === 0) return;
    const { mtu } = this.#options;
    const sessionsOf = this.#sessionsByName();
    const groups = new Map<number, GroupShape[]>();
    const told = new Map<number, UserShape[]>();
    for (const [group, limit] of this.#options.groupLimits()) {
      const workers = sessionsOf.get(`group ${group}`) ?? new Map();
      const down = this.#parts(`down group ${group}`, rateOf(limit.downMbit, limit, mtu), workers);
      const up = this.#parts(`up group ${group}`, rateOf(limit.upMbit, limit, mtu), workers);
      for (const worker of workers.keys()) pushTo(groups, worker, { group, ...pair(down.get(worker), up.get(worker)) });
    }
    for (const user of users) {
      const account = this.#accounts.get(user);
      if (account === undefined) continue;
      const { quota, rules } = account;
      const workers = sessionsOf.get(`user ${user}`) ?? new Map();
      const limit = quota.slowMbit === undefined ? rules.settings : slowed(rules.settings, quota.slowMbit);
      const down = this.#parts(`down user ${user}`, rateOf(limit.downMbit, limit, mtu), workers);
      const up = this.#parts(`up user ${user}`, rateOf(limit.upMbit, limit, mtu), workers);
      for (const worker of workers.keys()) {
        const rates = pair(down.get(worker), up.get(worker));
        pushTo(told, worker, { user, ...rates, groups: rules.groups, isRefused: quota.isRefused });
      }
    }
    for (const [worker, port] of this.#workers) {
      const shapes: Shapes = {
        groups: this.#news(worker, groups.get(worker) ?? [], ({ group }) => `group ${group}`),
        users: this.#news(worker, told.get(worker) ?? [], ({ user }) => `user ${user}`),
      };
      if (shapes.groups.length > 0 || shapes.users.length > 0) port.shape(shapes);
    }
  }

  /** What a worker has not been told of yet. */
  #news<T>(worker: number, shapes: readonly T[], nameOf: (shape: T) => string): T[] {
    const told = this.#told.get(worker);
    return shapes.filter((shape) => {
      const text = JSON.stringify(shape);
      if (told === undefined || told.get(nameOf(shape)) === text) return false;
      told.set(nameOf(shape), text);
      return true;
    });
  }

  /**
   * Which worker gets how much of a rate. What has hardly changed stays as it is, so that a worker is not told every second.
   *
   * @param workers their sessions
   */
  #parts(key: string, rate: Rate | undefined, workers: ReadonlyMap<number, number>): ReadonlyMap<number, Rate> {
    if (rate === undefined || workers.size === 0) {
      this.#shares.delete(key);
      return new Map();
    }
    const former = this.#shares.get(key);
    const demands = [...workers].map(
      ([worker, sessions]): Demand => ({ sessions, ...(former?.demands.get(worker) ?? NO_DEMAND) }),
    );
    const parts = shareRate(rate, demands);
    const told = new Map([...workers.keys()].map((worker, at) => [worker, parts[at] ?? rate]));
    if (former === undefined) {
      this.#shares.set(key, { demands: new Map(), told, rate });
      return told;
    }
    const isSame =
      former.rate.bytesPerSecond === rate.bytesPerSecond &&
      former.rate.burstBytes === rate.burstBytes &&
      former.told.size === told.size &&
      [...told].every(([worker, part]) => {
        const before = former.told.get(worker)?.bytesPerSecond ?? 0;
        return Math.abs(part.bytesPerSecond - before) <= CHANGE * part.bytesPerSecond;
      });
    if (!isSame) {
      former.told = told;
      former.rate = rate;
    }
    return former.told;
  }

  /** How many sessions and holders of streams each worker has of each user and group with a limit. */
  #sessionsByName(): Map<string, Map<number, number>> {
    const found = new Map<string, Map<number, number>>();
    const count = (name: string, worker: number): void => {
      const workers = found.get(name) ?? new Map<number, number>();
      workers.set(worker, (workers.get(worker) ?? 0) + 1);
      found.set(name, workers);
    };
    for (const { user, worker } of [...this.#options.sessions(), ...this.#options.streams()]) {
      const account = this.#accounts.get(user);
      if (account === undefined) continue;
      count(`user ${user}`, worker);
      for (const group of account.rules.groups) count(`group ${group}`, worker);
    }
    return found;
  }

  #tellNotices(users: ReadonlySet<string>): void {
    const concerned = this.#options.sessions().filter(({ user }) => users.has(user));
    if (concerned.length > 0) this.#options.noticesChanged(concerned);
  }

  async #save(): Promise<void> {
    if (this.#unsaved.size === 0) return;
    const saving = this.#unsaved;
    this.#unsaved = new Map();
    try {
      await this.#options.usage.add(saving, Date.parse(this.#periods.day));
    } catch (error) {
      for (const [user, bytes] of saving) this.#unsaved.set(user, (this.#unsaved.get(user) ?? 0) + bytes);
      throw error;
    }
  }
}

/** Whether anything of a user has to be counted or held back. */
function isLimited({ settings, groups }: TrafficRules): boolean {
  const { downMbit, upMbit, quotaDayGiB, quotaMonthGiB } = settings;
  return groups.length > 0 || [downMbit, upMbit, quotaDayGiB, quotaMonthGiB].some((limit) => limit !== undefined);
}

function slowed(settings: Settings, mbit: number): GroupLimit {
  const { downMbit = mbit, upMbit = mbit, burstKiB } = settings;
  return { downMbit: Math.min(downMbit, mbit), upMbit: Math.min(upMbit, mbit), burstKiB };
}

function rateOf(mbit: number | undefined, { burstKiB }: GroupLimit, mtu: number): Rate | undefined {
  if (mbit === undefined) return undefined;
  const bytesPerSecond = mbit * BYTES_PER_MBIT;
  const chosen = burstKiB === undefined ? bytesPerSecond * BURST_SECONDS : burstKiB * 1024;
  const least = Math.max(burstKiB === undefined ? LEAST_BURST_BYTES : 0, 4 * mtu, bytesPerSecond * LEAST_BURST_SECONDS);
  return { bytesPerSecond, burstBytes: Math.ceil(Math.max(chosen, least)) };
}

function pair(down: Rate | undefined, up: Rate | undefined) {
  return { ...(down === undefined ? {} : { down }), ...(up === undefined ? {} : { up }) };
}

function pushTo<T>(map: Map<number, T[]>, key: number, value: T): void {
  const list = map.get(key);
  if (list === undefined) map.set(key, [value]);
  else list.push(value);
}
