/**
 * Changes a connection under a running session without losing or reordering a packet.
 *
 * Hides when a rekey is due and the switch rule: the sender writes SWITCH as its last frame on the old connection and goes
 * on with the new; the receiver reads the new one's data only after SWITCH has come on the old, or after a while. It must
 * not know connections or time: `now` is passed in, milliseconds.
 *
 * @see docs/protocol.md §10
 */

import { VpnError } from '../base/errors.ts';
import { encodeMessage, type SwitchMessage } from './messages.ts';

/** The control connection takes part in a change as this slot; its generation is the session's epoch. */
export const CONTROL_SLOT = 255;
export const REKEY_INTERVAL_MS = 3_600_000;
/** The interval varies by this part to either side, so that thousands of sessions do not rekey together. */
export const REKEY_SPREAD = 0.1;
export const REKEY_BYTES = 64 * 2 ** 30;
/** How long the receiver waits for SWITCH. */
export const SWITCH_TIMEOUT_MS = 5_000;

/** When the keys of one connection have served long enough. */
export class RekeySchedule {
  readonly #dueAt: number;
  readonly #bytesLimit: number;

  /** @param random uniform in [0, 1) */
  constructor(now: number, random: number, intervalMs: number = REKEY_INTERVAL_MS) {
    this.#dueAt = now + intervalMs * (1 - REKEY_SPREAD + 2 * REKEY_SPREAD * random);
    this.#bytesLimit = REKEY_BYTES * (1 - REKEY_SPREAD * random);
  }

  /** @param carried bytes of both directions since the connection was made */
  isDue(now: number, carried: number): boolean {
    return now >= this.#dueAt || carried >= this.#bytesLimit;
  }

  /** When `isDue` turns true by time alone. */
  get dueAt(): number {
    return this.#dueAt;
  }
}

/** The sending side of one slot and direction. */
export class SwitchSender {
  readonly #slot: number;
  #generation: number;

  constructor(slot: number, generation: number) {
    this.#slot = slot;
    this.#generation = generation;
  }

  get generation(): number {
    return this.#generation;
  }

  /**
   * The new connection has been attached: returns SWITCH, to be written as the last frame on the old connection. From
   * here on data goes to the new one only.
   *
   * @throws {VpnError} ERR_INVARIANT unless `generation` follows the current one
   */
  attached(generation: number): Uint8Array {
    if (generation !== this.#generation + 1) {
      throw new VpnError('ERR_INVARIANT', `generation ${generation} does not follow ${this.#generation}`);
    }
    this.#generation = generation;
    return encodeMessage('switch', { slot: this.#slot, generation });
  }
}

/** What the receiver does with the new connection's data: leave it unread, or read it and close the old connection. */
export type SwitchDecision = 'hold' | 'release';

/** The receiving side of one slot and direction. */
export class SwitchReceiver {
  readonly #slot: number;
  #generation: number;
  /** The new connection is there and is not read, until this time. */
  #deadline: number | undefined;
  /** SWITCH has come before the new connection did. */
  #switched = false;
  /** Changes that went on without SWITCH: packets may have been lost or reordered. */
  gaps = 0;

  constructor(slot: number, generation: number) {
    this.#slot = slot;
    this.#generation = generation;
  }

  /** The generation whose data is read. */
  get generation(): number {
    return this.#generation;
  }

  /** SWITCH has come, and the connection to change to is not there yet. */
  get isSwitched(): boolean {
    return this.#switched;
  }

  /** When `handleTimeout` is due. */
  get nextTimeout(): number | undefined {
    return this.#deadline;
  }

  /** The connection of the next generation has been attached. @throws {VpnError} ERR_INVARIANT for any other */
  attached(generation: number, now: number): SwitchDecision {
    if (generation !== this.#generation + 1 || this.#deadline !== undefined) {
      throw new VpnError('ERR_INVARIANT', `generation ${generation} does not follow ${this.#generation}`);
    }
    this.#deadline = now + SWITCH_TIMEOUT_MS;
    return this.#switched ? this.#release() : 'hold';
  }

  /** SWITCH came on the old connection. @throws {VpnError} ERR_FRAME_STATE for another slot or generation, or a second */
  switched(message: SwitchMessage): SwitchDecision {
    if (message.slot !== this.#slot || message.generation !== this.#generation + 1 || this.#switched) {
      throw misplacedSwitch(message);
    }
    this.#switched = true;
    return this.#deadline === undefined ? 'hold' : this.#release();
  }

  /** The old connection ended. */
  oldClosed(): SwitchDecision {
    if (this.#deadline === undefined) return 'hold';
    this.gaps += 1;
    return this.#release();
  }

  handleTimeout(now: number): SwitchDecision {
    if (this.#deadline === undefined || now < this.#deadline) return 'hold';
    this.gaps += 1;
    return this.#release();
  }

  #release(): SwitchDecision {
    this.#generation += 1;
    this.#deadline = undefined;
    this.#switched = false;
    return 'release';
  }
}

/** SWITCH where it has no place. */
export function misplacedSwitch({ slot, generation }: SwitchMessage): VpnError {
  return new VpnError('ERR_FRAME_STATE', `SWITCH to generation ${generation} of slot ${slot} has no place here`, {
    details: { slot, generation },
  });
}
