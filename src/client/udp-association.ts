/**
 * A SOCKS5 UDP association: datagrams of one program, each destination a stream of its own to the gateway.
 *
 * Hides those streams. The association lives as long as its TCP connection; datagrams are taken from its program's address
 * only, fragments are dropped, and what does not fit is dropped as a network would.
 *
 * @see RFC 1928 §7, RFC 9298
 */

import { createSocket, type Socket as DatagramSocket } from 'node:dgram';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { Logger } from '../base/log.ts';
import { CapsuleDecoder, encodeUdp } from '../protocol/capsule.ts';
import type { StreamSource, StreamTarget } from '../transport/stream-request.ts';
import { encodeDatagram, encodeReply, parseDatagram, SocksReply } from './socks5.ts';

/** Beyond it the destination that was sent to longest ago makes room. */
const MAX_DESTINATIONS = 256;
/** Kept for a destination whose stream is being opened. */
const MAX_WAITING = 32;
const MAX_QUEUE_BYTES = 256 * 1024;

interface Destination {
  readonly target: StreamTarget;
  stream: Duplex | undefined;
  waiting: Uint8Array[];
  isGone: boolean;
}

export class UdpAssociation {
  readonly #control: Socket;
  readonly #streams: StreamSource;
  readonly #socket: DatagramSocket;
  readonly #log: Logger;
  /** The one that was sent to last at the end. */
  readonly #destinations = new Map<string, Destination>();
  /** The port that the program sends from, once it is known. */
  #port: number;

  /** Serves an association over the TCP connection that asked for it. @param wanted where the program will send from */
  static open(control: Socket, streams: StreamSource, wanted: StreamTarget | undefined, log: Logger): void {
    const association = new UdpAssociation(control, streams, wanted?.port ?? 0, log);
    association.#start();
  }

  private constructor(control: Socket, streams: StreamSource, port: number, log: Logger) {
    this.#control = control;
    this.#streams = streams;
    this.#port = port;
    this.#log = log;
    this.#socket = createSocket(control.localFamily === 'IPv6' ? 'udp6' : 'udp4');
  }

  #start(): void {
    const control = this.#control;
    const socket = this.#socket;
    control.once('close', () => this.#close());
    control.once('end', () => control.end());
    // Nothing more is said on it.
    control.resume();
    socket.once('error', () => control.end(encodeReply(SocksReply.failure)));
    socket.bind(0, control.localAddress, () => {
      const { address: host, port } = socket.address();
      control.write(encodeReply(SocksReply.succeeded, { host: host.replace(/%.*$/, ''), port }));
    });
    socket.on('message', (bytes, { address, port }) => {
      if (address !== control.remoteAddress || (this.#port !== 0 && port !== this.#port)) return;
      this.#port = port;
      const datagram = parseDatagram(bytes);
      if (datagram !== undefined) this.#send(datagram.target, new Uint8Array(datagram.payload));
    });
    if (control.destroyed) this.#close();
  }

  #send(target: StreamTarget, payload: Uint8Array): void {
    const key = `${target.host} ${target.port}`;
    const destination = this.#destinations.get(key) ?? this.#begin(target);
    this.#destinations.delete(key);
    this.#destinations.set(key, destination);
    const { stream } = destination;
    if (stream === undefined) {
      if (destination.waiting.length < MAX_WAITING) destination.waiting.push(payload);
    } else if (stream.writable && stream.writableLength < MAX_QUEUE_BYTES) {
      stream.write(encodeUdp(payload));
    }
  }

  #begin(target: StreamTarget): Destination {
    const [oldest] = this.#destinations.values();
    if (this.#destinations.size >= MAX_DESTINATIONS && oldest !== undefined) this.#end(oldest);
    const destination: Destination = { target, stream: undefined, waiting: [], isGone: false };
    this.#streams.open('udp', target).then(
      ({ duplex, reset }) => {
        if (destination.isGone) reset();
        else this.#carry(destination, duplex);
      },
      (error: unknown) => {
        this.#log.debug('no way for datagrams', { host: target.host, port: target.port, error });
        this.#end(destination);
      },
    );
    return destination;
  }

  #carry(destination: Destination, stream: Duplex): void {
    const { target } = destination;
    destination.stream = stream;
    const decoder = new CapsuleDecoder((payload) => {
      if (destination.isGone || this.#port === 0) return;
      if (this.#socket.getSendQueueSize() > MAX_QUEUE_BYTES) return;
      this.#socket.send(encodeDatagram({ target, payload }), this.#port, this.#control.remoteAddress);
    });
    stream.on('data', (chunk: Uint8Array) => {
      try {
        decoder.push(chunk);
      } catch {
        stream.destroy();
      }
    });
    stream.on('error', () => {});
    stream.once('close', () => this.#end(destination));
    for (const payload of destination.waiting.splice(0)) stream.write(encodeUdp(payload));
    if (stream.destroyed) this.#end(destination);
  }

  #end(destination: Destination): void {
    if (destination.isGone) return;
    destination.isGone = true;
    const { target, stream } = destination;
    const key = `${target.host} ${target.port}`;
    if (this.#destinations.get(key) === destination) this.#destinations.delete(key);
    stream?.destroy();
  }

  #close(): void {
    for (const destination of [...this.#destinations.values()]) this.#end(destination);
    this.#socket.close();
  }
}
