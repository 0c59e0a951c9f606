/**
 * A channel between two processes of a gateway: calls with an answer, and words without one, each checked on receipt.
 *
 * Hides framing (u32 length, big-endian, then JSON), numbering of calls, and every bound: bytes of a frame, calls in flight,
 * frames and bytes a second, bytes that wait to be read. What crosses a bound, or is not in the contract, ends the channel for good,
 * and whoever holds it decides what becomes of the process at the other end. Nothing that comes from there is believed
 * before its schema has passed; nothing is ever read as code. It must not know what the messages mean.
 */

import { Socket } from 'node:net';
import type { z } from 'zod';
import { ERROR_CODES, type ErrorCode, toVpnError, VpnError } from '../../base/errors.ts';

/** One kind of message: `output` where an answer is expected. */
export interface MessageKind {
  readonly input: z.ZodType;
  readonly output?: z.ZodType;
}
/** Every message that one end may send. */
export type Contract = Readonly<Record<string, MessageKind>>;

/** What one end does with what the other says. */
export type Handlers<C extends Contract> = {
  readonly [N in keyof C]: C[N]['output'] extends z.ZodType
    ? (input: z.output<C[N]['input']>) => Promise<z.output<C[N]['output']>>
    : (input: z.output<C[N]['input']>) => void;
};

/** What an end is ready for. */
export interface ChannelLimits {
  /** Of one frame. */
  readonly frameBytes: number;
  /** Calls of the other end that are being answered. */
  readonly callsInFlight: number;
  /** Frames a second that the other end may go on sending for long, and how many it may be ahead of that. */
  readonly framesPerSecond: number;
  readonly burstFrames: number;
  /** The same of their bytes. */
  readonly bytesPerSecond: number;
  readonly burstBytes: number;
}

/** Bytes that may wait for the other end to read. */
const MAX_UNREAD_BYTES = 64 * 1024 * 1024;
const LENGTH_BYTES = 4;
const MAX_ERROR_TEXT = 1024;
const MAX_NAME = 64;
/** What is said in one turn goes in one write; more than this goes at once. */
const MAX_TOGETHER_BYTES = 256 * 1024;

/** One for all channels: what is read is taken out of it before anything else can be read. */
const readBuffer = Buffer.allocUnsafeSlow(64 * 1024);
const EMPTY = Buffer.alloc(0);

/** What one end says in a frame. */
type Frame =
  | { readonly call: string; readonly id: number; readonly input: unknown }
  | { readonly tell: string; readonly input: unknown }
  | { readonly answer: number; readonly output: unknown }
  | { readonly answer: number; readonly error: { readonly code: string; readonly message: string } };

interface Waiting {
  readonly output: z.ZodType;
  readonly late: NodeJS.Timeout | undefined;
  resolve(value: unknown): void;
  reject(error: VpnError): void;
}

export interface ChannelOptions<Out extends Contract, In extends Contract> {
  /** One end of a pair of stream sockets, which the channel takes over. */
  fd: number;
  out: Out;
  in: In;
  handlers: Handlers<In>;
  limits: ChannelLimits;
  /** Of one frame that the other end takes; what is longer is not said. Default: it takes all. */
  maxSentBytes?: number;
  /** Called once: the other end is gone (undefined), or has broken a rule. */
  closed(error: VpnError | undefined): void;
  /** Monotonic milliseconds. */
  now?: () => number;
}

export class IpcChannel<Out extends Contract, In extends Contract> {
  readonly #options: ChannelOptions<Out, In>;
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #now: () => number;
  /** The beginning of a frame whose rest has not come. */
  #rest: Buffer[] = [];
  #restBytes = 0;
  /** What has been said in this turn. */
  #said: Buffer[] = [];
  #saidBytes = 0;
  #nextId = 0;
  #inFlight = 0;
  #frames: number;
  #bytes: number;
  #filledAt: number;
  #isClosed = false;

  constructor(options: ChannelOptions<Out, In>) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#frames = options.limits.burstFrames;
    this.#bytes = options.limits.burstBytes;
    this.#filledAt = this.#now();
    this.#socket = new Socket({
      fd: options.fd,
      readable: true,
      writable: true,
      // Without a stream in between, which makes a buffer of 64 KiB for every read.
      onread: {
        buffer: readBuffer,
        callback: (length) => {
          this.#receive(readBuffer.subarray(0, length));
          return true;
        },
      },
    });
    this.#socket.on('error', () => {});
    this.#socket.on('close', () => this.#end(undefined));
    this.#socket.resume();
  }

  /**
   * Asks the other end.
   *
   * @param timeoutMs how long the answer may take; default: as long as the channel lives
   * @throws {VpnError} what the other end answers; ERR_BUSY when there is none in time or the other end is gone; ERR_INVARIANT
   *   for what cannot be said
   */
  call<N extends keyof Out & string>(
    name: N,
    input: z.output<Out[N]['input']>,
    timeoutMs?: number,
  ): Promise<Out[N]['output'] extends z.ZodType ? z.output<Out[N]['output']> : never> {
    const kind = this.#options.out[name];
    if (kind?.output === undefined) throw new VpnError('ERR_INVARIANT', `${name} is no call`);
    const { output } = kind;
    if (this.#isClosed) return Promise.reject(gone(name));
    this.#nextId += 1;
    const id = this.#nextId;
    const { promise, resolve, reject } = Promise.withResolvers<never>();
    const late =
      timeoutMs === undefined
        ? undefined
        : setTimeout(() => {
            this.#waiting.delete(id);
            reject(new VpnError('ERR_BUSY', `no answer to ${name} within ${timeoutMs} ms`));
          }, timeoutMs).unref();
    this.#waiting.set(id, { output, late, resolve: resolve as (value: unknown) => void, reject });
    try {
      this.#send({ call: name, id, input: encode(kind.input, input, name) });
    } catch (error) {
      this.#waiting.delete(id);
      clearTimeout(late);
      throw error;
    }
    return promise;
  }

  /** Says something that needs no answer. Goes nowhere once the channel has ended. */
  tell<N extends keyof Out & string>(name: N, input: z.output<Out[N]['input']>): void {
    const kind = this.#options.out[name];
    if (kind === undefined) throw new VpnError('ERR_INVARIANT', `${name} is not in the contract`);
    this.#send({ tell: name, input: encode(kind.input, input, name) });
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Says no more and hears no more. Idempotent. */
  close(): void {
    this.#end(undefined);
  }

  #send(message: Frame): void {
    if (this.#isClosed) return;
    const text = JSON.stringify(message);
    const length = Buffer.byteLength(text);
    const { maxSentBytes = Number.POSITIVE_INFINITY } = this.#options;
    if (length > maxSentBytes) {
      throw new VpnError('ERR_INVARIANT', `a message of ${length} bytes, where the other end takes ${maxSentBytes}`);
    }
    const bytes = Buffer.allocUnsafe(LENGTH_BYTES + length);
    bytes.writeUInt32BE(length);
    bytes.write(text, LENGTH_BYTES);
    if (this.#saidBytes === 0) setImmediate(() => this.#flush());
    this.#said.push(bytes);
    this.#saidBytes += bytes.length;
    if (this.#saidBytes >= MAX_TOGETHER_BYTES) this.#flush();
  }

  #flush(): void {
    this.#writeSaid();
    if (this.#socket.writableLength > MAX_UNREAD_BYTES) this.#break('it does not read what it is told');
  }

  #writeSaid(): void {
    if (this.#saidBytes === 0) return;
    const [first] = this.#said;
    const bytes = this.#said.length === 1 && first !== undefined ? first : Buffer.concat(this.#said);
    this.#said = [];
    this.#saidBytes = 0;
    this.#socket.write(bytes);
  }

  /** @param chunk borrowed until this returns */
  #receive(chunk: Buffer): void {
    if (this.#isClosed) return;
    let bytes = chunk;
    if (this.#restBytes > 0) {
      this.#rest.push(Buffer.from(chunk));
      this.#restBytes += chunk.length;
      if (this.#restBytes < LENGTH_BYTES) return;
      let [head = EMPTY] = this.#rest;
      if (head.length < LENGTH_BYTES) {
        head = Buffer.concat(this.#rest);
        this.#rest = [head];
      }
      // Joined once, when the frame is whole.
      const length = head.readUInt32BE();
      if (length <= this.#options.limits.frameBytes && this.#restBytes < LENGTH_BYTES + length) return;
      bytes = this.#rest.length === 1 ? head : Buffer.concat(this.#rest);
      this.#rest = [];
      this.#restBytes = 0;
    }
    let at = 0;
    while (bytes.length - at >= LENGTH_BYTES) {
      const length = bytes.readUInt32BE(at);
      if (length > this.#options.limits.frameBytes) {
        this.#break(`a frame of ${length} bytes, where at most ${this.#options.limits.frameBytes} are allowed`);
        return;
      }
      const end = at + LENGTH_BYTES + length;
      if (bytes.length < end) break;
      if (!this.#spend(LENGTH_BYTES + length)) return;
      this.#handle(bytes.toString('utf8', at + LENGTH_BYTES, end));
      if (this.#isClosed) return;
      at = end;
    }
    if (at === bytes.length) return;
    this.#rest = [Buffer.from(bytes.subarray(at))];
    this.#restBytes = bytes.length - at;
  }

  /** @returns whether it may go on */
  #spend(bytes: number): boolean {
    const { framesPerSecond, burstFrames, bytesPerSecond, burstBytes } = this.#options.limits;
    const now = this.#now();
    const seconds = (now - this.#filledAt) / 1000;
    this.#filledAt = now;
    this.#frames = Math.min(burstFrames, this.#frames + seconds * framesPerSecond) - 1;
    this.#bytes = Math.min(burstBytes, this.#bytes + seconds * bytesPerSecond) - bytes;
    if (this.#frames < 0) this.#break(`more than ${framesPerSecond} frames a second`);
    else if (this.#bytes < 0) this.#break(`more than ${bytesPerSecond} bytes a second`);
    return !this.#isClosed;
  }

  #handle(text: string): void {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      this.#break('a frame that is no JSON');
      return;
    }
    const frame = readFrame(value);
    if (frame === undefined) this.#break('a frame of no known kind');
    else if ('call' in frame) this.#called(frame.call, frame.id, frame.input);
    else if ('tell' in frame) this.#told(frame.tell, frame.input);
    else this.#answered(frame);
  }

  #called(name: string, id: number, input: unknown): void {
    const { handlers, limits } = this.#options;
    const kind = this.#kindOf(name);
    const handler = handlers[name];
    if (kind?.output === undefined || handler === undefined) {
      this.#break(`a call that is not in the contract: ${JSON.stringify(name)}`);
      return;
    }
    const parsed = kind.input.safeParse(input);
    if (!parsed.success) {
      this.#break(`a call of ${name} with a wrong value: ${issueOf(parsed.error)}`);
      return;
    }
    this.#inFlight += 1;
    if (this.#inFlight > limits.callsInFlight) {
      this.#break(`more than ${limits.callsInFlight} calls in flight`);
      return;
    }
    const { output } = kind;
    Promise.try((): unknown => handler(parsed.data as never)).then(
      (value) => this.#answer(id, () => ({ answer: id, output: encode(output, value, name) })),
      (cause: unknown) => this.#answer(id, () => refusalOf(id, cause)),
    );
  }

  #answer(id: number, answer: () => Frame): void {
    this.#inFlight -= 1;
    try {
      this.#send(answer());
    } catch (cause) {
      this.#send(refusalOf(id, cause));
    }
  }

  #told(name: string, input: unknown): void {
    const kind = this.#kindOf(name);
    const handler = this.#options.handlers[name];
    if (kind === undefined || kind.output !== undefined || handler === undefined) {
      this.#break(`a word that is not in the contract: ${JSON.stringify(name)}`);
      return;
    }
    const parsed = kind.input.safeParse(input);
    if (!parsed.success) {
      this.#break(`${name} with a wrong value: ${issueOf(parsed.error)}`);
      return;
    }
    try {
      handler(parsed.data as never);
    } catch (cause) {
      // There is no answer in which to refuse it.
      this.#break(`${name} cannot be heard: ${toVpnError(cause).message}`);
    }
  }

  #answered(message: { answer: number; output?: unknown; error?: { code: string; message: string } }): void {
    const waiting = this.#waiting.get(message.answer);
    // Of a call that was given up.
    if (waiting === undefined) {
      if (message.answer > this.#nextId) this.#break('an answer to nothing');
      return;
    }
    this.#waiting.delete(message.answer);
    clearTimeout(waiting.late);
    if (message.error !== undefined) {
      const { code, message: words } = message.error;
      const known = ERROR_CODES.find((candidate): candidate is ErrorCode => candidate === code);
      waiting.reject(new VpnError(known ?? 'ERR_INVARIANT', words));
      return;
    }
    const parsed = waiting.output.safeParse(message.output);
    if (parsed.success) {
      waiting.resolve(parsed.data);
      return;
    }
    waiting.reject(new VpnError('ERR_INVARIANT', 'the other process answered something else'));
    this.#break(`an answer with a wrong value: ${issueOf(parsed.error)}`);
  }

  #kindOf(name: string): MessageKind | undefined {
    return Object.hasOwn(this.#options.in, name) ? this.#options.in[name] : undefined;
  }

  #break(why: string): void {
    this.#end(new VpnError('ERR_MESSAGE_FIELD', `the process at the other end of a channel broke a rule: ${why}`));
  }

  #end(error: VpnError | undefined): void {
    if (this.#isClosed) return;
    if (error === undefined) this.#writeSaid();
    this.#isClosed = true;
    this.#said = [];
    this.#saidBytes = 0;
    this.#rest = [];
    this.#restBytes = 0;
    if (error === undefined) this.#socket.end();
    else this.#socket.destroy();
    this.#socket.unref();
    for (const { late, reject } of this.#waiting.values()) {
      clearTimeout(late);
      reject(gone('a call'));
    }
    this.#waiting.clear();
    this.#options.closed(error);
  }
}

/** Whether it is one, and nothing else is in it. */
function readFrame(value: unknown): Frame | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const frame = value as Readonly<Record<string, unknown>>;
  const members = Object.keys(frame).length;
  const { call, tell, answer, error } = frame;
  if ('call' in frame)
    return isName(call) && isCount(frame.id) && 'input' in frame && members === 3 ? (value as Frame) : undefined;
  if ('tell' in frame) return isName(tell) && 'input' in frame && members === 2 ? (value as Frame) : undefined;
  if (!isCount(answer) || members !== 2) return undefined;
  return 'output' in frame || isError(error) ? (value as Frame) : undefined;
}

function isName(value: unknown): boolean {
  return typeof value === 'string' && value.length <= MAX_NAME;
}

function isCount(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

function isError(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Object.keys(value).length !== 2) return false;
  const { code, message } = value as Readonly<Record<string, unknown>>;
  return isName(code) && typeof message === 'string' && message.length <= 2 * MAX_ERROR_TEXT;
}

function refusalOf(id: number, cause: unknown): Frame {
  const { code, message } = toVpnError(cause);
  return { answer: id, error: { code, message: message.slice(0, MAX_ERROR_TEXT) } };
}

function encode(schema: z.ZodType, value: unknown, name: string): unknown {
  const result = schema.safeEncode(value);
  if (result.success) return result.data;
  throw new VpnError('ERR_INVARIANT', `${name} cannot be said: ${issueOf(result.error)}`);
}

function issueOf(error: z.ZodError): string {
  const [issue] = error.issues;
  return issue === undefined ? 'malformed' : `${issue.path.join('.')}: ${issue.message}`.slice(0, 200);
}

function gone(name: string): VpnError {
  return new VpnError('ERR_BUSY', `${name} was not answered: the other process is gone`);
}
