/**
 * Watches a device with `tcpdump` and looks for byte strings in what passes.
 *
 * Hides the capture file format: it is read as a stream, so that a gigabyte needs no disk and little memory. A capture
 * that is to show absence must also show presence, so it counts the bytes that it really held. The format:
 * https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-03.html, little-endian, as `tcpdump` writes it on this machine.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { totalmem } from 'node:os';
import { LabError, until } from './process.ts';

const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
const MAGIC_NUMBERS = new Set([0xa1b2c3d4, 0xa1b23c4d]);
/** Of the kernel's ring, in KiB: what `tcpdump` may fall behind on a busy machine; an eighth of its memory, 1 GiB at most. */
const RING_KIB = Math.min(1_048_576, Math.floor(totalmem() / 8192));

/** What passed. */
export interface CaptureFacts {
  packets: number;
  /** Bytes held, all headers included; never more than were on the link. */
  bytes: number;
  /** The longest packet on the link. */
  longestBytes: number;
  /** Packets that the kernel had to leave out. */
  dropped: number;
}

/** Reads the stream of a capture file. Pure. */
export class CaptureReader {
  readonly facts: CaptureFacts = { packets: 0, bytes: 0, longestBytes: 0, dropped: 0 };
  readonly #markers: readonly Buffer[];
  readonly #seen = new Set<Buffer>();
  /** The unread end of the last chunk: part of a header, or as much of a packet as a marker may reach over. */
  #rest: Buffer = Buffer.alloc(0);
  #needed = FILE_HEADER_BYTES;
  #inPacket = false;
  #tail: Buffer = Buffer.alloc(0);

  constructor(markers: readonly Buffer[] = []) {
    this.#markers = markers;
  }

  /** @throws {LabError} when the stream is not a capture file of this byte order */
  push(chunk: Buffer): void {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    while (bytes.length > 0) {
      if (this.#inPacket) {
        const part = bytes.subarray(0, Math.min(this.#needed, bytes.length));
        this.#search(part);
        this.facts.bytes += part.length;
        this.#needed -= part.length;
        bytes = bytes.subarray(part.length);
        if (this.#needed === 0) this.#expectRecord();
        continue;
      }
      if (bytes.length < this.#needed) break;
      if (this.#needed === FILE_HEADER_BYTES) {
        if (!MAGIC_NUMBERS.has(bytes.readUInt32LE(0))) throw new LabError('not a capture file');
        bytes = bytes.subarray(FILE_HEADER_BYTES);
        this.#expectRecord();
        continue;
      }
      const held = bytes.readUInt32LE(8);
      this.facts.packets += 1;
      this.facts.longestBytes = Math.max(this.facts.longestBytes, bytes.readUInt32LE(12));
      bytes = bytes.subarray(RECORD_HEADER_BYTES);
      this.#needed = held;
      this.#inPacket = held > 0;
      if (held === 0) this.#expectRecord();
    }
    this.#rest = Buffer.from(bytes);
  }

  /** Whether one of the constructor's markers has been in a packet so far. */
  seen(marker: Buffer): boolean {
    return this.#seen.has(marker);
  }

  #expectRecord(): void {
    this.#inPacket = false;
    this.#needed = RECORD_HEADER_BYTES;
    this.#tail = Buffer.alloc(0);
  }

  #search(part: Buffer): void {
    if (this.#markers.length === 0) return;
    // One byte short of the longest marker, on each side of the seam between two chunks.
    const reach = Math.max(...this.#markers.map((marker) => marker.length)) - 1;
    const seam = Buffer.concat([this.#tail, part.subarray(0, reach)]);
    for (const marker of this.#markers) {
      if (this.#seen.has(marker)) continue;
      if (part.includes(marker) || seam.includes(marker)) this.#seen.add(marker);
    }
    const end = Buffer.concat([this.#tail, part.subarray(Math.max(0, part.length - reach))]);
    this.#tail = end.subarray(Math.max(0, end.length - reach));
  }
}

export interface CaptureOptions {
  /** A `pcap-filter(7)` expression. */
  filter?: string;
  markers?: readonly Buffer[];
}

/** A running capture. */
export class Capture implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #reader: CaptureReader;
  readonly #closed: Promise<unknown>;
  #messages = '';
  #failure: unknown;

  private constructor(argv: readonly string[], markers: readonly Buffer[]) {
    this.#reader = new CaptureReader(markers);
    const [command = '', ...rest] = argv;
    this.#child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child.stdout?.on('data', (chunk: Buffer) => {
      try {
        this.#reader.push(chunk);
      } catch (error) {
        this.#failure ??= error;
        this.#child.kill('SIGKILL');
      }
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#messages += text;
    });
    this.#closed = once(this.#child, 'close').catch((error: unknown) => {
      this.#failure ??= error;
    });
  }

  /** Starts watching `device`; `prefix` is what runs a command in the right namespace. Resolves once it watches. */
  static async start(prefix: readonly string[], device: string, options: CaptureOptions = {}): Promise<Capture> {
    const words = [
      'tcpdump',
      '-i',
      device,
      '-n',
      '-U',
      '-B',
      String(RING_KIB),
      '-Z',
      'root',
      '-s',
      '262144',
      '-w',
      '-',
    ];
    const filter = options.filter === undefined ? [] : [options.filter];
    const capture = new Capture([...prefix, ...words, ...filter], options.markers ?? []);
    await until('tcpdump to listen', () => {
      if (capture.#failure !== undefined || capture.#child.exitCode !== null) {
        throw new LabError(`tcpdump ended: ${capture.#messages}`, { cause: capture.#failure });
      }
      return capture.#messages.includes('listening on');
    });
    return capture;
  }

  get facts(): CaptureFacts {
    return this.#reader.facts;
  }

  seen(marker: Buffer): boolean {
    return this.#reader.seen(marker);
  }

  /**
   * Stops watching. What is on its way to the capture may be lost: wait until a marker sent last is `seen` first.
   *
   * @throws {LabError} when the capture could not be read
   */
  async stop(): Promise<CaptureFacts> {
    this.#child.kill('SIGINT');
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
    await this.#closed;
    clearTimeout(timer);
    if (this.#failure !== undefined) throw new LabError('the capture failed', { cause: this.#failure });
    const dropped = /(\d+) packets? dropped by kernel/.exec(this.#messages)?.[1];
    return { ...this.#reader.facts, dropped: Number(dropped ?? 0) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#closed;
  }
}
