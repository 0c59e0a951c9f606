/**
 * One place of a session for a connection, which can change under the traffic without losing or reordering a packet.
 *
 * Hides the change: the old connection's last frame is SWITCH, the new one is left unread until SWITCH has come on the old
 * (docs/protocol.md §10). Both ends of a session use it, for data connections and for the control connection. It must not
 * know how a connection was made or proven; time is handed in, monotonic milliseconds.
 */

import type { CloseReason, SwitchMessage } from '../protocol/messages.ts';
import { misplacedSwitch, SwitchReceiver, SwitchSender } from '../protocol/rekey.ts';
import type { Channel } from './channel.ts';

/** What a slot needs of a connection. */
export interface SlotConnection {
  readonly channel: Channel;
  /** Leaves unread what comes from the next frame on. */
  hold(): void;
  /** Reads on. */
  release(): void;
  /** SWITCH was its peer's last frame: what still comes is not taken. */
  retire(): void;
  close(reason: CloseReason): void;
}

/** Plain integers, read at scrape; shared by the slots of a process. */
export interface RekeyCounters {
  /** Changes that were completed. */
  rekeys: number;
  /** Of these, how many went on without SWITCH: packets may have been lost or reordered. */
  rekeyGaps: number;
}

export interface SlotOptions<C extends SlotConnection> {
  number: number;
  counters: RekeyCounters;
  /** What is sent goes to this connection from now on; undefined: nowhere. */
  onSending: (connection: C | undefined) => void;
  /** A change is complete: this connection is the one that is read. */
  onChanged?: (connection: C) => void;
}

export class Slot<C extends SlotConnection> {
  readonly #options: SlotOptions<C>;
  #reading: C | undefined;
  #sending: C | undefined;
  /** Attached, and not read yet. */
  #next: C | undefined;
  #sender: SwitchSender;
  #receiver: SwitchReceiver;
  /** The connection before, until our SWITCH and what waits in front of it have gone. */
  #leaving: C | undefined;

  constructor(options: SlotOptions<C>) {
    this.#options = options;
    this.#sender = new SwitchSender(options.number, 0);
    this.#receiver = new SwitchReceiver(options.number, 0);
  }

  /** The connection whose frames are taken. */
  get reading(): C | undefined {
    return this.#reading;
  }

  /** The connection that frames are sent on. */
  get sending(): C | undefined {
    return this.#sending;
  }

  /** The generation of `reading`. */
  get generation(): number {
    return this.#receiver.generation;
  }

  /** Whether the change to another connection is under way. */
  get isChanging(): boolean {
    return this.#next !== undefined;
  }

  /** All its connections. */
  get connections(): C[] {
    return [...new Set([this.#reading, this.#next, this.#leaving])].filter((one) => one !== undefined);
  }

  /** Whether a connection is in use here. */
  has(connection: C): boolean {
    return connection === this.#reading || connection === this.#next || connection === this.#leaving;
  }

  /**
   * A connection has proven that it belongs here. The next generation changes places with the one before; any other takes its
   * place at once, as does one of a peer that knows no change.
   */
  attach(connection: C, generation: number, canChange: boolean, now: number): void {
    const old = this.#reading;
    // One that cannot say its last word any more is not changed but replaced.
    const isWhole = old !== undefined && this.#sending === old && !this.isChanging;
    if (!canChange || !isWhole || generation !== this.generation + 1) {
      this.#replace(connection, generation);
      return;
    }
    connection.hold();
    this.#next = connection;
    this.#leaving = old;
    old.channel.sendLast(this.#sender.attached(generation), () => this.#hasLeft(old));
    this.#send(connection);
    if (this.#receiver.attached(generation, now) === 'release') this.#change();
  }

  /** SWITCH has come. @throws {VpnError} ERR_FRAME_STATE when it has no place here and now */
  switched(connection: C, message: SwitchMessage): void {
    if (connection !== this.#reading) throw misplacedSwitch(message);
    const decision = this.#receiver.switched(message);
    connection.retire();
    if (decision === 'release') this.#change();
  }

  /** Whether the peer has said its last word on the connection that is read: it can only be changed. */
  get isSwitched(): boolean {
    return this.#receiver.isSwitched;
  }

  /** A connection has ended. @returns whether it was of this slot */
  closed(connection: C): boolean {
    if (this.#leaving === connection) this.#leaving = undefined;
    if (this.#sending === connection) this.#send(undefined);
    if (connection === this.#next) {
      this.#next = undefined;
      // The next change needs a generation that the peer has not seen.
      this.#receiver = new SwitchReceiver(this.#options.number, this.generation);
      return true;
    }
    if (connection !== this.#reading) return false;
    if (this.#receiver.oldClosed() === 'release') {
      this.#options.counters.rekeyGaps += 1;
      this.#change();
    } else {
      this.#reading = undefined;
    }
    return true;
  }

  /** Called about once a second. */
  handleTimeout(now: number): void {
    if (this.#receiver.handleTimeout(now) !== 'release') return;
    this.#options.counters.rekeyGaps += 1;
    this.#leaving = undefined;
    this.#change();
  }

  /** Gives the connections up. */
  close(reason: CloseReason): void {
    const connections = this.connections;
    this.#reading = undefined;
    this.#next = undefined;
    this.#leaving = undefined;
    this.#send(undefined);
    for (const connection of connections) connection.close(reason);
  }

  #replace(connection: C, generation: number): void {
    const former = this.connections;
    const { number } = this.#options;
    this.#sender = new SwitchSender(number, generation);
    this.#receiver = new SwitchReceiver(number, generation);
    this.#reading = connection;
    this.#next = undefined;
    this.#leaving = undefined;
    this.#send(connection);
    for (const old of former) old.close('replaced');
  }

  #send(connection: C | undefined): void {
    if (this.#sending === connection) return;
    this.#sending = connection;
    this.#options.onSending(connection);
  }

  /** Reads the new connection in place of the old. */
  #change(): void {
    const old = this.#reading;
    const next = this.#next;
    if (next === undefined) return;
    this.#reading = next;
    this.#next = undefined;
    this.#options.counters.rekeys += 1;
    if (old !== undefined && old !== this.#leaving) old.close('replaced');
    this.#options.onChanged?.(next);
    next.release();
  }

  /** Our last frame is on its way. The peer's has come when the slot reads another. */
  #hasLeft(old: C): void {
    if (this.#leaving !== old) return;
    this.#leaving = undefined;
    if (this.#reading !== old) old.close('replaced');
  }
}
