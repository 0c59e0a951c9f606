/**
 * Who dials, as a worker in a process of its own reaches it: auth makes the connection, and its descriptor comes over a
 * socket of its own, under a number that only this worker and auth know.
 *
 * Hides that answer and descriptor come apart, in either order, and how many questions are asked: so few that no client can
 * make this worker cross what auth takes from one, and those of all keys in turn.
 */

import { randomBytes } from 'node:crypto';
import type { Socket as DatagramSocket } from 'node:dgram';
import { isIPv6, Socket } from 'node:net';
import { adoptDatagrams, closeFd } from '../../os/socket.ts';
import type { Dialled, DialPort, DialRequest, DialVerdict, ProxyKey } from '../ipc/ports.ts';
import type { AuthLink } from './auth-link.ts';

/** On their way at once. More wait here, not at auth, which would take so many for a worker gone wild. */
const MAX_ASKED = 1024;
/** Asked for long, and at once before that: a half and a third of what auth takes (`LIMITS_OF_WORKER`). The rest is for logins. */
const ASKED_PER_SECOND = 3000;
const ASKED_BURST = 10_000;
/** How often those that wait are looked at. */
const LOOK_MS = 10;
const DESCRIPTOR_MS = 2000;
const HIGH_WATER_MARK = 256 * 1024;

export class DialLink implements DialPort {
  readonly #auth: () => Pick<AuthLink, 'dial' | 'isAllowed'>;
  readonly #now: () => number;
  /** Descriptors that are expected, by number. */
  readonly #expected = new Map<string, (fd: number) => void>();
  /** Those that wait for their turn, by whose they are; who had it last stands last. */
  readonly #waiting = new Map<ProxyKey, (() => void)[]>();
  #asked = 0;
  #mayAsk = ASKED_BURST;
  #filledAt: number;
  #look: NodeJS.Timeout | undefined;

  /** @param now monotonic milliseconds */
  constructor(auth: () => Pick<AuthLink, 'dial' | 'isAllowed'>, now: () => number = () => performance.now()) {
    this.#auth = auth;
    this.#now = now;
    this.#filledAt = now();
  }

  /** A descriptor has come; one that nobody asked for is closed. */
  take(id: string, fd: number): void {
    const expected = this.#expected.get(id);
    this.#expected.delete(id);
    if (expected === undefined) closeFd(fd);
    else expected(fd);
  }

  async dialTcp(request: DialRequest): Promise<DialVerdict<Socket>> {
    return await this.#dial(request, async (fd) => {
      const socket = new Socket({ fd, allowHalfOpen: true, readable: true, writable: true, ...BUFFERS });
      // Whoever gets it may hear of an error a turn later.
      socket.on('error', () => {});
      return socket;
    });
  }

  async dialUdp(request: DialRequest): Promise<DialVerdict<DatagramSocket>> {
    return await this.#dial(request, (fd, address) => adoptDatagrams(fd, isIPv6(address) ? 6 : 4));
  }

  async isAllowed(key: ProxyKey, kind: 'tcp' | 'udp', address: string, port: number): Promise<boolean> {
    await this.#turn(key);
    try {
      return await this.#auth().isAllowed(key, kind, address, port);
    } finally {
      this.#answered();
    }
  }

  async #dial<S>(request: DialRequest, adopt: (fd: number, address: string) => Promise<S>): Promise<DialVerdict<S>> {
    await this.#turn(request.key);
    const id = randomBytes(16).toString('hex');
    const arrived = Promise.withResolvers<number | undefined>();
    this.#expected.set(id, arrived.resolve);
    try {
      const answer = await this.#auth().dial(id, request);
      if ('refused' in answer) return answer;
      const late = setTimeout(() => arrived.resolve(undefined), DESCRIPTOR_MS);
      const fd = await arrived.promise;
      clearTimeout(late);
      if (fd === undefined) return { refused: 'proxy_internal_error' };
      return { socket: await adopt(fd, answer.address), address: answer.address } satisfies Dialled<S>;
    } finally {
      this.#expected.delete(id);
      this.#answered();
    }
  }

  /** Resolves when a question may be asked; `answered` is to be called for it. */
  #turn(key: ProxyKey): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const own = this.#waiting.get(key);
    if (own === undefined) this.#waiting.set(key, [resolve]);
    else own.push(resolve);
    this.#askNext();
    return promise;
  }

  #answered(): void {
    this.#asked -= 1;
    this.#askNext();
  }

  #askNext(): void {
    const now = this.#now();
    this.#mayAsk = Math.min(ASKED_BURST, this.#mayAsk + ((now - this.#filledAt) / 1000) * ASKED_PER_SECOND);
    this.#filledAt = now;
    for (const [key, own] of this.#waiting) {
      if (this.#asked >= MAX_ASKED) return;
      if (this.#mayAsk < 1) break;
      this.#asked += 1;
      this.#mayAsk -= 1;
      const ask = own.shift();
      this.#waiting.delete(key);
      if (own.length > 0) this.#waiting.set(key, own);
      ask?.();
    }
    if (this.#waiting.size === 0) return;
    this.#look ??= setTimeout(() => {
      this.#look = undefined;
      this.#askNext();
    }, LOOK_MS).unref();
  }
}

const BUFFERS: object = { highWaterMark: HIGH_WATER_MARK };
