/**
 * The way of a gateway to its end: its clients are asked to move to another one, until none is left or the time is over.
 *
 * Hides the deadline, which a change of the time of day does not move, and when the end has come. It must not know how
 * clients are asked, nor how a gateway stops. Nobody new is let in meanwhile; that is auth's business.
 */

import type { Clock } from '../../base/clock.ts';
import type { Logger } from '../../base/log.ts';
import { Repeat } from '../../base/repeat.ts';

const LOOK_MS = 500;
/** How often it is said how many are left. */
const SAY_MS = 10_000;

export interface DrainingOptions {
  /** The sessions there are, and how many of them know how to move. */
  count(): { readonly sessions: number; readonly asked: number };
  /** Asks them, and whoever comes back: the gateway stops in so many seconds. */
  ask(seconds: number): void;
  clock: Clock;
  log: Logger;
}

/** How far it has come. */
export interface DrainProgress {
  /** Milliseconds since the Unix epoch. */
  readonly since: number;
  /** When the gateway stops at the latest, milliseconds since the Unix epoch. */
  readonly until: number;
  /** How many sessions there were when it began, and how many there are. */
  readonly sessions: number;
  readonly left: number;
  /** Those of `left` whose clients know how to move to another server. */
  readonly asked: number;
}

export class Draining {
  readonly #options: DrainingOptions;
  readonly #log: Logger;
  readonly #looks: Repeat;
  /** Monotonic. */
  #begun: { readonly at: number; readonly sessions: number; endsAt: number; stop: () => void } | undefined;
  #saidAt = 0;

  constructor(options: DrainingOptions) {
    this.#options = options;
    this.#log = options.log.child({ component: 'drain' });
    this.#looks = new Repeat(
      LOOK_MS,
      async () => this.#look(),
      (error) => this.#log.error('it cannot be looked who is left', { error }),
    );
  }

  /** Begins, or begins anew with another time; `stop` is called once, when no session is left or the time is over. */
  begin(seconds: number, stop: () => void): DrainProgress {
    const { clock, count, ask } = this.#options;
    const now = clock.now();
    const endsAt = now + seconds * 1000;
    if (this.#begun === undefined) {
      this.#begun = { at: now, sessions: count().sessions, endsAt, stop };
      this.#looks.start();
    } else {
      this.#begun.endsAt = endsAt;
      this.#begun.stop = stop;
    }
    this.#saidAt = now;
    const progress = this.#progressOf(this.#begun);
    const { sessions, left, asked, until } = progress;
    this.#log.info('the gateway is drained', { sessions, left, asked, until: new Date(until).toISOString() });
    ask(seconds);
    return progress;
  }

  /** Undefined: the gateway is not drained. */
  get progress(): DrainProgress | undefined {
    return this.#begun && this.#progressOf(this.#begun);
  }

  /** In how many seconds the gateway stops at the latest; undefined: it is not drained. */
  get secondsLeft(): number | undefined {
    if (this.#begun === undefined) return undefined;
    return Math.max(0, Math.round((this.#begun.endsAt - this.#options.clock.now()) / 1000));
  }

  /** It ends nothing any more. */
  async stop(): Promise<void> {
    await this.#looks.stop();
  }

  #progressOf({ at, sessions, endsAt }: { at: number; sessions: number; endsAt: number }): DrainProgress {
    const { clock, count } = this.#options;
    const now = clock.now();
    const wall = clock.wallNow();
    const { sessions: left, asked } = count();
    return { since: wall - (now - at), until: wall + (endsAt - now), sessions, left, asked };
  }

  #look(): void {
    const begun = this.#begun;
    if (begun === undefined) return;
    const now = this.#options.clock.now();
    const { left } = this.#progressOf(begun);
    if (left > 0 && now < begun.endsAt) {
      if (now - this.#saidAt < SAY_MS) return;
      this.#saidAt = now;
      this.#log.info('the gateway is drained', { left, seconds: this.secondsLeft });
      return;
    }
    this.#begun = undefined;
    void this.#looks.stop();
    this.#log.info(left === 0 ? 'no session is left: the gateway stops' : 'the time is over: the gateway stops', {
      left,
    });
    begun.stop();
  }
}
