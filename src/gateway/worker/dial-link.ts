/**
 * Who dials, as a worker in a process of its own reaches it: auth makes the connection, and its descriptor comes over a
 * socket of its own, under a number that only this worker and auth know.
 *
 * Hides that answer and descriptor come apart, in either order, and how many questions are on their way.
 */

import { randomBytes } from 'node:crypto';
import type { Socket as DatagramSocket } from 'node:dgram';
import { isIPv6, Socket } from 'node:net';
import { adoptDatagrams, closeFd } from '../../os/socket.ts';
import type { Dialled, DialPort, DialRequest, DialVerdict, ProxyKey } from '../ipc/ports.ts';
import type { AuthLink } from './auth-link.ts';

/** More wait here, not at auth, which would take so many for a worker gone wild. */
const MAX_ASKED = 1024;
const DESCRIPTOR_MS = 2000;
const HIGH_WATER_MARK = 256 * 1024;

export class DialLink implements DialPort {
  readonly #auth: () => AuthLink;
  /** Descriptors that are expected, by number. */
  readonly #expected = new Map<string, (fd: number) => void>();
  readonly #waiting: (() => void)[] = [];
  #asked = 0;

  constructor(auth: () => AuthLink) {
    this.#auth = auth;
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

  isAllowed(key: ProxyKey, kind: 'tcp' | 'udp', address: string, port: number): Promise<boolean> {
    return this.#auth().isAllowed(key, kind, address, port);
  }

  async #dial<S>(request: DialRequest, adopt: (fd: number, address: string) => Promise<S>): Promise<DialVerdict<S>> {
    while (this.#asked >= MAX_ASKED) await new Promise<void>((resolve) => void this.#waiting.push(resolve));
    this.#asked += 1;
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
      this.#asked -= 1;
      this.#waiting.shift()?.();
    }
  }
}

const BUFFERS: object = { highWaterMark: HIGH_WATER_MARK };
