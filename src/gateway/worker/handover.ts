/**
 * Connections that belong to another worker, or that another worker may have.
 *
 * The kernel deals connections by chance, which leaves a few clients unevenly spread; so each worker deals those that ask for no
 * worker to all in turn, itself first.
 *
 * Hides how a connection gets there: its descriptor, what has been read of it and who the client is go in one packet to that
 * worker. There is a way of its own from each worker to each other one, and from auth: what one sender does to its way, or sends
 * by it, is between the two. What comes from another worker is believed no more than what comes from the network: it is a
 * connection, whatever is said of it, and so many of one sender may come in a second and be in their handshake; others wait on the
 * way. One that cannot be given away, because nobody is there or too many are on the way, stays, and its client is told where its
 * session is. A worker that does not take what it has been given is passed over: new clients must not wait for one that hangs.
 *
 *     u8 counted | u16 port | u8 length | address | what has been read
 */

import { Socket } from 'node:net';
import { closeFd, socketFd } from '../../os/socket.ts';
import { DescriptorReceiver, DescriptorSender, MAX_DESCRIPTOR_PACKET_BYTES } from '../../os/unix-socket.ts';
import { requestedWorker } from '../../transport/client-hello.ts';
import { type Endpoint, sourceOf } from '../../transport/endpoint.ts';
import type { Listener } from '../../transport/listener.ts';

const HEADER_BYTES = 4;
/** Of a connection that auth has made: the number of the question. */
const DIALLED_BYTES = 16;
/** A core accepts fewer. More wait, and then the sender keeps its own. */
const PACKETS_PER_SECOND = 1000;
const REFILL_MS = 100;
/** A worker that has left something unread for so long gets nobody more in turn. */
const BEHIND_MS = 1000;
const PACKETS_PER_REFILL = (PACKETS_PER_SECOND * REFILL_MS) / 1000;
/** Where none of a sender's handshakes comes to its end for so long, one makes room for one on the way. */
const PATIENCE_MS = 1000;

/** Who takes connections over. */
export type HandoverListener = Pick<Listener, 'takeOver'>;

export interface HandoverOptions {
  /** This worker's number. */
  worker: number;
  /** How many connections of one sender may be in their handshake at once; asked for each. */
  maxInHandshake: () => number;
  /** Monotonic milliseconds. */
  now?: () => number;
}

/** The way to another worker. */
interface Way {
  readonly fd: number;
  readonly sender: DescriptorSender;
  /** When something was given that was the first unread one. */
  unreadSince: number;
}

export class Handover {
  /** Told of connections that auth has made, by the number of the question; the descriptor is whoever's it is told. */
  onDialled: (id: string, fd: number) => void = (_id, fd) => closeFd(fd);
  readonly #options: HandoverOptions;
  readonly #now: () => number;
  readonly #ways = new Map<number, Way>();
  readonly #senders = new Map<number, Inbound>();
  #dialled: DescriptorReceiver | undefined;
  /** Whose turn it is: 0 is this worker. */
  #turn = 0;
  #listener: HandoverListener | undefined;
  #isClosed = false;

  constructor(options: HandoverOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** The way to another worker, in place of the one to the process that it was before. The descriptor is this one's from now on. */
  addWay(worker: number, fd: number): void {
    const former = this.#ways.get(worker);
    this.#ways.set(worker, { fd, sender: new DescriptorSender(fd), unreadSince: 0 });
    if (former !== undefined) closeFd(former.fd);
  }

  /** The way from another worker, likewise. */
  addSender(worker: number, fd: number): void {
    this.#senders.get(worker)?.close();
    if (this.#isClosed) {
      closeFd(fd);
      return;
    }
    const inbound = new Inbound(fd, this.#options.maxInHandshake);
    this.#senders.set(worker, inbound);
    if (this.#listener !== undefined) inbound.start(this.#listener);
  }

  /** The way by which auth gives the connections that it makes for this worker. */
  addDialled(fd: number): void {
    void this.#dialled?.close();
    this.#dialled = new DescriptorReceiver(fd, (packet, descriptor) => {
      if (packet.length === DIALLED_BYTES) this.onDialled(Buffer.from(packet).toString('hex'), descriptor);
      else closeFd(descriptor);
    });
  }

  /** Takes what other workers give from now on. */
  start(listener: HandoverListener): void {
    this.#listener = listener;
    for (const sender of this.#senders.values()) sender.start(listener);
  }

  /** Takes nothing of other workers any more: what they have for this one stays with them. Idempotent. */
  close(): void {
    this.#isClosed = true;
    for (const sender of this.#senders.values()) sender.close();
    this.#senders.clear();
  }

  /** Gives a connection to the worker that its client asks for, or whose turn it is; false: it stays here. */
  give(raw: Socket, start: Buffer, remote: Endpoint, isCounted: boolean): boolean {
    const requested = requestedWorker(start);
    const worker = requested === 'any' ? this.#inTurn() : requested;
    if (worker === undefined || worker === this.#options.worker) return false;
    const way = this.#ways.get(worker);
    const address = Buffer.from(remote.address);
    const length = HEADER_BYTES + address.length + start.length;
    if (way === undefined || address.length > 255 || length > MAX_DESCRIPTOR_PACKET_BYTES) return false;
    const head = Buffer.of(isCounted ? 1 : 0, remote.port >> 8, remote.port & 0xff, address.length);
    if (!way.sender.hasUnread) way.unreadSince = this.#now();
    return way.sender.send(Buffer.concat([head, address, start]), socketFd(raw));
  }

  #inTurn(): number {
    const ways = [...this.#ways];
    for (let tries = 0; tries < ways.length; tries++) {
      const turn = this.#turn;
      this.#turn = (turn + 1) % (ways.length + 1);
      const [worker, way] = ways[turn - 1] ?? [];
      if (worker === undefined || way === undefined) break;
      if (!way.sender.hasUnread || this.#now() - way.unreadSince < BEHIND_MS) return worker;
    }
    return this.#options.worker;
  }
}

/** What one other worker gives. */
class Inbound {
  readonly #fd: number;
  readonly #maxInHandshake: () => number;
  /** Connections that are not through their handshake, by source, in the order in which they came. */
  readonly #inHandshake = new Map<Socket, string>();
  #left = PACKETS_PER_REFILL;
  #receiver: DescriptorReceiver | undefined;
  #refill: NodeJS.Timeout | undefined;
  /** While there is no room. */
  #patience: NodeJS.Timeout | undefined;
  #isClosed = false;

  constructor(fd: number, maxInHandshake: () => number) {
    this.#fd = fd;
    this.#maxInHandshake = maxInHandshake;
  }

  start(listener: HandoverListener): void {
    if (this.#receiver !== undefined || this.#isClosed) return;
    this.#receiver = new DescriptorReceiver(this.#fd, (packet, descriptor) => {
      this.#spend();
      this.#take(Buffer.from(packet), descriptor, listener);
      this.#regulate();
    });
  }

  /** What has been taken stays. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#refill);
    clearTimeout(this.#patience);
    if (this.#receiver === undefined) closeFd(this.#fd);
    else void this.#receiver.close();
  }

  #spend(): void {
    this.#left -= 1;
    // The first of a flock starts the time, so that nothing runs while nothing comes.
    this.#refill ??= setTimeout(() => {
      this.#refill = undefined;
      this.#left = PACKETS_PER_REFILL;
      this.#regulate();
    }, REFILL_MS).unref();
  }

  get #hasRoom(): boolean {
    return this.#inHandshake.size < Math.max(1, this.#maxInHandshake());
  }

  /** Takes more while it may. */
  #regulate(): void {
    if (this.#isClosed) return;
    const hasRoom = this.#hasRoom;
    if (hasRoom || this.#receiver === undefined) {
      clearTimeout(this.#patience);
      this.#patience = undefined;
    } else {
      this.#patience ??= setTimeout(() => {
        this.#patience = undefined;
        if (this.#left > 0) this.#receiver?.resume();
      }, PATIENCE_MS).unref();
    }
    if (hasRoom && this.#left > 0) this.#receiver?.resume();
    else this.#receiver?.pause();
  }

  #take(bytes: Buffer, descriptor: number, listener: HandoverListener): void {
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
    while (!this.#hasRoom) this.#makeRoom();
    this.#inHandshake.set(raw, sourceOf(remote.address));
    listener.takeOver(raw, bytes.subarray(addressEnd), remote, bytes[0] === 1, () => {
      if (this.#inHandshake.delete(raw)) this.#regulate();
    });
  }

  /** As the listener does with those that come from outside: of the source that has the most, the oldest goes. */
  #makeRoom(): void {
    const counts = new Map<string, number>();
    for (const source of this.#inHandshake.values()) counts.set(source, (counts.get(source) ?? 0) + 1);
    const most = Math.max(...counts.values());
    for (const [raw, source] of this.#inHandshake) {
      if (counts.get(source) !== most) continue;
      this.#inHandshake.delete(raw);
      raw.resetAndDestroy();
      return;
    }
  }
}
