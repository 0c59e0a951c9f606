/**
 * Joins two byte streams so that each end sees what the other does: bytes, half-closes, resets.
 *
 * Hides back pressure and the order of events. What one side cannot take is not read from the other: memory is bounded by
 * the high-water marks and the windows of both. It must not know what the bytes are.
 */

import { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { StreamPace } from './stream-pace.ts';

/** One of the two ends. */
export interface SpliceEnd {
  readonly duplex: Duplex;
  /** Ends it as a connection that broke. */
  reset(): void;
  /** Whether the end that has come was none: the other side broke it. Undefined: an end is an end. */
  readonly isBroken?: boolean;
  /** Joins it with a socket as `splice` does, where it has a shorter way than through `duplex`; `pace` is what both keep. */
  join?(socket: Socket, done: (outcome: SpliceOutcome) => void, pace?: StreamPace): void;
}

/** Why a splice is over: both directions ended, or one end broke. */
export type SpliceOutcome = 'ended' | 'broken';

/**
 * Copies both ways until both directions have ended or either end has broken; then both are closed.
 *
 * @param done told once
 */
export function splice(a: SpliceEnd, b: SpliceEnd, done: (outcome: SpliceOutcome) => void): void {
  for (const [end, other] of [
    [a, b],
    [b, a],
  ] as const) {
    if (end.join === undefined || other.join !== undefined || !(other.duplex instanceof Socket)) continue;
    end.join(other.duplex, done);
    return;
  }
  let isOver = false;
  const finish = (outcome: SpliceOutcome): void => {
    if (isOver) return;
    isOver = true;
    if (outcome === 'broken') for (const end of [a, b]) if (!end.duplex.closed) end.reset();
    done(outcome);
  };
  for (const [end, other] of [
    [a, b],
    [b, a],
  ] as const) {
    const { duplex } = end;
    duplex.on('error', () => finish('broken'));
    duplex.once('close', () => {
      // A side that is closed before it has said all, or heard all, has broken.
      if (end.isBroken === true || !duplex.readableEnded || !duplex.writableFinished) finish('broken');
      else if (other.duplex.closed) finish('ended');
    });
    duplex.pipe(other.duplex, { end: false });
    const pass = (): void => {
      if (end.isBroken === true) finish('broken');
      else other.duplex.end();
    };
    // A stream that is reset seems to end first: only a turn later it is known for what it was.
    duplex.once('end', () => (end.isBroken === undefined ? pass() : setImmediate(pass)));
  }
}

/**
 * Ends a TCP connection with a reset. While its shutdown is under way libuv refuses one, and Node then loses the handle: such
 * a connection is closed, which resets it if the other end goes on sending.
 */
export function resetSocket(socket: Socket): void {
  if (socket.writableEnded && !socket.writableFinished) socket.destroy();
  else socket.resetAndDestroy();
}
