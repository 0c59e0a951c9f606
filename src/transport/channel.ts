/**
 * One TLS connection after its handshake, as a thing that sends frames and receives bytes.
 *
 * Hides the socket, how writes are paced and what waits where (data in a `FairQueue`). One write is in flight at a time and the next goes from
 * its callback, so that what has not been sent stands in our queues, where it can be dropped and overtaken, and not in
 * the socket's; a gate holds writes back while the kernel has enough unsent bytes (`SIOCOUTQNSD`). It knows where frames
 * end but not what they say: parsing and meaning belong to the handler.
 *
 * @see docs/protocol.md#REQ-CHANNEL-001
 */

import type { TLSSocket } from 'node:tls';
import { toVpnError, VpnError } from '../base/errors.ts';
import type { TrafficClasses } from '../ip/traffic-class.ts';
import { type PathFacts, socketFd, TcpPath, UnsentGate } from '../os/socket.ts';
import type { HolderFacts } from './certificate-facts.ts';
import type { FrameCompressor } from './compression.ts';
import { batchCost, frameCost } from './data-frame.ts';
import { readDirectly } from './direct-read.ts';
import type { Endpoint } from './endpoint.ts';
import { FairQueue } from './fair-queue.ts';
import { FlightLimit } from './flight-limit.ts';
import { PaceGate, type Pacer } from './pacer.ts';
import { PacketQueue } from './packet-queue.ts';
import { PathWatch } from './path-watch.ts';
import type { QueueBudget } from './queue-budget.ts';
import { translateTlsError } from './tls.ts';

/** One write takes at most so much of the control frames that wait, or one of them. */
const CONTROL_BATCH_BYTES = 16 * 1024;
/** Half of the listening socket's TCP_NOTSENT_LOWAT: the kernel reports "writable" below it. */
const GATE_BYTES = 4096;
/** Of a TLS record: header, type, authentication tag, and what TLS 1.2 adds. */
const MAX_RECORD_OVERHEAD = 40;
const CONTROL_QUEUE_BYTES = 1024 * 1024;
/** Twice what a kernel lets one flow have in flight (`tcp_wmem`): on a fast path a single flow is never told to slow down. */
const DATA_QUEUE_BYTES = 8 * 1024 * 1024;
const LINGER_MS = 1000;
/** Until what is on the way is looked at again; less than what is on the way takes. */
const FLIGHT_WAIT_MS = 2;
/** How long a queue must be unused before its memory goes. */
const IDLE_QUEUE_MS = 5000;

/** What was read from the peer's certificate. */
export interface PeerCertificate {
  /** The subject's common name, or the whole subject when it has none. */
  readonly name: string;
  /** Lower-case hexadecimal. */
  readonly serial: string;
  readonly issuer: string;
  /** Base64 SHA-256 of the public key (SPKI). */
  readonly pin: string;
  /** Milliseconds since the Unix epoch. */
  readonly notAfter: number;
  /** What a server reads of a client's besides. */
  readonly holder?: HolderFacts | undefined;
}

/** What is known of a connection after its handshake; never changes. */
export interface ChannelFacts {
  /** `TLSv1.3` or `TLSv1.2`. */
  readonly protocol: string;
  /** The suite's standard (IANA) name. */
  readonly cipher: string;
  /** The key-exchange group as this handshake negotiated it, such as `X25519MLKEM768`. */
  readonly group: string;
  /** `undefined` when the client sent no ALPN. */
  readonly alpn: string | undefined;
  readonly local: Endpoint;
  readonly remote: Endpoint;
  /** Whether the peer showed a certificate that was verified. On a server without one: false. */
  readonly authorized: boolean;
  readonly peerCertificate: PeerCertificate | undefined;
  /** SHA-256 of the public key (SPKI) of the server's certificate in this handshake; the same at both ends. */
  readonly serverId: Uint8Array;
}

/** Takes what a channel receives. */
export interface ChannelHandler {
  /** Bytes as they come; borrowed until return. What it throws closes the channel with that error. */
  bytes(chunk: Uint8Array): void;
  /** Called exactly once, last. Without an error the end was orderly: ours, or the peer's. */
  closed(error?: VpnError): void;
  /** `sendData` has returned false and there is room again. */
  writable?(): void;
}

/** Tells how much the kernel has not sent yet. */
export interface SendGate {
  /** Bytes taken by the kernel and not sent for the first time. */
  unsent(): number;
  /** Calls back once when the socket takes more. */
  whenWritable(callback: () => void): void;
  /** Bytes taken by the kernel and not acknowledged by the peer's. */
  unacknowledged(): number;
  /** Told of every write. */
  wrote(bytes: number): void;
  /** What the kernel knows of the way. @returns false when it tells nothing */
  read(facts: PathFacts): boolean;
  close(): void;
}

export interface ChannelOptions {
  facts: ChannelFacts;
  /**
   * Called before the first data is sent; default the kernel's gate, where there is one. Without a gate, writes are held
   * back only by the one before.
   */
  openGate?: (() => SendGate | undefined) | undefined;
  dataQueueBytes?: number | undefined;
  controlQueueBytes?: number | undefined;
  /** Shared by the data queues of a process. */
  queues?: QueueBudget | undefined;
}

/** Plain integers, read at scrape. */
export interface ChannelCounters {
  sentBytes: number;
  writes: number;
  receivedBytes: number;
  /** Writes that had to wait for the kernel. */
  gateWaits: number;
  /** Writes that had to wait until less was on the way. */
  flightWaits: number;
  /** Calls of `sendData` that found the queue full. */
  refused: number;
}

/** One end of a connection that carries frames. */
export class Channel {
  readonly facts: ChannelFacts;
  readonly counters: ChannelCounters = {
    sentBytes: 0,
    writes: 0,
    receivedBytes: 0,
    gateWaits: 0,
    flightWaits: 0,
    refused: 0,
  };
  readonly #socket: TLSSocket;
  /** Only data is worth a second descriptor: a connection that carries none has no gate. */
  #openGate: (() => SendGate | undefined) | undefined;
  #gate: SendGate | undefined;
  readonly #control: PacketQueue;
  readonly #data: FairQueue;
  /** The one callback of every write and of every wait for the gate. */
  readonly #resume: (error?: Error | null) => void;
  /** Data goes through it on its way out. */
  compressor: FrameCompressor | undefined;
  /** Holds data back to keep a rate. */
  readonly #pace: PaceGate;
  #handler: ChannelHandler | undefined;
  /** A write is in flight, or the gate is shut. */
  #isBusy = false;
  #isRefusing = false;
  /** The frame after which no data is sent, and who waits for it to go. */
  #last: { readonly frame: Uint8Array; readonly sent: () => void } | undefined;
  /** No data is taken any more. */
  #isFinished = false;
  #isClosing = false;
  #isClosed = false;
  #error: VpnError | undefined;
  #linger: NodeJS.Timeout | undefined;
  readonly #facts: PathFacts = { rttMs: 0, minRttMs: 0, sentSegments: 0, resentSegments: 0, ackedBytes: 0 };
  /** Made when the connection is found slow. */
  #flight: FlightLimit | undefined;
  #flightTimer: NodeJS.Timeout | undefined;
  #idleTimer: NodeJS.Timeout | undefined;

  /** Takes the socket over. Its handshake must be complete; nothing is read from it before `start`. */
  constructor(socket: TLSSocket, options: ChannelOptions) {
    this.facts = options.facts;
    this.#socket = socket;
    this.#openGate = options.openGate ?? (() => openKernelGate(socket));
    this.#control = new PacketQueue(options.controlQueueBytes ?? CONTROL_QUEUE_BYTES);
    this.#data = new FairQueue({
      limitBytes: options.dataQueueBytes ?? DATA_QUEUE_BYTES,
      budget: options.queues,
      roundTripMs: () => (this.#gate?.read(this.#facts) === true ? this.#facts.rttMs : 0),
    });
    this.#pace = new PaceGate(() => this.flush());
    this.#resume = (error) => {
      this.#isBusy = false;
      if (error == null) this.#pump();
    };
    socket.setTimeout(0);
    socket.on('error', (error) => {
      this.#error ??= this.#isClosing ? undefined : translateTlsError(error, 'ERR_PEER_GONE');
    });
    socket.on('end', () => this.close());
    socket.on('close', () => this.#finish());
  }

  /** Bytes that wait for the socket in both queues. */
  get queuedBytes(): number {
    return this.#control.queuedBytes + this.#data.queuedBytes;
  }

  /** Memory of both queues, used or not. */
  get heldBytes(): number {
    return this.#control.heldBytes + this.#data.heldBytes;
  }

  get isClosed(): boolean {
    return this.#isClosed || this.#isClosing;
  }

  /** Data keeps these rates from now on; undefined: none. Control frames keep none. */
  set pacer(pacer: Pacer | undefined) {
    if (!this.isClosed) this.#pace.pacer = pacer;
  }

  /** Data frames that come belong to these classes of traffic. */
  set classes(classes: TrafficClasses) {
    this.#data.classes = classes;
  }

  /**
   * Keying material of this connection, known to both ends and to nobody else (RFC 8446 §7.5).
   *
   * @param label the whole label
   * @param context may be empty
   * @returns 32 bytes
   * @throws {VpnError} ERR_PEER_GONE when the connection has ended
   */
  exporter(label: string, context: Uint8Array): Uint8Array {
    if (this.#isClosed) throw new VpnError('ERR_PEER_GONE', 'the connection has ended; it has no keys any more');
    return this.#socket.exportKeyingMaterial(32, label, Buffer.from(context));
  }

  /** Starts reading. Called once. */
  start(handler: ChannelHandler): void {
    if (this.#handler !== undefined) throw new VpnError('ERR_INVARIANT', 'a channel was started twice');
    this.#handler = handler;
    if (this.#isClosed) {
      process.nextTick(() => handler.closed(this.#error));
      return;
    }
    const take = (chunk: Uint8Array): void => {
      if (this.#isClosing) return;
      this.counters.receivedBytes += chunk.length;
      try {
        handler.bytes(chunk);
      } catch (error) {
        this.destroy(toVpnError(error));
      }
    };
    readDirectly(this.#socket, take);
    this.#socket.on('data', take);
  }

  /**
   * Sends a control frame, or several in one, in front of all data that waits. The bytes may be reused at once. A peer that lets a megabyte
   * of them pile up is given up: the channel closes with ERR_PEER_GONE.
   */
  sendControl(frame: Uint8Array): void {
    if (this.#isClosing || this.#isClosed) return;
    if (this.#isReady()) {
      this.#write(viewOf(frame, 0, frame.length));
      return;
    }
    if (!this.#control.push(frame, 0, frame.length)) {
      this.destroy(new VpnError('ERR_PEER_GONE', 'the peer does not read: its control frames fill the queue'));
      return;
    }
    this.#watchIdle();
  }

  /**
   * Sends the one frame `bytes[start, end)`. The bytes may be reused at once. A frame that carries a packet and has to wait
   * may be dropped later, and counted then; others are sent in order.
   *
   * @returns false when the queue is full, or the channel closed: nothing was taken
   */
  sendData(bytes: Uint8Array, start: number, end: number): boolean {
    if (this.#isFinished) return false;
    if (this.#openGate !== undefined) this.#findGate();
    const isFirst = this.#data.queuedBytes === 0;
    if (isFirst && end - start <= this.#data.unitBytes && this.#isReady() && this.#isPaid(bytes, start, end)) {
      const frame = viewOf(bytes, start, end);
      this.#write(this.compressor === undefined ? frame : this.compressor.pack(frame));
      return true;
    }
    const isTaken = this.#enqueue(bytes, start, end);
    if (isFirst) this.flush();
    return isTaken;
  }

  /** As `sendData`, but waits for others to go with it in one write: until `flush`, or until the queue is sent anyway. */
  deferData(bytes: Uint8Array, start: number, end: number): boolean {
    if (this.#isFinished) return false;
    if (this.#openGate !== undefined) this.#findGate();
    return this.#enqueue(bytes, start, end);
  }

  /** Sends what was deferred. */
  flush(): void {
    if (!this.#isBusy && this.#data.queuedBytes > 0) this.#pump();
  }

  /**
   * Sends one frame behind all data that waits, and takes no data after it.
   *
   * @param sent called once, when it has been handed to the socket; never if the channel is closed before
   */
  sendLast(frame: Uint8Array, sent: () => void): void {
    if (this.#isFinished) return;
    this.#isFinished = true;
    this.#last = { frame, sent };
    if (!this.#isBusy) this.#pump();
  }

  /** Leaves what the peer sends in the kernel, apart from what has been read already. The end is not noticed either. */
  pause(): void {
    this.#socket.pause();
  }

  /** Reads on after `pause`. */
  resume(): void {
    this.#socket.resume();
  }

  #findGate(): void {
    this.#gate = this.#openGate?.();
    this.#openGate = undefined;
  }

  #enqueue(bytes: Uint8Array, start: number, end: number): boolean {
    if (!this.#data.push(bytes, start, end)) {
      this.counters.refused += 1;
      this.#isRefusing = true;
      return false;
    }
    if (this.#idleTimer === undefined) this.#watchIdle();
    return true;
  }

  /**
   * Sends what control frames wait and `finalFrame`, forgets queued data, and ends the connection; after a second it is
   * cut. Nothing is received any more. Idempotent.
   */
  close(finalFrame?: Uint8Array): void {
    if (this.#isClosing || this.#isClosed) return;
    this.#isClosing = true;
    this.#isFinished = true;
    this.#last = undefined;
    this.#data.close();
    this.#pace.close();
    if (finalFrame !== undefined) this.#control.push(finalFrame, 0, finalFrame.length);
    this.#linger = setTimeout(() => this.destroy(), LINGER_MS);
    this.#linger.unref();
    // Reading on lets the peer's own end arrive; unread bytes would make the kernel send a reset that overtakes ours.
    this.#socket.resume();
    if (!this.#isBusy) this.#pump();
  }

  /** Cuts the connection. `closed` is called with `error` unless another came first. Idempotent. */
  destroy(error?: VpnError): void {
    if (this.#isClosed) return;
    if (!this.#isClosing) this.#error ??= error;
    this.#release();
    this.#socket.destroy();
  }

  /** Whether a write may go out now, in front of which nothing waits. Shuts the gate if the kernel has enough. */
  #isReady(): boolean {
    return !this.#isBusy && this.#isGateOpen();
  }

  #isGateOpen(): boolean {
    const gate = this.#gate;
    if (gate === undefined) return true;
    if (gate.unsent() >= GATE_BYTES) {
      this.#isBusy = true;
      this.counters.gateWaits += 1;
      gate.whenWritable(this.#resume);
      return false;
    }
    if (!this.#data.isSlow) return true;
    this.#flight ??= new FlightLimit((facts) => gate.read(facts));
    if (gate.unacknowledged() < this.#flight.bytes(performance.now())) return true;
    this.#isBusy = true;
    this.counters.flightWaits += 1;
    // One timer for the life of the connection, and only where it is slow.
    if (this.#flightTimer === undefined) this.#flightTimer = setTimeout(this.#resume, FLIGHT_WAIT_MS).unref();
    else this.#flightTimer.refresh();
    return false;
  }

  #isPaid(bytes: Uint8Array, start: number, end: number): boolean {
    return this.#pace.pacer === undefined || this.#pace.tryPay(frameCost(bytes, start, end - start));
  }

  #takeData(): Buffer | undefined {
    const batch = this.#takeBatch();
    return batch === undefined || this.compressor === undefined ? batch : this.compressor.pack(batch);
  }

  #takeBatch(): Buffer | undefined {
    const pace = this.#pace;
    if (pace.pacer === undefined) return this.#data.take();
    if (!pace.isOpen()) return undefined;
    const batch = this.#data.take(pace.batchBytes);
    pace.spent(batch === undefined ? 0 : batchCost(batch));
    return batch;
  }

  /** Sends the next batch. Nothing is in flight. */
  #pump(): void {
    if (this.#isClosed) return;
    if (this.#control.queuedBytes === 0 && this.#data.queuedBytes === 0) {
      const last = this.#last;
      if (last !== undefined) {
        this.#last = undefined;
        this.#write(viewOf(last.frame, 0, last.frame.length));
        last.sent();
      } else if (this.#isClosing) this.#socket.end();
      return;
    }
    if (this.#pace.isWaiting && this.#control.queuedBytes === 0) return;
    if (!this.#isGateOpen()) return;
    const batch = this.#control.take(CONTROL_BATCH_BYTES) ?? this.#takeData();
    if (batch !== undefined) this.#write(batch);
    if (this.#isRefusing && this.#data.queuedBytes <= this.#data.limitBytes / 2) {
      this.#isRefusing = false;
      this.#handler?.writable?.();
    }
  }

  /**
   * With no write in flight the stream hands the bytes straight to OpenSSL, which has encrypted or copied them when
   * this returns; that is why callers may reuse theirs.
   */
  #write(bytes: Buffer): void {
    this.#isBusy = true;
    this.counters.sentBytes += bytes.length;
    this.counters.writes += 1;
    this.#gate?.wrote(bytes.length);
    this.#socket.write(bytes, this.#resume);
  }

  #watchIdle(): void {
    this.#idleTimer ??= setInterval(() => {
      const isDataReleased = this.#data.releaseIfIdle();
      if (!this.#control.releaseIfIdle() || !isDataReleased) return;
      clearInterval(this.#idleTimer);
      this.#idleTimer = undefined;
    }, IDLE_QUEUE_MS).unref();
  }

  #release(): void {
    this.#isClosed = true;
    this.#isFinished = true;
    this.#last = undefined;
    this.#data.close();
    this.#pace.close();
    this.#control.clear();
    clearTimeout(this.#linger);
    clearTimeout(this.#flightTimer);
    clearInterval(this.#idleTimer);
    // The gate holds a duplicate of the descriptor: the peer sees the end only when both are closed.
    this.#gate?.close();
  }

  #finish(): void {
    if (!this.#isClosed) this.#release();
    this.#handler?.closed(this.#error);
  }
}

function viewOf(bytes: Uint8Array, start: number, end: number): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start);
}

function openKernelGate(socket: TLSSocket): SendGate | undefined {
  if (process.platform !== 'linux') return undefined;
  try {
    return new KernelGate(socketFd(socket));
  } catch {
    // No descriptor (a pair of streams), or none left: the channel works without, with more waiting in the kernel.
    return undefined;
  }
}

/** The kernel's end of a connection: how full it is, and how it sends. */
class KernelGate implements SendGate {
  readonly #unsent: UnsentGate;
  readonly #path: TcpPath;
  readonly #watch: PathWatch;
  /** There is no more than this unsent: what the kernel said last, and what has been written since. */
  #mostUnsent = GATE_BYTES;

  constructor(fd: number) {
    this.#unsent = new UnsentGate(fd);
    this.#path = new TcpPath(this.#unsent.fd);
    this.#watch = new PathWatch(this.#path);
  }

  unsent(): number {
    // Few small writes need not ask: a call of the kernel costs as much as encrypting them.
    if (this.#mostUnsent >= GATE_BYTES) this.#mostUnsent = this.#unsent.unsent();
    return this.#mostUnsent;
  }

  unacknowledged(): number {
    return this.#unsent.unacknowledged();
  }

  whenWritable(callback: () => void): void {
    this.#unsent.whenWritable(callback);
  }

  wrote(bytes: number): void {
    this.#mostUnsent += bytes + MAX_RECORD_OVERHEAD;
    this.#watch.wrote(bytes);
  }

  read(facts: PathFacts): boolean {
    return this.#path.read(facts);
  }

  close(): void {
    this.#watch.close();
    void this.#unsent.close();
  }
}
