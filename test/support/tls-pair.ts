/** Two ends of one TLS connection in this process, and a collector of frames. */

import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { connect, createServer, type SecureContextOptions, type TLSSocket } from 'node:tls';
import type { VpnError } from '../../src/base/errors.ts';
import { Channel, type ChannelFacts, type ChannelHandler, type ChannelOptions } from '../../src/transport/channel.ts';
import { TestAuthority } from './certificates.ts';

let context: Promise<SecureContextOptions> | undefined;

async function testContext(): Promise<SecureContextOptions> {
  const authority = await TestAuthority.create();
  const { cert, key } = await authority.server();
  return { ca: authority.cert, cert, key };
}

/** A TLS connection over loopback, handshake complete at both ends. */
export async function openSocketPair(): Promise<{ server: TLSSocket; client: TLSSocket }> {
  context ??= testContext();
  const options = await context;
  const listener = createServer({ ...options, noDelay: true });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const { port } = listener.address() as AddressInfo;
  const client = connect({ ...options, host: '127.0.0.1', port });
  client.setNoDelay(true);
  const [[server]] = await Promise.all([once(listener, 'secureConnection'), once(client, 'secureConnect')]);
  listener.close();
  return { server: server as TLSSocket, client };
}

/** The same over a pair of streams that have no descriptor. */
export async function openSocketPairOver(a: Duplex, b: Duplex): Promise<{ server: TLSSocket; client: TLSSocket }> {
  context ??= testContext();
  const options = await context;
  const listener = createServer(options);
  const client = connect({ ...options, socket: a, host: '127.0.0.1' });
  const accepted = once(listener, 'secureConnection');
  listener.emit('connection', b);
  const [[server]] = await Promise.all([accepted, once(client, 'secureConnect')]);
  return { server: server as TLSSocket, client };
}

/** Facts for a channel whose facts do not matter. */
export const ANY_FACTS: ChannelFacts = {
  protocol: 'TLSv1.3',
  cipher: 'TLS_AES_128_GCM_SHA256',
  group: 'X25519MLKEM768',
  alpn: 'customvpn/1',
  local: { address: '127.0.0.1', port: 1 },
  remote: { address: '127.0.0.1', port: 2 },
  authorized: false,
  peerCertificate: undefined,
  serverId: new Uint8Array(32),
};

export interface ChannelPair {
  server: Channel;
  client: Channel;
}

/** Two channels over loopback; `options` are the server's. */
export async function openChannelPair(options: Omit<ChannelOptions, 'facts'> = {}): Promise<ChannelPair> {
  const sockets = await openSocketPair();
  return {
    server: new Channel(sockets.server, { facts: ANY_FACTS, ...options }),
    client: new Channel(sockets.client, { facts: ANY_FACTS }),
  };
}

/** Splits what arrives into frames. */
export class FrameCollector implements ChannelHandler {
  /** Resolves when the channel has closed. */
  readonly end: Promise<VpnError | undefined>;
  readonly #end = Promise.withResolvers<VpnError | undefined>();
  readonly #onFrame: (type: number, payload: Uint8Array) => void;
  readonly #onWritable: () => void;
  #rest: Uint8Array = new Uint8Array(0);

  constructor(onFrame: (type: number, payload: Uint8Array) => void = () => {}, onWritable: () => void = () => {}) {
    this.end = this.#end.promise;
    this.#onFrame = onFrame;
    this.#onWritable = onWritable;
  }

  /** Waits for what frames bring about; a channel that closes first, or an assertion that fails in a frame, fails the test. */
  async until<T>(promise: Promise<T>): Promise<T> {
    const closed = this.end.then((error) => {
      throw error?.cause ?? error ?? new Error('the channel closed');
    });
    return await Promise.race([promise, closed]);
  }

  bytes(chunk: Uint8Array): void {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    while (bytes.length >= 4) {
      const length = ((bytes[1] ?? 0) << 16) | ((bytes[2] ?? 0) << 8) | (bytes[3] ?? 0);
      if (bytes.length < 4 + length) break;
      this.#onFrame(bytes[0] ?? 0, new Uint8Array(bytes.buffer, bytes.byteOffset + 4, length));
      bytes = bytes.subarray(4 + length);
    }
    this.#rest = Uint8Array.from(bytes);
  }

  writable(): void {
    this.#onWritable();
  }

  closed(error?: VpnError): void {
    this.#end.resolve(error);
  }
}
