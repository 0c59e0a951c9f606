/**
 * The rates and classes that the packets of a worker's sessions keep, and the rates of its streams; what their users have
 * carried.
 *
 * Hides buckets: one for each direction of a user and of a group, shared by all their sessions and streams here. What they
 * may hold is auth's to say. Sessions and streams of users whom nobody limits are not looked at.
 */

import { type ClassRule, TrafficClasses } from '../../ip/traffic-class.ts';
import { Pacer, type Rate, TokenBucket } from '../../transport/pacer.ts';
import type { QueueBudget } from '../../transport/queue-budget.ts';
import type { StreamPace } from '../../transport/stream-pace.ts';
import type { GroupShape, Shapes, UsageReport, UserShape } from '../ipc/ports.ts';
import type { Session } from './session.ts';

/** A user without a session is forgotten after so many reports: one may be on its way. */
const KEPT_REPORTS = 60;

interface Buckets {
  down: TokenBucket | undefined;
  up: TokenBucket | undefined;
  /** As of the last report. */
  downWaits: number;
  upWaits: number;
  downUsed: number;
  upUsed: number;
}

/** A stream of somebody who uses the gateway as a proxy. */
export interface RatedStream {
  readonly user: string;
  readonly pace: StreamPace;
  /** To the client and from it, so far. */
  bytes(): { readonly sentBytes: number; readonly receivedBytes: number };
}

interface User {
  readonly buckets: Buckets;
  groups: readonly string[];
  isRefused: boolean;
  readonly sessions: Set<Session>;
  readonly streams: Set<RatedStream>;
  /** Bytes of sessions and streams that are over, and what was reported of all. */
  pastDown: number;
  pastUp: number;
  toldDown: number;
  toldUp: number;
  idleReports: number;
}

export interface ShapingOptions {
  mtu: number;
  queueBytes: number;
  queues: QueueBudget;
}

export class Shaping {
  readonly #options: ShapingOptions;
  readonly #users = new Map<string, User>();
  readonly #groups = new Map<string, Buckets>();
  readonly #sessions = new Set<Session>();
  readonly #streams = new Set<RatedStream>();
  #classes: TrafficClasses | undefined;

  constructor(options: ShapingOptions) {
    this.#options = options;
  }

  /** A session is here. */
  opened(session: Session): void {
    this.#sessions.add(session);
    const user = this.#users.get(session.user);
    user?.sessions.add(session);
    if (user !== undefined || this.#classes !== undefined) this.#apply(session, user);
  }

  /** A session is here no more. @returns what its user has carried since the last report, to be told before its end is */
  closed(session: Session): UsageReport[] {
    this.#sessions.delete(session);
    session.link.close();
    const user = this.#users.get(session.user);
    if (user === undefined || !user.sessions.has(session)) return [];
    const reports: UsageReport[] = [];
    addReport(reports, { kind: 'user', name: session.user, ...carriedBy(user), downWaits: false, upWaits: false });
    user.sessions.delete(session);
    user.pastDown += session.link.counters.sentBytes;
    user.pastUp += session.link.counters.receivedBytes;
    return reports;
  }

  /** A stream is here. */
  streamOpened(stream: RatedStream): void {
    this.#streams.add(stream);
    const user = this.#users.get(stream.user);
    if (user === undefined) return;
    user.streams.add(stream);
    this.#paceStream(stream, user);
  }

  /** A stream is here no more. Idempotent. @returns what its user has carried since the last report, as `closed` */
  streamClosed(stream: RatedStream): UsageReport[] {
    if (!this.#streams.delete(stream)) return [];
    stream.pace.close();
    const user = this.#users.get(stream.user);
    if (user === undefined || !user.streams.delete(stream)) return [];
    const { sentBytes, receivedBytes } = stream.bytes();
    user.pastDown += sentBytes;
    user.pastUp += receivedBytes;
    const reports: UsageReport[] = [];
    addReport(reports, { kind: 'user', name: stream.user, ...carriedBy(user), downWaits: false, upWaits: false });
    return reports;
  }

  shape({ groups, users }: Shapes): void {
    for (const shape of groups) this.#shapeGroup(shape);
    for (const shape of users) this.#shapeUser(shape);
  }

  classify(rules: readonly ClassRule[]): void {
    if (rules.length === 0 && this.#classes === undefined) return;
    this.#classes = new TrafficClasses(rules);
    for (const session of this.#sessions) this.#apply(session, this.#users.get(session.user));
  }

  /** What has been carried since the last time, of whoever has carried something or had to wait. */
  report(): UsageReport[] {
    const reports: UsageReport[] = [];
    for (const [name, user] of this.#users) {
      addReport(reports, { kind: 'user', name, ...carriedBy(user), ...waitsOf(user.buckets) });
      user.idleReports = user.sessions.size + user.streams.size > 0 ? 0 : user.idleReports + 1;
      if (user.idleReports > KEPT_REPORTS) this.#users.delete(name);
    }
    for (const [name, buckets] of this.#groups) {
      const downUsed = buckets.down?.usedBytes ?? 0;
      const upUsed = buckets.up?.usedBytes ?? 0;
      const downBytes = Math.max(0, downUsed - buckets.downUsed);
      const upBytes = Math.max(0, upUsed - buckets.upUsed);
      buckets.downUsed = downUsed;
      buckets.upUsed = upUsed;
      addReport(reports, { kind: 'group', name, downBytes, upBytes, ...waitsOf(buckets) });
    }
    return reports;
  }

  #shapeGroup({ group, down, up }: GroupShape): void {
    const buckets = this.#groups.get(group) ?? noBuckets();
    this.#groups.set(group, buckets);
    const isOther = setRates(buckets, down, up);
    if (!isOther) return;
    for (const user of this.#users.values()) {
      if (user.groups.includes(group)) this.#applyAll(user);
    }
  }

  #shapeUser({ user: name, down, up, groups, isRefused }: UserShape): void {
    const user = this.#users.get(name) ?? this.#newUser(name);
    const isOther =
      setRates(user.buckets, down, up) ||
      user.isRefused !== isRefused ||
      user.groups.join('\n') !== groups.join('\n') ||
      !this.#users.has(name);
    this.#users.set(name, user);
    user.groups = groups;
    user.isRefused = isRefused;
    if (isOther) this.#applyAll(user);
  }

  #applyAll(user: User): void {
    for (const session of user.sessions) this.#apply(session, user);
    for (const stream of user.streams) this.#paceStream(stream, user);
  }

  #newUser(name: string): User {
    const sessions = new Set([...this.#sessions].filter(({ user }) => user === name));
    const streams = new Set([...this.#streams].filter(({ user }) => user === name));
    const counted = [
      ...[...sessions].map(({ link }) => link.counters),
      ...[...streams].map((stream) => stream.bytes()),
    ];
    return {
      buckets: noBuckets(),
      groups: [],
      isRefused: false,
      sessions,
      streams,
      pastDown: 0,
      pastUp: 0,
      // What they have carried before anybody counted does not count.
      toldDown: counted.reduce((sum, { sentBytes }) => sum + sentBytes, 0),
      toldUp: counted.reduce((sum, { receivedBytes }) => sum + receivedBytes, 0),
      idleReports: 0,
    };
  }

  #apply({ link }: Session, user: User | undefined): void {
    const all = user === undefined ? [] : this.#bucketsOf(user);
    const { mtu, queueBytes, queues } = this.#options;
    link.shape({
      sending: pacerOf(
        all.map(({ down }) => down),
        mtu,
      ),
      receiving: pacerOf(
        all.map(({ up }) => up),
        mtu,
      ),
      classes: this.#classes,
      isRefused: user?.isRefused === true,
      queueBytes,
      queues,
    });
  }

  #paceStream({ pace }: RatedStream, user: User): void {
    const all = this.#bucketsOf(user);
    const { mtu } = this.#options;
    pace.down.pacer = pacerOf(
      all.map(({ down }) => down),
      mtu,
    );
    pace.up.pacer = pacerOf(
      all.map(({ up }) => up),
      mtu,
    );
  }

  #bucketsOf({ buckets, groups }: User): Buckets[] {
    return [buckets, ...groups.flatMap((group) => this.#groups.get(group) ?? [])];
  }
}

function noBuckets(): Buckets {
  return { down: undefined, up: undefined, downWaits: 0, upWaits: 0, downUsed: 0, upUsed: 0 };
}

/** @returns whether there is another bucket, or one less */
function setRates(buckets: Buckets, down: Rate | undefined, up: Rate | undefined): boolean {
  const before = [buckets.down, buckets.up];
  buckets.down = bucketOf(buckets.down, down);
  buckets.up = bucketOf(buckets.up, up);
  return buckets.down !== before[0] || buckets.up !== before[1];
}

function bucketOf(bucket: TokenBucket | undefined, rate: Rate | undefined): TokenBucket | undefined {
  if (rate === undefined) return undefined;
  if (bucket === undefined) return new TokenBucket(rate);
  bucket.change(rate);
  return bucket;
}

function pacerOf(buckets: readonly (TokenBucket | undefined)[], mtu: number): Pacer | undefined {
  const some = buckets.filter((bucket) => bucket !== undefined);
  return some.length === 0 ? undefined : new Pacer(some, mtu);
}

/** Since it was asked the last time. */
function carriedBy(user: User): { downBytes: number; upBytes: number } {
  let down = user.pastDown;
  let up = user.pastUp;
  for (const { link } of user.sessions) {
    down += link.counters.sentBytes;
    up += link.counters.receivedBytes;
  }
  for (const stream of user.streams) {
    const { sentBytes, receivedBytes } = stream.bytes();
    down += sentBytes;
    up += receivedBytes;
  }
  const carried = { downBytes: down - user.toldDown, upBytes: up - user.toldUp };
  user.toldDown = down;
  user.toldUp = up;
  return carried;
}

function waitsOf(buckets: Buckets): { downWaits: boolean; upWaits: boolean } {
  const down = buckets.down?.waits ?? 0;
  const up = buckets.up?.waits ?? 0;
  const waits = { downWaits: down !== buckets.downWaits, upWaits: up !== buckets.upWaits };
  buckets.downWaits = down;
  buckets.upWaits = up;
  return waits;
}

function addReport(reports: UsageReport[], report: UsageReport): void {
  if (report.downBytes > 0 || report.upBytes > 0 || report.downWaits || report.upWaits) reports.push(report);
}
