/**
 * Streams through the gateway, for whoever wants one, as long as the client runs.
 *
 * Hides connections: one is opened when a stream is first wanted, another when it is lost, or has been used for long. A
 * stream that was asked for on a connection that broke before an answer is asked for once more. It must not know what a
 * stream is for.
 */

import { isVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { Repeat } from '../base/repeat.ts';
import type { ProxyStream, StreamSource, StreamTarget } from '../transport/stream-request.ts';
import type { VpnClient } from './client.ts';
import { ProxyConnection } from './proxy-connection.ts';

/** A connection is used for new streams no longer than that (docs/protocol.md §10). */
const MAX_AGE_MS = 3_600_000;
/** How long a stream waits for a client that is on its way back. */
const WAIT_MS = 10_000;
const RETRY_MS = 250;
const CHECK_MS = 3000;
/** Less than any idle limit of a gateway. */
const ACTIVE_MS = 20_000;
const SIGN_OF_LIFE = Uint8Array.of(0);

export class ProxyStreams implements StreamSource, AsyncDisposable {
  readonly #client: VpnClient;
  readonly #log: Logger;
  readonly #signs: Repeat;
  readonly #connections = new Set<ProxyConnection>();
  /** The one for new streams. */
  #live: ProxyConnection | undefined;
  #opening: Promise<ProxyConnection> | undefined;
  #openedAt = 0;
  #isClosed = false;

  constructor(client: VpnClient, log: Logger) {
    this.#client = client;
    this.#log = log.child({ component: 'proxy' });
    // Streams are not the session's packets, and it must not end as an idle one while they are open.
    this.#signs = new Repeat(
      ACTIVE_MS,
      async () => {
        if (this.streams > 0) await this.#client.echo(SIGN_OF_LIFE);
      },
      () => {},
    );
    this.#signs.start();
  }

  /** Streams that are open. */
  get streams(): number {
    let streams = 0;
    for (const connection of this.#connections) streams += connection.streams;
    return streams;
  }

  /**
   * Opens a connection now, so that the first stream need not wait for it.
   *
   * @throws {VpnError} ERR_PEER_GONE, ERR_TLS_ALPN when the gateway is no proxy
   */
  async prepare(): Promise<void> {
    await this.#connection();
  }

  /** @throws {StreamRefused}; {VpnError} ERR_PEER_GONE while there is no way to the gateway */
  async open(kind: 'tcp' | 'udp', target: StreamTarget): Promise<ProxyStream> {
    const connection = await this.#connection();
    try {
      return await connection.open(kind, target);
    } catch (error) {
      if (!isVpnError(error, 'ERR_PEER_GONE') || !connection.isClosed) throw error;
      return await (await this.#connection()).open(kind, target);
    }
  }

  /** The network may have changed: a connection that gives no sign of life at once is given up. */
  check(): void {
    for (const connection of this.#connections) connection.check(CHECK_MS);
  }

  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#signs.stop();
    for (const connection of this.#connections) connection.destroy();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #connection(): Promise<ProxyConnection> {
    const live = this.#live;
    if (live !== undefined && !live.isClosed && performance.now() - this.#openedAt < MAX_AGE_MS) return live;
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined;
    });
    return await this.#opening;
  }

  async #open(): Promise<ProxyConnection> {
    const deadline = performance.now() + WAIT_MS;
    for (;;) {
      if (this.#isClosed) throw new VpnError('ERR_PEER_GONE', 'the client was stopped');
      try {
        const { socket, binding } = await this.#client.dialProxy();
        const connection = await ProxyConnection.open(socket, binding);
        this.#use(connection);
        return connection;
      } catch (error) {
        // A session that is being resumed has other secrets in a moment.
        const isPassing = isVpnError(error, 'ERR_PEER_GONE') || isVpnError(error, 'ERR_ATTACH_PROOF');
        if (!isPassing || performance.now() > deadline) throw error;
        this.#log.debug('no connection for streams yet', { code: error.code });
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }

  #use(connection: ProxyConnection): void {
    if (this.#isClosed) {
      connection.destroy();
      throw new VpnError('ERR_PEER_GONE', 'the client was stopped');
    }
    this.#connections.add(connection);
    connection.onClosed(() => this.#connections.delete(connection));
    this.#live?.retire();
    this.#live = connection;
    this.#openedAt = performance.now();
  }
}
