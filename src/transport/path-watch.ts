/**
 * Chooses the congestion control of a connection that carries packets.
 *
 * Hides when a path is *near*. Connections begin with BBR, which does not take loss for congestion and keeps queues short
 * (docs/decisions/0011-congestion-control-by-path.md). BBR sends by a timer of the kernel's; where the peer is in the same
 * machine or rack, nothing is lost and gigabits flow, the timer is what limits, and halves the throughput. There the
 * connection changes to Reno until the path looks otherwise. Must not know what is sent.
 *
 * Costs an addition per write; the path is looked at once in 4 MiB, and by a timer only while it is near.
 */

import type { PathFacts } from '../os/socket.ts';

/** `TcpPath` of `os/socket.ts` is one. */
export interface WatchedPath {
  read(facts: PathFacts): boolean;
  readonly congestion: string;
  use(congestion: string): boolean;
}

const FAR = 'bbr';
/** In every kernel, and allowed to every user. At these round trips it recovers from a loss within a few milliseconds. */
const NEAR = 'reno';

const REVIEW_BYTES = 4 * 1024 * 1024;
/** So many reviews in a row must find the path near; doubled each time that it turns out not to be. */
const REVIEWS_BEFORE_NEAR = 3;
const MAX_REVIEWS_BEFORE_NEAR = 1024;
const NEAR_MIN_RTT_MS = 1;
/** With what waits in the kernels on the way and with a busy peer. */
const NEAR_RTT_MS = 5;
const NEAR_BYTES_PER_MS = 50_000;
const NEAR_RESENT = 1 / 1000;
/** Below this, one repetition would decide. */
const FEW_SEGMENTS = 3000;

const TICK_MS = 100;
/** So many ticks in a row must find the path far: a peer that is busy for a moment looks like one. */
const TICKS_BEFORE_FAR = 3;

export class PathWatch {
  readonly #path: WatchedPath;
  readonly #now: () => number;
  readonly #facts: PathFacts = { rttMs: 0, minRttMs: 0, sentSegments: 0, resentSegments: 0, ackedBytes: 0 };
  #unreviewed = 0;
  #since: number;
  #sentSegments = 0;
  #resentSegments = 0;
  #reviewsLeft = REVIEWS_BEFORE_NEAR;
  #reviewsNeeded = REVIEWS_BEFORE_NEAR;
  #ticksLeft = TICKS_BEFORE_FAR;
  #timer: NodeJS.Timeout | undefined;
  #isChoosing: boolean;

  /** @param now monotonic milliseconds */
  constructor(path: WatchedPath, now: () => number = () => performance.now()) {
    this.#path = path;
    this.#now = now;
    this.#since = now();
    // A kernel without BBR has nothing to choose between.
    this.#isChoosing = path.congestion === FAR;
  }

  /** Whether the path is taken for near. */
  get isNear(): boolean {
    return this.#timer !== undefined;
  }

  /** Told of every write. */
  wrote(bytes: number): void {
    this.#unreviewed += bytes;
    if (this.#unreviewed >= REVIEW_BYTES && this.#isChoosing && this.#timer === undefined) this.#review();
  }

  /** Idempotent. */
  close(): void {
    this.#isChoosing = false;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  #review(): void {
    this.#reviewsLeft = this.#looksNear() ? this.#reviewsLeft - 1 : this.#reviewsNeeded;
    if (this.#reviewsLeft > 0) return;
    if (!this.#path.use(NEAR)) {
      this.close();
      return;
    }
    this.#ticksLeft = TICKS_BEFORE_FAR;
    this.#timer = setInterval(() => this.#handleTick(), TICK_MS);
    this.#timer.unref();
  }

  #handleTick(): void {
    this.#ticksLeft = this.#looksNear() ? TICKS_BEFORE_FAR : this.#ticksLeft - 1;
    if (this.#ticksLeft > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    // Where the kernel does not allow the way back, what is there stays: nothing else can be done.
    this.#isChoosing = this.#path.use(FAR);
    this.#reviewsNeeded = Math.min(2 * this.#reviewsNeeded, MAX_REVIEWS_BEFORE_NEAR);
    this.#reviewsLeft = this.#reviewsNeeded;
  }

  /** Judges what was sent since the last look. */
  #looksNear(): boolean {
    const bytes = this.#unreviewed;
    this.#unreviewed = 0;
    const now = this.#now();
    const elapsedMs = now - this.#since;
    this.#since = now;
    const facts = this.#facts;
    if (!this.#path.read(facts)) return false;
    const sent = facts.sentSegments - this.#sentSegments;
    const resent = facts.resentSegments - this.#resentSegments;
    this.#sentSegments = facts.sentSegments;
    this.#resentSegments = facts.resentSegments;
    return (
      bytes >= elapsedMs * NEAR_BYTES_PER_MS &&
      facts.minRttMs <= NEAR_MIN_RTT_MS &&
      facts.rttMs <= NEAR_RTT_MS &&
      resent <= Math.max(sent, FEW_SEGMENTS) * NEAR_RESENT
    );
  }
}
