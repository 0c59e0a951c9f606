/**
 * Lets connections wait in the kernel while a process has no descriptor for another one.
 *
 * Hides that Node tells nobody when it cannot accept one, tries again in every turn of the event loop, and has no word for a pause:
 * once a second it is looked whether there is a descriptor left; if not, the server is closed, and listens again when there is one, on
 * a duplicate of its socket, which is kept for that. The socket itself stays open all the time, and so does what waits at it.
 */

import type { Server } from 'node:net';
import { closeFd, duplicateFd } from '../os/socket.ts';

const LOOK_MS = 1000;

export interface AcceptPauseOptions {
  server: Server;
  /** What the server listens on; it stays the server's. */
  fd: number;
  backlog: number;
  /** Connections wait from now on. */
  paused: () => void;
}

export class AcceptPause {
  readonly #options: AcceptPauseOptions;
  readonly #timer: NodeJS.Timeout;
  /** What the server listens on after the next pause; undefined: it is over. */
  #spare: number | undefined;
  /** While connections wait: what is the spare one afterwards. */
  #next: number | undefined;

  /** @throws {VpnError} ERR_SYSCALL */
  constructor(options: AcceptPauseOptions) {
    this.#options = options;
    this.#spare = duplicateFd(options.fd);
    this.#timer = setInterval(() => this.look(), LOOK_MS).unref();
  }

  /** Called once a second. */
  look(): void {
    const { server, backlog, paused } = this.#options;
    const spare = this.#spare;
    if (spare === undefined) return;
    const another = tryDuplicate(spare);
    if (another === undefined) {
      if (!server.listening) return;
      server.close();
      // The one that has just been set free is none that is left.
      this.#next = tryDuplicate(spare);
      paused();
      return;
    }
    if (!server.listening) {
      server.listen({ fd: spare }, backlog);
      this.#spare = this.#next ?? another;
      this.#next = undefined;
    }
    if (this.#spare !== another) closeFd(another);
  }

  /** The server is not to listen any more. Idempotent. */
  close(): void {
    clearInterval(this.#timer);
    for (const fd of [this.#spare, this.#next]) if (fd !== undefined) closeFd(fd);
    this.#spare = undefined;
    this.#next = undefined;
  }
}

function tryDuplicate(fd: number): number | undefined {
  try {
    return duplicateFd(fd);
  } catch {
    return undefined;
  }
}
