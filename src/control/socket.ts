/**
 * Carries the control API over a unix socket: `POST /v1/NAME` with JSON in and out.
 *
 * Hides HTTP from both ends: a daemon hands over its handlers, a program gets an object with the same functions. The socket is
 * for its owner alone, mode 0600 in a folder of mode 0700, unless a daemon asks who calls; then others have a bounded part of it.
 * Errors cross as code and message.
 */

import { chmod, mkdir, rm } from 'node:fs/promises';
import http from 'node:http';
import net from 'node:net';
import { dirname } from 'node:path';
import type { z } from 'zod';
import { ERROR_CODES, type ErrorCode, isVpnError, toVpnError, VpnError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { Api, Operation, Operations } from './operations.ts';

const MAX_BODY_BYTES = 1 << 20;
/** `sun_path` holds 108 bytes with its terminator. */
const MAX_PATH_BYTES = 107;
const CALL_TIMEOUT_MS = 30_000;
/** A connection that has not said all of its request by then is closed. */
const REQUEST_MS = 10_000;
const LOOK_MS = 2000;
/** Connections of one user, and of all together; root and whoever runs the daemon are not counted, and always find room. */
const MAX_PER_USER = 32;
const MAX_OF_OTHERS = 128;
const TOO_MANY = `expected at most ${MAX_PER_USER} connections of one user, and ${MAX_OF_OTHERS} of all but root; wait until others are answered`;
const BUSY_ANSWER = (() => {
  const body = JSON.stringify({ code: 'ERR_BUSY' satisfies ErrorCode, message: TOO_MANY });
  return `HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`;
})();
/** How long running calls may take after the daemon has ended. */
const LINGER_MS = 2000;

/** Who calls. */
export interface Caller {
  /** Aborted when the caller hangs up before it has its answer. */
  readonly gone: AbortSignal;
  /** Which user of this machine it is, where the daemon asks. */
  readonly uid?: number | undefined;
}

/** What a daemon implements a set of operations by. */
export type Handlers<T extends Operations> = {
  readonly [K in keyof T]: (input: z.input<T[K]['input']>, caller: Caller) => Promise<z.output<T[K]['output']>>;
};

/**
 * Serves `handlers` until it is disposed of: at a path, where a socket that a dead process left behind is replaced, or at a
 * listening socket that it takes over.
 *
 * @throws {VpnError} ERR_ALREADY_RUNNING when a live process answers there; ERR_CONFIG_VALUE when the path is too long
 */
export async function serveControl<T extends Operations>(
  at: string | { readonly fd: number },
  operations: T,
  handlers: Handlers<T>,
  log: Logger,
  /** The user at the other end; whoever asks lets others than the owner call. */
  userOf?: (socket: net.Socket) => number,
): Promise<AsyncDisposable> {
  const path = typeof at === 'string' ? at : undefined;
  if (path !== undefined) await makeRoom(path);
  const table: Operations = operations;
  const users = userOf === undefined ? undefined : new Users(userOf);
  const limits = { requestTimeout: REQUEST_MS, headersTimeout: REQUEST_MS, connectionsCheckingInterval: LOOK_MS };
  const server = http.createServer(limits, (request, response) => {
    const operation = request.url?.startsWith('/v1/') === true ? request.url.slice(4) : '';
    const gone = new AbortController();
    response.once('close', () => gone.abort());
    const contract = Object.hasOwn(table, operation) ? table[operation] : undefined;
    const answer = async (): Promise<unknown> =>
      await call(request, { gone: gone.signal, uid: users?.of(request.socket) }, contract, handlers[operation]);
    answer()
      .then((value) => reply(response, 200, value))
      .catch((cause: unknown) => {
        const error = toVpnError(cause);
        if (error.kind === 'internal') log.error('control operation failed', { operation, error });
        reply(response, error.kind === 'internal' ? 500 : 400, { code: error.code, message: error.message });
      });
  });
  if (users !== undefined) server.on('connection', (socket) => users.add(socket));
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(at, resolve));
  if (path !== undefined) await chmod(path, 0o600);
  return {
    [Symbol.asyncDispose]: async () => {
      // The call that asked the daemon to end is still to be answered.
      const cut = setTimeout(() => server.closeAllConnections(), LINGER_MS);
      await new Promise<void>((resolve) => server.close(() => resolve()));
      clearTimeout(cut);
      if (path !== undefined) await rm(path, { force: true });
    },
  };
}

/** Whose each connection is, and how many each may have. */
class Users {
  readonly #userOf: (socket: net.Socket) => number;
  readonly #uids = new WeakMap<net.Socket, number>();
  readonly #counts = new Map<number, number>();
  #others = 0;

  constructor(userOf: (socket: net.Socket) => number) {
    this.#userOf = userOf;
  }

  /** @throws {VpnError} ERR_BUSY for a connection that was one too many, of which a request was under way */
  of(socket: net.Socket): number {
    const uid = this.#uids.get(socket);
    if (uid === undefined) throw new VpnError('ERR_BUSY', TOO_MANY);
    return uid;
  }

  /** One too many is answered at once, and closed. */
  add(socket: net.Socket): void {
    const uid = this.#userOf(socket);
    const isCounted = uid !== 0 && uid !== process.getuid?.();
    const count = this.#counts.get(uid) ?? 0;
    if (isCounted && (count >= MAX_PER_USER || this.#others >= MAX_OF_OTHERS)) {
      socket.end(BUSY_ANSWER, () => socket.destroy());
      return;
    }
    this.#uids.set(socket, uid);
    if (!isCounted) return;
    this.#counts.set(uid, count + 1);
    this.#others += 1;
    socket.once('close', () => {
      this.#others -= 1;
      const left = (this.#counts.get(uid) ?? 1) - 1;
      if (left === 0) this.#counts.delete(uid);
      else this.#counts.set(uid, left);
    });
  }
}

/**
 * Makes sure that a socket can be made at `path`: its folder is there, and nobody answers.
 *
 * @throws {VpnError} ERR_ALREADY_RUNNING, ERR_CONFIG_VALUE
 */
export async function makeRoom(path: string): Promise<void> {
  checkPath(path);
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  if (await answers(path)) {
    throw new VpnError('ERR_ALREADY_RUNNING', `another process already answers at ${path}; stop it first`);
  }
  await rm(path, { force: true });
}

/**
 * Returns the operations of the daemon at `path`. Each call opens a connection of its own.
 *
 * The functions throw `VpnError`: what the daemon answered, or ERR_NOT_RUNNING when nothing listens there.
 */
export function connectControl<T extends Operations>(path: string, operations: T): Api<T> {
  checkPath(path);
  const calls = Object.entries(operations).map(([operation, contract]) => [
    operation,
    async (input: unknown) =>
      contract.output.parse(await post(path, operation, input, contract.isLong === true ? 0 : CALL_TIMEOUT_MS)),
  ]);
  return Object.fromEntries(calls) as Api<T>;
}

/**
 * As `connectControl`, but takes answers as they come: for programs that want to start fast, and whose daemon is of the same
 * user and version. They need not load the contract.
 *
 * @param long operations whose answer may take any time
 */
export function connectDaemon<T extends Operations>(path: string, long: readonly (keyof T)[]): Api<T> {
  checkPath(path);
  return new Proxy({} as Api<T>, {
    // Whatever else is asked for, such as `then`, it has not.
    get: (_, operation) =>
      typeof operation === 'string' && operation.includes('.')
        ? (input: unknown) => post(path, operation, input, long.includes(operation) ? 0 : CALL_TIMEOUT_MS)
        : undefined,
  });
}

/** Tells whether a process listens on the unix socket at `path`. */
export function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

function checkPath(path: string): void {
  if (Buffer.byteLength(path) > MAX_PATH_BYTES) {
    throw new VpnError(
      'ERR_CONFIG_VALUE',
      `the control socket ${path} has a name of more than ${MAX_PATH_BYTES} bytes; choose a shorter state directory`,
    );
  }
}

async function call(
  request: http.IncomingMessage,
  caller: Caller,
  operation: Operation | undefined,
  handler: ((input: never, caller: Caller) => Promise<unknown>) | undefined,
): Promise<unknown> {
  if (operation === undefined || handler === undefined) {
    throw new VpnError('ERR_NOT_FOUND', `there is no operation ${request.url ?? ''}`);
  }
  if (request.method !== 'POST') throw new VpnError('ERR_BAD_REQUEST', 'operations are called with POST');
  const input = operation.input.safeParse(await readJson(request));
  if (!input.success) {
    const issue = input.error.issues[0];
    throw new VpnError('ERR_BAD_REQUEST', `${issue?.path.join('.') ?? 'input'}: ${issue?.message ?? 'not valid'}`);
  }
  return await handler(input.data as never, caller);
}

async function readJson(message: http.IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of message as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > MAX_BODY_BYTES)
      throw new VpnError('ERR_BAD_REQUEST', `a body of at most ${MAX_BODY_BYTES} bytes was expected`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8'));
  } catch (cause) {
    throw new VpnError('ERR_BAD_REQUEST', 'a JSON body was expected', { cause });
  }
}

function reply(response: http.ServerResponse, status: number, value: unknown): void {
  response
    .writeHead(status, { 'content-type': 'application/json', connection: 'close' })
    .end(JSON.stringify(value ?? {}));
}

/** @param timeoutMs 0: as long as it takes */
function post(path: string, operation: string, input: unknown, timeoutMs: number): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const request = http.request({
      socketPath: path,
      path: `/v1/${operation}`,
      method: 'POST',
      timeout: timeoutMs,
    });
    request.once('timeout', () => request.destroy(new VpnError('ERR_NOT_RUNNING', `no answer at ${path} within 30 s`)));
    request.once('error', (cause: NodeJS.ErrnoException) =>
      reject(isVpnError(cause) ? cause : unreachable(path, cause)),
    );
    request.once('response', (response) => {
      readJson(response).then(
        (body) => (response.statusCode === 200 ? resolve(body) : reject(remoteError(body))),
        reject,
      );
    });
    request.end(JSON.stringify(input));
  });
}

function unreachable(path: string, cause: NodeJS.ErrnoException): VpnError {
  if (cause.code === 'EACCES') {
    return new VpnError('ERR_PRIVILEGE', `not permitted to open ${path}; run as root or as the daemon's user`, {
      cause,
    });
  }
  return new VpnError('ERR_NOT_RUNNING', `nothing is running with this state directory (no answer at ${path})`, {
    cause,
  });
}

function remoteError(body: unknown): VpnError {
  const { code, message } = (body ?? {}) as { code?: unknown; message?: unknown };
  const known = ERROR_CODES.find((candidate): candidate is ErrorCode => candidate === code);
  return new VpnError(known ?? 'ERR_INVARIANT', typeof message === 'string' ? message : 'the daemon gave no reason');
}
