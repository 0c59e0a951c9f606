/**
 * Tries ways to a server one after the other, and beside each other where one hangs (RFC 8305).
 *
 * Hides the timing: the next way is tried when one fails, or a quarter of a second after one began that has not got through yet;
 * one that has got through is given time to finish alone. The first that finishes wins, the others are called off. It must not
 * know what a way is.
 *
 * @see RFC 8305 §5, §8
 */

/** RFC 8305 §8: how long an attempt runs alone before the next one starts beside it. */
export const ATTEMPT_DELAY_MS = 250;
/** How long one that has got through is alone: a handshake takes a few round trips. */
const FINISH_MS = 2000;

/** Ways to try, which may still be found while the first are tried. */
export class Ways<T> {
  readonly #waiting: T[] = [];
  readonly #seen = new Set<T>();
  #isComplete = false;
  #onMore: () => void = () => {};

  /** Adds ways behind those that wait; one that was there before is left out. */
  add(ways: Iterable<T>): void {
    for (const way of ways) {
      if (this.#seen.has(way)) continue;
      this.#seen.add(way);
      this.#waiting.push(way);
    }
    this.#onMore();
  }

  /** No more will come. */
  complete(): void {
    this.#isComplete = true;
    this.#onMore();
  }

  get isComplete(): boolean {
    return this.#isComplete;
  }

  take(): T | undefined {
    return this.#waiting.shift();
  }

  /** Calls back when there is more, or never will be. */
  whenMore(callback: () => void): void {
    this.#onMore = callback;
  }
}

/** What an attempt may say and hear. */
export interface Attempt {
  /** The other end has answered. */
  gotThrough(): void;
  /** Another attempt has won, or all are called off. */
  readonly signal: AbortSignal;
}

/**
 * Resolves with what the first attempt that succeeds gives.
 *
 * @param attempt must clean up after itself when it fails or is called off
 * @param allFailed makes one error of those of all attempts, which is then thrown
 */
export function race<W, T>(
  ways: Ways<W>,
  attempt: (way: W, control: Attempt) => Promise<T>,
  allFailed: (failures: readonly { way: W; error: unknown }[]) => unknown,
): { readonly winner: Promise<T>; callOff(): void } {
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const failures: { way: W; error: unknown }[] = [];
  const running = new Set<AbortController>();
  let delay: NodeJS.Timeout | undefined;
  let isOver = false;

  const finish = (): void => {
    isOver = true;
    clearTimeout(delay);
    for (const controller of running) controller.abort();
  };
  const start = (): void => {
    if (isOver) return;
    clearTimeout(delay);
    const way = ways.take();
    if (way === undefined) {
      if (running.size === 0 && ways.isComplete) {
        finish();
        reject(allFailed(failures));
      }
      return;
    }
    const controller = new AbortController();
    running.add(controller);
    delay = setTimeout(start, ATTEMPT_DELAY_MS);
    const gotThrough = (): void => {
      if (isOver) return;
      clearTimeout(delay);
      delay = setTimeout(start, FINISH_MS);
    };
    attempt(way, { gotThrough, signal: controller.signal }).then(
      (result) => {
        running.delete(controller);
        finish();
        resolve(result);
      },
      (error: unknown) => {
        running.delete(controller);
        if (isOver) return;
        failures.push({ way, error });
        start();
      },
    );
  };
  ways.whenMore(() => {
    if (running.size === 0) start();
  });
  start();
  return { winner: promise, callOff: finish };
}
