/**
 * Leaves a server that is drained for another one, while the session at it goes on.
 *
 * Hides when that is tried, which servers have been tried, and for how long. It must not know how a session is opened, nor
 * what becomes of the one that is left: its owner gets the new one and closes the old.
 *
 * @see docs/protocol.md §11
 */

import { setTimeout as sleep } from 'node:timers/promises';
import { toVpnError, type VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { Backoff } from '../protocol/backoff.ts';
import { recoveryAfterError } from '../protocol/reasons.ts';

/** All clients of a server are asked at once: they go within this part of the time there is, and within so long. */
const SPREAD_PART = 0.1;
const MAX_SPREAD_MS = 10_000;

export interface RelocationOptions<S> {
  /** How long the server still serves, seconds. */
  seconds: number;
  /** Opens a session at another server than the present one. */
  open(signal: AbortSignal): Promise<S>;
  /** The session is there. Not called after `stop`. */
  moved(session: S): void;
  /** It came too late: nobody wants it. */
  discard(session: S): void;
  log: Logger;
}

export class Relocation<S> {
  readonly #options: RelocationOptions<S>;
  readonly #abort = new AbortController();

  constructor(options: RelocationOptions<S>) {
    this.#options = options;
    void this.#run();
  }

  /** Nobody is asked any more. Idempotent. */
  stop(): void {
    this.#abort.abort();
  }

  async #run(): Promise<void> {
    const { seconds, open, moved, discard, log } = this.#options;
    const { signal } = this.#abort;
    const backoff = new Backoff();
    let delayMs = Math.random() * Math.min(MAX_SPREAD_MS, seconds * 1000 * SPREAD_PART);
    log.info('the server is drained; looking for another', { seconds, delayMs: Math.round(delayMs) });
    for (;;) {
      await sleep(delayMs, undefined, { signal, ref: false }).catch(() => {});
      if (signal.aborted) return;
      try {
        const session = await open(signal);
        if (signal.aborted) discard(session);
        else moved(session);
        return;
      } catch (cause) {
        const error = toVpnError(cause);
        if (signal.aborted) return;
        const { code, message } = error;
        if (recoveryAfterError(error) === 'final') {
          log.warn('there is no other server for this client; the session goes on for now', { code, reason: message });
          return;
        }
        delayMs = isLonely(error) ? backoff.slow(Math.random()) : backoff.next(Math.random());
        log.info('no other server yet', { code, reason: message, delayMs: Math.round(delayMs) });
      }
    }
  }
}

/** There is nobody else to ask, as long as names mean what they mean. */
function isLonely({ details }: VpnError): boolean {
  return typeof details.passedOver === 'number';
}
