/**
 * Bounds what a slow connection has on the way.
 *
 * Hides how much that may be. BBR keeps little on the way, but takes the burst that a token bucket lets through after a
 * pause for the path's bandwidth, fills the router's buffer with it and needs ten round trips, which it has itself made
 * long, to notice. So no more is given to the kernel than the path has been seen to deliver in a few of its own round trips
 * and some time: more than BBR needs, less than such buffers hold. Must not know sockets or queues.
 */

import type { PathFacts } from '../os/socket.ts';

/** A loss is repaired within that; until then what has arrived behind it counts as on the way. */
const ROUND_TRIPS = 3;
/** Acknowledgements that wait for the air, or behind what flows the other way, lengthen a round trip that is short by so much. */
const SLACK_MS = 25;
const LEAST_BYTES = 64 * 1024;
/** The path's round trip is the least, its rate the greatest of so many periods: BBR remembers a round trip as long. */
const PERIODS = 10;
const PERIOD_MS = 1000;
const REVIEW_MS = 100;
/** A connection that is always busy would take its own queue for the path: now and then it keeps so little for so long. */
const PROBE_EVERY_MS = 8000;
const PROBE_MS = 200;
const PROBE_PART = 8;

/** One connection's. */
export class FlightLimit {
  readonly #read: (facts: PathFacts) => boolean;
  readonly #facts: PathFacts = { rttMs: 0, minRttMs: 0, sentSegments: 0, resentSegments: 0, ackedBytes: 0 };
  readonly #roundTrips = new Float64Array(PERIODS).fill(Number.POSITIVE_INFINITY);
  readonly #rates = new Float64Array(PERIODS);
  #period = 0;
  #reviewedAt = Number.NEGATIVE_INFINITY;
  #ackedBytes = 0;
  #probeAt = Number.POSITIVE_INFINITY;
  #bytes = Number.POSITIVE_INFINITY;

  /** @param read asked ten times a second at most; false when the kernel tells nothing */
  constructor(read: (facts: PathFacts) => boolean) {
    this.#read = read;
  }

  /** How many bytes may be on the way. @param now monotonic milliseconds */
  bytes(now: number): number {
    if (now - this.#reviewedAt >= REVIEW_MS) this.#review(now);
    return now < this.#probeAt ? this.#bytes : this.#bytes / PROBE_PART;
  }

  #review(now: number): void {
    const facts = this.#facts;
    const isFirst = this.#reviewedAt === Number.NEGATIVE_INFINITY;
    const elapsed = now - this.#reviewedAt;
    this.#reviewedAt = now;
    if (isFirst || now >= this.#probeAt + PROBE_MS) this.#probeAt = now + PROBE_EVERY_MS;
    if (!this.#read(facts)) {
      this.#bytes = Number.POSITIVE_INFINITY;
      return;
    }
    const index = this.#turn(now);
    // The first look may come when the buffers are already full; later, what the kernel remembers may be long past.
    const roundTrip = isFirst ? facts.minRttMs : facts.rttMs;
    if (roundTrip > 0 && roundTrip < (this.#roundTrips[index] ?? 0)) this.#roundTrips[index] = roundTrip;
    if (!isFirst) {
      const rate = (facts.ackedBytes - this.#ackedBytes) / elapsed;
      if (rate > (this.#rates[index] ?? 0)) this.#rates[index] = rate;
    }
    this.#ackedBytes = facts.ackedBytes;
    let path = Number.POSITIVE_INFINITY;
    let rate = 0;
    for (let at = 0; at < PERIODS; at++) {
      path = Math.min(path, this.#roundTrips[at] ?? path);
      rate = Math.max(rate, this.#rates[at] ?? 0);
    }
    this.#bytes = isFirst ? Number.POSITIVE_INFINITY : Math.max(LEAST_BYTES, rate * (ROUND_TRIPS * path + SLACK_MS));
  }

  /** Forgets the periods that are long past; returns where the present one is kept. */
  #turn(now: number): number {
    const period = Math.floor(now / PERIOD_MS);
    for (let at = Math.max(this.#period + 1, period - PERIODS + 1); at <= period; at++) {
      this.#roundTrips[at % PERIODS] = Number.POSITIVE_INFINITY;
      this.#rates[at % PERIODS] = 0;
    }
    this.#period = period;
    return period % PERIODS;
  }
}
