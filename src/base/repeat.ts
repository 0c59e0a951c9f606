/**
 * Work that is done again and again, never twice at once.
 *
 * Hides the timer, what happens when a run takes longer than its interval, and how a run that is under way is waited for.
 */

export class Repeat {
  readonly #work: () => Promise<void>;
  readonly #failed: (error: unknown) => void;
  #everyMs: number;
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> | undefined;

  /** @param failed told what a run threw; the next run comes all the same */
  constructor(everyMs: number, work: () => Promise<void>, failed: (error: unknown) => void) {
    this.#everyMs = everyMs;
    this.#work = work;
    this.#failed = failed;
  }

  /** Runs every so often from now on; the first time after one interval. Keeps no process alive. */
  start(): void {
    clearInterval(this.#timer);
    this.#timer = setInterval(() => void this.run(), this.#everyMs);
    this.#timer.unref();
  }

  /** Another interval, counted from now. */
  set everyMs(everyMs: number) {
    this.#everyMs = everyMs;
    if (this.#timer !== undefined) this.start();
  }

  /** Runs now. Never rejects; while one run lasts, another is the same one. */
  run(): Promise<void> {
    this.#running ??= this.#work()
      .catch(this.#failed)
      .finally(() => {
        this.#running = undefined;
      });
    return this.#running;
  }

  /** No further runs; resolves when the last one is over. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#timer = undefined;
    await this.#running;
  }
}
