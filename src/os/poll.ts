/**
 * Tells when a file descriptor is readable or writable, on this thread's event loop.
 *
 * Hides libuv's poll handles and what differs from an ordinary Node callback: after a callback that came through the
 * foreign function interface neither `process.nextTick` nor promises run until some other callback of Node's does, so
 * each wake schedules an empty immediate, once what it is for has been done. One pair of C callbacks serves all handles and is never taken away.
 */

import { VpnError } from '../base/errors.ts';
import { errnoName, NativeMemory, type NativePoll, nativePoll } from './ffi.ts';

/** What to wait for; values may be added up. */
export const PollEvents = { readable: 1, writable: 2 } as const;

/** `status` is 0, or a negative error number: then nothing more comes until `start` is called again. */
export type PollListener = (status: number, events: number) => void;

let native: NativePoll | undefined;
const handles = new Map<bigint, Poll>();
let isTurnScheduled = false;

/** Lets what the callback has queued (ticks, promises, write callbacks) run at the end of this loop turn. */
function scheduleTurn(): void {
  if (isTurnScheduled) return;
  isTurnScheduled = true;
  setImmediate(endTurn);
}

function endTurn(): void {
  isTurnScheduled = false;
}

function handleEvent(handle: bigint, status: number, events: number): void {
  try {
    handles.get(handle)?.dispatch(status, events);
    scheduleTurn();
  } catch (error) {
    // A throw into C would abort the process; as an immediate it becomes an ordinary uncaught exception.
    setImmediate(() => {
      throw error;
    });
  }
}

function handleClosed(handle: bigint): void {
  scheduleTurn();
  handles.get(handle)?.release();
}

/** Waits on one descriptor, which must stay open until `close` has been called. A descriptor can be polled only once per loop. */
export class Poll {
  readonly #native: NativePoll;
  readonly #memory: NativeMemory;
  readonly #closed = Promise.withResolvers<void>();
  #listener: PollListener | undefined;
  #isClosing = false;

  /** @throws {VpnError} ERR_SYSCALL when the descriptor cannot be polled */
  constructor(fd: number) {
    native ??= nativePoll(handleEvent, handleClosed);
    this.#native = native;
    this.#memory = new NativeMemory(native.handleBytes);
    const result = native.init(this.#memory.address, fd);
    if (result < 0) throw pollError('uv_poll_init', result, fd);
    // The map keeps this object, and with it the handle's memory, reachable for as long as libuv knows the handle.
    handles.set(this.#memory.address, this);
  }

  /** Starts waiting for `events`, or changes what is waited for. The listener is called once per loop turn while they hold. */
  start(events: number, listener: PollListener): void {
    if (this.#isClosing) throw new VpnError('ERR_INVARIANT', 'a closed poll handle was started');
    this.#listener = listener;
    const result = this.#native.start(this.#memory.address, events);
    if (result < 0) throw pollError('uv_poll_start', result);
  }

  stop(): void {
    if (!this.#isClosing) this.#native.stop(this.#memory.address);
  }

  /** Stops for good: no listener is called after this returns, and the descriptor may be closed. Resolves when libuv has let go. */
  close(): Promise<void> {
    if (!this.#isClosing) {
      this.#isClosing = true;
      this.#listener = undefined;
      this.#native.close(this.#memory.address);
    }
    return this.#closed.promise;
  }

  /** For the C callback only. */
  dispatch(status: number, events: number): void {
    this.#listener?.(status, events);
  }

  /** For the C callback only. The memory is kept until the callback has returned. */
  release(): void {
    setImmediate(() => {
      handles.delete(this.#memory.address);
      this.#closed.resolve();
    });
  }
}

function pollError(syscall: string, result: number, fd?: number): VpnError {
  return new VpnError('ERR_SYSCALL', `cannot wait for a descriptor: ${syscall}: ${errnoName(-result)}`, {
    details: { syscall, errno: errnoName(-result), errnoNumber: -result, fd },
  });
}
