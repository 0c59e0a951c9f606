/**
 * The data connections of a session: dialled, bound to it by mutual proof, changed when their keys have served long enough,
 * and dialled again when they are lost.
 *
 * Hides slots, generations and waits. A lost connection costs what was on it and nothing else, as long as the server still
 * knows the session. Its owner calls it about once a second and learns one thing: that no data connection can be had.
 */

import { isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { AttachClient, MAX_MOVES } from '../protocol/attach.ts';
import { Backoff, STABLE_AFTER_MS } from '../protocol/backoff.ts';
import { encodeFrame, FrameType } from '../protocol/frame.ts';
import type { Primitives } from '../protocol/keys.ts';
import { type CloseReason, decodeMessage } from '../protocol/messages.ts';
import { recoveryAfterError } from '../protocol/reasons.ts';
import type { Channel } from '../transport/channel.ts';
import type { TunnelLink } from '../transport/packet-link.ts';
import { type RekeyCounters, Slot } from '../transport/slot.ts';
import { ServerConnection, type ServiceOptions, withTimeout } from './connection.ts';

const ATTACH_TIMEOUT_MS = 10_000;

export interface DataLinkOptions extends ServiceOptions {
  /** How many connections. */
  count: number;
  dial: (worker: number) => Promise<Channel>;
  /** The worker that owns the session. */
  worker: number;
  /** 16 bytes. */
  session: Uint8Array;
  keys: AttachKeys;
  /** Whether the server knows how to change a connection under the traffic. */
  canChange: boolean;
  counters: RekeyCounters;
  primitives: Primitives;
  /** Monotonic milliseconds. */
  now: () => number;
  log: Logger;
  /** None can be had any more, and why. */
  onFailed: (error: VpnError) => void;
}

/** Whether there is a data connection: none will be where the server has moved it too often, and data has to go inline. */
export type DataOpening = 'now' | 'later' | 'never';

/** What proves a data connection. */
export interface AttachKeys {
  readonly epoch: number;
  /** K_attach of the epoch. */
  readonly key: Uint8Array;
}

/** One slot and what becomes of it. */
interface Place {
  readonly slot: Slot<ServerConnection>;
  readonly number: number;
  readonly backoff: Backoff;
  /** The newest generation that was sent in an ATTACH; -1: none. */
  generation: number;
  isDialling: boolean;
  /** The last connection was lost soon. */
  isSuspect: boolean;
  /** When it may be dialled again. */
  notBefore: number;
  attachedAt: number;
}

export class DataLink {
  readonly #options: DataLinkOptions;
  readonly #places: readonly Place[];
  #keys: AttachKeys;
  #worker: number;
  #link: TunnelLink | undefined;
  #isClosed = false;
  /** Connections that have not proven themselves yet. */
  readonly #unproven = new Set<ServerConnection>();
  /** Attempts under way. */
  readonly #attempts = new Set<Promise<unknown>>();
  /** The keys are being changed. */
  #isPaused = false;

  constructor(options: DataLinkOptions) {
    this.#options = options;
    this.#keys = options.keys;
    this.#worker = options.worker;
    this.#places = Array.from({ length: options.count }, (_, number): Place => {
      const slot = new Slot<ServerConnection>({
        number,
        counters: options.counters,
        onSending: (connection) => this.#sendOn(number, connection?.channel),
      });
      const never = Number.NEGATIVE_INFINITY;
      return {
        slot,
        number,
        backoff: new Backoff(),
        generation: -1,
        isDialling: false,
        isSuspect: false,
        notBefore: never,
        attachedAt: never,
      };
    });
  }

  /**
   * Dials the first; the others follow by themselves, as does it when the way to the server was too bad.
   *
   * @throws {VpnError} what makes trying again useless
   */
  async open(): Promise<DataOpening> {
    const [first, ...others] = this.#places;
    if (first === undefined) return 'never';
    try {
      if (!(await this.#under(first, this.#attach(first)))) return 'never';
    } catch (cause) {
      const error = toVpnError(cause);
      if (this.#isClosed || !isOfTheWay(error)) throw error;
      this.#failed(first, error);
      return 'later';
    }
    for (const place of others) this.#dial(place);
    return 'now';
  }

  /** Packets go between this link and the connections from now on. */
  set link(link: TunnelLink) {
    this.#link = link;
    for (const { slot, number } of this.#places) {
      for (const connection of slot.connections) connection.receiver = link.createReceiver();
      link.spread.set(number, slot.sending?.channel);
    }
  }

  #sendOn(number: number, channel: Channel | undefined): void {
    const spread = this.#link?.spread;
    spread?.set(number, channel);
    // The control connection has the first slot as long as there is no data connection, and no longer.
    if (channel !== undefined && number > 0) spread?.set(0, this.#places[0]?.slot.sending?.channel);
  }

  /** Connections that packets are sent on. */
  get count(): number {
    return this.#places.filter(({ slot }) => slot.sending !== undefined).length;
  }

  /** Called about once a second. */
  handleTick(now: number): void {
    if (this.#isClosed) return;
    this.#link?.spread.handleTick();
    for (const place of this.#places) {
      const { slot } = place;
      slot.handleTimeout(now);
      const { reading } = slot;
      if (reading?.examine(now) === true) {
        reading.fail(new VpnError('ERR_PEER_GONE', 'a data connection has been silent for too long'));
      }
      const isWorn = this.#options.canChange && !slot.isChanging && slot.sending?.isWorn(now) === true;
      if ((slot.sending === undefined || isWorn) && now >= place.notBefore) this.#dial(place);
    }
  }

  /** Asks for a sign of life on every connection. @returns gives up those that have been silent since */
  ask(now: number): () => void {
    const asked = this.#places.flatMap(({ slot: { reading } }) => {
      reading?.ask(now);
      return reading === undefined ? [] : [{ reading, before: reading.channel.counters.receivedBytes }];
    });
    return () => {
      for (const { reading, before } of asked) {
        if (reading.channel.counters.receivedBytes !== before) continue;
        reading.fail(new VpnError('ERR_PEER_GONE', 'the network has changed, and a data connection is silent over it'));
      }
    };
  }

  /** No attempt is made until `goOn`; resolves when those under way are over. */
  async pause(): Promise<void> {
    this.#isPaused = true;
    await Promise.allSettled(this.#attempts);
  }

  /** With the keys of another epoch, and the worker that has the session now, or as before. */
  goOn(keys: AttachKeys = this.#keys, worker: number = this.#worker): void {
    this.#keys = keys;
    this.#worker = worker;
    this.#isPaused = false;
  }

  close(reason: CloseReason): void {
    this.#isClosed = true;
    for (const connection of this.#unproven) connection.fail(new VpnError('ERR_PEER_GONE', 'the session is over'));
    for (const { slot } of this.#places) slot.close(reason);
  }

  /** Dials for a place that is empty, or whose connection is worn. */
  #dial(place: Place): void {
    if (!this.#isPaused && !this.#isClosed && !place.isDialling) void this.#under(place, this.#attempt(place));
  }

  #under<T>(place: Place, attempt: Promise<T>): Promise<T> {
    place.isDialling = true;
    const ending = attempt.finally(() => {
      place.isDialling = false;
      this.#attempts.delete(ending);
    });
    this.#attempts.add(ending);
    return ending;
  }

  async #attempt(place: Place): Promise<void> {
    try {
      if (!(await this.#attach(place))) throw new VpnError('ERR_PEER_GONE', 'the data connection was moved too often');
    } catch (cause) {
      const error = toVpnError(cause);
      if (this.#isClosed) return;
      this.#failed(place, error);
      if (isHopeless(error)) this.#options.onFailed(error);
      // The server has said its last word on the one that there is.
      else if (place.slot.isSwitched) this.#lose(place);
    }
  }

  #failed(place: Place, { code, message: reason }: VpnError): void {
    const { log, now } = this.#options;
    place.notBefore = now() + place.backoff.next(Math.random());
    const isChange = place.slot.sending !== undefined;
    const what = isChange ? 'a data connection could not be changed' : 'a data connection could not be dialled';
    log.warn(what, { slot: place.number, code, reason });
  }

  /** Dials one connection and proves that it belongs here. @returns false after two MOVEDs */
  async #attach(place: Place): Promise<boolean> {
    for (let move = 0; move < MAX_MOVES; move++) {
      if (this.#isClosed) return true;
      const connection = new ServerConnection(await this.#options.dial(this.#worker));
      this.#unproven.add(connection);
      try {
        if (this.#isClosed) throw new VpnError('ERR_PEER_GONE', 'the session is over');
        const proven = this.#prove(connection, place);
        const moved = await withTimeout(proven, ATTACH_TIMEOUT_MS, 'the server did not answer an ATTACH');
        if (moved === undefined) return true;
        this.#worker = moved;
        connection.close('peer_disconnect');
      } catch (error) {
        connection.fail(toVpnError(error));
        throw error;
      } finally {
        this.#unproven.delete(connection);
      }
    }
    return false;
  }

  /** Resolves with undefined when it is attached, or with the worker that owns the session. */
  async #prove(connection: ServerConnection, place: Place): Promise<number | undefined> {
    const { primitives, session } = this.#options;
    const done = Promise.withResolvers<number | undefined>();
    let attach: AttachClient | undefined;
    let generation = 0;
    connection.onGreeting = () => {
      generation = nextGeneration(place);
      place.generation = generation;
      const { exporter } = connection;
      attach = new AttachClient({ primitives, exporter, session, ...this.#keys, slot: place.number, generation });
      connection.channel.sendControl(attach.start());
    };
    connection.onControl = (type, payload) => {
      const output = attach?.receive(type, payload);
      switch (output?.kind) {
        case 'attached':
          connection.setPhase('data');
          this.#adopt(connection, place, generation);
          done.resolve(undefined);
          break;
        case 'moved':
          done.resolve(output.worker);
          break;
        case 'failed':
          done.reject(output.error);
          break;
        case 'closed':
          done.reject(new VpnError('ERR_PEER_GONE', `the server closed the data connection: ${output.reason}`));
          break;
      }
    };
    connection.onClosed = (error) =>
      done.reject(error ?? new VpnError('ERR_PEER_GONE', 'the data connection was closed'));
    connection.start();
    return await done.promise;
  }

  #adopt(connection: ServerConnection, place: Place, generation: number): void {
    if (this.#isClosed) {
      connection.close('peer_disconnect');
      return;
    }
    const now = this.#options.now();
    place.attachedAt = now;
    connection.serve(this.#options, now);
    connection.receiver = this.#link?.createReceiver();
    connection.onControl = (type, payload) => this.#receive(connection, place, type, payload);
    connection.onClosed = (error) => this.#closed(connection, place, error);
    place.slot.attach(connection, generation, this.#options.canChange, now);
  }

  #receive(connection: ServerConnection, { slot }: Place, type: number, payload: Uint8Array): void {
    switch (type) {
      case FrameType.ping:
        // Where SWITCH was our last word, the other connection shows that we live.
        if (slot.sending === connection) connection.channel.sendControl(encodeFrame(FrameType.pong, payload));
        break;
      case FrameType.pong:
        connection.pong(payload, this.#options.now());
        break;
      case FrameType.switch:
        slot.switched(connection, decodeMessage('switch', payload));
        break;
      case FrameType.close:
        connection.channel.close();
        break;
    }
  }

  #closed(connection: ServerConnection, place: Place, error: VpnError | undefined): void {
    const { slot } = place;
    if (!slot.closed(connection) || slot.sending !== undefined || this.#isClosed) return;
    this.#options.log.info('a data connection was lost', { slot: place.number, code: error?.code });
    this.#lose(place);
  }

  /** Dials another at once; one that is lost again soon waits. */
  #lose(place: Place): void {
    const now = this.#options.now();
    const livedMs = now - place.attachedAt;
    place.slot.close('peer_disconnect');
    place.backoff.ended(livedMs);
    const waits = place.isSuspect && livedMs < STABLE_AFTER_MS;
    place.isSuspect = true;
    if (waits) place.notBefore = now + place.backoff.next(Math.random());
    else this.#dial(place);
  }
}

/** The way to the server was bad and may be better soon; it is nothing that the server has said. */
function isOfTheWay(error: VpnError): boolean {
  return error.kind !== 'auth' && recoveryAfterError(error) === 'retry';
}

/** Nothing comes of trying again within the session. */
function isHopeless(error: VpnError): boolean {
  return recoveryAfterError(error) === 'final' || isVpnError(error, 'ERR_SESSION_UNKNOWN');
}

/** The next one changes a living connection; a jump replaces it, or whatever the server still holds in its place. */
function nextGeneration({ slot, generation }: Place): number {
  if (generation < 0) return 0;
  return slot.sending !== undefined && slot.generation === generation ? generation + 1 : generation + 2;
}
