/**
 * Which process is which worker, as auth sees it.
 *
 * Hides that the end of one and the coming of the next are heard of in either order. What the former one leaves is put aside before
 * the next one is asked or answered anything: its sessions are then those of nobody, and not half of the next one's.
 */

import type { VpnError } from '../../base/errors.ts';
import type { Newcomer } from '../ipc/descriptors.ts';

/** A worker that can be reached. */
export interface JoinedLink {
  /** Hears no more of it. */
  end(): void;
}

export interface JoinedWorkersOptions<L extends JoinedLink> {
  /** Opens the channel of a process; `closed` is told once, with the rule that it has broken, if that is why. */
  open(newcomer: Newcomer, fd: number, closed: (error: VpnError | undefined) => void): L;
  /** A worker is there. */
  connect(worker: number, link: L): void;
  /** A worker is gone. */
  disconnect(worker: number): Promise<void>;
  /** A channel has ended, whether the process that had it was still the worker or not. */
  closed(newcomer: Newcomer, error: VpnError | undefined): void;
  failed(worker: number, error: unknown): void;
}

export class JoinedWorkers<L extends JoinedLink> {
  readonly #options: JoinedWorkersOptions<L>;
  readonly #links = new Map<number, L>();
  /** What is to be done for each worker, one after the other. */
  readonly #turns = new Map<number, Promise<void>>();

  constructor(options: JoinedWorkersOptions<L>) {
    this.#options = options;
  }

  /** A process is a worker from now on, in place of the one that was. @param fd of its channel; what it says meanwhile waits */
  take(newcomer: Newcomer, fd: number): void {
    const { worker } = newcomer;
    this.#links.get(worker)?.end();
    this.#inTurn(worker, async () => {
      const { open, connect, closed } = this.#options;
      const link = open(newcomer, fd, (error) => {
        closed(newcomer, error);
        if (this.#links.get(worker) !== link) return;
        this.#links.delete(worker);
        this.#inTurn(worker, () => this.#options.disconnect(worker));
      });
      this.#links.set(worker, link);
      connect(worker, link);
    });
  }

  #inTurn(worker: number, work: () => Promise<void>): void {
    const before = this.#turns.get(worker);
    const done = (before === undefined ? work() : before.then(work)).catch((error: unknown) => {
      this.#options.failed(worker, error);
    });
    const turn = done.then(() => {
      if (this.#turns.get(worker) === turn) this.#turns.delete(worker);
    });
    this.#turns.set(worker, turn);
  }
}
