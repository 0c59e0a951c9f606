/**
 * Runs the packet path before it is needed.
 *
 * A process that has just started answers its first thousands of packets about twice as slowly, because its code is still
 * being interpreted. This sends small packets back and forth through the real thing (links, channels, frames, TLS over
 * loopback, devices in memory) for a bounded time. The connection is between this process and itself, under a key that is
 * made for it and forgotten.
 */

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { connect, createServer, type TLSSocket } from 'node:tls';
import { parseIp } from '../ip/address.ts';
import { DROP_REASON_NAMES } from '../ip/drop-reason.ts';
import { MemoryTun } from '../os/tun-memory.ts';
import { FrameDecoder, type FrameSink } from '../protocol/frame.ts';
import { Channel } from './channel.ts';
import { PacketBufferPool, PacketLink, SendBatch } from './packet-link.ts';

const CIPHER = 'TLS_AES_128_GCM_SHA256';
const MTU = 1500;
const KEY_BYTES = 32;
const ADDRESS = '192.0.2.1';
const PACKET_BYTES = 84;
/** Version, header length, total length, protocol ICMP, and the address at both ends; the path reads nothing else. */
const PACKET = Uint8Array.of(0x45, 0, 0, PACKET_BYTES, 0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 1, 192, 0, 2, 1);

export interface WarmUpLimits {
  /** Round trips after which the code is as fast as it gets. */
  rounds: number;
  /** Milliseconds after which to stop in any case. */
  timeMs: number;
}

/** Runs until either limit is reached; returns the round trips made. Leaves nothing open. */
export async function warmUp(limits: WarmUpLimits): Promise<number> {
  const { server, client } = await openPair();
  const near = new Peer(server, 'source');
  const far = new Peer(client, 'destination');
  const done = Promise.withResolvers<number>();
  const deadline = performance.now() + limits.timeMs;
  let rounds = 0;
  near.onPacket = (packet) => near.tun.inject(packet);
  far.onPacket = (packet) => {
    rounds += 1;
    if (rounds >= limits.rounds || performance.now() >= deadline) done.resolve(rounds);
    else far.tun.inject(packet);
  };
  far.onClosed = () => done.resolve(rounds);
  const packet = new Uint8Array(PACKET_BYTES);
  packet.set(PACKET);
  far.tun.inject(packet);
  return await done.promise.finally(() => {
    near.close();
    far.close();
  });
}

/** One end: a device in memory, a link and a channel. */
class Peer implements FrameSink {
  readonly tun = new MemoryTun({ mtu: MTU });
  target: Uint8Array = new Uint8Array(0);
  targetOffset = 0;
  onPacket: (packet: Uint8Array) => void = () => {};
  onClosed: () => void = () => {};
  readonly #channel: Channel;
  readonly #receiver;

  constructor(socket: TLSSocket, ownAddress: 'source' | 'destination') {
    const nobody = { address: '', port: 0 };
    this.#channel = new Channel(socket, {
      facts: {
        protocol: 'TLSv1.3',
        cipher: CIPHER,
        group: '',
        alpn: undefined,
        local: nobody,
        remote: nobody,
        authorized: false,
        peerCertificate: undefined,
        serverId: new Uint8Array(0),
      },
    });
    const batch = new SendBatch();
    const link = new PacketLink({
      device: this.tun,
      buffers: new PacketBufferPool(this.tun),
      batch,
      lease: { v4: parseIp(ADDRESS) },
      ownAddress,
      superPackets: true,
      limits: { mtu: MTU, uso: true },
      drops: new Float64Array(DROP_REASON_NAMES.length),
    });
    link.spread.set(0, this.#channel);
    this.#receiver = link.createReceiver();
    this.tun.onWritten = ({ bytes }) => this.onPacket(bytes);
    this.tun.start({ packet: (...packet) => link.send(...packet), idle: () => batch.flush() });
    const decoder = new FrameDecoder(this, 'client');
    decoder.setPhase('data');
    this.#channel.start({ bytes: (chunk) => decoder.push(chunk), closed: () => this.onClosed() });
  }

  close(): void {
    this.#channel.destroy();
    void this.tun.close();
  }

  reserve(type: number, length: number, whole: boolean): void {
    this.#receiver.reserve(type, length, whole);
    this.target = this.#receiver.target;
    this.targetOffset = this.#receiver.targetOffset;
  }

  data(type: number, length: number): void {
    this.#receiver.data(type, length);
  }

  control(): void {}

  unknown(): void {}
}

/** A TLS connection over loopback, under a key that both ends have. */
async function openPair(): Promise<{ server: TLSSocket; client: TLSSocket }> {
  const psk = randomBytes(KEY_BYTES);
  const profile = { ciphers: CIPHER, minVersion: 'TLSv1.3' } as const;
  const listener = createServer({ ...profile, pskCallback: () => psk, noDelay: true });
  listener.listen(0, '127.0.0.1');
  try {
    await once(listener, 'listening');
    const { port } = listener.address() as AddressInfo;
    const client = connect({
      ...profile,
      host: '127.0.0.1',
      port,
      pskCallback: () => ({ identity: 'warm-up', psk }),
      checkServerIdentity: () => undefined,
    });
    client.setNoDelay(true);
    const [[server]] = (await Promise.all([once(listener, 'secureConnection'), once(client, 'secureConnect')])) as [
      [TLSSocket],
      unknown,
    ];
    return { server, client };
  } finally {
    listener.close();
  }
}
