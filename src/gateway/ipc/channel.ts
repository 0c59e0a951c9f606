/**
 * A channel between two processes of a gateway: calls with an answer, and words without one, each checked on receipt.
 *
 * Hides framing (u32 length, big-endian, then JSON), numbering of calls, and every bound: bytes of a frame, calls in flight,
 * frames and bytes a second, bytes that wait to be read. What crosses a bound, or is not in the contract, ends the channel for good,
 * and whoever holds it decides what becomes of the process at the other end. Nothing that comes from there is believed
 * before its schema has passed; nothing is ever read as code. It must not know what the messages mean.
 */

import { Socket } from 'node:net';
import { z } from 'zod';
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

const frame = z.union([
  z.strictObject({ call: z.string().max(64), id: z.int().min(0), input: z.unknown() }),
  z.strictObject({ tell: z.string().max(64), input: z.unknown() }),
  z.strictObject({ answer: z.int().min(0), output: z.unknown() }),
  z.strictObject({
    answer: z.int().min(0),
    error: z.strictObject({ code: z.string().max(64), message: z.string().max(2 * MAX_ERROR_TEXT) }),
  }),
]);

interface Waiting {
  readonly output: z.ZodType;
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
  #chunks: Buffer[] = [];
  #bufferedBytes = 0;
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
    this.#socket = new Socket({ fd: options.fd, readable: true, writable: true });
    this.#socket.on('data', (chunk) => this.#receive(Buffer.from(chunk)));
    this.#socket.on('error', () => {});
    this.#socket.on('close', () => this.#end(undefined));
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
    const settle =
      <T>(act: (value: T) => void) =>
      (value: T): void => {
        clearTimeout(late);
        act(value);
      };
    this.#waiting.set(id, { output, resolve: settle(resolve as (value: unknown) => void), reject: settle(reject) });
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

  #send(message: z.input<typeof frame>): void {
    if (this.#isClosed) return;
    const body = Buffer.from(JSON.stringify(message));
    const { maxSentBytes = Number.POSITIVE_INFINITY } = this.#options;
    if (body.length > maxSentBytes) {
      throw new VpnError(
        'ERR_INVARIANT',
        `a message of ${body.length} bytes, where the other end takes ${maxSentBytes}`,
      );
    }
    const head = Buffer.alloc(LENGTH_BYTES);
    head.writeUInt32BE(body.length);
    this.#socket.write(Buffer.concat([head, body]));
    if (this.#socket.writableLength > MAX_UNREAD_BYTES) this.#break('it does not read what it is told');
  }

  #receive(chunk: Buffer): void {
    if (this.#isClosed) return;
    this.#chunks.push(chunk);
    this.#bufferedBytes += chunk.length;
    while (!this.#isClosed && this.#bufferedBytes >= LENGTH_BYTES) {
      if ((this.#chunks[0]?.length ?? 0) < LENGTH_BYTES) this.#chunks = [Buffer.concat(this.#chunks)];
      const length = this.#chunks[0]?.readUInt32BE() ?? 0;
      if (length > this.#options.limits.frameBytes) {
        this.#break(`a frame of ${length} bytes, where at most ${this.#options.limits.frameBytes} are allowed`);
        return;
      }
      if (this.#bufferedBytes < LENGTH_BYTES + length) return;
      const all = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
      if (all === undefined) return;
      const rest = all.subarray(LENGTH_BYTES + length);
      this.#chunks = rest.length === 0 ? [] : [rest];
      this.#bufferedBytes = rest.length;
      if (!this.#spend(LENGTH_BYTES + length)) return;
      this.#handle(all.subarray(LENGTH_BYTES, LENGTH_BYTES + length));
    }
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

  #handle(body: Buffer): void {
    let text: unknown;
    try {
      text = JSON.parse(body.toString('utf8'));
    } catch {
      this.#break('a frame that is no JSON');
      return;
    }
    const parsed = frame.safeParse(text);
    if (!parsed.success) this.#break('a frame of no known kind');
    else if ('call' in parsed.data) this.#called(parsed.data.call, parsed.data.id, parsed.data.input);
    else if ('tell' in parsed.data) this.#told(parsed.data.tell, parsed.data.input);
    else this.#answered(parsed.data);
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
    Promise.try((): unknown => handler(parsed.data as never))
      .then((value) => ({ answer: id, output: encode(output, value, name) }))
      .then((message) => this.#send(message))
      .catch((cause: unknown) => {
        const { code, message } = toVpnError(cause);
        this.#send({ answer: id, error: { code, message: message.slice(0, MAX_ERROR_TEXT) } });
      })
      .finally(() => {
        this.#inFlight -= 1;
      });
  }

  #told(name: string, input: unknown): void {
    const kind = this.#kindOf(name);
    const handler = this.#options.handlers[name];
    if (kind === undefined || kind.output !== undefined || handler === undefined) {
      this.#break(`a word that is not in the contract: ${JSON.stringify(name)}`);
      return;
    }
    const parsed = kind.input.safeParse(input);
    if (!parsed.success) this.#break(`${name} with a wrong value: ${issueOf(parsed.error)}`);
    else handler(parsed.data as never);
  }

  #answered(message: { answer: number; output?: unknown; error?: { code: string; message: string } }): void {
    const waiting = this.#waiting.get(message.answer);
    // Of a call that was given up.
    if (waiting === undefined) {
      if (message.answer > this.#nextId) this.#break('an answer to nothing');
      return;
    }
    this.#waiting.delete(message.answer);
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
    this.#isClosed = true;
    this.#chunks = [];
    this.#bufferedBytes = 0;
    if (error === undefined) this.#socket.end();
    else this.#socket.destroy();
    this.#socket.unref();
    for (const { reject } of this.#waiting.values()) reject(gone('a call'));
    this.#waiting.clear();
    this.#options.closed(error);
  }
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
