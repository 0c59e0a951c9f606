/**
 * Who uses a tunnel that is there only as long as it is used.
 *
 * Hides how a user is noticed to be gone: each has a ticket, and holds it by a call that lasts. A ticket whose call ends,
 * because its owner was killed, or that nobody holds in time, is given back.
 */

import { toVpnError, VpnError } from '../base/errors.ts';

/** How long a ticket waits to be held, and a tunnel for its first user. */
const UNHELD_MS = 10_000;

/** Why a call that held a ticket ended; null: it was given back. */
export interface HoldEnd {
  readonly ended: { readonly code: string; readonly message: string } | null;
}

interface Ticket {
  readonly done: PromiseWithResolvers<HoldEnd>;
  unheld: NodeJS.Timeout | undefined;
}

export class Callers {
  readonly #tickets = new Map<number, Ticket>();
  readonly #onEmpty: () => void;
  #next = 1;
  #first: NodeJS.Timeout | undefined;
  #isOver = false;

  /** @param onEmpty told once, when there is no user any more, or none has come */
  constructor(onEmpty: () => void) {
    this.#onEmpty = onEmpty;
    this.#first = setTimeout(() => this.#empty(), UNHELD_MS);
  }

  get count(): number {
    return this.#tickets.size;
  }

  /** @throws {VpnError} ERR_NOT_RUNNING when the last user has left */
  enter(): number {
    if (this.#isOver) throw new VpnError('ERR_NOT_RUNNING', 'the client of the commands before is ending; try again');
    clearTimeout(this.#first);
    const ticket = this.#next++;
    const unheld = setTimeout(() => this.leave(ticket), UNHELD_MS);
    this.#tickets.set(ticket, { done: Promise.withResolvers(), unheld });
    return ticket;
  }

  /**
   * Holds a ticket until it is given back, the tunnel ends, or `gone`.
   *
   * @throws {VpnError} ERR_NOT_FOUND
   */
  async hold(ticket: number, gone: AbortSignal): Promise<HoldEnd> {
    const held = this.#tickets.get(ticket);
    if (held === undefined) throw new VpnError('ERR_NOT_FOUND', `there is no ticket ${ticket}`);
    clearTimeout(held.unheld);
    const leave = (): void => void this.leave(ticket);
    gone.addEventListener('abort', leave, { once: true });
    if (gone.aborted) leave();
    return await held.done.promise;
  }

  /** Gives a ticket back. Idempotent. Returns how many users are left. */
  leave(ticket: number): number {
    const held = this.#tickets.get(ticket);
    if (held === undefined) return this.count;
    this.#tickets.delete(ticket);
    clearTimeout(held.unheld);
    held.done.resolve({ ended: null });
    if (this.count === 0) this.#empty();
    return this.count;
  }

  /** The tunnel ends: every user is told, and there will be no other. Idempotent. */
  end(cause: unknown): void {
    this.#isOver = true;
    clearTimeout(this.#first);
    const { code, message } = toVpnError(cause);
    for (const { done, unheld } of this.#tickets.values()) {
      clearTimeout(unheld);
      done.resolve({ ended: { code, message } });
    }
    this.#tickets.clear();
  }

  #empty(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#onEmpty();
  }
}
