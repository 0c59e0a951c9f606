/**
 * Notices processes that live and do nothing: that are stopped, or run in circles.
 *
 * Hides when they are asked for a sign of life, and what a missing one is worth. Each has one question at a time to answer. While it
 * loads its code it has longer; and when the machine slept, or this process stood still itself, nobody is blamed for it. It must not
 * know what becomes of a process that is lost.
 */

import type { Clock } from '../../base/clock.ts';
import { SleepWatch } from '../../base/sleep-watch.ts';

const ASK_MS = 3000;
const MAX_MISSES = 3;
/** Until the first sign, on a machine that is busy. */
const START_MS = 60_000;

export interface Living {
  /** Resolves with its sign of life; rejects when it has ended, which is told elsewhere. */
  ask(): Promise<unknown>;
  /** It has missed its chances. Told once; it is watched no more. */
  lost(why: string): void;
}

interface Watched {
  readonly living: Living;
  since: number;
  hasAnswered: boolean;
  isAsked: boolean;
  misses: number;
}

export class LifeWatch {
  readonly #clock: Pick<Clock, 'now' | 'bootNow'>;
  readonly #sleep: SleepWatch;
  readonly #watched = new Set<Watched>();
  #timer: NodeJS.Timeout | undefined;

  constructor(clock: Pick<Clock, 'now' | 'bootNow'>) {
    this.#clock = clock;
    this.#sleep = new SleepWatch(
      () => clock.now(),
      () => clock.bootNow(),
    );
  }

  /** Watches a process that has just been started. @returns ends that */
  add(living: Living): () => void {
    const watched = { living, since: this.#clock.now(), hasAnswered: false, isAsked: false, misses: 0 };
    this.#watched.add(watched);
    return () => this.#watched.delete(watched);
  }

  start(): void {
    this.#timer ??= setInterval(() => this.look(), ASK_MS);
    this.#timer.unref();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Called every few seconds. */
  look(): void {
    const { passedMs, sleptMs } = this.#sleep.look();
    const isLate = sleptMs > 0 || passedMs > 2 * ASK_MS;
    for (const watched of this.#watched) {
      if (isLate) this.#forgive(watched);
      else if (watched.isAsked) this.#miss(watched);
      if (!watched.isAsked) this.#ask(watched);
    }
  }

  #forgive(watched: Watched): void {
    watched.misses = 0;
    watched.since = this.#clock.now();
  }

  #miss(watched: Watched): void {
    watched.misses += 1;
    const isLost = watched.hasAnswered ? watched.misses >= MAX_MISSES : this.#clock.now() - watched.since >= START_MS;
    if (!isLost) return;
    this.#watched.delete(watched);
    const forMs = watched.hasAnswered ? MAX_MISSES * ASK_MS : START_MS;
    watched.living.lost(`it has given no sign of life for ${forMs / 1000} s`);
  }

  #ask(watched: Watched): void {
    watched.isAsked = true;
    watched.living.ask().then(
      () => {
        watched.isAsked = false;
        watched.hasAnswered = true;
        watched.misses = 0;
      },
      () => {
        // The channel is closed: whoever holds it has heard.
        this.#watched.delete(watched);
      },
    );
  }
}
