/**
 * Connections that belong to another worker.
 *
 * Hides how a connection gets there: its descriptor, what has been read of it and who the client is go in one packet to the
 * socket of that worker, whose sending end every worker has. What comes from another worker is believed no more than what comes
 * from the network: it is a connection, whatever is said of it. One that cannot be given away stays, and its client is told where its
 * session is.
 *
 *     u8 counted | u16 port | u8 length | address | what has been read
 */

import { Socket } from 'node:net';
import { closeFd, socketFd } from '../../os/socket.ts';
import { DescriptorReceiver, DescriptorSender, MAX_DESCRIPTOR_PACKET_BYTES } from '../../os/unix-socket.ts';
import { hintedWorker } from '../../transport/client-hello.ts';
import type { Endpoint } from '../../transport/endpoint.ts';
import type { Listener } from '../../transport/listener.ts';
import { DIALLED_PACKET } from '../ipc/messages.ts';

const HEADER_BYTES = 4;

export class Handover {
  /** Told of connections that auth has made, by the number of the question; the descriptor is whoever's it is told. */
  onDialled: (id: string, fd: number) => void = (_id, fd) => closeFd(fd);
  readonly #worker: number;
  readonly #senders = new Map<number, DescriptorSender>();

  /** @param others sending ends, by worker */
  constructor(worker: number, others: ReadonlyMap<number, number>) {
    this.#worker = worker;
    for (const [other, fd] of others) this.#senders.set(other, new DescriptorSender(fd));
  }

  /** Gives a connection to the worker that its client asks for; false: it stays here. */
  give(raw: Socket, start: Buffer, remote: Endpoint, isCounted: boolean): boolean {
    const worker = hintedWorker(start);
    if (worker === undefined || worker === this.#worker) return false;
    const sender = this.#senders.get(worker);
    const address = Buffer.from(remote.address);
    const length = HEADER_BYTES + address.length + start.length;
    if (sender === undefined || address.length > 255 || length > MAX_DESCRIPTOR_PACKET_BYTES) return false;
    const head = Buffer.of(isCounted ? 1 : 0, remote.port >> 8, remote.port & 0xff, address.length);
    return sender.send(Buffer.concat([head, address, start]), socketFd(raw));
  }

  /** Takes what other workers give from `fd`, which it takes over, for a listener. */
  receive(fd: number, listener: Listener): DescriptorReceiver {
    return new DescriptorReceiver(fd, (packet, descriptor) => {
      const bytes = Buffer.from(packet);
      if (bytes[0] === DIALLED_PACKET) {
        this.onDialled(bytes.toString('hex', 1), descriptor);
        return;
      }
      const addressEnd = HEADER_BYTES + (bytes[3] ?? 0);
      let raw: Socket;
      try {
        raw = new Socket({ fd: descriptor });
      } catch {
        // Not even a socket.
        closeFd(descriptor);
        return;
      }
      if (raw.remoteAddress === undefined || bytes.length <= addressEnd) {
        raw.destroy();
        return;
      }
      const remote = { address: bytes.toString('utf8', HEADER_BYTES, addressEnd), port: bytes.readUInt16BE(1) };
      listener.takeOver(raw, bytes.subarray(addressEnd), remote, bytes[0] === 1);
    });
  }
}
