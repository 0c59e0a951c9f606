/**
 * The world behind a gateway's proxy, in this process: addresses and names that are ports of this machine in truth.
 *
 * Hides where servers really listen. All that the gateway decides about addresses it decides about those of this world.
 */

import { createSocket, type Socket as DatagramSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import type { DialNetwork } from '../../src/gateway/server.ts';
import { formatIp, type IpAddress } from '../../src/ip/address.ts';

/** Nobody listens there. */
const CLOSED_PORT = 1;

export class TargetNetwork implements DialNetwork, AsyncDisposable {
  /** Addresses by name. */
  readonly names = new Map<string, readonly string[]>();
  /** Addresses of the gateway's host. */
  readonly own = new Set<string>();
  /** Every address that a connection was begun to. */
  readonly dialled: string[] = [];
  readonly #ports = new Map<string, number>();
  readonly #servers: Server[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #datagrams: DatagramSocket[] = [];

  /** A server at an address and port of this world. */
  async serve(address: string, port: number, take: (socket: Socket) => void): Promise<void> {
    const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
      this.#sockets.add(socket);
      socket.on('error', () => {});
      socket.once('close', () => this.#sockets.delete(socket));
      take(socket);
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    this.#servers.push(server);
    const bound = server.address();
    if (typeof bound === 'object' && bound !== null) this.#ports.set(`tcp ${address} ${port}`, bound.port);
  }

  /** A UDP server; what `answer` returns goes back. */
  async serveUdp(address: string, port: number, answer: (payload: Buffer) => Uint8Array[]): Promise<void> {
    const socket = createSocket('udp4');
    socket.on('message', (payload, from) => {
      for (const reply of answer(payload)) socket.send(reply, from.port, from.address);
    });
    socket.bind(0, '127.0.0.1');
    await once(socket, 'listening');
    this.#datagrams.push(socket);
    this.#ports.set(`udp ${address} ${port}`, socket.address().port);
  }

  /** Connections of the servers that are open. */
  get connections(): number {
    return this.#sockets.size;
  }

  async resolve(name: string): Promise<readonly string[]> {
    return this.names.get(name) ?? [];
  }

  connect(addresses: readonly string[], port: number): Socket {
    const [address = ''] = addresses;
    this.dialled.push(address);
    const target = { host: '127.0.0.1', port: this.#ports.get(`tcp ${address} ${port}`) ?? CLOSED_PORT };
    const socket = connect({ ...target, allowHalfOpen: true, noDelay: true });
    // The gateway asks the socket where it has got to, and judges that again when the policy changes.
    return Object.defineProperty(socket, 'remoteAddress', { value: address });
  }

  async connectUdp(address: string, port: number): Promise<DatagramSocket> {
    this.dialled.push(address);
    const socket = createSocket('udp4');
    socket.connect(this.#ports.get(`udp ${address} ${port}`) ?? CLOSED_PORT, '127.0.0.1');
    await once(socket, 'connect');
    return socket;
  }

  isOwn(address: IpAddress): boolean {
    return this.own.has(formatIp(address));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) server.close();
    for (const socket of this.#sockets) socket.destroy();
    for (const socket of this.#datagrams) socket.close();
  }
}
