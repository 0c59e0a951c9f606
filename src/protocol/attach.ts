/**
 * Binds a data connection to its session, from both ends.
 *
 * Hides the ATTACH and ATTACHED proofs and which generation of a slot is current. It must not know connections or what
 * flows on them. A session id alone is worth nothing: every proof covers the exporter of the connection it arrives on, so
 * that it can be neither replayed elsewhere nor relayed by someone in between.
 *
 * @see docs/protocol.md §8
 */

import { VpnError } from '../base/errors.ts';
import { FrameType } from './frame.ts';
import { type AttachFacts, attachProof, type Exporter, type Primitives } from './keys.ts';
import { type AttachMessage, type CloseReason, decodeMessage, encodeMessage, type RejectCode } from './messages.ts';
import { rejectError } from './reasons.ts';

/** Answers of MOVED after which a client sends its data inline instead. */
export const MAX_MOVES = 2;

export interface AttachServerOptions {
  primitives: Primitives;
  /** 16 bytes. */
  session: Uint8Array;
  epoch: number;
  /** K_attach of the epoch. */
  key: Uint8Array;
  /** How many slots the session may have: slots 0 to `slots` − 1. */
  slots: number;
  /** Of the epoch before, where its connections stay: their generations go on. */
  former?: AttachServer | undefined;
}

/** What the server's shell does: set the decoder to phase `data`, send `frame`, use the connection for `slot`. */
export interface Attached {
  slot: number;
  generation: number;
  frame: Uint8Array;
}

/** The server's side of all data connections of one session and epoch. */
export class AttachServer {
  readonly #options: AttachServerOptions;
  readonly #generations: Map<number, number>;

  constructor(options: AttachServerOptions) {
    this.#options = options;
    this.#generations = new Map(options.former?.generations);
  }

  /** The newest of each slot. */
  get generations(): ReadonlyMap<number, number> {
    return this.#generations;
  }

  /**
   * Judges an ATTACH that came on the connection with this exporter. A connection that held the slot is superseded.
   *
   * @throws {VpnError} ERR_ATTACH_PROOF, whatever is wrong with it
   */
  receive(message: AttachMessage, exporter: Exporter): Attached {
    const { primitives, session, epoch, key, slots } = this.#options;
    const { slot, generation } = message;
    const expected = attachProof(primitives, key, 'client', message, exporter);
    if (!primitives.equal(expected, message.proof)) throw refused('the proof does not fit this connection and session');
    if (!primitives.equal(message.session, session) || message.epoch !== epoch)
      throw refused('another session or epoch');
    if (slot >= slots) throw refused(`slot ${slot} of ${slots}`);
    if (generation <= (this.#generations.get(slot) ?? -1)) throw refused(`generation ${generation} is not newer`);
    this.#generations.set(slot, generation);
    // No flag is defined: an answer claims none, whatever was asked.
    const facts: AttachFacts = { session, epoch, slot, generation, flags: 0 };
    const proof = attachProof(primitives, key, 'server', facts, exporter);
    return { slot, generation, frame: encodeMessage('attached', { slot, generation, flags: 0, proof }) };
  }
}

export interface AttachClientOptions {
  primitives: Primitives;
  /** The exporter of the data connection. */
  exporter: Exporter;
  /** 16 bytes. */
  session: Uint8Array;
  epoch: number;
  /** K_attach of the epoch. */
  key: Uint8Array;
  slot: number;
  /** Greater than any used for the slot before. */
  generation: number;
}

/** What the client's shell does next. */
export type AttachClientOutput =
  /** Set the decoder to phase `data` at once; packets may flow both ways. */
  | { kind: 'attached' }
  /** Close, and dial again with this worker's hint; after `MAX_MOVES` of them send data inline. */
  | { kind: 'moved'; worker: number }
  | { kind: 'failed'; error: VpnError; code: RejectCode }
  | { kind: 'closed'; reason: CloseReason };

/** The client's side of one data connection. No packet is sent or taken before `attached`. */
export class AttachClient {
  readonly #options: AttachClientOptions;
  readonly #facts: AttachFacts;
  #state: 'idle' | 'waiting' | 'over' = 'idle';

  constructor(options: AttachClientOptions) {
    this.#options = options;
    const { session, epoch, slot, generation } = options;
    this.#facts = { session, epoch, slot, generation, flags: 0 };
  }

  /** The ATTACH frame, to be sent once the greeting has come. */
  start(): Uint8Array {
    if (this.#state !== 'idle') throw new VpnError('ERR_INVARIANT', 'an attach is started once');
    this.#state = 'waiting';
    const { primitives, key, exporter } = this.#options;
    return encodeMessage('attach', {
      ...this.#facts,
      proof: attachProof(primitives, key, 'client', this.#facts, exporter),
    });
  }

  /**
   * Takes the server's answer.
   *
   * @throws {VpnError} ERR_ATTACH_PROOF, ERR_FRAME_STATE, ERR_MESSAGE_SYNTAX, ERR_MESSAGE_FIELD
   */
  receive(type: number, payload: Uint8Array): AttachClientOutput {
    const waiting = this.#state === 'waiting';
    this.#state = 'over';
    if (waiting) {
      switch (type) {
        case FrameType.attached:
          return this.#attached(payload);
        case FrameType.moved:
          return { kind: 'moved', worker: decodeMessage('moved', payload).worker };
        case FrameType.reject: {
          const { code, message } = decodeMessage('reject', payload);
          return { kind: 'failed', error: rejectError(code, message), code };
        }
        case FrameType.close:
          return { kind: 'closed', reason: decodeMessage('close', payload).reason };
      }
    }
    throw new VpnError('ERR_FRAME_STATE', `frame type ${type} does not answer an ATTACH`, { details: { type } });
  }

  #attached(payload: Uint8Array): AttachClientOutput {
    const { slot, generation, flags, proof } = decodeMessage('attached', payload);
    const { primitives, key, exporter } = this.#options;
    const expected = attachProof(primitives, key, 'server', { ...this.#facts, flags }, exporter);
    if (!primitives.equal(expected, proof) || slot !== this.#facts.slot || generation !== this.#facts.generation) {
      throw refused('the server has not proven that it knows the session');
    }
    return { kind: 'attached' };
  }
}

function refused(why: string): VpnError {
  return new VpnError('ERR_ATTACH_PROOF', `the data connection is refused: ${why}`);
}
