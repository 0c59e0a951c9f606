/**
 * Dials for a worker in a process of its own, and sends it the descriptor of the connection.
 *
 * Hides the descriptor's way: a socket that leads to that worker alone, in a packet that says which question it answers. Nothing is read of a connection here, and this process's copy is closed when the worker has its own.
 */

import { datagramFd, socketFd } from '../../os/socket.ts';
import type { DescriptorSender } from '../../os/unix-socket.ts';
import type { StreamRefusal } from '../../transport/stream-request.ts';
import type { Dialler } from '../dialler.ts';
import type { DialRequest, ProxyKey } from '../ipc/ports.ts';

/** What a worker is answered; the descriptor is on its way. */
export type DialAnswer = { readonly address: string } | { readonly refused: StreamRefusal };

export class DialDesk {
  readonly #dialler: Dialler;
  readonly #sender: DescriptorSender;

  constructor(dialler: Dialler, sender: DescriptorSender) {
    this.#dialler = dialler;
    this.#sender = sender;
  }

  /** @param id of the worker's question, 32 hexadecimal digits */
  async dial(id: string, request: DialRequest): Promise<DialAnswer> {
    if (request.kind === 'udp') {
      const verdict = await this.#dialler.dialUdp(request);
      if ('refused' in verdict) return verdict;
      const { socket, address } = verdict;
      const isSent = this.#send(id, datagramFd(socket));
      socket.close();
      return isSent ? { address } : { refused: 'connection_limit_reached' };
    }
    const verdict = await this.#dialler.dialTcp(request);
    if ('refused' in verdict) return verdict;
    const { socket, address } = verdict;
    let isSent = false;
    try {
      isSent = this.#send(id, socketFd(socket));
    } catch {
      // It has broken already.
      return { refused: 'connection_refused' };
    } finally {
      socket.destroy();
    }
    return isSent ? { address } : { refused: 'connection_limit_reached' };
  }

  isAllowed(key: ProxyKey, kind: 'tcp' | 'udp', address: string, port: number): Promise<boolean> {
    return this.#dialler.isAllowed(key, kind, address, port);
  }

  #send(id: string, fd: number): boolean {
    return this.#sender.send(Buffer.from(id, 'hex'), fd);
  }
}
