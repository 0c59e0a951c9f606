/**
 * Lets connections wait in the kernel while a process has no descriptor for another one.
 *
 * Hides that Node goes on accepting in vain, in every turn of the event loop, and has no word for a pause: the server is closed
 * and listens again a moment later, on a duplicate of its socket, which is kept for that. The socket itself stays open all the
 * time, and so does what waits at it.
 */

import type { Server } from 'node:net';
import { closeFd, duplicateFd } from '../os/socket.ts';

const PAUSE_MS = 200;
/** What the system says when it has no descriptor, or no memory, for what it has accepted. */
const EXHAUSTED = new Set(['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM']);

export class AcceptPause {
  readonly #server: Server;
  readonly #backlog: number;
  /** Kept for the next pause. */
  #spare: number | undefined;
  /** What the server listens on after this pause. */
  #next: number | undefined;
  #timer: NodeJS.Timeout | undefined;

  /** @param fd what the server listens on; it stays the server's @throws {VpnError} ERR_SYSCALL */
  constructor(server: Server, fd: number, backlog: number) {
    this.#server = server;
    this.#backlog = backlog;
    this.#spare = duplicateFd(fd);
  }

  /** The server could not accept a connection. @returns whether connections wait now */
  failed(error: Error): boolean {
    const next = this.#spare;
    const code = 'code' in error ? String(error.code) : '';
    if (next === undefined || this.#next !== undefined || !EXHAUSTED.has(code)) return false;
    this.#server.close();
    this.#next = next;
    try {
      // Closing has just set one free.
      this.#spare = duplicateFd(next);
    } catch {
      this.#spare = undefined;
    }
    this.#timer = setTimeout(() => {
      this.#next = undefined;
      this.#server.listen({ fd: next }, this.#backlog);
    }, PAUSE_MS);
    return true;
  }

  /** The server is not to listen any more. Idempotent. */
  close(): void {
    clearTimeout(this.#timer);
    for (const fd of [this.#spare, this.#next]) if (fd !== undefined) closeFd(fd);
    this.#spare = undefined;
    this.#next = undefined;
  }
}
