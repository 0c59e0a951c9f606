/**
 * Work that can wait, done a little in each turn of the event loop.
 *
 * Hides how much that is. Where thousands of things happen at once, such as the end of all connections, what each of them costs
 * adds up to a second in which nothing else is done. Here it is done in order, for a millisecond at a time, and what cannot wait goes
 * on in between. Must not know what the work is.
 */

/** Of one turn. Longer than most turns without such work, and too short to be felt. */
const BUDGET_MS = 1;
/** So much that is done is dropped together: where work is added all the time, there is no end at which it could be. */
const DROPPED = 256;

export class Chores {
  readonly #now: () => number;
  #queue: (() => void)[] = [];
  #next = 0;
  #isScheduled = false;

  /** @param now monotonic milliseconds */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** How much waits. */
  get size(): number {
    return this.#queue.length - this.#next;
  }

  /** To be done behind all that waits, in a later phase of this turn at the soonest. What it throws is an uncaught exception. */
  add(work: () => void): void {
    this.#queue.push(work);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    setImmediate(() => {
      this.#isScheduled = false;
      this.#work();
    });
  }

  #work(): void {
    const until = this.#now() + BUDGET_MS;
    do {
      const work = this.#queue[this.#next];
      if (work === undefined) {
        this.#queue = [];
        this.#next = 0;
        return;
      }
      this.#next += 1;
      if (this.#next >= DROPPED && this.#next * 2 >= this.#queue.length) {
        this.#queue = this.#queue.slice(this.#next);
        this.#next = 0;
      }
      // In case that this work throws.
      this.#schedule();
      work();
    } while (this.#now() < until);
  }
}
